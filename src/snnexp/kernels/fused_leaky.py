"""``Leaky`` and ``RLeaky``: one loop over time forward and one backward, in plain ATen operations for any device.

With sigma' the surrogate at U - theta, gU and gS the gradients of membrane and spikes, and delta that of U with all
that follows from it:

    gS[t] += rec^T(g[t+1])                       what the feedback sends back
    delta[t] = gU[t] + gS[t] sigma'[t] + carry[t+1]
    Leaky:   g[t] = delta[t]                     carry[t] = beta delta[t]    (zero: beta (1 - R[t]) delta[t])
    RLeaky:  g[t] = delta[t]  (zero: (1 - R[t]) delta[t])                    carry[t] = beta g[t]
    dI[t] = g[t],  dbeta = sum g[t] U[t-1],  dtheta = - sum gS[t] sigma'[t]  (subtract: - sum delta[t] R[t])

Only the membrane is kept for the backward pass; spikes are computed from it again, chunk by chunk, in the cache.
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
    before,
    chunks,
    empty_steps,
    feedback_of,
    flatten_features,
    fusable_linear,
    in_chunks,
    per_neuron,
    product_dtype,
    surrogate_of,
    unflatten_features,
)
from snnexp.neurons import Leaky, LeakyState, ReducedTrace, RLeaky, RLeakyState, Trace, time_distributed
from snnexp.neurons.neuron import decay
from snnexp.surrogates import Surrogate, spike

NEURONS = (Leaky, RLeaky)
"""The neurons whose equation :func:`scan` computes."""


@dataclass(frozen=True)
class Rule:
    """What a scan needs besides tensors."""

    num_steps: int
    reset: str
    surrogate: Surrogate
    feedback: Callable[..., Feedback] | None
    """Makes the feedback from its weight, its bias, a tensor like one step, and the dtype of products."""
    feedback_dtype: torch.dtype
    """of products with the feedback's weight"""
    dtype: torch.dtype
    """of products with the weight behind the layer"""
    keep_membrane: bool
    keep_spikes: bool


class Inputs(NamedTuple):
    """The tensors of a scan, with all neurons on one axis n."""

    current: Tensor
    """``[T, B, n]`` or ``[1, B, n]``"""
    membrane: Tensor
    """U before the first step, ``[B, n]``"""
    spikes: Any
    """S before the first step, ``[B, n]``, where they feed back"""
    beta: Tensor
    theta: Tensor
    feedback_weight: Any
    feedback_bias: Any
    weight: Any
    """of the dense synapse behind the layer"""
    bias: Any


def scan(
    neuron: Leaky | RLeaky,
    current: Tensor,
    num_steps: int,
    state: Any,
    synapse: nn.Module | None = None,
    statistics: Sequence[str] | None = None,
) -> tuple[Trace | ReducedTrace, Tensor | None]:
    """The fused twin of the reference scans; :class:`snnexp.neurons.Kernel` has the arguments."""
    dense = fusable_linear(neuron, synapse)
    feedback, weight, bias = feedback_of(neuron)
    surrogate = surrogate_of(neuron)
    behind = (None, None) if dense is None else (dense.weight, dense.bias)
    dtypes = product_dtype(current, weight), product_dtype(current, behind[0])
    rule = Rule(num_steps, neuron.reset, surrogate, feedback, *dtypes, True, dense is None)
    inputs = Inputs(
        # products write into chunks of steps as one matrix, which needs them sample by sample
        flatten_features(current if dense is None else current.contiguous()),
        state.membrane.flatten(1),
        state.spikes.flatten(1) if isinstance(state, RLeakyState) else None,
        per_neuron(neuron, decay(neuron.beta)),
        per_neuron(neuron, neuron.threshold),
        *map(at_least_float32, (weight, bias, *behind)),
    )
    trace: Any
    if statistics is not None and not torch.is_grad_enabled() and (synapse is None or dense is not None):
        return _sums(neuron, rule, inputs, statistics)
    if dense is not None and streams(rule, inputs):
        after = _Stream.apply(replace(rule, keep_membrane=False), *inputs)
        trace = LazyTrace(num_steps, state, partial(_read, neuron, rule, inputs))
    else:
        trace, after = _trace(neuron, rule, inputs)
        if synapse is not None and dense is None:
            after = time_distributed(synapse, trace.spikes)
    return trace if statistics is None else trace.reduced(statistics), after


def _sums(
    neuron: Leaky | RLeaky, rule: Rule, inputs: Inputs, names: Sequence[str]
) -> tuple[ReducedTrace, Tensor | None]:
    reduction = StreamingStatistics(names, inputs.membrane, rule.num_steps)
    _, _, after, (U, S) = run(replace(rule, keep_membrane=False, keep_spikes=False), inputs, reduction)
    state = _state(neuron, unflatten_features(neuron, U), lambda: unflatten_features(neuron, S))
    return ReducedTrace(rule.num_steps, len(U), state, reduction.values(neuron)), after


