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


def main_metric(metrics: Mapping[str, float]) -> str | None:
    """The measure that stands for a run: the first of accuracy, L1 error and loss on the test split that it has."""
    return next((name for name in MAIN_METRICS if name in metrics), None)


def higher_is_better(metric: str, known: Mapping[str, Any] = MappingProxyType({})) -> bool | None:
    """Which of two values of a measure is the better one; None where neither is, as for a firing rate.

    Args:
        metric: ``<split>/<name>``.
        known: by name, what measures say of themselves, as run.json has it under ``higher_is_better``.
    """
    name = metric.rpartition("/")[2]
    if isinstance(found := known.get(name), bool):
        return found
    if name.endswith(("loss", "l1", "error")):
        return False
    return True if name == "accuracy" else None
