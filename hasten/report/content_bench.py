"""What the report says of a bench: sentences and tables of plain strings."""

from __future__ import annotations

from collections.abc import Iterator

from hasten.judging.stats import FEWEST_FOR_P99, percentile, speed_up
from hasten.percent import percent
from hasten.records import Bench, EndToEnd, Format, Interval, Row
from hasten.report.content import (
    engine,
    family,
    interval,
    layout,
    milliseconds,
    number,
    order,
    short,
    title,
)
from hasten.report.document import Table
from hasten.report.figures_bench import arrival, shows_orders
from hasten.report.headline import faster

Best = tuple[Format, EndToEnd]


def best(bench: Bench) -> Best | None:
    """The fastest run in arrival order whose answers are the original's; None before any."""
    runs = [(f, run) for f in bench.formats if _usable(f) for run in arrival(f)]
    return min(runs, key=lambda pair: pair[1].total.mean_s, default=None)


def headline(bench: Bench) -> tuple[str, ...]:
    """The answer first: which format is fastest, at which batch size, by how much."""
    found = best(bench)
    if found is None:
        fastest = _fastest_single(bench)
        return (fastest or "Nothing has been measured end to end yet.",)
    format_, run = found
    where = f"{layout(format_.row.candidate)}, batch {run.strategy.batch_size}"
    first = f"Fastest in arrival order: {family(format_.row.candidate)} ({where})."
    times = ratio(bench, run)
    if times:
        usual = f"{engine(bench.baseline.candidate)} one text at a time".replace(" eager", "")
        first += f" {faster(times, usual)}."
    return (first, f"{number(run.texts_per_s)} texts/s.", *_sorting(bench, run))


def ratio(bench: Bench, run: EndToEnd) -> Interval | None:
    """How many times as fast as the baseline a run was."""
    return speed_up(bench.baseline.main, run, seed=bench.settings.seed)


def refused(bench: Bench) -> Iterator[str]:
    """The formats whose answers are not the original's, which charts show all the same."""
    for format_ in bench.formats:
        if format_.refusal:
            answers = f"its answers are not the original's: {format_.refusal}"
            yield f"{title(format_.row.candidate)} is shown for comparison only: {answers}."


def missing(bench: Bench) -> tuple[str, ...]:
    """What an unfinished run has not measured yet; empty for a finished one."""
    if bench.complete:
        return ()
    rounds = bench.settings.rounds
    short_of = [
        f"{short(f.row.candidate)}, {run.strategy.label}: {done} of {rounds} runs"
        for f in bench.formats
        for run in f.row.runs
        if (done := len(run.total.samples_s)) < rounds
    ]
    nothing = [name for name in bench.experiments if not _has(bench, name)]
    return (
        "The run is not finished; the same command continues it.",
        *([f"Not measured yet: {', '.join(nothing)}."] if nothing else []),
        *([f"Runs done so far: {'; '.join(short_of)}."] if short_of else []),
    )


def facts(bench: Bench) -> Iterator[tuple[str, str]]:
    """The figures of the answer, each with what it is."""
    found = best(bench)
    if found is None:
        return
    format_, run = found
    times = ratio(bench, run)
    if times:
        yield (
            f"{number(times.estimate)}x",
            f"faster than the baseline ({number(times.low)} to {number(times.high)})",
        )
    yield number(run.texts_per_s), "texts a second"
    if format_.row.parity and format_.row.parity.decisions:
        parity = format_.row.parity
        yield f"{parity.flips} of {parity.compared:,}", "labels flipped"
    if share := _share(format_.row):
        yield share, "of the machine's ceiling"


def batch_sizes(bench: Bench) -> Table | None:
    """Texts per second of every format at every batch size."""
    sizes = sorted({run.strategy.batch_size for f in bench.formats for run in arrival(f)})
    if not sizes:
        return None
    rows = []
    for format_ in bench.formats:
        found = {run.strategy.batch_size: run for run in arrival(format_)}
        cells = (number(found[size].texts_per_s) if size in found else "" for size in sizes)
        rows.append((short(format_.row.candidate), *cells))
    columns = ("texts/s at batch", *map(str, sizes))
    return Table("Batch sizes, texts in arrival order", columns, tuple(rows))


