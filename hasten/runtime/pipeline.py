"""Texts in, outputs out: the one path that is measured, proved and shipped.

The tuner's worker processes and a loaded bundle run the same code, so that what was measured is
what is used: tokenize, plan the batches, run them on the session's streams, and put the outputs
back into the input's order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten import tasks
from hasten.engines.base import Session
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.records import ModelInfo, Strategy, Text
from hasten.runtime.batching import CostModel, padding_share, plan, predict_s, shapes
from hasten.tasks import Outputs, Task

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, eq=False)
class PipelineRun:
    """One pass of texts through the pipeline.

    ``outputs`` and ``encoded`` are in the input's order. ``total_s`` covers everything from
    the texts to the outputs, ``tokenize_s`` and ``plan_s`` parts of it. ``batch_latency_s`` holds
    a time per batch, in the order in which they ran. ``predicted_s`` is what the cost table had
    promised for the batches, where there was one.
    """

    outputs: Outputs
    encoded: Tokens
    total_s: float
    tokenize_s: float
    plan_s: float
    batch_latency_s: tuple[float, ...]
    texts: int
    tokens: int
    padding_share: float
    predicted_s: float | None

    @property
    def timings(self) -> dict[str, Any]:
        """All but texts, tokens and outputs, as JSON values."""
        return {
            "texts": self.texts,
            "total_s": self.total_s,
            "tokenize_s": self.tokenize_s,
            "plan_s": self.plan_s,
            "padding_share": self.padding_share,
            "predicted_s": self.predicted_s,
            "batch_latency_s": list(self.batch_latency_s),
        }

    def without_texts(self, *, outputs: bool) -> PipelineRun:
        """The same run without tokens, and unless they are wanted, without outputs."""
        kept = self.outputs if outputs else self.outputs.select([])
        encoded = replace(self.encoded.select([]), pieces=None)  # they hold a whole tokenizer
        return replace(self, encoded=encoded, outputs=kept)


class Streams:
    """Runs batches on a session, as many at a time as the candidate has streams."""

    def __init__(
        self, session: Session, streams: int, info: ModelInfo, clock: Clock = time.perf_counter
    ) -> None:
        self._session = session
        self.count = streams
        self.task = tasks.of(info)
        self._info = info
        self._clock = clock
        # One stream runs on the caller's thread: a hand-over costs more than a short batch.
        self._pool = ThreadPoolExecutor(streams, "hasten-stream") if streams > 1 else None

    def run(
        self, tokens: Tokens, batches: Sequence[NDArray[np.int64]]
    ) -> tuple[Outputs, tuple[float, ...]]:
        """Run all batches.

        Returns:
            The outputs, in the order of ``tokens``, and the seconds that each batch took.

        Raises:
            EngineError: a batch failed; the batches not yet begun are left out.
        """
        results: list[Outputs | None] = [None] * len(batches)
        latency_s = [0.0] * len(batches)

        def one(number: int) -> None:
            begin = self._clock()
            results[number] = self.forward(tokens, batches[number])
            latency_s[number] = self._clock() - begin

        self._spread(one, len(batches))
        outputs = Outputs.concatenate([part for part in results if part is not None])
        return outputs.select(np.argsort(np.concatenate(list(batches)))), tuple(latency_s)

    def time_shape(self, batch_size: int, length: int) -> float:
        """Seconds that one full batch of this shape costs while all streams are busy.

        Every stream runs the shape once, at the same time; the wall-clock time is divided by
        the number of streams, which makes it comparable between candidates and additive over
        the batches of a plan.
        """
        # The arithmetic is the same whatever the ids say, but some models look for their last
        # token.
        ids = np.array(self._info.example(batch_size, length), dtype=np.int64)
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        inputs = {n: values.get(n, np.zeros_like(ids)) for n in self._info.input_names}
        begin = self._clock()
        self._spread(lambda _: self._session.run(inputs), self.count)
        return (self._clock() - begin) / self.count

    def close(self) -> None:
        """End the streams' threads and release the session."""
        if self._pool:
            self._pool.shutdown()
        self._session.close()

    def forward(self, tokens: Tokens, batch: NDArray[np.int64]) -> Outputs:
        """Run one batch on the caller's thread; as many threads may do so as there are streams.

        Args:
            tokens: of all texts.
            batch: int64 [n], which of them.

        Returns:
            Those of the n texts, in the order of ``batch``.

        Raises:
            EngineError: the engine failed.
        """
        padded = tokens.batch(batch)
        raw = self._session.run(padded.inputs(self._info.input_names, self._info.pad_token_id))
        return self.task.gather(raw, padded)

    def _spread(self, task: Callable[[int], object], count: int) -> None:
        """Call ``task(0) ... task(count - 1)``, in that order of starting, on all streams."""
        if self._pool is None:
            for number in range(count):
                task(number)
            return
        numbers = _Shared(iter(range(count)))

        def drain() -> None:
            for number in numbers:
                try:
                    task(number)
                except BaseException:
                    numbers.stop()
                    raise

        streams = [self._pool.submit(drain) for _ in range(min(self.count, count))]
        # All of them: what still runs when an error is raised would overlap with the next call.
        wait(streams)
        for stream in streams:
            stream.result()


