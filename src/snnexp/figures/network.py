"""Figures of a network and its training: pure functions that return a new matplotlib figure.

Arrays are NumPy arrays, time-first: spikes and membranes ``[T, N]`` of one sample. Functions that compare snapshots
take a mapping from titles, such as ``before training``, to arrays.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from snnexp.figures.style import (
    BLUE,
    GRAY,
    INK,
    ORANGE,
    SHADES,
    STEP_LABEL,
    UNITS,
    WIDTH,
    Array,
    comparison_colors,
    cycle_colors,
    mark_isolated_points,
    set_integer_ticks,
    set_log_if_needed,
    styled,
    subplots,
    subplots_with_margins,
    text_color_on,
)


@styled()
def spike_raster(columns: Mapping[str, Mapping[str, tuple[Array, Array, int]]], time: str = STEP_LABEL) -> Figure:
    """Draw a spike raster with a row per layer.

    Args:
        columns: by title and layer: spikes ``[T, N]``, indices ``[N]`` of the neurons, and the size of the layer.
        time: label of the time axis.
    """
    layers = list(dict.fromkeys(layer for column in columns.values() for layer in column))
    counts = {layer: len(neurons) for column in columns.values() for layer, (_, neurons, _) in column.items()}
    heights = [0.55 if counts[layer] <= 3 else 1.15 for layer in layers]
    shared: dict[str, Any] = {"sharex": True, "sharey": "row"}
    height = 0.6 + sum(heights)
    figure, grid = subplots_with_margins(
        len(layers), len(columns), height, down=0.15, across=0.15, shares=heights, **shared
    )
    for axes, (title, column), color in zip(grid.T, columns.items(), comparison_colors(columns), strict=True):
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
                color=color,
                rasterized=len(step) > 2000,
            )
            # each step is in the middle of its cell
            axes[row].set(xlim=(-0.5, len(spikes) - 0.5), ylim=(-0.5, size - 0.5))
            set_integer_ticks(axes[row], len(spikes))
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
    chosen: Sequence[int] = (),
    name: str = "",
    time: str = STEP_LABEL,
) -> Figure:
    """Draw the membranes of the readout with thresholds and spikes.

    Args:
        columns: by title: membrane ``[T, K]``, spikes ``[T, K]`` and thresholds ``[K]``, None if not spiking.
        chosen: indices of the highlighted outputs, those of the sample's class; all if empty.
        name: label of the highlighted outputs.
        time: label of the time axis.
    """
    figure, grid = subplots_with_margins(
        1, len(columns), 2.7, above=0.4, below=0.85, across=0.15, sharex=True, sharey=True
    )
    for axes, (title, (membrane, spikes, threshold)) in zip(grid[0], columns.items(), strict=True):
        K = membrane.shape[1]
        front = [*chosen] or [*range(K)]
        back = [k for k in range(K) if k not in front]
        axes.plot(membrane[:, back], color=GRAY, linewidth=0.8, alpha=0.7)
        axes.plot(membrane[:, front], color=BLUE, linewidth=1.6)
        if threshold is not None:
            for height in np.unique(threshold[front]):
                axes.axhline(height, color=ORANGE, linestyle="--", linewidth=1)
        if spikes is not None:
            # above the membranes: spikes of the chosen outputs, and of all others
            for height, which, color in ((1.07, back, GRAY), (1.02, front, BLUE)):
                step = np.nonzero(spikes[:, which])[0]
                above = {"transform": axes.get_xaxis_transform(), "clip_on": False, "in_layout": False}
                axes.plot(step, np.full(len(step), height), "|", color=color, markersize=5, **above)
        axes.set_title(title, pad=14)
        axes.set_xlabel(time)
        set_integer_ticks(axes, len(membrane))
    grid[0, 0].set_ylabel("membrane (dimensionless)")
    entries = [Line2D([], [], color=BLUE, label=name if chosen else "output")]
    entries += [Line2D([], [], color=GRAY, label="other outputs")] if 0 < len(chosen) < K else []
    entries += [Line2D([], [], color=ORANGE, linestyle="--", label="threshold")] if threshold is not None else []
    entries += [Line2D([], [], color=INK, linestyle="none", marker="|", label="spike")] if spikes is not None else []
    figure.legend(handles=entries, loc="lower center", ncols=2)
    return figure


@styled()
def trajectory(columns: Mapping[str, Array], target: Array, time: str = STEP_LABEL) -> Figure:
    """Draw output membranes and their targets, ``[T, S]``, with a panel for each of S samples."""
    # too wide for a panel in one line
    time = time.replace(" (", "\n(")
    below = 0.85 if "\n" in time else 0.7
    figure, grid = subplots_with_margins(
        1, target.shape[1], 1.9 + below, below=below, across=0.15, sharex=True, sharey=True
    )
    for sample, axes in enumerate(grid[0]):
        for (title, membrane), color in zip(columns.items(), comparison_colors(columns), strict=True):
            axes.plot(membrane[:, sample], color=color, label=title)
        axes.plot(target[:, sample], color=ORANGE, linestyle="--", label="target")
        axes.set(xlabel=time, title=f"sample {sample + 1}" if target.shape[1] > 1 else "")
        set_integer_ticks(axes, len(target))
    grid[0, 0].set_ylabel("membrane (dimensionless)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="lower center", ncols=3)
    return figure


@styled()
def predictions(images: Array, predicted: Array, label: Array, across: int = 9) -> Figure:
    """Draw images ``[S, H, W]`` with their predicted classes, and with the true class if the prediction is wrong."""
    down = -(-len(images) // across)
    H, W = images.shape[1:]
    # room for a line of text: 0.17 inches for any image size
    gap = math.ceil(0.17 / WIDTH * across * (W + 2))
    mosaic = np.full((down * (H + gap), across * (W + 2)), np.nan)
    height = WIDTH * mosaic.shape[0] / mosaic.shape[1]
    figure, grid = subplots_with_margins(1, 1, height, left=0, right=0, above=0, below=0)
    axes = grid[0, 0]
    low, high = images.min(), images.max()
    for index, image in enumerate(images):
        y, x = index // across * (H + gap) + gap, index % across * (W + 2)
        mosaic[y : y + H, x : x + W] = (image - low) / ((high - low) or 1)
        is_correct = predicted[index] == label[index]
        text = f"{predicted[index]}" if is_correct else f"{predicted[index]}, is {label[index]}"
        style = {"color": INK} if is_correct else {"color": ORANGE, "weight": "bold"}
        offset: dict[str, Any] = {"xytext": (0, 1.5), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(text, (x + W / 2 - 0.5, y - 0.5), size=8, **offset, **style)
    axes.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    return figure


@styled()
def confusion(counts: Array) -> Figure:
    """Draw a confusion matrix ``[K, K]`` with a row per true class; shades are fractions of the row."""
    K = len(counts)
    size = WIDTH * 0.9
    figure, grid = subplots_with_margins(1, 1, size * 0.82, above=0.1, right=0)
    axes = grid[0, 0]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap=SHADES, vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="fraction of the class", shrink=0.8)
    if K <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    column, row, f"{count}", ha="center", va="center", size=8, color=text_color_on(share[row, column])
                )
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    if K <= 20:
        axes.set(xticks=range(K), yticks=range(K))
    axes.tick_params(length=0)
    return figure


@styled()
def distributions(columns: Mapping[str, Mapping[str, Array]]) -> Figure:
    """Draw histograms of parameters, values ``[N]`` by title and name, such as ``hidden1 beta``.

    A value shared by all neurons is a line.
    """
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    across = min(2, len(names))
    down = -(-len(names) // across)
    varied = any(np.ptp(values) for column in columns.values() for values in column.values())
    height = 0.35 + (1.75 if varied else 1.1) * down
    figure, grid = subplots_with_margins(down, across, height, above=0.1, below=0.75, across=0.55, down=0.55)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        values = {title: column[name] for title, column in columns.items() if name in column}
        pooled = np.concatenate([*values.values()])
        edges = np.histogram_bin_edges(pooled, bins=24)
        for (title, array), color in zip(columns.items(), comparison_colors(columns), strict=True):
            if name not in array:
                continue
            if np.ptp(array[name]):
                axes.hist(array[name], edges, histtype="step", color=color, linewidth=1.3, label=title)
            else:
                style = "--" if color == GRAY else "-"
                axes.axvline(array[name][0], color=color, linestyle=style, linewidth=1.3, label=title)
        unit = UNITS.get(name.split()[-1])
        axes.set(xlabel=f"{name} ({unit})" if unit else name, ylabel="neurons" if np.ptp(pooled) else "")
        axes.xaxis.set_major_locator(MaxNLocator(4 if np.ptp(pooled) > 0.05 else 2))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if all(not np.ptp(array) for array in values.values()):
            axes.set_yticks([])
            axes.set_xmargin(0.2)
    handles = [
        Line2D([], [], color=c, label=title) for title, c in zip(columns, comparison_colors(columns), strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3)
    return figure


@styled()
def gradient_norms(columns: Mapping[str, Mapping[str, Array]], time: str = STEP_LABEL) -> Figure:
    """Draw || dL / dI[t] ||, ``[T]`` by title and layer, on a logarithmic axis."""
    layers = list(dict.fromkeys(layer for column in columns.values() for layer in column))
    figure, grid = subplots(1, len(columns), height=2.6, sharex=True, sharey=True)
    for axes, (title, column) in zip(grid[0], columns.items(), strict=True):
        for layer, color in zip(layers, cycle_colors(layers), strict=True):
            if layer in column:
                norm = column[layer]
                # zero is not defined on a logarithmic axis
                axes.plot(np.where(norm > 0, norm, np.nan), color=color, label=layer)
        axes.set(xlabel=time, title=title, yscale="log")
        set_integer_ticks(axes, max(map(len, column.values()), default=0))
        mark_isolated_points(axes)
    grid[0, 0].set_ylabel("‖∂L/∂I[t]‖")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled()
def loss_curves(iteration: tuple[Array, Array], epochs: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Draw the loss per iteration (steps, losses) and per epoch (epochs, losses by name); empty panels are omitted."""
    panels = [bool(len(iteration[0])), any(len(x) for x, _ in epochs.values())]
    figure, grid = subplots(1, max(1, sum(panels)), height=2.5)
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
        set_log_if_needed(axes, loss)
        mark_isolated_points(axes)
    if panels[1]:
        axes = free.pop(0)
        for (name, (epoch, loss)), color in zip(epochs.items(), cycle_colors(epochs), strict=True):
            axes.plot(epoch, loss, color=color, label=name, marker="o" if len(epoch) <= 20 else "", markersize=3)
        axes.set(xlabel="epoch", ylabel="mean loss")
        if max(len(epoch) for epoch, _ in epochs.values()) == 1:
            axes.set_xlim(0.5, 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend()
        set_log_if_needed(axes, np.concatenate([loss for _, loss in epochs.values()]))
    return figure


@styled()
def activity(panels: Mapping[str, Mapping[str, tuple[Array, Array]]]) -> Figure:
    """Draw values over iterations: (iterations, values) by label of the panel and name of the curve."""
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure, grid = subplots(down, across, height=0.5 + 2 * down, sharex=True)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for index, (axes, (label, curves)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        for name, color in zip(names, cycle_colors(names), strict=True):
            if name in curves:
                axes.plot(*curves[name], color=color, linewidth=1)
        last = index + across >= len(panels)
        axes.set(xlabel="iteration" if last else "", ylabel=label)
        axes.tick_params(labelbottom=last)
        if all(np.nanmin(values) >= 0 for _, values in curves.values()):
            axes.set_ylim(bottom=0)
        mark_isolated_points(axes)
    handles = [Line2D([], [], color=color, label=name) for name, color in zip(names, cycle_colors(names), strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


@styled()
def rate_distribution(rates: Mapping[str, Array], unit: str) -> Figure:
    """Draw histograms of firing rates ``[N]`` by layer, in spikes per ``unit``."""
    figure, grid = subplots(1, len(rates), height=2.2)
    for axes, (layer, rate), color in zip(grid[0], rates.items(), cycle_colors(rates), strict=True):
        axes.hist(rate, bins=np.linspace(0, rate.max() or 1, 21), color=color)
        axes.set(title=layer, xlabel=f"spikes per {unit}", ylabel="neurons" if axes is grid[0, 0] else "")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(4))
    return figure


@styled()
def bars(values: Mapping[str, float], label: str, colors: Sequence[str] = (BLUE,)) -> Figure:
    """Draw a horizontal bar with its value for each name; ``colors`` has one color for all bars, or one for each."""
    figure, grid = subplots(1, 1, height=0.7 + 0.3 * len(values))
    axes = grid[0, 0]
    drawn = axes.barh(list(values), list(values.values()), color=list(colors), height=0.65)
    labels = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values.values()]
    axes.bar_label(drawn, labels, size=8, padding=3)
    axes.set_xlabel(label)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure
