"""Progress of a sweep: a live table in a terminal, one line per point otherwise, and a table of results at the end."""

import re
import statistics
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from snnexp import text
from snnexp.record.measures import higher_is_better, is_layer_metric, main_metric
from snnexp.record.run import Run
from snnexp.sweeps.ledger import Ledger, Point, describe, split_overrides
from snnexp.terminal import format_duration, format_path, print_command
from snnexp.text import format_number

MAX_LINES = 8
"""Maximum number of running points that are listed."""


class Display:
    """Shows the progress of a sweep.

    Args:
        terminal: the console.
        ledger: record of the sweep.
        metric: metric by which points are compared; None for the main metric of the runs.
        higher: whether a higher value is better; None for the known direction of the metric.
        total: total number of points, if more points will be added.
    """

    plain_every_s = 20.0
    live_every_s = 0.5

    def __init__(
        self,
        terminal: Console,
        ledger: Ledger,
        metric: str | None = None,
        higher: bool | None = None,
        total: int | None = None,
    ) -> None:
        self.terminal, self.ledger, self.total = terminal, ledger, total
        self.metric, self.higher = metric, higher
        self.live = Live(console=terminal, auto_refresh=False, transient=True) if terminal.is_terminal else None
        self.started_at = self.drawn_at = time.monotonic()
        self.ended_count = 0

    def __enter__(self) -> "Display":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def ended(self, point: Point) -> None:
        """Report the end of a point; in a live view only if it did not finish."""
        self.ended_count += 1
        if self.live is None or not point.done:
            self.note(point, self._metric_text(point) or point.reason)

    def note(self, point: Point, message: str) -> None:
        """Print a line about a point."""
        line = f"point {point.index + 1}  {self._name(point)}  {point.status}  {text.one_line(message)}"
        self.terminal.print(escape(line.rstrip()))

    def _metric_text(self, point: Point) -> str:
        name = self.metric or main_metric(point.metrics)
        known = point.status == "finished" and name in point.metrics
        return f"{name} {format_number(point.metrics[name])}" if known and name else ""

    def refresh(self) -> None:
        """Update the view if its interval has passed."""
        now = time.monotonic()
        if now - self.drawn_at < (self.plain_every_s if self.live is None else self.live_every_s):
            return
        self.drawn_at = now
        if self.live is None:
            self.terminal.print("  ".join(self._progress()))
        else:
            self.live.update(self._view(), refresh=True)

    def say(self, message: str) -> None:
        """Print a line about the sweep."""
        self.terminal.print(f"sweep {format_path(self.ledger.path)}  {escape(message)}")

    def end(self, to_go: bool) -> None:
        """Print the results of all points, and the commands to resume the sweep and to report on it."""
        ledger = self.ledger
        rows, varied = ledger.rows(), ledger.varied_keys()
        # too many columns with the metrics of single layers
        names = [name for name in ledger.metric_names() if not is_layer_metric(name) and name != "test/synops"]
        hows = {row["how"].split()[0] for row in rows if row["how"]}
        columns = [*varied, "status", *(["how"] if len(hows) > 1 or "stack" in hows else []), *names]
        columns += ["reason"] if any(row["reason"] for row in rows) else []
        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(_cell(row[column]) for column in columns))
        self.terminal.print()
        if rows:
            self.terminal.print(table)
        self._print_repeats()
        states = [point.status for point in ledger.points]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(["finished", *sorted(set(states))])]
        self.say(", ".join(counts))
        if to_go:
            print_command(self.terminal, "the rest", "snnexp", "resume", ledger.path)
        if "finished" in states:
            print_command(self.terminal, "report", "snnexp", "report", ledger.path)

    def _print_repeats(self) -> None:
        """Print mean and deviation of the main metric over seeds and folds, and the best point of a list."""
        best = best_point(self.ledger.points, self.metric, self.higher)
        if best is None or len(self.ledger.points) == 1:
            return
        name = self.metric or main_metric(best.metrics) or ""
        varied = self.ledger.varied_keys()
        others = [key for key in varied if key not in REPEATS]
        heading = " and ".join(name for key, name in REPEATS.items() if key in varied)
        by_setting: dict[tuple[str, ...], list[float]] = {}
        for point in self.ledger.points:
            if point.status == "finished" and name in point.metrics:
                overrides = dict(split_overrides(point.overrides))
                setting = tuple(overrides.get(key, "") for key in others)
                by_setting.setdefault(setting, []).append(point.metrics[name])
        if heading and any(len(values) > 1 for values in by_setting.values()):
            table = Table(*others, heading, f"mean {name}", "deviation", box=None, pad_edge=False)
            for setting, values in by_setting.items():
                deviation = format_number(statistics.stdev(values)) if len(values) > 1 else ""
                table.add_row(*map(_cell, setting), str(len(values)), format_number(statistics.mean(values)), deviation)
            self.terminal.print(table)
        # choosing the best fold is meaningless
        if self.ledger.search is None and (others or "data.fold" not in varied):
            self.terminal.print(f"best {name} {format_number(best.metrics[name])}  {escape(self._name(best))}")

    def _name(self, point: Point) -> str:
        return describe(point, self.ledger.varied_keys())

    def _progress(self) -> list[str]:
        points = self.ledger.points
        states = [point.status for point in points]
        total = self.total or len(points)
        ended = len(states) - states.count("pending") - states.count("running")
        words = [f"{ended}/{total} points done", f"{states.count('running')} running"]
        words += [f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state in UNSUCCESSFUL]
        if (best := best_point(points, self.metric, self.higher)) is not None:
            name = self.metric or main_metric(best.metrics) or ""
            words.append(f"best {name} {format_number(best.metrics[name])} ({escape(self._name(best))})")
        if self.ended_count and ended < total:
            left = (time.monotonic() - self.started_at) / self.ended_count * (total - ended)
            words.append(f"{format_duration(left)} left")
        return words

    def _view(self) -> Group:
        points = self.ledger.points
        done = sum(point.status not in ("pending", "running") for point in points)
        running = [point for point in points if point.status == "running"]
        table = Table(box=None, pad_edge=False, show_header=False)
        for point in running[:MAX_LINES]:
            reached = Run(self.ledger.path / point.run).progress() if point.run else None
            where = f"step {reached['step'] + 1}, epoch {reached['epoch'] + 1}" if reached else "starting"
            table.add_row(f"point {point.index + 1}", escape(self._name(point)), point.how, where)
        if len(running) > MAX_LINES:
            table.add_row(f"and {len(running) - MAX_LINES} more")
        bar = Table.grid()
        bar.add_row(ProgressBar(total=self.total or len(points), completed=done))
        return Group(bar, "  ".join(self._progress()), table)


REPEATS = {"seed": "seeds", "data.fold": "folds"}
"""Keys that repeat a setting, with the plural of their name."""
UNSUCCESSFUL = ("failed", "diverged", "interrupted", "timeout", "pruned")


def best_point(points: Sequence[Point], metric: str | None, higher: bool | None = None) -> Point | None:
    """Return the best finished point by ``metric``, or by the main metric."""
    finished = [point for point in points if point.status == "finished"]
    name = metric or next(filter(None, (main_metric(point.metrics) for point in finished)), None)
    if name is None:
        return None
    higher = higher_is_better(name) if higher is None else higher
    having = [point for point in finished if name in point.metrics]
    return (max if higher else min)(having, key=lambda point: point.metrics[name], default=None)


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return format_number(value)
    # round long decimals, such as those of a search; summary.csv has all digits
    long = re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value or "")
    return format_number(float(value or 0)) if long else escape(value or "")
