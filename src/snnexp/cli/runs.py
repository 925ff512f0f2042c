"""A table of runs, for a person or for a program: ``snnexp runs``."""

import argparse
import csv
import io
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from snnexp.errors import CheckpointError, ConfigError
from snnexp.record.facts import ENDS, Facts
from snnexp.record.find import OUTPUTS, as_json, found, locate
from snnexp.record.measures import main_metric
from snnexp.record.run import Run
from snnexp.text import closest, line, shown

USAGE = "snnexp runs [DIR] [CONDITION ...] [--sort KEY] [--reverse] [--limit N] [--metric NAME] [--json | --csv]"
HELP = """\
A table of all runs below DIR (default: outputs), the newest last. DIR may be a sweep or a single run too.

A CONDITION is KEY=VALUE, KEY!=VALUE, KEY<VALUE, KEY<=VALUE, KEY>VALUE or KEY>=VALUE, in quotes because of the shell.
A KEY is a column, a measure, an entry of run.json or a key of config.yaml; a time is 90s, 5min, 2h or 1d:

  snnexp runs status=failed
  snnexp runs outputs 'test/accuracy>0.95' experiment=mnist_leaky neuron.beta=0.8 'age<2h'
  snnexp runs outputs/sweeps/mnist_leaky/20261122-002755-5193 --sort test/accuracy --limit 5"""
