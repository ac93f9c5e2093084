"""Gain and cost of each step away from the original: a lower precision, or a student."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hasten.judging.stats import speed_up
from hasten.percent import percent
from hasten.records import MODELS, PRECISIONS, Row, Tuning
from hasten.report import content, figures
from hasten.report.document import Table

_RUN = ("chosen", "finalist")


def steps(tuning: Tuning) -> tuple[str, ...]:
    """What each step to a less exact precision, or to cut texts, gains and costs.

    A student's fp32 is a step from the original's, and its last precision is compared with that
    as well: there stands what both steps do together.
    """
    found = _fastest(row for row in tuning.rows if row.runs and row.status in _RUN)
    whole = [row for row in found if not row.candidate.max_tokens]
    ladders = [[row for row in whole if row.candidate.model == model] for model in MODELS]
    original, student = ladders
    pairs = list(pairwise(original))
    if original and student:
        pairs.append((original[0], student[0]))
    pairs += pairwise(student)
    if original and len(student) > 1:
        pairs.append((original[0], student[-1]))
    pairs += [(row, cut) for cut in found for row in whole if _is_cut(cut, row)]
    return tuple(_step(*pair, seed=tuning.settings.seed) for pair in pairs)


def ladder(tuning: Tuning) -> Table | None:
    """The baseline and the best of every precision of both models; None without a student.

    Of a precision that was refused altogether, its fastest, with the answers that it changed.
    """
    if tuning.student is None:
        return None
    rate = "p50 ms" if tuning.settings.objective == "latency" else "texts/s"
    baseline = tuning.baseline
    return Table(
        f"{tuning.model.name} and its student {tuning.student.name}",
        ("candidate", "outcome", "speed-up (95 %)", rate, "flipped"),
        (
            (
                f"{content.short(baseline.candidate)}, batch 1",
                "baseline",
                "1.00",
                content.measured(tuning, baseline)[1],
                "",
            ),
            *(_rung(tuning, row) for row in _rungs(tuning)),
        ),
        numbers_from=2,
        numbers_to=4,
    )


def _rung(tuning: Tuning, row: Row) -> tuple[str, ...]:
    ratio, rate, _, changed, *_ = content.measured(tuning, row)
    return (content.short(row.candidate), row.status, ratio, rate, changed)


def _rungs(tuning: Tuning) -> list[Row]:
    """The best of each variant: one that was run, or else refused, or else only timed."""
    tried = [row for row in tuning.rows if row.status not in ("unavailable", "failed")]
    refused = [row for row in tried if row.status == "refused"]
    kinds = (
        [row for row in tried if row.runs and row.status in _RUN],
        figures.judged(refused),  # by all the texts, and not only at the first look
        refused,
        [row for row in tried if row.screen_tokens_per_s],
    )
    best: dict[str, Row] = {}
    for kind in kinds:
        for row in _fastest(kind):
            best.setdefault(row.candidate.variant, row)
    return sorted(best.values(), key=_place)


def _fastest(rows: Iterable[Row]) -> list[Row]:
    """The fastest of each variant: the original's first, the most exact first."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=content.rate, reverse=True):
        best.setdefault(row.candidate.variant, row)
    return sorted(best.values(), key=_place)


def _place(row: Row) -> tuple[int, bool, int]:
    candidate = row.candidate
    cut = candidate.max_tokens is not None
    return MODELS.index(candidate.model), cut, PRECISIONS.index(candidate.precision)


def _is_cut(cut: Row, whole: Row) -> bool:
    """Whether ``cut`` is of the same variant as ``whole`` and reads less."""
    return cut is not whole and cut.candidate.untruncated.variant == whole.candidate.variant


def _step(before: Row, after: Row, seed: int) -> str:
    assert after.main
    ratio = speed_up(before.main, after.main, seed=seed)
    times = f"{content.interval(ratio)} times as fast as" if ratio else "not compared with"
    sentence = f"{content.short(after.candidate)} is {times} {content.short(before.candidate)}"
    parity = after.parity
    if parity is None or not parity.decisions:
        return f"{sentence}."
    return (
        f"{sentence} and flips {parity.flips} of {content.count(parity.compared, 'label')} "
        f"(at most {percent(parity.flip_upper_bound)})."
    )
