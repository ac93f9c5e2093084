"""First looks: load everything, time a few shapes of everything, drop what is clearly slower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.batching import best_strategy, plan, predict_s
from hasten.corpus import stratified_sample
from hasten.parity import verdict
from hasten.records import Candidate, Settings, Strategy
from hasten.tuning.context import Context
from hasten.tuning.entrant import Entrant, Shape
from hasten.tuning.worker import RunTexts

PROBE_TEXTS = 32
PROBE_STRATEGY = Strategy("sorted", 8)
_PROBE_FLIPS = 0.25

_PREPARE_SHARE = 0.45
_SCREEN_SHARE = 0.12
_SCREEN_ROUNDS = 3
# Drift within a screen is below this here; a candidate this far behind does not catch up.
_CLEARLY_SLOWER = 1.3
_MOST_SURVIVORS = 4
_LATENCY_MARGIN = 0.8
# Workers stay alive side by side; leave the rest to the page cache and to everybody else.
_MEMORY_SHARE = 0.8


def prepare_all(context: Context, entrants: Sequence[Entrant], truth: NDArray[np.float32]) -> None:
    """Export and load every candidate, and compare a few answers with the original's.

    ``truth`` is float32 [texts, k]. Obviously wrong candidates are refused here, so that they
    cannot crowd out a right one; the full proof comes with the finals.
    """
    deadline_s = context.budget.deadline("prepare", _PREPARE_SHARE)
    probe = stratified_sample(context.lengths, PROBE_TEXTS, context.settings.seed)
    for number, entrant in enumerate(entrants, start=1):
        if context.budget.spent_s > deadline_s and not entrant.has_started:
            entrant.end("dropped", "the budget left no time to try it; raise --budget")
            continue
        if not _fits_in_memory(context, entrants):
            entrant.end("dropped", "no memory left to keep it beside the others; see --engines")
            continue
        context.tell("prepare", f"{entrant.label} ({number} of {len(entrants)})")
        entrant.prepare()
        if entrant.in_play:
            _probe(context, entrant, probe, truth)


def screen(context: Context, entrants: Sequence[Entrant], baseline: Entrant) -> None:
    """Time a few representative shapes and drop what is clearly slower than the best."""
    time_shapes(context, [baseline, *entrants])
    for entrant in entrants:
        if entrant.in_play:
            _score(context, entrant)
    _drop_slower([entrant for entrant in entrants if entrant.in_play])


def time_shapes(context: Context, entrants: Sequence[Entrant]) -> None:
    """Time a few representative shapes of everybody."""
    deadline_s = context.budget.deadline("screen", _SCREEN_SHARE)
    shapes, visits = _screen_shapes(context), range(_SCREEN_ROUNDS)
    sweep(context, entrants, shapes, visits, deadline_s, stage="screen")


def sweep(
    context: Context,
    entrants: Sequence[Entrant],
    shapes: Sequence[Shape],
    visits: range,
    deadline_s: float,
    *,
    stage: str,
) -> None:
    """Visit every shape with every candidate in turn, small shapes first, several times over.

    One visit of a shape goes through all candidates before the next shape begins, so that a
    drifting machine drifts for all of them. Shapes that would not fit before ``deadline_s`` are
    left out; the cost model extrapolates over them.
    """
    for visit in visits:
        for shape in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            running = [entrant for entrant in entrants if entrant.in_play]
            seen = visit == visits.start or any(shape in entrant.cells for entrant in running)
            if not (seen and _affordable(context, running, shape, visit, deadline_s)):
                continue  # what was left out at the first visit has not become cheaper
            # The order rotates, so that nobody always runs on the heat of the same neighbour.
            turn = visit % len(running)
            for entrant in running[turn:] + running[:turn]:
                batch_size, length = shape
                message = f"{entrant.label}, {batch_size} x {length} tokens, visit {visit + 1}"
                context.tell(stage, message)
                entrant.time_shape(shape, visit, _expected_s(entrant, shape))


def _affordable(
    context: Context, running: Sequence[Entrant], shape: Shape, visit: int, deadline_s: float
) -> bool:
    """Whether everybody can visit the shape in time, or has already, in an interrupted run."""
    if all(entrant.has_timed(shape, visit) for entrant in running):
        return bool(running)
    expected_s = sum(_expected_s(entrant, shape) for entrant in running)
    return context.budget.spent_s + expected_s <= deadline_s


def best_plan(context: Context, entrant: Entrant) -> tuple[Strategy, float] | None:
    """The strategy that the candidate's cost table likes best, and the seconds it predicts."""
    cost = entrant.cost_model()
    if cost is None:
        return None
    if context.settings.objective == "latency":
        strategy = Strategy("arrival", 1)
    else:
        strategy = best_strategy(
            context.lengths,
            cost,
            context.settings.batch_sizes,
            max_batch_latency_s=batch_limit_s(context.settings, entrant.candidate),
        )
    return strategy, predicted_s(context, entrant, strategy)


