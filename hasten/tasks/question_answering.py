"""Answers cut out of a text, as a model of SQuAD finds them: the likeliest beginning and end.

A text is a question and its context. Long contexts are read in windows, each behind the question.
A text has a row for each token of its context, in each window that the token is in, and before
these one for the window's first token, which stands for "there is no answer".
"""

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
from hasten.tasks import DEFAULT_FORM
from hasten.tasks._spans import Answers, Best, answers_of
from hasten.tasks.base import Encoded, Form, Raw, Task, token_rows
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_SEQ_LEN, _DOC_STRIDE = 384, 128
"""The pipeline's, where neither the model nor the caller asks for less."""


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """See the module's docstring; the settings are those of the pipeline.

    Attributes:
        doc_stride: tokens that two windows share; by default 128, or half of a shorter window.
        max_answer_len: the most tokens of an answer.
        max_seq_len: tokens of a window, question included; by default 384, or what the model reads.
        handle_impossible_answer: whether "no answer" competes with the others.
        align_to_words: whether answers begin and end with whole words.
    """

    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    name = "question_answering"
    reads = ("start_logits", "end_logits")
    takes = "pairs"
    sides = ("question", "context")
    needs_spans = True
    has_labels = False
    compresses = False
    model_class = "AutoModelForQuestionAnswering"
    pipeline = "question-answering"
    usual_columns = ("answer", "score")

    def __post_init__(self) -> None:
        if self.max_answer_len < 1 or (self.doc_stride or 0) < 0 or (self.max_seq_len or 1) < 1:
            raise ValueError("max_answer_len and max_seq_len must be at least 1, doc_stride 0")

    @property
    def reads_windows(self) -> bool:
        return True

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        return any("ForQuestionAnswering" in n for n in config.get("architectures") or ())

    def encode(self, tokenizer: TextTokenizer, texts: Sequence[Text]) -> Tokens:
        longest = min(tokenizer.max_length, self.max_seq_len or _MAX_SEQ_LEN)
        stride = min(longest // 2, _DOC_STRIDE) if self.doc_stride is None else self.doc_stride
        tokens = encode_windows(tokenizer, texts, overlap=stride, max_length=longest, pairs=True)
        assert tokens.special is not None
        assert tokens.cuts is not None
        kept = tokens.special.copy()
        kept[tokens.cuts[:-1]] = False
        return replace(tokens, special=kept)

    def gather(self, raw: Raw, batch: Batch) -> Outputs:
        """Rows of three: logits of beginning and end, and 1 at the first token of a window."""
        start, end = (raw[name] for name in self.reads)
        if start.ndim != 2 or start.shape != end.shape:
            raise ModelError(
                f"for {len(start)} texts the model returns {list(start.shape)}; one that answers "
                f"questions returns [{len(start)}, tokens] twice",
                fix="Leave --task out to take the task that the model's config.json names.",
            )
        first = batch.mask & (np.cumsum(batch.mask, axis=1) == 1)
        return token_rows(np.stack([start, end, first.astype(np.float32)], axis=-1), batch)

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """The logits of beginning and end."""
        return outputs.values[:, :2]

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        encoded: Encoded,
        form: Form = DEFAULT_FORM,
    ) -> list[Any]:
        """Those of ``transformers.pipeline("question-answering")``: a dict, or several."""
        if replace(form, top_k=1, bare=True) != DEFAULT_FORM or form.top_k is None:
            raise ChoiceError(
                "a model that answers questions has no function_to_apply or return_all_scores, "
                "and top_k must be a number",
                fix="It takes top_k, doc_stride, max_answer_len, max_seq_len, "
                "handle_impossible_answer and align_to_words.",
            )
        found = [each[: form.top_k] for each in self._answers(outputs, encoded, form.top_k)]
        return [each[0] if len(each) == 1 else each for each in found]

    def _answers(self, outputs: Outputs, encoded: Encoded, count: int) -> list[Answers]:
        best = Best.of(outputs, self.max_answer_len)
        found = []
        for number in range(len(encoded.texts)):
            own = answers_of(best, encoded, number, count, whole_words=self.align_to_words)
            if self.handle_impossible_answer or not own:
                score = float(np.exp(best.null[number])) if self.handle_impossible_answer else 0.0
                own.append({"score": score, "start": 0, "end": 0, "answer": ""})
            found.append(sorted(own, key=lambda answer: answer["score"], reverse=True))
        return found

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """``answer``, its ``score``, and where it begins and ends in the context."""
        import pyarrow as pa

        rows = [each[0] for each in self._answers(outputs, encoded, 1)]
        kinds = {"answer": pa.string(), "score": pa.float32(), "start": pa.int32()}
        return pa.Table.from_pylist(rows, pa.schema({**kinds, "end": pa.int32()}))

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        """Whether the answer begins and ends at a token: bool [rows, 3].

        The third says at a text's first row whether "no answer" is likelier than any, so that the
        proof holds with ``handle_impossible_answer`` and without.
        """
        best = Best.of(outputs, self.max_answer_len)
        decided = np.zeros((len(outputs.values), 3), np.bool_)
        texts = np.flatnonzero(best.first >= 0)
        decided[best.first[texts], 0] = decided[best.last[texts], 1] = True
        filled = np.flatnonzero(outputs.counts)
        decided[outputs.offsets[filled], 2] = best.impossible[filled]
        return decided

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """How many answers stay, how far their tokens overlap, and how many stay possible."""
        ours, theirs = (Best.of(each, self.max_answer_len) for each in (outputs, others))
        both = np.minimum(ours.last, theirs.last) - np.maximum(ours.first, theirs.first) + 1
        size = ours.last - ours.first + theirs.last - theirs.first + 2
        same = (ours.first == theirs.first) & (ours.last == theirs.last)
        return {
            "exact match": float(same.mean()),
            "F1": float((2 * both.clip(0) / size).mean()),
            "as answerable": float((ours.impossible == theirs.impossible).mean()),
        }

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Log-likelihood of the answer minus that of the one in ``others``."""
        ours, theirs = (Best.of(each, self.max_answer_len) for each in (outputs, others))
        texts = np.flatnonzero((ours.first >= 0) & (theirs.first >= 0))
        found = np.zeros(len(outputs))
        first, tokens = theirs.first[texts], (theirs.last - theirs.first)[texts]
        found[texts] = ours.score[texts] - ours.spans[first, tokens]
        turned = ours.impossible != theirs.impossible
        found[turned] = np.maximum(found, abs(ours.score - ours.null))[turned]
        return found

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """Log-likelihood of the answer minus that of the next one, or of "no answer" if nearer."""
        best = Best.of(outputs, self.max_answer_len)
        found = np.full(len(outputs), np.inf)
        for text in np.flatnonzero(best.first >= 0).tolist():
            spans = best.spans[outputs.offsets[text] : outputs.offsets[text + 1]].ravel()
            second = np.partition(spans, -2)[-2] if len(spans) > 1 else -np.inf
            nearest = max(second, best.score[text] - abs(best.score[text] - best.null[text]))
            found[text] = best.score[text] - nearest
        return found

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        """The numbers of the answer's tokens, from 1."""
        best = Best.of(Outputs.of_counts(output, [len(output)]), self.max_answer_len)
        if best.first[0] < 0:
            return "no context"
        first, last = int(best.first[0]), int(best.last[0])
        named = f"token {first}" if first == last else f"tokens {first}-{last}"
        return f"{named}, or no answer" if best.impossible[0] else named


TASK = QuestionAnswering
