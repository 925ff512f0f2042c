"""Sequential networks: dense and convolutional chains of layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from snnexp.errors import ConfigError
from snnexp.initializers import Initializer
from snnexp.network.layers import Dense, Init, Layer, NeuronFactory
from snnexp.network.network import Network
from snnexp.neurons import Neuron
from snnexp.spec.annotations import BelowOne, Count, Index, Steps
from snnexp.spec.checked import checked

Norm = Literal["batch", "layer"]
Pool = Literal["max", "average", "sum"]
Place = Literal["synapse", "neuron"]
Sides = int | Sequence[int]
"""Size of a kernel or a stride: one number for both axes, or height and width."""


class MLP(Network):
    """A multilayer perceptron of dense synapses: inputs - hidden[0] - ... - outputs.

    Args:
        inputs: shape of one input, which is flattened.
        outputs: number of readout neurons.
        neuron: creates the neurons of the hidden layers.
        readout: creates the neurons of the last layer.
        num_steps: T for an input that is constant over time.
        hidden: sizes of the hidden layers; an empty list gives a single layer.
        norm: normalization of hidden currents: ``batch`` over samples and steps, ``layer`` over neurons, or None.
        dropout: probability of zeroing an output of a layer in training, drawn per sample, neuron and step.
        bias: whether synapses have a bias; None for the default of the neuron.
        init: weight initialization, the name of a :mod:`torch.nn.init` function or an initializer; None for the
            default of the neuron.
    """

    stackable = True
    unstackable: ClassVar[tuple[str, ...]] = ("norm", "dropout")

    @checked
    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: int,
        neuron: NeuronFactory,
        readout: NeuronFactory,
        num_steps: Steps,
        hidden: Sequence[Count] = (128,),
        norm: Norm | None = None,
        dropout: BelowOne = 0.0,
        bias: bool | None = None,
        init: Init | Initializer | None = None,
    ) -> None:
        chain = _Chain(neuron, readout, norm, dropout, bias)
        super().__init__(num_steps, lambda: chain.dense(inputs, hidden, outputs), init)

    @staticmethod
    def shapes(inputs: tuple[int, ...], outputs: int, hidden: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
        """Return for each layer in order the config node of its neurons, and their axes."""
        return [*(("neuron", (size,)) for size in hidden), ("readout", (outputs,))]


class Conv(Network):
    """A convolutional network: convolutions with optional pooling, then dense layers.

    Args:
        inputs: shape ``(C, H, W)`` of one input.
        outputs: number of readout neurons.
        neuron: creates the neurons of all layers before the readout.
        readout: creates the neurons of the last layer.
        num_steps: T for an input that is constant over time.
        channels: output channels of each convolution.
        kernel_size: kernel size of all convolutions, one number or height and width.
        stride: stride of all convolutions, one number or one per axis.
        hidden: sizes of dense layers between the convolutions and the readout.
        padding: zero padding, one number or one per axis; ``same`` keeps the size of feature maps, with stride 1.
        norm: see :class:`MLP`; ``batch`` normalizes each channel, ``layer`` all channels together.
        pool: pooling after each convolution, over non-overlapping windows: ``max``, ``average``, ``sum`` or None.
        pool_size: size of a window, one number or height and width.
        pool_after: what is pooled: currents after the ``synapse``, or spikes after the ``neuron``.
        dropout: see :class:`MLP`.
        bias: see :class:`MLP`.
        init: see :class:`MLP`.

    Raises:
        ConfigError: the input has no shape [C, H, W], or is too small for that many convolutions.
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
        kernel_size: Count | tuple[Count, Count] = 5,
        stride: Count | tuple[Count, Count] = 2,
        hidden: Sequence[Count] = (),
        padding: Literal["same"] | Index | tuple[Index, Index] = 0,
        norm: Norm | None = None,
        pool: Pool | None = None,
        pool_size: Count | tuple[Count, Count] = 2,
        pool_after: Place = "synapse",
        dropout: BelowOne = 0.0,
        bias: bool | None = None,
        init: Init | Initializer | None = None,
    ) -> None:
        maps = _conv_shapes(inputs, channels, kernel_size, stride, padding, pool, pool_size, pool_after)
        sides: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        convolution = {name: each if each == "same" else _pair(each) for name, each in sides.items()}
        pooling = None if pool is None else _pooling(pool, _pair(pool_size))
        chain = _Chain(neuron, readout, norm, dropout, bias, pooling, pool_after)

        def make_layers() -> dict[str, Layer]:
            convolutions = chain.convolutions(inputs[0], maps, convolution)
            return convolutions | chain.dense(maps[-1][1] if maps else inputs, hidden, outputs, bool(maps))

        super().__init__(num_steps, make_layers, init)

    @staticmethod
    def shapes(
        inputs: tuple[int, ...],
        outputs: int,
        channels: Sequence[int],
        kernel_size: Sides,
        stride: Sides,
        hidden: Sequence[int],
        padding: Any = 0,
        pool: str | None = None,
        pool_size: Sides = 2,
        pool_after: str = "synapse",
    ) -> list[tuple[str, tuple[int, ...]]]:
        """See :meth:`MLP.shapes`."""
        shapes = _conv_shapes(inputs, channels, kernel_size, stride, padding, pool, pool_size, pool_after)
        maps = [("neuron", shape) for shape, _ in shapes]
        return [*maps, *(("neuron", (size,)) for size in hidden), ("readout", (outputs,))]


