"""Module hooks: they are called with every kernel, and do not change results."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from snnexp import kernels
from snnexp.network import MLP, Network, stack
from snnexp.neurons import Leaky, LeakyIntegrator, Neuron, ParametrizedLIF, RLeaky, Trace
from snnexp.sparse import SparseSpikes

NEURONS: dict[str, Callable[[Any], Neuron]] = {
    "leaky": lambda features: Leaky(features, 0.8, 0.5, learn_beta=True, learn_threshold=True),
    "rleaky": lambda features: RLeaky(features, 0.8, 0.5, learn_beta=True),
    "lif": lambda features: ParametrizedLIF(features, v_th=0.1),
}
KERNELS = ["fused", "reference"]
SUMS = ("spike_count", "last_spikes", "max_membrane")
PLACES = {"synapse": "layers.hidden2.synapse", "neuron": "layers.hidden2.neuron", "layer": "layers.hidden2"}
KINDS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward pre": lambda module, note: module.register_forward_pre_hook(note),
    "forward": lambda module, note: module.register_forward_hook(note),
    "backward": lambda module, note: module.register_full_backward_hook(note),
    "backward pre": lambda module, note: module.register_full_backward_pre_hook(note),
}


def network(neuron: str, kernel: str) -> Network:
    torch.manual_seed(0)
    made = MLP((5,), 3, NEURONS[neuron], LeakyIntegrator, num_steps=7, hidden=(6, 4))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("weight"):
                weight.mul_(3)
    kernels.use(made, kernel, torch.device("cpu"))
    return made


def computed(made: Network, statistics: Sequence[str] = ()) -> list[Tensor]:
    """Return statistics of the traces, and gradients of a scalar function of them."""
    traces = made(
        torch.rand((1, 2, 5), generator=torch.Generator().manual_seed(1)), statistics=dict.fromkeys(statistics, SUMS)
    )
    trained = [weight for weight in made.parameters() if weight.requires_grad]
    scalar = traces[-1].max_membrane.square().sum() + sum(trace.spike_count.square().sum() for trace in traces)
    gradients = torch.autograd.grad(scalar, trained, allow_unused=True, materialize_grads=True)
    counts = [trace.spike_count for trace in traces]
    assert all(count.any() for count in counts[:-1])
    return [*counts, traces[-1].max_membrane, *gradients]


# PyTorch warns about a module whose first input has no gradient, such as the initial spikes
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("neuron", "place"),
    [(neuron, PLACES[place]) for neuron in NEURONS for place in PLACES]
    + [(neuron, "layers.hidden2.neuron.recurrent") for neuron in ("rleaky", "lif")],
)
def test_hooks_are_called_and_do_not_change_results(neuron: str, place: str, kind: str, kernel: str) -> None:
    expected = computed(network(neuron, kernel))
    made = network(neuron, kernel)
    called: list[object] = []
    hook = KINDS[kind](made.get_submodule(place), lambda *arguments: called.append(arguments))
    actual = computed(made, statistics=("hidden1", "hidden2"))
    # the feedback synapse is called once per step; its last call may have no gradient
    steps = 7 if "recurrent" in place else 1
    assert steps - ("backward" in kind and steps > 1) <= len(called) <= steps
    torch.testing.assert_close(actual, expected)
    hook.remove()
    called.clear()
    assert all(map(torch.equal, computed(made), expected))
    assert not called


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_a_hook_can_replace_the_spikes(neuron: str, kernel: str) -> None:
    made = network(neuron, kernel)
    silent = lambda module, arguments, trace: Trace(0 * trace.spikes, trace.membrane, trace.state)  # noqa: E731
    made.layers["hidden2"].neuron.register_forward_hook(silent)
    x = torch.rand(1, 2, 5)
    assert not made(x)[-1].membrane.any()
    for statistics in ({}, {"hidden2": SUMS}):
        assert not made(x, statistics=statistics)[1].spike_count.any()
    assert not [trace for _, trace in made.with_currents(x)][-1].membrane.any()


@pytest.mark.parametrize("place", PLACES.values())
def test_only_hooks_receive_traces_as_tuples(place: str) -> None:
    made = network("rleaky", "fused")
    seen: list[Any] = []
    made.get_submodule(place).register_forward_hook(lambda module, arguments, result: seen.append(result))
    assert [type(trace) for trace in made(torch.rand(1, 2, 5))] == [Trace] * 3
    assert isinstance(seen[0], (tuple, Tensor))


@pytest.mark.parametrize("neuron", NEURONS)
def test_hooks_on_a_stack_do_not_change_results(neuron: str) -> None:
    singles = [network(neuron, "reference") for _ in range(2)]
    with torch.no_grad():
        for weight in singles[1].parameters():
            weight.mul_(0.9)
        for made in singles:
            if neuron == "lif":
                # autapses have no effect
                made.layers["hidden2"].neuron.recurrent.weight.fill_diagonal_(9.0)
    stacked = stack(singles)
    if neuron != "leaky":
        stacked.get_submodule("layers.hidden2.neuron.recurrent").register_forward_hook(lambda *arguments: None)
    stacked.layers["hidden2"].neuron.register_forward_hook(lambda *arguments: None)
    x = torch.rand(1, 2, 5)
    actual = stacked(x.unsqueeze(2))
    for member, made in enumerate(singles):
        for mine, expected in zip(actual, made(x), strict=True):
            torch.testing.assert_close(mine.membrane[:, :, member], expected.membrane)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("place", ["synapse", "neuron.recurrent"])
@pytest.mark.parametrize("neuron", ["rleaky", "lif"])
def test_pruned_weights_are_zero(neuron: str, place: str, kernel: str) -> None:
    """Also after a training step."""
    results = []
    for pruned in (False, True):
        made = network(neuron, kernel)
        synapse = made.get_submodule(f"layers.hidden2.{place}")
        mask = torch.rand(synapse.weight.shape, generator=torch.Generator().manual_seed(2)).round()
        if pruned:
            prune.custom_from_mask(synapse, "weight", mask)
        else:
            synapse.weight.data.mul_(mask)
        optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            made(torch.rand((1, 2, 5), generator=torch.Generator().manual_seed(1)))[
                -1
            ].membrane.square().sum().backward()
            if not pruned:
                synapse.weight.grad.mul_(mask)
            optimizer.step()
        results.append(made(torch.rand((1, 2, 5), generator=torch.Generator().manual_seed(1)))[-1].membrane)
    assert results[0].any()
    torch.testing.assert_close(*results)


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("place", "name"), [("synapse", "weight"), ("neuron.recurrent", "weight"), ("neuron", "beta")])
def test_parametrized_parameters_do_not_change_results(place: str, name: str, kernel: str) -> None:
    expected = computed(network("rleaky", kernel))
    made = network("rleaky", kernel)
    parametrize.register_parametrization(made.get_submodule(f"layers.hidden2.{place}"), name, Doubled())
    actual = computed(made)
    torch.testing.assert_close(actual[:4], expected[:4])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("neuron", ["rleaky", "lif"])
def test_parametrized_weights_are_computed_at_most_once_per_step(neuron: str, kernel: str) -> None:
    made = network(neuron, kernel)
    doubled, calls = Doubled(), []
    parametrize.register_parametrization(made.layers["hidden2"].neuron.recurrent, "weight", doubled)
    doubled.register_forward_hook(lambda *arguments: calls.append(1))
    for hook in (False, True):
        calls.clear()
        if hook:
            made.layers["hidden2"].neuron.recurrent.register_forward_hook(lambda *arguments: None)
        made(torch.rand(1, 2, 5))
        # plus once for the dtype
        assert 1 <= len(calls) <= 7 + 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_global_hooks_see_all_modules(kernel: str) -> None:
    made = network("rleaky", kernel)
    seen = set()
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        made(torch.rand(1, 2, 5))
    finally:
        hook.remove()
    parents = (nn.ModuleDict,)
    assert seen == {module for module in made.modules() if not isinstance(module, parents)}


@pytest.mark.parametrize("place", ["layers.hidden1.synapse", "layers.hidden1"])
def test_hooks_receive_sparse_spikes_as_a_tensor(place: str) -> None:
    made = network("leaky", "fused")
    made.constant = False
    spikes = torch.rand(7, 2, 5).round()
    row, column = spikes.flatten(0, 1).nonzero(as_tuple=True)
    events = SparseSpikes(spikes.shape, row, column)
    expected = made(events)[-1].membrane
    seen: list[Tensor] = []
    made.get_submodule(place).register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    torch.testing.assert_close(made(events)[-1].membrane, expected)
    assert torch.equal(seen[0].view_as(spikes), spikes)


@pytest.mark.parametrize("where", ["class", "instance"])
def test_overridden_forward_is_called(where: str) -> None:
    class Silenced(Leaky):
        def forward(self, *arguments: Any) -> Trace:
            trace = super().forward(*arguments)
            return Trace(0 * trace.spikes, trace.membrane, trace.state)

    made = MLP((5,), 3, lambda features: Silenced(features, 0.8, 0.1), Leaky, num_steps=7)
    if where == "instance":
        made = network("leaky", "fused")
        made.layers["hidden1"].neuron.forward = Silenced(6, 0.8, 0.1).forward
    assert not made(torch.rand(1, 2, 5))[0].spikes.any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_membranes_are_float32_with_bfloat16_weights(neuron: str, kernel: str) -> None:
    expected = computed(network(neuron, kernel))
    actual = computed(network(neuron, kernel).to(torch.bfloat16))
    assert [value.dtype for value in actual[:4]] == [torch.float32] * 4
    assert {value.dtype for value in actual[4:]} == {torch.bfloat16}
    assert all(torch.isfinite(value).all() for value in actual)
    # counts may differ by one spike
    torch.testing.assert_close(actual[0], expected[0], atol=1, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("neuron", ["rleaky", "lif"])
def test_products_have_the_precision_of_their_weights(neuron: str, kernel: str) -> None:
    x = torch.rand(1, 2, 5)
    expected = network(neuron, kernel)(x)
    made = network(neuron, kernel)
    made.layers["hidden2"].synapse.to(torch.bfloat16)
    actual = made(x)
    assert torch.equal(actual[0].membrane, expected[0].membrane), "its weights are float32"
    assert expected[0].spike_count.any()
    made = network(neuron, kernel)
    made.layers["hidden1"].neuron.recurrent.to(torch.bfloat16)
    spikes, synapse = made(x)[0].spikes, made.layers["hidden2"].synapse
    currents = [current for (current,), _ in made.with_currents(x)]
    assert torch.equal(made(x)[1].membrane, made.layers["hidden2"].neuron(currents[1]).membrane)
    torch.testing.assert_close(currents[1], synapse(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2]))
