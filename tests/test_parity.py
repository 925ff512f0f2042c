"""Parity of neurons, encoders and losses with snnTorch 1.0.0 and Norse 1.1.0 on random input, including gradients.

Scalars are random linear combinations of spikes and membranes, which cover every gradient path. Parameters are
learnable on both sides, scalar or one per neuron, and decays may be outside [0, 1], as after training steps.
"""

import warnings
from functools import partial
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnexp import encoders, kernels, losses
from snnexp.initializers import Uniform
from snnexp.network import MLP
from snnexp.neurons import (
    LIF,
    Leaky,
    LeakyIntegrator,
    LeakyIntegratorState,
    ParametrizedLIF,
    ParametrizedLIFState,
    RLeaky,
    RSynaptic,
    Synaptic,
)
from snnexp.surrogates import ATan, FastSigmoid, SuperSpike

RESETS = ["subtract", "zero", "none"]
SURROGATES = {"atan": ATan(2.0), "fast_sigmoid": FastSigmoid(25)}
DECAYS = ["tau_mem_inv", "tau_syn_inv"]
LEVELS = ["v_th", "v_leak", "v_reset"]

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=30)
few = settings(deterministic, max_examples=8)


@pytest.fixture(scope="module")
def snn() -> ModuleType:
    pytest.importorskip("snntorch.functional")
    pytest.importorskip("snntorch.spikegen")
    return pytest.importorskip("snntorch")


@pytest.fixture(scope="module")
def norse() -> ModuleType:
    with warnings.catch_warnings():
        # Norse calls the deprecated torch.jit.script when imported
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        return pytest.importorskip("norse.torch")


class Case(NamedTuple):
    """Sizes and a random generator."""

    T: int
    B: int
    N: int
    per_neuron: bool
    random: torch.Generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.random)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def parameter(self, low: float, high: float, *features: int) -> Tensor:
        return self.uniform(low, high, *(features if self.per_neuron else ()))


