"""Networks: graphs of layers, unrolled over time, that return one trace per layer.

A synapse with input ``[1, B, *N]`` runs once, and its current is broadcast over all T steps; with input ``[T, B, *N]``
it runs once on a batch of ``T * B`` samples. If a layer reads itself or a later layer, the network runs step by step,
and that input is the source's output of the previous step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from snnexp.errors import key_prefix
from snnexp.initializers import Initializer
from snnexp.network.layers import (
    Init,
    Layer,
    initialize,
    layer_output,
    reset_methods,
    reset_synapse,
    sum_currents,
    synaptic_current,
    synops_layer,
)
from snnexp.neurons import Identity, Neuron, ReducedTrace, Trace, as_trace, is_plain
from snnexp.sparse import SparseSpikes
from snnexp.spec.annotations import Steps
from snnexp.spec.checked import checked

INPUT = "input"
"""The name of the network's input in ``Layer.inputs``."""
Weighted = nn.Linear | nn.Conv2d | None
"""The module by which synaptic operations are counted; None if they are unknown."""
Delivery = tuple[str, Tensor, Weighted | int]


class FeedbackState(tuple):  # type: ignore[type-arg]
    """The state of a layer that is read by itself or an earlier one: the state of its neurons, and its last output."""

    state: Any
    output: Tensor

    def __new__(cls, *parts: Tensor) -> "FeedbackState":
        return super().__new__(cls, parts)

    @classmethod
    def of(cls, state: Any, output: Tensor) -> "FeedbackState":
        feedback_state = cls(*state, output)
        feedback_state.state, feedback_state.output = state, output
        return feedback_state


