"""First looks: load everything, time a few shapes of everything, drop what is clearly slower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hasten.inputs.corpus import stratified_sample
from hasten.judging.parity import TENSOR_TOLERANCE, verdict
from hasten.judging.stats import clopper_pearson_lower
from hasten.records import Candidate, Settings, Strategy
from hasten.runtime import probes
from hasten.runtime.batching import CostModel, best_strategy, plan, predict_s
from hasten.tasks import Outputs
from hasten.tuning.context import Context
from hasten.tuning.entrant import Batching, Entrant, Shape
from hasten.tuning.worker import RunTexts

_PROBE_FLIPS = 0.25
_PROBE_TOLERANCE = 3 * TENSOR_TOLERANCE

_SCREEN_ROUNDS = 3
# Drift within a screen is below this here; a candidate this far behind does not catch up.
_CLEARLY_SLOWER = 1.3
_MOST_EXACT, _MOST_LOSSY = 4, 3  # of a precision; what is refused was proved for nothing
# Of a precision that is not the fastest, the second is kept if it is this near to the first.
_RIVALS, _TIED = 2, 1.1
# Two streams instead of one, or the other way round, gained up to 1.4.
_LAYOUT_GAIN = 1.6
_LATENCY_MARGIN = 0.8
_NOT_STARTED = "not started,"
# Workers stay alive side by side; leave the rest to the page cache and to everybody else.
_MEMORY_SHARE = 0.8


def first_looks(
    context: Context,
    entrants: Sequence[Entrant],
    baseline: Entrant,
    truth: Outputs,
    known: Sequence[Entrant] = (),
) -> None:
    """Load, probe and time everybody, and drop what is clearly slower than the best.

    One layout of each format goes first, where possible the one that is best for its engine among
    those that are ``known`` from an earlier first look. The others are only started for formats
    that another layout could still bring to the front, and a student's formats only where the
    original's did not turn out hopeless. ``truth`` has the original's outputs.
    """
    settled = [entrant for entrant in known if entrant.in_play]
    seen = _first_layouts(entrants, settled)
    first = [entrant for entrant in entrants if entrant in seen.values()]
    others = [entrant for entrant in entrants if entrant not in first]
    originals = [entrant for entrant in first if entrant.candidate.model == "original"]
    students = [entrant for entrant in first if entrant not in originals]
    part = "prepare original" if students else "prepare"
    prepare_all(context, originals, truth, part=part, beside=settled)
    time_shapes(context, originals if known else [baseline, *originals])
    if students:
        _drop_hopeless(context, originals, settled)
        _first_looks_at_students(context, students, [*known, *originals], truth)
    if others:
        _drop_hopeless(context, first, settled)
        for entrant in others:
            _follow(entrant, seen[entrant.candidate.format])
        others = [entrant for entrant in others if entrant.in_play]
        beside = [*settled, *first]
        prepare_all(context, others, truth, part="prepare again", like=seen, beside=beside)
    if others or students:
        # Side by side: what was timed one after the other has drifted apart.
        time_shapes(context, [e for e in (*first, *others) if e.in_play], again=True)
    for entrant in entrants:
        if entrant.in_play:
            score(context, entrant)
    still = [entrant for entrant in entrants if entrant.in_play]
    _drop_slower(still, settled, context.settings.max_flips)


def _first_layouts(entrants: Sequence[Entrant], settled: Sequence[Entrant]) -> dict[str, Entrant]:
    """The layout of each format that is tried first."""
    ranked = sorted(settled, key=lambda entrant: entrant.screen_tokens_per_s or 0.0)
    best = {entrant.candidate.engine: entrant.candidate.layout for entrant in ranked}
    layouts: dict[str, Entrant] = {}
    for entrant in entrants:
        candidate = entrant.candidate
        if best.get(candidate.engine) == candidate.layout:
            layouts[candidate.format] = entrant
        layouts.setdefault(candidate.format, entrant)
    return layouts


def _first_looks_at_students(
    context: Context,
    students: Sequence[Entrant],
    originals: Sequence[Entrant],
    truth: Outputs,
) -> None:
    """Load, probe and time the student's formats, but those that are too slow for the original.

    A format that is far behind another with the original is so with its student, whose blocks
    are of the same kind; only that halves the cost of trying both.
    """
    seen: dict[str, Entrant] = {}
    for entrant in originals:
        seen.setdefault(entrant.candidate.format, entrant)
    for entrant in students:
        same = seen.get(replace(entrant.candidate, model="original").format)
        # What no time or memory was left for, or what gave other answers, says nothing here.
        if same and same.status == "dropped" and same.cells and not same.out_of_time:
            entrant.end("dropped", f"{_NOT_STARTED} as with the original: {same.reason}")
    running = [entrant for entrant in students if entrant.in_play]
    prepare_all(context, running, truth, part="prepare student", beside=originals)
    time_shapes(context, running, stage="screen student")


def prepare_all(
    context: Context,
    entrants: Sequence[Entrant],
    truth: Outputs,
    *,
    part: str = "prepare",
    whose: str = "",
    like: Mapping[str, Entrant] | None = None,
    beside: Sequence[Entrant] = (),
) -> None:
    """Export and load every candidate, and compare a few answers with the original's.

    ``truth`` has the original's outputs. Obviously wrong candidates are refused here, so that they
    cannot crowd out a right one; the full proof comes with the finals. Nothing more is started
    when the time for ``part`` has been used, of which ``whose`` tells several apart; ``like`` are
    other layouts by format, which took as long to start, and ``beside`` others whose workers hold
    memory.
    """
    deadline_s = context.budget.deadline(part, whose)
    for number, entrant in enumerate(entrants, start=1):
        begun = (like or {}).get(entrant.candidate.format)
        start_s = begun.start_up.load_s if begun and begun.start_up else 0.0
        late = context.budget.spent_s + start_s > deadline_s
        if late and not entrant.has_started:
            reason = "the budget left no time to try it; raise --budget"
            entrant.end("dropped", reason, for_time=True)
            continue
        if not _fits_in_memory(context, [*beside, *entrants]):
            reason = "no memory left to keep it beside the others; see --engines"
            entrant.end("dropped", reason, for_time=True)
            continue
        context.tell("prepare", f"{entrant.label} ({number} of {len(entrants)})")
        entrant.prepare()
        if entrant.in_play:
            _probe(context, entrant, truth)


def time_shapes(
    context: Context, entrants: Sequence[Entrant], *, stage: str = "screen", again: bool = False
) -> None:
    """Time a few representative shapes of everybody; ``again`` adds to an earlier time.

    ``stage`` is what the journal calls the moment at which the time for it will be used up.
    """
    stage, begin = ("screen again", _SCREEN_ROUNDS) if again else (stage, 0)
    deadline_s = context.budget.deadline(stage)
    visits = range(begin, begin + _SCREEN_ROUNDS)
    sweep(context, entrants, _screen_shapes(context), visits, deadline_s, stage="screen")


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
    """Whether everybody can visit the shape in time, or an interrupted run has begun with it."""
    if not running or any(entrant.has_timed(shape, visit) for entrant in running):
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
            context.lengths_for(entrant.candidate),
            cost,
            context.settings.batch_sizes,
            max_batch_latency_s=batch_limit_s(context.settings, entrant.candidate),
        )
    return strategy, predicted_s(context, entrant, strategy)


def predicted_s(context: Context, entrant: Entrant, strategy: Strategy) -> float:
    """Seconds that the candidate's cost table predicts for all judged texts."""
    lengths = context.lengths_for(entrant.candidate)
    return predict_s(lengths, *planned(context, entrant, strategy)) + entrant.later_s


