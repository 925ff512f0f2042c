"""Slots of a sweep: each runs one task at a time."""

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
    """Points that run in one task.

    Args:
        points: one point, or the unfinished members of a stack.
        members: all members of the stack, in order.
    """

    def __init__(self, points: Iterable[Point], members: Sequence[Point] = ()) -> None:
        super().__init__(points)
        self.members = members or [*self]


class Slot(Protocol):
    """Runs one task at a time."""

    def start(self, job: Job, task: Mapping[str, Any]) -> None:
        """Start a task. The slot must be ready."""

    @property
    def ready(self) -> bool:
        """Whether the slot can start a task."""

    def events(self) -> list[dict[str, Any]]:
        """Return the events since the last call, in the format of :mod:`snnexp.sweeps.worker`, without blocking."""

    def stop(self, at_once: bool) -> None:
        """Ask the task to save and stop, or kill it."""

    def close(self) -> None:
        """Release all resources."""

    @property
    def how(self) -> str:
        """Value of ``Point.how`` for a single point."""

    @property
    def handle(self) -> int | None:
        """File descriptor that becomes readable when there are events, if any."""


class Worker:
    """A process of :mod:`snnexp.sweeps.worker`, started on demand and restarted after it died.

    Args:
        environment: additional environment variables, such as the number of threads and the GPU.
        limit_bytes: memory limit; None for no limit.
    """

    how = "process"

    def __init__(self, environment: Mapping[str, str], limit_bytes: int | None = None) -> None:
        self.command = [sys.executable, "-c", f"from snnexp.sweeps.worker import main; main({limit_bytes})"]
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self.idle = True
        self.buffer = b""
        self.kill_reason = ""

    def start(self, job: Job, task: Mapping[str, Any]) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C in the terminal must reach the driver only, which stops its workers
                start_new_session=True,
                # do not import modules from the current directory
                env={**os.environ, "PYTHONSAFEPATH": "1", **self.environment},
            )
            assert self.process.stdout is not None
            os.set_blocking(self.process.stdout.fileno(), False)
        self.idle, self.kill_reason = False, ""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            # if the process has died, events() reports it
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
        events: list[dict[str, Any]] = []
        # poll before reading: if the process has exited, all its output can be read now; child processes may keep the
        # pipe open, so the end of the file is not reliable
        exited = self.process.poll() is not None
        while True:
            try:
                text = os.read(self.handle, 2**16)
            except BlockingIOError:
                if not exited:
                    break
                text = b""
            if not text:
                return [*events, *self._exit_event()]
            *lines, self.buffer = (self.buffer + text).split(b"\n")
            events += map(json.loads, lines)
        self.idle = self.idle or any("idle" in event for event in events)
        return events

    def _exit_event(self) -> list[dict[str, Any]]:
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            # the exit code is available shortly after the pipe is closed
            self.process.wait(1)
        code = self._reap()
        signum = -code if code < 0 else 0
        reason = (
            f"its process was killed by {signal.Signals(signum).name}"
            if signum
            else f"its process exited with code {code}"
        )
        if signum == signal.SIGKILL:
            reason += ", possibly out of memory"
        return [{"gone": self.kill_reason or reason, "exit_code": 128 + signum if signum else code}]

    def _reap(self) -> int:
        assert self.process is not None
        process, self.process, self.buffer = self.process, None, b""
        with suppress(ProcessLookupError, PermissionError):
            # also kills its child processes
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
                    self.kill_reason = "its process did not stop and was killed"
                    os.killpg(self.process.pid, signal.SIGKILL)
                else:
                    self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        if self.process is not None:
            self._reap()