class _Shared(Iterator[int]):
    """An iterator that several threads may draw from."""

    def __init__(self, inner: Iterator[int]) -> None:
        self._inner = inner
        self._lock = threading.Lock()

    def __next__(self) -> int:
        with self._lock:
            return next(self._inner)

    def stop(self) -> None:
        with self._lock:
            self._inner = iter(())


class Pipeline:
    """A model that is ready for texts: tokenizer, batch plan and streams together."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        streams: Streams,
        *,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.tokenizer = tokenizer
        self.streams = streams
        self.task = streams.task
        self._clock = clock

    def close(self) -> None:
        """Release the model and its threads."""
        self.streams.close()

    def run(
        self,
        texts: Sequence[Text],
        strategy: Strategy,
        cost: CostModel | None = None,
        max_batch_latency_s: float | None = None,
        task: Task | None = None,
    ) -> PipelineRun:
        """Answer all texts, batched by ``strategy``. ``texts`` must not be empty.

        ``task`` is the model's own with other settings, where the caller changed any.
        """
        begin = self._clock()
        tokens = (task or self.task).encode(self.tokenizer, texts)
        tokenized = self._clock()
        windows = tokens.windows
        lengths = windows.columns
        batches = plan(lengths, strategy, cost, max_batch_latency_s=max_batch_latency_s)
        planned = self._clock()
        outputs, batch_latency_s = self.streams.run(windows, batches)
        end = self._clock()
        return PipelineRun(
            outputs=outputs.regrouped(tokens.parts),
            encoded=tokens,
            total_s=end - begin,
            tokenize_s=tokenized - begin,
            plan_s=planned - tokenized,
            batch_latency_s=batch_latency_s,
            texts=len(texts),
            tokens=int(tokens.lengths.sum()),
            padding_share=padding_share(lengths, batches),
            predicted_s=predict_s(lengths, batches, cost) if cost else None,
        )

    def shapes(
        self,
        texts: Sequence[Text],
        strategy: Strategy,
        cost: CostModel | None = None,
        max_batch_latency_s: float | None = None,
    ) -> set[tuple[int, int]]:
        """The batch shapes, texts by tokens, in which :meth:`run` would answer ``texts``."""
        lengths = self.task.encode(self.tokenizer, texts).windows.columns
        batches = plan(lengths, strategy, cost, max_batch_latency_s=max_batch_latency_s)
        return shapes(lengths, batches)

    def run_one_by_one(self, texts: Sequence[Text]) -> PipelineRun:
        """Answer the texts one call at a time, as a caller does who waits for each answer.

        ``batch_latency_s`` then holds the whole time of each call, tokenizing included.
        """
        single = Strategy("arrival", 1)
        runs = [self.run([text], single) for text in texts]
        return PipelineRun(
            outputs=Outputs.concatenate([run.outputs for run in runs]),
            encoded=Tokens.concatenate([run.encoded for run in runs]),
            total_s=sum(run.total_s for run in runs),
            tokenize_s=sum(run.tokenize_s for run in runs),
            plan_s=sum(run.plan_s for run in runs),
            batch_latency_s=tuple(run.total_s for run in runs),
            texts=len(texts),
            tokens=sum(run.tokens for run in runs),
            padding_share=0.0,
            predicted_s=None,
        )
