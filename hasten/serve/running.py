"""The threads that run a bundle: each draws a batch from the scheduler, runs it, and stores it.

A text of which a stage is not sure is tokenized for the next stage and waits there. Where the
engine fails on a batch, the batch is halved until the texts that it fails on are alone; only
their requests fail.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from time import monotonic

import numpy as np

from hasten.errors import EngineError, HastenError
from hasten.inputs.tokenization import Tokens
from hasten.records import CostTable
from hasten.runtime.batching import CostModel
from hasten.runtime.stages import LoadedStage
from hasten.runtime.watch import Watch
from hasten.serve.jobs import Job, finish
from hasten.serve.scheduler import Scheduler, Stage, Waiting
from hasten.serve.tokenizing import Tokenizing
from hasten.tasks import Outputs

log = logging.getLogger(__name__)

_LARGEST_BATCH = 64

_UNMEASURED = CostTable((1,), (128,), ((0.02,),))
"""Costs of a bundle that was saved without a table: in proportion to the tokens."""

PATIENCE_S = 5.0
"""How long closing waits, in all, for batches that are running; a second time it does not."""


class NonFinite(EngineError):
    """The model's output for a text is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One batch that has run, for the metrics.

    Attributes:
        stage: which stage of the bundle, from 0.
        texts: how many texts it held.
        tokens: of the texts.
        padded_tokens: of the batch, padding included.
        latency_s: how long it took.
        handed_on: how many texts go to the next stage.
        failed: whether the engine raised an error.
    """

    stage: int
    texts: int
    tokens: int
    padded_tokens: int
    latency_s: float
    handed_on: int = 0
    failed: bool = False


Held = tuple[Job, Waiting]
"""A text of a batch, with the request that it belongs to."""


class Cores:
    """Which stages may start a batch: no core gets two threads, no session too many streams."""

    def __init__(self, stages: Sequence[LoadedStage]) -> None:
        candidates = [stage.stage.plan.candidate for stage in stages]
        self._threads = [candidate.intra_op_num_threads for candidate in candidates]
        self._sessions = [stage.streams for stage in stages]
        self._free = max(candidate.threads for candidate in candidates)
        self._streams = {session: session.count for session in self._sessions}
        self.most = max(1, self._free // min(self._threads))

    def idle(self) -> list[int]:
        """How many batches of each stage could start now."""
        return [
            min(self._streams[session], self._free // threads)
            for session, threads in zip(self._sessions, self._threads, strict=True)
        ]

    def take(self, stage: int) -> None:
        """A batch of this stage starts."""
        self._move(stage, -1)

    def give_back(self, stage: int) -> None:
        """It has ended."""
        self._move(stage, 1)

    def _move(self, stage: int, by: int) -> None:
        self._free += by * self._threads[stage]
        self._streams[self._sessions[stage]] += by


class Runner:
    """The queue of a loaded bundle and the threads that empty it.

    Args:
        name: for the threads' names and the log.
        stages: of the bundle.
        max_queue_s: seconds of work that may wait.
        on_batch: is called with every batch, on a stream's thread.
        clock: seconds.

    Attributes:
        tokenizing: the threads that tokenize.
        last_answer_s: when a batch last ended without an error, by ``clock``.
        drifts: how often texts were found to be unlike those that proved the bundle.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[LoadedStage],
        max_queue_s: float,
        on_batch: Callable[[Ran], None],
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._stages = stages
        self.tokenizing = Tokenizing(name, stages, self._admit, self._refuse)
        self._on_batch = on_batch
        self._clock = clock
        self._scheduler = Scheduler([_scheduled(stage) for stage in stages], max_queue_s)
        self._watch = Watch([stage.stage.hands_on for stage in stages])
        self._jobs: dict[int, Job] = {}
        self._numbers = count()
        self._changed = threading.Condition()
        self._cores = Cores(stages)
        self._closing = False
        self._ended: BaseException | None = None
        self._began: dict[int, float] = {}
        self.last_answer_s = -math.inf
        self.drifts = 0
        self._threads = [
            threading.Thread(target=self._draw, name=f"hasten-serve-{name}-{number}", daemon=True)
            for number in range(self._cores.most)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def backlog_s(self) -> float:
        """Seconds of work that wait."""
        with self._changed:
            return self._scheduler.backlog_s

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        with self._changed:
            return len(self._scheduler)

    @property
    def longest_running_s(self) -> float:
        """How long the oldest batch that is running has taken so far."""
        with self._changed:
            return self._clock() - min(self._began.values(), default=self._clock())

    def submit(self, job: Job) -> None:
        """Take a request, if there is room for it; :meth:`leave` must follow.

        Raises:
            Overloaded, TooLarge: there is no room.
            Exception: the one that the runner was closed with.
        """
        lengths = self.tokenizing.estimated(job.texts)
        with self._changed:
            if self._ended:
                raise self._ended
            job.room_s = self._scheduler.reserve(lengths)
            job.number = next(self._numbers)
            self._jobs[job.number] = job
        self.tokenizing.put(job)

    def leave(self, job: Job) -> None:
        """Forget a request; what of it still waits is given up."""
        with self._changed:
            if self._jobs.pop(job.number, None):
                self._release(job)
                if job.left:
                    self._scheduler.cancel(job.number)

    def _admit(self, jobs: Sequence[Job]) -> None:
        """Let the texts of jobs wait, now that their lengths are known."""
        now = self._clock()
        with self._changed:
            for job in jobs:
                if job.number in self._jobs:
                    job.tokenized_s = now
                    self._release(job)
                    self._scheduler.admit(job.number, _columns(job))
            self._changed.notify(len(self._scheduler))

    def _release(self, job: Job) -> None:
        """Give back the room that was reserved for a job."""
        self._scheduler.release(job.room_s)
        job.room_s = 0.0

    def _refuse(self, job: Job, error: Exception) -> None:
        finish([job], _shown(error))

    def close(self, error: BaseException) -> bool:
        """End the threads; requests that wait get the error. False where a batch hangs."""
        with self._changed:
            end_s = monotonic() + (0.0 if self._closing else PATIENCE_S)
            self._closing, self._ended = True, error
            for number in self._jobs:
                self._scheduler.cancel(number)
            finish(self._jobs.values(), error)
            self._jobs.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, end_s - monotonic()))
        self.tokenizing.close()
        return not any(thread.is_alive() for thread in self._threads)

    def _draw(self) -> None:
        """What a thread does: run batches until the runner is closed."""
        while drawn := self._next():
            stage, batch = drawn
            try:
                self._run(stage, batch)
            finally:
                with self._changed:
                    self._began.pop(threading.get_ident(), None)
                    self._cores.give_back(stage)
                    if len(self._stages) > 1:  # other threads may wait for the cores
                        self._changed.notify_all()

    def _next(self) -> tuple[int, list[Held]] | None:
        """The next batch, as soon as there is one; None when the runner is closed."""
        with self._changed:
            while not (batch := self._scheduler.next_batch(self._cores.idle())):
                if self._closing:
                    return None
                self._changed.wait()
            stage = batch[0].stage
            self._cores.take(stage)
            now = self._began[threading.get_ident()] = self._clock()
            held = [(job, text) for text in batch if (job := self._jobs.get(text.request))]
            for job, _ in held:
                if job.began_s is None:
                    job.began_s = now
            return stage, held

    def _run(self, number: int, batch: Sequence[Held]) -> None:
        """Run one batch; where the engine fails, its halves."""
        stage, begin = self._stages[number], self._clock()
        if not batch:
            return
        try:
            tokens = _joined([job.waiting(text.place) for job, text in batch])
            outputs = stage.streams.forward(tokens, np.arange(len(batch)))
            unsure = set(stage.hands_on(outputs, tokens.truncated).tolist())
        except Exception as error:  # noqa: BLE001 - a stream's thread must not end
            self._on_batch(_shape(number, batch, self._clock() - begin, failed=True))
            self._halve(number, batch, error)
            return
        ran = _shape(number, batch, self._clock() - begin, handed_on=len(unsure))
        self._on_batch(ran)
        self.last_answer_s = self._clock()
        self._store(number, batch, outputs, unsure)
        if unsure:
            self._hand_on(number + 1, [batch[place] for place in sorted(unsure)])

    def _halve(self, stage: int, batch: Sequence[Held], error: Exception) -> None:
        if len(batch) == 1:
            self._fail(batch, _shown(error))
            return
        with self._changed:
            batch = [(job, text) for job, text in batch if text.request in self._jobs]
        middle = (len(batch) + 1) // 2
        self._run(stage, batch[:middle])
        self._run(stage, batch[middle:])

    def _store(
        self, stage: int, batch: Sequence[Held], outputs: Outputs, unsure: Collection[int]
    ) -> None:
        """Keep the outputs of the texts of which the stage is sure, and settle their requests."""
        finite = outputs.finite.tolist()
        kept = [place for place, fine in enumerate(finite) if fine and place not in unsure]
        finished = []
        with self._changed:
            self._began.pop(threading.get_ident(), None)  # before anybody hears of the answers
            for place in kept:
                job, text = batch[place]
                if job.outputs_of[text.place] is None:
                    job.outputs_of[text.place] = outputs, place
                    job.stages[text.place] = stage
                    job.left -= 1
                    if not job.left:
                        finished.append(job)
            counts = [0] * len(self._stages)
            counts[stage] = len(kept)
            warning = self._watch.count(counts)
        if warning:
            self.drifts += 1
            log.warning("%s: %s", self._name, warning)
        finish(finished)
        bad = [
            held for place, held in enumerate(batch) if not finite[place] and place not in unsure
        ]
        self._fail(bad, NonFinite("the model's output for a text is not finite"))

    def _fail(self, batch: Sequence[Held], error: HastenError) -> None:
        if not batch:
            return
        with self._changed:
            for _, text in batch:
                self._scheduler.cancel(text.request)
        finish([job for job, _ in batch], error)

    def _hand_on(self, stage: int, batch: Sequence[Held]) -> None:
        """Let texts wait for the next stage, as that stage reads them."""
        if self.tokenizing.alike(stage - 1, stage):
            self._queue(stage, batch)
            return
        try:
            self.tokenizing.later.submit(partial(self._retokenize, stage, batch))
        except RuntimeError:  # the runner is being closed, and has told the requests
            return

    def _retokenize(self, stage: int, batch: Sequence[Held]) -> None:
        try:
            tokens = self.tokenizing.encode([job.texts[t.place] for job, t in batch], stage)
        except Exception as error:  # noqa: BLE001 - nobody waits for this call
            self._fail(batch, _shown(error))
            return
        for place, (job, text) in enumerate(batch):
            job.later[text.place] = (tokens, place)
        self._queue(stage, batch)

    def _queue(self, stage: int, batch: Sequence[Held]) -> None:
        with self._changed:
            alive = [(job, text) for job, text in batch if text.request in self._jobs]
            lengths = []
            for job, text in alive:
                tokens, place = job.waiting(text.place)
                lengths.append(max(int(tokens.lengths[place]), 1))
            self._scheduler.hand_on([text for _, text in alive], stage, lengths)
            self._changed.notify_all()


