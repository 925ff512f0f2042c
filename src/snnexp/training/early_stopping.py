"""Early stopping: end training when a metric no longer improves."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import Trainer

from snnexp.record.measures import higher_is_better
from snnexp.training.members import Member, Observer


class EarlyStopping(Observer):
    """Stop training a member after ``patience`` epochs without improvement of a metric.

    Args:
        patience: epochs without a new best value.
        measure: the monitored metric; its name decides whether higher is better.
    """

    state_key = "early_stopping"
    state_types: ClassVar[Mapping[str, Any]] = {"best": float | None, "epochs": int}

    def __init__(self, patience: int, measure: str = "val/loss") -> None:
        self.patience, self.measure = patience, measure
        self.best: float | None = None
        self.epochs = 0
        """Epochs since the best value."""

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        return {"best": self.best, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        self.best, self.epochs = state_dict["best"], state_dict["epochs"]

    def on_train_epoch_end(self, trainer: Trainer, member: Member) -> None:
        value = float(member.metrics[self.measure])
        sign = 1 if higher_is_better(self.measure) else -1
        if self.best is None or sign * value > sign * self.best:
            self.best, self.epochs = value, 0
            return
        self.epochs += 1
        if self.epochs >= self.patience:
            epochs = "1 epoch" if self.patience == 1 else f"{self.patience} epochs"
            member.finish(f"{self.measure} did not improve for {epochs}")
