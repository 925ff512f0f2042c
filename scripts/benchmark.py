"""Benchmark snnexp against other libraries and bare matrix products: time, memory, scaling.

    python scripts/benchmark.py [--quick] [--only steps growth open memory epoch]
                                [--threads 1] [--device cpu] [--out FOLDER]

All implementations share one process and alternate every few steps, so that load on the machine affects them equally.
They start from the same weights and batches; an implementation whose loss or gradient differs from ours is reported but
not timed, and the exit code is 1. snnTorch and Norse follow their tutorials, with the matrix product inside the loop
over time; SpikingJelly and JAX compute the product of the input before the loop. snnTorch and Norse use the optimizer
of their tutorials, `torch.optim.Adam`, and snnTorch the step-by-step loss of Tutorial 5; otherwise all PyTorch
implementations use our loss and optimizer. MNIST is read from $SNNEXP_DATA_DIR; without it, random images of similar
statistics are used.

steps   training and evaluation step of each recipe. `floor` is the step with identities instead of neurons, `products`
        only its matrix products, into preallocated memory; both use PyTorch, so JAX (XLA) can be faster.
growth  the training step of mnist_leaky over time steps, width, batch size and depth.
open    Linear(n, n) and a LIF neuron over 500 steps of a batch of 16, after Open Neuromorphic's benchmark; `train` is
        forward and backward pass.
memory  increase of peak resident memory by training steps of mnist_leaky, each in a separate process.
epoch   `snnexp train experiment=mnist_leaky` as a whole process, including imports, test and saving, against only the
        training loop of Tutorial 5 over one epoch, with data in memory; two threads each.
"""

import argparse
import copy
import csv
import functools
import importlib.metadata
import importlib.util
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from snnexp import encoders, kernels, neurons, surrogates
from snnexp.errors import DataError
from snnexp.losses import CEMembrane, MSECount
from snnexp.network import MLP, Network
from snnexp.neurons import Trace, time_distributed
from snnexp.optimizers import Adam, build_optimizer

RECIPES = ("mnist_leaky", "mnist_rleaky_count", "mnist_rleaky_membrane", "mnist_rleaky_conv", "mnist_parametrized_lif")
RECIPES += ("regression_linear", "regression_sqrt")
GROWTH = {"T": (10, 25, 50, 100, 200, 500, 1000), "width": (100, 300, 1000, 3000)}
GROWTH |= {"batch": (16, 32, 64, 128, 256, 512), "depth": (1, 2, 3, 4)}
QUICK_GROWTH = {"T": (10, 25, 100), "width": (100, 1000), "batch": (16, 128), "depth": (1, 2)}
POINT = {"T": 25, "width": 1000, "batch": 128, "depth": 1}
"""Sizes of mnist_leaky, from which growth varies one at a time."""
MAX_LIBRARY_STEPS = 200
"""Maximum time steps of other libraries in growth."""
PHASES = ("train", "eval")
COLORS = {"ours": "#0072b2", "reference": "#56b4e9", "snntorch": "#d55e00", "norse": "#009e73"}
COLORS |= {"spikingjelly": "#cc79a7", "jax": "#e69f00", "floor": "#999999", "products": "#333333"}


@dataclass
class Workload:
    """A network with its encoder, loss, optimizer and batches."""

    name: str
    network: Network
    encoder: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Any]
    """The encoder as used by our task, possibly with sparse spikes."""
    loss: Callable[[Any, Tensor], Tensor]
    optimizer: Any
    """None for forward and backward pass only."""
    batches: list[tuple[Tensor, Tensor]]
    device: torch.device
    statistics: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def layers(self) -> list[Any]:
        return list(self.network.layers.values())


@dataclass
class Implementation:
    """An implementation of a workload: the step on batch i, by phase (``train`` or ``eval``)."""

    who: str
    steps: dict[str, Callable[[int], object]]
    start: Callable[[], tuple[float, Tensor | None]] | None
    """Returns loss and gradient of the input weights for the first batch; None if they may differ from ours."""
    note: str = ""


@dataclass
class Row:
    """A row of the results."""

    section: str
    work: str
    who: str
    phase: str
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    n: int = 0
    peak_mib: float | None = None
    ratio_to_ours: float | None = None
    note: str = ""


