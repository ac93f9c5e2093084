"""The words that fit where a text has a mask token: softmax over the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ChoiceError, InputError, ModelError
from hasten.inputs.tokenization import Batch, TextTokenizer, Tokens
from hasten.records import Text
from hasten.tasks import DEFAULT_FORM, _scores
from hasten.tasks._choices import lead_of, margin_of
from hasten.tasks._entities import pieces_of
from hasten.tasks.base import Encoded, Form, Raw, Task
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa

_TOP = 5
"""Words for a mask unless ``top_k`` is given, as in the pipeline."""


@dataclass(frozen=True)
class FillMask(Task):
    """See the module's docstring.

    Attributes:
        mask_token: how texts write it.
        mask_token_id: its id; None where the tokenizer has none.
        targets: the only words that may stand there; None for all.
    """

    mask_token: str = ""
    mask_token_id: int | None = None
    targets: str | tuple[str, ...] | None = None

    name = "fill_mask"
    needs_spans = True
    has_labels = False
    compresses = False
    model_class = "AutoModelForMaskedLM"
    pipeline = "fill-mask"
    usual_columns = ("words", "scores")

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        return any("ForMaskedLM" in n for n in config.get("architectures") or ())

    @classmethod
    def settings_of(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The mask token, which the tokenizer names."""
        names = ("mask_token", "mask_token_id")
        return {name: config[name] for name in names if config.get(name) is not None}

    def check(self, text: Text) -> None:
        if self.mask_token not in text:
            raise InputError(
                f"{str(text)[:60]!r} has no mask token",
                fix=f"Write {self.mask_token} where a word is wanted.",
            )

    def encode(self, tokenizer: TextTokenizer, texts: Sequence[Text]) -> Tokens:
        tokens = super().encode(tokenizer, texts)
        for text in texts:
            self.check(text)
        return tokens

    def gather(self, raw: Raw, batch: Batch) -> Outputs:
        """A row for each mask token: a number for each word of the vocabulary."""
        values = raw["logits"]
        if self.mask_token_id is None:
            raise ModelError(
                "the tokenizer has no mask token, so there is nothing to fill in",
                fix="Give the tokenizer that the model was trained with: --tokenizer PATH.",
            )
        if values.ndim != 3:
            raise ModelError(
                f"for {len(values)} texts the model returns {list(values.shape)}; one that fills "
                f"masks returns [{len(values)}, tokens, words]",
                fix="Leave --task out to take the task that the model's config.json names.",
            )
        # Whatever padding is, it is not the mask token.
        masks = batch.input_ids(-1) == self.mask_token_id
        return Outputs.of_counts(values[masks], masks.sum(axis=1))

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
        """Those of ``transformers.pipeline("fill-mask")``.

        A list of words for a text with one mask token, a list of such lists for several.
        """
        if form.function is not None or not form.ranked:
            raise ChoiceError(
                "a model that fills masks has no function_to_apply or return_all_scores",
                fix="It takes top_k and targets.",
            )
        most = _TOP if form.bare else form.top_k
        found: list[Any] = []
        for number, rows in enumerate(self._likeliest(outputs, encoded, most)):
            masks = [
                self._words(encoded, number, place, row, alone=len(rows) == 1)
                for place, row in enumerate(rows)
            ]
            found.append(masks[0] if len(masks) == 1 else masks)
        return found

    def _likeliest(
        self, outputs: Outputs, encoded: Encoded, most: int | None
    ) -> list[list[list[tuple[int, float]]]]:
        """For each text and mask the likeliest words, with their scores."""
        wanted = self._wanted(encoded, outputs.width)
        scores = self.scores(outputs)[:, wanted]
        best = np.argsort(-scores, axis=1, kind="stable")[:, :most]
        ids, found = wanted[best].tolist(), np.take_along_axis(scores, best, axis=1).tolist()
        rows = [list(zip(*each, strict=True)) for each in zip(ids, found, strict=True)]
        ends = outputs.offsets.tolist()
        return [rows[begin:end] for begin, end in pairwise(ends)]

    def _wanted(self, encoded: Encoded, width: int) -> NDArray[np.int64]:
        """The words that may stand there, by id."""
        if self.targets is None or not encoded.texts:
            return np.arange(width)
        pieces = pieces_of(encoded)
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        ids = {pieces.id_of(word) for word in targets}
        if not ids or None in ids:
            raise ChoiceError(
                f"targets is {targets}", fix="Name one or more words of the model's vocabulary."
            )
        return np.array(sorted(filter(None, ids)), np.int64)

    def _words(
        self,
        encoded: Encoded,
        number: int,
        place: int,
        row: Sequence[tuple[int, float]],
        *,
        alone: bool,
    ) -> list[dict[str, Any]]:
        """The words for one mask of a text, each with the text that it makes."""
        pieces, tokens = pieces_of(encoded), encoded.tokens
        ids = tokens.ids[slice(*tokens.offsets[number : number + 2])].copy()
        mask = np.flatnonzero(ids == self.mask_token_id)[place]
        found = []
        for word, score in row:
            ids[mask] = word
            found.append(
                {
                    "score": score,
                    "token": word,
                    "token_str": pieces.decoded([word], skip_special=False),
                    # Without special tokens the other masks would be missing.
                    "sequence": pieces.decoded(ids.tolist(), skip_special=alone),
                }
            )
        return found

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """The likeliest of the ``words`` for each mask, their ``scores``, and five in ``fills``."""
        import pyarrow as pa

        rows = self._likeliest(outputs, encoded, _TOP)
        fields = [("score", pa.float32()), ("token", pa.int32()), ("token_str", pa.string())]
        kind = pa.list_(pa.list_(pa.struct([*fields, ("sequence", pa.string())])))
        fills = [
            [
                self._words(encoded, number, place, row, alone=len(masks) == 1)
                for place, row in enumerate(masks)
            ]
            for number, masks in enumerate(rows)
        ]
        words = [[mask[0]["token_str"] for mask in masks] for masks in fills]
        scores = [[mask[0]["score"] for mask in masks] for masks in fills]
        return pa.table(
            {
                "words": pa.array(words, pa.list_(pa.string())),
                "scores": pa.array(scores, pa.list_(pa.float32())),
                "fills": pa.array(fills, kind),
            }
        )

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        """The likeliest word for each mask: int64 [rows]."""
        winners: NDArray[np.int64] = outputs.values.argmax(axis=1)
        return winners

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """How many masks keep their likeliest word, and how many of the likeliest five stay."""
        most = min(_TOP, outputs.width)
        ours, theirs = (
            np.argpartition(-each.values, most - 1, axis=1)[:, :most] for each in (outputs, others)
        )
        if not len(ours):
            return {}
        kept = [
            len(set(a) & set(b)) / most for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)
        ]
        return {
            "same likeliest word": 1 - float(self.changed_rows(outputs, others).mean()),
            f"of the likeliest {most} kept": float(np.mean(kept)),
        }

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Logit of the likeliest word minus that of the one in ``others``, of the surest mask."""
        return outputs.max(
            margin_of(outputs.values, self.decisions(outputs), self.decisions(others))
        )

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """The largest logit minus the second largest, of the least sure mask."""
        return outputs.min(lead_of(outputs.values))

    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        """The ids of the likeliest words."""
        return ", ".join(f"token {row.argmax()}" for row in output) or "no mask"


TASK = FillMask
