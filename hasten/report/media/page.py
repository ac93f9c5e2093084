"""The report as one HTML file that opens from disk and loads nothing from the network."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources

from hasten import __version__
from hasten.report import charts
from hasten.report.document import (
    Document,
    Figure,
    Panel,
    Section,
    Table,
    as_table,
    leading_number,
)
from hasten.report.media.base import Medium

# The browser itself then refuses whatever would leave the page. Vega compiles its expressions.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "img-src data: blob:"
)
_PROSE = {"note", "text"}
"""Columns of sentences, which need room to be wrapped in."""

_STATUSES = ("chosen", "refused", "failed")
_SYMBOLS = {
    "circle": "M8 2a6 6 0 1 0 .01 0Z",
    "square": "M3 3h10v10H3Z",
    "triangle-up": "M8 2l7 12H1Z",
    "diamond": "M8 1l6 7-6 7-6-7Z",
    "triangle-down": "M8 14L1 2h14Z",
    "cross": "M6 1h4v5h5v4h-5v5H6v-5H1V6h5Z",
    "triangle-right": "M14 8L2 15V1Z",
}
_HINTS = """<p class="hint">Charts: point at a symbol to read its figures; press a name above a
chart to switch it off. Tables: press a heading to sort.</p>
<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>"""


def render(document: Document) -> str:
    """The whole page.

    Raises:
        Unavailable: the extra ``report`` is not installed.
    """
    library = _library() if any(document.figures) else ""
    parts = (
        _head(document),
        _header(document),
        *(_section(number, section) for number, section in enumerate(document.sections)),
        _conditions(document),
        f"<footer>Made by hasten {__version__}. This page loads nothing from elsewhere.</footer>",
        "</main>",
        f"<script>{library}</script>\n<script>{_asset('page.js')}</script>" if library else "",
        "</body>\n</html>\n",
    )
    return "\n".join(parts)


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, in the version that Altair writes for."""
    altair = charts.library("altair")
    version = "_".join(altair.SCHEMA_VERSION.split(".")[:2])
    script: str = charts.library("vl_convert").javascript_bundle(vl_version=version)
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _asset(name: str) -> str:
    return (resources.files("hasten.report") / "assets" / name).read_text(encoding="utf-8")


