"""Schedules of the learning rate: what multiplies the rates of an optimiser, when, and what that depends on."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from snnexp.spec.annotations import Index, NonNegative
from snnexp.spec.checked import check_fields


@dataclass(frozen=True)
class Schedule:
    """``schedule(optimizer, total)`` makes a scheduler of PyTorch's, or None where rates stay; abstract."""

    unit: ClassVar[Literal["step", "epoch"]] = "step"
    """After what it is stepped: each step of the optimiser, or each epoch of training and its validation."""
    watches: ClassVar[bool] = False
    """Whether a measure decides. It then has a field ``measure``, the name of what is logged in each epoch, and is
    called with ``higher_is_better=True`` or ``False``, as the name says."""
    depends_on_length: ClassVar[bool] = True
    """Whether rates depend on ``total``, so that a run cannot become longer once it has begun."""
    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: it treats all groups of parameters alike.

    Not inherited: a class says it of what it computes itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        """The scheduler.

        Args:
            optimizer: whose rates it sets.
            total: how often it is stepped in the whole training: the number of steps or epochs, as ``unit`` says.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """lr stays as it is."""

    stackable = True
    depends_on_length = False

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return None


@dataclass(frozen=True)
class Cosine(Schedule):
    """lr (1 + cos(pi step / total)) / 2, which is 0 at the end (Loshchilov and Hutter, 2017, without restarts)."""

    stackable = True

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=total)


@dataclass(frozen=True)
class Plateau(Schedule):
    """lr factor^k, where k counts how often ``measure`` stopped improving (``ReduceLROnPlateau`` of PyTorch).

    Args:
        measure: what is watched, such as ``val/loss`` or ``val/accuracy``; its name decides whether higher is better.
        factor: of each reduction.
        patience: epochs without improvement that are allowed; the next one reduces the rate.
        threshold: the improvement that counts, relative to the best value so far.
        cooldown: epochs after a reduction in which none is counted.
        min_lr: below which no rate is reduced.
    """

    unit = "epoch"
    watches = True
    depends_on_length = False
    measure: str = "val/loss"
    factor: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    patience: Index = 10
    threshold: NonNegative = 1e-4
    cooldown: Index = 0
    min_lr: NonNegative = 0.0

    def __call__(self, optimizer: Optimizer, total: int, higher_is_better: bool = False) -> LRScheduler | None:
        return ReduceLROnPlateau(
            optimizer,
            mode="max" if higher_is_better else "min",
            factor=self.factor,
            patience=self.patience,
            threshold=self.threshold,
            cooldown=self.cooldown,
            min_lr=self.min_lr,
        )
