"""Runs whose batches come from data workers end: in a sweep, a stack and a search too, and whatever a worker does."""

import tempfile

import pytest
from shell import OUTSIDE, PARTS, Ended, Shell, record

BLOBS = ("network.hidden=[4]", "num_steps=2", "logger=jsonl", "trainer=cpu", "data.num_workers=1")
TROUBLE = ("train", *OUTSIDE, "data=trouble", *BLOBS)
BOUND = "hydra.launcher.timeout_s=30"
"""A point that hangs is ended, and the sweep does not finish."""


def sweep(snnexp: Shell, *arguments: str) -> Ended:
    return snnexp(
        *("train", "-m", *OUTSIDE, "data=blobs", "data.train=16", *BLOBS, "hydra.launcher.workers=1", BOUND),
        *arguments,
        PYTHONPATH=str(PARTS),
    )


def statuses(snnexp: Shell) -> list[str]:
    return [point["status"] for point in snnexp.points()]


@pytest.mark.slow
def test_a_sweep_ends(snnexp: Shell) -> None:
    assert sweep(snnexp, "seed=0,1").code == 0
    assert statuses(snnexp) == ["finished"] * 2


@pytest.mark.slow
def test_a_sweep_that_would_be_stacked_ends(snnexp: Shell) -> None:
    assert sweep(snnexp, "seed=0,1", "hydra/launcher=stacked").code == 0
    assert statuses(snnexp) == ["finished"] * 2


@pytest.mark.slow
def test_a_search_ends(snnexp: Shell) -> None:
    words = ("data.val=8", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.001,0.01)")
    words += ("hydra.sweeper.metric=val/loss",)
    assert sweep(snnexp, *words).code == 0
    assert statuses(snnexp) == ["finished"] * 2


@pytest.mark.slow
def test_a_batch_that_cannot_be_sent_ends_the_run(snnexp: Shell) -> None:
    ended = snnexp(*TROUBLE, "data.kind=cramped")
    assert (ended.code, ended.key) == (74, "/dev/shm")
    assert record(snnexp.run())["status"] == "failed"
    assert record(snnexp.run())["exit_code"] == 74


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run(snnexp: Shell) -> None:
    ended = snnexp(*TROUBLE, "data.kind=deadly")
    assert (ended.code, ended.key) == (4, "data.num_workers")
    assert record(snnexp.run())["status"] == "failed"


@pytest.mark.slow
def test_a_slow_worker_is_no_dead_one(snnexp: Shell) -> None:
    assert snnexp(*TROUBLE, "data.kind=slow", "data.train=32", "data.after=1", SLOW_S="7").code == 0
    assert record(snnexp.run())["status"] == "finished"


def test_a_path_that_no_socket_may_have_is_told_before_anything_is_written(
    snnexp: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = snnexp.folder / ("x" * 110)
    long.mkdir()
    # read from TMPDIR again
    monkeypatch.setattr(tempfile, "tempdir", None)
    ended = snnexp(*TROUBLE, "data.kind=slow", TMPDIR=str(long))
    assert (ended.code, ended.key, ended.out) == (2, "data.num_workers", [])
    assert [*snnexp.folder.iterdir()] == [long]
