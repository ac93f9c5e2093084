"""The threads of a bulk run: order, bounded memory, and errors that end everything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import pytest

from hasten.bulk import flow
from hasten.bulk.flow import _Line, _Running


class Step(NamedTuple):
    """Stands for a batch."""

    number: int
    stage: int = 0


class Task:
    """Stands for a shard: so many batches for each stage."""

    def __init__(self, name: int, batches: int, log: list[Any], later: Sequence[int] = ()) -> None:
        self.name, self.log = name, log
        self.stages = [
            [Step(number, stage) for number in range(count)]
            for stage, count in enumerate([batches, *later])
        ]
        self.batches = self.stages[0]
        self.left = iter(self.stages[1:])

    def run(self, batch: Step) -> None:
        self.log.append((self.name, batch))

    def further(self) -> Sequence[Step]:
        return next(self.left, ())


def through(
    tasks: Iterable[Task],
    streams: tuple[int, ...],
    ran: Callable[[Task, Step], None] = lambda *_: None,
) -> Generator[Task, None, None]:
    """What runs shards, given tasks."""
    stand_ins: Any = tasks
    heard: Any = ran
    yield from cast("Any", flow.flow(stand_ins, streams, heard))


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[], [1], [0, 3, 0, 0, 5], [1] * 20, [40, 1, 1, 1]])
def test_everything_runs_once_and_comes_in_order(streams: int, sizes: list[int]) -> None:
    log: list[Any] = []
    tasks = [Task(name, size, log) for name, size in enumerate(sizes)]
    told: list[Any] = []
    done = list(through(tasks, (streams,), lambda task, batch: told.append((task.name, batch))))
    assert done == tasks
    expected = [(task.name, batch) for task in tasks for batch in task.batches]
    assert sorted(log) == sorted(told) == expected


def test_only_a_few_are_alive() -> None:
    made = 0

    def endless() -> Iterator[Task]:
        nonlocal made
        while True:
            made += 1
            yield Task(made, 2, [])

    running = through(endless(), (2,))
    for number in range(1, 30):
        assert next(running).name == number
        assert made <= number + 5
    running.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("hasten-")]


def test_an_error_while_preparing_comes_after_what_was_prepared() -> None:
    def failing() -> Iterator[Task]:
        yield Task(0, 3, [])
        yield Task(1, 3, [])
        raise ValueError("broken")

    seen: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(task.name for task in through(failing(), (2,)))
    running = through(failing(), (2,))
    assert [next(running).name, next(running).name] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(running)


def test_an_error_in_a_batch_ends_all_threads() -> None:
    class Failing(Task):
        def run(self, batch: Step) -> None:
            if (self.name, batch.number) == (1, 2):
                raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(through((Failing(name, 4, []) for name in range(100)), (2,)))
    assert not [t for t in threading.enumerate() if t.name.startswith("hasten-")]


def test_streams_do_not_wait_for_each_other_between_shards() -> None:
    """The first shard's only batch runs until the second shard's has begun."""
    begun = threading.Event()

    class Waiting(Task):
        def run(self, batch: Step) -> None:
            if self.name == 0:
                assert begun.wait(10)
            else:
                begun.set()

    assert len(list(through([Waiting(0, 1, []), Waiting(1, 1, [])], (2,)))) == 2


# --- stages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [(1, 1), (2, 2), (2, 1), (1, 3), (2, 1, 2)])
def test_a_shards_stages_run_one_after_the_other(streams: tuple[int, ...]) -> None:
    log: list[Any] = []
    later = [(3, 1), (0, 0), (1, 0), (2, 5)]
    tasks = [Task(name, 4, log, counts[: len(streams) - 1]) for name, counts in enumerate(later)]
    assert list(through(tasks, streams)) == tasks
    for task in tasks:
        ran = [batch for name, batch in log if name == task.name]
        assert sorted(ran, key=lambda batch: (batch.stage, batch.number)) == [
            step for steps in task.stages for step in steps
        ]
        assert [batch.stage for batch in ran] == sorted(batch.stage for batch in ran)


@pytest.mark.parametrize(
    ("streams", "busy", "room"),
    [
        ((2, 1), [], [True, True]),
        ((2, 1), [0], [True, False]),
        ((2, 1), [0, 0], [False, False]),
        ((2, 1), [1], [False, False]),
        ((2, 2), [0], [True, True]),
        ((2, 2), [0, 1], [False, False]),
    ],
)
def test_stages_of_unequal_layout_take_turns(
    streams: tuple[int, int], busy: list[int], room: list[bool]
) -> None:
    line = _Line([], streams, lambda *_: None)
    stand_ins: list[Any] = [RunsIn(stage) for stage in busy]
    line._alive += [_Running(each) for each in stand_ins]
    assert [line._draw() is not None for _ in busy] == [True] * len(busy)
    assert [line._has_room(stage) for stage in (0, 1)] == room


class RunsIn(Task):
    """Has one batch, of this stage."""

    def __init__(self, stage: int) -> None:
        super().__init__(0, 1, [])
        self.batches = [Step(0, stage)]


def test_an_error_while_a_later_stage_is_planned_ends_all_threads() -> None:
    class Failing(Task):
        def further(self) -> Sequence[Step]:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(through([Failing(0, 2, [])], (2,)))
    assert not [t for t in threading.enumerate() if t.name.startswith("hasten-")]
