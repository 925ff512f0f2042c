"""Figures that compare runs: pure functions that return a new matplotlib figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from snnexp.figures.style import (
    BLUE,
    GRAY,
    INK,
    ORANGE,
    SHADES,
    WIDTH,
    YELLOW,
    Array,
    cycle_colors,
    needs_log_scale,
    shorten,
    styled,
    subplots,
    text_color_on,
    with_unit,
)

SPREAD = LinearSegmentedColormap.from_list("spread", [BLUE, "#7f9a9a", YELLOW])
"""Colormap for lines, visible on white and on a dark page."""
CHARACTER_WIDTH = 0.02
"""Width of a character relative to the axes."""
MAX_WIDENING = 4
"""Maximum widening of the axis limits by an interval, in margins around the values."""


def _limits(values: Sequence[float], intervals: Iterable[tuple[float, float] | None], log: bool) -> tuple[float, float]:
    """Return axis limits around values and intervals; intervals that are too wide are ignored."""
    edges = np.array([min(values), max(values)], float)
    edges = np.log(edges) if log else edges
    margin = 0.35 * float(np.ptp(edges)) or 0.1 * abs(float(edges[0])) or 1.0
    ends = np.array([end for interval in intervals for end in interval or ()], float)
    ends = np.log(ends[ends > 0]) if log else ends
    near = ends[np.abs(ends - edges.mean()) <= np.ptp(edges) / 2 + MAX_WIDENING * margin]
    covered = np.append(edges, near)
    edges = np.array([covered.min() - margin / 2, covered.max() + margin / 2])
    return cast(tuple[float, float], tuple(np.exp(edges) if log else edges))


@styled()
def strips(
    samples: Mapping[str, Sequence[float]], intervals: Sequence[tuple[float, float] | None], names: str, metric: str
) -> Figure:
    """Draw a strip plot: a row per group, with runs as dots, the mean as a line, and its interval as a bar.

    Args:
        samples: values of the runs by label of the group, from the top.
        intervals: intervals of the means in the same order, or None.
        names: names of the parameters whose values are the labels.
        metric: name of the metric.
    """
    figure = Figure(figsize=(WIDTH, 1.0 + 0.27 * len(samples)), layout="constrained")
    axes = figure.subplots()
    every = [value for values in samples.values() for value in values]
    log = needs_log_scale(every)
    for row, (values, interval) in enumerate(zip(samples.values(), intervals, strict=True)):
        if interval is not None:
            low = max(interval[0], np.finfo(float).tiny) if log else interval[0]
            axes.plot([low, interval[1]], [row, row], color=GRAY, linewidth=6, solid_capstyle="butt", alpha=0.4)
        axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=4.5, markeredgewidth=0)
        if len(values) > 1:
            axes.plot([np.mean(values)], [row], "|", color=INK, markersize=11, markeredgewidth=1.8)
    if log:
        axes.set_xscale("log")
    axes.set_xlim(_limits(every, intervals, log))
    axes.set_yticks(range(len(samples)), [shorten(label) for label in samples])
    axes.set_ylim(len(samples) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title(shorten(names, 34), loc="left", fontsize=8)
    axes.set_xlabel(with_unit(metric))
    return figure


@styled()
def response(
    levels: Sequence[float],
    samples: Sequence[Sequence[float]],
    intervals: Sequence[tuple[float, float] | None],
    parameter: str,
    metric: str,
) -> Figure:
    """Plot a metric against one parameter: runs as dots, the means connected, their intervals as bars.

    Args:
        levels: values of the parameter, ascending.
        samples: values of the metric for each level.
        intervals: intervals of the means, or None.
        parameter: name of the parameter.
        metric: name of the metric.
    """
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    every = [value for values in samples for value in values]
    log = needs_log_scale(every)
    for level, values, interval in zip(levels, samples, intervals, strict=True):
        if interval is not None:
            low = max(interval[0], np.finfo(float).tiny) if log else interval[0]
            axes.plot([level, level], [low, interval[1]], color=GRAY, linewidth=6, solid_capstyle="butt", alpha=0.4)
        axes.plot([level] * len(values), values, "o", color=BLUE, markersize=4.5, markeredgewidth=0)
    axes.plot(levels, [np.mean(values) for values in samples], "-", marker="_", color=INK, markersize=10)
    if needs_log_scale(levels):
        axes.set_xscale("log")
    if log:
        axes.set_yscale("log")
    axes.set_ylim(_limits(every, intervals, log))
    heights, named = sorted(_scale(levels)[0]), [shorten(level) for level in levels]
    if min(np.diff(heights), default=1.0) > CHARACTER_WIDTH * (2 + max(map(len, named))):
        axes.set_xticks(levels, named)
        axes.minorticks_off()
    elif not needs_log_scale(levels):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(with_unit(parameter))
    axes.set_ylabel(with_unit(metric))
    return figure


@styled()
def scatter(values: Mapping[str, Sequence[Any]], results: Sequence[float], metric: str, best: int | None) -> Figure:
    """Plot a metric against each parameter, with a panel for each parameter and a dot for each run.

    Args:
        values: values of the runs by parameter; strings are placed in order of appearance.
        results: the metric of each run.
        metric: name of the metric.
        best: index of the run to highlight, or None.
    """
    across = min(2, len(values))
    down = -(-len(values) // across)
    figure, grid = subplots(down, across, height=0.4 + 2.2 * down, sharey=True)
    order = [index for index in range(len(results)) if index != best]
    for axes in grid.flat[len(values) :]:
        axes.set_axis_off()
    for axes, (name, column) in zip(grid.flat, values.items(), strict=False):
        numbers = all(isinstance(level, (int, float)) for level in column)
        texts = list(dict.fromkeys(column))
        places = list(column) if numbers else [texts.index(level) for level in column]
        axes.plot([places[i] for i in order], [results[i] for i in order], "o", color=BLUE, markersize=4, alpha=0.7)
        if best is not None:
            axes.plot([places[best]], [results[best]], "D", color=ORANGE, markersize=6)
        if not numbers:
            axes.set_xticks(range(len(texts)), [shorten(text, 16) for text in texts], rotation=45 * (len(texts) > 2))
            axes.set_xlim(-0.5, len(texts) - 0.5)
        elif needs_log_scale(places):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(with_unit(name))
    if needs_log_scale(results):
        grid[0, 0].set_yscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel(with_unit(metric))
    return figure


@styled()
def heat_map(
    means: Array, counts: Array, rows: Sequence[object], columns: Sequence[object], names: tuple[str, str], metric: str
) -> Figure:
    """Draw a heat map of the mean of a metric over two parameters; cells show the mean, and n if it differs.

    Args:
        means: ``[rows, columns]``, NaN for cells without runs.
        counts: number of runs in each cell.
        rows: values of the first parameter.
        columns: values of the second parameter.
        names: names of the two parameters.
        metric: name of the metric.
    """
    figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    known = means[np.isfinite(means)]
    norm = LogNorm(known.min(), known.max()) if needs_log_scale(known) else Normalize(known.min(), known.max())
    image = axes.imshow(means, cmap=SHADES, norm=norm, aspect="auto")
    differ = len(set(counts[counts > 0].tolist())) > 1
    size = min(8.0, 60 / len(columns))
    for (row, column), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            text = f"{mean:.3g}\nn={counts[row, column]}" if differ else f"{mean:.3g}"
            axes.text(column, row, text, ha="center", va="center", color=text_color_on(norm(mean)), fontsize=size)
        else:
            axes.text(column, row, "–", ha="center", va="center", color=INK, fontsize=size)  # noqa: RUF001
    axes.set_yticks(range(len(rows)), [shorten(value) for value in rows])
    crowded = sum(len(shorten(value)) + 2 for value in columns) > 55
    axes.set_xticks(range(len(columns)), [shorten(value) for value in columns], rotation=45 * crowded)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(with_unit(names[0]))
    axes.set_xlabel(with_unit(names[1]))
    figure.colorbar(image, label=with_unit(metric), pad=0.02)
    return figure


@styled()
def parallel(values: Mapping[str, Sequence[Any]], results: Sequence[float], metric: str, better: str) -> Figure:
    """Draw parallel coordinates: one line per group through its value of each parameter to its metric.

    Args:
        values: values of the groups by parameter; strings are placed in order of appearance.
        results: the metric of each group.
        metric: name of the metric.
        better: ``max`` or ``min``; lines are drawn from worst to best, the best one thicker.
    """
    figure = Figure(figsize=(max(WIDTH, 1.2 * (len(values) + 1)), 3.4), layout="constrained")
    axes = figure.subplots()
    scales = [_scale(column) for column in [*values.values(), list(results)]]
    order = np.argsort(results, kind="stable")
    order = order if better == "max" else order[::-1]
    log = needs_log_scale(results)
    norm = (LogNorm if log else Normalize)(min(results), max(results))
    heights = np.array([places for places, _ in scales]).T
    places = range(len(scales))
    for index in order:
        best = index == order[-1]
        axes.plot(
            places,
            heights[index],
            color=SPREAD(norm(results[index])),
            linewidth=3 if best else 1.1,
            alpha=1 if best else 0.75,
            rasterized=len(results) > 300,
        )
    for place, (_, ticks) in zip(places, scales, strict=True):
        axes.axvline(place, color=INK, linewidth=0.8)
        # labels are right of the last axis, where there are no lines, and above the lines at the others
        last = place == places[-1]
        for height, label in _without_overlap(ticks):
            axes.annotate(
                shorten(label, 16),
                (place, height),
                (4, 0) if last else (-4, 1),
                textcoords="offset points",
                ha="left" if last else "right",
                va="center" if last else "bottom",
                fontsize=8,
            )
    axes.set_xticks(places, [with_unit(name).rpartition(".")[2].replace(" [", "\n[") for name in [*values, metric]])
    axes.set_xlim(-0.6, len(places) - 0.6)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6)
    return figure


def _scale(column: Sequence[Any]) -> tuple[list[float], list[tuple[float, Any]]]:
    """Return the positions of values on an axis from 0 to 1, and the positions and values of its labels."""
    levels = list(dict.fromkeys(column))
    if all(isinstance(level, (int, float)) for level in levels):
        levels.sort()
        transform = np.log if needs_log_scale(levels) else np.asarray
        low, high = float(transform(levels[0])), float(transform(levels[-1]))
        heights = {level: (float(transform(level)) - low) / ((high - low) or 1.0) for level in levels}
        if len(levels) > 6:
            middle = float(np.exp((low + high) / 2) if transform is np.log else (low + high) / 2)
            return [heights[value] for value in column], [(0.0, levels[0]), (0.5, middle), (1.0, levels[-1])]
    else:
        heights = {level: index / max(1, len(levels) - 1) for index, level in enumerate(levels)}
    labeled = levels if len(levels) <= 12 else [levels[0], levels[-1]]
    return [heights[value] for value in column], [(heights[level], level) for level in labeled]


def _without_overlap(ticks: Sequence[tuple[float, Any]], min_distance: float = 0.06) -> list[tuple[float, Any]]:
    """Return the ticks without those that would overlap the previous one."""
    kept: list[tuple[float, Any]] = []
    for height, label in sorted(ticks, key=lambda tick: tick[0]):
        if not kept or height - kept[-1][0] > min_distance:
            kept.append((height, label))
    return kept


@styled()
def shares(importance: Mapping[str, float], gray: Sequence[str] = ()) -> Figure:
    """Draw the importance of each parameter as a bar, from the top.

    Args:
        importance: explained share of the variance by parameter, possibly negative.
        gray: parameters shown for comparison only.
    """
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(importance)), layout="constrained")
    axes = figure.subplots()
    colors = [GRAY if name in gray else BLUE for name in importance]
    axes.barh([shorten(name) for name in importance], list(importance.values()), color=colors, height=0.6)
    for row, share in enumerate(importance.values()):
        # right of the bar, and of zero
        axes.text(max(share, 0.0) + 0.015, row, f"{share:.2f}", va="center", fontsize=8)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *importance.values()) * 1.1, 1.12)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of variance explained alone")
    return figure


@styled()
def bands(groups: Mapping[str, tuple[Array, Array, Array, Array]], names: str, metric: str, x: str) -> Figure:
    """Plot a curve with a band for each group.

    Args:
        groups: x, mean, lower and upper bound by label of the group.
        names: names of the parameters whose values are the labels.
        metric: name of the metric.
        x: label of the x axis.
    """
    longest = max(map(len, groups))
    across = 3 if longest < 14 else 2 if longest < 24 else 1
    figure = Figure(figsize=(WIDTH, 2.9 + 0.18 * -(-len(groups) // across)), layout="constrained")
    axes = figure.subplots()
    for (label, (place, mean, low, high)), color in zip(groups.items(), cycle_colors(groups), strict=True):
        axes.fill_between(place, low, high, color=color, alpha=0.18, linewidth=0)
        marker = "o" if len(place) == 1 else None
        axes.plot(place, mean, color=color, label=shorten(label, 60), marker=marker, markersize=4)
    means = np.concatenate([mean for _, mean, _, _ in groups.values()])
    if needs_log_scale(means):
        axes.set_yscale("log")
        # a single seed close to zero would compress all other curves
        axes.set_ylim(bottom=means.min() / 4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(with_unit(metric))
    figure.legend(loc="outside upper left", ncols=across, title=shorten(names, 60), alignment="left", title_fontsize=8)
    return figure


@styled()
def pairs(first: Sequence[float], second: Sequence[float], labels: tuple[str, str], metric: str) -> Figure:
    """Draw a paired plot of two groups, with one line per common seed.

    Args:
        first: the metric of the first group for each common seed.
        second: the metric of the second group.
        labels: labels of the two groups.
        metric: name of the metric.
    """
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    for pair in zip(first, second, strict=True):
        axes.plot([0, 1], pair, "o-", color=BLUE, linewidth=1, markersize=4, alpha=0.6)
    axes.plot([0, 1], [np.mean(first), np.mean(second)], "-", color=INK, linewidth=2.5, marker="_", markersize=18)
    if needs_log_scale([*first, *second]):
        axes.set_yscale("log")
    axes.set_xticks([0, 1], [shorten(label, 26) for label in labels])
    axes.set_xlim(-0.4, 1.4)
    axes.set_ylabel(with_unit(metric))
    return figure
