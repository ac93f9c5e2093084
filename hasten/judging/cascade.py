"""Thresholds for cascades, with a guarantee. Pure numpy.

A cascade answers a text with its first stage where that stage is sure enough, and otherwise hands
it to the next. The fewer texts go further, the faster it is, and the more answers of the lossy
stages stand that are not the original's. :func:`certify` walks from cautious thresholds to bold
ones along a path that was fixed on calibration texts (:func:`path`), and tests at every step, on
other texts, that the share of flips is at most the share allowed. It stops at the first step
that does not pass, so that the last one before it holds with 95 % confidence, however many steps
there were. ``docs/cascades.md`` derives this.

This is fixed-sequence testing as in Schuster et al., "Confident Adaptive Language Modeling",
NeurIPS 2022, section 4.3, and Angelopoulos et al., "Learn then Test: Calibrating Predictive
Algorithms to Achieve Risk Control", 2021, with exact binomial p-values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.judging.stats import binomial_cdf, clopper_pearson_upper, fewest_trials
from hasten.records import CascadeProof, Reading, Step, Text
from hasten.tasks import Outputs, Task

DELTA = 0.05
"""How often a promise may be broken: the confidence is 95 %."""

POINTS = 100
"""Thresholds of one stage that :func:`path` offers."""

_UNSURE = 0.1
_NOT_SURE = -1.0
_DIGITS = 6  # after the point; logits are rounded before that
_CAUTION = 0.5
"""Flips that a step is charged beyond those it shows, as calibration texts are few."""


@dataclass(frozen=True, slots=True, eq=False)
class StageAnswers:
    """What :func:`certify` must know of one stage's answers to n different texts, each float64 [n].

    ``sureness`` is that of the batch plan that is shipped. Where answers depend on batch mates,
    ``least`` is the smallest of all tested batchings. ``flipped`` is the largest sureness with
    which any of them gives another answer than the original's, and minus infinity where none does.
    """

    sureness: NDArray[np.float64]
    least: NDArray[np.float64]
    flipped: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.sureness)


def read(original: Outputs, outputs: Outputs, task: Task) -> Reading:
    """How sure a candidate is of each text, and where it answers otherwise than the original.

    A text with NaN or infinity, or with another number of rows, has no sureness, so that it always
    goes to the next stage.

    Args:
        original: the original's outputs, of n texts.
        outputs: the candidate's, of the same texts.
        task: how outputs are read.
    """
    sound = outputs.finite & (outputs.counts == original.counts)
    known = outputs.where(sound, original)
    flips = np.flatnonzero(task.changed(original, known) & sound)
    sureness = np.where(sound, task.sureness(known), _NOT_SURE)
    return Reading(tuple(sureness.round(_DIGITS).tolist()), tuple(flips.tolist()))


def worst(readings: Sequence[Reading], texts: Sequence[Text]) -> StageAnswers:
    """Several batchings together; a text's copies count once, as the worst of them.

    Args:
        readings: by batching, each of all texts; that of the shipped plan first.
        texts: the n texts.
    """
    different = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    copies = np.array([different[text] for text in texts], np.int64)
    sureness = np.array([reading.sureness for reading in readings], np.float64)
    flipped = np.full(sureness.shape, -np.inf)
    for row, sure, reading in zip(flipped, sureness, readings, strict=True):
        flips = list(reading.flips)
        row[flips] = sure[flips]

    def of_copies(worse: np.ufunc, values: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.full(len(different), np.inf if worse is np.minimum else -np.inf)
        worse.at(found, copies, values)
        return found

    return StageAnswers(
        sureness=of_copies(np.minimum, sureness[0]),
        least=of_copies(np.minimum, sureness.min(axis=0)),
        flipped=of_copies(np.maximum, flipped.max(axis=0)),
    )


def path(
    stages: Sequence[StageAnswers], costs_s: Sequence[float], points: int = POINTS
) -> NDArray[np.float64]:
    """Thresholds from cautious to bold, fixed on calibration texts alone.

    With one threshold, they simply fall. With several, each step lowers one of them: the one that
    saves the most time for the flips that it adds on the calibration texts.

    Args:
        stages: all but the last, on the calibration texts.
        costs_s: of every stage, the last included, seconds a text.
        points: how many thresholds a stage has.

    Returns:
        float64 [steps, stages], one threshold for every stage but the last.
    """
    grids = [_grid(stage.sureness, points) for stage in stages]
    places = [0] * len(grids)
    steps = [places]
    while moves := [_moved(places, i) for i, grid in enumerate(grids) if places[i] + 1 < len(grid)]:
        if len(moves) == 1:
            places = moves[0]
        else:
            found = _measured(stages, costs_s, grids, [places, *moves])
            extra = np.maximum(found[1:, 1] - found[0, 1], 0.0) + _CAUTION
            places = moves[int(np.argmax((found[0, 0] - found[1:, 0]) / extra))]
        steps.append(places)
    chosen = [grid[np.array(steps)[:, i]] for i, grid in enumerate(grids)]
    return np.stack(chosen, axis=1)


def certify(
    stages: Sequence[StageAnswers],
    thresholds: NDArray[np.float64],
    *,
    max_flips: float,
    tries: int = 1,
    delta: float = DELTA,
) -> CascadeProof:
    """Walk down the path for as long as the share of flips is proved to be at most ``max_flips``.

    Args:
        stages: all of them, on the evaluation texts, which had no part in the path.
        thresholds: the path, float64 [steps, stages - 1].
        max_flips: the share of all texts whose final answer may differ, 0 to 1.
        tries: how many cascades these texts test; the promises of all of them hold together.
        delta: the probability with which one of these promises may be broken.
    """
    count = len(stages[0])
    flips, deferred = _walked(stages, thresholds)
    p_values = binomial_cdf(count, max_flips)[flips]
    failed = p_values > delta / tries
    passed = int(failed.argmax()) if failed.any() else len(failed)
    bound = 1.0
    if passed:
        bound = clopper_pearson_upper(int(flips[passed - 1]), count, 1.0 - delta / tries)
    walked = (thresholds.tolist(), deferred.tolist(), flips.tolist(), p_values.tolist())
    return CascadeProof(
        steps=tuple(Step(tuple(t), tuple(d), k, p) for t, d, k, p in zip(*walked, strict=True)),
        passed=passed,
        compared=count,
        max_flips=max_flips,
        tries=tries,
        flip_upper_bound=bound,
    )


def too_few_texts(different: int, max_flips: float, tries: int = 1) -> str | None:
    """Why no cascade can be proved on so many different texts, even without a flip, if so.

    >>> too_few_texts(120, 0.01)
    '120 different texts cannot prove a cascade with --max-flips 0.01: it takes 299, 179 more'
    """
    needed = fewest_trials(max_flips, 1.0 - DELTA / tries)
    if needed is None:
        return "no number of texts can prove a cascade with --max-flips 0"
    if different >= needed:
        return None
    return (
        f"{different:,} different texts cannot prove a cascade with --max-flips {max_flips:g}: "
        f"it takes {needed:,}, {needed - different:,} more"
    )


def _grid(sureness: NDArray[np.float64], points: int) -> NDArray[np.float64]:
    """Falling thresholds: as the sureness is distributed, and in even steps to 0 below that.

    Most cascades defer few texts, where calibration texts are sparse, so half of the thresholds
    lie among the least sure ones.
    """
    known = sureness[(sureness >= 0) & np.isfinite(sureness)]
    if len(known) == 0:
        return np.zeros(1)
    half = points // 2
    low = float(np.quantile(known, _UNSURE))
    upper = np.quantile(known, np.linspace(1.0, _UNSURE, points - half))
    return np.unique(np.concatenate([upper, np.linspace(low, 0.0, half + 1)]))[::-1]


def _moved(places: list[int], stage: int) -> list[int]:
    return [place + (number == stage) for number, place in enumerate(places)]


def _measured(
    stages: Sequence[StageAnswers],
    costs_s: Sequence[float],
    grids: Sequence[NDArray[np.float64]],
    choices: Sequence[Sequence[int]],
) -> NDArray[np.float64]:
    """Seconds a text, and flips, of each choice of places in the grids; float64 [choices, 2]."""
    places = np.array(choices)
    thresholds = np.stack([grid[places[:, i]] for i, grid in enumerate(grids)], axis=1)
    flips, deferred = _walked(stages, thresholds)
    return np.stack([costs_s[0] + deferred @ np.array(costs_s[1:]), flips], axis=1)


def _walked(
    stages: Sequence[StageAnswers], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Flips, int64 [steps], and the share of texts that go further, float64 [steps, thresholds].

    A text counts as flipped if it may get to a stage under any batching, and that stage may answer
    it otherwise. The last stage, which has no threshold, is the one beyond the last column; it
    may be left out where it flips nothing.
    """
    steps, columns = thresholds.shape
    flipped = np.zeros((steps, len(stages[0])), np.bool_)
    may_arrive, arrives = ~flipped, ~flipped
    deferred = np.empty((steps, columns))
    for column, stage in enumerate(stages):
        if column == columns:
            flipped |= may_arrive & (stage.flipped > -np.inf)
            break
        limit = thresholds[:, column, np.newaxis]
        flipped |= may_arrive & (stage.flipped >= limit)
        may_arrive &= stage.least < limit
        arrives &= stage.sureness < limit
        deferred[:, column] = arrives.mean(axis=1)
    return flipped.sum(axis=1), deferred
