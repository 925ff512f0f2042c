"""Losses: values and gradients that can be worked out on paper."""

import math

import pytest
import torch
from torch import Tensor

from snnexp import losses
from snnexp.errors import ConfigError
from snnexp.neurons import Trace


def spikes_with_counts(counts: list[list[int]], num_steps: int) -> Tensor:
    """``[T, B, K]`` spikes that add up to ``counts`` ``[B, K]``."""
    return (torch.arange(num_steps).view(-1, 1, 1) < torch.tensor(counts)).float()


def gradient(loss: Tensor, variable: Tensor) -> Tensor:
    return torch.autograd.grad(loss, variable)[0]


class TestCEMembrane:
    def test_knowing_nothing_costs_log_k_per_step(self) -> None:
        membrane = torch.full((7, 3, 10), 0.4)
        torch.testing.assert_close(losses.ce_membrane(membrane, torch.tensor([0, 5, 9])).item(), 7 * math.log(10))

    def test_sums_over_time_and_averages_over_the_batch(self) -> None:
        """Two classes a margin m apart cost log(1 + exp(-m)) where the label leads, m more where it trails."""
        m = [[1.0, 2.0], [0.5, 3.0], [0.0, -1.0]]
        membrane = torch.tensor([[[x, 0.0], [0.0, x]] for x, _ in m])
        membrane[:, 1, 1] = torch.tensor([x for _, x in m])
        expected = sum(math.log1p(math.exp(-x)) for pair in m for x in pair) / 2
        torch.testing.assert_close(losses.ce_membrane(membrane, torch.tensor([0, 1])).item(), expected)
        swapped = expected + sum(x for pair in m for x in pair) / 2
        torch.testing.assert_close(losses.ce_membrane(membrane, torch.tensor([1, 0])).item(), swapped)

    def test_gradient_is_softmax_less_the_label(self) -> None:
        membrane = torch.zeros(4, 2, 5, requires_grad=True)
        g = gradient(losses.ce_membrane(membrane, torch.tensor([1, 3])), membrane)
        expected = torch.full((4, 2, 5), 0.1)
        expected[:, 0, 1] = expected[:, 1, 3] = (0.2 - 1) / 2
        torch.testing.assert_close(g, expected)


class TestMSECount:
    def test_is_zero_where_the_counts_are_met(self) -> None:
        """A rate of .29 over 100 steps is 29 spikes, although 100 * .29 is 28.999999999999996."""
        target = torch.tensor([2, 0])
        met = spikes_with_counts([[7, 7, 29], [29, 7, 7]], 100)
        assert losses.mse_count(met, target, 0.29, 0.07) == 0
        missed = spikes_with_counts([[7, 7, 28], [28, 7, 7]], 100)
        torch.testing.assert_close(losses.mse_count(missed, target, 0.29, 0.07).item(), 2 / 6 / 100)

    def test_rounds_down_exactly(self) -> None:
        """For every rate in percent; a silent neuron alone costs (target^2) / T."""
        for T in (1, 7, 25, 100, 1000):
            silence = torch.zeros(T, 1, 1, dtype=torch.float64)
            for percent in range(101):
                loss = losses.mse_count(silence, torch.tensor([0]), percent / 100, 0.0)
                assert round(math.sqrt(loss * T), 6) == T * percent // 100

    def test_value(self) -> None:
        """T = 10, rates .8 and .2: targets 8 and 2; misses of 3, 0 and -2 in the one sample, none in the other."""
        spikes = spikes_with_counts([[5, 2, 4], [2, 2, 8]], 10)
        torch.testing.assert_close(losses.mse_count(spikes, torch.tensor([0, 2])).item(), (9 + 4) / 6 / 10)

    def test_gradient_is_the_same_at_every_step(self) -> None:
        spikes = spikes_with_counts([[5, 2]], 10).requires_grad_()
        g = gradient(losses.mse_count(spikes, torch.tensor([0])), spikes)
        torch.testing.assert_close(g, torch.tensor([2 * (5 - 8) / 2 / 10, 0]).expand(10, 1, 2))


