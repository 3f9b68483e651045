"""Bootstrap intervals against scipy's, brute force, and their own Monte-Carlo error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.bootstrap import (
    MANY_UNITS,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
    resampled_totals,
)
from evalkit.stats.means import mean_score

METHODS = ["percentile", "basic", "bca", "studentised"]


def clustered(seed, n_clusters=60, largest=8):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(range(n_clusters), rng.integers(1, largest, size=n_clusters))
    return rng.exponential(size=n_clusters)[clusters] + rng.normal(size=len(clusters)), clusters


@pytest.mark.parametrize("method", ["percentile", "basic", "bca"])
def test_ends_are_scipys_within_the_monte_carlo_error(method):
    values, clusters = clustered(1)
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters)

    def ratio(index, axis):
        return sums[index].sum(axis) / sizes[index].sum(axis)

    theirs = scipy_stats.bootstrap(
        (np.arange(60),), ratio, method=method, n_resamples=20_000, vectorized=True, rng=1
    ).confidence_interval
    for weights in "multinomial", "poisson":
        found = bootstrap_mean(values, cluster=clusters, method=method, n_resamples=20_000, weights=weights)
        # Poisson weights widen an interval of 60 units by 1/120.
        slack = 0 if weights == "multinomial" else (theirs.high - theirs.low) / 100
        for end, expected, error in zip(("low", "high"), theirs, found.monte_carlo_error, strict=True):
            assert getattr(found, end) == pytest.approx(expected, abs=6 * error + slack)


def test_the_studentised_interval_is_brute_force():
    values, clusters = clustered(2, 25)
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters).astype(float)

    def error(s, m):
        return np.sqrt(25 / 24 * np.sum((s - s.sum() / m.sum() * m) ** 2)) / m.sum()

    rng, ratios = np.random.default_rng(3), []
    for _ in range(20_000):
        index = rng.integers(0, 25, size=25)
        s, m = sums[index], sizes[index]
        ratios.append((s.sum() / m.sum() - values.mean()) / error(s, m))
    low, high = values.mean() - np.quantile(ratios, [0.975, 0.025]) * error(sums, sizes)
    found = bootstrap_mean(values, cluster=clusters, n_resamples=20_000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6 * max(found.monte_carlo_error))
    assert found.standard_error == pytest.approx(error(sums, sizes))


@pytest.mark.parametrize("weights", ["multinomial", "poisson"])
@pytest.mark.parametrize("kind", ["few kinds", "many kinds"])
def test_resampled_totals_have_the_moments_of_drawing_with_replacement(weights, kind):
    rng = np.random.default_rng(4)
    rows = rng.integers(0, 3, size=(400, 2)).astype(float) if kind == "few kinds" else rng.normal(size=(400, 2))
    totals = resampled_totals(rows, 20_000, 5, weights)
    error = np.sqrt(400 / 20_000)
    assert totals.mean(axis=0) == pytest.approx(rows.sum(axis=0), abs=6 * error * rows.std())
    expected = rows.T @ rows if weights == "poisson" else 400 * np.cov(rows.T, ddof=0)
    assert np.cov(totals.T) == pytest.approx(expected, rel=0.06, abs=0.06 * 400)


def test_tables_of_counts_are_poisson():
    for count in 1, 3, 40, 700:
        rows = np.repeat([[1.0], [0.0]], [count, 5], axis=0)
        drawn = resampled_totals(rows, 40_000, 6, "poisson")[:, 0]
        assert drawn.mean() == pytest.approx(count, abs=5 * np.sqrt(count / 40_000))
        assert drawn.var() == pytest.approx(count, rel=0.05)
        assert np.mean((drawn - count) ** 3) == pytest.approx(count, abs=0.3 * count**1.5)
        shares = np.array([np.mean(drawn == k) for k in range(3)])
        assert shares == pytest.approx(scipy_stats.poisson.pmf(range(3), count), abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_the_monte_carlo_error_is_the_spread_over_seeds(method):
    values, clusters = clustered(7, 40)
    found = [
        bootstrap_mean(values, cluster=clusters, method=method, n_resamples=2000, resampling_seed=s) for s in range(60)
    ]
    for index, end in enumerate(("low", "high")):
        spread = np.std([getattr(one, end) for one in found])
        stated = np.mean([one.monte_carlo_error[index] for one in found])
        assert 0.5 < stated / spread < 2


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_interval_whatever_the_order(method):
    values, clusters = clustered(8)
    order = np.random.default_rng(0).permutation(len(values))
    one = bootstrap_mean(values, cluster=clusters, method=method, n_resamples=500)
    other = bootstrap_mean(values[order], cluster=clusters[order], method=method, n_resamples=500)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-9)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=5, max_size=30), st.sampled_from(METHODS))
def test_there_is_always_an_interval_of_some_width(values, method):
    found = bootstrap_mean(values, method=method, n_resamples=200)
    assert found.low < found.high
    if len(set(values)) == 1:
        assert (found.low, found.high) == (mean_score(values).low, mean_score(values).high)
        assert "gives no interval" in found.warnings[-1]


def test_equal_scores_have_no_interval_and_no_nan():
    found = bootstrap_mean([0.3] * 20, n_resamples=200)
    assert found.low is None
    assert found.estimate == pytest.approx(0.3)


def test_only_the_studentised_bootstrap_covers_with_few_clusters():
    rng = np.random.default_rng(9)
    covered, n_runs = dict.fromkeys(("percentile", "studentised"), 0), 500
    for seed in range(n_runs):
        clusters = np.repeat(range(10), rng.integers(1, 9, size=10))
        values = np.sqrt(0.3) * rng.normal(size=10)[clusters] + np.sqrt(0.7) * rng.normal(size=len(clusters))
        for method in covered:
            found = bootstrap_mean(values, cluster=clusters, method=method, n_resamples=399, resampling_seed=seed)
            covered[method] += found.low <= 0 <= found.high
    assert covered["studentised"] / n_runs >= 0.925
    assert covered["percentile"] / n_runs == pytest.approx(0.891, abs=0.045)  # the reference's simulation: 0.891
    assert "10 units are few" in bootstrap_mean(values, cluster=clusters, method="bca", n_resamples=399).warnings[0]


def test_a_mean_is_a_ratio_of_totals_and_a_statistic_of_them():
    values, clusters = clustered(10)
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters)
    options = {"method": "bca", "n_resamples": 4000, "weights": "multinomial"}
    mean = bootstrap_mean(values, cluster=clusters, **options)
    ratio = bootstrap_ratio(sums, sizes, **options)
    general = bootstrap_statistic(np.column_stack([sums, sizes]), lambda t: t[:, 0] / t[:, 1], **options)
    assert (ratio.low, ratio.high) == (mean.low, mean.high)
    width = mean.high - mean.low
    assert (general.low, general.high) == pytest.approx((mean.low, mean.high), abs=0.06 * width)


def test_f1_of_counts_is_a_statistic_of_totals():
    rng = np.random.default_rng(11)
    counts = rng.integers(0, 4, size=(200, 3)).astype(float)

    def f1(totals):
        return 2 * totals[:, 0] / (2 * totals[:, 0] + totals[:, 1] + totals[:, 2])

    found = bootstrap_statistic(counts, f1, n_resamples=4000)

    def of_rows(*columns, axis):
        hits, misses, alarms = (column.sum(axis) for column in columns)
        return 2 * hits / (2 * hits + misses + alarms)

    theirs = scipy_stats.bootstrap(
        tuple(counts.T), of_rows, paired=True, n_resamples=4000, rng=1, vectorized=True
    ).confidence_interval
    errors = found.monte_carlo_error
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=8 * max(errors))


def test_many_units_of_many_kinds_take_little_memory_and_agree_with_the_normal_interval():
    values = np.random.default_rng(12).normal(size=3 * MANY_UNITS)
    found = bootstrap_mean(values, method="percentile", n_resamples=4000)
    half = 1.96 * scipy_stats.sem(values)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="4 units"):
        bootstrap_mean([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(SpecError, match="too few for the level"):
        bootstrap_mean(np.arange(9.0), n_resamples=50)
    with pytest.raises(SpecError, match="jackknife"):
        bootstrap_mean(np.arange(9.0), method="jackknife")
    with pytest.raises(SpecError, match="studentised"):
        bootstrap_statistic(np.ones((9, 1)), lambda t: t[:, 0], method="studentised")
    with pytest.raises(InputError, match="denominator"):
        bootstrap_ratio([1.0] * 6, [0.0] * 6)
    with pytest.raises(InputError, match="not finite"):
        bootstrap_statistic(np.arange(12.0).reshape(6, 2), lambda t: t[:, 0] * np.nan)
