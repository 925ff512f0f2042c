"""The scans as Triton kernels: the loop over time inside, the state in registers, one launch forward and one backward.

A program has some samples and some neurons, ``[BLOCK_B, BLOCK_N]``; in a layer with linear feedback it has all
neurons, and the feedback's weight on the chip, so that up to ``MAX_RECURRENT`` of them fit. The equations are those of
:mod:`snnexp.kernels.fused_leaky` and :mod:`snnexp.kernels.fused_lif`, in the order of the reference and without
contraction to fused multiply-adds, because one rounding less can flip a spike. Weight gradients are one product over
all steps.

With TRITON_INTERPRET=1 in the environment before Triton is imported, all of it runs on a CPU, slowly.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import type_before_parametrizations

from snnexp.kernels.fused import flat, maps, row, wide
from snnexp.neurons import (
    Kernel,
    Leaky,
    LeakyIntegrator,
    LeakyIntegratorState,
    LeakyState,
    Neuron,
    ParametrizedLIF,
    ParametrizedLIFState,
    Reduced,
    RLeaky,
    RLeakyState,
    Trace,
    over_samples,
)
from snnexp.neurons.neuron import decay
from snnexp.surrogates import ATan, FastSigmoid, Sigmoid, StraightThrough, SuperSpike, Surrogate, Triangular

MAX_RECURRENT = 128
"""Neurons of a layer whose linear feedback fits on the chip: 64 KiB of weights."""
RESETS = {"none": 0, "subtract": 1, "zero": 2}
NO_FEEDBACK, ONE_TO_ONE, LINEAR = 0, 1, 2


def kernel_of(neuron: Neuron, device: torch.device) -> Kernel | str:
    """The kernel for a neuron on a device, or why there is none."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a GPU, this is {device.type}"
    surrogate = getattr(neuron, "surrogate", None)
    if surrogate is not None and type(surrogate) not in SURROGATES:
        return f"{type(surrogate).__name__} has no Triton form"
    if surrogate is not None and any(isinstance(number, Tensor) for number in vars(surrogate).values()):
        return "a surrogate of members that differ has no Triton form"
    recurrent = getattr(neuron, "recurrent", None)
    if recurrent is not None and recurrent.weight.ndim == 3:
        return "feedback of members side by side has no Triton form"
    if isinstance(recurrent, nn.Conv2d):
        return "conv2d feedback has no Triton form"
    if recurrent is not None and recurrent.out_features > MAX_RECURRENT:
        return f"of {recurrent.out_features} neurons that feed back to all, {MAX_RECURRENT} fit on the chip"
    if recurrent is not None and device.type == "cuda" and not _fits(recurrent.weight, device):
        return f"the feedback of {recurrent.out_features} neurons does not fit on this chip"
    kind = type_before_parametrizations(neuron)
    return SCANS.get(kind, f"{kind.__name__} has no Triton form")


def _fits(weight: Tensor, device: torch.device) -> bool:
    """Whether a program has memory for a padded weight, and an eighth more for spikes."""
    side = max(16, triton.next_power_of_2(len(weight)))
    needed = side * side * max(4, weight.element_size()) * 9 // 8
    chip: Any = torch.cuda.get_device_properties(device)
    return bool(needed <= chip.shared_memory_per_block_optin)


SURROGATES: dict[type[Surrogate], tuple[int, str | None]] = {
    ATan: (0, "alpha"),
    FastSigmoid: (1, "slope"),
    SuperSpike: (1, "alpha"),
    Sigmoid: (2, "slope"),
    Triangular: (3, "width"),
    StraightThrough: (4, None),
}
"""Which branch of :func:`derivative` computes a surrogate, and which of its numbers that takes."""


