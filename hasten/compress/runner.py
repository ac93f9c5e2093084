"""Models of one reference run over texts, and are compared with what the original answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten import tasks
from hasten.compress.lesson import Look
from hasten.inputs.tokenization import Tokens
from hasten.judging.parity import compare
from hasten.models import ModelFolder
from hasten.records import Parity, Strategy
from hasten.runtime.batching import plan

if TYPE_CHECKING:
    from torch import nn

_WEIGHING = 128
"""Texts on which it is measured what can be left out, and where ranges of integers begin."""

_RUN = Strategy("token_budget", 64, token_budget=2048)


@dataclass(frozen=True, slots=True)
class Lot:
    """Texts for one purpose, and what the original answers: float32 [texts, k]."""

    texts: tuple[str, ...]
    tokens: Tokens
    truth: NDArray[np.float32]


class Runner:
    """Runs models of one reference over texts."""

    def __init__(self, reference: ModelFolder) -> None:
        self._info = reference.info
        self._task = tasks.get(reference.info.task)
        self._tokenizer = reference.tokenizer()

    @property
    def task(self) -> str:
        """How outputs are read; a name of :mod:`hasten.tasks`."""
        return self._info.task

    def tokens(self, texts: Sequence[str]) -> Tokens:
        return self._tokenizer.encode(texts)

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

        for begin in range(0, len(tokens), 16):
            ids, mask = tokens.pad(range(begin, min(begin + 16, len(tokens))), self._pad)
            yield {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    @property
    def _pad(self) -> int:
        return self._info.pad_token_id

    def outputs(self, model: Any, tokens: Tokens) -> NDArray[np.float32]:
        """Logits, float32 [texts, k]; the model is as it was afterwards."""
        import torch

        training = model.training
        model.eval()
        rows: list[NDArray[np.float32]] = []
        order = plan(tokens.lengths, _RUN)
        with torch.inference_mode():
            for batch in order:
                ids, mask = map(torch.from_numpy, tokens.pad(batch, self._pad))
                rows.append(model(input_ids=ids, attention_mask=mask).logits.numpy())
        model.train(training)
        outputs = np.concatenate(rows)
        result = np.empty_like(outputs)
        result[np.concatenate(order)] = outputs
        return result

    def look(self, watch: Lot, student: Any) -> Look:
        """How far the student has come; where nothing is decided, closeness is all there is."""
        outputs = self.outputs(student, watch.tokens)
        off = np.abs(outputs - watch.truth).mean() / max(float(watch.truth.std()), 1e-9)
        closeness = float(1.0 - off)
        if not self._task.decides:
            return Look(closeness, closeness)
        same = self._task.decisions(outputs) == self._task.decisions(watch.truth)
        return Look(float(same.reshape(len(same), -1).all(axis=1).mean()), closeness)

    def seen(self, look: Look) -> str:
        """A look in a few words."""
        what = "of answers agree" if self._task.decides else "of the outputs kept"
        return f"{look.agreement:.1%} {what}"

    def parity(self, student: Any, judge: Lot) -> Parity:
        """The student against the original, on texts that were not used for training."""
        outputs = self.outputs(student, judge.tokens)
        return compare(
            judge.truth, outputs, task=self._task, labels=self._info.labels, texts=judge.texts
        )
