"""Optimisers, and the parameters that they update."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from snnexp.spec.annotations import BelowOne, NonNegative, Positive, Stackable
from snnexp.spec.checked import check_fields

Role = Literal["weight", "bias", "neuron"]


class Named(NamedTuple):
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

    def __init__(self, named: Iterable[Named], weight_decay: float = 0.0) -> None:
        self.named: tuple[Named, ...] = tuple(named)
        self.are_final = False
        """Whether settings of all groups are known, as in a stack, whose members have chosen them."""
        parts = [[each.value for each in self.named if (each.role == "neuron") is kept] for kept in (False, True)]
        if weight_decay and parts[1]:
            super().__init__([{"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}])
        else:
            super().__init__(each.value for each in self.named)

    @classmethod
    def of_groups(cls, groups: Iterable[dict[str, Any]]) -> "Parameters":
        """Groups whose settings are known; :meth:`by_role` leaves them as they are."""
        made = cls(())
        made.extend(groups)
        made.are_final = True
        return made

    def by_role(self, **settings: Mapping[str, Any]) -> list[Any]:
        """Groups with settings of their own for roles, as ``by_role(neuron={"lr": 1e-4})``.

        Args:
            settings: of a role, numbers for its group; parameters of other roles stay as they are.
        """
        if self.are_final:
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


@dataclass(frozen=True)
class Adam(OptimizerFactory):
    """Adam (Kingma and Ba, 2015), with decoupled weight decay where there is one (Loshchilov and Hutter, 2019)."""

    stackable = True
    lr: Stackable[Positive] = 1e-3
    betas: Stackable[tuple[BelowOne, BelowOne]] = (0.9, 0.999)
    weight_decay: Stackable[NonNegative] = 0.0

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            # whole numbers, as of [0,0], are no floats to PyTorch
            parameters,
            self.lr,
            (float(self.betas[0]), float(self.betas[1])),
            weight_decay=self.weight_decay,
            fused=True,
        )


@dataclass(frozen=True)
class SGD(OptimizerFactory):
    """Stochastic gradient descent with momentum."""

    stackable = True
    lr: Stackable[Positive] = 0.1
    momentum: Stackable[BelowOne] = 0.9
    weight_decay: Stackable[NonNegative] = 0.0

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)


def made_by(factory: Any, parameters: Sequence[Any], total_steps: int) -> dict[str, Any]:
    """What a factory makes, as Lightning takes it: ``{"optimizer": ...}``, and perhaps a schedule of its own.

    Args:
        factory: an :class:`OptimizerFactory`.
        parameters: :class:`Parameters`, or the groups of a stack.
        total_steps: of the whole training, for a factory that takes them.
    """
    takes_steps = len(inspect.signature(factory).parameters) > 1
    made = factory(parameters, total_steps) if takes_steps else factory(parameters)
    return made if isinstance(made, dict) else {"optimizer": made}
