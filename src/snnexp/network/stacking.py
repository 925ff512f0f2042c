"""Stacking: several networks as one."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from snnexp.network.layers import StackedDense
from snnexp.network.network import Network
from snnexp.neurons import Neuron, Recurrence


def stack(networks: Sequence[Network]) -> Network:
    """Return one network for M networks that differ only in parameter values.

    The member axis is the first axis of parameters and the first neuron axis: features are ``(M, n)``, sequences
    ``[T, B, M, n]``. An input ``[T, B, 1, *N]`` is shared by all members. Only dense synapses can be stacked.
    """
    stacked = copy.deepcopy(networks[0])
    states = [network.state_dict() for network in networks]
    modules = dict(stacked.named_modules())
    for key in states[0]:
        path, _, name = key.rpartition(".")
        values = torch.stack([state[key] for state in states])
        # one value per layer
        values = values.unsqueeze(1) if values.ndim == 1 else values
        owner = modules[path]
        if name in owner._parameters:
            owner._parameters[name] = nn.Parameter(values, owner._parameters[name].requires_grad)
        else:
            owner._buffers[name] = values
    for path, module in modules.items():
        # Recurrence supports stacked weights itself
        if isinstance(module, nn.Linear) and not isinstance(module, Recurrence):
            # the weights are set, only forward differs
            module.__class__ = StackedDense
        if isinstance(module, Neuron):
            module.stack_members([cast(Neuron, network.get_submodule(path)) for network in networks])
    return stacked
