"""Values of runs by key, and conditions on them."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from snnexp.errors import CheckpointError, ConfigError
from snnexp.record.facts import Facts
from snnexp.record.measures import main_metric
from snnexp.record.run import Run
from snnexp.text import format_value, one_line

TIME = re.compile(r"([\d.]+) ?(s|min|h|d)")
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MISSING = object()
"""The value of a key that a run does not have."""


class Row:
    """A run as a row of the table.

    Args:
        facts: the facts of the run.
        now: current time in seconds since the epoch.
        metric: key of the value in the metric column; by default the run's main metric.
    """

    def __init__(self, facts: Facts, now: float, metric: str | None = None) -> None:
        self.facts, self.now = facts, now
        self.metric = metric or main_metric(facts.metrics)
        self.configured: dict[str, Any] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        try:
            return Run(self.facts.path).config()
        except (CheckpointError, OSError) as error:
            print(f"snnexp: {one_line(str(error))}", file=sys.stderr)
            return {}

    def value(self, key: str) -> Any:
        """Return the column, metric, entry of run.json, or key of config.yaml read by :meth:`look_up`.

        A metric of the test split may be given without ``test/``. MISSING if the run has no such value.
        """
        if key in COLUMNS:
            value = COLUMNS[key](self)
            return MISSING if value is None else value
        for name in (key, f"test/{key}"):
            if name in self.facts.metrics:
                return self.facts.metrics[name]
        return self.configured[key] if key in self.configured else _entry(self.facts.record, key)

    def look_up(self, key: str) -> None:
        """Read a key of config.yaml, which is slow compared with the other values."""
        self.configured[key] = _entry(self.config, key)

    def other_keys(self) -> Iterator[str]:
        """Yield all keys with a value, apart from the columns."""
        yield from self.facts.metrics
        yield from _keys(self.facts.record)
        yield from _keys(self.config)

    @property
    def overridden(self) -> list[str]:
        """The overrides of the run and of its resumes, without its experiment."""
        known = f"experiment={self.facts.experiment}"
        return [one_line(override) for override in self.facts.effective_overrides if override != known]

    @property
    def note(self) -> str:
        """Why the run failed or stopped early, and the position of a running or killed one."""
        position = self.facts.last_position if self.facts.status in ("running", "killed") else ""
        return ", ".join(filter(None, (one_line(self.facts.reason), position, self.facts.stopped_early)))


COLUMNS: dict[str, Callable[[Row], Any]] = {
    "status": lambda row: row.facts.status,
    "age": lambda row: row.facts.started and row.now - row.facts.started.timestamp(),
    "started": lambda row: row.facts.started and row.facts.started.isoformat(),
    "experiment": lambda row: row.facts.experiment,
    "metric": lambda row: row.metric and row.value(row.metric),
    "duration": lambda row: row.facts.duration_s,
    "duration_s": lambda row: row.facts.duration_s,
    "path": lambda row: str(row.facts.path),
    "id": lambda row: row.facts.id,
    "seed": lambda row: row.facts.seed,
    "overrides": lambda row: " ".join(row.overridden),
    "exit_code": lambda row: row.facts.exit_code,
    "reason": lambda row: row.facts.reason,
    "note": lambda row: row.note,
    "step": lambda row: row.facts.progress and row.facts.progress["step"],
    "epoch": lambda row: row.facts.progress and row.facts.progress["epoch"],
}


def _entry(node: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return MISSING
        node = node[part]
    return MISSING if node is None else node


def _keys(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        # run.json is not trusted and may be nested deeply
        if isinstance(value, dict) and prefix.count(".") < 32:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def matches(value: Any, operator: str, text: str, key: str) -> bool:
    """Return True if ``value OPERATOR text`` holds; a missing value differs from every text.

    Raises:
        ConfigError: the value of ``key`` is a number and ``text`` is not.
    """
    if operator in ("=", "!="):
        return _same(value, text) == (operator == "=")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        other = _number(text)
        if other is None:
            raise ConfigError(f"{key}: got {format_value(text)}, must be a number")
        return _compare(value, operator, other)
    return isinstance(value, str) and _compare(value, operator, text)


def _same(value: Any, text: str) -> bool:
    if isinstance(value, bool):
        return text == str(value).lower()
    if isinstance(value, (int, float)):
        return value == _number(text)
    # a list may be written without spaces, [256,128]
    return str(value).replace(" ", "") == text.replace(" ", "")


def _compare(value: Any, operator: str, other: Any) -> bool:
    return bool({"<": value < other, "<=": value <= other, ">": value > other, ">=": value >= other}[operator])


def _number(text: str) -> float | None:
    """Parse a number, or a duration such as ``2h`` as seconds."""
    match = TIME.fullmatch(text)
    try:
        return float(match[1]) * UNITS[match[2]] if match else float(text)
    except ValueError:
        return None


def sort_rows(rows: Sequence[Row], key: str, reverse: bool = False) -> list[Row]:
    """Sort rows by the value of a key: rows without the key first in either direction, numbers before text."""

    def rank(row: Row) -> tuple[bool, float, str]:
        value = row.value(key)
        number = isinstance(value, (int, float))
        return not number, value if number else 0.0, "" if number else str(value)

    without = [row for row in rows if row.value(key) is MISSING]
    return without + sorted((row for row in rows if row.value(key) is not MISSING), key=rank, reverse=reverse)
