"""Means of few graded scores: the wider of two intervals and the larger of two p values, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats

from evalkit.stats.clusters import cluster_codes, t_interval
from evalkit.stats.few_units import FEW_UNITS, graded_mean, studentised_p_value
from evalkit.stats.means import mean_score
from evalkit.stats.paired import paired_difference
from evalkit.stats.permutation import mean_difference_test, sign_flip

SCORES = arrays(float, st.integers(5, 40), elements=st.integers(-50, 50).map(lambda one: one / 10))


def ends(values, cluster=None, **options):
    found = graded_mean(values, *cluster_codes(cluster, len(values)), **options)
    return found.low, found.high


def plain_bootstrap(values, n_resamples=10_000):
    """Studentised means of resamples of independent items, one resample at a time."""
    rng, found = np.random.default_rng(9), []
    for _ in range(n_resamples):
        drawn = rng.choice(values, size=len(values))
        shift, error = drawn.mean() - values.mean(), drawn.std(ddof=1) / math.sqrt(len(values))
        found.append(shift / error if error else math.copysign(math.inf, shift) if shift else 0.0)
    return np.array(found)


@pytest.mark.parametrize("n", [10, 30])
def test_the_interval_holds_that_of_t_and_that_of_a_plain_studentised_bootstrap(n):
    values = np.random.default_rng(n).exponential(size=n)
    t = scipy_stats.ttest_1samp(values, 0).confidence_interval()
    draws, error = plain_bootstrap(values, 40_000), scipy_stats.sem(values)
    boot = values.mean() - np.quantile(draws, [0.975, 0.025]) * error
    found = graded_mean(values, *cluster_codes(None, n))
    # Of exponential scores the upper end is the bootstrap's; its quantile has a Monte-Carlo error of some percent.
    assert found.low == pytest.approx(min(t.low, boot[0]), abs=0.03 * (t.high - t.low))
    assert found.high == pytest.approx(boot[1], abs=0.08 * (boot[1] - values.mean()))
    assert found.high > t.high
    assert (found.method, found.n_resamples) == ("the wider of t and the studentised bootstrap", 1_000_000 // n)


@given(SCORES, st.randoms(use_true_random=False))
def test_turned_scaled_and_shuffled_scores_give_the_turned_scaled_and_same_interval(values, random):
    low, high = ends(values)
    if low is None:
        assert np.ptp(values) == 0
        return
    order = list(range(len(values)))
    random.shuffle(order)
    close = dict(rel=1e-9, abs=1e-9)
    assert ends(-values) == pytest.approx((-high, -low), **close)
    assert ends(values * 100) == pytest.approx((100 * low, 100 * high), rel=1e-9, abs=1e-7)
    assert ends(values[order]) == pytest.approx((low, high), **close)
    t = t_interval(values, *cluster_codes(None, len(values)))
    assert low <= t.low <= t.high <= high


@given(SCORES, st.floats(0.8, 0.99))
def test_an_interval_leaves_out_zero_where_both_p_values_are_below_its_level(values, level):
    codes, sizes = cluster_codes(None, len(values))
    p_value = studentised_p_value(values, codes, sizes)
    low, high = ends(values, confidence_level=level)
    if p_value is None or low is None:
        return
    t = scipy_stats.ttest_1samp(values, 0).pvalue
    larger = max(p_value, t)
    if abs(larger - (1 - level)) < 0.002:  # the p value counts, the quantile interpolates
        return
    if np.isinf(plain_bootstrap(values, 200)).any():  # an end at infinity is that of t
        return
    assert (low > 0 or high < 0) == (larger < 1 - level)


def test_from_a_hundred_units_on_and_below_five_clusters_it_is_the_t_interval():
    values = np.random.default_rng(3).exponential(size=FEW_UNITS)
    many = cluster_codes(None, FEW_UNITS)
    assert graded_mean(values, *many) == t_interval(values, *many)
    assert studentised_p_value(values, *many) is None
    few = cluster_codes([i % 4 for i in range(FEW_UNITS)], FEW_UNITS)
    assert graded_mean(values, *few) == t_interval(values, *few)


def test_clusters_are_drawn_as_wholes():
    groups = np.repeat(np.arange(12), 3)
    values = np.random.default_rng(4).exponential(size=12)
    once, thrice = ends(values), ends(values[groups], groups.tolist())
    assert thrice == pytest.approx(once)


def test_where_nearly_all_scores_are_equal_the_end_at_infinity_is_that_of_t_with_a_warning():
    found = mean_score([0.5] * 11 + [0.9])
    assert any("most items are equal" in one for one in found.warnings)
    assert found.low < found.estimate < found.high
    assert mean_score([0.5] * 12).low is None


def test_the_default_interval_of_a_difference_and_its_test_agree():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 40))
    level = 1 - mean_difference_test(b - a).p_value
    found = paired_difference(a, b, confidence_level=level, method="auto")
    assert min(abs(found.low), abs(found.high)) < 0.1 * (found.high - found.low)


def test_the_p_value_is_never_below_that_of_sign_flips():
    rng = np.random.default_rng(6)
    for _ in range(20):
        difference = rng.exponential(size=15) - 0.5
        one, other = mean_difference_test(difference), sign_flip(difference)
        assert one.p_value >= other.p_value
        assert one.null_hypothesis == "the mean difference is zero"
    answers = np.array([1.0, -1.0, 0.0, 1.0, 1.0, 1.0])
    assert mean_difference_test(answers).p_value == sign_flip(answers).p_value
