"""One label for two texts, as in natural language inference: softmax, the largest logit wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.errors import ModelError
from hasten.inputs.tokenization import Batch
from hasten.tasks._labels import is_cross_encoder
from hasten.tasks.base import Raw
from hasten.tasks.outputs import Outputs
from hasten.tasks.single_label import SingleLabel


@dataclass(frozen=True)
class PairClassification(SingleLabel):
    """See the module's docstring."""

    name = "pair_classification"
    takes = "pairs"

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        """Cross-encoders with several labels; other classifiers of pairs look like any other."""
        return is_cross_encoder(config) and config["num_labels"] != 1

    def gather(self, raw: Raw, batch: Batch) -> Outputs:
        outputs = super().gather(raw, batch)
        if outputs.width < 2:
            raise ModelError(
                "pair_classification chooses among labels, and the model gives one number a pair",
                fix="Use --task reranking.",
            )
        return outputs


TASK = PairClassification
