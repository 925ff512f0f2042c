"""Render sections of text, tables and pictures as one self-contained HTML file.

The pictures are also written as PNG and SVG, with their data as CSV.
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
    """A paragraph, or a command to copy."""

    text: str
    command: bool = False


@dataclass(frozen=True)
class Link:
    """A cell that links to another page."""

    text: str
    address: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """Rows of cells: strings, links, numbers, or None for unknown values.

    Args:
        columns: the names of the columns; a column without values is only written to the CSV file.
        rows: one cell per column.
        caption: the caption.
        name: name of the CSV file, ``figures/<name>.csv``; none is written if empty.
        folded: collapse the table, if it is long.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    name: str = ""
    folded: bool = False

    @property
    def known(self) -> list[bool]:
        """True for each column that has a value."""
        return [any(row[index] is not None for row in self.rows) for index in range(len(self.columns))]

    @property
    def wide(self) -> bool:
        """True if half the width of the page is too narrow."""
        indices = [index for index, known in enumerate(self.known) if known]
        names = [self.columns[index] for index in indices]
        # lines are broken between words only
        words = [[word for row in self.rows for word in cell(row[index]).split()] for index in indices]
        longest = sum(max(map(len, each), default=0) for each in words)
        return len(indices) > 6 or sum(map(len, names)) > 48 or longest > 64

    @property
    def long(self) -> bool:
        """True if the table may need more than one printed page."""
        return len(self.rows) > 30

    @property
    def numeric(self) -> list[bool]:
        """True for each column that contains a number."""
        cells = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.columns)
        return [
            any(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in column) for column in cells
        ]


@dataclass(frozen=True)
class Values:
    """A list of names and values, as at the top of a page."""

    pairs: Sequence[tuple[str, Any]]


Block = Text | Table | Picture | Values


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        title: the heading.
        blocks: the content.
        anchor: target of links, ``#anchor``.
        below: True for a subsection.
    """

    title: str
    blocks: Sequence[Block]
    anchor: str = ""
    below: bool = False


def write(folder: Path, title: str, facts: Sequence[tuple[str, Any]], sections: Sequence[Section]) -> Path:
    """Write ``report.html``, and the pictures and their data to ``figures/``; return the path of the page.

    Args:
        folder: the output folder; created if missing.
        title: the heading.
        facts: names and values at the top of the page.
        sections: the sections, in order; those without blocks are skipped.
    """
    files = folder / "figures"
    sections = [section for section in sections if section.blocks]
    inline_svgs: dict[str, str] = {}
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Picture):
            try:
                drawn, image = style.svg(block.figure), style.png(block.figure)
            except (ArithmeticError, ValueError) as error:
                # for instance, axis limits that overflow
                inline_svgs[block.name] = f"<p>This figure cannot be drawn: {escape(str(error))}.</p>"
                continue
            inline_svgs[block.name] = inline(block.name, drawn)
            write_figure(files, f"{block.name}.png", image)
            write_figure(files, f"{block.name}.svg", _on_white(drawn).encode())
            if block.data:
                rows = list(itertools.zip_longest(*block.data.values(), fillvalue=""))
                write_figure(files, f"{block.name}.csv", _csv(list(block.data), rows))
        elif isinstance(block, Table) and block.name:
            write_figure(files, f"{block.name}.csv", _csv(block.columns, block.rows))
    # training imports this module for pictures only
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("snnexp", "report"), autoescape=True, trim_blocks=True)
    environment.filters["cell"] = cell
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.tests["values"] = lambda block: isinstance(block, Values)
    environment.tests["link"] = lambda value: isinstance(value, Link)
    environment.tests["table"] = lambda block: isinstance(block, Table)
    html = environment.get_template("page.html").render(title=title, facts=facts, sections=sections, svgs=inline_svgs)
    folder.mkdir(parents=True, exist_ok=True)
    # untrusted paths and strings may contain unpaired surrogates
    write_atomically(folder / "report.html", html.encode(errors="backslashreplace"))
    return folder / "report.html"


def cell(value: Any) -> str:
    """Format a value of a table: four significant digits, a dash for None."""
    if value is None:
        return "–"  # noqa: RUF001
    return format_number(value) if isinstance(value, float) else str(value)


def _on_white(svg: str) -> str:
    """Add a white background, since a separate file may be viewed on a background of any color."""
    return svg.replace("\n <defs>", '\n <rect width="100%" height="100%" fill="white"/>\n <defs>', 1)


def inline(name: str, svg: str) -> str:
    """Return SVG to embed in a page: with the page's text color, and with ids that are unique in the page."""
    text = svg[svg.index("<svg") :].replace(style.INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    # the page sets the size; viewBox keeps the aspect ratio
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")
