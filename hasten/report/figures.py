"""Rows -> figures: what a tuning and a bench have in common. Pure; nothing is drawn here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from hasten.judging.stats import (
    FEWEST_FOR_P99,
    mean_interval,
    percentile,
    percentile_interval,
    speed_up,
)
from hasten.percent import percent
from hasten.records import Ceiling, EndToEnd, Interval, Row
from hasten.report import content
from hasten.report.document import Axis, Figure, Panel, Point

TIME = Axis("time per text (ms)", "log")

_STEPS = 200
"""Points of a distribution's line: more cannot be seen, and a page must not carry every call."""


def mean_s(samples_s: Sequence[float], seed: int) -> Interval:
    """Mean of the samples with its interval; of one sample, that alone."""
    if len(samples_s) < 2:
        return Interval(samples_s[0], samples_s[0], samples_s[0])
    return mean_interval(samples_s, seed=seed)


def time_words(time_s: Interval) -> str:
    """``12.3 ms (12.1 ms to 12.6 ms)``; without bounds where there was one sample."""
    if time_s.low == time_s.high:
        return content.milliseconds(time_s.estimate)
    low, high = content.milliseconds(time_s.low), content.milliseconds(time_s.high)
    return f"{content.milliseconds(time_s.estimate)} ({low} to {high})"


def bounded(axis: Literal["x", "y"], value: Interval, scale: float = 1.0) -> dict[str, float]:
    """A value on an axis, with its bounds if it has any."""
    place: dict[str, float] = {axis: value.estimate * scale}
    if value.low < value.high:
        place |= {f"{axis}_low": value.low * scale, f"{axis}_high": value.high * scale}
    return place


def run_words(row: Row, run: EndToEnd, per_text_s: Interval, speed: Interval | None) -> Point:
    """Hover text of a run over the texts."""
    times = {"Speed-up": content.interval(speed)} if speed else {}
    return {
        "Format": content.short(row.candidate),
        "Order": content.order(run.strategy),
        "Batch size": batch_words(run),
        "Time per text": time_words(per_text_s),
        "Throughput": f"{content.number(1 / per_text_s.estimate)} texts/s",
        **times,
        "Padding": f"{percent(run.padding_share)} of the tokens",
        "Runs": f"{len(run.total.samples_s)}",
    }


def batch_words(run: EndToEnd) -> str:
    """How large the batches are, as the strategy counts them."""
    if run.strategy.token_budget is not None:
        return f"up to {run.strategy.token_budget} tokens"
    upto = "up to " if run.strategy.name == "optimal" else ""
    return f"{upto}{run.strategy.batch_size}"


def per_text_s(run: EndToEnd, seed: int) -> Interval:
    """Mean time per text of a run, tokenizing included."""
    return mean_s([sample_s / run.texts for sample_s in run.total.samples_s], seed)


# --- one text at a time -----------------------------------------------------------------------


def latency(rows: Iterable[Row], formats: tuple[str, ...]) -> Figure | None:
    """How the times of single texts are distributed."""
    points = [point for row in rows if row.main for point in _distribution(row)]
    if not points:
        return None
    return Figure(
        "latency",
        "Latency of single texts",
        "Read across from 90 % to a line and down: nine of ten answers came within that time. "
        "The symbols are p50, p90 and, where there are at least "
        f"{FEWEST_FOR_P99} calls, p99.",
        "line",
        Axis("time for one text (ms)", "log"),
        Axis("answers within that time", numbers="percent"),
        "format",
        formats,
        (Panel("", tuple(points)),),
    )


def _distribution(row: Row) -> Iterator[Point]:
    run = row.main
    assert run
    calls = np.sort(np.asarray(run.batch_latency_s))
    shares = [50.0, 90.0, *([99.0] if len(calls) >= FEWEST_FOR_P99 else [])]
    line = np.linspace(0.0, 100.0, min(_STEPS, len(calls)) + 1)
    series = content.family(row.candidate)
    for share in sorted({*map(float, line), *shares}):
        time_s = percentile(calls, share)
        place: Point = {"x": 1000 * time_s, "y": share / 100, "series": series}
        if share not in shares:
            yield {**place, "bare": True}
            continue
        bounds = percentile_interval(calls, share)
        yield {
            **place,
            **bounded("x", bounds, 1000),
            "Format": content.short(row.candidate),
            "Percentile": f"p{share:.0f}",
            "Time": time_words(bounds),
            "Batch size": "1",
            "Calls": f"{len(calls):,}",
        }


