"""A loss with faults, and data that appear later; used with SNNEXP_ALLOW_TARGETS=faults."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnexp.data import DataModule, regression_data
from snnexp.errors import DataError
from snnexp.losses import MSEMembrane


def _raise() -> None:
    raise ArithmeticError("a defect of the loss")


def _hang() -> None:
    while True:
        time.sleep(1)


def _exhaust_memory() -> None:
    tensors = []
    while True:
        tensors.append(torch.ones(2**26))


WAYS: dict[str, Callable[[], object]] = {
    "exception": _raise,
    "sys.exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(4),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGABRT": lambda: os.abort(),
    "hang": _hang,
    "memory": _exhaust_memory,
    "too large": lambda: torch.empty(2**55),
}
REASONS = {
    "exception": "ArithmeticError: a defect of the loss",
    "sys.exit": "SystemExit: 3",
    "os._exit": "exited with code 4",
    "SIGKILL": "SIGKILL",
    "SIGSEGV": "SIGSEGV",
    "SIGABRT": "SIGABRT",
    "hang": "took longer than",
    "memory": "does not fit into memory",
    "too large": "does not fit into memory",
    "diverge": "the loss is nan",
}
"""Part of the reason that is reported for each fault."""


@dataclass(frozen=True)
class Faulty(MSEMembrane):
    """``mse_membrane`` with a fault in its third call.

    Args:
        point: index of the run in ``faults``.
        faults: by point, one of :data:`WAYS`, ``diverge``, or an empty string.
    """

    point: int = 0
    faults: Any = ()
    calls: Any = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls", [])

    def __call__(self, trace: Any, target: Tensor) -> Tensor:
        self.calls.append(None)
        loss = super().__call__(trace, target)
        way = self.faults[self.point] if self.point < len(self.faults) else ""
        if way and len(self.calls) == 3:
            return loss * torch.nan if way == "diverge" else (WAYS[way](), loss)[1]
        return loss


def late_data(file: str, **settings: Any) -> DataModule:
    """Return ``regression_data``; raise an error until a file exists."""
    if not Path(file).exists():
        raise DataError(f"{file}: no such file")
    return regression_data(**settings)
