"""Many runs as one model: points of a sweep that differ in numbers alone, side by side along a member axis.

A stacked layer of M members has features ``(M, n)``: traces are ``[T, B, M, n]``, weights ``[M, out, in]``, so that one
call computes what M runs would call one after the other. Every member has its own start values, order of data,
optimiser and end, and leaves the run directory that it would leave alone. Its network looks into the memory of the
stack, so that whatever saves, records or counts of a run works on a member as it is.
"""

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.func import vmap

from snnexp import config, console, experiment, kernels, saving
from snnexp.assembly import Parts, build
from snnexp.callbacks import DivergenceGuard, MeanLoss, ProjectParameters, RandomNumbers, RunLogger
from snnexp.checkpoints import Checkpoint
from snnexp.errors import DISK, CheckpointError, InterruptedRunError, SnnexpError, about_disk
from snnexp.events import Events
from snnexp.kernels.loops import CHUNK_BYTES
from snnexp.network import Network, stack
from snnexp.runs import Run
from snnexp.task import Task

LOG = logging.getLogger("snnexp")
"""What all notes of the package pass."""


@dataclass
class Member:
    """A point that trains in a stack.

    Args:
        cfg: a checked config.
        overrides: what was typed, for the record.
        run: a run directory to go on with; one is made without.
    """

    cfg: DictConfig
    overrides: list[str]
    run: Path | None = None


@dataclass
class Outcome:
    """How a member ended; ``run`` is None where it could not begin."""

    status: str
    run: Path | None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    exit_code: int = 0


def train(
    members: Sequence[Member],
    parent: Path,
    begun: Callable[[int, Path], object],
    ended: Callable[[int, Outcome], object],
) -> None:
    """Train, test and record members whose :func:`snnexp.sweeps.grouping.key` is the same.

    On a CPU only so many are trained at a time as share its cache; where a single one fills it, each runs alone, for
    there is nothing to gain. Members that go on from a checkpoint are stacked with those that stand at the same step.
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
        order = sorted(left, key=lambda index: _settings(members[index].cfg))
        for part in _parts(order, members[0].cfg):
            if len(part) == 1:
                _alone(part[0], members[part[0]], parent, begun, end)
            else:
                _train(part, members, parent, begun, end)
    except InterruptedRunError as error:
        for index in sorted(left):
            end(index, _failed(error, members[index].run))
        raise


def _settings(cfg: DictConfig) -> str:
    return json.dumps(OmegaConf.to_container(cfg.optimizer), sort_keys=True)


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
        if member.run is None:
            record = experiment.run(member.cfg, member.overrides, parent, begun=note)
        else:
            begun(index, member.run)
            record = experiment.resume(member.run)
    except (SnnexpError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in DISK:
            raise
        ended(index, _failed(error, made[-1] if made else None))
        if isinstance(error, InterruptedRunError):
            raise
    else:
        ended(index, Outcome(record.status, record.path, record.metrics))


def _failed(error: BaseException, run: Path | None) -> Outcome:
    if isinstance(error, SnnexpError):
        return Outcome(error.status, run, {}, str(error), error.exit_code)
    if isinstance(error, OSError) and error.errno in DISK:
        return Outcome("failed", run, {}, about_disk(error), 74)
    told = " ".join(str(error).split())
    return Outcome("failed", run, {}, f"{type(error).__name__}: {told}".rstrip(": "), 1)


def _train(
    part: Sequence[int],
    members: Sequence[Member],
    parent: Path,
    begun: Callable[[int, Path], object],
    ended: Callable[[int, Outcome], object],
) -> None:
    lanes: list[Lane] = []
    with saving.Signals() as signals, console.quiet():
        began = time.perf_counter()
        try:
            with experiment.memory_told():
                for index in part:
                    lane = Lane(index, members[index], ended)
                    lanes.append(lane)
                    with lane.may_end():
                        lane.build(next((other.trainer for other in lanes if other.trainer), None))
                for group in _same_place(lanes):
                    Stack(group, parent, begun, signals, (time.perf_counter() - began) / len(lanes)).carry_out()
        except BaseException as error:
            for lane in lanes:
                if lane.living:
                    lane.stop(error)
            for index in part[len(lanes) :]:
                ended(index, _failed(error, members[index].run))
            if isinstance(error, InterruptedRunError) or not _told(error):
                raise


def _told(error: BaseException) -> bool:
    """Whether an error is a person's to mend, and was told as the end of each member."""
    return isinstance(error, SnnexpError) or (isinstance(error, OSError) and error.errno in DISK)


