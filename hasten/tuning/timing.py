"""Timing batch shapes: which visits belong to which stage, and all candidates in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hasten.records import LengthProfile
from hasten.tuning.budget import Budget, Deadline
from hasten.tuning.context import Context
from hasten.tuning.trial import Shape, Trial

# A visit is some samples of a batch shape, and the journal knows it by its number. Stages that
# share numbers share what was measured.
ORIGINAL_VISITS = range(5)
SCREEN_VISITS = range(3)
SCREEN_AGAIN_VISITS = range(3, 6)
TABLE_VISITS = range(10, 13)
EXPERIMENT_VISITS = TABLE_VISITS

_MOST_LENGTHS = 7


def sweep(
    budget: Budget,
    trials: Sequence[Trial],
    shapes: Sequence[Shape],
    visits: range,
    *,
    stage: str,
    deadline: Deadline | None = None,
) -> None:
    """Visit every shape with every candidate in turn, small shapes first, several times over.

    One visit of a shape goes through all candidates before the next shape begins, so that a
    drifting machine drifts for all of them. Shapes that would not fit before the ``deadline`` are
    left out; the cost model extrapolates over them.
    """
    for visit in visits:
        for shape in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            running = [trial for trial in trials if trial.in_play]
            seen = visit == visits.start or any(shape in trial.cells for trial in running)
            if not (running and seen and _affordable(running, shape, visit, deadline)):
                continue  # what was left out at the first visit has not become cheaper
            # The order rotates, so that nobody always runs on the heat of the same neighbour.
            turn = visit % len(running)
            for trial in running[turn:] + running[:turn]:
                batch_size, length = shape
                message = f"{trial.label}, {batch_size} x {length} tokens, visit {visit + 1}"
                budget.tell(stage, message)
                trial.time_shape(shape, visit, _expected_s(trial, shape))


def measure_tables(
    context: Context, survivors: Sequence[Trial], *, part: str = "cost table", whose: str = ""
) -> None:
    """Fill the survivors' cost tables, small shapes first.

    ``part`` of the time is for it, and ``whose`` tells several of that name apart.
    """
    settings = context.settings
    sizes = (1,) if settings.objective == "latency" else settings.batch_sizes
    shapes = [(size, length) for size in sizes for length in table_lengths(context.profile)]
    deadline = context.budget.deadline(part, whose)
    sweep(context.budget, survivors, shapes, TABLE_VISITS, stage="cost table", deadline=deadline)


def table_lengths(profile: LengthProfile) -> list[int]:
    """Lengths that span the user's texts: doubling steps between the shortest and the longest.

    Costs are close to linear between neighbours at a factor of two; quantiles would put all
    lengths where the texts are and leave the long end, which costs most, to extrapolation.
    """
    low, high = max(profile.p5, 4), max(profile.longest, 4)
    steps = min(_MOST_LENGTHS, 1 + max(1, round(np.log2(high / low))))
    return sorted({round(n) for n in np.geomspace(low, high, steps)} | {profile.p50})


def _affordable(
    running: Sequence[Trial], shape: Shape, visit: int, deadline: Deadline | None
) -> bool:
    """Whether everybody can visit the shape in time, or an interrupted run has begun with it."""
    if deadline is None or any(trial.has_timed(shape, visit) for trial in running):
        return True
    return deadline.allows(sum(_expected_s(trial, shape) for trial in running))


def _expected_s(trial: Trial, shape: Shape) -> float:
    """What a visit will take: a warm-up and a sample, or the least time that is measured."""
    cost = trial.cost_model()
    if cost is None:
        return 0.0
    one_s = cost.cost_s(*shape) * trial.candidate.streams
    return max(2 * one_s, 0.03)
