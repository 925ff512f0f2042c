"""The report about many runs: which values of what was varied did how well, over seeds, and what can be said of it."""

import csv
import io
import math
import os
import re
import shlex
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.errors import CheckpointError, ConfigError
from snnexp.figures import comparison as figures
from snnexp.figures import style
from snnexp.figures.picture import Picture
from snnexp.record.origin import Origin, searched_by, sweep
from snnexp.record.run import Facts, Run, higher_is_better
from snnexp.report import page, statistics
from snnexp.report.groups import (
    Group,
    Level,
    Parameter,
    default_metric,
    grouped,
    other_differences,
    settings,
    typed,
    varied,
)
from snnexp.report.page import Block, Link, Section, Table, Text, Values
from snnexp.report.statistics import Summary, is_number, summary
from snnexp.text import closest, shown

MOST_ROWS = 60
MOST_STRIPS = 25
MOST_CURVES = 6
MOST_PANELS = 8
FEW = 6
"""Rows of a table that is shown at once."""
MOST_LEVELS = 10
"""Values of a parameter that are named one by one."""
MOST_CELLS = 15
"""Rows or columns of a heat map; more are no grid but a random search."""
POINTS = 200
"""Of a curve; longer ones are drawn by the means of as many bins."""
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
        known = higher_is_better(self.metric)
        return self.searched.maximize if known is None and self.metric == self.searched.metric else known

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
        return any(len(", ".join(self._shown(group))) > style.LONGEST_LABEL for group in self.groups)

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


def report(
    paths: Sequence[Path], folder: Path, title: str, metric: str | None = None, summaries: Sequence[Path] = ()
) -> Path:
    """Write the page about runs, whatever state each of them is in; returns ``report.html``.

    Args:
        paths: run directories.
        folder: where the page is put, with its figures.
        title: the heading.
        metric: what is compared, a name of run.json's metrics; by default the main one of most runs.
        summaries: files summary.csv of sweeps, for the points that have no run directory.

    Raises:
        ConfigError: no finished run has that metric.
    """
    runs = [Run(path).facts() for path in dict.fromkeys(path.resolve() for path in paths)]
    _require_known(metric, runs)
    points = [point for path in summaries for point in lost(path, runs)]
    experiments = _by_experiment(runs, points)
    if len(experiments) < 2:
        found = _compared(runs, points, metric)
        return page.write(folder, title, _facts(found), _sections(found, folder))
    every = {name: _compared(own, some, metric) for name, (own, some) in experiments.items()}
    anchors = _anchors(every)
    sections = [Section("Overview", _overview(every, anchors))]
    for name, found in every.items():
        facts = [pair for pair in _facts(found) if pair[0] != "experiment"]
        sections.append(Section(name or "experiment not known", [Values(facts)], anchors[name]))
        for section in _sections(found, folder):
            blocks = [_renamed(block, f"{anchors[name]}_") for block in section.blocks]
            sections.append(Section(section.title, blocks, below=True))
    facts = [("runs", _counted(runs, points)), ("experiments", ", ".join(name for name in every if name))]
    return page.write(folder, title, facts, sections)


def compare(paths: Sequence[Path], metric: str | None = None, summaries: Sequence[Path] = ()) -> Comparison:
    """Find what was varied between runs, and the groups that this makes; arguments and errors as of :func:`report`."""
    runs = [Run(path).facts() for path in dict.fromkeys(path.resolve() for path in paths)]
    _require_known(metric, runs)
    return _compared(runs, [point for path in summaries for point in lost(path, runs)], metric)


def _require_known(metric: str | None, runs: Sequence[Facts]) -> None:
    known = sorted({name for run in runs if run.status == "finished" for name in run.metrics})
    if metric is not None and metric not in known:
        raise ConfigError(f"--metric: no finished run has {shown(metric)}, {closest(metric, known)}")


def _by_experiment(
    runs: Sequence[Facts], points: Sequence[Point]
) -> dict[str, tuple[Sequence[Facts], Sequence[Point]]]:
    """Runs and points that left none, by experiment; those whose experiment is not known come last."""
    known = {run.experiment for run in runs} | {point.experiment for point in points}
    names = sorted(known, key=lambda name: (not name, name))
    if len(names) < 3 and "" in names:
        # of one experiment, one of them damaged
        return {"": (runs, points)}
    return {
        name: (
            [run for run in runs if run.experiment == name],
            [point for point in points if point.experiment == name],
        )
        for name in names
    }


