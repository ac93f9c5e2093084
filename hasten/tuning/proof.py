"""The proof: whose answers to the judged texts are the original's, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from hasten.judging.parity import verdict
from hasten.records import Parity, Strategy
from hasten.runtime import batching
from hasten.tasks import Outputs
from hasten.tuning.context import Context
from hasten.tuning.finals import MOST_FINALISTS, exact_early
from hasten.tuning.plans import ARRIVAL, best_plan, message_for, predicted_s
from hasten.tuning.trial import Batching, Trial
from hasten.tuning.worker import RunTexts

NO_TIME_TO_PROVE = "no time was left to prove its answers; raise --budget"
# Predictions hold to about 10 %; what is further behind than that and noise is out.
_WITHIN_REACH = 1.2
# How many lossy candidates may be judged for the first answer, and what part of the 5 % by which
# all bounds together may fail they share: the later ones share the rest.
_EARLY_TRIES, _EARLY_PART = 2, Fraction(1, 4)


@dataclass(frozen=True, slots=True)
class Tries:
    """How many lossy candidates the judged texts may judge: fixed before they judge any.

    The bounds of all of them hold together, whichever is chosen in the end.
    """

    lossy: int
    """The survivors, and every repair that may be attempted."""

    repairable: tuple[str, ...] = ()
    """Labels of the candidates that may be repaired if they are refused."""

    def of(self, trial: Trial) -> int:
        """Among how many the candidate's bound must hold; an exact one is not chosen by flips."""
        return 1 if trial.candidate.exact else max(1, self.lossy)


def fix_tries(
    context: Context,
    trials: Sequence[Trial],
    repairable: Sequence[Trial] = (),
    attempts: int = 0,
) -> Tries:
    """Count the lossy candidates that may be judged, before any of them is.

    Those that the first look refused or ranked lower count as well if it used judged texts, since
    these then chose who is left. Those that were judged for the first answer have bounds of their
    own, and leave the others a part of the 5 % by which all bounds together may fail. Kept in the
    journal: a resume must not count again.

    Args:
        context: the tune.
        trials: all candidates, after the first look.
        repairable: those that may be repaired.
        attempts: how often each.
    """
    chosen_by_judged = not context.first_look
    lossy = [trial for trial in trials if not trial.candidate.exact]

    def fix() -> dict[str, Any]:
        labels = [trial.label for trial in repairable]
        judged = [trial for trial in lossy if trial.has_proved("parity")]
        count = attempts * len(labels) + sum(
            trial.in_play or (chosen_by_judged and trial.parity is not None)
            for trial in lossy
            if trial not in judged
        )
        return {
            "lossy": ceil(count / (1 - _EARLY_PART)) if judged else count,
            "repairable": labels,
        }

    fixed = context.journal.once("tries:proof", fix)
    return Tries(fixed["lossy"], tuple(fixed["repairable"]))


def choose_finalists(
    context: Context, survivors: Sequence[Trial], truth: Outputs, tries: Tries
) -> list[Trial]:
    """Prove the survivors' answers, the fastest first, until enough have been accepted.

    ``truth`` has the original's outputs.
    """
    predicted = {e: plan[1] for e in survivors if e.in_play and (plan := best_plan(e))}
    ranked = exact_early(sorted(predicted, key=lambda trial: predicted[trial]))
    accepted: list[Trial] = []
    deadline = context.budget.deadline("proof")
    for trial in ranked:
        best = min(accepted, key=lambda other: predicted[other], default=None)
        if best and not _needed(trial, accepted, predicted):
            factor = predicted[trial] / predicted[best]
            trial.end("dropped", f"predicted {factor:.3g}x slower than {best.label}")
            continue
        late = not deadline.allows(expected_s(context, trial))
        # Without an exact one there is nothing that a lossy one must beat.
        waits = any(map(_exact, accepted)) or not _exact(trial)
        if accepted and late and waits and not trial.has_proved("parity"):
            trial.end("dropped", NO_TIME_TO_PROVE, for_time=True)
            continue
        context.budget.tell(
            "proof", f"{trial.label}: {len(context.texts)} texts against the original"
        )
        prove(context, trial, truth, tries)
        if trial.in_play:
            accepted.append(trial)
    return accepted or _last_resort(context, survivors, truth, tries)


