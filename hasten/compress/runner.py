"""Models of one reference run over texts, and are compared with what the original answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten import tasks
from hasten.compress.lesson import Look
from hasten.engines.base import Inputs, Raw, Session
from hasten.inputs.tokenization import Tokens
from hasten.judging.parity import compare
from hasten.models import ModelFolder
from hasten.percent import percent
from hasten.records import Parity, Strategy, Text
from hasten.runtime.batching import plan
from hasten.runtime.pipeline import Streams
from hasten.tasks import Outputs

if TYPE_CHECKING:
    from torch import nn

_WEIGHING = 128
"""Texts on which it is measured what can be left out, and where ranges of integers begin."""

_RUN = Strategy("token_budget", 64, token_budget=2048)


@dataclass(frozen=True, slots=True)
class Lot:
    """Texts for one purpose, and what the original gives for them."""

    texts: tuple[str, ...]
    tokens: Tokens
    truth: Outputs


class _InMemory(Session):
    """A model of transformers' that is being trained, as the runtime runs models."""

    def __init__(self, model: Any, output_names: Sequence[str]) -> None:
        self._model, self._output_names = model, output_names

    def run(self, inputs: Inputs) -> Raw:
        import torch

        with torch.inference_mode():
            outputs = self._model(**{n: torch.from_numpy(a) for n, a in inputs.items()})
        return {name: outputs[name].numpy() for name in self._output_names}


class Runner:
    """Runs models of one reference over texts."""

    def __init__(self, reference: ModelFolder) -> None:
        self._info = reference.info
        self.task = tasks.of(reference.info)
        self._tokenizer = reference.tokenizer()

    def tokens(self, texts: Sequence[Text]) -> Tokens:
        return self.task.encode(self._tokenizer, texts)

    def lot(self, original: nn.Module, texts: Sequence[str]) -> Lot:
        """Texts with what the original answers."""
        tokens = self.tokens(texts)
        return Lot(tuple(texts), tokens, self.outputs(original, tokens))

    def first(self, tokens: Tokens) -> Tokens:
        """A few of them; they stand in random order."""
        return tokens.select(np.arange(min(_WEIGHING, len(tokens))))

    def some(self, tokens: Tokens) -> list[dict[str, Any]]:
        """A few of them as batches."""
        return list(self.batches(self.first(tokens)))

    def batches(self, tokens: Tokens) -> Iterator[dict[str, Any]]:
        """The model's inputs, a few texts at a time."""
        import torch

        names, pad = self._info.input_names, self._info.pad_token_id
        for begin in range(0, len(tokens), 16):
            batch = tokens.batch(range(begin, min(begin + 16, len(tokens))))
            inputs = batch.inputs(names, pad)
            yield {name: torch.from_numpy(array) for name, array in inputs.items()}

    def outputs(self, model: Any, tokens: Tokens) -> Outputs:
        """What the model gives; it is as it was afterwards."""
        training = model.training
        model.eval()
        streams = Streams(_InMemory(model, self.task.reads), 1, self._info)
        outputs, _ = streams.run(tokens.windows, plan(tokens.windows.columns, _RUN))
        model.train(training)
        return outputs.regrouped(tokens.parts)

    def look(self, watch: Lot, student: Any) -> Look:
        """How far the student has come; where nothing is decided, closeness is all there is."""
        outputs = self.outputs(student, watch.tokens)
        truth = watch.truth.values
        off = np.abs(outputs.values - truth).mean() / max(float(truth.std()), 1e-9)
        closeness = float(1.0 - off)
        if not self.task.decides:
            return Look(closeness, closeness)
        same = ~self.task.changed(outputs, watch.truth)
        return Look(float(same.mean()), closeness)

    def seen(self, look: Look) -> str:
        """A look in a few words."""
        what = "of answers agree" if self.task.decides else "of the outputs kept"
        return f"{percent(look.agreement)} {what}"

    def parity(self, student: Any, judge: Lot) -> Parity:
        """The student against the original, on texts that were not used for training."""
        outputs = self.outputs(student, judge.tokens)
        return compare(
            judge.truth, outputs, task=self.task, labels=self._info.labels, texts=judge.texts
        )
