"""Rows through the model: texts, tokens, batches, outputs, answers.

Which rows share a batch depends on the rows of one shard and the bundle alone, never on what else
runs or ran: whatever is interrupted and done again gives the same bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hasten.bulk.columns import Naming
from hasten.errors import EngineError, HastenError, InputError
from hasten.inputs.corpus import as_input
from hasten.inputs.formats import Rows
from hasten.inputs.tokenization import Tokens
from hasten.records import Shard, Tally, Text
from hasten.runtime.predictor import Predictor
from hasten.runtime.stages import LoadedStage
from hasten.tasks import Encoded, Outputs, Task


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


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Windows of texts that run together: indices into their stage's; stages count from 0."""

    stage: int
    windows: NDArray[np.int64]

    def halves(self) -> tuple[Batch, Batch]:
        """The same windows in two batches."""
        middle = len(self.windows) // 2
        return Batch(self.stage, self.windows[:middle]), Batch(self.stage, self.windows[middle:])


class Model:
    """A loaded bundle as bulk runs use it: its batches may run while texts are being prepared."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.stages = predictor.stages.loaded
        self.streams = tuple(stage.streams.count for stage in self.stages)
        self._tokenizers = [stage.tokenizer() for stage in self.stages]
        # The first stage's is used by the thread that prepares, the others by all streams.
        self._turns = [threading.Lock() for _ in self.stages]

    def prepare(self, shard: Shard, rows: Rows, text_column: str) -> Work:
        """Tokenize and plan a shard; of equal texts one is run."""
        pairs = self.predictor.task.takes == "pairs"
        columns = text_column.split(",", 1) if pairs else [text_column]
        texts, errors = _texts(rows, columns, self.predictor.task)
        tokens = self.encode(0, texts)
        # Equal tokens are equal answers; but what one stage reads alike, another may not.
        kept, copies = _distinct(_token_keys(tokens) if len(self.stages) == 1 else texts)
        # Rows that cannot be read take no part; they point nowhere.
        places = np.full(len(rows), -1, np.int64)
        readable = np.array([i for i in range(len(rows)) if i not in errors], np.int64)
        places[readable] = copies
        return Work(
            self,
            shard,
            rows,
            encoded=Encoded(texts, tokens),
            kept=kept,
            places=places,
            unread=errors,
        )

    def encode(self, stage: int, texts: Sequence[Text]) -> Tokens:
        """Tokens of ``texts`` as a stage reads them. Any thread may ask."""
        with self._turns[stage]:
            return self.stages[stage].task.encode(self._tokenizers[stage], texts)


class _Pass:
    """Some of a work's texts on their way through one stage."""

    def __init__(
        self, stage: LoadedStage, number: int, texts: NDArray[np.int64], tokens: Tokens
    ) -> None:
        """Plan the batches.

        Args:
            stage: what runs them.
            number: which one it is, from 0.
            texts: int64 [n], which of the work's distinct texts.
            tokens: of these n.
        """
        self.stage, self.number, self.texts = stage, number, texts
        self.windows, self._parts, self._truncated = tokens.windows, tokens.parts, tokens.truncated
        self._text = np.arange(len(texts))
        if self._parts is not None:
            self._text = np.repeat(self._text, np.diff(self._parts))
        self.batches = [Batch(number, batch) for batch in stage.plan(self.windows)]
        self.failed: dict[int, EngineError] = {}
        self._done: list[tuple[NDArray[np.int64], Outputs]] = []

    def run(self, batch: Batch) -> None:
        """Run a batch on the caller's thread. Where the engine fails, single texts fail alone."""
        try:
            outputs = self.stage.streams.forward(self.windows, batch.windows)
        except EngineError as error:
            if len(batch.windows) == 1:
                self.failed[int(self._text[batch.windows[0]])] = error
                return
            for half in batch.halves():
                self.run(half)
        else:
            self._done.append((batch.windows, outputs))

    def outputs(self) -> tuple[Outputs, NDArray[np.int64]] | None:
        """Of those of its texts that ran, and which these are; None if none has."""
        if not self._done:
            return None
        ran = np.concatenate([windows for windows, _ in self._done])
        outputs = Outputs.concatenate([outputs for _, outputs in self._done])
        if self._parts is None:
            return outputs, ran
        order = np.argsort(ran)
        # The windows that ran, in the order of the texts; of some texts not all have.
        counts = np.diff(self._parts)
        whole = np.bincount(self._text[ran], minlength=len(counts)) == counts
        order = order[whole[self._text[ran[order]]]]
        parts = np.concatenate([[0], np.cumsum(counts[whole])])
        return outputs.select(order).regrouped(parts), np.flatnonzero(whole)

    def hands_on(self) -> NDArray[np.int64]:
        """Which of its texts the next stage answers; not those on which the engine failed."""
        found = self.outputs() if self.stage.stage.hands_on else None
        if found is None:
            return np.empty(0, np.int64)
        outputs, ran = found
        # In a fixed order: which batch ended first is chance.
        return np.sort(ran[self.stage.hands_on(outputs, self._truncated[ran])])

    @property
    def padded_tokens(self) -> int:
        """What its batches compute, padding included."""
        lengths = self.windows.lengths
        return sum(len(b.windows) * int(lengths[b.windows].max()) for b in self.batches)


