"""Wraps a plain ``torch.nn.Module``, of which only the outputs are known, as a network."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.errors import ConfigError
from snnexp.network.network import Delivery, Network
from snnexp.neurons import Neuron, ReducedTrace, Trace
from snnexp.sparse import SparseSpikes

READOUT = "readout"


class ExternalNeuron(Neuron):
    """Placeholder for neurons of another library.

    Args:
        features: shape of the layer.
        spikes: True if the module returns their spikes.
    """

    def __init__(self, features: tuple[int, ...], spikes: bool) -> None:
        super().__init__(features)
        self.spikes = spikes  # type: ignore[misc]


class Opaque(Network):
    """Any module as a network of one node.

    Its ``forward(x)`` receives ``[T, B, *N]``; a constant input is expanded. It returns the readout: the membrane
    ``[T, B, K]``, a pair (spikes, membrane), or a :class:`~snnexp.neurons.Trace`; or a mapping from layer names to
    these, the readout last, which also gives access to the inner layers.

    Args:
        module: the module.
        num_steps: T for a constant input.
    """

    def __init__(self, module: nn.Module, num_steps: int) -> None:
        super().__init__(num_steps, dict)
        self.module = module
        self.known: dict[str, ExternalNeuron] = {}
        """The layers, as returned by :meth:`inspect`."""

    @property
    def kind(self) -> str:
        """The name of the module's class."""
        return type(self.module).__name__

    def run(
        self,
        inputs: Tensor | SparseSpikes,
        states: Sequence[Any],
        num_steps: int,
        statistics: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> list[Any]:
        if any(state is not None for state in states):
            raise ValueError("a module of another library takes no state; pass the whole sequence")
        traces = self._traces(inputs.dense() if isinstance(inputs, SparseSpikes) else inputs, num_steps)
        if [*traces] != [*self.known]:
            raise ConfigError(
                f"network: {self.kind} returned {', '.join(traces)}, but {', '.join(self.known)} at first"
            )
        return [trace.reduced(statistics[name]) if name in statistics else trace for name, trace in traces.items()]

    def _traces(self, dense: Tensor, num_steps: int) -> dict[str, Trace]:
        outputs = self.module(dense.expand(num_steps, *dense.shape[1:]))
        named = (
            {str(name): value for name, value in outputs.items()}
            if isinstance(outputs, Mapping)
            else {READOUT: outputs}
        )
        if not named or len(named) < (len(outputs) if isinstance(outputs, Mapping) else 1):
            raise ConfigError(f"network: {self.kind} must return its layers under unique names, the readout last")
        return {name: self._trace(name, value) for name, value in named.items()}

    def _trace(self, name: str, output: Any) -> Trace:
        """Return a layer's output as a trace; its state, the last membrane, shows whether all values are finite."""
        output = (output.spikes, output.membrane) if isinstance(output, Trace) else output
        tensors = (output,) if isinstance(output, Tensor) else output
        fits = isinstance(output, Tensor) or (isinstance(output, (tuple, list)) and len(output) == 2)
        if not fits or not all(isinstance(part, Tensor) for part in tensors):
            kind = type(output).__name__
            need = "must be a membrane [T, B, K], (spikes, membrane) or a Trace"
            raise ConfigError(f"network: {self.kind} returned a {kind} for {name}, {need}")
        membrane = tensors[-1]
        shapes = {tuple(part.shape) for part in tensors}
        if membrane.ndim < 3 or len(shapes) > 1 or not all(part.is_floating_point() for part in tensors):
            types = " and ".join(f"{str(part.dtype).removeprefix('torch.')}{list(part.shape)}" for part in tensors)
            raise ConfigError(
                f"network: {self.kind} returned {types} for {name}, must be floats [T, B, *N] of one shape"
            )
        spikes = tensors[0] if len(tensors) == 2 else lambda: torch.zeros_like(membrane)
        return Trace(spikes, membrane, (membrane[-1],))

    @torch.no_grad()
    def inspect(self, inputs: Tensor, outputs: int) -> dict[str, ExternalNeuron]:
        """Run an example and return the layers of the module.

        Args:
            inputs: as for :meth:`forward`.
            outputs: required number of readout neurons.

        Raises:
            ConfigError: the module does not return a readout.
        """
        steps, samples = self.steps(inputs), inputs.shape[1]
        known: dict[str, ExternalNeuron] = {}
        self.reset_states()
        for name, trace in self._traces(inputs.clone(), steps).items():
            if not name.isidentifier():
                raise ConfigError(
                    f"network: {self.kind} returned a layer {name!r}; use letters, digits and underscores"
                )
            if trace.membrane.shape[:2] != (steps, samples):
                actual = f"{list(trace.membrane.shape)} for {name}"
                raise ConfigError(f"network: {self.kind} returned {actual}, must be {[steps, samples]} and neurons")
            known[name] = ExternalNeuron(tuple(trace.membrane.shape[2:]), isinstance(trace.given_spikes, Tensor))
        last = [*known.values()][-1].features
        if last != (outputs,):
            raise ConfigError(f"network: {self.kind} returned a readout of {list(last)} neurons, must be {[outputs]}")
        return known

    def with_currents(self, inputs: Tensor | SparseSpikes) -> Iterator[tuple[list[Tensor], Trace]]:
        """See :class:`~snnexp.network.Network`; no currents are known."""
        return iter([([], trace) for trace in self(inputs)])

    @property
    def layers_known(self) -> bool:
        return len(self.known) > 1

    def neurons(self) -> dict[str, Neuron]:
        return {**self.known}

    def native_neurons(self) -> dict[str, Neuron]:
        return {path: module for path, module in self.module.named_modules() if isinstance(module, Neuron)}

    def connections(self, inputs: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...], None, str]]:
        """See :class:`~snnexp.network.Network`; no synapses are known."""
        return ((name, neuron.features, None, "") for name, neuron in self.known.items())

    def deliveries(
        self, traces: Sequence[Trace | ReducedTrace], inputs: Tensor | SparseSpikes | None = None
    ) -> Iterator[Delivery]:
        """See :class:`~snnexp.network.Network`; synaptic operations are unknown."""
        for name in self.known:
            yield name, torch.empty(0), None
