"""Run an experiment, resume it, measure it again; :mod:`snnexp.experiment` is its public side."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from snnexp import config, limits, terminal, threads
from snnexp.config import recipes, user_parts
from snnexp.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    InterruptedRunError,
    PartError,
    ending,
    is_about_memory,
    is_about_worker,
)
from snnexp.isolation import isolated
from snnexp.network import Network
from snnexp.record import checkpoint as checkpoints
from snnexp.record import run as runs
from snnexp.record.checkpoint import Checkpoint
from snnexp.record.files import append_to
from snnexp.record.run import Run
from snnexp.text import line, shown
from snnexp.training import callbacks, probe, progress, saving
from snnexp.training.assembly import Parts, build
from snnexp.training.signals import Signals

RUN_DIR, FIRST = "SNNEXP_RUN_DIR", "SNNEXP_FIRST_PROCESS"
"""Tell the processes that ddp starts which directory the first one has made, and that it is the first one's."""
OWN = ("last", "best", "init")
"""Checkpoints of a run, by what is typed."""


@dataclass(repr=False)
class Record:
    """How a run ended."""

    path: Path
    status: str
    metrics: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        main = runs.main_metric(self.metrics)
        measured = "" if main is None else f", {main} {self.metrics[main]:.4g} and {len(self.metrics) - 1} more"
        return f"Record({str(self.path)!r}, {self.status}{measured})"


@isolated()
def run(
    cfg: DictConfig,
    overrides: Sequence[str] = (),
    parent: Path | None = None,
    begun: Callable[[Path], object] = lambda path: None,
    watching: Sequence[Callback] = (),
) -> Record:
    """Train, test and record.

    Args:
        cfg: a checked config, from :func:`compose`.
        overrides: what was typed, for the record; by default that of ``cfg``, and what was changed since.
        parent: the folder in which the run directory is made, ``<logger.root>/<name>`` by default.
        begun: called with the run directory after it is created.
        watching: callbacks of Lightning's besides the run's own; they have no state that a checkpoint would keep.

    Raises:
        SnnexpError: the run could not start, diverged or was interrupted; run.json says so too.
    """
    with Signals() as signals, memory_told(), signals.heeded():
        clock = {"began": time.perf_counter()}
        # it may have been changed since
        overrides, cfg = overrides or config.overridden(cfg), config.check(cfg)
        threads.require(cfg)
        require_own_processes(cfg)
        threads.use(threads.number(cfg))
        parts = build(cfg)
        if parts.trainer.is_global_zero:
            folder = parent or Path(cfg.logger.root) / cfg.name
            run_dir = Run.create(folder, OmegaConf.to_yaml(cfg), overrides, facts(cfg, parts))
            begun(run_dir.path)
        else:
            run_dir = Run(Path(os.environ[RUN_DIR]))
        with _recorded(run_dir, parts), memory_told(), signals.heeded():
            _watch(cfg, parts, run_dir, signals, watching)
            record = _carry_out(cfg, parts, run_dir, clock, signals)
        return _shown(cfg, parts, record)


