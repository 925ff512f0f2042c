"""Many runs as one model: points of a sweep that differ in numbers alone, side by side along a member axis.

A stacked layer of M members has features ``(M, n)``: traces are ``[T, B, M, n]``, weights ``[M, out, in]``, so that one
call computes what M runs would call one after the other. Every member has its own start values, order of data,
optimizer settings and end, and leaves the run directory that it would leave alone. Its network looks into the
memory of the stack, so that whatever saves, records or counts of a run works on a member as it is.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from snnexp import config, terminal, threads
from snnexp.config import recipes
from snnexp.errors import DISK_ERRNOS, InterruptedRunError, SnnexpError
from snnexp.kernels.fused import CHUNK_BYTES
from snnexp.limits import out_of_memory_as_config_error
from snnexp.record.checkpoint import Checkpoint
from snnexp.record.environment import git, versions
from snnexp.training import callbacks
from snnexp.training.execute import Clock, drawing_s, execute, fit_and_test, succeed
from snnexp.training.loggers import log_result
from snnexp.training.members import AllEndedError, Bridge
from snnexp.training.saving import SaveCheckpoints, run_concurrently
from snnexp.training.signals import Signals
from snnexp.training.stack import Stacked
from snnexp.training.stack_member import Outcome, Point, StackMember, failed_outcome, update_settings
from snnexp.training.stacked_data import StackedData

__all__ = ["Outcome", "Point", "train"]


def train(
    points: Sequence[Point],
    parent: Path,
    on_created: Callable[[int, Path], object],
    on_end: Callable[[int, Outcome], object],
) -> None:
    """Train, test and record points whose :func:`snnexp.sweeps.grouping.key` is the same.

    On a CPU only so many are trained at a time as share its cache; where a single one fills it, each runs alone, for
    there is nothing to gain. Members that were stopped together resume from the newest step that all of them have;
    those that stand at other steps train one after the other. Whoever does not train keeps its place meanwhile.
    ``wall_s`` in run.json is a member's share: what its stack took, divided by the number of its members.

    Args:
        points: the points.
        parent: the folder in which run directories are made.
        on_created: told a point's index and its run directory, once that is there.
        on_end: told each point's index and end, once, as soon as it is known.

    Raises:
        InterruptedRunError: a signal came; all members are saved, and their ends told.
    """
    left = {index for index, point in enumerate(points) if not point.has_ended}

    def end(index: int, outcome: Outcome) -> None:
        left.discard(index)
        on_end(index, outcome)

    try:
        # those that are updated in the same way stand together
        order = sorted(range(len(points)), key=lambda index: update_settings(points[index].cfg))
        for part in _split(order, points[0].cfg):
            if left.isdisjoint(part):
                continue
            if len(part) == 1:
                _train_alone(part[0], points[part[0]], parent, on_created, end)
            else:
                _train_stack([(index, points[index]) for index in part], parent, on_created, end)
    except InterruptedRunError as error:
        for index in sorted(left):
            end(index, failed_outcome(error, points[index].run))
        raise


def _split(order: Sequence[int], cfg: DictConfig) -> list[Sequence[int]]:
    """``order`` in parts of as many members as are trained together, as equal as can be."""
    most = len(order)
    if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        # beyond the cache, a step of all members costs more than their steps one by one
        sizes = [layer.get("size") or 1 for layer in cfg.network.get("layers", ())]
        step = 4 * cfg.data.batch_size * max([*cfg.network.get("hidden", ()), *sizes, 1])
        most = max(1, CHUNK_BYTES // 2 // step)
    count = -(-len(order) // most)
    ends = [len(order) * index // count for index in range(count + 1)]
    return [order[begin:end] for begin, end in itertools.pairwise(ends)]


def _train_alone(
    index: int,
    point: Point,
    parent: Path,
    on_created: Callable[[int, Path], object],
    on_end: Callable[[int, Outcome], object],
) -> None:
    made: list[Path] = [] if point.run is None else [point.run]

    def note(path: Path) -> None:
        made.append(path)
        on_created(index, path)

    try:
        record = execute(point.start(parent), note)
    except (SnnexpError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in DISK_ERRNOS:
            raise
        on_end(index, failed_outcome(error, made[-1] if made else None))
        if isinstance(error, InterruptedRunError):
            raise
    else:
        on_end(index, Outcome(record.status, record.path, record.metrics))


def _train_stack(
    points: Sequence[tuple[int, Point]],
    parent: Path,
    on_created: Callable[[int, Path], object],
    on_end: Callable[[int, Outcome], object],
) -> None:
    # freed at once, it raises glibc's thresholds (mallopt(3)): gradients of each step are else given back to the system
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
    members = [(index, StackMember(point, partial(on_end, index))) for index, point in points]
    with Signals() as signals, terminal.quiet():
        clock = Clock()
        try:
            with out_of_memory_as_config_error(), signals.reraising_interrupts():
                trainer: Trainer | None = None
                for _, member in members:
                    with member.ending_on_error(), signals.reraising_interrupts():
                        member.open(parent)
                        with threads.using(member.start.threads):
                            member.build(trainer)
                        trainer = member.parts.trainer
                _align([member for _, member in members if not member.ended])
                on_created_by_member = {id(member): partial(on_created, index) for index, member in members}
                built = [member for _, member in members if hasattr(member, "parts")]
                for number, group in enumerate(_group_by_position(built)):
                    if number:
                        clock = Clock()
                        trainer = config.instantiate(config.plain(group[0].start.cfg)["trainer"], "trainer")
                    assert trainer is not None
                    with threads.using(group[0].start.threads):
                        stack = [member if member in group else member.placeholder() for member in built]
                        _train_group(
                            stack, trainer, lambda member, path: on_created_by_member[id(member)](path), signals, clock
                        )
        except BaseException as error:
            for _, member in members:
                if not member.ended:
                    member.stop(error)
            if isinstance(error, InterruptedRunError) or not _is_reported(error):
                raise


def _align(members: Sequence[StackMember]) -> None:
    """Let members that were stopped together resume from the newest step that all of them have.

    Whoever stands at an older step, such as one that diverged, stays there.
    """
    stopped = [member for member in members if member.start.checkpoint is not None]
    # one that has stopped early stands where it stands
    training = [
        member for member in stopped if "stopped_early" not in cast(Checkpoint, member.start.checkpoint).content
    ]
    for step in sorted({member.start.step for member in training}):
        ahead = [member for member in training if member.start.step > step]
        earlier = [member.start.find_checkpoint_at(member.observers, step) for member in ahead]
        if None not in earlier:
            for member, found in zip(ahead, earlier, strict=True):
                member.start.resume_from(cast(Checkpoint, found))
            break
    for member in stopped:
        assert member.start.checkpoint is not None
        member.resume(member.start.checkpoint.content)


def _is_reported(error: BaseException) -> bool:
    """Whether an error is a person's to mend, and was told as the end of each member."""
    return isinstance(error, SnnexpError) or (isinstance(error, OSError) and error.errno in DISK_ERRNOS)


