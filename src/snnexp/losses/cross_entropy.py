"""Cross-entropy losses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.losses.loss import Loss, Number
from snnexp.neurons.statistics import Reads, statistic_names
from snnexp.spec.annotations import Fraction, NonNegative, Positive, Stackable


def ce_membrane(membrane: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the sum over t of CE(U[t], y); CE averages over the batch (snnTorch Tutorial 5).

    ``class_weights`` ``[K]`` give a weighted average, as in :func:`torch.nn.functional.cross_entropy`.
    """
    num_steps = membrane.shape[0]
    # a softmax over few classes is many times faster with the class axis before the batch axis
    return num_steps * F.cross_entropy(membrane.transpose(1, 2), target.expand(num_steps, -1), class_weights)


def nll_max_voltage(membrane: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return NLL(log_softmax(max_t U), y) (Pehle, "Parameter learning in Spiking Neural Networks", Norse).

    See :func:`ce_membrane` for ``class_weights``.
    """
    return F.cross_entropy(membrane.max(0).values, target, class_weights)


@dataclass(frozen=True)
class CrossEntropy:
    """Mixin of cross-entropy losses: -log softmax(x)_y of logits x, ``[B, K]``, and a label y.

    The logits are the first statistic in ``reads``. The mean over samples is weighted by the class of the label, as in
    :func:`torch.nn.functional.cross_entropy`.

    Args:
        class_weights: one weight per class; ``balanced`` for n / (K n_c), where n_c of the n training samples have
            class c; None for equal weights.
        label_smoothing: e, for a target of 1 - e + e / K at the label and e / K elsewhere.
    """

    reads: ClassVar[Reads]
    class_weights: Literal["balanced"] | Sequence[NonNegative] | None = None
    label_smoothing: Fraction = 0.0

    def numbers(self, num_steps: int) -> tuple[float | Sequence[float], ...]:
        """See :meth:`Loss.numbers`."""
        if self.class_weights == "balanced":
            raise ConfigError("class_weights: got balanced, but the class counts are not known yet")
        return () if self.class_weights is None else (self.class_weights,)

    def balanced(self, counts: Sequence[int]) -> Self:
        """Return the loss with balanced weights for classes with these numbers of training samples.

        Raises:
            ConfigError: a class has no training samples.
        """
        if 0 in counts:
            raise ConfigError(f"class_weights: got balanced, but class {counts.index(0)} has no training samples")
        return replace(self, class_weights=[sum(counts) / (len(counts) * count) for count in counts])

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        logits: Tensor = getattr(trace, statistic_names(self.reads)[0])
        return self.cross_entropy(logits, target, *numbers)

    def cross_entropy(self, logits: Tensor, target: Tensor, *numbers: Any) -> Tensor:
        """Return the cross-entropy of logits ``[B, K, ...]`` and labels ``[B, ...]``."""
        weights = torch.as_tensor(numbers[0], dtype=logits.dtype, device=logits.device) if numbers else None
        return F.cross_entropy(logits, target, weights, label_smoothing=self.label_smoothing)

    def mean_over_steps(self, logits: Tensor, target: Tensor, *numbers: Any) -> Tensor:
        """Return the mean over steps for logits ``[T, B, K]`` and labels ``[B]`` or ``[T, B]``."""
        # a softmax over few classes is many times faster with the class axis before the batch axis
        return self.cross_entropy(logits.transpose(1, 2), target.expand(len(logits), -1), *numbers)


@dataclass(frozen=True)
class CEMembrane(CrossEntropy, Loss):
    """See :func:`ce_membrane`. The class with the highest summed membrane has the highest sum of log probabilities."""

    stackable = True
    decoder = "sum_membrane"

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        num_steps: int = trace.num_steps
        return num_steps * self.mean_over_steps(trace.membrane, target, *numbers)


@dataclass(frozen=True)
class CEEachStep(CrossEntropy, Loss):
    """Mean over t of CE(U[t], y[t]), with one label per step."""

    stackable = True
    targets = ("step_labels",)
    decoder = "each_step"

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        return self.mean_over_steps(trace.membrane, target, *numbers)


@dataclass(frozen=True)
class CERate(CrossEntropy, Loss):
    """Mean over t of CE(S[t], y): the correct class should fire at every step (``ce_rate_loss`` of snnTorch)."""

    stackable = True
    reads = "spikes"

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        return self.mean_over_steps(trace.spikes, target, *numbers)


@dataclass(frozen=True)
class CECount(CrossEntropy, Loss):
    """CE(scale sum_t S, y) (``ce_count_loss`` of snnTorch, with scale 1).

    Args:
        class_weights: see :class:`CrossEntropy`.
        label_smoothing: see :class:`CrossEntropy`.
        scale: factor of the counts; for populations of n neurons, whose counts are means, n gives the sum.
    """

    stackable = True
    reads = "spike_count"
    scale: Positive = 1.0

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        return self.cross_entropy(self.scale * trace.spike_count, target, *numbers)


@dataclass(frozen=True)
class CEMeanMembrane(CrossEntropy, Loss):
    """CE((1 / T) sum_t U, y). With a ``linear`` readout, U is a linear function of the mean spikes."""

    stackable = True
    reads = "mean_membrane"
    decoder = "mean_membrane"


@dataclass(frozen=True)
class CESumMembrane(CrossEntropy, Loss):
    """CE(sum_t U, y). With a ``linear`` readout, sum_t U is a linear function of the spike counts, plus T biases."""

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
class BCE(Loss):
    """Binary cross-entropy -[w y log p + (1 - y) log(1 - p)] with p = sigmoid(x), averaged over outputs.

    x is the membrane of each step if the target is a trace, else the mean membrane over time. y is a probability, 0 or
    1, or a one-hot encoded label. Regression metrics compare p with y.

    Args:
        pos_weight: w, the weight of positive targets (``pos_weight`` of :class:`torch.nn.BCEWithLogitsLoss`).
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
            raise ConfigError(f"loss: BCE requires targets from 0 to 1, got {low:g} to {high:g}")

    def compare(self, trace: Any, target: Tensor, *numbers: Number) -> Tensor:
        logits, y = self._logits(trace, target)
        weight = torch.as_tensor(numbers[0], dtype=logits.dtype, device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, y, pos_weight=weight)

    def compared(self, trace: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        logits, y = self._logits(trace, target)
        return logits.sigmoid(), y

    def _logits(self, trace: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = trace.membrane if target.ndim == trace.membrane.ndim else trace.mean_membrane
        return logits, target if target.is_floating_point() else F.one_hot(target, logits.shape[-1]).to(logits.dtype)
