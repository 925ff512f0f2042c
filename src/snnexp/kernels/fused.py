"""What the fused scans share: steps in cache-sized chunks, and the synapses within and behind a layer.

All work on neurons as one flat axis, ``[.., B, n]``, and write into memory that they are given.
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
"""What one buffer of a chunk of steps may hold: several of them fit a core's cache."""
MAX_NARROW = 32
"""Up to so many outputs, W S^T is faster than S W^T."""


def chunks(num_steps: int, step: Tensor) -> list[tuple[int, int]]:
    """``[0, num_steps)`` in ranges of steps that fit the cache together; ``step`` is ``[B, n]``."""
    length = max(1, CHUNK_BYTES // (step.nbytes or 1))
    return [(start, min(start + length, num_steps)) for start in range(0, num_steps, length)]


class LazyTrace(Trace):
    """A trace that is computed when it is read.

    Args:
        num_steps: T.
        before: the state before the first step.
        scan: computes the trace, or called with names of statistics a :class:`ReducedTrace` of these.
    """

    def __init__(
        self,
        num_steps: int,
        before: tuple[Tensor, ...],
        scan: Callable[[Sequence[str] | None], Trace | ReducedTrace],
    ) -> None:
        self._num_steps, self._before, self._scan = num_steps, before, scan
        self._left: dict[str, ReducedTrace] = {}
        """What was computed without single steps, by the statistic that it holds."""
        self._with_gradient = torch.is_grad_enabled()

    def __repr__(self) -> str:
        # of the same shapes, and nothing is computed
        steps = self._before[0].expand(self._num_steps, *self._before[0].shape)
        return repr(Trace(steps, steps, self._before))

    @property
    def num_steps(self) -> int:
        return self._num_steps

    @property
    def samples(self) -> int:
        return len(self._before[0])

    @cached_property
    def _trace(self) -> Trace:
        with torch.set_grad_enabled(self._with_gradient):
            return self._scan(None)  # type: ignore[return-value]

    def _with(self, name: str) -> Trace | ReducedTrace:
        """What has a statistic: the trace where gradients are recorded, or where it was computed before."""
        if torch.is_grad_enabled() or "_trace" in vars(self):
            return self._trace
        if name not in self._left:
            with torch.no_grad():
                self._left[name] = self._scan((name,))  # type: ignore[assignment]
        return self._left[name]

    @property
    def spikes(self) -> Tensor:
        return self._trace.spikes

    @property
    def membrane(self) -> Tensor:  # type: ignore[override]
        return self._trace.membrane

    @property
    def state(self) -> Any:
        return self._with(next(iter(self._left), "spike_count")).state

    def _statistic(self, name: str) -> Tensor:
        return getattr(self._with(name), name)  # type: ignore[no-any-return]


Gradients = tuple[Tensor, Tensor | None]
"""Of a weight and its bias."""


class Chunk(NamedTuple):
    """Some steps that lie one behind the other in memory."""

    whole: Tensor
    """``[k, B, n]``"""
    steps: Sequence[Tensor]
    """k times ``[B, n]``"""


def in_chunks(memory: Tensor, ranges: Sequence[tuple[int, int]]) -> list[Chunk]:
    """``memory`` as one chunk for each range of steps; where it holds a single chunk, all of them share it."""
    length = ranges[0][1]
    # views cost as much as small operations, so that they are made once
    wholes = [memory] if len(memory) == length else torch.split(memory, length)
    made = [Chunk(whole, whole.unbind(0)) for whole in wholes]
    if len(memory) == length < ranges[-1][1]:
        made = made * (len(ranges) - 1)
        last = ranges[-1][1] - ranges[-1][0]
        made.append(Chunk(memory[:last], made[0].steps[:last]))
    return made


def surrogate_of(neuron: Any) -> Surrogate:
    """A neuron's surrogate, its numbers as :func:`per_neuron` has them where members of a stack have their own."""
    surrogate: Surrogate = neuron.surrogate
    rows = {name: per_neuron(neuron, value) for name, value in vars(surrogate).items() if isinstance(value, Tensor)}
    return replace(surrogate, **rows) if rows else surrogate


def per_neuron(neuron: Neuron, parameter: Tensor) -> Tensor:
    """A parameter as one value per neuron, ``[n]``: a copy, which stays as it is when the optimiser moves on."""
    # a view of a single value would have stride 0, for which ATen has no fast loops
    value: Tensor = at_least_float32(parameter)
    return value.expand(neuron.features).flatten().clone(memory_format=torch.contiguous_format)


def at_least_float32(parameter: Any) -> Any:
    """A parameter, or None, in float32, in which gradients are summed, where it is kept in less."""
    return parameter if parameter is None or parameter.dtype.itemsize >= 4 else parameter.float()


def flatten_features(sequence: Tensor) -> Tensor:
    """``[T, B, *N]`` as ``[T, B, n]``."""
    return sequence if sequence.ndim == 3 else sequence.flatten(2)


def unflatten_features(neuron: Neuron, sequence: Tensor) -> Tensor:
    """``[.., n]`` as ``[.., *N]``."""
    return sequence if len(neuron.features) == 1 else sequence.reshape((*sequence.shape[:-1], *neuron.features))


def empty_steps(sequence: Tensor, num_steps: int) -> Tensor:
    """Memory for ``num_steps`` steps, laid out as those of ``sequence`` are."""
    # of steps that repeat memory, such as those of an expanded batch, the copy does not
    like = torch.empty_like(sequence[0], device="meta")
    size, stride = (num_steps, *like.shape), (like.numel(), *like.stride())
    return torch.empty_strided(size, stride, dtype=sequence.dtype, device=sequence.device)


def before(sequence: Tensor, first: Tensor, start: int, stop: int) -> Tensor:
    """``sequence[start - 1 : stop - 1]``, with ``first`` as the step before the first."""
    if start:
        return sequence[start - 1 : stop - 1]
    return torch.cat([first.unsqueeze(0), sequence[: stop - 1]])


def fusable_linear(neuron: Neuron, synapse: nn.Module | None) -> nn.Linear | None:
    """The synapse where it is S W^T + b and nothing else, and may be computed without a call of the module."""
    if synapse is None or not is_plain(synapse):
        return None
    kind = type(synapse)
    # a subclass may compute something else, so that it must say for itself that it does not
    plain = "all_to_all" in vars(kind) or (kind is nn.Linear and len(neuron.features) == 1)
    return synapse if plain else None  # type: ignore[return-value]


def product_dtype(like: Tensor, weight: Tensor | None) -> torch.dtype:
    """What a product with a weight is computed in: the lower precision of autocast or of it, else that of ``like``."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype if weight is not None and weight.dtype.itemsize < 4 else like.dtype


def multiply(a: Tensor, b: Tensor, out: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> None:
    """out = a b + bias, multiplied in ``dtype``."""
    if dtype != out.dtype:
        product = torch.mm(a.to(dtype), b.to(dtype))
        out.copy_(product if bias is None else product.add_(bias))
    elif bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)


def accumulate(a: Tensor, b: Tensor, out: Tensor, dtype: torch.dtype) -> None:
    """out += a b, multiplied in ``dtype``."""
    if dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out.add_(torch.mm(a.to(dtype), b.to(dtype)))


class NextLinear:
    """The dense synapse behind a layer: the spikes of a chunk go through it while they are in the cache."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight, self.bias, self.dtype = weight, bias, dtype
        self.narrow = len(weight) <= MAX_NARROW

    def prepare_forward(self, num_steps: int, batch: int) -> None:
        """Take memory for what arrives behind the synapse; few outputs lie before the batch."""
        shape = (num_steps, len(self.weight), batch) if self.narrow else (num_steps, batch, len(self.weight))
        self.out = self.weight.new_empty(shape)
        self.out_steps = self.out.unbind(0)

    def forward(self, spikes: Chunk, start: int, stop: int) -> None:
        """S W^T + b for the spikes of a chunk."""
        if self.narrow:
            for S, arrived in zip(spikes.steps, self.out_steps[start:stop], strict=True):
                multiply(self.weight, S.t(), arrived, self.dtype)
        else:
            out = self.out[start:stop].view(-1, len(self.weight))
            multiply(spikes.whole.flatten(0, 1), self.weight.t(), out, self.dtype, self.bias)

    def output(self) -> Tensor:
        """What arrived in all steps, ``[T, B, M]``."""
        if not self.narrow:
            return self.out
        if self.bias is not None:
            self.out.add_(self.bias.unsqueeze(1))
        return self.out.transpose(1, 2)

    def prepare_backward(self, gradient: Tensor) -> None:
        """Take the gradient of :meth:`output`."""
        self.arrived_gradient, self.arrived_steps = gradient, gradient.unbind(0)
        self.weight_gradient = torch.zeros_like(self.weight)

    def backward(self, spikes: Tensor, start: int, stop: int, out: Tensor, scale: Tensor | None = None) -> None:
        """out = g W, the gradient of the spikes ``[k, B, n]`` of a chunk; that of the weight is added up.

        ``scale``, one value per neuron, weighs the gradient of the spikes.
        """
        gradient = self.arrived_steps[start]
        if stop - start > 1:
            gradient = self.arrived_gradient[start:stop].reshape(-1, len(self.weight))
        accumulate(gradient.t(), spikes.flatten(0, 1), self.weight_gradient, self.dtype)
        weight = self.weight if scale is None else self.weight * scale
        multiply(gradient, weight, out.view(-1, out.shape[-1]), self.dtype)

    def gradients(self) -> Gradients:
        return self.weight_gradient, None if self.bias is None else self.arrived_gradient.sum((0, 1))


class Linear:
    """Feedback W S + b within a layer."""

    def __init__(self, weight: Tensor, bias: Tensor | None, like: Tensor, dtype: torch.dtype) -> None:
        self.weight, self.bias, self.dtype = weight, bias, dtype
        self.scratch = torch.empty_like(like)
        self.gradients: Gradients = (torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias))

    def add(self, spikes: Tensor, out: Tensor) -> None:
        """out += rec(S) for one step ``[B, n]``."""
        multiply(spikes, self.weight.t(), self.scratch, self.dtype, self.bias)
        out.add_(self.scratch)

    def add_transposed(self, gradient: Tensor, out: Tensor) -> None:
        """out += g W, the gradient of the spikes."""
        accumulate(gradient, self.weight, out, self.dtype)

    def accumulate(self, gradient: Tensor, spikes: Tensor) -> None:
        """Add the weights' gradient of a chunk: of ``gradient`` at t with ``spikes`` at t - 1, both ``[k, B, n]``."""
        samples = gradient.reshape(-1, gradient.shape[-1])
        weight, bias = self.gradients
        accumulate(samples.t(), spikes.reshape(samples.shape), weight, self.dtype)
        if bias is not None:
            bias.add_(samples.sum(0))


