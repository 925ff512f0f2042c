"""Data of a user: ``blobs``, a table with four classes, and ``seqs``, sequences of spikes with as many."""

from copy import copy

import torch
from torch import Tensor

from snnexp.data import DataModule

FEATURES, CLASSES = 16, 4


class Table:
    """Samples in memory; an item of a list of indices is a batch, whose samples are on ``axis`` of ``x``."""

    def __init__(self, x: Tensor, y: Tensor, axis: int = 0) -> None:
        self.x, self.y, self.axis = x, y, axis

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.x.index_select(self.axis, torch.as_tensor(indices)), self.y[indices]

    def to(self, device: torch.device) -> "Table":
        other = copy(self)
        other.x, other.y = self.x.to(device), self.y.to(device)
        return other


def draw(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """``length`` points in [0, 1]^16, each near the centre of its class."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.rand((CLASSES, FEATURES), generator=torch.Generator().manual_seed(0))
    y = torch.randint(CLASSES, (length,), generator=random)
    return (centres[y] + 0.1 * torch.randn((length, FEATURES), generator=random)).clamp(0, 1), y


def blobs(
    train: int = 64, val: int = 0, test: int = 32, batch_size: int = 16, num_workers: int = 0, seed: int = 0
) -> DataModule:
    """Four classes of points."""
    parts = [Table(*draw(length, index)) for index, length in enumerate((train, val, test))]
    return DataModule(
        parts[0],
        parts[2],
        inputs=(FEATURES,),
        outputs=CLASSES,
        target="labels",
        val=parts[1] if val else None,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
    )


def seqs(
    num_steps: int = 20, train: int = 64, val: int = 0, test: int = 32, batch_size: int = 16, seed: int = 0
) -> DataModule:
    """The same points as spike trains ``[T, B, 16]``: a value is the probability of a spike."""
    parts = []
    for index, length in enumerate((train, val, test)):
        x, y = draw(length, index)
        random = torch.Generator().manual_seed(index)
        parts.append(Table(torch.bernoulli(x.expand(num_steps, *x.shape), generator=random), y, axis=1))
    return DataModule(
        parts[0],
        parts[2],
        inputs=(FEATURES,),
        outputs=CLASSES,
        target="labels",
        sequences=True,
        val=parts[1] if val else None,
        batch_size=batch_size,
        seed=seed,
    )
