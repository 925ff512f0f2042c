"""Resolve ``num_steps=auto``, the number of time steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp.config.plain import Pickled
from snnexp.errors import SnnexpError
from snnexp.spec import parts
from snnexp.spec.annotations import InFile
from snnexp.spec.rules import Facts

AUTO = "auto"
DEFAULT = 25
"""Steps of inputs that are constant in time, and of sequences whose length is unknown before they are read."""


def resolve_num_steps(cfg: DictConfig) -> DictConfig:
    """Replace ``num_steps=auto`` in a composed config by a number."""
    if OmegaConf.is_interpolation(cfg, "num_steps") or cfg.get("num_steps") != AUTO:
        return cfg
    try:
        data = OmegaConf.to_container(cfg.data, resolve=True)
    except OmegaConfBaseException:
        # reported when values are checked
        data = None
    found = Pickled(cfg).copy()
    OmegaConf.update(
        found, "num_steps", (num_steps_of_data(data) if isinstance(data, dict) else None) or DEFAULT, merge=False
    )
    return found


def num_steps_of_data(node: Mapping[Any, Any]) -> int | None:
    """Return the length of the sequences of a data part, if its source or its file determines it."""
    target = node.get("_target_")
    if not isinstance(target, str):
        return None
    spec = parts.of(target)
    fact = spec.fact("num_steps")
    values = {name: argument.value for name, argument in spec.arguments.items()} | {**node}
    found = _in_file(fact, values) if isinstance(fact, InFile) else Facts(spec, values).num_steps
    return found if isinstance(found, int) and found > 0 else None


def _in_file(fact: InFile, values: Mapping[str, Any]) -> int | None:
    name, sequences = values.get(fact.array), values.get(fact.sequences)
    path = next((values[key] for key in fact.files if isinstance(values.get(key), str)), None)
    if path is None or not isinstance(name, str):
        return None
    # imports NumPy, which most configs do not need
    from snnexp import files

    try:
        file: Path | None = files.absolute(path)
        if fact.per_sample and file is not None:
            file = _first(file)
        array = None if file is None else files.open_arrays(file).get(name)
    except (SnnexpError, OSError, ValueError):
        # reported when the file is read
        return None
    shape = () if array is None else ((0,) if fact.per_sample else ()) + array.shape
    timed = sequences is True or (sequences is None and len(shape) in (3, 5))
    return shape[1] if timed and len(shape) > 1 else None


def _first(folder: Path) -> Path | None:
    """Return the first npz file of a folder, else of its first subfolder, without listing all files."""
    found = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    file = next((each for each in found if each.suffix == ".npz"), None)
    inside = next((each for each in found if each.is_dir()), None)
    return file or (None if inside is None else _first(inside))
