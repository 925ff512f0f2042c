"""Statistics of a trace: what is left of a layer's steps for losses, decoders, measures and penalties to read.

Each has a closed form on a whole trace and a streaming form that sees one step after the other, so that an evaluation
keeps what is read and nothing else. Both compute neuron by neuron, and a trace has each under its name:
``trace.spike_count``.

    name             value                     shape
    spike_count      sum_t S                   [B, *N]
    last_spikes      S[T - 1]                  [B, *N]
    first_spike      min t with S[t] > 0       [B, *N]     T where the neuron never fires; has no gradient
    spike_time       min(first_spike, T - 1)   [B, *N]     the derivative by S[spike_time] is -1
    mean_membrane    (1 / T) sum_t U           [B, *N]
    sum_membrane     sum_t U                   [B, *N]
    last_membrane    U[T - 1]                  [B, *N]
    max_membrane     max_t U                   [B, *N]     of equal steps, one gets the gradient
    membrane         U                         [T, B, *N]
    spikes           S                         [T, B, *N]
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

STATISTICS: "dict[str, Statistic]" = {}
"""By name, those of this module and of every class that was derived from :class:`Statistic` since."""


class Statistic:
    """What is read of a trace; abstract. A class that is derived from it is known by its ``name``.

    :meth:`of` alone is enough: the other methods keep the steps, and give them to it at the end.
    """

    name: ClassVar[str]
    """How a trace has it, and what ``reads`` of a loss may say; letters, digits and ``_``."""
    reads_spikes: ClassVar[bool] = False
    """Whether it needs a neuron that fires."""
    per_step: ClassVar[bool] = False
    """Whether it holds every step, so that a kernel gives the trace itself."""

    def __init_subclass__(cls) -> None:
        """Let traces know the statistic.

        Raises:
            TypeError: it has no name, or another class has the same.
        """
        name = vars(cls).get("name")
        if not (isinstance(name, str) and name.isidentifier() and not name.startswith("_")):
            raise TypeError(f"{cls.__qualname__}.name: got {name!r}, must be a name of letters, digits and _")
        known = type(STATISTICS.get(name))
        if known is not type(None) and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.__qualname__}.name: {name} is taken by {known.__module__}.{known.__qualname__}")
        STATISTICS[name] = cls()

    def of(self, trace: Any) -> Tensor:
        """The closed form, of ``trace.spikes`` and ``trace.membrane`` ``[T, B, *N]``."""
        raise NotImplementedError

    def start(self, step: Tensor, num_steps: int) -> Any:
        """The streaming form before the first of T steps; ``step`` is a tensor like one, ``[B, *N]``."""
        return ([], [])

    def update(self, state: Any, t: int, spikes: Tensor, membrane: Tensor) -> Any:
        """``state`` after step t, whose tensors ``[B, *N]`` may be overwritten later; may work in place."""
        state[0].append(spikes.clone())
        state[1].append(membrane.clone())
        return state

    def finish(self, state: Any, num_steps: int) -> Tensor:
        """The value after the last step."""
        return self.of(_Steps(*map(torch.stack, state)))

    def pooled(self, value: Tensor) -> Tensor:
        """What several neurons, the last axis, have together: their mean."""
        return value.mean(-1)


class _Steps:
    """The steps of a trace."""

    def __init__(self, spikes: Tensor, membrane: Tensor) -> None:
        self.spikes, self.membrane = spikes, membrane


Reads: TypeAlias = str | type[Statistic] | tuple[str | type[Statistic], ...]
"""What a part reads of a trace: a statistic, by name or class, or several."""


def statistic_names(reads: Reads) -> tuple[str, ...]:
    """The names of statistics.

    Raises:
        ValueError: there is no statistic of a name; the error holds what was found.
    """
    found = tuple(_name(each) for each in (reads if isinstance(reads, tuple) else (reads,)))
    return tuple(dict.fromkeys(found))


def _name(read: Any) -> str:
    name = read.name if isinstance(read, type) and issubclass(read, Statistic) else read
    if not isinstance(name, str) or name not in STATISTICS:
        raise ValueError(name)
    return name


def need_spikes(read: Iterable[str]) -> bool:
    """Whether any of these statistics needs a neuron that fires."""
    return any(STATISTICS[name].reads_spikes for name in read)


def need_trace(read: Iterable[str]) -> bool:
    """Whether any of these statistics holds every step."""
    return any(STATISTICS[name].per_step for name in read)


class SpikeCount(Statistic):
    """sum_t S."""

    name = "spike_count"
    reads_spikes = True

    def of(self, trace: Any) -> Tensor:
        total: Tensor = trace.spikes.sum(0)
        return total

    def start(self, step: Tensor, num_steps: int) -> Tensor:
        return torch.zeros_like(step)

    def update(self, state: Tensor, t: int, spikes: Tensor, membrane: Tensor) -> Tensor:
        return state.add_(spikes)

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state


class LastSpikes(Statistic):
    """S[T - 1]."""

    name = "last_spikes"
    reads_spikes = True

    def of(self, trace: Any) -> Tensor:
        last: Tensor = trace.spikes[-1]
        return last

    def start(self, step: Tensor, num_steps: int) -> Tensor:
        return torch.zeros_like(step)

    def update(self, state: Tensor, t: int, spikes: Tensor, membrane: Tensor) -> Tensor:
        return spikes

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state


class FirstSpike(Statistic):
    """The first step that fires, from 0; T where there is none."""

    name = "first_spike"
    reads_spikes = True

    def of(self, trace: Any) -> Tensor:
        spikes: Tensor = trace.spikes.detach()
        t = torch.arange(len(spikes), dtype=spikes.dtype, device=spikes.device)
        return torch.where(spikes > 0, t.view(-1, *[1] * (spikes.ndim - 1)), len(spikes)).amin(0)

    def start(self, step: Tensor, num_steps: int) -> Tensor:
        return torch.full_like(step, num_steps)

    def update(self, state: Tensor, t: int, spikes: Tensor, membrane: Tensor) -> Tensor:
        return torch.where(spikes > 0, state.clamp(max=t), state)

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state

    def pooled(self, value: Tensor) -> Tensor:
        """The first step in which any of them fires."""
        return value.amin(-1)


class SpikeTime(FirstSpike):
    """The first step that fires, from 0; T - 1 where there is none. Its derivative by the spike of that step is -1."""

    name = "spike_time"

    def of(self, trace: Any) -> Tensor:
        first = super().of(trace).clamp(max=len(trace.spikes) - 1)
        at: Tensor = trace.spikes.gather(0, first.long().unsqueeze(0)).squeeze(0)
        return first - (at - at.detach())

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state.clamp(max=num_steps - 1)

    def pooled(self, value: Tensor) -> Tensor:
        return value.mean(-1)


class SumMembrane(Statistic):
    """sum_t U."""

    name = "sum_membrane"

    def of(self, trace: Any) -> Tensor:
        total: Tensor = trace.membrane.sum(0)
        return total

    def start(self, step: Tensor, num_steps: int) -> Tensor:
        return torch.zeros_like(step)

    def update(self, state: Tensor, t: int, spikes: Tensor, membrane: Tensor) -> Tensor:
        return state.add_(membrane)

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state


class MeanMembrane(SumMembrane):
    """(1 / T) sum_t U."""

    name = "mean_membrane"

    def of(self, trace: Any) -> Tensor:
        mean: Tensor = trace.membrane.mean(0)
        return mean

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state / num_steps


class LastMembrane(Statistic):
    """U[T - 1]."""

    name = "last_membrane"

    def of(self, trace: Any) -> Tensor:
        last: Tensor = trace.membrane[-1]
        return last

    def start(self, step: Tensor, num_steps: int) -> Tensor:
        return torch.zeros_like(step)

    def update(self, state: Tensor, t: int, spikes: Tensor, membrane: Tensor) -> Tensor:
        return membrane

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state


class MaxMembrane(Statistic):
    """max_t U."""

    name = "max_membrane"

    def of(self, trace: Any) -> Tensor:
        membrane: Tensor = trace.membrane
        if torch.is_grad_enabled() and membrane.requires_grad:
            return membrane.max(0).values
        # ten times as fast, and would share the gradient
        return membrane.amax(0)

    def start(self, step: Tensor, num_steps: int) -> Tensor:
        return torch.full_like(step, -math.inf)

    def update(self, state: Tensor, t: int, spikes: Tensor, membrane: Tensor) -> Tensor:
        return torch.maximum(state, membrane, out=state)

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state


class Membrane(Statistic):
    """U, of every step."""

    name = "membrane"
    per_step = True

    def of(self, trace: Any) -> Tensor:
        membrane: Tensor = trace.membrane
        return membrane


class Spikes(Statistic):
    """S, of every step."""

    name = "spikes"
    reads_spikes = True
    per_step = True

    def of(self, trace: Any) -> Tensor:
        spikes: Tensor = trace.spikes
        return spikes
