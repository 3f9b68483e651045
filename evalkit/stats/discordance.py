"""Right or wrong on the same items: intervals of the paired difference, McNemar's test, and the odds of a win.

Notation: of n items, `b` only the first model got right and `c` only the second; the difference is (c - b) / n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.proportions import interval
from evalkit.stats.results import Estimate, TestResult

Pvalue = Literal["mid-p", "exact"]
PairedMethod = Literal["bonett-price", "tango"]

POPULATION = "items like these, answered by these two models"


def discordant_counts(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[int, int, int]:
    """Count the items that only the first, and only the second, got right, and all items.

    Parameters
    ----------
    a, b
        Shape (n,): 0 or 1 for each item.

    Raises
    ------
    InputError
        A score is not 0 or 1, or the lengths differ.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise InputError(f"scores must be two arrays of one length, not {first.shape} and {second.shape}")
    if not np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        raise InputError("counting items that only one got right needs scores of 0 and 1", do="Use paired_difference")
    return int(np.sum(first > second)), int(np.sum(second > first)), len(first)


def proportion_difference(
    b: int, c: int, n: int, *, method: PairedMethod = "bonett-price", confidence_level: float = 0.95
) -> Estimate:
    """Estimate the difference of two proportions on the same independent items, (c - b) / n, with its interval.

    Parameters
    ----------
    b, c, n
        Items that only the first and only the second got right, and all items.
    method
        `bonett-price`: a normal interval around d = (c - b) / (n + 2), with the variance
        ((b + c + 2) / (n + 2) - d^2) / (n + 2): as if one more item of each kind had been seen (Bonett and Price 2012,
        Journal of Educational and Behavioral Statistics 37:479). It covers as often as it says for small n too.
        `tango`: all differences that the score test does not reject (Tango 1998, Statistics in Medicine 17:891); it is
        narrower, and can cover a little less than it says.
    confidence_level
        Of the two-sided interval.

    Raises
    ------
    InputError
        The counts are no counts.
    SpecError
        There is no such method.
    """
    _check(b, c, n)
    critical = float(stats.norm.isf((1 - confidence_level) / 2))
    if method == "bonett-price":
        low, high = _bonett_price(b, c, n, critical)
    elif method == "tango":
        low, high = -_tango_end(c, b, n, critical), _tango_end(b, c, n, critical)
    else:
        raise SpecError(f"{method!r} is no interval of a paired difference", do="Choose bonett-price or tango")
    difference = (c - b) / n
    return Estimate(
        estimate=difference,
        low=low,
        high=high,
        confidence_level=confidence_level,
        method={"bonett-price": "Bonett-Price", "tango": "Tango score"}[method],
        population=POPULATION,
        unit="items",
        n=n,
        n_items=n,
        standard_error=math.sqrt(((b + c) / n - difference**2) / (n - 1)) if n > 1 else None,
        quantity="the difference B - A",
    )


def _check(b: int, c: int, n: int) -> None:
    if min(b, c) < 0 or n < 1 or b + c > n:
        raise InputError(f"{b} and {c} of {n} items cannot be discordant", do="Give two counts that fit into n")


def _bonett_price(b: int, c: int, n: int, critical: float) -> tuple[float, float]:
    centre = (c - b) / (n + 2)
    half = critical * math.sqrt(((b + c + 2) / (n + 2) - centre**2) / (n + 2))
    return max(centre - half, -1.0), min(centre + half, 1.0)


def _tango_end(b: int, c: int, n: int, critical: float) -> float:
    """Upper end of Tango's interval: the largest difference whose score test does not reject."""

    def score(delta: float) -> float:
        # The restricted estimate of the share of b, from its quadratic (Tango 1998, equation 8).
        linear = -c - b + (2 * n - c + b) * delta
        constant = -b * delta * (1 - delta)
        share = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        gap = c - b - n * delta
        return gap / math.sqrt(variance) if variance > 0 else (-math.inf if gap < 0 else 0.0)

    observed = (c - b) / n
    if score(1.0 - 1e-12) > -critical:
        return 1.0
    return float(optimize.brentq(lambda delta: score(delta) + critical, observed, 1.0 - 1e-12, xtol=1e-12))


