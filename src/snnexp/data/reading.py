"""Read the samples of a source: checked, with reproducible random transforms, per batch or into memory."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.config import user_parts
from snnexp.data.batches import Batch, OrderedBatches
from snnexp.data.description import Target
from snnexp.data.scaling import Scaling
from snnexp.data.sources import Source, apply_transform
from snnexp.errors import ConfigError, DataError
from snnexp.isolation import cpu_random_states, restored
from snnexp.seeds import fold

READ_BATCH = 256
"""Batch size when samples are read into memory."""


@dataclass(frozen=True)
class SampleShapes:
    """The shapes of a sample, common to all samples.

    Args:
        inputs: shape of x, including time.
        targets: shape of y.
        kind: kind of target.
        sequences: whether the first axis of x is time.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    kind: Target
    sequences: bool

    @classmethod
    def infer(cls, x: Tensor, y: Tensor, sequences: bool, kind: Target | None) -> "SampleShapes":
        """Infer the shapes from the first sample.

        Args:
            x: input.
            y: target.
            sequences: whether the first axis of x is time.
            kind: kind of target; None to infer it from the dtype and the number of axes.

        Raises:
            ConfigError: the sample does not match the kind, or the kind is ambiguous.
        """
        if sequences and not x.ndim:
            raise ConfigError("sequences: got true, but the first input is a number, must be [T, *N]")
        kind = kind or _kind(x, y, sequences)
        expected = {"labels": 0, "values": 1, "trace": 2, "step_labels": 1}[kind]
        shapes = cls(tuple(_input(x, sequences).shape), tuple(_target(y, kind).shape), kind, sequences)
        if len(shapes.targets) != expected or (shapes.is_classified and y.is_floating_point()):
            vector = "[T], whole numbers" if shapes.is_classified else "a number or [K]"
            need = {0: "a whole number", 1: vector, 2: "[T, K]"}[expected]
            raise ConfigError(f"target: got {kind}, but the first sample has {_describe_target(y)}, must be {need}")
        return shapes

    def read(self, source: Source, index: int) -> tuple[Tensor, Tensor]:
        """Read a sample.

        Raises:
            DataError: its shapes differ.
        """
        x, y = source.read(index)
        if self.is_classified and y.is_floating_point():
            raise source.error(index, f"has a target of {_dtype(y)}, must be whole numbers")
        x, y = _input(x, self.sequences), _target(y, self.kind)
        for what, found, expected in (("an input", x, self.inputs), ("a target", y, self.targets)):
            if tuple(found.shape) != expected:
                shapes = f"{list(found.shape)}, must be {list(expected)} the shape in the first sample"
                raise source.error(index, f"has {what} of shape {shapes}")
        return x, y

    @property
    def is_classified(self) -> bool:
        """Whether targets are classes."""
        return self.kind in ("labels", "step_labels")

    @property
    def features(self) -> int:
        """Number of features of a vector, or of channels of an image."""
        return self.inputs[int(self.sequences)]

    @property
    def bytes(self) -> int:
        """Size of a sample in memory."""
        return torch.get_default_dtype().itemsize * (math.prod(self.inputs) + math.prod(self.targets))

    @property
    def axes(self) -> tuple[int, int]:
        """The batch axes of inputs and targets."""
        return int(self.sequences), int(self.kind in ("trace", "step_labels"))


def _kind(x: Tensor, y: Tensor, sequences: bool) -> Target:
    """Infer the kind: floats are values (0 or 1 axis) or a trace (2 axes), integers are labels or T step labels."""
    if y.is_floating_point():
        if y.ndim <= 2:
            return "trace" if y.ndim == 2 else "values"
    elif y.ndim == 0 or (y.shape == (1,) and not sequences):
        return "labels"
    elif sequences and y.shape == x.shape[:1]:
        return "step_labels"
    known = "labels, trace, values or step_labels"
    raise ConfigError(f"target: got null, and the first sample has {_describe_target(y)}; set data.target to {known}")


def _input(x: Tensor, sequences: bool) -> Tensor:
    # a scalar becomes a vector of length 1
    return x.unsqueeze(-1) if x.ndim == int(sequences) else x


def _target(y: Tensor, kind: Target) -> Tensor:
    if kind == "labels" and y.shape == (1,):
        return y.squeeze(0)
    return y.unsqueeze(-1) if y.ndim == {"values": 0, "trace": 1}.get(kind, -1) else y


