"""Few human labels and many scores of a judge: what is recovered, what covers, and what the judge adds."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.clusters import cluster_codes, cluster_error
from evalkit.stats.ppi import Corrected, prediction_powered_difference, prediction_powered_mean, rogan_gladen


def sample(rng, n, N, *, quality=0.8, bias=0.3):
    """Labels, and a judge that is correlated with them but biased."""
    y = rng.normal(size=n + N)
    f = bias + quality * y + np.sqrt(1 - quality**2) * rng.normal(size=n + N)
    return y[:n], f[:n], f[n:]


@given(st.integers(0, 1000))
def test_with_lambda_zero_it_is_the_classical_t_interval_of_the_labels(seed):
    y, f, others = sample(np.random.default_rng(seed), 30, 100)
    found = prediction_powered_mean(y, f, others, weight=0)
    theirs = scipy_stats.ttest_1samp(y, 0).confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((theirs.low, theirs.high))
    assert (found.classical.low, found.classical.high) == pytest.approx((theirs.low, theirs.high))
    assert found.effective_labels == pytest.approx(30)


@given(st.integers(0, 1000))
def test_with_lambda_one_it_is_the_judges_mean_and_the_rectifier(seed):
    # Angelopoulos et al. 2023, Science 382:669: mean f of the unlabelled, plus mean of y - f.
    y, f, others = sample(np.random.default_rng(seed), 40, 90)
    found = prediction_powered_mean(y, f, others, weight=1)
    assert found.estimate.estimate == pytest.approx(others.mean() + (y - f).mean())
    assert found.estimate.standard_error == pytest.approx(np.sqrt(others.var(ddof=1) / 90 + (y - f).var(ddof=1) / 40))


def test_the_chosen_lambda_has_the_least_variance():
    y, f, others = sample(np.random.default_rng(1), 5000, 20_000)
    found = prediction_powered_mean(y, f, others)

    def error(weight):
        return prediction_powered_mean(y, f, others, weight=weight).estimate.standard_error

    best = optimize.minimize_scalar(error, bounds=(0, 1), method="bounded").x
    assert found.weight == pytest.approx(best, abs=0.02)
    assert found.estimate.standard_error == pytest.approx(error(best), rel=1e-4)


def test_a_biased_judge_is_put_right_and_the_interval_covers():
    rng = np.random.default_rng(2)
    covered = naive = narrower = 0
    for _ in range(1000):
        y, f, others = sample(rng, 60, 600)
        found = prediction_powered_mean(y, f, others)
        covered += found.estimate.low <= 0 <= found.estimate.high
        half = 1.96 * others.std() / np.sqrt(600)
        naive += abs(others.mean()) <= half
        narrower += found.estimate.standard_error < found.classical.standard_error
    assert covered / 1000 == pytest.approx(0.95, abs=0.021)
    assert naive / 1000 < 0.05
    assert narrower > 990


def test_a_good_judge_is_worth_many_labels_and_a_useless_one_none():
    rng = np.random.default_rng(3)
    good = prediction_powered_mean(*sample(rng, 200, 20_000, quality=0.95))
    assert good.effective_labels == pytest.approx(200 / (1 - 0.95**2), rel=0.3)
    useless = prediction_powered_mean(*sample(rng, 2000, 20_000, quality=0.0))
    assert useless.effective_labels == pytest.approx(2000, rel=0.02)
    contrary = prediction_powered_mean(*sample(rng, 2000, 20_000, quality=-0.5))
    assert contrary.weight == 0
    constant = prediction_powered_mean([0.0, 1.0, 0.0, 1.0], [1.0] * 4, [1.0] * 9)
    assert constant.weight == 0
    assert constant.correlation is None


def test_clusters_count_in_both_parts():
    rng = np.random.default_rng(4)
    y, f, others = sample(rng, 60, 300)
    labelled, unlabelled = np.repeat(np.arange(20), 3), np.repeat(np.arange(100), 3)
    found = prediction_powered_mean(y, f, others, weight=0.5, cluster_labelled=labelled, cluster_unlabelled=unlabelled)
    parts = (
        cluster_error(y - 0.5 * f, *cluster_codes(labelled, 60)),
        0.5 * cluster_error(others, *cluster_codes(unlabelled, 300)),
    )
    assert found.estimate.standard_error == pytest.approx(np.hypot(*parts))
    assert found.estimate.unit == "labelled clusters"
    single = prediction_powered_mean(y, f, others, cluster_labelled=range(60), cluster_unlabelled=range(300))
    assert single == prediction_powered_mean(y, f, others)


def test_a_judge_that_is_biased_alike_for_both_models_costs_a_paired_difference_nothing():
    rng = np.random.default_rng(5)
    base, gain = rng.normal(size=500), rng.normal(0.2, 0.3, size=500)
    taste = rng.normal(0, 3, size=500)  # the judge's own view of an item
    judge_a, judge_b = base + taste, base + gain + taste + rng.normal(0, 0.1, size=500)
    found = prediction_powered_difference(
        base[:80], (base + gain)[:80], judge_a[:80], judge_b[:80], judge_a[80:], judge_b[80:]
    )
    assert found.estimate.low < 0.2 < found.estimate.high
    assert found.effective_labels > 2 * 80
    turned = prediction_powered_difference(
        (base + gain)[:80], base[:80], judge_b[:80], judge_a[:80], judge_b[80:], judge_a[80:]
    )
    assert (turned.estimate.low, turned.estimate.high) == pytest.approx((-found.estimate.high, -found.estimate.low))


@given(st.permutations(range(12)))
def test_the_order_of_items_changes_nothing(order):
    y, f, others = sample(np.random.default_rng(6), 12, 12)
    found, mixed = prediction_powered_mean(y, f, others), prediction_powered_mean(y[order], f[order], others[order])
    assert mixed.estimate.low == pytest.approx(found.estimate.low)
    assert mixed.weight == pytest.approx(found.weight)


def test_on_llmbar_a_mediocre_judges_own_interval_misses_and_the_corrected_one_covers(data_dir):
    gold, judged = [], []
    with gzip.open(data_dir / "judges" / "llmbar_verdicts.jsonl.gz", "rt") as lines:
        for run in map(json.loads, lines):
            if run["judge"] == "PaLM2" and run["prompt"] == "Vanilla":
                for one in run["verdicts"]:
                    gold.append(one["gold"] == 1)
                    judged.append(str(one["original_order"]) == "1")
    y, f = np.array(gold, float), np.array(judged, float)
    assert len(y) == 419
    rng, truth = np.random.default_rng(7), y.mean()
    covered = classical = naive = 0
    gains = []
    for _ in range(400):
        items = rng.integers(419, size=419)
        found = prediction_powered_mean(y[items[:84]], f[items[:84]], f[items[84:]])
        covered += found.estimate.low <= truth <= found.estimate.high
        classical += found.classical.low <= truth <= found.classical.high
        naive += abs(f[items].mean() - truth) <= 1.96 * f[items].std() / np.sqrt(419)
        gains.append(found.effective_labels / 84)
    assert covered / 400 >= 0.95 - 3 * 0.011
    assert classical / 400 >= 0.95 - 3 * 0.011
    assert naive / 400 < 0.9
    assert 1 < np.mean(gains) < 1.3  # it buys almost nothing


def test_what_the_labels_cannot_show_is_said():
    rng = np.random.default_rng(8)
    y = (rng.random(60) < 0.7).astype(float)
    counted = prediction_powered_mean(y, y, (rng.random(500) < 0.7).astype(float), weight=1)
    assert counted.estimate.high - counted.estimate.low > 0.08  # two errors that were not seen, in 62 items
    never_wrong = prediction_powered_mean(y, y, (rng.random(500) < 0.7).astype(float))
    assert "erred on only 0" in never_wrong.estimate.warnings[0]
    few = prediction_powered_mean(*sample(rng, 20, 100))
    assert "only 20 labelled items" in few.estimate.warnings[0]
    assert "random sample" in few.explain()
    assert prediction_powered_mean([0.5] * 9, [0.5] * 9, [0.5] * 9).estimate.low is None


@pytest.mark.parametrize("accuracy", [0.7, 0.98])
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_with_fifty_labels_of_right_and_wrong_the_interval_covers(rate, accuracy):
    rng = np.random.default_rng(11)
    covered = classical = 0
    for _ in range(600):
        y = (rng.random(1050) < rate).astype(float)
        f = np.where(rng.random(1050) < accuracy, y, 1 - y)
        found = prediction_powered_mean(y[:50], f[:50], f[50:])
        covered += found.estimate.low <= rate <= found.estimate.high
        classical += found.classical.low <= rate <= found.classical.high
    assert covered / 600 >= 0.95 - 3 * 0.009
    assert classical / 600 >= 0.95 - 3 * 0.009


def test_differences_of_right_and_wrong_turn_their_sign():
    rng = np.random.default_rng(12)
    y, f, others = (rng.choice([-1.0, 0.0, 1.0], size=n, p=[0.1, 0.6, 0.3]) for n in (60, 60, 200))
    there, back = prediction_powered_mean(y, f, others), prediction_powered_mean(-y, -f, -others)
    assert (back.estimate.low, back.estimate.high) == pytest.approx((-there.estimate.high, -there.estimate.low))


def test_corrected_means_go_through_json():
    found = prediction_powered_mean(*sample(np.random.default_rng(9), 60, 100))
    assert Corrected.from_json(found.to_json()) == found
    assert "worth" in str(found)


def test_bad_labels_are_refused():
    with pytest.raises(InputError, match="labels: row 1 is nan"):
        prediction_powered_mean([1.0, float("nan")], [1.0, 1.0], [1.0, 0.0])
    with pytest.raises(InputError, match="labelled items: 1 where 2"):
        prediction_powered_mean([1.0, 0.0], [1.0], [1.0, 0.0])
    with pytest.raises(InputError, match="labels: 1 items are too few"):
        prediction_powered_mean([1.0], [1.0], [1.0, 0.0])
    with pytest.raises(InputError, match="unlabelled scores: 2 clusters"):
        prediction_powered_mean([1.0, 0.0], [1.0, 0.0], [1.0, 0.0, 1.0], cluster_unlabelled=["a", "a", "b"])
    with pytest.raises(SpecError, match="weight"):
        prediction_powered_mean([1.0, 0.0], [1.0, 0.0], [1.0, 0.0], weight=2)


def test_rogan_gladen_is_its_formula_and_a_perfect_judge_needs_no_correction():
    found = rogan_gladen(300, 1000, true_positive=90, n_positive=100, true_negative=80, n_negative=100)
    assert found.estimate == pytest.approx((0.3 + 0.8 - 1) / (0.9 + 0.8 - 1))
    assert found.low < found.estimate < found.high
    perfect = rogan_gladen(300, 1000, true_positive=10**7, n_positive=10**7, true_negative=10**7, n_negative=10**7)
    z = scipy_stats.norm.ppf(0.975)
    p = (300 + z**2 / 2) / (1000 + z**2)  # Agresti and Coull
    assert perfect.low == pytest.approx(p - z * np.sqrt(p * (1 - p) / (1000 + z**2)), abs=1e-5)


@pytest.mark.parametrize("prevalence", [0.02, 0.1, 0.5, 0.95])
@pytest.mark.parametrize(("sensitivity", "specificity", "labels"), [(0.9, 0.8, 50), (0.7, 0.95, 30), (0.99, 0.99, 100)])
def test_the_rogan_gladen_interval_covers(prevalence, sensitivity, specificity, labels):
    rng = np.random.default_rng(10)
    n, n_runs = 300, 600
    rate = prevalence * sensitivity + (1 - prevalence) * (1 - specificity)
    counts = rng.binomial([n, labels, labels], [rate, sensitivity, specificity], size=(n_runs, 3))
    covered = 0
    for positive, tp, tn in counts.tolist():
        found = rogan_gladen(positive, n, true_positive=tp, n_positive=labels, true_negative=tn, n_negative=labels)
        covered += found.low <= prevalence <= found.high
    assert covered / n_runs >= 0.95 - 3 * 0.009


@given(st.integers(0, 200), st.integers(30, 50), st.integers(35, 50))
def test_counting_negatives_instead_of_positives_mirrors_rogan_gladen(positive, tp, tn):
    there = rogan_gladen(positive, 200, true_positive=tp, n_positive=50, true_negative=tn, n_negative=50)
    back = rogan_gladen(200 - positive, 200, true_positive=tn, n_positive=50, true_negative=tp, n_negative=50)
    assert (back.estimate, back.low, back.high) == pytest.approx((1 - there.estimate, 1 - there.high, 1 - there.low))


def test_a_judge_that_may_be_no_better_than_chance_gives_no_interval_or_is_refused():
    weak = rogan_gladen(50, 100, true_positive=12, n_positive=20, true_negative=10, n_negative=20)
    assert weak.low is None
    assert "not surely better" in weak.warnings[0]
    with pytest.raises(InputError, match="no better than chance"):
        rogan_gladen(50, 100, true_positive=5, n_positive=20, true_negative=10, n_negative=20)
    with pytest.raises(InputError, match="true_negative: 21 of 20"):
        rogan_gladen(50, 100, true_positive=15, n_positive=20, true_negative=21, n_negative=20)
    outside = rogan_gladen(1, 100, true_positive=18, n_positive=20, true_negative=18, n_negative=20)
    assert outside.estimate == 0
    assert "outside" in outside.warnings[0]
