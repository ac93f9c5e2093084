"""Cascades: a lossy candidate that answers what it is sure of, and an exact one for the rest.

Every lossy candidate whose answers to the judged texts are known can be the first stage, refused
ones included: what flips too many labels by itself may flip very few where it is sure. Thresholds
and times are computed from what is measured already; only cascades that are predicted to beat every
other candidate are run, end to end, beside the other finalists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hasten.judging.cascade import StageAnswers, certify, path, too_few_texts, worst
from hasten.judging.parity import shortened, verdict
from hasten.records import (
    Cascade,
    CascadeProof,
    FurtherStage,
    HandsOn,
    Parity,
    Plan,
    Row,
    Status,
    Strategy,
    Tuning,
)
from hasten.runtime.batching import best_strategy, plan, predict_s
from hasten.runtime.saving import NewStage
from hasten.tasks import Outputs
from hasten.tuning import proof, screening
from hasten.tuning.budget import Deadline
from hasten.tuning.context import Context
from hasten.tuning.plans import batch_limit_s, best_s, message_for
from hasten.tuning.trial import Batching, Trial
from hasten.tuning.worker import Load, LoadCascade, RunTexts

MOST_TESTED = 3
"""Cascades that the judged texts test: each of them takes a share of the allowed error."""

MOST_RUN = 2
"""Of these, how many are run end to end."""

_EXAMPLES = 20


@dataclass(frozen=True)
class Found:
    """All cascades that were tested, or why there are none."""

    trials: tuple[CascadeTrial, ...] = ()
    reason: str | None = None


class CascadeTrial(Trial):
    """A cascade in the contest: its stages, and what its test says."""

    def __init__(
        self,
        context: Context,
        stages: Sequence[Trial],
        cascade: Cascade,
        further: Sequence[FurtherStage],
    ) -> None:
        first, *others = stages
        candidate = replace(first.candidate, then=tuple(each.candidate for each in others))
        super().__init__(candidate, context)
        self.cells = first.cells
        self.cascade = cascade
        self.further = tuple(further)
        self._stages = tuple(stages)
        if cascade.predicted_s:
            self.predict(cascade.predicted_s)

    @property
    def later_s(self) -> float:
        """What the stages after the first are predicted to take for all judged texts."""
        cascade = self.cascade
        return cascade.predicted_s - cascade.alone_s[0] if cascade.predicted_s else 0.0

    def load_message(self) -> LoadCascade:
        """The message that makes a worker load all stages."""
        loads = [stage.load_message() for stage in self._stages]
        return LoadCascade(
            tuple(load for load in loads if isinstance(load, Load)),
            tuple(stage.plan for stage in self.further),
            tuple(stage.takes for stage in self.further),
        )

    def keep_probes(self, message: RunTexts) -> None:
        """Remember what each stage by itself answers to a few texts."""
        for stage in self._stages:
            stage.keep_probes(message)
        self.probes = self._stages[0].probes
        probes = [stage.probes for stage in self._stages[1:]]
        pairs = zip(self.further, probes, strict=True)
        self.further = tuple(replace(stage, probes=kept) for stage, kept in pairs)

    def row(self) -> Row:
        """Everything known; costs per shape are those of its stages and stand in their rows."""
        return replace(super().row(), cascade=self.cascade, cost_table=None)


def find(context: Context, trials: Sequence[Trial], truth: Outputs) -> Found:
    """Test the most promising cascades, and start those that are predicted to win.

    Args:
        context: the tune.
        trials: all candidates, proved, refused and repaired.
        truth: the original's outputs.
    """
    exact = _fastest([e for e in trials if e.in_play and e.candidate.exact and e.parity])
    reason = _why_none(context, exact)
    if reason or exact is None:
        return Found(reason=reason)
    search = _Search(context, exact, truth)
    firsts = search.most_promising(trials)
    if not firsts:
        return Found(reason="no lossy candidate is predicted to be faster than the best exact one")
    deadline = context.budget.deadline("cascades")
    tested = [search.test(first, len(firsts), deadline) for first in firsts]
    rivals = [e for e in trials if e.in_play and e.parity]
    if context.settings.cascade_only:
        rivals = [exact]
    _run_the_best(context, tested, rivals, truth, deadline)
    return Found(tuple(tested))


def stages_of(tuning: Tuning, context: Context) -> list[NewStage]:
    """What a bundle runs, in order: the chosen candidate, or the stages of a cascade."""
    plans = [tuning.plan, *(stage.plan for stage in tuning.further)]
    probes = [tuning.probes, *(stage.probes for stage in tuning.further)]
    rules = [*(stage.takes for stage in tuning.further), None]
    stages = zip(tuning.plan.candidate.stages, plans, probes, rules, strict=True)
    return [
        NewStage(
            artifact=context.artifact(candidate),
            reference=context.subject(candidate).reference,
            model=context.subject(candidate).info,
            plan=replace(plan, candidate=candidate),
            probes=known,
            hands_on=rule,
        )
        for candidate, plan, known, rule in stages
    ]


def drop_others(trials: Sequence[Trial]) -> None:
    """Drop lossy candidates that are not cascades, as ``--cascade-only`` asks."""
    for trial in trials:
        candidate = trial.candidate
        if trial.in_play and not candidate.exact and not candidate.then:
            trial.end("dropped", "--cascade-only uses lossy candidates in cascades alone")


def _why_none(context: Context, exact: Trial | None) -> str | None:
    """Why no cascade is possible; None if one is."""
    if not context.settings.cascade:
        return "--no-cascade"
    if not context.task.decides:
        return (
            f"the model's task ({context.task.name}) makes no decision that a first stage could be "
            "unsure of"
        )
    if exact is None:
        return "no exact candidate was accepted that could answer the deferred texts"
    if not context.first_look:
        return (
            "thresholds are fixed on calibration texts, and there are none: leave --calibration 0 "
            "out, or give more texts"
        )
    return too_few_texts(len(set(context.texts)), context.settings.max_flips)


@dataclass(frozen=True)
class _Search:
    """Cascades that end in ``exact``; ``truth`` are the original's outputs."""

    context: Context
    exact: Trial
    truth: Outputs

    def most_promising(self, trials: Sequence[Trial]) -> list[Trial]:
        """First stages, chosen by their speed and by calibration texts, never by the judged texts.

        Kept in the journal: a resumed run must test as many cascades on the judged texts.
        """
        exact_s = best_s(self.exact)
        expected: dict[Trial, float] = {}
        best: dict[str, Trial] = {}
        for trial in sorted(filter(_can_be_first, trials), key=best_s):
            best.setdefault(trial.candidate.format, trial)
        for trial in best.values():
            alone_s = best_s(trial)
            deferred = self._expected_share(trial)
            if deferred is not None and alone_s + deferred * exact_s < exact_s:
                expected[trial] = alone_s + deferred * exact_s
        ranked = sorted(expected, key=lambda trial: expected[trial])

        def labels() -> list[str]:
            return [trial.label for trial in ranked[: _most_tested(self.context)]]

        chosen = self.context.journal.once("cascades", labels)
        named = {trial.label: trial for trial in trials}
        return [named[label] for label in chosen]

    def _expected_share(self, trial: Trial) -> float | None:
        """The share to defer so that no calibration text flips, counting one text more than seen.

        None where the candidate fails on the calibration texts.
        """
        reading = self._first_look(trial)
        if reading is None:
            return None
        surest = reading.flipped.max()
        return (1 + int((reading.sureness <= surest).sum())) / (1 + len(reading))

    def _first_look(self, trial: Trial) -> StageAnswers | None:
        context = self.context
        look = screening.first_look(context)
        reading = trial.reading("probe", Batching("probe", (look,)), self.truth)
        texts = [context.all_texts[index] for index in look.indices]
        return worst([reading], texts) if reading else None

    def test(self, first: Trial, tries: int, deadline: Deadline) -> CascadeTrial:
        """The cascade of one first stage, with the boldest threshold that its test allows."""
        context = self.context
        known = first.has_proved("parity")
        if not known and not deadline.allows(proof.expected_s(context, first)):
            return self._ended(first, "dropped", proof.NO_TIME_TO_PROVE, for_time=True)
        try:
            return self._tested(first, tries)
        finally:
            if not first.in_play:
                first.close()

    def _tested(self, first: Trial, tries: int) -> CascadeTrial:
        context = self.context
        context.budget.tell("cascades", f"{first.label}, then {self.exact.label}")
        calibration = self._first_look(first)
        assert calibration, f"{first.label} was chosen by its first look"
        costs_s = [best_s(each) for each in (first, self.exact)]
        thresholds = path([calibration], costs_s)
        found = self._certified(first, thresholds, tries, every_batching=False)
        if found and found.chosen and self._depends_on_batch(first):
            found = self._certified(first, thresholds, tries, every_batching=True)
        if found is None:
            return self._ended(first, "failed", first.reason or "a stage gave no answers")
        return self._planned(first, found) if found.chosen else self._refused(first, found)

    def _depends_on_batch(self, trial: Trial) -> bool:
        engine = self.context.engines[trial.candidate.engine]
        return engine.depends_on_batch(trial.candidate)

    def _certified(
        self, first: Trial, thresholds: NDArray[np.float64], tries: int, *, every_batching: bool
    ) -> CascadeProof | None:
        """The test over the judged texts; None where a stage fails to answer them."""
        context = self.context
        stages = []
        for stage in (first, self.exact):
            ways = proof.batchings(context, stage)
            shown = ways if every_batching else ways[:1]
            readings = [stage.reading("parity", way, self.truth) for way in shown]
            known = [reading for reading in readings if reading]
            if len(known) < len(readings):
                return None
            stages.append(worst(known, context.texts))
        return certify(stages, thresholds, max_flips=context.settings.max_flips, tries=tries)

    def _refused(self, first: Trial, found: CascadeProof) -> CascadeTrial:
        step = found.steps[0]
        reason = (
            f"{step.flips} of {found.compared} labels flip even where it answers only "
            f"{1 - step.deferred[0]:.1%} of the texts"
        )
        return self._ended(first, "refused", reason, found)

    def _ended(
        self,
        first: Trial,
        status: Status,
        reason: str,
        found: CascadeProof | None = None,
        *,
        for_time: bool = False,
    ) -> CascadeTrial:
        """A cascade that is not run."""
        nothing = CascadeProof((), 0, 0, self.context.settings.max_flips)
        cascade = Cascade(found or nothing)
        trial = CascadeTrial(self.context, (first, self.exact), cascade, ())
        trial.end(status, reason, for_time=for_time)
        return trial

    def _planned(self, first: Trial, found: CascadeProof) -> CascadeTrial:
        """The cascade at the chosen threshold, with the time that the cost tables predict."""
        context, chosen = self.context, found.chosen
        assert chosen
        below = chosen.thresholds[0]
        reading = first.reading("parity", proof.batchings(context, first)[0], self.truth)
        assert reading
        sureness = np.array(reading.sureness)
        deferred = np.flatnonzero(sureness < below)
        further = self._further(below, deferred, found)
        later_s = self._later_s(further.plan, deferred)
        unsure = deferred[np.argsort(sureness[deferred], kind="stable")][:_EXAMPLES]
        examples = tuple(shortened(context.texts[index]) for index in unsure.tolist())
        alone_s = tuple(best_s(stage) for stage in (first, self.exact))
        cascade = Cascade(found, alone_s[0] + later_s, alone_s, len(context.texts), examples)
        return CascadeTrial(context, (first, self.exact), cascade, (further,))

    def _further(
        self, below: float, deferred: NDArray[np.int64], found: CascadeProof
    ) -> FurtherStage:
        """The exact stage, with the best plan for the deferred texts."""
        context, exact = self.context, self.exact
        cost, limit_s, chosen = exact.cost_model(), self._limit_s, found.chosen
        assert cost
        assert chosen
        strategy = Strategy("arrival", 1)
        if context.settings.objective == "throughput" and len(deferred):
            sizes = context.settings.batch_sizes
            lengths = context.lengths[deferred]
            strategy = best_strategy(lengths, cost, sizes, max_batch_latency_s=limit_s)
        handed = round(chosen.deferred[0] * found.compared)
        plan_ = Plan(exact.candidate, strategy, exact.cost_table(), limit_s)
        return FurtherStage(plan_, HandsOn(below, handed=handed, texts=found.compared))

    def _later_s(self, chosen: Plan, deferred: NDArray[np.int64]) -> float:
        cost = self.exact.cost_model()
        assert cost
        lengths = self.context.lengths[deferred]
        batches = plan(lengths, chosen.strategy, cost, max_batch_latency_s=self._limit_s)
        return predict_s(lengths, batches, cost)

    @property
    def _limit_s(self) -> float | None:
        return batch_limit_s(self.context.settings, self.exact.candidate)


