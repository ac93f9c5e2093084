"""From measurements to a decision. Pure: no clock, no process, no file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten.engines.base import Engine
from hasten.errors import NoCandidate
from hasten.judging.stats import percentile, speed_up
from hasten.records import MODELS, PRECISIONS, Candidate, EndToEnd, Interval, Row, Settings


@dataclass(frozen=True, slots=True)
class Choice:
    """The winner, and how sure its lead is.

    ``ratio_to_runner_up`` is the runner-up's time over the winner's; where it holds 1 and is near
    it, the two are tied, and the simpler one was taken. It may lie below 1 where a lossy runner-up
    was faster in the mean, but not clearly faster than the exact winner.
    """

    winner: Row
    runner_up: Row | None
    ratio_to_runner_up: Interval | None
    tie: bool


_AS_GOOD = 1.05
"""A rival this much slower is not taken for simplicity's sake, however noisy the machine was."""


def choose(rows: Sequence[Row], engines: Mapping[str, Engine], settings: Settings) -> Choice:
    """Pick the fastest accepted candidate; among those tied with it, the simplest.

    A lossy one is only picked where it is clearly faster than every exact one: the rounds must
    exclude that it gains nothing, or the flipped labels would be given away for noise.

    Raises:
        NoCandidate: no candidate was accepted.
    """
    ranked = sorted((row for row in rows if row.status == "finalist" and row.runs), key=_time_s)
    if not ranked:
        raise no_candidate(rows)
    allowed = [row for row in ranked if _may_win(row, ranked, settings)]
    fastest = allowed[0]
    tied = [row for row in ranked if row is fastest or _tie(fastest, row, settings)]
    winner = min(
        (row for row in tied if row in allowed),
        key=lambda row: simplicity(row.candidate, engines),
    )
    # Beside a winner that was picked from a tie stands who it is tied with.
    rivals = tied if len(tied) > 1 else ranked
    runner_up = next((row for row in rivals if row is not winner), None)
    ratio = _ratio(runner_up, winner, settings) if runner_up else None
    return Choice(winner, runner_up, ratio, tie=len(tied) > 1)


def no_candidate(rows: Sequence[Row]) -> NoCandidate:
    """The error for a search without a winner, with every candidate's reason."""
    tried = [row for row in rows if row.status != "unavailable"] or rows
    reasons = (f"  {row.candidate.label}: {row.status}, {row.reason}" for row in tried)
    return NoCandidate(
        "no candidate may be used:\n" + "\n".join(reasons),
        fix="`hasten doctor` shows what can be installed; --max-flips sets the largest "
        "share of flipped labels.",
    )


def too_slow_batches(run: EndToEnd, settings: Settings) -> str | None:
    """Why a run breaks ``--max-latency-ms``, if it does."""
    limit_ms = settings.max_latency_ms
    p99_ms = 1000 * percentile(run.batch_latency_s, 99)
    if limit_ms is None or p99_ms <= limit_ms:
        return None
    return f"its batches take up to {p99_ms:.1f} ms (p99), more than the {limit_ms:g} ms allowed"


def simplicity(
    candidate: Candidate, engines: Mapping[str, Engine]
) -> tuple[int, int, int, bool, bool, int, int]:
    """A sort key, simplest first.

    A single stage, the original's own, exact, whole texts, without spinning threads, fewer streams,
    the simplest engine.
    """
    whose, precision = MODELS.index(candidate.model), PRECISIONS.index(candidate.precision)
    simplicity_ = engines[candidate.engine].simplicity
    cut, stages = candidate.max_tokens is not None, len(candidate.stages)
    return stages, whose, precision, cut, candidate.spinning, candidate.streams, simplicity_


def _time_s(row: Row) -> float:
    # The mean that the intervals are about, so that a ranking cannot contradict them.
    assert row.main
    return statistics.geometric_mean(row.main.total.samples_s)


def _may_win(row: Row, ranked: Sequence[Row], settings: Settings) -> bool:
    exact = next((other for other in ranked if other.candidate.exact), None)
    if exact is None or row.candidate.exact:
        return True
    gain = _ratio(exact, row, settings)
    return gain is not None and gain.low > 1.0


def _tie(fastest: Row, row: Row, settings: Settings) -> bool:
    ratio = _ratio(row, fastest, settings)
    if ratio is None or not ratio.holds(1.0):
        return False
    return 1 / _AS_GOOD <= ratio.estimate <= _AS_GOOD


def _ratio(slower: Row, faster: Row, settings: Settings) -> Interval | None:
    assert slower.main
    assert faster.main
    return speed_up(slower.main, faster.main, seed=settings.seed)
