"""Start a sweep, and go on with one."""

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snnexp import config, domains
from snnexp.console import console, show_path, tell
from snnexp.errors import ConfigError, located
from snnexp.sweeps import display
from snnexp.sweeps.engine import Engine, Job, Slot, Tasks, Worker
from snnexp.sweeps.ledger import CONFIGS, Ledger, Point
from snnexp.sweeps.sources import Asked, Listed, Searched, single

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
    program: str,
) -> int:
    """Run the points of a list; returns the exit code.

    Args:
        folder: the directory of the sweep, if no other one is there.
        experiment: what the sweep is named after.
        points: overrides and whole config of each; those that have the same config are one.
        launcher: the settings of a launcher, with its ``kind``.
        program: the command line's own name, for what starts processes by it.

    Raises:
        ConfigError: the launcher cannot work so.
        InterruptedRunError: a signal ended it.
    """
    check(launcher)
    once = single(points)
    if len(once) < len(points):
        tell(f"{len(points) - len(once)} of {len(points)} points ask for the same as others, and are not run twice")
    ledger = Ledger.create(folder, experiment, launcher)
    try:
        for overrides, whole in once:
            ledger.add(overrides, whole)
        ledger.save()
        return drive(ledger, program)
    finally:
        ledger.close()


def search(folder: Path, asked: Asked, launcher: Mapping[str, Any], program: str) -> int:
    """Run the points that a study chooses; returns the exit code. See :func:`start`."""
    check(launcher)
    ledger = Ledger.create(folder, asked.check()["name"], launcher, asked.facts())
    try:
        ledger.save()
        return drive(ledger, program, asked)
    finally:
        ledger.close()


def resume(folder: Path, program: str, storage: str | None = None) -> int:
    """Run what is not finished of a sweep, and only that; returns the exit code.

    Args:
        folder: of the sweep.
        program: the command line's own name.
        storage: of a search whose URL has a password, which is not kept.

    Raises:
        ConfigError: it is no sweep.
        CheckpointError: its ledger is damaged.
        InUseError: another process drives it.
        InterruptedRunError: a signal ended it.
    """
    ledger = Ledger.open(folder)
    try:
        check(ledger.launcher)
        for point in ledger.points:
            if not point.done:
                # a sweep may come from elsewhere, like a run
                config.trusted(ledger.config(point), ledger.path / CONFIGS)
        asked = None if ledger.search is None else Asked.of(ledger.search, storage)
        if asked is None and all(point.done for point in ledger.points):
            console().print(f"sweep {show_path(ledger.path)}  all points have finished, nothing is left to do")
            return 0
        return drive(ledger, program, asked)
    finally:
        ledger.close()


def drive(ledger: Ledger, program: str, asked: Asked | None = None) -> int:
    """Run what is left of a sweep; returns the exit code."""
    terminal, launcher = console(), ledger.launcher
    found: Searched | None = None
    if asked is None:
        left = [point for point in ledger.points if not point.done]
        source: Listed | Searched = Listed(jobs_of(ledger, left))
        slots = slots_of(
            ledger.path, launcher, len(source.jobs), {_accelerator(ledger.config(point)) for point in left}
        )
        view = display.Display(terminal, ledger)
        terminal.print(f"sweep {show_path(ledger.path)}  {len(left)} of {len(ledger.points)} points")
    else:
        together = launcher["members"] if launcher["kind"] == "stacked" else 1
        source = found = Searched(ledger, asked, together, lambda points: jobs_of(ledger, points))
        slots = slots_of(ledger.path, launcher, found.study.size, {_accelerator(asked.check())})
        view = display.Display(terminal, ledger, found.metric, found.direction == "maximize", found.study.size)
        terminal.print(f"sweep {show_path(ledger.path)}  study {found.study.name}, {found.study.remaining()} to go")
    tasks = Tasks(ledger, program, found.pruned if found is not None and found.prune else None)
    engine = Engine(ledger, source, slots, tasks, launcher.get("timeout_s"), view)
    try:
        engine.run()
    finally:
        display.end(terminal, ledger)
        if found is not None:
            if (best := found.write_best()) is not None:
                folder = show_path(best[0].parents[1])
                terminal.print(f"best {found.metric} {best[1]:.4g}: snnexp train --config-dir {folder} experiment=best")
            found.close()
    if engine.full is not None:
        tell(engine.full)
        return 74
    return 0 if all(point.done for point in ledger.points) else 7


def check(launcher: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a setting of a launcher that cannot work."""
    with located("hydra.launcher"):
        known = SETTINGS.get(launcher.get("kind", ""), ())
        for name in launcher.keys() - {"kind"}:
            if name not in known:
                raise ConfigError(f"{domains.shown(name)}: unknown key, {domains.closest(str(name), known)}")
        missing = sorted({"kind", *known} - launcher.keys())
        if missing:
            raise ConfigError(f"{missing[0]}: every launcher needs one")
        domains.check(launcher)
        if launcher.get("cluster") == "slurm" and shutil.which("srun") is None:
            raise ConfigError("cluster: got slurm, and there is no srun here; local tries it on this machine")


def jobs_of(ledger: Ledger, points: Sequence[Point]) -> list[Job]:
    """Points as jobs, in order; where they are to be stacked, it is told which cannot be."""
    if ledger.launcher["kind"] != "stacked":
        return [[point] for point in points]
    from snnexp.sweeps import grouping

    groups: dict[Any, Job] = {}
    obstacles: dict[str, int] = {}
    for point in points:
        whole = ledger.config(point)
        if reason := grouping.obstacle(whole):
            obstacles[reason] = obstacles.get(reason, 0) + 1
            groups[point.index] = [point]
        else:
            groups.setdefault(grouping.key(whole), []).append(point)
    for reason, count in obstacles.items():
        tell(f"{count} of {len(points)} points cannot be stacked, {reason}; they run alone")
    return [part for group in groups.values() for part in _shared(group, ledger.launcher["members"])]


def _shared(points: Job, most: int) -> list[Job]:
    """Points in parts of at most ``most``, as equal as can be."""
    parts = -(-len(points) // most)
    ends = [len(points) * index // parts for index in range(parts + 1)]
    return [points[begin:end] for begin, end in itertools.pairwise(ends)]


def slots_of(folder: Path, launcher: Mapping[str, Any], jobs: int, accelerators: set[str]) -> list[Slot]:
    """What carries out jobs: as many as are asked for, each with its share of cores and GPUs.

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
        return [cluster.ClusterJob(submitting) for _ in range(min(launcher["workers"], jobs))]
    gpus = _gpus() if accelerators != {"cpu"} else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = min(1, len(gpus)) if launcher["gpus"] is None else launcher["gpus"]
    if each > len(gpus):
        raise ConfigError(f"hydra.launcher.gpus: got {each}, there are {len(gpus)} for these points here")
    workers = min(launcher["workers"] or (len(gpus) // each if each else cores), jobs)
    threads = launcher["threads"] or max(1, cores // max(1, workers))
    limit = launcher["memory_gb"]
    slots: list[Slot] = []
    for number in range(workers):
        environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if each:
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
