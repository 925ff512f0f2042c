"""What runs look like: one page about a run, or about many that are compared.

``figures`` draws arrays and ``page`` writes sections as HTML; ``snapshots``, ``single`` and ``comparison`` say what is
told, ``statistics`` computes it. Reads what runs have left and knows no network.
"""

from collections.abc import Sequence
from pathlib import Path

from snnexp import listing
from snnexp.errors import ConfigError


def report(paths: Sequence[Path], folder: Path | None = None, metric: str | None = None) -> Path:
    """Write the page about a run, or one that compares the runs of a sweep, or of several folders.

    Args:
        paths: run directories, sweeps, or folders with runs somewhere below.
        folder: where to; by default what ``paths`` names, or ``report`` in the current folder if they are several.
        metric: what is compared, by default the main measure; nothing for a single run.

    Returns:
        The page, ``report.html``.

    Raises:
        ConfigError: there is no run, or none has that metric.
        CheckpointError: a part of a run that is written to is a link.
    """
    found = {path: [path] if (path / "config.yaml").is_file() else [*listing.find(path)] for path in paths}
    empty = [path for path, below in found.items() if not below]
    if empty:
        raise ConfigError(f"{empty[0]}: no run is there" if empty[0].is_dir() else f"{empty[0]}: no such folder")
    every = [run for below in found.values() for run in below]
    folder = folder or (paths[0] if len(paths) == 1 else Path("report"))
    if every == list(paths) and len(every) == 1:
        if metric is not None:
            raise ConfigError("--metric: says what runs are compared by, and this is a single run")
        from snnexp.report import single

        return single.report(every[0], folder)
    from snnexp.report import comparison

    summaries = [path / "summary.csv" for path in paths if (path / "summary.csv").is_file()]
    title = ", ".join("/".join(path.resolve().parts[-2:]) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    return comparison.report(every, folder, title, metric, summaries)
