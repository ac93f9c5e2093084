from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hasten import tasks
from hasten.errors import EngineError, InputError, ModelError
from hasten.judging.parity import (
    FP32_TOLERANCE,
    TENSOR_TOLERANCE,
    TIE_MARGIN,
    compare,
    is_constant,
    unprovable,
    unprovable_strictly,
    verdict,
)
from hasten.judging.stats import clopper_pearson_upper
from hasten.plain import from_json, to_json
from hasten.records import Parity
from hasten.tasks import Outputs

LABELS = ("no", "yes")
SINGLE, MULTI = tasks.get("single_label"), tasks.get("multi_label")
REGRESSION, TENSORS = tasks.get("regression"), tasks.get("tensors")


def logits(count: int = 100, columns: int = 2) -> NDArray[np.float32]:
    """Clear decisions: every margin is at least 1."""
    source = np.random.default_rng(0)
    values = source.uniform(-0.5, 0.5, size=(count, columns))
    values[np.arange(count), source.integers(columns, size=count)] += 2.0
    return values.astype(np.float32)


def compared(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], **options: Any
) -> Parity:
    texts = [f"text {i}" for i in range(len(reference))]
    labels = LABELS if reference.shape[1] == 2 else tuple("abcdefgh"[: reference.shape[1]])
    return compare(
        Outputs.of_rows(reference),
        Outputs.of_rows(candidate),
        **{"task": SINGLE, "labels": labels, "texts": texts, **options},
    )


def flipped(reference: NDArray[np.float32], *rows: int) -> NDArray[np.float32]:
    candidate = reference.copy()
    candidate[list(rows)] = candidate[list(rows), ::-1]
    return candidate