def orders(bench: Bench) -> tuple[Table, ...]:
    """Texts per second and padding in every order, a column for each batch size."""
    shown = [format_ for format_ in bench.formats if shows_orders(format_)]
    if not shown:
        return ()
    sizes = sorted({run.strategy.batch_size for format_ in shown for run in format_.row.runs})
    rates, shares = [], []
    for format_ in shown:
        found = {(order(run.strategy), run.strategy.batch_size): run for run in format_.row.runs}
        for name in dict.fromkeys(name for name, _ in found):
            runs = [found.get((name, size)) for size in sizes]
            head = (short(format_.row.candidate), name)
            rates.append((*head, *(number(run.texts_per_s) if run else "" for run in runs)))
            shares.append(
                (*head, *(f"{100 * run.padding_share:.1f}" if run else "" for run in runs))
            )
    return (
        Table("Orders", ("texts/s at batch", "order", *map(str, sizes)), tuple(rates), 2),
        Table("Padding", ("padding (%) at batch", "order", *map(str, sizes)), tuple(shares), 2),
    )


def latency(bench: Bench) -> Table | None:
    """Percentiles of the single texts' times."""
    rows = []
    for format_ in bench.formats:
        if format_.single and format_.single.main:
            calls = format_.single.main.batch_latency_s
            shares = [50, 90, *([99] if len(calls) >= FEWEST_FOR_P99 else [])]
            cells = [number(1000 * percentile(calls, share)) for share in shares]
            cells += [""] * (3 - len(cells))
            rows.append((short(format_.single.candidate), *cells, f"{len(calls):,}"))
    columns = ("one text at a time", "p50 ms", "p90 ms", "p99 ms", "calls")
    return Table("Latency of single texts", columns, tuple(rows)) if rows else None


def candidates(bench: Bench) -> Table:
    """All candidates: every format at its best, then the others with the reason."""
    rows = []
    measured = [(format_.row, format_.refusal) for format_ in bench.formats]
    for row, refusal in (*measured, *((row, None) for row in bench.others)):
        if row.status == "unavailable":
            continue
        parity, start = row.parity, row.start_up
        bound = f"≤{percent(parity.flip_upper_bound)}" if parity else ""
        changed = f"{parity.flips}/{parity.compared} {bound}" if parity else ""
        outcome = "measured" if row.status == "finalist" else row.status
        rows.append(
            (
                short(row.candidate),
                "refused" if refusal else outcome,
                interval(row.ratio_to_baseline) if row.ratio_to_baseline else "",
                changed if parity is None or parity.decisions else "-",
                f"{parity.max_abs_difference:.1e}" if parity else "",
                _share(row),
                number(row.export_s) if row.export_s is not None else "",
                number(start.load_s) if start else "",
                number(start.peak_bytes / 2**20) if start else "",
                refusal or row.reason or "",
            )
        )
    columns = (
        "candidate",
        "outcome",
        "best speed-up (95 %)",
        "flipped",
        "largest difference",
        "of the ceiling",
        "export s",
        "load s",
        "memory MiB",
        "note",
    )
    name = "Candidates (2x1: two streams of one thread each)"
    wide = frozenset({"largest difference", "of the ceiling", "export s", "load s", "memory MiB"})
    return Table(name, columns, tuple(rows), numbers_from=2, numbers_to=8, wide=wide)


def _sorting(bench: Bench, fastest: EndToEnd) -> Iterator[str]:
    runs = [(f, run) for f in bench.formats if _usable(f) for run in f.row.runs]
    format_, run = min(runs, key=lambda pair: pair[1].total.mean_s)
    if run.strategy.name == "arrival":
        return
    gain = speed_up(fastest, run, seed=bench.settings.seed)
    if gain and gain.low > 1:
        yield (
            f"Sorting helps: {title(format_.row.candidate)} with {run.strategy.label} is "
            f"{interval(gain)}x faster than that, {number(run.texts_per_s)} texts/s."
        )


def _fastest_single(bench: Bench) -> str | None:
    singles = [f.single for f in bench.formats if f.single and f.single.main and _usable(f)]
    timed = [(percentile(s.main.batch_latency_s, 50), s) for s in singles if s.main]
    if not timed:
        return None
    time_s, single = min(timed, key=lambda pair: pair[0])
    return f"Fastest one text at a time: {title(single.candidate)}, median {milliseconds(time_s)}."


def _has(bench: Bench, experiment: str) -> bool:
    return {
        "batch-size": any(arrival(f) for f in bench.formats),
        "length": any(f.shapes for f in bench.formats),
        "order": any(shows_orders(f) for f in bench.formats),
        "latency": any(f.single and f.single.main for f in bench.formats),
    }.get(experiment, True)


def _usable(format_: Format) -> bool:
    return format_.refusal is None and format_.row.status == "finalist"


def _share(row: Row) -> str:
    """The share of the machine's ceiling; empty where the ceiling could not be measured."""
    share = row.ceiling_share
    return percent(share) if share is not None else ""
