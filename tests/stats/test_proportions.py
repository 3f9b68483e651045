"""Intervals of a proportion against statsmodels, scipy and exact coverage; in clusters by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from evalkit.errors import InputError, SpecError
from evalkit.stats.proportions import clustered_proportion, proportion


@given(st.integers(1, 300), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
@pytest.mark.parametrize(("method", "theirs"), [("wilson", "wilson"), ("clopper-pearson", "beta")])
def test_intervals_are_those_of_statsmodels(method, theirs, n, data, level):
    k = data.draw(st.integers(0, n))
    found = proportion(k, n, method=method, confidence_level=level)
    assert (found.low, found.high) == pytest.approx(proportion_confint(k, n, alpha=1 - level, method=theirs), abs=1e-12)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high


@given(st.integers(2, 100), st.data())
def test_posterior_intervals_are_quantiles_of_beta(n, data):
    k = data.draw(st.integers(1, n - 1))
    for method, prior in (("jeffreys", 0.5), ("uniform", 1.0)):
        found = proportion(k, n, method=method)
        expected = scipy_stats.beta(k + prior, n - k + prior).ppf([0.025, 0.975])
        assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
    assert proportion(k, n, method="jeffreys").low == pytest.approx(
        proportion_confint(k, n, method="jeffreys")[0], rel=1e-9
    )


@given(st.integers(10, 400), st.data())
def test_the_default_is_wilson_except_for_one_to_three_rare_items(n, data):
    k = data.draw(st.integers(0, n))
    found, plain = proportion(k, n), proportion(k, n, method="wilson")
    assert found.low <= plain.low
    assert found.high >= plain.high
    if min(k, n - k) > 3 or k in (0, n):
        assert (found.low, found.high) == (plain.low, plain.high)


def coverage(n, chances, method=None):
    """Exact, averaged over the chances."""
    return float(coverage_at(n, chances, method).mean())


def coverage_at(n, chances, method=None):
    """Exact, at each of the chances."""
    found = [proportion(k, n, method=method) for k in range(n + 1)]
    low, high = (np.array([getattr(one, end) for one in found])[:, None] for end in ("low", "high"))
    weights = scipy_stats.binom.pmf(np.arange(n + 1)[:, None], n, chances)
    return (((low <= chances) & (chances <= high)) * weights).sum(axis=0)


@pytest.mark.parametrize("n", [5, 10, 30, 100])
@pytest.mark.parametrize("band", [(0.5, 0.6), (0.8, 0.9), (0.93, 0.97), (0.98, 1.0)])
def test_the_default_covers_in_every_band_of_proportions(n, band):
    assert coverage(n, np.linspace(*band, 81)) >= 0.9495


def test_plain_wilson_fails_where_one_rare_item_is_expected_and_the_default_does_not():
    assert coverage(10, np.array([0.0177]), "wilson") == pytest.approx(0.836, abs=0.001)
    assert coverage(10, np.array([0.0177])) > 0.95


@pytest.mark.parametrize("n", [10, 30, 100])
def test_clopper_and_pearson_never_cover_less_than_they_say(n):
    assert coverage_at(n, np.linspace(0.005, 0.995, 100), "clopper-pearson").min() >= 0.95


def test_the_published_coverages_averaged_over_proportions():
    chances = np.linspace(0.0005, 0.9995, 1000)
    for n, wilson, exact in ((10, 0.954, 0.984), (30, 0.952, 0.974), (100, 0.950, 0.965)):
        assert coverage(n, chances, "wilson") == pytest.approx(wilson, abs=0.002)
        assert coverage(n, chances, "clopper-pearson") == pytest.approx(exact, abs=0.002)


def test_no_interval_of_nothing_or_everything_has_zero_width():
    for method in ("wilson", "wilson-modified", "clopper-pearson", "jeffreys", "uniform"):
        for n in (1, 5, 1000):
            none, every = proportion(0, n, method=method), proportion(n, n, method=method)
            assert none.low == 0 < none.high
            assert every.low < 1 == every.high


def clustered(rng, n_clusters, rate, correlation):
    sizes = rng.integers(1, 10, size=n_clusters)
    k = (1 - correlation) / correlation
    rates = rng.beta(rate * k, (1 - rate) * k, size=n_clusters)
    clusters = np.repeat(np.arange(n_clusters), sizes)
    return (rng.random(len(clusters)) < rates[clusters]).astype(float), clusters


@pytest.mark.parametrize(("n_clusters", "rate"), [(6, 0.6), (10, 0.95), (30, 0.9)])
def test_proportions_in_clusters_cover(n_clusters, rate):
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(600):
        found = clustered_proportion(*clustered(rng, n_clusters, rate, 0.3))
        covered += found.low <= rate <= found.high
    # Two Monte-Carlo standard errors of 0.95 at 600 runs are 0.018.
    assert covered / 600 >= 0.932


def test_in_clusters_nothing_right_is_counted_by_clusters():
    found = clustered_proportion(np.zeros(60), np.repeat(range(12), 5))
    half = scipy_stats.t.ppf(0.975, 11)
    assert found.low == 0
    assert found.high == pytest.approx(half**2 / (12 + half**2))
    assert clustered_proportion([0, 1] * 6, list("aabbccddaabb")).low is None


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_what_is_no_count_is_refused(k, n):
    with pytest.raises(InputError, match="no proportion"):
        proportion(k, n)


def test_what_is_no_method_level_or_answer_is_refused():
    with pytest.raises(SpecError, match="wald"):
        proportion(1, 5, method="wald")
    with pytest.raises(SpecError, match="level"):
        proportion(1, 5, confidence_level=95)
    with pytest.raises(InputError, match="0 or 1"):
        clustered_proportion([0.5], ["a"])
