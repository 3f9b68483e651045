"""Intervals of one proportion: k of n items, independent or in clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.clusters import (
    MIN_CLUSTERS,
    Floats,
    cluster_codes,
    cluster_error,
    intraclass_correlation,
    t_interval,
)
from evalkit.stats.results import Estimate

ProportionMethod = Literal["wilson", "wilson-modified", "clopper-pearson", "jeffreys", "uniform"]

SMALL: Final = 10
"""With fewer items no approximate interval holds its level; Clopper and Pearson's does."""

RARE: Final = 5.0
"""With the rarer answer worth fewer independent items than this, clusters' likeness cannot be estimated."""

_NAMES: Final = {
    "wilson": "Wilson",
    "wilson-modified": "Wilson",
    "clopper-pearson": "Clopper-Pearson",
    "jeffreys": "Jeffreys",
    "uniform": "Beta(1, 1) posterior",
}


def proportion(
    successes: int, n: int, *, method: ProportionMethod | None = None, confidence_level: float = 0.95
) -> Estimate:
    """Estimate a proportion from independent items. No interval has zero width, whatever the count.

    Parameters
    ----------
    successes, n
        How many of how many.
    method
        `wilson`: the score interval (Wilson 1927, JASA 22:209), right on average over proportions, but a 95% interval
        covers down to 84% near 0 and 1.
        `wilson-modified`: with that mended for 1 to 3 items on the rare side (Brown, Cai and DasGupta 2001, Statistical
        Science 16:101, section 4.1.1); no interval is narrower than Wilson's. The default from 10 items on.
        `clopper-pearson`: never below its level, and wider (1934, Biometrika 26:404). The default below 10 items.
        `jeffreys`, `uniform`: equal-tailed posterior intervals of the priors Beta(1/2, 1/2) and Beta(1, 1), with the
        end at 0 or 1 when no item, or every item, succeeds (Brown, Cai and DasGupta; Bowyer et al. 2025,
        arXiv:2503.01747).
    confidence_level
        Of the two-sided interval.

    Raises
    ------
    InputError
        There is no item, or not 0 <= successes <= n.
    SpecError
        The method or the level is none.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} of {n} is no proportion", do="Count 0 to n successes among at least one item")
    if not 0 < confidence_level < 1:
        raise SpecError(f"{confidence_level} is no confidence level", do="Give one between 0 and 1")
    chosen = method or ("clopper-pearson" if n < SMALL else "wilson-modified")
    low, high = interval(successes, n, method=chosen, confidence_level=confidence_level)
    changed = (low, high) != interval(successes, n, method="wilson", confidence_level=confidence_level)
    modified = " with exact ends" if chosen == "wilson-modified" and changed else ""
    rate = successes / n
    return Estimate(
        estimate=rate,
        low=low,
        high=high,
        confidence_level=confidence_level,
        method=_NAMES[chosen] + modified,
        population="items like these",
        unit="items",
        n=n,
        n_items=n,
        standard_error=math.sqrt(rate * (1 - rate) / n),
        quantity="the proportion",
    )


def interval(
    successes: float, n: float, *, method: ProportionMethod, confidence_level: float = 0.95
) -> tuple[float, float]:
    """Return the two ends; counts need not be whole, so that n may be an effective number of items.

    Raises
    ------
    SpecError
        There is no such method.
    """
    tail = (1 - confidence_level) / 2
    if method in ("wilson", "wilson-modified"):
        low, high = wilson(successes / n, n, float(stats.norm.isf(tail)))
        if method == "wilson-modified":
            low = min(low, _rare_end(successes, n, 2 * tail))
            high = max(high, 1 - _rare_end(n - successes, n, 2 * tail))
        return low, high
    priors = {"clopper-pearson": None, "jeffreys": 0.5, "uniform": 1.0}
    if method not in priors:
        raise SpecError(f"{method!r} is no interval of a proportion", do=f"Choose of wilson, {', '.join(priors)}")
    prior = priors[method]
    failures = n - successes
    before, after = (0.0, 1.0) if prior is None else (prior, prior)
    low = 0.0 if successes <= 0 else float(stats.beta.ppf(tail, successes + before, failures + after))
    high = 1.0 if failures <= 0 else float(stats.beta.isf(tail, successes + after, failures + before))
    return low, high


def wilson(rate: float, n: float, critical: float) -> tuple[float, float]:
    """Return the ends of the score interval for a rate over `n` items and a critical value of z or t."""
    square = critical**2 / n
    centre = (rate + square / 2) / (1 + square)
    half = math.sqrt(square * (rate * (1 - rate) + square / 4)) / (1 + square)
    # Rounding would else put the ends beyond 0 and 1, or a hair inside where they are 0 and 1 exactly.
    return min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate)


def _rare_end(rare: float, n: float, alpha: float) -> float:
    """Lower end for 1 to 3 successes: that of a Poisson count, one-sided at the whole level."""
    if not 1 <= rare <= (2 if n <= 50 else 3):
        return 1.0
    return float(stats.chi2.ppf(alpha, 2 * rare)) / 2 / n


def clustered_proportion(right: npt.ArrayLike, cluster: Sequence[Any], *, confidence_level: float = 0.95) -> Estimate:
    """Estimate a proportion of items in clusters by the score interval for as many independent items as they are worth.

    The effective number of items is p (1 - p) / SE^2 with the CR2 error, and at most n / (1 + (m - 1) ICC) with
    m = sum m_c^2 / n: the error alone is too small when the rare answers happen to lie in small clusters. The critical
    value is that of t with the degrees of freedom of CR2 (effective numbers in score intervals: Korn and Graubard 1998,
    Survey Methodology 24:193; Franco, Little, Louis and Slud 2019, Journal of Survey Statistics and Methodology 7:334).
    A t interval ends beyond 0 and 1, and misses far more often near them.

    Where the rarer answer is worth fewer than 5 independent items, the data cannot tell how alike clusters are: then
    the effective number is the geometric mean of that and of the clusters' own, n / m, in Clopper and Pearson's
    interval with Korn and Graubard's factor (z / t)^2. This is our own rule; the validity tables show how it covers.
    If all answers are equal, each cluster counts as one item.

    Parameters
    ----------
    right
        Shape (n,), each 0 or 1.
    cluster
        Length n.

    Raises
    ------
    InputError
        An answer is not 0 or 1, or the clusters do not fit.
    """
    of = np.asarray(right, dtype=float)
    if of.ndim != 1 or not len(of) or not np.isin(of, (0.0, 1.0)).all():
        raise InputError(
            "a proportion needs at least one answer, each 0 or 1", do="Use clustered_mean for other scores"
        )
    codes, sizes = cluster_codes(cluster, len(of))
    found = t_interval(of, codes, sizes, confidence_level=confidence_level)
    if len(sizes) < MIN_CLUSTERS or found.df is None:
        return found
    overlap = float(np.sum(sizes**2)) / len(of)
    alike = min(max(intraclass_correlation(of, cluster) or 0.0, 0.0), 1.0)
    return effective_interval(found, most=len(of) / (1 + (overlap - 1) * alike), own=len(of) / overlap)


def mean_of_answers(right: Floats, cluster: Sequence[Any] | None, *, confidence_level: float = 0.95) -> Estimate:
    """Estimate a proportion by `proportion`'s default, or over clusters of several items by `clustered_proportion`.

    Parameters
    ----------
    right
        Shape (n,), each 0 or 1.
    cluster
        Length n; None when all items are independent.
    """
    codes, sizes = cluster_codes(cluster, len(right))
    if cluster is not None and len(sizes) < len(right):
        return clustered_proportion(right, cluster, confidence_level=confidence_level)
    found = proportion(int(right.sum()), len(right), confidence_level=confidence_level)
    error = cluster_error(right, codes, sizes) if len(right) > 1 else None
    return replace(found, standard_error=error)


def effective_interval(found: Estimate, *, most: float, own: float) -> Estimate:
    """Give a mean of answers the score interval for as many independent answers as it is worth.

    Parameters
    ----------
    found
        The mean, in [0, 1], with its standard error and degrees of freedom.
    most
        The most independent answers that it can be worth.
    own
        What it is worth if all answers of a unit are copies of each other.
    """
    rate, tail = found.estimate, (1 - found.confidence_level) / 2
    critical = float(stats.t.isf(tail, found.df))
    method: ProportionMethod = "wilson"
    if not found.standard_error:
        low, high = wilson(rate, found.n, critical)
    else:
        worth = min(rate * (1 - rate) / found.standard_error**2, most)
        if worth * min(rate, 1 - rate) < RARE:
            method = "clopper-pearson"
            worth = min(worth, math.sqrt(worth * own)) * (float(stats.norm.isf(tail)) / critical) ** 2
            low, high = interval(rate * worth, worth, method=method, confidence_level=found.confidence_level)
        else:
            low, high = wilson(rate, worth, critical)
    clustered = ", clusters CR2" if found.unit == "clusters" else ""
    return replace(
        found,
        low=low,
        high=high,
        method=f"{_NAMES[method]}, effective number of items{clustered}",
        quantity="the proportion",
        # What the t interval warns of does not concern this one, but for few clusters.
        warnings=tuple(one for one in found.warnings if "clusters are few" in one),
    )
