"""One checkpoint's interval, the rank trend and the late change, against scipy, statsmodels and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.errors import InputError
from evalkit.stats.trend import FALLING, RISING, UNRESOLVED, late_change, rank_trend


def brute_force_tau_b(x, y):
    """Concordant less discordant pairs, over pairs without ties in either (Kendall 1945)."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    return sum(a * b for a, b in signs) / np.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=2, max_size=9).filter(lambda s: len(set(s)) > 1))
def test_the_rank_trend_counts_pairs_in_order_and_corrects_for_ties(scores):
    assert rank_trend(range(len(scores)), scores).tau == pytest.approx(brute_force_tau_b(range(len(scores)), scores))


def test_without_ties_its_p_value_is_the_share_of_orders_that_are_as_extreme():
    scores = [0.1, 0.3, 0.2, 0.5, 0.6, 0.4]
    steps = list(range(6))
    observed = abs(brute_force_tau_b(steps, scores))
    orders = [abs(brute_force_tau_b(steps, order)) for order in itertools.permutations(scores)]
    assert rank_trend(steps, scores).p_value == pytest.approx(np.mean(np.array(orders) >= observed - 1e-12))


def test_four_checkpoints_in_perfect_order_are_no_proof():
    assert rank_trend([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]).p_value == pytest.approx(2 / 24)


def test_a_tie_is_a_tie_despite_rounding():
    assert rank_trend([1, 2, 3], [0.1 + 0.2, 0.3, 0.5]) == rank_trend([1, 2, 3], [0.3, 0.3, 0.5])


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5, 0.5]])
def test_equal_scores_have_no_rank_trend(scores):
    found = rank_trend(range(len(scores)), scores)
    assert (found.tau, found.p_value, found.n) == (None, None, len(scores))


def random_scores(n_items, n_checkpoints, seed, rise=0.0):
    """Right and wrong answers: items differ in difficulty, checkpoints by `rise`."""
    rng = np.random.default_rng(seed)
    chance = np.clip(rng.uniform(0.2, 0.7, size=(n_items, 1)) + rise * np.arange(n_checkpoints), 0, 1)
    return (rng.random((n_items, n_checkpoints)) < chance).astype(float)


def test_the_late_change_is_the_t_interval_of_the_items_own_regressions():
    scores, steps = random_scores(40, 6, 3), np.array([100, 200, 400, 1000, 1500, 4000])
    slopes = np.polyfit(steps[3:], scores[:, 3:].T, 1)[0]
    expected = scipy_stats.ttest_1samp(slopes * 3000, 0).confidence_interval(0.95)
    found = late_change(scores, steps)
    assert found.change.estimate == pytest.approx(slopes.mean() * 3000)
    assert (found.change.low, found.change.high) == pytest.approx((expected.low, expected.high))
    assert (found.first_step, found.last_step, found.n_checkpoints) == (1000, 4000, 3)


def test_the_late_change_is_the_fixed_effects_regression_clustered_by_item():
    scores, steps = random_scores(30, 3, 4), np.array([10, 20, 50])
    item = np.repeat(np.arange(30), 3)
    design = np.column_stack([np.tile(steps, 30), item[:, None] == np.arange(30)]).astype(float)
    fit = sm.OLS(scores.ravel(), design).fit()
    cr0 = fit.get_robustcov_results("cluster", groups=item, use_correction=False)
    found = late_change(scores, steps).change
    assert found.estimate == pytest.approx(40 * cr0.params[0])
    assert found.standard_error == pytest.approx(40 * cr0.bse[0] * np.sqrt(30 / 29))


def test_the_late_change_counts_clusters_where_items_share_a_source():
    scores, cluster = random_scores(40, 3, 5), np.repeat(np.arange(10), 4)
    slopes = np.polyfit([1, 2, 3], scores.T, 1)[0] * 2
    # Clusters of one size: the t interval of the cluster means.
    expected = scipy_stats.ttest_1samp(slopes.reshape(10, 4).mean(axis=1), 0).confidence_interval(0.95)
    found = late_change(scores, [1, 2, 3], cluster=cluster.tolist()).change
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.unit, found.n) == ("clusters", 10)


@pytest.mark.parametrize(("n", "late"), [(3, 3), (4, 3), (5, 3), (6, 3), (7, 4), (10, 5)])
def test_late_is_the_last_half_of_the_checkpoints_and_at_least_three(n, late):
    found = late_change(random_scores(20, n, 6), range(n))
    assert (found.n_checkpoints, found.first_step, found.last_step) == (late, n - late, n - 1)


@pytest.mark.parametrize(("rise", "verdict"), [(0.15, RISING), (-0.15, FALLING), (0.0, UNRESOLVED)])
def test_the_verdict_says_which_way_the_score_goes(rise, verdict):
    assert late_change(random_scores(300, 3, 7, rise), [1, 2, 3]).verdict == verdict


def test_a_rise_that_ended_before_the_last_half_is_not_still_rising():
    early, late = random_scores(200, 3, 8, rise=0.1), random_scores(200, 3, 8)
    assert late_change(early, [1, 2, 3]).verdict == RISING
    assert late_change(np.hstack([early, late]), range(6)).verdict == UNRESOLVED


def test_a_flat_score_is_called_rising_or_falling_as_rarely_as_the_level_says():
    verdicts = [late_change(random_scores(60, 5, seed), range(5)).verdict for seed in range(2000)]
    n_false = sum(verdict != UNRESOLVED for verdict in verdicts)
    assert scipy_stats.binomtest(n_false, 2000, 0.05).pvalue > 0.001


@pytest.mark.parametrize(
    "scores",
    [
        np.repeat([[0.1], [0.7], [1.0]], 3, axis=1),  # no item changes
        np.add.outer([0.0, 0.1, 0.7], [0.0, 0.1, 0.2]),  # all change alike
    ],
)
def test_items_that_all_change_alike_prove_nothing(scores):
    found = late_change(scores, [1, 2, 3])
    assert (found.change.low, found.verdict) == (None, UNRESOLVED)
    assert "all items are equal" in found.change.warnings[0]


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=2, max_size=12))
def test_lower_is_higher_turned_round_and_easier_items_change_nothing(rows):
    scores = np.array(rows)
    found, turned = late_change(scores, [1, 2, 3, 4]).change, late_change(-scores, [1, 2, 3, 4]).change
    shifted = late_change(scores + 5.0, [1, 2, 3, 4]).change
    assert turned.estimate == pytest.approx(-found.estimate)
    assert shifted.estimate == pytest.approx(found.estimate)
    if found.low is not None:
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(
    ("shape", "steps"), [((5, 2), [1, 2]), ((5, 3), [1, 3, 2]), ((5, 3), [1, 1, 2]), ((5, 3), [1, 2]), ((5,), [1])]
)
def test_late_change_refuses_what_is_no_trend(shape, steps):
    with pytest.raises(ValueError, match="ascending steps"):
        late_change(np.ones(shape), steps)


def test_scores_must_be_finite_and_there():
    with pytest.raises(InputError, match="row 4 is nan"):
        late_change([[0.5, 1, 0], [0, np.nan, 1]], [1, 2, 3])
