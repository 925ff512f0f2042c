"""How a run begins, new or resumed, alone or a member of a stack: to start is to resume from step 0."""

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
from snnexp.training.initial import load_start
from snnexp.training.members import Observer


class Start:
    """A run on its way to its next step: :meth:`open`, :meth:`build`, :meth:`find` and :meth:`begin`, in this order.

    Args:
        run: prepared in memory, or a directory to resume.
        cfg: the checked config of a run that is prepared; that of a directory is read there.
        overrides: overrides of a run that is resumed.
        keep_failed: make a directory, which says why, also where data are missing, as for a point of a sweep.
    """

    parts: Parts
    checkpoint: Checkpoint | None = None
    """The newest sound checkpoint, from which a run is resumed."""
    extra_observers: Sequence[Observer] = ()
    """What watches it besides its own observers."""

    def __init__(
        self, run: Run, cfg: DictConfig | None = None, overrides: Sequence[str] = (), keep_failed: bool = False
    ) -> None:
        self.run, self.overrides, self.keep_failed, self.is_new = run, overrides, keep_failed, not run.published
        self.cfg = OmegaConf.create() if cfg is None else cfg
        self.previous_record: dict[str, Any] = {}
        """What run.json said."""
        self.max_epochs = 0
        """Of the config that the run had."""
        self._rewound = False

    @classmethod
    def new(
        cls, cfg: DictConfig, overrides: Sequence[str], parent: Path | None = None, keep_failed: bool = False
    ) -> "Start":
        """A run that is new, in ``parent`` or in ``<logger.root>/<name>``."""
        folder = Path(cfg.logger.root) / cfg.name if parent is None else parent
        return cls(Run.prepare(folder, OmegaConf.to_yaml(cfg), overrides), cfg, keep_failed=keep_failed)

    @classmethod
    def resumed(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Start":
        """A run of a directory; arguments and errors as of :func:`snnexp.training.execute.resume`."""
        return cls(Run.open(Path(path)), overrides=overrides)

    def read(self) -> DictConfig:
        """The config; that of a run that is resumed from its directory, changed as typed.

        Raises:
            ConfigError: a key changed that decides what the run computes.
            CheckpointError: its record is damaged.
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
        """As :meth:`read`, with the directory locked before.

        Raises:
            InUseError: another process writes to it.
        """
        if not self.is_new:
            self.run.lock()
        return self.read()

    @property
    def threads(self) -> int:
        """How many it computes with."""
        return threads.number(self.cfg, self.previous_record.get("threads"))

    def build(self, trainer: Trainer | None = None) -> Parts:
        """Make the parts; ``trainer`` and errors as of :func:`snnexp.training.assembly.build`.

        Raises:
            ConfigError: also where a batch of the training is too small for batch norm, or there is no such logger.
        """
        loggers.require(config.plain(self.cfg)["logger"].get("also", {}))
        self.parts = build(self.cfg, trainer)
        limit, _ = limits_of(self.cfg)
        contracts.require_batch_norm_samples(self.parts.network, self.parts.data, self.cfg.num_steps, limit)
        return self.parts

    def find_checkpoint(self, observers: Sequence[Observer]) -> None:
        """Look for the checkpoint to resume from, which holds the states of all that is ``observers``.

        A run without one starts from the weights that ``init_from`` names.

        Raises:
            ConfigError: ``init_from`` names no run.
            CheckpointError: there are checkpoints, and none can be used; or the weights do not fit.
        """
        if not self.is_new and (checkpoint := self._find_checkpoint(observers)) is not None:
            self.resume_from(checkpoint)
        else:
            load_start(config.get_init_from(self.cfg), self.parts.task)

    def find_checkpoint_at(self, observers: Sequence[Observer], step: int) -> Checkpoint | None:
        """The checkpoint of a step; None where there is none that can be used."""
        return self._find_checkpoint(observers, step)

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Begin at the place that a checkpoint holds."""
        self.checkpoint = checkpoint
        self.parts.data.begin = checkpoint.position
        self.max_epochs = checkpoint.config["trainer"]["max_epochs"]

    def _find_checkpoint(self, observers: Sequence[Observer], step: int | None = None) -> Checkpoint | None:
        now = config.plain(self.cfg)

        def require_same(before: dict[str, Any]) -> None:
            try:
                known = config.check(OmegaConf.create(before))
            except (ConfigError, RecursionError) as error:
                raise CheckpointError(f"the config in a checkpoint cannot work: {error}") from error
            config.require_same(config.plain(known), now)

        trainer, data = self.parts.trainer, self.parts.data
        # each process of ddp has its share of the batches
        data.trainer = trainer
        batches = min(len(data.train_dataloader()), self.cfg.trainer.limit_batches or sys.maxsize)
        wanted = example_checkpoint(self.parts, observers)
        with terminal.quiet(self.run.path / "train.log" if trainer.is_global_zero else None):
            return checkpoints.find(self.run, wanted, batches, require_same, step)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        longer = self.cfg.trainer.max_epochs > self.max_epochs and "stopped_early" not in self.previous_record
        return self.previous_record.get("status") == "finished" and not longer

    @property
    def finished_message(self) -> str:
        """What is said of a run that has finished, and is to be resumed."""
        if "stopped_early" in self.previous_record and self.cfg.trainer.max_epochs > self.max_epochs:
            return "is finished: it stopped early, and with more epochs it would have stopped at the same step"
        return "is already finished"

    def measured_before(self) -> dict[str, float]:
        """What was measured of the last epoch by a run that was stopped after it, so that nothing is left to train."""
        if self.checkpoint is None:
            return {}
        trained = self.checkpoint.position[0] >= self.cfg.trainer.max_epochs
        stopped = {"stopped_early", "finishing"} & self.checkpoint.content.keys()
        return self.run.last_validation() if trained or stopped else {}

    @property
    def has_begun(self) -> bool:
        """Whether the directory is there, and its record is this run's to write."""
        return self.run.published if self.is_new else self._rewound

    @property
    def step(self) -> int:
        """Optimizer steps that are done."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    def begin(self, **more: Any) -> None:
        """Publish a new run, or put the record of one that is resumed back to the step that it is resumed from.

        Args:
            more: entries of run.json besides those of :func:`facts`.
        """
        now = {**facts(self.cfg, self.parts), **more}
        if self.is_new:
            self.run.publish(now)
            return
        # what may fail, or take a while, comes before the first change
        made_with = {} if "versions" in more else {"versions": versions(), "git": git()}
        resumed = self.run.resume_entries(self.previous_record, self.step, self.overrides)
        for name in ("device", "threads", "kernel"):
            if name in self.previous_record and self.previous_record[name] != now[name]:
                change = f"{name}: {self.previous_record[name]} -> {now[name]}"
                terminal.warn(f"{change}, so the run may end in other digits than one that was not interrupted")
        preserved = {
            key: value for key, value in self.previous_record.items() if key not in ("reason", "stack", "only_class")
        }
        self._rewound = True
        self.run.rewind(0 if self.checkpoint is None else self.checkpoint.content["metrics"]["bytes"])
        write_atomically(self.run.path / "config.yaml", OmegaConf.to_yaml(self.cfg).encode())
        self.run.write({**preserved, **made_with, **now, "status": "running", "exit_code": None, **resumed})

    def fail(self, error: BaseException) -> bool:
        """Write into run.json how a run ended that did not finish; False where it has no directory to say so.

        A directory that is to be resumed stays as it is until the run begins: it may be another process's.
        """
        if not self.has_begun and not (self.is_new and self.keep_failed and isinstance(error, DataError)):
            return False
        # on a full disk this fails too, and what came first is what counts
        with suppress(OSError, CheckpointError):
            if not self.has_begun:
                self.run.publish(
                    {"seed": self.cfg.seed, "experiment": self.cfg.name, "metrics": {}, **end_record(error)}
                )
            # a signal may come between the end of a run and that of the code that records it
            elif self.run.read().get("status") != "finished":
                self.run.update(**end_record(error))
                if isinstance(error, PartError):
                    with open(open_for_append(self.run.path / "train.log"), "a", encoding="utf-8") as log:
                        log.write(error.frames)
                    error.frames = ""
        return self.run.published


def build_started(cfg: DictConfig, trainer: Trainer | None = None) -> Parts:
    """As :func:`snnexp.training.assembly.build`, with the weights that ``init_from`` names.

    Raises:
        SnnexpError: as there, or these weights are missing or do not fit.
    """
    parts = build(cfg, trainer)
    load_start(config.get_init_from(cfg), parts.task)
    return parts


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
        "decoder": None if parts.decoder is None else parts.decoder.display_name,
        "higher_is_better": {name: measure.higher_is_better for name, measure in parts.task.measures.items()},
        "samples": parts.data.counts(*limits_of(cfg), parts.trainer.world_size),
        **label_names(parts.data.description),
        "wall_s": {},
        "samples_per_s": None,
    }


def label_names(description: Description) -> dict[str, list[str]]:
    """The names of classes and of features, where they have some."""
    found = {"classes": description.classes, "features": description.features}
    return {what: [*each] for what, each in found.items() if each is not None}


def limits_of(cfg: DictConfig) -> tuple[int | None, int | None]:
    """How many batches of training and of the test there are at most."""
    return cfg.trainer.get("limit_batches"), cfg.trainer.get("limit_test_batches")


def without_download(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A saved config, which downloads only where that is typed."""
    return cfg if is_overridden("data.download", overrides) else config.offline(cfg)


def is_overridden(key: str, overrides: Sequence[str]) -> bool:
    """Whether there is an override of a key."""
    return any(override.startswith(f"{key}=") for override in overrides)


def end_record(error: BaseException) -> dict[str, Any]:
    """What run.json says of a run that ``error`` has ended."""
    if isinstance(error, KeyboardInterrupt):
        error = InterruptedRunError(signal.SIGINT)
    status, reason, code = describe_failure(error)
    return {"status": status, "exit_code": 74 if isinstance(error, OSError) else code, "reason": one_line(reason)}


def example_checkpoint(parts: Parts, observers: Sequence[Observer]) -> dict[str, Any]:
    """What a checkpoint of a run holds that has these parts and observers."""
    states = {
        each.state_key: {**each.state_dict(), **{name: TypeSpec(kind) for name, kind in each.state_types.items()}}
        for each in observers
    }
    return checkpoints.template(parts.task, states)
