"""Who of the accepted goes into the final rounds."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.tuning.plans import best_plan
from hasten.tuning.trial import Trial

MOST_FINALISTS = 3


def line_up(accepted: Sequence[Trial]) -> list[Trial]:
    """Those still in play, no more of them than rounds are run for.

    The fastest comes first, and an exact one second at the latest: where the time does not hold
    all of them, the last ones are left out. Who was repaired was accepted last and is, as a rule,
    the fastest.
    """
    running = {e: plan[1] for e in accepted if e.in_play and (plan := best_plan(e))}
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
