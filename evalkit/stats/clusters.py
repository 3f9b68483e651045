"""Items that share a source: cluster-robust errors of a mean, their degrees of freedom, intraclass correlation.

Notation: cluster c has m_c of the n items, and e_c is the sum of its items' residuals from the mean; there are G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.errors import InputError
from evalkit.stats.results import Estimate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Estimator = Literal["CR1", "CR2", "CR3"]

MIN_CLUSTERS: Final = 5
"""Below this many clusters no interval is given: none covers as it says."""

ITEMS_PER_SQUARED_SKEWNESS: Final = 25
"""A t interval of fewer items than this times the squared skewness comes with a warning (Cochran 1977, section
2.15)."""

FEW_DEGREES: Final = 19
"""Below these degrees of freedom, those of 20 clusters of one size, a clustered interval comes with a warning."""


def cluster_codes(cluster: Sequence[Any] | None, n: int) -> tuple[Ints, Floats]:
    """Return each item's cluster as a number from 0, shape (n,), and the clusters' sizes, shape (G,).

    Without clusters every item is one of its own.

    Raises
    ------
    InputError
        There are more or fewer labels than items.
    """
    if cluster is None:
        return np.arange(n), np.ones(n)
    if len(cluster) != n:
        raise InputError(f"{len(cluster)} clusters for {n} items", do="Give one cluster for each item")
    labels = np.asarray(cluster if isinstance(cluster, np.ndarray) else list(cluster))
    # Text, as mixed types cannot be sorted; whole numbers are quicker as they are.
    codes = np.unique(labels if labels.dtype.kind in "iu" else labels.astype(str), return_inverse=True)[1]
    return codes, np.bincount(codes).astype(float)


def cluster_error(values: Floats, codes: Ints, sizes: Floats, estimator: Estimator = "CR2") -> float:
    """Return the cluster-robust standard error of the mean of `values`.

    SE^2 = sum_c r_c^2 / n^2 with, for a mean (Bell and McCaffrey 2002, Survey Methodology 28:169),

        CR1  r_c = e_c sqrt(G / (G - 1))
        CR2  r_c = e_c / sqrt(1 - m_c / n)
        CR3  r_c = e_c / (1 - m_c / n)

    For clusters of one item CR1 and CR2 are s / sqrt(n). All three are equal up to a constant for clusters of one size.

    Parameters
    ----------
    values
        Shape (n,).
    codes, sizes
        As `cluster_codes` returns them; at least two clusters.
    """
    n, n_clusters = len(values), len(sizes)
    residuals = np.bincount(codes, weights=values - values.mean(), minlength=n_clusters)
    left = 1 - sizes / n
    factor = {"CR1": np.full(n_clusters, n_clusters / (n_clusters - 1)), "CR2": 1 / left, "CR3": 1 / left**2}[estimator]
    return float(np.sqrt(np.sum(residuals**2 * factor))) / n


def cluster_degrees(sizes: npt.NDArray[np.float64]) -> float:
    """Return the degrees of freedom of the CR2 error of a mean over clusters.

    They match the mean and variance of the estimated variance to a scaled chi-squared (Satterthwaite) when all items
    are independent and vary alike (Bell and McCaffrey 2002; Imbens and Kolesar 2016, REStat 98:701). The residual sum
    of cluster g, adjusted, is w_g'd; w_g'w_h = ([g = h] m_g - m_g m_h / n) / (n^2 sqrt((1 - m_g/n) (1 - m_h/n))), and
    df = tr(W)^2 / sum(W^2) of that G x G matrix W. With u_g = m_g^2 / (1 - m_g/n) this is

        df = n^2 / (sum m^2 + ((sum u)^2 - sum u^2) / n^2),

    without the matrix. Clusters of one size give G - 1.

    Parameters
    ----------
    sizes
        Shape (G,), G > 1: items of each cluster, the m above.
    """
    if not np.ptp(sizes):
        return float(len(sizes) - 1)  # the formula gives the same but for rounding
    n = sizes.sum()
    u = sizes**2 / (1 - sizes / n)
    return float(n**2 / (np.sum(sizes**2) + (u.sum() ** 2 - np.sum(u**2)) / n**2))


def t_interval(
    values: Floats,
    codes: Ints,
    sizes: Floats,
    *,
    estimator: Estimator = "CR2",
    confidence_level: float = 0.95,
    population: str = "items like these",
    method: str = "t",
) -> Estimate:
    """Estimate a mean with the t interval over clusters, or over items where every cluster has one.

    CR2 takes the degrees of freedom of `cluster_degrees`, CR1 and CR3 take G - 1. There is no interval, and a warning,
    for one unit, for fewer than `MIN_CLUSTERS` clusters, and where all values are equal.

    Parameters
    ----------
    values
        Shape (n,), finite.
    codes, sizes
        As `cluster_codes` returns them.
    """
    n, n_units = len(values), len(sizes)
    clustered = n_units < n
    mean = float(values.mean())
    standard_error, df, low, high, warnings = None, None, None, None, []
    if n_units > 1:
        # CR2 with singleton clusters is the usual standard error.
        df = cluster_degrees(sizes) if estimator == "CR2" else float(n_units - 1)
        standard_error = cluster_error(values, codes, sizes, estimator if clustered else "CR2")
    if df is None:
        warnings.append("one independent unit gives no interval")
    elif clustered and n_units < MIN_CLUSTERS:
        warnings.append(f"{n_units} clusters are too few for an interval (at least {MIN_CLUSTERS})")
    elif np.ptp(values) == 0:
        standard_error = 0.0
        warnings.append("all items are equal, so their spread says nothing about other items")
    else:
        half = float(stats.t.ppf((1 + confidence_level) / 2, df)) * (standard_error or 0.0)
        low, high = mean - half, mean + half
        residuals = values - mean
        skewness = 0.0 if clustered else float(np.mean(residuals**3) / np.mean(residuals**2) ** 1.5)
        if n < ITEMS_PER_SQUARED_SKEWNESS * skewness**2:
            warnings.append(
                f"{n} items are few for scores this skewed ({skewness:+.1f}): it may cover less than it says"
            )
        if clustered and df < FEW_DEGREES:
            uneven = (
                f" (of uneven size, worth {df + 1:.1f} of one size)" if np.ptp(sizes) and estimator == "CR2" else ""
            )
            warnings.append(f"{n_units} clusters are few{uneven}: the interval may not cover as it says")
    return Estimate(
        estimate=mean,
        low=low,
        high=high,
        confidence_level=confidence_level,
        method=f"{method}, clusters {estimator}" if clustered else method,
        population=population,
        unit="clusters" if clustered else "items",
        n=n_units,
        n_items=n,
        standard_error=standard_error,
        df=df,
        warnings=tuple(warnings),
        quantity="the mean",
    )


def intraclass_correlation(values: npt.ArrayLike, cluster: Sequence[Any]) -> float | None:
    """Return the share of the items' variance that lies between clusters, by analysis of variance.

    (MSB - MSW) / (MSB + (m0 - 1) MSW) with m0 = (n - sum m^2 / n) / (G - 1) (Donner 1986, International Statistical
    Review 54:67). It can be negative. None without a cluster of two items, with one cluster, or without variance.

    Parameters
    ----------
    values
        Shape (n,).
    cluster
        Length n.
    """
    of = np.asarray(values, dtype=float)
    codes, sizes = cluster_codes(cluster, len(of))
    n, n_clusters = len(of), len(sizes)
    if n_clusters < 2 or n == n_clusters:
        return None
    means = np.bincount(codes, weights=of) / sizes
    between = float(np.sum(sizes * (means - of.mean()) ** 2)) / (n_clusters - 1)
    within = float(np.sum((of - means[codes]) ** 2)) / (n - n_clusters)
    size = (n - float(np.sum(sizes**2)) / n) / (n_clusters - 1)
    total = between + (size - 1) * within
    return (between - within) / total if total > 0 else None


def design_effect(values: npt.ArrayLike, cluster: Sequence[Any]) -> float | None:
    """Return the factor by which clusters enlarge the variance of the mean: CR2 against independent items.

    `n / design_effect` independent items would tell as much. None with one cluster, or without variance.
    """
    of = np.asarray(values, dtype=float)
    codes, sizes = cluster_codes(cluster, len(of))
    if len(sizes) < 2 or np.ptp(of) == 0:
        return None
    return (cluster_error(of, codes, sizes) / cluster_error(of, *cluster_codes(None, len(of)))) ** 2
