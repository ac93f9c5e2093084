"""Whether a candidate still gives the original's answers, and whether that is good enough.

Numbers always differ a little between engines. What a user sees is a decision, so decisions are
what is compared; the differences of the numbers are reported beside them, and count on their own
only where the model decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError, ModelError
from hasten.judging.stats import clopper_pearson_upper, macro_f1, mcnemar_p
from hasten.records import BatchingParity, Errors, Flip, Parity, Quality
from hasten.tasks import Outputs, Task

FP32_TOLERANCE = 1e-3
"""Largest difference that fp32 may show. Reordered sums in fp32 stay around 1e-6 to 1e-5; a
thousandth means that something else is computed, such as reduced precision or another mask."""

TIE_MARGIN = 2 * FP32_TOLERANCE
"""Two logits that each move by the tolerance, towards each other, close a gap of twice that."""

TENSOR_TOLERANCE = 0.1
"""Largest mean difference of lossy outputs without decisions, in standard deviations.

Errors of that size, normally distributed, leave a correlation of 0.99 with the original: a mean
absolute error of 0.1 is a root mean square of 0.125, and 1 / sqrt(1 + 0.125**2) = 0.992. For
comparison, bf16 on BERT shapes stays near 0.02 and int8 that works between 0.03 and 0.07, while
int8 that visibly moves MiniLM's embeddings (worst cosine 0.94) reaches 0.27.
"""

MARGIN_PERCENTILES = (5, 25, 50, 75, 95)
"""Of the original's margins, as kept in :attr:`hasten.records.Parity.margin_quantiles`."""

FEWEST_TEXTS = 30
"""Different texts that a lossy candidate must answer: of fewer, one broken answer in ten may well
not be among them (0.9**30 is 4 %, and 0.9**10 is 35 %)."""

_ALPHA = 0.05
"""How often, at most, any of the bounds on the candidates' flip rates may fail."""

_CONSTANT = 1e-3
"""Share of the original's spread over the texts below which outputs do not depend on the text."""

_ROUNDING = 1e-5
"""Share of their own size by which fp32 outputs differ from batch to batch, with a margin."""

_SHOWN_CHARACTERS = 200


def compare(
    reference: Outputs,
    candidate: Outputs,
    *,
    task: Task,
    labels: Sequence[str],
    texts: Sequence[str],
    gold: Sequence[str] | None = None,
    tie_margin: float = TIE_MARGIN,
    examples: int = 10,
    tries: int = 1,
) -> Parity:
    """Compare a candidate's outputs with the fp32 original's on the same texts.

    A text that occurs several times counts once, with the copy that fared worst: copies are no
    further evidence. Only the largest difference looks at all of them.

    Rows in which the candidate has NaN or infinity are counted as ``non_finite`` and left out of
    flips and differences. For tasks without decisions, differences are in units of the
    original's standard deviation over the texts, since such outputs have no scale of their own:
    0.05 is far off for a unit-length embedding and nothing for a price. There is no bound on a
    flip rate then (``flip_upper_bound`` is 1).

    Args:
        reference: float32 [n, k], n at least 1.
        candidate: float32 [n, k].
        task: how outputs are read.
        labels: names of the k columns; may be empty for tasks without decisions.
        texts: the n texts, for the examples.
        gold: the right label of each text, where known.
        tie_margin: a flip is a tie where the original preferred its answer by at most this.
        examples: how many flips to keep, those first of which the original was surest.
        tries: how many candidates these texts may judge. The bounds of all of them hold together
            with 95 % (Bonferroni): each has a confidence of 1 - 0.05 / tries.

    Raises:
        EngineError: the candidate's outputs have another shape.
        ModelError: the original itself gives NaN or infinity.
        InputError: a gold label is not one of the model's.
    """
    _check(reference, candidate)
    finite = _finite_rows(candidate)
    # Replaced by the original's, broken rows show neither flips nor differences.
    candidate = np.where(finite[:, np.newaxis], candidate, reference)
    differences = np.abs(candidate.astype(np.float64) - reference)
    if not task.decides:
        differences /= _spread(reference)
    decided_otherwise = task.decisions(reference) != task.decisions(candidate)
    changed = decided_otherwise.reshape(len(reference), -1).any(axis=1)
    margins = task.margins(reference, candidate)
    worst = np.lexsort((-differences.max(axis=1), -margins, ~changed, finite))
    rows = _one_of_each(texts, worst)
    flipped, sound = rows[changed[rows]], rows[finite[rows]]
    surest = flipped[np.argsort(-margins[flipped], kind="stable")][:examples]
    return Parity(
        compared=len(rows),
        max_abs_difference=float(differences.max()),
        mean_abs_difference=float(differences[sound].mean()) if len(sound) else 0.0,
        flips=len(flipped),
        ties=int((margins[flipped] <= tie_margin).sum()),
        flip_upper_bound=_upper_bound(len(flipped), len(rows), tries) if task.decides else 1.0,
        non_finite=len(rows) - len(sound),
        decisions=task.decides,
        examples=_flips(surest, reference, candidate, task=task, labels=labels, texts=texts),
        flip_margins=tuple(map(float, np.sort(margins[flipped]))),
        margin_quantiles=(
            tuple(map(float, np.percentile(task.sureness(reference[rows]), MARGIN_PERCENTILES)))
            if task.decides
            else ()
        ),
        constant=_constant(candidate, reference),
        quality=_quality(
            reference[rows],
            candidate[rows],
            finite[rows],
            task=task,
            labels=labels,
            gold=gold and [gold[row] for row in rows],
        ),
        tries=tries,
        errors=_errors(reference[rows], candidate[rows], task, gold and [gold[r] for r in rows]),
    )


