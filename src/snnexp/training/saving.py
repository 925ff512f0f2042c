"""Checkpoints of members: their content, and when they are written."""

import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from snnexp.record import upgrade
from snnexp.record.checkpoint import Checkpoint
from snnexp.record.checksum import read_checkpoint, write_checkpoint
from snnexp.record.run import Run
from snnexp.training.members import Bridge, Member, Observer
from snnexp.training.observers import is_logged_step, require_finite_parameters

THREADS = 8
"""Threads that write checkpoints: concurrent flushes to the disk cost as much as one."""


class MemberCheckpoints(Observer):
    """Write the checkpoints of a member: init.ckpt, last.ckpt, its predecessor previous.ckpt, and best.ckpt.

    Best has the lowest ``val/loss``, or without a validation split the lowest mean training loss of an epoch.

    Args:
        run: the run.
        config: its config as JSON.
    """

    state_key = "checkpoints"

    def __init__(self, run: Run, config: str) -> None:
        self.run, self.config = run, config
        self.lowest = float("inf")
        self.best = False
        self.compared_at: int | None = None
        """The step of the latest comparison with the best checkpoint."""

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        self.lowest = state_dict["lowest"]

    def promote_to_last(self, path: Path) -> None:
        """Copy another checkpoint to last.ckpt."""
        if path.name != "last.ckpt":
            write_checkpoint(self.run.checkpoints / "last.ckpt", read_checkpoint(path))

    def update_best(self, member: Member, step: int) -> None:
        """Compare the epoch that ended at this step with the best one; once per step."""
        if self.compared_at == step:
            return
        self.compared_at = step
        loss = float(member.metrics["val/loss" if "val/loss" in member.metrics else "train/epoch_loss"])
        self.best = loss < self.lowest
        self.lowest = min(loss, self.lowest)

    def content(self, trainer: Trainer, member: Member, position: tuple[int, int]) -> dict[str, Any]:
        """Return the content of a checkpoint, except the metrics that :meth:`write` adds; collective under ddp.

        Raises:
            DivergedError: a parameter is not finite.
        """
        require_finite_parameters(trainer, member)
        states = ((observer.state_key, observer.state_dict(trainer)) for observer in member.observers)
        return {
            "format": upgrade.FORMAT,
            "pytorch-lightning_version": lightning.__version__,
            "config": self.config,
            "epoch": position[0],
            "batch": position[1],
            "global_step": trainer.global_step,
            **({} if member.stopped is None else {"stopped_early": member.stopped._asdict()}),
            **({} if member.finishing is None else {"finishing": member.finishing}),
            "metrics": {},
            # saving a view would save its whole storage
            "state_dict": {
                name: value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
                for name, value in member.task.state_dict().items()
            },
            "callbacks": {key: state for key, state in states if state},
            **member.training_state(),
        }

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace a checkpoint; safe to call concurrently for different members."""
        buffer = io.BytesIO()
        # flushes the rows of metrics.jsonl to the disk
        torch.save({**content, "metrics": self.run.metrics_so_far()}, buffer)
        # before last.ckpt: a run killed between the two repeats this step
        if name == "last" and self.best:
            write_checkpoint(self.run.checkpoints / "best.ckpt", buffer.getvalue())
        keep = self.run.checkpoints / "previous.ckpt" if name == "last" else None
        write_checkpoint(self.run.checkpoints / f"{name}.ckpt", buffer.getvalue(), keep)
        self.best = False


class SaveCheckpoints(Callback):
    """Save all members before the first step, every n epochs, every ``every_s`` seconds, and at the end.

    Values that are not finite are not saved: :class:`DivergedError` ends the member instead.

    Args:
        bridge: the bridge to the members.
        every_n_epochs: save every n epochs.
        every_s: maximum age of last.ckpt; 0 saves after every step.
    """

    def __init__(self, bridge: Bridge, every_n_epochs: int, every_s: float) -> None:
        self.bridge, self.every_n_epochs, self.every_s = bridge, every_n_epochs, every_s
        self.due = False
        self.position = (0, 0)
        self.resumed = False
        self.saved: tuple[int, int] | None = None
        self.saved_at = 0.0
        self.spent_s = 0.0

    def resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Continue at the position of the checkpoint from which all members were resumed."""
        self.position, self.resumed = checkpoint.position, True
        if not checkpoint.position[1]:
            # a run with more epochs stops early at the same step
            self.bridge.stop_finishing_members(trainer, checkpoint.position[0], checkpoint.step)
        self.saved = checkpoint.position if checkpoint.path.name == "last.ckpt" else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before any observer writes, so that a full disk is reported once
        self.saved_at = time.monotonic()
        if not self.resumed:
            self._save(trainer, "init")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.position = (trainer.current_epoch, batch_idx)
        if trainer.fit_loop.restarting:
            # otherwise Lightning skips ReduceLROnPlateau at the end of a resumed epoch
            trainer.fit_loop.restarting = False
        stopped = [member for member in self.bridge.active if member.stopped is not None]
        if self.due or any_process(trainer, time.monotonic() - self.saved_at >= self.every_s):
            self.save_last(trainer)
        elif stopped:
            self._save(trainer, "last", stopped)
        for member in stopped:
            member.pause()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        # the epoch's row is logged after this hook, so save in the next one
        self.due = self.due or done % self.every_n_epochs == 0 or done == trainer.max_epochs
        for member in self.bridge.active:
            if self.due or member.stopped is not None:
                checkpoints_of(member).update_best(member, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.position = divmod(trainer.global_step, int(trainer.num_training_batches))
        for member in self.bridge.active:
            if member.stopped is not None:
                checkpoints_of(member).update_best(member, trainer.global_step)
        self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Replace last.ckpt unless it already has this position."""
        if self.saved == self.position:
            return
        began = time.perf_counter()
        self._save(trainer, "last")
        self.due = False
        self.saved, self.saved_at = self.position, time.monotonic()
        self.spent_s += time.perf_counter() - began

    def _save(self, trainer: Trainer, name: str, members: Sequence[Member] | None = None) -> None:
        ready: list[tuple[Member, Callable[[], object]]] = []
        for member in self.bridge.active if members is None else members:
            with member.ending_on_error(), member.log_to_member():
                for logger in member.loggers:
                    if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                        logger.experiment.flush()
                saver = checkpoints_of(member)
                ready.append((member, partial(saver.write, name, saver.content(trainer, member, self.position))))
        if trainer.is_global_zero:
            for (member, _), error in zip(ready, run_concurrently([write for _, write in ready]), strict=True):
                with member.ending_on_error():
                    if error is not None:
                        raise error
        trainer.strategy.barrier()
        self.bridge.require_running()


def checkpoints_of(member: Member) -> MemberCheckpoints:
    """Return the observer that writes the checkpoints of a member."""
    (checkpoints,) = (observer for observer in member.observers if isinstance(observer, MemberCheckpoints))
    return checkpoints


def run_concurrently(functions: Sequence[Callable[[], object]]) -> list[Exception | None]:
    """Run functions that wait for the disk in a thread pool; return the exception of each, or None."""

    def attempt(function: Callable[[], object]) -> Exception | None:
        try:
            function()
        except Exception as error:
            return error
        return None

    if len(functions) == 1:
        return [attempt(functions[0])]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(attempt, functions))


def resume_at(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Set Lightning's loops to the position of a checkpoint."""
    trainer.fit_loop.load_state_dict(_counters(trainer, *checkpoint.position, checkpoint.step))


def _counters(trainer: Trainer, epoch: int, batch: int, step: int) -> dict[str, Any]:
    """Return the state of Lightning's loops after ``epoch`` epochs and ``batch`` further batches."""

    def fill(counters: dict[str, int], done: int, started: int | None = None) -> None:
        for name in counters:
            counters[name] = done if started is None or name in ("processed", "completed") else started

    state: dict[str, Any] = trainer.fit_loop.state_dict()
    for part in ("total", "current"):
        # Lightning treats an epoch that is started but not completed as a restart
        fill(state["epoch_progress"][part], epoch, epoch + (batch > 0))
        fill(state["epoch_loop.batch_progress"][part], step if part == "total" else batch)
        for progress in state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values():
            fill(progress[part], step if part == "total" else batch)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    return state


def any_process(trainer: Trainer, value: bool) -> bool:
    """Return True if ``value`` is true in any process; ddp reduces it only at logged steps, because it blocks."""
    if trainer.world_size == 1:
        return value
    return is_logged_step(trainer) and trainer.strategy.reduce_boolean_decision(value, all=False)
