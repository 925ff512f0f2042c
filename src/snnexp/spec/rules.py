"""Check that parts are compatible. Each check takes the parts themselves, or the facts read from their source."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from snnexp.errors import ConfigError
from snnexp.spec import parts
from snnexp.spec.annotations import Given, InFile
from snnexp.spec.classes import MISSING
from snnexp.spec.places import PLACES
from snnexp.spec.reader import Spec
from snnexp.text import format_value, suggest

OTHER_LOSS = "use another loss, or data with labels"
TARGETS = {
    "labels": ("labels", "use another loss, or other data"),
    "trace": ("a trace", "use loss=mse_membrane, or data with labels"),
    "values": ("values", "use loss=mse_membrane, or data with labels"),
    "step_labels": ("a label for each step", OTHER_LOSS),
}
"""The kinds of targets: description, and a hint for a message."""


class Facts:
    """The class attributes of a part, read from its source; MISSING if the source does not determine them.

    Args:
        spec: specification of the part.
        values: its arguments, which some facts are taken from (:class:`~snnexp.spec.annotations.Given`).
    """

    def __init__(self, spec: Spec, values: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.spec, self.values = spec, values
        self.name = spec.name

    def __getattr__(self, name: str) -> Any:
        found = self.spec.fact(name)
        if isinstance(found, InFile):
            # known when the file is read
            return MISSING
        if not isinstance(found, Given):
            return found
        value = self.values.get(found.argument)
        return MISSING if value is None else value


def require_arguments(path: str, name: str, keys: Collection[Any], known: Collection[str]) -> None:
    """Reject those of ``keys`` that are not arguments of ``name``, the part at ``path``."""
    unknown = [
        f"{path}.{format_value(key)}: unknown key, {name} has no such argument, {suggest(str(key), known)}"
        for key in keys
        if key not in known
    ]
    if unknown:
        raise ConfigError(*unknown)


def require_target(loss: Any, data: Any) -> None:
    """Reject a loss that does not support the targets of the data."""
    known = isinstance(loss.targets, tuple | list) and loss.targets and isinstance(data.target, str)
    if known and data.target not in loss.targets:
        kind, hint = TARGETS.get(data.target, (data.target, OTHER_LOSS))
        raise ConfigError(f"loss: {_name(loss)} compares with {loss.targets[0]}, these data have {kind}; {hint}")


def require_steps(data: Any, num_steps: Any) -> None:
    """Reject sequences whose length differs from ``num_steps``."""
    known = data.sequences is True and isinstance(data.num_steps, int)
    if known and data.num_steps != num_steps:
        steps, given = data.num_steps, format_value(num_steps)
        raise ConfigError(f"data: these sequences have {steps} steps, and num_steps is {given}; use num_steps={steps}")


def require_encoder(encoder: Any, data: Any) -> None:
    """Reject an encoder of sequences for constant inputs, and the reverse."""
    known = isinstance(encoder.takes_sequences, bool) and isinstance(data.sequences, bool)
    if known and encoder.takes_sequences != data.sequences:
        need = "sequence" if data.sequences else "constant"
        raise ConfigError(f"encoder: {_name(encoder)} does not fit these data; use encoder={need}")


def require_spikes(loss: Any, readout: Any) -> None:
    """Reject a loss that reads the spikes of a readout that never fires."""
    if readout.spikes is False and reads_spikes(loss):
        raise ConfigError(
            f"loss: {_name(loss)} reads spikes and this readout never fires; use another loss, or a readout that fires"
        )


def takes_neurons(network: Mapping[str, Any], key: str) -> bool:
    """Return True if a network may use the node ``neuron`` or ``readout`` of a config.

    Args:
        network: node of the network.
        key: ``neuron`` or ``readout``.
    """
    spec = parts.of(str(network.get("_target_")))
    if PLACES["network"].base not in spec.bases:
        return spec.takes_all or key in spec.arguments
    layers = network.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        return True
    # a layer may set its own neuron
    return any("neuron" not in layer for layer in (layers[-1:] if key == "readout" else layers[:-1]))


def require_decoder(decoder: Any, readout: Any, data: Any) -> None:
    """Reject a decoder for another kind of target, or one that reads the spikes of a readout that never fires.

    Args:
        decoder: the decoder, or None.
        readout: the neuron of the readout.
        data: the data.
    """
    target = data.target
    if decoder is None:
        if target in DECODED:
            raise ConfigError(f"decoder: got null, these data have {target}; use {_decoders(target, readout.spikes)}")
        return
    if isinstance(target, str) and isinstance(decoder.targets, tuple | list) and target not in decoder.targets:
        use = _decoders(target, readout.spikes) or "decoder=null"
        raise ConfigError(
            f"decoder: {_name(decoder)} decodes {decoder.targets[0]}, these data have {target}; use {use}"
        )
    if readout.spikes is False and reads_spikes(decoder):
        use = _decoders("labels", False)
        raise ConfigError(f"decoder: {_name(decoder)} reads spikes and this readout never fires; use {use}")


def require_measure(name: str, measure: Any, data: Any, readout: Any) -> None:
    """Reject a metric that is not defined for the targets, or reads the spikes of a readout that never fires.

    Args:
        name: name of the metric in the config.
        measure: the metric.
        data: the data.
        readout: the neuron of the readout; None if only the network knows it.
    """
    if readout is not None and readout.spikes is False and reads_spikes(measure):
        raise ConfigError(
            f"measure.{name}: {_name(measure)} reads spikes and this readout never fires; use a readout that fires"
        )
    known = isinstance(measure.targets, tuple | list) and measure.targets and isinstance(data.target, str)
    if known and data.target not in measure.targets:
        kinds = ", ".join(measure.targets)
        raise ConfigError(f"measure.{name}: {_name(measure)} is defined for {kinds}, these data have {data.target}")


DECODED = ("labels", "step_labels")
"""The kinds of target that predicted classes are compared with."""
RENAMED = {"max_voltage": "max_membrane"}
"""Names of decoders in earlier versions, and their present names."""


def default_decoder(loss: Any, readout: Any, data: Any, earlier: bool = False) -> Any:
    """Return the default decoder: that of the loss, or ``max_membrane`` for a readout that never fires.

    Args:
        loss: the loss.
        readout: the neuron of the readout.
        data: the data.
        earlier: apply the rule of versions without a decoder in the config, which had ``max_membrane`` and
            ``spike_count`` only.

    Returns:
        Its name; None if targets are not labels, MISSING if the source does not determine it.
    """
    target, name = data.target, loss.decoder
    if not isinstance(target, str):
        return MISSING
    if target not in DECODED:
        return None
    if not isinstance(name, str):
        return MISSING
    name = RENAMED.get(name, name)
    if earlier and name != "max_membrane":
        name = "spike_count"
    known = parts.by_choice("decoder")
    if name in known and reads_spikes(Facts(known[name])):
        if not isinstance(readout.spikes, bool):
            return MISSING
        return name if readout.spikes else "max_membrane"
    return name


def reads_spikes(part: Any) -> bool:
    """Return True if a part is known to read spikes."""
    reads = part.reads if isinstance(part.reads, tuple | list) else (part.reads,)
    return any(read in parts.spike_statistics() or getattr(read, "reads_spikes", False) is True for read in reads)


def _decoders(target: str, fires: Any) -> str:
    """Return the override for the shipped decoders of a kind of target."""
    found = {name: Facts(spec) for name, spec in parts.by_choice("decoder").items()}
    fit = [name for name, facts in found.items() if target in facts.targets]
    fit = [name for name in fit if fires is not False or not reads_spikes(found[name])]
    return f"decoder={' or '.join(fit)}" if fit else ""


def validation_keys(data: Any) -> tuple[str, ...]:
    """Return the data arguments that create a validation split, the preferred one first."""
    keys: Any = getattr(data, "validation", MISSING)
    return ("val_size",) if keys is MISSING else tuple(keys)


def require_validation(key: str, value: Any, measure: Any, data: Any, given: Mapping[str, Any]) -> None:
    """Refuse to monitor a metric of the validation split if there is no such split.

    Args:
        key: key that names the metric.
        value: value of the key.
        measure: the monitored metric.
        data: the data.
        given: arguments of the data.
    """
    keys = validation_keys(data)
    there = any(given.get(each, MISSING) for each in keys) or data.splits_in_file is True
    if isinstance(measure, str) and measure.startswith("val/") and not there:
        raise ConfigError(no_validation(key, value, keys[0]))


def no_validation(key: str, value: Any, use: str) -> str:
    """Return the message for a key that monitors a missing validation split; the data argument ``use`` creates one."""
    return f"{key}: got {format_value(value)}, but there is no validation split; set data.{use}"


def _name(part: Any) -> str:
    return str(part.name) if isinstance(part, Facts) else type(part).__name__


def require_batches(
    samples: Any, devices: int, batch_size: int = 1, drop_last: bool = False, val_size: int = 0, **values: Any
) -> None:
    """Reject batch and validation sizes that exceed the number of training samples.

    Args:
        samples: number of training samples; MISSING if unknown.
        devices: number of processes that share each batch.
        batch_size: samples per batch.
        drop_last: whether an incomplete batch is dropped.
        val_size: samples of the validation split.
        values: other arguments of the data, ignored.
    """
    if samples is MISSING:
        return
    if val_size >= samples:
        raise ConfigError(f"val_size: got {val_size}, must be less than the {samples} training samples")
    samples -= val_size
    if drop_last and batch_size > samples:
        raise ConfigError(f"batch_size: got {batch_size}, must be at most the {samples} training samples")
    if min(batch_size, samples) % devices:
        raise ConfigError(
            f"batch_size: {min(batch_size, samples)} samples per batch cannot be shared equally by {devices} processes"
        )
