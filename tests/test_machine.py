"""Messages about limits of a process and of the machine."""

import errno
import resource

import pytest

from snnexp import limits
from snnexp.errors import ConfigError
from snnexp.training.assembly import make_trainer


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n: "),
        (OSError(errno.ENFILE, "Too many open files in system"), None),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n: "),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v: "),
        (MemoryError(), "ulimit -v: "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ulimit -v: "),
        (ImportError("No module named 'mine'"), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
    ],
)
def test_an_error_names_the_limit(monkeypatch: pytest.MonkeyPatch, error: Exception, begins: str | None) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    said = limits.describe_limit(error)
    assert said is None if begins is None else said is not None and said.startswith(begins)


def test_unlimited_memory_is_not_reported_as_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert limits.describe_limit(MemoryError()) is None


def test_ddp_processes_are_limited_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "cores", lambda: 2)
    with pytest.raises(ConfigError, match=r"^devices: got 60000 processes, a machine of 2 cores allows at most 64"):
        make_trainer(accelerator="cpu", devices=60000, strategy="ddp")


def test_a_lower_limit_of_processes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (5, 5))
    with pytest.raises(ConfigError, match=r"^workers: got 6 processes, ulimit -u allows at most 5"):
        limits.require_processes("workers", 6)
    limits.require_processes("workers", 5)
