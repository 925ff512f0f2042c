"""What a person sees in the terminal; quiet, plain lines where nobody watches."""

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
"""Measures whose names other programs do not use."""
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Dots of a Braille letter, four rows of two."""


class Terminal(Console):
    """A console that is a terminal only where its file is one; FORCE_COLOR brings Rich's live displays into files."""

    @property
    def is_terminal(self) -> bool:
        return self.file.isatty()


def console() -> Console:
    """The terminal, or plain text whose lines are never broken where there is none."""
    watched = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a name that its encoding lacks must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    return Terminal(file=sys.stdout, highlight=False, soft_wrap=not watched, width=None if watched else 240)


def config_tree(
    choices: Mapping[str, str], values: Mapping[str, Mapping[str, Any]], typed: Collection[str], title: str
) -> Group:
    """What a run was chosen to be: a line per group, with the values that its choice alone would not give.

    Args:
        choices: of each group, in the order in which data flow.
        values: of each group, by key; those that belong to no group under an empty name.
        typed: the groups and the dotted keys that were typed, which are marked.
        title: the first line, which an experiment that was typed has chosen.
    """

    keys = [word for word in typed if word not in choices]

    def line(name: str, group: str, chosen_by: str) -> str:
        words = [f"[bold]{escape(name)}[/]{'[yellow]*[/]' if chosen_by in typed else ''}"]
        for key, value in values.get(group, {}).items():
            path = f"{group}.{key}" if group else key
            mark = "[yellow]*[/]" if any(path == word or path.startswith(f"{word}.") for word in keys) else ""
            words.append(f"{escape(key)}[dim]=[/]{escape(_brief(value))}{mark}")
        return "  ".join(words)

    tree = Tree(line(title, "", "experiment"), guide_style="dim")
    for group, choice in choices.items():
        tree.add(f"[cyan]{escape(group)}[/] {line(choice, group, group)}")
    return Group(tree, "[dim]* typed; config.yaml has all values[/]")


def _brief(value: Any) -> str:
    """A value in one word; of a part its class and arguments."""
    if not isinstance(value, Mapping):
        return format_value(value)
    inner = ", ".join(f"{key}={_brief(entry)}" for key, entry in value.items() if key != "_target_")
    return f"{str(value.get('_target_', '')).rpartition('.')[2]}({inner})"


def result_table(metrics: Mapping[str, float], published: Mapping[str, float], decoder: str = "") -> Group:
    """The measures, with the published figure beside those that have one; below, a row for each layer.

    Args:
        metrics: of a run.
        published: figures by measure.
        decoder: in a word, how a class is read off the readout; it stands beside the accuracy.
    """
    layers: dict[str, dict[str, float]] = {}
    table = Table(box=None, pad_edge=False)
    table.add_column("measure")
    table.add_column("measured", justify="right")
    if published:
        table.add_column("published", justify="right")
    notes = [f"{name}: {MEANINGS[name.partition('/')[2]]}" for name in UNCOMMON if name in metrics]
    if any(name in metrics for name in published):
        notes.append("published: what the source prints; what its code gives is in README.md, Recipes")
    for name, value in metrics.items():
        _, measure, layer = split_name(name)
        if layer and name not in published:
            layers.setdefault(layer, {})[measure] = value
            continue
        figure = published.get(name)
        label = f"{name} ({decoder})" if measure == "accuracy" and decoder else name
        table.add_row(
            label, format_number(value), *([("" if figure is None else format_number(figure))] if published else [])
        )
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
    """The training loss of a run, a few lines high: by logged steps, by epochs where fewer than two steps were logged.

    Args:
        terminal: where it is shown.
        rows: of metrics.jsonl.

    Returns:
        Nothing where there are fewer than two values.
    """
    fancy = terminal.is_terminal and not terminal.options.ascii_only
    points: dict[str, list[tuple[int, float]]] = {"train/loss": [], "train/epoch_loss": []}
    for row in rows:
        for name, found in points.items():
            if row.get(name) is not None:
                # counted as the line of progress does
                found.append((row["step"] + 1, row[name]))
    for name, found in points.items():
        if len(found) > 1:
            steps, losses = zip(*found, strict=True)
            return "\n".join(curve(steps, losses, name, fancy))
    return ""


