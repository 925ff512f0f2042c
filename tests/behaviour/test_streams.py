"""Streams, signals and variables that a shell, a script or a cluster sets around a run."""

import os
import re
import signal
import subprocess

import pytest
from shell import OUTSIDE, Shell, environment, record, rows, wait_until

RUN = ("train", "experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=3", "logger=jsonl")
pytestmark = pytest.mark.slow


def finished(shell: Shell) -> bool:
    return record(shell.run())["status"] == "finished"


def test_a_reader_that_leaves_does_not_end_a_run(shell: Shell, snnexp: Shell) -> None:
    assert snnexp(*RUN, "trainer.max_epochs=3").code == 0
    command = f"set -o pipefail; {shell.program} resume {shell.run()} trainer.max_epochs=6 2>&1 | true"
    # that it has another number of threads is told on stderr
    env = environment(OMP_NUM_THREADS="2")
    done = subprocess.run(["bash", "-c", command], cwd=shell.folder, env=env, timeout=120)
    assert done.returncode == 0
    assert finished(shell)
    assert rows(shell.run())[-1]["epoch"] == 6


def test_forced_colours_bring_no_live_display_into_a_file(shell: Shell) -> None:
    ended = shell(*RUN, FORCE_COLOR="1")
    assert ended.code == 0
    codes = re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", "\n".join(ended.out + ended.err))
    assert {code[-1] for code in codes} <= {"m"}


def test_a_signal_that_the_parent_ignores_is_ignored(shell: Shell) -> None:
    words = ("data=trouble", "data.kind=slow", "data.train=32", "data.after=1", "network.hidden=[4]", "num_steps=2")
    process = subprocess.Popen(
        [shell.program, "train", *OUTSIDE, *words, "trainer=cpu", "logger=jsonl"],
        cwd=shell.folder,
        env=environment(SLOW_S="2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        wait_until((shell.folder / "sleeping").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    assert finished(shell)


def test_a_closed_stdout_does_not_end_a_run(shell: Shell) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shell.program} {' '.join(RUN)} >&-"], cwd=shell.folder, env=environment(), timeout=120
    )
    assert done.returncode == 0
    assert finished(shell)


def test_a_run_on_one_device_trains_within_a_job_of_several_tasks(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    # as sbatch --ntasks=8 sets them, outside of srun
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
    assert shell(*RUN, **job, SLURM_LOCALID="0", SLURM_NODEID="0").code == 0
    assert finished(shell)
