"""A result -> the report about it, which every medium then shows in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hasten.records import Bench, Row, Tuning
from hasten.report import (
    command,
    conditions,
    content,
    content_bench,
    content_cascade,
    content_ladder,
    content_proof,
    figures,
    figures_bench,
    figures_cells,
    headline,
)
from hasten.report.document import Document, Figure, Section, Table

_WHOLE = (400, 10)
"""How many characters of a text, and how many flips of a candidate, a page shows."""

_FLIPS = "Texts that a candidate labels differently from the original, a few for each candidate."

Drawn = Mapping[str, tuple[Figure, ...]]


def of(result: Tuning | Bench, *, drawn: bool = True) -> Document:
    """The report about a result; without its figures where they would not be ``drawn``."""
    return _tuning(result, drawn) if isinstance(result, Tuning) else _bench(result, drawn)


def given(*found: Figure | None) -> tuple[Figure, ...]:
    """The figures that there are."""
    return tuple(figure for figure in found if figure)


def filled(*sections: Section) -> tuple[Section, ...]:
    """The sections that have something to show."""
    return tuple(section for section in sections if not section.empty)


def _tuning(raw: Tuning, drawn: bool) -> Document:
    tuning = content.comparable(raw)
    shown: Drawn = _tuning_figures(tuning) if drawn else {}
    flips = content_proof.flips(tuning.rows, *(_WHOLE if drawn else ()))
    beside = f" beside {tuning.model.name}" if tuning.student else ""
    return Document(
        title=f"{(tuning.student or tuning.model).name}, tuned{beside}",
        headline=headline.of(tuning),
        facts=tuple(content.facts(tuning)),
        notes=tuning.warnings,
        sections=filled(
            Section(
                "Speed against agreement",
                figures=shown.get("frontier", ()),
                tables=_there(content_ladder.ladder(tuning)),
                lines=content_ladder.steps(tuning),
            ),
            Section(
                "Cascades",
                figures=shown.get("cascades", ()),
                tables=_there(content_cascade.cascades(tuning)),
                lines=tuple(content_cascade.lines(tuning)),
            ),
            Section("Candidates", tables=(content.candidates(tuning),)),
            Section(
                "Batching",
                figures=shown.get("batching", ()),
                tables=_there(content.batching(tuning)),
            ),
            Section("Length and batch size", figures=shown.get("length", ())),
            Section("One text at a time", figures=shown.get("latency", ())),
            Section("The machine", figures=shown.get("machine", ())),
            Section("Flipped labels", (_FLIPS,), tables=_there(flips)),
            Section(
                "What this does not prove",
                tables=_there(content_proof.batchings(tuning.rows)),
                lines=content_proof.limits(tuning),
            ),
            Section("Not tried here", lines=content.unavailable(tuning.rows)),
        ),
        conditions=conditions.of(tuning),
        command=command.repeat(tuning),
    )


def _tuning_figures(tuning: Tuning) -> Drawn:
    rows, seed = _by_speed(tuning.rows), tuning.settings.seed
    formats = tuple(
        dict.fromkeys(content.family(row.candidate) for row in (*rows, tuning.baseline))
    )
    measured = {
        row.candidate: figures_cells.cells(row, (), seed)
        for row in rows
        if row.cost_table and row.runs
    }
    one_by_one = tuning.settings.objective == "latency"
    timed = [row for row in rows if row.runs]
    return {
        "frontier": given(
            figures.frontier(rows, tuning.baseline, formats, tuning.settings.max_flips),
            figures.margins(rows, formats),
        ),
        "cascades": given(content_cascade.curve(rows)),
        "batching": given(figures.orders(tuning.chosen, tuning.baseline.main, seed)),
        "length": figures_cells.over_length(measured, formats),
        "latency": given(figures.latency(timed, formats) if one_by_one else None),
        "machine": (
            *given(figures.ceiling(rows, tuning.ceilings, formats)),
            *figures.memory(figures.judged(rows), formats),
        ),
    }


def _bench(bench: Bench, drawn: bool) -> Document:
    shown: Drawn = _bench_figures(bench) if drawn else {}
    rows = [format_.row for format_ in bench.formats]
    return Document(
        title=f"{bench.model.name}, measured",
        headline=content_bench.headline(bench),
        facts=tuple(content_bench.facts(bench)),
        notes=(*bench.model.notices, *content_bench.missing(bench), *content_bench.refused(bench)),
        sections=filled(
            Section(
                "Batch size",
                figures=shown.get("batch-size", ()),
                tables=_there(content_bench.batch_sizes(bench)),
            ),
            Section("Length", figures=shown.get("length", ())),
            Section(
                "Order of the texts",
                figures=shown.get("order", ()),
                tables=content_bench.orders(bench),
            ),
            Section(
                "One text at a time",
                figures=shown.get("latency", ()),
                tables=_there(content_bench.latency(bench)),
            ),
            Section("Speed against agreement", figures=shown.get("frontier", ())),
            Section("The machine", figures=shown.get("machine", ())),
            Section("Candidates", tables=(content_bench.candidates(bench),)),
            Section(
                "Flipped labels",
                (_FLIPS,),
                tables=(
                    *_there(content_proof.flips(rows, *(_WHOLE if drawn else ()))),
                    *_there(content_proof.batchings(rows)),
                ),
            ),
            Section("Not tried here", lines=content.unavailable(bench.others)),
        ),
        conditions=conditions.of(bench),
        command=bench.command,
    )


def _bench_figures(bench: Bench) -> Drawn:
    rows, formats = [f.row for f in bench.formats], figures_bench.families(bench)
    singles = [format_.single for format_ in bench.formats if format_.single]
    return {
        "batch-size": figures_bench.batch_sizes(bench),
        "length": figures_bench.over_length(bench),
        "order": figures_bench.orders(bench),
        "latency": given(figures.latency(singles, formats)),
        "frontier": given(
            figures.frontier(rows, bench.baseline, formats, bench.settings.max_flips)
        ),
        "machine": (
            *given(figures.ceiling(rows, bench.ceilings, formats)),
            *figures.memory(rows, formats),
        ),
    }


def _by_speed(rows: Iterable[Row]) -> list[Row]:
    known = [row for row in rows if row.status != "unavailable"]
    return sorted(known, key=content.rate, reverse=True)


def _there(table: Table | None) -> tuple[Table, ...]:
    return (table,) if table else ()