class TestCompare:
    def test_the_original_equals_itself(self) -> None:
        parity = compared(logits(), logits())
        assert parity == Parity(
            compared=100,
            max_abs_difference=0.0,
            mean_abs_difference=0.0,
            flips=0,
            ties=0,
            flip_upper_bound=clopper_pearson_upper(0, 100),
            non_finite=0,
            decisions=True,
            margin_quantiles=parity.margin_quantiles,
        )

    def test_differences_are_absolute(self) -> None:
        candidate = logits()
        candidate[3, 1] += 0.5
        parity = compared(logits(), candidate)
        assert parity.max_abs_difference == pytest.approx(0.5)
        assert parity.mean_abs_difference == pytest.approx(0.5 / 200)

    def test_swapped_columns_flip_every_answer_although_scores_stay(self) -> None:
        reference = logits()
        candidate = np.ascontiguousarray(reference[:, ::-1])
        scores = [
            SINGLE.scores(Outputs.of_rows(rows)).max(axis=1) for rows in (reference, candidate)
        ]
        assert scores[0] == pytest.approx(scores[1])
        assert compared(reference, candidate).flips == 100

    def test_a_shift_of_all_logits_flips_nothing(self) -> None:
        assert compared(logits(), logits() + np.float32(3)).flips == 0
        assert compared(logits(), logits() + np.float32(3), task=MULTI).flips > 0

    def test_several_labels_flip_as_one_answer(self) -> None:
        reference = np.array([[1, 1, -1], [1, -1, 1]], np.float32)
        candidate = np.array([[-1, -1, 1], [1, -1, 1]], np.float32)
        parity = compared(reference, candidate, task=MULTI)
        assert parity.flips == 1
        assert parity.examples[0].reference_answer == "a, b"
        assert parity.examples[0].candidate_answer == "c"

    def test_a_flip_where_the_original_was_undecided_is_a_tie(self) -> None:
        reference = np.array([[0, 0.0019], [0, 0.0021], [0, 1]], np.float32)
        parity = compared(reference, np.ascontiguousarray(reference[:, ::-1]))
        assert (parity.flips, parity.ties) == (3, 1)
        assert compared(reference, reference[:, ::-1], tie_margin=0.01).ties == 2
        assert compared(reference, reference).ties == 0  # undecided, but not flipped

    @given(
        hnp.arrays(np.float32, (6, 3), elements=st.floats(-2, 2, width=32)),
        hnp.arrays(np.float64, (6, 3), elements=st.floats(-1, 1)),
        st.sampled_from([SINGLE, MULTI]),
    )
    def test_what_the_fp32_tolerance_allows_can_only_flip_ties(
        self, reference: NDArray[np.float32], noise: NDArray[np.float64], task: tasks.Task
    ) -> None:
        candidate = (reference + 0.99 * FP32_TOLERANCE * noise).astype(np.float32)
        parity = compared(reference, candidate, task=task)
        assert parity.flips == parity.ties
        assert verdict(parity, exact=True, max_flips=0.0, strict=False) is None

    def test_an_original_that_varies_within_the_tolerance_may_become_constant(self) -> None:
        original = np.zeros((6, 3), np.float32)
        original[0, 0] = 2e-16
        assert not compared(original, np.full((6, 3), 1e-4, np.float32)).constant
        original[0, 0] = 1.0
        assert compared(original, np.full((6, 3), 1e-4, np.float32)).constant

    def test_the_surest_flips_are_the_examples(self) -> None:
        reference = np.array([[0, 1], [0, 3], [2, 0], [0, 9]], np.float32)
        candidate = flipped(reference, 0, 1, 2)
        candidate[1] = [4, 0]
        parity = compared(reference, candidate, examples=2)
        assert [flip.index for flip in parity.examples] == [1, 2]
        surest = parity.examples[0]
        assert (surest.text, surest.reference_answer, surest.candidate_answer) == (
            "text 1",
            "yes",
            "no",
        )
        assert (surest.reference_margin, surest.candidate_margin) == (3.0, 4.0)
        assert compared(reference, candidate, examples=0).examples == ()

    def test_long_texts_are_shortened(self) -> None:
        reference = logits(2)
        texts = ["x" * 200, "y" * 201]
        parity = compared(reference, flipped(reference, 0, 1), texts=texts)
        shown = {flip.index: flip.text for flip in parity.examples}
        assert shown[0] == texts[0]
        assert shown[1] == "y" * 199 + "…"

    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("task", [SINGLE, MULTI, TENSORS])
    def test_broken_rows_are_counted_and_nothing_else(
        self, poison: float, task: tasks.Task
    ) -> None:
        reference = logits()
        candidate = reference.copy()
        candidate[[4, 7], 0] = poison
        candidate[9] += np.float32(0.25)
        parity = compared(reference, candidate, task=task)
        healthy = np.delete(np.arange(100), [4, 7])
        expected = compared(reference[healthy], candidate[healthy], task=task)
        assert parity.non_finite == 2
        assert parity.flips == expected.flips
        assert parity.max_abs_difference == pytest.approx(expected.max_abs_difference, rel=0.05)
        assert parity.mean_abs_difference == pytest.approx(expected.mean_abs_difference, rel=0.05)

    def test_nothing_but_broken_rows_still_makes_a_record(self) -> None:
        parity = compared(logits(), np.full_like(logits(), np.nan), gold=["yes"] * 100)
        assert parity.non_finite == 100
        assert parity.quality is not None
        assert parity.quality.accuracy == 0.0
        assert from_json(Parity, to_json(parity)) == parity

    def test_accuracy_is_told_for_both(self) -> None:
        reference = np.array([[0, 1], [0, 1], [1, 0], [1, 0]], np.float32)
        parity = compared(reference, flipped(reference, 0), gold=["yes", "yes", "no", "yes"])
        found = parity.quality
        assert found is not None
        assert (found.reference_accuracy, found.accuracy) == (0.75, 0.5)
        assert (found.only_reference_right, found.only_candidate_right) == (1, 0)
        assert found.mcnemar_p == 1.0
        assert found.reference_macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
        assert compared(reference, reference).quality is None
        assert compared(reference, reference, task=TENSORS, gold=["?"] * 4).quality is None

    def test_errors_of_numbers_are_told_for_both(self) -> None:
        reference = np.array([[1.0], [2.0], [4.0]], np.float32)
        parity = compared(reference, reference + 1, task=REGRESSION, gold=["1", "2.5", "4"])
        assert parity.quality is None
        found = parity.errors
        assert found is not None
        assert (found.mean_absolute, found.reference_mean_absolute) == (2.5 / 3, 0.5 / 3)
        assert found.mean_relative == pytest.approx((1 + 0.5 / 2.5 + 1 / 4) / 3)
        assert found.reference_mean_relative == pytest.approx(0.2 / 3)
        assert (found.spearman, found.reference_spearman) == (1.0, 1.0)
        assert compared(reference, reference, task=REGRESSION).errors is None

    def test_flips_tell_how_sure_the_original_was(self) -> None:
        reference = logits()
        parity = compared(reference, flipped(reference, 3, 8, 20))
        gaps = np.abs(reference[:, 0] - reference[:, 1])
        assert parity.flip_margins == pytest.approx(sorted(gaps[[3, 8, 20]]))
        assert parity.margin_quantiles[2] == pytest.approx(np.median(gaps))
        assert list(parity.margin_quantiles) == sorted(parity.margin_quantiles)
        assert compared(reference, reference, task=TENSORS).margin_quantiles == ()

    def test_outputs_that_ignore_the_text_are_constant(self) -> None:
        reference = logits()
        stuck = np.tile(reference[:1], (100, 1))
        parity = compared(reference, stuck)
        assert parity.constant
        reason = verdict(parity, exact=False, max_flips=1.0, strict=False)
        assert reason == "outputs are the same for all 100 texts"
        assert not compared(reference, reference).constant
        assert not compared(stuck, stuck).constant  # the original's own doing

    def test_a_text_counts_once_however_often_it_occurs(self) -> None:
        once = logits(40)
        reference, texts = np.tile(once, (5, 1)), [f"text {i}" for i in range(40)] * 5
        gold = [LABELS[int(row.argmax())] for row in reference]
        # One copy of text 3 and all of text 7; one copy of text 9 is broken.
        candidate = flipped(reference, 43, *range(7, 200, 40))
        candidate[89] = np.nan
        parity = compared(reference, candidate, texts=texts, gold=gold)
        assert (parity.compared, parity.flips, parity.non_finite) == (40, 2, 1)
        assert parity.flip_upper_bound == clopper_pearson_upper(2, 40)
        assert {flip.index % 40 for flip in parity.examples} == {3, 7}
        assert len(parity.flip_margins) == 2
        assert parity.quality is not None
        assert parity.quality.only_reference_right == 3
        assert parity.quality.reference_accuracy == 1.0

    def test_the_largest_difference_is_that_of_any_copy(self) -> None:
        reference = np.tile(logits(1), (3, 1))
        candidate = reference + np.array([[0.1], [0.0], [0.3]], np.float32)
        parity = compared(reference, candidate, texts=["a"] * 3)
        assert parity.max_abs_difference == pytest.approx(0.3, rel=1e-5)

    def test_what_would_prove_nothing_is_said(self) -> None:
        texts = [f"text {i}" for i in range(30)]
        assert unprovable(Outputs.of_rows(logits(30)), texts) is None
        assert unprovable(Outputs.of_rows(logits(30)), [*texts[:29], texts[0]]) == (
            "judging a lossy candidate takes at least 30 different texts, and there are 29"
        )
        stuck = np.tile(logits(1), (30, 1)) * (1 + 1e-7 * np.arange(30)[:, np.newaxis])
        assert is_constant(Outputs.of_rows(stuck))
        assert "proves nothing" in (unprovable(Outputs.of_rows(stuck), texts) or "")
        assert is_constant(Outputs.of_rows(np.zeros((30, 2))))
        assert not is_constant(Outputs.of_rows(stuck * (1 + 1e-4 * np.arange(30)[:, np.newaxis])))

    @pytest.mark.parametrize(("texts", "needed"), [(298, "at least 299"), (299, None)])
    def test_strict_takes_as_many_texts_as_prove_it_without_a_flip(
        self, texts: int, needed: str | None
    ) -> None:
        reason = unprovable_strictly([f"text {i}" for i in range(texts)] * 2, 0.01)
        assert (reason is None) if needed is None else (needed in (reason or ""))

    def test_strict_proves_no_limit_of_zero(self) -> None:
        assert "no number of texts" in (unprovable_strictly(["a"], 0.0) or "")

    def test_an_unknown_gold_label_is_an_error(self) -> None:
        with pytest.raises(InputError, match="'maybe'"):
            compared(logits(1), logits(1), gold=["maybe"])

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
    def test_tensors_are_compared_in_standard_deviations(self, scale: float) -> None:
        source = np.random.default_rng(0)
        # Columns differ in level: only what differs between texts carries information.
        reference = source.normal(size=(2000, 4)) + np.array([0, 10, -5, 3])
        candidate = reference + 0.5
        parity = compared(
            (scale * reference).astype(np.float32),
            (scale * candidate).astype(np.float32),
            task=TENSORS,
        )
        assert not parity.decisions
        assert parity.mean_abs_difference == pytest.approx(0.5, rel=0.05)
        assert (parity.flips, parity.flip_upper_bound, parity.examples) == (0, 1.0, ())

    def test_equal_outputs_for_all_texts_are_measured_by_their_size(self) -> None:
        reference = np.full((5, 2), 0.1, np.float32)
        parity = compared(reference, reference * np.float32(1.001), task=REGRESSION)
        assert parity.mean_abs_difference == pytest.approx(0.1, rel=1e-3)
        zeros = np.zeros((5, 2), np.float32)
        assert compared(zeros, zeros + 2, task=REGRESSION).mean_abs_difference == 2.0

    def test_another_shape_is_the_candidates_fault(self) -> None:
        with pytest.raises(EngineError, match="rows of 3 numbers, the original 100 with rows of 2"):
            compared(logits(), logits(columns=3))

    def test_a_broken_original_is_said_to_be_broken(self) -> None:
        reference = logits()
        reference[[2, 5], 1] = np.inf
        with pytest.raises(ModelError, match="NaN or infinity for 2 of 100 texts"):
            compared(reference, logits())

    def test_no_texts_prove_nothing(self) -> None:
        with pytest.raises(ValueError, match="at least one text"):
            compared(logits(0), logits(0))

    def test_inputs_are_left_alone(self) -> None:
        reference, candidate = logits(), flipped(logits(), 1)
        candidate[0, 0] = np.nan
        before = reference.copy(), candidate.copy()
        compared(reference, candidate, task=TENSORS)
        np.testing.assert_array_equal(reference, before[0])
        np.testing.assert_array_equal(candidate, before[1])


