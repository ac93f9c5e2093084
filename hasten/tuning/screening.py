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
from hasten.tuning.trial import Batching, Shape, Trial
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
    trials: Sequence[Trial],
    baseline: Trial,
    truth: Outputs,
    known: Sequence[Trial] = (),
) -> None:
    """Load, probe and time everybody, and drop what is clearly slower than the best.

    One layout of each format goes first, where possible the one that is best for its engine among
    those that are ``known`` from an earlier first look. The others are only started for formats
    that another layout could still bring to the front, and a student's formats only where the
    original's did not turn out hopeless. ``truth`` has the original's outputs.
    """
    settled = [trial for trial in known if trial.in_play]
    seen = _first_layouts(trials, settled)
    first = [trial for trial in trials if trial in seen.values()]
    others = [trial for trial in trials if trial not in first]
    originals = [trial for trial in first if trial.candidate.model == "original"]
    students = [trial for trial in first if trial not in originals]
    part = "prepare original" if students else "prepare"
    prepare_all(context, originals, truth, part=part, beside=settled)
    time_shapes(context, originals if known else [baseline, *originals])
    if students:
        _drop_hopeless(context, originals, settled)
        _first_looks_at_students(context, students, [*known, *originals], truth)
    if others:
        _drop_hopeless(context, first, settled)
        for trial in others:
            _follow(trial, seen[trial.candidate.format])
        others = [trial for trial in others if trial.in_play]
        beside = [*settled, *first]
        prepare_all(context, others, truth, part="prepare again", like=seen, beside=beside)
    if others or students:
        # Side by side: what was timed one after the other has drifted apart.
        time_shapes(context, [e for e in (*first, *others) if e.in_play], again=True)
    for trial in trials:
        if trial.in_play:
            score(context, trial)
    still = [trial for trial in trials if trial.in_play]
    _drop_slower(still, settled, context.settings.max_flips)


def _first_layouts(trials: Sequence[Trial], settled: Sequence[Trial]) -> dict[str, Trial]:
    """The layout of each format that is tried first."""
    ranked = sorted(settled, key=lambda trial: trial.screen_tokens_per_s or 0.0)
    best = {trial.candidate.engine: trial.candidate.layout for trial in ranked}
    layouts: dict[str, Trial] = {}
    for trial in trials:
        candidate = trial.candidate
        if best.get(candidate.engine) == candidate.layout:
            layouts[candidate.format] = trial
        layouts.setdefault(candidate.format, trial)
    return layouts


def _first_looks_at_students(
    context: Context,
    students: Sequence[Trial],
    originals: Sequence[Trial],
    truth: Outputs,
) -> None:
    """Load, probe and time the student's formats, but those that are too slow for the original.

    A format that is far behind another with the original is so with its student, whose blocks
    are of the same kind; only that halves the cost of trying both.
    """
    seen: dict[str, Trial] = {}
    for trial in originals:
        seen.setdefault(trial.candidate.format, trial)
    for trial in students:
        same = seen.get(replace(trial.candidate, model="original").format)
        # What no time or memory was left for, or what gave other answers, says nothing here.
        if same and same.status == "dropped" and same.cells and not same.out_of_time:
            trial.end("dropped", f"{_NOT_STARTED} as with the original: {same.reason}")
    running = [trial for trial in students if trial.in_play]
    prepare_all(context, running, truth, part="prepare student", beside=originals)
    time_shapes(context, running, stage="screen student")


def prepare_all(
    context: Context,
    trials: Sequence[Trial],
    truth: Outputs,
    *,
    part: str = "prepare",
    whose: str = "",
    like: Mapping[str, Trial] | None = None,
    beside: Sequence[Trial] = (),
) -> None:
    """Export and load every candidate, and compare a few answers with the original's.

    ``truth`` has the original's outputs. Obviously wrong candidates are refused here, so that they
    cannot crowd out a right one; the full proof comes with the finals. Nothing more is started
    when the time for ``part`` has been used, of which ``whose`` tells several apart; ``like`` are
    other layouts by format, which took as long to start, and ``beside`` others whose workers hold
    memory.
    """
    deadline_s = context.budget.deadline(part, whose)
    for number, trial in enumerate(trials, start=1):
        begun = (like or {}).get(trial.candidate.format)
        start_s = begun.start_up.load_s if begun and begun.start_up else 0.0
        late = context.budget.spent_s + start_s > deadline_s
        if late and not trial.has_started:
            reason = "the budget left no time to try it; raise --budget"
            trial.end("dropped", reason, for_time=True)
            continue
        if not _fits_in_memory(context, [*beside, *trials]):
            reason = "no memory left to keep it beside the others; see --engines"
            trial.end("dropped", reason, for_time=True)
            continue
        context.tell("prepare", f"{trial.label} ({number} of {len(trials)})")
        trial.prepare()
        if trial.in_play:
            _probe(context, trial, truth)


