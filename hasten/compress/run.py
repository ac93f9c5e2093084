"""``hasten compress``: choose what goes, take it out, train the rest, and compare."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten import hardware, tasks
from hasten.compress import (
    blocks,
    distil,
    importance,
    kept,
    quantized,
    schedule,
    target,
    vocabulary,
)
from hasten.compress.batches import BATCH_SIZE
from hasten.compress.lesson import Lesson, Taught, learning_rate
from hasten.compress.lots import Lots, corpus_of, split
from hasten.compress.runner import Lot, Runner
from hasten.compress.schedule import Phase, Teller, Upkeep
from hasten.compress.sizes import Sizes, Wanted, resolve, whole_sizes
from hasten.compress.vocabulary import Vocabulary
from hasten.engines._border import foreign_errors
from hasten.errors import ChoiceError, HastenError, ModelError
from hasten.inputs import corpus
from hasten.models import ModelFolder
from hasten.models import heads as attention
from hasten.models.folder import TOKENIZER_FILES, storing_weights
from hasten.models.module import load_original, quiet
from hasten.records import Event, Student
from hasten.storage.durable import write_json
from hasten.storage.journal import Journal

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Wanted", "make"]


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be done, with all that a user may have got wrong already refused.

    Attributes:
        wanted: as it was asked for.
        original: the model.
        whole: its sizes.
        sizes: of the student; a target has its own, later.
        taught: the training texts.
        gold: the right class of each of these, where labels are known.
        watched: those by which is chosen and stopped.
        judging: those that judge.
    """

    wanted: Wanted
    original: Any
    whole: Sizes
    sizes: Sizes
    taught: list[str]
    gold: list[int] | None
    watched: list[str]
    judging: list[str]

    @property
    def making(self) -> list[str]:
        """The texts that have a part in what the student is, and so do not judge it."""
        return [*self.taught, *self.watched]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which blocks stay, and which units and heads of each; ``sizes`` counts them."""

    sizes: Sizes
    predicted_speed: float
    layers: list[int]
    units: list[list[int]]
    heads: list[list[int]] | None


@foreign_errors("PyTorch", "make the student", passing=(HastenError,))
def make(
    reference: ModelFolder,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    wanted: Wanted,
    *,
    work: Path,
    report: Callable[[Event], None],
    begin_s: float | None = None,
) -> Student:
    """Make a student of ``reference`` in ``work / "student"``, an ordinary model folder.

    Args:
        reference: the original.
        texts: unlabelled ones suffice.
        labels: the right label of each, if known.
        wanted: which sizes.
        work: an earlier, interrupted run's folder is taken up.
        report: is told about progress.
        begin_s: when the budget began, by ``time.monotonic``; by default, now.

    Raises:
        ModelError: the model's blocks, heads or words cannot be taken apart.
        ChoiceError: sizes that cannot be.
        InputError: too few texts.
        BudgetError: the time does not hold training on enough texts.
        StorageError: ``work`` cannot be written, or has no room for checkpoints.
        EngineError: PyTorch failed, for want of memory or otherwise.
    """
    begin_s = time.monotonic() if begin_s is None else begin_s
    task = _task(reference, texts, labels, wanted)
    journal = kept.take_up(work, reference, texts, labels, wanted)
    original, runner = task.original, Runner(reference)
    tell = Teller(report, begin_s, wanted.budget_s)
    tell("choose", "what can be left out")
    words = _fewer_words(task, reference, runner) if wanted.embeddings else None
    lots = Lots(runner.lot(original, task.watched), runner.lot(original, task.judging))
    chosen = _choose(task, runner, lots.watch, journal, tell)
    student = blocks.cut(original, chosen.layers, chosen.units, chosen.heads)
    if wanted.freeze_embeddings:
        distil.freeze_embeddings(student)
    compare_s = time.monotonic()
    before = runner.parity(student, lots.judge)
    compare_s = time.monotonic() - compare_s
    lesson = Lesson(
        original=original,
        student=student,
        layers=chosen.layers,
        tokens=runner.tokens(task.taught),
        pad_token_id=reference.info.pad_token_id,
        gold=task.gold,
        objective=runner.task.objective,
        look=partial(runner.look, lots.watch),
        steps=0,
        seed=wanted.seed,
        learning_rate=learning_rate(original.config.hidden_size),
        bf16=hardware.detect().has_bf16,
    )
    teacher = _Teacher(runner, wanted, work, journal, tell, compare_s)
    taught = teacher.teach(lesson, lots) if chosen.sizes != task.whole else None
    if words is not None:
        vocabulary.shrink(student, words)
        lots = lots.read_by(words.reader(reference.info.max_length))
        lesson = replace(lesson, tokens=words.renumbered(lesson.tokens))
    after = runner.parity(student, lots.judge)
    _write(student, reference, words, task, work / kept.STUDENT)
    int8 = teacher.teach_int8(lesson, lots, alone=taught is None) if wanted.int8 else {}
    return Student(
        before=before,
        after=after,
        seconds=tell.spent_s,
        taught_texts=schedule.trained_on(task.taught, taught, int8.get("int8_steps", 0)),
        steps=taught.steps if taught else 0,
        agreements=tuple(look.agreement for look in taught.looks) if taught else (),
        agreement=taught.best.agreement if taught else 1.0,
        **_of_sizes(task, chosen, student),
        **_of_words(words, original),
        **int8,
    )


def _task(
    reference: ModelFolder, texts: Sequence[str], labels: Sequence[str] | None, wanted: Wanted
) -> _Task:
    original = _original(reference)
    whole = whole_sizes(original)
    sizes = resolve(whole, wanted)
    known = list(dict.fromkeys(texts))
    parts = split(len(known), wanted.seed)
    taught, watched, judging = ([known[int(i)] for i in part] for part in parts)
    gold = _gold(reference, texts, labels, taught)
    return _Task(wanted, original, whole, sizes, taught, gold, watched, judging)


@dataclass(frozen=True, slots=True)
class _Teacher:
    """Trains within the budget, first in floating point and then with 8-bit integers.

    ``compare_s`` is how long the texts that judge take.
    """

    runner: Runner
    wanted: Wanted
    work: Path
    journal: Journal
    tell: Teller
    compare_s: float

    def teach(self, lesson: Lesson, lots: Lots) -> Taught:
        """Train in floating point what was pruned.

        Raises:
            BudgetError: not even enough texts for any student.
            StorageError: no checkpoint can be written.
        """
        folder = self.work / kept.CHECKPOINTS
        int8_share = schedule.INT8_OF_TRAINING if self.wanted.int8 else 0.0

        def decide() -> dict[str, Any]:
            self.tell("train", "how long a step takes")
            look_s = self.compare_s * len(lots.watch.texts) / len(lots.judge.texts)
            upkeep = Upkeep(look_s, distil.time_checkpoint(lesson, folder), self.compare_s)
            phases = [schedule.phase(lesson, upkeep, 1.0 - int8_share)]
            if self.wanted.int8:
                rounding = quantized.lesson_of(lesson, self.runner.some(lesson.tokens))
                phases.append(self._int8_phase(rounding, lots, int8_share))
            counts = self._steps(phases)
            int8_s = phases[-1].takes_s(counts[-1]) if self.wanted.int8 else 0.0
            return {"steps": counts[0], "int8_s": int8_s, "bf16": lesson.bf16}

        plan = self.journal.once(kept.STEPS, decide)
        end_s = self.compare_s + plan["int8_s"]
        lesson = replace(
            self._fitting(lesson, plan["steps"]),
            steps=plan["steps"],
            bf16=plan["bf16"],
            overdue=self._overdue(end_s),
        )
        tell = self.tell.teaching("train", lesson.steps, end_s, self.runner.seen)
        return distil.teach_once(lesson, folder, tell)

    def teach_int8(self, lesson: Lesson, lots: Lots, *, alone: bool) -> dict[str, Any]:
        """Train the student, as it is written, with 8-bit integers; the record's fields of it.

        All the time that is left goes into it: an earlier lesson may have ended before its time.

        Raises:
            BudgetError: not even enough texts for any student, and nothing else was trained: what
                was is not given up for the sake of the integers.
        """
        rounding = quantized.lesson_of(lesson, self.runner.some(lesson.tokens))

        def decide() -> dict[str, Any]:
            self.tell("train int8", "how long a step takes")
            phase = self._int8_phase(rounding, lots, 1.0)
            # As much as comes at the end comes before the first step.
            return {"steps": self._steps([phase], strict=alone)[0], "end_s": phase.upkeep.end_s / 2}

        plan = self.journal.once(kept.INT8_STEPS, decide)
        # Rounding changes a few answers in a hundred, of the student's and not of the original's.
        truth = self.runner.outputs(lesson.student, lots.watch.tokens)
        rounding = replace(
            self._fitting(rounding, plan["steps"]),
            look=partial(self.runner.look, replace(lots.watch, truth=truth)),
            steps=plan["steps"],
            overdue=self._overdue(plan["end_s"]),
        )
        tell = self.tell.teaching("train int8", plan["steps"], plan["end_s"], self.runner.seen)
        parity = partial(self.runner.parity, judge=lots.judge)
        return quantized.teach(rounding, self.work, parity, tell)

    def _int8_phase(self, rounding: Lesson, lots: Lots, share: float) -> Phase:
        begin_s = time.monotonic()
        self.runner.outputs(rounding.student, lots.watch.tokens)
        look_s = time.monotonic() - begin_s
        judge_s = look_s * len(lots.judge.texts) / len(lots.watch.texts)
        # It is compared and looked at before it is trained as well, and so is its teacher.
        end_s = 2 * judge_s + 2 * look_s
        upkeep = Upkeep(look_s, distil.time_checkpoint(rounding, self.work / kept.INT8), end_s)
        return schedule.phase(rounding, upkeep, share, " with 8-bit integers")

    def _steps(self, phases: Sequence[Phase], *, strict: bool = True) -> list[int]:
        return schedule.steps(
            phases,
            budget_s=self.wanted.budget_s,
            spent_s=self.tell.spent_s,
            given=corpus_of,
            strict=strict,
        )

    def _fitting(self, lesson: Lesson, steps: int) -> Lesson:
        """The lesson with as many of its texts, chosen at random, as so many steps train on."""
        if (count := steps * BATCH_SIZE) >= (texts := len(lesson.tokens)):
            return lesson
        self.tell.notice(
            f"The budget holds training on {count:,} of the {texts:,} training texts, chosen at "
            "random; with a longer --budget all of them are used."
        )
        chosen = np.sort(np.random.default_rng(self.wanted.seed).permutation(texts)[:count])
        gold = lesson.gold and [lesson.gold[index] for index in chosen.tolist()]
        return replace(lesson, tokens=lesson.tokens.select(chosen), gold=gold)

    def _overdue(self, end_s: float) -> Callable[[], bool]:
        """Whether no more is left than what comes at the end."""
        return lambda: self.tell.spent_s > self.wanted.budget_s - end_s


def _original(reference: ModelFolder) -> Any:
    task = tasks.of(reference.info)
    if not task.compresses:
        raise ModelError(
            f"{reference.info.name} is a model for {task.name}, which cannot be compressed yet",
            fix="`hasten tune` finds the fastest way to run it, int8 included.",
        )
    if reference.kind != "huggingface":
        raise ModelError(
            f"{reference.info.name} is a custom module, and custom modules cannot be compressed",
            fix="Give a Hugging Face folder or hub id.",
        )
    return load_original(reference.folder / "module")


def _fewer_words(task: _Task, reference: ModelFolder, runner: Runner) -> Vocabulary:
    """The words that the texts which judge nothing need; a mere copy of the original is refused."""
    texts, new = task.making, runner.tokens(task.judging)
    words = vocabulary.reduce(reference, task.original, texts, runner.tokens(texts), new)
    everything = len(words.kept) == task.original.get_input_embeddings().num_embeddings
    other = task.sizes != task.whole or task.wanted.target or task.wanted.int8
    if everything and not other:
        raise ChoiceError(
            "your texts have every word that the model knows, so that --embeddings leaves none out",
            fix="Leave something else out, such as --layers.",
        )
    return words


def _of_sizes(task: _Task, chosen: _Chosen, student: nn.Module) -> dict[str, Any]:
    """The record's fields of what was left out."""
    return {
        "layers": tuple(chosen.layers),
        "of_layers": task.whole.layers,
        "ffn_width": chosen.sizes.ffn_width,
        "of_ffn_width": task.whole.ffn_width,
        "asked_ffn_width": task.wanted.ffn_width,
        "heads": chosen.sizes.heads,
        "of_heads": task.whole.heads,
        "parameter_count": _parameters(student),
        "of_parameter_count": _parameters(task.original),
        "predicted_speed": chosen.predicted_speed,
    }


