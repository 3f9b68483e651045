"""Scores by side, the gain and the choice of a threshold: against statsmodels, scipy, brute force and known truth."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from evalkit.stats.proportions import proportion
from evalkit.stats.split import ScoreSplit, ThresholdChoice, choose_threshold, score_split


def answers(n_right, n):
    return [1.0] * n_right + [0.0] * (n - n_right)


def brute_force_curve(scores, contamination, min_units):
    """Every split in steps of 0.01, by the definitions: (threshold, n_clean, gain, z)."""
    scores, contamination = np.asarray(scores), np.asarray(contamination)
    seen, found = set(), []
    for step in range(101):
        flagged = contamination >= step / 100 - 1e-12
        if tuple(flagged) in seen or min(flagged.sum(), (~flagged).sum()) < min_units:
            continue
        seen.add(tuple(flagged))
        gain = scores.mean() - scores[~flagged].mean()
        z = gain / (max(scores.std(), 1e-300) / np.sqrt((~flagged).sum()))
        found.append(((~flagged).sum(), gain, z))
    return found


# The split


@given(st.integers(1, 80), st.integers(1, 80), st.data(), st.sampled_from([0.8, 0.95]))
def test_right_and_wrong_answers_get_wilson_and_newcombe_intervals(n_flagged, n_clean, data, level):
    right = data.draw(st.integers(0, n_flagged)), data.draw(st.integers(0, n_clean))
    scores = answers(right[0], n_flagged) + answers(right[1], n_clean)
    found = score_split(scores, [True] * n_flagged + [False] * n_clean, confidence_level=level)
    for one, n_right, n in ((found.flagged, right[0], n_flagged), (found.clean, right[1], n_clean)):
        expected = proportion(n_right, n, confidence_level=level)
        assert (one.low, one.high) == (expected.low, expected.high)
    if min(n_flagged, n_clean) == 1:
        assert found.gain.low is None
        return
    expected = confint_proportions_2indep(right[0], n_flagged, right[1], n_clean, method="newcomb", alpha=1 - level)
    assert (found.difference.low, found.difference.high) == pytest.approx(expected, abs=1e-9)
    assert found.gain.estimate == pytest.approx(np.mean(scores) - found.clean.estimate, abs=1e-12)
    assert found.gain.low <= found.gain.estimate <= found.gain.high


def test_graded_scores_get_welchs_interval():
    rng = np.random.default_rng(1)
    flagged, clean = rng.normal(0.7, 0.1, 23), rng.normal(0.5, 0.3, 61)
    found = score_split([*flagged, *clean], [True] * 23 + [False] * 61, confidence_level=0.9)
    twin = scipy_stats.ttest_ind(flagged, clean, equal_var=False)
    expected = twin.confidence_interval(0.9)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high), rel=1e-10)
    assert (found.difference.df, found.difference.method) == (pytest.approx(twin.df), "Welch t")


def cr2_error_and_degrees(scores, flagged, groups):
    """CR2 error of the slope of score on side, and its degrees of freedom, by the matrices of their definitions."""
    n = len(scores)
    X = np.stack([np.ones(n), flagged], axis=1)
    bread = np.linalg.inv(X.T @ X)
    rest, square, parts = np.eye(n) - X @ bread @ X.T, 0.0, []
    for group in np.unique(groups):
        mine = groups == group
        root = linalg.sqrtm(np.linalg.pinv(rest[np.ix_(mine, mine)])).real
        part = rest[:, mine] @ root @ X[mine] @ bread[:, 1]
        square += (part @ scores) ** 2
        parts.append(part)
    W = np.array(parts) @ np.array(parts).T
    return float(np.sqrt(square)), float(np.trace(W) ** 2 / np.sum(W**2))


def test_items_that_share_a_source_get_the_cr2_error_also_where_sources_lie_on_both_sides():
    rng = np.random.default_rng(2)
    groups = rng.integers(18, size=150)
    flagged = rng.random(150) < np.where(groups < 6, 0.9, np.where(groups < 12, 0.0, 0.4))
    scores = rng.normal(size=18)[groups] + rng.normal(size=150) + 0.5 * flagged
    found = score_split(scores, flagged, cluster=groups.tolist())
    expected = cr2_error_and_degrees(scores, flagged, groups)
    assert (found.difference.standard_error, found.difference.df) == pytest.approx(expected, rel=1e-8)
    assert (found.gain.unit, found.gain.n, found.gain.n_items) == ("clusters", 18, 150)
    half = scipy_stats.t.ppf(0.975, expected[1]) * expected[0]
    assert found.difference.high - found.difference.estimate == pytest.approx(half)


@pytest.mark.parametrize("clustered", [False, True])
def test_the_error_of_the_gain_is_that_of_a_bootstrap_of_either_side(clustered):
    """All items are the clean and the flagged ones: both means move with the clean side."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(120), 4) if clustered else np.arange(400)
    flagged = (rng.random(groups.max() + 1) < 0.35)[groups]
    scores = 0.4 * flagged + rng.normal(size=len(groups))
    if clustered:
        scores += rng.normal(size=120)[groups]
    found = score_split(scores, flagged, cluster=groups.tolist())
    units = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    sides = [[one for one in units if flagged[one[0]] == side] for side in (True, False)]
    gains, n_flagged = [], flagged.sum()
    for _ in range(3000):
        dirty, clean = (
            scores[np.concatenate([side[u] for u in rng.integers(len(side), size=len(side))])] for side in sides
        )
        gains.append(
            np.average([dirty.mean(), clean.mean()], weights=[n_flagged, len(scores) - n_flagged]) - clean.mean()
        )
    # 3000 resamples know an error to 1.3%; the bootstrap's own is smaller by 1 / (2 n) of a side.
    assert found.gain.standard_error == pytest.approx(np.std(gains), rel=0.05)


@pytest.mark.parametrize(
    ("share", "right_flagged", "right_clean"), [(0.15, 0.9, 0.5), (0.5, 0.6, 0.6), (0.1, 1.0, 0.5)]
)
def test_the_interval_of_the_gain_covers_the_true_gain(share, right_flagged, right_clean):
    rng, covered = np.random.default_rng(4), []
    for _ in range(1000):
        flagged = rng.random(150) < share
        scores = (rng.random(150) < np.where(flagged, right_flagged, right_clean)).astype(float)
        gain = score_split(scores, flagged).gain
        covered.append(gain.low <= flagged.mean() * (right_flagged - right_clean) <= gain.high)
    assert 0.93 <= np.mean(covered) <= 0.985  # 95%, give or take 0.7; where all flagged are right it covers more


def test_the_interval_of_the_gain_covers_it_also_when_passages_are_shared():
    """Per-item scores vary by passage (intraclass correlation a half); as items they would cover far less."""
    rng, covered, as_items = np.random.default_rng(5), [], []
    groups = np.repeat(np.arange(40), 5)
    for _ in range(400):
        flagged = (np.arange(40) < 16)[groups]
        scores = rng.normal(size=40)[groups] + rng.normal(size=200) + flagged
        for cluster, found in ((groups.tolist(), covered), (None, as_items)):
            gain = score_split(scores, flagged, cluster=cluster).gain
            found.append(gain.low <= 0.4 <= gain.high)
    assert 0.92 <= np.mean(covered) <= 0.98
    assert np.mean(as_items) < 0.85


def test_when_all_flagged_items_are_right_the_interval_still_has_a_width():
    found = score_split(answers(12, 12) + answers(30, 60), [True] * 12 + [False] * 60)
    assert found.difference.low < 0.5 - 0.1 and found.difference.high < 1


