"""The report for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from hasten.report.document import Document, Table

_STYLES = {"chosen": "bold green", "refused": "red", "failed": "red", "dropped": "dim"}

_NOTE = "note"
"""A column whose texts stand below the table, where a terminal has room for them."""


def render(document: Document) -> RenderableType:
    """The answer, then the tables, then what was not tried."""
    first, *others = document.headline
    parts: list[RenderableType] = [Text(first, style="bold green")]
    if others:
        parts.append(Text(" ".join(others)))
    parts += [Text(f"Note: {note}", style="yellow") for note in document.notes]
    for section in document.sections:
        for table in section.tables:
            parts += ["", _table(table)]
            if table.columns[-1] == _NOTE:
                parts += _notes(table)
        if section.lines:
            parts += ["", *([Text(section.title, style="italic")] if section.title else [])]
            indent = 2 if section.title else 0
            parts += [Padding(Text(line), (0, 0, 0, indent)) for line in section.lines]
    return Group(*parts)


def _notes(table: Table) -> list[RenderableType]:
    """The last column of the table, a line for each row that has something to say."""
    noted = [row for row in table.rows if row[-1]]
    lines = [Text(f"{row[0]} {row[1]}: {row[-1]}", style="dim") for row in noted]
    return ["", *(Padding(line, (0, 0, 0, 2)) for line in lines)] if lines else []


def _table(table: Table) -> RichTable:
    hidden = table.wide | {_NOTE}
    shown = [i for i, name in enumerate(table.columns) if name not in hidden]
    rich_table = RichTable(title=table.title, title_justify="left", header_style="bold", box=None)
    for index in shown:
        numeric = table.numbers_from <= index <= table.numbers_to
        name = table.columns[index]
        rich_table.add_column(
            name,
            justify="right" if numeric else "left",
            overflow="fold",  # where there is no room, in two lines rather than cut off
        )
    for row in table.rows:
        style = next((_STYLES[cell] for cell in row if cell in _STYLES), None)
        rich_table.add_row(*(escape(row[index]) for index in shown), style=style)
    return rich_table