def _pair(sides: Any) -> tuple[int, int]:
    return (sides[0], sides[1]) if isinstance(sides, list | tuple) else (sides, sides)


def _conv_shapes(
    inputs: tuple[int, ...],
    channels: Sequence[int],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    pool: str | None,
    pool_size: Any,
    pool_after: str,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return for each convolution the shape ``(C, H, W)`` of its neurons, and that of its output after pooling.

    Raises:
        ConfigError: the input has no shape [C, H, W], or a feature map would be empty.
    """
    if len(inputs) != 3:
        raise ConfigError(f"inputs: got {list(inputs)}, a conv network needs images [C, H, W]; use network=mlp")
    if padding == "same" and _pair(stride) != (1, 1):
        raise ConfigError(f"padding: got same with stride {stride}, requires stride 1")
    shapes, sides = [], list(inputs[1:])
    for index, out_channels in enumerate(channels, start=1):
        if padding != "same":
            axes = zip(sides, _pair(kernel_size), _pair(stride), _pair(padding), strict=True)
            sides = [(side + 2 * zeros - kernel) // step + 1 for side, kernel, step, zeros in axes]
        pooled = [side // size for side, size in zip(sides, _pair(pool_size), strict=True)] if pool else sides
        if min(*sides, *pooled) < 1:
            raise ConfigError(
                f"channels: the output of convolution {index} is empty; use fewer channels, a smaller "
                f"kernel_size or stride{', or no pool' if pool else ''}"
            )
        neurons = sides if pool_after == "neuron" else pooled
        shapes.append(((out_channels, *neurons), (out_channels, *pooled)))
        sides = pooled
    return shapes


def _norm(kind: Norm, size: int, maps: bool) -> nn.Module:
    """Return the normalization of currents for ``size`` neurons, or channels of feature maps."""
    if kind == "batch":
        return nn.BatchNorm2d(size) if maps else nn.BatchNorm1d(size)
    return nn.GroupNorm(1, size) if maps else nn.LayerNorm(size)


def _pooling(kind: Pool, size: tuple[int, int]) -> Callable[[], nn.Module]:
    """Return a constructor of the pooling module."""
    if kind == "max":
        return lambda: nn.MaxPool2d(size)
    return lambda: nn.AvgPool2d(size, divisor_override=1 if kind == "sum" else None)


@dataclass
class _Chain:
    """Builds the layers of a chain; see :class:`MLP` and :class:`Conv` for the fields."""

    neuron: NeuronFactory
    readout: NeuronFactory
    norm: Norm | None
    dropout: float
    bias: bool | None
    pooling: Callable[[], nn.Module] | None = None
    pool_after: Place = "synapse"

    def convolutions(
        self, channels: int, maps: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], convolution: dict[str, Any]
    ) -> dict[str, Layer]:
        """Return the convolutional layers; ``maps`` are the results of :func:`_conv_shapes`."""
        layers = {}
        for index, (shape, _) in enumerate(maps, start=1):
            neuron = self.neuron(shape)
            synapse = nn.Conv2d(channels, shape[0], **convolution, bias=self._has_bias(neuron))
            after = [_norm(self.norm, shape[0], maps=True)] if self.norm else []
            after += [self.pooling()] if self.pooling and self.pool_after == "synapse" else []
            layers[f"conv{index}"] = Layer(_sequential([*self._before(index > 1), synapse, *after]), neuron)
            channels = shape[0]
        return layers

    def dense(
        self, inputs: tuple[int, ...], hidden: Sequence[int], outputs: int, after_maps: bool = False
    ) -> dict[str, Layer]:
        """Return the dense layers and the readout, after the input or after convolutions."""
        layers = {}
        fan_in = torch.Size(inputs).numel()
        names = [*(f"hidden{index}" for index in range(1, len(hidden) + 1)), "readout"]
        for index, (name, size) in enumerate(zip(names, [*hidden, outputs], strict=True)):
            is_readout = name == "readout"
            neuron = (self.readout if is_readout else self.neuron)(size)
            synapse = Dense(fan_in, size, bias=self._has_bias(neuron))
            norm = [_norm(self.norm, size, maps=False)] if self.norm and not is_readout else []
            before = self._before(index > 0 or after_maps, after_maps and index == 0)
            layers[name] = Layer(_sequential([*before, synapse, *norm]), neuron)
            fan_in = size
        return layers

    def _has_bias(self, neuron: Neuron) -> bool:
        return neuron.synapse_bias if self.bias is None else self.bias

    def _before(self, after_layer: bool, after_maps: bool = True) -> list[nn.Module]:
        """Return the modules in front of a synapse: pooling and dropout, if it is not the first one."""
        pooled = after_layer and after_maps and self.pooling is not None and self.pool_after == "neuron"
        pooling = [self.pooling()] if pooled and self.pooling is not None else []
        return [*pooling, *([nn.Dropout(self.dropout)] if after_layer and self.dropout else [])]


def _sequential(modules: Sequence[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
