"""How ``snnexp train`` interprets its command line, before anything runs."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from snnexp import config
from snnexp.cli import main
from snnexp.cli import train as launch
from snnexp.cli.points import prepare_sweep
from snnexp.config.compose import _compositions
from snnexp.errors import ConfigError
from snnexp.experiment import compose
from snnexp.record.origin import origin, parse_folders
from snnexp.record.run import Run
from snnexp.sweeps import driver
from snnexp.sweeps.sources import SearchRequest

pytestmark = pytest.mark.slow

TINY = ("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl", "network.hidden=[2]")
CHOOSES = "defaults:\n  - regression_linear\n  - override /hydra/launcher: "
Write = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(here: Path) -> Write:
    """Return a function that writes a config into a folder and returns the folder."""

    def write(name: str, text: str) -> Path:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        glob = path.parent.name in ("experiment", "sweep")
        path.write_text(f"# @package _global_\n{text}" if glob else text)
        return path.parents[1]

    return write


@pytest.fixture
def ledgers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The ledgers of sweeps, which are not run."""
    found: list[dict[str, Any]] = []

    def drive(ledger: Any, *_: Any) -> int:
        ledger.save()
        found.append(json.loads((ledger.path / "sweep.json").read_text()) | {"path": ledger.path})
        return 0

    monkeypatch.setattr(driver, "drive", drive)
    return found


@pytest.mark.parametrize(
    ("words", "compositions", "checks"),
    [
        ([*TINY], 1, 1),
        (["-m", *TINY, "seed=0,1,2"], 2, 3),
        (["-m", *TINY, "seed=0,1", "hydra/launcher=stacked", "hydra.launcher.members=3"], 2, 2),
        (["-m", "experiment=regression_sqrt,regression_linear", "seed=0,1"], 3, 4),
        (["-m", "sweep=beta_and_lr"], 2, 2),
    ],
)
@pytest.mark.usefixtures("ledgers")
def test_a_config_is_composed_and_checked_once(
    monkeypatch: pytest.MonkeyPatch, words: list[str], compositions: int, checks: int
) -> None:
    # it would compose the recipe again, to compare the result with published numbers
    monkeypatch.setattr("snnexp.training.execute.execute", lambda start, on_created: None)
    # compositions of earlier tests are shared
    _compositions.cache_clear()
    made: Counter[str] = Counter()
    for owner, name in ((ConfigLoaderImpl, "load_configuration"), (config, "check")):

        def counted(*args: Any, whole: Any = getattr(owner, name), name: str = name, **named: Any) -> Any:
            made[name] += 1
            return whole(*args, **named)

        monkeypatch.setattr(owner, name, counted)
    before = ({**os.environ}, sys.argv, [*sys.argv])
    assert launch.train(words) == 0
    assert made == {"load_configuration": compositions, "check": checks}
    assert ({**os.environ}, sys.argv, [*sys.argv]) == before


class TestAgreement:
    """The launcher of a sweep is the one that its points choose."""

    @pytest.mark.parametrize("recipes", ["together,regression_linear", "regression_linear,together"])
    def test_a_launcher_chosen_by_some_points_applies_to_all(
        self, write: Write, ledgers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], recipes: str
    ) -> None:
        conf = str(write("conf/experiment/together.yaml", f"{CHOOSES}stacked\nhydra:\n  launcher:\n    members: 5\n"))
        assert launch.train(["--config-dir", conf, "-m", f"experiment={recipes}", "hydra.launcher.threads=1"]) == 0
        (ledger,) = ledgers
        assert (ledger["launcher"]["kind"], ledger["launcher"]["members"]) == ("stacked", 5)
        assert ledger["launcher"]["threads"] == 1
        assert "hydra/launcher: stacked starts all points, although some do not" in capsys.readouterr().err

    @pytest.mark.usefixtures("ledgers")
    def test_a_launcher_chosen_by_all_points_gives_no_warning(
        self, write: Write, capsys: pytest.CaptureFixture[str], here: Path
    ) -> None:
        for name in ("one", "other"):
            conf = str(write(f"conf/experiment/{name}.yaml", f"{CHOOSES}stacked\n"))
        assert launch.train(["--config-dir", conf, "-m", "experiment=one,other"]) == 0
        assert "launcher" not in capsys.readouterr().err

    def test_conflicting_launchers_are_rejected_unless_overridden(
        self, write: Write, ledgers: list[dict[str, Any]], here: Path
    ) -> None:
        for name in ("stacked", "processes"):
            conf = str(write(f"conf/experiment/{name}.yaml", f"{CHOOSES}{name}\n"))
        words = ["--config-dir", conf, "-m", "experiment=stacked,processes"]
        with pytest.raises(ConfigError, match=r"^hydra/launcher: "):
            launch.train(words)
        assert not (here / "outputs").exists()
        assert launch.train([*words, "hydra/launcher=stacked"]) == 0
        assert ledgers[0]["launcher"]["kind"] == "stacked"

    @pytest.mark.parametrize("words", [[], ["hydra/sweeper=grid"]])
    def test_sweeping_over_sweeps_with_different_points_is_rejected(self, here: Path, words: list[str]) -> None:
        with pytest.raises(ConfigError, match=r"^hydra/sweeper: "):
            launch.train(["-m", "sweep=seeds,learned_or_fixed", *words])
        assert [*here.iterdir()] == []

    def test_a_search_uses_the_launcher_of_its_points(self, write: Write, ledgers: list[dict[str, Any]]) -> None:
        conf = str(write("conf/experiment/together.yaml", f"{CHOOSES}stacked\n"))
        words = ["experiment=regression_linear,together", "hydra/sweeper=optuna", "hydra.sweeper.metric=test/l1"]
        assert launch.train(["--config-dir", conf, "-m", *words]) == 0
        assert ledgers[0]["launcher"]["kind"] == "stacked"


