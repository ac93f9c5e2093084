"""What a report says of cascades: who answers what, the promise, and the curve it was found on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from hasten.percent import percent
from hasten.records import Candidate, Row, Tuning
from hasten.report import content
from hasten.report.document import Axis, Figure, Panel, Point, Table

_SHOWN = 5
"""Deferred texts that are shown."""

_CHARACTERS = 80


def rest(tuning: Tuning) -> str:
    """Who answers the deferred texts: ``, and the original for 6.1 % of the texts``."""
    cascade = tuning.chosen.cascade
    reached = cascade.proof.chosen.deferred if cascade and cascade.proof.chosen else ()
    answered = [share - further for share, further in pairwise((*reached, 0.0))]
    further = zip(tuning.further, answered, strict=False)
    return "".join(
        f", and {_name(stage.plan.candidate)} for {percent(share)} of the texts"
        for stage, share in further
    )


def _name(candidate: Candidate) -> str:
    return "the original" if candidate.exact else content.family(candidate)


def promise(tuning: Tuning) -> Iterator[str]:
    """What the chosen cascade promises, if one was chosen."""
    cascade = tuning.chosen.cascade
    if cascade is None or cascade.proof.chosen is None:
        return
    step, proof = cascade.proof.chosen, cascade.proof
    rule = tuning.further[0].takes
    cut = f" ({rule.below_cut:.3g} where it cuts the text)" if rule.below_cut else ""
    yield (
        f"Its first stage answers the texts for which its margin is at least {rule.below:.3g}"
        f"{cut}. Of {content.count(proof.compared, 'different text')} "
        f"{step.flips} got another answer than the original's, in the worst of the tested "
        f"batchings; with 95 % confidence at most {percent(proof.flip_upper_bound)} of "
        f"all texts do."
    )


def cascades(tuning: Tuning) -> Table | None:
    """Every cascade that was tested; None where none was."""
    rows = [row for row in tuning.rows if row.cascade]
    if not rows:
        return None
    return Table(
        f"Thresholds tested for {percent(tuning.settings.max_flips)} of flips",
        (
            "cascade",
            "outcome",
            "deferred",
            "flips",
            "at most",
            "predicted texts/s",
            "texts/s",
            "note",
        ),
        tuple(_cells(tuning, row) for row in rows),
        numbers_from=2,
        numbers_to=7,
    )


def _cells(tuning: Tuning, row: Row) -> tuple[str, ...]:
    cascade = row.cascade
    assert cascade
    step, proof = cascade.proof.chosen, cascade.proof
    predicted = content.number(cascade.texts / cascade.predicted_s) if cascade.predicted_s else ""
    return (
        content.short(row.candidate),
        row.status,
        percent(step.deferred[0]) if step else "",
        f"{step.flips}/{proof.compared}" if step else "",
        percent(proof.flip_upper_bound) if step else "",
        predicted,
        content.number(row.main.texts_per_s) if row.main else "",
        content.in_words(row.reason or "", tuning.rows),
    )


def lines(tuning: Tuning) -> Iterator[str]:
    """Why none was tried, or which texts the chosen one defers."""
    lossy = [row for row in tuning.rows if not row.candidate.exact]
    if tuning.no_cascade and any(row.status != "unavailable" for row in lossy):
        yield f"No cascade was tried: {tuning.no_cascade}."
    cascade = tuning.chosen.cascade
    if cascade and cascade.examples:
        shown = "; ".join(f'"{_shortened(text)}"' for text in cascade.examples[:_SHOWN])
        yield f"Deferred texts, those first of which the first stage is least sure: {shown}."


def curve(rows: Iterable[Row]) -> Figure | None:
    """Flips and predicted speed over the threshold of every cascade; None where there is none."""
    points = [point for row in rows if row.cascade and row.cascade.alone_s for point in _curve(row)]
    if not points:
        return None
    series = tuple(dict.fromkeys(str(point["series"]) for point in points))
    return Figure(
        "cascades",
        "Flips and speed over the threshold",
        "Each line is a cascade, from cautious thresholds on the left to none on the right. The "
        "symbols are the thresholds that were chosen.",
        "line",
        Axis("texts per second, predicted"),
        Axis("flipped labels", numbers="percent"),
        "format",
        series,
        (Panel("", tuple(points)),),
    )


def _curve(row: Row) -> Iterator[Point]:
    cascade = row.cascade
    assert cascade
    proof = cascade.proof
    for step in proof.steps:
        point: dict[str, str | float | bool] = {
            "x": cascade.speed(step),
            "y": step.flips / proof.compared,
            "series": content.family(row.candidate),
            "Cascade": content.short(row.candidate),
            "Threshold": f"{step.thresholds[0]:.3g}",
            "Deferred": percent(step.deferred[0]),
            "Flips": f"{step.flips} of {proof.compared}",
        }
        yield point if step is proof.chosen else {**point, "bare": True}


def _shortened(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"