def _trace(neuron: Leaky | RLeaky, rule: Rule, inputs: Inputs) -> tuple[Trace, Tensor | None]:
    membrane, spikes, after = _Scan.apply(rule, *inputs)

    def fired(U: Tensor) -> Tensor:
        return unflatten_features(neuron, spike(U - inputs.theta, rule.surrogate))

    if spikes is not None:
        spikes = unflatten_features(neuron, spikes)
    U = unflatten_features(neuron, membrane)
    last = _state(neuron, U[-1], lambda: fired(membrane[-1]) if spikes is None else spikes[-1])
    return Trace((lambda: fired(membrane)) if spikes is None else spikes, U, last), after


def _read(neuron: Leaky | RLeaky, rule: Rule, inputs: Inputs, names: Sequence[str] | None) -> Trace | ReducedTrace:
    """What a layer that streamed has done, from the numbers that it had then."""
    inputs = inputs._replace(weight=None, bias=None)
    if names is not None:
        return _sums(neuron, rule, inputs, names)[0]
    return _trace(neuron, replace(rule, keep_spikes=True), inputs)[0]


def _state(neuron: Leaky | RLeaky, U: Tensor, S: Callable[[], Tensor]) -> LeakyState | RLeakyState:
    return LeakyState(U) if isinstance(neuron, Leaky) else RLeakyState(U, S())


def run(
    rule: Rule, inputs: Inputs, reduction: StreamingStatistics | None = None
) -> tuple[Tensor, Any, Any, tuple[Tensor, Tensor]]:
    """The forward loop: membranes and spikes where they are kept, what arrives behind the synapse, the last step."""
    I, U, S, beta, theta, *feedback_weights, weight, bias = inputs
    ranges = chunks(rule.num_steps, U)
    membranes = empty_steps(I, rule.num_steps if rule.keep_membrane else ranges[0][1])
    spikes = empty_steps(I, rule.num_steps if rule.keep_spikes else ranges[0][1])
    feedback = rule.feedback(*feedback_weights, U, rule.feedback_dtype) if rule.feedback else None
    behind = None if weight is None else NextLinear(weight, bias, rule.dtype)
    if behind is not None:
        behind.prepare_forward(rule.num_steps, len(U))
    kept = torch.empty_like(U) if rule.reset == "zero" else None
    R = torch.gt(U, theta, out=torch.empty_like(U))
    S = R if S is None else S
    currents = I.unbind(0) * (rule.num_steps // len(I))
    for (start, stop), Uc, Sc in zip(ranges, in_chunks(membranes, ranges), in_chunks(spikes, ranges), strict=True):
        for current, U_t, S_t in zip(currents[start:stop], Uc.steps, Sc.steps, strict=True):
            if kept is not None:
                torch.le(U, theta, out=kept)
            torch.mul(U, beta, out=U_t)
            if kept is not None and feedback is None:
                U_t.mul_(kept)
            U_t.add_(current)
            if feedback is not None:
                feedback.add(S, U_t)
                if kept is not None:
                    U_t.mul_(kept)
            if rule.reset == "subtract":
                U_t.addcmul_(R, theta, value=-1)
            torch.gt(U_t, theta, out=S_t)
            U, R, S = U_t, S_t, S_t
        if behind is not None:
            behind.forward(Sc, start, stop)
        if reduction is not None:
            reduction.update(Sc, Uc)
    after = None if behind is None else behind.output()
    return membranes, spikes if rule.keep_spikes else None, after, (U, S)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, *tensors: Any) -> tuple[Tensor, Any, Any]:
        inputs = Inputs(*tensors)
        membranes, spikes, after, _ = run(rule, inputs)
        ctx.set_materialize_grads(False)
        ctx.rule, ctx.constant = rule, len(inputs.current) == 1
        ctx.save_for_backward(membranes, *inputs[1:])
        return membranes, spikes, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gU: Any, gS: Any, g_after: Any) -> Any:
        rule: Rule = ctx.rule
        membranes, U, S, beta, theta, *feedback_weights, weight, bias = ctx.saved_tensors
        needs = Inputs(*ctx.needs_input_grad[1:])
        feedback = rule.feedback(*feedback_weights, U, rule.feedback_dtype) if rule.feedback else None
        behind = None if g_after is None else NextLinear(weight, bias, rule.dtype)
        if behind is not None:
            behind.prepare_backward(g_after)
        subtract, zero = rule.reset == "subtract", rule.reset == "zero"
        ranges = chunks(rule.num_steps, U)
        U_chunks = in_chunks(membranes, ranges)
        distance, fired, fired_before = (empty_steps(membranes, ranges[0][1]) for _ in range(3))
        # a constant current gets the sum over all steps, so two chunks of memory that take turns are enough
        g_current = torch.zeros_like(U) if ctx.constant else torch.empty_like(membranes)
        turns = [empty_steps(membranes, ranges[0][1]) for _ in range(2)] if ctx.constant else [g_current]
        g_chunks = [in_chunks(memory, ranges) for memory in turns]
        x_chunks, S_chunks = in_chunks(distance, ranges), in_chunks(fired, ranges)
        g_beta, g_theta = torch.zeros_like(beta), torch.zeros_like(theta)
        weighed = torch.zeros_like(U) if feedback is not None and needs.theta else None
        later: Tensor | None = None
        for index in reversed(range(len(ranges))):
            start, stop = ranges[index]
            size = stop - start
            g, g_steps = g_chunks[index % len(turns)][index]
            x, x_steps = x_chunks[index]
            torch.sub(U_chunks[index].whole, theta, out=x)
            if behind is not None:
                behind.backward(torch.gt(x, 0, out=S_chunks[index].whole), start, stop, out=g)
            elif gS is not None:
                g.copy_(gS[start:stop])
            else:
                g.zero_()
            if feedback is not None or needs.beta or (needs.theta and subtract):
                previous = before(membranes, U, start, stop)
                R = torch.gt(previous, theta, out=fired_before[:size])
            if feedback is None:
                kept = torch.le(x, 0, out=S_chunks[index].whole) if zero else None
                g.div_(rule.surrogate.reciprocal_(x))
                if needs.theta:
                    g_theta.sub_(g.sum((0, 1)))
                if gU is not None:
                    g.add_(gU[start:stop])
                for t in reversed(range(size)):
                    if later is not None:
                        g_steps[t].addcmul_(later if kept is None else later * kept[t], beta)
                    later = g_steps[t]
            else:
                rule.surrogate.reciprocal_(x)
                for t in reversed(range(size)):
                    g_t = g_steps[t]
                    if later is not None:
                        feedback.add_transposed(later, g_t)
                    g_t.div_(x_steps[t])
                    if weighed is not None:
                        weighed.add_(g_t)
                    if gU is not None:
                        g_t.add_(gU[start + t])
                    if later is not None:
                        g_t.addcmul_(later, beta)
                    if zero:
                        g_t.mul_(1 - R[t])
                    later = g_t
            if needs.theta and subtract:
                g_theta.sub_((g * R).sum((0, 1)))
            if needs.beta:
                # Leaky decays what its reset has left, RLeaky resets what has decayed
                g_beta.add_((g * (previous * (1 - R) if zero and feedback is None else previous)).sum((0, 1)))
            if feedback is not None:
                if start == 0:
                    R[0].copy_(S)
                feedback.accumulate(g, R)
            if ctx.constant:
                g_current.add_(g.sum(0) if size > 1 else g[0])
        g_first = g_spikes = None
        assert later is not None
        if needs.membrane:
            g_first = beta * (later * torch.le(U, theta) if zero and feedback is None else later)
        if needs.spikes and feedback is not None:
            g_spikes = torch.zeros_like(U)
            feedback.add_transposed(later, g_spikes)
        return (
            None,
            g_current.unsqueeze(0) if ctx.constant else g_current,
            g_first,
            g_spikes,
            g_beta if needs.beta else None,
            g_theta if weighed is None else g_theta - weighed.sum(0),
            *(feedback.gradients if feedback else (None, None)),
            *(behind.gradients() if behind else (None, None)),
        )