def compare_batchings(
    reference: Outputs,
    answers: Mapping[str, Outputs],
    *,
    task: Task,
    labels: Sequence[str],
    texts: Sequence[str],
    gold: Sequence[str] | None = None,
    tries: int = 1,
) -> Parity:
    """Compare a candidate's outputs under several batchings; each text counts at its worst.

    A text is flipped if any of the batchings flips it, so that the bound holds for each of them.

    Args:
        reference: float32 [n, k].
        answers: float32 [n, k] by the batching's name.
        task: as for :func:`compare`, like all that follow; that also says what is raised.
        labels: names of the k columns.
        texts: the n texts.
        gold: the right label of each text, where known.
        tries: how many candidates these texts may judge.
    """

    def against(times: int, outputs: Outputs) -> Parity:
        return compare(
            np.tile(reference, (times, 1)),
            outputs,
            task=task,
            labels=labels,
            texts=list(texts) * times,
            gold=gold and list(gold) * times,
            tries=tries,
        )

    each = {name: against(1, outputs) for name, outputs in answers.items()}
    # Copies count once, with the worst of them: so do the answers to the same text.
    worst = against(len(answers), np.concatenate(list(answers.values())))
    return replace(
        worst,
        examples=tuple(replace(f, index=f.index % len(reference)) for f in worst.examples),
        constant=any(parity.constant for parity in each.values()),
        batchings=tuple(
            BatchingParity(name, found.flips, found.non_finite, found.max_abs_difference)
            for name, found in each.items()
        ),
    )


def unprovable(reference: Outputs, texts: Sequence[str]) -> str | None:
    """Why agreement with the original on these texts proves nothing of a lossy candidate, if so.

    Args:
        reference: the original's, float32 [n, k].
        texts: the n texts.
    """
    different = len(set(texts))
    if different < FEWEST_TEXTS:
        return (
            f"judging a lossy candidate takes at least {FEWEST_TEXTS} different texts, and there "
            f"{'is' if different == 1 else 'are'} {different}"
        )
    if is_constant(reference):
        return (
            f"the original gives the same outputs for all {different} different texts, so "
            "agreement with it proves nothing"
        )
    return None


