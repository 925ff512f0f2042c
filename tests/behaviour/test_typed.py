"""What is typed, and what is written into the files of configs."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from shell import OUTSIDE, Shell, record, recorded

BLOBS = ("train", *OUTSIDE, "data=blobs", "network.hidden=[4]", "num_steps=3", "trainer=cpu", "logger=jsonl")


def recipe(shell: Shell, text: str, name: str = "mine") -> tuple[str, ...]:
    """Write a recipe of a user's; returns what chooses it."""
    folder = shell.folder / "conf" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return ("--config-dir", str(folder.parent), f"experiment={name}")


def test_a_byte_order_mark_changes_nothing(snnexp: Shell) -> None:
    chosen = recipe(snnexp, "\ufeff# @package _global_\n# Mine\nnum_steps: 7\n")
    ended = snnexp("train", *chosen, "--cfg", "job")
    assert ended.code == 0
    assert "num_steps: 7" in ended.out


def test_a_typed_part_replaces_the_one_before(snnexp: Shell) -> None:
    typed = "neuron.beta={_target_: snnexp.initializers.Normal, mean: 0.5, std: 0.1}"
    ended = snnexp("train", "experiment=regression_sqrt", typed, "--cfg", "job")
    assert ended.code == 0
    beta = OmegaConf.create("\n".join(ended.out))["neuron"]["beta"]
    assert beta == {"_target_": "snnexp.initializers.Normal", "mean": 0.5, "std": 0.1}


def test_all_refusals_are_told_at_once(snnexp: Shell) -> None:
    ended = snnexp("train", "a=1", "b=1", "neuron.c=1", "neuron.beta=2", "num_steps=0")
    assert ended.code == 2
    keys = [line.removeprefix("snnexp: ").partition(":")[0] for line in ended.err]
    assert sorted(keys) == ["a", "b", "neuron.beta", "neuron.c", "num_steps"]


@pytest.mark.slow
def test_null_is_a_value_of_a_sweep(snnexp: Shell) -> None:
    chosen = recipe(
        snnexp,
        "# @package _global_\n# Mine\ndefaults:\n  - regression_linear\n"
        "hydra:\n  sweeper:\n    params:\n      data.sample_seed: [null, 1]\n      trainer.limit_batches: [null, 2]\n",
        "nulls",
    )
    ended = snnexp("train", "-m", *chosen, "trainer.max_epochs=1", "logger=jsonl", "trainer=cpu", "network.hidden=[2]")
    assert ended.code == 0
    assert len(snnexp.points()) == 4


@pytest.mark.slow
def test_a_run_can_be_repeated_with_changes(snnexp: Shell) -> None:
    assert snnexp(*BLOBS).code == 0
    (first,) = snnexp.runs()
    assert snnexp("train", "--from", str(first), "seed=5").code == 0
    (second,) = set(snnexp.runs()) - {first}
    assert record(second)["seed"] == 5
    assert (second / "config.yaml").read_text().replace("seed: 5", "seed: 0") == (first / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["-m", "hydra/launcher=stacked"]])
def test_a_run_with_choices_of_ones_own_is_repeated_with_them(snnexp: Shell, sweep: list[str]) -> None:
    assert snnexp(*BLOBS, "trainer.max_epochs=1", *sweep).code == 0
    (first,) = snnexp.runs()
    assert snnexp("train", "--from", first.name[-4:], "num_steps=2", "surrogate=triangular").code == 0
    (second,) = set(snnexp.runs()) - {first}
    before, after = (OmegaConf.load(run / "config.yaml") for run in (first, second))
    assert after.data._target_ == before.data._target_
    assert after.num_steps == 2
    # a choice needs what the run was composed of
    assert after.neuron.surrogate._target_ == "snnexp.surrogates.Triangular"


@pytest.mark.slow
def test_a_key_that_every_point_has_can_be_typed(snnexp: Shell) -> None:
    recipes = "experiment=mnist_rleaky_count,mnist_rleaky_membrane"
    ended = snnexp("train", "-m", recipes, "neuron.feedback=one_to_one", "logger=jsonl", SNNEXP_DATA_DIR="nowhere")
    # the points themselves have no data
    assert ended.code == 7
    assert [point["exit_code"] for point in snnexp.points()] == [4, 4]


