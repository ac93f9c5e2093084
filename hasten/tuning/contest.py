"""The contest: a first answer from exact candidates, then all that may beat it, and finals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hasten.errors import BudgetError, EndedEarly, NoCandidate
from hasten.judging.parity import is_constant, unprovable, unprovable_strictly
from hasten.records import Decided, FirstAnswer, Row, Standing, Tuning
from hasten.tasks import Outputs
from hasten.tuning import (
    candidates,
    cascades,
    choose,
    finals,
    original,
    plans,
    proof,
    repair,
    result,
    rounds,
    screening,
    timing,
)
from hasten.tuning.context import Context
from hasten.tuning.trial import Trial
from hasten.tuning.truncation import Truncation

_OF_THE_ORIGINAL = ("export", "start", "shape")
"""What is measured before the original has answered all texts, by the first word of its key."""


def run(context: Context, *, baseline_engine: str = "torch_eager") -> Tuning:
    """Find the fastest way to run the model that keeps its answers.

    Where :class:`hasten.errors.EndedEarly` is raised while it runs, the choice that stands is the
    result, and its ``ended_early`` is True.

    Raises:
        BudgetError: the budget does not hold the baseline.
        NoCandidate: nothing that can run here gives the original's answers.
        EngineError: the original itself does not run.
        ModelError: it gives NaN or infinity.
        EndedEarly: nothing stands yet.
    """
    settings, hardware = context.settings, context.hardware
    possible, unavailable = candidates.enumerate_rows(
        hardware,
        settings,
        context.engines,
        len(context.calibration_lengths),
        context.models,
        trained=context.trained,
    )
    if not possible:
        raise choose.no_candidate(unavailable)
    if context.gold is not None:
        # Unknown labels are the user's mistake: say so before anything is measured.
        context.task.gold(context.gold, context.info.labels)
        context.task.values(context.gold, context.info.output_width)
    baseline = Trial(candidates.baseline(hardware, settings, baseline_engine), context)
    trials = [Trial(candidate, context) for candidate in possible]
    contest = _Contest(context, baseline, trials, unavailable)
    try:
        tuning = contest.run()
        context.report(Decided(tuning))
    except EndedEarly:
        if contest.standing is None:
            raise
        tuning = contest.ended(early=True)
        context.report(Decided(tuning))
    finally:
        for trial in [baseline, *contest.trials]:
            trial.close()
    return tuning


@dataclass
class _Contest:
    """One search: who takes part, and what stands so far."""

    context: Context
    baseline: Trial
    trials: list[Trial]
    unavailable: list[Row]
    settled: list[Trial] = field(default_factory=list)
    """The exact candidates that the first answer is chosen from."""
    accepted: list[Trial] = field(default_factory=list)
    """Those of them whose answers are proved."""
    truncation: Truncation = field(init=False)
    standing: Tuning | None = None
    untimed: int = 0
    """How many candidates were not compared with the choice that stands."""
    no_cascade: str | None = None
    """Why no cascade was tried, where none was."""

    def run(self) -> Tuning:
        truth = original.answers(self.context, self.baseline, _check_budget)
        self.truncation = Truncation(self.context, truth)
        _refuse_unprovable(self.context, self.trials, truth)
        self._find_first_answer(truth)
        finalists = self._find_finalists(truth)
        try:
            final = rounds.plan(self.context, finalists, self.baseline)
        except BudgetError:
            if self.standing is None:
                raise
            return self.ended(early=False)
        tuning = self._time(final, finalists, truth)
        first = self.standing.first_answer if self.standing else None
        return replace(
            tuning,
            first_answer=result.beaten(tuning, first) if first else None,
            no_cascade=self.no_cascade,
        )

    def ended(self, *, early: bool) -> Tuning:
        """The choice that stands as the result; see :func:`hasten.tuning.result.ended`."""
        assert self.standing
        return result.ended(self.context.budget, self.standing, self.untimed, early=early)

    def _find_first_answer(self, truth: Outputs) -> None:
        """Prove and time the exact candidates that start quickly, so that a choice stands early.

        The fastest is also tried with long texts cut: that takes no further artifact, and its
        answers to whole texts are there to compare with.
        """
        context = self.context
        self.settled = [trial for trial in self.trials if self._is_prompt(trial)]
        if not self.settled:
            return
        with context.budget.early():
            screening.first_looks(context, self.settled, self.baseline, truth)
            timing.measure_tables(context, [e for e in self.settled if e.in_play])
            cut = self._read_less(truth)
            exact = proof.choose_finalists(context, self.settled, truth, proof.Tries(0))
            self.accepted = [*cut, *exact]
            early = rounds.plan_early(context, self.accepted, self.baseline)
            if early:
                self._let_stand(early, truth)
        for trial in self.settled:
            if trial.out_of_time:
                trial.revive()

    def _read_less(self, truth: Outputs) -> list[Trial]:
        """The fastest exact candidate with long texts cut, if its answers hold."""
        context, truncation = self.context, self.truncation
        whole = plans.fastest(self.settled)
        if whole is None or not truncation.possible or context.settings.cascade_only:
            return []
        if not proof.choose_finalists(context, [whole], truth, proof.Tries(0)):
            return []
        self.trials += truncation.exact(whole, self.trials)
        return proof.prove_early(context, truncation.most_likely(), truth)

    def _let_stand(self, early: rounds.Rounds, truth: Outputs) -> None:
        try:
            tuning = self._time(early, self.accepted, truth)
        except NoCandidate:
            return  # batches are too slow, as far as these few rounds tell
        finally:
            # Rounds of another hour are not compared with the final ones.
            for trial in (self.baseline, *self.accepted):
                trial.forget_rounds()
        self.untimed = sum(trial.in_play and trial not in self.accepted for trial in self.trials)
        ratio, now_s = tuning.chosen.ratio_to_baseline, tuning.elapsed_s
        first = FirstAnswer(tuning.plan.candidate, now_s, ratio)
        self.standing = replace(tuning, first_answer=first)
        self.context.report(Standing(self.standing))

    def _find_finalists(self, truth: Outputs) -> list[Trial]:
        """Everybody else is tried, and the accepted are lined up with the choice that stands."""
        context = self.context
        known_already = [*self.accepted, *self.truncation.of_exact]
        rest = [e for e in self.trials if e.in_play and e not in known_already]
        # Lossy ones first where an exact choice stands: what is exact and left took too long, or
        # takes long to start. Without one, the exact come first, or there may be no answer.
        stands = bool(self.accepted)
        rest.sort(key=lambda trial: trial.candidate.exact == stands)
        if rest:
            known = [trial for trial in self.settled if trial not in rest]
            screening.first_looks(context, rest, self.baseline, truth, known)
            timing.measure_tables(context, [trial for trial in rest if trial.in_play])
        self.trials += self.truncation.everything(self.trials)
        repairable = repair.repairable(context, self.trials)
        tries = proof.fix_tries(context, self.trials, repairable, repair.ATTEMPTS)
        # Before the lossy ones are proved by themselves, where an exact one could come second: a
        # cascade gains more than any of them, and is sure not to be refused for a few flips.
        found = cascades.find(context, self.trials, truth, tries) if self.accepted else None
        accepted = proof.choose_finalists(context, self.trials, truth, tries)
        found = found or cascades.find(context, self.trials, truth, tries)
        repaired = repair.repair(context, self.trials, accepted, truth, tries)
        self.trials += [*repaired, *found.trials]
        self.no_cascade = found.reason
        if context.settings.cascade_only:
            cascades.drop_others(self.trials)
        may_win = [*accepted, *repaired, *found.trials]
        finalists = self._with_standing(finals.line_up(may_win))
        if not finalists:
            raise choose.no_candidate([trial.row() for trial in self.trials])
        return finalists

    def _time(self, timed: rounds.Rounds, finalists: Sequence[Trial], truth: Outputs) -> Tuning:
        context = self.context
        timed.run()
        for trial in finalists:
            trial.keep_probes(screening.probe(context))
        result.judge(context, finalists, self.baseline, timed)
        return result.decide(
            context,
            self.baseline,
            self.trials,
            self.unavailable,
            timed,
            constant=is_constant(truth),
        )

    def _with_standing(self, finalists: list[Trial]) -> list[Trial]:
        """The same, with the choice that stands near the front: it is what is to be beaten.

        A lossy one comes after the fastest exact one, which it has to beat itself.
        """
        if self.standing is None:
            return finalists
        stands = self.standing.plan.candidate
        trial = next(e for e in self.trials if e.candidate == stands)
        if trial.status == "dropped":
            trial.revive()
        if not trial.in_play or trial in finalists[:2]:
            return finalists
        others = [e for e in finalists[1:] if e is not trial]
        return finals.exact_early([*finalists[:1], trial, *others])

    def _is_prompt(self, trial: Trial) -> bool:
        candidate = trial.candidate
        slow = self.context.engines[candidate.engine].starts_slowly
        return trial.in_play and candidate.exact and not slow


def _refuse_unprovable(context: Context, trials: Sequence[Trial], truth: Outputs) -> None:
    """Refuse lossy candidates, before any time goes into them, where no proof would mean much."""
    reason = unprovable(truth, context.texts)
    if reason is None and context.settings.strict and context.task.decides:
        reason = unprovable_strictly(context.texts, context.settings.max_flips)
    for trial in trials:
        if reason and not trial.candidate.exact:
            trial.end("refused", reason)


def _check_budget(context: Context, pass_s: float) -> None:
    """Refuse a hopeless budget early; one pass of the baseline over all texts takes ``pass_s``."""
    fewest = min(rounds.FEWEST_TEXTS, len(context.texts)) / len(context.texts)
    begun_s = context.budget.spent_s
    needed_s = begun_s + pass_s * (1 + fewest * context.settings.rounds)
    if needed_s > context.budget.total_s:
        if all(key.partition(":")[0] in _OF_THE_ORIGINAL for key in context.journal):
            context.journal.clear()  # a few seconds' work must not bind the corrected command
        raise BudgetError(
            f"a budget of {context.settings.budget_s:.0f} s cannot hold the baseline: starting it "
            f"took {begun_s:.0f} s, and one pass over {len(context.texts)} texts takes about "
            f"{pass_s:.1f} s at its current speed",
            fix=f"Try --budget {math.ceil(3 * needed_s / 60)}m, or fewer texts with --max-texts. "
            "If the machine is busy, repeat the command when it is idle.",
        )
