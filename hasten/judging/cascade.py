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
from numpy.typing import ArrayLike, NDArray

from hasten.judging.stats import binomial_cdf, clopper_pearson_upper, fewest_trials
from hasten.records import CascadeProof, Reading, Step, Text
from hasten.tasks import Outputs, Task

DELTA = 0.05
"""How often a promise may be broken: the confidence is 95 %."""

POINTS = 200
"""Thresholds of one stage that :func:`path` offers."""

_UNSURE = 0.2
_NOT_SURE = -1.0
_DIGITS = 6  # after the point; logits are rounded before that
_CUT_SHARE, _MOST_CUT, _FEWEST_CUT = 0.5, 100.0, 8
_CAUTION = 0.01
"""Flips that every text is charged beyond those it shows, as calibration texts are few."""


@dataclass(frozen=True, slots=True, eq=False)
class StageAnswers:
    """What :func:`certify` must know of one stage's answers to n different texts, each float64 [n].

    ``sureness`` is that of the batch plan that is shipped. Where answers depend on batch mates,
    ``least`` is the smallest of all tested batchings. ``flipped`` is the largest sureness with
    which any of them gives another answer than the original's, and minus infinity where none does.
    ``risk`` guesses how probably a text like each is flipped; only :func:`path` looks at it.
    """

    sureness: NDArray[np.float64]
    least: NDArray[np.float64]
    flipped: NDArray[np.float64]
    risk: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.sureness)


def read(original: Outputs, outputs: Outputs, task: Task, cut: Sequence[int] = ()) -> Reading:
    """How sure a candidate is of each text, and where it answers otherwise than the original.

    A text with NaN or infinity, or with another number of rows, has no sureness, so that it always
    goes to the next stage.

    Args:
        original: the original's outputs, of n texts.
        outputs: the candidate's, of the same texts.
        task: how outputs are read.
        cut: the places of the texts whose end the candidate did not read.
    """
    sound = outputs.finite & (outputs.counts == original.counts)
    known = outputs.where(sound, original)
    flips = np.flatnonzero(task.changed(original, known) & sound)
    sureness = np.where(sound, task.sureness(known), _NOT_SURE)
    differences = np.abs(known.values.astype(np.float64) - original.values)
    moved = original.max(differences.max(axis=1, initial=0.0))
    return Reading(
        sureness=tuple(sureness.round(_DIGITS).tolist()),
        flips=tuple(flips.tolist()),
        moved=tuple(moved.round(_DIGITS).tolist()),
        cut=tuple(cut),
    )


def cut_factor(reading: Reading) -> float:
    """How many times as sure a stage must be of a text that it cuts as of another.

    Its outputs move further away from the original's where it did not read the end, so that the
    same margin is worth less. The factor is half the ratio of the root mean squares of these
    moves: half, since a cut text is longer than most, and costs more to defer. At least 1, and 1
    where too few calibration texts of either kind are known.
    """
    moved, cut = np.array(reading.moved), _cut(reading)
    if not len(moved) or min(cut.sum(), (~cut).sum()) < _FEWEST_CUT:
        return 1.0
    of_cut, of_others = (float(np.sqrt(np.square(moved[which]).mean())) for which in (cut, ~cut))
    return float(np.clip(_CUT_SHARE * of_cut / max(of_others, 1e-12), 1.0, _MOST_CUT))


def _cut(reading: Reading) -> NDArray[np.bool_]:
    cut = np.zeros(len(reading.sureness), np.bool_)
    cut[list(reading.cut)] = True
    return cut


