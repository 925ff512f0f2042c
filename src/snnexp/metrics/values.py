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


@dataclass(frozen=True)
class RMSE(Measure):
    """The root of the mean squared difference between what the loss compared and its target."""

    stackable = True
    targets = ("trace", "values")
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        output, wanted = readout.compared(target)
        return counted((output - wanted).square().sum(), output.numel())

    def compute(self, state: State) -> Tensor:
        return super().compute(state).sqrt()


@dataclass(frozen=True)
class R2(Measure):
    """1 - sum (U - y)^2 / sum (y - mean of y)^2, the coefficient of determination; the mean over outputs.

    Of a trace, each step is a sample. NaN where the targets of an output are all the same.
    """

    stackable = True
    targets = ("trace", "values")
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """For each output: samples, sum and sum of squares of the target, and sum of squared errors."""
        output, wanted = (each.flatten(0, -2) for each in readout.compared(target))
        # the square of a mean is a small part of a sum of squares
        wanted = wanted if wanted.device.type == "mps" else wanted.double()
        count = torch.full(wanted.shape[1:], len(wanted), dtype=wanted.dtype, device=wanted.device)
        return count, wanted.sum(0), wanted.square().sum(0), (output - wanted).square().sum(0)

    def compute(self, state: State) -> Tensor:
        count, total, squares, errors = state
        spread = squares - total.square() / count
        # rounding leaves a rest where all are the same
        constant = spread <= 1e-14 * squares
        return (1 - errors / torch.where(constant, torch.nan, spread)).mean()


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
