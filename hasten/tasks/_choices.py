"""How clearly the largest of several logits wins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def margin_of(
    logits: NDArray[np.float32], own: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The logit of column ``own`` minus that of ``other``, row by row.

    Args:
        logits: float32 [rows, k].
        own: int64 [rows].
        other: int64 [rows].

    >>> margin_of(np.float32([[3, 1], [0, 2]]), np.array([0, 1]), np.array([1, 1])).tolist()
    [2.0, 0.0]
    """
    rows = np.arange(len(logits))
    return np.subtract(logits[rows, own], logits[rows, other], dtype=np.float64)


def lead_of(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest logit of each row minus the second largest.

    >>> lead_of(np.float32([[3, 1, 2]])).tolist()
    [1.0]
    """
    ranked = np.partition(logits, -2, axis=1)[:, -2:]
    return np.subtract(ranked[:, 1], ranked[:, 0], dtype=np.float64)
