"""The facts of a run in any state, from its run directory."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from snnexp.record.names import RUN_ID, key_of
from snnexp.record.plain import is_finite_number
from snnexp.text import one_line

END_STATUSES = ("finished", "failed", "diverged", "interrupted")
"""Statuses in run.json of a run that has ended."""


@dataclass(frozen=True)
class Facts:
    """The facts of a run, complete as far as its files allow."""

    path: Path
    id: str
    status: str
    """The status in run.json; ``killed`` if that is ``running`` but no process writes to the directory; ``damaged`` if
    a file of the record is missing or corrupt."""
    reason: str
    """Why the run did not finish; empty for a finished or running run."""
    started: datetime | None
    """From run.json, or else from the run id; None if neither has it."""
    duration_s: float | None
    """The recorded duration of a finished run, else the time until now or until the last write; excludes interruptions;
    None if unknown."""
    experiment: str
    seed: int | None
    overrides: list[str]
    metrics: dict[str, float]
    """The finite metrics of the test split."""
    exit_code: int | None
    progress: dict[str, int] | None
    """``step`` and ``epoch`` of the last training row, both counted from 0; None for a finished run."""
    record: dict[str, Any]
    """The content of run.json."""

    @classmethod
    def of(
        cls,
        path: Path,
        status: str,
        reason: str,
        record: dict[str, Any],
        overrides: list[str],
        progress: dict[str, int] | None,
    ) -> "Facts":
        """Create facts from run.json, whose entries may be missing or of any type."""
        name = os.path.basename(os.path.abspath(path))
        metrics = record.get("metrics")
        seed, exit_code = record.get("seed"), record.get("exit_code")
        return cls(
            path=path,
            id=name,
            status=status,
            reason=reason,
            started=_started(name, record.get("started")),
            duration_s=duration_s(path, status, record),
            experiment=str(record.get("experiment") or ""),
            seed=seed if isinstance(seed, int) else None,
            overrides=overrides,
            metrics={
                name: float(value)
                for name, value in (metrics.items() if isinstance(metrics, dict) else ())
                if is_finite_number(value)
            },
            exit_code=exit_code if isinstance(exit_code, int) else None,
            progress=progress,
            record=record,
        )

    @property
    def effective_overrides(self) -> list[str]:
        """The overrides of the start and of all resumes, with the last one of each key."""
        changes = self.record.get("resumed_with")
        changes = [change for change in changes if isinstance(change, str)] if isinstance(changes, list) else []
        by_key = {key_of(change): change for change in changes}
        return [*(override for override in self.overrides if key_of(override) not in by_key), *by_key.values()]

    @property
    def stopped_early(self) -> str:
        """Where and why the training stopped early; empty if it did not."""
        stop = self.record.get("stopped_early")
        if not isinstance(stop, dict):
            return ""
        epoch, step, reason = (one_line(str(stop.get(name))) for name in ("epoch", "step", "reason"))
        return f"stopped early after epoch {epoch}, step {step}: {reason}"

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty if the data have none."""
        names = self.record.get("classes")
        return [one_line(str(name)) for name in names] if isinstance(names, list) else []

    @property
    def single_class_note(self) -> str:
        """A note if the network assigns all samples of the test split to one class; empty otherwise."""
        index, accuracy = self.record.get("only_class"), self.metrics.get("test/accuracy")
        if not isinstance(index, int) or accuracy is None:
            return ""
        name = self.classes[index] if 0 <= index < len(self.classes) else index
        note = f"test/accuracy {accuracy:.4f} is the share of class {name}"
        return f"{note}: the network assigns all samples of the test split to it"

    @property
    def last_position(self) -> str:
        """The last logged step and epoch; empty if unknown."""
        return f"step {self.progress['step']}, epoch {self.progress['epoch'] + 1}" if self.progress else ""


def duration_s(path: Path, status: str, record: Mapping[str, Any]) -> float | None:
    """Return the duration of a run without interruptions, up to now for a running one; None if unknown."""
    earlier = _earlier_s(record)
    if status == "finished":
        wall_s = record.get("wall_s")
        total = wall_s.get("total") if isinstance(wall_s, dict) else None
        return None if earlier is None or not is_finite_number(total) else earlier + cast(float, total)
    resumed = record.get("resumed_at_step")
    name = os.path.basename(os.path.abspath(path))
    start = _parse_time(record.get("resumed")) if resumed else _started(name, record.get("started"))
    if status == "damaged" or start is None or earlier is None:
        return None
    last = time.time() if status == "running" else 0.0
    for name in ("metrics.jsonl", "run.json"):
        with suppress(OSError):
            last = max(last, (path / name).stat().st_mtime)
    seconds = last - start.timestamp()
    return earlier + seconds if seconds >= 0 else None


def _started(run_id: str, recorded: Any) -> datetime | None:
    """Return the start time from the record, or else from the run id, in the local time zone."""
    match = RUN_ID.fullmatch(run_id)
    candidates: tuple[Any, ...] = (recorded, match and match[1].replace("-", "T"))
    return next(filter(None, map(_parse_time, candidates)), None)


def _parse_time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (TypeError, ValueError, OverflowError):
        return None


def _earlier_s(record: Mapping[str, Any]) -> float | None:
    """Return the duration before the last resume; None if unknown."""
    earlier = record.get("earlier_s") if record.get("resumed_at_step") else 0.0
    return cast(float, earlier) if is_finite_number(earlier) else None
