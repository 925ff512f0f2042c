"""What can end a run early, and the exit code that the command line gives it."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class SnnexpError(Exception):
    """A sentence for the person at the keyboard; the command line prints it without a traceback."""

    exit_code = 1
    status = "failed"
    """What run.json says of a run that this ended."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ConfigError(SnnexpError, ValueError):
    """Values that cannot work: one sentence per argument, which reads ``key: what was given, what would do``."""

    exit_code = 2
    located = False
    """Whether the key has been completed to its place in the config."""


class DivergedError(SnnexpError):
    """The loss or a weight became NaN or infinite."""

    exit_code = 3
    status = "diverged"


class DataError(SnnexpError):
    """Data are missing or damaged."""

    exit_code = 4


class CheckpointError(SnnexpError):
    """A checkpoint is missing or is not the file that was written."""

    exit_code = 5


class InUseError(SnnexpError):
    """Another process writes to the run directory."""

    exit_code = 6


class LostProcessError(SnnexpError):
    """Another process of the run has ended, and without it the run cannot go on."""


class UnmeasuredError(SnnexpError):
    """The points of a search lack the metric that it compares them by."""

    exit_code = 7


class PartError(SnnexpError):
    """Code of a part of the user's own raised an error; ``frames`` is its traceback."""

    exit_code = 8

    def __init__(self, sentence: str, frames: str = "") -> None:
        super().__init__(sentence)
        self.frames = frames


class InterruptedRunError(SnnexpError):
    """A signal asked the run to stop; the exit code is 128 + the signal's number, as shells have it."""

    status = "interrupted"

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class PrunedError(SnnexpError):
    """A search has given the run up, for others do better; it can be resumed."""

    exit_code = 0
    status = "interrupted"


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
"""What the disk says when it has no more room, or is none."""


def about_disk(error: OSError) -> str:
    """A sentence for what the disk has refused."""
    return f"{error.filename or 'disk'}: {error.strerror}"


def is_about_memory(error: BaseException) -> bool:
    """Whether there was not enough memory; PyTorch has no class of its own for that of a CPU."""
    words = ("can't allocate memory", "Storage size calculation overflowed")
    full = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return full or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_about_worker(error: BaseException) -> bool:
    """Whether a data worker died: PyTorch raises that wherever the process is, also in code of a user's part."""
    return isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)


def ending(error: BaseException) -> tuple[str, str, int]:
    """Status, reason and exit code of a run among others that ``error`` has ended."""
    if isinstance(error, SnnexpError):
        return error.status, str(error.args[0] if error.args else ""), error.exit_code
    if isinstance(error, OSError) and error.errno in DISK:
        return "failed", about_disk(error), 74
    told = " ".join(str(error).split())
    return "failed", f"{type(error).__name__}: {told}".rstrip(": "), 1


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a process to end, without those that its parent ignores, as ``nohup`` and ``cmd &`` do."""
    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in asking if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def located(path: str) -> Iterator[None]:
    """Put ``path`` in front of the key of a :class:`ConfigError` that passes, once."""
    try:
        yield
    except ConfigError as error:
        if not error.located:
            error.args = tuple(f"{path}.{sentence}" for sentence in error.args)
            error.located = True
        raise


class Refusals:
    """Collects what is wrong in several places of a config: one sentence for each key, the first."""

    def __init__(self) -> None:
        self.sentences: dict[str, str] = {}

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the sentences of a :class:`ConfigError` instead of passing it on."""
        try:
            yield
        except ConfigError as error:
            self.add(*map(str, error.args))

    def add(self, *sentences: str) -> None:
        """Keep sentences about keys that none is about yet."""
        for sentence in sentences:
            self.sentences.setdefault(sentence.partition(": ")[0], sentence)

    def about(self, path: str) -> bool:
        """Whether a key at or below ``path`` has been refused."""
        return any(f"{key}.".startswith(f"{path}.") for key in self.sentences)

    def tell(self) -> None:
        """Raise one :class:`ConfigError` with all sentences, if there are any."""
        if self.sentences:
            raise ConfigError(*self.sentences.values())