def planned(
    context: Context, entrant: Entrant, strategy: Strategy
) -> tuple[list[NDArray[np.int64]], CostModel]:
    """The candidate's batches of all judged texts, and the costs they were planned with.

    Of a cascade, those of its first stage.
    """
    cost = entrant.cost_model()
    assert cost, f"{entrant.label} has not been timed"
    limit_s = batch_limit_s(context.settings, entrant.candidate)
    lengths = context.lengths_for(entrant.candidate)
    return plan(lengths, strategy, cost, max_batch_latency_s=limit_s), cost


def message_for(
    context: Context,
    entrant: Entrant,
    indices: tuple[int, ...],
    *,
    strategy: Strategy | None = None,
    outputs: bool = False,
) -> RunTexts:
    """What to ask the candidate's worker; without a ``strategy``, for its own best plan."""
    if strategy is None:
        best = best_plan(context, entrant)
        strategy = best[0] if best else Strategy("arrival", 1)
    return RunTexts(
        indices,
        strategy,
        cost_table=entrant.cost_table(),
        max_batch_latency_s=batch_limit_s(context.settings, entrant.candidate),
        one_by_one=context.settings.objective == "latency",
        outputs=outputs,
    )


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


def probe(context: Context) -> RunTexts:
    """A few texts, of all lengths, to be answered in batches with padding."""
    sample = stratified_sample(context.lengths, probes.TEXTS, context.settings.seed)
    return RunTexts(tuple(map(int, sample)), probes.STRATEGY, outputs=True)


def first_look(context: Context) -> RunTexts:
    """As :func:`probe`, over texts that judge nothing, where there are any."""
    if not context.first_look:
        return probe(context)
    indices = range(len(context.texts), context.answered_texts)
    return RunTexts(tuple(indices), probes.STRATEGY, outputs=True)


