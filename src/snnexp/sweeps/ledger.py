"""What a sweep leaves on disk beside its runs, written and read here.

    outputs/sweeps/<experiment>/<sweep id>/
      sweep.json        every point: overrides, status, run directory, and why it did not finish
      configs.jsonl     the whole config of each point, a line each; only grows
      summary.csv       a row per point: what was varied, its status and its measures
      runs/<run id>/    ordinary run directories
      .lock             held by the process that drives the sweep

A point is pending, running, finished, failed, diverged, interrupted, timeout, or pruned by a search. sweep.json is
replaced whole; where a kill has left it behind its runs, the runs are right.
"""

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.errors import CheckpointError, ConfigError, PrunedError
from snnexp.record import facts, upgrade
from snnexp.record.files import open_for_append, read_regular, reject_links, write_atomically
from snnexp.record.names import RUN_ID, new_id
from snnexp.record.origin import parse_folders, serialize_folders
from snnexp.record.plain import parse_json
from snnexp.record.run import Run
from snnexp.text import one_line

FILE, CONFIGS, SUMMARY, RUNS = "sweep.json", "configs.jsonl", "summary.csv", "runs"
ENDS = ("finished", "failed", "diverged", "interrupted", "timeout", "pruned")
"""What a point can have come to."""
MAX_BYTES = 2**28
TAKEN_OVER = "another process of the search has begun it anew"
"""Why a point of a search did not finish here, and need not."""


@dataclass
class Point:
    """One point of a sweep, and what became of it."""

    overrides: list[str]
    status: str = "pending"
    run: str = ""
    """Its run directory, below the sweep's."""
    reason: str = ""
    """Why it did not finish."""
    exit_code: int | None = None
    how: str = ""
    """What computed it: ``process``, ``stack of 8``, ``job``."""
    trial: int | None = None
    """Its number in the study of a search."""
    index: int = field(default=0, repr=False)
    job: str = ""
    """Its number at a cluster."""
    stack: list[int] = field(default_factory=list)
    """The points that it was trained with as one model, in their order and with itself, by their indices."""
    metrics: dict[str, float] = field(default_factory=dict, repr=False)
    """As its run.json has them."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to do about it."""
        return self.status in ("finished", "pruned") or self.reason == TAKEN_OVER

    def end(self, status: str, reason: str, exit_code: int | None) -> None:
        """Note how its run ended; one that a search has given up is interrupted, and nothing is wrong with it."""
        pruned = status == "interrupted" and exit_code == PrunedError.exit_code
        self.status, self.reason, self.exit_code = "pruned" if pruned else status, reason, exit_code


