from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hasten.records import CostTable, Strategy
from hasten.runtime.batching import (
    TOKEN_BUDGETS,
    Batches,
    CostModel,
    best_fixed,
    best_strategy,
    padding_share,
    plan,
    predict_s,
)
from hasten.runtime.makespan import EXACT_TEXTS

BATCH_SIZES = (1, 2, 4, 8)
LENGTHS = (4, 8, 16, 32)

ALL_STRATEGIES = (
    Strategy("arrival", 3),
    Strategy("sorted", 1),
    Strategy("sorted", 4),
    Strategy("token_budget", 4, 1),
    Strategy("token_budget", 4, 40),
    Strategy("optimal", 4),
)


def affine(batch_size: int, length: int) -> float:
    return 2e-3 + 1e-4 * batch_size * length


def table_of(function: object = affine) -> CostTable:
    assert callable(function)
    return CostTable(
        BATCH_SIZES,
        LENGTHS,
        tuple(tuple(function(size, length) for length in LENGTHS) for size in BATCH_SIZES),
    )


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


@st.composite
def tables(draw: st.DrawFn, *, gaps: bool = False) -> CostTable:
    """Tables of any shape and content, noise and all; with ``gaps``, cells are missing."""
    batch_sizes = draw(st.sets(st.integers(1, 8), min_size=1, max_size=4))
    lengths = draw(st.sets(st.integers(1, 12), min_size=1, max_size=4))
    seconds: st.SearchStrategy[float | None] = st.floats(1e-3, 10.0)
    cell = st.none() | seconds if gaps else seconds
    rows = draw(
        st.lists(
            st.lists(cell, min_size=len(lengths), max_size=len(lengths)),
            min_size=len(batch_sizes),
            max_size=len(batch_sizes),
        ).filter(lambda rows: any(value is not None for row in rows for value in row))
    )
    return CostTable(
        tuple(sorted(batch_sizes)), tuple(sorted(lengths)), tuple(tuple(row) for row in rows)
    )


def text_lengths(most: int) -> st.SearchStrategy[NDArray[np.int64]]:
    return st.lists(st.integers(1, 14), min_size=1, max_size=most).map(lambda items: ints(*items))


def contiguous_partitions(count: int) -> Iterator[list[NDArray[np.int64]]]:
    """All ways to cut ``count`` positions into neighbours."""
    for cuts in itertools.product((False, True), repeat=count - 1):
        yield np.split(np.arange(count), [i + 1 for i, cut in enumerate(cuts) if cut])


def set_partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All ways to put ``items`` into groups, neighbours or not."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for groups in set_partitions(rest):
        yield [[first], *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], [first, *group], *groups[i + 1 :]]


def cheapest_s(
    lengths: NDArray[np.int64], partitions: Iterator[Batches], cost: CostModel, batch_size: int
) -> float:
    allowed = (p for p in partitions if max(map(len, p)) <= batch_size)
    return min(predict_s(lengths, p, cost) for p in allowed)


