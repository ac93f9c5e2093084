"""The original's own answers, which everything else is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hasten.errors import EngineError
from hasten.judging.parity import require_finite
from hasten.runtime import probes
from hasten.storage import durable
from hasten.tasks import Outputs
from hasten.tuning.context import Context
from hasten.tuning.timing import ORIGINAL_VISITS
from hasten.tuning.trial import Trial
from hasten.tuning.worker import RunTexts

TRUTH = "truth.npz"

Check = Callable[[Context, float], None]
"""Is told what one pass of the original over all texts will take, in seconds."""


def answers(context: Context, baseline: Trial, check: Check) -> Outputs:
    """The original's outputs on all texts; kept for a resume.

    The texts are the first of ``context.all_texts``: the judged texts, then the first look's.

    Raises:
        EngineError: the original does not run.
        ModelError: it gives NaN or infinity.
    """
    context.budget.tell("prepare", f"the original, {baseline.label}")
    baseline.prepare()
    shape, stored = (1, context.profile.p50), context.folder / TRUTH
    for visit in ORIGINAL_VISITS:
        baseline.time_shape(shape, visit)
    samples_s = baseline.cells.get(shape)
    if not baseline.in_play or not samples_s:
        raise EngineError(
            f"the original model does not run: {baseline.reason}",
            fix="hasten compares everything with fp32 PyTorch; that has to work first.",
        )
    if not stored.exists():
        # The fastest sample, since a disturbance now must not refuse what would fit later.
        pass_s = min(samples_s) * float(context.lengths.sum()) / context.profile.p50
        check(context, pass_s)
        context.budget.tell("prepare", f"the original's answers to {len(context.texts)} texts")
        indices = tuple(range(context.answered_texts))
        message = RunTexts(indices, probes.STRATEGY, outputs=True)
        given = baseline.outputs(message, pass_s)
        durable.replace(
            stored, lambda file: np.savez(file, values=given.values, offsets=given.offsets)
        )
    with np.load(stored) as arrays:
        truth = Outputs(arrays["values"], arrays["offsets"])
    require_finite(truth)  # before anything is exported that could not be compared
    return truth
