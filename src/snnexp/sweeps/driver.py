"""Start a sweep, and resume one."""

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from snnexp import config, limits, text, threads
from snnexp.config.keys import Launcher
from snnexp.errors import ConfigError, ConfigErrors, SnnexpError, key_prefix
from snnexp.search.storage import KEY, parse
from snnexp.spec import checked
from snnexp.sweeps import display
from snnexp.sweeps.engine import Engine, Tasks
from snnexp.sweeps.ledger import CONFIGS, Ledger, Point
from snnexp.sweeps.slots import Job, Slot, Worker
from snnexp.sweeps.sources import UNDER_WAY, Asked, Listed, Searched, single
from snnexp.terminal import console, format_path, warn
from snnexp.text import format_value, suggest

GIGABYTE = 10**9
LOCAL = ("workers", "threads", "gpus", "timeout_s", "memory_gb")
SETTINGS = {
    "processes": LOCAL,
    "stacked": (*LOCAL, "members"),
    "slurm": (
        *("cluster", "workers", "threads", "gpus", "memory_gb", "timeout_min"),
        *("partition", "account", "qos", "constraint"),
    ),
}
"""Of each kind of launcher."""


def start(
    folder: Path,
    experiment: str,
    points: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
    launcher: Mapping[str, Any],
    folders: Sequence[Path] = (),
) -> tuple[int, Ledger]:
    """Run the points of a list; returns the exit code, and what became of them.

    Args:
        folder: the directory of the sweep, if no other one is there.
        experiment: what the sweep is named after.
        points: overrides and whole config of each; those that have the same config are one.
        launcher: the settings of a launcher, with its ``kind``.
        folders: more configs that the points were composed with, for the record.

    Raises:
        ConfigError: the launcher cannot work so.
        InterruptedRunError: a signal ended it.
    """
    check(launcher)
    _require_threads(launcher, [whole for _, whole in points])
    once = single(points)
    if len(once) < len(points):
        warn(f"{len(points) - len(once)} of {len(points)} points ask for the same as others, and are not run twice")
    ledger = Ledger.create(folder, experiment, launcher, folders=folders)
    for overrides, whole in once:
        ledger.add(overrides, whole)
    return _begin(ledger)


def search(folder: Path, asked: Asked, launcher: Mapping[str, Any]) -> tuple[int, Ledger]:
    """Run the points that a study chooses; see :func:`start`."""
    check(launcher)
    _require_threads(launcher, asked.composed)
    ledger = Ledger.create(folder, asked.checked["name"], launcher, asked.facts(), asked.composer.folders)
    return _begin(ledger, asked)


def _begin(ledger: Ledger, asked: Asked | None = None) -> tuple[int, Ledger]:
    try:
        ledger.save()
        return drive(ledger, asked), ledger
    except ConfigError:
        # refused before anything began, it leaves nothing behind
        if all(point.status == "pending" for point in ledger.points):
            ledger.discard()
        raise
    finally:
        ledger.close()


def resume(folder: Path, changes: Sequence[str] = ()) -> int:
    """Run what is not finished of a sweep, and only that; returns the exit code.

    Args:
        folder: of the sweep.
        changes: other settings of its launcher or its search, ``hydra.launcher.workers=4``, and keys of its points that
            do not decide what is computed, ``data.root=DIR``.

    Raises:
        ConfigError: it is no sweep, or a setting is none of its own.
        CheckpointError: its ledger is damaged.
        InUseError: another process drives it.
        InterruptedRunError: a signal ended it.
    """
    ledger = Ledger.open(folder)
    try:
        launcher, sweeper, keys = _changed(changes, ledger.search is not None)
        ledger.launcher |= launcher
        check(ledger.launcher)
        asked = None if ledger.search is None else Asked.of(ledger.search, sweeper)
        if asked is not None:
            asked.overrides = [*asked.overrides, *keys]
        if asked is not None and (metric := asked.keep_measure()):
            warn(f"the search continues to use {metric}")
        left = [point for point in ledger.points if not point.done and (asked is None or point.status in UNDER_WAY)]
        # those that have ended keep their places in a stack
        needed = {point.index for point in left}.union(*(point.stack for point in left))
        for point in (ledger.points[index] for index in sorted(needed)):
            # a sweep may come from elsewhere, like a run, and downloads only where that is typed
            whole = config.offline(config.check_saved(ledger.config(point), ledger.path / CONFIGS))
            ledger.replace(point, config.plain(config.change(whole, keys)))
        if asked is not None:
            ledger.search = asked.facts()
        elif not left:
            console().print(f"sweep {format_path(ledger.path)}  all points have finished, nothing is left to do")
            return 0
        return drive(ledger, asked, keys)
    finally:
        ledger.close()


