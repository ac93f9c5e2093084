"""First looks: load everything, time a few shapes of everything, drop what is clearly slower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hasten.inputs.corpus import stratified_sample
from hasten.judging.parity import TENSOR_TOLERANCE, verdict
from hasten.judging.stats import clopper_pearson_lower
from hasten.percent import percent
from hasten.runtime import probes
from hasten.tasks import Outputs
from hasten.tuning import timing
from hasten.tuning.context import Context
from hasten.tuning.plans import best_plan
from hasten.tuning.trial import Batching, Shape, Trial
from hasten.tuning.worker import RunTexts

_PROBE_FLIPS = 0.25
_PROBE_TOLERANCE = 3 * TENSOR_TOLERANCE

# Drift within a screen is below this here; a candidate this far behind does not catch up.
_CLEARLY_SLOWER = 1.3
_MOST_EXACT, _MOST_LOSSY = 4, 3  # of a precision; what is refused was proved for nothing
# Of a precision that is not the fastest, the second is kept if it is this near to the first.
_RIVALS, _TIED = 2, 1.1
# Two streams instead of one, or the other way round, gained up to 1.4.
_LAYOUT_GAIN = 1.6
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
        _drop_hopeless(originals, settled)
        _first_looks_at_students(context, students, [*known, *originals], truth)
    if others:
        _drop_hopeless(first, settled)
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
            score(trial)
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
            trial.end("dropped", f"not started, as with the original: {same.reason}")
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
    deadline = context.budget.deadline(part, whose)
    for number, trial in enumerate(trials, start=1):
        begun = (like or {}).get(trial.candidate.format)
        start_s = begun.start_up.load_s if begun and begun.start_up else 0.0
        if not deadline.allows(start_s) and not trial.has_started:
            reason = "the budget left no time to try it; raise --budget"
            trial.end("dropped", reason, for_time=True)
            continue
        if not _fits_in_memory(context, [*beside, *trials]):
            reason = "no memory left to keep it beside the others; see --engines"
            trial.end("dropped", reason, for_time=True)
            continue
        context.budget.tell("prepare", f"{trial.label} ({number} of {len(trials)})")
        trial.prepare()
        if trial.in_play:
            _probe(context, trial, truth)


def time_shapes(
    context: Context, trials: Sequence[Trial], *, stage: str = "screen", again: bool = False
) -> None:
    """Time a few representative shapes of everybody; ``again`` adds to an earlier time.

    ``stage`` is what the journal calls the moment at which the time for it will be used up.
    """
    visits = timing.SCREEN_VISITS
    if again:
        stage, visits = "screen again", timing.SCREEN_AGAIN_VISITS
    deadline = context.budget.deadline(stage)
    shapes = _screen_shapes(context)
    timing.sweep(context.budget, trials, shapes, visits, stage="screen", deadline=deadline)


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
        trial.refuse(f"{changed}; the first look stops at {percent(most)}")


def _screen_shapes(context: Context) -> list[Shape]:
    typical, long = context.profile.p50, context.profile.p95
    if context.settings.objective == "latency":
        return [(1, length) for length in sorted({typical, long})]
    sizes = context.settings.batch_sizes
    wanted = {min(sizes, key=lambda size: abs(size - target)) for target in (1, 8, 32)}
    return sorted({(size, length) for size in wanted for length in (typical, long)})


def score(trial: Trial) -> None:
    """Note the speed that the candidate's cost table predicts."""
    best = best_plan(trial)
    if best:
        trial.predict(best[1])


def _drop_hopeless(first: Sequence[Trial], settled: Sequence[Trial]) -> None:
    """Drop what is so slow that no other layout can make up for it."""
    for trial in first:
        if trial.in_play:
            score(trial)
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
        reason = first.reason
        if first.start_up:
            reason = f"not started, as with the layout {first.candidate.layout}: {reason}"
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
