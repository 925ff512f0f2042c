"""Terminal output; plain text if stdout is not a terminal."""

import io
import itertools
import logging
import math
import shlex
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from snnexp.record.files import open_for_append
from snnexp.record.measures import LAYER_METRICS, MEANINGS, split_name
from snnexp.text import format_number, format_value

UNCOMMON = ("test/seed_mean_loss",)
"""Metrics with names that are specific to snnexp; tables explain them."""
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a Braille character, four rows of two."""


class Terminal(Console):
    """A console that is a terminal only if its file is one, even if FORCE_COLOR is set."""

    @property
    def is_terminal(self) -> bool:
        return self.file.isatty()


def console() -> Console:
    """Return a console for stdout; lines are not wrapped if stdout is not a terminal."""
    is_terminal = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a character that the encoding lacks must not raise an error
        sys.stdout.reconfigure(errors="backslashreplace")
    return Terminal(file=sys.stdout, highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else 240)


def config_tree(
    choices: Mapping[str, str], values: Mapping[str, Mapping[str, Any]], overridden: Collection[str], title: str
) -> Group:
    """Return the config as a tree: one line per group with its choice, and the values that differ from the choice.

    Args:
        choices: the choice of each group, in the order of the data flow.
        values: values by group and key; those without a group under ``""``.
        overridden: the groups and dotted keys given on the command line, which are marked.
        title: the first line, the name of the experiment.
    """

    keys = [key for key in overridden if key not in choices]

    def line(name: str, group: str, chosen_by: str) -> str:
        cells = [f"[bold]{escape(name)}[/]{'[yellow]*[/]' if chosen_by in overridden else ''}"]
        for key, value in values.get(group, {}).items():
            path = f"{group}.{key}" if group else key
            mark = "[yellow]*[/]" if any(path == prefix or path.startswith(f"{prefix}.") for prefix in keys) else ""
            cells.append(f"{escape(key)}[dim]=[/]{escape(_brief(value))}{mark}")
        return "  ".join(cells)

    tree = Tree(line(title, "", "experiment"), guide_style="dim")
    for group, choice in choices.items():
        tree.add(f"[cyan]{escape(group)}[/] {line(choice, group, group)}")
    return Group(tree, "[dim]* command-line override; config.yaml has all values[/]")


def _brief(value: Any) -> str:
    """Format a value; a part as its class with its arguments."""
    if not isinstance(value, Mapping):
        return format_value(value)
    inner = ", ".join(f"{key}={_brief(entry)}" for key, entry in value.items() if key != "_target_")
    return f"{str(value.get('_target_', '')).rpartition('.')[2]}({inner})"


def result_table(metrics: Mapping[str, float], published: Mapping[str, float], decoder: str = "") -> Group:
    """Return a table of metrics with their published values, if any, and a table of the metrics of layers.

    Args:
        metrics: metrics of a run.
        published: published values by metric.
        decoder: the name of the decoder, shown next to the accuracy.
    """
    layers: dict[str, dict[str, float]] = {}
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    if published:
        table.add_column("published", justify="right")
    notes = [f"{name}: {MEANINGS[name.partition('/')[2]]}" for name in UNCOMMON if name in metrics]
    if any(name in metrics for name in published):
        notes.append("published: as stated in the source; results of its code: README.md, Recipes")
    for name, value in metrics.items():
        _, measure, layer = split_name(name)
        if layer and name not in published:
            layers.setdefault(layer, {})[measure] = value
            continue
        reference = published.get(name)
        label = f"{name} ({decoder})" if measure == "accuracy" and decoder else name
        cells = [label, format_number(value)]
        table.add_row(*cells, *([("" if reference is None else format_number(reference))] if published else []))
    return Group(table, *([_layer_table(layers)] if layers else []), *notes)


def _layer_table(layers: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    columns = [measure for measure in LAYER_METRICS if any(measure in values for values in layers.values())]
    for measure in columns:
        table.add_column(measure.replace("_", " "), justify="right")
    for layer, values in layers.items():
        table.add_row(layer, *(format_number(values[measure]) if measure in values else "" for measure in columns))
    return table


def loss_curve(terminal: Console, rows: Iterable[Mapping[str, Any]]) -> str:
    """Plot the training loss as text: per logged step, or per epoch if fewer than two steps were logged.

    Args:
        terminal: where the plot will be printed.
        rows: rows of metrics.jsonl.

    Returns:
        The plot; empty for fewer than two values.
    """
    braille = terminal.is_terminal and not terminal.options.ascii_only
    points: dict[str, list[tuple[int, float]]] = {"train/loss": [], "train/epoch_loss": []}
    for row in rows:
        for name, series in points.items():
            if row.get(name) is not None:
                # counted from 1, as in the progress bar
                series.append((row["step"] + 1, row[name]))
    for name, series in points.items():
        if len(series) > 1:
            steps, losses = zip(*series, strict=True)
            return "\n".join(curve(steps, losses, name, braille))
    return ""


def curve(
    steps: Sequence[int], values: Sequence[float | None], label: str, braille: bool, width: int = 72, height: int = 6
) -> list[str]:
    """Plot values over steps as text, with the minimum and the maximum on the axes.

    Values within one column are averaged; empty columns are interpolated. The vertical axis is logarithmic if all
    drawn values are positive and span more than two decades, and the label then says so.

    Args:
        steps: ascending.
        values: one per step; None, which is NaN in metrics.jsonl, is skipped.
        label: name of the values.
        braille: draw with Braille dots, otherwise with ASCII only.
        width: maximum number of characters in a line.
        height: number of lines, excluding the horizontal axis.
    """
    points = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if not points:
        return []
    # numbers take at most twelve characters, -999,999,999
    columns = width - 14
    across, down = (2 * columns, 4 * height) if braille else (columns, height)
    means = _binned(points, across)
    low, high = min(means), max(means)
    logarithmic = low > 0 and high / low > 100
    heights = [math.log10(mean) for mean in means] if logarithmic else means
    top, bottom = max(heights), min(heights)
    # a constant is drawn in the middle
    span = top - bottom or 1.0
    ys = [round((top - y) / span * (down - 1)) if top > bottom else down // 2 for y in heights]
    dots = {(x, y) for x, end in enumerate(ys) for y in _between(ys[max(0, x - 1)], end)}
    marks = (
        {0: format_number(high), height - 1: format_number(low)} if top > bottom else {height // 2: format_number(high)}
    )
    margin = max(map(len, marks.values()))
    lines = []
    for row in range(height):
        characters = (_character(dots, column, row, braille) for column in range(columns))
        tick, bar = ("┤", "│") if braille else ("+", "|")
        lines.append(f"{marks.get(row, ''):>{margin}} {tick if row in marks else bar}{''.join(characters)}".rstrip())
    name = f"{label}{', logarithmic,' if logarithmic else ''} by step"
    first, last = str(points[0][0]), str(points[-1][0]) if len(points) > 1 else ""
    lines.append(f"{'':{margin}} {first}{name:^{columns + 1 - len(first) - len(last)}}{last}".rstrip())
    return lines


def _between(start: int, end: int) -> range:
    """Return the rows that a line covers from ``start``, exclusive if it differs, to ``end``, inclusive."""
    return range(start + 1, end + 1) if start < end else range(end, max(start, end + 1))


def _character(dots: set[tuple[int, int]], column: int, row: int, braille: bool) -> str:
    if not braille:
        return "*" if (column, row) in dots else " "
    code = sum(
        bit for y, bits in enumerate(BRAILLE) for x, bit in enumerate(bits) if (2 * column + x, 4 * row + y) in dots
    )
    return chr(0x2800 + code) if code else " "


def _binned(points: Sequence[tuple[int, float]], bins: int) -> list[float]:
    """Average the values in ``bins`` equal ranges of steps; empty bins are interpolated, a single step is one bin."""
    first, last = points[0][0], points[-1][0]
    if first == last:
        return [math.fsum(value for _, value in points) / len(points)]
    inside: dict[int, list[float]] = {}
    for step, value in points:
        inside.setdefault(round((step - first) / (last - first) * (bins - 1)), []).append(value)
    means = {index: math.fsum(values) / len(values) for index, values in inside.items()}
    result = [means[0]]
    for left, right in itertools.pairwise(sorted(means)):
        start, end = means[left], means[right]
        result += [start + (end - start) * (x - left) / (right - left) for x in range(left + 1, right + 1)]
    return result


def format_duration(seconds: float) -> str:
    """Format a duration as ``0:05``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def relative_to_cwd(path: Path) -> Path:
    """Return ``path`` relative to the working directory if it is below it."""
    folder = Path.cwd()
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def print_command(terminal: Console, label: str, *words: str | Path) -> None:
    """Print a command to copy, quoted for the shell and never wrapped."""
    command = shlex.join(str(relative_to_cwd(word)) if isinstance(word, Path) else word for word in words)
    terminal.print(f"{escape(label)}: {escape(command)}", soft_wrap=True)


