"""What is found out about runs: what was varied between them, and which groups that makes."""

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
"""Values of a parameter that are named one by one."""
MAX_SUMMARY_BYTES = 2**24


@dataclass(frozen=True)
class Point:
    """A point of a sweep that left no run directory."""

    status: str
    reason: str
    overrides: list[str]
    experiment: str = ""


@dataclass(frozen=True)
class Comparison:
    """What was found out about runs, and is told section by section."""

    runs: Sequence[Facts]
    points: Sequence[Point]
    configs: Mapping[Path, Mapping[str, Level]]
    parameters: Sequence[Parameter]
    metric: str
    groups: Sequence[Group]

    searched: Origin = field(default_factory=Origin)
    """The search that chose the runs."""

    @property
    def higher(self) -> bool | None:
        known = higher_is_better(self.metric, self._recorded("higher_is_better"))
        return self.searched.maximize if known is None and self.metric == self.searched.metric else known

    def _recorded(self, entry: str) -> dict[str, Any]:
        """An entry of run.json that is a mapping, of all runs together."""
        found = (run.record.get(entry) for run in self.runs)
        return {name: value for each in found if isinstance(each, dict) for name, value in each.items()}

    @property
    def order(self) -> str:
        """In which order groups stand, and why."""
        if self.higher is None:
            return "lowest first"
        return f"best first ({'higher' if self.higher else 'lower'} is better)"

    @property
    def keys(self) -> list[str]:
        return [parameter.key for parameter in self.parameters]

    @property
    def names(self) -> list[str]:
        """The last words of the keys, where they tell them apart."""
        last = [key.rpartition(".")[2] for key in self.keys]
        return last if len(set(last)) == len(last) else self.keys

    @cached_property
    def numbered(self) -> bool:
        """Whether groups are named by their place in the table, because not all of their values fit beside a figure."""
        return any(len(", ".join(self._shown(group))) > style.MAX_LABEL_LENGTH for group in self.groups)

    def label(self, group: Group) -> str:
        """The values of a group, in the order of the names."""
        values = ", ".join(self._shown(group)) or "all runs"
        return f"{self.groups.index(group) + 1}: {values}" if self.numbered else values

    def told(self, group: Group) -> str:
        """A group in a sentence."""
        pairs = zip(self.names, self._shown(group), strict=True)
        return ", ".join(f"{name}={value}" for name, value in pairs) or "all runs"

    def _shown(self, group: Group) -> list[str]:
        return [parameter.shown(value) for parameter, value in zip(self.parameters, group.values, strict=True)]

    def values(self, group: Group) -> list[float]:
        return list(group.metric(self.metric).values())

    def summary(self, group: Group) -> Summary:
        return summary(self.values(group))


def compare(paths: Sequence[Path], metric: str | None = None, summaries: Sequence[Path] = ()) -> Comparison:
    """Find what was varied between runs, and the groups that this makes; arguments and errors as of :func:`report`."""
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
    searched = common_search(runs)
    if metric is None and any(searched.metric in run.metrics for run in runs if run.status == "finished"):
        metric = searched.metric
    metric = metric or default_metric(runs) or ""
    found = Comparison(runs, points, configs, parameters, metric, [], searched)
    return replace(found, groups=make_groups(runs, parameters, metric, bool(found.higher)))


def missing_points(path: Path, runs: Sequence[Facts]) -> list[Point]:
    """The points in summary.csv of a sweep that none of ``runs`` belongs to, or that it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SUMMARY_BYTES).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return [Point("damaged", f"{path.name}, which may tell of more points, cannot be read: {error}", [])]
    here = [run for run in runs if run.path.parent.parent == path.parent.resolve()]
    there = {run.id for run in here}
    stopped = [parse_overrides(run.overrides) for run in here if run.status != "finished"]
    points = []
    experiment = read_sweep(path.parent).experiment
    # a recipe may have another name than its file
    words = [(parse_overrides(run.overrides), run.experiment) for run in here if run.experiment]
    names_of = {own.get("experiment"): name for own, name in words if "name" not in own}
    for row in rows:
        names = [name for name in row if name is not None]
        keys = names[: names.index("status")] if "status" in names else []
        overrides = [f"{key}={row[key]}" for key in keys if row[key]]
        own = parse_overrides(overrides)
        # a point that failed is not told with its directory, but may have one
        started = not row.get("run") and any(own.items() <= values.items() for values in stopped)
        if keys and row.get("run") not in there and not started:
            reason = "no run can be read in its directory" if row.get("run") else row.get("reason") or ""
            recipe = own.get("experiment")
            name = own.get("name", names_of.get(recipe, experiment if recipe is None else recipe))
            points.append(Point(row["status"] or "unknown", reason, overrides, str(name)))
    return points


def decoders(found: Comparison) -> list[str]:
    """In a word each, how classes are read off the readouts of the runs."""
    kept = ((found.configs[run.path].get("decoder._target_"), run.record.get("decoder")) for run in found.runs)
    return sorted({*filter(None, (decoder_name({"decoder": {"_target_": target}}, name) for target, name in kept))})


def losses(found: Comparison) -> set[Level]:
    runs = [run for group in found.groups for run in group.runs.values()]
    return {found.configs[run.path]["loss._target_"] for run in runs if "loss._target_" in found.configs[run.path]}