@isolated()
def resume(path: str | Path, overrides: Sequence[str] = (), watching: Sequence[Callback] = ()) -> Record:
    """Go on with a run that did not finish, to the same end as if nothing had stopped it.

    It computes with as many threads as before, unless ``trainer.threads`` or OMP_NUM_THREADS says otherwise. On the
    same machine and with as many threads, weights, optimiser and metrics.jsonl end as those of a run that was never
    interrupted, to the bit. A run that finished goes on if ``trainer.max_epochs`` is raised, else it stays.

    Args:
        path: the run directory.
        overrides: changes of keys that do not decide what is computed, such as ``trainer.max_epochs=20``.
        watching: as of :func:`run`.

    Raises:
        ConfigError: it is no run directory, or a key changed that decides what the run computes.
        CheckpointError: all its checkpoints are damaged.
        InUseError: another process writes to it.
        SnnexpError: as :func:`run`.
    """
    with Signals() as signals, memory_told(), signals.heeded():
        clock = {"began": time.perf_counter()}
        run_dir = Run.open(Path(path))
        changed = config.change(config.load(run_dir.path / "config.yaml"), overrides)
        if _typed("trainer.threads", overrides):
            threads.require(changed)
        require_own_processes(changed)
        # the processes that ddp starts find the directory locked by the first one
        if not follows():
            run_dir.lock()
        try:
            saved = config.load(run_dir.path / "config.yaml")
            cfg = without_download(config.change(saved, overrides), overrides)
            config.require_same(saved, cfg)
            before = run_dir.read()
            threads.use(threads.number(cfg, before.get("threads")))
            parts = build(cfg)
            saver = _watch(cfg, parts, run_dir, signals, watching)
            found = find(cfg, parts, run_dir, parts.trainer.callbacks)  # type: ignore[attr-defined]
            reached = saved.trainer.max_epochs if found is None else found.config["trainer"]["max_epochs"]
            if before.get("status") == "finished" and cfg.trainer.max_epochs <= reached:
                terminal.console().print(
                    f"run {terminal.show_path(run_dir.path)}  is already finished, nothing is left to do"
                )
                return Record(run_dir.path, "finished", before.get("metrics", {}))
            if found is not None:
                saver.go_on_from(found)
                parts.data.begin = found.position
            with _recorded(run_dir, parts), memory_told(), signals.heeded():
                if parts.trainer.is_global_zero:
                    begin_again(cfg, parts, run_dir, before, found, overrides)
                record = _carry_out(cfg, parts, run_dir, clock, signals, found)
            return _shown(cfg, parts, record)
        finally:
            run_dir.close()


