"""The likeliest answers to questions, as the question-answering pipeline finds them.

Beginnings and ends are two softmaxes over the tokens of a window; an answer is as likely as its
beginning times its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hasten.tasks.base import Encoded
from hasten.tasks.outputs import Outputs

Answers: TypeAlias = list[dict[str, Any]]
"""Of one text, each with ``score``, ``start``, ``end`` and ``answer``."""


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """What outputs say of n texts with these rows.

    Attributes:
        spans: log-likelihood of the answer that begins at a row and has 1, 2, ... tokens, float64
            [rows, most tokens]; minus infinity where there is none.
        first: the row where the likeliest answer begins, int64 [n]; -1 where there is none.
        last: the row where it ends.
        score: its log-likelihood, float64 [n]; minus infinity where there is none.
        null: log-likelihood of "no answer", float64 [n]; of a text of several windows the lowest.
        windows: the first row of each window, int64, and the number of rows.
        offsets: of the outputs.
    """

    spans: NDArray[np.float64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    score: NDArray[np.float64]
    null: NDArray[np.float64]
    windows: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @property
    def impossible(self) -> NDArray[np.bool_]:
        """Where "no answer" is likelier than any: bool [n]."""
        return self.null > self.score

    @classmethod
    def of(cls, outputs: Outputs, most: int) -> Best:
        """Read outputs, of which answers have ``most`` tokens at most."""
        rows = len(outputs.values)
        windows = np.flatnonzero(outputs.values[:, 2] > 0.5)
        logs = _log_softmax(outputs.values[:, :2].astype(np.float64), windows)
        inner = np.ones(rows, np.bool_)
        inner[windows] = False
        spans = _spans(logs, np.searchsorted(windows, np.arange(rows), side="right"), inner, most)
        null = outputs.min(np.where(inner, np.inf, logs.sum(axis=1)), empty=-np.inf)
        first, last = np.full((2, len(outputs)), -1, np.int64)
        score = np.full(len(outputs), -np.inf)
        longest, likeliest = spans.argmax(axis=1), spans.max(axis=1, initial=-np.inf)
        for text, (begin, end) in enumerate(
            zip(outputs.offsets[:-1].tolist(), outputs.offsets[1:].tolist(), strict=True)
        ):
            if inner[begin:end].any():
                row = begin + int(likeliest[begin:end].argmax())
                first[text], last[text], score[text] = row, row + longest[row], likeliest[row]
        return cls(spans, first, last, score, null, np.append(windows, rows), outputs.offsets)


def answers_of(
    best: Best, encoded: Encoded, number: int, count: int, *, whole_words: bool
) -> Answers:
    """The likeliest answers to one text, in no order; equal ones of several places are added up.

    Args:
        best: of the texts.
        encoded: the texts.
        number: which of them.
        count: how many are wanted. There may be more, or fewer.
        whole_words: whether they begin and end with whole words.
    """
    tokens, text = encoded.tokens, encoded.texts[number]
    assert tokens.special is not None
    assert tokens.spans is not None
    assert tokens.words is not None
    own = np.arange(*tokens.offsets[[number, number + 1]])
    own = own[~tokens.special[own]]
    places, words = tokens.spans[own], tokens.words[own]
    begin, end = best.offsets[[number, number + 1]].tolist()
    bounds = best.windows[np.searchsorted(best.windows, begin) :].tolist()
    context = text[1]
    found: dict[str, dict[str, Any]] = {}
    # Answers whose words are the same become one, so more are looked at.
    most = 2 * count + 10 if whole_words else count
    for first, after in pairwise(bounds):
        if first >= end:
            break
        within = slice(first + 1 - begin, after - begin)
        for start, stop, score in _likeliest(best.spans[first + 1 : after], most):
            cut = _characters(places[within], words[within], start, stop, whole=whole_words)
            answer = context[slice(*cut)]
            known = found.setdefault(
                answer.lower(), {"score": 0.0, "start": cut[0], "end": cut[1], "answer": answer}
            )
            known["score"] += score
    return list(found.values())


def _log_softmax(values: NDArray[np.float64], windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each window's rows, column by column: float64 [rows, 2]."""
    if not len(values):
        return values
    counts = np.diff(np.append(windows, len(values)))
    centred = values - np.repeat(np.maximum.reduceat(values, windows), counts, axis=0)
    sums: NDArray[np.float64] = np.add.reduceat(np.exp(centred), windows)
    shares: NDArray[np.float64] = centred - np.repeat(np.log(sums), counts, axis=0)
    return shares


def _spans(
    logs: NDArray[np.float64], window: NDArray[np.int64], inner: NDArray[np.bool_], most: int
) -> NDArray[np.float64]:
    """See :attr:`Best.spans`; ``window`` is each row's, and ``inner`` whether it is context."""
    rows = len(logs)
    spans = np.full((rows, most), -np.inf)
    for further in range(min(most, rows)):
        here, there = slice(rows - further), slice(further, rows)
        fits = inner[here] & (window[here] == window[there])
        spans[here, further] = np.where(fits, logs[here, 0] + logs[there, 1], -np.inf)
    return spans


def _likeliest(spans: NDArray[np.float64], count: int) -> list[tuple[int, int, float]]:
    """First token, last token and likelihood of a window's best answers, best first."""
    flat = spans.ravel()
    if not len(flat):
        return []
    chosen = np.argpartition(-flat, min(count, len(flat) - 1))[:count]
    chosen = chosen[np.isfinite(flat[chosen])]
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")]
    first, further = np.divmod(chosen, spans.shape[1])
    scores = np.exp(flat[chosen]).tolist()
    return list(zip(first.tolist(), (first + further).tolist(), scores, strict=True))


def _characters(
    places: NDArray[np.int32], words: NDArray[np.int32], first: int, last: int, *, whole: bool
) -> tuple[int, int]:
    """Where an answer begins and ends in the context."""
    if whole and words[first] >= 0 and words[last] >= 0:
        first = int(np.flatnonzero(words == words[first])[0])
        last = int(np.flatnonzero(words == words[last])[-1])
    return int(places[first][0]), int(places[last][1])
