"""Measures of values: how far outputs are from their targets."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnexp.metrics.measure import Measure, State, Sum, counted


@dataclass(frozen=True)
class L1(Measure):
    """The mean absolute difference between what the loss compared and its target."""

    stackable = True
    targets = ("trace", "values")
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        return l1(*readout.compared(target))


@dataclass(frozen=True)
class RelativeError(Measure):
    """The mean of that difference relative to the target, see :func:`relative_error`."""

    stackable = True
    targets = ("trace", "values")
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        return relative_error(*readout.compared(target))


def l1(output: Tensor, target: Tensor) -> Sum:
    """Mean |U - y|, in the unit of the target."""
    error = (output - target).abs()
    return counted(error.sum(), error.numel())


def relative_error(output: Tensor, target: Tensor) -> Sum:
    """Mean of ||U - y|| / ||y||, with the norm over the last axis; of sequences ``[T, B, K]`` over t >= 1.

    At t = 0 the target may be zero; a later point whose target is zero has no relative error and is left out. Where no
    point has one, the mean is NaN, and null in the records.
    """
    first = 1 if output.ndim > 2 else 0
    error: Tensor = torch.linalg.vector_norm(output - target, dim=-1)[first:]
    size: Tensor = torch.linalg.vector_norm(target, dim=-1).expand(output.shape[:-1])[first:]
    defined = size > 0
    return counted(torch.where(defined, error / torch.where(defined, size, 1), 0).sum(), defined.sum())
