"""Slices of the items by any label: their means, tested by Benjamini-Hochberg, and drawn to the overall mean."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from evalkit.errors import SpecError
from evalkit.stats.arrays import Floats, Ints, check_level, codes_of, vector
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes
from evalkit.stats.discordance import mcnemar
from evalkit.stats.few_units import studentised_p_value
from evalkit.stats.means import mean_score
from evalkit.stats.multiple import benjamini_hochberg
from evalkit.stats.paired import paired_difference
from evalkit.stats.results import Estimate, Result

if TYPE_CHECKING:
    import pandas as pd

MIN_UNITS: Final = 10
"""A slice with fewer independent units is named, not estimated."""

MIN_SLICES: Final = 4
"""Fewer slices do not show how much slices differ, so none is drawn to the others."""


@dataclass(frozen=True)
class Slice(Result):
    """One slice.

    Attributes
    ----------
    name
        Its label.
    estimate
        Its score or difference by itself.
    p_value, adjusted
        That the difference is zero; adjusted by Benjamini-Hochberg over all slices that are tested. None for scores
        without a baseline, and for differences without spread.
    shrunken
        The same drawn to all slices; None where there are too few slices.
    """

    name: str
    estimate: Estimate
    p_value: float | None
    adjusted: float | None
    shrunken: Estimate | None

    def __str__(self) -> str:
        adjusted = "" if self.adjusted is None else f"; q = {self.adjusted:.4g}"
        return f"{self.name}: {self.estimate}{adjusted}"

    def explain(self) -> str:
        """Say what was found on the slice, and what is left of it beside the others."""
        drawn = self.shrunken
        if drawn is None:
            return self.estimate.explain()
        return f"{self.estimate.explain()} Drawn to all slices, it is {drawn.estimate:.4g}."


@dataclass(frozen=True)
class Slices(Result):
    """All slices by one label.

    Attributes
    ----------
    slices
        Those with enough units, in the order in which the labels first come.
    left_out
        Names and items of those with too few units.
    smallest_n
        Units of the smallest slice that is estimated; None when none is.
    between_sd
        Estimated standard deviation of the slices' true scores or differences; None where there are too few slices.
    alpha
        The false discovery rate at which `found` decides.
    warnings
        What to know before using it.
    """

    slices: tuple[Slice, ...]
    left_out: Mapping[str, int]
    smallest_n: int | None
    between_sd: float | None
    alpha: float
    warnings: tuple[str, ...] = ()

    @property
    def found(self) -> tuple[str, ...]:
        """Names of the slices whose difference is not zero at this false discovery rate."""
        return tuple(one.name for one in self.slices if one.adjusted is not None and one.adjusted <= self.alpha)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each slice that is estimated."""
        import pandas as pd

        rows = []
        for one in self.slices:
            mean, drawn = one.estimate, one.shrunken
            rows.append({
                "slice": one.name, "n": mean.n, "n_items": mean.n_items,
                "estimate": mean.estimate, "low": mean.low, "high": mean.high, "p": one.p_value, "q": one.adjusted,
                "shrunken": drawn and drawn.estimate,
                "shrunken_low": drawn and drawn.low, "shrunken_high": drawn and drawn.high,
            })  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        smallest = "" if self.smallest_n is None else f", the smallest of {self.smallest_n} units"
        left = f"; too small: {', '.join(self.left_out)}" if self.left_out else ""
        notes = "".join(f"; {warning}" for warning in self.warnings)
        return (
            f"{len(self.found)} of {len(self.slices)} slices differ (Benjamini-Hochberg,"
            f" {self.alpha:g}){smallest}{left}{notes}"
        )

    def explain(self) -> str:
        """Say in two sentences which slices differ, and how far slices differ from each other."""
        found = ", ".join(self.found) or "none"
        left = f"; too small to be estimated: {', '.join(self.left_out)}" if self.left_out else ""
        said = (
            f"Of {len(self.slices)} slices these differ from zero: {found} (of which a share of at most {self.alpha:g}"
            f" is expected to be false){left}."
        )
        if self.between_sd is None:
            return f"{said} They are too few to say how much slices differ from each other."
        notes = "".join(f"; {warning}" for warning in self.warnings)
        return (
            f"{said} True values of slices differ by a standard deviation of {self.between_sd:.4g}, by which each"
            f" slice's own estimate is drawn to the others{notes}."
        )


