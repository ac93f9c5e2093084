"""A result on one screen: the answer, the rows that matter, and where the rest is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hasten.records import Bench, Row, Tuning
from hasten.report import content, content_bench, content_proof, headline
from hasten.report.document import Document, Section, Table
from hasten.report.own_terms import kept

_MOST_ROWS = 8
_LAYOUTS = "2x1: 2 streams x 1 thread"

Roles = list[tuple[str, Row]]


def of(result: Tuning | Bench) -> Document:
    """The short report about a result: about 20 lines of 80 characters."""
    return _tuning(content.comparable(result)) if isinstance(result, Tuning) else _bench(result)


def shortened(document: Document) -> Document:
    """Any other report on one screen: its answer, and the first rows of its first table."""
    tables = [table for section in document.sections for table in section.tables]
    lines = [line for section in document.sections for line in section.lines]
    shown = tuple(replace(table, rows=table.rows[:_MOST_ROWS]) for table in tables[:1])
    left = max(0, len(lines) - 4) + sum(len(table.rows) for table in tables)
    left -= sum(len(table.rows) for table in shown)
    more = (f"{left} more lines: --verbose",) if left else ()
    return replace(
        document,
        notes=_brief(document.notes),
        sections=(Section("", tables=shown, lines=(*lines[:4], *more)),),
    )


def _tuning(tuning: Tuning) -> Document:
    chosen, parity = tuning.chosen, tuning.chosen.parity
    cuts = content_proof.reading(chosen)
    sentences = [headline.first(tuning), *headline.speeds(tuning), *cuts]
    if parity:
        sentences.append(_answers(chosen))
    return Document(
        title=tuning.model.name,
        headline=(*sentences, *_doubt(tuning)),
        facts=(),
        notes=_brief(tuning.warnings),
        sections=(Section("", tables=(_rows(tuning),), lines=tuple(_rest(tuning))),),
        conditions=(),
        command=None,
    )


def _doubt(tuning: Tuning) -> Iterator[str]:
    """A sentence on the lead where it is not significant; the table shows how large it is."""
    ratio = tuning.ratio_to_runner_up
    if ratio and ratio.holds(1.0):
        yield from headline.lead(tuning)


def roles(tuning: Tuning) -> Roles:
    """The rows that matter, each with why; a row that matters twice has both reasons.

    Beside the winner stands the best of the other kind: a lossy one beside an exact winner, an
    exact one beside a lossy winner. Where every lossy candidate was refused, the fastest of them.
    """
    rows = sorted(tuning.rows, key=content.rate, reverse=True)
    chosen, own = tuning.chosen, headline.own_best(tuning)
    found: Roles = [("chosen", chosen)]
    found += [("runner-up", row) for row in rows if row.candidate.label == tuning.runner_up]
    exact = not chosen.candidate.exact
    other = [row for row in rows if row.candidate.exact is exact and content.rate(row)]
    for status in ("finalist", "refused"):
        best = next((row for row in other if row.status == status), None)
        if best:
            if all(best is not row for _, row in found):
                found.append(("best exact" if exact else "best lossy", best))
            break
    if own:
        found.append((f"{_engine(tuning)}'s best", own))
    merged: dict[str, tuple[str, Row]] = {}
    for why, row in found:
        earlier = merged.get(row.candidate.label)
        merged[row.candidate.label] = (f"{earlier[0]}, {why}" if earlier else why, row)
    return [*merged.values(), ("baseline", tuning.baseline)]


def _rows(tuning: Tuning) -> Table:
    latency = tuning.settings.objective == "latency"
    rows = tuple(_cells(tuning, why, row) for why, row in roles(tuning))
    estimated = " ~: estimated." if any("~" in cell for row in rows for cell in row) else ""
    return Table(
        f"Speed-up: over the baseline. {_LAYOUTS}.{estimated}",
        ("", "candidate", "speed-up (95 %)", "p50 ms" if latency else "texts/s", "flipped"),
        rows,
        numbers_from=2,
    )


def _cells(tuning: Tuning, why: str, row: Row) -> tuple[str, ...]:
    ratio, rate, *_ = content.measured(tuning, row)
    parity = row.parity
    flips = ""
    if parity:
        flips = f"{parity.flips}/{parity.compared}" if parity.decisions else kept(parity)
    if row.status == "refused":
        ratio = "refused"
    elif row is tuning.baseline:
        ratio, flips = "1.00", ""
    elif not ratio and content.rate(tuning.baseline) and content.rate(row):
        ratio = f"~{content.number(content.rate(row) / content.rate(tuning.baseline))}"
    return (why, content.short(row.candidate), ratio, rate, flips)


def _rest(tuning: Tuning) -> Iterator[str]:
    """What was refused and why, and how much else is not shown."""
    shown = {row.candidate.label for _, row in roles(tuning)}
    refused = [row for row in tuning.rows if row.status == "refused"]
    if refused:
        yield _refusals(tuning, sorted(refused, key=content.rate, reverse=True))
    counts = (
        ("dropped", "slower, or not tried for lack of time"),
        ("finalist", "accepted, and slower"),
        ("failed", "failed"),
        ("unavailable", "cannot run here"),
    )
    hidden = [row for row in tuning.rows if row.candidate.label not in shown]
    numbers = [(sum(row.status == status for row in hidden), what) for status, what in counts]
    found = [f"{number} {what}" for number, what in numbers if number]
    if found:
        yield f"Not shown: {'; '.join(found)}."


def _refusals(tuning: Tuning, refused: list[Row]) -> str:
    """The fastest refused candidate with its reason, and of the other formats the closest one."""
    formats: dict[str, Row] = {}
    for row in refused:
        formats.setdefault(row.candidate.format, row)
    first, *others = formats.values()
    reason = content.in_words(first.reason or "", tuning.rows)
    sentence = f"Refused: {content.short(first.candidate)}: {reason}."
    also = []
    if others:
        closest = min(others, key=lambda row: row.parity.flip_rate if row.parity else math.inf)
        why = content.in_words(closest.reason or "", tuning.rows).partition(";")[0]
        also.append(f"{content.short(closest.candidate)}, {why}")
    if left := len(refused) - 1 - len(also):
        also.append(f"{left} more" if others else content.count(left, "other layout"))
    return f"{sentence} Also refused: {'; '.join(also)}." if also else sentence


def _answers(row: Row) -> str:
    """How many labels flipped, without what only a report has room for."""
    parity = row.parity
    assert parity
    if not parity.decisions:
        return content.agreement(replace(parity, quality=None))
    right = f"; {_lower(content.accuracies(parity.quality))}" if parity.quality else ""
    return f"Against the original, {content.flipped(parity)}{right}."


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _brief(notes: tuple[str, ...]) -> tuple[str, ...]:
    """The first sentence of the first note, and how many others there are."""
    if not notes:
        return ()
    first = notes[0].partition(". ")[0].rstrip(".")
    others = f" ({len(notes) - 1} more in the report)" if len(notes) > 1 else ""
    return (f"{first}.{others}",)


def _engine(tuning: Tuning) -> str:
    return content.engine(tuning.baseline.candidate).removesuffix(" eager")


def _bench(bench: Bench) -> Document:
    table = _fastest(bench) or content_bench.latency(bench)
    tables = (replace(table, rows=table.rows[:_MOST_ROWS]),) if table else ()
    refused = [content.short(f.row.candidate) for f in bench.formats if f.refusal]
    lines = []
    if refused:
        lines.append(f"Refused, since their answers are not the original's: {', '.join(refused)}.")
    hidden = len(table.rows) - _MOST_ROWS if table else 0
    if hidden > 0:
        lines.append(f"Not shown: {hidden} slower.")
    return Document(
        title=bench.model.name,
        headline=content_bench.headline(bench),
        facts=(),
        notes=_brief(content_bench.missing(bench)),
        sections=(Section("", tables=tables, lines=tuple(lines)),),
        conditions=(),
        command=None,
    )


def _fastest(bench: Bench) -> Table | None:
    """Every format with its fastest run, whatever the batch size and order; the best first."""
    timed = []
    for format_ in bench.formats:
        run = min(format_.row.runs, key=lambda run: run.total.mean_s, default=None)
        if run:
            timed.append((run.texts_per_s, format_, run))
    if not timed:
        return None
    rows = []
    for rate, format_, run in sorted(timed, key=lambda entry: -entry[0]):
        ratio = content_bench.ratio(bench, run)
        parity = format_.row.parity
        rows.append(
            (
                content.short(format_.row.candidate),
                run.strategy.label,
                "refused" if format_.refusal else (content.interval(ratio) if ratio else ""),
                content.number(rate),
                f"{parity.flips}/{parity.compared}" if parity and parity.decisions else "",
            )
        )
    columns = ("candidate", "batches", "speed-up (95 %)", "texts/s", "flipped")
    return Table(
        f"Every format at its best. Speed-up: over the baseline. {_LAYOUTS}.",
        columns,
        tuple(rows),
        numbers_from=2,
    )
