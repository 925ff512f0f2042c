"""Regression metrics."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnexp.metrics.measure import Measure, State, Sum, counted


@dataclass(frozen=True)
class L1(Measure):
    """Mean absolute error between the output that the loss compares and its target."""

    stackable = True
    targets = ("trace", "values")
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        return l1(*readout.compared(target))


@dataclass(frozen=True)
class RelativeError(Measure):
    """Mean relative error, see :func:`relative_error`."""

    stackable = True
    targets = ("trace", "values")
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        return relative_error(*readout.compared(target))


@dataclass(frozen=True)
class RMSE(Measure):
    """Root mean squared error between the output that the loss compares and its target."""

    stackable = True
    targets = ("trace", "values")
    higher_is_better = False

    def update(self, readout: Any, target: Tensor) -> State:
        output, y = readout.compared(target)
        return counted((output - y).square().sum(), output.numel())

    def compute(self, state: State) -> Tensor:
        return super().compute(state).sqrt()


@dataclass(frozen=True)
class R2(Measure):
    """Coefficient of determination, 1 - sum (U - y)^2 / sum (y - mean of y)^2, averaged over outputs.

    Each step of a trace is a sample. NaN if the targets of an output are constant.
    """

    stackable = True
    targets = ("trace", "values")
    higher_is_better = True

    def update(self, readout: Any, target: Tensor) -> State:
        """Return for each output: sample count, sum and sum of squares of the target, sum of squared errors."""
        output, y = (each.flatten(0, -2) for each in readout.compared(target))
        # float64, because compute subtracts numbers of similar size
        y = y if y.device.type == "mps" else y.double()
        count = torch.full(y.shape[1:], len(y), dtype=y.dtype, device=y.device)
        return count, y.sum(0), y.square().sum(0), (output - y).square().sum(0)

    def compute(self, state: State) -> Tensor:
        count, total, squares, errors = state
        spread = squares - total.square() / count
        # constant targets have a nonzero spread due to rounding
        constant = spread <= 1e-14 * squares
        return (1 - errors / torch.where(constant, torch.nan, spread)).mean()


def l1(output: Tensor, target: Tensor) -> Sum:
    """Return the state of mean |U - y|, in the unit of the target."""
    error = (output - target).abs()
    return counted(error.sum(), error.numel())


def relative_error(output: Tensor, target: Tensor) -> Sum:
    """Return the state of mean ||U - y|| / ||y||, with norms over the last axis; for ``[T, B, K]`` over t >= 1.

    Step 0 is ignored because its target may be zero; later points with a zero target are ignored too. If no point is
    left, the mean is NaN, which records store as null.
    """
    first = 1 if output.ndim > 2 else 0
    error: Tensor = torch.linalg.vector_norm(output - target, dim=-1)[first:]
    size: Tensor = torch.linalg.vector_norm(target, dim=-1).expand(output.shape[:-1])[first:]
    defined = size > 0
    return counted(torch.where(defined, error / torch.where(defined, size, 1), 0).sum(), defined.sum())
