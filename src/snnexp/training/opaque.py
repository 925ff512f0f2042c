"""A network that is a plain ``torch.nn.Module``: what is known of it is what it returns."""

import inspect
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.errors import ConfigError
from snnexp.events import Events
from snnexp.network.graph import Delivery, Network
from snnexp.neurons import Neuron, Reduced, Trace

RESETS = ("reset", "reset_mem")
"""Methods that let a module forget what it has seen: SpikingJelly's and snnTorch's neurons have one of them."""
READOUT = "readout"


class Foreign(Neuron):
    """Stands for neurons of another library: how many there are, and whether they fire.

    Args:
        features: their axes.
        spikes: whether spikes of theirs are known.
    """

    def __init__(self, features: tuple[int, ...], spikes: bool) -> None:
        super().__init__(features)
        self.spikes = spikes  # type: ignore[misc]


class Opaque(Network):
    """A module of any kind as a network of one node.

    Its ``forward(x)`` receives ``[T, B, *N]``; a constant input is expanded. It returns the readout: the membrane
    ``[T, B, K]``, a pair (spikes, membrane), or a :class:`~snnexp.neurons.Trace`; or a mapping from names of layers to
    these, the readout last, so that the inner layers are known too. What it keeps from one batch to the next is reset
    before each: by its method ``reset()``, else by ``reset()`` or ``reset_mem()`` of the modules within it.

    Args:
        module: the module.
        num_steps: T where the input does not change over time.
    """

    def __init__(self, module: nn.Module, num_steps: int) -> None:
        super().__init__(num_steps, dict)
        self.module = module
        self.resets: list[Callable[[], object]] | None = None
        self.known: dict[str, Foreign] = {}
        """The layers, once :meth:`look` has seen what the module returns."""

    def forward(
        self,
        inputs: Tensor | Events,
        states: Sequence[Any] | None = None,
        num_steps: int | None = None,
        reduced: Container[str] = (),
    ) -> list[Any]:
        """As of :class:`~snnexp.network.Network`; a module takes no states."""
        if states is not None and any(state is not None for state in states):
            raise ValueError("a module of another library takes no state: give it the whole sequence")
        num_steps = self._steps(inputs) if num_steps is None else num_steps
        dense = inputs.dense() if isinstance(inputs, Events) else inputs
        self._reset()
        found = self.module(dense.expand(num_steps, *dense.shape[1:]))
        traces = {name: _trace(value) for name, value in _named(found).items()}
        return [trace.reduced() if name in reduced else trace for name, trace in traces.items()]

    @torch.no_grad()
    def look(self, inputs: Tensor, outputs: int) -> None:
        """Learn from an example which layers there are.

        Args:
            inputs: as of :meth:`forward`, with an even number of samples.
            outputs: neurons that the readout must have.

        Raises:
            ConfigError: the module does not return a readout, or keeps state from one batch to the next.
        """
        steps, kind = self._steps(inputs), type(self.module).__name__
        samples = inputs.shape[1]
        self.eval()
        state = torch.get_rng_state()
        self._reset()
        found = self.module(inputs.expand(steps, *inputs.shape[1:]))
        named = _named(found)
        for name, value in named.items():
            trace = _trace(value, kind)
            for part in (trace.spikes, trace.membrane):
                if part.shape[:2] != (steps, samples) or part.ndim < 3:
                    told = f"network: {kind} returned {list(part.shape)} for {name}"
                    raise ConfigError(f"{told}, must be {[steps, samples]} and neurons")
            self.known[name] = Foreign(tuple(trace.membrane.shape[2:]), not isinstance(value, Tensor))
        last = [*self.known.values()][-1].features
        if last != (outputs,):
            raise ConfigError(f"network: {kind} returned a readout of {list(last)} neurons, must be {[outputs]}")
        self(inputs[:, : samples // 2])
        torch.set_rng_state(state)
        again = self(inputs)[-1]
        if not torch.equal(again.membrane, _trace([*named.values()][-1]).membrane):
            how = "give it a method reset() that forgets all, called before each batch"
            raise ConfigError(f"network: {kind} keeps state from one batch to the next; {how}")

    def _reset(self) -> None:
        # looked for once: a signature costs more than a step of a small network
        self.resets = _resets(self.module) if self.resets is None else self.resets
        for method in self.resets:
            method()

    def with_currents(self, inputs: Tensor | Events) -> Iterator[tuple[list[Tensor], Trace]]:
        """As of :class:`~snnexp.network.Network`; no currents are known."""
        return iter([([], trace) for trace in self(inputs)])

    @property
    def layers_known(self) -> bool:
        return len(self.known) > 1

    def neurons(self) -> dict[str, Neuron]:
        return {**self.known}

    def equations(self) -> dict[str, Neuron]:
        return {path: module for path, module in self.module.named_modules() if isinstance(module, Neuron)}

    def connections(self, inputs: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...], None, str]]:
        """As of :class:`~snnexp.network.Network`; none is known."""
        return ((name, neuron.features, None, "") for name, neuron in self.known.items())

    def deliveries(
        self, traces: Sequence[Trace | Reduced], inputs: Tensor | Events | None = None
    ) -> Iterator[Delivery]:
        """As of :class:`~snnexp.network.Network`; what spikes cost is not known."""
        for name, trace in zip(self.known, traces, strict=True):
            yield name, trace.spike_count.unsqueeze(0), None


def _resets(module: nn.Module) -> list[Callable[[], object]]:
    """The methods that let a module forget the batches that it has seen: its own, else those of the modules in it."""
    own = _methods(module)
    return own or [method for each in module.modules() for method in _methods(each)]


def _methods(module: nn.Module) -> list[Callable[[], object]]:
    """Methods of :data:`RESETS` that a module has and that need no arguments."""
    methods = [method for name in RESETS if callable(method := getattr(module, name, None))]
    return [method for method in methods if not any(map(_is_required, inspect.signature(method).parameters.values()))]


def _is_required(parameter: inspect.Parameter) -> bool:
    several = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in several


def _named(found: Any) -> dict[str, Any]:
    return {str(name): value for name, value in found.items()} if isinstance(found, Mapping) else {READOUT: found}


def _trace(found: Any, kind: str = "the module") -> Trace:
    """What a module returned for a layer as a trace; its state tells whether all is finite."""
    if isinstance(found, Trace):
        found = (found.spikes, found.membrane)
    if isinstance(found, Tensor):
        return Trace(lambda: torch.zeros_like(found), found, (found[-1],))
    pair = isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)
    if not pair:
        told = type(found).__name__
        raise ConfigError(
            f"network: {kind} returned a {told}, must be a membrane [T, B, K], (spikes, membrane) or a Trace"
        )
    spikes, membrane = found
    return Trace(spikes, membrane, (membrane[-1],))
