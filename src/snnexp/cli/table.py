"""Runs as a table for a person, or as CSV."""

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
WIDE, WHOLE = 120, 100_000
"""Cells from which on a terminal shows whole paths, and of a line that nothing crops."""


def as_csv(runs: Sequence[Facts]) -> str:
    """Runs as CSV, with a column per measure; texts are escaped so that each run is one line."""
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
    """A table for a person, one line per run; at least one.

    Without a width nothing is cropped, and what is to be said of a run that did not finish is the last column. In a
    terminal that stands below the table, and overrides take what room there is.

    Args:
        rows: in their order.
        width: cells of a line in a terminal.
        unicode: whether it can show more than ASCII.
        known: runs from which the end of an id that is shown tells its run apart; None for ``rows``.
    """
    metrics = {row.metric for row in rows if row.metric}
    alone = len(metrics) == 1
    told, paths = [row.overridden for row in rows], [one_line(str(row.facts.path)) for row in rows]
    if width is not None:
        # what many have in common comes last, to be cropped first
        times = Counter(override for overridden in told for override in overridden)
        told = [sorted(overridden, key=times.__getitem__) for overridden in told]
    ids = {row.facts.id for row in known or rows}
    # a command takes the end of an id, if no other one ends so: its digits, these and the time, or the date too
    letters = next((count for count in (4, 11) if len({name[-count:] for name in ids}) == len(ids)), 20)
    ends = [one_line(row.facts.id[-letters:]) for row in rows]
    where = ("path", paths) if width is None or width >= WIDE else ("id", ends)
    columns = {
        "status": [row.facts.status for row in rows],
        "age": [_time(row.value("age")) for row in rows],
        "experiment": [one_line(row.facts.experiment) for row in rows],
        _short(*metrics) if alone else "metric": [_measure(row, alone) for row in rows],
        "duration": [_time(row.value("duration")) for row in rows],
        where[0]: where[1],
        "overrides": [" ".join(overridden) for overridden in told],
        "note": [row.note if width is None else "" for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    needed = {name: max(map(cell_len, [name, *cells])) for name, cells in columns.items()}
    if width is not None:
        needed = _fitting(needed, width)
    drawn = Table(box=None, pad_edge=False)
    for name, room in needed.items():
        justify: JustifyMethod = "right" if name in RIGHT else "left"
        drawn.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis" if unicode else "crop", width=room)
    for row, cells in zip(rows, zip(*(columns[name] for name in needed), strict=True), strict=True):
        status, *others = map(Text, cells)
        status.stylize(STYLES.get(row.facts.status, ""))
        drawn.add_row(status, *others)
    watched = width is not None
    text = io.StringIO()
    console = Console(file=text, force_terminal=watched, width=width or WHOLE, highlight=False, legacy_windows=False)
    console.print(drawn)
    for row, end in zip(rows, ends, strict=True):
        if watched and row.note:
            console.print(Text(f"{end} {row.facts.status}: {row.note}", style="dim"))
    return "\n".join(shown.rstrip() for shown in text.getvalue().splitlines())


def _fitting(needed: Mapping[str, int], width: int) -> dict[str, int]:
    """The cells of each column in a line: overrides take what is left, and the duration is left out first."""
    fitting = dict(needed)
    if "overrides" in fitting:
        fitting["overrides"] = min(needed["overrides"], len("overrides"))

    def room(name: str) -> int:
        return width - sum(fitting.values()) + fitting[name] - 2 * (len(fitting) - 1)

    if "duration" in fitting and room("duration") < fitting["duration"]:
        del fitting["duration"]
    # recipes are told apart by the ends of their names
    for name in ("experiment", "overrides"):
        if name in fitting:
            fitting[name] = min(needed[name], max(len(name), room(name)))
    return fitting


def _measure(row: Row, alone: bool) -> str:
    value = MISSING if row.metric is None else row.value(row.metric)
    if value is MISSING:
        return ""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = f"{value:.4g}" if number else format_value(value)
    return text if alone else f"{_short(row.metric or '')} {text}"


def _short(metric: str) -> str:
    return one_line(metric).removeprefix("test/")


def _time(seconds: Any) -> str:
    """Seconds in the unit that a person would choose, with two digits or three."""
    if seconds is MISSING:
        return ""
    # from two minutes on in minutes, from two hours on in hours, from two days on in days
    unit = next((unit for unit in ("d", "h", "min") if abs(seconds) >= 2 * UNITS[unit]), "s")
    return f"{seconds / UNITS[unit]:.0f} {unit}"
