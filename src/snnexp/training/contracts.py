"""Interface checks for assembled parts, built-in or user-defined, run once before anything is written.

Tests cover the built-in parts; user-defined parts are run on two samples. No check advances the random state of a run.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from snnexp.config import user_parts
from snnexp.data import DataModule, Description
from snnexp.decoders import Decoder, Readout, pooled
from snnexp.errors import ConfigError, SnnexpError
from snnexp.isolation import random_states, restored
from snnexp.losses import Loss
from snnexp.metrics import Measure
from snnexp.network import Network
from snnexp.neurons import STATISTICS, Neuron, Trace, statistic_names
from snnexp.regularizers import Penalty
from snnexp.spec import parts
from snnexp.text import format_value
from snnexp.training.opaque import Opaque

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SAMPLES = 2


def require_kind(part: Any, kind: type, key: str, hint: str = "") -> None:
    """Reject a part of the wrong type for its config key."""
    if not isinstance(part, kind):
        raise _located_error(f"{key}: got {_with_article(part)}, must be a {kind.__module__}.{kind.__qualname__}{hint}")


def require_data(data: Any) -> None:
    """Reject data that are not a data module; the message shows how to wrap a dataset."""
    name = f"{type(data).__module__}.{type(data).__qualname__}"
    hint = f"; data=dataset data.dataset._target_={name} wraps it" if hasattr(data, "__getitem__") else ""
    require_kind(data, DataModule, "data", hint)


def checked_neurons(make: Callable[..., Any], key: str) -> Callable[..., Neuron]:
    """Wrap ``make`` to check that its results are neurons that implement ``scan`` and ``zero_state``."""

    def checked(*arguments: Any, **named: Any) -> Neuron:
        neuron = make(*arguments, **named)
        require_kind(neuron, Neuron, key)
        for method in ("scan", "zero_state"):
            if getattr(type(neuron), method) is getattr(Neuron, method):
                raise _located_error(f"{key}: {type(neuron).__name__} has no {method}, which every neuron must define")
        return neuron  # type: ignore[no-any-return]

    return checked


def require_shareable(network: Network, processes: int) -> None:
    """Reject batch norm if processes share each batch: each would normalize only its share."""
    names = _batch_norms(network)
    if processes > 1 and names:
        problem = f"{names[0].removeprefix('layers.')} is batch norm, and {processes} processes share each batch"
        raise ConfigError(f"network: {problem}; use network.norm=layer, or one process")


@torch.no_grad()
def require_batch_norm_samples(network: Network, data: DataModule, num_steps: int, limit: int | None) -> None:
    """Reject training batches of one sample if a batch norm would see a single value per channel.

    Args:
        network: with its modules in training mode.
        data: the data.
        num_steps: T.
        limit: optimizer steps per epoch; None for all.
    """
    if not _batch_norms(network) or data.smallest_batch(limit) > 1:
        return
    with restored(random_states()), unchanged(network):
        try:
            network(_example(data.inputs, num_steps, network.constant)[:, :1])
        except ValueError as error:
            raise ConfigError(
                f"data.batch_size: got {data.batch_size}, which leaves a batch of 1 sample, but batch norm needs more; "
                "use another size, or layer norm"
            ) from error


def _batch_norms(network: Network) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) in BATCH_NORMS]


def require_loss(loss: Any) -> None:
    """Reject a loss with missing or invalid ``targets``, ``reads`` or ``decoder``."""
    name = type(loss).__name__
    for attribute in ("targets", "reads", "decoder"):
        if getattr(loss, attribute, None) is None:
            raise ConfigError(f"loss: {name} has no {attribute}; derive it from {Loss.__module__}.{Loss.__name__}")
    require_reads(loss, "loss")
    if not statistic_names(loss.reads):
        raise ConfigError(f"loss: {name}.reads is empty, must name statistics such as {', '.join(STATISTICS)}")


def require_decoder_name(name: str | None, loss: Any) -> None:
    """Reject a loss whose default decoder is unknown."""
    known = parts.by_choice("decoder")
    if name is not None and name not in known:
        raise ConfigError(
            f"loss: {type(loss).__name__}.decoder is {format_value(name)}, must be one of {', '.join(known)}"
        )


def require_reads(part: Any, key: str) -> None:
    """Reject a part whose ``reads`` names an unknown statistic."""
    try:
        statistic_names(part.reads)
    except ValueError as error:
        raise ConfigError(
            f"{key}: {type(part).__name__}.reads is {format_value(error.args[0])}, must be of {', '.join(STATISTICS)}"
        ) from error


def as_network(module: Any, inputs: tuple[int, ...], outputs: int, num_steps: int, constant: bool) -> Network:
    """Return a :class:`Network` unchanged, and wrap any other module in an :class:`Opaque` network."""
    if isinstance(module, Network):
        module.constant = constant
        require_network(module)
        return module
    require_kind(module, nn.Module, "network")
    network = Opaque(module, num_steps)
    network.constant = constant
    with restored(random_states()), unchanged(network), _reporting_errors(network.kind):
        known = network.inspect(_example(inputs, num_steps, constant), outputs)
    network.known = known
    return network


def _example(inputs: tuple[int, ...], num_steps: int, constant: bool, seed: int = 0) -> Tensor:
    """Return an input batch of an even number of samples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((1 if constant else num_steps, 2 * SAMPLES, *inputs), generator=generator)


