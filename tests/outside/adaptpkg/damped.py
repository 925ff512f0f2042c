"""Surrogate of Bellec et al. (2018): a damped triangle."""

from dataclasses import dataclass

import torch
from torch import Tensor

from snnexp.spec.annotations import Fraction, Positive
from snnexp.surrogates import Number, Surrogate


@dataclass(frozen=True)
class Damped(Surrogate):
    """damping * max(0, 1 - |x| / width).

    Args:
        damping: height at the threshold.
        width: half of the base of the triangle.
    """

    stackable = True
    damping: Number[Fraction] = 0.3
    width: Number[Positive] = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """The derivative at x = membrane - threshold."""
        return self.damping * torch.clamp(1 - x.abs() / self.width, min=0)
