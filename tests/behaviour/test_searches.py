"""What a search goes by, and that it stays the same search."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from shell import OUTSIDE, Shell, record, rows, typed

SEARCH = ("train", "-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0.001,0.01)", "hydra.sweeper.sampler=random")
MNIST = (*SEARCH, "experiment=mnist_leaky")
BLOBS = (
    *(*SEARCH, *OUTSIDE, "data=blobs", "network.hidden=[4]", "num_steps=3", "trainer=cpu", "logger=jsonl"),
    *("hydra.launcher.workers=1", "hydra.sweeper.prune=false"),
)


def content(sweep: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sweep / "sweep.json").read_text())
    return found


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (MNIST, "data.val_size"),
        ((*MNIST, "hydra.sweeper.metric=val/accuracy"), "data.val_size"),
        ((*SEARCH, "experiment=regression_sqrt"), "data.val_size"),
        ((*MNIST, "hydra.sweeper.metric=test/accuracy", "hydra.sweeper.direction=minimize"), "hydra.sweeper.direction"),
        ((*MNIST, "hydra.sweeper.metric=test/loss", "hydra.sweeper.direction=maximize"), "hydra.sweeper.direction"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(snnexp: Shell, words: tuple[str, ...], key: str) -> None:
    ended = snnexp(*words)
    assert (ended.code, ended.key) == (2, key)
    assert [*snnexp.folder.iterdir()] == []


@pytest.mark.slow
def test_a_measure_that_no_point_has_ends_the_search_after_the_first(snnexp: Shell) -> None:
    ended = snnexp(*BLOBS, "hydra.sweeper.metric=val/loss", "hydra.sweeper.n_trials=5")
    assert (ended.code, len(snnexp.runs())) == (7, 1)
    (point,) = snnexp.points()
    assert point["status"] == "failed"
    assert "val/loss" in point["reason"]
    assert any("val/loss" in line for line in ended.err)


@pytest.mark.slow
def test_a_search_that_was_renamed_is_the_same_search(snnexp: Shell) -> None:
    ended = snnexp(*BLOBS, "data.val=16", "hydra.sweeper.metric=val/loss", "hydra.sweeper.n_trials=2")
    assert ended.code == 0
    (sweep,) = snnexp.folder.glob("outputs/sweeps/*/*")
    assert content(sweep)["search"]["settings"]["metric"] == "val/loss"
    moved = sweep.rename(snnexp.folder / "elsewhere")
    assert snnexp("resume", str(moved), "hydra.sweeper.n_trials=3").code == 0
    points = content(moved)["points"]
    assert [point["status"] for point in points] == ["finished"] * 3
    assert [point["trial"] for point in points] == [0, 1, 2]


@pytest.mark.slow
def test_the_command_of_the_best_point_trains_it_again(snnexp: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("data.val=16", "hydra.sweeper.metric=val/loss", "hydra.sweeper.n_trials=2", "logger.root=of mine")
    ended = snnexp(*BLOBS, *words)
    (best,) = [line for line in ended.out if line.startswith("best ")]
    words, variables = typed(best.partition(": ")[2])
    monkeypatch.delenv("SNNEXP_ALLOW_TARGETS")
    assert snnexp(*words, "logger.root=again", **variables).code == 0
    (again,) = snnexp.folder.glob("again/*/*")
    points = [path.parent for path in snnexp.folder.glob("of mine/sweeps/*/*/runs/*/run.json")]
    assert len(points) == 2
    first = min(points, key=lambda run: record(run)["metrics"]["val/loss"])
    assert rows(again) == rows(first)


STORED = (
    *("train", "-m", "experiment=regression_sqrt", "trainer=cpu", "optimizer.lr=interval(1e-4,1e-2)"),
    *("hydra/sweeper=optuna", "hydra.sweeper.metric=test/loss"),
    "hydra.sweeper.storage='postgresql://me:s3cret@127.0.0.1:1/db'",
)


@pytest.mark.slow
def test_slurm_gets_no_password(snnexp: Shell) -> None:
    programs = snnexp.folder / "bin"
    programs.mkdir()
    (programs / "srun").write_text("#!/bin/sh\n")
    (programs / "srun").chmod(0o755)
    ended = snnexp(*STORED, "hydra/launcher=slurm", PATH=f"{programs}:{os.environ['PATH']}")
    assert (ended.code, ended.key) == (2, "hydra.sweeper.storage")
    assert "~/.pgpass" in ended.err[0]
    assert "s3cret" not in ended.err[0]
    assert os.listdir(snnexp.folder) == ["bin"]


@pytest.mark.slow
def test_a_driver_that_is_not_installed_is_told(snnexp: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    # what is None cannot be imported
    monkeypatch.setitem(sys.modules, "psycopg", None)
    ended = snnexp(*STORED)
    assert (ended.code, ended.key) == (2, "hydra.sweeper.storage")
    assert "snnexp[postgres]" in ended.err[0]
    assert os.listdir(snnexp.folder) == []
