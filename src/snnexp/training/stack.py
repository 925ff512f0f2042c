"""Tasks that differ only in numeric values, stacked into one model.

Features are ``(M, n)``, traces ``[T, B, M, n]``, weights ``[M, out, in]``. Losses and metrics are computed by the
functions of a single task, mapped over the member axis by ``vmap``.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import vmap

from snnexp import kernels, metrics
from snnexp.decoders import pooled
from snnexp.network import Network, stack
from snnexp.neurons import statistic_names
from snnexp.optimizers import Parameters, build_optimizer
from snnexp.regularizers import Penalty
from snnexp.schedules import Constant
from snnexp.seeds import fold, seed_all
from snnexp.sparse import SparseSpikes
from snnexp.training.observers import is_logged_step
from snnexp.training.stack_member import StackMember, update_settings
from snnexp.training.stacked_optimizer import OptimizerGroup, load_states
from snnexp.training.task import Task


class Stacked(Task):
    """One task for all members, which differ only in numeric values.

    Losses and metrics have shape ``[M]``; the sum of the losses is minimized.

    Args:
        members: the members, each with its own initial weights.
        kernel: the kernel of the neurons.
        device: the device.
    """

    def __init__(self, members: Sequence[StackMember], kernel: str, device: torch.device) -> None:
        first = members[0].parts
        for member in members:
            member.task.to(device)
        network = stack([member.parts.network for member in members])
        task = first.task
        super().__init__(
            network,
            task.encode,
            task.inputs_are_spikes,
            first.loss,
            task.measures,
            task.optimizer,
            task.decoder,
            task.penalties,
            task.schedule,
        )
        self.means = metrics.Totals(task.measures, stacked=True)
        self.to(device)
        self.kernel = kernels.use(network, kernel, device, stacked=True)
        self.members = members
        encoders = [member.start.cfg.encoder for member in members]
        self.encoders_agree = all(encoder == encoders[0] for encoder in encoders)
        self.batch_position: tuple[Any, ...] = ()
        """Position of the current batch, for seeding."""
        self.numbers: dict[Any, list[Tensor]] = {}
        self.optimizer_groups: list[OptimizerGroup] = []
        for position, member in enumerate(members):
            member.position = position
            if not member.ended:
                _alias_weights(network, member.parts.network, position)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.batch_position = ("train", self.trainer.current_epoch, batch_idx, 0)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batch_position = ("evaluate", batch_idx, 0)

    on_test_batch_start = on_validation_batch_start

    def training_step(self, batch: Any, index: int) -> dict[str, Any]:
        outputs = super().training_step(batch, index)
        minimized = outputs["loss"]
        return {
            **outputs,
            "losses": outputs["unregularized_loss"],
            "minimized": minimized.detach(),
            "loss": minimized.sum(),
        }

    def rates(self) -> dict[str, Tensor]:
        """Return the learning rates by name, each ``[M]``."""
        by_member = [member.optimizer_group.rates() for member in self.members]
        several = len(by_member[0]) > 1 or not isinstance(self.schedule, Constant)
        return {name: torch.tensor([own[name] for own in by_member]) for name in by_member[0]} if several else {}

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        for member, own in zip(self.members, value.unbind(0), strict=True):
            member.log(name, own)

    @torch.no_grad()
    def split_by_member(self, outputs: Any, batch: Any) -> list[tuple[Any, Tensor]]:
        traces, (_, target, target_axis) = outputs["traces"], batch
        targets = [target] * len(self.members) if target_axis is None else target.unbind(target_axis)
        reads = [_CachedTrace(trace) for trace in traces]
        shares: list[dict[str, Any]] = [
            {"traces": [_MemberTrace(read, position) for read in reads]} for position in range(len(self.members))
        ]
        if "losses" in outputs:
            finite = self._finite(outputs["minimized"], traces)
            columns = outputs["losses"].unbind(0), outputs["minimized"].unbind(0), finite
            for own, loss, minimized, is_finite in zip(shares, *columns, strict=True):
                samples = outputs["samples"]
                own |= {"loss": loss, "minimized": minimized, "samples": samples, "finite": is_finite}
        return list(zip(shares, targets, strict=True))

    def _step(
        self, batch: Any, statistics: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | SparseSpikes, list[Any]]:
        values, target, target_axis = batch
        inputs = self._encoded(values)
        traces = self.network(inputs, statistics=statistics)
        return self._losses(traces[-1], target, target_axis), self.penalize(traces), inputs, traces

    def _encoded(self, values: Tensor) -> Tensor | SparseSpikes:
        """Encode a batch; each member has its own random numbers and encoder settings."""
        first = self.members[0].parts
        if not first.encoder.draws and self.encoders_agree:
            return self.encode(values)
        axis = 2 if first.data.sequences else 1
        shape = [*values.shape[:axis], len(self.members), *values.shape[axis + 1 :]]
        encoded = []
        for member, column in zip(self.members, values.expand(shape).unbind(axis), strict=True):
            seed_all(fold(member.start.cfg.seed, *self.batch_position))
            encoded.append(cast(Tensor, member.task.encode(column)))
        return torch.stack(encoded, 2)

    def _losses(self, trace: Any, target: Tensor, target_axis: int | None) -> Tensor:
        """Return the loss of each member, ``[M]``."""
        steps = trace.num_steps
        numbers = self._numbers(steps, lambda member: member.task.loss.numbers(steps))

        def member_loss(parts: dict[str, Tensor], target: Tensor, *numbers: Tensor) -> Tensor:
            return self.loss.compare(pooled(self.decoder, _member_view(trace, parts)), target, *numbers)

        parts = _statistics(trace, statistic_names(self.loss.reads))
        return vmap(member_loss, (-2, target_axis, *[0] * len(numbers)))(parts, target, *numbers)

    def penalize(self, traces: Sequence[Any]) -> dict[str, Tensor]:
        """Return the penalties by name, each ``[M]``."""
        by_layer = dict(zip(self.network.neurons(), traces, strict=True))
        return {name: self._penalties(name, penalty, by_layer) for name, penalty in self.penalties.items()}

    def _penalties(self, name: str, penalty: Penalty, traces: Mapping[str, Any]) -> Tensor:
        numbers = self._numbers(name, lambda member: member.task.penalties[name].numbers())

        def member_penalty(parts: dict[str, dict[str, Tensor]], *numbers: Tensor) -> Tensor:
            return penalty.penalty(
                {layer: _member_view(traces[layer], each) for layer, each in parts.items()}, *numbers
            )

        parts = {layer: _statistics(traces[layer], statistic_names(penalty.reads)) for layer in self.penalized[name]}
        return vmap(member_penalty, (-2, *[0] * len(numbers)))(parts, *numbers)

    def _numbers(self, key: Any, numbers: Callable[[StackMember], Sequence[Any]]) -> list[Tensor]:
        """Return the numeric settings of a part: scalars as ``[M]``, lists as ``[M, *]``."""
        if key not in self.numbers:
            columns = zip(*map(numbers, self.members), strict=True)
            self.numbers[key] = [torch.tensor(column, dtype=torch.float32, device=self.device) for column in columns]
        return self.numbers[key]

    @torch.no_grad()
    def _measured(self, traces: list[Any], batch: Any, split: str) -> dict[str, metrics.State]:
        _, target, target_axis = batch

        def member_states(parts: list[Any], target: Tensor) -> dict[str, metrics.State]:
            return super(Stacked, self)._measured(parts, (target, target), split)

        return self._over_members(member_states, traces, target, target_axis)

    def _operations(self, traces: list[Any], inputs: Tensor | SparseSpikes) -> dict[str, metrics.State]:
        dense = inputs.dense() if isinstance(inputs, SparseSpikes) else inputs
        return self._over_members(super()._operations, traces, dense, None if dense.shape[2] == 1 else 2)

    def _over_members(
        self,
        function: Callable[[list[Any], Tensor], dict[str, metrics.State]],
        traces: Sequence[Any],
        more: Tensor,
        axis: int | None,
    ) -> dict[str, metrics.State]:
        """Map a function of one member's traces and ``more`` over all members; return ``[M]`` by name."""
        # an evaluation keeps exactly the statistics that are read
        tensors = [
            _statistics(trace, self.statistics[name])
            for name, trace in zip(self.network.neurons(), traces, strict=True)
        ]

        def member_function(tensors: Any, more: Tensor) -> dict[str, metrics.State]:
            return function([_member_view(*pair) for pair in zip(traces, tensors, strict=True)], more)

        return vmap(member_function, (-2, axis))(tensors, more)

    def _finite(self, losses: Tensor, traces: Sequence[Any]) -> list[bool]:
        """Check quickly if the values of each member are finite; False may be a false alarm, if a sum overflows."""
        logged = is_logged_step(self.trainer)
        if losses.device.type != "cpu" and not logged:
            # reading would synchronize with the device
            return [True] * len(self.members)
        sums = losses.clone()
        if logged:
            for trace in traces:
                for part in trace.state:
                    sums += part.sum(-1).sum(0)
            for group in self.optimizer_groups:
                for tensor in group.tensors():
                    sums[group.where] += tensor.flatten(1).sum(1)
        return cast(list[bool], torch.isfinite(sums).tolist())

    def configure_optimizers(self) -> Any:
        """Make one optimizer; members with equal settings share parameter groups of weight views."""
        weights, lengths = [*self.network.parameters()], self.lengths()
        equal = itertools.groupby(self.members, key=lambda member: update_settings(member.start.cfg))
        self.optimizer_groups = [OptimizerGroup([*members], weights, lengths) for _, members in equal]
        groups = Parameters.from_groups(entry for group in self.optimizer_groups for entry in group.groups)
        configuration = self.scheduled(build_optimizer(self.optimizer, groups, lengths[0]), *lengths)
        at = 0
        for group in self.optimizer_groups:
            at = group.assign_groups(configuration, at)
            group.require_own_settings()
            for member in group.members:
                member.optimizer_group = group
        if any(member.is_training and member.start.checkpoint is not None for member in self.members):
            load_states(configuration, [group.loaded_state() for group in self.optimizer_groups])
        return configuration

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradient norm of each member separately."""
        if gradient_clip_val is None:
            return
        gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(each.flatten(1), dim=1) for each in gradients])
        # same formula as torch.nn.utils.clip_grad_norm_
        factors = (gradient_clip_val / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for each in gradients:
            each.mul_(factors.view(-1, *[1] * (each.ndim - 1)))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in self.optimizer_groups:
            group.take_gradients()

    def optimizer_step(self, *arguments: Any) -> None:
        super().optimizer_step(*arguments)
        # free the memory before the next forward pass
        for weight in itertools.chain(self.network.parameters(), *(group.views for group in self.optimizer_groups)):
            weight.grad = None

    def optimizer_zero_grad(self, *arguments: Any) -> None:
        """Do nothing: :meth:`optimizer_step` clears the gradients."""


def _statistics(trace: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Return statistics of a trace by name; the member axis is the second to last."""
    return {name: getattr(trace, name) for name in names}


