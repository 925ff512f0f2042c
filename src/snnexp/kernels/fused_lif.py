"""Fused scans of ``ParametrizedLIF``, ``LIF`` and ``LeakyIntegrator``: forward and backward loops of ATen operations.

With a = dt tau_mem_inv, c = dt tau_syn_inv, sigma' the surrogate at u - v_th, gu and gz the gradients of the recorded
membrane and spikes, and delta, gj, gv, gi the total gradients of u, j, v and i:

    gz[t] += W_rec^T gj[t+1]
    delta[t] = gu[t] + gz[t] sigma'[t] + (1 - z[t]) gv[t]        gv[t] = (1 - a) delta[t+1]
    gj[t] = a delta[t] + (1 - c) gi[t]                           gi[t] = gj[t+1]
    dI[t] = gj[t],  da = sum delta[t] (u[t] - v[t-1]) / a,  dc = - sum gi[t] j[t],
    dv_th = - sum gz[t] sigma'[t],  dv_leak = sum a delta[t],  dv_reset = sum z[t] gv[t]

If gradients flow through the reset, as in ``LIF``, gz[t] += (v_reset - u[t]) gv[t] comes first. The leaky integrator
is the same without z. Only u is saved for the backward pass, which recomputes z, v, and
j[t] = (u[t] - v[t-1]) / a - (v_leak - v[t-1]).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnexp.kernels.fused import (
    Blocks,
    Linear,
    NextLinear,
    StreamingStatistics,
    at_least_float32,
    chunks,
    dense_feedback,
    empty_steps,
    flatten_features,
    fusable_linear,
    per_neuron,
    per_neuron_surrogate,
    previous_steps,
    product_dtype,
    split_chunks,
    unflatten_features,
)
from snnexp.neurons import (
    LIF,
    LeakyIntegrator,
    LeakyIntegratorState,
    ParametrizedLIF,
    ParametrizedLIFState,
    ReducedTrace,
    Trace,
    time_distributed,
)
from snnexp.surrogates import Surrogate, spike

NEURONS = (ParametrizedLIF, LIF, LeakyIntegrator)
"""The neurons whose equation :func:`scan` computes."""


@dataclass(frozen=True)
class ScanConfig:
    """Arguments of a scan that are not tensors."""

    num_steps: int
    surrogate: Surrogate | None
    """None for a non-spiking neuron"""
    feedback_dtype: torch.dtype
    """dtype of products with the feedback weight"""
    dtype: torch.dtype
    """dtype of products with the weight of the next layer"""
    keep_membrane: bool
    keep_spikes: bool
    reset_gradient: bool = False
    """whether gradients flow through the reset"""


class Inputs(NamedTuple):
    """Tensor arguments of a scan, with a single neuron axis n."""

    current: Tensor
    """``[T, B, n]`` or ``[1, B, n]``"""
    z: Any
    v: Tensor
    i: Tensor
    a: Tensor
    c: Tensor
    v_leak: Tensor
    v_reset: Any
    v_th: Any
    feedback_weight: Any
    weight: Any
    """of the next layer's linear synapse"""
    bias: Any


def scan(
    neuron: ParametrizedLIF | LeakyIntegrator,
    current: Tensor,
    num_steps: int,
    state: Any,
    synapse: nn.Module | None = None,
    statistics: Sequence[str] | None = None,
) -> tuple[Trace | ReducedTrace, Tensor | None]:
    """Fused implementation of the reference scans; see :class:`snnexp.neurons.Kernel` for the arguments."""
    lif = neuron if isinstance(neuron, ParametrizedLIF) else None
    dense = None if lif is None else fusable_linear(neuron, synapse)
    feedback = None if lif is None else lif.feedback_weight
    next_weight, next_bias = (None, None) if dense is None else (dense.weight, dense.bias)
    without_trace = statistics is not None and not torch.is_grad_enabled() and (dense is not None or synapse is None)
    config = ScanConfig(
        num_steps,
        None if lif is None else per_neuron_surrogate(lif),
        product_dtype(current, feedback),
        product_dtype(current, next_weight),
        keep_membrane=not without_trace,
        keep_spikes=lif is not None and dense is None and not without_trace,
        reset_gradient=lif is not None and lif.reset_gradient,
    )
    inputs = Inputs(
        # products write a chunk of steps as one matrix, which requires contiguous samples
        flatten_features(current if dense is None else current.contiguous()),
        state.z.flatten(1) if lif is not None else None,
        state.v.flatten(1),
        state.i.flatten(1),
        per_neuron(neuron, neuron.dt * neuron.tau_mem_inv),
        per_neuron(neuron, neuron.dt * neuron.tau_syn_inv),
        per_neuron(neuron, neuron.v_leak),
        None if lif is None else per_neuron(lif, lif.v_reset),
        None if lif is None else per_neuron(lif, lif.v_th),
        *map(at_least_float32, (feedback, next_weight, next_bias)),
    )
    trace: Any
    if without_trace:
        assert statistics is not None
        streaming = StreamingStatistics(statistics, inputs.v, num_steps)
        _, _, output, last = _run(config, inputs, streaming)
        trace = ReducedTrace(num_steps, len(inputs.v), _state(neuron, *last), streaming.values(neuron))
    else:
        u, z, output, i = _Scan.apply(config, *inputs)
        trace = _trace(neuron, config, inputs, u, z, i)
        if synapse is not None and dense is None:
            output = time_distributed(synapse, trace.spikes)
        trace = trace if statistics is None else trace.reduced(statistics)
    return trace, output


