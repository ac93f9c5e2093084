"""The texts of one request on their way: to be tokenized, waiting, running, answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from hasten.inputs.tokenization import Tokens
from hasten.records import Text
from hasten.tasks import Outputs


@dataclass(slots=True, eq=False)
class Job:
    """The texts of one request. Once submitted, it is changed under the runner's lock only.

    Attributes:
        texts: at least one.
        truncate: whether texts that are too long are cut, and not refused.
        answered: is done once all texts have outputs, or has the error.
        number: names the job while it is with the runner.
        room_s: seconds of work that are reserved for it until it is tokenized.
        tokens: of these texts, as stage 1 reads them.
        windows: what runs and is counted: the texts, or all windows of texts that have several.
        tokenized_s: when they were tokenized.
        began_s: when the first text ran.
        outputs_of: of each window the outputs of its batch and its place there, once it has run.
        stages: which stage answered each window, from 0.
        left: how many outputs are missing.
        later: the tokens of windows that wait for a later stage, by place.
    """

    texts: Sequence[Text]
    truncate: bool
    answered: asyncio.Future[None]
    number: int = -1
    room_s: float = 0.0
    tokens: Tokens | None = None
    windows: Tokens | None = None
    tokenized_s: float | None = None
    began_s: float | None = None
    outputs_of: list[tuple[Outputs, int] | None] = field(default_factory=list)
    stages: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    left: int = 1
    later: dict[int, tuple[Tokens, int]] = field(default_factory=dict)

    def read_as(self, tokens: Tokens) -> None:
        """Take the tokens of its texts."""
        self.tokens, self.windows = tokens, tokens.windows
        self.left = len(self.windows)
        self.outputs_of = [None] * self.left
        self.stages = np.zeros(self.left, np.int64)

    @property
    def outputs(self) -> Outputs:
        """The outputs of all texts, once none is left."""
        assert self.tokens
        held = [one for one in self.outputs_of if one]
        batches = list({id(outputs): outputs for outputs, _ in held}.values())
        begins = np.cumsum([0, *map(len, batches)]).tolist()
        first = {id(outputs): begin for outputs, begin in zip(batches, begins, strict=False)}
        whole = Outputs.concatenate(batches) if len(batches) > 1 else batches[0]
        places = [first[id(outputs)] + place for outputs, place in held]
        return whole.select(places).regrouped(self.tokens.parts)

    def waiting(self, place: int) -> tuple[Tokens, int]:
        """Where the tokens of a window are, as its present stage reads them."""
        if place in self.later:
            return self.later[place]
        assert self.windows
        return self.windows, place


def finish(jobs: Iterable[Job], error: BaseException | None = None) -> None:
    """Wake those who wait for these jobs, each on its event loop; jobs that are done stay so."""
    for loop, together in groupby(jobs, lambda job: job.answered.get_loop()):
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(finish_here, list(together), error)


def finish_here(jobs: Iterable[Job], error: BaseException | None = None) -> None:
    """The same on the event loop itself."""
    for job in jobs:
        if not job.answered.done():
            if error:
                job.answered.set_exception(error)
            else:
                job.answered.set_result(None)
