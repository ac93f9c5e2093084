"""Cascades: lossy candidates that answer what they are sure of, and an exact one for the rest.

Every lossy candidate that runs can be a stage, refused ones included: what flips too many labels by
itself may flip very few where it is sure. :mod:`hasten.tuning.chains` fixes on calibration texts
which cascades are tested; here the judged texts test them, and those that are predicted to beat
every other candidate are run, end to end, beside the other finalists.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hasten.judging.cascade import certify, shares, too_few_texts, worst
from hasten.judging.parity import shortened
from hasten.judging.stats import binomial_cdf, clopper_pearson_upper
from hasten.percent import percent
from hasten.records import (
    Cascade,
    CascadeProof,
    FurtherStage,
    HandsOn,
    Parity,
    Plan,
    Status,
    Strategy,
)
from hasten.runtime.batching import best_strategy, plan, predict_s
from hasten.tasks import Outputs
from hasten.tuning import proof
from hasten.tuning.budget import Deadline
from hasten.tuning.cascade_trial import CascadeTrial
from hasten.tuning.chains import Chain, Chains
from hasten.tuning.context import Context
from hasten.tuning.plans import batch_limit_s, best_s, message_for
from hasten.tuning.trial import Batching, Trial

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


def find(context: Context, trials: Sequence[Trial], truth: Outputs, tries: proof.Tries) -> Found:
    """Test the most promising cascades, and start those that are predicted to win.

    Args:
        context: the tune.
        trials: all candidates, refused ones as well.
        truth: the original's outputs.
        tries: among how many lossy candidates each is judged, where it is proved here.
    """
    reason = _impossible(context)
    exact = None if reason else _fastest_exact(context, trials, truth, tries)
    if exact is None:
        none = "no exact candidate was accepted that could answer the deferred texts"
        return Found(reason=reason or none)
    allotted = shares(MOST_TESTED, len(set(context.texts)), context.settings.max_flips)
    chains = Chains(context, exact, truth).most_promising(trials, len(allotted))
    if not chains:
        return Found(reason="no lossy candidate is predicted to be faster than the best exact one")
    deadline = context.budget.deadline("cascades")
    test = _Test(context, exact, truth, tries, len(chains))
    tested = [test.of(*each, deadline) for each in zip(chains, allotted, strict=False)]
    rivals = {exact}
    if not context.settings.cascade_only:
        rivals |= {stage for chain in chains for stage in chain.stages if stage.in_play}
    _run_the_best(context, tested, rivals, truth, deadline)
    return Found(tuple(tested))


def drop_others(trials: Sequence[Trial]) -> None:
    """Drop lossy candidates that are not cascades, as ``--cascade-only`` asks."""
    for trial in trials:
        candidate = trial.candidate
        if trial.in_play and not candidate.exact and not candidate.then:
            trial.end("dropped", "--cascade-only uses lossy candidates in cascades alone")


def _fastest_exact(
    context: Context, trials: Sequence[Trial], truth: Outputs, tries: proof.Tries
) -> Trial | None:
    """The fastest exact candidate whose answers are the original's; None if there is none."""
    timed = [t for t in trials if t.in_play and t.candidate.exact and t.parity and t.cells]
    for trial in sorted(timed, key=best_s):
        proof.prove(context, trial, truth, tries)
        if trial.in_play:
            return trial
    return None


def _impossible(context: Context) -> str | None:
    """Why no cascade is possible; None if one may be."""
    if not context.settings.cascade:
        return "--no-cascade"
    if not context.task.decides:
        return (
            f"the model's task ({context.task.name}) makes no decision that a first stage could be "
            "unsure of"
        )
    if context.task.reads_windows:
        return (
            f"the model's task ({context.task.name}) reads long texts in windows, each of which "
            "says little about the whole"
        )
    if not context.first_look:
        return (
            "thresholds are fixed on calibration texts, and there are none: leave --calibration 0 "
            "out, or give more texts"
        )
    return too_few_texts(len(set(context.texts)), context.settings.max_flips)


