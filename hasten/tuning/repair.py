"""Refused int8 candidates once more, with their most sensitive layers kept in fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hasten.errors import EngineError
from hasten.tasks import Outputs
from hasten.tuning import proof, screening, timing
from hasten.tuning.context import Context
from hasten.tuning.plans import best_s
from hasten.tuning.proof import Tries
from hasten.tuning.trial import Trial
from hasten.tuning.worker import RankLayers

_STEPS = (1 / 8, 1 / 4, 1 / 2)
"""Parts of the layers kept in fp32, one after the other, until the answers are accepted."""
ATTEMPTS = len(_STEPS)
_MOST_REPAIRED = 2
# Of refused formats that are about as fast, the one with the fewest flipped labels is nearest.
_ABOUT_AS_FAST = 1.15
# What is saved must be worth another precision: ties go to the exact one anyway.
_WORTH_IT = 1.05


def repair(
    context: Context,
    trials: Sequence[Trial],
    accepted: Sequence[Trial],
    truth: Outputs,
    tries: Tries,
) -> list[Trial]:
    """New candidates out of refused int8 ones that are faster than all accepted ones.

    Those that are repairable and were refused are tried again with ever more of their most
    sensitive layers in floating point, until the gate accepts one, it is no longer faster, or the
    time is used up.

    Args:
        context: the tune.
        trials: all candidates so far.
        accepted: those whose answers are the original's.
        truth: the original's outputs.
        tries: which are repairable, and how many candidates are judged.

    Returns:
        Everything that was tried, refused or accepted.
    """
    refused = _worth_repairing(trials, accepted, tries)
    if not refused:
        return []
    deadline = context.budget.deadline("repair")
    tried: list[Trial] = []
    for trial in refused:
        if tried and not deadline.allows() and _ranking(trial) not in context.journal:
            return tried
        try:
            layers = _ranked_layers(context, trial)
        except EngineError as error:
            trial.add_reason(f"it could not be repaired: {error.message}")
            continue
        for step in _steps(context, trial):
            spared = layers[: max(1, round(step * len(layers)))]
            again = Trial(replace(trial.candidate, spared=spared), context)
            if not deadline.allows() and not again.has_started:
                return tried
            _try(context, again, [*accepted, *tried], truth, tries)
            tried.append(again)
            if again.status != "refused":
                break
    return tried


def _steps(context: Context, trial: Trial) -> tuple[float, ...]:
    """Which parts of the layers to keep in fp32: no small ones where many labels flipped."""
    rate = trial.parity.flip_rate if trial.parity else 1.0
    return _STEPS if rate <= 2 * context.settings.max_flips else _STEPS[1:]


def repairable(context: Context, trials: Sequence[Trial]) -> list[Trial]:
    """The int8 candidates that are repaired if they are refused, one layout a format.

    Chosen before the judged texts say anything, since each attempt is another one to judge: those
    about as fast as the fastest come first, by the answers that they changed at the first look,
    then the others by their speed.
    """
    if not len(context.calibration_lengths):
        return []
    # One that the first look refused has not been timed; it comes last.
    able = [e for e in trials if (e.in_play or e.status == "refused") and _only_inexact(e)]
    predicted = {trial: best_s(trial) for trial in able}
    near_s = _ABOUT_AS_FAST * min(predicted.values(), default=math.inf)

    def promise(trial: Trial) -> tuple[bool, float, float]:
        far, flips = predicted[trial] > near_s, 1.0
        if trial.parity and not far:
            flips = trial.parity.flip_rate
        return far, flips, predicted[trial]

    first: dict[str, Trial] = {}
    for trial in sorted(able, key=promise):
        first.setdefault(trial.candidate.format, trial)
    return list(first.values())[:_MOST_REPAIRED]


def _worth_repairing(
    trials: Sequence[Trial], accepted: Sequence[Trial], tries: Tries
) -> list[Trial]:
    """The repairable ones that were refused and would beat what was accepted."""
    limit_s = min((best_s(e) for e in accepted), default=math.inf) / _WORTH_IT
    by_label = {trial.label: trial for trial in trials}
    able = [by_label[label] for label in tries.repairable]
    refused = [e for e in able if e.status == "refused" and _only_inexact(e)]
    return [
        trial
        for trial in refused
        if not _is_lost(trial, trials) and (not trial.cells or best_s(trial) < limit_s)
    ]


def _is_lost(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether keeping layers in fp32 cannot help, since its student is refused in fp32 too."""
    if trial.candidate.model == "original":
        return False
    model = trial.candidate.model
    same = [e for e in trials if e.candidate.precision == "fp32" and e.candidate.model == model]
    return any(e.status == "refused" for e in same) and not any(e.in_play for e in same)


def _only_inexact(trial: Trial) -> bool:
    """Whether int8 makes its answers merely off: none NaN or constant, and no text cut."""
    parity = trial.parity
    sound = parity is not None and not parity.non_finite and not parity.constant
    whole = trial.candidate.max_tokens is None
    return trial.candidate.precision == "int8" and whole and sound


def _try(
    context: Context,
    trial: Trial,
    others: Sequence[Trial],
    truth: Outputs,
    tries: Tries,
) -> None:
    spared = len(trial.candidate.spared)
    context.budget.tell("repair", f"{trial.label}: {spared} layers in floating point")
    screening.prepare_all(
        context, [trial], truth, part="repair start", whose=trial.label, beside=others
    )
    if not trial.in_play:
        return
    timing.measure_tables(context, [trial], part="repair table", whose=trial.label)
    predicted_s = best_s(trial)
    accepted_s = min((best_s(e) for e in others if e.in_play), default=math.inf)
    if not trial.cells:
        trial.end("dropped", "the budget left no time to time it; raise --budget")
    elif predicted_s * _WORTH_IT >= accepted_s:
        times = f"{predicted_s / accepted_s:.3g}x the time of the best that was accepted"
        trial.end("dropped", f"{spared} layers in fp32, predicted {times}")
    elif _too_late(context, trial):
        trial.end("dropped", "no time was left to prove its answers; raise --budget")
    else:
        proof.prove(context, trial, truth, tries)


def _too_late(context: Context, trial: Trial) -> bool:
    deadline = context.budget.deadline("repair")
    late = not deadline.allows(proof.expected_s(context, trial))
    return late and not trial.has_proved("parity")


def _ranked_layers(context: Context, trial: Trial) -> tuple[str, ...]:
    """The linear layers of the candidate's model, the most sensitive first.

    Raises:
        EngineError: that cannot be found out.
    """
    threads = trial.candidate.streams * trial.candidate.intra_op_num_threads

    def ask() -> tuple[str, ...]:
        context.budget.tell("repair", "which layers suffer most from int8")
        worker = context.spawn(_ranking(trial))
        try:
            message = RankLayers(context.subject(trial.candidate).reference, threads)
            names: tuple[str, ...] = worker.call(message, context.patience_s)
        finally:
            worker.close()
        if not names:
            raise EngineError("the model has no linear layers")
        return names

    return tuple(context.journal.once(_ranking(trial), ask))


def _ranking(trial: Trial) -> str:
    """What the journal and the log call the order of the layers of a candidate's model."""
    model = trial.candidate.model
    return "layers" if model == "original" else f"{model}-layers"
