"""Spikes as a list of those that there are, for layers of which few fire: there a sum over spikes beats a product."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Events:
    """The spikes of a sequence ``[T, B, *N]``.

    Args:
        shape: ``[T, B, *N]``.
        row: t B + b of each spike, ascending.
        column: the neuron of each spike, an index into the flattened ``*N``.
    """

    shape: torch.Size
    row: Tensor
    column: Tensor

    def through(self, synapse: nn.Linear) -> Tensor:
        """S W^T + b, ``[T, B, M]``: the sum of the weights of the neurons that fire."""
        weight: Tensor = synapse.weight
        current: Tensor = _Sum.apply(self, weight)
        if synapse.bias is not None:
            current = current + synapse.bias
        return current.reshape(*self.shape[:2], len(weight))

    def dense(self) -> Tensor:
        """The same as zeros and ones, ``[T, B, *N]``."""
        spikes = torch.zeros(self.shape, device=self.row.device)
        spikes.view(self._rows, -1)[self.row.long(), self.column.long()] = 1
        return spikes

    def matrix(self, dtype: torch.dtype, transposed: bool = False) -> Tensor:
        """``[T B, N]``, or its transpose, as a sparse matrix of ones."""
        row, column, size = self.row, self.column, [self._rows, self.shape[2:].numel()]
        if transposed:
            column, order = self.column.sort(stable=True)
            row, column, size = column, self.row.index_select(0, order), size[::-1]
        ends = torch.zeros(size[0] + 1, dtype=row.dtype, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=size[0]), 0, dtype=row.dtype, out=ends[1:])
        ones = torch.ones(len(row), dtype=dtype, device=row.device)
        with warnings.catch_warnings():
            # PyTorch says once in each process that sparse matrices are young
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            return torch.sparse_csr_tensor(ends, column, ones, size, check_invariants=False)

    @property
    def _rows(self) -> int:
        return self.shape[0] * self.shape[1]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, events: Events, weight: Tensor) -> Tensor:
        ctx.events = events
        # a sum of weights is no product, and stays exact under autocast
        with torch.autocast(weight.device.type, enabled=False):
            return events.matrix(weight.dtype) @ weight.t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, (ctx.events.matrix(gradient.dtype, transposed=True) @ gradient.contiguous()).t()
