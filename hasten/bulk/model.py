"""Rows through the model: texts, tokens, batches, outputs, answers.

Which rows share a batch depends on the rows of one shard and the bundle alone, never on what else
runs or ran: whatever is interrupted and done again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hasten.bulk.columns import Naming
from hasten.errors import EngineError, HastenError, InputError
from hasten.inputs.corpus import as_text
from hasten.inputs.formats import Rows
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.records import Shard, Tally
from hasten.runtime.batching import plan
from hasten.runtime.predictor import Predictor

Batch = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answered:
    """A shard with its answers: one row of ``table`` for each row that was read.

    ``errors`` has the rows without an answer, by index.
    """

    shard: Shard
    rows: Rows
    table: pa.Table
    tally: Tally
    errors: dict[int, HastenError]


class Model:
    """A loaded bundle as bulk runs use it: its batches may run while texts are being prepared."""

    def __init__(self, predictor: Predictor) -> None:
        stage = predictor.bundle.stages[0]
        self.predictor = predictor
        self._tokenizer = TextTokenizer.load(
            stage.tokenizer, stage.model.max_length, stage.plan.candidate.threads
        )

    def prepare(self, shard: Shard, rows: Rows, text_column: str) -> Work:
        """Tokenize and plan a shard; of equal token sequences one is run."""
        texts, errors = _texts(rows, text_column)
        tokens = self._tokenizer.encode(texts)
        kept, copies = _distinct(tokens)
        distinct = tokens.select(kept)
        bundle = self.predictor.bundle
        batches = plan(
            np.maximum(distinct.lengths, 1),  # some tokenizers make nothing of an empty text
            bundle.plan.strategy,
            self.predictor.cost,
            max_batch_latency_s=bundle.plan.max_batch_latency_s,
        )
        # Rows that cannot be read take no part; they point nowhere.
        places = np.full(len(rows), -1, np.int64)
        readable = np.array([i for i in range(len(rows)) if i not in errors], np.int64)
        places[readable] = copies
        return Work(shard, rows, distinct, batches, places, errors, self.predictor)


@dataclass(slots=True)
class Work:
    """One shard on its way through the model.

    Attributes:
        shard: which one.
        rows: what was read.
        tokens: the distinct token sequences of its texts.
        batches: indices into ``tokens``, to be run in any order.
        places: int64 [rows], each row's index into ``tokens``; -1 where it could not be read.
        unread: why not.
        predictor: the model.
    """

    shard: Shard
    rows: Rows
    tokens: Tokens
    batches: Sequence[Batch]
    places: NDArray[np.int64]
    unread: dict[int, HastenError]
    predictor: Predictor
    _done: list[tuple[Batch, NDArray[np.float32]]] = field(default_factory=list)
    _failed: dict[int, EngineError] = field(default_factory=dict)

    def run(self, batch: Batch) -> None:
        """Run a batch on the caller's thread. Where the engine fails, single texts fail alone."""
        try:
            outputs = self.predictor.streams.forward(self.tokens, batch)
        except EngineError as error:
            if len(batch) == 1:
                self._failed[int(batch[0])] = error
                return
            middle = len(batch) // 2
            self.run(batch[:middle])
            self.run(batch[middle:])
        else:
            self._done.append((batch, outputs))

    def finish(self, naming: Naming) -> Answered:
        """The answers, once all batches have run."""
        outputs = self._outputs()
        errors = self._all_errors(outputs)
        table = self.predictor.task.table(
            np.nan_to_num(outputs), self.predictor.bundle.model.labels
        )
        places = [None if i in errors else place for i, place in enumerate(self.places.tolist())]
        chosen = table.take(pa.array(places, pa.int64()))
        return Answered(
            self.shard,
            self.rows,
            naming.named(chosen, errors),
            self._tally(len(errors)),
            errors,
        )

    def _outputs(self) -> NDArray[np.float32]:
        """Of the distinct sequences, in their order; nan where the engine failed."""
        width = self._done[0][1].shape[1] if self._done else self.predictor.bundle.columns
        outputs = np.full((len(self.tokens), width), np.nan, np.float32)
        for batch, rows in self._done:
            outputs[batch] = rows
        return outputs

    def _all_errors(self, outputs: NDArray[np.float32]) -> dict[int, HastenError]:
        unusable = set(np.flatnonzero(~np.isfinite(outputs).all(axis=1)).tolist())
        errors = dict(self.unread)
        for index, place in enumerate(self.places.tolist()):
            if place in unusable:
                errors[index] = self._problem(index, place)
        return dict(sorted(errors.items()))

    def _problem(self, index: int, place: int) -> EngineError:
        where = self.rows.where(index)
        if place in self._failed:
            problem = self._failed[place]
            error = EngineError(f"{where}: {problem.message}", fix=problem.fix)
            error.__cause__ = problem
            return error
        return EngineError(
            f"{where}: non_finite: the model's output for this text is not a number",
            fix="Tune the model again, or check its weights.",
        )

    def _tally(self, errors: int) -> Tally:
        lengths = self.tokens.lengths
        padded = sum(len(batch) * int(lengths[batch].max()) for batch in self.batches)
        readable = len(self.rows) - len(self.unread)
        return Tally(
            rows=len(self.rows),
            errors=errors,
            duplicates=readable - len(self.tokens),
            tokens=int(lengths.sum()),
            padded_tokens=padded,
        )


def _texts(rows: Rows, column: str) -> tuple[list[str], dict[int, HastenError]]:
    """The texts of the rows that can be read, and what is wrong with the others."""
    texts: list[str] = []
    errors: dict[int, HastenError] = dict(rows.errors)
    values: Sequence[Any] = rows.column(column)
    for index, value in enumerate(values):
        if index in errors:
            continue
        try:
            texts.append(as_text(value, rows.where(index), column))
        except InputError as error:
            errors[index] = error
    return texts, errors


def _distinct(tokens: Tokens) -> tuple[list[int], list[int]]:
    """The first text of each token sequence, and for every text which of these it is."""
    first: dict[bytes, int] = {}
    kept: list[int] = []
    copies: list[int] = []
    offsets = tokens.offsets.tolist()
    for index in range(len(tokens)):
        key = tokens.ids[offsets[index] : offsets[index + 1]].tobytes()
        place = first.setdefault(key, len(kept))
        if place == len(kept):
            kept.append(index)
        copies.append(place)
    return kept, copies
