"""Repeated answers: planted components are recovered, intervals cover, and the two usual mistakes are shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.errors import InputError
from evalkit.stats.means import mean_score
from evalkit.stats.repeats import RepeatedScore, repeated_mean


def uniform_items(n, repeats, seed):
    """Each item is right with a chance of its own from U(0, 1): between 1/12, within 1/6 (Miller 2024)."""
    rng = np.random.default_rng(seed)
    chances = np.repeat(rng.random(n), repeats)
    return (rng.random(n * repeats) < chances).astype(float), np.repeat(np.arange(n), repeats)


@pytest.mark.parametrize("repeats", [2, 4, 10])
def test_planted_components_are_recovered(repeats):
    found = repeated_mean(*uniform_items(40_000 // repeats, repeats, 1))
    assert found.variance_between == pytest.approx(1 / 12, abs=0.006)
    assert found.variance_within == pytest.approx(1 / 6, abs=0.006)
    assert found.repeats == pytest.approx(repeats)


@pytest.mark.parametrize(("repeats", "ratio"), [(2, 2 / 3), (4, 1 / 2), (6, 4 / 9), (math.inf, 1 / 3)])
def test_more_answers_cut_the_variance_as_published(repeats, ratio):
    found = RepeatedScore(mean_score([0, 1]), 1 / 12, 1 / 6, 100, 100, 1.0)
    assert (found.standard_error(repeats) / found.standard_error(1)) ** 2 == pytest.approx(ratio)
    assert found.standard_error(repeats, 400) == pytest.approx(found.standard_error(repeats) / 2)


def test_the_error_is_that_of_the_components_and_of_the_item_means():
    scores, items = uniform_items(300, 4, 2)
    found = repeated_mean(scores, items)
    assert found.mean.standard_error == pytest.approx(scipy_stats.sem(scores.reshape(300, 4).mean(1)), rel=1e-12)
    assert found.standard_error(4) == pytest.approx(found.mean.standard_error, rel=1e-9)


@pytest.mark.parametrize(("repeats", "pooled"), [(2, 0.866), (4, 0.707), (10, 0.500)])
def test_pooled_rows_would_make_the_error_too_small_by_the_known_factor(repeats, pooled):
    scores, items = uniform_items(20_000, repeats, 3)
    naive = scipy_stats.sem(scores)
    assert naive / repeated_mean(scores, items).mean.standard_error == pytest.approx(pooled, abs=0.01)


@pytest.mark.parametrize(("repeats", "inflated"), [(2, 1.118), (4, 1.118), (10, 1.072)])
def test_items_then_answers_resampled_would_count_the_noise_twice(repeats, inflated):
    """The exact variance of that bootstrap, by the law of total variance: Var(m) / n + mean(s_i^2 / K) / n."""
    scores, items = uniform_items(20_000, repeats, 4)
    table = scores.reshape(-1, repeats)
    hierarchical = (table.mean(1).var() + np.mean(table.var(axis=1) / repeats)) / len(table)
    found = repeated_mean(scores, items)
    assert math.sqrt(hierarchical) / found.mean.standard_error == pytest.approx(inflated, abs=0.01)


def test_unbalanced_components_are_those_of_the_analysis_of_variance():
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 6, size=40)
    items = np.repeat(np.arange(40), counts)
    scores = rng.normal(size=40)[items] + rng.normal(size=len(items))
    within = sm.OLS(scores, np.eye(40)[items]).fit().mse_resid
    means = np.bincount(items, scores) / counts
    found = repeated_mean(scores, items)
    assert found.variance_within == pytest.approx(within, rel=1e-9)
    assert found.variance_between == pytest.approx(means.var(ddof=1) - within * np.mean(1 / counts), rel=1e-9)
    assert found.mean.estimate == pytest.approx(means.mean())


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3), min_size=2, max_size=12))
def test_duplicated_answers_and_their_order_change_neither_mean_nor_interval(table):
    scores, items = np.array(table), np.repeat(np.arange(len(table)), 3)
    one = repeated_mean(scores.ravel(), items).mean
    twice = repeated_mean(np.concatenate([scores.ravel()] * 2), np.concatenate([items] * 2)).mean
    turned = repeated_mean(scores[::-1, ::-1].ravel(), items[::-1]).mean
    for other in twice, turned:
        assert other.estimate == pytest.approx(one.estimate, abs=1e-12)
        assert (other.low is None) == (one.low is None)
        if one.low is not None:
            assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-9)


def test_the_interval_covers_also_near_one_where_that_of_t_does_not():
    rng = np.random.default_rng(7)
    for (a, b), t_covers in (((1, 1), 0.95), ((9.7, 0.3), 0.8)):
        truth, covered, by_t = a / (a + b), 0, 0
        for _ in range(800):
            answers = (rng.random((20, 4)) < rng.beta(a, b, size=(20, 1))).astype(float)
            found = repeated_mean(answers.ravel(), np.repeat(range(20), 4)).mean
            covered += found.low <= truth <= found.high
            half = scipy_stats.t.ppf(0.975, 19) * scipy_stats.sem(answers.mean(1))
            by_t += abs(answers.mean() - truth) <= half
        assert covered / 800 >= 0.935
        assert by_t / 800 == pytest.approx(t_covers, abs=0.08)


def test_one_answer_each_is_the_plain_mean_and_tells_nothing_of_answers():
    found = repeated_mean([0.0, 1.0, 1.0, 1.0], "abcd")
    assert (found.mean.low, found.mean.high) == (mean_score([0, 1, 1, 1]).low, mean_score([0, 1, 1, 1]).high)
    assert found.variance_within is None
    with pytest.raises(InputError, match="twice"):
        found.standard_error(2)


def test_items_that_differ_less_than_by_chance_have_no_variance_between_them():
    found = repeated_mean([0.0, 1.0] * 5, np.repeat(range(5), 2))
    assert found.variance_between == 0
    assert "set to 0" in found.warnings[0]
    assert RepeatedScore.from_json(found.to_json()) == found


def test_few_items_of_which_nearly_all_are_right_need_no_warning():
    answers = np.ones((20, 3))
    answers[0, 0] = 0
    assert not repeated_mean(answers.ravel(), np.repeat(range(20), 3)).mean.warnings
    assert repeated_mean(0.9 * answers.ravel(), np.repeat(range(20), 3)).mean.warnings


def test_clusters_are_of_items():
    scores, items = uniform_items(40, 3, 6)
    found = repeated_mean(scores, items, cluster=items // 4)
    assert (found.mean.unit, found.mean.n, found.mean.n_items) == ("clusters", 10, 40)
    with pytest.raises(InputError, match="two clusters"):
        repeated_mean([1.0, 0.0], ["a", "a"], cluster=["x", "y"])
