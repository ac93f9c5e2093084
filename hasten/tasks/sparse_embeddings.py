"""Sparse embeddings, as SPLADE makes them: a weight for every token of the vocabulary, mostly 0.

A head of masked words gives each token of a text a number for each word; the weight of a word is
log(1 + relu(number)), the largest over the text's tokens (Formal et al., SIGIR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.records import Text
from hasten.tasks import DEFAULT_FORM
from hasten.tasks._entities import pieces_of
from hasten.tasks.base import Encoded, Form
from hasten.tasks.embeddings import Embeddings
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class SparseEmbeddings(Embeddings):
    """See the module's docstring; vectors are compared by their dot product."""

    similarity_fn_name: str = "dot"

    name = "sparse_embeddings"
    needs_spans = True
    vectors = False
    model_class = "AutoModelForMaskedLM"
    pools = ("splade",)
    usual_columns = ("tokens",)

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        """What was prepared for this task: a model of masked words alone does not say so."""
        return tuple((config.get("sentence") or {}).get("pooling", ())) == cls.pools

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        encoded: Encoded,
        form: Form = DEFAULT_FORM,
    ) -> list[Any]:
        """For each text the weights that are not 0 by token, the largest first."""
        found = []
        for row in outputs.values:
            order = np.argsort(-row, kind="stable")[: np.count_nonzero(row)]
            written = map(pieces_of(encoded).written, order.tolist())
            found.append(dict(zip(written, row[order].tolist(), strict=True)))
        return found

    def together(self, answers: list[Any], width: int) -> Any:
        return answers

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """The weights that are not 0 as ``tokens``, the largest first."""
        import pyarrow as pa

        rows = [
            [{"token": token, "weight": weight} for token, weight in each.items()]
            for each in self.answers(outputs, labels, encoded)
        ]
        kind = pa.struct([("token", pa.string()), ("weight", pa.float32())])
        return pa.table({"tokens": pa.array(rows, pa.list_(kind))})

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """As of dense vectors, and how many of the tokens with a weight both have."""
        ours, theirs = outputs.values > 0, others.values > 0
        both, either = (ours & theirs).sum(axis=1), (ours | theirs).sum(axis=1)
        overlap = np.where(either > 0, both / np.maximum(either, 1), 1.0)
        found = super().agreement(outputs, others, texts, labels)
        return {**found, "overlap of tokens": float(overlap.mean())}


TASK = SparseEmbeddings
