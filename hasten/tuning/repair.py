"""A second chance for int8 candidates whose answers changed: spare the most sensitive layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError
from hasten.tuning import finals, screening
from hasten.tuning.context import Context
from hasten.tuning.entrant import Entrant
from hasten.tuning.worker import RankLayers

_SHARE = 0.4
_TABLE_SHARE = 0.06
_STEPS = (1 / 8, 1 / 4, 1 / 2)
"""Parts of the layers that are spared, one after the other, until the answers are accepted."""
_MOST_REPAIRED = 2
# Of refused formats that are about as fast, the one with the fewest changed answers is nearest.
_ABOUT_AS_FAST = 1.15
# What is saved must be worth another precision: ties go to the exact one anyway.
_WORTH_IT = 1.05


def repair(
    context: Context,
    entrants: Sequence[Entrant],
    accepted: Sequence[Entrant],
    truth: NDArray[np.float32],
) -> list[Entrant]:
    """New candidates out of refused int8 ones that are faster than all accepted ones.

    Two of the refused formats are tried again with ever more of their most sensitive layers in
    floating point, until the gate accepts one, it is no longer faster, or the time is used up.

    Args:
        context: the tune.
        entrants: all candidates so far.
        accepted: those whose answers are the original's.
        truth: the original's outputs, float32 [texts, k].

    Returns:
        Everything that was tried, refused or accepted.
    """
    refused = _worth_repairing(context, entrants, accepted)
    if not refused or not len(context.calibration_lengths):
        return []
    deadline_s = context.budget.deadline("repair", _SHARE)
    tried: list[Entrant] = []
    for entrant in refused:
        late = context.budget.spent_s > deadline_s
        if tried and late and _ranking(entrant) not in context.journal:
            return tried
        try:
            layers = _ranked_layers(context, entrant)
        except EngineError as error:
            entrant.reason = f"{entrant.reason}; it could not be repaired: {error.message}"
            continue
        for step in _steps(context, entrant):
            spared = layers[: max(1, round(step * len(layers)))]
            again = Entrant(replace(entrant.candidate, spared=spared), context)
            if context.budget.spent_s > deadline_s and not again.has_started:
                return tried
            _try(context, again, [*accepted, *tried], truth, deadline_s)
            tried.append(again)
            if again.status != "refused":
                break
    return tried


def _steps(context: Context, entrant: Entrant) -> tuple[float, ...]:
    """Which parts of the layers to spare: no small ones where many answers changed."""
    rate = entrant.parity.flip_rate if entrant.parity else 1.0
    return _STEPS if rate <= 2 * context.settings.max_flips else _STEPS[1:]


def _worth_repairing(
    context: Context, entrants: Sequence[Entrant], accepted: Sequence[Entrant]
) -> list[Entrant]:
    """Refused int8 formats, one layout each, that would beat what was accepted.

    Those about as fast as the fastest come first, by their changed answers; then the others.
    """
    limit_s = min((_predicted_s(context, e) for e in accepted), default=math.inf) / _WORTH_IT
    refused = [e for e in entrants if e.status == "refused" and _only_inexact(e)]
    refused = [e for e in refused if not _is_lost(e, entrants)]
    # One that a few texts refused has not been timed; it comes last.
    predicted = {e: _predicted_s(context, e) for e in refused}
    refused = [e for e in refused if not e.cells or predicted[e] < limit_s]
    near_s = _ABOUT_AS_FAST * min(predicted.values(), default=math.inf)

    def promise(entrant: Entrant) -> tuple[bool, float, float]:
        far, flips = predicted[entrant] > near_s, 1.0
        if entrant.parity and not far:
            flips = entrant.parity.flip_rate
        return far, flips, predicted[entrant]

    fastest: dict[str, Entrant] = {}
    for entrant in sorted(refused, key=promise):
        fastest.setdefault(entrant.candidate.format, entrant)
    return list(fastest.values())[:_MOST_REPAIRED]


def _is_lost(entrant: Entrant, entrants: Sequence[Entrant]) -> bool:
    """Whether its student is refused in fp32 already, to which sparing layers would lead back."""
    if entrant.candidate.model == "original":
        return False
    model = entrant.candidate.model
    same = [e for e in entrants if e.candidate.precision == "fp32" and e.candidate.model == model]
    return any(e.status == "refused" for e in same) and not any(e.in_play for e in same)


def _only_inexact(entrant: Entrant) -> bool:
    """Whether its answers are merely off; what is NaN or constant is broken otherwise."""
    parity = entrant.parity
    sound = parity is not None and not parity.non_finite and not parity.constant
    return entrant.candidate.precision == "int8" and sound


def _try(
    context: Context,
    entrant: Entrant,
    others: Sequence[Entrant],
    truth: NDArray[np.float32],
    deadline_s: float,
) -> None:
    spared = len(entrant.candidate.spared)
    context.tell("repair", f"{entrant.label}: {spared} layers in floating point")
    screening.prepare_all(context, [entrant], truth, name=f"repair:{entrant.label}", beside=others)
    if not entrant.in_play:
        return
    finals.measure_tables(context, [entrant], name=f"table:{entrant.label}", part=_TABLE_SHARE)
    predicted_s = _predicted_s(context, entrant)
    best_s = min((_predicted_s(context, e) for e in others if e.in_play), default=math.inf)
    if not entrant.cells:
        entrant.end("dropped", "the budget left no time to time it; raise --budget")
    elif predicted_s * _WORTH_IT >= best_s:
        times = f"{predicted_s / best_s:.2f}x the time of the best that was accepted"
        entrant.end("dropped", f"{spared} layers spared, predicted {times}")
    elif context.budget.spent_s + predicted_s > deadline_s and not entrant.has_proved("parity"):
        entrant.end("dropped", "no time was left to prove its answers; raise --budget")
    else:
        finals.prove(context, entrant, truth, predicted_s)


def _ranked_layers(context: Context, entrant: Entrant) -> tuple[str, ...]:
    """The linear layers of the candidate's model, the most sensitive first.

    Raises:
        EngineError: that cannot be found out.
    """
    threads = entrant.candidate.streams * entrant.candidate.intra_op_num_threads

    def ask() -> tuple[str, ...]:
        context.tell("repair", "which layers suffer most from int8")
        worker = context.spawn(_ranking(entrant))
        try:
            message = RankLayers(context.subject(entrant.candidate).reference, threads)
            names: tuple[str, ...] = worker.call(message, context.patience_s)
        finally:
            worker.close()
        if not names:
            raise EngineError("the model has no linear layers to spare")
        return names

    return tuple(context.journal.once(_ranking(entrant), ask))


def _ranking(entrant: Entrant) -> str:
    """What the journal and the log call the order of the layers of a candidate's model."""
    model = entrant.candidate.model
    return "layers" if model == "original" else f"{model}-layers"


def _predicted_s(context: Context, entrant: Entrant) -> float:
    plan = screening.best_plan(context, entrant)
    return plan[1] if plan else math.inf
