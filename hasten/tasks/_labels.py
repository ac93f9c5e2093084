"""What the tasks with labels share: named scores, columns, and right labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError, ModelError
from hasten.tasks import DEFAULT_FORM, _scores
from hasten.tasks.base import Encoded, Form, Task
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa


class LabelScore(TypedDict):
    """One label and how strongly the model means it."""

    label: str
    score: float


class Labelled(Task):
    """A task that gives one row a text, and a score for each label."""

    wraps_single = True
    pipeline: ClassVar[str | None] = "text-classification"

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        encoded: Encoded,
        form: Form = DEFAULT_FORM,
    ) -> list[Any]:
        """Those of ``transformers.pipeline("text-classification")``."""
        if form.function is None:
            return named(self.scores(outputs), labels, form)
        return named(_scores.applied(form.function, outputs.values), labels, form)


def classifies(config: Mapping[str, Any]) -> bool:
    """Whether a model is a classifier of single texts, as far as its config names a class."""
    return _has_classes(config) and not is_cross_encoder(config)


def is_cross_encoder(config: Mapping[str, Any]) -> bool:
    """Whether sentence-transformers saved the model as one that reads pairs of texts."""
    return _has_classes(config) and _activation(config) is not None


def activation_of(config: Mapping[str, Any]) -> str:
    """``CrossEncoder``'s function for a single number: what config.json names, or a sigmoid.

    >>> activation_of({"sentence_transformers": {"activation_fn": "torch.nn.Identity"}})
    'none'
    """
    named = _activation(config)
    if named is None:
        return "none" if config.get("problem_type") == "regression" else "sigmoid"
    kind = named.rpartition(".")[2].lower()
    if kind not in ("sigmoid", "identity"):
        raise ModelError(
            f"the model's config.json scores pairs with {named}",
            fix="Sigmoid and Identity of torch.nn are known; for the bare number set Identity.",
        )
    return "none" if kind == "identity" else kind


def _has_classes(config: Mapping[str, Any]) -> bool:
    architectures = config.get("architectures") or ()
    return not architectures or any("ForSequenceClassification" in name for name in architectures)


def _activation(config: Mapping[str, Any]) -> str | None:
    current = config.get("sentence_transformers")
    if isinstance(current, Mapping) and "activation_fn" in current:
        return str(current["activation_fn"])
    former = config.get("sbert_ce_default_activation_function")  # until version 4
    return None if former is None else str(former)


def named(
    scores: NDArray[np.float32],
    labels: Sequence[str],
    form: Form,
) -> list[LabelScore | list[LabelScore]]:
    """Name the scores, best first; of equal ones the first label, as the pipeline does."""
    if scores.shape[1] != len(labels):
        raise unnamed(scores, labels)
    order = np.argsort(-scores, axis=1, kind="stable")
    if not form.ranked:
        order = np.broadcast_to(np.arange(len(labels)), scores.shape)
    order = order[:, : form.top_k]
    best = scores[np.arange(len(scores))[:, np.newaxis], order].tolist()
    rows: list[list[LabelScore]] = [
        [{"label": labels[i], "score": score} for i, score in zip(row, row_scores, strict=True)]
        for row, row_scores in zip(order.tolist(), best, strict=True)
    ]
    return [row[0] for row in rows] if form.bare and form.top_k == 1 else list(rows)


def by_label(scores: NDArray[np.float32], labels: Sequence[str]) -> pa.Array:
    """Scores as one column of structs with a field for each label."""
    import pyarrow as pa

    if scores.shape[1] != len(labels):
        raise unnamed(scores, labels)
    return pa.StructArray.from_arrays(list(np.ascontiguousarray(scores.T)), names=list(labels))


def unnamed(scores: NDArray[np.float32], labels: Sequence[str]) -> ModelError:
    """The columns of ``scores`` are not as many as the labels."""
    return ModelError(
        f"the model gives {scores.shape[1]} numbers a text and names {len(labels)} labels",
        fix="Let id2label in its config.json name each column once.",
    )


def index_of(name: str, labels: Sequence[str]) -> int:
    """Column of a gold label; a name goes before an index, for labels such as "1" to "5".

    Data frames make ``0.0`` of an index in a column that has gaps, and JSON has true and false.

    Raises:
        InputError: there is no label, or the model does not have it.
    """
    name = name.strip()
    if not name:
        raise no_label("one of the model's labels")
    truth = {"True": ("true", "1"), "False": ("false", "0")}.get(name)
    index = truth[1] if truth else name.removesuffix(".0")
    for spelling in (name, *(truth or (index,))):
        if spelling in labels:
            return labels.index(spelling)
    if index.isdecimal() and int(index) < len(labels):
        return int(index)
    raise InputError(
        f"the data has the label {name!r}, which the model does not know",
        fix=f"The model's labels: {', '.join(labels)}; or their index, 0 to {len(labels) - 1}.",
    )


def no_label(wanted: str) -> InputError:
    """A text's label is empty, where there should be ``wanted``."""
    return InputError(
        f"the data has a text without a label; every text needs {wanted}",
        fix="Complete the labels, remove the texts that have none, or leave --label-column out.",
    )
