"""Initial weights from another run or a file, and frozen parameters."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from snnexp.config.keys import InitFrom
from snnexp.errors import CheckpointError, ConfigError
from snnexp.network import Network
from snnexp.neurons import Neuron
from snnexp.record.checkpoint import NETWORK, read_weights
from snnexp.record.names import CHECKPOINT_NAMES
from snnexp.record.run import Run
from snnexp.text import format_value, list_options
from snnexp.training.observers import display_name
from snnexp.training.task import Task


def load_initial_weights(init: InitFrom, task: Task) -> None:
    """Load the weights named by ``init_from`` into a task; without a run or a file, keep the random ones.

    Raises:
        ConfigError: ``init_from.run`` is not a run, or a constant neuron parameter differs from this config.
        CheckpointError: the checkpoint is missing, damaged, or of another network.
    """
    file = initial_checkpoint(init)
    if file is None:
        return
    is_own = init.ckpt in CHECKPOINT_NAMES
    if is_own:
        try:
            Run.open(Path(str(init.run)))
        except ConfigError as error:
            raise ConfigError(f"init_from.run: {error}") from error
    about = f"init_from: {file.name}{f' of {Path(str(init.run)).name}' if is_own else ''}"
    weights = read_weights(require_checkpoint_file(file), task.state_dict(), foreign=not is_own, about=about)
    _require_constants(task.network, weights)
    task.load_state_dict(weights)


def initial_checkpoint(init: InitFrom) -> Path | None:
    """Return the file of the initial weights; None for random weights."""
    if init.ckpt not in CHECKPOINT_NAMES:
        return Path(init.ckpt)
    return None if init.run is None else Run(Path(init.run)).checkpoints / f"{init.ckpt}.ckpt"


def require_checkpoint_file(file: Path) -> Path:
    """Return ``file`` if it exists.

    Raises:
        CheckpointError: it does not exist.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint; use {', '.join(CHECKPOINT_NAMES)}, or a file")
    return file


def _require_constants(network: Network, weights: dict[str, Tensor]) -> None:
    """Reject constants that differ from those in the weights, since config.yaml would contain wrong values.

    Learned parameters, and constants drawn per neuron, are loaded from the weights.
    """
    for path, neuron in network.named_modules():
        if not isinstance(neuron, Neuron):
            continue
        for name, value in neuron.named_buffers():
            saved = weights[f"{NETWORK}{path}.{name}"]
            if value.ndim == 0 and not torch.equal(saved, value):
                raise ConfigError(
                    f"init_from: {_short_name(f'{path}.{name}')} is {saved.item():g} in the weights and "
                    f"{value.item():g} in this config, where it is not learned; set it to the same value"
                )


def freeze(network: Network, names: Sequence[str]) -> None:
    """Freeze parameters, and the buffers of their layers.

    Args:
        network: its parameters get ``requires_grad=False``. Modules with buffers at or below a name, such as batch
            norm, stay in evaluation mode.
        names: layers, submodules or parameters: ``hidden1``, ``readout.synapse``, ``hidden1.neuron.beta``.

    Raises:
        ConfigError: a name matches no parameter, or all parameters are frozen.
    """
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in network.named_parameters():
        # a parameter stored as its logarithm also has the name used in the equation
        parameters |= {_short_name(name): parameter, _short_name(name.removesuffix(".original")): parameter}
    for name in names:
        if not any(_is_below(key, name) for key in parameters):
            # suggest layers first, then everything inside them
            known = {key.partition(".")[0] for key in parameters} if "." not in name else {*parameters}
            raise ConfigError(f"init_from.freeze: {format_value(name)} matches no parameter, {list_options(known)}")
        for key, parameter in parameters.items():
            if _is_below(key, name):
                parameter.requires_grad_(False)
        for path, module in network.named_modules():
            if module._buffers and _is_below(path.removeprefix("layers.").removeprefix("module."), name):
                module.train(False)
    if names and not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("init_from.freeze: every parameter is frozen, so nothing can be trained")


def _short_name(name: str) -> str:
    # the parameters of a single-layer module have no layer name
    return display_name(f"{NETWORK}{name}").lstrip(".")


def _is_below(key: str, name: str) -> bool:
    return f"{key}.".startswith(f"{name}.")