# --- speed against agreement ------------------------------------------------------------------


def frontier(
    rows: Iterable[Row], baseline: Row, formats: tuple[str, ...], limit: float | None
) -> Figure | None:
    """Speed-up against flipped labels, of all that were compared on all of the texts.

    Candidates that were never timed have no place.
    """
    known = judged(rows)
    decisions = all(row.parity.decisions for row in known if row.parity)
    points = [point for row in known if (point := _trade(row, baseline, decisions))]
    if not points:
        return None
    if decisions:
        x = Axis("answers that differ from the original's", numbers="percent")
        caption = (
            "Each symbol is at the observed share of flipped labels; the bar ends at its upper "
            "bound at 95 % confidence. "
        )
    else:
        x = Axis("mean difference from the original (its standard deviations)", "log", "powers")
        caption = "Outputs were compared as tensors, since the model decides nothing. "
    return Figure(
        "frontier",
        "Speed against agreement",
        caption + "Higher is faster, further left is closer to the original. Symbols without a "
        "vertical bar are estimates from the first shapes.",
        "dot",
        x,
        Axis("times as fast as the baseline"),
        "format",
        formats,
        (Panel("", tuple(points)),),
        x_rule=limit if decisions else None,
        y_rule=1.0,
    )


def judged(rows: Iterable[Row]) -> list[Row]:
    """Those that answered all the texts; of the few of a first look, bounds are wide and long."""
    known = [row for row in rows if row.parity]
    most = max((row.parity.compared for row in known if row.parity), default=0)
    return [row for row in known if row.parity and row.parity.compared == most]


def margins(rows: Iterable[Row], formats: tuple[str, ...]) -> Figure | None:
    """How sure the original was of the answers that a candidate changed."""
    points: list[Point] = []
    usual = 0.0
    for row in judged(rows):
        parity = row.parity
        if parity is None or not parity.margin_quantiles:
            continue
        usual = parity.margin_quantiles[2]
        points += [
            {
                "x": margin,
                "y": content.short(row.candidate),
                "series": content.family(row.candidate),
                "Candidate": content.short(row.candidate),
                "Outcome": row.status,
                "Margin of the original": f"{margin:.3g}",
                "Flipped labels": f"{parity.flips} of {parity.compared:,}",
            }
            for margin in parity.flip_margins
        ]
    if not points:
        return None
    return Figure(
        "margins",
        "How sure the original was of labels that flipped",
        "Each symbol is a flipped label: by how many logits the original preferred its own label "
        f"to the candidate's. The line is its median margin over all texts, {usual:.3g}. Far to "
        "the left of it the original was undecided; near it or beyond, the flip is an error.",
        "dot",
        Axis("the original's margin (logits)"),
        Axis("", "name"),
        "format",
        formats,
        (Panel("", tuple(points)),),
        x_rule=usual,
    )


def _trade(row: Row, baseline: Row, decisions: bool) -> Point | None:
    parity, speed = row.parity, row.ratio_to_baseline
    assert parity
    if speed is None:
        rate, usual = row.screen_tokens_per_s, baseline.main
        if rate is None or usual is None:
            return None
        about = rate / usual.tokens_per_s
        speed = Interval(about, about, about)
        speed_up = f"about {content.number(about)}, from the first shapes"
    else:
        speed_up = content.interval(speed)
    x: dict[str, float] = {"x": max(parity.mean_abs_difference, 1e-9)}
    agreement = {"Mean difference": f"{parity.mean_abs_difference:.1e}"}
    if decisions:
        x = bounded("x", Interval(parity.flip_rate, parity.flip_rate, parity.flip_upper_bound))
        agreement = {
            "Flipped labels": f"{parity.flips} of {parity.compared:,} "
            f"(at most {percent(parity.flip_upper_bound)})",
        }
    return {
        **x,
        **bounded("y", speed),
        "series": content.family(row.candidate),
        "Candidate": content.short(row.candidate),
        "Outcome": row.status,
        "Speed-up": speed_up,
        **agreement,
        "Largest difference": f"{parity.max_abs_difference:.1e}",
    }


