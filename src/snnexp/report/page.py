"""A report: sections of texts, tables and pictures become one HTML file that needs nothing else.

The same pictures are written beside it, as PNG and SVG, with their data as CSV.
"""

import csv
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from snnexp.figures import style
from snnexp.figures.picture import Picture
from snnexp.record.files import write_atomically, write_figure
from snnexp.text import format_number


@dataclass(frozen=True)
class Text:
    """A paragraph, or a command that can be copied."""

    text: str
    command: bool = False


@dataclass(frozen=True)
class Link:
    """A cell that leads to another page."""

    text: str
    address: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """Rows of cells: texts, links, numbers, None for what is not known.

    Args:
        columns: the names of the columns; one that is known in no row is in the CSV file alone.
        rows: one cell per column.
        caption: what the table tells.
        name: its CSV file is ``figures/<name>.csv``; none without a name.
        folded: shown on demand, for what is long.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    name: str = ""
    folded: bool = False

    @property
    def known(self) -> list[bool]:
        """Which columns are known in a row."""
        return [any(row[index] is not None for row in self.rows) for index in range(len(self.columns))]

    @property
    def wide(self) -> bool:
        """Whether half a page is too narrow for it."""
        shown = [index for index, known in enumerate(self.known) if known]
        names = [self.columns[index] for index in shown]
        words = [[word for row in self.rows for word in cell(row[index]).split()] for index in shown]
        # which are not broken
        longest = sum(max(map(len, each), default=0) for each in words)
        return len(shown) > 6 or sum(map(len, names)) > 48 or longest > 64

    @property
    def long(self) -> bool:
        """Whether it may need more than a page of paper."""
        return len(self.rows) > 30

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, perhaps beside what is not known."""
        cells = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.columns)
        return [
            any(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in column) for column in cells
        ]


@dataclass(frozen=True)
class Values:
    """Names and values, as at the beginning of a page."""

    pairs: Sequence[tuple[str, Any]]


Block = Text | Table | Picture | Values


@dataclass(frozen=True)
class Section:
    """A heading and what follows.

    Args:
        title: the heading.
        blocks: what follows.
        anchor: a name that a :class:`Link` can lead to, ``#anchor``.
        below: whether it is a part of the section before.
    """

    title: str
    blocks: Sequence[Block]
    anchor: str = ""
    below: bool = False


def write(folder: Path, title: str, facts: Sequence[tuple[str, Any]], sections: Sequence[Section]) -> Path:
    """Write ``report.html``, and the pictures and their data below ``figures/``; returns the page.

    Args:
        folder: where to; made if it is not there.
        title: the heading.
        facts: what is told first, by name.
        sections: the page, in order; one without blocks is left out.
    """
    files = folder / "figures"
    sections = [section for section in sections if section.blocks]
    inside: dict[str, str] = {}
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Picture):
            try:
                drawn, image = style.svg(block.figure), style.png(block.figure)
            except (ArithmeticError, ValueError) as error:
                # axes that end beyond the largest number, say
                inside[block.name] = f"<p>This cannot be drawn: {escape(str(error))}.</p>"
                continue
            inside[block.name] = inline(block.name, drawn)
            write_figure(files, f"{block.name}.png", image)
            write_figure(files, f"{block.name}.svg", _on_white(drawn).encode())
            if block.data:
                rows = list(itertools.zip_longest(*block.data.values(), fillvalue=""))
                write_figure(files, f"{block.name}.csv", _csv(list(block.data), rows))
        elif isinstance(block, Table) and block.name:
            write_figure(files, f"{block.name}.csv", _csv(block.columns, block.rows))
    # training draws pictures too, and writes no page
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("snnexp", "report"), autoescape=True, trim_blocks=True)
    environment.filters["cell"] = cell
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.tests["values"] = lambda block: isinstance(block, Values)
    environment.tests["link"] = lambda value: isinstance(value, Link)
    environment.tests["table"] = lambda block: isinstance(block, Table)
    html = environment.get_template("page.html").render(title=title, facts=facts, sections=sections, inside=inside)
    folder.mkdir(parents=True, exist_ok=True)
    # a path or a text of others may hold what is no character
    write_atomically(folder / "report.html", html.encode(errors="backslashreplace"))
    return folder / "report.html"


def cell(value: Any) -> str:
    """A value as a person reads it: four significant digits, a dash for what is not known."""
    if value is None:
        return "–"  # noqa: RUF001
    return format_number(value) if isinstance(value, float) else str(value)


def _on_white(svg: str) -> str:
    """A file of its own may be looked at on any ground."""
    return svg.replace("\n <defs>", '\n <rect width="100%" height="100%" fill="white"/>\n <defs>', 1)


def inline(name: str, svg: str) -> str:
    """SVG inside a page: in the page's color, its names apart from those of other pictures."""
    text = svg[svg.index("<svg") :].replace(style.INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    # the size is the page's; the shape stays in viewBox
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")
