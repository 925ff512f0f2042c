"""Start a sweep, and go on with one."""

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from snnexp import config, domains
from snnexp.console import console, show_path, tell
from snnexp.errors import ConfigError, located
from snnexp.sweeps import display
from snnexp.sweeps.engine import Engine, Job, Listed, Slot, Source, Tasks, Worker
from snnexp.sweeps.ledger import CONFIGS, Ledger, Point

Chosen = tuple[Sequence[str], Mapping[str, Any]]
"""The overrides of a point, and its whole config."""
GIGABYTE = 10**9


def start(folder: Path, experiment: str, points: Iterable[Chosen], launcher: Mapping[str, Any], program: str) -> int:
    """Run the points of a list; returns the exit code.

    Args:
        folder: the directory of the sweep, if no other one is there.
        experiment: what the sweep is named after.
        points: those that have the same config are one.
        launcher: the settings of a launcher, with its ``kind``.
        program: the command line's own name, for what starts processes by it.

    Raises:
        ConfigError: the launcher cannot work so.
        InterruptedRunError: a signal ended it.
    """
    check(launcher)
    single: dict[str, Chosen] = {}
    count = 0
    for chosen in points:
        count += 1
        single.setdefault(json.dumps(chosen[1]), chosen)
    if count > len(single):
        tell(f"{count - len(single)} of {count} points ask for the same as others, and are not run twice")
    ledger = Ledger.create(folder, experiment, launcher)
    try:
        for chosen in single.values():
            ledger.add(*chosen)
        ledger.save()
        return drive(ledger, program)
    finally:
        ledger.close()


def resume(folder: Path, program: str) -> int:
    """Run what is not finished of a sweep, and only that; returns the exit code.

    Raises:
        ConfigError: it is no sweep.
        CheckpointError: its ledger is damaged.
        InUseError: another process drives it.
        InterruptedRunError: a signal ended it.
    """
    ledger = Ledger.open(folder)
    try:
        check(ledger.launcher)
        left = [point for point in ledger.points if not point.done]
        for point in left:
            # a sweep may come from elsewhere, like a run
            config.trusted(ledger.config(point), ledger.path / CONFIGS)
        if not left and ledger.search is None:
            console().print(f"sweep {show_path(ledger.path)}  all points have finished, nothing is left to do")
            return 0
        return drive(ledger, program)
    finally:
        ledger.close()


def drive(ledger: Ledger, program: str) -> int:
    """Run what is left of a sweep; returns the exit code."""
    launcher, terminal = ledger.launcher, console()
    left = [point for point in ledger.points if not point.done]
    terminal.print(f"sweep {show_path(ledger.path)}  {len(left)} points")
    jobs, obstacles = jobs_of(ledger, left)
    for reason, points in obstacles.items():
        tell(f"{len(points)} of {len(left)} points cannot be stacked, {reason}; they run alone")
    source: Source = Listed(jobs)
    slots = slots_of(ledger.path, launcher, len(jobs), any(_wants_gpu(ledger.config(point)) for point in left))
    engine = Engine(
        ledger,
        source,
        slots,
        Tasks(ledger, program),
        launcher.get("timeout_s"),
        display.Display(terminal, ledger),
    )
    try:
        engine.run()
    finally:
        display.end(terminal, ledger)
    if engine.full is not None:
        tell(engine.full)
        return 74
    return 0 if all(point.done for point in ledger.points) else 7


def check(launcher: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a setting of a launcher that cannot work."""
    with located("hydra.launcher"):
        domains.check(launcher)
        if launcher.get("cluster") == "slurm" and shutil.which("srun") is None:
            raise ConfigError("cluster: got slurm, and there is no srun here; local tries it on this machine")


def jobs_of(ledger: Ledger, points: Sequence[Point]) -> tuple[list[Job], dict[str, list[Point]]]:
    """Points as jobs, in order; and those that were to be stacked and cannot be, by the reason."""
    if ledger.launcher["kind"] != "stacked":
        return [[point] for point in points], {}
    from snnexp.sweeps import grouping

    groups: dict[Any, Job] = {}
    obstacles: dict[str, list[Point]] = {}
    for point in points:
        whole = ledger.config(point)
        if reason := grouping.obstacle(whole):
            obstacles.setdefault(reason, []).append(point)
            groups[point.index] = [point]
        else:
            groups.setdefault(grouping.key(whole), []).append(point)
    most = ledger.launcher["members"]
    return [part for group in groups.values() for part in _shared(group, most)], obstacles


def _shared(points: Job, most: int) -> list[Job]:
    """Points in parts of at most ``most``, as equal as can be."""
    parts = -(-len(points) // most)
    ends = [len(points) * index // parts for index in range(parts + 1)]
    return [points[begin:end] for begin, end in itertools.pairwise(ends)]


def slots_of(folder: Path, launcher: Mapping[str, Any], jobs: int, gpu: bool) -> list[Slot]:
    """What carries out jobs: as many as are asked for, each with its share of cores and GPUs.

    Args:
        folder: of the sweep.
        launcher: the settings.
        jobs: how many there are.
        gpu: whether any point may use one.
    """
    if launcher["kind"] == "slurm":
        from snnexp.sweeps import cluster

        submitting = cluster.executor(folder / "jobs", launcher)
        return [cluster.ClusterJob(submitting) for _ in range(min(launcher["workers"], jobs))]
    gpus = _gpus() if gpu else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = min(1, len(gpus)) if launcher["gpus"] is None else launcher["gpus"]
    if each > len(gpus) and gpu:
        raise ConfigError(f"hydra.launcher.gpus: got {each}, this machine has {len(gpus)}")
    workers = launcher["workers"] or (len(gpus) // each if each else cores)
    workers = min(workers, jobs)
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


def _wants_gpu(whole: Mapping[str, Any]) -> bool:
    return bool(whole["trainer"]["accelerator"] != "cpu")
