"""Decoders: predict a class from the readout.

A decoder computes a score per class and predicts the class with the highest score, argmax_k; ties go to the lowest k.

    spike_count      sum_t S
    mean_membrane    (1 / T) sum_t U
    sum_membrane     sum_t U
    last_membrane    U[T - 1]
    max_membrane     max_t U
    first_spike      - min t with S[t] > 0
    population       sum_t S, averaged over the neurons of a class
    each_step        U[t], one class per step

where S are the readout's spikes and U its membrane before reset, ``[T, B, K]``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from snnexp.neurons.statistics import STATISTICS, Reads, statistic_names
from snnexp.spec.annotations import Count
from snnexp.spec.checked import check_fields
from snnexp.text import snake_case


@dataclass(frozen=True)
class Decoder:
    """Abstract base class of decoders; ``decoder(trace)`` returns the class with the highest score."""

    reads: ClassVar[Reads] = ()
    """The statistics of the readout that it reads, see :mod:`snnexp.neurons.statistics`."""
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    """The kinds of target that its classes can be compared with: ``labels`` or ``step_labels``."""
    stackable: ClassVar[bool] = False
    """Whether it can be stacked: :meth:`scores` works under ``torch.func.vmap``.

    Not inherited: each subclass must set it itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, trace: Any) -> Tensor:
        """Return the predicted class of each sample, ``[B]`` int64."""
        return self.scores(trace).argmax(-1)

    def scores(self, trace: Any) -> Tensor:
        """Return the score of each class, ``[B, K]``: by default the first statistic in ``reads``."""
        scores: Tensor = getattr(trace, statistic_names(self.reads)[0])
        return scores

    def undecided(self, trace: Any) -> Tensor:
        """Return True where several classes share the highest score, ``[B]`` bool."""
        scores = self.scores(trace)
        ties: Tensor = (scores == scores.amax(-1, keepdim=True)).sum(-1) > 1
        return ties

    def neurons(self, classes: int) -> int:
        """Return the number of readout neurons for a number of classes."""
        return classes

    def pooled(self, trace: Any) -> Any:
        """Return the trace as read by the loss and the metrics; :meth:`scores` takes the original trace."""
        return trace

    @property
    def display_name(self) -> str:
        """The name shown in reports."""
        return snake_case(type(self).__name__)


@dataclass(frozen=True)
class SpikeCount(Decoder):
    """The class that fired most, argmax_k sum_t S.

    Args:
        ties: the class to predict if several have the highest count: the ``lowest``, or the one with the highest
            ``membrane``, max_t U.
    """

    stackable = True
    reads = ("spike_count", "max_membrane")
    ties: Literal["lowest", "membrane"] = "lowest"

    def scores(self, trace: Any) -> Tensor:
        count: Tensor = trace.spike_count
        if self.ties == "lowest":
            return count
        # exact for any count, unlike adding a scaled membrane
        return torch.where(count == count.amax(-1, keepdim=True), trace.max_membrane, -torch.inf)


@dataclass(frozen=True)
class MeanMembrane(Decoder):
    """The class with the highest mean membrane, argmax_k sum_t U / T."""

    stackable = True
    reads = "mean_membrane"


@dataclass(frozen=True)
class SumMembrane(Decoder):
    """The class with the highest summed membrane, argmax_k sum_t U.

    If the logits U[t] are independent observations, this is the most likely class: argmax_k sum_t log softmax(U[t])_k.
    """

    stackable = True
    reads = "sum_membrane"


@dataclass(frozen=True)
class LastMembrane(Decoder):
    """The class with the highest membrane in the last step, argmax_k U[T - 1]."""

    stackable = True
    reads = "last_membrane"


@dataclass(frozen=True)
class MaxMembrane(Decoder):
    """The class with the highest peak membrane, argmax_k max_t U."""

    stackable = True
    reads = "max_membrane"


@dataclass(frozen=True)
class FirstSpike(Decoder):
    """The class that fired first; classes that never fire are tied."""

    stackable = True
    reads = "first_spike"

    def scores(self, trace: Any) -> Tensor:
        first: Tensor = trace.first_spike
        return -first


@dataclass(frozen=True)
class Population(Decoder):
    """The class whose population fired most; class k has the neurons k size to (k + 1) size - 1.

    The readout has ``size`` neurons per class. The loss, the metrics and the scores read each statistic averaged over
    the neurons of a class (``first_spike``: the minimum), so that every loss for K neurons also trains K populations.

    Args:
        size: number of neurons per class.
    """

    stackable = True
    reads = "spike_count"
    size: Count = 10

    def scores(self, trace: Any) -> Tensor:
        count: Tensor = self.pooled(trace).spike_count
        return count

    def neurons(self, classes: int) -> int:
        return classes * self.size

    def pooled(self, trace: Any) -> Any:
        return Pooled(trace, self.size)


class Pooled:
    """A readout trace whose statistics are pooled over the neurons of each class."""

    def __init__(self, trace: Any, size: int) -> None:
        self._trace, self._size = trace, size

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trace, name)
        if not isinstance(value, Tensor):
            return value
        return STATISTICS[name].pooled(torch.unflatten(value, -1, (-1, self._size)))


@dataclass(frozen=True)
class EachStep(Decoder):
    """One class per step, argmax_k U[t], ``[T, B]``; scores are ``[T, B, K]``."""

    stackable = True
    reads = "membrane"
    targets = ("step_labels",)


class Readout:
    """The input of metrics: statistics of the readout, and predictions of its decoder.

    Args:
        trace: trace of the readout.
        decoder: the decoder; None if targets are not labels.
        loss: the training loss.
    """

    def __init__(self, trace: Any, decoder: Decoder | None, loss: Any) -> None:
        self._trace, self._decoder, self._loss = trace, decoder, loss

    @property
    def predicted(self) -> Tensor:
        """The predicted class of each sample, ``[B]``."""
        return self._required_decoder(self._trace)

    @property
    def scores(self) -> Tensor:
        """The score of each class, ``[B, K]``."""
        return self._required_decoder.scores(self._trace)

    @property
    def undecided(self) -> Tensor:
        """True where several classes share the highest score, ``[B]``."""
        return self._required_decoder.undecided(self._trace)

    def compared(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the target that the loss compares."""
        pair: tuple[Tensor, Tensor] = self._loss.compared(pooled(self._decoder, self._trace), target)
        return pair

    @property
    def _required_decoder(self) -> Decoder:
        if self._decoder is None:
            raise LookupError("there is no decoder: the targets are not labels")
        return self._decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(pooled(self._decoder, self._trace), name)


def pooled(decoder: Decoder | None, trace: Any) -> Any:
    """Return a readout trace as read by the loss and the metrics."""
    return trace if decoder is None else decoder.pooled(trace)
