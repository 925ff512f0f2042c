"""What data deliver is looked at before anything is written: refused in a line, or taken as it was meant."""

import csv
import importlib

import pytest
import torch
from shell import OUTSIDE, Ended, Shell, record

from snnexp.experiment import build, compose

WORDS = ("network.hidden=[4]", "trainer=cpu", "logger=jsonl", "trainer.max_epochs=1")
TABLE = ("data=faulty", "num_steps=3", *WORDS)
SEQUENCES = ("data=faulty_sequences", "encoder=sequence", "num_steps=16", *WORDS)
TRACES = ("data=faulty_traces", "encoder=sequence", "loss=mse_membrane", "num_steps=10", *WORDS)


def train(snnexp: Shell, *words: str) -> Ended:
    return snnexp("train", *OUTSIDE, *words)


def require_refused(snnexp: Shell, ended: Ended, code: int) -> None:
    assert (ended.code, ended.key, ended.out) == (code, "data", [])
    assert [*snnexp.folder.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    "fault",
    [
        *("complex", "not a number", "one feature less", "an axis more"),
        *(
            "labels of float",
            "labels from 1",
            "labels from -1",
            "labels in a column",
            "one-hot labels",
            "another class",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_every_split(snnexp: Shell, fault: str, split: str) -> None:
    require_refused(snnexp, train(snnexp, *TABLE, f"data.fault={fault}", f"data.split={split}"), 4)


@pytest.mark.parametrize("loss", ["mse_count", "mse_membrane", "nll_max_voltage"])
def test_nothing_is_broadcast_in_a_loss(snnexp: Shell, loss: str) -> None:
    require_refused(snnexp, train(snnexp, *TABLE, "data.fault=labels in a column", f"loss={loss}"), 4)


@pytest.mark.parametrize(
    "fault", ["float64", "float16", "uint8", "int16", "bool", "labels of int32", "labels of uint8"]
)
def test_other_number_types_are_converted(snnexp: Shell, fault: str) -> None:
    assert train(snnexp, *TABLE, f"data.fault={fault}", "data.split=train").code == 0
    assert record(snnexp.run())["status"] == "finished"


@pytest.mark.slow
def test_double_precision_trains_as_single_does(snnexp: Shell) -> None:
    for fault in ("float64", "none"):
        assert train(snnexp, *TABLE, f"data.fault={fault}", f"name={fault}").code == 0
    one, other = ((run / "metrics.jsonl").read_bytes() for run in snnexp.runs())
    assert one == other


def test_an_encoder_is_held_to_every_value(snnexp: Shell) -> None:
    ended = train(snnexp, *TABLE, "data.fault=beyond 1", "data.split=test", "encoder=bernoulli")
    assert (ended.code, ended.key) == (2, "encoder")
    assert [*snnexp.folder.iterdir()] == []


def test_an_encoder_that_never_fires_is_refused(snnexp: Shell) -> None:
    ended = train(snnexp, *TABLE, "encoder=constant_current_lif")
    assert (ended.code, ended.key) == (2, "encoder")


@pytest.mark.parametrize("steps", [16, 10])
def test_time_comes_before_the_batch(snnexp: Shell, steps: int) -> None:
    """Also where a batch has as many samples as a sequence has steps."""
    require_refused(snnexp, train(snnexp, *SEQUENCES, "data.fault=batch first", f"num_steps={steps}"), 4)


@pytest.mark.slow
def test_sequences_have_as_many_steps_as_the_run(snnexp: Shell) -> None:
    require_refused(snnexp, train(snnexp, *SEQUENCES, "data.length=20", "num_steps=16"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["one feature", "a step less"])
def test_traces_fit_the_readout(snnexp: Shell, fault: str) -> None:
    assert train(snnexp, *TRACES, "name=fine").code == 0
    before = snnexp.runs()
    ended = train(snnexp, *TRACES, f"data.fault={fault}")
    assert (ended.code, ended.key) == (4, "data")
    assert snnexp.runs() == before


def test_one_sample_is_enough(snnexp: Shell) -> None:
    assert train(snnexp, *SEQUENCES, "data.samples=1").code == 0


@pytest.mark.slow
def test_a_sequence_of_one_step_is_one_step(snnexp: Shell) -> None:
    """It does not stand for all steps, as a value does that does not change."""
    assert train(snnexp, *SEQUENCES, "num_steps=1").code == 0
    assert record(snnexp.run())["status"] == "finished"
    parts = build(compose(["experiment=regression_sqrt", "network.hidden=[4]", "trainer=cpu"]))
    sequence = parts.encoder(parts.data.train[[0]][0])
    whole, first = (parts.network(steps)[-1].membrane for steps in (sequence, sequence[:1]))
    assert len(whole) == len(sequence) > 1
    torch.testing.assert_close(first, whole[:1])


class TestSpikes:
    def test_are_counted_where_inputs_are_spikes(self, snnexp: Shell) -> None:
        """Each input spike costs as many additions as the layer has neurons."""
        ended = train(snnexp, *SEQUENCES)
        assert ended.code == 0
        run = record(snnexp.run())
        assert run["input_spikes"] is True
        assert any("data.spikes" in line for line in ended.out)
        spikes = importlib.import_module("mypkg.faulty").sequences().test.x.sum().item() / 64
        assert run["metrics"]["test/synops/hidden1"] == pytest.approx(4 * spikes)

    @pytest.mark.parametrize(("fault", "words", "spikes"), [("halves", (), False), ("", ("data.spikes=false",), False)])
    def test_are_not_counted_elsewhere(self, snnexp: Shell, fault: str, words: tuple[str, ...], spikes: bool) -> None:
        assert train(snnexp, *SEQUENCES, f"data.fault='{fault}'", *words).code == 0
        run = record(snnexp.run())
        assert run["input_spikes"] is spikes
        assert run["metrics"]["test/synops/hidden1"] == 0

    def test_what_is_typed_decides(self, snnexp: Shell) -> None:
        assert train(snnexp, *SEQUENCES, "data.fault=halves", "data.spikes=true").code == 0
        assert record(snnexp.run())["metrics"]["test/synops/hidden1"] > 0

    def test_inputs_that_do_not_change_are_none(self, snnexp: Shell) -> None:
        ended = train(snnexp, *TABLE, "data.spikes=true")
        assert (ended.code, ended.key) == (2, "data.spikes")

    @pytest.mark.slow
    def test_are_told_in_the_report(self, snnexp: Shell) -> None:
        assert train(snnexp, *SEQUENCES, "logger=tensorboard").code == 0
        run = snnexp.run()
        assert snnexp("report", str(run)).code == 0
        (table,) = run.rglob("operations.csv")
        with table.open() as file:
            layers = {layer: numbers for layer, *numbers in csv.reader(file)}
        additions, products, _ = map(float, layers["hidden1"])
        assert additions == pytest.approx(record(run)["metrics"]["test/synops/hidden1"]) != 0
        assert products == 0
