"""What a sample says about a promised share of flipped labels."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.judging.audit import judge, texts_to_decide
from hasten.judging.stats import clopper_pearson_lower, clopper_pearson_upper
from hasten.records import Parity


def parity(compared: int, flips: int, **others: Any) -> Parity:
    usual = {"ties": 0, "non_finite": 0, "max_abs_difference": 0.5, "mean_abs_difference": 0.1}
    bound = clopper_pearson_upper(flips, compared)
    return Parity(
        compared=compared,
        flips=flips,
        flip_upper_bound=bound,
        decisions=True,
        examples=(),
        **{**usual, **others},
    )


@pytest.mark.parametrize(
    ("compared", "flips", "verdict"),
    [
        (299, 0, "holds"),
        (298, 0, "undecided"),
        (300, 1, "undecided"),
        (300, 6, "undecided"),
        (300, 7, "broken"),
        (1000, 4, "holds"),
        (1000, 5, "undecided"),
    ],
)
def test_a_share_is_judged_by_both_of_its_bounds(compared: int, flips: int, verdict: str) -> None:
    found = judge(parity(compared, flips), exact=False, max_flips=0.01)
    assert found.verdict == verdict
    assert f"{flips} of {compared:,} texts" in found.reason


def test_outputs_that_are_no_numbers_count_as_flips() -> None:
    found = judge(parity(300, 0, non_finite=4, misaligned=3), exact=False, max_flips=0.01)
    assert found.verdict == "broken"


def test_an_exact_bundle_may_flip_ties_alone() -> None:
    near = {"max_abs_difference": 1e-6}
    assert judge(parity(50, 1, ties=1, **near), exact=True, max_flips=0.0).verdict == "holds"
    found = judge(parity(50, 1, **near), exact=True, max_flips=0.0)
    assert found.verdict == "broken"
    assert "1 of 50 labels" in found.reason


def test_how_many_texts_would_decide() -> None:
    texts = judge(parity(300, 1), exact=False, max_flips=0.01).more_texts
    assert 300 < texts < 1000
    assert clopper_pearson_upper(round(texts / 300), texts) <= 0.01
    texts = texts_to_decide(6, 300, 0.01)
    assert clopper_pearson_lower(round(texts / 50), texts) > 0.01
    assert texts_to_decide(3, 300, 0.01) == 0  # exactly the share that is allowed
