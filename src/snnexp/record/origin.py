"""What the sweep that a run belongs to has recorded of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snnexp.errors import CheckpointError
from snnexp.record.facts import Facts
from snnexp.record.files import read_regular
from snnexp.record.plain import parse_json

MAX_BYTES = 2**28
"""Of sweep.json."""


@dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    Args:
        folders: more configs that it was composed with, as of ``--config-dir``.
        experiment: the experiment of its sweep; empty where it belongs to none.
        metric: what the search that chose it went by; empty where it was not chosen.
        maximize: whether that search looked for a high value; None where that is not recorded.
    """

    folders: tuple[Path, ...] = ()
    experiment: str = ""
    metric: str = ""
    maximize: bool | None = None


def origin(run: Facts) -> Origin:
    """Where a run comes from, as far as its record and that of its sweep tell."""
    found = read_sweep(run.path.parents[1]) if run.path.parent.name == "runs" else Origin()
    return replace(found, folders=_folders(run.record, "config_dir") or found.folders)


def read_sweep(folder: Path) -> Origin:
    """What a sweep has recorded; nothing where it has no record that can be read."""
    try:
        record = parse_json(read_regular(folder / "sweep.json", at_most=MAX_BYTES))
    except (CheckpointError, OSError, ValueError, RecursionError):
        return Origin()
    search = _mapping(record, "search")
    settings = _mapping(search, "settings")
    direction = settings.get("direction")
    return Origin(
        # earlier versions kept it for a search alone
        _folders(record, "config_dir") or _folders(search, "folder"),
        _text(record, "experiment"),
        _text(settings, "metric"),
        direction == "maximize" if isinstance(direction, str) else None,
    )


def serialize_folders(folders: Sequence[Path]) -> str | list[str] | None:
    """How folders of configs are recorded: one as a text, as in earlier versions, several as a list."""
    paths = [str(folder.absolute()) for folder in folders]
    return paths if len(paths) > 1 else paths[0] if paths else None


def parse_folders(kept: object) -> tuple[Path, ...]:
    """What :func:`serialize_folders` has given.

    Raises:
        TypeError: it is something else.
    """
    paths = [] if kept is None else [kept] if isinstance(kept, str) else kept
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise TypeError(kept)
    return tuple(map(Path, paths))


def common_search(runs: Sequence[Facts]) -> Origin:
    """The search that all runs come from, or searches by the same metric; no metric where there is none."""
    folders = dict.fromkeys(run.path.parents[1] if run.path.parent.name == "runs" else None for run in runs)
    found = [Origin() if folder is None else read_sweep(folder) for folder in folders]
    by = {(one.metric, one.maximize) for one in found}
    return found[0] if len(by) == 1 else Origin()


def _mapping(node: Any, key: str) -> Mapping[str, Any]:
    found = node.get(key) if isinstance(node, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _folders(node: Any, key: str) -> tuple[Path, ...]:
    try:
        return parse_folders(node.get(key) if isinstance(node, Mapping) else None)
    except TypeError:
        return ()


def _text(node: Any, key: str) -> str:
    found = node.get(key) if isinstance(node, Mapping) else None
    return found if isinstance(found, str) else ""
