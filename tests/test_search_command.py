"""Searches on the command line: shared between processes, killed, interrupted, and resumed."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from postgres import PASSWORD, server
from test_cli import only_run, record, snnexp
from test_sweeps import RUN, home, points, started, statuses, wait_until

from snnexp import text
from snnexp.search import storage
from snnexp.sweeps.ledger import TAKEN_OVER

pytestmark = pytest.mark.slow

SEARCH = [
    *RUN,
    "hydra/sweeper=optuna",
    "optimizer.lr=tag(log,interval(1e-5,1e-1))",
    "hydra.launcher.workers=1",
    "hydra.sweeper.metric=test/l1",
    "-m",
]
ENDS = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}


def trials(url: str, name: str) -> list[FrozenTrial]:
    opened = storage.open_storage(url)
    try:
        return optuna.load_study(study_name=name, storage=opened).trials
    finally:
        storage.close(opened)


def runs(cwd: Path) -> list[Path]:
    # skip temporary directories of runs that are being created
    return sorted(path.parent for path in home(cwd).glob("runs/[0-9]*/run.json"))


def has_running_point(cwd: Path) -> bool:
    return bool([*cwd.glob("outputs/sweeps/*/*/sweep.json")]) and "running" in statuses(cwd)


def kill_within_a_point(driver: "subprocess.Popen[str]", cwd: Path) -> dict[str, Any]:
    """Kill a driver and its worker while a point trains; return the point."""

    def trains() -> bool:
        assert driver.poll() is None, driver.communicate()
        return has_running_point(cwd) and any(record(run)["status"] == "running" for run in runs(cwd))

    while True:
        wait_until(trains)
        run = runs(cwd)[-1]
        worker = int((run / ".lock").read_text())
        os.kill(worker, signal.SIGSTOP)
        if record(run)["status"] == "running":
            break
        os.kill(worker, signal.SIGCONT)
    driver.kill()
    os.killpg(worker, signal.SIGKILL)
    driver.wait()
    (point,) = [point for point in points(cwd) if point["status"] == "running"]
    return point


class Shared:
    """Two processes share a study; one is killed during a point, and the other finishes the study."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url, self.said = url, ""
        self.killed, self.other = folder / "killed", folder / "other"
        typed = [*SEARCH, "hydra.sweeper.n_trials=12", "hydra.sweeper.study=s", f"hydra.sweeper.storage={url}"]
        typed += ["hydra.sweeper.heartbeat_s=0.5", "hydra.sweeper.grace_s=3", "hydra.sweeper.startup_trials=3"]
        drivers = []
        for cwd in (self.killed, self.other):
            cwd.mkdir()
            drivers.append(started(cwd, *typed))
        doomed, survivor = drivers
        self.lost = kill_within_a_point(doomed, self.killed)
        for driver in drivers:
            out, err = driver.communicate(timeout=200)
            self.said += out + err
        assert survivor.returncode == 0, self.said
        self.runs = runs(self.killed)

    def resumed(self, *arguments: str, code: int) -> "subprocess.CompletedProcess[str]":
        done = snnexp("resume", str(home(self.killed)), *arguments, cwd=self.killed, code=code)
        self.said += done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with server() as url:
        yield Shared(tmp_path_factory.mktemp("shared"), url)


class TestShared:
    def test_each_place_is_done_once(self, shared: Shared) -> None:
        found = trials(shared.url, "s")
        done = [trial for trial in found if trial.state in ENDS.values()]
        assert sorted(trial.user_attrs["place"] for trial in done) == list(range(12))
        assert all(trial.state.is_finished() for trial in found)
        lost = found[shared.lost["trial"]]
        (again,) = [trial for trial in done if trial.user_attrs["place"] == lost.user_attrs["place"]]
        assert lost.state == TrialState.FAIL
        assert again.params == lost.params

    def test_ledgers_and_study_agree(self, shared: Shared) -> None:
        found = trials(shared.url, "s")
        noted = [(cwd, point) for cwd in (shared.killed, shared.other) for point in points(cwd)]
        ended = {point["trial"]: (cwd, point) for cwd, point in noted if point["status"] in ENDS}
        assert len(ended) == 12 == len(noted) - 1
        assert {trial.number for trial in found if trial.state in ENDS.values()} == ended.keys()
        for number, (cwd, point) in ended.items():
            assert found[number].state == ENDS[point["status"]]
            assert f"optimizer.lr={found[number].params['optimizer.lr']}" in point["overrides"]
            if point["status"] == "finished":
                assert found[number].value == record(home(cwd) / point["run"])["metrics"]["test/l1"]

    def test_the_killed_sweep_records_that_its_point_was_taken_over(self, shared: Shared) -> None:
        refused = shared.resumed(code=2).stderr
        assert refused.startswith("snnexp: hydra.sweeper.storage: ")
        assert refused.count("\n") == 1
        for _ in range(2):
            out = shared.resumed(f"hydra.sweeper.storage={shared.url}", code=0).stdout
            (point,) = [point for point in points(shared.killed) if point["status"] not in ENDS]
            assert point["trial"] == shared.lost["trial"]
            assert (point["status"], point["reason"]) == ("failed", TAKEN_OVER)
            assert TAKEN_OVER in out
            assert TAKEN_OVER in (home(shared.killed) / "summary.csv").read_text()
        assert runs(shared.killed) == shared.runs
        for cwd in (shared.killed, shared.other):
            assert sorted(home(cwd) / point["run"] for point in points(cwd)) == runs(cwd), "each point has one"
        assert len([trial for trial in trials(shared.url, "s") if trial.state in ENDS.values()]) == 12

    def test_the_password_is_written_nowhere(self, shared: Shared) -> None:
        written = [path for cwd in (shared.killed, shared.other) for path in cwd.rglob("*") if path.is_file()]
        assert len(written) > 100
        said = [shared.said.encode(), *(path.read_bytes() for path in written)]
        assert any(b"optimizer.lr=" in text for text in said)
        for secret in (PASSWORD, PASSWORD.replace("/", "%2F").replace("@", "%40")):
            assert not [text for text in said if secret.encode() in text]


