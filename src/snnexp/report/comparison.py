"""The page that compares runs: groups over seeds, parameter importance, paired tests and training curves."""

import os
import re
import shlex
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from snnexp.figures import comparison as figures
from snnexp.figures.picture import Picture
from snnexp.record.facts import Facts
from snnexp.record.measures import is_layer_metric
from snnexp.record.run import Run
from snnexp.report import page, pictures, statistics
from snnexp.report.findings import (
    MAX_LEVELS,
    Comparison,
    Point,
    compare_runs,
    decoders,
    losses,
    missing_points,
    require_known,
)
from snnexp.report.groups import Group, other_differences
from snnexp.report.page import Block, Link, Section, Table, Text, Values
from snnexp.report.statistics import Summary, summary

MAX_ROWS = 60
FEW = 6
"""Tables with more rows are collapsed."""


def report(
    paths: Sequence[Path], folder: Path, title: str, metric: str | None = None, summaries: Sequence[Path] = ()
) -> Path:
    """Write the comparison of runs in any state; return the path of ``report.html``.

    Args:
        paths: run directories.
        folder: the output folder.
        title: the heading.
        metric: the metric to compare; by default that of the search, or else the main metric of most runs.
        summaries: summary.csv files of sweeps, for points without a run directory.

    Raises:
        ConfigError: no finished run has that metric.
    """
    runs = [Run(path).facts() for path in dict.fromkeys(path.resolve() for path in paths)]
    require_known(metric, runs)
    points = [point for path in summaries for point in missing_points(path, runs)]
    experiments = _by_experiment(runs, points)
    if len(experiments) < 2:
        comparison = compare_runs(runs, points, metric)
        return page.write(folder, title, _facts(comparison), _sections(comparison, folder))
    comparisons = {name: compare_runs(own, some, metric) for name, (own, some) in experiments.items()}
    anchors = _anchors(comparisons)
    sections = [Section("Overview", _overview(comparisons, anchors))]
    for name, comparison in comparisons.items():
        facts = [pair for pair in _facts(comparison) if pair[0] != "experiment"]
        sections.append(Section(name or "unknown experiment", [Values(facts)], anchors[name]))
        for section in _sections(comparison, folder):
            blocks = [_with_file_prefix(block, f"{anchors[name]}_") for block in section.blocks]
            sections.append(Section(section.title, blocks, below=True))
    facts = [("runs", _count(runs, points)), ("experiments", ", ".join(name for name in comparisons if name))]
    return page.write(folder, title, facts, sections)


def _by_experiment(
    runs: Sequence[Facts], points: Sequence[Point]
) -> dict[str, tuple[Sequence[Facts], Sequence[Point]]]:
    """Group runs, and points without a run, by experiment; unknown experiments come last."""
    known = {run.experiment for run in runs} | {point.experiment for point in points}
    names = sorted(known, key=lambda name: (not name, name))
    if len(names) < 3 and "" in names:
        # one experiment, and damaged runs that probably belong to it
        return {"": (runs, points)}
    return {
        name: ([run for run in runs if run.experiment == name], [each for each in points if each.experiment == name])
        for name in names
    }


def _sections(comparison: Comparison, folder: Path) -> list[Section]:
    sections = [
        Section("Groups", _groups(comparison)),
        Section("Parameter importance", _importance(comparison)),
        Section("Paired comparison", _paired(comparison)),
        Section("Training", pictures.curves(comparison)),
        Section("Unfinished runs", _unfinished(comparison, folder)),
        Section("All runs", _all(comparison, folder)),
    ]
    return [section for section in sections if section.blocks]


def _with_file_prefix(block: Block, prefix: str) -> Block:
    """Return a block whose file names start with ``prefix``."""
    if isinstance(block, Picture | Table) and block.name:
        return replace(block, name=f"{prefix}{block.name}")
    return block


def _anchors(names: Iterable[str]) -> dict[str, str]:
    """Return a unique anchor of letters and digits for each name."""
    anchors: dict[str, str] = {}
    for name in names:
        anchor = re.sub(r"[^A-Za-z0-9]+", "_", name)[:40] or "unknown"
        anchors[name] = anchor if anchor not in anchors.values() else f"{anchor}_{len(anchors)}"
    return anchors


