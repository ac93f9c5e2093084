"""How well a text answers a query: one number a pair, by which a query's texts are ranked.

Scores are those of ``CrossEncoder`` in sentence-transformers, which a model's ``config.json``
chooses: sigmoid unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelError
from hasten.inputs.tokenization import Batch
from hasten.records import Text
from hasten.tasks import _scores
from hasten.tasks._labels import activation_of, is_cross_encoder
from hasten.tasks._ranking import ranking_agreement
from hasten.tasks.base import Encoded, Raw
from hasten.tasks.outputs import Outputs
from hasten.tasks.regression import Regression

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Reranking(Regression):
    """See the module's docstring; ``activation`` makes a score of the model's number."""

    activation: Literal["sigmoid", "none"] = "sigmoid"

    name = "reranking"
    takes = "pairs"
    usual_columns = ("score",)
    problem_type = None

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        """Cross-encoders with one label; others with one look like classifiers of one text."""
        return is_cross_encoder(config) and config["num_labels"] == 1

    @classmethod
    def settings_of(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"activation": activation_of(config)}

    def gather(self, raw: Raw, batch: Batch) -> Outputs:
        outputs = super().gather(raw, batch)
        if outputs.width != 1:
            raise ModelError(
                f"reranking needs one number a pair, and the model gives {outputs.width}",
                fix="Use --task pair_classification for a choice among labels.",
            )
        return outputs

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """By ``activation``."""
        return _scores.applied(self.activation, outputs.values)

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """The ``score``."""
        import pyarrow as pa

        return pa.table({"score": self.scores(outputs)[:, 0]})

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Of the queries with several texts; a query is the first text of a pair."""
        queries = [text[0] for text in texts]
        return ranking_agreement(outputs.values[:, 0], others.values[:, 0], queries)


TASK = Reranking
