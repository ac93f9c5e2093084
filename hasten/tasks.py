"""What a model's outputs mean: answers for people, decisions to compare, and how sure they are.

A task is one class. Answers are those of ``transformers.pipeline("text-classification")``, so
that callers can switch over without changing what they read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hasten.errors import ChoiceError, InputError, ModelError

Outputs = NDArray[np.float32]
"""float32 [n, k]: one row a text, one column a label."""


class LabelScore(TypedDict):
    """One label and how strongly the model means it."""

    label: str
    score: float


Answer: TypeAlias = LabelScore | list[LabelScore] | list[float]


class Task(ABC):
    """How outputs of one kind are read. Has no state."""

    name: str
    """As in :attr:`hasten.records.ModelInfo.task`."""

    decides: bool
    """Whether outputs lead to a decision that can flip; if not, only numbers can be compared."""

    usual_columns: tuple[str, ...]
    """Which columns of :meth:`table` files get unless others are asked for."""

    @abstractmethod
    def scores(self, outputs: Outputs) -> Outputs:
        """What a caller sees of each label, float32 [n, k]: probabilities, or the numbers."""

    @abstractmethod
    def table(self, outputs: Outputs, labels: Sequence[str]) -> pa.Table:
        """The answers as Arrow columns, one row a text; ``labels`` name the k columns."""

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        top_k: int | None = 1,
        *,
        bare: bool = True,
        function: str | None = None,
        ranked: bool = True,
    ) -> list[Answer]:
        """One answer a text, as ``transformers.pipeline`` gives it for a list of texts.

        Args:
            outputs: float32 [n, k].
            labels: names of the k columns.
            top_k: how many labels to return for a text, best first; None for all.
            bare: with ``top_k=1``, one dict a text, as the pipeline gives when it is called
                without ``top_k``. False: a list with one dict, as it gives for ``top_k=1``.
            function: one of :data:`FUNCTIONS`, which makes scores of the outputs instead of the
                task's own.
            ranked: best first; False: in the order of the labels.

        Raises:
            ModelError: there is not one label for every column.
            ChoiceError: there is no such function.
        """
        scores = self.scores(outputs) if function is None else applied(function, outputs)
        return _named(scores, labels, top_k, bare=bare, ranked=ranked)

    @abstractmethod
    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        """What the outputs decide; a text's answer has flipped if its row differs.

        Returns:
            int64 [n] or bool [n, k]; [n, 0] where nothing is decided.
        """

    @abstractmethod
    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """How surely each text's outputs decide against what ``others`` decide.

        Args:
            outputs: float32 [n, k].
            others: float32 [n, k].

        Returns:
            float64 [n], in units of the logits; 0 where both decide alike.
        """

    @abstractmethod
    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """How far each text's decision is from the nearest other one.

        Returns:
            float64 [n], in units of the logits; zeros where nothing is decided.
        """

    @abstractmethod
    def describe(self, output: Outputs, labels: Sequence[str]) -> str:
        """The answer for one text (``output``: float32 [k]) in words."""

    def gold(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[Any] | None:
        """What the right labels decide, to compare with :meth:`decisions`; None without labels.

        Args:
            names: the right label of each text, by name or by index ("2").
            labels: names of the k columns.

        Returns:
            As :meth:`decisions`: int64 [n] or bool [n, k].

        Raises:
            InputError: a gold label is missing, or not one of the model's.
        """
        return None

    def values(self, names: Sequence[str], columns: int) -> NDArray[np.float64] | None:
        """The right numbers of each text, float64 [n, columns]; None where labels are no numbers.

        Raises:
            InputError: a label is not a number, or there is not one for every column.
        """
        return None


class SingleLabel(Task):
    """One label out of several: softmax, the largest logit wins."""

    name = "single_label"
    decides = True
    usual_columns = ("label", "score")

    def scores(self, outputs: Outputs) -> Outputs:
        """Softmax."""
        _check_choice(outputs)
        return _softmax(outputs)

    def table(self, outputs: Outputs, labels: Sequence[str]) -> pa.Table:
        """``label`` and its ``score``; ``scores`` of all labels by name."""
        scores = self.scores(outputs)
        best = scores.argmax(axis=1)
        return pa.table(
            {
                "label": pa.array(labels, pa.string()).take(pa.array(best)),
                "score": scores[np.arange(len(scores)), best],
                "scores": _by_label(scores, labels),
            }
        )

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        _check_choice(outputs)
        winners: NDArray[np.int64] = np.argmax(outputs, axis=1)
        return winners

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Logit of the label that wins minus that of the label that wins in ``others``."""
        rows, logits = np.arange(len(outputs)), outputs.astype(np.float64)
        own, other = self.decisions(outputs), self.decisions(others)
        margins: NDArray[np.float64] = logits[rows, own] - logits[rows, other]
        return margins

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """The largest logit minus the second largest."""
        _check_choice(outputs)
        ranked = np.sort(outputs.astype(np.float64), axis=1)
        gaps: NDArray[np.float64] = ranked[:, -1] - ranked[:, -2]
        return gaps

    def describe(self, output: Outputs, labels: Sequence[str]) -> str:
        return labels[int(output.argmax())]

    def gold(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[Any]:
        return np.array([_index(name, labels) for name in names], dtype=np.int64)


class MultiLabel(Task):
    """Each label on its own: sigmoid, and a label applies from 0.5 on (a logit of 0).

    This is also the task of a model with a single label that is not a regression.
    """

    name = "multi_label"
    decides = True
    usual_columns = ("labels", "scores")

    def scores(self, outputs: Outputs) -> Outputs:
        """Sigmoid."""
        return _sigmoid(outputs)

    def table(self, outputs: Outputs, labels: Sequence[str]) -> pa.Table:
        """The ``labels`` that apply, and the ``scores`` of all by name."""
        applying = [
            [label for label, applies in zip(labels, row, strict=True) if applies]
            for row in self.decisions(outputs)
        ]
        return pa.table(
            {
                "labels": pa.array(applying, pa.list_(pa.string())),
                "scores": _by_label(self.scores(outputs), labels),
            }
        )

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        return outputs >= 0

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Distance from zero of the surest among the labels that are decided otherwise."""
        changed = self.decisions(outputs) != self.decisions(others)
        distances = np.abs(outputs.astype(np.float64))
        margins: NDArray[np.float64] = np.where(changed, distances, 0.0).max(axis=1)
        return margins

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """Distance from zero of the label that is nearest to it."""
        nearest: NDArray[np.float64] = np.abs(outputs.astype(np.float64)).min(axis=1)
        return nearest

    def describe(self, output: Outputs, labels: Sequence[str]) -> str:
        applying = [label for label, logit in zip(labels, output, strict=True) if logit >= 0]
        return ", ".join(applying) or "no label"

    def gold(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[Any]:
        """Exactly the named labels apply. Several are separated by commas."""
        wanted = np.zeros((len(names), len(labels)), dtype=np.bool_)
        for row, name in zip(wanted, names, strict=True):
            several = [name] if name in labels else name.split(",")
            row[[_index(one, labels) for one in several if one.strip()]] = True
        return wanted


class Regression(Task):
    """Numbers, as the model gives them.

    A model with one label and no problem type is not this but ``multi_label``: the pipeline
    applies a sigmoid there.
    """

    name = "regression"
    decides = False
    usual_columns = ("value",)

    def scores(self, outputs: Outputs) -> Outputs:
        """The numbers themselves."""
        return outputs

    def table(self, outputs: Outputs, labels: Sequence[str]) -> pa.Table:
        """The number as ``value``; where there are several, they stand in it by name."""
        if outputs.shape[1] == 1:
            return pa.table({"value": outputs[:, 0]})
        return pa.table({"value": _by_label(outputs, labels)})

    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        return np.empty((len(outputs), 0), dtype=np.bool_)

    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """Zeros: there is no other decision."""
        return np.zeros(len(outputs))

    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """Zeros: there is no other decision."""
        return np.zeros(len(outputs))

    def describe(self, output: Outputs, labels: Sequence[str]) -> str:
        return ", ".join(f"{value:.4g}" for value in output)

    def values(self, names: Sequence[str], columns: int) -> NDArray[np.float64] | None:
        """Each label is a number, or one for each column, separated by commas."""
        return np.array([_numbers(name, columns) for name in names], dtype=np.float64)


class Tensors(Regression):
    """Vectors without names, such as embeddings, or logits of random weights."""

    name = "tensors"
    usual_columns = ("embedding",)

    def values(self, names: Sequence[str], columns: int) -> NDArray[np.float64] | None:
        """None: a vector has no label."""
        return None

    def table(self, outputs: Outputs, labels: Sequence[str]) -> pa.Table:
        """The vectors as ``embedding``, lists of equal length."""
        numbers = pa.array(np.ascontiguousarray(outputs).ravel())
        return pa.table({"embedding": pa.FixedSizeListArray.from_arrays(numbers, outputs.shape[1])})

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        top_k: int | None = 1,
        *,
        bare: bool = True,
        function: str | None = None,
        ranked: bool = True,
    ) -> list[Answer]:
        """The vectors as lists of float; the other arguments have no meaning."""
        vectors: list[Answer] = outputs.tolist()
        return vectors


_TASKS: dict[str, Task] = {
    task.name: task for task in (SingleLabel(), MultiLabel(), Regression(), Tensors())
}


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ChoiceError: there is no such task.
    """
    if name not in _TASKS:
        raise ChoiceError(f"unknown task {name!r}", fix=f"Tasks: {', '.join(_TASKS)}.")
    return _TASKS[name]


def for_classifier(problem_type: str | None, num_labels: int) -> Task:
    """The task of a sequence classifier, from two fields of its ``config.json``.

    The rules are those of ``transformers.pipeline``: a single label without a problem type gets
    a sigmoid, not a regression.

    >>> for_classifier(None, 2).name, for_classifier(None, 1).name
    ('single_label', 'multi_label')
    """
    if problem_type == "regression":
        return _TASKS["regression"]
    if problem_type == "multi_label_classification" or num_labels == 1:
        return _TASKS["multi_label"]
    return _TASKS["single_label"]


def _softmax(outputs: Outputs) -> Outputs:
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    shares: Outputs = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _sigmoid(outputs: Outputs) -> Outputs:
    # The pipeline's formula, for equal bits. Far below zero exp overflows to infinity, and the
    # score is 0, as it should be.
    with np.errstate(over="ignore"):
        chances: Outputs = np.float32(1.0) / (np.float32(1.0) + np.exp(-outputs))
    return chances


FUNCTIONS = ("softmax", "sigmoid", "none")
"""What may make scores of outputs; the pipeline's names."""


def applied(function: str, outputs: Outputs) -> Outputs:
    """Scores, float32 [n, k], by one of :data:`FUNCTIONS`.

    Raises:
        ChoiceError: there is no such function.
    """
    name = str(getattr(function, "name", function)).lower()  # transformers has an enum of them
    if name not in FUNCTIONS:
        raise ChoiceError(
            f"function_to_apply is {function!r}", fix=f"It must be one of {', '.join(FUNCTIONS)}."
        )
    return {"softmax": _softmax, "sigmoid": _sigmoid}[name](outputs) if name != "none" else outputs


def _named(
    scores: Outputs, labels: Sequence[str], top_k: int | None, *, bare: bool, ranked: bool
) -> list[Answer]:
    """Name the scores, best first; of equal ones the first label, as the pipeline does."""
    if scores.shape[1] != len(labels):
        raise _unnamed(scores, labels)
    order = np.argsort(-scores, axis=1, kind="stable")
    if not ranked:
        order = np.broadcast_to(np.arange(len(labels)), scores.shape)
    order = order[:, :top_k]
    best = np.take_along_axis(scores, order, axis=1).tolist()
    named: list[list[LabelScore]] = [
        [{"label": labels[i], "score": score} for i, score in zip(row, row_scores, strict=True)]
        for row, row_scores in zip(order.tolist(), best, strict=True)
    ]
    return [row[0] for row in named] if bare and top_k == 1 else list(named)


def _by_label(scores: Outputs, labels: Sequence[str]) -> pa.Array:
    """Scores as one column of structs with a field for each label."""
    if scores.shape[1] != len(labels):
        raise _unnamed(scores, labels)
    return pa.StructArray.from_arrays(list(np.ascontiguousarray(scores.T)), names=list(labels))


def _unnamed(scores: Outputs, labels: Sequence[str]) -> ModelError:
    return ModelError(
        f"the model gives {scores.shape[1]} numbers a text and names {len(labels)} labels",
        fix="Let id2label in its config.json name each column once.",
    )


def _check_choice(outputs: Outputs) -> None:
    if outputs.shape[1] < 2:
        # An argmax over one column never changes, and would let any candidate pass.
        raise ModelError(
            "a single output is not a choice among labels",
            fix="Set problem_type in config.json to regression or multi_label_classification.",
        )


def _index(name: str, labels: Sequence[str]) -> int:
    """Column of a gold label; a name goes before an index, for labels such as "1" to "5".

    Data frames make ``0.0`` of an index in a column that has gaps, and JSON has true and false.
    """
    name = name.strip()
    if not name:
        raise _no_label("one of the model's labels")
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


def _numbers(name: str, columns: int) -> list[float]:
    """The right numbers of one text.

    >>> _numbers("0.5, 2", 2)
    [0.5, 2.0]
    """
    wanted = "a number" if columns == 1 else f"{columns} numbers with commas between them"
    if not name.strip():
        raise _no_label(wanted)
    try:
        numbers = [float(part) for part in name.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != columns or not np.isfinite(numbers).all():
        raise InputError(
            f"the data has the label {name!r}; this model's labels are {wanted}",
            fix="Correct the labels, or leave --label-column out.",
        )
    return numbers


def _no_label(wanted: str) -> InputError:
    return InputError(
        f"the data has a text without a label; every text needs {wanted}",
        fix="Complete the labels, remove the texts that have none, or leave --label-column out.",
    )
