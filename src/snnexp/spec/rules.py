"""Checks of parts against each other. Each takes the parts themselves, or the facts read from their sources."""

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
"""The kinds of targets: in words, and what fits them."""


class Facts:
    """The class attributes of a part that is only read; MISSING where the source does not tell.

    Args:
        spec: the part.
        values: its arguments, of which some are facts (:class:`~snnexp.spec.annotations.Given`).
    """

    def __init__(self, spec: Spec, values: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.spec, self.values = spec, values
        self.name = spec.name

    def __getattr__(self, name: str) -> Any:
        found = self.spec.fact(name)
        if isinstance(found, InFile):
            # which is known when it is read
            return MISSING
        if not isinstance(found, Given):
            return found
        value = self.values.get(found.argument)
        return MISSING if value is None else value


def require_arguments(path: str, name: str, keys: Collection[Any], known: Collection[str]) -> None:
    """Refuse those of ``keys`` that ``name``, which is built at ``path``, does not take."""
    unknown = [
        f"{path}.{format_value(key)}: unknown key, {name} has no such argument, {suggest(str(key), known)}"
        for key in keys
        if key not in known
    ]
    if unknown:
        raise ConfigError(*unknown)


def require_target(loss: Any, data: Any) -> None:
    """Refuse a loss that cannot be compared with the target of the data."""
    known = isinstance(loss.targets, tuple | list) and loss.targets and isinstance(data.target, str)
    if known and data.target not in loss.targets:
        kind, hint = TARGETS.get(data.target, (data.target, OTHER_LOSS))
        raise ConfigError(f"loss: {_name(loss)} compares with {loss.targets[0]}, these data have {kind}; {hint}")


def require_steps(data: Any, num_steps: Any) -> None:
    """Refuse sequences of another length than the run's."""
    known = data.sequences is True and isinstance(data.num_steps, int)
    if known and data.num_steps != num_steps:
        steps, given = data.num_steps, format_value(num_steps)
        raise ConfigError(f"data: these sequences have {steps} steps, and num_steps is {given}; use num_steps={steps}")


def require_encoder(encoder: Any, data: Any) -> None:
    """Refuse an encoder of sequences on data that are none, and the other way round."""
    known = isinstance(encoder.takes_sequences, bool) and isinstance(data.sequences, bool)
    if known and encoder.takes_sequences != data.sequences:
        need = "sequence" if data.sequences else "constant"
        raise ConfigError(f"encoder: {_name(encoder)} does not fit these data; use encoder={need}")


def require_spikes(loss: Any, readout: Any) -> None:
    """Refuse a loss that reads the spikes of a readout that never fires."""
    if readout.spikes is False and reads_spikes(loss):
        raise ConfigError(
            f"loss: {_name(loss)} reads spikes and this readout never fires; use another loss, or a readout that fires"
        )


def takes_neurons(network: Mapping[str, Any], key: str) -> bool:
    """Whether a network may have neurons that the node ``neuron`` or ``readout`` of a config describes.

    Args:
        network: its node.
        key: ``neuron`` or ``readout``.
    """
    spec = parts.of(str(network.get("_target_")))
    if PLACES["network"].base not in spec.bases:
        return spec.takes_all or key in spec.arguments
    layers = network.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        return True
    # a layer may name neurons of its own
    return any("neuron" not in layer for layer in (layers[-1:] if key == "readout" else layers[:-1]))


def require_decoder(decoder: Any, readout: Any, data: Any) -> None:
    """Refuse a decoder of another kind of target, and one that reads the spikes of a readout that never fires.

    Args:
        decoder: None for none.
        readout: the neuron.
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
    """Refuse a measure that is not defined for the target of the data, or reads spikes of a readout that never fires.

    Args:
        name: of the measure.
        measure: the measure.
        data: the data.
        readout: the neuron; None where only the network knows it.
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
"""The kinds of target that a decoder's classes are compared with."""
RENAMED = {"max_voltage": "max_membrane"}
"""Names that losses gave to decoders in earlier versions."""


def default_decoder(loss: Any, readout: Any, data: Any, earlier: bool = False) -> Any:
    """The choice of decoder that goes with parts: that of the loss, or ``max_membrane`` of a readout that never fires.

    Args:
        loss: the loss.
        readout: the neuron.
        data: the data.
        earlier: as versions decided that had no decoder in a config, and knew the highest membrane and spike counts.

    Returns:
        The name; None where targets are no labels, MISSING where the sources do not tell.
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
    """Whether a part is known to need a neuron that fires."""
    reads = part.reads if isinstance(part.reads, tuple | list) else (part.reads,)
    return any(read in parts.spike_statistics() or getattr(read, "reads_spikes", False) is True for read in reads)


def _decoders(target: str, fires: Any) -> str:
    """The shipped choices for a kind of target, as they are typed."""
    found = {name: Facts(spec) for name, spec in parts.by_choice("decoder").items()}
    fit = [name for name, facts in found.items() if target in facts.targets]
    fit = [name for name in fit if fires is not False or not reads_spikes(found[name])]
    return f"decoder={' or '.join(fit)}" if fit else ""


def validation_keys(data: Any) -> tuple[str, ...]:
    """The arguments of a data part that set samples aside for validation, the usual first."""
    keys: Any = getattr(data, "validation", MISSING)
    return ("val_size",) if keys is MISSING else tuple(keys)


def require_validation(key: str, value: Any, measure: Any, data: Any, given: Mapping[str, Any]) -> None:
    """Refuse to watch a measure of a validation split that there is not.

    Args:
        key: that asks for it.
        value: of the key.
        measure: that is watched.
        data: the data.
        given: the arguments of the data.
    """
    keys = validation_keys(data)
    there = any(given.get(each, MISSING) for each in keys) or data.splits_in_file is True
    if isinstance(measure, str) and measure.startswith("val/") and not there:
        raise ConfigError(no_validation(key, value, keys[0]))


def no_validation(key: str, value: Any, use: str) -> str:
    """What is wrong with a key that watches a validation split, where there is none; ``use`` makes one."""
    return f"{key}: got {format_value(value)}, and there is no validation split to watch; set data.{use}"


def _name(part: Any) -> str:
    return str(part.name) if isinstance(part, Facts) else type(part).__name__


def require_batches(
    samples: Any, devices: int, batch_size: int = 1, drop_last: bool = False, val_size: int = 0, **values: Any
) -> None:
    """Refuse sizes that the training samples do not allow.

    Args:
        samples: how many there are; MISSING where that is not known.
        devices: processes that share each batch.
        batch_size: samples of a batch.
        drop_last: leave out a batch that is not full.
        val_size: samples that are set aside.
        values: other arguments of the data.
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
