"""Networks: shapes, time, states, initial weights, and synaptic operations."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from snnexp.data import Description
from snnexp.errors import ConfigError
from snnexp.initializers import Initializer, Uniform
from snnexp.losses import CEMembrane
from snnexp.metrics import synaptic_operations
from snnexp.network import MLP, Conv, Network
from snnexp.neurons import Leaky, LeakyIntegrator, Neuron, ParametrizedLIF, RLeaky, Trace
from snnexp.training import contracts

T, B = 7, 3
FAST = {"tau_mem_inv": 500.0, "tau_syn_inv": 500.0, "v_th": 0.2}

FLAT: dict[str, Callable[[Any], Neuron]] = {
    "leaky": lambda features: Leaky(features, beta=Uniform(0.2, 0.9), threshold=0.3),
    "rleaky": lambda features: RLeaky(features, threshold=0.3),
    "rleaky-one-to-one": lambda features: RLeaky(features, threshold=0.3, feedback="one_to_one", V=0.4),
    "lif": lambda features: ParametrizedLIF(features, **FAST),
    "lif-feedforward": lambda features: ParametrizedLIF(features, recurrent=False, **FAST),
}
READOUTS = FLAT | {"integrator": lambda features: LeakyIntegrator(features, tau_mem_inv=500.0)}
MAPS = {name: FLAT[name] for name in ("leaky", "rleaky-one-to-one", "lif-feedforward")} | {
    "rleaky-conv2d": lambda features: RLeaky(features, threshold=0.3, feedback="conv2d", kernel_size=3)
}


def mlp(neuron: str, readout: str, hidden: tuple[int, ...] = (6, 4), inputs: tuple[int, ...] = (5,)) -> MLP:
    torch.manual_seed(0)
    return MLP(inputs, 2, FLAT[neuron], READOUTS[readout], num_steps=T, hidden=hidden).double()


def conv(neuron: str, readout: str, **arguments: Any) -> Conv:
    torch.manual_seed(0)
    return Conv((2, 12, 10), 3, MAPS[neuron], READOUTS[readout], num_steps=T, kernel_size=3, **arguments).double()


# one network per pair of neuron and readout, with its input shape
NETWORKS: dict[str, tuple[Callable[[], Network], tuple[int, ...]]] = {
    **{f"mlp-{name}-{last}": (lambda n=name, r=last: mlp(n, r), (5,)) for name, last in product(FLAT, READOUTS)},
    **{
        f"conv-{name}-{last}": (lambda n=name, r=last: conv(n, r, channels=(3, 2)), (2, 12, 10))
        for name, last in product(MAPS, READOUTS)
    },
}


@pytest.fixture(params=NETWORKS)
def network_and_shape(request: pytest.FixtureRequest) -> tuple[Network, tuple[int, ...]]:
    make, shape = NETWORKS[request.param]
    return make(), shape


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5


def assert_same_traces(left: Any, right: Any) -> None:
    for ours, theirs in zip(left, right, strict=True):
        assert torch.equal(ours.spikes, theirs.spikes)
        torch.testing.assert_close(ours.membrane, theirs.membrane)
        torch.testing.assert_close(ours.state, theirs.state)


class TestEveryNetwork:
    def test_constant_input_equals_expanded_input(self, network_and_shape: Any) -> None:
        network, shape = network_and_shape
        constant = values(1, B, *shape)
        traces = network(constant)
        assert_same_traces(traces, network(constant.expand(T, -1, *shape)))
        assert {trace.spikes.shape[:2] for trace in traces} == {(T, B)}
        assert any(trace.spikes.any() for trace in traces), "the network must spike"

    def test_states_continue_the_sequence(self, network_and_shape: Any) -> None:
        network, shape = network_and_shape
        sequence = values(T, B, *shape)
        whole = network(sequence)
        first = network(sequence[:3])
        second = network(sequence[3:], [trace.state for trace in first])
        for trace, *halves in zip(whole, first, second, strict=True):
            assert torch.equal(trace.spikes, torch.cat([half.spikes for half in halves]))
            torch.testing.assert_close(trace.membrane, torch.cat([half.membrane for half in halves]))
        torch.testing.assert_close([trace.state for trace in second], [trace.state for trace in whole])

    def test_sequences_of_one_step_run_one_step(self, network_and_shape: Any) -> None:
        network, shape = network_and_shape
        network.constant = False
        sequence = values(T, B, *shape)
        whole = network(sequence)
        states, steps = None, []
        for step in sequence:
            steps.append(network(step.unsqueeze(0), states))
            states = [trace.state for trace in steps[-1]]
        for index, trace in enumerate(whole):
            assert torch.equal(torch.cat([step[index].spikes for step in steps]), trace.spikes)
            torch.testing.assert_close(torch.cat([step[index].membrane for step in steps]), trace.membrane)
        torch.testing.assert_close(states, [trace.state for trace in whole])

    def test_samples_of_a_batch_are_independent(self, network_and_shape: Any) -> None:
        network, shape = network_and_shape
        sequence = values(T, B, *shape)
        for trace, alone in zip(network(sequence), network(sequence[:, 1:2]), strict=True):
            assert torch.equal(trace.spikes[:, 1:2], alone.spikes)
            torch.testing.assert_close(trace.membrane[:, 1:2], alone.membrane)

    def test_gradients_reach_every_weight(self, network_and_shape: Any) -> None:
        network, shape = network_and_shape
        network(values(1, B, *shape))[-1].membrane.square().sum().backward()
        for name, layer in network.layers.items():
            assert layer.synapse.weight.grad.abs().sum() > 0, name

    @pytest.mark.parametrize("steps", [1, 4])
    def test_each_synapse_runs_once_on_all_steps_of_its_input(self, network_and_shape: Any, steps: int) -> None:
        network, shape = network_and_shape
        samples: list[int] = []
        for layer in network.layers.values():
            layer.synapse.register_forward_hook(lambda _module, inputs, _output: samples.append(len(inputs[0])))
        network(values(steps, B, *shape))
        hidden = (T if steps == 1 else steps) * B
        assert samples == [steps * B] + [hidden] * (len(network.layers) - 1)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 4), (6, 4, 3)])
@pytest.mark.parametrize("inputs", [(5,), (1, 4, 4)])
def test_mlp_has_one_trace_per_layer(hidden: tuple[int, ...], inputs: tuple[int, ...]) -> None:
    network = mlp("leaky", "leaky", hidden, inputs)
    traces = network(values(1, B, *inputs))
    sizes = [*hidden, 2]
    assert [trace.spikes.shape for trace in traces] == [(T, B, size) for size in sizes]
    assert [trace.membrane.shape for trace in traces] == [(T, B, size) for size in sizes]
    names = [f"hidden{index}" for index in range(1, len(hidden) + 1)] + ["readout"]
    assert list(network.neurons()) == names
    assert network(values(4, B, *inputs))[-1].spikes.shape == (4, B, 2)


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_conv_has_one_trace_per_layer(hidden: tuple[int, ...]) -> None:
    network = conv("leaky", "integrator", channels=(3, 4), stride=2, hidden=hidden)
    traces = network(values(1, B, 2, 12, 10))
    # (12 - 3) // 2 + 1 = 5 and (10 - 3) // 2 + 1 = 4, then 2 and 1
    shapes = [(3, 5, 4), (4, 2, 1), *((size,) for size in hidden), (3,)]
    assert [trace.membrane.shape for trace in traces] == [(T, B, *shape) for shape in shapes]
    assert list(network.neurons()) == [
        "conv1",
        "conv2",
        *(f"hidden{index}" for index in range(1, len(hidden) + 1)),
        "readout",
    ]


class TestSynapses:
    @pytest.mark.parametrize("readout", READOUTS)
    @pytest.mark.parametrize("network", ["mlp", "conv"])
    def test_default_bias_depends_on_the_neuron(self, network: str, readout: str) -> None:
        for neuron in FLAT if network == "mlp" else MAPS:
            made = mlp(neuron, readout) if network == "mlp" else conv(neuron, readout, channels=(3,))
            *hidden, last = (layer.synapse.bias is not None for layer in made.layers.values())
            assert set(hidden) == {"leaky" in neuron}
            assert last == ("leaky" in readout)

    def test_weights_of_a_parametrized_lif_layer_are_normal_with_variance_two_over_n(self) -> None:
        torch.manual_seed(0)
        layers = MLP((300,), 10, ParametrizedLIF, LeakyIntegrator, num_steps=1, hidden=(400,)).layers
        weight = layers["hidden1"].synapse.weight.detach()
        # 120,000 values: standard error of the mean std / 346, relative error of the standard deviation 1 / 490
        std = sqrt(2 / 400)
        assert abs(weight.mean().item()) < 4 * std / 346
        assert weight.std().item() == pytest.approx(std, rel=4 / 490)
        assert weight.abs().max() > 3.5 * std, "not uniform"

    def test_other_neurons_have_pytorchs_default_weights(self) -> None:
        torch.manual_seed(0)
        network = MLP((100,), 50, Leaky, LeakyIntegrator, num_steps=1, hidden=(200,))
        for layer, fan_in in zip(network.layers.values(), (100, 200), strict=True):
            largest = layer.synapse.weight.abs().max().item()
            assert 0.99 / sqrt(fan_in) < largest <= 1 / sqrt(fan_in)


# by neuron: the targets of a spike of neuron i within its layer of n
FEEDBACK: dict[str, Callable[[int, int], list[int]]] = {
    "leaky": lambda i, n: [],
    "rleaky": lambda i, n: list(range(n)),
    "rleaky-one-to-one": lambda i, n: [i],
    "lif": lambda i, n: [j for j in range(n) if j != i],
    "lif-feedforward": lambda i, n: [],
}


@pytest.mark.parametrize("readout", [*FEEDBACK, "integrator"])
@pytest.mark.parametrize("neuron", FEEDBACK)
@pytest.mark.parametrize("inputs_are_spikes", [True, False])
def test_synaptic_operations_equal_a_count_spike_by_spike(neuron: str, readout: str, inputs_are_spikes: bool) -> None:
    network = mlp(neuron, readout)
    inputs = values(T, B, 5).gt(0.5).double()
    traces = network(inputs)
    feedback = [FEEDBACK[neuron], FEEDBACK[neuron], FEEDBACK.get(readout, FEEDBACK["leaky"])]
    sizes = [6, 4, 2]
    counted = 0
    if inputs_are_spikes:
        counted += sum(sizes[0] for spike in inputs.flatten().tolist() if spike)
    for index, (trace, targets, size) in enumerate(zip(traces, feedback, sizes, strict=True)):
        for t, _, i in trace.spikes.nonzero().tolist():
            counted += sum(sizes[index + 1 : index + 2])
            counted += len(targets(i, size)) if t + 1 < T else 0
    deliveries = network.deliveries(traces, inputs if inputs_are_spikes else None)
    measured = sum(synaptic_operations(spikes, synapse).item() for _, spikes, synapse in deliveries)
    assert traces[0].spikes.any()
    assert measured == pytest.approx(counted / B, rel=1e-12)


def test_synaptic_operations_of_a_conv_network() -> None:
    network = conv("rleaky-conv2d", "leaky", channels=(3,), stride=2)
    traces = network(values(1, B, 2, 12, 10))
    counted = 0
    for t, _, _, y, x in traces[0].spikes.nonzero().tolist():
        counted += 3  # all neurons of the readout
        inside = [0 <= y + dy < 5 and 0 <= x + dx < 4 for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        counted += 3 * sum(inside) if t + 1 < T else 0
    measured = sum(synaptic_operations(spikes, synapse).item() for _, spikes, synapse in network.deliveries(traces))
    assert counted > 0
    assert measured == pytest.approx(counted / B, rel=1e-12)


class TestRefusals:
    @pytest.mark.parametrize("inputs", [(1,), (784,), (28, 28)])
    def test_conv_needs_images(self, inputs: tuple[int, ...]) -> None:
        with pytest.raises(ConfigError, match="network=mlp"):
            Conv(inputs, 10, Leaky, Leaky, num_steps=T)

    @pytest.mark.parametrize("arguments", [{"channels": (4, 4, 4, 4)}, {"kernel_size": 29}, {"stride": 28}])
    def test_conv_refuses_empty_feature_maps(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"^channels: the output of convolution"):
            Conv((1, 28, 28), 10, Leaky, Leaky, num_steps=T, **arguments)

    def test_an_image_of_the_size_of_the_kernel(self) -> None:
        network = Conv((1, 5, 5), 2, Leaky, Leaky, num_steps=T, channels=(4,), kernel_size=5)
        assert network(torch.ones(1, B, 1, 5, 5))[0].spikes.shape == (T, B, 4, 1, 1)

    @pytest.mark.parametrize(
        ("make", "key"),
        [
            (lambda: MLP((5,), 2, Leaky, Leaky, num_steps=0), "num_steps"),
            (lambda: MLP((5,), 2, Leaky, Leaky, num_steps=T, hidden=[0]), "hidden"),
            (lambda: Conv((1, 9, 9), 2, Leaky, Leaky, num_steps=T, kernel_size=0), "kernel_size"),
            (lambda: Conv((1, 9, 9), 2, Leaky, Leaky, num_steps=T, stride=0), "stride"),
        ],
    )
    def test_refuses_arguments_out_of_range(self, make: Callable[[], nn.Module], key: str) -> None:
        with pytest.raises(ConfigError, match=f"^{key}: got 0|^{key}: got \\[0\\]"):
            make()

    def test_one_state_per_layer(self) -> None:
        network = mlp("leaky", "leaky")
        with pytest.raises(ValueError, match="argument"):
            network(values(T, B, 5), [network(values(T, B, 5))[0].state])


@dataclass(frozen=True)
class InvalidSecond(Initializer):
    """Draws 0.5 first, and then an invalid decay."""

    drawn: list[int]

    def __call__(self, features: tuple[int, ...]) -> Tensor:
        self.drawn.append(1)
        return torch.full(features, 0.5 if len(self.drawn) == 1 else 2.0)


@pytest.mark.parametrize("group", ["neuron", "readout"])
def test_error_of_an_initial_value_names_its_group(group: str) -> None:
    choices = {"neuron": Leaky, "readout": Leaky, group: partial(Leaky, beta=InvalidSecond([]))}
    with pytest.raises(
        ConfigError, match=rf"^{group}\.beta: an initial value is 2, must be a finite number from 0 to 1$"
    ):
        MLP((4,), 2, **choices, num_steps=T, hidden=[3])


class Counting(Leaky):
    """A user-defined neuron that counts its calls and draws from all random generators."""

    def __init__(self, features: Any) -> None:
        super().__init__(features)
        self.register_buffer("calls", torch.zeros(()))
        self.counted = 0

    def scan(self, current: Any, state: Any) -> Trace:
        self.calls += 1
        self.counted += 1
        random.random(), np.random.rand(), torch.rand(1)
        return super().scan(current, state)


def test_a_dry_run_has_no_side_effects() -> None:
    made = MLP((5,), 3, Counting, Leaky, num_steps=T, hidden=(4, 4))
    # pruning computes the weight before each call, so it cannot be copied
    prune.random_unstructured(made.layers["hidden2"].synapse, "weight", 0.5)
    made.layers["hidden1"].eval()
    described = Description((5,), 3, "labels")
    data: Any = SimpleNamespace(inputs=(5,), outputs=3, target="labels", description=described)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    contracts.require_results(made, CEMembrane(), None, {}, {}, data, T)
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before
    for name in ("hidden1", "hidden2"):
        assert (made.layers[name].neuron.calls.item(), made.layers[name].neuron.counted) == (0, 0)
    assert [layer.training for layer in made.layers.values()] == [False, True, True]