def worst(readings: Sequence[Reading], texts: Sequence[Text], factor: float = 1.0) -> StageAnswers:
    """Several batchings together; a text's copies count once, as the worst of them.

    Args:
        readings: by batching, each of all texts; that of the shipped plan first.
        texts: the n texts.
        factor: how many times as sure the stage must be of a text that it cuts.
    """
    different = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    copies = np.array([different[text] for text in texts], np.int64)
    sureness = np.array([reading.sureness for reading in readings], np.float64)
    sureness /= np.where([_cut(reading) for reading in readings], factor, 1.0)
    flipped = np.full(sureness.shape, -np.inf)
    for row, sure, reading in zip(flipped, sureness, readings, strict=True):
        flips = list(reading.flips)
        row[flips] = sure[flips]

    def of_copies(worse: np.ufunc, values: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.full(len(different), np.inf if worse is np.minimum else -np.inf)
        worse.at(found, copies, values)
        return found

    moved = np.array([reading.moved for reading in readings[:1] if reading.moved])
    return StageAnswers(
        sureness=of_copies(np.minimum, sureness[0]),
        least=of_copies(np.minimum, sureness.min(axis=0)),
        flipped=of_copies(np.maximum, flipped.max(axis=0)),
        risk=of_copies(np.maximum, _risk(sureness[0], moved[0])) if len(moved) else None,
    )


def _risk(sureness: NDArray[np.float64], moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """How probably each text would be flipped if its outputs moved as those of any other text.

    Two outputs that move by so much, towards each other, close a gap of twice that; half of them
    move apart. Few calibration texts flip, but all of them move.
    """
    moves = np.sort(2.0 * moved)
    below = np.searchsorted(moves, sureness, side="left")
    risk: NDArray[np.float64] = 0.5 * (1.0 - below / len(moves))
    return risk


def path(
    stages: Sequence[StageAnswers], costs_s: ArrayLike, points: int = POINTS
) -> NDArray[np.float64]:
    """Thresholds from cautious to bold, fixed on calibration texts alone.

    With one threshold, they simply fall. With several, each step lowers one of them: the one that
    can save the most time for the flips that it risks on the calibration texts.

    Args:
        stages: all but the last, on the n calibration texts.
        costs_s: of every stage, the last included, seconds a text: [stages] or [stages, n].
        points: how many thresholds a stage has.

    Returns:
        float64 [steps, stages], one threshold for every stage but the last.
    """
    costs = per_text(costs_s, len(stages[0]))
    grids = [_grid(stage.sureness, points) for stage in stages]
    if len(grids) > 1:
        grids = [_noticed(grid, stage.sureness) for grid, stage in zip(grids, stages, strict=True)]
    places = [0] * len(grids)
    steps = [places]
    while choices := _lowered(places, grids):
        found = _measured(stages, costs, grids, [places, *choices])
        extra = np.maximum(found[1:, 1] - found[0, 1], 1e-9)
        goal = choices[int(np.argmax((found[0, 0] - found[1:, 0]) / extra))]
        while places != goal:
            places = [place + (place < end) for place, end in zip(places, goal, strict=True)]
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
        tries: how many cascades these texts test.
        delta: the probability with which this one's promise may be broken; see :func:`shares`.
    """
    count = len(stages[0])
    flips, deferred = _walked(stages, thresholds)
    p_values = binomial_cdf(count, max_flips)[flips]
    failed = p_values > delta
    passed = int(failed.argmax()) if failed.any() else len(failed)
    bound = 1.0
    if passed:
        bound = clopper_pearson_upper(int(flips[passed - 1]), count, 1.0 - delta)
    walked = (thresholds.tolist(), deferred.tolist(), flips.tolist(), p_values.tolist())
    return CascadeProof(
        steps=tuple(Step(tuple(t), tuple(d), k, p) for t, d, k, p in zip(*walked, strict=True)),
        passed=passed,
        compared=count,
        max_flips=max_flips,
        tries=tries,
        delta=delta,
        flip_upper_bound=bound,
    )


def expected(
    stages: Sequence[StageAnswers], thresholds: NDArray[np.float64], costs_s: ArrayLike
) -> float:
    """Seconds a text that a cascade should take, from calibration texts alone.

    That is at the boldest thresholds of its path at which none of them flips; of those that are
    not deferred, one is charged as if it were, since another text may flip where these do not.

    Args:
        stages: all but the last, on the n calibration texts.
        thresholds: the path, float64 [steps, stages].
        costs_s: as for :func:`path`.
    """
    flips, _ = _walked(stages, thresholds)
    last = max(int((flips > 0).argmax()) - 1, 0) if flips.any() else len(flips) - 1
    costs = per_text(costs_s, len(stages[0]))
    (seconds,) = _seconds(stages, thresholds[last : last + 1], costs)
    return float(seconds + costs[1:].mean(axis=1).sum() / len(stages[0]))


def shares(count: int, texts: int, max_flips: float, delta: float = DELTA) -> tuple[float, ...]:
    """How the probability ``delta`` of a broken promise is shared out among cascades.

    They are ranked by promise, the best first, and neither rank nor shares may depend on the texts
    that test them: then the promises of all of them hold together (Bonferroni, with weights). With
    n texts only the values P(Bin(n, max_flips) <= k) can be used up; the first cascade gets the
    largest of these that fits, which allows it as many flips as if it were alone, and the others
    get equal parts of what this leaves.

    Args:
        count: how many cascades there are, at least 1.
        texts: how many different texts test them.
        max_flips: the share of flips that is allowed.
        delta: what is shared out.

    Returns:
        One for each cascade, in their order; fewer where the texts cannot prove as many.

    >>> [round(share, 4) for share in shares(3, 700, 0.01)]
    [0.0291, 0.0105, 0.0105]
    >>> len(shares(3, 300, 0.01)), len(shares(3, 298, 0.01))
    (1, 0)
    """
    attained = binomial_cdf(texts, max_flips)
    fitting = attained[attained <= delta]
    if not len(fitting):
        return ()
    first = float(fitting[-1])
    others = next((n for n in range(count - 1, 0, -1) if (delta - first) / n >= attained[0]), 0)
    each = (delta - first) / max(others, 1)
    return (first, *[each] * others)


def per_text(costs_s: ArrayLike, texts: int) -> NDArray[np.float64]:
    """Costs of every stage for every text, float64 [stages, texts]."""
    costs = np.asarray(costs_s, np.float64)
    return np.broadcast_to(costs.reshape(len(costs), -1), (len(costs), texts))


def too_few_texts(different: int, max_flips: float) -> str | None:
    """Why no cascade can be proved on so many different texts, even without a flip, if so.

    >>> too_few_texts(120, 0.01)
    '120 different texts cannot prove a cascade with --max-flips 0.01: it takes 299, 179 more'
    """
    needed = fewest_trials(max_flips, 1.0 - DELTA)
    if needed is None:
        return "no number of texts can prove a cascade with --max-flips 0"
    if different >= needed:
        return None
    return (
        f"{different:,} different texts cannot prove a cascade with --max-flips {max_flips:g}: "
        f"it takes {needed:,}, {needed - different:,} more"
    )


def _grid(sureness: NDArray[np.float64], points: int) -> NDArray[np.float64]:
    """Falling thresholds: as the sureness is distributed, and in even steps to 0 at its low end.

    Most cascades defer few texts, where calibration texts are sparse, so three quarters of the
    thresholds lie among the least sure ones. Fine steps cost nothing: the test of a path does not
    depend on how many there are.
    """
    known = sureness[(sureness >= 0) & np.isfinite(sureness)]
    if len(known) == 0:
        return np.zeros(1)
    quarter = points // 4
    upper = np.quantile(known, np.linspace(1.0, _UNSURE, quarter))
    lower = np.quantile(known, np.linspace(_UNSURE, 0.0, quarter))
    even = np.linspace(lower[0], 0.0, points - 2 * quarter)
    return np.unique(np.concatenate([upper, lower, even]))[::-1]


def _noticed(grid: NDArray[np.float64], sureness: NDArray[np.float64]) -> NDArray[np.float64]:
    """The steps at which a text is answered that was deferred before, and the last."""
    deferred = (sureness[:, np.newaxis] < grid).sum(axis=0)
    kept = np.concatenate([[True], np.diff(deferred) < 0])
    kept[-1] = True
    chosen: NDArray[np.float64] = grid[kept]
    return chosen


def _lowered(places: list[int], grids: Sequence[NDArray[np.float64]]) -> list[list[int]]:
    """All places to which one threshold can be lowered while the others stay."""
    return [
        [*places[:stage], lower, *places[stage + 1 :]]
        for stage, grid in enumerate(grids)
        for lower in range(places[stage] + 1, len(grid))
    ]


def _measured(
    stages: Sequence[StageAnswers],
    costs: NDArray[np.float64],
    grids: Sequence[NDArray[np.float64]],
    choices: Sequence[Sequence[int]],
) -> NDArray[np.float64]:
    """Seconds a text, and the risk of all, of each choice of places; float64 [choices, 2]."""
    places = np.array(choices)
    thresholds = np.stack([grid[places[:, i]] for i, grid in enumerate(grids)], axis=1)
    arrives = np.ones((len(places), len(stages[0])), np.bool_)
    risk = np.zeros(len(places))
    for stage, limit in zip(stages, thresholds.T, strict=True):
        flips = (stage.flipped > -np.inf).astype(np.float64)
        each = flips if stage.risk is None else np.maximum(flips, stage.risk)
        sure = stage.sureness >= limit[:, np.newaxis]
        risk += (arrives & sure) @ (each + _CAUTION)
        arrives &= ~sure
    return np.stack([_seconds(stages, thresholds, costs), risk], axis=1)


def _seconds(
    stages: Sequence[StageAnswers], thresholds: NDArray[np.float64], costs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Seconds a text at each step, float64 [steps]; ``costs`` are float64 [stages + 1, texts]."""
    arrives = np.ones((len(thresholds), len(stages[0])), np.bool_)
    seconds = np.full(len(thresholds), costs[0].mean())
    for stage, limit, cost in zip(stages, thresholds.T, costs[1:], strict=True):
        arrives &= stage.sureness < limit[:, np.newaxis]
        seconds += arrives @ cost / len(cost)
    return seconds


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
