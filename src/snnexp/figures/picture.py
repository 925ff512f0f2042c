"""A figure with its name, caption and data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        name: name of its files, ``figures/<name>.png``, ``.svg`` and ``.csv``.
        figure: the matplotlib figure.
        caption: the caption, also used as the alternative text.
        data: the plotted values by column; shorter columns are padded with empty cells in the CSV file.
    """

    name: str
    figure: Figure
    caption: str
    data: Mapping[str, Iterable[Any]] = field(default_factory=dict)
