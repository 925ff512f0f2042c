"""What a run leaves on disk, written and read here and nowhere else.

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
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import yaml

from snnexp.errors import CheckpointError, ConfigError
from snnexp.record import upgrade
from snnexp.record.files import Lock, append_to, open_plain
from snnexp.text import closest, line, listed, shown

GIT_S = 10
"""How long git may take."""
MAX_LEVELS = 32
"""Of what is nested in a record."""
OUTPUTS = "outputs"
"""The folder of runs, where ``logger.root`` names no other one."""
MAX_METRICS_BYTES, MAX_ROW_BYTES = 2**30, 2**20
MAX_ARRAYS_BYTES, MAX_ARRAYS = 2**26, 2**12
MAX_VALUES = 2**22
"""Of all arrays of a file together: figures take some hundred bytes for each."""
RUN_ID = re.compile(r"(\d{8}-\d{6})-[0-9a-f]{4}", re.ASCII)
ENDS = ("finished", "failed", "diverged", "interrupted")
"""What run.json says of a run that has ended."""
MAIN_METRICS = ("test/accuracy", "test/l1", "test/loss")
MEANINGS = {
    "loss": "mean of what is minimized",
    "accuracy": "fraction of samples that are assigned to their class",
    "undecided": "fraction of samples whose class a tie decides",
    "l1": "mean absolute difference between output and target",
    "relative_error": "mean of that difference relative to the target",
    "synops": "additions that spikes cause, per sample",
    "seed_mean_loss": "mean of the training losses and the final L1, not test/l1",
}
"""Of measures, by the name behind the split."""
PACKAGES = ("snnexp", "torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


def new_id() -> str:
    """A run id: local time to the second, and four random hexadecimal digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def locate(typed: str) -> Path:
    """The directory of a run or sweep, which is typed as a path, as its id, or as an end that no other id has.

    Args:
        typed: ids are searched for below ``outputs/``, those of a sweep's runs too.

    Raises:
        ConfigError: there is none, or several ids end so.
    """
    path = Path(os.path.expanduser(typed))
    if os.path.exists(path) or len(path.parts) != 1:
        return path
    found = [*_directories(Path(OUTPUTS))]
    ending = [one for one in found if one.name.endswith(path.name)]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"{line(typed)}: {len(ending)} ids end with it, {listed(map(str, ending))}")
    ids = [one.name for one in found]
    hint = closest(typed, ids) if ids else f"there are none below {OUTPUTS}/"
    raise ConfigError(f"{line(typed)}: no such directory, and no id of a run or sweep ends with it; {hint}")