def _same_place(lanes: "Sequence[Lane]") -> "list[list[Lane]]":
    """Members that begin at the same place, in their order."""
    places: dict[tuple[int, int], list[Lane]] = {}
    for lane in lanes:
        if lane.living:
            places.setdefault(lane.position, []).append(lane)
    return list(places.values())


class Lane:
    """A member under way, with what callbacks ask of Lightning's trainer.

    Args:
        index: its place among all members.
        member: the point.
        ended: told how it ended.
    """

    world_size, global_rank, is_global_zero = 1, 0, True
    strategy = SimpleNamespace(
        reduce=lambda value, **how: value,
        all_gather=lambda value: value,
        reduce_boolean_decision=lambda decision, **how: decision,
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    parts: Parts
    run: Run
    watching: list[Callback]

    def __init__(self, index: int, member: Member, ended: Callable[[int, Outcome], object]) -> None:
        self.index, self.member, self.cfg, self._ended = index, member, member.cfg, ended
        self.living = True
        self.trainer: Trainer | None = None
        self.opened: Run | None = None
        self.found: Checkpoint | None = None
        self.before: dict[str, Any] = {}
        self.position = (0, 0)
        self.max_epochs, self.log_every_n_steps = self.cfg.trainer.max_epochs, self.cfg.trainer.log_every_n_steps
        self.current_epoch = self.global_step = 0
        self.is_last_batch = self.testing = False
        self.loggers: list[Any] = []
        self.callback_metrics: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.optimizers: list[Any] = []
        self.state: Callable[[], dict[str, Any]] = dict

    def build(self, trainer: Trainer | None) -> None:
        """Make the parts; of a run directory to go on with, check all and load what it holds."""
        self.parts = build(self.cfg, trainer)
        self.trainer, self.datamodule = self.parts.trainer, self.parts.data
        self.lightning_module = self.parts.task
        # what callbacks log is taken here
        self.parts.task.log = self.log  # type: ignore[method-assign, assignment]
        if self.member.run is not None:
            self.opened = Run.open(self.member.run)
            self.opened.lock()
            saved = config.load(self.opened.path / "config.yaml")
            config.require_same(
                cast(dict[str, Any], OmegaConf.to_container(saved)),
                cast(dict[str, Any], OmegaConf.to_container(self.cfg)),
            )
            self._watch(self.opened)
            self.before = self.opened.read()
            self.found = experiment.find(self.cfg, self.parts, self.opened, self.watching)
            reached = saved.trainer.max_epochs if self.found is None else self.found.config["trainer"]["max_epochs"]
            if self.before.get("status") == "finished" and self.max_epochs <= reached:
                return self.end(Outcome("finished", self.member.run, self.before.get("metrics", {})))
        if self.found is not None:
            self._go_on_from(self.found)

    def _watch(self, run: Run) -> None:
        self.run = run
        self.watching = [
            ProjectParameters(),
            DivergenceGuard(),
            *experiment.watching_over(self.cfg, self.parts, run, pictures=False),
        ]

    def _go_on_from(self, found: Checkpoint) -> None:
        self.position, self.global_step = found.position, found.step
        self.current_epoch = self.position[0]
        self.parts.data.begin = self.position
        self.parts.task.load_state_dict(found.content["state_dict"])
        for callback in self.watching:
            state = found.content["callbacks"].get(callback.state_key)
            if state:
                callback.load_state_dict(state)
            if isinstance(callback, saving.Checkpoints):
                callback.go_on_from(found)
            if isinstance(callback, MeanLoss):
                callback.on_load_checkpoint(cast(Any, self), self.parts.task, found.content)

    def begin(self, parent: Path, facts: Mapping[str, Any]) -> None:
        """Make the run directory, or put the record of the one that is there back to where it goes on."""
        if self.opened is None:
            text = OmegaConf.to_yaml(self.cfg)
            self.opened = Run.create(
                parent, text, self.member.overrides, experiment.facts(self.cfg, self.parts) | facts
            )
            self._watch(self.opened)
        else:
            experiment.begin_again(self.cfg, self.parts, self.run, self.before, self.found)
            self.run.update(**facts)
        self.log_file = console.LogFile(self.run.path / "train.log", encoding="utf-8")
        self.log_file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        self.loggers = [RunLogger(self.run)]
        if self.cfg.logger.tensorboard:
            purge = None if self.found is None else self.found.step
            board = TensorBoardLogger(
                self.run.path, name="", version="tensorboard", default_hp_metric=False, purge_step=purge
            )
            self.loggers.append(board)

    def log(self, name: str, value: Tensor, **how: Any) -> None:
        """As ``LightningModule.log``."""
        self.logged[name] = self.callback_metrics[name] = value

    def write(self, step: int) -> dict[str, float]:
        """A row of what was logged since the last one."""
        values = {name: float(value) for name, value in self.logged.items()}
        self.logged = {}
        if values:
            for logger in self.loggers:
                logger.log_metrics({**values, "epoch": self.current_epoch}, step)
        return values

    def call(self, hook: str, *arguments: Any, skip: type[Callback] | tuple[()] = ()) -> None:
        """Call a hook of all that watches, in order; notes go to the member's own log."""
        with self.told_here():
            for callback in self.watching:
                if getattr(type(callback), hook) is not getattr(Callback, hook) and not isinstance(callback, skip):
                    getattr(callback, hook)(self, self.parts.task, *arguments)

    @contextmanager
    def told_here(self) -> Iterator[None]:
        """Notes of the package go to the member's train.log."""
        LOG.addHandler(self.log_file)
        try:
            yield
        finally:
            LOG.removeHandler(self.log_file)

    @contextmanager
    def may_end(self) -> Iterator[None]:
        """What is refused, missing or diverged ends this member alone."""
        try:
            yield
        except InterruptedRunError:
            raise
        except SnnexpError as error:
            self.stop(error)

    def stop(self, error: BaseException) -> None:
        """End a member that does not finish, and write down why."""
        if self.loggers and isinstance(error, InterruptedRunError):
            self.call("on_exception", error)
        if self.opened is not None and self.loggers:
            # on a full disk this fails too, and what came first is what counts
            with suppress(OSError, CheckpointError):
                experiment.record_failure(self.run, error)
        self.end(_failed(error, None if self.opened is None else self.opened.path))

    def end(self, outcome: Outcome) -> None:
        """Let go of the run directory, and tell."""
        self.living = False
        for logger in self.loggers[1:]:
            logger.finalize("success")
        if self.loggers:
            self.log_file.close()
        if self.opened is not None:
            self.opened.close()
        self._ended(self.index, outcome)

    def save_checkpoint(self, path: Path) -> None:
        """Write a checkpoint as Lightning does for a run of its own."""
        content: dict[str, Any] = {
            "pytorch-lightning_version": lightning.__version__,
            "global_step": self.global_step,
            # a view would be saved with all of the stack behind it
            "state_dict": {name: value.clone() for name, value in self.parts.task.state_dict().items()},
            "loops": {},
            "callbacks": {c.state_key: state for c in self.watching if (state := c.state_dict())},
            **self.state(),
        }
        for callback in self.watching:
            callback.on_save_checkpoint(cast(Any, self), self.parts.task, content)
        saving.RunCheckpointIO().save_checkpoint(content, path)


class Optimizers:
    """The optimisers of a stack: one for all members whose settings are equal, and which stand side by side.

    Args:
        lanes: the members.
        network: their stack.
        total_steps: of the whole training, which a schedule ends with.
    """

    def __init__(self, lanes: Sequence[Lane], network: Network, total_steps: int) -> None:
        self.weights = list(network.parameters())
        self.parts: list[tuple[slice, list[nn.Parameter], dict[str, Any]]] = []
        numbered = enumerate(lanes)
        for _, equal in itertools.groupby(numbered, key=lambda pair: _settings(pair[1].cfg)):
            group = list(equal)
            where = slice(group[0][0], group[-1][0] + 1)
            views = [nn.Parameter(weight.detach()[where], weight.requires_grad) for weight in self.weights]
            made = group[0][1].parts.task.optimizer(views, total_steps)
            self.parts.append((where, views, made))
            self._load([lane for _, lane in group], views, made)
            for position, (_, lane) in enumerate(group):
                lane.state = self._reader(lane, position, made)
                lane.optimizers = [_Kept(lane)]

    @staticmethod
    def _load(lanes: Sequence[Lane], views: Sequence[Tensor], made: dict[str, Any]) -> None:
        contents = [lane.found.content for lane in lanes if lane.found is not None]
        if not contents:
            return
        states = [content["optimizer_states"][0] for content in contents]
        together = {
            index: {
                # the count of steps is the same for all
                kind: value
                if kind == "step" or not isinstance(value, Tensor)
                else torch.stack([state["state"][index][kind] for state in states]).view_as(views[index])
                for kind, value in kept.items()
            }
            for index, kept in states[0]["state"].items()
        }
        made["optimizer"].load_state_dict({"state": together, "param_groups": states[0]["param_groups"]})
        if "lr_scheduler" in made:
            made["lr_scheduler"]["scheduler"].load_state_dict(contents[0]["lr_schedulers"][0])

    @staticmethod
    def _reader(lane: Lane, position: int, made: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """What a checkpoint of a member holds of its optimiser."""

        def read() -> dict[str, Any]:
            whole = made["optimizer"].state_dict()
            shapes = [parameter.shape for parameter in lane.parts.task.parameters()]
            state = {
                index: {
                    kind: (value[position].view(shapes[index]) if value.ndim else value).clone()
                    if isinstance(value, Tensor)
                    else value
                    for kind, value in kept.items()
                }
                for index, kept in whole["state"].items()
            }
            schedulers = [made["lr_scheduler"]["scheduler"].state_dict()] if "lr_scheduler" in made else []
            return {"optimizer_states": [{**whole, "state": state}], "lr_schedulers": schedulers}

        return read

    def step(self) -> None:
        """Take the gradients of the stack."""
        for where, views, made in self.parts:
            for view, weight in zip(views, self.weights, strict=True):
                view.grad = None if weight.grad is None else weight.grad[where]
            made["optimizer"].step()
            if "lr_scheduler" in made:
                made["lr_scheduler"]["scheduler"].step()
        for weight in self.weights:
            weight.grad = None

    def tensors(self) -> Iterator[tuple[slice, Tensor]]:
        """All that must stay finite, and which members it is of."""
        for where, views, made in self.parts:
            yield from ((where, view.detach()) for view in views)
            for kept in made["optimizer"].state.values():
                yield from ((where, x) for x in kept.values() if isinstance(x, Tensor) and x.ndim)


class _Kept:
    """What an optimiser keeps for the weights of one member, as ``torch.optim`` has it."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    @property
    def state(self) -> dict[nn.Parameter, dict[str, Any]]:
        (kept,) = self.lane.state()["optimizer_states"]
        weights = list(self.lane.parts.task.parameters())
        return {weights[index]: entry for index, entry in kept["state"].items()}


class Feed:
    """Batches of all members, ``[B, M, *N]`` or ``[T, B, M, *N]``; ``[B, 1, *N]`` where they are the same.

    Args:
        samples: of each member.
        sequences: whether inputs have a time axis of their own.
        traces: whether targets have one.
    """

    def __init__(self, samples: Sequence[Any], sequences: bool, traces: bool) -> None:
        self.samples, self.sequences, self.traces = samples, sequences, traces
        self.same = all(_same(samples[0], other) for other in samples[1:])

    def batch(self, indices: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int | None]:
        """Inputs, targets, and which axis of the targets is the members'; None where they are the same for all."""
        values_at, target_at = int(self.sequences), int(self.traces)
        if self.same and all(part == indices[0] for part in indices[1:]):
            values, target = self.samples[0][list(indices[0])]
            return values.unsqueeze(values_at + 1), target, None
        if self.same:
            order = torch.tensor(indices).t()
            values, target = self.samples[0][order.flatten()]
            return values.unflatten(values_at, order.shape), target.unflatten(target_at, order.shape), target_at + 1
        batches = [samples[list(part)] for samples, part in zip(self.samples, indices, strict=True)]
        values, target = zip(*batches, strict=True)
        return torch.stack(values, values_at + 1), torch.stack(target, target_at + 1), target_at + 1


def _same(one: Any, other: Any) -> bool:
    """Whether two datasets hold the same samples."""
    return all(
        (value is mine or value.data_ptr() == mine.data_ptr() or torch.equal(value, mine))
        if isinstance(value, Tensor) and isinstance(mine, Tensor)
        else value == mine
        for value, mine in zip(vars(one).values(), vars(other).values(), strict=True)
    )


class _Read:
    """A trace of the stack, of which each sum is computed once."""

    def __init__(self, trace: Any) -> None:
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trace, name)
        setattr(self, name, value)
        return value


class _Of:
    """What a trace of the stack holds of one member."""

    def __init__(self, trace: _Read, member: int) -> None:
        self._trace, self._member = trace, member

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trace, name)
        if isinstance(value, Tensor):
            return value.select(-2, self._member)
        if isinstance(value, tuple):
            return type(value)(*(part.select(-2, self._member) for part in value))
        return value


