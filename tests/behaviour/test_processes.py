"""Several processes that train one run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shell import OUTSIDE, Shell, environment, record, rows, wait_until

RUN = ("train", *OUTSIDE, "network.hidden=[4]", "num_steps=2", "logger=jsonl", "trainer.log_every_n_steps=1")
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="ranks started by torchrun are not supported yet")
def test_torchrun_may_start_the_processes(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "snnexp.cli", *RUN, "data=blobs", *DDP]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, timeout=120)
    assert done.returncode == 0
    assert len([*tmp_path.glob("outputs/*/*/run.json")]) == 1


@pytest.mark.slow
def test_variables_of_another_launcher_do_not_silence_a_run_on_one_device(shell: Shell) -> None:
    assert shell(*RUN, "data=blobs", "trainer=cpu", LOCAL_RANK="1").code == 0
    assert [row["step"] for row in rows(shell.run()) if "train/loss" in row] == [0, 1, 2, 3]


@pytest.mark.slow
def test_nor_let_them_write_to_a_run_that_is_in_use(shell: Shell) -> None:
    words = ("data=trouble", "data.kind=slow", "data.after=3", "trainer=cpu")
    with shell.started(*RUN, *words, SLOW_S="10000") as process:
        wait_until(lambda: any(rows(run) for run in shell.runs()))
        before = (shell.run() / "run.json").read_bytes()
        assert shell("resume", str(shell.run()), LOCAL_RANK="1").code == 6
        assert (shell.run() / "run.json").read_bytes() == before
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "is killed", "is told to stop while it waits"])
def test_a_run_ends_when_one_of_its_processes(shell: Shell, how: str) -> None:
    kind = "broken" if how == "raises" else "slow"
    with shell.started(*RUN, *DDP, "data=trouble", f"data.kind={kind}", "data.after=3", SLOW_S="10000") as process:
        if how != "raises":
            wait_until(lambda: any(rows(run) for run in shell.runs()))
            (rank,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1:]
            if how == "is killed":
                os.kill(int(rank), signal.SIGKILL)
            else:
                process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    stopped = how.startswith("is told")
    assert process.returncode == (143 if stopped else 1)
    assert record(shell.run())["status"] == ("interrupted" if stopped else "failed")
    assert err.splitlines()[-1].startswith("snnexp: ")