def mcnemar(
    a: npt.ArrayLike, b: npt.ArrayLike, *, cluster: Sequence[Any] | None = None, method: Pvalue = "mid-p"
) -> TestResult:
    """Test whether two models are right equally often on the same items (McNemar 1947, Psychometrika 12:153).

    Parameters
    ----------
    a, b
        Shape (n,): 0 or 1 for each item.
    cluster
        Only to warn: the test takes items as independent; `permutation.sign_flip` does not.
    method
        `mid-p` has a size close to the nominal one; `exact` never exceeds it and is conservative
        (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91).

    Raises
    ------
    InputError
        A score is not 0 or 1, or the lengths differ.
    """
    only_first, only_second, n = discordant_counts(a, b)
    clustered = cluster is not None and len(set(map(str, cluster))) < n
    warnings = ("items of one cluster are not independent, so p is too small",) if clustered else ()
    return TestResult(
        p_value=discordant_p_value(only_first, only_second, method=method),
        method=f"McNemar {method}",
        null_hypothesis="both are right equally often on items like these",
        n=n,
        b=only_first,
        c=only_second,
        warnings=warnings,
    )


def discordant_p_value(b: int, c: int, *, method: Pvalue = "mid-p") -> float:
    """Return the two-sided p value for b and c discordant pairs: under the null, b is Binomial(b + c, 1/2).

    Raises
    ------
    SpecError
        There is no such method.
    """
    if method not in ("mid-p", "exact"):
        raise SpecError(f"{method!r} is no way to count the observed outcome", do="Choose mid-p or exact")
    total, smaller = b + c, min(b, c)
    if total == 0:
        return 1.0
    tail, point = float(stats.binom.cdf(smaller, total, 0.5)), float(stats.binom.pmf(smaller, total, 0.5))
    if method == "exact":
        return min(1.0, 2 * tail)
    return 1 - point / 2 if b == c else 2 * tail - point


def win_share(b: int, c: int, n: int, *, confidence_level: float = 0.95) -> Estimate:
    """Estimate the share c / (b + c) of the items that only one model got right which the second wins.

    The interval is Wilson's, with its ends mended (`proportions.proportion`). It says nothing of how many items differ.

    Parameters
    ----------
    b, c, n
        As in `proportion_difference`.

    Raises
    ------
    InputError
        The counts are no counts.
    """
    return _of_wins(b, c, n, confidence_level, odds=False)


def odds_ratio(b: int, c: int, n: int, *, confidence_level: float = 0.95) -> Estimate:
    """Estimate the odds c / b that the second model wins an item that only one of them gets right.

    This is the conditional odds ratio of matched pairs; its interval is that of `win_share`, s / (1 - s) of either end.
    It is infinite where the first model wins no item.

    Parameters
    ----------
    b, c, n
        As in `proportion_difference`.

    Raises
    ------
    InputError
        The counts are no counts.
    """
    return _of_wins(b, c, n, confidence_level, odds=True)


def _of_wins(b: int, c: int, n: int, confidence_level: float, *, odds: bool) -> Estimate:
    _check(b, c, n)
    total = b + c
    # No discordant item tells nothing: every share is possible.
    low, high = interval(c, total, method="wilson-modified", confidence_level=confidence_level) if total else (0.0, 1.0)
    share = c / total if total else 0.5

    def shown(at: float) -> float:
        return at if not odds else (at / (1 - at) if at < 1 else math.inf)

    return Estimate(
        estimate=shown(share),
        low=shown(low),
        high=shown(high),
        confidence_level=confidence_level,
        method="Wilson, of the odds" if odds else "Wilson",
        population=POPULATION,
        unit="items",
        n=total,
        n_items=n,
        warnings=() if total else ("both are right on the same items, so nothing is known of who wins the others",),
        quantity="the odds that B wins an item that only one gets right" if odds else "B's share of one-sided items",
    )