def slice_means(
    scores: npt.ArrayLike,
    labels: Sequence[Hashable],
    *,
    baseline: npt.ArrayLike | None = None,
    cluster: Sequence[Hashable] | None = None,
    confidence_level: float = 0.95,
    alpha: float = 0.05,
    min_units: int = MIN_UNITS,
) -> Slices:
    """Estimate each slice's score, or its difference from a baseline, and draw all to their common mean.

    A slice's own interval is that of `mean_score` or `paired_difference` (`auto`). Differences are tested by McNemar's
    mid-p where scores are 0 and 1 and items independent, else by t. The shrunken estimates are those of Morris (1983,
    JASA 78:47) for unequal variances: with V the slice's error variance, A the variance between slices (Paule and
    Mandel 1982), mu their weighted mean and h the slice's share of the weights, B = (k - 3) / (k - 1) V / (V + A),

        estimate = y - B (y - mu),  variance = V (1 - (1 - h) B) + 2 / (k - 3) B^2 (y - mu)^2.

    The largest of many slices is mostly the luckiest; its shrunken estimate is not. V is taken from
    the width of the slice's own interval, which allows for few items, and for items that are nearly all right; a slice
    without an interval gets the others' variance of one unit.

    Parameters
    ----------
    scores
        Shape (n,): one score per item.
    labels
        Length n: the slice of each item.
    baseline
        Shape (n,): another model's scores of the same items; the results are then of the difference from them.
    cluster
        Length n: the source that an item shares with others.
    confidence_level
        Of all intervals, each by itself.
    alpha
        The false discovery rate.
    min_units
        Slices with fewer independent units are named in `left_out`. At least 2.

    Raises
    ------
    InputError
        A score is not finite, or the lengths differ.
    SpecError
        A level is not between 0 and 1, or `min_units` is below 2.
    """
    check_level(confidence_level)
    check_level(alpha, "alpha")
    if min_units < 2:
        raise SpecError(f"{min_units} is below 2", where="min_units", do="One unit has no spread")
    array = vector(scores, "scores")
    base = None if baseline is None else vector(baseline, "baseline", length=len(array))
    codes, names = codes_of([str(label) for label in labels], "labels", length=len(array))
    sources = cluster_codes(cluster, len(array))[0]
    least = min_units if cluster is None else max(min_units, MIN_CLUSTERS)
    kept: list[_Held] = []
    left_out = {}
    for code, name in enumerate(names):
        inside = codes == code
        if len(np.unique(sources[inside])) < least:
            left_out[str(name)] = int(inside.sum())
            continue
        kept.append(_held(str(name), array[inside], base if base is None else base[inside],
                          sources[inside], confidence_level))  # fmt: skip
    warnings = []
    if cluster is not None and len(np.unique(np.stack([codes, sources]), axis=1).T) > len(np.unique(sources)):
        warnings.append("some clusters have items in several slices, which are then not independent")
    tested = [one.p_value for one in kept if one.p_value is not None]
    adjusted = iter(benjamini_hochberg(tested, alpha=alpha).adjusted if tested else ())
    shrunken, between_sd = _shrunken(kept, confidence_level)
    if between_sd is None:
        warnings.append(f"fewer than {MIN_SLICES} slices: none is drawn to the others")
    return Slices(
        slices=tuple(
            Slice(one.name, one.estimate, one.p_value, None if one.p_value is None else next(adjusted), drawn)
            for one, drawn in zip(kept, shrunken, strict=True)
        ),
        left_out=left_out,
        smallest_n=min((one.estimate.n for one in kept), default=None),
        between_sd=between_sd,
        alpha=alpha,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class _Held:
    """A slice that is large enough."""

    name: str
    estimate: Estimate
    p_value: float | None


def _held(name: str, scores: Floats, base: Floats | None, sources: Ints, confidence_level: float) -> _Held:
    cluster = None if len(np.unique(sources)) == len(sources) else sources.tolist()
    p_value = None
    if base is None:
        found = mean_score(scores, cluster=cluster, confidence_level=confidence_level)
    else:
        found = paired_difference(base, scores, cluster=cluster, confidence_level=confidence_level, method="auto")
        binary = bool(np.isin(np.concatenate([scores, base]), (0.0, 1.0)).all())
        if cluster is None and binary:
            p_value = mcnemar(base, scores).p_value
        else:
            plain = paired_difference(base, scores, cluster=cluster)
            if plain.low is not None and plain.standard_error:
                p_value = float(2 * stats.t.sf(abs(plain.estimate) / plain.standard_error, plain.df))
                if not binary:
                    other = studentised_p_value(scores - base, *cluster_codes(cluster, len(scores)))
                    p_value = max(p_value, other or 0.0)
    quantity = f"the {'score' if base is None else 'difference B - A'} on {name}"
    found = replace(found, population="items of this slice", quantity=quantity)
    return _Held(name, found, p_value)


def _shrunken(held: Sequence[_Held], confidence_level: float) -> tuple[list[Estimate | None], float | None]:
    k = len(held)
    if k < MIN_SLICES:
        return [None] * k, None
    z = float(stats.norm.ppf((1 + confidence_level) / 2))
    n = np.array([one.estimate.n for one in held])
    widths = [(one.estimate.low, one.estimate.high) for one in held]
    V = np.array([np.nan if low is None or high is None else ((high - low) / 2 / z) ** 2 for low, high in widths])
    known = ~np.isnan(V)
    if not known.any():
        return [None] * k, 0.0
    V[~known] = float(np.average(V[known] * n[known], weights=n[known])) / n[~known]
    y = np.array([one.estimate.estimate for one in held])
    A = between_variance(y, V)
    weights = 1 / (V + A)
    share = weights / weights.sum()
    mu = float(share @ y)
    B = (k - 3) / (k - 1) * V / (V + A)
    centre = y - B * (y - mu)
    error = np.sqrt(V * (1 - (1 - share) * B) + 2 / (k - 3) * B**2 * (y - mu) ** 2)
    half = z * error
    drawn: list[Estimate | None] = [
        replace(
            one.estimate,
            estimate=float(centre[i]),
            low=float(centre[i] - half[i]),
            high=float(centre[i] + half[i]),
            method="empirical Bayes (Morris), variance between slices by Paule and Mandel",
            standard_error=float(error[i]),
            df=None,
            warnings=(),
            quantity=f"{one.estimate.quantity}, drawn to all slices",
        )
        for i, one in enumerate(held)
    ]
    return drawn, float(np.sqrt(A))


def between_variance(estimates: npt.NDArray[Any], variances: Floats) -> float:
    """Estimate the variance of true means from estimates with known error variances (Paule and Mandel 1982).

    It is the A at which sum((y - mu)^2 / (V + A)), mu weighted by 1 / (V + A), equals k - 1; zero where that sum is
    already smaller at A = 0.

    Parameters
    ----------
    estimates, variances
        Shape (k,), k > 1, variances above zero.
    """
    y = np.asarray(estimates, dtype=np.float64)

    def excess(A: float) -> float:
        weights = 1 / (variances + A)
        mu = (weights @ y) / weights.sum()
        return float(weights @ (y - mu) ** 2) - (len(y) - 1)

    if excess(0.0) <= 0:
        return 0.0
    # At A = sum((y - mean)^2) the sum is below 1.
    return float(optimize.brentq(excess, 0.0, float(((y - y.mean()) ** 2).sum()), xtol=1e-14, rtol=1e-12))
