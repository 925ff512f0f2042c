"""Adaptive LIF neurons: the authors' implementation, closed forms, exact derivatives, and learned time constants."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnexp import kernels
from snnexp.errors import ConfigError
from snnexp.initializers import Normal, Uniform
from snnexp.neurons import ALIF, ALIFState
from snnexp.surrogates import ATan, Surrogate, spike

B, N = 2, 3
ALL = ["tau_m", "tau_adp", "b_j0", "beta_adp", "R_m"]


@dataclass(frozen=True)
class Flat(Surrogate):
    """Zero gradient through spikes, which are constant almost everywhere: all other derivatives are exact."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def make(**arguments: Any) -> ALIF:
    return ALIF(N, **arguments).double()


def current_for(T: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(T, B, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mem_update_adp(
    inputs: Tensor, mem: Tensor, spikes: Tensor, tau_adp: Tensor, b: Tensor, tau_m: Tensor, dt: float, p: ALIF
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The function in GSC/SRNN_layers/spike_neuron.py of the authors' repository, with parameters of a layer."""
    alpha = torch.exp(-1.0 * dt / tau_m)
    ro = torch.exp(-1.0 * dt / tau_adp)
    b = ro * b + (1 - ro) * spikes
    threshold = p.b_j0 + p.beta_adp * b
    mem = mem * alpha + (1 - alpha) * p.R_m * inputs - threshold * spikes * dt
    inputs_ = mem - threshold
    return mem, spike(inputs_, p.surrogate), threshold, b


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("dt", [1.0, 0.5])
def test_equals_the_authors_implementation(recurrent: bool, dt: float) -> None:
    """Values and all gradients, with their initial state, b = b_j0."""
    torch.manual_seed(0)
    numbers = {"b_j0": Uniform(0.1, 0.3), "beta_adp": Uniform(0.2, 1.8), "R_m": Uniform(0.8, 1.2)}
    neuron = make(recurrent=recurrent, tau_m=Uniform(2, 8), tau_adp=Uniform(5, 40), **numbers, learn=ALL, dt=dt)
    x = current_for(40).requires_grad_()
    start = torch.zeros(B, N, dtype=torch.float64)
    spikes, membrane = [], []
    mem, S, b = start, start, neuron.b_j0.expand(B, N)
    for x_t in x:
        inputs = x_t if neuron.recurrent is None else x_t + neuron.recurrent(S)
        mem, S, _, b = mem_update_adp(inputs, mem, S, neuron.tau_adp, b, neuron.tau_m, dt, neuron)
        spikes.append(S)
        membrane.append(mem)

    trace = neuron(x, state=ALIFState(start, start, neuron.b_j0.expand(B, N)))
    assert 0.05 < trace.spikes.mean() < 0.95
    assert torch.equal(trace.spikes, torch.stack(spikes))
    torch.testing.assert_close(trace.membrane, torch.stack(membrane))
    torch.testing.assert_close([*trace.state], [mem, S, b])
    variables = [x, *neuron.parameters()]
    assert len(variables) == 1 + len(ALL) + 2 * recurrent
    weight = torch.randn(40, B, N, dtype=torch.float64)
    ours = torch.autograd.grad((weight * (trace.spikes + trace.membrane)).sum(), variables, retain_graph=True)
    theirs = torch.autograd.grad((weight * (torch.stack(spikes) + torch.stack(membrane))).sum(), variables)
    torch.testing.assert_close(ours, theirs)


def test_subthreshold_response() -> None:
    """U[t] = R c (1 - alpha^t) as long as it does not fire."""
    c, R, tau, T = 0.7, 2.0, 12.0, 50
    trace = make(tau_m=tau, b_j0=R * c, R_m=R)(torch.full((1, 1, N), c, dtype=torch.float64), T)
    t = torch.arange(1, T + 1, dtype=torch.float64)
    torch.testing.assert_close(trace.membrane[:, 0, 0], R * c * (1 - torch.exp(-t / tau)))
    assert not trace.spikes.any()
    assert not trace.state.adaptation.any()


def test_adaptation_after_a_spike() -> None:
    """After a spike in the first step, b[t] = rho^(t-1) (1 - rho), and theta[1] is subtracted from U once."""
    tau_m, tau_adp, b_j0, beta, T = 5.0, 20.0, 0.5, 1.8, 30
    alpha, rho = math.exp(-1 / tau_m), math.exp(-1 / tau_adp)
    current = torch.zeros(T, 1, N, dtype=torch.float64)
    current[0] = 0.6 / (1 - alpha)
    neuron = make(tau_m=tau_m, tau_adp=tau_adp, b_j0=b_j0, beta_adp=beta)
    trace = neuron(current)
    assert trace.spikes[:, 0, 0].tolist() == [1] + [0] * (T - 1)
    theta = b_j0 + beta * (1 - rho)
    t = torch.arange(T - 1, dtype=torch.float64)
    expected = torch.cat([torch.tensor([0.6]).double(), (alpha * 0.6 - theta) * alpha**t])
    torch.testing.assert_close(trace.membrane[:, 0, 0], expected, atol=1e-7, rtol=0)
    adaptation = [neuron(current[:stop]).state.adaptation[0, 0].item() for stop in range(1, T + 1)]
    assert adaptation == pytest.approx([0] + [(1 - rho) * rho**k for k in range(T - 1)], abs=1e-7)


def test_adaptation_increases_interspike_intervals() -> None:
    """With a constant current, intervals grow and then converge."""
    steady = torch.full((1, 1, 1), 1.0)
    times = ALIF(1, tau_m=10.0, tau_adp=200.0, b_j0=0.1)(steady, 300).spikes.flatten().nonzero().flatten()
    intervals = times.diff()
    assert intervals[-1] > intervals[0] > 0
    plain = ALIF(1, tau_m=10.0, b_j0=0.1, beta_adp=0.0)(steady, 300).spikes.flatten().nonzero().flatten().diff()
    assert plain.max() - plain.min() <= 1


def test_gradients_are_the_derivatives() -> None:
    neuron = make(surrogate=Flat())
    values = {"tau_m": 4.0, "tau_adp": 9.0, "b_j0": 0.2, "beta_adp": 1.1, "R_m": 1.3}
    leaves = [torch.full((N,), value, dtype=torch.float64, requires_grad=True) for value in values.values()]
    start = torch.full((B, N), 0.1, dtype=torch.float64, requires_grad=True)
    assert 0 < neuron(current_for(12)).spikes.mean() < 1

    def membrane(current: Tensor, U: Tensor, b: Tensor, *parameters: Tensor) -> Tensor:
        for name, value in zip(values, parameters, strict=True):
            neuron._parameters.pop(name, None)
            neuron._buffers[name] = value
        membrane: Tensor = neuron(current, state=ALIFState(U, torch.zeros_like(U), b)).membrane
        return membrane

    current = current_for(12).requires_grad_()
    assert torch.autograd.gradcheck(membrane, (current, start, start.detach().clone().requires_grad_(), *leaves))


def test_time_constants_are_clamped_to_dt() -> None:
    neuron = ALIF(N, dt=0.5)
    assert {name for name, _ in neuron.named_parameters()} == {"tau_m", "tau_adp"}
    assert len(neuron.tau_m.unique()) == N
    neuron.tau_m.data = torch.tensor([0.5, -3.0, 7.0])
    clamped = neuron.project()
    assert neuron.tau_m.tolist() == [0.5, 0.5, 7.0]
    assert {name: flag.item() for name, flag in clamped.items()} == {"tau_m": True, "tau_adp": False}
    assert not any(flag.item() for flag in neuron.project().values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tau_m", 0.5),
        ("tau_m", -20),
        ("tau_adp", 0),
        ("tau_adp", Normal(0.5, 0.01)),
        ("b_j0", -0.1),
        ("beta_adp", -1.0),
        ("R_m", math.inf),
        ("dt", 0.0),
        ("learn", ["dt"]),
        ("recurrent", 1),
    ],
)
def test_refuses(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        ALIF(N, **{key: value})
    with pytest.raises(ConfigError, match=r"^recurrent: a recurrent layer must be flat"):
        ALIF((2, 3), recurrent=True)


def test_uses_the_reference_kernel() -> None:
    neuron = nn.ModuleDict({"hidden": ALIF(N, surrogate=ATan())})
    assert kernels.use(neuron, "auto", torch.device("cpu")) == "reference"
    with pytest.raises(ConfigError, match="kernel: got fused, ALIF has no fused kernel; use auto"):
        kernels.use(neuron, "fused", torch.device("cpu"))
