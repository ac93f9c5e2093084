"""How a candidate would batch the judged texts, and how long that would take, by its cost table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.records import Candidate, Settings, Strategy
from hasten.runtime.batching import CostModel, best_strategy, plan, predict_s
from hasten.tuning.trial import Trial
from hasten.tuning.worker import RunTexts

ARRIVAL = Strategy("arrival", 1)
_LATENCY_MARGIN = 0.8


def best_plan(trial: Trial) -> tuple[Strategy, float] | None:
    """The strategy that the candidate's cost table likes best, and the seconds it predicts."""
    cost = trial.cost_model()
    if cost is None:
        return None
    strategy = ARRIVAL
    if trial.settings.objective != "latency":
        strategy = best_strategy(
            trial.lengths,
            cost,
            trial.settings.batch_sizes,
            max_batch_latency_s=batch_limit_s(trial.settings, trial.candidate),
        )
    return strategy, predicted_s(trial, strategy)


def best_s(trial: Trial) -> float:
    """Seconds that the best plan predicts for all judged texts; infinite before any timing."""
    best = best_plan(trial)
    return best[1] if best else math.inf


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The one in play that is predicted to be; None where none has been timed."""
    predicted = {e: plan[1] for e in trials if e.in_play and (plan := best_plan(e))}
    return min(predicted, key=lambda trial: predicted[trial], default=None)


def predicted_s(trial: Trial, strategy: Strategy) -> float:
    """Seconds that the candidate's cost table predicts for all judged texts."""
    return predict_s(trial.lengths, *batches(trial, strategy)) + trial.later_s


def batches(trial: Trial, strategy: Strategy) -> tuple[list[NDArray[np.int64]], CostModel]:
    """The candidate's batches of all judged texts, and the costs they were planned with.

    Of a cascade, those of its first stage.
    """
    cost = trial.cost_model()
    assert cost, f"{trial.label} has not been timed"
    limit_s = batch_limit_s(trial.settings, trial.candidate)
    return plan(trial.lengths, strategy, cost, max_batch_latency_s=limit_s), cost


def message_for(
    trial: Trial,
    indices: tuple[int, ...],
    *,
    strategy: Strategy | None = None,
    outputs: bool = False,
) -> RunTexts:
    """What to ask the candidate's worker; without a ``strategy``, for its own best plan."""
    if strategy is None:
        best = best_plan(trial)
        strategy = best[0] if best else ARRIVAL
    return RunTexts(
        indices,
        strategy,
        cost_table=trial.cost_table(),
        max_batch_latency_s=batch_limit_s(trial.settings, trial.candidate),
        one_by_one=trial.settings.objective == "latency",
        outputs=outputs,
    )


def batch_limit_s(settings: Settings, candidate: Candidate) -> float | None:
    """What one batch may cost under ``--max-latency-ms``, in the cost table's terms.

    Planned with a margin, since batches vary around their median. A table's seconds are
    wall-clock time divided by the streams that ran at once; a single batch takes ``streams``
    times as long from its begin to its end.
    """
    limit_ms = settings.max_latency_ms
    if limit_ms is None:
        return None
    return _LATENCY_MARGIN * limit_ms / 1000 / candidate.streams