def time_shapes(
    context: Context, trials: Sequence[Trial], *, stage: str = "screen", again: bool = False
) -> None:
    """Time a few representative shapes of everybody; ``again`` adds to an earlier time.

    ``stage`` is what the journal calls the moment at which the time for it will be used up.
    """
    stage, begin = ("screen again", _SCREEN_ROUNDS) if again else (stage, 0)
    deadline_s = context.budget.deadline(stage)
    visits = range(begin, begin + _SCREEN_ROUNDS)
    sweep(context, trials, _screen_shapes(context), visits, deadline_s, stage="screen")


def sweep(
    context: Context,
    trials: Sequence[Trial],
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
            running = [trial for trial in trials if trial.in_play]
            seen = visit == visits.start or any(shape in trial.cells for trial in running)
            if not (seen and _affordable(context, running, shape, visit, deadline_s)):
                continue  # what was left out at the first visit has not become cheaper
            # The order rotates, so that nobody always runs on the heat of the same neighbour.
            turn = visit % len(running)
            for trial in running[turn:] + running[:turn]:
                batch_size, length = shape
                message = f"{trial.label}, {batch_size} x {length} tokens, visit {visit + 1}"
                context.tell(stage, message)
                trial.time_shape(shape, visit, _expected_s(trial, shape))


def _affordable(
    context: Context, running: Sequence[Trial], shape: Shape, visit: int, deadline_s: float
) -> bool:
    """Whether everybody can visit the shape in time, or an interrupted run has begun with it."""
    if not running or any(trial.has_timed(shape, visit) for trial in running):
        return bool(running)
    expected_s = sum(_expected_s(trial, shape) for trial in running)
    return context.budget.spent_s + expected_s <= deadline_s


def best_plan(context: Context, trial: Trial) -> tuple[Strategy, float] | None:
    """The strategy that the candidate's cost table likes best, and the seconds it predicts."""
    cost = trial.cost_model()
    if cost is None:
        return None
    if context.settings.objective == "latency":
        strategy = Strategy("arrival", 1)
    else:
        strategy = best_strategy(
            context.lengths_for(trial.candidate),
            cost,
            context.settings.batch_sizes,
            max_batch_latency_s=batch_limit_s(context.settings, trial.candidate),
        )
    return strategy, predicted_s(context, trial, strategy)


def predicted_s(context: Context, trial: Trial, strategy: Strategy) -> float:
    """Seconds that the candidate's cost table predicts for all judged texts."""
    lengths = context.lengths_for(trial.candidate)
    return predict_s(lengths, *planned(context, trial, strategy)) + trial.later_s


def planned(
    context: Context, trial: Trial, strategy: Strategy
) -> tuple[list[NDArray[np.int64]], CostModel]:
    """The candidate's batches of all judged texts, and the costs they were planned with.

    Of a cascade, those of its first stage.
    """
    cost = trial.cost_model()
    assert cost, f"{trial.label} has not been timed"
    limit_s = batch_limit_s(context.settings, trial.candidate)
    lengths = context.lengths_for(trial.candidate)
    return plan(lengths, strategy, cost, max_batch_latency_s=limit_s), cost


def message_for(
    context: Context,
    trial: Trial,
    indices: tuple[int, ...],
    *,
    strategy: Strategy | None = None,
    outputs: bool = False,
) -> RunTexts:
    """What to ask the candidate's worker; without a ``strategy``, for its own best plan."""
    if strategy is None:
        best = best_plan(context, trial)
        strategy = best[0] if best else Strategy("arrival", 1)
    return RunTexts(
        indices,
        strategy,
        cost_table=trial.cost_table(),
        max_batch_latency_s=batch_limit_s(context.settings, trial.candidate),
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


def _fits_in_memory(context: Context, trials: Sequence[Trial]) -> bool:
    taken = [e.start_up.peak_bytes for e in trials if e.in_play and e.start_up]
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


def _probe(context: Context, trial: Trial, truth: Outputs) -> None:
    parity = trial.prove("probe", [Batching("probe", (first_look(context),))], truth)
    if parity is None:
        return
    exact = trial.candidate.exact
    reason = verdict(
        parity,
        exact=exact,
        exact_uncut=trial.candidate.untruncated.exact,
        max_flips=1.0,
        strict=False,
        tensor_tolerance=_PROBE_TOLERANCE,
    )
    # The flip rate of so few texts says little; what it cannot hide is a broken export.
    most = max(_PROBE_FLIPS, context.settings.max_flips)
    if reason:
        trial.refuse(f"on {parity.compared} texts: {reason}")
    elif not exact and parity.flip_rate > most:
        changed = f"{parity.flips} of {parity.compared} labels flipped"
        trial.refuse(f"{changed}; the first look stops at {100 * most:.0f} %")


def _screen_shapes(context: Context) -> list[Shape]:
    typical, long = context.profile.p50, context.profile.p95
    if context.settings.objective == "latency":
        return [(1, length) for length in sorted({typical, long})]
    sizes = context.settings.batch_sizes
    wanted = {min(sizes, key=lambda size: abs(size - target)) for target in (1, 8, 32)}
    return sorted({(size, length) for size in wanted for length in (typical, long)})


def _expected_s(trial: Trial, shape: Shape) -> float:
    """What a visit will take: a warm-up and a sample, or the least time that is measured."""
    cost = trial.cost_model()
    if cost is None:
        return 0.0
    one_s = cost.cost_s(*shape) * trial.candidate.streams
    return max(2 * one_s, 0.03)


def score(context: Context, trial: Trial) -> None:
    """Note the speed that the candidate's cost table predicts, in tokens of whole texts."""
    best = best_plan(context, trial)
    if best:
        trial.screen_tokens_per_s = float(context.lengths.sum()) / best[1]


def _drop_hopeless(context: Context, first: Sequence[Trial], settled: Sequence[Trial]) -> None:
    """Drop what is so slow that no other layout can make up for it."""
    for trial in first:
        if trial.in_play:
            score(context, trial)
    running = [e for e in (*settled, *first) if e.in_play and e.screen_tokens_per_s]
    best = max((e.screen_tokens_per_s or 0.0 for e in running), default=0.0)
    leader = next((e for e in running if e.screen_tokens_per_s == best), None)
    leaders = _leaders(running)
    for trial in running:
        speed = trial.screen_tokens_per_s or 0.0
        own = leaders[trial.candidate.variant].screen_tokens_per_s or 0.0
        # Each variant keeps its own best: the report shows what a step down gains.
        if leader and speed * _LAYOUT_GAIN < own and trial not in settled:
            trial.end("dropped", f"{best / speed:.3g}x slower than {leader.label}")


def _follow(trial: Trial, first: Trial) -> None:
    """Settle another layout of a format whose first one is too slow."""
    if first.status == "dropped":
        reason = first.reason or ""
        if not reason.startswith(_NOT_STARTED):
            reason = f"{_NOT_STARTED} as with the layout {first.candidate.layout}: {reason}"
        trial.end("dropped", reason)


def _leaders(running: Sequence[Trial]) -> dict[str, Trial]:
    """The fastest of each precision, and of a student's."""
    leaders: dict[str, Trial] = {}
    for trial in sorted(running, key=lambda e: -(e.screen_tokens_per_s or 0.0)):
        leaders.setdefault(trial.candidate.variant, trial)
    return leaders


def _drop_slower(running: Sequence[Trial], settled: Sequence[Trial], max_flips: float) -> None:
    """Keep the few most promising, and the best of each variant with its closest rival.

    Those stay in case a lossier one is refused, and to show what each step down gains. Whose
    first answers speak against it comes after all whose do not, however fast it is.
    """

    def promise(trial: Trial) -> tuple[bool, float]:
        return not may_pass(trial, max_flips), -(trial.screen_tokens_per_s or 0.0)

    ranked = sorted([*settled, *running], key=promise)
    if not ranked:
        return
    best, first = ranked[0].screen_tokens_per_s or 0.0, dict[str, float]()
    places: Counter[str] = Counter()
    for trial in ranked:
        speed, variant = trial.screen_tokens_per_s, trial.candidate.variant
        if not speed:
            reason = "the budget left no time to time it; raise --budget"
            trial.end("dropped", reason, for_time=True)
            continue
        place, own = places[variant], first.setdefault(variant, speed)
        places[variant] += 1
        most = _MOST_EXACT if trial.candidate.exact else _MOST_LOSSY
        near = speed * _CLEARLY_SLOWER >= best
        rival = place < _RIVALS and speed * _TIED >= own
        if place == 0 or rival or (near and place < most) or trial in settled:
            continue
        why = f"{best / speed:.3g}x slower than {ranked[0].label}"
        if near:
            behind = "is slower"
            if not may_pass(trial, max_flips):
                behind = "flipped more labels on the first texts"
            why = f"only the {most} most promising {variant} candidates go on, and it {behind}"
        trial.end("dropped", why)


def may_pass(trial: Trial, max_flips: float) -> bool:
    """Whether the few answers of the first look leave it open that no more than these change."""
    parity = trial.parity
    if parity is None or not parity.decisions:
        return True
    return clopper_pearson_lower(parity.flips, parity.compared) <= max_flips
