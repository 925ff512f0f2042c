"""Batch samplers: the order depends only on the seed and the epoch, and each process gets its share of a batch."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from snnexp.seeds import fold


class Batch(list[int]):
    """The indices of a training batch, with its epoch and positions, which seed random transforms.

    Args:
        indices: indices of the samples.
        epoch: number of the epoch.
        positions: positions of the samples in the order of the epoch.
    """

    def __init__(self, indices: Iterable[int], epoch: int, positions: Sequence[int]) -> None:
        super().__init__(indices)
        self.epoch, self.positions = epoch, positions

    def __reduce__(self) -> tuple[type["Batch"], tuple[list[int], int, Sequence[int]]]:
        return Batch, ([*self], self.epoch, self.positions)


class ShuffledBatches(Sampler[list[int]]):
    """Batches in an order that is a function of (seed, epoch); each of ``world`` processes gets its share of a batch.

    Samples that cannot be divided equally are dropped from a batch, so that the gradients of all processes have equal
    weight. ``begin`` is the position at which a run resumes: an epoch, and its number of completed batches. With
    ``weights``, one per sample, an epoch has as many samples, drawn with replacement in proportion to the weights.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        drop_last: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
        begin: tuple[int, int] = (0, 0),
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        usable = length // batch_size * batch_size if drop_last else length
        self.sizes = [min(batch_size, usable - start) // world * world for start in range(0, usable, batch_size)]
        self.sizes = [size for size in self.sizes if size]
        self.epoch, self.done = begin
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.done = self.done if epoch == self.epoch else 0
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(torch.Generator().manual_seed(fold(self.seed, self.epoch))).tolist()
        for index, size in list(enumerate(self.sizes))[self.done :]:
            start = index * self.batch_size
            positions = range(start + self.rank, start + size, self.world)
            yield Batch([order[place] for place in positions], self.epoch, positions)

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.weights is None:
            return torch.randperm(self.length, generator=generator)
        # torch.multinomial supports at most 2**24 samples
        ends = self.weights.cumsum(0)
        drawn = torch.rand(self.length, dtype=torch.float64, generator=generator) * ends[-1]
        return torch.searchsorted(ends, drawn, right=True)


class OrderedBatches(Sampler[list[int]]):
    """All samples once, in order; each of ``world`` processes gets its share of a batch.

    If the first batch has fewer samples than there are processes, each process gets all samples.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if min(batch_size, length) < world:
            rank, world = 0, 1
        self.world = world
        """Number of processes that share the batches; 1 if each process gets all samples."""
        shares = (range(start, length)[:batch_size][rank::world] for start in range(0, length, batch_size))
        self.batches = [list(share) for share in shares if share]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
