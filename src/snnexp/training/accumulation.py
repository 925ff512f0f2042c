"""Gradient accumulation: optimizer steps over several batches."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Accumulation(NamedTuple):
    """Splits the samples of an optimizer step into batches.

    Args:
        size: samples per batch.
        values_at: sample axis of the inputs.
        target_at: sample axis of the targets.
    """

    size: int
    values_at: int
    target_at: int

    def batches(self, step: tuple[Tensor, Tensor]) -> Iterator[tuple[tuple[Tensor, Tensor], float]]:
        """Yield the batches in order, each with its fraction of the samples."""
        values, target = step
        samples = values.shape[self.values_at]
        parts = zip(
            torch.split(values, self.size, self.values_at), torch.split(target, self.size, self.target_at), strict=True
        )
        for part in parts:
            yield part, part[0].shape[self.values_at] / samples
