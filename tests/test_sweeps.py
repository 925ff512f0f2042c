"""Sweeps in worker processes: each point runs once, and a failed point does not affect others."""

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import commands
import pytest
from ends import content
from faults import REASONS
from rich.console import Console
from test_cli import in_a_terminal, record, snnexp

from snnexp import config, limits
from snnexp.cli import main
from snnexp.cli import train as launch
from snnexp.cli.points import prepare_sweep
from snnexp.errors import CheckpointError, ConfigError, InterruptedRunError, InUseError
from snnexp.record.run import Run
from snnexp.sweeps import driver, worker
from snnexp.sweeps.display import Display, best_point
from snnexp.sweeps.engine import Engine, Tasks
from snnexp.sweeps.ledger import Ledger, Point
from snnexp.sweeps.slots import Job, Worker
from snnexp.sweeps.sources import ListSource
from snnexp.training import stacked

RUN = ["train", "experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=3", "logger=jsonl"]
WAYS = ("exception", "sys.exit", "SIGSEGV", "hang", "memory", "diverge")
SETTINGS = {"workers": 1, "threads": 1, "gpus": None, "timeout_s": None, "memory_gb": None, "kind": "processes"}


def home(cwd: Path) -> Path:
    (path,) = cwd.glob("outputs/sweeps/*/*/sweep.json")
    return path.parent


def points(cwd: Path) -> list[dict[str, Any]]:
    return json.loads((home(cwd) / "sweep.json").read_text())["points"]


def statuses(cwd: Path) -> list[str]:
    return [point["status"] for point in points(cwd)]


def started(cwd: Path, *arguments: str, **env: str) -> "subprocess.Popen[str]":
    return commands.Command(arguments, cwd, {**os.environ, **env})


