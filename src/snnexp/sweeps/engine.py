"""The event loop of a sweep: it schedules points on slots and records their results in the ledger.

A slot runs one task at a time: a worker process that is reused, or a cluster job (:mod:`snnexp.sweeps.cluster`). A
failed task does not stop the loop.
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

SAVE_TIMEOUT_S = 60.0
"""Time to save after a stop request; the timeout of a point, if shorter."""
TICK_S = 0.25
DUPLICATE_SIGNAL_S = 0.1
"""Signals within this time count as one: ``timeout`` signals the process, and then its process group."""


class Source(Protocol):
    """A source of points: a list, or a study."""

    def next(self) -> Job | None:
        """Return the next job, or None if there is none at the moment."""

    def ended(self, point: Point) -> None:
        """Handle the end of a point."""

    def tick(self) -> bool:
        """Do periodic work. Return True if more jobs may follow."""

    def requeue(self, point: Point) -> None:
        """Queue a point again, as a job of one point."""


class RunningTask:
    """A job that runs in a slot.

    Args:
        job: the job.
        timeout_s: time limit, after which the task is asked to save and stop, and killed if it does not.
        modified_ns: when the run of each point was last modified.
    """

    def __init__(self, job: Job, timeout_s: float | None, modified_ns: Sequence[int]) -> None:
        self.job, self.timeout_s, self.modified_ns = job, timeout_s, modified_ns
        self.unfinished = set(range(len(job)))
        self.timed_out = self.stop_sent = self.started = False
        self.deadline: float | None = None

    def start_timer(self) -> None:
        self.deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s

    def stop(self, slot: Slot) -> None:
        """Ask the task to save and stop; kill it on the second call."""
        slot.stop(at_once=self.stop_sent)
        self.stop_sent = True
        self.deadline = time.monotonic() + min(SAVE_TIMEOUT_S, self.timeout_s or SAVE_TIMEOUT_S)


class Engine:
    """Runs a sweep.

    Args:
        ledger: record of the sweep.
        source: source of the points.
        slots: run the points.
        tasks: makes the task of a job.
        timeout_s: time limit per point; that of a stack is multiplied by its number of members.
        display: shows the progress.
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
        self.slots: dict[Slot, RunningTask | None] = dict.fromkeys(slots)
        self.signal: int | None = None
        self.signal_at = 0.0
        self.disk_error: str | None = None
        """I/O error of a point, which stops the sweep: later points would fail with the same error."""
        self.error: SnnexpError | None = None
        """Error of the source or the cluster, which stops the sweep."""
        self.has_new_runs = False
        """Whether there are run directories that sweep.json does not list yet."""
        self.restarted: set[int] = set()

    def run(self) -> None:
        """Run until no point is left.

        Raises:
            InterruptedRunError: a signal stopped the sweep; running points have been saved.
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
        return self.signal is not None or self.disk_error is not None or self.error is not None

    def _step(self) -> bool:
        """Run one iteration of the loop. Return False if nothing is left to do."""
        ended: list[Point] = []
        for slot, task in self.slots.items():
            for event in slot.events():
                if task is not None:
                    ended += self._handle(slot, task, event)
            if task is not None and not task.unfinished and slot.ready:
                self.slots[slot] = None
            elif task is not None:
                self._stop_if_needed(slot, task)
        ended = [point for point in ended if self._stopping or not self._retry_alone(point)]
        more = False
        starting: list[tuple[Slot, Job]] = []
        try:
            # report ended points first: the next point may depend on them
            for point in ended:
                self.source.ended(point)
            more = self.source.tick()
            for slot, task in self.slots.items():
                if task is None and not self._stopping and (job := self.source.next()):
                    if job[0].status == "failed":
                        # its config is invalid
                        ended += job
                        for point in job:
                            self.source.ended(point)
                    else:
                        starting.append((slot, job))
        except SnnexpError as error:
            self.error = self.error or error
        for slot, job in starting:
            for point in job:
                point.status, point.reason, point.exit_code = "running", "", None
                point.how = slot.how if len(job.members) == 1 else f"stack of {len(job.members)}"
                point.stack = [] if len(job.members) == 1 else [seat.index for seat in job.members]
        if starting or ended or self.has_new_runs:
            # before the points start, so that each run directory belongs to a point of sweep.json
            self.ledger.save()
            self.has_new_runs = False
        if ended:
            self.ledger.save_summary(every_s=5)
        for slot, job in starting:
            self._start(slot, job)
        for point in ended:
            self.display.ended(point)
        self.display.refresh()
        running = any(self.slots.values())
        return running if self._stopping else running or more

    def _start(self, slot: Slot, job: Job) -> None:
        modified_ns = [self.ledger.modified_ns(point) for point in job]
        try:
            slot.start(job, self.tasks.make(job))
        except SnnexpError as error:
            for point in job:
                point.status = "pending"
            self.error = self.error or error
            return
        self.slots[slot] = RunningTask(job, self.timeout_s and self.timeout_s * len(job.members), modified_ns)
        if job[0].job:
            # a driver that resumes the sweep finds the cluster job by its number
            self.ledger.save()

    def _retry_alone(self, point: Point) -> bool:
        """Requeue a failed member of a stack as a single point, since another member may be the cause.

        Returns:
            True if it was requeued.
        """
        if point.status not in ("failed", "timeout") or not point.how.startswith("stack"):
            return False
        self.display.note(point, f"{point.reason}; retrying it alone")
        point.status, point.reason, point.exit_code = "pending", "", None
        self.source.requeue(point)
        return True

    def _handle(self, slot: Slot, task: RunningTask, event: Mapping[str, Any]) -> list[Point]:
        """Handle an event, and return the points that ended."""
        if "working" in event:
            task.started = True
            if not task.stop_sent:
                # the time to start the process does not count
                task.start_timer()
        elif "begun" in event:
            point = task.job[event["begun"]]
            point.run = f"{self.ledger.runs.name}/{Path(event['run']).name}"
            if "members" in event:
                point.how = f"stack of {event['members']}" if event["members"] > 1 else slot.how
            self.has_new_runs = True
        elif "ended" in event and event["ended"] in task.unfinished:
            task.unfinished.discard(event["ended"])
            point = task.job[event["ended"]]
            point.end(event["status"], event.get("reason", ""), event["exit_code"])
            point.metrics = event.get("metrics", {})
            if point.status == "interrupted" and task.timed_out:
                point.status, point.reason = "timeout", f"took longer than {task.timeout_s:g} s"
            if point.exit_code == 74:
                self.disk_error = point.reason
            return [point]
        elif "gone" in event and not task.started and not self._stopping and task.job[0].index not in self.restarted:
            # the process died before it read the task; restart it once
            self.restarted.add(task.job[0].index)
            slot.start(task.job, self.tasks.make(task.job))
            # save the number of the new cluster job
            self.has_new_runs = True
        elif "gone" in event:
            return [self._handle_exit(task, index, event) for index in sorted(task.unfinished)]
        return []

    def _handle_exit(self, task: RunningTask, index: int, event: Mapping[str, Any]) -> Point:
        """Return a point whose process died without reporting its end; its run directory takes precedence."""
        task.unfinished.discard(index)
        point = task.job[index]
        point.status, point.reason, point.exit_code = "failed", event["gone"], event["exit_code"]
        if task.timed_out:
            point.status, point.reason = "timeout", f"took longer than {task.timeout_s:g} s, and {event['gone']}"
        if self.signal is not None:
            point.status = "interrupted"
        outcome = (point.status, point.reason, point.exit_code)
        ended = self.ledger.sync(point, {} if point.run else self.ledger.unclaimed())
        if ended and self.ledger.modified_ns(point) == task.modified_ns[index]:
            # run.json still has the status from before the run was resumed
            ended, (point.status, point.reason, point.exit_code) = False, outcome
        if ended and point.exit_code == 74:
            self.disk_error = point.reason
        run = Run(self.ledger.path / point.run) if point.run else None
        if not ended and run is not None and not run.in_use():
            with suppress(SnnexpError):
                status = "interrupted" if self.signal is not None else "failed"
                run.update(status=status, exit_code=point.exit_code, reason=point.reason)
        log = self.ledger.log_path(point)
        if run is None and log.exists():
            point.reason += f"; see {log}"
        return point

    def _stop_if_needed(self, slot: Slot, task: RunningTask) -> None:
        """Stop a task that exceeded its time limit, or any task while the sweep stops."""
        if self._stopping and not task.stop_sent:
            task.stop(slot)
        elif task.deadline is not None and time.monotonic() >= task.deadline:
            task.timed_out = task.timed_out or not task.stop_sent
            task.stop(slot)

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for slot in self.slots:
                if slot.handle is not None:
                    selector.register(slot.handle, selectors.EVENT_READ)
            selector.select(TICK_S)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle signals: the first one saves the running points and stops the sweep, the second one kills them."""

        def handle(number: int, frame: object) -> None:
            now = time.monotonic()
            if self.signal is None:
                self.signal, self.signal_at = number, now
            elif now - self.signal_at > DUPLICATE_SIGNAL_S:
                for slot in self.slots:
                    slot.stop(at_once=True)

        # only the main thread can set signal handlers
        main = threading.current_thread() is threading.main_thread()
        previous = {number: signal.signal(number, handle) for number in termination_signals() if main}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Tasks:
    """Makes the tasks of slots.

    Args:
        ledger: record of the sweep.
        prune: returns the pruning arguments of a point; None without pruning.
        keys: overrides for resumed runs.
    """

    def __init__(
        self,
        ledger: Ledger,
        prune: Callable[[Point], dict[str, Any]] | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self.ledger, self.prune, self.keys = ledger, prune, keys

    def make(self, job: Job) -> dict[str, Any]:
        """Return the task of a job in the format of :mod:`snnexp.sweeps.worker`."""
        ledger, first = self.ledger, job[0]
        for point in job:
            if point.run and not (ledger.path / point.run / "config.yaml").exists():
                # the run directory was deleted, so the point starts again
                point.run = ""
        where = {"parent": str(ledger.runs), "log": str(ledger.log_path(first))}
        task: dict[str, Any] = {"keys": [*self.keys], **where}
        if len(job.members) == 1:
            return {**task, **self._prune(first), **({"run": self._run(first)} if first.run else self._point(first))}
        return {**task, "members": [self._member(point, over=point not in job) for point in job.members]}

    def _member(self, point: Point, over: bool) -> dict[str, Any]:
        prune = {} if over else self._prune(point)
        return {**self._point(point), **prune, "run": self._run(point), "over": over}

    def _point(self, point: Point) -> dict[str, Any]:
        return {"config": self.ledger.config(point), "overrides": point.overrides}

    def _prune(self, point: Point) -> dict[str, Any]:
        return {"prune": self.prune(point)} if self.prune else {}

    def _run(self, point: Point) -> str | None:
        return str(self.ledger.path / point.run) if point.run else None
