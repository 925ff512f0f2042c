"""Find run directories below a folder, or by id."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnexp.errors import ConfigError
from snnexp.record.facts import Facts
from snnexp.record.names import RUN_ID
from snnexp.record.run import Run
from snnexp.text import list_options, one_line, suggest

OUTPUTS = "outputs"
"""The default of ``logger.root``, the folder of runs."""


def list_runs(folder: Path) -> list[Facts]:
    """Return the facts of all runs below a folder, newest last.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; snnexp runs DIR lists the runs below DIR")
    runs = [Run(path).facts() for path in find_runs(folder)]
    return sorted(runs, key=lambda facts: (facts.started.timestamp() if facts.started else 0.0, str(facts.path)))


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the run directories in and below a folder; links and hidden folders are skipped."""
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(here) as scan:
                entries = {entry.name: entry for entry in scan}
        except FileNotFoundError:
            # a run that was just renamed or deleted
            continue
        except OSError as error:
            print(f"snnexp: {one_line(str(here))}: {error.strerror}", file=sys.stderr)
            continue
        # other folders may contain a config.yaml too
        if "run.json" in entries or ("config.yaml" in entries and RUN_ID.fullmatch(here.name)):
            yield here
            continue
        folders += [
            here / name
            for name, entry in entries.items()
            if not name.startswith(".") and entry.is_dir(follow_symlinks=False)
        ]


def as_json(facts: Facts) -> dict[str, Any]:
    """Return the facts of a run as JSON values."""
    return {
        "path": str(facts.path),
        "id": facts.id,
        "status": facts.status,
        "started": facts.started and facts.started.isoformat(),
        "duration_s": facts.duration_s,
        "experiment": facts.experiment,
        "seed": facts.seed,
        "overrides": facts.overrides,
        "metrics": facts.metrics,
        "exit_code": facts.exit_code,
        "reason": facts.reason,
        "progress": facts.progress,
    }


def locate(name: str) -> Path:
    """Return the directory of a run or sweep.

    Args:
        name: a path, an id, or a unique suffix of an id. Ids are searched below ``outputs/``, including runs of sweeps.

    Raises:
        ConfigError: no id, or more than one, ends with ``name``.
    """
    path = Path(os.path.expanduser(name))
    if os.path.exists(path) or len(path.parts) != 1:
        return path
    directories = [*_directories(Path(OUTPUTS))]
    matching = [each for each in directories if each.name.endswith(path.name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise ConfigError(f"{one_line(name)}: {len(matching)} ids end with it, {list_options(map(str, matching))}")
    ids = [each.name for each in directories]
    hint = suggest(name, ids) if ids else f"there are none below {OUTPUTS}/"
    raise ConfigError(f"{one_line(name)}: no such directory, and no id of a run or sweep ends with it; {hint}")


def _directories(folder: Path) -> Iterator[Path]:
    """Yield the directories of runs and sweeps below a folder, recognized by name; links are skipped."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        # missing or not readable
        return
    for name in names:
        path = folder / name
        has_id = RUN_ID.fullmatch(name) is not None
        if has_id:
            yield path
        if not has_id or (path / "sweep.json").is_file():
            yield from _directories(path)
