"""Find, read and validate checkpoints.

A checkpoint contains only tensors, numbers and strings:

    state_dict, optimizer_states, lr_schedulers   as in PyTorch
    callbacks                                     states of callbacks, and fitted values
    format                                        see :mod:`snnexp.record.upgrade`
    epoch, batch, global_step                     completed epochs, batches of the next epoch, optimizer steps
    config, metrics                               the config as JSON; length and SHA-256 of metrics.jsonl so far
    stopped_early                                 epoch, step and reason of early stopping, if it happened
    finishing                                     reason to stop after the current epoch, if any

It is taken between two steps, after everything of the previous step has been logged. It determines how the run
continues: random numbers depend only on the seed and the position in the run.
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
    wanted: Mapping[str, Any],
    batches: int,
    require_same: Callable[[dict[str, Any]], None],
    step: int | None = None,
) -> Checkpoint | None:
    """Return the newest valid checkpoint of a run to resume from; None if nothing has been trained yet.

    Args:
        run: the run directory.
        wanted: the expected structure, see :func:`template`.
        batches: batches per epoch.
        require_same: raises if the run cannot be resumed from a checkpoint with this config.
        step: return the checkpoint of this step, or None if there is no valid one.

    Raises:
        CheckpointError: all checkpoints are corrupt or of another run, or a checkpoint is missing.
    """
    folder = run.checkpoints
    if step is not None:
        return _of_step(step, run, wanted, batches, require_same)
    errors: list[CheckpointError] = []
    paths = [path for path in (folder / f"{name}.ckpt" for name in NEWEST_FIRST) if path.exists()]
    # start over from init.ckpt only if nothing else was saved, not if something is corrupt
    for path in paths or [path for path in [folder / "init.ckpt"] if path.exists()]:
        try:
            found = _of_run(path, run, wanted, batches, require_same)
        except CheckpointError as error:
            errors.append(error)
        else:
            for earlier in errors:
                LOG.warning("%s; continuing from %s, step %d", one_line(str(earlier)), path.name, found.step)
            return found
    if errors:
        raise errors[0]
    if not (run.path / "metrics.jsonl").stat().st_size:
        return None
    raise CheckpointError(f"{folder}: no checkpoint is left")


def _of_step(step: int, *of_run: Any) -> Checkpoint | None:
    for path in (of_run[0].checkpoints / f"{name}.ckpt" for name in (*NEWEST_FIRST, "init")):
        with suppress(CheckpointError):
            found = _of_run(path, *of_run)
            if found.step == step:
                return found
    return None


def _of_run(
    path: Path, run: Run, wanted: Mapping[str, Any], batches: int, require_same: Callable[[dict[str, Any]], None]
) -> Checkpoint:
    content = decode(read_checkpoint(path, at_most=_limit(wanted)), path)
    keys = ("config", "metrics", "epoch", "batch", "global_step")
    _require_match(path, {name: content.get(name) for name in keys}, {name: wanted[name] for name in keys})
    if not run.has_metrics(content["metrics"]):
        raise CheckpointError(f"{path}: checkpoint does not belong to the metrics.jsonl of this run")
    try:
        config = json.loads(content["config"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: checkpoint holds no config") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: checkpoint holds no config")
    config = upgrade.config(config)
    # report the key of a changed config first, not its consequences
    require_same(config)
    _require_match(path, content, wanted)
    found = Checkpoint(path, content, config)
    epoch, batch = found.position
    if batch >= batches or found.step != epoch * batches + batch:
        raise CheckpointError(f"{path}: checkpoint has an invalid position for this run")
    return found


def read(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of this run for evaluation; optimizer, scheduler and other callbacks are not compared.

    Raises:
        CheckpointError: it is corrupt, or its names, shapes or types differ from ``wanted``, or a value is not finite.
    """
    found = decode(read_checkpoint(path, at_most=_limit(wanted)), path)
    others = {name: wanted[name] for name in ("optimizer_states", "lr_schedulers")}
    if isinstance(states := found.get("callbacks"), dict):
        others["callbacks"] = {key: state for key, state in states.items() if key in wanted["callbacks"]}
    _require_match(path, {**found, **others}, wanted)
    return found


def read_callback_states(path: Path) -> dict[str, Any]:
    """Return the states of callbacks in a checkpoint of this run by their keys.

    Raises:
        CheckpointError: it is corrupt.
    """
    found = decode(read_checkpoint(path), path).get("callbacks")
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: checkpoint holds no states of callbacks")
    return found


@dataclass(frozen=True)
class TypeSpec:
    """The type of a value in a checkpoint: ``str``, ``float | None``, ``list[int]``, ``Tensor`` of any shape."""

    annotation: Any

    def difference(self, found: Any, path: str) -> str | None:
        """Return a message if ``found`` does not have this type."""
        if _is_instance(found, self.annotation):
            return None
        name = self.annotation.__name__ if type(self.annotation) is type else self.annotation
        return f"{path} is {type(found).__name__}, must be {name}"


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


