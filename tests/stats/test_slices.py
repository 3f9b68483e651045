"""Slices: tested together, drawn to their common mean, and never silently missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests

from evalkit.errors import InputError, SpecError
from evalkit.stats import few_units
from evalkit.stats.discordance import mcnemar
from evalkit.stats.means import mean_score
from evalkit.stats.paired import paired_difference
from evalkit.stats.slices import Slices, between_variance, slice_means


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    """A tenth of the usual, since these are simulations of thousands of slices."""
    monkeypatch.setattr(few_units, "DRAWN_UNITS", 100_000)


def of_differences(values, labels, **options):
    """Slices of differences that are given as they are."""
    return slice_means(values, labels, baseline=np.zeros(len(values)), **options)


def data(seed=0, k=8, size=40, spread=0.3):
    rng = np.random.default_rng(seed)
    truths = rng.normal(0, spread, size=k)
    labels = np.repeat(np.arange(k), size)
    return truths, labels, truths[labels] + rng.normal(size=k * size)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 4)), min_size=2, max_size=12))
@settings(max_examples=50)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # statsmodels divides by zero on the way
def test_the_variance_between_slices_is_statsmodels_iterated_one(pairs):
    y, V = (np.array(part) for part in zip(*pairs, strict=True))
    theirs = combine_effects(y, V, method_re="iterated", use_t=False).tau2
    assert between_variance(y, V) == pytest.approx(max(theirs, 0.0), abs=1e-4, rel=1e-3)


def test_each_slice_has_its_own_interval_and_a_false_discovery_rate_over_all():
    _, labels, values = data(1)
    found = of_differences(values, labels)
    p = []
    for one, name in zip(found.slices, range(8), strict=True):
        expected = paired_difference(np.zeros(40), values[labels == name], method="auto")
        assert (one.estimate.low, one.estimate.high) == (expected.low, expected.high)
        p.append(one.p_value)
    adjusted = multipletests(p, method="fdr_bh")[1]
    assert [one.adjusted for one in found.slices] == pytest.approx(adjusted)
    assert len(found.found) == (adjusted <= 0.05).sum()
    assert found.smallest_n == 40


def test_small_slices_are_named_with_their_size_and_not_estimated():
    _, labels, values = data(2)
    names = np.array([f"slice {one}" for one in labels], dtype=object)
    names[:9] = "tiny"
    found = of_differences(values, names)
    assert found.left_out == {"tiny": 9}
    assert "too small: tiny" in str(found)
    assert len(found.to_frame()) == 8
    assert found.smallest_n == 31


def test_shrunken_means_are_closer_to_the_truth_and_their_intervals_cover():
    own_error = drawn_error = covered = n = largest_own = largest_drawn = 0.0
    for seed in range(150):
        truths, labels, values = data(seed, size=20, spread=0.2)
        found = of_differences(values, labels)
        for truth, one in zip(truths, found.slices, strict=True):
            own_error += (one.estimate.estimate - truth) ** 2
            drawn_error += (one.shrunken.estimate - truth) ** 2
            covered += one.shrunken.low <= truth <= one.shrunken.high
            n += 1
        best = int(np.argmax([one.estimate.estimate for one in found.slices]))
        largest_own += found.slices[best].estimate.estimate - truths[best]
        largest_drawn += found.slices[best].shrunken.estimate - truths[best]
    assert drawn_error < 0.8 * own_error
    assert covered / n >= 0.94
    assert abs(largest_drawn) < 0.5 * largest_own  # the winner's curse


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_spread_between_slices_is_recovered(spread):
    found = [of_differences(*data(seed, k=20, spread=spread)[:0:-1]).between_sd for seed in range(60)]
    assert np.mean(found) == pytest.approx(spread, abs=0.08)


def test_a_small_slice_of_equal_values_does_not_pass_for_a_certain_one():
    _, labels, values = data(3)
    values = np.where(labels == 0, 0.7, values)
    found = of_differences(values, labels).slices[0]
    assert found.estimate.low is None
    assert found.p_value is None
    assert found.shrunken.standard_error > 0.02


def test_right_and_wrong_get_the_intervals_and_tests_that_fit_them():
    rng = np.random.default_rng(9)
    labels = np.repeat(list("abcd"), 30)
    a, b = (rng.random(120) < 0.5).astype(float), (rng.random(120) < 0.6).astype(float)
    scores, differences = slice_means(b, labels), slice_means(b, labels, baseline=a)
    assert scores.slices[0].p_value is None
    assert scores.slices[0].estimate.low == mean_score(b[:30]).low
    assert differences.slices[0].p_value == mcnemar(a[:30], b[:30]).p_value
    assert differences.slices[0].estimate.low == paired_difference(a[:30], b[:30], method="auto").low
    turned = slice_means(a, labels, baseline=b)
    assert turned.slices[2].shrunken.low == pytest.approx(-differences.slices[2].shrunken.high)
    assert turned.slices[2].adjusted == pytest.approx(differences.slices[2].adjusted)


def test_fewer_than_four_slices_are_not_drawn_together_and_it_is_said():
    _, labels, values = data(4, k=3)
    found = of_differences(values, labels)
    assert all(one.shrunken is None for one in found.slices)
    assert found.between_sd is None
    assert "fewer than 4 slices" in found.warnings[0]


def test_clusters_are_the_units_and_those_across_slices_are_said():
    _, labels, values = data(5)
    inside = of_differences(values, labels, cluster=[f"{label}.{i % 10}" for i, label in enumerate(labels)])
    assert inside.smallest_n == 10
    assert not inside.warnings
    across = of_differences(values, labels, cluster=[i % 40 for i in range(len(values))])
    assert "several slices" in across.warnings[0]


def test_the_order_of_rows_changes_nothing_and_turned_values_turn_the_means():
    _, labels, values = data(6)
    order = np.argsort(np.random.default_rng(0).random(len(values)))
    found, mixed, turned = (
        {one.name: one for one in of_differences(v, label).slices}
        for v, label in ((values, labels), (values[order], labels[order]), (-values, labels))
    )
    for name, one in found.items():
        assert mixed[name].shrunken.low == pytest.approx(one.shrunken.low)
        assert mixed[name].adjusted == pytest.approx(one.adjusted)
        assert turned[name].shrunken.low == pytest.approx(-one.shrunken.high)


def test_with_no_effect_any_slice_is_found_at_most_at_the_stated_rate():
    hits = sum(bool(of_differences(*data(seed, spread=0)[:0:-1]).found) for seed in range(250))
    assert hits / 250 <= 0.05 + 3 * 0.0138


def test_slices_go_through_json_and_bad_input_is_refused():
    _, labels, values = data(7)
    found = of_differences(values, labels)
    assert Slices.from_json(found.to_json()) == found
    with pytest.raises(InputError, match="labels: 2 where 3"):
        of_differences([1, 2, 3], ["a", "b"])
    with pytest.raises(SpecError, match="min_units"):
        of_differences([1, 2, 3], ["a", "b", "b"], min_units=1)
