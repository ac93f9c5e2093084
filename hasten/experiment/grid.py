"""What is measured, and how long it will take. Pure: no clock, no process, no file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hasten.records import Strategy
from hasten.runtime.batching import CostModel
from hasten.tuning.timing import EXPERIMENT_VISITS
from hasten.tuning.worker import TimeShape

SINGLE_CALLS_A_RUN = 92
"""Five runs make enough for a p99; more runs add to them."""

SHORTEST = 8

Shape = tuple[int, int]


def lengths(max_length: int, wanted: Sequence[int] = ()) -> tuple[int, ...]:
    """Sequence lengths to measure: the wanted ones, or doubling up to the model's maximum.

    >>> lengths(512), lengths(100), lengths(512, (64, 1000, 16))
    ((8, 16, 32, 64, 128, 256, 512), (8, 16, 32, 64, 100), (16, 64))
    """
    if wanted:
        return tuple(sorted({length for length in wanted if length <= max_length}))
    doubling = [SHORTEST]
    while doubling[-1] * 2 < max_length:
        doubling.append(doubling[-1] * 2)
    return tuple(sorted({min(length, max_length) for length in (*doubling, max_length)}))


def arrival(batch_sizes: Iterable[int]) -> list[Strategy]:
    """Batches as the texts come, of every size."""
    return [Strategy("arrival", size) for size in batch_sizes]


def orders(batch_sizes: Iterable[int]) -> list[Strategy]:
    """The other orders, of every size above 1, where all orders are the same."""
    sizes = [size for size in batch_sizes if size > 1]
    return [Strategy(name, size) for name in ("sorted", "optimal") for size in sizes]


def shapes_s(shapes: Iterable[Shape], cost: CostModel) -> float:
    """Seconds for all visits of the shapes, the untimed first call included."""
    least_s = TimeShape(1, 1).at_least_s
    total_s = 0.0
    for shape in shapes:
        one_s = cost.cost_s(*shape)
        # A visit repeats a short call until enough has been measured.
        visit_s = one_s * math.ceil(max(least_s / one_s, 1.0))
        total_s += cost.streams * (one_s + len(EXPERIMENT_VISITS) * visit_s)
    return total_s
