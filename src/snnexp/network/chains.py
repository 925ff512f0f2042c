"""Networks that YAML writes shortest: chains of layers, dense or convolutional."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from snnexp.errors import ConfigError
from snnexp.network.graph import Network
from snnexp.network.layers import Dense, Layer, NeuronFactory
from snnexp.spec.annotations import Count, Steps
from snnexp.spec.checked import checked


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