def _of_words(words: Vocabulary | None, original: Any) -> dict[str, Any]:
    """The record's fields of the vocabulary."""
    table = original.get_input_embeddings().weight
    rows = len(table)
    if words is None:
        return {"vocabulary": rows, "of_vocabulary": rows}
    saved = (rows - len(words.kept)) * table.shape[1] * table.itemsize
    return {
        "vocabulary": len(words.kept),
        "of_vocabulary": rows,
        "vocabulary_saved_bytes": saved,
        "unseen_share": words.unseen_share,
    }


def _choose(task: _Task, runner: Runner, watch: Lot, journal: Journal, tell: Teller) -> _Chosen:
    """The sizes, and which blocks, units and heads they are; what a run before this one chose."""
    sizes, speed = task.sizes, 0.0
    if task.wanted.target is not None:
        tell("choose", "how fast each size would be")
        find = partial(target.sizes_for, task.wanted.target, task.original, runner, watch)
        found = journal.once(kept.SIZES, find)
        sizes = replace(sizes, layers=found["layers"], ffn_width=found["ffn_width"])
        speed = found["predicted_speed"]
    choice = journal.once(kept.CHOICE, lambda: _choice(task.original, runner, watch, sizes, tell))
    return _Chosen(sizes, speed, **choice)


