"""A label for each token, as for named entities: softmax, the largest logit wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ChoiceError, ModelError
from hasten.inputs.tokenization import Batch, TextTokenizer, Tokens
from hasten.inputs.windows import encode_windows
from hasten.records import Text
from hasten.tasks import DEFAULT_FORM, _scores
from hasten.tasks._choices import lead_of, margin_of
from hasten.tasks._entities import (
    OUTSIDE,
    Strategy,
    Tagged,
    entities,
    grouped,
    merged,
    pieces_of,
    tagged,
)
from hasten.tasks._labels import unnamed
from hasten.tasks.base import Encoded, Form, Raw, Task, token_rows
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class TokenClassification(Task):
    """See the module's docstring.

    ``aggregation_strategy`` says how tokens become entities, and ``ignore_labels`` which of them
    are left out; with ``stride``, long texts are read to their end in windows that share as many
    tokens. All as in the pipeline.
    """

    aggregation_strategy: Strategy = "none"
    ignore_labels: tuple[str, ...] = (OUTSIDE,)
    stride: int | None = None

    name = "token_classification"
    needs_spans = True
    model_class = "AutoModelForTokenClassification"
    pipeline = "token-classification"
    objective = "softmax"
    usual_columns = ("entities",)

    @property
    def reads_windows(self) -> bool:
        return self.stride is not None

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        return any("ForTokenClassification" in n for n in config.get("architectures") or ())

    def encode(self, tokenizer: TextTokenizer, texts: Sequence[Text]) -> Tokens:
        if self.stride is None:
            return super().encode(tokenizer, texts)
        return encode_windows(tokenizer, texts, overlap=self.stride)

    def gather(self, raw: Raw, batch: Batch) -> Outputs:
        """A row for each token, without those that the tokenizer adds."""
        values = raw["logits"]
        if values.ndim != 3 or values.shape[2] < 2:
            raise ModelError(
                f"for {len(values)} texts the model returns {list(values.shape)}; one that tags "
                f"tokens returns [{len(values)}, tokens, labels], with 2 labels or more",
                fix="Leave --task out to take the task that the model's config.json names.",
            )
        return token_rows(values, batch)

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """Softmax."""
        return _scores.softmax(outputs.values)

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        encoded: Encoded,
        form: Form = DEFAULT_FORM,
    ) -> list[Any]:
        """Those of ``transformers.pipeline("token-classification")``: a list for each text."""
        if form != DEFAULT_FORM:
            raise ChoiceError(
                "a model that tags tokens has no top_k, function_to_apply or return_all_scores",
                fix="It takes aggregation_strategy and ignore_labels.",
            )
        if outputs.width != len(labels):
            raise unnamed(outputs.values, labels)
        scores, found = self.scores(outputs), []
        for number in range(len(encoded.texts)):
            rows = scores[outputs.offsets[number] : outputs.offsets[number + 1]]
            windows = [self._named(each, labels, encoded) for each in tagged(encoded, number, rows)]
            found.append(merged(windows))
        return found

    def _named(
        self, tokens: Sequence[Tagged], labels: Sequence[str], encoded: Encoded
    ) -> list[dict[str, Any]]:
        named = entities(tokens, labels, self.aggregation_strategy, pieces_of(encoded))
        return [each for each in named if self._kind(each) not in self.ignore_labels]

    @staticmethod
    def _kind(entity: Mapping[str, Any]) -> Any:
        return entity.get("entity", entity.get("entity_group"))

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """``entities``, grouped (where no strategy is set, by "simple"), and single ``tokens``."""
        import pyarrow as pa

        strategy = self.aggregation_strategy
        whole = replace(self, aggregation_strategy="simple" if strategy == "none" else strategy)
        apart = replace(self, aggregation_strategy="none")
        place = [("word", pa.string()), ("start", pa.int32()), ("end", pa.int32())]
        score = ("score", pa.float32())
        group = pa.list_(pa.struct([("entity_group", pa.string()), score, *place]))
        token = pa.list_(pa.struct([("entity", pa.string()), score, ("index", pa.int32()), *place]))
        return pa.table(
            {
                "entities": pa.array(whole.answers(outputs, labels, encoded), group),
                "tokens": pa.array(apart.answers(outputs, labels, encoded), token),
            }
        )

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        """The label of each token: int64 [rows]."""
        winners: NDArray[np.int64] = outputs.values.argmax(axis=1)
        return winners

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """F1 of the entities against the original's, and how many tokens keep their labels."""
        ours, theirs = self._entities(outputs, labels), self._entities(others, labels)
        counted = len(ours) + len(theirs)
        changed = self.changed_rows(outputs, others)
        return {
            "entity F1": 2 * len(ours & theirs) / counted if counted else 1.0,
            "tokens with the same label": 1 - float(changed.mean()) if len(changed) else 1.0,
        }

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Logit of the label that wins minus that of the one in ``others``, of the surest token."""
        return outputs.max(
            margin_of(outputs.values, self.decisions(outputs), self.decisions(others))
        )

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """The largest logit minus the second largest, of the least sure token."""
        return outputs.min(lead_of(outputs.values))

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        """Entities with the numbers of their tokens, from 1."""
        found = self._entities(Outputs.of_counts(output, [len(output)]), labels)
        named = (
            f"{kind} (token {begin + 1})" if end == begin + 1 else f"{kind} ({begin + 1}-{end})"
            for _, begin, end, kind in sorted(found)
        )
        return ", ".join(named) or "no entity"

    def _entities(self, outputs: Outputs, labels: Sequence[str]) -> set[tuple[int, int, int, str]]:
        """Text, first token, end and kind of every entity, grouped by "simple"."""
        tags = [labels[winner] for winner in self.decisions(outputs).tolist()]
        bounds = zip(outputs.offsets.tolist(), outputs.offsets[1:].tolist(), strict=False)
        return {
            (text, begin, end, kind)
            for text, (first, last) in enumerate(bounds)
            for begin, end, kind in grouped(tags[first:last])
            if kind not in self.ignore_labels
        }


TASK = TokenClassification
