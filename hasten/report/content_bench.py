"""What the report says of a bench: sentences and tables of plain strings."""

from __future__ import annotations

from collections.abc import Iterator

from hasten.records import Bench, EndToEnd, Format
from hasten.report.content import Table, interval, short, title
from hasten.stats import percentile

_FEWEST_FOR_P99 = 459
"""Calls of which one lies beyond the true 99th percentile with a probability of 99 %."""


def headline(bench: Bench) -> tuple[str, ...]:
    """The answer first: which format is fastest, at which batch size, by how much."""
    runs = [(format_, run) for format_ in bench.formats for run in _arrival(format_)]
    if not runs:
        return ("Nothing has been measured end to end yet.", *_missing(bench))
    best, run = min(runs, key=lambda pair: pair[1].total.median_s)
    ratio, times = best.row.ratio_to_baseline, ""
    if ratio:
        baseline = title(bench.baseline.candidate)
        times = f", {interval(ratio)} times the speed of {baseline} at batch 1"
    sentence = (
        f"In arrival order, {title(best.row.candidate)} at batch {run.strategy.batch_size} is "
        f"fastest: {run.texts_per_s:,.1f} texts/s{times}."
    )
    return (sentence, *_missing(bench))


def tables(bench: Bench) -> Iterator[Table]:
    """Every experiment that has results, as a table."""
    if any(True for format_ in bench.formats for _ in _arrival(format_)):
        yield _batch_sizes(bench)
    if any(format_.single for format_ in bench.formats):
        yield _latency(bench)


def _batch_sizes(bench: Bench) -> Table:
    sizes = sorted({r.strategy.batch_size for f in bench.formats for r in _arrival(f)})
    rows = []
    for format_ in bench.formats:
        found = {run.strategy.batch_size: run for run in _arrival(format_)}
        cells = (f"{found[size].texts_per_s:,.1f}" if size in found else "" for size in sizes)
        rows.append((short(format_.row.candidate), *cells))
    columns = ("texts/s at batch", *map(str, sizes))
    return Table("Batch sizes, texts in arrival order", columns, tuple(rows))


def _latency(bench: Bench) -> Table:
    rows = []
    for format_ in bench.formats:
        if format_.single and format_.single.main:
            calls = format_.single.main.batch_latency_s
            shares = [50, 90, *([99] if len(calls) >= _FEWEST_FOR_P99 else [])]
            cells = [f"{1000 * percentile(calls, share):.2f}" for share in shares]
            cells += [""] * (3 - len(cells))
            rows.append((short(format_.single.candidate), *cells, f"{len(calls):,}"))
    columns = ("one text at a time", "p50 ms", "p90 ms", "p99 ms", "calls")
    return Table("Latency of single texts", columns, tuple(rows))


def _arrival(format_: Format) -> list[EndToEnd]:
    return [run for run in format_.row.runs if run.strategy.name == "arrival"]


def _missing(bench: Bench) -> tuple[str, ...]:
    if bench.complete:
        return ()
    return ("The run was interrupted: what is missing here was not measured.",)
