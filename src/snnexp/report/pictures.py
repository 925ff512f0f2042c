"""Pictures of a comparison: groups, parameters and training curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from snnexp.errors import CheckpointError
from snnexp.figures import comparison as figures
from snnexp.figures.picture import Picture
from snnexp.record.facts import Facts
from snnexp.record.run import Run
from snnexp.report.findings import MAX_LEVELS, Comparison, losses
from snnexp.report.page import Block, Text
from snnexp.report.statistics import Summary, is_number

MAX_STRIPS = 25
MAX_CURVES = 6
MAX_PANELS = 8
MAX_CELLS = 15
"""Maximum rows or columns of a heat map; more indicate a random search."""
POINTS = 200
"""Maximum points of a curve; longer curves are averaged in that many bins."""


def of_groups(comparison: Comparison) -> list[Picture]:
    """Return the pictures that suit the number and kind of parameters."""
    pictures = []
    levels = [parameter.levels() for parameter in comparison.parameters]
    count = len(comparison.groups)
    if count > 1 and levels:
        most = max(map(len, levels))
        grid = not comparison.search.metric and most <= MAX_CELLS and 2 * count >= math.prod(map(len, levels))
        if len(levels) == 1 and grid and most <= MAX_LEVELS:
            pictures += [_response(comparison)] if all(is_number(level) for level in levels[0]) else []
        elif len(levels) == 2 and grid:
            pictures.append(_heat_map(comparison))
        elif count > 2:
            pictures.append(_scatter(comparison))
            pictures += [_parallel(comparison)] if len(levels) > 2 else []
    # with one run per group, strips add nothing to the other pictures
    repeated = any(len(group.runs) > 1 for group in comparison.groups)
    return [_strips(comparison), *pictures] if repeated or (count > 1 and not pictures) else pictures


def _scatter(comparison: Comparison) -> Picture:
    points = [(group, value) for group in comparison.groups for value in comparison.values(group)]
    values = {
        parameter.key: [group.values[index] for group, _ in points]
        for index, parameter in enumerate(comparison.parameters)
    }
    # all finished runs may share a value
    values = {key: levels for key, levels in values.items() if len(set(levels)) > 1}
    results = [value for _, value in points]
    best = None if comparison.higher is None else results.index((max if comparison.higher else min)(results))
    drawn = dict(list(values.items())[:MAX_PANELS])
    figure = figures.scatter(drawn, results, comparison.metric, best)
    which = f"the first {len(drawn)} of {len(values)} parameters" if len(drawn) < len(values) else "each parameter"
    caption = f"{comparison.metric} against {which}: dots are runs" + (
        "." if best is None else ", the diamond is the best."
    )
    return Picture("scatter", figure, caption, {**values, comparison.metric: results})


def _interval(one: Summary) -> tuple[float, float] | None:
    return None if one.low is None or one.high is None else (one.low, one.high)


def _bars(intervals: Sequence[tuple[float, float] | None], frame: tuple[float, float]) -> str:
    """Return the part of a caption about the intervals of means."""
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return ""
    is_clipped = any(low < frame[0] or high > frame[1] for low, high in known)
    none = " (none for a single seed)" if len(known) < len(intervals) else ""
    return f", bars are 95 % confidence intervals of the mean{none}{', clipped to the axes' if is_clipped else ''}"


def _strips(comparison: Comparison) -> Picture:
    groups = comparison.groups[:MAX_STRIPS]
    samples = {comparison.label(group): comparison.values(group) for group in groups}
    intervals = [_interval(comparison.summary(group)) for group in groups]
    figure = figures.strips(samples, intervals, ", ".join(comparison.names), comparison.metric)
    which = _which(comparison, len(groups))
    rows = [
        (comparison.label(group), seed, value)
        for group in groups
        for seed, value in group.metric(comparison.metric).items()
    ]
    return Picture(
        "seeds",
        figure,
        f"{comparison.metric} of {which}, {comparison.order}: dots are runs"
        f"{', the line is the mean' if any(len(values) > 1 for values in samples.values()) else ''}"
        f"{_bars(intervals, figure.axes[0].get_xlim())}.",
        _columns(("group", "seed", comparison.metric), rows),
    )


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def _response(comparison: Comparison) -> Picture:
    parameter = comparison.parameters[0]
    groups = sorted(comparison.groups, key=lambda group: group.values)
    summaries = [comparison.summary(group) for group in groups]
    levels = [float(group.values[0]) for group in groups]
    intervals, samples = [_interval(one) for one in summaries], [comparison.values(group) for group in groups]
    figure = figures.response(levels, samples, intervals, parameter.key, comparison.metric)
    data = _columns(
        (parameter.key, "n", "mean", "95 % from", "95 % to"),
        [(x, one.n, one.mean, one.low, one.high) for x, one in zip(levels, summaries, strict=True)],
    )
    bars = _bars(intervals, figure.axes[0].get_ylim())
    caption = f"{comparison.metric} against {parameter.key}: dots are runs, the line connects the means{bars}."
    return Picture("response", figure, caption, data)


def _heat_map(comparison: Comparison) -> Picture:
    # the parameter with more values is on the x axis
    order = sorted((0, 1), key=lambda index: len(comparison.parameters[index].levels()))
    across, down = order[1], order[0]
    # levels that only unfinished runs have become empty cells
    rows, columns = comparison.parameters[down].levels(), comparison.parameters[across].levels()
    means, counts = np.full((len(rows), len(columns)), np.nan), np.zeros((len(rows), len(columns)), int)
    for group in comparison.groups:
        place = rows.index(group.values[down]), columns.index(group.values[across])
        means[place], counts[place] = np.mean(comparison.values(group)), len(group.runs)
    names = comparison.parameters[down].key, comparison.parameters[across].key
    figure = figures.heat_map(means, counts, rows, columns, names, comparison.metric)
    cells = [
        (row, column, int(counts[i, j]), float(means[i, j]) if counts[i, j] else None)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
    caption = f"Mean {comparison.metric} over seeds; a dash marks cells without a finished run."
    return Picture("heat_map", figure, caption, _columns((*names, "n", "mean"), cells))


def _parallel(comparison: Comparison) -> Picture:
    means = [float(np.mean(comparison.values(group))) for group in comparison.groups]
    values = {
        parameter.key: [group.values[i] for group in comparison.groups]
        for i, parameter in enumerate(comparison.parameters)
    }
    # all finished runs may share a value
    values = {key: levels for key, levels in values.items() if len(set(levels)) > 1}
    figure = figures.parallel(values, means, comparison.metric, "max" if comparison.higher else "min")
    caption = (
        f"One line per group, through its value of each parameter to its mean {comparison.metric}, which also sets the "
        "color; the thickest line is the first group of the table."
    )
    return Picture("parallel", figure, caption, {**values, comparison.metric: means})


def curves(comparison: Comparison) -> list[Block]:
    """Return the training curves of the best groups, with notes about them."""
    groups = comparison.groups[:MAX_CURVES]
    unread: list[str] = []
    rows = {run.path: _logged(run, unread) for group in groups for run in group.runs.values()}
    blocks: list[Block] = [Text(f"Not drawn: {'; '.join(unread[:5])}.")] if unread else []
    if len(losses(comparison)) > 1:
        blocks.append(Text("The runs have different losses, so values of the loss are not comparable."))
    stopped = sum(bool(run.stopped_early) for group in groups for run in group.runs.values())
    if stopped:
        which = "A run" if stopped == 1 else f"{stopped} runs"
        blocks.append(Text(f"{which} stopped early; the mean of a group ends at its shortest run."))
    which = _which(comparison, len(groups))
    for name, x in _panels([row for own in rows.values() for row in own]):
        drawn = {}
        for group in groups:
            band = _band([_curve(rows[run.path], name, x) for run in group.runs.values()])
            if band is not None:
                drawn[comparison.label(group)] = band
        several = any(len(group.runs) > 1 for group in groups)
        over = ": mean over seeds, with a band from the lowest to the highest value" if several else ""
        # skip curves of a single point
        if any(len(band[0]) > 1 for band in drawn.values()):
            data = [
                (label, *point)
                for label, band in drawn.items()
                for point in zip(*(column.tolist() for column in band), strict=True)
            ]
            blocks.append(
                Picture(
                    f"curves_{name.replace('/', '_')}",
                    figures.bands(drawn, ", ".join(comparison.names), name, x),
                    f"{name} of {which}{over}.",
                    _columns(("group", x, "mean", "lowest", "highest"), data),
                )
            )
    return blocks


def _which(comparison: Comparison, count: int) -> str:
    """Return a phrase for the groups that are shown."""
    first = "first" if comparison.higher is None else "best"
    return f"the {first} {count} of {len(comparison.groups)} groups" if count < len(comparison.groups) else "each group"


def _logged(run: Facts, unread: list[str]) -> list[dict[str, Any]]:
    try:
        return [row for row in Run(run.path).metrics() if isinstance(row, dict)]
    except (CheckpointError, OSError) as error:
        unread.append(str(error))
        return []


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the metrics to draw with their x axes: means of epochs if available, else single steps."""
    epochs = {row.get("epoch") for row in rows if "train/epoch_loss" in row}
    logged = {name for row in rows for name in row}
    wanted = [
        ("train/epoch_loss", "epoch") if len(epochs) > 2 else ("train/loss", "step"),
        ("val/loss", "epoch"),
        ("val/accuracy", "epoch") if "val/accuracy" in logged else ("train/accuracy", "step"),
    ]
    return [(name, x) for name, x in wanted if name in logged]


