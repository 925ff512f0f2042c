"""The data of a stack: batches with a member axis."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from snnexp.data import DataModule

PLAIN = (bool, int, float, str, type(None), torch.device)
"""Types that are compared by value."""


class StackedData(LightningDataModule):
    """Data module of a stack, with batches of :class:`StackedDataset`.

    Args:
        data: the data of each member.
        device: device of the batches.
    """

    def __init__(self, data: Sequence[DataModule], device: torch.device) -> None:
        super().__init__()
        self.data = data
        first = data[0]
        self.feeds = {
            split: StackedDataset(
                [getattr(part, split) for part in data], first.sequences, first.description.is_timed, device
            )
            for split in ("train", "val", "test")
            if getattr(first, split) is not None
        }

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", [part.train_dataloader() for part in self.data])

    def val_dataloader(self) -> Any:
        return self._loader("val", [part.loader("val") for part in self.data]) if "val" in self.feeds else []

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test", [part.loader("test") for part in self.data])

    def _loader(self, split: str, own: Sequence[DataLoader[Any]]) -> DataLoader[Any]:
        return DataLoader(self.feeds[split], sampler=ZippedSampler([loader.sampler for loader in own]), batch_size=None)  # type: ignore[arg-type]


class ZippedSampler(Sampler[tuple[Any, ...]]):
    """Zip the samplers of all members."""

    def __init__(self, samplers: Sequence[Any]) -> None:
        self.samplers = samplers

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(*self.samplers, strict=True)

    def __len__(self) -> int:
        return len(self.samplers[0])

    def set_epoch(self, epoch: int) -> None:
        for sampler in self.samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)


class StackedDataset:
    """Batches of all members, ``[B, M, *N]`` or ``[T, B, M, *N]``; ``[B, 1, *N]`` if all members share them.

    Args:
        samples: the samples of each member.
        sequences: True if inputs have a time axis.
        timed: True if targets have a time axis.
        device: device of the batches.
    """

    def __init__(self, samples: Sequence[Any], sequences: bool, timed: bool, device: torch.device) -> None:
        self.sequences, self.timed = sequences, timed
        self.same = all(_same(samples[0], other) for other in samples[1:])
        self.samples = [part.to(device) for part in (samples[:1] if self.same else samples)]

    def __len__(self) -> int:
        return len(self.samples[0])

    def __getitem__(self, indices: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int | None]:
        """Return inputs, targets, and the member axis of the targets; None if all members share them."""
        input_axis, target_axis = int(self.sequences), int(self.timed)
        if self.same and all(part == indices[0] for part in indices[1:]):
            values, target = self.samples[0][indices[0]]
            return values.unsqueeze(input_axis + 1), target, None
        if self.same:
            order = torch.tensor(indices).t()
            values, target = self.samples[0][order.flatten()]
            return (
                values.unflatten(input_axis, order.shape),
                target.unflatten(target_axis, order.shape),
                target_axis + 1,
            )
        batches = [samples[part] for samples, part in zip(self.samples, indices, strict=True)]
        values, target = zip(*batches, strict=True)
        return torch.stack(values, input_axis + 1), torch.stack(target, target_axis + 1), target_axis + 1


def _same_memory(one: Tensor, other: Tensor) -> bool:
    # lazy clones share memory until one is written to; data_ptr() would materialize them
    layouts = [(tensor.dtype, tensor.shape, tensor.stride()) for tensor in (one, other)]
    return one.const_data_ptr() == other.const_data_ptr() and layouts[0] == layouts[1]  # type: ignore[attr-defined]


def _same(one: Any, other: Any) -> bool:
    """Return True if two datasets have the same samples."""
    return type(one) is type(other) and all(
        _same_value(mine, theirs) for mine, theirs in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def _same_value(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return _same_memory(value, other) or torch.equal(value, other)
    if isinstance(value, tuple | list) and type(value) is type(other):
        return len(value) == len(other) and all(map(_same_value, value, other))
    # __eq__ of other classes may compare element by element
    return value is other or (type(value) in PLAIN and type(other) in PLAIN and bool(value == other))
