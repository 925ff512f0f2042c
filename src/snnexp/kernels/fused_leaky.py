"""Fused scans of ``Leaky`` and ``RLeaky``: one forward and one backward loop of ATen operations, for any device.

With sigma' the surrogate at U - theta, gU and gS the gradients of the recorded membrane and spikes, and delta the total
gradient of U:

    gS[t] += rec^T(g[t+1])                       gradient through the feedback
    delta[t] = gU[t] + gS[t] sigma'[t] + carry[t+1]
    Leaky:   g[t] = delta[t]                     carry[t] = beta delta[t]    (zero: beta (1 - R[t]) delta[t])
    RLeaky:  g[t] = delta[t]  (zero: (1 - R[t]) delta[t])                    carry[t] = beta g[t]
    dI[t] = g[t],  dbeta = sum g[t] U[t-1],  dtheta = - sum gS[t] sigma'[t]  (subtract: - sum delta[t] R[t])

Only the membrane is saved for the backward pass, which recomputes the spikes chunk by chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnexp.kernels.fused import (
    Feedback,
    LazyTrace,
    NextLinear,
    StreamingStatistics,
    at_least_float32,
    chunks,
    empty_steps,
    feedback_of,
    flatten_features,
    fusable_linear,
    per_neuron,
    per_neuron_surrogate,
    previous_steps,
    product_dtype,
    split_chunks,
    unflatten_features,
)
from snnexp.neurons import Leaky, LeakyState, ReducedTrace, RLeaky, RLeakyState, Trace, time_distributed
from snnexp.neurons.neuron import decay
from snnexp.surrogates import Surrogate, spike

NEURONS = (Leaky, RLeaky)
"""The neurons whose equation :func:`scan` computes."""


@dataclass(frozen=True)
class ScanConfig:
    """Arguments of a scan that are not tensors."""

    num_steps: int
    reset: str
    surrogate: Surrogate
    feedback: Callable[..., Feedback] | None
    """Constructor of the feedback from its weight, its bias, an example step, and the dtype of products."""
    feedback_dtype: torch.dtype
    """dtype of products with the feedback weight"""
    dtype: torch.dtype
    """dtype of products with the weight of the next layer"""
    keep_membrane: bool
    keep_spikes: bool


class Inputs(NamedTuple):
    """Tensor arguments of a scan, with a single neuron axis n."""

    current: Tensor
    """``[T, B, n]`` or ``[1, B, n]``"""
    membrane: Tensor
    """U before the first step, ``[B, n]``"""
    spikes: Any
    """S before the first step, ``[B, n]``, if there is feedback"""
    beta: Tensor
    theta: Tensor
    feedback_weight: Any
    feedback_bias: Any
    weight: Any
    """of the next layer's linear synapse"""
    bias: Any


def scan(
    neuron: Leaky | RLeaky,
    current: Tensor,
    num_steps: int,
    state: Any,
    synapse: nn.Module | None = None,
    statistics: Sequence[str] | None = None,
) -> tuple[Trace | ReducedTrace, Tensor | None]:
    """Fused implementation of the reference scans; see :class:`snnexp.neurons.Kernel` for the arguments."""
    dense = fusable_linear(neuron, synapse)
    feedback, weight, bias = feedback_of(neuron)
    surrogate = per_neuron_surrogate(neuron)
    next_weight, next_bias = (None, None) if dense is None else (dense.weight, dense.bias)
    dtypes = product_dtype(current, weight), product_dtype(current, next_weight)
    config = ScanConfig(num_steps, neuron.reset, surrogate, feedback, *dtypes, True, dense is None)
    inputs = Inputs(
        # products write a chunk of steps as one matrix, which requires contiguous samples
        flatten_features(current if dense is None else current.contiguous()),
        state.membrane.flatten(1),
        state.spikes.flatten(1) if isinstance(state, RLeakyState) else None,
        per_neuron(neuron, decay(neuron.beta)),
        per_neuron(neuron, neuron.threshold),
        *map(at_least_float32, (weight, bias, next_weight, next_bias)),
    )
    trace: Any
    if statistics is not None and not torch.is_grad_enabled() and (synapse is None or dense is not None):
        return _reduced_scan(neuron, config, inputs, statistics)
    if dense is not None and can_recompute(config, inputs):
        output = _RecomputingScan.apply(replace(config, keep_membrane=False), *inputs)
        trace = LazyTrace(num_steps, state, partial(_recompute, neuron, config, inputs))
    else:
        trace, output = _trace(neuron, config, inputs)
        if synapse is not None and dense is None:
            output = time_distributed(synapse, trace.spikes)
    return trace if statistics is None else trace.reduced(statistics), output


