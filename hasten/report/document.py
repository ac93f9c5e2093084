"""What a report is made of, whatever it is shown on: sentences, tables, figures. Pure data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Point = Mapping[str, str | float | bool]
"""One mark of a figure.

``x``, ``y`` and ``series`` say where it is and what it belongs to; ``x_low``, ``x_high``,
``y_low``, ``y_high`` bound it at 95 % where that is known; ``bare`` marks the points of a line
that get no symbol. Every other key is a line of the hover text: its name, and its value in words.
"""

PLACES = frozenset({"x", "y", "series", "bare", "x_low", "x_high", "y_low", "y_high"})
"""The keys of a point that are not hover text."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under column names; numbers are right-aligned from ``numbers_from`` on.

    ``wide`` names columns that a terminal has no room for.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1
    numbers_to: int = 99
    wide: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands along an axis. ``kind`` is the scale: ``name`` lists the values one by one.

    ``numbers`` is how they are written; ``powers`` of ten are for what is far below 1. ``ticks``
    say where labels stand, where that is not left to the library.
    """

    title: str
    kind: Literal["linear", "log", "name"] = "linear"
    numbers: Literal["plain", "percent", "powers"] = "plain"
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing of a figure; ``about`` is the series of the page that it is about, if one."""

    title: str
    points: tuple[Point, ...]
    about: str | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One or more panels on the same scales.

    ``series`` are all that may appear, in the order of their colours, so that a format looks the
    same in every figure of a page; ``ordered`` ones (batch sizes) go from dark to bright instead.
    ``mark`` is ``line`` (with a symbol at each point), ``dot`` or ``bar``. ``x_rule`` and
    ``y_rule`` are values worth a line across.
    """

    name: str
    title: str
    caption: str
    mark: Literal["line", "dot", "bar"]
    x: Axis
    y: Axis
    legend: str
    series: tuple[str, ...]
    panels: tuple[Panel, ...]
    ordered: bool = False
    x_rule: float | None = None
    y_rule: float | None = None

    @property
    def points(self) -> Iterator[Point]:
        for panel in self.panels:
            yield from panel.points

    @property
    def words(self) -> tuple[str, ...]:
        """The names of the lines of hover text, in the order in which they first appear."""
        names = (key for point in self.points for key in point if key not in PLACES)
        return tuple(dict.fromkeys(names))

    @property
    def present(self) -> tuple[str, ...]:
        """The series that really appear, in the order of ``series``."""
        found = {point["series"] for point in self.points}
        return tuple(name for name in self.series if name in found)


def as_table(figure: Figure) -> Table:
    """What a figure shows, in words: for readers who cannot see it, or have no browser."""
    marks = [point for point in figure.points if not point.get("bare")]
    rows = (tuple(str(mark.get(word, "-")) for word in figure.words) for mark in marks)
    return Table(figure.title, figure.words, tuple(dict.fromkeys(rows)))


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report: how to read it, then figures, tables, and lines of a list."""

    title: str
    sentences: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.figures or self.tables or self.lines)


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report.

    ``headline`` is the answer, its first sentence alone worth reading; ``facts`` are its figures,
    each with what it is; ``notes`` are what a reader has to know before believing it;
    ``conditions`` are what was measured where, ``command`` repeats it.
    """

    title: str
    headline: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    conditions: tuple[str, ...]
    command: str | None

    @property
    def figures(self) -> Iterator[Figure]:
        for section in self.sections:
            yield from section.figures


def leading_number(cell: str) -> float | None:
    """The number that a table's cell begins with, to sort by; None where there is none.

    >>> leading_number("~1,234.5"), leading_number("1.83 (1.61-2.07)"), leading_number("chosen")
    (1234.5, 1.83, None)
    """
    match = re.match(r"[~≤<]?\s*(-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)", cell)
    return float(match[1].replace(",", "")) if match else None
