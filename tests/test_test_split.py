"""Reports about the test split: a single predicted class, metrics per class, predictions, and rows per epoch."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from snnexp.errors import ConfigError, InterruptedRunError
from snnexp.experiment import build, compose, predict, resume, run
from snnexp.figures import style
from snnexp.record.run import EPOCH, Run
from snnexp.report import report
from snnexp.training.stacked import Outcome, Point, train

pytestmark = pytest.mark.slow

IMAGES = [
    *("experiment=mnist_leaky", "trainer=cpu", "trainer.max_epochs=1", "network.hidden=[7]", "num_steps=5"),
    *("data.batch_size=8", "optimizer.lr=2e-3", "logger=jsonl"),
]
TRACE = [
    *("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "network.hidden=[4]", "num_steps=8"),
    *("data.num_samples=5", "data.batch_size=2", "logger=jsonl"),
]
SEVERAL = ["loss=nll_max_voltage", "network.hidden=[100]", "optimizer.lr=1e-6"]
"""Overrides for a network that predicts several classes."""


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Create figures without rendering them, which takes most of the time."""
    monkeypatch.setattr(style, "png", lambda figure: b"\x89PNG")
    monkeypatch.setattr(style, "svg", lambda figure: "<svg>\n <defs></defs></svg>")


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_mnist: Path) -> None:
    monkeypatch.chdir(tmp_path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def test_a_single_predicted_class_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """A silent readout gives a tie, won by the lowest class; membranes differ."""
    silent = run(compose([*IMAGES, "neuron.threshold=1e6"]))
    sentence = (
        f"test/accuracy {silent.metrics['test/accuracy']:.4f} is the share of class 0: "
        "the network assigns all samples of the test split to it"
    )
    assert f"\n{sentence}\n" in capsys.readouterr().out
    assert Run(silent.path).read()["only_class"] == 0
    several = run(compose([*IMAGES, *SEVERAL]))
    assert "is the share of class" not in capsys.readouterr().out
    assert "only_class" not in Run(several.path).read()


def test_a_resumed_run_clears_it() -> None:
    several = run(compose([*IMAGES, *SEVERAL]))
    Run(several.path).update(only_class=7)
    resume(several.path, ["trainer.max_epochs=2"])
    assert "only_class" not in Run(several.path).read()


@pytest.mark.usefixtures("undrawn")
def test_a_report_has_it_and_a_table_of_classes() -> None:
    """Precision, recall and F1 computed from the confusion matrix; a class never predicted has no precision."""
    done = run(compose([*IMAGES, "logger.draw_every_n_epochs=1"]))
    counts = np.zeros((10, 10), dtype=int)
    counts[:2, :2] = [[3, 1], [2, 4]]
    counts[2, 0] = 5
    test = {**Run(done.path).arrays("test"), "confusion": counts}
    Run(done.path).write_arrays("test", test)
    Run(done.path).update(classes=[f"digit {k}" for k in range(10)], only_class=3)
    assert "is the share of class digit 3: the network" in report([done.path]).read_text()
    found = rows(done.path / "figures" / "classes.csv")
    assert [*found[0]] == ["class", "name", "precision", "recall", "F1 score", "labels"]
    assert [*found[0].values()] == ["0", "digit 0", str(3 / 10), str(3 / 4), str(6 / 14), "4"]
    assert [*found[2].values()] == ["2", "digit 2", "", "0.0", "0.0", "5"]
    assert [*found[3].values()] == ["3", "digit 3", "", "", "", "0"]
    Run(done.path).update(classes=[str(k) for k in range(10)])
    assert "<th>name</th>" not in report([done.path]).read_text()
    assert {row["name"] for row in rows(done.path / "figures" / "classes.csv")} == {""}, (
        "names equal to the numbers are omitted"
    )


@pytest.mark.parametrize("words", [IMAGES, TRACE], ids=["labels", "trace"])
def test_a_run_writes_its_predictions(words: list[str]) -> None:
    """Equal to those of snnexp predict; for a single run, a resumed one, and a stack."""
    words = [*words, "logger.predictions=true"]
    done = run(compose(words)).path
    own = (done / "predictions.csv").read_bytes()
    (done / "predictions.csv").unlink()
    assert predict(done).read_bytes() == own
    Run(done).update(status="interrupted")
    (done / "predictions.csv").unlink()
    resume(done)
    assert (done / "predictions.csv").read_bytes() == own
    ends: dict[int, Outcome] = {}
    points = [Point(compose([*words, f"seed={seed}"]), []) for seed in (0, 1)]
    train(points, Path("runs"), lambda *_: None, ends.__setitem__)
    found = [rows((end.run or Path()) / "predictions.csv") for _, end in sorted(ends.items())]
    assert [row["index"] for row in found[0]] == [row["index"] for row in rows(done / "predictions.csv")]
    last = [*found[0][0]][-1]
    values = [[float(row[last]) for row in each] for each in (found[0], rows(done / "predictions.csv"))]
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-5)
    assert found[0] != found[1]