def _reduced_scan(
    neuron: Leaky | RLeaky, config: ScanConfig, inputs: Inputs, names: Sequence[str]
) -> tuple[ReducedTrace, Tensor | None]:
    streaming = StreamingStatistics(names, inputs.membrane, config.num_steps)
    _, _, output, (U, S) = _run(replace(config, keep_membrane=False, keep_spikes=False), inputs, streaming)
    state = _state(neuron, unflatten_features(neuron, U), lambda: unflatten_features(neuron, S))
    return ReducedTrace(config.num_steps, len(U), state, streaming.values(neuron)), output


def _trace(neuron: Leaky | RLeaky, config: ScanConfig, inputs: Inputs) -> tuple[Trace, Tensor | None]:
    membrane, spikes, output = _Scan.apply(config, *inputs)

    def fired(U: Tensor) -> Tensor:
        return unflatten_features(neuron, spike(U - inputs.theta, config.surrogate))

    if spikes is not None:
        spikes = unflatten_features(neuron, spikes)
    U = unflatten_features(neuron, membrane)
    last = _state(neuron, U[-1], lambda: fired(membrane[-1]) if spikes is None else spikes[-1])
    return Trace((lambda: fired(membrane)) if spikes is None else spikes, U, last), output


def _recompute(
    neuron: Leaky | RLeaky, config: ScanConfig, inputs: Inputs, names: Sequence[str] | None
) -> Trace | ReducedTrace:
    """Compute the trace of a layer that ran as :class:`_RecomputingScan`, from its inputs."""
    inputs = inputs._replace(weight=None, bias=None)
    if names is not None:
        return _reduced_scan(neuron, config, inputs, names)[0]
    return _trace(neuron, replace(config, keep_spikes=True), inputs)[0]


def _state(neuron: Leaky | RLeaky, U: Tensor, S: Callable[[], Tensor]) -> LeakyState | RLeakyState:
    return LeakyState(U) if isinstance(neuron, Leaky) else RLeakyState(U, S())


