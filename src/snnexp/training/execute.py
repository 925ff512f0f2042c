"""Run and resume an experiment; :mod:`snnexp.experiment` is the public interface."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from omegaconf import DictConfig
from rich.console import Console

from snnexp import config, terminal, threads
from snnexp.config import decoding, recipes, user_parts
from snnexp.errors import (
    DivergedError,
    InterruptedRunError,
    SnnexpError,
    is_worker_failure,
)
from snnexp.isolation import isolated
from snnexp.limits import out_of_memory_as_config_error
from snnexp.record.checkpoint import Checkpoint
from snnexp.record.measures import main_metric
from snnexp.record.run import Run
from snnexp.training import callbacks, initial, loggers, observers, probe, processes, progress, saving
from snnexp.training.assembly import Parts
from snnexp.training.members import Bridge, Member, Observer
from snnexp.training.observer_setup import run_observers
from snnexp.training.processes import PeerProcesses
from snnexp.training.signals import Signals
from snnexp.training.start import Start
from snnexp.training.task import Task


@dataclass(repr=False)
class Record:
    """How a run ended."""

    path: Path
    status: str
    metrics: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        main = main_metric(self.metrics)
        measured = "" if main is None else f", {main} {self.metrics[main]:.4g} and {len(self.metrics) - 1} more"
        return f"Record({str(self.path)!r}, {self.status}{measured})"


@dataclass
class Clock:
    """End times of the stages of a run, in seconds."""

    began: float = field(default_factory=time.perf_counter)
    built: float = 0.0
    fitted: float = 0.0
    tested: float = 0.0

    def wall_s(self, saved: float, drawn: Mapping[str, float], members: int = 1) -> dict[str, float]:
        """Return the duration of each stage for run.json, divided by the number of members.

        Args:
            saved: seconds spent on checkpoints.
            drawn: seconds spent on figures while training (``fit``) and after the test (``test``).
            members: number of members trained together.
        """
        stages = {
            "build": self.built - self.began,
            "fit": self.fitted - self.built - saved - drawn["fit"],
            "save": saved,
            "draw": sum(drawn.values()),
            "test": self.tested - self.fitted - drawn["test"],
            "total": self.tested - self.began,
        }
        return {name: seconds / members for name, seconds in stages.items()}


def run(
    cfg: DictConfig,
    overrides: Sequence[str] = (),
    parent: Path | None = None,
    on_created: Callable[[Path], object] = lambda path: None,
    watching: Sequence[Callback] = (),
) -> Record:
    """Train, test and record.

    Args:
        cfg: a checked config, from :func:`compose`.
        overrides: recorded as command-line overrides; by default those of ``cfg`` and later changes to it.
        parent: parent of the run directory; by default ``<logger.root>/<name>``.
        on_created: called with the run directory after it is created.
        watching: additional Lightning callbacks; checkpoints do not store their state.

    Raises:
        SnnexpError: the run could not start, diverged or was interrupted; run.json records it.
    """
    # cfg may have been modified since it was composed
    overrides, cfg = overrides or config.overrides_of(cfg), config.check(cfg)
    return execute(Start.new(cfg, overrides, parent), on_created, watching)


def resume(path: str | Path, overrides: Sequence[str] = (), watching: Sequence[Callback] = ()) -> Record:
    """Resume an unfinished run; the result equals that of an uninterrupted run.

    The number of threads stays the same unless ``trainer.threads`` or OMP_NUM_THREADS is set. On the same machine and
    with the same number of threads, weights, optimizer state and metrics.jsonl are bit-identical to those of an
    uninterrupted run. A finished run continues only if ``trainer.max_epochs`` is raised.

    Args:
        path: the run directory.
        overrides: overrides of keys that do not affect the results, such as ``trainer.max_epochs=20``.
        watching: as for :func:`run`.

    Raises:
        ConfigError: not a run directory, or an override affects the results.
        CheckpointError: all its checkpoints are damaged.
        InUseError: another process writes to the run.
        SnnexpError: as for :func:`run`.
    """
    return execute(Start.resumed(path, overrides), watching=watching)


@isolated()
def execute(
    start: Start, on_created: Callable[[Path], object] = lambda path: None, watching: Sequence[Callback] = ()
) -> Record:
    """Open, build, begin, train, test and record a run, new or resumed.

    Args:
        start: the run.
        on_created: called with the run directory once the run has begun, or once a failed start is recorded.
        watching: as for :func:`run`.

    Raises:
        SnnexpError: as for :func:`run`.
    """
    with (
        Signals() as signals,
        PeerProcesses() as others,
        out_of_memory_as_config_error(),
        signals.reraising_interrupts(),
    ):
        clock = Clock()
        if (path := others.wait_for_run(start.read())) is not None:
            return _follow(path, signals, watching)
        try:
            try:
                with out_of_memory_as_config_error(), signals.reraising_interrupts():
                    start.open()
                    _prepare(start, signals, watching)
            except SnnexpError as error:
                if start.fail(error):
                    on_created(start.run.path)
                raise
            if start.is_finished:
                run_path = terminal.format_path(start.run.path)
                terminal.console().print(f"run {run_path}  {start.finished_message}, nothing is left to do")
                return Record(start.run.path, "finished", start.previous_record.get("metrics", {}))
            with _record_failures(start), out_of_memory_as_config_error(), signals.reraising_interrupts():
                start.begin()
                signals.run = start.run
                on_created(start.run.path)
                others.announce(start.parts.trainer, start.run)
                record = _execute(start, clock, signals)
            return _print_summary(start.cfg, record)
        finally:
            start.run.close()


def follow(path: Path, first: int) -> None:
    """Train and test in a process of rank 1 or higher; rank 0 records the run.

    Args:
        path: the run directory, with the config written by rank 0.
        first: process id of rank 0; this process ends with it.
    """
    with Signals() as signals, out_of_memory_as_config_error(), signals.reraising_interrupts():
        signals.parent = first
        _follow(path, signals, ())


def _follow(path: Path, signals: Signals, watching: Sequence[Callback]) -> Record:
    start = Start(Run(path))
    # rank 0 holds the lock
    start.read()
    _prepare(start, signals, watching)
    with _record_failures(start), out_of_memory_as_config_error(), signals.reraising_interrupts():
        return _execute(start, Clock(), signals)


def _prepare(start: Start, signals: Signals, others: Sequence[Callback]) -> None:
    """Do all preparation that does not write to disk."""
    threads.use(start.threads)
    parts = start.build()
    trainer, logger = parts.trainer, start.cfg.logger
    member = Member(parts.task, run_observers(start))
    bridge = Bridge.of(trainer)
    bridge.assigned = bridge.members = [member]
    saver = saving.SaveCheckpoints(bridge, logger.save_every_n_epochs, logger.save_every_s)
    start.find_checkpoint(member.observers)
    if start.checkpoint is not None:
        member.resume(start.checkpoint.content, trainer.global_rank)
        parts.task.resumed = start.checkpoint.content
        saver.resume(trainer, start.checkpoint)
    signals.checkpoints, signals.data, signals.launcher = saver, parts.data, trainer.strategy.launcher
    display = [progress.ProgressDisplay(terminal.console())] if trainer.is_global_zero else []
    random = callbacks.StatelessSeeding(start.cfg.seed)
    if logger.get("test_every_epoch", False):
        callbacks.EvaluateTestSplit.join(trainer, start.cfg.trainer.get("limit_test_batches"), random)
    # Signals comes last: it stops the training
    trainer.callbacks += [random, *display, saver, *others, signals]  # type: ignore[attr-defined]


def _execute(start: Start, clock: Clock, signals: Signals) -> Record:
    trainer = start.parts.trainer
    try:
        with user_parts.wrap_errors(cfg=start.cfg):
            measured = _train_and_test(start, clock)
    except RuntimeError as error:
        # a signal to the process group may kill a data worker that does not ignore it yet
        if is_worker_failure(error):
            signals.raise_if_received()
        # Lightning hides the OSError of workers that could not be started
        if isinstance(error.__context__, OSError) and error.__cause__ is None:
            raise error.__context__ from None
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            signals.raise_if_received()
            # a failed process may take a while to exit
            signals.require_others(patience_s=20)
            processes.require_others(trainer, error)
        raise
    signals.raise_if_received()
    if trainer.is_global_zero:
        (member,), saver = Bridge.of(trainer).members, signals.checkpoints
        assert saver is not None
        record_success(start, member, measured, clock.wall_s(saver.spent_s, drawing_s(member.observers)), trainer)
    return Record(start.run.path, "finished", measured)


@contextmanager
def _record_failures(start: Start) -> Iterator[None]:
    """Record the failure of a run, and destroy its process group."""
    try:
        yield
    except BaseException as error:
        if start.parts.trainer.is_global_zero:
            start.fail(error)
            if start.has_begun and isinstance(error, (InterruptedRunError, KeyboardInterrupt)):
                terminal.print_command(terminal.console(), "resume", "snnexp", "resume", start.run.path)
        elif isinstance(error, (InterruptedRunError, DivergedError)):
            # raised on all ranks and reported by rank 0
            raise SystemExit(0) from error
        raise
    finally:
        if torch.distributed.is_initialized():
            # otherwise a second run would join the group of the first
            torch.distributed.destroy_process_group()


def fit_and_test(
    trainer: Trainer, task: Task, data: LightningDataModule, checkpoint: Checkpoint | None, clock: Clock
) -> dict[str, float]:
    """Train from a checkpoint and test; return the metrics of the last validation and of the test."""
    if checkpoint is not None:
        saving.resume_at(trainer, checkpoint)
    clock.built = time.perf_counter()
    trainer.fit(task, datamodule=data)
    clock.fitted = time.perf_counter()
    # the test clears them
    measured = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    measured |= trainer.test(task, datamodule=data, verbose=False)[0]
    clock.tested = time.perf_counter()
    return measured


def _train_and_test(start: Start, clock: Clock) -> dict[str, float]:
    cfg, parts, run_dir, checkpoint = start.cfg, start.parts, start.run, start.checkpoint
    trainer, main = parts.trainer, parts.trainer.is_global_zero
    if main:
        _print_header(terminal.console(), cfg, parts, run_dir.path, checkpoint)
    with terminal.quiet(run_dir.path / "train.log" if main else None):
        trainer.loggers = loggers.make_loggers(run_dir, cfg, None if checkpoint is None else checkpoint.step, main)
        try:
            measured = {**start.measured_before(), **fit_and_test(trainer, parts.task, parts.data, checkpoint, clock)}
            if main:
                hyperparameters = recipes.hyperparameters(config.plain(cfg), run_dir.overrides())
                loggers.log_result(trainer.loggers, hyperparameters, measured)
        except BaseException:
            loggers.close(trainer.loggers, "failed")
            raise
        loggers.close(trainer.loggers, "success")
    return measured


def _print_header(screen: Console, cfg: DictConfig, parts: Parts, path: Path, checkpoint: Checkpoint | None) -> None:
    device, count, processes = parts.trainer.strategy.root_device, torch.get_num_threads(), parts.trainer.world_size
    resources = f"{count} thread{'s' if count > 1 else ''}"
    resources = f"{processes} processes of {resources}" if processes > 1 else resources
    screen.print(f"{cfg.name}  seed {cfg.seed}  on {device}, {resources}")
    screen.print(f"run {terminal.format_path(path)}")
    if checkpoint is not None:
        screen.print(f"resumed from {checkpoint.path.name}, step {checkpoint.step}")
    init = config.get_init_from(cfg)
    if checkpoint is None and (file := initial.initial_checkpoint(init)) is not None:
        screen.print(f"starts from the weights of {terminal.format_path(file)}")
    if init.freeze:
        screen.print(f"not trained: {', '.join(init.freeze)}")
    if parts.task.inputs_are_spikes and not parts.encoder.spikes and parts.data.spikes is None:
        screen.print("all inputs are 0 or 1 and count as spikes; data.spikes=false counts them as values")
    checks_itself = getattr(parts.data.train, "checks_itself", False)
    if parts.data.spikes is None and parts.data.sequences and checks_itself and not parts.encoder.spikes:
        screen.print("inputs are read lazily and count as values; data.spikes=true counts them as spikes")


def record_success(
    start: Start, member: Member, measured: Mapping[str, float], wall_s: Mapping[str, float], trainer: Trainer
) -> None:
    """Record that a run finished, where it stopped early, and whether it predicts only one class."""
    samples = (member.progress(trainer)[0] - start.step) * min(start.parts.data.step_size, len(start.parts.data.train))
    (counts,) = (observer for observer in member.observers if isinstance(observer, observers.EvaluationCounts))
    start.run.close_metrics()
    if start.cfg.logger.get("csv", False):
        start.run.write_csv()
    start.run.update(
        status="finished",
        exit_code=0,
        metrics=dict(measured),
        wall_s=dict(wall_s),
        samples_per_s=samples / wall_s["fit"],
        **({} if member.stopped is None else {"stopped_early": member.stopped._asdict()}),
        **({} if (only := counts.only_class) is None else {"only_class": only}),
    )
    start.run.keep_checkpoints(start.cfg.logger.get("keep", "all"))


def drawing_s(observers: Sequence[Observer]) -> dict[str, float]:
    """Return the seconds spent on drawing while training (``fit``) and after the test (``test``)."""
    (drawing,) = (observer for observer in observers if isinstance(observer, probe.Probe))
    return drawing.spent_s


def _print_summary(cfg: DictConfig, record: Record) -> Record:
    """Print how the run ended and return ``record``; the run has already been recorded."""
    screen, run_dir = terminal.console(), Run(record.path)
    if curve := terminal.loss_curve(screen, run_dir.metrics()):
        screen.print(curve)
    published = recipes.published(config.plain(cfg), run_dir.overrides())
    decoder = decoding.decoder_name(config.plain(cfg), run_dir.read().get("decoder"))
    screen.print(terminal.result_table(record.metrics, published, decoder))
    facts = run_dir.facts()
    for sentence in filter(None, (facts.single_class_note, facts.stopped_early)):
        screen.print(sentence, markup=False)
    screen.print(f"run {terminal.format_path(record.path)}  {run_dir.read()['wall_s']['total']:.1f} s")
    terminal.print_command(screen, "report", "snnexp", "report", record.path)
    return record