def wait_until(true: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestLedger:
    def make(self, tmp_path: Path) -> Ledger:
        ledger = Ledger.create(tmp_path / "sweep", "regression_sqrt", SETTINGS)
        for seed in range(3):
            ledger.add([f"seed={seed}", "neuron.beta=0.5"], {"seed": seed})
        ledger.save()
        return ledger

    def test_round_trip(self, tmp_path: Path) -> None:
        ledger = self.make(tmp_path)
        ledger.points[1].status, ledger.points[1].reason, ledger.points[1].exit_code = "failed", "why", 1
        ledger.save()
        ledger.close()
        found = Ledger.open(tmp_path / "sweep")
        assert [point.status for point in found.points] == ["pending", "failed", "pending"]
        assert (found.points[1].reason, found.points[1].exit_code) == ("why", 1)
        assert [found.config(point) for point in found.points] == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
        assert (found.experiment, found.launcher) == ("regression_sqrt", SETTINGS)
        assert found.varied_keys() == ["seed"]

    def test_two_sweeps_with_the_same_id_get_separate_directories(self, tmp_path: Path) -> None:
        first, second = (Ledger.create(tmp_path / "sweep", "x", SETTINGS) for _ in range(2))
        assert first.path != second.path
        assert first.path.parent == second.path.parent

    def test_is_locked_by_one_process(self, tmp_path: Path) -> None:
        ledger = self.make(tmp_path)
        with pytest.raises(InUseError):
            Ledger.open(ledger.path)
        ledger.close()
        Ledger.open(ledger.path).close()

    @pytest.mark.parametrize(
        "change",
        [
            {"points": [{}]},
            {"points": 5},
            {"points": [{"overrides": ["seed=0"], "status": "done"}]},
            *(
                {"run": run}
                for run in ("../elsewhere", "/etc", "runs/../..", "runs/x", 5, "runs/20260101-000000-abcd/..")
            ),
            {"status": "perhaps"},
            {"job": "1; rm -r x"},
            {"trial": "1"},
            {"overrides": "seed=0"},
            {"overrides": [5]},
            {"reason": None},
        ],
        ids=str,
    )
    def test_damaged_values_are_refused(self, tmp_path: Path, change: dict[str, Any]) -> None:
        self.make(tmp_path).close()
        path = tmp_path / "sweep" / "sweep.json"
        found = json.loads(path.read_text())
        if "points" in change:
            found |= change
        else:
            found["points"][0] |= change
        path.write_text(json.dumps(found))
        with pytest.raises(CheckpointError, match=r"sweep\.json: "):
            Ledger.open(tmp_path / "sweep")

    @pytest.mark.parametrize("text", ["", "[", "5", "{}", '{"points": []', "\x00"])
    def test_invalid_json_is_refused(self, tmp_path: Path, text: str) -> None:
        self.make(tmp_path).close()
        (tmp_path / "sweep" / "sweep.json").write_text(text)
        with pytest.raises(CheckpointError):
            Ledger.open(tmp_path / "sweep")

    def test_missing_configs_are_refused(self, tmp_path: Path) -> None:
        self.make(tmp_path).close()
        (tmp_path / "sweep" / "configs.jsonl").write_text("{}\n")
        with pytest.raises(CheckpointError):
            Ledger.open(tmp_path / "sweep")

    def test_an_incomplete_run_directory_is_ignored(self, tmp_path: Path) -> None:
        """The driver was killed before the temporary directory of a run was renamed."""
        ledger = self.make(tmp_path)
        ledger.points[0].status = "running"
        ledger.save()
        ledger.close()
        made = ledger.runs / ".new-abcd"
        made.mkdir()
        (made / "overrides.yaml").write_text(json.dumps(ledger.points[0].overrides))
        for _ in range(2):
            found = Ledger.open(ledger.path)
            assert (found.points[0].status, found.points[0].run) == ("interrupted", "")
            found.close()

    @pytest.mark.parametrize("part", ["runs", "runs/x", "conf", ".lock", "sweep.json", "summary.csv"])
    @pytest.mark.parametrize("hard", [False, True])
    def test_a_link_is_refused_before_any_write(self, tmp_path: Path, part: str, hard: bool) -> None:
        self.make(tmp_path).close()
        elsewhere = tmp_path / "elsewhere"
        path = tmp_path / "sweep" / part
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        if hard and part not in ("runs", "conf"):
            elsewhere.write_text("mine")
            path.hardlink_to(elsewhere)
        else:
            elsewhere.mkdir()
            path.symlink_to(elsewhere)
        with pytest.raises((CheckpointError, ConfigError)):
            Ledger.open(tmp_path / "sweep")
        assert elsewhere.is_dir() or elsewhere.read_text() == "mine"
        assert not elsewhere.is_dir() or not [*elsewhere.iterdir()]

    def test_an_incomplete_config_is_dropped(self, tmp_path: Path) -> None:
        ledger = self.make(tmp_path)
        ledger.close()
        with (ledger.path / "configs.jsonl").open("a") as file:
            file.write('{"seed": 3')
        found = Ledger.open(ledger.path)
        found.add(["seed=4"], {"seed": 4})
        found.save()
        found.close()
        again = Ledger.open(ledger.path)
        assert [again.config(point)["seed"] for point in again.points] == [0, 1, 2, 4]

    def test_run_directories_take_precedence(self, tmp_path: Path) -> None:
        """The driver was killed before it recorded the start or end of a run."""
        ledger = self.make(tmp_path)
        ended, running, _ = ledger.points
        ended.status = running.status = "running"
        ledger.save()
        ledger.close()
        for point, status in ((ended, "finished"), (running, "running")):
            run = Run.prepare(ledger.runs, "{}", point.overrides).publish({})
            run.update(status=status, metrics={"test/l1": 0.5}, exit_code=0 if status == "finished" else None)
            run.close()
        found = Ledger.open(ledger.path)
        assert [point.status for point in found.points] == ["finished", "interrupted", "pending"]
        assert found.points[0].metrics == {"test/l1": 0.5}
        for point in found.points[:2]:
            assert Run(found.path / point.run).overrides() == point.overrides


class TestPoints:
    LISTS = (
        ["experiment=regression_sqrt", "seed=1,2", "neuron.beta=0.5,0.6"],
        ["neuron=leaky,rleaky", "neuron.beta=0.5,0.6", "num_steps=3,5"],
        ["neuron={beta: 0.3},{beta: 0.4}", "seed=3"],
        ["neuron.beta=0.5", "neuron.beta=0.6,0.7"],
        ["network.hidden=[10],[20,20]", "+published.x=1,2"],
        ["experiment=regression_sqrt", "neuron.beta={_target_: snnexp.initializers.Normal},0.5", "name='a b',c"],
        ["experiment=regression_sqrt,mnist_leaky", "loss.off_target=0.1", "loss=mse_membrane"],
        ["~published", "optimizer.betas=[0.5,0.9],[0.6,0.99]", "neuron.beta=${optimizer.lr}"],
        ["neuron.beta=choice(0.1,0.2)", "seed=range(0,3)", "num_steps=sort(3,2,1)"],
    )

    @pytest.mark.slow
    @pytest.mark.parametrize("typed", LISTS, ids=lambda typed: " ".join(typed))
    def test_composing_points_together_equals_composing_each(self, typed: list[str]) -> None:
        listed = [*config.points(typed)]
        together = [*config.compose_points(listed)]
        assert len(together) == len(listed) > 0
        for point, cfg in zip(listed, together, strict=True):
            assert cfg == config.compose_unchecked(point)[0]

    def test_an_unknown_key_is_reported(self) -> None:
        with pytest.raises(ConfigError, match=r"^neuron\.betta: unknown key, did you mean neuron\.beta\?"):
            [*config.compose_points([["neuron.betta=0.5"]])]

    @pytest.mark.slow
    def test_duplicates_run_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.setattr(driver, "drive", lambda ledger, request: ledger.save() or 0)
        monkeypatch.chdir(tmp_path)
        assert launch.train(["-m", "experiment=regression_sqrt", "seed=1,2,1", "neuron.beta=0.5,0.50"]) == 0
        assert [point["overrides"][-2:] for point in points(tmp_path)] == [
            ["seed=1", "neuron.beta=0.5"],
            ["seed=2", "neuron.beta=0.5"],
        ]
        assert capsys.readouterr().err == "snnexp: 4 of 6 points are duplicates and are skipped\n"


def test_the_first_point_of_a_search_is_described_by_its_searched_keys(tmp_path: Path) -> None:
    search = {"overrides": ["seed=3", "optimizer.lr=interval(1e-4,1e-2)"]}
    with closing(Ledger.create(tmp_path / "sweep", "x", {"kind": "processes"}, search)) as ledger:
        ledger.add(["seed=3", "optimizer.lr=0.001"], {}, 0)
        assert ledger.varied_keys() == ["optimizer.lr"]
        ledger.add(["seed=3", "optimizer.lr=0.002"], {}, 1)
        assert ledger.varied_keys() == ["optimizer.lr"]


def test_ended_members_keep_their_positions_in_a_stack(tmp_path: Path) -> None:
    """A stack resumes with all its members; a point that was retried alone stays alone."""
    with closing(Ledger.create(tmp_path / "sweep", "x", {"kind": "stacked", "members": 64, "workers": 1})) as ledger:
        whole = config.plain(config.compose(RUN[1:]))
        ends = ["finished", "diverged", "interrupted", "pruned", "interrupted"]
        for seed, status in enumerate([*ends, "pending", "pending"]):
            point = ledger.add([f"seed={seed}"], {**whole, "seed": seed})
            point.status, point.how = status, ["stack of 4", "process", ""][(seed > 3) + (seed > 4)]
            point.stack = [3, 1, 2, 0] if seed < 4 else []
        ledger.save()
    with closing(Ledger.open(tmp_path / "sweep")) as ledger:
        stack, alone, new = driver.make_jobs(ledger, ledger.points)
        assert [point.index for point in stack] == [1, 2]
        assert [point.index for point in stack.members] == [3, 1, 2, 0]
        assert (alone, alone.members) == ([ledger.points[4]], [ledger.points[4]])
        assert new == ledger.points[5:]
        members = Tasks(ledger).make(stack)["members"]
        assert [member["over"] for member in members] == [True, False, False, True]
        assert [member["config"]["seed"] for member in members] == [3, 1, 2, 0]
        assert "members" not in Tasks(ledger).make(alone)


@pytest.mark.slow
def test_events_do_not_count_ended_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(points: Sequence[stacked.Point], parent: Path, begun: Any, ended: Any) -> None:
        for index, point in enumerate(points):
            if not point.has_ended:
                ended(index, stacked.Outcome("finished", None))

    monkeypatch.setattr(stacked, "train", train)
    events: list[dict[str, Any]] = []
    members = [{"config": {}, "overrides": [], "run": None, "over": over} for over in (True, False, True, False)]
    worker._stack({"members": members, "parent": str(tmp_path)}, tmp_path / "log", events.append)
    assert [event["ended"] for event in events] == [0, 1]


class TestSlots:
    """Workers whose programs are defined by the test."""

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Iterator[Ledger]:
        ledger = Ledger.create(tmp_path / "sweep", "x", SETTINGS)
        for seed in range(4):
            ledger.add([f"seed={seed}"], {"seed": seed})
        ledger.save()
        yield ledger
        ledger.close()

    def drive(self, ledger: Ledger, program: str, timeout_s: float | None = None) -> Engine:
        worker = Worker({})
        worker.command = [sys.executable, "-c", PREFIX + program]
        source = ListSource([Job([point]) for point in ledger.points])
        engine = Engine(ledger, source, [worker], Tasks(ledger), timeout_s, Display(Console(quiet=True), ledger))
        engine.run()
        return engine

    def test_a_worker_is_reused(self, ledger: Ledger) -> None:
        self.drive(ledger, "for task in tasks: end(str(os.getpid())); say(idle=True)")
        assert len({point.reason for point in ledger.points}) == 1
        assert {point.status for point in ledger.points} == {"failed"}

    def test_a_worker_is_restarted_after_it_exited(self, ledger: Ledger) -> None:
        self.drive(ledger, "next(tasks); end(str(os.getpid()))")
        assert len({point.reason for point in ledger.points}) == 4

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("program", "status", "reason"),
        [
            ("sys.exit(3)", "failed", "its process exited with code 3"),
            ("os.kill(os.getpid(), 9)", "failed", "SIGKILL, possibly out of memory"),
            ("next(tasks); os.close(1); time.sleep(60)", "failed", "its process"),
            ("next(tasks); time.sleep(60)", "timeout", "took longer than 0.3 s"),
            (
                "signal.signal(15, signal.SIG_IGN); next(tasks); time.sleep(60)",
                "timeout",
                "did not stop and was killed",
            ),
        ],
    )
    def test_the_reason_of_a_lost_process(self, ledger: Ledger, program: str, status: str, reason: str) -> None:
        self.drive(ledger, program, timeout_s=0.3 if "sleep(60)" in program else None)
        assert {point.status for point in ledger.points} == {status}
        assert all(reason in point.reason for point in ledger.points)


