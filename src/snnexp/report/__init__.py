"""HTML reports: one page about a run, or one that compares runs.

``single`` and ``comparison`` build the sections of the two pages, ``findings``, ``groups`` and ``statistics`` analyze
the runs, ``pictures`` and ``curves`` draw figures, and ``page`` renders HTML. Only files of run directories are read.
"""

from collections.abc import Sequence
from pathlib import Path

from snnexp.errors import ConfigError
from snnexp.record.find import find_runs


def report(paths: Sequence[Path], folder: Path | None = None, metric: str | None = None) -> Path:
    """Write the report of a run, or the comparison of several runs.

    Args:
        paths: run directories, sweeps, or folders that contain runs.
        folder: the output folder; by default the path, or with several paths a folder ``report`` next to the first.
        metric: the metric to compare; by default that of the search, or else the main metric. Not for a single run.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: there is no run, or no run has that metric.
        CheckpointError: the folder of figures is a link.
    """
    every: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        below = [run.resolve() for run in find_runs(path)]
        if not below:
            raise ConfigError(f"{path}: contains no runs")
        every |= dict.fromkeys(below)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file, must be a folder")
    if len(every) == 1:
        if metric is not None:
            raise ConfigError("--metric: only for a comparison of several runs, and this is a single run")
        from snnexp.report import single

        (path,) = every
        return single.report(path, folder or path)
    from snnexp.report import comparison

    folder = folder or (paths[0] if len(paths) == 1 else paths[0].parent / "report")

    summaries = [path / "summary.csv" for path in paths if (path / "summary.csv").is_file()]
    title = ", ".join("/".join(path.resolve().parts[-2:]) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    return comparison.report([*every], folder, title, metric, summaries)