def _run(
    config: ScanConfig, inputs: Inputs, streaming: StreamingStatistics | None = None
) -> tuple[Tensor, Any, Any, tuple[Tensor, Tensor]]:
    """Run the forward loop; return membranes, spikes if kept, the next layer's current, and the last U and S."""
    I, U, S, beta, theta, *feedback_weights, weight, bias = inputs
    ranges = chunks(config.num_steps, U)
    membranes = empty_steps(I, config.num_steps if config.keep_membrane else ranges[0][1])
    spikes = empty_steps(I, config.num_steps if config.keep_spikes else ranges[0][1])
    feedback = config.feedback(*feedback_weights, U, config.feedback_dtype) if config.feedback else None
    next_linear = None if weight is None else NextLinear(weight, bias, config.dtype)
    if next_linear is not None:
        next_linear.prepare_forward(config.num_steps, len(U))
    keep = torch.empty_like(U) if config.reset == "zero" else None
    R = torch.gt(U, theta, out=torch.empty_like(U))
    S = R if S is None else S
    currents = I.unbind(0) * (config.num_steps // len(I))
    U_chunks, S_chunks = split_chunks(membranes, ranges), split_chunks(spikes, ranges)
    for (start, stop), Uc, Sc in zip(ranges, U_chunks, S_chunks, strict=True):
        for current, U_t, S_t in zip(currents[start:stop], Uc.steps, Sc.steps, strict=True):
            if keep is not None:
                torch.le(U, theta, out=keep)
            torch.mul(U, beta, out=U_t)
            if keep is not None and feedback is None:
                U_t.mul_(keep)
            U_t.add_(current)
            if feedback is not None:
                feedback.add(S, U_t)
                if keep is not None:
                    U_t.mul_(keep)
            if config.reset == "subtract":
                U_t.addcmul_(R, theta, value=-1)
            torch.gt(U_t, theta, out=S_t)
            U, R, S = U_t, S_t, S_t
        if next_linear is not None:
            next_linear.forward(Sc, start, stop)
        if streaming is not None:
            streaming.update(Sc, Uc)
    output = None if next_linear is None else next_linear.output()
    return membranes, spikes if config.keep_spikes else None, output, (U, S)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, config: ScanConfig, *tensors: Any) -> tuple[Tensor, Any, Any]:
        inputs = Inputs(*tensors)
        membranes, spikes, output, _ = _run(config, inputs)
        ctx.set_materialize_grads(False)
        ctx.config, ctx.constant = config, len(inputs.current) == 1
        ctx.save_for_backward(membranes, *inputs[1:])
        return membranes, spikes, output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gU: Any, gS: Any, g_output: Any) -> Any:
        config: ScanConfig = ctx.config
        membranes, U, S, beta, theta, *feedback_weights, weight, bias = ctx.saved_tensors
        needs = Inputs(*ctx.needs_input_grad[1:])
        feedback = config.feedback(*feedback_weights, U, config.feedback_dtype) if config.feedback else None
        next_linear = None if g_output is None else NextLinear(weight, bias, config.dtype)
        if next_linear is not None:
            next_linear.prepare_backward(g_output)
        subtract, zero = config.reset == "subtract", config.reset == "zero"
        ranges = chunks(config.num_steps, U)
        U_chunks = split_chunks(membranes, ranges)
        distance, fired, fired_previous = (empty_steps(membranes, ranges[0][1]) for _ in range(3))
        # the gradient of a constant current is a sum over all steps, so two alternating chunk buffers suffice
        g_current = torch.zeros_like(U) if ctx.constant else torch.empty_like(membranes)
        buffers = [empty_steps(membranes, ranges[0][1]) for _ in range(2)] if ctx.constant else [g_current]
        g_chunks = [split_chunks(memory, ranges) for memory in buffers]
        x_chunks, S_chunks = split_chunks(distance, ranges), split_chunks(fired, ranges)
        g_beta, g_theta = torch.zeros_like(beta), torch.zeros_like(theta)
        g_theta_sum = torch.zeros_like(U) if feedback is not None and needs.theta else None
        g_next: Tensor | None = None
        for index in reversed(range(len(ranges))):
            start, stop = ranges[index]
            size = stop - start
            g, g_steps = g_chunks[index % len(buffers)][index]
            x, x_steps = x_chunks[index]
            torch.sub(U_chunks[index].tensor, theta, out=x)
            if next_linear is not None:
                next_linear.backward(torch.gt(x, 0, out=S_chunks[index].tensor), start, stop, out=g)
            elif gS is not None:
                g.copy_(gS[start:stop])
            else:
                g.zero_()
            if feedback is not None or needs.beta or (needs.theta and subtract):
                previous = previous_steps(membranes, U, start, stop)
                R = torch.gt(previous, theta, out=fired_previous[:size])
            if feedback is None:
                keep = torch.le(x, 0, out=S_chunks[index].tensor) if zero else None
                g.div_(config.surrogate.reciprocal_(x))
                if needs.theta:
                    g_theta.sub_(g.sum((0, 1)))
                if gU is not None:
                    g.add_(gU[start:stop])
                for t in reversed(range(size)):
                    if g_next is not None:
                        g_steps[t].addcmul_(g_next if keep is None else g_next * keep[t], beta)
                    g_next = g_steps[t]
            else:
                config.surrogate.reciprocal_(x)
                for t in reversed(range(size)):
                    g_t = g_steps[t]
                    if g_next is not None:
                        feedback.add_transposed(g_next, g_t)
                    g_t.div_(x_steps[t])
                    if g_theta_sum is not None:
                        g_theta_sum.add_(g_t)
                    if gU is not None:
                        g_t.add_(gU[start + t])
                    if g_next is not None:
                        g_t.addcmul_(g_next, beta)
                    if zero:
                        g_t.mul_(1 - R[t])
                    g_next = g_t
            if needs.theta and subtract:
                g_theta.sub_((g * R).sum((0, 1)))
            if needs.beta:
                # Leaky applies the zero reset before the decay, RLeaky after it
                g_beta.add_((g * (previous * (1 - R) if zero and feedback is None else previous)).sum((0, 1)))
            if feedback is not None:
                if start == 0:
                    R[0].copy_(S)
                feedback.accumulate(g, R)
            if ctx.constant:
                g_current.add_(g.sum(0) if size > 1 else g[0])
        g_first = g_spikes = None
        assert g_next is not None
        if needs.membrane:
            g_first = beta * (g_next * torch.le(U, theta) if zero and feedback is None else g_next)
        if needs.spikes and feedback is not None:
            g_spikes = torch.zeros_like(U)
            feedback.add_transposed(g_next, g_spikes)
        return (
            None,
            g_current.unsqueeze(0) if ctx.constant else g_current,
            g_first,
            g_spikes,
            g_beta if needs.beta else None,
            g_theta if g_theta_sum is None else g_theta - g_theta_sum.sum(0),
            *(feedback.gradients if feedback else (None, None)),
            *(next_linear.gradients() if next_linear else (None, None)),
        )