PREFIX = """
import json, os, signal, sys, time
def say(**event): print(json.dumps(event), flush=True)
say(working=True)
def end(reason): say(ended=0, status="failed", exit_code=1, reason=reason)
tasks = map(json.loads, sys.stdin)
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Nine points of which six fail in different ways; the driver is killed and the sweep resumed."""
    cwd = tmp_path_factory.mktemp("faulty")
    faults = ",".join(f"'{way}'" for way in ["", *WAYS, "", ""])
    typed = ["loss._target_=faults.Faulty", "+loss.point=${seed}", f"+loss.faults=[{faults}]", "-m", "seed=range(9)"]
    limits = ["hydra.launcher.timeout_s=5", "hydra.launcher.memory_gb=2", "hydra.launcher.workers=2"]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "SNNEXP_ALLOW_TARGETS": "faults"}
    process = started(cwd, *RUN, *typed, *limits, **environment)
    wait_until(lambda: [*cwd.glob("outputs/sweeps/*/*/sweep.json")] and "failed" in statuses(cwd))
    process.kill()
    process.communicate()
    return cwd, snnexp("resume", str(home(cwd)), cwd=cwd, code=7, **environment)


def test_the_exit_of_a_worker_is_detected_while_its_child_runs() -> None:
    worker = Worker({})
    worker.command = [sys.executable, "-c", "import os, time; os.fork() or time.sleep(1000); os._exit(3)"]
    worker.start(Job([]), {})
    try:
        events: list[dict[str, Any]] = []
        wait_until(lambda: events.extend(worker.events()) or events)
        (event,) = events
        assert (event["exit_code"], "gone" in event) == (3, True)
    finally:
        worker.close()


