"""Spikes in the second half of a sequence: a statistic, and a loss, decoder, metric and penalty that read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from snnexp.decoders import Decoder
from snnexp.losses import Loss
from snnexp.metrics import Measure, State
from snnexp.neurons import Statistic
from snnexp.regularizers import Penalty
from snnexp.spec.annotations import NonNegative, Positive, Stackable


class LateCount(Statistic):
    """sum of S over the steps t >= T / 2."""

    name = "late_count"
    reads_spikes = True

    def of(self, trace: Any) -> Tensor:
        """[B, *N]."""
        late: Tensor = trace.spikes[(len(trace.spikes) + 1) // 2 :].sum(0)
        return late


@dataclass(frozen=True)
class LateEntropy(Loss):
    """Cross-entropy of scale * late spikes.

    Args:
        scale: logit of a late spike.
    """

    stackable = True
    reads = LateCount
    decoder = "late_votes"
    scale: Stackable[Positive] = 1.0

    def numbers(self, num_steps: int) -> tuple[float, ...]:
        """Numbers that may differ between the members of a stack."""
        return (self.scale,)

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        """Mean over the samples."""
        (scale,) = numbers
        return F.cross_entropy(scale * trace.late_count, target)


@dataclass(frozen=True)
class LateVotes(Decoder):
    """The class with the most late spikes."""

    stackable = True
    reads = LateCount

    def scores(self, trace: Any) -> Tensor:
        """[B, K]."""
        count: Tensor = trace.late_count
        return count


@dataclass(frozen=True)
class LeastRecall(Measure):
    """Minimum recall over classes."""

    stackable = True
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """Count true positives and samples of each class, [K] each."""
        labels = F.one_hot(target, readout.scores.shape[-1])
        return (labels * (readout.predicted == target).unsqueeze(-1)).sum(0), labels.sum(0)

    def compute(self, state: State) -> Tensor:
        """A scalar."""
        correct, total = state
        return (correct / total).amin()


@dataclass(frozen=True)
class LateSilence(Penalty):
    """weight * mean squared late spikes of hidden neurons.

    Args:
        weight: weight of the penalty.
    """

    stackable = True
    reads = ("late_count",)
    weight: Stackable[NonNegative] = 1.0

    def numbers(self) -> tuple[float, ...]:
        """Numbers that may differ between the members of a stack."""
        return (self.weight,)

    def penalty(self, readings: Mapping[str, Any], *numbers: Any) -> Tensor:
        """A scalar."""
        (weight,) = numbers
        (trace,) = readings.values()
        return weight * trace.late_count.square().mean()