class TestCostModel:
    def test_measured_cells_are_reproduced(self) -> None:
        cost = CostModel(table_of())
        for size, length in itertools.product(BATCH_SIZES, LENGTHS):
            assert cost.cost_s(size, length) == pytest.approx(affine(size, length), rel=1e-12)

    def test_an_affine_machine_is_met_exactly_between_the_cells_and_below_them(self) -> None:
        cost = CostModel(table_of())
        for size, length in [(3, 4), (5, 11), (7, 31), (1, 1), (2, 3)]:
            assert cost.cost_s(size, length) == pytest.approx(affine(size, length), rel=1e-9)

    def test_beyond_the_table_a_token_never_becomes_cheaper(self) -> None:
        cost = CostModel(table_of())
        assert cost.cost_s(8, 64) == pytest.approx(2 * cost.cost_s(8, 32))
        assert cost.cost_s(32, 32) == pytest.approx(4 * cost.cost_s(8, 32))

    def test_growth_that_is_faster_than_proportional_goes_on(self) -> None:
        cost = CostModel(table_of(lambda size, length: 1e-6 * size * length**2))
        # Along the line through (16, 32): 32**2 + (32**2 - 16**2) for one step of 16.
        assert cost.cost_s(1, 48) == pytest.approx(1e-6 * (32**2 + 32**2 - 16**2))

    def test_a_skipped_cell_follows_its_length(self) -> None:
        full = table_of(lambda size, length: 1e-4 * size * length)
        cells = [list(row) for row in full.latency_s]
        cells[3][3] = cells[2][3] = None
        cost = CostModel(CostTable(BATCH_SIZES, LENGTHS, tuple(map(tuple, cells))))
        assert cost.cost_s(4, 32) == pytest.approx(1e-4 * 4 * 32)
        assert cost.cost_s(8, 32) == pytest.approx(1e-4 * 8 * 32)

    def test_a_length_without_any_cell_is_filled_from_its_neighbours(self) -> None:
        rows = tuple(
            tuple(None if length == 8 else affine(size, length) for length in LENGTHS)
            for size in BATCH_SIZES
        )
        cost = CostModel(CostTable(BATCH_SIZES, LENGTHS, rows))
        assert cost.cost_s(4, 8) == pytest.approx(affine(4, 8))

    def test_one_cell_is_enough(self) -> None:
        cost = CostModel(CostTable((4,), (16,), ((0.1,),)))
        assert cost.cost_s(4, 16) == 0.1
        assert cost.cost_s(8, 16) == pytest.approx(0.2)
        assert cost.cost_s(1, 1) == 0.1  # nothing says that less would cost less

    def test_noise_does_not_make_more_work_cheaper(self) -> None:
        cost = CostModel(CostTable((1, 2), (8, 16), ((0.10, 0.09), (0.08, 0.30))))
        assert cost.cost_s(1, 16) == pytest.approx(0.10)
        assert cost.cost_s(2, 8) == pytest.approx(0.10)
        assert cost.cost_s(2, 16) == pytest.approx(0.30)

    def test_noise_does_not_leak_from_a_gap_into_measured_cells(self) -> None:
        table = CostTable((1, 2, 4), (8, 16), ((None, 0.3), (0.05, 0.4), (0.04, 0.5)))
        cost = CostModel(table)
        assert cost.cost_s(2, 8) == pytest.approx(0.05)
        assert cost.cost_s(4, 8) == pytest.approx(0.05)

    def test_the_grid_has_no_batch_without_texts_or_tokens(self) -> None:
        grid = CostModel(table_of()).grid(3, 5)
        assert grid.shape == (4, 6)
        assert np.isinf(grid[0]).all()
        assert np.isinf(grid[:, 0]).all()

    @pytest.mark.parametrize(("size", "length"), [(0, 4), (4, 0), (-1, 4)])
    def test_no_batch_has_nothing_in_it(self, size: int, length: int) -> None:
        with pytest.raises(ValueError, match="no batch has"):
            CostModel(table_of()).cost_s(size, length)

    def test_a_grid_may_be_written_to(self) -> None:
        cost = CostModel(table_of())
        cost.grid(8, 32)[:] = -1.0
        assert cost.cost_s(1, 4) == pytest.approx(affine(1, 4))

    @given(tables(gaps=True))
    def test_costs_are_positive_and_rise(self, table: CostTable) -> None:
        grid = CostModel(table).grid(20, 30)[1:, 1:]
        assert np.isfinite(grid).all()
        assert grid.min() > 0
        assert (np.diff(grid, axis=0) >= 0).all()
        assert (np.diff(grid, axis=1) >= 0).all()

    @given(tables(gaps=True))
    def test_a_cost_does_not_depend_on_what_was_asked_before(self, table: CostTable) -> None:
        grown, fresh = CostModel(table), CostModel(table)
        grown.grid(19, 17)
        asked = [(1, 1), (3, 29), (19, 2), (40, 40), (2, 5)]
        assert [grown.cost_s(*at) for at in asked] == [fresh.cost_s(*at) for at in asked]
        assert fresh.cost_s(3, 7) == grown.grid(5, 9)[3, 7]

    @given(tables())
    def test_measured_cells_become_their_running_maximum(self, table: CostTable) -> None:
        measured = np.array(table.latency_s, dtype=np.float64)
        repaired = np.maximum.accumulate(np.maximum.accumulate(measured, 0), 1)
        cost = CostModel(table)
        got = [[cost.cost_s(size, n) for n in table.lengths] for size in table.batch_sizes]
        np.testing.assert_allclose(got, repaired, rtol=1e-12)


