"""Training a student on the original's answers (distillation), with ``transformers.Trainer``.

What is minimized is in :mod:`hasten.compress.objective`. Unlabelled texts suffice.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.compress.batches import BATCH_SIZE, Collate, Order, Texts
from hasten.compress.lesson import Lesson, Look, Taught, Tell
from hasten.compress.objective import loss
from hasten.errors import StorageError
from hasten.models.folder import storing_weights
from hasten.models.module import quiet
from hasten.plain import from_json, to_json
from hasten.storage.durable import storing, write_json

if TYPE_CHECKING:
    from torch import nn

CHECKS = 10
"""How often the student is looked at, and a checkpoint is kept; at most."""

PATIENCE = 4
"""Looks without a better one after which the rest is spared."""

_CHECKPOINTS = 3
"""On the disk at a time: the best, the last, and the one that is being written."""


def teach(lesson: Lesson, folder: Path, tell: Tell) -> Taught:
    """Train the student; the state that is best on the watched texts is kept.

    Args:
        lesson: what to do. The same lesson ends with the same weights, interrupted or not.
        folder: for checkpoints; those of an interrupted run are taken up.
        tell: is told of every step.

    Raises:
        StorageError: there is no room for checkpoints in ``folder``.
    """
    for checkpoint in folder.glob("checkpoint-*"):
        if not _is_whole(checkpoint):
            shutil.rmtree(checkpoint)
    _require_room(lesson, folder)
    with quiet():
        trainer = _trainer()(lesson, folder, tell)
        trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    # The time may have been over before the first look.
    looks = trainer.looks() or [lesson.look(lesson.student)]
    return Taught(trainer.state.global_step, tuple(looks))


def teach_once(lesson: Lesson, folder: Path, tell: Tell) -> Taught:
    """As :func:`teach`; what an earlier run has trained to the end is taken from ``folder``.

    Raises:
        StorageError: there is no room in ``folder``.
    """
    from safetensors.torch import load_model, save_model

    weights, record = folder / "taught.safetensors", folder / "taught.json"
    if not record.exists():  # written last
        taught = teach(lesson, folder, tell)
        with storing_weights(weights):
            save_model(lesson.student, str(weights))
        write_json(record, to_json(taught))
    load_model(lesson.student, weights)
    found = from_json(Taught, json.loads(record.read_text(encoding="utf-8")))
    # What comes next may need their room.
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    return found


def _is_whole(checkpoint: Path) -> bool:
    """Whether all of it was written. The state comes last, and may itself have been cut off."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def checkpoint_bytes(student: nn.Module) -> int:
    """What a checkpoint takes: the weights, and two moments of each that is trained."""
    return sum(
        weight.nbytes * (3 if weight.requires_grad else 1) for weight in student.parameters()
    )


def _require_room(lesson: Lesson, folder: Path) -> None:
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        kept = sum(path.stat().st_size for path in folder.glob("checkpoint-*/*"))
        free = shutil.disk_usage(folder).free
    needed = _CHECKPOINTS * checkpoint_bytes(lesson.student) - kept
    if free < needed:
        raise StorageError(
            f"checkpoints need {needed / 1e9:,.2f} GB more, and {folder} has {free / 1e9:,.2f} GB",
            fix="Make room, and give the same command again: it continues. Or choose another -o.",
        )


def freeze_embeddings(student: Any) -> None:
    """Leave all embedding tables (words, positions, segments) as they are."""
    from torch import nn

    size = student.get_input_embeddings().embedding_dim
    for module in student.modules():
        # MPNet's attention looks its biases up, one a head, in a table that is not an embedding.
        if isinstance(module, nn.Embedding) and module.embedding_dim == size:
            module.weight.requires_grad_(False)


