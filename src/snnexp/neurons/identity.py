"""Identity neuron: U[t] = I[t]. The output is the input current, as in a non-spiking network."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.neurons.neuron import Neuron
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Features
from snnexp.spec.checked import checked


class IdentityState(NamedTuple):
    """The last current, ``[B, *N]``; it has no effect on later steps."""

    membrane: Tensor


class Identity(Neuron):
    """Non-spiking layer without dynamics, U[t] = I[t].

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
        # a constant current is expanded instead of copied, so that the next synapse can detect it
        is_constant = all(step is current[0] for step in current)
        membrane = current[0].expand(len(current), *current[0].shape) if is_constant else torch.stack([*current])
        return Trace(torch.zeros_like(current[0]).expand_as(membrane), membrane, IdentityState(current[-1]))
