"""What a figure is called, says and was drawn from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        name: its files are ``figures/<name>.png``, ``.svg`` and ``.csv``.
        figure: see :mod:`snnexp.figures.network`.
        caption: what is seen, for those too who cannot see it.
        data: what was drawn, in columns; where one is shorter, its last cells are empty.
    """

    name: str
    figure: Figure
    caption: str
    data: Mapping[str, Iterable[Any]] = field(default_factory=dict)
