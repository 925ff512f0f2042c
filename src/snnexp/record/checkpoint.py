"""Find, read and validate checkpoints.

A checkpoint contains only tensors, numbers and strings:

    state_dict, optimizer_states, lr_schedulers   as in PyTorch
    callbacks                                     states of callbacks, and fitted values
    format                                        see :mod:`snnexp.record.upgrade`
    epoch, batch, global_step                     completed epochs, batches of the next epoch, optimizer steps
    config, metrics                               the config as JSON; length and SHA-256 of metrics.jsonl so far
    stopped_early                                 epoch, step and reason of early stopping, if it happened
    finishing                                     reason to stop after the current epoch, if any

A checkpoint is saved between two steps, after the previous step has been logged. It determines how the run continues:
random numbers depend only on the seed and the position in the run.
"""

import io
import json
import logging
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import torch
from torch import Tensor

from snnexp.errors import CheckpointError, SnnexpError
from snnexp.record import upgrade
from snnexp.record.checksum import read_checkpoint
from snnexp.record.run import Run
from snnexp.text import format_value, list_options, one_line

LOG = logging.getLogger(__name__)
NETWORK = "network."
"""Prefix of the network's weights in the state dict of the task."""
MODULE = f"{NETWORK}module."
"""Prefix of the weights of a plain module used as the network."""
NEWEST_FIRST = ("last", "previous", "best")
MAX_PICKLE_BYTES = 2**20
"""Maximum size of the pickled structure, which takes a few hundred bytes per tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """A validated checkpoint, and its config."""

    path: Path
    content: dict[str, Any]
    config: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.content["global_step"])

    @property
    def position(self) -> tuple[int, int]:
        """Completed epochs, and completed batches of the next epoch."""
        return self.content["epoch"], self.content["batch"]


def find(
    run: Run,
    expected: Mapping[str, Any],
    batches: int,
    require_same: Callable[[dict[str, Any]], None],
    step: int | None = None,
) -> Checkpoint | None:
    """Return the newest valid checkpoint of a run to resume from; None if nothing has been trained yet.

    Args:
        run: the run directory.
        expected: the expected structure, see :func:`template`.
        batches: batches per epoch.
        require_same: raises if the run cannot be resumed from a checkpoint with this config.
        step: return the checkpoint of this step, or None if there is no valid one.

    Raises:
        CheckpointError: all checkpoints are missing, corrupt or from another run.
    """
    folder = run.checkpoints
    if step is not None:
        return _at_step(step, run, expected, batches, require_same)
    errors: list[CheckpointError] = []
    paths = [path for path in (folder / f"{name}.ckpt" for name in NEWEST_FIRST) if path.exists()]
    # start over from init.ckpt only if nothing else was saved, not if something is corrupt
    for path in paths or [path for path in [folder / "init.ckpt"] if path.exists()]:
        try:
            checkpoint = _read_for_resume(path, run, expected, batches, require_same)
        except CheckpointError as error:
            errors.append(error)
        else:
            for earlier in errors:
                LOG.warning("%s; continuing from %s, step %d", one_line(str(earlier)), path.name, checkpoint.step)
            return checkpoint
    if errors:
        raise errors[0]
    if not (run.path / "metrics.jsonl").stat().st_size:
        return None
    raise CheckpointError(f"{folder}: no checkpoint is left")


def _at_step(step: int, run: Run, *arguments: Any) -> Checkpoint | None:
    for path in (run.checkpoints / f"{name}.ckpt" for name in (*NEWEST_FIRST, "init")):
        with suppress(CheckpointError):
            checkpoint = _read_for_resume(path, run, *arguments)
            if checkpoint.step == step:
                return checkpoint
    return None


def _read_for_resume(
    path: Path, run: Run, expected: Mapping[str, Any], batches: int, require_same: Callable[[dict[str, Any]], None]
) -> Checkpoint:
    content = decode(read_checkpoint(path, at_most=_limit(expected)), path)
    keys = ("config", "metrics", "epoch", "batch", "global_step")
    _require_match(path, {name: content.get(name) for name in keys}, {name: expected[name] for name in keys})
    if not run.has_metrics(content["metrics"]):
        raise CheckpointError(f"{path}: checkpoint does not belong to the metrics.jsonl of this run")
    try:
        config = json.loads(content["config"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: checkpoint contains no config") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: checkpoint contains no config")
    config = upgrade.config(config)
    # report the key of a changed config first, not its consequences
    require_same(config)
    _require_match(path, content, expected)
    checkpoint = Checkpoint(path, content, config)
    epoch, batch = checkpoint.position
    if batch >= batches or checkpoint.step != epoch * batches + batch:
        raise CheckpointError(f"{path}: checkpoint has an invalid position for this run")
    return checkpoint


def read(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of this run for evaluation; optimizer, scheduler and other callbacks are not compared.

    Raises:
        CheckpointError: it is corrupt, its names, shapes or types differ from ``expected``, or a value is not finite.
    """
    content = decode(read_checkpoint(path, at_most=_limit(expected)), path)
    others = {name: expected[name] for name in ("optimizer_states", "lr_schedulers")}
    if isinstance(states := content.get("callbacks"), dict):
        others["callbacks"] = {key: state for key, state in states.items() if key in expected["callbacks"]}
    _require_match(path, {**content, **others}, expected)
    return content


