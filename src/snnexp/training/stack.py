"""A stack: members as one model, with the loop that trains it.

Features are ``(M, n)``, traces ``[T, B, M, n]``, weights ``[M, out, in]``. What is measured of a member is computed by
the functions of a run alone, mapped over the member axis.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.func import vmap

from snnexp import config, kernels, metrics
from snnexp.config import recipes
from snnexp.events import Events
from snnexp.network import Network, stack
from snnexp.record.environment import git, versions
from snnexp.training import saving
from snnexp.training.callbacks import DivergenceGuard, RandomNumbers
from snnexp.training.lane import Lane, Outcome, settings
from snnexp.training.probe import Probe
from snnexp.training.signals import Signals
from snnexp.training.task import Task


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
        for _, equal in itertools.groupby(numbered, key=lambda pair: settings(pair[1].cfg)):
            group = list(equal)
            where = slice(group[0][0], group[-1][0] + 1)
            views = [nn.Parameter(weight.detach()[where], weight.requires_grad) for weight in self.weights]
            made = group[0][1].parts.task.make_optimizer(views, total_steps)
            places = {id(view): place for place, view in enumerate(views)}
            # of its states, by the place of the parameter among those of the task
            order = [places[id(view)] for part in made["optimizer"].param_groups for view in part["params"]]
            self.parts.append((where, views, made))
            self._load([lane for _, lane in group], [views[place] for place in order], made)
            for position, (_, lane) in enumerate(group):
                weights = [*lane.parts.task.parameters()]
                own = [weights[place] for place in order]
                lane.state = self._reader(own, position, made)
                lane.optimizers = [_Kept(lane, own)]

    @staticmethod
    def _load(lanes: Sequence[Lane], views: Sequence[Tensor], made: dict[str, Any]) -> None:
        contents = [lane.start.found.content for lane in lanes if lane.start.found is not None]
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
    def _reader(own: Sequence[Tensor], position: int, made: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """What a checkpoint of a member holds of its optimiser."""

        def read() -> dict[str, Any]:
            whole = made["optimizer"].state_dict()
            shapes = [parameter.shape for parameter in own]
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
            for view in views:
                view.grad = None
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

    def __init__(self, lane: Lane, weights: Sequence[nn.Parameter]) -> None:
        self.lane, self.weights = lane, weights

    @property
    def state(self) -> dict[nn.Parameter, dict[str, Any]]:
        (kept,) = self.lane.state()["optimizer_states"]
        return {self.weights[index]: entry for index, entry in kept["state"].items()}


class Feed:
    """Batches of all members, ``[B, M, *N]`` or ``[T, B, M, *N]``; ``[B, 1, *N]`` where they are the same.

    Args:
        samples: of each member.
        sequences: whether inputs have a time axis of their own.
        traces: whether targets have one.
        device: where they will be used.
    """

    def __init__(self, samples: Sequence[Any], sequences: bool, traces: bool, device: torch.device) -> None:
        self.sequences, self.traces = sequences, traces
        self.same = all(_same(samples[0], other) for other in samples[1:])
        self.samples = [part.to(device) for part in (samples[:1] if self.same else samples)]

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
        begun: told each member's index and run directory.
        signals: what asks to stop.
        built_s: each member's share of what it took to build them.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        begun: Callable[[int, Path], object],
        signals: Signals,
        built_s: float,
    ) -> None:
        self.lanes, self.signals, self.built_s = lanes, signals, built_s
        began = time.perf_counter()
        # what is begun is told of before a signal ends it
        signals.training = True
        first = lanes[0].parts
        device = first.trainer.strategy.root_device
        self.encoder, self.loss = first.encoder, first.loss
        for lane in lanes:
            lane.parts.task.to(device)
        self.network = stack([lane.parts.network for lane in lanes])
        # Triton's kernels know no members, and all that can be stacked has a fused form
        asked = lanes[0].cfg.kernel
        kernel = kernels.use(self.network, "fused" if asked == "auto" else asked, device)
        self.task = Task(
            self.network,
            first.task.encode,
            first.task.spikes_come_in,
            self.loss,
            first.task.measures,
            first.task.optimizer,
        ).to(device)
        for position, lane in enumerate(lanes):
            _look_into(self.network, lane.parts.network, position)
        facts = {"kernel": kernel, "versions": versions(), "git": git()}
        places = [{**facts, "stack": {"members": len(lanes), "member": position}} for position in range(len(lanes))]
        begins = [partial(lane.begin, place) for lane, place in zip(lanes, places, strict=True)]
        for lane, error in zip(lanes, _together(*begins), strict=True):
            if lane.opened is not None:
                begun(lane.index, lane.opened.path)
            with lane.may_end():
                if error is not None:
                    raise error
        self.saved_s = 0.0
        self.limit: int | None = lanes[0].cfg.trainer.limit_batches
        self.samplers = [cast(Any, lane.parts.data.train_dataloader()).sampler for lane in lanes]
        self.batches = min(len(self.samplers[0]), self.limit or sys.maxsize)
        self.global_step = lanes[0].global_step
        self.optimizers = Optimizers(lanes, self.network, lanes[0].max_epochs * self.batches)
        self.feeds = {
            split: Feed(
                [getattr(lane.parts.data, split) for lane in lanes],
                first.data.sequences,
                first.data.target == "trace",
                device,
            )
            for split in ("train", "val", "test")
            if getattr(first.data, split) is not None
        }

        self.numbers: dict[int, list[Tensor]] = {}
        self.built_s += (time.perf_counter() - began) / len(lanes)
        self.clock = {"began": time.perf_counter()}

    @property
    def living(self) -> list[tuple[int, Lane]]:
        """The members that have not ended, with their places in the stack."""
        return [(position, lane) for position, lane in enumerate(self.lanes) if lane.living]

    def carry_out(self) -> None:
        """Train and test; every member ends, unless something stops them all."""
        self.signals.stop_if_told()
        self._each("on_train_start", skip=saving.Checkpoints)
        self._save("on_train_start")
        begin = self.lanes[0].position
        for epoch in range(begin[0], self.lanes[0].max_epochs):
            self._epoch(epoch, begin[1] if epoch == begin[0] else 0)
            if not self.living:
                return
        self._each("on_train_end", skip=saving.Checkpoints)
        self._save("on_train_end")
        self.signals.training = False
        self.signals.stop_if_told()
        self.clock["fitted"] = time.perf_counter()
        measured = self._evaluate("test")
        # what has finished is not interrupted
        self.signals.training = True
        self._finish(measured)
        self.signals.training = False
        self.signals.stop_if_told()

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
            if any(lane.saver.is_due() for _, lane in self.living):
                self._save("on_train_batch_start", None, index)
            for _, lane in self.living:
                lane.saver.position = (epoch, index)
            if self.signals.received is not None:
                self._save("save_last")
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

    def _save(self, hook: str, *arguments: Any) -> None:
        """Call a hook of what saves a run, for all members at once."""
        began = time.perf_counter()
        living = [lane for _, lane in self.living]
        for lane in living:
            # a checkpoint holds what was told, so that it is told first, to the member's own log
            with lane.told_here():
                lane.tell_of_projections()
        errors = _together(*(partial(lane.save, hook, *arguments) for lane in living))
        for lane, error in zip(living, errors, strict=True):
            with lane.may_end():
                if error is not None:
                    raise error
        self.saved_s += time.perf_counter() - began

    def _step(self, index: int, indices: Sequence[Sequence[int]]) -> None:
        values, target, target_at = self.feeds["train"].batch(indices)
        inputs = self._encode(values, "on_train_batch_start", index)
        traces = self.network(inputs)
        losses = self._losses(traces[-1], target, target_at)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizers.step()
        last = index + 1 == self.batches
        self.global_step += 1
        logged = self.global_step % self.lanes[0].log_every_n_steps == 0
        with torch.no_grad():
            losses = losses.detach()
            found: dict[str, Tensor] = {"train/loss": losses}
            if logged:
                measured = self._over_members(
                    lambda parts, target, inputs: self.task._measured(parts, target, "train"), traces, target, target_at
                )
                found |= {name: total / count for name, (total, count) in measured.items()}
            columns = {name: column.unbind(0) for name, column in found.items()}
            fine = self._fine(losses, traces, logged or last)
            reads = [_Read(trace) for trace in traces]
            samples = len(indices[0])
            for position, lane in self.living:
                lane.global_step = self.global_step
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
        if trace.num_steps not in self.numbers:
            rows = [lane.parts.loss.numbers(trace.num_steps) for lane in self.lanes]
            self.numbers[trace.num_steps] = [part.new_tensor(column) for column in zip(*rows, strict=True)]
        numbers = self.numbers[trace.num_steps]

        def alone(part: Tensor, target: Tensor, *numbers: Tensor) -> Tensor:
            seen = SimpleNamespace(**{self.loss.reads: part}, num_steps=trace.num_steps)
            return self.loss.compare(seen, target, *numbers)

        return vmap(alone, (-2, target_at, *[0] * len(numbers)))(part, target, *numbers)

    def _over_members(
        self,
        function: Callable[[Any, Tensor, Any], dict[str, metrics.Sum]],
        traces: Sequence[Any],
        target: Tensor,
        target_at: int | None,
        inputs: Tensor | None = None,
    ) -> dict[str, metrics.Sum]:
        """What a function of one member's traces, target and inputs gives for all of them, ``[M]`` by name."""
        tensors = [{name: getattr(trace, name) for name in ("spike_count", "last_spikes")} for trace in traces]
        tensors[-1]["max_membrane"] = traces[-1].max_membrane
        if hasattr(traces[-1], "membrane"):
            tensors[-1]["membrane"] = traces[-1].membrane
        steps = traces[-1].num_steps

        def alone(tensors: Any, target: Tensor, inputs: Tensor | None) -> dict[str, metrics.Sum]:
            return function([SimpleNamespace(num_steps=steps, **parts) for parts in tensors], target, inputs)

        inputs_at = None if inputs is None or inputs.shape[2] == 1 else 2
        return vmap(alone, (-2, target_at, inputs_at))(tensors, target, inputs)

    def _fine(self, losses: Tensor, traces: Sequence[Any], all_parts: bool) -> list[bool]:
        """For each member, whether all numbers are finite, for certain: a sum may overflow where no number has."""
        if losses.device.type != "cpu" and not all_parts:
            # reading waits for the device
            return [True] * len(self.lanes)
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
        limit = self.lanes[0].cfg.trainer.limit_test_batches if testing else self.limit
        means, measured = metrics.Means(), {}
        for lane in self.lanes:
            lane.testing = testing
        with torch.inference_mode():
            if testing:
                self._each("on_test_start")
            orders = zip(*(loader.sampler for loader in loaders), strict=True)
            for index, indices in enumerate(itertools.islice(orders, limit)):
                values, target, target_at = feed.batch(indices)
                inputs = self._encode(values, f"on_{name}_batch_start", index)
                traces = self.network(inputs, reduced=self.task.reduced)
                samples = len(indices[0])
                losses = self._losses(traces[-1], target, target_at)
                means.add({f"{split}/loss": (losses * samples, torch.full_like(losses, samples, dtype=torch.int64))})
                dense = None
                if testing and self.task.spikes_come_in:
                    dense = inputs.dense() if isinstance(inputs, Events) else inputs

                def measure(parts: Any, target: Tensor, inputs: Any) -> dict[str, metrics.Sum]:
                    values = self.task._measured(parts, target, split)
                    return values | (self.task._operations(parts, inputs) if testing else {})

                means.add(self._over_members(measure, traces, target, target_at, dense))
                if testing:
                    self._count(traces, target, target_at, index)
            found = means.take()
            for position, lane in self.living:
                for key, value in found.items():
                    lane.log(key, value[position])
                with lane.may_end():
                    if testing:
                        lane.call("on_test_epoch_end")
                    row = lane.write(lane.global_step - (0 if testing else 1))
                    # of the last epoch
                    kept = {k: float(value) for k, value in lane.callback_metrics.items() if k.startswith("val/")}
                    measured[position] = kept | row
                    lane.call(f"on_{name}_end")
        return measured

    def _count(self, traces: Sequence[Any], target: Tensor, target_at: int | None, index: int) -> None:
        reads = [_Read(trace) for trace in traces]
        for position, lane in self.living:
            own = target if target_at is None else target.select(target_at, position)
            lane.call("on_test_batch_end", {"traces": [_Of(read, position) for read in reads]}, (None, own), index)

    def _finish(self, measured: Mapping[int, dict[str, float]]) -> None:
        tested = time.perf_counter()
        saved, drawn = self.saved_s, {"fit": 0.0, "test": 0.0}
        for callback in itertools.chain.from_iterable(lane.watching for lane in self.lanes):
            if isinstance(callback, Probe):
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
        ends = [partial(self._end, lane, measured[position], wall_s) for position, lane in self.living]
        for (position, lane), error in zip(self.living, _together(*ends), strict=True):
            for board in lane.loggers[1:]:
                board.log_hyperparams(
                    recipes.hyperparameters(config.plain(lane.cfg), lane.member.overrides), measured[position]
                )
            with lane.may_end():
                if error is not None:
                    raise error
                lane.end(Outcome("finished", lane.run.path, measured[position]))

    @staticmethod
    def _end(lane: Lane, measured: Mapping[str, float], wall_s: Mapping[str, float]) -> None:
        """Write down that a member has finished."""
        steps = lane.global_step - (0 if lane.start.found is None else lane.start.found.step)
        samples = steps * min(lane.parts.data.batch_size, len(lane.parts.data.train))
        lane.run.close_metrics()
        lane.run.update(
            status="finished",
            exit_code=0,
            metrics=dict(measured),
            wall_s=dict(wall_s),
            samples_per_s=samples / wall_s["fit"],
        )


def _together(*acts: Callable[[], object]) -> list[BaseException | None]:
    """Carry out what waits for the disk, for all members at once, whose flushes then become one; what each raised."""

    def attempt(act: Callable[[], object]) -> BaseException | None:
        try:
            act()
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(attempt, acts))


def _look_into(stacked: Network, network: Network, position: int) -> None:
    """Let the weights of a member's own network be those of its place in the stack, in the same memory."""
    modules = dict(network.named_modules())
    for key, whole in stacked.state_dict().items():
        path, _, name = key.rpartition(".")
        owner = modules[path]
        before = owner._parameters.get(name)
        if before is not None:
            before.data = whole[position].view(before.shape)
        else:
            buffer = cast(Tensor, owner._buffers[name])
            owner._buffers[name] = whole[position].view(buffer.shape)
