"""Traces: the activity of a layer over time, in full or reduced to statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snnexp.neurons.statistics import STATISTICS, need_trace


class Trace:
    """Activity of a layer: ``spikes`` and ``membrane``, ``[T, B, *N]``, and ``state`` to continue the sequence.

    Every statistic is an attribute, such as ``spike_count`` (:mod:`snnexp.neurons.statistics`).

    Args:
        spikes: the spikes, or a function that computes them on first access.
        membrane: the membrane before reset.
        state: the ``state`` argument of the layer's next call.
    """

    def __init__(self, spikes: Tensor | Callable[[], Tensor], membrane: Tensor, state: Any) -> None:
        self._spikes = spikes
        self._with_gradient = torch.is_grad_enabled()
        self.membrane = membrane
        self.state = state

    def __iter__(self) -> Iterator[Any]:
        return iter((self.spikes, self.membrane, self.state))

    def __repr__(self) -> str:
        # do not compute lazy spikes only to print them
        spikes = self._spikes if isinstance(self._spikes, Tensor) else self.membrane
        return f"Trace(spikes={_outline(spikes)}, membrane={_outline(self.membrane)}, state={_outline(self.state)})"

    @property
    def given_spikes(self) -> Tensor | Callable[[], Tensor]:
        """The spikes, or the function that computes them if they were not accessed yet."""
        return self._spikes

    @property
    def spikes(self) -> Tensor:
        if not isinstance(self._spikes, Tensor):
            # a first access without gradients must not detach the spikes for later ones
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
        # spikes and membrane are regular attributes, which may be missing during construction
        if name not in STATISTICS or STATISTICS[name].per_step:
            raise AttributeError(f"a trace has no {name}")
        return self._statistic(name)

    def _statistic(self, name: str) -> Tensor:
        return STATISTICS[name].of(self)

    def reduced(self, names: Sequence[str] = ("spike_count", "max_membrane")) -> "Trace | ReducedTrace":
        """Return only these statistics, or the trace itself if one of them needs every step."""
        if need_trace(names):
            return self
        return ReducedTrace(self.num_steps, self.samples, self.state, {name: getattr(self, name) for name in names})


class TupleTrace(Trace, tuple):  # type: ignore[type-arg]
    """A trace that is also a tuple (spikes, membrane, state), so that backward hooks find its tensors."""

    def __new__(cls, spikes: Tensor, membrane: Tensor, state: Any) -> "TupleTrace":
        return tuple.__new__(cls, (spikes, membrane, state))


def as_trace(trace: Trace) -> Trace:
    """Return a plain trace, whose tensors are hidden from code that traverses tuples."""
    return Trace(*trace) if isinstance(trace, TupleTrace) else trace


class ReducedTrace:
    """A trace reduced to statistics, which are attributes by name.

    Args:
        num_steps: T.
        samples: B.
        state: the ``state`` argument of the layer's next call.
        values: the statistics, by name.
    """

    def __init__(self, num_steps: int, samples: int, state: Any, values: Mapping[str, Tensor]) -> None:
        self.num_steps, self.samples, self.state = num_steps, samples, state
        self.values = dict(values)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["values"][name]  # type: ignore[no-any-return]
        except KeyError:
            known = ", ".join(self.__dict__.get("values", ()))
            raise AttributeError(f"a reduced trace has no {name}, only {known}") from None

    def __repr__(self) -> str:
        values = "".join(f"{name}={_outline(value)}, " for name, value in self.values.items())
        return f"ReducedTrace(num_steps={self.num_steps}, {values}state={_outline(self.state)})"


def _outline(value: Any) -> str:
    """Format a tensor as dtype and shape, ``float32[25, 128, 10]``, also inside tuples."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple):
        names = [f"{name}=" for name in getattr(value, "_fields", ())] or [""] * len(value)
        inside = ", ".join(f"{name}{_outline(part)}" for name, part in zip(names, value, strict=True))
        return f"{type(value).__name__ if names[:1] != [''] else ''}({inside})"
    return repr(value)
