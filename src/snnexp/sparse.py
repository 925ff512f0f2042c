"""Spikes as a list of those that there are, for layers of which few fire: there a sum over spikes beats a product."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SparseSpikes:
    """The spikes of a sequence ``[T, B, *N]``.

    Args:
        shape: ``[T, B, *N]``.
        row: t B + b of each spike, ascending.
        column: the neuron of each spike, an index into the flattened ``*N``.
    """

    shape: torch.Size
    row: Tensor
    column: Tensor

    def linear(self, synapse: nn.Linear) -> Tensor:
        """S W^T + b, ``[T, B, M]``: the sum of the weights of the neurons that fire.

        Weights of K members ``[K, M, N]`` give ``[T, B, K, M]``, each of its own spikes ``[T, B, K, *N]``, or all of
        the same ``[T, B, 1, *N]``.
        """
        weight: Tensor = synapse.weight
        if weight.ndim == 2 or self.shape[2] == 1:
            current: Tensor = _Sum.apply(self, weight.flatten(0, -2))
        else:
            current = _Sum.apply(self._by_member(), weight.transpose(0, 1).flatten(1))
        current = current.reshape(*self.shape[:2], *weight.shape[:-1])
        return current if synapse.bias is None else current + synapse.bias

    def _by_member(self) -> "SparseSpikes":
        """Spikes ``[T, B, K, *N]`` with a row for each member of each sample."""
        steps, batch, members, *features = self.shape
        # ascending still: spikes of a row are ordered by their column, members first
        row = self.row * members + self.column // math.prod(features)
        return SparseSpikes(torch.Size((steps, batch * members, members, *features)), row, self.column)

    def dense(self) -> Tensor:
        """The same as zeros and ones, ``[T, B, *N]``."""
        spikes = torch.zeros(self.shape, device=self.row.device)
        spikes.view(self._rows, -1)[self.row.long(), self.column.long()] = 1
        return spikes

    def sum_weights(self, weights: Tensor) -> Tensor:
        """For each step and sample, the sum of the ``weights`` ``[N, M]`` of the neurons that fire: ``[T B, M]``."""
        return _sums(weights, self.row, self.column, self._rows)

    def sum_by_neuron(self, values: Tensor) -> Tensor:
        """For each neuron, the sum of the ``values`` ``[T B, M]`` of where it fires: ``[N, M]``."""
        neuron, order = self.column.sort(stable=True)
        return _sums(values, neuron, self.row.index_select(0, order), self.shape[2:].numel())

    @property
    def _rows(self) -> int:
        return self.shape[0] * self.shape[1]


def _sums(values: Tensor, group: Tensor, member: Tensor, groups: int) -> Tensor:
    """The sum of ``values[member]`` for each group; ``group`` is ascending."""
    ends = group.new_zeros(groups + 1)
    torch.cumsum(torch.bincount(group, minlength=groups), 0, dtype=group.dtype, out=ends[1:])
    return F.embedding_bag(member, values, ends, mode="sum", include_last_offset=True)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, events: SparseSpikes, weight: Tensor) -> Tensor:
        ctx.events = events
        return events.sum_weights(weight.t().contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.events.sum_by_neuron(gradient.contiguous()).t()
