"""Run an experiment, go on with it, measure it again; from the command line or a notebook.

cfg = compose(["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"])
parts = build(cfg)
record = run(cfg)
record = resume(record.path, ["trainer.max_epochs=2"])
measured = evaluate(record.path, split="val")
"""

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
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from snnexp import callbacks, checkpoints, config, console, domains, limits, probe, progress, runs, saving
from snnexp.assembly import Parts, build
from snnexp.checkpoints import Checkpoint
from snnexp.config import compose
from snnexp.errors import CheckpointError, ConfigError, DataError, DivergedError, InterruptedRunError, SnnexpError
from snnexp.runs import Run

__all__ = ["Parts", "Record", "build", "compose", "evaluate", "resume", "run"]

RUN_DIR, FIRST = "SNNEXP_RUN_DIR", "SNNEXP_FIRST_PROCESS"
"""Tell the processes that ddp starts which directory the first one has made, and that it is the first one's."""
OWN = ("last", "best", "init")
"""Checkpoints of a run, by what is typed."""


@dataclass
class Record:
    """How a run ended."""

    path: Path
    status: str
    metrics: dict[str, float] = field(default_factory=dict)


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
        overrides: what was typed, for the record.
        parent: the folder in which the run directory is made, ``<logger.root>/<name>`` by default.
        begun: told the run directory, once it is there.
        watching: callbacks of Lightning's besides the run's own; they have no state that a checkpoint would keep.

    Raises:
        SnnexpError: the run could not start, diverged or was interrupted; run.json says so too.
    """
    with saving.Signals() as signals, memory_told():
        clock = {"began": time.perf_counter()}
        # it may have been changed since
        cfg = config.check(cfg)
        require_own_processes(cfg)
        parts = build(cfg)
        if parts.trainer.is_global_zero:
            folder = parent or Path(cfg.logger.root) / cfg.name
            run_dir = Run.create(folder, OmegaConf.to_yaml(cfg), overrides, facts(cfg, parts))
            begun(run_dir.path)
        else:
            run_dir = Run(Path(os.environ[RUN_DIR]))
        with _recorded(run_dir, parts), memory_told():
            _watch(cfg, parts, run_dir, signals, watching)
            record = _carry_out(cfg, parts, run_dir, clock, signals)
        return _shown(cfg, parts, record)


def resume(path: str | Path, overrides: Sequence[str] = (), watching: Sequence[Callback] = ()) -> Record:
    """Go on with a run that did not finish, to the same end as if nothing had stopped it.

    On the same machine and with as many threads, weights, optimiser and metrics.jsonl end as those of a run that was
    never interrupted, to the bit. A run that finished goes on if ``trainer.max_epochs`` is raised, else it stays.

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
    with saving.Signals() as signals, memory_told():
        clock = {"began": time.perf_counter()}
        run_dir = Run.open(Path(path))
        require_own_processes(config.change(config.load(run_dir.path / "config.yaml"), overrides))
        # the processes that ddp starts find the directory locked by the first one
        if not follows():
            run_dir.lock()
        try:
            saved = config.load(run_dir.path / "config.yaml")
            cfg = without_download(config.change(saved, overrides), overrides)
            config.require_same(saved, cfg)
            parts = build(cfg)
            saver = _watch(cfg, parts, run_dir, signals, watching)
            before = run_dir.read()
            found = find(cfg, parts, run_dir, parts.trainer.callbacks)  # type: ignore[attr-defined]
            reached = saved.trainer.max_epochs if found is None else found.config["trainer"]["max_epochs"]
            if before.get("status") == "finished" and cfg.trainer.max_epochs <= reached:
                console.console().print(f"run {console.show_path(run_dir.path)}  had finished, nothing is left to do")
                return Record(run_dir.path, "finished", before.get("metrics", {}))
            if found is not None:
                saver.go_on_from(found)
                parts.data.begin = found.position
            with _recorded(run_dir, parts), memory_told():
                if parts.trainer.is_global_zero:
                    begin_again(cfg, parts, run_dir, before, found)
                record = _carry_out(cfg, parts, run_dir, clock, signals, found)
            return _shown(cfg, parts, record)
        finally:
            run_dir.close()


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
    with saving.Signals() as signals, memory_told():
        run_dir = Run.open(Path(path))
        saved = config.load(run_dir.path / "config.yaml")
        cfg = without_download(config.change_evaluation(saved, overrides), overrides)
        processes, cfg.trainer.devices, cfg.trainer.strategy = cfg.trainer.devices, 1, "auto"
        if split != "test":
            cfg.trainer.limit_test_batches = _limits(cfg)[0]
        own = checkpoint in OWN
        file = run_dir.checkpoints / f"{checkpoint}.ckpt" if own else Path(checkpoint)
        if not file.is_file():
            raise CheckpointError(f"{file}: no such checkpoint; the choice is {', '.join(OWN)}, or a file")
        parts = build(cfg)
        signals.data = parts.data
        loader = parts.data.loader(split)
        watching = _watching(cfg, parts, processes)
        if own:
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
        with console.quiet():
            measured = parts.trainer.test(parts.task, dataloaders=loader, verbose=False)[0]
        return {f"{split}/{name.removeprefix('test/')}": value for name, value in measured.items()}


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
        if not isinstance(error, MemoryError) and (limit := limits.met(error)):
            raise ConfigError(limit) from error
        # PyTorch has no class of its own for a CPU that has no more
        if "DataLoader worker" in str(error):
            raise DataError(f"data.num_workers: {domains.line(str(error))}") from error
        words = ("can't allocate memory", "Storage size calculation overflowed")
        full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)
        if not full:
            raise
        raise ConfigError("network: does not fit into memory with this data.batch_size and num_steps") from error


