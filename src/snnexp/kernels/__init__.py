"""Faster twins of the neurons' reference scans: the same arguments, the same results, and a test that holds them to it.

``fused`` runs anywhere that PyTorch does; :func:`use` hands kernels to the neurons of a network.
"""

from collections.abc import Mapping

import torch

from snnexp.errors import ConfigError
from snnexp.kernels import leaky, lif
from snnexp.neurons import Kernel, Leaky, LeakyIntegrator, Neuron, ParametrizedLIF, RLeaky, reference

FUSED: Mapping[type[Neuron], Kernel] = {
    Leaky: leaky.scan,
    RLeaky: leaky.scan,
    ParametrizedLIF: lif.scan,
    LeakyIntegrator: lif.scan,
}
KERNELS: Mapping[str, Mapping[type[Neuron], Kernel]] = {"reference": {}, "fused": FUSED}


def use(network: torch.nn.Module, name: str, device: torch.device) -> str:
    """Give every neuron in ``network`` the kernel of that name, and tell what each of them runs on.

    Args:
        network: a network, a neuron, or any module that holds some.
        name: ``reference``, ``fused``, or ``auto`` for the fastest that there is for each neuron on ``device``.
        device: where the network will run.

    Returns:
        The kernel's name, or where neurons differ, names by layer: ``fused, reference (hidden1)``.

    Raises:
        ConfigError: there is no such kernel for one of the neurons.
    """
    preferred = ["fused", "reference"] if name == "auto" else [name]
    used: dict[str, list[str]] = {}
    for path, neuron in network.named_modules():
        if isinstance(neuron, Neuron):
            kind = type(neuron)
            chosen = next((kernel for kernel in preferred if kernel == "reference" or kind in KERNELS[kernel]), None)
            if chosen is None:
                raise ConfigError(f"kernel: there is no {name} kernel for {kind.__name__}; use auto")
            neuron.kernel = reference if chosen == "reference" else KERNELS[chosen][kind]
            used.setdefault(chosen, []).append(path.removeprefix("layers.").removesuffix(".neuron"))
    if len(used) == 1:
        return next(iter(used))
    return ", ".join(f"{kernel} ({', '.join(paths)})" for kernel, paths in used.items())
