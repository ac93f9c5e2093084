from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.judging.stats import (
    clopper_pearson_upper,
    independent_ratio_interval,
    macro_f1,
    mcnemar_p,
    mean_interval,
    percentile,
    percentile_interval,
    ratio_interval,
    student_t_quantile,
)


class TestPercentile:
    def test_it_is_linear_between_samples(self) -> None:
        assert percentile([4.0, 1.0, 2.0, 3.0], 50) == 2.5
        assert percentile([1.0, 2.0], 99) == pytest.approx(1.99)

    def test_nothing_has_no_percentile(self) -> None:
        with pytest.raises(ValueError, match="at least one sample"):
            percentile([], 50)


class TestStudentT:
    @pytest.mark.parametrize(
        ("probability", "degrees", "expected"),
        [  # as scipy.stats.t.ppf gives them
            (0.975, 1, 12.706204736174694),
            (0.975, 2, 4.302652729749462),
            (0.975, 3, 3.182446305283709),
            (0.975, 4, 2.7764451051977934),
            (0.995, 5, 4.032142983555228),
            (0.95, 9, 1.833112932656238),
            (0.975, 30, 2.0422724563012378),
            (0.9999, 6, 8.024792773116536),
            (0.975, 1001, 1.9623367052808798),
        ],
    )
    def test_it_agrees_with_recorded_values(
        self, probability: float, degrees: int, expected: float
    ) -> None:
        assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9)
        assert student_t_quantile(1 - probability, degrees) == pytest.approx(-expected, rel=1e-9)

    def test_the_middle_is_zero(self) -> None:
        assert student_t_quantile(0.5, 7) == pytest.approx(0.0, abs=1e-12)

    @pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.5, 0)])
    def test_there_is_no_such_quantile(self, probability: float, degrees: int) -> None:
        with pytest.raises(ValueError, match="no quantile"):
            student_t_quantile(probability, degrees)


class TestRatioInterval:
    def test_the_estimate_is_the_geometric_mean_of_the_ratios(self) -> None:
        interval = ratio_interval([2.0, 8.0, 4.0], [1.0, 1.0, 1.0], seed=0)
        assert interval.estimate == pytest.approx(4.0)
        assert interval.low < 4.0 < interval.high

    def test_a_slow_round_counts_for_both_and_cancels(self) -> None:
        interval = ratio_interval([2.0, 20.0, 6.0], [1.0, 10.0, 3.0], seed=0)
        assert interval.low == pytest.approx(2.0)
        assert interval.high == pytest.approx(2.0)

    def test_the_seed_decides(self) -> None:
        a, b = [1.0, 1.3, 1.1, 1.2, 5.0], [1.0] * 5
        first = ratio_interval(a, b, seed=1, resamples=200)
        assert first == ratio_interval(a, b, seed=1, resamples=200)
        assert first != ratio_interval(a, b, seed=2, resamples=200)

    def test_with_two_rounds_it_is_students(self) -> None:
        interval = ratio_interval([math.e, 1.0], [1.0, 1.0], seed=0)
        # Logarithms 0 and 1: mean 1/2, standard error 1/2, quantile 12.706.
        assert math.log(interval.low) == pytest.approx(0.5 - 12.7062047 / 2)
        assert math.log(interval.high) == pytest.approx(0.5 + 12.7062047 / 2)

    def test_many_skewed_rounds_move_the_far_bound_out(self) -> None:
        logs = np.random.default_rng(0).exponential(size=40)
        interval = ratio_interval(np.exp(logs), np.ones(40), seed=0)
        margin = student_t_quantile(0.975, 39) * logs.std(ddof=1) / math.sqrt(40)
        assert math.log(interval.low) == pytest.approx(logs.mean() - margin)
        assert math.log(interval.high) > logs.mean() + margin

    def test_swapped_sides_give_the_reciprocal_estimate(self) -> None:
        a, b = [1.0, 1.2, 1.4], [2.0, 2.0, 2.2]
        forth, back = ratio_interval(a, b, seed=0), ratio_interval(b, a, seed=0)
        assert forth.estimate * back.estimate == pytest.approx(1.0)

    @pytest.mark.parametrize(("a", "b"), [([1.0], [1.0]), ([], []), ([1.0, 2.0], [1.0])])
    def test_it_needs_two_pairs(self, a: list[float], b: list[float]) -> None:
        with pytest.raises(ValueError, match="at least two rounds"):
            ratio_interval(a, b, seed=0)

    @pytest.mark.parametrize("rounds", [2, 3, 5, 10])
    def test_it_covers_the_truth_as_often_as_it_says(self, rounds: int) -> None:
        source = np.random.default_rng(rounds)
        a = np.exp(source.normal(loc=0.1, scale=0.05, size=(600, rounds)))
        b = np.ones(rounds)
        truth = math.exp(0.1)
        covered = [ratio_interval(row, b, seed=0, resamples=500).holds(truth) for row in a]
        # 600 intervals at 95 % miss this band less than once in a thousand times.
        assert 0.92 <= np.mean(covered) <= 0.98