def test_duplicate_signals_count_once(tmp_path: Path) -> None:
    """``timeout`` signals the process, and then its process group."""
    ledger = Ledger.create(tmp_path / "sweep", "x", SETTINGS)
    ledger.add(["seed=0"], {"seed": 0})
    worker = Worker({})
    program = """
def save(*_): say(ended=0, status="interrupted", exit_code=143, reason="saved"); say(idle=True)
signal.signal(15, save)
next(tasks)
os.kill(os.getppid(), 15)
time.sleep(0.01)
os.kill(os.getppid(), 15)
while True: time.sleep(1)
"""
    worker.command = [sys.executable, "-c", PREFIX + program]
    engine = Engine(
        ledger, ListSource([Job(ledger.points)]), [worker], Tasks(ledger), None, Display(Console(quiet=True), ledger)
    )
    with pytest.raises(InterruptedRunError):
        engine.run()
    assert [(point.status, point.reason) for point in ledger.points] == [("interrupted", "saved")]
    ledger.close()


def test_gpus_and_cores_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_visible_gpus", lambda: ["3", "5", "7"])
    monkeypatch.setattr(limits, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    def shares(**changes: Any) -> list[tuple[str, str | None]]:
        slots = driver.make_slots(tmp_path, {**SETTINGS, "workers": None, "threads": None, **changes}, 8, {"auto"})
        found = [slot.environment for slot in slots if isinstance(slot, Worker)]
        return [(one["OMP_NUM_THREADS"], one.get("CUDA_VISIBLE_DEVICES")) for one in found]

    assert shares() == [("2", "3"), ("2", "5"), ("2", "7")]
    assert shares(workers=4) == [("2", "3"), ("2", "5"), ("2", "7"), ("2", "3")]
    assert shares(workers=1, gpus=2) == [("3", "3,5")], "no more than OMP_NUM_THREADS"
    assert shares(gpus=0, threads=4) == [("4", "")] * 8
    monkeypatch.delenv("OMP_NUM_THREADS")
    (alone,) = driver.make_slots(tmp_path, {**SETTINGS, "workers": 1, "threads": None, "gpus": 0}, 8, {"auto"})
    assert isinstance(alone, Worker)
    assert "OMP_NUM_THREADS" not in alone.environment, "each run decides for itself"
    with pytest.raises(ConfigError, match=r"^hydra\.launcher\.gpus: got 4, but 3 are"):
        shares(gpus=4)


@pytest.mark.parametrize("way", ["ended by SIGKILL", "hang"])
def test_members_of_a_failed_stack_are_retried_alone(tmp_path: Path, way: str) -> None:
    ledger = Ledger.create(tmp_path / "sweep", "x", SETTINGS)
    for seed in range(3):
        ledger.add([f"seed={seed}"], {"seed": seed})
    worker = Worker({})
    program = """
for task in tasks:
    if "members" in task: WAY
    say(ended=0, status="finished", exit_code=0, metrics={}); say(idle=True)
"""
    program = program.replace("WAY", "time.sleep(60)" if way == "hang" else "os.kill(os.getpid(), 9)")
    worker.command = [sys.executable, "-c", PREFIX + program]
    display = Display(Console(quiet=True), ledger)
    Engine(ledger, ListSource([Job(ledger.points)]), [worker], Tasks(ledger), 0.2, display).run()
    assert [(point.status, point.how, point.reason) for point in ledger.points] == [("finished", "process", "")] * 3
    ledger.close()


@pytest.mark.slow
class TestCommand:
    def test_each_fault_ends_only_its_own_point(self, faulty: tuple[Path, Any]) -> None:
        cwd, _ = faulty
        ends = dict(zip(range(1, 7), WAYS, strict=True))
        for seed, point in enumerate(points(cwd)):
            assert f"seed={seed}" in point["overrides"]
            way = ends.get(seed)
            expected = {None: "finished", "hang": "timeout", "diverge": "diverged"}.get(way, "failed")
            assert (seed, point["status"]) == (seed, expected)
            assert REASONS.get(way, "") in point["reason"]
            run = record(home(cwd) / point["run"])
            assert run["seed"] == seed
            assert run["status"] != "running"
        assert len([*home(cwd).glob("runs/*/run.json")]) == 9

    def test_reasons_are_reported_immediately_and_in_the_table(self, faulty: tuple[Path, Any]) -> None:
        cwd, done = faulty
        live, table = done.stdout.split("\nseed ", 1)
        for point in points(cwd):
            if point["status"] != "finished":
                assert point["reason"] in table
        assert re.search(
            r"^point 2  seed=1  failed  loss: faults.Faulty raised ArithmeticError: a defect of the loss ", live, re.M
        )
        assert "3 finished, 1 diverged, 4 failed, 1 timeout" in table
        assert f"snnexp resume {home(cwd).relative_to(cwd)}" in table
        rows = list(csv.DictReader((home(cwd) / "summary.csv").read_text().splitlines()))
        assert [row["status"] for row in rows] == statuses(cwd)
        assert all(row["reason"] for row in rows if row["status"] != "finished")
        run = record(home(cwd) / points(cwd)[3]["run"])
        assert (run["status"], run["reason"]) == ("failed", points(cwd)[3]["reason"])

    def test_logs_are_in_the_run_directories(self, faulty: tuple[Path, Any]) -> None:
        cwd, _ = faulty
        by_seed = [home(cwd) / point["run"] / "train.log" for point in points(cwd)]
        assert "seed 0  on cpu, 1 thread" in by_seed[0].read_text()
        assert "raise ArithmeticError" in by_seed[1].read_text()
        assert not [*home(cwd).glob("runs/.point-*")]

    def test_an_interrupted_sweep_resumes_to_the_results_of_single_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        alone = tmp_path / "alone"
        alone.mkdir()
        long = [*RUN, "trainer.max_epochs=60"]
        one = ["hydra.launcher.workers=1", "hydra.launcher.threads=1"]
        process = started(tmp_path, *long, "-m", "seed=4,5", *one, "logger.save_every_s=0")
        wait_until(
            lambda: any(rows.stat().st_size for rows in tmp_path.glob("outputs/sweeps/*/*/runs/2*/metrics.jsonl"))
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert process.returncode == 130
        assert err == "snnexp: stopped by SIGINT\n"
        assert statuses(tmp_path) == ["interrupted", "pending"]
        assert "snnexp resume" in out
        assert main(["resume", str(home(tmp_path))]) == 0
        assert statuses(tmp_path) == ["finished"] * 2
        capsys.readouterr()
        assert main(["resume", str(home(tmp_path))]) == 0
        assert "all points have finished" in capsys.readouterr().out
        monkeypatch.chdir(alone)
        assert main([*long, "seed=4", "logger.save_every_s=0"]) == 0
        (single,) = (path.parent for path in alone.glob("outputs/*/*/run.json"))
        resumed = home(tmp_path) / points(tmp_path)[0]["run"]
        assert record(resumed)["resumed_at_step"][0] > 0
        assert content(resumed) == content(single)

    def test_a_terminal_shows_a_live_table(self, tmp_path: Path) -> None:
        lines = in_a_terminal(tmp_path, *RUN, "-m", "seed=0,1", "trainer.max_epochs=300", "hydra.launcher.workers=1")
        text = " ".join(" ".join(lines).split())
        assert re.search(r"1/2 points done 1 running best test/l1 0\.\d+ \(seed=\d\) 0:\d\d left", text)
        assert re.search(r"point \d seed=\d process step \d+, epoch \d+", text)
        assert "loss" not in text.replace("test/loss", "").replace("seed_mean_loss", ""), (
            "the output of runs is not shown"
        )


def test_launcher_settings_can_change_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[dict[str, Any]] = []
    monkeypatch.setattr(driver, "drive", lambda ledger, request, keys: driven.append(ledger.launcher) or 0)
    ledger = Ledger.create(tmp_path / "sweep", "x", SETTINGS)
    ledger.add(["seed=0"], config.plain(config.compose(["experiment=regression_sqrt"])))
    ledger.save()
    ledger.close()
    assert main(["resume", str(ledger.path), "hydra.launcher.workers=3", "hydra.launcher.timeout_s=1.5"]) == 0
    assert driven == [{**SETTINGS, "workers": 3, "timeout_s": 1.5}]
    for change in ("seed=1", "hydra.launcher.workers=0", "hydra.launcher.x=1", "hydra.sweeper.n_trials=5", "x"):
        assert main(["resume", str(ledger.path), change]) == 2
    assert len(driven) == 1


def test_an_untrusted_ledger_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ledger = Ledger.create(tmp_path / "sweep", "x", SETTINGS)
    cfg = config.plain(config.compose(["experiment=regression_sqrt"]))
    ledger.add(["seed=0"], {**cfg, "loss": {"_target_": "os.system", "command": f"touch {tmp_path / 'marker'}"}})
    ledger.save()
    ledger.close()
    assert main(["resume", str(ledger.path)]) == 2
    assert "loss._target_" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["hydra.launcher.workers=0"], "hydra.launcher.workers: got 0, must be "),
        (["hydra.launcher.timeout_s=-1"], "hydra.launcher.timeout_s: got -1, must be "),
        (["hydra/launcher=slurm"], "hydra.launcher.cluster: got slurm, but srun is not installed"),
        (["hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.partition='a b'"], "hydra.launcher."),
        (["hydra/launcher=basic"], "hydra/launcher: got basic, there are processes, slurm, stacked"),
        (["hydra/sweeper=basic"], "hydra/sweeper: got basic, "),
        (["hydra.launcher.wokers=2"], "hydra.launcher.wokers: unknown key"),
        (["+hydra.launcher.wokers=2"], "hydra.launcher.wokers: unknown key, did you mean hydra.launcher.workers?"),
        (["trainer=cpu", "hydra.launcher.gpus=2"], "hydra.launcher.gpus: got 2, but 0 are available for these points"),
        (
            [
                *("hydra/sweeper=optuna", "neuron.beta=interval(0.1,0.9)"),
                *("hydra.sweeper.sampler=grid", "hydra.sweeper.metric=test/l1"),
            ],
            "neuron.beta: an interval has infinitely many values",
        ),
    ],
)
def test_invalid_launcher_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, typed: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", "experiment=regression_sqrt", "-m", "seed=1,2", *typed]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"snnexp: {message}")
    assert len(error.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_a_shipped_sweep_requires_m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^sweep: seeds is a sweep; add -m$"):
        launch.train(["experiment=regression_sqrt", "sweep=seeds"])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("typed", "count"),
    [(["sweep=seeds", "experiment=regression_linear"], 10), (["sweep=learned_or_fixed", "seed=0"], 4)],
)
def test_number_of_points_of_shipped_sweeps(typed: list[str], count: int) -> None:
    chosen, launcher = prepare_sweep(typed)
    assert isinstance(chosen, list)
    assert len(chosen) == count
    assert launcher["kind"] == "processes"