class Network(nn.Module):
    """Abstract base class of graphs of layers. By default, each layer reads the previous one.

    Args:
        num_steps: T for an input that is constant over time.
        make_layers: creates the layers by name, in order; the last is the readout.
        init: weight initialization of synapses; None for the default of the neurons.
    """

    stackable: ClassVar[bool] = False
    """Whether the network can be stacked, which requires dense synapses.

    Not inherited: each subclass must set it itself."""
    unstackable: ClassVar[tuple[str, ...]] = ()
    """Arguments that must have their default values in a stack."""

    @checked
    def __init__(
        self,
        num_steps: Steps,
        make_layers: Callable[[], dict[str, Layer]],
        init: Init | Initializer | None = None,
    ) -> None:
        super().__init__()
        self.num_steps, self.init = num_steps, init
        self._reset_methods: list[Callable[[], object]] | None = None
        self.constant = True
        """Whether an input with one step is constant over ``num_steps`` steps; else it is a sequence of length 1."""
        # separate random stream for modules that reset_parameters cannot reinitialize
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, ())))
            self.layers = nn.ModuleDict(make_layers())
        names = list(self.layers)
        self.sources = {
            name: layer.inputs or (previous,)
            for previous, (name, layer) in zip([INPUT, *names], self._layers().items(), strict=False)
        }
        """The sources of each layer, by name."""
        reached = {INPUT}
        self.feedback_layers: list[str] = []
        """Layers that are read by themselves or by earlier layers."""
        for name in names:
            self.feedback_layers += [
                each for each in self.sources[name] if each not in reached and each not in self.feedback_layers
            ]
            reached.add(name)
        self.readers = {
            name: [other for other, sources in self.sources.items() for source in sources if source == name]
            for name in names
        }
        """The layers that read each layer, by name."""
        self.reset_parameters()

    def _layers(self) -> dict[str, Layer]:
        return dict(self.layers.items())  # type: ignore[arg-type]

    def reset_parameters(self) -> None:
        """Reinitialize all parameters, layer by layer: neurons, synapses, feedback.

        This is the order of the tutorials of snnTorch and Norse: a seed gives the same initial values.
        """
        for name, layer in self._layers().items():
            with key_prefix("readout" if name == "readout" else "neuron"):
                layer.neuron.reset_parameters()
            for _, synapse in layer.synapses(self.sources[name]):
                reset_synapse(synapse, layer.neuron)
                if self.init is not None:
                    initialize(synapse, self.init)
            layer.neuron.reset_feedback()

    def forward(
        self,
        inputs: Tensor | SparseSpikes,
        states: Sequence[Any] | None = None,
        num_steps: int | None = None,
        statistics: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> list[Any]:
        """Run the network.

        Args:
            inputs: ``[T, B, *N]``, or ``[1, B, *N]`` for an input that is constant over ``num_steps`` steps, if the
                network is ``constant``; :class:`~snnexp.sparse.SparseSpikes` if the first synapse is dense.
            states: one state per layer, from earlier traces; zeros by default.
            num_steps: T, by default that of the network.
            statistics: by layer, the statistics to compute; layers without an entry return a full trace.

        Returns:
            One trace per layer, the readout's last.
        """
        num_steps = self.steps(inputs) if num_steps is None else num_steps
        self.reset_states()
        return self.run(inputs, states or [None] * len(self.layers), num_steps, statistics)

    def reset_states(self) -> None:
        """Reset the state of modules of other libraries, by :func:`~snnexp.network.layers.reset_methods`."""
        # cached: inspecting signatures costs more than a step of a small network
        self._reset_methods = reset_methods(self) if self._reset_methods is None else self._reset_methods
        for method in self._reset_methods:
            method()

    def run(
        self,
        inputs: Tensor | SparseSpikes,
        states: Sequence[Any],
        num_steps: int,
        statistics: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> list[Any]:
        """Run :meth:`forward` with all arguments given, without resetting states."""
        if self.feedback_layers:
            return self._step_by_step(inputs, states, num_steps, statistics)
        return self._run_layers({INPUT: inputs}, {}, states, num_steps, statistics)

    def _run_layers(
        self,
        outputs: dict[str, Any],
        currents: dict[tuple[str, str], Tensor],
        states: Sequence[Any],
        num_steps: int,
        statistics: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> list[Any]:
        """Run the layers one after the other, each over all steps.

        Args:
            outputs: known outputs of sources, by name; the outputs of layers are added.
            currents: known currents, by source and layer.
            states: one per layer.
            num_steps: T.
            statistics: see :meth:`forward`.
        """
        traces: list[Any] = []
        layers = self._layers()
        inlined = {name: _is_inlined(layer) for name, layer in layers.items()}
        for (name, layer), state in zip(layers.items(), states, strict=True):
            reader = self._only_reader(name, layers, inlined)
            keep = reader is None and bool(self.readers[name])
            if inlined[name]:
                parts = [
                    currents.pop((source, name))
                    if (source, name) in currents
                    else synaptic_current(outputs[source], synapse)
                    for source, synapse in layer.synapses(self.sources[name])
                ]
                next_synapse = None if reader is None else next(layers[reader].synapses((name,)))[1]
                wanted = None if keep else statistics.get(name)
                trace, next_current = layer.neuron.unroll(sum_currents(parts), num_steps, state, next_synapse, wanted)
                if reader is not None and next_current is not None:
                    currents[name, reader] = next_current
            else:
                sequences = [_dense(outputs[source]) for source in self.sources[name]]
                trace = as_trace(layer(sequences if len(sequences) > 1 else sequences[0], num_steps, state))
                keep = True
            if keep:
                outputs[name] = layer_output(layer.neuron, cast(Trace, trace))
                trace = cast(Trace, trace).reduced(statistics[name]) if name in statistics else trace
            traces.append(trace)
        return traces

    def _only_reader(self, name: str, layers: Mapping[str, Layer], inlined: Mapping[str, bool]) -> str | None:
        """Return the only reader of a layer's spikes, whose current can be computed together with them, if any."""
        readers = self.readers[name]
        single = len(readers) == 1 and name not in self.feedback_layers and layers[name].neuron.spikes
        return readers[0] if single and inlined[readers[0]] else None

    def _step_by_step(
        self,
        inputs: Tensor | SparseSpikes,
        states: Sequence[Any],
        num_steps: int,
        statistics: Mapping[str, Sequence[str]],
    ) -> list[Any]:
        names, sequence = list(self.layers), _dense(inputs)
        # currents from the input are computed for all steps at once
        input_currents = {
            (INPUT, name): synaptic_current(sequence, synapse)
            for name, layer in self._layers().items()
            for source, synapse in layer.synapses(self.sources[name])
            if source == INPUT and _is_inlined(layer)
        }
        previous = {
            name: state.output if isinstance(state, FeedbackState) else self._zero_output(name, sequence)
            for name, state in zip(names, states, strict=True)
            if name in self.feedback_layers
        }
        states = [state.state if isinstance(state, FeedbackState) else state for state in states]
        steps: list[list[Any]] = []
        for t in range(num_steps):
            outputs = {INPUT: sequence[t : t + 1] if len(sequence) > 1 else sequence}
            outputs |= {name: output.unsqueeze(0) for name, output in previous.items()}
            currents = {key: c[t : t + 1] if len(c) > 1 else c for key, c in input_currents.items()}
            steps.append(self._run_layers(outputs, currents, states, 1))
            states = [trace.state for trace in steps[-1]]
            previous = {name: outputs[name][-1] for name in self.feedback_layers}
        traces = []
        for name, parts in zip(names, zip(*steps, strict=True), strict=True):
            spikes, membrane = (torch.cat([getattr(part, kind) for part in parts]) for kind in ("spikes", "membrane"))
            state = parts[-1].state
            trace = Trace(spikes, membrane, FeedbackState.of(state, previous[name]) if name in previous else state)
            traces.append(trace.reduced(statistics[name]) if name in statistics else trace)
        return traces

    def _zero_output(self, name: str, sequence: Tensor) -> Tensor:
        """Return the output of a layer before the first step: zeros ``[B, *N]``."""
        dtype = sequence.dtype if sequence.is_floating_point() and sequence.dtype.itemsize >= 4 else torch.float32
        return sequence.new_zeros((sequence.shape[1], *self._layers()[name].neuron.features), dtype=dtype)

    def with_currents(self, inputs: Tensor | SparseSpikes) -> Iterator[tuple[list[Tensor], Trace]]:
        """Run :meth:`forward` and return the trace of each layer together with its input currents, ``[T, B, *N]``.

        Currents are expanded and contiguous, so that their gradient is that of each step of each layer. If the network
        runs step by step, a layer has one current per step.
        """
        currents: dict[nn.Module, list[Tensor]] = {neuron: [] for neuron in self.neurons().values()}

        def expand(neuron: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            current, num_steps, *others = arguments
            currents[neuron].append(current.expand(num_steps, *current.shape[1:]).contiguous())
            return (currents[neuron][-1], num_steps, *others)

        hooks = [neuron.register_forward_pre_hook(expand) for neuron in currents]
        try:
            traces = self(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return zip(currents.values(), traces, strict=True)

    def steps(self, inputs: Tensor | SparseSpikes) -> int:
        """Return the number of steps that the network runs for an input."""
        return self.num_steps if self.constant and inputs.shape[0] == 1 else inputs.shape[0]

    def input_synapses(self) -> list[nn.Module]:
        """Return the synapses that read the input."""
        pairs = [pair for name, layer in self._layers().items() for pair in layer.synapses(self.sources[name])]
        return [synapse for source, synapse in pairs if source == INPUT]

    @property
    def layers_known(self) -> bool:
        """Whether :meth:`neurons` contains all layers."""
        return True

    def neurons(self) -> dict[str, Neuron]:
        """Return the neurons of each layer, by the name of the layer."""
        return {name: layer.neuron for name, layer in self._layers().items()}

    def native_neurons(self) -> dict[str, Neuron]:
        """Return all neurons of this package within the network, by the name used to display their parameters."""
        return self.neurons()

    def connections(self, inputs: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...], Weighted, str]]:
        """Yield all synapses between layers.

        Each is a tuple of target layer, input shape, module with weights, and kind of input: ``spikes``,
        ``values`` of every step, the ``input``, or ``constant`` for values that are constant if the input is.
        """
        constant: set[str] = set()
        for name, layer in self._layers().items():
            for source, synapse in layer.synapses(self.sources[name]):
                neuron = None if source == INPUT else self._layers()[source].neuron
                kind = "input" if neuron is None else "spikes" if neuron.spikes else "values"
                kind = "constant" if source in constant else kind
                yield name, tuple(inputs) if neuron is None else neuron.features, synops_layer(synapse), kind
            if isinstance(layer.neuron, Identity) and {*self.sources[name]} <= constant | {INPUT}:
                constant.add(name)

    def deliveries(
        self, traces: Sequence[Trace | ReducedTrace], inputs: Tensor | SparseSpikes | None = None
    ) -> Iterator[Delivery]:
        """Yield the spikes that each synapse receives, including feedback within a layer.

        Each is a tuple of the target layer, spikes ``[.., B, *N]`` (summed over time if they come from a layer), and
        the synapse or its fan-out; None if its operations cannot be counted. ``inputs`` are given if they are spikes,
        and are counted too. Outputs of non-spiking neurons are not counted.
        """
        by_layer = dict(zip(self.layers, traces, strict=True))
        reached = {INPUT}
        for name, layer in self._layers().items():
            for source, synapse in layer.synapses(self.sources[name]):
                if source == INPUT and inputs is not None:
                    # spikes of -1 are counted like those of 1
                    yield name, _dense(inputs).abs(), synops_layer(synapse)
                elif source != INPUT and self._layers()[source].neuron.spikes:
                    trace = by_layer[source]
                    # over a delayed connection, spikes of the last step would arrive after the last step
                    count = trace.spike_count if source in reached else trace.spike_count - trace.last_spikes
                    yield name, count.unsqueeze(0), synops_layer(synapse)
            reached.add(name)
        for (name, layer), trace in zip(self._layers().items(), traces, strict=True):
            if layer.neuron.feedback_synapse is not None:
                yield name, (trace.spike_count - trace.last_spikes).unsqueeze(0), layer.neuron.feedback_synapse


def _is_inlined(layer: Layer) -> bool:
    """Return True if a layer has no hooks and does not override ``forward``, so its parts can run separately."""
    return is_plain(layer) and type(layer).forward is Layer.forward


def _dense(inputs: Tensor | SparseSpikes) -> Tensor:
    return inputs.dense() if isinstance(inputs, SparseSpikes) else inputs
