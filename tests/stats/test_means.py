"""One score: the interval that fits the scores, against scipy, statsmodels and exact coverage."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.clusters import MIN_CLUSTERS
from evalkit.stats.means import clustered_mean, mean_score
from evalkit.stats.proportions import clustered_proportion, proportion


def answers(n_right, n):
    return [1.0] * n_right + [0.0] * (n - n_right)


@given(st.integers(1, 300), st.data())
def test_independent_right_and_wrong_answers_get_the_interval_of_a_proportion(n, data):
    k = data.draw(st.integers(0, n))
    found, expected = mean_score(answers(k, n)), proportion(k, n)
    assert (found.low, found.high, found.method) == (expected.low, expected.high, expected.method)
    assert found.low < found.high


def test_graded_scores_get_scipys_t_interval():
    scores = np.random.default_rng(1).normal(0.4, 0.2, size=141)
    found = mean_score(scores, confidence_level=0.9)
    expected = scipy_stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert (found.method, found.unit, found.n) == ("t", "items", 141)


def test_graded_scores_that_share_a_source_get_a_clustered_t_interval():
    # With equal clusters CR2 is statsmodels' CR0 times sqrt(G / (G - 1)).
    groups = np.repeat(np.arange(120), 5)
    rng = np.random.default_rng(2)
    scores = np.repeat(rng.random(120), 5) + rng.random(600)
    fit = sm.OLS(scores, np.ones(600)).fit()
    cr0 = float(fit.get_robustcov_results("cluster", groups=groups, use_correction=False).bse[0])
    found = mean_score(scores, cluster=groups.tolist())
    half = scipy_stats.t.ppf(0.975, 119) * cr0 * np.sqrt(120 / 119)
    assert (found.low, found.high) == pytest.approx((scores.mean() - half, scores.mean() + half), rel=1e-10)
    assert (found.unit, found.n, found.n_items) == ("clusters", 120, 600)


def test_answers_that_share_a_source_get_the_interval_of_a_clustered_proportion():
    scores, clusters = answers(7, 60), np.repeat(np.arange(12), 5).tolist()
    found, expected = mean_score(scores, cluster=clusters), clustered_proportion(scores, clusters)
    assert (found.low, found.high) == (expected.low, expected.high)
    assert 0 <= found.low < found.estimate < found.high


@pytest.mark.parametrize("estimator", ["CR1", "CR2", "CR3"])
def test_a_named_error_takes_the_t_distribution(estimator):
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=50), np.repeat(range(10), 5)
    found = clustered_mean(values, clusters, estimator=estimator)
    assert found.df == pytest.approx(9)
    assert found.high - found.estimate == pytest.approx(scipy_stats.t.ppf(0.975, 9) * found.standard_error)
    plain = clustered_mean(values, estimator=estimator)
    assert plain.standard_error == pytest.approx(scipy_stats.sem(values))


def test_alpaca_evals_win_rates_and_errors_are_the_published_ones(data_dir):
    with gzip.open(data_dir / "judges" / "alpaca_eval_verdicts.jsonl.gz", "rt") as file:
        models = [json.loads(line) for line in file]
    assert len(models) == 24
    for model in models:
        given = [verdict["preference"] for verdict in model["verdicts"]]
        # 0 is how a tie was written there.
        wins = [0.5 if one == 0 else one - 1 for one in given if one is not None]
        found = clustered_mean(wins)
        assert 100 * found.estimate == pytest.approx(float(model["published"]["win_rate"]), abs=1e-6)
        assert 100 * found.standard_error == pytest.approx(float(model["published"]["standard_error"]), abs=1e-6)


def test_few_clusters_warn_and_fewer_are_refused():
    values = np.arange(40.0)
    assert "few" in clustered_mean(values, [i % 10 for i in range(40)]).warnings[0]
    with pytest.raises(InputError, match="4 clusters are too few"):
        clustered_mean(values, [i % (MIN_CLUSTERS - 1) for i in range(40)])
    # Reports show the score even so, without an interval.
    assert mean_score(values, cluster=[i % 4 for i in range(40)]).low is None


def test_scores_must_be_finite_and_there():
    with pytest.raises(InputError, match="scores: row 1 is nan"):
        mean_score([0.5, np.nan])
    with pytest.raises(InputError, match="scores: shape"):
        mean_score([])
    with pytest.raises(SpecError, match="HC3"):
        clustered_mean([1.0, 2.0], estimator="HC3")
