"""Start and resume sweeps and searches."""

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
from snnexp.sweeps.sources import UNDER_WAY, ListSource, SearchRequest, StudySource, deduplicated
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
"""Settings of each kind of launcher."""


def start(
    folder: Path,
    experiment: str,
    points: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
    launcher: Mapping[str, Any],
    folders: Sequence[Path] = (),
) -> tuple[int, Ledger]:
    """Run a list of points.

    Args:
        folder: directory of the sweep; a new id is chosen if it exists.
        experiment: name of the experiment.
        points: overrides and full config of each point; duplicate configs run once.
        launcher: settings of the launcher, with its ``kind``.
        folders: additional config directories of the points, for the record.

    Returns:
        The exit code, and the ledger with the results.

    Raises:
        ConfigError: a setting of the launcher is invalid.
        InterruptedRunError: a signal stopped the sweep.
    """
    check(launcher)
    _require_threads(launcher, [whole for _, whole in points])
    unique = deduplicated(points)
    if len(unique) < len(points):
        warn(f"{len(points) - len(unique)} of {len(points)} points are duplicates and are skipped")
    ledger = Ledger.create(folder, experiment, launcher, folders=folders)
    for overrides, whole in unique:
        ledger.add(overrides, whole)
    return _run_new(ledger)


def search(folder: Path, request: SearchRequest, launcher: Mapping[str, Any]) -> tuple[int, Ledger]:
    """Run the points chosen by a study; see :func:`start`."""
    check(launcher)
    _require_threads(launcher, request.composed)
    ledger = Ledger.create(folder, request.checked["name"], launcher, request.to_record(), request.composer.folders)
    return _run_new(ledger, request)


def _run_new(ledger: Ledger, request: SearchRequest | None = None) -> tuple[int, Ledger]:
    try:
        ledger.save()
        return drive(ledger, request), ledger
    except ConfigError:
        # nothing has started, so leave no directory behind
        if all(point.status == "pending" for point in ledger.points):
            ledger.discard()
        raise
    finally:
        ledger.close()


def resume(folder: Path, changes: Sequence[str] = ()) -> int:
    """Run the unfinished points of a sweep; return the exit code.

    Args:
        folder: directory of the sweep.
        changes: new settings of the launcher or the search, such as ``hydra.launcher.workers=4``, and keys of the
            points that do not affect results, such as ``data.root=DIR``.

    Raises:
        ConfigError: the directory is not a sweep, or a setting is unknown or cannot be changed.
        CheckpointError: the ledger is damaged.
        InUseError: another process runs the sweep.
        InterruptedRunError: a signal stopped the sweep.
    """
    ledger = Ledger.open(folder)
    try:
        launcher, sweeper, keys = _parse_changes(changes, ledger.search is not None)
        ledger.launcher |= launcher
        check(ledger.launcher)
        request = None if ledger.search is None else SearchRequest.from_record(ledger.search, sweeper)
        if request is not None:
            request.overrides = [*request.overrides, *keys]
        if request is not None and (metric := request.pin_metric()):
            warn(f"the search continues to use {metric}")
        left = [point for point in ledger.points if not point.done and (request is None or point.status in UNDER_WAY)]
        # ended members keep their positions in a stack
        needed = {point.index for point in left}.union(*(point.stack for point in left))
        for point in (ledger.points[index] for index in sorted(needed)):
            # configs are untrusted: the sweep may have been copied from another machine
            whole = config.offline(config.check_saved(ledger.config(point), ledger.path / CONFIGS))
            ledger.set_config(point, config.plain(config.change(whole, keys)))
        if request is not None:
            ledger.search = request.to_record()
        elif not left:
            console().print(f"sweep {format_path(ledger.path)}  all points have finished, nothing to resume")
            return 0
        return drive(ledger, request, keys)
    finally:
        ledger.close()


