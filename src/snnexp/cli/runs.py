"""``snnexp runs``: list runs as a table, JSON or CSV, or delete them."""

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from snnexp.cli.deletion import delete
from snnexp.cli.rows import COLUMNS, MISSING, Row, matches, sort_rows
from snnexp.cli.table import as_csv, table
from snnexp.errors import ConfigError
from snnexp.record.facts import END_STATUSES
from snnexp.record.find import OUTPUTS, as_json, list_runs, locate
from snnexp.text import format_value, one_line, suggest

USAGE = (
    "snnexp runs [DIR] [CONDITION ...] [--sort KEY] [--reverse] [--limit N] [--metric NAME] "
    "[--json | --csv | --delete [--yes]]"
)
HELP = """\
List all runs below DIR (default: outputs), newest last. DIR may also be a sweep or a single run.

A CONDITION is KEY=VALUE, KEY!=VALUE, KEY<VALUE, KEY<=VALUE, KEY>VALUE or KEY>=VALUE; quote < and > for the shell.
A KEY is a column, a metric, an entry of run.json or a key of config.yaml; a duration is 90s, 5min, 2h or 1d:

  snnexp runs status=failed
  snnexp runs outputs 'test/accuracy>0.95' experiment=mnist_leaky neuron.beta=0.8 'age<2h'
  snnexp runs outputs/sweeps/mnist_leaky/20261122-002755-5193 --sort test/accuracy --limit 5
  snnexp runs status=failed 'age>7d' --delete"""
CONDITION = re.compile(r"([^=!<>]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
STATUSES = ("running", "killed", "damaged", *END_STATUSES)


def main(arguments: Sequence[str]) -> int:
    """Run ``snnexp runs ARGUMENTS``; return the exit code.

    Raises:
        ConfigError: the arguments are invalid, or DIR is not a folder.
    """
    args = _parse(arguments)
    folder, conditions = _split(args.words)
    now = time.time()
    # show the metric that the rows are sorted by
    metric = args.metric or (args.sort if "/" in (args.sort or "") else None)
    rows = [Row(facts, now, metric) for facts in list_runs(folder)]
    for key in [key for key, _, _ in conditions] + [key for key in (args.sort, args.metric) if key]:
        _look_up(rows, key)
    chosen = [row for row in rows if all(matches(row.value(key), op, text, key) for key, op, text in conditions)]
    if args.sort:
        chosen = sort_rows(chosen, args.sort, args.reverse)
    elif args.reverse:
        chosen.reverse()
    chosen = chosen[max(0, len(chosen) - args.limit) :] if args.limit is not None else chosen
    if args.json:
        text = json.dumps([as_json(row.facts) for row in chosen], indent=2)
    elif args.csv:
        text = as_csv([row.facts for row in chosen])
    elif not chosen:
        text = f"none of {len(rows)} runs below {folder} matches" if rows else f"there are no runs below {folder}"
        text += "".join(_hint(rows, *condition) for condition in conditions)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text = table(chosen, width, (sys.stdout.encoding or "").lower().startswith("utf"), rows)
        text = delete([row.facts.path for row in chosen], text, args.yes) if args.delete else text
    # escape what the encoding of stdout lacks
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"runs: {message}; see snnexp runs --help")

    parser = Parser(
        prog="snnexp runs", usage=USAGE, description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--sort", metavar="KEY", help="sort by KEY, ascending; runs without it come first")
    parser.add_argument("--reverse", action="store_true", help="sort descending, or newest first")
    parser.add_argument("--limit", metavar="N", type=int, help="show only the last N rows")
    parser.add_argument("--metric", metavar="NAME", help="show this metric instead of accuracy, L1 error or loss")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="print all fields as JSON")
    style.add_argument("--csv", action="store_true", help="print all fields as CSV, one row per run")
    style.add_argument("--delete", action="store_true", help="delete the listed runs, after a confirmation")
    parser.add_argument("--yes", action="store_true", help="delete without confirmation")
    args = parser.parse_intermixed_args(arguments)
    if args.yes and not args.delete:
        parser.error("--yes: needs --delete")
    if args.metric == "metric":
        args.metric = None
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit: got {args.limit}, must be at least 1")
    return args


def _split(words: Sequence[str]) -> tuple[Path, list[tuple[str, str, str]]]:
    """Return the folder, and the conditions as key, operator and value."""
    folder = Path(OUTPUTS)
    if words and (Path(words[0]).is_dir() or not CONDITION.fullmatch(words[0])):
        folder, words = locate(words[0]), words[1:]
    conditions = []
    for word in words:
        match = CONDITION.fullmatch(word)
        if match is None:
            raise ConfigError(f"{word}: not a condition; use KEY=VALUE, KEY!=VALUE, 'KEY>VALUE' or 'KEY<VALUE'")
        if match[1] == "status" and match[2] in ("=", "!=") and match[3] not in STATUSES:
            raise ConfigError(f"status: got {format_value(match[3])}, {suggest(match[3], STATUSES)}")
        conditions.append((match[1], match[2], match[3]))
    return folder, conditions


def _hint(rows: Sequence[Row], key: str, operator: str, text: str) -> str:
    """Return a hint for a value that no run has but that is close to an existing one."""
    values = {str(value) for row in rows if (value := row.value(key)) is not MISSING}
    hint = suggest(text, values)
    return f"; {key}={one_line(text)}: {hint}" if operator == "=" and text not in values and "did you" in hint else ""


def _look_up(rows: Sequence[Row], key: str) -> None:
    """Read the key from the configs, unless it is a column, a metric or in run.json.

    Raises:
        ConfigError: no run has the key.
    """

    def unknown() -> bool:
        return key not in COLUMNS and all(row.value(key) is MISSING for row in rows)

    if unknown():
        for row in rows:
            row.look_up(key)
    if rows and unknown():
        known = {*COLUMNS, *(other for row in rows for other in row.other_keys())}
        raise ConfigError(f"{key}: no run has such a column, metric or key, {suggest(key, known)}")
