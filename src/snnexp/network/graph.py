"""Networks: layers of a synapse and a neuron, unrolled in time; one trace per layer comes back.

A synapse that sees ``[1, B, *N]`` runs once and its current stands for all T steps; one that sees ``[T, B, *N]`` runs
once over ``T * B`` samples.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from snnexp.errors import ConfigError, located
from snnexp.events import Events
from snnexp.neurons import (
    CalledTrace,
    Neuron,
    Recurrence,
    Reduced,
    Trace,
    is_plain,
    over_samples,
    product,
    without_tuple,
)
from snnexp.spec.annotations import Count, Steps
from snnexp.spec.checked import checked

NeuronFactory = Callable[[int | tuple[int, ...]], Neuron]
"""Makes a neuron layer of given features."""


class Dense(nn.Linear):
    """All to all: the neuron axes of the input are flattened, ``[*, N...]`` to ``[*, out_features]``."""

    all_to_all = True

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1))


class StackedDense(Dense):
    """Dense synapses side by side, weight ``[M, out, in]`` and bias ``[M, out]``: ``[*, M, N...]`` to ``[*, M, out]``.

    ``[*, 1, N...]`` is one input for all members.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        return product(inputs.flatten(2), self.weight, self.bias)


class Layer(nn.Module):
    """A synapse, then a neuron."""

    def __init__(self, synapse: Dense | nn.Conv2d, neuron: Neuron) -> None:
        super().__init__()
        self.synapse = synapse
        self.neuron = neuron

    def forward(self, inputs: Tensor, num_steps: int | None = None, state: Any = None) -> Trace:
        """What a network computes of a layer that has hooks: inputs ``[T, B, *N]``, as of :meth:`Network.forward`."""
        trace: Any = self.neuron.unroll(over_samples(self.synapse, inputs), num_steps, state)[0]
        return trace if is_plain(self) else CalledTrace(*trace)


