"""Runs below a folder."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnexp.errors import ConfigError
from snnexp.record.run import RUN_ID, Facts, Run
from snnexp.text import line


def found(folder: Path) -> list[Facts]:
    """What is known of each run below a folder, the newest last.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; snnexp runs DIR lists the runs below DIR")
    runs = [Run(path).facts() for path in find(folder)]
    return sorted(runs, key=lambda facts: (facts.started.timestamp() if facts.started else 0.0, str(facts.path)))


def find(folder: Path) -> Iterator[Path]:
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
            print(f"snnexp: {line(str(here))}: {error.strerror}", file=sys.stderr)
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
