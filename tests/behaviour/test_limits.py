"""Limits of the machine and of a process, and numbers at the ends of what 32 bits hold."""

import os
import resource
import subprocess

import pytest
from shell import OUTSIDE, Shell, environment, lines, record

REGRESSION = ("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=2", "network.hidden=[4]")
BLOBS = (*OUTSIDE, "data=blobs", "network.hidden=[4]", "num_steps=2", "logger=jsonl", "trainer=cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "key"),
    [
        ((*BLOBS, "data.num_workers=1024"), "data.num_workers"),
        (("-m", *REGRESSION, "seed=1,2", "hydra.launcher.workers=10000"), "hydra.launcher.workers"),
        (
            ("-m", *REGRESSION, "seed=1,2", "hydra/launcher=stacked", "hydra.launcher.workers=65"),
            "hydra.launcher.workers",
        ),
    ],
)
def test_no_more_processes_are_started_than_a_machine_bears(
    snnexp: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], key: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(2))
    ended = snnexp("train", *words)
    assert (ended.code, ended.key) == (2, key)
    assert os.listdir(snnexp.folder) == []


def test_data_workers_need_open_files(snnexp: Shell) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        ended = snnexp("train", *BLOBS, "data.num_workers=8")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (ended.code, ended.key) == (2, "data.num_workers")
    assert "ulimit -n" in ended.err[0]


def limited(shell: Shell, limit: str, *arguments: str) -> tuple[int, list[str]]:
    script = f'ulimit {limit}; exec "$0" "$@"'
    command = ["sh", "-c", script, shell.program, *arguments]
    # Python itself would keep the part of a compiled module that it could write
    env = environment(PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(command, cwd=shell.folder, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, lines(done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("doctor",), ("train", *REGRESSION)])
def test_memory_that_may_not_be_mapped_is_told(shell: Shell, command: tuple[str, ...]) -> None:
    code, (said,) = limited(shell, "-v 2500000", *command)
    assert code == 2
    assert said.startswith("snnexp: ulimit -v: ")


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_told_once(shell: Shell) -> None:
    code, said = limited(shell, "-f 8", "train", *REGRESSION)
    assert (code, len(said)) == (74, 1)


@pytest.mark.parametrize("mask", [0o777, 0o700, 0o222])
def test_what_is_made_belongs_to_its_owner(snnexp: Shell, mask: int) -> None:
    before = os.umask(mask)
    try:
        ended = snnexp("train", *REGRESSION)
    finally:
        os.umask(before)
    assert (ended.code, ended.key) == (2, "umask")
    assert os.listdir(snnexp.folder) == []


def test_one_batch_is_one_batch(snnexp: Shell) -> None:
    ended = snnexp("train", *REGRESSION, "debug=batch", "trainer.max_epochs=2147483647")
    assert (ended.code, ended.key) == (2, "trainer.max_epochs")


class TestExtremes:
    @pytest.mark.parametrize(
        ("choice", "key"),
        [
            ("surrogate=atan", "surrogate.alpha"),
            ("surrogate=super_spike", "surrogate.alpha"),
            ("surrogate=fast_sigmoid", "surrogate.slope"),
            ("surrogate=sigmoid", "surrogate.slope"),
            ("surrogate=triangular", "surrogate.width"),
            ("neuron=parametrized_lif", "neuron.dt"),
        ],
    )
    @pytest.mark.parametrize("value", ["1e-38", "1e38"])
    def test_scales_beyond_what_can_be_inverted_are_refused(
        self, snnexp: Shell, choice: str, key: str, value: str
    ) -> None:
        ended = snnexp("train", *BLOBS, choice, f"{key}={value}")
        assert (ended.code, ended.key) == (2, key)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "words",
        [
            ("surrogate=atan", "surrogate.alpha=1e30"),
            ("surrogate=atan", "surrogate.alpha=1e-30"),
            ("optimizer.betas=[0,0]",),
            ("optimizer.betas=[0.9,0]",),
        ],
    )
    def test_what_lies_within_trains_or_diverges(self, snnexp: Shell, words: tuple[str, ...]) -> None:
        code = snnexp("train", *BLOBS, *words).code
        assert code in (0, 3)
        assert record(snnexp.run())["exit_code"] == code
