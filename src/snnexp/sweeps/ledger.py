"""The directory of a sweep.

    outputs/sweeps/<experiment>/<sweep id>/
      sweep.json        every point: overrides, status, run directory, and reason of a failure
      configs.jsonl     the full config of each point, one per line; append-only
      summary.csv       one row per point: varied keys, status and metrics
      runs/<run id>/    ordinary run directories
      .lock             held by the process that runs the sweep

A point is pending, running, finished, failed, diverged, interrupted, timeout, or pruned by a search. sweep.json is
replaced atomically. If the driver was killed before it was updated, the run directories take precedence.
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
"""Statuses of an ended point."""
MAX_BYTES = 2**28
TAKEN_OVER = "another process of the search has begun it anew"
"""Reason of a point that another process of the search took over; it is not resumed here."""


@dataclass
class Point:
    """One point of a sweep, and its result."""

    overrides: list[str]
    status: str = "pending"
    run: str = ""
    """Run directory, relative to that of the sweep."""
    reason: str = ""
    """Why it did not finish."""
    exit_code: int | None = None
    how: str = ""
    """How it was run: ``process``, ``stack of 8``, ``job``."""
    trial: int | None = None
    """Number of its trial in the study."""
    index: int = field(default=0, repr=False)
    job: str = ""
    """Number of its cluster job."""
    stack: list[int] = field(default_factory=list)
    """Indices of all members of its stack, including itself, in order."""
    metrics: dict[str, float] = field(default_factory=dict, repr=False)
    """Metrics in its run.json."""

    @property
    def done(self) -> bool:
        """Whether the point does not need to be resumed."""
        return self.status in ("finished", "pruned") or self.reason == TAKEN_OVER

    def end(self, status: str, reason: str, exit_code: int | None) -> None:
        """Set how the run ended. A pruned run is recorded as interrupted."""
        pruned = status == "interrupted" and exit_code == PrunedError.exit_code
        self.status, self.reason, self.exit_code = "pruned" if pruned else status, reason, exit_code


class Ledger:
    """The record of a sweep. :meth:`create` and :meth:`open` lock it."""

    def __init__(self, path: Path) -> None:
        self.path, self.runs = path, path / RUNS
        self.experiment = ""
        self.launcher: dict[str, Any] = {}
        self.search: dict[str, Any] | None = None
        self.folders: tuple[Path, ...] = ()
        self.points: list[Point] = []
        self._configs: list[str] = []
        self._saved_configs = 0
        """Number of configs in configs.jsonl."""
        self._summary_at = 0.0
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
        """Create the directory of a sweep.

        Args:
            path: the directory; a new id is chosen if it exists.
            experiment: name of the experiment.
            launcher: settings of the launcher, used again when the sweep is resumed.
            search: request of the search; None for a list of points.
            folders: additional config directories of the points.
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
        """Open the directory of a sweep, and update its points from their run directories.

        Raises:
            ConfigError: the directory is not a sweep.
            CheckpointError: its files are damaged.
            InUseError: another process runs the sweep.
        """
        if not (path / FILE).is_file():
            raise ConfigError(f"{path}: not the directory of a sweep, it has no {FILE}")
        _require_no_links(path)
        ledger = cls(path)
        ledger._lock.lock()
        try:
            ledger._read()
            ledger.runs.mkdir(exist_ok=True)
            unclaimed = ledger.unclaimed()
            for point in ledger.points:
                # the status of an ended point is kept: run.json records a timeout as an interruption
                if point.status in ("pending", "running"):
                    if not ledger.sync(point, unclaimed) and point.status == "running":
                        point.status, point.reason = "interrupted", "the process that ran the sweep died"
                elif point.run:
                    point.metrics = Run(path / point.run).facts().metrics
            ledger.save()
            ledger.save_summary()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def discard(self) -> None:
        """Delete a sweep without started points, and its parent directories if empty."""
        shutil.rmtree(self.path)
        with suppress(OSError):
            for folder in self.path.parents:
                folder.rmdir()

    def add(self, overrides: Sequence[str], config: Mapping[str, Any], trial: int | None = None) -> Point:
        """Add a point, without saving."""
        point = Point([*overrides], trial=trial, index=len(self.points))
        self._configs.append(json.dumps(config))
        self.points.append(point)
        return point

    def config(self, point: Point) -> dict[str, Any]:
        """Return the full config of a point."""
        config: dict[str, Any] = json.loads(self._configs[point.index])
        return config

    def set_config(self, point: Point, config: Mapping[str, Any]) -> None:
        """Replace the config of a point in memory."""
        self._configs[point.index] = json.dumps(config)

    def save(self) -> None:
        """Append the configs of new points, and replace sweep.json."""
        self._append_configs()
        points = [
            {**{key: getattr(point, key) for key in POINT_KEYS}, **({"stack": point.stack} if point.stack else {})}
            for point in self.points
        ]
        record = {
            "format": upgrade.FORMAT,
            "experiment": self.experiment,
            "launcher": self.launcher,
            "search": self.search,
            **({"config_dir": serialize_folders(self.folders)} if self.folders else {}),
            "points": points,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False)
        write_atomically(self.path / FILE, text.encode(errors="backslashreplace") + b"\n")

    def save_summary(self, every_s: float = 0.0) -> None:
        """Replace summary.csv if it was written at least ``every_s`` seconds ago."""
        if time.monotonic() - self._summary_at >= every_s and (rows := self.rows()):
            write_summary(self.path / SUMMARY, rows)
            self._summary_at = time.monotonic()

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each ended point, all with the same columns."""
        varied, names = self.varied_keys(), self.metric_names()
        return [
            {
                **{key: dict(split_overrides(point.overrides)).get(key, "") for key in varied},
                "status": point.status,
                **{name: point.metrics.get(name) for name in names},
                "how": point.how,
                "run": Path(point.run).name,
                "reason": point.reason,
            }
            for point in self.points
            if point.status in ENDS
        ]

    def log_path(self, point: Point) -> Path:
        """Return the path of a point's output until it has a run directory."""
        return self.runs / f".point-{point.index}.log"

    def modified_ns(self, point: Point) -> int:
        """Return the modification time of a point's run.json in ns, or 0 if there is none."""
        path = self.path / point.run / "run.json"
        return path.stat().st_mtime_ns if point.run and path.exists() else 0

    def metric_names(self) -> list[str]:
        """Return the names of the metrics of all points."""
        return sorted({name for point in self.points for name in point.metrics})

    def varied_keys(self) -> list[str]:
        """Return the keys whose values differ between points; for a search with one point, the searched keys."""
        values = [dict(split_overrides(point.overrides)) for point in self.points]
        if self.search is not None and len(values) == 1:
            fixed = split_overrides(self.search.get("overrides", ()))
            return [key for key, value in values[0].items() if (key, value) not in fixed]
        keys = dict.fromkeys(key for each in values for key in each)
        return [key for key in keys if any(each.get(key) != values[0].get(key) for each in values)]

    def _append_configs(self) -> None:
        if new := self._configs[self._saved_configs :]:
            with os.fdopen(open_for_append(self.path / CONFIGS), "ab") as file:
                file.write("".join(f"{config}\n" for config in new).encode())
                file.flush()
                os.fsync(file.fileno())
            self._saved_configs = len(self._configs)

    def _read(self) -> None:
        path = self.path / FILE
        try:
            record = parse_json(read_regular(path, at_most=MAX_BYTES))
            self.experiment, self.launcher, self.search = (record[key] for key in ("experiment", "launcher", "search"))
            upgrade.require_known(record, path)
            self.folders = parse_folders(record.get("config_dir"))
            entries = [
                {**{key: entry[key] for key in POINT_KEYS}, "stack": entry.get("stack", [])}
                for entry in record["points"]
            ]
            self.points = [Point(**entry, index=index) for index, entry in enumerate(entries)]
            text = read_regular(self.path / CONFIGS, at_most=MAX_BYTES).decode()
            # ignore configs of points that sweep.json does not list; the last line may be incomplete
            lines = text.splitlines(keepends=True)[: len(self.points)]
            self._configs = [row.rstrip("\n") for row in lines]
            valid = all(_is_valid(point, len(self.points)) for point in self.points)
            valid &= all(isinstance(json.loads(row), dict) for row in self._configs)
            valid &= isinstance(self.launcher, dict) and isinstance(self.search, dict | None)
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path}: missing or damaged; the runs below can be resumed one by one") from error
        if not valid or len(self._configs) != len(self.points):
            raise CheckpointError(f"{path}: damaged; the runs below can be resumed one by one")
        self._saved_configs = len(lines)
        if text != "".join(lines):
            write_atomically(self.path / CONFIGS, "".join(lines).encode())

    def sync(self, point: Point, unclaimed: Mapping[tuple[str, ...], list[str]]) -> bool:
        """Update a point from its run directory, which may be one of ``unclaimed``. Return True if the run ended."""
        candidates = unclaimed.get(tuple(point.overrides))
        point.run = point.run or (candidates.pop(0) if candidates else "")
        if not point.run:
            return False
        run = Run(self.path / point.run).facts()
        point.metrics = run.metrics
        if run.status not in facts.END_STATUSES:
            return False
        point.end(run.status, run.reason, run.exit_code)
        return True

    def unclaimed(self) -> dict[tuple[str, ...], list[str]]:
        """Return the run directories that belong to no point of sweep.json, by their overrides."""
        known = {Path(point.run).name for point in self.points}
        unclaimed: dict[tuple[str, ...], list[str]] = {}
        for path in sorted(self.runs.iterdir()):
            # a directory under construction has a temporary name
            if RUN_ID.fullmatch(path.name) and path.name not in known and (path / "overrides.yaml").is_file():
                unclaimed.setdefault(tuple(Run(path).facts().overrides), []).append(f"{RUNS}/{path.name}")
        return unclaimed


