"""The original and a candidate against right labels or numbers, where these are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.judging.stats import macro_f1, mcnemar_p, micro_f1
from hasten.records import Errors, Quality
from hasten.tasks import Outputs, Task, spearman


def quality(
    original: Outputs,
    candidate: Outputs,
    sound: NDArray[np.bool_],
    *,
    task: Task,
    labels: Sequence[str],
    gold: Sequence[str] | None,
) -> Quality | None:
    """Both sides against the right labels; a text that is not sound has no right answer."""
    right = None if gold is None else task.gold(gold, labels)
    if right is None:
        return None
    decided, candidates = task.decisions(original), task.decisions(candidate)

    def is_right(decisions: NDArray[Any]) -> NDArray[np.bool_]:
        wrong = (decisions != right).reshape(len(right), -1).any(axis=1)
        return ~original.any(wrong)

    original_right, candidate_right = is_right(decided), is_right(candidates) & sound
    only_candidate = int((candidate_right & ~original_right).sum())
    only_original = int((original_right & ~candidate_right).sum())
    return Quality(
        accuracy=float(candidate_right.mean()),
        reference_accuracy=float(original_right.mean()),
        macro_f1=macro_f1(candidates, right),
        reference_macro_f1=macro_f1(decided, right),
        only_candidate_right=only_candidate,
        only_reference_right=only_original,
        mcnemar_p=mcnemar_p(only_candidate, only_original),
        micro_f1=micro_f1(candidates, right) if right.ndim == 2 else None,
        reference_micro_f1=micro_f1(decided, right) if right.ndim == 2 else None,
    )


def errors(
    original: Outputs, candidate: Outputs, task: Task, gold: Sequence[str] | None
) -> Errors | None:
    """Both sides against the right numbers."""
    right = None if gold is None else task.values(gold, original.width)
    if right is None:
        return None
    sides = [side.values.astype(np.float64) for side in (candidate, original)]
    off = [np.abs(side - right) for side in sides]
    known = right != 0
    orders = [
        np.mean([spearman(*each) for each in zip(side.T, right.T, strict=True)]) for side in sides
    ]
    return Errors(
        *(float(each.mean()) for each in off),
        *(
            float((each[known] / np.abs(right[known])).mean()) if known.any() else None
            for each in off
        ),
        *map(float, orders),
    )
