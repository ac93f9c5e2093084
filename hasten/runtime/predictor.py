"""A loaded bundle answers texts as ``transformers.pipeline("text-classification")`` does."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten import tasks
from hasten.errors import ChoiceError, InputError
from hasten.records import Stats, Text
from hasten.runtime import arguments
from hasten.runtime import bundle as bundles
from hasten.runtime.stages import Stages
from hasten.runtime.watch import Watch
from hasten.tasks import Encoded, Form, Outputs

if TYPE_CHECKING:
    import pyarrow as pa

# As many texts are planned together; more would not pad less, and need memory without bound.
_WINDOW = 8192

_UNSET: Any = object()


class Predictor:
    """A model that is loaded and planned, ready for texts.

    Safe to call from several threads; calls take turns, since each uses all the cores it was
    given. Also a context manager that releases the model at its end.

    Attributes:
        bundle: where it comes from, and how this machine differs from the one it was tuned on.
        task: what its outputs mean.
        stages: what runs them.

    Raises:
        BundleError: this machine does not compute what the bundle was proved to compute.
        Unavailable: an engine that the bundle needs is not installed.
    """

    def __init__(self, bundle: bundles.Bundle) -> None:
        self.bundle = bundle
        self.task = tasks.of(bundle.model)
        self.stages = Stages(bundle)
        self._watch = Watch([stage.hands_on for stage in bundle.stages])
        self._turn = threading.Lock()

    @property
    def stats(self) -> Stats:
        """How many texts have been answered so far, and by which stage."""
        return self._watch.stats

    def __call__(
        self,
        texts: object = _UNSET,
        top_k: int | None = _UNSET,
        *,
        function_to_apply: str | None = None,
        return_all_scores: bool | None = None,
        truncation: bool | str | None = True,
        max_length: int | None = None,
        batch_size: int | None = None,
        padding: object = None,
        num_workers: int | None = None,
        **unknown: object,
    ) -> Any:
        """Answer one text or many, with the arguments of the text-classification pipeline.

        Args:
            texts: a text, or ``{"text": ...}``; of a model of pairs a tuple of two texts, or
                ``{"text": ..., "text_pair": ...}`` (of one that answers questions
                ``question=..., context=...``); a sequence or array of these; or a generator or
                dataset, which are read as their answers are.
            top_k: how many labels to return, best first; None for all. Without it, the best
                label alone, not wrapped in a list.
            function_to_apply: ``"softmax"``, ``"sigmoid"`` or ``"none"``, instead of what the
                model's config says.
            return_all_scores: all labels, in the model's order.
            truncation: True cuts longer texts at ``max_length``, by default the model's; False
                refuses them.
            max_length: the most tokens of a text.
            batch_size: how many texts of a generator or dataset are read ahead, by default 256;
                1 answers each as it comes. Batches are planned in any case.
            padding: ignored; texts are padded to the longest of their batch.
            num_workers: ignored.
            unknown: settings of the task, such as ``prompt_name``; others are refused.

        Returns:
            What the pipeline of the task returns: of a classifier for each text ``{"label": str,
            "score": float}``, or a list of such where ``top_k`` is given. For what is read as it
            is answered, an iterator over these.

        Raises:
            InputError: something that is not text, or a text that is too long.
            ChoiceError: an unknown argument, or a value that an argument cannot have.
            EngineError: the engine failed.
        """
        del padding, num_workers
        sides = self.task.sides if self.task.takes == "pairs" else None
        if texts is _UNSET:
            texts = arguments.by_side(unknown, sides)
        task, unknown = tasks.adjusted(self.task, unknown, self.bundle.model.labels)
        arguments.refuse_unknown(unknown, type(self).__call__)
        arguments.check_arguments(None if top_k is _UNSET else top_k, truncation)
        alone = top_k is _UNSET
        if function_to_apply is not None:
            tasks.applied(function_to_apply, np.zeros((1, 1), np.float32))
        if top_k is _UNSET:
            top_k = None if return_all_scores else 1

        bare = alone and not return_all_scores
        form = Form(top_k, bare=bare, function=function_to_apply, ranked=not return_all_scores)

        def answers(some: Sequence[Text]) -> list[Any]:
            labels = self.bundle.model.labels
            runs = self._runs(some, truncation=truncation, max_length=max_length, task=task)
            return [
                answer
                for encoded, outputs in runs
                for answer in task.answers(outputs, labels, encoded, form)
            ]

        if isinstance(texts, str | Mapping) or (sides and isinstance(texts, tuple)):
            (answer,) = answers([arguments.as_text(texts, sides=sides)])
            # The pipeline's own shapes: of the tasks that do, the answer to a plain text alone.
            wrapped = isinstance(texts, str) and alone and self.task.wraps_single
            return [answer] if wrapped else answer
        given = arguments.listed(texts, sides=sides)
        if given is not None:
            return self.task.together(answers(given), self.bundle.columns)
        return arguments.answered(arguments.streamed(texts, sides=sides), answers, batch_size)

    def table(self, texts: Sequence[Text] | pa.Array | pa.ChunkedArray) -> pa.Table:
        """Answer texts as Arrow columns, for data frames and databases.

        Args:
            texts: a sequence of str, or an Arrow array of strings; null counts as the empty text.

        Returns:
            One row a text, in order: of a classifier ``label``, ``score``, and ``scores`` of all
            labels by name.

        Raises:
            InputError: something that is not text.
            EngineError: the engine failed.
        """
        import pyarrow as pa

        if isinstance(texts, pa.Array | pa.ChunkedArray):
            texts = ["" if text is None else text for text in texts.to_pylist()]
        labels = self.bundle.model.labels
        return pa.concat_tables(
            self.task.table(outputs, labels, encoded)
            for encoded, outputs in self._runs(self._listed(texts))
        )

    def outputs(self, texts: Sequence[Text]) -> Outputs:
        """The model's raw outputs, in the input's order: their ``values`` are float32 [rows, k]."""
        return Outputs.concatenate([outputs for _, outputs in self._runs(self._listed(texts))])

    def _listed(self, texts: object) -> Sequence[Text]:
        sides = self.task.sides if self.task.takes == "pairs" else None
        given = None if isinstance(texts, str) else arguments.listed(texts, sides=sides)
        if given is None:
            raise InputError(f"texts must be a sequence of str, not {type(texts).__name__}")
        return given

    def _runs(
        self,
        texts: Sequence[Text],
        *,
        truncation: bool | str | None = True,
        max_length: int | None = None,
        task: tasks.Task | None = None,
    ) -> list[tuple[Encoded, Outputs]]:
        """Texts and outputs, some thousand texts at a time; at least one part, if it is empty."""
        runs: list[tuple[Encoded, Outputs]] = []
        self._refuse_longer(max_length)
        with self._turn:
            for begin in range(0, len(texts), _WINDOW):
                window = texts[begin : begin + _WINDOW]
                if truncation in arguments.NO_TRUNCATION:
                    self._refuse_cut(window, begin, max_length, task)
                answered = self.stages.run(window, max_length, task)
                runs.append((Encoded(window, answered.encoded), answered.outputs))
                warning = self._watch.count(answered.counts)
                if warning:
                    warnings.warn(f"{self.bundle.folder}: {warning}", stacklevel=4)
            if not runs:
                nothing = Outputs.of_rows(np.empty((0, self.bundle.columns), np.float32))
                runs.append((Encoded((), self.stages.first.encode((), max_length)), nothing))
        return runs

    def _refuse_longer(self, max_length: int | None) -> None:
        longest = self.bundle.model.max_length
        if max_length is not None and max_length not in range(1, longest + 1):
            raise ChoiceError(
                f"max_length is {max_length!r}", fix=f"It must be from 1 to {longest}, the model's."
            )

    def _refuse_cut(
        self,
        texts: Sequence[Text],
        begin: int,
        max_length: int | None,
        task: tasks.Task | None,
    ) -> None:
        """Refuse texts of which the last stage, which reads the most, would not read the end."""
        arguments.refuse_long(self.stages.loaded[-1].encode(texts, max_length, task), begin)

    def close(self) -> None:
        """Release the models and their threads."""
        self.stages.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load(folder: str | PathLike[str], *, trust: bool = False) -> Predictor:
    """Load a bundle that ``hasten tune`` made.

    Needs neither torch nor transformers, unless the winner does.

    Args:
        folder: the bundle.
        trust: accept an artifact that can run code when it is loaded, whoever made it.

    Raises:
        BundleError: no bundle, a damaged one, one that must not or cannot run here.
        Unavailable: the winner's engine is not installed; the message says what to install.
        EngineError: the engine cannot load the artifact.
    """
    return Predictor(verified(folder, trust=trust))


def verified(folder: str | PathLike[str], *, trust: bool = False) -> bundles.Bundle:
    """A bundle whose files are what was saved; warns where this machine is another one.

    Raises:
        BundleError: no bundle, a damaged one, one that must not or cannot run here.
    """
    bundle = bundles.load(Path(folder), trust=trust)
    for difference in bundle.differences:
        warnings.warn(f"{folder}: {difference}", stacklevel=3)
    return bundle
