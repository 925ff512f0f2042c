"""The number of CPU threads of a run.

``trainer.threads``, else OMP_NUM_THREADS, else that of the run being resumed or evaluated, else one. The default is one
because results depend on the number in their last digits, and because threads wait for each other: on two cores a
second thread ran 1.2 to 1.8 times as fast on an idle machine, and 0.01 to 0.2 times as fast next to another job.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from snnexp import limits
from snnexp.errors import ConfigError
from snnexp.spec.values import COUNT
from snnexp.text import format_value

VARIABLE = "OMP_NUM_THREADS"
VARIABLES = (VARIABLE, "MKL_NUM_THREADS")


def from_environment() -> int | None:
    """Return OMP_NUM_THREADS (its outermost level); None if unset.

    Raises:
        ConfigError: it is not a number of threads.
    """
    text = os.environ.get(VARIABLE, "").partition(",")[0].strip()
    if not text:
        return None
    if not (text.isdecimal() and int(text) in COUNT):
        raise ConfigError(f"{VARIABLE}: got {format_value(text)}, must be {COUNT}")
    return int(text)


def require(cfg: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for more threads than available cores."""
    threads = cfg["trainer"].get("threads")
    if threads is not None and threads > limits.cores():
        raise ConfigError(f"trainer.threads: got {threads}, must be at most {limits.cores()}, the available cores")
    from_environment()


def number(cfg: Mapping[str, Any], recorded: object = None) -> int:
    """Return the number of threads for a run; a saved number is limited to the available cores.

    Args:
        cfg: the config of the run.
        recorded: ``threads`` in its run.json, if any.
    """
    saved = cfg["trainer"].get("threads")
    if saved is None and (threads := from_environment()) is not None:
        return threads
    previous = int(recorded) if recorded in COUNT else 1  # type: ignore[call-overload]
    return min(saved or previous, limits.cores())


def use(count: int) -> None:
    """Set the number of threads of this process and of its future child processes."""
    import torch

    torch.set_num_threads(count)
    os.environ |= dict.fromkeys(VARIABLES, str(count))


@contextmanager
def using(count: int) -> Iterator[None]:
    """Context manager form of :func:`use`."""
    import torch

    previous, variables = torch.get_num_threads(), {name: os.environ.get(name) for name in VARIABLES}
    use(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
