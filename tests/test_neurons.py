"""Equations of the neurons: hand-computed sequences, closed forms, exact gradients, and invariants of all neurons."""

import math
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnexp import kernels
from snnexp.errors import ConfigError
from snnexp.initializers import Constant, LogNormal, Normal, Uniform
from snnexp.network import Dense
from snnexp.neurons import (
    ALIF,
    LIF,
    Leaky,
    LeakyIntegrator,
    LeakyState,
    Neuron,
    ParametrizedLIF,
    RLeaky,
    RSynaptic,
    Synaptic,
    Trace,
    time_distributed,
)
from snnexp.surrogates import ATan, FastSigmoid, SuperSpike

RESETS = ["subtract", "zero", "none"]
LEVELS = {"tau_mem_inv": 300.0, "tau_syn_inv": 400.0, "v_th": 0.4, "v_leak": 0.1, "v_reset": -0.2}

# every neuron, with one or several neuron axes
NEURONS: dict[str, Callable[[], Neuron]] = {
    **{f"leaky-{reset}": lambda reset=reset: Leaky(4, reset=reset) for reset in RESETS},
    **{f"rleaky-linear-{reset}": lambda reset=reset: RLeaky(4, reset=reset) for reset in RESETS},
    "leaky-map": lambda: Leaky((2, 3, 2), Uniform(0.2, 0.9), Uniform(0.5, 1), learn_beta=True, learn_threshold=True),
    "rleaky-one-to-one": lambda: RLeaky((2, 2), feedback="one_to_one", V=Uniform(-1, 1)),
    "rleaky-conv2d": lambda: RLeaky((2, 3, 2), feedback="conv2d", kernel_size=3, reset="zero"),
    "lif-recurrent": lambda: ParametrizedLIF(4, **LEVELS),
    "lif-map": lambda: ParametrizedLIF((2, 3), recurrent=False, **LEVELS),
    "lif-log-tau": lambda: ParametrizedLIF(4, log_tau=True, **LEVELS),
    "leaky-integrator": lambda: LeakyIntegrator((2, 3), tau_mem_inv=300.0, tau_syn_inv=400.0, v_leak=0.1),
    "lif-plain": lambda: LIF((2, 3), **LEVELS, learn=["tau_mem_inv", "v_th"]),
    "synaptic-zero": lambda: Synaptic((2, 3), Uniform(0.2, 0.9), 0.7, learn_alpha=True, learn_beta=True, reset="zero"),
    "rsynaptic-linear": lambda: RSynaptic(4, learn_threshold=True),
    "rsynaptic-conv2d": lambda: RSynaptic((2, 3, 2), feedback="conv2d", kernel_size=3, reset="none"),
    "alif-map": lambda: ALIF((2, 3), tau_m=Uniform(2, 5), tau_adp=20.0, b_j0=0.1, learn=["tau_m", "beta_adp"]),
    "alif-recurrent": lambda: ALIF(4, recurrent=True, tau_m=3.0),
}


REFERENCE_ONLY = ("synaptic", "rsynaptic", "alif")
# conv2d feedback and gradients through the reset have no Triton kernel
PAIRS = [
    (name, kernel)
    for name in NEURONS
    for kernel in ("reference", "fused", "triton")
    if kernel == "reference" or not name.startswith(REFERENCE_ONLY)
    if kernel != "triton" or ("conv2d" not in name and name != "lif-plain" and find_spec("triton"))
]


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def neuron(request: pytest.FixtureRequest) -> Neuron:
    """Every neuron on every kernel, in float64; Triton runs in its interpreter."""
    name, kernel = request.param
    torch.manual_seed(0)
    made = NEURONS[name]().double()
    kernels.use(made, kernel, torch.device("cpu"))
    return made


def current_for(neuron: Neuron, T: int = 12, B: int = 3, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, *neuron.features, generator=random, dtype=torch.float64) + 0.5


