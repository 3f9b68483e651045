"""Paired differences and McNemar's test, against scipy, statsmodels, brute force and a published pair of models."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.errors import InputError
from evalkit.stats.clusters import MIN_CLUSTERS
from evalkit.stats.discordance import mcnemar
from evalkit.stats.paired import (
    effect_sizes,
    paired_difference,
    smoothed_difference,
    unpaired_difference,
)
from evalkit.stats.results import Estimate, TestResult
from tests.stats.test_clusters import brute_force_cr2, brute_force_degrees

SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 0.5]), st.sampled_from([0.0, 1.0, 0.25])), min_size=2, max_size=40
)


def random_pair(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(0.3, 1.5, size=n)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_without_clusters_the_interval_is_scipys_paired_t(level):
    a, b = random_pair(37, 1)
    expected = scipy_stats.ttest_rel(b, a).confidence_interval(level)
    found = paired_difference(a, b, confidence_level=level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.estimate == pytest.approx((b - a).mean())


def test_clusters_of_one_item_change_nothing():
    a, b = random_pair(30, 2)
    plain, clustered = paired_difference(a, b), paired_difference(a, b, cluster=list(range(30)))
    assert clustered.standard_error == pytest.approx(plain.standard_error, rel=1e-12)
    assert (clustered.low, clustered.high, clustered.n) == pytest.approx((plain.low, plain.high, plain.n))


def test_the_clustered_error_is_cr2_by_matrix_algebra():
    a, b = random_pair(60, 3)
    clusters = np.random.default_rng(3).integers(0, 12, size=60).tolist()
    found = paired_difference(a, b, cluster=clusters)
    assert found.standard_error == pytest.approx(brute_force_cr2(b - a, clusters), rel=1e-10)
    assert found.df == pytest.approx(brute_force_degrees(np.unique(clusters, return_counts=True)[1]), rel=1e-10)
    assert found.unit == "clusters"


def test_with_equal_clusters_cr2_is_statsmodels_cr1():
    # For equal sizes 1 - n_c / n = (G - 1) / G, so CR2's factor is CR1's.
    a, b = random_pair(60, 4)
    clusters = np.repeat(np.arange(12), 5)
    fit = sm.OLS(b - a, np.ones(60)).fit()
    robust = fit.get_robustcov_results("cluster", groups=clusters, df_correction=True, use_correction=False)
    cr0 = float(robust.bse[0])
    found = paired_difference(a, b, cluster=clusters.tolist())
    assert found.standard_error == pytest.approx(cr0 * np.sqrt(12 / 11), rel=1e-10)


def test_the_paired_interval_is_narrower_than_the_unpaired_on_correlated_items():
    rng = np.random.default_rng(5)
    difficulty = rng.normal(size=200)
    a, b = difficulty + rng.normal(0, 0.3, 200), difficulty + rng.normal(0, 0.3, 200)
    paired = paired_difference(a, b)
    unpaired = scipy_stats.ttest_ind(b, a).confidence_interval(0.95)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


@given(SCORES)
def test_swapping_the_models_turns_every_sign(pairs):
    a, b = map(list, zip(*pairs, strict=True))
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.estimate == pytest.approx(-other.estimate, abs=1e-15)
    if one.low is None:
        assert other.low is None
    else:
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)


@given(SCORES, st.randoms())
def test_the_order_of_items_changes_nothing(pairs, rng):
    shuffled = pairs.copy()
    rng.shuffle(shuffled)
    one, other = (paired_difference(*map(list, zip(*rows, strict=True))) for rows in (pairs, shuffled))
    assert one.estimate == pytest.approx(other.estimate, abs=1e-12)
    assert one.standard_error == pytest.approx(other.standard_error, abs=1e-12)


def test_no_interval_has_zero_width():
    for a, b in ([1, 1, 0], [1, 1, 0]), ([0, 0, 0], [1, 1, 1]), ([1], [0]):
        found = paired_difference(a, b)
        assert found.low is None
        assert found.high is None
        assert found.warnings


def test_few_clusters_warn_and_very_few_give_no_interval():
    a, b = random_pair(40, 6)
    few = paired_difference(a, b, cluster=[i % 10 for i in range(40)])
    assert few.low is not None
    assert "10 clusters are few" in few.warnings[0]
    very_few = paired_difference(a, b, cluster=[i % (MIN_CLUSTERS - 1) for i in range(40)])
    assert very_few.low is None
    assert "too few" in very_few.warnings[0]


def test_many_clusters_are_few_when_one_holds_half_of_the_items():
    a, b = random_pair(200, 9)
    even = paired_difference(a, b, cluster=np.repeat(range(40), 5))
    assert not even.warnings
    uneven = paired_difference(a, b, cluster=np.repeat(range(26), [100] + [4] * 25))
    assert "26 clusters are few (of uneven size, worth 4.7 of one size)" in uneven.warnings[0]
    assert uneven.df < 4


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1, 2]), ([float("nan")], [1])])
def test_what_is_no_pair_of_scores_is_refused(a, b):
    with pytest.raises(InputError, match="scor"):
        paired_difference(a, b)


def test_the_interval_covers_with_and_without_clusters():
    rng = np.random.default_rng(7)
    covered = {"plain": 0, "clustered": 0}
    n_runs = 2000
    for _ in range(n_runs):
        a, b = rng.normal(size=50), rng.normal(0.2, 1, size=50)
        found = paired_difference(a, b)
        covered["plain"] += found.low <= 0.2 <= found.high
        shared = np.repeat(rng.normal(0, 0.8, size=25), 2)
        found = paired_difference(np.zeros(50), 0.2 + shared + rng.normal(size=50), cluster=np.repeat(range(25), 2))
        covered["clustered"] += found.low <= 0.2 <= found.high
    # Three Monte-Carlo standard errors of 0.95 at 2,000 runs are 0.0146.
    assert covered["plain"] / n_runs == pytest.approx(0.95, abs=0.0146)
    assert covered["clustered"] / n_runs == pytest.approx(0.95, abs=0.0146)


def test_the_interval_covers_although_one_cluster_holds_half_of_the_items():
    """Half of the variance is the cluster's: with 25 degrees of freedom, one less than clusters, 0.85 would cover."""
    rng = np.random.default_rng(10)
    clusters = np.repeat(range(26), [100] + [4] * 25)
    n_runs, covered = 1500, 0
    for _ in range(n_runs):
        difference = np.sqrt(0.5) * (rng.normal(size=26)[clusters] + rng.normal(size=200))
        found = paired_difference(np.zeros(200), difference, cluster=clusters)
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / n_runs <= 0.985


