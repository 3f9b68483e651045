"""How many items, clusters and repeats a paired comparison needs, and how far a significant result may mislead."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import Floats, Ints, check_level
from evalkit.stats.clusters import cluster_codes, intraclass_correlation
from evalkit.stats.results import Result

Reference = Literal["normal", "t"]

FEW_UNITS: Final = 50
"""Below this many independent units the normal reference promises noticeably too much."""


@dataclass(frozen=True)
class PairedDesign(Result):
    """What the variance of a paired difference is made of.

    Attributes
    ----------
    between
        Variance over items of the true difference (omega^2 of Miller 2024).
    within_a, within_b
        Mean over items of the variance of one answer's score (sigma^2), zero for deterministic scores.
    repeats_a, repeats_b
        Answers for each item (K).
    cluster_size
        Mean number of items of a source; 1 when items are independent.
    cluster_size_cv
        Standard deviation of the sizes by their mean.
    intraclass_correlation
        Of the items' mean differences within a source.
    """

    between: float
    within_a: float = 0.0
    within_b: float = 0.0
    repeats_a: int = 1
    repeats_b: int = 1
    cluster_size: float = 1.0
    cluster_size_cv: float = 0.0
    intraclass_correlation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("between", "within_a", "within_b", "cluster_size_cv"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"{getattr(self, name)} is below zero or not finite", where=name, do="Give a variance")
        if self.repeats_a < 1 or self.repeats_b < 1 or self.cluster_size < 1:
            raise SpecError("repeats and cluster_size are at least 1", where="design", do="Give 1 for none")
        if not 0 <= self.intraclass_correlation <= 1:
            raise SpecError(
                f"{self.intraclass_correlation} is not from 0 to 1",
                where="intraclass_correlation",
                do="Give 0 for none",
            )
        if self.item_variance == 0:
            raise SpecError("all variances are zero", where="design", do="Give the variance of the differences")

    @classmethod
    def binary(cls, only_a: float, only_b: float) -> Self:
        """Return the design of one answer each, right or wrong, from the shares of discordant items.

        The variance of the difference is only_a + only_b - (only_b - only_a)^2.
        """
        if min(only_a, only_b) < 0 or not 0 < only_a + only_b <= 1:
            raise SpecError(
                f"{only_a} and {only_b} are no shares of discordant items", where="design", do="Give two shares"
            )
        return cls(between=only_a + only_b - (only_b - only_a) ** 2)

    @property
    def item_variance(self) -> float:
        """Variance of one item's mean difference: omega^2 + sigma_A^2 / K_A + sigma_B^2 / K_B."""
        return self.between + self.within_a / self.repeats_a + self.within_b / self.repeats_b

    @property
    def design_effect(self) -> float:
        """How many times larger clusters make the variance: 1 + (m (1 + cv^2) - 1) ICC (Eldridge et al. 2006)."""
        return 1 + (self.cluster_size * (1 + self.cluster_size_cv**2) - 1) * self.intraclass_correlation

    def __str__(self) -> str:
        clusters = "" if self.cluster_size == 1 else f", clusters of {self.cluster_size:g}, design effect "
        clusters += f"{self.design_effect:.3g}" if clusters else ""
        return f"variance of an item's difference {self.item_variance:.4g}{clusters}"

    def explain(self) -> str:
        """Say in two sentences what the variance is made of."""
        answers = self.item_variance - self.between
        return (
            f"An item's mean difference has a variance of {self.item_variance:.4g}, of which {answers:.4g} are the"
            f" noise of {self.repeats_a} answers of A and {self.repeats_b} of B. Items of a source,"
            f" {self.cluster_size:g} on average, make the mean's variance {self.design_effect:.3g} times larger."
        )

    def standard_error(self, n_items: float) -> float:
        """Standard error of the mean difference of so many items."""
        return math.sqrt(self.item_variance * self.design_effect / n_items)

    def degrees(self, n_items: float, reference: Reference) -> float:
        """Degrees of freedom: clusters (or items) less one for t, infinite for normal."""
        return math.inf if reference == "normal" else max(n_items / self.cluster_size - 1, 1e-9)


