"""Members: the runs that one training loop trains, and what watches each of them.

Lightning's trainer drives one model: the task of a run, or several stacked. :class:`Bridge` passes its hooks on to the
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
    """Watches a member, by hooks named as those of Lightning's callbacks.

    Each is told the trainer, which all members share, and the member; ends of batches also what the step gave for the
    member, and its target. What an observer has counted so far is kept in the member's checkpoint under ``state_key``.
    It may end the training of a member by :meth:`Member.finish`.
    """

    state_key: ClassVar[str] = ""
    """A name of its own among the observers of a member, written by hand: checkpoints of later versions have it too."""
    state_types: ClassVar[Mapping[str, Any]] = {}
    """Types of entries of the state that may change, as ``{"best": float | None, "seen": list[int]}``; others are like
    those of the example, in type and shape."""

    def state_dict(self, trainer: Trainer | None = None) -> dict[str, Any]:
        """What a checkpoint keeps, of all processes of ``trainer``; without one, an example of it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int = 0) -> None:
        """Resume from what :meth:`state_dict` gave, in the process of this number."""

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
    """Where the training of a member ended early, and why.

    Args:
        epoch: epochs that were completed.
        step: steps of the optimizer that were done.
        reason: in a few words.
    """

    epoch: int
    step: int
    reason: str