def recipe(name: str, device: torch.device) -> Workload:
    """Return a recipe of conf/experiment with initial weights and its first batches."""
    # Lightning takes seconds to import, and the processes that measure memory do not need it
    from snnexp.data import mnist
    from snnexp.experiment import build, compose

    class RandomDigits(mnist.MNIST):
        def __init__(self, root: str, train: bool, mean: float, std: float, **_: Any) -> None:
            images, self.labels = random_digits(2048)
            self.images, self.mean, self.std = (255 * images).to(torch.uint8), mean, std

    cfg = compose([f"experiment={name}", "trainer.accelerator=cpu", "logger=jsonl"])
    try:
        parts = build(cfg)
    except DataError:
        print(f"{name}: MNIST not found, using random images")
        with mock.patch.object(mnist, "MNIST", RandomDigits):
            parts = build(cfg)
    size, data, task = parts.data.batch_size, parts.data.train, parts.task
    batches = [data[list(range(at, at + size))] for at in range(0, min(4 * size, len(data)), size)]
    batches = [(x.to(device), y.to(device)) for x, y in batches]
    network = parts.network.to(device)
    encode = task.encode if device.type == "cpu" else parts.encoder
    return Workload(name, network, parts.encoder, encode, parts.loss, task.optimizer, batches, device, task.statistics)


def random_digits(count: int) -> tuple[Tensor, Tensor]:
    """Return images with a fifth of the pixels set, about as bright as MNIST, and labels."""
    lit = torch.rand(count, 1, 28, 28) < 0.2
    return lit * torch.rand(count, 1, 28, 28).sqrt(), torch.randint(10, (count,))


def tutorial5(device: torch.device, T: int, width: int, batch: int, depth: int) -> Workload:
    """Return mnist_leaky in other sizes, on random images."""
    torch.manual_seed(0)
    neuron = functools.partial(neurons.Leaky, beta=0.95)
    network = MLP((1, 28, 28), 10, neuron, neuron, T, [width] * depth).to(device)
    batches = [(x.to(device), y.to(device)) for x, y in (random_digits(batch), random_digits(batch))]
    constant = encoders.Constant()
    return Workload("mnist_leaky", network, constant, constant, CEMembrane(), Adam(lr=5e-4), batches, device)


def linear_lif(device: torch.device, n: int) -> Workload:
    """Return one layer of n inputs and n neurons, 500 steps of a batch of 16; the loss is the number of spikes."""
    torch.manual_seed(0)
    network = MLP((n,), n, neurons.Leaky, neurons.Leaky, 500, hidden=[]).to(device)
    x = torch.rand(500, 16, n, device=device)
    same = encoders.Sequence()
    return Workload(f"n={n}", network, same, same, lambda trace, _: trace.spikes.sum(), None, [(x, x)], device)


def in_torch(
    who: str,
    work: Workload,
    trace: Callable[[Tensor], Any],
    parameters: Iterable[nn.Parameter],
    weight: Tensor | None = None,
    same: bool = True,
    evaluated: Callable[[Tensor], Any] | None = None,
    criterion: Callable[[Any, Tensor], Tensor] | None = None,
    tutorial: bool = False,
    note: str = "",
) -> Implementation:
    """Build the steps around a forward pass; with ``same``, loss and gradient of ``weight`` must equal ours.

    With ``tutorial``, use the optimizer of the library's tutorial, else our fused one.
    """
    parameters, optimizer = list(parameters), None
    if work.optimizer:
        ours = build_optimizer(work.optimizer, parameters, 1000)["optimizer"]
        optimizer = tutorial_adam(parameters, work) if tutorial else ours

    def loss(index: int, trace: Callable[[Tensor], Any] = trace) -> Tensor:
        x, y = work.batches[index]
        return (criterion or work.loss)(trace(x), y)

    def train(index: int) -> None:
        loss(index).backward()
        if optimizer is not None:
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    def start() -> tuple[float, Tensor | None]:
        value = loss(0)
        return value.item(), None if weight is None else torch.autograd.grad(value, weight)[0].cpu()

    evaluate = torch.no_grad()(functools.partial(loss, trace=evaluated or trace))
    return Implementation(who, {"train": train, "eval": evaluate}, start if same else None, note)


