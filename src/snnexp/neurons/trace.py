"""What a layer did over time, whole or without its single steps."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Trace:
    """What a layer did: ``spikes`` and ``membrane`` are ``[T, B, *N]``; ``state`` continues the sequence.

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
    def spike_count(self) -> Tensor:
        """sum_t S, ``[B, *N]``."""
        return self.spikes.sum(0)

    @property
    def last_spikes(self) -> Tensor:
        """S[T - 1], ``[B, *N]``."""
        return self.spikes[-1]

    @property
    def max_membrane(self) -> Tensor:
        """max_t U, ``[B, *N]``; of equal steps, one gets the gradient."""
        if torch.is_grad_enabled() and self.membrane.requires_grad:
            return self.membrane.max(0).values
        # ten times as fast, and would share the gradient
        return self.membrane.amax(0)

    def reduced(self) -> "Reduced":
        return Reduced(self.num_steps, self.spike_count, self.last_spikes, self.max_membrane, self.state)


class CalledTrace(Trace, tuple):  # type: ignore[type-arg]
    """A trace that is also the tuple (spikes, membrane, state): backward hooks find no tensors in other objects."""

    def __new__(cls, spikes: Tensor, membrane: Tensor, state: Any) -> "CalledTrace":
        return tuple.__new__(cls, (spikes, membrane, state))


def without_tuple(trace: Trace) -> Trace:
    """A trace for after the hooks: whatever looks for tensors in tuples would find those of a :class:`CalledTrace`."""
    return Trace(*trace) if isinstance(trace, CalledTrace) else trace


class Reduced(NamedTuple):
    """What is left of a trace where nobody reads single time steps; the names are those of :class:`Trace`."""

    num_steps: int
    spike_count: Tensor
    last_spikes: Tensor
    max_membrane: Tensor
    state: Any

    def __repr__(self) -> str:
        return _outline(self)


def _outline(value: Any) -> str:
    """A tensor by type and shape, ``float32[25, 128, 10]``; also within tuples, by their names."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple):
        names = [f"{name}=" for name in getattr(value, "_fields", ())] or [""] * len(value)
        inside = ", ".join(f"{name}{_outline(part)}" for name, part in zip(names, value, strict=True))
        return f"{type(value).__name__ if names[:1] != [''] else ''}({inside})"
    return repr(value)
