"""Optimizers, and the parameters that they update."""

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
    """A trained parameter.

    Args:
        name: name in the network, such as ``layers.hidden1.synapse.weight``.
        role: ``weight`` or ``bias`` of a synapse, or ``neuron`` for a parameter of a neuron's equation.
        value: the tensor; in a stack, with the member axis first.
    """

    name: str
    role: Role
    value: Tensor


class Parameters(list[Any]):
    """Parameters or parameter groups, as ``torch.optim`` optimizers take them.

    Weight decay applies to synapses and feedback only: it would change the meaning of a neuron's parameters, such as a
    decay or a threshold. With weight decay, parameters of neurons are in a separate group without it.

    Args:
        named: all trained parameters.
        weight_decay: weight decay of the optimizer; if 0, there is a single group.
    """

    def __init__(self, named: Iterable[NamedParameter], weight_decay: float = 0.0) -> None:
        self.named: tuple[NamedParameter, ...] = tuple(named)
        self._final = False
        """Whether the groups already have all settings, as in a stack."""
        others = [each.value for each in self.named if each.role != "neuron"]
        neurons = [each.value for each in self.named if each.role == "neuron"]
        if weight_decay and neurons:
            super().__init__([{"params": others}, {"params": neurons, "weight_decay": 0.0}])
        else:
            super().__init__(each.value for each in self.named)

    @classmethod
    def from_groups(cls, groups: Iterable[dict[str, Any]]) -> "Parameters":
        """Create parameters from groups with final settings, which :meth:`by_role` does not change."""
        parameters = cls(())
        parameters.extend(groups)
        parameters._final = True
        return parameters

    def by_role(self, **settings: Mapping[str, Any]) -> list[Any]:
        """Return parameter groups with different settings per role, such as ``by_role(neuron={"lr": 1e-4})``.

        Args:
            settings: by role, the settings of its group; other roles keep the default settings.
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
    """Abstract base class of optimizer factories; ``factory(parameters)`` returns a ``torch.optim.Optimizer``."""

    stackable: ClassVar[bool] = False
    """Whether it can be stacked: updates are elementwise.

    Not inherited: each subclass must set it itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Create the optimizer.

        A factory with its own schedule takes ``(parameters, total_steps)``, where ``total_steps`` is the number of
        training steps, and returns ``{"optimizer": ..., "lr_scheduler": {"scheduler": ..., "interval": "step"}}``, as
        in Lightning.
        """
        raise NotImplementedError


def _with_neuron_lr(parameters: Parameters, neuron_lr: float | None) -> list[Any]:
    """Return the parameters, in groups with a separate learning rate for neurons if it is given."""
    return parameters if neuron_lr is None else parameters.by_role(neuron={"lr": neuron_lr, "name": "neuron"})


def learning_rates(groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the learning rates of parameter groups: ``lr``, and ``lr/neuron`` of a separate group."""
    by_name: dict[str, float] = {}
    for group in groups:
        by_name.setdefault(f"lr/{group['name']}" if "name" in group else "lr", float(group["lr"]))
    return by_name


@dataclass(frozen=True)
class L2Adam(OptimizerFactory):
    """Adam (Kingma and Ba, 2015); :class:`torch.optim.Adam`.

    Args:
        lr: learning rate.
        betas: decay rates of the running averages of the gradient and its square.
        eps: added to the denominator for numerical stability.
        weight_decay: L2 penalty: ``weight_decay`` w is added to the gradient of a weight w.
        neuron_lr: learning rate of neuron parameters; None for ``lr``.
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
        betas: see :class:`L2Adam`.
        eps: see :class:`L2Adam`.
        weight_decay: decoupled weight decay: a weight w is multiplied by 1 - lr ``weight_decay`` in each step.
        neuron_lr: learning rate of neuron parameters; None for ``lr``.
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
    """:class:`AdamW` with a default weight decay of 0, the meaning of ``optimizer=adam`` in earlier configs."""

    stackable = True
    weight_decay: Stackable[NonNegative] = 0.0


@dataclass(frozen=True)
class Adamax(OptimizerFactory):
    """Adam with the infinity norm (Kingma and Ba, 2015); :class:`torch.optim.Adamax`.

    Args:
        lr: learning rate.
        betas: see :class:`L2Adam`.
        eps: added to the infinity norm for numerical stability.
        weight_decay: L2 penalty, see :class:`L2Adam`.
        neuron_lr: learning rate of neuron parameters; None for ``lr``.
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
        momentum: momentum factor.
        weight_decay: L2 penalty, see :class:`L2Adam`.
        nesterov: use Nesterov momentum; requires a momentum above 0.
        neuron_lr: learning rate of neuron parameters; None for ``lr``.
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
            raise ConfigError("nesterov: got true, requires a momentum above 0")

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        groups, decay = _with_neuron_lr(parameters, self.neuron_lr), self.weight_decay
        return torch.optim.SGD(groups, self.lr, self.momentum, weight_decay=decay, nesterov=self.nesterov)


@dataclass(frozen=True)
class RMSprop(OptimizerFactory):
    """RMSprop (Hinton, 2012); :class:`torch.optim.RMSprop`.

    Args:
        lr: learning rate.
        alpha: decay rate of the running average of the squared gradient.
        eps: added to the denominator for numerical stability.
        momentum: momentum factor.
        weight_decay: L2 penalty, see :class:`L2Adam`.
        neuron_lr: learning rate of neuron parameters; None for ``lr``.
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
    """A factory for a ``torch.optim`` class named in a config.

    Args:
        make: calls the class with parameters or parameter groups.
        weight_decay: weight decay set in the config.
    """

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer], weight_decay: float) -> None:
        self.make, self.weight_decay = make, weight_decay

    def __call__(self, parameters: Parameters) -> torch.optim.Optimizer:
        return self.make(parameters)


def _floats(pair: tuple[float, float]) -> tuple[float, float]:
    # PyTorch requires floats, the config may have integers
    return float(pair[0]), float(pair[1])


def build_optimizer(factory: Any, parameters: Sequence[Any], total_steps: int) -> dict[str, Any]:
    """Call a factory and return ``{"optimizer": ...}``, as in Lightning, plus its own ``lr_scheduler``, if any.

    Args:
        factory: an :class:`OptimizerFactory`.
        parameters: :class:`Parameters`, or the groups of a stack.
        total_steps: number of training steps, passed to a factory that takes it.
    """
    takes_steps = len(inspect.signature(factory).parameters) > 1
    result = factory(parameters, total_steps) if takes_steps else factory(parameters)
    return result if isinstance(result, dict) else {"optimizer": result}
