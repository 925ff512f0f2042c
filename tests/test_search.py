"""Search: spaces, settings, studies shared between processes, pruning, and the best point."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from postgres import PASSWORD, server

from snnexp import config
from snnexp.errors import ConfigError, PrunedError
from snnexp.search import storage
from snnexp.search.best import write_best
from snnexp.search.settings import Settings, objective
from snnexp.search.space import space
from snnexp.search.study import Search, read_metric
from snnexp.spec import parts
from snnexp.sweeps.pruning import Pruning
from snnexp.sweeps.sources import SearchRequest

pytestmark = pytest.mark.slow

LINE = ["optimizer.momentum=interval(-10,10)"]
DONE = (TrialState.COMPLETE, TrialState.PRUNED)

DRIVER = """
import json, sys, time
from pathlib import Path
from snnexp.search.study import Search
from snnexp.search.settings import Settings
from snnexp.sweeps.sources import SearchRequest
from snnexp.search.space import space

settings, folder, hang_at, start = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
fixed, searched = space(["optimizer.momentum=interval(-10,10)"], {})
print("ready", flush=True)
while not start.exists():
    time.sleep(0.01)
search = Search(Settings(**settings), fixed, searched, folder, "test/loss", "minimize")
count = 0
while search.remaining():
    search.heartbeat()
    trial = search.ask()
    if trial is None:
        time.sleep(0.05)
        continue
    number, overrides = trial
    print(number, flush=True)
    while count == hang_at:
        search.heartbeat()
        time.sleep(0.05)
    count += 1
    search.tell(number, "finished", float(overrides[-1].partition("=")[2]) ** 2)
