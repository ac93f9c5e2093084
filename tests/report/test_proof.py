"""What the report says of the proof: for how many its bound holds, and what it leaves open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hasten.records import BatchingParity, Parity, Tuning
from hasten.report import compose, content_proof
from tests.report.results import tuned

THREE = (
    BatchingParity("plan", 12, 0, 0.5),
    BatchingParity("single", 14, 0, 0.6),
    BatchingParity("random", 13, 0, 0.7),
)
PARITY = Parity(700, 0.7, 0.1, 17, 0, 0.0441, 0, decisions=True, tries=9, batchings=THREE)


def with_winner(tuning: Tuning, parity: Parity) -> Tuning:
    rows = (replace(r, parity=parity) if r.status == "chosen" else r for r in tuning.rows)
    return replace(tuning, rows=tuple(rows))


def test_the_answer_gives_the_corrected_bound_and_says_for_how_many_it_holds(
    tmp_path: Path,
) -> None:
    document = compose.of(with_winner(tuned(tmp_path), PARITY))
    told = " ".join(document.headline)
    assert "17 of 700 labels flipped: at most 4.41 % with 95 % confidence" in told
    assert "corrected for 9 candidates" in told
    assert "one text at a time (14 flips)" in told


def test_what_is_open_names_other_batches_only_where_answers_depend_on_them(
    tmp_path: Path,
) -> None:
    for parity, depends in ((PARITY, True), (replace(PARITY, batchings=()), False)):
        document = compose.of(with_winner(tuned(tmp_path), parity))
        section = next(s for s in document.sections if s.title == "What this does not prove")
        assert any("other batches" in line for line in section.lines) == depends
        assert bool(section.tables) == depends


def test_flips_are_shown_batching_by_batching(tmp_path: Path) -> None:
    tuning = with_winner(tuned(tmp_path), PARITY)
    table = content_proof.batchings(tuning.rows)
    assert table is not None
    assert [row[2:] for row in table.rows] == [("12", "14", "13", "17")]
