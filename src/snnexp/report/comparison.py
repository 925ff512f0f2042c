"""The report about many runs: which values of what was varied did how well, over seeds, and what can be said of it."""

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
"""Rows of a table that is shown at once."""


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
    require_known(metric, runs)
    points = [point for path in summaries for point in missing_points(path, runs)]
    experiments = _by_experiment(runs, points)
    if len(experiments) < 2:
        found = compare_runs(runs, points, metric)
        return page.write(folder, title, _facts(found), _sections(found, folder))
    every = {name: compare_runs(own, some, metric) for name, (own, some) in experiments.items()}
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


def _sections(found: Comparison, folder: Path) -> list[Section]:
    sections = [
        Section("Groups", _groups(found)),
        Section("Which parameter mattered", _importance(found)),
        Section("One group against the other", _paired(found)),
        Section("Training", pictures.curves(found)),
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
    return [
        override for override in first.effective_overrides if all(override in run.effective_overrides for run in others)
    ]


def _link(run: Facts, folder: Path) -> Link | str:
    """A run by its id, which leads to its own page where there is one."""
    own = run.path / "report.html"
    if not own.is_file():
        return run.id
    address = os.path.relpath(own, folder.resolve())
    return Link(run.id, urllib.parse.quote(Path(address).as_posix(), errors="surrogateescape"))


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
        few = len(levels) <= MAX_LEVELS
        range_ = ", ".join(levels) if few else f"{len(levels)} values, {levels[0]} to {levels[-1]}"
        also = f"; {', '.join(parameter.also[:4])} with it" if parameter.also else ""
        facts.append((f"varied: {parameter.key}", f"{range_}{also}"))
    seeds = sorted({run.seed for run in found.runs if run.seed is not None})
    few = len(seeds) <= MAX_LEVELS
    facts.append(("seeds", ", ".join(map(str, seeds)) or None if few else f"{len(seeds)}, {seeds[0]} to {seeds[-1]}"))
    by = ", by which the search chose" if found.metric == found.searched.metric else ""
    facts.append(("metric", f"{found.metric}{by}" if found.metric else None))
    facts.append(("decoder", ", ".join(decoders(found)) or None if found.metric.endswith("accuracy") else None))
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
    if len(rows) > MAX_ROWS:
        tables: list[Block] = [
            Table(columns, rows[:MAX_ROWS], f"{caption}: the first {MAX_ROWS} of {len(rows)} groups"),
            Table(columns, rows, f"All {len(rows)} groups", name="groups", folded=True),
        ]
    else:
        tables = [Table(columns, rows, caption, name="groups")]
    return [
        Text(" ".join(_remarks(found, summaries))),
        *tables,
        *pictures.of_groups(found),
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
    if found.metric.endswith("loss") and not is_layer_metric(found.metric) and len(losses(found)) > 1:
        remarks.append("Values of different losses cannot be compared.")
    if found.metric.endswith("accuracy") and len(decoders(found)) > 1:
        remarks.append(f"Classes are read off the readouts in different ways: {', '.join(decoders(found))}.")
    finished = [run for run in found.runs if run.status == "finished"]
    unknown = [run.id for run in finished if any(run.path not in own.values for own in found.parameters)]
    if unknown:
        remarks.append(f"What {len(unknown)} runs were run with is not known, so they are in no group: {unknown[0]}.")
    if found.searched.metric not in ("", found.metric):
        remarks.append(f"The search went by {found.searched.metric}, and not by {found.metric}.")
    if found.higher is not None and found.metric.startswith("test/") and len(found.groups) > 1:
        remarks.append("What is chosen by this table is chosen by the test split.")
    return remarks


def _further(found: Comparison) -> list[Block]:
    """The other measures of the test split."""
    runs = [run for group in found.groups for run in group.runs.values()]
    names = sorted({name for run in runs for name in run.metrics if not is_layer_metric(name)} - {found.metric})
    if not names:
        return []
    columns = [*found.keys, "n", *(column for name in names for column in (name, f"std of {name}"))]
    rows = []
    for group in found.groups:
        others = [summary(list(group.metric(name).values())) for name in names]
        rows.append([*group.values, len(group.runs), *(cell for one in others for cell in (one.mean, one.std))])
    return [Table(columns, rows, "Further metrics: mean and standard deviation", name="further_metrics", folded=True)]


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


def _unfinished(found: Comparison, folder: Path) -> list[Block]:
    rows: list[tuple[Any, ...]] = [
        (_link(run, folder), run.status, run.reason or run.last_position, " ".join(run.overrides), run.seed)
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
    stopped = any(run.stopped_early for run in found.runs)
    rows = [
        (
            _link(run, folder),
            run.status,
            *(parameter.values.get(run.path) for parameter in found.parameters),
            run.seed,
            run.metrics.get(found.metric),
            run.duration_s,
            *([run.stopped_early.removeprefix("stopped early ") or None] if stopped else []),
        )
        for run in found.runs
    ]
    columns = ["run", "status", *found.keys, "seed", found.metric or "metric", "duration [s]"]
    columns += ["stopped early"] if stopped else []
    return [Table(columns, rows, f"{_runs(len(rows))} in all", name="runs", folded=len(rows) > FEW)]
