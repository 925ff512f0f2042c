"""A run from start to end, and how a mistake is answered; holds for shipped parts and a user's."""

import json

import pytest
from shell import OUTSIDE, Shell, record, rows

LEARNS = ("network.hidden=[8]", "logger=jsonl", "trainer=cpu", "trainer.max_epochs=20", "optimizer.lr=0.05")
SHORT = ("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=2", "logger=jsonl", "network.hidden=[4]")


def test_a_run_leaves_what_it_promises(snnexp: Shell) -> None:
    ended = snnexp("train", *SHORT, "trainer.log_every_n_steps=1")
    assert ended.code == 0
    run = snnexp.run()
    assert record(run)["status"] == "finished"
    assert record(run)["exit_code"] == 0
    assert record(run)["metrics"].keys() >= {"test/loss", "test/l1", "test/relative_error", "test/synops"}
    assert {"config.yaml", "overrides.yaml", "metrics.jsonl", "train.log"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in (run / "checkpoints").glob("*.ckpt")} >= {"init.ckpt", "last.ckpt", "best.ckpt"}
    assert [row["step"] for row in rows(run) if "train/loss" in row] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("data=blobs", "num_steps=5"), ("data=seqs", "encoder=sequence")])
def test_data_of_a_user_are_learned(snnexp: Shell, words: tuple[str, ...]) -> None:
    """Of the four classes, chance finds a quarter."""
    assert snnexp("train", *OUTSIDE, *words, *LEARNS).code == 0
    assert record(snnexp.run())["metrics"]["test/accuracy"] > 0.9


def test_measuring_again_gives_what_the_run_reported(snnexp: Shell) -> None:
    assert snnexp("train", *SHORT).code == 0
    run = snnexp.run()
    again = json.loads("\n".join(snnexp("eval", str(run), "--json").out))
    reported = record(run)["metrics"]
    assert again.keys() >= {"test/loss", "test/l1", "test/relative_error", "test/synops"}
    assert again == {name: reported[name] for name in again}


def test_ties_are_told(snnexp: Shell) -> None:
    """A readout that never fires has decided nothing."""
    words = ("data=blobs", "network.hidden=[8]", "loss=mse_count", "num_steps=5", "logger=jsonl", "trainer=cpu")
    assert snnexp("train", *OUTSIDE, *words, "readout=leaky", "readout.threshold=1000").code == 0
    assert record(snnexp.run())["metrics"]["test/undecided"] == 1
