"""Decoders and measures: pure functions of traces and targets.

Shapes: spikes and membrane ``[T, B, *N]``, labels and predictions ``[B]``. Each measure returns a scalar tensor.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def spike_count(spikes: Tensor) -> Tensor:
    """The class ``[B]`` that fired most, argmax_k sum_t S; a tie goes to the lower index."""
    return spikes.sum(0).argmax(-1)


def max_voltage(membrane: Tensor) -> Tensor:
    """The class ``[B]`` whose membrane rose highest, argmax_k max_t U."""
    return membrane.amax(0).argmax(-1)


def decode(trace: Any, decoder: str) -> Tensor:
    """The class ``[B]`` that a readout's trace means, by :func:`spike_count` or :func:`max_voltage`."""
    # one step that holds the sum, or the maximum, of all
    if decoder == "spike_count":
        return spike_count(trace.spike_count.unsqueeze(0))
    return max_voltage(trace.max_membrane.unsqueeze(0))


def accuracy(predicted: Tensor, target: Tensor) -> Tensor:
    """The fraction of labels that were met, 0 to 1."""
    return (predicted == target).float().mean()


def l1(membrane: Tensor, target: Tensor) -> Tensor:
    """mean |U - y|, in the unit of the target."""
    return (membrane - target).abs().mean()


def relative_error(membrane: Tensor, target: Tensor) -> Tensor:
    """mean over t >= 1 of ||U - y|| / ||y||, with the norm over the last axis; at t = 0 the target may be zero."""
    error: Tensor = torch.linalg.vector_norm(membrane - target, dim=-1)
    size: Tensor = torch.linalg.vector_norm(target, dim=-1)
    return (error / size)[1:].mean()


def firing_rate(spikes: Tensor) -> Tensor:
    """Spikes per neuron and time step, 0 to 1."""
    return spikes.mean()


def dead(count: Tensor) -> Tensor:
    """The fraction of neurons that never fired, 0 to 1; ``count`` has each neuron's spikes."""
    return (count == 0).float().mean()


def saturated(count: Tensor, most: int) -> Tensor:
    """The fraction of neurons that fired in every step, 0 to 1; ``most`` is how many steps there were."""
    return (count == most).float().mean()


def synaptic_operations(spikes: Tensor, synapse: nn.Linear | nn.Conv2d | int) -> Tensor:
    """The additions that ``spikes`` cause behind a synapse, per sample: each spike costs one per connection it reaches.

    A spike reaches each output of an ``nn.Linear``, each kernel position that covers it in an ``nn.Conv2d``, or as many
    neurons as an int says.
    """
    batch = spikes.shape[1]
    if isinstance(synapse, nn.Conv2d):
        # a kernel of ones counts, for each output position, the spikes it sees
        ones = torch.ones((1, *synapse.weight.shape[1:]), device=spikes.device, dtype=spikes.dtype)
        seen = F.conv2d(spikes.flatten(0, 1), ones, stride=synapse.stride, padding=synapse.padding)
        return seen.sum() * synapse.out_channels / batch
    return spikes.sum() * (synapse.out_features if isinstance(synapse, nn.Linear) else synapse) / batch
