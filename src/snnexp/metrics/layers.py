"""Metrics of layer activity."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def firing_rate(spikes: Tensor) -> Tensor:
    """Return the spikes per neuron and time step, 0 to 1."""
    return spikes.mean()


def dead(count: Tensor) -> Tensor:
    """Return the fraction of neurons that never fired, from the spike count of each neuron."""
    return (count == 0).float().mean()


def saturated(count: Tensor, num_steps: int) -> Tensor:
    """Return the fraction of neurons that fired in every step, from the spike count of each neuron."""
    return (count == num_steps).float().mean()


def synaptic_operations(spikes: Tensor, synapse: nn.Linear | nn.Conv2d | int) -> Tensor:
    """Return the synaptic operations per sample: one addition per spike and connection.

    A spike has a connection to each output of an ``nn.Linear``, to each output of an ``nn.Conv2d`` whose kernel covers
    it, or to a given number of neurons. Spikes of -1, as of :class:`~snnexp.encoders.Delta`, count like those of 1.
    """
    batch, spikes = spikes.shape[1], spikes.abs()
    if isinstance(synapse, nn.Conv2d):
        # a kernel of ones counts the spikes in each receptive field
        groups = synapse.groups
        ones = torch.ones((groups, *synapse.weight.shape[1:]), device=spikes.device, dtype=spikes.dtype)
        shape = (synapse.stride, synapse.padding, synapse.dilation, groups)
        counts = F.conv2d(spikes.flatten(0, 1), ones, None, *shape)  # type: ignore[arg-type]
        return counts.sum() * (synapse.out_channels // groups) / batch
    return spikes.sum() * (synapse.out_features if isinstance(synapse, nn.Linear) else synapse) / batch
