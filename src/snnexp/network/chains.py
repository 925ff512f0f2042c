"""Networks that YAML writes shortest: chains of layers, dense or convolutional."""

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
"""Of a kernel or a stride: a side, or height and width."""


class MLP(Network):
    """A multilayer network of dense synapses, inputs - hidden[0] - ... - outputs.

    Args:
        inputs: shape of one input, flattened.
        outputs: neurons of the readout.
        neuron: makes the hidden layers.
        readout: makes the last layer.
        num_steps: T where the input does not change over time.
        hidden: sizes of the hidden layers; none gives a single layer.
        norm: of the currents of hidden layers: ``batch`` over samples and steps, or ``layer`` over neurons; None for
            none.
        dropout: the probability that what a layer hands on is 0, drawn in training for each sample, neuron and step.
        bias: whether synapses have a bias; None where the model of the neurons says it.
        init: how weights are drawn, a name as of :mod:`torch.nn.init` or an initializer; None where the model says it.
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
        """Of each layer in order: the node that makes its neurons, and their axes."""
        return [*(("neuron", (size,)) for size in hidden), ("readout", (outputs,))]


class Conv(Network):
    """A convolutional network: convolutions, perhaps with pooling, then dense layers.

    Args:
        inputs: shape ``(C, H, W)`` of one input.
        outputs: neurons of the readout.
        neuron: makes the layers before the readout.
        readout: makes the last layer.
        num_steps: T where the input does not change over time.
        channels: channels of the convolutions.
        kernel_size: side of each kernel, or height and width.
        stride: of each convolution, or one for each axis.
        hidden: sizes of dense layers between the convolutions and the readout.
        padding: zeros around each map, or for each axis; ``same`` keeps the size of maps, with stride 1.
        norm: as of :class:`MLP`; ``batch`` normalises each channel, ``layer`` a map with all its channels.
        pool: of each convolution: the ``max``, ``average`` or ``sum`` of windows that do not overlap; None for none.
        pool_size: side of a window, or height and width.
        pool_after: what is pooled: currents behind the ``synapse``, or the spikes of a ``neuron``.
        dropout: as of :class:`MLP`.
        bias: as of :class:`MLP`.
        init: as of :class:`MLP`.

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
        maps = _convolved(inputs, channels, kernel_size, stride, padding, pool, pool_size, pool_after)
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
        """As of :meth:`MLP.shapes`."""
        found = _convolved(inputs, channels, kernel_size, stride, padding, pool, pool_size, pool_after)
        maps = [("neuron", shape) for shape, _ in found]
        return [*maps, *(("neuron", (size,)) for size in hidden), ("readout", (outputs,))]


def _pair(sides: Any) -> tuple[int, int]:
    return (sides[0], sides[1]) if isinstance(sides, list | tuple) else (sides, sides)


def _convolved(
    inputs: tuple[int, ...],
    channels: Sequence[int],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    pool: str | None,
    pool_size: Any,
    pool_after: str,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of each convolution, the maps ``(C, H, W)`` of its neurons, and those that it hands on.

    Raises:
        ConfigError: the input is no map, or nothing of it is left.
    """
    if len(inputs) != 3:
        raise ConfigError(f"inputs: got {list(inputs)}, a conv network needs images [C, H, W]; use network=mlp")
    if padding == "same" and _pair(stride) != (1, 1):
        raise ConfigError(f"padding: got same with stride {stride}, must have stride 1")
    found, sides = [], list(inputs[1:])
    for index, out_channels in enumerate(channels, start=1):
        if padding != "same":
            places = zip(sides, _pair(kernel_size), _pair(stride), _pair(padding), strict=True)
            sides = [(side + 2 * zeros - kernel) // step + 1 for side, kernel, step, zeros in places]
        pooled = [side // size for side, size in zip(sides, _pair(pool_size), strict=True)] if pool else sides
        if min(*sides, *pooled) < 1:
            raise ConfigError(
                f"channels: nothing of the image is left for convolution {index}; use fewer channels, a smaller "
                f"kernel_size or stride{', or no pool' if pool else ''}"
            )
        neurons = sides if pool_after == "neuron" else pooled
        found.append(((out_channels, *neurons), (out_channels, *pooled)))
        sides = pooled
    return found


def _norm(kind: Norm, size: int, maps: bool) -> nn.Module:
    """The norm of a layer's currents: of so many neurons, or channels of maps."""
    if kind == "batch":
        return nn.BatchNorm2d(size) if maps else nn.BatchNorm1d(size)
    return nn.GroupNorm(1, size) if maps else nn.LayerNorm(size)


def _pooling(kind: Pool, size: tuple[int, int]) -> Callable[[], nn.Module]:
    """What makes the pooling of windows."""
    if kind == "max":
        return lambda: nn.MaxPool2d(size)
    return lambda: nn.AvgPool2d(size, divisor_override=1 if kind == "sum" else None)


@dataclass
class _Chain:
    """Makes the layers of a chain; the fields are those of :class:`MLP` and :class:`Conv`."""

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
        """Layers of neurons on maps; of each, the shape of its neurons is the first."""
        layers = {}
        for index, (shape, _) in enumerate(maps, start=1):
            neuron = self.neuron(shape)
            synapse = nn.Conv2d(channels, shape[0], **convolution, bias=self._biased(neuron))
            behind = [_norm(self.norm, shape[0], maps=True)] if self.norm else []
            behind += [self.pooling()] if self.pooling and self.pool_after == "synapse" else []
            layers[f"conv{index}"] = Layer(_in_row([*self._before(index > 1), synapse, *behind]), neuron)
            channels = shape[0]
        return layers

    def dense(
        self, inputs: tuple[int, ...], hidden: Sequence[int], outputs: int, behind_maps: bool = False
    ) -> dict[str, Layer]:
        """Dense layers and the readout, behind the input or behind convolutions."""
        layers = {}
        fan_in = torch.Size(inputs).numel()
        names = [*(f"hidden{index}" for index in range(1, len(hidden) + 1)), "readout"]
        for index, (name, size) in enumerate(zip(names, [*hidden, outputs], strict=True)):
            is_readout = name == "readout"
            neuron = (self.readout if is_readout else self.neuron)(size)
            synapse = Dense(fan_in, size, bias=self._biased(neuron))
            norm = [_norm(self.norm, size, maps=False)] if self.norm and not is_readout else []
            before = self._before(index > 0 or behind_maps, behind_maps and index == 0)
            layers[name] = Layer(_in_row([*before, synapse, *norm]), neuron)
            fan_in = size
        return layers

    def _biased(self, neuron: Neuron) -> bool:
        return neuron.synapse_bias if self.bias is None else self.bias

    def _before(self, behind_layer: bool, behind_maps: bool = True) -> list[nn.Module]:
        """What comes between a layer and the synapse behind it; nothing comes between the input and the first one."""
        pooled = behind_layer and behind_maps and self.pooling is not None and self.pool_after == "neuron"
        found = [self.pooling()] if pooled and self.pooling is not None else []
        return [*found, *([nn.Dropout(self.dropout)] if behind_layer and self.dropout else [])]


def _in_row(modules: Sequence[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