def read_callback_states(path: Path) -> dict[str, Any]:
    """Return the states of callbacks in a checkpoint of this run by their keys.

    Raises:
        CheckpointError: it is corrupt.
    """
    states = decode(read_checkpoint(path), path).get("callbacks")
    if not isinstance(states, dict):
        raise CheckpointError(f"{path}: checkpoint contains no callback states")
    return states


@dataclass(frozen=True)
class TypeSpec:
    """The type of a value in a checkpoint: ``str``, ``float | None``, ``list[int]``, ``Tensor`` of any shape."""

    annotation: Any

    def difference(self, value: Any, path: str) -> str | None:
        """Return a message if ``value`` does not have this type."""
        if _is_instance(value, self.annotation):
            return None
        name = self.annotation.__name__ if type(self.annotation) is type else self.annotation
        return f"{path} is {type(value).__name__}, must be {name}"


def _is_instance(value: Any, annotation: Any) -> bool:
    if isinstance(annotation, UnionType):
        return any(_is_instance(value, each) for each in get_args(annotation))
    if get_origin(annotation) is list:
        return isinstance(value, list) and all(_is_instance(each, *get_args(annotation)) for each in value)
    # a number must also be in range and not NaN
    return type(value) is (annotation or NoneType) and difference(value, value) is None


OPTIONAL = {"stopped_early": {"epoch": 0, "step": 0, "reason": ""}, "finishing": ""}
"""Optional entries of a checkpoint."""
LATER = ("scaling",)
"""Keys of states that older checkpoints do not have."""


