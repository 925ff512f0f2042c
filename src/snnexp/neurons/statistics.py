"""Statistics of a trace over time, read by losses, decoders, metrics and penalties.

Each has a closed form for a full trace and a streaming form that is updated step by step, so that an evaluation stores
only the statistics that are read. Both are computed per neuron. A trace has each as an attribute:
``trace.spike_count``.

    name             value                     shape
    spike_count      sum_t S                   [B, *N]
    last_spikes      S[T - 1]                  [B, *N]
    first_spike      min t with S[t] > 0       [B, *N]     T if the neuron never fires; has no gradient
    spike_time       min(first_spike, T - 1)   [B, *N]     derivative with respect to S[spike_time]: -1
    mean_membrane    (1 / T) sum_t U           [B, *N]
    sum_membrane     sum_t U                   [B, *N]
    last_membrane    U[T - 1]                  [B, *N]
    max_membrane     max_t U                   [B, *N]     ties: one step gets the gradient
    membrane         U                         [T, B, *N]
    spikes           S                         [T, B, *N]
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

STATISTICS: "dict[str, Statistic]" = {}
"""All statistics by name: every subclass of :class:`Statistic` registers itself here."""


class Statistic:
    """Abstract base class of statistics; a subclass is registered under its ``name``.

    Only :meth:`of` is required: by default, the streaming form stores all steps and calls it at the end.
    """

    name: ClassVar[str]
    """Attribute name on traces, also used in ``reads`` of a part; letters, digits and ``_``."""
    reads_spikes: ClassVar[bool] = False
    """Whether it requires a spiking neuron."""
    per_step: ClassVar[bool] = False
    """Whether it has a value for every step, which requires a full trace."""

    def __init_subclass__(cls) -> None:
        """Register the statistic.

        Raises:
            TypeError: the name is missing, invalid, or used by another class.
        """
        name = vars(cls).get("name")
        if not (isinstance(name, str) and name.isidentifier() and not name.startswith("_")):
            raise TypeError(f"{cls.__qualname__}.name: got {name!r}, must be a name of letters, digits and _")
        known = type(STATISTICS.get(name))
        if known is not type(None) and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.__qualname__}.name: {name} is taken by {known.__module__}.{known.__qualname__}")
        STATISTICS[name] = cls()

    def of(self, trace: Any) -> Tensor:
        """Compute the closed form from ``trace.spikes`` and ``trace.membrane``, ``[T, B, *N]``."""
        raise NotImplementedError

    def start(self, step: Tensor, num_steps: int) -> Any:
        """Return the initial state of the streaming form; ``step`` is an example tensor of one step, ``[B, *N]``."""
        return ([], [])

    def update(self, state: Any, t: int, spikes: Tensor, membrane: Tensor) -> Any:
        """Return the state after step t, possibly modified in place; later steps may overwrite the arguments."""
        state[0].append(spikes.clone())
        state[1].append(membrane.clone())
        return state

    def finish(self, state: Any, num_steps: int) -> Tensor:
        """Return the value after the last step."""
        return self.of(_Steps(*map(torch.stack, state)))

    def pooled(self, value: Tensor) -> Tensor:
        """Pool a value over neurons, the last axis; by default the mean."""
        return value.mean(-1)


class _Steps:
    """The steps that the default streaming form has stored, with the attributes of a trace."""

    def __init__(self, spikes: Tensor, membrane: Tensor) -> None:
        self.spikes, self.membrane = spikes, membrane


Reads: TypeAlias = str | type[Statistic] | tuple[str | type[Statistic], ...]
"""Statistics that a part reads: one, by name or class, or a tuple of several."""


def statistic_names(reads: Reads) -> tuple[str, ...]:
    """Return the names of statistics, without duplicates.

    Raises:
        ValueError: a statistic is unknown; its argument is the unknown name.
    """
    all_names = tuple(_name(each) for each in (reads if isinstance(reads, tuple) else (reads,)))
    return tuple(dict.fromkeys(all_names))


def _name(read: Any) -> str:
    name = read.name if isinstance(read, type) and issubclass(read, Statistic) else read
    if not isinstance(name, str) or name not in STATISTICS:
        raise ValueError(name)
    return name


def need_spikes(read: Iterable[str]) -> bool:
    """Return True if any of these statistics requires a spiking neuron."""
    return any(STATISTICS[name].reads_spikes for name in read)


def need_trace(read: Iterable[str]) -> bool:
    """Return True if any of these statistics requires a full trace."""
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
    """The first step with a spike, counted from 0; T if there is none."""

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
        """Return the first step in which any of the neurons fires."""
        return value.amin(-1)


class SpikeTime(FirstSpike):
    """The first step with a spike, counted from 0, or T - 1; its derivative with respect to that spike is -1."""

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
        # ten times as fast, but amax would split the gradient among ties
        return membrane.amax(0)

    def start(self, step: Tensor, num_steps: int) -> Tensor:
        return torch.full_like(step, -math.inf)

    def update(self, state: Tensor, t: int, spikes: Tensor, membrane: Tensor) -> Tensor:
        return torch.maximum(state, membrane, out=state)

    def finish(self, state: Tensor, num_steps: int) -> Tensor:
        return state


class Membrane(Statistic):
    """U at every step."""

    name = "membrane"
    per_step = True

    def of(self, trace: Any) -> Tensor:
        membrane: Tensor = trace.membrane
        return membrane


class Spikes(Statistic):
    """S at every step."""

    name = "spikes"
    reads_spikes = True
    per_step = True

    def of(self, trace: Any) -> Tensor:
        spikes: Tensor = trace.spikes
        return spikes
