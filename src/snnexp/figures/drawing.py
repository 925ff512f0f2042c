"""Figures: pure functions from arrays to matplotlib figures, in one style.

Arrays are NumPy's, time first: spikes and membranes ``[T, N]`` of one sample. Where a figure compares, it takes a
mapping from a title (``before training``) to what is drawn under it. Each function returns a new figure.
Colours are those of Okabe and Ito, which colour-blind people can tell apart; on a page, ink takes the page's colour.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import _GeneratorContextManager
from typing import Any, cast

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from snnexp.text import line

Array = NDArray[Any]

INK, GREY = "#1c1c1e", "#6b6b70"
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
SHADES = LinearSegmentedColormap.from_list("shades", ["#f2f6fa", "#56b4e9", "#0072b2", "#00304d"])
"""From few to many: lightness alone tells them in order."""
UNITS = {"tau_mem_inv": "1/s", "tau_syn_inv": "1/s"}
"""Of neuron parameters; all others are dimensionless."""
STEP = "time step"
WIDTH = 4.6
"""Inches of each figure, so that text has the same size in all."""

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
    "axes.prop_cycle": cycler(color=COLOURS),
    "svg.fonttype": "none",
    "svg.hashsalt": "snnexp",
}


def styled() -> _GeneratorContextManager[None]:
    """The style of all figures, also as a decorator."""
    return matplotlib.rc_context(STYLE)  # type: ignore[arg-type]


def png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as PNG, on white."""
    buffer = io.BytesIO()
    with styled():
        _settle(figure)
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """A figure as SVG, on no ground, the same text for the same figure; the texts in it stay text."""
    buffer = io.StringIO()
    with styled():
        _settle(figure)
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Lay a figure out once, and not again for each file; in its texts, what cannot be printed is escaped."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        # a tick's text is made anew whenever it is drawn
        labels = [text.get_text() for text in axis.get_ticklabels()]
        if (shown := [*map(_printable, labels)]) != labels:
            axis.set_ticks(axis.get_ticklocs(), shown)
    for text in figure.findobj(Text):
        text.set_text(_printable(text.get_text()))
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def _printable(text: str) -> str:
    lines = text.split("\n")
    return text if all(map(str.isprintable, lines)) else "\n".join(map(line, lines))


@styled()
def spike_raster(columns: Mapping[str, Mapping[str, tuple[Array, Array, int]]], time: str = STEP) -> Figure:
    """Which neuron fired when, a row per layer.

    Args:
        columns: title to layer to spikes ``[T, N]``, the indices ``[N]`` of their neurons, and the layer's size.
        time: what a step is.
    """
    layers = list(dict.fromkeys(layer for column in columns.values() for layer in column))
    shown = {layer: len(neurons) for column in columns.values() for layer, (_, neurons, _) in column.items()}
    heights = [0.55 if shown[layer] <= 3 else 1.15 for layer in layers]
    shared: dict[str, Any] = {"sharex": True, "sharey": "row"}
    height = 0.6 + sum(heights)
    figure, grid = _placed(len(layers), len(columns), height, down=0.15, across=0.15, shares=heights, **shared)
    for axes, (title, column), colour in zip(grid.T, columns.items(), _before_and_after(columns), strict=True):
        axes[0].set_title(title)
        for row, layer in enumerate(layers):
            if layer not in column:
                continue
            spikes, neurons, size = column[layer]
            step, index = np.nonzero(spikes)
            axes[row].plot(
                step,
                neurons[index],
                linestyle="none",
                marker="|" if len(neurons) <= 60 else "s",
                markersize=float(np.clip(90 / len(neurons), 1.1, 6)),
                markeredgewidth=1.2 if len(neurons) <= 60 else 0,
                color=colour,
                rasterized=len(step) > 2000,
            )
            # each step is an instant in the middle of its cell
            axes[row].set(xlim=(-0.5, len(spikes) - 0.5), ylim=(-0.5, size - 0.5))
            _whole_steps(axes[row], len(spikes))
            if size == 1:
                axes[row].set_yticks([0])
            else:
                axes[row].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes, layer in zip(grid[:, 0], layers, strict=True):
        axes.set_ylabel(f"{layer}\nneuron")
    for axes in grid[-1]:
        axes.set_xlabel(time)
    return figure