def streams(rule: Rule, inputs: Inputs) -> bool:
    """Whether :class:`_Stream` can take the place of :class:`_Scan`."""
    fixed = (inputs.membrane, inputs.beta, inputs.theta)
    return (
        len(inputs.current) == 1
        and rule.feedback is None
        and rule.reset != "zero"
        and not any(tensor.requires_grad for tensor in fixed)
    )


class _Stream(torch.autograd.Function):
    """A layer under a constant current, of which only what arrives behind its synapse is asked for.

    The gradient of the current is the sum of delta[t] over all steps, and without gradients of beta and theta

        sum_t delta[t] = sum_t (gS[t] sigma'[t]) sum_{s <= t} beta^s

    so that no delta is carried backward in time: the backward pass runs forward, computes the membrane anew as it goes,
    and nothing is kept, however long the sequence is. That is also faster than to write [T, B, n] and to read it again.
    """

    @staticmethod
    def forward(ctx: Any, rule: Rule, *tensors: Any) -> Any:
        ctx.rule = rule
        ctx.save_for_backward(*tensors)
        return run(rule, Inputs(*tensors))[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_after: Tensor) -> Any:
        rule: Rule = ctx.rule
        (current,), U, _, beta, theta, _, _, weight, bias = ctx.saved_tensors
        behind = NextLinear(weight, bias, rule.dtype)
        behind.prepare_backward(g_after)
        total, R = torch.zeros_like(U), torch.gt(U, theta, out=torch.empty_like(U))
        U, x, gS = U.clone(), torch.empty_like(U), torch.empty_like(U)
        S_chunk, gS_chunk = R.unsqueeze(0), gS.unsqueeze(0)
        one = power_sum = torch.ones_like(beta)
        for t in range(rule.num_steps):
            U.mul_(beta).add_(current)
            if rule.reset == "subtract":
                U.addcmul_(R, theta, value=-1)
            torch.sub(U, theta, out=x)
            torch.gt(x, 0, out=R)
            behind.backward(S_chunk, t, t + 1, out=gS_chunk, scale=power_sum)
            total.addcdiv_(gS, rule.surrogate.reciprocal_(x))
            power_sum = torch.addcmul(one, power_sum, beta)
        return None, total.unsqueeze(0), *[None] * 6, *behind.gradients()
