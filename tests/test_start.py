"""The start of runs, and what failed starts leave behind."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import commands
import pytest
from test_cli import record, snnexp
from test_sweeps import home, points

from snnexp.config import compose
from snnexp.errors import InterruptedRunError
from snnexp.record.run import Run
from snnexp.training import execute, stacked, start
from snnexp.training.start import Start

TINY = ("experiment=regression_sqrt", "network.hidden=[4]", "trainer.max_epochs=3", "logger=jsonl", "trainer=cpu")


def test_a_prepared_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = Start.new(compose(["experiment=regression_sqrt"]), ["experiment=regression_sqrt"])
    start.open()
    start.build()
    assert not start.run.published
    assert [*tmp_path.iterdir()] == []
    start.begin()
    assert start.run.published
    assert Run(start.run.path).in_use()
    assert Run(start.run.path).overrides() == ["experiment=regression_sqrt"]
    start.run.close()


def test_a_run_that_cannot_be_resumed_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything that may fail or take long precedes the first change of its record."""
    path = execute.run(compose([*TINY]), parent=tmp_path).path
    with open(path / "metrics.jsonl", "a") as rows:
        rows.write('{"step": 99, "epoch": 9, "train/loss": 1.0}\n')
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def interrupted() -> None:
        raise InterruptedRunError(signal.SIGTERM)

    monkeypatch.setattr(start, "git", interrupted)
    with pytest.raises(InterruptedRunError):
        execute.resume(path, ["trainer.max_epochs=4"])
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_ids_in_use_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Run.prepare(tmp_path, "{}", []) for _ in range(2))
    second.path = first.path
    assert first.publish({}).path != second.publish({}).path