def test_an_interrupted_search_resumes_and_its_best_point_is_reproducible(tmp_path: Path) -> None:
    wanted = ["hydra.sweeper.n_trials=8", "hydra.sweeper.sampler=random", "hydra.sweeper.startup_trials=2"]
    driver = started(tmp_path, *SEARCH, "trainer.max_epochs=30", "logger.save_every_s=0", *wanted)
    wait_until(lambda: has_running_point(tmp_path) and len(runs(tmp_path)) > 1)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=100)
    assert (driver.returncode, err) == (130, "snnexp: stopped by SIGINT\n"), out
    before = points(tmp_path)
    assert len(before) < 8
    assert before[-1]["status"] == "interrupted"
    done = snnexp("resume", str(home(tmp_path)), cwd=tmp_path)
    after = points(tmp_path)
    assert set(statuses(tmp_path)) == {"finished", "pruned"}, "and the exit code is 0"
    assert [point["trial"] for point in after] == list(range(8))
    assert [point["run"] for point in after[: len(before)]] == [point["run"] for point in before]
    assert len(runs(tmp_path)) == 8
    found = trials(f"sqlite:///{home(tmp_path)}/study.db", home(tmp_path).name)
    assert [trial.state for trial in found] == [ENDS[point["status"]] for point in after]
    value, best = min((trial.value, trial.number) for trial in found if trial.state == TrialState.COMPLETE)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("best test/l1 ")]
    assert line.split()[2] == f"{text.format_number(value)}:"
    again = tmp_path / "again"
    again.mkdir()
    command = line.partition(": snnexp ")[2].split()
    snnexp(*command[:2], str(tmp_path / command[2]), *command[3:], cwd=again)
    rows = [(run / "metrics.jsonl").read_bytes() for run in (home(tmp_path) / after[best]["run"], only_run(again))]
    assert rows[0] == rows[1] != b""


def test_pruned_members_do_not_affect_the_others(tmp_path: Path) -> None:
    wanted = ["hydra.sweeper.n_trials=24", "hydra.sweeper.sampler=random", "hydra.sweeper.startup_trials=2"]
    arguments = [*SEARCH, "trainer.max_epochs=6", *wanted, "hydra/launcher=stacked", "hydra.launcher.members=8"]
    ways = {way: tmp_path / way for way in ("true", "false")}
    for way, cwd in ways.items():
        cwd.mkdir()
        snnexp(*arguments, f"hydra.sweeper.prune={way}", cwd=cwd)
    pruned, whole = (points(cwd) for cwd in ways.values())
    assert [point["overrides"] for point in pruned] == [point["overrides"] for point in whole]
    assert {point["status"] for point in whole} == {"finished"}
    assert [point["status"] for point in pruned[:8]] == ["finished"] * 8, "startup trials are not pruned"
    assert {point["status"] for point in pruned[8:]} == {"finished", "pruned"}
    found = trials(f"sqlite:///{home(ways['true'])}/study.db", home(ways["true"]).name)
    assert [trial.state for trial in found] == [ENDS[point["status"]] for point in pruned]
    for left, other in zip(pruned, whole, strict=True):
        assert left["how"] == other["how"] == "stack of 8"
        run = home(ways["true"]) / left["run"]
        mine, all_rows = (run / "metrics.jsonl", home(ways["false"]) / other["run"] / "metrics.jsonl")
        assert all_rows.read_text().startswith(mine.read_text())
        assert (mine.read_text() == all_rows.read_text()) == (left["status"] == "finished")
        ended = record(run)
        expected = ("interrupted", 0, left["reason"]) if left["status"] == "pruned" else ("finished", 0, "")
        assert (ended["status"], ended["exit_code"], ended.get("reason", "")) == expected
