"""The contest from first look to decision: prepare, screen, cost tables, proof, finals, choice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BudgetError, EngineError, StorageError
from hasten.records import Candidate, Ceiling, Plan, Row, Tuning
from hasten.tuning import candidates, choose, finals, screening
from hasten.tuning.context import Context
from hasten.tuning.entrant import Entrant
from hasten.tuning.worker import MeasureCeiling, RunTexts

TRUTH = "truth.npy"

_FIRST_VISITS = 5
_NOISY = 0.15

log = logging.getLogger(__name__)


def run(context: Context, *, baseline_engine: str = "torch_eager") -> Tuning:
    """Find the fastest way to run the model that keeps its answers.

    Raises:
        BudgetError: the budget does not hold the baseline.
        NoCandidate: nothing that can run here gives the original's answers.
        EngineError: the original itself does not run.
    """
    settings, hardware = context.settings, context.hardware
    possible, unavailable = candidates.enumerate_rows(hardware, settings, context.engines)
    if not possible:
        raise choose.no_candidate(unavailable)
    baseline = Entrant(candidates.baseline(hardware, settings, baseline_engine), context)
    entrants = [Entrant(candidate, context) for candidate in possible]
    try:
        truth = _truth(context, baseline)
        if context.gold is not None:
            # Unknown labels are the user's mistake: say so now, not when the budget is spent.
            context.task.matches(truth, context.gold, context.info.labels)
        screening.prepare_all(context, entrants, truth)
        screening.screen(context, entrants, baseline)
        finals.measure_tables(context, [e for e in entrants if e.in_play])
        finalists = finals.choose_finalists(context, entrants, truth)
        if not finalists:
            raise choose.no_candidate([entrant.row() for entrant in entrants])
        sample = finals.run_rounds(context, finalists, baseline)
        ceilings = _ceilings(context, baseline, entrants)
    finally:
        for entrant in [baseline, *entrants]:
            entrant.close()
    _judge(context, finalists, baseline, sample, ceilings)
    rows = [entrant.row() for entrant in entrants] + unavailable
    return _decide(context, baseline.row(), rows, ceilings)


def _truth(context: Context, baseline: Entrant) -> NDArray[np.float32]:
    """The original's outputs on every judged text, float32 [texts, k]; kept for a resume."""
    context.tell("prepare", f"the original, {baseline.label}")
    baseline.prepare()
    if not baseline.in_play:
        raise EngineError(
            f"the original model does not run: {baseline.reason}",
            fix="hasten compares everything with fp32 PyTorch; that has to work first.",
        )
    stored = context.folder / TRUTH
    for visit in range(_FIRST_VISITS):
        baseline.time_shape((1, context.profile.p50), visit)
    if not stored.exists():
        expected_s = _check_budget(context, baseline)
        context.tell("prepare", f"the original's answers to {len(context.texts)} texts")
        indices = tuple(range(len(context.texts)))
        message = RunTexts(indices, screening.PROBE_STRATEGY, outputs=True)
        _store(stored, baseline.outputs(message, expected_s))
    truth: NDArray[np.float32] = np.load(stored)
    return truth


def _store(path: Path, outputs: NDArray[np.float32]) -> None:
    """Write an array so that the file is whole or not there."""
    unfinished = path.with_suffix(".unfinished.npy")
    try:
        np.save(unfinished, outputs)
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _check_budget(context: Context, baseline: Entrant) -> float:
    """Seconds for one pass of the baseline over all texts; refuses a hopeless budget early."""
    samples_s = baseline.cells.get((1, context.profile.p50))
    if not samples_s:
        raise EngineError(f"the original model does not run: {baseline.reason}")
    # The fastest sample, since a disturbance now must not refuse what would fit later.
    pass_s = min(samples_s) * float(context.lengths.sum()) / context.profile.p50
    fewest = min(finals.FEWEST_TEXTS, len(context.texts)) / len(context.texts)
    needed_s = context.budget.spent_s + pass_s * (1 + fewest * context.settings.rounds)
    if needed_s > context.budget.total_s:
        raise BudgetError(
            f"a budget of {context.settings.budget_s:.0f} s cannot hold the baseline: one pass "
            f"over {len(context.texts)} texts takes about {pass_s:.0f} s",
            fix=f"Try --budget {3 * needed_s:.0f}s, or fewer texts with --texts.",
        )
    return pass_s


def _ceilings(
    context: Context, baseline: Entrant, entrants: Sequence[Entrant]
) -> tuple[Ceiling, ...]:
    """The machine's fastest matrix product in every precision that was measured."""
    kinds = {(e.candidate.precision, e.candidate.device) for e in entrants if e.runs}
    found = []
    for precision, device in sorted(kinds):
        probe = replace(baseline.candidate, precision=precision, device=device)
        context.tell("ceiling", f"the fastest matrix product in {precision}")
        measure = partial(_measure_ceiling, context, probe)
        try:
            flops_per_s = context.journal.once(f"ceiling:{precision}:{device}", measure)
        except EngineError as error:
            # The share of it is then left out of the report; the choice does not need it.
            log.warning("no ceiling for %s on %s: %s", precision, device, error)
            continue
        if flops_per_s:
            found.append(Ceiling(precision, device, flops_per_s))
    return tuple(found)


def _measure_ceiling(context: Context, probe: Candidate) -> float | None:
    worker = context.spawn(f"ceiling-{probe.precision}-{probe.device}")
    try:
        flops_per_s: float | None = worker.call(MeasureCeiling(probe), context.patience_s)
    finally:
        worker.close()
    return flops_per_s


def _judge(
    context: Context,
    finalists: Sequence[Entrant],
    baseline: Entrant,
    sample: NDArray[np.int64],
    ceilings: Sequence[Ceiling],
) -> None:
    """Add what only shows when all rounds are over: speed-ups, shares, broken latency limits."""
    flops = sum(context.info.flops(int(length)) for length in context.lengths[sample])
    ceiling = {(c.precision, c.device): c.flops_per_s for c in ceilings}
    reference = baseline.row().main
    for entrant in finalists:
        run = entrant.row().main
        if not entrant.in_play:
            continue
        if run is None or reference is None:
            entrant.end("dropped", "accepted, but no time was left to run it; raise --budget")
            continue
        entrant.ratio_to_baseline = choose.speedup(reference, run, context.settings)
        key = (entrant.candidate.precision, entrant.candidate.device)
        if key in ceiling:
            entrant.ceiling_share = flops / run.total.median_s / ceiling[key]
        reason = choose.too_slow_batches(run, context.settings)
        if reason:
            entrant.end("refused", reason)


def _decide(
    context: Context, baseline: Row, rows: list[Row], ceilings: tuple[Ceiling, ...]
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
        warnings=_warnings(baseline, winner),
    )


def _warnings(baseline: Row, winner: Row) -> tuple[str, ...]:
    """What makes the figures less sure than they look."""
    assert baseline.main
    assert winner.main
    spread = max(baseline.main.total.spread, winner.main.total.spread)
    if spread < _NOISY:
        return ()
    warning = (
        f"The machine was noisy: the middle half of a candidate's rounds spread over "
        f"{spread:.0%} of their median. Close other programs, or raise --rounds and --budget."
    )
    return (warning,)
