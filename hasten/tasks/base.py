"""The seam between what a model computes and what its user reads.

A task is one file in this folder that defines a subclass of :class:`Task` and, at the end,
``TASK = ThatClass``. It is found by being there (see :func:`hasten.tasks.names`). Everything
behind it (pipeline, proof, bundles, bulk prediction, reports) handles its :class:`Outputs` without
knowing the task's name or shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import ModelError
from hasten.inputs.tokenization import Batch, TextTokenizer, Tokens
from hasten.records import Text
from hasten.tasks.outputs import Outputs

if TYPE_CHECKING:
    import pyarrow as pa

Raw: TypeAlias = Mapping[str, NDArray[np.float32]]
"""A session's outputs by name, each with the batch along its first axis."""

Objective: TypeAlias = Literal["softmax", "sigmoid", "squared"]
"""A student's loss: divergence of one softmax, of a sigmoid for each label, or squared distance."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Texts beside their tokens, for answers that point into the text."""

    texts: Sequence[Text]
    tokens: Tokens

    def select(self, indices: ArrayLike) -> Encoded:
        """The texts at ``indices``, in that order; an index may come twice."""
        chosen = np.asarray(indices, np.int64)
        return Encoded([self.texts[index] for index in chosen], self.tokens.select(chosen))


@dataclass(frozen=True, slots=True)
class Form:
    """How labels are returned: what callers of ``transformers.pipeline`` can ask for.

    Attributes:
        top_k: how many labels to return for a text, best first; None for all.
        bare: with ``top_k=1``, one dict a text, as the pipeline gives when it is called without
            ``top_k``. False: a list with one dict, as it gives for ``top_k=1``.
        function: one of :data:`hasten.tasks.FUNCTIONS`, which makes scores of the outputs instead
            of the task's own.
        ranked: best first; False: in the order of the labels.
    """

    top_k: int | None = 1
    bare: bool = True
    function: str | None = None
    ranked: bool = True


DEFAULT_FORM = Form()
"""The best label alone, as the pipeline gives it for a list of texts."""


