"""The contest from first look to decision: prepare, screen, cost tables, proof, finals, choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BudgetError
from hasten.parity import is_constant, unprovable
from hasten.records import Ceiling, Plan, Probes, Row, Tuning
from hasten.stats import speed_up
from hasten.tuning import (
    candidates,
    ceiling,
    choose,
    finals,
    original,
    proof,
    repair,
    rounds,
    screening,
)
from hasten.tuning.context import Context
from hasten.tuning.entrant import Entrant

_NOISY = 0.15
_FEW_TEXTS = 100


def run(context: Context, *, baseline_engine: str = "torch_eager") -> Tuning:
    """Find the fastest way to run the model that keeps its answers.

    Raises:
        BudgetError: the budget does not hold the baseline.
        NoCandidate: nothing that can run here gives the original's answers.
        EngineError: the original itself does not run.
        ModelError: it gives NaN or infinity.
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
    baseline = Entrant(candidates.baseline(hardware, settings, baseline_engine), context)
    entrants = [Entrant(candidate, context) for candidate in possible]
    try:
        truth = original.answers(context, baseline, _check_budget)
        _refuse_unprovable(context, entrants, truth)
        screening.first_looks(context, [e for e in entrants if e.in_play], baseline, truth)
        finals.measure_tables(context, [e for e in entrants if e.in_play])
        repairable = repair.repairable(context, entrants)
        tries = proof.fix_tries(context, entrants, repairable, repair.ATTEMPTS)
        finalists = proof.choose_finalists(context, entrants, truth, tries)
        repaired = repair.repair(context, entrants, finalists, truth, tries)
        entrants += repaired
        finalists = finals.line_up(context, [*finalists, *repaired])
        if not finalists:
            raise choose.no_candidate([entrant.row() for entrant in entrants])
        final = rounds.plan(context, finalists, baseline)
        final.run()
        for entrant in finalists:
            entrant.keep_probes(screening.probe(context))
    finally:
        for entrant in [baseline, *entrants]:
            entrant.close()
    _judge(context, finalists, baseline, final)
    rows = [entrant.row() for entrant in entrants] + unavailable
    probes = {e.label: e.probes for e in finalists if e.probes}
    ceilings = ceiling.ceilings(final.ceilings)
    return _decide(context, baseline.row(), rows, ceilings, probes, constant=is_constant(truth))


def _refuse_unprovable(
    context: Context, entrants: Sequence[Entrant], truth: NDArray[np.float32]
) -> None:
    """Refuse lossy candidates, before any time goes into them, where no proof would mean much."""
    reason = unprovable(truth, context.texts)
    for entrant in entrants:
        if reason and not entrant.candidate.exact:
            entrant.end("refused", reason)


def _check_budget(context: Context, pass_s: float) -> None:
    """Refuse a hopeless budget early; one pass of the baseline over all texts takes ``pass_s``."""
    fewest = min(rounds.FEWEST_TEXTS, len(context.texts)) / len(context.texts)
    begun_s = context.budget.spent_s
    needed_s = begun_s + pass_s * (1 + fewest * context.settings.rounds)
    if needed_s > context.budget.total_s:
        raise BudgetError(
            f"a budget of {context.settings.budget_s:.0f} s cannot hold the baseline: starting it "
            f"took {begun_s:.0f} s, and one pass over {len(context.texts)} texts takes about "
            f"{pass_s:.1f} s at the speed that it has now",
            fix=f"Try --budget {math.ceil(3 * needed_s / 60)}m; or less with --restart: fewer "
            "texts with --texts, or --threads 1. If the machine is busy with something else, the "
            "same command measures anew when it is not.",
        )


def _judge(
    context: Context,
    finalists: Sequence[Entrant],
    baseline: Entrant,
    final: rounds.Rounds,
) -> None:
    """Add what only shows when all rounds are over: speed-ups, shares, broken latency limits."""
    reference = baseline.row().main
    for entrant in finalists:
        run = entrant.row().main
        if not entrant.in_play:
            continue
        if run is None or reference is None:
            entrant.end("dropped", "accepted, but no time was left to run it; raise --budget")
            continue
        entrant.ratio_to_baseline = speed_up(reference, run, seed=context.settings.seed)
        model = context.subject(entrant.candidate).info
        flops = sum(model.flops(int(length)) for length in context.lengths[final.sample])
        entrant.ceiling_share = ceiling.share(
            final.ceilings, entrant.candidate, run, run.processes, flops
        )
        reason = choose.too_slow_batches(run, context.settings)
        if reason:
            entrant.end("refused", reason)


def _decide(
    context: Context,
    baseline: Row,
    rows: list[Row],
    ceilings: tuple[Ceiling, ...],
    probes: Mapping[str, Probes],
    *,
    constant: bool,
) -> Tuning:
    choice = choose.choose(rows, context.engines, context.settings)
    winner = choice.winner
    assert winner.main
    rows[rows.index(winner)] = replace(winner, status="chosen")
    return Tuning(
        plan=Plan(
            winner.candidate,
            winner.main.strategy,
            winner.cost_table,
            screening.batch_limit_s(context.settings, winner.candidate),
        ),
        baseline=baseline,
        rows=tuple(rows),
        ratio_to_runner_up=choice.ratio_to_runner_up,
        runner_up=choice.runner_up.candidate.label if choice.runner_up else None,
        tie=choice.tie,
        model=context.info,
        profile=context.profile,
        hardware=context.hardware,
        ceilings=ceilings,
        settings=context.settings,
        versions=context.versions,
        elapsed_s=context.budget.spent_s,
        warnings=(*_doubts(context, constant), *_warnings(context, baseline, winner)),
        judged_texts=len(context.texts),
        calibration_texts=len(context.calibration_lengths),
        probes=probes.get(winner.candidate.label),
        student=context.student.info if context.student else None,
        taught_texts=context.taught_texts,
    )


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
            "count once in changed answers and their bound."
        )
    return tuple(doubts)


def _warnings(context: Context, baseline: Row, winner: Row) -> tuple[str, ...]:
    """What makes the figures less sure than they look."""
    assert baseline.main
    assert winner.main
    warnings = []
    spread = max(baseline.main.total.spread, winner.main.total.spread)
    if spread >= _NOISY:
        warnings.append(
            f"The machine was noisy: the middle half of a candidate's rounds spread over "
            f"{spread:.0%} of their median. Close other programs, or raise --rounds and --budget."
        )
    run = len(baseline.main.total.samples_s)
    if run < context.settings.rounds:
        warnings.append(
            f"The final rounds took longer than predicted: {run} were run instead of "
            f"{context.settings.rounds}, to keep the budget. Raise --budget for narrower intervals."
        )
    lengths = context.calibration_lengths
    if len(lengths) and not np.ptp(lengths):
        warnings.append(
            f"All {len(lengths)} calibration texts have {lengths[0]} tokens: int8 ranges found on "
            "one length may not hold for others."
        )
    return tuple(warnings)
