"""A layer: synapses that turn what arrives into currents, and the neurons that receive their sum."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from snnexp.initializers import Initializer
from snnexp.neurons import Neuron, Trace, TupleTrace, is_plain, stacked_linear, time_distributed
from snnexp.sparse import SparseSpikes

NeuronFactory = Callable[[int | tuple[int, ...]], Neuron]
"""Makes a neuron layer of given features."""
Init = Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"]
"""Names of :mod:`torch.nn.init`, with its own defaults."""
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""What in an evaluation passes spikes on as they are."""
RESETS = ("reset", "reset_mem")
"""Methods that let a module forget what it has seen: neurons of SpikingJelly and of snnTorch have one of them."""


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
        return stacked_linear(inputs.flatten(2), self.weight, self.bias)


class Layer(nn.Module):
    """Synapses, whose currents add up, then neurons.

    Args:
        synapse: a module from ``[B, *N]`` to ``[B, *M]``; one for each of several inputs.
        neuron: receives the sum of the currents.
        inputs: names of the layers that are read, ``input`` for the network's input; by default the layer before.
    """

    def __init__(
        self, synapse: nn.Module | Mapping[str, nn.Module], neuron: Neuron, inputs: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.synapse = synapse if isinstance(synapse, nn.Module) else nn.ModuleDict(dict(synapse))
        self.neuron = neuron

    def synapses(self, sources: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
        """The synapse behind each source."""
        if isinstance(self.synapse, nn.ModuleDict):
            yield from ((source, self.synapse[source]) for source in sources)
        else:
            yield from ((source, self.synapse) for source in sources)

    def forward(self, inputs: Tensor | Sequence[Tensor], num_steps: int | None = None, state: Any = None) -> Trace:
        """What a network computes of a layer that has hooks.

        Args:
            inputs: ``[T, B, *N]`` or ``[1, B, *N]``, as of the network; one for each of the layer's inputs.
            num_steps: T.
            state: of an earlier trace.
        """
        several = [inputs] if isinstance(inputs, Tensor) else inputs
        modules = [*self.synapse.values()] if isinstance(self.synapse, nn.ModuleDict) else [self.synapse]
        parts = [time_distributed(module, part) for module, part in zip(modules, several, strict=True)]
        trace: Any = self.neuron.unroll(sum_currents(parts), num_steps, state)[0]
        return trace if is_plain(self) else TupleTrace(*trace)


def sum_currents(currents: Sequence[Tensor]) -> Tensor:
    """The sum of currents; one of a single step stands for all steps."""
    found = currents[0]
    for current in currents[1:]:
        found = found + current
    return found


def synaptic_current(inputs: Tensor | SparseSpikes, synapse: nn.Module) -> Tensor:
    """The current that ``inputs``, ``[T, B, *N]``, cause behind a synapse."""
    if not isinstance(inputs, SparseSpikes):
        # steps that repeat the same memory are one
        still = len(inputs) > 1 and inputs.stride(0) == 0
        return time_distributed(synapse, inputs[:1] if still else inputs)
    # what a subclass or a hook computes, only a call knows
    if type_before_parametrizations(synapse) in (Dense, StackedDense) and is_plain(synapse):
        return inputs.linear(cast(Dense, synapse))
    return time_distributed(synapse, inputs.dense())


def layer_output(neuron: Neuron, trace: Trace) -> Tensor:
    """What the next layers get: spikes, or the membrane of neurons that never fire."""
    return trace.spikes if neuron.spikes else trace.membrane


def synops_layer(synapse: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """The weights that spikes meet in a synapse, by which its operations are counted; None where that is not known.

    In a sequence of modules these are the first ones, if none follow.
    """
    if isinstance(synapse, nn.Sequential):
        modules = [module for module in synapse if not isinstance(module, PASSING)]
        if [type(module) for module in modules[:2]] == [nn.Flatten, nn.Linear]:
            modules = modules[1:]
        weighted = any(weight.ndim > 1 for module in modules[1:] for weight in module.parameters())
        return synops_layer(modules[0]) if modules and not weighted else None
    # a subclass may compute something else
    kind = type_before_parametrizations(synapse)
    if kind is nn.Conv2d:
        return cast(nn.Conv2d, synapse) if cast(nn.Conv2d, synapse).padding_mode == "zeros" else None
    return cast(nn.Linear, synapse) if kind in (nn.Linear, Dense, StackedDense) else None


def reset_methods(module: nn.Module) -> list[Callable[[], object]]:
    """The methods of :data:`RESETS` that need no arguments, of a module and of all within it, the inner ones first."""
    found = [getattr(each, name, None) for each in reversed([*module.modules()]) for name in RESETS]
    methods = [method for method in found if callable(method)]
    return [method for method in methods if not any(map(_is_required, inspect.signature(method).parameters.values()))]


def _is_required(parameter: inspect.Parameter) -> bool:
    several = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in several


@torch.no_grad()
def reset_synapse(synapse: nn.Module, neuron: Neuron) -> None:
    """Draw the weights of a synapse anew; a module that cannot do so keeps what its constructor has drawn."""
    if type_before_parametrizations(synapse) in (nn.Linear, nn.Conv2d, Dense):
        neuron.reset_synapse(cast(nn.Linear, synapse))
    elif callable(reset := getattr(synapse, "reset_parameters", None)):
        reset()
    elif type(synapse).__module__.startswith("torch."):
        for module in synapse.children():
            reset_synapse(module, neuron)


@torch.no_grad()
def initialize(synapse: nn.Module, init: Init | Initializer) -> None:
    """Draw the weights of all linear layers and convolutions of a synapse; their biases stay."""
    for module in synapse.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(init, str):
                getattr(nn.init, f"{init}_")(module.weight)
            else:
                module.weight.copy_(init(tuple(module.weight.shape)))
