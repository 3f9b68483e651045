"""Power and sample size, against published numbers, statsmodels, enumeration and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower

from evalkit.errors import InputError, SpecError
from evalkit.stats.discordance import discordant_p_value
from evalkit.stats.power import (
    PairedDesign,
    PowerPlan,
    design_from_scores,
    equivalence_power,
    mcnemar_errors,
    plan,
    required_items,
    required_items_for_equivalence,
    significance_errors,
    smallest_detectable,
)


def test_millers_example_needs_969_items():
    # arXiv:2411.00640, section 5: omega^2 = 1/9, no sampling noise, 3 points, power 0.8.
    found = required_items(0.03, PairedDesign(between=1 / 9))
    assert found.n_items == 969
    assert found.errors.power == pytest.approx(0.8, abs=1e-4)
    assert found.smallest_detectable == pytest.approx(0.03, abs=1e-5)


@pytest.mark.parametrize(("repeats", "published"), [(1, 0.132), (10, 0.075)])
def test_millers_198_items_detect_what_the_paper_prints(repeats, published):
    design = PairedDesign(between=1 / 9, within_a=1 / 6, within_b=1 / 6, repeats_a=repeats, repeats_b=repeats)
    assert plan(198, 0.1, design).smallest_detectable == pytest.approx(published, abs=0.001)


@pytest.mark.parametrize(("n", "effect"), [(10, 0.9), (30, 0.5), (200, 0.2)])
def test_with_t_the_power_is_statsmodels(n, effect):
    design = PairedDesign(between=1.0)
    theirs = TTestPower().power(effect, n, 0.05)
    assert plan(n, effect, design, reference="t").errors.power == pytest.approx(theirs, abs=1e-5)
    needed = required_items(effect, design, reference="t").n_items
    assert needed == np.ceil(TTestPower().solve_power(effect, None, 0.05, 0.8))
    assert smallest_detectable(1 / np.sqrt(n), df=n - 1) == pytest.approx(
        TTestPower().solve_power(None, n, 0.05, 0.8), abs=1e-5
    )


def test_gelman_and_carlins_examples():
    # Perspectives on Psychological Science 9:641: the beauty-and-sex-ratio study and the menstrual-cycle study.
    beauty = significance_errors(0.1, 3.28)
    assert (beauty.power, beauty.type_s) == pytest.approx((0.05, 0.46), abs=0.005)
    assert beauty.type_m == pytest.approx(77, abs=1)
    cycle = significance_errors(2, 8.1)
    assert (cycle.power, cycle.type_s) == pytest.approx((0.06, 0.24), abs=0.005)
    assert cycle.type_m == pytest.approx(9.5, abs=0.25)


@pytest.mark.parametrize("df", [np.inf, 8.0])
def test_type_s_and_type_m_are_what_simulation_shows(df):
    rng = np.random.default_rng(1)
    effect, error = 0.5, 0.4
    estimates = rng.normal(effect, error, size=400_000)
    errors = error * (1 if np.isinf(df) else np.sqrt(rng.chisquare(df, size=400_000) / df))
    critical = scipy_stats.norm.ppf(0.975) if np.isinf(df) else scipy_stats.t.ppf(0.975, df)
    significant = np.abs(estimates) > critical * errors
    found = significance_errors(effect, error, df=df)
    assert found.power == pytest.approx(significant.mean(), abs=0.003)
    assert found.type_s == pytest.approx((estimates[significant] < 0).mean(), abs=0.002)
    assert found.type_m == pytest.approx(np.abs(estimates[significant]).mean() / effect, rel=0.005)


def test_the_paired_example_of_card_and_others():
    # arXiv:2010.06595's notebook simulates 0.800 and 1.118 for 80% and 82% correct with 97.5% agreement, 500 items.
    found = mcnemar_errors(500, 0.0025, 0.0225, method="exact")
    assert found.power == pytest.approx(0.7976, abs=1e-4)
    assert found.type_m == pytest.approx(1.1158, abs=1e-4)


@pytest.mark.parametrize("method", ["mid-p", "exact"])
def test_mcnemars_power_is_the_sum_over_all_tables(method):
    n, only_a, only_b = 30, 0.1, 0.35
    power = wrong = size = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = scipy_stats.multinomial.pmf([b, c, n - b - c], n, [only_a, only_b, 1 - only_a - only_b])
            if discordant_p_value(b, c, method=method) <= 0.05:
                power += chance
                wrong += chance * (b > c)
                size += chance * abs(c - b) / n
    found = mcnemar_errors(n, only_a, only_b, method=method)
    assert found.power == pytest.approx(power, rel=1e-9)
    assert found.type_s == pytest.approx(wrong / power, rel=1e-6)
    assert found.type_m == pytest.approx(size / power / 0.25, rel=1e-9)


@given(st.integers(5, 300), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
@settings(max_examples=40)
def test_swapping_the_models_changes_no_error(n, only_a, only_b):
    if abs(only_a - only_b) > 1e-6:
        one, other = mcnemar_errors(n, only_a, only_b), mcnemar_errors(n, only_b, only_a)
        assert (one.power, one.type_s) == pytest.approx((other.power, other.type_s))
        design = PairedDesign.binary(only_a, only_b)
        effect = only_b - only_a
        assert plan(n, effect, design).errors == plan(n, -effect, design).errors


def test_of_many_items_mcnemars_power_is_the_normal_one():
    exact = mcnemar_errors(20_000, 0.10, 0.107).power
    normal = plan(20_000, 0.007, PairedDesign.binary(0.10, 0.107)).errors.power
    assert exact == pytest.approx(normal, abs=0.01)


def test_clusters_need_the_design_effect_more_items_and_simulation_agrees():
    design = PairedDesign(between=1.0, cluster_size=5, intraclass_correlation=0.5)
    assert design.design_effect == pytest.approx(3)
    found = required_items(0.3, design, reference="t")
    assert found.n_items >= 3 * required_items(0.3, PairedDesign(between=1.0)).n_items
    rng = np.random.default_rng(2)
    G = round(found.n_items / 5)
    means = rng.normal(0.3, np.sqrt(0.5), size=(8000, G)) + rng.normal(0, np.sqrt(0.5 / 5), size=(8000, G))
    power = (scipy_stats.ttest_1samp(means, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.02)
    uneven = PairedDesign(between=1.0, cluster_size=5, cluster_size_cv=1.0, intraclass_correlation=0.5)
    assert uneven.design_effect == pytest.approx(5.5)


def test_few_units_are_said():
    found = plan(30, 0.5, PairedDesign(between=1.0))
    assert "reference='t'" in found.warnings[0]
    assert not plan(30, 0.5, PairedDesign(between=1.0), reference="t").warnings
    assert "19 clusters" not in str(found)


@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_the_power_of_equivalence_is_what_simulation_shows(effect):
    rng = np.random.default_rng(3)
    estimates = rng.normal(effect, 0.12, size=200_000)
    shown = np.abs(estimates) < 0.3 - scipy_stats.norm.ppf(0.95) * 0.12
    assert equivalence_power(0.3, 0.12, effect=effect) == pytest.approx(shown.mean(), abs=0.004)
    design = PairedDesign(between=1.0)
    n = required_items_for_equivalence(0.3, design, effect=effect)
    assert equivalence_power(0.3, design.standard_error(n), effect=effect) >= 0.8
    assert equivalence_power(0.3, design.standard_error(n - 1), effect=effect) < 0.8


def test_equivalence_without_a_difference_needs_the_textbook_number():
    # n = (z_0.95 + z_0.9)^2 V / margin^2 for a power of 0.8 (Chow, Shao and Wang, Sample Size Calculations, 3.1.3).
    z = scipy_stats.norm.ppf(0.95) + scipy_stats.norm.ppf(0.9)
    assert required_items_for_equivalence(0.05, PairedDesign(between=1.0)) == np.ceil(z**2 / 0.05**2)


def test_the_design_of_simulated_scores_is_recovered():
    rng = np.random.default_rng(4)
    G, m, K = 3000, 4, 3
    source = rng.normal(0, np.sqrt(0.3), size=(G, 1))
    true = (source + rng.normal(0, np.sqrt(0.7), size=(G, m))).ravel()
    base = rng.normal(size=G * m)
    a = base[:, None] + rng.normal(0, 1.0, size=(G * m, K))
    b = (base + 0.2 + true)[:, None] + rng.normal(0, 2.0, size=(G * m, K + 1))
    found = design_from_scores(a, b, cluster=np.repeat(np.arange(G), m))
    assert found.between == pytest.approx(1.0, abs=0.1)
    assert (found.within_a, found.within_b) == pytest.approx((1.0, 4.0), rel=0.05)
    assert (found.repeats_a, found.repeats_b, found.cluster_size, found.cluster_size_cv) == (3, 4, 4, 0)
    assert found.intraclass_correlation == pytest.approx(0.3 / (1 + 1 / 3 + 1), abs=0.02)
    assert found.standard_error(G * m) == pytest.approx(np.sqrt((0.3 + (0.7 + 1 / 3 + 1) / m) / G), rel=0.05)


def test_the_design_of_single_answers_gives_the_paired_error():
    rng = np.random.default_rng(5)
    a, b = (rng.random(500) < 0.5).astype(float), (rng.random(500) < 0.6).astype(float)
    design = design_from_scores(a, b)
    assert design.standard_error(500) == pytest.approx((b - a).std(ddof=1) / np.sqrt(500))
    shares = np.mean(a > b), np.mean(b > a)
    assert PairedDesign.binary(*shares).between == pytest.approx(design.between * 499 / 500)


def test_plans_go_through_json_and_explain_themselves():
    found = required_items(0.03, PairedDesign(between=0.1, cluster_size=4, intraclass_correlation=0.2))
    assert PowerPlan.from_json(found.to_json()) == found
    assert "clusters" in str(found)
    assert "0.03" in found.explain()


def test_what_makes_no_sense_is_refused():
    design = PairedDesign(between=1.0)
    with pytest.raises(SpecError, match="effect"):
        required_items(0.0, design)
    with pytest.raises(SpecError, match="power"):
        required_items(0.1, design, power=80)
    with pytest.raises(SpecError, match="between"):
        PairedDesign(between=-1.0)
    with pytest.raises(SpecError, match="all variances are zero"):
        PairedDesign(between=0.0)
    with pytest.raises(SpecError, match="shares"):
        PairedDesign.binary(0.7, 0.7)
    with pytest.raises(SpecError, match="within"):
        required_items_for_equivalence(0.1, design, effect=0.2)
    with pytest.raises(InputError, match="shapes"):
        design_from_scores([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="equal"):
        design_from_scores([1.0, 2.0], [1.0, 2.0])
