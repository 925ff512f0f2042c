"""Assemble a checked config into compatible parts: data, encoder, network, loss, task and trainer."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from snnexp import kernels, limits, metrics, terminal
from snnexp.config import decoding, factory, get_init_from, instantiate, make_network, targets, user_parts
from snnexp.data import DataModule
from snnexp.data.check import DataSummary, check
from snnexp.decoders import Decoder
from snnexp.encoders import Encoder
from snnexp.errors import ConfigError, key_prefix
from snnexp.losses import CrossEntropy, Loss
from snnexp.network import Dense, Network
from snnexp.optimizers import TorchOptimizer
from snnexp.regularizers import Penalty
from snnexp.schedules import Constant, Schedule
from snnexp.sparse import SparseSpikes
from snnexp.spec import parts, rules
from snnexp.spec.annotations import Count, Positive
from snnexp.spec.checked import checked
from snnexp.spec.parts import part
from snnexp.spec.places import PLACES
from snnexp.spec.reader import Spec
from snnexp.text import format_value
from snnexp.training import callbacks, contracts, initial, launchers, observers, processes
from snnexp.training.accumulation import Accumulation
from snnexp.training.members import Bridge
from snnexp.training.task import Task


@dataclass(repr=False)
class Parts:
    """An assembled experiment."""

    data: DataModule
    encoder: Encoder
    network: Network
    loss: Loss
    task: Task
    trainer: Trainer
    decoder: Decoder | None
    """Predicts a class from the readout; None if the targets are not labels."""
    kernel: str
    """The kernel that computes the neurons, as returned by :func:`snnexp.kernels.use`."""

    def __repr__(self) -> str:
        splits = {name: getattr(self.data, name) for name in ("train", "val", "test")}
        samples = ", ".join(f"{len(split)} {name}" for name, split in splits.items() if split is not None)
        weights = sum(parameter.numel() for parameter in self.network.parameters())
        parts = {
            "data": f"{type(self.data).__name__}({samples})",
            "encoder": repr(self.encoder),
            "network": f"{type(self.network).__name__}({weights} parameters)",
            "loss": repr(self.loss),
            "decoder": repr(self.decoder),
            **({"penalties": repr(dict(self.task.penalties))} if self.task.penalties else {}),
            "kernel": repr(self.kernel),
        }
        return f"Parts({', '.join(f'{name}={shown}' for name, shown in parts.items())})"


@part()
@checked
def make_trainer(
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto",
    devices: Count = 1,
    strategy: Literal["auto", "ddp"] = "auto",
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    threads: Count | None = None,
    max_epochs: Count = 1,
    limit_batches: Count | None = None,
    limit_test_batches: Count | None = None,
    log_every_n_steps: Count = 10,
    early_stopping: Count | None = None,
    gradient_clip: Positive | None = None,
    accumulate: Count = 1,
) -> Trainer:
    """Return a deterministic, silent Lightning trainer; :func:`run` adds callbacks and loggers that belong to a run.

    Args:
        accelerator: ``auto``, ``cpu``, ``gpu``, ...
        devices: number of processes, each with its own device.
        strategy: ``auto`` or ``ddp``.
        precision: ``32-true``, or ``bf16-mixed`` for matrix products in bfloat16; neurons and losses stay in float32.
        threads: CPU threads per process, set by :func:`run`; None for OMP_NUM_THREADS if set, else one.
        max_epochs: passes over the training data.
        limit_batches: maximum number of optimizer steps, and of validation batches, per epoch.
        limit_test_batches: maximum number of test batches.
        log_every_n_steps: log every n training steps.
        early_stopping: stop after this many epochs without an improvement of ``val/loss``, applied by :func:`run`.
        gradient_clip: maximum total norm of the gradients; larger gradients are scaled down. None for no clipping.
        accumulate: batches per optimizer step. Gradients are summed, each weighted by its number of samples: for a
            loss that is a mean over samples, a step equals one with ``accumulate`` times the batch size.

    Raises:
        ConfigError: the accelerator, or this number of devices, is not available.
    """
    # Lightning makes PyTorch query NVML for GPUs, and PyTorch's optimizers would repeat that at every step
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    cluster = processes.ProcessEnvironment(1)
    chosen: str | processes.Ddp = strategy
    if launchers.is_distributed({"strategy": strategy, "devices": devices}):
        cluster = processes.ProcessEnvironment.from_variables(devices)
        # the readout's threshold is unused if the loss reads the membrane
        chosen = processes.Ddp(cluster, find_unused_parameters=strategy == "ddp")
    try:
        with terminal.quiet():
            trainer = Trainer(
                accelerator=accelerator,
                devices=devices,
                strategy=chosen,
                precision=precision,
                max_epochs=max_epochs,
                limit_train_batches=limit_batches,
                limit_val_batches=limit_batches,
                limit_test_batches=limit_test_batches,
                log_every_n_steps=log_every_n_steps,
                gradient_clip_val=gradient_clip,
                deterministic=True,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                logger=False,
                # otherwise Lightning detects an environment itself, and requeues SLURM jobs
                plugins=[cluster],
                default_root_dir=os.devnull,
                callbacks=[callbacks.LogMeans(), Bridge(observers.ProjectParameters, observers.DivergenceGuard)],
            )
            # deterministic mode would also fill all new memory with NaN; the kernels initialize theirs
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            # Lightning reads it from inherited environment variables, and a rank other than 0 logs nothing
            rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"accelerator: {accelerator} with {devices} devices is not available: {reason}") from error
    if trainer.strategy.root_device.type == "cpu":
        limits.require_processes("devices", devices)
    return trainer


def build(cfg: DictConfig, trainer: Trainer | None = None) -> Parts:
    """Instantiate a checked config: read the data and draw the weights from ``cfg.seed``.

    ``snnexp.experiment.build`` restores flags and environment variables, including those set for its trainer. To train
    by hand with ``parts.trainer``, call ``torch.use_deterministic_algorithms(True)`` first, and
    delete ``PYTORCH_NVML_BASED_CUDA_CHECK`` from ``os.environ``: it makes optimizers query for GPUs at every step.

    Args:
        cfg: a checked config.
        trainer: of an identical config, to be shared; None to create one.

    Raises:
        ConfigError: two parts are incompatible.
        DataError: data are missing or damaged.
        PartError: a user-defined part raised an error.
    """
    with user_parts.wrap_errors(cfg=cfg):
        return _build(cfg, trainer)


def _build(cfg: DictConfig, trainer: Trainer | None) -> Parts:
    nodes = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(nodes, dict)
    # cheap parts first: their errors are reported before data are read
    loss, encoder = instantiate(nodes["loss"], "loss"), instantiate(nodes["encoder"], "encoder")
    contracts.require_loss(loss)
    contracts.require_kind(encoder, Encoder, "encoder")
    decoder = nodes["decoder"] if isinstance(nodes["decoder"], str) else _decoder(nodes["decoder"])
    penalties, measures = (_by_name(nodes[group], group) for group in ("regularizer", "measure"))
    optimizer, schedule = _optimizer(nodes["optimizer"]), instantiate(nodes["schedule"], "schedule")
    contracts.require_kind(schedule, Schedule, "schedule")
    neuron, readout = (
        contracts.checked_neurons(factory(nodes[key], key, given=PLACES[key].given), key)
        for key in ("neuron", "readout")
    )
    trainer = instantiate(nodes["trainer"], "trainer") if trainer is None else trainer
    contracts.require_kind(trainer, Trainer, "trainer")
    processes.require_ddp_strategy(trainer)
    accumulate = nodes["trainer"].get("accumulate", 1)
    # data and weights share one random stream, in this order
    torch.manual_seed(cfg.seed)
    spikes = nodes["data"].pop("spikes", None)
    data = instantiate(nodes["data"], "data")
    contracts.require_data(data)
    encoder = encoder.for_data(data.sequences)
    outputs = decoder.neurons(data.outputs) if isinstance(decoder, Decoder) else data.outputs
    arguments = {"inputs": data.inputs, "outputs": outputs, "neuron": neuron, "readout": readout}
    module = make_network(nodes["network"], "network", **arguments, num_steps=cfg.num_steps)
    network = contracts.as_network(module, data.inputs, outputs, cfg.num_steps, encoder.constant)
    contracts.require_shareable(network, trainer.world_size)
    initial.freeze(network, get_init_from(nodes).freeze)
    with key_prefix("data"):
        data.require_shareable(trainer.world_size)
    if accumulate > 1 and trainer.world_size > 1:
        problem = f"got {accumulate} with {trainer.world_size} processes, which share each batch"
        raise ConfigError(f"trainer.accumulate: {problem}; use 1, and more processes or smaller batches")
    decoder = _require_compatible(data, encoder, network, loss, decoder, cfg.num_steps)
    for name, measure in measures.items():
        rules.require_measure(name, measure, data, [*network.neurons().values()][-1])
    with user_parts.wrap_errors("data"):
        summary = check(data, cfg.num_steps)
        loss = _with_class_weights(loss, data)
    if isinstance(loss, Loss) and data.target not in rules.DECODED:
        loss.require_range(*summary.targets)
    _require_encoded(encoder, data, summary, cfg.num_steps)
    contracts.require_results(network, loss, decoder, measures, penalties, data, cfg.num_steps)
    if spikes is not None:
        data.description = replace(data.description, spikes=spikes)
    if data.spikes and not (data.sequences or encoder.spikes):
        raise ConfigError("data.spikes: got true, but these inputs do not change over time; use false or null")
    # values that are all 0 or 1 are spikes if they change over time
    inputs_are_spikes = encoder.spikes or (summary.binary if data.spikes is None else data.spikes)
    device = trainer.strategy.root_device
    kernel = kernels.use(network, cfg.kernel, device)
    encode = _encode(encoder, network, kernel, device)
    measures = _shipped_measures(decoder) | measures
    data.accumulate = accumulate
    task = Task(network, encode, inputs_are_spikes, loss, measures, optimizer, decoder, penalties, schedule)
    if accumulate > 1:
        task.accumulation = Accumulation(data.batch_size, int(data.sequences), int(data.description.is_timed))
    _require_measures(task, data, nodes["trainer"], parts.of(nodes["data"]["_target_"]))
    if not isinstance(schedule, Constant):
        # raises for an optimizer with its own schedule before anything is written
        task.make_optimizer([*task.parameters()], 1)
    return Parts(data, encoder, network, loss, task, trainer, decoder, kernel)


def _require_measures(task: Task, data: DataModule, trainer: Mapping[str, Any], spec: Spec) -> None:
    """Reject monitoring a metric that is not logged or has no direction of improvement."""
    logged = ["train/epoch_loss"]
    if data.val is not None:
        logged += [f"val/{name}" for name in ("loss", *task.measures)]
    logged = [name for name in logged if task.higher_is_better(name) is not None]
    schedule: Any = task.schedule
    if schedule.watches and schedule.measure not in logged:
        missing = "" if data.val is not None else "; there is no validation split"
        options = f"must be one of {', '.join(logged)}{missing}"
        raise ConfigError(f"schedule.measure: got {format_value(schedule.measure)}, {options}")
    patience = trainer.get("early_stopping")
    if patience is not None and data.val is None:
        key, *_ = rules.validation_keys(rules.Facts(spec))
        raise ConfigError(rules.no_validation("trainer.early_stopping", patience, key))


def _encode(
    encoder: Encoder, network: Network, kernel: str, device: torch.device
) -> Callable[[Tensor], Tensor | SparseSpikes]:
    """Return the encoder, or its sparse variant if dense synapses read its spikes on a CPU."""
    first = network.input_synapses()
    summed = (
        first and all(type(synapse) is Dense for synapse in first) and device.type == "cpu" and kernel != "reference"
    )
    # a subclass that overrides __call__ needs its own sparse method
    own = next(kind for kind in type(encoder).__mro__ if "__call__" in vars(kind))
    return encoder.sparse if summed and "sparse" in vars(own) else encoder


def _optimizer(node: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a factory of the optimizer."""
    if targets.is_optimizer(node["_target_"]):
        return TorchOptimizer(factory(node, "optimizer", given=("params",)), node.get("weight_decay", 0.0))
    optimizer: Callable[..., Any] = instantiate(node, "optimizer")
    return optimizer


