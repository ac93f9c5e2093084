"""What a sample of texts says about a promised share of flipped labels. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.judging.parity import verdict as refusal
from hasten.judging.stats import clopper_pearson_lower, clopper_pearson_upper
from hasten.percent import percent
from hasten.records import Parity, Verdict

_MOST_TEXTS = 20_000


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and why; see :class:`hasten.records.Audit`."""

    verdict: Verdict
    reason: str
    flip_lower_bound: float = 0.0
    more_texts: int = 0


def judge(parity: Parity, *, exact: bool, max_flips: float) -> Judgement:
    """Whether a promise holds on the texts that were compared.

    Of a lossy bundle the promise is a share of all texts, of which these are a random sample: it
    holds if the share's upper bound is within it, and is broken if the lower one is beyond it. An
    exact bundle, or one of a task without decisions, is held to what it was held to when it was
    tuned: there is nothing to estimate.

    Args:
        parity: from :func:`hasten.judging.parity.compare`.
        exact: whether the bundle's answers must be the very same.
        max_flips: the promised share.
    """
    if exact or not parity.decisions:
        reason = refusal(parity, exact=exact, max_flips=max_flips, strict=False)
        if reason:
            return Judgement("broken", reason)
        return Judgement("holds", f"all {parity.compared:,} texts got the original's answers")
    broken = parity.flips + parity.non_finite + parity.misaligned
    low = clopper_pearson_lower(broken, parity.compared)
    high = clopper_pearson_upper(broken, parity.compared)
    seen = f"{broken:,} of {parity.compared:,} texts got another answer than the original's"
    if high <= max_flips:
        reason = f"{seen}: with 95 % confidence at most {percent(high)} of all do"
        return Judgement("holds", reason, low)
    if low > max_flips:
        reason = f"{seen}: with 95 % confidence at least {percent(low)} of all do"
        return Judgement("broken", reason, low)
    reason = f"{seen}: with 95 % confidence between {percent(low)} and {percent(high)} of all do"
    return Judgement("undecided", reason, low, texts_to_decide(broken, parity.compared, max_flips))


def texts_to_decide(flips: int, compared: int, max_flips: float) -> int:
    """About how many texts would decide if the share of flips stayed as it is.

    0 where 20,000 do not.
    """
    texts, many = compared, flips > max_flips * compared
    while texts < _MOST_TEXTS:
        texts += 1 + texts // 10
        expected = round(flips * texts / compared)
        if many and clopper_pearson_lower(expected, texts) > max_flips:
            return texts
        if not many and clopper_pearson_upper(expected, texts) <= max_flips:
            return texts
    return 0