CONDITION = re.compile(r"([^=!<>]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
TIME = re.compile(r"([\d.]+) ?(s|min|h|d)")
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MISSING = object()
"""The value of a key that a run does not have."""
STYLES = {
    "running": "cyan",
    "interrupted": "yellow",
    **dict.fromkeys(("failed", "diverged", "killed", "damaged"), "red"),
}
STATUSES = ("running", "killed", "damaged", *ENDS)
RIGHT = ("age", "duration")
WIDE, WHOLE = 120, 100_000
"""Cells from which on a terminal shows whole paths, and of a line that nothing crops."""


class Row:
    """A run, and what stands in its line.

    Args:
        facts: what is known of it.
        now: seconds since the epoch.
        metric: the key that is shown as its main measure, by default the one that stands for such a run.
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
            print(f"snnexp: {line(str(error))}", file=sys.stderr)
            return {}

    def value(self, key: str) -> Any:
        """The column, measure or entry of run.json of this name, or the key of config.yaml that was looked up before.

        A measure of the test split goes without its ``test/`` too, as the table shows it.
        """
        if key in COLUMNS:
            value = COLUMNS[key](self)
            return MISSING if value is None else value
        for name in (key, f"test/{key}"):
            if name in self.facts.metrics:
                return self.facts.metrics[name]
        return self.configured[key] if key in self.configured else _entry(self.facts.record, key)

    def look_up(self, key: str) -> None:
        """Read a key of config.yaml, which takes longer than all else that is known."""
        self.configured[key] = _entry(self.config, key)

    def other_keys(self) -> Iterator[str]:
        """All keys that :meth:`value` knows beside the columns."""
        yield from self.facts.metrics
        yield from _keys(self.facts.record)
        yield from _keys(self.config)

    @property
    def overridden(self) -> list[str]:
        """What was typed beside the experiment that the run is named after, and when it was resumed."""
        known = f"experiment={self.facts.experiment}"
        return [line(override) for override in self.facts.typed if override != known]

    @property
    def note(self) -> str:
        """Why a run did not finish, or how far it is; other reasons say that themselves."""
        at = self.facts.reached if self.facts.status in ("running", "killed") else ""
        return ", ".join(filter(None, (line(self.facts.reason), at)))


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


def _keys(node: Mapping[Any, Any], before: str = "") -> Iterator[str]:
    for key, value in node.items():
        # run.json may be anybody's, and nested as deep as they like
        if isinstance(value, dict) and before.count(".") < 32:
            yield from _keys(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def main(arguments: Sequence[str]) -> int:
    """Carry out ``snnexp runs``.

    Raises:
        ConfigError: what was typed cannot be understood, or DIR is no folder.
    """
    asked = _asked(arguments)
    folder, conditions = _split(asked.words)
    now = time.time()
    # what they are sorted by is what one wants to see
    metric = asked.metric or (asked.sort if "/" in (asked.sort or "") else None)
    rows = [Row(facts, now, metric) for facts in found(folder)]
    for key in [key for key, _, _ in conditions] + [key for key in (asked.sort, asked.metric) if key]:
        _look_up(rows, key)
    chosen = [row for row in rows if all(holds(row.value(key), how, than, key) for key, how, than in conditions)]
    if asked.sort:
        chosen = ordered(chosen, asked.sort, asked.reverse)
    elif asked.reverse:
        chosen.reverse()
    chosen = chosen[max(0, len(chosen) - asked.limit) :] if asked.limit is not None else chosen
    if asked.json:
        text = json.dumps([as_json(row.facts) for row in chosen], indent=2)
    elif asked.csv:
        text = as_csv([row.facts for row in chosen])
    elif not chosen:
        text = f"none of {len(rows)} runs below {folder} matches" if rows else f"there are no runs below {folder}"
        text += "".join(_meant(rows, *condition) for condition in conditions)
    else:
        watched = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if watched else None
        text = table(chosen, width, (sys.stdout.encoding or "").lower().startswith("utf"), rows)
    # a terminal or file that takes ASCII alone gets the rest escaped
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()
    return 0


def _asked(arguments: Sequence[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"runs: {message}; see snnexp runs --help")

    parser = Parser(
        prog="snnexp runs", usage=USAGE, description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--sort", metavar="KEY", help="smallest first; runs without this key come before the others")
    parser.add_argument("--reverse", action="store_true", help="largest first, or the newest")
    parser.add_argument("--limit", metavar="N", type=int, help="only the last N lines")
    parser.add_argument("--metric", metavar="NAME", help="show this measure, instead of accuracy, L1 error or loss")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="everything known, for programs")
    style.add_argument("--csv", action="store_true", help="the same, one line per run")
    asked = parser.parse_intermixed_args(arguments)
    if asked.metric == "metric":
        asked.metric = None
    if asked.limit is not None and asked.limit < 1:
        parser.error(f"--limit: got {asked.limit}, must be at least 1")
    return asked


def _split(words: Sequence[str]) -> tuple[Path, list[tuple[str, str, str]]]:
    """The folder, and the conditions as key, operator and value."""
    folder = Path(OUTPUTS)
    if words and (Path(words[0]).is_dir() or not CONDITION.fullmatch(words[0])):
        folder, words = locate(words[0]), words[1:]
    conditions = []
    for word in words:
        match = CONDITION.fullmatch(word)
        if match is None:
            raise ConfigError(f"{word}: no condition, one reads KEY=VALUE, KEY!=VALUE, 'KEY>VALUE' or 'KEY<VALUE'")
        if match[1] == "status" and match[2] in ("=", "!=") and match[3] not in STATUSES:
            raise ConfigError(f"status: got {shown(match[3])}, {closest(match[3], STATUSES)}")
        conditions.append((match[1], match[2], match[3]))
    return folder, conditions


def _meant(rows: Sequence[Row], key: str, operator: str, text: str) -> str:
    """A hint for a value that no run has, where it looks like one that runs have."""
    values = {str(value) for row in rows if (value := row.value(key)) is not MISSING}
    hint = closest(text, values)
    return f"; {key}={line(text)}: {hint}" if operator == "=" and text not in values and "did you" in hint else ""


def _look_up(rows: Sequence[Row], key: str) -> None:
    """Look into the configs for a key that is no column, and that no run has as a measure or in its run.json."""

    def unknown() -> bool:
        return key not in COLUMNS and all(row.value(key) is MISSING for row in rows)

    if unknown():
        for row in rows:
            row.look_up(key)
    if rows and unknown():
        known = {*COLUMNS, *(other for row in rows for other in row.other_keys())}
        raise ConfigError(f"{key}: no run has such a column, measure or key, {closest(key, known)}")


def holds(value: Any, operator: str, text: str, key: str) -> bool:
    """Whether a condition is true of the value that a run has for ``key``; what it does not have is unlike all.

    Raises:
        ConfigError: a number is compared with what is none.
    """
    if operator in ("=", "!="):
        return _same(value, text) == (operator == "=")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        other = _number(text)
        if other is None:
            raise ConfigError(f"{key}: got {shown(text)}, must be a number")
        return _compare(value, operator, other)
    return isinstance(value, str) and _compare(value, operator, text)


def _same(value: Any, text: str) -> bool:
    if isinstance(value, bool):
        return text == str(value).lower()
    if isinstance(value, (int, float)):
        return value == _number(text)
    # a list as a person types it, [256,128]
    return str(value).replace(" ", "") == text.replace(" ", "")


def _compare(value: Any, operator: str, other: Any) -> bool:
    return bool({"<": value < other, "<=": value <= other, ">": value > other, ">=": value >= other}[operator])


def _number(text: str) -> float | None:
    """A number, or a time in seconds."""
    match = TIME.fullmatch(text)
    try:
        return float(match[1]) * UNITS[match[2]] if match else float(text)
    except ValueError:
        return None


def ordered(rows: Sequence[Row], key: str, reverse: bool = False) -> list[Row]:
    """Rows by the value of a key, numbers before texts; those that have none come first in either direction."""

    def rank(row: Row) -> tuple[bool, float, str]:
        value = row.value(key)
        number = isinstance(value, (int, float))
        return not number, value if number else 0.0, "" if number else str(value)

    without = [row for row in rows if row.value(key) is MISSING]
    return without + sorted((row for row in rows if row.value(key) is not MISSING), key=rank, reverse=reverse)


def as_csv(runs: Sequence[Facts]) -> str:
    """The same with a column per measure; texts are escaped so that each run is one line."""
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
        writer.writerow({name: line(value) if isinstance(value, str) else value for name, value in flat.items()})
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
    told, paths = [row.overridden for row in rows], [line(str(row.facts.path)) for row in rows]
    if width is not None:
        # what many have in common comes last, to be cropped first
        times = Counter(override for overridden in told for override in overridden)
        told = [sorted(overridden, key=times.__getitem__) for overridden in told]
    ids = {row.facts.id for row in known or rows}
    # a command takes the end of an id, if no other one ends so: its digits, these and the time, or the date too
    letters = next((count for count in (4, 11) if len({name[-count:] for name in ids}) == len(ids)), 20)
    ends = [line(row.facts.id[-letters:]) for row in rows]
    where = ("path", paths) if width is None or width >= WIDE else ("id", ends)
    columns = {
        "status": [row.facts.status for row in rows],
        "age": [_time(row.value("age")) for row in rows],
        "experiment": [line(row.facts.experiment) for row in rows],
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
    text = f"{value:.4g}" if number else shown(value)
    return text if alone else f"{_short(row.metric or '')} {text}"


def _short(metric: str) -> str:
    return line(metric).removeprefix("test/")


def _time(seconds: Any) -> str:
    """Seconds in the unit that a person would choose, with two digits or three."""
    if seconds is MISSING:
        return ""
    # from two minutes on in minutes, from two hours on in hours, from two days on in days
    unit = next((unit for unit in ("d", "h", "min") if abs(seconds) >= 2 * UNITS[unit]), "s")
    return f"{seconds / UNITS[unit]:.0f} {unit}"
