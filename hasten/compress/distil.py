"""Teaching a student what the original answers, with ``transformers.Trainer``.

The loss is the usual one for such students: the divergence of the softened answers (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015), and the squared distance of the hidden states
behind the blocks that both have (Sanh et al., "DistilBERT", 2019; Jiao et al., "TinyBERT", 2020).
Unlabelled texts suffice.
"""

from __future__ import annotations

import copy
import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.reference.folder import storing, write_json
from hasten.reference.module import quiet
from hasten.tokenization import Tokens

if TYPE_CHECKING:
    from torch import Tensor, nn

TEMPERATURE = 2.0
BATCH_SIZE = 32
LEARNING_RATE = 1e-4
CHECKS = 10
"""How often the agreement is looked at, and a checkpoint is kept."""

PATIENCE = 4
"""Looks without a better agreement after which the rest is spared."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is taught, to whom, with what.

    Attributes:
        original: the teacher; never changed.
        student: changed in place.
        layers: which of the original's blocks the student's are.
        tokens: of the training texts.
        pad_token_id: of the tokenizer.
        gold: the right class of each training text, int64, where labels are known.
        agreement: of the student with the original on texts that are not taught, 0 to 1.
        steps: batches in all.
        seed: for the order of the texts and dropout.
        learning_rate: at its highest.
        dropout: whether the student's dropout is on.
    """

    original: nn.Module
    student: nn.Module
    layers: Sequence[int]
    tokens: Tokens
    pad_token_id: int
    gold: Sequence[int] | None
    agreement: Callable[[nn.Module], float]
    steps: int
    seed: int
    learning_rate: float = LEARNING_RATE
    dropout: bool = True


def teach(lesson: Lesson, folder: Path, tell: Callable[[int, float | None], None]) -> list[float]:
    """Train the student; what is best on the texts that are not taught stays.

    Args:
        lesson: what to do. The same lesson ends with the same weights, interrupted or not.
        folder: for checkpoints; those of an interrupted run are taken up.
        tell: is given the steps that are done, and the last agreement.

    Returns:
        The agreement at each look, in order.
    """
    for checkpoint in folder.glob("checkpoint-*"):
        # The state is written last: without it, a run was killed while it wrote the rest.
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)
    with quiet():
        trainer = _trainer()(lesson, folder, tell)
        trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    return [
        entry["eval_agreement"] for entry in trainer.state.log_history if "eval_agreement" in entry
    ]


def teach_once(
    lesson: Lesson, folder: Path, tell: Callable[[int, float | None], None]
) -> list[float]:
    """As :func:`teach`; what an earlier run has taught to the end is taken from ``folder``.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    from safetensors.torch import load_model, save_model

    weights, looks = folder / "taught.safetensors", folder / "taught.json"
    if looks.exists():  # written last
        load_model(lesson.student, weights)
        agreements: list[float] = json.loads(looks.read_text(encoding="utf-8"))["agreements"]
        return agreements
    agreements = teach(lesson, folder, tell)
    with storing(weights):
        save_model(lesson.student, str(weights))
    write_json(looks, {"agreements": agreements})
    return agreements


def time_steps(lesson: Lesson, count: int) -> float:
    """Seconds for one batch of teaching, on copies; the first of ``count`` is not counted."""
    import torch

    trial = copy.deepcopy(lesson.student).train()
    collate, texts = _Collate(lesson.pad_token_id), _Texts(lesson)
    every = max(1, len(texts) // (count * BATCH_SIZE))
    took_s = []
    with torch.random.fork_rng(devices=()):
        for number in range(count):
            begin_s = time.perf_counter()
            chosen = [(number + i * count) * every % len(texts) for i in range(BATCH_SIZE)]
            inputs = collate([texts[index] for index in chosen])
            loss(lesson, trial, inputs)[0].backward()  # type: ignore[no-untyped-call]
            took_s.append(time.perf_counter() - begin_s)
    return statistics.mean(took_s[1:])


def loss(lesson: Lesson, student: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """The loss of one batch, and the student's outputs."""
    import torch
    from torch.nn import functional

    gold = inputs.pop("gold", None)
    outputs: Any = student(**inputs, output_hidden_states=True)
    with torch.no_grad():
        truth: Any = lesson.original(**inputs, output_hidden_states=True)
    total = _divergence(outputs.logits, truth.logits)
    mask = inputs["attention_mask"][:, :, None].bool()
    for own, index in zip(outputs.hidden_states[1:], lesson.layers, strict=True):
        other = truth.hidden_states[index + 1]
        distance = functional.mse_loss(own.masked_select(mask), other.masked_select(mask))
        total = total + distance / len(lesson.layers) / other.masked_select(mask).var()
    if gold is not None:
        total = total + functional.cross_entropy(outputs.logits, gold)
    return total, outputs


