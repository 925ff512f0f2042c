"""What a person sees in the terminal; quiet, plain lines where nobody watches."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.tree import Tree

from snnexp.domains import shown

SHOWN = {
    "train/accuracy": "accuracy",
    "val/loss": "val loss",
    "val/accuracy": "val accuracy",
}
"""Logged metrics that stand beside the loss while training."""


class Terminal(Console):
    """A console whose reader may leave: nothing more is shown then, and the run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """The terminal, or plain text whose lines are never broken where there is none."""
    watched = sys.stdout.isatty()
    return Terminal(file=sys.stdout, highlight=False, soft_wrap=not watched, width=None if watched else 240)


def config_tree(title: str, cfg: Mapping[str, Any]) -> Tree:
    """A config as a tree, in the order in which data flow."""
    tree = Tree(f"[bold]{title}[/]", guide_style="dim")
    _grow(tree, cfg)
    return tree


def _grow(tree: Tree, node: Mapping[str, Any]) -> None:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            target = str(value.get("_target_", "")).rpartition(".")[2]
            # a class says what was chosen; the function that makes the data or the trainer says nothing
            name = target if target[:1].isupper() else ""
            rest = {inner: entry for inner, entry in value.items() if inner != "_target_"}
            _grow(tree.add(f"[cyan]{escape(key)}[/] {escape(name)}".rstrip()), rest)
        elif value != {}:
            tree.add(f"{escape(key)} [dim]=[/] {escape(shown(value))}")


def result_table(metrics: Mapping[str, float], published: Mapping[str, float]) -> Table:
    """The test measures, with the published figure beside those that have one."""
    table = Table(box=None, pad_edge=False)
    table.add_column("measure")
    table.add_column("measured", justify="right")
    if published:
        table.add_column("published", justify="right")
    for name, value in metrics.items():
        figure = published.get(name)
        table.add_row(name, number(value), *([("" if figure is None else number(figure))] if published else []))
    return table


def number(value: float) -> str:
    """Four significant digits, or all before the point of a larger number that can still be read."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


class ProgressDisplay(Callback):
    """Epoch, batch, loss and accuracy: a live bar in a terminal, now and then a line elsewhere."""

    plain_every_s = 20.0

    def __init__(self, terminal: Console) -> None:
        self.terminal = terminal
        self.bar: Progress | None = None
        self.drawn_at = 0.0
        self.started_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started_at = self.drawn_at = time.monotonic()
        if self.terminal.is_terminal:
            columns = (
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[values]}"),
            )
            self.bar = Progress(*columns, console=self.terminal, refresh_per_second=4, transient=True)
            self.task = self.bar.add_task("", total=self._steps(trainer), epoch="", values="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        # reading the loss waits for the device, so it is read a few times per second at most
        if self.bar is not None and now - self.drawn_at > 0.25:
            self.drawn_at = now
            self.bar.update(
                self.task,
                completed=trainer.global_step,
                epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
                values=self._values(trainer, f"loss {number(outputs['loss'].item())}"),
            )
        elif self.bar is None and now - self.drawn_at > self.plain_every_s:
            self.drawn_at = now
            self._line(trainer, f"loss {number(outputs['loss'].item())}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        loss = trainer.callback_metrics["train/epoch_loss"]
        self._line(trainer, f"mean loss {number(float(loss))}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, trainer: Trainer, loss: str) -> None:
        seconds = time.monotonic() - self.started_at
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 1)
        step = f"step {trainer.global_step}/{self._steps(trainer)}"
        self.terminal.print(
            f"epoch {epoch}/{trainer.max_epochs}  {step}  {self._values(trainer, loss)}  {seconds:.0f} s"
        )

    @staticmethod
    def _steps(trainer: Trainer) -> int:
        return int(trainer.estimated_stepping_batches)

    @staticmethod
    def _values(trainer: Trainer, loss: str) -> str:
        logged = trainer.callback_metrics
        values = [f"{label} {float(logged[name]):.4f}" for name, label in SHOWN.items() if name in logged]
        return "  ".join([loss, *values])


def show_path(path: Path) -> str:
    """``path`` as short as it can be typed from here, for :class:`Console.print`."""
    here = Path.cwd()
    return escape(str(path.relative_to(here) if path.is_relative_to(here) else path))


def tell(sentence: str) -> None:
    """A warning to the person, beside whatever is being shown."""
    print(f"snnexp: {sentence}", file=sys.stderr)


class LogFile(logging.FileHandler):
    """A disk that says no is told like everywhere else, and not as a traceback between the lines."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        raise


@contextmanager
def quiet(log: Path | None = None) -> Iterator[None]:
    """Lightning's notes and Python's warnings go to ``log``; our own warnings reach the person as well."""
    handler = LogFile(log, encoding="utf-8", delay=True) if log else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("snnexp: %(message)s"))
    handlers_of: dict[str, list[logging.Handler]] = {
        name: [handler] for name in ("lightning.pytorch", "lightning.fabric", "py.warnings")
    }
    handlers_of["snnexp"] = [handler, shown] if log else [handler]
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in handlers_of}
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(True)
        for name, handlers in handlers_of.items():
            logging.getLogger(name).handlers = list(handlers)
            logging.getLogger(name).propagate = name == "snnexp"
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for name, (handlers, propagate) in before.items():
                logging.getLogger(name).handlers = handlers
                logging.getLogger(name).propagate = propagate
            handler.close()