def _curve(rows: Sequence[Mapping[str, Any]], name: str, x: str) -> tuple[Any, Any]:
    # rows count epochs from 0
    first = 1 if x == "epoch" else 0
    points = [(row[x] + first, row[name]) for row in rows if is_number(row.get(name)) and is_number(row.get(x))]
    array = np.array(points, float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _band(curves: Sequence[tuple[Any, Any]]) -> tuple[Any, Any, Any, Any] | None:
    """Return x, mean, minimum and maximum over the non-empty curves, at the bins where all of them have points."""
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return None
    every = np.unique(np.concatenate([x for x, _ in curves]))
    edges = every if len(every) <= POINTS else np.linspace(every[0], every[-1], POINTS + 1)[:-1]
    means, positions = np.full((len(curves), len(edges)), np.nan), np.full((len(curves), len(edges)), np.nan)
    for row, (x, y) in enumerate(curves):
        bins = np.searchsorted(edges, x, side="right") - 1
        counts = np.bincount(bins, minlength=len(edges))
        filled = counts > 0
        means[row, filled] = np.bincount(bins, y, len(edges))[filled] / counts[filled]
        positions[row, filled] = np.bincount(bins, x, len(edges))[filled] / counts[filled]
    complete = ~np.isnan(means).any(0)
    if not complete.any():
        return None
    means, positions = means[:, complete], positions[:, complete]
    return positions.mean(0), means.mean(0), means.min(0), means.max(0)
