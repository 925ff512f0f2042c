"""Run an experiment, resume it, measure it again; :mod:`snnexp.experiment` is its public side."""

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
    """When a stage ended, in seconds."""

    began: float = field(default_factory=time.perf_counter)
    built: float = 0.0
    fitted: float = 0.0
    tested: float = 0.0

    def wall_s(self, saved: float, drawn: Mapping[str, float], members: int = 1) -> dict[str, float]:
        """What run.json says of the time that each stage took: the share of one of the members.

        Args:
            saved: seconds for checkpoints.
            drawn: seconds for figures while training (``fit``) and after the test (``test``).
            members: that were trained together.
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
        overrides: what was typed, for the record; by default that of ``cfg``, and what was changed since.
        parent: the folder in which the run directory is made, ``<logger.root>/<name>`` by default.
        on_created: called with the run directory after it is created.
        watching: callbacks of Lightning's besides the run's own; they have no state that a checkpoint would keep.

    Raises:
        SnnexpError: the run could not start, diverged or was interrupted; run.json says so too.
    """
    # it may have been changed since
    overrides, cfg = overrides or config.overrides_of(cfg), config.check(cfg)
    return execute(Start.new(cfg, overrides, parent), on_created, watching)


def resume(path: str | Path, overrides: Sequence[str] = (), watching: Sequence[Callback] = ()) -> Record:
    """Resume a run that did not finish, to the same end as if nothing had stopped it.

    It computes with as many threads as before, unless ``trainer.threads`` or OMP_NUM_THREADS says otherwise. On the
    same machine and with as many threads, weights, optimiser and metrics.jsonl end as those of a run that was never
    interrupted, to the bit. A run that finished is resumed if ``trainer.max_epochs`` is raised, else it stays.

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
    return execute(Start.resumed(path, overrides), watching=watching)


@isolated()
def execute(
    start: Start, on_created: Callable[[Path], object] = lambda path: None, watching: Sequence[Callback] = ()
) -> Record:
    """Open, build, begin, train, test and record a run, whether it is new or resumed.

    Args:
        start: the run.
        on_created: called with the run directory, once the run has begun or, of a point that cannot begin, says why.
        watching: as of :func:`run`.

    Raises:
        SnnexpError: as :func:`run`.
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
                shown = terminal.format_path(start.run.path)
                terminal.console().print(f"run {shown}  {start.finished_message}, nothing is left to do")
                return Record(start.run.path, "finished", start.previous_record.get("metrics", {}))
            with _record_failures(start), out_of_memory_as_config_error(), signals.reraising_interrupts():
                start.begin()
                signals.run = start.run
                on_created(start.run.path)
                others.lead(start.parts.trainer, start.run)
                record = _execute(start, clock, signals)
            return _print_summary(start.cfg, record)
        finally:
            start.run.close()


def follow(path: Path, first: int) -> None:
    """Do the part of another process than the first of a run, which records all of it.

    Args:
        path: the run directory, where the first one has written the config.
        first: the number of that process, without which this one ends.
    """
    with Signals() as signals, out_of_memory_as_config_error(), signals.reraising_interrupts():
        signals.parent = first
        _follow(path, signals, ())


def _follow(path: Path, signals: Signals, watching: Sequence[Callback]) -> Record:
    start = Start(Run(path))
    # which the first process has locked
    start.read()
    _prepare(start, signals, watching)
    with _record_failures(start), out_of_memory_as_config_error(), signals.reraising_interrupts():
        return _execute(start, Clock(), signals)


def _prepare(start: Start, signals: Signals, others: Sequence[Callback]) -> None:
    """All before the first step that leaves nothing on the disk."""
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
    # what stops comes last
    trainer.callbacks += [random, *display, saver, *others, signals]  # type: ignore[attr-defined]