search.close()
"""


@pytest.fixture(autouse=True)
def closed_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close connections after each test: one that is garbage-collected warns in some later test."""
    opened = []

    class Recorded(storage.RDBStorage):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            opened.append(self)

    monkeypatch.setattr(storage, "RDBStorage", Recorded)
    yield
    for each in opened:
        storage.close(each)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory of a sweep."""
    path = tmp_path / "20261122-120000-abcd"
    path.mkdir()
    return path


def begin(folder: Path, overrides: list[str] = LINE, direction: str = "minimize", **chosen: Any) -> Search:
    return Search(Settings(**chosen), *space(overrides, {}), folder, "test/loss", direction)


def drawn(overrides: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}


def trials(url: str, name: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=storage.open_storage(url)).trials


def beside(folder: Path) -> tuple[str, str]:
    return f"sqlite:///{folder / 'study.db'}", folder.name


class TestSpace:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ("interval(0.5,0.99)", FloatDistribution(0.5, 0.99)),
            ("interval(0,1)", FloatDistribution(0.0, 1.0)),
            ("int(interval(2,9))", IntDistribution(2, 9)),
            ("float(interval(2,9))", FloatDistribution(2.0, 9.0)),
            ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
            ("tag(log,int(interval(1,1024)))", IntDistribution(1, 1024, log=True)),
            ("range(1,5)", IntDistribution(1, 4)),
            ("range(5)", IntDistribution(0, 4)),
            ("range(1,9,3)", IntDistribution(1, 7, step=3)),
            ("range(5,0,-2)", IntDistribution(1, 5, step=2)),
            ("shuffle(range(1,5))", IntDistribution(1, 4)),
            ("range(0.5,2.0,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
            ("choice(a,b)", CategoricalDistribution(["a", "b"])),
            ("shuffle(a,b,c,d,e,f)", CategoricalDistribution(["a", "b", "c", "d", "e", "f"])),
            ("3,1,3", CategoricalDistribution(["3", "1"])),
            ("[256,128],[64]", CategoricalDistribution(["[256,128]", "[64]"])),
            ("null,true", CategoricalDistribution(["null", "True"])),
            ("'a, b','c\"d'", CategoricalDistribution(["'a, b'", "'c\"d'"])),
        ],
    )
    def test_hydras_grammar(self, values: str, expected: Any) -> None:
        assert space([f"neuron.mine={values}"], {}) == ([], {"neuron.mine": expected})

    def test_bounds_of_an_integer_key_are_integers(self) -> None:
        _, found = space(["num_steps=interval(5,50)", "data.batch_size=tag(log,interval(16,256))"], {})
        assert found == {"num_steps": IntDistribution(5, 50), "data.batch_size": IntDistribution(16, 256, log=True)}
        _, found = space(["neuron.beta=interval(0,1)"], {})
        assert found == {"neuron.beta": FloatDistribution(0, 1)}

    def test_bounds_of_an_integer_key_of_a_user_part_are_integers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = "class Mine:\n    def __init__(self, features, size: int = 2, rate: float = 1): ...\n"
        (tmp_path / "mine.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        searched = ["neuron.size=interval(1.0,9.0)", "neuron.rate=interval(1.0,9.0)"]
        _, found = space(searched, {}, lambda fixed: {"neuron": {"_target_": "mine.Mine"}})
        assert found == {"neuron.size": IntDistribution(1, 9), "neuron.rate": FloatDistribution(1, 9)}

    def test_overrides_replace_params(self) -> None:
        params = {"seed": 3, "neuron.beta": "interval(0.1,0.2)", "neuron": "leaky,rleaky"}
        typed = ["experiment=mnist_leaky", "neuron.beta=0.9", "+optimizer.lr=interval(1,2)", "seed=4"]
        fixed, found = space(typed, params)
        assert sorted(fixed) == ["experiment=mnist_leaky", "neuron.beta=0.9", "seed=4"]
        assert list(found) == ["neuron", "+optimizer.lr"], "keys keep their prefixes"

    def test_settings_of_hydra_are_not_passed_to_points(self) -> None:
        typed = ["hydra/sweeper=optuna", f"hydra.sweeper.storage='postgresql://me:{PASSWORD}@host/db'", *LINE]
        assert space(typed, {})[0] == []

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("neuron.beta=interval(1,0)", "neuron.beta: got interval(1,0), must have finite bounds"),
            ("neuron.beta=interval(1,1)", "neuron.beta: got interval(1,1), must have finite bounds"),
            ("neuron.beta=interval(0,inf)", "neuron.beta: got interval(0,inf), must have finite bounds"),
            ("optimizer.lr=tag(log,interval(0,1))", "optimizer.lr: got interval(0,1), must have a positive lower"),
            ("optimizer.lr=tag(lg,interval(1,2))", "optimizer.lr: got tag(lg, ..), must be tag(log,interval(..))"),
            ("optimizer.lr=tag(log,choice(1,2))", "optimizer.lr: got tag(log, ..), must be tag(log,interval(..))"),
            ("optimizer.lr=range(1,1)", "optimizer.lr: got range(1,1,1), must have at least one value"),
            ("optimizer.lr=range(1,2,0)", "optimizer.lr: got range(1,2,0), must have at least one value"),
            ("optimizer.lr=range(1,2,-1)", "optimizer.lr: got range(1,2,-1), must have at least one value"),
            ("optimizer.lr=range(0,inf)", "optimizer.lr: got range(0,inf,1), must have at least one value and at most"),
            ("neuron=glob(*)", "neuron: glob(..) cannot be searched; list the values: neuron=a,b"),
            ("neuron.beta=interval(0,", "neuron.beta=interval(0,: not key=value"),
            ("hydra.job.name=a,b", "hydra.job.name: settings of Hydra cannot be searched"),
            ("neuron.beta=0.9", "hydra.sweeper.params: nothing to search"),
        ],
    )
    def test_invalid_spaces_are_refused(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError) as refused:
            space([override], {})
        assert str(refused.value).startswith(message)
        assert "\n" not in str(refused.value)


class TestSettings:
    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            ({"n_trials": 0}, "hydra.sweeper.n_trials: got 0, must be a whole number of at least 1"),
            ({"n_trials": None}, "hydra.sweeper.n_trials: got null, must be"),
            ({"sampler": "cma"}, "hydra.sweeper.sampler: got cma, must be one of tpe, random, grid"),
            ({"direction": "up"}, "hydra.sweeper.direction: got up, must be one of minimize, maximize, or null"),
            ({"seed": -1}, "hydra.sweeper.seed: got -1"),
            ({"prune": "yes"}, "hydra.sweeper.prune: got yes, must be true or false"),
            ({"warmup_epochs": 0.5}, "hydra.sweeper.warmup_epochs: got 0.5"),
            ({"heartbeat_s": 10, "grace_s": 15}, "hydra.sweeper.grace_s: got 15, must be at least twice heartbeat_s"),
            ({"storage": f"what:{PASSWORD}"}, "hydra.sweeper.storage: not the URL of a database"),
            ({"storage": f"nosql://me:{PASSWORD}@h/d"}, "hydra.sweeper.storage: not the URL of a database"),
            ({"storage": f"postgresql://h/d?password={PASSWORD}"}, "hydra.sweeper.storage: a password in the options"),
            ({"storage": 3}, "hydra.sweeper.storage: not the URL of a database"),
        ],
    )
    def test_invalid_settings_are_refused(self, chosen: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as refused:
            Settings(**chosen)
        assert str(refused.value).startswith(message)
        assert PASSWORD not in str(refused.value)

    def test_the_shipped_file_has_the_defaults(self) -> None:
        written = OmegaConf.load(config.conf_dir() / "hydra" / "sweeper" / "optuna.yaml")
        node = {key: value for key, value in written.items() if key not in ("_target_", "params")}
        assert Settings(**node) == Settings()

    def test_the_default_metric_is_of_the_validation_split(self) -> None:
        cfg = OmegaConf.to_container(config.compose(["experiment=mnist_leaky"]))
        cfg["data"]["val_size"] = 10
        assert objective(Settings(), cfg) == ("val/accuracy", "maximize")
        assert objective(Settings(metric="test/loss"), cfg) == ("test/loss", "minimize")
        assert objective(Settings(metric="test/synops", direction="minimize"), cfg) == ("test/synops", "minimize")
        with pytest.raises(ConfigError, match=r"hydra.sweeper.direction: got null, test/synops needs minimize or max"):
            objective(Settings(metric="test/synops"), cfg)

    @pytest.mark.parametrize("experiment", ["mnist_leaky", "regression_sqrt"])
    @pytest.mark.parametrize("metric", [None, "val/loss"])
    def test_the_test_split_is_never_the_default(self, experiment: str, metric: str | None) -> None:
        cfg = OmegaConf.to_container(config.compose([f"experiment={experiment}"]))
        with pytest.raises(ConfigError, match=r"^data\.val_size: .*hydra\.sweeper\.metric=test/"):
            objective(Settings(metric=metric), cfg)
        assert objective(Settings(metric="test/loss"), cfg) == ("test/loss", "minimize")

    @pytest.mark.parametrize(("metric", "direction"), [("test/l1", "maximize"), ("test/accuracy", "minimize")])
    def test_the_wrong_direction_is_refused(self, metric: str, direction: str) -> None:
        cfg = OmegaConf.to_container(config.compose(["experiment=mnist_leaky"]))
        with pytest.raises(ConfigError, match=r"^hydra\.sweeper\.direction: "):
            objective(Settings(metric=metric, direction=direction), cfg)

    def test_the_direction_of_a_chosen_metric(self) -> None:
        cfg = OmegaConf.to_container(config.compose(["experiment=mnist_leaky", "measure=macro_f1"]))
        assert objective(Settings(metric="test/macro_f1"), cfg) == ("test/macro_f1", "maximize")
        with pytest.raises(
            ConfigError, match=r"^hydra\.sweeper\.direction: got minimize, but a higher test/macro_f1 is "
        ):
            objective(Settings(metric="test/macro_f1", direction="minimize"), cfg)

    def test_a_metric_is_read_from_the_record_of_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text('{"metrics": {"test/accuracy": 0.5}}')
        rows = [{"step": 0, "val/accuracy": 0.1}, {"step": 1, "val/accuracy": 0.7}, {"step": 1, "train/loss": 1.0}]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        names = ("test/accuracy", "val/accuracy", "test/l1")
        assert [read_metric(tmp_path, name) for name in names] == [0.5, 0.7, None]


def least(folder: Path, seed: int, sampler: str) -> float:
    """Return the minimum that a search finds of a quadratic function of two parameters."""
    folder = folder / f"{sampler}-{seed}"
    folder.mkdir()
    wanted = ["optimizer.momentum=interval(-10,10)", "optimizer.lr=tag(log,interval(1e-6,1))"]
    search = begin(folder, wanted, sampler=sampler, seed=seed, n_trials=20)
    while (trial := search.ask()) is not None:
        values = drawn(trial[1])
        bowl = float(values["optimizer.momentum"]) ** 2 + (math.log10(float(values["optimizer.lr"])) + 2) ** 2
        search.tell(trial[0], "finished", bowl)
    assert search.remaining() == 0
    best = search.best()
    assert best is not None
    return best[1]


class TestSampling:
    @pytest.mark.slow
    def test_tpe_beats_random_search(self, tmp_path: Path) -> None:
        tpe, random = ([least(tmp_path, seed, sampler) for seed in range(2)] for sampler in ("tpe", "random"))
        assert math.prod(tpe) < math.prod(random) / 10

    @pytest.mark.slow
    def test_points_depend_on_the_seed_and_not_on_the_process(self, tmp_path: Path) -> None:
        def points(name: str, seed: int, processes: int) -> list[list[str]]:
            (tmp_path / name).mkdir()
            asking = [begin(tmp_path / name, sampler="random", seed=seed, n_trials=6) for _ in range(processes)]
            return [asking[index % processes].ask()[1] for index in range(6)]

        alone = points("alone", 1, 1)
        assert points("shared", 1, 2) == alone
        assert len({tuple(point) for point in alone}) == 6
        assert points("other", 2, 1) != alone

    @pytest.mark.slow
    def test_a_grid_has_each_point_once(self, folder: Path) -> None:
        wanted = ["seed=range(3)", "neuron=leaky,rleaky", "neuron.beta=range(0.1,0.4,0.1)", "name=mine"]
        search = begin(folder, wanted, sampler="grid", n_trials=None)
        cells = []
        while (trial := search.ask()) is not None:
            cells.append(tuple(trial[1]))
            search.tell(trial[0], "finished", 0.0)
        _, found = space(wanted, {})
        steps = round((found["neuron.beta"].high - 0.1) / 0.1) + 1
        assert len(cells) == len(set(cells)) == 3 * 2 * steps
        assert {drawn(cell)["neuron.beta"] for cell in cells} >= {"0.1", "0.2", "0.3"}, "without rounding errors"
        assert all(cell[0] == "name=mine" for cell in cells)

    @pytest.mark.slow
    def test_a_part_of_a_grid(self, folder: Path) -> None:
        search = begin(folder, ["seed=range(100)"], sampler="grid", n_trials=5)
        seeds = [int(drawn(search.ask()[1])["seed"]) for _ in range(5)]
        assert search.ask() is None
        assert len(set(seeds)) == 5
        assert max(seeds) > 10, "points are shuffled"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("neuron.beta=interval(0,1)", "neuron.beta: an interval has infinitely many values; use range"),
            ("seed=range(1,2000) num_steps=range(1,2000)", "hydra.sweeper.params: got a grid of 3996001 points"),
        ],
    )
    def test_invalid_grids_are_refused(self, folder: Path, override: str, message: str) -> None:
        with pytest.raises(ConfigError) as refused:
            begin(folder, override.split(), sampler="grid")
        assert str(refused.value).startswith(message)
        assert not [*folder.iterdir()], "no files are written"


class TestReports:
    @pytest.mark.slow
    def test_failed_trials_count_and_interrupted_ones_remain(self, folder: Path) -> None:
        search = begin(folder, n_trials=5)
        reports = [("finished", 2.0), ("failed", None), ("diverged", None), ("pruned", None), ("interrupted", None)]
        for number, (status, value) in enumerate(reports):
            assert search.ask()[0] == number
            search.tell(number, status, value, "because")
        assert search.ask() is None
        assert search.remaining() == 1
        assert search.best() == (0, 2.0)
        states = [trial.state for trial in trials(*beside(folder))]
        expected = [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING]
        assert states == expected

    @pytest.mark.parametrize("value", [None, math.nan, math.inf])
    def test_a_point_without_a_finite_metric_has_failed(self, folder: Path, value: float | None) -> None:
        search = begin(folder, n_trials=1)
        search.tell(search.ask()[0], "finished", value)
        (trial,) = trials(*beside(folder))
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["reason"].startswith("its test/loss is")
        assert search.remaining() == 0
        assert search.best() is None

    def test_the_first_report_of_a_trial_counts(self, folder: Path) -> None:
        search = begin(folder, n_trials=1)
        number, _ = search.ask()
        search.tell(number, "finished", 1.0)
        search.tell(number, "finished", 7.0)
        search.tell(number, "failed", None, "no")
        assert search.best() == (0, 1.0)
        assert search.remaining() == 0

    def test_the_best_trial_of_a_maximization(self, folder: Path) -> None:
        search = begin(folder, direction="maximize", n_trials=3)
        for value in (1.0, 3.0, 2.0):
            search.tell(search.ask()[0], "finished", value)
        assert search.best() == (1, 3.0)

    def test_overrides_of_a_trial(self, folder: Path) -> None:
        wanted = ["seed=3", *LINE, "neuron.beta=range(0.1,0.9,0.1)", "neuron=leaky,rleaky", "num_steps=interval(2,9)"]
        search = begin(folder, wanted)
        for number, overrides in (search.ask(), search.ask()):
            assert search.overrides_of(number) == overrides
            assert overrides[0] == "seed=3"
            assert len(drawn(overrides)["neuron.beta"]) == 3, "without rounding errors"

    def test_n_trials_can_grow(self, folder: Path) -> None:
        search = begin(folder, n_trials=1)
        search.tell(search.ask()[0], "finished", 1.0)
        more = begin(folder, n_trials=3)
        assert more.remaining() == 2
        assert more.ask()[0] == 1


class TestResume:
    def test_a_silent_trial_is_released_with_its_parameters(self, folder: Path, monkeypatch: Any) -> None:
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr("snnexp.search.study.time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
        silent, here = (begin(folder, n_trials=2, heartbeat_s=10, grace_s=30) for _ in range(2))
        lost, point = silent.ask()
        mine, _ = here.ask()
        for clock.now in range(0, 31, 10):
            silent.heartbeat()
            here.heartbeat()
        assert here.ask() is None, "it sends heartbeats"
        for clock.now in (40, 50, 60):
            here.heartbeat()
        assert here.ask() is None, "the grace period has not passed"
        for clock.now in (70, 80):
            here.heartbeat()
        number, values = here.ask()
        assert values == point
        assert number not in (lost, mine)
        assert here.ask() is None
        assert not silent.reclaim(lost), "another process has restarted it"
        silent.tell(lost, "finished", 1.0)
        here.tell(mine, "finished", 2.0)
        here.tell(number, "finished", 3.0)
        assert here.remaining() == 0
        assert here.best() == (mine, 2.0), "the late report is ignored"

    def test_reclaiming_sends_a_heartbeat(self, folder: Path, monkeypatch: Any) -> None:
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr("snnexp.search.study.time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
        before, other = (begin(folder, n_trials=1, heartbeat_s=10, grace_s=30) for _ in range(2))
        number, _ = before.ask()
        other.heartbeat()
        clock.now = 100.0
        resumed = begin(folder, n_trials=1, heartbeat_s=10, grace_s=30)
        assert resumed.reclaim(number)
        other.heartbeat()
        assert other.ask() is None, "reclaiming sent a heartbeat"
        resumed.tell(number, "finished", 1.0)
        assert other.remaining() == 0

    def test_only_running_trials_can_be_reclaimed(self, folder: Path) -> None:
        search = begin(folder, n_trials=2)
        first, second = search.ask()[0], search.ask()[0]
        search.tell(first, "finished", 1.0)
        resumed = begin(folder, n_trials=2)
        assert [resumed.reclaim(number) for number in (first, second, 99)] == [False, True, False]

    @pytest.mark.slow
    def test_concurrent_claims_of_a_place(self, folder: Path) -> None:
        one, other = (begin(folder, n_trials=1) for _ in range(2))
        place, values = one._free_place()
        assert (one._claim(place, values), other._claim(place, values)) == (0, None)
        assert other.ask() is None
        one.tell(0, "finished", 1.0)
        assert other.remaining() == 0
        assert [trial.state for trial in trials(*beside(folder))] == [TrialState.COMPLETE, TrialState.FAIL]


class Drivers:
    """Processes that share a study and start at the same time."""

    def __init__(self, folder: Path, url: str, **chosen: Any) -> None:
        self.folder, self.start = folder, folder / "start"
        self.settings = {"storage": url, "study": "shared", **chosen}
        self.processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Drivers":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def add(self, hang_at: int = -1) -> subprocess.Popen[str]:
        arguments = [json.dumps(self.settings), str(self.folder), str(hang_at), str(self.start)]
        command = [sys.executable, "-W", "error", "-c", DRIVER, *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=self.folder)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @staticmethod
    def begun(process: subprocess.Popen[str]) -> int:
        """Return the number of the next trial that a process starts."""
        assert process.stdout is not None
        return int(process.stdout.readline())

    def finish(self) -> list[int]:
        """Wait for all processes; return the numbers of trials that were not read by :meth:`begun`."""
        begun = []
        for process in self.processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode in (0, -signal.SIGKILL), err
            assert not err
            begun += [int(line) for line in out.split()]
        return begun


def exactly(found: list[FrozenTrial], size: int) -> None:
    """Assert that each place was done once."""
    done = [trial for trial in found if trial.state in DONE]
    assert Counter(trial.user_attrs["place"] for trial in done) == Counter(range(size))
    assert len({trial.params["optimizer.momentum"] for trial in done}) == size
    assert not [trial for trial in found if not trial.state.is_finished()]


class TestProcesses:
    @pytest.mark.slow
    def test_two_processes_on_sqlite(self, folder: Path) -> None:
        url = f"sqlite:///{folder / 'shared.db'}"
        with Drivers(folder, url, n_trials=25, sampler="random") as drivers:
            for _ in range(2):
                drivers.add()
            drivers.start.touch()
            begun = drivers.finish()
        assert len(begun) == len(set(begun)) == 25
        exactly(trials(url, "shared"), 25)

    @pytest.mark.slow
    def test_a_killed_process_on_postgresql(self, folder: Path, database: str) -> None:
        with Drivers(folder, database, n_trials=12, heartbeat_s=0.2, grace_s=1.0) as drivers:
            drivers.start.touch()
            doomed = drivers.add(hang_at=1)
            _, lost = drivers.begun(doomed), drivers.begun(doomed)
            other = drivers.add()
            for _ in range(3):
                drivers.begun(other)
            os.kill(doomed.pid, signal.SIGKILL)
            drivers.finish()
        found = trials(database, "shared")
        exactly(found, 12)
        (again,) = [trial for trial in found if trial.params == found[lost].params and trial.state in DONE]
        assert found[lost].state == TrialState.FAIL
        assert again.user_attrs["place"] == found[lost].user_attrs["place"]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with server() as url:
        yield url


class TestStorage:
    def test_passwords_and_options_are_removed(self) -> None:
        url = "postgresql://me:s3cret@host:5433/db?sslmode=require"
        assert storage.without_password(url) == "postgresql://me@host:5433/db"

    def test_a_wrong_password(self, folder: Path, database: str) -> None:
        wrong = database.replace("s3cret", "0ther")
        with pytest.raises(ConfigError) as refused:
            begin(folder, storage=wrong)
        message = str(refused.value)
        assert message.startswith("hydra.sweeper.storage: postgresql://searcher@127.0.0.1")
        assert "cannot be used" in message
        assert "authentication failed" in message
        assert "0ther" not in message
        assert "\n" not in message

    def test_a_server_that_does_not_run(self, folder: Path) -> None:
        with pytest.raises(ConfigError) as refused:
            begin(folder, storage="postgresql://me:s3cret@127.0.0.1:1/db")
        assert str(refused.value).startswith("hydra.sweeper.storage: postgresql://me@127.0.0.1:1/db cannot be used: ")
        assert "refused" in str(refused.value)
        assert "s3cret" not in str(refused.value)

    def test_a_folder_that_does_not_exist(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"hydra.sweeper.storage: sqlite:///\S+/none/a.db cannot be used: unable"):
            begin(folder, storage=f"sqlite:///{folder}/none/a.db")

    def test_a_path_with_special_characters(self, tmp_path: Path) -> None:
        folder = tmp_path / "größe {0} 100% ?#"
        folder.mkdir()
        assert begin(folder).ask()[0] == 0
        assert [path.name for path in folder.iterdir()] == ["study.db"]

    def test_transactions_lock_before_their_first_read(self, folder: Path) -> None:
        begin(folder)
        url, _ = beside(folder)
        other = sqlite3.connect(folder / "study.db", timeout=0)
        with storage.open_storage(url).engine.begin() as connection:
            connection.exec_driver_sql("SELECT * FROM trials")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
        other.close()

    @pytest.mark.parametrize(
        ("overrides", "chosen", "message"),
        [
            (
                ["optimizer.momentum=interval(-10,11)"],
                {},
                "hydra.sweeper.params: the study X was created with other values",
            ),
            (["optimizer.lr=interval(-10,10)"], {}, "hydra.sweeper.params: the study X was created with other"),
            (LINE, {"direction": "maximize"}, "hydra.sweeper.direction: the study X was created with minimize"),
            (LINE, {"sampler": "random"}, "hydra.sweeper.sampler: the study X was created with tpe"),
            ([*LINE, "seed=3"], {}, "overrides: the study X was created with seed=3"),
        ],
    )
    def test_a_study_with_other_settings_is_refused(
        self, folder: Path, overrides: list[str], chosen: dict[str, Any], message: str
    ) -> None:
        begin(folder)
        with pytest.raises(ConfigError) as refused:
            begin(folder, overrides, **chosen)
        assert str(refused.value).startswith(message.replace("X", folder.name))

    def test_keys_without_effect_on_results_may_differ(self, folder: Path) -> None:
        begin(folder)
        assert begin(folder, [*LINE, "logger.root=elsewhere", "trainer=gpu"], n_trials=30).remaining() == 30


def curve(pruning: Pruning, values: list[float], metric: str) -> str:
    """Return the reason with which a run with these values is pruned, or an empty string."""
    trainer: Any = SimpleNamespace(max_epochs=len(values), world_size=1)
    for trainer.current_epoch, value in enumerate(values):
        member: Any = SimpleNamespace(metrics={metric: value})
        try:
            pruning.on_train_epoch_end(trainer, member)
        except PrunedError as error:
            return str(error)
    return ""


class TestPruning:
    def search(self, folder: Path, metric: str, direction: str, finished: list[list[float]], key: str) -> Search:
        chosen = Settings(n_trials=20, startup_trials=3, warmup_epochs=1)
        search = Search(chosen, *space(LINE, {}), folder, metric, direction)
        for values in finished:
            number, _ = search.ask()
            assert curve(Pruning(**search.pruning_arguments(number)), values, key) == ""
            search.tell(number, "finished", values[-1])
        return search

    @pytest.mark.slow
    def test_a_point_worse_than_the_median_is_pruned(self, folder: Path) -> None:
        others = [[0.2, 0.7, 0.8, 0.9], [0.3, 0.8, 0.8, 0.9], [0.1, 0.5, 0.7, 0.9]]
        search = self.search(folder, "val/accuracy", "maximize", others, "val/accuracy")
        number, _ = search.ask()
        bad = Pruning(**search.pruning_arguments(number))
        reason = curve(bad, [0.0, 0.61, 0.7, 0.8], "val/accuracy")
        assert reason == "pruned after epoch 2: val/accuracy 0.61 is worse than the median of the other points"
        search.tell(number, "pruned", None, reason)
        found = trials(*beside(folder))[number]
        assert (found.state, found.value) == (TrialState.PRUNED, 0.61)
        good = Pruning(**search.pruning_arguments(search.ask()[0]))
        assert curve(good, [0.0, 0.75, 0.9, 0.0], "val/accuracy") == ""

    def test_nothing_is_pruned_before_startup_trials_have_finished(self, folder: Path) -> None:
        search = self.search(folder, "val/accuracy", "maximize", [[0.9] * 4] * 2, "val/accuracy")
        assert curve(Pruning(**search.pruning_arguments(search.ask()[0])), [0.0] * 4, "val/accuracy") == ""

    @pytest.mark.slow
    def test_the_training_loss_replaces_a_test_metric(self, folder: Path) -> None:
        losses = [[5.0, 2.0, 1.0]] * 3
        search = self.search(folder, "test/accuracy", "maximize", losses, "train/epoch_loss")
        first, second = (Pruning(**search.pruning_arguments(search.ask()[0])) for _ in range(2))
        assert curve(first, [9.0, 1.5, 1.0], "train/epoch_loss") == ""
        assert curve(second, [9.0, 2.5, 1.0], "train/epoch_loss").startswith(
            "pruned after epoch 2: train/epoch_loss 2.5"
        )

    @pytest.mark.slow
    def test_long_runs_limit_their_reports(self, folder: Path) -> None:
        search = begin(folder)
        number, _ = search.ask()
        curve(Pruning(**search.pruning_arguments(number)), [1.0] * 600, "train/epoch_loss")
        reported = trials(*beside(folder))[number].intermediate_values
        assert sorted(reported) == list(range(20, 600, 20))

    def test_a_restarted_trial_is_not_pruned(self, folder: Path, caplog: Any) -> None:
        search = begin(folder)
        number, _ = search.ask()
        pruning = Pruning(**search.pruning_arguments(number))
        search.tell(number, "failed", None, "gone")
        assert curve(pruning, [1.0, 1.0, 1.0], "train/epoch_loss") == ""
        assert "could not be reported to the search" in caplog.text


FIXTURE = HealthCheck.function_scoped_fixture
GROUPS = ("network", "neuron", "readout", "surrogate", "loss", "optimizer", "logger")


class TestBest:
    @pytest.mark.parametrize("experiment", sorted(config.choices("experiment")))
    def test_each_recipe_composes_to_itself(self, tmp_path: Path, experiment: str) -> None:
        self.compose_again(tmp_path, [f"experiment={experiment}", "seed=7", "optimizer.lr=1.0e-05"])

    @pytest.mark.slow
    @settings(
        max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_any_choices_compose_to_themselves(self, tmp_path: Path, data: st.DataObject) -> None:
        chosen = [f"{group}={data.draw(st.sampled_from(sorted(config.choices(group))))}" for group in GROUPS]
        beta = data.draw(st.sampled_from(["0.3", "{_target_: snnexp.initializers.Normal, mean: 0.5, std: 0.01}"]))
        try:
            config.compose([*chosen, f"neuron.beta={beta}"])
        except ConfigError:
            beta = ""
        try:
            self.compose_again(tmp_path, [*chosen, *([f"neuron.beta={beta}"] if beta else []), "name=1e3"])
        except ConfigError:
            # the choices are incompatible
            return

    def compose_again(self, folder: Path, overrides: list[str]) -> None:
        cfg = config.compose(overrides)
        _, hydra = config.compose_unchecked(overrides)
        path = folder / "experiment" / "found.yaml"
        plain = OmegaConf.to_container(cfg)
        write_best(path, plain, hydra["runtime"]["choices"], "Best of 20\npoints: val/accuracy 0.97")  # type: ignore[arg-type]
        again, _ = config.compose_unchecked(["experiment=found"], [folder])
        assert OmegaConf.to_container(config.check(again)) == plain
        assert config.choices("experiment", [folder])["found"] == "Best of 20 points: val/accuracy 0.97"
        assert plain["data"]["_target_"] in parts.shipped("data"), "an experiment of this package"


@pytest.mark.parametrize("overrides", [["data=fetched"], ["data.download=true"]])
def test_a_resumed_search_never_downloads(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fetched.yaml").write_text("defaults: [mnist]\ndownload: true\n")
    facts = SearchRequest({}, {"neuron.beta": "interval(0.1,0.9)"}, overrides, config.Composer([tmp_path])).to_record()
    again = SearchRequest.from_record(facts, {})
    assert not again.compose(["neuron.beta=0.5", *again.overrides])["data"]["download"]
    assert SearchRequest.from_record({**facts, "overrides": ["seed=3"]}, {}).overrides == ["seed=3"]