def curve(
    steps: Sequence[int], values: Sequence[float | None], label: str, fancy: bool, width: int = 72, height: int = 6
) -> list[str]:
    """A small plot of values over steps, with the smallest and the largest on the axes.

    What falls into one column is averaged; columns between are interpolated. The vertical axis is logarithmic if all
    that is drawn is positive and spans more than two decades, and then the label says so.

    Args:
        steps: rising.
        values: one per step; None, which NaN is in metrics.jsonl, is left out.
        label: what the values are.
        fancy: draw with Braille dots, else with ASCII alone.
        width: of a line, at most.
        height: lines of the plot; one for the horizontal axis comes below.
    """
    points = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if not points:
        return []
    # numbers take twelve letters at most, -999,999,999
    columns = width - 14
    across, down = (2 * columns, 4 * height) if fancy else (columns, height)
    means = _binned(points, across)
    low, high = min(means), max(means)
    logarithmic = low > 0 and high / low > 100
    heights = [math.log10(mean) for mean in means] if logarithmic else means
    top, bottom = max(heights), min(heights)
    # a flat line is drawn in the middle
    span = top - bottom or 1.0
    ys = [round((top - y) / span * (down - 1)) if top > bottom else down // 2 for y in heights]
    dots = {(x, y) for x, here in enumerate(ys) for y in _between(ys[max(0, x - 1)], here)}
    marks = (
        {0: format_number(high), height - 1: format_number(low)} if top > bottom else {height // 2: format_number(high)}
    )
    margin = max(map(len, marks.values()))
    lines = []
    for row in range(height):
        letters = (_letter(dots, column, row, fancy) for column in range(columns))
        tick, bar = ("┤", "│") if fancy else ("+", "|")
        lines.append(f"{marks.get(row, ''):>{margin}} {tick if row in marks else bar}{''.join(letters)}".rstrip())
    name = f"{label}{', logarithmic,' if logarithmic else ''} by step"
    first, last = str(points[0][0]), str(points[-1][0]) if len(points) > 1 else ""
    lines.append(f"{'':{margin}} {first}{name:^{columns + 1 - len(first) - len(last)}}{last}".rstrip())
    return lines


def _between(before: int, here: int) -> range:
    """From where a line comes, exclusively if it is elsewhere, to where it is."""
    return range(before + 1, here + 1) if before < here else range(here, max(before, here + 1))


def _letter(dots: set[tuple[int, int]], column: int, row: int, fancy: bool) -> str:
    if not fancy:
        return "*" if (column, row) in dots else " "
    code = sum(
        bit for y, bits in enumerate(BRAILLE) for x, bit in enumerate(bits) if (2 * column + x, 4 * row + y) in dots
    )
    return chr(0x2800 + code) if code else " "


def _binned(points: Sequence[tuple[int, float]], bins: int) -> list[float]:
    """Means of the values in each of ``bins`` equal parts of the steps, and between them on a line; one for one."""
    first, last = points[0][0], points[-1][0]
    if first == last:
        return [math.fsum(value for _, value in points) / len(points)]
    inside: dict[int, list[float]] = {}
    for step, value in points:
        inside.setdefault(round((step - first) / (last - first) * (bins - 1)), []).append(value)
    means = {index: math.fsum(values) / len(values) for index, values in inside.items()}
    found = sorted(means)
    drawn = [means[0]]
    for before, here in itertools.pairwise(found):
        start, end = means[before], means[here]
        drawn += [start + (end - start) * (x - before) / (here - before) for x in range(before + 1, here + 1)]
    return drawn


def format_duration(seconds: float) -> str:
    """``0:05``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def relative_to_cwd(path: Path) -> Path:
    """``path`` as short as it can be typed from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def print_command(terminal: Console, what: str, *words: str | Path) -> None:
    """A command that can be copied: quoted for the shell, and in one line however narrow the terminal."""
    typed = shlex.join(str(relative_to_cwd(word)) if isinstance(word, Path) else word for word in words)
    terminal.print(f"{escape(what)}: {escape(typed)}", soft_wrap=True)


def format_path(path: Path) -> str:
    """``path`` as short as it can be typed from here, for :class:`Console.print`."""
    return escape(str(relative_to_cwd(path)))


def warn(sentence: str) -> None:
    """A warning to the person, beside whatever is being shown."""
    print(f"snnexp: {sentence}", file=sys.stderr)


class LogFile(logging.FileHandler):
    """A log in a directory that may be anybody's; a disk that says no is told like everywhere else."""

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open(open_for_append(Path(self.baseFilename)), "ab"), encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        raise


@contextmanager
def quiet(log: Path | None = None) -> Iterator[None]:
    """Lightning's notes and Python's warnings go to ``log``; our own warnings reach the person as well.

    TensorBoard raises an I/O error of its writer thread again in this thread.
    """
    handler = LogFile(log, encoding="utf-8", delay=True) if log else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("snnexp: %(message)s"))
    handlers_of: dict[str, list[logging.Handler]] = {
        name: [handler] for name in ("lightning.pytorch", "lightning.fabric", "py.warnings")
    }
    handlers_of["snnexp"] = [handler, shown] if log else [handler]
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in handlers_of}
    before_threads = threading.excepthook

    def in_thread(found: threading.ExceptHookArgs) -> None:
        board = type(found.thread).__module__.startswith("tensorboard")
        if not (board and isinstance(found.exc_value, OSError)):
            before_threads(found)

    threading.excepthook = in_thread
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(True)
        for name, handlers in handlers_of.items():
            logging.getLogger(name).handlers = list(handlers)
            logging.getLogger(name).propagate = name == "snnexp"
        try:
            yield
        finally:
            threading.excepthook = before_threads
            logging.captureWarnings(False)
            for name, (handlers, propagate) in before.items():
                logging.getLogger(name).handlers = handlers
                logging.getLogger(name).propagate = propagate
            handler.close()
