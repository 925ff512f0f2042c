"""Optimiser steps of several batches, whose gradients are added up."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Accumulation(NamedTuple):
    """How the samples of an optimiser step are split into batches.

    Args:
        size: samples of a batch.
        values_at: the axis of the samples in inputs.
        target_at: the axis of the samples in targets.
    """

    size: int
    values_at: int
    target_at: int

    def batches(self, step: tuple[Tensor, Tensor]) -> Iterator[tuple[tuple[Tensor, Tensor], float]]:
        """The batches in order, each with its share of the samples."""
        values, target = step
        samples = values.shape[self.values_at]
        parts = zip(
            torch.split(values, self.size, self.values_at), torch.split(target, self.size, self.target_at), strict=True
        )
        for part in parts:
            yield part, part[0].shape[self.values_at] / samples
