"""Cross-entropy of firing rates, with a scale."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from snnexp.losses import Loss
from snnexp.spec.annotations import Positive, Stackable


@dataclass(frozen=True)
class RateEntropy(Loss):
    """Cross-entropy of scale * spike count / T.

    Args:
        scale: logit of a neuron that fires in every step.
    """

    stackable = True
    targets = ("labels",)
    reads = "spike_count"
    decoder = "spike_count"
    scale: Stackable[Positive] = 10.0

    def numbers(self, num_steps: int) -> tuple[float, ...]:
        """Numbers that may differ between the members of a stack."""
        return (self.scale,)

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        """Mean over the samples."""
        (scale,) = numbers
        return F.cross_entropy(trace.spike_count * scale / trace.num_steps, target)