def without_download(cfg: DictConfig, typed: Sequence[str]) -> DictConfig:
    """A saved config, which downloads only where that is typed."""
    return cfg if any(override.startswith("data.download=") for override in typed) else config.offline(cfg)


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
    with console.quiet(run_dir.path / "train.log" if parts.trainer.is_global_zero else None):
        return checkpoints.find(run_dir, wanted, batches, require_same)


def begin_again(
    cfg: DictConfig, parts: Parts, run_dir: Run, before: Mapping[str, Any], found: Checkpoint | None
) -> None:
    """Put the record of a run back to where it goes on."""
    run_dir.rewind(0 if found is None else found.content["metrics"]["bytes"])
    runs.write_atomically(run_dir.path / "config.yaml", OmegaConf.to_yaml(cfg).encode())
    steps = before.get("resumed_at_step")
    again = {
        "status": "running",
        "exit_code": None,
        "resumed_at_step": [*(steps if isinstance(steps, list) else []), 0 if found is None else found.step],
    }
    kept = {key: value for key, value in before.items() if key not in ("reason", "stack")}
    now = {**facts(cfg, parts), "versions": runs.versions(), "git": runs.git()}
    for name in ("device", "threads", "kernel"):
        if name in before and before[name] != now[name]:
            change = f"{name}: {before[name]} -> {now[name]}"
            console.tell(f"{change}, so the run may end in other digits than one that was not interrupted")
    run_dir.write(kept | now | again)


def _watching(cfg: DictConfig, parts: Parts, processes: int) -> list[Callback]:
    """What draws, counts and tells; the callbacks that a test needs too."""
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
    cfg: DictConfig, parts: Parts, run_dir: Run, signals: saving.Signals, others: Sequence[Callback]
) -> saving.Checkpoints:
    """Give the trainer all that watches a run; returns what saves it."""
    watching = watching_over(cfg, parts, run_dir)
    (saver,) = (callback for callback in watching if isinstance(callback, saving.Checkpoints))
    signals.checkpoints, signals.data, signals.launcher = saver, parts.data, parts.trainer.strategy.launcher
    shown: list[Callback] = []
    if parts.trainer.is_global_zero:
        signals.run = run_dir
        shown.append(progress.ProgressDisplay(console.console()))
    else:
        signals.parent = int(os.environ[FIRST])
    # what stops comes last
    parts.trainer.callbacks += [*shown, *watching, *others, signals]  # type: ignore[attr-defined]
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
    signals: saving.Signals,
    found: Checkpoint | None = None,
) -> Record:
    if parts.trainer.world_size > 1 and parts.trainer.is_global_zero:
        lead(run_dir)
    try:
        measured = _train_and_test(cfg, parts, run_dir, clock, found)
    except RuntimeError as error:
        # a signal to the whole group may find a data worker that does not ignore it yet
        if "DataLoader worker" in str(error):
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
        elif isinstance(error, (InterruptedRunError, DivergedError)):
            # on which all agree, and the first one tells
            raise SystemExit(0) from error
        raise
    finally:
        run_dir.close()
        _forget_processes()


