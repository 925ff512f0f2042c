"""Decoders and measures: ties, hand-counted values, and synaptic operations counted one by one."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from snnexp import metrics
from snnexp.data.batches import OrderedBatches


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


def mean(pair: metrics.Sum) -> float:
    total, count = pair
    return (total / count).item()


def test_accuracy() -> None:
    assert mean(metrics.accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0]))) == 0.75


def test_l1() -> None:
    target = torch.tensor([1.0, -2.0, 0.0, 4.0]).view(4, 1, 1)
    assert mean(metrics.l1(torch.zeros(4, 1, 1), target)) == 7 / 4


def test_relative_error_leaves_out_the_first_step() -> None:
    """Errors of 1/2 and 1/4 of the target; at t = 0 the target is zero."""
    target = torch.tensor([0.0, 2.0, -4.0]).view(3, 1, 1)
    membrane = torch.tensor([9.0, 1.0, -5.0]).view(3, 1, 1)
    assert mean(metrics.relative_error(membrane, target)) == (1 / 2 + 1 / 4) / 2


def test_relative_error_is_scale_free_and_takes_norms_over_neurons() -> None:
    target = torch.tensor([[[1.0, 1.0]], [[0.0, 10.0]]])
    membrane = target + torch.tensor([3.0, 4.0])
    torch.testing.assert_close(mean(metrics.relative_error(membrane, target)), 0.5)
    torch.testing.assert_close(mean(metrics.relative_error(7 * membrane, 7 * target)), 0.5)


def test_relative_error_leaves_out_points_that_have_none() -> None:
    """The target crosses zero at t = 2, where no error is relative to it."""
    target = torch.tensor([1.0, 2.0, 0.0, -4.0]).view(4, 1, 1)
    membrane = torch.tensor([9.0, 1.0, 5.0, -5.0]).view(4, 1, 1)
    assert mean(metrics.relative_error(membrane, target)) == (1 / 2 + 1 / 4) / 2
    total, count = metrics.relative_error(membrane, torch.zeros(4, 1, 1))
    assert (total, count) == (0, 0)


def test_a_sample_is_undecided_where_classes_share_the_highest_count() -> None:
    count = torch.tensor([[0.0, 0, 0], [2, 1, 2], [1, 2, 0], [3, 3, 3]])
    trace = SimpleNamespace(spike_count=count, max_membrane=torch.tensor([[0.1, 0.2, 0.2], [0.3, 0.1, 0.2]]))
    assert [*map(int, metrics.undecided(trace, "spike_count"))] == [3, 4]
    assert [*map(int, metrics.undecided(trace, "max_voltage"))] == [1, 2]


class TestMeans:
    @pytest.mark.parametrize("processes", [1, 2, 3])
    @pytest.mark.parametrize("length", [1, 5, 129, 1000])
    def test_are_those_of_all_samples_however_they_are_shared(self, length: int, processes: int) -> None:
        """Batches of 16, of which each process takes its share, as many batches as it gets."""
        random = torch.Generator().manual_seed(length)
        membrane, target = torch.randn((2, 7, length, 3), generator=random).unbind(0)
        shares = []
        for rank in range(processes):
            means = metrics.Means()
            for batch in OrderedBatches(length, 16, rank, processes):
                means.add({"l1": metrics.l1(membrane[:, batch], target[:, batch])})
                means.add({"error": metrics.relative_error(membrane[:, batch], target[:, batch])})
                means.add({"hit": metrics.accuracy(membrane[0, batch].argmax(-1), target[0, batch].argmax(-1))})
            shares.append(means)
        gathered: list[list[Tensor]] = []
        for means in shares[1:]:
            parts: list[Tensor] = []
            means.take(lambda tensor, parts=parts: parts.append(tensor) or tensor)  # type: ignore[misc]
            gathered.append(parts)
        turns = iter(range(2))

        def reduce(tensor: Tensor) -> Tensor:
            turn = next(turns)
            return tensor + sum(parts[turn] for parts in gathered)

        found = shares[0].take(reduce)
        whole = (membrane - target).abs().double().mean()
        ratio = torch.linalg.vector_norm(membrane - target, dim=-1) / torch.linalg.vector_norm(target, dim=-1)
        hits = (membrane[0].argmax(-1) == target[0].argmax(-1)).double().mean()
        wanted = torch.stack([whole, ratio[1:].double().mean(), hits])
        torch.testing.assert_close(torch.stack([*found.values()]).double(), wanted, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("batch_size", [3, 6, 18])
    def test_of_equal_losses_do_not_drift(self, batch_size: int) -> None:
        """Equal batches are rounded in one direction, and 334 of them by 3e-6 in float32."""
        means = metrics.Means()
        for batch in OrderedBatches(1000, batch_size):
            means.add({"loss": metrics.counted(torch.tensor(1.9) * len(batch), len(batch))})
        assert means.take()["loss"].item() == pytest.approx(1.9, rel=1e-7)

    def test_begin_anew_once_they_are_taken(self) -> None:
        means = metrics.Means()
        means.add({"a": metrics.counted(torch.tensor(6.0), 4)})
        assert means.take() == {"a": 1.5}
        assert means.take() == {}

    def test_of_nothing_are_no_numbers(self) -> None:
        means = metrics.Means()
        means.add({"a": metrics.counted(torch.tensor(0.0), 0)})
        assert means.take()["a"].isnan()


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
