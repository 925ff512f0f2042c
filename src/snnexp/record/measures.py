"""What measures mean, and which of two values is the better one."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

MAIN_METRICS = ("test/accuracy", "test/l1", "test/loss")
MEANINGS = {
    "loss": "mean of what is minimized",
    "accuracy": "fraction of samples that are assigned to their class",
    "penalty": "mean of what is minimized beside the loss",
    "undecided": "fraction of samples whose class a tie decides",
    "l1": "mean absolute difference between output and target",
    "relative_error": "mean of that difference relative to the target",
    "synops": "additions that spikes cause, per sample",
    "seed_mean_loss": "mean of the training losses and the final L1, not test/l1",
}
"""Of measures, by the name behind the split."""
LAYER_METRICS = ("firing_rate", "dead", "saturated", "synops")
"""Measures that each layer has, ``<split>/<measure>/<layer>``."""


def split_name(metric: str) -> tuple[str, str, str]:
    """Split, measure and layer of a metric; the layer is empty where the metric is not that of a layer.

    The measure alone tells, for a layer may have any name: ``test/dead/loss`` is of the layer ``loss``, and
    ``test/mine/loss`` is the measure ``mine/loss``.
    """
    split, slash, name = metric.partition("/")
    if not slash:
        return "", metric, ""
    measure, _, layer = name.partition("/")
    return (split, measure, layer) if layer and measure in LAYER_METRICS else (split, name, "")


def is_layer_metric(metric: str) -> bool:
    """Whether a metric is one of those that each layer has."""
    return bool(split_name(metric)[2])


def main_metric(metrics: Mapping[str, float]) -> str | None:
    """The measure that stands for a run: the first of accuracy, L1 error and loss on the test split that it has."""
    return next((name for name in MAIN_METRICS if name in metrics), None)


def higher_is_better(metric: str, known: Mapping[str, Any] = MappingProxyType({})) -> bool | None:
    """Which of two values of a measure is the better one; None where neither is, as for a firing rate.

    Args:
        metric: ``<split>/<name>``.
        known: by name, what measures say of themselves, as run.json has it under ``higher_is_better``.
    """
    _, measure, layer = split_name(metric)
    if layer:
        return None
    if measure.partition("/")[0] == "penalty":
        return False
    name = metric.rpartition("/")[2]
    if isinstance(found := known.get(name), bool):
        return found
    if name.endswith(("loss", "l1", "error")):
        return False
    return True if name == "accuracy" else None
