"""Delete runs: ``snnexp runs --delete``."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from snnexp.errors import ConfigError, InUseError
from snnexp.record.run import Run
from snnexp.text import one_line


def delete(folders: Sequence[Path], shown: str, confirmed: bool) -> str:
    """Delete run directories, all or none of which are refused; asks on the terminal first.

    Args:
        folders: of the runs.
        shown: a table of them.
        confirmed: whether not to ask.

    Returns:
        What was done, in a line.

    Raises:
        ConfigError: one is a point of a sweep, or no directory of a run, or nobody can be asked.
        InUseError: a process writes to one of them.
    """
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        name = one_line(str(run.path))
        if (run.path.parents[1] / "sweep.json").is_file():
            raise ConfigError(f"{name}: a point of a sweep, which would train it again; delete the folder of the sweep")
        if run.in_use():
            raise InUseError(f"{name}: in use by another process")
    size = sum(file.lstat().st_size for run in runs for file in run.path.rglob("*"))
    told = f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {size / 1e6:.1f} MB"
    if not confirmed:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigError("--delete: there is no terminal to ask on; add --yes to delete without a question")
        print(shown)
        print(f"delete {told}? [y/N] ", end="", flush=True)
        # nothing where the input has ended
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return "nothing deleted"
    with ExitStack() as locked:
        for run in runs:
            run.lock()
            locked.callback(run.close)
        for run in runs:
            # a name that no command looks into: what is left of it after an interruption is no run
            hidden = run.path.with_name(f".{run.path.name}.deleted")
            run.path.rename(hidden)
            shutil.rmtree(hidden)
    return f"deleted {told}"
