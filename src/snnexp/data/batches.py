"""Which samples make a batch: an order that depends on the seed and the epoch alone, and each process's share of it."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from snnexp.seeds import fold


class Batch(list[int]):
    """The samples of a batch of training, and where in training they are, for what is drawn anew each time.

    Args:
        indices: of the samples.
        epoch: its number.
        places: of the samples in the order of the epoch.
    """

    def __init__(self, indices: Iterable[int], epoch: int, places: Sequence[int]) -> None:
        super().__init__(indices)
        self.epoch, self.places = epoch, places

    def __reduce__(self) -> tuple[type["Batch"], tuple[list[int], int, Sequence[int]]]:
        return Batch, ([*self], self.epoch, self.places)


class ShuffledBatches(Sampler[list[int]]):
    """Batches in an order that is a function of (seed, epoch); each of ``world`` processes takes its share of each.

    A batch that the processes cannot share equally loses its remainder, so that their gradients weigh the same.
    ``begin`` is where a resumed run begins: an epoch, and the batches of it that are done. With ``weights``, one per
    sample, an epoch has as many samples, drawn with replacement in proportion to them.
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
            places = range(start + self.rank, start + size, self.world)
            yield Batch([order[place] for place in places], self.epoch, places)

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.weights is None:
            return torch.randperm(self.length, generator=generator)
        # torch.multinomial takes 2**24 samples at most
        ends = self.weights.cumsum(0)
        drawn = torch.rand(self.length, dtype=torch.float64, generator=generator) * ends[-1]
        return torch.searchsorted(ends, drawn, right=True)


class OrderedBatches(Sampler[list[int]]):
    """All samples once, in order; of ``world`` processes, each takes its share of every batch.

    Where the first batch has fewer samples than there are processes, each of them takes all.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if min(batch_size, length) < world:
            rank, world = 0, 1
        self.world = world
        """How many processes share the batches; 1 where each of them goes over all."""
        shares = (range(start, length)[:batch_size][rank::world] for start in range(0, length, batch_size))
        self.batches = [list(share) for share in shares if share]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
