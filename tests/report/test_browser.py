"""The page as a reader sees it, in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hasten.report import compose
from hasten.report.document import Document
from hasten.report.media import page
from tests.report.results import NASTY, tuned

pytest.importorskip("altair", reason="charts need the extra `report`")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@dataclass
class Opened:
    """A page in a browser, and everything that it complained about or asked for."""

    tab: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, path: Path) -> None:
        def heard(message: Any) -> None:
            if message.type in {"error", "warning"}:
                self.complaints.append(message.text)

        self.tab.on("console", heard)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("html[data-drawn]", state="attached", timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.render(document), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    page_ = Opened(tab)
    page_.open(file)
    yield page_
    tab.close()


def symbols(tab: Any, figure: str) -> int:
    shown: int = tab.locator(f"#{figure} .mark-symbol path").count()
    return shown


def test_every_mark_is_drawn_and_nothing_complains(opened: Opened, document: Document) -> None:
    for figure in document.figures:
        marks = sum(not point.get("bare") for point in figure.points)
        if figure.mark == "bar":
            found = opened.tab.locator(f"#{figure.name} .mark-rect.role-mark path").count()
        else:
            found = symbols(opened.tab, figure.name)
        assert (figure.name, found) == (figure.name, marks)
    assert opened.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in opened.asked), opened.asked


def test_hover_tells_value_interval_runs_batch_and_padding(
    opened: Opened, document: Document
) -> None:
    figure = next(f for f in document.figures if f.name == "batch-size-time")
    point = next(iter(figure.points))
    opened.tab.locator("#batch-size-time .mark-symbol path").first.hover()
    hover = opened.tab.locator("#vg-tooltip-element.visible")
    hover.wait_for()
    rows = hover.locator("tr").all_inner_texts()
    told = dict(row.replace(":", "", 1).split("\t") for row in rows)
    expected = {name: str(point[name]) for name in figure.words}
    assert {name.strip(): value.strip() for name, value in told.items()} == expected
    assert {"Time per text", "Runs", "Batch size", "Padding", "Speed-up"} <= set(expected)


def test_a_format_is_switched_off_in_every_chart(opened: Opened, document: Document) -> None:
    before = {name: symbols(opened.tab, name) for name in ("batch-size-time", "latency")}
    name = next(f for f in document.figures if f.name == "latency").present[0]
    button = opened.tab.locator("#batch-size-time .legend button", has_text=name)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    for figure, count in before.items():
        opened.tab.wait_for_function(
            "([id, n]) => document.querySelectorAll(`#${id} .mark-symbol path`).length < n",
            arg=[figure, count],
        )
    panel = opened.tab.locator(f'#length-by-format .panel[data-about="{name}"]')
    assert not panel.is_visible()
    button.press("Enter")
    opened.tab.wait_for_function(
        "n => document.querySelectorAll('#latency .mark-symbol path').length === n",
        arg=before["latency"],
    )
    assert panel.is_visible()


def test_a_table_sorts_by_number_both_ways_with_blanks_last(opened: Opened) -> None:
    table = opened.tab.locator("section > .table table").first
    header = table.locator("thead th").nth(2)

    def column() -> list[float]:
        cells = table.locator("tbody td:nth-child(3)").all_inner_texts()
        return [float(cell.replace(",", "")) for cell in cells if cell]

    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)
    assert len(column()) > 1


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(browser: Any, file: Path, width: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 844})
    opened = Opened(tab)
    opened.open(file)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, file: Path, scheme: str) -> None:
    tab = browser.new_page(color_scheme=scheme)
    opened = Opened(tab)
    opened.open(file)
    colours = tab.evaluate(
        """() => {
            const label = document.querySelector("#batch-size-time .role-axis-label text");
            const symbol = document.querySelector("#batch-size-time .mark-symbol path");
            const read = (element, name) => getComputedStyle(element)[name];
            return [read(document.body, "backgroundColor"), read(label, "fill"),
                    read(symbol, "fill")];
        }"""
    )
    paper, *inks = (_luminance(colour) for colour in colours)
    text, symbol = (_contrast(ink, paper) for ink in inks)
    assert text >= 7
    assert symbol >= 3
    tab.close()


def test_a_text_of_the_users_runs_nothing(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page.render(compose.of(tuned(tmp_path / "lab"))), encoding="utf-8")
    tab = browser.new_page()
    said: list[str] = []

    def hear(dialog: Any) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    tab.on("dialog", hear)
    opened = Opened(tab)
    opened.open(path)
    assert (said, opened.complaints) == ([], [])
    assert "alert('a text of the user')" in tab.locator("main").inner_text()
    assert NASTY.split()[0] in tab.locator("main").inner_text()
    tab.close()


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return (high + 0.05) / (low + 0.05)