def steps(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """A current ``[T, 1, 1]`` for one neuron."""
    return torch.tensor(values, dtype=dtype).view(-1, 1, 1)


def gradients(output: Tensor, *variables: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, variables, retain_graph=True, materialize_grads=True)


class TestEveryNeuron:
    def test_state_continues_a_sequence(self, neuron: Neuron) -> None:
        current = current_for(neuron).requires_grad_()
        spikes, membrane, state = neuron(current)
        first = neuron(current[:5])
        second = neuron(current[5:], state=first.state)
        torch.testing.assert_close(torch.cat([first.spikes, second.spikes]), spikes)
        torch.testing.assert_close(torch.cat([first.membrane, second.membrane]), membrane)
        torch.testing.assert_close(second.state, state)
        # the gradient flows through the state
        late = (second.membrane.sin().sum() + second.spikes.sum(), membrane[5:].sin().sum() + spikes[5:].sum())
        continued, whole = (gradients(loss, current)[0] for loss in late)
        torch.testing.assert_close(continued, whole)
        assert whole[:5].any()

    def test_constant_current_equals_expanded_current(self, neuron: Neuron) -> None:
        short = current_for(neuron, T=1).requires_grad_()
        short_trace, long_trace = neuron(short, num_steps=9), neuron(short.expand(9, *short.shape[1:]), num_steps=9)
        assert len(short_trace.membrane) == 9
        torch.testing.assert_close([*short_trace], [*long_trace], rtol=0, atol=0)
        variables = [short, *neuron.parameters()]
        losses = [(trace.membrane.sin() + trace.spikes).sum() for trace in (short_trace, long_trace)]
        torch.testing.assert_close(gradients(losses[0], *variables), gradients(losses[1], *variables))

    def test_samples_of_a_batch_are_independent(self, neuron: Neuron) -> None:
        current = current_for(neuron)
        together = neuron(current)
        for b in range(current.shape[1]):
            alone = neuron(current[:, b : b + 1])
            torch.testing.assert_close(alone.spikes[:, 0], together.spikes[:, b])
            torch.testing.assert_close(alone.membrane[:, 0], together.membrane[:, b])

    def test_is_causal(self, neuron: Neuron) -> None:
        current = current_for(neuron)
        changed = torch.cat([current[:7], current_for(neuron, T=5, seed=2)])
        before, after = neuron(current), neuron(changed)
        torch.testing.assert_close(before.membrane[:7], after.membrane[:7], rtol=0, atol=0)
        torch.testing.assert_close(before.spikes[:7], after.spikes[:7], rtol=0, atol=0)
        assert (before.membrane[7:] != after.membrane[7:]).any()

    def test_shapes_and_dtype(self, neuron: Neuron) -> None:
        current = current_for(neuron)
        spikes, membrane, state = neuron(current)
        assert spikes.shape == membrane.shape == current.shape
        assert {part.shape for part in state} == {current.shape[1:]}
        assert {part.dtype for part in (spikes, membrane, *state)} == {torch.float64}
        spikes, membrane, state = neuron.float()(current.float())
        assert {part.dtype for part in (spikes, membrane, *state)} == {torch.float32}

    def test_spikes_are_zero_or_one(self, neuron: Neuron) -> None:
        spikes = neuron(current_for(neuron, T=40)).spikes
        assert set(spikes.unique().tolist()) == ({0.0, 1.0} if neuron.spikes else {0.0})

    def test_refuses_current_of_wrong_shape(self, neuron: Neuron) -> None:
        T, B, N = 5, 2, neuron.features
        for shape in [(T, *N), (T, B, *N, 1), (T, B, N[0] + 1, *N[1:]), (0, B, *N), (B,)]:
            with pytest.raises(ValueError, match="current has"):
                neuron(torch.zeros(shape))
        for num_steps in (4, 6):
            with pytest.raises(ValueError, match=f"5 time steps, num_steps is {num_steps}"):
                neuron(torch.zeros(T, B, *N), num_steps=num_steps)

    @pytest.mark.parametrize("features", [0, -1, True, (), (3, 0), (2.0,), "ab"])
    @pytest.mark.parametrize("kind", [Leaky, RLeaky, ParametrizedLIF, LeakyIntegrator])
    def test_refuses_features(self, kind: type[Neuron], features: object) -> None:
        with pytest.raises(ConfigError, match=r"^features: "):
            kind(features)


class TestParameters:
    def test_learned_values_are_named_parameters(self) -> None:
        learned = {
            ("beta", "threshold"): Leaky(3, learn_beta=True, learn_threshold=True),
            ("beta", "recurrent.weight", "recurrent.bias"): RLeaky(3, learn_beta=True),
            ("threshold", "V"): RLeaky(3, feedback="one_to_one", learn_threshold=True),
            ("tau_mem_inv", "v_th", "recurrent.weight"): ParametrizedLIF(3),
            ("v_leak", "tau_syn_inv"): ParametrizedLIF((3, 2), recurrent=False, learn=["v_leak", "tau_syn_inv"]),
            ("alpha", "beta", "threshold"): Synaptic(3, learn_alpha=True, learn_beta=True, learn_threshold=True),
            ("alpha", "recurrent.weight", "recurrent.bias"): RSynaptic(3, learn_alpha=True),
            ("tau_m", "tau_adp", "recurrent.weight", "recurrent.bias"): ALIF(3, recurrent=True),
            (): Leaky(3),
        }
        for names, neuron in learned.items():
            network = nn.ModuleDict({"neuron": neuron})
            assert set(dict(network.named_parameters())) == {f"neuron.{name}" for name in names}

    def test_other_values_are_in_the_state_dict(self) -> None:
        assert {"beta", "threshold"} <= set(Leaky(3).state_dict())
        assert {"tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset"} <= set(ParametrizedLIF(3).state_dict())

    def test_initializers_draw_one_value_per_neuron(self) -> None:
        neuron = ParametrizedLIF((4, 5), recurrent=False, tau_mem_inv=LogNormal(100, 20), v_th=Normal(0.5, 0.1))
        for name in ("tau_mem_inv", "v_th"):
            value = getattr(neuron, name)
            assert value.shape == (4, 5)
            assert len(value.unique()) == 20
        assert torch.equal(Leaky((2, 3), beta=Constant(0.5)).beta, torch.full((2, 3), 0.5))

    def test_one_value_per_neuron(self) -> None:
        beta = torch.tensor([0.25, 0.5, 0.75])
        membrane = Leaky(3, beta, reset="none")(torch.ones(2, 1, 3)).membrane
        assert torch.equal(membrane[1, 0], 1 + beta)

    def test_a_given_tensor_is_copied(self) -> None:
        beta = torch.tensor(0.5)
        neuron = Leaky(3, beta, learn_beta=True)
        beta.fill_(0.1)
        assert neuron.beta.item() == 0.5

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("beta", 1.01),
            ("beta", -0.01),
            ("beta", math.nan),
            ("beta", True),
            ("beta", "0.9"),
            ("beta", None),
            ("beta", torch.tensor([0.5, 1.5, 0.5])),
            ("beta", torch.tensor([0.5, 0.5])),
            ("beta", torch.full((2, 3), 0.5)),
            ("beta", Normal(5, 0.1)),
            ("threshold", -0.5),
            ("threshold", math.inf),
            ("threshold", Uniform(-2, -1)),
            ("learn_beta", 1),
            ("learn_threshold", "yes"),
            ("reset", "Subtract"),
            ("reset", None),
        ],
    )
    @pytest.mark.parametrize("kind", [Leaky, RLeaky])
    def test_leaky_refuses(self, kind: type[Neuron], key: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"^{key}: "):
            kind(3, **{key: value})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("tau_mem_inv", 0.0),
            ("tau_mem_inv", -100),
            ("tau_mem_inv", 1001.0),
            ("tau_mem_inv", torch.tensor([100.0, 1500.0, 100.0])),
            ("tau_mem_inv", Normal(-100, 1)),
            ("tau_syn_inv", 0),
            ("tau_syn_inv", 2e3),
            ("v_leak", math.nan),
            ("dt", 0.0),
            ("dt", math.inf),
        ],
    )
    @pytest.mark.parametrize("kind", [ParametrizedLIF, LeakyIntegrator])
    def test_lif_and_integrator_refuse(self, kind: type[Neuron], key: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"^{key}: "):
            kind(3, **{key: value})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("v_th", math.inf),
            ("v_reset", "low"),
            ("learn", ["beta"]),
            ("learn", "v_th"),
            ("recurrent", 1),
            ("log_tau", 0),
        ],
    )
    def test_lif_refuses(self, key: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"^{key}: "):
            ParametrizedLIF(3, **{key: value})

    def test_the_fastest_time_constant_is_allowed(self) -> None:
        """With dt tau = 1, all state decays in one step: u[t] = v_leak + j[t], i[t] = 0."""
        integrator = LeakyIntegrator(1, tau_mem_inv=1000.0, tau_syn_inv=1000.0, v_leak=0.5)
        membrane = integrator(steps(1, 0, -2)).membrane
        torch.testing.assert_close(membrane, steps(1.5, 0.5, -1.5))


