"""Arrays in files as the data of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnexp import files
from snnexp.data.description import Target
from snnexp.data.module import DataModule
from snnexp.data.prepare import files_of, prepared
from snnexp.data.sources import ArrayDataset, Source
from snnexp.errors import ConfigError, DataError
from snnexp.spec.annotations import Given, Index, InFile
from snnexp.spec.checked import checked
from snnexp.spec.parts import part

Array = np.ndarray[Any, Any]
SPLIT, GROUPS, LENGTHS = "split", "groups", "lengths"
"""What a file has these arrays for is told by their names."""


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
    """The data module of arrays in files, npz, pt (tensors), mat or h5, or in a folder of npy files.

    Inputs of two axes ``[N, F]`` or four ``[N, C, H, W]`` are constant, those of three ``[N, T, C]`` or five
    ``[N, T, C, H, W]`` are sequences. Labels are whole numbers or text ``[N]``, by step ``[N, T]``, or one-hot with
    another axis; real numbers are values ``[N]`` or ``[N, K]``, or a trace ``[N, T, K]``.

    An array ``split`` with the words train, val and test gives the splits, and an array ``groups`` one id for each
    sample; samples of a group stay in one split.

    Args:
        path: the file, or the folder, of all samples.
        train: the file of the training samples, in place of ``path``.
        val: the file of the validation samples.
        test: the file of the test samples.
        x: the name of the inputs in the files.
        y: the name of the targets.
        groups: the name of the ids of groups; null for ``groups``, where a file has that.
        target: what targets are; null to tell it from their number type and axes.
        sequences: whether inputs have a time axis behind that of the samples; null to tell it from their axes.
        unlabeled: the class of one-hot vectors that are all 0; null to refuse them.
        options: as of :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: the arguments contradict each other or the arrays.
        DataError: a file is missing or damaged, lacks an array, or holds what cannot be used.
    """
    named = files_of(path, train, val, test)
    found = {split: _Read(key, Path(file), x, y, groups, unlabeled) for split, (key, file) in named.items()}
    names = _names([each.y for each in found.values()])
    sources = {split: each.source(target, sequences, names) for split, each in found.items()}
    return prepared(sources, target=target, sequences=sequences, **options)


class _Read:
    """The arrays of a file."""

    def __init__(self, key: str, path: Path, x: str, y: str, groups: str | None, unlabeled: int | None) -> None:
        self.path = files.absolute(path)
        found = files.open_arrays(self.path, key)
        self.name = self.path.name
        self.key = (files.signature(self.path), x, y, unlabeled)
        self.unlabeled = unlabeled
        self.x = files.get_array(found, self.path, "x", x)
        self.y = np.asarray(files.get_array(found, self.path, "y", y).load())
        if self.y.ndim == 2 and 1 in self.y.shape and len(self.x.shape) and self.y.size == self.x.shape[0]:
            # a vector is a row or a column in a file of MATLAB
            self.y = self.y.reshape(-1)
        if LENGTHS in found and len(np.unique(found[LENGTHS].load())) > 1:
            told = f"{self.name} says by its array lengths that sequences differ in length, and here all steps count"
            raise DataError(f"data: {told}; cut them to one length, or leave the array out")
        named = {GROUPS: groups or GROUPS, SPLIT: SPLIT}
        known = {what: name for what, name in named.items() if name in found or (what == GROUPS and groups)}
        ids = {what: _ids(files.get_array(found, self.path, what, name).load()) for what, name in known.items()}
        self.groups, self.split = ids.get(GROUPS), ids.get(SPLIT)
        for name, count in ((y, len(self.y)), *((known[what], len(each)) for what, each in ids.items())):
            if not self.x.shape or count != self.x.shape[0]:
                raise DataError(f"data: {self.name} has {x} {[*self.x.shape]} and {count} {name}, must be one for each")

    def source(self, target: Target | None, sequences: bool | None, names: Sequence[str] | None) -> Source:
        """The samples, with targets as numbers."""
        timed = len(self.x.shape) in (3, 5) if sequences is None else sequences
        steps = self.x.shape[1] if timed and len(self.x.shape) > 1 else None
        if names is not None:
            y = _numbers(self.y, names)
        else:
            y = _as_labels(self.y, target, steps, self.unlabeled, self.name)
        x = self.x if self.x.mapped else self.x.load()
        return Source(self.name, ArrayDataset(x, y, names), self.groups, self.split, self.key)


def _names(targets: Sequence[Array]) -> list[str] | None:
    """The names of the classes of all files in alphabetical order, where labels are text."""
    if not any(each.dtype.kind in "US" for each in targets):
        return None
    return sorted({name for each in targets for name in _text(each).ravel().tolist()})


def _ids(array: Array) -> list[Any]:
    ids: list[Any] = (_text(array) if array.dtype.kind == "S" else array).ravel().tolist()
    return ids


def _text(labels: Array) -> Array:
    text: Array = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels.astype(str)
    return text


def _numbers(labels: Array, names: Sequence[str]) -> Array:
    return np.asarray(np.searchsorted(np.asarray(names), _text(labels)))


def _as_labels(y: Array, target: Target | None, steps: int | None, unlabeled: int | None, name: str) -> Array:
    """Targets, of which one-hot vectors and whole numbers that were declared as labels are made labels.

    Raises:
        ConfigError: real numbers may be labels or values, and nothing says which.
    """
    if target in ("values", "trace") or y.dtype.kind not in "biuf":
        return y
    # a class for each step, or a one-hot vector of as many classes as there are steps
    by_step = y.ndim == 2 and y.dtype.kind in "biu" and y.shape[1] == steps
    if y.ndim >= 2 and y.shape[-1] > 1 and _is_binary(y) and not (by_step and target == "step_labels"):
        count = y.sum(-1)
        if (count == 1).all():
            if by_step and target is None:
                told = f"{[*y.shape]} in {name} are one-hot vectors or a label for each step"
                raise ConfigError(f"target: got null, and targets {told}; use data.target=labels or step_labels")
            return np.asarray(y.argmax(-1))
        if y.dtype.kind != "f" and (count <= 1).all() and not by_step:
            if unlabeled is not None:
                return np.where(count == 0, unlabeled, y.argmax(-1))
            told = f"{int((count == 0).sum())} of {count.size} one-hot vectors in {name} are all 0"
            raise DataError(f"data: {told}; each must have a class, and data.unlabeled=CLASS gives them one")
    if y.dtype.kind == "f" and y.size and (y == np.floor(y)).all():
        if target is not None:
            return y.astype(np.int64)
        if y.ndim == 1:
            low, high = int(y.min()), int(y.max())
            told = f"the targets in {name} are whole numbers from {low} to {high} stored as {y.dtype}"
            raise ConfigError(f"target: got null, and {told}; use data.target=labels or data.target=values")
    return y.astype(np.int64) if y.dtype.kind in "biu" else y


def _is_binary(y: Array) -> bool:
    return bool(((y == 0) | (y == 1)).all())
