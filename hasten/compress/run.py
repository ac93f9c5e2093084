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

from hasten import corpus, tasks
from hasten.batching import plan
from hasten.compress import blocks, distil, importance
from hasten.compress.distil import Lesson
from hasten.errors import BudgetError, ChoiceError, InputError, ResumeError
from hasten.parity import compare
from hasten.records import Event, Parity, Progress, Strategy, Student
from hasten.reference import Reference
from hasten.reference.folder import TOKENIZER_FILES, storing, write_json
from hasten.reference.module import load_original, quiet
from hasten.tokenization import Tokens

if TYPE_CHECKING:
    from torch import nn

FEWEST_TEXTS = 200
"""Fewer leave too little to teach with and to judge by."""

_JUDGING = (0.2, 1000)
"""Share of the texts that judge the result, and how many at most."""

_WATCHING = (0.1, 300)
"""Share of the texts by which training is watched, and blocks are chosen."""

_WEIGHING = 128
"""Texts on which it is measured what can be left out."""

_MULTIPLE = 16
"""Engines like widths of whole vectors."""

_MOST_EPOCHS = 20
"""A budget that holds more is not used up: little is learnt after so many."""

_TIMED_STEPS = 4
"""The first warms up and is not counted."""

_RESERVE = 0.05
"""Of the time: for the last comparison and for writing."""

_KNOWN = 0.02
"""Share of the work from which on it tells how long the rest takes."""