def test_the_published_gsm8k_answers_give_the_published_figures(data_dir):
    models = ("6b_verification", "175b_finetuning")
    with gzip.open(data_dir / "stats" / "gsm8k_model_solutions.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    a, b = ([float(row[model]["is_correct"]) for row in rows] for model in models)
    assert (sum(a), sum(b)) == (515, 458)
    found = paired_difference(a, b)
    assert 100 * abs(found.estimate) == pytest.approx(4.32, abs=0.005)
    assert found.standard_error == pytest.approx(0.01436, abs=5e-6)
    midp, exact = mcnemar(a, b), mcnemar(a, b, method="exact")
    assert sorted((midp.b, midp.c)) == [152, 209]
    assert exact.p_value == pytest.approx(0.003151, abs=5e-7)
    assert midp.p_value == pytest.approx(0.002687, abs=5e-7)


def test_results_survive_json_and_read_as_a_line():
    a, b = random_pair(20, 8)
    estimate = paired_difference(a, b, cluster=[i % 10 for i in range(20)])
    assert Estimate.from_dict(json.loads(json.dumps(estimate.to_dict()))) == estimate
    assert "95% interval" in str(estimate)
    assert "\n" not in str(estimate)
    assert estimate.to_frame().shape[0] == 1
    test = mcnemar([0, 1, 1], [1, 1, 0])
    assert TestResult.from_dict(json.loads(json.dumps(test.to_dict()))) == test
    assert "&lt;" in Estimate(0, None, None, 0.95, "<b>", "p", "u", 1, 1)._repr_html_()


def test_answers_get_bonett_and_prices_interval_when_asked_for_what_covers():
    a, b = [1.0] * 20 + [0.0] * 10, [1.0] * 18 + [0.0] * 2 + [1.0] * 5 + [0.0] * 5
    found = paired_difference(a, b, method="auto")
    centre, n = 3 / 32, 32
    half = 1.959964 * np.sqrt(((7 + 2) / n - centre**2) / n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert paired_difference(np.array(a) / 2, np.array(b) / 2, method="auto").method == (
        "the wider of paired t and the studentised bootstrap"
    )


@pytest.mark.parametrize(("n_clusters", "largest"), [(6, 8), (20, 60)])
def test_answers_in_clusters_cover_although_few_of_them_differ(n_clusters, largest):
    rng = np.random.default_rng(4)
    covered, n_runs = {"t": 0, "auto": 0}, 400
    for _ in range(n_runs):
        sizes = rng.integers(1, largest, size=n_clusters)
        clusters = np.repeat(np.arange(n_clusters), sizes)
        rates = [rng.beta(4 * p, 4 * (1 - p), size=n_clusters)[clusters] for p in (0.96, 0.97)]
        a, b = ((rng.random(len(clusters)) < rate).astype(float) for rate in rates)
        for method in covered:
            found = paired_difference(a, b, cluster=clusters, method=method)
            covered[method] += found.low is not None and found.low <= 0.01 <= found.high
    assert covered["auto"] / n_runs >= 0.935
    assert covered["auto"] >= covered["t"]


def test_equal_differences_in_clusters_are_counted_by_clusters():
    clusters = np.repeat(range(10), 6)
    found = smoothed_difference(np.zeros(60), clusters)
    half = 1.959964 * np.sqrt(2 / 12 / 12)
    assert (found.low, found.high) == pytest.approx((-half, half), abs=1e-6)
    assert smoothed_difference(np.ones(60), clusters).high == 1
    with pytest.raises(InputError, match="-1, 0 or 1"):
        smoothed_difference([0.5] * 8, list("aabbccdd"))
    assert smoothed_difference([1.0, 0.0] * 4, [1, 1, 2, 2, 3, 3, 4, 4]).low is None


@given(SCORES)
def test_every_way_turns_with_the_models(pairs):
    a, b = ([float(x >= 0.5) for x in side] for side in zip(*pairs, strict=True))
    clusters = [i % 7 for i in range(len(a))]
    for options in {"method": "auto"}, {"method": "auto", "cluster": clusters}:
        one, other = paired_difference(a, b, **options), paired_difference(b, a, **options)
        assert (one.low is None) == (other.low is None)
        if one.low is not None:
            assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
            assert one.low < one.high


def test_the_unpaired_difference_is_welchs_and_warns():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=30), rng.normal(0.5, 2, size=45)
    found = unpaired_difference(a, b)
    expected = scipy_stats.ttest_ind(b, a, equal_var=False)
    ends = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.df) == pytest.approx((ends.low, ends.high, expected.df), rel=1e-10)
    assert "unpaired" in found.warnings[0]
    assert unpaired_difference(a, b, cluster_a=[i % 3 for i in range(30)]).low is None


