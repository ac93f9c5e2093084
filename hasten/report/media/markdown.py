"""The report as Markdown, as bundles store it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hasten.report.document import Document, Section, Table
from hasten.report.media.base import Medium

_NONE: Mapping[str, str] = {}


def render(document: Document, pictures: Mapping[str, str] = _NONE) -> str:
    """The whole report as one Markdown document.

    Args:
        document: the report.
        pictures: the files of the figures that were drawn, by the figures' names.
    """
    first, *others = document.headline
    lines = "\n".join(f"- {line}" for line in document.conditions)
    command = f"\n\nThe command that repeats it:\n\n    {document.command}"
    parts = [
        f"# {document.title}",
        f"**{first}**",
        *([" ".join(others)] if others else []),
        *(f"> Note: {note}" for note in document.notes),
        *(part for section in document.sections for part in _section(section, pictures)),
        f"## Conditions\n\n{lines}{command if document.command else ''}",
    ]
    return "\n\n".join(parts) + "\n"


def table(table: Table) -> str:
    """A table with what it is called."""
    alignment = [
        "---:" if table.numbers_from <= column <= table.numbers_to else "---"
        for column in range(len(table.columns))
    ]
    lines = [table.columns, tuple(alignment), *table.rows]
    body = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    return f"{_cell(table.title)}:\n\n{body}"


def _section(section: Section, pictures: Mapping[str, str]) -> Iterator[str]:
    shown = [figure for figure in section.figures if figure.name in pictures]
    if not (shown or section.tables or section.lines):
        return
    yield f"## {section.title}"
    yield from section.sentences
    for figure in shown:
        yield f"![{figure.title}]({pictures[figure.name]})"
        yield f"*{figure.title}. {figure.caption}*"
    for held in section.tables:
        # A table that says no more than the heading needs no caption under it.
        yield table(held).split("\n\n", 1)[1] if held.title == section.title else table(held)
    if section.lines:
        yield "\n".join(f"- {line}" for line in section.lines)


def _cell(text: str) -> str:
    # A text of the user's may hold anything; a table cell must stay on its line.
    return " ".join(text.split()).replace("|", "\\|")


MEDIA = (Medium("md", lambda document, pictures: render(document, pictures).encode()),)
