"""The origin of a run: config folders, and the sweep or search that it belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snnexp.errors import CheckpointError
from snnexp.record.facts import Facts
from snnexp.record.files import read_regular
from snnexp.record.plain import parse_json

MAX_BYTES = 2**28
"""Maximum size of sweep.json."""


@dataclass(frozen=True)
class Origin:
    """The origin of a run.

    Args:
        folders: additional config folders, as given by ``--config-dir``.
        experiment: the experiment of its sweep; empty without a sweep.
        metric: the metric optimized by its search; empty without a search.
        maximize: True if the search maximizes the metric; None if not recorded.
    """

    folders: tuple[Path, ...] = ()
    experiment: str = ""
    metric: str = ""
    maximize: bool | None = None


def origin(run: Facts) -> Origin:
    """Return the origin of a run from its record and that of its sweep."""
    of_sweep = read_sweep(run.path.parents[1]) if run.path.parent.name == "runs" else Origin()
    return replace(of_sweep, folders=_folders(run.record, "config_dir") or of_sweep.folders)


def read_sweep(folder: Path) -> Origin:
    """Return the origin recorded in sweep.json; an empty one if the file is missing or corrupt."""
    try:
        record = parse_json(read_regular(folder / "sweep.json", at_most=MAX_BYTES))
    except (CheckpointError, OSError, ValueError, RecursionError):
        return Origin()
    search = _mapping(record, "search")
    settings = _mapping(search, "settings")
    direction = settings.get("direction")
    return Origin(
        # earlier versions stored it for searches only
        _folders(record, "config_dir") or _folders(search, "folder"),
        _text(record, "experiment"),
        _text(settings, "metric"),
        direction == "maximize" if isinstance(direction, str) else None,
    )


def serialize_folders(folders: Sequence[Path]) -> str | list[str] | None:
    """Return config folders as JSON values: a string for one folder, as in earlier versions, else a list."""
    paths = [str(folder.absolute()) for folder in folders]
    return paths if len(paths) > 1 else paths[0] if paths else None


def parse_folders(value: object) -> tuple[Path, ...]:
    """Parse the result of :func:`serialize_folders`.

    Raises:
        TypeError: it has another type.
    """
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise TypeError(value)
    return tuple(map(Path, paths))


def common_search(runs: Sequence[Facts]) -> Origin:
    """Return the origin of all runs if their searches optimize the same metric, else an empty one."""
    folders = dict.fromkeys(run.path.parents[1] if run.path.parent.name == "runs" else None for run in runs)
    origins = [Origin() if folder is None else read_sweep(folder) for folder in folders]
    objectives = {(each.metric, each.maximize) for each in origins}
    return origins[0] if len(objectives) == 1 else Origin()


def _mapping(node: Any, key: str) -> Mapping[str, Any]:
    value = node.get(key) if isinstance(node, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _folders(node: Any, key: str) -> tuple[Path, ...]:
    try:
        return parse_folders(node.get(key) if isinstance(node, Mapping) else None)
    except TypeError:
        return ()


def _text(node: Any, key: str) -> str:
    value = node.get(key) if isinstance(node, Mapping) else None
    return value if isinstance(value, str) else ""