def prove_early(context: Context, trials: Sequence[Trial], truth: Outputs) -> list[Trial]:
    """The first of a few lossy candidates whose answers hold, for the first answer.

    At most two are judged, as far as the time holds; their bounds are corrected for themselves.
    """
    deadline = context.budget.deadline("proof truncated")
    for trial in trials[:_EARLY_TRIES]:
        if not (trial.has_proved("parity") or deadline.allows(expected_s(context, trial))):
            break
        context.budget.tell(
            "proof", f"{trial.label}: {len(context.texts)} texts against the original"
        )
        prove(context, trial, truth, Tries(int(_EARLY_TRIES / _EARLY_PART)))
        if trial.in_play:
            return [trial]
    return []


def prove(
    context: Context,
    trial: Trial,
    truth: Outputs,
    tries: Tries,
    strategy: Strategy | None = None,
) -> None:
    """Compare the answers to all judged texts with the original's, and refuse what differs.

    They are given by ``strategy``, by default the candidate's own best plan, so that padding and
    batch mates are part of the proof. Where they depend on batch mates, each text also runs alone
    and among random others, and counts as it fared worst. ``truth`` has the original's outputs.
    """

    def refusal(parity: Parity) -> str | None:
        settings = context.settings
        return verdict(
            parity,
            exact=trial.candidate.exact,
            exact_uncut=trial.candidate.untruncated.exact,
            max_flips=settings.max_flips,
            strict=settings.strict,
        )

    ways = batchings(context, trial, strategy)
    parity = trial.prove("parity", ways, truth, tries=tries.of(trial), refusal=refusal)
    reason = parity and refusal(parity)
    if reason:
        trial.refuse(reason)


def expected_s(context: Context, trial: Trial) -> float:
    """How long the proof of a candidate should take, in seconds, every batching included."""
    return sum(way.expected_s for way in batchings(context, trial))


def batchings(context: Context, trial: Trial, strategy: Strategy | None = None) -> list[Batching]:
    """How the texts are batched in a candidate's proof.

    With ``strategy``, by default its own best plan; and where its answers depend on batch mates,
    also one at a time and among random others.
    """
    everything = tuple(range(len(context.texts)))
    shipped = message_for(trial, everything, strategy=strategy, outputs=True)
    found = [Batching("plan", (shipped,), _predicted_s(trial, shipped.strategy))]
    if not context.engines[trial.candidate.engine].depends_on_batch(trial.candidate):
        return found
    if not shipped.one_by_one and shipped.strategy != ARRIVAL:
        single = message_for(trial, everything, strategy=ARRIVAL, outputs=True)
        found.append(Batching("single", (single,), _predicted_s(trial, ARRIVAL)))
    return [*found, _random(context, trial)]


def _predicted_s(trial: Trial, strategy: Strategy) -> float:
    """As far as anything has been timed."""
    return predicted_s(trial, strategy) if trial.cells else 0.0


def _random(context: Context, trial: Trial) -> Batching:
    """Every text once, among random others of any length, in batches of random sizes."""
    rng = np.random.default_rng(context.settings.seed)
    sizes = [size for size in context.settings.batch_sizes if size > 1] or [2]
    order = rng.permutation(len(context.texts))
    drawn = rng.integers(len(sizes), size=len(order))
    messages, total_s = [], 0.0
    cost = trial.cost_model()
    for number, size in enumerate(sizes):
        places = order[drawn == number]
        if len(places):
            strategy = Strategy("arrival", size)
            indices = tuple(map(int, places))
            messages.append(RunTexts(indices, strategy, outputs=True))
            lengths = trial.lengths[places]
            total_s += (
                batching.predict_s(lengths, batching.plan(lengths, strategy), cost) if cost else 0.0
            )
    return Batching("random", tuple(messages), total_s)


def _exact(trial: Trial) -> bool:
    return trial.candidate.exact


def _last_resort(
    context: Context, trials: Sequence[Trial], truth: Outputs, tries: Tries
) -> list[Trial]:
    """The fastest exact candidate of those that had been dropped, if its answers are right."""
    dropped = [e for e in trials if e.status == "dropped" and _exact(e)]
    for trial in sorted(dropped, key=lambda e: -(e.screen_tokens_per_s or 0.0)):
        if best_plan(trial) is None:
            continue
        trial.revive()
        prove(context, trial, truth, tries)
        if trial.in_play:
            return [trial]
    return []


def _needed(trial: Trial, accepted: list[Trial], predicted: dict[Trial, float]) -> bool:
    # The fastest of each precision stays to show what each step down gains, a student's as well.
    if trial.candidate.variant not in {e.candidate.variant for e in accepted}:
        return True
    fastest_s = min(predicted[other] for other in accepted)
    near = predicted[trial] <= _WITHIN_REACH * fastest_s
    return near and len(accepted) < MOST_FINALISTS
