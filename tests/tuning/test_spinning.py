"""Spinning threads: a candidate of its own where single texts are answered on idle cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.records import Candidate, Tuning
from hasten.tuning import choose
from tests.scripted import Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 3e-3, "token_s": 6e-5}
SPIN = "fake-fp32-cpu-1x2-spin"


def lab(folder: Path, monkeypatch: pytest.MonkeyPatch, objective: str) -> Lab:
    tried = Lab(
        folder, {"*": SLOW, SPIN: FAST}, texts=30, objective=objective, precisions=("fp32",)
    )
    monkeypatch.setattr(tried.engine, "can_spin", True, raising=False)
    return tried


def labels(tuning: Tuning) -> set[str]:
    return {row.candidate.label for row in tuning.rows if row.candidate.device == "cpu"}


def test_one_text_at_a_time_it_may_win_and_is_told_to_need_idle_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = lab(tmp_path, monkeypatch, "latency").tune()
    assert labels(tuning) == {"fake-fp32-cpu-1x2", SPIN}
    assert tuning.plan.candidate.spinning
    assert any("needs 2 cores that are idle" in warning for warning in tuning.warnings)


def test_it_is_not_tried_for_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SPIN not in labels(lab(tmp_path, monkeypatch, "throughput").tune())


def test_the_same_answers_come_from_the_same_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = lab(tmp_path, monkeypatch, "latency").context()
    sleeping = Candidate("fake", "fp32", "cpu", 2)
    spinning = Candidate("fake", "fp32", "cpu", 2, spinning=True)
    assert context.artifact(sleeping) == context.artifact(spinning)
    assert sleeping.label != spinning.label
    # Of two that are tied, the one that leaves the cores to others.
    engines = context.engines
    assert choose.simplicity(sleeping, engines) < choose.simplicity(spinning, engines)
