"""What carries out one task of a sweep at a time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from snnexp.sweeps.ledger import Point


class Job(list[Point]):
    """Points that one task carries out.

    Args:
        points: one, or those of a stack that have not ended.
        seats: all members of the stack, in the order in which it was begun.
    """

    def __init__(self, points: Iterable[Point], seats: Sequence[Point] = ()) -> None:
        super().__init__(points)
        self.seats = seats or [*self]


class Slot(Protocol):
    """Carries out one task at a time."""

    def start(self, job: Job, task: Mapping[str, Any]) -> None:
        """Begin a task; the slot is free."""

    @property
    def ready(self) -> bool:
        """Whether it could begin another task."""

    def events(self) -> list[dict[str, Any]]:
        """What has happened since the last call, as ``worker`` tells it; does not wait."""

    def stop(self, at_once: bool) -> None:
        """Ask the task to save and to end, or end it."""

    def close(self) -> None:
        """Let go of everything."""

    @property
    def how(self) -> str:
        """What it is that carries out a single point."""

    @property
    def handle(self) -> int | None:
        """A file that becomes readable when there are events, where there is one."""


class Worker:
    """A process of :mod:`snnexp.sweeps.worker`, started when it is needed and again when it is gone.

    Args:
        environment: variables of the process, such as its threads and its GPU.
        limit_bytes: of memory; None for as much as there is.
    """

    how = "process"

    def __init__(self, environment: Mapping[str, str], limit_bytes: int | None = None) -> None:
        self.command = [sys.executable, "-c", f"from snnexp.sweeps.worker import main; main({limit_bytes})"]
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self.idle = True
        self.rest = b""
        self.stopped = ""

    def start(self, job: Job, task: Mapping[str, Any]) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C in the terminal is for the driver, which tells its workers
                start_new_session=True,
                # what lies in the current folder is no part of Python, whoever put it there
                env={**os.environ, "PYTHONSAFEPATH": "1", **self.environment},
            )
            assert self.process.stdout is not None
            os.set_blocking(self.process.stdout.fileno(), False)
        self.idle, self.stopped = False, ""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            # of a process that is gone, its end tells
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()

    @property
    def ready(self) -> bool:
        return self.idle or self.process is None

    @property
    def handle(self) -> int | None:
        return None if self.process is None or self.process.stdout is None else self.process.stdout.fileno()

    def events(self) -> list[dict[str, Any]]:
        if self.process is None or self.handle is None:
            return []
        found: list[dict[str, Any]] = []
        # looked at first: what it has told is then all there, also where processes that it has left keep its pipe open
        over = self.process.poll() is not None
        while True:
            try:
                text = os.read(self.handle, 2**16)
            except BlockingIOError:
                if not over:
                    break
                text = b""
            if not text:
                return [*found, *self._gone()]
            *lines, self.rest = (self.rest + text).split(b"\n")
            found += map(json.loads, lines)
        self.idle = self.idle or any("idle" in event for event in found)
        return found

    def _gone(self) -> list[dict[str, Any]]:
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            # that it ends, and how, is seen a moment after its pipe has closed
            self.process.wait(1)
        code = self._reap()
        signum = -code if code < 0 else 0
        reason = f"its process was ended by {signal.Signals(signum).name}" if signum else f"its process exited, {code}"
        if signum == signal.SIGKILL:
            reason += ", as the system does where memory runs out"
        return [{"gone": self.stopped or reason, "exit_code": 128 + signum if signum else code}]

    def _reap(self) -> int:
        assert self.process is not None
        process, self.process, self.rest = self.process, None, b""
        with suppress(ProcessLookupError, PermissionError):
            # and whatever it has started
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        return process.wait()

    def stop(self, at_once: bool) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                if at_once:
                    self.stopped = "it did not end when it was told to"
                    os.killpg(self.process.pid, signal.SIGKILL)
                else:
                    self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        if self.process is not None:
            self._reap()
