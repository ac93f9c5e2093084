"""Tagged tokens become entities, as in ``transformers.pipeline("token-classification")``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hasten.inputs.pieces import Pieces
from hasten.tasks.base import Encoded

Strategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]
"""How the tags of an entity's tokens become one; the pipeline's names."""

OUTSIDE = "O"
"""The label of tokens that belong to no entity."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """A token, or a word of several, with the scores of its labels."""

    word: str
    scores: NDArray[np.float32]
    start: int
    end: int
    index: int = 0
    continues: bool = False

    @property
    def best(self) -> int:
        """The label with the highest score; of equal ones the first."""
        return int(self.scores.argmax())


def tagged(encoded: Encoded, number: int, scores: NDArray[np.float32]) -> list[Tagged]:
    """The tokens of one of the texts, without special ones; ``scores`` are float32 [tokens, k]."""
    tokens, text = encoded.tokens, encoded.texts[number]
    assert tokens.spans is not None
    assert tokens.special is not None
    pieces = pieces_of(encoded)
    begin, end = tokens.offsets[number : number + 2]
    own = np.flatnonzero(~tokens.special[begin:end])
    ids, spans = tokens.ids[begin:end][own], tokens.spans[begin:end][own]
    found = []
    rows = zip(ids.tolist(), spans.tolist(), own.tolist(), scores, strict=True)
    for token, (start, end), index, row in rows:
        word, covered = pieces.written(token), str(text[start:end])
        if token == pieces.unknown:
            found.append(Tagged(covered, row, start, end, index))
            continue
        if pieces.marks_subwords:
            continues = len(word) != len(covered)
        else:
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        found.append(Tagged(word, row, start, end, index, continues))
    return found


def pieces_of(encoded: Encoded) -> Pieces:
    """How the tokens are written; a task that needs their spans has it."""
    assert encoded.tokens.pieces is not None
    return encoded.tokens.pieces


def entities(
    tokens: Sequence[Tagged], labels: Sequence[str], strategy: Strategy, pieces: Pieces
) -> list[dict[str, Any]]:
    """Every token, or every run of tokens with the same label, those outside included."""
    if strategy == "none":
        return [
            {
                "entity": labels[token.best],
                "score": float(token.scores[token.best]),
                "index": token.index,
                "word": token.word,
                "start": token.start,
                "end": token.end,
            }
            for token in tokens
        ]
    if strategy != "simple":
        tokens = [_word(group, strategy, pieces) for group in _words(tokens)]
    runs = grouped([labels[token.best] for token in tokens])
    return [_entity(tokens[begin:end], kind, pieces) for begin, end, kind in runs]


def grouped(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Runs of equal tags as begin, end and kind; ``B-`` begins another one.

    >>> grouped(["O", "B-PER", "I-PER", "B-PER"])
    [(0, 1, 'O'), (1, 3, 'PER'), (3, 4, 'PER')]
    """
    runs: list[tuple[int, int, str]] = []
    last = None
    for place, tag in enumerate(tags):
        kind = tag[2:] if tag.startswith(("B-", "I-")) else tag
        if kind == last and not tag.startswith("B-"):
            begin, _, name = runs[-1]
            runs[-1] = (begin, place + 1, name)
        else:
            # What an entity is called ends at its first hyphen, whatever stands before it.
            runs.append((place, place + 1, tag.split("-", 1)[-1]))
        last = kind
    return runs


def _words(tokens: Sequence[Tagged]) -> Iterator[list[Tagged]]:
    group: list[Tagged] = []
    for token in tokens:
        if group and not token.continues:
            yield group
            group = []
        group.append(token)
    if group:
        yield group


def _word(group: Sequence[Tagged], strategy: Strategy, pieces: Pieces) -> Tagged:
    """The tokens of a word as one, with the scores that ``strategy`` gives it."""
    scores = group[0].scores
    if strategy == "max":
        scores = max(group, key=lambda token: float(token.scores.max())).scores
    elif strategy == "average":
        scores = np.mean([token.scores for token in group], axis=0)
    word = pieces.joined([token.word for token in group])
    return Tagged(word, scores, group[0].start, group[-1].end)


def _entity(run: Sequence[Tagged], kind: str, pieces: Pieces) -> dict[str, Any]:
    return {
        "entity_group": kind,
        "score": float(np.mean([token.scores[token.best] for token in run])),
        "word": pieces.joined([token.word for token in run]),
        "start": run[0].start,
        "end": run[-1].end,
    }
