"""Security of configs from untrusted sources: no code runs, no files are written, and checks take bounded time."""

import functools
import importlib
import itertools
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from snnexp import config
from snnexp.cli import main
from snnexp.cli import train as launch
from snnexp.cli.points import prepare_sweep
from snnexp.config import check, compose, compose_unchecked, files, load, security
from snnexp.errors import ConfigError
from snnexp.sweeps import driver

pytestmark = pytest.mark.slow

CALL = "{_target_: builtins.exec, _args_: [\"import pathlib; pathlib.Path('marker').touch()\"]}"
HANDLER = "{'()': subprocess.Popen, args: [touch, marker]}"
LOG = f"{{version: 1, root: {{handlers: [h]}}, handlers: {{h: {HANDLER}}}}}"
MALICIOUS = {
    "callback": f"hydra:\n  callbacks:\n    x: {CALL}",
    "launcher": "hydra:\n  launcher:\n    _target_: subprocess.Popen\n    args: [touch, marker]",
    "sweeper": f"hydra:\n  sweeper: {CALL}",
    "borrowed launcher": "hydra:\n  launcher: {_target_: hydra_plugins.snnexp_x.os.system, command: touch marker}",
    "job_logging": f"hydra:\n  job_logging: {LOG}",
    "hydra_logging": f"hydra:\n  hydra_logging: {LOG}",
    "env_set": "hydra:\n  job:\n    env_set: {SNNEXP_ALLOW_TARGETS: os}",
    "env_copy": "hydra:\n  job:\n    env_copy: [HOME]",
    "searchpath": "hydra:\n  searchpath: ['pkg://antigravity']",
    "run dir": "hydra:\n  run: {dir: marker}",
    "sweep dir": "hydra:\n  sweep: {dir: marker}",
    "output_subdir": "hydra:\n  output_subdir: marker",
    "chdir": "hydra:\n  job: {chdir: true}",
    "multirun": "hydra:\n  mode: MULTIRUN",
    "sweep over hydra": "hydra:\n  sweeper:\n    params: {hydra.run.dir: marker}",
    "neuron": "neuron:\n  _target_: os.system\n  command: touch marker",
    "own function": "loss:\n  _target_: snnexp.record.files.write_atomically\n  path: marker\n  content: x",
    "own command line": "loss:\n  _target_: snnexp.cli.main\n  argv: [train]",
    "borrowed": "loss:\n  _target_: snnexp.record.files.os.system\n  command: touch marker",
    "logger": "logger:\n  root: {_target_: os.system, command: touch marker}",
    "published": "published:\n  x: {_target_: os.system, command: touch marker}",
    "list": "network:\n  hidden: [{_target_: os.system, command: touch marker}]",
    "yaml tag": "name: !!python/object/apply:os.system [touch marker]",
    "path tag": "name: !!python/object/apply:pathlib.Path [marker]",
    "resolver": "name: ${oc.decode:x}",
}


def folder(tmp_path: Path, text: str) -> Path:
    (tmp_path / "elsewhere" / "experiment").mkdir(parents=True)
    (tmp_path / "elsewhere" / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    return tmp_path / "elsewhere"


def tree(path: Path) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


@pytest.mark.parametrize("text", MALICIOUS.values(), ids=MALICIOUS)
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
def test_malicious_files_have_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sweep: list[str]
) -> None:
    conf = folder(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    before, environment = tree(tmp_path), dict(os.environ)
    with pytest.raises(ConfigError) as caught:
        launch.train(["--config-dir", str(conf), "experiment=evil", *sweep])
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) <= 190
    assert str(caught.value).isprintable()
    assert tree(tmp_path) == before
    assert {**os.environ} == environment


@pytest.mark.parametrize("kind", ["callback", "job_logging", "own function"])
def test_malicious_files_have_no_effect_on_the_command_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    conf = folder(tmp_path, MALICIOUS[kind])
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config-dir", str(conf), "experiment=evil"]) == 2
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1
    assert len(err.rstrip("\n")) <= 200
    assert out == ""
    assert tree(tmp_path) == before


