"""Format runs as a text table or as CSV."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from snnexp.cli.rows import MISSING, UNITS, Row
from snnexp.record.facts import Facts
from snnexp.record.find import as_json
from snnexp.text import format_value, one_line

STYLES = {
    "running": "cyan",
    "interrupted": "yellow",
    **dict.fromkeys(("failed", "diverged", "killed", "damaged"), "red"),
}
RIGHT = ("age", "duration")
MIN_PATH_WIDTH, UNLIMITED_WIDTH = 120, 100_000
"""Terminal width from which paths are shown, and width of an uncropped line, in character cells."""


def as_csv(runs: Sequence[Facts]) -> str:
    """Format runs as CSV with a column per metric; line breaks are escaped, so that each run is one line."""
    names = {name: None for facts in runs for name in facts.metrics}
    text = io.StringIO()
    columns = ("path", "id", "status", "started", "duration_s", "experiment", "seed", "overrides")
    writer = csv.DictWriter(
        text, [*columns, *names, "exit_code", "reason", "step", "epoch"], restval="", lineterminator="\n"
    )
    writer.writeheader()
    for facts in runs:
        flat = as_json(facts) | {"overrides": " ".join(facts.overrides)}
        flat |= flat.pop("metrics") | (flat.pop("progress") or {})
        writer.writerow({name: one_line(value) if isinstance(value, str) else value for name, value in flat.items()})
    return text.getvalue().removesuffix("\n")


def table(
    rows: Sequence[Row], width: int | None = None, unicode: bool = True, known: Sequence[Row] | None = None
) -> str:
    """Format runs as a table, one line per run.

    Without a width nothing is cropped and notes are the last column. With a width, notes are listed below the table
    and the overrides take the remaining width.

    Args:
        rows: rows in display order; at least one.
        width: width of the terminal in character cells; None if stdout is not a terminal.
        unicode: whether the terminal supports Unicode.
        known: runs among which the shown suffix of an id must be unique; None for ``rows``.
    """
    metrics = {row.metric for row in rows if row.metric}
    same_metric = len(metrics) == 1
    overrides, paths = [row.overridden for row in rows], [one_line(str(row.facts.path)) for row in rows]
    if width is not None:
        # overrides that many runs share come last, to be cropped first
        counts = Counter(override for own in overrides for override in own)
        overrides = [sorted(own, key=counts.__getitem__) for own in overrides]
    ids = {row.facts.id for row in known or rows}
    # the shortest unique suffix: the random digits, with the time, or the whole id
    length = next((count for count in (4, 11) if len({name[-count:] for name in ids}) == len(ids)), 20)
    suffixes = [one_line(row.facts.id[-length:]) for row in rows]
    where = ("path", paths) if width is None or width >= MIN_PATH_WIDTH else ("id", suffixes)
    columns = {
        "status": [row.facts.status for row in rows],
        "age": [_time(row.value("age")) for row in rows],
        "experiment": [one_line(row.facts.experiment) for row in rows],
        _short(*metrics) if same_metric else "metric": [_metric(row, same_metric) for row in rows],
        "duration": [_time(row.value("duration")) for row in rows],
        where[0]: where[1],
        "overrides": [" ".join(own) for own in overrides],
        "note": [row.note if width is None else "" for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    needed = {name: max(map(cell_len, [name, *cells])) for name, cells in columns.items()}
    if width is not None:
        needed = _fit(needed, width)
    drawn = Table(box=None, pad_edge=False)
    for name, room in needed.items():
        justify: JustifyMethod = "right" if name in RIGHT else "left"
        drawn.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis" if unicode else "crop", width=room)
    for row, cells in zip(rows, zip(*(columns[name] for name in needed), strict=True), strict=True):
        status, *others = map(Text, cells)
        status.stylize(STYLES.get(row.facts.status, ""))
        drawn.add_row(status, *others)
    in_terminal = width is not None
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=in_terminal, width=width or UNLIMITED_WIDTH, highlight=False, legacy_windows=False
    )
    console.print(drawn)
    for row, suffix in zip(rows, suffixes, strict=True):
        if in_terminal and row.note:
            console.print(Text(f"{suffix} {row.facts.status}: {row.note}", style="dim"))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _fit(needed: Mapping[str, int], width: int) -> dict[str, int]:
    """Return the width of each column: overrides take the rest, and the duration is dropped first."""
    widths = dict(needed)
    if "overrides" in widths:
        widths["overrides"] = min(needed["overrides"], len("overrides"))

    def available(name: str) -> int:
        return width - sum(widths.values()) + widths[name] - 2 * (len(widths) - 1)

    if "duration" in widths and available("duration") < widths["duration"]:
        del widths["duration"]
    # names of recipes often differ only at their ends
    for name in ("experiment", "overrides"):
        if name in widths:
            widths[name] = min(needed[name], max(len(name), available(name)))
    return widths


def _metric(row: Row, same_metric: bool) -> str:
    value = MISSING if row.metric is None else row.value(row.metric)
    if value is MISSING:
        return ""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = f"{value:.4g}" if number else format_value(value)
    return text if same_metric else f"{_short(row.metric or '')} {text}"


def _short(metric: str) -> str:
    return one_line(metric).removeprefix("test/")


def _time(seconds: Any) -> str:
    """Format seconds in a suitable unit, with two or three digits."""
    if seconds is MISSING:
        return ""
    # the largest unit of which there are at least two
    unit = next((unit for unit in ("d", "h", "min") if abs(seconds) >= 2 * UNITS[unit]), "s")
    return f"{seconds / UNITS[unit]:.0f} {unit}"
