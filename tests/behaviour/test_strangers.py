"""Run directories and sweeps that somebody else has made."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shell import Shell, wait_until
from test_processes import RUN, three_steps_are_done

from snnexp import experiment


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl")
    return experiment.run(experiment.compose(words), parent=tmp_path_factory.mktemp("runs")).path


@pytest.fixture
def run(snnexp: Shell, made: Path) -> Path:
    return shutil.copytree(made, snnexp.folder / "outputs" / "regression_sqrt" / made.name)


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        pytest.fail("waits for ever")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


TEMPORARY = (
    "train.log",
    ".run.json.tmp",
    ".config.yaml.tmp",
    ".metrics.jsonl.tmp",
    "checkpoints/.last.ckpt.tmp",
    "checkpoints/.last.ckpt.sha256.tmp",
    "probe/.last.npz.tmp",
    "tensorboard/hparams.yaml",
)


@pytest.mark.slow
def test_a_pipe_is_not_waited_for(snnexp: Shell, run: Path) -> None:
    for number, name in enumerate(TEMPORARY):
        copy = shutil.copytree(run, snnexp.folder / f"copy{number}")
        (copy / name).unlink(missing_ok=True)
        (copy / name).parent.mkdir(exist_ok=True)
        os.mkfifo(copy / name)
        assert snnexp("resume", str(copy), "trainer.max_epochs=2").code == 5
        assert snnexp("report", str(copy)).code == 0


@pytest.mark.parametrize("kind", ["hard link", "link", "pipe", "file"])
def test_a_report_writes_through_nothing_that_is_there(snnexp: Shell, run: Path, kind: str) -> None:
    mine = snnexp.folder / "mine"
    mine.write_text("mine")
    name = ".report.html.tmp"
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "file":
        (run / name).write_text("left by a process that was killed")
    else:
        (os.link if kind == "hard link" else os.symlink)(mine, run / name)
    assert snnexp("report", str(run)).code == 0
    assert mine.read_text() == "mine"
    assert (run / "report.html").stat().st_nlink == 1


def test_metrics_of_gigabytes_are_not_read(snnexp: Shell, run: Path) -> None:
    os.truncate(run / "metrics.jsonl", 6 * 2**30)
    assert snnexp("resume", str(run), "trainer.max_epochs=2").code == 5
    assert snnexp("runs", str(run)).code == 0
    assert snnexp("report", str(run)).code == 0


def test_a_report_leaves_out_arrays_of_any_size(snnexp: Shell, run: Path) -> None:
    (run / "probe").mkdir()
    np.savez(run / "probe" / "last.npz", **{"parameter/hidden1/beta": np.zeros(60_000_000, np.uint8)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert snnexp("report", str(run)).code == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19
    assert "last.npz" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_run_is_not_shared_when_its_lock_is_deleted(snnexp: Shell, shell: Shell) -> None:
    words = ("data=trouble", "data.kind=slow", "data.after=3", "trainer=cpu")
    with shell.started(*RUN, *words, SLOW_S="10000") as process:
        wait_until(lambda: three_steps_are_done(shell))
        run = str(shell.run())
        before = (shell.run() / "run.json").read_bytes()
        first = {"SNNEXP_FIRST_PROCESS": str(os.getppid()), "SNNEXP_RUN_DIR": run}
        assert snnexp("resume", run, **first).code == 6
        (shell.run() / ".lock").unlink()
        assert snnexp("resume", run).code == 6
        (listed,) = json.loads("\n".join(snnexp("runs", ".", "--json").out))
        assert listed["status"] == "running"
        (shell.run() / ".lock").touch()
        assert snnexp("resume", run).code == 6
        assert (shell.run() / "run.json").read_bytes() == before
        process.kill()
        process.communicate()
        (listed,) = json.loads("\n".join(snnexp("runs", ".", "--json").out))
        assert listed["status"] == "killed", "also where data workers outlive it"
