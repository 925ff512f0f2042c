"""Write and read run directories.

    outputs/<experiment>/<run id>/
      run.json  config.yaml  overrides.yaml  metrics.jsonl  train.log
      checkpoints/{init,previous,last,best}.ckpt, each with a .sha256 file
      probe/{init,last,test}.npz    activity of the network on the probe batch and on the test split
      figures/          figures of the probe data
      tensorboard/
      .lock             locked by the process that writes here
    outputs/sweeps/<experiment>/<sweep id>/
      summary.csv  runs/<run id>/...

A run id is YYYYMMDD-HHMMSS-xxxx. Files are replaced atomically, and are flushed to disk before any file that refers to
them; only metrics.jsonl is appended to, and a checkpoint records how much of it belongs to the checkpoint. This module
imports no slow packages, so that runs can be listed quickly.
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
"""A metric that only epoch rows contain."""
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
        """Create a run in memory; :meth:`publish` creates its directory.

        Args:
            parent: the folder of the new run directory.
            config: the resolved config as YAML.
            overrides: the overrides of the run.
        """
        run = cls(parent / new_id())
        run._prepared = config, overrides
        return run

    @property
    def published(self) -> bool:
        """True if the run has a directory."""
        return self._prepared is None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def probe(self) -> Path:
        return self.path / "probe"

    def publish(self, facts: Mapping[str, Any]) -> "Run":
        """Create the run directory, locked, with a new id and its initial files.

        It is filled under a temporary name and then renamed, so it is never visible half-written. On an error it is
        deleted.

        Args:
            facts: initial entries of run.json besides ``status``; versions and git are added if missing.
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
            environment = {} if "versions" in facts else {"versions": versions(), "git": git()}
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self.write({"status": "running", "exit_code": None, "started": started, **facts, **environment})
            self._rename(new)
            self._prepared = None
        except BaseException:
            self.close()
            # a signal may have arrived after the rename
            shutil.rmtree(new if new.exists() else self.path, ignore_errors=True)
            self._prepared = prepared
            raise
        return self

    def _rename(self, new: Path) -> None:
        while True:
            self.path = new.with_name(new_id())
            try:
                # rename replaces only empty directories, and a run directory is never empty
                new.rename(self.path)
                break
            except OSError as error:
                self.path = new
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        fsync_folder(new.parent)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open an existing run directory, which may not be trusted.

        Raises:
            ConfigError: it is not a run directory.
            CheckpointError: it contains a symbolic or hard link, which could point elsewhere, a pipe or a device.
        """
        run = cls(path.resolve())
        if (run.path / "sweep.json").is_file():
            raise ConfigError(f"{path}: a sweep, not a run; its runs are in {path / 'runs'}")
        if not (run.path / "config.yaml").is_file():
            raise ConfigError(f"{path}: not the directory of a run, there is no config.yaml in it")
        for file in run.path.rglob("*"):
            reject_links(file)
        return run

    def lock(self) -> None:
        """Lock the run directory until :meth:`close` or the end of this process.

        Raises:
            InUseError: another process has locked it.
        """
        self._lock = Lock(self.path)

    def in_use(self) -> bool:
        """Return True if a process writes to this directory."""
        return self.writer_pid() is not None

    def writer_pid(self) -> int | None:
        """Return the id of the process that writes to this directory, 0 if it is unknown, or None if there is none."""
        return Lock.owner(self.path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write run.json."""
        text = json.dumps(
            {**replace_non_finite(record), "format": upgrade.FORMAT}, indent=2, ensure_ascii=False, allow_nan=False
        )
        # a reason may contain unpaired surrogates, which are written as JSON escapes
        write_atomically(self.path / "run.json", text.encode(errors="backslashreplace") + b"\n")

    def read(self) -> dict[str, Any]:
        """Return the content of run.json.

        Raises:
            CheckpointError: it is missing or corrupt.
        """
        path = self.path / "run.json"
        try:
            record = parse_json(read_regular(path, at_most=2**20))
        except (FileNotFoundError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: missing or damaged") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{path}: damaged, not a mapping")
        upgrade.require_known(record, path)
        return record

    def overrides(self) -> list[str]:
        """Return the overrides that the run was started with.

        Raises:
            CheckpointError: overrides.yaml is missing or damaged.
        """
        overrides = read_yaml(self.path / "overrides.yaml")
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise CheckpointError(f"{self.path / 'overrides.yaml'}: damaged, not a list of strings")
        return overrides

    def config(self) -> dict[str, Any]:
        """Return the unchecked content of config.yaml.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        content = read_yaml(self.path / "config.yaml")
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.path / 'config.yaml'}: damaged, not a mapping")
        return content

    def facts(self) -> Facts:
        """Return the facts of the run; missing or corrupt files give the status ``damaged`` and do not raise."""
        record: dict[str, Any] = {}
        overrides: list[str] = []
        reason = ""
        try:
            record = self.read()
            status = record.get("status")
            if status == "running" and not self.in_use():
                # the run may have ended in between
                record = self.read()
                status = "killed" if record.get("status") == "running" else record.get("status")
            if status not in ("running", "killed", *END_STATUSES):
                raise CheckpointError(f"{self.path / 'run.json'}: damaged, unknown status {format_value(status)}")
            reason = "its process died" if status == "killed" else str(record.get("reason") or "")
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
        """Return the entries of run.json for a resume: step, time, earlier duration and overrides."""
        status = "finished" if record.get("status") == "finished" else "interrupted"
        steps, overrides = record.get("resumed_at_step"), record.get("resumed_with")
        return {
            "resumed_at_step": [*(steps if isinstance(steps, list) else []), step],
            "resumed_with": [*(overrides if isinstance(overrides, list) else []), *changes],
            "resumed": datetime.now(UTC).isoformat(timespec="seconds"),
            "earlier_s": duration_s(self.path, status, record),
        }

    def progress(self) -> dict[str, int] | None:
        """Return ``step`` and ``epoch`` of the last training row in metrics.jsonl, both counted from 0, or None."""
        try:
            # a last line without a line break is incomplete
            lines = read_regular(self.path / "metrics.jsonl", last=2**16).split(b"\n")[:-1]
            # skip the row of the final test, whose step is the number of steps done
            rows = (row for row in map(json.loads, reversed(lines)) if "test/loss" not in row or EPOCH in row)
            row: dict[str, Any] = next(rows, {})
            return {name: int(row[name]) for name in ("step", "epoch")}
        except (OSError, CheckpointError, LookupError, TypeError, ValueError, RecursionError):
            return None

    def update(self, **changes: Any) -> dict[str, Any]:
        """Update entries of run.json; return its content."""
        record = {**self.read(), **changes}
        self.write(record)
        return record

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl; NaN and infinity are written as null."""
        if self._metrics is None:
            self._metrics = open_for_append(self.path / "metrics.jsonl", create=False)
        line = json.dumps(replace_non_finite(row), allow_nan=False).encode() + b"\n"
        write_all(self._metrics, line)
        self._written += len(line)
        self._digest.update(line)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of metrics.jsonl; an incomplete last line is skipped.

        Raises:
            CheckpointError: a line is corrupt.
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
                    raise CheckpointError(f"{path}: line {number} is damaged, not a row of metrics")
                yield row

    def last_validation(self) -> dict[str, float]:
        """Return the finite metrics of the last validation; empty if there was none."""
        last: dict[str, float] = {}
        for row in self.metrics():
            last = {name: value for name, value in row.items() if name.startswith("val/")} or last
        return {name: value for name, value in last.items() if value is not None}

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write arrays of numbers or strings to ``probe/<name>.npz``."""
        self.probe.mkdir(exist_ok=True)
        write_arrays(self.probe / f"{name}.npz", arrays)

    def write_figure(self, name: str, content: bytes) -> None:
        """Write ``figures/<name>``."""
        write_figure(self.path / "figures", name, content)

    def arrays(self, name: str) -> dict[str, Any]:
        """Return the arrays of ``probe/<name>.npz``; empty if there is no such file.

        Raises:
            CheckpointError: it is corrupt, or could not be written by :meth:`write_arrays`.
        """
        path = self.probe / f"{name}.npz"
        if not path.exists():
            return {}
        if self.probe.is_symlink():
            raise CheckpointError(f"{self.probe}: a link, which is not allowed in a run directory")
        return read_arrays(path)

    def write_csv(self) -> None:
        """Write the rows of metrics.jsonl to metrics.csv, with a column for each key of any row."""
        rows = [*self.metrics()]
        text = io.StringIO()
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, [*names], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "metrics.csv", text.getvalue().encode())

    def keep_checkpoints(self, which: str) -> None:
        """Delete checkpoints except those selected by ``which``: ``best``, ``last``, ``none`` or ``all``."""
        if which == "all":
            return
        for path in sorted(self.checkpoints.glob("*.ckpt*")):
            if path.name.partition(".")[0] != which:
                path.unlink()

    def metrics_so_far(self) -> dict[str, Any]:
        """Flush metrics.jsonl to disk; return its length and SHA-256 up to the last row of this process."""
        if self._metrics is not None:
            os.fsync(self._metrics)
        return {"bytes": self._written, "sha256": self._digest.hexdigest()}

    def has_metrics(self, so_far: Mapping[str, Any]) -> bool:
        """Return True if metrics.jsonl begins with the rows described by :meth:`metrics_so_far`."""
        length, digest = int(so_far["bytes"]), str(so_far["sha256"])
        content = read_regular(self.path / "metrics.jsonl", at_most=MAX_METRICS_BYTES)[:length]
        return len(content) == length and hashlib.sha256(content).hexdigest() == digest

    def rewind(self, length: int) -> None:
        """Truncate metrics.jsonl to its first ``length`` bytes and continue from there."""
        content = read_regular(self.path / "metrics.jsonl", at_most=MAX_METRICS_BYTES)[:length]
        write_atomically(self.path / "metrics.jsonl", content)
        self._written, self._digest = length, hashlib.sha256(content)

    def close_metrics(self) -> None:
        """Flush metrics.jsonl to disk and close it; the next row opens it again."""
        if self._metrics is not None:
            handle, self._metrics = self._metrics, None
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Close metrics.jsonl and release the lock."""
        try:
            self.close_metrics()
        finally:
            if self._lock is not None:
                lock, self._lock = self._lock, None
                lock.release()