class TestClopperPearson:
    @pytest.mark.parametrize(
        ("successes", "trials", "confidence", "expected"),
        [  # as scipy.stats.beta.ppf(confidence, k + 1, n - k) gives them
            (0, 1000, 0.95, 0.002991249545095295),
            (0, 1, 0.95, 0.95),
            (1, 100, 0.95, 0.046559811453538935),
            (5, 100, 0.95, 0.1022533776432745),
            (3, 7, 0.95, 0.7746784159675522),
            (99, 100, 0.95, 0.9994871985837377),
            (20, 2225, 0.99, 0.014833990264568685),
            (500, 41865, 0.95, 0.012853913411883655),
            (41800, 41865, 0.95, 0.9987498289198646),
        ],
    )
    def test_it_agrees_with_recorded_values(
        self, successes: int, trials: int, confidence: float, expected: float
    ) -> None:
        bound = clopper_pearson_upper(successes, trials, confidence)
        assert bound == pytest.approx(expected, rel=1e-9)

    @given(st.integers(1, 3000), st.floats(0.5, 0.999))
    def test_without_successes_there_is_a_formula(self, trials: int, confidence: float) -> None:
        expected = -math.expm1(math.log(1 - confidence) / trials)
        assert clopper_pearson_upper(0, trials, confidence) == pytest.approx(expected, rel=1e-9)

    @given(st.integers(1, 300), st.data())
    def test_at_the_bound_so_few_successes_are_just_as_rare_as_asked(
        self, trials: int, data: st.DataObject
    ) -> None:
        successes = data.draw(st.integers(0, trials - 1))
        rate = clopper_pearson_upper(successes, trials)
        assert successes / trials < rate < 1.0
        tail = math.fsum(
            math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k)
            for k in range(successes + 1)
        )
        assert tail == pytest.approx(0.05, rel=1e-6)

    @given(st.integers(2, 300), st.data())
    def test_it_rises_with_successes_and_falls_with_trials(
        self, trials: int, data: st.DataObject
    ) -> None:
        successes = data.draw(st.integers(0, trials - 1))
        bound = clopper_pearson_upper(successes, trials)
        assert clopper_pearson_upper(successes + 1, trials) > bound
        assert clopper_pearson_upper(successes, trials + 1) < bound

    def test_all_successes_leave_everything_possible(self) -> None:
        assert clopper_pearson_upper(7, 7) == 1.0

    @pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
    def test_there_is_no_such_proportion(self, successes: int, trials: int) -> None:
        with pytest.raises(ValueError, match="no proportion"):
            clopper_pearson_upper(successes, trials)


class TestMeanInterval:
    def test_it_is_the_ratio_to_one(self) -> None:
        samples = [1.0, 1.2, 1.1, 1.3]
        assert mean_interval(samples, seed=3) == ratio_interval(samples, [1.0] * 4, seed=3)

    def test_it_holds_the_truth_as_often_as_it_says(self) -> None:
        draws = np.exp(np.random.default_rng(0).normal(0.0, 0.1, size=(300, 6)))
        held = sum(mean_interval(row, seed=0).holds(1.0) for row in draws)
        assert held / 300 > 0.93

    def test_many_samples_give_what_resampling_would(self) -> None:
        many = np.exp(np.random.default_rng(0).normal(0.0, 0.5, size=301))
        plain, resampled = mean_interval(many, seed=0), mean_interval(many[:300], seed=0)
        assert plain.high - plain.low == pytest.approx(resampled.high - resampled.low, rel=0.05)


