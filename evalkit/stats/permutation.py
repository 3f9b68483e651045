"""The sign-flip test of a paired difference: exact where it can be, over clusters, studentised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import special

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import vector
from evalkit.stats.clusters import MIN_CLUSTERS, Floats, cluster_codes
from evalkit.stats.few_units import studentised_p_value
from evalkit.stats.results import TestResult

MAX_EXACT: Final = 1_000_000
"""With at most so many distinct outcomes all are enumerated, and the p value has no error."""

_TIE: Final = 1e-9
"""Statistics that differ by less, relatively, are equal: sums of the same numbers in another order."""

_BLOCK: Final = 1 << 22
"""Signs, or counts, in memory at a time."""


def sign_flip(
    difference: npt.ArrayLike,
    *,
    cluster: Sequence[Any] | None = None,
    n_resamples: int = 9_999,
    resampling_seed: int = 0,
) -> TestResult:
    """Test that differences are as likely to be turned as not, for each cluster as a whole.

    The statistic is |mean| / SE with SE^2 = sum_c (s_c - mean m_c)^2 / n^2, s_c a cluster's sum and m_c its items: with
    this ratio, unlike with the mean itself, the test of a zero mean has its size for many clusters also where they are
    not symmetric (Janssen 1997, Statistics and Probability Letters 36:9; Canay, Romano and Shaikh 2017, Econometrica
    85:1013). Clusters with the same |s_c| and m_c are exchangeable, so outcomes are counts of turned clusters of each
    kind: of differences of -1, 0 and 1 and no clusters there are b + c + 1, and the test is McNemar's exact one. Up to
    `MAX_EXACT` outcomes all are enumerated; beyond, p = (1 + number at least as far) / (1 + n_resamples) (Phipson and
    Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9:39).

    Parameters
    ----------
    difference
        Shape (n,): B - A for each item (repeats and seeds averaged before).
    cluster
        Length n: the source that an item shares with others; None when all items are independent.
    n_resamples
        Random sign vectors, where not all can be enumerated.
    resampling_seed
        Of these.

    Raises
    ------
    InputError
        A difference is not finite, or there are 2 to 4 clusters of several items, with which no p value is below 0.1.
    SpecError
        There is no resample.
    """
    if n_resamples < 1:
        raise SpecError(f"{n_resamples} resamples are none", do="Give at least 1; 9999 is usual")
    of = vector(difference, "differences")
    codes, sizes = cluster_codes(cluster, len(of))
    n_units = len(sizes)
    clustered = n_units < len(of)
    if clustered and n_units < MIN_CLUSTERS:
        raise InputError(f"{n_units} clusters are too few to turn", do=f"Take at least {MIN_CLUSTERS}")
    sums: Floats = np.bincount(codes, weights=of, minlength=n_units).astype(float)
    kinds = _kinds(sums, sizes)
    n_outcomes = float(np.prod(kinds.counts + 1.0))
    exact = n_outcomes <= MAX_EXACT
    observed = float(_statistic(np.array([sums.sum()]), np.array([sums @ sizes]), kinds)[0])
    if not len(kinds.counts):
        p_value = 1.0
    elif exact:
        p_value = _enumerate(kinds, observed)
    else:
        p_value = (1 + _draw(kinds, observed, n_resamples, resampling_seed)) / (1 + n_resamples)
    return TestResult(
        p_value=p_value,
        method=f"sign-flip permutation, studentised, {'all' if exact else n_resamples} sign vectors",
        null_hypothesis="the differences are symmetric around zero",
        n=len(of),
        statistic=observed if sums.sum() >= 0 else -observed,
        unit="clusters" if clustered else "items",
        n_units=n_units,
        population="items like these, answered by these two models",
        resampling_seed=None if exact else resampling_seed,
        n_resamples=None if exact else n_resamples,
        monte_carlo_error=None if exact else float(np.sqrt(p_value * (1 - p_value) / n_resamples)),
    )


def mean_difference_test(
    difference: npt.ArrayLike,
    *,
    cluster: Sequence[Any] | None = None,
    n_resamples: int = 9_999,
    resampling_seed: int = 0,
) -> TestResult:
    """Test that the mean difference is zero, also where differences are not symmetric around it.

    For many units `sign_flip` does. Below 100 it is wrong too often for skewed scores, so there the p value is the
    larger of its and the studentised bootstrap's (`few_units.studentised_p_value`), as the interval of
    `few_units.graded_mean` is the wider of two. Differences of -1, 0 and 1 have `sign_flip`'s alone.

    Parameters
    ----------
    difference, cluster, n_resamples, resampling_seed
        As in `sign_flip`.

    Raises
    ------
    InputError, SpecError
        As in `sign_flip`.
    """
    found = sign_flip(difference, cluster=cluster, n_resamples=n_resamples, resampling_seed=resampling_seed)
    of = vector(difference, "differences")
    found = replace(found, null_hypothesis="the mean difference is zero")
    other = None if np.isin(of, (-1.0, 0.0, 1.0)).all() else studentised_p_value(of, *cluster_codes(cluster, len(of)))
    if other is None:
        return found
    p_value = max(found.p_value, other)
    return replace(
        found,
        p_value=p_value,
        method=f"{found.method}, and studentised bootstrap, the larger p",
        resampling_seed=resampling_seed,
        n_resamples=n_resamples,
        monte_carlo_error=float(np.sqrt(p_value * (1 - p_value) / n_resamples)),
    )


class _Kinds:
    """Clusters of one |sum| and size together: how many there are of each, and what turns with them."""

    def __init__(self, sums: Floats, sizes: Floats, counts: npt.NDArray[np.int64], all_sizes: Floats, n: float) -> None:
        self.sums, self.sizes, self.counts = sums, sizes, counts
        self.square_sums = float(np.sum(counts * sums**2))
        self.square_sizes = float(np.sum(all_sizes**2))
        self.n = n


def _kinds(sums: Floats, sizes: Floats) -> _Kinds:
    # A cluster whose sum is zero is the same when turned.
    turns = np.abs(sums) > _TIE * np.max(np.abs(sums), initial=0.0)
    rows = np.column_stack([np.round(np.abs(sums[turns]), 12), sizes[turns]])
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    return _Kinds(distinct[:, 0], distinct[:, 1], counts, sizes, float(sizes.sum()))


def _statistic(total: Floats, cross: Floats, kinds: _Kinds) -> Floats:
    """|mean| / SE, but for a factor, from the sum of all differences and the sum of s_c m_c over clusters."""
    mean = total / kinds.n
    variance = kinds.square_sums - 2 * mean * cross + mean**2 * kinds.square_sizes
    floor = 1e-12 * max(kinds.square_sums, np.finfo(float).tiny)
    # Where all means are equal the variance is zero but for rounding: as far from zero as can be.
    found: Floats = np.abs(total) / np.sqrt(np.maximum(variance, floor))
    return found


def _enumerate(kinds: _Kinds, observed: float) -> float:
    """Probability of a statistic at least as large, over all outcomes: kind j has m_j - 2 k_j turned, binomially."""
    total, cross, logs = np.zeros(1), np.zeros(1), np.zeros(1)
    for value, size, count in zip(kinds.sums, kinds.sizes, kinds.counts, strict=True):
        net = count - 2.0 * np.arange(count + 1)
        chance = special.gammaln(count + 1) - special.gammaln(np.arange(count + 1) + 1)
        chance = chance - special.gammaln(count - np.arange(count + 1) + 1) - count * np.log(2)
        total = np.add.outer(total, net * value).ravel()
        cross = np.add.outer(cross, net * value * size).ravel()
        logs = np.add.outer(logs, chance).ravel()
    far = _statistic(total, cross, kinds) >= observed * (1 - _TIE)
    return min(1.0, float(np.exp(logs[far]).sum()))


def _draw(kinds: _Kinds, observed: float, n_resamples: int, seed: int) -> int:
    """Count random outcomes at least as far."""
    rng = np.random.default_rng(seed)
    block, found = max(1, _BLOCK // len(kinds.counts)), 0
    for begin in range(0, n_resamples, block):
        rows = min(block, n_resamples - begin)
        if kinds.counts.max() == 1:
            net = rng.integers(0, 2, size=(rows, len(kinds.counts)), dtype=np.int8) * 2.0 - 1
        else:
            net = 2.0 * rng.binomial(kinds.counts, 0.5, size=(rows, len(kinds.counts))) - kinds.counts
        totals = np.asarray(net @ np.column_stack([kinds.sums, kinds.sums * kinds.sizes]), dtype=float)
        found += int(np.sum(_statistic(totals[:, 0], totals[:, 1], kinds) >= observed * (1 - _TIE)))
    return found
