"""The course of a training: losses, measures, penalties, learning rates and how much the layers fire."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from snnexp.figures import network, style
from snnexp.figures.picture import Picture
from snnexp.figures.style import Array
from snnexp.record.run import EPOCH
from snnexp.report.page import Block, Text
from snnexp.report.statistics import is_number
from snnexp.spec import parts

SPLITS = ("train", "val", "test")
Curve = tuple[Array, Array]
"""Where, and values; NaN where one was not finite."""


def training(rows: Sequence[Mapping[str, Any]], cfg: Mapping[str, Any], stopped_early: str) -> list[Block]:
    """What was logged of the training, as pictures.

    Args:
        rows: of metrics.jsonl.
        cfg: the config of the run.
        stopped_early: where and why it stopped early; empty where it did not.
    """
    iteration = _curve(rows, "train/loss", "step")
    means = {"training": EPOCH, "validation": "val/loss", "test": "test/loss"}
    # the last test, which has a row of its own, is no point of a curve
    rows = [row for row in rows if "test/loss" not in row or EPOCH in row]
    # the rows count epochs from 0
    epochs = _there({label: _curve(rows, name, "epoch", first=1) for label, name in means.items()})
    blocks: list[Block] = [Text(f"The training {stopped_early}.")] if stopped_early else []
    if len(iteration[0]) or epochs:
        data = _data({"train/loss": iteration}, "iteration") | _data(epochs, "epoch")
        caption = "The loss of training steps, and its mean over epochs."
        blocks.append(Picture("loss", network.loss_curves(iteration, epochs), caption, data))
    accuracy = _there({split: _curve(rows, f"{split}/accuracy", "step") for split in SPLITS})
    if accuracy:
        caption = "Accuracy on the batch of a training step, and on other splits where they were measured."
        drawn = network.activity({"accuracy": accuracy})
        blocks.append(Picture("accuracy", drawn, caption, _data(accuracy, "iteration")))
    measures = {
        style.cropped(name): {split: _curve(rows, f"{split}/{name}", "step") for split in SPLITS}
        for name in parts.measures(cfg)
    }
    penalties = {"penalty": _below(rows, "train/penalty/")}
    rates = {"learning rate": {"all parameters": _curve(rows, "train/lr", "step")}}
    if neurons := _below(rows, "train/lr/"):
        rates = {"learning rate": {"weights": _curve(rows, "train/lr", "step"), **neurons}}
    firing = {
        label: _below(rows, f"train/{measure}/")
        for measure, label in (("firing_rate", "spikes per neuron and step"), ("dead", "fraction of dead neurons"))
    }
    for name, panels, caption in (
        (
            "measures",
            measures,
            "Measures on the batch of a training step, and on other splits where they were measured.",
        ),
        ("penalties", penalties, "What is minimized beside the loss, on the batch of a training step."),
        ("learning_rate", rates, "The learning rate of training steps."),
        (
            "activity",
            firing,
            "How much the layers fire on the batch of a training step; dead neurons fire for none of its samples.",
        ),
    ):
        blocks += _panels(name, panels, caption)
    return blocks


def _below(rows: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, Curve]:
    """The curves of all values whose names begin so, by the rest of the name."""
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith(prefix)]
    return {name.removeprefix(prefix): _curve(rows, name, "step") for name in names}


def _panels(name: str, panels: Mapping[str, Mapping[str, Curve]], caption: str) -> list[Block]:
    """A picture of the panels that have a point; none where all are empty."""
    drawn = {label: found for label, curves in panels.items() if (found := _there(curves))}
    if not drawn:
        return []
    data: dict[str, Array] = {}
    for label, curves in drawn.items():
        data |= _data({f"{label}, {curve}": points for curve, points in curves.items()}, "iteration")
    return [Picture(name, network.activity(drawn), caption, data)]


def _curve(rows: Sequence[Mapping[str, Any]], name: str, over: str, first: int = 0) -> Curve:
    found = [(row[over] + first, row[name]) for row in rows if name in row and isinstance(row.get(over), int)]
    values = [value if is_number(value) else np.nan for _, value in found]
    return np.array([where for where, _ in found], dtype=int), np.array(values, dtype=float)


def _there(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Those that have a point."""
    return {name: curve for name, curve in curves.items() if np.isfinite(curve[1]).any()}


def _data(curves: Mapping[str, Curve], over: str) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    for name, (where, values) in curves.items():
        columns |= {f"{over} ({name})": where, name: values}
    return columns
