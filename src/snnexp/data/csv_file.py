"""CSV files by column."""

import csv
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.errors import ConfigError, DataError
from snnexp.text import format_value, one_line, suggest

Array = np.ndarray[Any, Any]
MISSING = ("", "na", "n/a", "nan", "null", "none")


class CSVFile:
    """A CSV file with a header, by column.

    Args:
        path: the file.
        delimiter: separator of the fields.

    Raises:
        DataError: the file is damaged, has no header, or rows differ in length.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path, self.delimiter = path, delimiter
        self.matrix: Array | None = None
        """``[N, columns]``, if all fields are numbers."""
        self.text: Mapping[str, Sequence[str]] = {}
        """Otherwise the fields by column."""
        try:
            self._read()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"data: {path} cannot be read as CSV: {one_line(str(error))}") from error

    def _read(self) -> None:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            self.header = [name.strip() for name in next(filter(None, reader), [])]
            self._require_header()
            with warnings.catch_warnings(), suppress(ValueError):
                # np.loadtxt warns if there are no rows
                warnings.simplefilter("ignore")
                matrix = np.loadtxt(file, delimiter=self.delimiter, comments=None, quotechar='"', ndmin=2)
                if matrix.shape[1] == len(self.header):
                    self.matrix = matrix
                    return
        # slower, but reads text and finds errors
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            _, *rows = filter(None, csv.reader(file, delimiter=self.delimiter, strict=True))
        for index, row in enumerate(rows):
            if len(row) != len(self.header):
                reason = f"sample {index} of {self.path.name} has {len(row)} fields, the header has {len(self.header)}"
                raise DataError(f"data: {reason}")
        if not rows:
            raise DataError(f"data: {self.path.name} has a header but no rows")
        self.text = dict(zip(self.header, zip(*rows, strict=True), strict=True))

    def _require_header(self) -> None:
        if not self.header:
            raise DataError(f"data: {self.path.name} has no header with the names of its columns")
        if all(map(_is_number, self.header)):
            raise DataError(f"data: the first row of {self.path.name} has numbers, must be the names of its columns")
        if len({*self.header}) < len(self.header):
            raise DataError(f"data: {self.path.name} has two columns of the same name")

    def require(self, key: str, name: str) -> None:
        """Raise an error if there is no column ``name``.

        Raises:
            ConfigError: there is no such column.
        """
        if name in self.header:
            return
        hint = suggest(name, self.header)
        other = next((each for each in ",;\t|" if len(self.header) == 1 and each in self.header[0]), None)
        if other is not None:
            hint = f"its fields are not separated by {format_value(self.delimiter)}; use 'data.delimiter=\"{other}\"'"
        raise ConfigError(f"{key}: {self.path.name} has no column {format_value(name)}, {hint}")

    def values(self, name: str) -> Array:
        """Return a column as numbers, or as strings if any field is not a number.

        Raises:
            DataError: a field is missing.
        """
        if self.matrix is not None:
            column: Array = self.matrix[:, self.header.index(name)]
            missing = np.flatnonzero(np.isnan(column)).tolist()
        else:
            fields = [field.strip() for field in self.text[name]]
            missing = [index for index, field in enumerate(fields) if field.lower() in MISSING]
            # float("1_0") is 10.0
            is_text = any("_" in field or not _is_number(field) for field in fields)
            column = np.array(fields) if is_text or missing else np.array(fields, dtype=np.float64)
        if missing:
            some = (
                f"{len(missing)} of {len(column)} fields in column {format_value(name)} of {self.path.name} are missing"
            )
            raise DataError(f"data: {some}, the first in sample {missing[0]}; fill them, or use data.drop")
        return column

    def numbers(self, names: Sequence[str], key: str = "drop") -> Array:
        """Return columns of numbers, ``[N, F]``.

        Raises:
            ConfigError: there are no columns, or some contain text.
        """
        columns = {name: self.values(name) for name in names}
        text = [name for name, each in columns.items() if each.dtype.kind == "U"]
        if text:
            hint = f"; exclude them with 'data.drop=[{','.join(text)}]'" if key == "drop" else ""
            names_of_text = ", ".join(map(format_value, text))
            raise ConfigError(f"{key}: {self.path.name} has text in {names_of_text}, must be numbers{hint}")
        if not columns:
            raise ConfigError(f"drop: leaves no feature of {self.path.name}, which has {', '.join(self.header)}")
        return np.stack([*columns.values()], 1)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
