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
from snnexp.spec.annotations import Fraction, Index, NonNegative, Positive, Stackable
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

    def require_range(self, low: float, high: float) -> None:
        """Refuse targets that the loss cannot compare with.

        Args:
            low: the lowest target.
            high: the highest.

        Raises:
            ConfigError: one of them is out of range.
        """

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        """The loss with numbers that are handed over; members of a stack share what it reads of its own."""
        raise NotImplementedError

    def compared(self, trace: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """What measures of a difference compare: the first statistic that it ``reads``, and the target.

        A statistic without time is compared with the last step of a target ``[T, B, K]``, and one of every step with
        values ``[B, K]`` that stand for all steps.
        """
        output: Tensor = getattr(trace, names(self.reads)[0])
        return output, target[-1] if target.ndim > output.ndim else target.expand_as(output)


@dataclass(frozen=True)
class CrossEntropy:
    """What losses by cross-entropy have in common: -log softmax(x)_y of logits x, ``[B, K]``, and a label y.

    The logits are the first statistic that the loss ``reads``. The mean over samples weighs each one by the class of
    its label, and divides by the sum of these weights, as :func:`torch.nn.functional.cross_entropy` does.

    Args:
        class_weights: one for each class; ``balanced`` for n / (K n_c), where n_c of the n training samples have the
            class; None to weigh all samples the same.
        label_smoothing: e, for targets of 1 - e + e / K at the label and e / K elsewhere.
    """

    reads: ClassVar[Reads]
    class_weights: Literal["balanced"] | Sequence[NonNegative] | None = None
    label_smoothing: Fraction = 0.0

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

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        logits: Tensor = getattr(trace, names(self.reads)[0])
        return self.cross_entropy(logits, target, *numbers)

    def cross_entropy(self, logits: Tensor, target: Tensor, *numbers: Any) -> Tensor:
        """That of logits ``[B, K, ...]`` and labels ``[B, ...]``."""
        weights = torch.as_tensor(numbers[0], dtype=logits.dtype, device=logits.device) if numbers else None
        return F.cross_entropy(logits, target, weights, label_smoothing=self.label_smoothing)

    def of_steps(self, logits: Tensor, target: Tensor, *numbers: Any) -> Tensor:
        """The mean over steps of logits ``[T, B, K]``, with labels ``[B]`` or ``[T, B]``."""
        # with the classes before the batch, a softmax over few of them is many times faster
        return self.cross_entropy(logits.transpose(1, 2), target.expand(len(logits), -1), *numbers)


@dataclass(frozen=True)
class CEMembrane(CrossEntropy, Loss):
    """See :func:`ce_membrane`. The sum of log probabilities is highest for the class of the highest summed membrane."""

    stackable = True
    decoder = "sum_membrane"

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        num_steps: int = trace.num_steps
        return num_steps * self.of_steps(trace.membrane, target, *numbers)


@dataclass(frozen=True)
class CEEachStep(CrossEntropy, Loss):
    """mean over t of CE(U[t], y[t]); a label for each step."""

    stackable = True
    targets = ("step_labels",)
    decoder = "each_step"

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        return self.of_steps(trace.membrane, target, *numbers)


@dataclass(frozen=True)
class CERate(CrossEntropy, Loss):
    """mean over t of CE(S[t], y): the correct class shall fire at all steps (``ce_rate_loss`` of snnTorch)."""

    stackable = True
    reads = "spikes"

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        return self.of_steps(trace.spikes, target, *numbers)


@dataclass(frozen=True)
class CECount(CrossEntropy, Loss):
    """CE(scale sum_t S, y) (``ce_count_loss`` of snnTorch, with scale 1).

    Args:
        class_weights: as of :class:`CrossEntropy`.
        label_smoothing: as of :class:`CrossEntropy`.
        scale: of the counts. A population of n neurons per class has its mean count; n makes it the sum.
    """

    stackable = True
    reads = "spike_count"
    scale: Positive = 1.0

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        return self.cross_entropy(self.scale * trace.spike_count, target, *numbers)


@dataclass(frozen=True)
class CEMeanMembrane(CrossEntropy, Loss):
    """CE((1 / T) sum_t U, y). Of a ``linear`` readout it is that of a linear layer on the mean spikes."""

    stackable = True
    reads = "mean_membrane"
    decoder = "mean_membrane"


@dataclass(frozen=True)
class CESumMembrane(CrossEntropy, Loss):
    """CE(sum_t U, y). Of a ``linear`` readout it is that of a linear layer on the spike counts, with T biases."""

    stackable = True
    reads = "sum_membrane"
    decoder = "sum_membrane"


@dataclass(frozen=True)
class CELastMembrane(CrossEntropy, Loss):
    """CE(U[T - 1], y)."""

    stackable = True
    reads = "last_membrane"
    decoder = "last_membrane"


@dataclass(frozen=True)
class NLLMaxVoltage(CrossEntropy, Loss):
    """See :func:`nll_max_voltage`; ``ce_max_membrane_loss`` of snnTorch."""

    stackable = True
    reads = "max_membrane"
    decoder = "max_membrane"


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


@dataclass(frozen=True)
class BCE(Loss):
    """-[w y log p + (1 - y) log(1 - p)], the mean over outputs, with p = sigmoid(x): one decision for each output.

    x is the mean membrane over time, or with a trace the membrane of each step. y is 0 or 1, or a probability; a label
    gives 1 for its class and 0 for all others. Measures of a difference compare p with y.

    Args:
        pos_weight: w, of what is 1 (``pos_weight`` of :class:`torch.nn.BCEWithLogitsLoss`).
    """

    stackable = True
    targets = ("labels", "values", "trace")
    reads = ("membrane", "mean_membrane")
    decoder = "mean_membrane"
    pos_weight: Stackable[Positive] = 1.0

    def numbers(self, num_steps: int) -> tuple[float, ...]:
        return (self.pos_weight,)

    def require_range(self, low: float, high: float) -> None:
        if low < 0 or high > 1:
            raise ConfigError(f"loss: BCE compares with targets from 0 to 1, these data have {low:g} to {high:g}")

    def compare(self, trace: Any, target: Tensor, *numbers: Number) -> Tensor:
        logits, wanted = self._logits(trace, target)
        weight = torch.as_tensor(numbers[0], dtype=logits.dtype, device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight)

    def compared(self, trace: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        logits, wanted = self._logits(trace, target)
        return logits.sigmoid(), wanted

    def _logits(self, trace: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = trace.membrane if target.ndim == trace.membrane.ndim else trace.mean_membrane
        return logits, target if target.is_floating_point() else F.one_hot(target, logits.shape[-1]).to(logits.dtype)
