"""Looking early: what holds at every look, shown by enumeration and by simulated optional stopping."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.sequential import (
    ConfidenceSequence,
    SequentialComparison,
    asymptotic_sequence,
    bounded_sequence,
    discordant_log_e,
    sequential_comparison,
)

COUNTS = st.integers(0, 500)


@given(COUNTS, COUNTS, st.floats(0.5, 50))
def test_the_e_value_is_two_to_the_discordant_items_times_a_ratio_of_beta_functions(b, c, prior):
    expected = (b + c) * math.log(2)
    for x, sign in ((prior + b, 1), (prior + c, 1), (2 * prior + b + c, -1), (prior, -1), (prior, -1), (2 * prior, 1)):
        expected += sign * math.lgamma(x)
    assert discordant_log_e(b, c, prior=prior) == pytest.approx(expected, abs=1e-8)


@given(COUNTS, COUNTS, st.floats(0.05, 0.95))
def test_the_e_value_is_a_fair_game(b, c, share):
    now, if_a, if_b = (discordant_log_e(*counts, share=share) for counts in ((b, c), (b + 1, c), (b, c + 1)))
    assert (1 - share) * np.exp(if_a - now) + share * np.exp(if_b - now) == pytest.approx(1, rel=1e-9)


@given(COUNTS, COUNTS)
def test_swapping_the_models_keeps_the_e_value(b, c):
    assert discordant_log_e(b, c) == pytest.approx(discordant_log_e(c, b), abs=1e-9)


@pytest.mark.parametrize("prior", [1.0, 10.0])
def test_the_chance_of_ever_rejecting_a_true_null_is_at_most_alpha_by_enumeration(prior):
    # Chances of all paths that have not been stopped, discordant item by discordant item.
    alive, stopped = {0: 1.0}, 0.0
    for total in range(1, 1001):
        now: dict[int, float] = {}
        for c, chance in alive.items():
            for step in (0, 1):
                now[c + step] = now.get(c + step, 0.0) + chance / 2
        c = np.array(list(now))
        reject = discordant_log_e(total - c, c, prior=prior) >= math.log(20)
        stopped += sum(chance for chance, out in zip(now.values(), reject, strict=True) if out)
        alive = {key: chance for (key, chance), out in zip(now.items(), reject, strict=True) if not out}
    assert 0.02 < stopped <= 0.05


def test_mcnemar_looked_at_after_every_item_rejects_far_too_often_and_the_e_process_does_not():
    rng = np.random.default_rng(1)
    n_runs, naive, honest = 400, 0, 0
    n = np.arange(1, 501)
    for _ in range(n_runs):
        c = np.cumsum(rng.random(500) < 0.5)
        z = (2 * c - n)[20:] / np.sqrt(n[20:])
        naive += (np.abs(z) > 1.96).any()
        honest += (discordant_log_e(n - c, c) >= math.log(20)).any()
    assert naive / n_runs > 0.25
    assert honest / n_runs <= 0.05


DRAWS = {
    "right or wrong, half": lambda rng, n: (rng.random(n) < 0.5).astype(float),
    "right or wrong, 95%": lambda rng, n: (rng.random(n) < 0.95).astype(float),
    "continuous": lambda rng, n: rng.beta(2, 5, size=n),
    "rare": lambda rng, n: (rng.random(n) < 0.02).astype(float),
}
MEANS = {"right or wrong, half": 0.5, "right or wrong, 95%": 0.95, "continuous": 2 / 7, "rare": 0.02}


@pytest.mark.parametrize("kind", DRAWS)
def test_a_confidence_sequence_covers_at_all_looks_at_once(kind):
    rng = np.random.default_rng(2)
    missed = sum(
        bounded_sequence(DRAWS[kind](rng, 250), confidence_level=0.9).first_without(MEANS[kind]) is not None
        for _ in range(100)
    )
    assert missed / 100 <= 0.1 + 3 * math.sqrt(0.09 / 100)


def brute_force(x, level):
    """Both ends after all values, by trying every candidate on a grid at every look."""
    bets, grid = np.geomspace(0.002, 0.9, 12), np.arange(1, 1000) / 1000
    capital = np.stack([np.cumsum(np.log1p(bet * (x[:, None] / grid - 1)), axis=0) for bet in bets])
    return (np.log(np.mean(np.exp(capital), axis=0)) >= math.log(2 / (1 - level))).any(axis=0)


def test_the_ends_are_those_of_brute_force_over_candidates():
    x = DRAWS["right or wrong, half"](np.random.default_rng(3), 80)
    found = bounded_sequence(x)
    grid = np.arange(1, 1000) / 1000
    assert (brute_force(x, 0.95) == (grid < found.low[-1])).mean() > 0.998
    assert (brute_force(1 - x, 0.95) == (grid < 1 - found.high[-1])).mean() > 0.998


@pytest.mark.parametrize("kind", ["right or wrong, half", "continuous"])
def test_an_interval_for_all_looks_is_wider_than_one_for_a_single_look_but_not_twice_as_wide(kind):
    x = DRAWS[kind](np.random.default_rng(4), 3000)
    found = bounded_sequence(x).after(3000)
    single = 2 * 1.96 * x.std() / math.sqrt(3000)
    assert 1 < (found.high - found.low) / single < 2


def test_an_interval_never_widens_and_scales_with_its_bounds():
    x = DRAWS["right or wrong, half"](np.random.default_rng(5), 200)
    found, scaled = bounded_sequence(x), bounded_sequence(20 * x - 10, bounds=(-10, 10))
    assert (np.diff(found.low) >= 0).all()
    assert (np.diff(found.high) <= 0).all()
    assert np.array(scaled.low) == pytest.approx(20 * np.array(found.low) - 10)
    assert scaled.estimates[-1] == pytest.approx(20 * x.mean() - 10)
    turned = bounded_sequence(1 - x)
    assert np.array(turned.low) == pytest.approx(1 - np.array(found.high))


def test_one_item_excludes_nothing_and_equal_items_do_not_give_certainty():
    assert bounded_sequence([1.0]).low[0] < 0.05
    equal = bounded_sequence(np.ones(200))
    assert 0.95 < equal.low[-1] < 1
    assert equal.high[-1] == 1


def test_items_in_an_order_that_drifts_empty_the_interval_and_it_is_said():
    drifting = np.concatenate([np.zeros(500), np.ones(2000)])
    found = bounded_sequence(drifting)
    assert "not in random order" in found.warnings[0]


def test_the_asymptotic_sequence_is_its_formula_and_covers_many_units():
    rng = np.random.default_rng(6)
    x = rng.normal(3, 2, size=1000)
    found = asymptotic_sequence(x)
    # Half the width at the last unit, for the r that makes it least.
    v = np.geomspace(0.01, 1000, 200_001)
    least = np.sqrt(2 * (v + 1) / (1000 * v) * np.log(np.sqrt(v + 1) / 0.05)).min() * x.std()
    assert found.after(1000).high - found.after(1000).low <= 2 * least * (1 + 1e-6)
    wide = asymptotic_sequence(x, tightest_at=10)
    assert wide.high[-1] - wide.low[-1] > found.high[-1] - found.low[-1]
    assert math.isinf(found.high[0])
    missed = sum(asymptotic_sequence(rng.exponential(1, size=600)).first_without(1.0) is not None for _ in range(300))
    assert missed / 300 <= 0.05 + 3 * 0.0126
    assert ConfidenceSequence.from_json(found.to_json()) == found


def pair(seed, n=3000, a=0.6, b=0.65):
    rng = np.random.default_rng(seed)
    return (rng.random(n) < a).astype(float), (rng.random(n) < b).astype(float)


def test_a_clear_difference_stops_the_comparison_early_and_later_items_do_not_change_it():
    a, b = pair(1, b=0.75)
    found = sequential_comparison(a, b)
    assert found.verdict == "better"
    assert found.stopped_at < 1000
    until = sequential_comparison(a[: found.stopped_at], b[: found.stopped_at])
    assert (until.verdict, until.stopped_at) == ("better", found.stopped_at)
    before = sequential_comparison(a[: found.stopped_at - 1], b[: found.stopped_at - 1])
    assert (before.verdict, before.stopped_at) == ("inconclusive", None)
    assert before.e_value < 20 <= until.e_value
    assert until.p_value == pytest.approx(1 / until.e_value)


@pytest.mark.parametrize("seed", range(8))
def test_the_share_of_wins_leaves_out_one_half_exactly_when_the_answer_is_clear(seed):
    a, b = pair(seed, n=800)
    found = sequential_comparison(a, b)
    outside = found.win_share.low > 0.5 or found.win_share.high < 0.5
    assert outside == (found.stopped_at is not None)
    assert found.win_share.estimate == pytest.approx(found.c / (found.b + found.c))


def test_swapping_the_models_turns_everything():
    a, b = pair(3, n=500)
    there, back = sequential_comparison(a, b), sequential_comparison(b, a)
    assert back.e_value == pytest.approx(there.e_value)
    assert (back.b, back.c, back.stopped_at) == (there.c, there.b, there.stopped_at)
    assert back.difference.low == pytest.approx(-there.difference.high)
    assert back.win_share.low == pytest.approx(1 - there.win_share.high, abs=1e-6)


def test_scores_between_zero_and_one_are_decided_by_their_mean_difference():
    rng = np.random.default_rng(7)
    a = rng.random(2000)
    b = np.clip(a + rng.normal(0.1, 0.2, size=2000), 0, 1)
    found = sequential_comparison(a, b)
    assert found.verdict == "better"
    assert found.stopped_at is not None
    assert found.e_value is None
    assert sequential_comparison(b, a).verdict == "worse"
    assert sequential_comparison(10 * a, 10 * b, bounds=(0, 10)).stopped_at == found.stopped_at


def test_equal_models_are_inconclusive_and_have_no_share():
    found = sequential_comparison([0, 1, 1], [0, 1, 1])
    assert found.verdict == "inconclusive"
    assert found.win_share is None
    assert (found.e_value, found.p_value) == (1, 1)


def test_stopping_as_soon_as_it_is_clear_is_wrong_at_most_as_often_as_stated():
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(100):
        base = rng.random(300)
        a, b = (base < 0.5).astype(float), ((base + rng.choice([0, 0.3], size=300)) % 1 < 0.5).astype(float)
        wrong += sequential_comparison(a, b, confidence_level=0.9).verdict != "inconclusive"
    assert wrong / 100 <= 0.1 + 3 * 0.03


def test_leave_to_look_at_any_time_has_its_price():
    # The GSM8K pair of the shared data, 152 and 209: the exact McNemar test has p = .003151.
    anytime_p = float(np.exp(-discordant_log_e(152, 209)))
    assert scipy_stats.binomtest(152, 361).pvalue == pytest.approx(0.003151, abs=1e-6)
    assert anytime_p == pytest.approx(0.0605, abs=1e-4)


def test_results_go_through_json_and_bad_input_is_refused():
    a, b = pair(4, n=100)
    found = sequential_comparison(a, b)
    assert SequentialComparison.from_json(found.to_json()) == found
    assert "however many items one looks" in found.explain()
    assert len(bounded_sequence(a).to_frame()) == 100
    with pytest.raises(InputError, match=r"row 1 is 2.0"):
        bounded_sequence([0.5, 2.0])
    with pytest.raises(InputError, match="scores of B: 1 where 2"):
        sequential_comparison([0, 1], [1])
    with pytest.raises(SpecError, match="bounds"):
        bounded_sequence([0.5], bounds=(1, 0))
    with pytest.raises(InputError, match="10 units"):
        asymptotic_sequence(np.ones(10))
    with pytest.raises(SpecError, match="after"):
        bounded_sequence(a).after(101)