def _directories(folder: Path) -> Iterator[Path]:
    """The directories of runs and sweeps below a folder, by their names; no link is followed."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        # it is not there, or is nobody's to read
        return
    for name in names:
        path = folder / name
        is_one = RUN_ID.fullmatch(name) is not None
        if is_one:
            yield path
        if not is_one or (path / "sweep.json").is_file():
            yield from _directories(path)


def key_of(override: str) -> str:
    """The key of an override, without the signs before it."""
    return override.partition("=")[0].lstrip("+~")


def main_metric(metrics: Mapping[str, float]) -> str | None:
    """The measure that stands for a run: the first of accuracy, L1 error and loss on the test split that it has."""
    return next((name for name in MAIN_METRICS if name in metrics), None)


def higher_is_better(metric: str) -> bool | None:
    """Which of two values of a measure is the better one; None where neither is, as for a firing rate."""
    name = metric.rpartition("/")[2]
    if name.endswith(("loss", "l1", "error")):
        return False
    return True if name == "accuracy" else None


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

    @property
    def typed(self) -> list[str]:
        """The overrides that it was started with, and those that it was resumed with; of each key the last."""
        changes = self.record.get("resumed_with")
        changes = [change for change in changes if isinstance(change, str)] if isinstance(changes, list) else []
        known = {key_of(change): change for change in changes}
        return [*(override for override in self.overrides if key_of(override) not in known), *known.values()]

    @property
    def reached(self) -> str:
        """How far it came, as far as is known."""
        return f"step {self.progress['step']}, epoch {self.progress['epoch'] + 1}" if self.progress else ""


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

        It is filled under another name and then renamed: nobody ever sees half of it.

        Args:
            facts: first entries of run.json, beside ``status``; versions and git are added where they are not there.
        """
        assert self._prepared is not None
        (config, overrides), parent = self._prepared, self.path.parent
        parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            self.path.chmod(0o755)
            self.lock()
            self.checkpoints.mkdir()
            write_atomically(self.path / "config.yaml", config.encode())
            write_atomically(self.path / "overrides.yaml", yaml.safe_dump(list(overrides)).encode())
            (self.path / "metrics.jsonl").touch()
            found = {} if "versions" in facts else {"versions": versions(), "git": git()}
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self.write({"status": "running", "exit_code": None, "started": started, **facts, **found})
            self._rename(parent)
        except BaseException:
            self.close()
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        self._prepared = None
        return self

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
        self.path = path
        _sync(parent)

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
            require_own(part)
        return run

    def lock(self) -> None:
        """Keep others from writing here until :meth:`close`, or until this process ends in whatever way.

        Raises:
            InUseError: another process writes here.
        """
        self._lock = Lock(self.path)

    def in_use(self) -> bool:
        """Whether a process writes here now."""
        return self.writer() is not None

    def writer(self) -> int | None:
        """The process that writes here now, 0 where its number is not known; None where there is none."""
        return Lock.owner(self.path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        text = json.dumps({**_finite(record), "format": upgrade.FORMAT}, indent=2, ensure_ascii=False, allow_nan=False)
        # half of a surrogate pair, which a reason may hold, is written as JSON's escape
        write_atomically(self.path / "run.json", text.encode(errors="backslashreplace") + b"\n")

    def read(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            CheckpointError: it is missing or is no JSON.
        """
        path = self.path / "run.json"
        try:
            record = plain_json(plain_file(path, at_most=2**20))
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
        typed = _plain_yaml(self.path / "overrides.yaml")
        if not isinstance(typed, list) or not all(isinstance(override, str) for override in typed):
            raise CheckpointError(f"{self.path / 'overrides.yaml'}: damaged, it holds no list of texts")
        return typed

    def config(self) -> dict[str, Any]:
        """The content of config.yaml as it stands there, unchecked.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        content = _plain_yaml(self.path / "config.yaml")
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
            if status not in ("running", "killed", *ENDS):
                raise CheckpointError(f"{self.path / 'run.json'}: damaged, no status is {shown(status)}")
            reason = "its process is gone" if status == "killed" else str(record.get("reason") or "")
        except (CheckpointError, OSError) as error:
            status, reason = "damaged", self._damage(error)
        try:
            overrides = self.overrides()
        except (CheckpointError, OSError) as error:
            status, reason = "damaged", reason if status == "damaged" else self._damage(error)
        name = os.path.basename(os.path.abspath(self.path))
        started = _started(name, record.get("started"))
        metrics = record.get("metrics")
        seed, exit_code = record.get("seed"), record.get("exit_code")
        return Facts(
            path=self.path,
            id=name,
            status=status,
            reason=reason,
            started=started,
            duration_s=self._duration_s(status, started, record),
            experiment=str(record.get("experiment") or ""),
            seed=seed if isinstance(seed, int) else None,
            overrides=overrides,
            metrics={
                name: float(value)
                for name, value in (metrics.items() if isinstance(metrics, dict) else ())
                if _is_finite_number(value)
            },
            exit_code=exit_code if isinstance(exit_code, int) else None,
            progress=None if status == "finished" else self.progress(),
            record=record,
        )

    def _damage(self, error: CheckpointError | OSError) -> str:
        if isinstance(error, OSError):
            return f"{Path(error.filename or self.path).name}: {error.strerror}"
        return str(error).removeprefix(f"{self.path}/")

    def _duration_s(self, status: str, started: datetime | None, record: Mapping[str, Any]) -> float | None:
        if status == "finished":
            wall_s = record.get("wall_s")
            total = wall_s.get("total") if isinstance(wall_s, dict) else None
            earlier = _earlier_s(record)
            return None if earlier is None or not _is_finite_number(total) else earlier + cast(float, total)
        earlier = _earlier_s(record)
        began = _instant(record.get("resumed")) if record.get("resumed_at_step") else started
        if status == "damaged" or began is None or earlier is None:
            return None
        last = time.time() if status == "running" else 0.0
        for name in ("metrics.jsonl", "run.json"):
            with suppress(OSError):
                last = max(last, (self.path / name).stat().st_mtime)
        seconds = last - began.timestamp()
        return earlier + seconds if seconds >= 0 else None

    def resumed(self, record: Mapping[str, Any], step: int, changes: Sequence[str]) -> dict[str, Any]:
        """What run.json says of a run that is resumed: where, since when, what it took before, and what was typed."""
        status = "finished" if record.get("status") == "finished" else "interrupted"
        steps, typed = record.get("resumed_at_step"), record.get("resumed_with")
        return {
            "resumed_at_step": [*(steps if isinstance(steps, list) else []), step],
            "resumed_with": [*(typed if isinstance(typed, list) else []), *changes],
            "resumed": datetime.now(UTC).isoformat(timespec="seconds"),
            "earlier_s": self._duration_s(status, _started(self.path.name, record.get("started")), record),
        }

    def progress(self) -> dict[str, int] | None:
        """``step`` and ``epoch`` of the last row of training in metrics.jsonl, both from 0."""
        try:
            # behind the last line break is nothing, or a row that was torn
            lines = plain_file(self.path / "metrics.jsonl", last=2**16).split(b"\n")[:-1]
            # the row of the test counts the steps that are done
            rows = (row for row in map(json.loads, reversed(lines)) if "test/loss" not in row)
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
            self._metrics = append_to(self.path / "metrics.jsonl", create=False)
        written = json.dumps(_finite(row), allow_nan=False).encode() + b"\n"
        _write(self._metrics, written)
        self._written += len(written)
        self._digest.update(written)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was torn when its process ended is none.

        Raises:
            CheckpointError: a line is no row that a run writes.
        """
        path = self.path / "metrics.jsonl"
        with open_plain(path, at_most=MAX_METRICS_BYTES) as file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES), b""), 1):
                if not raw.endswith(b"\n") and len(raw) < MAX_ROW_BYTES:
                    return
                try:
                    row = plain_json(raw)
                except (ValueError, RecursionError) as error:
                    raise CheckpointError(f"{path}: line {number} is damaged") from error
                if not isinstance(row, dict) or type(row.get("step")) is not int:
                    raise CheckpointError(f"{path}: line {number} is damaged, it is no row of metrics")
                yield row

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Replace ``probe/<name>.npz``; the arrays hold numbers or texts."""
        import numpy as np

        self.probe.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        if buffer.tell() > MAX_ARRAYS_BYTES:
            raise ValueError(f"{buffer.tell()} bytes, at most {MAX_ARRAYS_BYTES} are kept")
        write_atomically(self.probe / f"{name}.npz", buffer.getvalue())

    def write_figure(self, name: str, content: bytes) -> None:
        """Replace ``figures/<name>``."""
        write_figure(self.path / "figures", name, content)

    def arrays(self, name: str) -> dict[str, Any]:
        """The arrays of ``probe/<name>.npz``; none where there is no such file.

        Raises:
            CheckpointError: it is damaged, or not what :meth:`write_arrays` writes.
        """
        import numpy as np

        path = self.probe / f"{name}.npz"
        if not path.exists():
            return {}
        if self.probe.is_symlink():
            raise CheckpointError(f"{self.probe}: a link, and a run directory may not lead elsewhere")
        content = plain_file(path, at_most=MAX_ARRAYS_BYTES)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                _require_plain_arrays(archive, path, len(content))
            with np.load(io.BytesIO(content), allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, MemoryError) as error:
            raise CheckpointError(f"{path}: damaged") from error

    def metrics_so_far(self) -> dict[str, Any]:
        """Length and SHA-256 of the rows that this process knows of, once they are on the disk."""
        if self._metrics is not None:
            os.fsync(self._metrics)
        return {"bytes": self._written, "sha256": self._digest.hexdigest()}

    def has_metrics(self, so_far: Mapping[str, Any]) -> bool:
        """Whether metrics.jsonl begins with the rows that :meth:`metrics_so_far` told of."""
        length, digest = int(so_far["bytes"]), str(so_far["sha256"])
        content = plain_file(self.path / "metrics.jsonl", at_most=MAX_METRICS_BYTES)[:length]
        return len(content) == length and hashlib.sha256(content).hexdigest() == digest

    def rewind(self, length: int) -> None:
        """Cut metrics.jsonl to its first ``length`` bytes, and go on from there."""
        content = plain_file(self.path / "metrics.jsonl", at_most=MAX_METRICS_BYTES)[:length]
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


def _finite(value: Any) -> Any:
    """``value`` with NaN and infinities, which JSON cannot hold, replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_figure(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a folder of figures, which a run and a report about it may write at the same time.

    Raises:
        CheckpointError: the folder leads elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: a link, and figures are not written elsewhere; put a folder here")
    write_atomically(folder / name, content, f".{os.getpid()}")


def require_own(part: Path) -> None:
    """Refuse a part of a directory that leads elsewhere, or that is neither a plain file nor a folder.

    Raises:
        CheckpointError: it is a link, also a hard one, a pipe or a device.
    """
    try:
        status = part.lstat()
    except FileNotFoundError:
        # replaced just now by the process that writes here
        return
    file = stat.S_ISREG(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or (file and status.st_nlink > 1):
        raise CheckpointError(f"{part}: a link, and this directory may not lead elsewhere; put the file here")
    if not file and not stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"{part}: neither a plain file nor a folder; delete it")


def write_atomically(path: Path, content: bytes, mark: str = "") -> None:
    """Write beside the target, flush to the disk, then replace: a reader sees the old file or the new one.

    One process writes a file at a time, so what a killed one has left is deleted by the next; where several may, each
    has a ``mark`` of its own. Nothing that is there is written to: it may be a pipe, or a link to what is elsewhere.
    """
    temporary = path.with_name(f".{path.name}{mark}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
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
    return cast(float, earlier) if _is_finite_number(earlier) else None


def plain_json(text: bytes | str) -> Any:
    """JSON as runs write it.

    Raises:
        ValueError: it is none, or has integers of more than 64 bits, numbers that are not finite, or too many levels.
    """
    value = json.loads(text)
    level = [value]
    for _ in range(MAX_LEVELS):
        for node in level:
            if abs(node) >= 2**63 if isinstance(node, int) else isinstance(node, float) and not math.isfinite(node):
                raise ValueError("a number that no run writes")
        level = [inner for node in level for inner in _inside(node)]
        if not level:
            return value
    raise ValueError(f"more than {MAX_LEVELS} levels")


def _inside(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _require_plain_arrays(archive: zipfile.ZipFile, path: Path, size: int) -> None:
    """Refuse arrays that would take more memory than their file, or that are no numbers and texts."""
    from numpy.lib import format as npy

    members = archive.infolist()
    # what is packed may unpack to any size, and several entries may share one content
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path}: damaged, its arrays are packed")
    if len(members) > MAX_ARRAYS or len({member.filename for member in members}) < len(members):
        raise CheckpointError(f"{path}: damaged, more than {MAX_ARRAYS} arrays, or two of one name")
    values = 0
    for member in members:
        with archive.open(member) as file:
            if npy.read_magic(file) != (1, 0):
                raise CheckpointError(f"{path}: damaged, an array of another version")
            shape, _, dtype = npy.read_array_header_1_0(file)
            count = math.prod(shape)
            values += count * max(1, dtype.itemsize // 8)
            if dtype.kind not in "biufU" or file.tell() + count * dtype.itemsize != member.file_size:
                raise CheckpointError(f"{path}: damaged, an array that no run writes")
    if values > MAX_VALUES:
        raise CheckpointError(f"{path}: {values} values, at most {MAX_VALUES} can belong here")


def _plain_yaml(path: Path) -> Any:
    """The plain values of a YAML file, which may be anybody's.

    Raises:
        CheckpointError: it is missing, or is not what a run writes.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        content = plain_file(path, at_most=2**20)
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # aliases multiply, tags build what they like, and nested deep enough the loader crashes
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None or depth > 32:
                raise CheckpointError(f"{path}: damaged, it holds more than plain values")
        return yaml.load(content, Loader=loader)
    except (FileNotFoundError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: missing or damaged") from error


def plain_file(path: Path, at_most: int | None = None, last: int | None = None, follow: bool = False) -> bytes:
    """The content of a plain file, or its last bytes: a pipe would wait for ever, a device never end.

    A link in a run directory of others may lead to what is nobody's business, and is followed only if told so.
    """
    with open_plain(path, at_most, follow) as file:
        if last is not None:
            file.seek(max(0, os.fstat(file.fileno()).st_size - last))
        return file.read()


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
        vouched, content = _vouched(path), plain_file(path, at_most, follow=foreign)
        if vouched and hashlib.sha256(content).hexdigest() not in vouched:
            # its run may have replaced it just now
            vouched, content = _vouched(path), plain_file(path, at_most, follow=foreign)
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
        return plain_file(_checksum(path), at_most=4096, follow=True).decode("ascii").split()[::2]
    except (FileNotFoundError, UnicodeDecodeError):
        return []


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    import platform
    from importlib import metadata

    return {"python": platform.python_version(), **{package: metadata.version(package) for package in PACKAGES}}


def git() -> dict[str, Any] | None:
    """Commit of the working directory's repository, and whether files that it tracks have changed; None outside of one.

    A repository that cannot be asked, such as one of another owner, gives the ``reason``; nothing here ends a run.
    """
    import subprocess

    # the index stays as it is, and no file watcher that a repository names is run
    ask = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false"]
    answers, plain = [], {**os.environ, "LC_ALL": "C"}
    for what in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run([*ask, *what], capture_output=True, timeout=GIT_S, env=plain)
        except (OSError, subprocess.TimeoutExpired) as error:
            return None if isinstance(error, FileNotFoundError) else {"reason": f"git: {error}"}
        if done.returncode:
            reason = line(done.stderr.decode(errors="replace"))
            return None if "not a git repository" in reason else {"reason": reason}
        answers.append(done.stdout.decode(errors="replace").strip())
    commit, changes = answers
    return {"commit": commit, "dirty": bool(changes)}