def _scheduled(loaded: LoadedStage) -> Stage:
    """What the scheduler has to know of a stage."""
    plan = loaded.stage.plan
    largest = max(plan.strategy.batch_size, _LARGEST_BATCH)
    return Stage(loaded.cost or CostModel(_UNMEASURED), largest, plan.max_batch_latency_s)


def _shown(error: Exception) -> HastenError:
    """An error whose message may be shown; what is unexpected goes into the log."""
    if isinstance(error, HastenError):
        return error
    log.error("a batch failed unexpectedly", exc_info=error)
    return EngineError("the engine failed unexpectedly; the server's log says more")


def _shape(
    stage: int, batch: Sequence[Held], latency_s: float, *, handed_on: int = 0, failed: bool = False
) -> Ran:
    lengths = [text.length for _, text in batch]
    padded = max(lengths) * len(batch)
    return Ran(stage, len(batch), sum(lengths), padded, latency_s, handed_on, failed)


def _columns(job: Job) -> list[int]:
    """Columns that each window of a job needs in a batch."""
    assert job.windows
    columns: list[int] = job.windows.columns.tolist()
    return columns


def _joined(texts: Sequence[tuple[Tokens, int]]) -> Tokens:
    """Texts of several requests as one."""
    parts = []
    for _, same in groupby(texts, lambda text: id(text[0])):
        together = list(same)
        tokens, place = together[0]
        if len(together) == 1:
            parts.append(tokens.between(place, place + 1))
        else:
            parts.append(tokens.select([place for _, place in together]))
    return Tokens.concatenate(parts) if len(parts) > 1 else parts[0]
