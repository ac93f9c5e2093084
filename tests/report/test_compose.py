"""Whole reports: what they say first, and what they say of results that are not whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hasten.records import Bench, Settings, Strategy
from hasten.report import command, comparison, compose
from hasten.report.media import markdown
from tests.report.results import FAST, SLOW, benched, tuned


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return benched(tmp_path_factory.mktemp("bench"))


def test_a_bench_says_what_is_fastest_and_by_how_much(bench: Bench) -> None:
    document = compose.of(bench, drawn=False)
    assert document.headline[0].startswith("Fastest in arrival order: Fake bf16 (2 streams x 1")
    assert "x faster than Fake one text at a time" in document.headline[0]
    assert document.notes == ()
    assert document.command == "hasten bench model --data 'a b.csv'"
    titles = [section.title for section in document.sections]
    assert titles[:2] == ["Batch size", "Order of the texts"]
    assert "Candidates" in titles


def test_a_format_with_other_answers_is_never_the_answer(bench: Bench) -> None:
    first, *others = bench.formats
    refused = replace(first, refusal="3 of 60 labels changed")
    wrong = replace(bench, formats=(refused, *others))
    document = compose.of(wrong, drawn=False)
    assert "Fake bf16" not in " ".join(document.headline)
    (note,) = document.notes
    assert note.startswith("Fake bf16")
    assert "3 of 60 labels changed" in note


def test_a_run_that_was_interrupted_says_what_is_missing(bench: Bench) -> None:
    first, *others = bench.formats
    done = first.row.runs[0]
    once = replace(done.total, samples_s=done.total.samples_s[:1])
    part = replace(done, total=once, rounds=done.rounds[:1])
    half = replace(first, row=replace(first.row, runs=(part,)), single=None)
    rest = tuple(replace(f, row=replace(f.row, runs=()), single=None) for f in others)
    partial = replace(bench, complete=False, formats=(half, *rest))
    notes = " ".join(compose.of(partial).notes)
    assert "not finished" in notes
    assert "Not measured yet: order, latency." in notes
    assert "arrival 1: 1 of 3 runs" in notes
    nothing = replace(
        partial,
        formats=(),
        baseline=replace(bench.baseline, runs=(), ratio_to_baseline=None),
    )
    assert "Nothing has been measured" in compose.of(nothing).headline[0]


def test_latency_alone_has_its_answer(tmp_path: Path) -> None:
    document = compose.of(benched(tmp_path, "latency"), drawn=False)
    assert document.headline[0].startswith("Fastest one text at a time: Fake bf16")


def test_a_tunings_command_names_what_was_not_usual() -> None:
    asked = Settings(budget_s=90, strict=True, engines=("a", "b"), batch_sizes=(1, 8), seed=4)
    assert command.again(asked) == (
        "hasten tune MODEL --data FILE -o BUNDLE --budget 90s --engines a,b --batch-sizes 1,8 "
        "--seed 4 --strict"
    )
    assert command.again(Settings()) == "hasten tune MODEL --data FILE -o BUNDLE"


def test_markdown_shows_the_pictures_that_were_drawn(bench: Bench) -> None:
    document = compose.of(bench)
    text = markdown.render(document, {"latency": "report-latency.png"})
    assert "![Latency of single texts](report-latency.png)" in text
    assert "report-memory" not in text
    assert "    hasten bench model --data 'a b.csv'" in text
    assert "## Batch size\n" in text


# --- two results ------------------------------------------------------------------------------


def test_what_differs_comes_first_and_ratios_are_of_the_same_runs(
    bench: Bench, tmp_path: Path
) -> None:
    quicker = {"*": {"call_s": 2.5e-3, "token_s": 5e-5}, "fake-bf16-cpu-2x1": FAST}
    later = replace(
        benched(tmp_path, script=quicker, rounds=4), versions={"fake": "2"}, complete=False
    )
    a, b = comparison.Side("old", bench), comparison.Side("new", later)
    document = comparison.of(a, b)
    first, *_ = document.sections
    assert first.title == "What differs"
    assert set(first.lines) == {"fake: old none; new 2", "setting rounds: old 3; new 4"}
    found = {pair.key: pair.ratio for pair in comparison.pairs(a, b)}
    ratio = found["Fake fp32", "arrival", "8"]
    assert ratio is not None
    assert ratio.estimate == pytest.approx(0.5, rel=0.1)
    assert "No significant difference" in document.headline[0]  # the fastest is as fast as it was
    assert "new was not finished" in document.notes[0]
    assert {f.name for f in document.figures} == {"ratios", "batch-size-both"}
    assert "A is old, B is new" in markdown.render(document)


def test_a_bench_and_a_bundle_share_their_baseline(bench: Bench, tmp_path: Path) -> None:
    slow = tuned(tmp_path, {"*": SLOW}, batch_sizes=(1, 4, 8))
    document = comparison.of(comparison.Side("bench", bench), comparison.Side("bundle", slow))
    assert "bundle is 0." in document.headline[0]
    (runs,) = next(s for s in document.sections if s.title == "The same runs").tables
    assert runs.rows[0][:3] == ("baseline", "arrival", "1")
    assert any(section.title == "Only in one of them" for section in document.sections)


def test_the_same_result_twice_differs_in_nothing(bench: Bench) -> None:
    document = comparison.of(comparison.Side("a", bench), comparison.Side("b", bench))
    assert document.sections[0].lines[0].startswith("Nothing: model, texts, machine")


def test_there_may_be_nothing_to_compare(bench: Bench) -> None:
    empty = replace(bench, formats=(), baseline=replace(bench.baseline, runs=()))
    document = comparison.of(comparison.Side("a", bench), comparison.Side("b", empty))
    assert document.headline == ("There is nothing to compare: b has no measured end-to-end run.",)
    assert Strategy("arrival", 1).label in str(document.sections[-1])
