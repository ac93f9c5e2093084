"""``hasten compress``: choose what goes, take it out, teach the rest, and compare."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten import corpus, hardware, tasks
from hasten.batching import plan
from hasten.compress import blocks, distil, importance, vocabulary
from hasten.compress.distil import Lesson
from hasten.compress.schedule import FEWEST_TEXTS, Teller, Upkeep, steps
from hasten.compress.vocabulary import Vocabulary
from hasten.errors import ChoiceError, InputError, ModelError, ResumeError
from hasten.parity import compare
from hasten.records import Event, Parity, Strategy, Student
from hasten.reference import Reference
from hasten.reference import heads as attention
from hasten.reference.folder import TOKENIZER_FILES, storing, write_json
from hasten.reference.module import load_original, quiet
from hasten.tokenization import Tokens

if TYPE_CHECKING:
    from torch import nn

_JUDGING = (0.2, 1000)
"""Share of the texts that judge the result, and how many at most."""

_WATCHING = (0.1, 300)
"""Share of the texts by which training is watched, and blocks are chosen."""

_WEIGHING = 128
"""Texts on which it is measured what can be left out."""

_DECISIVE = ("layers", "ffn_width", "heads", "embeddings", "freeze_embeddings", "seed")
"""What an interrupted run must have been asked for as well."""

_MULTIPLE = 16
"""Engines like widths of whole vectors."""

_RUN = Strategy("token_budget", 64, token_budget=2048)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; None leaves it as it is."""

    layers: int | None
    ffn_width: int | None
    budget_s: float
    seed: int
    heads: int | None = None
    embeddings: bool = False
    freeze_embeddings: bool = True


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the student has of each; ``heads`` is 0 where they cannot be told apart."""

    layers: int
    ffn_width: int
    heads: int


@dataclass(frozen=True, slots=True)
class _Lot:
    """Texts for one purpose, and what the original answers: float32 [texts, k]."""

    texts: tuple[str, ...]
    tokens: Tokens
    truth: NDArray[np.float32]


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
    whole = _whole(original)
    sizes = _sizes(whole, wanted)
    known = list(dict.fromkeys(texts))
    parts = split(len(known), wanted.seed)
    taught, watched, judging = ([known[int(i)] for i in part] for part in parts)
    runner = _Runner(reference)
    tell = Teller(report, begin_s, wanted.budget_s)
    tell("choose", "what can be left out")
    words = None
    if wanted.embeddings:
        words = vocabulary.reduce(reference, original, known, runner.tokens(known), parts[2])
    watch, judge = runner.lot(original, watched), runner.lot(original, judging)
    choice = _once(work / "choice.json", lambda: _choose(original, runner, watch, sizes, tell))
    student = blocks.cut(original, choice["layers"], choice["units"], choice["heads"])
    if wanted.freeze_embeddings:
        distil.freeze_embeddings(student)
    compare_s = time.monotonic()
    before = runner.parity(student, judge)
    compare_s = time.monotonic() - compare_s
    lesson = Lesson(
        original=original,
        student=student,
        layers=choice["layers"],
        tokens=runner.tokens(taught),
        pad_token_id=reference.info.pad_token_id,
        gold=_gold(reference, texts, labels, taught),
        agreement=partial(runner.agreement, watch),
        steps=0,
        seed=wanted.seed,
        bf16=hardware.detect().has_bf16,
        overdue=lambda: tell.spent_s > wanted.budget_s - compare_s,
    )
    agreements: list[float] = []
    if sizes != whole:
        look_s = compare_s * len(watched) / len(judging)
        lesson = _planned(lesson, wanted, tell, work, look_s=look_s, compare_s=compare_s)
        agreements = distil.teach(
            lesson, work / "checkpoints", tell.teaching("teach", lesson.steps, compare_s)
        )
    if words is not None:
        vocabulary.shrink(student, words)
        judge = replace(judge, tokens=words.renumbered(judge.tokens))
    after = runner.parity(student, judge)
    _write(student, reference, words, work / "student")
    seen = sorted(map(corpus.digest, (*taught, *watched)))
    write_json(work / "student" / corpus.TAUGHT, {"texts": seen})
    return Student(
        layers=tuple(choice["layers"]),
        of_layers=whole.layers,
        ffn_width=sizes.ffn_width,
        of_ffn_width=whole.ffn_width,
        parameter_count=_parameters(student),
        of_parameter_count=_parameters(original),
        taught_texts=len(taught) if lesson.steps else 0,
        steps=lesson.steps,
        agreements=tuple(agreements),
        before=before,
        after=after,
        seconds=tell.spent_s,
        asked_ffn_width=wanted.ffn_width,
        heads=sizes.heads,
        of_heads=whole.heads,
        **_of_words(words, original),
    )


def _original(reference: Reference) -> Any:
    if reference.kind != "huggingface":
        raise ModelError(
            f"{reference.info.name} is code, of which nobody knows how to say that it is smaller",
            fix="Give a Hugging Face folder or hub id.",
        )
    return load_original(reference.folder / "module")


def _whole(original: Any) -> _Sizes:
    """What the original has of each.

    Raises:
        ModelError: its blocks cannot be taken apart.
    """
    found, known = blocks.find(original), attention.find(original)
    counts = {len(heads) for heads in known.heads} if known else set()
    return _Sizes(found.count, found.width, counts.pop() if len(counts) == 1 else 0)


def _planned(
    lesson: Lesson, wanted: Wanted, tell: Teller, work: Path, *, look_s: float, compare_s: float
) -> Lesson:
    """The lesson with as many steps as fit, or as an interrupted run had."""

    def decide() -> dict[str, Any]:
        tell("teach", "how long a step takes")
        checkpoint_s = distil.time_checkpoint(lesson, work / "checkpoints")
        return {
            "steps": steps(
                lesson,
                Upkeep(look_s, checkpoint_s, compare_s),
                budget_s=wanted.budget_s,
                spent_s=tell.spent_s,
                taught_share=1.0 - _JUDGING[0] - _WATCHING[0],
            ),
            "bf16": lesson.bf16,
        }

    return replace(lesson, **_once(work / "steps.json", decide))


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


def _sizes(whole: _Sizes, wanted: Wanted) -> _Sizes:
    layers = whole.layers if wanted.layers is None else wanted.layers
    width = whole.ffn_width if wanted.ffn_width is None else wanted.ffn_width
    heads = whole.heads if wanted.heads is None else wanted.heads
    if not 1 <= layers <= whole.layers:
        raise ChoiceError(
            f"--layers is {layers}, and the model has {whole.layers}",
            fix=f"It must be from 1 to {whole.layers}.",
        )
    if not 1 <= width <= whole.ffn_width:
        raise ChoiceError(
            f"--ffn-width is {width}, and the model's is {whole.ffn_width}",
            fix=f"It must be from {_MULTIPLE} to {whole.ffn_width}.",
        )
    if wanted.heads is not None and not whole.heads:
        raise ModelError(
            "the attention heads of this model cannot be taken out",
            fix=f"--heads works with {attention.PRUNABLE}, with as many heads in each block; "
            "leave it out.",
        )
    if wanted.heads is not None and not 1 <= heads <= whole.heads:
        raise ChoiceError(
            f"--heads is {heads}, and each block has {whole.heads}",
            fix=f"It must be from 1 to {whole.heads}.",
        )
    if width < whole.ffn_width:
        width = max(_MULTIPLE, width // _MULTIPLE * _MULTIPLE)
    sizes = _Sizes(layers, width, heads)
    if sizes == whole and not wanted.embeddings:
        raise ChoiceError(
            "nothing was asked to be left out",
            fix=f"--layers {max(1, whole.layers // 2)} or --ffn-width {whole.ffn_width // 2}, or "
            "both; there are --heads and --embeddings as well.",
        )
    return sizes


def _choose(
    original: Any, runner: _Runner, watch: _Lot, sizes: _Sizes, tell: Teller
) -> dict[str, Any]:
    """Which blocks stay, and which units and heads of each."""
    found, known = blocks.find(original), attention.find(original)
    everything = [list(range(found.width))] * found.count
    some = watch.tokens.select(np.arange(min(_WEIGHING, len(watch.texts))))
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


class _Runner:
    """Runs models of one reference over texts."""

    def __init__(self, reference: Reference) -> None:
        self._info = reference.info
        self._task = tasks.get(reference.info.task)
        self._tokenizer = reference.tokenizer()

    def tokens(self, texts: Sequence[str]) -> Tokens:
        return self._tokenizer.encode(texts)

    def lot(self, original: nn.Module, texts: Sequence[str]) -> _Lot:
        """Texts with what the original answers."""
        tokens = self.tokens(texts)
        return _Lot(tuple(texts), tokens, self.outputs(original, tokens))

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

    def agreement(self, watch: _Lot, student: Any) -> float:
        """Share of the same decisions; of numbers, how little of their spread they are off by."""
        outputs = self.outputs(student, watch.tokens)
        if not self._task.decides:
            off = np.abs(outputs - watch.truth).mean() / max(float(watch.truth.std()), 1e-9)
            return float(1.0 - off)
        same = self._task.decisions(outputs) == self._task.decisions(watch.truth)
        return float(same.reshape(len(same), -1).all(axis=1).mean())

    def parity(self, student: Any, judge: _Lot) -> Parity:
        """The student against the original, on texts that taught nothing."""
        outputs = self.outputs(student, judge.tokens)
        return compare(
            judge.truth, outputs, task=self._task, labels=self._info.labels, texts=judge.texts
        )


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