def test_sides_that_are_empty_or_too_small_get_no_interval():
    whole = score_split([0.0, 1.0, 1.0], [False] * 3)
    assert (whole.flagged, whole.difference, whole.gain) == (None, None, None)
    assert whole.clean.estimate == whole.everything.estimate
    single = score_split([0.0, 1.0, 1.0], [True, False, False])
    assert single.gain.estimate == pytest.approx(2 / 3 - 1) and single.gain.low is None
    assert single.warnings == ("a side has one item, which gives no interval",)
    few = score_split([0.1, 0.2, 0.3, 0.4] * 5, [True, False] * 10, cluster=[1, 1, 2, 2, 3] * 4)
    assert few.gain.low is None and "3 clusters" in few.warnings[0]
    for high, low in ((0.5, 0.25), (0.3, 0.1), (2 / 3 - 1 / 3, 1 - 2 / 3)):
        level = score_split([high] * 10 + [low] * 23, [True] * 10 + [False] * 23)
        assert level.gain.estimate == pytest.approx((high - low) * 10 / 33)
        assert level.gain.low is None and "equal" in level.warnings[0]
    same_step = score_split(
        [0.1 * n + 0.25 * (k == 0) for n in range(12) for k in range(2)], [True, False] * 12,
        cluster=[n // 2 for n in range(24)],
    )  # fmt: skip
    assert same_step.gain.low is None and "by the same in every cluster" in same_step.warnings[0]


def test_flagged_items_that_are_all_right_do_not_narrow_the_interval():
    scores, flagged = answers(10, 10) + answers(261, 290), [True] * 10 + [False] * 290
    alone = score_split(scores, flagged).gain
    one_pair = score_split(scores, flagged, cluster=[*range(299), 298]).gain
    assert (one_pair.low, one_pair.high) == pytest.approx((alone.low, alone.high), abs=2e-4)
    graded = score_split([*scores[:10], *np.linspace(0.5, 1, 290)], flagged).gain
    assert graded.low is None and "flagged items are all equal" in graded.warnings[0]
    # Ten passages of four right items each are ten, not forty.
    groups = np.repeat(np.arange(30), 4)
    shared = score_split(answers(40, 40) + answers(40, 80), groups < 10, cluster=groups.tolist()).difference
    assert shared.method == "Newcombe hybrid score, effective sizes"
    low = proportion_confint(10, 10, method="wilson")[0]
    assert shared.low < 0.5 - (1 - low)


def test_differences_of_right_and_wrong_are_no_proportions_even_where_one_side_has_none_below_zero():
    scores, flagged = [1.0] * 9 + [0.0] * 21 + [1.0, -1.0, 0.0] * 10, [True] * 30 + [False] * 30
    found = score_split(scores, flagged)
    assert found.flagged.method == found.clean.method == "the wider of t and the studentised bootstrap"
    assert found.difference.method == "Welch t"
    upwards = score_split(answers(9, 60), flagged, is_binary=False)
    assert (upwards.clean.low, upwards.gain.method) == (None, "Welch t, times the share flagged")
    (one,) = choose_threshold(answers(9, 60), flagged, is_binary=False, n_resamples=60).curve
    assert (one.low, one.high) == (upwards.gain.low, upwards.gain.high)


def test_where_lower_is_better_the_gain_is_turned_and_nothing_else():
    scores, flagged = np.random.default_rng(5).normal(2, 1, 60), [True] * 20 + [False] * 40
    higher, lower = (score_split(scores, flagged, higher_is_better=one) for one in (True, False))
    assert (lower.gain.estimate, lower.gain.low, lower.gain.high) == (
        -higher.gain.estimate,
        -higher.gain.high,
        -higher.gain.low,
    )
    assert (lower.difference, lower.clean) == (higher.difference, higher.clean)


# The threshold


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_the_curve_is_that_of_brute_force(n, seed, min_units):
    rng = np.random.default_rng(seed)
    scores, contamination = rng.integers(2, size=n).astype(float), rng.integers(12, size=n) / 11
    found = choose_threshold(scores, contamination, min_units=min_units, n_resamples=50)
    expected = brute_force_curve(scores, contamination, min_units)
    if np.ptp(scores) == 0:
        assert found.curve == () and "equal" in found.warnings[0]
        return
    assert [one.n_clean for one in found.curve] == [n_clean for n_clean, _, _ in expected]
    assert [one.gain for one in found.curve] == pytest.approx([gain for _, gain, _ in expected], abs=1e-12)
    assert [one.z for one in found.curve] == pytest.approx([z for _, _, z in expected], abs=1e-9)
    for one in found.curve:
        flagged = contamination >= one.threshold - 1e-12
        assert one.n_flagged == flagged.sum()
        assert one.score_flagged == pytest.approx(scores[flagged].mean())
        assert one.score_clean == pytest.approx(scores[~flagged].mean())


def test_z_is_the_gain_over_the_error_of_a_mean_of_the_clean_items():
    """Of 1000 items 60% right, of the 700 clean ones 55%: 0.05 / (sqrt(0.24) / sqrt(700)) = 2.70."""
    scores = answers(385, 700) + answers(215, 300)
    found = choose_threshold(scores, [0.0] * 700 + [1.0] * 300, criterion="z", n_resamples=100)
    assert (found.chosen.gain, found.chosen.z) == (pytest.approx(0.05), pytest.approx(2.70, abs=0.005))


def test_of_two_thresholds_gain_takes_the_larger_gain_and_z_the_larger_z():
    # From 0.2 on, half of 2000 items; from 0.1 on, all but 100, which are far worse.
    contamination = [0.0] * 100 + [0.1] * 900 + [0.2] * 1000
    scores = answers(20, 100) + answers(450, 900) + answers(750, 1000)
    by_gain, by_z = (choose_threshold(scores, contamination, criterion=one, n_resamples=200) for one in ("gain", "z"))
    gains, z = [one.gain for one in by_gain.curve], [one.z for one in by_gain.curve]
    assert (by_gain.chosen.threshold, by_z.chosen.threshold) == (0.1, 0.2)
    assert gains[0] > gains[1] and z[0] < z[1]


def test_a_threshold_without_a_significant_gain_is_not_chosen_whatever_its_z():
    """25 leaked items of 1000: their z is small, as that of any few items is, but they are no accident."""
    rng = np.random.default_rng(6)
    contamination = np.where(np.arange(1000) < 25, 1.0, rng.integers(5, size=1000) / 10)
    scores = np.where(np.arange(1000) < 25, np.arange(1000) < 24, rng.random(1000) < 0.5).astype(float)
    found = choose_threshold(scores, contamination, n_resamples=400)
    assert (found.chosen.threshold, found.chosen.n_flagged) == (1.0, 25)
    assert found.chosen.z < 1 and found.chosen.p_value < 0.01


def test_the_p_value_is_the_share_of_permutations_with_so_strong_a_gain_anywhere():
    rng = np.random.default_rng(6)
    contamination = rng.random(80).round(1)
    scores = (rng.random(80) < 0.4 + 0.25 * (contamination > 0.6)).astype(float)
    found = choose_threshold(scores, contamination, n_resamples=4000, resampling_seed=1)
    splits = [contamination >= one.threshold - 1e-12 for one in found.curve]
    errors = [np.sqrt(scores.var(ddof=1) * (1 / (~flagged).sum() - 1 / 80)) for flagged in splits]

    def strengths(values):
        return [(values.mean() - values[~f].mean()) / e for f, e in zip(splits, errors, strict=True)]

    largest = np.array([max(strengths(rng.permutation(scores))) for _ in range(4000)])
    for one, strength in zip(found.curve, strengths(scores), strict=True):
        share = np.mean(largest >= strength - 1e-9)
        assert one.p_value == pytest.approx(share, abs=4 * np.sqrt(2 * 0.25 / 4000) * 2 * np.sqrt(share * (1 - share)))
    assert found.p_value == min(one.p_value for one in found.curve)


def null_data(rng, n):
    """Scores that contamination tells nothing about."""
    return (rng.random(n) < 0.6).astype(float), rng.integers(11, size=n) / 10 * (rng.random(n) < 0.7)


def test_without_a_relation_a_gain_is_called_significant_no_more_often_than_it_says():
    rng, p_values, naive = np.random.default_rng(7), [], []
    for _ in range(300):
        scores, contamination = null_data(rng, 120)
        found = choose_threshold(scores, contamination, n_resamples=99, confidence_level=0.9)
        p_values.append(found.p_value)
        assert (found.chosen is None) == (found.p_value > 0.1)
        naive.append(any(one.low is not None and one.low > 0 for one in found.curve))
    # The size is 10%, give or take 1.7; p values are uniform.
    assert 0.05 <= np.mean(np.array(p_values) <= 0.1) <= 0.15
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)
    # One-sided, an interval of 90% errs in 5% of the cases; somewhere along the curve, more than twice as often.
    assert np.mean(naive) > 0.1