def unprovable_strictly(texts: Sequence[str], max_flips: float) -> str | None:
    """Why no lossy candidate can pass ``--strict`` on these texts, even without a flip, if so.

    Args:
        texts: the judged ones.
        max_flips: the share that the upper bound must not exceed.
    """
    different = len(set(texts))
    if _upper_bound(0, different, 1) <= max_flips:
        return None
    needed = math.ceil(math.log(_ALPHA) / math.log1p(-max_flips)) if max_flips else None
    takes = f"it takes at least {needed:,}" if needed else "no number of texts can"
    return (
        f"{different:,} different texts cannot prove --max-flips {max_flips:g} with --strict, even "
        f"without a flip: {takes}"
    )


def is_constant(outputs: Outputs) -> bool:
    """Whether these outputs, float32 [n, k], are the same for every text but for rounding."""
    differs = float(np.ptp(outputs.astype(np.float64), axis=0).max())
    return differs <= _ROUNDING * float(np.abs(outputs).max())


def verdict(
    parity: Parity,
    *,
    exact: bool,
    max_flips: float,
    strict: bool,
    tensor_tolerance: float = TENSOR_TOLERANCE,
) -> str | None:
    """Why a candidate may not be used, in one sentence; None if it may.

    Nothing may be NaN, infinite, or the same for every text. The original's weights in fp32 may
    change no decision but in a numerical tie, and outputs must stay within
    :data:`FP32_TOLERANCE`. Lossy precisions, and a student in any, may change a share
    ``max_flips`` of the decisions, as observed or, with ``strict``, up to the upper bound. Where
    nothing is decided, their outputs may be off by :data:`TENSOR_TOLERANCE` on average.

    Args:
        parity: from :func:`compare`.
        exact: whether it has to give the very same answers; see ``Candidate.exact``.
        max_flips: allowed share of changed decisions, 0 to 1.
        strict: whether the share must be proven by its upper bound.
        tensor_tolerance: allowed mean difference where nothing is decided.
    """
    if parity.non_finite:
        return f"outputs are NaN or infinite for {parity.non_finite} of {parity.compared} texts"
    if parity.constant:
        return f"outputs are the same for all {parity.compared} texts"
    if exact:
        return _fp32_verdict(parity)
    if not parity.decisions:
        if parity.mean_abs_difference <= tensor_tolerance:
            return None
        return (
            f"outputs are off by {parity.mean_abs_difference:.2g} standard deviations on average; "
            f"{tensor_tolerance:g} is allowed"
        )
    if parity.flip_rate > max_flips:
        return f"{_share(parity)} flipped; --max-flips allows {max_flips:.4g}"
    if strict and parity.flip_upper_bound > max_flips:
        return (
            f"{_share(parity)} flipped, so up to {parity.flip_upper_bound:.4g} may flip at 95 % "
            f"confidence{_shared(parity)}; --max-flips allows {max_flips:.4g}, and --strict counts "
            "the bound"
        )
    return None


def _shared(parity: Parity) -> str:
    return f" over {parity.tries} candidates" if parity.tries > 1 else ""


def _fp32_verdict(parity: Parity) -> str | None:
    if parity.flips > parity.ties:
        return (
            f"{_share(parity)} flipped, {parity.flips - parity.ties} of them not numerical ties; "
            "fp32 must flip none"
        )
    if parity.max_abs_difference > FP32_TOLERANCE:
        unit = "" if parity.decisions else " standard deviations"
        return (
            f"outputs differ by up to {parity.max_abs_difference:.2g}{unit}; "
            f"fp32 must stay within {FP32_TOLERANCE:g}"
        )
    return None


def _upper_bound(flips: int, texts: int, tries: int) -> float:
    return clopper_pearson_upper(flips, texts, 1.0 - _ALPHA / tries)


def _share(parity: Parity) -> str:
    return f"{parity.flips} of {parity.compared} labels ({parity.flip_rate:.2%})"


def _check(reference: Outputs, candidate: Outputs) -> None:
    if reference.ndim != 2 or len(reference) == 0:
        raise ValueError(f"reference must be [n, k] with n at least 1, not {reference.shape}")
    if candidate.shape != reference.shape:
        raise EngineError(
            f"the candidate's outputs have the shape {candidate.shape}, "
            f"the original's {reference.shape}"
        )
    require_finite(reference)


