"""The report as Markdown, for the bundle and for whoever gets sent it."""

from __future__ import annotations

from hasten.records import Tuning
from hasten.report import content
from hasten.report.content import Table


def render(tuning: Tuning) -> str:
    """The whole report as one Markdown document."""
    sentences = content.headline(tuning)
    parts = [
        f"# {tuning.model.name}, tuned",
        f"**{sentences[0]}**",
        " ".join(sentences[1:]),
        *(f"> Note: {warning}" for warning in tuning.warnings),
        table(content.candidates(tuning)),
        *(table(t) for t in (content.batching(tuning), content.flips(tuning)) if t),
    ]
    missing = content.unavailable(tuning)
    if missing:
        parts.append("## Not tried here\n\n" + "\n".join(f"- {line}" for line in missing))
    lines = "\n".join(f"- {line}" for line in content.setting(tuning))
    parts.append(f"## Conditions\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def table(table: Table) -> str:
    """A table with a heading."""
    alignment = [
        "---:" if table.numbers_from <= column <= table.numbers_to else "---"
        for column in range(len(table.columns))
    ]
    lines = [table.columns, tuple(alignment), *table.rows]
    body = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    return f"## {table.title}\n\n{body}"


def _cell(text: str) -> str:
    # A text of the user's may hold anything; a table cell must stay on its line.
    return " ".join(text.split()).replace("|", "\\|")
