"""``snnexp runs --delete``: delete runs."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from snnexp.errors import ConfigError, InUseError
from snnexp.record.run import Run
from snnexp.text import one_line


def delete(folders: Sequence[Path], listing: str, confirmed: bool) -> str:
    """Delete run directories after a confirmation on the terminal; all are checked before any is deleted.

    Args:
        folders: the run directories.
        listing: a table of the runs, to print before the question.
        confirmed: delete without asking.

    Returns:
        A one-line summary.

    Raises:
        ConfigError: one is a point of a sweep or not a run directory, or stdin or stdout is not a terminal.
        InUseError: a process writes to one of them.
    """
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        name = one_line(str(run.path))
        if (run.path.parents[1] / "sweep.json").is_file():
            raise ConfigError(f"{name}: a resume of its sweep would train this point again; delete the whole sweep")
        if run.in_use():
            raise InUseError(f"{name}: in use by another process")
    size = sum(file.lstat().st_size for run in runs for file in run.path.rglob("*"))
    summary = f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {size / 1e6:.1f} MB"
    if not confirmed:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigError("--delete: needs a terminal for the confirmation; add --yes to delete without it")
        print(listing)
        print(f"delete {summary}? [y/N] ", end="", flush=True)
        # returns an empty string at the end of the input
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return "nothing deleted"
    with ExitStack() as stack:
        for run in runs:
            run.lock()
            stack.callback(run.close)
        for run in runs:
            # hidden directories are not searched, so a partly deleted run is not listed
            hidden = run.path.with_name(f".{run.path.name}.deleted")
            run.path.rename(hidden)
            shutil.rmtree(hidden)
    return f"deleted {summary}"
