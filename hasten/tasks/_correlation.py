"""Whether two lists of numbers have the same order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spearman(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; 1 where one of the lists has a single value throughout.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    one, other = (ranks - ranks.mean() for ranks in map(_ranks, (ours, theirs)))
    size = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / size) if size else 1.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each number, equal ones sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: NDArray[np.float64] = (ends - (counts - 1) / 2)[place]
    return shared