def _overview(comparisons: Mapping[str, Comparison], anchors: Mapping[str, str]) -> list[Block]:
    """Return a table with the best group of each experiment."""
    columns = ["experiment", "runs", "metric", "best mean", "std", "n", "what was typed for it"]
    rows: list[list[Any]] = []
    for name, comparison in comparisons.items():
        row = [Link(name or "unknown", f"#{anchors[name]}"), len(comparison.runs) + len(comparison.points)]
        if comparison.groups:
            row.append(comparison.metric)
        if comparison.groups and (comparison.higher is not None or len(comparison.groups) == 1):
            best = comparison.groups[0]
            one = comparison.summary(best)
            row += [one.mean, one.std, one.n, shlex.join(_common_overrides(best))]
        rows.append([*row, *[None] * (len(columns) - len(row))])
    caption = (
        "The group of each experiment with the best mean over seeds, if the metric has a direction. Experiments are "
        "not compared with each other; each has a section below."
    )
    return [Table(columns, rows, caption, name="experiments")]


def _common_overrides(group: Group) -> list[str]:
    """Return the overrides that all runs of a group share."""
    first, *others = group.runs.values()
    return [
        override for override in first.effective_overrides if all(override in run.effective_overrides for run in others)
    ]


def _link(run: Facts, folder: Path) -> Link | str:
    """Return the id of a run, linked to its report if it has one."""
    own = run.path / "report.html"
    if not own.is_file():
        return run.id
    address = os.path.relpath(own, folder.resolve())
    return Link(run.id, urllib.parse.quote(Path(address).as_posix(), errors="surrogateescape"))


def _count(runs: Sequence[Facts], points: Sequence[Point]) -> str:
    states = [run.status for run in runs] + [point.status for point in points]
    counts = {state: states.count(state) for state in dict.fromkeys(["finished", *sorted(states)])}
    return f"{len(states)}: {', '.join(f'{count} {state}' for state, count in counts.items())}"


def _facts(comparison: Comparison) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        ("runs", _count(comparison.runs, comparison.points)),
        ("experiment", ", ".join(sorted({run.experiment for run in comparison.runs if run.experiment})) or None),
    ]
    for parameter in comparison.parameters:
        levels = [parameter.format(value) for value in parameter.levels()]
        few = len(levels) <= MAX_LEVELS
        range_ = ", ".join(levels) if few else f"{len(levels)} values, {levels[0]} to {levels[-1]}"
        also = f"; together with {', '.join(parameter.also[:4])}" if parameter.also else ""
        facts.append((f"varied: {parameter.key}", f"{range_}{also}"))
    seeds = sorted({run.seed for run in comparison.runs if run.seed is not None})
    few = len(seeds) <= MAX_LEVELS
    facts.append(("seeds", ", ".join(map(str, seeds)) or None if few else f"{len(seeds)}, {seeds[0]} to {seeds[-1]}"))
    by = ", optimized by the search" if comparison.metric == comparison.search.metric else ""
    facts.append(("metric", f"{comparison.metric}{by}" if comparison.metric else None))
    facts.append(
        ("decoder", ", ".join(decoders(comparison)) or None if comparison.metric.endswith("accuracy") else None)
    )
    if comparison.groups and comparison.parameters and comparison.higher is not None:
        best, one = comparison.groups[0], comparison.summary(comparison.groups[0])
        facts.append(("best mean", f"{page.cell(one.mean)} ({comparison.describe(best)}, n = {one.n})"))
    for name, values in _environment_differences(comparison.runs).items():
        facts.append((f"differs: {name}", ", ".join(values)))
    return facts


def _environment_differences(runs: Sequence[Facts]) -> dict[str, list[str]]:
    """Return versions, devices, kernels, threads and commits in which the runs differ."""
    different: dict[str, dict[str, None]] = {}
    for run in runs:
        versions, git = run.record.get("versions"), run.record.get("git")
        environment = {
            "device": run.record.get("device"),
            "kernel": run.record.get("kernel"),
            "threads": run.record.get("threads"),
            "commit": git.get("commit") if isinstance(git, dict) else None,
            **(versions if isinstance(versions, dict) else {}),
        }
        for name, value in environment.items():
            if value is not None:
                different.setdefault(str(name), {})[str(value)] = None
    return {name: list(values) for name, values in different.items() if len(values) > 1}