class TestLeaky:
    """beta 1/2, theta 1: every value below is exact in binary."""

    @pytest.mark.parametrize(
        ("reset", "membrane", "spikes"),
        [
            # 1.5 fires, so theta is subtracted one step later; likewise 1.25
            ("subtract", (1.5, 1.25, 0.125, 0.5625), (1, 1, 0, 0)),
            ("zero", (1.5, 1.5, 0.5, 0.75), (1, 1, 0, 0)),
            ("none", (1.5, 2.25, 1.625, 1.3125), (1, 1, 1, 1)),
        ],
    )
    def test_by_hand(self, reset: str, membrane: tuple[float, ...], spikes: tuple[float, ...]) -> None:
        trace = Leaky(1, 0.5, 1.0, reset=reset)(steps(1.5, 1.5, 0.5, 0.5))
        assert torch.equal(trace.membrane, steps(*membrane))
        assert torch.equal(trace.spikes, steps(*spikes))
        assert trace.state.membrane.item() == membrane[-1]

    @pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 0.99])
    def test_constant_current_gives_a_geometric_series(self, beta: float) -> None:
        c, T = 0.7, 40
        membrane = Leaky(1, beta, reset="none").double()(steps(c, dtype=torch.float64), num_steps=T).membrane
        # the parameter is float32
        beta = torch.tensor(beta).double()
        powers = beta ** torch.arange(1, T + 1)
        torch.testing.assert_close(membrane.flatten(), c * (1 - powers) / (1 - beta))

    @pytest.mark.parametrize("reset", RESETS)
    def test_a_membrane_at_the_threshold_does_not_fire(self, reset: str) -> None:
        just_above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
        for first, fires in [(1.0, False), (just_above, True)]:
            trace = Leaky(1, 0.5, 1.0, reset=reset)(steps(first, 0))
            assert trace.spikes[0].item() == fires
            # nor reset
            resets = fires and reset != "none"
            assert (trace.membrane[1].item() != 0.5 * first) == resets

    @settings(derandomize=True, database=None, deadline=None)
    @given(st.lists(st.integers(-20, 40), min_size=1, max_size=60), st.integers(1, 12))
    def test_subtract_conserves_charge(self, eighths: list[int], threshold: int) -> None:
        """Without leak, the input equals the membrane plus the resets; sums of eighths are exact."""
        current = steps(*eighths) / 8
        spikes, membrane, _ = Leaky(1, 1.0, threshold / 8)(current)
        assert membrane[-1].sum() + spikes[:-1].sum() * threshold / 8 == current.sum()

    @pytest.mark.parametrize(("beta", "clamped"), [(1.5, 1.0), (-0.5, 0.0), (0.5, 0.5)])
    def test_beta_out_of_bounds_is_clamped_without_gradient(self, beta: float, clamped: float) -> None:
        current = steps(0.5, 1.0, 0.25, 2.0)
        neuron = Leaky(1, 0.25, learn_beta=True)
        neuron.beta.data.fill_(beta)
        membrane = neuron(current).membrane
        assert torch.equal(membrane, Leaky(1, clamped)(current).membrane)
        assert (gradients(membrane.sum(), neuron.beta)[0] != 0) == (beta == clamped)

    @pytest.mark.parametrize("reset", RESETS)
    def test_membrane_gradients_are_the_derivatives(self, reset: str) -> None:
        """The detached reset is constant almost everywhere, so the membrane has true derivatives, also by theta."""
        neuron = Leaky(3, reset=reset).double()
        random = torch.Generator().manual_seed(0)
        current = torch.rand(9, 2, 3, generator=random, dtype=torch.float64).requires_grad_()
        beta = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
        theta = torch.tensor([0.6, 0.9, 1.2], dtype=torch.float64, requires_grad=True)
        start = torch.full((2, 3), 0.7, dtype=torch.float64, requires_grad=True)

        def membrane(current: Tensor, beta: Tensor, theta: Tensor, start: Tensor) -> Tensor:
            values = {"beta": beta, "threshold": theta}
            trace = torch.func.functional_call(neuron, values, (current,), {"state": LeakyState(start)})
            assert trace.spikes.any()
            return trace.membrane

        assert torch.autograd.gradcheck(membrane, (current, beta, theta, start))

    def test_threshold_is_not_detached_in_subtract(self) -> None:
        """U = 1.5, 1.25, .125: the last has two subtractions, of which the earlier one has decayed by 1/2."""
        neuron = Leaky(1, 0.5, 1.0, learn_threshold=True)
        membrane = neuron(steps(1.5, 1.5, 0.5)).membrane.flatten()
        assert [gradients(U, neuron.threshold)[0].item() for U in membrane] == [0, -1, -1.5]


