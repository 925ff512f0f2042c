"""Building blocks of the fused scans: cache-sized chunks of steps, the feedback, and the next layer's linear synapse.

All use a single flattened neuron axis, ``[.., B, n]``, and write into preallocated tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from snnexp.neurons import STATISTICS, Neuron, ReducedTrace, RLeaky, Trace, is_plain
from snnexp.surrogates import Surrogate

CHUNK_BYTES = 1 << 19
"""Maximum size of a buffer for a chunk of steps: several buffers fit into the cache of a core."""
MAX_NARROW = 32
"""Maximum number of outputs for which W S^T is faster than S W^T."""


def chunks(num_steps: int, step: Tensor) -> list[tuple[int, int]]:
    """Split ``[0, num_steps)`` into ranges of steps that fit the cache; ``step`` is ``[B, n]``."""
    length = max(1, CHUNK_BYTES // (step.nbytes or 1))
    return [(start, min(start + length, num_steps)) for start in range(0, num_steps, length)]


class LazyTrace(Trace):
    """A trace that is computed on first access.

    Args:
        num_steps: T.
        initial_state: the state before the first step.
        scan: computes the trace from None, or a :class:`ReducedTrace` from names of statistics.
    """

    def __init__(
        self,
        num_steps: int,
        initial_state: tuple[Tensor, ...],
        scan: Callable[[Sequence[str] | None], Trace | ReducedTrace],
    ) -> None:
        self._num_steps, self._initial_state, self._scan = num_steps, initial_state, scan
        self._reduced: dict[str, ReducedTrace] = {}
        """Reduced traces computed so far, by their statistic."""
        self._with_gradient = torch.is_grad_enabled()

    def __repr__(self) -> str:
        # show the shapes without computing anything
        steps = self._initial_state[0].expand(self._num_steps, *self._initial_state[0].shape)
        return repr(Trace(steps, steps, self._initial_state))

    @property
    def num_steps(self) -> int:
        return self._num_steps

    @property
    def samples(self) -> int:
        return len(self._initial_state[0])

    @cached_property
    def _trace(self) -> Trace:
        with torch.set_grad_enabled(self._with_gradient):
            return self._scan(None)  # type: ignore[return-value]

    def _computed(self, name: str) -> Trace | ReducedTrace:
        """Return the full trace if gradients are enabled or if it exists, else a reduced trace with this statistic."""
        if torch.is_grad_enabled() or "_trace" in vars(self):
            return self._trace
        if name not in self._reduced:
            with torch.no_grad():
                self._reduced[name] = self._scan((name,))  # type: ignore[assignment]
        return self._reduced[name]

    @property
    def spikes(self) -> Tensor:
        return self._trace.spikes

    @property
    def membrane(self) -> Tensor:  # type: ignore[override]
        return self._trace.membrane

    @property
    def state(self) -> Any:
        return self._computed(next(iter(self._reduced), "spike_count")).state

    def _statistic(self, name: str) -> Tensor:
        return getattr(self._computed(name), name)  # type: ignore[no-any-return]


Gradients = tuple[Tensor, Tensor | None]
"""Gradients of a weight and its bias."""


class Chunk(NamedTuple):
    """Consecutive steps, contiguous in memory."""

    tensor: Tensor
    """``[k, B, n]``"""
    steps: Sequence[Tensor]
    """k views ``[B, n]``"""


def split_chunks(memory: Tensor, ranges: Sequence[tuple[int, int]]) -> list[Chunk]:
    """Split ``memory`` into one chunk per range of steps; if it has the size of a single chunk, all ranges share it."""
    length = ranges[0][1]
    # views cost as much as small operations, so they are created once
    tensors = [memory] if len(memory) == length else torch.split(memory, length)
    result = [Chunk(tensor, tensor.unbind(0)) for tensor in tensors]
    if len(memory) == length < ranges[-1][1]:
        result = result * (len(ranges) - 1)
        last = ranges[-1][1] - ranges[-1][0]
        result.append(Chunk(memory[:last], result[0].steps[:last]))
    return result


def per_neuron_surrogate(neuron: Any) -> Surrogate:
    """Return the surrogate of a neuron; parameters that differ between members of a stack have one value per neuron."""
    surrogate: Surrogate = neuron.surrogate
    rows = {name: per_neuron(neuron, value) for name, value in vars(surrogate).items() if isinstance(value, Tensor)}
    return replace(surrogate, **rows) if rows else surrogate


def per_neuron(neuron: Neuron, parameter: Tensor) -> Tensor:
    """Return a copy of a parameter with one value per neuron, ``[n]``; optimizer steps do not change it."""
    # an expanded view would have stride 0, for which ATen has no fast loops
    value: Tensor = at_least_float32(parameter)
    return value.expand(neuron.features).flatten().clone(memory_format=torch.contiguous_format)


def at_least_float32(parameter: Any) -> Any:
    """Return a parameter in at least float32, the precision of gradient sums; None stays None."""
    return parameter if parameter is None or parameter.dtype.itemsize >= 4 else parameter.float()


def flatten_features(sequence: Tensor) -> Tensor:
    """Reshape ``[T, B, *N]`` to ``[T, B, n]``."""
    return sequence if sequence.ndim == 3 else sequence.flatten(2)


def unflatten_features(neuron: Neuron, sequence: Tensor) -> Tensor:
    """Reshape ``[.., n]`` to ``[.., *N]``."""
    return sequence if len(neuron.features) == 1 else sequence.reshape((*sequence.shape[:-1], *neuron.features))


def empty_steps(sequence: Tensor, num_steps: int) -> Tensor:
    """Allocate ``num_steps`` steps with the memory layout of the steps of ``sequence``."""
    # empty_like also resolves overlapping memory, as of an expanded batch
    like = torch.empty_like(sequence[0], device="meta")
    size, stride = (num_steps, *like.shape), (like.numel(), *like.stride())
    return torch.empty_strided(size, stride, dtype=sequence.dtype, device=sequence.device)


def previous_steps(sequence: Tensor, first: Tensor, start: int, stop: int) -> Tensor:
    """Return ``sequence[start - 1 : stop - 1]``, where ``first`` is the step before step 0."""
    if start:
        return sequence[start - 1 : stop - 1]
    return torch.cat([first.unsqueeze(0), sequence[: stop - 1]])


def fusable_linear(neuron: Neuron, synapse: nn.Module | None) -> nn.Linear | None:
    """Return the synapse if it only computes S W^T + b and need not be called as a module, else None."""
    if synapse is None or not is_plain(synapse):
        return None
    cls = type(synapse)
    # a subclass may compute something else, so each class must declare all_to_all itself
    is_linear = "all_to_all" in vars(cls) or (cls is nn.Linear and len(neuron.features) == 1)
    return synapse if is_linear else None  # type: ignore[return-value]


def product_dtype(like: Tensor, weight: Tensor | None) -> torch.dtype:
    """Return the dtype of products with a weight: autocast's, the weight's if below float32, else that of ``like``."""
    device_type = like.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return weight.dtype if weight is not None and weight.dtype.itemsize < 4 else like.dtype


def multiply(a: Tensor, b: Tensor, out: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> None:
    """Compute out = a b + bias; the product is computed in ``dtype``."""
    if dtype != out.dtype:
        product = torch.mm(a.to(dtype), b.to(dtype))
        out.copy_(product if bias is None else product.add_(bias))
    elif bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)


def accumulate(a: Tensor, b: Tensor, out: Tensor, dtype: torch.dtype) -> None:
    """Compute out += a b; the product is computed in ``dtype``."""
    if dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out.add_(torch.mm(a.to(dtype), b.to(dtype)))


class NextLinear:
    """The linear synapse of the next layer, applied to each chunk of spikes while it is in the cache."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight, self.bias, self.dtype = weight, bias, dtype
        self.narrow = len(weight) <= MAX_NARROW

    def prepare_forward(self, num_steps: int, batch: int) -> None:
        """Allocate the output; if it is narrow, the output axis comes before the batch axis."""
        shape = (num_steps, len(self.weight), batch) if self.narrow else (num_steps, batch, len(self.weight))
        self.out = self.weight.new_empty(shape)
        self.out_steps = self.out.unbind(0)

    def forward(self, spikes: Chunk, start: int, stop: int) -> None:
        """Compute S W^T + b for a chunk of spikes."""
        if self.narrow:
            for S, out in zip(spikes.steps, self.out_steps[start:stop], strict=True):
                multiply(self.weight, S.t(), out, self.dtype)
        else:
            out = self.out[start:stop].view(-1, len(self.weight))
            multiply(spikes.tensor.flatten(0, 1), self.weight.t(), out, self.dtype, self.bias)

    def output(self) -> Tensor:
        """Return the output of all steps, ``[T, B, M]``."""
        if not self.narrow:
            return self.out
        if self.bias is not None:
            self.out.add_(self.bias.unsqueeze(1))
        return self.out.transpose(1, 2)

    def prepare_backward(self, gradient: Tensor) -> None:
        """Set the gradient of :meth:`output`."""
        self.output_gradient, self.output_gradient_steps = gradient, gradient.unbind(0)
        self.weight_gradient = torch.zeros_like(self.weight)

    def backward(self, spikes: Tensor, start: int, stop: int, out: Tensor, scale: Tensor | None = None) -> None:
        """Compute out = g W, the gradient of a chunk of spikes ``[k, B, n]``, and accumulate the weight gradient.

        ``scale``, one value per neuron, multiplies the gradient of the spikes.
        """
        gradient = self.output_gradient_steps[start]
        if stop - start > 1:
            gradient = self.output_gradient[start:stop].reshape(-1, len(self.weight))
        accumulate(gradient.t(), spikes.flatten(0, 1), self.weight_gradient, self.dtype)
        weight = self.weight if scale is None else self.weight * scale
        multiply(gradient, weight, out.view(-1, out.shape[-1]), self.dtype)

    def gradients(self) -> Gradients:
        return self.weight_gradient, None if self.bias is None else self.output_gradient.sum((0, 1))


