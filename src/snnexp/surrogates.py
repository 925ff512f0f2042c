"""Surrogate gradients: the Heaviside step in the forward pass, a surrogate derivative in the backward pass.

The derivative of the step H(x) = 1 if x > 0 else 0 is zero almost everywhere, so the backward pass replaces it with a
surrogate (Neftci, Mostafa and Zenke, "Surrogate Gradient Learning in Spiking Neural Networks", 2019). Each surrogate is
the derivative of a smooth function, evaluated elementwise at x = U - threshold; it keeps shape and dtype.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor

from snnexp.spec.annotations import Scale
from snnexp.spec.checked import check_fields

T = TypeVar("T")
Number: TypeAlias = T | Tensor
"""A number, or a tensor with one value per member of a stack."""


@dataclass(frozen=True)
class Surrogate:
    """Abstract base class of surrogate derivatives dS/dU; ``surrogate(x)`` evaluates it at x = U - threshold.

    In a stack, its parameters may be tensors that broadcast against x; see :func:`stack`.
    """

    stackable: ClassVar[bool] = False
    """Whether it can be stacked: it is computed elementwise.

    Not inherited: each subclass must set it itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def reciprocal_(self, x: Tensor) -> Tensor:
        """Compute 1 / surrogate(x) in place in ``x``; infinity where the surrogate is zero."""
        return torch.reciprocal(self(x), out=x)


@dataclass(frozen=True)
class ATan(Surrogate):
    """(alpha / 2) / (1 + (pi alpha x / 2)^2), the derivative of arctan(pi alpha x / 2) / pi (Fang et al., 2021)."""

    stackable = True
    alpha: Number[Scale] = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        return (self.alpha / 2) / (1 + (math.pi * self.alpha / 2 * x).square())

    def reciprocal_(self, x: Tensor) -> Tensor:
        if isinstance(self.alpha, Tensor):
            return x.square_().mul_(math.pi**2 * self.alpha / 2).add_(2 / self.alpha)
        return torch.addcmul(x.new_full((), 2 / self.alpha), x, x, value=math.pi**2 * self.alpha / 2, out=x)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """1 / (slope |x| + 1)^2, the derivative of x / (1 + slope |x|) (Zenke and Ganguli, 2018)."""

    stackable = True
    slope: Number[Scale] = 25.0

    def __call__(self, x: Tensor) -> Tensor:
        return 1 / (self.slope * x.abs() + 1).square()

    def reciprocal_(self, x: Tensor) -> Tensor:
        return x.abs_().mul_(self.slope).add_(1).square_()


@dataclass(frozen=True)
class SuperSpike(Surrogate):
    """1 / (alpha |x| + 1)^2, the derivative of x / (1 + alpha |x|) (Zenke and Ganguli, 2018)."""

    stackable = True
    alpha: Number[Scale] = 100.0

    def __call__(self, x: Tensor) -> Tensor:
        return 1 / (self.alpha * x.abs() + 1).square()

    def reciprocal_(self, x: Tensor) -> Tensor:
        return x.abs_().mul_(self.alpha).add_(1).square_()


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """slope s (1 - s) with s = sigmoid(slope x), the derivative of s itself."""

    stackable = True
    slope: Number[Scale] = 25.0

    def __call__(self, x: Tensor) -> Tensor:
        # sigmoid(-y) is accurate where 1 - sigmoid(y) cancels
        return self.slope * torch.sigmoid(self.slope * x) * torch.sigmoid(-self.slope * x)


@dataclass(frozen=True)
class Triangular(Surrogate):
    """max(0, 1 - |x| / width) / width, a triangle of area 1 (Esser et al., 2016)."""

    stackable = True
    width: Number[Scale] = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return (1 - x.abs() / self.width).clamp(min=0) / self.width


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """1, the derivative of the identity (Bengio, Leonard and Courville, 2013)."""

    stackable = True

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def stack(surrogates: Sequence[Surrogate], like: Tensor) -> Surrogate:
    """Return one surrogate for M members; parameters that differ become tensors ``[M, 1]`` in the dtype of ``like``."""
    columns = {name: [vars(surrogate)[name] for surrogate in surrogates] for name in vars(surrogates[0])}
    differing = {name: like.new_tensor(column).unsqueeze(1) for name, column in columns.items() if len(set(column)) > 1}
    return replace(surrogates[0], **differing)


def heaviside(x: Tensor) -> Tensor:
    """Return H(x) = 1 where x > 0, else 0, in the dtype of ``x``; a membrane exactly at threshold does not fire."""
    return (x > 0).to(x.dtype)


def spike(x: Tensor, surrogate: Surrogate) -> Tensor:
    """Return H(x), with ``surrogate(x)`` as derivative."""
    return _Spike.apply(x, surrogate)  # type: ignore[no-any-return]


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, surrogate: Surrogate) -> Tensor:
        return heaviside(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.surrogate(x), None
