"""Layers: synapses that compute currents, and neurons that receive the sum of these currents."""

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
"""Creates a neuron layer with the given features."""
Init = Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"]
"""Names of :mod:`torch.nn.init` functions, used with their default arguments."""
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that are the identity in evaluation."""
RESET_METHODS = ("reset", "reset_mem")
"""Methods that reset the state of a module, as defined by neurons of SpikingJelly and snnTorch."""


class Dense(nn.Linear):
    """Linear synapse that flattens the neuron axes of its input: ``[*, N...]`` to ``[*, out_features]``."""

    all_to_all = True

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1))


class StackedDense(Dense):
    """M stacked dense synapses, weight ``[M, out, in]`` and bias ``[M, out]``: ``[*, M, N...]`` to ``[*, M, out]``.

    An input ``[*, 1, N...]`` is shared by all members.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        return stacked_linear(inputs.flatten(2), self.weight, self.bias)


class Layer(nn.Module):
    """One or several synapses, whose currents are added, and the neurons that receive the sum.

    Args:
        synapse: a module from ``[B, *N]`` to ``[B, *M]``; with several inputs, a mapping from their names to modules.
        neuron: the neurons.
        inputs: names of the source layers, ``input`` for the network's input; by default the previous layer.
    """

    def __init__(
        self, synapse: nn.Module | Mapping[str, nn.Module], neuron: Neuron, inputs: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.synapse = synapse if isinstance(synapse, nn.Module) else nn.ModuleDict(dict(synapse))
        self.neuron = neuron

    def synapses(self, sources: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
        """Yield each source and its synapse."""
        if isinstance(self.synapse, nn.ModuleDict):
            yield from ((source, self.synapse[source]) for source in sources)
        else:
            yield from ((source, self.synapse) for source in sources)

    def forward(self, inputs: Tensor | Sequence[Tensor], num_steps: int | None = None, state: Any = None) -> Trace:
        """Run the layer. A network calls this only if the layer has hooks.

        Args:
            inputs: ``[T, B, *N]`` or ``[1, B, *N]``, one for each input of the layer.
            num_steps: T.
            state: the state of an earlier trace.
        """
        sequences = [inputs] if isinstance(inputs, Tensor) else inputs
        modules = [*self.synapse.values()] if isinstance(self.synapse, nn.ModuleDict) else [self.synapse]
        parts = [time_distributed(module, part) for module, part in zip(modules, sequences, strict=True)]
        trace: Any = self.neuron.unroll(sum_currents(parts), num_steps, state)[0]
        return trace if is_plain(self) else TupleTrace(*trace)


def sum_currents(currents: Sequence[Tensor]) -> Tensor:
    """Return the sum of currents; those with a single step are broadcast over time."""
    total = currents[0]
    for current in currents[1:]:
        total = total + current
    return total


def synaptic_current(inputs: Tensor | SparseSpikes, synapse: nn.Module) -> Tensor:
    """Return the output of a synapse for inputs ``[T, B, *N]``."""
    if not isinstance(inputs, SparseSpikes):
        # an expanded time axis is computed once
        is_constant = len(inputs) > 1 and inputs.stride(0) == 0
        return time_distributed(synapse, inputs[:1] if is_constant else inputs)
    # a subclass or a hook may compute something else, so the module must be called
    if type_before_parametrizations(synapse) in (Dense, StackedDense) and is_plain(synapse):
        return inputs.linear(cast(Dense, synapse))
    return time_distributed(synapse, inputs.dense())


def layer_output(neuron: Neuron, trace: Trace) -> Tensor:
    """Return the output of a layer: spikes, or the membrane of non-spiking neurons."""
    return trace.spikes if neuron.spikes else trace.membrane


def synops_layer(synapse: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """Return the module by which synaptic operations of a synapse are counted; None if they are unknown.

    In a sequence, this is the first module with weights, if no other weights follow.
    """
    if isinstance(synapse, nn.Sequential):
        modules = [module for module in synapse if not isinstance(module, IDENTITIES)]
        if [type(module) for module in modules[:2]] == [nn.Flatten, nn.Linear]:
            modules = modules[1:]
        weighted = any(weight.ndim > 1 for module in modules[1:] for weight in module.parameters())
        return synops_layer(modules[0]) if modules and not weighted else None
    # a subclass may compute something else
    cls = type_before_parametrizations(synapse)
    if cls is nn.Conv2d:
        return cast(nn.Conv2d, synapse) if cast(nn.Conv2d, synapse).padding_mode == "zeros" else None
    return cast(nn.Linear, synapse) if cls in (nn.Linear, Dense, StackedDense) else None


def reset_methods(module: nn.Module) -> list[Callable[[], object]]:
    """Return the :data:`RESET_METHODS` without required arguments of a module and its submodules, innermost first."""
    attributes = [getattr(each, name, None) for each in reversed([*module.modules()]) for name in RESET_METHODS]
    methods = [method for method in attributes if callable(method)]
    return [method for method in methods if not any(map(_is_required, inspect.signature(method).parameters.values()))]


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variadic


@torch.no_grad()
def reset_synapse(synapse: nn.Module, neuron: Neuron) -> None:
    """Reinitialize the weights of a synapse; a module without ``reset_parameters`` keeps its weights."""
    if type_before_parametrizations(synapse) in (nn.Linear, nn.Conv2d, Dense):
        neuron.reset_synapse(cast(nn.Linear, synapse))
    elif callable(reset := getattr(synapse, "reset_parameters", None)):
        reset()
    elif type(synapse).__module__.startswith("torch."):
        for module in synapse.children():
            reset_synapse(module, neuron)


@torch.no_grad()
def initialize(synapse: nn.Module, init: Init | Initializer) -> None:
    """Initialize the weights of all linear and convolutional modules of a synapse; biases are not changed."""
    for module in synapse.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(init, str):
                getattr(nn.init, f"{init}_")(module.weight)
            else:
                module.weight.copy_(init(tuple(module.weight.shape)))