def format_path(path: Path) -> str:
    """Format ``path`` relative to the working directory, escaped for :meth:`Console.print`."""
    return escape(str(relative_to_cwd(path)))


def warn(message: str) -> None:
    """Print a warning to stderr."""
    print(f"snnexp: {message}", file=sys.stderr)


class LogFile(logging.FileHandler):
    """A log file in a directory that may not be trusted; I/O errors are raised."""

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open(open_for_append(Path(self.baseFilename)), "ab"), encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        raise


@contextmanager
def quiet(log: Path | None = None) -> Iterator[None]:
    """Redirect Lightning's messages and Python's warnings to ``log``; warnings of snnexp also go to stderr.

    I/O errors of TensorBoard's writer thread are not printed: TensorBoard raises them again in the main thread.
    """
    handler = LogFile(log, encoding="utf-8", delay=True) if log else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(logging.Formatter("snnexp: %(message)s"))
    handlers_of: dict[str, list[logging.Handler]] = {
        name: [handler] for name in ("lightning.pytorch", "lightning.fabric", "py.warnings")
    }
    handlers_of["snnexp"] = [handler, to_stderr] if log else [handler]
    saved = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in handlers_of}
    saved_excepthook = threading.excepthook

    def excepthook(hook_args: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(hook_args.thread).__module__.startswith("tensorboard")
        if not (of_tensorboard and isinstance(hook_args.exc_value, OSError)):
            saved_excepthook(hook_args)

    threading.excepthook = excepthook
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(True)
        for name, handlers in handlers_of.items():
            logging.getLogger(name).handlers = list(handlers)
            logging.getLogger(name).propagate = name == "snnexp"
        try:
            yield
        finally:
            threading.excepthook = saved_excepthook
            logging.captureWarnings(False)
            for name, (handlers, propagate) in saved.items():
                logging.getLogger(name).handlers = handlers
                logging.getLogger(name).propagate = propagate
            handler.close()