def _require_no_links(path: Path) -> None:
    """Raise an error for links in a sweep, through which writing would change other files."""
    for part in [*path.iterdir(), *(path / RUNS).glob("*"), *(path / "conf").rglob("*"), *(path / "jobs").rglob("*")]:
        reject_links(part)


POINT_KEYS = ("overrides", "status", "run", "reason", "exit_code", "how", "trial", "job")


def _is_valid(point: Point, count: int) -> bool:
    """Return True if a point of sweep.json has valid types and values, and its run is inside the sweep."""
    texts = [point.status, point.run, point.reason, point.how, point.job, *point.overrides]
    if not isinstance(point.overrides, list) or not all(isinstance(text, str) for text in texts):
        return False
    known = point.status in ("pending", "running", *ENDS)
    name, job = Path(point.run).name, re.fullmatch(r"[0-9_]*", point.job)
    here = not point.run or (point.run == f"{RUNS}/{name}" and RUN_ID.fullmatch(name))
    numbers = all(number is None or type(number) is int for number in (point.exit_code, point.trial))
    stack = isinstance(point.stack, list) and all(type(index) is int and 0 <= index < count for index in point.stack)
    return known and bool(here and job) and numbers and stack and (not point.stack or point.index in point.stack)


def split_overrides(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Split overrides into keys, without prefixes, and values."""
    return [(key.lstrip("+"), value) for key, _, value in (override.partition("=") for override in overrides)]


def describe(point: Point, varied: Sequence[str]) -> str:
    """Describe a point by the values of its varied keys."""
    values = dict(split_overrides(point.overrides))
    return " ".join(f"{key}={one_line(values[key])}" for key in varied if key in values) or "the only point"


def write_summary(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the summary.csv of a sweep from rows with the same columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
