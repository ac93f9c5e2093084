"""Two results side by side: before and after, or two machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hasten.judging.stats import independent_ratio_interval, percentile
from hasten.percent import percent
from hasten.records import Bench, EndToEnd, Interval, Row, Tuning
from hasten.report import command, conditions, content, content_bench, figures
from hasten.report.compose import filled, given
from hasten.report.document import Axis, Document, Figure, Panel, Point, Section, Table

Result = Tuning | Bench
Key = tuple[str, str, str]
"""Format, order and batch size: what makes two runs the same."""

_BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two results, and what to call it."""

    label: str
    result: Result

    @property
    def seed(self) -> int:
        return self.result.settings.seed

    def rows(self) -> tuple[Row, ...]:
        """The rows of candidates; a bench has one for each format."""
        if isinstance(self.result, Tuning):
            return tuple(row for row in self.result.rows if row.status != "unavailable")
        return tuple(format_.row for format_ in self.result.formats)

    def runs(self) -> Mapping[Key, tuple[Row, EndToEnd]]:
        """Every run, the baseline's first; of several layouts of a format, the faster one's."""
        found: dict[Key, tuple[Row, EndToEnd]] = {}
        baseline = self.result.baseline
        if baseline.main:
            found[_BASELINE, "arrival", "1"] = baseline, baseline.main
        for row in self.rows():
            for run in row.runs:
                key = content.family(row.candidate), content.order(run.strategy), _size(run)
                if key not in found or _each_s(run) < _each_s(found[key][1]):
                    found[key] = row, run
        return found

    def best(self) -> tuple[Row, EndToEnd] | None:
        """What this result says to use."""
        if isinstance(self.result, Tuning):
            chosen = self.result.chosen
            return (chosen, chosen.main) if chosen.main else None
        found = content_bench.best(self.result)
        return (found[0].row, found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Pair:
    """The same run on both sides; ``ratio`` is B's time per text over A's."""

    key: Key
    a: tuple[Row, EndToEnd]
    b: tuple[Row, EndToEnd]
    ratio: Interval | None


def of(a: Side, b: Side, *, drawn: bool = True) -> Document:
    """The report about two results."""
    shared = pairs(a, b)
    several = _over_batch_size(a, b, shared) if drawn else None
    return Document(
        title=f"{a.label} and {b.label}",
        headline=tuple(_headline(a, b, shared)),
        facts=tuple(_facts(a, b)),
        notes=tuple(_notes(a, b)),
        sections=filled(
            Section("What differs", lines=differences(a, b)),
            Section(
                "The same runs",
                figures=given(_ratios(a, b, shared) if drawn else None, several),
                tables=_runs(a, b, shared),
            ),
            Section("One text at a time", tables=_latency(a, b)),
            Section("Start-up and memory", tables=_start_up(a, b)),
            Section("Only in one of them", lines=tuple(_alone(a, b))),
        ),
        conditions=tuple(
            f"{side.label}, {line}" for side in (a, b) for line in conditions.of(side.result)
        ),
        command="\n".join(command.repeat(side.result) or "" for side in (a, b)).strip() or None,
    )


def pairs(a: Side, b: Side) -> list[Pair]:
    """What both sides ran, in A's order."""
    of_a, of_b = a.runs(), b.runs()
    return [
        Pair(key, of_a[key], of_b[key], _ratio(of_a[key][1], of_b[key][1]))
        for key in of_a
        if key in of_b
    ]


def differences(a: Side, b: Side) -> tuple[str, ...]:
    """The conditions that differ between both sides; read them before any ratio."""
    one, other = a.result, b.result
    lines = [
        _differing("model", content.model(one.model), content.model(other.model)),
        _differing("student", *(_student(side.result) for side in (a, b))),
        _differing("texts", content.lengths(one.profile), content.lengths(other.profile)),
        _differing("machine", content.machine(one.hardware), content.machine(other.hardware)),
        *(
            _differing(
                name, str(one.versions.get(name, "none")), str(other.versions.get(name, "none"))
            )
            for name in sorted({*one.versions, *other.versions})
        ),
        *(
            _differing(f"setting {field.name}", *_values(field.name, one.settings, other.settings))
            for field in fields(one.settings)
        ),
    ]
    found = tuple(f"{line[0]}: {a.label} {line[1]}; {b.label} {line[2]}" for line in lines if line)
    return found or ("Nothing: model, texts, machine, versions and settings are the same.",)


def _student(result: Result) -> str:
    student = result.student if isinstance(result, Tuning) else None
    return content.model(student) if student else "none"


def _differing(name: str, one: str, other: str) -> tuple[str, str, str] | None:
    return None if one == other else (name, one, other)


def _values(name: str, *records: Any) -> tuple[str, str]:
    def shown(value: Any) -> str:
        return ",".join(map(str, value)) or "all" if isinstance(value, tuple) else str(value)

    one, other = (shown(getattr(record, name)) for record in records)
    return one, other


def _headline(a: Side, b: Side, shared: list[Pair]) -> Iterator[str]:
    best_a, best_b = a.best(), b.best()
    if best_a is None or best_b is None:
        side = a if best_a is None else b
        yield f"There is nothing to compare: {side.label} has no measured end-to-end run."
        return
    speed = _ratio(best_b[1], best_a[1])
    rates = " texts/s instead of ".join(
        content.number(run.texts_per_s) for _, run in (best_b, best_a)
    )
    if speed is None:
        yield f"{b.label} runs {rates}."
    elif speed.holds(1.0):
        yield (
            f"No significant difference: {b.label} is {content.interval(speed)} "
            f"times as fast as {a.label}, {rates}."
        )
    else:
        yield f"{b.label} is {content.interval(speed)} times as fast as {a.label}: {rates}."
    yield f"{a.label} uses {_used(best_a)}; {b.label} uses {_used(best_b)}."
    known = [pair.ratio for pair in shared if pair.ratio]
    if known:
        faster = sum(ratio.high < 1 for ratio in known)
        slower = sum(ratio.low > 1 for ratio in known)
        yield (
            f"Of {len(known)} runs that both have, {b.label} is faster in {faster} and slower in "
            f"{slower}; {len(known) - faster - slower} show no significant difference."
        )


def _used(best: tuple[Row, EndToEnd]) -> str:
    row, run = best
    return f"{content.title(row.candidate)} with {run.strategy.label}"


def _facts(a: Side, b: Side) -> Iterator[tuple[str, str]]:
    best_a, best_b = a.best(), b.best()
    if best_a is None or best_b is None:
        return
    speed = _ratio(best_b[1], best_a[1])
    if speed:
        low, high = content.number(speed.low), content.number(speed.high)
        yield (
            f"{content.number(speed.estimate)}x",
            f"as fast: {b.label} over {a.label} ({low} to {high})",
        )
    for side, (_, run) in ((a, best_a), (b, best_b)):
        yield content.number(run.texts_per_s), f"texts a second, {side.label}"


def _notes(a: Side, b: Side) -> Iterator[str]:
    if a.result.model.name != b.result.model.name:
        yield "The models differ, so ratios of their times say little."
    if a.result.profile != b.result.profile:
        yield "The texts differ, so times per text are not comparable."
    for side in (a, b):
        if isinstance(side.result, Bench) and not side.result.complete:
            yield f"{side.label} was not finished: its missing runs were not measured."


# --- tables -----------------------------------------------------------------------------------


def _runs(a: Side, b: Side, shared: list[Pair]) -> tuple[Table, ...]:
    if not shared:
        return ()
    rows = tuple(
        (
            *pair.key,
            pair.a[0].candidate.layout,
            pair.b[0].candidate.layout,
            content.number(1000 * _each_s(pair.a[1])),
            content.number(1000 * _each_s(pair.b[1])),
            content.interval(pair.ratio) if pair.ratio else "",
            percent(pair.a[1].padding_share),
            percent(pair.b[1].padding_share),
        )
        for pair in shared
    )
    columns = (
        "format",
        "order",
        "batch",
        "layout A",
        "layout B",
        "ms/text A",
        "ms/text B",
        "B / A (95 %)",
        "padding A",
        "padding B",
    )
    title = f"Time per text; {_who(a, b)}. Where B / A is below 1, B is faster"
    wide = frozenset({"layout A", "layout B", "padding A", "padding B"})
    return (Table(title, columns, rows, numbers_from=5, wide=wide),)


def _who(a: Side, b: Side) -> str:
    return f"A is {a.label}, B is {b.label}"


def _latency(a: Side, b: Side) -> tuple[Table, ...]:
    calls = [_single_calls(side) for side in (a, b)]
    rows = tuple(
        (
            name,
            *(content.number(1000 * percentile(side[name], q)) for q in (50, 90) for side in calls),
        )
        for name in calls[0]
        if name in calls[1]
    )
    columns = ("format", *(f"p{q} ms {side}" for q in (50, 90) for side in "AB"))
    return (Table(f"Latency of single texts; {_who(a, b)}", columns, rows),) if rows else ()


def _single_calls(side: Side) -> dict[str, tuple[float, ...]]:
    if isinstance(side.result, Tuning):
        return {}
    singles = [format_.single for format_ in side.result.formats if format_.single]
    return {content.family(s.candidate): s.main.batch_latency_s for s in singles if s.main}


def _start_up(a: Side, b: Side) -> tuple[Table, ...]:
    started = [
        {content.short(row.candidate): row.start_up for row in side.rows() if row.start_up}
        for side in (a, b)
    ]
    rows = tuple(
        (
            name,
            *(content.number(side[name].load_s) for side in started),
            *(content.number(side[name].peak_bytes / 2**20) for side in started),
        )
        for name in started[0]
        if name in started[1]
    )
    columns = ("candidate", "load s A", "load s B", "memory MiB A", "memory MiB B")
    return (Table(f"Start-up and memory; {_who(a, b)}", columns, rows),) if rows else ()


def _alone(a: Side, b: Side) -> Iterator[str]:
    for side, other in ((a, b), (b, a)):
        theirs = other.runs()
        names = [_name(key) for key in side.runs() if key not in theirs]
        if names:
            yield f"{side.label}: {', '.join(names)}"


# --- figures ----------------------------------------------------------------------------------


def _ratios(a: Side, b: Side, shared: Iterable[Pair]) -> Figure | None:
    points: list[Point] = [
        {
            **figures.bounded("x", pair.ratio),
            "y": _name(pair.key),
            "series": pair.key[0],
            "Run": _name(pair.key),
            "Ratio of times": content.interval(pair.ratio),
            f"Time per text, {a.label}": content.milliseconds(_each_s(pair.a[1])),
            f"Time per text, {b.label}": content.milliseconds(_each_s(pair.b[1])),
        }
        for pair in shared
        if pair.ratio
    ]
    if not points:
        return None
    formats = tuple(dict.fromkeys(str(point["series"]) for point in points))
    return Figure(
        "ratios",
        f"Time per text: {b.label} over {a.label}",
        f"Left of the line at 1, {b.label} is faster. The bars are 95 % intervals, each for one "
        "ratio: one in twenty misses the true value.",
        "dot",
        Axis("ratio of the times per text", "log"),
        Axis("", "name"),
        "format",
        formats,
        (Panel("", tuple(points)),),
        x_rule=1.0,
    )


def _over_batch_size(a: Side, b: Side, shared: list[Pair]) -> Figure | None:
    panels: dict[str, list[Point]] = {}
    ticks = set()
    for pair in shared:
        format_, order, size = pair.key
        if order != "arrival" or format_ == _BASELINE:
            continue
        ticks.add(float(size))
        for side, (row, run) in ((a, pair.a), (b, pair.b)):
            each_s = figures.per_text_s(run, side.seed)
            words = {"Result": side.label, **figures.run_words(row, run, each_s, None)}
            place = {"x": float(size), **figures.bounded("y", each_s, 1000)}
            panels.setdefault(format_, []).append({**place, "series": side.label, **words})
    if len(ticks) < 2:
        return None
    return Figure(
        "batch-size-both",
        "Time per text over batch size",
        "In arrival order, with 95 % intervals; lower is faster.",
        "line",
        Axis("batch size (texts)", "log", ticks=tuple(sorted(ticks))),
        figures.TIME,
        "result",
        (a.label, b.label),
        tuple(Panel(name, tuple(points), name) for name, points in panels.items()),
    )


# --- single runs ------------------------------------------------------------------------------


def _name(key: Key) -> str:
    return _BASELINE if key[0] == _BASELINE else f"{key[0]}, {key[1]} {key[2]}"


def _size(run: EndToEnd) -> str:
    return str(run.strategy.token_budget or run.strategy.batch_size)


def _each_s(run: EndToEnd) -> float:
    return run.total.mean_s / run.texts


def _ratio(a: EndToEnd, b: EndToEnd) -> Interval | None:
    """Time per text of ``b`` over that of ``a``, which was measured on another occasion."""
    times, others = ([s / run.texts for s in run.total.samples_s] for run in (b, a))
    if min(len(times), len(others)) < 2:
        return None
    return independent_ratio_interval(times, others)
