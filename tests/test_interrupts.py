"""Ctrl-C while a tune runs, and what the command line makes of it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hasten import api, cli
from hasten.cli.display import Display
from hasten.cli.interrupts import accepting
from hasten.demo import assets as demo
from hasten.errors import ChoiceError, EndedEarly
from hasten.inputs import corpus
from hasten.records import Decided, Standing
from tests.scripted import Lab
from tests.tiny import save_tiny, tiny_texts


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Standing:
    lab = Lab(tmp_path_factory.mktemp("lab"), {"*": {}}, texts=30, precisions=("fp32",))
    lab.tune()
    (event,) = (event for event in lab.events if isinstance(event, Standing))
    return event


def press_ctrl_c() -> None:
    """Call what SIGINT would: a real signal that nobody catches would end the test process."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread alone")
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler)
    handler(signal.SIGINT, None)


def test_ctrl_c_interrupts_while_nothing_stands() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, accepting(Display()):
        press_ctrl_c()
    assert not isinstance(caught.value, EndedEarly)


def test_ctrl_c_asks_once_and_then_accepts_what_stands(
    standing: Standing, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display()
    before = signal.getsignal(signal.SIGINT)
    display(standing)
    with accepting(display):
        press_ctrl_c()
        told = capsys.readouterr().err
        with pytest.raises(EndedEarly):
            press_ctrl_c()
    assert "Press Ctrl-C again" in told
    assert standing.tuning.plan.candidate.label in told
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_is_offered_while_the_result_is_saved(
    standing: Standing, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display()
    display(standing)
    with accepting(display):
        press_ctrl_c()  # asks to end the search, which ends by itself before the second one
        display(Decided(standing.tuning))
        capsys.readouterr()
        press_ctrl_c()
        assert "The search has ended; its result is being saved." in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt) as caught:
            press_ctrl_c()
    assert not isinstance(caught.value, EndedEarly)


def test_accepting_needs_an_interrupted_run(tmp_path: Path) -> None:
    import hasten

    model = save_tiny(tmp_path / "model", "bert")
    with pytest.raises(ChoiceError, match="there is none in"):
        hasten.tune(model, texts=tiny_texts(5), output=tmp_path / "b", accept_now=True)
    with pytest.raises(ChoiceError, match="--restart throws it away"):
        hasten.tune(
            model, texts=tiny_texts(5), output=tmp_path / "b", accept_now=True, restart=True
        )
    assert not (tmp_path / "b.tuning").exists()


def test_an_interrupted_demo_can_be_accepted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def tune(*_: object, accept_now: bool, **__: object) -> None:
        seen.append(accept_now)
        raise KeyboardInterrupt

    assets = SimpleNamespace(
        model_folder="m", texts_file="t", article_accuracy=0.9, sentence_accuracy=0.8
    )
    monkeypatch.setattr(demo, "prepare", lambda *_: assets)
    monkeypatch.setattr(corpus, "read", lambda *_, **__: corpus.Corpus(("a",), None, "t"))
    monkeypatch.setattr(api, "tune", tune)
    for options in (["--accept-now"], []):
        CliRunner().invoke(cli.app, ["demo", *options])
    assert seen == [True, False]