@dataclass(frozen=True)
class _Test:
    """Tests chains that end in ``exact`` on the judged texts, ``together`` of them in all."""

    context: Context
    exact: Trial
    truth: Outputs
    tries: proof.Tries
    together: int

    def of(self, chain: Chain, delta: float, deadline: Deadline) -> CascadeTrial:
        """The cascade with the boldest thresholds that its test allows.

        Args:
            chain: what was fixed beforehand.
            delta: with which probability it may be allowed too much.
            deadline: answers that are not known yet must be given before this.
        """
        context = self.context
        unknown = [stage for stage in chain.stages if not stage.has_proved("parity")]
        expected_s = sum(proof.expected_s(context, stage) for stage in unknown)
        if unknown and not deadline.allows(expected_s):
            return self._ended(chain, "dropped", proof.NO_TIME_TO_PROVE, for_time=True)
        context.budget.tell("cascades", " then ".join((*chain.labels, self.exact.label)))
        try:
            for stage in chain.stages:
                if stage.in_play:
                    proof.prove(context, stage, self.truth, self.tries)
            return self._tested(chain, delta)
        finally:
            for stage in chain.stages:
                if not stage.in_play:
                    stage.close()

    def _tested(self, chain: Chain, delta: float) -> CascadeTrial:
        found = self._certified(chain, delta, every_batching=False)
        if found and found.chosen and any(map(self._depends_on_batch, chain.stages)):
            found = self._certified(chain, delta, every_batching=True)
        if found is None:
            reasons = [stage.reason for stage in chain.stages if stage.status == "failed"]
            return self._ended(chain, "failed", next(iter(reasons), None) or "a stage failed")
        return self._planned(chain, found) if found.chosen else self._refused(chain, found)

    def _depends_on_batch(self, trial: Trial) -> bool:
        engine = self.context.engines[trial.candidate.engine]
        return engine.depends_on_batch(trial.candidate)

    def _certified(
        self, chain: Chain, delta: float, *, every_batching: bool
    ) -> CascadeProof | None:
        """The test over the judged texts; None where a stage fails to answer them."""
        context = self.context
        stages = []
        for stage, factor in zip((*chain.stages, self.exact), (*chain.factors, 1.0), strict=True):
            ways = proof.batchings(context, stage)
            shown = ways if every_batching else ways[:1]
            readings = [stage.reading("parity", way, lambda: self.truth) for way in shown]
            known = [reading for reading in readings if reading]
            if len(known) < len(readings):
                return None
            stages.append(worst(known, context.texts, factor))
        return certify(
            stages,
            chain.thresholds,
            max_flips=context.settings.max_flips,
            tries=self.together,
            delta=delta,
        )

    def _refused(self, chain: Chain, found: CascadeProof) -> CascadeTrial:
        step = found.steps[0]
        reason = (
            f"{step.flips} of {found.compared} labels flip even where it answers only "
            f"{percent(1 - step.deferred[0])} of the texts"
        )
        return self._ended(chain, "refused", reason, found)

    def _ended(
        self,
        chain: Chain,
        status: Status,
        reason: str,
        found: CascadeProof | None = None,
        *,
        for_time: bool = False,
    ) -> CascadeTrial:
        """A cascade that is not run."""
        nothing = CascadeProof((), 0, 0, self.context.settings.max_flips)
        cascade = Cascade(found or nothing)
        trial = CascadeTrial(self.context, (*chain.stages, self.exact), cascade, ())
        trial.end(status, reason, for_time=for_time)
        return trial

    def _planned(self, chain: Chain, found: CascadeProof) -> CascadeTrial:
        """The cascade at the chosen thresholds, with the time that the cost tables predict."""
        context, chosen = self.context, found.chosen
        assert chosen
        trials = (*chain.stages, self.exact)
        alone_s = tuple(best_s(trial) for trial in trials)
        further, later_s = [], 0.0
        left, deferred = np.arange(len(context.texts)), np.arange(0)
        for stage, following, factor, below in zip(
            chain.stages, trials[1:], chain.factors, chosen.thresholds, strict=True
        ):
            rule = self._rule(stage, factor, below)
            unsure = self._unsure(stage, rule, left)
            rule = replace(rule, handed=len(unsure), texts=len(left))
            if stage is chain.stages[0]:
                deferred = unsure
            left = np.sort(unsure)
            stage_plan = self._plan(following, left)
            later_s += self._later_s(following, stage_plan, left)
            further.append(FurtherStage(stage_plan, rule))
        examples = tuple(shortened(context.texts[i]) for i in deferred[:_EXAMPLES].tolist())
        cascade = Cascade(found, alone_s[0] + later_s, alone_s, len(context.texts), examples)
        return CascadeTrial(context, trials, cascade, further)

    def _rule(self, stage: Trial, factor: float, below: float) -> HandsOn:
        cuts = factor > 1.0 and stage.candidate.max_tokens is not None
        return HandsOn(below, below_cut=below * factor if cuts else None)

    def _unsure(self, stage: Trial, rule: HandsOn, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the judged texts it hands on, those first of which it is least sure."""
        way = proof.batchings(self.context, stage)[0]
        reading = stage.reading("parity", way, lambda: self.truth)
        assert reading
        sureness, below = np.array(reading.sureness), np.full(len(reading.sureness), rule.below)
        if rule.below_cut is not None:
            below[list(reading.cut)] = rule.below_cut
        unsure = texts[sureness[texts] < below[texts]]
        ranks = sureness[unsure] / np.maximum(below[unsure], 1e-9)
        return unsure[np.argsort(ranks, kind="stable")]

    def _plan(self, stage: Trial, texts: NDArray[np.int64]) -> Plan:
        """The best plan of a later stage for the texts that it gets."""
        context, cost, limit_s = self.context, stage.cost_model(), self._limit_s(stage)
        assert cost
        strategy = Strategy("arrival", 1)
        if context.settings.objective == "throughput" and len(texts):
            sizes = context.settings.batch_sizes
            lengths = stage.lengths[texts]
            strategy = best_strategy(lengths, cost, sizes, max_batch_latency_s=limit_s)
        return Plan(stage.candidate, strategy, stage.cost_table(), limit_s)

    def _later_s(self, stage: Trial, chosen: Plan, texts: NDArray[np.int64]) -> float:
        cost = stage.cost_model()
        assert cost
        lengths = stage.lengths[texts]
        batches = plan(lengths, chosen.strategy, cost, max_batch_latency_s=self._limit_s(stage))
        return predict_s(lengths, batches, cost)

    def _limit_s(self, stage: Trial) -> float | None:
        return batch_limit_s(self.context.settings, stage.candidate)


def _run_the_best(
    context: Context,
    tested: Sequence[CascadeTrial],
    rivals: Collection[Trial],
    truth: Outputs,
    deadline: Deadline,
) -> None:
    """Start the cascades that are predicted to win, and count their flips end to end."""
    rival = min(rivals, key=best_s)
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
            trial.end("dropped", f"it defers {percent(share)} of the texts: {slower}")
        elif started == MOST_RUN:
            trial.end("dropped", f"{MOST_RUN} faster cascades were run")
        elif started and not deadline.allows(predicted_s):
            trial.end("dropped", proof.NO_TIME_TO_PROVE, for_time=True)
        else:
            started += 1
            _prove_end_to_end(context, trial, truth)


def _prove_end_to_end(context: Context, trial: CascadeTrial, truth: Outputs) -> None:
    """Compare the cascade's own answers with the original's, as those of any candidate."""
    context.budget.tell("cascades", f"{trial.label}: {len(context.texts)} texts, end to end")
    trial.prepare()
    everything = tuple(range(len(context.texts)))
    message = message_for(trial, everything, outputs=True)
    way = Batching("plan", (message,), trial.cascade.predicted_s or 0.0)
    parity = trial.prove("parity", [way], truth)
    if parity is None:
        return
    tested = trial.cascade.proof
    bound = clopper_pearson_upper(parity.flips, parity.compared, 1.0 - tested.delta)
    trial.bound(bound)
    if reason := _refusal(parity, tested):
        trial.end("refused", f"end to end, {reason}")


def _refusal(parity: Parity, tested: CascadeProof) -> str | None:
    """Why the answers that were given end to end do not keep the promise, if so."""
    broken = parity.non_finite + parity.misaligned
    if broken:
        return f"{broken} of {parity.compared} texts have no sound output"
    if binomial_cdf(parity.compared, tested.max_flips)[parity.flips] > tested.delta:
        return (
            f"{parity.flips} of {parity.compared} labels flipped, too many to prove that at most "
            f"{tested.max_flips:.4g} do"
        )
    return None
