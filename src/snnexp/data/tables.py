"""Tables in CSV files as the data of a run: a sample for each row, or for each window of a time series."""

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
"""The least whole number that stands for another one too, as a float of 64 bits."""
MOST_CLASSES = 20
"""Of whole numbers: with more, that are also more than half of the rows, nothing says that they are classes."""


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
    """The data module of a CSV file with a header: each other column is a feature, and must hold numbers.

    Text and whole numbers in the target column are classes, real numbers values; several target columns are values.

    With ``window``, the rows are a time series: a sample is the features of so many rows, as a sequence, and its target
    that of the row ``horizon`` rows after the last. A target of numbers is a feature too, unless ``horizon`` is 0.
    Splits by fraction are in the order of time, training first, and no window crosses from one to another.

    Args:
        path: the file of all samples.
        train: the file of the training samples, in place of ``path``.
        val: the file of the validation samples.
        test: the file of the test samples.
        target: the column, or the columns, of the target.
        drop: columns that are left out.
        classify: whether whole numbers are classes; null for yes, unless they are too many.
        groups: a column of ids; rows with the same id stay in one split.
        split: a column with the words train, val and test.
        delimiter: between the fields of a row.
        window: rows of a sample; null for a sample for each row.
        horizon: how many rows after a window its target is.
        stride: rows from one window to the next.
        val_fraction: of the samples, set aside for validation; null for none.
        test_fraction: of the samples, set aside for the test; null for 0.2, or for none beside data.test.
        fold: of a cross-validation, the part that is the test split, from 0; null for none.
        stratify: whether each split by fraction or fold has each class in proportion.
        options: as of :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: the arguments contradict each other or the columns.
        DataError: a file is missing or damaged, or a field is missing.
    """
    named = split_files(path, train, val, test)
    columns = _Columns(delimiter, target, drop, groups, split)
    tables = {name: columns.read(file) for name, (_, file) in named.items()}
    names = _classes([*tables.values()], classify)
    # a target in the last row of its own window would be told by the window
    features = columns.features(tables["train"].rows, window is not None and horizon > 0 and names is None)
    if window is None:
        sources = {name: each.source(features, names) for name, each in tables.items()}
    else:
        asked = {"fold": fold, "stratify": stratify or None, "groups": groups, "split": split}
        for key, value in asked.items():
            if value is not None:
                raise ConfigError(f"{key}: got {format_value(value)}, and splits of a time series are in its order")
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
    """What a file holds: its rows, targets ``[N]`` or ``[N, K]``, ids and words."""

    rows: CSVFile
    y: Array
    groups: list[Any] | None
    split: list[Any] | None
    key: Hashable

    @property
    def name(self) -> str:
        return self.rows.path.name

    def x(self, features: Sequence[str]) -> Array:
        """The features, ``[N, F]``.

        Raises:
            DataError: there is no such column.
        """
        if missing := [name for name in features if name not in self.rows.header]:
            raise DataError(
                f"data: {self.name} has no column {format_value(missing[0])}, and the training samples have"
            )
        return self.rows.numbers(features)

    def source(self, features: Sequence[str], names: Sequence[str] | None) -> Source:
        """A sample for each row."""
        dataset = ArrayDataset(self.x(features), _numbers(self.y, names), names, features)
        return Source(self.name, dataset, self.groups, self.split, self.key)


@dataclass(frozen=True)
class _Columns:
    """Which columns of a file are what."""

    delimiter: str
    target: str | Sequence[str] | None
    drop: Sequence[str]
    groups: str | None
    split: str | None

    @property
    def targets(self) -> list[str]:
        return [self.target] if isinstance(self.target, str) else [*(self.target or ())]

    def read(self, file: str) -> _Table:
        """The table in a file.

        Raises:
            ConfigError: there is no such column.
            DataError: the file is missing or damaged, or a field is missing.
        """
        if len(self.delimiter) != 1:
            raise ConfigError(f"delimiter: got {format_value(self.delimiter)}, must be one character")
        path = files.absolute(file)
        files.require_file(path)
        found, targets = CSVFile(path, self.delimiter), self.targets
        if not targets:
            raise ConfigError(f"target: must name a column of {path.name}: {', '.join(found.header)}")
        if len({*targets}) < len(targets):
            raise ConfigError(f"target: got {format_value(', '.join(targets))}, must name each column once")
        others = {what: name for what, name in (("groups", self.groups), ("split", self.split)) if name is not None}
        named = [*(("target", name) for name in targets), *(("drop", name) for name in self.drop), *others.items()]
        for what, name in named:
            found.require(what, name)
        y = found.values(targets[0]) if len(targets) == 1 else found.numbers(targets, "target")
        ids = {what: found.values(name).tolist() for what, name in others.items()}
        words = (self.delimiter, tuple(targets), tuple(self.drop), self.groups, self.split)
        return _Table(found, y, ids.get("groups"), ids.get("split"), (files.signature(path), *words))

    def features(self, rows: CSVFile, with_target: bool) -> list[str]:
        """The columns that are features, in the order of the file."""
        left_out = {*self.drop, self.groups, self.split, *(() if with_target else self.targets)}
        return [name for name in rows.header if name not in left_out]


