"""Initializers: moments and range of the drawn values."""

import math

import pytest
import torch

from snnexp.errors import ConfigError
from snnexp.initializers import Constant, Initializer, LogNormal, Normal, Uniform

N = 100_000


def draw(initializer: Initializer) -> torch.Tensor:
    torch.manual_seed(0)
    return initializer((N,)).double()


def assert_moments(values: torch.Tensor, mean: float, std: float) -> None:
    """Compare within five standard errors; that of the standard deviation depends on the fourth moment."""
    kurtosis = ((values - mean) / std).pow(4).mean().item()
    assert abs(values.mean().item() - mean) < 5 * std / math.sqrt(N)
    assert abs(values.std().item() - std) < 5 * std * math.sqrt((kurtosis - 1) / (4 * N))


@pytest.mark.parametrize("initializer", [Constant(2.0), Uniform(-1, 3), Normal(0.5, 0.1), LogNormal(100, 20)], ids=str)
def test_draws_one_value_per_neuron_from_the_seed(initializer: Initializer) -> None:
    torch.manual_seed(3)
    first, second = initializer((2, 3, 4)), initializer((2, 3, 4))
    assert first.shape == (2, 3, 4)
    assert first.dtype == torch.float32
    torch.manual_seed(3)
    assert torch.equal(initializer((2, 3, 4)), first)
    assert torch.equal(first, second) == isinstance(initializer, Constant)


def test_constant() -> None:
    assert torch.equal(Constant(-3)((2, 2)), torch.full((2, 2), -3.0))


def test_uniform() -> None:
    values = draw(Uniform(-1.0, 3.0))
    assert_moments(values, 1.0, 4 / math.sqrt(12))
    assert values.min() >= -1
    assert values.max() <= 3
    # equal bins have equal counts
    counts = values.histc(8, -1, 3)
    assert (counts - N / 8).abs().max() < 5 * math.sqrt(N / 8)


def test_uniform_of_zero_width_is_constant() -> None:
    assert torch.equal(Uniform(0.5, 0.5)((3,)), torch.full((3,), 0.5))


def test_normal() -> None:
    values = draw(Normal(100.0, 20.0))
    assert_moments(values, 100.0, 20.0)
    within = ((values - 100).abs() < 20).double().mean().item()
    assert abs(within - math.erf(1 / math.sqrt(2))) < 5 * 0.5 / math.sqrt(N)


@pytest.mark.parametrize(("mean", "std"), [(100.0, 20.0), (1.0, 1.0), (0.5, 0.1)])
def test_log_normal(mean: float, std: float) -> None:
    values = draw(LogNormal(mean, std))
    assert (values > 0).all()
    assert_moments(values, mean, std)
    # the median is mean / sqrt(1 + (std / mean)^2)
    below = (values < mean / math.sqrt(1 + (std / mean) ** 2)).double().mean().item()
    assert abs(below - 0.5) < 5 * 0.5 / math.sqrt(N)


@pytest.mark.parametrize(
    ("kind", "arguments", "key"),
    [
        (Constant, {"value": math.nan}, "value"),
        (Constant, {"value": "1"}, "value"),
        (Constant, {"value": True}, "value"),
        (Uniform, {"low": -math.inf}, "low"),
        (Uniform, {"high": math.nan}, "high"),
        (Uniform, {"low": 2.0, "high": 1.0}, "high"),
        (Normal, {"mean": None}, "mean"),
        (Normal, {"std": 0.0}, "std"),
        (Normal, {"std": -1.0}, "std"),
        (LogNormal, {"mean": 0.0}, "mean"),
        (LogNormal, {"mean": -1.0}, "mean"),
        (LogNormal, {"std": 0}, "std"),
    ],
)
def test_refuses(kind: type[Initializer], arguments: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        kind(**arguments)
