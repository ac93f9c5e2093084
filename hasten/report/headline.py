"""A tuning's answer in sentences: the fastest way, its speed-up, and how certain that is."""

from __future__ import annotations

from collections.abc import Iterator

from hasten.judging.stats import percentile, speed_up
from hasten.percent import percent
from hasten.records import Interval, Row, Tuning
from hasten.report import content_cascade, content_proof
from hasten.report.content import (
    HIGHEST_SHARE,
    agreement,
    engine,
    family,
    interval,
    layout,
    milliseconds,
    model,
    number,
)
from hasten.report.content import rate as tokens_per_s


def of(tuning: Tuning) -> tuple[str, ...]:
    """The whole answer, its first element alone worth reading."""
    sentences = [first(tuning), *speeds(tuning), *content_proof.reading(tuning.chosen)]
    if tuning.student:
        sentences.append(
            f"The original is {model(tuning.model)}; the student is {model(tuning.student)}."
        )
    if tuning.chosen.parity:
        sentences.append(agreement(tuning.chosen.parity))
        sentences += content_proof.rests_on(tuning.chosen.parity)
    sentences += content_cascade.promise(tuning)
    return (*sentences, *lead(tuning), *_ceiling(tuning))


def first(tuning: Tuning) -> str:
    """The fastest way and its speed-up over the original, one text at a time."""
    chosen = tuning.chosen
    whose = "" if chosen.candidate.model == "original" else f"the {chosen.candidate.model} in "
    name = family(chosen.candidate.stages[0]).removeprefix(f"{chosen.candidate.model} ")
    rest = content_cascade.rest(tuning)
    answer = f"Fastest: {whose}{name} ({layout(chosen.candidate)}, {_batches(tuning)}){rest}."
    if not chosen.ratio_to_baseline:
        return answer
    one_by_one = "" if _in_latency(tuning) else " one text at a time"
    than = f"{_usual(tuning)}{one_by_one}"
    return f"{answer} {faster(chosen.ratio_to_baseline, than, within=_within(chosen))}."


def speeds(tuning: Tuning) -> Iterator[str]:
    """Speed in units, and beside the best that the original's own engine can do."""
    run, before = tuning.chosen.main, tuning.baseline.main
    assert run
    assert before
    if _in_latency(tuning):
        now, then = (milliseconds(percentile(r.batch_latency_s, 50)) for r in (run, before))
        yield f"Median {now} a text instead of {then}."
    else:
        yield f"{number(run.texts_per_s)} texts/s instead of {number(before.texts_per_s)}."
    own = own_best(tuning)
    if own is None:
        return
    if own is tuning.chosen:
        yield _other_engines(tuning)
        return
    best = f"{_usual(tuning)}'s own best, {layout(own.candidate)}"
    ratio = own.main and speed_up(own.main, run, seed=tuning.settings.seed)
    if ratio:
        yield f"{faster(ratio, best, within=_within(tuning.chosen))}."
    else:
        estimate = tokens_per_s(tuning.chosen) / tokens_per_s(own)
        yield f"About {number(estimate)}x the speed of {best} (estimated)."


def own_best(tuning: Tuning) -> Row | None:
    """The fastest candidate of the baseline's engine with the original's weights in fp32.

    It may rest on an estimate, so ``tuning`` must have been made comparable.
    """
    rows = [
        row
        for row in tuning.rows
        if row.candidate.engine == tuning.baseline.candidate.engine
        and row.candidate.exact
        and row.status in ("chosen", "finalist", "dropped")
        and (row.main or (row.screen_tokens_per_s and not _in_latency(tuning)))
    ]
    # A measurement is worth more than an estimate that is hardly higher.
    return max(rows, key=lambda row: tokens_per_s(row) * (1.05 if row.main else 1), default=None)


def _other_engines(tuning: Tuning) -> str:
    """Why the baseline's own engine won: nothing else was measured, faster, or accepted."""
    chosen = tuning.chosen
    timed = [
        row
        for row in tuning.rows
        if row.candidate.engine != chosen.candidate.engine and tokens_per_s(row)
    ]
    if not timed:
        return "No other engine was measured."
    if any(
        row.status in ("refused", "dropped") and tokens_per_s(row) > tokens_per_s(chosen)
        for row in timed
    ):
        return "Faster candidates of other engines were refused, or not proved in time."
    return f"No other engine that was measured is clearly faster than {_usual(tuning)} itself."


def lead(tuning: Tuning) -> Iterator[str]:
    """How far behind the runner-up is, and what decided where the rounds do not."""
    ratio = tuning.ratio_to_runner_up
    if not tuning.runner_up or not ratio:
        return
    runner_up = next(row for row in tuning.rows if row.candidate.label == tuning.runner_up)
    name = f"{family(runner_up.candidate)} ({layout(runner_up.candidate)})"
    if tuning.tie:
        yield f"Tied with {name}, which takes {interval(ratio)} times as long; the simpler won."
        return
    yield f"The runner-up, {name}, takes {interval(ratio)} times as long."
    if ratio.estimate < 1.0:
        yield "It is lossy, and a lossy candidate wins only where it is clearly faster."
    elif ratio.holds(1.0):
        yield "The difference is not significant; the one with the lower mean time was chosen."


def faster(ratio: Interval, than: str, *, within: str = "") -> str:
    """``1.83x faster than PyTorch (95 % interval 1.62-2.05)``.

    ``within`` says what the interval does not look beyond.

    >>> faster(Interval(0.95, 1.04, 1.1), "PyTorch")
    '1.04x the speed of PyTorch (95 % interval 0.95-1.10)'
    """
    comparison = "faster than" if ratio.low > 1 else "the speed of"
    span = f"95 % interval{within} {number(ratio.low)}-{number(ratio.high)}"
    return f"{number(ratio.estimate)}x {comparison} {than} ({span})"


def _within(row: Row) -> str:
    """Rounds of one process do not show how processes differ."""
    return "" if row.main and row.main.process_count > 1 else " within this run"


def _usual(tuning: Tuning) -> str:
    """What people run today: the baseline's engine, which is PyTorch."""
    name = engine(tuning.baseline.candidate).removesuffix(" eager")
    return f"the original in {name}" if tuning.student else name


def _in_latency(tuning: Tuning) -> bool:
    return tuning.settings.objective == "latency"


def _batches(tuning: Tuning) -> str:
    run = tuning.chosen.main
    assert run
    if _in_latency(tuning):
        return "one text at a time"
    return {
        "optimal": "batches planned by length",
        "sorted": f"batches of {run.strategy.batch_size}, sorted by length",
        "arrival": f"batches of {run.strategy.batch_size} in arrival order",
        "token_budget": f"batches of up to {run.strategy.token_budget} tokens, sorted by length",
    }[run.strategy.name]


def _ceiling(tuning: Tuning) -> Iterator[str]:
    chosen, precision = tuning.chosen, tuning.chosen.candidate.precision
    run, share = chosen.main, chosen.ceiling_share
    assert run
    if share is None:
        if precision == "int8" and tuning.ceilings:
            yield "No int8 matrix product was measured to compare it with."
    else:
        yield (
            f"It reaches {percent(share)} of the fastest {precision} matrix product measured on "
            f"this machine; {percent(run.padding_share)} of the tokens are padding."
        )
        if share > HIGHEST_SHARE:
            yield "No model exceeds that product: it was measured too low, on a busy machine."
