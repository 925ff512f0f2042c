"""Faster twins of the neurons' reference scans: the same arguments, the same results, and tests that hold them to it.

``fused`` runs anywhere that PyTorch does, ``triton`` on GPUs; :func:`use` hands kernels to the neurons of a network.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.utils.parametrize import type_before_parametrizations

from snnexp.errors import ConfigError
from snnexp.kernels import fused_leaky, fused_lif
from snnexp.neurons import Kernel, Neuron, reference

FUSED: Mapping[type[Neuron], Kernel] = {
    neuron: module.scan for module in (fused_leaky, fused_lif) for neuron in module.NEURONS
}


def use(network: torch.nn.Module, name: str, device: torch.device, stacked: bool = False) -> str:
    """Give every neuron in ``network`` the kernel of that name, and tell what each of them runs on.

    Args:
        network: a network, a neuron, or any module that holds some.
        name: ``reference``, ``fused``, ``triton``, or ``auto`` for the best that each neuron has on ``device``.
        device: where the network will run.
        stacked: whether it is a stack, which Triton's kernels do not know.

    Returns:
        The kernel's name, or where neurons differ, names with layers: ``fused (conv1), triton (readout)``; ``none``
        where there are no neurons of this package.

    Raises:
        ConfigError: one of the neurons has no such kernel there.
    """
    names = [name]
    if name == "auto":
        names = [*(["triton"] if device.type == "cuda" and not stacked else []), "fused", "reference"]
    used: dict[str, list[str]] = {}
    for path, neuron in network.named_modules():
        if isinstance(neuron, Neuron):
            chosen, kernel = _first(names, neuron, device)
            # Lightning takes a network back to the CPU after training
            neuron.kernel = triton_or_fused if chosen == "triton" else kernel
            short = path.removeprefix("layers.").removeprefix("module.").removesuffix(".neuron")
            used.setdefault(chosen, []).append(short)
    if not used and name in ("fused", "triton"):
        raise ConfigError(f"kernel: got {name}, and the network has no neurons of snnexp; use auto")
    if len(used) == 1:
        return next(iter(used))
    return "none" if not used else ", ".join(f"{kernel} ({' '.join(paths)})" for kernel, paths in used.items())


def _first(names: list[str], neuron: Neuron, device: torch.device) -> tuple[str, Kernel]:
    """The first of ``names`` of which there is a kernel."""
    reason = ""
    for name in names:
        kernel = KERNELS[name](neuron, device)
        if not isinstance(kernel, str):
            return name, kernel
        reason = kernel
    raise ConfigError(f"kernel: got {names[-1]}, {reason}; use auto")


def _fused(neuron: Neuron, device: torch.device) -> Kernel | str:
    # a parameter that is kept as its logarithm makes a class of its own
    kind = type_before_parametrizations(neuron)
    return FUSED.get(kind, f"{kind.__name__} has no fused form")


def _triton(neuron: Neuron, device: torch.device) -> Kernel | str:
    try:
        # Triton is there wherever PyTorch can use a GPU, and takes a second to import
        from snnexp.kernels import triton_common, triton_leaky, triton_lif
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "Triton is not installed"
    scans: Mapping[type[Neuron], Kernel] = {
        kind: module.scan for module in (triton_leaky, triton_lif) for kind in module.NEURONS
    }
    return triton_common.kernel_of(neuron, device, scans)


def triton_or_fused(neuron: Neuron, current: torch.Tensor, *arguments: Any, **options: Any) -> Any:
    """The Triton kernel where the current lies on a GPU, the fused one where it does not."""
    kernel = _triton(neuron, current.device)
    kernel = _fused(neuron, current.device) if isinstance(kernel, str) else kernel
    if isinstance(kernel, str):
        raise ConfigError(f"kernel: on {current.device} there is none, {kernel}")
    return kernel(neuron, current, *arguments, **options)


KERNELS: Mapping[str, Callable[[Neuron, torch.device], Kernel | str]] = {
    "triton": _triton,
    "fused": _fused,
    "reference": lambda neuron, device: reference,
}
"""By name: the kernel for a neuron on a device, or why there is none."""
