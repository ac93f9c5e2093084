"""A model's own answers through a task, without a tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten import tasks
from hasten.compress.runner import Runner
from hasten.models import prepare
from hasten.models.folder import ModelFolder
from hasten.models.module import load_original
from hasten.records import Text
from hasten.tasks import Encoded, Form, Outputs


class Original:
    """The prepared fp32 model of a folder, answering by its task."""

    def __init__(self, model: Path, folder: Path, task: str | None = None) -> None:
        self.reference: ModelFolder = prepare(model, folder, task=task)
        self.info = self.reference.info
        self.task: Any = tasks.of(self.info)
        self._runner = Runner(self.reference)
        self._tokenizer = self.reference.tokenizer()
        self._module = load_original(folder / "module")

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

    def _run(self, task: Any, texts: Sequence[Text]) -> tuple[Outputs, Encoded]:
        tokens = task.encode(self._tokenizer, texts)
        return self._runner.outputs(self._module, tokens), Encoded(texts, tokens)

    def table(self, texts: Sequence[Text]) -> Any:
        outputs, encoded = self.outputs(texts)
        return self.task.table(outputs, self.info.labels, encoded)
