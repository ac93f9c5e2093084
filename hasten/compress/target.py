"""``--target``: the sizes that reach a speed, and the fastest student that changes few answers."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hasten import tasks
from hasten.compress import blocks, importance, kept
from hasten.compress.runner import Lot, Runner
from hasten.compress.schedule import INT8_OF_SEARCH
from hasten.compress.search import RUNGS, Shape, Speeds
from hasten.compress.sizes import Wanted
from hasten.errors import BudgetError, ChoiceError
from hasten.options import CompressOptions
from hasten.percent import percent
from hasten.records import Student
from hasten.storage.durable import storing

_ROUNDING = 1e-9


class Make(Protocol):
    """Makes a student in a folder of its own."""

    def __call__(self, wanted: Wanted, *, work: Path) -> Student: ...


def sizes_for(speed: float, original: Any, runner: Runner, watch: Lot) -> dict[str, Any]:
    """Of the sizes that are fast enough, the one whose untrained student agrees best.

    Args:
        speed: how many times as fast as the original it should be, in PyTorch.
        original: what it is cut from.
        runner: runs both.
        watch: texts, with what the original answers.

    Returns:
        ``layers``, ``ffn_width``, and the ``predicted_speed``.

    Raises:
        ChoiceError: nothing is as fast.
    """
    found = blocks.find(original)
    whole = Shape(found.count, found.width)
    some = runner.first(watch.tokens)
    truth = watch.truth.select(range(len(some))).values
    weights = importance.of_units(original, runner.task.objective, runner.batches(some))

    def cut(shape: Shape) -> Any:
        layers = importance.evenly(found.count, shape.layers)
        units = importance.most_important(weights, shape.ffn_width)
        return blocks.cut(original, layers, [units[layer] for layer in layers])

    def loss(shape: Shape) -> float:
        return float(np.square(runner.outputs(cut(shape), some).values - truth).mean())

    # Each is timed several times over; no more of them than that are in memory together.
    timed = cache(lambda shape: original if shape == whole else cut(shape))
    speeds = Speeds(whole, watch.tokens.lengths, lambda shape, *at: _seconds(timed(shape), *at))
    timed.cache_clear()
    best = min(speeds.reaching(speed), key=loss)
    return {
        "layers": best.layers,
        "ffn_width": best.ffn_width,
        "predicted_speed": speeds.of(best),
    }


def _seconds(model: Any, batch_size: int, length: int) -> float:
    import torch

    ones = torch.ones(batch_size, length, dtype=torch.int64)
    with torch.inference_mode():
        begin_s = time.perf_counter()
        model(input_ids=ones, attention_mask=ones)
        return time.perf_counter() - begin_s


def fastest_within(
    max_flips: float, wanted: Wanted, make: Make, *, work: Path, begin_s: float
) -> Student:
    """Make students from mild to strong, as long as their answers agree; the last one stays.

    Each gets an equal part of the time that is left. What decides are the texts by which training
    is watched, and the answers in floating point; those that judge have no say in it. Integers are
    trained for the one that stays.

    Args:
        max_flips: the largest acceptable share of flipped labels.
        wanted: what is asked for, with the budget of all.
        make: makes one.
        work: gets a folder for each, and ``student`` for the one that stays.
        begin_s: when the budget began, by ``time.monotonic``.

    Raises:
        BudgetError: even the mildest changes more, or the time does not hold it.
        ChoiceError: not even the mildest can be.
    """

    def left_s() -> float:
        return wanted.budget_s - (time.monotonic() - begin_s)

    kept_s = INT8_OF_SEARCH * wanted.budget_s if wanted.int8 else 0.0
    best: tuple[Student, Wanted, Path] | None = None
    for number, speed in enumerate(RUNGS):
        folder = work / kept.RUNGS / f"{speed:g}x"
        budget_s = (left_s() - kept_s) / (len(RUNGS) - number)
        one = replace(wanted, target=speed, int8=False, budget_s=budget_s)
        try:
            with storing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            student = make(one, work=folder)
        except (BudgetError, ChoiceError) as error:
            if best is None:
                raise _for_each(error) from error
            break
        if 1.0 - student.agreement > max_flips + _ROUNDING:
            if best is None:
                raise _not_even(speed, student.agreement, max_flips)
            break
        best = student, one, folder
    assert best
    student, one, folder = best
    if wanted.int8:  # what was trained already is taken up
        student = make(replace(one, int8=True, budget_s=max(left_s(), 0.0)), work=folder)
    with storing(work):
        shutil.rmtree(work / kept.STUDENT, ignore_errors=True)
        (folder / kept.STUDENT).replace(work / kept.STUDENT)
    return replace(student, seconds=time.monotonic() - begin_s)


def require_decisions(task: tasks.Task) -> None:
    """Refuse ``--target-flips`` for a model that decides nothing.

    Raises:
        ChoiceError: its answers are numbers.
    """
    if not task.decides:
        raise ChoiceError(
            f"--target-flips counts flipped labels, and those of a {task.name} model are numbers",
            fix="Give sizes, such as --layers, or a speed, such as --target 2x.",
        )


def _for_each(error: BudgetError | ChoiceError) -> BudgetError | ChoiceError:
    if isinstance(error, ChoiceError):  # about a speed that nobody has asked for
        return ChoiceError(error.message, fix="Give --layers or --ffn-width instead.")
    share = f"That is for each of up to {len(RUNGS)} students that share --budget."
    return BudgetError(error.message, fix=f"{error.fix or ''}\n{share}")


def _not_even(speed: float, agreement: float, max_flips: float) -> BudgetError:
    return BudgetError(
        f"even the mildest student, {speed:g} times as fast, changes {percent(1.0 - agreement)} of "
        "the answers by which training was watched, and --target-flips allows "
        f"{percent(max_flips)}",
        fix="Give more texts or a longer --budget, or allow more.",
    )


def check(options: CompressOptions) -> None:
    """Refuse sizes beside a target, and two targets.

    Raises:
        ChoiceError: which.
    """
    names = ("target", "target_flips", "layers", "ffn_width", "heads")
    first, *others = [name for name in names if options.get(name) is not None] or [""]
    if others and first in ("target", "target_flips"):
        spelled, *excluded = [f"--{name.replace('_', '-')}" for name in (first, *others)]
        raise ChoiceError(
            f"{spelled} already decides the sizes, so {' and '.join(excluded)} cannot be given",
            fix="Leave one of them out.",
        )
