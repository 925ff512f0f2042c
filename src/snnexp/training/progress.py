"""Progress of a run: a live bar in a terminal, a line at intervals elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from snnexp.terminal import format_duration
from snnexp.text import format_number

METRIC_LABELS = {
    "train/accuracy": "acc",
    "val/loss": "val loss",
    "val/accuracy": "val acc",
}
"""Logged metrics shown next to the training loss."""
DISPENSABLE = ("val loss", "val acc", "samples", "firing", "acc")
"""Parts dropped in a narrow terminal, in this order."""


class ProgressDisplay(Callback):
    """Show epoch, loss, accuracy, mean firing rate of the layers, samples per second and remaining time.

    A live bar in a terminal, a line every ``plain_every_s`` seconds elsewhere.
    """

    plain_every_s = 20.0
    live_every_s = 0.25
    shortest_bar = 8

    def __init__(self, terminal: Console) -> None:
        self.terminal = terminal
        self.bar: Progress | None = None
        self.drawn_at = 0.0
        self.started_at = 0.0
        self.first_step = self.samples = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started_at = self.drawn_at = time.monotonic()
        self.first_step, self.samples = trainer.global_step, 0
        if self.terminal.is_terminal:
            words = [TextColumn(f"{{task.fields[{name}]}}") for name in ("epoch", "values")]
            columns = (words[0], BarColumn(bar_width=None), words[1])
            # no refresh thread: a fork of data workers could copy its held locks, and block their output
            self.bar = Progress(*columns, console=self.terminal, auto_refresh=False, transient=True, expand=True)
            self.task = self.bar.add_task("", total=self._steps(trainer), epoch=self._epoch(trainer), values="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += outputs["samples"] * trainer.world_size
        now = time.monotonic()
        # reading the loss synchronizes with the device, so do it a few times per second at most
        if now - self.drawn_at < (self.plain_every_s if self.bar is None else self.live_every_s):
            return
        self.drawn_at = now
        parts = self._parts(trainer, f"loss {format_number(outputs['unregularized_loss'].item())}", now)
        done, steps = trainer.global_step - self.first_step, self._steps(trainer)
        if done > 0:
            parts["left"] = f"{format_duration((steps - trainer.global_step) * (now - self.started_at) / done)} left"
        epoch = self._epoch(trainer)
        if self.bar is None:
            step = f"step {trainer.global_step}/{steps}"
            self.terminal.print(fit_line({"epoch": epoch, "step": step, **parts}, None))
        else:
            room = self.terminal.width - len(epoch) - self.shortest_bar - 2
            values = fit_line(parts, room)
            self.bar.update(self.task, completed=trainer.global_step, epoch=epoch, values=values, refresh=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        now = time.monotonic()
        loss = float(trainer.callback_metrics["train/epoch_loss"])
        step = f"step {trainer.global_step}/{self._steps(trainer)}"
        parts = {
            "epoch": f"epoch {trainer.current_epoch}/{trainer.max_epochs}",
            "step": step,
            **self._parts(trainer, f"mean loss {format_number(loss)}", now),
        }
        parts["seconds"] = f"{now - self.started_at:.0f} s"
        self.terminal.print(fit_line(parts, self.terminal.width if self.terminal.is_terminal else None))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    @staticmethod
    def _steps(trainer: Trainer) -> int:
        return int(trainer.estimated_stepping_batches)

    @staticmethod
    def _epoch(trainer: Trainer) -> str:
        return f"epoch {min(trainer.current_epoch + 1, trainer.max_epochs or 1)}/{trainer.max_epochs}"

    def _parts(self, trainer: Trainer, loss: str, now: float) -> dict[str, str]:
        logged = trainer.callback_metrics
        parts = {"loss": loss}
        parts |= {
            label: f"{label} {float(logged[name]):.3f}" for name, label in METRIC_LABELS.items() if name in logged
        }
        rates = [float(rate) for name, rate in logged.items() if name.startswith("train/firing_rate/")]
        if rates:
            parts["firing"] = f"firing {sum(rates) / len(rates):.3f}"
        if now > self.started_at:
            parts["samples"] = f"{self.samples / (now - self.started_at):.0f} samples/s"
        return parts


def fit_line(parts: Mapping[str, str], width: int | None) -> str:
    """Join the parts of a line, dropping :data:`DISPENSABLE` ones until it fits ``width``."""
    kept = dict(parts)
    for name in DISPENSABLE:
        if width is not None and len("  ".join(kept.values())) > width:
            kept.pop(name, None)
    return "  ".join(kept.values())
