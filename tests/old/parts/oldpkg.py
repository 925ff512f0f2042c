"""A loss of a user's that fails in some points of a sweep; ``OLD_FAULTS=mended`` keeps it from failing."""

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnexp.losses import MSEMembrane


@dataclass(frozen=True)
class Faulty(MSEMembrane):
    """``mse_membrane``, which does what ``faults[point]`` says when it is called for the third time.

    Args:
        point: which run this is.
        faults: by point, ``raise``, ``diverge``, ``hang``, ``wait``, or nothing.
    """

    point: int = 0
    faults: Any = ()
    calls: Any = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls", [])

    def __call__(self, trace: Any, target: Tensor) -> Tensor:
        self.calls.append(None)
        loss = super().__call__(trace, target)
        fault = self.faults[self.point] if self.point < len(self.faults) else ""
        if len(self.calls) != 3 or os.environ.get("OLD_FAULTS") == "mended":
            return loss
        if fault == "raise":
            raise ArithmeticError("a defect of the loss")
        if fault in ("hang", "wait"):
            time.sleep(60 if fault == "hang" else 4)
        return loss * torch.nan if fault == "diverge" else loss