def _decoder(node: Mapping[str, Any] | None) -> Decoder | None:
    if node is None:
        return None
    decoder = instantiate(node, "decoder")
    contracts.require_kind(decoder, Decoder, "decoder")
    contracts.require_reads(decoder, "decoder")
    return decoder  # type: ignore[no-any-return]


def _by_name(nodes: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the parts of a config group that takes several, by name."""
    kinds = {"regularizer": Penalty, "measure": metrics.Measure}
    result = {name: instantiate(node, f"{group}.{name}") for name, node in nodes.items()}
    for name, each in result.items():
        contracts.require_kind(each, kinds[group], f"{group}.{name}")
        contracts.require_reads(each, f"{group}.{name}")
    return result


def _require_compatible(
    data: DataModule, encoder: Encoder, network: Network, loss: Loss, decoder: Decoder | str | None, num_steps: int
) -> Decoder | None:
    """Reject incompatible parts and return the decoder of the readout.

    Args:
        data: the data.
        encoder: the encoder.
        network: the network.
        loss: the loss.
        decoder: the decoder, or the name of a default that must be resolved with the parts.
        num_steps: T.
    """
    readout = list(network.neurons().values())[-1]
    rules.require_target(loss, data)
    rules.require_encoder(encoder, data)
    rules.require_steps(data, num_steps)
    rules.require_spikes(loss, readout)
    if isinstance(decoder, str):
        name = rules.default_decoder(loss, readout, data, earlier=decoder == decoding.EARLIER)
        contracts.require_decoder_name(name, loss)
        decoder = _decoder(decoding.shipped_node(name))
    rules.require_decoder(decoder, readout, data)
    with key_prefix("loss"):
        sees_labels = not isinstance(loss, Loss) or data.target not in rules.DECODED or loss.sees_labels(num_steps)
    if not sees_labels:
        raise ConfigError(
            f"loss: {type(loss).__name__} has the same target for all classes with num_steps={num_steps}, so it does "
            "not depend on the label; use more steps, or other targets"
        )
    return decoder


def _with_class_weights(loss: Loss, data: DataModule) -> Loss:
    """Return the loss with one weight per class of the data, if it is weighted.

    Raises:
        ConfigError: the number of weights differs from that of classes, all are 0, or a class has no training samples.
    """
    if not isinstance(loss, CrossEntropy) or loss.class_weights is None:
        return loss
    with key_prefix("loss"):
        if loss.class_weights == "balanced":
            counts = data.class_counts()
            assert counts is not None
            return loss.balanced(counts)
        if (length := len(loss.class_weights)) != data.outputs:
            raise ConfigError(f"class_weights: got {length} weights, must be {data.outputs}, one for each class")
        if not any(loss.class_weights):
            raise ConfigError("class_weights: got 0 for all classes, at least one must be positive")
    return loss


def _require_encoded(encoder: Encoder, data: DataModule, summary: DataSummary, num_steps: int) -> None:
    """Reject values that cannot be encoded, and an encoder with a different number of steps."""
    with user_parts.wrap_errors("encoder"):
        encoder.require_range(summary.low, summary.high)
        data.check_range_with(encoder.require_range)
        if data.sequences or encoder.constant:
            return
        # must not advance the run's random stream
        with torch.random.fork_rng(devices=[]):
            encoded: Any = encoder(data.train[[0]][0])
    if not isinstance(encoded, Tensor) or encoded.shape[1:] != (1, *data.inputs):
        found_shape = list(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
        raise ConfigError(f"encoder: returned {found_shape}, must be {[num_steps, 1, *data.inputs]} here, [T, B, *N]")
    if len(encoded) != num_steps:
        raise ConfigError(f"encoder: returned {len(encoded)} steps, but num_steps is {num_steps}")


def _shipped_measures(decoder: Decoder | None) -> dict[str, metrics.Measure]:
    if decoder is None:
        return {"l1": metrics.L1(), "relative_error": metrics.RelativeError()}
    return {"accuracy": metrics.Accuracy(), "undecided": metrics.Undecided()}
