"""Which texts share a batch: what padding costs, weighed against what a call costs.

A batch is as long as its longest text, and every shorter text in it is padded. Small batches pad
little and pay the overhead of a call often; large ones the other way round. Where the best
compromise lies depends on the model, the engine and the machine, so it is computed from measured
times (:class:`CostModel`) and not from a rule. Pure numpy, deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.records import CostTable, Plan, Strategy
from hasten.runtime.makespan import Problem, Schedule, improved, run_s

TOKEN_BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
"""Padded tokens a batch that :func:`best_strategy` tries."""

Lengths = NDArray[np.int64]
Batches = list[NDArray[np.int64]]

# With several streams, what a batch of the optimal plan may take at most, as a part of the whole:
# an eighth, and so on. Large batches at the end leave streams idle; small ones cost calls.
_SHARES = (8, 16, 32)


class CostModel:
    """Seconds for any batch size and length, from the cells that were measured.

    Between measured cells the time is linear in the batch size and in the length (bilinear inside
    a cell of the table). Outside, it follows the line through the two nearest measured points,
    but is never cheaper per token than the nearest of them: a plan must not bet on a region that
    nobody measured. With a single point to go by, larger batches cost in proportion, and smaller
    ones as much as that point. Cells left out of the table are filled the same way, along the
    batch size first. Longer and larger batches never cost less: where noise in the measurements
    says otherwise, the running maximum is taken. Apart from that repair, measured cells are
    reproduced exactly.

    ``streams`` is how many batches run at the same time, each taking that many times its cost:
    see :func:`predict_s`.

    >>> table = CostTable((1, 4), (10, 20), ((0.010, 0.020), (0.040, None)))
    >>> cost = CostModel(table)
    >>> round(cost.cost_s(2, 15), 4), round(cost.cost_s(4, 20), 4)
    (0.03, 0.08)
    """

    def __init__(self, table: CostTable, streams: int = 1) -> None:
        self.streams = streams
        self._batch_sizes = np.array(table.batch_sizes, dtype=np.float64)
        self._lengths = np.array(table.lengths, dtype=np.float64)
        self._table = _monotone(_filled(self._batch_sizes, self._lengths, table.latency_s))
        self._grid = self._computed(table.batch_sizes[-1], table.lengths[-1])

    @classmethod
    def of(cls, plan: Plan) -> CostModel | None:
        """The costs that a plan was made with; None where they were not measured."""
        return cls(plan.cost_table, plan.candidate.streams) if plan.cost_table else None

    def cost_s(self, batch_size: int, length: int) -> float:
        """Seconds for one batch of ``batch_size`` texts padded to ``length`` tokens.

        Raises:
            ValueError: a batch needs at least one text, and a text one token.
        """
        if batch_size < 1 or length < 1:
            raise ValueError(f"no batch has {batch_size} texts of {length} tokens")
        return float(self._reaching(batch_size, length)[batch_size, length])

    def grid(self, max_batch_size: int, max_length: int) -> NDArray[np.float64]:
        """All costs at once: float64 [max_batch_size + 1, max_length + 1], in seconds.

        Indexed by batch size and length. Row and column 0 are infinite: there is no such batch.
        """
        reaching = self._reaching(max_batch_size, max_length)
        return reaching[: max_batch_size + 1, : max_length + 1].copy()

    def _reaching(self, batch_size: int, length: int) -> NDArray[np.float64]:
        """The grid kept so far, grown where it is too small. A cell's value never changes."""
        grid = self._grid
        rows, columns = grid.shape
        if batch_size >= rows or length >= columns:
            # Doubled, so that a scheduler that asks for ever larger batches does not recompute
            # the grid each time.
            grid = self._computed(
                rows - 1 if batch_size < rows else 2 * batch_size,
                columns - 1 if length < columns else 2 * length,
            )
            self._grid = grid
        return grid

    def _computed(self, max_batch_size: int, max_length: int) -> NDArray[np.float64]:
        grid = np.full((max_batch_size + 1, max_length + 1), np.inf)
        larger = _extended(self._batch_sizes, self._table, np.arange(1.0, max_batch_size + 1))
        # Repaired in between: lines that fall towards longer texts would rise towards shorter ones.
        rising = _monotone(larger)
        longer = _extended(self._lengths, rising.T, np.arange(1.0, max_length + 1)).T
        grid[1:, 1:] = _monotone(longer)
        return grid


