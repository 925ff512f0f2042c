"""Many runs as one model: points of a sweep that differ in numbers alone, side by side along a member axis.

A stacked layer of M members has features ``(M, n)``: traces are ``[T, B, M, n]``, weights ``[M, out, in]``, so that one
call computes what M runs would call one after the other. Every member has its own start values, order of data,
optimiser and end, and leaves the run directory that it would leave alone. Its network looks into the memory of the
stack, so that whatever saves, records or counts of a run works on a member as it is.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from snnexp import terminal, threads
from snnexp.errors import DISK, InterruptedRunError, SnnexpError
from snnexp.kernels.fused import CHUNK_BYTES
from snnexp.limits import memory_told
from snnexp.training.execute import execute
from snnexp.training.lane import Lane, Member, Outcome, failure, settings
from snnexp.training.signals import Signals
from snnexp.training.stack import Stack

__all__ = ["Member", "Outcome", "train"]


def train(
    members: Sequence[Member],
    parent: Path,
    begun: Callable[[int, Path], object],
    ended: Callable[[int, Outcome], object],
) -> None:
    """Train, test and record members whose :func:`snnexp.sweeps.grouping.key` is the same.

    On a CPU only so many are trained at a time as share its cache; where a single one fills it, each runs alone, for
    there is nothing to gain. Members that resume from a checkpoint are stacked with those that stand at the same step.
    ``wall_s`` in run.json is a member's share: what its stack took, divided by the number of its members.

    Args:
        members: the points.
        parent: the folder in which run directories are made.
        begun: told a member's index and its run directory, once that is there.
        ended: told each member's index and end, once, as soon as it is known.

    Raises:
        InterruptedRunError: a signal came; all members are saved, and their ends told.
    """
    left = set(range(len(members)))

    def end(index: int, outcome: Outcome) -> None:
        left.discard(index)
        ended(index, outcome)

    try:
        # equal settings of the optimiser stand together, so that they share one
        order = sorted(left, key=lambda index: settings(members[index].cfg))
        for part in _parts(order, members[0].cfg):
            if len(part) == 1:
                _alone(part[0], members[part[0]], parent, begun, end)
            else:
                _train(part, members, parent, begun, end)
    except InterruptedRunError as error:
        for index in sorted(left):
            end(index, failure(error, members[index].run))
        raise


def _parts(order: Sequence[int], cfg: DictConfig) -> list[Sequence[int]]:
    """``order`` in parts of as many members as are trained together, as equal as can be."""
    most = len(order)
    if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        # beyond the cache, a step of all members costs more than their steps one by one
        step = 4 * cfg.data.batch_size * max([*cfg.network.hidden, 1])
        most = max(1, CHUNK_BYTES // 2 // step)
    count = -(-len(order) // most)
    ends = [len(order) * index // count for index in range(count + 1)]
    return [order[begin:end] for begin, end in itertools.pairwise(ends)]


def _alone(
    index: int,
    member: Member,
    parent: Path,
    begun: Callable[[int, Path], object],
    ended: Callable[[int, Outcome], object],
) -> None:
    made: list[Path] = [] if member.run is None else [member.run]

    def note(path: Path) -> None:
        made.append(path)
        begun(index, path)

    try:
        record = execute(member.start(parent), note)
    except (SnnexpError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in DISK:
            raise
        ended(index, failure(error, made[-1] if made else None))
        if isinstance(error, InterruptedRunError):
            raise
    else:
        ended(index, Outcome(record.status, record.path, record.metrics))


def _train(
    part: Sequence[int],
    members: Sequence[Member],
    parent: Path,
    begun: Callable[[int, Path], object],
    ended: Callable[[int, Outcome], object],
) -> None:
    lanes: list[Lane] = []
    with Signals() as signals, terminal.quiet():
        began = time.perf_counter()
        try:
            with memory_told(), signals.heeded():
                for index in part:
                    lane = Lane(index, members[index], parent, ended)
                    lanes.append(lane)
                    with lane.may_end(), signals.heeded():
                        lane.open()
                        with threads.using(lane.threads):
                            lane.build(next((other.trainer for other in lanes if other.trainer), None))
                groups = _same_place(lanes)
                built_s = (time.perf_counter() - began) / max(1, sum(map(len, groups)))
                for group in groups:
                    with threads.using(group[0].threads):
                        Stack(group, begun, signals, built_s).carry_out()
        except BaseException as error:
            for lane in lanes:
                if lane.living:
                    lane.stop(error)
            for index in part[len(lanes) :]:
                ended(index, failure(error, members[index].run))
            if isinstance(error, InterruptedRunError) or not _told(error):
                raise


def _told(error: BaseException) -> bool:
    """Whether an error is a person's to mend, and was told as the end of each member."""
    return isinstance(error, SnnexpError) or (isinstance(error, OSError) and error.errno in DISK)


def _same_place(lanes: "Sequence[Lane]") -> "list[list[Lane]]":
    """Members that begin at the same place, with as many threads, in their order."""
    places: dict[tuple[tuple[int, int], int], list[Lane]] = {}
    for lane in lanes:
        if lane.living:
            places.setdefault((lane.position, lane.threads), []).append(lane)
    return list(places.values())