class Ledger:
    """The record of a sweep; made by :meth:`create` or :meth:`open`, which lock it."""

    def __init__(self, path: Path) -> None:
        self.path, self.runs = path, path / RUNS
        self.experiment = ""
        self.launcher: dict[str, Any] = {}
        self.search: dict[str, Any] | None = None
        self.folders: tuple[Path, ...] = ()
        self.points: list[Point] = []
        self._configs: list[str] = []
        self._kept = 0
        """Configs that are in their file."""
        self._summed_at = 0.0
        self._lock = Run(path)

    @classmethod
    def create(
        cls,
        path: Path,
        experiment: str,
        launcher: Mapping[str, Any],
        search: Mapping[str, Any] | None = None,
        folders: Sequence[Path] = (),
    ) -> "Ledger":
        """Make the directory of a sweep, or one beside it where another sweep was faster.

        Args:
            path: where it would like to be.
            experiment: the name of its experiment.
            launcher: what starts its points, and how; kept for those who resume the sweep.
            search: what chooses its points; None where they are listed.
            folders: more configs that its points are composed with.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
                break
            except FileExistsError:
                path = path.with_name(new_id())
        ledger = cls(path)
        ledger._lock.lock()
        ledger.runs.mkdir()
        ledger.experiment, ledger.launcher = experiment, dict(launcher)
        ledger.search = None if search is None else dict(search)
        ledger.folders = tuple(folders)
        return ledger

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """A sweep that was left, with what became of its points since.

        Raises:
            ConfigError: it is no sweep.
            CheckpointError: its files are damaged.
            InUseError: another process drives it.
        """
        if not (path / FILE).is_file():
            raise ConfigError(f"{path}: not the directory of a sweep, there is no {FILE} in it")
        _require_own_files(path)
        ledger = cls(path)
        ledger._lock.lock()
        try:
            ledger._read()
            ledger.runs.mkdir(exist_ok=True)
            unclaimed = ledger.unclaimed()
            for point in ledger.points:
                # how it ended is known here, and a timeout looks like an interruption there
                if point.status in ("pending", "running"):
                    if not ledger.look(point, unclaimed) and point.status == "running":
                        point.status, point.reason = "interrupted", "the process that drove the sweep is gone"
                elif point.run:
                    point.metrics = Run(path / point.run).facts().metrics
            ledger.save()
            ledger.save_summary()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Let others drive the sweep."""
        self._lock.close()

    def discard(self) -> None:
        """Delete a sweep of which no point has begun, and the folders above that are empty then."""
        shutil.rmtree(self.path)
        with suppress(OSError):
            for folder in self.path.parents:
                folder.rmdir()

    def add(self, overrides: Sequence[str], config: Mapping[str, Any], trial: int | None = None) -> Point:
        """A new point; the caller saves."""
        point = Point([*overrides], trial=trial, index=len(self.points))
        self._configs.append(json.dumps(config))
        self.points.append(point)
        return point

    def config(self, point: Point) -> dict[str, Any]:
        """The whole config of a point."""
        found: dict[str, Any] = json.loads(self._configs[point.index])
        return found

    def replace(self, point: Point, config: Mapping[str, Any]) -> None:
        """Another config for a point, while this process drives the sweep."""
        self._configs[point.index] = json.dumps(config)

    def save(self) -> None:
        """Replace sweep.json, after the configs of new points are kept."""
        self._append_configs()
        kept = [
            {**{key: getattr(point, key) for key in KEPT}, **({"stack": point.stack} if point.stack else {})}
            for point in self.points
        ]
        record = {
            "format": upgrade.FORMAT,
            "experiment": self.experiment,
            "launcher": self.launcher,
            "search": self.search,
            **({"config_dir": serialize_folders(self.folders)} if self.folders else {}),
            "points": kept,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False)
        write_atomically(self.path / FILE, text.encode(errors="backslashreplace") + b"\n")

    def save_summary(self, every_s: float = 0.0) -> None:
        """Replace summary.csv, if it is older than some seconds."""
        if time.monotonic() - self._summed_at >= every_s and (rows := self.rows()):
            write_summary(self.path / SUMMARY, rows)
            self._summed_at = time.monotonic()

    def rows(self) -> list[dict[str, Any]]:
        """A row for each point that has ended, all with the same columns."""
        varied, names = self.varied(), self.measures()
        return [
            {
                **{key: dict(pairs(point.overrides)).get(key, "") for key in varied},
                "status": point.status,
                **{name: point.metrics.get(name) for name in names},
                "how": point.how,
                "run": Path(point.run).name,
                "reason": point.reason,
            }
            for point in self.points
            if point.status in ENDS
        ]

    def log(self, point: Point) -> Path:
        """What a point prints until it has a run directory."""
        return self.runs / f".point-{point.index}.log"

    def written(self, point: Point) -> int:
        """When the record of a point's run was last written, in ns; 0 where there is none."""
        path = self.path / point.run / "run.json"
        return path.stat().st_mtime_ns if point.run and path.exists() else 0

    def measures(self) -> list[str]:
        """Names of all that any point has measured."""
        return sorted({name for point in self.points for name in point.metrics})

    def varied(self) -> list[str]:
        """The keys whose values differ between points; of a search with one point, those that are searched."""
        typed = [dict(pairs(point.overrides)) for point in self.points]
        if self.search is not None and len(typed) == 1:
            fixed = pairs(self.search.get("overrides", ()))
            return [key for key, value in typed[0].items() if (key, value) not in fixed]
        keys = dict.fromkeys(key for values in typed for key in values)
        return [key for key in keys if any(values.get(key) != typed[0].get(key) for values in typed)]

    def _append_configs(self) -> None:
        # once for the points of a list, once for each that a search adds
        if new := self._configs[self._kept :]:
            with os.fdopen(open_for_append(self.path / CONFIGS), "ab") as file:
                file.write("".join(f"{config}\n" for config in new).encode())
                file.flush()
                os.fsync(file.fileno())
            self._kept = len(self._configs)

    def _read(self) -> None:
        path = self.path / FILE
        try:
            record = parse_json(read_regular(path, at_most=MAX_BYTES))
            self.experiment, self.launcher, self.search = (record[key] for key in ("experiment", "launcher", "search"))
            upgrade.require_known(record, path)
            self.folders = parse_folders(record.get("config_dir"))
            entries = [
                {**{key: entry[key] for key in KEPT}, "stack": entry.get("stack", [])} for entry in record["points"]
            ]
            self.points = [Point(**entry, index=index) for index, entry in enumerate(entries)]
            text = read_regular(self.path / CONFIGS, at_most=MAX_BYTES).decode()
            # behind what sweep.json knows may be one that was torn
            lines = text.splitlines(keepends=True)[: len(self.points)]
            self._configs = [row.rstrip("\n") for row in lines]
            wrong = [point for point in self.points if not _is_sound(point, len(self.points))]
            whole = all(isinstance(json.loads(row), dict) for row in self._configs)
            mappings = isinstance(self.launcher, dict) and isinstance(self.search, dict | None)
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path}: missing or damaged, the runs below can be resumed one by one") from error
        if wrong or not whole or not mappings or len(self._configs) != len(self.points):
            raise CheckpointError(f"{path}: damaged, the runs below can be resumed one by one")
        self._kept = len(lines)
        if text != "".join(lines):
            write_atomically(self.path / CONFIGS, "".join(lines).encode())

    def look(self, point: Point, unclaimed: Mapping[tuple[str, ...], list[str]]) -> bool:
        """Take from a point's run, perhaps one of ``unclaimed``, what this file does not know; whether it has ended."""
        mine = unclaimed.get(tuple(point.overrides))
        point.run = point.run or (mine.pop(0) if mine else "")
        if not point.run:
            return False
        run = Run(self.path / point.run).facts()
        point.metrics = run.metrics
        if run.status not in facts.END_STATUSES:
            return False
        point.end(run.status, run.reason, run.exit_code)
        return True

    def unclaimed(self) -> dict[tuple[str, ...], list[str]]:
        """The runs of which this file does not know whose they are, by their overrides."""
        known = {Path(point.run).name for point in self.points}
        found: dict[tuple[str, ...], list[str]] = {}
        for path in sorted(self.runs.iterdir()):
            # what is being made has another name still
            if RUN_ID.fullmatch(path.name) and path.name not in known and (path / "overrides.yaml").is_file():
                found.setdefault(tuple(Run(path).facts().overrides), []).append(f"{RUNS}/{path.name}")
        return found


