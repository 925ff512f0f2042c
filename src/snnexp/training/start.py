"""Starts a run, new or resumed, single or stacked."""

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from snnexp import config, terminal, threads
from snnexp.data import Description
from snnexp.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InterruptedRunError,
    PartError,
    describe_failure,
)
from snnexp.record import checkpoint as checkpoints
from snnexp.record.checkpoint import Checkpoint, TypeSpec
from snnexp.record.environment import git, versions
from snnexp.record.files import open_for_append, write_atomically
from snnexp.record.run import Run
from snnexp.text import one_line
from snnexp.training import contracts, loggers
from snnexp.training.assembly import Parts, build
from snnexp.training.initial import load_initial_weights
from snnexp.training.members import Observer


class Start:
    """Prepares a run: :meth:`open`, :meth:`build`, :meth:`find_checkpoint` and :meth:`begin`, in this order.

    Args:
        run: a run prepared in memory, or a directory to resume.
        cfg: the checked config of a new run; that of a directory is read from it.
        overrides: overrides of a resumed run.
        keep_failed: record a failure in a run directory even if data are missing, as for a point of a sweep.
    """

    parts: Parts
    checkpoint: Checkpoint | None = None
    """The latest valid checkpoint, from which the run resumes."""
    extra_observers: Sequence[Observer] = ()
    """Observers in addition to those of every run."""

    def __init__(
        self, run: Run, cfg: DictConfig | None = None, overrides: Sequence[str] = (), keep_failed: bool = False
    ) -> None:
        self.run, self.overrides, self.keep_failed, self.is_new = run, overrides, keep_failed, not run.published
        self.cfg = OmegaConf.create() if cfg is None else cfg
        self.previous_record: dict[str, Any] = {}
        """The content of run.json before this start."""
        self.max_epochs = 0
        """``trainer.max_epochs`` of the previous config."""
        self._rewound = False

    @classmethod
    def new(
        cls, cfg: DictConfig, overrides: Sequence[str], parent: Path | None = None, keep_failed: bool = False
    ) -> "Start":
        """Prepare a new run in ``parent``, by default in ``<logger.root>/<name>``."""
        folder = Path(cfg.logger.root) / cfg.name if parent is None else parent
        return cls(Run.prepare(folder, OmegaConf.to_yaml(cfg), overrides), cfg, keep_failed=keep_failed)

    @classmethod
    def resumed(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Start":
        """Open a run directory; arguments and errors as for :func:`snnexp.training.execute.resume`."""
        return cls(Run.open(Path(path)), overrides=overrides)

    def read(self) -> DictConfig:
        """Return the config; for a resumed run, the saved one with overrides applied.

        Raises:
            ConfigError: an override affects the results.
            CheckpointError: the record is damaged.
        """
        if not self.is_new:
            saved = config.load(self.run.path / "config.yaml")
            self.cfg = without_download(config.change(saved, self.overrides), self.overrides)
            config.require_same(config.plain(saved), config.plain(self.cfg))
            self.previous_record, self.max_epochs = self.run.read(), saved.trainer.max_epochs
        if self.is_new or is_overridden("trainer.threads", self.overrides):
            threads.require(self.cfg)
        return self.cfg

    def open(self) -> DictConfig:
        """Lock the directory of a resumed run, then :meth:`read`.

        Raises:
            InUseError: another process writes to the run.
        """
        if not self.is_new:
            self.run.lock()
        return self.read()

    @property
    def threads(self) -> int:
        """The number of threads."""
        return threads.number(self.cfg, self.previous_record.get("threads"))

    def build(self, trainer: Trainer | None = None) -> Parts:
        """Build the parts; ``trainer`` and errors as for :func:`snnexp.training.assembly.build`.

        Raises:
            ConfigError: also if a training batch is too small for batch norm, or a logger does not exist.
        """
        loggers.require(config.plain(self.cfg)["logger"].get("also", {}))
        self.parts = build(self.cfg, trainer)
        limit, _ = batch_limits(self.cfg)
        contracts.require_batch_norm_samples(self.parts.network, self.parts.data, self.cfg.num_steps, limit)
        return self.parts

    def find_checkpoint(self, observers: Sequence[Observer]) -> None:
        """Find the checkpoint to resume from, with the states of ``observers``.

        Without a checkpoint, load the weights named by ``init_from``.

        Raises:
            ConfigError: ``init_from`` does not name a run.
            CheckpointError: no existing checkpoint is usable, or the weights do not fit.
        """
        if not self.is_new and (checkpoint := self._find_checkpoint(observers)) is not None:
            self.resume_from(checkpoint)
        else:
            load_initial_weights(config.get_init_from(self.cfg), self.parts.task)

    def find_checkpoint_at(self, observers: Sequence[Observer], step: int) -> Checkpoint | None:
        """Return the checkpoint of a step; None if there is no usable one."""
        return self._find_checkpoint(observers, step)

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Start from the position of a checkpoint."""
        self.checkpoint = checkpoint
        self.parts.data.begin = checkpoint.position
        self.max_epochs = checkpoint.config["trainer"]["max_epochs"]

    def _find_checkpoint(self, observers: Sequence[Observer], step: int | None = None) -> Checkpoint | None:
        current = config.plain(self.cfg)

        def require_same(saved: dict[str, Any]) -> None:
            try:
                known = config.check(OmegaConf.create(saved))
            except (ConfigError, RecursionError) as error:
                raise CheckpointError(f"the config in a checkpoint is invalid: {error}") from error
            config.require_same(config.plain(known), current)

        trainer, data = self.parts.trainer, self.parts.data
        # each ddp process gets its share of every batch
        data.trainer = trainer
        batches = min(len(data.train_dataloader()), self.cfg.trainer.limit_batches or sys.maxsize)
        wanted = example_checkpoint(self.parts, observers)
        with terminal.quiet(self.run.path / "train.log" if trainer.is_global_zero else None):
            return checkpoints.find(self.run, wanted, batches, require_same, step)

    @property
    def is_finished(self) -> bool:
        """True if the run is complete."""
        longer = self.cfg.trainer.max_epochs > self.max_epochs and "stopped_early" not in self.previous_record
        return self.previous_record.get("status") == "finished" and not longer

    @property
    def finished_message(self) -> str:
        """Message for a finished run that cannot be resumed."""
        if "stopped_early" in self.previous_record and self.cfg.trainer.max_epochs > self.max_epochs:
            return "is finished: it stopped early, and would stop at the same step with more epochs"
        return "is already finished"

    def measured_before(self) -> dict[str, float]:
        """Return the metrics of the last epoch if the run was stopped after it and only the test is left."""
        if self.checkpoint is None:
            return {}
        trained = self.checkpoint.position[0] >= self.cfg.trainer.max_epochs
        stopped = {"stopped_early", "finishing"} & self.checkpoint.content.keys()
        return self.run.last_validation() if trained or stopped else {}

    @property
    def has_begun(self) -> bool:
        """True once the directory exists and this run may write its record."""
        return self.run.published if self.is_new else self._rewound

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    def begin(self, **extra: Any) -> None:
        """Publish a new run, or rewind the record of a resumed one to its checkpoint.

        Args:
            extra: entries of run.json in addition to those of :func:`facts`.
        """
        record = {**facts(self.cfg, self.parts), **extra}
        if self.is_new:
            self.run.publish(record)
            return
        # do everything that may fail or take long before the first change
        made_with = {} if "versions" in extra else {"versions": versions(), "git": git()}
        resumed = self.run.resume_entries(self.previous_record, self.step, self.overrides)
        for name in ("device", "threads", "kernel"):
            if name in self.previous_record and self.previous_record[name] != record[name]:
                change = f"{name}: {self.previous_record[name]} -> {record[name]}"
                terminal.warn(f"{change}, so results may differ in the last digits from an uninterrupted run")
        preserved = {
            key: value for key, value in self.previous_record.items() if key not in ("reason", "stack", "only_class")
        }
        self._rewound = True
        self.run.rewind(0 if self.checkpoint is None else self.checkpoint.content["metrics"]["bytes"])
        write_atomically(self.run.path / "config.yaml", OmegaConf.to_yaml(self.cfg).encode())
        self.run.write({**preserved, **made_with, **record, "status": "running", "exit_code": None, **resumed})

    def fail(self, error: BaseException) -> bool:
        """Record a failure in run.json; return False if the run has no directory.

        A resumed run directory is not modified until the run begins: another process may own it.
        """
        if not self.has_begun and not (self.is_new and self.keep_failed and isinstance(error, DataError)):
            return False
        # on a full disk this fails too; report only the first error
        with suppress(OSError, CheckpointError):
            if not self.has_begun:
                self.run.publish(
                    {"seed": self.cfg.seed, "experiment": self.cfg.name, "metrics": {}, **end_record(error)}
                )
            # a signal may arrive after the end of the run was recorded
            elif self.run.read().get("status") != "finished":
                self.run.update(**end_record(error))
                if isinstance(error, PartError):
                    with open(open_for_append(self.run.path / "train.log"), "a", encoding="utf-8") as log:
                        log.write(error.frames)
                    error.frames = ""
        return self.run.published


def build_with_initial_weights(cfg: DictConfig, trainer: Trainer | None = None) -> Parts:
    """:func:`snnexp.training.assembly.build`, with the weights named by ``init_from``.

    Raises:
        SnnexpError: see :func:`snnexp.training.assembly.build`, or the weights are missing or do not fit.
    """
    parts = build(cfg, trainer)
    load_initial_weights(config.get_init_from(cfg), parts.task)
    return parts


def facts(cfg: DictConfig, parts: Parts) -> dict[str, Any]:
    """Return the content of run.json at the beginning of a run."""
    device = parts.trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "seed": cfg.seed,
        "experiment": cfg.name,
        "metrics": {},
        "device": f"{parts.trainer.world_size} x {name}",
        "threads": torch.get_num_threads(),
        "kernel": parts.kernel,
        "input_spikes": parts.task.inputs_are_spikes,
        "inputs": "dense" if parts.task.encode is parts.encoder else "events",
        "decoder": None if parts.decoder is None else parts.decoder.display_name,
        "higher_is_better": {name: measure.higher_is_better for name, measure in parts.task.measures.items()},
        "samples": parts.data.counts(*batch_limits(cfg), parts.trainer.world_size),
        **label_names(parts.data.description),
        "wall_s": {},
        "samples_per_s": None,
    }


def label_names(description: Description) -> dict[str, list[str]]:
    """Return the names of classes and features, if any."""
    names = {"classes": description.classes, "features": description.features}
    return {what: [*each] for what, each in names.items() if each is not None}


def batch_limits(cfg: DictConfig) -> tuple[int | None, int | None]:
    """Return the limits of training and test batches."""
    return cfg.trainer.get("limit_batches"), cfg.trainer.get("limit_test_batches")


def without_download(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Disable downloads in a saved config unless an override enables them."""
    return cfg if is_overridden("data.download", overrides) else config.offline(cfg)


def is_overridden(key: str, overrides: Sequence[str]) -> bool:
    """Return True if a key is overridden."""
    return any(override.startswith(f"{key}=") for override in overrides)


def end_record(error: BaseException) -> dict[str, Any]:
    """Return the entries of run.json for a run that failed with ``error``."""
    if isinstance(error, KeyboardInterrupt):
        error = InterruptedRunError(signal.SIGINT)
    status, reason, code = describe_failure(error)
    return {"status": status, "exit_code": 74 if isinstance(error, OSError) else code, "reason": one_line(reason)}


def example_checkpoint(parts: Parts, observers: Sequence[Observer]) -> dict[str, Any]:
    """Return the expected content of a checkpoint for these parts and observers."""
    states = {
        each.state_key: {**each.state_dict(), **{name: TypeSpec(kind) for name, kind in each.state_types.items()}}
        for each in observers
    }
    return checkpoints.template(parts.task, states)
