"""A rate code of spike sequences: how many spikes come through says how sure they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from snnexp.encoders import Encoder
from snnexp.spec.annotations import Fraction, Stackable


@dataclass(frozen=True)
class Thinned(Encoder):
    """Each spike comes through with the same probability.

    Args:
        keep: probability that a spike comes through.
    """

    stackable = True
    spikes = True
    draws = True
    takes_sequences = True
    keep: Stackable[Fraction] = 0.9

    def __call__(self, values: Tensor) -> Tensor:
        """Spikes ``[T, B, *N]`` of spikes ``[T, B, *N]``."""
        return values * (torch.rand_like(values) < self.keep)
