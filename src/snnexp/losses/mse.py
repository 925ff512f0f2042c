"""Losses by mean squared error."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.losses.loss import Loss, Number
from snnexp.spec.annotations import Fraction, Index, Stackable


def mse_count(spikes: Tensor, target: Tensor, correct_rate: float = 0.8, incorrect_rate: float = 0.2) -> Tensor:
    """MSE(sum_t S, round-down(T rate)) / T; the correct class shall fire at one rate, all others at another.

    Rounds down exactly, T = 100 and rate .29 give 29 spikes, where snnTorch's ``int(T * rate)`` gives 28.
    """
    num_steps = spikes.shape[0]
    return _mse_to_counts(spikes.sum(0), num_steps, target, *_rounded_down(num_steps, correct_rate, incorrect_rate))


def _rounded_down(num_steps: int, *rates: float) -> tuple[int, ...]:
    return tuple(math.floor(num_steps * rate + 1e-9) for rate in rates)


def _mse_to_counts(count: Tensor, num_steps: int, target: Tensor, correct: Number, incorrect: Number) -> Tensor:
    return F.mse_loss(count, _per_class(target, correct, incorrect, count)) / num_steps


def mse_membrane(membrane: Tensor, target: Tensor, on_target: Number = 1.05, off_target: Number = 0.2) -> Tensor:
    """mean over t of MSE(U[t], y); y is a trace, or values for all steps, or made of labels.

    Of a label, y is ``on_target`` at its class and ``off_target`` elsewhere.
    """
    if target.ndim == membrane.ndim:
        return F.mse_loss(membrane, target)
    if target.is_floating_point():
        return F.mse_loss(membrane, target.expand_as(membrane))
    wanted = _per_class(target, on_target, off_target, membrane)
    return F.mse_loss(membrane, wanted.expand_as(membrane))


def _per_class(target: Tensor, correct: Number, incorrect: Number, like: Tensor) -> Tensor:
    """``[B, K]``: ``correct`` at the class of each label, ``incorrect`` elsewhere; dtype and K of ``like``."""
    here = F.one_hot(target, like.shape[-1]).bool()
    return torch.where(here, correct, incorrect).to(like.dtype)


@dataclass(frozen=True)
class MSECount(Loss):
    """See :func:`mse_count`."""

    stackable = True
    reads = "spike_count"
    correct_rate: Stackable[Fraction] = 0.8
    incorrect_rate: Stackable[Fraction] = 0.2

    def numbers(self, num_steps: int) -> tuple[float, ...]:
        return _rounded_down(num_steps, self.correct_rate, self.incorrect_rate)

    def sees_labels(self, num_steps: int) -> bool:
        correct, incorrect = self.numbers(num_steps)
        return correct != incorrect

    def compare(self, trace: Any, target: Tensor, *numbers: Number) -> Tensor:
        return _mse_to_counts(trace.spike_count, trace.num_steps, target, *numbers)


@dataclass(frozen=True)
class MSEMembrane(Loss):
    """See :func:`mse_membrane`. The class of a label fires: its target lies above the usual threshold of 1."""

    stackable = True
    targets = ("labels", "trace", "values")
    on_target: Stackable[float] = 1.05
    off_target: Stackable[float] = 0.2

    def numbers(self, num_steps: int) -> tuple[float, ...]:
        return self.on_target, self.off_target

    def sees_labels(self, num_steps: int) -> bool:
        return self.on_target != self.off_target

    def compare(self, trace: Any, target: Tensor, *numbers: Number) -> Tensor:
        return mse_membrane(trace.membrane, target, *numbers)


@dataclass(frozen=True)
class MSELast(MSEMembrane):
    """MSE(U[T - 1], y); y is the last step of a trace, or values, or made of labels as in :func:`mse_membrane`."""

    stackable = True
    reads = "last_membrane"
    decoder = "last_membrane"

    def compare(self, trace: Any, target: Tensor, *numbers: Number) -> Tensor:
        last = trace.last_membrane
        return mse_membrane(last.unsqueeze(0), target[-1:] if target.ndim > last.ndim else target, *numbers)


@dataclass(frozen=True)
class MSETemporal(Loss):
    """mean of ((t_k - y_k) / T)^2; neuron k first fires at step t_k, or never, and then t_k = T - 1.

    A label gives the times y_k. The derivative of t_k by the spike S_k[t_k] is taken for -1, and is 0 for all other
    spikes, as in ``mse_temporal_loss`` of snnTorch.

    Args:
        on_target: y_k of the class of the label, a step; -1 is the last one.
        off_target: y_k of all others.
        tolerance: times that are less than so many steps from their target count as met.
    """

    stackable = True
    reads = "spike_time"
    decoder = "first_spike"
    on_target: int = 0
    off_target: int = -1
    tolerance: Index = 0

    def numbers(self, num_steps: int) -> tuple[float, ...]:
        for name, step in (("on_target", self.on_target), ("off_target", self.off_target)):
            if not -num_steps <= step < num_steps:
                raise ConfigError(f"{name}: got {step}, must be a step from {-num_steps} to {num_steps - 1}")
        return self.on_target % num_steps, self.off_target % num_steps

    def sees_labels(self, num_steps: int) -> bool:
        correct, incorrect = self.numbers(num_steps)
        return correct != incorrect

    def compare(self, trace: Any, target: Tensor, *numbers: Number) -> Tensor:
        time: Tensor = trace.spike_time
        wanted = _per_class(target, numbers[0], numbers[1], time)
        met = (time.detach() - wanted).abs() < self.tolerance
        loss: Tensor = F.mse_loss(torch.where(met, wanted, time), wanted) / trace.num_steps**2
        return loss