class Linear:
    """Linear feedback W S + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None, like: Tensor, dtype: torch.dtype) -> None:
        self.weight, self.bias, self.dtype = weight, bias, dtype
        self.scratch = torch.empty_like(like)
        self.gradients: Gradients = (torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias))

    def add(self, spikes: Tensor, out: Tensor) -> None:
        """Compute out += rec(S) for one step, ``[B, n]``."""
        multiply(spikes, self.weight.t(), self.scratch, self.dtype, self.bias)
        out.add_(self.scratch)

    def add_transposed(self, gradient: Tensor, out: Tensor) -> None:
        """Compute out += g W, the gradient of the spikes."""
        accumulate(gradient, self.weight, out, self.dtype)

    def accumulate(self, gradient: Tensor, spikes: Tensor) -> None:
        """Accumulate the weight gradient from ``gradient`` at t and ``spikes`` at t - 1, both ``[k, B, n]``."""
        samples = gradient.reshape(-1, gradient.shape[-1])
        weight, bias = self.gradients
        accumulate(samples.t(), spikes.reshape(samples.shape), weight, self.dtype)
        if bias is not None:
            bias.add_(samples.sum(0))


class Blocks:
    """Linear feedback W S + b within each of M stacked layers; W is ``[M, n, n]``, steps are ``[B, M n]``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, like: Tensor, dtype: torch.dtype) -> None:
        self.weight, self.transposed = weight, weight.transpose(1, 2)
        self.bias = None if bias is None else bias.unsqueeze(1)
        self.scratch = weight.new_empty((len(weight), len(like), weight.shape[1]))
        self.gradients: Gradients = (torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias))

    def add(self, spikes: Tensor, out: Tensor) -> None:
        if self.bias is None:
            torch.bmm(self._members(spikes), self.transposed, out=self.scratch)
        else:
            torch.baddbmm(self.bias, self._members(spikes), self.transposed, out=self.scratch)
        self._members(out).add_(self.scratch)

    def add_transposed(self, gradient: Tensor, out: Tensor) -> None:
        torch.bmm(self._members(gradient), self.weight, out=self.scratch)
        self._members(out).add_(self.scratch)

    def accumulate(self, gradient: Tensor, spikes: Tensor) -> None:
        g, fired = (self._members(x.flatten(0, 1)) for x in (gradient, spikes))
        weight, bias = self.gradients
        weight.baddbmm_(g.transpose(1, 2), fired)
        if bias is not None:
            bias.add_(g.sum(1))

    def _members(self, flat: Tensor) -> Tensor:
        """Reshape ``[B, M n]`` to ``[M, B, n]``."""
        members, size = self.weight.shape[:2]
        return torch.unflatten(flat, -1, (members, size)).transpose(0, 1)