@pytest.mark.slow
def test_a_launcher_that_is_not_used_is_told(snnexp: Shell) -> None:
    chosen = recipe(
        snnexp,
        "# @package _global_\n# Mine\ndefaults:\n  - regression_linear\n  - override /hydra/launcher: stacked\n",
        "together",
    )[:2]
    words = ("trainer.max_epochs=1", "logger=jsonl", "trainer=cpu", "network.hidden=[2]", "hydra.launcher.workers=1")
    ended = snnexp("train", "-m", *chosen, "experiment=together,regression_linear", *words)
    assert ended.code == 0
    assert "launcher" in "\n".join(ended.out + ended.err)


@pytest.mark.slow
def test_what_is_typed_to_resume_a_sweep_reaches_members_that_train_alone(snnexp: Shell) -> None:
    # so wide that a stack of them would not fit the cache
    words = ("experiment=regression_sqrt", "network.hidden=[40000]", "num_steps=2", "trainer.max_epochs=1", "seed=0,1")
    launcher = ("hydra/launcher=stacked", "hydra.launcher.workers=1")
    assert snnexp("train", "-m", *words, "trainer=cpu", "logger=jsonl", *launcher).code == 0
    (sweep,) = snnexp.folder.glob("outputs/sweeps/*/*")
    for file in (sweep / "sweep.json", *(run / "run.json" for run in snnexp.runs())):
        file.write_text(file.read_text().replace('"finished"', '"interrupted"'))
    assert snnexp("resume", str(sweep), "trainer.log_every_n_steps=7").code == 0
    for run in snnexp.runs():
        assert record(run)["resumed_with"] == ["trainer.log_every_n_steps=7"]


@pytest.mark.slow
def test_a_sweep_goes_on_after_its_data_have_moved(snnexp: Shell) -> None:
    words = ("experiment=mnist_leaky", "logger=jsonl", "seed=0,1", "trainer.limit_batches=1", "network.hidden=[2]")
    words += ("hydra.launcher.workers=1",)
    assert snnexp("train", "-m", *words, SNNEXP_DATA_DIR="nowhere").code == 7
    (sweep,) = snnexp.folder.glob("outputs/sweeps/*/*")
    ended = snnexp("resume", str(sweep), "data.root=elsewhere")
    assert ended.code == 7
    ledger = json.loads((sweep / "sweep.json").read_text())
    assert all("elsewhere" in point["reason"] for point in ledger["points"])


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        # a pair beside values
        (
            "train readout=leaky_integrator loss=mse_count neuron.beta=2 surrogate.alpha=-1",
            ["loss", "neuron.beta", "surrogate.alpha"],
        ),
        # keys of a choice that there is not are no mistakes
        (
            "train neuron=leeky loss=foo neuron.tau_mem_inv=3 num_steps=0 zz=1",
            ["loss=foo", "neuron=leeky", "num_steps", "zz"],
        ),
        ("train surrogate=atn neuron.betta=0.5 surrogate.alfa=1", ["neuron.betta", "surrogate=atn"]),
        ("train experiment=foo neuron.betta=0.5", ["experiment=foo"]),
        ("train -m neuron.beta=2 surrogate=atan,atn", ["neuron.beta", "surrogate=atn"]),
        ("train network.hidden=[ neuron.bta=1 seed=-1", ["network.hidden=[", "neuron.bta", "seed"]),
        ("train --from a --from b", ["--from"]),
        ("train --frobnicate --nicate", ["--frobnicate", "--nicate"]),
        ("train -m seed=0,-1 neuron.beta=0.5,2", ["neuron.beta", "seed"]),
        ("train -m seed=0,1 neuron.bta=2 num_step=3", ["neuron.bta", "num_step"]),
        ("resume RUN neuron.beta=0.7 neuron.bta=1 trainer.max_epochs=0", ["neuron.bta", "trainer.max_epochs"]),
        ("resume RUN neuron.beta=0.7 seed=4", ["neuron.beta", "seed"]),
        ("eval RUN optimizer.lr=1 nuron.beta=1", ["nuron.beta", "optimizer.lr"]),
    ],
)
def test_each_refusal_has_a_line(snnexp: Shell, typed: str, keys: list[str]) -> None:
    path = str(recorded(snnexp)) if "RUN" in typed else ""
    ended = snnexp(*typed.replace("RUN", path).split())
    assert ended.code == 2
    assert sorted(line.removeprefix("snnexp: ").partition(":")[0] for line in ended.err) == keys


