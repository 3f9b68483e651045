"""A simulator with a known difference, clusters, seeds and a leak: every reported quantity is recovered.

The judges' biases are planted in tests/stats/test_ratings.py and tests/stats/test_ppi.py, repeats in test_repeats.py.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from evalkit.reports.adaptors import from_frame
from evalkit.reports.comparison import compare
from evalkit.stats.clusters import intraclass_correlation
from tests.reports.runs import write_audit

N_CLUSTERS, SIZE, N_SEEDS = 24, 5, 4
N = N_CLUSTERS * SIZE
GAIN, LEAK, ICC, ITEM_SD, SEED_SD, NOISE_SD = 0.04, 0.10, 0.4, 0.10, 0.03, 0.12
N_LEAKED = N // 4


def run_of(scores, name):
    """A run of one task from scores of shape (items, seeds)."""
    item, seed = (of.ravel() for of in np.indices(scores.shape))
    return from_frame(
        pd.DataFrame({"item": item, "seed": seed, "score": scores.ravel(), "cluster": item % N_CLUSTERS}), name=name
    )


def simulate(rng, gain=GAIN, leak=LEAK):
    """Two models whose differences have a share ICC of their variance between clusters; the first items leaked."""
    difficulty = rng.normal(0.5, 0.3, size=(N, 1))
    cluster = np.arange(N) % N_CLUSTERS
    difference = ITEM_SD * (
        math.sqrt(ICC) * rng.normal(size=N_CLUSTERS)[cluster] + math.sqrt(1 - ICC) * rng.normal(size=N)
    )
    seed = SEED_SD * rng.normal(size=N_SEEDS)
    a = difficulty + NOISE_SD / math.sqrt(2) * rng.normal(size=(N, N_SEEDS))
    b = difficulty + difference[:, None] + seed + gain + NOISE_SD / math.sqrt(2) * rng.normal(size=(N, N_SEEDS))
    b[:N_LEAKED] += leak
    return run_of(a, "base"), run_of(b, "leaky")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """What is reported of 100 draws of items and seeds."""
    audit = write_audit(
        tmp_path_factory.mktemp("planted") / "audit", {str(n): "dirty" if n < N_LEAKED else "clean" for n in range(N)}
    )
    rng = np.random.default_rng(0)
    return [compare(*simulate(rng), audit=audit) for _ in range(100)]


def is_recovered(values, truth):
    """Whether a mean over draws is within three and a half of its standard errors of the truth."""
    values = np.asarray(values)
    return abs(values.mean() - truth) < 3.5 * values.std(ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize(("subset", "truth"), [("all", GAIN + LEAK / 4), ("clean", GAIN), ("flagged", GAIN + LEAK)])
def test_the_difference_on_all_on_clean_and_on_leaked_items_is_recovered(simulated, subset, truth):
    assert is_recovered([one.overall[subset].difference.estimate for one in simulated], truth)


def test_the_error_over_clusters_is_the_spread_of_repetitions_given_the_seeds(simulated):
    """What is reported is for these seeds; what they add to the spread of repetitions is taken off here."""
    clean = [one.overall["clean"].difference for one in simulated]
    spread = np.var([one.estimate for one in clean], ddof=1) - SEED_SD**2 / N_SEEDS
    reported = np.mean([one.standard_error**2 for one in clean])
    assert reported == pytest.approx(spread, rel=0.5)
    assert {one.unit for one in clean} == {"clusters"}


def test_the_intraclass_correlation_is_recovered(simulated):
    found = []
    for one in simulated:
        items = [item for item in one.items if item.status == "clean"]
        of = [item.score_b - item.score_a for item in items]
        found.append(intraclass_correlation(of, [int(item.doc_hash) % N_CLUSTERS for item in items]))
    # Of item means: their variance holds the answers' noise, too.
    truth = ICC * ITEM_SD**2 / (ITEM_SD**2 + NOISE_SD**2 / N_SEEDS)
    assert is_recovered(found, truth)


def test_the_seeds_standard_deviation_is_recovered_and_its_interval_covers(simulated):
    seeds = [next(c for c in one.noise.components if c.facets == ("seed",)) for one in simulated]
    # Negative estimates are shown as 0; the mean over seeds before that is what is unbiased.
    assert np.mean([one.variance for one in seeds]) == pytest.approx(SEED_SD**2, rel=0.3)
    covered = np.mean([one.low <= SEED_SD <= one.high for one in seeds])
    assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(seeds))


def test_intervals_for_new_items_and_seeds_cover_the_planted_difference(simulated):
    truth = GAIN + LEAK / 4
    wide = [one.noise.intervals["item + seed"] for one in simulated]
    # Leaked items are a fixed share here, so their part of the items' variance is reported but does not vary.
    assert np.mean([one.low <= truth <= one.high for one in wide]) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(wide))
    narrow = [one.overall["all"].difference for one in simulated]
    assert np.mean([one.low <= truth <= one.high for one in narrow]) < 0.9  # these seeds are another question


def test_the_leak_is_seen_on_the_flagged_items_and_not_on_the_clean_ones(simulated):
    gaps = [one.overall["flagged"].difference.estimate - one.overall["clean"].difference.estimate for one in simulated]
    assert is_recovered(gaps, LEAK)


@pytest.fixture(scope="module")
def null():
    """Three tasks of right or wrong answers, 40 items each, without a difference; 150 draws."""
    rng = np.random.default_rng(1)
    found = []
    items = pd.DataFrame({"task": np.repeat(["s", "t", "u"], 40), "item": np.arange(120)})
    for _ in range(150):
        chance = rng.beta(2, 2, size=120)
        runs = [from_frame(items.assign(score=(rng.random(120) < chance).astype(float)), name=name) for name in "ab"]
        found.append(compare(*runs))
    return found


def test_with_no_effect_better_comes_up_at_most_as_often_as_stated(null):
    slack = 3 * math.sqrt(0.025 * 0.975 / len(null))
    for verdict in ("better", "worse"):
        assert np.mean([one.overall["all"].verdict == verdict for one in null]) <= 0.025 + slack


def test_with_no_effect_any_task_of_the_family_is_called_at_most_as_often_as_stated(null):
    called = [any(task.subsets["all"].verdict != "inconclusive" for task in one.tasks) for one in null]
    rejected = [any((task.subsets["all"].p_adjusted or 0) <= 0.05 for task in one.tasks) for one in null]
    assert max(np.mean(called), np.mean(rejected)) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(null))