@dataclass(frozen=True)
class SignificanceErrors(Result):
    """What to expect of results that come out significant (Gelman and Carlin 2014, Perspect. Psychol. Sci. 9:641).

    Attributes
    ----------
    power
        Chance of a significant result.
    type_s
        Chance that a significant result has the wrong sign.
    type_m
        Expected size of a significant estimate by the true effect.
    """

    power: float
    type_s: float
    type_m: float

    def __str__(self) -> str:
        return (
            f"power {self.power:.3f}; a significant result has the wrong sign in {self.type_s:.2g} of cases and is"
            f" {self.type_m:.2f} times too large on average"
        )

    def explain(self) -> str:
        """Say in two sentences what a significant result would be worth."""
        return (
            f"The effect comes out significant with probability {self.power:.3g}. Where it does, the estimate is"
            f" {self.type_m:.3g} times too large on average, and has the wrong sign with probability {self.type_s:.2g}."
        )


@dataclass(frozen=True)
class PowerPlan(Result):
    """A comparison of so many items, and what it can find.

    Attributes
    ----------
    n_items, n_units
        Items, and independent units (clusters, or the items themselves).
    effect
        The true difference, in the unit of the scores.
    alpha
        Size of the two-sided test.
    standard_error
        Of the mean difference.
    errors
        Power, and type S and type M errors.
    smallest_detectable, target_power
        The effect that would be found with the target power.
    design, reference
        As given.
    warnings
        What to know before using it.
    """

    n_items: int
    n_units: int
    effect: float
    alpha: float
    standard_error: float
    errors: SignificanceErrors
    smallest_detectable: float
    target_power: float
    design: PairedDesign
    reference: Reference
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        units = "" if self.n_units == self.n_items else f" in {self.n_units} clusters"
        notes = "".join(f"; {warning}" for warning in self.warnings)
        return (
            f"{self.n_items} items{units}: power {self.errors.power:.3f} for a difference of {self.effect:g}, "
            f"smallest detectable {self.smallest_detectable:.4f} at power {self.target_power:g} (two-sided"
            f" {self.alpha:g}){notes}"
        )

    def explain(self) -> str:
        """Say in two plain sentences what the comparison can find, and what its significant results would be worth."""
        return (
            f"With {self.n_items} items, a true difference of {self.effect:g} comes out significant with probability"
            f" {self.errors.power:.3f}, and one of {self.smallest_detectable:.4g} with {self.target_power:g}. If it is"
            f" {self.effect:g}, significant estimates are {self.errors.type_m:.2f} times too large on average and have"
            f" the wrong sign with probability {self.errors.type_s:.2g}."
        )


def required_items(
    effect: float,
    design: PairedDesign,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    reference: Reference = "normal",
) -> PowerPlan:
    """Find the smallest number of items that finds an effect with this power.

    n = (z_(1 - alpha/2) + z_power)^2 V / effect^2, with V the variance of an item's difference times the design effect
    (Miller 2024, arXiv:2411.00640, equation 9), rounded up. With `reference="t"` the noncentral t with units - 1
    degrees of freedom is solved instead, which matters below some fifty units.

    Parameters
    ----------
    effect
        The true difference to be found, not zero.
    design
        Variances, repeats, clusters.
    power, alpha
        Of the two-sided test.
    reference
        Distribution of the test statistic.

    Raises
    ------
    SpecError
        The effect is zero, or a level is not between 0 and 1.
    """
    _check(effect, power, alpha)
    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    variance = design.item_variance * design.design_effect
    n = max(1, math.ceil(z**2 * variance / effect**2 - 1e-9))
    if reference == "t":
        n = max(n, math.ceil(2 * design.cluster_size))
        while _power(effect, design.standard_error(n), design.degrees(n, reference), alpha) < power:
            n += 1
    return plan(n, effect, design, power=power, alpha=alpha, reference=reference)


