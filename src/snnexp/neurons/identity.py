"""No neuron: U[t] = I[t]. A layer of it hands on the currents of its synapses, as an artificial network would."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.neurons.neuron import Neuron
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Features
from snnexp.spec.checked import checked


class IdentityState(NamedTuple):
    """The last current ``[B, *N]``, which no later step needs."""

    membrane: Tensor


class Identity(Neuron):
    """A layer without neurons, U[t] = I[t]; it never spikes.

    Args:
        features: axes of the current, an int or a tuple.
    """

    stackable = True
    spikes = False

    @checked
    def __init__(self, features: Features) -> None:
        super().__init__(features)

    def zero_state(self, current: Tensor) -> IdentityState:
        return IdentityState(torch.zeros_like(current))

    def scan(self, current: Sequence[Tensor], state: IdentityState) -> Trace:
        # a current that does not change is not copied, and the next synapse sees that it does not
        still = all(each is current[0] for each in current)
        membrane = current[0].expand(len(current), *current[0].shape) if still else torch.stack([*current])
        return Trace(torch.zeros_like(current[0]).expand_as(membrane), membrane, IdentityState(current[-1]))