class TestPercentileInterval:
    def test_it_lies_between_samples_and_holds_the_truth(self) -> None:
        draws = np.random.default_rng(1).random(size=(400, 100))
        found = [percentile_interval(row, 90) for row in draws]
        assert all(i.low <= i.estimate <= i.high for i in found)
        assert sum(i.holds(0.9) for i in found) / 400 > 0.93

    def test_few_samples_bound_it_by_their_extremes(self) -> None:
        found = percentile_interval([3.0, 1.0, 2.0], 50)
        assert (found.low, found.estimate, found.high) == (1.0, 2.0, 3.0)


class TestIndependentRatioInterval:
    def test_it_is_welchs(self) -> None:
        # scipy.stats.ttest_ind(np.log(a), np.log(b), equal_var=False) has 3.9 degrees of freedom.
        a, b = np.exp([0.1, 0.2, 0.3]), np.exp([0.0, 0.05, 0.13, 0.02])
        found = independent_ratio_interval(a, b)
        error = math.sqrt(
            np.var([0.1, 0.2, 0.3], ddof=1) / 3 + np.var([0, 0.05, 0.13, 0.02], ddof=1) / 4
        )
        half = math.log(found.high / found.low) / 2
        assert found.estimate == pytest.approx(math.exp(0.15))
        assert half / error == pytest.approx(student_t_quantile(0.975, 2), rel=1e-9)

    def test_equal_samples_have_no_width(self) -> None:
        found = independent_ratio_interval([2.0, 2.0], [1.0, 1.0])
        assert found.low == found.high == pytest.approx(2.0)

    def test_one_sample_is_not_enough(self) -> None:
        with pytest.raises(ValueError, match="two samples on each side"):
            independent_ratio_interval([1.0], [1.0, 2.0])


def test_macro_f1_of_several_labels_is_their_mean() -> None:
    decided = np.array([[True, False, False], [True, True, False]])
    right = np.array([[True, False, False], [False, True, False]])
    assert macro_f1(decided, right) == pytest.approx((2 / 3 + 1) / 2)  # the third is absent
    assert macro_f1(decided[:, 2:], right[:, 2:]) == 1.0


@pytest.mark.parametrize(("first", "second"), [(0, 5), (3, 9), (10, 10), (1, 0), (40, 60)])
def test_mcnemar_is_the_binomial_test(first: int, second: int) -> None:
    n, fewer = first + second, min(first, second)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert mcnemar_p(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar_p(first, second) == mcnemar_p(second, first)


class TestProcesses:
    def test_a_round_each_is_as_without_them(self) -> None:
        a, b = [2.0, 2.2, 2.1, 1.9], [1.0, 1.0, 1.1, 1.0]
        apart = ratio_interval(a, b, seed=0, processes=(0, 1, 2, 3))
        assert apart == ratio_interval(a, b, seed=0)

    def test_one_process_is_as_without_them(self) -> None:
        a, b = [2.0, 2.2, 2.1, 1.9], [1.0, 1.0, 1.1, 1.0]
        assert ratio_interval(a, b, seed=0, processes=(7,) * 4) == ratio_interval(a, b, seed=0)

    def test_rounds_that_share_a_process_count_as_little_as_they_know(self) -> None:
        a = np.repeat([1.0, 1.2, 0.9, 1.1, 0.8], 3)
        within = ratio_interval(a, np.ones(15), seed=0)
        across = ratio_interval(a, np.ones(15), seed=0, processes=np.repeat(range(5), 3).tolist())
        assert across.estimate == pytest.approx(within.estimate)
        assert across.high / across.estimate > 1.15 > within.high / within.estimate

    def test_coverage(self) -> None:
        rng = np.random.default_rng(3)
        processes = np.repeat(range(5), 3).tolist()
        moods = np.repeat(rng.normal(0.0, 0.03, size=(400, 5)), 3, axis=1)
        runs = np.exp(moods + rng.normal(0.0, 0.02, size=(400, 15)))
        plain = [ratio_interval(r, np.ones(15), seed=0, resamples=300).holds(1.0) for r in runs]
        held = [
            ratio_interval(r, np.ones(15), seed=0, resamples=300, processes=processes).holds(1.0)
            for r in runs
        ]
        assert np.mean(plain) < 0.85  # rounds of one process are not independent
        assert np.mean(held) > 0.93

    def test_one_for_each_round(self) -> None:
        with pytest.raises(ValueError, match="as many processes"):
            ratio_interval([1.0, 2.0], [1.0, 1.0], seed=0, processes=(1,))