def test_predictions_of_several_devices_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"^logger\.predictions: got true, .*; use snnexp predict RUN$"):
        compose([*IMAGES, "logger.predictions=true", "trainer=ddp", "trainer.devices=2"])


class TestTestSplitEveryEpoch:
    """Rows of the test split while training; nothing else changes."""

    WORDS = ("trainer.max_epochs=3", "data.val_size=8", "encoder=bernoulli", "trainer.log_every_n_steps=2")
    OFTEN = "logger.test_every_epoch=true"

    def rows(self, path: Path) -> list[dict[str, Any]]:
        return [*Run(path).metrics()]

    def test_logs_it_and_changes_nothing_else(self) -> None:
        words = [*IMAGES, *self.WORDS, "trainer.limit_test_batches=2"]
        plain, often = (run(compose([*words, *more])) for more in ([], [self.OFTEN]))
        assert often.metrics == plain.metrics
        every = [row for row in self.rows(often.path) if EPOCH in row]
        assert [row["test/accuracy"] is not None for row in every] == [True] * 3
        last = every[-1]
        assert {name: last[name] for name in ("test/loss", "test/accuracy", "test/synops", "test/undecided")} == {
            name: often.metrics[name] for name in ("test/loss", "test/accuracy", "test/synops", "test/undecided")
        }
        assert every[0]["test/loss"] != last["test/loss"]
        others = [
            {name: value for name, value in row.items() if EPOCH not in row or not name.startswith("test/")}
            for row in self.rows(often.path)
        ]
        assert others == self.rows(plain.path)
        assert same_weights(plain.path, often.path)

    @pytest.mark.parametrize("step", [4, 6])
    def test_a_resumed_run_is_bit_identical(self, step: int) -> None:
        words = [*IMAGES, *self.WORDS, self.OFTEN, "logger.save_every_s=0"]
        whole = run(compose(words))
        with pytest.raises(InterruptedRunError):
            run(compose(words), watching=[StopAt(step)])
        (stopped,) = {*whole.path.parent.iterdir()} - {whole.path}
        assert resume(stopped).metrics == whole.metrics
        assert self.rows(stopped) == self.rows(whole.path)
        assert same_weights(whole.path, stopped)

    def test_in_a_stack(self) -> None:
        words = [*IMAGES, *self.WORDS, self.OFTEN]
        ends: dict[int, Outcome] = {}
        points = [Point(compose([*words, f"seed={seed}"]), []) for seed in (0, 1)]
        train(points, Path("runs"), lambda *_: None, ends.__setitem__)
        for seed, end in ends.items():
            alone = run(compose([*words, f"seed={seed}"]))
            pairs = zip(self.rows(end.run or Path()), self.rows(alone.path), strict=True)
            assert all(one == pytest.approx(other, rel=1e-4, abs=1e-6) for one, other in pairs)

    def test_nothing_is_selected_by_it(self) -> None:
        with pytest.raises(ConfigError, match=r"^schedule\.measure: got test/loss, must be one of train/epoch_loss"):
            build(compose([*IMAGES, self.OFTEN, "schedule=plateau", "schedule.measure=test/loss"]))


class StopAt(Callback):
    """Sends a signal after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def same_weights(one: Path, other: Path) -> bool:
    first, second = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (one, other)
    )
    return all(torch.equal(first[name], second[name]) for name in first)
