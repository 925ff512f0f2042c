"""What a layer did over time, whole or without its single steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snnexp.neurons.statistics import STATISTICS, need_trace


class Trace:
    """What a layer did: ``spikes`` and ``membrane`` are ``[T, B, *N]``; ``state`` continues the sequence.

    It has every statistic under its name, such as ``spike_count`` (:mod:`snnexp.neurons.statistics`).

    Args:
        spikes: the spikes, or a function that computes them once somebody reads them.
        membrane: the membrane before reset.
        state: what the layer's next call takes as ``state``.
    """

    def __init__(self, spikes: Tensor | Callable[[], Tensor], membrane: Tensor, state: Any) -> None:
        self._spikes = spikes
        self._with_gradient = torch.is_grad_enabled()
        self.membrane = membrane
        self.state = state

    def __iter__(self) -> Iterator[Any]:
        return iter((self.spikes, self.membrane, self.state))

    def __repr__(self) -> str:
        # spikes that nobody has read yet are not computed for this
        spikes = self._spikes if isinstance(self._spikes, Tensor) else self.membrane
        return f"Trace(spikes={_outline(spikes)}, membrane={_outline(self.membrane)}, state={_outline(self.state)})"

    @property
    def given_spikes(self) -> Tensor | Callable[[], Tensor]:
        """The spikes as they were given: computed, or not yet."""
        return self._spikes

    @property
    def spikes(self) -> Tensor:
        if not isinstance(self._spikes, Tensor):
            # whoever reads them first, and without gradients, must not take these from the others
            with torch.set_grad_enabled(self._with_gradient):
                self._spikes = self._spikes()
        return self._spikes

    @property
    def num_steps(self) -> int:
        return len(self.membrane)

    @property
    def samples(self) -> int:
        """B."""
        return self.membrane.shape[1]

    def __getattr__(self, name: str) -> Tensor:
        # what every step holds is an attribute of its own, which may be missing while an object is made
        if name not in STATISTICS or STATISTICS[name].per_step:
            raise AttributeError(f"a trace has no {name}")
        return self._statistic(name)

    def _statistic(self, name: str) -> Tensor:
        return STATISTICS[name].of(self)

    def reduced(self, names: Sequence[str] = ("spike_count", "max_membrane")) -> "Trace | ReducedTrace":
        """These statistics alone; the trace itself where one of them holds every step."""
        if need_trace(names):
            return self
        return ReducedTrace(self.num_steps, self.samples, self.state, {name: getattr(self, name) for name in names})


class TupleTrace(Trace, tuple):  # type: ignore[type-arg]
    """A trace that is also the tuple (spikes, membrane, state): backward hooks find no tensors in other objects."""

    def __new__(cls, spikes: Tensor, membrane: Tensor, state: Any) -> "TupleTrace":
        return tuple.__new__(cls, (spikes, membrane, state))


def as_trace(trace: Trace) -> Trace:
    """A trace for after the hooks: whatever looks for tensors in tuples would find those of a :class:`TupleTrace`."""
    return Trace(*trace) if isinstance(trace, TupleTrace) else trace


class ReducedTrace:
    """What is left of a trace where nobody reads single time steps: statistics, as attributes of their names.

    Args:
        num_steps: T.
        samples: B.
        state: what the layer's next call takes as ``state``.
        values: the statistics, by name.
    """

    def __init__(self, num_steps: int, samples: int, state: Any, values: Mapping[str, Tensor]) -> None:
        self.num_steps, self.samples, self.state = num_steps, samples, state
        self.values = dict(values)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["values"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"of this trace, {', '.join(self.__dict__.get('values', ()))} is left") from None

    def __repr__(self) -> str:
        values = "".join(f"{name}={_outline(value)}, " for name, value in self.values.items())
        return f"ReducedTrace(num_steps={self.num_steps}, {values}state={_outline(self.state)})"


def _outline(value: Any) -> str:
    """A tensor by type and shape, ``float32[25, 128, 10]``; also within tuples, by their names."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple):
        names = [f"{name}=" for name in getattr(value, "_fields", ())] or [""] * len(value)
        inside = ", ".join(f"{name}{_outline(part)}" for name, part in zip(names, value, strict=True))
        return f"{type(value).__name__ if names[:1] != [''] else ''}({inside})"
    return repr(value)