def _groups(comparison: Comparison) -> list[Block]:
    if not comparison.groups:
        if any(run.status == "finished" for run in comparison.runs):
            return [Text("The finished runs have no test metric to compare.")]
        return [Text("No run has finished.")]
    summaries = [comparison.summary(group) for group in comparison.groups]
    columns = [*comparison.keys, "n", "mean", "std", "95 % from", "95 % to"]
    rows: list[list[Any]] = [
        [*group.values, one.n, one.mean, one.std, one.low, one.high]
        for group, one in zip(comparison.groups, summaries, strict=True)
    ]
    if comparison.numbered:
        columns, rows = ["group", *columns], [[number, *row] for number, row in enumerate(rows, 1)]
    caption = f"{comparison.metric} over seeds, {comparison.order}"
    if len(rows) > MAX_ROWS:
        tables: list[Block] = [
            Table(columns, rows[:MAX_ROWS], f"{caption}: the first {MAX_ROWS} of {len(rows)} groups"),
            Table(columns, rows, f"All {len(rows)} groups", name="groups", folded=True),
        ]
    else:
        tables = [Table(columns, rows, caption, name="groups")]
    return [
        Text(" ".join(_remarks(comparison, summaries))),
        *tables,
        *pictures.of_groups(comparison),
        *_further(comparison),
    ]


def _remarks(comparison: Comparison, summaries: Sequence[Summary]) -> list[str]:
    """Return notes about the table of groups."""
    remarks = ["std uses n - 1; the 95 % confidence interval is of the mean, by Student's t."]
    if all(one.n < 2 for one in summaries):
        remarks = ["Every group has only one seed, so there is no standard deviation and no confidence interval."]
    elif any(one.n < 2 for one in summaries):
        remarks[0] += " Groups with one seed have neither."
    repeated = [run.id for group in comparison.groups for run in group.repeated]
    if repeated:
        more = ", …" if len(repeated) > 5 else ""
        remarks.append(
            f"{len(repeated)} runs have the same values and seed as a later run and are ignored: "
            f"{', '.join(repeated[:5])}{more}."
        )
    without = [run.id for run in comparison.runs if run.status == "finished" and comparison.metric not in run.metrics]
    if without:
        remarks.append(f"{len(without)} finished runs have no {comparison.metric}: {', '.join(without[:5])}.")
    others = other_differences(comparison.groups, comparison.configs)
    if others:
        more = ", …" if len(others) > 5 else ""
        remarks.append(f"Runs of a group differ in more than the seed: {', '.join(others[:5])}{more}.")
    if comparison.metric.endswith("loss") and not is_layer_metric(comparison.metric) and len(losses(comparison)) > 1:
        remarks.append("Values of different losses are not comparable.")
    if comparison.metric.endswith("accuracy") and len(decoders(comparison)) > 1:
        remarks.append(f"The runs use different decoders: {', '.join(decoders(comparison))}.")
    finished = [run for run in comparison.runs if run.status == "finished"]
    unknown = [run.id for run in finished if any(run.path not in own.values for own in comparison.parameters)]
    if unknown:
        remarks.append(f"The config of {len(unknown)} runs is unknown, so they are in no group: {unknown[0]}.")
    if comparison.search.metric not in ("", comparison.metric):
        remarks.append(f"The search optimized {comparison.search.metric}, not {comparison.metric}.")
    if comparison.higher is not None and comparison.metric.startswith("test/") and len(comparison.groups) > 1:
        remarks.append("Selecting hyperparameters by this table means selecting them on the test split.")
    return remarks


def _further(comparison: Comparison) -> list[Block]:
    """Return a table of the other metrics."""
    runs = [run for group in comparison.groups for run in group.runs.values()]
    names = sorted({name for run in runs for name in run.metrics if not is_layer_metric(name)} - {comparison.metric})
    if not names:
        return []
    columns = [*comparison.keys, "n", *(column for name in names for column in (name, f"std of {name}"))]
    rows = []
    for group in comparison.groups:
        others = [summary(list(group.metric(name).values())) for name in names]
        rows.append([*group.values, len(group.runs), *(cell for one in others for cell in (one.mean, one.std))])
    return [Table(columns, rows, "Further metrics: mean and standard deviation", name="further_metrics", folded=True)]