def test_a_recipe_that_does_not_say_where_its_keys_belong(snnexp: Shell) -> None:
    for text in ("num_steps: 5\n", "defaults:\n  - override /neuron: rleaky\nnum_steps: 5\n"):
        ended = snnexp("train", *recipe(snnexp, text))
        assert (ended.code, ended.key) == (2, str(snnexp.folder / "conf" / "experiment" / "mine.yaml"))
        assert "# @package _global_" in ended.err[0]


@pytest.mark.slow
def test_a_run_is_found_by_the_end_of_its_id(snnexp: Shell) -> None:
    first, second = (recorded(snnexp, name=f"20260101-000000-{end}") for end in ("aa01", "bb01"))
    for typed in ("aa01", "000-aa01", first.name, str(first)):
        assert snnexp("resume", typed, "seed=-1").key == "seed"
    ended = snnexp("eval", "01")
    assert (ended.code, ended.key) == (2, "01")
    assert all(str(run.relative_to(snnexp.folder)) in ended.err[0] for run in (first, second))
    ended = snnexp("report", "20260101-000000-aa02")
    assert (ended.code, ended.key) == (2, "20260101-000000-aa02")
    assert first.name in ended.err[0]
    (listed,) = json.loads("".join(snnexp("runs", "bb01", "--json").out))
    assert listed["id"] == second.name


def test_an_id_that_two_directories_have_is_refused(snnexp: Shell) -> None:
    run = recorded(snnexp)
    copy = snnexp.folder / "outputs" / "copied" / run.name
    shutil.copytree(run, copy)
    for typed in ("abcd", run.name):
        ended = snnexp("eval", typed, "seed=-1")
        assert (ended.code, ended.key) == (2, typed)
        assert all(str(path.relative_to(snnexp.folder)) in ended.err[0] for path in (run, copy))


def test_a_run_of_a_sweep_and_the_sweep_are_found_by_their_ids(snnexp: Shell) -> None:
    run = recorded(snnexp, name="20260101-000000-aa01")
    sweep = snnexp.folder / "outputs" / "sweeps" / "custom" / "20260101-000000-5eed"
    (sweep / "runs").mkdir(parents=True)
    (sweep / "sweep.json").write_text("{")
    run.rename(sweep / "runs" / run.name)
    assert snnexp("eval", "aa01", "seed=-1").key == "seed"
    assert snnexp("resume", "5eed").code == 5


