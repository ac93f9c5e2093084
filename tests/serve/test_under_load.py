"""Latency, goodput and fairness under load, in virtual time.

C is the throughput that 64 clients get, T the time of a full batch as long as the longest percent
of the texts, and Q the seconds of work that may wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

from hasten.records import CostTable
from hasten.runtime.batching import CostModel
from hasten.serve.load import arrivals
from hasten.serve.scheduler import Overloaded, Scheduler, Stage

TABLE = CostTable(
    (1, 8, 32), (8, 64, 512), ((0.002, 0.004, 0.03), (0.004, 0.02, 0.2), (0.01, 0.07, 0.8))
)
COST = CostModel(TABLE)
SECONDS = 6.0
Q = 1.0

Draw = Callable[[random.Random], int]


def news(source: random.Random) -> int:
    """Tokens of a sentence: 28 on average, seldom more than 100."""
    return min(max(3, round(source.lognormvariate(3.1, 0.6))), 512)


def bimodal(source: random.Random) -> int:
    """95 % short texts, 5 % of the longest."""
    return 512 if source.random() < 0.05 else source.randint(8, 24)


@dataclass
class Outcome:
    """Latencies of the accepted texts with their lengths, and how many were refused."""

    latency_s: list[tuple[int, float]] = field(default_factory=list)
    refused: int = 0
    end_s: float = 0.0

    def p99_s(self, longest: int = 512) -> float:
        chosen = [latency_s for length, latency_s in self.latency_s if length <= longest]
        return float(np.percentile(chosen, 99))


def served(due: list[tuple[float, int]], queue_s: float = Q) -> Outcome:
    """Texts that come at these moments, with these lengths, at a server with one stream."""
    scheduler, outcome = Scheduler([Stage(COST, 32)], queue_s), Outcome()
    waiting: dict[int, float] = {}
    place, now = 0, 0.0
    while place < len(due) or len(scheduler):
        if not len(scheduler):
            now = max(now, due[place][0])
        while place < len(due) and due[place][0] <= now:
            come_s, length = due[place]
            try:
                scheduler.require_room(scheduler.expected_s([length]))
            except Overloaded:
                outcome.refused += 1
            else:
                scheduler.admit(place, [length])
                waiting[place] = come_s
            place += 1
        batch = scheduler.next_batch()
        if not batch:
            continue
        now += COST.cost_s(len(batch), max(text.length for text in batch))
        outcome.latency_s += [(text.length, now - waiting.pop(text.request)) for text in batch]
    outcome.end_s = now
    return outcome


@cache
def capacity(draw: Draw) -> tuple[float, float]:
    """C and T of a mix of lengths: each client sends its next text when it is answered."""
    scheduler, source = Scheduler([Stage(COST, 32)], 1e9), random.Random(0)
    longest = float(np.percentile([draw(source) for _ in range(2000)], 99))
    for client in range(64):
        scheduler.admit(client, [draw(source)])
    done, spent_s = 0, 0.0
    while done < 2000:
        batch = scheduler.next_batch()
        spent_s += COST.cost_s(len(batch), max(text.length for text in batch))
        done += len(batch)
        for text in batch:
            scheduler.admit(text.request, [draw(source)])
    return done / spent_s, COST.cost_s(32, round(longest))


def at(share: float, draw: Draw) -> list[tuple[float, int]]:
    """Texts that come at random, at a share of the capacity."""
    rate, source = share * capacity(draw)[0], random.Random(1)
    return [(moment, draw(source)) for moment in arrivals(rate, SECONDS, seed=2)]


@pytest.mark.parametrize(("share", "batches", "more_s"), [(0.7, 3, 0.01), (0.9, 5, 0.0)])
def test_below_capacity_nothing_is_refused_and_answers_come_soon(
    share: float, batches: int, more_s: float
) -> None:
    outcome = served(at(share, news))
    assert outcome.refused == 0
    assert outcome.p99_s() <= batches * capacity(news)[1] + more_s


@pytest.mark.parametrize("share", [1.5, 10.0])
@pytest.mark.parametrize("draw", [news, bimodal])
def test_overload_costs_neither_goodput_nor_the_latency_of_what_is_accepted(
    share: float, draw: Draw
) -> None:
    most, batch_s = capacity(draw)
    outcome = served(at(share, draw))
    assert outcome.refused > 0
    assert len(outcome.latency_s) / outcome.end_s >= 0.9 * most
    assert outcome.p99_s() <= Q + 3 * batch_s


def test_five_seconds_after_overload_answers_are_as_fast_as_before() -> None:
    burst, calm = at(10.0, news), at(0.5, news)
    later = [(burst[-1][0] + 5.0 + moment, length) for moment, length in calm]
    after = served([*burst, *later]).latency_s[-len(calm) :]
    slowest_s = max(latency_s for _, latency_s in served(calm).latency_s)
    assert max(latency_s for _, latency_s in after) == pytest.approx(slowest_s)


def test_a_few_long_texts_neither_starve_nor_hold_up_the_short_ones() -> None:
    _, batch_s = capacity(bimodal)
    outcome = served(at(0.9, bimodal))
    assert max(latency_s for _, latency_s in outcome.latency_s) <= Q + 2 * batch_s
    assert outcome.p99_s(longest=24) <= 3 * batch_s
