"""Classification metrics."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp.metrics.measure import Measure, State, Sum, counted


@dataclass(frozen=True)
class Accuracy(Measure):
    """The fraction of correct predictions."""

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        return accuracy(readout.predicted, target)


@dataclass(frozen=True)
class Undecided(Measure):
    """The fraction of samples predicted by a tie: several classes share the highest score."""

    stackable = True
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        return counted(readout.undecided.float().sum(), readout.undecided.numel())


@dataclass(frozen=True)
class MacroF1(Measure):
    """Macro-averaged F1 score: the mean over classes of 2 TP / (2 TP + FP + FN).

    Classes that occur neither as a label nor as a prediction are ignored, as in scikit-learn and torchmetrics. NaN
    without samples.
    """

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """Return correct predictions, and labels plus predictions, of each class, ``[K]`` each."""
        predicted, labels = _one_hot(readout, target)
        return (predicted * labels).sum(0), (predicted + labels).sum(0)

    def compute(self, state: State) -> Tensor:
        correct, occurred = state
        # 2 TP + FP + FN = labels + predictions
        scores = 2 * correct / occurred.clamp(min=1)
        return scores.sum() / (occurred > 0).sum()


@dataclass(frozen=True)
class BalancedAccuracy(Measure):
    """Recall averaged over the classes that occur as a label.

    Same as ``balanced_accuracy_score`` of scikit-learn. NaN without samples.
    """

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """Return correct predictions and labels of each class, ``[K]`` each."""
        predicted, labels = _one_hot(readout, target)
        return (predicted * labels).sum(0), labels.sum(0)

    def compute(self, state: State) -> Tensor:
        correct, labels = state
        return (correct / labels.clamp(min=1)).sum() / (labels > 0).sum()


@dataclass(frozen=True)
class MacroPrecision(Measure):
    """Macro-averaged precision: the mean over classes of TP / (TP + FP), 0 for a class that is never predicted.

    Classes that occur neither as a label nor as a prediction are ignored, as in scikit-learn and torchmetrics. NaN
    without samples.
    """

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """Return correct predictions, predictions and labels of each class, ``[K]`` each."""
        return _counts(readout, target)

    def compute(self, state: State) -> Tensor:
        correct, predicted, labels = state
        return (correct / predicted.clamp(min=1)).sum() / (predicted + labels > 0).sum()


@dataclass(frozen=True)
class MacroRecall(Measure):
    """Macro-averaged recall: the mean over classes of TP / (TP + FN), 0 for a class without labels.

    Averaged over the same classes as :class:`MacroPrecision`; :class:`BalancedAccuracy` ignores those without labels.
    """

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """See :class:`MacroPrecision`."""
        return _counts(readout, target)

    def compute(self, state: State) -> Tensor:
        correct, predicted, labels = state
        return (correct / labels.clamp(min=1)).sum() / (predicted + labels > 0).sum()


@dataclass(frozen=True)
class RocAuc(Measure):
    """One-vs-rest area under the ROC curve, averaged over classes.

    The area of a class is the probability that a sample of the class is ranked above a sample of another class; ties
    count half. Samples are ranked by the log-odds log(p / (1 - p)) of the softmax p of the scores, since p itself
    rounds to 1. NaN if a class has no samples, or all of them. The scores of all samples of a split are stored.
    """

    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """Return scores ``[N, K]`` and labels ``[N]``."""
        return readout.scores.flatten(0, -2), target.flatten()

    def merge(self, state: State, other: State) -> State:
        return tuple(torch.cat(pair) for pair in zip(state, other, strict=True))

    def compute(self, state: State) -> Tensor:
        scores, labels = state
        return torch.stack([_area(column, labels == k) for k, column in enumerate(_log_odds(scores))]).mean()


@dataclass(frozen=True)
class Latency(Measure):
    """The first step with a spike of the readout, averaged over the samples in which it fires.

    Steps are counted from 0. NaN if it never fires.
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
    """Return predictions and labels one-hot encoded, ``[N, K]``, where N counts samples or their steps."""
    classes = readout.scores.shape[-1]
    return F.one_hot(readout.predicted.flatten(), classes), F.one_hot(target.flatten(), classes)


def _counts(readout: Any, target: Tensor) -> State:
    predicted, labels = _one_hot(readout, target)
    return (predicted * labels).sum(0), predicted.sum(0), labels.sum(0)


def _log_odds(scores: Tensor) -> Iterator[Tensor]:
    """Yield log(p / (1 - p)) of each class, ``[N]``, with p = softmax(scores)."""
    scores = scores - scores.amax(-1, keepdim=True)
    for k, own in enumerate(scores.unbind(-1)):
        others = torch.cat([scores[:, :k], scores[:, k + 1 :]], -1)
        # summed in sorted order, so that equal probabilities have equal log-odds
        yield own - others.sort(-1).values.logsumexp(-1)


def _area(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the area under the ROC curve, from the ranks of the positive samples (Mann and Whitney)."""
    _, index, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # twice the rank: an integer even for ties, which share their mean rank
    ranks = (2 * counts.cumsum(0) - counts + 1)[index]
    count = positive.sum()
    area: Tensor = (ranks[positive].sum() - count * (count + 1)) / (2 * count * (len(scores) - count))
    return area


def accuracy(predicted: Tensor, target: Tensor) -> Sum:
    """Return the number of correct predictions, and the number of samples."""
    return counted((predicted == target).float().sum(), target.numel())
