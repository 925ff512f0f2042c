"""What every neuron layer shares: shapes, parameters, and the step from a current to a trace."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from snnexp import surrogates
from snnexp.errors import ConfigError
from snnexp.initializers import Initializer
from snnexp.neurons.statistics import need_trace
from snnexp.neurons.trace import ReducedTrace, Trace, TupleTrace, as_trace
from snnexp.spec import checked, values
from snnexp.spec.annotations import AtLeast, AtMost, Features, Positive
from snnexp.surrogates import Surrogate

T = TypeVar("T")
NeuronParameter: TypeAlias = T | Tensor | Initializer
"""A number, one for each neuron, or what draws them; ``NeuronParameter[Fraction]`` bounds the numbers."""
Rate = Annotated[Positive, AtMost("1 / dt")]
"""An inverse time constant, 1/s: in one step, no more can leak than all there is."""
Duration = Annotated[Positive, AtLeast("dt")]
"""A time constant, in the unit of dt: no shorter than a step."""
ROUNDING = 1 + 1e-6
"""A bound counts as met by what exceeds it in the last digits of float32."""


class Kernel(Protocol):
    """How a neuron's equation is computed; :func:`reference` is the plain way, ``snnexp.kernels`` has faster ones.

    Args:
        neuron: the layer.
        current: ``[T, B, *N]``, or ``[1, B, *N]`` for one that stands for all steps.
        num_steps: T.
        state: the state before the first step.
        synapse: what the spikes go through next; the second result is what arrives behind it.
        statistics: names of statistics to return in a :class:`ReducedTrace`, none of which needs every step; None for a
            :class:`Trace`.
    """

    def __call__(
        self,
        neuron: Any,
        current: Tensor,
        num_steps: int,
        state: Any,
        synapse: nn.Module | None = None,
        statistics: Sequence[str] | None = None,
    ) -> tuple[Trace | ReducedTrace, Tensor | None]: ...


def reference(
    neuron: "Neuron",
    current: Tensor,
    num_steps: int,
    state: Any,
    synapse: nn.Module | None = None,
    statistics: Sequence[str] | None = None,
) -> tuple[Trace | ReducedTrace, Tensor | None]:
    """The neuron's own scan, then the synapse, once for all steps."""
    trace = _trace(neuron, "scan", neuron.scan(current.unbind(0) * (num_steps // len(current)), state))
    after = None if synapse is None else time_distributed(synapse, trace.spikes)
    return trace if statistics is None else trace.reduced(statistics), after


def _trace(neuron: "Neuron", method: str, found: Any) -> Trace:
    if not isinstance(found, Trace):
        what = f"{type(neuron).__name__}.{method} returned a {type(found).__name__}"
        raise TypeError(f"{what}, must return a snnexp.neurons.Trace")
    return found


def is_plain(module: nn.Module) -> bool:
    """Whether a call of a module is the ``forward`` of its class alone; else the module must be called."""
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    return not (hooks or "forward" in vars(module) or _has_any_global_hook())  # type: ignore[no-untyped-call]


def time_distributed(synapse: nn.Module, sequence: Tensor) -> Tensor:
    """Run a synapse once over the ``T * B`` samples of ``[T, B, *N]``."""
    weight = next(synapse.parameters(), sequence)
    return synapse(match_precision(sequence.flatten(0, 1), weight)).unflatten(0, sequence.shape[:2])  # type: ignore[no-any-return]


def match_precision(spikes: Tensor, weight: Tensor) -> Tensor:
    """Spikes, which are float32 at least, for a product with weights of a lower precision."""
    return spikes.to(weight.dtype) if weight.dtype.itemsize < 4 else spikes


def stacked_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for ``[B, in]``; with weights of M members ``[M, out, in]`` each takes its own of ``[B, M, in]``.

    ``[B, 1, in]`` is one input for all members, and a single product of it with all their weights.
    """
    if weight.ndim == 2:
        return F.linear(inputs, weight, bias)
    if inputs.shape[1] == 1:
        bias = None if bias is None else bias.flatten()
        return F.linear(inputs.squeeze(1), weight.flatten(0, 1), bias).view(-1, *weight.shape[:2])
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind):
        # which casts for PyTorch's own functions alone
        dtype = torch.get_autocast_dtype(kind)
        inputs, weight, bias = inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _StackedLinear.apply(inputs, weight, bias)  # type: ignore[no-any-return]


class _StackedLinear(torch.autograd.Function):
    """The product of each member; the gradient of the weights comes in their own layout, so that it is not copied."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        x, w = inputs.transpose(0, 1), weight.transpose(1, 2)
        y = torch.bmm(x, w) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, w)
        return y.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        inputs, weight = ctx.saved_tensors
        x, g = inputs.transpose(0, 1), gradient.transpose(0, 1)
        g_x = g_w = g_b = None
        if ctx.needs_input_grad[0]:
            g_x = torch.bmm(g, weight).transpose(0, 1)
        if ctx.needs_input_grad[1]:
            # a result of few columns takes many times as long as one of few rows
            _, rows, columns = weight.shape
            if rows <= columns:
                g_w = torch.bmm(g.transpose(1, 2), x)
            else:
                g_w = torch.bmm(x.transpose(1, 2), g).transpose(1, 2)
        if ctx.needs_input_grad[2]:
            g_b = g.sum(1)
        return g_x, g_w, g_b


def decay(beta: Tensor) -> Tensor:
    """beta clamped to [0, 1]; the gradient is that of beta there, ends included, and zero elsewhere."""
    return torch.where((beta < 0) | (beta > 1), beta.detach().clamp(0, 1), beta)


class Bounds(NamedTuple):
    """Where a learned parameter may be, and to what it is brought back."""

    low: float
    high: float
    floor: float
    ceiling: float

    @classmethod
    def of(cls, number: values.Number, at_most: float, at_least: float) -> "Bounds | None":
        """The bounds of a domain that training could leave; None where it has no ends.

        A value that must be positive is brought back to a thousandth of the most that it may be.
        """
        low = max(torch.finfo(torch.float32).tiny if number.open_low else number.low, at_least / ROUNDING)
        if math.isinf(low) and math.isinf(min(number.high, at_most)):
            return None
        floor = 1e-3 * at_most if number.open_low and math.isfinite(at_most) else low
        return cls(low, min(number.high, at_most * ROUNDING), max(floor, at_least), min(number.high, at_most))

    def violated_by(self, value: Tensor) -> Tensor:
        """Where a value is out of bounds."""
        return (value < self.low) | (value > self.high)


class Neuron(nn.Module):
    """A layer of neurons; abstract. A neuron states its equation in :meth:`scan`, one loop over time.

    Args:
        features: the neuron axes ``*N``, an int for a flat layer or a tuple such as ``(C, H, W)``.
    """

    spikes: ClassVar[bool] = True
    """Whether this neuron ever fires."""
    synapse_bias: ClassVar[bool] = True
    """Whether the synapse in front of this neuron has a bias."""
    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: :meth:`scan` computes neuron by neuron, and broadcasts ``[M, n]``.

    Not inherited: a class says it of what it computes itself."""
    time_unit_s: ClassVar[float] = 1.0
    """The unit of ``dt``, where this neuron has one, in seconds."""
    weights: ClassVar[tuple[str, ...]] = ()
    """Parameters that are weights of the feedback."""
    kernel: Kernel = staticmethod(reference)
    """What computes the equation; an instance may be given another."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.initializers: dict[str, tuple[Initializer, float, float]] = {}
        self.bounds: dict[str, Bounds] = {}
        """Of learned parameters, where training may not take them everywhere."""
        self.parameter_names: list[str] = []
        self.features = (features,) if isinstance(features, int) else tuple(features)
        if not self.features or any(size not in values.COUNT for size in self.features):
            raise ConfigError(f"features: got {features}, must be a positive int or a tuple of them")

    def forward(self, current: Tensor, num_steps: int | None = None, state: Any = None) -> Trace:
        """Run the neurons over time.

        Args:
            current: ``[T, B, *N]``, or ``[1, B, *N]`` with ``num_steps`` for a current that does not change.
            num_steps: T; needed only where the time axis of ``current`` has length 1 and stands for more.
            state: the ``state`` of an earlier trace; zeros without one.

        Raises:
            ValueError: the shapes do not fit.
        """
        trace: Any = self._run(current, num_steps, state)[0]
        return trace if is_plain(self) else TupleTrace(*trace)

    def unroll(
        self,
        current: Tensor,
        num_steps: int | None = None,
        state: Any = None,
        synapse: nn.Module | None = None,
        statistics: Sequence[str] | None = None,
    ) -> tuple[Trace | ReducedTrace, Tensor | None]:
        """:meth:`forward` with what a network needs besides: see :class:`Kernel` for ``synapse`` and ``statistics``.

        If one of ``statistics`` needs every step, the full trace is returned. A neuron with hooks is called, and the
        synapse then gets the spikes that the hooks return.
        """
        statistics = None if statistics is None or need_trace(statistics) else statistics
        if is_plain(self) and type(self).forward is Neuron.forward:
            return self._run(current, num_steps, state, synapse, statistics)
        trace = as_trace(_trace(self, "forward", self(current, num_steps, state)))
        after = None if synapse is None else time_distributed(synapse, trace.spikes)
        return trace if statistics is None else trace.reduced(statistics), after

    def _run(
        self,
        current: Tensor,
        num_steps: int | None,
        state: Any,
        synapse: nn.Module | None = None,
        statistics: Sequence[str] | None = None,
    ) -> tuple[Trace | ReducedTrace, Tensor | None]:
        if current.ndim < 3 or tuple(current.shape[2:]) != self.features:
            expected = ", ".join(["T", "B", *map(str, self.features)])
            raise ValueError(f"current has shape {list(current.shape)}, must be [{expected}]")
        length = len(current)
        num_steps = length if num_steps is None else num_steps
        if length not in (1, num_steps):
            raise ValueError(f"current has {length} time steps, num_steps is {num_steps}")
        if not num_steps:
            raise ValueError("current has no time steps; at least one is needed")
        # a synapse may run in lower precision, a state may not: in bfloat16 a decay of .999 is 1
        current = current.float() if current.dtype.itemsize < 4 else current
        state = self.zero_state(current[0]) if state is None else state
        if any(part.shape != current.shape[1:] for part in state):
            shapes = [list(part.shape) for part in state]
            raise ValueError(f"state has shapes {shapes}, must be {list(current.shape[1:])} as the current is")
        # the other kernels call no module within the neuron, and torch.compile cannot trace their gradients
        slow = torch.compiler.is_compiling() or not all(map(is_plain, self.children()))
        kernel = reference if slow else self.kernel
        return kernel(self, current, num_steps, state, synapse, statistics)

    def zero_state(self, current: Tensor) -> Any:
        """The state before the first step, for a current ``[B, *N]``."""
        raise NotImplementedError

    def scan(self, current: Sequence[Tensor], state: Any) -> Trace:
        """The equation, one step after the other; ``current`` holds T tensors ``[B, *N]``."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw the parameters that have an initializer anew, in the order in which they were added."""
        with torch.no_grad():
            for name, (initializer, *ends) in self.initializers.items():
                self.assign(name, self._initial_value(name, initializer, *ends))

    def assign(self, name: str, value: Tensor) -> None:
        """Set a parameter in place, also one that is kept in another form, such as its logarithm."""
        if parametrize.is_parametrized(self, name):
            setattr(self, name, value)
        else:
            getattr(self, name).copy_(value)

    def reset_synapse(self, synapse: nn.Linear | nn.Conv2d) -> None:
        """Draw the weights of the synapse in front: PyTorch's own, unless a neuron's model has others."""
        synapse.reset_parameters()

    def reset_feedback(self) -> None:
        """Draw the weights of the synapse within the layer, where there is one."""

    @property
    def feedback_synapse(self) -> nn.Linear | nn.Conv2d | int | None:
        """The synapse, or the fan-out of a spike, within the layer; None without feedback."""
        return None

    def equation_parameters(self) -> Iterator[nn.Parameter]:
        """The learned parameters of the equation, without the weights of the feedback."""
        trained = (self._trained(name) for name in self.parameter_names if name not in self.weights)
        yield from (value for value in trained if isinstance(value, nn.Parameter))

    def _trained(self, name: str) -> Tensor:
        """What is kept and trained for a parameter: itself, or its logarithm."""
        parametrizations = (
            cast(nn.ModuleDict, self.parametrizations) if parametrize.is_parametrized(self, name) else None
        )
        return cast(Tensor, getattr(self, name) if parametrizations is None else parametrizations[name].original)

    def stack_members(self, members: Sequence["Neuron"]) -> None:
        """Be M layers side by side: their axis is the first neuron axis. Parameters are not touched here."""
        self.features = (len(members), *self.features)
        if isinstance(getattr(self, "surrogate", None), Surrogate):
            like = next(iter(self.state_dict().values()))
            self.surrogate: Any = surrogates.stack([cast(Any, member).surrogate for member in members], like)

    @torch.no_grad()
    def project(self) -> dict[str, Tensor]:
        """Bring learned parameters back into the domains that their start values were held to; frozen ones stay.

        Returns:
            By parameter, a bool tensor that tells whether any value had left its domain.
        """
        left = {}
        for name, bounds in self.bounds.items():
            kept = self._trained(name)
            if not kept.requires_grad:
                continue
            value = getattr(self, name)
            outside = bounds.violated_by(value)
            inside = value.clamp(bounds.floor, bounds.ceiling)
            # what is inside stays as it is kept: a way there and back would round it at every step
            kept.copy_(torch.where(outside, inside if kept is value else inside.log(), kept))
            left[name] = outside.any()
        return left

    def add_parameter(
        self,
        name: str,
        value: NeuronParameter[float],
        *,
        learn: bool = False,
        at_most: float = math.inf,
        at_least: float = -math.inf,
    ) -> None:
        """Draw or take a start value, hold it against the annotation of the argument of that name, and keep it.

        Raises:
            ConfigError: the value, or one that was drawn, lies outside its domain or does not fit ``features``.
        """
        start = self._initial_value(name, value, at_most, at_least)
        self.parameter_names.append(name)
        if learn and (bounds := Bounds.of(self._number(name), at_most, at_least)) is not None:
            self.bounds[name] = bounds
        if isinstance(value, Initializer):
            self.initializers[name] = (value, at_most, at_least)
        if learn:
            self.register_parameter(name, nn.Parameter(start))
        else:
            self.register_buffer(name, start)

    def _number(self, name: str) -> values.Number:
        """The numbers that a parameter may be."""
        return checked.number(type(self), name)

    def _initial_value(
        self, name: str, value: NeuronParameter[float], at_most: float, at_least: float = -math.inf
    ) -> Tensor:
        if not isinstance(value, (int, float, Tensor, Initializer)):
            raise ConfigError(f"{name}: got a {type(value).__name__}, must be a number, a tensor or an initializer")
        start = value(self.features) if isinstance(value, Initializer) else torch.as_tensor(value).detach().clone()
        start = start if start.is_floating_point() else start.float()
        number = self._number(name)
        for x in start.flatten().tolist():
            if x not in number:
                raise ConfigError(f"{name}: a start value is {x:g}, must be {number}")
            if x > at_most * ROUNDING:
                raise ConfigError(f"{name}: a start value is {x:g}, must be at most {at_most:g}")
            if x * ROUNDING < at_least:
                raise ConfigError(f"{name}: a start value is {x:g}, must be at least {at_least:g}")
        try:
            fits = start.expand(self.features).shape == self.features
        except RuntimeError:
            fits = False
        if not fits:
            raise ConfigError(f"{name}: got shape {list(start.shape)}, must fit the features {list(self.features)}")
        return start

    def extra_repr(self) -> str:
        return f"{math.prod(self.features)} neurons, features={self.features}"
