"""A member of a stack under way, as what watches a run knows a run: with its directory, its place and its end."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from snnexp import terminal
from snnexp.errors import InterruptedRunError, SnnexpError, ending
from snnexp.record.checkpoint import Checkpoint
from snnexp.record.run import Run
from snnexp.training import saving
from snnexp.training.assembly import Parts
from snnexp.training.callbacks import DivergenceGuard, MeanLoss, ProjectParameters
from snnexp.training.loggers import Board, RunLogger
from snnexp.training.start import Start
from snnexp.training.watching import watching_over

LOG = logging.getLogger("snnexp")
"""What all notes of the package pass."""


@dataclass
class Member:
    """A point that trains in a stack.

    Args:
        cfg: a checked config.
        overrides: what was typed, for the record.
        run: the directory of a run to resume; one is made without.
        keys: overrides of a run that is resumed, which ``cfg`` has already.
    """

    cfg: DictConfig
    overrides: list[str]
    run: Path | None = None
    keys: Sequence[str] = ()

    def start(self, parent: Path) -> Start:
        """The run on its way, in a folder of runs."""
        if self.run is None:
            return Start.new(self.cfg, self.overrides, parent, kept=True)
        return Start.resumed(self.run, self.keys)


@dataclass
class Outcome:
    """How a member ended; ``run`` is None where it has no directory."""

    status: str
    run: Path | None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    exit_code: int = 0


def settings(cfg: DictConfig) -> str:
    """Equal for members that can share an optimiser."""
    return json.dumps(OmegaConf.to_container(cfg.optimizer), sort_keys=True)


def failure(error: BaseException, run: Path | None) -> Outcome:
    """The end of a member that ``error`` has ended."""
    status, reason, code = ending(error)
    return Outcome(status, run, {}, reason, code)


class Lane:
    """A member under way, with what callbacks ask of Lightning's trainer.

    Args:
        index: its place among all members.
        member: the point.
        parent: the folder in which run directories are made.
        ended: told how it ended.
    """

    world_size, global_rank, is_global_zero = 1, 0, True
    strategy = SimpleNamespace(
        reduce=lambda value, **how: value,
        all_gather=lambda value: value,
        reduce_boolean_decision=lambda decision, **how: decision,
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    parts: Parts
    run: Run
    threads: int
    """How many it computes with."""
    watching: list[Callback]

    def __init__(self, index: int, member: Member, parent: Path, ended: Callable[[int, Outcome], object]) -> None:
        self.index, self.member, self.cfg, self.parent, self._ended = index, member, member.cfg, parent, ended
        self._start: Start | None = None
        self.living = True
        self.trainer: Trainer | None = None
        self.position = (0, 0)
        self.max_epochs, self.log_every_n_steps = self.cfg.trainer.max_epochs, self.cfg.trainer.log_every_n_steps
        self.current_epoch = self.global_step = 0
        self.is_last_batch = self.testing = False
        self.loggers: list[Any] = []
        self.callback_metrics: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.optimizers: list[Any] = []
        self.hooks: dict[str, list[Callback]] = {}
        self.state: Callable[[], dict[str, Any]] = dict

    def open(self) -> None:
        """Lock the directory of a run that is resumed, and read its config."""
        self._start = self.member.start(self.parent)
        self.cfg, self.threads = self.start.open(), self.start.threads

    def build(self, trainer: Trainer | None) -> None:
        """Make the parts; of a run that is resumed, check all and load what it holds."""
        self.parts = self.start.build(trainer)
        self.trainer, self.datamodule = self.parts.trainer, self.parts.data
        self.lightning_module = self.parts.task
        # what callbacks log is taken here
        self.parts.task.log = self.log  # type: ignore[method-assign, assignment]
        self._watch(self.start.run)
        self.start.find(self.watching)
        if self.start.is_finished:
            return self.end(Outcome("finished", self.run.path, self.start.before.get("metrics", {})))
        if self.start.found is not None:
            self._go_on_from(self.start.found)

    @property
    def start(self) -> Start:
        """The run on its way."""
        assert self._start is not None
        return self._start

    @property
    def opened(self) -> Run | None:
        """The run directory, where there is one yet."""
        return self._start.run if self._start is not None and self._start.run.published else None

    def _watch(self, run: Run) -> None:
        self.run = run
        self.watching = [
            ProjectParameters(),
            DivergenceGuard(),
            *watching_over(self.cfg, self.parts, run, pictures=False),
        ]

    def _go_on_from(self, found: Checkpoint) -> None:
        self.position, self.global_step = found.position, found.step
        self.current_epoch = self.position[0]
        self.parts.task.load_state_dict(found.content["state_dict"])
        for callback in self.watching:
            state = found.content["callbacks"].get(callback.state_key)
            if state:
                callback.load_state_dict(state)
            if isinstance(callback, saving.Checkpoints):
                callback.go_on_from(found)
            if isinstance(callback, MeanLoss):
                callback.on_load_checkpoint(cast(Any, self), self.parts.task, found.content)

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Make the run directory, or put the record of a resumed one back to the step that it is resumed from."""
        self.start.begin(**facts)
        self.log_file = terminal.LogFile(self.run.path / "train.log", encoding="utf-8")
        self.log_file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        self.loggers = [RunLogger(self.run)]
        if self.cfg.logger.tensorboard:
            purge = None if self.start.found is None else self.start.step
            self.loggers.append(Board(self.run, purge))

    def log(self, name: str, value: Tensor, **how: Any) -> None:
        """As ``LightningModule.log``."""
        self.logged[name] = self.callback_metrics[name] = value

    def write(self, step: int) -> dict[str, float]:
        """A row of what was logged since the last one."""
        values = {name: float(value) for name, value in self.logged.items()}
        self.logged = {}
        if values:
            for logger in self.loggers:
                logger.log_metrics({**values, "epoch": self.current_epoch}, step)
        return values

    def call(self, hook: str, *arguments: Any, skip: type[Callback] | tuple[()] = ()) -> None:
        """Call a hook of all that watches, in order; notes go to the member's own log."""
        if hook not in self.hooks:
            mine = (
                callback for callback in self.watching if getattr(type(callback), hook) is not getattr(Callback, hook)
            )
            self.hooks[hook] = [*mine]
        with self.told_here():
            for callback in self.hooks[hook]:
                if not isinstance(callback, skip):
                    getattr(callback, hook)(self, self.parts.task, *arguments)

    @cached_property
    def saver(self) -> saving.Checkpoints:
        """What saves it."""
        (found,) = (callback for callback in self.watching if isinstance(callback, saving.Checkpoints))
        return found

    def tell_of_projections(self) -> None:
        """What :class:`ProjectParameters` would tell at the end of the epoch."""
        for callback in self.watching:
            if isinstance(callback, ProjectParameters):
                callback.tell()

    def save(self, hook: str, *arguments: Any) -> None:
        """Call a hook of what saves; other members may do so at the same time."""
        module = () if hook == "save_last" else (self.parts.task,)
        getattr(self.saver, hook)(cast(Any, self), *module, *arguments)

    @contextmanager
    def told_here(self) -> Iterator[None]:
        """Notes of the package go to the member's train.log."""
        LOG.addHandler(self.log_file)
        try:
            yield
        finally:
            LOG.removeHandler(self.log_file)

    @contextmanager
    def may_end(self) -> Iterator[None]:
        """What is refused, missing or diverged ends this member alone."""
        try:
            yield
        except InterruptedRunError:
            raise
        except SnnexpError as error:
            self.stop(error)

    def stop(self, error: BaseException) -> None:
        """End a member that does not finish, and write down why."""
        if self.loggers and isinstance(error, InterruptedRunError):
            # a full disk ends no other member
            with suppress(OSError):
                self.call("on_exception", error)
        if self._start is not None:
            self._start.fail(error)
        self.end(failure(error, None if self.opened is None else self.opened.path))

    def end(self, outcome: Outcome) -> None:
        """Let go of the run directory, and tell."""
        self.living = False
        try:
            for logger in self.loggers[1:]:
                logger.finalize("success")
            if self.loggers:
                self.log_file.close()
            if self.opened is not None:
                self.opened.close()
        finally:
            self._ended(self.index, outcome)

    def save_checkpoint(self, path: Path, weights_only: bool = False) -> None:
        """Write a checkpoint as Lightning does for a run of its own, always a whole one."""
        content: dict[str, Any] = {
            "pytorch-lightning_version": lightning.__version__,
            "global_step": self.global_step,
            # a view would be saved with all of the stack behind it
            "state_dict": {name: value.clone() for name, value in self.parts.task.state_dict().items()},
            "loops": {},
            "callbacks": {c.state_key: state for c in self.watching if (state := c.state_dict())},
            **self.state(),
        }
        for callback in self.watching:
            callback.on_save_checkpoint(cast(Any, self), self.parts.task, content)
        saving.RunCheckpointIO().save_checkpoint(content, path)