# --- once per candidate -----------------------------------------------------------------------


def ceiling(
    rows: Iterable[Row], ceilings: Sequence[Ceiling], formats: tuple[str, ...]
) -> Figure | None:
    """Share of the fastest matrix product of this machine that went into tokens of the texts."""
    highest = {(c.precision, c.device): c.flops_per_s for c in ceilings}
    points: list[Point] = []
    for row in rows:
        if row.ceiling_share is None:
            continue
        kind = (row.candidate.precision, row.candidate.device)
        top = f"{content.number(highest[kind] / 1e9)} GFLOP/s" if kind in highest else "not kept"
        points.append(
            {
                "x": row.ceiling_share,
                "y": content.short(row.candidate),
                "series": content.family(row.candidate),
                "Candidate": content.short(row.candidate),
                "Share of the ceiling": percent(row.ceiling_share),
                "Fastest matrix product": f"{top} in {row.candidate.precision}",
            }
        )
    axis = Axis("share of the fastest matrix product", numbers="percent")
    caption = (
        "The fastest matrix product of this machine in that precision is 100 %. What is missing "
        "went into padding, tokenizing, and everything in a model that is not a matrix product."
    )
    return _bars("ceiling", "Share of the machine's ceiling", caption, axis, (formats, points))


def memory(rows: Iterable[Row], formats: tuple[str, ...]) -> tuple[Figure, ...]:
    """What starting takes: seconds and memory."""
    loads: list[Point] = []
    peaks: list[Point] = []
    for row in rows:
        if row.start_up is None:
            continue
        start, name = row.start_up, content.short(row.candidate)
        common = {
            "y": name,
            "series": content.family(row.candidate),
            "Candidate": name,
            "Load": f"{content.number(start.load_s)} s",
            "First call": f"{content.number(start.first_call_s)} s",
            "Peak memory": f"{content.number(start.peak_bytes / 2**20)} MiB",
        }
        loads.append({"x": start.load_s + start.first_call_s, **common})
        peaks.append({"x": start.peak_bytes / 2**20, **common})
    drawn = (
        _bars(
            "start-up",
            "Start-up",
            "From a new process to the first answer: loading, compiling and the first call.",
            Axis("loading and first call (s)"),
            (formats, loads),
        ),
        _bars(
            "memory",
            "Memory",
            "The largest resident memory of the process, libraries included.",
            Axis("peak memory (MiB)"),
            (formats, peaks),
        ),
    )
    return tuple(figure for figure in drawn if figure)


def _bars(
    name: str,
    title: str,
    caption: str,
    axis: Axis,
    held: tuple[tuple[str, ...], Sequence[Point]],
) -> Figure | None:
    """A bar for each point; ``held`` are all formats, and the points."""
    formats, points = held
    if not points:
        return None
    panels = (Panel("", tuple(points)),)
    return Figure(name, title, caption, "bar", axis, Axis("", "name"), "format", formats, panels)


def orders(
    row: Row, baseline: EndToEnd | None, seed: int, *, name: str = "batching"
) -> Figure | None:
    """Every way of batching that one candidate was run with, the fastest first."""
    if len(row.runs) < 2:
        return None
    points: list[Point] = []
    for run in sorted(row.runs, key=lambda run: run.total.mean_s / run.texts):
        each_s = per_text_s(run, seed)
        words = run_words(row, run, each_s, speed_up(baseline, run, seed=seed))
        place: Point = {
            **bounded("x", each_s, 1000),
            "y": f"{content.order(run.strategy)} {batch_words(run)}",
        }
        points.append({**place, "series": content.order(run.strategy), **words})
    return Figure(
        name,
        f"Batching with {content.title(row.candidate)}",
        "The same texts, cut into batches in different ways; shorter is faster.",
        "bar",
        Axis("time per text (ms)"),
        Axis("", "name"),
        "order",
        ORDERS,
        (Panel("", tuple(points)),),
    )


ORDERS = ("arrival", "sorted", "optimal", "token budget")
"""Ways of batching, in the order of their colours."""