def _choice(
    original: Any, runner: Runner, watch: Lot, sizes: Sizes, tell: Teller
) -> dict[str, Any]:
    """Which blocks stay, and which units and heads of each."""
    found, known = blocks.find(original), attention.find(original)
    everything = [list(range(found.width))] * found.count
    some = runner.first(watch.tokens)
    truth = watch.truth.select(range(len(some))).values

    def loss(layers: Sequence[int]) -> float:
        outputs = runner.outputs(blocks.cut(original, layers, everything[: len(layers)]), some)
        return float(np.square(outputs.values - truth).mean())

    chosen = list(range(found.count))
    if sizes.layers < found.count:
        chosen = importance.choose_layers(found.count, sizes.layers, loss, tell.choosing("blocks"))
    units, heads = everything, None
    if sizes.ffn_width < found.width:
        tell("choose", "feed-forward units")
        weights = importance.of_units(original, runner.task.objective, runner.batches(some))
        units = importance.most_important(weights, sizes.ffn_width)
    if known is not None and sizes.heads < len(known.heads[0]):
        tell("choose", "attention heads")
        weights = importance.of_heads(original, runner.task.objective, known, runner.batches(some))
        heads = importance.most_important(weights, sizes.heads)
    return {
        "layers": chosen,
        "units": [units[index] for index in chosen],
        "heads": heads and [heads[index] for index in chosen],
    }