@isolated()
def evaluate(
    path: str | Path, checkpoint: str | Path = "last", split: str = "test", overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Measure one split with the weights of a checkpoint; nothing is written.

    Args:
        path: the run directory.
        checkpoint: ``last``, ``best``, ``init``, or a file from anywhere whose weights fit the run's network.
        split: ``test``, ``val`` or ``train``.
        overrides: changes of the run's config, such as ``trainer.accelerator=cpu``.

    Returns:
        ``<split>/<measure>`` to value; with the last weights on the test split, the values that the run reported. (Of
        several processes, each drew random spikes of its own; one process draws others.)

    Raises:
        ConfigError: it is no run directory, or the run has no such split.
        CheckpointError: the checkpoint is missing, damaged, or does not fit.
        DataError: data are missing or damaged.
    """
    with Signals() as signals, memory_told(), signals.heeded():
        run_dir = Run.open(Path(path))
        saved = config.load(run_dir.path / "config.yaml")
        cfg = without_download(config.change_evaluation(saved, overrides), overrides)
        processes, cfg.trainer.devices, cfg.trainer.strategy = cfg.trainer.devices, 1, "auto"
        if split != "test":
            cfg.trainer.limit_test_batches = _limits(cfg)[0]
        file = _checkpoint(run_dir, checkpoint)
        threads.use(_threads_of(cfg, run_dir, overrides))
        parts = build(cfg)
        signals.data = parts.data
        loader = parts.data.loader(split)
        watching = _watching(cfg, parts, processes)
        if checkpoint in OWN:
            everything = [*parts.trainer.callbacks, *watching, saving.Checkpoints(run_dir, "", 1, 0)]  # type: ignore[attr-defined]
            found = checkpoints.read(file, _example(parts, everything))
            weights = found["state_dict"]
            for callback in watching:
                if isinstance(callback, callbacks.SeedMeanLoss):
                    callback.sums = found["callbacks"][callback.state_key]["sums"].mean(0)
        else:
            weights = checkpoints.read_weights(file, parts.task.state_dict())
            # what a foreign network was trained with is not known
            watching = [callback for callback in watching if not isinstance(callback, callbacks.SeedMeanLoss)]
        parts.task.load_state_dict(weights)
        parts.trainer.callbacks += watching  # type: ignore[attr-defined]
        with terminal.quiet(), user_parts.running(cfg=cfg):
            measured = parts.trainer.test(parts.task, dataloaders=loader, verbose=False)[0]
        return {f"{split}/{name.removeprefix('test/')}": value for name, value in measured.items()}


@isolated()
def load(
    path: str | Path, checkpoint: str | Path = "last", overrides: Sequence[str] = ()
) -> tuple[Network, DictConfig]:
    """The trained network of a run, on the CPU and in evaluation mode, and a config to build with.

    Its input comes from the encoder, ``network(build(cfg).encoder(x))``. The config is the run's with ``overrides``,
    for one process on the CPU.

    Args:
        path: the run directory.
        checkpoint: ``last``, ``best``, ``init``, or a file from anywhere whose weights fit the run's network.
        overrides: changes of the run's config as in :func:`evaluate`, such as ``data.root=DIR`` on another machine.

    Raises:
        SnnexpError: as :func:`evaluate`.
    """
    run_dir = Run.open(Path(path))
    saved = config.load(run_dir.path / "config.yaml")
    cfg = config.remembering(saved, run_dir.overrides(), saved.copy())
    cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.strategy = "cpu", 1, "auto"
    if cfg.kernel == "triton":
        # which a CPU has not
        cfg.kernel = "auto"
    cfg = without_download(config.change_evaluation(cfg, overrides), overrides)
    file = _checkpoint(run_dir, checkpoint)
    parts = build(cfg)
    weights = checkpoints.read_weights(file, parts.task.state_dict(), foreign=checkpoint not in OWN)
    parts.task.load_state_dict(weights)
    return parts.network.eval(), cfg


def _checkpoint(run_dir: Run, name: str | Path) -> Path:
    """The file of one of a run's own checkpoints, or of one from anywhere."""
    file = run_dir.checkpoints / f"{name}.ckpt" if name in OWN else Path(name)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint; the choice is {', '.join(OWN)}, or a file")
    return file


def lead(run_dir: Run) -> None:
    """Let the processes that ddp is going to start find the run."""
    os.environ[RUN_DIR], os.environ[FIRST] = str(run_dir.path.absolute()), str(os.getpid())


def follows() -> bool:
    """Whether the first process of a run, which has locked it, has started this one; anyone may have set variables."""
    first, folder = os.getppid(), os.environ.get(RUN_DIR)
    return os.environ.get(FIRST) == str(first) and folder is not None and Run(Path(folder)).writer() == first


def require_own_processes(cfg: DictConfig) -> None:
    """Raise :class:`ConfigError` where another program has started the processes of a run."""
    if follows() or cfg.trainer.strategy != "ddp":
        return
    found = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ]
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        found.append("SLURM_PROCID")
    if not found:
        return
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "SLURM_PROCID")):
        # the first one tells, and whoever started them may end them all as soon as one has gone
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)
        raise SystemExit(ConfigError.exit_code)
    raise ConfigError(
        f"trainer.strategy: snnexp starts the processes of ddp itself, and {found[0]} is set, as torchrun and srun do"
    )


