"""What data deliver, held against what they promise, once and before anything is written."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnexp.data.mnist import MNIST
from snnexp.data.module import DataModule, Samples
from snnexp.errors import ConfigError, DataError

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


@dataclass
class Found:
    """What the inputs of all splits have in common: the lowest and the highest value, and whether all are 0 or 1."""

    low: float
    high: float
    binary: bool


class Converted:
    """Samples of other number types as the network takes them: inputs and traces as floats, labels as int64."""

    def __init__(self, samples: Samples, labels: bool) -> None:
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        values, target = self.samples[indices]
        wanted = torch.get_default_dtype()
        return values.to(wanted), target.to(torch.int64 if self.labels else wanted)

    def to(self, device: torch.device) -> "Converted":
        """The same samples in the memory of a device."""
        other = copy(self)
        other.samples = self.samples.to(device)
        return other


def check(data: DataModule, num_steps: int) -> Found:
    """Hold every split against what the data module promises; other number types are converted from here on.

    Args:
        data: the module.
        num_steps: of the run.

    Raises:
        DataError: shapes, types or values are not those that were promised.
        ConfigError: the data have another number of steps than the run.
    """
    found: list[Found] = []
    for name in ("train", "val", "test"):
        samples = getattr(data, name)
        if samples is not None:
            converted = _Split(name, samples, data).check(num_steps)
            setattr(data, name, converted)
            found.append(_values(name, converted, data, num_steps))
    return Found(min(part.low for part in found), max(part.high for part in found), all(part.binary for part in found))


@dataclass
class _Split:
    """One split, looked at by a batch of two samples and a batch of three."""

    name: str
    samples: Samples
    data: DataModule

    def check(self, num_steps: int) -> Samples:
        if not len(self.samples):
            raise self.error("has no samples")
        pairs = [self.batch(size) for size in (2, 3)]
        inputs, targets = zip(*pairs, strict=True)
        self.require_inputs(*inputs)
        labels = self.data.target == "labels"
        if labels:
            self.require_labels(*targets)
        else:
            two, three = targets
            self.require_traces(two, three, [len(x) if self.data.sequences else num_steps for x in inputs])
        wanted = (torch.get_default_dtype(), torch.int64 if labels else torch.get_default_dtype())
        same = all((x.dtype, y.dtype) == wanted for x, y in pairs)
        return self.samples if same else Converted(self.samples, labels)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        indices = [index % len(self.samples) for index in range(size)]
        found: Any = self.samples[indices]
        if not isinstance(found, (tuple, list)) or len(found) != 2 or not all(isinstance(x, Tensor) for x in found):
            raise self.error("must give a pair of tensors, inputs and targets, for a list of indices")
        return found[0], found[1]

    def require_inputs(self, two: Tensor, three: Tensor) -> None:
        if not (two.is_floating_point() or two.dtype in INTEGERS):
            raise self.error(f"has inputs of {_dtype(two)}, must be numbers")
        time = ["T"] if self.data.sequences else []
        axis, shape = len(time), tuple(self.data.inputs)
        if not all(_is_batch(x, size, axis, shape) for x, size in ((two, 2), (three, 3))):
            expected = ", ".join([*time, "B", *map(str, shape)])
            swapped = self.data.sequences and all(len(x) == size for x, size in ((two, 2), (three, 3)))
            hint = "; time comes before the batch" if swapped else ""
            raise self.error(f"has inputs of shape {_shape(two, three)}, must be [{expected}]{hint}")

    def require_labels(self, two: Tensor, three: Tensor) -> None:
        if two.dtype not in INTEGERS:
            raise self.error(f"has labels of {_dtype(two)}, must be whole numbers from 0 to {self.data.outputs - 1}")
        if not (_is_batch(two, 2, 0, ()) and _is_batch(three, 3, 0, ())):
            raise self.error(f"has labels of shape {_shape(two, three)}, must be [B], one class for each sample")

    def require_traces(self, two: Tensor, three: Tensor, steps: Sequence[int]) -> None:
        if not (two.is_floating_point() or two.dtype in INTEGERS):
            raise self.error(f"has targets of {_dtype(two)}, must be numbers")
        shape = (self.data.outputs,)
        fits = _is_batch(two, 2, 1, shape) and _is_batch(three, 3, 1, shape)
        if not fits or [len(two), len(three)] != [*steps]:
            raise self.error(f"has targets of shape {_shape(two, three)}, must be [{steps[0]}, B, {self.data.outputs}]")

    def error(self, what: str) -> DataError:
        return DataError(f"data: the {self.name} split {what}")


def _values(name: str, samples: Samples, data: DataModule, num_steps: int) -> Found:
    """Look at all values of a split."""
    if isinstance(samples, MNIST):
        # a checksum vouches for them
        low, high = samples.limits
        return Found(low, high, binary=False)
    low, high, binary = float("inf"), float("-inf"), data.sequences
    lengths: set[int] = set()
    for values, target in _batches(samples, data.batch_size):
        if not (torch.isfinite(values).all() and torch.isfinite(target).all()):
            raise DataError(f"data: the {name} split has values that are NaN or infinite")
        lengths.add(len(values))
        low, high = min(low, values.min().item()), max(high, values.max().item())
        binary = binary and bool(((values == 0) | (values == 1)).all())
        if data.target == "labels" and not 0 <= int(target.min()) <= int(target.max()) < data.outputs:
            raise DataError(
                f"data: the {name} split has labels from {int(target.min())} to {int(target.max())}, "
                f"must be from 0 to {data.outputs - 1}"
            )
    # batches of sequences may differ in length, and then num_steps is none of them
    if data.sequences and len(lengths) == 1 and lengths != {num_steps}:
        (steps,) = lengths
        raise ConfigError(
            f"data: the {name} split has sequences of {steps} steps, and num_steps is {num_steps}; "
            f"use num_steps={steps}"
        )
    return Found(low, high, binary and high > 0)


def _batches(samples: Samples, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(samples), size):
        yield samples[list(range(start, min(start + size, len(samples))))]


def _is_batch(tensor: Tensor, size: int, axis: int, shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds ``size`` samples of a shape on ``axis``; an axis before it is time."""
    return (
        tensor.ndim == axis + 1 + len(shape) and tensor.shape[axis] == size and tuple(tensor.shape[axis + 1 :]) == shape
    )


def _shape(two: Tensor, three: Tensor) -> str:
    """The shape of a batch, with B for the axis on which a batch of two and one of three differ."""
    if two.ndim != three.ndim:
        return str(list(two.shape))
    sizes = ("B" if (a, b) == (2, 3) else str(a) for a, b in zip(two.shape, three.shape, strict=True))
    return f"[{', '.join(sizes)}]"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
