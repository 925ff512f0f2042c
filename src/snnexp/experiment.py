"""Assemble a config into an experiment and run it, from the command line or a notebook.

cfg = compose(["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"])
parts = build(cfg)
record = run(cfg)
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from snnexp import callbacks, console, domains, kernels, metrics
from snnexp.config import compose, factory, instantiate
from snnexp.data import DataModule
from snnexp.encoders import ConstantCurrentLIF, Encoder
from snnexp.errors import ConfigError, InterruptedRunError, SnnexpError, located
from snnexp.events import Events
from snnexp.losses import Loss
from snnexp.network import Dense, Network
from snnexp.neurons import Trace
from snnexp.runs import Run
from snnexp.task import Measure, Task

__all__ = ["Parts", "Record", "build", "compose", "make_trainer", "run"]

RUN_DIR = "SNNEXP_RUN_DIR"
"""Tells the processes that ddp starts which directory the first one has made."""


@dataclass
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


@dataclass
class Record:
    """How a run ended."""

    path: Path
    status: str
    metrics: dict[str, float] = field(default_factory=dict)


def make_trainer(
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    max_epochs: int = 1,
    limit_batches: int | None = None,
    log_every_n_steps: int = 10,
) -> Trainer:
    """Lightning's trainer, deterministic and silent; run-bound callbacks and loggers are added by :func:`run`.

    Args:
        accelerator: ``auto``, ``cpu``, ``gpu``, ...
        devices: processes, each with a device of its own.
        strategy: ``auto`` or ``ddp``.
        precision: ``32-true``, or ``bf16-mixed`` for matrix products in bfloat16; neurons and losses stay in float32.
        max_epochs: passes over the training data.
        limit_batches: use no more batches than this of each split.
        log_every_n_steps: how often a training step is logged.

    Raises:
        ConfigError: there is no such accelerator here, or not so many devices.
    """
    domains.check(locals())
    # Lightning asks PyTorch to look for GPUs through NVML, which PyTorch's optimisers then do again at every step
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    try:
        with console.quiet():
            trainer = Trainer(
                accelerator=accelerator,
                devices=devices,
                # a readout's threshold may have no part in a loss on the membrane
                strategy="ddp_find_unused_parameters_true" if strategy == "ddp" else strategy,
                precision=precision,  # type: ignore[arg-type]
                max_epochs=max_epochs,
                limit_train_batches=limit_batches,
                limit_val_batches=limit_batches,
                limit_test_batches=limit_batches,
                log_every_n_steps=log_every_n_steps,
                deterministic=True,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                logger=False,
                plugins=[callbacks.RunCheckpointIO()],
                callbacks=[callbacks.ProjectParameters(), callbacks.DivergenceGuard()],
            )
            # deterministic algorithms would also write NaN into all fresh memory, which kernels fill themselves
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            return trainer
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"accelerator: {accelerator} with {devices} devices cannot be had here: {reason}") from error


def build(cfg: DictConfig) -> Parts:
    """Turn a checked config into objects: data are read, weights are drawn from ``cfg.seed``.

    Raises:
        ConfigError: two choices cannot work together.
        DataError: data are missing or damaged.
    """
    nodes = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(nodes, dict)
    # what costs nothing is made first, so that a mistake in it is told before data are read
    loss, encoder = instantiate(nodes["loss"], "loss"), instantiate(nodes["encoder"], "encoder")
    optimizer = instantiate(nodes["optimizer"], "optimizer")
    neuron = factory(nodes["neuron"], "neuron", given=["features"])
    readout = factory(nodes["readout"], "readout", given=["features"])
    trainer = instantiate(nodes["trainer"], "trainer")
    # one stream of random numbers for data and weights, in this order
    torch.manual_seed(cfg.seed)
    data = instantiate(nodes["data"], "data")
    shapes = {"inputs": data.inputs, "outputs": data.outputs}
    network = instantiate(nodes["network"], "network", **shapes, neuron=neuron, readout=readout)
    with located("data"):
        data.require_shareable(trainer.world_size)
    decoder = _match(data, encoder, network, loss)
    device = trainer.strategy.root_device
    kernel = kernels.use(network, cfg.kernel, device)
    encode = _encode(encoder, network, kernel, device)
    task = Task(network, encode, encoder.spikes, loss, _measures(decoder), optimizer)
    return Parts(data, encoder, network, loss, task, trainer, decoder, kernel)


def _encode(
    encoder: Encoder, network: Network, kernel: str, device: torch.device
) -> Callable[[Tensor], Tensor | Events]:
    """The encoder, or where it has few spikes and a dense synapse sums them on a CPU, the list of its spikes."""
    first = next(iter(network.layers.values())).synapse
    if isinstance(encoder, ConstantCurrentLIF) and type(first) is Dense:
        return encoder.events if device.type == "cpu" and kernel != "reference" else encoder
    return encoder


def _match(data: DataModule, encoder: Encoder, network: Network, loss: Loss) -> str | None:
    """Refuse parts that cannot work together, and choose what decodes the readout."""
    readout_fires = list(network.neurons().values())[-1].spikes
    if data.target not in loss.targets:
        raise ConfigError(
            f"loss: {type(loss).__name__} compares with {loss.targets[0]}, these data have a {data.target}; "
            "use loss=mse_membrane, or data with labels"
        )
    if encoder.takes_sequences != data.sequences:
        need = "sequence" if data.sequences else "constant"
        raise ConfigError(f"encoder: {type(encoder).__name__} does not fit these data; use encoder={need}")
    if loss.reads == "spike_count" and not readout_fires:
        raise ConfigError(
            f"loss: {type(loss).__name__} counts spikes and this readout never fires; use another loss, or readout=same"
        )
    # an encoder refuses values that it cannot encode; drawing here must not move the run's stream
    with torch.random.fork_rng(devices=[]):
        encoder(data.train[list(range(min(256, len(data.train))))][0])
    if data.target == "trace":
        return None
    return loss.decoder if readout_fires else "max_voltage"


def _measures(decoder: str | None) -> dict[str, Measure]:
    if decoder is None:
        return {
            "l1": lambda trace, target: metrics.l1(trace.membrane, target),
            "relative_error": lambda trace, target: metrics.relative_error(trace.membrane, target),
        }
    classes: Callable[[Trace], Tensor] = {
        # one step that holds the sum, or the maximum, of all
        "spike_count": lambda trace: metrics.spike_count(trace.spike_count.unsqueeze(0)),
        "max_voltage": lambda trace: metrics.max_voltage(trace.max_membrane.unsqueeze(0)),
    }[decoder]
    return {"accuracy": lambda trace, target: metrics.accuracy(classes(trace), target)}


def run(cfg: DictConfig, overrides: Sequence[str] = (), parent: Path | None = None) -> Record:
    """Train, test and record.

    Args:
        cfg: a checked config, from :func:`compose`.
        overrides: what was typed, for the record.
        parent: the folder in which the run directory is made, ``<logger.root>/<name>`` by default.

    Raises:
        SnnexpError: the run could not start, diverged or was interrupted; run.json says so too.
    """
    clock = {"began": time.perf_counter()}
    parts = build(cfg)
    main = parts.trainer.is_global_zero
    if main:
        folder = parent or Path(cfg.logger.root) / cfg.name
        run_dir = Run.create(folder, OmegaConf.to_yaml(cfg), overrides, _facts(cfg, parts))
        os.environ[RUN_DIR] = str(run_dir.path.absolute())
    else:
        run_dir = Run(Path(os.environ[RUN_DIR]))
    try:
        measured = _train_and_test(cfg, parts, run_dir, clock)
        if main:
            _record_success(cfg, parts, run_dir, measured, clock)
    except BaseException as error:
        if main:
            # on a full disk this fails too, and what came first is what counts
            with suppress(OSError):
                _record_failure(run_dir, error)
        elif isinstance(error, SnnexpError):
            # the first process tells; Lightning would kill it if this one left with another code
            raise SystemExit(0) from error
        raise
    finally:
        run_dir.close()
        _forget_processes()
    return Record(run_dir.path, "finished", measured)


def _train_and_test(cfg: DictConfig, parts: Parts, run_dir: Run, clock: dict[str, float]) -> dict[str, float]:
    trainer, main = parts.trainer, parts.trainer.is_global_zero
    checkpoints = callbacks.Checkpoints(run_dir.checkpoints, cfg.logger.save_every_n_epochs)
    watching: list[Callback] = [callbacks.ParameterHistograms(cfg.logger.save_every_n_epochs)]
    if parts.decoder is None:
        watching.append(callbacks.SeedMeanLoss())
    if main:
        terminal = console.console()
        _announce(terminal, cfg, parts, run_dir.path)
        watching.append(console.ProgressDisplay(terminal))
    board = TensorBoardLogger(run_dir.path, name="", version="tensorboard", default_hp_metric=False)
    trainer.loggers = [callbacks.RunLogger(run_dir), *([board] if cfg.logger.tensorboard else [])]
    with console.quiet(run_dir.path / "train.log" if main else None), callbacks.Signals(checkpoints) as signals:
        # what saves comes after what watches, what stops comes last
        trainer.callbacks += [*watching, checkpoints, signals]  # type: ignore[attr-defined]
        clock["built"] = time.perf_counter()
        trainer.fit(parts.task, datamodule=parts.data)
        clock["fitted"] = time.perf_counter()
        measured = dict(trainer.test(parts.task, datamodule=parts.data, verbose=False)[0])
        clock["tested"] = time.perf_counter()
        if cfg.logger.tensorboard and main:
            board.log_hyperparams(_flat(cfg), measured)
            board.finalize("success")
    return measured


def _announce(terminal: Console, cfg: DictConfig, parts: Parts, path: Path) -> None:
    device = parts.trainer.strategy.root_device
    title = f"{cfg.name}  seed {cfg.seed}  on {device}, {torch.get_num_threads()} threads"
    if terminal.is_terminal:
        terminal.print(console.config_tree(title, OmegaConf.to_container(cfg)))  # type: ignore[arg-type]
    else:
        terminal.print(title)
    terminal.print(f"run {console.show_path(path)}")


def _facts(cfg: DictConfig, parts: Parts) -> dict[str, Any]:
    device = parts.trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "seed": cfg.seed,
        "experiment": cfg.name,
        "metrics": {},
        "device": f"{parts.trainer.world_size} x {name}",
        "threads": torch.get_num_threads(),
        "kernel": parts.kernel,
        "inputs": "dense" if parts.task.encode is parts.encoder else "events",
        "decoder": parts.decoder,
        "wall_s": {},
        "samples_per_s": None,
    }


def _record_success(
    cfg: DictConfig, parts: Parts, run_dir: Run, measured: dict[str, float], clock: dict[str, float]
) -> None:
    began, built, fitted, tested = (clock[name] for name in ("began", "built", "fitted", "tested"))
    wall_s = {"build": built - began, "fit": fitted - built, "test": tested - fitted, "total": tested - began}
    samples = parts.trainer.global_step * min(parts.data.batch_size, len(parts.data.train))
    run_dir.update(
        status="finished", exit_code=0, metrics=measured, wall_s=wall_s, samples_per_s=samples / wall_s["fit"]
    )
    terminal = console.console()
    terminal.print(console.result_table(measured, cfg.published))
    terminal.print(f"run {console.show_path(run_dir.path)}  {wall_s['total']:.1f} s")


def _record_failure(run_dir: Run, error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt):
        error = InterruptedRunError(signal.SIGINT)
    code = error.exit_code if isinstance(error, SnnexpError) else 74 if isinstance(error, OSError) else 1
    reason = str(error).strip() or type(error).__name__
    run_dir.update(status=getattr(error, "status", "failed"), exit_code=code, reason=reason.splitlines()[0])


def _forget_processes() -> None:
    """Leave the group of ddp and its variables, or a second run would take itself for a member of the first."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", RUN_DIR):
            os.environ.pop(name, None)


def _flat(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``, for TensorBoard's table of hyperparameters."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
