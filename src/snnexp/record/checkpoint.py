"""Checkpoints: what is in them, and what is checked before one is believed.

A checkpoint holds tensors, numbers and texts alone:

    state_dict, optimizer_states, lr_schedulers   as PyTorch has them
    callbacks                                     what observers have counted, and what was fitted
    format                                        see :mod:`snnexp.record.upgrade`
    epoch, batch, global_step                     epochs done, batches done in the one after, optimiser steps
    config, metrics                               the run's config, JSON; length and SHA-256 of its metrics so far
    stopped_early                                 of a run that has stopped early: epoch, step and reason
    finishing                                     why it is to stop after the epoch that is under way, if it is

It is taken between two steps, when all that belongs to the step before is done and logged, and nothing else decides how
the run goes on: random numbers depend on the seed and the place in the run alone.
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
"""In front of the names of a network's weights, in the state of its task."""
MODULE = f"{NETWORK}module."
"""In front of those of a plain module that is the network."""
NEWEST_FIRST = ("last", "previous", "best")
MAX_PICKLE_BYTES = 2**20
"""Of what describes the tensors: a few hundred bytes each."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was checked, and the config that it was taken under."""

    path: Path
    content: dict[str, Any]
    config: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps that are done."""
        return int(self.content["global_step"])

    @property
    def position(self) -> tuple[int, int]:
        """Epochs that are done, and batches of the next one that are."""
        return self.content["epoch"], self.content["batch"]


def find(
    run: Run,
    wanted: Mapping[str, Any],
    batches: int,
    require_same: Callable[[dict[str, Any]], None],
    step: int | None = None,
) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run, to resume it from; None where nothing has been trained yet.

    Args:
        run: the run directory.
        wanted: a checkpoint of the same run, see :func:`template`.
        batches: of an epoch.
        require_same: raises for the config of a checkpoint that the run cannot be resumed from.
        step: look for one of this step, and return None where no undamaged one is.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged or not of this run; or there should be one.
    """
    folder = run.checkpoints
    if step is not None:
        return _of_step(step, run, wanted, batches, require_same)
    errors: list[CheckpointError] = []
    paths = [path for path in (folder / f"{name}.ckpt" for name in NEWEST_FIRST) if path.exists()]
    # to begin anew is right for a run that was not saved yet, and too much where something is damaged
    for path in paths or [path for path in [folder / "init.ckpt"] if path.exists()]:
        try:
            found = _of_run(path, run, wanted, batches, require_same)
        except CheckpointError as error:
            errors.append(error)
        else:
            for earlier in errors:
                LOG.warning("%s; going on from %s, step %d", one_line(str(earlier)), path.name, found.step)
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
    about = ("config", "metrics", "epoch", "batch", "global_step")
    _require_alike(path, {name: content.get(name) for name in about}, {name: wanted[name] for name in about})
    if not run.has_metrics(content["metrics"]):
        raise CheckpointError(f"{path}: checkpoint does not belong to the metrics.jsonl of this run")
    try:
        config = json.loads(content["config"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: checkpoint holds no config") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: checkpoint holds no config")
    config = upgrade.config(config)
    # a config that changed is told by its key, before what follows from it
    require_same(config)
    _require_alike(path, content, wanted)
    found = Checkpoint(path, content, config)
    epoch, batch = found.position
    if batch >= batches or found.step != epoch * batches + batch:
        raise CheckpointError(f"{path}: checkpoint is of no place in this run")
    return found


def read(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of one's own run, to measure with: its optimiser, and what watched it in training, may be another.

    Raises:
        CheckpointError: it is not what was written, or not like ``wanted``: names, shapes, types, finite numbers.
    """
    found = decode(read_checkpoint(path, at_most=_limit(wanted)), path)
    others = {name: wanted[name] for name in ("optimizer_states", "lr_schedulers")}
    if isinstance(states := found.get("callbacks"), dict):
        others["callbacks"] = {key: state for key, state in states.items() if key in wanted["callbacks"]}
    _require_alike(path, {**found, **others}, wanted)
    return found


def read_callback_states(path: Path) -> dict[str, Any]:
    """What the observers of a run kept in one of its own checkpoints, by their keys.

    Raises:
        CheckpointError: it is not what was written.
    """
    found = decode(read_checkpoint(path), path).get("callbacks")
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: checkpoint holds no states of observers")
    return found


@dataclass(frozen=True)
class TypeSpec:
    """What a value of a checkpoint may be: ``str``, ``float | None``, ``list[int]``, ``Tensor`` of any shape."""

    annotation: Any

    def difference(self, found: Any, path: str) -> str | None:
        """What makes ``found`` another value than these."""
        if _is(found, self.annotation):
            return None
        name = self.annotation.__name__ if type(self.annotation) is type else self.annotation
        return f"{path} is {type(found).__name__} where {name} belongs"


def _is(value: Any, annotation: Any) -> bool:
    if isinstance(annotation, UnionType):
        return any(_is(value, each) for each in get_args(annotation))
    if get_origin(annotation) is list:
        return isinstance(value, list) and all(_is(each, *get_args(annotation)) for each in value)
    # a number may be none, or out of range
    return type(value) is (annotation or NoneType) and difference(value, value) is None


OPTIONAL = {"stopped_early": {"epoch": 0, "step": 0, "reason": ""}, "finishing": ""}
"""What a checkpoint may hold beside the rest."""
LATER = ("scaling",)
"""Keys of states that older checkpoints of a run do not hold."""


def _require_alike(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = {**wanted, **{name: value for name, value in OPTIONAL.items() if name in found}}
    if isinstance(kept := found.get("callbacks"), dict):
        expected = wanted["callbacks"].items()
        wanted["callbacks"] = {key: state for key, state in expected if key in kept or key not in LATER}
    what = difference(_with_all_states(found, wanted), wanted)
    if what:
        raise CheckpointError(f"{path}: checkpoint does not fit this run: {what}")


def _with_all_states(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``found`` in which each optimiser has a state for every parameter.

    A parameter that takes no part in the loss has none, and before the first step no parameter has one.
    """
    parts, known = (_list(content.get("optimizer_states")) for content in (found, wanted))
    if len(parts) != len(known):
        return dict(found)
    filled = [
        {**part, "state": {**whole["state"], **part["state"]}} if isinstance(part.get("state"), dict) else part
        for part, whole in zip(parts, known, strict=True)
    ]
    return {**found, "optimizer_states": filled} if filled else dict(found)


def read_network_weights(
    path: Path, wanted: Mapping[str, Tensor] | None = None, foreign: bool = False
) -> dict[str, Tensor]:
    """The weights of a checkpoint by their names in the network, without ``network.`` in front.

    Args:
        path: the file.
        wanted: the state of a network; a file that is much larger is not read.
        foreign: it may come without a checksum, and with the names alone.

    Raises:
        CheckpointError: it cannot be read, is damaged, or holds no weights.
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
    """The weights of a checkpoint from anywhere: ``state_dict`` of a checkpoint, or a file that holds nothing else.

    Args:
        path: the file.
        wanted: the state of the run's task; names may also be those of its network, without ``network.`` in front.
        foreign: it may come without a checksum.
        about: what a sentence about weights that do not fit begins with; the path by default.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is of another network.
    """
    about = path if about is None else about
    found = decode(read_checkpoint(path, at_most=_limit(wanted), foreign=foreign), path)
    weights = found.get("state_dict", found)
    if isinstance(weights, dict) and weights.keys() != wanted.keys():
        # those of a plain module stand one place deeper
        ways = [{f"{before}{name}": value for name, value in weights.items()} for before in (NETWORK, MODULE)]
        named = next((way for way in ways if way.keys() == wanted.keys()), ways[0])
        if named.keys() != wanted.keys():
            missing = [f"no {name.removeprefix(NETWORK)}" for name in wanted if name not in {*weights, *named}]
            others = [name for name in weights if name not in wanted and f"{NETWORK}{name}" not in wanted]
            unknown = [f"unknown {format_value(str(name).removeprefix(NETWORK))}" for name in others]
            wrong = [*missing, *unknown, f"{NETWORK} stands before some names only"][0]
            expected = list_options(name.removeprefix(NETWORK) for name in wanted)
            raise CheckpointError(f"{about}: weights do not fit this run's network: {wrong}, {expected}")
        weights = named
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: checkpoint holds no weights of a network")
    pairs = ((weights[name], wanted[name], name.removeprefix(NETWORK)) for name in wanted)
    if misfits := [*filter(None, (difference(*pair) for pair in pairs))]:
        raise CheckpointError(f"{about}: weights do not fit this run's network: {'; '.join(misfits)}")
    return weights


def decode(content: bytes, path: Path) -> dict[str, Any]:
    """The mapping that a checkpoint's bytes hold, if they hold tensors and plain values; none of its code is run.

    Raises:
        CheckpointError: they hold something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of PyTorch") from error
    # PyTorch compresses nothing; what it would unpack must not be larger than what came
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > len(content):
        raise CheckpointError(f"{path}: not a checkpoint of PyTorch, its content is packed")
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES for entry in entries):
        raise CheckpointError(f"{path}: describes more tensors than a network has")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SnnexpError:
        raise
    except Exception as error:
        # in a damaged stream the reader may meet anything
        raise CheckpointError(f"{path}: holds more than tensors and plain values, so it is not trusted") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a checkpoint, it holds a {type(found).__name__}")
    return upgrade.checkpoint(found, path)


def template(task: Any, callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of a run looks like: every name, shape and type; the values mean nothing.

    Args:
        task: the :class:`~snnexp.training.task.Task` that will be trained.
        callbacks: the states of callbacks, by their keys.
    """
    # the first step gives an optimiser its state, and a copy must take it
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
    """What makes ``found`` unlike ``wanted``, whatever their values: names, types, shapes, numbers that are none."""
    if isinstance(wanted, TypeSpec):
        return wanted.difference(found, path)
    if isinstance(wanted, Tensor):
        if not isinstance(found, Tensor) or found.layout != torch.strided:
            return f"{path} is no tensor"
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
            return f"{path} is no list of {len(wanted)}"
        pairs = [(found[index], part, f"{path}.{index}") for index, part in enumerate(wanted)]
    else:
        if type(found) is not type(wanted) or (isinstance(found, float) and math.isnan(found)):
            return f"{path} is {type(found).__name__} where {type(wanted).__name__} belongs"
        # counts go into 64 bits
        return f"{path} is out of range" if isinstance(found, int) and not 0 <= found < 2**62 else None
    return next(filter(None, (difference(*pair) for pair in pairs)), None)


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _list(value: Any) -> list[Any]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _limit(wanted: Any) -> int:
    """Bytes beyond which a file is not even looked at: those of any optimiser, and room to say what is wrong."""
    return 2**26 + 4 * sum(tensor.nbytes for tensor in _tensors(wanted))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
