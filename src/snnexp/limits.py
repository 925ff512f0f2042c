"""Resource limits: cores and memory of the machine or container, and the limits of the process (``ulimit``)."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snnexp.errors import ConfigError, DataError, is_out_of_memory, is_worker_failure
from snnexp.text import one_line

PROCESSES_PER_CORE = 16
"""Upper bound on processes per core; more only compete for it."""
MIN_PROCESSES = 64
FILES, FILES_PER_WORKER = 32, 8
"""Open files that a run needs, and each data worker: pipes for training and test, and batches in transit."""


def cores() -> int:
    """Return the number of cores available to this process, considering CPU affinity and the cgroup quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def memory() -> int:
    """Return the bytes of memory available to this process, considering the cgroup limit and ``ulimit -v``."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        size = min(size, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(size, _soft_limit(resource.RLIMIT_AS) or size)


def require_processes(key: str, count: int) -> None:
    """Raise :class:`ConfigError` if ``count`` processes are too many for this machine."""
    limit, source = max(MIN_PROCESSES, PROCESSES_PER_CORE * cores()), f"a machine of {cores()} cores"
    allowed = _soft_limit(resource.RLIMIT_NPROC)
    if allowed is not None and allowed < limit:
        limit, source = allowed, "ulimit -u"
    if count > limit:
        raise ConfigError(f"{key}: got {count} processes, {source} allows at most {limit}")


def require_files(key: str, workers: int) -> None:
    """Raise :class:`ConfigError` if ``workers`` data workers need more open files than ``ulimit -n`` allows."""
    needed, allowed = FILES + FILES_PER_WORKER * workers, _soft_limit(resource.RLIMIT_NOFILE)
    if workers and allowed is not None and needed > allowed:
        raise ConfigError(
            f"{key}: got {workers}, they need {needed} open files, ulimit -n allows {allowed}; raise it, or use fewer"
        )


def has_file_size_limit() -> bool:
    """Return True if the size of files that this process writes is limited (``ulimit -f``)."""
    return _soft_limit(resource.RLIMIT_FSIZE) is not None


def describe_limit(error: BaseException) -> str | None:
    """Return a message about the ``ulimit`` that caused ``error``, or None if no limit did."""
    text, number = str(error), getattr(error, "errno", None)
    # ENFILE is the limit of the whole machine
    too_many = "Too many open files" in text and number != errno.ENFILE
    if number == errno.EMFILE or too_many or "items of ancdata" in text:
        return f"ulimit -n: {_soft_limit(resource.RLIMIT_NOFILE)} open files are not enough; raise the limit"
    phrases = ("failed to map segment", "annot allocate memory", "can't allocate memory")
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(phrase in text for phrase in phrases):
        for letter, kind in (("v", resource.RLIMIT_AS), ("d", resource.RLIMIT_DATA)):
            if (bytes_ := _soft_limit(kind)) is not None:
                return f"ulimit -{letter}: {bytes_ / 1e9:.3g} GB of memory is not enough; raise the limit"
    return None


@contextmanager
def out_of_memory_as_config_error() -> Iterator[None]:
    """Convert out-of-memory errors to :class:`ConfigError`, and a data worker's death to :class:`DataError`."""
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


def _soft_limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft
