"""Tables in CSV files as the data of a run: a sample for each row, or for each window of a time series."""

import csv
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from snnexp import files
from snnexp.data.module import DataModule
from snnexp.data.prepare import TEST_FRACTION, files_of, prepared
from snnexp.data.reading import ArrayDataset, Source
from snnexp.errors import ConfigError, DataError
from snnexp.spec.annotations import AtMost, BelowOne, Count, Given, Index
from snnexp.spec.checked import checked
from snnexp.spec.parts import part
from snnexp.text import closest, line, shown

Array = np.ndarray[Any, Any]
MISSING = ("", "na", "n/a", "nan", "null", "none")
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
    named = files_of(path, train, val, test)
    columns = _Columns(delimiter, target, drop, groups, split)
    (first, (_, file)), *others = named.items()
    tables = {first: columns.read(file)}
    tables |= {name: columns.read(file, tables[first].features) for name, (_, file) in others}
    names = _classes({each.name: each.y for each in tables.values()}, classify)
    if window is None:
        sources = {name: each.source(names) for name, each in tables.items()}
    else:
        asked = {"fold": fold, "stratify": stratify or None, "groups": groups, "split": split}
        for key, value in asked.items():
            if value is not None:
                raise ConfigError(f"{key}: got {shown(value)}, and splits of a time series are in its order")
        series = _Series(window, horizon, stride)
        sources = series.sources(tables, names, val_fraction, test_fraction)
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
    """The used columns of a file: features ``[N, F]``, targets ``[N]`` or ``[N, K]``, ids and words."""

    name: str
    features: Sequence[str]
    x: Array
    y: Array
    groups: list[Any] | None
    split: list[Any] | None
    key: Hashable

    def source(self, names: Sequence[str] | None) -> Source:
        """A sample for each row."""
        dataset = ArrayDataset(self.x, _numbers(self.y, names), names, self.features)
        return Source(self.name, dataset, self.groups, self.split, self.key)


@dataclass(frozen=True)
class _Columns:
    """Which columns of a file are what."""

    delimiter: str
    target: str | Sequence[str] | None
    drop: Sequence[str]
    groups: str | None
    split: str | None

    def read(self, file: str, features: Sequence[str] | None = None) -> _Table:
        """The table in a file.

        Args:
            file: its path.
            features: the columns that are features, in this order; None for all that are left.

        Raises:
            ConfigError: there is no such column, or one that is left holds text.
            DataError: the file is missing or damaged, or a field is missing.
        """
        if len(self.delimiter) != 1:
            raise ConfigError(f"delimiter: got {shown(self.delimiter)}, must be one character")
        path = files.absolute(file)
        files.require_file(path)
        found = _Rows(path, self.delimiter)
        targets = [self.target] if isinstance(self.target, str) else [*(self.target or ())]
        if not targets:
            raise ConfigError(f"target: must name a column of {path.name}: {', '.join(found.header)}")
        others = {"groups": self.groups, "split": self.split}
        named = [("target", name) for name in targets] + [("drop", name) for name in self.drop]
        for what, name in [*named, *((what, name) for what, name in others.items() if name is not None)]:
            if name not in found.header:
                raise ConfigError(f"{what}: {path.name} has no column {shown(name)}, {closest(name, found.header)}")
        left_out = {*targets, *self.drop, self.groups, self.split}
        if features is None:
            features = [name for name in found.header if name not in left_out]
        elif missing := [name for name in features if name not in found.header]:
            raise DataError(f"data: {path.name} has no column {shown(missing[0])}, and the training samples have")
        x = found.numbers(features)
        y = found.values(targets[0]) if len(targets) == 1 else found.numbers(targets, "target")
        ids = {what: None if name is None else found.values(name).tolist() for what, name in others.items()}
        words = (self.delimiter, tuple(targets), tuple(self.drop), self.groups, self.split)
        return _Table(path.name, features, x, y, ids["groups"], ids["split"], (files.signature(path), *words))


class _Rows:
    """The fields of a CSV file by column.

    Args:
        path: the file.
        delimiter: between the fields of a row.

    Raises:
        DataError: it is damaged, has no header, or rows differ in length.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path = path
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                self.header, *rows = [row for row in csv.reader(file, delimiter=delimiter, strict=True) if row]
        except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
            raise DataError(f"data: {path} cannot be read as CSV: {line(str(error))}") from error
        if all(_is_number(name) for name in self.header):
            raise DataError(f"data: the first row of {path.name} holds numbers, must be the names of its columns")
        if len({*self.header}) < len(self.header):
            raise DataError(f"data: {path.name} has two columns of the same name")
        for index, row in enumerate(rows):
            if len(row) != len(self.header):
                told = f"sample {index} of {path.name} has {len(row)} fields, and the header {len(self.header)}"
                raise DataError(f"data: {told}")
        if not rows:
            raise DataError(f"data: {path.name} has a header and no rows")
        self.columns = dict(zip(self.header, zip(*rows, strict=True), strict=True))

    def values(self, name: str) -> Array:
        """A column as numbers, or as text where a field is no number.

        Raises:
            DataError: a field is missing.
        """
        fields = self.columns[name]
        missing = [index for index, field in enumerate(fields) if field.strip().lower() in MISSING]
        if missing:
            some = f"{len(missing)} of {len(fields)} fields in column {shown(name)} of {self.path.name} are missing"
            raise DataError(f"data: {some}, the first in sample {missing[0]}; fill them, or use data.drop")
        try:
            return np.array(fields, dtype=np.float64)
        except ValueError:
            return np.array([field.strip() for field in fields])

    def numbers(self, names: Sequence[str], key: str = "drop") -> Array:
        """Columns of numbers, ``[N, F]``.

        Raises:
            ConfigError: there are none, or some hold text.
        """
        found = {name: self.values(name) for name in names}
        text = [name for name, each in found.items() if each.dtype.kind == "U"]
        if text:
            hint = f"; leave them out by 'data.drop=[{','.join(text)}]'" if key == "drop" else ""
            columns = ", ".join(map(shown, text))
            raise ConfigError(f"{key}: {self.path.name} has text in {columns}, must be numbers{hint}")
        if not found:
            raise ConfigError(
                f"drop: leaves no feature of {self.path.name}, whose columns are {', '.join(self.header)}"
            )
        return np.stack([*found.values()], 1)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _classes(targets: Mapping[str, Array], classify: bool | None) -> list[str] | None:
    """The names of the classes of all files; None where targets are values.

    Raises:
        ConfigError: that is not clear, or cannot be.
    """
    text = [name for name, each in targets.items() if each.dtype.kind == "U"]
    if text and (classify is False or len(text) < len(targets)):
        raise ConfigError(f"classify: got {shown(classify)}, and the target in {text[0]} is text")
    if text:
        return sorted({label for each in targets.values() for label in each.tolist()})
    numbers = np.concatenate([each.ravel() for each in targets.values()])
    finite = bool(np.isfinite(numbers).all())
    whole = finite and all(each.ndim == 1 for each in targets.values()) and bool((numbers == np.floor(numbers)).all())
    if classify and not whole:
        raise ConfigError("classify: got true, and the target is no single column of whole numbers or text")
    if not whole or classify is False:
        return None
    found = np.unique(numbers)
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
    """How windows are cut out of a time series; the fields are arguments of :func:`csv_data`."""

    window: int
    horizon: int
    stride: int

    def sources(
        self, tables: Mapping[str, _Table], names: Sequence[str] | None, val: float | None, test: float | None
    ) -> dict[str, Source]:
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
        count = len(whole.x)
        ends = [round(count * left) for left in (1 - sum(fractions.values()), 1 - fractions["test"], 1)]
        for (name, fraction), begin, end in zip(fractions.items(), ends, ends[1:], strict=False):
            if fraction and begin == end:
                raise ConfigError(f"{name}_fraction: got {fraction:g}, which is none of the {count} rows")
        if ends[0] < 1:
            name = "val" if fractions["val"] else "test"
            told = f"got {fractions[name]:g}, which leaves none of {count} rows to train on"
            raise ConfigError(f"{name}_fraction: {told}")
        found = {
            name: self._windows(whole, begin, end, names)
            for name, begin, end in zip(("train", "val", "test"), (0, *ends), ends, strict=False)
            if begin < end
        }
        others = {name: each for name, each in tables.items() if name != "train"}
        return found | {name: self._windows(each, 0, len(each.x), names) for name, each in others.items()}

    def _windows(self, table: _Table, begin: int, end: int, names: Sequence[str] | None) -> Source:
        # the last row that a window reads is that of its target
        behind = self.window - 1 + self.horizon
        starts = np.arange(begin, end - behind, self.stride)
        if not len(starts):
            need = f"a window of {self.window} and a horizon of {self.horizon} need {behind + 1}"
            raise DataError(f"data: {end - begin} rows of {table.name} make no sample, {need}")
        # a target in the last row of its own window would be told by the window
        with_target = names is None and self.horizon > 0
        rows = np.column_stack([table.x, table.y]) if with_target else table.x
        y = _numbers(table.y, names)[starts + behind]
        dataset = ArrayDataset(_Windows(rows, starts, self.window), y, names, table.features)
        return Source(table.name, dataset, key=(table.key, begin, end, self))
