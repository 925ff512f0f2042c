"""Base class of neuron layers: shapes, parameters, and the computation of a trace from a current."""

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
"""A number, a tensor with one value per neuron, or an initializer; ``NeuronParameter[Fraction]`` bounds the values."""
Rate = Annotated[Positive, AtMost("1 / dt")]
"""An inverse time constant in 1/s, at most 1 / dt."""
Duration = Annotated[Positive, AtLeast("dt")]
"""A time constant in the unit of dt, at least dt."""
ROUNDING = 1 + 1e-6
"""Relative tolerance of bounds, for float32 rounding."""


class Kernel(Protocol):
    """An implementation of a neuron's equation: :func:`reference`, or a faster one of ``snnexp.kernels``.

    Args:
        neuron: the layer.
        current: ``[T, B, *N]``, or ``[1, B, *N]`` if it is constant over time.
        num_steps: T.
        state: the state before the first step.
        synapse: applied to the spikes; the second return value is its output, None without a synapse.
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
    """Run the neuron's own scan, then the synapse once for all steps."""
    trace = _require_trace(neuron, "scan", neuron.scan(current.unbind(0) * (num_steps // len(current)), state))
    output = None if synapse is None else time_distributed(synapse, trace.spikes)
    return trace if statistics is None else trace.reduced(statistics), output


def _require_trace(neuron: "Neuron", method: str, result: Any) -> Trace:
    if not isinstance(result, Trace):
        what = f"{type(neuron).__name__}.{method} returned a {type(result).__name__}"
        raise TypeError(f"{what}, must return a snnexp.neurons.Trace")
    return result


def is_plain(module: nn.Module) -> bool:
    """Return True if a call of the module only runs the ``forward`` of its class: no hooks, no patched ``forward``."""
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    return not (hooks or "forward" in vars(module) or _has_any_global_hook())  # type: ignore[no-untyped-call]


def time_distributed(synapse: nn.Module, sequence: Tensor) -> Tensor:
    """Apply a synapse to all steps of ``[T, B, *N]`` at once, as one batch of ``T * B`` samples."""
    weight = next(synapse.parameters(), sequence)
    return synapse(match_precision(sequence.flatten(0, 1), weight)).unflatten(0, sequence.shape[:2])  # type: ignore[no-any-return]


def match_precision(spikes: Tensor, weight: Tensor) -> Tensor:
    """Return spikes in the dtype of the weight if its precision is below float32."""
    return spikes.to(weight.dtype) if weight.dtype.itemsize < 4 else spikes


def stacked_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b for inputs ``[B, in]``, or for stacked weights ``[M, out, in]`` and inputs ``[B, M, in]``.

    Inputs ``[B, 1, in]`` are shared by all members and multiplied with all their weights at once.
    """
    if weight.ndim == 2:
        return F.linear(inputs, weight, bias)
    if inputs.shape[1] == 1:
        bias = None if bias is None else bias.flatten()
        return F.linear(inputs.squeeze(1), weight.flatten(0, 1), bias).view(-1, *weight.shape[:2])
    device_type = inputs.device.type
    if torch.is_autocast_enabled(device_type):
        # autocast does not apply to custom autograd functions
        dtype = torch.get_autocast_dtype(device_type)
        inputs, weight, bias = inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _StackedLinear.apply(inputs, weight, bias)  # type: ignore[no-any-return]


class _StackedLinear(torch.autograd.Function):
    """Batched matrix product whose weight gradient has the memory layout of the weights, which avoids a copy."""

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
            # bmm is many times slower for a result with few columns than for one with few rows
            _, rows, columns = weight.shape
            if rows <= columns:
                g_w = torch.bmm(g.transpose(1, 2), x)
            else:
                g_w = torch.bmm(x.transpose(1, 2), g).transpose(1, 2)
        if ctx.needs_input_grad[2]:
            g_b = g.sum(1)
        return g_x, g_w, g_b


def decay(beta: Tensor) -> Tensor:
    """Return beta clamped to [0, 1]; the gradient is 1 within the closed interval and 0 outside."""
    return torch.where((beta < 0) | (beta > 1), beta.detach().clamp(0, 1), beta)


class Bounds(NamedTuple):
    """Allowed range [low, high] of a learned parameter, and the values floor and ceiling to which it is clamped."""

    low: float
    high: float
    floor: float
    ceiling: float

    @classmethod
    def of(cls, number: values.Number, at_most: float, at_least: float) -> "Bounds | None":
        """Return the bounds of a domain, or None if it is unbounded.

        The floor of a parameter that must be positive and has an upper bound is a thousandth of that bound.
        """
        low = max(torch.finfo(torch.float32).tiny if number.open_low else number.low, at_least / ROUNDING)
        if math.isinf(low) and math.isinf(min(number.high, at_most)):
            return None
        floor = 1e-3 * at_most if number.open_low and math.isfinite(at_most) else low
        return cls(low, min(number.high, at_most * ROUNDING), max(floor, at_least), min(number.high, at_most))

    def violated_by(self, value: Tensor) -> Tensor:
        """Return a mask of the elements that are out of bounds."""
        return (value < self.low) | (value > self.high)


class Neuron(nn.Module):
    """Abstract base class of neuron layers. A subclass implements its equation in :meth:`scan`, a loop over time.

    Args:
        features: the neuron axes ``*N``, an int for a flat layer or a tuple such as ``(C, H, W)``.
    """

    spikes: ClassVar[bool] = True
    """Whether the neuron emits spikes."""
    synapse_bias: ClassVar[bool] = True
    """Whether the input synapse has a bias by default."""
    stackable: ClassVar[bool] = False
    """Whether it can be stacked: :meth:`scan` is elementwise over neurons and broadcasts parameters ``[M, n]``.

    Not inherited: each subclass must set it itself."""
    time_unit_s: ClassVar[float] = 1.0
    """Unit of ``dt`` in seconds, if the neuron has a ``dt``."""
    weights: ClassVar[tuple[str, ...]] = ()
    """Names of parameters that are feedback weights."""
    kernel: Kernel = staticmethod(reference)
    """The implementation of the equation; can be replaced on an instance."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.initializers: dict[str, tuple[Initializer, float, float]] = {}
        self.bounds: dict[str, Bounds] = {}
        """Bounds of learned parameters, by name; unbounded parameters have no entry."""
        self.parameter_names: list[str] = []
        self.features = (features,) if isinstance(features, int) else tuple(features)
        if not self.features or any(size not in values.COUNT for size in self.features):
            raise ConfigError(f"features: got {features}, must be a positive int or a tuple of them")

    def forward(self, current: Tensor, num_steps: int | None = None, state: Any = None) -> Trace:
        """Run the neurons over time.

        Args:
            current: ``[T, B, *N]``, or ``[1, B, *N]`` with ``num_steps`` for a constant current.
            num_steps: T; required only for a constant current.
            state: the ``state`` of an earlier trace; zeros by default.

        Raises:
            ValueError: a shape is wrong.
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
        """Run :meth:`forward` with the additional arguments ``synapse`` and ``statistics`` of :class:`Kernel`.

        If one of ``statistics`` needs every step, the full trace is returned. A neuron with hooks is called, and the
        synapse then gets the spikes that the hooks return.
        """
        statistics = None if statistics is None or need_trace(statistics) else statistics
        if is_plain(self) and type(self).forward is Neuron.forward:
            return self._run(current, num_steps, state, synapse, statistics)
        trace = as_trace(_require_trace(self, "forward", self(current, num_steps, state)))
        output = None if synapse is None else time_distributed(synapse, trace.spikes)
        return trace if statistics is None else trace.reduced(statistics), output

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
        # a synapse may run in lower precision, the state may not: in bfloat16, a decay of .999 rounds to 1
        current = current.float() if current.dtype.itemsize < 4 else current
        state = self.zero_state(current[0]) if state is None else state
        if any(part.shape != current.shape[1:] for part in state):
            shapes = [list(part.shape) for part in state]
            raise ValueError(f"state has shapes {shapes}, must be {list(current.shape[1:])}, that of the current")
        # other kernels do not call submodules of the neuron, and torch.compile cannot trace their custom gradients
        use_reference = torch.compiler.is_compiling() or not all(map(is_plain, self.children()))
        kernel = reference if use_reference else self.kernel
        return kernel(self, current, num_steps, state, synapse, statistics)

    def zero_state(self, current: Tensor) -> Any:
        """Return the state before the first step, for a current ``[B, *N]``."""
        raise NotImplementedError

    def scan(self, current: Sequence[Tensor], state: Any) -> Trace:
        """Compute the equation step by step; ``current`` has T tensors ``[B, *N]``."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Redraw the parameters that have an initializer, in the order of their creation."""
        with torch.no_grad():
            for name, (initializer, *limits) in self.initializers.items():
                self.assign(name, self._initial_value(name, initializer, *limits))

    def assign(self, name: str, value: Tensor) -> None:
        """Set a parameter in place, through its parametrization if it has one."""
        if parametrize.is_parametrized(self, name):
            setattr(self, name, value)
        else:
            getattr(self, name).copy_(value)

    def reset_synapse(self, synapse: nn.Linear | nn.Conv2d) -> None:
        """Initialize the weights of the input synapse, by default as PyTorch does."""
        synapse.reset_parameters()

    def reset_feedback(self) -> None:
        """Initialize the weights of the feedback synapse, if any."""

    @property
    def feedback_synapse(self) -> nn.Linear | nn.Conv2d | int | None:
        """The feedback synapse, or its fan-out per spike; None without feedback."""
        return None

    def equation_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the learned parameters of the equation, without feedback weights."""
        stored = (self._stored(name) for name in self.parameter_names if name not in self.weights)
        yield from (value for value in stored if isinstance(value, nn.Parameter))

    def _stored(self, name: str) -> Tensor:
        """Return the tensor that is stored and trained for a parameter: itself, or its logarithm."""
        parametrizations = (
            cast(nn.ModuleDict, self.parametrizations) if parametrize.is_parametrized(self, name) else None
        )
        return cast(Tensor, getattr(self, name) if parametrizations is None else parametrizations[name].original)

    def stack_members(self, members: Sequence["Neuron"]) -> None:
        """Turn this layer into a stack of M layers, with the member axis as first neuron axis.

        Parameters are not changed.
        """
        self.features = (len(members), *self.features)
        if isinstance(getattr(self, "surrogate", None), Surrogate):
            like = next(iter(self.state_dict().values()))
            self.surrogate: Any = surrogates.stack([cast(Any, member).surrogate for member in members], like)

    @torch.no_grad()
    def project(self) -> dict[str, Tensor]:
        """Clamp learned parameters to their bounds in place; frozen parameters are not changed.

        Returns:
            By parameter, a bool tensor: whether any value was out of bounds.
        """
        clamped = {}
        for name, bounds in self.bounds.items():
            stored = self._stored(name)
            if not stored.requires_grad:
                continue
            value = getattr(self, name)
            outside = bounds.violated_by(value)
            inside = value.clamp(bounds.floor, bounds.ceiling)
            # values in bounds are not written: exp and log would round them at every step
            stored.copy_(torch.where(outside, inside if stored is value else inside.log(), stored))
            clamped[name] = outside.any()
        return clamped

    def add_parameter(
        self,
        name: str,
        value: NeuronParameter[float],
        *,
        learn: bool = False,
        at_most: float = math.inf,
        at_least: float = -math.inf,
    ) -> None:
        """Register an initial value, given or drawn, as parameter or buffer ``name``.

        It is validated against the annotation of the constructor argument of that name.

        Raises:
            ConfigError: a value is out of range, or its shape does not fit ``features``.
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
        """Return the domain of a parameter."""
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
                raise ConfigError(f"{name}: an initial value is {x:g}, must be {number}")
            if x > at_most * ROUNDING:
                raise ConfigError(f"{name}: an initial value is {x:g}, must be at most {at_most:g}")
            if x * ROUNDING < at_least:
                raise ConfigError(f"{name}: an initial value is {x:g}, must be at least {at_least:g}")
        try:
            fits = start.expand(self.features).shape == self.features
        except RuntimeError:
            fits = False
        if not fits:
            raise ConfigError(f"{name}: got shape {list(start.shape)}, must fit the features {list(self.features)}")
        return start

    def extra_repr(self) -> str:
        return f"{math.prod(self.features)} neurons, features={self.features}"
