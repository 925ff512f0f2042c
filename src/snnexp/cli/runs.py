"""A table of runs, for a person or for a program: ``snnexp runs``."""

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
A table of all runs below DIR (default: outputs), the newest last. DIR may be a sweep or a single run too.

A CONDITION is KEY=VALUE, KEY!=VALUE, KEY<VALUE, KEY<=VALUE, KEY>VALUE or KEY>=VALUE, in quotes because of the shell.
A KEY is a column, a measure, an entry of run.json or a key of config.yaml; a time is 90s, 5min, 2h or 1d:

  snnexp runs status=failed
  snnexp runs outputs 'test/accuracy>0.95' experiment=mnist_leaky neuron.beta=0.8 'age<2h'
  snnexp runs outputs/sweeps/mnist_leaky/20261122-002755-5193 --sort test/accuracy --limit 5
  snnexp runs status=failed 'age>7d' --delete"""
CONDITION = re.compile(r"([^=!<>]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
STATUSES = ("running", "killed", "damaged", *END_STATUSES)


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
    rows = [Row(facts, now, metric) for facts in list_runs(folder)]
    for key in [key for key, _, _ in conditions] + [key for key in (asked.sort, asked.metric) if key]:
        _look_up(rows, key)
    chosen = [row for row in rows if all(matches(row.value(key), how, than, key) for key, how, than in conditions)]
    if asked.sort:
        chosen = sort_rows(chosen, asked.sort, asked.reverse)
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
        text = delete([row.facts.path for row in chosen], text, asked.yes) if asked.delete else text
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
    style.add_argument("--delete", action="store_true", help="delete the runs of the table, after a question")
    parser.add_argument("--yes", action="store_true", help="delete without a question")
    asked = parser.parse_intermixed_args(arguments)
    if asked.yes and not asked.delete:
        parser.error("--yes: needs --delete")
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
            raise ConfigError(f"status: got {format_value(match[3])}, {suggest(match[3], STATUSES)}")
        conditions.append((match[1], match[2], match[3]))
    return folder, conditions


def _meant(rows: Sequence[Row], key: str, operator: str, text: str) -> str:
    """A hint for a value that no run has, where it looks like one that runs have."""
    values = {str(value) for row in rows if (value := row.value(key)) is not MISSING}
    hint = suggest(text, values)
    return f"; {key}={one_line(text)}: {hint}" if operator == "=" and text not in values and "did you" in hint else ""


def _look_up(rows: Sequence[Row], key: str) -> None:
    """Look into the configs for a key that is no column, and that no run has as a measure or in its run.json."""

    def unknown() -> bool:
        return key not in COLUMNS and all(row.value(key) is MISSING for row in rows)

    if unknown():
        for row in rows:
            row.look_up(key)
    if rows and unknown():
        known = {*COLUMNS, *(other for row in rows for other in row.other_keys())}
        raise ConfigError(f"{key}: no run has such a column, measure or key, {suggest(key, known)}")
