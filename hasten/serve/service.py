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
from hasten.inputs.tokenization import Tokens
from hasten.records import Text
from hasten.runtime.predictor import Predictor, load
from hasten.serve.running import Job, Ran, Runner
from hasten.serve.vocabulary import Vocabulary
from hasten.tasks import Encoded, Outputs

_CHARACTERS_PER_TOKEN = 4.0
"""Of English and French text, about; corrected by what the tokenizer makes of the texts served."""

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
        encoded: these texts.
        tokens: of each text, as the first stage reads it: int64 [n].
        truncated: which texts were longer than the first stage reads, bool [n].
        tokenize_s: until the tokens were there.
        queue_s: from then until the first of the texts ran.
        inference_s: from then until the last answer.
        stages: which stage of the bundle answered each, from 0: int64 [n].
    """

    outputs: Outputs
    encoded: Encoded
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    tokenize_s: float
    queue_s: float
    inference_s: float
    stages: NDArray[np.int64]


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
        self._characters_per_token = _CHARACTERS_PER_TOKEN
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
        limit_s = min(deadline_s or math.inf, self.limits.deadline_s)
        begin = self._clock()
        try:
            async with asyncio.timeout(limit_s):
                tokens = await self._tokenized(tuple(texts), truncate=truncate)
                tokenized = self._clock()
                job = await self._run(texts, tokens)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer after {limit_s:.1f} s") from None
        end = self._clock()
        began = job.began_s or end
        return Answered(
            job.outputs,
            Encoded(texts, tokens),
            tokens.lengths,
            tokens.truncated,
            tokenized - begin,
            began - tokenized,
            end - began,
            job.stages,
        )

    async def _tokenized(self, texts: tuple[Text, ...], *, truncate: bool) -> Tokens:
        """The tokens of texts for which there is room."""
        if not texts:
            raise InputError("there are no texts", fix="Send at least one.")
        if len(texts) > self.limits.texts:
            raise InputError(
                f"{len(texts):,} texts are too many for one request",
                fix=f"Send at most {self.limits.texts:,} at once.",
            )
        longest = self.predictor.stages.first.stage.max_length
        per_token = self._characters_per_token
        lengths = [min(int(_characters(text) / per_token) + 2, longest) for text in texts]
        cost_s = self._runner.reserve(lengths)
        loop = asyncio.get_running_loop()
        try:
            pool = self._runner.tokenizing.pool
            return await loop.run_in_executor(pool, self._encode, texts, truncate)
        finally:
            self._runner.release(cost_s)

    def _encode(self, texts: tuple[Text, ...], truncate: bool) -> Tokens:
        tokens = self._runner.tokenizing.encode(texts)
        whole = np.flatnonzero(~tokens.truncated).tolist()  # of the others, the end was not read
        if whole:
            read = sum(_characters(texts[place]) for place in whole)
            seen = read / max(int(tokens.lengths[whole].sum()), 1)
            self._characters_per_token += 0.02 * (max(seen, 0.5) - self._characters_per_token)
        if not truncate:
            self._require_short(texts, tokens)
        return tokens

    def _require_short(self, texts: tuple[Text, ...], tokens: Tokens) -> None:
        """Refuse texts of which the last stage, which reads the most, would not read the end."""
        last = len(self.predictor.stages.loaded) - 1
        if last:
            tokens = self._runner.tokenizing.encode(texts, last)
        if tokens.truncated.any():
            place = int(tokens.truncated.argmax())
            longest = self.predictor.stages.loaded[last].stage.max_length
            raise InputError(
                f"text {place} is longer than the {longest} tokens that the model reads",
                fix="Let it be cut (truncate: true), or split it.",
            )

    async def _run(self, texts: Sequence[Text], tokens: Tokens) -> Job:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settled(error: BaseException | None) -> None:
            if not future.done():
                future.set_exception(error) if error else future.set_result(None)

        def settle(error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(settled, error)

        job = Job(texts, tokens, settle)
        number = self._runner.admit(job)
        try:
            await future
        finally:
            self._runner.leave(number)
        return job

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


def _characters(text: Text) -> int:
    """Of a text, or of both texts of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))