@contextmanager
def _reporting_errors(kind: str) -> Iterator[None]:
    """Convert errors raised by a network: to :class:`PartError` in user code, else to :class:`ConfigError`."""
    try:
        with user_parts.wrap_errors("network"):
            yield
    except SnnexpError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"network: {kind} raised {type(error).__name__}: {reason}") from error


def _kind(network: Network) -> str:
    return network.kind if isinstance(network, Opaque) else type(network).__name__


@torch.no_grad()
def _require_stateless(network: Network, inputs: tuple[int, ...], num_steps: int) -> None:
    """Reject a network whose result for a batch depends on earlier batches."""
    example, other = (_example(inputs, num_steps, network.constant, seed) for seed in (0, 1))
    for training in (False, True):
        with restored(random_states()), unchanged(network), _reporting_errors(_kind(network)):
            network.train(training)
            first = _results(network, example)
            network(other.clone())
            network(other[:, :SAMPLES].clone())
            weights = [weight.clone() for weight in network.parameters()]
            second = _results(network, example)
            if any(not torch.equal(*pair) for pair in zip(weights, network.parameters(), strict=True)):
                raise ConfigError(f"network: reset() of {_kind(network)} changes weights before each batch")
        if any(not torch.equal(*pair) for pair in zip(first, second, strict=True)):
            advice = "add a method reset() that clears it, which is called before each batch"
            raise ConfigError(f"network: {_kind(network)} keeps state from one batch to the next; {advice}")


def _results(network: Network, example: Tensor) -> list[Tensor]:
    """Return spikes and membranes, always drawn from the same seed."""
    with restored(random_states()):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        traces = network(example.clone())
    # NaN != NaN
    return [part.nan_to_num() for trace in traces for part in (trace.spikes, trace.membrane)]


def require_network(network: Network) -> None:
    """Reject a :class:`Network` subclass that overrides ``forward``: figures, SynOps and stacks would ignore it."""
    if type(network).forward is not Network.forward or "forward" in vars(network):
        raise ConfigError(
            f"network: {type(network).__name__} overrides forward, but figures, synaptic operations and stacks "
            "cover only its layers; derive it from torch.nn.Module instead of Network"
        )


def require_results(
    network: Network,
    loss: Any,
    decoder: Decoder | None,
    measures: Mapping[str, Measure],
    penalties: Mapping[str, Penalty],
    data: DataModule,
    num_steps: int,
) -> None:
    """Run two samples through user-defined parts and reject results of the wrong type or shape."""
    neurons = network.neurons()
    others: list[Any] = [loss, decoder, *(getattr(neuron, "surrogate", loss) for neuron in neurons.values())]
    if not any(map(_is_user_defined, [*network.modules(), *others, *measures.values(), *penalties.values()])):
        return
    with restored(random_states()), unchanged(network), torch.enable_grad():
        network.eval()
        for name, neuron in neurons.items():
            if _is_user_defined(neuron):
                _require_neuron(neuron, "readout" if name == "readout" else "neuron")
        inputs = torch.rand((1 if network.constant else num_steps, SAMPLES, *data.inputs))
        with _reporting_errors(_kind(network)):
            traces = network(inputs)
        trained = any(weight.requires_grad for weight in network.parameters())
        with user_parts.wrap_errors("decoder"):
            readout = pooled(decoder, DeclaredTrace(traces[-1], loss, "loss"))
        _require_scalar(loss, readout, data, trained)
        if decoder is not None and _is_user_defined(decoder):
            _require_scores(decoder, traces[-1], data)
        for name, measure in measures.items():
            if _is_user_defined(measure):
                _require_measure(f"measure.{name}", measure, traces[-1], decoder, loss, data)
        fires = {name: neuron.spikes for name, neuron in neurons.items()}
        for name, penalty in penalties.items():
            if _is_user_defined(penalty):
                _require_penalty(f"regularizer.{name}", penalty, dict(zip(neurons, traces, strict=True)), fires)
    # Neuron keeps no state between calls
    if any(_is_user_defined(module) and not isinstance(module, Neuron) for module in network.modules()):
        _require_stateless(network, data.inputs, num_steps)


class DeclaredTrace:
    """A trace with only the statistics named in the ``reads`` of a part, as in an evaluation.

    Args:
        trace: a trace, or any object with statistics.
        part: the part that reads it.
        key: config key of the part.
        more: additional names that the part may read.
    """

    def __init__(self, trace: Any, part: Any, key: str, more: Sequence[str] = ()) -> None:
        self._trace, self._known = trace, (*statistic_names(part.reads), *more, "num_steps", "samples")
        self._prefix = f"{key}: {type(part).__name__}"

    def __getattr__(self, name: str) -> Any:
        if name in STATISTICS and name not in self._known:
            raise ConfigError(f"{self._prefix} reads {name} of a trace, which its attribute reads does not list")
        return getattr(self._trace, name)