def test_without_a_relation_clustered_items_are_called_no_more_often_either():
    """Scores and contamination belong to the cluster: permuting items would take 40 passages for 200 items."""
    rng, clustered, as_items = np.random.default_rng(8), [], []
    groups = np.repeat(np.arange(40), 5)
    for _ in range(150):
        scores = (rng.random(200) < rng.random(40)[groups]).astype(float)
        contamination = (rng.integers(11, size=40) / 10)[groups]
        for cluster, found in ((groups.tolist(), clustered), (None, as_items)):
            choice = choose_threshold(scores, contamination, cluster=cluster, n_resamples=79)
            found.append(choice.p_value <= 0.05)
    assert np.mean(clustered) <= 0.1  # 5%, give or take 1.8
    assert np.mean(as_items) > 0.2


@pytest.mark.parametrize(
    ("n_clusters", "size", "n_flagged", "right"), [(299, 1, 20, 0.95), (150, 2, 15, 0.95), (75, 4, 10, 0.95)]
)
def test_a_good_models_skewed_scores_make_no_leak_of_few_flagged_clusters(n_clusters, size, n_flagged, right):
    """All flagged ones are often right by chance. In the first case only the last two items share a source."""
    rng, p_values = np.random.default_rng(13), []
    groups = np.repeat(np.arange(n_clusters), size)
    groups = groups if size > 1 else np.append(groups, n_clusters - 1)
    for _ in range(100):
        scores = (rng.random(len(groups)) < right).astype(float)
        if size > 1:  # half of the clusters answer as one
            scores = np.where(rng.random(n_clusters)[groups] < 0.5, scores[groups * size], scores)
        found = choose_threshold(scores, (groups < n_flagged).astype(float), cluster=groups.tolist(), n_resamples=79)
        p_values.append(1.0 if found.p_value is None else found.p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.1  # 5%, give or take 2.2


def test_clusters_change_their_scores_with_those_of_their_size_as_brute_force_says():
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 4, 5])
    scores, flagged = np.array([1.0, 1, 0, 1, 0, 0, 1, 0, 0]), groups <= 0
    flagged[6] = True
    (one,) = choose_threshold(
        scores, flagged.astype(float), cluster=groups.tolist(), min_units=1, n_resamples=4000
    ).curve
    gains = []
    for pairs in itertools.permutations([(0, 1), (2, 3), (4, 5)]):
        for singles in itertools.permutations([6, 7, 8]):
            dealt = scores[[*itertools.chain(*pairs), *singles]]
            gains.append(dealt.mean() - dealt[~flagged].mean())
    assert one.p_value == pytest.approx(np.mean(np.array(gains) >= one.gain - 1e-9), abs=4 * np.sqrt(0.25 / 4000))