def plan(
    n_items: int,
    effect: float,
    design: PairedDesign,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    reference: Reference = "normal",
) -> PowerPlan:
    """Say what a comparison of so many items can find.

    Parameters
    ----------
    n_items
        Items of the comparison.
    effect
        The true difference, not zero.
    design
        Variances, repeats, clusters.
    power
        The target of the smallest detectable effect (Miller 2024, equation 10).
    alpha
        Of the two-sided test.
    reference
        Distribution of the test statistic.

    Raises
    ------
    SpecError
        The effect is zero, a level is not between 0 and 1, or there is no item.
    """
    _check(effect, power, alpha)
    n_units = round(n_items / design.cluster_size)
    if n_items < 1 or n_units < (2 if reference == "t" else 1):
        raise SpecError(f"{n_items} items are too few", where="n_items", do="Give at least two independent units")
    error, df = design.standard_error(n_items), design.degrees(n_items, reference)
    warnings = []
    if reference == "normal" and n_units < FEW_UNITS:
        warnings.append(f"with {n_units} independent units, reference='t' is nearer to the truth")
    if design.cluster_size > 1 and n_units < 20:
        warnings.append(f"{n_units} clusters are few")
    return PowerPlan(
        n_items=n_items,
        n_units=n_units,
        effect=effect,
        alpha=alpha,
        standard_error=error,
        errors=significance_errors(effect, error, alpha=alpha, df=df),
        smallest_detectable=smallest_detectable(error, power=power, alpha=alpha, df=df),
        target_power=power,
        design=design,
        reference=reference,
        warnings=tuple(warnings),
    )


def _check(effect: float, power: float, alpha: float) -> None:
    check_level(power, "power")
    check_level(alpha, "alpha")
    if not math.isfinite(effect) or effect == 0:
        raise SpecError(f"an effect of {effect} cannot be found", where="effect", do="Give the difference that matters")
    if power <= alpha:
        raise SpecError(f"power {power} is not above alpha {alpha}", where="power", do="Give a power such as 0.8")


def _power(effect: float, error: float, df: float, alpha: float) -> float:
    """Chance that the two-sided test rejects, either way."""
    shift = effect / error
    if math.isinf(df):
        z = float(stats.norm.ppf(1 - alpha / 2))
        return float(stats.norm.cdf(shift - z) + stats.norm.cdf(-shift - z))
    t = float(stats.t.ppf(1 - alpha / 2, df))
    # The noncentral distribution loses its far tail to rounding, where it is zero anyway.
    return float(stats.nct.sf(t, df, abs(shift)) + np.nan_to_num(stats.nct.cdf(-t, df, abs(shift))))


def smallest_detectable(
    standard_error: float, *, power: float = 0.8, alpha: float = 0.05, df: float = math.inf
) -> float:
    """Return the effect that a two-sided test finds with this power.

    With the normal reference (z_(1 - alpha/2) + z_power) SE (Miller 2024, equation 10), which leaves out rejections to
    the wrong side; with finite degrees of freedom the noncentral t is solved.

    Parameters
    ----------
    standard_error
        Of the difference, in the unit of the scores.
    power, alpha, df
        Of the test.
    """
    _check(1.0, power, alpha)
    if math.isinf(df):
        return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * standard_error
    start = float(stats.t.ppf(1 - alpha / 2, df) + stats.t.ppf(power, df))
    return standard_error * float(optimize.brentq(lambda x: _power(x, 1.0, df, alpha) - power, 1e-6, 3 * start))


