"""Schedules of the learning rate: what multiplies the rates of an optimiser, when, and what that depends on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from snnexp.errors import ConfigError
from snnexp.spec.annotations import Count, Fraction, Index, NonNegative
from snnexp.spec.checked import check_fields

Unit = Literal["step", "epoch"]
Factor = Annotated[float, Interval(gt=0, le=1)]
AtLeastOne = Annotated[float, Ge(1)]


@dataclass(frozen=True)
class Schedule:
    """``schedule(optimizer, total)`` makes a scheduler of PyTorch's, or None where rates stay; abstract."""

    unit: ClassVar[Unit] = "step"
    """After what it is stepped: each step of the optimiser, or each epoch of training and its validation."""
    watches: ClassVar[bool] = False
    """Whether a measure decides. It then has a field ``measure``, the name of what is logged in each epoch, and is
    called with ``higher_is_better=True`` or ``False``, as the name says."""
    depends_on_length: ClassVar[bool | tuple[Any, ...]] = True
    """Whether rates depend on ``total``, so that a run cannot be extended; or an argument, and values of it."""
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
class _Curve(Schedule):
    """A schedule of steps or of epochs, as its argument ``unit`` says."""

    unit: Unit = "step"  # type: ignore[misc]


@dataclass(frozen=True)
class Cosine(_Curve):
    """eta_min + (lr - eta_min) (1 + cos(pi t / T_max)) / 2 (Loshchilov and Hutter, 2017, without restarts).

    Args:
        unit: what t counts, steps of the optimiser or epochs.
        T_max: t at which the rate is lowest; None for the length of the training.
        eta_min: the lowest rate.
    """

    stackable = True
    depends_on_length = ("T_max", None)
    T_max: Count | None = None
    eta_min: NonNegative = 0.0

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=self.T_max or total, eta_min=self.eta_min)


@dataclass(frozen=True)
class Linear(_Curve):
    """lr (1 - (1 - end_factor) t / length), and lr end_factor from t = length on.

    Args:
        unit: what t counts, steps of the optimiser or epochs.
        end_factor: of lr, at the end.
        length: steps or epochs; None for those of the training.
    """

    stackable = True
    depends_on_length = ("length", None)
    end_factor: Fraction = 0.0
    length: Count | None = None

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return LinearLR(optimizer, 1.0, self.end_factor, self.length or total)


@dataclass(frozen=True)
class Step(_Curve):
    """lr gamma^floor(t / step_size).

    Args:
        unit: what t counts, epochs or steps of the optimiser.
        step_size: after how many of them the rate changes.
        gamma: what it is multiplied by.
    """

    stackable = True
    depends_on_length = False
    unit: Unit = "epoch"  # type: ignore[misc]
    step_size: Count = 10
    gamma: Factor = 0.1

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return StepLR(optimizer, self.step_size, self.gamma)


@dataclass(frozen=True)
class Exponential(_Curve):
    """lr gamma^t.

    Args:
        unit: what t counts, epochs or steps of the optimiser.
        gamma: what the rate is multiplied by each time.
    """

    stackable = True
    depends_on_length = False
    unit: Unit = "epoch"  # type: ignore[misc]
    gamma: Factor = 0.95

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return ExponentialLR(optimizer, self.gamma)


@dataclass(frozen=True)
class OneCycle(_Curve):
    """From lr / div_factor up to lr, then down to lr / (div_factor final_div_factor) at the end, each as a cosine.

    One cycle of Smith and Topin, 2017 (``OneCycleLR`` of PyTorch).

    Args:
        unit: what is counted, steps of the optimiser or epochs.
        pct_start: the part of the training in which the rate rises.
        div_factor: lr over the first rate.
        final_div_factor: the first rate over the last.
        cycle_momentum: whether the momentum, or the first beta, falls from .95 to .85 and rises again.
    """

    pct_start: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    div_factor: AtLeastOne = 25.0
    final_div_factor: AtLeastOne = 1e4
    cycle_momentum: bool = True

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        rates = [group["lr"] for group in optimizer.param_groups]
        try:
            return OneCycleLR(
                optimizer,
                rates,
                total,
                pct_start=self.pct_start,
                div_factor=self.div_factor,
                final_div_factor=self.final_div_factor,
                cycle_momentum=self.cycle_momentum,
            )
        except ValueError as error:
            raise ConfigError(f"schedule: {type(self).__name__} refuses this optimizer: {error}") from error
        except ZeroDivisionError as error:
            # the rise is one of pct_start total - 1
            told = f"got {self.pct_start} of {total} {self.unit}s, a single one, in which no rate can rise"
            raise ConfigError(f"schedule.pct_start: {told}; use another") from error


@dataclass(frozen=True)
class WarmUp(_Curve):
    """lr (t + 1) / length for t below ``length``, then another schedule for the rest of the training, if any is left.

    Args:
        unit: what t counts, steps of the optimiser or epochs.
        length: steps or epochs of the warm-up.
        then: what follows it: ``constant``, or a ``cosine`` or ``linear`` fall to 0.
    """

    depends_on_length = ("then", "cosine", "linear")
    length: Count = 100
    then: Literal["constant", "cosine", "linear"] = "constant"

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        rest = max(total - self.length, 1)
        following: dict[str, Callable[[], LRScheduler]] = {
            "constant": lambda: ConstantLR(optimizer, 1.0, 0),
            "cosine": lambda: CosineAnnealingLR(optimizer, rest),
            "linear": lambda: LinearLR(optimizer, 1.0, 0.0, rest),
        }
        # the rate of step t = length - 1 is lr
        rising = LinearLR(optimizer, 1 / self.length, 1.0, max(self.length - 1, 1))
        return SequentialLR(optimizer, [rising, following[self.then]()], [self.length])


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
