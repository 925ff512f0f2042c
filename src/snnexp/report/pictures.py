"""Pictures of runs that are compared: the groups beside each other, and their curves."""

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
"""Rows or columns of a heat map; more are no grid but a random search."""
POINTS = 200
"""Of a curve; longer ones are drawn by the means of as many bins."""


def of_groups(found: Comparison) -> list[Picture]:
    """Those that suit what was varied."""
    pictures = []
    levels = [parameter.levels() for parameter in found.parameters]
    count = len(found.groups)
    if count > 1 and levels:
        most = max(map(len, levels))
        grid = not found.searched.metric and most <= MAX_CELLS and 2 * count >= math.prod(map(len, levels))
        if len(levels) == 1 and grid and most <= MAX_LEVELS:
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
    drawn = dict(list(values.items())[:MAX_PANELS])
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
    groups = found.groups[:MAX_STRIPS]
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
        f"A line per group, through its value of each parameter to its mean {found.metric}; the color is "
        "that of the last axis, the widest line is the first of the table."
    )
    return Picture("parallel", figure, caption, {**values, found.metric: means})


def curves(found: Comparison) -> list[Block]:
    """Curves of training, with what is to be said of them."""
    groups = found.groups[:MAX_CURVES]
    unread: list[str] = []
    rows = {run.path: _logged(run, unread) for group in groups for run in group.runs.values()}
    blocks: list[Block] = [Text(f"Not drawn: {'; '.join(unread[:5])}.")] if unread else []
    if len(losses(found)) > 1:
        blocks.append(Text("The runs have different losses, whose values cannot be compared."))
    stopped = sum(bool(run.stopped_early) for group in groups for run in group.runs.values())
    if stopped:
        which = "A run" if stopped == 1 else f"{stopped} runs"
        blocks.append(Text(f"{which} stopped early; the mean of a group ends where the first of its runs did."))
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
