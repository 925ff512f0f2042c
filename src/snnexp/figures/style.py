"""The style that figures share, their files, and the axes and labels that they are made of.

Colors are those of Okabe and Ito, which color-blind people can tell apart; on a page, ink takes the page's color.
"""

import io
from collections.abc import Iterable, Sequence
from contextlib import _GeneratorContextManager
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from snnexp.text import one_line

Array = NDArray[Any]
INK, GREY = "#1c1c1e", "#6b6b70"
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
SHADES = LinearSegmentedColormap.from_list("shades", ["#f2f6fa", "#56b4e9", "#0072b2", "#00304d"])
"""From few to many: lightness alone tells them in order."""
UNITS = {"tau_mem_inv": "1/s", "tau_syn_inv": "1/s", "tau_m": "ms", "tau_adp": "ms"}
"""Of neuron parameters; all others are dimensionless."""
STEP_LABEL = "time step"
WIDTH = 4.6
"""Inches of each figure, so that text has the same size in all."""
LONG = 10**1.5
"""Positive values that span more than this factor are drawn on a logarithmic axis."""
MEASURED_IN = {"accuracy": "fraction", "relative_error": "fraction", "synops": "additions per sample"}
MAX_LABEL_LENGTH = 34

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
    "axes.prop_cycle": cycler(color=COLORS),
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
    return text if all(map(str.isprintable, lines)) else "\n".join(map(one_line, lines))


def subplots(rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Any]:
    """A figure of that height in inches, and its axes ``[rows, columns]``."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def subplots_with_margins(
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
    """As :func:`subplots`, with margins and gaps in inches that suit short labels.

    For what is drawn while a network trains: a layout by what is drawn takes as long as drawing.
    """
    figure = Figure(figsize=(WIDTH, height))
    wide, high = WIDTH - left - right - across * (columns - 1), height - above - below - down * (rows - 1)
    edges = {"left": left / WIDTH, "right": 1 - right / WIDTH, "bottom": below / height, "top": 1 - above / height}
    gaps = {"wspace": across * columns / wide, "hspace": down * rows / high, "height_ratios": shares}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=edges | gaps, **shared)


def set_integer_ticks(axes: Axes, count: int) -> None:
    """Ticks at whole steps; a single step, which is no line, becomes a dot."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if count == 1:
        axes.set(xlim=(-0.5, 0.5), xticks=[0])
        mark_isolated_points(axes)


def mark_isolated_points(axes: Axes) -> None:
    """Make points visible that no line leads to, for those beside them are not finite."""
    for curve in axes.lines:
        known = np.isfinite(np.asarray(curve.get_ydata(), dtype=float))
        alone = known & ~np.insert(known[:-1], 0, False) & ~np.append(known[1:], False)
        if alone.any():
            curve.set(marker="o", markersize=3, markevery=np.flatnonzero(alone).tolist())


def comparison_colors(columns: Iterable[str]) -> list[str]:
    """The last column is what one looks at, those before it what it is compared with."""
    count = len(list(columns))
    return [GREY] * (count - 1) + [BLUE]


def cycle_colors(names: Iterable[str]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index, _ in enumerate(names)]


def text_color_on(shade: float) -> str:
    """The color of a text on one of :data:`SHADES`: it stays when the page is dark."""
    return "#ffffff" if shade > 0.45 else "#111111"


def set_log_if_needed(axes: Axes, values: Array) -> None:
    if needs_log_scale(values.tolist()):
        axes.set_yscale("log")


def shorten(text: object, most: int = MAX_LABEL_LENGTH) -> str:
    """A label that leaves room for the figure."""
    shown = f"{text:.4g}" if isinstance(text, float) else str(text)
    # matplotlib reads what stands between dollars as mathematics
    shown = shown.replace("$", r"\$")
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def with_unit(name: str) -> str:
    """The name of a metric or parameter as an axis has it."""
    # behind the measure, a layer may have the name of another one
    measure = [*name.split("/"), ""][1] or name
    unit = MEASURED_IN.get(measure) or UNITS.get(name.rpartition(".")[2])
    return f"{shorten(name)} [{unit}]" if unit else shorten(name)


def needs_log_scale(values: Iterable[float]) -> bool:
    """Whether values need a logarithmic axis: they span decades, and not just because one of many comes close to 0."""
    known = np.sort([value for value in values if np.isfinite(value)])
    if not known.size or known[0] <= 0:
        return False
    return bool(known[-1] / known[0] > LONG and known[(len(known) - 1) // 2] < known[-1] / 4)