class TestPlan:
    @given(text_lengths(30), st.sampled_from(ALL_STRATEGIES), st.none() | st.floats(1e-4, 1e-2))
    def test_every_text_is_in_exactly_one_batch(
        self, lengths: NDArray[np.int64], strategy: Strategy, limit_s: float | None
    ) -> None:
        batches = plan(lengths, strategy, CostModel(table_of()), max_batch_latency_s=limit_s)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= strategy.batch_size for batch in batches)
        assert all(batch.dtype == np.int64 for batch in batches)

    def test_arrival_keeps_the_order(self) -> None:
        batches = plan(ints(5, 1, 9, 2, 7), Strategy("arrival", 2))
        assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]

    def test_sorted_runs_the_longest_first_and_keeps_the_order_of_equals(self) -> None:
        batches = plan(ints(3, 9, 3, 9, 1), Strategy("sorted", 2))
        assert [batch.tolist() for batch in batches] == [[1, 3], [0, 2], [4]]

    @given(text_lengths(30), st.integers(1, 60), st.integers(1, 8))
    def test_a_token_budget_holds_unless_a_text_exceeds_it_alone(
        self, lengths: NDArray[np.int64], budget: int, batch_size: int
    ) -> None:
        for batch in plan(lengths, Strategy("token_budget", batch_size, budget)):
            padded = len(batch) * lengths[batch].max()
            assert len(batch) == 1 or padded <= budget

    def test_a_token_budget_is_filled(self) -> None:
        batches = plan(ints(10, 10, 10, 4, 4, 4, 4, 4), Strategy("token_budget", 8, 20))
        assert [len(batch) for batch in batches] == [2, 2, 4]
        assert [len(batch) for batch in plan(ints(1, 1, 1), Strategy("token_budget", 2, 99))] == [
            2,
            1,
        ]

    @given(text_lengths(9), tables(gaps=True), st.integers(1, 9))
    def test_optimal_is_the_best_way_to_cut(
        self, lengths: NDArray[np.int64], table: CostTable, batch_size: int
    ) -> None:
        cost = CostModel(table)
        order = np.argsort(-lengths, kind="stable")
        cuts = ([order[p] for p in parts] for parts in contiguous_partitions(len(lengths)))
        predicted = predict_s(lengths, plan(lengths, Strategy("optimal", batch_size), cost), cost)
        expected = cheapest_s(lengths, cuts, cost, batch_size)
        assert predicted == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("seed", range(20))
    def test_no_other_grouping_is_cheaper(self, seed: int) -> None:
        source = np.random.default_rng(seed)
        lengths = source.integers(1, 33, size=source.integers(2, 8))
        cost = CostModel(
            table_of() if seed % 2 else table_of(lambda size, length: float(source.exponential()))
        )
        groupings = (
            [np.array(group) for group in groups]
            for groups in set_partitions(list(range(len(lengths))))
        )
        predicted = predict_s(lengths, plan(lengths, Strategy("optimal", 5), cost), cost)
        assert predicted == pytest.approx(cheapest_s(lengths, groupings, cost, 5), rel=1e-9)

    @given(text_lengths(40), tables(gaps=True))
    def test_optimal_is_never_worse_than_a_rule(
        self, lengths: NDArray[np.int64], table: CostTable
    ) -> None:
        cost = CostModel(table)
        optimal = predict_s(lengths, plan(lengths, Strategy("optimal", 8), cost), cost)
        for rule in (
            *(Strategy("sorted", size) for size in range(1, 9)),
            *(Strategy("token_budget", 8, budget) for budget in (1, 10, 20, 40, 80, 160)),
            Strategy("arrival", 8),
        ):
            assert optimal <= predict_s(lengths, plan(lengths, rule, cost), cost) * (1 + 1e-9)

    @given(text_lengths(20), st.sampled_from(ALL_STRATEGIES), st.floats(2e-3, 1e-2))
    def test_a_latency_limit_holds_unless_a_text_exceeds_it_alone(
        self, lengths: NDArray[np.int64], strategy: Strategy, limit_s: float
    ) -> None:
        cost = CostModel(table_of())
        for batch in plan(lengths, strategy, cost, max_batch_latency_s=limit_s):
            assert len(batch) == 1 or cost.cost_s(len(batch), lengths[batch].max()) <= limit_s

    def test_a_latency_limit_costs_no_more_than_it_must(self) -> None:
        cost, lengths = CostModel(table_of()), ints(32, 4, 4, 4, 4)
        limit_s = affine(4, 4)  # less than the long text costs on its own
        assert cost.cost_s(1, 32) > limit_s
        for strategy in (Strategy("optimal", 8), Strategy("sorted", 8)):
            batches = plan(lengths, strategy, cost, max_batch_latency_s=limit_s)
            assert [batch.tolist() for batch in batches] == [[0], [1, 2, 3, 4]]

    def test_no_texts_need_no_batches(self) -> None:
        assert plan(ints(), Strategy("sorted", 4)) == []
        assert padding_share(ints(), []) == 0.0
        assert predict_s(ints(), [], CostModel(table_of())) == 0.0

    def test_what_is_missing_is_said(self) -> None:
        with pytest.raises(ValueError, match="'optimal' needs a cost model"):
            plan(ints(1), Strategy("optimal", 4))
        with pytest.raises(ValueError, match="max_batch_latency_s needs a cost model"):
            plan(ints(1), Strategy("sorted", 4), max_batch_latency_s=1.0)
        with pytest.raises(ValueError, match="at least one token"):
            plan(ints(3, 0), Strategy("sorted", 4))


