"""Mean squared error losses."""

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
    """Return MSE(sum_t S, floor(T rate)) / T, with separate rates for the correct and the incorrect classes.

    The floor is exact: T = 100 and rate .29 give 29 spikes, while snnTorch's ``int(T * rate)`` gives 28.
    """
    num_steps = spikes.shape[0]
    return _mse_to_counts(spikes.sum(0), num_steps, target, *_target_counts(num_steps, correct_rate, incorrect_rate))


def _target_counts(num_steps: int, *rates: float) -> tuple[int, ...]:
    return tuple(math.floor(num_steps * rate + 1e-9) for rate in rates)


def _mse_to_counts(count: Tensor, num_steps: int, target: Tensor, correct: Number, incorrect: Number) -> Tensor:
    return F.mse_loss(count, _class_targets(target, correct, incorrect, count)) / num_steps


def mse_membrane(membrane: Tensor, target: Tensor, on_target: Number = 1.05, off_target: Number = 0.2) -> Tensor:
    """Return the mean over t of MSE(U[t], y); the target is a trace, values for all steps, or labels.

    For a label, y is ``on_target`` at its class and ``off_target`` elsewhere.
    """
    if target.ndim == membrane.ndim:
        return F.mse_loss(membrane, target)
    if target.is_floating_point():
        return F.mse_loss(membrane, target.expand_as(membrane))
    targets = _class_targets(target, on_target, off_target, membrane)
    return F.mse_loss(membrane, targets.expand_as(membrane))


def _class_targets(target: Tensor, correct: Number, incorrect: Number, like: Tensor) -> Tensor:
    """Return ``[B, K]``: ``correct`` at the class of each label, ``incorrect`` elsewhere; dtype and K of ``like``."""
    is_label = F.one_hot(target, like.shape[-1]).bool()
    return torch.where(is_label, correct, incorrect).to(like.dtype)


@dataclass(frozen=True)
class MSECount(Loss):
    """See :func:`mse_count`."""

    stackable = True
    reads = "spike_count"
    correct_rate: Stackable[Fraction] = 0.8
    incorrect_rate: Stackable[Fraction] = 0.2

    def numbers(self, num_steps: int) -> tuple[float, ...]:
        return _target_counts(num_steps, self.correct_rate, self.incorrect_rate)

    def sees_labels(self, num_steps: int) -> bool:
        correct, incorrect = self.numbers(num_steps)
        return correct != incorrect

    def compare(self, trace: Any, target: Tensor, *numbers: Number) -> Tensor:
        return _mse_to_counts(trace.spike_count, trace.num_steps, target, *numbers)


@dataclass(frozen=True)
class MSEMembrane(Loss):
    """See :func:`mse_membrane`. The default ``on_target`` is above the usual threshold of 1, so the class fires."""

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
    """MSE(U[T - 1], y); y is the last step of a trace, values, or given by labels as in :func:`mse_membrane`."""

    stackable = True
    reads = "last_membrane"
    decoder = "last_membrane"

    def compare(self, trace: Any, target: Tensor, *numbers: Number) -> Tensor:
        last = trace.last_membrane
        return mse_membrane(last.unsqueeze(0), target[-1:] if target.ndim > last.ndim else target, *numbers)


@dataclass(frozen=True)
class MSETemporal(Loss):
    """Mean of ((t_k - y_k) / T)^2, where t_k is the first step in which neuron k fires, or T - 1 if it never does.

    The target times y_k are given by the label. The derivative of t_k is -1 with respect to the spike S_k[t_k] and 0
    with respect to all others, as in ``mse_temporal_loss`` of snnTorch.

    Args:
        on_target: y_k of the labeled class, a step; -1 is the last step.
        off_target: y_k of the other classes.
        tolerance: errors of fewer steps than this count as zero.
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
        targets = _class_targets(target, numbers[0], numbers[1], time)
        is_close = (time.detach() - targets).abs() < self.tolerance
        loss: Tensor = F.mse_loss(torch.where(is_close, targets, time), targets) / trace.num_steps**2
        return loss