@contextmanager
def memory_told() -> Iterator[None]:
    """What PyTorch has no class for: memory that does not suffice for the config, and a data worker that died."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if is_about_worker(error):
            raise DataError(f"data.num_workers: {line(str(error))}") from error
        if is_about_memory(error):
            raise ConfigError("network: does not fit into memory with this data.batch_size and num_steps") from error
        if limit := limits.met(error):
            raise ConfigError(limit) from error
        raise


def without_download(cfg: DictConfig, typed: Sequence[str]) -> DictConfig:
    """A saved config, which downloads only where that is typed."""
    return cfg if _typed("data.download", typed) else config.offline(cfg)


def _typed(key: str, overrides: Sequence[str]) -> bool:
    return any(override.startswith(f"{key}=") for override in overrides)


def _threads_of(cfg: DictConfig, run_dir: Run, overrides: Sequence[str]) -> int:
    """The number of threads that a run is measured with: as many as it was trained with, if that can be."""
    if _typed("trainer.threads", overrides):
        threads.require(cfg)
        return threads.number(cfg)
    recorded = run_dir.facts().record.get("threads")
    found = threads.number(cfg, recorded)
    if recorded is not None and recorded != found:
        terminal.tell(f"threads: {shown(recorded)} -> {found}, so the last digits may differ")
    return found


def find(cfg: DictConfig, parts: Parts, run_dir: Run, watching: Sequence[Callback]) -> Checkpoint | None:
    """The checkpoint to go on from; it holds the states of all that is ``watching``."""
    now = cast(dict[str, Any], OmegaConf.to_container(cfg))

    def require_same(before: dict[str, Any]) -> None:
        try:
            known = config.check(OmegaConf.create(before))
        except (ConfigError, RecursionError) as error:
            raise CheckpointError(f"the config in a checkpoint cannot work: {error}") from error
        config.require_same(cast(dict[str, Any], OmegaConf.to_container(known)), now)

    # each process of ddp has its share of the batches
    parts.data.trainer = parts.trainer
    batches = min(len(parts.data.train_dataloader()), cfg.trainer.limit_batches or sys.maxsize)
    wanted = _example(parts, watching)
    with terminal.quiet(run_dir.path / "train.log" if parts.trainer.is_global_zero else None):
        return checkpoints.find(run_dir, wanted, batches, require_same)


def begin_again(
    cfg: DictConfig,
    parts: Parts,
    run_dir: Run,
    before: Mapping[str, Any],
    found: Checkpoint | None,
    overrides: Sequence[str] = (),
) -> None:
    """Put the record of a run back to where it goes on."""
    resumed = run_dir.resumed(before, 0 if found is None else found.step, overrides)
    run_dir.rewind(0 if found is None else found.content["metrics"]["bytes"])
    runs.write_atomically(run_dir.path / "config.yaml", OmegaConf.to_yaml(cfg).encode())
    again = {"status": "running", "exit_code": None, **resumed}
    kept = {key: value for key, value in before.items() if key not in ("reason", "stack")}
    now = {**facts(cfg, parts), "versions": runs.versions(), "git": runs.git()}
    for name in ("device", "threads", "kernel"):
        if name in before and before[name] != now[name]:
            change = f"{name}: {before[name]} -> {now[name]}"
            terminal.tell(f"{change}, so the run may end in other digits than one that was not interrupted")
    run_dir.write(kept | now | again)


def _watching(cfg: DictConfig, parts: Parts, processes: int) -> list[Callback]:
    """Callbacks needed for training and testing."""
    read_by = (parts.loss.reads, parts.decoder)
    layers = [*parts.network.neurons()][: None if "spike_count" in read_by else -1]
    watching: list[Callback] = [
        callbacks.RandomNumbers(cfg.seed),
        callbacks.EpochLoss(processes),
        callbacks.QuietLayers(layers),
        callbacks.TestCounts(layers, parts.decoder),
    ]
    return [*watching, *([callbacks.SeedMeanLoss(processes)] if parts.decoder is None else [])]


def _watch(
    cfg: DictConfig, parts: Parts, run_dir: Run, signals: Signals, others: Sequence[Callback]
) -> saving.Checkpoints:
    """Attach the run's callbacks to the trainer; returns the one that saves checkpoints."""
    watching = watching_over(cfg, parts, run_dir)
    (saver,) = (callback for callback in watching if isinstance(callback, saving.Checkpoints))
    signals.checkpoints, signals.data, signals.launcher = saver, parts.data, parts.trainer.strategy.launcher
    display: list[Callback] = []
    if parts.trainer.is_global_zero:
        signals.run = run_dir
        display.append(progress.ProgressDisplay(terminal.console()))
    else:
        signals.parent = int(os.environ[FIRST])
    # what stops comes last
    parts.trainer.callbacks += [*display, *watching, *others, signals]  # type: ignore[attr-defined]
    return saver


