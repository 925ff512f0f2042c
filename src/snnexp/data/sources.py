"""Datasets and their transforms."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.errors import ConfigError, DataError
from snnexp.text import one_line


class Source:
    """A dataset with transforms.

    A dataset may have a method ``take(indices)`` that returns inputs and targets of several samples, ``[B, ...]``.
    It is used if there are no transforms. Attributes ``classes`` and ``targets`` have the class names and all labels,
    as in the datasets of torchvision.

    Args:
        name: name in messages.
        dataset: map-style dataset, ``len(dataset)`` and ``dataset[index]``, with samples (x, y).
        groups: one group id per sample; None without groups.
        split: the split of each sample, ``train``, ``val`` or ``test``; None if not defined.
        key: cache key, equal for sources with the same deterministic samples; None if unknown.
    """

    def __init__(
        self,
        name: str,
        dataset: Any,
        groups: Sequence[Any] | None = None,
        split: Sequence[str] | None = None,
        key: Hashable | None = None,
    ) -> None:
        self.name, self.dataset, self.groups, self.split, self.key = name, dataset, groups, split, key
        self.transforms: Sequence[Callable[[Any], Any]] = ()
        self.target_transforms: Sequence[Callable[[Any], Any]] = ()

    def with_transforms(
        self, transforms: Sequence[Callable[[Any], Any]], target_transforms: Sequence[Callable[[Any], Any]]
    ) -> "Source":
        """Return the source with transforms of x and of y, applied in order."""
        if not (transforms or target_transforms):
            return self
        other = Source(self.name, self.dataset, self.groups, self.split)
        other.transforms, other.target_transforms = transforms, target_transforms
        return other

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, if any."""
        names = getattr(self.dataset, "classes", None)
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
            return None
        return list(names)

    def labels(self, axes: int = 1) -> np.ndarray[Any, Any] | None:
        """Return the labels of all samples, ``[N]``, or ``[N, T]`` for ``axes=2``, if known without reading them."""
        targets = getattr(self.dataset, "targets", None)
        # a dataset without target_transform is not from torchvision, and its targets may be anything
        changed = self.target_transforms or getattr(self.dataset, "target_transform", targets) is not None
        if targets is None or changed:
            return None
        labels = np.asarray(targets)
        fits = labels.ndim == axes and len(labels) == len(self) and labels.dtype.kind in "iu"
        return labels if fits else None

    @property
    def supports_take(self) -> bool:
        """Whether :meth:`take` is available."""
        return hasattr(self.dataset, "take") and not (self.transforms or self.target_transforms)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return several samples as tensors, ``[B, ...]``."""
        x, y = self.dataset.take(indices)
        return self._tensor(indices[0], "an input", x), self._tensor(indices[0], "a target", y)

    def raw(self, index: int) -> tuple[Any, Any]:
        """Return a transformed sample, without conversion to tensors.

        Raises:
            DataError: the sample is not a pair.
        """
        sample = self.dataset[index]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise self.error(index, f"is a {type(sample).__name__}, must be a pair (x, y)")
        x, y = sample
        for transform in self.transforms:
            x = apply_transform(transform, x, "transform")
        for transform in self.target_transforms:
            y = apply_transform(transform, y, "target_transform")
        return x, y

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a transformed sample as tensors.

        Raises:
            DataError: the sample is not a pair of tensors, arrays or numbers.
        """
        x, y = self.raw(index)
        return self._tensor(index, "an input", x), self._tensor(index, "a target", y)

    def require_labels(self, labels: Tensor, indices: Sequence[int], outputs: int | None) -> None:
        """Raise an error for labels, ``[B]`` or ``[B, T]``, outside [0, ``outputs``)."""
        # PyTorch does not implement comparisons of unsigned types
        labels = labels.to(torch.int64)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= (high + 1 if outputs is None else outputs):
            label = low if low < 0 else high
            at = (labels == label).reshape(len(indices), -1).any(1)
            must = "0 or more" if outputs is None else f"from 0 to {outputs - 1}"
            raise self.error(indices[int(at.int().argmax())], f"has the label {label}, must be {must}")

    def error(self, index: int, what: str) -> DataError:
        """Return an error with a message about a sample."""
        return DataError(f"data: sample {index} of {self.name} {what}")

    def _tensor(self, index: int, what: str, value: Any) -> Tensor:
        tensor = _as_tensor(value)
        if tensor is None:
            kind = f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise self.error(index, f"has {what} of type {kind}, must be a tensor, a NumPy array or a number")
        return tensor


class ArrayDataset:
    """A dataset from two arrays.

    Args:
        x: inputs, ``[N, ...]``, in memory or memory-mapped.
        y: targets, ``[N, ...]``.
        classes: names of the labels.
        features: names of the input features.
    """

    target_transform = None

    def __init__(
        self,
        x: Any,
        y: np.ndarray[Any, Any],
        classes: Sequence[str] | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        self.x, self.y, self.classes, self.features = x, y, classes, features

    def __len__(self) -> int:
        return len(self.y)

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        """All targets."""
        return self.y

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        x, y = self.take([index])
        # transforms of torchvision ignore NumPy arrays
        return _as_tensor(x[0]), y[0]

    def take(self, indices: Sequence[int]) -> tuple[Any, Any]:
        """Return several samples, ``[B, ...]``."""
        return self.x[indices], self.y[indices]


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, (np.ndarray, np.generic)):
        # copy: the array may be read-only or not in native byte order
        array = np.array(value, order="C")
        if array.dtype.kind not in "biuf":
            return None
        value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    elif isinstance(value, (bool, int, float)):
        value = torch.tensor(value)
    if not isinstance(value, Tensor) or value.is_complex() or value.is_sparse:
        return None
    return value.detach()


def is_image(value: Any) -> bool:
    """Return True if ``value`` is a PIL image, without importing PIL."""
    return any(kind.__module__.partition(".")[0] == "PIL" for kind in type(value).__mro__)


def apply_transform(transform: Callable[[Any], Any], value: Any, key: str) -> Any:
    """Apply a transform.

    Raises:
        ConfigError: a transform of torchvision does not support the value. Errors of other transforms propagate.
    """
    try:
        return transform(value)
    except (TypeError, ValueError, RuntimeError) as error:
        if not type(transform).__module__.startswith("torchvision."):
            raise
        raise ConfigError(
            f"{key}: {type(transform).__name__} does not support these inputs: {one_line(str(error))}"
        ) from error
