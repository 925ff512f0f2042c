"""Keys of a recipe that a part chosen on the command line does not accept are left out; overrides never are."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from snnexp import cli, config, text
from snnexp.cli import points, train
from snnexp.errors import ConfigError, ConfigErrors
from snnexp.experiment import compose

pytestmark = pytest.mark.slow

PACKAGE = '''
from snnexp.network import MLP

class Net:
    """A network that takes neither a list of hidden layers nor what else recipes set."""

    def __init__(self, inputs, outputs, neuron, readout, width: int = 5, hidden: int = 3) -> None: ...

class Thin(Net):
    def __init__(self, inputs, outputs, neuron, readout, width: int = 5) -> None: ...

class Small(MLP):
    def __init__(self, inputs, outputs, num_steps, neuron, readout, width: int = 4) -> None:
        super().__init__(inputs, outputs, neuron, readout, num_steps, hidden=[width])

class Any(Net):
    def __init__(self, **kwargs) -> None:
        self.kwargs = kwargs
'''
FILES = {
    "network/thin": "_target_: left_out_pkg.Thin\nwidth: 7\n",
    "network/derived": "defaults: [thin]\n_target_: left_out_pkg.Net\n",
    "network/sub/thin": "_target_: left_out_pkg.Thin\n",
    "network/small": "_target_: left_out_pkg.Small\nnum_steps: ${num_steps}\nwidth: 4\n",
    "network/count": "_target_: left_out_pkg.Net\nhidden: 64\n",
    "network/any": "_target_: left_out_pkg.Any\n",
    "network/unread": "_target_: left_out_pkg.Missing\n",
    "network/broken": "_target_: left_out_pkg.Thin\nwidht: 7\n",
    "network/mlp": "_target_: left_out_pkg.Thin\n",
    "experiment/odd": "# @package _global_\nnetwork: {1: 2, width: '???'}\n",
    "experiment/low": "# @package _global_\nneuron: {beta: {low: 0.25}}\n",
    # a user's recipe with every kind of key that is left out
    "experiment/own": (
        "# @package _global_\ndefaults: [mnist_leaky, override /readout: leaky]\n"
        "network: {_target_: left_out_pkg.Net, hidden: 2}\n"
        "neuron:\n  beta: {_target_: snnexp.initializers.Normal, mean: 0.5, std: 0.1}\n"
        "readout: {beta: 0.5}\nlogger: {root: elsewhere}\n"
    ),
}
NORMAL = {"_target_": "snnexp.initializers.Normal", "mean": 0.5, "std": 0.1}
HIDDEN = "experiment=mnist_leaky: network.hidden=[1000] is left out, network={} does not accept it"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "left_out_pkg.py").write_text(PACKAGE)
    for name, content in FILES.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "left_out_pkg")
    return tmp_path / "conf"


def composed(*overrides: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The checked config, and the messages."""
    cfg, _ = config.compose_unchecked(overrides, [folder])
    return config.plain(config.check(cfg)), config.left_out([cfg], overrides)


@pytest.mark.parametrize(
    ("choice", "left", "network"),
    [
        ("thin", True, {"_target_": "left_out_pkg.Thin", "width": 7}),
        # overrides the shipped file of the same name
        ("mlp", True, {"_target_": "left_out_pkg.Thin"}),
        ("sub/thin", True, {"_target_": "left_out_pkg.Thin"}),
        # derived from another file of the group
        ("derived", True, {"_target_": "left_out_pkg.Net", "width": 7}),
        # has the key, but does not accept the value
        ("count", True, {"_target_": "left_out_pkg.Net", "hidden": 64}),
        ("any", False, {"_target_": "left_out_pkg.Any", "hidden": [1000]}),
        ("unread", False, {"_target_": "left_out_pkg.Missing", "hidden": [1000]}),
    ],
)
def test_a_key_of_the_recipe_is_left_out(choice: str, left: bool, network: dict[str, Any], folder: Path) -> None:
    found, lines = composed("experiment=mnist_leaky", f"network={choice}", folder=folder)
    assert found["network"] == network
    assert lines == ([HIDDEN.format(choice)] if left else [])
    assert found["num_steps"] == 25, "the rest of the recipe stays"
    assert found["optimizer"]["lr"] == 5e-4