class TestStreams:
    def test_a_stream_that_ends_early_waits_for_the_last(self) -> None:
        table = CostTable((1, 2), (10, 20), ((1.0, 4.0), (2.0, 8.0)))
        lengths, batches = ints(20, 10, 10), [ints(0), ints(1), ints(2)]
        assert predict_s(lengths, batches, CostModel(table)) == pytest.approx(6.0)
        # The long batch takes 8 s on its stream, the short ones 2 s each on the other.
        assert predict_s(lengths, batches, CostModel(table, 2)) == pytest.approx(8.0)
        assert predict_s(lengths, [ints(1), ints(2)], CostModel(table, 2)) == pytest.approx(2.0)

    def test_equal_texts_are_dealt_out_to_all_streams(self) -> None:
        # One batch of eight is the cheapest, and leaves a stream without work.
        table = table_of(lambda size, length: 1e-3 + 1e-3 * size)
        lengths = ints(*[8] * 8)
        assert [len(b) for b in plan(lengths, Strategy("optimal", 8), CostModel(table))] == [8]
        batches = plan(lengths, Strategy("optimal", 8), CostModel(table, 2))
        streams = CostModel(table, 2)
        assert len(batches) > 1
        assert predict_s(lengths, batches, streams) < predict_s(lengths, [ints(*range(8))], streams)

    @given(text_lengths(40), tables(gaps=True), st.integers(1, 5), st.none() | st.floats(1e-3, 5.0))
    def test_no_rule_is_predicted_to_end_before_the_optimal_plan(
        self,
        lengths: NDArray[np.int64],
        table: CostTable,
        streams: int,
        limit_s: float | None,
    ) -> None:
        cost = CostModel(table, streams)

        def predicted_s(strategy: Strategy) -> float:
            return predict_s(
                lengths, plan(lengths, strategy, cost, max_batch_latency_s=limit_s), cost
            )

        rules = (
            *(Strategy("sorted", size) for size in range(1, 9)),
            *(Strategy("token_budget", 8, budget) for budget in TOKEN_BUDGETS),
        )
        optimal_s = predicted_s(Strategy("optimal", 8))
        assert optimal_s <= min(map(predicted_s, rules)) * (1 + 1e-9)

    @given(text_lengths(60), tables(gaps=True), st.integers(2, 5), st.floats(1e-3, 5.0))
    def test_limits_hold_and_every_text_runs_once(
        self, lengths: NDArray[np.int64], table: CostTable, streams: int, limit_s: float
    ) -> None:
        cost = CostModel(table, streams)
        batches = plan(lengths, Strategy("optimal", 6), cost, max_batch_latency_s=limit_s)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        for batch in batches:
            assert len(batch) <= 6
            assert len(batch) == 1 or cost.cost_s(len(batch), lengths[batch].max()) <= limit_s

    @given(text_lengths(5), tables(gaps=True), st.integers(2, 3), st.none() | st.floats(1e-3, 5.0))
    def test_few_texts_get_the_best_plan_of_all(
        self,
        lengths: NDArray[np.int64],
        table: CostTable,
        streams: int,
        limit_s: float | None,
    ) -> None:
        cost = CostModel(table, streams)
        grid = cost.grid(len(lengths), int(lengths.max()))

        def allowed(groups: list[list[int]]) -> bool:
            return limit_s is None or all(
                len(group) == 1 or grid[len(group), lengths[group].max()] <= limit_s
                for group in groups
            )

        orders = (
            [np.array(group) for group in order]
            for groups in set_partitions(list(range(len(lengths))))
            if allowed(groups)
            for order in itertools.permutations(groups)
        )
        batches = plan(lengths, Strategy("optimal", 5), cost, max_batch_latency_s=limit_s)
        expected_s = cheapest_s(lengths, orders, cost, 5)
        assert predict_s(lengths, batches, cost) == pytest.approx(expected_s, rel=1e-9)

    @pytest.mark.parametrize("seed", range(6))
    def test_ten_texts_get_the_best_of_all_plans_of_neighbours(self, seed: int) -> None:
        source = np.random.default_rng(seed)
        lengths = np.sort(source.integers(1, 33, size=EXACT_TEXTS))[::-1]
        cost = CostModel(table_of(), 2)
        grid = cost.grid(8, 32) * cost.streams
        best_s = np.inf
        for batches in contiguous_partitions(len(lengths)):
            if max(map(len, batches)) > 8:
                continue
            costs = np.array([grid[len(batch), lengths[batch[0]]] for batch in batches])
            # Every way to give some of them to the first stream.
            first = np.array(list(itertools.product((0, 1), repeat=len(costs)))) @ costs
            best_s = min(best_s, float(np.maximum(first, costs.sum() - first).min()))
        batches = plan(lengths, Strategy("optimal", 8), cost)
        assert predict_s(lengths, batches, cost) == pytest.approx(best_s, rel=1e-9)

    @pytest.mark.parametrize("streams", [2, 4])
    def test_many_texts_end_close_to_what_no_plan_can_beat(self, streams: int) -> None:
        lengths = np.random.default_rng(0).integers(1, 33, size=300)
        cost = CostModel(table_of(), streams)
        batches = plan(lengths, Strategy("optimal", 8), cost)
        cheapest = plan(lengths, Strategy("optimal", 8), CostModel(table_of()))
        # No schedule ends before the least work is shared out evenly.
        bound_s = predict_s(lengths, cheapest, CostModel(table_of()))
        assert bound_s * (1 - 1e-9) <= predict_s(lengths, batches, cost) <= bound_s * 1.01