def test_space_of_the_shipped_search() -> None:
    chosen, launcher = prepare_sweep(["sweep=beta_and_lr"])
    assert not isinstance(chosen, list)
    assert sorted(chosen.space()[2]) == ["neuron.beta", "optimizer.lr"]
    assert chosen.checked["data"]["val_size"] == 5000
    assert launcher["kind"] == "processes"


def test_means_over_seeds_and_the_best_point_are_printed(tmp_path: Path) -> None:
    def summary(*typed: list[str]) -> str:
        ledger = Ledger.create(tmp_path / f"a sweep of {len(typed)}", "x", SETTINGS)
        for value, overrides in enumerate(typed):
            point = ledger.add(overrides, {})
            point.status, point.metrics = "finished", {"test/l1": float(value)}
        screen = Console(file=io.StringIO(), width=200)
        Display(screen, ledger).end(to_go=False)
        ledger.close()
        return screen.file.getvalue()  # type: ignore[attr-defined]

    lines = summary(*([f"seed={seed}", f"x={x}"] for x in (1, 2) for seed in (0, 1, 2))).splitlines()
    (head,) = [index for index, line in enumerate(lines) if "mean test/l1" in line]
    assert [line.split() for line in lines[head + 1 : head + 3]] == [["1", "3", "1", "1"], ["2", "3", "4", "1"]]
    assert lines[head + 3].split() == ["best", "test/l1", "0", "seed=0", "x=1"]
    (command,) = [line for line in lines if "snnexp report" in line]
    assert Path(shlex.split(command)[-1]).name == "a sweep of 6"
    without = summary(["x=1"], ["x=2"])
    assert "mean test/l1" not in without
    assert "best test/l1 0" in without
    folds = summary(["data.fold=0"], ["data.fold=1"], ["data.fold=2"])
    assert "mean test/l1" in folds
    assert "best" not in folds


def test_best_point_by_metric() -> None:
    made = [Point([f"seed={i}"], "finished", metrics={"test/l1": 1 - i, "test/accuracy": i}, index=i) for i in range(3)]
    made.append(Point(["seed=9"], "diverged", metrics={"test/accuracy": 9.0}))
    assert best_point(made, None) is made[2]
    assert best_point(made, "test/l1") is made[2]
    assert best_point(made[:2], "test/accuracy") is made[1]
    assert best_point([], None) is None
