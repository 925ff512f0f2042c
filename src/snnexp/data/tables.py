"""Data from CSV files: one sample per row, or per window of a time series."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from snnexp import files
from snnexp.data.csv_file import Array, CSVFile
from snnexp.data.module import DataModule
from snnexp.data.prepare import TEST_FRACTION, prepared, split_files
from snnexp.data.sources import ArrayDataset, Source
from snnexp.errors import ConfigError, DataError
from snnexp.spec.annotations import AtMost, BelowOne, Count, Given, Index
from snnexp.spec.checked import checked
from snnexp.spec.parts import part
from snnexp.text import format_value

EXACT = 2**53
"""float64 does not represent all integers above this."""
MAX_CLASSES = 20
"""Integers with more distinct values than this, and than half of the rows, are ambiguous: classes or values."""


@part(num_steps=Given("window"), validation=("val_fraction", "val", "split"), stackable=True)
@checked
def csv_data(
    path: str | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    target: str | Sequence[str] | None = None,
    drop: Sequence[str] = (),
    classify: bool | None = None,
    groups: str | None = None,
    split: str | None = None,
    delimiter: str = ",",
    window: Count | None = None,
    horizon: Index = 1,
    stride: Count = 1,
    val_fraction: BelowOne | None = None,
    test_fraction: Annotated[float, Interval(ge=0, lt=1), AtMost("1 - val_fraction")] | None = None,
    fold: Index | None = None,
    stratify: bool = False,
    **options: Any,
) -> DataModule:
    """Make a data module from a CSV file with a header; all columns but the target are features and must be numbers.

    Strings and integers in the target column are classes, floats are values; several target columns are values.

    With ``window``, the rows are a time series: a sample is the sequence of ``window`` rows, and its target that of the
    row ``horizon`` rows after the last. A numeric target is also a feature, unless ``horizon`` is 0. Splits by fraction
    are in chronological order, training first, and no window crosses their boundaries.

    Args:
        path: file of all samples.
        train: file of the training samples, instead of ``path``.
        val: file of the validation samples.
        test: file of the test samples.
        target: column or columns of the target.
        drop: columns that are not features.
        classify: whether integers are classes; null for true, unless there are too many.
        groups: column of group ids; rows of a group stay in the same split.
        split: column with the values train, val and test.
        delimiter: separator of the fields.
        window: number of rows per sample; null for one sample per row.
        horizon: number of rows from the last row of a window to that of its target.
        stride: number of rows from one window to the next.
        val_fraction: fraction of the samples for validation; null for none.
        test_fraction: fraction of the samples for the test; null for 0.2, or for none with data.test.
        fold: index of the test fold in a cross-validation; null for none.
        stratify: keep the proportions of the classes in each split by fraction or fold.
        options: see :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: the arguments contradict each other or the columns.
        DataError: a file is missing or damaged, or a field is missing.
    """
    named = split_files(path, train, val, test)
    columns = _Columns(delimiter, target, drop, groups, split)
    tables = {name: columns.read(file) for name, (_, file) in named.items()}
    names = _classes([*tables.values()], classify)
    # with horizon 0, the target is in the last row of its window
    features = columns.features(tables["train"].rows, window is not None and horizon > 0 and names is None)
    if window is None:
        sources = {name: each.source(features, names) for name, each in tables.items()}
    else:
        unsupported = {"fold": fold, "stratify": stratify or None, "groups": groups, "split": split}
        for key, value in unsupported.items():
            if value is not None:
                raise ConfigError(f"{key}: got {format_value(value)}, but splits of a time series are chronological")
        series = _Series(window, horizon, stride, features, names)
        sources = series.sources(tables, val_fraction, test_fraction)
        val_fraction = test_fraction = None
    return prepared(
        sources,
        sequences=window is not None,
        target="values" if names is None else "labels",
        outputs=None,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        fold=fold,
        stratify=stratify,
        **options,
    )


@dataclass(frozen=True)
class _Table:
    """The content of a file: its rows, targets ``[N]`` or ``[N, K]``, group ids, and names of splits."""

    rows: CSVFile
    y: Array
    groups: list[Any] | None
    split: list[Any] | None
    key: Hashable

    @property
    def name(self) -> str:
        return self.rows.path.name

    def x(self, features: Sequence[str]) -> Array:
        """Return the features, ``[N, F]``.

        Raises:
            DataError: there is no such column.
        """
        if missing := [name for name in features if name not in self.rows.header]:
            raise DataError(f"data: {self.name} has no column {format_value(missing[0])}, but the training samples do")
        return self.rows.numbers(features)

    def source(self, features: Sequence[str], names: Sequence[str] | None) -> Source:
        """Return a source with one sample per row."""
        dataset = ArrayDataset(self.x(features), _class_indices(self.y, names), names, features)
        return Source(self.name, dataset, self.groups, self.split, self.key)


@dataclass(frozen=True)
class _Columns:
    """The roles of the columns of a file."""

    delimiter: str
    target: str | Sequence[str] | None
    drop: Sequence[str]
    groups: str | None
    split: str | None

    @property
    def targets(self) -> list[str]:
        return [self.target] if isinstance(self.target, str) else [*(self.target or ())]

    def read(self, file: str) -> _Table:
        """Read a file.

        Raises:
            ConfigError: there is no such column.
            DataError: the file is missing or damaged, or a field is missing.
        """
        if len(self.delimiter) != 1:
            raise ConfigError(f"delimiter: got {format_value(self.delimiter)}, must be one character")
        path = files.absolute(file)
        files.require_file(path)
        rows, targets = CSVFile(path, self.delimiter), self.targets
        if not targets:
            raise ConfigError(f"target: must name a column of {path.name}: {', '.join(rows.header)}")
        if len({*targets}) < len(targets):
            raise ConfigError(f"target: got {format_value(', '.join(targets))}, must name each column once")
        others = {what: name for what, name in (("groups", self.groups), ("split", self.split)) if name is not None}
        named = [*(("target", name) for name in targets), *(("drop", name) for name in self.drop), *others.items()]
        for what, name in named:
            rows.require(what, name)
        y = rows.values(targets[0]) if len(targets) == 1 else rows.numbers(targets, "target")
        ids = {what: rows.values(name).tolist() for what, name in others.items()}
        settings = (self.delimiter, tuple(targets), tuple(self.drop), self.groups, self.split)
        return _Table(rows, y, ids.get("groups"), ids.get("split"), (files.signature(path), *settings))

    def features(self, rows: CSVFile, with_target: bool) -> list[str]:
        """Return the names of the feature columns, in the order of the file."""
        others = {*self.drop, self.groups, self.split, *(() if with_target else self.targets)}
        return [name for name in rows.header if name not in others]


def _classes(tables: Sequence[_Table], classify: bool | None) -> list[str] | None:
    """Return the class names of all files, or None if targets are values.

    Raises:
        ConfigError: the targets are ambiguous, or contradict ``classify``.
    """
    text = [each.name for each in tables if each.y.dtype.kind == "U"]
    if text and (classify is False or len(text) < len(tables)):
        raise ConfigError(f"classify: got {format_value(classify)}, but the target in {text[0]} is text")
    if text:
        return sorted({label for each in tables for label in each.y.tolist()})
    numbers = np.concatenate([each.y.ravel() for each in tables])
    whole = tables[0].y.ndim == 1 and bool((np.isfinite(numbers) & (numbers == np.floor(numbers))).all())
    if classify and not whole:
        raise ConfigError("classify: got true, but the target is not a single column of whole numbers or text")
    if not whole or classify is False:
        return None
    classes = np.unique(numbers)
    if abs(classes).max() >= EXACT:
        raise ConfigError("classify: the target has whole numbers of 2^53 or more, must be smaller, or text")
    if classify is None and len(classes) > max(MAX_CLASSES, len(numbers) / 2):
        reason = f"{len(classes)} different whole numbers in {len(numbers)} rows"
        raise ConfigError(f"classify: the target has {reason}; use data.classify=false for values, or true")
    return [f"{number:.0f}" for number in classes]


def _class_indices(y: Array, names: Sequence[str] | None) -> Array:
    """Convert labels to indices of ``names``; return values unchanged."""
    if names is None:
        return y
    if y.dtype.kind == "U":
        return np.searchsorted(np.array(names), y)
    return np.searchsorted(np.array(names, dtype=np.float64), y)


class _Windows:
    """Windows of consecutive rows; ``windows[indices]`` is ``[B, T, F]``.

    Args:
        rows: ``[N, F]``.
        starts: first row of each window.
        length: T.
    """

    def __init__(self, rows: Array, starts: Array, length: int) -> None:
        self.rows, self.starts, self.steps = rows, starts, np.arange(length)

    def __getitem__(self, indices: Sequence[int]) -> Array:
        windows: Array = self.rows[self.starts[indices][:, None] + self.steps]
        return windows


@dataclass(frozen=True)
class _Series:
    """Window settings of a time series: arguments of :func:`csv_data`, names of features, and names of classes."""

    window: int
    horizon: int
    stride: int
    features: Sequence[str]
    names: Sequence[str] | None

    def sources(self, tables: Mapping[str, _Table], val: float | None, test: float | None) -> dict[str, Source]:
        """Return the sources by split, with one sample per window; splits by fraction are chronological."""
        if test is None and "test" not in tables:
            test = TEST_FRACTION
        fractions = {"val": val or 0.0, "test": test or 0.0}
        for name, fraction in fractions.items():
            if fraction and name in tables:
                raise ConfigError(f"{name}_fraction: got {fraction:g}, but data.{name} is set; use only one")
        if not fractions["test"] and "test" not in tables:
            raise ConfigError("test_fraction: got 0, but every run requires a test split; use data.test")
        whole = tables["train"]
        count = len(whole.y)
        ends = [round(count * left) for left in (1 - sum(fractions.values()), 1 - fractions["test"], 1)]
        for (name, fraction), begin, end in zip(fractions.items(), ends, ends[1:], strict=False):
            if fraction and begin == end:
                raise ConfigError(f"{name}_fraction: got {fraction:g}, which is less than one of the {count} rows")
        if ends[0] < 1:
            name = "val" if fractions["val"] else "test"
            reason = f"got {fractions[name]:g}, which leaves none of {count} rows for training"
            raise ConfigError(f"{name}_fraction: {reason}")
        by_fraction = {
            name: self._windows(whole, begin, end)
            for name, begin, end in zip(("train", "val", "test"), (0, *ends), ends, strict=False)
            if begin < end
        }
        others = {name: each for name, each in tables.items() if name != "train"}
        return by_fraction | {name: self._windows(each, 0, len(each.y)) for name, each in others.items()}

    def _windows(self, table: _Table, begin: int, end: int) -> Source:
        # offset of the target from the first row of its window
        offset = self.window - 1 + self.horizon
        starts = np.arange(begin, end - offset, self.stride)
        if not len(starts):
            need = f"a window of {self.window} and a horizon of {self.horizon} require {offset + 1}"
            raise DataError(f"data: {end - begin} rows of {table.name} are too few for a sample, {need}")
        y = _class_indices(table.y, self.names)[starts + offset]
        rows = _Windows(table.x(self.features), starts, self.window)
        settings = (self.window, self.horizon, self.stride)
        dataset = ArrayDataset(rows, y, self.names, self.features)
        return Source(table.name, dataset, key=(table.key, begin, end, settings))
