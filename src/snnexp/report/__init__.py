"""What runs look like: one page about a run, or about many that are compared.

``single`` and ``comparison`` say what is told of what ``findings``, ``groups``, ``statistics`` find out, ``pictures``
draws it, and ``page`` writes sections as HTML. Reads what runs have left and knows no network.
"""

from collections.abc import Sequence
from pathlib import Path

from snnexp.errors import ConfigError
from snnexp.record.find import find_runs


def report(paths: Sequence[Path], folder: Path | None = None, metric: str | None = None) -> Path:
    """Write the page about a run, or one that compares the runs of a sweep, or of several folders.

    Args:
        paths: run directories, sweeps, or folders with runs somewhere below.
        folder: where to; by default what ``paths`` names, or a folder ``report`` beside the first if they are several.
        metric: what is compared, by default that of the search that chose the runs, or else the main measure; nothing
            for a single run.

    Returns:
        The page, ``report.html``.

    Raises:
        ConfigError: there is no run, or none has that metric.
        CheckpointError: a part of a run that is written to is a link.
    """
    every: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        below = [run.resolve() for run in find_runs(path)]
        if not below:
            raise ConfigError(f"{path}: no run is there")
        every |= dict.fromkeys(below)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file, must be a folder")
    if len(every) == 1:
        if metric is not None:
            raise ConfigError("--metric: says what runs are compared by, and this is a single run")
        from snnexp.report import single

        (path,) = every
        return single.report(path, folder or path)
    from snnexp.report import comparison

    folder = folder or (paths[0] if len(paths) == 1 else paths[0].parent / "report")

    summaries = [path / "summary.csv" for path in paths if (path / "summary.csv").is_file()]
    title = ", ".join("/".join(path.resolve().parts[-2:]) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    return comparison.report([*every], folder, title, metric, summaries)
