"""Optimisers, and the parameters that they update."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.spec.annotations import BelowOne, NonNegative, Positive, Stackable
from snnexp.spec.checked import check_fields

Role = Literal["weight", "bias", "neuron"]


class NamedParameter(NamedTuple):
    """A parameter that is trained.

    Args:
        name: in the network, ``layers.hidden1.synapse.weight``.
        role: ``weight`` or ``bias`` of a synapse, or ``neuron`` for a constant of a neuron's equation.
        value: the tensor; that of a stack has an axis of members in front.
    """

    name: str
    role: Role
    value: Tensor


class Parameters(list[Any]):
    """What an optimiser updates, in the form that classes of ``torch.optim`` take: parameters, or groups of them.

    Weight decay acts on synapses and feedback. A parameter of a neuron has a meaning and a unit of its own: pulled
    towards zero, a decay or a threshold becomes another neuron. Where there is decay, those parameters are in a group
    of their own, without it.

    Args:
        named: all that are trained.
        weight_decay: of the optimiser; without any, all parameters are one group.
    """

    def __init__(self, named: Iterable[NamedParameter], weight_decay: float = 0.0) -> None:
        self.named: tuple[NamedParameter, ...] = tuple(named)
        self._final = False
        """Whether settings of all groups are known, as in a stack, whose members have chosen them."""
        parts = [[each.value for each in self.named if (each.role == "neuron") is kept] for kept in (False, True)]
        if weight_decay and parts[1]:
            super().__init__([{"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}])
        else:
            super().__init__(each.value for each in self.named)

    @classmethod
    def from_groups(cls, groups: Iterable[dict[str, Any]]) -> "Parameters":
        """Groups whose settings are known; :meth:`by_role` leaves them as they are."""
        made = cls(())
        made.extend(groups)
        made._final = True
        return made

    def by_role(self, **settings: Mapping[str, Any]) -> list[Any]:
        """Groups with settings of their own for roles, as ``by_role(neuron={"lr": 1e-4})``.

        Args:
            settings: of a role, numbers for its group; parameters of other roles stay as they are.
        """
        if self._final:
            return [*self]
        roles = {id(each.value): each.role for each in self.named}
        groups: dict[tuple[int, Any], dict[str, Any]] = {}
        for index, part in enumerate(self if isinstance(self[0], dict) else [{"params": [*self]}]):
            for value in part["params"]:
                role = roles[id(value)]
                key = index, role if role in settings else None
                group = groups.setdefault(key, {**part, **settings.get(role, {}), "params": []})
                group["params"].append(value)
        return [*groups.values()]


@dataclass(frozen=True)
class OptimizerFactory:
    """``factory(parameters)`` makes an optimiser of PyTorch's for :class:`Parameters`; abstract."""

    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: it updates element by element.

    Not inherited: a class says it of what it computes itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        """The optimiser.

        One that has a schedule of its own takes ``(parameters, total_steps)``, with the number of steps of the whole
        training, and returns ``{"optimizer": ..., "lr_scheduler": {"scheduler": ..., "interval": "step"}}`` as
        Lightning does.
        """
        raise NotImplementedError


def _with_neuron_lr(parameters: Parameters, neuron_lr: float | None) -> list[Any]:
    """Parameters in groups, those of neurons with a learning rate of their own where there is one."""
    return parameters if neuron_lr is None else parameters.by_role(neuron={"lr": neuron_lr, "name": "neuron"})


