"""What the spikes of a layer add up to."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    neurons as an int says. One of -1, as of :class:`~snnexp.encoders.Delta`, costs as much as one of 1.
    """
    batch, spikes = spikes.shape[1], spikes.abs()
    if isinstance(synapse, nn.Conv2d):
        # a kernel of ones counts, for each output position and group of channels, the spikes it sees
        groups = synapse.groups
        ones = torch.ones((groups, *synapse.weight.shape[1:]), device=spikes.device, dtype=spikes.dtype)
        shape = (synapse.stride, synapse.padding, synapse.dilation, groups)
        seen = F.conv2d(spikes.flatten(0, 1), ones, None, *shape)  # type: ignore[arg-type]
        return seen.sum() * (synapse.out_channels // groups) / batch
    return spikes.sum() * (synapse.out_features if isinstance(synapse, nn.Linear) else synapse) / batch
