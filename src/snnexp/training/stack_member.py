"""A member of a stack: its run directory, its position in the stack, and its outcome."""

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from snnexp import config, terminal
from snnexp.errors import describe_failure
from snnexp.record.run import Run
from snnexp.training.assembly import Parts
from snnexp.training.loggers import close, make_loggers
from snnexp.training.members import Member, Observer
from snnexp.training.observer_setup import run_observers
from snnexp.training.saving import checkpoints_of
from snnexp.training.start import Start

LOG = logging.getLogger("snnexp")
"""Receives all log records of the package."""


@dataclass
class Point:
    """A point of a sweep that trains in a stack.

    Args:
        cfg: a checked config.
        overrides: command-line overrides, for the record.
        run: the run directory to resume; None for a new run.
        resume_overrides: overrides of a resumed run, already applied to ``cfg``.
        has_ended: True if it has ended and only keeps its slot, which keeps the results of the others bit-identical.
        observers: additional observers.
    """

    cfg: DictConfig
    overrides: list[str]
    run: Path | None = None
    resume_overrides: Sequence[str] = ()
    has_ended: bool = False
    observers: Sequence[Observer] = ()

    def start(self, parent: Path) -> Start:
        """Return the :class:`Start` of the run, in a folder of runs."""
        if self.run is None or self.has_ended:
            cfg = config.without_init_run(self.cfg) if self.has_ended else self.cfg
            start = Start.new(cfg, self.overrides, parent, keep_failed=not self.has_ended)
        else:
            start = Start.resumed(self.run, self.resume_overrides)
        start.extra_observers = self.observers
        return start


@dataclass
class Outcome:
    """How a member ended; ``run`` is None if it has no directory."""

    status: str
    run: Path | None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    exit_code: int = 0


def update_settings(cfg: DictConfig) -> str:
    """Return a key that is equal for members with the same optimizer and schedule, which are adjacent in a stack."""
    return json.dumps([OmegaConf.to_container(node) for node in (cfg.optimizer, cfg.schedule)], sort_keys=True)


def failed_outcome(error: BaseException, run: Path | None) -> Outcome:
    """Return the outcome of a member that failed with ``error``."""
    status, reason, code = describe_failure(error)
    return Outcome(status, run, {}, reason, code)


class MemberOptimizer(Protocol):
    """The optimizer of a member, possibly shared with others."""

    def rates(self) -> dict[str, float]:
        """See :func:`snnexp.optimizers.learning_rates`."""

    def optimizer_state(self, member: "StackMember") -> dict[Any, dict[str, Any]]:
        """See :meth:`Member.optimizer_state`."""

    def state(self, member: "StackMember") -> dict[str, Any]:
        """See :meth:`Member.training_state`."""


class StackMember(Member):
    """A member of a stack; it collects its logged values until their row is written.

    Args:
        point: the point to train.
        on_end: called with the outcome.
    """

    position: int
    """Its position in the stack."""
    optimizer_group: "MemberOptimizer"
    """The optimizer of its weights."""
    start: Start
    parts: Parts
    ended = False

    def __init__(self, point: Point, on_end: Callable[[Outcome], object]) -> None:
        self.point, self._on_end = point, on_end
        self.ended = point.has_ended
        self._metrics: dict[str, Tensor] = {}
        self._logged: dict[str, Tensor] = {}
        self._loggers: list[Any] = []
        self._log_file: terminal.LogFile | None = None
        self.row: dict[str, float] = {}
        """The latest row written."""

    def open(self, parent: Path) -> None:
        """Lock the directory of a resumed run, and read its config."""
        self.start = self.point.start(parent)
        self.start.open()

    def build(self, trainer: Trainer | None) -> None:
        """Build the parts; for a resumed run, check and load its checkpoint."""
        self.parts = self.start.build(trainer)
        super().__init__(self.parts.task, run_observers(self.start))
        self.start.find_checkpoint(self.observers)
        if self.start.is_finished:
            self.end(Outcome("finished", self.start.run.path, self.start.previous_record.get("metrics", {})))

    def placeholder(self) -> "StackMember":
        """Return a copy that keeps its slot in a stack without training."""
        other = copy.copy(self)
        other.ended = True
        return other

    @property
    def run_dir(self) -> Run | None:
        """The run directory; None if not created yet."""
        start = getattr(self, "start", None)
        return start.run if start is not None and start.run.published else None

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Create the run directory, or rewind an existing record to the step it resumes from."""
        self.start.begin(**facts)
        if self.start.checkpoint is not None:
            # with a later last.ckpt, the next save would drop the step that all members share
            checkpoints_of(self).promote_to_last(self.start.checkpoint.path)
        self._log_file = terminal.LogFile(self.start.run.path / "train.log", encoding="utf-8")
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        purge = None if self.start.checkpoint is None else self.start.step
        self._loggers = make_loggers(self.start.run, self.start.cfg, purge)

    def pause(self) -> None:
        super().pause()
        self._paused_state = {name: value.clone() for name, value in self.task.state_dict().items()}

    def unpause(self) -> None:
        super().unpause()
        # copies into the memory of the stack
        self.task.load_state_dict(self._paused_state)

    def log(self, name: str, value: Tensor, sync_dist: bool = False) -> None:
        if self.paused:
            return
        self._logged[name] = self._metrics[name] = value

    @property
    def metrics(self) -> dict[str, Tensor]:
        return self._metrics

    @property
    def loggers(self) -> Sequence[Any]:
        return self._loggers

    def write(self, step: int, epoch: int) -> None:
        self.row = {name: float(value) for name, value in self._logged.items()}
        self._logged = {}
        if self.row:
            for logger in self.loggers:
                logger.log_metrics({**self.row, "epoch": epoch}, step)

    def measured(self) -> dict[str, float]:
        """Return the metrics of the last epoch and of the test."""
        validated = {name: float(value) for name, value in self._metrics.items() if name.startswith("val/")}
        return {**self.start.measured_before(), **validated, **self.row}

    def optimizer_state(self) -> dict[Any, dict[str, Any]]:
        return self.optimizer_group.optimizer_state(self)

    def training_state(self) -> dict[str, Any]:
        return self.optimizer_group.state(self)

    @contextmanager
    def log_to_member(self) -> Iterator[None]:
        """Write log records of the package to the member's train.log."""
        if self._log_file is None:
            yield
            return
        LOG.addHandler(self._log_file)
        try:
            yield
        finally:
            LOG.removeHandler(self._log_file)

    def stop(self, error: BaseException) -> None:
        """End a member that failed, and record why."""
        if self.ended:
            return
        has_begun = hasattr(self, "start") and self.start.has_begun
        if hasattr(self, "start"):
            self.start.fail(error)
        known = None if self.run_dir is None else self.run_dir.facts()
        # a signal may arrive after the end was recorded
        if has_begun and known is not None and known.status == "finished":
            self.end(Outcome("finished", known.path, known.metrics))
        else:
            self.end(failed_outcome(error, None if known is None else known.path))

    def end(self, outcome: Outcome) -> None:
        """Release the run directory, and call ``on_end``."""
        self.ended = True
        try:
            close(self.loggers, "success" if outcome.status == "finished" else "failed")
            if self._log_file is not None:
                self._log_file.close()
            if self.run_dir is not None:
                self.run_dir.close()
        finally:
            self._on_end(outcome)