def plan(
    lengths: Lengths,
    strategy: Strategy,
    cost: CostModel | None = None,
    *,
    max_batch_latency_s: float | None = None,
) -> Batches:
    """Put texts into batches.

    Every strategy but ``arrival`` sorts the texts by length (stably) and runs the longest first:
    memory peaks on the first batch and not after an hour, and when several streams share the
    batches, the short ones at the end let all streams finish at about the same time (the longest
    processing time first rule: Graham, SIAM Journal on Applied Mathematics 17(2), 1969).

    ``optimal`` cuts the sorted texts where the predicted total is least, by dynamic programming
    (Fang et al., "TurboTransformers", PPoPP 2021, section on sequence-length-aware batch
    scheduling). No other grouping is cheaper: any batches keep their sizes, and none becomes
    longer, when the sorted texts are dealt out to them, those with the longest text first. With
    several streams the cheapest batches are not always done first, since the last of them leaves
    the other streams idle; plans with smaller batches are then tried as well.

    Args:
        lengths: int64 [n], tokens per text, special tokens included; each at least 1.
        strategy: how to cut.
        cost: what batches cost; ``optimal`` and ``max_batch_latency_s`` need it.
        max_batch_latency_s: no batch may cost more, in the terms of ``cost`` (with several
            streams, the time a batch takes divided by the streams). All strategies obey, by
            making smaller batches. A text that costs more on its own runs alone.

    Returns:
        Indices into ``lengths``, one int64 array a batch, in the order in which to run them.
        Each text is in exactly one batch.

    Raises:
        ValueError: a text has no tokens, or ``cost`` is missing.
    """
    if len(lengths) == 0:
        return []
    if lengths.min() < 1:
        raise ValueError("every text must have at least one token")
    if strategy.name == "arrival":
        order = np.arange(len(lengths))
    else:
        order = np.argsort(-lengths, kind="stable")
    if strategy.name == "optimal":
        schedule = _optimal(lengths[order], strategy.batch_size, cost, max_batch_latency_s)
        batches = np.split(order, np.cumsum(schedule.sizes)[:-1])
        return [batches[place] for place in schedule.order]
    sizes = _sizes(lengths[order], strategy, cost, max_batch_latency_s)
    return np.split(order, np.cumsum(sizes)[:-1])


def padding_share(lengths: Lengths, batches: Batches) -> float:
    """Share of the computed tokens that are padding: 0 is none, 0.5 half of the work.

    >>> padding_share(np.array([2, 4]), [np.array([0, 1])])
    0.25
    """
    if not batches:
        return 0.0
    sizes, longest = _sizes_and_lengths(lengths, batches)
    computed = int((sizes * longest).sum())
    tokens = sum(int(lengths[batch].sum()) for batch in batches)
    return 1.0 - tokens / computed


def predict_s(lengths: Lengths, batches: Batches, cost: CostModel) -> float:
    """Predicted seconds for running ``batches`` in this order, on the streams of ``cost``.

    A batch's cost is what it takes while all streams are busy, divided by the streams. So the
    sum of the costs is the time of a run whose streams end together; a stream that ends early
    idles until the last is done, which counts where there are few batches.
    """
    if not batches:
        return 0.0
    sizes, longest = _sizes_and_lengths(lengths, batches)
    costs = cost.grid(int(sizes.max()), int(longest.max()))[sizes, longest]
    return run_s(costs.tolist(), cost.streams)


def shapes(lengths: Lengths, batches: Batches) -> set[tuple[int, int]]:
    """The different batch shapes: number of texts, and tokens of the longest.

    >>> sorted(shapes(np.array([2, 4, 4, 1]), [np.array([0, 1]), np.array([2, 3])]))
    [(2, 4)]
    """
    return {(len(batch), int(lengths[batch].max())) for batch in batches}


def warm_up_s(lengths: Lengths, batches: Batches, cost: CostModel) -> float:
    """Predicted seconds for running each batch shape once on every stream of ``cost``."""
    return cost.streams * sum(cost.cost_s(*shape) for shape in shapes(lengths, batches))


def best_strategy(
    lengths: Lengths,
    cost: CostModel,
    batch_sizes: Sequence[int],
    *,
    max_batch_latency_s: float | None = None,
) -> Strategy:
    """The strategy with the least predicted time; of equals, the simplest.

    Tried are ``sorted`` at each batch size, :data:`TOKEN_BUDGETS`, and ``optimal``, the latter
    two with batches of at most ``max(batch_sizes)`` texts.

    Args:
        lengths: int64 [n], tokens per text.
        cost: measured costs of the candidate.
        batch_sizes: allowed batch sizes.
        max_batch_latency_s: as in :func:`plan`.

    Raises:
        ValueError: there are no texts, or one has no tokens.
    """
    largest = max(batch_sizes)
    strategies = [
        *(Strategy("sorted", size) for size in sorted(batch_sizes)),
        *(Strategy("token_budget", largest, budget) for budget in TOKEN_BUDGETS),
        Strategy("optimal", largest),
    ]
    return _cheapest(lengths, cost, strategies, max_batch_latency_s)


