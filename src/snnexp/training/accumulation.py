"""Gradient accumulation: optimizer steps over several batches."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Accumulation(NamedTuple):
    """Splits the samples of an optimizer step into batches.

    Args:
        size: samples per batch.
        input_axis: sample axis of the inputs.
        target_axis: sample axis of the targets.
    """

    size: int
    input_axis: int
    target_axis: int

    def batches(self, step: tuple[Tensor, Tensor]) -> Iterator[tuple[tuple[Tensor, Tensor], float]]:
        """Yield the batches in order, each with its fraction of the samples."""
        values, target = step
        samples = values.shape[self.input_axis]
        parts = zip(
            torch.split(values, self.size, self.input_axis),
            torch.split(target, self.size, self.target_axis),
            strict=True,
        )
        for part in parts:
            yield part, part[0].shape[self.input_axis] / samples
