"""One bundle that answers many callers at once.

The event loop never computes: texts are tokenized in a pool of threads with a tokenizer each, and
threads of :mod:`hasten.serve.running` run the batches. The engines release the interpreter's lock
while they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError
from hasten.records import Text
from hasten.runtime.predictor import Predictor, load
from hasten.serve.jobs import Job, finish_here
from hasten.serve.running import Ran, Runner
from hasten.serve.vocabulary import Vocabulary
from hasten.tasks import Encoded, Outputs

_CANARY = "Is the model there?"
"""A text, or both texts of a pair, that is run to see whether the engine answers."""


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
        encoded: these texts, with their tokens as the first stage reads them.
        tokenize_s: until the tokens were there.
        queue_s: from then until the first of the texts ran.
        inference_s: from then until the last answer.
        stages: which stage of the bundle answered each, from 0: int64 [n].
    """

    outputs: Outputs
    encoded: Encoded
    tokenize_s: float
    queue_s: float
    inference_s: float
    stages: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Of all texts, as the first stage reads them."""
        return len(self.encoded.tokens.ids)

    @property
    def timing(self) -> str:
        """Where the time went, in milliseconds, and the last stage that was needed.

        It is the value of HTTP's header Server-Timing (https://www.w3.org/TR/server-timing/).
        """
        parts = (
            f"tokenize;dur={1000 * self.tokenize_s:.3f}",
            f"queue;dur={1000 * self.queue_s:.3f}",
            f"inference;dur={1000 * self.inference_s:.3f}",
            f'stage;desc="{int(self.stages.max()) + 1}"',
        )
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service takes.

    Attributes:
        queue_s: seconds of work that may wait; beyond that, requests are refused.
        deadline_s: how long a request may take.
        texts: the most texts of a request.
        silence_s: how long the engine may give no answer before the service is not ready.
    """

    queue_s: float = 10.0
    deadline_s: float = 60.0
    texts: int = 10_000
    silence_s: float = 15.0


class Service:
    """A loaded bundle with its queue.

    Args:
        name: what callers call the model.
        predictor: the loaded bundle, which the service closes in the end.
        limits: what it takes.
        on_batch: is called with every batch, on a stream's thread.
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
        self.name = name
        self.predictor = predictor
        self.limits = limits
        self._clock = clock
        self._runner = Runner(name, predictor.stages.loaded, limits.queue_s, on_batch, clock)
        self.vocabulary = Vocabulary(predictor.stages.first.stage.tokenizer)
        self._held = 0
        self._released = asyncio.Event()
        self._closing = False

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
        return self._runner.backlog_s

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        return self._runner.waiting

    @property
    def drifts(self) -> int:
        """How often texts were found to be unlike those that proved the bundle."""
        return self._runner.drifts

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return self._held

    @property
    def ready(self) -> bool:
        """Whether requests are taken, and the engine has answered recently."""
        silent_s = self._clock() - self._runner.last_answer_s
        hangs_s = self._runner.longest_running_s
        return not self._closing and max(silent_s, hangs_s) < self.limits.silence_s

    @property
    def hangs(self) -> bool:
        """Whether a batch has been running for longer than a request may take."""
        return self._runner.longest_running_s > max(self.limits.deadline_s, self.limits.silence_s)

    async def canary(self) -> None:
        """Run one text where nothing has been answered for a while; :attr:`ready` follows."""
        if self._clock() - self._runner.last_answer_s < self.limits.silence_s / 3:
            return
        with contextlib.suppress(Exception):  # what fails leaves the service not ready
            pairs = self.predictor.task.takes == "pairs"
            text = (_CANARY, _CANARY) if pairs else _CANARY
            await self.answer([text], deadline_s=self.limits.silence_s)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Answer one request: until it ends, the service is not closed.

        Raises:
            Draining: the service is being closed.
        """
        if self._closing:
            raise Draining
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._released.set()

    async def answer(
        self, texts: Sequence[Text], *, truncate: bool = True, deadline_s: float | None = None
    ) -> Answered:
        """The outputs for these texts. Where the caller is cancelled, they are given up.

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
        if self._closing and not self._held:
            raise Draining
        self._check(texts)
        begin = self._clock()
        limit_s = min(deadline_s or math.inf, self.limits.deadline_s)
        loop = asyncio.get_running_loop()
        job = Job(texts, truncate, loop.create_future())
        self._runner.submit(job)
        late = DeadlineExceeded(f"no answer after {limit_s:.1f} s")
        timer = loop.call_later(limit_s, finish_here, [job], late)
        try:
            await job.answered
        finally:
            timer.cancel()
            self._runner.leave(job)
        end = self._clock()
        tokenized, began, tokens = job.tokenized_s or end, job.began_s or end, job.tokens
        assert tokens
        return Answered(
            job.outputs,
            Encoded(texts, tokens),
            tokenized - begin,
            began - tokenized,
            end - began,
            job.stages,
        )

    def _check(self, texts: Sequence[Text]) -> None:
        """Refuse requests that hold no texts, or too many."""
        if not texts:
            raise InputError("there are no texts", fix="Send at least one.")
        if len(texts) > self.limits.texts:
            raise InputError(
                f"{len(texts):,} texts are too many for one request",
                fix=f"Send at most {self.limits.texts:,} at once.",
            )

    async def drain(self, patience_s: float) -> None:
        """Take nothing new, answer what was taken, and release the model."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._held:
                    self._released.clear()
                    await self._released.wait()
        await asyncio.to_thread(self.close)

    def refuse(self) -> None:
        """Take nothing new."""
        self._closing = True

    def close(self) -> None:
        """Release the model. Texts that still wait are given up."""
        self._closing = True
        self.vocabulary.close()
        if self._runner.close(Draining()):
            self.predictor.close()
