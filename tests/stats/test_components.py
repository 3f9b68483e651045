"""Crossed facets against statsmodels' analysis of variance, planted components, and coverage for each question."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from evalkit.errors import InputError, SpecError
from evalkit.stats.components import (
    ANSWER,
    CrossedScores,
    crossed,
    crossed_difference,
    crossed_tasks,
    neighbour_noise,
    sd_interval,
)


def planted(rng, n, n_seeds, sd_item=0.4, sd_seed=0.01, sd_rest=0.2):
    """Items by seeds, true mean 0."""
    noise = sd_rest * rng.normal(size=(n, n_seeds))
    return sd_item * rng.normal(size=(n, 1)) + sd_seed * rng.normal(size=n_seeds) + noise


def test_mean_squares_are_those_of_statsmodels():
    y = np.random.default_rng(1).normal(size=(6, 4, 3, 2))
    index = np.indices(y.shape).reshape(4, -1)
    frame = pd.DataFrame({"y": y.ravel(), "i": index[0], "s": index[1], "p": index[2]})
    table = anova_lm(ols("y ~ C(i) * C(s) * C(p)", frame).fit())
    square = {name.replace("C(", "").replace(")", ""): value for name, value in table.mean_sq.items()}
    found = crossed(y, ("i", "s", "p"), answers=True)
    seeds = (square["s"] - square["i:s"] - square["s:p"] + square["i:s:p"]) / (6 * 3 * 2)
    assert found.component("s").variance == pytest.approx(max(seeds, 0), abs=1e-12)
    last = (square["i:s:p"] - square["Residual"]) / 2
    assert found.component("p", "i", "s").variance == pytest.approx(max(last, 0), abs=1e-12)
    assert found.component(ANSWER).variance == pytest.approx(square["Residual"])
    both = (square["i"] + square["s"] - square["i:s"]) / y.size
    floor = max(square["i"], square["s"]) / y.size
    assert found.interval("s", "i").standard_error ** 2 == pytest.approx(max(both, floor))


def test_new_items_is_the_t_interval_of_item_means_and_new_seeds_that_of_seeds():
    y = planted(np.random.default_rng(2), 40, 4)
    found = crossed(y)
    for name, means in (("item", y.mean(1)), ("seed", y.mean(0))):
        expected = scipy_stats.ttest_1samp(means, 0).confidence_interval(0.95)
        one = found.interval(name)
        assert (one.low, one.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
        assert one.df == len(means) - 1
    assert "these seeds" in found.interval("item").population
    assert found.spreads[0].standard_deviation == pytest.approx(y.mean(0).std(ddof=1))


def test_planted_components_are_recovered():
    y = planted(np.random.default_rng(3), 4000, 400, 0.4, 0.05, 0.2)
    found = crossed(y)
    for facets, sd in ((("item",), 0.4), (("seed",), 0.05), (("item", "seed"), 0.2)):
        assert found.component(*facets).standard_deviation == pytest.approx(sd, rel=0.08)


def test_planted_components_of_three_facets_and_answers_are_recovered():
    rng = np.random.default_rng(4)
    shape, sds = (60, 40, 40, 2), {"i": 0.5, "s": 0.1, "p": 0.3, "ip": 0.4, "answer": 0.6}
    y = sds["i"] * rng.normal(size=(60, 1, 1, 1)) + sds["s"] * rng.normal(size=(1, 40, 1, 1))
    y = y + sds["p"] * rng.normal(size=(1, 1, 40, 1)) + sds["ip"] * rng.normal(size=(60, 1, 40, 1))
    found = crossed(y + sds["answer"] * rng.normal(size=shape), ("item", "seed", "prompt"), answers=True)
    assert found.component("seed").standard_deviation == pytest.approx(0.1, rel=0.3)
    assert found.component("prompt").standard_deviation == pytest.approx(0.3, rel=0.3)
    assert found.component("item", "prompt").standard_deviation == pytest.approx(0.4, rel=0.05)
    assert found.component(ANSWER).standard_deviation == pytest.approx(0.6, rel=0.02)
    assert found.component("seed", "prompt").standard_deviation < 0.02


@pytest.mark.parametrize(("n_seeds", "seeds_only"), [(3, 0.791), (5, 0.612), (10, 0.424)])
def test_each_interval_covers_its_own_question_and_no_other(n_seeds, seeds_only):
    """500 items, seed SD of one point, as published: "mean and SD over seeds" does not cover another test set."""
    rng = np.random.default_rng(5)
    covered, n_runs = dict.fromkeys(["both", "item", "seed", "seed for both"], 0), 600
    for _ in range(n_runs):
        items, seeds = 0.38 * rng.normal(size=(500, 1)), 0.01 * rng.normal(size=n_seeds)
        rest = rng.normal(size=(500, n_seeds)) * 0.25
        found = crossed(items + seeds + rest)
        inside = {name: (one.low, one.high) for name, one in found.intervals.items()}
        truth = {"both": ("item + seed", 0), "item": ("item", seeds.mean()), "seed": ("seed", items.mean())}
        for name, (interval, value) in {**truth, "seed for both": ("seed", 0)}.items():
            covered[name] += inside[interval][0] <= value <= inside[interval][1]
    for name in "both", "item", "seed":
        assert covered[name] / n_runs == pytest.approx(0.95, abs=3 * 0.0089)
    assert covered["seed for both"] / n_runs == pytest.approx(seeds_only, abs=0.08)


@pytest.mark.parametrize(("sd_seed", "n_seeds"), [(0.0, 3), (0.02, 3), (0.1, 5)])
def test_the_interval_of_a_seed_sd_covers(sd_seed, n_seeds):
    rng = np.random.default_rng(6)
    covered, n_runs = 0, 700
    for _ in range(n_runs):
        one = crossed(planted(rng, 60, n_seeds, sd_seed=sd_seed)).component("seed")
        covered += one.low <= sd_seed <= one.high
    assert covered / n_runs >= 0.95 - 3 * 0.0082


def test_three_seeds_say_little_of_their_sd():
    assert sd_interval(1.0, 2) == pytest.approx((0.52, 6.3), abs=0.02)


def test_with_one_seed_the_variance_of_seeds_is_unknown():
    found = crossed(planted(np.random.default_rng(7), 50, 1))
    assert found.component("seed").variance is None
    assert "one seed only" in found.warnings[0]
    assert found.interval("item").low is not None
    for new in ("seed",), ("item", "seed"):
        one = found.interval(*new)
        assert one.low is None
        assert "unknown" in one.warnings[0]
    with pytest.raises(InputError, match="unknown"):
        found.standard_error(["seed"], seed=3)
    assert CrossedScores.from_json(found.to_json()) == found
    assert found.explain().count(". ") == 1
    assert "with these seeds" in found.explain()
    assert "one seed only" in str(found)
    assert len(found.to_frame()) == 3


def test_a_design_says_what_more_of_each_would_buy():
    found = crossed(planted(np.random.default_rng(8), 200, 5, sd_seed=0.03))
    both = ["item", "seed"]
    assert found.standard_error(both) == pytest.approx(found.interval(*both).standard_error, rel=1e-9)
    item, seed, rest = (found.component(*f).variance for f in (("item",), ("seed",), ("item", "seed")))
    expected = math.sqrt(item / 1000 + seed / 20 + rest / 20_000)
    assert found.standard_error(both, item=1000, seed=20) == pytest.approx(expected)
    assert found.standard_error(["seed"], seed=20) == pytest.approx(math.sqrt(seed / 20 + rest / 4000))
    rows = found.designs(both)
    assert [row.levels for row in rows] == [
        {"item": 200, "seed": 5},
        {"item": 400, "seed": 5},
        {"item": 200, "seed": 10},
    ]
    assert rows[0].standard_error > rows[1].standard_error
    with pytest.raises(InputError, match="twice"):
        found.standard_error(both, answers=2)


@given(st.integers(0, 10**6))
def test_order_and_sign_of_scores_change_nothing_else(seed):
    rng = np.random.default_rng(seed)
    y = planted(rng, 8, 3)
    one, other = crossed(y), crossed(-y[rng.permutation(8)][:, rng.permutation(3)])
    for new, interval in one.intervals.items():
        turned = other.intervals[new]
        assert (interval.low, interval.high) == pytest.approx((-turned.high, -turned.low), rel=1e-9)


def test_clusters_of_items_widen_what_holds_items():
    rng = np.random.default_rng(9)
    clusters = np.repeat(range(30), 10)
    y = 0.3 * rng.normal(size=30)[clusters, None] + planted(rng, 300, 4)
    plain, clustered = crossed(y), crossed(y, cluster=clusters)
    assert clustered.interval("item").standard_error > 1.3 * plain.interval("item").standard_error
    assert clustered.interval("seed") == plain.interval("seed")
    assert clustered.interval("item", "seed").unit == "clusters"
    assert crossed(y, cluster=clusters // 10).interval("item").low is None


@pytest.mark.parametrize(("n_a", "n_b"), [(3, 3), (2, 6)])
def test_the_difference_of_models_with_seeds_of_their_own_covers(n_a, n_b):
    rng = np.random.default_rng(10)
    covered, n_runs = {"item + seed": 0, "seed": 0, "item": 0}, 1200
    for _ in range(n_runs):
        items = 0.4 * rng.normal(size=(100, 1))
        own = [0.1 * rng.normal(size=(100, 1)) for _ in "ab"]
        seeds = [0.02 * rng.normal(size=n) for n in (n_a, n_b)]
        a, b = (items + o + s + 0.2 * rng.normal(size=(100, len(s))) for o, s in zip(own, seeds, strict=True))
        found = crossed_difference(a, b)
        truths = {"item + seed": 0, "seed": (own[1] - own[0]).mean(), "item": seeds[1].mean() - seeds[0].mean()}
        for new, truth in truths.items():
            covered[new] += found[new].low <= truth <= found[new].high
    assert min(covered.values()) / n_runs >= 0.932, covered


def test_the_difference_turns_with_the_models_and_knows_nothing_of_one_seed():
    rng = np.random.default_rng(11)
    a, b = planted(rng, 30, 3), planted(rng, 30, 4)
    one, other = crossed_difference(a, b), crossed_difference(b, a)
    for new in one:
        assert (one[new].low, one[new].high) == pytest.approx((-other[new].high, -other[new].low))
    alone = crossed_difference(a[:, :1], b)
    assert alone["item"].low is not None
    assert alone["seed"].low is alone["item + seed"].low is None
    with pytest.raises(InputError, match="30 items of A and 29 of B"):
        crossed_difference(a, b[:-1])


def test_noise_of_neighbouring_checkpoints_is_recovered_under_a_trend():
    rng = np.random.default_rng(12)
    covered = 0
    for _ in range(1000):
        found = neighbour_noise(0.3 + 0.01 * np.arange(12) + 0.02 * rng.normal(size=12))
        covered += found.low <= 0.02 <= found.high
    assert covered / 1000 == pytest.approx(0.95, abs=0.02)
    with pytest.raises(InputError, match="4 checkpoints"):
        neighbour_noise([0.1, 0.2, 0.3])


def test_degrees_of_neighbours_are_those_of_the_quadratic_form():
    for n in (4, 5, 9):
        differences = np.diff(np.eye(n), 2, axis=0)
        covariance = differences @ differences.T
        df = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
        found = neighbour_noise(np.random.default_rng(n).normal(size=n))
        assert (found.low, found.high) == pytest.approx(sd_interval(found.variance, df), rel=1e-9)


def test_what_is_not_crossed_is_refused():
    with pytest.raises(InputError, match="1 of 4 scores are missing"):
        crossed([[1.0, 2.0], [3.0, np.nan]])
    with pytest.raises(InputError, match="one axis"):
        crossed([1.0, 2.0])
    with pytest.raises(SpecError, match="once"):
        crossed([[1.0]], ("item", "item"))
    with pytest.raises(SpecError, match="axis of items"):
        crossed([[1.0, 2.0]], ("seed", "prompt"), cluster=["a"])
    with pytest.raises(SpecError, match="no facets prompt"):
        crossed([[1.0, 2.0], [2.0, 5.0]]).interval("prompt")
    assert crossed(np.ones((3, 3))).interval("item").low is None


def planted_tasks(rng, n_tasks, n_items, n_seeds, seed_sd):
    """Differences without a true one, moved by seeds that all tasks share."""
    seed = seed_sd * rng.normal(size=n_seeds)
    return [
        0.1 * rng.normal(size=(n_items, 1)) + seed + 0.1 * rng.normal(size=(n_items, n_seeds)) for _ in range(n_tasks)
    ]


def test_of_one_task_the_tasks_intervals_are_those_of_crossed():
    rng = np.random.default_rng(0)
    for n_seeds in (2, 3, 5):
        [table] = planted_tasks(rng, 1, 40, n_seeds, 0.05)
        cluster = np.arange(40) // 3
        expected = crossed(table, cluster=cluster).intervals
        found = crossed_tasks([table], clusters=[cluster.tolist()])
        for new, one in found.items():
            assert (one.low, one.high, one.df) == pytest.approx(
                (expected[new].low, expected[new].high, expected[new].df)
            )


@pytest.mark.parametrize(("n_seeds", "seed_sd"), [(3, 0.01), (3, 0.05), (5, 0.01), (5, 0.05)])
def test_of_several_tasks_with_common_seeds_the_interval_for_both_covers_and_that_for_items_does_not(n_seeds, seed_sd):
    rng = np.random.default_rng(n_seeds)
    found = [crossed_tasks(planted_tasks(rng, 4, 30, n_seeds, seed_sd)) for _ in range(600)]
    covered = {new: np.mean([one[new].low <= 0 <= one[new].high for one in found]) for new in found[0]}
    assert covered["item + seed"] > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 600)
    if seed_sd > 0.01:
        assert covered["item"] < 0.7


@pytest.mark.parametrize("seeds", [(3, 4), (2, 5)])
def test_with_a_baseline_of_other_seeds_one_task_is_crossed_difference(seeds):
    rng = np.random.default_rng(2)
    a, b = (planted_tasks(rng, 1, 40, n_seeds, 0.05)[0] for n_seeds in seeds)
    expected, found = crossed_difference(a, b), crossed_tasks([b], [a])
    for new, one in found.items():
        assert (one.estimate, one.low, one.high) == pytest.approx(
            (expected[new].estimate, expected[new].low, expected[new].high)
        )


def test_of_several_tasks_and_unmatched_seeds_the_interval_for_both_covers():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        a, b = (planted_tasks(rng, 3, 25, n_seeds, 0.03) for n_seeds in (3, 4))
        one = crossed_tasks(b, a)["item + seed"]
        covered += one.low <= 0 <= one.high
    assert covered / 400 > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


def test_one_seed_of_several_tasks_leaves_its_variance_unknown():
    found = crossed_tasks(planted_tasks(np.random.default_rng(1), 3, 30, 1, 0.05))
    assert found["item"].low is not None
    assert found["seed"].low is None
    assert found["item + seed"].low is None
    with pytest.raises(InputError, match="the same seeds"):
        crossed_tasks([np.zeros((5, 2)), np.zeros((5, 3))])
    with pytest.raises(InputError, match="other items"):
        crossed_tasks([np.zeros((5, 2))], [np.zeros((6, 2))])
