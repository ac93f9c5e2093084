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
from hasten.judging.quality import errors, quality
from hasten.judging.stats import clopper_pearson_upper
from hasten.percent import percent
from hasten.records import BatchingParity, Flip, Parity, Text
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
    original: Outputs,
    candidate: Outputs,
    *,
    task: Task,
    labels: Sequence[str],
    texts: Sequence[Text],
    gold: Sequence[str] | None = None,
    tie_margin: float = TIE_MARGIN,
    examples: int = 10,
    tries: int = 1,
) -> Parity:
    """Compare a candidate's outputs with the fp32 original's on the same texts.

    A text that occurs several times counts once, with the copy that fared worst: copies are no
    further evidence. Only the largest difference looks at all of them.

    Texts for which the candidate has NaN or infinity, or another number of rows, are counted as
    ``non_finite`` or ``misaligned`` and left out of flips and differences. For tasks without
    decisions, differences are in units of the original's standard deviation over the rows, since
    such outputs have no scale of their own: 0.05 is far off for a unit-length embedding and nothing
    for a price. There is no bound on a flip rate then (``flip_upper_bound`` is 1).

    Args:
        original: of n texts, n at least 1.
        candidate: of the same texts.
        task: how outputs are read.
        labels: names of the k columns; may be empty for tasks without decisions.
        texts: the n texts, for the examples.
        gold: the right label of each text, where known.
        tie_margin: a flip is a tie where the original preferred its answer by at most this.
        examples: how many flips to keep, those first of which the original was surest.
        tries: how many candidates these texts may judge. The bounds of all of them hold together
            with 95 % (Bonferroni): each has a confidence of 1 - 0.05 / tries.

    Raises:
        EngineError: the candidate's rows have another width.
        ModelError: the original itself gives NaN or infinity.
        InputError: a gold label is not one of the model's.
    """
    _check(original, candidate)
    aligned = candidate.counts == original.counts
    finite = candidate.finite
    sound = aligned & finite
    # Replaced by the original's, broken texts show neither flips nor differences.
    candidate = candidate.where(sound, original)
    differences = np.abs(candidate.values.astype(np.float64) - original.values)
    if not task.decides:
        differences /= _spread(original)
    largest = original.max(differences.max(axis=1, initial=0.0))
    changed, margins = task.changed(original, candidate), task.margins(original, candidate)
    rows = _one_of_each(texts, np.lexsort((-largest, -margins, ~changed, sound)))
    flipped, kept = rows[changed[rows]], rows[sound[rows]]
    surest = flipped[np.argsort(-margins[flipped], kind="stable")][:examples]
    ours, theirs = original.select(rows), candidate.select(rows)
    known = gold and [gold[row] for row in rows]
    return Parity(
        compared=len(rows),
        max_abs_difference=float(largest.max()),
        mean_abs_difference=_mean(differences[_rows_of(original, kept)]),
        flips=len(flipped),
        ties=int((margins[flipped] <= tie_margin).sum()),
        flip_upper_bound=_upper_bound(len(flipped), len(rows), tries) if task.decides else 1.0,
        non_finite=int((aligned & ~finite)[rows].sum()),
        misaligned=int((~aligned)[rows].sum()),
        decisions=task.decides,
        examples=_flips(surest, original, candidate, task=task, labels=labels, texts=texts),
        flip_margins=tuple(map(float, np.sort(margins[flipped]))),
        margin_quantiles=_margin_quantiles(task, ours),
        constant=_constant(candidate, original, FP32_TOLERANCE if task.decides else 0.0),
        quality=quality(ours, theirs, sound[rows], task=task, labels=labels, gold=known),
        tries=tries,
        errors=errors(ours, theirs, task, known),
        agreement=task.agreement(ours, theirs, [texts[row] for row in rows], labels),
        demanded=task.demanded,
    )


