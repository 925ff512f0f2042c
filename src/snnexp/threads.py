"""How many threads a run computes with.

``trainer.threads``, else OMP_NUM_THREADS, else as many as a run that is resumed or evaluated has had, else one. One,
because the last digits depend on the number, and because threads wait for each other: on two cores a second one gave
1.2 to 1.8 times the speed while nothing else ran, and 0.01 to 0.2 times beside one other job.
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
BOTH = (VARIABLE, "MKL_NUM_THREADS")


def variable() -> int | None:
    """What OMP_NUM_THREADS says, of its levels the first; None where it is not set.

    Raises:
        ConfigError: it is no number of threads.
    """
    text = os.environ.get(VARIABLE, "").partition(",")[0].strip()
    if not text:
        return None
    if not (text.isdecimal() and int(text) in COUNT):
        raise ConfigError(f"{VARIABLE}: got {format_value(text)}, must be {COUNT}")
    return int(text)


def require(cfg: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for more threads than this machine has cores."""
    typed = cfg["trainer"].get("threads")
    if typed is not None and typed > limits.cores():
        raise ConfigError(f"trainer.threads: got {typed}, must be at most {limits.cores()}, the cores that are here")
    variable()


def number(cfg: Mapping[str, Any], recorded: object = None) -> int:
    """The number of threads for a run; what was saved on a machine with more cores is limited to those here.

    Args:
        cfg: the config of the run.
        recorded: ``threads`` of its run.json, where there is one.
    """
    saved = cfg["trainer"].get("threads")
    if saved is None and (told := variable()) is not None:
        return told
    had = int(recorded) if recorded in COUNT else 1  # type: ignore[call-overload]
    return min(saved or had, limits.cores())


def use(count: int) -> None:
    """Compute with so many threads from now on, in the processes that are started too."""
    import torch

    torch.set_num_threads(count)
    os.environ |= dict.fromkeys(BOTH, str(count))


@contextmanager
def using(count: int) -> Iterator[None]:
    """:func:`use` for a while."""
    import torch

    before, variables = torch.get_num_threads(), {name: os.environ.get(name) for name in BOTH}
    use(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