def _compared(runs: Sequence[Facts], points: Sequence[Point], metric: str | None) -> Comparison:
    configs = {run.path: settings(run) for run in runs}
    parameters = varied(runs, configs)
    searched = searched_by(runs)
    if metric is None and any(searched.metric in run.metrics for run in runs if run.status == "finished"):
        metric = searched.metric
    metric = metric or default_metric(runs) or ""
    found = Comparison(runs, points, configs, parameters, metric, [], searched)
    return replace(found, groups=grouped(runs, parameters, metric, bool(found.higher)))


def _sections(found: Comparison, folder: Path) -> list[Section]:
    sections = [
        Section("Groups", _groups(found)),
        Section("Which parameter mattered", _importance(found)),
        Section("One group against the other", _paired(found)),
        Section("Training", _curves(found)),
        Section("Runs that did not finish", _unfinished(found, folder)),
        Section("All runs", _all(found, folder)),
    ]
    return [section for section in sections if section.blocks]


def _renamed(block: Block, prefix: str) -> Block:
    """A block whose files are apart from those of other experiments."""
    if isinstance(block, Picture | Table) and block.name:
        return replace(block, name=f"{prefix}{block.name}")
    return block


def _anchors(names: Iterable[str]) -> dict[str, str]:
    """A name of letters and digits for each one, which may hold anything; no two are the same."""
    found: dict[str, str] = {}
    for name in names:
        anchor = re.sub(r"[^A-Za-z0-9]+", "_", name)[:40] or "unknown"
        found[name] = anchor if anchor not in found.values() else f"{anchor}_{len(found)}"
    return found


def _overview(every: Mapping[str, Comparison], anchors: Mapping[str, str]) -> list[Block]:
    """The best group of each experiment."""
    columns = ["experiment", "runs", "metric", "best mean", "std", "n", "what was typed for it"]
    rows: list[list[Any]] = []
    for name, found in every.items():
        row = [Link(name or "not known", f"#{anchors[name]}"), len(found.runs) + len(found.points)]
        if found.groups:
            row.append(found.metric)
        if found.groups and (found.higher is not None or len(found.groups) == 1):
            best = found.groups[0]
            one = found.summary(best)
            row += [one.mean, one.std, one.n, shlex.join(_typed(best))]
        rows.append([*row, *[None] * (len(columns) - len(row))])
    caption = (
        "Of each experiment, the group with the best mean over seeds, where it is known whether higher or lower is "
        "better. Different experiments are not compared with each other; each has a section below."
    )
    return [Table(columns, rows, caption, name="experiments")]


def _typed(group: Group) -> list[str]:
    """The overrides that all runs of a group share."""
    first, *others = group.runs.values()
    return [override for override in first.typed if all(override in run.typed for run in others)]


def _link(run: Facts, folder: Path) -> Link | str:
    """A run by its id, which leads to its own page where there is one."""
    own = run.path / "report.html"
    if not own.is_file():
        return run.id
    address = os.path.relpath(own, folder.resolve())
    return Link(run.id, urllib.parse.quote(Path(address).as_posix(), errors="surrogateescape"))