def time_steps(lesson: Lesson, count: int) -> float:
    """Seconds for one step of training, in the mean over a pass; on copies.

    Some of the pass's own batches are timed, from the shortest to the longest, and what is between
    two of them is taken to be so in time as well: a few long texts may take most of it.

    Args:
        lesson: whose steps.
        count: how many batches are timed, at least 2.
    """
    import torch

    trial = copy.deepcopy(lesson.student)
    optimizer = torch.optim.AdamW([weight for weight in trial.parameters() if weight.requires_grad])
    collate, texts = Collate(lesson.pad_token_id), Texts(lesson.tokens, lesson.gold)
    order = np.array(list(Order(lesson.tokens, lesson.seed, lambda: 0)))
    batches = [order[begin : begin + BATCH_SIZE] for begin in range(0, len(order), BATCH_SIZE)]
    longest = np.array([lesson.tokens.lengths[batch].max() for batch in batches])
    chosen = np.argsort(longest, kind="stable")[np.linspace(0, len(batches) - 1, count).astype(int)]
    took_s: dict[int, float] = {}
    with torch.random.fork_rng(devices=()):
        # The longest first and again: it warms up, and allocates all that is ever needed.
        for index in (chosen[-1], *reversed(chosen)):
            begin_s = time.perf_counter()
            inputs = collate([texts[int(text)] for text in batches[index]])
            loss(lesson, trial, inputs)[0].backward()
            torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            took_s[int(index)] = time.perf_counter() - begin_s
    times_s = [took_s[int(index)] for index in chosen]
    return float(np.interp(longest, longest[chosen], times_s).mean())


def time_checkpoint(lesson: Lesson, folder: Path) -> float:
    """Seconds that writing a checkpoint takes, from writing the weights once.

    Raises:
        StorageError: they cannot be written.
    """
    from safetensors.torch import save_model

    path = folder / "trial.safetensors"
    begin_s = time.perf_counter()
    try:
        with storing_weights(path):
            folder.mkdir(parents=True, exist_ok=True)
            save_model(lesson.student, str(path))
        took_s = time.perf_counter() - begin_s
        return took_s * checkpoint_bytes(lesson.student) / max(1, path.stat().st_size)
    finally:
        with suppress(OSError):
            path.unlink()


def looks_every(steps: int) -> int:
    """After how many steps the student is looked at."""
    return max(1, -(-steps // CHECKS))


def _arguments(lesson: Lesson, folder: Path) -> Any:
    """Trainer's settings."""
    from transformers import TrainingArguments

    every = looks_every(lesson.steps)
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,  # the original and what it is compared with stay there too
        max_steps=lesson.steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=lesson.learning_rate,
        warmup_steps=lesson.steps // 20,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        remove_unused_columns=False,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,
        metric_for_best_model="closeness",
        greater_is_better=True,
        seed=lesson.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
    )


def _looks(state: Any) -> list[Look]:
    """All that were taken, those of an interrupted run included."""
    return [
        Look(entry["eval_agreement"], entry["eval_closeness"])
        for entry in state.log_history
        if "eval_closeness" in entry
    ]


@cache
def _teller() -> Any:
    """The class; made here, since transformers is slow to import."""
    from transformers import TrainerCallback

    class Teller(TrainerCallback):
        def __init__(self, lesson: Lesson, tell: Tell) -> None:
            self._lesson, self._tell = lesson, tell

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            looks = _looks(state)
            self._tell(state.global_step, looks[-1] if looks else None)
            if self._lesson.overdue():
                control.should_training_stop = True

    return Teller


@cache
def _trainer() -> Any:
    """The class; made here, since transformers is slow to import."""
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer

    class Distiller(Trainer):
        def __init__(self, lesson: Lesson, folder: Path, tell: Tell) -> None:
            self._lesson = lesson
            super().__init__(
                lesson.student,
                _arguments(lesson, folder),
                data_collator=Collate(lesson.pad_token_id),
                train_dataset=Texts(lesson.tokens, lesson.gold),
                eval_dataset=[],
                callbacks=[_teller()(lesson, tell), EarlyStoppingCallback(PATIENCE)],
            )
            self.remove_callback(PrinterCallback)

        def _get_train_sampler(self, *_: Any) -> Any:
            return Order(self._lesson.tokens, self._lesson.seed, lambda: self.state.global_step)

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            # The Trainer has just turned dropout on. It is noise beside what is to be trained: the
            # teacher's answers do not run out, and overfitting shows in the evaluations.
            model.eval()
            total, outputs = loss(self._lesson, model, dict(inputs))
            return (total, outputs) if return_outputs else total

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            try:
                super()._save_checkpoint(model, trial)
            except Exception as error:  # OSError, and what torch and safetensors make of it
                folder = Path(str(self.args.output_dir))
                # Half of a checkpoint helps nobody, and takes up room.
                shutil.rmtree(folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
                raise StorageError(
                    f"a checkpoint cannot be written into {folder}: {error}",
                    fix="Make room there, and give the same command again: it continues from the "
                    "last one.",
                ) from error

        def looks(self) -> list[Look]:
            return _looks(self.state)

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            look = self._lesson.look(self._lesson.student)
            metrics = {"eval_agreement": look.agreement, "eval_closeness": look.closeness}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
            return metrics

    return Distiller
