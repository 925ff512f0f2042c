"""Losses: values and gradients computed by hand, and those of PyTorch and snnTorch."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from snnexp import losses
from snnexp.decoders import Population
from snnexp.errors import ConfigError
from snnexp.experiment import build, compose
from snnexp.neurons import Identity, Trace, statistic_names


def spikes_with_counts(counts: list[list[int]], num_steps: int) -> Tensor:
    """Return spikes ``[T, B, K]`` with the given ``counts`` ``[B, K]``."""
    return (torch.arange(num_steps).view(-1, 1, 1) < torch.tensor(counts)).float()


def gradient(loss: Tensor, variable: Tensor) -> Tensor:
    return torch.autograd.grad(loss, variable)[0]


class TestCEMembrane:
    def test_uniform_logits_give_log_k_per_step(self) -> None:
        membrane = torch.full((7, 3, 10), 0.4)
        torch.testing.assert_close(losses.ce_membrane(membrane, torch.tensor([0, 5, 9])).item(), 7 * math.log(10))

    def test_sums_over_time_and_averages_over_the_batch(self) -> None:
        """With margin m between two classes: log(1 + exp(-m)) if the label is higher, m more if it is lower."""
        m = [[1.0, 2.0], [0.5, 3.0], [0.0, -1.0]]
        membrane = torch.tensor([[[x, 0.0], [0.0, x]] for x, _ in m])
        membrane[:, 1, 1] = torch.tensor([x for _, x in m])
        expected = sum(math.log1p(math.exp(-x)) for pair in m for x in pair) / 2
        torch.testing.assert_close(losses.ce_membrane(membrane, torch.tensor([0, 1])).item(), expected)
        swapped = expected + sum(x for pair in m for x in pair) / 2
        torch.testing.assert_close(losses.ce_membrane(membrane, torch.tensor([1, 0])).item(), swapped)

    def test_gradient_is_softmax_minus_label(self) -> None:
        membrane = torch.zeros(4, 2, 5, requires_grad=True)
        g = gradient(losses.ce_membrane(membrane, torch.tensor([1, 3])), membrane)
        expected = torch.full((4, 2, 5), 0.1)
        expected[:, 0, 1] = expected[:, 1, 3] = (0.2 - 1) / 2
        torch.testing.assert_close(g, expected)


class TestMSECount:
    def test_is_zero_at_the_target_counts(self) -> None:
        """A rate of .29 over 100 steps is 29 spikes, although 100 * .29 is 28.999999999999996."""
        target = torch.tensor([2, 0])
        exact = spikes_with_counts([[7, 7, 29], [29, 7, 7]], 100)
        assert losses.mse_count(exact, target, 0.29, 0.07) == 0
        missed = spikes_with_counts([[7, 7, 28], [28, 7, 7]], 100)
        torch.testing.assert_close(losses.mse_count(missed, target, 0.29, 0.07).item(), 2 / 6 / 100)

    def test_rounds_down_exactly(self) -> None:
        """For all rates in percent; the loss of a silent neuron is target^2 / T."""
        for T in (1, 7, 25, 100, 1000):
            silence = torch.zeros(T, 1, 1, dtype=torch.float64)
            for percent in range(101):
                loss = losses.mse_count(silence, torch.tensor([0]), percent / 100, 0.0)
                assert round(math.sqrt(loss * T), 6) == T * percent // 100

    def test_value(self) -> None:
        """T = 10, rates .8 and .2: targets 8 and 2; errors -3, 0 and 2 in the first sample, none in the second."""
        spikes = spikes_with_counts([[5, 2, 4], [2, 2, 8]], 10)
        torch.testing.assert_close(losses.mse_count(spikes, torch.tensor([0, 2])).item(), (9 + 4) / 6 / 10)

    def test_gradient_is_the_same_at_every_step(self) -> None:
        spikes = spikes_with_counts([[5, 2]], 10).requires_grad_()
        g = gradient(losses.mse_count(spikes, torch.tensor([0])), spikes)
        torch.testing.assert_close(g, torch.tensor([2 * (5 - 8) / 2 / 10, 0]).expand(10, 1, 2))


class TestMSEMembrane:
    def test_labels(self) -> None:
        """Targets 1.05 and .2: a membrane of 1.05 has an error of .85 for other classes, one of .2 for the label."""
        target = torch.tensor([1])
        for value, wrong in [(1.05, 3), (0.2, 1)]:
            loss = losses.mse_membrane(torch.full((6, 1, 4), value), target)
            torch.testing.assert_close(loss.item(), wrong / 4 * 0.85**2)

    def test_custom_targets(self) -> None:
        membrane = torch.zeros(3, 2, 4)
        loss = losses.mse_membrane(membrane, torch.tensor([0, 3]), on_target=2.0, off_target=-1.0)
        assert loss == (4 + 3 * 1) / 4

    def test_trace_target(self) -> None:
        target = torch.randn(5, 3, 1, generator=torch.Generator().manual_seed(0))
        error = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(5, 1, 1)
        torch.testing.assert_close(losses.mse_membrane(target + error, target).item(), (1 + 4 + 9 + 16) / 5)

    def test_gradient(self) -> None:
        membrane = torch.zeros(2, 1, 2, requires_grad=True)
        g = gradient(losses.mse_membrane(membrane, torch.tensor([0])), membrane)
        torch.testing.assert_close(g, torch.tensor([-2 * 1.05 / 4, -2 * 0.2 / 4]).expand(2, 1, 2))


class TestNLLMaxVoltage:
    def test_value(self) -> None:
        """The maxima are log 1, log 2 and log 5, so the class probabilities are 1/8, 2/8 and 5/8."""
        membrane = torch.tensor([[1.0, 0.5, 3.0], [0.2, 2.0, 5.0], [1.0, 0.1, 4.0]]).log().unsqueeze(1)
        for label, p in enumerate((1 / 8, 2 / 8, 5 / 8)):
            torch.testing.assert_close(losses.nll_max_voltage(membrane, torch.tensor([label])).item(), -math.log(p))

    def test_averages_over_the_batch(self) -> None:
        membrane = torch.zeros(4, 2, 8)
        membrane[2, 1, 3] = math.log(9)
        loss = losses.nll_max_voltage(membrane, torch.tensor([0, 3]))
        torch.testing.assert_close(loss.item(), (math.log(8) - math.log(9 / 16)) / 2)

    def test_gradient_is_zero_except_at_the_maximum(self) -> None:
        membrane = torch.zeros(4, 1, 2)
        membrane[1, 0, 0] = membrane[3, 0, 1] = 1.0
        g = gradient(losses.nll_max_voltage(membrane.requires_grad_(), torch.tensor([0])), membrane)
        expected = torch.zeros(4, 1, 2)
        expected[1, 0, 0], expected[3, 0, 1] = -0.5, 0.5
        torch.testing.assert_close(g, expected)


def test_classes_equal_functions() -> None:
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
        # a loss of spikes does not read the membrane, and vice versa
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


T, B, K = 7, 5, 4
LABELS = torch.tensor([0, 3, 1, 1, 2])


@pytest.fixture
def trace() -> Trace:
    random = torch.Generator().manual_seed(1)
    spikes = torch.rand(T, B, K, generator=random).round()
    # one neuron never fires, and one fires only in the last step
    spikes[:, 0, 0] = 0
    spikes[:-1, 1, 3], spikes[-1, 1, 3] = 0, 1
    membrane = torch.randn(T, B, K, generator=random)
    return Trace(spikes.requires_grad_(), membrane.requires_grad_(), None)


def require_equal(loss: Tensor, expected: Tensor, variable: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, variable), gradient(expected, variable))


@pytest.mark.parametrize(
    ("loss", "peer", "reads"),
    [
        (losses.CERate(), SF.ce_rate_loss(), "spikes"),
        (losses.CECount(), SF.ce_count_loss(), "spikes"),
        (losses.NLLMaxVoltage(), SF.ce_max_membrane_loss(), "membrane"),
        # with its default of -1, snnTorch 1.0.0 uses target 0 for all classes
        (losses.MSETemporal(), SF.mse_temporal_loss(on_target=0, off_target=T - 1), "spikes"),
        (losses.MSETemporal(1, 5, 2), SF.mse_temporal_loss(on_target=1, off_target=5, tolerance=2), "spikes"),
        (losses.MSETemporal(-7, -2), SF.mse_temporal_loss(on_target=-7, off_target=-2), "spikes"),
    ],
)
def test_equals_snntorch(loss: losses.Loss, peer: Any, reads: str, trace: Trace) -> None:
    variable = getattr(trace, reads)
    require_equal(loss(trace, LABELS), peer(variable, LABELS).squeeze(), variable)


@pytest.mark.parametrize(
    ("kind", "logits"),
    [
        (losses.CEMeanMembrane, lambda membrane: membrane.mean(0)),
        (losses.CESumMembrane, lambda membrane: membrane.sum(0)),
        (losses.CELastMembrane, lambda membrane: membrane[-1]),
        (losses.NLLMaxVoltage, lambda membrane: membrane.amax(0)),
    ],
)
@pytest.mark.parametrize(
    ("weights", "smoothing"), [(None, 0.0), ([1.0, 2.0, 0.5, 3.0], 0.0), ([1.0, 2.0, 0.5, 3.0], 0.2)]
)
def test_equals_the_cross_entropy_of_a_statistic(
    kind: Callable[..., losses.Loss],
    logits: Callable[[Tensor], Tensor],
    weights: list[float] | None,
    smoothing: float,
    trace: Trace,
) -> None:
    given = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits(trace.membrane), LABELS, given, label_smoothing=smoothing)
    require_equal(kind(weights, smoothing)(trace, LABELS), expected, trace.membrane)


def test_labels_per_step_are_separate_samples(trace: Trace) -> None:
    target = torch.arange(T * B).reshape(T, B) % K
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    expected = F.cross_entropy(trace.membrane.flatten(0, 1), target.flatten(), weights, label_smoothing=0.1)
    require_equal(losses.CEEachStep(weights.tolist(), 0.1)(trace, target), expected, trace.membrane)


def test_label_smoothing_by_hand() -> None:
    """Two classes with p = 3/4 and 1/4, smoothed by .2: targets .9 and .1."""
    membrane = torch.tensor([[[3.0, 1.0]]]).log()
    loss = losses.CELastMembrane(None, 0.2)(Trace(membrane, membrane, None), torch.tensor([0]))
    torch.testing.assert_close(loss.item(), 0.9 * math.log(4 / 3) + 0.1 * math.log(4))


@pytest.mark.parametrize("kind", [losses.CEMeanMembrane, losses.CESumMembrane])
def test_linear_readout_equals_a_linear_layer_of_the_spikes(kind: Callable[..., losses.Loss], trace: Trace) -> None:
    layer = nn.Linear(K, 3)
    readout = Identity(3)(layer(trace.spikes))
    whole = trace.spikes.mean(0) if kind is losses.CEMeanMembrane else trace.spikes.sum(0)
    bias = layer.bias if kind is losses.CEMeanMembrane else T * layer.bias
    expected = F.cross_entropy(whole @ layer.weight.T + bias, LABELS % 3)
    require_equal(kind()(readout, LABELS % 3), expected, layer.weight)


class TestPopulation:
    """Two neurons per class, averaged here and summed in snnTorch."""

    def test_counts(self, trace: Trace) -> None:
        peer = SF.ce_count_loss(population_code=True, num_classes=2)
        require_equal(self.loss(losses.CECount(scale=2.0), trace), peer(trace.spikes, LABELS % 2), trace.spikes)

    def test_mse_count_differs_by_the_squared_size(self, trace: Trace) -> None:
        peer = SF.mse_count_loss(1.0, 0.0, population_code=True, num_classes=2)
        loss = 4 * self.loss(losses.MSECount(1.0, 0.0), trace)
        require_equal(loss, peer(trace.spikes, LABELS % 2), trace.spikes)

    @staticmethod
    def loss(loss: losses.Loss, trace: Trace) -> Tensor:
        return loss(Population(2).pooled(trace), LABELS % 2)


class TestMSELast:
    def test_compares_the_last_step(self, trace: Trace) -> None:
        target = torch.randn(T, B, K)
        expected = F.mse_loss(trace.membrane[-1], target[-1])
        require_equal(losses.MSELast()(trace, target), expected, trace.membrane)
        assert losses.MSELast()(trace, target[-1]) == expected
        output, last = losses.MSELast().compared(trace, target)
        assert F.mse_loss(output, last) == expected

    def test_labels(self, trace: Trace) -> None:
        expected = F.mse_loss(trace.membrane[-1], F.one_hot(LABELS, K).float() * 3 - 1)
        require_equal(losses.MSELast(2.0, -1.0)(trace, LABELS), expected, trace.membrane)


class TestMSETemporal:
    def test_times_within_the_tolerance_have_no_loss_and_no_gradient(self, trace: Trace) -> None:
        """A tolerance of T accepts any time."""
        loss = losses.MSETemporal(tolerance=T)(trace, LABELS)
        assert loss == 0
        assert gradient(loss, trace.spikes).abs().max() == 0

    def test_by_hand(self) -> None:
        """The label fires at step 2 with target 0; the other class never fires, which counts as step 3, its target."""
        spikes = torch.zeros(4, 1, 2)
        spikes[2, 0, 0] = spikes[3, 0, 0] = 1
        loss = losses.MSETemporal()(Trace(spikes, spikes, None), torch.tensor([0]))
        torch.testing.assert_close(loss.item(), (2 / 4) ** 2 / 2)

    def test_time_of_a_population_is_the_mean(self) -> None:
        """T = 4: times 0 and 3 of the label, mean 1.5, target 0; times 1 and never (3), mean 2, target 3."""
        spikes = torch.zeros(4, 1, 4)
        spikes[0, 0, 0] = spikes[3, 0, 1] = spikes[1, 0, 2] = 1
        spikes.requires_grad_()
        loss = losses.MSETemporal()(Population(size=2).pooled(Trace(spikes, spikes, None)), torch.tensor([0]))
        torch.testing.assert_close(loss.item(), (1.5**2 + 1**2) / 2 / 4**2)
        expected = torch.zeros(4, 1, 4)
        # derivative of the loss by the mean time, times -1 / 2 for each neuron's spike
        expected[0, 0, 0] = expected[3, 0, 1] = -1.5 / 4**2 / 2
        expected[1, 0, 2] = expected[3, 0, 3] = 1 / 4**2 / 2
        torch.testing.assert_close(torch.autograd.grad(loss, spikes)[0], expected)

    @pytest.mark.parametrize(("key", "value"), [("on_target", T), ("off_target", -T - 1)])
    def test_refuses_steps_out_of_range(self, key: str, value: int, trace: Trace) -> None:
        with pytest.raises(ConfigError, match=rf"{key}: got {value}, must be a step from -7 to 6"):
            losses.MSETemporal(**{key: value})(trace, LABELS)

    def test_message_begins_with_the_config_key(self) -> None:
        with pytest.raises(ConfigError, match=r"^loss\.on_target: got 9, must be a step from -4 to 3"):
            build(compose(["data=digits", "num_steps=4", "loss=mse_temporal", "loss.on_target=9"]))


class TestBCE:
    def test_equals_pytorch(self, trace: Trace) -> None:
        loss, peer = losses.BCE(2.5), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.5))
        mean, values, steps = trace.membrane.mean(0), torch.rand(B, K), torch.rand(T, B, K)
        one_hot = F.one_hot(LABELS, K).float()
        require_equal(loss(trace, LABELS), peer(mean, one_hot), trace.membrane)
        require_equal(loss(trace, values), peer(trace.membrane.mean(0), values), trace.membrane)
        require_equal(loss(trace, steps), peer(trace.membrane, steps), trace.membrane)

    def test_metrics_compare_probabilities(self) -> None:
        """sigmoid(log 3) = 3/4."""
        membrane = torch.full((2, 1, 1), math.log(3))
        output, _ = losses.BCE().compared(Trace(membrane, membrane, None), torch.zeros(1, 1))
        torch.testing.assert_close(output, torch.tensor([[0.75]]))

    @pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 7.0)])
    def test_refuses_targets_outside_the_unit_interval(self, low: float, high: float) -> None:
        with pytest.raises(ConfigError, match=r"^loss: BCE requires targets from 0 to 1, got"):
            losses.BCE().require_range(low, high)


@pytest.mark.parametrize(
    "loss",
    [
        losses.CERate(),
        losses.CECount(None, 0.1, 2.0),
        losses.CEMeanMembrane(),
        losses.CESumMembrane(),
        losses.CELastMembrane(),
        losses.MSELast(),
        losses.MSETemporal(),
        losses.BCE(),
    ],
)
def test_losses_work_under_vmap(loss: losses.Loss) -> None:
    assert type(loss).stackable
    spikes, membrane = torch.rand(3, T, B, K).round(), torch.randn(3, T, B, K)
    numbers = loss.numbers(T)

    def member_loss(spikes: Tensor, membrane: Tensor) -> Tensor:
        trace = Trace(spikes, membrane, None)
        # in a stack, only the statistics that the loss reads are available
        read = {name: getattr(trace, name) for name in statistic_names(loss.reads)}
        return loss.compare(SimpleNamespace(num_steps=T, samples=B, **read), LABELS, *numbers)

    actual = vmap(member_loss)(spikes, membrane)
    expected = [loss(Trace(s, u, None), LABELS) for s, u in zip(spikes, membrane, strict=True)]
    torch.testing.assert_close(actual, torch.stack(expected))
