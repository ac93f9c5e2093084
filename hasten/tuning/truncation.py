"""Reading less: the best candidates once more, with long texts cut at fewer tokens.

A truncated candidate runs the artifact of one that reads whole texts, at the same cost per shape,
so its speed-up is predicted before anything is started. Its flips are first counted on calibration
texts, above all the long ones; then the judged texts prove it like any lossy candidate.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from hasten.judging.stats import clopper_pearson_lower
from hasten.percent import percent
from hasten.records import Settings
from hasten.runtime import probes
from hasten.tasks import Outputs
from hasten.tuning import plans, screening
from hasten.tuning.context import Context
from hasten.tuning.trial import Trial
from hasten.tuning.worker import RunTexts

GAINS = (1.2, 1.5, 1.9, 2.4)
"""Predicted speed-ups over whole texts: each is reached at one length, the longest that does."""

_STEP, _SHORTEST = 8, 16  # tokens


def tries_less(settings: Settings) -> bool:
    """Whether candidates that cut long texts are among what is tried.

    ``--precisions fp32`` asks for exact answers, so it excludes them.
    """
    return not settings.whole_texts and settings.precisions != ("fp32",)


class Truncation:
    """Tries the best candidates with long texts cut.

    Nothing is tried without calibration texts, or where a text does not have exactly one row of
    outputs, as in token classification.

    Args:
        context: the tune.
        truth: the original's outputs.

    Attributes:
        of_exact: what was tried of the exact candidate, refused or not, the longest first.
    """

    def __init__(self, context: Context, truth: Outputs) -> None:
        self._context, self._truth = context, truth
        one_row = bool((truth.counts == 1).all())
        self.possible = bool(context.first_look) and one_row and tries_less(context.settings)
        self.of_exact: list[Trial] = []
        self._held: list[int] = []
        self._look: _Look | None = None

    def exact(self, whole: Trial, beside: Sequence[Trial]) -> list[Trial]:
        """An exact candidate at the lengths worth trying.

        From the longest down, until one flips too many calibration texts or the time is used up;
        a second call goes on from there. ``beside`` are others whose workers hold memory.
        """
        if not self.possible:
            return []
        self._look = self._look or _Look(self._context, whole, self._truth)
        begin = len(self.of_exact)
        for tokens in lengths_worth_trying(self._context, whole)[begin:]:
            if len(self._held) < len(self.of_exact):
                break  # the one before was refused
            trial = self._look.at(whole, tokens, beside)
            if trial.out_of_time:
                break
            self.of_exact.append(trial)
            if trial.in_play:
                self._held.append(tokens)
        return self.of_exact[begin:]

    def everything(self, trials: Sequence[Trial]) -> list[Trial]:
        """The rest: what is left of the exact one's lengths, and the best of every other variant.

        The others are tried at the longest and the shortest length that passed: on calibration
        texts, since what judged texts refuse must not choose whom they judge next. ``trials`` are
        all candidates so far, timed.
        """
        best = _best_of_each(self._context, trials)
        exact = [trial for trial in best if trial.candidate.exact]
        if not exact:
            return []
        whole = self._look.exact if self._look else exact[0]
        found = self.exact(whole, trials)
        if not self._held or not self._look:
            return found
        for trial in (trial for trial in best if trial is not whole):
            for tokens in dict.fromkeys((self._held[0], self._held[-1])):
                found.append(self._look.at(trial, tokens, trials))
        return found

    def most_likely(self) -> list[Trial]:
        """The exact one's truncated variants in play, those that promise most first.

        Those whose share of flips among calibration texts is itself within ``--max-flips`` come
        before those for which it may be; of each, the ones that read least.
        """
        most = self._context.settings.max_flips
        shares = self._look.flipped if self._look else {}
        held = [trial for trial in reversed(self.of_exact) if trial.in_play]
        return sorted(held, key=lambda trial: shares.get(trial, 0.0) > most)


def lengths_worth_trying(context: Context, whole: Trial) -> list[int]:
    """The lengths at which a candidate is predicted to gain :data:`GAINS`, the longest first.

    They follow from the lengths of the judged texts and the candidate's cost table: a length that
    few texts exceed gains nothing and is not tried.
    """
    best = plans.best_plan(whole)
    assert best, f"{whole.label} has not been timed"
    strategy, whole_s = best
    lengths = range(_SHORTEST, int(context.lengths.max()), _STEP)

    def predicted_s(tokens: int) -> float:
        return plans.predicted_s(_cut(context, whole, tokens), strategy)

    places = [bisect_right(lengths, whole_s / gain, key=predicted_s) for gain in GAINS]
    return list(dict.fromkeys(lengths[place - 1] for place in places if place))


@dataclass(frozen=True)
class _Look:
    """Evaluates truncated candidates on calibration texts, against the answers of ``exact``.

    ``flipped`` holds the share of all texts that each is expected to flip.
    """

    context: Context
    exact: Trial
    truth: Outputs
    flipped: dict[Trial, float] = field(default_factory=dict)

    def at(self, whole: Trial, tokens: int, beside: Sequence[Trial]) -> Trial:
        """The variant of ``whole`` that reads ``tokens`` tokens, started and evaluated."""
        context, trial = self.context, _cut(self.context, whole, tokens)
        screening.prepare_all(context, [trial], self.truth, part="prepare truncated", beside=beside)
        if trial.in_play and not screening.may_pass(trial, context.settings.max_flips):
            assert trial.parity
            changed = f"{trial.parity.flips} of {trial.parity.compared}"
            trial.refuse(f"{changed} labels flipped at the first look")
        if trial.in_play and context.task.decides:
            self._at_long_texts(trial, tokens)
        if trial.in_play:
            screening.score(trial)
        return trial

    def _at_long_texts(self, trial: Trial, tokens: int) -> None:
        """Refuse a candidate whose flips among cut texts exceed ``--max-flips`` of all texts.

        The first evaluation has few long texts. Here every text is cut, so that as many texts
        show more.
        """
        context = self.context
        begin = context.answered_texts
        lengths = context.all_lengths[begin : begin + len(context.long_look)]
        longer = np.flatnonzero(lengths > tokens)
        places = tuple(map(int, begin + longer))
        if not places:
            return

        def flips() -> int:
            cut = self._outputs(trial, places)
            return int(context.task.changed(self._right.select(longer), cut).sum())

        context.budget.tell("prepare", f"{trial.label}: {len(places)} long texts")
        found = trial.look(f"long:{trial.label}", flips)
        cut = float((context.lengths > tokens).mean())
        most = context.settings.max_flips
        if found is not None:
            self.flipped[trial] = cut * found / len(places)
        if found is None or cut * clopper_pearson_lower(found, len(places)) <= most:
            return
        trial.refuse(
            f"{found} of {len(places)} cut calibration texts flipped, and {percent(cut)} of all "
            "texts are cut"
        )

    @cached_property
    def _right(self) -> Outputs:
        """What the exact candidate answers to the long texts, which it reads whole."""
        begin = self.context.answered_texts
        return self._outputs(self.exact, tuple(range(begin, begin + len(self.context.long_look))))

    def _outputs(self, trial: Trial, places: tuple[int, ...]) -> Outputs:
        return trial.outputs(RunTexts(places, probes.STRATEGY, outputs=True), 0.0)


def _cut(context: Context, whole: Trial, tokens: int) -> Trial:
    trial = Trial(replace(whole.candidate, max_tokens=tokens), context)
    trial.inherit(whole)
    return trial


def _best_of_each(context: Context, trials: Sequence[Trial]) -> list[Trial]:
    """The most promising of each variant, of those that are timed; the original's fp32 first."""

    def promise(trial: Trial) -> tuple[bool, float]:
        fails = not screening.may_pass(trial, context.settings.max_flips)
        return fails, -(trial.screen_tokens_per_s or 0.0)

    timed = [e for e in trials if e.in_play and e.cells and not e.candidate.max_tokens]
    best: dict[str, Trial] = {}
    for trial in sorted(timed, key=promise):
        best.setdefault(trial.candidate.variant, trial)
    return sorted(best.values(), key=lambda trial: not trial.candidate.exact)