def best_fixed(
    lengths: Lengths,
    cost: CostModel,
    batch_sizes: Sequence[int],
    *,
    max_batch_latency_s: float | None = None,
) -> Strategy:
    """The best that one fixed batch size can do: ``sorted`` at the cheapest of ``batch_sizes``."""
    strategies = [Strategy("sorted", size) for size in sorted(batch_sizes)]
    return _cheapest(lengths, cost, strategies, max_batch_latency_s)


def _cheapest(
    lengths: Lengths, cost: CostModel, strategies: list[Strategy], limit_s: float | None
) -> Strategy:
    if len(lengths) == 0 or lengths.min() < 1:
        raise ValueError("a strategy is chosen for at least one text of at least one token")
    ordered = np.sort(lengths)[::-1]
    grid = cost.grid(max(strategy.batch_size for strategy in strategies), int(ordered[0]))
    problem = Problem(ordered, grid, cost.streams)

    def predicted_s(strategy: Strategy) -> float:
        if strategy.name == "optimal":
            return _optimal(ordered, strategy.batch_size, cost, limit_s).end_s
        return run_s(problem.costs(_sizes(ordered, strategy, cost, limit_s)), cost.streams)

    return min(strategies, key=predicted_s)


def _sizes_and_lengths(lengths: Lengths, batches: Batches) -> tuple[Lengths, Lengths]:
    """Texts and longest text of each batch."""
    sizes = np.array([len(batch) for batch in batches])
    longest = np.array([lengths[batch].max() for batch in batches])
    return sizes, longest


def _sizes(
    ordered: Lengths, strategy: Strategy, cost: CostModel | None, limit_s: float | None
) -> list[int]:
    """How many of the ``ordered`` texts go into each batch, by any strategy but ``optimal``."""
    if strategy.token_budget is None and (limit_s is None or np.isinf(limit_s)):
        full, rest = divmod(len(ordered), strategy.batch_size)
        return [strategy.batch_size] * full + [rest] * bool(rest)
    capacity = _capacity(int(ordered.max()), strategy, cost, limit_s)
    return _greedy_sizes(ordered, strategy.batch_size, capacity)


