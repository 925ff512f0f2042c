"""Where runs are: below a folder, or by what was typed."""

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
"""The folder of runs, where ``logger.root`` names no other one."""


def list_runs(folder: Path) -> list[Facts]:
    """What is known of each run below a folder, the newest last.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; snnexp runs DIR lists the runs below DIR")
    runs = [Run(path).facts() for path in find_runs(folder)]
    return sorted(runs, key=lambda facts: (facts.started.timestamp() if facts.started else 0.0, str(facts.path)))


def find_runs(folder: Path) -> Iterator[Path]:
    """The run directories in and below a folder; no link is followed, and nothing hidden is looked into."""
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(here) as listed:
                entries = {entry.name: entry for entry in listed}
        except FileNotFoundError:
            # a run that has just been renamed or removed
            continue
        except OSError as error:
            print(f"snnexp: {one_line(str(here))}: {error.strerror}", file=sys.stderr)
            continue
        # other folders may have a config.yaml too
        if "run.json" in entries or ("config.yaml" in entries and RUN_ID.fullmatch(here.name)):
            yield here
            continue
        folders += [
            here / name
            for name, entry in entries.items()
            if not name.startswith(".") and entry.is_dir(follow_symlinks=False)
        ]


def as_json(facts: Facts) -> dict[str, Any]:
    """What is known of a run, for programs."""
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


def locate(typed: str) -> Path:
    """The directory of a run or sweep, which is typed as a path, as its id, or as an end that no other id has.

    Args:
        typed: ids are searched for below ``outputs/``, those of a sweep's runs too.

    Raises:
        ConfigError: there is none, or several ids end so.
    """
    path = Path(os.path.expanduser(typed))
    if os.path.exists(path) or len(path.parts) != 1:
        return path
    found = [*_directories(Path(OUTPUTS))]
    ending = [one for one in found if one.name.endswith(path.name)]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"{one_line(typed)}: {len(ending)} ids end with it, {list_options(map(str, ending))}")
    ids = [one.name for one in found]
    hint = suggest(typed, ids) if ids else f"there are none below {OUTPUTS}/"
    raise ConfigError(f"{one_line(typed)}: no such directory, and no id of a run or sweep ends with it; {hint}")


def _directories(folder: Path) -> Iterator[Path]:
    """The directories of runs and sweeps below a folder, by their names; no link is followed."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        # it is not there, or is nobody's to read
        return
    for name in names:
        path = folder / name
        is_one = RUN_ID.fullmatch(name) is not None
        if is_one:
            yield path
        if not is_one or (path / "sweep.json").is_file():
            yield from _directories(path)
