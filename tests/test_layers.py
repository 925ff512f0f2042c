"""Normalization, pooling, padding, dropout, biases and initialization of chains, compared with other libraries."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ends
import pytest
import snntorch
import torch
import torch.nn.functional as F
from kills import killed_and_resumed
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from snnexp import experiment
from snnexp.errors import ConfigError
from snnexp.experiment import build, compose
from snnexp.initializers import Constant
from snnexp.network import MLP, Conv, Network
from snnexp.network.layers import Dense
from snnexp.neurons import Leaky
from snnexp.surrogates import ATan
from snnexp.sweeps import grouping
from snnexp.training.start import Start

T, B = 4, 3
SMALL = [
    "data=digits",
    "num_steps=3",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.limit_batches=3",
    "trainer.limit_test_batches=1",
    "data.batch_size=16",
    "logger=jsonl",
    "network.hidden=[6]",
]
CONV = ["network=conv", "network.channels=[2,3]", "network.kernel_size=3", "network.stride=1", "network.padding=same"]


def leaky(features: Any) -> Leaky:
    return Leaky(features, beta=0.9, surrogate=ATan(2.0))


def conv(inputs: tuple[int, ...] = (1, 8, 8), outputs: int = 5, **options: Any) -> Conv:
    torch.manual_seed(0)
    return Conv(inputs, outputs, leaky, leaky, T, **{"kernel_size": 3, "stride": 1, "channels": (2, 3), **options})


def kinds(network: Network) -> list[list[type[nn.Module]]]:
    """Return the module types of the synapse of each layer."""
    synapses = [each.synapse for each in network.layers.values()]
    return [[*map(type, each)] if isinstance(each, nn.Sequential) else [type(each)] for each in synapses]  # type: ignore[arg-type, list-item]


class TestModules:
    def test_default(self) -> None:
        assert kinds(conv()) == [[nn.Conv2d], [nn.Conv2d], [Dense]]

    def test_currents_are_pooled(self) -> None:
        network = conv(norm="batch", pool="max", padding=1, dropout=0.5, hidden=(6,))
        assert kinds(network) == [
            [nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d],
            [nn.Dropout, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d],
            [nn.Dropout, Dense, nn.BatchNorm1d],
            [nn.Dropout, Dense],
        ]

    def test_spikes_are_pooled(self) -> None:
        network = conv(norm="layer", pool="average", padding=1, pool_after="neuron", hidden=(6,))
        assert kinds(network) == [
            [nn.Conv2d, nn.GroupNorm],
            [nn.AvgPool2d, nn.Conv2d, nn.GroupNorm],
            [nn.AvgPool2d, Dense, nn.LayerNorm],
            [Dense],
        ]

    def test_dense_layers(self) -> None:
        network = MLP((4,), 3, leaky, leaky, T, hidden=(6, 5), norm="layer", dropout=0.2, bias=False)
        assert kinds(network) == [[Dense, nn.LayerNorm], [nn.Dropout, Dense, nn.LayerNorm], [nn.Dropout, Dense]]
        assert all(module.bias is None for module in network.modules() if isinstance(module, Dense))

    @pytest.mark.parametrize(
        ("options", "first", "second"),
        [
            ({}, (6, 5), (4, 3)),
            ({"padding": 1}, (8, 7), (8, 7)),
            ({"padding": "same", "kernel_size": (3, 5)}, (8, 7), (8, 7)),
            ({"padding": (0, 1), "kernel_size": (1, 3)}, (8, 7), (8, 7)),
            ({"stride": (2, 1)}, (3, 5), (1, 3)),
            ({"pool": "sum", "padding": 1}, (4, 3), (2, 1)),
            ({"pool": "max", "padding": 1, "pool_after": "neuron"}, (8, 7), (4, 3)),
            ({"pool": "max", "padding": 1, "pool_size": (1, 3)}, (8, 2), (8, 0)),
        ],
    )
    def test_shapes_before_construction(self, options: Any, first: Any, second: Any) -> None:
        given = {"kernel_size": 3, "stride": 1, "hidden": (), "channels": (2, 3)} | options
        if 0 in second:
            with pytest.raises(ConfigError, match=r"the output of convolution 2 is empty; .* or no pool"):
                Conv.shapes((1, 8, 7), 5, **given)
            return
        shapes = Conv.shapes((1, 8, 7), 5, **given)
        assert shapes == [("neuron", (2, *first)), ("neuron", (3, *second)), ("readout", (5,))]
        network = conv((1, 8, 7), **options)
        traces = network(torch.rand(T, B, 1, 8, 7))
        assert [tuple(trace.membrane.shape[2:]) for trace in traces] == [shape for _, shape in shapes]


class TestPooling:
    @pytest.mark.parametrize(("pool", "factor"), [("average", 0.25), ("sum", 1.0)])
    def test_windows_are_averaged_or_summed(self, pool: Any, factor: float) -> None:
        made = conv(pool=pool, channels=(1,)).layers["conv1"].synapse[1]  # type: ignore[index, union-attr]
        torch.testing.assert_close(made(torch.ones(1, 1, 4, 4)), torch.full((1, 1, 2, 2), 4 * factor))  # type: ignore[operator]

    def test_synaptic_operations_are_known_unless_spikes_are_pooled(self) -> None:
        for place, known in (("synapse", True), ("neuron", False)):
            network = conv(norm="batch", pool="max", padding=1, pool_after=place)
            modules = {name: module for name, _, module, _ in network.connections((1, 8, 8))}
            assert (modules["conv2"] is not None) == known


def unrolled(cells: Sequence[Any], synapses: Sequence[nn.Module], inputs: Tensor) -> Tensor:
    """Return the membranes of the last layer of snnTorch neurons, computed step by step."""
    states = [cell.init_leaky() for cell in cells]
    membranes = []
    for x in inputs:
        for index, (cell, synapse) in enumerate(zip(cells, synapses, strict=True)):
            spikes, states[index] = cell(synapse(x), states[index])
            x = spikes.to(inputs.dtype)
        membranes.append(states[-1])
    return torch.stack(membranes)


def test_equals_a_convolutional_network_of_snntorch() -> None:
    """conv, max pool, Leaky, twice, then a dense layer: the membrane, the loss and its gradients."""
    network = conv(pool="max", padding=1, outputs=4).double()
    convolutions = [network.layers[name].synapse for name in ("conv1", "conv2")]
    dense = network.layers["readout"].synapse
    peers = [snntorch.Leaky(beta=0.9, spike_grad=snntorch.surrogate.atan(2.0)).double() for _ in range(3)]
    synapses = [*convolutions, nn.Sequential(nn.Flatten(), nn.Linear(12, 4).double())]
    synapses[-1][1].load_state_dict(dense.state_dict())  # type: ignore[index, union-attr]
    inputs, target = 3 * torch.rand(T, B, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 1])
    membrane = network(inputs)[-1].membrane
    expected = unrolled(peers, synapses, inputs)  # type: ignore[arg-type]
    torch.testing.assert_close(membrane, expected)
    weight = convolutions[0][0].weight  # type: ignore[index, union-attr]
    gradients = [
        torch.autograd.grad(F.cross_entropy(each.sum(0), target), weight)[0]  # type: ignore[arg-type]
        for each in (membrane, expected)
    ]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_equals_layers_of_spikingjelly() -> None:
    """conv, batch norm, IF, max pool, conv, in training mode, with batch statistics over all steps.

    SpikingJelly's IF neuron with soft reset equals ``Leaky`` with beta 1: it resets within the step, but spikes and the
    membrane before reset are the same.
    """

    def fires(features: Any) -> Leaky:
        return Leaky(features, beta=1.0, surrogate=ATan(2.0))

    torch.manual_seed(0)
    network = Conv((1, 8, 8), 4, fires, fires, T, (2, 3), 3, 1, (), 1, "batch", "max", 2, "neuron").double()
    one, two = (network.layers[name].synapse for name in ("conv1", "conv2"))
    peer = nn.Sequential(
        layer.Conv2d(1, 2, 3, padding=1),
        layer.BatchNorm2d(2),
        neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True),
        layer.MaxPool2d(2, 2),
        layer.Conv2d(2, 3, 3, padding=1),
        layer.BatchNorm2d(3),
        neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True),
    ).double()
    functional.set_step_mode(peer, "m")
    for ours, theirs in ((one[0], peer[0]), (two[1], peer[4])):  # type: ignore[index]
        theirs.load_state_dict(ours.state_dict())  # type: ignore[operator, union-attr]
    inputs = 3 * torch.rand(T, B, 1, 8, 8, dtype=torch.float64)
    spikes, expected = network(inputs)[1].spikes, peer(inputs)
    torch.testing.assert_close(spikes, expected)
    target = torch.rand_like(spikes)
    gradients = [
        torch.autograd.grad(F.mse_loss(output, target), [convolution.weight, norm.weight, norm.bias])  # type: ignore[arg-type]
        for output, convolution, norm in ((spikes, one[0], one[1]), (expected, peer[0], peer[1]))  # type: ignore[index]
    ]
    torch.testing.assert_close(*gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    torch.testing.assert_close(one[1].running_var, peer[1].running_var)  # type: ignore[index, union-attr]


class TestBatchNorm:
    def test_constant_input_equals_repeated_input(self) -> None:
        """Except for the running variance, which divides by n - 1, with n = B or n = T B samples."""
        membranes, variances = [], []
        for repeat in (1, T):
            network = MLP((4,), 3, leaky, leaky, T, hidden=(6,), norm="batch").double()
            torch.manual_seed(1)
            network.reset_parameters()
            inputs = torch.rand(1, B, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            network.constant = repeat == 1
            membranes.append(network(inputs.expand(repeat, B, 4).clone())[0].membrane)
            running: Any = network.layers["hidden1"].synapse[1].running_var  # type: ignore[index, union-attr]
            samples = repeat * B
            variances.append((running - 0.9) * (samples - 1) / samples)
        torch.testing.assert_close(*membranes)
        torch.testing.assert_close(*variances)

    def test_refuses_batches_split_over_processes(self) -> None:
        words = [*SMALL, "network.norm=batch", "trainer=ddp", "trainer.accelerator=cpu"]
        with pytest.raises(ConfigError, match=r"^network: hidden1\.synapse\.1 is batch norm, and 2 processes share"):
            build(compose(words))
        build(compose([*words, "network.norm=layer"]))

    @pytest.mark.parametrize(
        ("words", "refused"),
        [
            (["data.batch_size=1"], True),
            # 1438 training samples are 3 batches and 1 sample
            (["data.batch_size=479", "trainer.limit_batches=4"], True),
            (["data.batch_size=479", "trainer.limit_batches=3"], False),
            (["data.batch_size=1", "encoder=bernoulli"], False),
            (["data.batch_size=1", *CONV, "network.hidden=[]"], False),
        ],
    )
    def test_refuses_batches_of_one_sample(self, words: list[str], refused: bool) -> None:
        start = Start.new(compose([*SMALL, "network.norm=batch", *words]), words)
        with pytest.raises(ConfigError, match="leaves a batch of 1 sample") if refused else nullcontext():
            state = start.build().network.state_dict()
            assert all(not tracked for name, tracked in state.items() if name.endswith("num_batches_tracked"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["network.norm=batch", "network.dropout=0.3"],
        [*CONV, "network.norm=batch", "network.pool=max", "network.dropout=0.3"],
    ],
)
def test_a_run_resumes_exactly(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose([*SMALL, *words, "logger.save_every_s=0"])
    whole = experiment.run(cfg)
    path = killed_and_resumed(cfg, 4, tmp_path / "killed")
    assert ends.content(path) == ends.content(whole.path)
    tested = {name: value for name, value in whole.metrics.items() if name.startswith("test/")}
    assert experiment.evaluate(path) == tested
    network, _ = experiment.load(path)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    # one per training step: nothing else updates the statistics
    assert {int(norm.num_batches_tracked) for norm in norms} == {6}  # type: ignore[arg-type]


class TestInit:
    @pytest.mark.parametrize("name", ["xavier_uniform", "kaiming_normal", "orthogonal"])
    def test_weights_are_initialized_and_biases_unchanged(self, name: Any) -> None:
        made = []
        for init in (None, name):
            torch.manual_seed(3)
            made.append(MLP((4,), 3, leaky, leaky, T, hidden=(), init=init).layers["readout"].synapse)
        before, after = made
        torch.testing.assert_close(after.bias, before.bias)  # type: ignore[union-attr]
        assert not torch.equal(after.weight, before.weight)  # type: ignore[arg-type, union-attr]
        if name == "orthogonal":
            weight: Any = after.weight
            torch.testing.assert_close(weight @ weight.T, torch.eye(3))

    def test_an_initializer(self) -> None:
        network = conv(init=Constant(2.0), norm="batch")
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | Dense)]
        assert all((module.weight == 2).all() for module in convolutions)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        assert all((module.weight == 1).all() for module in norms)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("network.init=orthogonal", None),
        ("network.bias=false", None),
        ("network.norm=layer", "network.norm cannot be stacked"),
        ("network.dropout=0.1", "network.dropout cannot be stacked"),
    ],
)
def test_stackable_options(word: str, reason: str | None) -> None:
    assert grouping.obstacle(compose([*SMALL, word])) == reason


def test_dropout_differs_between_steps_and_is_off_in_evaluation() -> None:
    network = MLP((4,), 3, leaky, leaky, T, hidden=(50,), dropout=0.5)
    drop = network.layers["readout"].synapse[0]  # type: ignore[index, union-attr]
    seen: list[Tensor] = []
    drop.register_forward_hook(lambda module, inputs, output: seen.append(output.unflatten(0, (T, B))))  # type: ignore[union-attr]
    inputs = 5 * torch.ones(1, B, 4)
    with torch.no_grad():
        for each in network.layers["hidden1"].synapse.parameters():
            each.fill_(1)
        network(inputs)
        network.eval()
        network(inputs)
    assert {*seen[0].unique().tolist()} == {0.0, 2.0}
    assert any(not torch.equal(seen[0][0], other) for other in seen[0][1:])
    assert {*seen[1].unique().tolist()} == {1.0}
