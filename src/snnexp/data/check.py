"""Check the samples of a data module against its description before a run starts."""

from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnexp.data.batches import OrderedBatches
from snnexp.data.mnist import MNIST
from snnexp.data.module import DataModule, Samples
from snnexp.errors import ConfigError, DataError
from snnexp.text import format_value

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


@dataclass
class DataSummary:
    """Value ranges of the samples.

    Args:
        low: lowest input.
        high: highest input.
        targets: lowest and highest target.
        binary: whether all inputs are 0 or 1.
    """

    low: float
    high: float
    targets: tuple[float, float]
    binary: bool

    @classmethod
    def merge(cls, parts: Sequence["DataSummary"]) -> "DataSummary":
        """Merge the summaries of several splits."""
        low, high = min(part.low for part in parts), max(part.high for part in parts)
        targets = [part.targets for part in parts]
        whole = min(lowest for lowest, _ in targets), max(highest for _, highest in targets)
        return cls(low, high, whole, all(part.binary for part in parts))


class ConvertedSamples:
    """Converts inputs and traces to the default dtype, and labels to int64."""

    def __init__(self, samples: Samples, labels: bool) -> None:
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        values, target = self.samples[indices]
        expected = torch.get_default_dtype()
        return values.to(expected), target.to(torch.int64 if self.labels else expected)

    def to(self, device: torch.device) -> "ConvertedSamples":
        """The same samples in the memory of a device."""
        other = copy(self)
        other.samples = self.samples.to(device)
        return other


def check(data: DataModule, num_steps: int) -> DataSummary:
    """Check every split against the description of the data module, and convert other dtypes.

    Only the first batch of a split is checked if its samples have ``checks_itself``.

    Args:
        data: the data module.
        num_steps: number of steps of the run.

    Raises:
        DataError: shapes, dtypes or values do not match the description.
        ConfigError: the data and the run differ in the number of steps.
    """
    _require_groups(data)
    summaries: list[DataSummary] = []
    for name in ("train", "val", "test"):
        samples = getattr(data, name)
        if samples is not None:
            converted = _Split(name, samples, data).check(num_steps)
            setattr(data, name, converted)
            summaries.append(_summarize(name, converted, data, num_steps))
    return DataSummary.merge(summaries)


@dataclass
class _Split:
    """Checks one split with a batch of two samples and a batch of three."""

    name: str
    samples: Samples
    data: DataModule

    def check(self, num_steps: int) -> Samples:
        if not len(self.samples):
            raise self.error("has no samples")
        pairs = [self.batch(size) for size in (2, 3)]
        inputs, targets = zip(*pairs, strict=True)
        self.require_inputs(*inputs)
        if self.data.sequences:
            self.require_steps([len(x) for x in inputs], num_steps)
        classified = self.data.description.is_classified
        self.require_targets(targets, [len(x) if self.data.sequences else num_steps for x in inputs])
        expected = (torch.get_default_dtype(), torch.int64 if classified else torch.get_default_dtype())
        same = all((x.dtype, y.dtype) == expected for x, y in pairs)
        return self.samples if same else ConvertedSamples(self.samples, classified)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        indices = [index % len(self.samples) for index in range(size)]
        found: Any = self.samples[indices]
        if not isinstance(found, (tuple, list)) or len(found) != 2 or not all(isinstance(x, Tensor) for x in found):
            raise self.error("must return a pair of tensors, inputs and targets, for a list of indices")
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

    def require_steps(self, found: Sequence[int], num_steps: int) -> None:
        promised = self.data.num_steps
        if promised is None:
            return
        if {*found} != {promised}:
            raise self.error(f"has sequences of {found[0]} steps, must be {promised}")
        if promised != num_steps:
            raise _steps_error(self.name, promised, num_steps)

    def require_targets(self, pair: Sequence[Tensor], steps: Sequence[int]) -> None:
        two, three = pair
        description, outputs = self.data.description, self.data.outputs
        what = "labels" if description.is_classified else "targets"
        if description.is_classified:
            if two.dtype not in INTEGERS:
                raise self.error(f"has labels of {_dtype(two)}, must be whole numbers from 0 to {outputs - 1}")
        elif not (two.is_floating_point() or two.dtype in INTEGERS):
            raise self.error(f"has targets of {_dtype(two)}, must be numbers")
        time, shape = int(description.is_timed), description.target_shape(steps[0])[description.is_timed :]
        fits = _is_batch(two, 2, time, shape) and _is_batch(three, 3, time, shape)
        if not fits or (time and [len(two), len(three)] != [*steps]):
            expected = ", ".join(map(str, [*steps[:time], "B", *shape]))
            each = ", one class for each sample" * (description.target == "labels")
            raise self.error(f"has {what} of shape {_shape(two, three)}, must be [{expected}]{each}")

    def error(self, what: str) -> DataError:
        return DataError(f"data: the {self.name} split {what}")


