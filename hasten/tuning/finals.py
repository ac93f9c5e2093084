"""Cost tables for the survivors, and who of the accepted goes into the final rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hasten.tuning.context import Context
from hasten.tuning.screening import best_plan, sweep
from hasten.tuning.trial import Trial

_TABLE_VISITS = 3
_MOST_LENGTHS = 7
MOST_FINALISTS = 3


def measure_tables(
    context: Context, survivors: Sequence[Trial], *, part: str = "cost table", whose: str = ""
) -> None:
    """Fill the survivors' cost tables, small shapes first.

    ``part`` of the time is for it, and ``whose`` tells several of that name apart.
    """
    if context.settings.objective == "latency":
        shapes = [(1, length) for length in table_lengths(context)]
    else:
        lengths = table_lengths(context)
        shapes = [(size, length) for size in context.settings.batch_sizes for length in lengths]
    deadline_s = context.budget.deadline(part, whose)
    visits = range(10, 10 + _TABLE_VISITS)
    sweep(context, survivors, shapes, visits, deadline_s, stage="cost table")


def table_lengths(context: Context) -> list[int]:
    """Lengths that span the user's texts: doubling steps between the shortest and the longest.

    Costs are close to linear between neighbours at a factor of two; quantiles would put all
    lengths where the texts are and leave the long end, which costs most, to extrapolation.
    """
    profile = context.profile
    low, high = max(profile.p5, 4), max(profile.longest, 4)
    steps = min(_MOST_LENGTHS, 1 + max(1, round(np.log2(high / low))))
    return sorted({round(n) for n in np.geomspace(low, high, steps)} | {profile.p50})


def line_up(context: Context, accepted: Sequence[Trial]) -> list[Trial]:
    """Those still in play, no more of them than rounds are run for.

    The fastest comes first, and an exact one second at the latest: where the time does not hold
    all of them, the last ones are left out. Who was repaired was accepted last and is, as a rule,
    the fastest.
    """
    running = {e: plan[1] for e in accepted if e.in_play and (plan := best_plan(context, e))}
    kept: list[Trial] = []
    for trial in sorted(running, key=lambda trial: running[trial]):
        variants = {other.candidate.variant for other in kept}
        if len(kept) < MOST_FINALISTS or trial.candidate.variant not in variants:
            kept.append(trial)
        else:
            trial.end("dropped", f"accepted, but {len(kept)} faster ones were as well")
    return exact_early(kept)


def exact_early(ranked: list[Trial]) -> list[Trial]:
    """The same with the first exact one no later than second: a lossy one has to beat it."""
    exact = next((trial for trial in ranked if trial.candidate.exact), None)
    if exact is None or exact is ranked[0]:
        return ranked
    return [ranked[0], exact, *(trial for trial in ranked[1:] if trial is not exact)]
