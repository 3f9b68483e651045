"""Several tasks together: the mean of differences and the summed McNemar table."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evalkit.stats.aggregate import macro_difference, stratified_mcnemar
from evalkit.stats.paired import discordant_p_value, mcnemar, paired_difference


def estimate(n, seed, shift=0.1):
    rng = np.random.default_rng(seed)
    return paired_difference(np.zeros(n), rng.normal(shift, 1 + seed % 3, size=n))


def test_one_task_is_itself():
    one = estimate(20, 1)
    assert macro_difference([one]) is one


def test_the_error_of_the_mean_adds_variances_and_two_equal_tasks_are_welch():
    one, other = estimate(20, 1), estimate(40, 2)
    both = macro_difference([one, other])
    assert both.estimate == pytest.approx((one.estimate + other.estimate) / 2)
    assert both.standard_error == pytest.approx(np.hypot(one.standard_error, other.standard_error) / 2)
    # The same variances and sizes in Welch's test have Satterthwaite's degrees of freedom.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=20), rng.normal(size=40)
    x = (x - x.mean()) / x.std(ddof=1) * one.standard_error * np.sqrt(20)
    y = (y - y.mean()) / y.std(ddof=1) * other.standard_error * np.sqrt(40)
    assert both.df == pytest.approx(scipy_stats.ttest_ind(x, y, equal_var=False).df)


def test_the_interval_of_the_mean_of_three_tasks_covers():
    rng = np.random.default_rng(3)
    n_runs, covered = 2000, 0
    for _ in range(n_runs):
        parts = [paired_difference(np.zeros(n), rng.normal(d, s, n)) for n, d, s in ((15, 0, 1), (30, 1, 2), (8, 2, 1))]
        found = macro_difference(parts)
        covered += found.low <= 1 <= found.high
    assert covered / n_runs == pytest.approx(0.95, abs=0.0146)


def test_a_task_without_an_interval_leaves_none_for_the_mean_unless_its_differences_are_all_equal():
    good = estimate(30, 4)
    too_few = paired_difference([0, 1, 0, 1], [1, 1, 0, 0], cluster=["a", "a", "b", "b"])
    assert macro_difference([good, too_few]).low is None
    same = paired_difference([0, 1, 1], [0, 1, 1])
    with_same = macro_difference([good, same])
    assert with_same.low is not None
    assert any("equal" in warning for warning in with_same.warnings)


def test_strata_add_up():
    one, other = mcnemar([0, 0, 1], [1, 1, 1]), mcnemar([1, 0], [0, 1])
    both = stratified_mcnemar([one, other])
    assert (both.b, both.c, both.n) == (1, 3, 5)
    assert both.p_value == discordant_p_value(1, 3)


def test_nothing_is_refused():
    for function in (macro_difference, stratified_mcnemar):
        with pytest.raises(ValueError, match="no "):
            function([])
