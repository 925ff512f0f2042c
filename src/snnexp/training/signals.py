"""Signal handling: after a signal or the loss of a process, save the run, record it as interrupted and exit."""

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
"""Timeout for the other processes of a finished run to end."""


class Signals(Callback):
    """Handle SIGINT, SIGTERM and SIGHUP: finish the step or validation, save last.ckpt, stop.

    While waiting for a batch, save and stop immediately; outside of training, stop immediately. A second signal kills
    the process. Python runs signal handlers only between bytecodes, and a call into PyTorch may take long, so a
    thread also watches for signals: it reports the first one, and kills the process at the second.
    """

    duplicate_s = 0.1
    """Identical signals within this time count as one: ``timeout`` signals a process and then its group."""
    patience_s = 0.5
    """How long the thread waits for the main thread to act on a signal."""
    reminder = signal.SIGALRM
    """Interrupts a wait of the main thread that began after the signal."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.checkpoints: SaveCheckpoints | None = None
        self.data: DataModule | None = None
        self.launcher: Any = None
        self.parent: int | None = None
        """Process id of rank 0 in the processes of other ranks."""
        self.training = self.validating = self.acted_on = False
        self.received: int | None = None
        self.received_at = 0.0
        self.previous: dict[int, Any] = {}
        self.thread: threading.Thread | None = None
        self.mask: set[int] = set()

    def __enter__(self) -> "Signals":
        # only the main thread may set signal handlers; in other threads, the caller is responsible
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
        """Reset the handlers after a fork; data workers ignore signals to the process group."""
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
                # the other processes cannot continue without this one
                process.wait(0 if error[0] is not None else GRACE_S)
            process.kill()
            process.wait()

    @property
    def _others(self) -> Sequence["subprocess.Popen[bytes]"]:
        """The ddp processes started by this one."""
        return getattr(self.launcher, "others", ())

    def require_others(self, patience_s: float = 2.0) -> None:
        """Raise :class:`LostProcessError` if a ddp process has ended, or ends within ``patience_s``."""
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
        # poll holds no lock that a forked data worker could inherit
        poll = select.poll()
        poll.register(self.source, select.POLLIN)
        last, last_at, arrived, reported, lost = 0, 0.0, 0, False, 0
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
                # usually the main thread fails at its next collective operation
                lost += 1
                if lost > 5:
                    self._give_up()
            if arrived > 1:
                self._end(last)
            if not arrived or self.acted_on:
                continue
            if self._is_interruptible(self.patience_s):
                signal.pthread_kill(self.main, self.reminder)
            elif not reported:
                reported = True
                what = "received, stopping after this step or validation; a second one stops at once"
                with suppress(OSError):
                    os.write(2, f"snnexp: {signal.Signals(last).name} {what}\n".encode())

    def _is_interruptible(self, at_least_s: float = 0.0) -> bool:
        """Return True outside of training, or if the main thread has waited ``at_least_s`` for a batch."""
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
        # several processes save together; nothing can be saved during a validation
        if not self.training or (self.launcher is None and not self.validating and self._is_interruptible()):
            self.raise_if_received()

    def _remind(self, number: int, frame: object) -> None:
        if self._is_interruptible(self.patience_s):
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
        """Raise :class:`InterruptedRunError` if a signal has arrived."""
        if self.received is not None:
            self.acted_on = True
            raise InterruptedRunError(self.received)

    @contextmanager
    def reraising_interrupts(self) -> Iterator[None]:
        """Raise :class:`InterruptedRunError` again if a library replaced it by another error."""
        try:
            yield
        except Exception as error:
            # I/O and config errors while saving are reported as such
            own = isinstance(error, OSError) or (isinstance(error, SnnexpError) and not isinstance(error, PartError))
            if self.received is not None and self.acted_on and not own:
                raise InterruptedRunError(self.received) from error
            raise

    def _handle_here(self) -> None:
        # replaces Lightning's handler, which ends a run with exit code 0
        for number in self.previous:
            signal.signal(number, self._handle)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle_here()
        self.raise_if_received()
        self.training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # saving is collective, so all processes must know about the signal
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
        interrupted = isinstance(exception, InterruptedRunError) and self.training
        # an interrupted validation is discarded; last.ckpt precedes it
        if interrupted and not self.validating and trainer.world_size == 1:
            assert self.checkpoints is not None
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self.checkpoints.position = (trainer.current_epoch, done)
            self.checkpoints.save_last(trainer)


_entered: list[Signals] = []


def _before_fork() -> None:
    # block signals until the child has its own handlers
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
