"""What a model gives for some texts: zero or more rows of numbers for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import EngineError


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """The rows of ``n`` texts, one text after the other.

    A classifier gives one row a text, a tagger one a token; an empty text may have none.

    Attributes:
        values: float32 [rows, k].
        offsets: int64 [n + 1]; text ``i`` has the rows ``offsets[i]`` to ``offsets[i + 1] - 1``.
    """

    values: NDArray[np.float32]
    offsets: NDArray[np.int64]

    @classmethod
    def of_rows(cls, values: ArrayLike) -> Outputs:
        """One row a text: ``values`` is [n, k].

        >>> len(Outputs.of_rows([[1, 2], [3, 4]]))
        2
        """
        rows = np.asarray(values, np.float32)
        return cls(rows, np.arange(len(rows) + 1, dtype=np.int64))

    @classmethod
    def of_counts(cls, values: ArrayLike, counts: ArrayLike) -> Outputs:
        """Rows [rows, k], of which each text in turn has so many: ``counts`` is [n]."""
        offsets = np.zeros(np.size(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return cls(np.asarray(values, np.float32), offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Outputs]) -> Outputs:
        """The texts of all parts, of which there must be at least one.

        Raises:
            EngineError: the parts have rows of different widths.
        """
        if len(parts) == 1:  # single texts, which come often, have nothing to join
            return parts[0]
        widths = {part.width for part in parts}
        if len(widths) > 1:
            raise EngineError(
                f"the model gives rows of {' and of '.join(map(str, sorted(widths)))} numbers",
                fix="It must give rows of equal width, whatever the texts and their batch.",
            )
        values = np.concatenate([part.values for part in parts])
        return cls.of_counts(values, np.concatenate([part.counts for part in parts]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """The rows of one text, float32 [its rows, k]."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return int(self.values.shape[1])

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many rows each text has: int64 [n]."""
        return np.diff(self.offsets)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all numbers of each text are finite: bool [n]."""
        return ~self.any(~np.isfinite(self.values).all(axis=1))

    def where(self, kept: NDArray[np.bool_], other: Outputs) -> Outputs:
        """These outputs for the texts that are ``kept``, bool [n], and ``other``'s for the rest."""
        if kept.all():
            return self
        texts = np.arange(len(kept))
        both = Outputs.concatenate([self, other])
        return both.select(np.where(kept, texts, texts + len(kept)))

    def select(self, indices: ArrayLike) -> Outputs:
        """The texts at ``indices``, in that order; an index may come twice.

        >>> outputs = Outputs.of_counts([[0], [1], [2]], [1, 0, 2])
        >>> chosen = outputs.select([2, 1, 2])
        >>> chosen.values.ravel().tolist(), chosen.counts.tolist()
        ([1.0, 2.0, 1.0, 2.0], [2, 0, 2])
        """
        chosen = np.asarray(indices, np.int64)
        if len(self.values) == len(self) and np.array_equal(self.offsets, np.arange(len(self) + 1)):
            return Outputs.of_rows(self.values[chosen])
        counts = self.counts[chosen]
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if len(ends) else 0)
        return Outputs.of_counts(
            self.values[places + np.repeat(self.offsets[chosen] - (ends - counts), counts)], counts
        )

    def regrouped(self, parts: ArrayLike | None) -> Outputs:
        """Neighbouring texts as one: text ``i`` gets the rows of ``parts[i]`` to ``parts[i+1]``.

        Args:
            parts: int64 [fewer + 1], ascending from 0 to the number of texts; None: as they are.
        """
        if parts is None:
            return self
        return Outputs(self.values, self.offsets[np.asarray(parts, np.int64)])

    def any(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Of bool [rows]: whether any row of each text is true, bool [n]; not where it has none."""
        return self.max(rows, empty=0.0) > 0

    def max(self, rows: ArrayLike, empty: float = 0.0) -> NDArray[np.float64]:
        """Of one number a row: the largest of each text, float64 [n]; ``empty`` without rows."""
        return self._reduced(np.maximum, np.asarray(rows, np.float64), empty)

    def min(self, rows: ArrayLike, empty: float = np.inf) -> NDArray[np.float64]:
        """Of one number a row: the smallest of each text, float64 [n]; ``empty`` without rows."""
        return self._reduced(np.minimum, np.asarray(rows, np.float64), empty)

    def _reduced(
        self, function: np.ufunc, rows: NDArray[np.float64], empty: float
    ) -> NDArray[np.float64]:
        result = np.full(len(self), empty)
        filled = self.counts > 0
        if filled.any():
            # Texts without rows take up no place: each segment ends where the next one begins.
            result[filled] = function.reduceat(rows, self.offsets[:-1][filled])
        return result
