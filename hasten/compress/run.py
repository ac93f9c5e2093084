"""``hasten compress``: choose what goes, take it out, teach the rest, and compare."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten import corpus, hardware, tasks
from hasten.compress import blocks, distil, importance, quantized, schedule, target, vocabulary
from hasten.compress.distil import Lesson
from hasten.compress.runner import Lot, Runner
from hasten.compress.schedule import FEWEST_TEXTS, Phase, Teller, Upkeep
from hasten.compress.sizes import Sizes, Wanted, resolve, whole_sizes
from hasten.compress.vocabulary import Vocabulary
from hasten.errors import ChoiceError, InputError, ModelError, ResumeError
from hasten.records import Event, Student
from hasten.reference import Reference
from hasten.reference import heads as attention
from hasten.reference.folder import TOKENIZER_FILES, storing, write_json
from hasten.reference.module import load_original, quiet

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Wanted", "make", "split"]

_JUDGING = (0.2, 1000)
"""Share of the texts that judge the result, and how many at most."""

_WATCHING = (0.1, 300)
"""Share of the texts by which training is watched, and blocks are chosen."""

_INT8_SHARE = 0.3
"""Of the time for teaching, where something else is taught too: rounding moves the answers far less
than leaving blocks or units out does, and ranges settle within a few hundred steps."""

_DECISIVE = (
    "layers",
    "ffn_width",
    "heads",
    "embeddings",
    "freeze_embeddings",
    "int8",
    "target",
    "seed",
)
"""What an interrupted run must have been asked for as well."""


@dataclass(frozen=True, slots=True)
class _Lots:
    """The texts that watch, by which is chosen and stopped, and those that judge."""

    watch: Lot
    judge: Lot

    def renumbered(self, words: Vocabulary) -> _Lots:
        watch, judge = (
            replace(lot, tokens=words.renumbered(lot.tokens)) for lot in (self.watch, self.judge)
        )
        return _Lots(watch, judge)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is decided before anything is taught, and what a resumed run takes over.

    Attributes:
        steps: in floating point; 0 where nothing was left out that has to be made up for.
        int8_steps: with 8-bit integers.
        int8_s: what these take, with all that belongs to them.
        int8_end_s: the part of it that comes after the last step.
        bf16: see :class:`hasten.compress.distil.Lesson`.
    """

    steps: int
    int8_steps: int
    int8_s: float
    int8_end_s: float
    bf16: bool


