"""Reset rules, applied one step after a spike to the decayed membrane plus the input current, ``base``.

    subtract:  U = base - R theta      zero:  U = (1 - R) base      none:  U = base

R is 1 where the membrane of the previous step exceeded the threshold theta.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

Reset = Literal["subtract", "zero", "none"]


def _subtract(base: Tensor, R: Tensor, theta: Tensor) -> Tensor:
    return base - R * theta


def _zero(base: Tensor, R: Tensor, theta: Tensor) -> Tensor:
    return (1 - R) * base


def _none(base: Tensor, R: Tensor, theta: Tensor) -> Tensor:
    return base


RESETS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "subtract": _subtract,
    "zero": _zero,
    "none": _none,
}
"""Reset functions by name; each maps base, R and theta to U."""
