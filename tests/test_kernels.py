"""Kernels have the same spikes, membranes, states and gradients as the reference scan, also at ties.

Triton kernels run in Triton's interpreter (conftest sets TRITON_INTERPRET); one test compiles them for a GPU.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnexp import kernels, neurons
from snnexp.errors import ConfigError
from snnexp.initializers import Uniform
from snnexp.kernels import fused, fused_leaky
from snnexp.network import MLP, Dense
from snnexp.neurons import (
    STATISTICS,
    Leaky,
    LeakyIntegrator,
    LeakyState,
    Neuron,
    ParametrizedLIF,
    ReducedTrace,
    RLeaky,
    Trace,
    reference,
)
from snnexp.surrogates import ATan, FastSigmoid, Sigmoid, StraightThrough, SuperSpike, Surrogate, Triangular

CPU = torch.device("cpu")
RESETS = ["subtract", "zero", "none"]
SURROGATES = [ATan(1.5), FastSigmoid(10), SuperSpike(20), Sigmoid(5), Triangular(0.7), StraightThrough()]
BETA, THETA = Uniform(0.1, 0.95), Uniform(0.3, 1.2)
RATES: dict[str, Any] = {"tau_mem_inv": Uniform(50, 300), "tau_syn_inv": Uniform(100, 500)}
LIF: dict[str, Any] = {**RATES, "v_th": Uniform(0.1, 0.5), "v_leak": 0.1, "v_reset": -0.2}
ALL = ("tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset")


def learning_integrator(features: int) -> LeakyIntegrator:
    """Return a leaky integrator whose parameters all require gradients."""
    neuron = LeakyIntegrator(features, **RATES, v_leak=0.1)
    for name in ("tau_mem_inv", "tau_syn_inv", "v_leak"):
        value = getattr(neuron, name)
        delattr(neuron, name)
        neuron.register_parameter(name, nn.Parameter(value))
    return neuron


def rleaky(features: Any, **more: Any) -> RLeaky:
    return RLeaky(features, BETA, THETA, learn_beta=True, learn_threshold=True, **more)


# by name: creates a layer of N neurons, or with neuron axes (N, 2, 3), from reset and surrogate
NEURONS: dict[str, Callable[[int, str, Surrogate], Neuron]] = {
    "leaky": lambda N, reset, s: Leaky(N, BETA, THETA, True, True, reset, s),
    "leaky-scalar": lambda N, reset, s: Leaky(N, 0.8, 0.6, False, False, reset, s),
    "leaky-map": lambda N, reset, s: Leaky((N, 2, 3), BETA, THETA, True, True, reset, s),
    "rleaky-linear": lambda N, reset, s: rleaky(N, reset=reset, surrogate=s),
    "rleaky-one-to-one": lambda N, reset, s: rleaky(
        N, feedback="one_to_one", V=Uniform(-1, 1), reset=reset, surrogate=s
    ),
    "rleaky-conv2d": lambda N, reset, s: rleaky((N, 2, 3), feedback="conv2d", kernel_size=3, reset=reset, surrogate=s),
    "lif-recurrent": lambda N, _, s: ParametrizedLIF(N, **LIF, learn=ALL, surrogate=s),
    "lif-feedforward": lambda N, _, s: ParametrizedLIF((N, 2, 3), False, **LIF, learn=ALL, surrogate=s),
    "lif-log-tau": lambda N, _, s: ParametrizedLIF(N, **LIF, learn=ALL, log_tau=True, surrogate=s),
    "leaky-integrator": lambda N, _, __: learning_integrator(N),
    "lif-reset-gradient": lambda N, _, s: neurons.LIF((N, 2, 3), **LIF, learn=ALL, surrogate=s),
}
PAIRS = [
    (kernel, name)
    for kernel in ("fused", "triton")
    for name in NEURONS
    # these have no Triton kernel, and Triton is not installed everywhere
    if kernel != "triton" or (name not in ("rleaky-conv2d", "lif-reset-gradient") and find_spec("triton"))
]

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=25)


def random_state(neuron: Neuron, step: Tensor, random: torch.Generator) -> Any:
    """Return a state that requires gradients: spikes 0 or 1, membranes below and above the threshold."""
    zero = neuron.zero_state(step)
    parts = {}
    for name in zero._fields:
        drawn = torch.rand(step.shape, generator=random, dtype=step.dtype)
        parts[name] = (drawn.round() if name in ("spikes", "z") else drawn).requires_grad_()
    return type(zero)(**parts)


def outputs_and_gradients(
    neuron: Neuron, current: Tensor, T: int, state: Any, synapse: nn.Module | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return all outputs of a layer, and the gradients of a random linear combination of them by all inputs."""
    trace, output = neuron.unroll(current, T, state, synapse)
    assert isinstance(trace, Trace)
    outputs = [trace.spikes, trace.membrane, *trace.state, *([] if output is None else [output])]
    random = torch.Generator().manual_seed(1)
    scalar = sum((out * torch.randn(out.shape, generator=random, dtype=out.dtype)).sum() for out in outputs)
    variables = [current, *state, *neuron.parameters(), *([] if synapse is None else synapse.parameters())]
    return outputs, list(torch.autograd.grad(scalar, variables, allow_unused=True, materialize_grads=True))


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "name"), PAIRS)
@deterministic
@given(
    T=st.integers(1, 12),
    B=st.integers(1, 5),
    N=st.integers(1, 5),
    constant=st.booleans(),
    samples_last=st.booleans(),
    next_size=st.sampled_from([0, 3, 40]),
    reset=st.sampled_from(RESETS),
    surrogate=st.sampled_from(SURROGATES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    chunk_bytes=st.sampled_from([1, 200, 1 << 19]),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernel_equals_reference(
    kernel: str, name: str, T: int, B: int, N: int, constant: bool, samples_last: bool, next_size: int, reset: str,
    surrogate: Surrogate,
    dtype: torch.dtype, chunk_bytes: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    neuron = NEURONS[name](N, reset, surrogate).to(dtype)
    shape = (1 if constant else T, B, *neuron.features)
    current = torch.randn(shape, generator=random, dtype=dtype).add(0.5)
    if samples_last:
        # the layout of the output of a synapse with few outputs
        current = current.movedim(1, -1).contiguous().movedim(-1, 1)
    current.requires_grad_()
    state = random_state(neuron, current[0], random)
    synapse = Dense(math.prod(neuron.features), next_size).to(dtype) if next_size else None

    neuron.kernel = reference
    expected, expected_gradients = outputs_and_gradients(neuron, current, T, state, synapse)
    assert kernels.use(neuron, kernel, CPU) == kernel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CHUNK_BYTES", chunk_bytes)
        outputs, gradients = outputs_and_gradients(neuron, current, T, state, synapse)
    single = dtype == torch.float32
    if single and not torch.equal(outputs[0], expected[0]):
        # products in another order round differently, which may flip a spike at the threshold
        assert getattr(neuron, "recurrent", None) is not None
        different = outputs[0] != expected[0]
        first = int(different.flatten(1).any(1).nonzero()[0])
        threshold = neuron.v_th if isinstance(neuron, ParametrizedLIF) else neuron.threshold
        assert (expected[1][first] - threshold)[different[first]].abs().max() < 1e-5
        return
    exact = getattr(neuron, "recurrent", None) is None
    for ours, theirs in zip(outputs[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if exact else 1e-5 if single else 1e-12)
    for ours, theirs in zip(outputs[2:], expected[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if single else 1e-12)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        # sums over all steps may cancel
        scale = theirs.abs().max().item() + 1
        assert (ours - theirs).abs().max() <= (1e-4 if single else 1e-11) * scale


@pytest.mark.parametrize("kernel", ["fused", "triton"])
@pytest.mark.parametrize("reset", RESETS)
def test_a_membrane_exactly_at_its_threshold_does_not_fire(kernel: str, reset: str) -> None:
    """beta = 1/2, theta = 1 and these currents are exact in binary: some membranes equal the threshold."""
    neuron = Leaky(3, 0.5, 1.0, reset=reset)
    current = torch.tensor([[1.0, 0.5, 1.5], [0.5, 0.75, 0.25], [0.25, 1.0, 0.5]]).unsqueeze(1)
    expected = neuron(current)
    kernels.use(neuron, kernel, CPU)
    trace = neuron(current)
    assert torch.equal(trace.membrane, expected.membrane)
    assert (trace.membrane == 1).any(), "there is a tie"
    assert not trace.spikes[trace.membrane == 1].any()
    assert torch.equal(trace.spikes, expected.spikes)


SUMS = [name for name, statistic in STATISTICS.items() if not statistic.per_step]


@pytest.mark.parametrize("chunk_bytes", [1, 200, 1 << 19])
@pytest.mark.parametrize(("kernel", "name"), PAIRS)
def test_streaming_statistics_equal_those_of_the_trace(
    kernel: str, name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    neuron = NEURONS[name](5, "subtract", ATan()).double()
    synapse = Dense(math.prod(neuron.features), 40).double()
    kernels.use(neuron, kernel, CPU)
    current = torch.randn(9, 3, *neuron.features, dtype=torch.float64) + 0.5
    with torch.no_grad():
        for next_synapse in (None, synapse):
            full, output = neuron.unroll(current, synapse=next_synapse)
            reduced, same_output = neuron.unroll(current, synapse=next_synapse, statistics=SUMS)
            assert isinstance(reduced, ReducedTrace)
            for statistic in SUMS:
                torch.testing.assert_close(
                    getattr(reduced, statistic), getattr(full, statistic), rtol=1e-12, atol=1e-12
                )
            assert reduced.values.keys() == {*SUMS}
            assert reduced.samples == full.samples == 3
            for ours, theirs in zip(reduced.state, full.state, strict=True):
                torch.testing.assert_close(ours, theirs)
            assert reduced.num_steps == full.num_steps == 9
            assert next_synapse is None or torch.equal(output, same_output)
    # with gradients enabled, statistics have gradients
    reduced, _ = neuron.unroll(current.requires_grad_(), statistics=SUMS)
    assert torch.autograd.grad(reduced.max_membrane.sum(), current)[0].any()


@pytest.mark.parametrize("reset", ["subtract", "none"])
class TestRecomputingScan:
    """A leaky layer with constant current, whose backward pass recomputes the membrane."""

    T, B, N = 11, 4, 6

    @pytest.fixture(autouse=True, params=[1, 500, 1 << 19])
    def chunk_bytes(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fused, "CHUNK_BYTES", request.param)

    def network(self, reset: str, outputs: int = 3) -> tuple[Leaky, Dense, Tensor]:
        torch.manual_seed(0)
        neuron, synapse = Leaky(self.N, BETA, THETA, reset=reset).double(), Dense(self.N, outputs).double()
        current = torch.rand(1, self.B, self.N, dtype=torch.float64, requires_grad=True)
        kernels.use(neuron, "fused", CPU)
        return neuron, synapse, current

    @pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda surrogate: type(surrogate).__name__)
    @pytest.mark.parametrize("outputs", [3, 40])
    def test_gradients(self, reset: str, surrogate: Surrogate, outputs: int) -> None:
        neuron, synapse, current = self.network(reset, outputs)
        neuron.surrogate = surrogate
        state = LeakyState(torch.rand(self.B, self.N, dtype=torch.float64))
        results = []
        for kernel in (fused_leaky.scan, reference):
            neuron.kernel = kernel
            trace, output = neuron.unroll(current, self.T, state, synapse)
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            gradients = torch.autograd.grad((output * weights).sum(), [current, *synapse.parameters()])
            results.append((output, gradients))
            assert isinstance(trace, fused.LazyTrace) == (kernel is fused_leaky.scan)
        torch.testing.assert_close(*results)

    def test_saved_memory_does_not_depend_on_the_number_of_steps(self, reset: str) -> None:
        saved = []
        for T in (10, 1000):
            neuron, synapse, current = self.network(reset)
            sizes: dict[int, int] = {}

            def record(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                sizes[tensor.data_ptr()] = tensor.nbytes
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
                neuron.unroll(current, T, synapse=synapse)
            saved.append(sum(sizes.values()))
        assert saved[0] == saved[1] > 0

    def test_lazy_trace_equals_the_trace(self, reset: str) -> None:
        neuron, synapse, current = self.network(reset)
        lazy, _ = neuron.unroll(current, self.T, synapse=synapse)
        full = reference(neuron, current, self.T, neuron.zero_state(current[0]))[0]
        assert lazy.num_steps == self.T
        for name in ("spikes", "membrane", "spike_count", "last_spikes", "max_membrane", "first_spike"):
            assert torch.equal(getattr(lazy, name), getattr(full, name)), name
            with torch.no_grad():
                assert torch.equal(getattr(lazy, name), getattr(full, name)), name
        assert torch.equal(lazy.state.membrane, full.state.membrane)
        both = [torch.autograd.grad((t.spikes * t.membrane).sum(), current, retain_graph=True) for t in (lazy, full)]
        torch.testing.assert_close(*both)


@pytest.mark.parametrize(("kernel", "name"), PAIRS)
def test_currents_in_any_layout(kernel: str, name: str) -> None:
    """An expanded batch, and a batch axis that is contiguous in memory."""
    torch.manual_seed(0)
    neuron = NEURONS[name](4, "subtract", ATan()).double()
    shared = torch.rand(6, 1, *neuron.features, dtype=torch.float64).expand(6, 3, *neuron.features)
    for current in (shared, torch.rand(6, *neuron.features, 3, dtype=torch.float64).movedim(-1, 1)):
        expected = neuron.scan(current.unbind(0), neuron.zero_state(current[0]))
        kernels.use(neuron, kernel, CPU)
        trace = neuron(current)
        torch.testing.assert_close(trace.membrane, expected.membrane)
        assert torch.equal(trace.spikes, expected.spikes)


@pytest.mark.parametrize("steps_given", [1, 8])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_lazy_spikes_are_not_changed_by_an_optimizer_step(steps_given: int, with_gradients: bool) -> None:
    """The optimizer updates thresholds in place."""
    torch.manual_seed(0)
    neuron, synapse = Leaky(4, 0.9, THETA, learn_threshold=True), Dense(4, 2)
    kernels.use(neuron, "fused", CPU)
    current = torch.rand(steps_given, 2, 4)
    expected = neuron(current, 8)
    with torch.set_grad_enabled(with_gradients):
        trace, _ = neuron.unroll(current, 8, synapse=synapse)
    with torch.no_grad():
        neuron.threshold.add_(10)
    assert torch.equal(trace.spikes, expected.spikes)
    assert torch.equal(trace.membrane, expected.membrane)
    assert trace.spikes.any()
    assert trace.spikes.requires_grad == with_gradients


@pytest.mark.parametrize("steps_given", [1, 8])
def test_reading_without_gradients_first_keeps_later_gradients(steps_given: int) -> None:
    torch.manual_seed(0)
    neuron, synapse = Leaky(4), Dense(4, 2)
    kernels.use(neuron, "fused", CPU)
    current = torch.rand(steps_given, 2, 4, requires_grad=True)
    trace, _ = neuron.unroll(current, 8, synapse=synapse)
    with torch.no_grad():
        rate = trace.spikes.mean() + trace.membrane.mean() + trace.spike_count.mean()
    assert rate != 0
    assert torch.autograd.grad(trace.spikes.mean() + trace.membrane.mean(), current)[0].any()


def test_synapses_with_other_forward_or_hooks_are_called() -> None:
    """Subclasses and hooks, such as those of pruning, may compute more than S W^T + b."""

    class Masked(Dense):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    torch.manual_seed(0)
    hooked = Dense(4, 2)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    for synapse in (Masked(4, 2), hooked):
        neuron, current = Leaky(4), torch.rand(1, 3, 4)
        expected = neuron.unroll(current, 9, synapse=synapse)[1]
        kernels.use(neuron, "fused", CPU)
        with torch.no_grad():
            for statistics in (None, SUMS):
                torch.testing.assert_close(neuron.unroll(current, 9, None, synapse, statistics)[1], expected)
        torch.testing.assert_close(neuron.unroll(current, 9, synapse=synapse)[1], expected)


@pytest.mark.parametrize(("kernel", "name"), PAIRS)
def test_refuses_state_of_another_batch_size(kernel: str, name: str) -> None:
    neuron = NEURONS[name](3, "subtract", ATan())
    kernels.use(neuron, kernel, CPU)
    for batch in (1, 5):
        state = neuron.zero_state(torch.zeros(batch, *neuron.features))
        with pytest.raises(ValueError, match="state has shapes"):
            neuron(torch.zeros(6, 4, *neuron.features), state=state)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda surrogate: type(surrogate).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reciprocal_of_a_surrogate(surrogate: Surrogate, dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 301, dtype=dtype)
    result = torch.ones_like(x).div_(surrogate.reciprocal_(x.clone()))
    torch.testing.assert_close(result, surrogate(x), rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=1e-12)


@pytest.mark.parametrize("name", NEURONS)
def test_only_products_run_in_bfloat16(name: str) -> None:
    """Under autocast, fused and reference kernels have nearly the same spikes."""
    torch.manual_seed(0)
    neuron = NEURONS[name](16, "subtract", ATan())
    synapse = Dense(math.prod(neuron.features), 5)
    current = torch.randn(20, 8, *neuron.features, requires_grad=True)
    results = []
    for kernel in ("reference", "fused"):
        kernels.use(neuron, kernel, CPU)
        with torch.autocast("cpu", torch.bfloat16):
            trace, output = neuron.unroll(current, synapse=synapse)
        assert {trace.spikes.dtype, trace.membrane.dtype, *(part.dtype for part in trace.state)} == {torch.float32}
        loss = output.float().square().mean() + trace.membrane.square().mean()
        results.append((trace.spikes, torch.autograd.grad(loss, current)[0]))
    (spikes, gradient), (fused_spikes, fused_gradient) = results
    assert (spikes != fused_spikes).float().mean() <= 0.01
    same = torch.nn.functional.cosine_similarity(gradient.flatten(), fused_gradient.flatten(), dim=0)
    assert same > 0.99


class TestUse:
    def network(self, neuron: Any = Leaky, readout: Any = Leaky) -> MLP:
        return MLP((3,), 2, neuron, readout, num_steps=4)

    def test_triton_network_runs_on_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kernels chosen for a GPU, called on a CPU without Triton's interpreter."""
        network, x = self.network(), torch.rand(1, 2, 3)
        expected = network(x)[-1].membrane
        assert kernels.use(network, "auto", torch.device("cuda")) == "triton"
        monkeypatch.delenv("TRITON_INTERPRET")
        torch.testing.assert_close(network(x)[-1].membrane, expected)

    def test_returns_the_kernels_in_use(self) -> None:
        network = self.network()
        for name, used in (("reference", "reference"), ("fused", "fused"), ("triton", "triton"), ("auto", "fused")):
            assert kernels.use(network, name, CPU) == used
        assert {neuron.kernel for neuron in network.neurons().values()} == {fused_leaky.scan}

    def test_subclasses_run_on_their_own_scan(self) -> None:
        class Mine(Leaky):
            """A subclass may compute something else than its parent's kernel."""

        network = self.network(Mine)
        assert kernels.use(network, "auto", CPU) == "reference (hidden1), fused (readout)"
        with pytest.raises(ConfigError, match=r"^kernel: got fused, Mine has no fused kernel; use auto$"):
            kernels.use(network, "fused", CPU)

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda N: RLeaky(N, surrogate=type("Mine", (ATan,), {})()), "Mine has no Triton kernel"),
            (lambda N: RLeaky((N, 2, 2), feedback="conv2d", kernel_size=3), "conv2d feedback has no Triton kernel"),
            (lambda N: RLeaky(129), "linear feedback of 129 neurons exceeds the maximum of 128"),
        ],
    )
    def test_reasons_for_no_triton_kernel(self, make: Callable[[int], Neuron], reason: str) -> None:
        with pytest.raises(ConfigError, match=rf"^kernel: got triton, {reason}; use auto$"):
            kernels.use(make(3), "triton", CPU)

    def test_bfloat16_weights_need_the_memory_of_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        triton_common = pytest.importorskip("snnexp.kernels.triton_common")
        for limit, fits in ((64 * 64 * 4, False), (64 * 64 * 5, True)):
            chip = SimpleNamespace(shared_memory_per_block_optin=limit)
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, chip=chip: chip)
            for dtype in (torch.float32, torch.bfloat16):
                assert triton_common._fits(torch.zeros(64, 64, dtype=dtype), CPU) is fits

    def test_triton_needs_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(ConfigError, match=r"^kernel: got triton, Triton requires a GPU, device is cpu; use auto$"):
            kernels.use(Leaky(3), "triton", CPU)


@pytest.mark.slow
def test_triton_kernels_compile_for_a_gpu_without_contraction() -> None:
    """Compile for compute capability 9.0; only matrix products have fused multiply-adds."""
    pytest.importorskip("triton")
    script = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from snnexp.kernels import triton_leaky, triton_lif

def contractions(kernel, integers, **constants):
    kind = {name: "i32" if name in integers else "*fp32" for name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else kind[name] for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert "mul.rn" in ptx or "mul.f32" in ptx
    return ptx.count("fma.")

sizes, steps = {"BLOCK_B": 16, "BLOCK_N": 32}, ["T", "B", "n", "stride", "last"]
surrogate = {"KIND": 0, "NUMBER": 2.0}
for feedback in (0, 1, 2):
    flags = {"RESET": 1, "FEEDBACK": feedback, **sizes}
    forward = contractions(triton_leaky.leaky_forward, steps, BIAS=feedback == 2, KEEP=True, **flags)
    backward = contractions(triton_leaky.leaky_backward, steps, HAS_GU=True, HAS_GS=True, **surrogate, **flags)
    assert (forward > 0, backward > 0) == (feedback == 2, feedback == 2), (feedback, forward, backward)
for spikes, linear in ((True, True), (True, False), (False, False)):
    flags = {"SPIKES": spikes, "LINEAR": linear, **sizes}
    forward = contractions(triton_lif.lif_forward, steps, KEEP=False, **flags)
    given = {"HAS_GU": True, "HAS_GZ": spikes, "HAS_GI": True}
    backward = contractions(triton_lif.lif_backward, steps, **given, **surrogate, **flags)
    assert (forward > 0, backward > 0) == (linear, linear), (spikes, linear, forward, backward)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kernel", "name"), [*(("reference", name) for name in NEURONS), *PAIRS])
@pytest.mark.parametrize("reset", RESETS)
def test_single_steps_equal_the_sequence(kernel: str, name: str, reset: str) -> None:
    """T calls with one step each, passing on the state, equal one call with T steps."""
    torch.manual_seed(0)
    neuron = NEURONS[name](4, reset, ATan()).double()
    assert kernels.use(neuron, kernel, CPU) == kernel
    current = torch.randn((7, 3, *neuron.features), dtype=torch.float64).add(0.5)
    whole = neuron(current)
    state, steps = None, []
    for step in current:
        steps.append(neuron(step.unsqueeze(0), state=state))
        state = steps[-1].state
    assert torch.equal(torch.cat([trace.spikes for trace in steps]), whole.spikes)
    torch.testing.assert_close(torch.cat([trace.membrane for trace in steps]), whole.membrane)
    torch.testing.assert_close(state, whole.state)
    assert neuron.spikes is False or whole.spikes.any()
