"""Intervals and bounds: how sure a measured number is. Pure numpy, deterministic given a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.records import EndToEnd, Interval

_BISECTIONS = 60
"""Halvings until an interval of length one is as narrow as a float can tell."""

_MANY = 300
"""Samples of which a resampled mean is normal to within what anybody reads off a chart."""

FEWEST_FOR_P99 = 459
"""Samples from which on a 99th percentile is worth reading.

The chance that not one of n samples lies beyond the true one is 0.99**n: 1 % for 459. Of fewer,
the largest may well be an ordinary one.
"""

Samples = Sequence[float] | NDArray[np.float64]


def percentile(samples: Samples, q: float) -> float:
    """The ``q``-th percentile (0 to 100) of ``samples``, linear between neighbours.

    Raises:
        ValueError: there are no samples.
    """
    if len(samples) == 0:
        raise ValueError("a percentile needs at least one sample")
    return float(np.percentile(samples, q))


def percentile_interval(samples: Samples, q: float, *, confidence: float = 0.95) -> Interval:
    """The ``q``-th percentile between two of the samples themselves.

    The bounds are the order statistics between which the true percentile lies whatever the
    distribution (Conover, "Practical Nonparametric Statistics", 3.2), by the normal approximation
    to the binomial; the outermost samples where those would lie outside.

    Raises:
        ValueError: there are no samples.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    estimate = percentile(ordered, q)
    share, count = q / 100, len(ordered)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    margin = z * math.sqrt(count * share * (1 - share))
    low = ordered[max(math.floor(count * share - margin) - 1, 0)]
    high = ordered[min(math.ceil(count * share + margin), count - 1)]
    return Interval(min(float(low), estimate), estimate, max(float(high), estimate))


