"""Datasets that samples are read from, and what is applied to each sample."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.errors import ConfigError, DataError
from snnexp.text import one_line


class Source:
    """A dataset, and what is applied to each of its samples.

    A dataset may have a method ``take(indices)`` that gives inputs and targets of several samples, ``[B, ...]``; it is
    called where nothing is applied. Names of classes are in its attribute ``classes``, and all labels in
    ``targets``, as in the datasets of torchvision.

    Args:
        name: for messages.
        dataset: map-style, ``len(dataset)`` and ``dataset[index]``, whose samples are pairs (x, y).
        groups: one id per sample of what samples have in common; None without groups.
        split: the split of each sample, ``train``, ``val`` or ``test``; None where they do not say.
        key: equal for sources whose samples are the same and are not drawn; None where that is not known.
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
        """The same source, with functions that are applied to x and to y, in this order."""
        if not (transforms or target_transforms):
            return self
        other = Source(self.name, self.dataset, self.groups, self.split)
        other.transforms, other.target_transforms = transforms, target_transforms
        return other

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def classes(self) -> list[str] | None:
        """The names of classes; None where there are none."""
        found = getattr(self.dataset, "classes", None)
        if not isinstance(found, (list, tuple)) or not found or not all(isinstance(name, str) for name in found):
            return None
        return list(found)

    def labels(self, axes: int = 1) -> np.ndarray[Any, Any] | None:
        """The labels of all samples, ``[N]``, or ``[N, T]`` with two axes, where these need not be read for it."""
        found = getattr(self.dataset, "targets", None)
        # that of another class than torchvision's may be anything
        changed = self.target_transforms or getattr(self.dataset, "target_transform", found) is not None
        if found is None or changed:
            return None
        labels = np.asarray(found)
        fits = labels.ndim == axes and len(labels) == len(self) and labels.dtype.kind in "iu"
        return labels if fits else None

    @property
    def supports_take(self) -> bool:
        """Whether several samples are read at a time."""
        return hasattr(self.dataset, "take") and not (self.transforms or self.target_transforms)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Several samples as tensors, ``[B, ...]``."""
        x, y = self.dataset.take(indices)
        return self._tensor(indices[0], "an input", x), self._tensor(indices[0], "a target", y)

    def raw(self, index: int) -> tuple[Any, Any]:
        """A sample after its transforms, of any types.

        Raises:
            DataError: it is no pair.
        """
        found = self.dataset[index]
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise self.error(index, f"is a {type(found).__name__}, must be a pair (x, y)")
        x, y = found
        for transform in self.transforms:
            x = apply_transform(transform, x, "transform")
        for transform in self.target_transforms:
            y = apply_transform(transform, y, "target_transform")
        return x, y

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """A sample as tensors.

        Raises:
            DataError: it is no pair of tensors, arrays or numbers.
        """
        x, y = self.raw(index)
        return self._tensor(index, "an input", x), self._tensor(index, "a target", y)

    def require_labels(self, labels: Tensor, indices: Sequence[int], outputs: int | None) -> None:
        """Refuse labels of samples, ``[B]`` or ``[B, T]``, that are negative or not less than the number of classes."""
        # PyTorch does not compare the unsigned types
        labels = labels.to(torch.int64)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= (high + 1 if outputs is None else outputs):
            label = low if low < 0 else high
            at = (labels == label).reshape(len(indices), -1).any(1)
            must = "0 or more" if outputs is None else f"from 0 to {outputs - 1}"
            raise self.error(indices[int(at.int().argmax())], f"has the label {label}, must be {must}")

    def error(self, index: int, what: str) -> DataError:
        """The error for a sample."""
        return DataError(f"data: sample {index} of {self.name} {what}")

    def _tensor(self, index: int, what: str, value: Any) -> Tensor:
        found = _as_tensor(value)
        if found is None:
            kind = f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise self.error(index, f"has {what} of type {kind}, must be a tensor, a NumPy array or a number")
        return found


class ArrayDataset:
    """The samples of two arrays, one by one or several at a time.

    Args:
        x: inputs, ``[N, ...]``, perhaps read from the disk.
        y: targets, ``[N, ...]``.
        classes: the names of labels.
        features: the names of inputs.
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
        # transforms of torchvision leave arrays of NumPy as they are
        return _as_tensor(x[0]), y[0]

    def take(self, indices: Sequence[int]) -> tuple[Any, Any]:
        """Several samples, ``[B, ...]``."""
        return self.x[indices], self.y[indices]


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, (np.ndarray, np.generic)):
        # a copy: an array may be read-only, or have its bytes in another order
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
    """Whether a value is an image of the Python Imaging Library, without importing it."""
    return any(kind.__module__.partition(".")[0] == "PIL" for kind in type(value).__mro__)


def apply_transform(transform: Callable[[Any], Any], value: Any, key: str) -> Any:
    """What a transform makes of a value.

    Raises:
        ConfigError: a transform of torchvision cannot take the value; that of a user's own raises what it raises.
    """
    try:
        return transform(value)
    except (TypeError, ValueError, RuntimeError) as error:
        if not type(transform).__module__.startswith("torchvision."):
            raise
        raise ConfigError(
            f"{key}: {type(transform).__name__} cannot take these inputs: {one_line(str(error))}"
        ) from error
