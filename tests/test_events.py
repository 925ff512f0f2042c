"""Spikes as a list are the spikes: the same sums, the same gradients, from the encoder to a whole network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnexp import kernels
from snnexp.encoders import ConstantCurrentLIF
from snnexp.network import MLP, Dense
from snnexp.neurons import LeakyIntegrator, ParametrizedLIF
from snnexp.sparse import SparseSpikes

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def events_of(spikes: Tensor) -> SparseSpikes:
    row, column = spikes.flatten(2).flatten(0, 1).nonzero(as_tuple=True)
    return SparseSpikes(spikes.shape, row, column)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_a_sum_over_events_is_the_product(bias: bool, density: float) -> None:
    random = torch.Generator().manual_seed(0)
    spikes = (torch.rand(5, 3, 2, 4, generator=random) < density).double()
    torch.manual_seed(0)
    synapse = Dense(8, 6, bias=bias).double()
    events = events_of(spikes)
    assert torch.equal(events.dense(), spikes.float())
    currents = [events.linear(synapse), synapse(spikes.flatten(0, 1)).unflatten(0, (5, 3))]
    torch.testing.assert_close(*currents)
    weights = torch.randn(5, 3, 6, generator=random, dtype=torch.float64)
    gradients = [torch.autograd.grad((current * weights).sum(), list(synapse.parameters())) for current in currents]
    torch.testing.assert_close(*gradients)


@deterministic
@given(
    values=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=12),
    num_steps=st.integers(1, 40),
    tau_mem_inv=st.floats(20, 1000),
    v_th=st.floats(-1, 2),
    v_leak=st.floats(-1, 1),
    v_reset=st.floats(-1, 2),
)
def test_the_encoder_leaves_out_only_what_never_fires(
    values: list[float], num_steps: int, tau_mem_inv: float, v_th: float, v_leak: float, v_reset: float
) -> None:
    """Against the equation, step by step and for every value; levels at and beside the threshold included."""
    encoder = ConstantCurrentLIF(num_steps, tau_mem_inv, v_th, v_leak, v_reset)
    edge = v_th - v_leak
    x = torch.tensor([[*values, edge, edge - 1e-6, edge + 1e-6, edge + 1e-3]])
    v, expected = torch.zeros_like(x), []
    for _ in range(num_steps):
        u = v + encoder.dt * tau_mem_inv * ((v_leak - v) + x)
        z = (u - v_th > 0).float()
        v = (1 - z) * u + z * v_reset
        expected.append(z)
    assert torch.equal(encoder(x), torch.stack(expected))
    assert torch.equal(encoder.sparse(x).dense(), torch.stack(expected))


def test_a_network_takes_either() -> None:
    torch.manual_seed(0)
    network = MLP((1, 4, 5), 3, lambda N: ParametrizedLIF(N, v_th=0.2), LeakyIntegrator, num_steps=20, hidden=[7])
    network.double()
    kernels.use(network, "fused", torch.device("cpu"))
    encoder = ConstantCurrentLIF(20)
    x = 3 * torch.rand(6, 1, 4, 5)
    results = []
    for inputs in (encoder(x).double(), encoder.sparse(x)):
        traces = network(inputs)
        gradients = torch.autograd.grad(
            traces[-1].membrane.square().sum(), list(network.parameters()), allow_unused=True
        )
        results.append((traces[-1].membrane, gradients))
        operations = [spikes.sum() for _, spikes, _ in network.deliveries(traces, inputs)]
        assert operations[0] == encoder(x).sum() > 0
    torch.testing.assert_close(*results)
    assert traces[0].spikes.any()
