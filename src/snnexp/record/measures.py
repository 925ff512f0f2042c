"""Names, descriptions and directions of metrics."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

MAIN_METRICS = ("test/accuracy", "test/l1", "test/loss")
MEANINGS = {
    "loss": "mean loss",
    "accuracy": "fraction of correctly classified samples",
    "penalty": "mean penalty added to the loss",
    "undecided": "fraction of samples whose class is decided by a tie",
    "l1": "mean absolute error between output and target",
    "relative_error": "mean absolute error relative to the target",
    "synops": "synaptic operations: additions caused by spikes, per sample",
    "seed_mean_loss": "mean of the training losses and the final L1, not test/l1",
}
"""Descriptions of metrics by the name after the split."""
LAYER_METRICS = ("firing_rate", "dead", "saturated", "synops")
"""Metrics of each layer, ``<split>/<metric>/<layer>``."""


def split_name(metric: str) -> tuple[str, str, str]:
    """Return split, name and layer of a metric; the layer is empty unless it is one of LAYER_METRICS.

    ``test/dead/loss`` is the metric ``dead`` of the layer ``loss``; ``test/mine/loss`` is the metric ``mine/loss``.
    """
    split, slash, name = metric.partition("/")
    if not slash:
        return "", metric, ""
    measure, _, layer = name.partition("/")
    return (split, measure, layer) if layer and measure in LAYER_METRICS else (split, name, "")


def is_layer_metric(metric: str) -> bool:
    """Return True for a metric of a layer."""
    return bool(split_name(metric)[2])


def main_metric(metrics: Mapping[str, float]) -> str | None:
    """Return the main metric of a run: the first available of test accuracy, L1 error and loss."""
    return next((name for name in MAIN_METRICS if name in metrics), None)


def higher_is_better(metric: str, known: Mapping[str, Any] = MappingProxyType({})) -> bool | None:
    """Return True if higher values of a metric are better, False if lower ones are; None if undefined.

    Args:
        metric: ``<split>/<name>``.
        known: the directions that metrics define, by name, as stored in run.json under ``higher_is_better``.
    """
    _, measure, layer = split_name(metric)
    if layer:
        return None
    if measure.partition("/")[0] == "penalty":
        return False
    name = metric.rpartition("/")[2]
    if isinstance(declared := known.get(name), bool):
        return declared
    if name.endswith(("loss", "l1", "error")):
        return False
    return True if name == "accuracy" else None