def lost(path: Path, runs: Sequence[Facts]) -> list[Point]:
    """The points in summary.csv of a sweep that none of ``runs`` belongs to, or that it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SUMMARY_BYTES).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return [Point("damaged", f"{path.name}, which may tell of more points, cannot be read: {error}", [])]
    here = [run for run in runs if run.path.parent.parent == path.parent.resolve()]
    there = {run.id for run in here}
    stopped = [typed(run.overrides) for run in here if run.status != "finished"]
    points = []
    experiment = sweep(path.parent).experiment
    # a recipe may have another name than its file
    words = [(typed(run.overrides), run.experiment) for run in here if run.experiment]
    names_of = {own.get("experiment"): name for own, name in words if "name" not in own}
    for row in rows:
        names = [name for name in row if name is not None]
        keys = names[: names.index("status")] if "status" in names else []
        overrides = [f"{key}={row[key]}" for key in keys if row[key]]
        own = typed(overrides)
        # a point that failed is not told with its directory, but may have one
        started = not row.get("run") and any(own.items() <= values.items() for values in stopped)
        if keys and row.get("run") not in there and not started:
            reason = "no run can be read in its directory" if row.get("run") else row.get("reason") or ""
            recipe = own.get("experiment")
            name = own.get("name", names_of.get(recipe, experiment if recipe is None else recipe))
            points.append(Point(row["status"] or "unknown", reason, overrides, str(name)))
    return points


def _counted(runs: Sequence[Facts], points: Sequence[Point]) -> str:
    states = [run.status for run in runs] + [point.status for point in points]
    counts = {state: states.count(state) for state in dict.fromkeys(["finished", *sorted(states)])}
    return f"{len(states)}: {', '.join(f'{count} {state}' for state, count in counts.items())}"


def _facts(found: Comparison) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        ("runs", _counted(found.runs, found.points)),
        ("experiment", ", ".join(sorted({run.experiment for run in found.runs if run.experiment})) or None),
    ]
    for parameter in found.parameters:
        levels = [parameter.shown(value) for value in parameter.levels()]
        few = len(levels) <= MOST_LEVELS
        range_ = ", ".join(levels) if few else f"{len(levels)} values, {levels[0]} to {levels[-1]}"
        also = f"; {', '.join(parameter.also[:4])} with it" if parameter.also else ""
        facts.append((f"varied: {parameter.key}", f"{range_}{also}"))
    seeds = sorted({run.seed for run in found.runs if run.seed is not None})
    few = len(seeds) <= MOST_LEVELS
    facts.append(("seeds", ", ".join(map(str, seeds)) or None if few else f"{len(seeds)}, {seeds[0]} to {seeds[-1]}"))
    by = ", by which the search chose" if found.metric == found.searched.metric else ""
    facts.append(("metric", f"{found.metric}{by}" if found.metric else None))
    if found.groups and found.parameters and found.higher is not None:
        best, one = found.groups[0], found.summary(found.groups[0])
        facts.append(("best mean", f"{page.cell(one.mean)} ({found.told(best)}, n = {one.n})"))
    for name, values in _made_with(found.runs).items():
        facts.append((f"differs: {name}", ", ".join(values)))
    return facts


def _made_with(runs: Sequence[Facts]) -> dict[str, list[str]]:
    """Versions, devices and the like, where the runs differ in them: then more was varied than was meant."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        versions, git = run.record.get("versions"), run.record.get("git")
        told = {
            "device": run.record.get("device"),
            "kernel": run.record.get("kernel"),
            "threads": run.record.get("threads"),
            "commit": git.get("commit") if isinstance(git, dict) else None,
            **(versions if isinstance(versions, dict) else {}),
        }
        for name, value in told.items():
            if value is not None:
                found.setdefault(str(name), {})[str(value)] = None
    return {name: list(values) for name, values in found.items() if len(values) > 1}


def _groups(found: Comparison) -> list[Block]:
    if not found.groups:
        if any(run.status == "finished" for run in found.runs):
            return [Text("The finished runs have no test metric to compare.")]
        return [Text("No run has finished, so there is nothing to compare.")]
    summaries = [found.summary(group) for group in found.groups]
    columns = [*found.keys, "n", "mean", "std", "95 % from", "95 % to"]
    rows: list[list[Any]] = [
        [*group.values, one.n, one.mean, one.std, one.low, one.high]
        for group, one in zip(found.groups, summaries, strict=True)
    ]
    if found.numbered:
        columns, rows = ["group", *columns], [[number, *row] for number, row in enumerate(rows, 1)]
    caption = f"{found.metric} over seeds, {found.order}"
    if len(rows) > MOST_ROWS:
        tables: list[Block] = [
            Table(columns, rows[:MOST_ROWS], f"{caption}: the first {MOST_ROWS} of {len(rows)} groups"),
            Table(columns, rows, f"All {len(rows)} groups", name="groups", folded=True),
        ]
    else:
        tables = [Table(columns, rows, caption, name="groups")]
    return [
        Text(" ".join(_remarks(found, summaries))),
        *tables,
        *_pictures(found),
        *_further(found),
    ]


