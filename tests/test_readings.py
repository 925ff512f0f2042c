"""Statistics of a trace: closed and streaming form agree, and an evaluation keeps only what is read."""

from typing import Any

import pytest
import torch
from torch import Tensor

from snnexp import kernels
from snnexp.experiment import build, compose
from snnexp.neurons import STATISTICS, Leaky, LeakyIntegrator, ReducedTrace, Statistic, Trace, statistic_names


class Late(Statistic):
    """sum of S U over the second half, without a streaming form."""

    name = "late_of_a_test"
    reads_spikes = True

    def of(self, trace: Any) -> Tensor:
        half = len(trace.spikes) // 2
        late: Tensor = (trace.spikes * trace.membrane)[half:].sum(0)
        return late


def random_trace(num_steps: int, seed: int = 0) -> Trace:
    random = torch.Generator().manual_seed(seed)
    membrane = torch.randn((num_steps, 3, 2, 4), generator=random, dtype=torch.float64)
    spikes = (membrane > 1).double()
    spikes[:, 0, 0, 0] = 0
    return Trace(spikes, membrane, (membrane[-1],))


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("name", STATISTICS)
def test_streaming_matches_the_closed_form(name: str, num_steps: int) -> None:
    """Steps are overwritten in memory, as in a kernel."""
    trace, statistic = random_trace(num_steps), STATISTICS[name]
    S, U = torch.empty_like(trace.spikes[0]), torch.empty_like(trace.membrane[0])
    state = statistic.start(U, num_steps)
    for t in range(num_steps):
        S.copy_(trace.spikes[t])
        U.copy_(trace.membrane[t])
        state = statistic.update(state, t, S, U)
    torch.testing.assert_close(statistic.finish(state, num_steps), statistic.of(trace), rtol=1e-12, atol=1e-12)


def test_values_by_hand() -> None:
    membrane = torch.tensor([[0.5, -1.0], [2.0, -3.0], [0.0, 0.5]]).unsqueeze(1)
    spikes = torch.tensor([[0.0, 0], [1, 0], [1, 0]]).unsqueeze(1)
    trace = Trace(spikes, membrane, None)
    wanted: dict[str, list[float]] = {
        "spike_count": [2, 0],
        "last_spikes": [1, 0],
        "first_spike": [1, 3],
        "spike_time": [1, 2],
        "mean_membrane": [2.5 / 3, -3.5 / 3],
        "sum_membrane": [2.5, -3.5],
        "last_membrane": [0.0, 0.5],
        "max_membrane": [2.0, 0.5],
    }
    for name, values in wanted.items():
        torch.testing.assert_close(getattr(trace, name), torch.tensor([values], dtype=torch.float32), msg=name)
    assert wanted.keys() == {name for name, each in STATISTICS.items() if not each.per_step} - {"late_of_a_test"}


def test_reading_step_by_step_keeps_the_trace() -> None:
    trace = random_trace(5)
    assert trace.reduced(["spike_count", "membrane"]) is trace
    less = trace.reduced(["last_membrane"])
    assert isinstance(less, ReducedTrace)
    with pytest.raises(AttributeError, match="a reduced trace has no spike_count, only last_membrane"):
        less.spike_count  # noqa: B018
    with pytest.raises(AttributeError, match="a trace has no spike_cuont"):
        trace.spike_cuont  # noqa: B018


@pytest.mark.parametrize("kernel", ["fused", "reference"])
@pytest.mark.parametrize("kind", [Leaky, LeakyIntegrator])
def test_all_kernels_support_user_statistics(kind: Any, kernel: str) -> None:
    neuron = kind(5)
    kernels.use(neuron, kernel, torch.device("cpu"))
    current = torch.rand((9, 3, 5), generator=torch.Generator().manual_seed(0)) * 2
    with torch.no_grad():
        less, _ = neuron.unroll(current, statistics=["late_of_a_test"])
        torch.testing.assert_close(less.late_of_a_test, neuron(current).late_of_a_test)


def test_names() -> None:
    assert statistic_names(("membrane", Late, "membrane")) == ("membrane", "late_of_a_test")
    assert statistic_names(()) == ()
    with pytest.raises(ValueError, match=r"^spike_cuont$"):
        statistic_names("spike_cuont")


@pytest.mark.parametrize("name", ["spike_count", "no name", "_private", 3])
def test_names_are_valid_and_unique(name: object) -> None:
    with pytest.raises(TypeError, match="name: "):
        type("Other", (Statistic,), {"name": name})


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize(
    ("words", "hidden", "readout"),
    [
        (["experiment=mnist_leaky"], {"spike_count"}, {"spike_count", "membrane", "max_membrane"}),
        (
            ["experiment=mnist_rleaky_count"],
            {"spike_count", "last_spikes"},
            {"spike_count", "last_spikes", "max_membrane"},
        ),
        (["experiment=mnist_parametrized_lif"], {"spike_count", "last_spikes"}, {"max_membrane"}),
        (["loss=mse_count", "decoder=first_spike"], {"spike_count"}, {"spike_count", "first_spike"}),
    ],
)
def test_an_evaluation_keeps_the_union_of_reads(words: list[str], hidden: set[str], readout: set[str]) -> None:
    parts = build(compose([*words, "trainer=cpu", "network.hidden=[4]", "data.batch_size=8"]))
    assert {name: {*kept} for name, kept in parts.task.statistics.items()} == {"hidden1": hidden, "readout": readout}
    with torch.no_grad():
        x, y = parts.data.test[[0, 1]]
        _, _, _, traces = parts.task._step((x, y), parts.task.statistics)
    whole = "membrane" in readout
    assert [isinstance(trace, ReducedTrace) for trace in traces] == [True, not whole]
    assert traces[0].values.keys() == hidden