def test_without_a_choice_on_the_command_line_nothing_is_left_out(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^network.hidden: unknown key, Thin has no such argument"):
        composed("experiment=mnist_leaky", folder=folder)


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (["network=thin", "network.hidden=[5]"], "^network.hidden: unknown key"),
        (["network=thin", "+network.hidden=[5]"], "^network.hidden: unknown key, Thin has no such argument"),
        (["network=count", "network.hidden=[5]"], r"^network.hidden: got \[5\]"),
        # keys in the file of the choice are not left out either
        (["network=broken"], "^network.widht: unknown key, Thin has no such argument, did you mean width"),
    ],
)
def test_overrides_are_never_left_out(overrides: list[str], refusal: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=refusal):
        composed("experiment=mnist_leaky", *overrides, folder=folder)


def test_an_overridden_key_is_not_reported(folder: Path) -> None:
    found, lines = composed("experiment=mnist_leaky", "network=count", "network.hidden=9", folder=folder)
    assert (found["network"]["hidden"], lines) == (9, [])


def test_parts_objects_and_references_of_a_recipe_are_left_out(folder: Path) -> None:
    overrides = ["experiment=own", "network=conv", "neuron=leaky_random", "readout=same", "logger=jsonl"]
    found, lines = composed(*overrides, folder=folder)
    shipped = config.plain(config.compose([*overrides[1:], "experiment=mnist_rleaky_conv"]))
    assert found["network"] == {**shipped["network"], "num_steps": 25, "hidden": [1000]}
    assert found["neuron"] == found["readout"] == shipped["neuron"]
    assert found["logger"]["root"] == "elsewhere", "an accepted key is kept"
    assert lines == [
        "experiment=own: network._target_=left_out_pkg.Net, network.hidden=2 are left out, "
        "network=conv does not accept them",
        f"experiment=own: neuron.beta={text.format_value(NORMAL)} is left out, neuron=leaky_random does not accept it",
        "experiment=own: readout.beta=0.5 is left out, readout=same does not accept it",
        "decoder: sum_membrane, the default for the command-line overrides, replaces spike_count of the recipe",
    ]


def test_the_target_of_a_recipe_is_left_out_for_a_part_that_accepts_any_key(folder: Path) -> None:
    found, lines = composed("experiment=own", "network=any", folder=folder)
    assert found["network"] == {"_target_": "left_out_pkg.Any", "hidden": 2}
    assert lines == ["experiment=own: network._target_=left_out_pkg.Net is left out, network=any does not accept it"]


def test_a_target_on_the_command_line_is_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=mnist_leaky", "network=module", "network._target_=left_out_pkg.Thin"]
    line = HIDDEN.format("").replace("network= ", f"{overrides[-1]} ")
    found, lines = composed(*overrides, folder=folder)
    assert (found["network"], lines) == ({"_target_": "left_out_pkg.Thin"}, [line])
    swept, _ = points.prepare_sweep([*overrides, "+network.width=1,2"], [folder])
    assert isinstance(swept, list)
    assert [cfg["network"] for _, cfg in swept] == [
        {"_target_": "left_out_pkg.Thin", "width": width} for width in (1, 2)
    ]
    assert capsys.readouterr().err == f"snnexp: {line}\n"


def test_arguments_of_an_object_are_kept_if_the_choice_has_the_object(folder: Path) -> None:
    found, lines = composed("experiment=low", "neuron=leaky_random", folder=folder)
    assert (found["neuron"]["beta"]["low"], found["neuron"]["beta"]["high"], lines) == (0.25, 1.0, [])
    found, lines = composed("experiment=low", "neuron=leaky", folder=folder)
    assert found["neuron"]["beta"] == 0.95
    assert lines == ["experiment=low: neuron.beta={'low': 0.25} is left out, neuron=leaky does not accept it"]


def test_integer_keys_and_missing_values(folder: Path) -> None:
    cfg, _ = config.compose_unchecked(overrides := ["experiment=odd", "network=sub/thin"], [folder])
    line = "experiment=odd: network.1=2 is left out, network=sub/thin does not accept it"
    assert config.left_out([cfg], overrides) == [line]
    with pytest.raises(ConfigError, match=r"^network.width: "):
        config.check(cfg)
    found, _ = composed(*overrides, "network.width=5", folder=folder)
    assert found["network"]["width"] == 5


