"""When members are saved: after epochs, and as time passes; and what of them."""

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
from snnexp.training.observers import at_logged_step, require_finite_parameters

THREADS = 8
"""How many members are written at once: their flushes to the disk become one."""


class MemberCheckpoints(Observer):
    """The checkpoints of a member: init.ckpt, then last.ckpt, the one before it as previous.ckpt, and best.ckpt.

    Best is the lowest ``val/loss`` with a validation split, else the lowest training loss averaged over the epoch.

    Args:
        run: where to.
        config: the run's config, JSON.
    """

    state_key = "checkpoints"

    def __init__(self, run: Run, config: str) -> None:
        self.run, self.config = run, config
        self.lowest = float("inf")
        self.best = False
        self.compared_at: int | None = None
        """The step of the newest comparison."""

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        self.lowest = state_dict["lowest"]

    def promote_to_last(self, path: Path) -> None:
        """Let last.ckpt be another of the checkpoints."""
        if path.name != "last.ckpt":
            write_checkpoint(self.run.checkpoints / "last.ckpt", read_checkpoint(path))

    def compare(self, member: Member, step: int) -> None:
        """See, once, whether the epoch that has just ended with this step is the best."""
        if self.compared_at == step:
            return
        self.compared_at = step
        loss = float(member.metrics["val/loss" if "val/loss" in member.metrics else "train/epoch_loss"])
        self.best = loss < self.lowest
        self.lowest = min(loss, self.lowest)

    def content(self, trainer: Trainer, member: Member, position: tuple[int, int]) -> dict[str, Any]:
        """What a checkpoint holds between two steps, less what :meth:`write` adds; processes of ddp ask each other.

        Raises:
            DivergedError: a number is not finite.
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
            # a view would be saved with all that it is a view of
            "state_dict": {
                name: value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
                for name, value in member.task.state_dict().items()
            },
            "callbacks": {key: state for key, state in states if state},
            **member.training_state(),
        }

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace a checkpoint; other members may be written at the same time."""
        buffer = io.BytesIO()
        # whose rows wait for the disk as the checkpoint does
        torch.save({**content, "metrics": self.run.metrics_so_far()}, buffer)
        # before last.ckpt: a run that is killed between the two will come by here again
        if name == "last" and self.best:
            write_checkpoint(self.run.checkpoints / "best.ckpt", buffer.getvalue())
        keep = self.run.checkpoints / "previous.ckpt" if name == "last" else None
        write_checkpoint(self.run.checkpoints / f"{name}.ckpt", buffer.getvalue(), keep)
        self.best = False


class SaveCheckpoints(Callback):
    """Save all members: before the first step, then after every n epochs, at the end, and as time passes.

    Numbers that are not finite are not saved: :class:`DivergedError` ends the member instead.

    Args:
        bridge: knows the members.
        every_n_epochs: n.
        every_s: how old last.ckpt may become; 0 saves after every step.
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
        """Begin at the place that a checkpoint holds, from which all members were resumed."""
        self.position, self.resumed = checkpoint.position, True
        if not checkpoint.position[1]:
            # a run that has become longer stops where it would have stopped
            self.bridge.stop_finishing_members(trainer, checkpoint.position[0], checkpoint.step)
        self.saved = checkpoint.position if checkpoint.path.name == "last.ckpt" else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before any observer writes: a disk that is full is told once
        self.saved_at = time.monotonic()
        if not self.resumed:
            self._save(trainer, "init")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.position = (trainer.current_epoch, batch_idx)
        if trainer.fit_loop.restarting:
            # at the end of an epoch that was resumed, Lightning would not step a schedule that watches a measure
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
        # the epoch's own row is logged after this hook, so saving waits for the next one
        self.due = self.due or done % self.every_n_epochs == 0 or done == trainer.max_epochs
        for member in self.bridge.active:
            if self.due or member.stopped is not None:
                checkpoints_of(member).compare(member, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.position = divmod(trainer.global_step, int(trainer.num_training_batches))
        for member in self.bridge.active:
            if member.stopped is not None:
                checkpoints_of(member).compare(member, trainer.global_step)
        self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Replace last.ckpt, unless it holds this place already."""
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
            for (member, _), error in zip(ready, run_concurrently([act for _, act in ready]), strict=True):
                with member.ending_on_error():
                    if error is not None:
                        raise error
        trainer.strategy.barrier()
        self.bridge.require_running()


def checkpoints_of(member: Member) -> MemberCheckpoints:
    """What writes the checkpoints of a member."""
    (found,) = (observer for observer in member.observers if isinstance(observer, MemberCheckpoints))
    return found


def run_concurrently(acts: Sequence[Callable[[], object]]) -> list[Exception | None]:
    """Carry out what waits for the disk for all members at once, whose flushes become one; what each has raised."""

    def attempt(act: Callable[[], object]) -> Exception | None:
        try:
            act()
        except Exception as error:
            return error
        return None

    if len(acts) == 1:
        return [attempt(acts[0])]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(attempt, acts))


def resume_at(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Let Lightning's loops begin at the place that a checkpoint holds."""
    trainer.fit_loop.load_state_dict(_counters(trainer, *checkpoint.position, checkpoint.step))


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


def any_process(trainer: Trainer, wish: bool) -> bool:
    """Whether any process wishes so; those of ddp ask each other at logged steps only, for that makes them wait."""
    if trainer.world_size == 1:
        return wish
    return at_logged_step(trainer) and trainer.strategy.reduce_boolean_decision(wish, all=False)
