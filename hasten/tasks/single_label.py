"""One label out of several: softmax, the largest logit wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelError
from hasten.tasks import _scores
from hasten.tasks._choices import lead_of, margin_of
from hasten.tasks._labels import Labelled, by_label, classifies, index_of
from hasten.tasks.base import Encoded
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class SingleLabel(Labelled):
    """See the module's docstring."""

    name = "single_label"
    usual_columns = ("label", "score")
    problem_type = "single_label_classification"
    objective = "softmax"

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        others = ("regression", "multi_label_classification")
        kind, columns = config.get("problem_type"), config["num_labels"]
        return classifies(config) and kind not in others and columns != 1

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """Softmax."""
        return _scores.softmax(_choices(outputs))

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """``label`` and its ``score``; ``scores`` of all labels by name."""
        import pyarrow as pa

        scores = self.scores(outputs)
        best = scores.argmax(axis=1)
        return pa.table(
            {
                "label": pa.array(labels, pa.string()).take(pa.array(best)),
                "score": scores[np.arange(len(scores)), best],
                "scores": by_label(scores, labels),
            }
        )

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        """The winner's index: int64 [rows]."""
        winners: NDArray[np.int64] = np.argmax(_choices(outputs), axis=1)
        return winners

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Logit of the label that wins minus that of the label that wins in ``others``."""
        return outputs.max(
            margin_of(outputs.values, self.decisions(outputs), self.decisions(others))
        )

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """The largest logit minus the second largest."""
        return outputs.min(lead_of(_choices(outputs)))

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        return ", ".join(labels[int(row.argmax())] for row in output)

    def gold(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[Any]:
        return np.array([index_of(name, labels) for name in names], dtype=np.int64)


def _choices(outputs: Outputs) -> NDArray[np.float32]:
    """The logits, of which there must be a choice: float32 [rows, k]."""
    if outputs.width < 2:
        # An argmax over one column never changes, and would let any candidate pass.
        raise ModelError(
            "a single output is not a choice among labels",
            fix="Set problem_type in config.json to regression or multi_label_classification.",
        )
    return outputs.values


TASK = SingleLabel
