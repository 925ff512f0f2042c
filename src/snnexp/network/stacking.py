"""Networks side by side as one."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from snnexp.network.layers import StackedDense
from snnexp.network.network import Network
from snnexp.neurons import Neuron, Recurrence


def stack(networks: Sequence[Network]) -> Network:
    """One network of M that differ in numbers alone: each parameter is theirs, with the member axis first.

    The member axis is the first neuron axis, so that features are ``(M, n)`` and sequences ``[T, B, M, n]``; the input
    may be ``[T, B, 1, *N]``, the same for all. Only dense synapses can be stacked.
    """
    made = copy.deepcopy(networks[0])
    states = [network.state_dict() for network in networks]
    modules = dict(made.named_modules())
    for key in states[0]:
        path, _, name = key.rpartition(".")
        values = torch.stack([state[key] for state in states])
        # one value for the layer of a member
        values = values.unsqueeze(1) if values.ndim == 1 else values
        owner = modules[path]
        if name in owner._parameters:
            owner._parameters[name] = nn.Parameter(values, owner._parameters[name].requires_grad)
        else:
            owner._buffers[name] = values
    for path, module in modules.items():
        # one without autapses multiplies for members as it is
        if isinstance(module, nn.Linear) and not isinstance(module, Recurrence):
            # weights are in place, and how they are multiplied is the class's alone
            module.__class__ = StackedDense
        if isinstance(module, Neuron):
            module.stack_members([cast(Neuron, network.get_submodule(path)) for network in networks])
    return made
