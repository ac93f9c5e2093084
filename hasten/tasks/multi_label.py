"""Each label on its own: sigmoid, and a label applies from 0.5 on (a logit of 0).

This is also the task of a model with a single label that is not a regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.tasks import _scores
from hasten.tasks._labels import Labelled, by_label, classifies, index_of
from hasten.tasks.base import Encoded
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class MultiLabel(Labelled):
    """See the module's docstring."""

    name = "multi_label"
    usual_columns = ("labels", "scores")
    problem_type = "multi_label_classification"
    objective = "sigmoid"

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        """As ``transformers.pipeline``: a single label without a problem type gets a sigmoid."""
        kind, columns = config.get("problem_type"), config["num_labels"]
        several = kind == cls.problem_type or columns == 1
        return classifies(config) and kind != "regression" and several

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """Sigmoid."""
        return _scores.sigmoid(outputs.values)

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """The ``labels`` that apply, and the ``scores`` of all by name."""
        import pyarrow as pa

        applying = [
            [label for label, applies in zip(labels, row, strict=True) if applies]
            for row in self.decisions(outputs)
        ]
        return pa.table(
            {
                "labels": pa.array(applying, pa.list_(pa.string())),
                "scores": by_label(self.scores(outputs), labels),
            }
        )

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        """Which labels apply: bool [rows, k]."""
        return outputs.values >= 0

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Distance from zero of the surest among the labels that are decided otherwise."""
        changed = self.decisions(outputs) != self.decisions(others)
        distances = np.abs(outputs.values.astype(np.float64))
        return outputs.max(np.where(changed, distances, 0.0).max(axis=1))

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """Distance from zero of the label that is nearest to it."""
        return outputs.min(np.abs(outputs.values.astype(np.float64)).min(axis=1))

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        applying = [
            label for row in output for label, logit in zip(labels, row, strict=True) if logit >= 0
        ]
        return ", ".join(applying) or "no label"

    def gold(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[Any]:
        """Exactly the named labels apply. Several are separated by commas."""
        wanted = np.zeros((len(names), len(labels)), dtype=np.bool_)
        for row, name in zip(wanted, names, strict=True):
            several = [name] if name in labels else name.split(",")
            row[[index_of(one, labels) for one in several if one.strip()]] = True
        return wanted


TASK = MultiLabel