def make(
    reference: Reference,
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
        BudgetError: the time does not hold one pass over the texts.
        StorageError: ``work`` cannot be written, or has no room for checkpoints.
    """
    begin_s = time.monotonic() if begin_s is None else begin_s
    _refuse_others(work / "asked.json", reference, texts, labels, wanted)
    original = _original(reference)
    whole = whole_sizes(original)
    sizes = resolve(whole, wanted)
    known = list(dict.fromkeys(texts))
    parts = split(len(known), wanted.seed)
    taught, watched, judging = ([known[int(i)] for i in part] for part in parts)
    runner = Runner(reference)
    tell = Teller(report, begin_s, wanted.budget_s)
    tell("choose", "what can be left out")
    words = None
    if wanted.embeddings:
        words = vocabulary.reduce(reference, original, known, runner.tokens(known), parts[2])
    lots = _Lots(runner.lot(original, watched), runner.lot(original, judging))
    found: dict[str, Any] = {}
    if wanted.target is not None:
        find = partial(target.sizes_for, wanted.target, original, runner, lots.watch)
        found = _once(work / "sizes.json", find)
        sizes = replace(sizes, layers=found["layers"], ffn_width=found["ffn_width"])
    choice = _once(work / "choice.json", lambda: _choose(original, runner, lots.watch, sizes, tell))
    student = blocks.cut(original, choice["layers"], choice["units"], choice["heads"])
    if wanted.freeze_embeddings:
        distil.freeze_embeddings(student)
    compare_s = time.monotonic()
    before = runner.parity(student, lots.judge)
    compare_s = time.monotonic() - compare_s
    lesson = Lesson(
        original=original,
        student=student,
        layers=choice["layers"],
        tokens=runner.tokens(taught),
        pad_token_id=reference.info.pad_token_id,
        gold=_gold(reference, texts, labels, taught),
        agreement=partial(runner.agreement, lots.watch),
        steps=0,
        seed=wanted.seed,
        bf16=hardware.detect().has_bf16,
    )
    teacher = _Teacher(runner, wanted, work, tell, compare_s)
    plan = teacher.plan(lesson, lots, pruned=sizes != whole)
    agreements = teacher.teach(lesson, plan)
    if words is not None:
        vocabulary.shrink(student, words)
        lots = lots.renumbered(words)
        lesson = replace(lesson, tokens=words.renumbered(lesson.tokens))
    after = runner.parity(student, lots.judge)
    _write(student, reference, words, work / "student")
    seen = sorted(map(corpus.digest, (*taught, *watched)))
    write_json(work / "student" / corpus.TAUGHT, {"texts": seen})
    int8 = teacher.teach_int8(lesson, lots, plan) if wanted.int8 else {}
    return Student(
        layers=tuple(choice["layers"]),
        of_layers=whole.layers,
        ffn_width=sizes.ffn_width,
        of_ffn_width=whole.ffn_width,
        parameter_count=_parameters(student),
        of_parameter_count=_parameters(original),
        taught_texts=len(taught) if plan.steps or plan.int8_steps else 0,
        steps=plan.steps,
        agreements=tuple(agreements),
        before=before,
        after=after,
        seconds=tell.spent_s,
        asked_ffn_width=wanted.ffn_width,
        heads=sizes.heads,
        of_heads=whole.heads,
        predicted_speed=found.get("predicted_speed", 0.0),
        **_of_words(words, original),
        **int8,
    )


@dataclass(frozen=True, slots=True)
class _Teacher:
    """Teaches within the budget, first in floating point and then with 8-bit integers.

    ``compare_s`` is how long the texts that judge take.
    """

    runner: Runner
    wanted: Wanted
    work: Path
    tell: Teller
    compare_s: float

    def plan(self, lesson: Lesson, lots: _Lots, *, pruned: bool) -> _Plan:
        """How many steps fit, or what an interrupted run had.

        What was not pruned has nothing to learn in floating point: it is the original.

        Raises:
            BudgetError: not even one pass over the texts.
            StorageError: no checkpoint can be written.
        """

        def decide() -> dict[str, Any]:
            phases: list[Phase] = []
            if pruned or self.wanted.int8:
                self.tell("teach", "how long a step takes")
            if pruned:
                look_s = self.compare_s * len(lots.watch.texts) / len(lots.judge.texts)
                share = 1.0 - _INT8_SHARE if self.wanted.int8 else 1.0
                folder = self.work / "checkpoints"
                checkpoint_s = distil.time_checkpoint(lesson, folder)
                upkeep = Upkeep(look_s, checkpoint_s, self.compare_s)
                phases.append(schedule.phase(lesson, upkeep, share))
            if self.wanted.int8:
                phases.append(self._int8_phase(lesson, lots, _INT8_SHARE if pruned else 1.0))
            counts = schedule.steps(
                phases,
                budget_s=self.wanted.budget_s,
                spent_s=self.tell.spent_s,
                taught_share=1.0 - _JUDGING[0] - _WATCHING[0],
            )
            return {
                "steps": counts[0] if pruned else 0,
                "int8_steps": counts[-1] if self.wanted.int8 else 0,
                "int8_s": phases[-1].takes_s(counts[-1]) if self.wanted.int8 else 0.0,
                # As much comes before the first step.
                "int8_end_s": phases[-1].upkeep.end_s / 2 if self.wanted.int8 else 0.0,
                "bf16": lesson.bf16,
            }

        return _Plan(**_once(self.work / "steps.json", decide))

    def _int8_phase(self, lesson: Lesson, lots: _Lots, share: float) -> Phase:
        rounding = quantized.lesson_of(lesson, self.runner.some(lesson.tokens))
        begin_s = time.monotonic()
        self.runner.outputs(rounding.student, lots.watch.tokens)
        look_s = time.monotonic() - begin_s
        judge_s = look_s * len(lots.judge.texts) / len(lots.watch.texts)
        # It is compared and looked at before it is taught as well, and so is its teacher.
        end_s = 2 * judge_s + 2 * look_s
        upkeep = Upkeep(look_s, distil.time_checkpoint(rounding, self.work / "int8"), end_s)
        return schedule.phase(rounding, upkeep, share, " with 8-bit integers")

    def teach(self, lesson: Lesson, plan: _Plan) -> list[float]:
        """Teach in floating point what is to be taught; the agreement at each look."""
        if not plan.steps:
            return []
        end_s = self.compare_s + plan.int8_s
        lesson = replace(lesson, steps=plan.steps, bf16=plan.bf16, overdue=self._overdue(end_s))
        told = self.tell.teaching("teach", plan.steps, end_s)
        return distil.teach_once(lesson, self.work / "checkpoints", told)

    def teach_int8(self, lesson: Lesson, lots: _Lots, plan: _Plan) -> dict[str, Any]:
        """Teach the student, as it is written, with 8-bit integers; the record's fields of it."""
        rounding = quantized.lesson_of(lesson, self.runner.some(lesson.tokens))
        # Rounding changes a few answers in a hundred: too few to tell one look from another.
        truth = self.runner.outputs(lesson.student, lots.watch.tokens)
        rounding = replace(
            rounding,
            agreement=partial(self.runner.closeness, replace(lots.watch, truth=truth)),
            steps=plan.int8_steps,
            overdue=self._overdue(plan.int8_end_s),
        )
        told = self.tell.teaching(
            "teach int8", plan.int8_steps, plan.int8_end_s, "of the outputs kept"
        )
        parity = partial(self.runner.parity, judge=lots.judge)
        return quantized.teach(rounding, self.work, parity, told)

    def _overdue(self, end_s: float) -> Callable[[], bool]:
        """Whether no more is left than what comes at the end."""
        return lambda: self.tell.spent_s > self.wanted.budget_s - end_s


def _original(reference: Reference) -> Any:
    if reference.kind != "huggingface":
        raise ModelError(
            f"{reference.info.name} is code, of which nobody knows how to say that it is smaller",
            fix="Give a Hugging Face folder or hub id.",
        )
    return load_original(reference.folder / "module")


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


def _refuse_others(
    path: Path,
    reference: Reference,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    wanted: Wanted,
) -> None:
    """Make sure that what an interrupted run left was asked for in the same way."""
    digest = hashlib.sha256(json.dumps([list(texts), labels and list(labels)]).encode())
    asked = {
        "model": reference.fingerprint(),
        "texts": digest.hexdigest(),
        **{name: getattr(wanted, name) for name in _DECISIVE},
    }
    then = _once(path, lambda: asked)
    if then != asked:
        what = ", ".join(sorted(name for name in asked if asked[name] != then.get(name)))
        raise ResumeError(
            f"{path.parent} was begun with another choice of: {what}",
            fix="--restart throws it away and begins anew.",
        )


def _choose(
    original: Any, runner: Runner, watch: Lot, sizes: Sizes, tell: Teller
) -> dict[str, Any]:
    """Which blocks stay, and which units and heads of each."""
    found, known = blocks.find(original), attention.find(original)
    everything = [list(range(found.width))] * found.count
    some = runner.first(watch.tokens)
    truth = watch.truth[: len(some)]

    def loss(kept: Sequence[int]) -> float:
        outputs = runner.outputs(blocks.cut(original, kept, everything[: len(kept)]), some)
        return float(np.square(outputs - truth).mean())

    chosen = list(range(found.count))
    if sizes.layers < found.count:
        chosen = importance.choose_layers(found.count, sizes.layers, loss, tell.choosing("blocks"))
    units, heads = everything, None
    if sizes.ffn_width < found.width:
        tell("choose", "feed-forward units")
        weights = importance.of_units(original, runner.batches(some))
        units = importance.most_important(weights, sizes.ffn_width)
    if known is not None and sizes.heads < len(known.heads[0]):
        tell("choose", "attention heads")
        weights = importance.of_heads(original, known, runner.batches(some))
        heads = importance.most_important(weights, sizes.heads)
    return {
        "layers": chosen,
        "units": [units[index] for index in chosen],
        "heads": heads and [heads[index] for index in chosen],
    }


def _gold(
    reference: Reference,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    taught: Sequence[str],
) -> list[int] | None:
    """The right class of the texts that teach; of a text that is there twice, the last."""
    if labels is None:
        return None
    if reference.info.task != "single_label":
        raise ChoiceError(
            f"labels can teach a single_label model, and this one is {reference.info.task}",
            fix="Leave --label-column out: the original's answers teach as well.",
        )
    right = tasks.get(reference.info.task).gold(
        [str(label) for label in labels], reference.info.labels
    )
    by_text = dict(zip(texts, [] if right is None else right.tolist(), strict=True))
    return [by_text[text] for text in taught]


def _once(path: Path, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an interrupted run decided, or what is decided now and kept."""
    if not path.exists():
        write_json(path, decide())
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def _write(student: Any, reference: Reference, words: Vocabulary | None, folder: Path) -> None:
    with storing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with quiet():
            student.save_pretrained(folder)
        if words is not None:
            words.write(reference.folder, folder)
            return
        for name in TOKENIZER_FILES:
            if (reference.folder / name).exists():
                shutil.copyfile(reference.folder / name, folder / name)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def split(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which texts teach, which watch, and which judge.

    Raises:
        InputError: there are too few.

    >>> teach, watch, judge = split(1000, seed=0)
    >>> len(teach), len(watch), len(judge), len(set(teach) | set(watch) | set(judge))
    (700, 100, 200, 1000)
    """
    if count < FEWEST_TEXTS:
        raise InputError(
            f"there are {count} different texts, and a student needs at least {FEWEST_TEXTS}",
            fix="Give more; they need no labels.",
        )
    order = np.random.default_rng(seed).permutation(count)
    judging, watching = (min(int(share * count), most) for share, most in (_JUDGING, _WATCHING))
    return order[judging + watching :], order[judging : judging + watching], order[:judging]