def test_an_accepted_object_is_kept(folder: Path) -> None:
    found, lines = composed("experiment=own", "neuron=leaky", folder=folder)
    assert (found["neuron"]["beta"]["mean"], lines) == (0.5, [])


def test_points_of_a_sweep_report_each_choice_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = points.prepare_sweep(["experiment=mnist_leaky", "network=mlp,conv,thin,count", "seed=0,1"], [folder])
    assert isinstance(found, list)
    assert [cfg["network"].get("hidden") for _, cfg in found] == [None, None, [1000], [1000], None, None, 64, 64]
    assert [overrides[1] for overrides, _ in found[::2]] == [
        f"network={name}" for name in ("mlp", "conv", "thin", "count")
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"snnexp: {HIDDEN.format(choice)}" for choice in ("mlp", "thin", "count")]


def test_sweep_params_of_a_file_are_left_out_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = points.prepare_sweep(["sweep=learned_or_fixed", "neuron=leaky"])
    assert isinstance(found, list)
    assert [overrides for overrides, _ in found] == [
        [f"seed={seed}", "sweep=learned_or_fixed", "neuron=leaky"] for seed in range(3)
    ]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("snnexp: sweep=learned_or_fixed: neuron.learn=")
    assert line.endswith(" is left out, neuron=leaky does not accept it")


def test_compose_in_python_prints_the_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = shutil.copytree(config.conf_dir(), folder.parent / "whole")
    shutil.copy(folder / "network" / "thin.yaml", conf / "network")
    monkeypatch.setenv("SNNEXP_CONF", str(conf))
    cfg = compose(["experiment=mnist_leaky", "network=thin"])
    assert capsys.readouterr().err == f"snnexp: {HIDDEN.format('thin')}\n"
    assert cfg["network"] == {"_target_": "left_out_pkg.Thin", "width": 7}
    assert config.overrides_of(cfg) == ["experiment=mnist_leaky", "network=thin"]


def test_cfg_job_prints_the_config_without_the_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-dir", str(folder), "experiment=mnist_leaky", "network=thin"]
    assert cli.main(["train", *words, "--cfg", "job"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["network"] == {"_target_": "left_out_pkg.Thin", "width": 7}
    assert err == f"snnexp: {HIDDEN.format('thin')}\n"


def test_a_run_saves_its_config_and_can_be_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    overrides = ["experiment=regression_linear", "network=small", "debug=batch", "logger=jsonl", "trainer=cpu"]
    assert cli.main(["train", "--config-dir", str(folder), *overrides]) == 0
    line = "experiment=regression_linear: network.hidden=[128, 128] is left out, network=small does not accept it"
    assert capsys.readouterr().err.splitlines() == [f"snnexp: {line}"]
    (run,) = folder.parent.glob("outputs/*/*/run.json")
    saved = yaml.safe_load((run.parent / "config.yaml").read_text())
    assert saved["network"] == {"_target_": "left_out_pkg.Small", "num_steps": 50, "width": 4}
    assert yaml.safe_load((run.parent / "overrides.yaml").read_text()) == overrides
    folders, repeated, changed = train.config_of_run(run.parent, [], ["seed=1"])
    assert (folders, repeated, changed) == ([folder], [*overrides, "seed=1"], None), "it composes as before"
    assert cli.main(["eval", str(run.parent), "--json"]) == 0


def test_shipped_recipes_work_with_all_shipped_choices() -> None:
    for recipe in config.choices("experiment"):
        written = yaml.safe_load((config.conf_dir() / "experiment" / f"{recipe}.yaml").read_text())
        choices = {group: [*config.choices(group)] for group in config.NODES if group in written}
        for index in range(max(map(len, choices.values()), default=0)):
            # several groups at once; incompatible parts are not tested here
            overrides = [f"{group}={names[index % len(names)]}" for group, names in choices.items()]
            cfg, _ = config.compose_unchecked([f"experiment={recipe}", *overrides])
            errors = ConfigErrors()
            with errors.collect():
                config.check(cfg)
            assert not [message for message in errors.messages.values() if "unknown key" in message], overrides