def _parse_changes(changes: Sequence[str], searched: bool) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Split the changes of a resumed sweep into launcher settings, search settings, and overrides of the points."""
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
                f"{format_value(key)}: cannot be changed in a resumed sweep; only hydra.launcher.KEY and keys that do "
                "not affect results, such as data.root, can"
            )
    errors.raise_if_any()
    return nodes["launcher"], nodes["sweeper"], keys


def drive(ledger: Ledger, request: SearchRequest | None = None, keys: Sequence[str] = ()) -> int:
    """Run the remaining points of a sweep; return the exit code.

    Args:
        ledger: record of the sweep.
        request: request of a search; None for a list of points.
        keys: overrides for resumed runs.
    """
    if request is not None:
        return _drive_search(ledger, request, keys)
    source = ListSource(make_jobs(ledger, ledger.points))
    left = [point for job in source.jobs for point in job]
    view = display.Display(console(), ledger)
    view.say(f"{len(left)} of {len(ledger.points)} points")
    accelerators = {_accelerator(ledger.config(point)) for point in left}
    slots = make_slots(ledger.path, ledger.launcher, len(source.jobs), accelerators)
    engine = Engine(ledger, source, slots, Tasks(ledger, keys=keys), ledger.launcher.get("timeout_s"), view)
    try:
        engine.run()
    finally:
        view.end(to_go=not all(point.done for point in ledger.points))
    return _exit_code(ledger, engine)


def _drive_search(ledger: Ledger, request: SearchRequest, keys: Sequence[str]) -> int:
    launcher = ledger.launcher
    settings = request.space()[0]
    if launcher.get("cluster") == "slurm" and settings.prune and settings.storage and parse(settings.storage).password:
        raise ConfigError(
            f"{KEY}: SLURM would store the password in the environment of jobs; put it in ~/.pgpass instead"
        )
    members = launcher["members"] if launcher["kind"] == "stacked" else 1
    source = StudySource(ledger, request, members, lambda points: make_jobs(ledger, points))
    try:
        view = display.Display(console(), ledger, source.metric, source.direction == "maximize", source.study.size)
        to_go = f"{source.study.remaining()} of {source.study.size} points to go"
        seen = ", so the test split is no longer held out" if source.metric.startswith("test/") else ""
        view.say(f"study {source.study.name}, {to_go}, compared by {source.metric}{seen}")
        slots = make_slots(ledger.path, launcher, source.study.size, {_accelerator(request.checked)})
        tasks = Tasks(ledger, source.pruning_arguments if source.prune else None, keys)
        engine = Engine(ledger, source, slots, tasks, launcher.get("timeout_s"), view)
        try:
            engine.run()
        finally:
            # failed points keep their places in the study, so they are not resumed
            view.end(to_go=any(point.status in UNDER_WAY for point in ledger.points))
            _print_best(source, view)
        return _exit_code(ledger, engine)
    finally:
        source.close()


def _print_best(source: StudySource, view: display.Display) -> None:
    try:
        best = source.write_best()
    except (SnnexpError, OSError) as error:
        # an error here must not hide the result of the sweep
        warn(f"the best point could not be written: {error}")
        return
    if best is not None:
        command, value = best
        # do not wrap the command, so that it can be copied
        view.terminal.print(f"best {source.metric} {text.format_number(value)}: {escape(command)}", soft_wrap=True)


def _exit_code(ledger: Ledger, engine: Engine) -> int:
    if engine.disk_error is not None:
        warn(engine.disk_error)
        return 74
    return 0 if all(point.done for point in ledger.points) else 7


def check(launcher: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for an invalid setting of a launcher."""
    with key_prefix("hydra.launcher"):
        kind = launcher.get("kind")
        known = SETTINGS[kind] if isinstance(kind, str) and kind in SETTINGS else ()
        for name in launcher.keys() - {"kind"}:
            if name not in known:
                hint = suggest(str(name), known, "hydra.launcher.")
                raise ConfigError(f"{format_value(name)}: unknown key, {hint}")
        missing = sorted({"kind", *known} - launcher.keys())
        if missing:
            raise ConfigError(f"{missing[0]}: missing, required by every launcher")
        checked.check(Launcher, launcher)
        if launcher.get("cluster") != "slurm" and launcher["workers"] is not None:
            limits.require_processes("workers", launcher["workers"])
        if launcher.get("cluster") == "slurm" and shutil.which("srun") is None:
            raise ConfigError("cluster: got slurm, but srun is not installed; cluster=local runs jobs on this machine")


