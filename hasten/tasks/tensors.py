"""Vectors without names, such as embeddings, or logits of random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.records import Text
from hasten.tasks.base import DEFAULT_FORM, Encoded, Form
from hasten.tasks.outputs import Outputs
from hasten.tasks.regression import Regression

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Tensors(Regression):
    """See the module's docstring."""

    name = "tensors"
    reads = ("output",)
    has_labels = False
    vectors: ClassVar[bool] = True
    usual_columns = ("embedding",)
    pipeline: ClassVar[str | None] = None
    problem_type = None

    @classmethod
    def claims(cls, _: Mapping[str, Any]) -> bool:
        """Never by itself: the user asks for it, or for random weights."""
        return False

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Nothing: numbers without a meaning have no terms of their own."""
        return {}

    def values(self, names: Sequence[str], columns: int) -> NDArray[np.float64] | None:
        """None: a vector has no label."""
        return None

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """The vectors as ``embedding``, lists of equal length."""
        import pyarrow as pa

        numbers = pa.array(np.ascontiguousarray(outputs.values).ravel())
        return pa.table({"embedding": pa.FixedSizeListArray.from_arrays(numbers, outputs.width)})

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        encoded: Encoded,
        form: Form = DEFAULT_FORM,
    ) -> list[Any]:
        """The vectors as lists of float; the form has no meaning."""
        vectors: list[Any] = outputs.values.tolist()
        return vectors


TASK = Tensors
