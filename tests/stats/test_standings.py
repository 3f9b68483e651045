"""Several models: differences against the paired ones, ranks against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from evalkit.errors import InputError
from evalkit.stats.clusters import cluster_codes, cluster_error
from evalkit.stats.standings import standings


def test_a_pair_s_error_is_that_of_its_paired_differences():
    rng = np.random.default_rng(0)
    tables = [rng.random((n, 3)) for n in (40, 70)]
    found = standings(tables, ["a", "b", "c"], n_draws=500)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        d = [table[:, i] - table[:, j] for table in tables]
        value, low, high = found.difference(i, j)
        error = np.sqrt(sum(one.var(ddof=1) / len(one) for one in d)) / 2
        assert value == pytest.approx(np.mean([one.mean() for one in d]))
        assert (high - low) / 2 == pytest.approx(found.critical * error)


def test_clusters_are_summed_before_they_are_squared():
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(20), 4)
    table = rng.random((80, 2)) + rng.random(20)[cluster][:, None] * [1, -1]
    found = standings([table], ["a", "b"], clusters=[cluster.tolist()], n_draws=500)
    _, low, high = found.difference(0, 1)
    codes, sizes = cluster_codes(cluster.tolist(), 80)
    assert (high - low) / 2 / found.critical == pytest.approx(
        cluster_error(table[:, 0] - table[:, 1], codes, sizes, "CR1"), rel=1e-9
    )


def test_two_models_have_the_critical_value_of_t():
    from scipy import stats

    table = np.random.default_rng(2).random((30, 2))
    assert standings([table], ["a", "b"], n_draws=40_000).critical == pytest.approx(stats.t.ppf(0.975, 29), rel=0.03)


def test_rank_sets_hold_all_true_ranks_at_once_in_nearly_all_repetitions():
    rng, held, n = np.random.default_rng(3), 0, 200
    true = np.array([0.50, 0.55, 0.60, 0.75])
    ranks = 1 + (true[:, None] < true).sum(axis=1)
    for repetition in range(n):
        items = (rng.random((120, 1)) * 0.6 + rng.random((120, 4)) * 0.4 < true).astype(float)
        found = standings([items], list("abcd"), n_draws=400, seed=repetition)
        held += all(low <= rank <= high for low, rank, high in zip(found.rank_low, ranks, found.rank_high, strict=True))
    assert held >= 0.93 * n


def test_a_clearly_best_model_is_first_and_equal_ones_share_ranks():
    rng = np.random.default_rng(4)
    equal = (rng.random((300, 2)) < 0.3).astype(float)
    found = standings([np.column_stack([np.ones(300), equal])], ["best", "x", "y"], n_draws=500)
    assert (found.rank_low[0], found.rank_high[0]) == (1, 1)
    assert (found.rank_low[1], found.rank_high[1]) == (2, 3)
    assert standings([np.column_stack([np.ones(300), equal])], ["best", "x", "y"], n_draws=500) == found
    assert type(found).from_json(found.to_json()) == found


def test_models_that_always_agree_have_no_interval_and_may_be_of_any_rank_between_them():
    rng = np.random.default_rng(5)
    one = rng.random(40)
    found = standings([np.column_stack([one, one, one + 0.1, rng.random(40)])], list("abcd"), n_draws=500)
    assert found.difference(0, 1) == (0.0, None, None)
    assert found.difference(0, 2)[1:] == (None, None)  # one item like these says as much as forty
    assert (found.rank_low[0], found.rank_high[0]) == (found.rank_low[1], found.rank_high[1])
    assert found.to_frame().low.isna().sum() == 3
    same = standings([np.column_stack([one, one])], ["a", "b"], n_draws=500)
    assert same.difference(0, 1) == (0.0, None, None)
    assert (same.rank_low, same.rank_high) == ((1, 1), (2, 2))


def test_what_cannot_be_ranked_is_refused():
    for scores, names in (
        ([np.ones((9, 2))], ["a"]),
        ([np.full((9, 2), np.nan)], ["a", "b"]),
        ([np.ones((4, 2))], ["a", "b"]),
    ):
        with pytest.raises(InputError):
            standings(scores, names)