class Blocks:
    """Feedback W S + b within each of M layers side by side; W ``[M, n, n]``, on steps ``[B, M n]``."""

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
        received, fired = (self._members(x.flatten(0, 1)) for x in (gradient, spikes))
        weight, bias = self.gradients
        weight.baddbmm_(received.transpose(1, 2), fired)
        if bias is not None:
            bias.add_(received.sum(1))

    def _members(self, flat: Tensor) -> Tensor:
        """``[B, M n]`` as ``[M, B, n]``."""
        members, size = self.weight.shape[:2]
        return torch.unflatten(flat, -1, (members, size)).transpose(0, 1)


class OneToOne:
    """Feedback V S within a layer, V ``[n]``."""

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
    """Feedback conv(S, W) + b within a layer of feature maps, padded to keep their size."""

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
        received, fired = self._maps(gradient.flatten(0, 1)), self._maps(spikes.flatten(0, 1))
        weight, bias = self.gradients
        weight.add_(conv2d_weight(fired, weight.shape, received, padding=self.padding))  # type: ignore[no-untyped-call]
        if bias is not None:
            bias.add_(received.sum((0, 2, 3)))

    def _maps(self, flat: Tensor) -> Tensor:
        return flat.reshape((len(flat), *self.side))


Feedback = Linear | Blocks | OneToOne | Conv2d