def test_an_override_may_belong_to_a_recipe_that_a_file_sweeps_over(write: Write) -> None:
    recipes = "mnist_rleaky_count,mnist_rleaky_membrane"
    conf = write("conf/sweep/both.yaml", f"hydra:\n  sweeper:\n    params: {{experiment: '{recipes}'}}\n")
    found, _ = prepare_sweep(["sweep=both", "neuron.feedback=one_to_one"], [conf])
    assert isinstance(found, list)
    assert [cfg["neuron"]["feedback"] for _, cfg in found] == ["one_to_one"] * 2


def test_a_search_may_vary_a_key_that_the_defaults_do_not_have() -> None:
    words = ["hydra/sweeper=optuna", "experiment=mnist_rleaky_count,mnist_rleaky_membrane"]
    words += ["neuron.feedback=one_to_one,linear", "hydra.sweeper.metric=test/accuracy"]
    request, _ = prepare_sweep(words)
    assert isinstance(request, SearchRequest)
    assert request.checked["neuron"]["feedback"] == "one_to_one"
    # the saved search composes its points too
    again = SearchRequest.from_record(request.to_record(), {})
    assert again.overrides == request.overrides


def test_a_sweep_is_named_after_its_first_point(ledgers: list[dict[str, Any]], here: Path) -> None:
    assert launch.train(["-m", "experiment=regression_sqrt,regression_linear", "logger.root=there"]) == 0
    (ledger,) = ledgers
    assert ledger["experiment"] == "regression_sqrt"
    assert ledger["path"].relative_to("there/sweeps/regression_sqrt")


def test_an_empty_range_is_rejected(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"^seed: "):
        launch.train(["-m", "seed=range(3,3)"])
    assert [*here.iterdir()] == []


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("--cfg job -m seed=1", ["--multirun --cfg"]),
        ("--run --info", ["--run --info"]),
        ("--resolve seed=1", ["--resolve"]),
    ],
)
def test_mutually_exclusive_flags(words: str, keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        launch.train(words.split())
    assert [said.partition(":")[0] for said in caught.value.args] == keys


@pytest.mark.parametrize(
    ("words", "flag", "got"),
    [
        ("--package -cd", "--package", "-cd"),
        ("--cfg job --package --multirun", "--package", "--multirun"),
        ("--config-dir --cfg job", "--config-dir", "--cfg"),
        ("--from -m seed=1,2", "--from", "-m"),
        ("-p", "-p", "nothing"),
    ],
)
def test_a_flag_is_not_the_value_of_another(
    words: str, flag: str, got: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words.split()]) == 2
    assert capsys.readouterr().err == f"snnexp: {flag}: got {got}, must be followed by a value\n"