def _state(neuron: ParametrizedLIF | LeakyIntegrator, z: Tensor, v: Tensor, i: Tensor) -> Any:
    parts = [unflatten_features(neuron, part) for part in (z, v, i)]
    return ParametrizedLIFState(*parts) if isinstance(neuron, ParametrizedLIF) else LeakyIntegratorState(*parts[1:])


def _trace(
    neuron: ParametrizedLIF | LeakyIntegrator,
    config: ScanConfig,
    inputs: Inputs,
    u: Tensor,
    z: Tensor | None,
    i: Tensor,
) -> Trace:
    if config.surrogate is None:
        silent = u.new_zeros(()).expand_as(u)
        state = _state(neuron, silent[-1], u[-1], i)
        return Trace(unflatten_features(neuron, silent), unflatten_features(neuron, u), state)

    def fired(u: Tensor, surrogate: Surrogate = config.surrogate) -> Tensor:
        return spike(u - inputs.v_th, surrogate)

    last = fired(u[-1]) if z is None else z[-1]
    reset = last if config.reset_gradient else last.detach()
    v = (1 - reset) * u[-1] + reset * inputs.v_reset
    spikes = (lambda: unflatten_features(neuron, fired(u))) if z is None else unflatten_features(neuron, z)
    return Trace(spikes, unflatten_features(neuron, u), _state(neuron, last, v, i))


def _feedback(config: ScanConfig, weight: Tensor | None, like: Tensor) -> Linear | Blocks | None:
    return None if weight is None else dense_feedback(weight)(weight, None, like, config.feedback_dtype)


