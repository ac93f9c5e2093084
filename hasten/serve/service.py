"""One bundle that answers many callers at once: tokenizing, the queue, and the streams' threads.

The event loop never computes: texts are tokenized in a pool of threads with a tokenizer each, and
every stream of the bundle is a thread that draws batches from the scheduler. The engines release
the interpreter's lock while they run.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BundleError, EngineError, InputError
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.records import CostTable, Text
from hasten.runtime.batching import CostModel
from hasten.runtime.predictor import Predictor, load
from hasten.runtime.stages import LoadedStage
from hasten.serve.scheduler import Scheduler, Stage, Waiting
from hasten.serve.vocabulary import Vocabulary
from hasten.tasks import Encoded, Outputs

log = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 4.0
"""Of English and French text, about; corrected by what the tokenizer makes of the texts served."""

_LARGEST_BATCH = 64

_UNMEASURED = CostTable((1,), (128,), ((0.02,),))
"""Costs of a bundle that was saved without a table: in proportion to the tokens."""


def _ignore(_: Ran) -> None:
    """No metrics are kept."""


class Draining(Exception):
    """The server is shutting down and takes no more requests."""


class DeadlineExceeded(Exception):
    """The answer was not there in time."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The outputs of a request's texts, in order, and where its time went.

    Attributes:
        outputs: of the n texts.
        encoded: these texts.
        tokens: of each text, int64 [n].
        truncated: which texts were longer than the model reads, bool [n].
        tokenize_s: until the tokens were there.
        queue_s: from then until the first of the texts ran.
        inference_s: from then until the last answer.
    """

    outputs: Outputs
    encoded: Encoded
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    tokenize_s: float
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class Ran:
    """One batch that has run, for the metrics: its shape and seconds."""

    stage: int
    texts: int
    tokens: int
    padded_tokens: int
    latency_s: float


@dataclass(slots=True, eq=False)
class _Request:
    """A request in flight. Its fields are touched under the service's lock only."""

    tokens: Tokens
    done: Callable[[BaseException | None], None]
    left: int
    outputs: list[Outputs | None] = field(default_factory=list)
    began_s: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service takes.

    Attributes:
        queue_s: seconds of work that may wait; beyond that, requests are refused.
        deadline_s: how long a request may take.
        texts: the most texts of a request.
    """

    queue_s: float = 10.0
    deadline_s: float = 60.0
    texts: int = 10_000


def _only_stage(predictor: Predictor) -> LoadedStage:
    """The stage that is served: stage 1 of several, alone, is not what was proved."""
    first, *later = predictor.stages.loaded
    if later:
        raise BundleError(
            f"{predictor.bundle.folder} has {1 + len(later)} stages, and the server runs one",
            fix="Answer files instead: hasten predict BUNDLE INPUT -o OUTPUT",
        )
    return first


class Service:
    """A loaded bundle with its queue. Open it inside the event loop that uses it.

    Args:
        name: what callers call the model.
        predictor: the loaded bundle, which the service closes in the end.
        limits: what it takes.
        on_batch: is told of every batch, on a stream's thread.
        clock: seconds.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        limits: Limits = Limits(),
        *,
        on_batch: Callable[[Ran], None] = _ignore,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        first = _only_stage(predictor)
        plan = first.stage.plan
        self._first = first
        self.name = name
        self.predictor = predictor
        self.limits = limits
        self._on_batch = on_batch
        self._clock = clock
        cost = first.cost or CostModel(_UNMEASURED)
        stage = Stage(cost, max(plan.strategy.batch_size, _LARGEST_BATCH), plan.max_batch_latency_s)
        self._scheduler = Scheduler([stage], limits.queue_s)
        self._requests: dict[int, _Request] = {}
        self._numbers = iter(range(2**62))
        self._characters_per_token = _CHARACTERS_PER_TOKEN
        self.vocabulary = Vocabulary(first.stage.tokenizer)
        self._changed = threading.Condition()
        self._idle = first.streams.count
        self._closing = False
        self._tokenizers = threading.local()
        self._tokenizing = ThreadPoolExecutor(2, f"hasten-tokenize-{name}")
        self._streams = [
            threading.Thread(target=self._draw, name=f"hasten-serve-{name}-{number}", daemon=True)
            for number in range(first.streams.count)
        ]
        self.last_answer_s = clock()
        for stream in self._streams:
            stream.start()

    @classmethod
    def open(
        cls,
        name: str,
        bundle: Path,
        limits: Limits = Limits(),
        *,
        trust: bool = False,
        on_batch: Callable[[Ran], None] = _ignore,
    ) -> Service:
        """Load a bundle and serve it.

        Raises:
            BundleError: no bundle, a damaged one, or one that must not or cannot run here.
            Unavailable: its engine is not installed.
            EngineError: its engine cannot load it.
        """
        return cls(name, load(bundle, trust=trust), limits, on_batch=on_batch)

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
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return len(self._requests)

    async def answer(
        self, texts: Sequence[Text], *, truncate: bool = True, deadline_s: float | None = None
    ) -> Answered:
        """The outputs for these texts.

        Args:
            texts: at least one; pairs, if that is what the model takes.
            truncate: cut texts that are too long, instead of refusing them.
            deadline_s: how long it may take, at most and by default the service's limit.

        Raises:
            InputError: too many texts, one that is too long, or one that cannot be encoded.
            Overloaded, TooLarge: no room for it.
            Draining: the service is being closed.
            DeadlineExceeded: it took too long; what was still waiting has been given up.
            EngineError: the engine failed on one of the texts.
        """
        begin = self._clock()
        self._require_room(texts)
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._tokenizing, self._encode, tuple(texts))
        if not truncate and tokens.truncated.any():
            place = int(tokens.truncated.argmax())
            longest = self._first.stage.max_length
            raise InputError(
                f"text {place} is longer than the {longest} tokens that the model reads",
                fix="Let it be cut (truncate: true), or split it.",
            )
        tokenized = self._clock()
        limit_s = min(deadline_s or math.inf, self.limits.deadline_s)
        request = await self._wait_for(tokens, limit_s - (tokenized - begin))
        end = self._clock()
        began = request.began_s or end
        return Answered(
            Outputs.concatenate([part for part in request.outputs if part is not None]),
            Encoded(texts, tokens),
            tokens.lengths,
            tokens.truncated,
            tokenized - begin,
            began - tokenized,
            end - began,
        )

    def _require_room(self, texts: Sequence[Text]) -> None:
        """Refuse what does not fit, before any work is done for it."""
        if not texts:
            raise InputError("there are no texts", fix="Send at least one.")
        if len(texts) > self.limits.texts:
            raise InputError(
                f"{len(texts):,} texts are too many for one request",
                fix=f"Send at most {self.limits.texts:,} at once.",
            )
        longest = self._first.stage.max_length
        lengths = [
            min(int(_characters(text) / self._characters_per_token) + 2, longest) for text in texts
        ]
        with self._changed:
            if self._closing:
                raise Draining
            self._scheduler.require_room(self._scheduler.expected_s(lengths))

    def _encode(self, texts: tuple[Text, ...]) -> Tokens:
        tokenizer = getattr(self._tokenizers, "one", None)
        if tokenizer is None:
            stage = self._first.stage
            tokenizer = TextTokenizer.load(stage.tokenizer, stage.max_length, 1)
            self._tokenizers.one = tokenizer
        tokens = self.predictor.task.encode(tokenizer, texts)
        seen = sum(map(_characters, texts)) / max(int(tokens.lengths.sum()), 1)
        self._characters_per_token += 0.02 * (max(seen, 0.5) - self._characters_per_token)
        return tokens

    async def _wait_for(self, tokens: Tokens, limit_s: float) -> _Request:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if not future.done():
                future.set_exception(error) if error else future.set_result(None)

        def done(error: BaseException | None) -> None:
            loop.call_soon_threadsafe(settle, error)

        request = _Request(tokens, done, len(tokens), [None] * len(tokens))
        with self._changed:
            if self._closing:
                raise Draining
            number = next(self._numbers)
            self._requests[number] = request
            lengths = np.maximum(tokens.lengths, 1).tolist()
            self._scheduler.admit(number, lengths, self._clock())
            self._changed.notify(len(lengths))
        try:
            await asyncio.wait_for(future, max(limit_s, 0.0))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer after {limit_s:.1f} s") from None
        finally:
            with self._changed:
                self._requests.pop(number, None)
                if request.left:
                    self._scheduler.cancel(number)
        return request

    def _draw(self) -> None:
        """What a stream's thread does: run batches until the service is closed."""
        while True:
            with self._changed:
                while not (batch := self._scheduler.next_batch(self._idle)):
                    if self._closing:
                        return
                    self._changed.wait()
                self._idle -= 1
                now = self._clock()
                held = [self._requests.get(text.request) for text in batch]
                for request in held:
                    if request and request.began_s is None:
                        request.began_s = now
            try:
                self._run([(r, text) for r, text in zip(held, batch, strict=True) if r])
            finally:
                with self._changed:
                    self._idle += 1

    def _run(self, batch: list[tuple[_Request, Waiting]]) -> None:
        """Run one batch; where the engine fails, its texts run alone, and fail alone."""
        if not batch:
            return
        tokens = Tokens.concatenate([r.tokens.select([text.place]) for r, text in batch])
        begin = self._clock()
        try:
            outputs = self._first.streams.forward(tokens, np.arange(len(batch)))
        except Exception as error:  # noqa: BLE001 - a stream's thread must not end
            if len(batch) == 1:
                self._fail(batch[0][0], error)
                return
            for one in batch:
                self._run([one])
            return
        lengths = tokens.lengths
        longest = int(lengths.max(initial=1))
        self._on_batch(
            Ran(
                batch[0][1].stage,
                len(batch),
                int(lengths.sum()),
                longest * len(batch),
                self._clock() - begin,
            )
        )
        self.last_answer_s = self._clock()
        self._store(batch, outputs)

    def _store(self, batch: list[tuple[_Request, Waiting]], outputs: Outputs) -> None:
        finished = []
        with self._changed:
            for place, (request, text) in enumerate(batch):
                request.outputs[text.place] = outputs.select([place])
                request.left -= 1
                if not request.left:
                    finished.append(request)
        for request in finished:
            request.done(None)

    def _fail(self, request: _Request, error: Exception) -> None:
        if not isinstance(error, EngineError):
            log.error("unexpected failure of a batch", exc_info=error)
            error = EngineError("the engine failed unexpectedly; the server's log says more")
        request.done(error)

    async def drain(self, patience_s: float) -> None:
        """Take nothing new, answer what was taken, and release the model."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = self._clock() + patience_s
        while self._requests and self._clock() < end:  # noqa: ASYNC110 - threads change it
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Release the model. Texts that still wait are given up."""
        with self._changed:
            self._closing = True
            for number in list(self._requests):
                self._scheduler.cancel(number)
                self._requests[number].done(Draining())
            self._changed.notify_all()
        for stream in self._streams:
            stream.join()
        self._tokenizing.shutdown()
        self.vocabulary.close()
        self.predictor.close()


def _characters(text: Text) -> int:
    """Of a text, or of both texts of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))
