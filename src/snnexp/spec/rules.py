"""Checks of parts against each other. Each takes the parts themselves, or the facts read from their sources."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from snnexp.errors import ConfigError
from snnexp.spec.annotations import Given
from snnexp.spec.reader import MISSING, Spec
from snnexp.text import closest, shown

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
        if not isinstance(found, Given):
            return found
        value = self.values.get(found.argument)
        return MISSING if value is None else value


def require_arguments(path: str, name: str, keys: Collection[Any], known: Collection[str]) -> None:
    """Refuse those of ``keys`` that ``name``, which is built at ``path``, does not take."""
    unknown = [
        f"{path}.{shown(key)}: unknown key, {name} has no such argument, {closest(str(key), known)}"
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
        steps = data.num_steps
        raise ConfigError(
            f"data: these sequences have {steps} steps, and num_steps is {shown(num_steps)}; use num_steps={steps}"
        )


def require_encoder(encoder: Any, data: Any) -> None:
    """Refuse an encoder of sequences on data that are none, and the other way round."""
    known = isinstance(encoder.takes_sequences, bool) and isinstance(data.sequences, bool)
    if known and encoder.takes_sequences != data.sequences:
        need = "sequence" if data.sequences else "constant"
        raise ConfigError(f"encoder: {_name(encoder)} does not fit these data; use encoder={need}")


def require_spikes(loss: Any, readout: Any) -> None:
    """Refuse a loss that counts the spikes of a readout that never fires."""
    if loss.reads == "spike_count" and readout.spikes is False:
        raise ConfigError(
            f"loss: {_name(loss)} counts spikes and this readout never fires; use another loss, or readout=same"
        )


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
