"""Fast implementations of the neurons' reference scans, with the same arguments and the same results.

``fused`` kernels run on any PyTorch device, ``triton`` kernels on GPUs; :func:`use` selects the kernels of a network.
"""

import re
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
    """Set the kernel of every neuron in ``network``, and return which kernels are used.

    Args:
        network: a network, a neuron, or any module that contains neurons.
        name: ``reference``, ``fused``, ``triton``, or ``auto`` for the fastest one of each neuron on ``device``.
        device: the device that the network will run on.
        stacked: whether the network is a stack, which Triton kernels do not support.

    Returns:
        The name of the kernel, or names with layers if neurons differ, ``fused (conv1), triton (readout)``; ``none``
        if the network has no neurons of this package.

    Raises:
        ConfigError: a neuron has no such kernel on ``device``.
    """
    names = [name]
    if name == "auto":
        names = [*(["triton"] if device.type == "cuda" and not stacked else []), "fused", "reference"]
    used: dict[str, list[str]] = {}
    for path, neuron in network.named_modules():
        if isinstance(neuron, Neuron):
            chosen, kernel = _first_available(names, neuron, device)
            # Lightning moves the network back to the CPU after training
            neuron.kernel = triton_or_fused if chosen == "triton" else kernel
            short = re.sub(r"^(layers|module)\.", "", path).removesuffix(".neuron")
            used.setdefault(chosen, []).append(short)
    if not used and name in ("fused", "triton"):
        raise ConfigError(f"kernel: got {name}, but the network has no snnexp neurons; use auto")
    if len(used) == 1:
        return next(iter(used))
    return "none" if not used else ", ".join(f"{kernel} ({' '.join(paths)})" for kernel, paths in used.items())


def _first_available(names: list[str], neuron: Neuron, device: torch.device) -> tuple[str, Kernel]:
    """Return the first of ``names`` with a kernel for this neuron, and the kernel."""
    reason = ""
    for name in names:
        kernel = KERNELS[name](neuron, device)
        if not isinstance(kernel, str):
            return name, kernel
        reason = kernel
    raise ConfigError(f"kernel: got {names[-1]}, {reason}; use auto")


def _fused(neuron: Neuron, device: torch.device) -> Kernel | str:
    # parametrize replaces the class of the neuron
    cls = type_before_parametrizations(neuron)
    return FUSED.get(cls, f"{cls.__name__} has no fused kernel")


def _triton(neuron: Neuron, device: torch.device) -> Kernel | str:
    try:
        # Triton is installed with GPU builds of PyTorch, and takes a second to import
        from snnexp.kernels import triton_common, triton_leaky, triton_lif
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "Triton is not installed"
    scans: Mapping[type[Neuron], Kernel] = {
        neuron_type: module.scan for module in (triton_leaky, triton_lif) for neuron_type in module.NEURONS
    }
    return triton_common.kernel_of(neuron, device, scans)


def triton_or_fused(neuron: Neuron, current: torch.Tensor, *arguments: Any, **options: Any) -> Any:
    """Run the Triton kernel if the current is on a GPU, else the fused one."""
    kernel = _triton(neuron, current.device)
    kernel = _fused(neuron, current.device) if isinstance(kernel, str) else kernel
    if isinstance(kernel, str):
        raise ConfigError(f"kernel: none is available on {current.device}, {kernel}")
    return kernel(neuron, current, *arguments, **options)


KERNELS: Mapping[str, Callable[[Neuron, torch.device], Kernel | str]] = {
    "triton": _triton,
    "fused": _fused,
    "reference": lambda neuron, device: reference,
}
"""By name: a function that returns the kernel for a neuron on a device, or the reason why there is none."""
