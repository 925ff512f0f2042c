"""Encoders: spike times in closed form, statistics with a fixed seed, and no gradients."""

import math

import pytest
import torch
from torch import Tensor

from snnexp.encoders import Bernoulli, Constant, ConstantCurrentLIF, Delta, Encoder, Latency, Rate, Sequence
from snnexp.errors import ConfigError
from snnexp.network import MLP
from snnexp.neurons import Leaky


@pytest.mark.parametrize(
    ("encoder", "steps"),
    [
        (Sequence(), None),
        (Constant(), 1),
        (ConstantCurrentLIF(7), 7),
        (Bernoulli(7), 7),
        (Rate(7, 2.0), 7),
        (Latency(7), 7),
        (Delta(), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_is_time_first_without_gradient(encoder: Encoder, steps: int | None, dtype: torch.dtype) -> None:
    values = torch.rand(4, 3, 2, dtype=dtype, requires_grad=True)
    out = encoder(values)
    assert out.shape == (values.shape if steps is None else (steps, 4, 3, 2))
    assert out.dtype == dtype
    assert not out.requires_grad
    if encoder.spikes:
        assert set(out.unique().tolist()) <= {0.0, 1.0}


def test_sequence_and_constant_keep_the_values() -> None:
    values = torch.randn(5, 2, 3)
    assert torch.equal(Sequence()(values), values)
    assert torch.equal(Constant()(values)[0], values)


class TestConstantCurrentLIF:
    def test_by_hand(self) -> None:
        """dt tau 1/2, v_th 1, v_reset -1/2; comments give the membrane before reset."""
        encoder = ConstantCurrentLIF(5, tau_mem_inv=0.5, v_th=1.0, v_reset=-0.5, dt=1.0)
        spikes = {
            0.0: [0, 0, 0, 0, 0],
            1.0: [0, 0, 0, 0, 0],  # 1/2, 3/4, 7/8, ... never reaches 1
            2.0: [0, 1, 0, 1, 0],  # 1 is at the threshold and does not fire, 3/2 fires; 3/4, 11/8; 3/4
            3.0: [1, 1, 1, 1, 1],  # 3/2; then 5/4 from v_reset on
            -9.0: [0, 0, 0, 0, 0],
        }
        expected = torch.tensor(list(spikes.values())).T.float()
        assert torch.equal(encoder(torch.tensor(list(spikes))), expected)

    def test_leak_potential_acts_as_a_current(self) -> None:
        values = torch.linspace(0, 4, 30)
        encoded = ConstantCurrentLIF(40, v_leak=0.25)(values)
        assert torch.equal(encoded, ConstantCurrentLIF(40)(values + 0.25))
        assert encoded.any()

    @pytest.mark.parametrize("tau_mem_inv", [50.0, 100.0, 400.0])
    def test_period_in_closed_form(self, tau_mem_inv: float) -> None:
        """u[n] = x (1 - (1 - a)^n) crosses 1 at the first n > log(1 - 1/x) / log(1 - a), periodically."""
        a, T = 1e-3 * tau_mem_inv, 200
        values = torch.linspace(0.1, 6, 97, dtype=torch.float64)
        spikes = ConstantCurrentLIF(T, tau_mem_inv)(values)
        for x, train in zip(values.tolist(), spikes.T, strict=True):
            expected = torch.zeros(T, dtype=torch.float64)
            if x > 1:
                period = math.floor(math.log(1 - 1 / x) / math.log(1 - a)) + 1
                expected[period - 1 :: period] = 1
            assert torch.equal(train, expected)

    @pytest.mark.parametrize(
        ("key", "value"), [("num_steps", 0), ("num_steps", 2.5), ("tau_mem_inv", 0.0), ("v_th", math.nan), ("dt", -1.0)]
    )
    def test_refuses(self, key: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"^{key}: "):
            ConstantCurrentLIF(**{"num_steps": 3, key: value})


class TestBernoulli:
    def test_firing_probability(self) -> None:
        torch.manual_seed(0)
        T, copies = 200, 100
        values = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
        spikes = Bernoulli(T)(values.expand(copies, 6))
        error = (spikes.mean((0, 1)) - values).abs()
        assert (error <= 5 * (values * (1 - values) / (T * copies)).sqrt()).all()

    def test_steps_and_neurons_are_independent(self) -> None:
        """Joint probabilities are products, across time steps and across neurons."""
        torch.manual_seed(0)
        T, N, p = 100, 400, 0.3
        spikes = Bernoulli(T)(torch.full((1, N), p))[:, 0]
        bound = 5 * math.sqrt(p**2 * (1 - p**2) / (T * N))
        for joint in (spikes[1:] * spikes[:-1], spikes[:, 1:] * spikes[:, :-1]):
            assert abs(joint.mean().item() - p**2) < bound

    def test_depends_on_the_seed(self) -> None:
        values = torch.rand(4, 50)
        runs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            runs.append(Bernoulli(10)(values))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])


class TestRate:
    @pytest.mark.parametrize("gain", [0.5, 1.0, 2.5])
    def test_firing_probability_with_gain(self, gain: float) -> None:
        torch.manual_seed(0)
        T, copies = 200, 100
        values = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
        spikes = Rate(T, gain)(values.expand(copies, 6))
        p = torch.tensor([min(1.0, gain * x) for x in values.tolist()])
        error = (spikes.mean((0, 1)) - p).abs()
        assert (error <= 5 * (p * (1 - p) / (T * copies)).sqrt()).all()

    @pytest.mark.parametrize("gain", [0.0, -1.0, math.nan])
    def test_refuses(self, gain: float) -> None:
        with pytest.raises(ConfigError, match=r"^gain: "):
            Rate(3, gain)


class TestDelta:
    def test_by_hand(self) -> None:
        """Quarters are exact in binary: a change equal to the threshold fires."""
        values = torch.tensor([0.25, 0.5, 0.5, 1.0, 0.75, 0.0]).view(-1, 1, 1)
        spikes = {
            (False, False): [1, 1, 0, 1, 0, 0],
            (True, False): [0, 1, 0, 1, 0, 0],
            (False, True): [1, 1, 0, 1, -1, -1],
            (True, True): [0, 1, 0, 1, -1, -1],
        }
        for (padding, off_spikes), expected in spikes.items():
            assert Delta(0.25, padding, off_spikes)(values).flatten().tolist() == expected

    def test_off_spikes_equal_spikes_of_the_negated_values(self) -> None:
        values = torch.randn(9, 2, 3)
        signed = Delta(0.5, padding=True, off_spikes=True)(values)
        assert torch.equal(signed, Delta(0.5, padding=True)(values) - Delta(0.5, padding=True)(-values))
        assert signed.min() == -1

    def test_negative_spikes_are_counted_as_operations(self) -> None:
        network = MLP((3,), 2, Leaky, Leaky, num_steps=9, hidden=[4])
        inputs = Delta(0.5, off_spikes=True)(torch.randn(9, 2, 3))
        _, received, _ = next(network.deliveries(network(inputs), inputs))
        assert received.sum() == inputs.count_nonzero()

    @pytest.mark.parametrize(("key", "value"), [("threshold", 0.0), ("threshold", -1), ("off_spikes", 1)])
    def test_refuses(self, key: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"^{key}: "):
            Delta(**{key: value})


class TestLatency:
    def test_times(self) -> None:
        """T = 11: a value x fires at step 10 (1 - x), zero never."""
        values = torch.tensor([1.0, 0.9, 0.5, 0.26, 0.1, 1e-6, 0.0])
        spikes = Latency(11)(values)
        assert spikes.sum(0).tolist() == [1, 1, 1, 1, 1, 1, 0]
        assert spikes.argmax(0)[:-1].tolist() == [0, 1, 5, 7, 9, 10]

    def test_larger_values_never_fire_later(self) -> None:
        spikes = Latency(25)(torch.linspace(0.001, 1, 300))
        assert spikes.sum(0).eq(1).all()
        assert (spikes.argmax(0).diff() <= 0).all()
        assert spikes.any(1).all()

    def test_one_step(self) -> None:
        assert Latency(1)(torch.tensor([0.0, 0.2, 1.0])).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("encoder", [Bernoulli(3), Rate(3, 0.5), Latency(3)], ids=str)
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_refuses_values_outside_the_unit_interval(encoder: Encoder, value: float) -> None:
    values: Tensor = torch.tensor([[0.5, value]])
    with pytest.raises(ValueError, match="from 0 to 1"):
        encoder(values)


@pytest.mark.parametrize("kind", [Bernoulli, Rate, Latency])
@pytest.mark.parametrize("num_steps", [0, -1, 1.0, True, None])
def test_refuses_num_steps(kind: type[Encoder], num_steps: object) -> None:
    with pytest.raises(ConfigError, match=r"^num_steps: "):
        kind(num_steps)