def significance_errors(
    effect: float, standard_error: float, *, alpha: float = 0.05, df: float = math.inf
) -> SignificanceErrors:
    """Return power, type S and type M errors of a two-sided test.

    With x = effect / SE and z the critical value: power = F(x - z) + F(-x - z), type S = F(-x - z) / power, type M = (x
    (F(x - z) - F(-x - z)) + f(x - z) + f(x + z)) / (x power), F and f the normal distribution and density (Lu, Qiu and
    Deng 2019, Br. J. Math. Stat. Psychol. 72:1). With finite degrees of freedom the power and type S error are those of
    the noncentral t, and type M is integrated over the distribution of the estimated standard error.

    Parameters
    ----------
    effect
        The true difference, not zero; its sign does not matter.
    standard_error
        True standard error of the estimate.
    alpha, df
        Of the test.

    Raises
    ------
    SpecError
        The effect is zero, or the standard error is not above zero.
    """
    _check(effect, 1 - 1e-12, alpha)
    if not 0 < standard_error < math.inf:
        raise SpecError(f"{standard_error} is not above zero", where="standard_error", do="Give a standard error")
    x = abs(effect) / standard_error
    if math.isinf(df):
        right, wrong, size = _beyond(x, np.array([stats.norm.ppf(1 - alpha / 2)]), np.ones(1))
    else:
        # The estimated standard error by the true one is sqrt(chi2 / df); quantiles in equal steps integrate over it.
        steps = (np.arange(2000) + 0.5) / 2000
        ratio = np.sqrt(stats.chi2.ppf(steps, df) / df)
        right, wrong, size = _beyond(x, stats.t.ppf(1 - alpha / 2, df) * ratio, np.full(2000, 1 / 2000))
    return SignificanceErrors(right + wrong, wrong / (right + wrong), size / (x * (right + wrong)))


def _beyond(x: float, critical: Floats, weights: Floats) -> tuple[float, float, float]:
    """Chances of N(x, 1) beyond either critical value, and its mean size there, over weighted critical values."""
    right, wrong = stats.norm.cdf(x - critical), stats.norm.cdf(-x - critical)
    size = x * (right - wrong) + stats.norm.pdf(x - critical) + stats.norm.pdf(x + critical)
    return float(weights @ right), float(weights @ wrong), float(weights @ size)


def mcnemar_errors(
    n_items: int,
    only_a: float,
    only_b: float,
    *,
    alpha: float = 0.05,
    method: Literal["mid-p", "exact"] = "mid-p",
) -> SignificanceErrors:
    """Return the exact power, type S and type M errors of McNemar's test, by enumeration of the discordant items.

    The number N of discordant items is Binomial(n, only_a + only_b), and those that only b gets right are Binomial(N,
    only_b / (only_a + only_b)); the test rejects where the smaller of the two is at most m(N). No approximation.

    Parameters
    ----------
    n_items
        Items.
    only_a, only_b
        Shares of items that only one gets right, not equal.
    alpha, method
        Of the test, as in `mcnemar`.

    Raises
    ------
    SpecError
        The shares are none, or equal, or there is no item.
    """
    PairedDesign.binary(only_a, only_b)
    _check(only_b - only_a, 1 - 1e-12, alpha)
    if n_items < 1:
        raise SpecError(f"{n_items} items", where="n_items", do="Give at least one")
    discordant = only_a + only_b
    larger = max(only_a, only_b) / discordant
    N = np.arange(1, n_items + 1)
    weights = stats.binom.pmf(N, n_items, discordant)
    N, weights = N[weights > 0], weights[weights > 0]
    m = _largest_rejected(N, alpha, method)
    # X of the N go the right way; E[X; X <= m] = N q P(Binomial(N - 1, q) <= m - 1), and so for N - X.
    wrong, right = stats.binom.cdf(m, N, larger), stats.binom.cdf(m, N, 1 - larger)
    size = (
        N * (wrong + right)
        - 2 * N * larger * stats.binom.cdf(m - 1, N - 1, larger)
        - 2 * N * (1 - larger) * stats.binom.cdf(m - 1, N - 1, 1 - larger)
    )
    power = float(weights @ (wrong + right))
    if power == 0:
        return SignificanceErrors(0.0, 0.0, math.inf)
    effect = abs(only_b - only_a)
    return SignificanceErrors(power, float(weights @ wrong) / power, float(weights @ size) / n_items / effect / power)


def _largest_rejected(N: Ints, alpha: float, method: str) -> Ints:
    """The largest smaller count at which McNemar's test of N discordant items rejects; -1 where there is none."""
    k = stats.binom.ppf(alpha / 2, N, 0.5)
    p = 2 * stats.binom.cdf(k, N, 0.5) - (stats.binom.pmf(k, N, 0.5) if method == "mid-p" else 0)
    found: Ints = np.where((p <= alpha) & (2 * k < N), k, k - 1).astype(np.int64)
    return found


