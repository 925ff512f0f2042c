"""Penalties: what is minimised beside the loss, of the statistics of any layer.

The loss alone is logged as ``<split>/loss`` and chooses best.ckpt; a penalty is logged as ``<split>/penalty/<name>``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.neurons.statistics import Reads
from snnexp.spec.annotations import AtLeast, Fraction, NonNegative, Stackable
from snnexp.spec.checked import check_fields
from snnexp.text import format_value

Number = float | Tensor
"""A number of a penalty; a scalar tensor where each member of a stack has its own."""


@dataclass(frozen=True)
class Penalty:
    """What is added to the loss; abstract. ``penalty(readings)`` is a scalar, its weight included."""

    reads: ClassVar[Reads] = "spike_count"
    """The statistics that it needs of its layers, see :mod:`snnexp.neurons.statistics`."""
    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: :meth:`penalty` can be mapped over them by ``torch.func.vmap``.

    Not inherited: a class says it of what it computes itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, readings: Mapping[str, Any]) -> Tensor:
        return self.penalty(readings, *self.numbers())

    def chosen(self, layers: Mapping[str, bool]) -> Sequence[str]:
        """The layers that it reads, by default those before the readout that fire.

        Args:
            layers: of the network, the readout last: by name, whether its neurons fire.
        """
        return [name for name, fires in [*layers.items()][:-1] if fires]

    def numbers(self) -> tuple[float, ...]:
        """The numbers that :meth:`penalty` takes."""
        return ()

    def penalty(self, readings: Mapping[str, Any], *numbers: Number) -> Tensor:
        """The scalar, with numbers that are handed over: it reads none of its own, so that members of a stack share it.

        Args:
            readings: by layer, its statistics of a batch, and ``num_steps``.
            numbers: as of :meth:`numbers`.
        """
        raise NotImplementedError


class _OfLayers(Penalty):
    """A penalty of the layers that its argument ``layers`` names."""

    layers: Sequence[str] | None

    def chosen(self, layers: Mapping[str, bool]) -> Sequence[str]:
        """As of :class:`Penalty`, or those of the argument ``layers``.

        Raises:
            ConfigError: one of them is no layer that fires, or none is left.
        """
        known = [name for name, fires in layers.items() if fires]
        found = super().chosen(layers) if self.layers is None else self.layers
        if not found or not {*found} <= {*known}:
            names = ", ".join(known) or "none"
            got = "no hidden layer fires" if self.layers is None else f"got {format_value(self.layers)}"
            raise ConfigError(f"layers: {got}, must name layers that fire, of which there are {names}")
        return found


def _rates(readings: Mapping[str, Any]) -> Tensor:
    """Spikes per step of each neuron of all layers, the mean over the batch."""
    return torch.cat([trace.spike_count.mean(0).flatten() / trace.num_steps for trace in readings.values()])


@dataclass(frozen=True)
class L1(_OfLayers):
    """weight * mean over samples of the number of their spikes, sum_n sum_t S, in all layers together.

    snnTorch's ``l1_rate_sparsity`` is the sum over samples instead.

    Args:
        weight: of the penalty.
        layers: names of layers, such as hidden1; None for all before the readout that fire.
    """

    stackable = True
    weight: Stackable[NonNegative] = 1e-5
    layers: Sequence[str] | None = None

    def numbers(self) -> tuple[float, ...]:
        return (self.weight,)

    def penalty(self, readings: Mapping[str, Any], *numbers: Number) -> Tensor:
        spikes = [trace.spike_count.flatten(1).sum(1).mean() for trace in readings.values()]
        return numbers[0] * torch.stack(spikes).sum()


@dataclass(frozen=True)
class Band(_OfLayers):
    """weight * mean over hidden neurons of max(0, lower - rate)^2 + max(0, rate - upper)^2.

    The rate of a neuron is the mean over the batch of sum_t S / T; within the band it costs nothing.

    Args:
        weight: of the penalty.
        lower: spikes per step, 0 to 1.
        upper: spikes per step, 0 to 1.
        layers: names of layers, such as hidden1; None for all before the readout that fire.
    """

    stackable = True
    weight: Stackable[NonNegative] = 1.0
    lower: Stackable[Fraction] = 0.01
    upper: Stackable[Annotated[Fraction, AtLeast("lower")]] = 0.2
    layers: Sequence[str] | None = None

    def numbers(self) -> tuple[float, ...]:
        return self.weight, self.lower, self.upper

    def penalty(self, readings: Mapping[str, Any], *numbers: Number) -> Tensor:
        weight, lower, upper = numbers
        rates = _rates(readings)
        outside = (lower - rates).clamp(min=0) + (rates - upper).clamp(min=0)
        return weight * outside.square().mean()


@dataclass(frozen=True)
class TargetRate(_OfLayers):
    """weight * mean over hidden neurons of (rate - target)^2, with rate = mean over the batch of sum_t S / T.

    The mean is over the neurons of all layers together.

    Args:
        weight: of the penalty.
        target: spikes per step, 0 to 1.
        layers: names of layers, such as hidden1; None for all before the readout that fire.
    """

    stackable = True
    weight: Stackable[NonNegative] = 1.0
    target: Stackable[Fraction] = 0.1
    layers: Sequence[str] | None = None

    def numbers(self) -> tuple[float, ...]:
        return self.weight, self.target

    def penalty(self, readings: Mapping[str, Any], *numbers: Number) -> Tensor:
        weight, target = numbers
        return weight * (_rates(readings) - target).square().mean()