@pytest.mark.parametrize("typed", ["network.hidden=[ se", "network.hidden='[4, 5]' se", "seed=${ neu"])
def test_an_incomplete_config_has_no_completions(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", f"snnexp train {typed}")
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("query", ["query=bash", "query=[", "query="])
def test_a_completion_not_requested_by_a_shell(
    query: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert main(["train", "-sc", query]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


class TestFolders:
    """Several ``--config-dir`` options."""

    @pytest.fixture
    def folders(self, write: Write) -> list[str]:
        write("second/experiment/both.yaml", "# Of the second\nnum_steps: 2\n")
        write("second/experiment/mine.yaml", "# Of the second\ndefaults: [regression_sqrt]\nname: mine\nseed: 5\n")
        write("first/experiment/both.yaml", "# Of the first\nnum_steps: 1\n")
        write("first/experiment/mnist_leaky.yaml", "# Of the first\nnum_steps: 9\n")
        return ["first", "second"]

    def flags(self, folders: list[str]) -> list[str]:
        return [word for folder in folders for word in ("--config-dir", folder)]

    def test_are_searched_in_order_and_before_the_package(
        self, folders: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for recipe, steps in (("both", 1), ("mine", 50), ("mnist_leaky", 9)):
            assert main(["train", *self.flags(folders), f"experiment={recipe}", "--cfg", "job", "-p", "num_steps"]) == 0
            assert capsys.readouterr().out.strip() == str(steps)
        assert main(["list", "experiment", *self.flags(folders)]) == 0
        listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert (listed["both"], listed["mine"], listed["mnist_leaky"]) == tuple(
            f"Of the {which}" for which in ("first", "second", "first")
        )
        assert main(["list", "experiment", "both", *self.flags([*reversed(folders)])]) == 0
        assert capsys.readouterr().out.split()[:2] == ["num_steps", "2"]

    def test_are_recorded_and_reused(self, folders: list[str], here: Path, capsys: pytest.CaptureFixture) -> None:
        for given in (folders, folders[1:]):
            absolute = [str(here / folder) for folder in given]
            words = ["experiment=mine", *TINY[1:]]
            assert main(["train", *self.flags(given), *words]) == 0
            (run,) = [path.parent for path in here.glob("outputs/mine/*/run.json")]
            kept = json.loads((run / "run.json").read_text())["config_dir"]
            assert kept == (absolute if len(absolute) > 1 else absolute[0])
            assert [*map(str, origin(Run(run).facts()).folders)] == absolute
            capsys.readouterr()
            assert main(["train", "--from", str(run), "seed=6", "--cfg", "job", "-p", "seed"]) == 0
            assert capsys.readouterr().out == "6\n"
            run.rename(here / f"done {len(given)}")

    def test_are_recorded_by_a_sweep(self, folders: list[str], ledgers: list[dict[str, Any]], here: Path) -> None:
        absolute = [str(here / folder) for folder in folders]
        search = ["hydra/sweeper=optuna", "neuron.beta=interval(0.1,0.9)", "hydra.sweeper.metric=test/l1"]
        for words in ([], search):
            assert launch.train(["-m", *self.flags(folders), "experiment=mine", *words]) == 0
        assert [ledger["config_dir"] for ledger in ledgers] == [absolute] * 2
        assert [*map(str, driver.Ledger.open(ledgers[0]["path"]).folders)] == absolute
        assert SearchRequest.from_record(ledgers[1]["search"], {}).compose(["experiment=mine"])["seed"] == 5

    @pytest.mark.parametrize("kept", [5, [5], {"a": "b"}, [""]])
    def test_an_invalid_record_of_folders_is_rejected(self, kept: object) -> None:
        with pytest.raises(TypeError):
            parse_folders(kept)

    def test_are_used_for_completion(
        self, folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for typed, choice in (("bo", "both"), ("mi", "mine")):
            line = f"snnexp train {' '.join(self.flags(folders))} experiment={typed}"
            monkeypatch.setenv("COMP_LINE", line)
            monkeypatch.setenv("COMP_POINT", str(len(line)))
            assert main(["-sc", "query=bash"]) == 0
            assert capsys.readouterr().out.strip() == f"experiment={choice}"


def test_a_name_may_contain_the_run_id_in_a_notebook_too() -> None:
    cfg = compose(["name='x_${new_run_id:}'"])
    assert cfg.name.startswith("x_2")
    assert config.overrides_of(cfg) == [f"name={cfg.name}"]


def test_a_config_dir_must_not_contain_a_root_config(
    here: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write("more/neuron/mine.yaml", "_target_: snnexp.neurons.Leaky")
    (folder / "train.yaml").write_text("seed: 5")
    assert main(["train", "--config-dir", str(folder), *TINY]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("snnexp: --config-dir: ")
    assert "SNNEXP_CONF" in line
