"""Networks that are plain modules: their outputs, reset of their state, and what is known of them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnexp.data import Description
from snnexp.errors import ConfigError
from snnexp.losses import CEMembrane
from snnexp.neurons import Leaky, Trace
from snnexp.training import contracts
from snnexp.training.opaque import Opaque

T, B = 6, 3


class Plain(nn.Module):
    """Two layers; ``how`` selects the form of the output."""

    def __init__(self, how: str = "membrane") -> None:
        super().__init__()
        self.how, self.front, self.lif, self.back = how, nn.Linear(5, 4), Leaky(4, threshold=0.1), nn.Linear(4, 2)
        self.seen: list[torch.Size] = []

    def forward(self, x: Tensor) -> Any:
        self.seen.append(x.shape)
        hidden = self.lif(self.front(x))
        membrane = self.back(hidden.spikes).cumsum(0)
        spikes = membrane.gt(0).float()
        return {
            "membrane": membrane,
            "pair": (spikes, membrane),
            "trace": Trace(spikes, membrane, None),
            "layers": {"lif": hidden, "readout": (spikes, membrane)},
            "list": [membrane] * 3,
            "nothing": {},
            "counts": membrane.long(),
            "two sizes": (spikes.repeat(1, 1, 2), membrane),
            "short": membrane[1:],
            "wide": membrane.repeat(1, 1, 2),
        }[self.how]


class Keeping(nn.Module):
    """Accumulates its inputs, in an attribute or in a buffer."""

    def __init__(self, where: str = "attribute") -> None:
        super().__init__()
        self.where, self.line = where, nn.Linear(5, 2)
        self.register_buffer("kept", torch.zeros(()), persistent=False)
        self.total: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        u: Tensor = self.line(x)
        if self.where == "buffer":
            self.kept = self.kept + u.detach().sum()
            return u + self.kept
        self.total = self.total + u.sum(1, keepdim=True)
        return u + self.total


class Forgetting(Keeping):
    def reset(self) -> None:
        self.total = 0.0


class ByBatchSize(Keeping):
    """Resets for a new batch size, so that only a batch of the same size reveals its state."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.total, Tensor) and self.total.shape[1] != x.shape[1]:
            self.total = 0.0
        u: Tensor = self.line(x)
        self.total = self.total + u.detach()
        return u + self.total


class InTraining(Keeping):
    """Accumulates its inputs only in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.line(x)  # type: ignore[no-any-return]


class Redrawing(Keeping):
    def reset(self) -> None:
        self.total = 0.0
        self.line.reset_parameters()


class OwnReset(nn.Module):
    """Its ``reset`` does not reset the module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.count = Forgetting(), 0

    def reset(self) -> None:
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)  # type: ignore[no-any-return]


class Inside(nn.Module):
    """Its neurons can be reset, like those of SpikingJelly and snnTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Forgetting()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)  # type: ignore[no-any-return]


def network(module: nn.Module, constant: bool = True) -> Opaque:
    found = contracts.as_network(module, (5,), 2, T, constant)
    data: Any = SimpleNamespace(inputs=(5,), outputs=2, target="labels", description=Description((5,), 2, "labels"))
    contracts.require_results(found, CEMembrane(), None, {}, {}, data, T)
    assert isinstance(found, Opaque)
    return found


@pytest.mark.parametrize(("how", "fires"), [("membrane", False), ("pair", True), ("trace", True)])
def test_the_output_is_the_readout(how: str, fires: bool) -> None:
    made = network(Plain(how))
    (trace,) = made(torch.rand(1, B, 5))
    assert trace.membrane.shape == trace.spikes.shape == (T, B, 2)
    assert {name: neuron.spikes for name, neuron in made.neurons().items()} == {"readout": fires}
    assert fires or not trace.spikes.any()
    trace.membrane.sum().backward()
    assert all(weight.grad is not None for weight in made.parameters())


def test_named_layers_are_known() -> None:
    made = network(Plain("layers"))
    assert {name: neuron.features for name, neuron in made.neurons().items()} == {"lif": (4,), "readout": (2,)}
    assert [trace.spikes.shape for trace in made(torch.rand(1, B, 5))] == [(T, B, 4), (T, B, 2)]
    assert list(made.native_neurons()) == ["lif"], "our neurons inside are projected"


def test_only_a_constant_input_is_expanded() -> None:
    module = Plain()
    network(module)(torch.rand(1, B, 5))
    assert module.seen[-1] == (T, B, 5)
    network(module, constant=False)(torch.rand(1, B, 5))
    assert module.seen[-1] == (1, B, 5)


@pytest.mark.parametrize("module", [Forgetting, Inside, OwnReset])
def test_a_loss_does_not_depend_on_the_previous_batch(module: type[nn.Module]) -> None:
    made, x = network(module()), torch.rand(1, B, 5)
    losses = []
    for other in (torch.zeros(1, 2, 5), torch.rand(1, 7, 5)):
        made(other)
        loss = made(x)[-1].membrane.square().mean()
        # otherwise the graph includes the previous batch
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("where", ["attribute", "buffer"])
def test_state_that_cannot_be_reset_is_rejected(where: str) -> None:
    with pytest.raises(ConfigError, match=r"^network: Keeping keeps state from one batch to the next; add a method"):
        network(Keeping(where))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("list", r"returned a list for readout, must be a membrane \[T, B, K\], \(spikes, membrane\) or a Trace"),
        ("nothing", "must return its layers under unique names"),
        ("counts", r"returned int64\[6, 4, 2\] for readout, must be floats"),
        ("two sizes", r"returned float32\[6, 4, 4\] and float32\[6, 4, 2\] for readout, must be .* of one shape"),
        ("short", r"returned \[5, 4, 2\] for readout, must be \[6, 4\] and neurons"),
        ("wide", r"returned a readout of \[4\] neurons, must be \[2\]"),
    ],
)
def test_invalid_outputs_are_rejected(how: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^network: Plain {sentence}"):
        network(Plain(how))


class Normed(nn.Module):
    """Draws random numbers in training, and accumulates batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.line = nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.drop(self.norm(x.flatten(0, 1)))).unflatten(0, x.shape[:2])  # type: ignore[no-any-return]


def test_inspecting_a_module_does_not_change_it() -> None:
    module = Normed()
    state, numbers = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    network(module)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in state.items())
    assert module.training


def test_a_module_rejects_states() -> None:
    made = network(Plain())
    with pytest.raises(ValueError, match="takes no state"):
        made(torch.rand(1, B, 5), [(torch.zeros(B, 2),)])


def test_synaptic_operations_are_unknown() -> None:
    made = network(Plain("layers"))
    assert [counted for _, _, counted in made.deliveries(made(torch.rand(1, B, 5)))] == [None, None]
