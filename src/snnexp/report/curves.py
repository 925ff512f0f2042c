"""Training curves: losses, metrics, penalties, learning rates and firing rates of layers."""

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
"""Positions and values; NaN for values that were not finite."""


def training(rows: Sequence[Mapping[str, Any]], cfg: Mapping[str, Any], stopped_early: str) -> list[Block]:
    """Return pictures of the logged training curves.

    Args:
        rows: rows of metrics.jsonl.
        cfg: the config of the run.
        stopped_early: where and why training stopped early; empty if it did not.
    """
    iteration = _curve(rows, "train/loss", "step")
    means = {"training": EPOCH, "validation": "val/loss", "test": "test/loss"}
    # drop the row of the final test, which is not part of the curves
    rows = [row for row in rows if "test/loss" not in row or EPOCH in row]
    # rows count epochs from 0
    epochs = _non_empty({label: _curve(rows, name, "epoch", first=1) for label, name in means.items()})
    blocks: list[Block] = [Text(f"The training {stopped_early}.")] if stopped_early else []
    if len(iteration[0]) or epochs:
        data = _data({"train/loss": iteration}, "iteration") | _data(epochs, "epoch")
        caption = "Loss of each logged training step, and mean loss per epoch."
        blocks.append(Picture("loss", network.loss_curves(iteration, epochs), caption, data))
    where = "on training batches, and on other splits where evaluated."
    accuracy = _non_empty(_by_split(rows, "accuracy"))
    if accuracy:
        drawn = network.activity({"accuracy": accuracy})
        blocks.append(Picture("accuracy", drawn, f"Accuracy {where}", _data(accuracy, "iteration")))
    metrics = {style.shorten(name): _by_split(rows, name) for name in cfg.get("measure") or ()}
    blocks += _panels("measures", metrics, f"Metrics {where}")
    penalties = {
        style.shorten(name): _by_split(rows, f"penalty/{name}") for name in _with_prefix(rows, "train/penalty/")
    }
    blocks += _panels("penalties", penalties, f"Penalties added to the loss, {where}")
    rate, by_group = _curve(rows, "train/lr", "step"), _with_prefix(rows, "train/lr/")
    rates = {"weights": rate, **by_group} if by_group else {"all parameters": rate}
    blocks += _panels("learning_rate", {"learning rate": rates}, "Learning rate of each logged training step.")
    firing = {
        "spikes per neuron and step": _with_prefix(rows, "train/firing_rate/"),
        "fraction of dead neurons": _with_prefix(rows, "train/dead/"),
    }
    caption = "Activity of the layers on training batches. Dead neurons fire for no sample of the batch."
    return [*blocks, *_panels("activity", firing, caption)]


def _by_split(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Curve]:
    return {split: _curve(rows, f"{split}/{metric}", "step") for split in SPLITS}


def _with_prefix(rows: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, Curve]:
    """Return the curves of all metrics whose names start with ``prefix``, by name without the prefix."""
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith(prefix)]
    return {name.removeprefix(prefix): _curve(rows, name, "step") for name in names}


def _panels(name: str, panels: Mapping[str, Mapping[str, Curve]], caption: str) -> list[Block]:
    """Return a picture of the panels with data, if any."""
    drawn = {label: non_empty for label, curves in panels.items() if (non_empty := _non_empty(curves))}
    if not drawn:
        return []
    data: dict[str, Array] = {}
    for label, curves in drawn.items():
        data |= _data({f"{label}, {curve}": points for curve, points in curves.items()}, "iteration")
    return [Picture(name, network.activity(drawn), caption, data)]


def _curve(rows: Sequence[Mapping[str, Any]], name: str, over: str, first: int = 0) -> Curve:
    points = [(row[over] + first, row[name]) for row in rows if name in row and isinstance(row.get(over), int)]
    values = [value if is_number(value) else np.nan for _, value in points]
    return np.array([x for x, _ in points], dtype=int), np.array(values, dtype=float)


def _non_empty(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Return the curves with at least one finite value."""
    return {name: curve for name, curve in curves.items() if np.isfinite(curve[1]).any()}


def _data(curves: Mapping[str, Curve], over: str) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    for name, (x, values) in curves.items():
        columns |= {f"{over} ({name})": x, name: values}
    return columns