def _changed(changes: Sequence[str], searched: bool) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Settings of the launcher and of the search that were typed, and overrides of the points."""
    nodes: dict[str, dict[str, Any]] = {"launcher": {}, "sweeper": {}}
    keys: list[str] = []
    known = ["launcher", *(["sweeper"] if searched else [])]
    errors = ConfigErrors()
    for key, value in config.parse_assignments(changes):
        words = key.split(".")
        if key.startswith(config.MAY_CHANGE):
            keys.append(f"{key}={config.hydra_literal(value)}")
        elif len(words) == 3 and words[0] == "hydra" and words[1] in known and words[2] != "kind":
            nodes[words[1]][words[2]] = value
        else:
            errors.add(
                f"{format_value(key)}: a sweep is resumed as it was started; hydra.launcher.KEY and keys that decide "
                "nothing, such as data.root, may change"
            )
    errors.raise_if_any()
    return nodes["launcher"], nodes["sweeper"], keys


def drive(ledger: Ledger, asked: Asked | None = None, keys: Sequence[str] = ()) -> int:
    """Run what is left of a sweep; returns the exit code.

    Args:
        ledger: of the sweep.
        asked: what a search was asked for.
        keys: overrides of runs that are resumed.
    """
    if asked is not None:
        return _drive_search(ledger, asked, keys)
    source = Listed(jobs_of(ledger, ledger.points))
    left = [point for job in source.jobs for point in job]
    view = display.Display(console(), ledger)
    view.say(f"{len(left)} of {len(ledger.points)} points")
    accelerators = {_accelerator(ledger.config(point)) for point in left}
    slots = slots_of(ledger.path, ledger.launcher, len(source.jobs), accelerators)
    engine = Engine(ledger, source, slots, Tasks(ledger, keys=keys), ledger.launcher.get("timeout_s"), view)
    try:
        engine.run()
    finally:
        view.end(to_go=not all(point.done for point in ledger.points))
    return _code(ledger, engine)


def _drive_search(ledger: Ledger, asked: Asked, keys: Sequence[str]) -> int:
    launcher = ledger.launcher
    settings = asked.space()[0]
    if launcher.get("cluster") == "slurm" and settings.prune and settings.storage and parse(settings.storage).password:
        raise ConfigError(
            f"{KEY}: SLURM would keep the password with the environment of jobs; leave it out, and put it in ~/.pgpass"
        )
    together = launcher["members"] if launcher["kind"] == "stacked" else 1
    source = Searched(ledger, asked, together, lambda points: jobs_of(ledger, points))
    try:
        view = display.Display(console(), ledger, source.metric, source.direction == "maximize", source.study.size)
        to_go = f"{source.study.remaining()} of {source.study.size} points to go"
        seen = ", so the test split is no longer held out" if source.metric.startswith("test/") else ""
        view.say(f"study {source.study.name}, {to_go}, compared by {source.metric}{seen}")
        slots = slots_of(ledger.path, launcher, source.study.size, {_accelerator(asked.checked)})
        tasks = Tasks(ledger, source.pruned if source.prune else None, keys)
        engine = Engine(ledger, source, slots, tasks, launcher.get("timeout_s"), view)
        try:
            engine.run()
        finally:
            # points that failed keep their places in the study
            view.end(to_go=any(point.status in UNDER_WAY for point in ledger.points))
            _tell_best(source, view)
        return _code(ledger, engine)
    finally:
        source.close()


def _tell_best(source: Searched, view: display.Display) -> None:
    try:
        best = source.write_best()
    except (SnnexpError, OSError) as error:
        # how the sweep itself ended is what counts
        warn(f"the best point could not be written: {error}")
        return
    if best is not None:
        command, value = best
        # whole, so that it can be copied
        said = f"best {source.metric} {text.format_number(value)}: {escape(command)}"
        view.terminal.print(said, soft_wrap=True)


def _code(ledger: Ledger, engine: Engine) -> int:
    if engine.full is not None:
        warn(engine.full)
        return 74
    return 0 if all(point.done for point in ledger.points) else 7


def check(launcher: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a setting of a launcher that cannot work."""
    with key_prefix("hydra.launcher"):
        kind = launcher.get("kind")
        known = SETTINGS[kind] if isinstance(kind, str) and kind in SETTINGS else ()
        for name in launcher.keys() - {"kind"}:
            if name not in known:
                hint = suggest(str(name), known, "hydra.launcher.")
                raise ConfigError(f"{format_value(name)}: unknown key, {hint}")
        missing = sorted({"kind", *known} - launcher.keys())
        if missing:
            raise ConfigError(f"{missing[0]}: every launcher needs one")
        checked.check(Launcher, launcher)
        if launcher.get("cluster") != "slurm" and launcher["workers"] is not None:
            limits.require_processes("workers", launcher["workers"])
        if launcher.get("cluster") == "slurm" and shutil.which("srun") is None:
            raise ConfigError("cluster: got slurm, and there is no srun here; local tries it on this machine")