class TestPrediction:
    def test_padding_is_counted_in_tokens(self) -> None:
        lengths = ints(8, 2, 5, 5)
        assert padding_share(lengths, [ints(0, 1), ints(2, 3)]) == pytest.approx(6 / 26)
        assert padding_share(lengths, [ints(0), ints(1), ints(2, 3)]) == 0.0

    def test_the_prediction_is_the_sum_over_the_batches(self) -> None:
        cost, lengths = CostModel(table_of()), ints(8, 2, 5, 5)
        batches = [ints(0, 1), ints(2), ints(3)]
        expected = affine(2, 8) + 2 * affine(1, 5)
        assert predict_s(lengths, batches, cost) == pytest.approx(expected)

    @given(text_lengths(40), tables(), st.none() | st.floats(1e-2, 5.0))
    def test_the_best_strategy_has_the_least_prediction(
        self, lengths: NDArray[np.int64], table: CostTable, limit_s: float | None
    ) -> None:
        cost, sizes = CostModel(table), (4, 1, 2)

        def predicted_s(strategy: Strategy) -> float:
            batches = plan(lengths, strategy, cost, max_batch_latency_s=limit_s)
            return predict_s(lengths, batches, cost)

        fixed = [Strategy("sorted", size) for size in sizes]
        tried = [
            *fixed,
            *(Strategy("token_budget", 4, budget) for budget in TOKEN_BUDGETS),
            Strategy("optimal", 4),
        ]
        best = best_strategy(lengths, cost, sizes, max_batch_latency_s=limit_s)
        best_sorted = best_fixed(lengths, cost, sizes, max_batch_latency_s=limit_s)
        assert best in tried
        assert best_sorted in fixed
        assert predicted_s(best) == pytest.approx(min(map(predicted_s, tried)), rel=1e-9)
        assert predicted_s(best_sorted) == pytest.approx(min(map(predicted_s, fixed)), rel=1e-9)

    def test_of_equals_the_simplest_is_chosen(self) -> None:
        cost = CostModel(table_of())
        assert best_strategy(ints(8, 8), cost, (1, 2, 4)) == Strategy("sorted", 2)

    def test_mixed_lengths_make_optimal_worth_it(self) -> None:
        cost = CostModel(table_of())
        lengths = ints(*([32] * 3 + [4] * 11))
        assert best_strategy(lengths, cost, (1, 2, 4, 8)) == Strategy("optimal", 8)

    def test_there_is_no_strategy_for_nothing(self) -> None:
        with pytest.raises(ValueError, match="at least one text"):
            best_strategy(ints(), CostModel(table_of()), (1, 2))