def _run(
    config: ScanConfig, inputs: Inputs, streaming: StreamingStatistics | None = None
) -> tuple[Tensor, Any, Any, tuple[Tensor, Tensor, Tensor]]:
    """Run the forward loop; return u and z if kept, the next layer's current, and the last z, v and i."""
    I, z, v, i, a, c, v_leak, v_reset, v_th, feedback_weight, weight, bias = inputs
    spiking = config.surrogate is not None
    ranges = chunks(config.num_steps, v)
    membranes = empty_steps(I, config.num_steps if config.keep_membrane else ranges[0][1])
    spikes = empty_steps(I, config.num_steps if config.keep_spikes else ranges[0][1]) if spiking else None
    feedback = _feedback(config, feedback_weight, v)
    next_linear = None if weight is None else NextLinear(weight, bias, config.dtype)
    if next_linear is not None:
        next_linear.prepare_forward(config.num_steps, len(v))
    z = torch.zeros_like(v) if z is None else z
    v, i = v.clone(), i.clone()
    j, change, keep = torch.empty_like(v), torch.empty_like(v), torch.empty_like(v)
    currents = I.unbind(0) * (config.num_steps // len(I))
    z_chunks: list[Any] = [None] * len(ranges) if spikes is None else split_chunks(spikes, ranges)
    for (start, _), uc, zc in zip(ranges, split_chunks(membranes, ranges), z_chunks, strict=True):
        for t, u in enumerate(uc.steps):
            torch.add(i, currents[start + t], out=j)
            if feedback is not None:
                feedback.add(z, j)
            torch.sub(v_leak, v, out=change)
            change.add_(j).mul_(a)
            torch.add(v, change, out=u)
            if zc is None:
                v.copy_(u)
            else:
                z = torch.gt(u, v_th, out=zc.steps[t])
                torch.le(u, v_th, out=keep)
                torch.mul(u, keep, out=v).addcmul_(z, v_reset)
            torch.mul(j, c, out=i)
            torch.sub(j, i, out=i)
        if next_linear is not None:
            next_linear.forward(zc, start, start + len(zc.steps))
        if streaming is not None:
            streaming.update(zc, uc)
    output = None if next_linear is None else next_linear.output()
    return membranes, spikes if config.keep_spikes else None, output, (z, v, i)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, config: ScanConfig, *tensors: Any) -> tuple[Tensor, Any, Any, Tensor]:
        inputs = Inputs(*tensors)
        membranes, spikes, output, (_, _, i) = _run(config, inputs)
        ctx.set_materialize_grads(False)
        ctx.config, ctx.constant = config, len(inputs.current) == 1
        ctx.save_for_backward(membranes, *inputs[1:])
        return membranes, spikes, output, i

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gu: Any, gz: Any, g_output: Any, gi: Any) -> Any:
        config: ScanConfig = ctx.config
        membranes, z, v, _, a, c, v_leak, v_reset, v_th, feedback_weight, weight, bias = ctx.saved_tensors
        needs = Inputs(*ctx.needs_input_grad[1:])
        feedback = _feedback(config, feedback_weight, v)
        next_linear = None if g_output is None else NextLinear(weight, bias, config.dtype)
        if next_linear is not None:
            next_linear.prepare_backward(g_output)
        ranges = chunks(config.num_steps, v)
        distance, fired, keep, delta, v_previous, fired_previous = (
            empty_steps(membranes, ranges[0][1]) for _ in range(6)
        )
        # the gradient of a constant current is a sum over all steps, so two alternating chunk buffers suffice
        buffers = [empty_steps(membranes, ranges[0][1]) for _ in range(2)] if ctx.constant else []
        g_current = torch.zeros_like(v) if ctx.constant else torch.empty_like(membranes)
        sums = {name: torch.zeros_like(a) for name in ("a", "c", "v_leak", "v_reset", "v_th")}
        keep_v, keep_i, g_v_th = 1 - a, 1 - c, torch.zeros_like(v)
        gv: Any = None
        for index, (start, stop) in enumerate(reversed(ranges)):
            size = stop - start
            u, d = membranes[start:stop], delta[:size]
            gj = buffers[index % 2][:size] if ctx.constant else g_current[start:stop]
            previous = previous_steps(membranes, v, start, stop)
            if config.surrogate is not None:
                x = torch.sub(u, v_th, out=distance[:size])
                torch.gt(x, 0, out=fired[:size])
                z_previous = torch.gt(previous, v_th, out=fired_previous[:size])
                torch.mul(previous, torch.le(previous, v_th, out=keep[:size]), out=v_previous[:size])
                previous = v_previous[:size].addcmul_(z_previous, v_reset)
                if start == 0:
                    previous[0].copy_(v)
                    z_previous[0].copy_(z)
                torch.le(x, 0, out=keep[:size])
                config.surrogate.reciprocal_(x)
            if next_linear is not None:
                next_linear.backward(fired[:size], start, stop, out=d)
            elif gz is not None:
                d.copy_(gz[start:stop])
            else:
                d.zero_()
            change: Any = u - previous if needs.a or needs.c else None
            d_steps, gj_steps = d.unbind(0), gj.unbind(0)
            for t in reversed(range(size)):
                d_t, gj_t = d_steps[t], gj_steps[t]
                if config.surrogate is not None:
                    if feedback is not None and gv is not None:
                        feedback.add_transposed(gi, d_t)
                    if config.reset_gradient and gv is not None:
                        d_t.addcmul_(gv, v_reset - u[t])
                    d_t.div_(x[t])
                    if needs.v_th:
                        g_v_th.sub_(d_t)
                if gu is not None:
                    d_t.add_(gu[start + t])
                if gv is not None:
                    if needs.v_reset:
                        sums["v_reset"].add_((gv * fired[t]).sum(0))
                    d_t.add_(gv if config.surrogate is None else gv.mul_(keep[t]))
                torch.mul(d_t, a, out=gj_t)
                if gi is not None:
                    gj_t.addcmul_(gi, keep_i)
                    if needs.c:
                        sums["c"].sub_((gi * (change[t] / a - (v_leak - previous[t]))).sum(0))
                gi, gv = gj_t, torch.mul(d_t, keep_v, out=gv)
            if needs.a:
                sums["a"].add_((d * change).sum((0, 1)) / a)
            if needs.v_leak:
                sums["v_leak"].add_(d.sum((0, 1)) * a)
            if feedback is not None:
                feedback.accumulate(gj, z_previous)
            if ctx.constant:
                g_current.add_(gj.sum(0) if size > 1 else gj[0])
        sums["v_th"] = g_v_th.sum(0)
        g_z = None
        if needs.z and feedback is not None:
            g_z = torch.zeros_like(v)
            feedback.add_transposed(gi, g_z)
        return (
            None,
            g_current.unsqueeze(0) if ctx.constant else g_current,
            g_z,
            gv,
            gi.clone(),
            *(total if getattr(needs, name) else None for name, total in sums.items()),
            None if feedback is None else feedback.gradients[0],
            *(next_linear.gradients() if next_linear else (None, None)),
        )
