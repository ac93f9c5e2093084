"""A model's own answers through a task, without a tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten import tasks
from hasten.engines.base import Inputs, Raw, Session
from hasten.models import prepare
from hasten.models.folder import ModelFolder
from hasten.records import Strategy, Text
from hasten.runtime.pipeline import Pipeline, Streams
from hasten.tasks import Encoded, Form, Outputs

_BATCHES = Strategy("sorted", 8)


class _InMemory(Session):
    """The prepared module, as an engine would run it."""

    def __init__(self, reference: ModelFolder) -> None:
        self._module, self._names = reference.module(), reference.info.output_names

    def run(self, inputs: Inputs) -> Raw:
        import torch

        with torch.inference_mode():
            outputs = self._module(*map(torch.from_numpy, inputs.values()))
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        return {n: output.numpy() for n, output in zip(self._names, several, strict=True)}


class Original:
    """The prepared fp32 model of a folder, answering by its task."""

    def __init__(self, model: Path, folder: Path, task: str | None = None) -> None:
        self.reference: ModelFolder = prepare(model, folder, task=task)
        self.info = self.reference.info
        self.task: Any = tasks.of(self.info)
        streams = Streams(_InMemory(self.reference), 1, self.info)
        self._pipeline = Pipeline(self.reference.tokenizer(), streams)

    def outputs(self, texts: Sequence[Text]) -> tuple[Outputs, Encoded]:
        return self._run(self.task, texts)

    def answers(self, texts: Sequence[Text], **options: Any) -> list[Any]:
        """With settings of the task and arguments of :class:`Form`."""
        task, form = tasks.adjusted(self.task, options)
        outputs, encoded = self._run(task, texts)
        found: list[Any] = task.answers(
            outputs, self.info.labels, encoded, Form(**{"bare": "top_k" not in form, **form})
        )
        return found

    def table(self, texts: Sequence[Text]) -> Any:
        outputs, encoded = self.outputs(texts)
        return self.task.table(outputs, self.info.labels, encoded)

    def _run(self, task: Any, texts: Sequence[Text]) -> tuple[Outputs, Encoded]:
        run = self._pipeline.run(texts, _BATCHES, task=task)
        return run.outputs, Encoded(texts, run.encoded)