def _remarks(found: Comparison, summaries: Sequence[Summary]) -> list[str]:
    """What a reader of the table must know."""
    remarks = ["std is over n - 1; the 95 % interval is that of the mean, by Student's t."]
    if all(one.n < 2 for one in summaries):
        remarks = ["Every group has one seed only, so there is neither a standard deviation nor an interval."]
    elif any(one.n < 2 for one in summaries):
        remarks[0] += " A group with one seed has neither."
    repeated = [run.id for group in found.groups for run in group.repeated]
    if repeated:
        more = ", …" if len(repeated) > 5 else ""
        remarks.append(
            f"{len(repeated)} runs repeat the values and the seed of a later one and are not counted: "
            f"{', '.join(repeated[:5])}{more}."
        )
    without = [run.id for run in found.runs if run.status == "finished" and found.metric not in run.metrics]
    if without:
        remarks.append(f"{len(without)} finished runs have no {found.metric}: {', '.join(without[:5])}.")
    others = other_differences(found.groups, found.configs)
    if others:
        more = ", …" if len(others) > 5 else ""
        remarks.append(f"Runs of one group differ in more than the seed: {', '.join(others[:5])}{more}.")
    if found.metric.endswith("loss") and len(_losses(found)) > 1:
        remarks.append("Values of different losses cannot be compared.")
    finished = [run for run in found.runs if run.status == "finished"]
    unknown = [run.id for run in finished if any(run.path not in own.values for own in found.parameters)]
    if unknown:
        remarks.append(f"What {len(unknown)} runs were run with is not known, so they are in no group: {unknown[0]}.")
    if found.searched.metric not in ("", found.metric):
        remarks.append(f"The search went by {found.searched.metric}, and not by {found.metric}.")
    if found.higher is not None and found.metric.startswith("test/") and len(found.groups) > 1:
        remarks.append("What is chosen by this table is chosen by the test split.")
    return remarks


def _losses(found: Comparison) -> set[Level]:
    runs = [run for group in found.groups for run in group.runs.values()]
    return {found.configs[run.path]["loss._target_"] for run in runs if "loss._target_" in found.configs[run.path]}


def _further(found: Comparison) -> list[Block]:
    """The other measures of the test split."""
    runs = [run for group in found.groups for run in group.runs.values()]
    names = sorted({name for run in runs for name in run.metrics if name.count("/") == 1} - {found.metric})
    if not names:
        return []
    columns = [*found.keys, "n", *(column for name in names for column in (name, f"std of {name}"))]
    rows = []
    for group in found.groups:
        others = [summary(list(group.metric(name).values())) for name in names]
        rows.append([*group.values, len(group.runs), *(cell for one in others for cell in (one.mean, one.std))])
    return [Table(columns, rows, "Further metrics: mean and standard deviation", name="further_metrics", folded=True)]


def _pictures(found: Comparison) -> list[Picture]:
    pictures = []
    levels = [parameter.levels() for parameter in found.parameters]
    count = len(found.groups)
    if count > 1 and levels:
        most = max(map(len, levels))
        grid = not found.searched.metric and most <= MOST_CELLS and 2 * count >= math.prod(map(len, levels))
        if len(levels) == 1 and grid and most <= MOST_LEVELS:
            pictures += [_response(found)] if all(is_number(level) for level in levels[0]) else []
        elif len(levels) == 2 and grid:
            pictures.append(_heat_map(found))
        elif count > 2:
            pictures.append(_scatter(found))
            pictures += [_parallel(found)] if len(levels) > 2 else []
    # one dot a row tells no more than those
    repeated = any(len(group.runs) > 1 for group in found.groups)
    return [_strips(found), *pictures] if repeated or (count > 1 and not pictures) else pictures


def _scatter(found: Comparison) -> Picture:
    points = [(group, value) for group in found.groups for value in found.values(group)]
    values = {
        parameter.key: [group.values[index] for group, _ in points] for index, parameter in enumerate(found.parameters)
    }
    # of those that finished, all may share a value
    values = {key: levels for key, levels in values.items() if len(set(levels)) > 1}
    results = [value for _, value in points]
    best = None if found.higher is None else results.index((max if found.higher else min)(results))
    drawn = dict(list(values.items())[:MOST_PANELS])
    figure = figures.scatter(drawn, results, found.metric, best)
    which = f"the first {len(drawn)} of {len(values)} parameters" if len(drawn) < len(values) else "each parameter"
    caption = f"{found.metric} against {which}: a dot is a run" + ("." if best is None else ", a diamond the best.")
    return Picture("scatter", figure, caption, {**values, found.metric: results})


