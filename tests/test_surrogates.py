"""Surrogates, compared with finite differences of their primitives, and the spike function with its gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.surrogates import ATan, FastSigmoid, Sigmoid, StraightThrough, SuperSpike, Surrogate, Triangular, spike


def triangle_integral(width: float) -> Callable[[Tensor], Tensor]:
    """Return the area of the triangle to the left of x, minus one half."""
    return lambda x: (lambda y: y - y * y.abs() / 2)(x.clamp(-width, width) / width)


# surrogate, the smooth function of which it is the derivative, and its value at 0
PRIMITIVES: list[tuple[Surrogate, Callable[[Tensor], Tensor], float]] = [
    (ATan(), lambda x: torch.atan(math.pi * x) / math.pi, 1),
    (ATan(5.0), lambda x: torch.atan(math.pi * 5 * x / 2) / math.pi, 2.5),
    (FastSigmoid(), lambda x: x / (1 + 25 * x.abs()), 1),
    (FastSigmoid(2.0), lambda x: x / (1 + 2 * x.abs()), 1),
    (SuperSpike(), lambda x: x / (1 + 100 * x.abs()), 1),
    (SuperSpike(0.5), lambda x: x / (1 + 0.5 * x.abs()), 1),
    (Sigmoid(), lambda x: torch.sigmoid(25 * x), 6.25),
    (Sigmoid(2.0), lambda x: torch.sigmoid(2 * x), 0.5),
    (Triangular(), triangle_integral(1.0), 1),
    (Triangular(0.25), triangle_integral(0.25), 4),
    (StraightThrough(), lambda x: x, 1),
]

surrogates = pytest.mark.parametrize("surrogate", [case[0] for case in PRIMITIVES], ids=str)


@pytest.mark.parametrize(("surrogate", "primitive", "peak"), PRIMITIVES, ids=[str(case[0]) for case in PRIMITIVES])
def test_is_the_derivative_of_its_primitive(
    surrogate: Surrogate, primitive: Callable[[Tensor], Tensor], peak: float
) -> None:
    h = 1e-6
    # no point is at 0 or at the edge of a triangle, where the derivative is not smooth
    x = torch.linspace(-3.01, 3.03, 1000, dtype=torch.float64)
    torch.testing.assert_close(surrogate(x), (primitive(x + h) - primitive(x - h)) / (2 * h), rtol=1e-5, atol=1e-8)
    assert surrogate(torch.zeros(1)).item() == peak


@surrogates
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_finite_symmetric_and_decreasing(surrogate: Surrogate, dtype: torch.dtype) -> None:
    x = torch.cat([torch.zeros(1, dtype=dtype), torch.logspace(-30, 4, 500, dtype=dtype)])
    value = surrogate(x)
    assert value.dtype == dtype
    assert value.isfinite().all()
    assert (value >= 0).all()
    assert (value[1:] <= value[:-1] * (1 + 4 * torch.finfo(dtype).eps)).all()
    torch.testing.assert_close(surrogate(-x), value, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


def test_sigmoid_is_accurate_in_the_tail() -> None:
    """The tail is slope exp(-slope |x|), where s (1 - s) in float32 would be 0."""
    for x in (-2.0, 2.0):
        torch.testing.assert_close(Sigmoid(25.0)(torch.tensor(x)).item(), 25 * math.exp(-50), rtol=1e-5, atol=0)


@surrogates
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_spike_is_zero_at_the_threshold(surrogate: Surrogate, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([-math.inf, -1, -tiny, -0.0, 0.0, tiny, 1, math.inf], dtype=dtype)
    assert torch.equal(spike(x, surrogate), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1], dtype=dtype))


@surrogates
def test_spike_multiplies_gradients_by_the_surrogate(surrogate: Surrogate) -> None:
    x = torch.linspace(-2, 2, 21, dtype=torch.float64).requires_grad_()
    weight = torch.randn(21, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * spike(x, surrogate)).sum(), x)
    torch.testing.assert_close(gradient, weight * surrogate(x.detach()))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, True, "2", None])
@pytest.mark.parametrize(
    ("kind", "key"),
    [(ATan, "alpha"), (SuperSpike, "alpha"), (FastSigmoid, "slope"), (Sigmoid, "slope"), (Triangular, "width")],
)
def test_refuses(kind: type[Surrogate], key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        kind(**{key: value})
