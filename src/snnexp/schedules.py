"""Learning rate schedules."""

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
    """Abstract base class of schedules; ``schedule(optimizer, total)`` returns a PyTorch scheduler or None."""

    unit: ClassVar[Unit] = "step"
    """When it is stepped: after each optimizer step, or after each epoch including validation."""
    watches: ClassVar[bool] = False
    """Whether it depends on a metric. It then has a field ``measure``, the name of a metric logged each epoch, and is
    called with ``higher_is_better=True`` or ``False``."""
    depends_on_length: ClassVar[bool | tuple[Any, ...]] = True
    """Whether learning rates depend on ``total``, so that a run cannot be extended.

    Or the name of an argument and its values for which they do."""
    stackable: ClassVar[bool] = False
    """Whether it can be stacked: it treats all parameter groups alike.

    Not inherited: each subclass must set it itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        """Create the scheduler.

        Args:
            optimizer: the optimizer whose learning rates it sets.
            total: number of training steps or epochs, depending on ``unit``.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """A constant learning rate."""

    stackable = True
    depends_on_length = False

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return None


@dataclass(frozen=True)
class _Curve(Schedule):
    """A schedule over steps or epochs, depending on the argument ``unit``."""

    unit: Unit = "step"  # type: ignore[misc]


@dataclass(frozen=True)
class Cosine(_Curve):
    """eta_min + (lr - eta_min) (1 + cos(pi t / T_max)) / 2 (Loshchilov and Hutter, 2017, without restarts).

    Args:
        unit: unit of t, optimizer steps or epochs.
        T_max: t of the minimum; None for the length of the training.
        eta_min: minimum learning rate.
    """

    stackable = True
    depends_on_length = ("T_max", None)
    T_max: Count | None = None
    eta_min: NonNegative = 0.0

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=self.T_max or total, eta_min=self.eta_min)


@dataclass(frozen=True)
class Linear(_Curve):
    """lr (1 - (1 - end_factor) t / length) up to t = length, then constant.

    Args:
        unit: unit of t, optimizer steps or epochs.
        end_factor: factor of lr at the end.
        length: length of the decay; None for the length of the training.
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
        unit: unit of t, epochs or optimizer steps.
        step_size: period of the decay.
        gamma: multiplicative factor of the decay.
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
        unit: unit of t, epochs or optimizer steps.
        gamma: multiplicative factor of the decay.
    """

    stackable = True
    depends_on_length = False
    unit: Unit = "epoch"  # type: ignore[misc]
    gamma: Factor = 0.95

    def __call__(self, optimizer: Optimizer, total: int) -> LRScheduler | None:
        return ExponentialLR(optimizer, self.gamma)


@dataclass(frozen=True)
class OneCycle(_Curve):
    """From lr / div_factor up to lr, then down to lr / (div_factor final_div_factor), both with a cosine curve.

    One-cycle policy of Smith and Topin, 2017 (``OneCycleLR`` of PyTorch).

    Args:
        unit: unit of the schedule, optimizer steps or epochs.
        pct_start: fraction of the training in which the learning rate increases.
        div_factor: ratio of lr to the initial learning rate.
        final_div_factor: ratio of the initial to the final learning rate.
        cycle_momentum: cycle the momentum, or the first beta, between .95 and .85, inversely to the learning rate.
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
            raise ConfigError(f"schedule: {type(self).__name__} does not support this optimizer: {error}") from error
        except ZeroDivisionError as error:
            # PyTorch divides by pct_start total - 1
            length = f"got {self.pct_start} of {total} {self.unit}s, which is a single {self.unit}"
            raise ConfigError(f"schedule.pct_start: {length}; use another") from error


@dataclass(frozen=True)
class WarmUp(_Curve):
    """lr (t + 1) / length for t below ``length``, then another schedule for the rest of the training.

    Args:
        unit: unit of t, optimizer steps or epochs.
        length: length of the warm-up.
        then: schedule after the warm-up: ``constant``, or a ``cosine`` or ``linear`` decay to 0.
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
        # reaches lr at t = length - 1
        warm_up = LinearLR(optimizer, 1 / self.length, 1.0, max(self.length - 1, 1))
        return SequentialLR(optimizer, [warm_up, following[self.then]()], [self.length])


@dataclass(frozen=True)
class Plateau(Schedule):
    """lr factor^k, where k counts how often ``measure`` stopped improving (``ReduceLROnPlateau`` of PyTorch).

    Args:
        measure: the monitored metric, such as ``val/loss`` or ``val/accuracy``, with its own direction of improvement.
        factor: factor of each reduction.
        patience: number of epochs without improvement before the learning rate is reduced in the next one.
        threshold: minimum improvement, relative to the best value so far.
        cooldown: number of epochs after a reduction that are not counted.
        min_lr: lower bound of the learning rate.
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
