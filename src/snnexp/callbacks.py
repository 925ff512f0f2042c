"""What happens around the training loop: logging to the run, checkpoints, guards, signals."""

import io
import logging
import math
import pickle
import signal
import threading
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from snnexp import runs
from snnexp.errors import CheckpointError, DivergedError, InterruptedRunError
from snnexp.neurons import Neuron
from snnexp.runs import Run

LOG = logging.getLogger(__name__)
ADVICE = "a lower optimizer.lr may help"


class RunLogger(Logger):
    """Logged metrics go to the run's metrics.jsonl."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return "run"

    @property
    def version(self) -> str:
        return self.run.path.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        self.run.log_metrics({"step": step, "epoch": None if epoch is None else int(epoch), **values})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run keeps its whole config already."""

    def finalize(self, status: str) -> None:
        self.run.close()


class RunCheckpointIO(CheckpointIO):
    """Checkpoints with a checksum, replaced atomically, read as plain tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        runs.write_checkpoint(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        content = io.BytesIO(runs.read_checkpoint(Path(path)))
        try:
            return torch.load(content, map_location=map_location, weights_only=True)  # type: ignore[no-any-return]
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{path}: not a checkpoint of plain tensors, so it is not trusted") from error

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Callback):
    """init.ckpt before the first step; every n epochs and at the end last.ckpt, and best.ckpt if the loss was lowest.

    That loss is ``val/loss`` with a validation split, else the training loss averaged over the epoch. Weights that are
    not finite are not saved: :class:`DivergedError` is raised and the checkpoint before stays.
    """

    def __init__(self, folder: Path, every_n_epochs: int) -> None:
        self.folder = folder
        self.every_n_epochs = every_n_epochs
        self.lowest = float("inf")

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lowest = state_dict["lowest"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / "init.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self.every_n_epochs and done != trainer.max_epochs:
            return
        metrics = trainer.callback_metrics
        loss = float(metrics["val/loss" if "val/loss" in metrics else "train/epoch_loss"])
        best = loss < self.lowest
        if best:
            self.lowest = loss
        self.save_last(trainer)
        if best and trainer.is_global_zero:
            runs.write_checkpoint(self.folder / "best.ckpt", (self.folder / "last.ckpt").read_bytes())

    def save_last(self, trainer: Trainer) -> None:
        """Replace last.ckpt if every weight is finite, else raise :class:`DivergedError`."""
        for name, weight in trainer.lightning_module.named_parameters():
            if not torch.isfinite(weight).all():
                raise DivergedError(f"{_short(name)} is not finite after step {trainer.global_step}; {ADVICE}")
        trainer.save_checkpoint(self.folder / "last.ckpt")


class DivergenceGuard(Callback):
    """Raise :class:`DivergedError` for a loss that is NaN or infinite, at logged steps, validation and test.

    Processes of ddp see different samples and decide together, so that none waits for one that has stopped.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # reading the loss waits for the device, so it is not read at every step
        if _at_logged_step(trainer):
            self._require_finite("loss", outputs["loss"], trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._require_finite("validation loss", trainer.callback_metrics["val/loss"], trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._require_finite("test loss", trainer.callback_metrics["test/loss"], trainer)

    @staticmethod
    def _require_finite(name: str, loss: Tensor, trainer: Trainer) -> None:
        value = loss.item()
        if trainer.strategy.reduce_boolean_decision(not math.isfinite(value), all=False):
            what = f"{name} of another process is not finite" if math.isfinite(value) else f"{name} is {value:g}"
            raise DivergedError(f"the {what} after step {trainer.global_step}; {ADVICE}")


class ProjectParameters(Callback):
    """After each step, learned neuron parameters go back to where their equation holds; the run says so once."""

    def __init__(self) -> None:
        self.left: dict[str, Tensor] = {}
        self.told = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, neuron in _neurons(pl_module).items():
            left = neuron.project()
            if left is not None:
                # accumulated on the device and read once per epoch: reading waits for the device
                self.left[name] = self.left[name] | left if name in self.left else left

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = [name for name, left in self.left.items() if left.item()]
        if names and not self.told:
            self.told = True
            LOG.warning("training drove time constants of %s out of range; they were projected back", ", ".join(names))


class SeedMeanLoss(Callback):
    """``test/seed_mean_loss``: the mean of all training losses and one final L1, as the regression tutorial reports it.

    The tutorial prints this mean under the name "Mean L1-loss"; the true L1 is ``test/l1``.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": torch.stack(self.losses) if self.losses else torch.zeros(0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = list(state_dict["losses"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach())

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        l1 = trainer.callback_metrics["test/l1"]
        pl_module.log(
            "test/seed_mean_loss", torch.stack([*self.losses, l1.to(pl_module.device)]).mean(), sync_dist=True
        )


class ParameterHistograms(Callback):
    """Histograms of all parameters in TensorBoard, at the start and every n epochs."""

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer, pl_module)

    @staticmethod
    def _write(trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for name, parameter in pl_module.named_parameters():
                    tag = _short(name).replace(".", "/")
                    logger.experiment.add_histogram(tag, parameter.detach().cpu(), trainer.global_step)


class Signals(Callback):
    """SIGINT and SIGTERM: finish the step, save last.ckpt, stop; outside of training, or a second time, at once."""

    numbers = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.training = False
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        # Python lets only the main thread handle signals; elsewhere whoever started the thread does
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._handle) for number in self.numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        second, self.received = self.received is not None, number
        if second or not self.training:
            raise InterruptedRunError(number)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has put a handler of its own in front, which ends a run with exit code 0
        for number in self.previous:
            signal.signal(number, self._handle)
        self.training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size > 1:
            # a save waits for all processes, so all must know that one was told to stop
            if not _at_logged_step(trainer):
                return
            if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
                self.received = self.received or signal.SIGTERM
        if self.received is not None:
            self.checkpoints.save_last(trainer)
            raise InterruptedRunError(self.received)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = False
        if self.received is not None:
            raise InterruptedRunError(self.received)


def _at_logged_step(trainer: Trainer) -> bool:
    return trainer.is_last_batch or trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def _short(name: str) -> str:
    """A parameter as a person knows it: ``hidden1.neuron.beta``, with ``log_`` where its logarithm is kept."""
    layer, _, leaf = name.removeprefix("network.layers.").removesuffix(".original").rpartition(".")
    return f"{layer.removesuffix('.parametrizations')}.{'log_' if name.endswith('.original') else ''}{leaf}"


def _neurons(pl_module: LightningModule) -> dict[str, Neuron]:
    return pl_module.network.neurons()  # type: ignore[operator, union-attr, no-any-return]
