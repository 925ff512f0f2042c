"""Exceptions of snnexp, with the exit code of the command line for each."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class SnnexpError(Exception):
    """An error for the user; the command line prints its message without a traceback."""

    exit_code = 1
    status = "failed"
    """The status in run.json of a run that ended with this error."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ConfigError(SnnexpError, ValueError):
    """Invalid values: each argument is one message, ``key: got VALUE, must be ...``."""

    exit_code = 2
    has_path = False
    """Whether the keys already have their full path in the config, see :func:`key_prefix`."""


class DivergedError(SnnexpError):
    """The loss or a weight became NaN or infinite."""

    exit_code = 3
    status = "diverged"


class DataError(SnnexpError):
    """Data are missing or corrupt."""

    exit_code = 4


class CheckpointError(SnnexpError):
    """A checkpoint is missing, corrupt or not trusted."""

    exit_code = 5


class InUseError(SnnexpError):
    """Another process writes to the run directory."""

    exit_code = 6


class LostProcessError(SnnexpError):
    """Another process of the same distributed run has died."""


class UnmeasuredError(SnnexpError):
    """The points of a search lack the metric that the search optimizes."""

    exit_code = 7


class PartError(SnnexpError):
    """The user's own code raised an error; ``frames`` is its traceback."""

    exit_code = 8

    def __init__(self, message: str, frames: str = "") -> None:
        super().__init__(message)
        self.frames = frames


class InterruptedRunError(SnnexpError):
    """A signal stopped the run; the exit code is 128 + signal number, as in a shell."""

    status = "interrupted"

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class PrunedError(SnnexpError):
    """A search pruned the run; it can be resumed."""

    exit_code = 0
    status = "interrupted"


DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
"""Error numbers of a disk that is full, over quota, read-only or faulty."""


def describe_disk_error(error: OSError) -> str:
    """Return a one-line message for an I/O error."""
    return f"{error.filename or 'disk'}: {error.strerror}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an out-of-memory error; on a CPU, PyTorch raises a plain RuntimeError."""
    phrases = ("can't allocate memory", "Storage size calculation overflowed")
    on_cpu = isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
    return on_cpu or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_worker_failure(error: BaseException) -> bool:
    """Return True if a data loader worker died; PyTorch raises this at any point of the main process."""
    return isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)


def describe_failure(error: BaseException) -> tuple[str, str, int]:
    """Return status, reason and exit code of a point of a sweep that failed with ``error``."""
    if isinstance(error, SnnexpError):
        return error.status, str(error.args[0] if error.args else ""), error.exit_code
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return "failed", describe_disk_error(error), 74
    message = " ".join(str(error).split())
    return "failed", f"{type(error).__name__}: {message}".rstrip(": "), 1


def termination_signals() -> list[signal.Signals]:
    """Return the termination signals that are not ignored; ``nohup`` and ``cmd &`` make a process ignore some."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def key_prefix(path: str) -> Iterator[None]:
    """Prepend ``path`` to the keys of a :class:`ConfigError` raised in the block, unless they have their full path."""
    try:
        yield
    except ConfigError as error:
        if not error.has_path:
            error.args = tuple(f"{path}.{message}" for message in error.args)
            error.has_path = True
        raise


class ConfigErrors:
    """Collects the errors of a config: the first message for each key."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Catch a :class:`ConfigError` of the block and keep its messages."""
        try:
            yield
        except ConfigError as error:
            self.add(*map(str, error.args))

    def add(self, *messages: str) -> None:
        """Add messages, ``key: ...``, for keys that have none yet."""
        for message in messages:
            self.messages.setdefault(message.partition(": ")[0], message)

    def covers(self, path: str) -> bool:
        """Return True if a key at or below ``path`` has an error."""
        return any(f"{key}.".startswith(f"{path}.") for key in self.messages)

    def raise_if_any(self) -> None:
        """Raise one :class:`ConfigError` with all messages, if any."""
        if self.messages:
            raise ConfigError(*self.messages.values())
