"""Runs whose batches come from data workers end: in a sweep, a stack and a search too."""

import pytest
from shell import OUTSIDE, PARTS, Ended, Shell

WORKERS = ("data=blobs", "data.num_workers=1", "data.train=16", "network.hidden=[4]", "num_steps=2", "logger=jsonl")
BOUND = "hydra.launcher.timeout_s=30"
"""A point that hangs is ended, and the sweep does not finish."""


def sweep(snnexp: Shell, *arguments: str) -> Ended:
    return snnexp(
        *("train", "-m", *OUTSIDE, *WORKERS, "trainer=cpu", "hydra.launcher.workers=1", BOUND, *arguments),
        PYTHONPATH=str(PARTS),
    )


def statuses(snnexp: Shell) -> list[str]:
    return [point["status"] for point in snnexp.points()]


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
    assert sweep(snnexp, *words).code == 0
    assert statuses(snnexp) == ["finished"] * 2
