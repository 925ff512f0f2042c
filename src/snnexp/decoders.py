"""Decoders: how a class is read off a readout.

A decoder has a score for each class, and the class is the one with the highest: argmax_k, of equal ones the lowest.

    spike_count      sum_t S
    mean_membrane    (1 / T) sum_t U
    sum_membrane     sum_t U
    last_membrane    U[T - 1]
    max_membrane     max_t U
    first_spike      - min t with S[t] > 0
    population       sum_t S, averaged over the neurons of a class
    each_step        U[t], a class for each step

with the readout's spikes S and its membrane before reset U, ``[T, B, K]``.
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
    """Scores of classes; ``decoder(trace)`` is the class with the highest. Abstract."""

    reads: ClassVar[Reads] = ()
    """The statistics that it needs of a readout, see :mod:`snnexp.neurons.statistics`."""
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    """What its classes can be compared with: ``labels``, or ``step_labels``."""
    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: :meth:`scores` can be mapped over them by ``torch.func.vmap``.

    Not inherited: a class says it of what it computes itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, trace: Any) -> Tensor:
        """The class of each sample, ``[B]`` int64."""
        return self.scores(trace).argmax(-1)

    def scores(self, trace: Any) -> Tensor:
        """How much speaks for each class, ``[B, K]``: by default the first statistic that the decoder ``reads``."""
        found: Tensor = getattr(trace, statistic_names(self.reads)[0])
        return found

    def undecided(self, trace: Any) -> Tensor:
        """Whether several classes share the highest score, ``[B]`` bool."""
        scores = self.scores(trace)
        ties: Tensor = (scores == scores.amax(-1, keepdim=True)).sum(-1) > 1
        return ties

    def neurons(self, classes: int) -> int:
        """How many neurons a readout has for so many classes."""
        return classes

    def pooled(self, trace: Any) -> Any:
        """What the loss and the measures see of a readout's trace; :meth:`scores` takes the trace itself."""
        return trace

    @property
    def display_name(self) -> str:
        """The name that reports show."""
        return snake_case(type(self).__name__)


@dataclass(frozen=True)
class SpikeCount(Decoder):
    """The class that fired most, argmax_k sum_t S.

    Args:
        ties: which of the classes that fired equally often: the ``lowest``, or the one with the highest ``membrane``,
            max_t U.
    """

    stackable = True
    reads = ("spike_count", "max_membrane")
    ties: Literal["lowest", "membrane"] = "lowest"

    def scores(self, trace: Any) -> Tensor:
        count: Tensor = trace.spike_count
        if self.ties == "lowest":
            return count
        # exact for any count, unlike a sum of both
        return torch.where(count == count.amax(-1, keepdim=True), trace.max_membrane, -torch.inf)


@dataclass(frozen=True)
class MeanMembrane(Decoder):
    """The class with the highest mean membrane, argmax_k sum_t U / T."""

    stackable = True
    reads = "mean_membrane"


@dataclass(frozen=True)
class SumMembrane(Decoder):
    """The class with the highest summed membrane, argmax_k sum_t U.

    For logits U[t] that are independent observations it is the most likely one: argmax_k sum_t log softmax(U[t])_k.
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
    """The class whose membrane rose highest, argmax_k max_t U."""

    stackable = True
    reads = "max_membrane"


@dataclass(frozen=True)
class FirstSpike(Decoder):
    """The class that fired first; of classes that never fire, none is before another."""

    stackable = True
    reads = "first_spike"

    def scores(self, trace: Any) -> Tensor:
        first: Tensor = trace.first_spike
        return -first


@dataclass(frozen=True)
class Population(Decoder):
    """The class whose neurons fired most on average; class k has the neurons k size to (k + 1) size - 1.

    The readout has ``size`` neurons for each class. The loss, the measures and the scores see each statistic averaged
    over the neurons of a class, and as ``first_spike`` that of any of them, so that a loss of K classes trains a
    population as it trains K neurons. A tie goes to the lowest class.

    Args:
        size: neurons of each class.
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
    """A readout's trace whose statistics are those of classes: means over their neurons, or their first spike."""

    def __init__(self, trace: Any, size: int) -> None:
        self._trace, self._size = trace, size

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trace, name)
        if not isinstance(value, Tensor):
            return value
        return STATISTICS[name].pooled(torch.unflatten(value, -1, (-1, self._size)))


@dataclass(frozen=True)
class EachStep(Decoder):
    """A class for each step, argmax_k U[t], ``[T, B]``; scores are ``[T, B, K]``."""

    stackable = True
    reads = "membrane"
    targets = ("step_labels",)


class Readout:
    """What measures see of a readout: its statistics, and what its decoder makes of them.

    Args:
        trace: the readout's.
        decoder: how a class is read off it; None where targets are no labels.
        loss: what it is trained by.
    """

    def __init__(self, trace: Any, decoder: Decoder | None, loss: Any) -> None:
        self._trace, self._decoder, self._loss = trace, decoder, loss

    @property
    def predicted(self) -> Tensor:
        """The class of each sample, ``[B]``."""
        return self._decodes(self._trace)

    @property
    def scores(self) -> Tensor:
        """The score of each class, ``[B, K]``."""
        return self._decodes.scores(self._trace)

    @property
    def undecided(self) -> Tensor:
        """Whether several classes share the highest score, ``[B]``."""
        return self._decodes.undecided(self._trace)

    def compared(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """What the loss compares, and what it is compared with."""
        found: tuple[Tensor, Tensor] = self._loss.compared(pooled(self._decoder, self._trace), target)
        return found

    @property
    def _decodes(self) -> Decoder:
        if self._decoder is None:
            raise LookupError("these targets are no labels, so that there is no decoder")
        return self._decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(pooled(self._decoder, self._trace), name)


def pooled(decoder: Decoder | None, trace: Any) -> Any:
    """What the loss and the measures see of a readout's trace."""
    return trace if decoder is None else decoder.pooled(trace)
