"""Measures of classes: how often labels are met."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from snnexp.metrics.measure import Measure, State, Sum, counted


@dataclass(frozen=True)
class Accuracy(Measure):
    """The fraction of labels that were met."""

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        return accuracy(readout.predicted, target)


@dataclass(frozen=True)
class Undecided(Measure):
    """The fraction of samples whose class a tie decides: several share the highest score."""

    stackable = True
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        return counted(readout.undecided.float().sum(), readout.undecided.numel())


@dataclass(frozen=True)
class MacroF1(Measure):
    """Macro-averaged F1 score: the mean over classes of 2 TP / (2 TP + FP + FN).

    Over the classes that occur as a label or as a prediction, as scikit-learn and torchmetrics average it: of others
    there is nothing to be right or wrong about. NaN where there are no samples.
    """

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """How often each class was met, and how often it was a label or a prediction, ``[K]`` each."""
        classes = readout.scores.shape[-1]
        predicted, labels = (F.one_hot(found.flatten(), classes) for found in (readout.predicted, target))
        return (predicted * labels).sum(0), (predicted + labels).sum(0)

    def compute(self, state: State) -> Tensor:
        met, occurred = state
        # 2 TP + FP + FN is the sum of both counts
        scores = 2 * met / occurred.clamp(min=1)
        return scores.sum() / (occurred > 0).sum()


def accuracy(predicted: Tensor, target: Tensor) -> Sum:
    """Mean over samples: 1 where the label was met, else 0."""
    return counted((predicted == target).float().sum(), target.numel())