def _interval(one: Summary) -> tuple[float, float] | None:
    return None if one.low is None or one.high is None else (one.low, one.high)


def _bars(intervals: Sequence[tuple[float, float] | None], frame: tuple[float, float]) -> str:
    """What a caption says of the intervals of means."""
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return ""
    cut = any(low < frame[0] or high > frame[1] for low, high in known)
    none = " (none for one seed)" if len(known) < len(intervals) else ""
    return f", a bar its 95 % interval{none}{', cut off at the frame' if cut else ''}"


def _strips(found: Comparison) -> Picture:
    groups = found.groups[:MOST_STRIPS]
    samples = {found.label(group): found.values(group) for group in groups}
    intervals = [_interval(found.summary(group)) for group in groups]
    figure = figures.strips(samples, intervals, ", ".join(found.names), found.metric)
    which = _which(found, len(groups))
    rows = [(found.label(group), seed, value) for group in groups for seed, value in group.metric(found.metric).items()]
    return Picture(
        "seeds",
        figure,
        f"{found.metric} of {which}, {found.order}: a dot is a run"
        f"{', the line the mean' if any(len(values) > 1 for values in samples.values()) else ''}"
        f"{_bars(intervals, figure.axes[0].get_xlim())}.",
        _columns(("group", "seed", found.metric), rows),
    )


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def _response(found: Comparison) -> Picture:
    parameter = found.parameters[0]
    groups = sorted(found.groups, key=lambda group: group.values)
    summaries = [found.summary(group) for group in groups]
    levels = [float(group.values[0]) for group in groups]
    intervals, samples = [_interval(one) for one in summaries], [found.values(group) for group in groups]
    figure = figures.response(levels, samples, intervals, parameter.key, found.metric)
    data = _columns(
        (parameter.key, "n", "mean", "95 % from", "95 % to"),
        [(x, one.n, one.mean, one.low, one.high) for x, one in zip(levels, summaries, strict=True)],
    )
    bars = _bars(intervals, figure.axes[0].get_ylim())
    caption = f"{found.metric} against {parameter.key}: a dot is a run, the line joins the means{bars}."
    return Picture("response", figure, caption, data)


