"""Analyze runs for a comparison: varied parameters, groups and missing points."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from snnexp.config.decoding import decoder_name
from snnexp.errors import ConfigError
from snnexp.figures import style
from snnexp.record.facts import Facts
from snnexp.record.measures import higher_is_better
from snnexp.record.origin import Origin, common_search, read_sweep
from snnexp.record.run import Run
from snnexp.report.groups import (
    Group,
    Level,
    Parameter,
    default_metric,
    flat_config,
    make_groups,
    parse_overrides,
    varied_parameters,
)
from snnexp.report.statistics import Summary, summary
from snnexp.text import format_value, suggest

MAX_LEVELS = 10
"""Maximum number of values of a parameter that are listed individually."""
MAX_SUMMARY_BYTES = 2**24


@dataclass(frozen=True)
class Point:
    """A point of a sweep without a run directory."""

    status: str
    reason: str
    overrides: list[str]
    experiment: str = ""


@dataclass(frozen=True)
class Comparison:
    """The results of comparing runs, from which the sections of the page are built."""

    runs: Sequence[Facts]
    points: Sequence[Point]
    configs: Mapping[Path, Mapping[str, Level]]
    parameters: Sequence[Parameter]
    metric: str
    groups: Sequence[Group]

    search: Origin = field(default_factory=Origin)
    """The search that the runs belong to, if any."""

    @property
    def higher(self) -> bool | None:
        """True if higher values of the metric are better, False if lower ones are; None if undefined."""
        known = higher_is_better(self.metric, self._recorded("higher_is_better"))
        return self.search.maximize if known is None and self.metric == self.search.metric else known

    def _recorded(self, entry: str) -> dict[str, Any]:
        """Merge an entry of run.json that is a mapping over all runs."""
        entries = (run.record.get(entry) for run in self.runs)
        return {name: value for each in entries if isinstance(each, dict) for name, value in each.items()}

    @property
    def order(self) -> str:
        """Description of the order of groups."""
        if self.higher is None:
            return "lowest first"
        return f"best first ({'higher' if self.higher else 'lower'} is better)"

    @property
    def keys(self) -> list[str]:
        return [parameter.key for parameter in self.parameters]

    @property
    def names(self) -> list[str]:
        """The last components of the keys if they are unique, else the keys."""
        last = [key.rpartition(".")[2] for key in self.keys]
        return last if len(set(last)) == len(last) else self.keys

    @cached_property
    def numbered(self) -> bool:
        """True if labels start with the group's number, because their values do not fit next to a figure."""
        return any(len(", ".join(self._format(group))) > style.MAX_LABEL_LENGTH for group in self.groups)

    def label(self, group: Group) -> str:
        """Return the values of a group, in the order of ``names``."""
        values = ", ".join(self._format(group)) or "all runs"
        return f"{self.groups.index(group) + 1}: {values}" if self.numbered else values

    def describe(self, group: Group) -> str:
        """Return the names and values of a group."""
        pairs = zip(self.names, self._format(group), strict=True)
        return ", ".join(f"{name}={value}" for name, value in pairs) or "all runs"

    def _format(self, group: Group) -> list[str]:
        return [parameter.format(value) for parameter, value in zip(self.parameters, group.values, strict=True)]

    def values(self, group: Group) -> list[float]:
        return list(group.metric(self.metric).values())

    def summary(self, group: Group) -> Summary:
        return summary(self.values(group))


def compare(paths: Sequence[Path], metric: str | None = None, summaries: Sequence[Path] = ()) -> Comparison:
    """Find varied parameters and groups; arguments and errors as for :func:`snnexp.report.comparison.report`."""
    runs = [Run(path).facts() for path in dict.fromkeys(path.resolve() for path in paths)]
    require_known(metric, runs)
    return compare_runs(runs, [point for path in summaries for point in missing_points(path, runs)], metric)


def require_known(metric: str | None, runs: Sequence[Facts]) -> None:
    known = sorted({name for run in runs if run.status == "finished" for name in run.metrics})
    if metric is not None and metric not in known:
        raise ConfigError(f"--metric: no finished run has {format_value(metric)}, {suggest(metric, known)}")


def compare_runs(runs: Sequence[Facts], points: Sequence[Point], metric: str | None) -> Comparison:
    configs = {run.path: flat_config(run) for run in runs}
    parameters = varied_parameters(runs, configs)
    search = common_search(runs)
    if metric is None and any(search.metric in run.metrics for run in runs if run.status == "finished"):
        metric = search.metric
    metric = metric or default_metric(runs) or ""
    comparison = Comparison(runs, points, configs, parameters, metric, [], search)
    return replace(comparison, groups=make_groups(runs, parameters, metric, bool(comparison.higher)))


def missing_points(path: Path, runs: Sequence[Facts]) -> list[Point]:
    """Return the points in summary.csv of a sweep without a run in ``runs``; one ``damaged`` point if it is corrupt."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SUMMARY_BYTES).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return [Point("damaged", f"{path.name}, which may list more points, cannot be read: {error}", [])]
    members = [run for run in runs if run.path.parent.parent == path.parent.resolve()]
    ids = {run.id for run in members}
    stopped = [parse_overrides(run.overrides) for run in members if run.status != "finished"]
    points = []
    experiment = read_sweep(path.parent).experiment
    # the name of a recipe may differ from that of its file
    named = [(parse_overrides(run.overrides), run.experiment) for run in members if run.experiment]
    names_of = {own.get("experiment"): name for own, name in named if "name" not in own}
    for row in rows:
        names = [name for name in row if name is not None]
        keys = names[: names.index("status")] if "status" in names else []
        overrides = [f"{key}={row[key]}" for key in keys if row[key]]
        own = parse_overrides(overrides)
        # a failed point may have a directory that summary.csv does not list
        started = not row.get("run") and any(own.items() <= values.items() for values in stopped)
        if keys and row.get("run") not in ids and not started:
            reason = "its directory contains no readable run" if row.get("run") else row.get("reason") or ""
            recipe = own.get("experiment")
            name = own.get("name", names_of.get(recipe, experiment if recipe is None else recipe))
            points.append(Point(row["status"] or "unknown", reason, overrides, str(name)))
    return points


def decoders(comparison: Comparison) -> list[str]:
    """Return the names of the decoders of the runs."""
    runs, configs = comparison.runs, comparison.configs
    pairs = ((configs[run.path].get("decoder._target_"), run.record.get("decoder")) for run in runs)
    return sorted({*filter(None, (decoder_name({"decoder": {"_target_": target}}, name) for target, name in pairs))})


def losses(comparison: Comparison) -> set[Level]:
    """Return the classes of the losses of the runs."""
    runs = [run for group in comparison.groups for run in group.runs.values()]
    configs = [comparison.configs[run.path] for run in runs]
    return {config["loss._target_"] for config in configs if "loss._target_" in config}