class Member:
    """A model as its observers know it; this one trains alone, so that Lightning logs for it.

    Args:
        task: its own, with its own network.
        observers: in the order in which they are told.
    """

    ended = False
    stopped: Stop | None = None
    """Where its training ended early; it is still to be tested."""
    finishing: str | None = None
    """Why its training is to end after the epoch that is under way."""
    paused = False
    """Whether it has stopped, and the others of its stack train on."""

    def __init__(self, task: Task, observers: Sequence[Observer]) -> None:
        require_keys(observers)
        self.task, self.observers = task, [*observers]
        self._listeners: dict[str, list[Observer]] = {}

    def finish(self, reason: str) -> None:
        """End its training after the epoch that is under way, early, and test it with the weights that it has then.

        Of several reasons the first counts; after the last epoch it has no effect. Processes of ddp agree: one is
        enough.

        Args:
            reason: in a few words, such as ``val/loss did not improve for 5 epochs``.
        """
        self.finishing = self.finishing or reason

    @property
    def is_training(self) -> bool:
        """Whether it has neither ended nor stopped."""
        return not self.ended and self.stopped is None

    def progress(self, trainer: Trainer) -> tuple[int, int]:
        """Steps and epochs that it has been trained for."""
        return (trainer.global_step, trainer.current_epoch) if self.stopped is None else self.stopped[1::-1]

    def pause(self) -> None:
        """Keep its weights as they are, whatever becomes of its place in a stack."""
        self.paused = True

    def unpause(self) -> None:
        """Have the weights again that it had when it began to rest."""
        self.paused = False

    def log(self, name: str, value: Tensor, sync_dist: bool = False) -> None:
        """As ``LightningModule.log``."""
        self.task.log(name, value, sync_dist=sync_dist)

    @property
    def metrics(self) -> dict[str, Tensor]:
        """What was logged, each the last time."""
        return self.task.trainer.callback_metrics

    @property
    def loggers(self) -> Sequence[Any]:
        """Where it is logged."""
        return self.task.trainer.loggers

    def optimizer_state(self) -> dict[Any, dict[str, Any]]:
        """What the optimizer keeps for each parameter of the task."""
        return {
            weight: state for optimizer in self.task.trainer.optimizers for weight, state in optimizer.state.items()
        }

    def training_state(self) -> dict[str, Any]:
        """``optimizer_states`` and ``lr_schedulers`` of a checkpoint."""
        trainer = self.task.trainer
        return {
            "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "lr_schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
        }

    def resume(self, content: Mapping[str, Any], rank: int = 0) -> None:
        """Take up what a checkpoint holds of the weights and of what watches them."""
        self.task.load_state_dict(content["state_dict"])
        self.stopped = Stop(**content["stopped_early"]) if "stopped_early" in content else None
        self.finishing = content.get("finishing")
        for observer in self.observers:
            if state := content["callbacks"].get(observer.state_key):
                observer.load_state_dict(state, rank)

    def write(self, step: int, epoch: int) -> None:
        """Write what was logged as a row; that of a run alone, Lightning writes."""

    def stop(self, error: BaseException) -> None:
        """End it; where it is the only one, ``error`` ends all."""
        raise error

    @contextmanager
    def ending_on_error(self) -> Iterator[None]:
        """What is refused, missing or diverged ends this member alone."""
        try:
            yield
        except InterruptedRunError:
            raise
        except SnnexpError as error:
            self.stop(error)

    def log_to_member(self) -> Any:
        """What the package notes meanwhile is of this member."""
        return nullcontext()

    def notify(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all observers that have it."""
        if hook not in self._listeners:
            usual = getattr(Observer, hook)
            self._listeners[hook] = [each for each in self.observers if getattr(type(each), hook) is not usual]
        if self._listeners[hook]:
            with self.log_to_member():
                for observer in self._listeners[hook]:
                    getattr(observer, hook)(*arguments)


def require_keys(observers: Sequence[Observer]) -> None:
    """Refuse observers whose states could not be told apart in a checkpoint.

    Raises:
        ConfigError: two have the same ``state_key``, or one that keeps a state has none.
    """
    known: dict[str, Observer] = {}
    for observer in observers:
        key, name = observer.state_key, type(observer).__name__
        if not key and type(observer).state_dict is not Observer.state_dict:
            raise ConfigError(f"observers: {name} keeps a state and has no state_key; give it one")
        if key and key in known:
            raise ConfigError(f"observers: {type(known[key]).__name__} and {name} have the same state_key {key}")
        known[key] = observer


class AllEndedError(Exception):
    """No member is left that trains."""


class Bridge(Callback):
    """Tell the observers of every member that has not ended what Lightning tells its callbacks.

    Args:
        default_observers: the observers of a task that is trained without members of its own.
    """

    def __init__(self, *default_observers: type[Observer]) -> None:
        self.default_observers = default_observers
        self.assigned: Sequence[Member] = ()
        self.members: Sequence[Member] = ()

    @classmethod
    def of(cls, trainer: Trainer) -> "Bridge":
        """That of a trainer."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, cls):
                return callback
        raise ConfigError("trainer: lacks the callbacks that a run needs; use snnexp.training.assembly.make_trainer")

    @property
    def running(self) -> list[Member]:
        """The members that have not ended."""
        return [member for member in self.members if not member.ended]

    @property
    def active(self) -> list[Member]:
        """Those of them that do not rest."""
        return [member for member in self.running if not member.paused]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.members = self.assigned or [
            Member(cast(Task, pl_module), [observer() for observer in self.default_observers])
        ]

    def require_running(self) -> None:
        """Raise :class:`AllEndedError` where no member is left."""
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
        """Stop the members that are to finish early, after this many epochs and steps."""
        if epoch == trainer.max_epochs:
            return
        for member in self.active:
            if member.is_training and member.finishing is not None:
                member.stopped = Stop(epoch, step, member.finishing)
        if not any(member.is_training for member in self.running):
            trainer.should_stop = True

    def _stop_on_request(self, trainer: Trainer) -> None:
        """Stop members where a callback has set ``trainer.should_stop``."""
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
            # Lightning's loop does not begin
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
                member.finish("another process ended it")
        self._stop_on_request(trainer)
        self.stop_finishing_members(trainer, trainer.current_epoch + 1, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_on_request(trainer)
        if (stopped := next((member.stopped for member in self.active if member.stopped), None)) is not None:
            # an epoch that was stopped in its midst counts as one to Lightning
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