def _most_tested(context: Context) -> int:
    """How many cascades these texts can test; each further one needs more of them."""
    different, allowed = len(set(context.texts)), context.settings.max_flips
    enough = [n for n in range(1, MOST_TESTED + 1) if not too_few_texts(different, allowed, n)]
    return max(enough, default=1)


def _run_the_best(
    context: Context,
    tested: Sequence[CascadeTrial],
    rivals: Sequence[Trial],
    truth: Outputs,
    deadline: Deadline,
) -> None:
    """Start the cascades that are predicted to win, and count their flips end to end."""
    rival = _fastest(rivals)
    assert rival
    rival_s = best_s(rival)
    started = 0
    for trial in sorted(tested, key=lambda each: each.cascade.predicted_s or 0.0):
        predicted_s = trial.cascade.predicted_s
        if not trial.in_play or predicted_s is None:
            continue
        if not trial.further[0].takes.handed and not context.settings.cascade_only:
            trial.end("dropped", "its first stage is sure enough of every text to answer alone")
        elif predicted_s >= rival_s:
            slower = f"predicted {predicted_s / rival_s:.2f}x slower than {rival.label}"
            share = trial.further[0].share
            trial.end("dropped", f"it defers {share:.1%} of the texts: {slower}")
        elif started == MOST_RUN:
            trial.end("dropped", f"{MOST_RUN} faster cascades were run")
        elif started and not deadline.allows(predicted_s):
            trial.end("dropped", proof.NO_TIME_TO_PROVE, for_time=True)
        else:
            started += 1
            _prove_end_to_end(context, trial, truth)


def _prove_end_to_end(context: Context, trial: CascadeTrial, truth: Outputs) -> None:
    """Compare the cascade's own answers with the original's, as those of any candidate."""

    def refusal(parity: Parity) -> str | None:
        return verdict(parity, exact=False, max_flips=context.settings.max_flips, strict=True)

    context.budget.tell("cascades", f"{trial.label}: {len(context.texts)} texts, end to end")
    trial.prepare()
    everything = tuple(range(len(context.texts)))
    message = message_for(trial, everything, outputs=True)
    way = Batching("plan", (message,), trial.cascade.predicted_s or 0.0)
    tries = trial.cascade.proof.tries
    parity = trial.prove("parity", [way], truth, tries=tries, refusal=refusal)
    reason = parity and refusal(parity)
    if reason:
        trial.end("refused", f"end to end, {reason}")


def _can_be_first(trial: Trial) -> bool:
    """Whether it is lossy, runs, has been timed, and has been compared with the original."""
    able = trial.status not in ("failed", "unavailable") and not trial.out_of_time
    return able and not trial.candidate.exact and bool(trial.cells and trial.parity)


def _fastest(trials: Sequence[Trial]) -> Trial | None:
    return min((trial for trial in trials if trial.cells), key=best_s, default=None)
