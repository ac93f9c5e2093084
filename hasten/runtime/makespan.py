"""Batches of sorted texts on several streams: when does the last stream end?

With one stream the cheapest batches are also done first. With several, a stream that ends early
waits for the last one, so plans are compared by the end of the run. Pure functions over lengths
that are sorted, the longest first; times are in seconds, and a batch on one of several streams
takes its cost times their number, since costs are per stream that is busy (see
:func:`hasten.runtime.batching.predict_s`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np
from numpy.typing import NDArray

EXACT_TEXTS = 10
"""Up to this many texts :func:`improved` finds the best plan there is."""

_NEAR = 1.002
"""A plan this close to the lower bound is not improved any further."""

_EFFORT = 8_000
"""Batches that the local search may look at, over all the plans it tries."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Batches of neighbouring texts, the order in which they run, and when the last one ends."""

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    end_s: float


@dataclass(frozen=True)
class Problem:
    """What is to be run.

    ``lengths`` are tokens per text, sorted, the longest first. ``grid`` holds the cost of every
    batch, float64 [batch size + 1, length + 1]. No batch of several texts may cost more than
    ``limit_s``.
    """

    lengths: NDArray[np.int64]
    grid: NDArray[np.float64]
    streams: int
    limit_s: float = np.inf

    def costs(self, sizes: Sequence[int]) -> list[float]:
        """Seconds that each batch costs; its first text is its longest."""
        longest = self.lengths[np.cumsum(sizes) - sizes]
        costs: list[float] = self.grid[np.asarray(sizes), longest].tolist()
        return costs

    def schedule(self, sizes: Sequence[int]) -> Schedule:
        """The batches in their own order or, where that ends earlier, the costliest first."""
        costs = self.costs(sizes)
        own, falling = range(len(costs)), sorted(range(len(costs)), key=lambda i: -costs[i])
        ends_s = [run_s([costs[i] for i in order], self.streams) for order in (own, falling)]
        order = falling if ends_s[1] < ends_s[0] else own
        return Schedule(tuple(sizes), tuple(order), min(ends_s))


def run_s(costs: Iterable[float], streams: int) -> float:
    """When the last stream ends, if each takes the next batch as soon as it is free."""
    if streams == 1:
        return sum(costs)
    free_s = [0.0] * streams
    heapify(free_s)
    for cost_s in costs:
        heapreplace(free_s, free_s[0] + cost_s * streams)
    return max(free_s)


def improved(
    problem: Problem, cheapest: Sequence[int], others: Iterable[Sequence[int]]
) -> Schedule:
    """The best of the plans, made better; where there are few texts, the best there is.

    Args:
        problem: the texts and what batches cost.
        cheapest: sizes of the batches with the least total cost within the limit.
        others: sizes in other plans within the limit, looked at where they may be better.
    """
    best = problem.schedule(cheapest)
    # No plan costs less in total, and the longest text is in some batch.
    longest_s = float(problem.grid[1, problem.lengths[0]]) * problem.streams
    bound_s = max(sum(problem.costs(cheapest)), longest_s)
    if best.end_s <= bound_s:
        return best
    if len(problem.lengths) <= EXACT_TEXTS:
        return _exact(problem, best)
    for sizes in others:
        if sum(problem.costs(sizes)) < best.end_s:  # or else it cannot end earlier
            best = min(best, problem.schedule(sizes), key=lambda plan: plan.end_s)
    return _locally(problem, best, _NEAR * bound_s)


def _locally(problem: Problem, best: Schedule, enough_s: float) -> Schedule:
    """Move texts between neighbouring batches, split and merge, as long as that ends earlier."""
    effort, better = _EFFORT, best.end_s > enough_s
    while better and effort > 0:
        better = False
        for sizes in _neighbours(best.sizes, len(problem.grid) - 1):
            effort -= len(sizes)
            costs = problem.costs(sizes)
            if any(c > problem.limit_s and n > 1 for c, n in zip(costs, sizes, strict=True)):
                continue
            if run_s(sorted(costs, reverse=True), problem.streams) < best.end_s:
                best, better = problem.schedule(sizes), best.end_s > enough_s
                break
            if effort <= 0:
                break
    return best


def _neighbours(sizes: tuple[int, ...], largest: int) -> Iterator[tuple[int, ...]]:
    """Plans that differ in one batch or two, those at the end of the run first."""
    for place in range(len(sizes) - 1, -1, -1):
        head, size, tail = sizes[:place], sizes[place], sizes[place + 1 :]
        for part in sorted({1, size // 2, size - 1} - {0, size}):
            yield (*head, part, size - part, *tail)
        if not tail:
            continue
        both = size + tail[0]
        if both <= largest:
            yield (*head, both, *tail[1:])
        for moved in (size - 1, size + 1, both // 2):
            if moved != size and 0 < moved <= largest and 0 < both - moved <= largest:
                yield (*head, moved, both - moved, *tail[1:])


def _exact(problem: Problem, best: Schedule) -> Schedule:
    """Branch and bound over all batches of neighbours and all ways to share them out.

    Other batches need not be looked at: any batches keep their sizes, and none becomes longer,
    when the sorted texts are dealt out to them, those with the longest text first.
    """
    lengths, grid, streams = problem.lengths.tolist(), problem.grid.tolist(), problem.streams
    count, largest = len(lengths), len(grid) - 1
    rest_s = [0.0] * (count + 1)
    for start in range(count - 1, -1, -1):
        rest_s[start] = min(
            grid[size][lengths[start]] + rest_s[start + size]
            for size in range(1, min(largest, count - start) + 1)
        )
    end_s, found = best.end_s, None

    def search(
        start: int, loads: tuple[float, ...], batches: tuple[tuple[int, float], ...]
    ) -> None:
        nonlocal end_s, found
        if start == count:
            end_s, found = max(loads), batches
            return
        for size in range(min(largest, count - start), 0, -1):
            cost_s = grid[size][lengths[start]] * streams
            too_long = size > 1 and cost_s > problem.limit_s * streams
            least_s = (sum(loads) + cost_s) / streams + rest_s[start + size]
            if too_long or least_s >= end_s:
                continue
            # Streams with the same load are alike.
            for load_s in sorted(set(loads)):
                if load_s + cost_s < end_s:
                    others = list(loads)
                    others[others.index(load_s)] += cost_s
                    search(start + size, tuple(others), (*batches, (size, load_s)))

    search(0, (0.0,) * streams, ())
    if found is None:
        return best
    sizes, begins_s = zip(*found, strict=True)
    # In the order in which they begin, each falls to the stream that was meant, or an earlier one.
    order = sorted(range(len(sizes)), key=lambda i: begins_s[i])
    return Schedule(sizes, tuple(order), end_s)
