"""Losses: pure functions of a readout trace and a target, and the objects that a config names.

Shapes: spikes and membrane ``[T, B, K]``, labels ``[B]`` (int64), trace targets ``[T, B, *N]``. Each returns a scalar.
A loss object holds the numbers of its function and picks what it needs from a :class:`~snnexp.neurons.Trace`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.neurons.statistics import Reads, names
from snnexp.spec.annotations import Fraction, NonNegative, Stackable
from snnexp.spec.checked import check_fields

Number = float | Tensor
"""A number of a loss; a scalar tensor where each member of a stack has its own."""


def ce_membrane(membrane: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """sum over t of CE(U[t], y); CE averages over the batch (snnTorch Tutorial 5).

    With ``class_weights`` ``[K]``, the average is one with the weights of the classes of the targets.
    """
    num_steps = membrane.shape[0]
    # with the classes before the batch, a softmax over few of them is many times faster
    return num_steps * F.cross_entropy(membrane.transpose(1, 2), target.expand(num_steps, -1), class_weights)


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


def nll_max_voltage(membrane: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """NLL(log_softmax(max_t U), y) (Pehle, "Parameter learning in Spiking Neural Networks", Norse).

    ``class_weights`` are as of :func:`ce_membrane`.
    """
    return F.cross_entropy(membrane.max(0).values, target, class_weights)


def _per_class(target: Tensor, correct: Number, incorrect: Number, like: Tensor) -> Tensor:
    """``[B, K]``: ``correct`` at the class of each label, ``incorrect`` elsewhere; dtype and K of ``like``."""
    here = F.one_hot(target, like.shape[-1]).bool()
    return torch.where(here, correct, incorrect).to(like.dtype)


@dataclass(frozen=True)
class Loss:
    """A loss with its numbers; ``loss(trace, target)`` is a scalar."""

    targets: ClassVar[tuple[str, ...]] = ("labels",)
    """What it can be compared with, of ``labels``, ``trace``, ``values`` and ``step_labels``."""
    reads: ClassVar[Reads] = "membrane"
    """The statistics that it needs of a readout, such as ``membrane`` or ``spike_count``: one, or several.

    See :mod:`snnexp.neurons.statistics`."""
    decoder: ClassVar[str] = "spike_count"
    """The choice of ``decoder`` that goes with it where none is typed; of a readout that never fires, ``max_membrane``
    takes the place of one that reads spikes."""
    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: :meth:`compare` can be mapped over them by ``torch.func.vmap``.

    Not inherited: a class says it of what it computes itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, trace: Any, target: Tensor) -> Tensor:
        return self.compare(trace, target, *self.numbers(trace.num_steps))

    def numbers(self, num_steps: int) -> tuple[float | Sequence[float], ...]:
        """The numbers, or lists of them, that :meth:`compare` takes for a sequence of ``num_steps`` steps."""
        return ()

    def sees_labels(self, num_steps: int) -> bool:
        """Whether the label makes a difference after ``num_steps`` steps."""
        return True

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        """The loss with numbers that are handed over: it reads none of its own, so that members of a stack share it."""
        raise NotImplementedError

    def compared(self, trace: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """What measures of a difference compare: the first statistic that it ``reads``, and the target.

        A statistic without time is compared with the last step of a target ``[T, B, K]``, and one of every step with
        values ``[B, K]`` that stand for all steps.
        """
        output: Tensor = getattr(trace, names(self.reads)[0])
        return output, target[-1] if target.ndim > output.ndim else target.expand_as(output)


@dataclass(frozen=True)
class Weighted:
    """What losses have in common that average over samples, each with the weight of its class.

    The weights of the targets of a batch are divided by their sum, as in :func:`torch.nn.functional.cross_entropy`.

    Args:
        class_weights: one for each class; ``balanced`` for n / (K n_c), where n_c of the n training samples have the
            class; None to weigh all samples the same.
    """

    class_weights: Literal["balanced"] | Sequence[NonNegative] | None = None

    def numbers(self, num_steps: int) -> tuple[float | Sequence[float], ...]:
        """See :meth:`Loss.numbers`."""
        if self.class_weights == "balanced":
            raise ConfigError("class_weights: got balanced, and the samples of each class are not counted yet")
        return () if self.class_weights is None else (self.class_weights,)

    def balanced(self, counts: Sequence[int]) -> Self:
        """The loss with weights for classes of so many training samples.

        Raises:
            ConfigError: a class has no training sample.
        """
        if 0 in counts:
            raise ConfigError(f"class_weights: got balanced, and class {counts.index(0)} has no training sample")
        return replace(self, class_weights=[sum(counts) / (len(counts) * count) for count in counts])


def _as_weights(numbers: Sequence[Any], like: Tensor) -> Tensor | None:
    return torch.as_tensor(numbers[0], dtype=like.dtype, device=like.device) if numbers else None


@dataclass(frozen=True)
class CEMembrane(Weighted, Loss):
    """See :func:`ce_membrane`. The sum of log probabilities is highest for the class of the highest summed membrane."""

    stackable = True
    decoder = "sum_membrane"

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        return ce_membrane(trace.membrane, target, _as_weights(numbers, trace.membrane))


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
class NLLMaxVoltage(Weighted, Loss):
    """See :func:`nll_max_voltage`."""

    stackable = True
    reads = "max_membrane"
    decoder = "max_membrane"

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        # one step that holds the maximum of all
        maximum = trace.max_membrane.unsqueeze(0)
        return nll_max_voltage(maximum, target, _as_weights(numbers, maximum))
