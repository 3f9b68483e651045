"""Verdicts of a closed set, by interval against a margin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired

from evalkit.errors import InputError, SpecError
from evalkit.stats.decisions import VERDICTS, Decision, DecisionRule, at_level, decide, tost
from evalkit.stats.paired import paired_difference
from evalkit.stats.results import Estimate


def estimate(mean, error, df=99.0, level=0.95):
    half = scipy_stats.t.ppf((1 + level) / 2, df) * error
    return Estimate(mean, mean - half, mean + half, level, "paired t", "items like these", "items", 100, 100, error, df)


@pytest.mark.parametrize(
    ("mean", "error", "verdict", "within"),
    [
        (0.05, 0.01, "better", False),
        (-0.05, 0.01, "worse", False),
        (0.005, 0.001, "better", True),  # there, but smaller than what matters
        (-0.005, 0.001, "worse", True),
        (0.001, 0.005, "equivalent", True),
        (0.015, 0.010, "non-inferior", False),
        (-0.01, 0.02, "inconclusive", False),
        (0.03, 0.02, "non-inferior", False),
    ],
)
def test_the_verdict_follows_the_interval_and_the_margin(mean, error, verdict, within):
    found = decide(estimate(mean, error), DecisionRule(margin=0.02))
    assert found.verdict == verdict
    assert found.within_margin is within
    assert verdict.split("-")[0] in str(found)


def test_without_a_margin_nothing_is_equivalent_or_non_inferior():
    found = decide(estimate(0.0, 0.001), DecisionRule())
    assert found.verdict == "inconclusive"
    assert found.within_margin is None


def test_inconclusive_comes_with_the_effect_that_would_have_been_found():
    one = estimate(0.01, 0.02)
    found = decide(one, DecisionRule())
    assert found.smallest_detectable == pytest.approx(
        (scipy_stats.t.ppf(0.975, 99) + scipy_stats.t.ppf(0.8, 99)) * 0.02
    )
    assert f"{found.smallest_detectable:.4f}" in str(found)
    # An interval without a standard error has that of its half-width.
    bare = replace(one, standard_error=None)
    assert decide(bare, DecisionRule()).smallest_detectable == pytest.approx(found.smallest_detectable)


@given(st.floats(-0.1, 0.1), st.floats(0.001, 0.05), st.floats(0.001, 0.1))
def test_turning_the_difference_or_the_metric_turns_better_and_worse(mean, error, margin):
    up, down = DecisionRule(margin=margin), DecisionRule(margin=margin, higher_is_better=False)
    there, turned = decide(estimate(mean, error), up).verdict, decide(estimate(-mean, error), down).verdict
    assert there == turned
    assert there in VERDICTS
    opposite = decide(estimate(-mean, error), up).verdict
    assert {"better": "worse", "worse": "better", "equivalent": "equivalent"}.get(there, opposite) == opposite


@given(st.integers(0, 10_000), st.floats(0.05, 1))
def test_equivalence_is_two_one_sided_tests_and_these_are_statsmodels(seed, margin):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=30), rng.normal(0.1, 1, size=30)
    one = paired_difference(a, b)
    theirs = ttost_paired(b, a, -margin, margin)[0]
    ours = tost(one, margin)
    assert ours.p_value == pytest.approx(theirs)
    if abs(theirs - 0.05) > 1e-9:
        found = decide(one, DecisionRule(margin=margin))
        assert found.within_margin == (theirs < 0.05)


def test_the_narrower_interval_is_the_t_interval_at_another_level():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=40), rng.normal(size=40)
    found = at_level(paired_difference(a, b), 0.9)
    expected = paired_difference(a, b, confidence_level=0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_an_interval_of_another_kind_needs_its_own_narrower_one():
    score = replace(estimate(0.001, 0.005), low=-0.008, high=0.012, method="Tango")
    rule = DecisionRule(margin=0.02)
    with pytest.raises(InputError, match=r"Tango.*narrower="):
        decide(score, rule)
    narrow = replace(score, low=-0.006, high=0.010, confidence_level=0.9)
    assert decide(score, rule, narrower=narrow).verdict == "equivalent"
    with pytest.raises(SpecError, match=r"level 0.95 where 0.9 is needed"):
        decide(score, rule, narrower=score)
    assert decide(score, DecisionRule()).verdict == "inconclusive"  # no margin, no need
    with pytest.raises(InputError, match="not the t interval"):
        decide(replace(estimate(0.0, 0.01), low=-np.inf), rule)
    with pytest.raises(InputError, match="TOST"):
        tost(replace(score, standard_error=None), 0.02)


def test_an_interval_below_the_level_of_the_rule_is_refused_and_an_adjusted_one_is_taken():
    rule = DecisionRule(margin=0.02)
    with pytest.raises(SpecError, match=r"below the rule's 0.95"):
        decide(estimate(0.1, 0.01, level=0.9), rule)
    assert decide(estimate(0.025, 0.01), rule).verdict == "better"
    assert decide(estimate(0.025, 0.01, level=0.99), rule).verdict != "better"


def test_no_interval_is_inconclusive():
    one = paired_difference([0.5, 0.5], [0.7, 0.7])
    assert decide(one, DecisionRule(margin=0.1)).verdict == "inconclusive"


def test_the_rule_has_a_digest_that_shows_any_change():
    rule = DecisionRule(margin=0.02)
    assert rule.digest() == DecisionRule(margin=0.02).digest()
    changed = [DecisionRule(margin=0.021), DecisionRule(margin=0.02, confidence_level=0.9), DecisionRule()]
    assert rule.digest() not in {one.digest() for one in changed}
    found = decide(estimate(0, 0.01), rule)
    assert found.rule_digest == rule.digest()
    assert Decision.from_json(found.to_json()) == found
    assert rule.digest()[:12] in found.explain()


@pytest.mark.parametrize("margin", [0.0, -0.1, float("nan"), float("inf")])
def test_a_margin_that_is_none_is_refused(margin):
    with pytest.raises(SpecError, match="margin"):
        DecisionRule(margin=margin)
    with pytest.raises(SpecError, match="confidence_level"):
        DecisionRule(confidence_level=95)


@pytest.mark.parametrize(("truth", "wrong", "rate"), [(0.0, "better", 0.025), (0.3, "equivalent", 0.05)])
def test_a_wrong_verdict_comes_up_at_most_at_the_stated_rate(truth, wrong, rate):
    rng = np.random.default_rng(2)
    n_runs, rule, hits = 3000, DecisionRule(margin=0.3), 0
    for values in rng.normal(truth, 1, size=(n_runs, 200)):
        mean, error = values.mean(), values.std(ddof=1) / np.sqrt(200)
        hits += decide(estimate(mean, error, df=199.0), rule).verdict == wrong
    assert hits / n_runs <= rate + 3 * np.sqrt(rate / n_runs)
    assert hits > 0 or wrong == "equivalent"


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("clustered", [False, True])
def test_equal_models_come_out_better_or_worse_at_most_at_the_stated_rate_and_planted_ones_are_found(binary, clustered):
    rng = np.random.default_rng(3)
    n_runs, rule = 600, DecisionRule(margin=0.1)
    counts = dict.fromkeys(VERDICTS, 0)
    found = 0
    cluster = np.repeat(np.arange(40), 4) if clustered else None
    for run in range(n_runs):
        gain = 0.3 if run % 6 == 0 else 0.0
        shared = np.repeat(rng.normal(0, 0.7, size=(40, 2)), 4, axis=0) if clustered else np.zeros((160, 2))
        latent = rng.normal(size=(160, 1)) + shared + rng.normal(0, 0.5, size=(160, 2))
        a, b = (latent[:, 0] > 0, latent[:, 1] > -2 * gain) if binary else (latent[:, 0], latent[:, 1] + 2 * gain)
        wide, narrow = (
            paired_difference(a, b, cluster=cluster, confidence_level=level, method="auto") for level in (0.95, 0.9)
        )
        verdict = decide(wide, rule, narrower=narrow).verdict
        if gain:
            found += verdict == "better"
        else:
            counts[verdict] += 1
    slack = 3 * np.sqrt(0.025 / 500)
    assert counts["better"] / 500 <= 0.025 + slack
    assert counts["worse"] / 500 <= 0.025 + slack
    assert found > 60
