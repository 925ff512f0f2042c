"""Turn a checked config into parts that fit each other: data, encoder, network, loss, task and trainer."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from snnexp import kernels, limits, metrics, terminal
from snnexp.config import factory, instantiate, make_network, user_parts
from snnexp.data import DataModule
from snnexp.data.check import Found, check
from snnexp.data.description import Target
from snnexp.encoders import Encoder
from snnexp.errors import ConfigError, located
from snnexp.events import Events
from snnexp.losses import Loss
from snnexp.network import Dense, Network
from snnexp.spec import rules
from snnexp.spec.annotations import Count
from snnexp.spec.checked import checked
from snnexp.spec.parts import part
from snnexp.spec.places import PLACES
from snnexp.training import callbacks, contracts, launchers, observers, processes
from snnexp.training.members import Bridge
from snnexp.training.task import Measure, Task


@dataclass(repr=False)
class Parts:
    """An assembled experiment."""

    data: DataModule
    encoder: Encoder
    network: Network
    loss: Loss
    task: Task
    trainer: Trainer
    decoder: str | None
    """What turns a readout into a class, ``spike_count`` or ``max_voltage``; None for regression."""
    kernel: str
    """What computes the neurons, as :func:`snnexp.kernels.use` tells it."""

    def __repr__(self) -> str:
        splits = {name: getattr(self.data, name) for name in ("train", "val", "test")}
        samples = ", ".join(f"{len(found)} {name}" for name, found in splits.items() if found is not None)
        weights = sum(parameter.numel() for parameter in self.network.parameters())
        parts = {
            "data": f"{type(self.data).__name__}({samples})",
            "encoder": repr(self.encoder),
            "network": f"{type(self.network).__name__}({weights} parameters)",
            "loss": repr(self.loss),
            "decoder": repr(self.decoder),
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
) -> Trainer:
    """Lightning's trainer, deterministic and silent; run-bound callbacks and loggers are added by :func:`run`.

    Args:
        accelerator: ``auto``, ``cpu``, ``gpu``, ...
        devices: processes, each with a device of its own.
        strategy: ``auto`` or ``ddp``.
        precision: ``32-true``, or ``bf16-mixed`` for matrix products in bfloat16; neurons and losses stay in float32.
        threads: of each process, set by :func:`run`; None for OMP_NUM_THREADS where it is set, else one.
        max_epochs: passes over the training data.
        limit_batches: train and validate on no more batches than this per epoch.
        limit_test_batches: test on no more batches than this.
        log_every_n_steps: how often a training step is logged.

    Raises:
        ConfigError: there is no such accelerator here, or not so many devices.
    """
    # Lightning asks PyTorch to look for GPUs through NVML, which PyTorch's optimisers then do again at every step
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    place = processes.Place(1)
    chosen: str | processes.Ddp = strategy
    if launchers.is_shared({"strategy": strategy, "devices": devices}):
        place = processes.Place.here(devices)
        # a readout's threshold may have no part in a loss on the membrane
        chosen = processes.Ddp(place, find_unused_parameters=strategy == "ddp")
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
                deterministic=True,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                logger=False,
                # without a place, Lightning would look for one, and requeue a job of SLURM by itself
                plugins=[place],
                default_root_dir=os.devnull,
                callbacks=[callbacks.LogMeans(), Bridge(observers.ProjectParameters, observers.DivergenceGuard)],
            )
            # deterministic algorithms would also write NaN into all fresh memory, which kernels fill themselves
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            # Lightning took it from variables that whoever started this process may have set, and then logs nothing
            rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"accelerator: {accelerator} with {devices} devices cannot be had here: {reason}") from error
    if trainer.strategy.root_device.type == "cpu":
        limits.require_processes("devices", devices)
    return trainer


def build(cfg: DictConfig, trainer: Trainer | None = None) -> Parts:
    """Turn a checked config into objects: data are read, weights are drawn from ``cfg.seed``.

    ``snnexp.experiment.build`` restores flags and variables, also those that its trainer sets. To train by hand with
    ``parts.trainer``, call ``torch.use_deterministic_algorithms(True)`` first, and delete
    ``PYTORCH_NVML_BASED_CUDA_CHECK`` from ``os.environ``: with it, optimisers look for GPUs at every step.

    Args:
        cfg: a checked config.
        trainer: of an equal config, to be shared instead of made.

    Raises:
        ConfigError: two choices cannot work together.
        DataError: data are missing or damaged.
        PartError: code of a part of the user's own raised an error.
    """
    with user_parts.running(cfg=cfg):
        return _build(cfg, trainer)


def _build(cfg: DictConfig, trainer: Trainer | None) -> Parts:
    nodes = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(nodes, dict)
    # what costs nothing is made first, so that a mistake in it is told before data are read
    loss, encoder = instantiate(nodes["loss"], "loss"), instantiate(nodes["encoder"], "encoder")
    contracts.require_loss(loss)
    contracts.require_kind(encoder, Encoder, "encoder")
    optimizer = instantiate(nodes["optimizer"], "optimizer")
    neuron, readout = (
        contracts.making_neurons(factory(nodes[key], key, given=PLACES[key].given), key)
        for key in ("neuron", "readout")
    )
    trainer = instantiate(nodes["trainer"], "trainer") if trainer is None else trainer
    contracts.require_kind(trainer, Trainer, "trainer")
    processes.require_known(trainer)
    # one stream of random numbers for data and weights, in this order
    torch.manual_seed(cfg.seed)
    spikes = nodes["data"].pop("spikes", None)
    data = instantiate(nodes["data"], "data")
    contracts.require_data(data)
    shapes = {"inputs": data.inputs, "outputs": data.outputs}
    arguments = {**shapes, "neuron": neuron, "readout": readout, "num_steps": cfg.num_steps}
    made = make_network(nodes["network"], "network", **arguments)
    network = contracts.as_network(made, data, cfg.num_steps, encoder.constant)
    with located("data"):
        data.require_shareable(trainer.world_size)
    decoder = _match(data, encoder, network, loss, cfg.num_steps)
    with user_parts.running("data"):
        found = check(data, cfg.num_steps)
    _require_encoded(encoder, data, found, cfg.num_steps)
    contracts.require_results(network, loss, data, cfg.num_steps)
    if spikes is not None:
        data.description = replace(data.description, spikes=spikes)
    if data.spikes and not (data.sequences or encoder.spikes):
        raise ConfigError("data.spikes: got true, and these inputs do not change over time; use false or null")
    # values that are 0 or 1 alone are spikes where they change over time
    spikes_come_in = encoder.spikes or (found.binary if data.spikes is None else data.spikes)
    device = trainer.strategy.root_device
    kernel = kernels.use(network, cfg.kernel, device)
    encode = _encode(encoder, network, kernel, device)
    task = Task(network, encode, spikes_come_in, loss, _measures(decoder, data.target), optimizer)
    return Parts(data, encoder, network, loss, task, trainer, decoder, kernel)


def _encode(
    encoder: Encoder, network: Network, kernel: str, device: torch.device
) -> Callable[[Tensor], Tensor | Events]:
    """The encoder, or where it has few spikes and a dense synapse sums them on a CPU, the list of its spikes."""
    first = network.reading_input()
    summed = (
        first and all(type(synapse) is Dense for synapse in first) and device.type == "cpu" and kernel != "reference"
    )
    # a subclass that encodes otherwise has events of its own, or none
    own = next(kind for kind in type(encoder).__mro__ if "__call__" in vars(kind))
    return encoder.events if summed and "events" in vars(own) else encoder


def _match(data: DataModule, encoder: Encoder, network: Network, loss: Loss, num_steps: int) -> str | None:
    """Refuse parts that cannot work together, and choose what decodes the readout."""
    readout = list(network.neurons().values())[-1]
    rules.require_target(loss, data)
    rules.require_encoder(encoder, data)
    rules.require_steps(data, num_steps)
    rules.require_spikes(loss, readout)
    if data.target != "labels":
        return None
    if isinstance(loss, Loss) and not loss.sees_labels(num_steps):
        raise ConfigError(
            f"loss: {type(loss).__name__} has the same target for all classes with num_steps={num_steps}, so the label "
            "makes no difference; use more steps, or other targets"
        )
    return loss.decoder if readout.spikes else "max_voltage"


def _require_encoded(encoder: Encoder, data: DataModule, found: Found, num_steps: int) -> None:
    """Refuse values that cannot be encoded, and an encoder that gives another number of steps."""
    with user_parts.running("encoder"):
        encoder.require_range(found.low, found.high)
        data.check_range_with(encoder.require_range)
        if data.sequences or encoder.constant:
            return
        # drawing here must not move the run's stream
        with torch.random.fork_rng(devices=[]):
            encoded: Any = encoder(data.train[[0]][0])
    if not isinstance(encoded, Tensor) or encoded.shape[1:] != (1, *data.inputs):
        found_shape = list(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
        raise ConfigError(f"encoder: gives {found_shape}, must be {[num_steps, 1, *data.inputs]} here, [T, B, *N]")
    if len(encoded) != num_steps:
        raise ConfigError(f"encoder: gives {len(encoded)} steps, and num_steps is {num_steps}")


def _measures(decoder: str | None, target: Target) -> dict[str, Measure]:
    if target == "step_labels":
        return {}
    if decoder is None:
        # values stand for all steps
        return {
            "l1": lambda trace, target: metrics.l1(trace.membrane, target.expand_as(trace.membrane)),
            "relative_error": lambda trace, target: metrics.relative_error(
                trace.membrane, target.expand_as(trace.membrane)
            ),
        }
    return {
        "accuracy": lambda trace, target: metrics.accuracy(metrics.decode(trace, decoder), target),
        "undecided": lambda trace, _: metrics.undecided(trace, decoder),
    }
