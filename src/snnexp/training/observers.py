"""Observers of training and test: divergence, layer activity, parameter bounds, mean losses, counts, histograms."""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from snnexp import metrics
from snnexp.data.scaling import Scaling
from snnexp.decoders import Decoder
from snnexp.errors import DataError, DivergedError
from snnexp.losses import CrossEntropy
from snnexp.neurons import Neuron
from snnexp.training.members import Member, Observer
from snnexp.training.task import Task

LOG = logging.getLogger(__name__)
ADVICE = "a lower optimizer.lr may help"


class DivergenceGuard(Observer):
    """Raise :class:`DivergedError` for a loss, membrane or weight that is NaN or infinite, and name the layer.

    Checks every loss on a CPU, where this is cheap, otherwise only at logged steps; membranes and weights at logged
    steps. With ddp, all processes stop together, so that none waits for another.
    """

    def on_train_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        if outputs.get("finite"):
            return
        logged = is_logged_step(trainer)
        if not logged and (member.task.device.type != "cpu" or trainer.world_size > 1):
            return
        loss = outputs["minimized"].item()
        what = None if math.isfinite(loss) else f"the loss is {loss:g}"
        if logged or what:
            what = _locate_divergence(_neurons(member), outputs["traces"], what)
        self._require_no_divergence(what, trainer)
        if logged:
            require_finite_parameters(trainer, member)

    def on_validation_end(self, trainer: Trainer, member: Member) -> None:
        self._require_finite("validation loss", member.metrics["val/loss"].item(), trainer)

    def on_test_end(self, trainer: Trainer, member: Member) -> None:
        self._require_finite("test loss", member.metrics["test/loss"].item(), trainer)

    def _require_finite(self, name: str, loss: float, trainer: Trainer) -> None:
        self._require_no_divergence(None if math.isfinite(loss) else f"the {name} is {loss:g}", trainer)

    @staticmethod
    def _require_no_divergence(what: str | None, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(what is not None, all=False):
            what = what or "a value in another process is not finite"
            raise DivergedError(f"{what} after step {trainer.global_step}; {ADVICE}")


@torch.no_grad()
def _locate_divergence(layers: Iterable[str], traces: Sequence[Any], what: str | None) -> str | None:
    """Return ``what`` with the first layer whose state is not finite, else with the one of the largest state."""
    # NaN and infinity persist in a membrane, so the last step suffices
    highest = {
        name: max(part.abs().amax().item() if torch.isfinite(part).all() else math.inf for part in trace.state)
        for name, trace in zip(layers, traces, strict=True)
    }
    broken = [name for name, height in highest.items() if math.isinf(height)]
    if broken:
        return ", ".join(filter(None, [what, f"the membrane of {broken[0]} is not finite"]))
    if what:
        name = max(highest, key=lambda name: highest[name])
        return f"{what}, the membrane of {name} has reached {highest[name]:.0e}"
    return None


def require_finite_parameters(trainer: Trainer, member: Member) -> None:
    """Raise :class:`DivergedError` if a weight, or its optimizer state, is not finite."""
    states = member.optimizer_state()
    for name, weight in member.task.named_parameters():
        for kind, value in {"": weight, **states.get(weight, {})}.items():
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                what = f"{kind} of {display_name(name)}" if kind else display_name(name)
                raise DivergedError(f"{what} is not finite after step {trainer.global_step}; {ADVICE}")


class ActivityMonitor(Observer):
    """Warn once per layer that is dead (no neuron fires) or saturated (every neuron fires in every step).

    Logs ``train/dead/<layer>`` and ``train/saturated/<layer>``, the fractions of such neurons in a batch.

    Args:
        layers: layers whose spikes are read.
    """

    state_key = "quiet_layers"

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = layers
        self.reported: set[str] = set()

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        return {"told": "\n".join(sorted(self.reported))}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        self.reported = set(state_dict["told"].splitlines())

    def on_train_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for name, trace in zip(_neurons(member), outputs["traces"], strict=True):
                if name in self.layers:
                    count = trace.spike_count.detach()
                    member.log(f"train/dead/{name}", metrics.dead(count.sum(0)))
                    most = len(count) * trace.num_steps
                    member.log(f"train/saturated/{name}", metrics.saturated(count.sum(0), most))
            self._warn(trainer, member, "train")

    def on_validation_end(self, trainer: Trainer, member: Member) -> None:
        self._warn(trainer, member, "val")

    def on_test_end(self, trainer: Trainer, member: Member) -> None:
        self._warn(trainer, member, "test")

    def _warn(self, trainer: Trainer, member: Member, split: str) -> None:
        for layer in self.layers:
            rate = member.metrics.get(f"{split}/firing_rate/{layer}")
            kind = None if rate is None else {0.0: "dead", 1.0: "saturated"}.get(rate.item())
            message = f"{layer} is {kind}"
            if kind and message not in self.reported:
                self.reported.add(message)
                meaning = "none of its neurons fires" if kind == "dead" else "all of its neurons fire in every step"
                LOG.warning("%s after step %d: %s", message, trainer.global_step, meaning)


class ProjectParameters(Observer):
    """Project learned neuron parameters into their valid domain after each step; warn once."""

    state_key = "projection"

    def __init__(self) -> None:
        self.left: dict[str, Tensor] = {}
        self.reported = False

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        # otherwise a pending warning would be lost
        self.warn()
        return {"told": self.reported}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        self.reported = state_dict["told"]

    def on_train_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        for name, neuron in member.task.network.native_neurons().items():
            for parameter, left in neuron.project().items():
                # accumulated on the device and read once per epoch: reading waits for the device
                key = f"{name}.{parameter}"
                self.left[key] = self.left[key] | left if key in self.left else left

    def on_train_epoch_end(self, trainer: Trainer, member: Member) -> None:
        self.warn()

    def warn(self) -> None:
        """Warn if a parameter has left its domain."""
        names = [name for name, left in self.left.items() if left.item()]
        if names and not self.reported:
            self.reported = True
            message = "learned parameters left their domain and are projected back after each step: %s"
            LOG.warning(message, ", ".join(names))


class MeanLoss(Observer):
    """Abstract running mean of training losses, stored in checkpoints; ``sums`` are weighted losses and weights.

    Args:
        processes: number of ddp processes; each has its own sums.
    """

    def __init__(self, processes: int = 1) -> None:
        self.sums, self.processes = torch.zeros(2), processes

    @property
    def mean(self) -> Tensor:
        return self.sums[0] / self.sums[1]

    def add(self, loss: Tensor, weight: float) -> None:
        self.sums = self.sums.to(loss.device) + torch.stack([loss * weight, torch.full_like(loss, weight)])

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        if trainer is None:
            return {"sums": self.sums.repeat(self.processes, 1)}
        return {"sums": trainer.strategy.all_gather(self.sums).reshape(self.processes, 2)}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        self.sums = state_dict["sums"][rank]


class EpochLoss(MeanLoss):
    """Log ``train/epoch_loss``, the mean loss over the samples of an epoch."""

    state_key = "epoch_loss"

    def on_train_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        self.add(outputs["loss"].detach(), outputs["samples"])

    def on_train_epoch_end(self, trainer: Trainer, member: Member) -> None:
        member.log("train/epoch_loss", self.mean, sync_dist=True)
        self.sums = torch.zeros(2)


class TutorialMeanLoss(MeanLoss):
    """Log ``test/seed_mean_loss``: the mean of all training losses and the final L1, as in the regression tutorial.

    The tutorial prints this mean as "Mean L1-loss"; the actual L1 is ``test/l1``.
    """

    state_key = "seed_mean_loss"

    def on_train_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        self.add(outputs["loss"].detach(), 1)

    def on_test_epoch_end(self, trainer: Trainer, member: Member) -> None:
        l1 = member.metrics["test/l1"]
        mean = (self.sums[0] + l1.to(self.sums.device)) / (self.sums[1] + 1)
        member.log("test/seed_mean_loss", mean, sync_dist=True)


class ClassWeights(Observer):
    """Store the class weights of the loss, fitted on the training split, in checkpoints."""

    state_key = "class_weights"

    def __init__(self, task: Task) -> None:
        self.task = task

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        return {"weights": torch.tensor(cast(CrossEntropy, self.task.loss).class_weights, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        self.task.loss = replace(cast(Any, self.task.loss), class_weights=state_dict["weights"].tolist())


class InputScaling(Observer):
    """Store the input scaling, fitted on the training split, in checkpoints."""

    state_key = "scaling"

    def __init__(self, scaling: Scaling) -> None:
        self.scaling = scaling

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        return {name: torch.tensor(each, dtype=torch.float64) for name, each in self.scaling.numbers.items()}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        """Require the scaling of the same training samples.

        Raises:
            DataError: the scaling differs.
        """
        if not self.scaling.is_close(Scaling(**{name: tuple(each.tolist()) for name, each in state_dict.items()})):
            raise DataError(
                "data: the training samples differ from those that this run was trained with: their scaling differs"
            )


class EvaluationCounts(Observer):
    """Count spikes per neuron and the confusion matrix over the whole test split.

    Logs ``test/dead/<layer>`` and ``test/saturated/<layer>`` over all samples.

    Args:
        layers: layers whose spikes are read.
        decoder: predicts a class from the readout; None if the targets are not labels.
    """

    max_classes = 1000
    """The confusion matrix is not computed for more classes."""

    def __init__(self, layers: Sequence[str], decoder: Decoder | None) -> None:
        self.layers, self.decoder = layers, decoder
        self._reset()

    def _reset(self) -> None:
        self.spikes: dict[str, Tensor] = {}
        self.samples = self.steps = 0
        self.confusion: Tensor | None = None

    @property
    def only_class(self) -> int | None:
        """The class predicted for all samples; None if there are several, or without a confusion matrix."""
        if self.confusion is None:
            return None
        predicted = self.confusion.sum(0).nonzero().flatten().tolist()
        return predicted[0] if len(predicted) == 1 else None

    def on_test_start(self, trainer: Trainer, member: Member) -> None:
        self._reset()

    def on_test_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        traces = outputs["traces"]
        for (name, neuron), trace in zip(_neurons(member).items(), traces, strict=True):
            if neuron.spikes and name in self.layers:
                count = trace.spike_count
                self.spikes[name] = self.spikes.get(name, 0) + count.sum(0).long()
        self.samples += traces[-1].samples
        self.steps += traces[-1].samples * traces[-1].num_steps
        if self.decoder is None:
            return
        classes = self.decoder.scores(traces[-1]).shape[-1]
        if classes <= self.max_classes:
            pair = target * classes + self.decoder(traces[-1])
            counts = torch.bincount(pair.flatten(), minlength=classes**2).reshape(classes, classes)
            self.confusion = counts if self.confusion is None else self.confusion + counts

    def on_test_epoch_end(self, trainer: Trainer, member: Member) -> None:
        sums = torch.tensor([self.samples, self.steps], device=member.task.device)
        # if a batch has fewer samples than there are processes, each process evaluates all samples
        world = trainer.world_size
        copies = 1 if world == 1 else world // getattr(trainer.test_dataloaders.sampler, "world", world)  # type: ignore[union-attr]

        def total(counts: Tensor) -> Tensor:
            return cast(Tensor, trainer.strategy.reduce(counts, reduce_op="sum")) // copies

        self.samples, self.steps = total(sums).tolist()
        self.spikes = {name: total(count) for name, count in self.spikes.items()}
        if self.confusion is not None:
            self.confusion = total(self.confusion)
        for name, count in self.spikes.items():
            # already equal on all processes; sync_dist silences Lightning's warning
            member.log(f"test/dead/{name}", metrics.dead(count), sync_dist=True)
            member.log(f"test/saturated/{name}", metrics.saturated(count, self.steps), sync_dist=True)


class ParameterHistograms(Observer):
    """Write histograms ``weights/<layer>/...`` of all parameters to TensorBoard, at the start and every n epochs."""

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    def on_train_start(self, trainer: Trainer, member: Member) -> None:
        self._write(trainer, member)

    def on_train_epoch_end(self, trainer: Trainer, member: Member) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer, member)

    @staticmethod
    def _write(trainer: Trainer, member: Member) -> None:
        for logger in member.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for name, parameter in member.task.named_parameters():
                    tag = f"weights/{display_name(name).replace('.', '/')}"
                    logger.experiment.add_histogram(tag, parameter.detach().cpu(), trainer.global_step)


def is_logged_step(trainer: Trainer) -> bool:
    """Return True if the completed step is logged, or is the last of its epoch."""
    return trainer.is_last_batch or trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def display_name(name: str) -> str:
    """Return the display name of a parameter, such as ``hidden1.neuron.beta``; ``log_beta`` if stored as logarithm."""
    own = re.sub(r"^network\.(layers|module)\.", "", name)
    layer, _, leaf = own.removesuffix(".original").rpartition(".")
    return f"{layer.removesuffix('.parametrizations')}.{'log_' if name.endswith('.original') else ''}{leaf}"


def _neurons(member: Member) -> dict[str, Neuron]:
    return member.task.network.neurons()