def _gold(
    reference: ModelFolder,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    taught: Sequence[str],
) -> list[int] | None:
    """The right class of the training texts; of a text that is there twice, the last."""
    if labels is None:
        return None
    task = tasks.of(reference.info)
    if task.objective != "softmax":
        raise ChoiceError(
            f"labels are used for models that choose one of them, and this one is {task.name}",
            fix="Leave --label-column out: the original's answers suffice for training.",
        )
    right = task.gold([corpus.label_text(label) or "" for label in labels], reference.info.labels)
    if right is None:
        raise ChoiceError(
            f"a {task.name} model has no labels to train on",
            fix="Leave --label-column out: the original's answers suffice for training.",
        )
    by_text = dict(zip(texts, right.tolist(), strict=True))
    return [by_text[text] for text in taught]


def _write(
    student: Any, reference: ModelFolder, words: Vocabulary | None, task: _Task, folder: Path
) -> None:
    """Write the student as an ordinary folder, with what made it."""
    with storing_weights(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with quiet():
            student.save_pretrained(folder)
        # The original may be a student itself.
        seen = {*map(corpus.digest, task.making), *reference.taught()}
        write_json(folder / corpus.TAUGHT, {"texts": sorted(seen)})
        if words is not None:
            words.write(reference.folder, folder)
            return
        for name in TOKENIZER_FILES:
            if (reference.folder / name).exists():
                shutil.copyfile(reference.folder / name, folder / name)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
