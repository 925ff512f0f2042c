"""The scans of :class:`snnexp.neurons.Leaky` and :class:`snnexp.neurons.RLeaky` as Triton kernels.

The equations are those of :mod:`snnexp.kernels.fused_leaky`; see :mod:`snnexp.kernels.triton_common` for how they run.
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
from snnexp.neurons import Leaky, LeakyState, ReducedTrace, RLeaky, RLeakyState, Trace, time_distributed
from snnexp.neurons.neuron import decay

NEURONS = (Leaky, RLeaky)
"""The neurons whose equation :func:`scan` computes."""

RESETS = {"none": 0, "subtract": 1, "zero": 2}
NO_FEEDBACK, ONE_TO_ONE, LINEAR = 0, 1, 2


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
    g_next, total, sum_beta, sum_theta, sum_V = first * 0, first * 0, first * 0, first * 0, first * 0
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
            g = g + v * g_next
        if FEEDBACK == 2:
            g = g + tl.dot(g_next, W, input_precision="ieee", out_dtype=W.dtype)
        g = g * derivative(U - th, KIND, NUMBER)
        sum_theta -= g
        if HAS_GU:
            g = g + tl.load(gU + step, exists, 0.0)
        if RESET == 2 and FEEDBACK == 0:
            g = g + b * (g_next * (1 - (th < U).to(U.dtype)))
        else:
            g = g + b * g_next
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
        g_next = g
        U = previous
        step -= B * n
    g_first = b * g_next
    if RESET == 2 and FEEDBACK == 0:
        g_first = g_first * (1 - (first > th).to(first.dtype))
    tl.store(g_U0 + at, g_first, exists)
    if FEEDBACK == 1:
        tl.store(g_S0 + at, v * g_next, exists)
        tl.store(g_V + at, sum_V, exists)
    if FEEDBACK == 2:
        tl.store(g_S0 + at, tl.dot(g_next, W, input_precision="ieee", out_dtype=W.dtype), exists)
    tl.store(g_total + at, total, exists)
    tl.store(g_beta + at, sum_beta, exists)
    tl.store(g_theta + at, sum_theta, exists)


def scan(
    neuron: Leaky | RLeaky,
    current: Tensor,
    num_steps: int,
    state: Any,
    synapse: nn.Module | None = None,
    statistics: Sequence[str] | None = None,
) -> tuple[Any, Tensor | None]:
    """Triton implementation of the reference scans; see :class:`snnexp.neurons.Kernel` for the arguments."""
    recurrent = isinstance(neuron, RLeaky)
    kind, V, bias = NO_FEEDBACK, None, None
    if isinstance(neuron, RLeaky) and neuron.recurrent is None:
        kind, V = ONE_TO_ONE, per_neuron(neuron, neuron.V)
    elif isinstance(neuron, RLeaky):
        feedback_synapse: Any = neuron.recurrent
        kind, V, bias = (
            LINEAR,
            at_least_float32(feedback_synapse.weight).contiguous(),
            at_least_float32(feedback_synapse.bias),
        )
    settings = (num_steps, RESETS[neuron.reset], kind, neuron.surrogate)
    first = [part.flatten(1).contiguous() for part in state]
    inputs = (flatten_features(current).contiguous(), *first[:2], *[None] * (2 - len(first)))
    inputs += (per_neuron(neuron, decay(neuron.beta)), per_neuron(neuron, neuron.threshold), V, bias)

    def state_of(U: Tensor, S: Tensor) -> Any:
        return (
            RLeakyState(unflatten_features(neuron, U), unflatten_features(neuron, S))
            if recurrent
            else LeakyState(unflatten_features(neuron, U))
        )

    if statistics is not None and {*statistics} <= {*STREAMED} and synapse is None and not torch.is_grad_enabled():
        _, _, sums, (U, S) = _run(settings, inputs, keep=False)
        values = dict(zip(STREAMED, (unflatten_features(neuron, x) for x in (*sums, S)), strict=True))
        values = {name: values[name] for name in statistics}
        return ReducedTrace(num_steps, len(U), state_of(U, S), values), None
    U, S = _Scan.apply(settings, *inputs)
    trace = Trace(unflatten_features(neuron, S), unflatten_features(neuron, U), state_of(U[-1], S[-1]))
    output = None if synapse is None else time_distributed(synapse, trace.spikes)
    return trace if statistics is None else trace.reduced(statistics), output


def _run(settings: Any, inputs: Sequence[Any], keep: bool) -> Any:
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


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        U, S, _, _ = _run(settings, inputs, keep=True)
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
            weight = weight_gradient(g, first_spikes, S)
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