_RUN = Strategy("token_budget", 64, token_budget=2048)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; None leaves it as it is."""

    layers: int | None
    ffn_width: int | None
    budget_s: float
    seed: int


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
) -> Student:
    """Make a student of ``reference`` in ``work / "student"``, an ordinary model folder.

    Args:
        reference: the original.
        texts: unlabelled ones suffice.
        labels: the right label of each, if known.
        wanted: which sizes.
        work: an earlier, interrupted run's folder is taken up.
        report: is told about progress.

    Raises:
        ModelError: the model's blocks cannot be taken apart.
        ChoiceError: sizes that cannot be.
        InputError: too few texts.
        BudgetError: the time does not hold one pass over the texts.
        StorageError: ``work`` cannot be written.
    """
    begin_s = time.monotonic()
    _refuse_others(work / "asked.json", reference, texts, labels, wanted)
    original = load_original(reference.folder / "module")
    found = blocks.find(original)
    layers, width = _sizes(found, wanted)
    known = list(dict.fromkeys(texts))
    taught, watched, judging = (
        [known[int(i)] for i in part] for part in split(len(known), wanted.seed)
    )
    runner = _Runner(reference)
    watch = runner.lot(original, watched)
    tell = _Teller(report, begin_s)
    tell("choose", "what can be left out", 0.02)
    choice = _once(
        work / "choice.json",
        lambda: _choose(original, runner, watch, (layers, width), tell),
    )
    student = blocks.cut(original, choice["layers"], choice["units"])
    judge = runner.lot(original, judging)
    before = runner.parity(student, judge)
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
    )
    spent_s = time.monotonic() - begin_s
    steps = _once(work / "steps.json", lambda: {"steps": _steps(lesson, wanted, spent_s)})["steps"]
    agreements = distil.teach(
        replace(lesson, steps=steps),
        work / "checkpoints",
        lambda step, best: tell(
            "teach",
            f"step {step:,} of {steps:,}" + (f", {best:.1%} of answers agree" if best else ""),
            max(step / steps, 0.03),
        ),
    )
    after = runner.parity(student, judge)
    _write(student, reference, work / "student")
    seen = sorted(map(corpus.digest, (*taught, *watched)))
    write_json(work / "student" / corpus.TAUGHT, {"texts": seen})
    return Student(
        layers=tuple(choice["layers"]),
        of_layers=found.count,
        ffn_width=width,
        of_ffn_width=found.width,
        parameter_count=_parameters(student),
        of_parameter_count=_parameters(original),
        taught_texts=len(taught),
        steps=steps,
        agreements=tuple(agreements),
        before=before,
        after=after,
        seconds=time.monotonic() - begin_s,
    )


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
        **{name: getattr(wanted, name) for name in ("layers", "ffn_width", "seed")},
    }
    then = _once(path, lambda: asked)
    if then != asked:
        what = ", ".join(sorted(name for name in asked if asked[name] != then.get(name)))
        raise ResumeError(
            f"{path.parent} was begun with another choice of: {what}",
            fix="--restart throws it away and begins anew.",
        )


def _sizes(found: blocks.Blocks, wanted: Wanted) -> tuple[int, int]:
    layers = found.count if wanted.layers is None else wanted.layers
    width = found.width if wanted.ffn_width is None else wanted.ffn_width
    if not 1 <= layers <= found.count:
        raise ChoiceError(
            f"--layers is {layers}, and the model has {found.count}",
            fix=f"It must be from 1 to {found.count}.",
        )
    if not 1 <= width <= found.width:
        raise ChoiceError(
            f"--ffn-width is {width}, and the model's is {found.width}",
            fix=f"It must be from {_MULTIPLE} to {found.width}.",
        )
    if width < found.width:
        width = max(_MULTIPLE, width // _MULTIPLE * _MULTIPLE)
    if (layers, width) == (found.count, found.width):
        raise ChoiceError(
            "nothing was asked to be left out",
            fix=f"--layers {max(1, found.count // 2)} or --ffn-width {found.width // 2}, or both.",
        )
    return layers, width


def _choose(
    original: Any,
    runner: _Runner,
    watch: _Lot,
    sizes: tuple[int, int],
    tell: _Teller,
) -> dict[str, Any]:
    """Which blocks stay, and which units of each."""
    layers, width = sizes
    found = blocks.find(original)
    everything = [list(range(found.width))] * found.count

    some = watch.tokens.select(np.arange(min(_WEIGHING, len(watch.texts))))
    truth = watch.truth[: len(some)]

    def loss(kept: Sequence[int]) -> float:
        outputs = runner.outputs(blocks.cut(original, kept, everything[: len(kept)]), some)
        return float(np.square(outputs - truth).mean())

    chosen = list(range(found.count))
    if layers < found.count:
        chosen = importance.choose_layers(
            found.count, layers, loss, lambda done: tell("choose", "blocks", 0.02 * done)
        )
    units = everything
    if width < found.width:
        weights = importance.of_units(original, runner.batches(some))
        units = importance.most_important(weights, width)
    return {"layers": chosen, "units": [units[index] for index in chosen]}


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


def _steps(lesson: Lesson, wanted: Wanted, spent_s: float) -> int:
    """How many batches the rest of the time holds.

    Raises:
        BudgetError: not even one pass over the texts.
    """
    step_s = distil.time_steps(lesson, _TIMED_STEPS)
    left_s = wanted.budget_s * (1.0 - _RESERVE) - spent_s
    epoch = -(-len(lesson.tokens) // distil.BATCH_SIZE)
    steps = min(int(left_s / step_s), _MOST_EPOCHS * epoch)
    if steps < epoch:
        needed_s = (spent_s + epoch * step_s) / (1.0 - _RESERVE)
        fitting = max(int(left_s / step_s), 0) * distil.BATCH_SIZE
        raise BudgetError(
            f"one pass over {len(lesson.tokens):,} texts takes {epoch * step_s:,.0f} s, and "
            f"{max(left_s, 0):,.0f} s are left of the budget",
            fix=f"--budget {needed_s / 60 + 1:.0f}m, or fewer texts: {fitting:,} would fit.",
        )
    return steps


def _once(path: Path, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an interrupted run decided, or what is decided now and kept."""
    if not path.exists():
        write_json(path, decide())
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def _write(student: Any, reference: Reference, folder: Path) -> None:
    with storing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with quiet():
            student.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            if (reference.folder / name).exists():
                shutil.copyfile(reference.folder / name, folder / name)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _Teller:
    """Reports how far the whole has come."""

    def __init__(self, report: Callable[[Event], None], begin_s: float) -> None:
        self._report, self._begin_s = report, begin_s

    def __call__(self, stage: str, message: str, done: float) -> None:
        spent_s = time.monotonic() - self._begin_s
        left_s = spent_s / done * (1.0 - done) if done > _KNOWN else None
        self._report(Progress(stage, message, done, left_s))


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
