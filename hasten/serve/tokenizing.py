"""The threads that tokenize what comes, apart from the event loop and ahead of the engine.

What has come while a thread was busy is tokenized together: one call for ten short texts costs
little more than one for one. Long requests have a thread of their own, so that short ones never
wait for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

from hasten.errors import InputError
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.records import Text
from hasten.runtime.stages import LoadedStage
from hasten.serve.jobs import Job

_CHARACTERS_PER_TOKEN = 4.0
"""Of English and French text, about; corrected by what the tokenizer makes of the texts served."""

_LONG = 16 * 1024
"""Characters from which on a request is a long one; as many are tokenized together."""


class Tokenizing:
    """Threads that tokenize, with a tokenizer of each stage each.

    Args:
        name: of the model, for the threads' names.
        stages: of the bundle.
        ready: takes jobs that have tokens.
        failed: takes a job that cannot be tokenized, and why.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[LoadedStage],
        ready: Callable[[Sequence[Job]], None],
        failed: Callable[[Job, Exception], None],
    ) -> None:
        self._stages = stages
        self._ready, self._failed = ready, failed
        self._own = threading.local()
        self._characters_per_token = _CHARACTERS_PER_TOKEN
        self._queues: tuple[SimpleQueue[Job | None], ...] = (SimpleQueue(), SimpleQueue())
        self._threads = [
            threading.Thread(
                target=self._work, args=(queue,), name=f"hasten-tokenize-{name}", daemon=True
            )
            for queue in self._queues
        ]
        for thread in self._threads:
            thread.start()
        self.later = ThreadPoolExecutor(1, f"hasten-tokenize-again-{name}")

    def put(self, job: Job) -> None:
        """Tokenize a job soon."""
        self._queues[sum(map(_characters, job.texts)) > _LONG].put(job)

    def estimated(self, texts: Sequence[Text]) -> list[int]:
        """How many tokens texts have in stage 1, before they are tokenized."""
        per_token, longest = self._characters_per_token, self._stages[0].stage.max_length
        return [min(int(_characters(text) / per_token) + 2, longest) for text in texts]

    def encode(self, texts: Sequence[Text], stage: int = 0) -> Tokens:
        """Tokens of texts as a stage reads them, by a tokenizer of the thread that calls."""
        known: dict[int, TextTokenizer] = self._own.__dict__.setdefault("known", {})
        if stage not in known:
            read = self._stages[stage].stage
            known[stage] = TextTokenizer.load(read.tokenizer, read.max_length, 1)
        return self._stages[stage].task.encode(known[stage], texts)

    def alike(self, stage: int, other: int) -> bool:
        """Whether two stages read texts in the same way."""
        first, second = self._stages[stage].stage, self._stages[other].stage
        return (first.tokenizer, first.max_length) == (second.tokenizer, second.max_length)

    def close(self) -> None:
        """Let the threads end, once they have done what they are doing."""
        for queue in self._queues:
            queue.put(None)
        self.later.shutdown(wait=False, cancel_futures=True)

    def _work(self, queue: SimpleQueue[Job | None]) -> None:
        """What a thread does until it is ended."""
        while jobs := _together(queue):
            self._tokenize([job for job in jobs if not job.answered.done()])

    def _tokenize(self, jobs: Sequence[Job]) -> None:
        """Give jobs their tokens; where that fails for several, each by itself."""
        if not jobs:
            return
        try:
            tokens = self.encode([text for job in jobs for text in job.texts])
        except Exception as error:  # noqa: BLE001 - the thread must not end
            if len(jobs) == 1:
                self._failed(jobs[0], error)
                return
            for job in jobs:
                self._tokenize([job])
            return
        self._learn(jobs, tokens)
        begin = 0
        for job in jobs:
            job.read_as(tokens.between(begin, begin + len(job.texts)))
            begin += len(job.texts)
        self._ready([job for job in jobs if job.truncate or self._is_whole(job)])

    def _learn(self, jobs: Sequence[Job], tokens: Tokens) -> None:
        """Correct the estimate by texts that were read to their ends."""
        lengths, cut = tokens.lengths.tolist(), tokens.truncated.tolist()
        texts = (text for job in jobs for text in job.texts)
        whole = [
            (_characters(text), length)
            for text, length, short in zip(texts, lengths, cut, strict=True)
            if not short
        ]
        read = sum(length for _, length in whole)
        if read:
            seen = max(sum(characters for characters, _ in whole) / read, 0.5)
            self._characters_per_token += 0.02 * (seen - self._characters_per_token)

    def _is_whole(self, job: Job) -> bool:
        """Whether the last stage, which reads the most, reads all texts to their ends.

        If not, the job has failed.
        """
        last = len(self._stages) - 1
        tokens, longest = job.tokens, self._stages[last].stage.max_length
        assert tokens
        try:
            if last and (tokens.truncated.any() or not self._same_tokenizer(last)):
                tokens = self.encode(job.texts, last)
        except Exception as error:  # noqa: BLE001 - the thread must not end
            self._failed(job, error)
            return False
        if not tokens.truncated.any():
            return True
        place = int(tokens.truncated.argmax())
        too_long = InputError(
            f"text {place} is longer than the {longest} tokens that the model reads",
            fix="Let it be cut (truncate: true), or split it.",
        )
        self._failed(job, too_long)
        return False

    def _same_tokenizer(self, stage: int) -> bool:
        """Whether a stage splits texts as stage 1 does, which may cut them earlier."""
        return self._stages[0].stage.tokenizer == self._stages[stage].stage.tokenizer


def _together(queue: SimpleQueue[Job | None]) -> list[Job]:
    """The next jobs, as many as wait and may be tokenized together; none at the end."""
    jobs: list[Job] = []
    characters = 0
    job = queue.get()
    while job:
        jobs.append(job)
        characters += sum(map(_characters, job.texts))
        if characters > _LONG:
            return jobs
        try:
            job = queue.get_nowait()
        except Empty:
            return jobs
    if jobs:
        queue.put(None)  # for the next call
    return jobs


def _characters(text: Text) -> int:
    """Of a text, or of both texts of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))