def _summarize(name: str, samples: Samples, data: DataModule, num_steps: int) -> DataSummary:
    """Check the values of a split, and return their ranges."""
    if isinstance(samples, MNIST):
        # verified by its checksum
        low, high = samples.limits
        return DataSummary(low, high, (0, data.outputs - 1), binary=False)
    checks_itself = getattr(samples, "checks_itself", False)
    low, high, binary = float("inf"), float("-inf"), data.sequences
    lowest, highest = low, high
    lengths: set[int] = set()
    for indices in [*OrderedBatches(len(samples), data.batch_size)][: 1 if checks_itself else None]:
        values, target = samples[indices]
        if not (torch.isfinite(values).all() and torch.isfinite(target).all()):
            raise DataError(f"data: the {name} split has values that are NaN or infinite")
        lengths.add(len(values))
        low, high = min(low, values.min().item()), max(high, values.max().item())
        lowest, highest = min(lowest, target.min().item()), max(highest, target.max().item())
        binary = binary and bool(((values == 0) | (values == 1)).all())
        if data.description.is_classified and not 0 <= int(target.min()) <= int(target.max()) < data.outputs:
            raise DataError(
                f"data: the {name} split has labels from {int(target.min())} to {int(target.max())}, "
                f"must be from 0 to {data.outputs - 1}"
            )
    # with batches of different lengths, num_steps need not equal any of them
    if data.sequences and len(lengths) == 1 and lengths != {num_steps}:
        raise _steps_error(name, lengths.pop(), num_steps)
    # batches that were not read may have other values
    return DataSummary(low, high, (lowest, highest), binary and high > 0 and not checks_itself)


def _steps_error(name: str, steps: int, num_steps: int) -> ConfigError:
    return ConfigError(
        f"data: the {name} split has sequences of {steps} steps, but num_steps is {num_steps}; use num_steps={steps}"
    )


def _require_groups(data: DataModule) -> None:
    """Raise an error if group ids do not match the samples, or a group has samples in two splits."""
    for name, groups in (data.description.groups or {}).items():
        samples = getattr(data, name, None)
        if samples is None or len(groups) != len(samples):
            count = "no" if samples is None else len(samples)
            raise DataError(f"data: the {name} split has {len(groups)} group ids for {count} samples")
    splits: dict[Hashable, str] = {}
    for name, groups in (data.description.groups or {}).items():
        for group in dict.fromkeys(groups):
            if splits.setdefault(group, name) != name:
                raise DataError(
                    f"data: group {format_value(group)} has samples in the {splits[group]} and the {name} split"
                )


def _is_batch(tensor: Tensor, size: int, axis: int, shape: tuple[int, ...]) -> bool:
    """Return True if ``tensor`` holds ``size`` samples of shape ``shape`` along ``axis``."""
    return (
        tensor.ndim == axis + 1 + len(shape) and tensor.shape[axis] == size and tuple(tensor.shape[axis + 1 :]) == shape
    )


def _shape(two: Tensor, three: Tensor) -> str:
    """Format the shape of a batch, with B for the axis where batches of two and three samples differ."""
    if two.ndim != three.ndim:
        return str(list(two.shape))
    sizes = ("B" if (a, b) == (2, 3) else str(a) for a, b in zip(two.shape, three.shape, strict=True))
    return f"[{', '.join(sizes)}]"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
