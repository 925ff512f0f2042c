"""Graphs: several inputs, skip connections, feedback, arbitrary synapses, layers without neurons."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnexp import kernels
from snnexp.errors import ConfigError
from snnexp.metrics import synaptic_operations
from snnexp.network import MLP, Graph, stack
from snnexp.neurons import Identity, Leaky, LeakyIntegrator, RLeaky
from snnexp.spec.parts import PartFactory
from snnexp.surrogates import FastSigmoid

T, B = 7, 3
LEAKY = partial(Leaky, beta=0.8, threshold=0.3, surrogate=FastSigmoid(2.0))
CONV = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2)]


def graph(*layers: dict[str, Any], inputs: tuple[int, ...] = (5,), outputs: int = 2, readout: Any = LEAKY) -> Graph:
    torch.manual_seed(0)
    return Graph(inputs, outputs, LEAKY, readout, T, list(layers))


def layer(name: str, *inputs: str, **more: Any) -> dict[str, Any]:
    return {"name": name, **({"inputs": [*inputs]} if inputs else {}), **more}


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) + 0.5


SKIP = (layer("a", size=6), layer("b", size=4), layer("readout", "b", "a", "input"))
LOOP = (layer("a", "input", "b", size=6), layer("b", size=4), layer("readout"))
SELF = (layer("a", "input", "a", size=6), layer("readout"))


def test_a_graph_without_inputs_is_a_chain() -> None:
    torch.manual_seed(0)
    chain = MLP((5,), 2, LEAKY, LEAKY, T, hidden=(6, 4))
    made = graph(layer("hidden1", size=6), layer("hidden2", size=4), layer("readout"))
    ours, theirs = made.state_dict(), chain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    x = values(1, B, 5)
    for trace, other in zip(made(x), chain(x), strict=True):
        assert torch.equal(trace.spikes, other.spikes)
        assert torch.equal(trace.membrane, other.membrane)


def test_currents_of_several_inputs_are_added() -> None:
    made, x = graph(*SKIP), values(T, B, 5)
    a, b, readout = made(x)
    synapse: Any = made.layers["readout"].synapse
    current = synapse["b"](b.spikes.flatten(0, 1)) + synapse["a"](a.spikes.flatten(0, 1))
    current = current + synapse["input"](x.flatten(0, 1))
    expected = made.layers["readout"].neuron(current.unflatten(0, (T, B)))  # type: ignore[operator]
    torch.testing.assert_close(readout.membrane, expected.membrane)
    assert a.spikes.any()
    assert [name for name, module in synapse.items() if module.bias is not None] == ["b"], "only one synapse has a bias"


@pytest.mark.parametrize("layers", [SKIP, LOOP, SELF])
@pytest.mark.parametrize("kernel", ["fused", "reference"])
def test_gradients_equal_those_of_a_step_by_step_implementation(layers: Any, kernel: str) -> None:
    """Compare with autograd through an explicit loop over steps and layers."""
    made, x = graph(*layers).double(), values(T, B, 5).double()
    kernels.use(made, kernel, torch.device("cpu"))
    trace = made(x)[-1]
    actual = torch.autograd.grad(trace.membrane.square().sum() + trace.spikes.sum(), [*made.parameters()])

    kernels.use(made, "reference", torch.device("cpu"))
    spikes = {name: torch.zeros(B, *neuron.features, dtype=torch.float64) for name, neuron in made.neurons().items()}
    states = dict.fromkeys(made.layers)
    loss = torch.zeros((), dtype=torch.float64)
    for step in x:
        previous = dict(spikes)
        for name, each in made.layers.items():
            outputs = {**previous, "input": step}
            # earlier layers are read without delay
            outputs |= {earlier: spikes[earlier] for earlier in list(made.layers)[: list(made.layers).index(name)]}
            current = sum(synapse(outputs[source]) for source, synapse in each.synapses(made.sources[name]))
            out = each.neuron(current.unsqueeze(0), 1, states[name])
            spikes[name], states[name] = out.spikes[0], out.state
        loss = loss + out.membrane.square().sum() + out.spikes.sum()
    expected = torch.autograd.grad(loss, [*made.parameters()])
    torch.testing.assert_close(actual, expected)
    assert all(gradient.any() for gradient in actual)


def test_a_layer_that_reads_itself_equals_linear_feedback() -> None:
    made = graph(*SELF)
    recurrent = MLP((5,), 2, partial(RLeaky, beta=0.8, threshold=0.3), LEAKY, T, hidden=(6,))
    own: Any = made.layers["a"].synapse
    with torch.no_grad():
        ours, theirs = recurrent.layers["hidden1"], made.layers["readout"]
        ours.synapse.load_state_dict(own["input"].state_dict())  # type: ignore[union-attr]
        ours.neuron.recurrent.weight.copy_(own["a"].weight)  # type: ignore[union-attr, operator]
        ours.neuron.recurrent.bias.zero_()  # type: ignore[union-attr, operator]
        recurrent.layers["readout"].synapse.load_state_dict(theirs.synapse.state_dict())  # type: ignore[union-attr]
    x = values(T, B, 5)
    for trace, other in zip(made(x), recurrent(x), strict=True):
        assert torch.equal(trace.spikes, other.spikes)
        torch.testing.assert_close(trace.membrane, other.membrane, atol=1e-6, rtol=0)
    assert made(x)[0].spikes.any()


@pytest.mark.parametrize("layers", [SKIP, LOOP, SELF])
class TestTime:
    def test_states_continue_the_sequence(self, layers: Any) -> None:
        made, x = graph(*layers), values(T, B, 5)
        made.constant = False
        whole, first = made(x), made(x[:3])
        second = made(x[3:], [trace.state for trace in first])
        for trace, *halves in zip(whole, first, second, strict=True):
            assert torch.equal(trace.spikes, torch.cat([half.spikes for half in halves]))
            torch.testing.assert_close(trace.membrane, torch.cat([half.membrane for half in halves]))

    def test_constant_input_equals_repeated_input(self, layers: Any) -> None:
        made, x = graph(*layers), values(1, B, 5)
        for trace, other in zip(made(x), made(x.repeat(T, 1, 1)), strict=True):
            assert torch.equal(trace.spikes, other.spikes)

    def test_reduced_traces_have_the_same_statistics(self, layers: Any) -> None:
        made, x = graph(*layers), values(T, B, 5)
        with torch.no_grad():
            sums = dict.fromkeys(made.layers, ("spike_count", "max_membrane"))
            for trace, other in zip(made(x), made(x, statistics=sums), strict=True):
                torch.testing.assert_close(other.spike_count, trace.spike_count)
                torch.testing.assert_close(other.max_membrane, trace.max_membrane)

    def test_delayed_connections_do_not_count_the_last_step(self, layers: Any) -> None:
        made, x = graph(*layers), values(T, B, 5)
        traces = dict(zip(made.layers, made(x), strict=True))
        counted, order = 0.0, list(made.layers)
        for name, sources in made.sources.items():
            for source in (source for source in sources if source != "input"):
                delayed = order.index(source) >= order.index(name)
                spikes = traces[source].spikes[: T - 1 if delayed else T]
                counted += spikes.sum().item() * made.neurons()[name].features[0]
        measured = sum(synaptic_operations(*rest).item() for _, *rest in made.deliveries([*traces.values()]))
        assert measured == pytest.approx(counted / B, rel=1e-6)
        assert counted


class TestSynapses:
    def maps(self, **readout: Any) -> Graph:
        return graph(layer("maps", synapse=CONV), layer("readout", **readout), inputs=(2, 8, 6))

    def test_a_list_of_modules_is_a_sequence(self) -> None:
        made = self.maps()
        assert [neuron.features for neuron in made.neurons().values()] == [(4, 4, 3), (2,)]
        assert made(values(1, B, 2, 8, 6))[-1].membrane.shape == (T, B, 2)

    def test_shape_inference_does_not_change_running_statistics(self) -> None:
        norm: Any = self.maps().layers["maps"].synapse[1]  # type: ignore[index]
        assert not norm.running_mean.any()
        assert norm.num_batches_tracked == 0

    def test_missing_sizes_are_inferred(self) -> None:
        calls: list[dict[str, Any]] = []

        def make(**given: Any) -> nn.Module:
            calls.append(given)
            return nn.Conv2d(out_channels=3, kernel_size=3, **given)

        graph(layer("maps", synapse=PartFactory(make, ["in_channels"])), layer("readout"), inputs=(2, 8, 6))
        assert calls == [{"in_channels": 2}]

    def test_synaptic_operations_are_those_of_the_convolution(self) -> None:
        made = graph(layer("maps", synapse=CONV), layer("more", synapse=[nn.Conv2d(4, 2, 2), nn.BatchNorm2d(2)]),
                     layer("readout"), inputs=(2, 8, 6))  # fmt: skip
        made.eval()
        traces = made(values(1, B, 2, 8, 6))
        measured = {name: synaptic_operations(*rest).item() for name, *rest in made.deliveries(traces)}
        # a spike has one connection per position of the 2 x 2 kernel within the 4 x 3 map
        reached = sum(
            2 * sum(0 <= y - dy < 3 and 0 <= x - dx < 2 for dy in (0, 1) for dx in (0, 1))
            for _, _, _, y, x in traces[0].spikes.nonzero().tolist()
        )
        assert measured["more"] == pytest.approx(reached / B)
        assert reached

    def test_groups_and_dilation_are_counted(self) -> None:
        synapse, spikes = nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=1), torch.rand(T, B, 4, 7, 7).gt(0.5).float()
        kernel = torch.ones_like(synapse.weight)
        reached = nn.functional.conv2d(spikes.flatten(0, 1), kernel, None, 1, 1, 2, 2).sum()
        assert synaptic_operations(spikes, synapse).item() == pytest.approx(reached.item() / B)

    @pytest.mark.parametrize(
        "synapse", [nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6)), nn.Sequential(nn.AvgPool1d(1), nn.Linear(6, 6)),
                    nn.Bilinear]
    )  # fmt: skip
    def test_operations_of_unknown_synapses_are_not_counted(self, synapse: Any) -> None:
        module = synapse if isinstance(synapse, nn.Module) else Squared()
        made = graph(layer("a", size=6), layer("b", synapse=module), layer("readout"))
        modules = {name: counted for name, _, counted in made.deliveries(made(values(T, B, 5)))}
        assert modules["b"] is None
        assert modules["readout"] is made.layers["readout"].synapse

    def test_weights_of_a_user_module_are_not_initialized_again(self) -> None:
        made = graph(layer("a", synapse=(module := Squared())), layer("readout"))
        assert made.layers["a"].synapse is module
        assert torch.equal(module.weight, torch.full((6, 5), 0.5))


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((6, 5), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x[:, :5], self.weight).square()


def test_a_layer_without_neurons_outputs_its_currents() -> None:
    front = [nn.Conv2d(2, 3, 3), nn.ReLU()]
    made = graph(
        layer("front", synapse=front, neuron=None), layer("readout"), inputs=(2, 5, 5), readout=LeakyIntegrator
    )
    x = values(1, B, 2, 5, 5)
    calls: list[int] = []
    made.layers["readout"].synapse.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))  # type: ignore[operator, union-attr]
    first, last = made(x)
    assert isinstance(made.neurons()["front"], Identity)
    assert first.membrane.shape == (T, B, 3, 3, 3)
    assert not first.spikes.any()
    current = made.layers["readout"].synapse(nn.Sequential(*front)(x[0]))  # type: ignore[operator]
    torch.testing.assert_close(last.membrane, made.layers["readout"].neuron(current.unsqueeze(0), T).membrane)  # type: ignore[operator]
    assert calls[0] == B, "constant inputs are computed once"
    assert not [*made.deliveries([first, last])], "only spikes are counted"


def test_members_of_a_stack_equal_single_networks() -> None:
    singles = [Graph((5,), 2, LEAKY, LEAKY, T, list(SKIP)) for _ in range(3)]
    together, x = stack(singles), values(T, B, 5)
    for trace, *others in zip(together(x.unsqueeze(2)), *(each(x) for each in singles), strict=True):
        for member, other in enumerate(others):
            torch.testing.assert_close(trace.membrane[:, :, member], other.membrane)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([layer("a", size=3)], "must be named readout"),
        ([layer("a", size=3), layer("a", size=3), layer("readout")], "'a' cannot name a layer"),
        ([layer("input", size=3), layer("readout")], "'input' cannot name a layer"),
        ([layer("a b", size=3), layer("readout")], "'a b' cannot name a layer"),
        ([layer("a", "b", size=3), layer("readout")], "a reads b, use one of input, a, readout"),
        ([layer("a"), layer("readout")], "a needs a size or a synapse"),
        ([layer("a", size=3, synapse=nn.Linear(5, 3)), layer("readout")], "a has a size and a synapse"),
        ([layer("a", size=0), layer("readout")], "size of a must be a whole number of at least 1"),
        ([layer("a", size=3, width=4), layer("readout")], "a has an unknown key width"),
        ([layer("a", size=3), layer("readout", "a", "input", synapse=nn.Linear(5, 2))], "readout has several inputs"),
        ([layer("a", size=3), layer("readout", "a", "a")], "inputs of readout must be a list of unique names"),
        ([layer("a", synapse=nn.Linear(4, 3)), layer("readout")], r"a synapse of a, Linear, cannot read \[5\]"),
        ([layer("readout", synapse=nn.Linear(5, 3))], r"the readout has shape \[3\], these data require \[2\]"),
        ([layer("a", "b", synapse=nn.Linear(3, 4)), layer("b", "a", "input", size=3), layer("readout")],
         "a reads only later layers"),
        ([], "must be a list of layers"),
        ([layer("keys", size=3), layer("readout")], "'keys' cannot name a layer"),
        ([layer("a", size=3), layer("b", "a", size=3), layer("readout", "a")], "b does not reach the readout"),
        ([layer("a", "b", size=3), layer("b", "a", size=3), layer("readout")], "the input does not reach a"),
        ([layer("a", synapse=5), layer("readout")], "a synapse of a is a int, must be a torch.nn.Module"),
        ([layer("a", synapse=[]), layer("readout")], "synapse of a is empty"),
        ([layer("a", synapse=[nn.Flatten(0)]), layer("readout")], r"Flatten, must return a tensor \[B, \*N\]"),
    ],
)  # fmt: skip
def test_refuses_inconsistent_layers(layers: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^layers: .*{message}"):
        graph(*layers)


def test_refuses_currents_of_different_shapes() -> None:
    make: Callable[[], Graph] = lambda: graph(  # noqa: E731
        layer("a", size=3), layer("readout", "a", "input", synapse={"a": nn.Linear(3, 2), "input": nn.Identity()})
    )
    with pytest.raises(ConfigError, match=r"currents of readout have different shapes: \[2\] from a, \[5\] from input"):
        make()
