"""What a run leaves on disk, written and read here and nowhere else.

    outputs/<experiment>/<run id>/
      run.json  config.yaml  overrides.yaml  metrics.jsonl  train.log
      checkpoints/{init,last,best}.ckpt, each with a .sha256 beside it
      tensorboard/
    outputs/sweeps/<experiment>/<sweep id>/
      summary.csv  runs/<run id>/...

A run id is YYYYMMDD-HHMMSS-xxxx. Nothing heavy is imported here, so that runs can be listed quickly.
"""

import csv
import hashlib
import io
import json
import math
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

from snnexp.errors import CheckpointError

PACKAGES = ("snnexp", "torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


def new_id() -> str:
    """A run id: local time to the second, and four random hexadecimal digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class Run:
    """A run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics: IO[str] | None = None

    @classmethod
    def create(cls, parent: Path, config: str, overrides: Sequence[str], facts: Mapping[str, Any]) -> "Run":
        """Make a directory that no other run has, and write down what is known before the start.

        Args:
            parent: the folder of runs.
            config: the resolved config, YAML.
            overrides: what was typed.
            facts: first entries of run.json, beside ``status``, versions and git.
        """
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = parent / new_id()
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
        run = cls(path)
        run.checkpoints.mkdir()
        (path / "config.yaml").write_text(config, encoding="utf-8")
        (path / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)), encoding="utf-8")
        (path / "metrics.jsonl").touch()
        run.write({"status": "running", "exit_code": None, **facts, "versions": versions(), "git": git()})
        return run

    def write(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        text = json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path / "run.json", text.encode() + b"\n")

    def read(self) -> dict[str, Any]:
        """The content of run.json."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change some entries of run.json; returns all."""
        record = {**self.read(), **changes}
        self.write(record)
        return record

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl; NaN and infinity become null."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._metrics.write(json.dumps(_finite(row), allow_nan=False) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def close(self) -> None:
        """Close what is open."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


def _finite(value: Any) -> Any:
    """``value`` with NaN and infinities, which JSON cannot hold, replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, flush to the disk, then replace: a reader sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_summary(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write summary.csv of a sweep: one row per point, all with the same columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def write_checkpoint(path: Path, content: bytes) -> None:
    """Write a checkpoint, then its checksum in the format of ``sha256sum``."""
    write_atomically(path, content)
    digest = hashlib.sha256(content).hexdigest()
    write_atomically(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n".encode())


def read_checkpoint(path: Path) -> bytes:
    """The bytes of a checkpoint that has its checksum.

    Raises:
        CheckpointError: it is missing, or is not the file that was written.
    """
    try:
        content = path.read_bytes()
        digest = path.with_name(path.name + ".sha256").read_text(encoding="ascii").split()[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: checkpoint or checksum is missing or cannot be read") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{path}: checkpoint is damaged, its checksum differs")
    return content


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    import platform

    return {"python": platform.python_version(), **{package: metadata.version(package) for package in PACKAGES}}


def git() -> dict[str, Any] | None:
    """Commit of the working directory's repository, and whether it has changes; None outside of one."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
