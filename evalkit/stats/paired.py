"""Two models on the same items: the paired difference with its interval, effect sizes, and the unpaired fallback."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.errors import InputError
from evalkit.stats.arrays import vector
from evalkit.stats.clusters import MIN_CLUSTERS, Floats, cluster_codes, cluster_error, t_interval
from evalkit.stats.discordance import POPULATION, discordant_counts, odds_ratio, proportion_difference
from evalkit.stats.few_units import graded_mean
from evalkit.stats.results import Estimate, Result


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    cluster: Sequence[Any] | None = None,
    confidence_level: float = 0.95,
    method: Literal["t", "auto"] = "t",
) -> Estimate:
    """Estimate the mean of b - a with an interval over independent units.

    Without clusters, SE = sqrt(sum (d_i - mean)^2 / (n (n - 1))) with n - 1 degrees of freedom (Miller 2024,
    arXiv:2411.00640, equation 7). With clusters, the CR2 error and its degrees of freedom (`clusters.t_interval`). CR2
    rather than CR3, because for clusters of one item it is the first formula exactly.

    Parameters
    ----------
    a, b
        Shape (n,): scores of the same items, one per item (repeats and seeds averaged before).
    cluster
        Length n: the source that an item shares with others; None when all items are independent.
    confidence_level
        Of the two-sided interval.
    method
        `auto` gives scores of 0 and 1 what covers also for few items and near 0 and 1: Bonett and Price's interval
        (`discordance.proportion_difference`), with clusters `smoothed_difference`; other scores get the t interval,
        below 100 units widened by the studentised bootstrap (`few_units.graded_mean`). `t` is the t interval for all.

    Raises
    ------
    InputError
        The lengths differ, there is no item, or a score is not finite.
    """
    difference, binary = _difference(a, b)
    codes, sizes = cluster_codes(cluster, len(difference))
    if method == "auto" and binary:
        if len(sizes) == len(difference):
            return proportion_difference(*discordant_counts(a, b), confidence_level=confidence_level)
        return smoothed_difference(difference, cluster, confidence_level=confidence_level)
    interval = graded_mean if method == "auto" else t_interval
    found = interval(
        difference, codes, sizes, confidence_level=confidence_level, population=POPULATION, method="paired t"
    )
    return _as_difference(found)


def smoothed_difference(
    difference: npt.ArrayLike, cluster: Sequence[Any] | None, *, confidence_level: float = 0.95
) -> Estimate:
    """Estimate a mean difference of scores of 0 and 1 over clusters, with an interval that allows for unseen outcomes.

    Bonett and Price's idea for clusters: the interval is that of the data with two more clusters, one in which B wins
    and one in which A does. Each has as many items as one independent item is worth, the design effect. Where all
    differences are equal, each cluster counts as one item. The estimate is the observed mean.

    Parameters
    ----------
    difference
        Shape (n,), each -1, 0 or 1.
    cluster
        Length n.

    Raises
    ------
    InputError
        The lengths differ, or a value is none of these.
    """
    of = vector(difference, "differences")
    if not np.isin(of, (-1.0, 0.0, 1.0)).all():
        raise InputError("differences of right and wrong answers are -1, 0 or 1", do="Use paired_difference")
    codes, sizes = cluster_codes(cluster, len(of))
    plain = _as_difference(
        t_interval(of, codes, sizes, confidence_level=confidence_level, population=POPULATION, method="paired t")
    )
    n_clusters = len(sizes)
    if n_clusters < MIN_CLUSTERS:
        return plain
    if plain.low is None:
        b, c = (n_clusters if plain.estimate == sign else 0 for sign in (-1, 1))
        counted = proportion_difference(b, c, n_clusters, confidence_level=confidence_level)
        return replace(plain, low=counted.low, high=counted.high, method="Bonett-Price, each cluster one item", df=None)
    effect = (plain.standard_error or 0.0) ** 2 / (of.var(ddof=1) / len(of))
    size = min(max(1, round(effect)), max(1, round(len(of) / n_clusters)))
    more = t_interval(
        np.concatenate([of, np.ones(size), -np.ones(size)]),
        np.concatenate([codes, np.repeat([n_clusters, n_clusters + 1], size)]),
        np.concatenate([sizes, [size, size]]),
        confidence_level=confidence_level,
    )
    assert more.low is not None and more.high is not None
    return replace(
        plain,
        low=max(more.low, -1.0),
        high=min(more.high, 1.0),
        method="paired t, clusters CR2, one more cluster of each kind",
    )


def unpaired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    cluster_a: Sequence[Any] | None = None,
    cluster_b: Sequence[Any] | None = None,
    confidence_level: float = 0.95,
) -> Estimate:
    """Estimate mean(b) - mean(a) as if the models had answered different items: only for when they did.

    SE^2 is the sum of the two (cluster-robust) variances, with Welch's and Satterthwaite's degrees of freedom (Welch
    1947, Biometrika 34:28).

    Parameters
    ----------
    a, b
        Shapes (n_a,) and (n_b,).
    cluster_a, cluster_b
        Their clusters; None when items are independent.

    Raises
    ------
    InputError
        One side has no item, or a score is not finite.
    """
    sides = []
    for scores, cluster in ((a, cluster_a), (b, cluster_b)):
        values = vector(scores, "scores")
        sides.append(t_interval(values, *cluster_codes(cluster, len(values)), confidence_level=confidence_level))
    first, second = sides
    mean = second.estimate - first.estimate
    low = high = standard_error = df = None
    errors = [side.standard_error for side in sides if side.df is not None and side.standard_error is not None]
    warnings = ["taken as unpaired: models that answered the same items should be compared item by item"]
    warnings += [warning for side in sides for warning in side.warnings if side.low is None]
    refused = any(side.low is None and side.standard_error != 0 for side in sides)
    if len(errors) == 2 and any(errors) and not refused:
        variances = [error**2 for error in errors]
        standard_error = math.sqrt(sum(variances))
        df = sum(variances) ** 2 / sum(v**2 / (side.df or 1) for v, side in zip(variances, sides, strict=True))
        half = float(stats.t.ppf((1 + confidence_level) / 2, df)) * standard_error
        low, high = mean - half, mean + half
    clustered = "clusters" in (first.unit, second.unit)
    return Estimate(
        estimate=mean,
        low=low,
        high=high,
        confidence_level=confidence_level,
        method="Welch t" + (", clusters CR2" if clustered else ""),
        population="other items like these for either model",
        unit="clusters" if clustered else "items",
        n=first.n + second.n,
        n_items=first.n_items + second.n_items,
        standard_error=standard_error,
        df=df,
        warnings=tuple(dict.fromkeys(warnings)),
        quantity="the difference B - A",
    )


@dataclass(frozen=True)
class EffectSizes(Result):
    """How large a difference is, in units other than points.

    Attributes
    ----------
    difference
        Mean of B - A, in the unit of the scores.
    standardised
        The same divided by the standard deviation of the items' differences (Cohen's d_z); None without variance.
    probability_b_wins
        Share of items on which B scores higher, and half of those on which they are equal.
    share_b, share_a, share_tied
        Shares of items on which B is higher, A is higher, and neither.
    correlation
        Of the two models' scores over items; None where one has no variance.
    standard_error, standard_error_unpaired
        Of the difference, with and without use of the pairing; clustered if there are clusters.
    odds_ratio
        Odds that B wins an item that only one gets right; None for scores other than 0 and 1.
    n_items
        Items.
    """

    difference: float
    standardised: float | None
    probability_b_wins: float
    share_b: float
    share_a: float
    share_tied: float
    correlation: float | None
    standard_error: float | None
    standard_error_unpaired: float | None
    odds_ratio: Estimate | None
    n_items: int

    def explain(self) -> str:
        """Say in two sentences who wins how often, and what the pairing is worth."""
        wins = (
            f"B scores higher on {self.share_b:.1%} of {self.n_items} items, A on {self.share_a:.1%}, and they are"
            f" equal on {self.share_tied:.1%}."
        )
        spread = "" if self.standardised is None else f", {self.standardised:.3g} standard deviations of its items"
        paired = ""
        if self.standard_error is not None and self.standard_error_unpaired is not None:
            errors = f"{self.standard_error:.4g} ({self.standard_error_unpaired:.4g} if unpaired)"
            paired = f", with a standard error of {errors}"
        return f"{wins} The mean difference B - A is {self.difference:.4g}{spread}{paired}."

    def __str__(self) -> str:
        standardised = "" if self.standardised is None else f", d_z {self.standardised:+.3f}"
        return (
            f"{self.difference:+.4f}{standardised}; B higher on {self.share_b:.1%} of items, A on {self.share_a:.1%},"
            f" tied {self.share_tied:.1%}"
        )


def effect_sizes(
    a: npt.ArrayLike, b: npt.ArrayLike, *, cluster: Sequence[Any] | None = None, confidence_level: float = 0.95
) -> EffectSizes:
    """Return the sizes of the difference between two models on the same items.

    Parameters
    ----------
    a, b, cluster, confidence_level
        As in `paired_difference`.

    Raises
    ------
    InputError
        The lengths differ, there is no item, or a score is not finite.
    """
    difference, binary = _difference(a, b)
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n, spread = len(difference), np.ptp(difference) > 0
    codes, sizes = cluster_codes(cluster, n)
    errors = [cluster_error(of, codes, sizes) if len(sizes) > 1 else None for of in (difference, first, second)]
    wins, losses = float(np.mean(difference > 0)), float(np.mean(difference < 0))
    both_vary = np.ptp(first) > 0 and np.ptp(second) > 0
    return EffectSizes(
        difference=float(difference.mean()),
        standardised=float(difference.mean() / difference.std(ddof=1)) if spread else None,
        probability_b_wins=wins + (1 - wins - losses) / 2,
        share_b=wins,
        share_a=losses,
        share_tied=1 - wins - losses,
        correlation=float(np.corrcoef(first, second)[0, 1]) if both_vary else None,
        standard_error=errors[0],
        standard_error_unpaired=None if errors[1] is None or errors[2] is None else math.hypot(errors[1], errors[2]),
        odds_ratio=odds_ratio(*discordant_counts(a, b), confidence_level=confidence_level) if binary else None,
        n_items=n,
    )


def _difference(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Floats, bool]:
    """Return b - a, and whether all scores are 0 or 1."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise InputError(f"scores must be two arrays of one length, not {first.shape} and {second.shape}")
    binary = bool(np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all())
    return vector(second, "scores of B") - vector(first, "scores of A"), binary


def _as_difference(found: Estimate) -> Estimate:
    warnings = tuple(warning.replace("all items are", "all differences are") for warning in found.warnings)
    return replace(found, quantity="the difference B - A", warnings=warnings)
