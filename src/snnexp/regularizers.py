"""Penalties on the statistics of layers, added to the loss in training.

``<split>/loss``, which also selects best.ckpt, is the loss without penalties; a penalty is logged as
``<split>/penalty/<name>``.
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
"""A parameter of a penalty; a scalar tensor if it differs between members of a stack."""


@dataclass(frozen=True)
class Penalty:
    """Abstract base class of penalties; ``penalty(readings)`` returns a scalar, including its weight."""

    reads: ClassVar[Reads] = "spike_count"
    """The statistics of layers that it reads, see :mod:`snnexp.neurons.statistics`."""
    stackable: ClassVar[bool] = False
    """Whether it can be stacked: :meth:`penalty` works under ``torch.func.vmap``.

    Not inherited: each subclass must set it itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, readings: Mapping[str, Any]) -> Tensor:
        return self.penalty(readings, *self.numbers())

    def chosen(self, layers: Mapping[str, bool]) -> Sequence[str]:
        """Return the layers that it reads, by default all spiking layers before the readout.

        Args:
            layers: by name of the layer, whether it is spiking; the readout is last.
        """
        return [name for name, fires in [*layers.items()][:-1] if fires]

    def numbers(self) -> tuple[float, ...]:
        """Return the ``numbers`` argument of :meth:`penalty`."""
        return ()

    def penalty(self, readings: Mapping[str, Any], *numbers: Number) -> Tensor:
        """Compute the penalty; it must not read ``Stackable`` fields of ``self``, which differ between members.

        Args:
            readings: by layer, the statistics of a batch, and ``num_steps``.
            numbers: the result of :meth:`numbers`.
        """
        raise NotImplementedError


class _LayerPenalty(Penalty):
    """A penalty on the layers given by the argument ``layers``."""

    layers: Sequence[str] | None

    def chosen(self, layers: Mapping[str, bool]) -> Sequence[str]:
        """Return the layers in the argument ``layers``, or the default of :class:`Penalty`.

        Raises:
            ConfigError: a layer is unknown or not spiking, or there is none.
        """
        known = [name for name, fires in layers.items() if fires]
        selected = super().chosen(layers) if self.layers is None else self.layers
        if not selected or not {*selected} <= {*known}:
            names = ", ".join(known) or "none"
            got = "no hidden layer is spiking" if self.layers is None else f"got {format_value(self.layers)}"
            raise ConfigError(f"layers: {got}, must name spiking layers, of which there are {names}")
        return selected


def _rates(readings: Mapping[str, Any]) -> Tensor:
    """Return the firing rate of each neuron of all layers, averaged over the batch."""
    return torch.cat([trace.spike_count.mean(0).flatten() / trace.num_steps for trace in readings.values()])


@dataclass(frozen=True)
class L1(_LayerPenalty):
    """weight * mean over samples of the number of spikes in all layers, sum_n sum_t S.

    snnTorch's ``l1_rate_sparsity`` sums over samples instead.

    Args:
        weight: weight of the penalty.
        layers: names of layers, such as hidden1; None for all spiking layers before the readout.
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
class Band(_LayerPenalty):
    """weight * mean over hidden neurons of max(0, lower - rate)^2 + max(0, rate - upper)^2.

    The rate of a neuron is the mean over the batch of sum_t S / T; rates within the band are not penalized.

    Args:
        weight: weight of the penalty.
        lower: lower end of the band in spikes per step, 0 to 1.
        upper: upper end of the band in spikes per step, 0 to 1.
        layers: names of layers, such as hidden1; None for all spiking layers before the readout.
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
class TargetRate(_LayerPenalty):
    """weight * mean over hidden neurons of (rate - target)^2, with rate = mean over the batch of sum_t S / T.

    The mean is taken over the neurons of all layers.

    Args:
        weight: weight of the penalty.
        target: target rate in spikes per step, 0 to 1.
        layers: names of layers, such as hidden1; None for all spiking layers before the readout.
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