def watching_over(cfg: DictConfig, parts: Parts, run_dir: Run, pictures: bool = True) -> list[Callback]:
    """All that watches a run and writes what it leaves; without ``pictures``, arrays are recorded and not drawn."""
    logger = cfg.logger
    text = json.dumps(OmegaConf.to_container(cfg))
    saver = saving.Checkpoints(run_dir, text, logger.save_every_n_epochs, logger.save_every_s)
    watching = _watching(cfg, parts, parts.trainer.world_size)
    (counts,) = (callback for callback in watching if isinstance(callback, callbacks.TestCounts))
    often = (logger.get("draw_every_n_epochs", 0), logger.get("draw_every_s", 0))
    drawing = probe.Probe(run_dir, parts.decoder, counts, cfg.seed, *often, pictures)
    histograms = callbacks.ParameterHistograms(logger.save_every_n_epochs)
    # what saves comes after what counts
    return [*watching, histograms, saver, drawing]


def _example(parts: Parts, watching: Sequence[Callback]) -> dict[str, Any]:
    states = {callback.state_key: callback.state_dict() for callback in watching}
    return checkpoints.example(parts.task, states)


def _carry_out(
    cfg: DictConfig,
    parts: Parts,
    run_dir: Run,
    clock: dict[str, float],
    signals: Signals,
    found: Checkpoint | None = None,
) -> Record:
    if parts.trainer.world_size > 1 and parts.trainer.is_global_zero:
        lead(run_dir)
    try:
        with user_parts.running(cfg=cfg):
            measured = _train_and_test(cfg, parts, run_dir, clock, found)
    except RuntimeError as error:
        # a signal to the whole group may find a data worker that does not ignore it yet
        if is_about_worker(error):
            signals.stop_if_told()
        # where workers could not be started, Lightning stumbles over it, and then tells only that
        if isinstance(error.__context__, OSError) and error.__cause__ is None:
            raise error.__context__ from None
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            signals.stop_if_told()
            # one that has failed may take a while to end
            signals.require_others(patience_s=20)
        raise
    signals.stop_if_told()
    if parts.trainer.is_global_zero:
        steps = parts.trainer.global_step - (0 if found is None else found.step)
        _record_success(cfg, parts, run_dir, measured, clock, steps)
    return Record(run_dir.path, "finished", measured)


@contextmanager
def _recorded(run_dir: Run, parts: Parts) -> Iterator[None]:
    """Write down how a run ended that did not finish, and let go of its directory and processes."""
    try:
        yield
    except BaseException as error:
        if parts.trainer.is_global_zero:
            # on a full disk this fails too, and what came first is what counts
            with suppress(OSError, CheckpointError):
                record_failure(run_dir, error)
            if isinstance(error, (InterruptedRunError, KeyboardInterrupt)):
                terminal.show_command(terminal.console(), "resume", "snnexp", "resume", run_dir.path)
        elif isinstance(error, (InterruptedRunError, DivergedError)):
            # on which all agree, and the first one tells
            raise SystemExit(0) from error
        raise
    finally:
        run_dir.close()
        if torch.distributed.is_initialized():
            # a second run would take itself for a member of the first
            torch.distributed.destroy_process_group()


def _train_and_test(
    cfg: DictConfig,
    parts: Parts,
    run_dir: Run,
    clock: dict[str, float],
    found: Checkpoint | None,
) -> dict[str, float]:
    trainer, main = parts.trainer, parts.trainer.is_global_zero
    if main:
        _announce(terminal.console(), cfg, parts, run_dir.path, found)
    board = callbacks.Board(run_dir, None if found is None else found.step)
    trainer.loggers = [callbacks.RunLogger(run_dir), *([board] if cfg.logger.tensorboard else [])]
    with terminal.quiet(run_dir.path / "train.log" if main else None):
        clock["built"] = time.perf_counter()
        trainer.fit(parts.task, datamodule=parts.data, ckpt_path=None if found is None else found.path)
        clock["fitted"] = time.perf_counter()
        # of the last epoch; a test forgets them
        logged = trainer.callback_metrics
        measured = {name: float(value) for name, value in logged.items() if name.startswith("val/")}
        measured |= trainer.test(parts.task, datamodule=parts.data, verbose=False)[0]
        clock["tested"] = time.perf_counter()
        if cfg.logger.tensorboard and main:
            board.log_hyperparams(recipes.hyperparameters(config.plain(cfg), run_dir.overrides()), measured)
            board.finalize("success")
    return measured