def _require_threads(launcher: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> None:
    # the nodes of a cluster differ from this machine
    if launcher["kind"] != "slurm":
        for whole in configs:
            threads.require(whole)


def make_jobs(ledger: Ledger, points: Sequence[Point]) -> list[Job]:
    """Group the remaining points into jobs, and report those that cannot be stacked.

    Points of an earlier stack form the same stack again. Ended members keep their positions, so that rounding does not
    change for the others. A point that was retried alone stays alone.
    """
    left = [point for point in points if not point.done]
    if ledger.launcher["kind"] != "stacked":
        return [Job([point]) for point in left]
    from snnexp.sweeps import grouping

    alone: list[Job] = []
    stacks: dict[tuple[int, ...], list[Point]] = {}
    groups: dict[Any, list[Point]] = {}
    reasons: dict[str, int] = {}
    for point in left:
        whole = ledger.config(point)
        if reason := grouping.obstacle(whole):
            reasons[reason] = reasons.get(reason, 0) + 1
            alone.append(Job([point]))
        elif point.stack:
            stacks.setdefault(tuple(point.stack), []).append(point)
        elif point.how and not point.how.startswith("stack"):
            alone.append(Job([point]))
        else:
            groups.setdefault(grouping.key(whole), []).append(point)
    for reason, count in reasons.items():
        warn(f"{count} of {len(left)} points cannot be stacked, {reason}; they run alone")
    max_members, workers = ledger.launcher["members"], ledger.launcher["workers"] or 1
    new: list[Job] = []
    for group in groups.values():
        # split stacks so that all workers get one
        new += map(Job, _split_evenly(group, min(max_members, -(-len(group) // workers))))
    resumed = [
        Job(sorted(stack, key=lambda point: members.index(point.index)), [ledger.points[index] for index in members])
        for members, stack in stacks.items()
    ]
    return sorted([*alone, *resumed, *new], key=lambda job: job[0].index)


def _split_evenly(points: Sequence[Point], size: int) -> list[Sequence[Point]]:
    """Split points into parts of at most ``size``, as equal as possible."""
    parts = -(-len(points) // size)
    ends = [len(points) * index // parts for index in range(parts + 1)]
    return [points[begin:end] for begin, end in itertools.pairwise(ends)]


def make_slots(folder: Path, launcher: Mapping[str, Any], jobs: int, accelerators: set[str]) -> list[Slot]:
    """Make the slots of a launcher, each with its share of cores and GPUs.

    With ``threads: null``, OMP_NUM_THREADS is limited to this share; if it is not set, each run decides for itself.

    Args:
        folder: directory of the sweep.
        launcher: settings of the launcher.
        jobs: number of jobs.
        accelerators: ``trainer.accelerator`` of all points.

    Raises:
        ConfigError: there are too few GPUs.
    """
    if launcher["kind"] == "slurm":
        from snnexp.sweeps import cluster

        executor = cluster.make_executor(folder / "jobs", launcher)
        count = min(launcher["workers"] or jobs, jobs)
        return [cluster.ClusterJob(executor, launcher["threads"]) for _ in range(count)]
    gpus = _visible_gpus() if accelerators != {"cpu"} else []
    cores = limits.cores()
    each = min(1, len(gpus)) if launcher["gpus"] is None else launcher["gpus"]
    if each > len(gpus):
        raise ConfigError(f"hydra.launcher.gpus: got {each}, but {len(gpus)} are available for these points")
    workers = min(launcher["workers"] or (len(gpus) // each if each else cores), jobs)
    limit = threads.from_environment()
    share = launcher["threads"] or (limit and min(limit, max(1, cores // max(1, workers))))
    memory_gb = launcher["memory_gb"]
    slots: list[Slot] = []
    for number in range(workers):
        environment = {} if share is None else dict.fromkeys(threads.VARIABLES, str(share))
        if gpus:
            # with more workers than GPUs, several workers share a GPU
            own = [gpus[(number * each + offset) % len(gpus)] for offset in range(each)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        slots.append(Worker(environment, None if memory_gb is None else int(memory_gb * GIGABYTE)))
    return slots


def _visible_gpus() -> list[str]:
    """Return the visible NVIDIA GPUs without importing PyTorch, which takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(index) for index, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]


def _accelerator(whole: Mapping[str, Any]) -> str:
    return str(whole["trainer"]["accelerator"])
