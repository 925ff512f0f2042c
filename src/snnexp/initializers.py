"""Initializers of neuron parameters, which draw from PyTorch's global generator."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from snnexp.spec.annotations import AtLeast, Positive
from snnexp.spec.checked import check_fields


@dataclass(frozen=True)
class Initializer:
    """Abstract base class of initializers; ``initializer(features)`` draws one value per neuron."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, features: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Initializer):
    """The same value for every neuron, as separate elements of the parameter."""

    value: float

    def __call__(self, features: tuple[int, ...]) -> Tensor:
        return torch.full(features, float(self.value))


@dataclass(frozen=True)
class Uniform(Initializer):
    """low + (high - low) u, with u uniform on [0, 1)."""

    low: float = 0.0
    high: Annotated[float, AtLeast("low")] = 1.0

    def __call__(self, features: tuple[int, ...]) -> Tensor:
        return self.low + (self.high - self.low) * torch.rand(features)


@dataclass(frozen=True)
class Normal(Initializer):
    """mean + std z, with z standard normal."""

    mean: float = 0.0
    std: Positive = 1.0

    def __call__(self, features: tuple[int, ...]) -> Tensor:
        return self.mean + self.std * torch.randn(features)


@dataclass(frozen=True)
class LogNormal(Initializer):
    """exp(mu + sigma z), always positive; ``mean`` and ``std`` are the moments of the drawn values.

    sigma^2 = log(1 + (std / mean)^2), mu = log(mean) - sigma^2 / 2.
    """

    mean: Positive = 1.0
    std: Positive = 1.0

    def __call__(self, features: tuple[int, ...]) -> Tensor:
        variance = math.log1p((self.std / self.mean) ** 2)
        return torch.exp(math.log(self.mean) - variance / 2 + math.sqrt(variance) * torch.randn(features))
