"""The scheduler in virtual time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hasten.records import CostTable, Strategy
from hasten.runtime.batching import CostModel, plan
from hasten.serve.scheduler import Overloaded, Scheduler, Stage, TooLarge, Waiting

TABLE = CostTable(
    (1, 8, 32), (8, 64, 512), ((0.002, 0.004, 0.03), (0.004, 0.02, 0.2), (0.01, 0.07, 0.8))
)


def stage(**limits: float) -> Stage:
    return Stage(CostModel(TABLE), 32, **limits)


def scheduler(stages: int = 1, max_queue_s: float = 1e9) -> Scheduler:
    return Scheduler([stage()] * stages, max_queue_s)


def drained(one: Scheduler) -> list[tuple[Waiting, ...]]:
    batches = []
    while batch := one.next_batch():
        batches.append(batch)
    return batches


def test_nothing_waits_for_company() -> None:
    one = scheduler()
    one.admit(1, [12])
    assert [text.request for text in one.next_batch()] == [1]
    assert one.next_batch() == ()


def test_neighbours_of_like_length_share_a_batch_with_the_text_whose_turn_it_is() -> None:
    one = scheduler()
    for request, length in enumerate([500, 9, 10, 11, 480]):
        one.admit(request, [length])
    batches = [{text.request for text in batch} for batch in drained(one)]
    assert batches == [{0, 4}, {1, 2, 3}]


def test_single_texts_pass_a_large_list_and_do_not_starve_it() -> None:
    one = scheduler()
    one.admit(0, [64] * 500)
    served = []
    for request in range(1, 41):
        one.admit(request, [512])  # another length: no company for the list
        served.append({text.request for text in one.next_batch()})
    assert {0} in served
    assert any(request > 0 for batch in served for request in batch)
    singles = [next(iter(batch)) for batch in served if batch != {0}]
    assert singles == sorted(singles)


def test_few_texts_are_shared_out_among_idle_streams() -> None:
    one = scheduler()
    one.admit(1, [16] * 6)
    assert [len(one.next_batch(idle_streams=2)) for _ in range(2)] == [3, 2]


def test_where_the_stage_whose_turn_it_is_has_no_stream_nothing_overtakes_it() -> None:
    one = scheduler(stages=2)
    one.admit(1, [10])
    (old,) = one.next_batch()
    one.hand_on([old], 1, [10])
    one.admit(2, [10])
    assert one.next_batch([1, 0]) == ()
    assert [text.request for text in one.next_batch([1, 1])] == [1]


def test_a_reservation_takes_room_until_it_is_released() -> None:
    one = scheduler(max_queue_s=0.5)
    cost_s = one.reserve([64] * 100)
    with pytest.raises(Overloaded):
        one.reserve([64] * 200)
    one.release(cost_s)
    one.reserve([64] * 200)


def test_what_is_handed_on_goes_before_newer_texts() -> None:
    one = scheduler(stages=2)
    one.admit(1, [10])
    (old,) = one.next_batch()
    one.admit(2, [512] * 3)
    one.next_batch()
    one.admit(3, [10])
    one.hand_on([old], 1, [10])
    assert [(text.request, text.stage) for text in one.next_batch()] == [(1, 1)]


def test_a_batch_keeps_to_the_limit_but_a_long_text_runs_alone() -> None:
    one = Scheduler([stage(max_batch_latency_s=0.02)], 1e9)
    one.admit(1, [64] * 20 + [512])
    costs = [CostModel(TABLE).cost_s(len(b), max(t.length for t in b)) for b in drained(one)]
    assert max(costs[1:]) <= 0.02
    assert costs[0] == pytest.approx(0.03)


def test_a_request_is_refused_whole() -> None:
    one = scheduler(max_queue_s=0.5)
    cost_s = one.expected_s([64] * 100)
    one.require_room(cost_s)
    one.admit(1, [64] * 100)
    with pytest.raises(Overloaded) as refused:
        one.require_room(0.5)
    assert refused.value.retry_after_s == pytest.approx(one.backlog_s)
    with pytest.raises(TooLarge):
        one.require_room(0.51)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80), st.integers(1, 4))
def test_every_text_runs_once(lengths: list[int], streams: int) -> None:
    one = scheduler()
    one.admit(7, lengths)
    places = []
    while batch := one.next_batch(streams):
        assert len(batch) <= 32
        places += [text.place for text in batch]
    assert sorted(places) == list(range(len(lengths)))
    assert one.backlog_s == 0.0


@given(st.lists(st.integers(1, 600), min_size=1, max_size=100))
def test_what_waits_is_cut_into_the_cheapest_batches(lengths: list[int]) -> None:
    cost = CostModel(TABLE)
    one = scheduler()
    one.admit(1, lengths)
    best = plan(np.array(lengths), Strategy("optimal", 32), cost)
    expected_s = sum(cost.cost_s(len(batch), max(lengths[i] for i in batch)) for batch in best)
    costs = [cost.cost_s(len(batch), batch[0].length) for batch in drained(one)]
    assert sum(costs) == pytest.approx(expected_s)


class Serving(RuleBasedStateMachine):
    """Requests come, are cancelled, and run, over two stages."""

    @initialize()
    def begin(self) -> None:
        self.one = Scheduler([stage(), stage()], 5.0)
        self.waiting: set[tuple[int, int]] = set()
        self.requests = 0
        self.oldest: dict[int, int] = {}

    @rule(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=40))
    def come(self, lengths: list[int]) -> None:
        try:
            self.one.require_room(self.one.expected_s(lengths))
        except (Overloaded, TooLarge):
            return
        self.requests += 1
        self.one.admit(self.requests, lengths)
        self.waiting |= {(self.requests, place) for place in range(len(lengths))}

    @rule(streams=st.integers(1, 3), unsure=st.booleans())
    def run(self, streams: int, unsure: bool) -> None:
        turns = [text.turn_s for queue in self.one._queues for text in queue]
        batch = self.one.next_batch(streams)
        assert bool(batch) == bool(self.waiting)
        if not batch:
            return
        assert min(text.turn_s for text in batch) == min(turns)
        assert len({text.stage for text in batch}) == 1
        handed = batch[: len(batch) // 2] if unsure and batch[0].stage == 0 else ()
        self.one.hand_on(handed, 1, [text.length for text in handed])
        self.waiting -= {(text.request, text.place) for text in batch[len(handed) :]}

    @rule()
    def cancel(self) -> None:
        request = min((request for request, _ in self.waiting), default=0)
        self.one.cancel(request)
        self.waiting = {text for text in self.waiting if text[0] != request}

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "one"):
            assert len(self.one) == len(self.waiting)
            assert self.one.backlog_s >= 0.0


TestServing = Serving.TestCase
