"""Stacked training: points of a sweep that differ only in numeric values, trained as one model.

A stacked layer of M members has features ``(M, n)``: traces are ``[T, B, M, n]``, weights ``[M, out, in]``, and one
call replaces M. Every member has its own initial weights, data order and optimizer settings, ends independently, and
writes the same run directory as a separate run. The weights of its network are views of the stack, so the observers of
a run also work for a member.
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
from snnexp.training.execute import Clock, drawing_s, execute, fit_and_test, record_success
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
    """Train, test and record points with the same :func:`snnexp.sweeps.grouping.key`.

    On a CPU the size of a stack is limited by the cache; if one point fills it, each trains alone. Members that were
    stopped together resume from the latest step that all of them have; members at different steps train one group
    after the other, while the rest keep their slots. ``wall_s`` in run.json is the time of the stack divided by the
    number of its members.

    Args:
        points: the points.
        parent: parent of the run directories.
        on_created: called with a point's index and its run directory, once created.
        on_end: called once with each point's index and outcome.

    Raises:
        InterruptedRunError: a signal arrived; all members are saved, and their outcomes reported.
    """
    left = {index for index, point in enumerate(points) if not point.has_ended}

    def end(index: int, outcome: Outcome) -> None:
        left.discard(index)
        on_end(index, outcome)

    try:
        # members with equal optimizer settings are adjacent
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
    """Split ``order`` into parts of nearly equal size that are trained together."""
    limit = len(order)
    if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        # beyond the cache, a stacked step is slower than separate steps
        sizes = [layer.get("size") or 1 for layer in cfg.network.get("layers", ())]
        step = 4 * cfg.data.batch_size * max([*cfg.network.get("hidden", ()), *sizes, 1])
        limit = max(1, CHUNK_BYTES // 2 // step)
    count = -(-len(order) // limit)
    ends = [len(order) * index // count for index in range(count + 1)]
    return [order[begin:end] for begin, end in itertools.pairwise(ends)]


def _train_alone(
    index: int,
    point: Point,
    parent: Path,
    on_created: Callable[[int, Path], object],
    on_end: Callable[[int, Outcome], object],
) -> None:
    paths: list[Path] = [] if point.run is None else [point.run]

    def record_path(path: Path) -> None:
        paths.append(path)
        on_created(index, path)

    try:
        record = execute(point.start(parent), record_path)
    except (SnnexpError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in DISK_ERRNOS:
            raise
        on_end(index, failed_outcome(error, paths[-1] if paths else None))
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
    # allocate and free: raises glibc's mmap and trim thresholds (mallopt(3)), else every step returns its gradients
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
    """Resume members that were stopped together from the latest step that all of them have.

    A member at an earlier step, such as one that diverged, stays there.
    """
    stopped = [member for member in members if member.start.checkpoint is not None]
    # members that stopped early keep their step
    training = [
        member for member in stopped if "stopped_early" not in cast(Checkpoint, member.start.checkpoint).content
    ]
    for step in sorted({member.start.step for member in training}):
        ahead = [member for member in training if member.start.step > step]
        earlier = [member.start.find_checkpoint_at(member.observers, step) for member in ahead]
        if None not in earlier:
            for member, checkpoint in zip(ahead, earlier, strict=True):
                member.start.resume_from(cast(Checkpoint, checkpoint))
            break
    for member in stopped:
        assert member.start.checkpoint is not None
        member.resume(member.start.checkpoint.content)


def _is_reported(error: BaseException) -> bool:
    """Return True for a user or I/O error, which is already the reported outcome of each member."""
    return isinstance(error, SnnexpError) or (isinstance(error, OSError) and error.errno in DISK_ERRNOS)


def _group_by_position(members: Sequence[StackMember]) -> list[list[StackMember]]:
    """Group members by start position and number of threads, in their order.

    A member that stopped early, and is only tested, joins the first group with its number of threads.
    """
    groups: dict[tuple[tuple[int, int], int], list[StackMember]] = {}
    for member in sorted(members, key=lambda member: not member.is_training):
        if not member.ended:
            checkpoint, threads = member.start.checkpoint, member.start.threads
            position = (0, 0) if checkpoint is None else checkpoint.position
            others = (key for key in groups if key[1] == threads and not member.is_training)
            groups.setdefault(next(others, (position, threads)), []).append(member)
    return list(groups.values())


def _train_group(
    members: Sequence[StackMember],
    trainer: Trainer,
    on_created: Callable[[StackMember, Path], object],
    signals: Signals,
    clock: Clock,
) -> None:
    """Begin, train, test and record members at the same position; ended members keep their slots."""
    running = [member for member in members if not member.ended]
    cfg, device = running[0].start.cfg, trainer.strategy.root_device
    # if a member was never saved, none has trained
    training = [member for member in running if member.is_training] or running
    checkpoint = training[0].start.checkpoint if all(member.start.checkpoint for member in training) else None
    # ended members get the same batches as the others, which keeps the code path the same
    for member in members:
        member.parts.data.begin = (0, 0) if checkpoint is None else checkpoint.position
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
    if checkpoint is not None:
        saving.resume(trainer, checkpoint)
    signals.checkpoints = saving
    if cfg.logger.get("test_every_epoch", False):
        callbacks.EvaluateTestSplit.join(trainer, cfg.trainer.get("limit_test_batches"))
    trainer.callbacks += [saving, signals]  # type: ignore[attr-defined]
    try:
        bridge.require_running()
        fit_and_test(trainer, stacked, data, checkpoint, clock)
    except AllEndedError:
        # the save after a signal may have ended the last member
        signals.raise_if_received()
        return
    signals.raise_if_received()
    drawn = {stage: sum(drawing_s(member.observers)[stage] for member in running) for stage in ("fit", "test")}
    wall_s = clock.wall_s(saving.spent_s, drawn, len(running))
    measured = [(member, member.measured()) for member in members if not member.ended]
    ends = [partial(record_success, member.start, member, values, wall_s, trainer) for member, values in measured]
    for (member, values), error in zip(measured, run_concurrently(ends), strict=True):
        with member.ending_on_error():
            if error is not None:
                raise error
            hyperparameters = recipes.hyperparameters(config.plain(member.start.cfg), member.point.overrides)
            log_result(member.loggers, hyperparameters, values)
            member.end(Outcome("finished", member.start.run.path, values))