def _member_view(trace: Any, parts: Mapping[str, Tensor]) -> SimpleNamespace:
    """Return the statistics of one member as an object that a part can read."""
    return SimpleNamespace(num_steps=trace.num_steps, samples=trace.samples, **parts)


class _CachedTrace:
    """A trace of the stack that computes each statistic once."""

    def __init__(self, trace: Any) -> None:
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trace, name)
        setattr(self, name, value)
        return value


class _MemberTrace:
    """The part of a stacked trace that belongs to one member."""

    def __init__(self, trace: _CachedTrace, member: int) -> None:
        self._trace, self._member = trace, member

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trace, name)
        if isinstance(value, Tensor):
            return value.select(-2, self._member)
        if isinstance(value, tuple):
            return type(value)(*(part.select(-2, self._member) for part in value))
        return value


def _alias_weights(stacked: Network, network: Network, position: int) -> None:
    """Make the weights of a member's network views of its slice of the stack."""
    modules = dict(network.named_modules())
    for key, whole in stacked.state_dict().items():
        path, _, name = key.rpartition(".")
        owner = modules[path]
        parameter = owner._parameters.get(name)
        if parameter is not None:
            parameter.data = whole[position].view(parameter.shape)
        else:
            buffer = cast(Tensor, owner._buffers[name])
            owner._buffers[name] = whole[position].view(buffer.shape)
