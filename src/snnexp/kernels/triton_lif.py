"""The scans of :class:`snnexp.neurons.ParametrizedLIF` and :class:`snnexp.neurons.LeakyIntegrator` as Triton kernels.

The equations are those of :mod:`snnexp.kernels.fused_lif`; see :mod:`snnexp.kernels.triton_common` for how they run.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnexp.kernels.fused import at_least_float32, flatten_features, per_neuron, unflatten_features
from snnexp.kernels.triton_common import STREAMED, derivative, launch, surrogate_constants, tile, weight_gradient
from snnexp.neurons import (
    LeakyIntegrator,
    LeakyIntegratorState,
    ParametrizedLIF,
    ParametrizedLIFState,
    ReducedTrace,
    Trace,
    time_distributed,
)
from snnexp.surrogates import Surrogate

NEURONS = (ParametrizedLIF, LeakyIntegrator)
"""The neurons whose equation :func:`scan` computes."""


@triton.jit
def lif_forward(
    I, z0, v0, i0, mem, syn, leak, reset, threshold, weight, u_all, z_all, count_out, peak_out, z_last, v_last, i_last,
    T, B, n, stride,
    SPIKES: tl.constexpr, LINEAR: tl.constexpr, KEEP: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    at, exists, columns, inside = tile(B, n, BLOCK_B, BLOCK_N)
    a = tl.load(mem + columns, inside, 1.0)[None, :]
    c = tl.load(syn + columns, inside, 1.0)[None, :]
    v_leak = tl.load(leak + columns, inside, 0.0)[None, :]
    v = tl.load(v0 + at, exists, 0.0)
    i = tl.load(i0 + at, exists, 0.0)
    z = v * 0
    if SPIKES:
        v_reset = tl.load(reset + columns, inside, 0.0)[None, :]
        v_th = tl.load(threshold + columns, inside, 0.0)[None, :]
        z = tl.load(z0 + at, exists, 0.0)
    if LINEAR:
        W = tl.load(weight + columns[None, :] * n + columns[:, None], inside[:, None] & inside[None, :], 0.0)
    count = v * 0
    peak = v * 0 - float("inf")
    step, current = at, at
    for _ in range(T):
        j = i + tl.load(I + current, exists, 0.0)
        if LINEAR:
            j = j + tl.dot(z, W, input_precision="ieee", out_dtype=W.dtype)
        u = v + a * ((v_leak - v) + j)
        v = u
        if SPIKES:
            z = (u > v_th).to(u.dtype)
            v = (1 - z) * u + z * v_reset
        i = j - c * j
        if KEEP:
            tl.store(u_all + step, u, exists)
            if SPIKES:
                tl.store(z_all + step, z, exists)
        else:
            count = count + z
            peak = tl.maximum(peak, u)
        step += B * n
        current += stride
    if not KEEP:
        tl.store(count_out + at, count, exists)
        tl.store(peak_out + at, peak, exists)
    tl.store(z_last + at, z, exists)
    tl.store(v_last + at, v, exists)
    tl.store(i_last + at, i, exists)


@triton.jit
def lif_backward(
    gu, gz, gi_last, u_all, v0, mem, syn, leak, reset, threshold, weight, g_all, g_total,
    g_mem, g_syn, g_leak, g_reset, g_threshold, g_z0, g_v0, g_i0, last, T, B, n,
    HAS_GU: tl.constexpr, HAS_GZ: tl.constexpr, HAS_GI: tl.constexpr, SPIKES: tl.constexpr, LINEAR: tl.constexpr,
    KIND: tl.constexpr, NUMBER: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    at, exists, columns, inside = tile(B, n, BLOCK_B, BLOCK_N)
    a = tl.load(mem + columns, inside, 1.0)[None, :]
    c = tl.load(syn + columns, inside, 1.0)[None, :]
    v_leak = tl.load(leak + columns, inside, 0.0)[None, :]
    first = tl.load(v0 + at, exists, 0.0)
    if SPIKES:
        v_reset = tl.load(reset + columns, inside, 0.0)[None, :]
        v_th = tl.load(threshold + columns, inside, 0.0)[None, :]
    if LINEAR:
        W = tl.load(weight + columns[:, None] * n + columns[None, :], inside[:, None] & inside[None, :], 0.0)
    g_next, gi, gv, total = first * 0, first * 0, first * 0, first * 0
    sum_a, sum_c, sum_leak, sum_reset, sum_th = first * 0, first * 0, first * 0, first * 0, first * 0
    if HAS_GI:
        gi = tl.load(gi_last + at, exists, 0.0)
    step = at + last
    u = tl.load(u_all + step, exists, 0.0)
    for _ in range(T):
        u_previous = tl.load(u_all + step - B * n, exists & (step >= B * n), 0.0)
        previous = u_previous
        delta = first * 0
        if SPIKES:
            fired = (u_previous > v_th).to(u.dtype)
            previous = (1 - fired) * u_previous + fired * v_reset
            if HAS_GZ:
                delta = tl.load(gz + step, exists, 0.0)
            if LINEAR:
                delta = delta + tl.dot(g_next, W, input_precision="ieee", out_dtype=W.dtype)
            delta = delta * derivative(u - v_th, KIND, NUMBER)
            sum_th -= delta
            z = (u > v_th).to(u.dtype)
            sum_reset += z * gv
            delta = delta + (1 - z) * gv
        else:
            delta = gv
        if HAS_GU:
            delta = delta + tl.load(gu + step, exists, 0.0)
        previous = tl.where(step < B * n, first, previous)
        change = (u - previous) / a
        sum_a += delta * change
        sum_leak += a * delta
        sum_c -= gi * (change - (v_leak - previous))
        gi = a * delta + (1 - c) * gi
        gv = (1 - a) * delta
        g_next = gi
        tl.store(g_all + step, gi, exists)
        total += gi
        u = u_previous
        step -= B * n
    if LINEAR:
        tl.store(g_z0 + at, tl.dot(g_next, W, input_precision="ieee", out_dtype=W.dtype), exists)
    tl.store(g_v0 + at, gv, exists)
    tl.store(g_i0 + at, gi, exists)
    tl.store(g_total + at, total, exists)
    tl.store(g_mem + at, sum_a, exists)
    tl.store(g_syn + at, sum_c, exists)
    tl.store(g_leak + at, sum_leak, exists)
    tl.store(g_reset + at, sum_reset, exists)
    tl.store(g_threshold + at, sum_th, exists)


def scan(
    neuron: ParametrizedLIF | LeakyIntegrator,
    current: Tensor,
    num_steps: int,
    state: Any,
    synapse: nn.Module | None = None,
    statistics: Sequence[str] | None = None,
) -> tuple[Any, Tensor | None]:
    """Triton implementation of the reference scans; see :class:`snnexp.neurons.Kernel` for the arguments."""
    lif = neuron if isinstance(neuron, ParametrizedLIF) else None
    z0, v0, i0 = (part.flatten(1).contiguous() for part in ((state.v, *state) if lif is None else state))
    decays = (per_neuron(neuron, neuron.dt * rate) for rate in (neuron.tau_mem_inv, neuron.tau_syn_inv))
    levels: tuple[Any, ...] = (None, None, None)
    if lif is not None:
        levels = (per_neuron(lif, lif.v_reset), per_neuron(lif, lif.v_th), at_least_float32(lif.feedback_weight))
    inputs = (flatten_features(current).contiguous(), z0, v0, i0, *decays, per_neuron(neuron, neuron.v_leak), *levels)

    def state_of(z: Tensor, v: Tensor, i: Tensor) -> Any:
        parts = [unflatten_features(neuron, part) for part in (z, v, i)]
        return LeakyIntegratorState(*parts[1:]) if lif is None else ParametrizedLIFState(*parts)

    if statistics is not None and {*statistics} <= {*STREAMED} and synapse is None and not torch.is_grad_enabled():
        _, _, sums, last = _run(num_steps, inputs, keep=False)
        values = dict(zip(STREAMED, (unflatten_features(neuron, x) for x in (*sums, last[0])), strict=True))
        values = {name: values[name] for name in statistics}
        return ReducedTrace(num_steps, len(v0), state_of(*last), values), None
    u, z, i = _Scan.apply(num_steps, None if lif is None else lif.surrogate, *inputs)
    if lif is None:
        z = u.new_zeros(()).expand_as(u)
        last = state_of(z[-1], u[-1], i)
    else:
        reset = z[-1].detach()
        last = state_of(z[-1], (1 - reset) * u[-1] + reset * inputs[7], i)
    trace = Trace(unflatten_features(neuron, z), unflatten_features(neuron, u), last)
    output = None if synapse is None else time_distributed(synapse, trace.spikes)
    return trace if statistics is None else trace.reduced(statistics), output


def _run(num_steps: int, inputs: Sequence[Any], keep: bool) -> Any:
    I, z0, v0, i0, mem, syn, leak, reset, threshold, weight = inputs
    batch, n = v0.shape
    spikes = threshold is not None
    u = v0.new_empty((num_steps if keep else 0, batch, n))
    z = torch.empty_like(u) if spikes else u
    sums, last = [torch.empty_like(v0) for _ in range(2)], [torch.empty_like(v0) for _ in range(3)]
    launch(
        lif_forward, v0, weight is not None,
        I, z0, v0, i0, mem, syn, leak, reset if spikes else leak, threshold if spikes else leak,
        leak if weight is None else weight, u, z, *sums, *last, num_steps, batch, n, 0 if len(I) == 1 else batch * n,
        SPIKES=spikes, LINEAR=weight is not None, KEEP=keep,
    )  # fmt: skip
    return u, z if spikes else None, sums, last


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, num_steps: int, surrogate: Surrogate | None, *inputs: Any) -> Any:
        u, z, _, last = _run(num_steps, inputs, keep=True)
        ctx.set_materialize_grads(False)
        ctx.num_steps, ctx.surrogate, ctx.constant = num_steps, surrogate, len(inputs[0]) == 1
        ctx.save_for_backward(u, z, *inputs[1:])
        return u, z, last[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gu: Tensor | None, gz: Tensor | None, gi: Tensor | None) -> Any:
        u, z, z0, v0, _, mem, syn, leak, reset, threshold, weight = ctx.saved_tensors
        spikes = threshold is not None
        g = torch.empty_like(u)
        total, *sums = (torch.empty_like(v0) for _ in range(6))
        g_z0, g_v0, g_i0 = (torch.empty_like(v0) for _ in range(3))
        launch(
            lif_backward, v0, weight is not None,
            *(u if gradient is None else gradient.contiguous() for gradient in (gu, gz, gi)),
            u, v0, mem, syn, leak, reset if spikes else leak, threshold if spikes else leak,
            leak if weight is None else weight, g, total, *sums, g_z0, g_v0, g_i0,
            (ctx.num_steps - 1) * v0.numel(), ctx.num_steps, *v0.shape,
            HAS_GU=gu is not None, HAS_GZ=gz is not None, HAS_GI=gi is not None, SPIKES=spikes,
            LINEAR=weight is not None, **surrogate_constants(ctx.surrogate),
        )  # fmt: skip
        a, c, v_leak, v_reset, v_th = (part.sum(0) for part in sums)
        return (
            None,
            None,
            total.unsqueeze(0) if ctx.constant else g,
            None if weight is None else g_z0,
            g_v0,
            g_i0,
            a,
            c,
            v_leak,
            v_reset if spikes else None,
            v_th if spikes else None,
            None if weight is None else weight_gradient(g, z0, z),
        )