def _classes(tables: Sequence[_Table], classify: bool | None) -> list[str] | None:
    """The names of the classes of all files; None where targets are values.

    Raises:
        ConfigError: that is not clear, or cannot be.
    """
    text = [each.name for each in tables if each.y.dtype.kind == "U"]
    if text and (classify is False or len(text) < len(tables)):
        raise ConfigError(f"classify: got {format_value(classify)}, and the target in {text[0]} is text")
    if text:
        return sorted({label for each in tables for label in each.y.tolist()})
    numbers = np.concatenate([each.y.ravel() for each in tables])
    whole = tables[0].y.ndim == 1 and bool((np.isfinite(numbers) & (numbers == np.floor(numbers))).all())
    if classify and not whole:
        raise ConfigError("classify: got true, and the target is no single column of whole numbers or text")
    if not whole or classify is False:
        return None
    found = np.unique(numbers)
    if abs(found).max() >= EXACT:
        raise ConfigError("classify: the target has whole numbers of 2^53 or more, must be smaller, or text")
    if classify is None and len(found) > max(MOST_CLASSES, len(numbers) / 2):
        told = f"{len(found)} different whole numbers in {len(numbers)} rows"
        raise ConfigError(f"classify: the target has {told}; use data.classify=false for values, or true")
    return [f"{number:.0f}" for number in found]


def _numbers(y: Array, names: Sequence[str] | None) -> Array:
    """Targets, labels as indices of their names."""
    if names is None:
        return y
    if y.dtype.kind == "U":
        return np.searchsorted(np.array(names), y)
    return np.searchsorted(np.array(names, dtype=np.float64), y)


class _Windows:
    """Successive rows, ``windows[indices]`` is ``[B, T, F]``.

    Args:
        rows: ``[N, F]``.
        starts: the first row of each window.
        length: T.
    """

    def __init__(self, rows: Array, starts: Array, length: int) -> None:
        self.rows, self.starts, self.steps = rows, starts, np.arange(length)

    def __getitem__(self, indices: Sequence[int]) -> Array:
        found: Array = self.rows[self.starts[indices][:, None] + self.steps]
        return found


@dataclass(frozen=True)
class _Series:
    """How windows are cut out of a time series: by arguments of :func:`csv_data`, features, and names of classes."""

    window: int
    horizon: int
    stride: int
    features: Sequence[str]
    names: Sequence[str] | None

    def sources(self, tables: Mapping[str, _Table], val: float | None, test: float | None) -> dict[str, Source]:
        """A sample for each window; those of splits by fraction are in the order of time."""
        if test is None and "test" not in tables:
            test = TEST_FRACTION
        fractions = {"val": val or 0.0, "test": test or 0.0}
        for name, fraction in fractions.items():
            if fraction and name in tables:
                raise ConfigError(f"{name}_fraction: got {fraction:g} beside data.{name}; give one of them")
        if not fractions["test"] and "test" not in tables:
            raise ConfigError("test_fraction: got 0, and every run needs a test split; use data.test")
        whole = tables["train"]
        count = len(whole.y)
        ends = [round(count * left) for left in (1 - sum(fractions.values()), 1 - fractions["test"], 1)]
        for (name, fraction), begin, end in zip(fractions.items(), ends, ends[1:], strict=False):
            if fraction and begin == end:
                raise ConfigError(f"{name}_fraction: got {fraction:g}, which is none of the {count} rows")
        if ends[0] < 1:
            name = "val" if fractions["val"] else "test"
            told = f"got {fractions[name]:g}, which leaves none of {count} rows to train on"
            raise ConfigError(f"{name}_fraction: {told}")
        found = {
            name: self._windows(whole, begin, end)
            for name, begin, end in zip(("train", "val", "test"), (0, *ends), ends, strict=False)
            if begin < end
        }
        others = {name: each for name, each in tables.items() if name != "train"}
        return found | {name: self._windows(each, 0, len(each.y)) for name, each in others.items()}

    def _windows(self, table: _Table, begin: int, end: int) -> Source:
        # the last row that a window reads is that of its target
        behind = self.window - 1 + self.horizon
        starts = np.arange(begin, end - behind, self.stride)
        if not len(starts):
            need = f"a window of {self.window} and a horizon of {self.horizon} need {behind + 1}"
            raise DataError(f"data: {end - begin} rows of {table.name} make no sample, {need}")
        y = _numbers(table.y, self.names)[starts + behind]
        rows = _Windows(table.x(self.features), starts, self.window)
        how = (self.window, self.horizon, self.stride)
        dataset = ArrayDataset(rows, y, self.names, self.features)
        return Source(table.name, dataset, key=(table.key, begin, end, how))
