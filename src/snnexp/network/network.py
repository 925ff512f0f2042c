"""Networks: layers with named inputs, unrolled in time; one trace per layer comes back.

A synapse that sees ``[1, B, *N]`` runs once and its current stands for all T steps; one that sees ``[T, B, *N]`` runs
once over ``T * B`` samples. Where a layer reads itself or a later one, the network runs step by step, and what it reads
is that of the step before.
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
"""The name of the network's input among the inputs of a layer."""
Weighted = nn.Linear | nn.Conv2d | None
"""By what the operations of a synapse are counted; None where they cannot be."""
Delivery = tuple[str, Tensor, Weighted | int]


class FeedbackState(tuple):  # type: ignore[type-arg]
    """The state of a layer that earlier ones read: that of its neurons, and what it last handed on."""

    state: Any
    output: Tensor

    def __new__(cls, *parts: Tensor) -> "FeedbackState":
        return super().__new__(cls, parts)

    @classmethod
    def of(cls, state: Any, output: Tensor) -> "FeedbackState":
        made = cls(*state, output)
        made.state, made.output = state, output
        return made


class Network(nn.Module):
    """A graph of layers; abstract. By default each layer reads the one before it.

    Args:
        num_steps: T where the input does not change over time.
        make_layers: makes the layers by name, in order; the last is the readout.
        init: how weights of synapses are drawn; None where the model of the neurons says it.
    """

    stackable: ClassVar[bool] = False
    """Whether its layers can be stacked: its synapses are dense.

    Not inherited: a class says it of what it computes itself."""
    unstackable: ClassVar[tuple[str, ...]] = ()
    """Arguments that must have their defaults for that."""

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
        """Whether an input of one step stands for all ``num_steps``; a network that is fed sequences runs one step."""
        # what the constructors draw is drawn again, in an order of our own; what cannot be has numbers of its own
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, ())))
            self.layers = nn.ModuleDict(make_layers())
        names = list(self.layers)
        self.sources = {
            name: layer.inputs or (before,)
            for before, (name, layer) in zip([INPUT, *names], self._layers().items(), strict=False)
        }
        """What each layer reads, by its name."""
        reached = {INPUT}
        self.feedback_layers: list[str] = []
        """Layers that themselves or earlier ones read."""
        for name in names:
            self.feedback_layers += [
                each for each in self.sources[name] if each not in reached and each not in self.feedback_layers
            ]
            reached.add(name)
        self.readers = {
            name: [other for other, sources in self.sources.items() for source in sources if source == name]
            for name in names
        }
        """Which layers read it."""
        self.reset_parameters()

    def _layers(self) -> dict[str, Layer]:
        return dict(self.layers.items())  # type: ignore[arg-type]

    def reset_parameters(self) -> None:
        """Draw all start values anew, layer by layer: the neuron's parameters, the synapses, the feedback.

        This is the order of the tutorials of snnTorch and Norse, so that a seed gives the start that their code gives.
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
            inputs: ``[T, B, *N]``, or ``[1, B, *N]`` for an input that does not change during ``num_steps`` steps where
                the network is ``constant``; one that begins with a dense synapse takes
                :class:`~snnexp.sparse.SparseSpikes` too.
            states: one state per layer, from earlier traces; zeros without.
            num_steps: T where it is not the network's own.
            statistics: by layer, the statistics that are read of it; of one that is not named, the trace is whole.

        Returns:
            One trace per layer, the readout's last.
        """
        num_steps = self.steps(inputs) if num_steps is None else num_steps
        self.reset_states()
        return self.run(inputs, states or [None] * len(self.layers), num_steps, statistics)

    def reset_states(self) -> None:
        """Let modules of other libraries forget the batches before, by :func:`~snnexp.network.layers.reset_methods`."""
        # looked for once: a signature costs more than a step of a small network
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
        """As :meth:`forward`, where everything is known."""
        if self.feedback_layers:
            return self._step_by_step(inputs, states, num_steps, statistics)
        return self._walk({INPUT: inputs}, {}, states, num_steps, statistics)

    def _walk(
        self,
        outputs: dict[str, Any],
        currents: dict[tuple[str, str], Tensor],
        states: Sequence[Any],
        num_steps: int,
        statistics: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> list[Any]:
        """The layers one after the other, each over all steps.

        Args:
            outputs: what layers read that is there already; what each layer hands on is added.
            currents: what is there already of them, by source and layer.
            states: one for each layer.
            num_steps: T.
            statistics: as of :meth:`forward`.
        """
        traces: list[Any] = []
        layers = self._layers()
        followed = {name: _is_followed(layer) for name, layer in layers.items()}
        for (name, layer), state in zip(layers.items(), states, strict=True):
            reader = self._only_reader(name, layers, followed)
            keep = reader is None and bool(self.readers[name])
            if followed[name]:
                parts = [
                    currents.pop((source, name))
                    if (source, name) in currents
                    else synaptic_current(outputs[source], synapse)
                    for source, synapse in layer.synapses(self.sources[name])
                ]
                behind = None if reader is None else next(layers[reader].synapses((name,)))[1]
                wanted = None if keep else statistics.get(name)
                trace, after = layer.neuron.unroll(sum_currents(parts), num_steps, state, behind, wanted)
                if reader is not None and after is not None:
                    currents[name, reader] = after
            else:
                several = [_dense(outputs[source]) for source in self.sources[name]]
                trace = as_trace(layer(several if len(several) > 1 else several[0], num_steps, state))
                keep = True
            if keep:
                outputs[name] = layer_output(layer.neuron, cast(Trace, trace))
                trace = cast(Trace, trace).reduced(statistics[name]) if name in statistics else trace
            traces.append(trace)
        return traces

    def _only_reader(self, name: str, layers: Mapping[str, Layer], followed: Mapping[str, bool]) -> str | None:
        """The layer whose current is computed along with the spikes of this one: nothing else reads them."""
        readers = self.readers[name]
        alone = len(readers) == 1 and name not in self.feedback_layers and layers[name].neuron.spikes
        return readers[0] if alone and followed[readers[0]] else None

    def _step_by_step(
        self,
        inputs: Tensor | SparseSpikes,
        states: Sequence[Any],
        num_steps: int,
        statistics: Mapping[str, Sequence[str]],
    ) -> list[Any]:
        names, sequence = list(self.layers), _dense(inputs)
        # what the input alone causes is computed at once
        direct = {
            (INPUT, name): synaptic_current(sequence, synapse)
            for name, layer in self._layers().items()
            for source, synapse in layer.synapses(self.sources[name])
            if source == INPUT and _is_followed(layer)
        }
        before = {
            name: state.output if isinstance(state, FeedbackState) else self._nothing(name, sequence)
            for name, state in zip(names, states, strict=True)
            if name in self.feedback_layers
        }
        now = [state.state if isinstance(state, FeedbackState) else state for state in states]
        steps: list[list[Any]] = []
        for t in range(num_steps):
            outputs = {INPUT: sequence[t : t + 1] if len(sequence) > 1 else sequence}
            outputs |= {name: output.unsqueeze(0) for name, output in before.items()}
            currents = {key: c[t : t + 1] if len(c) > 1 else c for key, c in direct.items()}
            steps.append(self._walk(outputs, currents, now, 1))
            now = [trace.state for trace in steps[-1]]
            before = {name: outputs[name][-1] for name in self.feedback_layers}
        traces = []
        for name, parts in zip(names, zip(*steps, strict=True), strict=True):
            spikes, membrane = (torch.cat([getattr(part, kind) for part in parts]) for kind in ("spikes", "membrane"))
            state = parts[-1].state
            trace = Trace(spikes, membrane, FeedbackState.of(state, before[name]) if name in before else state)
            traces.append(trace.reduced(statistics[name]) if name in statistics else trace)
        return traces

    def _nothing(self, name: str, sequence: Tensor) -> Tensor:
        """What a layer handed on before the first step: ``[B, *N]`` of zeros."""
        dtype = sequence.dtype if sequence.is_floating_point() and sequence.dtype.itemsize >= 4 else torch.float32
        return sequence.new_zeros((sequence.shape[1], *self._layers()[name].neuron.features), dtype=dtype)

    def with_currents(self, inputs: Tensor | SparseSpikes) -> Iterator[tuple[list[Tensor], Trace]]:
        """What :meth:`forward` computes, layer by layer, with the currents of each layer, ``[T, B, *N]`` in parts.

        Each step of a current is a value of its own, so that a gradient tells what every step of every layer adds.
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
        """How many steps the network runs for an input."""
        return self.num_steps if self.constant and inputs.shape[0] == 1 else inputs.shape[0]

    def input_synapses(self) -> list[nn.Module]:
        """The synapses that the input goes through."""
        pairs = [pair for name, layer in self._layers().items() for pair in layer.synapses(self.sources[name])]
        return [synapse for source, synapse in pairs if source == INPUT]

    @property
    def layers_known(self) -> bool:
        """Whether :meth:`neurons` has all layers."""
        return True

    def neurons(self) -> dict[str, Neuron]:
        """The neurons of each layer, by the layer's name."""
        return {name: layer.neuron for name, layer in self._layers().items()}

    def native_neurons(self) -> dict[str, Neuron]:
        """The neurons of this package within the network, by the name that parameters of theirs are shown with."""
        return self.neurons()

    def connections(self, inputs: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...], Weighted, str]]:
        """Every synapse between layers.

        Yields the layer behind it, the shape that it reads, its weights, and what it reads: ``spikes``, ``values`` of
        every step, the ``input``, or values that are ``still`` where the input is.
        """
        still: set[str] = set()
        for name, layer in self._layers().items():
            for source, synapse in layer.synapses(self.sources[name]):
                neuron = None if source == INPUT else self._layers()[source].neuron
                kind = "input" if neuron is None else "spikes" if neuron.spikes else "values"
                kind = "still" if source in still else kind
                yield name, tuple(inputs) if neuron is None else neuron.features, synops_layer(synapse), kind
            if isinstance(layer.neuron, Identity) and {*self.sources[name]} <= still | {INPUT}:
                still.add(name)

    def deliveries(
        self, traces: Sequence[Trace | ReducedTrace], inputs: Tensor | SparseSpikes | None = None
    ) -> Iterator[Delivery]:
        """How many spikes arrive where, between layers and from a layer to itself.

        Yields the layer that they arrive at, spikes ``[.., B, *N]``, those of layers summed over time, and the synapse
        or its fan-out; None for a synapse whose operations cannot be counted. ``inputs`` are counted too where they are
        given, that is where they are spikes. What neurons that never fire hand on are values, and no spikes.
        """
        found = dict(zip(self.layers, traces, strict=True))
        reached = {INPUT}
        for name, layer in self._layers().items():
            for source, synapse in layer.synapses(self.sources[name]):
                if source == INPUT and inputs is not None:
                    # a spike of -1 costs what one of 1 does
                    yield name, _dense(inputs).abs(), synops_layer(synapse)
                elif source != INPUT and self._layers()[source].neuron.spikes:
                    trace = found[source]
                    # what fires in the last step arrives after the end, where it arrives a step later
                    count = trace.spike_count if source in reached else trace.spike_count - trace.last_spikes
                    yield name, count.unsqueeze(0), synops_layer(synapse)
            reached.add(name)
        for (name, layer), trace in zip(self._layers().items(), traces, strict=True):
            if layer.neuron.feedback_synapse is not None:
                yield name, (trace.spike_count - trace.last_spikes).unsqueeze(0), layer.neuron.feedback_synapse


def _is_followed(layer: Layer) -> bool:
    """Whether a call of a layer does what its parts do one after the other; else it is called."""
    return is_plain(layer) and type(layer).forward is Layer.forward


def _dense(inputs: Tensor | SparseSpikes) -> Tensor:
    return inputs.dense() if isinstance(inputs, SparseSpikes) else inputs