class Work:
    """One shard on its way through the model, stage by stage.

    Attributes:
        shard: which one.
        rows: what was read.
        places: int64 [rows], each row's index among the distinct texts; -1 where it could not be
            read.
        unread: why not.
        batches: what is to be run first, in any order; :meth:`further` says what follows.
    """

    def __init__(
        self,
        model: Model,
        shard: Shard,
        rows: Rows,
        *,
        encoded: Encoded,
        kept: Sequence[int],
        places: NDArray[np.int64],
        unread: dict[int, HastenError],
    ) -> None:
        """Plan stage 1.

        Args:
            model: what runs the texts.
            shard: which one.
            rows: what was read.
            encoded: the texts of the rows that could be read, as stage 1 reads them.
            kept: which of these are distinct.
            places: each row's index among them.
            unread: what is wrong with the others.
        """
        self.shard, self.rows, self.places, self.unread = shard, rows, places, unread
        self._encoded, self._model = encoded, model
        self._texts = [encoded.texts[index] for index in kept]
        every = np.arange(len(kept))
        tokens = encoded.tokens
        distinct = tokens if len(kept) == len(tokens) else tokens.select(kept)
        first = _Pass(model.stages[0], 0, every, distinct)
        self._passes = [first]
        self.batches = first.batches

    def run(self, batch: Batch) -> None:
        """Run a batch on the caller's thread."""
        self._passes[batch.stage].run(batch)

    def further(self) -> Sequence[Batch]:
        """Batches of the next stage, once all of this one have run; none when all is answered.

        Which texts they hold depends on the outputs of this shard alone.
        """
        last = self._passes[-1]
        unsure = last.hands_on()
        if not len(unsure):
            return ()
        number, texts = last.number + 1, last.texts[unsure]
        tokens = self._model.encode(number, [self._texts[i] for i in texts.tolist()])
        self._passes.append(_Pass(self._model.stages[number], number, texts, tokens))
        return self._passes[-1].batches

    def tokens_of(self, batch: Batch) -> int:
        """How many tokens a batch holds, without padding."""
        return int(self._passes[batch.stage].windows.lengths[batch.windows].sum())

    def share_of(self, batch: Batch) -> float:
        """Which part of the distinct texts a batch holds; 0 where they had their turn before."""
        return len(batch.windows) / len(self._passes[0].windows) if batch.stage == 0 else 0.0

    def finish(self, naming: Naming) -> Answered:
        """The answers, once all batches have run."""
        predictor = self._model.predictor
        outputs, order = self._outputs()
        # Where each row's outputs are; -1, the last entry, for rows that could not be read.
        found = np.append(order, -1)[self.places]
        answered = (found >= 0) & np.append(outputs.finite, False)[found]
        errors = self._all_errors(~answered)
        table = predictor.task.table(
            outputs.select(found[answered]),
            predictor.bundle.model.labels,
            self._encoded_of(answered),
        )
        if errors:
            # Counted up, every row that has an answer takes the next one.
            taken = np.cumsum(answered) - 1
            table = table.take(pa.array(taken, pa.int64(), mask=~answered))
        return Answered(
            self.shard,
            self.rows,
            naming.named(table, errors),
            self._tally(len(errors)),
            errors,
        )

    def _outputs(self) -> tuple[Outputs, NDArray[np.int64]]:
        """Of all texts that ran, stage by stage, and where each distinct text's last ones are.

        The places are int64 [distinct texts]; -1 where the engine failed.
        """
        order = np.full(len(self._texts), -1, np.int64)
        parts: list[Outputs] = []
        for each in self._passes:
            order[each.texts] = -1
            found = each.outputs()
            if found is not None:
                outputs, ran = found
                order[each.texts[ran]] = sum(map(len, parts)) + np.arange(len(ran))
                parts.append(outputs)
        if not parts:
            columns = self._model.predictor.bundle.columns
            return Outputs.of_rows(np.empty((0, columns), np.float32)), order
        return Outputs.concatenate(parts), order

    def _encoded_of(self, answered: NDArray[np.bool_]) -> Encoded:
        """The texts of these of the rows, in their order."""
        chosen = answered[self.places >= 0]
        return self._encoded if chosen.all() else self._encoded.select(np.flatnonzero(chosen))

    def _all_errors(self, without: NDArray[np.bool_]) -> dict[int, HastenError]:
        """What is wrong with each of the rows ``without`` an answer, bool [rows]."""
        failed = {
            int(each.texts[place]): error
            for each in self._passes
            for place, error in each.failed.items()
        }
        return {
            index: self.unread.get(index) or self._problem(index, failed.get(self.places[index]))
            for index in np.flatnonzero(without).tolist()
        }

    def _problem(self, index: int, problem: EngineError | None) -> EngineError:
        where = self.rows.where(index)
        if problem is not None:
            error = EngineError(f"{where}: {problem.message}", fix=problem.fix)
            error.__cause__ = problem
            return error
        return EngineError(
            f"{where}: non_finite: the model's output for this text is not a number",
            fix="Tune the model again, or check its weights.",
        )

    def _tally(self, errors: int) -> Tally:
        readable = len(self.rows) - len(self.unread)
        return Tally(
            rows=len(self.rows),
            errors=errors,
            duplicates=readable - len(self._texts),
            tokens=sum(int(each.windows.lengths.sum()) for each in self._passes),
            padded_tokens=sum(each.padded_tokens for each in self._passes),
            stages=self._answered(),
        )

    def _answered(self) -> tuple[int, ...]:
        """How many rows each stage answered, copies included; empty where there is one stage."""
        count = len(self._model.stages)
        if count == 1:
            return ()
        stages = np.zeros(len(self._texts), np.int64)
        for later in self._passes[1:]:
            stages[later.texts] = later.number
        rows = self.places[self.places >= 0]
        counts: list[int] = np.bincount(stages[rows], minlength=count).tolist()
        return tuple(counts)


def _texts(
    rows: Rows, columns: Sequence[str], task: Task
) -> tuple[list[Text], dict[int, HastenError]]:
    """The texts or pairs of the rows that can be read, and what is wrong with the others."""
    texts: list[Text] = []
    errors: dict[int, HastenError] = dict(rows.errors)
    values = zip(*(rows.column(name) for name in columns), strict=True)
    for index, value in enumerate(values):
        if index in errors:
            continue
        try:
            text = as_input(value, rows.where(index), columns)
            task.check(text)
        except InputError as error:
            errors[index] = error
        else:
            texts.append(text)
    return texts, errors


def _distinct(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The place of the first of each key, and for every key which of these it is."""
    first: dict[Hashable, int] = {}
    kept: list[int] = []
    copies: list[int] = []
    for index, key in enumerate(keys):
        place = first.setdefault(key, len(kept))
        if place == len(kept):
            kept.append(index)
        copies.append(place)
    return kept, copies


def _token_keys(tokens: Tokens) -> list[bytes]:
    offsets = tokens.offsets.tolist()
    return [tokens.ids[begin:end].tobytes() for begin, end in pairwise(offsets)]
