"""Discordant items: McNemar, Bonett-Price, Tango and the odds of a win, against enumeration and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from evalkit.errors import InputError, SpecError
from evalkit.stats.discordance import (
    discordant_counts,
    discordant_p_value,
    mcnemar,
    odds_ratio,
    proportion_difference,
    win_share,
)


@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_mcnemar_is_statsmodels(b, c):
    expected = statsmodels_mcnemar([[5, b], [c, 5]], exact=True).pvalue if b + c else 1.0
    assert discordant_p_value(b, c, method="exact") == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 12), st.integers(0, 12))
def test_mid_p_is_the_sum_over_all_outcomes(b, c):
    total = b + c
    assume(total > 0)
    counts = [scipy_stats.binom.pmf(k, total, 0.5) for k in range(total + 1)]
    observed = counts[b]
    both_tails = 2 * (sum(counts[: min(b, c)]) + observed / 2)
    # With b = c the two tails share the middle, which counts once.
    expected = both_tails - (observed / 2 if b == c else 0)
    assert discordant_p_value(b, c) == pytest.approx(expected, rel=1e-9)


def test_the_size_of_mid_p_is_near_its_level_and_that_of_exact_below_it():
    """Size by enumeration: 100 items, each discordant with probability 0.1."""
    size = {"mid-p": 0.0, "exact": 0.0}
    for total in range(1, 101):
        weight = scipy_stats.binom.pmf(total, 100, 0.1)
        for b in range(total + 1):
            for method in size:
                if discordant_p_value(b, total - b, method=method) <= 0.05:
                    size[method] += weight * scipy_stats.binom.pmf(b, total, 0.5)
    assert size["exact"] == pytest.approx(0.022, abs=0.001)
    assert size["mid-p"] == pytest.approx(0.041, abs=0.001)


def test_mcnemar_refuses_what_is_not_binary_and_warns_of_clusters():
    with pytest.raises(InputError, match="0 and 1"):
        mcnemar([0.5], [1])
    assert mcnemar([0, 1], [1, 1], cluster=["x", "x"]).warnings
    assert not mcnemar([0, 1], [1, 1], cluster=["x", "y"]).warnings


# Bentur et al. (2009): airway hyper-responsiveness before and after a stem cell transplant, 21 children, 1 and 7
# discordant; intervals and p values as printed by Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850.
AIRWAYS = (1, 7, 21)


@pytest.mark.parametrize(("method", "ends"), [("bonett-price", (0.013, 0.508)), ("tango", (0.026, 0.517))])
def test_the_published_example_has_the_published_interval(method, ends):
    found = proportion_difference(*AIRWAYS, method=method)
    assert (found.low, found.high) == pytest.approx(ends, abs=5e-4)
    assert found.estimate == pytest.approx(6 / 21)


def test_the_published_example_has_the_published_p_values():
    assert discordant_p_value(1, 7, method="exact") == pytest.approx(0.070, abs=5e-4)
    assert discordant_p_value(1, 7) == pytest.approx(0.039, abs=5e-4)


def score_statistic(b, c, n, delta):
    """The score statistic of a difference, with the restricted maximum of the trinomial likelihood found by search."""

    def loss(share):
        logs = [(b, share), (c, share + delta), (n - b - c, 1 - 2 * share - delta)]
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in logs if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    share = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (c - b - n * delta) / math.sqrt(n * (2 * share + delta - delta**2))


@pytest.mark.parametrize(("b", "c", "n"), [(1, 7, 21), (0, 3, 20), (5, 5, 40), (0, 12, 30), (40, 60, 500)])
def test_tangos_ends_are_where_the_score_test_just_rejects(b, c, n):
    found = proportion_difference(b, c, n, method="tango")
    for end, sign in ((found.low, 1), (found.high, -1)):
        assert score_statistic(b, c, n, end) == pytest.approx(sign * scipy_stats.norm.ppf(0.975), abs=1e-3)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60), st.sampled_from(["bonett-price", "tango"]))
def test_intervals_of_a_difference_are_wide_hold_the_estimate_and_turn_with_the_models(b, c, more, method):
    found = proportion_difference(b, c, b + c + more, method=method)
    turned = proportion_difference(c, b, b + c + more, method=method)
    assert -1 <= found.low < found.high <= 1
    assert found.low <= found.estimate <= found.high
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "p_a", "p_b", "phi", "covered"), [(30, 0.90, 0.93, 0.3, 0.9935), (30, 0.6, 0.7, 0.3, 0.9625)]
)
def test_bonett_and_price_cover_by_enumeration(n, p_a, p_b, phi, covered):
    both = p_a * p_b + phi * math.sqrt(p_a * (1 - p_a) * p_b * (1 - p_b))
    shares = [p_a - both, p_b - both]
    counts = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    chances = scipy_stats.multinomial.pmf([[b, c, n - b - c] for b, c in counts], n, [*shares, 1 - sum(shares)])
    found = [proportion_difference(b, c, n) for b, c in counts]
    total = sum(p for p, one in zip(chances, found, strict=True) if one.low <= p_b - p_a <= one.high)
    assert total == pytest.approx(covered, abs=0.001)


def test_the_odds_of_a_win_are_those_of_wilsons_share():
    share, odds = win_share(30, 50, 200), odds_ratio(30, 50, 200)
    assert (share.low, share.high) == pytest.approx(proportion_confint(50, 80, method="wilson"))
    assert odds.estimate == pytest.approx(50 / 30)
    assert odds.high == pytest.approx(share.high / (1 - share.high))
    never = odds_ratio(0, 12, 50)
    assert never.estimate == math.inf
    assert type(never).from_json(never.to_json()) == never
    silent = win_share(0, 0, 20)
    assert (silent.low, silent.high) == (0, 1)
    assert silent.warnings


@pytest.mark.parametrize("counts", [(-1, 2, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(InputError, match="discordant"):
        proportion_difference(*counts)


def test_unknown_methods_are_refused():
    with pytest.raises(SpecError, match="wald"):
        proportion_difference(1, 2, 5, method="wald")
    with pytest.raises(SpecError, match="corrected"):
        discordant_p_value(1, 2, method="corrected")


def test_scores_are_counted_by_who_alone_is_right():
    assert discordant_counts(np.array([1, 1, 0, 0]), [0, 1, 1, 0]) == (1, 1, 4)
    with pytest.raises(InputError, match="length"):
        discordant_counts([1], [1, 0])
