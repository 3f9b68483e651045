"""The sign-flip test against exact McNemar, brute force over all sign vectors, and its size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.errors import InputError, SpecError
from evalkit.stats import permutation
from evalkit.stats.discordance import discordant_p_value
from evalkit.stats.permutation import sign_flip


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 20))
def test_of_single_answers_it_is_exact_mcnemar(b, c, ties):
    if b + c + ties == 0:
        return
    difference = np.repeat([-1.0, 1.0, 0.0], [b, c, ties])
    found = sign_flip(difference)
    assert found.p_value == pytest.approx(discordant_p_value(b, c, method="exact"), rel=1e-9)
    assert found.resampling_seed is None


def brute_force(difference, clusters):
    """All sign vectors, one at a time."""
    names = np.unique(clusters)
    sums = np.array([difference[clusters == name].sum() for name in names])
    sizes = np.array([(clusters == name).sum() for name in names])

    def statistic(signed):
        mean = signed.sum() / sizes.sum()
        return abs(mean) / max(np.sqrt(np.sum((signed - mean * sizes) ** 2)), 1e-300)

    observed = statistic(sums)
    vectors = itertools.product([1, -1], repeat=len(names))
    return np.mean([statistic(sums * np.array(signs)) >= observed * (1 - 1e-9) for signs in vectors])


@pytest.mark.parametrize("seed", range(6))
def test_over_clusters_it_is_brute_force(seed):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(range(9), rng.integers(1, 5, size=9))
    difference = rng.integers(-2, 4, size=len(clusters)).astype(float)
    assert sign_flip(difference, cluster=clusters).p_value == pytest.approx(brute_force(difference, clusters))


def test_random_signs_agree_with_all_of_them(monkeypatch):
    rng = np.random.default_rng(1)
    difference = rng.normal(0.3, 1, size=14)
    exact = sign_flip(difference)
    monkeypatch.setattr(permutation, "MAX_EXACT", 10)
    for values in difference, np.round(difference):
        drawn = sign_flip(values, n_resamples=40_000, resampling_seed=5)
        assert drawn.resampling_seed == 5
        monkeypatch.setattr(permutation, "MAX_EXACT", 10**6)
        exact = sign_flip(values)
        monkeypatch.setattr(permutation, "MAX_EXACT", 10)
        assert drawn.p_value == pytest.approx(exact.p_value, abs=4 * drawn.monte_carlo_error)
    assert sign_flip(difference, resampling_seed=5).p_value == sign_flip(difference, resampling_seed=5).p_value


def test_without_clusters_it_is_scipys_permutation_test():
    difference = np.random.default_rng(2).normal(0.4, 1, size=11)
    theirs = scipy_stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(difference).p_value == pytest.approx(theirs.pvalue)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=12))
def test_turned_models_have_the_same_p_and_the_other_sign(values):
    one, other = sign_flip(values), sign_flip([-value for value in values])
    assert one.p_value == pytest.approx(other.p_value)
    if sum(values):
        assert one.statistic == pytest.approx(-other.statistic)
    assert 0 < one.p_value <= 1


@pytest.mark.parametrize("skewed", [False, True])
def test_its_size_over_clusters_is_the_level(skewed):
    rng = np.random.default_rng(3)
    rejected, n_runs = 0, 1000
    for seed in range(n_runs):
        clusters = np.repeat(range(25), rng.integers(1, 6, size=25))
        shared = rng.exponential(size=25) - 1 if skewed else rng.normal(size=25)
        difference = shared[clusters] + rng.normal(size=len(clusters))
        rejected += sign_flip(difference, cluster=clusters, n_resamples=499, resampling_seed=seed).p_value <= 0.05
    assert rejected / n_runs <= (0.09 if skewed else 0.066)
    assert rejected / n_runs >= 0.034


def test_no_difference_at_all_has_p_one():
    assert sign_flip([0.0, 0.0, 0.0]).p_value == 1
    assert sign_flip([1.0, -1.0]).p_value == 1


def test_few_clusters_and_no_resamples_are_refused():
    with pytest.raises(InputError, match="too few to turn"):
        sign_flip(np.arange(8.0), cluster=[1, 1, 2, 2, 3, 3, 4, 4])
    with pytest.raises(SpecError, match="resamples"):
        sign_flip([1.0], n_resamples=0)