class Network(nn.Module):
    """A chain of layers; abstract.

    Args:
        num_steps: T where the input does not change over time.
        make_layers: makes the layers by name, in order; the last is the readout.
    """

    stackable: ClassVar[bool] = False
    """Whether its layers can be stacked: its synapses are dense.

    Not inherited: a class says it of what it computes itself."""

    @checked
    def __init__(self, num_steps: Steps, make_layers: Callable[[], dict[str, Layer]]) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.constant = True
        """Whether an input of one step stands for all ``num_steps``; a network that is fed sequences runs one step."""
        # what the constructors draw is drawn again, in an order of our own
        with torch.random.fork_rng(devices=[]):
            self.layers = nn.ModuleDict(make_layers())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all start values anew, layer by layer: the neuron's parameters, the synapse, the feedback.

        This is the order of the tutorials of snnTorch and Norse, so that a seed gives the start that their code gives.
        """
        for name, layer in self.layers.items():
            neuron: Neuron = layer.neuron  # type: ignore[assignment]
            with located("readout" if name == "readout" else "neuron"):
                neuron.reset_parameters()
            neuron.reset_synapse(layer.synapse)  # type: ignore[arg-type]
            neuron.reset_feedback()

    def forward(
        self,
        inputs: Tensor | Events,
        states: Sequence[Any] | None = None,
        num_steps: int | None = None,
        reduced: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> list[Any]:
        """Run the network.

        Args:
            inputs: ``[T, B, *N]``, or ``[1, B, *N]`` for an input that does not change during ``num_steps`` steps where
                the network is ``constant``; one that begins with a dense synapse takes
                :class:`~snnexp.events.Events` too.
            states: one state per layer, from earlier traces; zeros without.
            num_steps: T where it is not the network's own.
            reduced: by layer, the statistics that are read of it; of one that is not named, the trace is whole.

        Returns:
            One trace per layer, the readout's last.
        """
        num_steps = self._steps(inputs) if num_steps is None else num_steps
        layers: dict[str, Any] = dict(self.layers.items())
        if not all(is_plain(layer) and type(layer).forward is Layer.forward for layer in layers.values()):
            return self._layer_by_layer(inputs, states or [None] * len(layers), num_steps, reduced)
        first, *others = (layer.synapse for layer in layers.values())
        current: Tensor | None = _arriving(inputs, first)
        traces: list[Any] = []
        for (name, layer), state, synapse in zip(
            layers.items(), states or [None] * len(layers), [*others, None], strict=True
        ):
            trace, current = layer.neuron.unroll(current, num_steps, state, synapse, reduced.get(name))
            traces.append(trace)
        return traces

    def _layer_by_layer(
        self, inputs: Tensor | Events, states: Sequence[Any], num_steps: int, reduced: Mapping[str, Sequence[str]]
    ) -> list[Any]:
        """:meth:`forward` by calls of the layers, which have hooks."""
        spikes = inputs.dense() if isinstance(inputs, Events) else inputs
        traces: list[Any] = []
        for (name, layer), state in zip(self.layers.items(), states, strict=True):
            trace: Trace = without_tuple(layer(spikes, num_steps, state))
            traces.append(trace.reduced(reduced[name]) if name in reduced else trace)
            spikes = trace.spikes
        return traces

    def with_currents(self, inputs: Tensor | Events) -> Iterator[tuple[Tensor, Trace]]:
        """What :meth:`forward` computes, layer by layer, with the current of each layer ``[T, B, *N]``.

        Each step of a current is a value of its own, so that a gradient tells what every step of every layer adds.
        """
        currents: list[Tensor] = []

        def expand(neuron: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            current, num_steps, *others = arguments
            currents.append(current.expand(num_steps, *current.shape[1:]).contiguous())
            return (currents[-1], num_steps, *others)

        hooks = [neuron.register_forward_pre_hook(expand) for neuron in self.neurons().values()]
        try:
            traces = self(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return zip(currents, traces, strict=True)

    def _steps(self, inputs: Tensor | Events) -> int:
        return self.num_steps if self.constant and inputs.shape[0] == 1 else inputs.shape[0]

    def neurons(self) -> dict[str, Neuron]:
        """The neuron of each layer, by the layer's name."""
        return {name: layer.neuron for name, layer in self.layers.items()}  # type: ignore[misc]

    def deliveries(
        self, traces: Sequence[Trace | Reduced], inputs: Tensor | Events | None = None
    ) -> Iterator[tuple[str, Tensor, nn.Linear | nn.Conv2d | int]]:
        """How many spikes arrive where, between layers and from a layer to itself.

        Yields the layer that they arrive at, spikes ``[.., B, *N]``, those of layers summed over time, and the synapse
        or its fan-out. ``inputs`` are counted too where they are given, that is where they are spikes.
        """
        layers: dict[str, Any] = dict(self.layers.items())
        names = list(layers)
        if inputs is not None:
            yield names[0], inputs.dense() if isinstance(inputs, Events) else inputs, layers[names[0]].synapse
        for trace, following in zip(traces, names[1:], strict=False):
            yield following, trace.spike_count.unsqueeze(0), layers[following].synapse
        for trace, (name, layer) in zip(traces, layers.items(), strict=True):
            if layer.neuron.feedback_synapse is not None:
                # what fires in the last step arrives after the end
                yield name, (trace.spike_count - trace.last_spikes).unsqueeze(0), layer.neuron.feedback_synapse


def _arriving(inputs: Tensor | Events, synapse: Dense | nn.Conv2d) -> Tensor:
    if not isinstance(inputs, Events):
        return over_samples(synapse, inputs)
    # what a subclass or a hook computes, only a call knows
    if type_before_parametrizations(synapse) in (Dense, StackedDense) and is_plain(synapse):
        return inputs.through(cast(Dense, synapse))
    return over_samples(synapse, inputs.dense())


def stack(networks: Sequence[Network]) -> Network:
    """One network of M that differ in numbers alone: each parameter is theirs, with the member axis first.

    The member axis is the first neuron axis, so that features are ``(M, n)`` and sequences ``[T, B, M, n]``; the input
    may be ``[T, B, 1, *N]``, the same for all. Only dense synapses can be stacked.
    """
    made = copy.deepcopy(networks[0])
    states = [network.state_dict() for network in networks]
    modules = dict(made.named_modules())
    for key in states[0]:
        path, _, name = key.rpartition(".")
        values = torch.stack([state[key] for state in states])
        # one value for the layer of a member
        values = values.unsqueeze(1) if values.ndim == 1 else values
        owner = modules[path]
        if name in owner._parameters:
            owner._parameters[name] = nn.Parameter(values, owner._parameters[name].requires_grad)
        else:
            owner._buffers[name] = values
    for path, module in modules.items():
        # one without autapses multiplies for members as it is
        if isinstance(module, nn.Linear) and not isinstance(module, Recurrence):
            # weights are in place, and how they are multiplied is the class's alone
            module.__class__ = StackedDense
        if isinstance(module, Neuron):
            module.take_place_of([cast(Neuron, network.get_submodule(path)) for network in networks])
    return made


