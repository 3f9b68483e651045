"""Agreement against statsmodels, published examples, and twins of a few lines."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

from evalkit.errors import InputError, SpecError
from evalkit.judges.agreement import Agreement, agreement

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D: four observers, twelve units, 5 values.
KRIPPENDORFF = (
    np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
            [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
        ]
    ).T
    - 1
)


def draws(n=200, raters=2, seed=0, missing=0.0):
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size=n, p=[0.5, 0.1, 0.4])
    ratings = np.where(rng.random((n, raters)) < 0.7, truth[:, None], rng.integers(0, 3, size=(n, raters)))
    return np.where(rng.random((n, raters)) < missing, -1, ratings)


@pytest.mark.parametrize(("ours", "theirs"), [("nominal", None), ("linear", "linear"), ("quadratic", "quadratic")])
def test_cohens_kappa_is_that_of_statsmodels(ours, theirs):
    ratings = draws()
    table = np.zeros((3, 3))
    np.add.at(table, (ratings[:, 0], ratings[:, 1]), 1)
    expected = cohens_kappa(table, wt=theirs)
    found = agreement(ratings, weights=ours).cohen
    assert found.estimate == pytest.approx(expected.kappa)
    assert found.standard_error == pytest.approx(expected.std_kappa, rel=0.1)


def test_fleiss_kappa_is_that_of_statsmodels():
    ratings = draws(raters=4)
    counts = np.stack([(ratings == k).sum(axis=1) for k in range(3)], axis=1)
    assert agreement(ratings).fleiss.estimate == pytest.approx(fleiss_kappa(counts))


def test_krippendorffs_own_example_with_missing_ratings():
    found = agreement(KRIPPENDORFF, categories="12345")
    assert found.krippendorff.estimate == pytest.approx(0.743, abs=5e-4)
    assert found.n == 11 and found.n_single == 1
    # The unit with one rating counts towards the prevalence (Gwet's irrCAC prints .77544 and .76117 for this table).
    assert found.gwet.estimate == pytest.approx(0.77544, abs=5e-6)
    assert found.fleiss.estimate == pytest.approx(0.76117, abs=5e-6)
    interval = agreement(KRIPPENDORFF, categories="12345", weights="quadratic")
    assert interval.krippendorff.estimate == pytest.approx(0.849, abs=5e-4)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_gwets_ac1_against_its_definition(missing):
    ratings = draws(raters=3, seed=2, missing=missing)
    pairs, shares = [], []
    for unit in ratings:
        kept = unit[unit >= 0]
        if len(kept) > 1:
            pairs.append(np.mean([a == b for i, a in enumerate(kept) for j, b in enumerate(kept) if i != j]))
        if len(kept):
            shares.append([(kept == k).mean() for k in range(3)])
    pi = np.mean(shares, axis=0)
    chance = np.sum(pi * (1 - pi)) / 2
    assert agreement(ratings).gwet.estimate == pytest.approx((np.mean(pairs) - chance) / (1 - chance))


def test_kappa_is_low_and_ac1_is_not_where_one_answer_is_nearly_always_right():
    ratings = np.array([[0, 0]] * 95 + [[0, 2], [2, 0], [0, 2], [2, 0], [2, 2]])
    found = agreement(ratings)
    assert found.raw.estimate == 0.96
    assert found.cohen.estimate < 0.4
    assert found.gwet.estimate > 0.9


def test_swapping_raters_changes_nothing_and_copies_in_clusters_do_not_narrow():
    ratings = draws(n=60)
    one, other = agreement(ratings), agreement(ratings[:, ::-1])
    assert one.cohen.estimate == pytest.approx(other.cohen.estimate)
    copies = agreement(np.repeat(ratings, 5, axis=0), cluster=np.repeat(np.arange(60), 5))
    assert copies.gwet.standard_error == pytest.approx(one.gwet.standard_error, rel=1e-6)
    assert copies.gwet.unit == "clusters"


def test_intervals_cover():
    rng = np.random.default_rng(0)
    table = np.array([[0.35, 0.1], [0.15, 0.4]])
    observed, chance = np.trace(table), table.sum(1) @ table.sum(0)
    kappa = (observed - chance) / (1 - chance)
    hits = 0
    for _ in range(300):
        flat = rng.choice(4, size=100, p=table.ravel())
        found = agreement(np.column_stack([2 * (flat // 2), 2 * (flat % 2)])).cohen
        hits += found.low <= kappa <= found.high
    assert hits >= 300 * 0.91


def test_one_category_only_has_no_kappa_and_says_so():
    found = agreement(np.zeros((20, 2), dtype=int))
    assert found.raw.estimate == found.gwet.estimate == 1
    assert found.cohen is None and found.fleiss is None and found.krippendorff is None
    assert "no agreement beyond chance" in found.warnings[0]
    assert Agreement.from_json(found.to_json()) == found


def test_bad_ratings_are_refused():
    with pytest.raises(InputError, match="shape"):
        agreement([0, 1])
    with pytest.raises(InputError, match="categories"):
        agreement([[0, 7]])
    with pytest.raises(InputError, match="no unit has two"):
        agreement([[0, -1], [-1, 1]])
    with pytest.raises(SpecError, match="weights"):
        agreement([[0, 1]], weights="cubic")
