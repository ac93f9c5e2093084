"""A tag for each token, and tokens with a tag other than the first as the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.inputs.tokenization import Batch
from hasten.tasks import DEFAULT_FORM, Encoded, Form, Outputs, Task, token_rows
from hasten.tasks.base import Raw

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ToyTags(Task):
    """See the module's docstring; ``margin`` is how far a tag must lead to be one."""

    margin: float = 0.0

    name = "toy_tags"
    needs_spans = True
    model_class = "AutoModelForTokenClassification"
    objective = "softmax"
    usual_columns = ("entities",)

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        return any("ForTokenClassification" in n for n in config.get("architectures") or ())

    def gather(self, raw: Raw, batch: Batch) -> Outputs:
        return token_rows(raw["logits"], batch)

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        powers = np.exp(outputs.values - outputs.values.max(axis=1, keepdims=True, initial=-99))
        scores: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return scores

    def answers(
        self, outputs: Outputs, labels: Sequence[str], encoded: Encoded, form: Form = DEFAULT_FORM
    ) -> list[Any]:
        tokens = encoded.tokens
        assert tokens.spans is not None
        assert tokens.special is not None
        spans, tags = tokens.spans[~tokens.special], self.decisions(outputs)
        assert len(spans) == len(tags)
        found = []
        for index, text in enumerate(encoded.texts):
            rows = range(*outputs.offsets[index : index + 2])
            found.append(
                [
                    {
                        "word": text[spans[row][0] : spans[row][1]],
                        "start": int(spans[row][0]),
                        "end": int(spans[row][1]),
                        "label": labels[tags[row]],
                    }
                    for row in rows
                    if tags[row]
                ]
            )
        return found

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        import pyarrow as pa

        fields = [("word", pa.string()), ("start", pa.int32()), ("end", pa.int32())]
        kind = pa.list_(pa.struct([*fields, ("label", pa.string())]))
        return pa.table({"entities": pa.array(self.answers(outputs, labels, encoded), kind)})

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        tags = outputs.values.argmax(axis=1)
        return np.where(self._lead(outputs) >= self.margin, tags, 0)

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        changed = self.changed_rows(outputs, others)
        return outputs.max(np.where(changed, self._lead(outputs), 0.0))

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        return outputs.min(self._lead(outputs))

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        return " ".join(labels[tag] for tag in output.argmax(axis=1))

    def _lead(self, outputs: Outputs) -> NDArray[np.float64]:
        ranked = np.sort(outputs.values.astype(np.float64), axis=1)
        lead: NDArray[np.float64] = ranked[:, -1] - ranked[:, -2]
        return lead


TASK = ToyTags
