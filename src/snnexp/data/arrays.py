"""Data from files of arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnexp import files
from snnexp.data.description import Target
from snnexp.data.module import DataModule
from snnexp.data.prepare import prepared, split_files
from snnexp.data.sources import ArrayDataset, Source
from snnexp.errors import ConfigError, DataError
from snnexp.spec.annotations import Given, Index, InFile
from snnexp.spec.checked import checked
from snnexp.spec.parts import part

Array = np.ndarray[Any, Any]
SPLIT, GROUPS, LENGTHS = "split", "groups", "lengths"
"""Names of optional arrays in a file."""


@part(
    target=Given("target"),
    sequences=Given("sequences"),
    outputs=Given("outputs"),
    num_steps=InFile(("path", "train"), "x", "sequences"),
    validation=("val_fraction", "val"),
    splits_in_file=True,
    stackable=True,
)
@checked
def arrays_data(
    path: str | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    x: str = "inputs",
    y: str = "labels",
    groups: str | None = None,
    target: Target | None = None,
    sequences: bool | None = None,
    unlabeled: Index | None = None,
    **options: Any,
) -> DataModule:
    """Make a data module from files of arrays: npz, pt (tensors), mat, h5, or a folder of npy files.

    Inputs with two axes ``[N, F]`` or four ``[N, C, H, W]`` are constant; those with three ``[N, T, C]`` or five
    ``[N, T, C, H, W]`` are sequences. Labels are integers or strings ``[N]``, per step ``[N, T]``, or one-hot with an
    additional axis. Floating-point targets are values ``[N]`` or ``[N, K]``, or a trace ``[N, T, K]``.

    An optional array ``split`` with the values train, val and test defines the splits. An optional array ``groups`` has
    one id per sample; samples of a group stay in the same split.

    Args:
        path: file or folder of all samples.
        train: file of the training samples, instead of ``path``.
        val: file of the validation samples.
        test: file of the test samples.
        x: name of the inputs.
        y: name of the targets.
        groups: name of the group ids; null for ``groups``, if it exists.
        target: kind of target; null to infer it from the dtype and the number of axes.
        sequences: whether the second axis of the inputs is time; null to infer it from the number of axes.
        unlabeled: class of one-hot vectors that are all 0; null to reject them.
        options: see :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: the arguments contradict each other or the arrays.
        DataError: a file is missing or damaged, lacks an array, or has unsupported values.
    """
    named = split_files(path, train, val, test)
    contents = {split: _ArrayFile(key, Path(file), x, y, groups, unlabeled) for split, (key, file) in named.items()}
    names = _class_names([each.y for each in contents.values()])
    sources = {split: each.source(target, sequences, names) for split, each in contents.items()}
    return prepared(sources, target=target, sequences=sequences, **options)


class _ArrayFile:
    """The arrays of a file.

    Args:
        key: argument that names the file.
        path: the file.
        x: name of the inputs.
        y: name of the targets.
        groups: name of the group ids, if given.
        unlabeled: class of one-hot vectors that are all 0.
    """

    def __init__(self, key: str, path: Path, x: str, y: str, groups: str | None, unlabeled: int | None) -> None:
        self.path = files.absolute(path)
        arrays = files.open_arrays(self.path, key)
        self.name = self.path.name
        self.key = (files.signature(self.path), x, y, unlabeled)
        self.unlabeled = unlabeled
        self.x = files.get_array(arrays, self.path, "x", x)
        self.y = np.asarray(files.get_array(arrays, self.path, "y", y).load())
        if self.y.ndim == 2 and 1 in self.y.shape and len(self.x.shape) and self.y.size == self.x.shape[0]:
            # MATLAB stores vectors as matrices with one row or column
            self.y = self.y.reshape(-1)
        if LENGTHS in arrays and len(np.unique(arrays[LENGTHS].load())) > 1:
            reason = f"{self.name} has sequences of different lengths (array lengths), which are not supported"
            raise DataError(f"data: {reason}; truncate them to one length, or remove the array")
        named = {GROUPS: groups or GROUPS, SPLIT: SPLIT}
        known = {what: name for what, name in named.items() if name in arrays or (what == GROUPS and groups)}
        ids = {what: _ids(files.get_array(arrays, self.path, what, name).load()) for what, name in known.items()}
        self.groups, self.split = ids.get(GROUPS), ids.get(SPLIT)
        for name, count in ((y, len(self.y)), *((known[what], len(each)) for what, each in ids.items())):
            if not self.x.shape or count != self.x.shape[0]:
                raise DataError(f"data: {self.name} has {x} {[*self.x.shape]} and {count} {name}, must be one for each")

    def source(self, target: Target | None, sequences: bool | None, names: Sequence[str] | None) -> Source:
        """Return the samples, with labels as class indices."""
        timed = len(self.x.shape) in (3, 5) if sequences is None else sequences
        steps = self.x.shape[1] if timed and len(self.x.shape) > 1 else None
        if names is not None:
            y = _label_indices(self.y, names)
        else:
            y = _as_labels(self.y, target, steps, self.unlabeled, self.name)
        x = self.x if self.x.mapped else self.x.load()
        return Source(self.name, ArrayDataset(x, y, names), self.groups, self.split, self.key)


def _class_names(targets: Sequence[Array]) -> list[str] | None:
    """Return the sorted class names of all files, or None if labels are numbers."""
    if not any(each.dtype.kind in "US" for each in targets):
        return None
    return sorted({name for each in targets for name in _as_text(each).ravel().tolist()})


def _ids(array: Array) -> list[Any]:
    ids: list[Any] = (_as_text(array) if array.dtype.kind == "S" else array).ravel().tolist()
    return ids


def _as_text(labels: Array) -> Array:
    text: Array = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels.astype(str)
    return text


def _label_indices(labels: Array, names: Sequence[str]) -> Array:
    return np.asarray(np.searchsorted(np.asarray(names), _as_text(labels)))


def _as_labels(y: Array, target: Target | None, steps: int | None, unlabeled: int | None, name: str) -> Array:
    """Convert one-hot vectors, and floats declared as labels, to class indices; return other targets unchanged.

    Raises:
        ConfigError: the targets are ambiguous.
        DataError: a one-hot vector is all 0.
    """
    if target in ("values", "trace") or y.dtype.kind not in "biuf":
        return y
    # a binary label for each step, or a one-hot vector if there are as many classes as steps
    by_step = y.ndim == 2 and y.dtype.kind in "biu" and y.shape[1] == steps
    if y.ndim >= 2 and y.shape[-1] > 1 and _is_binary(y) and not (by_step and target == "step_labels"):
        count = y.sum(-1)
        if (count == 1).all():
            if by_step and target is None:
                reason = f"targets {[*y.shape]} in {name} are one-hot vectors or a label for each step"
                raise ConfigError(f"target: got null, and {reason}; use data.target=labels or step_labels")
            return np.asarray(y.argmax(-1))
        if y.dtype.kind != "f" and (count <= 1).all() and not by_step:
            if unlabeled is not None:
                return np.where(count == 0, unlabeled, y.argmax(-1))
            reason = f"{int((count == 0).sum())} of {count.size} one-hot vectors in {name} are all 0"
            raise DataError(f"data: {reason}; each must have a class; use data.unlabeled=CLASS")
    if y.dtype.kind == "f" and y.size and (y == np.floor(y)).all():
        if target is not None:
            return y.astype(np.int64)
        if y.ndim == 1:
            low, high = int(y.min()), int(y.max())
            reason = f"the targets in {name} are whole numbers from {low} to {high} stored as {y.dtype}"
            raise ConfigError(f"target: got null, and {reason}; use data.target=labels or data.target=values")
    return y.astype(np.int64) if y.dtype.kind in "biu" else y


def _is_binary(y: Array) -> bool:
    return bool(((y == 0) | (y == 1)).all())
