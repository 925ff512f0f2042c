"""What a run leaves on disk, written and read here and nowhere else.

    outputs/<experiment>/<run id>/
      run.json  config.yaml  overrides.yaml  metrics.jsonl  train.log
      checkpoints/{init,previous,last,best}.ckpt, each with a .sha256 beside it
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
import fcntl
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import yaml

from snnexp.errors import CheckpointError, ConfigError, InUseError

PACKAGES = ("snnexp", "torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


def new_id() -> str:
    """A run id: local time to the second, and four random hexadecimal digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class Run:
    """A run directory."""

    _locked: ClassVar[set[Path]] = set()
    """Directories that this process has locked: to the system, a process does not stand in its own way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics: int | None = None
        self._lock: int | None = None
        self._written = 0
        self._digest = hashlib.sha256()

    @classmethod
    def create(cls, parent: Path, config: str, overrides: Sequence[str], facts: Mapping[str, Any]) -> "Run":
        """Make a directory that no other run has, locked, with all that is known before the start.

        It is filled under another name and then renamed: nobody ever sees half of it.

        Args:
            parent: the folder of runs.
            config: the resolved config, YAML.
            overrides: what was typed.
            facts: first entries of run.json, beside ``status``, versions and git.
        """
        parent.mkdir(parents=True, exist_ok=True)
        run = cls(Path(tempfile.mkdtemp(prefix=".new-", dir=parent)))
        try:
            run.path.chmod(0o755)
            run.lock()
            run.checkpoints.mkdir()
            write_atomically(run.path / "config.yaml", config.encode())
            write_atomically(run.path / "overrides.yaml", yaml.safe_dump(list(overrides)).encode())
            (run.path / "metrics.jsonl").touch()
            run.write({"status": "running", "exit_code": None, **facts, "versions": versions(), "git": git()})
            run._rename(parent)
        except BaseException:
            run.close()
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        return run

    def _rename(self, parent: Path) -> None:
        while True:
            path = parent / new_id()
            try:
                # replaces no directory that holds anything, and every run does
                self.path.rename(path)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        self._locked.discard(self.path.resolve())
        self.path, self.checkpoints = path, path / "checkpoints"
        self._locked.add(self.path.resolve())
        _sync(parent)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """A run directory that exists, perhaps from elsewhere.

        Raises:
            ConfigError: it is no run directory.
            CheckpointError: a part of it is a link, also a hard one, so that writing here would write elsewhere.
        """
        run = cls(path.resolve())
        if not (run.path / "config.yaml").is_file():
            raise ConfigError(f"{path}: not the directory of a run, there is no config.yaml in it")
        for part in run.path.rglob("*"):
            if part.is_symlink() or (part.is_file() and part.stat().st_nlink > 1):
                raise CheckpointError(f"{part}: a link, and a run directory may not lead elsewhere; put the file here")
        return run

    def lock(self) -> None:
        """Keep others from writing here until :meth:`close`, or until this process ends in whatever way.

        Raises:
            InUseError: another process writes here.
        """
        if self.path.resolve() in self._locked:
            raise InUseError(f"{self.path}: in use by this process")
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise CheckpointError(f"{self.path / '.lock'}: not a plain file")
        try:
            # a lock of this kind is not inherited by data workers, which may outlive a process that is killed
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 20).decode(errors="replace")
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise InUseError(f"{self.path}: in use by process {owner.strip()}") from error
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._lock = handle
        self._locked.add(self.path.resolve())

    def write(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        text = json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path / "run.json", text.encode() + b"\n")

    def read(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            CheckpointError: it is missing or is no JSON.
        """
        path = self.path / "run.json"
        try:
            record = json.loads(_regular(path, at_most=2**20))
        except (FileNotFoundError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: missing or damaged") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{path}: damaged, it holds no mapping")
        return record

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change some entries of run.json; returns all."""
        record = {**self.read(), **changes}
        self.write(record)
        return record

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl; NaN and infinity become null."""
        if self._metrics is None:
            self._metrics = os.open(self.path / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        line = json.dumps(_finite(row), allow_nan=False).encode() + b"\n"
        _write(self._metrics, line)
        self._written += len(line)
        self._digest.update(line)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was torn when its process ended is none.

        Raises:
            CheckpointError: a row is no JSON.
        """
        path = self.path / "metrics.jsonl"
        for number, line in enumerate(_regular(path).splitlines(keepends=True), 1):
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise CheckpointError(f"{path}: line {number} is damaged") from error

    def metrics_so_far(self) -> dict[str, Any]:
        """Length and SHA-256 of the rows that this process knows of, once they are on the disk."""
        if self._metrics is not None:
            os.fsync(self._metrics)
        return {"bytes": self._written, "sha256": self._digest.hexdigest()}

    def has_metrics(self, so_far: Mapping[str, Any]) -> bool:
        """Whether metrics.jsonl begins with the rows that :meth:`metrics_so_far` told of."""
        length, digest = int(so_far["bytes"]), str(so_far["sha256"])
        content = _regular(self.path / "metrics.jsonl")[:length]
        return len(content) == length and hashlib.sha256(content).hexdigest() == digest

    def rewind(self, length: int) -> None:
        """Cut metrics.jsonl to its first ``length`` bytes, and go on from there."""
        content = _regular(self.path / "metrics.jsonl")[:length]
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
                os.close(self._lock)
                self._lock = None
                self._locked.discard(self.path.resolve())


def _finite(value: Any) -> Any:
    """``value`` with NaN and infinities, which JSON cannot hold, replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, flush to the disk, then replace: a reader sees the old file or the new one.

    One process writes a file at a time, so what a killed one has left is written over by the next.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        try:
            _write(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _write(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _sync(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _regular(path: Path, at_most: int | None = None) -> bytes:
    """The content of a plain file: a pipe would wait for ever, a device never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: not a plain file")
    if at_most is not None and status.st_size > at_most:
        raise CheckpointError(f"{path}: {status.st_size} bytes, at most {at_most} can belong here")
    return path.read_bytes()


def write_summary(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write summary.csv of a sweep: one row per point, all with the same columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def write_checkpoint(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Replace a checkpoint and its checksum, in the format of ``sha256sum``.

    While one is replaced, the checksum's file vouches for the old and the new content, so that whatever a kill leaves
    is a whole checkpoint with its checksum.

    Args:
        path: the checkpoint.
        content: its new content.
        keep: where the content before goes, if it is undamaged.

    Raises:
        CheckpointError: its checksum is no plain file.
    """
    digest = hashlib.sha256(content).hexdigest()
    vouched = _vouched(path)
    if keep is not None and vouched:
        before = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(before).hexdigest() in vouched:
            write_checkpoint(keep, before)
    _vouch(path, digest, *vouched)
    write_atomically(path, content)
    _vouch(path, digest)


def read_checkpoint(path: Path, at_most: int | None = None, foreign: bool = False) -> bytes:
    """The bytes of a checkpoint that has its checksum.

    Args:
        path: the checkpoint.
        at_most: bytes that it may have.
        foreign: it may come without a checksum.

    Raises:
        CheckpointError: it is missing, or is not the file that was written.
    """
    try:
        vouched, content = _vouched(path), _regular(path, at_most)
        if vouched and hashlib.sha256(content).hexdigest() not in vouched:
            # its run may have replaced it just now
            vouched, content = _vouched(path), _regular(path, at_most)
    except OSError as error:
        raise CheckpointError(f"{path}: checkpoint cannot be read: {error.strerror}") from error
    if not vouched and not foreign:
        raise CheckpointError(f"{path}: checkpoint has no checksum beside it, or a damaged one")
    if vouched and hashlib.sha256(content).hexdigest() not in vouched:
        raise CheckpointError(f"{path}: checkpoint is damaged, its checksum differs")
    return content


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _vouch(path: Path, *digests: str) -> None:
    write_atomically(_checksum(path), "".join(f"{digest}  {path.name}\n" for digest in digests).encode())


def _vouched(path: Path) -> list[str]:
    try:
        return _regular(_checksum(path), at_most=4096).decode("ascii").split()[::2]
    except (FileNotFoundError, UnicodeDecodeError):
        return []


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    import platform

    return {"python": platform.python_version(), **{package: metadata.version(package) for package in PACKAGES}}


def git() -> dict[str, Any] | None:
    """Commit of the working directory's repository, and whether it has changes; None outside of one."""
    try:
        commit, status = (
            # a repository may name a program of its own as file watcher, which git would run
            subprocess.run(["git", "-c", "core.fsmonitor=false", *what], capture_output=True, text=True, check=True)
            for what in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