cases = st.builds(
    lambda T, B, N, per_neuron, seed: Case(T, B, N, per_neuron, torch.Generator().manual_seed(seed)),
    T=st.integers(1, 64),
    B=st.integers(1, 4),
    N=st.integers(1, 9),
    per_neuron=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


def assert_same_spikes(spikes: Tensor, peers: Tensor, membrane: Tensor, threshold: Tensor) -> None:
    """Equal, unless a membrane is within 4 ulp of the threshold, after which the two cannot be compared."""
    different = spikes != peers
    if different.any():
        first = int(different.flatten(1).any(1).nonzero()[0])
        distance = ((membrane[first] - threshold) / threshold).abs()[different[first]]
        assert distance.max() <= 4 * torch.finfo(membrane.dtype).eps
        assume(False)
    # large cases must have spikes
    assert spikes.any() or spikes.numel() < 500


def assert_same_gradients(ours: Tensor, peers: Tensor, variables: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Compare the gradients of two scalars by their variables, within 1e-4 of the largest entry.

    The gradient of a scalar parameter is a sum of terms of order 1 that may cancel; 1e-6 is its float32 accuracy.
    """
    options = {"retain_graph": True, "materialize_grads": True}
    gradients = torch.autograd.grad(ours, [mine for mine, _ in variables.values()], **options)
    expected = torch.autograd.grad(peers, [other for _, other in variables.values()], **options)
    for name, mine, other in zip(variables, gradients, expected, strict=True):
        assert mine.shape == other.shape, name
        assert (mine - other).abs().max() <= 1e-4 * other.abs().max() + 1e-6, name


def assert_same_membranes(membrane: Tensor, peers: Tensor) -> None:
    torch.testing.assert_close(membrane, peers, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("reset", RESETS)
@deterministic
@given(case=cases)
def test_leaky(snn: ModuleType, reset: str, surrogate: str, case: Case) -> None:
    T, B, N, *_ = case
    x, weight = case.normal(T, B, 5).requires_grad_(), (0.6 * case.normal(N, 5)).requires_grad_()
    current = F.linear(x, weight)
    beta, theta = case.parameter(-0.2, 1.2, N), case.parameter(0.2, 1.2, N)

    mine = Leaky(N, beta.clamp(0, 1), theta, True, True, reset, SURROGATES[surrogate])
    mine.beta.data.copy_(beta)
    other = snn.Leaky(
        beta.clone(),
        theta.clone(),
        spike_grad=getattr(snn.surrogate, surrogate)(),
        learn_beta=True,
        learn_threshold=True,
        reset_mechanism=reset,
    )
    U, spikes, membrane = torch.zeros(B, N), [], []
    for I in current:
        S, U = other(I, U)
        spikes.append(S)
        membrane.append(U)
    S_peer, U_peer = torch.stack(spikes), torch.stack(membrane)

    S, U, state = mine(current)
    assert_same_spikes(S, S_peer, U, theta)
    assert_same_membranes(U, U_peer)
    assert_same_membranes(state.membrane, U_peer[-1])
    wS, wU = case.normal(*S.shape), case.normal(*S.shape)
    variables = {"x": (x, x), "weight": (weight, weight)}
    variables |= {"beta": (mine.beta, other.beta), "threshold": (mine.threshold, other.threshold)}
    assert_same_gradients((wS * S + wU * U).sum(), (wS * S_peer + wU * U_peer).sum(), variables)


@pytest.mark.slow
@pytest.mark.parametrize("feedback", ["linear", "one_to_one", "conv2d"])
@pytest.mark.parametrize("reset", RESETS)
@deterministic
@given(case=cases, kernel_size=st.sampled_from([1, 3, 5]))
def test_rleaky(snn: ModuleType, reset: str, feedback: str, case: Case, kernel_size: int) -> None:
    T, B, N, *_ = case
    features = (2, N, 4) if feedback == "conv2d" else (N,)
    x, weight = case.normal(T, B, *features).requires_grad_(), case.uniform(0.5, 2, *features).requires_grad_()
    current = x * weight
    beta, theta = case.parameter(-0.2, 1.2, *features), case.parameter(0.2, 1.2, *features)
    V = case.parameter(-1, 1, *features)

    kernel = {"kernel_size": kernel_size} if feedback == "conv2d" else {}
    wiring = {
        "linear": {"linear_features": N},
        "one_to_one": {"all_to_all": False, "V": V.clone()},
        "conv2d": {"conv2d_channels": 2, **kernel},
    }[feedback]
    mine = RLeaky(
        features, beta.clamp(0, 1), theta, feedback, V=V, **kernel, learn_beta=True, learn_threshold=True, reset=reset
    )
    mine.beta.data.copy_(beta)
    other = snn.RLeaky(
        beta.clone(), threshold=theta.clone(), learn_beta=True, learn_threshold=True, reset_mechanism=reset, **wiring
    )
    variables = {"x": (x, x), "weight": (weight, weight)}
    variables |= {"beta": (mine.beta, other.beta), "threshold": (mine.threshold, other.threshold)}
    if mine.recurrent is None:
        variables["V"] = (mine.V, other.V)
    else:
        for name, value in other.recurrent.named_parameters():
            value.data = case.uniform(-0.5, 0.5, *value.shape)
            variables[f"recurrent.{name}"] = (mine.recurrent.get_parameter(name), value)
        mine.recurrent.load_state_dict(other.recurrent.state_dict())

    S, U = torch.zeros(B, *features), torch.zeros(B, *features)
    spikes, membrane = [], []
    for I in current:
        S, U = other(I, S, U)
        spikes.append(S)
        membrane.append(U)
    S_peer, U_peer = torch.stack(spikes), torch.stack(membrane)

    S, U, state = mine(current)
    assert_same_spikes(S, S_peer, U, theta)
    assert_same_membranes(U, U_peer)
    assert_same_membranes(state.membrane, U_peer[-1])
    assert torch.equal(state.spikes, S_peer[-1])
    wS, wU = case.normal(*S.shape), case.normal(*S.shape)
    assert_same_gradients((wS * S + wU * U).sum(), (wS * S_peer + wU * U_peer).sum(), variables)


@pytest.mark.parametrize("reset", RESETS)
@few
@given(case=cases)
def test_synaptic(snn: ModuleType, reset: str, case: Case) -> None:
    T, B, N, *_ = case
    x, linear = case.normal(T, B, 5).requires_grad_(), nn.Linear(5, N)
    alpha, beta = case.parameter(-0.2, 1.2, N), case.parameter(-0.2, 1.2, N)
    theta = case.parameter(0.2, 1.2, N)
    learned = {"learn_alpha": True, "learn_beta": True, "learn_threshold": True}
    mine = Synaptic(N, alpha.clamp(0, 1), beta.clamp(0, 1), theta, **learned, reset=reset)
    mine.alpha.data.copy_(alpha)
    mine.beta.data.copy_(beta)
    other = snn.Synaptic(alpha.clone(), beta.clone(), theta.clone(), **learned, reset_mechanism=reset)

    J, U = torch.zeros(B, N), torch.zeros(B, N)
    spikes, membrane = [], []
    for x_t in x:
        S, J, U = other(linear(x_t), J, U)
        spikes.append(S)
        membrane.append(U)
    S_peer, U_peer = torch.stack(spikes), torch.stack(membrane)

    S, U, state = mine(linear(x))
    assert_same_spikes(S, S_peer, U, theta)
    torch.testing.assert_close(U, U_peer, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state.synaptic, J, atol=1e-5, rtol=1e-5)
    wS, wU = case.normal(*S.shape), case.normal(*S.shape)
    variables = {name: (getattr(mine, name), getattr(other, name)) for name in ("alpha", "beta", "threshold")}
    variables |= {"x": (x, x), "weight": (linear.weight, linear.weight), "bias": (linear.bias, linear.bias)}
    assert_same_gradients((wS * S + wU * U).sum(), (wS * S_peer + wU * U_peer).sum(), variables)


@pytest.mark.parametrize("feedback", ["linear", "one_to_one", "conv2d"])
@pytest.mark.parametrize("reset", RESETS)
@few
@given(case=cases)
def test_rsynaptic(snn: ModuleType, reset: str, feedback: str, case: Case) -> None:
    # decays below 1, so that second-order feedback does not diverge
    T, B, N, *_ = case
    features = (2, N, 3) if feedback == "conv2d" else (N,)
    x = case.normal(T, B, *features).requires_grad_()
    alpha, beta = case.parameter(-0.2, 0.8, *features), case.parameter(-0.2, 0.8, *features)
    theta, V = case.parameter(0.2, 1.2, *features), case.parameter(-1, 1, *features)
    wiring = {
        "linear": {"linear_features": N},
        "one_to_one": {"all_to_all": False, "V": V.clone()},
        "conv2d": {"conv2d_channels": 2, "kernel_size": 3},
    }[feedback]
    learned = {"learn_alpha": True, "learn_beta": True, "learn_threshold": True}
    kernel_size = 3 if feedback == "conv2d" else None
    mine = RSynaptic(
        features, alpha.clamp(0, 1), beta.clamp(0, 1), theta, feedback, kernel_size, V, **learned, reset=reset
    )
    mine.alpha.data.copy_(alpha)
    mine.beta.data.copy_(beta)
    other = snn.RSynaptic(
        alpha.clone(), beta.clone(), threshold=theta.clone(), **learned, reset_mechanism=reset, **wiring
    )
    variables = {name: (getattr(mine, name), getattr(other, name)) for name in ("alpha", "beta", "threshold")}
    if mine.recurrent is None:
        variables["V"] = (mine.V, other.V)
    else:
        mine.recurrent.load_state_dict(other.recurrent.state_dict())
        for name, value in other.recurrent.named_parameters():
            variables[f"recurrent.{name}"] = (mine.recurrent.get_parameter(name), value)

    S, J, U = (torch.zeros(B, *features) for _ in range(3))
    spikes, membrane = [], []
    for I in x:
        S, J, U = other(I, S, J, U)
        spikes.append(S)
        membrane.append(U)
    S_peer, U_peer = torch.stack(spikes), torch.stack(membrane)

    S, U, state = mine(x)
    assert_same_spikes(S, S_peer, U, theta)
    assert_same_membranes(U, U_peer)
    assert_same_membranes(state.synaptic, J)
    assert torch.equal(state.spikes, S_peer[-1])
    wS, wU = case.normal(*S.shape), case.normal(*S.shape)
    mine_sum, other_sum = (wS * S + wU * U).sum(), (wS * S_peer + wU * U_peer).sum()
    assert_same_gradients(mine_sum, other_sum, variables | {"x": (x, x)})


@pytest.mark.slow
@pytest.mark.parametrize("recurrent", [True, False])
@deterministic
@given(case=cases)
def test_parametrized_lif(norse: ModuleType, recurrent: bool, case: Case) -> None:
    """Compare with ``LIFRecurrentCell``, whose surrogate ignores alpha and uses 1; without feedback, its weights are 0.

    Its state has the membrane after reset. The membrane before reset, which this package records, is computed by one
    step of Norse's leaky integrator from the same state.
    """
    T, B, N, *_ = case
    tau = {name: case.parameter(50, 950, N) for name in DECAYS}
    level = {"v_th": case.parameter(0.2, 0.8, N), "v_leak": case.parameter(-0.3, 0.3, N)}
    level["v_reset"] = case.parameter(-0.5, 0.1, N)
    x = case.normal(T, B, 5).requires_grad_()
    input_weights = nn.Parameter(0.8 * case.normal(N, 5))
    recurrent_weights = nn.Parameter(0.8 * case.normal(N, N) if recurrent else torch.zeros(N, N))

    p = norse.LIFParameters(**{name: nn.Parameter(value.clone()) for name, value in (tau | level).items()})
    other = norse.LIFRecurrentCell(5, N, p, input_weights=input_weights, recurrent_weights=recurrent_weights)
    leak = norse.LIParameters(p.tau_syn_inv, p.tau_mem_inv, p.v_leak)
    state = norse.LIFState(*(torch.zeros(B, N) for _ in range(3)))
    spikes, membrane = [], []
    for x_t in x:
        jump = F.linear(x_t, input_weights) + F.linear(state.z, other.recurrent_weights)
        membrane.append(norse.li_feed_forward_step(jump, norse.LIState(state.v, state.i), leak)[0])
        z, state = other(x_t, state)
        spikes.append(z)
    z_peer, u_peer = torch.stack(spikes), torch.stack(membrane)

    learn = [*DECAYS, *LEVELS]
    mine = ParametrizedLIF(N, recurrent, **tau, **level, learn=learn, surrogate=SuperSpike(1.0))
    variables = {name: (getattr(mine, name), getattr(p, name)) for name in learn}
    variables |= {"x": (x, x), "input_weights": (input_weights, input_weights)}
    if mine.recurrent is not None:
        mine.recurrent.weight.data.copy_(other.recurrent_weights)
        variables["recurrent.weight"] = (mine.recurrent.weight, other.recurrent_weights)

    z, u, last = mine(torch.stack([F.linear(x_t, input_weights) for x_t in x]))
    assert_same_spikes(z, z_peer, u, level["v_th"])
    assert_same_membranes(u, u_peer)
    for ours, peers in zip(last, ParametrizedLIFState(state.z, state.v, state.i), strict=True):
        assert_same_membranes(ours, peers)
    wz, wu = case.normal(*z.shape), case.normal(*z.shape)
    assert_same_gradients((wz * z + wu * u).sum(), (wz * z_peer + wu * u_peer).sum(), variables)


@pytest.mark.slow
@deterministic
@given(case=cases)
def test_feed_forward_lif(norse: ModuleType, case: Case) -> None:
    """Forward only: gradients flow through the reset of Norse's feed-forward cell, not of its recurrent cell."""
    T, B, N, *_ = case
    numbers = {"tau_mem_inv": case.parameter(50, 950, N), "tau_syn_inv": case.parameter(50, 950, N)}
    numbers["v_th"] = case.parameter(0.2, 0.8, N)
    current = 1.5 * case.normal(T, B, N)
    other = norse.LIFCell(norse.LIFParameters(**numbers))
    state, spikes = norse.LIFFeedForwardState(torch.zeros(B, N), torch.zeros(B, N)), []
    for I in current:
        z, state = other(I, state)
        spikes.append(z)

    mine = ParametrizedLIF(N, recurrent=False, **numbers)
    z, u, last = mine(current)
    assert_same_spikes(z, torch.stack(spikes), u, numbers["v_th"])
    assert_same_membranes(last.v, state.v)
    assert_same_membranes(last.i, state.i)


@pytest.mark.parametrize("alpha", [1.0, 100.0])
@pytest.mark.parametrize("kernel", ["reference", "fused"])
@few
@given(case=cases)
def test_lif(norse: ModuleType, kernel: str, alpha: float, case: Case) -> None:
    """Norse 1.1.0 ignores alpha and uses 1; for other values, its backward function is patched.

    In float64, because float32 is not accurate enough after many resets.
    """
    from norse.torch.functional import superspike

    T, B, N, *_ = case
    tau = {name: case.parameter(50, 950, N) for name in DECAYS}
    level = {"v_th": case.parameter(0.2, 0.8, N), "v_leak": case.parameter(-0.3, 0.3, N)}
    level["v_reset"] = case.parameter(-0.5, 0.1, N)
    x, linear = case.normal(T, B, 5).double().requires_grad_(), nn.Linear(5, N).double()
    p = norse.LIFParameters(**{name: nn.Parameter(value.double()) for name, value in (tau | level).items()})
    learn = [*DECAYS, *LEVELS]
    mine = LIF(N, **tau, **level, learn=learn, surrogate=SuperSpike(alpha)).double()
    kernels.use(mine, kernel, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        if alpha != 1:
            scaled = staticmethod(lambda ctx, g: (g / (alpha * ctx.saved_tensors[0].abs() + 1).square(), None))
            patch.setattr(superspike.SuperSpike, "backward", scaled)
        other = norse.LIFCell(p._replace(alpha=torch.tensor(alpha)))
        # the cell copies its parameters
        other.p = p
        state, spikes = norse.LIFFeedForwardState(*torch.zeros(2, B, N).double()), []
        for x_t in x:
            z_t, state = other(linear(x_t), state)
            spikes.append(z_t)
        z_peer = torch.stack(spikes)

        z, u, last = mine(linear(x))
        assert_same_spikes(z, z_peer, u, level["v_th"])
        assert_same_membranes(last.v, state.v)
        assert_same_membranes(last.i, state.i)
        variables = {name: (getattr(mine, name), getattr(p, name)) for name in learn}
        variables |= {"x": (x, x), "weight": (linear.weight, linear.weight), "bias": (linear.bias, linear.bias)}
        wz, wv = case.normal(*z.shape), case.normal(B, N)
        ours, peers = (wz * z).sum() + (wv * last.v).sum(), (wz * z_peer).sum() + (wv * state.v).sum()
        assert_same_gradients(ours, peers, variables)


@deterministic
@given(case=cases)
def test_leaky_integrator(norse: ModuleType, case: Case) -> None:
    T, B, N, *_ = case
    numbers = {"tau_syn_inv": case.parameter(50, 950, N), "tau_mem_inv": case.parameter(50, 950, N)}
    numbers["v_leak"] = case.parameter(-0.3, 0.3, N)
    x, weight = case.normal(T, B, 5).requires_grad_(), case.normal(N, 5).requires_grad_()
    start_v, start_i = case.normal(B, N).requires_grad_(), case.normal(B, N).requires_grad_()
    current = F.linear(x, weight)
    other = norse.LICell(norse.LIParameters(**numbers))
    state, membrane = norse.LIState(start_v, start_i), []
    for I in current:
        v, state = other(I, state)
        membrane.append(v)
    v_peer = torch.stack(membrane)

    _, v, last = LeakyIntegrator(N, **numbers)(current, state=LeakyIntegratorState(start_v, start_i))
    assert_same_membranes(v, v_peer)
    assert_same_membranes(last.i, state.i)
    w = case.normal(*v.shape)
    leaves = {"x": x, "weight": weight, "v": start_v, "i": start_i}
    assert_same_gradients((w * v).sum(), (w * v_peer).sum(), {name: (leaf, leaf) for name, leaf in leaves.items()})


@deterministic
@given(case=cases, tau_mem_inv=st.floats(20, 900), v_th=st.floats(0.25, 2))
def test_constant_current_lif(norse: ModuleType, case: Case, tau_mem_inv: float, v_th: float) -> None:
    values = 4 * torch.arange(256).div(255).expand(case.B, 256)
    p = norse.LIFParameters(tau_mem_inv=torch.tensor(tau_mem_inv), v_th=torch.tensor(v_th))
    expected = norse.ConstantCurrentLIFEncoder(case.T, p)(values)
    assert torch.equal(encoders.ConstantCurrentLIF(case.T, tau_mem_inv, v_th)(values), expected)


@few
@given(case=cases, padding=st.booleans(), off_spikes=st.booleans(), threshold=st.sampled_from([0.1, 0.5, 1.0]))
def test_delta(snn: ModuleType, case: Case, padding: bool, off_spikes: bool, threshold: float) -> None:
    # multiples of .1, which often equal the threshold
    values = case.normal(case.T, case.B, case.N).mul(10).round().div(10)
    expected = snn.spikegen.delta(values, threshold, padding, off_spikes)
    assert torch.equal(encoders.Delta(threshold, padding, off_spikes)(values), expected)


@few
@given(case=cases, gain=st.sampled_from([0.25, 1.0, 3.0]))
def test_rate(snn: ModuleType, case: Case, gain: float) -> None:
    values = case.uniform(0, 1, case.B, case.N)
    torch.manual_seed(case.T)
    expected = snn.spikegen.rate(values, case.T, gain)
    torch.manual_seed(case.T)
    assert torch.equal(encoders.Rate(case.T, gain)(values), expected)


@few
@given(case=cases)
def test_latency(snn: ModuleType, case: Case) -> None:
    """For 8-bit values, with snnTorch's linear and normalized code; values below its threshold do not fire."""
    values, T = case.uniform(0, 255, case.B, case.N).round() / 255, case.T + 1
    options = {"linear": True, "normalize": True, "clip": True, "threshold": 1e-6}
    assert torch.equal(encoders.Latency(T)(values), snn.spikegen.latency(values, T, **options))


# rates for which snnTorch's int(T * rate) has no rounding error
eighths = st.integers(0, 8).map(lambda k: k / 8)


def assert_same_loss(mine: Tensor, other: Tensor, variable: Tensor) -> None:
    torch.testing.assert_close(mine, other.squeeze(), rtol=1e-5, atol=1e-6)
    assert_same_gradients(mine, other.squeeze(), {"trace": (variable, variable)})


@deterministic
@given(case=cases, correct_rate=eighths, incorrect_rate=eighths)
def test_mse_count(snn: ModuleType, case: Case, correct_rate: float, incorrect_rate: float) -> None:
    spikes = case.uniform(0, 1, case.T, case.B, case.N).round().requires_grad_()
    target = torch.randint(case.N, (case.B,), generator=case.random)
    expected = snn.functional.mse_count_loss(correct_rate, incorrect_rate)(spikes, target)
    assert_same_loss(losses.mse_count(spikes, target, correct_rate, incorrect_rate), expected, spikes)


@deterministic
@given(case=cases, on_target=st.floats(-1, 2), off_target=st.floats(0, 2))
def test_mse_membrane(snn: ModuleType, case: Case, on_target: float, off_target: float) -> None:
    """With nonnegative ``off_target``: snnTorch replaces negative values by 0."""
    membrane = case.normal(case.T, case.B, case.N).requires_grad_()
    target = torch.randint(case.N, (case.B,), generator=case.random)
    expected = snn.functional.mse_membrane_loss(on_target=on_target, off_target=off_target)(membrane, target)
    assert_same_loss(losses.mse_membrane(membrane, target, on_target, off_target), expected, membrane)


@deterministic
@given(case=cases)
def test_nll_max_voltage(snn: ModuleType, case: Case) -> None:
    membrane = case.normal(case.T, case.B, case.N).requires_grad_()
    target = torch.randint(case.N, (case.B,), generator=case.random)
    expected = snn.functional.ce_max_membrane_loss()(membrane, target)
    assert_same_loss(losses.nll_max_voltage(membrane, target), expected, membrane)


@deterministic
@given(case=cases)
def test_ce_membrane(snn: ModuleType, case: Case) -> None:
    """Summed over time, as in snnTorch's Tutorial 5; ``ce_rate_loss`` is the mean over time."""
    membrane = case.normal(case.T, case.B, case.N).requires_grad_()
    target = torch.randint(case.N, (case.B,), generator=case.random)
    mine = losses.ce_membrane(membrane, target)
    assert_same_loss(mine, sum(nn.CrossEntropyLoss()(U, target) for U in membrane), membrane)
    assert_same_loss(mine / case.T, snn.functional.ce_rate_loss()(membrane, target), membrane)


class TestInitialWeights:
    """The same seed gives the same initial weights as the code of the tutorials."""

    def test_recurrent_network(self, snn: ModuleType) -> None:
        torch.manual_seed(3)
        network = MLP((20,), 4, RLeaky, RLeaky, num_steps=2, hidden=[6])
        torch.manual_seed(3)
        theirs = [nn.Linear(20, 6), snn.RLeaky(beta=0.9, linear_features=6)]
        theirs += [nn.Linear(6, 4), snn.RLeaky(beta=0.9, linear_features=4)]
        ours = [part for layer in network.layers.values() for part in (layer.synapse, layer.neuron.recurrent)]
        for synapse, peer in zip(ours, theirs, strict=True):
            peer = getattr(peer, "recurrent", peer)
            assert torch.equal(synapse.weight, peer.weight)
            assert torch.equal(synapse.bias, peer.bias)

    def test_drawn_parameters_come_first(self) -> None:
        torch.manual_seed(3)
        network = MLP((20,), 4, partial(Leaky, beta=Uniform(), threshold=Uniform()), Leaky, num_steps=2, hidden=[6])
        torch.manual_seed(3)
        beta, threshold, synapse = torch.rand(6), torch.rand(6), nn.Linear(20, 6)
        first = network.layers["hidden1"]
        assert torch.equal(first.neuron.beta, beta)
        assert torch.equal(first.neuron.threshold, threshold)
        assert torch.equal(first.synapse.weight, synapse.weight)

    def test_parametrized_lif(self, norse: ModuleType) -> None:
        torch.manual_seed(3)
        network = MLP((20,), 4, ParametrizedLIF, LeakyIntegrator, num_steps=2, hidden=[6])
        torch.manual_seed(3)
        tau_mem_inv, v_th = 100 + 20 * torch.randn(6), 0.5 + 0.1 * torch.randn(6)
        cell = norse.LIFRecurrentCell(20, 6)
        first = network.layers["hidden1"]
        assert torch.equal(first.neuron.tau_mem_inv, tau_mem_inv)
        assert torch.equal(first.neuron.v_th, v_th)
        torch.testing.assert_close(first.synapse.weight, cell.input_weights)
        torch.testing.assert_close(first.neuron.recurrent.weight, cell.recurrent_weights)
        assert torch.equal(network.layers["readout"].synapse.weight, nn.Linear(6, 4, bias=False).weight)