@dataclass(frozen=True)
class Task(ABC):
    """How a model is run for one kind of answer, and how its outputs are read.

    A subclass is a frozen dataclass whose fields are its settings; they travel with the model in
    :attr:`hasten.records.ModelInfo.task_settings`.
    """

    name: ClassVar[str]
    """The file's name, as in :attr:`hasten.records.ModelInfo.task`."""

    decides: ClassVar[bool] = True
    """Whether outputs lead to a decision that can flip; if not, only numbers can be compared."""

    reads: ClassVar[tuple[str, ...]] = ("logits",)
    """The outputs that it needs, by their names in the exported graph."""

    takes: ClassVar[Literal["texts", "pairs"]] = "texts"
    """Whether the model reads one text at a time, or a text and its pair."""

    sides: ClassVar[tuple[str, str]] = ("text", "text_pair")
    """What callers name the two texts of a pair."""

    needs_spans: ClassVar[bool] = False
    """Whether answers need the characters of each token; see :attr:`Tokens.spans`."""

    has_labels: ClassVar[bool] = True
    """Whether a row's columns are labels, which ``id2label`` in ``config.json`` names."""

    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    """The class of ``transformers`` that loads such a model."""

    pipeline: ClassVar[str | None] = None
    """What ``transformers.pipeline`` calls such a model's answers, if it gives the same."""

    pools: ClassVar[tuple[str, ...] | None] = None
    """How an encoder's vectors of tokens become one of a text, where its folder does not say; empty
    if they stay as they are, None if a head reads them. See :mod:`hasten.models.sentence`."""

    vectors: ClassVar[bool] = False
    """Whether an answer is one vector of numbers."""

    compresses: ClassVar[bool] = True
    """Whether ``hasten compress`` can make a smaller model of one of this task."""

    demanded: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """What figures of :meth:`agreement` must reach, by name, where a candidate is lossy."""

    problem_type: ClassVar[str | None] = None
    """The ``problem_type`` of such a model in ``config.json``, if it has one."""

    wraps_single: ClassVar[bool] = False
    """Whether ``transformers.pipeline`` puts the answer to a plain text into a list."""

    objective: ClassVar[Objective] = "squared"
    """What a student of such a model is trained on."""

    usual_columns: ClassVar[tuple[str, ...]]
    """The columns of :meth:`table` that files get unless others are asked for."""

    @classmethod
    @abstractmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        """Whether a model is of this task, unless the user says otherwise.

        Args:
            config: fields of its ``config.json``; ``num_labels`` is always there.
        """

    @classmethod
    def settings_of(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings that a model's ``config.json`` decides; by default none.

        Raises:
            ModelError: it asks for what the task does not have.
        """
        del config
        return {}

    @classmethod
    def given(cls, settings: Mapping[str, Any], labels: Sequence[str]) -> Mapping[str, Any]:
        """Settings as a caller gives them, made into those that the fields hold.

        Args:
            settings: by the names of fields, and perhaps others.
            labels: of the model.

        Raises:
            ChoiceError: a value that a field cannot have.
        """
        del labels
        return settings

    def check(self, text: Text) -> None:
        """Refuse a text that the model cannot answer; by default it answers all.

        Raises:
            InputError: what it lacks.
        """
        del text

    def encode(self, tokenizer: TextTokenizer, texts: Sequence[Text]) -> Tokens:
        """Tokenize ``texts``: by default each is one sequence, truncated.

        Raises:
            InputError: a text cannot be encoded.
        """
        return tokenizer.encode(texts, pairs=self.takes == "pairs", spans=self.needs_spans)

    def gather(self, raw: Raw, batch: Batch) -> Outputs:
        """The rows of a padded batch: by default one a text, of the first output.

        Raises:
            ModelError: the output has another shape.
        """
        values = raw[self.reads[0]]
        if self.has_labels and values.ndim != 2:
            raise ModelError(
                f"for {len(values)} texts the model returns {list(values.shape)}; a classifier "
                f"returns [{len(values)}, labels]",
                fix="If it tags tokens, use --task token_classification. To compare outputs of "
                "any shape as tensors, use --task tensors.",
            )
        return Outputs.of_rows(values.reshape(len(values), -1))

    @property
    def reads_windows(self) -> bool:
        """Whether :meth:`encode` may read a text in several windows."""
        return False

    @abstractmethod
    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """What a caller sees of each row, float32 [rows, k]: probabilities, or the numbers."""

    @abstractmethod
    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """The answers as Arrow columns, one row a text.

        Args:
            outputs: of n texts.
            labels: names of the k columns.
            encoded: these n texts.
        """

    @abstractmethod
    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        encoded: Encoded,
        form: Form = DEFAULT_FORM,
    ) -> list[Any]:
        """One answer a text, as ``transformers.pipeline`` gives it for a list of texts.

        Args:
            outputs: of n texts.
            labels: names of the k columns.
            encoded: these n texts.
            form: which labels are returned, and how, where the task returns any.

        Raises:
            ModelError: there is not one label for every column.
            ChoiceError: unknown function.
        """

    @abstractmethod
    def decisions(self, outputs: Outputs) -> NDArray[Any]:
        """What each row decides: [rows, ...]; [rows, 0] where nothing is decided."""

    def changed(self, outputs: Outputs, others: Outputs) -> NDArray[np.bool_]:
        """Whether any decision of each text differs, bool [n]; texts have equally many rows."""
        return outputs.any(self.changed_rows(outputs, others))

    def changed_rows(self, outputs: Outputs, others: Outputs) -> NDArray[np.bool_]:
        """Whether each row decides otherwise, bool [rows]."""
        differ = self.decisions(outputs) != self.decisions(others)
        rows: NDArray[np.bool_] = differ.any(axis=tuple(range(1, differ.ndim)))
        return rows

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Figures of its own on how far ``others`` keep the answers, by name; often none.

        Args:
            outputs: of n different texts.
            others: of the same texts, with equally many rows for each.
            texts: these texts.
            labels: names of the k columns.
        """
        return {}

    @abstractmethod
    def margins(self, outputs: Outputs, others: Outputs) -> NDArray[np.float64]:
        """How surely each text's outputs decide against what ``others`` decide.

        Args:
            outputs: of n texts.
            others: of the same texts, with equally many rows for each.

        Returns:
            float64 [n], in units of the logits: of the surest row; 0 where both decide alike.
        """

    @abstractmethod
    def sureness(self, outputs: Outputs) -> NDArray[np.float64]:
        """How far each text's decision is from the nearest other one.

        Returns:
            float64 [n], in units of the logits: of the least sure row, infinite where a text has
            none; zeros where nothing is decided.
        """

    @abstractmethod
    def describe(self, output: NDArray[np.float32], labels: Sequence[str]) -> str:
        """The answer for one text in words; ``output`` has its rows, float32 [rows, k]."""

    def together(self, answers: list[Any], width: int) -> Any:
        """The answers to several texts, perhaps none, as a caller gets them.

        Args:
            answers: one a text.
            width: how many numbers a row of the model's outputs has.
        """
        return answers

    def gold(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[Any] | None:
        """What the right labels decide, to compare with :meth:`decisions`; None without labels.

        Args:
            names: the right label of each text, by name or by index ("2").
            labels: names of the k columns.

        Returns:
            As :meth:`decisions`.

        Raises:
            InputError: a gold label is missing, or not one of the model's.
        """
        return None

    def values(self, names: Sequence[str], columns: int) -> NDArray[np.float64] | None:
        """The right numbers of each text, float64 [n, columns]; None unless labels are numbers.

        Raises:
            InputError: a label is not a number, or there is not one for every column.
        """
        return None


def token_rows(values: NDArray[np.float32], batch: Batch) -> Outputs:
    """One row for each token of each text, without padding and special tokens.

    Args:
        values: float32 [batch, length, k].
        batch: what the model was given; its tokens have :attr:`Tokens.special`.
    """
    kept = batch.mask.copy()
    if batch.tokens.special is not None:
        kept[batch.mask] = ~batch.tokens.special[batch.positions]
    return Outputs.of_counts(values[kept], kept.sum(axis=1))
