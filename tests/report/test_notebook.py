"""Progress and results in a notebook: a stand-in shell, and a real kernel where there is one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.records import Bench, Event, Progress, Tuning
from hasten.report import notebook
from tests.report.results import NASTY, tuned


class Screen:
    """Stands in for ``IPython.display``; keeps what was shown, with the place of each."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.HTML = str

    def display(self, value: str, *, display_id: bool) -> Screen:
        assert display_id
        self.shown.append(f"new {value}")
        return self

    def update(self, value: str) -> None:
        self.shown.append(value)


class Formatter(dict[type, Any]):
    def for_type(self, kind: type, function: Any) -> None:
        self[kind] = function


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    formatters = {"text/html": Formatter(), "text/plain": Formatter()}
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters=formatters), kernel=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", Screen())
    return shell


def event(message: str, left_s: float | None = 61.0) -> Progress:
    return Progress("finals", message, 0.5, left_s)


def ignored(_: Event) -> None:
    raise AssertionError


def test_one_bar_is_redrawn_in_place_and_removed(shell: SimpleNamespace) -> None:
    with notebook.progress(None, ignored) as report:
        report(event("round <1>"))
        report(event("too soon to be drawn"))
    first, *others = sys.modules["IPython.display"].shown
    assert first.startswith('new <progress max="1" value="0.500"')
    assert "finals: round &lt;1&gt;, 1:01 left" in first
    assert others == [""]


def test_it_is_redrawn_when_some_time_has_passed() -> None:
    screen, now = Screen(), iter([0.0, 1.0, 1.0])
    bar = notebook.Bar(screen, lambda: next(now))
    bar(event("one"))
    bar(event("two", left_s=None))
    assert [("two" in shown, "value=" in shown) for shown in screen.shown] == [
        (False, True),
        (True, False),
    ]


def test_a_callback_of_ones_own_is_used_instead(shell: SimpleNamespace) -> None:
    seen: list[Event] = []
    with notebook.progress(seen.append, ignored) as report:
        report(event("x"))
    assert len(seen) == 1
    assert sys.modules["IPython.display"].shown == []


def test_outside_notebooks_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    with notebook.progress(None, ignored) as report:
        assert report is ignored


def test_results_show_themselves_as_the_report(
    shell: SimpleNamespace, tmp_path: Path, bench: Bench
) -> None:
    with notebook.progress(None, ignored):
        pass
    tuning = tuned(tmp_path)
    shown = shell.display_formatter.formatters["text/html"][Tuning](tuning)
    assert shown.startswith("<iframe srcdoc=")
    assert 'sandbox=""' in shown
    assert "Fastest: Fake bf16" in shown
    assert NASTY not in shown
    assert "<script" not in shown
    printed: list[str] = []
    printer = SimpleNamespace(text=printed.append)
    shell.display_formatter.formatters["text/plain"][Bench](bench, printer, False)
    assert printed[0].startswith("Fastest in arrival order: Fake bf16")


SETUP = """
from pathlib import Path
from hasten.report.notebook import progress
from tests.report.results import SCRIPT
from tests.scripted import Lab
"""
TUNE = """
lab = Lab(Path("lab"), SCRIPT)
with progress(None, print) as report:
    lab.events = type("Events", (), {"append": staticmethod(report)})()
    tuning = lab.tune()
tuning
"""


def test_a_real_kernel_shows_bar_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cells = [nbformat.v4.new_code_cell(cell) for cell in (SETUP, TUNE)]
    ran = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(
        ran, timeout=60, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    bar, result = ran.cells[1].outputs
    assert bar.data["text/html"] == ""  # it was drawn in place, and removed at the end
    assert "Fastest: Fake bf16" in result.data["text/html"]
    assert result.data["text/plain"].startswith("Fastest: Fake bf16")