def ratio_interval(
    numerators: Samples,
    denominators: Samples,
    *,
    seed: int,
    processes: Sequence[int] = (),
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """How many times larger ``numerators`` are, from samples taken in pairs.

    The samples of one round share the machine's mood of that minute, so only their ratio is
    looked at: the estimate is the geometric mean of the ratios. The bounds come from resampling
    the rounds, with the expanded percentile interval (Hesterberg, "What Teachers Should Know
    About the Bootstrap", The American Statistician 69(4), 2015): the plain percentile interval
    is too narrow for few rounds. Resampling cannot leave the range of the observed ratios, which
    in itself holds the truth in only 1 - 2**(1-n) of the cases (94 % with five rounds, 75 % with
    three), so each bound is moved out to Student's where that lies further.

    A process has a speed of its own (memory layout, placement), which its rounds share, and which
    another run would draw again. With ``processes``, the resampling draws processes and then rounds
    within each (Davison and Hinkley, "Bootstrap Methods and Their Application", 1997, section 3.8;
    for benchmarks: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013), and
    Student's t is that of the processes' means, with the cluster-robust standard error. Rounds of a
    single process say nothing about another one: the interval then holds within that run only.

    Args:
        numerators: positive, one a round.
        denominators: positive, of the same rounds in the same order.
        seed: of the resampling; the same seed gives the same interval.
        processes: which process took each round; all rounds independent if it is left out.
        confidence: nominal coverage.
        resamples: number of resamples.

    Raises:
        ValueError: fewer than two rounds, not in pairs, or not one process for each.
    """
    if len(numerators) != len(denominators) or len(numerators) < 2:
        raise ValueError(
            "a ratio needs at least two rounds, the same for both sides, "
            f"not {len(numerators)} and {len(denominators)}"
        )
    logs = np.log(np.asarray(numerators, np.float64) / np.asarray(denominators, np.float64))
    clusters = _clusters(logs, processes)
    count, mean = len(clusters), float(logs.mean())
    t = student_t_quantile(0.5 + confidence / 2, count - 1)
    tail = NormalDist().cdf(-t * math.sqrt(count / (count - 1)))
    means = _resampled_means(clusters, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, (tail, 1.0 - tail))
    deviations = np.array([(cluster - mean).sum() for cluster in clusters]) / len(logs)
    margin = t * math.sqrt(count / (count - 1) * float(deviations @ deviations))
    return Interval(
        low=math.exp(min(low, mean - margin)),
        estimate=math.exp(mean),
        high=math.exp(max(high, mean + margin)),
    )


def _clusters(logs: NDArray[np.float64], processes: Sequence[int]) -> list[NDArray[np.float64]]:
    """The rounds of each process; each round by itself where there are not several processes."""
    if len(processes) not in (0, len(logs)):
        raise ValueError(f"{len(logs)} rounds need as many processes, not {len(processes)}")
    if len(set(processes)) < 2:
        return list(logs[:, np.newaxis])
    took = np.asarray(processes)
    return [logs[took == process] for process in sorted(set(processes))]


def _resampled_means(
    clusters: Sequence[NDArray[np.float64]], rng: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Means over resampled rounds: clusters are drawn first, then rounds within each of them."""
    sizes = np.array([len(cluster) for cluster in clusters])
    padded = np.zeros((len(clusters), sizes.max()))
    for row, cluster in zip(padded, clusters, strict=True):
        row[: len(cluster)] = cluster
    drawn = rng.integers(0, len(clusters), size=(resamples, len(clusters)))
    if sizes.max() == 1:
        means: NDArray[np.float64] = padded[drawn, 0].mean(axis=1)
        return means
    of_each = sizes[drawn][:, :, np.newaxis]
    places = (rng.random((*drawn.shape, sizes.max())) * of_each).astype(np.int64)
    counted = np.arange(sizes.max()) < of_each
    values = padded[drawn[:, :, np.newaxis], places] * counted
    total: NDArray[np.float64] = values.sum(axis=(1, 2)) / counted.sum(axis=(1, 2))
    return total


def mean_interval(samples: Samples, *, seed: int, confidence: float = 0.95) -> Interval:
    """Geometric mean of ``samples`` between its bounds, made as :func:`ratio_interval` makes them.

    Of more than a few hundred samples resampling says what Student's t says, and takes memory.

    Args:
        samples: positive, one a round.
        seed: of the resampling.
        confidence: nominal coverage.

    Raises:
        ValueError: fewer than two samples.
    """
    values = np.asarray(samples, np.float64)
    if len(values) <= _MANY:
        return ratio_interval(values, np.ones_like(values), seed=seed, confidence=confidence)
    logs = np.log(values)
    t = student_t_quantile(0.5 + confidence / 2, len(logs) - 1)
    mean, margin = logs.mean(), t * logs.std(ddof=1) / math.sqrt(len(logs))
    return Interval(math.exp(mean - margin), math.exp(mean), math.exp(mean + margin))


def independent_ratio_interval(
    numerators: Samples, denominators: Samples, *, confidence: float = 0.95
) -> Interval:
    """How many times larger ``numerators`` are, from samples that were not taken in pairs.

    The ratio of the geometric means, with the bounds of Welch's t on the logarithms (Welch,
    "The generalization of Student's problem when several different population variances are
    involved", Biometrika 34, 1947); his degrees of freedom are rounded down. What differs
    between the two occasions as a whole, such as the machine's mood that day, is not in it.

    Args:
        numerators: positive, at least two.
        denominators: positive, at least two.
        confidence: nominal coverage.

    Raises:
        ValueError: fewer than two samples on a side.
    """
    if min(len(numerators), len(denominators)) < 2:
        raise ValueError(
            "a ratio needs at least two samples on each side, "
            f"not {len(numerators)} and {len(denominators)}"
        )
    sides = [np.log(np.asarray(side, np.float64)) for side in (numerators, denominators)]
    difference = float(sides[0].mean() - sides[1].mean())
    errors = [float(side.var(ddof=1)) / len(side) for side in sides]
    error = sum(errors)
    if error == 0.0:
        return Interval(math.exp(difference), math.exp(difference), math.exp(difference))
    degrees = error**2 / sum(e**2 / (len(s) - 1) for e, s in zip(errors, sides, strict=True))
    t = student_t_quantile(0.5 + confidence / 2, max(1, math.floor(degrees)))
    margin = t * math.sqrt(error)
    return Interval(
        math.exp(difference - margin), math.exp(difference), math.exp(difference + margin)
    )


def speed_up(baseline: EndToEnd | None, run: EndToEnd, *, seed: int) -> Interval | None:
    """How many times as fast as the baseline, from the rounds that both have.

    None where there is nothing to compare: no baseline, other texts, fewer than two rounds.
    """
    if baseline is None or baseline.texts != run.texts:
        return None
    before, now = _by_round(baseline), _by_round(run)
    both = [number for number in now if number in before]
    if len(both) < 2:
        return None
    processes = dict(zip(now, run.processes, strict=False))
    return ratio_interval(
        [before[number] for number in both],
        [now[number] for number in both],
        processes=[processes[number] for number in both] if processes else (),
        seed=seed,
    )


def _by_round(run: EndToEnd) -> dict[int, float]:
    """The time of each round by its number."""
    samples_s = run.total.samples_s
    return dict(zip(run.rounds or range(len(samples_s)), samples_s, strict=True))


@cache
def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution with ``degrees`` degrees of freedom.

    The distribution function is a finite sum of powers of a cosine where the degrees are whole
    (Abramowitz and Stegun, 26.7.3 and 26.7.4), which is solved by bisection; no tables, no
    approximation.

    >>> round(student_t_quantile(0.975, 4), 4)
    2.7764
    """
    if not 0.0 < probability < 1.0 or degrees < 1:
        raise ValueError(f"no quantile at {probability} with {degrees} degrees of freedom")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, degrees)
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(_BISECTIONS):
        angle = (low + high) / 2
        if (1.0 + _within(angle, degrees)) / 2 < probability:
            low = angle
        else:
            high = angle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


@cache
def clopper_pearson_upper(successes: int, trials: int, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound on a proportion, after ``successes`` out of ``trials``.

    The largest rate at which so few successes would still be seen with a probability of
    ``1 - confidence`` (Clopper and Pearson, Biometrika 26(4), 1934). None out of n gives nearly
    3/n, the rule of three.

    >>> round(clopper_pearson_upper(0, 1000), 7)
    0.0029912

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"no proportion has {successes} successes out of {trials} trials")
    if successes == trials:
        return 1.0
    log_tail = math.log(1.0 - confidence)
    counts = np.arange(successes + 1)
    log_ways = _log_binomials(trials, successes)
    low, high = successes / trials, 1.0
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2
        log_terms = log_ways + counts * math.log(rate) + (trials - counts) * math.log1p(-rate)
        if np.logaddexp.reduce(log_terms) > log_tail:
            low = rate
        else:
            high = rate
    return (low + high) / 2


def clopper_pearson_lower(successes: int, trials: int, confidence: float = 0.95) -> float:
    """Exact one-sided lower bound on a proportion: the upper one on that of the failures.

    >>> round(clopper_pearson_lower(2, 32), 4)
    0.0112

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    return 1.0 - clopper_pearson_upper(trials - successes, trials, confidence)


@cache
def binomial_cdf(trials: int, rate: float) -> NDArray[np.float64]:
    """How probable it is to see at most k successes, for k from 0 to ``trials``.

    The array, float64 [trials + 1], is shared between callers and cannot be written to.

    >>> binomial_cdf(2, 0.5).round(4).tolist()
    [0.25, 0.75, 1.0]
    """
    counts = np.arange(trials + 1)
    if 0.0 < rate < 1.0:
        logs = _log_binomials(trials, trials)
        logs += counts * math.log(rate) + (trials - counts) * math.log1p(-rate)
        below: NDArray[np.float64] = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    else:  # no success at all, or nothing else
        below = (counts >= (trials if rate >= 1.0 else 0)).astype(np.float64)
    below.flags.writeable = False
    return below


def fewest_trials(rate: float, confidence: float = 0.95) -> int | None:
    """How many trials without a success bound the rate by ``rate``; None if no number does.

    >>> fewest_trials(0.01), fewest_trials(0.005)
    (299, 598)
    """
    if rate <= 0.0:
        return None
    return 1 if rate >= 1.0 else math.ceil(math.log(1.0 - confidence) / math.log1p(-rate))


def mcnemar_p(only_first_right: int, only_second_right: int) -> float:
    """How probable so uneven disagreements are, or more uneven ones, of two equally good models.

    The exact two-sided test: among the texts on which just one of the two is right, each is as
    likely to be that one (McNemar, Psychometrika 12(2), 1947).

    >>> mcnemar_p(0, 0), mcnemar_p(1, 7)
    (1.0, 0.0703125)
    """
    disagreements = only_first_right + only_second_right
    fewer = min(only_first_right, only_second_right)
    log_ways = _log_binomials(disagreements, fewer)
    tail = float(np.exp(log_ways - disagreements * math.log(2.0)).sum())
    return min(1.0, 2.0 * tail)


def macro_f1(decided: NDArray[Any], right: NDArray[Any]) -> float:
    """The mean over the labels of F1, the harmonic mean of precision and recall.

    A label that is neither decided nor right anywhere does not count.

    Args:
        decided: int64 [n], a label each, or bool [n, k], which labels apply.
        right: the same for the right answers.

    >>> round(macro_f1(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])), 4)
    0.7333
    """
    if decided.ndim == 1:
        columns = np.arange(max(decided.max(), right.max()) + 1)
        decided, right = decided[:, np.newaxis] == columns, right[:, np.newaxis] == columns
    both = (decided & right).sum(axis=0)
    either = decided.sum(axis=0) + right.sum(axis=0)
    counted = either > 0
    if not counted.any():
        return 1.0  # nothing was to be found, and nothing was
    return float((2 * both[counted] / either[counted]).mean())


def micro_f1(decided: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    """F1 over all labels of all texts, of which each may apply or not: bool [n, k].

    >>> micro_f1(np.array([[True, True]]), np.array([[True, False]])) == 2 / 3
    True
    """
    either = decided.sum() + right.sum()
    return float(2 * (decided & right).sum() / either) if either else 1.0


def _within(angle: float, degrees: int) -> float:
    """Probability that Student's t lies within plus or minus sqrt(degrees) * tan(angle)."""
    even = degrees % 2 == 0
    squared = math.cos(angle) ** 2
    # Factors of 1/2, 3/4, 5/6 ... (even) or 2/3, 4/5, 6/7 ... (odd) for the successive powers.
    lower = np.arange(1 if even else 2, degrees - 2, 2)
    terms = np.cumprod(lower / (lower + 1) * squared)
    total = 1.0 + float(terms.sum())
    if even:
        return math.sin(angle) * total
    head = 0.0 if degrees == 1 else math.sin(angle) * math.cos(angle) * total
    return 2.0 / math.pi * (angle + head)


def _log_binomials(trials: int, last: int) -> NDArray[np.float64]:
    """Logarithms of "trials choose k" for k from 0 to ``last``."""
    steps = np.arange(1, last + 1)
    return np.concatenate([[0.0], np.cumsum(np.log((trials - steps + 1) / steps))])
