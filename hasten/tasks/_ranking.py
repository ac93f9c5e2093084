"""Whether two models rank the texts of a query alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_TOP = 10
_MOST_TEXTS = 1000
"""Texts of a query that are looked at, since their number counts squared."""


def ranking_agreement(
    original: NDArray[np.float32], candidate: NDArray[np.float32], queries: Sequence[str]
) -> dict[str, float]:
    """Means over the queries that have several texts; nothing where none has.

    Args:
        original: a number for each text, float32 [n]; of equal ones the first is ranked first.
        candidate: the same of another model.
        queries: each text's query.

    >>> ranks = np.arange(3, dtype=np.float32)
    >>> ranking_agreement(ranks, -ranks, ["q", "q", "q"])
    {'queries': 1.0, "Kendall's tau": -1.0, 'same first': 0.0}
    """
    groups: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        groups.setdefault(query, []).append(place)
    several = [np.array(g[:_MOST_TEXTS]) for g in groups.values() if len(g) > 1]
    if not several:
        return {}
    pairs = [(original[group], candidate[group]) for group in several]
    found = {
        "queries": float(len(several)),
        "Kendall's tau": _mean([_tau(*pair) for pair in pairs]),
        "same first": _mean([_overlap(*pair, 1) for pair in pairs]),
    }
    # The first ten of ten texts are always the same.
    long = [pair for pair in pairs if len(pair[0]) > _TOP]
    if long:
        found[f"of the first {_TOP} kept"] = _mean([_overlap(*pair, _TOP) for pair in long])
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _overlap(ours: NDArray[np.float32], theirs: NDArray[np.float32], count: int) -> float:
    """Share of the first ``count`` texts that both have in common."""
    first = [set(np.argsort(-scores, kind="stable")[:count].tolist()) for scores in (ours, theirs)]
    return len(first[0] & first[1]) / count


def _tau(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Kendall's tau-b; 1 where both have only ties, 0 where one has."""
    upper = np.triu_indices(len(ours), 1)
    signs = [np.sign(np.subtract.outer(scores, scores))[upper] for scores in (ours, theirs)]
    untied = [np.count_nonzero(sign) for sign in signs]
    if not all(untied):
        return float(not any(untied))
    return float((signs[0] * signs[1]).sum() / np.sqrt(untied[0] * untied[1]))