def _train_and_test(
    cfg: DictConfig,
    parts: Parts,
    run_dir: Run,
    clock: dict[str, float],
    found: Checkpoint | None,
) -> dict[str, float]:
    trainer, main = parts.trainer, parts.trainer.is_global_zero
    if main:
        _announce(console.console(), cfg, parts, run_dir.path, found)
    board = TensorBoardLogger(
        run_dir.path,
        name="",
        version="tensorboard",
        default_hp_metric=False,
        # what was drawn after the checkpoint is drawn again
        purge_step=None if found is None else found.step,
    )
    trainer.loggers = [callbacks.RunLogger(run_dir), *([board] if cfg.logger.tensorboard else [])]
    with console.quiet(run_dir.path / "train.log" if main else None):
        clock["built"] = time.perf_counter()
        trainer.fit(parts.task, datamodule=parts.data, ckpt_path=None if found is None else found.path)
        clock["fitted"] = time.perf_counter()
        # of the last epoch; a test forgets them
        logged = trainer.callback_metrics
        measured = {name: float(value) for name, value in logged.items() if name.startswith("val/")}
        measured |= trainer.test(parts.task, datamodule=parts.data, verbose=False)[0]
        clock["tested"] = time.perf_counter()
        if cfg.logger.tensorboard and main:
            board.log_hyperparams(config.flat(cfg), measured)
            board.finalize("success")
    return measured


def _announce(terminal: Console, cfg: DictConfig, parts: Parts, path: Path, found: Checkpoint | None) -> None:
    device = parts.trainer.strategy.root_device
    title = f"{cfg.name}  seed {cfg.seed}  on {device}, {torch.get_num_threads()} threads"
    if terminal.is_terminal:
        terminal.print(console.config_tree(title, OmegaConf.to_container(cfg)))  # type: ignore[arg-type]
    else:
        terminal.print(title)
    beginning = "" if found is None else f"  going on from {found.path.name}, step {found.step}"
    terminal.print(f"run {console.show_path(path)}{beginning}")
    if parts.task.spikes_come_in and not parts.encoder.spikes and parts.data.spikes is None:
        terminal.print("all inputs are 0 or 1 and count as spikes; data.spikes=false counts them as values")


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
        terminal, run_dir = console.console(), Run(record.path)
        if curve := console.loss_curve(terminal, run_dir.metrics()):
            terminal.print(curve)
        terminal.print(console.result_table(record.metrics, cfg.published))
        terminal.print(f"run {console.show_path(record.path)}  {run_dir.read()['wall_s']['total']:.1f} s")
    return record


def record_failure(run_dir: Run, error: BaseException) -> None:
    """Write into run.json how a run ended that did not finish."""
    if isinstance(error, KeyboardInterrupt):
        error = InterruptedRunError(signal.SIGINT)
    code = error.exit_code if isinstance(error, SnnexpError) else 74 if isinstance(error, OSError) else 1
    reason = str(error).strip() or type(error).__name__
    run_dir.update(status=getattr(error, "status", "failed"), exit_code=code, reason=reason.splitlines()[0])


def _forget_processes() -> None:
    """Leave the group of ddp and its variables, or a second run would take itself for a member of the first."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not follows():
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", RUN_DIR, FIRST):
            os.environ.pop(name, None)
