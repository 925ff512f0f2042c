"""Decoders and measures: pure functions of traces and targets.

Shapes: spikes and membrane ``[T, B, *N]``, labels and predictions ``[B]``. A measure returns a sum and how many values
it is the sum of, so that batches and processes that are not of one size can be added up; :class:`Means` does.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sum = tuple[Tensor, Tensor]
"""A sum, and the count of its values, an integer; scalar tensors, or one value per member of a stack."""


class Means:
    """Means over the batches of a split, of all processes.

    Sums are float64 where the device has it: in float32, those of many equal batches drift by more than 1e-6.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Sum]) -> None:
        """Add the sums and counts of a batch, by name."""
        for name, (value, count) in values.items():
            total = value if value.device.type == "mps" else value.double()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts[name] + count if name in self._counts else count

    def clear(self) -> None:
        """Begin anew."""
        self._sums, self._counts = {}, {}

    def take(self, reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Tensor]:
        """The means so far, by name; then begin anew. NaN where nothing was counted.

        Args:
            reduce: adds a tensor up over all processes, which must have the same names.
        """
        sums, counts = self._sums, self._counts
        self.clear()
        if not sums:
            return {}
        totals, numbers = (reduce(torch.stack([*parts.values()])) for parts in (sums, counts))
        means = (totals / numbers).to(torch.get_default_dtype())
        return dict(zip(sums, means.unbind(0), strict=True))


def counted(total: Tensor, count: int | Tensor) -> Sum:
    """A sum of ``count`` values, or several sums of as many."""
    return total, torch.as_tensor(count, device=total.device).expand(total.shape)


def spike_count(spikes: Tensor) -> Tensor:
    """The class ``[B]`` that fired most, argmax_k sum_t S; a tie goes to the lower index."""
    return spikes.sum(0).argmax(-1)


def max_voltage(membrane: Tensor) -> Tensor:
    """The class ``[B]`` whose membrane rose highest, argmax_k max_t U."""
    return membrane.amax(0).argmax(-1)


def decode(trace: Any, decoder: str) -> Tensor:
    """The class ``[B]`` that a readout's trace means, by :func:`spike_count` or :func:`max_voltage`."""
    # one step that holds the sum, or the maximum, of all
    if decoder == "spike_count":
        return spike_count(trace.spike_count.unsqueeze(0))
    return max_voltage(trace.max_membrane.unsqueeze(0))


def undecided(trace: Any, decoder: str) -> Sum:
    """Mean over samples: 1 where several classes share the highest count or membrane, else 0."""
    scores = trace.spike_count if decoder == "spike_count" else trace.max_membrane
    ties = (scores == scores.amax(-1, keepdim=True)).sum(-1) > 1
    return counted(ties.float().sum(), len(ties))


def accuracy(predicted: Tensor, target: Tensor) -> Sum:
    """Mean over samples: 1 where the label was met, else 0."""
    return counted((predicted == target).float().sum(), len(target))


def l1(membrane: Tensor, target: Tensor) -> Sum:
    """Mean |U - y|, in the unit of the target."""
    error = (membrane - target).abs()
    return counted(error.sum(), error.numel())


def relative_error(membrane: Tensor, target: Tensor) -> Sum:
    """Mean over t >= 1 of ||U - y|| / ||y||, with the norm over the last axis.

    At t = 0 the target may be zero; a later point whose target is zero has no relative error and is left out. Where no
    point has one, the mean is NaN, and null in the records.
    """
    error: Tensor = torch.linalg.vector_norm(membrane - target, dim=-1)[1:]
    size: Tensor = torch.linalg.vector_norm(target, dim=-1)[1:]
    defined = size > 0
    return counted(torch.where(defined, error / torch.where(defined, size, 1), 0).sum(), defined.sum())


def firing_rate(spikes: Tensor) -> Tensor:
    """Spikes per neuron and time step, 0 to 1."""
    return spikes.mean()


def dead(count: Tensor) -> Tensor:
    """The fraction of neurons that never fired, 0 to 1; ``count`` has each neuron's spikes."""
    return (count == 0).float().mean()


def saturated(count: Tensor, most: int) -> Tensor:
    """The fraction of neurons that fired in every step, 0 to 1; ``most`` is how many steps there were."""
    return (count == most).float().mean()


def synaptic_operations(spikes: Tensor, synapse: nn.Linear | nn.Conv2d | int) -> Tensor:
    """The additions that ``spikes`` cause behind a synapse, per sample: each spike costs one per connection it reaches.

    A spike reaches each output of an ``nn.Linear``, each kernel position that covers it in an ``nn.Conv2d``, or as many
    neurons as an int says.
    """
    batch = spikes.shape[1]
    if isinstance(synapse, nn.Conv2d):
        # a kernel of ones counts, for each output position and group of channels, the spikes it sees
        groups = synapse.groups
        ones = torch.ones((groups, *synapse.weight.shape[1:]), device=spikes.device, dtype=spikes.dtype)
        shape = (synapse.stride, synapse.padding, synapse.dilation, groups)
        seen = F.conv2d(spikes.flatten(0, 1), ones, None, *shape)  # type: ignore[arg-type]
        return seen.sum() * (synapse.out_channels // groups) / batch
    return spikes.sum() * (synapse.out_features if isinstance(synapse, nn.Linear) else synapse) / batch