def ours(work: Workload, who: str = "ours") -> Implementation:
    """Return this package with its fast kernels, or with the reference scans."""
    network = copy.deepcopy(work.network)
    fast = "auto" if work.device.type == "cuda" else "fused"
    used = kernels.use(network, fast if who == "ours" else who, work.device)

    def trace(x: Tensor, statistics: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Any:
        inputs = work.encoder(x) if who == "reference" else work.encode(x)
        return network(inputs, statistics=statistics)[-1]

    weight, evaluated = next(network.parameters()), functools.partial(trace, statistics=work.statistics)
    return in_torch(who, work, trace, network.parameters(), weight, evaluated=evaluated, note=f"kernel {used}")


def in_snntorch(work: Workload) -> Implementation:
    import snntorch

    # snnTorch keeps all neurons in a class attribute, each with its last autograd graph
    snntorch.SpikingNeuron.instances.clear()
    synapses = nn.ModuleList(copy.deepcopy(layer.synapse) for layer in work.layers)
    cells = nn.ModuleList(snntorch_neuron(layer.neuron) for layer in work.layers).to(work.device)

    def trace(x: Tensor) -> Trace:
        inputs, fired, membranes = work.encoder(x), [], []
        states: list[Any] = [cell.reset_mem() for cell in cells]
        for spikes in inputs.unbind(0) * (work.network.num_steps // len(inputs)):
            for index, (synapse, cell) in enumerate(zip(synapses, cells, strict=True)):
                recurrent = isinstance(states[index], tuple)
                after = cell(synapse(spikes), *(states[index] if recurrent else [states[index]]))
                spikes, membrane = after
                states[index] = after if recurrent else membrane
            fired.append(spikes)
            membranes.append(membrane)
        return Trace(torch.stack(fired), torch.stack(membranes), None)

    criterion = step_by_step if isinstance(work.loss, CEMembrane) else None
    parameters = [*synapses.parameters(), *cells.parameters()]
    return in_torch("snntorch", work, trace, parameters, synapses[0].weight, criterion=criterion, tutorial=True)


def tutorial_adam(parameters: Iterable[nn.Parameter], work: Workload) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=work.optimizer.lr)


def step_by_step(trace: Trace, target: Tensor) -> Tensor:
    """Return the loss as written in Tutorial 5."""
    loss = torch.zeros(1, device=target.device)
    for membrane in trace.membrane:
        loss = loss + F.cross_entropy(membrane, target)
    return loss.squeeze()


def snntorch_neuron(mine: Any) -> nn.Module:
    import snntorch
    from snntorch import surrogate

    sigma, learned, theta = mine.surrogate, isinstance(mine.beta, nn.Parameter), mine.threshold.clone()
    arctan = isinstance(sigma, surrogates.ATan)
    options = {"spike_grad": surrogate.atan(sigma.alpha) if arctan else surrogate.fast_sigmoid(sigma.slope)}
    options |= {"beta": mine.beta.detach().clone(), "learn_beta": learned, "threshold": theta}
    options |= {"reset_mechanism": mine.reset}
    if isinstance(mine, neurons.Leaky):
        return snntorch.Leaky(**options)
    wiring = {"linear_features": mine.features[0]}
    if isinstance(mine.recurrent, nn.Conv2d):
        wiring = {"conv2d_channels": mine.features[0], "kernel_size": mine.recurrent.kernel_size[0]}
    cell = snntorch.RLeaky(**options, **wiring)
    cell.recurrent.load_state_dict(mine.recurrent.state_dict())
    return cell


def import_norse() -> Any:
    with warnings.catch_warnings():
        # Norse calls the deprecated torch.jit.script at import time
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        import norse.torch
    return norse.torch


def in_norse(work: Workload) -> Implementation:
    """Return the recipe of Norse's notebook, with Norse's encoder."""
    norse = import_norse()
    hidden, readout = copy.deepcopy(work.layers)
    mine, (width, inputs) = hidden.neuron, hidden.synapse.weight.shape
    numbers = {name: getattr(mine, name) for name in ("tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset")}
    weights = {"input_weights": hidden.synapse.weight, "recurrent_weights": mine.recurrent.weight}
    cell = norse.LIFRecurrentCell(inputs, width, norse.LIFParameters(**numbers), **weights)
    encoder, integrator = norse.ConstantCurrentLIFEncoder(work.network.num_steps), norse.LICell().to(work.device)

    def trace(x: Tensor) -> Trace:
        state, readout_state, voltages = None, None, []
        for spikes in encoder(x):
            z, state = cell(spikes.flatten(1), state)
            voltage, readout_state = integrator(readout.synapse(z), readout_state)
            voltages.append(voltage)
        voltage = torch.stack(voltages)
        return Trace(voltage, voltage, None)

    learned = [*weights.values(), *(getattr(mine, name) for name in mine.learn), readout.synapse.weight]
    note = "its surrogate has alpha 1, gradient not compared"
    return in_torch("norse", work, trace, learned, tutorial=True, note=note)


def in_norse_box(work: Workload) -> Implementation:
    synapse, cell = copy.deepcopy(work.layers[0].synapse), import_norse().LIFBoxCell().to(work.device)

    def trace(x: Tensor) -> Trace:
        state, fired = None, []
        for step in x:
            z, state = cell(synapse(step), state)
            fired.append(z)
        spikes = torch.stack(fired)
        return Trace(spikes, spikes, None)

    note = "nearest model: resets to 0 in the same step"
    return in_torch("norse", work, trace, synapse.parameters(), same=False, note=note)


def in_spikingjelly(work: Workload) -> Implementation:
    from spikingjelly.activation_based import neuron, surrogate

    def lif(mine: Any, is_readout: bool) -> nn.Module:
        levels = {"v_threshold": mine.threshold.item(), "v_reset": None}
        options = {"surrogate_function": surrogate.ATan(mine.surrogate.alpha), "detach_reset": True, "step_mode": "m"}
        tau = 1 / (1 - mine.beta.item())
        return neuron.LIFNode(tau, decay_input=False, store_v_seq=is_readout, **levels, **options)

    synapses = nn.ModuleList(copy.deepcopy(layer.synapse) for layer in work.layers)
    cells = [lif(layer.neuron, layer is work.layers[-1]) for layer in work.layers]

    def trace(x: Tensor) -> Trace:
        spikes = None
        for synapse, cell in zip(synapses, cells, strict=True):
            cell.reset()
            current = time_distributed(synapse, work.encoder(x) if spikes is None else spikes)
            spikes = cell(current.expand(work.network.num_steps, -1, -1))
        return Trace(spikes, cells[-1].v_seq, None)

    note = "nearest model: fires at U >= theta, resets in the same step"
    return in_torch("spikingjelly", work, trace, synapses.parameters(), same=False, note=note)


def in_jax(work: Workload) -> Implementation:
    """Return a compiled step: the product of the input, one scan over time with all layers, and the recipe's Adam."""
    import jax
    import numpy as np

    jnp, tree, loss = jax.numpy, jax.tree, jax_loss(work)
    start = [jax_parameters(layer) for layer in work.layers]
    batches = [(jnp.array(work.encoder(x).flatten(2).numpy()), jnp.array(y.numpy())) for x, y in work.batches]

    def adam(p: Any, m: Any, v: Any, t: Any, *batch: Any) -> Any:
        g, t = jax.grad(loss)(p, *batch), t + 1
        m = tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        step = tree.map(lambda m, v: (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v)
        return tree.map(lambda p, step: p - work.optimizer.lr * step, p, step), m, v, t

    value, gradient = jax.value_and_grad(loss)(start, *batches[0])
    first = (float(value), torch.from_numpy(np.array(gradient[0]["W"])))
    state: Any = (start, *(tree.map(jnp.zeros_like, start) for _ in range(2)), jnp.float32(0))
    began = time.perf_counter()
    compiled = jax.jit(adam, donate_argnums=range(4)).lower(*state, *batches[0]).compile()
    note, compiled_loss = f"compiled in {time.perf_counter() - began:.1f} s", jax.jit(loss)

    def train(index: int) -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(*state, *batches[index]))

    def evaluate(index: int) -> None:
        compiled_loss(state[0], *batches[index]).block_until_ready()

    return Implementation("jax", {"train": train, "eval": evaluate}, lambda: first, note)


def jax_parameters(layer: Any) -> dict[str, Any]:
    import jax

    tensors = {"W": layer.synapse.weight, "b": layer.synapse.bias}
    if isinstance(layer.neuron, neurons.RLeaky):
        tensors |= {"V": layer.neuron.recurrent.weight, "c": layer.neuron.recurrent.bias}
    if isinstance(layer.neuron.beta, nn.Parameter):
        tensors["beta"] = layer.neuron.beta
    return {name: jax.numpy.array(tensor.detach().numpy()) for name, tensor in tensors.items()}


def jax_neuron(mine: Any) -> Callable[..., tuple[Any, Any]]:
    """Return ``update(parameters, I, U)``, plus S for an RLeaky: one time step, which returns the next U and S."""
    import jax

    jnp, sigma, resets = jax.numpy, mine.surrogate, float(mine.reset == "subtract")
    beta, theta = (jnp.array(tensor.detach().numpy()) for tensor in (mine.beta, mine.threshold))
    fires = jax.custom_vjp(lambda x: (x > 0).astype(jnp.float32))

    def derivative(x: Any, g: Any) -> tuple[Any]:
        if isinstance(sigma, surrogates.ATan):
            return (g * sigma.alpha / 2 / (1 + (jnp.pi / 2 * sigma.alpha * x) ** 2),)
        return (g / (sigma.slope * jnp.abs(x) + 1) ** 2,)

    fires.defvjp(lambda x: (fires(x), x), derivative)

    def update(p: Any, I: Any, U: Any, S: Any = None) -> tuple[Any, Any]:
        R = resets * jax.lax.stop_gradient(fires(U - theta))
        I = I if S is None else I + S @ p["V"].T + p["c"]
        U = jnp.clip(p.get("beta", beta), 0, 1) * U + I - R * theta
        return U, fires(U - theta)

    return update


def jax_loss(work: Workload) -> Callable[..., Any]:
    import jax

    jnp, loss, T = jax.numpy, work.loss, work.network.num_steps
    updates, counts = [jax_neuron(layer.neuron) for layer in work.layers], isinstance(loss, MSECount)

    def readout(p: Any, x: Any) -> Any:
        """Return spikes or membranes of the last layer over time."""
        currents = x @ p[0]["W"].T + p[0]["b"]

        def step(states: Any, current: Any) -> tuple[Any, Any]:
            I, S, after = currents[0] if current is None else current, None, []
            for update, layer, state in zip(updates, p, states, strict=True):
                U, S = update(layer, I if S is None else S @ layer["W"].T + layer["b"], *state)
                after.append((U, S)[: len(state)])
            return after, S if counts else U

        states = [(jnp.zeros((x.shape[1], len(layer["W"]))),) * (2 if "V" in layer else 1) for layer in p]
        return jax.lax.scan(step, states, None if len(x) == 1 else currents, length=T)[1]

    def compute(p: Any, x: Any, y: Any) -> Any:
        out = readout(p, x)
        if isinstance(loss, CEMembrane):
            return -jnp.take_along_axis(jax.nn.log_softmax(out), y[None, :, None], 2).mean((1, 2)).sum()
        if y.ndim == out.ndim:
            return ((out - y) ** 2).mean()
        here = jax.nn.one_hot(y, out.shape[-1])
        if counts:
            rates = [math.floor(T * rate + 1e-9) for rate in (loss.correct_rate, loss.incorrect_rate)]
            return ((out.sum(0) - jnp.where(here, *rates)) ** 2).mean() / T
        return ((out - jnp.where(here, loss.on_target, loss.off_target)) ** 2).mean()

    return compute


def feedback_of(neuron: Any) -> Any:
    return getattr(neuron, "recurrent", None)


def floor(work: Workload) -> Implementation:
    """Return the step with identities instead of neurons; each synapse is called as often as in the network."""
    layers, T = copy.deepcopy(work.layers), work.network.num_steps

    def trace(x: Tensor) -> Trace:
        S = None
        for layer in layers:
            S = time_distributed(layer.synapse, work.encoder(x) if S is None else S)
            S = S.expand(T, *S.shape[1:])
            if feedback := feedback_of(layer.neuron):
                steps = [S[0]]
                for I in S[1:]:
                    steps.append(I + feedback(steps[-1]))
                S = torch.stack(steps)
        return Trace(S, S, None)

    synapses = [part for layer in layers for part in (layer.synapse, feedback_of(layer.neuron)) if part]
    parameters = nn.ModuleList(synapses).parameters()
    return in_torch("floor", work, trace, parameters, same=False, note="identity for neurons")


def products(work: Workload) -> Implementation:
    """Return only the matrix products of forward and backward pass, without autograd, loss or optimizer."""
    inputs, T = work.encoder(work.batches[0][0]), work.network.num_steps
    x, batch = inputs.flatten(0, 1), inputs.shape[1]
    forward: list[Callable[[], object]] = []
    backward: list[Callable[[], object]] = []
    for index, layer in enumerate(work.layers):
        product, *gradients = raw_products(layer.synapse, x)
        forward.append(product)
        # no gradient for the input
        backward += gradients if index else gradients[:1]
        x = torch.rand(T * batch, *layer.neuron.features, device=work.device)
        if feedback := feedback_of(layer.neuron):
            # no feedback into the first step
            product, _, input_gradient = raw_products(feedback, x[:batch])
            forward += [product] * (T - 1)
            backward += [input_gradient] * (T - 1) + [raw_products(feedback, x[batch:])[1]]

    def run(calls: list[Callable[[], object]], index: int) -> None:
        for call in calls:
            call()

    steps = {"train": functools.partial(run, forward + backward), "eval": functools.partial(run, forward)}
    return Implementation("products", steps, None, "matrix products only")


def raw_products(synapse: Any, x: Tensor) -> tuple[Callable[[], object], ...]:
    """Return product, weight gradient and input gradient; those of dense synapses use preallocated memory."""
    weight = synapse.weight.detach()
    if isinstance(synapse, nn.Conv2d):
        y, shape = synapse(x).detach(), (synapse.stride, synapse.padding, synapse.dilation)
        arguments = (y, x, weight, None, *shape, False, (0, 0), synapse.groups)
        gradient = functools.partial(torch.ops.aten.convolution_backward, *arguments)
        product = functools.partial(F.conv2d, x, weight, None, *shape)
        return product, lambda: gradient((False, True, False)), lambda: gradient((True, False, False))
    x = x.flatten(1)
    y, dW, dx = x.new_empty(len(x), len(weight)), torch.empty_like(weight), torch.empty_like(x)
    product = functools.partial(torch.mm, x, weight.t(), out=y)
    return product, functools.partial(torch.mm, y.t(), x, out=dW), functools.partial(torch.mm, y, weight, out=dx)


OURS = {"ours": ours, "reference": functools.partial(ours, who="reference")}
FLOORS = {"floor": floor, "products": products}
OPEN = {"ours": ours, "snntorch": in_snntorch, "norse": in_norse_box, "spikingjelly": in_spikingjelly, **FLOORS}


def implementations_of(work: Workload) -> dict[str, Callable[[Workload], Implementation]]:
    """Return the implementations of a recipe; the JAX one supports only dense layers."""
    if work.name == "mnist_parametrized_lif":
        return {**OURS, "norse": in_norse, **FLOORS}
    jelly = {"spikingjelly": in_spikingjelly} if work.name == "mnist_leaky" else {}
    jax = {"jax": in_jax} if work.name != "mnist_rleaky_conv" and work.device.type == "cpu" else {}
    return {**OURS, "snntorch": in_snntorch, **jelly, **jax, **FLOORS}


class Bench:
    """Runs the benchmarks and collects the results.

    Args:
        device: the device.
        quick: use fewer rounds, and fewer sizes in growth.
        sizes: values of n in open.
    """

    STEPS_PER_TURN = 3
    """Consecutive steps of an implementation before the next one."""

    def __init__(self, device: torch.device, quick: bool, sizes: list[int]) -> None:
        self.device, self.quick, self.sizes = device, quick, sizes
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        self.unequal = False

    def compare(
        self,
        section: str,
        name: str,
        work: Workload,
        makers: dict[str, Any],
        rounds: int,
        phases: Iterable[str] = PHASES,
    ) -> list[Row]:
        """Return a row per phase and implementation; the first one is ours."""
        implementations: list[Implementation] = []
        for who, make in makers.items():
            try:
                implementations.append(make(work))
            except ImportError as error:
                self.skip(f"{who}, which is not installed: {error}")
        start = implementations[0].start()  # type: ignore[misc]
        implementations = [
            implementation for implementation in implementations if self.agrees(implementation, start, name)
        ]
        rows = []
        for phase in phases:
            measured = self.alternate({one.who: one.steps[phase] for one in implementations}, len(work.batches), rounds)
            for one in implementations:
                times, middle = measured[one.who], statistics.median(measured[implementations[0].who])
                q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
                numbers = (median, q1, q3, len(times), None, median / middle)
                rows.append(Row(section, name, one.who, phase, *numbers, one.note))
        self.rows += rows
        return rows

    def agrees(self, one: Implementation, ours: tuple[float, Any], name: str) -> bool:
        """Check the loss to 1e-3 and the gradient to 2e-2 of its norm: rounding may flip a few spikes."""
        if one.start is None or one.who == "ours":
            return True
        loss, gradient = one.start()
        apart = abs(loss - ours[0]) / abs(ours[0])
        equal, report = apart <= 1e-3, f"loss to {apart:.0e}"
        if gradient is not None:
            # a silent network has a zero gradient
            apart = ((gradient - ours[1]).norm() / ours[1].norm().clamp(min=1e-30)).item()
            equal, report = equal and apart <= 2e-2, f"{report}, gradient to {apart:.0e}"
        one.note = "; ".join(part for part in (one.note, f"equal in {report}") if part)
        if not equal:
            self.unequal = True
            self.skip(f"{one.who} on {name}, which differs from ours: {report}")
        return equal

    def skip(self, what: str) -> None:
        if what not in self.skipped:
            print(f"not run: {what}")
            self.skipped.append(what)

    def alternate(self, steps: dict[str, Callable[[int], object]], batches: int, rounds: int) -> dict[str, list[float]]:
        """Return the milliseconds of each step, after a warm-up round."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        measured: dict[str, list[float]] = {who: [] for who in steps}
        for _ in range(1 + rounds):
            for who, step in steps.items():
                for index in range(self.STEPS_PER_TURN):
                    wait()
                    began = time.perf_counter()
                    step(index % batches)
                    wait()
                    measured[who].append(1e3 * (time.perf_counter() - began))
        return {who: times[self.STEPS_PER_TURN :] for who, times in measured.items()}

    @functools.cache  # noqa: B019
    def peak(self, who: str, *sizes: int) -> float:
        """Return the MiB that training steps add to peak memory, measured in a separate process."""
        command = [sys.executable, __file__, "--memory", who, *map(str, sizes), "--device", self.device.type]
        command += ["--threads", str(torch.get_num_threads())]
        return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

    def steps(self) -> None:
        for name in RECIPES:
            work = recipe(name, self.device)
            show(self.compare("steps", name, work, implementations_of(work), 3 if self.quick else 10))

    def open(self) -> None:
        for n in self.sizes:
            show(self.compare("open", f"n={n}", linear_lif(self.device, n), OPEN, 1 if self.quick else 3))

    def growth(self) -> None:
        for axis, values in (QUICK_GROWTH if self.quick else GROWTH).items():
            rows = []
            for value in values:
                point = POINT | {axis: value}
                libraries = {"snntorch": in_snntorch} if point["T"] <= MAX_LIBRARY_STEPS else {}
                work, makers = tutorial5(self.device, **point), {"ours": ours, **libraries}
                for row in self.compare("growth", f"{axis}={value}", work, makers, 1 if self.quick else 3, ["train"]):
                    row.peak_mib = self.peak(row.who, *point.values())
                    rows.append(row)
            show(rows)
        self.skip(f"snntorch in growth over more than {MAX_LIBRARY_STEPS} time steps")

    def has_snntorch(self, section: str) -> bool:
        found = importlib.util.find_spec("snntorch") is not None
        if not found:
            self.skip(f"snntorch in {section}: it is not installed")
        return found

    def memory(self) -> None:
        rows, libraries = [], ["snntorch"] if self.has_snntorch("memory") else []
        for T in (25, 200):
            sizes = (POINT | {"T": T}).values()
            for who in (*OURS, *libraries):
                peak = self.peak(who, *sizes)
                ratio = peak / self.peak("ours", *sizes)
                rows.append(Row("memory", f"T={T}", who, "train", peak_mib=peak, ratio_to_ours=ratio))
        self.rows += rows
        show(rows)

    def epoch(self) -> None:
        from snnexp.data import MNIST

        if not self.has_snntorch("epoch"):
            return
        threads = torch.get_num_threads()
        limit_threads(2)
        try:
            digits = MNIST(os.environ.get("SNNEXP_DATA_DIR", "data"))
        except DataError:
            self.skip("epoch: MNIST is not found")
            return
        seconds = {"ours": whole_process(), "snntorch": tutorial_epoch(recipe("mnist_leaky", self.device), digits)}
        for who, s in seconds.items():
            note = "whole process" if who == "ours" else "training loop"
            self.rows.append(
                Row("epoch", "mnist_leaky", who, "train", 1e3 * s, 1e3 * s, 1e3 * s, 1, None, s / seconds["ours"], note)
            )
        show(self.rows[-2:])
        limit_threads(threads)

    def write(self, folder: Path) -> None:
        """Write benchmark.csv, and benchmark.svg if there is anything to plot."""
        from matplotlib.figure import Figure

        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "benchmark.csv").open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, [column.name for column in fields(Row)])
            lines.writeheader()
            lines.writerows(asdict(row) for row in self.rows)
        steps = [row for row in self.rows if row.section == "steps" and row.phase == "train"]
        growth = [row for row in self.rows if row.section == "growth"]
        drawn = [(draw, rows) for draw, rows in ((draw_steps, steps), (draw_growth, growth)) if rows]
        if drawn:
            figure = Figure(figsize=(12, 5 * len(drawn)), layout="constrained")
            parts = figure.subfigures(len(drawn), 1, squeeze=False)[:, 0]
            for part, (draw, rows) in zip(parts, drawn, strict=True):
                draw(part, rows)
            figure.savefig(folder / "benchmark.svg")
        print(f"written to    {folder}")

    def machine(self, threads: int) -> None:
        """Print the hardware and the library versions."""
        print(f"processor     {processor()}, {os.cpu_count()} cores, {threads} used")
        if self.device.type == "cuda":
            print(f"gpu           {torch.cuda.get_device_name()}")
        for package in ("torch", "snntorch", "norse", "spikingjelly", "jax"):
            with suppress(importlib.metadata.PackageNotFoundError):
                print(f"{package:<13} {importlib.metadata.version(package)}")
        print(f"not run       {'; '.join(self.skipped) or 'nothing'}")


def show(rows: list[Row]) -> None:
    """Print rows as a table."""
    title, table = f"{rows[0].section} {rows[0].work.split('=')[0]}", Table(padding=(0, 1), show_edge=False)
    for heading in ("work", "who", "phase", "median ms", "quartiles", "x ours", "MiB", "note"):
        numeric = heading in ("median ms", "quartiles", "x ours", "MiB")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "note")
    for row in rows:
        timed = row.median_ms is not None
        times = (f"{row.median_ms:.2f}", f"{row.q1_ms:.2f} - {row.q3_ms:.2f}") if timed else ("", "")
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        table.add_row(row.work, row.who, row.phase, *times, f"{row.ratio_to_ours:.2f}", peak, row.note)
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(f"\n{title}", table, sep="\n")


def draw_steps(figure: Any, rows: list[Row]) -> None:
    """Plot bars of the training steps by recipe, with quartiles."""
    axes, works, width = figure.subplots(), list(dict.fromkeys(row.work for row in rows)), 1 / (len(COLORS) + 1)
    for index, (who, color) in enumerate(COLORS.items()):
        mine = [row for row in rows if row.who == who]
        places = [works.index(row.work) + (index - (len(COLORS) - 1) / 2) * width for row in mine]
        spread = [[row.median_ms - row.q1_ms for row in mine], [row.q3_ms - row.median_ms for row in mine]]
        axes.bar(places, [row.median_ms for row in mine], 0.9 * width, yerr=spread, color=color, label=who)
    names = [work.replace("_", "\n", 1) for work in works]
    axes.set(xticks=range(len(works)), xticklabels=names, yscale="log", xlabel="recipe", ylabel="training step, ms")
    axes.legend(frameon=False, ncols=len(COLORS), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))


def draw_growth(figure: Any, rows: list[Row]) -> None:
    """Plot time (top) and memory (bottom) over each axis."""
    labels = {"T": "time steps", "width": "neurons per hidden layer", "batch": "samples in a batch"}
    labels |= {"depth": "hidden layers"}
    panels = figure.subplots(2, len(labels))
    for line, (column, unit) in enumerate({"median_ms": "training step, ms", "peak_mib": "added memory, MiB"}.items()):
        for axes, (axis, label) in zip(panels[line], labels.items(), strict=True):
            axes.set(xlabel=label, ylabel=unit, yscale="log", xscale="linear" if axis == "depth" else "log")
            for who, marker in {"snntorch": "s", "ours": "o"}.items():
                mine = [row for row in rows if row.who == who and row.work.startswith(f"{axis}=")]
                at = [int(row.work.split("=")[1]) for row in mine]
                axes.plot(at, [getattr(row, column) for row in mine], marker=marker, color=COLORS[who], label=who)
            axes.set_xticks(at, map(str, at), fontsize=7)
            axes.tick_params("x", which="minor", labelbottom=False)
    panels[0, 0].legend(frameon=False)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def added_memory(who: str, device: torch.device, sizes: list[int]) -> float:
    """Return the MiB by which five training steps raise the peak memory of this process."""
    step = {**OURS, "snntorch": in_snntorch}[who](tutorial5(device, *sizes)).steps["train"]
    before = peak_mib(device, reset=True)
    for index in range(5):
        step(index % 2)
    return peak_mib(device) - before


def peak_mib(device: torch.device, reset: bool = False) -> float:
    """Return the peak memory of this process so far, or since the last reset if the system supports it."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # on Linux, getrusage starts from the memory of the parent process
        if reset:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def whole_process() -> float:
    """Return the seconds of the command, median of three."""
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            command = ["train", "experiment=mnist_leaky", "trainer=cpu", f"logger.root='{folder}'"]
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "snnexp.cli", *command], stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def tutorial_epoch(work: Workload, digits: Any) -> float:
    """Return the seconds of one epoch in snnTorch."""
    size = len(work.batches[0][1])
    orders = torch.randperm(len(digits))[: len(digits) // size * size].view(-1, size)
    began = time.perf_counter()
    work.batches = [digits[order] for order in orders]
    train = in_snntorch(work).steps["train"]
    for index in range(len(orders)):
        train(index)
    return time.perf_counter() - began


CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def limit_threads(threads: int) -> None:
    """Limit this process to ``threads`` threads and cores; only the cores limit XLA's thread pool."""
    torch.set_num_threads(threads)
    if CORES:
        os.sched_setaffinity(0, CORES[-threads:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("steps", "growth", "open", "memory", "epoch")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes, under three minutes")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, help="sections to run")
    parser.add_argument("--sizes", nargs="+", type=int, help="n of the section open")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument(
        "--memory", nargs="+", metavar="WHO", help="WHO [T ...]: print the MiB that its training steps add"
    )
    options = parser.parse_args()
    limit_threads(options.threads)
    device = torch.device(options.device)
    if options.memory:
        who, *sizes = options.memory
        given = dict(zip(POINT, map(int, sizes), strict=False))
        print(added_memory(who, device, list((POINT | given).values())))
        return 0
    bench = Bench(device, options.quick, options.sizes or [256 if options.quick else 1024])
    for section in options.only:
        getattr(bench, section)()
    bench.write(options.out)
    bench.machine(options.threads)
    return 1 if bench.unequal else 0


if __name__ == "__main__":
    sys.exit(main())