def _require_match(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = {**wanted, **{name: value for name, value in OPTIONAL.items() if name in found}}
    if isinstance(states := found.get("callbacks"), dict):
        expected = wanted["callbacks"].items()
        wanted["callbacks"] = {key: state for key, state in expected if key in states or key not in LATER}
    reason = difference(_with_all_states(found, wanted), wanted)
    if reason:
        raise CheckpointError(f"{path}: checkpoint does not fit this run: {reason}")


def _with_all_states(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``found`` in which each optimizer has a state for every parameter.

    Parameters without a gradient have none, and before the first step no parameter has one.
    """
    partial, complete = (_list(content.get("optimizer_states")) for content in (found, wanted))
    if len(partial) != len(complete):
        return dict(found)
    filled = [
        {**part, "state": {**whole["state"], **part["state"]}} if isinstance(part.get("state"), dict) else part
        for part, whole in zip(partial, complete, strict=True)
    ]
    return {**found, "optimizer_states": filled} if filled else dict(found)


def read_network_weights(
    path: Path, wanted: Mapping[str, Tensor] | None = None, foreign: bool = False
) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by their names in the network, without the prefix ``network.``.

    Args:
        path: the file.
        wanted: the state dict of a network; a file that is much larger is not read.
        foreign: allow a missing checksum, and a plain state dict.

    Raises:
        CheckpointError: it is missing, corrupt, or contains no weights.
    """
    at_most = None if wanted is None else _limit(wanted)
    content = decode(read_checkpoint(path, at_most, foreign), path)
    state = content.get("state_dict", content if foreign else None)
    named = {name: value for name, value in state.items() if isinstance(name, str)} if isinstance(state, dict) else {}
    found = {name.removeprefix(NETWORK): value for name, value in named.items() if name.startswith(NETWORK)}
    found = found or (named if foreign else {})
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: checkpoint holds no weights of a network")
    return found


def read_weights(
    path: Path, wanted: Mapping[str, Tensor], foreign: bool = True, about: object = None
) -> dict[str, Tensor]:
    """Return the weights of any checkpoint: its ``state_dict``, or the content of a file with a plain state dict.

    Args:
        path: the file.
        wanted: the state dict of the task; names in the file may lack the prefix ``network.``.
        foreign: allow a missing checksum.
        about: prefix of error messages about weights that do not fit; default: the path.

    Raises:
        CheckpointError: it is missing, corrupt, or of another network.
    """
    about = path if about is None else about
    found = decode(read_checkpoint(path, at_most=_limit(wanted), foreign=foreign), path)
    weights = found.get("state_dict", found)
    if isinstance(weights, dict) and weights.keys() != wanted.keys():
        # the weights of a plain module have a longer prefix
        renamed = [{f"{prefix}{name}": value for name, value in weights.items()} for prefix in (NETWORK, MODULE)]
        named = next((each for each in renamed if each.keys() == wanted.keys()), renamed[0])
        if named.keys() != wanted.keys():
            missing = [f"no {name.removeprefix(NETWORK)}" for name in wanted if name not in {*weights, *named}]
            others = [name for name in weights if name not in wanted and f"{NETWORK}{name}" not in wanted]
            unknown = [f"unknown {format_value(str(name).removeprefix(NETWORK))}" for name in others]
            wrong = [*missing, *unknown, f"only some names have the prefix {NETWORK}"][0]
            expected = list_options(name.removeprefix(NETWORK) for name in wanted)
            raise CheckpointError(f"{about}: weights do not fit this run's network: {wrong}, {expected}")
        weights = named
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: checkpoint holds no weights of a network")
    pairs = ((weights[name], wanted[name], name.removeprefix(NETWORK)) for name in wanted)
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
        raise CheckpointError(f"{path}: not a checkpoint of PyTorch") from error
    # PyTorch does not compress; the content must not be larger than the file
    is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_compressed or sum(entry.file_size for entry in entries) > len(content):
        raise CheckpointError(f"{path}: not a checkpoint of PyTorch, its content is compressed")
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES for entry in entries):
        raise CheckpointError(f"{path}: describes more tensors than a network has")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SnnexpError:
        raise
    except Exception as error:
        # a corrupt stream may cause any exception
        raise CheckpointError(f"{path}: holds more than tensors and plain values, so it is not trusted") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a checkpoint, it holds a {type(found).__name__}")
    return upgrade.checkpoint(found, path)


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


def difference(found: Any, wanted: Any, path: str = "") -> str | None:
    """Return a message if names, types or shapes of ``found`` and ``wanted`` differ, or a value is not finite."""
    if isinstance(wanted, TypeSpec):
        return wanted.difference(found, path)
    if isinstance(wanted, Tensor):
        if not isinstance(found, Tensor) or found.layout != torch.strided:
            return f"{path} is not a tensor"
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            return f"{path} is {_kind(found)}, must be {_kind(wanted)}"
        return None if torch.isfinite(found).all() else f"{path} is not finite"
    if isinstance(wanted, Mapping):
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            names = found.keys() ^ wanted.keys() if isinstance(found, dict) else []
            other = sorted(format_value(name) for name in names)[:1]
            return f"{path or 'it'} has other names{''.join(f', {name}' for name in other)}"
        pairs = [(found[key], wanted[key], f"{path}.{key}".lstrip(".")) for key in wanted]
    elif isinstance(wanted, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(wanted):
            return f"{path} is not a list of {len(wanted)}"
        pairs = [(found[index], part, f"{path}.{index}") for index, part in enumerate(wanted)]
    else:
        if type(found) is not type(wanted) or (isinstance(found, float) and math.isnan(found)):
            return f"{path} is {type(found).__name__}, must be {type(wanted).__name__}"
        # counts must fit into 64 bits
        return f"{path} is out of range" if isinstance(found, int) and not 0 <= found < 2**62 else None
    return next(filter(None, (difference(*pair) for pair in pairs)), None)


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _list(value: Any) -> list[Any]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _limit(wanted: Any) -> int:
    """Return the maximum size of a file to read, which is enough for any optimizer."""
    return 2**26 + 4 * sum(tensor.nbytes for tensor in _tensors(wanted))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
