"""Metrics, accumulated over batches, processes and members of a stack.

Shapes: spikes and membrane ``[T, B, *N]``, labels and predictions ``[B]``. A metric turns a batch into a state, a tuple
of tensors; states are merged, and the value is computed from the merged state. The state of a mean is a sum and a
count, so that batches and processes may differ in size. :class:`Totals` accumulates states.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from snnexp.neurons.statistics import Reads
from snnexp.spec.checked import check_fields

State = tuple[Tensor, ...]
"""State of a metric: tensors of any shape; in a stack, with the member axis first."""
Sum = tuple[Tensor, Tensor]
"""State of a mean: a sum and an integer count, scalar tensors or one value per member of a stack."""


@dataclass(frozen=True)
class Measure:
    """Abstract base class of metrics; a mean only defines :meth:`update`.

    The readout has ``num_steps``, the statistics in ``reads``, and ``predicted`` (``[B]``), ``scores`` (``[B, K]``) and
    ``undecided`` (``[B]``) from the decoder.
    """

    reads: ClassVar[Reads] = ()
    """The statistics that it reads besides those of the decoder, see :mod:`snnexp.neurons.statistics`."""
    targets: ClassVar[tuple[str, ...]] = ("labels", "step_labels")
    """The kinds of target that it is defined for."""
    higher_is_better: ClassVar[bool | None] = None
    """The direction of improvement; None if there is none."""
    stackable: ClassVar[bool] = False
    """Whether it can be stacked: its methods work under ``torch.func.vmap``.

    Not inherited: each subclass must set it itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def update(self, readout: Any, target: Tensor) -> State:
        """Return the state of a batch."""
        raise NotImplementedError

    def merge(self, state: State, other: State) -> State:
        """Merge the states of two parts of a split; by default, add them."""
        return tuple(a + b for a, b in zip(state, other, strict=True))

    def compute(self, state: State) -> Tensor:
        """Return the value, a scalar; NaN if the count is 0."""
        total, count = state
        return total / count


class Totals:
    """Accumulated states of metrics over the batches of a split and over all processes.

    Sums are float64 if the device supports it: in float32, the error over many batches exceeds 1e-6.

    Args:
        measures: metrics by name without the split; names without a metric are means.
        stacked: whether states have a member axis.
    """

    def __init__(self, measures: Mapping[str, Measure], stacked: bool = False) -> None:
        self._measures, self._stacked = measures, stacked
        self._states: dict[str, State] = {}

    def add(self, states: Mapping[str, State]) -> None:
        """Merge the states of a batch."""
        for name, state in states.items():
            state = tuple(map(_to_float64, state))
            self._states[name] = self._merge(name, self._states[name], state) if name in self._states else state

    def clear(self) -> None:
        """Reset all states."""
        self._states = {}

    def take(
        self,
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        gather: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: [tensor],
    ) -> dict[str, Tensor]:
        """Compute all values by name, and reset all states. NaN if a count is 0.

        Args:
            reduce: sums a tensor over all processes, which must have the same names.
            gather: returns the tensor of each process; their sizes may differ.
        """
        states = self._states
        self.clear()
        summed = [name for name in states if type(self.measure(name)).merge is Measure.merge]
        merged = dict(zip(summed, _all_reduce([states[name] for name in summed], reduce), strict=True))
        for name in states.keys() - merged.keys():
            first, *others = zip(*map(gather, states[name]), strict=True)
            for other in others:
                first = self._merge(name, first, other)
            merged[name] = first
        return {name: self.compute(name, merged[name]).to(torch.get_default_dtype()) for name in states}

    def compute(self, name: str, state: State) -> Tensor:
        """Return the value of a state."""
        compute = self.measure(name).compute
        return vmap(compute)(state) if self._stacked else compute(state)

    def measure(self, name: str) -> Measure:
        """Return the metric with this name, which starts with the split."""
        return self._measures.get(name.partition("/")[2], MEAN)

    def _merge(self, name: str, state: State, other: State) -> State:
        merge = self.measure(name).merge
        return vmap(merge)(state, other) if self._stacked else merge(state, other)


MEAN = Measure()


def _to_float64(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() and value.device.type != "mps" else value


def _all_reduce(states: list[State], reduce: Callable[[Tensor], Tensor]) -> list[State]:
    """Sum states over all processes, with one message per dtype."""
    tensors = [tensor for state in states for tensor in state]
    reduced: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        own = {index: tensor for index, tensor in enumerate(tensors) if tensor.dtype == dtype}
        total = reduce(torch.cat([tensor.flatten() for tensor in own.values()]))
        parts = torch.split(total, [tensor.numel() for tensor in own.values()])
        reduced |= {index: part.view_as(own[index]) for index, part in zip(own, parts, strict=True)}
    remaining = iter(reduced[index] for index in range(len(tensors)))
    return [tuple(next(remaining) for _ in state) for state in states]


def counted(total: Tensor, count: int | Tensor) -> Sum:
    """Return the state of a mean: a sum of ``count`` values, or several sums with the same count."""
    return total, torch.as_tensor(count, device=total.device).expand(total.shape)
