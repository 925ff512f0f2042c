"""What is known of a run, whatever state it is in."""

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
"""What run.json says of a run that has ended."""


@dataclass(frozen=True)
class Facts:
    """What is known of a run, whatever state it is in."""

    path: Path
    id: str
    status: str
    """That of run.json; ``killed`` where it says running and no process writes there; ``damaged`` where a file of the
    record is missing or cannot be read."""
    reason: str
    """Why it did not finish; empty for a run that did, or still may."""
    started: datetime | None
    """From the record, or else the run id; None where neither tells."""
    duration_s: float | None
    """Of a finished run what it has measured, else until now or until the last sign of it, without the time between an
    end and a resume; None where that is unknown."""
    experiment: str
    seed: int | None
    overrides: list[str]
    metrics: dict[str, float]
    """The test measures that are finite."""
    exit_code: int | None
    progress: dict[str, int] | None
    """``step`` and ``epoch`` of the last row of training, both from 0, of a run that has not finished."""
    record: dict[str, Any]
    """All of run.json."""

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
        """What a record comes to, of which every entry may be missing, or be anything."""
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
        """The overrides that it was started with, and those that it was resumed with; of each key the last."""
        changes = self.record.get("resumed_with")
        changes = [change for change in changes if isinstance(change, str)] if isinstance(changes, list) else []
        known = {key_of(change): change for change in changes}
        return [*(override for override in self.overrides if key_of(override) not in known), *known.values()]

    @property
    def stopped_early(self) -> str:
        """Where and why its training stopped early; empty where it did not."""
        stop = self.record.get("stopped_early")
        if not isinstance(stop, dict):
            return ""
        epoch, step, reason = (one_line(str(stop.get(name))) for name in ("epoch", "step", "reason"))
        return f"stopped early after epoch {epoch}, step {step}: {reason}"

    @property
    def classes(self) -> list[str]:
        """The names of classes, where the data have some."""
        found = self.record.get("classes")
        return [one_line(str(name)) for name in found] if isinstance(found, list) else []

    @property
    def single_class_note(self) -> str:
        """That the accuracy is the share of the one class that all samples of the test are assigned to, if it is."""
        found, accuracy = self.record.get("only_class"), self.metrics.get("test/accuracy")
        if not isinstance(found, int) or accuracy is None:
            return ""
        name = self.classes[found] if 0 <= found < len(self.classes) else found
        told = f"test/accuracy {accuracy:.4f} is the share of class {name}"
        return f"{told}: the network assigns all samples of the test split to it"

    @property
    def last_position(self) -> str:
        """How far it came, as far as is known."""
        return f"step {self.progress['step']}, epoch {self.progress['epoch'] + 1}" if self.progress else ""


def duration_s(path: Path, status: str, record: Mapping[str, Any]) -> float | None:
    """How long a run took, or has taken by now; None where that is not known."""
    earlier = _earlier_s(record)
    if status == "finished":
        wall_s = record.get("wall_s")
        total = wall_s.get("total") if isinstance(wall_s, dict) else None
        return None if earlier is None or not is_finite_number(total) else earlier + cast(float, total)
    resumed = record.get("resumed_at_step")
    name = os.path.basename(os.path.abspath(path))
    began = _instant(record.get("resumed")) if resumed else _started(name, record.get("started"))
    if status == "damaged" or began is None or earlier is None:
        return None
    last = time.time() if status == "running" else 0.0
    for name in ("metrics.jsonl", "run.json"):
        with suppress(OSError):
            last = max(last, (path / name).stat().st_mtime)
    seconds = last - began.timestamp()
    return earlier + seconds if seconds >= 0 else None


def _started(run_id: str, recorded: Any) -> datetime | None:
    """When a run began: the instant in its record, else the local time in its id; shown in the time zone of here."""
    match = RUN_ID.fullmatch(run_id)
    known: tuple[Any, ...] = (recorded, match and match[1].replace("-", "T"))
    return next(filter(None, map(_instant, known)), None)


def _instant(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (TypeError, ValueError, OverflowError):
        return None


def _earlier_s(record: Mapping[str, Any]) -> float | None:
    """What a run took before it was resumed; None where that is not known."""
    earlier = record.get("earlier_s") if record.get("resumed_at_step") else 0.0
    return cast(float, earlier) if is_finite_number(earlier) else None
