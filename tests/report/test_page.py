"""The page and the pictures as files; tests/report/test_browser.py looks at them."""

from __future__ import annotations

import importlib
import re
import struct
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import ChoiceError, StorageError, Unavailable
from hasten.records import Bench
from hasten.report import charts, compose, publish
from hasten.report.document import Document, Section, Table
from hasten.report.media import markdown, page, pictures
from tests.report.results import NASTY, tuned

pytest.importorskip("altair", reason="charts need the extra `report`")


@pytest.fixture(scope="module")
def text(document: Document) -> str:
    return page.render(document)


class Elements(HTMLParser):
    """Every element of a page, and whatever would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            inside = (value or "").startswith(("#", "data:"))
            if name in {"src", "href", "srcset", "action", "data"} and not inside:
                self.loads.append(f"{tag} {name}={value}")


def test_the_page_is_one_file_that_loads_nothing(text: str, document: Document) -> None:
    elements = Elements(text)
    assert elements.loads == []
    assert "@import" not in text.partition("<script>")[0]
    assert "default-src 'none'" in text
    assert len(text.encode()) < 5 * 2**20
    assert elements.tags.count("html") == 1
    charts_drawn = sum(len(figure.panels) for figure in document.figures)
    assert text.count('class="chart"') == charts_drawn


def test_a_run_that_was_interrupted_still_has_a_page(bench: Bench) -> None:
    """As much as there was after each of the steps, from nothing on."""
    bare = [replace(f, shapes=(), single=None, row=replace(f.row, runs=())) for f in bench.formats]
    nothing = replace(bench, complete=False, formats=tuple(bare))
    lengths = replace(
        nothing,
        formats=tuple(
            replace(f, shapes=whole.shapes[:1])
            for f, whole in zip(bare, bench.formats, strict=True)
        ),
    )
    no_start = replace(nothing, formats=(), baseline=replace(bench.baseline, runs=()))
    for partial in (no_start, nothing, lengths):
        text = page.render(compose.of(partial))
        assert "The run is not finished" in text
        assert "Not measured yet" in text
    assert "Length" in text
    assert text.count('class="chart"') > 2


def test_what_users_wrote_cannot_become_markup(tmp_path: Path) -> None:
    document = compose.of(tuned(tmp_path))
    text = page.render(document)
    assert "alert(&#x27;a text of the user&#x27;)" in text
    assert "<script>alert" not in text
    series = f"Nasty {NASTY}"
    (figure, *_) = document.figures
    point: dict[str, Any] = {"x": 1.0, "y": 1.0, "series": series, "Word": NASTY}
    changed = _with_points(figure, point)
    whole = Document(NASTY, (NASTY, NASTY), ((NASTY, NASTY),), (NASTY,), changed, (NASTY,), NASTY)
    nasty = page.render(whole)
    body, _, scripts = nasty.partition("</main>")
    assert Elements(body).tags.count("script") == sum(len(f.panels) for f in whole.figures)
    assert "<b>" not in body
    assert "alert('a text" not in re.sub(r'"[^"]*"', "", body)
    assert NASTY not in scripts


def _with_points(figure: Any, point: dict[str, Any]) -> tuple[Section, ...]:
    panels = (replace(figure.panels[0], title=NASTY, points=(point,), about=NASTY),)
    drawn = replace(
        figure, title=NASTY, caption=NASTY, legend=NASTY, series=(point["series"],), panels=panels
    )
    table = Table(NASTY, (NASTY, NASTY), ((NASTY, NASTY),))
    return (Section(NASTY, (NASTY,), (drawn,), (table,), (NASTY,)),)


def test_cells_are_sorted_by_the_number_that_they_begin_with() -> None:
    table = Table("t", ("name", "n"), (("a", "~1,234.5"), ("b", ""), ("c", "≤0.3 %")))
    document = Document("t", ("h",), (), (), (Section("s", tables=(table,)),), (), None)
    text = page.render(document)
    assert re.findall(r'data-sort="([^"]*)"', text) == ["1234.5", "0.3"]
    assert "vegaEmbed" not in text  # nothing to draw, nothing to carry


def test_every_chart_is_drawn_from_the_points_of_its_panel(document: Document) -> None:
    for figure in document.figures:
        for panel in figure.panels:
            spec = charts.with_points(charts.for_page(figure), figure, panel)
            assert len(spec["datasets"]["points"]) == len(panel.points)
            assert spec["width"] == "container"
            assert "http" not in str(spec["datasets"])


def test_series_look_the_same_in_every_chart(document: Document) -> None:
    look = charts.Look(on_page=False)
    formats = [figure for figure in document.figures if figure.legend == "format"]
    assert len(formats) > 3
    for series in formats[0].present:
        assert len({(look.colour(f, series), charts.shape(f, series)) for f in formats}) == 1
    everything = [(i % len(charts.PALETTE), i % len(charts.SHAPES)) for i in range(56)]
    assert len(set(everything)) == 56


@pytest.mark.parametrize(
    ("palettes", "paper"),
    [
        ((charts.PALETTE, charts.ORDERED), 1.0),
        ((charts.DARK_PALETTE, charts.DARK_ORDERED), 0.008),  # the luminance of #14171b
    ],
)
def test_every_colour_stands_out_from_its_paper(palettes: Any, paper: float) -> None:
    for colour in (colour for palette in palettes for colour in palette):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        ink = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        high, low = max(ink, paper), min(ink, paper)
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_pictures_need_no_browser(document: Document) -> None:
    drawn = {figure.name: figure for figure in document.figures}
    for name in ("batch-size-time", "order-time", "latency"):
        image = pictures.draw(drawn[name], "png")
        assert image.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", image[16:24])
        assert width > 1000
        assert height > 500
    vector = pictures.draw(drawn["latency"], "svg").decode()
    assert vector.startswith("<svg")
    assert "Latency of single texts" in vector


def test_files_stand_beside_the_results(tmp_path: Path) -> None:
    bench, bundle = tmp_path / "bench", tmp_path / "bundle"
    for folder, name in ((bench, "bench.json"), (bundle, "hasten.json")):
        folder.mkdir()
        (folder / name).touch()
    assert publish.base(bench, None, None) == bench / "report"
    assert publish.base(bench / "bench.json", None, None) == bench / "report"
    assert publish.base(bundle, None, None) == tmp_path / "bundle.report"
    assert publish.base(bundle / "hasten.json", None, None) == tmp_path / "bundle.report"
    assert publish.base(bench, bundle, None) == Path("comparison")
    assert publish.base(bundle, None, tmp_path / "site") == tmp_path / "site" / "report"


def test_all_formats_are_written_and_markdown_shows_the_pictures(
    document: Document, tmp_path: Path
) -> None:
    few = Document(**{**_fields(document), "sections": document.sections[:1]})
    written = publish.write(few, tmp_path / "new" / "report", ("html", "md", "svg"))
    names = {path.name for path in written}
    assert {"report.html", "report.md", "report-batch-size-time.svg"} <= names
    shown = (tmp_path / "new" / "report.md").read_text()
    assert "](report-batch-size-time.svg)" in shown


def _fields(document: Document) -> dict[str, Any]:
    return {name: getattr(document, name) for name in Document.__slots__}


def test_a_wrong_format_and_a_full_disk_are_told(document: Document, tmp_path: Path) -> None:
    with pytest.raises(ChoiceError, match="'pdf'"):
        publish.write(document, tmp_path / "report", ("pdf",))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        publish.write(document, tmp_path / "file" / "report", ("md",))


def test_without_the_extra_markdown_works_and_charts_name_the_command(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name in {"altair", "vl_convert"}:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert publish.write(document, tmp_path / "report", ("md",))
    for name in ("html", "png", "svg"):
        with pytest.raises(Unavailable) as caught:
            publish.write(document, tmp_path / "report", (name,))
        assert caught.value.fix == "pip install 'hasten[report]'"
    assert markdown.render(document)
    assert "altair" in sys.modules  # it is there: only the stand-in hid it
