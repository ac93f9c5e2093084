"""What a report says of a student beside its original."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hasten.plain import from_json, to_json
from hasten.records import Tuning
from hasten.report import (
    command,
    comparison,
    compose,
    conditions,
    content_ladder,
    headline,
    terminal,
)
from hasten.report.media import markdown
from tests.scripted import INFO, Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
SMALL = replace(INFO, name="small", parameter_count=400_000)
SCRIPT = {
    "*": SLOW,
    "fake-bf16-cpu-2x1": {"call_s": 3e-3, "token_s": 6e-5},
    "student-fake-fp32-cpu-2x1": {"call_s": 2e-3, "token_s": 4e-5},
    "student-fake-bf16-cpu-2x1": {"call_s": 1e-3, "token_s": 2e-5, "shift": 0.1},
}


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    return tuned(tmp_path_factory.mktemp("lab"), max_flips=0.02)


def tuned(folder: Path, **settings: Any) -> Tuning:
    usual: dict[str, Any] = {"precisions": ("fp32", "bf16"), "batch_sizes": (1, 8)}
    return Lab(folder, SCRIPT, student=SMALL, **{**usual, **settings}).tune()


def test_the_ladder_goes_from_the_baseline_to_the_students_last_precision(tuning: Tuning) -> None:
    table = content_ladder.ladder(tuning)
    assert table is not None
    assert [row[:2] for row in table.rows] == [
        ("Fake fp32 1x2, batch 1", "baseline"),
        ("Fake fp32 1x2", "finalist"),
        ("Fake bf16 2x1", "finalist"),
        ("student Fake fp32 2x1", "finalist"),
        ("student Fake bf16 2x1", "chosen"),
    ]
    speeds = [float(row[2].split()[0]) for row in table.rows]
    assert speeds == sorted(speeds)
    assert table.rows[-1][-1] == "1/60 ≤10.9 %"
    assert table.title == "scripted and its student small"


def test_a_precision_that_was_refused_keeps_its_rung(tmp_path: Path) -> None:
    table = content_ladder.ladder(tuned(tmp_path))
    assert table is not None
    name, outcome, *_, changed = table.rows[-1]
    assert (name, outcome) == ("student Fake bf16 2x1", "refused")
    assert changed.startswith("1/60")


def test_steps_lead_from_the_original_to_its_student_and_sum_up(tuning: Tuning) -> None:
    steps = content_ladder.steps(tuning)
    pairs = [(s.split(" is ")[0], s.split(" as fast as ")[1].split(" and ")[0]) for s in steps]
    assert pairs == [
        ("Fake bf16 2x1", "Fake fp32 1x2"),
        ("student Fake fp32 2x1", "Fake fp32 1x2"),
        ("student Fake bf16 2x1", "student Fake fp32 2x1"),
        ("student Fake bf16 2x1", "Fake fp32 1x2"),
    ]
    assert steps[-1].endswith("and flips 1 of 60 labels (at most 10.9 %).")


def test_the_head_names_both_models_with_their_weights(tuning: Tuning) -> None:
    first, *others = headline.of(tuning)
    assert first.startswith("Fastest: the student in Fake bf16 (2 streams x 1 thread,")
    assert "x faster than the original in Fake one text at a time" in first
    named = next(sentence for sentence in others if sentence.startswith("The original is"))
    assert named == (
        "The original is scripted, Scripted, 0.001 M weights; "
        "the student is small, Scripted, 0.4 M weights."
    )
    assert conditions.of(tuning)[:2] == (
        "Original: scripted, Scripted, 0.001 M weights",
        "Student: small, Scripted, 0.4 M weights",
    )
    assert compose.of(tuning, drawn=False).title == "small, tuned beside scripted"


def test_every_medium_shows_the_ladder(tuning: Tuning) -> None:
    document = compose.of(tuning, drawn=False)
    out = io.StringIO()
    Console(file=out, width=160).print(terminal.render(document))
    for told in (markdown.render(document), out.getvalue()):
        assert "scripted and its student small" in told
        assert "student Fake bf16 2x1" in told


def test_marks_of_a_student_have_series_of_their_own(tuning: Tuning) -> None:
    figures = {figure.name: figure for figure in compose.of(tuning).figures}
    series = {str(point["series"]) for point in figures["frontier"].points}
    assert series == {"Fake fp32", "Fake bf16", "student Fake fp32", "student Fake bf16"}
    assert series <= set(figures["frontier"].series)


def test_the_command_and_a_comparison_know_of_both(tuning: Tuning) -> None:
    assert (command.repeat(tuning) or "").startswith("hasten tune STUDENT --reference MODEL --data")
    alone = replace(tuning, student=None)
    sides = comparison.Side("one", alone), comparison.Side("two", tuning)
    assert comparison.differences(*sides) == (
        "student: one none; two small, Scripted, 0.4 M weights",
    )


def test_what_was_stored_before_there_were_students_is_read(tuning: Tuning) -> None:
    stored = to_json(replace(tuning, student=None))
    del stored["student"]
    for model in (stored["model"],):
        del model["output_width"]
    for row in (*stored["rows"], stored["baseline"], stored["plan"]):
        del row["candidate"]["model"]
    found = from_json(Tuning, stored)
    assert {row.candidate.model for row in found.rows} == {"original"}
    assert found.student is None


def test_without_a_student_there_is_no_ladder(tmp_path: Path) -> None:
    alone = Lab(tmp_path, {"*": SLOW}, precisions=("fp32",)).tune()
    assert content_ladder.ladder(alone) is None
    document = compose.of(alone, drawn=False)
    assert document.title == "scripted, tuned"
    assert "student" not in markdown.render(document).lower()
