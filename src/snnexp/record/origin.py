"""What the sweep that a run belongs to has recorded of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snnexp.errors import CheckpointError
from snnexp.record.run import Facts, plain_file, plain_json

MAX_BYTES = 2**28
"""Of sweep.json."""


@dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    Args:
        config_dir: more configs that it was composed with, as of ``--config-dir``; empty where there were none.
        experiment: the experiment of its sweep; empty where it belongs to none.
        metric: what the search that chose it went by; empty where it was not chosen.
        maximize: whether that search looked for a high value; None where that is not recorded.
    """

    config_dir: str = ""
    experiment: str = ""
    metric: str = ""
    maximize: bool | None = None


def origin(run: Facts) -> Origin:
    """Where a run comes from, as far as its record and that of its sweep tell."""
    found = sweep(run.path.parents[1]) if run.path.parent.name == "runs" else Origin()
    return replace(found, config_dir=_text(run.record, "config_dir") or found.config_dir)


def sweep(folder: Path) -> Origin:
    """What a sweep has recorded; nothing where it has no record that can be read."""
    try:
        record = plain_json(plain_file(folder / "sweep.json", at_most=MAX_BYTES))
    except (CheckpointError, OSError, ValueError, RecursionError):
        return Origin()
    search = _mapping(record, "search")
    settings = _mapping(search, "settings")
    direction = settings.get("direction")
    return Origin(
        # earlier versions kept it for a search alone
        _text(record, "config_dir") or _text(search, "folder"),
        _text(record, "experiment"),
        _text(settings, "metric"),
        direction == "maximize" if isinstance(direction, str) else None,
    )


def searched_by(runs: Sequence[Facts]) -> Origin:
    """The search that all runs come from, or searches by the same metric; no metric where there is none."""
    folders = dict.fromkeys(run.path.parents[1] if run.path.parent.name == "runs" else None for run in runs)
    found = [Origin() if folder is None else sweep(folder) for folder in folders]
    by = {(one.metric, one.maximize) for one in found}
    return found[0] if len(by) == 1 else Origin()


def _mapping(node: Any, key: str) -> Mapping[str, Any]:
    found = node.get(key) if isinstance(node, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _text(node: Any, key: str) -> str:
    found = node.get(key) if isinstance(node, Mapping) else None
    return found if isinstance(found, str) else ""
