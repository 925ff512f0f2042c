"""Measures of classes: how often labels are met."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
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
        predicted, labels = _one_hot(readout, target)
        return (predicted * labels).sum(0), (predicted + labels).sum(0)

    def compute(self, state: State) -> Tensor:
        met, occurred = state
        # 2 TP + FP + FN is the sum of both counts
        scores = 2 * met / occurred.clamp(min=1)
        return scores.sum() / (occurred > 0).sum()


@dataclass(frozen=True)
class BalancedAccuracy(Measure):
    """The mean over classes of the fraction of their labels that were met; over the classes that occur as a label.

    As ``balanced_accuracy_score`` of scikit-learn. NaN where there are no samples.
    """

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """How often each class was met, and how often it was a label, ``[K]`` each."""
        predicted, labels = _one_hot(readout, target)
        return (predicted * labels).sum(0), labels.sum(0)

    def compute(self, state: State) -> Tensor:
        met, there = state
        return (met / there.clamp(min=1)).sum() / (there > 0).sum()


@dataclass(frozen=True)
class MacroPrecision(Measure):
    """Macro-averaged precision: the mean over classes of TP / (TP + FP), which is 0 for one that is never predicted.

    Over the classes that occur as a label or as a prediction, as scikit-learn and torchmetrics average it. NaN where
    there are no samples.
    """

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """How often each class was met, predicted, and a label, ``[K]`` each."""
        return _counts(readout, target)

    def compute(self, state: State) -> Tensor:
        met, predicted, labels = state
        return (met / predicted.clamp(min=1)).sum() / (predicted + labels > 0).sum()


@dataclass(frozen=True)
class MacroRecall(Measure):
    """Macro-averaged recall: the mean over classes of TP / (TP + FN), which is 0 for one that is no label.

    Over the same classes as :class:`MacroPrecision`; :class:`BalancedAccuracy` leaves out those that are no label.
    """

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """As of :class:`MacroPrecision`."""
        return _counts(readout, target)

    def compute(self, state: State) -> Tensor:
        met, predicted, labels = state
        return (met / labels.clamp(min=1)).sum() / (predicted + labels > 0).sum()


@dataclass(frozen=True)
class RocAuc(Measure):
    """Area under the ROC curve of each class against all others, averaged over classes.

    That of a class is the probability that a sample of it has a higher probability than one of another class, ties
    count half; the probabilities are the softmax of the decoder's scores. They are compared as log(p / (1 - p)), for a
    p near 1 is 1 in floating point. NaN where a class has no samples, or all. The scores of all samples of a split are
    kept.
    """

    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """Scores ``[N, K]`` and labels ``[N]``."""
        return readout.scores.flatten(0, -2), target.flatten()

    def merge(self, state: State, other: State) -> State:
        return tuple(torch.cat(pair) for pair in zip(state, other, strict=True))

    def compute(self, state: State) -> Tensor:
        scores, labels = state
        return torch.stack([_area(column, labels == k) for k, column in enumerate(_log_odds(scores))]).mean()


@dataclass(frozen=True)
class Latency(Measure):
    """The step in which the readout fires first, any neuron of it; the mean over samples for which it fires.

    Steps count from 0. NaN where it fires for no sample.
    """

    stackable = True
    reads = "first_spike"
    targets = ("labels", "step_labels", "trace", "values")
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        first = readout.first_spike.amin(-1)
        fires = first < readout.num_steps
        return torch.where(fires, first, 0).sum(), fires.sum()


def _one_hot(readout: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted and the wanted class of each sample, or of each step of one, ``[N, K]``."""
    classes = readout.scores.shape[-1]
    return F.one_hot(readout.predicted.flatten(), classes), F.one_hot(target.flatten(), classes)


def _counts(readout: Any, target: Tensor) -> State:
    predicted, labels = _one_hot(readout, target)
    return (predicted * labels).sum(0), predicted.sum(0), labels.sum(0)


def _log_odds(scores: Tensor) -> Iterator[Tensor]:
    """log(p / (1 - p)) of each class, ``[N]``, with p = softmax(scores)."""
    scores = scores - scores.amax(-1, keepdim=True)
    for k, own in enumerate(scores.unbind(-1)):
        others = torch.cat([scores[:, :k], scores[:, k + 1 :]], -1)
        # added up in the order of size, so that equal probabilities stay equal
        yield own - others.sort(-1).values.logsumexp(-1)


def _area(scores: Tensor, positive: Tensor) -> Tensor:
    """The area under the ROC curve, by the ranks of the positive samples (Mann and Whitney)."""
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # twice the rank, a whole number where equal scores share the mean of theirs
    ranks = (2 * counts.cumsum(0) - counts + 1)[place]
    count = positive.sum()
    area: Tensor = (ranks[positive].sum() - count * (count + 1)) / (2 * count * (len(scores) - count))
    return area


def accuracy(predicted: Tensor, target: Tensor) -> Sum:
    """Mean over samples: 1 where the label was met, else 0."""
    return counted((predicted == target).float().sum(), target.numel())