def test_the_gsm8k_pair_unpaired_has_the_wider_published_error(data_dir):
    with gzip.open(data_dir / "stats" / "gsm8k_model_solutions.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    a, b = ([float(row[m]["is_correct"]) for row in rows] for m in ("6b_verification", "175b_finetuning"))
    found = effect_sizes(a, b)
    assert found.standard_error == pytest.approx(0.01436, abs=5e-6)
    assert found.standard_error_unpaired == pytest.approx(0.01878, abs=5e-6)
    assert unpaired_difference(a, b).standard_error == pytest.approx(0.01878, abs=5e-6)
    assert found.odds_ratio.estimate == pytest.approx(min(152, 209) / max(152, 209))


@given(SCORES)
def test_the_error_of_a_pair_is_that_of_two_models_less_their_correlation(pairs):
    """Miller (2024): SE = sqrt(SE_A^2 + SE_B^2 - 2 rho SE_A SE_B)."""
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    found = effect_sizes(a, b)
    if found.correlation is None:
        return
    errors = scipy_stats.sem(a), scipy_stats.sem(b)
    expected = errors[0] ** 2 + errors[1] ** 2 - 2 * found.correlation * errors[0] * errors[1]
    assert found.standard_error**2 == pytest.approx(expected, abs=1e-12)


def test_effect_sizes_say_who_wins_and_by_how_much():
    a, b = np.array([0.0, 0.0, 1.0, 0.5]), np.array([1.0, 0.0, 0.0, 1.0])
    found = effect_sizes(a, b)
    assert (found.share_b, found.share_a, found.share_tied) == (0.5, 0.25, 0.25)
    assert found.probability_b_wins == 0.625
    assert found.standardised == pytest.approx((b - a).mean() / (b - a).std(ddof=1))
    assert found.odds_ratio is None
    assert "higher on 50.0% of 4 items" in found.explain()
    assert found.explain().count(". ") == 1
    assert type(found).from_json(found.to_json()) == found