def can_recompute(config: ScanConfig, inputs: Inputs) -> bool:
    """Return True if :class:`_RecomputingScan` can replace :class:`_Scan`."""
    fixed = (inputs.membrane, inputs.beta, inputs.theta)
    return (
        len(inputs.current) == 1
        and config.feedback is None
        and config.reset != "zero"
        and not any(tensor.requires_grad for tensor in fixed)
    )


class _RecomputingScan(torch.autograd.Function):
    """A layer with constant input current that only computes the next layer's current.

    The gradient of the current is the sum of delta[t] over all steps. If beta and theta need no gradients,

        sum_t delta[t] = sum_t (gS[t] sigma'[t]) sum_{s <= t} beta^s

    so delta need not be propagated backward in time: the backward pass runs forward in time and recomputes the
    membrane. Memory does not grow with T, and this is faster than writing and reading [T, B, n].
    """

    @staticmethod
    def forward(ctx: Any, config: ScanConfig, *tensors: Any) -> Any:
        ctx.config = config
        ctx.save_for_backward(*tensors)
        return _run(config, Inputs(*tensors))[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_output: Tensor) -> Any:
        config: ScanConfig = ctx.config
        (current,), U, _, beta, theta, _, _, weight, bias = ctx.saved_tensors
        next_linear = NextLinear(weight, bias, config.dtype)
        next_linear.prepare_backward(g_output)
        total, R = torch.zeros_like(U), torch.gt(U, theta, out=torch.empty_like(U))
        U, x, gS = U.clone(), torch.empty_like(U), torch.empty_like(U)
        S_chunk, gS_chunk = R.unsqueeze(0), gS.unsqueeze(0)
        one = power_sum = torch.ones_like(beta)
        for t in range(config.num_steps):
            U.mul_(beta).add_(current)
            if config.reset == "subtract":
                U.addcmul_(R, theta, value=-1)
            torch.sub(U, theta, out=x)
            torch.gt(x, 0, out=R)
            next_linear.backward(S_chunk, t, t + 1, out=gS_chunk, scale=power_sum)
            total.addcdiv_(gS, config.surrogate.reciprocal_(x))
            power_sum = torch.addcmul(one, power_sum, beta)
        return None, total.unsqueeze(0), *[None] * 6, *next_linear.gradients()