def test_clusters_that_cannot_change_scores_are_warned_of():
    sizes = range(1, 25)
    groups = np.repeat(np.arange(24), sizes)
    scores = (np.random.default_rng(15).random(len(groups)) < 0.5).astype(float)
    found = choose_threshold(scores, (groups % 2).astype(float), cluster=groups.tolist(), n_resamples=60)
    assert found.p_value == 1.0 and found.chosen is None
    assert any("little power" in one for one in found.warnings)


def leaky_data(rng, n, effect=0.25):
    """70% contaminated, from 0 to 0.9; from 0.5 on (35%) the chance of a right answer rises."""
    contamination = rng.integers(10, size=n) / 10 * (rng.random(n) < 0.7)
    return (rng.random(n) < 0.5 + effect * (contamination >= 0.5)).astype(float), contamination


def true_gain(threshold, effect=0.25):
    """Of `leaky_data`: mean score of all items less that of the items below the threshold."""
    helped_below = 0.7 * max(threshold - 0.5, 0.0) / (0.3 + 0.7 * threshold)
    return effect * (0.35 - helped_below)


@pytest.mark.parametrize("criterion", ["z", "gain"])
def test_the_interval_at_the_chosen_threshold_covers_the_gain_there_and_a_fixed_one_less(criterion):
    rng, band, fixed, biases, optimism = np.random.default_rng(9), [], [], [], []
    for _ in range(250):
        found = choose_threshold(*leaky_data(rng, 200), criterion=criterion, n_resamples=100)
        if (one := found.chosen) is None:
            continue
        truth = true_gain(one.threshold)
        band.append(one.band_low <= truth <= one.band_high)
        fixed.append(one.low <= truth <= one.high)
        biases.append(one.gain - truth)
        optimism.append(found.optimism)
    assert len(band) > 200
    assert np.mean(band) >= 0.93
    assert np.mean(fixed) < np.mean(band) - 0.03
    # The chosen gain is too large, by what is said or up to twice as much.
    assert 0 < np.mean(optimism) < np.mean(biases) < 2 * np.mean(optimism)


def test_of_weak_gains_that_are_called_significant_the_interval_covers_fewer():
    rng, covered = np.random.default_rng(16), []
    for _ in range(400):
        scores, contamination = null_data(rng, 100)
        found = choose_threshold(scores, contamination, n_resamples=79)
        if (one := found.chosen) is not None:
            covered.append(one.band_low <= 0 <= one.band_high)
    assert len(covered) < 40  # one in twenty
    assert 0.2 < np.mean(covered) < 0.9


def test_a_strong_leak_is_found_at_its_threshold():
    scores, contamination = leaky_data(np.random.default_rng(10), 4000, effect=0.4)
    found = choose_threshold(scores, contamination, n_resamples=400)
    assert found.chosen.threshold == 0.5
    assert found.threshold_low <= 0.5 <= found.threshold_high and found.threshold_high - found.threshold_low <= 0.2
    assert (found.share_chosen, found.p_value) == (1.0, pytest.approx(1 / 401))
    assert found.chosen.band_low < found.chosen.low < found.chosen.gain < found.chosen.high < found.chosen.band_high


