"""The page at /ui, as a visitor sees it in headless Chromium."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from hasten.serve.app import Access, create
from hasten.serve.service import Service

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
with_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab whose page may not complain, and may ask nobody but the server."""
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    complaints: list[str] = []

    def heard(message: Any) -> None:
        if "the server responded with a status of 4" not in message.text:
            complaints.append(message.text)

    tab.on("console", heard)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    yield tab
    tab.close()
    assert complaints == []


def answered(tab: Any, model: str) -> Any:
    """The answer to the example of a model."""
    tab.locator("#model").select_option(model)
    tab.locator("#send").click()
    tab.locator("#answer").wait_for()
    return tab.locator("#shown")


@with_browser
def test_each_kind_of_model_is_asked_and_its_answer_shown(tab: Any, live: str) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(f"{live}/ui")
    tab.locator("#model option").nth(3).wait_for(state="attached")

    labels = answered(tab, "news").locator(".bar span:first-child").all_inner_texts()
    told = httpx.post(f"{live}/models/news/predict", json={"inputs": "I like you."}).json()
    assert labels == [one["label"] for one in told]

    cells = answered(tab, "vectors").locator("td").all_inner_texts()
    assert len(cells) == 9
    assert cells[0] == cells[4] == cells[8] == "1.00"

    ranked = answered(tab, "pairs").locator(".bar").count()
    assert ranked == 2

    text = tab.locator("#first")
    tab.locator("#model").select_option("tags")
    text.fill("the \N{PILE OF POO} team won")
    shown = answered_text(tab)
    found = httpx.post(f"{live}/models/tags", json={"inputs": text.input_value()}).json()
    marks = [mark.removesuffix(label) for mark, label in shown]
    assert marks == [text.input_value()[one["start"] : one["end"]] for one in found]

    timing = tab.locator("#legend").inner_text()
    assert "tokenizing" in timing
    assert "inference" in timing
    assert all(url.startswith(live) for url in asked if not url.startswith("data:")), asked
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def answered_text(tab: Any) -> list[tuple[str, str]]:
    """The marked entities of a text, each with its label."""
    tab.locator("#send").click()
    tab.locator("#answer").wait_for()
    marks = tab.locator("#shown mark").all()
    return [(mark.inner_text(), mark.locator("b").inner_text()) for mark in marks]


@with_browser
def test_what_the_server_refuses_is_shown(tab: Any, live: str) -> None:
    tab.goto(f"{live}/ui")
    tab.locator("#model option").nth(3).wait_for(state="attached")
    tab.locator("#model").select_option("pairs")
    tab.locator("#second").fill("")
    tab.locator("#send").click()
    said = tab.locator("#said.bad")
    said.wait_for()
    assert "no documents" in said.inner_text()


@with_browser
def test_the_charts_follow_the_metrics(tab: Any, live: str) -> None:
    tab.goto(f"{live}/ui")
    tab.locator("#charts .figure", has_text=re.compile(r"\d")).first.wait_for()
    assert tab.locator("#charts svg polyline").count() == 4


@with_browser
def test_a_key_is_asked_for_and_used(
    tab: Any, scripted_bundle: Path, listen: Callable[[Any], AbstractContextManager[str]]
) -> None:
    models = {"news": Service.open("news", scripted_bundle)}
    with listen(create(models, Access(api_key="secret"))) as address:
        tab.goto(f"{address}/ui")
        tab.locator("#key").fill("secret")
        tab.locator("#locked button").click()
        tab.locator("#locked").wait_for(state="hidden")
        tab.locator("#send").click()
        tab.locator("#answer").wait_for()
        assert tab.locator("#shown .bar").count() == 3


def test_the_page_needs_no_key_and_the_models_do(scripted_bundle: Path) -> None:
    models = {"news": Service.open("news", scripted_bundle)}
    with TestClient(create(models, Access(api_key="secret"))) as client:
        page = client.get("/ui")
        assert page.status_code == client.get("/ui/page.js").status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert client.get("/ui/models").status_code == 401
        listed = client.get("/ui/models", headers={"Authorization": "Bearer secret"}).json()
        assert [(one["name"], one["kind"]) for one in listed] == [("news", "labels")]


def test_an_answer_says_where_its_time_went(client: TestClient) -> None:
    header = client.post("/predict", json={"inputs": "a"}).headers["server-timing"]
    names = [part.split(";")[0] for part in header.split(", ")]
    assert names == ["tokenize", "queue", "inference", "stage"]
    assert header.endswith('stage;desc="1"')
    assert "server-timing" not in client.get("/info").headers