def backward_by_hand(
    I: Tensor,
    U: Tensor,
    gS: Tensor,
    gU: Tensor,
    sigma: Tensor,
    beta: Tensor,
    theta: Tensor,
    V: Tensor | None,
    reset: str,
) -> dict[str, Tensor]:
    """Backpropagation through time, derived by hand: ``delta[t]`` is the total gradient of U[t].

    U[t] = beta a[t] U[t-1] + b[t] (I[t] + V S[t-1]) - r[t] theta, S[t] = H(U[t] - theta), dS/dU = sigma; the gates a, b
    and r are constant. ``Leaky`` (V is None) gates its membrane in ``zero``, ``RLeaky`` its current as well.
    """
    T = len(U)
    U_before = torch.cat([torch.zeros_like(U[:1]), U[:-1]])
    S_before = (U_before > theta).double()
    R = S_before
    a = 1 - R if reset == "zero" else torch.ones_like(R)
    b = a if V is not None else torch.ones_like(R)
    r = R if reset == "subtract" else torch.zeros_like(R)
    V = torch.zeros_like(theta) if V is None else V
    decay = beta.clamp(0, 1)

    delta, through_spike = torch.zeros_like(U), torch.zeros_like(U)
    carry_U = carry_S = torch.zeros_like(U[0])
    for t in reversed(range(T)):
        through_spike[t] = (gS[t] + carry_S) * sigma[t]
        delta[t] = gU[t] + through_spike[t] + carry_U
        carry_U, carry_S = decay * a[t] * delta[t], V * b[t] * delta[t]
    inside = (beta >= 0) & (beta <= 1)
    return {
        "current": b * delta,
        "beta": inside * (delta * a * U_before).sum((0, 1)),
        "threshold": -(through_spike + delta * r).sum((0, 1)),
        "V": (delta * b * S_before).sum((0, 1)),
    }


