"""What a run starts from: weights of another run or of a file, and parameters that are not trained."""

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
from snnexp.training.observers import short
from snnexp.training.task import Task


def load_start(init: InitFrom, task: Task) -> None:
    """Load the weights that a run starts from into its task; without a run or a file, those that were drawn stay.

    Raises:
        ConfigError: ``init_from.run`` is no run, or a fixed parameter of a neuron has another value in this config.
        CheckpointError: the checkpoint is missing, damaged, or of another network.
    """
    file = checkpoint_of(init)
    if file is None:
        return
    is_own = init.ckpt in CHECKPOINT_NAMES
    if is_own:
        try:
            Run.open(Path(str(init.run)))
        except ConfigError as error:
            raise ConfigError(f"init_from.run: {error}") from error
    about = f"init_from: {file.name}{f' of {Path(str(init.run)).name}' if is_own else ''}"
    weights = read_weights(checkpoint_file(file), task.state_dict(), foreign=not is_own, about=about)
    _require_constants(task.network, weights)
    task.load_state_dict(weights)


def checkpoint_of(init: InitFrom) -> Path | None:
    """The file of the weights that a run starts from; None where they are drawn."""
    if init.ckpt not in CHECKPOINT_NAMES:
        return Path(init.ckpt)
    return None if init.run is None else Run(Path(init.run)).checkpoints / f"{init.ckpt}.ckpt"


def checkpoint_file(file: Path) -> Path:
    """``file``, if it is there.

    Raises:
        CheckpointError: it is not.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint; the choice is {', '.join(CHECKPOINT_NAMES)}, or a file")
    return file


def _require_constants(network: Network, weights: dict[str, Tensor]) -> None:
    """Refuse numbers of this config that the weights would replace: config.yaml would state what is not computed.

    Learned parameters start from the weights, and so do numbers that were drawn for each neuron.
    """
    for path, neuron in network.named_modules():
        if not isinstance(neuron, Neuron):
            continue
        for name, value in neuron.named_buffers():
            found = weights[f"{NETWORK}{path}.{name}"]
            if value.ndim == 0 and not torch.equal(found, value):
                raise ConfigError(
                    f"init_from: {_short(f'{path}.{name}')} is {found.item():g} in the weights and {value.item():g} in "
                    "this config, where it is not learned; set it to the same value"
                )


def freeze(network: Network, names: Sequence[str]) -> None:
    """Keep parameters, and what their layers count, as they are.

    Args:
        network: whose parameters get ``requires_grad=False``. Modules with buffers at or below a name, such as batch
            norm, stay in evaluation mode.
        names: of layers, of parts of them, or of parameters: ``hidden1``, ``readout.synapse``, ``hidden1.neuron.beta``.

    Raises:
        ConfigError: a name fits no parameter, or none is left to train.
    """
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in network.named_parameters():
        # one whose logarithm is kept also has the name of the equation
        parameters |= {_short(name): parameter, _short(name.removesuffix(".original")): parameter}
    for name in names:
        if not any(_is_below(key, name) for key in parameters):
            # the layers first, then all that is in them
            known = {key.partition(".")[0] for key in parameters} if "." not in name else {*parameters}
            raise ConfigError(f"init_from.freeze: {format_value(name)} fits no parameter, {list_options(known)}")
        for key, parameter in parameters.items():
            if _is_below(key, name):
                parameter.requires_grad_(False)
        for path, module in network.named_modules():
            if module._buffers and _is_below(path.removeprefix("layers.").removeprefix("module."), name):
                module.train(False)
    if names and not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("init_from.freeze: every parameter is frozen, so that nothing is left to train")


def _short(name: str) -> str:
    # a module of one layer has no name before that of its weight
    return short(f"{NETWORK}{name}").lstrip(".")


def _is_below(key: str, name: str) -> bool:
    return f"{key}.".startswith(f"{name}.")