def _heat_map(found: Comparison) -> Picture:
    # the longer parameter goes across
    order = sorted((0, 1), key=lambda index: len(found.parameters[index].levels()))
    across, down = order[1], order[0]
    # levels of runs that did not finish keep their place, empty
    rows, columns = found.parameters[down].levels(), found.parameters[across].levels()
    means, counts = np.full((len(rows), len(columns)), np.nan), np.zeros((len(rows), len(columns)), int)
    for group in found.groups:
        place = rows.index(group.values[down]), columns.index(group.values[across])
        means[place], counts[place] = np.mean(found.values(group)), len(group.runs)
    names = found.parameters[down].key, found.parameters[across].key
    figure = figures.heat_map(means, counts, rows, columns, names, found.metric)
    cells = [
        (row, column, int(counts[i, j]), float(means[i, j]) if counts[i, j] else None)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
    caption = f"Mean {found.metric} over seeds; a dash is where no run finished."
    return Picture("heat_map", figure, caption, _columns((*names, "n", "mean"), cells))


def _parallel(found: Comparison) -> Picture:
    means = [float(np.mean(found.values(group))) for group in found.groups]
    values = {
        parameter.key: [group.values[i] for group in found.groups] for i, parameter in enumerate(found.parameters)
    }
    # of those that finished, all may share a value
    values = {key: levels for key, levels in values.items() if len(set(levels)) > 1}
    figure = figures.parallel(values, means, found.metric, "max" if found.higher else "min")
    caption = (
        f"A line per group, through its value of each parameter to its mean {found.metric}; the colour is "
        "that of the last axis, the widest line is the first of the table."
    )
    return Picture("parallel", figure, caption, {**values, found.metric: means})


def _importance(found: Comparison) -> list[Block]:
    counted = [(group, seed, value) for group in found.groups for seed, value in group.metric(found.metric).items()]
    if len(found.groups) < 2:
        return []
    results = [value for _, _, value in counted]
    told = {
        parameter.key: [group.values[index] for group, _, _ in counted]
        for index, parameter in enumerate(found.parameters)
    }
    told["seed"] = [str(seed) for _, seed, _ in counted]
    rows = []
    for key, levels in told.items():
        one = statistics.importance(levels, results)
        if len(set(levels)) > 1:
            rows.append((key, len(set(levels)), one.ranges, one.share))
    rows.sort(key=lambda row: (row[3] is None, -(row[3] or 0)))
    known = {key: share for key, _, _, share in rows if share is not None}
    if not known:
        return []
    caption = f"Share of the variance of {found.metric} that each parameter explains alone, less what chance would."
    return [
        Picture("importance", figures.shares(known, ("seed",)), caption),
        Table(
            ["parameter", "values", "in ranges", "share"],
            rows,
            "Epsilon squared: 1 is all of the variance; around 0 is nothing beyond chance, below 0 less than chance "
            "explains on average. How parameters act together is not seen. A random search is sorted into ranges.",
            name="importance",
        ),
    ]


def _paired(found: Comparison) -> list[Block]:
    if len(found.groups) != 2:
        return []
    first, second = sorted(found.groups, key=lambda group: [(isinstance(v, str), v) for v in group.values])
    one, other = found.told(first), found.told(second)
    before, after = first.metric(found.metric), second.metric(found.metric)
    pair = statistics.paired(before, after)
    common = [seed for seed in before if seed in after]
    blocks: list[Block] = []
    if pair.difference is not None:
        by = f"{'higher' if pair.difference > 0 else 'lower'} by {page.cell(abs(pair.difference))} on average than"
        told = f"{found.metric} of {other} is {by if pair.difference else 'on average equal to'} that of {one}"
        if pair.p is not None:
            told += (
                f" (95 % interval of the difference {page.cell(pair.low)} to {page.cell(pair.high)}, "
                f"p = {page.cell(pair.p)} by the paired t-test over {pair.n} common seeds)"
            )
        blocks.append(Text(f"{told}."))
    if pair.missing:
        blocks.append(Text(f"{pair.missing[0].upper()}{pair.missing[1:]}."))
    rows = [
        ("common seeds", pair.n),
        ("mean difference", pair.difference),
        ("95 % from", pair.low),
        ("95 % to", pair.high),
        ("p, paired t-test, two-sided", pair.p),
        ("p, Wilcoxon signed-rank, exact, two-sided", pair.p_ranks),
    ]
    least = f" With {pair.n} seeds its p cannot fall below {page.cell(2.0 ** (1 - pair.n))}." if pair.n > 1 else ""
    caption = f"{other} - {one}. The t-test takes differences for normal, Wilcoxon's for symmetric only.{least}"
    blocks.append(Table(["", "value"], rows, caption, name="paired"))
    if common:
        firsts, seconds = [before[seed] for seed in common], [after[seed] for seed in common]
        figure = figures.pairs(firsts, seconds, (found.label(first), found.label(second)), found.metric)
        data = {"seed": common, one: firsts, other: seconds}
        blocks.append(
            Picture("pairs", figure, f"{found.metric}, a line per common seed; the wide one joins the means.", data)
        )
    return blocks


def _curves(found: Comparison) -> list[Block]:
    groups = found.groups[:MOST_CURVES]
    unread: list[str] = []
    rows = {run.path: _logged(run, unread) for group in groups for run in group.runs.values()}
    blocks: list[Block] = [Text(f"Not drawn: {'; '.join(unread[:5])}.")] if unread else []
    if len(_losses(found)) > 1:
        blocks.append(Text("The runs have different losses, whose values cannot be compared."))
    which = _which(found, len(groups))
    for name, x in _panels([row for own in rows.values() for row in own]):
        drawn = {}
        for group in groups:
            band = _band([_curve(rows[run.path], name, x) for run in group.runs.values()])
            if band is not None:
                drawn[found.label(group)] = band
        several = any(len(group.runs) > 1 for group in groups)
        over = ": the mean over seeds, and a band from the lowest to the highest one" if several else ""
        # a single point is no curve
        if any(len(band[0]) > 1 for band in drawn.values()):
            data = [
                (label, *point)
                for label, band in drawn.items()
                for point in zip(*(column.tolist() for column in band), strict=True)
            ]
            blocks.append(
                Picture(
                    f"curves_{name.replace('/', '_')}",
                    figures.bands(drawn, ", ".join(found.names), name, x),
                    f"{name} of {which}{over}.",
                    _columns(("group", x, "mean", "lowest", "highest"), data),
                )
            )
    return blocks


def _which(found: Comparison, count: int) -> str:
    """The groups that are shown, where not all of them are."""
    first = "first" if found.higher is None else "best"
    return f"the {first} {count} of {len(found.groups)} groups" if count < len(found.groups) else "each group"


def _logged(run: Facts, unread: list[str]) -> list[dict[str, Any]]:
    try:
        return [row for row in Run(run.path).metrics() if isinstance(row, dict)]
    except (CheckpointError, OSError) as error:
        unread.append(str(error))
        return []


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What is drawn, and over what: means of epochs where there are some, else single steps."""
    epochs = {row.get("epoch") for row in rows if "train/epoch_loss" in row}
    logged = {name for row in rows for name in row}
    wanted = [
        ("train/epoch_loss", "epoch") if len(epochs) > 2 else ("train/loss", "step"),
        ("val/loss", "epoch"),
        ("val/accuracy", "epoch") if "val/accuracy" in logged else ("train/accuracy", "step"),
    ]
    return [(name, x) for name, x in wanted if name in logged]


def _curve(rows: Sequence[Mapping[str, Any]], name: str, x: str) -> tuple[Any, Any]:
    # the rows count epochs from 0
    first = 1 if x == "epoch" else 0
    points = [(row[x] + first, row[name]) for row in rows if is_number(row.get(name)) and is_number(row.get(x))]
    found = np.array(points, float).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _band(curves: Sequence[tuple[Any, Any]]) -> tuple[Any, Any, Any, Any] | None:
    """x, mean, lowest and highest over curves, where all of them that are not empty have points."""
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return None
    every = np.unique(np.concatenate([x for x, _ in curves]))
    edges = every if len(every) <= POINTS else np.linspace(every[0], every[-1], POINTS + 1)[:-1]
    means, places = np.full((len(curves), len(edges)), np.nan), np.full((len(curves), len(edges)), np.nan)
    for row, (x, y) in enumerate(curves):
        which = np.searchsorted(edges, x, side="right") - 1
        counts = np.bincount(which, minlength=len(edges))
        there = counts > 0
        means[row, there] = np.bincount(which, y, len(edges))[there] / counts[there]
        places[row, there] = np.bincount(which, x, len(edges))[there] / counts[there]
    full = ~np.isnan(means).any(0)
    if not full.any():
        return None
    means, places = means[:, full], places[:, full]
    return places.mean(0), means.mean(0), means.min(0), means.max(0)


def _unfinished(found: Comparison, folder: Path) -> list[Block]:
    rows: list[tuple[Any, ...]] = [
        (_link(run, folder), run.status, run.reason or run.reached, " ".join(run.overrides), run.seed)
        for run in found.runs
        if run.status != "finished"
    ]
    rows += [(None, point.status, point.reason, " ".join(point.overrides), None) for point in found.points]
    if not rows:
        return []
    columns = ["run", "status", "reason", "overrides", "seed"]
    return [Table(columns, rows, "None of these is counted above.", name="not_finished")]


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _all(found: Comparison, folder: Path) -> list[Block]:
    rows = [
        (
            _link(run, folder),
            run.status,
            *(parameter.values.get(run.path) for parameter in found.parameters),
            run.seed,
            run.metrics.get(found.metric),
            run.duration_s,
        )
        for run in found.runs
    ]
    columns = ["run", "status", *found.keys, "seed", found.metric or "metric", "duration [s]"]
    return [Table(columns, rows, f"{_runs(len(rows))} in all", name="runs", folded=len(rows) > FEW)]
