"""The threads of a bulk run: order, bounded memory, and errors that end everything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hasten.bulk.flow import flow


class Task:
    """Stands for a shard: its batches are numbers."""

    def __init__(self, name: int, batches: int, log: list[Any]) -> None:
        self.name, self.batches, self.log = name, list(range(batches)), log

    def run(self, batch: int) -> None:
        self.log.append((self.name, batch))


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[], [1], [0, 3, 0, 0, 5], [1] * 20, [40, 1, 1, 1]])
def test_everything_runs_once_and_comes_in_order(streams: int, sizes: list[int]) -> None:
    log: list[Any] = []
    tasks = [Task(name, size, log) for name, size in enumerate(sizes)]
    told: list[Any] = []
    done = list(flow(tasks, streams, lambda task, batch: told.append((task.name, batch))))
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

    running = flow(endless(), 2)
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

    seen = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(task.name for task in flow(failing(), 2))
    running = flow(failing(), 2)
    assert [next(running).name, next(running).name] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(running)


def test_an_error_in_a_batch_ends_all_threads() -> None:
    class Failing(Task):
        def run(self, batch: int) -> None:
            if (self.name, batch) == (1, 2):
                raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(flow((Failing(name, 4, []) for name in range(100)), 2))
    assert not [t for t in threading.enumerate() if t.name.startswith("hasten-")]


def test_streams_do_not_wait_for_each_other_between_shards() -> None:
    """The first shard's only batch runs until the second shard's has begun."""
    begun = threading.Event()

    class Waiting(Task):
        def run(self, batch: int) -> None:
            if self.name == 0:
                assert begun.wait(10)
            else:
                begun.set()

    assert len(list(flow([Waiting(0, 1, []), Waiting(1, 1, [])], 2))) == 2
