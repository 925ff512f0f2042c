"""A process that trains points of a sweep, one task after the other: imports are paid once.

It reads tasks from its standard input and tells what becomes of them on its standard output, a line of JSON each:

    {"config": {..}, "overrides": [..], "parent": ".."}                   train a point
    {"run": ".."}                                                         resume its run
    {"members": [{"config", "overrides", "run", "over"}, ..], "parent": ".."}     train points as one

where members that are over have ended before, only keep their places and do not count as points;
each with "keys", the overrides of runs that are resumed, and "log", where to print until there is a run directory. A
point of a search, alone or a member, has "prune", the arguments of :class:`~snnexp.sweeps.pruning.Pruning`. It answers

    {"working": true}            the task has been taken
    {"begun": 0, "run": ".."}    its first point has this directory; of a stack also "members", how many train together
    {"ended": 0, "status", "metrics", "reason", "exit_code"}
    {"idle": true}               ready for the next task; without it the process ends

What a point prints goes to its train.log. When the driver is gone, so is its end of the pipe, and this process and all
that it has started end at once.
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
    """Work until the driver is gone or a point has ended in a way that may have harmed this process.

    Args:
        limit_bytes: of memory; None for as much as there is.
    """
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        # where memory runs out for all, the system shall end a point and not the driver
        file.write("500")
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    with os.fdopen(os.dup(1), "w", buffering=1) as driver:
        tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        # of a file of Python's, the thread would hold the lock when a point forks its data workers, which close stdin
        source = os.dup(0)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        threading.Thread(target=_listen, args=(source, tasks), daemon=True).start()
        _print_to(os.open(os.devnull, os.O_WRONLY))

        def tell(event: dict[str, Any]) -> None:
            driver.write(json.dumps(event) + "\n")

        while execute(tasks.get(), tell):
            # a run that failed leaves its frames, which hold its tensors, in cycles
            gc.collect()
            tell({"idle": True})


def _listen(source: int, tasks: "queue.SimpleQueue[dict[str, Any]]") -> None:
    rest = b""
    while text := os.read(source, 2**16):
        *lines, rest = (rest + text).split(b"\n")
        for line in lines:
            tasks.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


def _print_to(handle: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def execute(task: Mapping[str, Any], tell: Tell) -> bool:
    """Carry out a task, and tell the end of each of its points; False where the process may not be what it was."""
    left = set(range(sum(not member["over"] for member in task["members"]) if "members" in task else 1))

    def note(event: dict[str, Any]) -> None:
        left.discard(event.get("ended", -1))
        tell(event)

    log = Path(task["log"])
    sound = True
    try:
        # what every task needs, and the first one waits for
        import snnexp.training.execute  # noqa: F401
        from snnexp.record.run import Run
        from snnexp.training import launchers

        launchers.clear_rank_variables()
        if not gc.get_freeze_count():
            # what imports have made stays; to look through it after each point takes a fifth of a second
            gc.freeze()
        tell({"working": True})
        # of a run from elsewhere, no part may lead elsewhere
        _print_to(open_for_append(Run.open(Path(task["run"])).path / "train.log" if task.get("run") else log))
        (_stack if "members" in task else _single)(task, log, note)
    except BaseException as error:
        end = _end(error)
        sound = end["exit_code"] not in (1, 8)
        for index in sorted(left):
            tell({"ended": index, **end})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if log.exists() and not log.stat().st_size:
            log.unlink()
    return sound


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
    start.extra_observers = _watching(task)
    record = execute(start, begun)
    tell({"ended": 0, "status": record.status, "metrics": record.metrics, "exit_code": 0})


def _end(error: BaseException) -> dict[str, Any]:
    """How a point ended that ``error`` has ended."""
    from snnexp.errors import PartError, describe_failure

    status, reason, code = describe_failure(error)
    if isinstance(error, PartError):
        # frames is empty if the run's train.log has it
        sys.stderr.write(error.frames)
    elif code == 1:
        traceback.print_exc()
    return {"status": status, "reason": reason, "exit_code": code}


def _watching(point: Mapping[str, Any]) -> list[Any]:
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
            _watching(member),
        )
        for member in task["members"]
    ]

    # what is told is numbered without those that are over
    numbers = list(itertools.accumulate((not point.has_ended for point in points), initial=0))
    told: set[int] = set()

    def begun(index: int, path: Path) -> None:
        # on a CPU, wide layers fill the cache alone
        told.add(index)
        together = Run(path).read().get("stack", {"members": 1})["members"]
        tell({"begun": numbers[index], "run": str(path), "members": together})

    def ended(index: int, outcome: stacked.Outcome) -> None:
        if index not in told and outcome.run is not None:
            begun(index, outcome.run)
        found = {"status": outcome.status, "metrics": outcome.metrics, "reason": outcome.reason}
        tell({"ended": numbers[index], **found, "exit_code": outcome.exit_code})

    stacked.train(points, Path(task["parent"]), begun, ended)
