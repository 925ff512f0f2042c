"""Scale inputs by what the training split holds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["standard", "minmax"]


@dataclass(frozen=True)
class Scaling:
    """(x - shift) / scale, for each feature of a vector or each channel of a map.

    Args:
        shift: ``[F]``, on the CPU.
        scale: ``[F]``.
        axis: of the features in a batch.
    """

    shift: Tensor
    scale: Tensor
    axis: int

    def __call__(self, values: Tensor) -> Tensor:
        """Scaled values of a batch."""
        shape = [-1] + [1] * (values.ndim - self.axis - 1)
        shift, scale = (part.to(values).reshape(shape) for part in (self.shift, self.scale))
        return (values - shift) / scale


def fit(method: Method, batches: Iterable[Tensor], axis: int) -> Scaling:
    """A scaling to mean 0 and standard deviation 1 (``standard``), or to [0, 1] (``minmax``).

    The standard deviation is that of the population. A feature that is the same everywhere is only shifted, to 0.

    Args:
        method: which.
        batches: all inputs that count.
        axis: of the features in a batch.
    """
    fitted: Callable[[Iterable[Tensor]], tuple[Tensor, Tensor]] = _standard if method == "standard" else _minmax
    shift, scale = fitted(batch.movedim(axis, 0).flatten(1).double() for batch in batches)
    return Scaling(shift, torch.where(scale > 0, scale, 1), axis)


def _standard(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, merged batch by batch (Chan, Golub and LeVeque, 1983)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for values in batches:
        size, own = values.shape[1], values.mean(1)
        difference = own - mean
        squares = squares + ((values - own[:, None]) ** 2).sum(1) + difference**2 * (count * size / (count + size))
        count += size
        mean = mean + difference * (size / count)
    return mean, (squares / count).sqrt()


def _minmax(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    lows, highs = zip(*((values.amin(1), values.amax(1)) for values in batches), strict=True)
    low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    return low, high - low
