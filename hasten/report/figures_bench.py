"""The experiments of a bench -> figures. Pure; nothing is drawn here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hasten.judging.stats import speed_up
from hasten.records import Bench, EndToEnd, Format
from hasten.report import content, figures, figures_cells
from hasten.report.document import Axis, Figure, Panel, Point

_ORDERED = ("sorted", "optimal")


def arrival(format_: Format) -> list[EndToEnd]:
    """A format's runs over the texts in arrival order, by rising batch size."""
    runs = [run for run in format_.row.runs if run.strategy.name == "arrival"]
    return sorted(runs, key=lambda run: run.strategy.batch_size)


def shows_orders(format_: Format) -> bool:
    """Whether a format was also run with its texts sorted."""
    return any(run.strategy.name in _ORDERED for run in format_.row.runs)


def families(bench: Bench) -> tuple[str, ...]:
    """The formats in the order of their colours: the fastest first, then whatever else there is."""
    rows = [*(format_.row for format_ in bench.formats), bench.baseline, *bench.others]
    return tuple(dict.fromkeys(content.family(row.candidate) for row in rows))


def batch_sizes(bench: Bench) -> tuple[Figure, ...]:
    """Time per text, and speed-up over the baseline, against the batch size."""
    points = [p for f in bench.formats for run in arrival(f) for p in [_point(bench, f, run)]]
    if not points:
        return ()
    before = bench.baseline.main
    before_s = figures.per_text_s(before, bench.settings.seed).estimate if before else None
    common: dict[str, Any] = {
        "mark": "line",
        "x": _sizes(bench),
        "legend": "format",
        "series": families(bench),
    }
    times = Figure(
        name="batch-size-time",
        title="Time per text over batch size",
        caption=f"Mean of {bench.settings.rounds} interleaved runs over the texts as they come, "
        "with its 95 % interval; lower is faster."
        + (" The line across is the baseline." if before_s else ""),
        y=figures.TIME,
        panels=(Panel("", tuple(points)),),
        y_rule=1000 * before_s if before_s else None,
        **common,
    )
    faster = [p for p in (_speed(bench, f, run) for f in bench.formats for run in arrival(f)) if p]
    if not faster:
        return (times,)
    speeds = Figure(
        name="batch-size-speed-up",
        title="Speed-up over batch size",
        caption="Against the baseline in the same runs: "
        f"{content.title(bench.baseline.candidate)}, one text at a time. Higher is faster.",
        y=Axis("times as fast as the baseline"),
        panels=(Panel("", tuple(faster)),),
        y_rule=1.0,
        **common,
    )
    return times, speeds


def orders(bench: Bench) -> tuple[Figure, ...]:
    """What the order of the texts does to time and padding; a panel for each format."""
    shown = [format_ for format_ in bench.formats if shows_orders(format_)]
    if not shown:
        return ()
    times, shares = [], []
    for format_ in shown:
        runs = sorted(format_.row.runs, key=lambda run: run.strategy.batch_size)
        drawn = [_point(bench, format_, run, by_order=True) for run in runs]
        name = content.family(format_.row.candidate)
        times.append(Panel(name, tuple(drawn), name))
        padding = zip(drawn, runs, strict=True)
        shares.append(Panel(name, tuple(_padding(p, run) for p, run in padding), name))
    common: dict[str, Any] = {
        "mark": "line",
        "x": _sizes(bench),
        "legend": "order",
        "series": figures.ORDERS,
    }
    return (
        Figure(
            name="order-time",
            title="Time per text, by order",
            caption="Arrival order, sorted by length, and batches cut where a measured cost table "
            "says; lower is faster.",
            y=figures.TIME,
            panels=tuple(times),
            **common,
        ),
        Figure(
            name="order-padding",
            title="Padding, by order",
            caption="Share of the computed tokens that are padding.",
            y=Axis("share of padding", numbers="percent"),
            panels=tuple(shares),
            **common,
        ),
    )


def over_length(bench: Bench) -> tuple[Figure, ...]:
    """Time per text against length, for every format and batch size."""
    seed = bench.settings.seed
    # Every format has a cost table of its first shapes; the experiment is what has samples.
    measured = {
        f.row.candidate: figures_cells.cells(f.row, f.shapes, seed)
        for f in bench.formats
        if f.shapes
    }
    return figures_cells.over_length(measured, families(bench))


def _sizes(bench: Bench) -> Axis:
    runs: Iterator[EndToEnd] = (run for format_ in bench.formats for run in format_.row.runs)
    ticks = sorted({float(run.strategy.batch_size) for run in runs})
    return Axis("batch size (texts)", "log", ticks=tuple(ticks))


def _point(bench: Bench, format_: Format, run: EndToEnd, *, by_order: bool = False) -> Point:
    each_s = figures.per_text_s(run, bench.settings.seed)
    speed = speed_up(bench.baseline.main, run, seed=bench.settings.seed)
    candidate = format_.row.candidate
    return {
        "x": run.strategy.batch_size,
        **figures.bounded("y", each_s, 1000),
        "series": content.order(run.strategy) if by_order else content.family(candidate),
        **figures.run_words(format_.row, run, each_s, speed),
    }


def _speed(bench: Bench, format_: Format, run: EndToEnd) -> Point | None:
    speed = speed_up(bench.baseline.main, run, seed=bench.settings.seed)
    if speed is None:
        return None
    point = {k: v for k, v in _point(bench, format_, run).items() if k not in {"y_low", "y_high"}}
    return {**point, **figures.bounded("y", speed)}


def _padding(point: Point, run: EndToEnd) -> Point:
    kept = {key: value for key, value in point.items() if key not in {"y_low", "y_high"}}
    return {**kept, "y": run.padding_share}