def _describe_target(y: Tensor) -> str:
    return f"a target of {_dtype(y)}, shape {list(y.shape)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class LazySamples:
    """Samples that are read and checked when a batch is made.

    Before a sample is read, the global generators of PyTorch, NumPy and Python are seeded with the seed, the epoch and
    its index, so that random transforms do not depend on the process. Evaluations use the same seeds every time.

    Args:
        source: the dataset.
        indices: indices of the samples.
        shapes: shapes of the samples.
        seed: seed of random transforms.
        outputs: number of classes; None if unknown, or if targets are not classes.
    """

    checks_itself = True

    def __init__(
        self, source: Source, indices: Sequence[int], shapes: SampleShapes, seed: int, outputs: int | None = None
    ) -> None:
        self.source, self.indices, self.shapes, self.seed, self.outputs = source, indices, shapes, seed, outputs
        self.scaling: Scaling | None = None
        self.require_range: Callable[[float, float], object] | None = None
        """Called with the lowest and the highest value; raises if the encoder does not support them."""
        self.device = torch.device("cpu")

    @property
    def targets(self) -> Tensor | None:
        """The labels of all samples, if known without reading them."""
        known = self.source.labels() if self.shapes.kind == "labels" else None
        return None if known is None else torch.tensor(known[list(self.indices)])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        chosen = [self.indices[index] for index in (indices.tolist() if isinstance(indices, Tensor) else indices)]
        key = ("train", indices.epoch) if isinstance(indices, Batch) else ("evaluate",)
        with user_parts.wrap_errors("data"), restored(cpu_random_states()):
            values, target = self._read_batch(chosen) if self.source.supports_take else self._read_each(chosen, key)
        expected = torch.get_default_dtype()
        values, target = values.to(expected), target.to(torch.int64 if self.shapes.is_classified else expected)
        values = values if self.scaling is None else self.scaling(values, self.shapes.axes[0] + 1)
        self._check(chosen, values, target)
        return values.to(self.device), target.to(self.device)

    def to(self, device: torch.device) -> "LazySamples":
        """Return a copy that moves batches to a device."""
        return self._with(device=device)

    def scaled(self, scaling: Scaling) -> "LazySamples":
        """Return a copy with scaled inputs."""
        return self._with(scaling=scaling)

    def _with(self, **changed: Any) -> "LazySamples":
        other = copy(self)
        vars(other).update(changed)
        return other

    def _read_each(self, indices: Sequence[int], key: tuple[int | str, ...]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*(self._sample(index, key) for index in indices), strict=True)
        values_at, target_at = self.shapes.axes
        return torch.stack(inputs, values_at), torch.stack(targets, target_at)

    def _read_batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        values, target = self.source.take(indices)
        for what, found, expected in (("inputs", values, self.shapes.inputs), ("targets", target, self.shapes.targets)):
            # a scalar becomes a vector of length 1
            if tuple(found.shape[1:]) not in (expected, expected[:-1] if expected[-1:] == (1,) else expected):
                shapes = f"{[*found.shape[1:]]}, must be {[*expected]}"
                raise DataError(f"data: {self.source.name} has {what} of shape {shapes} as in the training samples")
        values_at, target_at = self.shapes.axes
        values = values.reshape(len(indices), *self.shapes.inputs)
        return values.movedim(0, values_at), target.reshape(len(indices), *self.shapes.targets).movedim(0, target_at)

    def _sample(self, index: int, key: tuple[int | str, ...]) -> tuple[Tensor, Tensor]:
        seed_generators(fold(self.seed, "sample", *key, index))
        return self.shapes.read(self.source, index)

    def _check(self, indices: Sequence[int], values: Tensor, targets: Tensor) -> None:
        """Raise an error for invalid values."""
        for batch, axis in zip((values, targets), self.shapes.axes, strict=True):
            if not torch.isfinite(batch).all():
                wrong = (~torch.isfinite(batch)).movedim(axis, 0).reshape(len(indices), -1).any(1)
                raise self.source.error(indices[int(wrong.int().argmax())], "has values that are NaN or infinite")
        if self.shapes.is_classified:
            self.source.require_labels(targets.movedim(self.shapes.axes[1], 0), indices, self.outputs)
        if self.require_range is not None:
            self.require_range(values.min().item(), values.max().item())


