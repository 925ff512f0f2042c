"""Scaling of inputs, fitted on the training split."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import doc
from torch import Tensor

from snnexp.errors import ConfigError

Method = Literal["standard", "minmax"]
ROUNDING = 1e-5
"""Tolerance for differences from the order of floating-point sums."""
Numbers = Annotated[Mapping[str, Sequence[float]], doc("a mapping {shift: [...], scale: [...]}")]


@dataclass(frozen=True)
class Scaling:
    """(x - shift) / scale, for each feature of a vector or each channel of an image.

    Args:
        shift: one number per feature.
        scale: one number per feature.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, numbers: Mapping[str, Sequence[float]], features: int) -> "Scaling":
        """Make a scaling from a mapping of ``shift`` and ``scale``.

        Raises:
            ConfigError: there is not one shift and one scale per feature, or a scale is 0.
        """
        if numbers.keys() != {"shift", "scale"}:
            raise ConfigError(f"scale: got {', '.join(numbers) or 'nothing'}, must be a mapping of shift and scale")
        for name, each in numbers.items():
            if len(each) != features:
                raise ConfigError(f"scale: got {len(each)} numbers for {name}, but the inputs have {features} features")
        if 0 in numbers["scale"]:
            raise ConfigError("scale: got a scale of 0, must not be 0")
        return cls(tuple(numbers["shift"]), tuple(numbers["scale"]))

    @property
    def numbers(self) -> dict[str, tuple[float, ...]]:
        """The argument of :meth:`of`."""
        return asdict(self)

    def is_close(self, other: "Scaling | None") -> bool:
        """Return True if ``other`` is equal up to rounding, which differs between machines."""
        if other is None or len(other.shift) != len(self.shift):
            return False
        # compare shifts in units of the scale
        shifts = np.subtract(self.shift, other.shift) / self.scale
        return bool(np.allclose(shifts, 0, atol=ROUNDING)) and np.allclose(self.scale, other.scale, rtol=ROUNDING)

    def __call__(self, values: Tensor, axis: int) -> Tensor:
        """Scale a batch.

        Args:
            values: the batch.
            axis: axis of the features.
        """
        shape = [-1] + [1] * (values.ndim - axis - 1)
        shift, scale = (values.new_tensor(part).reshape(shape) for part in (self.shift, self.scale))
        return (values - shift) / scale


def fit(method: Method, batches: Iterable[Tensor], axis: int) -> Scaling:
    """Fit a scaling to mean 0 and standard deviation 1 (``standard``), or to [0, 1] (``minmax``).

    The standard deviation is that of the population. A constant feature is shifted to 0 and not scaled.

    Args:
        method: ``standard`` or ``minmax``.
        batches: the inputs.
        axis: axis of the features in a batch.
    """
    fitted: Callable[[Iterable[Tensor]], tuple[Tensor, Tensor]] = _standard if method == "standard" else _minmax
    shift, scale = fitted(batch.movedim(axis, 0).flatten(1).double() for batch in batches)
    return Scaling(tuple(shift.tolist()), tuple(torch.where(scale > 0, scale, 1).tolist()))


def _standard(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, merged per batch (Chan, Golub and LeVeque, 1983)."""
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