def test_a_loss_is_no_gain():
    scores, contamination = leaky_data(np.random.default_rng(11), 600, effect=-0.4)
    found = choose_threshold(scores, contamination, n_resamples=100)
    assert found.chosen is None and found.p_value > 0.5 and found.optimism is None
    turned = choose_threshold(scores, contamination, n_resamples=100, higher_is_better=False)
    assert turned.chosen.gain > 0.05 and turned.chosen.score_clean > turned.score
    assert turned.chosen.score_flagged < turned.score


def test_with_one_way_to_split_there_is_no_choice_to_pay_for():
    scores = answers(30, 40) + answers(80, 200)
    found = choose_threshold(scores, [1.0] * 40 + [0.0] * 200)
    fixed = score_split(scores, [True] * 40 + [False] * 200).gain
    (one,) = found.curve
    assert (one.threshold, one.low, one.high) == (1.0, pytest.approx(fixed.low), pytest.approx(fixed.high))
    assert one.band_high - one.band_low == pytest.approx(one.high - one.low, rel=0.08)
    assert found.optimism == pytest.approx(0, abs=0.002)
    # One split: the permutation test is Fisher's, up to the points counted by resampling.
    fisher = scipy_stats.fisher_exact([[30, 10], [80, 120]], alternative="greater").pvalue
    assert found.p_value == pytest.approx(fisher, abs=0.002)


def test_too_few_items_on_a_side_are_not_tried():
    found = choose_threshold(answers(30, 40), [0.9] * 9 + [0.0] * 31)
    assert found.curve == () and found.p_value is None
    assert found.warnings == ("no threshold leaves 10 items on either side",)
    assert str(found).startswith("no threshold could be tried")
    # 60 items of 6 clusters are six units, not sixty.
    grouped = choose_threshold(answers(30, 60), [0.0, 0.5] * 30, cluster=[n // 10 for n in range(60)])
    assert grouped.warnings == ("no threshold leaves 10 clusters on either side",)


def test_results_survive_json_and_frames():
    scores, contamination = leaky_data(np.random.default_rng(12), 300, effect=0.4)
    choice = choose_threshold(scores, contamination, n_resamples=60)
    assert ThresholdChoice.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice
    assert choice.to_frame().chosen.sum() == 1 and "95% interval" in str(choice)
    split = score_split(scores, contamination > 0.5)
    assert ScoreSplit.from_dict(json.loads(json.dumps(split.to_dict()))) == split
    assert split.to_frame().what.tolist() == ["everything", "clean", "flagged", "difference", "gain"]
    again = choose_threshold(scores, contamination, n_resamples=60)
    assert again == choice  # the seed is fixed


@pytest.mark.parametrize(
    ("scores", "marks", "options", "problem"),
    [
        ([], [], {}, "at least one"),
        ([1.0, np.nan], [0.0, 1.0], {}, "not finite"),
        ([1.0, 0.0], [0.0], {}, r"contaminations for"),
        ([1.0, 0.0], [0.0, 1.1], {}, "from 0 to 1"),
        ([1.0, 0.0], [0.0, np.nan], {}, "from 0 to 1"),
        ([1.0, 0.0], [0.0, 1.0], {"cluster": ["a"]}, "1 clusters for 2 items"),
        ([1.0, 0.0], [0.0, 1.0], {"n_resamples": 20}, "too few for the level"),
        ([1.0, 0.0], [0.0, 1.0], {"min_units": 0}, "0 units"),
        ([1.0, 0.0], [0.0, 1.0], {"cluster": ["a", None]}, "no cluster"),
        ([1.0, 0.0], [0.0, 1.0], {"cluster": [np.nan, 1.0]}, "no cluster"),
        ([1.0, 0.0], [0.0, 1.0], {"confidence_level": 1.5}, "no level"),
    ],
)
def test_what_cannot_be_computed_is_refused(scores, marks, options, problem):
    with pytest.raises(ValueError, match=problem):
        choose_threshold(scores, marks, **options)
    if problem == r"contaminations for":
        with pytest.raises(ValueError, match="marks for"):
            score_split(scores, [True])
    for mark in (np.nan, "no", 2):
        with pytest.raises(ValueError, match="neither true nor false"):
            score_split([1.0, 0.0], [mark, mark])
