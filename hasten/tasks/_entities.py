"""Tagged tokens become entities, as in ``transformers.pipeline("token-classification")``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
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


def tagged(encoded: Encoded, number: int, scores: NDArray[np.float32]) -> Iterator[list[Tagged]]:
    """The tokens of one of the texts, window by window, without special ones.

    Args:
        encoded: the texts.
        number: which of them.
        scores: float32 [tokens, k].
    """
    tokens = encoded.tokens
    assert tokens.special is not None
    parts, done = (number, number + 1) if tokens.parts is None else tokens.parts[number:][:2], 0
    windows = tokens.windows
    for window in range(*parts):
        begin, end = windows.offsets[window : window + 2]
        count = int((~tokens.special[begin:end]).sum())
        yield _tagged(encoded, number, slice(begin, end), scores[done : done + count])
        done += count


def _tagged(
    encoded: Encoded, number: int, place: slice, scores: NDArray[np.float32]
) -> list[Tagged]:
    tokens, text = encoded.tokens, encoded.texts[number]
    assert tokens.spans is not None
    assert tokens.special is not None
    pieces = pieces_of(encoded)
    own = np.flatnonzero(~tokens.special[place])
    ids, spans = tokens.ids[place][own], tokens.spans[place][own]
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


def merged(windows: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The entities of a text's windows; of those that overlap the longest, then the likeliest."""
    if len(windows) == 1:
        return windows[0]
    found: list[dict[str, Any]] = []
    for entity in sorted(chain.from_iterable(windows), key=lambda each: each["start"]):
        if not found or not found[-1]["start"] <= entity["start"] < found[-1]["end"]:
            found.append(entity)
        elif _rank(entity) > _rank(found[-1]):
            found[-1] = entity
    return found


def _rank(entity: dict[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


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
