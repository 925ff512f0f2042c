"""Several processes that train one run."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from shell import OUTSIDE, Shell, environment, record, rows, wait_until

pytestmark = pytest.mark.slow

RUN = ("train", *OUTSIDE, "network.hidden=[4]", "num_steps=2", "logger=jsonl", "trainer.log_every_n_steps=1")
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def three_steps_are_done(shell: Shell) -> bool:
    return any([row["step"] for row in rows(run) if "train/loss" in row] == [0, 1, 2] for run in shell.runs())


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_torchrun_may_start_the_processes(shell: Shell) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    process = subprocess.Popen(
        [*torchrun, shell.program, *RUN, "data=blobs", *DDP],
        cwd=shell.folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.wait(120) == 0
    finally:
        # each rank leads a session of its own
        for leader in (*children(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
        process.wait()
    assert record(shell.run())["status"] == "finished"


def test_variables_of_another_launcher_neither_silence_a_run_nor_let_another_write_to_it(shell: Shell) -> None:
    words = ("data=trouble", "data.kind=slow", "data.after=3", "trainer=cpu")
    with shell.started(*RUN, *words, LOCAL_RANK="1", SLOW_S="10000") as process:
        wait_until(lambda: three_steps_are_done(shell))
        before = (shell.run() / "run.json").read_bytes()
        assert shell("resume", str(shell.run()), LOCAL_RANK="1").code == 6
        assert (shell.run() / "run.json").read_bytes() == before
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", ["raises", "is killed", "is told to stop while it waits"])
def test_a_run_ends_when_one_of_its_processes(shell: Shell, how: str) -> None:
    kind = "broken" if how == "raises" else "slow"
    with shell.started(*RUN, *DDP, "data=trouble", f"data.kind={kind}", "data.after=3", SLOW_S="10000") as process:
        if how != "raises":
            wait_until(lambda: three_steps_are_done(shell))
            (rank,) = children(process.pid)
            if how == "is killed":
                os.kill(rank, signal.SIGKILL)
            else:
                process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        wait_until(lambda: is_gone(process.pid), timeout_s=10)
    stopped = how.startswith("is told")
    assert process.returncode == (143 if stopped else 1)
    assert record(shell.run())["status"] == ("interrupted" if stopped else "failed")
    assert err.splitlines()[-1].startswith("snnexp: ")