class AugmentedSamples:
    """Training samples with random augmentation. Evaluations of the training split do not augment.

    The augmentation depends only on the seed, the epoch and the position of the sample in its order.

    Args:
        samples: unscaled samples.
        transforms: transforms of the inputs of a sample, in order.
        shapes: shapes of the samples.
        seed: seed of the augmentation.
        scaling: scaling of the augmented inputs.
    """

    checks_itself = True

    def __init__(
        self,
        samples: "LazySamples | InMemorySamples",
        transforms: Sequence[Callable[[Any], Any]],
        shapes: SampleShapes,
        seed: int,
        scaling: Scaling | None,
    ) -> None:
        self.samples, self.transforms, self.shapes, self.seed, self.scaling = samples, transforms, shapes, seed, scaling
        self.require_range: Callable[[float, float], object] | None = None
        """Called with the lowest and the highest value; raises if the encoder does not support them."""
        self.device = torch.device("cpu")
        # fail before a run starts if a transform is unsupported
        with user_parts.wrap_errors("data"), restored(cpu_random_states()):
            self._augment(samples[[0]][0].select(shapes.axes[0], 0), seed)

    @property
    def targets(self) -> Tensor | None:
        """The labels of all samples, if known."""
        return self.samples.targets

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        values, target = self.samples[indices]
        axis, _ = self.shapes.axes
        if isinstance(indices, Batch):
            with user_parts.wrap_errors("data"), restored(cpu_random_states()):
                seeds = [fold(self.seed, "augment", indices.epoch, position) for position in indices.positions]
                changed = map(self._augment, values.unbind(axis), seeds)
                values = torch.stack([*changed], axis).to(values.dtype)
        values = values if self.scaling is None else self.scaling(values, axis + 1)
        if not torch.isfinite(values).all():
            raise DataError("data: the training samples have values that are NaN or infinite after data.augment")
        if self.require_range is not None:
            self.require_range(values.min().item(), values.max().item())
        return values.to(self.device), target.to(self.device)

    def to(self, device: torch.device) -> "AugmentedSamples":
        """Return a copy that moves batches to a device."""
        other = copy(self)
        other.device = device
        return other

    def _augment(self, x: Tensor, seed: int) -> Tensor:
        seed_generators(seed)
        value: Any = x
        for transform in self.transforms:
            value = apply_transform(transform, value, "augment")
        if not isinstance(value, Tensor) or value.shape != x.shape:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"augment: returned {got} for inputs of shape {list(x.shape)}, must keep their shape")
        return value


def seed_generators(seed: int) -> None:
    """Seed the global CPU generators of PyTorch, NumPy and Python."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class InMemorySamples:
    """Samples in memory.

    Args:
        inputs: ``[B, *N]``, or ``[T, B, *N]``.
        targets: targets.
        axes: batch axes of inputs and targets.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, axes: tuple[int, int]) -> None:
        self.inputs, self.targets, self.axes = inputs, targets, axes

    @classmethod
    def read(cls, samples: LazySamples) -> "InMemorySamples":
        """Read all samples, once and in order."""
        axes, count, stored = samples.shapes.axes, len(samples), None
        for indices in OrderedBatches(count, READ_BATCH):
            batch = samples[indices]
            if stored is None:
                stored = [part.new_empty(_with_size(part, axis, count)) for part, axis in zip(batch, axes, strict=True)]
            for whole, part, axis in zip(stored, batch, axes, strict=True):
                whole.narrow(axis, indices[0], len(indices)).copy_(part)
        assert stored is not None
        return cls(stored[0], stored[1], axes)

    def __len__(self) -> int:
        return self.inputs.shape[self.axes[0]]

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = (
            part[:, indices] if axis else part[indices]
            for part, axis in zip((self.inputs, self.targets), self.axes, strict=True)
        )
        return inputs, targets

    def to(self, device: torch.device) -> "InMemorySamples":
        """Return a copy on a device."""
        return InMemorySamples(self.inputs.to(device), self.targets.to(device), self.axes)

    def scaled(self, scaling: Scaling) -> "InMemorySamples":
        """Return a copy with scaled inputs."""
        return InMemorySamples(scaling(self.inputs, self.axes[0] + 1), self.targets, self.axes)


def _with_size(tensor: Tensor, axis: int, size: int) -> list[int]:
    shape = [*tensor.shape]
    shape[axis] = size
    return shape


def iterate_inputs(samples: Any) -> Iterator[Tensor]:
    """Yield the inputs of all samples in batches, in order."""
    for indices in OrderedBatches(len(samples), READ_BATCH):
        yield samples[indices][0]