def _importance(comparison: Comparison) -> list[Block]:
    results = [
        (group, seed, value) for group in comparison.groups for seed, value in group.metric(comparison.metric).items()
    ]
    if len(comparison.groups) < 2:
        return []
    values = [value for _, _, value in results]
    columns = {
        parameter.key: [group.values[index] for group, _, _ in results]
        for index, parameter in enumerate(comparison.parameters)
    }
    columns["seed"] = [str(seed) for _, seed, _ in results]
    rows = []
    for key, levels in columns.items():
        one = statistics.importance(levels, values)
        if len(set(levels)) > 1:
            rows.append((key, len(set(levels)), one.ranges, one.share))
    rows.sort(key=lambda row: (row[3] is None, -(row[3] or 0)))
    known = {key: share for key, _, _, share in rows if share is not None}
    if not known:
        return []
    caption = f"Share of the variance of {comparison.metric} explained by each parameter alone, corrected for chance."
    return [
        Picture("importance", figures.shares(known, ("seed",)), caption),
        Table(
            ["parameter", "values", "in ranges", "share"],
            rows,
            "Epsilon squared: 1 means all of the variance, values around or below 0 mean no effect. Interactions "
            "between parameters are not considered. Values of a random search are binned into ranges.",
            name="importance",
        ),
    ]


def _paired(comparison: Comparison) -> list[Block]:
    if len(comparison.groups) != 2:
        return []
    first, second = sorted(comparison.groups, key=lambda group: [(isinstance(v, str), v) for v in group.values])
    one, other = comparison.describe(first), comparison.describe(second)
    of_first, of_second = first.metric(comparison.metric), second.metric(comparison.metric)
    pair = statistics.paired(of_first, of_second)
    common = [seed for seed in of_first if seed in of_second]
    blocks: list[Block] = []
    if pair.difference is not None:
        by = f"{'higher' if pair.difference > 0 else 'lower'} by {page.cell(abs(pair.difference))} on average than"
        result = f"{comparison.metric} of {other} is {by if pair.difference else 'on average equal to'} that of {one}"
        if pair.p is not None:
            result += (
                f" (95 % confidence interval of the difference {page.cell(pair.low)} to {page.cell(pair.high)}, "
                f"p = {page.cell(pair.p)}, paired t-test over {pair.n} common seeds)"
            )
        blocks.append(Text(f"{result}."))
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
    least = f" With {pair.n} seeds its p-value is at least {page.cell(2.0 ** (1 - pair.n))}." if pair.n > 1 else ""
    caption = (
        f"{other} - {one}. The t-test assumes normally distributed differences, Wilcoxon's test only symmetric ones."
        f"{least}"
    )
    blocks.append(Table(["", "value"], rows, caption, name="paired"))
    if common:
        firsts, seconds = [of_first[seed] for seed in common], [of_second[seed] for seed in common]
        figure = figures.pairs(firsts, seconds, (comparison.label(first), comparison.label(second)), comparison.metric)
        data = {"seed": common, one: firsts, other: seconds}
        blocks.append(
            Picture(
                "pairs",
                figure,
                f"{comparison.metric}, one line per common seed; the thick line connects the means.",
                data,
            )
        )
    return blocks


def _unfinished(comparison: Comparison, folder: Path) -> list[Block]:
    rows: list[tuple[Any, ...]] = [
        (_link(run, folder), run.status, run.reason or run.last_position, " ".join(run.overrides), run.seed)
        for run in comparison.runs
        if run.status != "finished"
    ]
    rows += [(None, point.status, point.reason, " ".join(point.overrides), None) for point in comparison.points]
    if not rows:
        return []
    columns = ["run", "status", "reason", "overrides", "seed"]
    return [Table(columns, rows, "These runs are not included in the results above.", name="not_finished")]


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _all(comparison: Comparison, folder: Path) -> list[Block]:
    stopped = any(run.stopped_early for run in comparison.runs)
    rows = [
        (
            _link(run, folder),
            run.status,
            *(parameter.values.get(run.path) for parameter in comparison.parameters),
            run.seed,
            run.metrics.get(comparison.metric),
            run.duration_s,
            *([run.stopped_early.removeprefix("stopped early ") or None] if stopped else []),
        )
        for run in comparison.runs
    ]
    columns = ["run", "status", *comparison.keys, "seed", comparison.metric or "metric", "duration [s]"]
    columns += ["stopped early"] if stopped else []
    return [Table(columns, rows, f"{_runs(len(rows))} in total", name="runs", folded=len(rows) > FEW)]