@pytest.mark.parametrize("surrogate", [ATan(2.0), FastSigmoid(5.0)], ids=["atan", "fast_sigmoid"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", ["leaky", "rleaky"])
@settings(derandomize=True, database=None, deadline=None, max_examples=20)
@given(T=st.integers(1, 40), B=st.integers(1, 3), N=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_backward_by_hand(kind: str, reset: str, surrogate: ATan, T: int, B: int, N: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)

    theta, V = uniform(0.3, 1, N), uniform(-1, 1, N)
    learned = {"learn_beta": True, "learn_threshold": True, "reset": reset, "surrogate": surrogate}
    if kind == "leaky":
        neuron: Neuron = Leaky(N, uniform(0, 1, N), theta, **learned)
    else:
        neuron = RLeaky(N, uniform(0, 1, N), theta, "one_to_one", V=V, **learned)
    neuron.beta.data = uniform(-0.2, 1.2, N)
    current = uniform(-0.5, 1.5, T, B, N).requires_grad_()
    gS, gU = uniform(-1, 1, T, B, N), uniform(-1, 1, T, B, N)

    S, U, _ = neuron(current)
    expected = backward_by_hand(
        current, U, gS, gU, surrogate(U - theta), neuron.beta, theta, V if kind == "rleaky" else None, reset
    )
    variables = {"current": current, **dict(neuron.named_parameters())}
    actual = gradients((gS * S + gU * U).sum(), *variables.values())
    for name, gradient in zip(variables, actual, strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


class TestRLeaky:
    """beta 1/2, theta 1, V 1/2: every value below is exact in binary."""

    @pytest.mark.parametrize(
        ("reset", "membrane", "spikes"),
        [
            # the spike at t = 0 adds V and subtracts theta at t = 1
            ("subtract", (1.5, 1.75, 0.875, 0.9375), (1, 1, 0, 0)),
            # the reset also clears the feedback and the current of that step
            ("zero", (1.5, 0, 0.5, 0.75), (1, 0, 0, 0)),
            ("none", (1.5, 2.75, 2.375, 2.1875), (1, 1, 1, 1)),
        ],
    )
    def test_by_hand(self, reset: str, membrane: tuple[float, ...], spikes: tuple[float, ...]) -> None:
        trace = RLeaky(1, 0.5, 1.0, "one_to_one", V=0.5, reset=reset)(steps(1.5, 1.5, 0.5, 0.5))
        assert torch.equal(trace.membrane, steps(*membrane))
        assert torch.equal(trace.spikes, steps(*spikes))
        assert [part.item() for part in trace.state] == [membrane[-1], spikes[-1]]

    def test_linear_feedback_maps_columns_to_rows(self) -> None:
        neuron = RLeaky(2, 0.0, 1.0, reset="none")
        neuron.recurrent.weight.data = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
        neuron.recurrent.bias.data.zero_()
        current = torch.zeros(3, 1, 2)
        current[0, 0, 0] = 2
        assert torch.equal(neuron(current).membrane[:, 0], torch.tensor([[2.0, 0], [0, 3], [0, 0]]))

    def test_conv2d_feedback_reaches_neighbors(self) -> None:
        neuron = RLeaky((1, 3, 4), 0.0, 1.0, "conv2d", kernel_size=3, reset="none")
        neuron.recurrent.weight.data.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        neuron.recurrent.bias.data.zero_()
        current = torch.zeros(2, 1, 1, 3, 4)
        current[0, 0, 0, 0, 1] = 2
        # conv2d is a cross-correlation: the kernel appears mirrored
        expected = torch.tensor([[5.0, 4, 3, 0], [2, 1, 0, 0], [0, 0, 0, 0]])
        assert torch.equal(neuron(current).membrane[1, 0, 0], expected)

    @pytest.mark.parametrize(("features", "feedback"), [(3, {}), ((2, 4, 4), {"feedback": "conv2d", "kernel_size": 3})])
    def test_bias_acts_from_the_first_step(self, features: object, feedback: dict[str, object]) -> None:
        neuron = RLeaky(features, **feedback)
        membrane = neuron(torch.zeros(2, 1, *neuron.features)).membrane
        bias = neuron.recurrent.bias.view(-1, *[1] * (len(neuron.features) - 1))
        assert bias.all()
        torch.testing.assert_close(membrane[0, 0], bias.expand(neuron.features))

    @pytest.mark.parametrize("reset", ["subtract", "none"])
    @pytest.mark.parametrize(
        "wiring",
        [
            {"features": 4, "feedback": "linear"},
            {"features": (2, 2), "feedback": "one_to_one", "V": Uniform(-1, 1)},
            {"features": (2, 3, 3), "feedback": "conv2d", "kernel_size": 3},
        ],
        ids=lambda wiring: wiring["feedback"],
    )
    def test_equals_a_leaky_neuron_with_feedback_current(self, wiring: dict[str, object], reset: str) -> None:
        torch.manual_seed(0)
        neuron = RLeaky(**wiring, reset=reset).double()
        current = current_for(neuron)
        spikes, membrane, _ = neuron(current)
        S_before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
        feedback = (
            neuron.V * S_before if neuron.recurrent is None else torch.stack([neuron.recurrent(S) for S in S_before])
        )
        leaky = Leaky(neuron.features, reset=reset).double()(current + feedback)
        torch.testing.assert_close(leaky.membrane, membrane)
        assert torch.equal(leaky.spikes, spikes)

    def test_frozen_feedback(self) -> None:
        for feedback in ({"features": 3}, {"features": (2, 4, 4), "feedback": "conv2d", "kernel_size": 3}):
            neuron = RLeaky(**feedback, learn_recurrent=False)
            assert not any(parameter.requires_grad for parameter in neuron.parameters())
            assert neuron.recurrent.weight.any()
        neuron = RLeaky(3, feedback="one_to_one", V=0.5, learn_recurrent=False)
        assert not list(neuron.parameters())
        assert neuron.state_dict()["V"] == 0.5

    @pytest.mark.parametrize("kernel_size", [2, 4, None, 0, 1.5])
    def test_refuses_even_kernel_sizes(self, kernel_size: object) -> None:
        with pytest.raises(ConfigError, match=r"^kernel_size: "):
            RLeaky((1, 4, 4), feedback="conv2d", kernel_size=kernel_size)

    @pytest.mark.parametrize(
        ("features", "feedback"), [((2, 4, 4), "linear"), (4, "conv2d"), ((4, 4), "conv2d"), (4, "dense")]
    )
    def test_refuses_feedback_for_other_features(self, features: object, feedback: str) -> None:
        with pytest.raises(ConfigError, match=r"^feedback: "):
            RLeaky(features, feedback=feedback, kernel_size=3)

    @pytest.mark.parametrize(("key", "value"), [("V", math.nan), ("V", torch.ones(4)), ("learn_recurrent", None)])
    def test_refuses(self, key: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"^{key}: "):
            RLeaky(3, feedback="one_to_one", **{key: value})


class TestParametrizedLIF:
    """dt 1 s and both inverse time constants 1/2 per s: every value below is exact in binary."""

    HALVES = {"tau_mem_inv": 0.5, "tau_syn_inv": 0.5, "dt": 1.0}  # noqa: RUF012

    def test_by_hand(self) -> None:
        neuron = ParametrizedLIF(1, recurrent=False, v_th=1.0, v_reset=-0.5, **self.HALVES)
        z, u, state = neuron(steps(4, 0, 0, 0))
        # j = 4, 2, 1, 1/2; the recorded membrane is before reset, the next step starts from v_reset
        assert torch.equal(u, steps(2, 0.75, 0.875, 0.6875))
        assert torch.equal(z, steps(1, 0, 0, 0))
        assert [part.item() for part in state] == [0, 0.6875, 0.25]

    def test_leak_potential(self) -> None:
        neuron = ParametrizedLIF(1, recurrent=False, v_th=1.0, v_leak=0.5, **self.HALVES)
        assert torch.equal(neuron(steps(0), num_steps=3).membrane, steps(0.25, 0.375, 0.4375))

    def test_feedback_adds_to_the_synaptic_current(self) -> None:
        neuron = ParametrizedLIF(2, v_th=1.0, v_reset=-0.5, **self.HALVES)
        neuron.recurrent.weight.data = torch.tensor([[0.0, -1.0], [4.0, 0.0]])
        current = torch.zeros(3, 1, 2)
        current[0, 0, 0] = 4
        z, u, _ = neuron(current)
        # the first neuron fires and excites the second, whose spike then inhibits the first
        assert torch.equal(u[:, 0], torch.tensor([[2.0, 0.0], [0.75, 2.0], [0.375, 0.75]]))
        assert torch.equal(z[:, 0], torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))

    def test_a_membrane_at_the_threshold_does_not_fire(self) -> None:
        for input_, fires in [(2.0, 0), (2.0 + 2**-20, 1)]:
            z, u, state = ParametrizedLIF(1, recurrent=False, v_th=1.0, **self.HALVES)(steps(input_))
            assert (z.item(), state.v.item()) == (fires, 0 if fires else u.item())

    def test_membrane_gradients_are_the_derivatives(self) -> None:
        """The detached reset is constant almost everywhere, so without feedback the membrane has true derivatives."""
        names = ["tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset"]
        neuron = ParametrizedLIF(3, recurrent=False, dt=1.0, tau_mem_inv=0.5, tau_syn_inv=0.5).double()
        random = torch.Generator().manual_seed(0)
        current = (3 * torch.rand(9, 2, 3, generator=random, dtype=torch.float64) - 1).requires_grad_()
        values = [torch.rand(3, generator=random, dtype=torch.float64).requires_grad_() for _ in names]

        def membrane(current: Tensor, *values: Tensor) -> Tensor:
            z, u, _ = torch.func.functional_call(neuron, dict(zip(names, values, strict=True)), (current,))
            assert z.any()
            assert not z.all()
            return u

        assert torch.autograd.gradcheck(membrane, (current, *values))

    def test_gradient_flows_through_feedback(self) -> None:
        """u_b[1] = dt tau_mem W_ba z_a[0] + ..., so du_b[1]/dI_a[0] = 1/2 W_ba sigma(u_a[0] - v_th) 1/2."""
        neuron = ParametrizedLIF(2, v_th=1.0, surrogate=SuperSpike(10.0), **self.HALVES)
        neuron.recurrent.weight.data = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        current = torch.zeros(2, 1, 2, requires_grad=True)
        (gradient,) = gradients(neuron(current).membrane[1, 0, 1], current)
        # u_a[0] = 0 is 1 below the threshold, where SuperSpike is 1 / 11^2
        torch.testing.assert_close(gradient[0, 0], torch.tensor([1 / 121, 0.5]))

    def test_gradient_of_the_threshold(self) -> None:
        """dz/dv_th = -sigma(u - v_th) in each step, since the reset has no gradient."""
        neuron = ParametrizedLIF(
            1, recurrent=False, v_th=1.0, learn=["v_th"], surrogate=SuperSpike(10.0), **self.HALVES
        )
        z, u, _ = neuron(steps(4, 0, 0, 0))
        (gradient,) = gradients(z.sum(), neuron.v_th)
        torch.testing.assert_close(gradient, -SuperSpike(10.0)(u.detach() - 1).sum())

    def test_initial_weights(self) -> None:
        torch.manual_seed(0)
        synapse = nn.Linear(50, 200, bias=False)
        neuron = ParametrizedLIF(200)
        neuron.reset_synapse(synapse)
        recurrent = neuron.recurrent.weight[~torch.eye(200, dtype=torch.bool)]
        for drawn in (synapse.weight.detach().flatten(), recurrent.detach()):
            assert abs(drawn.mean()) < 5 * 0.1 / math.sqrt(len(drawn))
            assert abs(drawn.std() - 0.1) < 5 * 0.1 / math.sqrt(2 * len(drawn))
        assert neuron.recurrent.bias is None
        assert not neuron.synapse_bias

    def test_training_creates_no_autapses(self) -> None:
        torch.manual_seed(0)
        neuron = ParametrizedLIF(6, v_th=0.3)
        optimizer = torch.optim.Adam(neuron.parameters(), lr=0.05)
        start = neuron.recurrent.weight.detach().clone()
        assert start.diagonal().eq(0).all()
        for _ in range(3):
            z, u, _ = neuron(3 * torch.rand(20, 4, 6))
            optimizer.zero_grad()
            (z.sum() + u.square().sum()).backward()
            assert neuron.recurrent.weight.grad.diagonal().eq(0).all()
            optimizer.step()
        assert neuron.recurrent.weight.diagonal().eq(0).all()
        assert neuron.recurrent.weight.ne(start).sum() == 30

    def test_loaded_autapses_have_no_effect(self) -> None:
        torch.manual_seed(0)
        neuron, current = ParametrizedLIF(5, v_th=0.3), 3 * torch.rand(20, 2, 5)
        before = neuron(current)
        assert before.spikes.any()
        neuron.recurrent.weight.data.fill_diagonal_(7.0)
        assert torch.equal(neuron(current).membrane, before.membrane)

    def test_refuses_recurrence_with_several_neuron_axes(self) -> None:
        with pytest.raises(ConfigError, match=r"^recurrent: "):
            ParametrizedLIF((2, 3))

    @pytest.mark.parametrize("log_tau", [False, True])
    def test_projection_clamps_time_constants_and_reports_it_once(self, log_tau: bool) -> None:
        neuron = ParametrizedLIF(3, tau_mem_inv=Constant(100.0), log_tau=log_tau, learn=["tau_mem_inv"])
        assert neuron.project() == {"tau_mem_inv": False}
        far = torch.tensor([2000.0, 500.0, 1e6])
        next(p for name, p in neuron.named_parameters() if "tau_mem_inv" in name).data.copy_(
            far.log() if log_tau else far
        )
        assert neuron.project() == {"tau_mem_inv": True}
        torch.testing.assert_close(neuron.tau_mem_inv.detach(), torch.tensor([1000.0, 500.0, 1000.0]))
        assert neuron.project() == {"tau_mem_inv": False}

    def test_projection_makes_a_negative_time_constant_positive(self) -> None:
        neuron = ParametrizedLIF(3, learn=["tau_mem_inv", "tau_syn_inv"], tau_syn_inv=Constant(200.0))
        neuron.tau_syn_inv.data[1] = -5.0
        neuron.tau_mem_inv.data[2] = 0.0
        assert neuron.project() == {"tau_mem_inv": True, "tau_syn_inv": True}
        for tau in (neuron.tau_syn_inv, neuron.tau_mem_inv):
            assert (tau > 0).all()
        assert neuron.project() == {"tau_mem_inv": False, "tau_syn_inv": False}

    def test_no_projection_without_bounded_learned_parameters(self) -> None:
        for neuron in (ParametrizedLIF(3, learn=["v_th"]), Leaky(3), LeakyIntegrator(3)):
            assert neuron.project() == {}

    @pytest.mark.parametrize("name", ["tau_mem_inv", "tau_syn_inv"])
    def test_log_tau_is_a_reparametrization(self, name: str) -> None:
        """The trace is the same, d/d log(tau) = tau d/d tau by the chain rule, and tau stays positive."""
        tau = torch.tensor([100.0, 250.0, 600.0])
        plain, log = (
            ParametrizedLIF(3, False, **{**LEVELS, name: tau}, learn=[name], log_tau=flag).double()
            for flag in (False, True)
        )
        current = 2 * torch.rand(20, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        results = [neuron(current) for neuron in (plain, log)]
        torch.testing.assert_close(results[1].membrane, results[0].membrane, rtol=1e-5, atol=1e-5)
        assert torch.equal(results[1].spikes, results[0].spikes)
        by_tau, by_log = (
            gradients(trace.membrane.sum(), *neuron.parameters())[0]
            for trace, neuron in zip(results, (plain, log), strict=True)
        )
        torch.testing.assert_close(by_log, tau.double() * by_tau, rtol=1e-4, atol=0)
        with torch.no_grad():
            next(log.parameters()).sub_(100)
        assert (getattr(log, name) > 0).all()


class TestLeakyIntegrator:
    def test_impulse_response(self) -> None:
        """Response to a unit impulse: v[t] = a (p^(t+1) - q^(t+1)) / (p - q), p = 1 - a, q = 1 - b."""
        neuron = LeakyIntegrator(1, tau_mem_inv=100.0, tau_syn_inv=300.0).double()
        a, b = 0.1, 0.3
        p, q = 1 - a, 1 - b
        impulse = steps(1, *[0] * 49, dtype=torch.float64)
        t = torch.arange(1, 51, dtype=torch.float64)
        torch.testing.assert_close(neuron(impulse).membrane.flatten(), a * (p**t - q**t) / (p - q))

    def test_steady_state(self) -> None:
        """For a constant current I, i converges to I (1 - b) / b and v to v_leak + I / b."""
        neuron = LeakyIntegrator(1, tau_mem_inv=100.0, tau_syn_inv=250.0, v_leak=-0.5).double()
        _, membrane, state = neuron(steps(0.3, dtype=torch.float64), num_steps=600)
        torch.testing.assert_close(membrane[-1].item(), -0.5 + 0.3 / 0.25)
        torch.testing.assert_close(state.i.item(), 0.3 * 0.75 / 0.25)

    def test_is_linear(self) -> None:
        neuron = LeakyIntegrator((2, 3), tau_mem_inv=torch.linspace(50, 950, 6).view(2, 3)).double()
        x, y = current_for(neuron, seed=1), current_for(neuron, seed=2)
        v = [neuron(current).membrane for current in (x, y, 2 * x - 3 * y)]
        torch.testing.assert_close(v[2], 2 * v[0] - 3 * v[1])

    def test_equals_a_lif_neuron_below_threshold(self) -> None:
        lif = ParametrizedLIF(4, recurrent=False, v_th=1e6, tau_mem_inv=300.0, tau_syn_inv=400.0, v_leak=0.1).double()
        integrator = LeakyIntegrator(4, tau_mem_inv=300.0, tau_syn_inv=400.0, v_leak=0.1).double()
        current = current_for(lif)
        torch.testing.assert_close(integrator(current).membrane, lif(current).membrane)

    def test_never_spikes(self) -> None:
        neuron = LeakyIntegrator(3)
        spikes, membrane, _ = neuron(torch.full((30, 2, 3), 1e3))
        assert membrane.max() > 1e3
        assert spikes.shape == membrane.shape
        assert not spikes.any()
        assert not neuron.spikes
        assert not neuron.synapse_bias
        assert not list(neuron.parameters())


@pytest.mark.parametrize("kind", [Leaky, RLeaky, ParametrizedLIF, LeakyIntegrator])
def test_state_is_float32_under_autocast(kind: type[Neuron]) -> None:
    """In bfloat16, a decay of .999 rounds to 1 and counts stop at 256, so only matrix products may use it."""
    synapse, neuron = Dense(3, 4), kind(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for steps_given in (1, 6):
            spikes, membrane, state = neuron(time_distributed(synapse, torch.ones(steps_given, 2, 3)), num_steps=6)
            assert {part.dtype for part in (spikes, membrane, *state)} == {torch.float32}


def test_time_shift_invariance() -> None:
    """Without bias and leak potential, leading zeros only shift the response."""
    neurons = [
        *(Leaky(4, reset=reset) for reset in RESETS),
        RLeaky(4, feedback="one_to_one"),
        ParametrizedLIF(4, v_th=0.3),
        LeakyIntegrator(4),
    ]
    for neuron in neurons:
        current = current_for(neuron).float()
        late = torch.cat([torch.zeros(3, *current.shape[1:]), current])
        assert torch.equal(neuron(late).membrane[3:], neuron(current).membrane)
        assert torch.equal(neuron(late).spikes[3:], neuron(current).spikes)


LEARNED: dict[str, Callable[[], Neuron]] = {
    "leaky": lambda: Leaky(4, 0.5, 0.5, learn_beta=True, learn_threshold=True),
    "rleaky": lambda: RLeaky(4, 0.5, 0.5, learn_beta=True, learn_threshold=True),
    "one-to-one": lambda: RLeaky(4, Uniform(0, 1), 0.5, feedback="one_to_one", learn_beta=True, learn_threshold=True),
    "lif": lambda: ParametrizedLIF(4, learn=("tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset")),
    "log-tau": lambda: ParametrizedLIF(4, learn=("tau_mem_inv", "tau_syn_inv"), log_tau=True),
}


class TestDomains:
    """Projection of learned parameters to their domains."""

    @pytest.mark.parametrize("name", LEARNED)
    @settings(derandomize=True, database=None, deadline=None, max_examples=30)
    @given(size=st.floats(1e-3, 1e6), seed=st.integers(0, 100))
    def test_after_any_step_projected_values_are_valid_initial_values(self, name: str, size: float, seed: int) -> None:
        neuron = LEARNED[name]()
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in neuron.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=random))
        neuron.project()
        values = {key: getattr(neuron, key).detach() for key in neuron.parameter_names}
        for key, value in values.items():
            neuron._initial_value(key, value, 1 / neuron.dt if key.startswith("tau") else math.inf)
        neuron.project()
        assert all(torch.equal(getattr(neuron, key), value) for key, value in values.items())

    @pytest.mark.parametrize("kernel", ["reference", "fused", "triton"])
    @pytest.mark.parametrize("start", [0.0, 1.0])
    def test_beta_at_a_bound_has_a_gradient(self, kernel: str, start: float) -> None:
        neuron = Leaky(2, Constant(start), 10.0, learn_beta=True)
        assert kernels.use(neuron, kernel, torch.device("cpu")) == kernel
        neuron(torch.ones(5, 1, 2)).membrane.sum().backward()
        assert (neuron.beta.grad > 0).all()

    def test_beta_can_leave_a_bound_again(self) -> None:
        """After ten steps of .1 the membrane is .1 (1 - beta^10) / (1 - beta): 1 for beta 1, .2 for beta .5."""
        neuron = Leaky(1, 0.9, 10.0, learn_beta=True)
        optimizer = torch.optim.SGD(neuron.parameters(), lr=0.02)

        def train(target: float, steps: int) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                (neuron(torch.full((10, 1, 1), 0.1)).membrane[-1] - target).square().sum().backward()
                optimizer.step()
                neuron.project()

        train(1.5, 100)
        assert neuron.beta.item() == 1
        train(0.2, 300)
        assert neuron.beta.item() == pytest.approx(0.5, abs=0.02)

    def test_a_threshold_stays_nonnegative(self) -> None:
        neuron = Leaky(2, 0.9, Constant(0.1), learn_threshold=True)
        neuron.threshold.data[0] = -0.469
        assert neuron.project() == {"threshold": True}
        assert neuron.threshold.tolist() == [0.0, pytest.approx(0.1)]
        assert not neuron(torch.zeros(5, 1, 2)).spikes.any()


def test_max_membrane_has_the_gradient_of_one_of_several_maxima() -> None:
    membrane = torch.tensor([[[1.0, 3.0]], [[2.0, 3.0]], [[2.0, 1.0]]], requires_grad=True)
    trace = Trace(torch.zeros(3, 1, 2), membrane, None)
    with torch.no_grad():
        torch.testing.assert_close(trace.max_membrane, torch.tensor([[2.0, 3.0]]), rtol=0, atol=0)
    trace.max_membrane.sum().backward()
    assert membrane.grad is not None
    assert sorted(membrane.grad.flatten().tolist()) == [0, 0, 0, 0, 1, 1]
