"""Sparse spikes in coordinate format: if few neurons fire, summing their weights is faster than a matrix product."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SparseSpikes:
    """Sparse spikes ``[T, B, *N]`` in coordinate (COO) format.

    Args:
        shape: ``[T, B, *N]``.
        row: t B + b of each spike, in ascending order.
        column: neuron index of each spike, into the flattened ``*N``.
    """

    shape: torch.Size
    row: Tensor
    column: Tensor

    def linear(self, synapse: nn.Linear) -> Tensor:
        """Return S W^T + b, ``[T, B, M]``: the sum of the weights of the neurons that fire.

        Stacked weights ``[K, M, N]`` give ``[T, B, K, M]``, for spikes ``[T, B, K, *N]`` or shared ``[T, B, 1, *N]``.
        """
        weight: Tensor = synapse.weight
        if weight.ndim == 2 or self.shape[2] == 1:
            current: Tensor = _SparseLinear.apply(self, weight.flatten(0, -2))
        else:
            current = _SparseLinear.apply(self._by_member(), weight.transpose(0, 1).flatten(1))
        current = current.reshape(*self.shape[:2], *weight.shape[:-1])
        return current if synapse.bias is None else current + synapse.bias

    def _by_member(self) -> "SparseSpikes":
        """Return spikes ``[T, B, K, *N]`` with one row per step, sample and member."""
        steps, batch, members, *features = self.shape
        # still ascending: spikes of a row are sorted by column, of which the member is the leading index
        row = self.row * members + self.column // math.prod(features)
        return SparseSpikes(torch.Size((steps, batch * members, members, *features)), row, self.column)

    def dense(self) -> Tensor:
        """Return a dense tensor of zeros and ones, ``[T, B, *N]``."""
        spikes = torch.zeros(self.shape, device=self.row.device)
        spikes.view(self._rows, -1)[self.row.long(), self.column.long()] = 1
        return spikes

    def sum_weights(self, weights: Tensor) -> Tensor:
        """Sum the weights ``[N, M]`` of the neurons that fire, for each step and sample: ``[T B, M]``."""
        return _group_sums(weights, self.row, self.column, self._rows)

    def sum_by_neuron(self, values: Tensor) -> Tensor:
        """Sum the values ``[T B, M]`` of the steps and samples in which a neuron fires, for each neuron: ``[N, M]``."""
        neuron, order = self.column.sort(stable=True)
        return _group_sums(values, neuron, self.row.index_select(0, order), self.shape[2:].numel())

    @property
    def _rows(self) -> int:
        return self.shape[0] * self.shape[1]


def _group_sums(values: Tensor, group: Tensor, index: Tensor, groups: int) -> Tensor:
    """Return the sum of ``values[index]`` for each group; ``group`` is in ascending order."""
    ends = group.new_zeros(groups + 1)
    torch.cumsum(torch.bincount(group, minlength=groups), 0, dtype=group.dtype, out=ends[1:])
    return F.embedding_bag(index, values, ends, mode="sum", include_last_offset=True)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: SparseSpikes, weight: Tensor) -> Tensor:
        ctx.spikes = spikes
        return spikes.sum_weights(weight.t().contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.spikes.sum_by_neuron(gradient.contiguous()).t()