@pytest.mark.slow
class TestFrom:
    """``snnexp train --from RUN``; what it composes is looked at without running it."""

    def shown(self, shell: Shell, *words: str) -> DictConfig:
        ended = shell("train", "--from", *words, "--cfg", "job", "--resolve")
        assert ended.code == 0, ended.err
        return OmegaConf.create("\n".join(ended.out))

    def test_what_is_typed_reaches_all_that_depends_on_it(self, snnexp: Shell) -> None:
        recorded(snnexp, "experiment=mnist_parametrized_lif", "seed=3", "num_steps=9", "network.hidden=[7]")
        before = self.shown(snnexp, "abcd")
        assert (before.seed, before.encoder.num_steps, before.network.hidden) == (3, 9, [7])
        cfg = self.shown(snnexp, "abcd", "seed=5", "num_steps=4", "surrogate=atan")
        assert (cfg.seed, cfg.data.seed) == (5, 5)
        assert (cfg.num_steps, cfg.encoder.num_steps, cfg.network.num_steps) == (4, 4, 4)
        assert cfg.neuron.surrogate._target_ == "snnexp.surrogates.ATan"
        assert cfg.network.hidden == [7]

    def test_a_config_that_no_overrides_lead_to(self, snnexp: Shell) -> None:
        run = recorded(snnexp, "experiment=mnist_parametrized_lif")
        saved = run / "config.yaml"
        saved.write_text(saved.read_text().replace("v_leak: 0.0", "v_leak: 0.125"))
        cfg = self.shown(snnexp, "abcd", "seed=5", "num_steps=4", "optimizer.lr=0.5")
        assert (cfg.neuron.v_leak, cfg.optimizer.lr) == (0.125, 0.5)
        assert (cfg.seed, cfg.data.seed, cfg.encoder.num_steps, cfg.network.num_steps) == (5, 5, 4, 4)
        for words, key in ((["neuron=leaky"], "neuron"), (["-m", "seed=0,1"], "--from"), (["seed=-1"], "seed")):
            ended = snnexp("train", "--from", "abcd", *words)
            assert (ended.code, ended.key) == (2, key)

    def test_a_run_that_was_made_longer(self, snnexp: Shell) -> None:
        run = recorded(snnexp, "experiment=regression_sqrt", "trainer.max_epochs=4")
        saved = run / "config.yaml"
        saved.write_text(saved.read_text().replace("max_epochs: 4", "max_epochs: 9"))
        (run / "run.json").write_text(json.dumps(record(run) | {"resumed_with": ["trainer.max_epochs=9"]}))
        # a choice needs what the run was composed of
        cfg = self.shown(snnexp, "abcd", "surrogate=atan")
        assert (cfg.trainer.max_epochs, cfg.neuron.surrogate._target_) == (9, "snnexp.surrogates.ATan")

    def test_a_saved_config_is_run_as_another_one_is(self, snnexp: Shell) -> None:
        words = ("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl")
        run = recorded(snnexp, *words, "network.hidden=[4]")
        saved = run / "config.yaml"
        saved.write_text(saved.read_text().replace("learn_threshold: false", "learn_threshold: true"))
        folder = recipe(snnexp, "# @package _global_\nnum_steps: 5\n", "curious")[1]
        ended = snnexp("train", "--config-dir", folder, "--from", "abcd", "seed=5")
        assert (ended.code, len(ended.err)) == (0, 1)
        (new,) = [path for path in snnexp.runs() if path != run]
        assert record(new)["config_dir"] == str(Path(folder).absolute())
        assert OmegaConf.load(new / "config.yaml").neuron.learn_threshold
        assert not any("neuron" in line for line in snnexp("train", "--from", str(run), "--version").out)
        assert snnexp("train", "--from", str(run), "--info").key == "--from"

    def test_nothing_is_downloaded_unless_that_is_typed_again(self, snnexp: Shell) -> None:
        recorded(snnexp, "data.download=true")
        assert not self.shown(snnexp, "abcd").data.download
        assert self.shown(snnexp, "abcd", "data.download=true").data.download

    def test_a_choice_that_downloads_does_not_unless_that_is_typed_again(self, snnexp: Shell) -> None:
        (snnexp.folder / "conf" / "data").mkdir(parents=True)
        (snnexp.folder / "conf" / "data" / "fetched.yaml").write_text("defaults: [mnist]\ndownload: true\n")
        run = recorded(snnexp, "--config-dir", "conf", "data=fetched")
        (run / "overrides.yaml").write_text("- data=fetched\n")
        assert not self.shown(snnexp, "abcd", "--config-dir", "conf").data.download
        assert self.shown(snnexp, "abcd", "--config-dir", "conf", "data.download=true").data.download

    def test_what_a_notebook_has_recorded_needs_no_quotes(self, snnexp: Shell) -> None:
        run = recorded(snnexp, "logger.root=/tmp/größe")
        assert "größe" in (run / "config.yaml").read_text()
        assert self.shown(snnexp, "abcd", "seed=3").logger.root == "/tmp/größe"

    def test_a_record_from_elsewhere_names_no_code(self, snnexp: Shell) -> None:
        run = recorded(snnexp)
        config = (run / "config.yaml").read_text()
        (run / "overrides.yaml").write_text("- +neuron.beta._target_=os.system\n- hydra/launcher=basic\n")
        assert self.shown(snnexp, "abcd").neuron.beta == 0.95
        (run / "config.yaml").write_text(config.replace("snnexp.neurons.Leaky", "os.system"))
        assert snnexp("train", "--from", "abcd").code == 2


@pytest.mark.parametrize("more", [[], ["neuron.beta.std=0.1"]])
def test_a_typed_part_replaces_the_one_before_in_points_too(snnexp: Shell, more: list[str]) -> None:
    typed = "neuron.beta={_target_: snnexp.initializers.Normal, mean: 0.5, std: 0.2}"
    assert snnexp("train", "-m", "experiment=regression_sqrt", typed, *more, "seed=0,-1").key == "seed"