@styled()
def output_membrane(
    columns: Mapping[str, tuple[Array, Array | None, Array | None]],
    chosen: int | None = None,
    name: str = "",
    time: str = STEP,
) -> Figure:
    """Membranes of the readout, with threshold and spikes.

    Args:
        columns: title to membrane ``[T, K]``, spikes ``[T, K]`` and thresholds ``[K]``; None for a readout without.
        chosen: the output that stands out, that of the sample's class; all do without.
        name: what it is called.
        time: what a step is.
    """
    figure, grid = _placed(1, len(columns), 2.7, above=0.4, below=0.85, across=0.15, sharex=True, sharey=True)
    for axes, (title, (membrane, spikes, threshold)) in zip(grid[0], columns.items(), strict=True):
        K = membrane.shape[1]
        front = list(range(K)) if chosen is None else [chosen]
        back = [k for k in range(K) if k not in front]
        axes.plot(membrane[:, back], color=GREY, linewidth=0.8, alpha=0.7)
        axes.plot(membrane[:, front], color=BLUE, linewidth=1.6)
        if threshold is not None:
            for height in np.unique(threshold[front]):
                axes.axhline(height, color=ORANGE, linestyle="--", linewidth=1)
        if spikes is not None:
            # above all membranes: how often the chosen output and all others fire
            for height, which, colour in ((1.07, back, GREY), (1.02, front, BLUE)):
                step = np.nonzero(spikes[:, which])[0]
                above = {"transform": axes.get_xaxis_transform(), "clip_on": False, "in_layout": False}
                axes.plot(step, np.full(len(step), height), "|", color=colour, markersize=5, **above)
        axes.set_title(title, pad=14)
        axes.set_xlabel(time)
        _whole_steps(axes, len(membrane))
    grid[0, 0].set_ylabel("membrane (dimensionless)")
    entries = [Line2D([], [], color=BLUE, label=name if chosen is not None else "output")]
    entries += [Line2D([], [], color=GREY, label="other outputs")] if chosen is not None and K > 1 else []
    entries += [Line2D([], [], color=ORANGE, linestyle="--", label="threshold")] if threshold is not None else []
    entries += [Line2D([], [], color=INK, linestyle="none", marker="|", label="spike")] if spikes is not None else []
    figure.legend(handles=entries, loc="lower center", ncols=2)
    return figure


