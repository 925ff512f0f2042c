"""A worker process, which trains points and stacks of a sweep sequentially, so that modules are imported only once.

It reads tasks from stdin, one JSON object per line:

    {"config": {..}, "overrides": [..], "parent": ".."}                   train a point
    {"run": ".."}                                                         resume a run
    {"members": [{"config", "overrides", "run", "over"}, ..], "parent": ".."}     train a stack

Members with "over" have already ended; they only keep their positions and are not counted in events. Each task has
"keys", the overrides for resumed runs, and "log", the file for output until there is a run directory. A point or member
of a search has "prune", the arguments of :class:`~snnexp.sweeps.pruning.Pruning`. It writes events to stdout:

    {"working": true}            the task was received
    {"begun": 0, "run": ".."}    point 0 has this run directory; in a stack with "members", the number trained together
    {"ended": 0, "status", "metrics", "reason", "exit_code"}
    {"idle": true}               ready for the next task; otherwise the process exits

The output of a point goes to its train.log. When the driver dies, its end of the pipe closes, and this process kills
itself and its child processes.
"""

import gc
import itertools
import json
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from snnexp.record.files import open_for_append

Tell = Callable[[dict[str, Any]], None]


def main(limit_bytes: int | None = None) -> None:
    """Run tasks until the driver dies, or an unexpected error may have left this process in a bad state.

    Args:
        limit_bytes: memory limit; None for no limit.
    """
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        # the OOM killer should prefer a worker to the driver
        file.write("500")
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    with os.fdopen(os.dup(1), "w", buffering=1) as driver:
        tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        # read the descriptor and not sys.stdin: the thread would hold its lock while a point forks data workers, which
        # close stdin
        source = os.dup(0)
        with open(os.devnull) as null:
            os.dup2(null.fileno(), 0)
        threading.Thread(target=_read_tasks, args=(source, tasks), daemon=True).start()
        _redirect_output(os.open(os.devnull, os.O_WRONLY))

        def tell(event: dict[str, Any]) -> None:
            driver.write(json.dumps(event) + "\n")

        while execute(tasks.get(), tell):
            # the traceback of a failed run keeps its tensors alive in reference cycles
            gc.collect()
            tell({"idle": True})


def _read_tasks(source: int, tasks: "queue.SimpleQueue[dict[str, Any]]") -> None:
    buffer = b""
    while text := os.read(source, 2**16):
        *lines, buffer = (buffer + text).split(b"\n")
        for line in lines:
            tasks.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


def _redirect_output(handle: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def execute(task: Mapping[str, Any], tell: Tell) -> bool:
    """Run a task, and send an event at the end of each of its points.

    Returns:
        False if an unexpected error may have left the process in a bad state.
    """
    unfinished = set(range(sum(not member["over"] for member in task["members"]) if "members" in task else 1))

    def forward(event: dict[str, Any]) -> None:
        unfinished.discard(event.get("ended", -1))
        tell(event)

    log = Path(task["log"])
    reusable = True
    try:
        # slow imports, before the timer of the point starts
        import snnexp.training.execute  # noqa: F401
        from snnexp.record.run import Run
        from snnexp.training import launchers

        launchers.clear_rank_variables()
        if not gc.get_freeze_count():
            # exclude imported modules from garbage collection, which takes 0.2 s per point otherwise
            gc.freeze()
        tell({"working": True})
        # Run.open refuses links in the run directory
        _redirect_output(open_for_append(Run.open(Path(task["run"])).path / "train.log" if task.get("run") else log))
        (_stack if "members" in task else _single)(task, log, forward)
    except BaseException as error:
        outcome = _outcome(error)
        reusable = outcome["exit_code"] not in (1, 8)
        for index in sorted(unfinished):
            tell({"ended": index, **outcome})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if log.exists() and not log.stat().st_size:
            log.unlink()
    return reusable


def _single(task: Mapping[str, Any], log: Path, tell: Tell) -> None:
    from omegaconf import OmegaConf

    from snnexp import config
    from snnexp.training.execute import execute
    from snnexp.training.start import Start

    def begun(path: Path) -> None:
        if start.is_new:
            os.replace(log, path / "train.log")
            tell({"begun": 0, "run": str(path)})

    if task.get("run"):
        start = Start.resumed(task["run"], task.get("keys", []))
    else:
        cfg = config.check(OmegaConf.create(task["config"]))
        start = Start.new(cfg, task["overrides"], Path(task["parent"]), keep_failed=True)
    start.extra_observers = _pruning_observers(task)
    record = execute(start, begun)
    tell({"ended": 0, "status": record.status, "metrics": record.metrics, "exit_code": 0})


def _outcome(error: BaseException) -> dict[str, Any]:
    """Return the fields of the "ended" event for an error, and print its traceback if it is unexpected."""
    from snnexp.errors import PartError, describe_failure

    status, reason, code = describe_failure(error)
    if isinstance(error, PartError):
        # empty if the traceback is already in train.log
        sys.stderr.write(error.frames)
    elif code == 1:
        traceback.print_exc()
    return {"status": status, "reason": reason, "exit_code": code}


def _pruning_observers(point: Mapping[str, Any]) -> list[Any]:
    if not point.get("prune"):
        return []
    from snnexp.sweeps.pruning import Pruning

    return [Pruning(**point["prune"])]


def _stack(task: Mapping[str, Any], log: Path, tell: Tell) -> None:
    from omegaconf import OmegaConf

    from snnexp.record.run import Run
    from snnexp.training import stacked

    keys = task.get("keys", [])
    points = [
        stacked.Point(
            OmegaConf.create(member["config"]),
            member["overrides"],
            member["run"] and Path(member["run"]),
            keys,
            member["over"],
            _pruning_observers(member),
        )
        for member in task["members"]
    ]

    # events number the points without the members that are over
    numbers = list(itertools.accumulate((not point.has_ended for point in points), initial=0))
    reported: set[int] = set()

    def begun(index: int, path: Path) -> None:
        reported.add(index)
        # a stack of wide layers is split on a CPU, where each fills the cache
        members = Run(path).read().get("stack", {"members": 1})["members"]
        tell({"begun": numbers[index], "run": str(path), "members": members})

    def ended(index: int, outcome: stacked.Outcome) -> None:
        if index not in reported and outcome.run is not None:
            begun(index, outcome.run)
        fields = {"status": outcome.status, "metrics": outcome.metrics, "reason": outcome.reason}
        tell({"ended": numbers[index], **fields, "exit_code": outcome.exit_code})

    stacked.train(points, Path(task["parent"]), begun, ended)