def _head(document: Document) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{_text(document.title)} - hasten</title>
<style>
{_asset("page.css")}
{_colours()}</style>
</head>
<body>
<main>"""


def _colours() -> str:
    """The palettes as properties of the style sheet, so that dark mode needs no redrawing."""
    light = _properties("series", charts.PALETTE) + _properties("step", charts.ORDERED)
    dark = _properties("series", charts.DARK_PALETTE) + _properties("step", charts.DARK_ORDERED)
    # Paper is white, whatever the screen is.
    return (
        f":root {{{light}}}\n@media screen and (prefers-color-scheme: dark) {{:root {{{dark}}}}}\n"
    )


def _properties(name: str, palette: Iterable[str]) -> str:
    return " ".join(f"--{name}-{index}: {colour};" for index, colour in enumerate(palette))


def _header(document: Document) -> str:
    first, *others = document.headline
    facts = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
        for value, name in document.facts
    )
    notes = "".join(f"<p>{_text(note)}</p>" for note in document.notes)
    parts = {f"part-{number}": part.title for number, part in enumerate(document.sections)}
    links = "".join(
        f'<li><a href="#{name}">{_text(title)}</a></li>'
        for name, title in (parts | {"conditions": "Conditions"}).items()
    )
    return "\n".join(
        (
            f'<header>\n<p class="kicker">{_text(document.title)}</p>',
            f"<h1>{_text(first)}</h1>",
            f'<p class="lead">{_text(" ".join(others))}</p>' if others else "",
            f'<dl class="facts">{facts}</dl>' if facts else "",
            f'<div class="notes" role="note">{notes}</div>' if notes else "",
            f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav>',
            _HINTS if any(document.figures) else "",
            "</header>",
        )
    )


def _section(number: int, section: Section) -> str:
    lines = "".join(f"<li>{_text(line)}</li>" for line in section.lines)
    parts = (
        f'<section>\n<h2 id="part-{number}">{_text(section.title)}</h2>',
        *(f'<p class="lead">{_text(sentence)}</p>' for sentence in section.sentences),
        *(_figure(figure, section.title) for figure in section.figures),
        *(_table(table) for table in section.tables),
        f"<ul>{lines}</ul>" if lines else "",
        "</section>",
    )
    return "\n".join(parts)


def _figure(figure: Figure, under: str) -> str:
    title = "" if figure.title == under else f"<h3>{_text(figure.title)}</h3>\n"
    scope = "page" if figure.legend == "format" else "figure"
    several = " several" if len(figure.panels) > 1 else ""
    spec = charts.for_page(figure)
    panels = "\n".join(_panel(figure, panel, spec) for panel in figure.panels)
    return f"""<figure id="{figure.name}" data-scope="{scope}">
{title}{_legend(figure)}<div class="panels{several}">
{panels}
</div>
<figcaption>{_text(figure.caption)}</figcaption>
<details><summary>The same as a table</summary>{_table(as_table(figure))}</details>
</figure>"""


def _legend(figure: Figure) -> str:
    """Buttons that switch series off; none where there is nothing to choose between."""
    if len(figure.present) < 2:
        return ""
    look = charts.Look(on_page=True)
    buttons = "".join(
        f'<li><button type="button" aria-pressed="true" data-series="{_text(series)}">'
        f'<svg viewBox="0 0 16 16" aria-hidden="true"><path fill="{look.colour(figure, series)}" '
        f'd="{_SYMBOLS[charts.shape(figure, series)]}"/></svg>{_text(series)}</button></li>'
        for series in figure.present
    )
    return f'<ul class="legend" aria-label="{_text(figure.legend)}">{buttons}</ul>\n'


def _panel(figure: Figure, panel: Panel, spec: charts.Spec) -> str:
    about = f' data-about="{_text(panel.about)}"' if panel.about else ""
    title = f"<h4>{_text(panel.title)}</h4>" if panel.title else ""
    whole = _json(charts.with_points(spec, figure, panel))
    named = ": ".join(part for part in (figure.title, panel.title) if part)
    return (
        f'<div class="panel"{about}>{title}'
        f'<div class="chart" role="group" aria-label="{_text(named)}"></div>'
        f'<script type="application/json">{whole}</script></div>'
    )


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_number(table, index)}><button type="button">{_text(name)}</button></th>'
        for index, name in enumerate(table.columns)
    )
    body = "\n".join(_row(table, row) for row in table.rows)
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{_text(table.title)}">'
        f"<table><caption>{_text(table.title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(table: Table, row: tuple[str, ...]) -> str:
    status = next((cell for cell in row[1:2] if cell in _STATUSES), None)
    cells = "".join(_cells(table, row))
    return f'<tr class="{status}">{cells}</tr>' if status else f"<tr>{cells}</tr>"


def _cells(table: Table, row: tuple[str, ...]) -> Iterator[str]:
    for index, cell in enumerate(row):
        numeric = _number(table, index)
        number = leading_number(cell) if numeric else None
        prose = ' class="text"' if table.columns[index] in _PROSE else numeric
        key = "" if number is None else f' data-sort="{number!r}"'
        yield f"<td{prose}{key}>{_text(cell)}</td>"


def _number(table: Table, index: int) -> str:
    return ' class="number"' if table.numbers_from <= index <= table.numbers_to else ""


def _conditions(document: Document) -> str:
    lines = []
    for line in document.conditions:
        name, _, value = line.partition(": ")
        lines.append(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>")
    command = document.command
    again = f"<h3>The command that repeats it</h3>\n<pre>{_text(command)}</pre>" if command else ""
    return (
        f'<section>\n<h2 id="conditions">Conditions</h2>\n<dl class="conditions">{"".join(lines)}'
        f"</dl>\n{again}\n</section>"
    )


def _text(text: str) -> str:
    return html.escape(text)


def _json(value: object) -> str:
    """JSON that cannot end the script it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


MEDIA = (Medium("html", lambda document, _: render(document).encode()),)
