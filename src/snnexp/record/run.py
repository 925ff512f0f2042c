"""The directory of a run: what stands in it, written and read here.

    outputs/<experiment>/<run id>/
      run.json  config.yaml  overrides.yaml  metrics.jsonl  train.log
      checkpoints/{init,previous,last,best}.ckpt, each with a .sha256 beside it
      probe/{init,last,test}.npz    what the network did with a fixed batch, and with the test split
      figures/          what was drawn of it
      tensorboard/
      .lock             held by the process that writes here
    outputs/sweeps/<experiment>/<sweep id>/
      summary.csv  runs/<run id>/...

A run id is YYYYMMDD-HHMMSS-xxxx. A file is replaced whole or not at all, and is on the disk before anything that refers
to it; only metrics.jsonl grows, and a checkpoint says how much of it belongs to it. Nothing heavy is imported here, so
that runs can be listed quickly.
"""

import csv
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from snnexp.errors import CheckpointError, ConfigError
from snnexp.record import upgrade
from snnexp.record.arrays import read_arrays, write_arrays
from snnexp.record.environment import git, versions
from snnexp.record.facts import END_STATUSES, Facts, duration_s
from snnexp.record.files import (
    fsync_folder,
    open_for_append,
    open_regular,
    read_regular,
    reject_links,
    write_all,
    write_atomically,
    write_figure,
)
from snnexp.record.lock import Lock
from snnexp.record.names import new_id
from snnexp.record.plain import parse_json, read_yaml, replace_non_finite
from snnexp.text import format_value

EPOCH = "train/epoch_loss"
"""What the row of an epoch holds, and no other."""
MAX_METRICS_BYTES, MAX_ROW_BYTES = 2**30, 2**20