def dense_feedback(weight: Tensor) -> type[Linear] | type[Blocks]:
    """What feeds all neurons of a layer back to all; a weight of three axes is that of members side by side."""
    return Linear if weight.ndim == 2 else Blocks


def feedback_of(neuron: Neuron) -> tuple[Callable[..., Feedback] | None, Tensor | None, Tensor | None]:
    """What makes a neuron's feedback, its weight and its bias; None for a neuron without."""
    if not isinstance(neuron, RLeaky):
        return None, None, None
    if isinstance(neuron.recurrent, nn.Conv2d):
        return partial(Conv2d, neuron.features), neuron.recurrent.weight, neuron.recurrent.bias
    if neuron.recurrent is None:
        return OneToOne, per_neuron(neuron, neuron.V), None
    return dense_feedback(neuron.recurrent.weight), neuron.recurrent.weight, neuron.recurrent.bias


class StreamingStatistics:
    """The streaming forms of statistics, of a layer whose single steps nobody reads.

    Args:
        names: of the statistics.
        step: a tensor like one step, ``[B, n]``.
        num_steps: T.
    """

    def __init__(self, names: Sequence[str], step: Tensor, num_steps: int) -> None:
        self.num_steps, self.t = num_steps, 0
        self.silent = torch.zeros_like(step)
        self.states = {name: STATISTICS[name].start(step, num_steps) for name in names}

    def update(self, spikes: Chunk | None, membrane: Chunk) -> None:
        """Take in a chunk; a layer that never fires has no spikes."""
        fired = [self.silent] * len(membrane.steps) if spikes is None else spikes.steps
        for S, U in zip(fired, membrane.steps, strict=True):
            for name, state in self.states.items():
                self.states[name] = STATISTICS[name].update(state, self.t, S, U)
            self.t += 1

    def values(self, neuron: Neuron) -> dict[str, Tensor]:
        """The statistics after the last step, by name, with the axes of the neuron."""
        finished = ((name, STATISTICS[name].finish(state, self.num_steps)) for name, state in self.states.items())
        return {name: unflatten_features(neuron, value) for name, value in finished}
