"""What this machine, and the limits of a process (``ulimit``), allow."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snnexp.errors import ConfigError, DataError, is_out_of_memory, is_worker_failure
from snnexp.text import one_line

PER_CORE = 16
"""More processes per core than this only compete for it."""
FEWEST = 64
FILES, FILES_PER_WORKER = 32, 8
"""Open files of a run, and of each data worker: pipes for training and test, and batches on their way."""


def cores() -> int:
    """The cores that this process may use, which a container may have fewer of than the machine."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        found = min(found, max(1, int(quota) // int(period)))
    return found


def memory() -> int:
    """The bytes of memory of this machine, of which a container or ``ulimit`` may allow fewer."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, _soft(resource.RLIMIT_AS) or found)


def require_processes(key: str, count: int) -> None:
    """Raise :class:`ConfigError` where this machine should not run as many processes."""
    most, why = max(FEWEST, PER_CORE * cores()), f"a machine of {cores()} cores"
    allowed = _soft(resource.RLIMIT_NPROC)
    if allowed is not None and allowed < most:
        most, why = allowed, "ulimit -u"
    if count > most:
        raise ConfigError(f"{key}: got {count} processes, {why} allows at most {most}")


def require_files(key: str, workers: int) -> None:
    """Raise :class:`ConfigError` where as many data workers need more open files than a process may have."""
    needed, allowed = FILES + FILES_PER_WORKER * workers, _soft(resource.RLIMIT_NOFILE)
    if workers and allowed is not None and needed > allowed:
        raise ConfigError(
            f"{key}: got {workers}, they need {needed} open files, ulimit -n allows {allowed}; raise it, or take fewer"
        )


def has_file_size_limit() -> bool:
    """Whether the files that this process writes may only have some length."""
    return _soft(resource.RLIMIT_FSIZE) is not None


def describe_limit(error: BaseException) -> str | None:
    """A sentence about the limit of this process that an error tells of; None where it tells of none."""
    text, number = str(error), getattr(error, "errno", None)
    # the whole machine's is another limit
    many = "Too many open files" in text and number != errno.ENFILE
    if number == errno.EMFILE or many or "items of ancdata" in text:
        return f"ulimit -n: {_soft(resource.RLIMIT_NOFILE)} open files do not suffice; raise it"
    words = ("failed to map segment", "annot allocate memory", "can't allocate memory")
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(word in text for word in words):
        for letter, kind in (("v", resource.RLIMIT_AS), ("d", resource.RLIMIT_DATA)):
            if (bytes_ := _soft(kind)) is not None:
                return f"ulimit -{letter}: {bytes_ / 1e9:.3g} GB of memory do not suffice; raise it"
    return None


@contextmanager
def out_of_memory_as_config_error() -> Iterator[None]:
    """What PyTorch has no class for: memory that does not suffice for the config, and a data worker that died."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if is_worker_failure(error):
            raise DataError(f"data.num_workers: {one_line(str(error))}") from error
        if is_out_of_memory(error):
            raise ConfigError("network: does not fit into memory with this data.batch_size and num_steps") from error
        if limit := describe_limit(error):
            raise ConfigError(limit) from error
        raise


def _soft(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft
