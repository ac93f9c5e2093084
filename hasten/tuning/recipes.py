"""The first of an engine's recipes whose answers agree with the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hasten.engines.base import Engine
from hasten.errors import ChoiceError, NoCandidate, Unavailable
from hasten.judging.parity import unprovable
from hasten.records import PRECISIONS, Candidate, Hardware, Parity, Row, Settings
from hasten.runtime import probes
from hasten.tasks import Outputs
from hasten.tuning import candidates, original, proof
from hasten.tuning.context import Context
from hasten.tuning.proof import Tries
from hasten.tuning.trial import Trial


@dataclass(frozen=True, slots=True)
class Accepted:
    """The candidate that was taken, and the rows of those tried before it.

    ``refusal`` is why its check failed, where it was taken all the same.
    """

    candidate: Candidate
    parity: Parity
    refusal: str | None
    tried: tuple[Row, ...]


def require_runnable(
    hardware: Hardware, settings: Settings, engines: Mapping[str, Engine]
) -> list[Candidate]:
    """The recipes for ``settings``' one engine and precision, as far as this machine can run them.

    Whether there are texts to calibrate with is not looked at yet.

    Raises:
        Unavailable: a package is missing.
        ChoiceError: the engine cannot run the precision here.
    """
    (name,), (precision,) = settings.engines, settings.precisions
    engine = engines[name]
    possible, unavailable = candidates.enumerate_rows(hardware, settings, engines, calibration=1)
    if possible:
        return possible
    recipe = unavailable[0].candidate.recipe
    if missing := engine.missing() or engine.missing_to_export(recipe):
        raise Unavailable(missing.message, fix=missing.fix)
    others = [p for p in PRECISIONS if p != precision and _runs(p, hardware, settings, engines)]
    fix = f"{name} runs here: {', '.join(others)}. " if others else ""
    raise ChoiceError(
        f"{name} cannot run {precision} here: {unavailable[0].reason}",
        fix=f"{fix}`hasten doctor` shows what every engine can run on this machine.",
    )


def first_accepted(
    context: Context, *, force: bool, baseline_engine: str = "torch_eager"
) -> Accepted:
    """Try recipe after recipe until one keeps the original's answers.

    After the first, none is started once the budget is used up. With ``force``, the one that
    changes the fewest answers is taken where none is accepted.

    Raises:
        NoCandidate: none is accepted; the message has each one's reason.
        EngineError: the original does not run.
        ModelError: the original gives NaN or infinity.
    """
    trials = _trials(context)
    truth = _original_answers(context, baseline_engine)
    tries, tried = Tries(lossy=len(trials)), list[Trial]()
    for trial in trials:
        if tried and not context.budget.left_s:
            break
        try:
            _check(context, trial, truth, tries)
        finally:
            trial.close()
        if trial.in_play:
            return _accepted(trial, tried)
        tried.append(trial)
    checked = [trial for trial in tried if trial.parity]
    if force and checked:
        best = min(checked, key=_damage)
        return _accepted(best, [trial for trial in tried if trial is not best])
    raise _none_accepted(context, tried, untried=len(trials) - len(tried))


def _runs(
    precision: str, hardware: Hardware, settings: Settings, engines: Mapping[str, Engine]
) -> bool:
    asked = replace(settings, precisions=(precision,))
    return bool(candidates.enumerate_rows(hardware, asked, engines, calibration=1)[0])


def _trials(context: Context) -> list[Trial]:
    """One for each recipe, in the engine's order; the layout decides nothing here."""
    possible, unavailable = candidates.enumerate_rows(
        context.hardware,
        context.settings,
        context.engines,
        len(context.calibration_lengths),
        trained=context.trained,
    )
    if not possible:
        raise NoCandidate(
            f"no recipe can be tried: {unavailable[0].reason}",
            fix="Give more texts with --data, or leave --data out to use the built-in ones.",
        )
    layouts = {candidate.format: candidate for candidate in reversed(possible)}
    return [Trial(candidate, context) for candidate in reversed(layouts.values())]


def _original_answers(context: Context, engine: str) -> Outputs:
    baseline = Trial(candidates.baseline(context.hardware, context.settings, engine), context)
    try:
        return original.answers(context, baseline, lambda _context, _pass_s: None)
    finally:
        baseline.close()


def _check(context: Context, trial: Trial, truth: Outputs, tries: Tries) -> None:
    """Export a candidate and compare its answers; one that fails is no longer in play."""
    candidate = trial.candidate
    context.budget.tell("export", candidate.format)
    trial.prepare()
    if trial.in_play:
        context.budget.tell("check", f"{candidate.format} on {len(context.texts)} texts")
        proof.prove(context, trial, truth, tries, probes.STRATEGY)
    reason = None if candidate.exact else unprovable(truth, context.texts)
    if reason and trial.in_play:
        trial.end("refused", reason)


def _damage(trial: Trial) -> tuple[int, int, float]:
    parity = trial.parity
    assert parity
    return parity.non_finite, parity.flips, parity.mean_abs_difference


def _accepted(trial: Trial, tried: Sequence[Trial]) -> Accepted:
    assert trial.parity
    return Accepted(
        trial.candidate,
        trial.parity,
        trial.reason,
        tuple(other.row() for other in tried),
    )


def _none_accepted(context: Context, tried: Sequence[Trial], *, untried: int) -> NoCandidate:
    (engine,), (precision,) = context.settings.engines, context.settings.precisions
    lines = [f"  {trial.candidate.format}: {trial.reason}" for trial in tried]
    if untried:
        lines.append(f"  {untried} more recipes: not tried, the budget was used up")
    return NoCandidate(
        f"nothing was written, since no {precision} recipe of {engine} keeps the original's "
        "answers:\n" + "\n".join(lines),
        fix=_what_helps(tried, untried=untried),
    )


def _what_helps(tried: Sequence[Trial], *, untried: int) -> str:
    checked = [trial.parity for trial in tried if trial.parity and not trial.candidate.exact]
    advice = ["Raise --budget to try the rest."] if untried else []
    if rates := [parity.flip_rate for parity in checked if parity.decisions and parity.flips]:
        advice.append(f"--max-flips {np.ceil(min(rates) * 1000) / 1000:g} would accept the best.")
    if checked:
        advice.append("`hasten tune` tries more, with sensitive layers kept in fp32.")
    if any(trial.parity for trial in tried):
        advice.append("--force writes it regardless.")
    else:
        advice.append("`hasten doctor` shows which other engines can run here.")
    return " ".join(advice)
