"""Resets that a spike causes one step later, on all that the membrane is then: its decayed value and what arrives.

    subtract:  U = base - R theta      zero:  U = (1 - R) base      none:  U = base

R is 1 where the membrane of the step before lay above the threshold theta.
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
"""By name: U of base, R and theta."""