def _divergence(logits: Tensor, truth: Tensor) -> Tensor:
    """Of the answers; of single numbers, the squared distance."""
    from torch.nn import functional

    if logits.shape[1] == 1:
        return functional.mse_loss(logits, truth)
    own = functional.log_softmax(logits / TEMPERATURE, dim=1)
    other = functional.log_softmax(truth / TEMPERATURE, dim=1)
    divergence = functional.kl_div(own, other, reduction="batchmean", log_target=True)
    return divergence * TEMPERATURE**2


@cache
def _trainer() -> Any:
    """The class; made here, since transformers is slow to import."""
    from transformers import (
        EarlyStoppingCallback,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Teller(TrainerCallback):
        def __init__(self, tell: Callable[[int, float | None], None]) -> None:
            self._tell = tell

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._tell(state.global_step, state.best_metric)

    class Distiller(Trainer):
        def __init__(
            self, lesson: Lesson, folder: Path, tell: Callable[[int, float | None], None]
        ) -> None:
            every = max(1, lesson.steps // CHECKS)
            self._lesson = lesson
            super().__init__(
                lesson.student,
                TrainingArguments(
                    output_dir=str(folder),
                    use_cpu=True,  # the original and what it is compared with stay there too
                    max_steps=lesson.steps,
                    per_device_train_batch_size=BATCH_SIZE,
                    learning_rate=lesson.learning_rate,
                    warmup_steps=lesson.steps // 20,
                    lr_scheduler_type="linear",
                    weight_decay=0.01,
                    train_sampling_strategy="group_by_length",
                    remove_unused_columns=False,
                    eval_strategy="steps",
                    eval_steps=every,
                    save_strategy="steps",
                    save_steps=every,
                    save_total_limit=2,
                    load_best_model_at_end=True,
                    restore_callback_states_from_checkpoint=True,
                    metric_for_best_model="agreement",
                    greater_is_better=True,
                    seed=lesson.seed,
                    report_to="none",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                    logging_strategy="no",
                ),
                data_collator=_Collate(lesson.pad_token_id),
                train_dataset=_Texts(lesson),
                eval_dataset=[],
                callbacks=[Teller(tell), EarlyStoppingCallback(PATIENCE)],
            )
            self.remove_callback(PrinterCallback)

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            if not self._lesson.dropout:
                model.eval()  # the Trainer has just turned it on
            total, outputs = loss(self._lesson, model, dict(inputs))
            return (total, outputs) if return_outputs else total

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            metrics = {"eval_agreement": self._lesson.agreement(self._lesson.student)}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
            return metrics

    return Distiller


class _Texts:
    """The training texts as ``transformers`` wants them: one dict a text."""

    def __init__(self, lesson: Lesson) -> None:
        self._tokens, self._gold = lesson.tokens, lesson.gold

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)  # ends a loop over all of them
        begin, end = self._tokens.offsets[index : index + 2]
        item: dict[str, Any] = {"input_ids": self._tokens.ids[begin:end].tolist()}
        if self._gold is not None:
            item["gold"] = self._gold[index]
        return item


class _Collate:
    """Pads a batch."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        import torch

        lengths = np.array([len(item["input_ids"]) for item in items])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self._pad, np.int64)
        ids[mask] = np.concatenate([item["input_ids"] for item in items])
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if "gold" in items[0]:
            batch["gold"] = torch.tensor([item["gold"] for item in items])
        return batch