@triton.jit
def derivative(x, KIND: tl.constexpr, NUMBER: tl.constexpr):
    if KIND == 0:
        y = (3.141592653589793 * NUMBER / 2) * x
        result = (NUMBER / 2) / (1 + y * y)
    elif KIND == 1:
        y = NUMBER * tl.abs(x) + 1
        result = 1 / (y * y)
    elif KIND == 2:
        decayed = tl.exp(-NUMBER * tl.abs(x))
        result = NUMBER * decayed / ((1 + decayed) * (1 + decayed))
    elif KIND == 3:
        result = tl.maximum(1 - tl.abs(x) / NUMBER, 0.0) / NUMBER
    else:
        result = x * 0 + 1
    return result


@triton.jit
def tile(B, n, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr):
    """Offsets into ``[B, n]``, which of them exist, columns, and which of these exist."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < n
    at = rows[:, None].to(tl.int64) * n + columns[None, :]
    return at, (rows[:, None] < B) & inside[None, :], columns, inside


@triton.jit
def leaky_forward(
    I, U0, S0, beta, theta, V, bias, U_all, S_all, count_out, peak_out, U_last, S_last, T, B, n, stride,
    RESET: tl.constexpr, FEEDBACK: tl.constexpr, BIAS: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    at, exists, columns, inside = tile(B, n, BLOCK_B, BLOCK_N)
    b = tl.load(beta + columns, inside, 0.0)[None, :]
    th = tl.load(theta + columns, inside, 0.0)[None, :]
    U = tl.load(U0 + at, exists, 0.0)
    S = tl.load(S0 + at, exists, 0.0)
    R = (th < U).to(U.dtype)
    if FEEDBACK == 1:
        v = tl.load(V + columns, inside, 0.0)[None, :]
    if FEEDBACK == 2:
        W = tl.load(V + columns[None, :] * n + columns[:, None], inside[:, None] & inside[None, :], 0.0)
    if BIAS:
        added = tl.load(bias + columns, inside, 0.0)[None, :]
    count = U * 0
    peak = U * 0 - float("inf")
    step, current = at, at
    for _ in range(T):
        if RESET == 2 and FEEDBACK == 0:
            U = b * ((1 - R) * U)
        else:
            U = b * U
        U = U + tl.load(I + current, exists, 0.0)
        if FEEDBACK == 1:
            U = U + v * S
        if FEEDBACK == 2:
            rec = tl.dot(S, W, input_precision="ieee", out_dtype=W.dtype)
            if BIAS:
                rec = rec + added
            U = U + rec
        if RESET == 1:
            U = U - R * th
        if RESET == 2 and FEEDBACK != 0:
            U = (1 - R) * U
        S = (th < U).to(U.dtype)
        R = S
        if KEEP:
            tl.store(U_all + step, U, exists)
            tl.store(S_all + step, S, exists)
        else:
            count = count + S
            peak = tl.maximum(peak, U)
        step += B * n
        current += stride
    if not KEEP:
        tl.store(count_out + at, count, exists)
        tl.store(peak_out + at, peak, exists)
    tl.store(U_last + at, U, exists)
    tl.store(S_last + at, S, exists)


@triton.jit
def leaky_backward(
    gU, gS, U_all, U0, S0, beta, theta, V, g_all, g_total, g_beta, g_theta, g_V, g_U0, g_S0, last, T, B, n,
    HAS_GU: tl.constexpr, HAS_GS: tl.constexpr, RESET: tl.constexpr, FEEDBACK: tl.constexpr,
    KIND: tl.constexpr, NUMBER: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    at, exists, columns, inside = tile(B, n, BLOCK_B, BLOCK_N)
    b = tl.load(beta + columns, inside, 0.0)[None, :]
    th = tl.load(theta + columns, inside, 0.0)[None, :]
    first = tl.load(U0 + at, exists, 0.0)
    if FEEDBACK == 1:
        v = tl.load(V + columns, inside, 0.0)[None, :]
    if FEEDBACK == 2:
        W = tl.load(V + columns[:, None] * n + columns[None, :], inside[:, None] & inside[None, :], 0.0)
    later, total, sum_beta, sum_theta, sum_V = first * 0, first * 0, first * 0, first * 0, first * 0
    step = at + last
    U = tl.load(U_all + step, exists, 0.0)
    for _ in range(T):
        is_first = step < B * n
        previous = tl.where(is_first, first, tl.load(U_all + step - B * n, exists & (step >= B * n), 0.0))
        R = (previous > th).to(U.dtype)
        g = first * 0
        if HAS_GS:
            g = tl.load(gS + step, exists, 0.0)
        if FEEDBACK == 1:
            g = g + v * later
        if FEEDBACK == 2:
            g = g + tl.dot(later, W, input_precision="ieee", out_dtype=W.dtype)
        g = g * derivative(U - th, KIND, NUMBER)
        sum_theta -= g
        if HAS_GU:
            g = g + tl.load(gU + step, exists, 0.0)
        if RESET == 2 and FEEDBACK == 0:
            g = g + b * (later * (1 - (th < U).to(U.dtype)))
        else:
            g = g + b * later
        if RESET == 1:
            sum_theta -= g * R
        if RESET == 2 and FEEDBACK == 0:
            sum_beta += g * (previous * (1 - R))
        else:
            if RESET == 2:
                g = g * (1 - R)
            sum_beta += g * previous
        if FEEDBACK == 1:
            sum_V += g * tl.where(is_first, tl.load(S0 + at, exists, 0.0), R)
        tl.store(g_all + step, g, exists)
        total += g
        later = g
        U = previous
        step -= B * n
    kept = b * later
    if RESET == 2 and FEEDBACK == 0:
        kept = kept * (1 - (first > th).to(first.dtype))
    tl.store(g_U0 + at, kept, exists)
    if FEEDBACK == 1:
        tl.store(g_S0 + at, v * later, exists)
        tl.store(g_V + at, sum_V, exists)
    if FEEDBACK == 2:
        tl.store(g_S0 + at, tl.dot(later, W, input_precision="ieee", out_dtype=W.dtype), exists)
    tl.store(g_total + at, total, exists)
    tl.store(g_beta + at, sum_beta, exists)
    tl.store(g_theta + at, sum_theta, exists)


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
    later, gi, gv, total = first * 0, first * 0, first * 0, first * 0
    sum_a, sum_c, sum_leak, sum_reset, sum_th = first * 0, first * 0, first * 0, first * 0, first * 0
    if HAS_GI:
        gi = tl.load(gi_last + at, exists, 0.0)
    step = at + last
    u = tl.load(u_all + step, exists, 0.0)
    for _ in range(T):
        u_before = tl.load(u_all + step - B * n, exists & (step >= B * n), 0.0)
        previous = u_before
        delta = first * 0
        if SPIKES:
            fired = (u_before > v_th).to(u.dtype)
            previous = (1 - fired) * u_before + fired * v_reset
            if HAS_GZ:
                delta = tl.load(gz + step, exists, 0.0)
            if LINEAR:
                delta = delta + tl.dot(later, W, input_precision="ieee", out_dtype=W.dtype)
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
        later = gi
        tl.store(g_all + step, gi, exists)
        total += gi
        u = u_before
        step -= B * n
    if LINEAR:
        tl.store(g_z0 + at, tl.dot(later, W, input_precision="ieee", out_dtype=W.dtype), exists)
    tl.store(g_v0 + at, gv, exists)
    tl.store(g_i0 + at, gi, exists)
    tl.store(g_total + at, total, exists)
    tl.store(g_mem + at, sum_a, exists)
    tl.store(g_syn + at, sum_c, exists)
    tl.store(g_leak + at, sum_leak, exists)
    tl.store(g_reset + at, sum_reset, exists)
    tl.store(g_threshold + at, sum_th, exists)


def launch(kernel: Any, like: Tensor, recurrent: bool, *arguments: Any, **constants: Any) -> None:
    """Run a kernel over the samples and neurons of ``like``, ``[B, n]``."""
    batch, n = like.shape
    block_n = max(16, triton.next_power_of_2(n)) if recurrent else min(128, max(16, triton.next_power_of_2(n)))
    block_b = 16 if recurrent else max(1, min(triton.next_power_of_2(batch), 256 // block_n))
    grid = (triton.cdiv(batch, block_b), triton.cdiv(n, block_n))
    # without fused multiply-adds, which round once where the reference rounds twice
    options = {"num_warps": 4, "enable_fp_fusion": False}
    with torch.cuda.device_of(like):
        kernel[grid](*arguments, **constants, BLOCK_B=block_b, BLOCK_N=block_n, **options)


def surrogate_constants(surrogate: Surrogate | None) -> dict[str, Any]:
    kind, name = SURROGATES[type(surrogate)] if surrogate is not None else (4, None)
    return {"KIND": kind, "NUMBER": 0.0 if name is None else float(getattr(surrogate, name))}


def leaky_scan(
    neuron: Leaky | RLeaky,
    current: Tensor,
    num_steps: int,
    state: Any,
    synapse: nn.Module | None = None,
    reduced: bool = False,
) -> tuple[Any, Tensor | None]:
    """The Triton twin of the reference scans; :class:`snnexp.neurons.Kernel` has the arguments."""
    recurrent = isinstance(neuron, RLeaky)
    kind, V, bias = NO_FEEDBACK, None, None
    if isinstance(neuron, RLeaky) and neuron.recurrent is None:
        kind, V = ONE_TO_ONE, row(neuron, neuron.V)
    elif isinstance(neuron, RLeaky):
        synapse_within: Any = neuron.recurrent
        kind, V, bias = LINEAR, wide(synapse_within.weight).contiguous(), wide(synapse_within.bias)
    settings = (num_steps, RESETS[neuron.reset], kind, neuron.surrogate)
    first = [part.flatten(1).contiguous() for part in state]
    inputs = (flat(current).contiguous(), *first[:2], *[None] * (2 - len(first)))
    inputs += (row(neuron, decay(neuron.beta)), row(neuron, neuron.threshold), V, bias)

    def state_of(U: Tensor, S: Tensor) -> Any:
        return RLeakyState(maps(neuron, U), maps(neuron, S)) if recurrent else LeakyState(maps(neuron, U))

    if reduced and synapse is None and not torch.is_grad_enabled():
        _, _, sums, (U, S) = _run_leaky(settings, inputs, keep=False)
        count, peak = (maps(neuron, x) for x in sums)
        return Reduced(num_steps, count, maps(neuron, S), peak, state_of(U, S)), None
    U, S = _LeakyScan.apply(settings, *inputs)
    trace = Trace(maps(neuron, S), maps(neuron, U), state_of(U[-1], S[-1]))
    after = None if synapse is None else over_samples(synapse, trace.spikes)
    return trace.reduced() if reduced else trace, after


def _run_leaky(settings: Any, inputs: Sequence[Any], keep: bool) -> Any:
    num_steps, reset, kind, _ = settings
    I, U0, S0, beta, theta, V, bias = inputs
    batch, n = U0.shape
    U, S = (U0.new_empty((num_steps if keep else 0, batch, n)) for _ in range(2))
    sums, last = ([torch.empty_like(U0) for _ in range(2)] for _ in range(2))
    launch(
        leaky_forward, U0, kind == LINEAR,
        I, U0, U0 if S0 is None else S0, beta, theta, theta if V is None else V, theta if bias is None else bias,
        U, S, *sums, *last, num_steps, batch, n, 0 if len(I) == 1 else batch * n,
        RESET=reset, FEEDBACK=kind, BIAS=bias is not None, KEEP=keep,
    )  # fmt: skip
    return U, S, sums, last


class _LeakyScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        U, S, _, _ = _run_leaky(settings, inputs, keep=True)
        ctx.set_materialize_grads(False)
        ctx.settings, ctx.constant = settings, len(inputs[0]) == 1
        ctx.save_for_backward(U, S, *inputs[1:])
        return U, S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gU: Tensor | None, gS: Tensor | None) -> Any:
        num_steps, reset, kind, surrogate = ctx.settings
        U, S, U0, S0, beta, theta, V, bias = ctx.saved_tensors
        first_spikes = U0 if S0 is None else S0
        g = torch.empty_like(U)
        total, g_beta, g_theta, g_V, g_U0, g_S0 = (torch.empty_like(U0) for _ in range(6))
        launch(
            leaky_backward, U0, kind == LINEAR,
            U if gU is None else gU.contiguous(), U if gS is None else gS.contiguous(),
            U, U0, first_spikes, beta, theta, theta if V is None else V,
            g, total, g_beta, g_theta, g_V, g_U0, g_S0, (num_steps - 1) * U0.numel(), num_steps, *U0.shape,
            HAS_GU=gU is not None, HAS_GS=gS is not None, RESET=reset, FEEDBACK=kind, **surrogate_constants(surrogate),
        )  # fmt: skip
        weight = None
        if kind == ONE_TO_ONE:
            weight = g_V.sum(0)
        elif kind == LINEAR:
            weight = _weight_gradient(g, first_spikes, S)
        return (
            None,
            total.unsqueeze(0) if ctx.constant else g,
            g_U0,
            None if S0 is None else g_S0,
            g_beta.sum(0),
            g_theta.sum(0),
            weight,
            None if bias is None else total.sum(0),
        )


def _weight_gradient(g: Tensor, first: Tensor, spikes: Tensor) -> Tensor:
    """sum over t of g[t]^T S[t - 1], as one product."""
    before = torch.cat([first.unsqueeze(0), spikes[:-1]])
    return g.flatten(0, 1).t() @ before.flatten(0, 1)


def lif_scan(
    neuron: ParametrizedLIF | LeakyIntegrator,
    current: Tensor,
    num_steps: int,
    state: Any,
    synapse: nn.Module | None = None,
    reduced: bool = False,
) -> tuple[Any, Tensor | None]:
    """The Triton twin of the reference scans; :class:`snnexp.neurons.Kernel` has the arguments."""
    lif = neuron if isinstance(neuron, ParametrizedLIF) else None
    z0, v0, i0 = (part.flatten(1).contiguous() for part in ((state.v, *state) if lif is None else state))
    decays = (row(neuron, neuron.dt * rate) for rate in (neuron.tau_mem_inv, neuron.tau_syn_inv))
    levels: tuple[Any, ...] = (None, None, None)
    if lif is not None:
        levels = (row(lif, lif.v_reset), row(lif, lif.v_th), wide(lif.feedback_weight))
    inputs = (flat(current).contiguous(), z0, v0, i0, *decays, row(neuron, neuron.v_leak), *levels)

    def state_of(z: Tensor, v: Tensor, i: Tensor) -> Any:
        parts = [maps(neuron, part) for part in (z, v, i)]
        return LeakyIntegratorState(*parts[1:]) if lif is None else ParametrizedLIFState(*parts)

    if reduced and synapse is None and not torch.is_grad_enabled():
        _, _, sums, last = _run_lif(num_steps, inputs, keep=False)
        count, peak = (maps(neuron, x) for x in sums)
        return Reduced(num_steps, count, maps(neuron, last[0]), peak, state_of(*last)), None
    u, z, i = _LIFScan.apply(num_steps, None if lif is None else lif.surrogate, *inputs)
    if lif is None:
        z = u.new_zeros(()).expand_as(u)
        last = state_of(z[-1], u[-1], i)
    else:
        fired = z[-1].detach()
        last = state_of(z[-1], (1 - fired) * u[-1] + fired * inputs[7], i)
    trace = Trace(maps(neuron, z), maps(neuron, u), last)
    after = None if synapse is None else over_samples(synapse, trace.spikes)
    return trace.reduced() if reduced else trace, after


def _run_lif(num_steps: int, inputs: Sequence[Any], keep: bool) -> Any:
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


class _LIFScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, num_steps: int, surrogate: Surrogate | None, *inputs: Any) -> Any:
        u, z, _, last = _run_lif(num_steps, inputs, keep=True)
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
            None if weight is None else _weight_gradient(g, z0, z),
        )


SCANS: Mapping[type[Neuron], Kernel] = {
    Leaky: leaky_scan,
    RLeaky: leaky_scan,
    ParametrizedLIF: lif_scan,
    LeakyIntegrator: lif_scan,
}