class OneToOne:
    """One-to-one feedback V S, with V ``[n]``."""

    def __init__(self, V: Tensor, bias: None, like: Tensor, dtype: torch.dtype) -> None:
        self.V = V
        self.gradients: Gradients = (torch.zeros_like(V), None)

    def add(self, spikes: Tensor, out: Tensor) -> None:
        out.addcmul_(spikes, self.V)

    def add_transposed(self, gradient: Tensor, out: Tensor) -> None:
        out.addcmul_(gradient, self.V)

    def accumulate(self, gradient: Tensor, spikes: Tensor) -> None:
        self.gradients[0].add_((gradient * spikes).sum((0, 1)))


class Conv2d:
    """Convolutional feedback conv(S, W) + b on feature maps, padded to keep their size."""

    def __init__(
        self, side: tuple[int, ...], weight: Tensor, bias: Tensor | None, like: Tensor, dtype: torch.dtype
    ) -> None:
        self.weight, self.bias, self.side, self.padding = weight, bias, side, weight.shape[-1] // 2
        self.gradients: Gradients = (torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias))

    def add(self, spikes: Tensor, out: Tensor) -> None:
        out.add_(F.conv2d(self._maps(spikes), self.weight, self.bias, padding=self.padding).flatten(1))

    def add_transposed(self, gradient: Tensor, out: Tensor) -> None:
        out.add_(F.conv_transpose2d(self._maps(gradient), self.weight, padding=self.padding).flatten(1))

    def accumulate(self, gradient: Tensor, spikes: Tensor) -> None:
        g, fired = self._maps(gradient.flatten(0, 1)), self._maps(spikes.flatten(0, 1))
        weight, bias = self.gradients
        weight.add_(conv2d_weight(fired, weight.shape, g, padding=self.padding))  # type: ignore[no-untyped-call]
        if bias is not None:
            bias.add_(g.sum((0, 2, 3)))

    def _maps(self, flat: Tensor) -> Tensor:
        return flat.reshape((len(flat), *self.side))


