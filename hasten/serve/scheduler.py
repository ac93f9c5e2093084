"""Which waiting texts run next: continuous, length-aware batching over a bundle's cost table.

Pure logic, without threads and with times handed in. Four rules:

- *No waiting.* Whenever a stream is idle and a text waits, a batch runs; nothing is held back
  in the hope of company.
- *Turns.* Every request advances in virtual time by the cost of its own texts (start-time fair
  queueing: Goyal, Vin and Cheng, SIGCOMM 1996). The text whose turn it is, is always in the next
  batch, so that neither a large list keeps single texts waiting nor single texts a large list.
- *Company by length.* What waits is cut into batches as bulk prediction cuts it, where the
  predicted total is least; the batch that holds the text whose turn it is runs.
- *All or nothing.* A request is taken whole or refused whole, by the seconds of work that wait.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from itertools import accumulate, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hasten.runtime.batching import CostModel, cheapest_sizes

_AHEAD = 4
"""How many full batches of texts are cut into batches at once: those whose turn is next. More would
pad less, and let texts of rare lengths wait longer."""


class Overloaded(Exception):
    """The work that waits would take longer than is allowed; ``retry_after_s`` says when to ask."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"{retry_after_s:.1f} s of work are waiting")
        self.retry_after_s = retry_after_s


class TooLarge(Exception):
    """A request that takes ``cost_s`` seconds, which no empty queue would take either."""

    def __init__(self, cost_s: float, limit_s: float) -> None:
        super().__init__(
            f"the request takes about {cost_s:.1f} s; at most {limit_s:.1f} s are taken"
        )
        self.cost_s = cost_s
        self.limit_s = limit_s


class Stage:
    """What the scheduler has to know of one model: costs, and how large a batch may be."""

    def __init__(
        self, cost: CostModel, max_batch_size: int, max_batch_latency_s: float | None = None
    ) -> None:
        self.max_batch_size = max_batch_size
        self.limit_s = max_batch_latency_s
        self._cost = cost
        self._grid = np.zeros((0, 0))
        self._alone_s = np.zeros(0)

    def alone_s(self, lengths: Sequence[int]) -> NDArray[np.float64]:
        """What texts of these lengths cost each at best, in a full batch of their like: [n]."""
        self._reach(max(lengths, default=0))
        return self._alone_s[np.asarray(lengths, np.int64)]

    def sizes(self, ordered: Sequence[int], largest: int) -> list[int]:
        """How many of these texts, the longest first, go into each batch."""
        self._reach(ordered[0])
        grid = self._grid[: min(largest, self.max_batch_size) + 1, : ordered[0] + 1]
        return cheapest_sizes(np.asarray(ordered, np.int64), grid, self.limit_s)

    def _reach(self, length: int) -> None:
        """Compute costs up to this length, and beyond, where they are not known yet."""
        if length >= len(self._alone_s):
            self._grid = self._cost.grid(self.max_batch_size, 2 * length)
            sizes = np.arange(len(self._grid))[1:, np.newaxis]
            self._alone_s = (self._grid[1:] / sizes).min(axis=0)


class Waiting(NamedTuple):
    """One text that waits; sorts by its turn. ``number`` is its own in every stage."""

    turn_s: float
    number: int
    length: int
    request: int
    place: int
    stage: int
    cost_s: float


