"""The loop that drives a sweep: points go to slots, what becomes of them goes to the ledger.

A slot carries out one task at a time: a warm process here, or a job of a cluster (``cluster``). Whatever happens to a
task, the loop hears of it and goes on.
"""

import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from snnexp.errors import InterruptedRunError, SnnexpError, termination_signals
from snnexp.record.run import Run
from snnexp.sweeps.display import Display
from snnexp.sweeps.ledger import Ledger, Point
from snnexp.sweeps.slots import Job, Slot

GRACE_S = 60.0
"""What a point that is told to stop may take to be saved, or less where it may not take so long at all."""
TICK_S = 0.25
SAME_S = 0.1
"""A signal to a process and then to its group, as ``timeout`` sends it, arrives twice and is one."""


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


class Busy:
    """A slot at work.

    Args:
        job: what it does.
        timeout_s: what it may take; it is then told to stop, and after some time to save, at most as long again, ended.
        written: when the run of each point was last written.
    """

    def __init__(self, job: Job, timeout_s: float | None, written: Sequence[int]) -> None:
        self.job, self.left, self.timeout_s, self.written = job, set(range(len(job))), timeout_s, written
        self.late = self.told = self.working = False
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
        timeout_s: what a point may take, and a stack of as many as it has members.
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
        self.signalled_at = 0.0
        self.full: str | None = None
        """What the disk has refused: the next point would meet the same one."""
        self.error: SnnexpError | None = None
        """What the source or a cluster has refused."""
        self.begun = False
        """Whether a run directory is there of which the ledger does not know."""
        self.restarted: set[int] = set()

    def run(self) -> None:
        """Until nothing is left to do.

        Raises:
            InterruptedRunError: a signal asked for the end; points under way have been saved.
            OSError: the ledger could not be written.
        """
        try:
            with self._signals(), self.display:
                while self._step():
                    self._wait()
        finally:
            for slot in self.slots:
                slot.close()
        self.ledger.save()
        self.ledger.save_summary()
        if self.signal is not None:
            raise InterruptedRunError(self.signal)
        if self.error is not None:
            raise self.error

    @property
    def _stopping(self) -> bool:
        return self.signal is not None or self.full is not None or self.error is not None

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
        ended = [point for point in ended if self._stopping or not self._again_alone(point)]
        more = False
        begun: list[tuple[Slot, Job]] = []
        try:
            # before another is asked for, which may depend on them
            for point in ended:
                self.source.ended(point)
            more = self.source.tick()
            for slot, busy in self.slots.items():
                if busy is None and not self._stopping and (job := self.source.next()):
                    if job[0].status == "failed":
                        # refused before it could begin
                        ended += job
                        for point in job:
                            self.source.ended(point)
                    else:
                        begun.append((slot, job))
        except SnnexpError as error:
            self.error = self.error or error
        for slot, job in begun:
            for point in job:
                point.status, point.reason, point.exit_code = "running", "", None
                point.how = slot.how if len(job.seats) == 1 else f"stack of {len(job.seats)}"
                point.stack = [] if len(job.seats) == 1 else [seat.index for seat in job.seats]
        if begun or ended or self.begun:
            # before the points start: whoever finds a run directory knows whose it is
            self.ledger.save()
            self.begun = False
        if ended:
            self.ledger.save_summary(every_s=5)
        for slot, job in begun:
            self._start(slot, job)
        for point in ended:
            self.display.ended(point)
        self.display.refresh()
        busy_now = any(self.slots.values())
        return busy_now if self._stopping else busy_now or more

    def _start(self, slot: Slot, job: Job) -> None:
        written = [self.ledger.written(point) for point in job]
        try:
            slot.start(job, self.tasks.of(job))
        except SnnexpError as error:
            for point in job:
                point.status = "pending"
            self.error = self.error or error
            return
        self.slots[slot] = Busy(job, self.timeout_s and self.timeout_s * len(job.seats), written)
        if job[0].job:
            # whoever goes on with the sweep asks the cluster for it
            self.ledger.save()

    def _again_alone(self, point: Point) -> bool:
        """Whether a point that failed is tried again: one of a stack may have failed for another's sake, or for all."""
        if point.status not in ("failed", "timeout") or not point.how.startswith("stack"):
            return False
        self.display.note(point, f"{point.reason}; it is tried alone")
        point.status, point.reason, point.exit_code = "pending", "", None
        self.source.put_back(point)
        return True

    def _take(self, slot: Slot, busy: Busy, event: Mapping[str, Any]) -> list[Point]:
        """Note an event; returns the points that it has ended."""
        if "working" in event:
            busy.working = True
            if not busy.told:
                # the time that a process takes to start is not the point's
                busy.begin()
        elif "begun" in event:
            point = busy.job[event["begun"]]
            point.run = f"{self.ledger.runs.name}/{Path(event['run']).name}"
            if "members" in event:
                point.how = f"stack of {event['members']}" if event["members"] > 1 else slot.how
            self.begun = True
        elif "ended" in event and event["ended"] in busy.left:
            busy.left.discard(event["ended"])
            point = busy.job[event["ended"]]
            point.end(event["status"], event.get("reason", ""), event["exit_code"])
            point.metrics = event.get("metrics", {})
            if point.status == "interrupted" and busy.late:
                point.status, point.reason = "timeout", f"took longer than {busy.timeout_s:g} s"
            if point.exit_code == 74:
                self.full = point.reason
            return [point]
        elif "gone" in event and not busy.working and not self._stopping and busy.job[0].index not in self.restarted:
            # it died before it took the task, which another process will take
            self.restarted.add(busy.job[0].index)
            slot.start(busy.job, self.tasks.of(busy.job))
            # which at a cluster has another number
            self.begun = True
        elif "gone" in event:
            return [self._lost(busy, index, event) for index in sorted(busy.left)]
        return []

    def _lost(self, busy: Busy, index: int, event: Mapping[str, Any]) -> Point:
        """A point whose process has left without a word; what its run says is right."""
        busy.left.discard(index)
        point = busy.job[index]
        point.status, point.reason, point.exit_code = "failed", event["gone"], event["exit_code"]
        if busy.late:
            point.status, point.reason = "timeout", f"took longer than {busy.timeout_s:g} s, and {event['gone']}"
        if self.signal is not None:
            point.status = "interrupted"
        told = (point.status, point.reason, point.exit_code)
        ended = self.ledger.look(point, {} if point.run else self.ledger.unclaimed())
        if ended and self.ledger.written(point) == busy.written[index]:
            # that is how it had ended before it was resumed
            ended, (point.status, point.reason, point.exit_code) = False, told
        if ended and point.exit_code == 74:
            self.full = point.reason
        run = Run(self.ledger.path / point.run) if point.run else None
        if not ended and run is not None and not run.in_use():
            with suppress(SnnexpError):
                status = "interrupted" if self.signal is not None else "failed"
                run.update(status=status, exit_code=point.exit_code, reason=point.reason)
        log = self.ledger.log(point)
        if run is None and log.exists():
            point.reason += f"; see {log}"
        return point

    def _watch(self, slot: Slot, busy: Busy) -> None:
        """Stop what takes too long, and all where that was asked for."""
        if self._stopping and not busy.told:
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
            now = time.monotonic()
            if self.signal is None:
                self.signal, self.signalled_at = number, now
            elif now - self.signalled_at > SAME_S:
                for slot in self.slots:
                    slot.stop(at_once=True)

        # Python lets only the main thread handle signals; elsewhere whoever started the thread does
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, told) for number in termination_signals() if main}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Tasks:
    """What slots are asked for.

    Args:
        ledger: the record.
        prune: for a point of a search, what a run needs to be given up early; None for a list of points.
        keys: overrides of runs that are resumed.
    """

    def __init__(
        self,
        ledger: Ledger,
        prune: Callable[[Point], dict[str, Any]] | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self.ledger, self.prune, self.keys = ledger, prune, keys

    def of(self, job: Job) -> dict[str, Any]:
        """The task for points, as ``worker`` takes it."""
        ledger, first = self.ledger, job[0]
        for point in job:
            if point.run and not (ledger.path / point.run / "config.yaml").exists():
                # a person has deleted it, so that the point begins again
                point.run = ""
        where = {"parent": str(ledger.runs), "log": str(ledger.log(first))}
        task: dict[str, Any] = {"keys": [*self.keys], **where}
        if len(job.seats) == 1:
            return {**task, **self._prune(first), **({"run": self._run(first)} if first.run else self._point(first))}
        return {**task, "members": [self._seat(point, over=point not in job) for point in job.seats]}

    def _seat(self, point: Point, over: bool) -> dict[str, Any]:
        prune = {} if over else self._prune(point)
        return {**self._point(point), **prune, "run": self._run(point), "over": over}

    def _point(self, point: Point) -> dict[str, Any]:
        return {"config": self.ledger.config(point), "overrides": point.overrides}

    def _prune(self, point: Point) -> dict[str, Any]:
        return {"prune": self.prune(point)} if self.prune else {}

    def _run(self, point: Point) -> str | None:
        return str(self.ledger.path / point.run) if point.run else None