def _probe(context: Context, entrant: Entrant, truth: Outputs) -> None:
    parity = entrant.prove("probe", [Batching("probe", (first_look(context),))], truth)
    if parity is None:
        return
    exact = entrant.candidate.exact
    reason = verdict(
        parity,
        exact=exact,
        exact_uncut=entrant.candidate.untruncated.exact,
        max_flips=1.0,
        strict=False,
        tensor_tolerance=_PROBE_TOLERANCE,
    )
    # The flip rate of so few texts says little; what it cannot hide is a broken export.
    most = max(_PROBE_FLIPS, context.settings.max_flips)
    if reason:
        entrant.refuse(f"on {parity.compared} texts: {reason}")
    elif not exact and parity.flip_rate > most:
        changed = f"{parity.flips} of {parity.compared} labels flipped"
        entrant.refuse(f"{changed}; the first look stops at {100 * most:.0f} %")


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


def score(context: Context, entrant: Entrant) -> None:
    """Note the speed that the candidate's cost table predicts, in tokens of whole texts."""
    best = best_plan(context, entrant)
    if best:
        entrant.screen_tokens_per_s = float(context.lengths.sum()) / best[1]


def _drop_hopeless(context: Context, first: Sequence[Entrant], settled: Sequence[Entrant]) -> None:
    """Drop what is so slow that no other layout can make up for it."""
    for entrant in first:
        if entrant.in_play:
            score(context, entrant)
    running = [e for e in (*settled, *first) if e.in_play and e.screen_tokens_per_s]
    best = max((e.screen_tokens_per_s or 0.0 for e in running), default=0.0)
    leader = next((e for e in running if e.screen_tokens_per_s == best), None)
    leaders = _leaders(running)
    for entrant in running:
        speed = entrant.screen_tokens_per_s or 0.0
        own = leaders[entrant.candidate.variant].screen_tokens_per_s or 0.0
        # Each variant keeps its own best: the report shows what a step down gains.
        if leader and speed * _LAYOUT_GAIN < own and entrant not in settled:
            entrant.end("dropped", f"{best / speed:.3g}x slower than {leader.label}")


def _follow(entrant: Entrant, first: Entrant) -> None:
    """Settle another layout of a format whose first one is too slow."""
    if first.status == "dropped":
        reason = first.reason or ""
        if not reason.startswith(_NOT_STARTED):
            reason = f"{_NOT_STARTED} as with the layout {first.candidate.layout}: {reason}"
        entrant.end("dropped", reason)


def _leaders(running: Sequence[Entrant]) -> dict[str, Entrant]:
    """The fastest of each precision, and of a student's."""
    leaders: dict[str, Entrant] = {}
    for entrant in sorted(running, key=lambda e: -(e.screen_tokens_per_s or 0.0)):
        leaders.setdefault(entrant.candidate.variant, entrant)
    return leaders


def _drop_slower(running: Sequence[Entrant], settled: Sequence[Entrant], max_flips: float) -> None:
    """Keep the few most promising, and the best of each variant with its closest rival.

    Those stay in case a lossier one is refused, and to show what each step down gains. Whose
    first answers speak against it comes after all whose do not, however fast it is.
    """

    def promise(entrant: Entrant) -> tuple[bool, float]:
        return not may_pass(entrant, max_flips), -(entrant.screen_tokens_per_s or 0.0)

    ranked = sorted([*settled, *running], key=promise)
    if not ranked:
        return
    best, first = ranked[0].screen_tokens_per_s or 0.0, dict[str, float]()
    places: Counter[str] = Counter()
    for entrant in ranked:
        speed, variant = entrant.screen_tokens_per_s, entrant.candidate.variant
        if not speed:
            reason = "the budget left no time to time it; raise --budget"
            entrant.end("dropped", reason, for_time=True)
            continue
        place, own = places[variant], first.setdefault(variant, speed)
        places[variant] += 1
        most = _MOST_EXACT if entrant.candidate.exact else _MOST_LOSSY
        near = speed * _CLEARLY_SLOWER >= best
        rival = place < _RIVALS and speed * _TIED >= own
        if place == 0 or rival or (near and place < most) or entrant in settled:
            continue
        why = f"{best / speed:.3g}x slower than {ranked[0].label}"
        if near:
            behind = "is slower"
            if not may_pass(entrant, max_flips):
                behind = "flipped more labels on the first texts"
            why = f"only the {most} most promising {variant} candidates go on, and it {behind}"
        entrant.end("dropped", why)


def may_pass(entrant: Entrant, max_flips: float) -> bool:
    """Whether the few answers of the first look leave it open that no more than these change."""
    parity = entrant.parity
    if parity is None or not parity.decisions:
        return True
    return clopper_pearson_lower(parity.flips, parity.compared) <= max_flips
