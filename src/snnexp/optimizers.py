"""Optimisers with their learning-rate schedule, in the form that Lightning takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from snnexp.spec.annotations import BelowOne, NonNegative, Positive, Stackable
from snnexp.spec.checked import check_fields

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class OptimizerFactory:
    """``factory(parameters, total_steps)`` makes the optimiser; abstract.

    ``schedule`` is ``constant``, or ``cosine``: lr (1 + cos(pi step / total_steps)) / 2.
    """

    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: it updates element by element.

    Not inherited: a class says it of what it computes itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, parameters: Iterable[nn.Parameter], total_steps: int) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class Adam(OptimizerFactory):
    """Adam (Kingma and Ba, 2015), with decoupled weight decay where there is one (Loshchilov and Hutter, 2019)."""

    stackable = True
    lr: Stackable[Positive] = 1e-3
    betas: Stackable[tuple[BelowOne, BelowOne]] = (0.9, 0.999)
    weight_decay: Stackable[NonNegative] = 0.0
    schedule: Schedule = "constant"

    def __call__(self, parameters: Iterable[nn.Parameter], total_steps: int) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            # whole numbers, as of [0,0], are no floats to PyTorch
            parameters,
            self.lr,
            (float(self.betas[0]), float(self.betas[1])),
            weight_decay=self.weight_decay,
            fused=True,
        )
        return _scheduled(optimizer, self.schedule, total_steps)


@dataclass(frozen=True)
class SGD(OptimizerFactory):
    """Stochastic gradient descent with momentum."""

    stackable = True
    lr: Stackable[Positive] = 0.1
    momentum: Stackable[BelowOne] = 0.9
    weight_decay: Stackable[NonNegative] = 0.0
    schedule: Schedule = "constant"

    def __call__(self, parameters: Iterable[nn.Parameter], total_steps: int) -> dict[str, Any]:
        optimizer = torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        return _scheduled(optimizer, self.schedule, total_steps)


def grouped(parameters: Sequence[nn.Parameter], decays: Sequence[bool], weight_decay: float) -> list[Any]:
    """Parameters as an optimiser takes them: those that must not decay in a group of their own, where there is decay.

    Args:
        parameters: all that are trained.
        decays: of each, whether weight decay acts on it.
        weight_decay: without any, all are one group.
    """
    if not weight_decay or all(decays):
        return [*parameters]
    parts = {keep: [p for p, decay in zip(parameters, decays, strict=True) if decay is keep] for keep in (True, False)}
    return [{"params": parts[True]}, {"params": parts[False], "weight_decay": 0.0}]


def _scheduled(optimizer: torch.optim.Optimizer, schedule: str, total_steps: int) -> dict[str, Any]:
    if schedule == "constant":
        return {"optimizer": optimizer}
    cosine = CosineAnnealingLR(optimizer, T_max=total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