def predicted_s(context: Context, entrant: Entrant, strategy: Strategy) -> float:
    """Seconds that the candidate's cost table predicts for all judged texts."""
    cost = entrant.cost_model()
    assert cost, f"{entrant.label} has not been timed"
    limit_s = batch_limit_s(context.settings, entrant.candidate)
    batches = plan(context.lengths, strategy, cost, max_batch_latency_s=limit_s)
    return predict_s(context.lengths, batches, cost)


def batch_limit_s(settings: Settings, candidate: Candidate) -> float | None:
    """What one batch may cost under ``--max-latency-ms``, in the cost table's terms.

    Planned with a margin, since batches vary around their median. A table's seconds are
    wall-clock time divided by the streams that ran at once; a single batch takes ``streams``
    times as long from its begin to its end.
    """
    limit_ms = settings.max_latency_ms
    if limit_ms is None:
        return None
    return _LATENCY_MARGIN * limit_ms / 1000 / candidate.streams


def _fits_in_memory(context: Context, entrants: Sequence[Entrant]) -> bool:
    taken = [e.start_up.peak_bytes for e in entrants if e.in_play and e.start_up]
    needed = sum(taken) + max(taken, default=0)
    return needed < _MEMORY_SHARE * context.hardware.memory_bytes


def _probe(
    context: Context, entrant: Entrant, probe: NDArray[np.int64], truth: NDArray[np.float32]
) -> None:
    message = RunTexts(tuple(map(int, probe)), PROBE_STRATEGY, outputs=True)
    parity = entrant.prove("probe", message, truth)
    if parity is None:
        return
    # The flip rate of so few texts says little; what it cannot hide is a broken export.
    max_flips = max(_PROBE_FLIPS, context.settings.max_flips)
    reason = verdict(parity, entrant.candidate.precision, max_flips=max_flips, strict=False)
    if reason:
        entrant.end("refused", f"on {len(probe)} texts: {reason}")


def _screen_shapes(context: Context) -> list[Shape]:
    typical, long = context.profile.p50, context.profile.p95
    if context.settings.objective == "latency":
        return [(1, length) for length in sorted({typical, long})]
    sizes = context.settings.batch_sizes
    wanted = {min(sizes, key=lambda size: abs(size - target)) for target in (1, 8, 32)}
    return sorted({(size, length) for size in wanted for length in (typical, long)})


def _expected_s(entrant: Entrant, shape: Shape) -> float:
    """What a visit will take: a warm-up and a sample, or the least time that is measured."""
    cost = entrant.cost_model()
    if cost is None:
        return 0.0
    one_s = cost.cost_s(*shape) * entrant.candidate.streams
    return max(2 * one_s, 0.03)


def _score(context: Context, entrant: Entrant) -> None:
    best = best_plan(context, entrant)
    if best:
        entrant.screen_tokens_per_s = float(context.lengths.sum()) / best[1]


def _drop_slower(running: list[Entrant]) -> None:
    """Keep the few fastest, and the fastest exact one in case every lossy one is refused."""
    ranked = sorted(running, key=lambda e: -(e.screen_tokens_per_s or 0.0))
    if not ranked:
        return
    best = ranked[0].screen_tokens_per_s or 0.0
    exact = next((e for e in ranked if e.candidate.precision == "fp32"), None)
    for place, entrant in enumerate(ranked):
        speed = entrant.screen_tokens_per_s
        if not speed:
            entrant.end("dropped", "the budget left no time to time it; raise --budget")
        elif entrant is not exact and (place >= _MOST_SURVIVORS or speed * _CLEARLY_SLOWER < best):
            entrant.end("dropped", f"{best / speed:.1f}x slower than {ranked[0].label}")
