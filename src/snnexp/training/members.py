"""Members, the runs trained by one training loop, and their observers.

Lightning's trainer drives one model: the task of a run, or several stacked. :class:`Bridge` forwards its hooks to the
observers of every member.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from snnexp.errors import ConfigError, InterruptedRunError, SnnexpError
from snnexp.training.task import Task


class Observer:
    """A callback of one member, with hooks named like those of Lightning callbacks.

    Each hook receives the trainer, which all members share, and the member; hooks at the end of a batch also receive
    the step's outputs for the member, and its target. The member's checkpoints store the state of an observer under
    ``state_key``. An observer may end the training of its member with :meth:`Member.finish`.
    """

    state_key: ClassVar[str] = ""
    """Key of the state in checkpoints, unique among the observers of a member; must not change between versions."""
    state_types: ClassVar[Mapping[str, Any]] = {}
    """Types of state entries that vary, such as ``{"best": float | None, "seen": list[int]}``; other entries must match
    the example in type and shape."""

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        """Return the state of all processes of ``trainer`` for a checkpoint; without a trainer, an example."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        """Load a state from :meth:`state_dict`, in the process of this rank."""

    def on_train_start(self, trainer: Trainer, member: "Member") -> None: ...

    def on_train_batch_end(self, trainer: Trainer, member: "Member", outputs: Any, target: Tensor) -> None: ...

    def on_train_epoch_end(self, trainer: Trainer, member: "Member") -> None: ...

    def on_validation_end(self, trainer: Trainer, member: "Member") -> None: ...

    def on_test_start(self, trainer: Trainer, member: "Member") -> None: ...

    def on_test_batch_end(self, trainer: Trainer, member: "Member", outputs: Any, target: Tensor) -> None: ...

    def on_test_epoch_end(self, trainer: Trainer, member: "Member") -> None: ...

    def on_test_end(self, trainer: Trainer, member: "Member") -> None: ...

    def on_exception(self, trainer: Trainer, member: "Member", exception: BaseException) -> None: ...


class Stop(NamedTuple):
    """Position and reason of an early stop.

    Args:
        epoch: completed epochs.
        step: completed optimizer steps.
        reason: a short phrase.
    """

    epoch: int
    step: int
    reason: str


class Member:
    """A model with its observers; this class trains alone and logs through Lightning.

    Args:
        task: its task, with its own network.
        observers: in the order in which they are notified.
    """

    ended = False
    stopped: Stop | None = None
    """The early stop of its training, if any; the test still runs."""
    finishing: str | None = None
    """Reason to stop after the current epoch, if any."""
    paused = False
    """True if it has stopped while other members of its stack still train."""

    def __init__(self, task: Task, observers: Sequence[Observer]) -> None:
        require_keys(observers)
        self.task, self.observers = task, [*observers]
        self._listeners: dict[str, list[Observer]] = {}

    def finish(self, reason: str) -> None:
        """Stop training after the current epoch, and test with the weights of that epoch.

        Only the first reason is kept; no effect after the last epoch. With ddp, a call in one process suffices.

        Args:
            reason: a short phrase such as ``val/loss did not improve for 5 epochs``.
        """
        self.finishing = self.finishing or reason

    @property
    def is_training(self) -> bool:
        """True unless it has ended or stopped."""
        return not self.ended and self.stopped is None

    def progress(self, trainer: Trainer) -> tuple[int, int]:
        """Return its completed steps and epochs."""
        return (trainer.global_step, trainer.current_epoch) if self.stopped is None else self.stopped[1::-1]

    def pause(self) -> None:
        """Pause while the rest of the stack trains; a stacked member saves its weights."""
        self.paused = True

    def unpause(self) -> None:
        """Undo :meth:`pause`; a stacked member restores its weights."""
        self.paused = False

    def log(self, name: str, value: Tensor, sync_dist: bool = False) -> None:
        """Log a value, like ``LightningModule.log``."""
        self.task.log(name, value, sync_dist=sync_dist)

    @property
    def metrics(self) -> dict[str, Tensor]:
        """The latest value of each logged metric."""
        return self.task.trainer.callback_metrics

    @property
    def loggers(self) -> Sequence[Any]:
        """Its loggers."""
        return self.task.trainer.loggers

    def optimizer_state(self) -> dict[Any, dict[str, Any]]:
        """Return the optimizer state of each parameter of the task."""
        return {
            weight: state for optimizer in self.task.trainer.optimizers for weight, state in optimizer.state.items()
        }

    def training_state(self) -> dict[str, Any]:
        """Return ``optimizer_states`` and ``lr_schedulers`` for a checkpoint."""
        trainer = self.task.trainer
        return {
            "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "lr_schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
        }

    def resume(self, content: Mapping[str, Any], rank: int = 0) -> None:
        """Load weights and observer states from the content of a checkpoint."""
        self.task.load_state_dict(content["state_dict"])
        self.stopped = Stop(**content["stopped_early"]) if "stopped_early" in content else None
        self.finishing = content.get("finishing")
        for observer in self.observers:
            if state := content["callbacks"].get(observer.state_key):
                observer.load_state_dict(state, rank)

    def write(self, step: int, epoch: int) -> None:
        """Write a row of logged values; a no-op here, because Lightning writes it for a single run."""

    def stop(self, error: BaseException) -> None:
        """End the member because of ``error``; a single member raises it."""
        raise error

    @contextmanager
    def ending_on_error(self) -> Iterator[None]:
        """Let a :class:`SnnexpError` end only this member."""
        try:
            yield
        except InterruptedRunError:
            raise
        except SnnexpError as error:
            self.stop(error)

    def log_to_member(self) -> Any:
        """Write log records of the package to the log of this member."""
        return nullcontext()

    def notify(self, hook: str, *arguments: Any) -> None:
        """Call a hook on all observers that override it."""
        if hook not in self._listeners:
            default = getattr(Observer, hook)
            self._listeners[hook] = [each for each in self.observers if getattr(type(each), hook) is not default]
        if self._listeners[hook]:
            with self.log_to_member():
                for observer in self._listeners[hook]:
                    getattr(observer, hook)(*arguments)


def require_keys(observers: Sequence[Observer]) -> None:
    """Require a unique ``state_key`` of every observer with a state.

    Raises:
        ConfigError: two observers share a ``state_key``, or one with a state has none.
    """
    known: dict[str, Observer] = {}
    for observer in observers:
        key, name = observer.state_key, type(observer).__name__
        if not key and type(observer).state_dict is not Observer.state_dict:
            raise ConfigError(f"observers: {name} has a state but no state_key")
        if key and key in known:
            raise ConfigError(f"observers: {type(known[key]).__name__} and {name} have the same state_key {key}")
        known[key] = observer


class AllEndedError(Exception):
    """No member is left to train."""


class Bridge(Callback):
    """Forward the hooks of Lightning to the observers of every member that has not ended.

    Args:
        default_observers: observers of a task that is trained without assigned members.
    """

    def __init__(self, *default_observers: type[Observer]) -> None:
        self.default_observers = default_observers
        self.assigned: Sequence[Member] = ()
        self.members: Sequence[Member] = ()

    @classmethod
    def of(cls, trainer: Trainer) -> "Bridge":
        """Return the bridge of a trainer."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, cls):
                return callback
        raise ConfigError(
            "trainer: has none of the callbacks that a run requires; use snnexp.training.assembly.make_trainer"
        )

    @property
    def running(self) -> list[Member]:
        """The members that have not ended."""
        return [member for member in self.members if not member.ended]

    @property
    def active(self) -> list[Member]:
        """The running members that are not paused."""
        return [member for member in self.running if not member.paused]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.members = self.assigned or [
            Member(cast(Task, pl_module), [observer() for observer in self.default_observers])
        ]

    def require_running(self) -> None:
        """Raise :class:`AllEndedError` if no member is left."""
        if not self.running:
            raise AllEndedError

    def _notify(self, hook: str, trainer: Trainer, shares: Sequence[tuple[Any, Tensor]] | None = None) -> None:
        for position, member in enumerate(self.members):
            if not (member.ended or member.paused):
                with member.ending_on_error():
                    member.notify(hook, trainer, member, *(() if shares is None else shares[position]))
        self.require_running()

    def _write(self, trainer: Trainer, step: int) -> None:
        for member in self.active:
            member.write(step, trainer.current_epoch)

    def stop_finishing_members(self, trainer: Trainer, epoch: int, step: int) -> None:
        """Stop the members that finish early, after this many epochs and steps."""
        if epoch == trainer.max_epochs:
            return
        for member in self.active:
            if member.is_training and member.finishing is not None:
                member.stopped = Stop(epoch, step, member.finishing)
        if not any(member.is_training for member in self.running):
            trainer.should_stop = True

    def _stop_on_request(self, trainer: Trainer) -> None:
        """Stop the members if a callback has set ``trainer.should_stop``."""
        batches = int(trainer.num_training_batches)
        place = divmod(trainer.global_step, batches)[0], trainer.global_step
        if trainer.should_stop and place[1] < batches * int(trainer.max_epochs or 1):
            callbacks = [each for each in trainer.callbacks if getattr(each, "stopped_epoch", 0)]  # type: ignore[attr-defined]
            reason = f"{type(callbacks[0]).__name__} stopped it" if callbacks else "a callback set trainer.should_stop"
            for member in self.active:
                member.stopped = member.stopped or Stop(*place, reason)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for member in self.active:
            if member.stopped is not None:
                member.pause()
        if self.running and not self.active:
            # Lightning skips its loop
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._notify("on_train_start", trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._notify("on_train_batch_end", trainer, cast(Task, pl_module).split_by_member(outputs, batch))
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._write(trainer, trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._notify("on_train_epoch_end", trainer)
        self._write(trainer, trainer.global_step - 1)
        for member in self.active:
            if trainer.strategy.reduce_boolean_decision(member.finishing is not None, all=False):
                member.finish("another process stopped it")
        self._stop_on_request(trainer)
        self.stop_finishing_members(trainer, trainer.current_epoch + 1, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_on_request(trainer)
        if (stopped := next((member.stopped for member in self.active if member.stopped), None)) is not None:
            # Lightning counts a partial epoch as completed
            trainer.fit_loop.epoch_progress.current.completed = stopped.epoch

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, trainer.global_step - 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._notify("on_validation_end", trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for member in self.running:
            if member.paused:
                member.unpause()
        self._notify("on_test_start", trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._notify("on_test_batch_end", trainer, cast(Task, pl_module).split_by_member(outputs, batch))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._notify("on_test_epoch_end", trainer)
        for member in self.running:
            member.write(*member.progress(trainer))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._notify("on_test_end", trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for member in self.active:
            member.notify("on_exception", trainer, member, exception)
