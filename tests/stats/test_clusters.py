"""Cluster-robust errors against dense matrix algebra and statsmodels; intraclass correlation against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import InputError
from evalkit.stats.clusters import (
    cluster_codes,
    cluster_degrees,
    cluster_error,
    design_effect,
    intraclass_correlation,
    t_interval,
)


def brute_force_cr2(difference, clusters):
    """CR2 by matrices, as Bell and McCaffrey write it: A_c = (I - H_cc)^(-1/2) of the regression on a constant."""
    n = len(difference)
    hat = np.full((n, n), 1 / n)
    residuals = difference - difference.mean()
    meat = 0.0
    for name in set(clusters):
        rows = [i for i in range(n) if clusters[i] == name]
        values, vectors = np.linalg.eigh(np.eye(len(rows)) - hat[np.ix_(rows, rows)])
        adjusted = vectors @ np.diag(values**-0.5) @ vectors.T @ residuals[rows]
        meat += adjusted.sum() ** 2
    return np.sqrt(meat) / n


def brute_force_degrees(sizes):
    """Satterthwaite's degrees by the quadratic form: SE^2 = d'Qd, whose moments for independent d of one variance are
    tr(Q) and 2 tr(QQ)."""
    n = sum(sizes)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    centre = np.eye(n) - 1 / n
    rows = [(clusters == c).astype(float) @ centre / np.sqrt(1 - size / n) / n for c, size in enumerate(sizes)]
    form = sum(np.outer(row, row) for row in rows)
    return 2 * np.trace(form) ** 2 / (2 * np.trace(form @ form))


@given(st.lists(st.integers(1, 12), min_size=2, max_size=10))
def test_the_degrees_of_freedom_are_those_of_the_quadratic_form(sizes):
    found = cluster_degrees(np.array(sizes, float))
    assert found == pytest.approx(brute_force_degrees(sizes), rel=1e-9)
    assert found <= len(sizes) - 1 + 1e-9


def test_clusters_of_one_size_have_one_degree_less_than_there_are_clusters():
    assert cluster_degrees(np.full(26, 4.0)) == 25
    almost = np.full(100_000, 4.0)  # a matrix of these would have 10^10 entries
    almost[0] = 5
    assert cluster_degrees(almost) == pytest.approx(99_999, rel=1e-4)


def dense(values, clusters, power):
    """Errors by the n x n matrices of a regression on a constant: A = (I - H)^power on each cluster's block."""
    n = len(values)
    hat = np.full((n, n), 1 / n)
    residuals = values - values.mean()
    meat = np.zeros(())
    for name in np.unique(clusters):
        rows = np.flatnonzero(clusters == name)
        eigenvalues, vectors = np.linalg.eigh(np.eye(len(rows)) - hat[np.ix_(rows, rows)])
        adjusted = vectors @ np.diag(eigenvalues**power) @ vectors.T @ residuals[rows]
        meat = meat + adjusted.sum() ** 2
    return float(np.sqrt(meat)) / n


def draw(seed, n=60, n_clusters=12):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.integers(0, n_clusters, size=n)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("estimator", "power"), [("CR2", -0.5), ("CR3", -1)])
def test_cr2_and_cr3_are_those_of_dense_matrices(seed, estimator, power):
    values, clusters = draw(seed)
    found = cluster_error(values, *cluster_codes(clusters, 60), estimator)
    assert found == pytest.approx(dense(values, clusters, power), rel=1e-10)


def test_cr3_is_the_jackknife_that_leaves_out_a_cluster():
    values, clusters = draw(9)
    left_out = [values[clusters != name].mean() for name in np.unique(clusters)]
    jackknife = np.sqrt(sum((one - values.mean()) ** 2 for one in left_out))
    assert cluster_error(values, *cluster_codes(clusters, 60), "CR3") == pytest.approx(jackknife, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_cr1_is_statsmodels_clustered_covariance(seed):
    values, clusters = draw(seed)
    fit = sm.OLS(values, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    n_clusters = len(np.unique(clusters))
    expected = float(fit.bse[0]) * np.sqrt(n_clusters / (n_clusters - 1))
    assert cluster_error(values, *cluster_codes(clusters, 60), "CR1") == pytest.approx(expected, rel=1e-10)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.sampled_from(["CR1", "CR2"]))
def test_clusters_of_one_item_give_the_usual_error(values, estimator):
    of = np.array(values)
    found = cluster_error(of, *cluster_codes(range(len(of)), len(of)), estimator)
    assert found == pytest.approx(of.std(ddof=1) / np.sqrt(len(of)), rel=1e-9, abs=1e-12)


def test_labels_of_clusters_and_their_order_do_not_matter():
    values, clusters = draw(4)
    order = np.random.default_rng(0).permutation(60)
    one = t_interval(values, *cluster_codes(clusters, 60))
    other = t_interval(values[order], *cluster_codes([f"c{c}" for c in clusters[order]], 60))
    assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-12)


def test_few_very_skewed_scores_come_with_a_warning():
    scores = np.r_[np.zeros(28), 1.0, 0.8]
    assert "few for scores this skewed" in t_interval(scores, *cluster_codes(None, 30)).warnings[0]
    assert not t_interval(np.tile([0.0, 0.3, 1.0], 10), *cluster_codes(None, 30)).warnings


def test_the_intraclass_correlation_of_a_planted_one_is_recovered():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 12, size=3000)
    clusters = np.repeat(np.arange(3000), sizes)
    values = np.sqrt(0.3) * rng.normal(size=3000)[clusters] + np.sqrt(0.7) * rng.normal(size=len(clusters))
    found = intraclass_correlation(values, clusters)
    assert found == pytest.approx(0.3, abs=0.03)
    kish = np.sum(sizes**2) / sizes.sum()
    assert design_effect(values, clusters) == pytest.approx(1 + (kish - 1) * 0.3, rel=0.1)


def test_equal_clusters_have_the_textbooks_correlation():
    values, clusters = np.random.default_rng(2).normal(size=40), np.repeat(np.arange(10), 4)
    table = values.reshape(10, 4)
    between, within = 4 * table.mean(1).var(ddof=1), table.var(axis=1, ddof=1).mean()
    assert intraclass_correlation(values, clusters) == pytest.approx((between - within) / (between + 3 * within))


def test_where_there_is_no_correlation_to_know_there_is_none():
    assert intraclass_correlation([1.0, 2.0, 3.0], ["a", "b", "c"]) is None
    assert intraclass_correlation([1.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b"]) is None
    assert design_effect([1.0, 1.0], ["a", "b"]) is None


def test_labels_must_be_as_many_as_items():
    with pytest.raises(InputError, match="2 clusters for 3 items"):
        cluster_codes(["a", "b"], 3)