def _require_threads(launcher: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> None:
    # a cluster's machines are others
    if launcher["kind"] != "slurm":
        for whole in configs:
            threads.require(whole)


def jobs_of(ledger: Ledger, points: Sequence[Point]) -> list[Job]:
    """What is left to do about points, as jobs; where they are to be stacked, it is told which cannot be.

    Points that were trained as a stack are that stack again, in which those that have ended keep their places, so that
    the others round as before. A point that was tried alone stays alone.
    """
    left = [point for point in points if not point.done]
    if ledger.launcher["kind"] != "stacked":
        return [Job([point]) for point in left]
    from snnexp.sweeps import grouping

    alone: list[Job] = []
    stacks: dict[tuple[int, ...], list[Point]] = {}
    groups: dict[Any, list[Point]] = {}
    obstacles: dict[str, int] = {}
    for point in left:
        whole = ledger.config(point)
        if reason := grouping.obstacle(whole):
            obstacles[reason] = obstacles.get(reason, 0) + 1
            alone.append(Job([point]))
        elif point.stack:
            stacks.setdefault(tuple(point.stack), []).append(point)
        elif point.how and not point.how.startswith("stack"):
            alone.append(Job([point]))
        else:
            groups.setdefault(grouping.key(whole), []).append(point)
    for reason, count in obstacles.items():
        warn(f"{count} of {len(left)} points cannot be stacked, {reason}; they run alone")
    most, workers = ledger.launcher["members"], ledger.launcher["workers"] or 1
    # all workers take part
    new = [Job(part) for group in groups.values() for part in _shared(group, min(most, -(-len(group) // workers)))]
    again = [
        Job(sorted(stack, key=lambda point: seats.index(point.index)), [ledger.points[seat] for seat in seats])
        for seats, stack in stacks.items()
    ]
    return sorted([*alone, *again, *new], key=lambda job: job[0].index)


def _shared(points: Sequence[Point], most: int) -> list[Sequence[Point]]:
    """Points in parts of at most ``most``, as equal as can be."""
    parts = -(-len(points) // most)
    ends = [len(points) * index // parts for index in range(parts + 1)]
    return [points[begin:end] for begin, end in itertools.pairwise(ends)]


def slots_of(folder: Path, launcher: Mapping[str, Any], jobs: int, accelerators: set[str]) -> list[Slot]:
    """What carries out jobs: as many as are asked for, each with its share of cores and GPUs.

    With ``threads: null``, OMP_NUM_THREADS is limited to this share; where it is not set, each run decides for itself.

    Args:
        folder: of the sweep.
        launcher: the settings.
        jobs: how many there are.
        accelerators: what the points ask for.

    Raises:
        ConfigError: there are not so many GPUs.
    """
    if launcher["kind"] == "slurm":
        from snnexp.sweeps import cluster

        submitting = cluster.executor(folder / "jobs", launcher)
        most = min(launcher["workers"] or jobs, jobs)
        return [cluster.ClusterJob(submitting, launcher["threads"]) for _ in range(most)]
    gpus = _gpus() if accelerators != {"cpu"} else []
    cores = limits.cores()
    each = min(1, len(gpus)) if launcher["gpus"] is None else launcher["gpus"]
    if each > len(gpus):
        raise ConfigError(f"hydra.launcher.gpus: got {each}, there are {len(gpus)} for these points here")
    workers = min(launcher["workers"] or (len(gpus) // each if each else cores), jobs)
    told = threads.variable()
    share = launcher["threads"] or (told and min(told, max(1, cores // max(1, workers))))
    limit = launcher["memory_gb"]
    slots: list[Slot] = []
    for number in range(workers):
        environment = {} if share is None else dict.fromkeys(threads.BOTH, str(share))
        if gpus:
            # more workers than GPUs take turns
            own = [gpus[(number * each + offset) % len(gpus)] for offset in range(each)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        slots.append(Worker(environment, None if limit is None else int(limit * GIGABYTE)))
    return slots


def _gpus() -> list[str]:
    """The GPUs of NVIDIA's driver that this process may use; PyTorch would take seconds to tell."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(index) for index, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]


def _accelerator(whole: Mapping[str, Any]) -> str:
    return str(whole["trainer"]["accelerator"])