def _require_match(path: Path, content: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    expected = {**expected, **{name: value for name, value in OPTIONAL.items() if name in content}}
    if isinstance(states := content.get("callbacks"), dict):
        expected["callbacks"] = {
            key: state for key, state in expected["callbacks"].items() if key in states or key not in LATER
        }
    reason = difference(_with_all_states(content, expected), expected)
    if reason:
        raise CheckpointError(f"{path}: checkpoint does not fit this run: {reason}")


def _with_all_states(content: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``content`` in which each optimizer has a state for every parameter.

    Parameters without a gradient have none, and before the first step no parameter has one.
    """
    partial, complete = (_list(each.get("optimizer_states")) for each in (content, expected))
    if len(partial) != len(complete):
        return dict(content)
    filled = [
        {**part, "state": {**whole["state"], **part["state"]}} if isinstance(part.get("state"), dict) else part
        for part, whole in zip(partial, complete, strict=True)
    ]
    return {**content, "optimizer_states": filled} if filled else dict(content)


def read_network_weights(
    path: Path, expected: Mapping[str, Tensor] | None = None, foreign: bool = False
) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by their names in the network, without the prefix ``network.``.

    Args:
        path: the file.
        expected: the state dict of a network; a file that is much larger is not read.
        foreign: allow a missing checksum, and a plain state dict.

    Raises:
        CheckpointError: it is missing, corrupt, or contains no weights.
    """
    at_most = None if expected is None else _limit(expected)
    content = decode(read_checkpoint(path, at_most, foreign), path)
    state = content.get("state_dict", content if foreign else None)
    named = {name: value for name, value in state.items() if isinstance(name, str)} if isinstance(state, dict) else {}
    weights = {name.removeprefix(NETWORK): value for name, value in named.items() if name.startswith(NETWORK)}
    weights = weights or (named if foreign else {})
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path}: checkpoint contains no network weights")
    return weights


def read_weights(
    path: Path, expected: Mapping[str, Tensor], foreign: bool = True, about: object = None
) -> dict[str, Tensor]:
    """Return the weights of any checkpoint: its ``state_dict``, or the content of a file with a plain state dict.

    Args:
        path: the file.
        expected: the state dict of the task; names in the file may lack the prefix ``network.``.
        foreign: allow a missing checksum.
        about: prefix of error messages about weights that do not fit; default: the path.

    Raises:
        CheckpointError: it is missing, corrupt, or of another network.
    """
    about = path if about is None else about
    content = decode(read_checkpoint(path, at_most=_limit(expected), foreign=foreign), path)
    weights = content.get("state_dict", content)
    if isinstance(weights, dict) and weights.keys() != expected.keys():
        # the weights of a plain module have a longer prefix
        renamed = [{f"{prefix}{name}": value for name, value in weights.items()} for prefix in (NETWORK, MODULE)]
        named = next((each for each in renamed if each.keys() == expected.keys()), renamed[0])
        if named.keys() != expected.keys():
            missing = [f"no {name.removeprefix(NETWORK)}" for name in expected if name not in {*weights, *named}]
            others = [name for name in weights if name not in expected and f"{NETWORK}{name}" not in expected]
            unknown = [f"unknown {format_value(str(name).removeprefix(NETWORK))}" for name in others]
            wrong = [*missing, *unknown, "only some names have the prefix network"][0]
            known = list_options(name.removeprefix(NETWORK) for name in expected)
            raise CheckpointError(f"{about}: weights do not fit this run's network: {wrong}, {known}")
        weights = named
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: checkpoint contains no network weights")
    pairs = ((weights[name], expected[name], name.removeprefix(NETWORK)) for name in expected)
    if differences := [*filter(None, (difference(*pair) for pair in pairs))]:
        raise CheckpointError(f"{about}: weights do not fit this run's network: {'; '.join(differences)}")
    return weights


def decode(content: bytes, path: Path) -> dict[str, Any]:
    """Decode the bytes of a checkpoint without executing code from it.

    Raises:
        CheckpointError: it contains anything but tensors and plain values.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path}: not a PyTorch checkpoint") from error
    # PyTorch does not compress; the content must not be larger than the file
    is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_compressed or sum(entry.file_size for entry in entries) > len(content):
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, its content is compressed")
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES for entry in entries):
        raise CheckpointError(f"{path}: its pickle is too large for a checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SnnexpError:
        raise
    except Exception as error:
        # a corrupt stream may cause any exception
        raise CheckpointError(
            f"{path}: contains objects other than tensors and plain values, so it is not loaded"
        ) from error
    if not isinstance(decoded, dict):
        raise CheckpointError(f"{path}: not a checkpoint, it contains a {type(decoded).__name__}")
    return upgrade.checkpoint(decoded, path)


def template(task: Any, callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the expected structure of a checkpoint: names, shapes and types; the values are arbitrary.

    Args:
        task: the :class:`~snnexp.training.task.Task` to train.
        callbacks: the states of callbacks by their keys.
    """
    # optimizers create their state in the first step, which is done on copies of the parameters
    copies = [parameter.detach().clone().requires_grad_() for parameter in task.parameters()]
    made = task.make_optimizer(copies, 1)
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    made["optimizer"].step()
    schedulers = [made["lr_scheduler"]["scheduler"].state_dict()] if "lr_scheduler" in made else []
    return {
        "format": upgrade.FORMAT,
        "epoch": 0,
        "batch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "",
        "state_dict": task.state_dict(),
        "callbacks": {key: state for key, state in callbacks.items() if state},
        "optimizer_states": [made["optimizer"].state_dict()],
        "lr_schedulers": schedulers,
        "config": "",
        "metrics": {"bytes": 0, "sha256": ""},
    }


def difference(value: Any, expected: Any, path: str = "") -> str | None:
    """Return a message if names, types or shapes of ``value`` and ``expected`` differ, or a value is not finite."""
    if isinstance(expected, TypeSpec):
        return expected.difference(value, path)
    if isinstance(expected, Tensor):
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return f"{path} is not a tensor"
        if (value.dtype, value.shape) != (expected.dtype, expected.shape):
            return f"{path} is {_kind(value)}, must be {_kind(expected)}"
        return None if torch.isfinite(value).all() else f"{path} is not finite"
    if isinstance(expected, Mapping):
        if not isinstance(value, dict) or value.keys() != expected.keys():
            names = value.keys() ^ expected.keys() if isinstance(value, dict) else []
            other = sorted(format_value(name) for name in names)[:1]
            return f"{path or 'it'} has different keys{''.join(f', such as {name}' for name in other)}"
        pairs = [(value[key], expected[key], f"{path}.{key}".lstrip(".")) for key in expected]
    elif isinstance(expected, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(expected):
            return f"{path} is not a list of length {len(expected)}"
        pairs = [(value[index], part, f"{path}.{index}") for index, part in enumerate(expected)]
    else:
        if type(value) is not type(expected) or (isinstance(value, float) and math.isnan(value)):
            return f"{path} is {type(value).__name__}, must be {type(expected).__name__}"
        # counts must fit into 64 bits
        return f"{path} is out of range" if isinstance(value, int) and not 0 <= value < 2**62 else None
    return next(filter(None, (difference(*pair) for pair in pairs)), None)


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _list(value: Any) -> list[Any]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _limit(expected: Any) -> int:
    """Return the maximum size of a file to read, which is enough for any optimizer."""
    return 2**26 + 4 * sum(tensor.nbytes for tensor in _tensors(expected))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
