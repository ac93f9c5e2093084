"""Numbers, as the model gives them.

A model with one label and no problem type is not this but ``multi_label``:
``transformers.pipeline`` applies a sigmoid there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError
from hasten.records import Text
from hasten.tasks._correlation import spearman
from hasten.tasks._labels import Labelled, by_label, classifies, no_label
from hasten.tasks.base import Encoded
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Regression(Labelled):
    """See the module's docstring."""

    name = "regression"
    decides = False
    usual_columns = ("value",)
    problem_type: ClassVar[str | None] = "regression"

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        return classifies(config) and config.get("problem_type") == cls.problem_type

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """The numbers themselves."""
        return outputs.values

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """The number as ``value``; where there are several, they stand in it by name."""
        import pyarrow as pa

        if outputs.width == 1:
            return pa.table({"value": outputs.values[:, 0]})
        return pa.table({"value": by_label(outputs.values, labels)})

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        return np.empty((len(outputs.values), 0), dtype=np.bool_)

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Zeros: there is no other decision."""
        return np.zeros(len(outputs))

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """Zeros: there is no other decision."""
        return np.zeros(len(outputs))

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        return ", ".join(f"{value:.4g}" for value in output.ravel())

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """How far the numbers are from the original's, and whether their order stays."""
        ours, theirs = outputs.values.astype(np.float64), others.values.astype(np.float64)
        off, known = np.abs(ours - theirs), ours != 0
        relative = off[known] / np.abs(ours[known])
        orders = [spearman(*columns) for columns in zip(ours.T, theirs.T, strict=True)]
        return {
            "mean absolute difference": float(off.mean()),
            "mean relative difference": float(relative.mean()) if len(relative) else 0.0,
            "Spearman": float(np.mean(orders)),
        }

    def values(self, names: Sequence[str], columns: int) -> NDArray[np.float64] | None:
        """Each label is a number, or one for each column, separated by commas."""
        return np.array([_numbers(name, columns) for name in names], dtype=np.float64)


def _numbers(name: str, columns: int) -> list[float]:
    """The right numbers of one text.

    >>> _numbers("0.5, 2", 2)
    [0.5, 2.0]
    """
    wanted = "a number" if columns == 1 else f"{columns} numbers with commas between them"
    if not name.strip():
        raise no_label(wanted)
    try:
        numbers = [float(part) for part in name.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != columns or not np.isfinite(numbers).all():
        raise InputError(
            f"the data has the label {name!r}; this model's labels are {wanted}",
            fix="Correct the labels, or leave --label-column out.",
        )
    return numbers


TASK = Regression