def _require_own_files(path: Path) -> None:
    """Refuse a sweep of which a part is not its own, so that writing here would write elsewhere."""
    for part in [*path.iterdir(), *(path / RUNS).glob("*"), *(path / "conf").rglob("*"), *(path / "jobs").rglob("*")]:
        reject_links(part)


KEPT = ("overrides", "status", "run", "reason", "exit_code", "how", "trial", "job")


def _is_sound(point: Point, count: int) -> bool:
    """Whether an entry of ``count`` that was read says what one can say, and leads nowhere else."""
    texts = [point.status, point.run, point.reason, point.how, point.job, *point.overrides]
    if not isinstance(point.overrides, list) or not all(isinstance(text, str) for text in texts):
        return False
    known = point.status in ("pending", "running", *ENDS)
    name, job = Path(point.run).name, re.fullmatch(r"[0-9_]*", point.job)
    here = not point.run or (point.run == f"{RUNS}/{name}" and RUN_ID.fullmatch(name))
    numbers = all(number is None or type(number) is int for number in (point.exit_code, point.trial))
    seats = isinstance(point.stack, list) and all(type(seat) is int and 0 <= seat < count for seat in point.stack)
    return known and bool(here and job) and numbers and seats and (not point.stack or point.index in point.stack)


def pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Overrides as keys and values."""
    return [(key.lstrip("+"), value) for key, _, value in (override.partition("=") for override in overrides)]


def shown(point: Point, varied: Sequence[str]) -> str:
    """A point by what sets it apart."""
    values = dict(pairs(point.overrides))
    return " ".join(f"{key}={one_line(values[key])}" for key in varied if key in values) or "the only point"


def write_summary(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write summary.csv of a sweep: one row per point, all with the same columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