class Stack:
    """Members that are trained together.

    Args:
        lanes: the members, all at the same place in their runs.
        parent: the folder in which run directories are made.
        begun: told each member's index and run directory.
        signals: what asks to stop.
        built_s: each member's share of what it took to build them.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        parent: Path,
        begun: Callable[[int, Path], object],
        signals: saving.Signals,
        built_s: float,
    ) -> None:
        self.lanes, self.signals, self.built_s = lanes, signals, built_s
        self.clock = {"began": time.perf_counter()}
        first = lanes[0].parts
        device = first.trainer.strategy.root_device
        self.encoder, self.loss = first.encoder, first.loss
        self.network = stack([lane.parts.network for lane in lanes]).to(device)
        # of Triton's kernels none knows members
        kernel = kernels.use(self.network, first.kernel.replace("triton", "fused"), device)
        self.task = Task(
            self.network,
            first.task.encode,
            first.task.spikes_come_in,
            self.loss,
            first.task.measures,
            first.task.optimizer,
        )
        for position, lane in enumerate(lanes):
            _look_into(self.network, lane.parts.network, position)
        facts = {"kernel": kernel, "stack": {"members": len(lanes), "member": 0}}
        for position, lane in enumerate(lanes):
            lane.begin(parent, {**facts, "stack": {"members": len(lanes), "member": position}})
            begun(lane.index, lane.run.path)
        limit = lanes[0].cfg.trainer.limit_batches
        self.limit = len(first.data.train) if limit is None else limit
        self.samplers = [cast(Any, lane.parts.data.train_dataloader()).sampler for lane in lanes]
        self.batches = min(len(self.samplers[0]), self.limit)
        self.optimizers = Optimizers(lanes, self.network, lanes[0].max_epochs * self.batches)
        self.feeds = {
            split: Feed(
                [getattr(lane.parts.data, split) for lane in lanes], first.data.sequences, first.decoder is None
            )
            for split in ("train", "val", "test")
            if getattr(first.data, split) is not None
        }

    @property
    def living(self) -> list[tuple[int, Lane]]:
        """The members that have not ended, with their places in the stack."""
        return [(position, lane) for position, lane in enumerate(self.lanes) if lane.living]

    def carry_out(self) -> None:
        """Train and test; every member ends, unless something stops them all."""
        self.signals.training = True
        self.signals.stop_if_told()
        self._each("on_train_start")
        begin = self.lanes[0].position
        for epoch in range(begin[0], self.lanes[0].max_epochs):
            self._epoch(epoch, begin[1] if epoch == begin[0] else 0)
            if not self.living:
                return
        self._each("on_train_end")
        self.signals.training = False
        self.signals.stop_if_told()
        self.clock["fitted"] = time.perf_counter()
        measured = self._evaluate("test")
        self._finish(measured)

    def _each(self, hook: str, *arguments: Any, skip: type[Callback] | tuple[()] = ()) -> None:
        for _, lane in self.living:
            with lane.may_end():
                lane.call(hook, *arguments, skip=skip)

    def _epoch(self, epoch: int, done: int) -> None:
        for lane, sampler in zip(self.lanes, self.samplers, strict=True):
            lane.current_epoch = epoch
            sampler.set_epoch(epoch)
        orders = zip(*self.samplers, strict=True)
        for index, indices in enumerate(itertools.islice(orders, self.batches - done), start=done):
            self._each("on_train_batch_start", None, index, skip=RandomNumbers)
            if self.signals.received is not None:
                self._save()
                self.signals.stop_if_told()
            self._step(index, indices)
            if not self.living:
                return
        if "val" in self.feeds:
            self._evaluate("val")
        for _, lane in self.living:
            with lane.may_end():
                lane.call("on_train_epoch_end")
                lane.write(lane.global_step - 1)
            lane.current_epoch = epoch + 1

    def _save(self) -> None:
        for _, lane in self.living:
            (saver,) = (callback for callback in lane.watching if isinstance(callback, saving.Checkpoints))
            with lane.may_end(), lane.told_here():
                saver.save_last(cast(Any, lane))

    def _step(self, index: int, indices: Sequence[Sequence[int]]) -> None:
        values, target, target_at = self.feeds["train"].batch(indices)
        inputs = self._encode(values, "on_train_batch_start", index)
        traces = self.network(inputs)
        losses = self._losses(traces[-1], target, target_at)
        losses.sum().backward()
        self.optimizers.step()
        last = index + 1 == self.batches
        logged = (self.lanes[0].global_step + 1) % self.lanes[0].log_every_n_steps == 0
        with torch.no_grad():
            losses = losses.detach()
            found: dict[str, Tensor] = {"train/loss": losses}
            if logged:
                found |= self._over_members(
                    lambda parts, target, inputs: self.task._measured(parts, target, "train"), traces, target, target_at
                )
            columns = {name: column.unbind(0) for name, column in found.items()}
            fine = self._fine(losses, traces, logged or last)
            reads = [_Read(trace) for trace in traces]
            samples = len(indices[0])
            for position, lane in self.living:
                lane.global_step += 1
                lane.is_last_batch = last
                if logged:
                    for name, column in columns.items():
                        lane.log(name, column[position])
                parts = [_Of(read, position) for read in reads]
                outputs = {"loss": columns["train/loss"][position], "samples": samples, "traces": parts}
                with lane.may_end():
                    skip = DivergenceGuard if fine[position] else ()
                    lane.call("on_train_batch_end", outputs, None, index, skip=skip)
                    if logged:
                        lane.write(lane.global_step - 1)

    def _encode(self, values: Tensor, hook: str, index: int) -> Tensor | Events:
        """What the network takes; an encoder that draws does so for each member with its own random numbers."""
        if not self.encoder.draws:
            return self.task.encode(values)
        axis = 2 if self.lanes[0].parts.data.sequences else 1
        shape = [*values.shape[:axis], len(self.lanes), *values.shape[axis + 1 :]]
        columns = values.expand(shape).unbind(axis)
        drawn = []
        for lane, column in zip(self.lanes, columns, strict=True):
            (random,) = (callback for callback in lane.watching if isinstance(callback, RandomNumbers))
            getattr(random, hook)(lane, lane.parts.task, None, index)
            drawn.append(cast(Tensor, self.task.encode(column)))
        return torch.stack(drawn, 2)

    def _losses(self, trace: Any, target: Tensor, target_at: int | None) -> Tensor:
        """The loss of each member, ``[M]``."""
        part = getattr(trace, self.loss.reads)
        rows = [lane.parts.loss.numbers(trace.num_steps) for lane in self.lanes]
        numbers = [part.new_tensor(column) for column in zip(*rows, strict=True)]

        def alone(part: Tensor, target: Tensor, *numbers: Tensor) -> Tensor:
            seen = SimpleNamespace(**{self.loss.reads: part}, num_steps=trace.num_steps)
            return self.loss.compare(seen, target, *numbers)

        return cast(Tensor, vmap(alone, (-2, target_at, *[0] * len(numbers)))(part, target, *numbers))

    def _over_members(
        self,
        function: Callable[[Any, Tensor, Any], dict[str, Tensor]],
        traces: Sequence[Any],
        target: Tensor,
        target_at: int | None,
        inputs: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What a function of one member's traces, target and inputs gives for all of them, ``[M]`` by name."""
        tensors = [{name: getattr(trace, name) for name in ("spike_count", "last_spikes")} for trace in traces]
        tensors[-1]["max_membrane"] = traces[-1].max_membrane
        if hasattr(traces[-1], "membrane"):
            tensors[-1]["membrane"] = traces[-1].membrane
        steps = traces[-1].num_steps

        def alone(tensors: Any, target: Tensor, inputs: Tensor | None) -> dict[str, Tensor]:
            return function([SimpleNamespace(num_steps=steps, **parts) for parts in tensors], target, inputs)

        inputs_at = None if inputs is None or inputs.shape[2] == 1 else 2
        return cast(dict[str, Tensor], vmap(alone, (-2, target_at, inputs_at))(tensors, target, inputs))

    def _fine(self, losses: Tensor, traces: Sequence[Any], all_parts: bool) -> list[bool]:
        """For each member, whether all numbers are finite, for certain: a sum may overflow where no number has."""
        sums = losses.clone()
        if all_parts:
            for trace in traces:
                for part in trace.state:
                    sums += part.sum(-1).sum(0)
            for where, tensor in self.optimizers.tensors():
                sums[where] += tensor.flatten(1).sum(1)
        return cast(list[bool], torch.isfinite(sums).tolist())

    def _evaluate(self, split: str) -> dict[int, dict[str, float]]:
        """Measure a split; returns what was logged of each member."""
        feed, testing = self.feeds[split], split == "test"
        loaders: list[Any] = [lane.parts.data.loader(split) for lane in self.lanes]
        name = "test" if testing else "validation"
        totals: dict[str, Tensor] = {}
        count = 0
        measured = {}
        for lane in self.lanes:
            lane.testing = testing
        with torch.inference_mode():
            if testing:
                self._each("on_test_start")
            orders = zip(*(loader.sampler for loader in loaders), strict=True)
            for index, indices in enumerate(itertools.islice(orders, self.limit)):
                values, target, target_at = feed.batch(indices)
                inputs = self._encode(values, f"on_{name}_batch_start", index)
                traces = self.network(inputs, reduced=self.task.reduced)
                found = {f"{split}/loss": self._losses(traces[-1], target, target_at)}
                dense = None
                if testing and self.task.spikes_come_in:
                    dense = inputs.dense() if isinstance(inputs, Events) else inputs

                def measure(parts: Any, target: Tensor, inputs: Any) -> dict[str, Tensor]:
                    values = self.task._measured(parts, target, split)
                    return values | (self.task._operations(parts, inputs) if testing else {})

                found |= self._over_members(measure, traces, target, target_at, dense)
                samples = len(indices[0])
                count += samples
                for key, value in found.items():
                    totals[key] = totals.get(key, 0) + value * samples
                if testing:
                    self._count(traces, target, target_at, index)
            for position, lane in self.living:
                for key, total in totals.items():
                    lane.log(key, total[position] / count)
                with lane.may_end():
                    if testing:
                        lane.call("on_test_epoch_end")
                    measured[position] = lane.write(lane.global_step - (0 if testing else 1))
                    lane.call(f"on_{name}_end")
        return measured

    def _count(self, traces: Sequence[Any], target: Tensor, target_at: int | None, index: int) -> None:
        reads = [_Read(trace) for trace in traces]
        for position, lane in self.living:
            own = target if target_at is None else target.select(target_at, position)
            lane.call("on_test_batch_end", {"traces": [_Of(read, position) for read in reads]}, (None, own), index)

    def _finish(self, measured: Mapping[int, dict[str, float]]) -> None:
        tested = time.perf_counter()
        saved, drawn = 0.0, {"fit": 0.0, "test": 0.0}
        for callback in itertools.chain.from_iterable(lane.watching for lane in self.lanes):
            if isinstance(callback, saving.Checkpoints):
                saved += callback.spent_s
            elif isinstance(callback, experiment.probe.Probe):
                drawn = {stage: drawn[stage] + spent for stage, spent in callback.spent_s.items()}
        fitted, members = self.clock["fitted"], len(self.lanes)
        wall_s = {
            "build": self.built_s,
            "fit": (fitted - self.clock["began"] - saved - drawn["fit"]) / members,
            "save": saved / members,
            "draw": sum(drawn.values()) / members,
            "test": (tested - fitted - drawn["test"]) / members,
        }
        wall_s["total"] = sum(wall_s.values())
        for position, lane in self.living:
            steps = lane.global_step - (0 if lane.found is None else lane.found.step)
            samples = steps * min(lane.parts.data.batch_size, len(lane.parts.data.train))
            for board in lane.loggers[1:]:
                board.log_hyperparams(config.flat(lane.cfg), measured[position])
            with lane.may_end():
                lane.run.update(
                    status="finished",
                    exit_code=0,
                    metrics=measured[position],
                    wall_s=wall_s,
                    samples_per_s=samples / wall_s["fit"],
                )
                lane.end(Outcome("finished", lane.run.path, measured[position]))


def _look_into(stacked: Network, network: Network, position: int) -> None:
    """Let the weights of a member's own network be those of its place in the stack, in the same memory."""
    modules = dict(network.named_modules())
    device = next(iter(stacked.state_dict().values())).device
    network.to(device)
    for key, whole in stacked.state_dict().items():
        path, _, name = key.rpartition(".")
        owner = modules[path]
        before = owner._parameters.get(name)
        if before is not None:
            before.data = whole[position].view(before.shape)
        else:
            buffer = cast(Tensor, owner._buffers[name])
            owner._buffers[name] = whole[position].view(buffer.shape)