def require_finite(reference: Outputs) -> None:
    """Refuse an original, float32 [n, k], that gives NaN or infinity.

    Raises:
        ModelError: it does.
    """
    broken = int((~_finite_rows(reference)).sum())
    if broken:
        raise ModelError(
            f"the original model itself gives NaN or infinity for {broken} of "
            f"{len(reference)} texts, so there is nothing to compare with",
            fix="Check that its weights are complete and were not saved after they overflowed.",
        )


def _one_of_each(texts: Sequence[str], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first copy of each text in this order of rows; int64 indices, ascending."""
    first: dict[str, int] = {}
    for row in order.tolist():
        first.setdefault(texts[row], row)
    return np.array(sorted(first.values()), np.int64)


def _finite_rows(outputs: Outputs) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.all(np.isfinite(outputs), axis=1)
    return finite


def _constant(candidate: Outputs, reference: Outputs) -> bool:
    """Whether the candidate says the same whatever the text is, where the original does not."""
    differs = float(np.ptp(reference.astype(np.float64), axis=0).max())
    return float(np.ptp(candidate.astype(np.float64), axis=0).max()) < _CONSTANT * differs


def _quality(
    reference: Outputs,
    candidate: Outputs,
    finite: NDArray[np.bool_],
    *,
    task: Task,
    labels: Sequence[str],
    gold: Sequence[str] | None,
) -> Quality | None:
    """Both sides against the right labels; a text without a finite output has no right answer."""
    right = None if gold is None else task.gold(gold, labels)
    if right is None:
        return None
    decided, candidates = task.decisions(reference), task.decisions(candidate)
    count = len(right)
    reference_right = (decided == right).reshape(count, -1).all(axis=1)
    candidate_right = (candidates == right).reshape(count, -1).all(axis=1) & finite
    only_candidate = int((candidate_right & ~reference_right).sum())
    only_reference = int((reference_right & ~candidate_right).sum())
    return Quality(
        accuracy=float(candidate_right.mean()),
        reference_accuracy=float(reference_right.mean()),
        macro_f1=macro_f1(candidates, right),
        reference_macro_f1=macro_f1(decided, right),
        only_candidate_right=only_candidate,
        only_reference_right=only_reference,
        mcnemar_p=mcnemar_p(only_candidate, only_reference),
    )


def _errors(
    reference: Outputs, candidate: Outputs, task: Task, gold: Sequence[str] | None
) -> Errors | None:
    """Both sides against the right numbers."""
    right = None if gold is None else task.values(gold, reference.shape[1])
    if right is None:
        return None
    return Errors(*(float(np.abs(side - right).mean()) for side in (candidate, reference)))


def _spread(reference: Outputs) -> float:
    """Standard deviation over the texts, root mean square over the columns.

    At least a hundredth of the outputs' own size: where all texts get nearly the same numbers,
    what is left between them is rounding. 1 where all outputs are zero.
    """
    values = reference.astype(np.float64)
    spread = float(np.sqrt(values.var(axis=0).mean()))
    size = float(np.sqrt((values**2).mean()))
    return max(spread, 0.01 * size) or 1.0


def _flips(
    rows: NDArray[np.int64],
    reference: Outputs,
    candidate: Outputs,
    *,
    task: Task,
    labels: Sequence[str],
    texts: Sequence[str],
) -> tuple[Flip, ...]:
    reference_margins = task.margins(reference, candidate)
    candidate_margins = task.margins(candidate, reference)
    return tuple(
        Flip(
            index=row,
            text=_shortened(texts[row]),
            reference_answer=task.describe(reference[row], labels),
            candidate_answer=task.describe(candidate[row], labels),
            reference_margin=float(reference_margins[row]),
            candidate_margin=float(candidate_margins[row]),
        )
        for row in rows.tolist()
    )


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return text[: _SHOWN_CHARACTERS - 1] + "…"