Feedback = Linear | Blocks | OneToOne | Conv2d


def dense_feedback(weight: Tensor) -> type[Linear] | type[Blocks]:
    """Return the class of linear feedback: :class:`Blocks` if the weight has a member axis."""
    return Linear if weight.ndim == 2 else Blocks


def feedback_of(neuron: Neuron) -> tuple[Callable[..., Feedback] | None, Tensor | None, Tensor | None]:
    """Return the constructor, the weight and the bias of a neuron's feedback; None without feedback."""
    if not isinstance(neuron, RLeaky):
        return None, None, None
    if isinstance(neuron.recurrent, nn.Conv2d):
        return partial(Conv2d, neuron.features), neuron.recurrent.weight, neuron.recurrent.bias
    if neuron.recurrent is None:
        return OneToOne, per_neuron(neuron, neuron.V), None
    return dense_feedback(neuron.recurrent.weight), neuron.recurrent.weight, neuron.recurrent.bias


class StreamingStatistics:
    """Streaming forms of several statistics, for a layer whose individual steps are not read.

    Args:
        names: names of the statistics.
        step: an example tensor of one step, ``[B, n]``.
        num_steps: T.
    """

    def __init__(self, names: Sequence[str], step: Tensor, num_steps: int) -> None:
        self.num_steps, self.t = num_steps, 0
        self.silent = torch.zeros_like(step)
        self.states = {name: STATISTICS[name].start(step, num_steps) for name in names}

    def update(self, spikes: Chunk | None, membrane: Chunk) -> None:
        """Update all statistics with a chunk; ``spikes`` is None for a non-spiking layer."""
        fired = [self.silent] * len(membrane.steps) if spikes is None else spikes.steps
        for S, U in zip(fired, membrane.steps, strict=True):
            for name, state in self.states.items():
                self.states[name] = STATISTICS[name].update(state, self.t, S, U)
            self.t += 1

    def values(self, neuron: Neuron) -> dict[str, Tensor]:
        """Return the statistics after the last step, by name, with the axes of the neuron."""
        finished = ((name, STATISTICS[name].finish(state, self.num_steps)) for name, state in self.states.items())
        return {name: unflatten_features(neuron, value) for name, value in finished}
