"""Building blocks of the Triton kernels: supported neurons, surrogates, tiles, and launching.

A kernel contains the loop over time and holds the state in registers: one launch forward, one backward. A program
computes a tile of samples and neurons, ``[BLOCK_B, BLOCK_N]``. In a layer with linear feedback, the tile has all
neurons, at most ``MAX_RECURRENT``, and the feedback weight is in on-chip memory. The operations have the order of the
reference and are not contracted to fused multiply-adds, because a different rounding can flip a spike. Weight gradients
are one product over all steps.

With TRITON_INTERPRET=1, set before Triton is imported, the kernels run on a CPU, slowly.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from snnexp.neurons import Kernel, Neuron
from snnexp.surrogates import ATan, FastSigmoid, Sigmoid, StraightThrough, SuperSpike, Surrogate, Triangular

MAX_RECURRENT = 128
"""Maximum number of neurons in a layer with linear feedback: 64 KiB of weights."""
STREAMED = ("spike_count", "max_membrane", "last_spikes")
"""Statistics that a kernel computes without a full trace; others are computed from the trace."""


def kernel_of(neuron: Neuron, device: torch.device, scans: Mapping[type[Neuron], Kernel]) -> Kernel | str:
    """Return the kernel in ``scans`` for a neuron on a device, or the reason why there is none."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton requires a GPU, device is {device.type}"
    surrogate = getattr(neuron, "surrogate", None)
    if surrogate is not None and type(surrogate) not in SURROGATES:
        return f"{type(surrogate).__name__} has no Triton kernel"
    if surrogate is not None and any(isinstance(number, Tensor) for number in vars(surrogate).values()):
        return "Triton kernels do not support surrogate parameters that differ between members"
    recurrent = getattr(neuron, "recurrent", None)
    if recurrent is not None and recurrent.weight.ndim == 3:
        return "stacked feedback has no Triton kernel"
    if isinstance(recurrent, nn.Conv2d):
        return "conv2d feedback has no Triton kernel"
    if recurrent is not None and recurrent.out_features > MAX_RECURRENT:
        return f"linear feedback of {recurrent.out_features} neurons exceeds the maximum of {MAX_RECURRENT}"
    if recurrent is not None and device.type == "cuda" and not _fits(recurrent.weight, device):
        return f"linear feedback of {recurrent.out_features} neurons does not fit in shared memory"
    cls = type_before_parametrizations(neuron)
    return scans.get(cls, f"{cls.__name__} has no Triton kernel")


def _fits(weight: Tensor, device: torch.device) -> bool:
    """Return True if shared memory holds the padded weight, plus an eighth for spikes."""
    side = max(16, triton.next_power_of_2(len(weight)))
    needed = side * side * max(4, weight.element_size()) * 9 // 8
    properties: Any = torch.cuda.get_device_properties(device)
    return bool(needed <= properties.shared_memory_per_block_optin)


SURROGATES: dict[type[Surrogate], tuple[int, str | None]] = {
    ATan: (0, "alpha"),
    FastSigmoid: (1, "slope"),
    SuperSpike: (1, "alpha"),
    Sigmoid: (2, "slope"),
    Triangular: (3, "width"),
    StraightThrough: (4, None),
}
"""By class: the branch of :func:`derivative`, and the name of the surrogate's parameter."""


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
    """Return offsets into ``[B, n]`` and their mask, and columns and their mask."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < n
    at = rows[:, None].to(tl.int64) * n + columns[None, :]
    return at, (rows[:, None] < B) & inside[None, :], columns, inside


def launch(kernel: Any, like: Tensor, recurrent: bool, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel over the samples and neurons of ``like``, ``[B, n]``."""
    batch, n = like.shape
    block_n = max(16, triton.next_power_of_2(n)) if recurrent else min(128, max(16, triton.next_power_of_2(n)))
    block_b = 16 if recurrent else max(1, min(triton.next_power_of_2(batch), 256 // block_n))
    grid = (triton.cdiv(batch, block_b), triton.cdiv(n, block_n))
    # no fused multiply-adds: they round once, the reference rounds twice
    options = {"num_warps": 4, "enable_fp_fusion": False}
    with torch.cuda.device_of(like):
        kernel[grid](*arguments, **constants, BLOCK_B=block_b, BLOCK_N=block_n, **options)


def surrogate_constants(surrogate: Surrogate | None) -> dict[str, Any]:
    kind, name = SURROGATES[type(surrogate)] if surrogate is not None else (4, None)
    return {"KIND": kind, "NUMBER": 0.0 if name is None else float(getattr(surrogate, name))}


def weight_gradient(g: Tensor, first: Tensor, spikes: Tensor) -> Tensor:
    """Return the sum over t of g[t]^T S[t - 1], as one product."""
    previous = torch.cat([first.unsqueeze(0), spikes[:-1]])
    return g.flatten(0, 1).t() @ previous.flatten(0, 1)
