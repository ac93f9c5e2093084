"""Each label on its own: sigmoid, and a label applies from a threshold on, 0.5 by default.

This is also the task of a model with a single label that is not a regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ChoiceError
from hasten.records import Text
from hasten.tasks import _scores
from hasten.tasks._labels import Labelled, by_label, classifies, index_of
from hasten.tasks.base import Encoded
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class MultiLabel(Labelled):
    """See the module's docstring; ``threshold`` is that of all labels, or one for each."""

    threshold: float | tuple[float, ...] = 0.5

    name = "multi_label"
    usual_columns = ("labels", "scores")
    problem_type = "multi_label_classification"
    objective = "sigmoid"

    def __post_init__(self) -> None:
        if not all(0 < each < 1 for each in np.atleast_1d(self.threshold)):
            raise ValueError(f"threshold is {self.threshold}, and must lie between 0 and 1")

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        """As ``transformers.pipeline``: a single label without a problem type gets a sigmoid."""
        kind, columns = config.get("problem_type"), config["num_labels"]
        several = kind == cls.problem_type or columns == 1
        return classifies(config) and kind != "regression" and several

    @classmethod
    def given(cls, settings: Mapping[str, Any], labels: Sequence[str]) -> Mapping[str, Any]:
        """Thresholds may be given by label; 0.5 is that of the others."""
        named = settings.get("threshold")
        if not isinstance(named, Mapping):
            return settings
        if unknown := sorted(named.keys() - set(labels)):
            raise ChoiceError(
                f"threshold names the label {unknown[0]!r}, which the model does not know",
                fix=f"The model's labels: {', '.join(labels)}.",
            )
        return {**settings, "threshold": [named.get(label, 0.5) for label in labels]}

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
        return self._beyond(outputs) >= 0

    def _beyond(self, outputs: Outputs) -> NDArray[np.float64]:
        """How far each label is above its threshold, float64 [rows, k], in units of the logits."""
        threshold = np.asarray(self.threshold, np.float64)
        return outputs.values.astype(np.float64) - np.log(threshold / (1 - threshold))

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """F1 of the labels that apply against the original's, over all and as mean of labels."""
        ours, theirs = self.decisions(outputs), self.decisions(others)
        both, either = (ours & theirs).sum(axis=0), ours.sum(axis=0) + theirs.sum(axis=0)
        used = either > 0
        if outputs.width == 1 or not used.any():
            return {}
        return {
            "micro-F1": float(2 * both.sum() / either.sum()),
            "macro-F1": float((2 * both[used] / either[used]).mean()),
        }

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Distance from its threshold of the surest label that is decided otherwise."""
        changed = self.decisions(outputs) != self.decisions(others)
        distances = np.abs(self._beyond(outputs))
        return outputs.max(np.where(changed, distances, 0.0).max(axis=1))

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """Distance from its threshold of the label that is nearest to it."""
        return outputs.min(np.abs(self._beyond(outputs)).min(axis=1))

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        applying = [
            label
            for row in self.decisions(Outputs.of_rows(output))
            for label, applies in zip(labels, row, strict=True)
            if applies
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
