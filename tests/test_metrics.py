"""Decoders and measures: ties, hand-counted values, and synaptic operations counted one by one."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from snnexp import metrics


def test_spike_count() -> None:
    """A tie goes to the lower index, silence to class 0; when the spikes came does not matter."""
    spikes = torch.zeros(4, 4, 3)
    spikes[:3, 0, 2] = 1
    spikes[1, 1, 2] = spikes[3, 1, 1] = 1
    spikes[:2, 2, 2] = spikes[2:, 2, 0] = 1
    assert metrics.spike_count(spikes).tolist() == [2, 1, 0, 0]


def test_ties_between_many_classes_go_to_the_lowest() -> None:
    for classes in (2, 10, 100, 1000):
        for first in (0, classes // 2):
            spikes = torch.zeros(3, 5, classes)
            spikes[:, :, first:] = 1
            assert metrics.spike_count(spikes).tolist() == [first] * 5


def test_max_voltage() -> None:
    """One high moment beats a high mean."""
    membrane = torch.full((5, 2, 3), -1.0)
    membrane[:, 0, 0], membrane[3, 0, 2] = 0.8, 0.9
    membrane[0, 1, 1] = -0.5
    assert metrics.max_voltage(membrane).tolist() == [2, 1]


def test_accuracy() -> None:
    assert metrics.accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0])) == 0.75


def test_l1() -> None:
    target = torch.tensor([1.0, -2.0, 0.0, 4.0]).view(4, 1, 1)
    assert metrics.l1(torch.zeros(4, 1, 1), target) == 7 / 4


def test_relative_error_leaves_out_the_first_step() -> None:
    """Errors of 1/2 and 1/4 of the target; at t = 0 the target is zero."""
    target = torch.tensor([0.0, 2.0, -4.0]).view(3, 1, 1)
    membrane = torch.tensor([9.0, 1.0, -5.0]).view(3, 1, 1)
    assert metrics.relative_error(membrane, target) == (1 / 2 + 1 / 4) / 2


def test_relative_error_is_scale_free_and_takes_norms_over_neurons() -> None:
    target = torch.tensor([[[1.0, 1.0]], [[0.0, 10.0]]])
    membrane = target + torch.tensor([3.0, 4.0])
    torch.testing.assert_close(metrics.relative_error(membrane, target).item(), 0.5)
    torch.testing.assert_close(metrics.relative_error(7 * membrane, 7 * target).item(), 0.5)


def test_firing_rate() -> None:
    spikes = torch.zeros(10, 2, 3)
    spikes[:6, 0, 1] = 1
    torch.testing.assert_close(metrics.firing_rate(spikes).item(), 6 / 60)


def test_synaptic_operations_of_a_linear_layer() -> None:
    """Each of 5 spikes reaches all 7 outputs, shared by 2 samples."""
    spikes = torch.zeros(4, 2, 3)
    spikes[0, :, 1] = spikes[2, 1, :] = 1
    assert metrics.synaptic_operations(spikes, nn.Linear(3, 7)) == 5 * 7 / 2


def count_one_by_one(spikes: Tensor, conv: nn.Conv2d) -> int:
    """Additions: one for each spike, output channel and output position whose window holds the spike."""
    (kh, kw), (sh, sw), (ph, pw) = conv.kernel_size, conv.stride, conv.padding
    height, width = conv(spikes[:1, 0]).shape[-2:]
    count = 0
    for *_, y, x in spikes.nonzero().tolist():
        for top, left in product(range(height), range(width)):
            count += 0 <= y + ph - sh * top < kh and 0 <= x + pw - sw * left < kw
    return count * conv.out_channels


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [(3, 1, 0), (3, 1, 1), (5, 1, 2), (3, 2, 1), (2, 2, 0), (1, 1, 0), (2, 3, 1), ((3, 1), (1, 2), (1, 0))],
)
def test_synaptic_operations_of_a_convolution(kernel_size: int, stride: int, padding: int) -> None:
    spikes = (torch.rand(3, 2, 4, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    conv = nn.Conv2d(4, 5, kernel_size, stride, padding)
    assert metrics.synaptic_operations(spikes, conv) == count_one_by_one(spikes, conv) / 2


@pytest.mark.parametrize("synapse", [nn.Linear(7, 5), nn.Conv2d(4, 5, 3)], ids=["linear", "conv2d"])
def test_silence_costs_nothing(synapse: nn.Linear | nn.Conv2d) -> None:
    assert metrics.synaptic_operations(torch.zeros(3, 2, 4, 6, 7), synapse) == 0
