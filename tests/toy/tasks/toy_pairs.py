"""Whether two texts say the same: one number a pair, and yes from 0 on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.tasks import DEFAULT_FORM, Encoded, Form, Outputs, Task

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ToyPairs(Task):
    """See the module's docstring."""

    name = "toy_pairs"
    takes = "pairs"
    objective = "sigmoid"
    usual_columns = ("similarity", "same")

    @classmethod
    def claims(cls, _: Mapping[str, Any]) -> bool:
        return False  # asked for by name: its models look like any classifier's

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        return outputs.values

    def answers(
        self, outputs: Outputs, labels: Sequence[str], encoded: Encoded, form: Form = DEFAULT_FORM
    ) -> list[Any]:
        return [
            {"pair": list(pair), "similarity": float(value)}
            for pair, value in zip(encoded.texts, outputs.values[:, 0], strict=True)
        ]

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        import pyarrow as pa

        return pa.table({"similarity": outputs.values[:, 0], "same": self.decisions(outputs)})

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        return outputs.values[:, 0] >= 0

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        changed = self.changed_rows(outputs, others)
        return outputs.max(np.where(changed, np.abs(outputs.values[:, 0]), 0.0))

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        return outputs.min(np.abs(outputs.values[:, 0]))

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        return "same" if output[0, 0] >= 0 else "other"


TASK = ToyPairs