@styled()
def trajectory(columns: Mapping[str, Array], target: Array, time: str = STEP) -> Figure:
    """Output membranes beside the trajectories that they shall follow; ``[T, S]`` of S samples, a panel each."""
    figure, grid = _placed(1, target.shape[1], 2.6, below=0.7, across=0.15, sharex=True, sharey=True)
    for sample, axes in enumerate(grid[0]):
        for (title, membrane), colour in zip(columns.items(), _before_and_after(columns), strict=True):
            axes.plot(membrane[:, sample], color=colour, label=title)
        axes.plot(target[:, sample], color=ORANGE, linestyle="--", label="target")
        axes.set(xlabel=time, title=f"sample {sample + 1}" if target.shape[1] > 1 else "")
        _whole_steps(axes, len(target))
    grid[0, 0].set_ylabel("membrane (dimensionless)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="lower center", ncols=3)
    return figure


@styled()
def predictions(images: Array, predicted: Array, label: Array, across: int = 9) -> Figure:
    """Images ``[S, H, W]`` with what they were taken for; where that is wrong, with what they are."""
    down = -(-len(images) // across)
    H, W = images.shape[1:]
    gap = max(2, H // 3)
    mosaic = np.full((down * (H + gap), across * (W + 2)), np.nan)
    height = WIDTH * mosaic.shape[0] / mosaic.shape[1]
    figure, grid = _placed(1, 1, height, left=0, right=0, above=0, below=0)
    axes = grid[0, 0]
    low, high = images.min(), images.max()
    for index, image in enumerate(images):
        y, x = index // across * (H + gap) + gap, index % across * (W + 2)
        mosaic[y : y + H, x : x + W] = (image - low) / ((high - low) or 1)
        right = predicted[index] == label[index]
        text = f"{predicted[index]}" if right else f"{predicted[index]}, is {label[index]}"
        look = {"color": INK} if right else {"color": ORANGE, "weight": "bold"}
        axes.text(x + W / 2, y - 1, text, ha="center", va="bottom", size=8, **look)
    axes.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    return figure


@styled()
def confusion(counts: Array) -> Figure:
    """Which class was taken for which: ``[K, K]``, a row per true class; shades are fractions of the row."""
    K = len(counts)
    size = WIDTH * 0.9
    figure, grid = _placed(1, 1, size * 0.82, above=0.1, right=0)
    axes = grid[0, 0]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap=SHADES, vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="fraction of the class", shrink=0.8)
    if K <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(column, row, f"{count}", ha="center", va="center", size=8, color=_on(share[row, column]))
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    if K <= 20:
        axes.set(xticks=range(K), yticks=range(K))
    axes.tick_params(length=0)
    return figure


@styled()
def distributions(columns: Mapping[str, Mapping[str, Array]]) -> Figure:
    """Histograms of parameters: title to name, such as ``hidden1 beta``, to values ``[N]``.

    Where all neurons share one value, it is a line.
    """
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    across = min(2, len(names))
    down = -(-len(names) // across)
    varied = any(np.ptp(values) for column in columns.values() for values in column.values())
    height = 0.35 + (1.75 if varied else 1.1) * down
    figure, grid = _placed(down, across, height, above=0.1, below=0.75, across=0.55, down=0.55)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        values = {title: column[name] for title, column in columns.items() if name in column}
        everything = np.concatenate([*values.values()])
        edges = np.histogram_bin_edges(everything, bins=24)
        for (title, array), colour in zip(columns.items(), _before_and_after(columns), strict=True):
            if name not in array:
                continue
            if np.ptp(array[name]):
                axes.hist(array[name], edges, histtype="step", color=colour, linewidth=1.3, label=title)
            else:
                style = "--" if colour == GREY else "-"
                axes.axvline(array[name][0], color=colour, linestyle=style, linewidth=1.3, label=title)
        unit = UNITS.get(name.split()[-1])
        axes.set(xlabel=f"{name} ({unit})" if unit else name, ylabel="neurons" if np.ptp(everything) else "")
        axes.xaxis.set_major_locator(MaxNLocator(4 if np.ptp(everything) > 0.05 else 2))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if all(not np.ptp(array) for array in values.values()):
            axes.set_yticks([])
            axes.set_xmargin(0.2)
    handles = [
        Line2D([], [], color=c, label=title) for title, c in zip(columns, _before_and_after(columns), strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3)
    return figure


@styled()
def gradient_norms(columns: Mapping[str, Mapping[str, Array]], time: str = STEP) -> Figure:
    """|| dL / dI[t] || of each layer and step: title to layer to ``[T]``, on a logarithmic axis."""
    layers = list(dict.fromkeys(layer for column in columns.values() for layer in column))
    figure, grid = _panels(1, len(columns), height=2.6, sharex=True, sharey=True)
    for axes, (title, column) in zip(grid[0], columns.items(), strict=True):
        for layer, colour in zip(layers, _cycle(layers), strict=True):
            if layer in column:
                norm = column[layer]
                # a gradient of exactly zero has no place on this axis
                axes.plot(np.where(norm > 0, norm, np.nan), color=colour, label=layer)
        axes.set(xlabel=time, title=title, yscale="log")
        _whole_steps(axes, max(map(len, column.values()), default=0))
    grid[0, 0].set_ylabel("‖∂L/∂I[t]‖")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled()
def loss_curves(iteration: tuple[Array, Array], epochs: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Loss per iteration (steps and losses) and per epoch (name to epochs and losses); no panel for what is empty."""
    panels = [bool(len(iteration[0])), any(len(x) for x, _ in epochs.values())]
    figure, grid = _panels(1, max(1, sum(panels)), height=2.5)
    free = list(grid[0])
    if panels[0]:
        axes = free.pop(0)
        step, loss = iteration
        width = len(step) // 40
        axes.plot(step, loss, color=BLUE, linewidth=0.7 if width > 1 else 1.3, alpha=0.45 if width > 1 else 1)
        if width > 1:
            mean = np.convolve(loss, np.ones(width) / width, mode="valid")
            axes.plot(step[width - 1 :], mean, color=BLUE, label=f"mean of {width} points")
            axes.legend()
        axes.set(xlabel="iteration", ylabel="training loss")
        _log_if_wide(axes, loss)
        _dot(axes)
    if panels[1]:
        axes = free.pop(0)
        for (name, (epoch, loss)), colour in zip(epochs.items(), _cycle(epochs), strict=True):
            axes.plot(epoch, loss, color=colour, label=name, marker="o" if len(epoch) <= 20 else "", markersize=3)
        axes.set(xlabel="epoch", ylabel="mean loss")
        if max(len(epoch) for epoch, _ in epochs.values()) == 1:
            axes.set_xlim(0.5, 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend()
        _log_if_wide(axes, np.concatenate([loss for _, loss in epochs.values()]))
    return figure


@styled()
def activity(panels: Mapping[str, Mapping[str, tuple[Array, Array]]]) -> Figure:
    """Fractions over the course of training: label of a panel to layer to iterations and values."""
    figure, grid = _panels(1, len(panels), height=2.5, sharex=True)
    layers = list(dict.fromkeys(layer for curves in panels.values() for layer in curves))
    for axes, (label, curves) in zip(grid[0], panels.items(), strict=True):
        for layer, colour in zip(layers, _cycle(layers), strict=True):
            if layer in curves:
                axes.plot(*curves[layer], color=colour, label=layer, linewidth=1)
        axes.set(xlabel="iteration", ylabel=label)
        axes.set_ylim(bottom=0)
        _dot(axes)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled()
def rate_distribution(rates: Mapping[str, Array], unit: str) -> Figure:
    """How often neurons fire: layer to rates ``[N]``, spikes per ``unit``, a panel per layer."""
    figure, grid = _panels(1, len(rates), height=2.2)
    for axes, (layer, rate), colour in zip(grid[0], rates.items(), _cycle(rates), strict=True):
        axes.hist(rate, bins=np.linspace(0, rate.max() or 1, 21), color=colour)
        axes.set(title=layer, xlabel=f"spikes per {unit}", ylabel="neurons" if axes is grid[0, 0] else "")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(4))
    return figure


@styled()
def bars(values: Mapping[str, float], label: str, colours: Sequence[str] = (BLUE,)) -> Figure:
    """One horizontal bar per name, with its number; ``colours`` are for all bars, or for each."""
    figure, grid = _panels(1, 1, height=0.7 + 0.3 * len(values))
    axes = grid[0, 0]
    drawn = axes.barh(list(values), list(values.values()), color=list(colours), height=0.65)
    axes.bar_label(drawn, [f" {value:,.3g}" if value < 1000 else f" {value:,.0f}" for value in values.values()], size=8)
    axes.set_xlabel(label)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _panels(rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Any]:
    """A figure of that height in inches, and its axes ``[rows, columns]``."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _placed(
    rows: int,
    columns: int,
    height: float,
    *,
    left: float = 0.68,
    right: float = 0.1,
    above: float = 0.28,
    below: float = 0.47,
    across: float = 0.0,
    down: float = 0.0,
    shares: Sequence[float] | None = None,
    **shared: Any,
) -> tuple[Figure, Any]:
    """As :func:`_panels`, with margins and gaps in inches that suit short labels.

    For what is drawn while a network trains: a layout by what is drawn takes as long as drawing.
    """
    figure = Figure(figsize=(WIDTH, height))
    wide, high = WIDTH - left - right - across * (columns - 1), height - above - below - down * (rows - 1)
    edges = {"left": left / WIDTH, "right": 1 - right / WIDTH, "bottom": below / height, "top": 1 - above / height}
    gaps = {"wspace": across * columns / wide, "hspace": down * rows / high, "height_ratios": shares}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=edges | gaps, **shared)


def _whole_steps(axes: Axes, count: int) -> None:
    """Ticks at whole steps; a single step, which is no line, becomes a dot."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if count == 1:
        axes.set(xlim=(-0.5, 0.5), xticks=[0])
        _dot(axes)


def _dot(axes: Axes) -> None:
    """Make lines of one point visible."""
    for curve in axes.lines:
        if len(np.atleast_1d(curve.get_xdata())) == 1:
            curve.set(marker="o", markersize=3)


def _before_and_after(columns: Iterable[str]) -> list[str]:
    """The last column is what one looks at, those before it what it is compared with."""
    count = len(list(columns))
    return [GREY] * (count - 1) + [BLUE]


def _cycle(names: Iterable[str]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index, _ in enumerate(names)]


def _on(shade: float) -> str:
    """The colour of a text on one of :data:`SHADES`: it stays when the page is dark."""
    return "#ffffff" if shade > 0.45 else "#111111"


def _log_if_wide(axes: Axes, values: Array) -> None:
    if is_long(values.tolist()):
        axes.set_yscale("log")


LONG = 10**1.5
"""Positive values that span more than this factor are drawn on a logarithmic axis."""
SPREAD = LinearSegmentedColormap.from_list("spread", [BLUE, "#7f9a9a", YELLOW])
"""For lines: every colour stands out from white and from a dark page."""
MEASURED_IN = {"accuracy": "fraction", "relative_error": "fraction", "synops": "additions per sample"}
LONGEST_LABEL = 34
CHARACTER = 0.02
"""The width of a character, of that of the axes."""
MOST_ROOM = 4
"""How far an interval may widen the frame, in margins around the values."""


def cropped(text: object, most: int = LONGEST_LABEL) -> str:
    """A label that leaves room for the figure."""
    shown = f"{text:.4g}" if isinstance(text, float) else str(text)
    # matplotlib reads what stands between dollars as mathematics
    shown = shown.replace("$", r"\$")
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def with_unit(name: str) -> str:
    """The name of a metric or parameter as an axis has it."""
    last = name.rpartition("/")[2]
    unit = MEASURED_IN.get(last) or UNITS.get(name.rpartition(".")[2])
    return f"{cropped(name)} [{unit}]" if unit else cropped(name)


def is_long(values: Iterable[float]) -> bool:
    """Whether values need a logarithmic axis: they span decades, and not just because one of many comes close to 0."""
    known = np.sort([value for value in values if np.isfinite(value)])
    if not known.size or known[0] <= 0:
        return False
    return bool(known[-1] / known[0] > LONG and known[(len(known) - 1) // 2] < known[-1] / 4)


def _framed(values: Sequence[float], intervals: Iterable[tuple[float, float] | None], log: bool) -> tuple[float, float]:
    """Limits around values and intervals, less of those that are so wide that nothing else would be seen."""
    edges = np.array([min(values), max(values)], float)
    edges = np.log(edges) if log else edges
    margin = 0.35 * float(np.ptp(edges)) or 0.1 * abs(float(edges[0])) or 1.0
    ends = np.array([end for interval in intervals for end in interval or ()], float)
    ends = np.log(ends[ends > 0]) if log else ends
    near = ends[np.abs(ends - edges.mean()) <= np.ptp(edges) / 2 + MOST_ROOM * margin]
    framed = np.append(edges, near)
    edges = np.array([framed.min() - margin / 2, framed.max() + margin / 2])
    return cast(tuple[float, float], tuple(np.exp(edges) if log else edges))


@styled()
def strips(
    samples: Mapping[str, Sequence[float]], intervals: Sequence[tuple[float, float] | None], names: str, metric: str
) -> Figure:
    """Each run as a dot, per group: with the mean as a line, and its interval as a bar.

    Args:
        samples: label of a group to the values of its runs, from the top.
        intervals: of the means, in the same order; None where there is none.
        names: what the labels are values of.
        metric: what is measured.
    """
    figure = Figure(figsize=(WIDTH, 1.0 + 0.27 * len(samples)), layout="constrained")
    axes = figure.subplots()
    every = [value for values in samples.values() for value in values]
    log = is_long(every)
    for row, (values, interval) in enumerate(zip(samples.values(), intervals, strict=True)):
        if interval is not None:
            low = max(interval[0], np.finfo(float).tiny) if log else interval[0]
            axes.plot([low, interval[1]], [row, row], color=GREY, linewidth=6, solid_capstyle="butt", alpha=0.4)
        axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=4.5, markeredgewidth=0)
        if len(values) > 1:
            axes.plot([np.mean(values)], [row], "|", color=INK, markersize=11, markeredgewidth=1.8)
    if log:
        axes.set_xscale("log")
    axes.set_xlim(_framed(every, intervals, log))
    axes.set_yticks(range(len(samples)), [cropped(label) for label in samples])
    axes.set_ylim(len(samples) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title(cropped(names, 34), loc="left", fontsize=8)
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
    """A metric against one parameter: each run as a dot, the means joined, their intervals as bars.

    Args:
        levels: values of the parameter, ascending.
        samples: the metric of the runs at each.
        intervals: of the means; None where there is none.
        parameter: what is varied.
        metric: what is measured.
    """
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    every = [value for values in samples for value in values]
    log = is_long(every)
    for level, values, interval in zip(levels, samples, intervals, strict=True):
        if interval is not None:
            low = max(interval[0], np.finfo(float).tiny) if log else interval[0]
            axes.plot([level, level], [low, interval[1]], color=GREY, linewidth=6, solid_capstyle="butt", alpha=0.4)
        axes.plot([level] * len(values), values, "o", color=BLUE, markersize=4.5, markeredgewidth=0)
    axes.plot(levels, [np.mean(values) for values in samples], "-", marker="_", color=INK, markersize=10)
    if is_long(levels):
        axes.set_xscale("log")
    if log:
        axes.set_yscale("log")
    axes.set_ylim(_framed(every, intervals, log))
    heights, named = sorted(_scale(levels)[0]), [cropped(level) for level in levels]
    if min(np.diff(heights), default=1.0) > CHARACTER * (2 + max(map(len, named))):
        axes.set_xticks(levels, named)
        axes.minorticks_off()
    elif not is_long(levels):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(with_unit(parameter))
    axes.set_ylabel(with_unit(metric))
    return figure


@styled()
def scatter(values: Mapping[str, Sequence[Any]], results: Sequence[float], metric: str, best: int | None) -> Figure:
    """A metric against each parameter, a panel each, and each run as a dot.

    Args:
        values: parameter to its value in each run; an axis of numbers, or of texts in the order of their appearance.
        results: the metric of each run.
        metric: what is measured.
        best: the index of the run that stands out; None for none.
    """
    across = min(2, len(values))
    down = -(-len(values) // across)
    figure, grid = _panels(down, across, height=0.4 + 2.2 * down, sharey=True)
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
            axes.set_xticks(range(len(texts)), [cropped(text, 16) for text in texts], rotation=45 * (len(texts) > 2))
            axes.set_xlim(-0.5, len(texts) - 0.5)
        elif is_long(places):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(with_unit(name))
    if is_long(results):
        grid[0, 0].set_yscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel(with_unit(metric))
    return figure


@styled()
def heat_map(
    means: Array, counts: Array, rows: Sequence[object], columns: Sequence[object], names: tuple[str, str], metric: str
) -> Figure:
    """The mean of a metric over two parameters, written into the cells, with n where not all cells have as many runs.

    Args:
        means: ``[rows, columns]``, NaN where nothing was run.
        counts: runs behind each mean.
        rows: values of the first parameter.
        columns: values of the second one.
        names: of the two parameters.
        metric: what is measured.
    """
    figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    known = means[np.isfinite(means)]
    norm = LogNorm(known.min(), known.max()) if is_long(known) else Normalize(known.min(), known.max())
    image = axes.imshow(means, cmap=SHADES, norm=norm, aspect="auto")
    differ = len(set(counts[counts > 0].tolist())) > 1
    size = min(8.0, 60 / len(columns))
    for (row, column), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            text = f"{mean:.3g}\nn={counts[row, column]}" if differ else f"{mean:.3g}"
            axes.text(column, row, text, ha="center", va="center", color=_on(norm(mean)), fontsize=size)
        else:
            axes.text(column, row, "–", ha="center", va="center", color=INK, fontsize=size)  # noqa: RUF001
    axes.set_yticks(range(len(rows)), [cropped(value) for value in rows])
    crowded = sum(len(cropped(value)) + 2 for value in columns) > 55
    axes.set_xticks(range(len(columns)), [cropped(value) for value in columns], rotation=45 * crowded)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(with_unit(names[0]))
    axes.set_xlabel(with_unit(names[1]))
    figure.colorbar(image, label=with_unit(metric), pad=0.02)
    return figure


@styled()
def parallel(values: Mapping[str, Sequence[Any]], results: Sequence[float], metric: str, better: str) -> Figure:
    """Parallel coordinates: a line per group goes through its value of each parameter, and ends at its metric.

    Args:
        values: parameter to its value in each group; an axis of numbers, or of texts in the order of their appearance.
        results: the metric of each group.
        metric: its name.
        better: ``max`` or ``min``; the best lines are drawn last, the best of all wider.
    """
    figure = Figure(figsize=(max(WIDTH, 1.2 * (len(values) + 1)), 3.4), layout="constrained")
    axes = figure.subplots()
    scales = [_scale(column) for column in [*values.values(), list(results)]]
    order = np.argsort(results, kind="stable")
    order = order if better == "max" else order[::-1]
    log = is_long(results)
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
        # right of the last axis no line goes, elsewhere above one there is room
        last = place == places[-1]
        for height, label in _apart(ticks):
            axes.annotate(
                cropped(label, 16),
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
    """Heights of values on an axis from 0 to 1, and what is written beside it."""
    levels = list(dict.fromkeys(column))
    if all(isinstance(level, (int, float)) for level in levels):
        levels.sort()
        shown = np.log if is_long(levels) else np.asarray
        low, high = float(shown(levels[0])), float(shown(levels[-1]))
        heights = {level: (float(shown(level)) - low) / ((high - low) or 1.0) for level in levels}
        if len(levels) > 6:
            middle = float(np.exp((low + high) / 2) if shown is np.log else (low + high) / 2)
            return [heights[value] for value in column], [(0.0, levels[0]), (0.5, middle), (1.0, levels[-1])]
    else:
        heights = {level: index / max(1, len(levels) - 1) for index, level in enumerate(levels)}
    written = levels if len(levels) <= 12 else [levels[0], levels[-1]]
    return [heights[value] for value in column], [(heights[level], level) for level in written]


def _apart(ticks: Sequence[tuple[float, Any]], room: float = 0.06) -> list[tuple[float, Any]]:
    """Ticks without those that would be written over the one before."""
    found: list[tuple[float, Any]] = []
    for height, label in sorted(ticks, key=lambda tick: tick[0]):
        if not found or height - found[-1][0] > room:
            found.append((height, label))
    return found


@styled()
def shares(importance: Mapping[str, float], grey: Sequence[str] = ()) -> Figure:
    """Which parameter mattered: a bar per parameter, from the top.

    Args:
        importance: parameter to the share of variance that it explains, which may be below 0.
        grey: what is shown for comparison only.
    """
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(importance)), layout="constrained")
    axes = figure.subplots()
    colours = [GREY if name in grey else BLUE for name in importance]
    axes.barh([cropped(name) for name in importance], list(importance.values()), color=colours, height=0.6)
    for row, share in enumerate(importance.values()):
        # on the side of the bar where its name does not stand
        axes.text(max(share, 0.0) + 0.015, row, f"{share:.2f}", va="center", fontsize=8)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *importance.values()) * 1.1, 1.12)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of variance explained alone")
    return figure


@styled()
def bands(groups: Mapping[str, tuple[Array, Array, Array, Array]], names: str, metric: str, x: str) -> Figure:
    """Curves of groups: the mean over runs, and a band around it.

    Args:
        groups: label of a group to x, mean, and where the band begins and ends.
        names: what the labels are values of.
        metric: what is measured.
        x: over what.
    """
    longest = max(map(len, groups))
    across = 3 if longest < 14 else 2 if longest < 24 else 1
    figure = Figure(figsize=(WIDTH, 2.9 + 0.18 * -(-len(groups) // across)), layout="constrained")
    axes = figure.subplots()
    for (label, (place, mean, low, high)), colour in zip(groups.items(), _cycle(groups), strict=True):
        axes.fill_between(place, low, high, color=colour, alpha=0.18, linewidth=0)
        marker = "o" if len(place) == 1 else None
        axes.plot(place, mean, color=colour, label=cropped(label, 60), marker=marker, markersize=4)
    means = np.concatenate([mean for _, mean, _, _ in groups.values()])
    if is_long(means):
        axes.set_yscale("log")
        # one seed that comes close to zero would flatten all else
        axes.set_ylim(bottom=means.min() / 4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(with_unit(metric))
    figure.legend(loc="outside upper left", ncols=across, title=cropped(names, 60), alignment="left", title_fontsize=8)
    return figure


@styled()
def pairs(first: Sequence[float], second: Sequence[float], labels: tuple[str, str], metric: str) -> Figure:
    """Two groups seed by seed: a line joins what one seed gave in both.

    Args:
        first: the metric of the first group, per common seed.
        second: of the second one.
        labels: of the groups.
        metric: what is measured.
    """
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    for pair in zip(first, second, strict=True):
        axes.plot([0, 1], pair, "o-", color=BLUE, linewidth=1, markersize=4, alpha=0.6)
    axes.plot([0, 1], [np.mean(first), np.mean(second)], "-", color=INK, linewidth=2.5, marker="_", markersize=18)
    if is_long([*first, *second]):
        axes.set_yscale("log")
    axes.set_xticks([0, 1], [cropped(label, 26) for label in labels])
    axes.set_xlim(-0.4, 1.4)
    axes.set_ylabel(with_unit(metric))
    return figure
