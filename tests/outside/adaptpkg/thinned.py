"""Random thinning of spike sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor

from snnexp.encoders import Encoder
from snnexp.spec.annotations import Fraction, Stackable


@dataclass(frozen=True)
class Thinned(Encoder):
    """Keep each spike with the same probability.

    Args:
        keep: probability that a spike is kept.
    """

    stackable = True
    spikes = True
    draws = True
    takes_sequences = True
    keep: Stackable[Fraction] = 0.9

    def __call__(self, values: Tensor) -> Tensor:
        """Thin spikes ``[T, B, *N]``."""
        return values * (torch.rand_like(values) < self.keep)
