"""The loop that drives a sweep: points go to slots, what becomes of them goes to the ledger.

A slot carries out one task at a time: a warm process here, or a job of a cluster (``cluster``). Whatever happens to a
task, the loop hears of it and goes on.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from snnexp.errors import InterruptedRunError, SnnexpError, ending_signals
from snnexp.runs import Run
from snnexp.sweeps.display import Display
from snnexp.sweeps.ledger import Ledger, Point

GRACE_S = 60.0
"""What a point that is told to stop may take to be saved, or less where it may not take so long at all."""
TICK_S = 0.25
Job = list[Point]
"""Points that one task carries out: one, or the members of a stack."""


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


class Source(Protocol):
    """Where points come from: a list, or a search."""

    def next(self) -> Job | None:
        """What to do next; None where there is nothing now."""

    def ended(self, point: Point) -> None:
        """What became of a point."""

    def tick(self) -> bool:
        """Called now and then; whether there may be more to do later."""

    def put_back(self, point: Point) -> None:
        """Give a point again, as a job of its own."""


class Worker:
    """A process of :mod:`snnexp.sweeps.worker`, started when it is needed and again when it is gone.

    Args:
        environment: variables of the process, such as its threads and its GPU.
        limit_bytes: of memory; None for as much as there is.
    """

    how = "process"

    def __init__(self, environment: Mapping[str, str], limit_bytes: int | None = None) -> None:
        # not as a module: processes of ddp would then be workers as well
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
                env={**os.environ, **self.environment},
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
        while True:
            try:
                text = os.read(self.handle, 2**16)
            except BlockingIOError:
                break
            if not text:
                return [*found, *self._gone()]
            *lines, self.rest = (self.rest + text).split(b"\n")
            found += map(json.loads, lines)
        self.idle = self.idle or any("idle" in event for event in found)
        return found

    def _gone(self) -> list[dict[str, Any]]:
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


class Busy:
    """A slot at work."""

    def __init__(self, job: Job, timeout_s: float | None) -> None:
        self.job, self.left, self.timeout_s = job, set(range(len(job))), timeout_s
        self.late = self.told = False
        self.deadline: float | None = None

    def begin(self) -> None:
        """Let its time run from now."""
        self.deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s

    def tell(self, slot: Slot) -> None:
        """Ask it to save and to end; the second time it is not asked."""
        slot.stop(at_once=self.told)
        self.told, self.deadline = True, time.monotonic() + min(GRACE_S, self.timeout_s or GRACE_S)


class Engine:
    """Drives a sweep.

    Args:
        ledger: the record.
        source: gives the points.
        slots: carry them out.
        tasks: what a slot is asked for a job.
        timeout_s: what a job may take; it is then told to stop, and a minute later ended.
        display: what is seen.
    """

    def __init__(
        self,
        ledger: Ledger,
        source: Source,
        slots: Sequence[Slot],
        tasks: "Tasks",
        timeout_s: float | None,
        display: Display,
    ) -> None:
        self.ledger, self.source, self.tasks, self.timeout_s, self.display = ledger, source, tasks, timeout_s, display
        self.slots: dict[Slot, Busy | None] = dict.fromkeys(slots)
        self.signal: int | None = None
        self.full: str | None = None
        """What the disk has refused: the next point would meet the same one."""

    def run(self) -> None:
        """Until nothing is left to do.

        Raises:
            InterruptedRunError: a signal asked for the end; points under way have been saved.
            OSError: the disk said no.
        """
        try:
            with self._signals(), self.display:
                while self._step():
                    self._wait()
        finally:
            for slot in self.slots:
                slot.close()
        if self.signal is not None:
            raise InterruptedRunError(self.signal)

    def _step(self) -> bool:
        """One turn of the loop; False where nothing is left."""
        ended: list[Point] = []
        for slot, busy in self.slots.items():
            for event in slot.events():
                if busy is not None:
                    ended += self._take(slot, busy, event)
            if busy is not None and not busy.left and slot.ready:
                self.slots[slot] = None
            elif busy is not None:
                self._watch(slot, busy)
        stopping = self.signal is not None or self.full is not None
        if not stopping:
            ended = [point for point in ended if not self._again_alone(point)]
        more = self.source.tick()
        begun: list[tuple[Slot, Job]] = []
        for slot, busy in self.slots.items():
            if busy is None and not stopping and (job := self.source.next()):
                begun.append((slot, job))
                for point in job:
                    point.status, point.reason, point.exit_code = "running", "", None
                    point.how = slot.how if len(job) == 1 else f"stack of {len(job)}"
        if begun or ended:
            # before the points start: whoever finds a run directory knows whose it is
            self.ledger.save()
        if ended:
            self.ledger.save_summary()
        for slot, job in begun:
            self.slots[slot] = Busy(job, self.timeout_s and self.timeout_s * len(job))
            slot.start(job, self.tasks.of(job))
        if any(point.job for _, job in begun for point in job):
            # whoever goes on with the sweep asks the cluster for them
            self.ledger.save()
        for point in ended:
            self.source.ended(point)
            self.display.ended(point)
        self.display.refresh()
        busy_now = any(self.slots.values())
        return busy_now if stopping else busy_now or more

    def _again_alone(self, point: Point) -> bool:
        """Whether a point that failed is tried again: one of a stack may have failed for another's sake, or for all."""
        if point.status != "failed" or not point.how.startswith("stack"):
            return False
        self.display.note(point, f"{point.reason}; it is tried alone")
        point.status, point.reason, point.exit_code = "pending", "", None
        self.source.put_back(point)
        return True

    def _take(self, slot: Slot, busy: Busy, event: Mapping[str, Any]) -> list[Point]:
        """Note an event; returns the points that it has ended."""
        if "working" in event and not busy.told:
            # the time that a process takes to start is not the point's
            busy.begin()
        elif "begun" in event:
            point = busy.job[event["begun"]]
            point.run = f"{self.ledger.runs.name}/{Path(event['run']).name}"
        elif "ended" in event and event["ended"] in busy.left:
            busy.left.discard(event["ended"])
            point = busy.job[event["ended"]]
            point.status, point.reason = event["status"], event.get("reason", "")
            point.exit_code, point.metrics = event["exit_code"], event.get("metrics", {})
            if point.status == "interrupted" and busy.late:
                point.status, point.reason = "timeout", f"took longer than {self.timeout_s:g} s"
            if point.exit_code == 74:
                self.full = point.reason
            return [point]
        elif "gone" in event:
            return [self._lost(busy, index, event) for index in sorted(busy.left)]
        return []

    def _lost(self, busy: Busy, index: int, event: Mapping[str, Any]) -> Point:
        """A point whose process has left without a word; what its run says is right."""
        busy.left.discard(index)
        point = busy.job[index]
        if self.ledger.look(point, {} if point.run else self.ledger.unclaimed()):
            return point
        point.status, point.reason, point.exit_code = "failed", event["gone"], event["exit_code"]
        if busy.late:
            point.status, point.reason = "timeout", f"took longer than {self.timeout_s:g} s, and {event['gone']}"
        if self.signal is not None:
            point.status = "interrupted"
        if point.run:
            with suppress(SnnexpError):
                Run(self.ledger.path / point.run).update(
                    status="failed", exit_code=point.exit_code, reason=point.reason
                )
        return point

    def _watch(self, slot: Slot, busy: Busy) -> None:
        """Stop what takes too long, and all where that was asked for."""
        if (self.signal is not None or self.full is not None) and not busy.told:
            busy.tell(slot)
        elif busy.deadline is not None and time.monotonic() >= busy.deadline:
            busy.late = busy.late or not busy.told
            busy.tell(slot)

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for slot in self.slots:
                if slot.handle is not None:
                    selector.register(slot.handle, selectors.EVENT_READ)
            selector.select(TICK_S)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal stops the sweep, what is under way is saved; the second ends it."""

        def told(number: int, frame: object) -> None:
            if self.signal is not None:
                for slot in self.slots:
                    slot.stop(at_once=True)
            self.signal = self.signal or number

        before = {number: signal.signal(number, told) for number in ending_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Tasks:
    """What slots are asked for.

    Args:
        ledger: the record.
        program: the command line's own name.
        prune: for a point of a search, what a run needs to be given up early; None for a list of points.
    """

    def __init__(self, ledger: Ledger, program: str, prune: Callable[[Point], dict[str, Any]] | None = None) -> None:
        self.ledger, self.program, self.prune = ledger, program, prune

    def of(self, job: Job) -> dict[str, Any]:
        """The task for points, as ``worker`` takes it."""
        ledger, first = self.ledger, job[0]
        log = str(ledger.runs / f".point-{first.index}.log")
        task: dict[str, Any] = {"program": self.program, "parent": str(ledger.runs), "log": log}
        if len(job) > 1:
            return {**task, "members": [{**self._point(point), "run": self._run(point)} for point in job]}
        task |= {"prune": self.prune(first)} if self.prune else {}
        return {**task, **({"run": self._run(first)} if first.run else self._point(first))}

    def _point(self, point: Point) -> dict[str, Any]:
        return {"config": self.ledger.config(point), "overrides": point.overrides}

    def _run(self, point: Point) -> str | None:
        return str(self.ledger.path / point.run) if point.run else None