@pytest.mark.slow
def test_a_run_killed_before_it_begins_leaves_nothing(tmp_path: Path) -> None:
    script = (
        f"{commands.SCRIPT}import os, signal; from snnexp import experiment; from snnexp.training import start\n"
        "start.build = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "experiment.run(experiment.compose(['experiment=regression_sqrt']))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == -signal.SIGKILL
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_point_without_data_has_a_directory_with_the_reason(tmp_path: Path) -> None:
    def command(*words: str, code: int = 0) -> str:
        allowed = {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
        done = snnexp(*words, cwd=tmp_path, code=code, SNNEXP_ALLOW_TARGETS="faults", **allowed)
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    late = ("train", *TINY, "data._target_=faults.late_data", "+data.file=there")
    output = command(*late, "-m", "seed=0,1", code=7)
    assert output.count("failed  there: no such file") == 4, "when it ends, and in the table"
    assert [point["exit_code"] for point in points(tmp_path)] == [4, 4]
    found = [home(tmp_path) / point["run"] for point in points(tmp_path)]
    for run, seed in zip(found, (0, 1), strict=True):
        kept = record(run)
        assert (kept["status"], kept["exit_code"], kept["seed"]) == ("failed", 4, seed)
        assert kept["reason"] == "there: no such file"
        assert not Run(run).in_use()
    command("report", str(home(tmp_path)))
    command("report", str(found[0]))
    (tmp_path / "there").touch()
    command("resume", str(home(tmp_path)))
    assert [home(tmp_path) / point["run"] for point in points(tmp_path)] == found
    assert [record(run)["status"] for run in found] == ["finished"] * 2
    command(*late, "seed=0")
    (alone,) = tmp_path.glob("outputs/regression_sqrt/*")
    assert (alone / "metrics.jsonl").read_bytes() == (found[0] / "metrics.jsonl").read_bytes()


def test_a_member_without_data_has_one_too(tmp_path: Path, tiny_mnist: Path) -> None:
    words = ["experiment=mnist_leaky", "network.hidden=[4]", "data.batch_size=8", "logger=jsonl", "trainer=cpu"]
    roots = ["nowhere", str(tiny_mnist), str(tiny_mnist)]
    cfgs = [compose([*words, f"seed={seed}", f"data.root={root}"]) for seed, root in enumerate(roots)]
    created: dict[int, Path] = {}
    ends: dict[int, stacked.Outcome] = {}
    stacked.train([stacked.Point(cfg, []) for cfg in cfgs], tmp_path, created.__setitem__, ends.__setitem__)
    assert [ends[index].status for index in range(3)] == ["failed", "finished", "finished"]
    run = ends[0].run
    assert run is not None
    assert (record(run)["status"], record(run)["exit_code"]) == ("failed", 4)
    assert record(run)["reason"] == ends[0].reason
    assert len([*tmp_path.glob("*/run.json")]) == 3


def test_a_member_locked_by_another_process_is_not_changed(tmp_path: Path) -> None:
    cfgs = [compose([*TINY, f"seed={seed}"]) for seed in range(2)]
    ends: dict[int, stacked.Outcome] = {}
    stacked.train([stacked.Point(cfg, []) for cfg in cfgs], tmp_path, lambda *created: None, ends.__setitem__)
    first, second = ends[0].run, ends[1].run
    assert first is not None
    assert second is not None
    before = (first / "run.json").read_bytes()
    script = "import sys; from pathlib import Path; from snnexp.record.run import Run\n"
    script += "run = Run(Path(sys.argv[1])); run.lock(); print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script, str(first)], **pipes) as other:  # type: ignore[call-overload]
        other.stdout.readline()
        longer = [compose([*TINY, f"seed={seed}", "trainer.max_epochs=4"]) for seed in range(2)]
        members = [
            stacked.Point(cfg, [], run, ["trainer.max_epochs=4"])
            for cfg, run in zip(longer, (first, second), strict=True)
        ]
        stacked.train(members, tmp_path, lambda *created: None, ends.__setitem__)
        assert (ends[0].status, ends[0].exit_code) == ("failed", 6)
        assert ends[1].status == "finished"
        assert (first / "run.json").read_bytes() == before
        other.communicate(b"")


@pytest.mark.slow
def test_a_finished_run_is_not_marked_as_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record_success = execute.record_success

    def and_then_a_signal(*given: Any) -> None:
        record_success(*given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(execute, "record_success", and_then_a_signal)
    with pytest.raises(InterruptedRunError):
        execute.run(compose([*TINY]))
    (run,) = tmp_path.glob("outputs/*/*")
    assert (record(run)["status"], record(run)["exit_code"]) == ("finished", 0)


def test_a_signal_at_any_instruction_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnexp.record.run.versions", dict)
    monkeypatch.setattr("snnexp.record.run.git", lambda: None)
    cfg = compose([*TINY])
    parts = Start.new(cfg, []).build()
    counts = {"nothing": 0, "interrupted": 0}
    for place in itertools.count():
        folder = tmp_path / str(place)
        start = Start.new(cfg, [], folder)
        start.parts = parts
        try:
            with interrupted_at(place, (Start.begin, Run.publish, Run._rename)):
                start.begin()
            break
        except InterruptedRunError as error:
            start.fail(error)
        finally:
            start.run.close()
        left = [*folder.iterdir()] if folder.exists() else []
        assert left == ([start.run.path] if start.run.published else []), place
        for run in left:
            assert (record(run)["status"], record(run)["exit_code"]) == ("interrupted", 143), place
        counts["interrupted" if left else "nothing"] += 1
    assert all(counts.values())


@contextmanager
def interrupted_at(place: int, functions: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Raise the exception of a signal before the n-th instruction of some functions."""
    codes, left = {function.__code__ for function in functions}, iter(range(place, -1, -1))

    def traced(frame: FrameType, event: str, argument: object) -> Any:
        frame.f_trace_opcodes = frame.f_code in codes
        if event == "opcode" and next(left, None) == 0:
            raise InterruptedRunError(signal.SIGTERM)
        return traced if frame.f_trace_opcodes else None

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        yield
    finally:
        sys.settrace(before)