def equivalence_power(
    margin: float, standard_error: float, *, effect: float = 0.0, alpha: float = 0.05, df: float = math.inf
) -> float:
    """Return the chance that two one-sided tests show equivalence within the margin.

    F((m - effect) / SE - q) + F((m + effect) / SE - q) - 1, q the one-sided critical value, at least zero (Schuirmann
    1987); normal with a t critical value where degrees of freedom are given.

    Parameters
    ----------
    margin
        Above zero.
    standard_error
        Of the difference.
    effect
        The true difference.
    alpha, df
        Of each one-sided test.
    """
    check_level(alpha, "alpha")
    if not 0 < margin < math.inf:
        raise SpecError(f"{margin} is not above zero", where="margin", do="Give the smallest difference that matters")
    q = float(stats.norm.ppf(1 - alpha) if math.isinf(df) else stats.t.ppf(1 - alpha, df))
    above, below = ((margin - sign * effect) / standard_error - q for sign in (1, -1))
    return max(0.0, float(stats.norm.cdf(above) + stats.norm.cdf(below) - 1))


def required_items_for_equivalence(
    margin: float, design: PairedDesign, *, effect: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Find the smallest number of items that shows equivalence within the margin with this power.

    Parameters
    ----------
    margin, effect
        The margin, and the true difference, smaller than it.
    design
        Variances, repeats, clusters.
    power, alpha
        Chance of showing it, and size of each one-sided test.

    Raises
    ------
    SpecError
        The true difference is not inside the margin.
    """
    check_level(power, "power")
    if abs(effect) >= margin:
        raise SpecError(f"an effect of {effect} is not within {margin}", where="effect", do="Give a smaller one")
    # Between the n of one one-sided test and that of both with a safe split of the misses.
    unit = design.item_variance * design.design_effect / (margin - abs(effect)) ** 2
    q = float(stats.norm.ppf(1 - alpha))
    low = max(1, math.floor(unit * max(0.0, q + float(stats.norm.ppf(power))) ** 2) - 1)
    high = math.ceil(unit * (q + float(stats.norm.ppf((1 + power) / 2))) ** 2) + 1
    while low < high:
        middle = (low + high) // 2
        enough = equivalence_power(margin, design.standard_error(middle), effect=effect, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def design_from_scores(
    a: npt.ArrayLike, b: npt.ArrayLike, *, cluster: Sequence[Hashable] | None = None
) -> PairedDesign:
    """Estimate the design of a comparison from scores of the same items.

    sigma^2 is the mean over items of the variance of its answers; omega^2 the variance of the items' mean differences
    less sigma_A^2 / K_A + sigma_B^2 / K_B, at least zero. The intraclass correlation is that of the items' mean
    differences (`clusters.intraclass_correlation`), at least zero. A pilot of few items gives rough numbers.

    Parameters
    ----------
    a, b
        Shape (n,), or (n, K) with K answers for each item.
    cluster
        Length n: the source that an item shares with others.

    Raises
    ------
    InputError
        The shapes do not fit, a score is not finite, or there are fewer than two items.
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (a, b))
    first, second = (x[:, None] if x.ndim == 1 else x for x in (first, second))
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second) or len(first) < 2:
        raise InputError(
            f"shapes {first.shape} and {second.shape}", where="scores", do="Give items by answers for both"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("a score is not finite", where="scores", do="Leave out items without a score")
    within = [float(x.var(axis=1, ddof=1).mean()) if x.shape[1] > 1 else 0.0 for x in (first, second)]
    difference = second.mean(axis=1) - first.mean(axis=1)
    total = float(difference.var(ddof=1))
    if total == 0:
        raise InputError("all differences are equal", where="scores", do="Give the variances yourself")
    between = max(0.0, total - within[0] / first.shape[1] - within[1] / second.shape[1])
    design = PairedDesign(between, within[0], within[1], first.shape[1], second.shape[1])
    if cluster is None:
        return design
    sizes = cluster_codes(cluster, len(difference))[1]
    return replace(
        design,
        cluster_size=float(sizes.mean()),
        cluster_size_cv=float(sizes.std() / sizes.mean()),
        intraclass_correlation=min(1.0, max(0.0, intraclass_correlation(difference, cluster) or 0.0)),
    )