@contextmanager
def unchanged(network: Network) -> Iterator[None]:
    """Restore modes, buffers and other attributes afterwards; a deep copy may fail for user-defined modules."""
    attributes = [(vars(module), {**vars(module), "_buffers": {**module._buffers}}) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for current, saved in attributes:
            current.clear()
            current.update(saved)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _require_neuron(neuron: Neuron, key: str) -> None:
    current, name = torch.rand((2, SAMPLES, *neuron.features)), type(neuron).__name__
    with user_parts.wrap_errors(key):
        state = neuron.zero_state(current[0])
        fits = isinstance(state, (tuple, list)) and all(isinstance(part, Tensor) for part in state)
        if not fits or any(part.shape != current[0].shape for part in state):
            raise ConfigError(
                f"{key}: {name}.zero_state must return a tuple of tensors [B, *N], the shape of the current"
            )
        trace = neuron.scan(current.unbind(0), state)
    if not isinstance(trace, Trace):
        raise ConfigError(f"{key}: {name}.scan returned {_with_article(trace)}, must return a {Trace.__module__}.Trace")
    for part in ("spikes", "membrane"):
        value = getattr(trace, part)
        if not isinstance(value, Tensor) or value.shape != current.shape:
            shape = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"as {_with_article(value)}"
            raise ConfigError(
                f"{key}: {name}.scan returned {part} {shape}, must be {list(current.shape)} here, [T, B, *N]"
            )


def _require_scalar(loss: Any, trace: Any, data: DataModule, trained: bool) -> None:
    with user_parts.wrap_errors("loss"):
        value = loss(trace, _example_target(data.description, trace.num_steps))
    _require_gradient("loss", loss, value, trained)


def _require_gradient(key: str, part: Any, value: Any, trained: bool) -> None:
    name = type(part).__name__
    if not isinstance(value, Tensor) or value.ndim:
        actual = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else _with_article(value)
        raise ConfigError(f"{key}: {name} returned {actual}, must return a scalar, such as the mean over the batch")
    if trained and not value.requires_grad:
        raise ConfigError(f"{key}: {name} returned a value without a gradient, so nothing would be learned")


def _require_scores(decoder: Decoder, trace: Any, data: DataModule) -> None:
    with user_parts.wrap_errors("decoder"), torch.no_grad():
        scores: Any = decoder.scores(DeclaredTrace(trace, decoder, "decoder"))
    expected = [SAMPLES, data.outputs]
    if not isinstance(scores, Tensor) or [*scores.shape[-2:]] != expected:
        actual = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else _with_article(scores)
        raise ConfigError(
            f"decoder: {type(decoder).__name__}.scores returned {actual}, must be {expected} here, [B, K]"
        )


def _require_measure(
    key: str, measure: Measure, trace: Any, decoder: Decoder | None, loss: Any, data: DataModule
) -> None:
    more = () if decoder is None else statistic_names(decoder.reads)
    readout = Readout(DeclaredTrace(trace, measure, key, (*statistic_names(loss.reads), *more)), decoder, loss)
    with user_parts.wrap_errors(key), torch.no_grad():
        state: Any = measure.update(readout, _example_target(data.description, trace.num_steps))
        fits = isinstance(state, tuple) and all(isinstance(part, Tensor) for part in state)
        value: Any = measure.compute(measure.merge(state, state)) if fits else state
    name = type(measure).__name__
    if not fits:
        raise ConfigError(f"{key}: {name}.update returned {_with_article(state)}, must return a tuple of tensors")
    if not isinstance(value, Tensor) or value.ndim:
        raise ConfigError(f"{key}: {name}.compute must return a scalar tensor")


def _require_penalty(key: str, penalty: Penalty, traces: Mapping[str, Any], fires: Mapping[str, bool]) -> None:
    with user_parts.wrap_errors(key):
        layers = penalty.chosen(fires)
        if not {*layers} <= {*traces}:
            raise ConfigError(
                f"{key}: {type(penalty).__name__}.chosen returned {layers}, must be of {', '.join(traces)}"
            )
        value = penalty({layer: DeclaredTrace(traces[layer], penalty, key) for layer in layers})
    _require_gradient(key, penalty, value, trained=False)


def _example_target(description: Description, num_steps: int) -> Tensor:
    """Return a batch of targets that fits the description."""
    shape = [*description.target_shape(num_steps)]
    shape.insert(int(description.is_timed), SAMPLES)
    return torch.zeros(shape, dtype=torch.int64) if description.is_classified else torch.rand(shape)


def _is_user_defined(part: Any) -> bool:
    kind = type_before_parametrizations(part) if isinstance(part, nn.Module) else type(part)
    return part is not None and kind.__module__.split(".")[0] not in ("snnexp", "torch")


def _with_article(part: Any) -> str:
    name = type(part).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _located_error(sentence: str) -> ConfigError:
    """Return an error that already contains its key, because the constructor of the network raises it."""
    error = ConfigError(sentence)
    error.has_path = True
    return error
