"""Several hypotheses at once: adjusted p values, and intervals that go with them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from evalkit.errors import InputError, SpecError
from evalkit.stats.multiple import Family, SharedItems, benjamini_hochberg, holm, max_t
from evalkit.stats.paired import paired_difference

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=10)  # statsmodels collects all garbage at each call
def test_holm_is_statsmodels(p, alpha):
    rejected, adjusted, *_ = multipletests(p, alpha=alpha, method="holm")
    ours = holm(p, alpha=alpha)
    assert ours.adjusted == pytest.approx(adjusted, abs=1e-12)
    assert all(a == b or abs(c - alpha) < 1e-12 for a, b, c in zip(ours.rejected, rejected, adjusted, strict=True))


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_benjamini_hochberg_is_statsmodels(p, alpha):
    rejected, adjusted, *_ = multipletests(p, alpha=alpha, method="fdr_bh")
    ours = benjamini_hochberg(p, alpha=alpha)
    assert ours.adjusted == pytest.approx(adjusted, abs=1e-12)
    assert all(a == b or abs(c - alpha) < 1e-12 for a, b, c in zip(ours.rejected, rejected, adjusted, strict=True))


@given(P_VALUES, st.randoms())
def test_the_order_of_hypotheses_changes_nothing(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    for method in (holm, benjamini_hochberg):
        assert method([p[i] for i in order]).adjusted == tuple(method(p).adjusted[i] for i in order)


def test_the_fifteen_p_values_of_benjamini_and_hochberg_give_four_rejections_and_three_by_bonferroni():
    # Section 3.2 of the paper of 1995: thrombolysis after a heart attack.
    p = [1, 4, 19, 95, 201, 278, 298, 344, 459, 3240, 4262, 5719, 6528, 7590, 10000]
    p = [one / 10000 for one in p]
    assert sum(benjamini_hochberg(p).rejected) == 4
    assert sum(holm(p).rejected) == 3
    assert benjamini_hochberg(p).interval_level == pytest.approx(1 - 4 * 0.05 / 15)
    assert holm(p).interval_level == pytest.approx(1 - 0.05 / 15)


@given(P_VALUES)
def test_intervals_of_the_rejected_leave_out_zero_exactly_where_benjamini_hochberg_rejects(p):
    found = benjamini_hochberg(p)
    if any(found.rejected):
        # The interval at a level leaves out zero exactly when p is at most one minus the level.
        outside = [one <= (1 - found.interval_level) * (1 + 1e-12) for one in p]
        assert all(
            a == b or abs(q - 0.05) < 1e-9 for a, b, q in zip(outside, found.rejected, found.adjusted, strict=True)
        )


def test_bonferroni_intervals_hold_all_at_once_and_holms_own_steps_do_not():
    rng = np.random.default_rng(1)
    level = holm([0.5] * 10).interval_level
    z = rng.normal(size=(20000, 10))  # errors of ten estimates whose true values are far from zero
    bonferroni = np.mean((np.abs(z) < scipy_stats.norm.ppf((1 + level) / 2)).all(axis=1))
    steps = scipy_stats.norm.ppf(1 - 0.025 / np.arange(10, 0, -1))  # which step a hypothesis has, its effect decides
    assert bonferroni == pytest.approx(0.95, abs=0.006)
    assert np.mean((np.abs(z) < steps).all(axis=1)) < 0.90


@pytest.mark.parametrize("method", [holm, benjamini_hochberg])
def test_p_values_outside_zero_to_one_are_refused_with_their_row(method):
    with pytest.raises(InputError, match=r"row 1 is 1.5"):
        method([0.5, 1.5])
    with pytest.raises(InputError, match="row 0 is nan"):
        method([float("nan")])
    with pytest.raises(SpecError, match="alpha"):
        method([0.5], alpha=5)


def test_a_family_goes_through_json_and_says_its_size():
    found = holm([0.01, 0.04])
    assert Family.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert "family of 2 hypotheses" in found.explain()
    assert list(found.to_frame().p_adjusted) == pytest.approx([0.02, 0.04])


def brute_force(values, codes):
    """All sign flips of units, each with t by the function for one column."""
    units = sorted(set(codes))

    def t_of(flipped):
        found = []
        for column in range(values.shape[1]):
            has = ~np.isnan(values[:, column])
            d = flipped[has, column]
            one = paired_difference(np.zeros(len(d)), d, cluster=[codes[i] for i in np.flatnonzero(has)])
            found.append(abs(one.estimate) / one.standard_error)
        return np.array(found)

    observed = t_of(values)
    all_t = np.array(
        [
            t_of(values * np.array([signs[units.index(c)] for c in codes])[:, None])
            for signs in itertools.product([1, -1], repeat=len(units))
        ]
    )
    order = np.argsort(-observed)
    adjusted, worst = np.empty(len(observed)), 0.0
    for place, column in enumerate(order):
        maxima = all_t[:, order[place:]].max(axis=1)
        worst = max(worst, np.mean(maxima >= observed[column] - 1e-9))
        adjusted[column] = worst
    return observed, np.mean(all_t >= observed - 1e-9, axis=0), adjusted, all_t.max(axis=1)


@pytest.mark.parametrize("clustered", [False, True])
def test_max_t_is_brute_force_over_all_flips(clustered):
    rng = np.random.default_rng(2)
    codes = [0, 0, 1, 2, 3, 3, 4, 5, 6] if clustered else list(range(9))
    values = rng.normal(0.5, 1, size=(9, 3)) + rng.normal(size=(9, 1))
    values[0, 1] = values[4, 2] = np.nan
    found = max_t(values, cluster=codes, confidence_level=0.9)
    t, p, adjusted, maxima = brute_force(values, codes)
    assert np.abs(found.t) == pytest.approx(t)
    assert found.p_values == pytest.approx(p)
    assert found.adjusted == pytest.approx(adjusted)
    assert np.mean(maxima > found.critical + 1e-9) <= 0.1 < np.mean(maxima >= found.critical - 1e-9)
    assert found.resampling_seed is None
    assert found.monte_carlo_error == (0, 0, 0)


def test_one_column_of_right_and_wrong_is_the_exact_mcnemar_test():
    # With one column and equal magnitudes, |t| rises with |b - c|.
    d = [1] * 9 + [-1] * 3 + [0] * 3
    found = max_t(np.array(d, float)[:, None])
    assert found.adjusted[0] == pytest.approx(scipy_stats.binomtest(3, 12).pvalue)


def test_random_flips_agree_with_all_flips_within_monte_carlo_error():
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 1, size=(15, 2))
    exact = max_t(values)
    # A sixteenth unit without any weight makes the same flips random.
    random = max_t(np.vstack([values, [[np.nan, np.nan]]]), n_resamples=20000, seed=5)
    assert random.resampling_seed == 5
    for p, q, error in zip(exact.adjusted, random.adjusted, random.monte_carlo_error, strict=True):
        assert abs(p - q) < 4 * error


def test_turning_all_signs_turns_the_estimates_and_keeps_the_p_values():
    values = np.random.default_rng(4).normal(0.3, 1, size=(40, 4))
    found, turned = max_t(values, n_resamples=999), max_t(-values, n_resamples=999)
    assert turned.estimates == pytest.approx(-np.array(found.estimates))
    assert turned.adjusted == pytest.approx(found.adjusted)
    assert turned.low == pytest.approx(-np.array(found.high))


def test_with_shared_items_max_t_rejects_more_than_bonferroni_and_no_more_than_it_says():
    rng = np.random.default_rng(5)
    false_any = missed_any = 0
    criticals = []
    for _ in range(400):
        noise = rng.normal(size=(60, 1)) * 0.95 + rng.normal(size=(60, 5)) * 0.3
        truth = np.array([0, 0, 0, 0.4, 1.0])
        found = max_t(noise + truth, n_resamples=199, seed=int(rng.integers(1 << 30)))
        false_any += any(p <= 0.05 for p in found.adjusted[:3])
        missed_any += not all(a <= x <= b for a, x, b in zip(found.low, truth, found.high, strict=True))
        criticals.append(found.critical)
    assert false_any / 400 <= 0.05 + 3 * 0.011
    assert missed_any / 400 == pytest.approx(0.05, abs=3 * 0.011)
    assert np.mean(criticals) < scipy_stats.t.ppf(1 - 0.025 / 5, 59)


def test_where_few_items_differ_the_intervals_of_right_and_wrong_still_hold():
    rng = np.random.default_rng(8)
    missed = n_runs = 0
    for seed in range(300):
        base = rng.random((20, 1))
        mixed = np.where(rng.random((20, 4)) < 0.7, base, rng.random((20, 4)))
        values = (mixed < 0.05).astype(float) - (mixed > 0.95)
        if (np.ptp(values, axis=0) > 0).all():
            found = max_t(values, n_resamples=199, seed=seed)
            missed += not all(low <= 0 <= high for low, high in zip(found.low, found.high, strict=True))
            n_runs += 1
    assert missed / n_runs <= 0.05


def test_columns_that_cannot_be_tested_are_refused_by_number():
    good = np.random.default_rng(6).normal(size=(30, 1))
    with pytest.raises(InputError, match=r"column 1 .*all units are equal"):
        max_t(np.hstack([good, np.ones((30, 1))]))
    with pytest.raises(InputError, match=r"column 0 .*2 independent units"):
        max_t(good, cluster=["a", "b"] * 15)
    with pytest.raises(InputError, match=r"column 0 .*all units are equal"):
        max_t(np.tile([1.0, -1.0], 10)[:, None], cluster=np.repeat(np.arange(10), 2))
    with pytest.raises(InputError, match="shape"):
        max_t([1.0, 2.0])


def test_shared_items_go_through_json_and_explain_themselves():
    found = max_t(np.random.default_rng(7).normal(size=(8, 2)))
    assert SharedItems.from_json(found.to_json()) == found
    assert "items as independent" in found.explain()
    assert len(found.to_frame()) == 2
    few = max_t(np.random.default_rng(7).normal(size=(5, 2)))
    assert "nothing can be significant" in few.warnings[0]