class MLP(Network):
    """A multilayer network of dense synapses, inputs - hidden[0] - ... - outputs.

    Args:
        inputs: shape of one input, flattened.
        outputs: neurons of the readout.
        neuron: makes the hidden layers.
        readout: makes the last layer.
        num_steps: T where the input does not change over time.
        hidden: sizes of the hidden layers; none gives a single layer.
    """

    stackable = True

    @checked
    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: int,
        neuron: NeuronFactory,
        readout: NeuronFactory,
        num_steps: Steps,
        hidden: Sequence[Count] = (128,),
    ) -> None:
        super().__init__(num_steps, lambda: _dense_layers(inputs, hidden, outputs, neuron, readout))

    @staticmethod
    def shapes(inputs: tuple[int, ...], outputs: int, hidden: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
        """Of each layer in order: the node that makes its neurons, and their axes."""
        return [*(("neuron", (size,)) for size in hidden), ("readout", (outputs,))]


class Conv(Network):
    """A convolutional network: strided convolutions, then dense layers.

    Args:
        inputs: shape ``(C, H, W)`` of one input.
        outputs: neurons of the readout.
        neuron: makes the layers before the readout.
        readout: makes the last layer.
        num_steps: T where the input does not change over time.
        channels: channels of the convolutions.
        kernel_size: side of each kernel.
        stride: stride of each convolution, which takes the place of pooling.
        hidden: sizes of dense layers between the convolutions and the readout.

    Raises:
        ConfigError: the input is no map, or is too small for that many convolutions.
    """

    @checked
    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: int,
        neuron: NeuronFactory,
        readout: NeuronFactory,
        num_steps: Steps,
        channels: Sequence[Count] = (8, 16),
        kernel_size: Count = 5,
        stride: Count = 2,
        hidden: Sequence[Count] = (),
    ) -> None:
        maps = [inputs, *_convolved(inputs, channels, kernel_size, stride)]

        def make_layers() -> dict[str, Layer]:
            convolutions = _conv_layers(maps, kernel_size, stride, neuron)
            return convolutions | _dense_layers(maps[-1], hidden, outputs, neuron, readout)

        super().__init__(num_steps, make_layers)

    @staticmethod
    def shapes(
        inputs: tuple[int, ...],
        outputs: int,
        channels: Sequence[int],
        kernel_size: int,
        stride: int,
        hidden: Sequence[int],
    ) -> list[tuple[str, tuple[int, ...]]]:
        """As of :meth:`MLP.shapes`."""
        maps = [("neuron", shape) for shape in _convolved(inputs, channels, kernel_size, stride)]
        return [*maps, *(("neuron", (size,)) for size in hidden), ("readout", (outputs,))]


def _convolved(
    inputs: tuple[int, ...], channels: Sequence[int], kernel_size: int, stride: int
) -> list[tuple[int, ...]]:
    """The maps ``(C, H, W)`` behind each convolution.

    Raises:
        ConfigError: the input is no map, or nothing of it is left.
    """
    if len(inputs) != 3:
        raise ConfigError(f"inputs: got {list(inputs)}, a conv network needs images [C, H, W]; use network=mlp")
    maps = [tuple(inputs)]
    for index, out_channels in enumerate(channels, start=1):
        side = [(length - kernel_size) // stride + 1 for length in maps[-1][1:]]
        if min(side) < 1:
            raise ConfigError(
                f"channels: nothing of the image is left for convolution {index}; use fewer channels, a smaller "
                "kernel_size or stride"
            )
        maps.append((out_channels, *side))
    return maps[1:]


def _conv_layers(
    maps: Sequence[tuple[int, ...]], kernel_size: int, stride: int, neuron: NeuronFactory
) -> dict[str, Layer]:
    layers = {}
    for index, (before, after) in enumerate(itertools.pairwise(maps), start=1):
        layer_neuron = neuron(after)
        convolution = nn.Conv2d(before[0], after[0], kernel_size, stride, bias=layer_neuron.synapse_bias)
        layers[f"conv{index}"] = Layer(convolution, layer_neuron)
    return layers


def _dense_layers(
    inputs: tuple[int, ...], hidden: Sequence[int], outputs: int, neuron: NeuronFactory, readout: NeuronFactory
) -> dict[str, Layer]:
    layers = {}
    fan_in = torch.Size(inputs).numel()
    names = [*(f"hidden{index}" for index in range(1, len(hidden) + 1)), "readout"]
    for name, size in zip(names, [*hidden, outputs], strict=True):
        layer_neuron = (readout if name == "readout" else neuron)(size)
        layers[name] = Layer(Dense(fan_in, size, bias=layer_neuron.synapse_bias), layer_neuron)
        fan_in = size
    return layers