class Scheduler:
    """The texts that wait for each stage of a bundle, and which of them run next.

    Not thread-safe: the caller holds a lock around it.

    Args:
        stages: the bundle's, in the order in which texts pass through them.
        max_queue_s: seconds of work that may wait.
    """

    def __init__(self, stages: Sequence[Stage], max_queue_s: float) -> None:
        self._stages = stages
        self._max_queue_s = max_queue_s
        self._queues: list[list[Waiting]] = [[] for _ in stages]
        self._now_s = 0.0  # virtual: how far the texts whose turn it was have got
        self._numbers = count()
        self._backlog_s = 0.0
        self._reserved_s = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    @property
    def backlog_s(self) -> float:
        """Seconds that the waiting texts, and those with a reservation, take in full batches."""
        return max(self._backlog_s, 0.0) + max(self._reserved_s, 0.0)

    def expected_s(self, lengths: Sequence[int]) -> float:
        """Seconds that texts of these lengths take in the first stage, in full batches."""
        return float(self._stages[0].alone_s(lengths).sum())

    def require_room(self, cost_s: float) -> None:
        """Refuse a request that takes ``cost_s`` where too much waits already.

        Raises:
            TooLarge: it would not fit into an empty queue either.
            Overloaded: it does not fit now.
        """
        if cost_s > self._max_queue_s:
            raise TooLarge(cost_s, self._max_queue_s)
        if self.backlog_s + cost_s > self._max_queue_s:
            raise Overloaded(self.backlog_s + cost_s - self._max_queue_s)

    def reserve(self, lengths: Sequence[int]) -> float:
        """Room for a request whose texts have about these lengths, in seconds.

        Raises:
            TooLarge: it would not fit into an empty queue either.
            Overloaded: it does not fit now.
        """
        cost_s = self.expected_s(lengths)
        self.require_room(cost_s)
        self._reserved_s += cost_s
        return cost_s

    def release(self, cost_s: float) -> None:
        """Give back what :meth:`reserve` gave."""
        self._reserved_s -= cost_s

    def admit(self, request: int, lengths: Sequence[int]) -> None:
        """Let all texts of a request wait, the longest first among themselves.

        Args:
            request: a number that names the request.
            lengths: tokens of each text, at least 1.
        """
        turn_s = self._now_s
        costs_s = self._stages[0].alone_s(lengths).tolist()
        for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
            number, cost_s = next(self._numbers), costs_s[place]
            self._wait(Waiting(turn_s, number, lengths[place], request, place, 0, cost_s))
            turn_s += cost_s

    def hand_on(self, texts: Iterable[Waiting], stage: int, lengths: Sequence[int]) -> None:
        """Let texts wait for a further stage. They keep their turn, so they go before newer ones.

        Args:
            texts: what the stage before was not sure of.
            stage: the next one.
            lengths: tokens of each, as that stage reads them.
        """
        costs_s = self._stages[stage].alone_s(lengths).tolist()
        for text, length, cost_s in zip(texts, lengths, costs_s, strict=True):
            self._wait(text._replace(length=length, stage=stage, cost_s=cost_s))

    def cancel(self, request: int) -> None:
        """Forget what a request still has waiting."""
        for queue in self._queues:
            for text in [text for text in queue if text.request == request]:
                self._take(text)

    def next_batch(self, idle_streams: int | Sequence[int] = 1) -> tuple[Waiting, ...]:
        """The texts to run now, of one stage; empty if none wait.

        Args:
            idle_streams: how many streams could run a batch now, this one included, of each
                stage or of all: few texts are shared out among them. Where the stage whose turn
                it is has none, nothing else runs instead: the others would never let it in.
        """
        heads = [queue[0] for queue in self._queues if queue]
        if not heads:
            return ()
        head = min(heads)
        idle = idle_streams if isinstance(idle_streams, int) else idle_streams[head.stage]
        if not idle:
            return ()
        batch = self._company(head, idle)
        for text in batch:
            self._take(text)
        self._now_s = max(self._now_s, head.turn_s)
        return batch

    def _company(self, head: Waiting, idle: int) -> tuple[Waiting, ...]:
        """The batch with ``head`` in it, of those into which the next texts are cut."""
        queue, stage = self._queues[head.stage], self._stages[head.stage]
        near = queue[: _AHEAD * stage.max_batch_size][::-1]
        near.sort(key=lambda text: -text.length)
        sizes = stage.sizes([text.length for text in near], math.ceil(len(queue) / idle))
        ends = list(accumulate(sizes))
        batch = bisect_right(ends, near.index(head))
        return tuple(near[ends[batch] - sizes[batch] : ends[batch]])

    def _wait(self, text: Waiting) -> None:
        insort(self._queues[text.stage], text)
        self._backlog_s += text.cost_s

    def _take(self, text: Waiting) -> None:
        queue = self._queues[text.stage]
        del queue[bisect_left(queue, text)]
        self._backlog_s -= text.cost_s
        if not len(self):
            self._backlog_s = 0.0  # what rounding left