def _capacity(
    longest: int, strategy: Strategy, cost: CostModel | None, limit_s: float | None
) -> NDArray[np.int64]:
    """int64 [longest + 1]: how many texts a batch may hold, over the length it is padded to."""
    capacity = np.full(longest + 1, strategy.batch_size)
    if strategy.token_budget is not None:
        capacity[1:] = np.minimum(capacity[1:], strategy.token_budget // np.arange(1, longest + 1))
    if limit_s is not None:
        costs = _needed(cost, "max_batch_latency_s").grid(strategy.batch_size, longest)
        # Costs rise with the batch size, so the sizes within the limit are the first ones.
        capacity = np.minimum(capacity, (costs[1:] <= limit_s).sum(axis=0))
    at_least_one: NDArray[np.int64] = np.maximum(capacity, 1)
    return at_least_one


def _greedy_sizes(ordered: Lengths, batch_size: int, capacity: NDArray[np.int64]) -> list[int]:
    """Fill batch after batch up to what its longest text allows."""
    sizes, start = [], 0
    while start < len(ordered):
        longest = ordered[start : start + batch_size].max()
        sizes.append(min(int(capacity[longest]), len(ordered) - start))
        start += sizes[-1]
    return sizes


def _optimal(
    ordered: Lengths, batch_size: int, cost: CostModel | None, limit_s: float | None
) -> Schedule:
    """The cheapest batches of neighbours; ``ordered`` has the longest text first.

    With several streams, the best of many plans, improved further; see
    :mod:`hasten.runtime.makespan`. Among them are all that fixed batch sizes and
    :data:`TOKEN_BUDGETS` make, so that none of them is ever predicted to be faster.
    """
    cost = _needed(cost, "the strategy 'optimal'")
    grid = cost.grid(batch_size, int(ordered[0]))
    problem = Problem(ordered, grid, cost.streams, np.inf if limit_s is None else limit_s)
    cheapest = cheapest_sizes(ordered, grid, limit_s)
    if cost.streams == 1:
        costs = problem.costs(cheapest)
        return Schedule(tuple(cheapest), tuple(range(len(cheapest))), sum(costs))
    return improved(problem, cheapest, _other_sizes(problem, cost, sum(problem.costs(cheapest))))


def _other_sizes(problem: Problem, cost: CostModel, whole_s: float) -> Iterator[list[int]]:
    """Plans with smaller batches than the cheapest, which cost ``whole_s``, and those of rules."""
    ordered, batch_size = problem.lengths, len(problem.grid) - 1
    for share in _SHARES:
        part_s = whole_s / (share * problem.streams)
        yield cheapest_sizes(ordered, problem.grid, min(part_s, problem.limit_s))
    for size in range(1, min(batch_size, len(ordered)) + 1):
        yield _sizes(ordered, Strategy("sorted", size), cost, problem.limit_s)
    for budget in TOKEN_BUDGETS:
        strategy = Strategy("token_budget", batch_size, budget)
        yield _sizes(ordered, strategy, cost, problem.limit_s)


def cheapest_sizes(ordered: Lengths, grid: NDArray[np.float64], limit_s: float | None) -> list[int]:
    """Sizes whose costs sum up to the least, each at most ``limit_s`` unless it is a single text.

    ``rest_s[i]`` is the least time for the texts from ``i`` on. A batch that starts there is as
    long as text ``i``, so ``rest_s[i]`` is the least of ``cost[size, length_i] + rest_s[i + size]``
    over the sizes: one row of costs and one slice, O(n * batch_size) in all.
    """
    batch_size = len(grid) - 1
    if limit_s is not None:
        grid = grid.copy()
        several = grid[2:]  # a view; a single text may always run
        several[several > limit_s] = np.inf
    costs = list(np.ascontiguousarray(grid.T[:, 1:]))
    count = len(ordered)
    rest_s = np.full(count + batch_size + 1, np.inf)
    rest_s[count] = 0.0
    choice = [0] * count
    total_s = np.empty(batch_size)
    for start, length in zip(range(count - 1, -1, -1), ordered[::-1].tolist(), strict=True):
        np.add(costs[length], rest_s[start + 1 : start + 1 + batch_size], out=total_s)
        best = int(total_s.argmin())
        rest_s[start] = total_s[best]
        choice[start] = best + 1
    sizes, start = [], 0
    while start < count:
        sizes.append(choice[start])
        start += choice[start]
    return sizes


def _needed(cost: CostModel | None, by: str) -> CostModel:
    if cost is None:
        raise ValueError(f"{by} needs a cost model")
    return cost


def _monotone(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running maximum along both axes."""
    rising = np.maximum.accumulate(costs, axis=0)
    repaired: NDArray[np.float64] = np.maximum.accumulate(rising, axis=1)
    return repaired


def _filled(
    batch_sizes: NDArray[np.float64],
    lengths: NDArray[np.float64],
    latency_s: Sequence[Sequence[float | None]],
) -> NDArray[np.float64]:
    """The table with estimates in its empty cells, along the batch size, then the length."""
    table = np.array(latency_s, dtype=np.float64)  # None becomes nan
    measured = ~np.isnan(table)
    for column, known in zip(table.T, measured.T, strict=True):  # the columns are views
        if known.any():
            values = np.maximum.accumulate(column[known])[:, None]
            column[:] = _extended(batch_sizes[known], values, batch_sizes)[:, 0]
    columns: NDArray[np.bool_] = np.any(measured, axis=0)
    return _extended(lengths[columns], table[:, columns].T, lengths).T


def _extended(
    known: NDArray[np.float64], values: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Costs at ``wanted`` points of an axis, from ``values`` [known, m] at ``known`` ones.

    Returns:
        float64 [wanted, m], by the rules in :class:`CostModel`.
    """
    if len(known) == 1:
        factor: NDArray[np.float64] = np.maximum(wanted / known[0], 1.0)[:, np.newaxis]
        return values * factor
    left = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 2)
    share = ((wanted - known[left]) / (known[left + 1] - known[left]))[:, None]
    line = values[left] * (1.0 - share) + values[left + 1] * share
    # Inside the axis this is the wanted point itself, and the proportional cost is not used.
    nearest = np.where(wanted < known[0], 0, len(known) - 1)
    proportional = values[nearest] * (wanted / known[nearest])[:, None]
    outside = (wanted < known[0]) | (wanted > known[-1])
    return np.where(outside[:, None], np.maximum(line, proportional), line)
