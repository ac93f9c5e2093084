"""Which waiting texts run next: continuous, length-aware batching over a bundle's cost table.

Pure logic, without threads and with times handed in. Four rules:

- *No waiting.* Whenever a stream is idle and a text waits, a batch runs; nothing is held back
  in the hope of company.
- *Turns.* Every request advances in virtual time by the cost of its own texts (start-time fair
  queueing: Goyal, Vin and Cheng, SIGCOMM 1996). The text whose turn it is, is always in the next
  batch, so that neither a large list keeps single texts waiting nor single texts a large list.
- *Company by length.* The texts that join are those of nearest length, as many as make the batch
  cheapest for what it does, within the limit on a batch's time.
- *All or nothing.* A request is taken whole or refused whole, by the seconds of work that wait.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from hasten.runtime.batching import CostModel


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
        self.cost = cost
        self.max_batch_size = max_batch_size
        self.limit_s = max_batch_latency_s or math.inf
        self._alone_s = np.zeros(0)

    def alone_s(self, lengths: Sequence[int]) -> NDArray[np.float64]:
        """What texts of these lengths cost each at best, in a full batch of their like: [n]."""
        longest = max(lengths, default=0)
        if longest >= len(self._alone_s):
            grid = self.cost.grid(self.max_batch_size, 2 * longest)
            sizes = np.arange(len(grid))[1:, np.newaxis]
            self._alone_s = (grid[1:] / sizes).min(axis=0)
        return self._alone_s[np.asarray(lengths, np.int64)]


@dataclass(frozen=True, slots=True, order=True)
class Waiting:
    """One text that waits; sorts by its length."""

    length: int
    turn_s: float
    number: int
    request: int = field(compare=False)
    place: int = field(compare=False)
    stage: int = field(compare=False, default=0)


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
        costs_s = self._stages[0].alone_s(lengths)
        for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
            number = next(self._numbers)
            self._wait(Waiting(lengths[place], turn_s, number, request, place))
            turn_s += float(costs_s[place])

    def hand_on(self, texts: Iterable[Waiting], stage: int, lengths: Sequence[int]) -> None:
        """Let texts wait for a further stage. They keep their turn, so they go before newer ones.

        Args:
            texts: what the stage before was not sure of.
            stage: the next one.
            lengths: tokens of each, as that stage reads them.
        """
        for text, length in zip(texts, lengths, strict=True):
            self._wait(replace(text, length=length, stage=stage))

    def cancel(self, request: int) -> None:
        """Forget what a request still has waiting."""
        for stage, queue in enumerate(self._queues):
            for text in [text for text in queue if text.request == request]:
                self._take(stage, text)

    def next_batch(self, idle_streams: int | Sequence[int] = 1) -> tuple[Waiting, ...]:
        """The texts to run now, of one stage; empty if none wait.

        Args:
            idle_streams: how many streams could run a batch now, this one included, of each
                stage or of all: few texts are shared out among them. Where the stage whose turn
                it is has none, nothing else runs instead: the others would never let it in.
        """
        heads = [min(queue, key=_turn) for queue in self._queues if queue]
        if not heads:
            return ()
        head = min(heads, key=_turn)
        queue = self._queues[head.stage]
        idle = idle_streams if isinstance(idle_streams, int) else idle_streams[head.stage]
        if not idle:
            return ()
        share = math.ceil(len(queue) / idle)
        chosen = self._company(head, queue, share)
        for text in chosen:
            self._take(head.stage, text)
        self._now_s = max(self._now_s, head.turn_s)
        return chosen

    def _company(self, head: Waiting, queue: list[Waiting], share: int) -> tuple[Waiting, ...]:
        """The texts around ``head`` by length that make the best batch with it.

        Best is what does most work for its cost: the texts' own costs in full batches, added up,
        over the batch's.
        """
        stage = self._stages[head.stage]
        size = min(stage.max_batch_size, share)
        at = bisect_left(queue, head)
        begin, end = max(0, at - size + 1), min(len(queue), at + size)
        lengths = np.array([text.length for text in queue[begin:end]])
        work = np.concatenate([[0.0], np.cumsum(stage.alone_s(lengths.tolist()))])
        grid = stage.cost.grid(size, int(lengths[-1]))
        best, chosen = -math.inf, (at - begin, at - begin + 1)
        for last in range(at - begin, len(lengths)):
            firsts = np.arange(max(0, last + 1 - size), at - begin + 1)
            costs = grid[last + 1 - firsts, lengths[last]]
            alone = firsts == last  # a text over the limit runs by itself
            values = np.where(
                (costs <= stage.limit_s) | alone, (work[last + 1] - work[firsts]) / costs, -math.inf
            )
            place = int(values.argmax())
            if values[place] > best:
                best, chosen = float(values[place]), (int(firsts[place]), last + 1)
        return tuple(queue[begin:end][chosen[0] : chosen[1]])

    def _wait(self, text: Waiting) -> None:
        insort(self._queues[text.stage], text)
        self._backlog_s += self._cost_s(text)

    def _take(self, stage: int, text: Waiting) -> None:
        queue = self._queues[stage]
        del queue[bisect_left(queue, text)]
        self._backlog_s -= self._cost_s(text)
        if not len(self):
            self._backlog_s = 0.0  # what rounding left

    def _cost_s(self, text: Waiting) -> float:
        return float(self._stages[text.stage].alone_s([text.length])[0])


def _turn(text: Waiting) -> tuple[float, int]:
    return text.turn_s, text.number
