"""Pages about runs: what their tables hold."""

import csv

from shell import OUTSIDE, Shell


def test_the_layers_of_a_run_with_a_validation_split_are_layers(snnexp: Shell) -> None:
    words = ("data=blobs", "data.val=16", "network.hidden=[4]", "num_steps=3", "trainer=cpu", "logger=jsonl")
    assert snnexp("train", *OUTSIDE, *words).code == 0
    run = snnexp.run()
    assert snnexp("report", str(run)).code == 0
    (layers,) = run.rglob("layers.csv")
    with layers.open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == ["hidden1", "readout"]
    (result,) = run.rglob("result.csv")
    with result.open() as file:
        assert {row["measure"] for row in csv.DictReader(file)} >= {"val/loss", "test/loss", "test/accuracy"}
