"""From finished rounds to the whole result: speed-ups, the choice, and what makes them doubtful."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hasten.judging.stats import speed_up
from hasten.percent import percent
from hasten.records import EndToEnd, FirstAnswer, Plan, Row, Tuning
from hasten.tuning import ceiling, choose
from hasten.tuning.budget import Budget
from hasten.tuning.context import Context
from hasten.tuning.plans import batch_limit_s
from hasten.tuning.rounds import Rounds
from hasten.tuning.trial import Trial

_NOISY = 0.15
_FEW_TEXTS = 100


def judge(
    context: Context,
    finalists: Sequence[Trial],
    baseline: Trial,
    final: Rounds,
) -> None:
    """Add what only shows when all rounds are over: speed-ups, shares, broken latency limits."""
    reference = baseline.row().main
    for trial in finalists:
        run = trial.row().main
        if not trial.in_play:
            continue
        if run is None or reference is None:
            trial.end("dropped", "accepted, but no time was left to run it; raise --budget")
            continue
        ratio = speed_up(reference, run, seed=context.settings.seed)
        trial.conclude(ratio, _ceiling_share(context, trial, run, final))
        reason = choose.too_slow_batches(run, context.settings)
        if reason:
            trial.end("refused", reason)


def _ceiling_share(context: Context, trial: Trial, run: EndToEnd, final: Rounds) -> float | None:
    """What part of the machine's ceiling the run reaches; None for a cascade's several models."""
    if trial.candidate.then:
        return None
    model = context.subject(trial.candidate).info
    flops = sum(model.flops(int(length)) for length in trial.lengths[final.sample])
    return ceiling.share(final.ceilings, trial.candidate, run, run.processes, flops)


def decide(
    context: Context,
    baseline: Trial,
    trials: Sequence[Trial],
    unavailable: Sequence[Row],
    final: Rounds,
    *,
    constant: bool,
) -> Tuning:
    """The choice among those that ran in the rounds, with all the evidence.

    Raises:
        NoCandidate: none of them may be used.
    """
    rows = [*(_row(trial) for trial in trials), *unavailable]
    choice = choose.choose(rows, context.engines, context.settings)
    winner, reference = choice.winner, baseline.row()
    assert winner.main
    rows[rows.index(winner)] = replace(winner, status="chosen")
    chosen = next(trial for trial in trials if trial.candidate == winner.candidate)
    warnings = _warnings(context, reference, winner, final.fit.rounds)
    return Tuning(
        plan=Plan(
            winner.candidate,
            winner.main.strategy,
            chosen.cost_table(),
            batch_limit_s(context.settings, winner.candidate),
        ),
        baseline=reference,
        rows=tuple(rows),
        ratio_to_runner_up=choice.ratio_to_runner_up,
        runner_up=choice.runner_up.candidate.label if choice.runner_up else None,
        tie=choice.tie,
        model=context.info,
        profile=context.profile,
        hardware=context.hardware,
        ceilings=ceiling.ceilings(final.ceilings),
        settings=context.settings,
        versions=context.versions,
        elapsed_s=context.budget.spent_s,
        warnings=(*_notices(context), *_doubts(context, constant), *warnings),
        judged_texts=len(context.texts),
        calibration_texts=len(context.calibration_lengths),
        probes=chosen.probes,
        student=context.student.info if context.student else None,
        taught_texts=context.taught_texts,
        further=chosen.further,
    )


def beaten(final: Tuning, first: FirstAnswer) -> FirstAnswer:
    """The first answer, with its time over the final choice's where both were timed together."""
    row = next((row for row in final.rows if row.candidate == first.candidate), None)
    chosen = final.chosen.main
    assert chosen
    behind = speed_up(row.main, chosen, seed=final.settings.seed) if row and row.main else None
    return replace(first, behind=behind)


def ended(budget: Budget, standing: Tuning, untimed: int, *, early: bool) -> Tuning:
    """The choice that stands, as the result: the user took it ``early``, or no time was left.

    ``untimed`` candidates were not compared with it.
    """
    spent_s, budget_s = budget.spent_s, budget.total_s
    if early:
        note = (
            f"The search was ended early, after {spent_s:.0f} of {budget_s:.0f} s: "
            f"{untimed} candidates had not been compared with this choice. The same command "
            "continues the search."
        )
    else:
        note = (
            "No time was left for the final rounds, so this is the first choice, and "
            f"{untimed} candidates were not compared with it; raise --budget."
        )
    return replace(
        standing, warnings=(note, *standing.warnings), elapsed_s=spent_s, ended_early=early
    )


_UNTIMED = "not compared with the choice before the search ended"


def _row(trial: Trial) -> Row:
    row = trial.row()
    if trial.in_play and not row.runs:
        return replace(row, status="dropped", reason=_UNTIMED)
    return row


def _notices(context: Context) -> tuple[str, ...]:
    """What a user would not expect of the models."""
    student = context.student
    return (*context.info.notices, *(student.info.notices if student else ()))


def _doubts(context: Context, constant: bool) -> tuple[str, ...]:
    """What makes the proof of the answers weaker than it looks."""
    judged, different = len(context.texts), len(set(context.texts))
    doubts = []
    if constant and different > 1:
        doubts.append(
            f"The original gives the same outputs for all {different} different texts, so "
            "agreement with it proves nothing, and lossy candidates were refused. Was its head "
            "trained, and are its weights complete?"
        )
    if different < _FEW_TEXTS:
        copies = f" ({judged:,} with their copies)" if judged > different else ""
        only = "1 different text was" if different == 1 else f"{different} different texts were"
        doubts.append(
            f"Only {only} judged{copies}: give at least {_FEW_TEXTS} of the "
            "kind that the model will see, or neither the speed nor the proof says much."
        )
    elif different < judged:
        doubts.append(
            f"Of {judged:,} judged texts {different:,} are different; copies prove nothing and "
            "count once in flipped labels and their bound."
        )
    return tuple(doubts)


def _warnings(context: Context, baseline: Row, winner: Row, planned: int) -> tuple[str, ...]:
    """What makes the figures less sure than they look; ``planned`` rounds were to be run."""
    assert baseline.main
    assert winner.main
    warnings = []
    spread = max(baseline.main.total.spread, winner.main.total.spread)
    if spread >= _NOISY:
        warnings.append(
            f"The machine was noisy: the middle half of a candidate's rounds spread over "
            f"{percent(spread)} of their median. Close other programs, or raise --rounds and "
            "--budget."
        )
    run = len(baseline.main.total.samples_s)
    if run < min(planned, context.settings.rounds):
        warnings.append(
            f"The final rounds took longer than predicted: {run} were run instead of "
            f"{context.settings.rounds}, to keep the budget. Raise --budget for narrower intervals."
        )
    if winner.candidate.spinning:
        threads = winner.candidate.streams * winner.candidate.intra_op_num_threads
        warnings.append(
            f"Waiting threads spin, which needs {threads} cores that are idle otherwise: beside "
            "other work it took up to 2.4 times as long. Where cores are shared, use the layout "
            "without spin."
        )
    lengths = context.calibration_lengths
    if len(lengths) and not np.ptp(lengths):
        warnings.append(
            f"All {len(lengths)} calibration texts have {lengths[0]} tokens: int8 ranges found on "
            "one length may not hold for others."
        )
    return tuple(warnings)