def test_a_choice_may_be_null(snnexp: Shell) -> None:
    ended = snnexp("train", "-m", "experiment=regression_sqrt", "data.sample_seed=choice(null,1)", "seed=-1")
    assert ended.key == "seed"


class TestConfigDir:
    """Choices of one's own are known wherever those of the package are."""

    def test_the_list_and_the_suggestions(self, snnexp: Shell) -> None:
        folder = recipe(snnexp, "# @package _global_\n# Mine\nnum_steps: 5\n", "curious")[1]
        listed = snnexp("list", "experiment", "--config-dir", folder).out
        assert ["curious", "Mine"] in [line.split() for line in listed]
        assert "curious" in snnexp("train", "--config-dir", folder, "experiment=curius").err[0]
        (row,) = snnexp("list", "experiment", "curious", "--config-dir", folder).out
        assert row.split()[:2] == ["num_steps", "5"]

    def test_tab_completion(self, snnexp: Shell) -> None:
        folder = recipe(snnexp, "# @package _global_\n# Mine\nnum_steps: 5\n", "curious")[1]
        for line in (f"snnexp train --config-dir {folder} experiment=cu", "snnexp train --from x experiment=mnist_l"):
            ended = snnexp("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
            assert "".join(ended.out) in ("experiment=curious", "experiment=mnist_leaky")

    @pytest.mark.slow
    def test_a_surrogate_that_nobody_takes(self, snnexp: Shell) -> None:
        folder = snnexp.folder / "conf" / "neuron"
        folder.mkdir(parents=True)
        (folder / "plain.yaml").write_text("_target_: snnexp.neurons.LeakyIntegrator\n")
        for words in (("surrogate=sigmoid",), ("-m", "surrogate.alpha=1,2"), ("neuron.beta=0.5", "surrogate=atan")):
            ended = snnexp("train", "--config-dir", str(folder.parent), "neuron=plain", *words)
            assert ended.code == 2
            assert ended.err[-1].startswith("snnexp: surrogate: ")

    @pytest.mark.parametrize(
        ("name", "text"), [("mine.yml", "_target_: snnexp.neurons.Leaky\n"), ("mine.yaml", "- beta\n- 0.9\n")]
    )
    def test_files_that_are_no_choices(self, snnexp: Shell, name: str, text: str) -> None:
        folder = snnexp.folder / "conf" / "neuron"
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
        ended = snnexp("train", "--config-dir", str(folder.parent), "neuron=mine")
        assert (ended.code, ended.key.partition("=")[0]) == (2, "neuron")

    @pytest.mark.parametrize("text", ["_convert_: all\nbeta: 0.5\n", "_target_: [a]\n_args_: [1]\n"])
    @pytest.mark.parametrize("group", ["neuron", "trainer", "network"])
    def test_files_that_describe_no_object(self, snnexp: Shell, group: str, text: str) -> None:
        folder = snnexp.folder / "conf" / group
        folder.mkdir(parents=True)
        (folder / "bad.yaml").write_text(text)
        ended = snnexp("train", "--config-dir", str(folder.parent), f"{group}=bad")
        assert ended.code == 2
        assert all(line.startswith(f"snnexp: {group}.") for line in ended.err)


def test_the_keys_of_a_choice_are_listed(snnexp: Shell) -> None:
    rows = {line.split()[0]: line.split()[1] for line in snnexp("list", "neuron", "leaky").out}
    assert rows["neuron.beta"] == "0.95"
    assert rows["neuron.learn_beta"] == "false"


def test_the_points_of_a_sweep_are_listed(snnexp: Shell) -> None:
    (row,) = snnexp("list", "sweep", "seeds").out
    assert row.split()[:2] == ["hydra.sweeper.params.seed", "'range(10)'"]


def test_an_empty_data_dir_is_none(snnexp: Shell) -> None:
    ended = snnexp("train", "--cfg", "job", "--resolve", "-p", "data", SNNEXP_DATA_DIR="")
    assert "root: data" in ended.out


@pytest.mark.slow
def test_hydras_own_information_is_shown(shell: Shell) -> None:
    # Hydra leaves its logging behind
    assert shell("train", "--info", "seed=1").code == 0
    assert shell("train", "--info=searchpath", "seed=1").code == 0