class TestMSEMembrane:
    def test_labels(self) -> None:
        """Targets 1.05 and .2: a membrane of 1.05 misses the others by .85 and one of .2 the label by as much."""
        target = torch.tensor([1])
        for value, misses in [(1.05, 3), (0.2, 1)]:
            loss = losses.mse_membrane(torch.full((6, 1, 4), value), target)
            torch.testing.assert_close(loss.item(), misses / 4 * 0.85**2)

    def test_own_targets(self) -> None:
        membrane = torch.zeros(3, 2, 4)
        loss = losses.mse_membrane(membrane, torch.tensor([0, 3]), on_target=2.0, off_target=-1.0)
        assert loss == (4 + 3 * 1) / 4

    def test_a_trace_target_is_met_step_by_step(self) -> None:
        target = torch.randn(5, 3, 1, generator=torch.Generator().manual_seed(0))
        miss = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(5, 1, 1)
        torch.testing.assert_close(losses.mse_membrane(target + miss, target).item(), (1 + 4 + 9 + 16) / 5)

    def test_gradient(self) -> None:
        membrane = torch.zeros(2, 1, 2, requires_grad=True)
        g = gradient(losses.mse_membrane(membrane, torch.tensor([0])), membrane)
        torch.testing.assert_close(g, torch.tensor([-2 * 1.05 / 4, -2 * 0.2 / 4]).expand(2, 1, 2))


class TestNLLMaxVoltage:
    def test_value(self) -> None:
        """The maxima are log 1, log 2 and log 5, so the classes have the probabilities 1/8, 2/8 and 5/8."""
        membrane = torch.tensor([[1.0, 0.5, 3.0], [0.2, 2.0, 5.0], [1.0, 0.1, 4.0]]).log().unsqueeze(1)
        for label, p in enumerate((1 / 8, 2 / 8, 5 / 8)):
            torch.testing.assert_close(losses.nll_max_voltage(membrane, torch.tensor([label])).item(), -math.log(p))

    def test_averages_over_the_batch(self) -> None:
        membrane = torch.zeros(4, 2, 8)
        membrane[2, 1, 3] = math.log(9)
        loss = losses.nll_max_voltage(membrane, torch.tensor([0, 3]))
        torch.testing.assert_close(loss.item(), (math.log(8) - math.log(9 / 16)) / 2)

    def test_gradient_reaches_the_step_of_the_maximum_only(self) -> None:
        membrane = torch.zeros(4, 1, 2)
        membrane[1, 0, 0] = membrane[3, 0, 1] = 1.0
        g = gradient(losses.nll_max_voltage(membrane.requires_grad_(), torch.tensor([0])), membrane)
        expected = torch.zeros(4, 1, 2)
        expected[1, 0, 0], expected[3, 0, 1] = -0.5, 0.5
        torch.testing.assert_close(g, expected)


def test_objects_take_what_they_need_from_a_trace() -> None:
    random = torch.Generator().manual_seed(0)
    spikes, membrane = torch.rand(6, 4, 3, generator=random).round(), torch.randn(6, 4, 3, generator=random)
    trace, target = Trace(spikes, membrane, None), torch.tensor([0, 2, 1, 1])
    pairs = [
        (losses.CEMembrane(), losses.ce_membrane(membrane, target)),
        (losses.MSECount(0.9, 0.1), losses.mse_count(spikes, target, 0.9, 0.1)),
        (losses.MSEMembrane(2.0, -1.0), losses.mse_membrane(membrane, target, 2.0, -1.0)),
        (losses.NLLMaxVoltage(), losses.nll_max_voltage(membrane, target)),
    ]
    for loss, expected in pairs:
        assert loss(trace, target) == expected
        # a loss that reads spikes sees nothing of the membrane, and the other way round
        unread = torch.full_like(spikes, torch.nan)
        hidden = Trace(spikes, unread, None) if loss.reads == "spike_count" else Trace(unread, membrane, None)
        assert loss(hidden, target) == expected
        assert "labels" in loss.targets
    assert losses.MSEMembrane()(trace, membrane + 3) == losses.mse_membrane(membrane, membrane + 3)
    assert "trace" in losses.MSEMembrane.targets


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (losses.MSECount, "correct_rate", 1.5),
        (losses.MSECount, "incorrect_rate", -0.1),
        (losses.MSECount, "correct_rate", True),
        (losses.MSEMembrane, "on_target", math.nan),
        (losses.MSEMembrane, "off_target", "0"),
    ],
)
def test_refuses(kind: type[losses.Loss], key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        kind(**{key: value})