def _announce(screen: Console, cfg: DictConfig, parts: Parts, path: Path, found: Checkpoint | None) -> None:
    device, count, processes = parts.trainer.strategy.root_device, torch.get_num_threads(), parts.trainer.world_size
    computing = f"{count} thread{'s' if count > 1 else ''}"
    computing = f"{processes} processes of {computing}" if processes > 1 else computing
    screen.print(f"{cfg.name}  seed {cfg.seed}  on {device}, {computing}")
    screen.print(f"run {terminal.show_path(path)}")
    if found is not None:
        screen.print(f"resumed from {found.path.name}, step {found.step}")
    if parts.task.spikes_come_in and not parts.encoder.spikes and parts.data.spikes is None:
        screen.print("all inputs are 0 or 1 and count as spikes; data.spikes=false counts them as values")


def facts(cfg: DictConfig, parts: Parts) -> dict[str, Any]:
    """What run.json says of a run before it begins."""
    device = parts.trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "seed": cfg.seed,
        "experiment": cfg.name,
        "metrics": {},
        "device": f"{parts.trainer.world_size} x {name}",
        "threads": torch.get_num_threads(),
        "kernel": parts.kernel,
        "input_spikes": parts.task.spikes_come_in,
        "inputs": "dense" if parts.task.encode is parts.encoder else "events",
        "decoder": parts.decoder,
        "samples": parts.data.counts(*_limits(cfg), parts.trainer.world_size),
        "wall_s": {},
        "samples_per_s": None,
    }


def _limits(cfg: DictConfig) -> tuple[int | None, int | None]:
    return cfg.trainer.get("limit_batches"), cfg.trainer.get("limit_test_batches")


def _record_success(
    cfg: DictConfig, parts: Parts, run_dir: Run, measured: dict[str, float], clock: dict[str, float], steps: int
) -> None:
    began, built, fitted, tested = (clock[name] for name in ("began", "built", "fitted", "tested"))
    watching = parts.trainer.callbacks  # type: ignore[attr-defined]
    (saver,) = (callback for callback in watching if isinstance(callback, saving.Checkpoints))
    (drawing,) = (callback for callback in watching if isinstance(callback, probe.Probe))
    drawn = drawing.spent_s
    wall_s = {
        "build": built - began,
        "fit": fitted - built - saver.spent_s - drawn["fit"],
        "save": saver.spent_s,
        "draw": sum(drawn.values()),
        "test": tested - fitted - drawn["test"],
        "total": tested - began,
    }
    samples = steps * min(parts.data.batch_size, len(parts.data.train))
    run_dir.update(
        status="finished", exit_code=0, metrics=measured, wall_s=wall_s, samples_per_s=samples / wall_s["fit"]
    )


def _shown(cfg: DictConfig, parts: Parts, record: Record) -> Record:
    """``record``, after the person has seen how the run ended; it has, whatever becomes of this."""
    if parts.trainer.is_global_zero:
        screen, run_dir = terminal.console(), Run(record.path)
        if curve := terminal.loss_curve(screen, run_dir.metrics()):
            screen.print(curve)
        published = recipes.published(config.plain(cfg), run_dir.overrides())
        screen.print(terminal.result_table(record.metrics, published))
        screen.print(f"run {terminal.show_path(record.path)}  {run_dir.read()['wall_s']['total']:.1f} s")
        terminal.show_command(screen, "report", "snnexp", "report", record.path)
    return record


def record_failure(run_dir: Run, error: BaseException) -> None:
    """Write into run.json how a run ended that did not finish."""
    if isinstance(error, KeyboardInterrupt):
        error = InterruptedRunError(signal.SIGINT)
    status, reason, code = ending(error)
    run_dir.update(status=status, exit_code=74 if isinstance(error, OSError) else code, reason=line(reason))
    if isinstance(error, PartError):
        with open(append_to(run_dir.path / "train.log"), "a", encoding="utf-8") as log:
            log.write(error.frames)
        error.frames = ""