def _rows_of(outputs: Outputs, texts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the rows of these texts: int64, ascending."""
    chosen = np.zeros(len(outputs), np.bool_)
    chosen[texts] = True
    return np.flatnonzero(np.repeat(chosen, outputs.counts))


def _mean(differences: NDArray[np.float64]) -> float:
    return float(differences.mean()) if differences.size else 0.0


def _margin_quantiles(task: Task, original: Outputs) -> tuple[float, ...]:
    if not task.decides:
        return ()
    sureness = task.sureness(original)
    # Infinite where a text has no row, and nothing that could flip.
    known = sureness[np.isfinite(sureness)]
    return tuple(map(float, np.percentile(known, MARGIN_PERCENTILES))) if len(known) else ()


def compare_batchings(
    original: Outputs,
    answers: Mapping[str, Outputs],
    *,
    task: Task,
    labels: Sequence[str],
    texts: Sequence[Text],
    gold: Sequence[str] | None = None,
    tries: int = 1,
) -> Parity:
    """Compare a candidate's outputs under several batchings; each text counts at its worst.

    A text is flipped if any of the batchings flips it, so that the bound holds for each of them.

    Args:
        original: its outputs, of n texts.
        answers: the candidate's, by the batching's name.
        task: as for :func:`compare`, like all that follow; that also says what is raised.
        labels: names of the k columns.
        texts: the n texts.
        gold: the right label of each text, where known.
        tries: how many candidates these texts may judge.
    """

    def against(times: int, outputs: Outputs) -> Parity:
        return compare(
            Outputs.concatenate([original] * times),
            outputs,
            task=task,
            labels=labels,
            texts=list(texts) * times,
            gold=gold and list(gold) * times,
            tries=tries,
        )

    each = {name: against(1, outputs) for name, outputs in answers.items()}
    # Copies count once, with the worst of them: so do the answers to the same text.
    worst = against(len(answers), Outputs.concatenate(list(answers.values())))
    return replace(
        worst,
        examples=tuple(replace(f, index=f.index % len(original)) for f in worst.examples),
        constant=any(parity.constant for parity in each.values()),
        batchings=tuple(
            BatchingParity(name, found.flips, found.non_finite, found.max_abs_difference)
            for name, found in each.items()
        ),
    )


def unprovable(original: Outputs, texts: Sequence[Text]) -> str | None:
    """Why agreement with the original on these texts proves nothing of a lossy candidate, if so.

    Args:
        original: its outputs, of n texts.
        texts: the n texts.
    """
    different = len(set(texts))
    if different < FEWEST_TEXTS:
        return (
            f"judging a lossy candidate takes at least {FEWEST_TEXTS} different texts, and there "
            f"{'is' if different == 1 else 'are'} {different}"
        )
    if is_constant(original):
        return (
            f"the original gives the same outputs for all {different} different texts, so "
            "agreement with it proves nothing"
        )
    return None


def unprovable_strictly(texts: Sequence[Text], max_flips: float) -> str | None:
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
    """Whether all rows of these outputs are the same but for rounding."""
    return _range(outputs) <= _ROUNDING * float(np.abs(outputs.values).max(initial=0.0))


def _range(outputs: Outputs) -> float:
    """How far the rows are apart, in the column where they are furthest."""
    if not outputs.values.size:
        return 0.0
    return float(np.ptp(outputs.values.astype(np.float64), axis=0).max())


def verdict(
    parity: Parity,
    *,
    exact: bool,
    max_flips: float,
    strict: bool,
    tensor_tolerance: float = TENSOR_TOLERANCE,
    exact_uncut: bool = False,
) -> str | None:
    """Why a candidate may not be used, in one sentence; None if it may.

    Nothing may be NaN, infinite, or the same for every text. The original's weights in fp32 may
    change no decision but in a numerical tie, and outputs must stay within
    :data:`FP32_TOLERANCE`. Lossy precisions, and a student in any, may change a share
    ``max_flips`` of the decisions, as observed or, with ``strict``, up to the upper bound. Where
    nothing is decided, they must reach what the task demands of its own figures; where it demands
    nothing, their outputs may be off by :data:`TENSOR_TOLERANCE` on average.

    Args:
        parity: from :func:`compare`.
        exact: whether it has to give the very same answers; see ``Candidate.exact``.
        max_flips: allowed share of changed decisions, 0 to 1.
        strict: whether the share must be proven by its upper bound.
        tensor_tolerance: allowed mean difference where nothing is decided.
        exact_uncut: whether it must give the very same answers to the texts that it does not cut.
    """
    if parity.non_finite:
        return f"outputs are NaN or infinite for {parity.non_finite} of {parity.compared} texts"
    if parity.misaligned:
        return (
            f"for {parity.misaligned} of {parity.compared} texts it gives another number of rows "
            "than the original, so that their answers cannot be compared"
        )
    if parity.constant:
        return f"outputs are the same for all {parity.compared} texts"
    if exact:
        return _fp32_verdict(parity)
    if exact_uncut and parity.uncut and (reason := _fp32_verdict(parity.uncut)):
        return f"on the texts that are not cut, {reason}"
    if reason := _numbers_verdict(parity, tensor_tolerance):
        return reason
    if not parity.decisions:
        return None
    if parity.flip_rate > max_flips:
        return f"{_share(parity)} flipped; --max-flips allows {max_flips:.4g}"
    if strict and parity.flip_upper_bound > max_flips:
        return (
            f"{_share(parity)} flipped, so up to {parity.flip_upper_bound:.4g} may flip at 95 % "
            f"confidence{_shared(parity)}; --max-flips allows {max_flips:.4g}, and --strict counts "
            "the bound"
        )
    return None


def _numbers_verdict(parity: Parity, tensor_tolerance: float) -> str | None:
    """Which number is too far from the original's, where not only decisions count."""
    slack = tensor_tolerance / TENSOR_TOLERANCE
    for name, demanded in parity.demanded.items():
        found, least = parity.agreement.get(name, 1.0), 1.0 - slack * (1.0 - demanded)
        if found < least:
            return f"{name}: {found:.5g}; at least {least:.4g} is required"
    off = parity.mean_abs_difference
    if parity.decisions or parity.demanded or off <= tensor_tolerance:
        return None
    return (
        f"outputs are off by {off:.2g} standard deviations on average; {tensor_tolerance:g} is "
        "allowed"
    )


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
    return f"{parity.flips} of {parity.compared} labels ({percent(parity.flip_rate)})"


def _check(original: Outputs, candidate: Outputs) -> None:
    if len(original) == 0:
        raise ValueError("there must be at least one text to compare")
    if len(candidate) != len(original) or candidate.width != original.width:
        raise EngineError(
            f"the candidate answers {len(candidate)} texts with rows of {candidate.width} numbers, "
            f"the original {len(original)} with rows of {original.width}"
        )
    require_finite(original)


def require_finite(original: Outputs) -> None:
    """Refuse an original that gives NaN or infinity.

    Raises:
        ModelError: it does.
    """
    broken = int((~original.finite).sum())
    if broken:
        raise ModelError(
            f"the original model itself gives NaN or infinity for {broken} of "
            f"{len(original)} texts, so there is nothing to compare with",
            fix="Check that its weights are complete and were not saved after they overflowed.",
        )


def _one_of_each(texts: Sequence[Text], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first copy of each text in this order of rows; int64 indices, ascending."""
    first: dict[Text, int] = {}
    for row in order.tolist():
        first.setdefault(texts[row], row)
    return np.array(sorted(first.values()), np.int64)


def _constant(candidate: Outputs, original: Outputs, least: float) -> bool:
    """Whether the candidate says the same whatever the text is, where the original does not.

    An original whose outputs vary by ``least`` or less says the same itself, as far as can be told.
    """
    varies = _range(original)
    return varies > least and _range(candidate) < _CONSTANT * varies


def _spread(original: Outputs) -> float:
    """Standard deviation over the rows, root mean square over the columns.

    At least a hundredth of the outputs' own size: where all texts get nearly the same numbers,
    what is left between them is rounding. 1 where all outputs are zero, or there are none.
    """
    if not original.values.size:
        return 1.0
    values = original.values.astype(np.float64)
    spread = float(np.sqrt(values.var(axis=0).mean()))
    size = float(np.sqrt((values**2).mean()))
    return max(spread, 0.01 * size) or 1.0


def _flips(
    rows: NDArray[np.int64],
    original: Outputs,
    candidate: Outputs,
    *,
    task: Task,
    labels: Sequence[str],
    texts: Sequence[Text],
) -> tuple[Flip, ...]:
    original_margins = task.margins(original, candidate)
    candidate_margins = task.margins(candidate, original)
    return tuple(
        Flip(
            index=row,
            text=shortened(texts[row]),
            reference_answer=task.describe(original[row], labels),
            candidate_answer=task.describe(candidate[row], labels),
            reference_margin=float(original_margins[row]),
            candidate_margin=float(candidate_margins[row]),
        )
        for row in rows.tolist()
    )


def shortened(text: Text) -> str:
    """A text as results keep it: at most 200 characters, a pair as one."""
    text = text if isinstance(text, str) else " | ".join(text)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return text[: _SHOWN_CHARACTERS - 1] + "…"
