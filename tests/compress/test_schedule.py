"""The budget: what it holds is counted in full, and what is left is told."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.compress import distil, schedule
from hasten.compress.lesson import Look
from hasten.compress.schedule import Teller, Upkeep
from hasten.errors import BudgetError

LESSON: Any = SimpleNamespace(tokens=[None] * 640)  # 20 steps an epoch


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "time_steps", lambda lesson, count: 2.0)


def ten_in_seven(teaching: int) -> int:
    return int(teaching / 0.7)


def steps(budget_s: float, spent_s: float = 0.0, upkeep: Upkeep = Upkeep(0, 0, 0)) -> int:  # noqa: B008 - frozen
    phases = [schedule.phase(LESSON, upkeep)]
    (found,) = schedule.steps(phases, budget_s=budget_s, spent_s=spent_s, given=ten_in_seven)
    return found


def test_everything_fits_into_the_budget() -> None:
    for budget_s in (200.0, 333.0, 500.0):
        upkeep = Upkeep(look_s=3.0, checkpoint_s=1.0, end_s=20.0)
        found = steps(budget_s, 30.0, upkeep)
        looks = found // distil.looks_every(found)
        spent_s = 30.0 + 2.0 * found + looks * (3.0 + 1.0) + 3 * 1.0 + 20.0
        assert 0.7 * budget_s < spent_s <= 0.95 * budget_s
        assert found % distil.looks_every(found) == 0


def test_two_phases_share_the_time_and_both_upkeeps_are_counted() -> None:
    upkeep = Upkeep(look_s=3.0, checkpoint_s=1.0, end_s=20.0)
    first = schedule.phase(LESSON, upkeep, 0.7)
    second = schedule.phase(LESSON, upkeep, 0.3, " with 8-bit integers")
    for budget_s in (400.0, 555.0):
        counts = schedule.steps(
            [first, second], budget_s=budget_s, spent_s=30.0, given=ten_in_seven
        )
        taken_s = [first.takes_s(counts[0]), second.takes_s(counts[1])]
        assert 0.75 * budget_s < 30.0 + sum(taken_s) <= 0.95 * budget_s
        teaching_s = (0.95 * budget_s - 30.0) - 2 * upkeep.total_s
        assert 2.0 * counts[0] <= 0.7 * teaching_s
        assert 2.0 * counts[1] <= 0.3 * teaching_s
    with pytest.raises(
        BudgetError, match="640 training texts with 8-bit integers takes 40 s"
    ) as caught:
        schedule.steps([first, second], budget_s=190.0, spent_s=30.0, given=ten_in_seven)
    # (30 + 2 * 63 + 40 / 0.3) / 0.95 = 305 s
    assert str(caught.value.fix).startswith("--budget 6m")


def test_nothing_to_teach_takes_no_steps() -> None:
    assert schedule.steps([], budget_s=10.0, spent_s=9.0, given=ten_in_seven) == []


def test_more_than_is_of_use_is_not_used() -> None:
    assert steps(100_000.0) == 400


def test_less_than_a_pass_trains_on_as_many_texts_as_fit() -> None:
    # 6 steps of 32 texts are 7 in 10 of 274, and a student needs 200.
    assert steps(60.0, 30.0, Upkeep(1.0, 0.0, 5.0)) == 6


def test_what_a_budget_lacks_for_any_student_is_told() -> None:
    with pytest.raises(BudgetError) as caught:
        steps(60.0, 40.0, Upkeep(1.0, 0.0, 5.0))
    assert "one pass over the 640 training texts takes 40 s, and the 2 s that" in str(caught.value)
    assert "40 s are gone, and 15 s go into watching" in str(caught.value)
    assert caught.value.fix == "--budget 3m."  # (40 + 15 + 40) / 0.95 = 100 s


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)


def test_how_long_is_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    events: list[Any] = []
    tell = Teller(events.append, clock.now_s, budget_s=100.0)
    clock.now_s += 20.0
    tell("choose", "blocks")
    assert (events[-1].left_s, events[-1].done) == (80.0, 0.2)
    step = tell.teaching("train", 30, 7.0, lambda look: f"{look.agreement:.1%} agree")
    step(11, None)  # of a run that was resumed
    clock.now_s += 10.0
    step(16, Look(0.875, 0.5))
    assert events[-1].left_s == pytest.approx(14 * 2.0 + 7.0)
    assert events[-1].done == pytest.approx(30.0 / 65.0)
    assert events[-1].message == "step 16 of 30, 87.5% agree"
    clock.now_s += 200.0
    tell("compare", "")
    assert (events[-1].left_s, events[-1].done) == (0.0, 1.0)


def test_a_choice_that_takes_too_long_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tell = Teller(lambda event: None, clock.now_s, budget_s=100.0)
    chosen = tell.choosing("blocks")
    clock.now_s += 9.0
    chosen(0.1)
    clock.now_s += 11.0
    with pytest.raises(BudgetError, match=r"which blocks stay takes 133 s") as caught:
        chosen(0.15)
    assert "--budget 5m" in str(caught.value.fix)