def learning_rates(groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The learning rates of an optimiser: ``lr``, and ``lr/neuron`` of parameters that have one of their own."""
    found: dict[str, float] = {}
    for group in groups:
        found.setdefault(f"lr/{group['name']}" if "name" in group else "lr", float(group["lr"]))
    return found


@dataclass(frozen=True)
class L2Adam(OptimizerFactory):
    """Adam (Kingma and Ba, 2015); :class:`torch.optim.Adam`.

    Args:
        lr: learning rate.
        betas: decay of the means of the gradient and of its square.
        eps: added to the square root of the latter.
        weight_decay: an L2 penalty: the gradient of a weight w has ``weight_decay`` w added.
        neuron_lr: learning rate of the parameters of neurons; None for ``lr``.
    """

    stackable = True
    lr: Stackable[Positive] = 1e-3
    betas: Stackable[tuple[BelowOne, BelowOne]] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Stackable[NonNegative] = 0.0
    neuron_lr: Positive | None = None

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        groups = _with_neuron_lr(parameters, self.neuron_lr)
        return torch.optim.Adam(
            groups, self.lr, _floats(self.betas), self.eps, weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True)
class AdamW(OptimizerFactory):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019); :class:`torch.optim.AdamW`.

    Args:
        lr: learning rate.
        betas: as of :class:`L2Adam`.
        eps: as of :class:`L2Adam`.
        weight_decay: a weight w becomes w (1 - lr ``weight_decay``) in each step.
        neuron_lr: learning rate of the parameters of neurons; None for ``lr``.
    """

    stackable = True
    lr: Stackable[Positive] = 1e-3
    betas: Stackable[tuple[BelowOne, BelowOne]] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Stackable[NonNegative] = 0.01
    neuron_lr: Positive | None = None

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        groups = _with_neuron_lr(parameters, self.neuron_lr)
        return torch.optim.AdamW(
            groups, self.lr, _floats(self.betas), self.eps, weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True)
class Adam(AdamW):
    """:class:`AdamW` without weight decay by default, the meaning of ``optimizer=adam`` in earlier configs."""

    stackable = True
    weight_decay: Stackable[NonNegative] = 0.0


@dataclass(frozen=True)
class Adamax(OptimizerFactory):
    """Adam with the maximum norm (Kingma and Ba, 2015); :class:`torch.optim.Adamax`.

    Args:
        lr: learning rate.
        betas: as of :class:`L2Adam`.
        eps: added to the maximum norm.
        weight_decay: an L2 penalty, as of :class:`L2Adam`.
        neuron_lr: learning rate of the parameters of neurons; None for ``lr``.
    """

    stackable = True
    lr: Stackable[Positive] = 2e-3
    betas: Stackable[tuple[BelowOne, BelowOne]] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Stackable[NonNegative] = 0.0
    neuron_lr: Positive | None = None

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        groups = _with_neuron_lr(parameters, self.neuron_lr)
        return torch.optim.Adamax(groups, self.lr, _floats(self.betas), self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class SGD(OptimizerFactory):
    """Stochastic gradient descent with momentum; :class:`torch.optim.SGD`.

    Args:
        lr: learning rate.
        momentum: the part of the step before that is added.
        weight_decay: an L2 penalty, as of :class:`L2Adam`.
        nesterov: whether momentum is that of Nesterov, which must then be above 0.
        neuron_lr: learning rate of the parameters of neurons; None for ``lr``.
    """

    stackable = True
    lr: Stackable[Positive] = 0.1
    momentum: Stackable[BelowOne] = 0.9
    weight_decay: Stackable[NonNegative] = 0.0
    nesterov: bool = False
    neuron_lr: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov: got true, and momentum is 0, must be more")

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        groups, decay = _with_neuron_lr(parameters, self.neuron_lr), self.weight_decay
        return torch.optim.SGD(groups, self.lr, self.momentum, weight_decay=decay, nesterov=self.nesterov)


@dataclass(frozen=True)
class RMSprop(OptimizerFactory):
    """Gradients divided by the root of their mean square (Hinton, 2012); :class:`torch.optim.RMSprop`.

    Args:
        lr: learning rate.
        alpha: decay of the mean square.
        eps: added to its root.
        momentum: the part of the step before that is added.
        weight_decay: an L2 penalty, as of :class:`L2Adam`.
        neuron_lr: learning rate of the parameters of neurons; None for ``lr``.
    """

    stackable = True
    lr: Stackable[Positive] = 0.01
    alpha: Stackable[BelowOne] = 0.99
    eps: Positive = 1e-8
    momentum: Stackable[BelowOne] = 0.0
    weight_decay: Stackable[NonNegative] = 0.0
    neuron_lr: Positive | None = None

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        groups = _with_neuron_lr(parameters, self.neuron_lr)
        return torch.optim.RMSprop(
            groups, self.lr, self.alpha, self.eps, weight_decay=self.weight_decay, momentum=self.momentum
        )


class TorchOptimizer:
    """An optimiser that a config names by its class in ``torch.optim``.

    Args:
        make: calls the class with parameters, or groups of them.
        weight_decay: what the config sets.
    """

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer], weight_decay: float) -> None:
        self.make, self.weight_decay = make, weight_decay

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        return self.make(parameters)


def _floats(pair: tuple[float, float]) -> tuple[float, float]:
    # whole numbers, as of [0,0], are no floats to PyTorch
    return float(pair[0]), float(pair[1])


def build_optimizer(factory: Any, parameters: Sequence[Any], total_steps: int) -> dict[str, Any]:
    """What a factory makes, as Lightning takes it: ``{"optimizer": ...}``, and perhaps a schedule of its own.

    Args:
        factory: an :class:`OptimizerFactory`.
        parameters: :class:`Parameters`, or the groups of a stack.
        total_steps: of the whole training, for a factory that takes them.
    """
    takes_steps = len(inspect.signature(factory).parameters) > 1
    made = factory(parameters, total_steps) if takes_steps else factory(parameters)
    return made if isinstance(made, dict) else {"optimizer": made}