def _execute(start: Start, clock: Clock, signals: Signals) -> Record:
    trainer = start.parts.trainer
    try:
        with user_parts.wrap_errors(cfg=start.cfg):
            measured = _train_and_test(start, clock)
    except RuntimeError as error:
        # a signal to the whole group may find a data worker that does not ignore it yet
        if is_worker_failure(error):
            signals.raise_if_received()
        # where workers could not be started, Lightning stumbles over it, and then tells only that
        if isinstance(error.__context__, OSError) and error.__cause__ is None:
            raise error.__context__ from None
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            signals.raise_if_received()
            # one that has failed may take a while to end
            signals.require_others(patience_s=20)
            processes.require_others(trainer, error)
        raise
    signals.raise_if_received()
    if trainer.is_global_zero:
        (member,), saver = Bridge.of(trainer).members, signals.checkpoints
        assert saver is not None
        succeed(start, member, measured, clock.wall_s(saver.spent_s, drawing_s(member.observers)), trainer)
    return Record(start.run.path, "finished", measured)


@contextmanager
def _record_failures(start: Start) -> Iterator[None]:
    """Write down how a run ended that did not finish, and let go of its processes."""
    try:
        yield
    except BaseException as error:
        if start.parts.trainer.is_global_zero:
            start.fail(error)
            if start.has_begun and isinstance(error, (InterruptedRunError, KeyboardInterrupt)):
                terminal.print_command(terminal.console(), "resume", "snnexp", "resume", start.run.path)
        elif isinstance(error, (InterruptedRunError, DivergedError)):
            # on which all agree, and the first one tells
            raise SystemExit(0) from error
        raise
    finally:
        if torch.distributed.is_initialized():
            # a second run would take itself for a member of the first
            torch.distributed.destroy_process_group()


def fit_and_test(
    trainer: Trainer, task: Task, data: LightningDataModule, checkpoint: Checkpoint | None, clock: Clock
) -> dict[str, float]:
    """Train and test from the place of a checkpoint on; returns what was logged of the last epoch and of the test."""
    if checkpoint is not None:
        saving.resume_at(trainer, checkpoint)
    clock.built = time.perf_counter()
    trainer.fit(task, datamodule=data)
    clock.fitted = time.perf_counter()
    # a test forgets them
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
                typed = recipes.hyperparameters(config.plain(cfg), run_dir.overrides())
                loggers.log_result(trainer.loggers, typed, measured)
        except BaseException:
            loggers.close(trainer.loggers, "failed")
            raise
        loggers.close(trainer.loggers, "success")
    return measured


def _print_header(screen: Console, cfg: DictConfig, parts: Parts, path: Path, checkpoint: Checkpoint | None) -> None:
    device, count, processes = parts.trainer.strategy.root_device, torch.get_num_threads(), parts.trainer.world_size
    computing = f"{count} thread{'s' if count > 1 else ''}"
    computing = f"{processes} processes of {computing}" if processes > 1 else computing
    screen.print(f"{cfg.name}  seed {cfg.seed}  on {device}, {computing}")
    screen.print(f"run {terminal.format_path(path)}")
    if checkpoint is not None:
        screen.print(f"resumed from {checkpoint.path.name}, step {checkpoint.step}")
    init = config.get_init_from(cfg)
    if checkpoint is None and (file := initial.checkpoint_of(init)) is not None:
        screen.print(f"starts from the weights of {terminal.format_path(file)}")
    if init.freeze:
        screen.print(f"not trained: {', '.join(init.freeze)}")
    if parts.task.spikes_come_in and not parts.encoder.spikes and parts.data.spikes is None:
        screen.print("all inputs are 0 or 1 and count as spikes; data.spikes=false counts them as values")
    checks_itself = getattr(parts.data.train, "checks_itself", False)
    if parts.data.spikes is None and parts.data.sequences and checks_itself and not parts.encoder.spikes:
        screen.print("inputs are not known before they are read and count as values; data.spikes=true counts spikes")


def succeed(
    start: Start, member: Member, measured: Mapping[str, float], wall_s: Mapping[str, float], trainer: Trainer
) -> None:
    """Write down that a run has finished, where it has stopped early, and whether it knows a single class."""
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
    """What drawing took while training and after the test."""
    (drawing,) = (observer for observer in observers if isinstance(observer, probe.Probe))
    return drawing.spent_s


def _print_summary(cfg: DictConfig, record: Record) -> Record:
    """``record``, after the person has seen how the run ended; it has, whatever becomes of this."""
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
