"""Measures: how well a readout meets its targets, summed up over batches, processes and members of a stack.

Shapes: spikes and membrane ``[T, B, *N]``, labels and predictions ``[B]``. A measure turns a batch into a state, a
tuple of tensors; states are merged, and the value is computed of the last one. That of a mean is a sum and the count of
its values, so that batches and processes that are not of one size can be added up; :class:`Totals` does.
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
"""What a measure has added up: tensors of any shapes; of a stack, with the member axis first."""
Sum = tuple[Tensor, Tensor]
"""A sum, and the count of its values, an integer; scalar tensors, or one value per member of a stack."""


@dataclass(frozen=True)
class Measure:
    """How well a readout meets its targets; abstract. A mean states :meth:`update` alone.

    A readout has the statistics that the measure ``reads`` of its trace, ``num_steps``, and of a decoder ``predicted``
    (``[B]``), ``scores`` (``[B, K]``) and ``undecided`` (``[B]``).
    """

    reads: ClassVar[Reads] = ()
    """The statistics that it needs beside what a decoder reads, see :mod:`snnexp.neurons.statistics`."""
    targets: ClassVar[tuple[str, ...]] = ("labels", "step_labels")
    """The kinds of target that it is defined for."""
    higher_is_better: ClassVar[bool | None] = None
    """Which of two values is the better one; None where neither is."""
    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: its methods can be mapped over them by ``torch.func.vmap``.

    Not inherited: a class says it of what it computes itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def update(self, readout: Any, target: Tensor) -> State:
        """The state of a batch."""
        raise NotImplementedError

    def merge(self, state: State, other: State) -> State:
        """The state of two parts of a split; by default the sum of both."""
        return tuple(one + more for one, more in zip(state, other, strict=True))

    def compute(self, state: State) -> Tensor:
        """The value, a scalar; NaN where nothing was counted."""
        total, count = state
        return total / count


class Totals:
    """What measures have added up over the batches of a split, of all processes.

    Sums are float64 where the device has it: in float32, those of many equal batches drift by more than 1e-6.

    Args:
        measures: by the name behind the split; what has no measure of its own is a mean.
        stacked: whether states are those of members of a stack.
    """

    def __init__(self, measures: Mapping[str, Measure], stacked: bool = False) -> None:
        self._measures, self._stacked = measures, stacked
        self._states: dict[str, State] = {}

    def add(self, states: Mapping[str, State]) -> None:
        """Merge the states of a batch, by name."""
        for name, state in states.items():
            wide = tuple(map(_wide, state))
            self._states[name] = self._merge(name, self._states[name], wide) if name in self._states else wide

    def clear(self) -> None:
        """Begin anew."""
        self._states = {}

    def take(
        self,
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        gather: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: [tensor],
    ) -> dict[str, Tensor]:
        """The values so far, by name; then begin anew. NaN where nothing was counted.

        Args:
            reduce: adds a tensor up over all processes, which must have the same names.
            gather: a tensor of each process, which may differ in size.
        """
        states = self._states
        self.clear()
        added = [name for name in states if type(self.measure(name)).merge is Measure.merge]
        whole = dict(zip(added, _reduced([states[name] for name in added], reduce), strict=True))
        for name in states.keys() - whole.keys():
            first, *others = zip(*map(gather, states[name]), strict=True)
            for other in others:
                first = self._merge(name, first, other)
            whole[name] = first
        return {name: self.compute(name, whole[name]).to(torch.get_default_dtype()) for name in states}

    def compute(self, name: str, state: State) -> Tensor:
        """The value of a state."""
        compute = self.measure(name).compute
        return vmap(compute)(state) if self._stacked else compute(state)

    def measure(self, name: str) -> Measure:
        """What a name is the value of."""
        return self._measures.get(name.partition("/")[2], MEAN)

    def _merge(self, name: str, state: State, other: State) -> State:
        merge = self.measure(name).merge
        return vmap(merge)(state, other) if self._stacked else merge(state, other)


MEAN = Measure()


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() and value.device.type != "mps" else value


def _reduced(states: list[State], reduce: Callable[[Tensor], Tensor]) -> list[State]:
    """States added up over all processes, by one message for each dtype."""
    tensors = [tensor for state in states for tensor in state]
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        own = {index: tensor for index, tensor in enumerate(tensors) if tensor.dtype == dtype}
        total = reduce(torch.cat([tensor.flatten() for tensor in own.values()]))
        parts = torch.split(total, [tensor.numel() for tensor in own.values()])
        found |= {index: part.view_as(own[index]) for index, part in zip(own, parts, strict=True)}
    left = iter(found[index] for index in range(len(tensors)))
    return [tuple(next(left) for _ in state) for state in states]


def counted(total: Tensor, count: int | Tensor) -> Sum:
    """A sum of ``count`` values, or several sums of as many."""
    return total, torch.as_tensor(count, device=total.device).expand(total.shape)
