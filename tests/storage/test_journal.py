"""Results survive what happens to the process that writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hasten.engines.fake import VirtualClock
from hasten.errors import EngineError, ResumeError, StorageError
from hasten.storage.journal import Journal

HEADER = {"model": "m", "texts": "t"}


def journal(path: Path) -> Journal:
    return Journal(path, HEADER)


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    first = journal(tmp_path / "results.jsonl")
    measured: Any = first.once("a", lambda: (1, 2))
    assert measured == [1, 2]  # JSON has no tuples
    again = journal(tmp_path / "results.jsonl")
    assert again.resumed
    assert again.once("a", lambda: pytest.fail("measured twice")) == [1, 2]


def test_failures_are_results_too(tmp_path: Path) -> None:
    def fail() -> None:
        raise EngineError("broken", fix="mend it")

    with pytest.raises(EngineError):
        journal(tmp_path / "results.jsonl").once("a", fail)
    with pytest.raises(EngineError, match="broken") as caught:
        journal(tmp_path / "results.jsonl").once("a", lambda: 1)
    assert caught.value.fix == "mend it"


def test_bugs_are_not_results(tmp_path: Path) -> None:
    def bug() -> None:
        raise KeyError("oops")

    with pytest.raises(KeyError):
        journal(tmp_path / "results.jsonl").once("a", bug)
    assert "a" not in journal(tmp_path / "results.jsonl")


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.jsonl"
    torn = journal(path)
    torn.once("a", lambda: 1)
    torn.once("b", lambda: 2)
    path.write_bytes(path.read_bytes()[:-cut])
    resumed = journal(path)
    assert "a" in resumed
    assert "b" not in resumed
    resumed.once("b", lambda: 3)
    assert journal(path).once("b", lambda: 4) == 3


def test_another_runs_journal_is_refused_with_the_difference(tmp_path: Path) -> None:
    journal(tmp_path / "results.jsonl").once("a", lambda: 1)
    with pytest.raises(ResumeError, match="texts was t, is other") as caught:
        Journal(tmp_path / "results.jsonl", {**HEADER, "texts": "other"})
    assert "--restart" in (caught.value.fix or "")


def test_the_time_between_two_starts_is_not_counted(tmp_path: Path) -> None:
    clock = VirtualClock()
    first = Journal(tmp_path / "results.jsonl", HEADER, clock)
    clock.advance(5.0)
    first.once("a", lambda: 1)
    clock.advance(1000.0)
    resumed = Journal(tmp_path / "results.jsonl", HEADER, clock)
    clock.advance(2.0)
    assert resumed.spent_s == pytest.approx(7.0)


def test_a_full_disk_is_told_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = journal(tmp_path / "results.jsonl")

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", no_space)
    with pytest.raises(StorageError, match=r"results\.jsonl: No space left"):
        full.once("a", lambda: 1)


def test_what_differs_is_told_and_digests_are_not(tmp_path: Path) -> None:
    first = {"texts": "a" * 64, "seed": 1, "versions": {"torch": "2.6", "onnx": "1.17"}}
    Journal(tmp_path / "results.jsonl", first).once("a", lambda: 1)
    other = {"texts": "b" * 64, "seed": 2, "versions": {"torch": "2.7", "onnx": "1.17"}}
    with pytest.raises(ResumeError) as caught:
        Journal(tmp_path / "results.jsonl", other)
    assert "(seed was 1, is 2; other texts; torch was 2.6, is 2.7)" in caught.value.message


def test_a_run_that_measured_nothing_refuses_no_other(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Journal(path, {"texts": "wrong labels"})
    corrected = Journal(path, {"texts": "corrected"})
    corrected.once("a", lambda: 1)
    assert "a" in Journal(path, {"texts": "corrected"})
