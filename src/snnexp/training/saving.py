"""When a run is saved: after epochs, and as time passes."""

import io
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from snnexp.record import checkpoint as checkpoints
from snnexp.record import upgrade
from snnexp.record.checkpoint import Checkpoint
from snnexp.record.checksum import read_checkpoint, write_checkpoint
from snnexp.record.run import Run
from snnexp.training.callbacks import at_logged_step, require_finite_parameters


class RunCheckpointIO(CheckpointIO):
    """How Lightning writes and reads checkpoints: with a checksum, replaced atomically, read as plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_checkpoint(Path(path), buffer.getvalue(), _generation_before(Path(path)))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return checkpoints.decode(read_checkpoint(Path(path)), Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _generation_before(path: Path) -> Path | None:
    return path.with_name("previous.ckpt") if path.name == "last.ckpt" else None


class Checkpoints(Callback):
    """init.ckpt before the first step, then last.ckpt, the one before it as previous.ckpt, and best.ckpt.

    last.ckpt is written after every n epochs, at the end, and when it is older than some seconds. After every n epochs
    the loss decides whether it is the best as well: ``val/loss`` with a validation split, else the training loss
    averaged over the epoch. Numbers that are not finite are not saved: :class:`DivergedError` is raised instead.

    Args:
        run: where to.
        config: the run's config, JSON.
        every_n_epochs: n.
        every_s: how old last.ckpt may become; 0 saves after every step.
    """

    state_key = "checkpoints"

    def __init__(self, run: Run, config: str, every_n_epochs: int, every_s: float) -> None:
        self.run, self.config, self.every_n_epochs, self.every_s = run, config, every_n_epochs, every_s
        self.lowest = float("inf")
        self.due = self.best = False
        self.position = (0, 0)
        self.begun = False
        self.saved: tuple[int, int] | None = None
        self.saved_at = 0.0
        self.spent_s = 0.0

    def go_on_from(self, found: Checkpoint) -> None:
        """Begin at the place in the run that a checkpoint holds."""
        self.position, self.begun = found.position, True
        self.saved = found.position if found.path.name == "last.ckpt" else None

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lowest = state_dict["lowest"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning's counters mean something else in each of its hooks; between two steps three numbers say all
        del checkpoint["loops"]
        checkpoint["format"] = upgrade.FORMAT
        checkpoint["epoch"], checkpoint["batch"] = self.position
        checkpoint["config"] = self.config
        checkpoint["metrics"] = self.run.metrics_so_far()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"] = {"fit_loop": _counters(trainer, *self.position, checkpoint["global_step"])}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at = time.monotonic()
        if not self.begun:
            self._save(trainer, "init.ckpt")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.position = (trainer.current_epoch, batch_idx)
        if self.due or agreed(trainer, self.is_due()):
            self.save_last(trainer)

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return self.due or time.monotonic() - self.saved_at >= self.every_s

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self.every_n_epochs and done != trainer.max_epochs:
            return
        metrics = trainer.callback_metrics
        loss = float(metrics["val/loss" if "val/loss" in metrics else "train/epoch_loss"])
        # the epoch's own row is logged after this hook, so saving waits for the next one
        self.due, self.best = True, loss < self.lowest
        self.lowest = min(loss, self.lowest)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.position = (trainer.current_epoch, 0)
        self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Replace last.ckpt, unless it holds this place in the run already; raise if a number is not finite."""
        if self.saved == self.position:
            return
        began = time.perf_counter()
        # before last.ckpt: a run that is killed between the two will come by here again
        self._save(trainer, "best.ckpt" if self.best else "last.ckpt")
        if self.best and trainer.is_global_zero:
            last = self.run.checkpoints / "last.ckpt"
            write_checkpoint(last, (self.run.checkpoints / "best.ckpt").read_bytes(), _generation_before(last))
        self.due = self.best = False
        self.saved, self.saved_at = self.position, time.monotonic()
        self.spent_s += time.perf_counter() - began

    def _save(self, trainer: Trainer, name: str) -> None:
        require_finite_parameters(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()
        trainer.save_checkpoint(self.run.checkpoints / name, weights_only=False)


def _counters(trainer: Trainer, epoch: int, batch: int, step: int) -> dict[str, Any]:
    """The state of Lightning's loops between two steps: ``epoch`` epochs are done, and ``batch`` batches after them."""

    def fill(counters: dict[str, int], done: int, begun: int | None = None) -> None:
        for name in counters:
            counters[name] = done if begun is None or name in ("processed", "completed") else begun

    state: dict[str, Any] = trainer.fit_loop.state_dict()
    for part in ("total", "current"):
        # an epoch that has begun and is not done is what Lightning calls a restart
        fill(state["epoch_progress"][part], epoch, epoch + (batch > 0))
        fill(state["epoch_loop.batch_progress"][part], step if part == "total" else batch)
        for progress in state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values():
            fill(progress[part], step if part == "total" else batch)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    return state


def agreed(trainer: Trainer, wish: bool) -> bool:
    """Whether any process wishes so; those of ddp ask each other at logged steps only, for that makes them wait."""
    if trainer.world_size == 1:
        return wish
    return at_logged_step(trainer) and trainer.strategy.reduce_boolean_decision(wish, all=False)
