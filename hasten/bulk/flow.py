"""Keeps the model busy: shards are prepared ahead, and finished ones handed over, while it runs.

Three kinds of threads work at once. One prepares shards (reading, tokenizing, planning), the
streams run batches, and the caller's thread takes finished shards in order and writes them. The
streams go from a shard's last batch to the next shard's first without waiting for each other, so
that nothing idles at a shard's end.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from hasten.bulk.model import Batch, Work

_ALIVE = 4
"""Shards in memory at once: one being prepared, two on the streams, one being written."""


_PREPARING_S = 1.0
"""At the end, wait so long for the thread that prepares; it only reads and counts tokens."""


def flow(
    works: Iterable[Work],
    streams: Sequence[int],
    ran: Callable[[Work, Batch], None] = lambda *_: None,
) -> Generator[Work, None, None]:
    """Run all batches of all works.

    Batches of stages with equally many streams run side by side: each takes its part of the
    cores. Other stages take turns.

    Args:
        works: drawn from on a thread of its own, a few ahead of what is running.
        streams: how many batches of each stage run at a time.
        ran: is told of every batch that has run, on the thread that ran it.

    Yields:
        Each work when its batches have run, in order. Not more than a few are alive at once; the
        one that was yielded is forgotten when the next is asked for.

    Raises:
        Whatever ``works`` raises, once all works before have been yielded, or a batch raises.
    """
    line = _Line(works, streams, ran)
    threads = [threading.Thread(target=line.prepare, name="hasten-prepare", daemon=True)]
    threads += [
        threading.Thread(target=line.drain, name=f"hasten-stream-{i}", daemon=True)
        for i in range(max(streams))
    ]
    for thread in threads:
        thread.start()
    try:
        yield from line.finished()
    finally:
        line.stop()
        for thread in threads[1:]:
            thread.join()
        # It may be waiting for a pipe from which nothing comes, and nobody waits for that.
        threads[0].join(_PREPARING_S)


class _Running:
    """A work, its stage's batches that wait, and how many of these have not run to their end."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.add(work.batches)

    def add(self, batches: Sequence[Batch]) -> None:
        """Let these run; without any, the work is done."""
        self.waiting: deque[Batch] = deque(batches)
        self.left = len(batches)
        self.done = not batches


class _Line:
    """The works in order, shared by all threads; ``_changed`` guards everything in it."""

    def __init__(
        self,
        works: Iterable[Work],
        streams: Sequence[int],
        ran: Callable[[Work, Batch], None],
    ) -> None:
        self._works = iter(works)
        self._streams = streams
        self._ran = ran
        self._busy = 0
        self._busy_stage = 0
        self._changed = threading.Condition()
        self._alive: deque[_Running] = deque()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None

    def prepare(self) -> None:
        """Put works into the line as long as there is room."""
        try:
            for work in self._works:
                with self._changed:
                    self._alive.append(_Running(work))
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._alive) < _ALIVE or self._stopped)
                    if self._stopped:
                        return
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            self._error = error
        finally:
            if isinstance(self._works, Generator):
                self._works.close()  # here, where it runs: it may hold a file
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def drain(self) -> None:
        """Run batches until there are no more."""
        while drawn := self._draw():
            running, batch = drawn
            try:
                running.work.run(batch)
                self._ran(running.work, batch)
                self._end(running)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                self._fail(error)
                return

    def _end(self, running: _Running) -> None:
        """A batch has run; after a stage's last one, the next stage's are planned here."""
        with self._changed:
            self._busy -= 1
            running.left -= 1
            last = not running.left
            self._changed.notify_all()
        if last:
            batches = running.work.further()
            with self._changed:
                running.add(batches)
                self._changed.notify_all()

    def _draw(self) -> tuple[_Running, Batch] | None:
        """The next batch; waits for one, and gives None at the end of all."""
        with self._changed:
            while not self._stopped:
                running = next((each for each in self._alive if each.waiting), None)
                if running is not None and self._has_room(running.waiting[0].stage):
                    self._busy += 1
                    self._busy_stage = running.waiting[0].stage
                    return running, running.waiting.popleft()
                if self._ended and all(each.done for each in self._alive):
                    return None
                self._changed.wait()
        return None

    def _has_room(self, stage: int) -> bool:
        """Whether a batch of this stage may run beside those that are running.

        Batches are drawn in order alone: a later one that may run does not overtake an earlier
        one that may not, so that every stage has its turn.
        """
        streams = self._streams[stage]
        return not self._busy or self._busy < streams == self._streams[self._busy_stage]

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error, self._stopped = error, True
            self._changed.notify_all()

    def finished(self) -> Iterator[Work]:
        """Works whose batches have all run, in order."""
        while True:
            with self._changed:
                self._changed.wait_for(self._next_is_clear)
                if self._stopped or not self._alive:
                    if self._error:
                        raise self._error
                    return
                work = self._alive[0].work
            yield work
            with self._changed:
                self._alive.popleft()
                del work
                self._changed.notify_all()

    def _next_is_clear(self) -> bool:
        """Whether the first in line is done, or there is nothing to wait for."""
        if self._stopped:
            return True
        return self._alive[0].done if self._alive else self._ended

    def stop(self) -> None:
        """Let all threads end after what they are doing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
