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
    where = "on the batch of a training step, and on other splits where they were measured."
    accuracy = _there(_by_split(rows, "accuracy"))
    if accuracy:
        drawn = network.activity({"accuracy": accuracy})
        blocks.append(Picture("accuracy", drawn, f"Accuracy {where}", _data(accuracy, "iteration")))
    measures = {style.shorten(name): _by_split(rows, name) for name in cfg.get("measure") or ()}
    blocks += _panels("measures", measures, f"Measures {where}")
    penalties = {style.shorten(name): _by_split(rows, f"penalty/{name}") for name in _below(rows, "train/penalty/")}
    blocks += _panels("penalties", penalties, f"What is minimized beside the loss, {where}")
    rate, own = _curve(rows, "train/lr", "step"), _below(rows, "train/lr/")
    rates = {"weights": rate, **own} if own else {"all parameters": rate}
    blocks += _panels("learning_rate", {"learning rate": rates}, "The learning rate of training steps.")
    firing = {
        "spikes per neuron and step": _below(rows, "train/firing_rate/"),
        "fraction of dead neurons": _below(rows, "train/dead/"),
    }
    caption = "How much the layers fire on the batch of a training step; dead neurons fire for none of its samples."
    return [*blocks, *_panels("activity", firing, caption)]


def _by_split(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Curve]:
    return {split: _curve(rows, f"{split}/{measure}", "step") for split in SPLITS}


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
