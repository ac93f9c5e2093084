"""How alike two sets of vectors of the same texts are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.tasks._correlation import spearman

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
"""Sentence-transformers' names; of distances, the negative is the similarity."""

NEIGHBOURS = 10
_ROWS = 256
"""Texts that are compared with all others at a time, so that memory stays small."""

_PAIRS = 100_000
"""Pairs of texts whose similarities are ranked, drawn where there are more."""

_TINY = 1e-12


def cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each row of ``ours`` with that of ``theirs``, float64 [n].

    Two vectors of zeros, which texts without tokens may have, are alike.
    """
    one, other = _unit(ours), _unit(theirs)
    found: NDArray[np.float64] = (one * other).sum(axis=1)
    nothing = ~one.any(axis=1) & ~other.any(axis=1)
    return np.where(nothing, 1.0, found)


def neighbours_kept(ours: NDArray[np.float32], theirs: NDArray[np.float32], how: str) -> float:
    """Mean share of the nearest neighbours of a text that stay, among these texts.

    A neighbour counts as kept where it is as near as the last of those that are taken: texts
    whose distances are equal may stand in any order.

    Args:
        ours: the original's vectors, float32 [n, numbers], n at least 2.
        theirs: the candidate's.
        how: one of :data:`SIMILARITIES`.
    """
    count = min(NEIGHBOURS, len(ours) - 1)
    kept = 0
    for begin in range(0, len(ours), _ROWS):
        rows = np.arange(begin, min(begin + _ROWS, len(ours)))
        mine, other = (_similar(vectors, rows, how) for vectors in (ours, theirs))
        nearest = np.argpartition(-other, count - 1, axis=1)[:, :count]
        least = np.partition(mine, -count, axis=1)[:, -count, None]
        kept += int((np.take_along_axis(mine, nearest, axis=1) >= least - 1e-6 * abs(least)).sum())
    return kept / (count * len(ours))


def order_kept(ours: NDArray[np.float32], theirs: NDArray[np.float32], how: str) -> float:
    """Spearman's rank correlation of the similarities of pairs of texts.

    Args:
        ours: the original's vectors, float32 [n, numbers], n at least 3.
        theirs: the candidate's.
        how: one of :data:`SIMILARITIES`.
    """
    first, second = _pairs(len(ours))
    return spearman(*(_between(v[first], v[second], how) for v in (ours, theirs)))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(
        np.linalg.norm(wide, axis=1, keepdims=True), _TINY
    )
    return unit


def _similar(
    vectors: NDArray[np.float32], rows: NDArray[np.int64], how: str
) -> NDArray[np.float64]:
    """How similar some rows are to all, float64 [rows, n]; not at all to themselves."""
    if how in ("cosine", "dot"):
        wide = _unit(vectors) if how == "cosine" else vectors.astype(np.float64)
        found = wide[rows] @ wide.T
    else:
        found = np.stack([_between(vectors[[row]], vectors, how) for row in rows])
    found[np.arange(len(rows)), rows] = -np.inf
    return found


def _between(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], how: str
) -> NDArray[np.float64]:
    """The similarity of each row with the other's, float64 [n]."""
    if how == "cosine":
        return np.asarray((_unit(ours) * _unit(theirs)).sum(axis=1))
    if how == "dot":
        return np.asarray((ours.astype(np.float64) * theirs).sum(axis=1))
    order = 2 if how == "euclidean" else 1
    return -np.asarray(np.linalg.norm(ours.astype(np.float64) - theirs, order, axis=1))


def _pairs(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Different pairs of ``count`` texts: all, or as many as are ranked."""
    if count * (count - 1) // 2 <= _PAIRS:
        first, second = np.triu_indices(count, 1)
        return first, second
    rng = np.random.default_rng(0)
    first = rng.integers(count, size=_PAIRS)
    return first, (first + rng.integers(1, count, size=_PAIRS)) % count