class Run:
    """A run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prepared: tuple[str, Sequence[str]] | None = None
        self._metrics: int | None = None
        self._lock: Lock | None = None
        self._written = 0
        self._digest = hashlib.sha256()

    @classmethod
    def prepare(cls, parent: Path, config: str, overrides: Sequence[str]) -> "Run":
        """A new run in memory; :meth:`publish` makes its directory.

        Args:
            parent: the folder of runs.
            config: the resolved config, YAML.
            overrides: what was typed.
        """
        run = cls(parent / new_id())
        run._prepared = config, overrides
        return run

    @property
    def published(self) -> bool:
        """Whether there is a directory."""
        return self._prepared is None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def probe(self) -> Path:
        return self.path / "probe"

    def publish(self, facts: Mapping[str, Any]) -> "Run":
        """Make a directory that no other run has, locked, with all that is known before the start.

        It is filled under another name and then renamed: nobody ever sees half of it. Where this raises, nothing is
        left of it.

        Args:
            facts: first entries of run.json, beside ``status``; versions and git are added where they are not there.
        """
        assert self._prepared is not None
        prepared, parent = self._prepared, self.path.parent
        parent.mkdir(parents=True, exist_ok=True)
        new = self.path = parent / f".new-{secrets.token_hex(8)}"
        try:
            new.mkdir()
            new.chmod(0o755)
            self.lock()
            self.checkpoints.mkdir()
            config, overrides = prepared
            write_atomically(new / "config.yaml", config.encode())
            write_atomically(new / "overrides.yaml", yaml.safe_dump(list(overrides)).encode())
            (new / "metrics.jsonl").touch()
            found = {} if "versions" in facts else {"versions": versions(), "git": git()}
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self.write({"status": "running", "exit_code": None, "started": started, **facts, **found})
            self._rename(new)
            self._prepared = None
        except BaseException:
            self.close()
            # a signal may have come when it was renamed already
            shutil.rmtree(new if new.exists() else self.path, ignore_errors=True)
            self._prepared = prepared
            raise
        return self

    def _rename(self, new: Path) -> None:
        while True:
            self.path = new.with_name(new_id())
            try:
                # replaces no directory that holds anything, and every run does
                new.rename(self.path)
                break
            except OSError as error:
                self.path = new
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        fsync_folder(new.parent)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """A run directory that exists, perhaps from elsewhere.

        Raises:
            ConfigError: it is no run directory.
            CheckpointError: a part of it is a link, also a hard one, so that writing here would write elsewhere, or is
                neither a plain file nor a folder.
        """
        run = cls(path.resolve())
        if (run.path / "sweep.json").is_file():
            raise ConfigError(f"{path}: a sweep, not a run; its runs are in {path / 'runs'}")
        if not (run.path / "config.yaml").is_file():
            raise ConfigError(f"{path}: not the directory of a run, there is no config.yaml in it")
        for part in run.path.rglob("*"):
            reject_links(part)
        return run

    def lock(self) -> None:
        """Keep others from writing here until :meth:`close`, or until this process ends in whatever way.

        Raises:
            InUseError: another process writes here.
        """
        self._lock = Lock(self.path)

    def in_use(self) -> bool:
        """Whether a process writes here now."""
        return self.writer_pid() is not None

    def writer_pid(self) -> int | None:
        """The process that writes here now, 0 where its number is not known; None where there is none."""
        return Lock.owner(self.path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        text = json.dumps(
            {**replace_non_finite(record), "format": upgrade.FORMAT}, indent=2, ensure_ascii=False, allow_nan=False
        )
        # half of a surrogate pair, which a reason may hold, is written as JSON's escape
        write_atomically(self.path / "run.json", text.encode(errors="backslashreplace") + b"\n")

    def read(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            CheckpointError: it is missing or is no JSON.
        """
        path = self.path / "run.json"
        try:
            record = parse_json(read_regular(path, at_most=2**20))
        except (FileNotFoundError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: missing or damaged") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{path}: damaged, it holds no mapping")
        upgrade.require_known(record, path)
        return record

    def overrides(self) -> list[str]:
        """What was typed.

        Raises:
            CheckpointError: overrides.yaml is missing or damaged.
        """
        typed = read_yaml(self.path / "overrides.yaml")
        if not isinstance(typed, list) or not all(isinstance(override, str) for override in typed):
            raise CheckpointError(f"{self.path / 'overrides.yaml'}: damaged, it holds no list of texts")
        return typed

    def config(self) -> dict[str, Any]:
        """The content of config.yaml as it stands there, unchecked.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        content = read_yaml(self.path / "config.yaml")
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.path / 'config.yaml'}: damaged, it holds no mapping")
        return content

    def facts(self) -> Facts:
        """All that a list of runs shows; what is missing or damaged here is told by it, and not raised."""
        record: dict[str, Any] = {}
        overrides: list[str] = []
        reason = ""
        try:
            record = self.read()
            status = record.get("status")
            if status == "running" and not self.in_use():
                # it may have ended between the two looks
                record = self.read()
                status = "killed" if record.get("status") == "running" else record.get("status")
            if status not in ("running", "killed", *END_STATUSES):
                raise CheckpointError(f"{self.path / 'run.json'}: damaged, no status is {format_value(status)}")
            reason = "its process is gone" if status == "killed" else str(record.get("reason") or "")
        except (CheckpointError, OSError) as error:
            status, reason = "damaged", self._damage(error)
        try:
            overrides = self.overrides()
        except (CheckpointError, OSError) as error:
            status, reason = "damaged", reason if status == "damaged" else self._damage(error)
        progress = None if status == "finished" else self.progress()
        return Facts.of(self.path, status, reason, record, overrides, progress)

    def _damage(self, error: CheckpointError | OSError) -> str:
        if isinstance(error, OSError):
            return f"{Path(error.filename or self.path).name}: {error.strerror}"
        return str(error).removeprefix(f"{self.path}/")

    def resume_entries(self, record: Mapping[str, Any], step: int, changes: Sequence[str]) -> dict[str, Any]:
        """What run.json says of a run that is resumed: where, since when, what it took before, and what was typed."""
        status = "finished" if record.get("status") == "finished" else "interrupted"
        steps, typed = record.get("resumed_at_step"), record.get("resumed_with")
        return {
            "resumed_at_step": [*(steps if isinstance(steps, list) else []), step],
            "resumed_with": [*(typed if isinstance(typed, list) else []), *changes],
            "resumed": datetime.now(UTC).isoformat(timespec="seconds"),
            "earlier_s": duration_s(self.path, status, record),
        }

    def progress(self) -> dict[str, int] | None:
        """``step`` and ``epoch`` of the last row of training in metrics.jsonl, both from 0."""
        try:
            # behind the last line break is nothing, or a row that was torn
            lines = read_regular(self.path / "metrics.jsonl", last=2**16).split(b"\n")[:-1]
            # the row of the last test counts the steps that are done
            rows = (row for row in map(json.loads, reversed(lines)) if "test/loss" not in row or EPOCH in row)
            row: dict[str, Any] = next(rows, {})
            return {name: int(row[name]) for name in ("step", "epoch")}
        except (OSError, CheckpointError, LookupError, TypeError, ValueError, RecursionError):
            return None

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change some entries of run.json; returns all."""
        record = {**self.read(), **changes}
        self.write(record)
        return record

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl; NaN and infinity become null."""
        if self._metrics is None:
            self._metrics = open_for_append(self.path / "metrics.jsonl", create=False)
        written = json.dumps(replace_non_finite(row), allow_nan=False).encode() + b"\n"
        write_all(self._metrics, written)
        self._written += len(written)
        self._digest.update(written)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was torn when its process ended is none.

        Raises:
            CheckpointError: a line is no row that a run writes.
        """
        path = self.path / "metrics.jsonl"
        with open_regular(path, at_most=MAX_METRICS_BYTES) as file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES), b""), 1):
                if not raw.endswith(b"\n") and len(raw) < MAX_ROW_BYTES:
                    return
                try:
                    row = parse_json(raw)
                except (ValueError, RecursionError) as error:
                    raise CheckpointError(f"{path}: line {number} is damaged") from error
                if not isinstance(row, dict) or type(row.get("step")) is not int:
                    raise CheckpointError(f"{path}: line {number} is damaged, it is no row of metrics")
                yield row

    def last_validation(self) -> dict[str, float]:
        """What the last validation has measured; empty where there was none."""
        found: dict[str, float] = {}
        for row in self.metrics():
            found = {name: value for name, value in row.items() if name.startswith("val/")} or found
        # what was not finite is null
        return {name: value for name, value in found.items() if value is not None}

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Replace ``probe/<name>.npz``; the arrays hold numbers or texts."""
        self.probe.mkdir(exist_ok=True)
        write_arrays(self.probe / f"{name}.npz", arrays)

    def write_figure(self, name: str, content: bytes) -> None:
        """Replace ``figures/<name>``."""
        write_figure(self.path / "figures", name, content)

    def arrays(self, name: str) -> dict[str, Any]:
        """The arrays of ``probe/<name>.npz``; none where there is no such file.

        Raises:
            CheckpointError: it is damaged, or not what :meth:`write_arrays` writes.
        """
        path = self.probe / f"{name}.npz"
        if not path.exists():
            return {}
        if self.probe.is_symlink():
            raise CheckpointError(f"{self.probe}: a link, and a run directory may not lead elsewhere")
        return read_arrays(path)

    def write_csv(self) -> None:
        """Write the rows of metrics.jsonl as metrics.csv, with a column for each value that any of them has."""
        rows = [*self.metrics()]
        text = io.StringIO()
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, [*names], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "metrics.csv", text.getvalue().encode())

    def keep_checkpoints(self, which: str) -> None:
        """Remove all checkpoints but ``best`` or ``last``; ``none`` of them stays, or ``all``."""
        if which == "all":
            return
        for path in sorted(self.checkpoints.glob("*.ckpt*")):
            if path.name.partition(".")[0] != which:
                path.unlink()

    def metrics_so_far(self) -> dict[str, Any]:
        """Length and SHA-256 of the rows that this process knows of, once they are on the disk."""
        if self._metrics is not None:
            os.fsync(self._metrics)
        return {"bytes": self._written, "sha256": self._digest.hexdigest()}

    def has_metrics(self, so_far: Mapping[str, Any]) -> bool:
        """Whether metrics.jsonl begins with the rows that :meth:`metrics_so_far` told of."""
        length, digest = int(so_far["bytes"]), str(so_far["sha256"])
        content = read_regular(self.path / "metrics.jsonl", at_most=MAX_METRICS_BYTES)[:length]
        return len(content) == length and hashlib.sha256(content).hexdigest() == digest

    def rewind(self, length: int) -> None:
        """Cut metrics.jsonl to its first ``length`` bytes, and go on from there."""
        content = read_regular(self.path / "metrics.jsonl", at_most=MAX_METRICS_BYTES)[:length]
        write_atomically(self.path / "metrics.jsonl", content)
        self._written, self._digest = length, hashlib.sha256(content)

    def close_metrics(self) -> None:
        """Flush the rows to the disk; the next one opens the file again."""
        if self._metrics is not None:
            handle, self._metrics = self._metrics, None
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Close what is open, and let others write."""
        try:
            self.close_metrics()
        finally:
            if self._lock is not None:
                lock, self._lock = self._lock, None
                lock.release()
