"""Snapshots of a network on a fixed batch of samples: recorded as arrays, and drawn.

A snapshot maps names to NumPy arrays; T time steps, N neurons and K outputs, a subset for large layers:

    step                                           completed training steps
    num_steps                                      number of time steps; at most the first MAX_STEPS are shown
    input_steps                                    time steps with real-valued input; 0 for spikes
    connections/<layer>                            synapses from other layers, if known
    products/<layer>                               products of values and weights before the layer, per sample
    layers, dt                                     names; seconds per time step, if the neuron has a unit of time
    hidden_unknown                                 True if layers within the network are unknown
    neurons/<layer> [N], spikes/<layer> [T, N]     indices of the neurons shown, and their spikes, of the first sample
    size/<layer>                                   number of neurons
    membrane [T, K], threshold [K]                 of the readout, of the first sample
    trajectory [T, S], target [T, S]               regression: output and target of S samples
    images [S, ...], label [B], predicted [B]      classification
    population                                     outputs per class, if more than one
    gradient/<layer> [T]                           || dL / dI[t] || over batch and neurons, I the layer's current
    gradient_norm/<name>, norm/<name>              || dL / dw || and || w || of each trained parameter
    parameter/<layer>/<name> [N]                   beta, threshold, tau_mem_inv, ...

The loss is the training loss. A snapshot does not change the random states or the state of the network.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from snnexp import metrics
from snnexp.data import DataModule
from snnexp.decoders import Decoder
from snnexp.errors import InterruptedRunError
from snnexp.figures import style
from snnexp.figures.snapshots import live_pictures
from snnexp.isolation import random_states, restored
from snnexp.record.run import Run
from snnexp.seeds import fold, seed_all
from snnexp.sparse import SparseSpikes
from snnexp.training.contracts import unchanged
from snnexp.training.members import Member, Observer
from snnexp.training.observers import EvaluationCounts, display_name
from snnexp.training.task import Task

LOG = logging.getLogger(__name__)
MAX_SAMPLES, MAX_IMAGES, MAX_TRAJECTORIES = 64, 27, 4
"""Maximum batch size, and how many of its samples are shown."""
MAX_NEURONS, MAX_STEPS = 400, 1000
"""Maximum number of values shown per sample."""
MAX_STATES = 2**24
"""Maximum of steps times samples times neurons: unlike training, a snapshot stores all of them for the gradient."""
MAX_IMAGE_BYTES = 2**22


def snapshot(task: Task, batch: tuple[Tensor, Tensor], decoder: Decoder | None) -> dict[str, Any]:
    """Return the snapshot of ``task`` on ``batch``; see the module docstring.

    Args:
        task: on the device of the batch.
        batch: inputs and targets from the data.
        decoder: predicts a class from the readout; None for regression.
    """
    values, target = batch
    neurons = task.network.neurons()
    inputs = task.encode(values)
    currents, traces = zip(*task.network.with_currents(inputs), strict=True)
    loss = task.compare(traces, target)
    arrays: dict[str, Any] = {"layers": list(neurons), "num_steps": traces[-1].num_steps}
    arrays["hidden_unknown"] = not task.network.layers_known
    arrays |= _connections(task, inputs) | _gradients(task, loss, currents)
    for (name, neuron), trace in zip(neurons.items(), traces, strict=True):
        count = trace.membrane[0, 0].numel()
        chosen = torch.linspace(0, count - 1, min(count, MAX_NEURONS), device=values.device).round().long()
        arrays[f"neurons/{name}"], arrays[f"size/{name}"] = chosen, count
        if neuron.spikes:
            arrays[f"spikes/{name}"] = trace.spikes[:MAX_STEPS, 0].flatten(1)[:, chosen].bool()
        for parameter in neuron.parameter_names:
            arrays[f"parameter/{name}/{parameter}"] = getattr(neuron, parameter).flatten()
        if (step := getattr(neuron, "dt", None)) is not None:
            arrays["dt"] = step * neuron.time_unit_s
    arrays["membrane"] = traces[-1].membrane[:MAX_STEPS, 0].flatten(1)[:, chosen]
    for threshold in ("threshold", "v_th"):
        if hasattr(neuron, threshold):
            arrays["threshold"] = getattr(neuron, threshold).expand(neuron.features).flatten()[chosen]
    if decoder is None:
        shown = traces[-1].membrane[:MAX_STEPS, :MAX_TRAJECTORIES]
        arrays["trajectory"] = shown.flatten(2)[..., 0]
        # a target without time applies to all steps
        trajectory = target.expand_as(traces[-1].membrane)[:MAX_STEPS, :MAX_TRAJECTORIES]
        arrays["target"] = trajectory.flatten(2)[..., 0]
    elif target.ndim == 1:
        arrays["label"], arrays["predicted"] = target, decoder(traces[-1])
        arrays |= {"population": population} if (population := decoder.neurons(1)) > 1 else {}
        # sequences are not images
        if values.ndim < len(inputs.shape):
            arrays["images"] = values[: min(MAX_IMAGES, MAX_IMAGE_BYTES // values[0].nbytes)]
    return {name: _array(value) if isinstance(value, Tensor) else value for name, value in arrays.items()}


def _connections(task: Task, inputs: Tensor | SparseSpikes) -> dict[str, Any]:
    """Return the numbers of synapses and of products of values and weights, by layer."""
    steps = 0 if task.inputs_are_spikes else inputs.shape[0]
    arrays: dict[str, Any] = {"input_steps": steps}
    unknown: set[str] = set()
    for name, features, synapse, values in task.network.connections(inputs.shape[2:]):
        if synapse is None:
            unknown.add(name)
            continue
        count = metrics.synaptic_operations(torch.ones(1, 1, *features, device=task.device), synapse)
        arrays[f"connections/{name}"] = arrays.get(f"connections/{name}", 0) + count
        times = {"input": steps, "constant": inputs.shape[0], "values": task.network.num_steps}.get(values, 0)
        arrays[f"products/{name}"] = arrays.get(f"products/{name}", 0) + count * times
    return {key: value for key, value in arrays.items() if key.partition("/")[2] not in unknown}


def _gradients(task: Task, loss: Tensor, currents: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    trained = {display_name(name): weight for name, weight in task.named_parameters() if weight.requires_grad}
    # autograd.grad does not change parameter.grad, which the optimizer reads
    # a current that depends on no trained parameter has no gradient
    reached = [[part for part in current if part.requires_grad] for current in currents]
    parts = [part for current in reached for part in current]
    gradients = torch.autograd.grad(loss, [*parts, *trained.values()], allow_unused=True)
    arrays = {f"norm/{name}": torch.linalg.vector_norm(weight) for name, weight in trained.items()}
    begin = 0
    for name, current in zip(task.network.neurons(), reached, strict=True):
        steps = [each for each in gradients[begin : begin + len(current)] if each is not None]
        begin += len(current)
        if steps:
            whole = torch.cat([*steps])
            arrays[f"gradient/{name}"] = torch.linalg.vector_norm(whole.flatten(1), dim=1)
    for name, gradient in zip(trained, gradients[len(parts) :], strict=True):
        if gradient is not None:
            arrays[f"gradient_norm/{name}"] = torch.linalg.vector_norm(gradient)
    return arrays


def _array(value: Tensor) -> NDArray[Any]:
    # NumPy has no bfloat16
    value = value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value
    array: NDArray[Any] = value.detach().cpu().numpy()
    return array


class Probe(Observer):
    """Record and draw snapshots of a fixed batch before training, after epochs and at the end.

    Writes ``probe/init.npz`` before the first step, ``last.npz`` for the latest snapshot, and ``test.npz`` with totals
    of the test split. Figures of the latest snapshot are in ``figures/`` and in TensorBoard. The batch is the first of
    the validation split, or of the test split if there is none; it is only displayed.

    Args:
        run: the run.
        data: its data.
        decoder: see :func:`snapshot`.
        counts: totals of the test split.
        seed: for random encoders.
        every_n_epochs: draw every n epochs; 0 for never.
        every_s: minimum seconds between drawings; the end of a run is always drawn.
    """

    def __init__(
        self,
        run: Run,
        data: DataModule,
        decoder: Decoder | None,
        counts: EvaluationCounts,
        seed: int,
        every_n_epochs: int,
        every_s: float,
    ) -> None:
        self.run, self.data, self.decoder, self.counts, self.seed = run, data, decoder, counts, seed
        self.every_n_epochs, self.every_s = every_n_epochs, every_s
        self.drawn_at = 0.0
        self.batch: tuple[Tensor, Tensor] | None = None
        """The batch, cached: a run that is interrupted while it waits for data cannot read any."""
        self.spent_s = {"fit": 0.0, "test": 0.0}
        """Seconds spent on recording and drawing while training, and after the test."""

    def on_train_start(self, trainer: Trainer, member: Member) -> None:
        self.drawn_at = time.monotonic()
        if trainer.global_step == 0 and self._is_enabled(trainer):
            with self._guarded(trainer):
                self.run.write_arrays("init", self._snapshot(trainer, member))

    def on_train_epoch_end(self, trainer: Trainer, member: Member) -> None:
        done = trainer.current_epoch + 1
        # the end is drawn after the test
        if not self._is_enabled(trainer) or done % self.every_n_epochs or done == trainer.max_epochs:
            return
        if time.monotonic() - self.drawn_at >= self.every_s:
            with self._guarded(trainer):
                self._draw(trainer, member, f"after epoch {done}", {})
            self.drawn_at = time.monotonic()

    def on_test_end(self, trainer: Trainer, member: Member) -> None:
        if self._is_enabled(trainer):
            with self._guarded(trainer):
                test = {"step": member.progress(trainer)[0], **_test_arrays(self.counts)}
                self.run.write_arrays("test", test)
                self._draw(trainer, member, "after training", test)

    def on_exception(self, trainer: Trainer, member: Member, exception: BaseException) -> None:
        # an interrupted run can be inspected before it is resumed
        if isinstance(exception, InterruptedRunError) and self.batch is not None:
            with self._guarded(trainer):
                self.run.write_arrays("last", self._snapshot(trainer, member))

    def _is_enabled(self, trainer: Trainer) -> bool:
        return bool(self.every_n_epochs) and trainer.is_global_zero

    @contextmanager
    def _guarded(self, trainer: Trainer) -> Iterator[None]:
        """Measure the time, and log errors instead of raising them: a figure must not end a run."""
        began = time.perf_counter()
        try:
            yield
        except InterruptedRunError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            LOG.warning("no figures after step %d: %s: %s", trainer.global_step, type(error).__name__, reason)
        finally:
            self.spent_s["test" if trainer.testing else "fit"] += time.perf_counter() - began

    def _draw(self, trainer: Trainer, member: Member, when: str, test: dict[str, Any]) -> None:
        current = self._snapshot(trainer, member)
        self.run.write_arrays("last", current)
        columns = {"before training": self.run.arrays("init"), when: current}
        for picture in live_pictures(columns, test):
            image = style.png(picture.figure, dpi=100)
            self.run.write_figure(f"{picture.name}.png", image)
            for logger in member.loggers:
                if isinstance(logger, TensorBoardLogger):
                    # TensorBoard opens the first two groups by name, which should be the losses
                    _add_image(logger.experiment, f"visualization/{picture.name}", image, trainer.global_step)

    def _snapshot(self, trainer: Trainer, member: Member) -> dict[str, Any]:
        task, device = member.task, member.task.device
        with (
            restored(random_states()),
            unchanged(task.network),
            # the test runs in inference mode
            torch.inference_mode(False),
            torch.enable_grad(),
            trainer.strategy.precision_plugin.forward_context(),
        ):
            seed_all(fold(self.seed, "probe"))
            # training mode, even after a test
            task.network.train()
            values, target = self.batch = self.batch or _first_batch(trainer, task, self.data)
            arrays = snapshot(task, (values.to(device), target.to(device)), self.decoder)
        return {"step": member.progress(trainer)[0], **arrays}


def _first_batch(trainer: Trainer, task: Task, data: DataModule) -> tuple[Tensor, Tensor]:
    samples = data.test if data.val is None else data.val
    states = task.network.num_steps * sum(math.prod(neuron.features) for neuron in task.network.neurons().values())
    size = max(1, min(MAX_SAMPLES, data.batch_size // trainer.world_size, len(samples), MAX_STATES // states))
    batch: tuple[Tensor, Tensor] = samples[list(range(size))]
    return batch


def _test_arrays(counts: EvaluationCounts) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "samples": counts.samples,
        "num_steps": counts.steps // counts.samples,
        "sample_steps": counts.steps,
    }
    arrays |= {f"spikes/{name}": count.flatten().cpu().numpy() for name, count in counts.spikes.items()}
    return arrays if counts.confusion is None else {**arrays, "confusion": counts.confusion.cpu().numpy()}


def _add_image(board: SummaryWriter, tag: str, image: bytes, step: int) -> None:
    """Add a PNG unchanged; TensorBoard's own functions would re-encode it."""
    value = Summary.Value(tag=tag, image=Summary.Image(encoded_image_string=image))
    board.file_writer.add_summary(Summary(value=[value]), step)  # type: ignore[attr-defined]
