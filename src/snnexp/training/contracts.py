"""Interface checks for assembled parts, built-in or user-defined, done once and before anything is written.

Tests hold the parts of this package to it; what a user's parts return is looked at with two samples. Nothing here moves
the random numbers of a run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from snnexp.config import user_parts
from snnexp.data import DataModule, Description
from snnexp.errors import ConfigError
from snnexp.isolation import random_states, restored
from snnexp.losses import Loss
from snnexp.network import Network
from snnexp.neurons import Neuron, Trace
from snnexp.text import shown
from snnexp.training.opaque import Opaque

READS = ("membrane", "spike_count", "max_membrane")
DECODERS = ("spike_count", "max_voltage")
SAMPLES = 2


def require_kind(part: Any, kind: type, key: str, hint: str = "") -> None:
    """Refuse what a target has made that is of no use in its place."""
    if not isinstance(part, kind):
        raise _refused(f"{key}: got {_a(part)}, must be a {kind.__module__}.{kind.__qualname__}{hint}")


def require_data(data: Any) -> None:
    """Refuse data that are no data module, and say how a dataset becomes one."""
    name = f"{type(data).__module__}.{type(data).__qualname__}"
    hint = f"; data=dataset data.dataset._target_={name} makes one of it" if hasattr(data, "__getitem__") else ""
    require_kind(data, DataModule, "data", hint)


def making_neurons(make: Callable[..., Any], key: str) -> Callable[..., Neuron]:
    """``make``, whose results are neurons that have an equation."""

    def checked(*arguments: Any, **named: Any) -> Neuron:
        neuron = make(*arguments, **named)
        require_kind(neuron, Neuron, key)
        for method in ("scan", "zero_state"):
            if getattr(type(neuron), method) is getattr(Neuron, method):
                raise _refused(f"{key}: {type(neuron).__name__} has no {method}, which every neuron needs")
        return neuron  # type: ignore[no-any-return]

    return checked


def require_loss(loss: Any) -> None:
    """Refuse a loss that does not say, or says wrongly, what it reads and what it fits."""
    name = type(loss).__name__
    for attribute, options in {"targets": None, "reads": READS, "decoder": DECODERS}.items():
        value = getattr(loss, attribute, None)
        if value is None:
            raise ConfigError(f"loss: {name} has no {attribute}; derive it from {Loss.__module__}.{Loss.__name__}")
        if options is not None and value not in options:
            raise ConfigError(f"loss: {name}.{attribute} is {shown(value)}, must be one of {', '.join(options)}")


def as_network(made: Any, data: DataModule, num_steps: int, constant: bool) -> Network:
    """What a target has made as a network; any other module than a :class:`Network` becomes an opaque one."""
    if not isinstance(made, Network):
        require_kind(made, nn.Module, "network")
        network = Opaque(made, num_steps)
        network.constant = constant
        # an even number, of which the half is a batch too
        example = torch.rand((1 if constant else num_steps, 2 * SAMPLES, *data.inputs), generator=torch.Generator())
        with restored(random_states()), unchanged(network), user_parts.running("network"):
            network.look(example, data.outputs)
        return network
    made.constant = constant
    require_network(made)
    return made


def require_network(network: Network) -> None:
    """Refuse a network whose layers are not the ones that everything but its ``forward`` goes through."""
    if type(network).forward is not Network.forward or "forward" in vars(network):
        raise ConfigError(
            f"network: {type(network).__name__} has a forward of its own, and figures, synaptic operations and stacks "
            "assume that its layers are all that is computed; derive it from torch.nn.Module instead of Network"
        )


def require_results(network: Network, loss: Any, data: DataModule, num_steps: int) -> None:
    """Run two samples through parts of a user's, and refuse results of another type or shape."""
    others: list[Any] = [loss, *(getattr(neuron, "surrogate", loss) for neuron in network.neurons().values())]
    if not any(map(_is_foreign, [*network.modules(), *others])):
        return
    with restored(random_states()), unchanged(network), torch.enable_grad():
        network.eval()
        for name, neuron in network.neurons().items():
            if _is_foreign(neuron):
                _require_neuron(neuron, "readout" if name == "readout" else "neuron")
        inputs = torch.rand((1 if network.constant else num_steps, SAMPLES, *data.inputs))
        _require_scalar(loss, network(inputs)[-1], data, any(weight.requires_grad for weight in network.parameters()))


@contextmanager
def unchanged(network: Network) -> Iterator[None]:
    """Restore modes, buffers and attributes such as counters; not every module of a user's could be copied."""
    attributes = [(vars(module), {**vars(module), "_buffers": {**module._buffers}}) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for now, before in attributes:
            now.clear()
            now.update(before)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _require_neuron(neuron: Neuron, key: str) -> None:
    current, name = torch.rand((2, SAMPLES, *neuron.features)), type(neuron).__name__
    with user_parts.running(key):
        state = neuron.zero_state(current[0])
        fits = isinstance(state, (tuple, list)) and all(isinstance(part, Tensor) for part in state)
        if not fits or any(part.shape != current[0].shape for part in state):
            raise ConfigError(f"{key}: {name}.zero_state must return a tuple of tensors [B, *N], as the current is")
        trace = neuron.scan(current.unbind(0), state)
    if not isinstance(trace, Trace):
        raise ConfigError(f"{key}: {name}.scan returned {_a(trace)}, must return a {Trace.__module__}.Trace")
    for part in ("spikes", "membrane"):
        found = getattr(trace, part)
        if not isinstance(found, Tensor) or found.shape != current.shape:
            shape = f"of shape {list(found.shape)}" if isinstance(found, Tensor) else f"as {_a(found)}"
            raise ConfigError(
                f"{key}: {name}.scan gives {part} {shape}, must be {list(current.shape)} here, [T, B, *N]"
            )


def _require_scalar(loss: Any, trace: Trace, data: DataModule, trained: bool) -> None:
    target = _a_target(data.description, trace.num_steps)
    with user_parts.running("loss"):
        value = loss(trace, target)
    name = type(loss).__name__
    if not isinstance(value, Tensor) or value.ndim:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else _a(value)
        raise ConfigError(f"loss: {name} returned {found}, must return a scalar, such as the mean over the batch")
    if trained and not value.requires_grad:
        raise ConfigError(f"loss: {name} returned a value without a gradient, so that nothing would be learned")


def _a_target(description: Description, num_steps: int) -> Tensor:
    """A batch of targets of the kind that is described."""
    shape = [*description.target_shape(num_steps)]
    shape.insert(int(description.is_timed), SAMPLES)
    return torch.zeros(shape, dtype=torch.int64) if description.is_classified else torch.rand(shape)


def _is_foreign(part: Any) -> bool:
    kind = type_before_parametrizations(part) if isinstance(part, nn.Module) else type(part)
    return kind.__module__.split(".")[0] not in ("snnexp", "torch")


def _a(part: Any) -> str:
    name = type(part).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _refused(sentence: str) -> ConfigError:
    """Raised within the constructor of the network, which is not what the sentence is about."""
    error = ConfigError(sentence)
    error.located = True
    return error