class TestVerdict:
    @pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
    @pytest.mark.parametrize("task", [SINGLE, TENSORS])
    def test_equal_outputs_are_accepted(self, precision: str, task: tasks.Task) -> None:
        parity = compared(logits(), logits(), task=task)
        assert verdict(parity, exact=precision == "fp32", max_flips=0.0, strict=False) is None

    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    @pytest.mark.parametrize("task", [SINGLE, TENSORS])
    def test_a_single_nan_refuses(self, precision: str, task: tasks.Task) -> None:
        candidate = logits()
        candidate[17, 1] = np.nan
        reason = verdict(
            compared(logits(), candidate, task=task),
            exact=precision == "fp32",
            max_flips=1.0,
            strict=False,
        )
        assert reason == "outputs are NaN or infinite for 1 of 100 texts"

    def test_one_flip_of_a_hundred_is_one_in_a_hundred(self) -> None:
        one, two = (compared(logits(), flipped(logits(), *rows)) for rows in ((3,), (3, 4)))
        assert verdict(one, exact=False, max_flips=0.01, strict=False) is None
        assert verdict(two, exact=False, max_flips=0.01, strict=False) == (
            "2 of 100 labels (2 %) flipped; --max-flips allows 0.01"
        )

    def test_strict_counts_the_upper_bound(self) -> None:
        none = compared(logits(), logits())
        assert verdict(none, exact=False, max_flips=0.01, strict=False) is None
        assert verdict(none, exact=False, max_flips=0.01, strict=True) == (
            "0 of 100 labels (0 %) flipped, so up to 0.02951 may flip at 95 % confidence; "
            "--max-flips allows 0.01, and --strict counts the bound"
        )
        enough = compared(logits(300), logits(300))
        assert verdict(enough, exact=False, max_flips=0.01, strict=True) is None

    def test_lossy_precisions_may_differ_in_numbers(self) -> None:
        parity = compared(logits(), logits() * np.float32(0.7))
        assert verdict(parity, exact=False, max_flips=0.0, strict=False) is None

    def test_fp32_may_flip_nothing_clear(self) -> None:
        parity = compared(logits(), flipped(logits(), 5))
        assert verdict(parity, exact=True, max_flips=1.0, strict=False) == (
            "1 of 100 labels (1 %) flipped, 1 of them not numerical ties; fp32 must flip none"
        )

    def test_fp32_may_flip_ties(self) -> None:
        reference = logits()
        reference[5] = [1.0, 1.0 + TIE_MARGIN / 4]
        parity = compared(reference, flipped(reference, 5))
        assert (parity.flips, parity.ties) == (1, 1)
        assert verdict(parity, exact=True, max_flips=0.0, strict=True) is None

    @pytest.mark.parametrize("task", [SINGLE, TENSORS])
    def test_fp32_must_stay_close(self, task: tasks.Task) -> None:
        near = compared(logits(), logits() + np.float32(1e-4), task=task)
        far = compared(logits(), logits() + np.float32(2e-2), task=task)
        assert verdict(near, exact=True, max_flips=1.0, strict=False) is None
        reason = verdict(far, exact=True, max_flips=1.0, strict=False)
        assert reason is not None
        assert "fp32 must stay within 0.001" in reason
        assert ("standard deviations" in reason) == (task is TENSORS)

    @pytest.mark.parametrize("task", [REGRESSION, TENSORS])
    def test_lossy_tensors_may_be_off_by_the_tolerance(self, task: tasks.Task) -> None:
        parity = compared(logits(), logits(), task=task)
        within = replace(parity, mean_abs_difference=TENSOR_TOLERANCE)
        beyond = replace(parity, mean_abs_difference=0.25)
        assert verdict(within, exact=False, max_flips=0.0, strict=True) is None
        assert verdict(beyond, exact=False, max_flips=1.0, strict=False) == (
            "outputs are off by 0.25 standard deviations on average; 0.1 is allowed"
        )

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
    def test_unrelated_tensors_are_refused(self, precision: str) -> None:
        source = np.random.default_rng(1)
        reference, candidate = source.normal(size=(2, 50, 8)).astype(np.float32)
        parity = compared(reference, candidate, task=TENSORS)
        assert verdict(parity, exact=precision == "fp32", max_flips=1.0, strict=False) is not None

    def test_tensors_in_another_order_are_refused(self) -> None:
        reference = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
        parity = compared(reference, np.roll(reference, 1, axis=0), task=TENSORS)
        assert verdict(parity, exact=False, max_flips=1.0, strict=False) is not None
