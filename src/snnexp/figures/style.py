"""Common style of figures, export to PNG and SVG, and helpers for axes and labels.

Colors are the color-blind safe palette of Okabe and Ito; on a page, INK is replaced by the page's text color.
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
INK, GRAY = "#1c1c1e", "#6b6b70"
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
SHADES = LinearSegmentedColormap.from_list("shades", ["#f2f6fa", "#56b4e9", "#0072b2", "#00304d"])
"""Sequential colormap with monotonic lightness."""
UNITS = {"tau_mem_inv": "1/s", "tau_syn_inv": "1/s", "tau_m": "ms", "tau_adp": "ms"}
"""Units of neuron parameters; all others are dimensionless."""
STEP_LABEL = "time step"
WIDTH = 4.6
"""Width of all figures in inches, so that text has the same size in all."""
LOG_SCALE_RATIO = 10**1.5
"""Positive values whose maximum / minimum exceeds this are drawn on a logarithmic axis."""
METRIC_UNITS = {"accuracy": "fraction", "relative_error": "fraction", "synops": "additions per sample"}
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
    """Return a context manager, also usable as a decorator, that applies the common style."""
    return matplotlib.rc_context(STYLE)  # type: ignore[arg-type]


def png(figure: Figure, dpi: int = 150) -> bytes:
    """Render a figure as PNG on a white background."""
    buffer = io.BytesIO()
    with styled():
        _finalize(figure)
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """Render a figure as reproducible SVG with a transparent background; text is kept as text."""
    buffer = io.StringIO()
    with styled():
        _finalize(figure)
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _finalize(figure: Figure) -> None:
    """Compute the layout once for all formats, and escape non-printable characters."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        # tick labels are regenerated whenever they are drawn
        labels = [text.get_text() for text in axis.get_ticklabels()]
        if (escaped := [*map(_printable, labels)]) != labels:
            axis.set_ticks(axis.get_ticklocs(), escaped)
    for text in figure.findobj(Text):
        text.set_text(_printable(text.get_text()))
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        # with "none", savefig would draw the figure twice
        figure.set_layout_engine(None)


def _printable(text: str) -> str:
    lines = text.split("\n")
    return text if all(map(str.isprintable, lines)) else "\n".join(map(one_line, lines))


def subplots(rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Any]:
    """Return a figure of that height in inches, and its axes ``[rows, columns]``."""
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
    """Return subplots like :func:`subplots`, with fixed margins and gaps in inches that suit short labels.

    For figures drawn during training: a constrained layout takes as long as drawing.
    """
    figure = Figure(figsize=(WIDTH, height))
    wide, high = WIDTH - left - right - across * (columns - 1), height - above - below - down * (rows - 1)
    edges = {"left": left / WIDTH, "right": 1 - right / WIDTH, "bottom": below / height, "top": 1 - above / height}
    gaps = {"wspace": across * columns / wide, "hspace": down * rows / high, "height_ratios": shares}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=edges | gaps, **shared)


def set_integer_ticks(axes: Axes, count: int) -> None:
    """Set integer ticks; a single step is drawn as a dot, since it has no line."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if count == 1:
        axes.set(xlim=(-0.5, 0.5), xticks=[0])
        mark_isolated_points(axes)


def mark_isolated_points(axes: Axes) -> None:
    """Mark points whose neighbors are not finite, since no line connects them."""
    for curve in axes.lines:
        known = np.isfinite(np.asarray(curve.get_ydata(), dtype=float))
        alone = known & ~np.insert(known[:-1], 0, False) & ~np.append(known[1:], False)
        if alone.any():
            curve.set(marker="o", markersize=3, markevery=np.flatnonzero(alone).tolist())


def comparison_colors(columns: Iterable[str]) -> list[str]:
    """Return gray for all columns but the last, which is blue."""
    count = len(list(columns))
    return [GRAY] * (count - 1) + [BLUE]


def cycle_colors(names: Iterable[str]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index, _ in enumerate(names)]


def text_color_on(shade: float) -> str:
    """Return the color of text on a shade of :data:`SHADES`, independent of the page's colors."""
    return "#ffffff" if shade > 0.45 else "#111111"


def set_log_if_needed(axes: Axes, values: Array) -> None:
    if needs_log_scale(values.tolist()):
        axes.set_yscale("log")


def shorten(text: object, max_length: int = MAX_LABEL_LENGTH) -> str:
    """Format a label in at most ``max_length`` characters."""
    label = f"{text:.4g}" if isinstance(text, float) else str(text)
    # matplotlib interprets text between dollar signs as math
    label = label.replace("$", r"\$")
    return label if len(label) <= max_length else f"{label[: max_length - 1]}…"


def with_unit(name: str) -> str:
    """Return the name of a metric or parameter with its unit, as the label of an axis."""
    # the name of the metric comes before that of a layer
    metric = [*name.split("/"), ""][1] or name
    unit = METRIC_UNITS.get(metric) or UNITS.get(name.rpartition(".")[2])
    return f"{shorten(name)} [{unit}]" if unit else shorten(name)


def needs_log_scale(values: Iterable[float]) -> bool:
    """Return True if values need a logarithmic axis: they span decades, not only because of a few close to 0."""
    known = np.sort([value for value in values if np.isfinite(value)])
    if not known.size or known[0] <= 0:
        return False
    return bool(known[-1] / known[0] > LOG_SCALE_RATIO and known[(len(known) - 1) // 2] < known[-1] / 4)
