"""How a signal, or the loss of a process, ends a run: saved, marked and told."""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from snnexp.data.module import DataModule
from snnexp.errors import InterruptedRunError, LostProcessError, PartError, SnnexpError, termination_signals
from snnexp.record.run import Run
from snnexp.training.saving import SaveCheckpoints, any_process

GRACE_S = 30.0
"""What the other processes of a run that has finished may take to end."""


class Signals(Callback):
    """SIGINT, SIGTERM and SIGHUP: finish the step or validation, save last.ckpt, stop.

    While a batch is waited for, the run is saved and stops at once; outside of training it stops at once. A second
    signal ends the process at once. Python handles signals between its own instructions only, and one call into PyTorch
    may take long, so a thread sees them too: it tells that a signal has arrived, and ends the process at the second.
    """

    duplicate_s = 0.1
    """A signal to a process and then to its group, as ``timeout`` sends it, arrives twice and is one."""
    patience_s = 0.5
    """What the main thread may take to act on a signal before the thread does."""
    reminder = signal.SIGALRM
    """What interrupts a wait of the main thread that has begun after the signal."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.checkpoints: SaveCheckpoints | None = None
        self.data: DataModule | None = None
        self.launcher: Any = None
        self.parent: int | None = None
        """The first process of the run, where this is another one."""
        self.training = self.validating = self.acted_on = False
        self.received: int | None = None
        self.received_at = 0.0
        self.previous: dict[int, Any] = {}
        self.thread: threading.Thread | None = None
        self.mask: set[int] = set()

    def __enter__(self) -> "Signals":
        # Python lets only the main thread handle signals; elsewhere whoever started the thread does
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._handle) for number in termination_signals()}
            self.reminded = signal.signal(self.reminder, self._remind)
            self.source, self.sink = os.pipe()
            os.set_blocking(self.sink, False)
            self.wakeup = signal.set_wakeup_fd(self.sink, warn_on_full_buffer=False)
            self.main = threading.get_ident()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
            _entered.append(self)
        return self

    def in_child(self) -> None:
        """After a fork: what arrives there is no matter of this process, and data workers outlive a signal to all."""
        signal.set_wakeup_fd(-1)
        works = self.data is not None and self.data.starting_workers
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_IGN if works else handler)
        signal.signal(self.reminder, self.reminded)

    def __exit__(self, *error: object) -> None:
        if self.thread is not None:
            _entered.remove(self)
        if self.data is not None:
            self.data.end_workers()
        if self.thread is not None:
            os.write(self.sink, b"\0")
            self.thread.join()
            signal.set_wakeup_fd(self.wakeup)
            for number, handler in [*self.previous.items(), (self.reminder, self.reminded)]:
                signal.signal(number, handler)
            os.close(self.sink)
            os.close(self.source)
        for process in self._others:
            with suppress(subprocess.TimeoutExpired):
                # without this one they can only fail
                process.wait(0 if error[0] is not None else GRACE_S)
            process.kill()
            process.wait()

    @property
    def _others(self) -> Sequence["subprocess.Popen[bytes]"]:
        """The processes that this one has started for ddp."""
        return getattr(self.launcher, "others", ())

    def require_others(self, patience_s: float = 2.0) -> None:
        """Raise :class:`LostProcessError` if one of the processes of ddp has ended, or does so soon."""
        end = time.monotonic() + patience_s
        while self._others:
            for rank, process in enumerate(self._others, start=1):
                if (code := process.poll()) is not None:
                    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                    raise LostProcessError(
                        f"process {rank} of 0 to {len(self._others)} ended {how}, and the run with it"
                    )
            if time.monotonic() >= end:
                return
            time.sleep(0.05)

    def _watch(self) -> None:
        # it holds no lock while it waits, for data workers are forked meanwhile
        poll = select.poll()
        poll.register(self.source, select.POLLIN)
        last, last_at, arrived, told, lost = 0, 0.0, 0, False, 0
        while True:
            several = self.launcher is not None or self.checkpoints is None
            if poll.poll(1e3 * self.patience_s if several or arrived else None):
                number, now = os.read(self.source, 1)[0], time.monotonic()
                if number == 0:
                    return
                if number in self.previous and not (number == last and now - last_at < self.duplicate_s):
                    last, last_at, arrived = number, now, arrived + 1
                continue
            if self.parent is not None and os.getppid() != self.parent:
                os._exit(1)
            if any(process.poll() for process in self._others):
                # the main thread fails by itself as soon as it asks the others
                lost += 1
                if lost > 5:
                    self._give_up()
            if arrived > 1:
                self._end(last)
            if not arrived or self.acted_on:
                continue
            if self._waits(self.patience_s):
                signal.pthread_kill(self.main, self.reminder)
            elif not told:
                told = True
                what = "received, stopping after this step or validation; a second one stops at once"
                with suppress(OSError):
                    os.write(2, f"snnexp: {signal.Signals(last).name} {what}\n".encode())

    def _waits(self, at_least_s: float = 0.0) -> bool:
        """Whether nothing is under way that has to be finished first: a batch is waited for, for so long already."""
        if not self.training:
            return True
        since = None if self.data is None else self.data.waiting_since
        return since is not None and time.monotonic() - since >= at_least_s

    def _handle(self, number: int, frame: object) -> None:
        if number == self.received and time.monotonic() - self.received_at < self.duplicate_s:
            return
        if self.received is not None:
            self._end(number)
        self.received, self.received_at = number, time.monotonic()
        # of several processes, all save together, if they can; no more can be saved within a validation
        if not self.training or (self.launcher is None and not self.validating and self._waits()):
            self.raise_if_received()

    def _remind(self, number: int, frame: object) -> None:
        if self._waits(self.patience_s):
            self.raise_if_received()

    def _give_up(self) -> None:
        try:
            self.require_others()
        except LostProcessError as error:
            self._end_with(error)

    def _end(self, number: int) -> None:
        self._end_with(InterruptedRunError(number))

    def _end_with(self, error: SnnexpError) -> None:
        try:
            for process in self._others:
                process.kill()
            if self.run is not None:
                self.run.update(status=error.status, exit_code=error.exit_code, reason=str(error))
            with suppress(OSError):
                os.write(2, f"snnexp: {error}\n".encode())
        finally:
            os._exit(error.exit_code)

    def raise_if_received(self) -> None:
        """Raise what the signal asked for, where it came while it could not be raised."""
        if self.received is not None:
            self.acted_on = True
            raise InterruptedRunError(self.received)

    @contextmanager
    def reraising_interrupts(self) -> Iterator[None]:
        """Raise :class:`InterruptedRunError` again where a library has caught it and raised an error of its own."""
        try:
            yield
        except Exception as error:
            # what a full disk or a setting says is told, though it be while the run is saved
            told = isinstance(error, OSError) or (isinstance(error, SnnexpError) and not isinstance(error, PartError))
            if self.received is not None and self.acted_on and not told:
                raise InterruptedRunError(self.received) from error
            raise

    def _handle_here(self) -> None:
        # Lightning has put a handler of its own in front, which ends a run with exit code 0
        for number in self.previous:
            signal.signal(number, self._handle)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle_here()
        self.raise_if_received()
        self.training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # a save waits for all processes, so all must know that one was told to stop
        if any_process(trainer, self.received is not None):
            assert self.checkpoints is not None
            self.received = self.received or signal.SIGTERM
            self.checkpoints.save_last(trainer)
            self.raise_if_received()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = False
        self.raise_if_received()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle_here()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        told = isinstance(exception, InterruptedRunError) and self.training
        # a validation whose data do not come is given up; last.ckpt is from before it
        if told and not self.validating and trainer.world_size == 1:
            assert self.checkpoints is not None
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self.checkpoints.position = (trainer.current_epoch, done)
            self.checkpoints.save_last(trainer)


_entered: list[Signals] = []


def _before_fork() -> None:
    # one that a child got before its handlers are its own would be lost
    for signals in _entered:
        signals.mask = signal.pthread_sigmask(signal.SIG_BLOCK, termination_signals())


def _after_fork() -> None:
    for signals in reversed(_entered):
        signal.pthread_sigmask(signal.SIG_SETMASK, signals.mask)


def _after_fork_in_child() -> None:
    for signals in reversed(_entered):
        signals.in_child()
    _after_fork()
    _entered.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