def _group_by_position(members: Sequence[StackMember]) -> list[list[StackMember]]:
    """Members that begin at the same place, with as many threads, in their order.

    One that has stopped early, and is only to be tested, joins the first others that have as many threads.
    """
    places: dict[tuple[tuple[int, int], int], list[StackMember]] = {}
    for member in sorted(members, key=lambda member: not member.is_training):
        if not member.ended:
            found, threads = member.start.checkpoint, member.start.threads
            at = (0, 0) if found is None else found.position
            others = (place for place in places if place[1] == threads and not member.is_training)
            places.setdefault(next(others, (at, threads)), []).append(member)
    return list(places.values())


def _train_group(
    members: Sequence[StackMember],
    trainer: Trainer,
    on_created: Callable[[StackMember, Path], object],
    signals: Signals,
    clock: Clock,
) -> None:
    """Begin, train, test and record members that stand at the same place; those that have ended keep theirs."""
    running = [member for member in members if not member.ended]
    cfg, device = running[0].start.cfg, trainer.strategy.root_device
    # where one was never saved, none has trained
    training = [member for member in running if member.is_training] or running
    found = training[0].start.checkpoint if all(member.start.checkpoint for member in training) else None
    # those that have ended see the same batches as the others, so that these are made in the same way
    for member in members:
        member.parts.data.begin = (0, 0) if found is None else found.position
    stacked = Stacked(members, cfg.kernel, device)
    data = StackedData([member.parts.data for member in members], device)
    facts = {"kernel": stacked.kernel, "versions": versions(), "git": git()}
    begins = [
        partial(member.begin, {**facts, "stack": {"members": len(members), "member": member.position}})
        for member in running
    ]
    for member, error in zip(running, run_concurrently(begins), strict=True):
        if member.run_dir is not None:
            on_created(member, member.run_dir.path)
        with member.ending_on_error():
            if error is not None:
                raise error
    bridge = Bridge.of(trainer)
    bridge.assigned = bridge.members = members
    saving = SaveCheckpoints(bridge, cfg.logger.save_every_n_epochs, cfg.logger.save_every_s)
    if found is not None:
        saving.resume(trainer, found)
    signals.checkpoints = saving
    if cfg.logger.get("test_every_epoch", False):
        callbacks.EvaluateTestSplit.join(trainer, cfg.trainer.get("limit_test_batches"))
    trainer.callbacks += [saving, signals]  # type: ignore[attr-defined]
    try:
        bridge.require_running()
        fit_and_test(trainer, stacked, data, found, clock)
    except AllEndedError:
        # the save that a signal asked for may have ended the last one
        signals.raise_if_received()
        return
    signals.raise_if_received()
    drawn = {stage: sum(drawing_s(member.observers)[stage] for member in running) for stage in ("fit", "test")}
    wall_s = clock.wall_s(saving.spent_s, drawn, len(running))
    measured = [(member, member.measured()) for member in members if not member.ended]
    ends = [partial(succeed, member.start, member, values, wall_s, trainer) for member, values in measured]
    for (member, values), error in zip(measured, run_concurrently(ends), strict=True):
        with member.ending_on_error():
            if error is not None:
                raise error
            typed = recipes.hyperparameters(config.plain(member.start.cfg), member.point.overrides)
            log_result(member.loggers, typed, values)
            member.end(Outcome("finished", member.start.run.path, values))