def test_a_replaced_choice_is_not_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A swept choice replaces that of a recipe; the malicious choice is refused if any point contains it."""
    conf = folder(tmp_path, "defaults:\n  - override /neuron: evil")
    (conf / "neuron").mkdir()
    (conf / "neuron" / "evil.yaml").write_text(f"# @package _global_\n{MALICIOUS['callback']}\n")
    monkeypatch.chdir(tmp_path)
    found, _ = prepare_sweep(["experiment=evil", "neuron=leaky,rleaky"], [conf])
    assert isinstance(found, list)
    assert [cfg["neuron"]["_target_"] for _, cfg in found] == ["snnexp.neurons.Leaky", "snnexp.neurons.RLeaky"]
    for words in (["neuron=leaky,evil"], ["neuron=evil,leaky"], ["seed=1,2"]):
        with pytest.raises(ConfigError, match=r"^hydra\.callbacks: "):
            launch.train(["--config-dir", str(conf), "-m", "experiment=evil", *words])
    assert tree(tmp_path) == ["elsewhere", *(f"elsewhere/{name}" for name in tree(conf))]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("hydra:\n  sweeper:\n    params: {seed: '1,-1'}", "seed"),
        ("hydra:\n  sweeper: {max_batch_size: 0}", "hydra.sweeper"),
    ],
)
def test_sweep_params_of_a_file_are_checked_like_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^{key}"):
        launch.train(["--config-dir", str(folder(tmp_path, text)), "-m", "experiment=evil"])
    assert tree(tmp_path) == ["elsewhere", "elsewhere/experiment", "elsewhere/experiment/evil.yaml"]


@pytest.mark.parametrize(
    "override",
    [
        "hydra.searchpath=[pkg://antigravity]",
        "hydra.run.dir=marker",
        "hydra.sweep.dir=marker",
        "hydra.mode=MULTIRUN",
        "hydra/job_logging=default",
        "+hydra.callbacks.x._target_=os.system",
        "+hydra.job.env_set.SNNEXP_ALLOW_TARGETS=os",
        "hydra.launcher._target_=os.system",
        "+hydra.launcher._args_=[1]",
        "hydra/launcher=null",
    ],
)
def test_settings_of_hydra_cannot_be_changed(override: str) -> None:
    with pytest.raises(ConfigError, match=r"^hydra"):
        compose([override])


@pytest.mark.parametrize("allowed", ["", "elsewhere"])
@pytest.mark.parametrize("words", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
@pytest.mark.parametrize(("name", "kinds"), [("launcher", "processes, slurm, stacked"), ("sweeper", "grid, optuna")])
def test_launchers_and_sweepers_of_other_packages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, words: list[str], name: str, kinds: str
) -> None:
    module = ModuleType("elsewhere")
    module.Starter = type("Starter", (), {"__init__": pytest.fail})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", allowed)
    monkeypatch.chdir(tmp_path)
    for target in ("elsewhere.Starter", "os.system", "hydra_plugins.snnexp_sweeps.Other", "5"):
        with pytest.raises(ConfigError) as caught:
            launch.train([*words, f"hydra.{name}._target_={target}"])
        assert caught.value.args == (f"hydra.{name}: must be one of {kinds}",)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("defaults: [stacked]\nmembers: 3\n", "stacked"),
        # as earlier versions shipped it
        (
            "_target_: hydra_plugins.snnexp_sweeps.Processes\nworkers: 2\nthreads: null\ngpus: null\n"
            "timeout_s: null\nmemory_gb: null\n",
            "processes",
        ),
    ],
)
def test_a_users_launcher_file_configures_a_shipped_launcher(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "hydra" / "launcher" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    _, launcher = prepare_sweep(["seed=1,2", "hydra/launcher=mine", "hydra.launcher.threads=5"], [tmp_path])
    assert (launcher["kind"], launcher["threads"]) == (kind, 5)
    assert (launcher.get("members"), launcher["workers"]) == ((3, 1) if kind == "stacked" else (None, 2))
    driver.check(launcher)


class TestTargets:
    @pytest.mark.parametrize(
        "name",
        [
            *(
                "torch.load",
                "os.system",
                "builtins.eval",
                "subprocess.Popen",
                "snnexp_other.run",
                "snnexpos.system",
                "",
            ),
            *(
                "snnexp.record.files.write_atomically",
                "snnexp.cli.main",
                "snnexp.record.files.os.system",
                "snnexp",
                "snnexp.neurons",
            ),
            *(
                "snnexp.losses.CEMembrane",
                "snnexp.initializers.Uniform",
                "snnexp.neurons.Neuron",
                "snnexp.neurons.Leakyy",
            ),
        ],
    )
    def test_targets_of_other_places_are_refused(self, name: str) -> None:
        for override, key in [(f"neuron._target_='{name}'", "neuron"), (f"loss={{_target_: '{name}x'}}", "loss")]:
            with pytest.raises(ConfigError, match=rf"^{key}\._target_: "):
                compose([override])
        if name != "snnexp.initializers.Uniform":
            with pytest.raises(ConfigError, match=r"^neuron\.beta\._target_: "):
                compose([f"neuron.beta={{_target_: '{name}'}}"])

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "snnexp.config.compose.os.system",
                "snnexp.config.compose:os.system",
                "snnexp.config.compose.hydra_compose",
                "snnexp.record.run.Path.cwd",
            ),
            *(
                "snnexp.network.torch.load",
                "snnexp.data.mnist.np.load",
                "snnexp.nowhere.Thing",
                "snnexp.config.compose.GROUPS",
            ),
        ],
    )
    def test_targets_are_checked_again_when_they_are_built(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"^loss\._target_: "):
            config.instantiate({"_target_": name}, "loss")

    @pytest.mark.parametrize(
        ("override", "key"),
        [
            ("neuron._target_=5", "neuron._target_"),
            ("neuron._target_=null", "neuron._target_"),
            ("neuron._target_=[os.system]", "neuron._target_"),
            ("~neuron._target_", "neuron._target_"),
            ("+neuron._args_=[1]", "neuron._args_"),
            ("+neuron._partial_=true", "neuron._partial_"),
            ("+neuron._convert_=all", "neuron._convert_"),
            ("+neuron._recursive_=false", "neuron._recursive_"),
            ("+logger._target_=os.system", "logger._target_"),
            ("+published._target_=os.system", "published._target_"),
            ("logger.root={_target_: os.system}", "logger.root._target_"),
            (
                "encoder=constant_current_lif encoder.v_th={_target_: snnexp.initializers.Uniform}",
                "encoder.v_th._target_",
            ),
            ("network.hidden=[{_target_: snnexp.initializers.Uniform}]", "network.hidden.0._target_"),
            ("neuron.reset={_target_: snnexp.initializers.Uniform}", "neuron.reset._target_"),
            ("neuron.beta={_target_: snnexp.surrogates.ATan}", "neuron.beta._target_"),
        ],
    )
    def test_targets_are_refused_where_no_part_is_allowed(self, override: str, key: str) -> None:
        with pytest.raises(ConfigError) as caught:
            compose(override.split(" ", 1) if override.startswith("encoder=") else [override])
        assert str(caught.value).startswith(f"{key}: ")

    def test_an_empty_node_is_refused(self) -> None:
        cfg, _ = compose_unchecked([])
        cfg.data = {}
        with pytest.raises(ConfigError, match=r"^data\._target_: "):
            check(cfg)

    @pytest.mark.slow
    def test_can_be_allowed_by_the_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "fractions, torch,,os.,.,-,snnexp")
        beta = config.instantiate({"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}, "loss")
        assert beta == 0.5
        assert compose(["neuron._target_=torch.nn.ReLU"]).neuron._target_ == "torch.nn.ReLU"
        for name in ("os.system", "fractions_.x", "fractionsx", "snnexp.cli.main", "os..system", "-.x", ".os.system"):
            with pytest.raises(ConfigError, match=r"^neuron\._target_: "):
                compose([f"neuron._target_='{name}'"])
        monkeypatch.delenv("SNNEXP_ALLOW_TARGETS")
        with pytest.raises(ConfigError, match="SNNEXP_ALLOW_TARGETS"):
            compose(["neuron._target_=torch.nn.ReLU"])

    def test_an_allowed_package_does_not_allow_its_imports(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("elsewhere")
        called: list[object] = []
        monkeypatch.setattr(os, "system", called.append)
        module.os, module.system = os, os.system  # type: ignore[attr-defined]
        module.partial = functools.partial(called.append, "x")  # type: ignore[attr-defined]
        # as functools.wraps leaves it
        module.partial.__module__ = "elsewhere"
        module.mine = lambda **_: "mine"  # type: ignore[attr-defined]
        module.mine.__module__ = "elsewhere"
        module.write = importlib.import_module("snnexp.record.files").write_atomically  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "elsewhere", module)
        monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "elsewhere")
        assert config.instantiate({"_target_": "elsewhere.mine"}, "loss") == "mine"
        for name in ("system", "os.system", "partial", "write", "os", "nothing"):
            with pytest.raises(ConfigError, match=r"^loss\._target_: "):
                config.instantiate({"_target_": f"elsewhere.{name}"}, "loss")
        assert called == []


BILLION_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijklmnopqrst")
)
BOMBS = {
    "aliases": (BILLION_LAUGHS, "alias"),
    # whether the parser or this package refuses first depends on the version of PyYAML
    "flow nesting": ("name: " + "[" * 100_000, r"line \d+ "),
    "block nesting": ("- " * 50_000, r"line \d+ "),
    "size": ("name: " + "x" * 2**20, "larger than"),
    "values": ("published: [" + "1," * 200_000 + "]", "more than"),
    "no YAML": ("name: [", "is not YAML: "),
    "control characters": ("name: \x00", "is not YAML"),
}


@pytest.mark.parametrize(("text", "words"), BOMBS.values(), ids=BOMBS)
def test_yaml_bombs_are_refused_quickly(tmp_path: Path, text: str, words: str) -> None:
    conf = folder(tmp_path, text)
    (tmp_path / "config.yaml").write_text(text)
    for read in (lambda: compose_unchecked(["experiment=evil"], [conf]), lambda: load(tmp_path / "config.yaml")):
        with pytest.raises(ConfigError) as caught:
            read()
        assert re.search(words, str(caught.value))
        assert len(str(caught.value)) <= 190


@pytest.mark.parametrize("text", ["0:30", "0:30:59", "00:60"])
def test_a_time_is_not_read_as_a_base_60_number(tmp_path: Path, text: str) -> None:
    compose_unchecked(["experiment=evil"], [folder(tmp_path, f"published: {{at: {text}}}")])


def chain(length: int, value: str) -> str:
    return "published:\n" + "".join(
        f"  a{index}: {value.format(f'${{published.a{index + 1}}}')}\n" for index in range(length)
    )


INTERPOLATIONS = {
    "doubling": chain(60, "'{0}{0}'") + "  a60: 1",
    "doubling lists": chain(60, "['{0}', '{0}']") + "  a60: 1",
    "doubling relatives": "published:\n" + "".join(f"  a{i}: '${{.a{i + 1}}}${{.a{i + 1}}}'\n" for i in range(60)),
    "doubling in a function": chain(60, "'${{oc.env:SNNEXP_NO,{0}{0}}}'") + "  a60: 1",
    "built names": "published:\n  a: b\n  c: ${published.${published.a}}",
    "built text": "published:\n  a: ${oc.create:'{b: 1}'}",
    "itself": "name: ${name}",
    "each other": "name: ${logger.root}\nlogger:\n  root: ${name}",
    "its parent": "published:\n  a: ${published}",
    "its child": "neuron: ${neuron.beta}",
    "long chain": chain(400, "'{0}'") + "  a400: 1",
    "long text": f"name: {'x' * 60_000}\npublished:\n  a: " + "${name}" * 20,
    "defaults": "defaults:\n  - evil",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", INTERPOLATIONS.values(), ids=INTERPOLATIONS)
def test_unbounded_interpolations_are_refused_quickly(tmp_path: Path, text: str) -> None:
    conf = folder(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        compose_unchecked(["experiment=evil"], [conf])
    assert len(str(caught.value)) <= 190
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["${" + " " * 2**20, "${oc.env:SNNEXP_A," * 2**16, "${a " * 2**18])
def test_long_strings_are_scanned_in_linear_time(text: str) -> None:
    with suppress(ConfigError):
        files.require_own_resolvers(text, "name")


@pytest.mark.parametrize("text", ["${oc.env:SNNEXP_${name}}", "${ oc.env :HOME}", "${oc.env:SNNEXP_A.B}", "${ x:}"])
def test_foreign_resolvers_are_refused_in_any_notation(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^name: "):
        files.require_own_resolvers(text, "name")


def test_a_defaults_list_calls_no_resolver(tmp_path: Path) -> None:
    conf = folder(tmp_path, "defaults:\n  - override /data: ${${debug}:HOME}")
    (conf / "debug" / "oc.env.yaml").parent.mkdir()
    (conf / "debug" / "oc.env.yaml").write_text("# @package _global_\nseed: 1\n")
    with pytest.raises(ConfigError) as caught:
        compose_unchecked(["experiment=evil", "debug=oc.env"], [conf])
    assert os.environ["HOME"] not in str(caught.value)
    assert "line 3" in str(caught.value)


def test_doubling_defaults_lists_are_refused_quickly(tmp_path: Path) -> None:
    conf = folder(tmp_path, "defaults:\n  - e1@a\n  - e1@b")
    for index in range(1, 30):
        text = f"defaults:\n  - e{index + 1}@a\n  - e{index + 1}@b\n"
        (conf / "experiment" / f"e{index}.yaml").write_text(text)
    (conf / "experiment" / "e30.yaml").write_text("x: 1")
    with pytest.raises(ConfigError, match=r"^defaults: "):
        compose_unchecked(["experiment=evil"], [conf])


def test_ordinary_interpolations_are_accepted(tmp_path: Path) -> None:
    text = "name: run_${seed}_${neuron.reset}\nreadout:\n  beta: ${neuron.beta}"
    text += "\ndata:\n  root: ${oc.env:SNNEXP_NO_SUCH,/tmp/${name}}"
    conf = folder(tmp_path, f"defaults:\n  - mnist_leaky\n  - override /readout: leaky\n{text}")
    cfg = check(compose_unchecked(["experiment=evil", "seed=4"], [conf])[0])
    assert (cfg.name, cfg.data.root, cfg.readout.beta) == ("run_4_subtract", "/tmp/run_4_subtract", 0.95)
    assert check(compose_unchecked(["neuron=rleaky", "neuron.beta=0.5"])[0]).readout.beta == 0.5


class TestLoad:
    def test_loads_a_saved_config(self, tmp_path: Path) -> None:
        cfg = compose(["experiment=regression_sqrt", "optimizer.lr=1e-5"])
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        assert load(tmp_path / "config.yaml") == cfg

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"seed: 0": "seed: ${oc.env:HOME}"}, "${oc.env:HOME} is not allowed"),
            ({"seed: 0": 'seed: "\\x24{num_steps}"'}, "resolved"),
            ({"seed: 0": "${x}: 1\nseed: 0"}, "resolved"),
            ({"seed: 0": "seed: -1"}, "seed: got -1"),
            ({"seed: 0": "seed: 0\nseed: 1"}, "is not YAML: found duplicate key"),
            ({"seed: 0": "seed: ???"}, "seed"),
            ({"seed: 0": "1: 2\nseed: 0"}, "1: unknown key"),
            ({"seed: 0": "? [a]\n: 1\nseed: 0"}, ""),
            ({"snnexp.losses.CEMembrane": "os.system"}, "loss._target_: os.system is not from snnexp"),
            ({"seed: 0": "seed: 0\nhydra: {}"}, "hydra: unknown key"),
        ],
    )
    def test_refuses_modified_configs(self, tmp_path: Path, change: dict[str, str], words: str) -> None:
        text = OmegaConf.to_yaml(compose([]))
        for old, new in change.items():
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "config.yaml")
        assert words in str(caught.value)
        assert len(str(caught.value)) <= 190

    @pytest.mark.parametrize("text", ["", "- 1", "word", "null", "5"])
    def test_refuses_other_values_than_mappings(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError):
            load(tmp_path / "config.yaml")

    def test_refuses_other_files_than_utf8_text(self, tmp_path: Path) -> None:
        (tmp_path / "folder.yaml").mkdir()
        (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
        os.mkfifo(tmp_path / "pipe.yaml")
        for name in ("none", "folder", "latin", "pipe"):
            with pytest.raises(ConfigError, match=rf"{name}\.yaml: "):
                load(tmp_path / f"{name}.yaml")


class TestSweeps:
    @pytest.mark.parametrize(
        ("overrides", "key"),
        [
            (["neuron.beta=0.5,0.6,1.5"], "neuron.beta"),
            (["seed=0,1", "loss=ce_membrane,mse_count", "readout=leaky_integrator"], "loss"),
            (["seed=range(-1,2)"], "seed"),
            (["encoder=glob(*)"], "encoder"),
            (["seed=range(0,1000000000)"], "-m"),
            (["seed=interval(0,1)"], "seed"),
            (["hydra.run.dir=a,b"], ""),
            (["seed=1,"], "seed=1,"),
        ],
    )
    def test_a_bad_point_is_refused_before_any_directory_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], key: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError) as caught:
            launch.train(["-m", *overrides])
        assert str(caught.value).startswith(key)
        assert len(str(caught.value)) <= 190
        assert tree(tmp_path) == []


@pytest.mark.parametrize("flag", ["-cp", "-cn", "--config-path", "--config-name"])
def test_flags_for_other_primary_configs_are_refused(flag: str) -> None:
    for arguments in ([flag, "x"], [f"{flag}=x"]):
        with pytest.raises(ConfigError, match=r"SNNEXP_CONF .* --config-dir"):
            launch.train(arguments)


def test_a_folder_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "neuron").mkdir()
    with pytest.raises(ConfigError, match=r"^--config-dir: given twice"):
        launch.train(["--config-dir", str(tmp_path), f"--config-dir={tmp_path}"])


def test_shipped_settings_of_hydra_pass_the_checks() -> None:
    _, node = compose_unchecked([])
    security.require_shipped_hydra(node)
    assert {key: node[key] for key in ("run", "sweep", "callbacks")} == {
        key: security.HYDRA[key] for key in ("run", "sweep", "callbacks")
    }
