"""Several processes measure what one process measures, whatever their shares are."""

import json

import pytest
from shell import OUTSIDE, Shell, record

pytestmark = pytest.mark.slow
WORDS = ("train", *OUTSIDE, "data=blobs", "network.hidden=[8]", "num_steps=5", "logger=jsonl", "trainer.max_epochs=1")


def test_processes_measure_what_one_measures(shell: Shell, snnexp: Shell) -> None:
    """Shares that are not equal, a batch of which two processes get nothing, and fewer samples than processes."""
    shares = ("data.val=127", "data.test=1", "data.train=18", "data.batch_size=18")
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3")
    assert shell(*WORDS, *shares, *ddp).code == 0
    run = shell.run()
    reported = record(run)["metrics"]
    for split in ("val", "test"):
        ended = snnexp("eval", str(run), "--split", split, "--json", "trainer.accelerator=cpu")
        assert ended.code == 0
        measured = json.loads("\n".join(ended.out))
        names = [name for name in measured if name in reported]
        assert {name.rpartition("/")[2] for name in names} >= {"loss", "accuracy"}
        assert {name: reported[name] for name in names} == pytest.approx(
            {name: measured[name] for name in names}, rel=1e-6, abs=1e-12
        )
