"""Agreement of raters, human or judges: raw, Cohen, Fleiss, Krippendorff and Gwet, with intervals over questions.

All are (observed - chance) / (1 - chance) and differ in what chance is. Kappas fall with a skewed prevalence even where
raters hardly ever differ; Gwet's AC1 does not, so read them together with the raw agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes
from evalkit.stats.results import Estimate, Result

Floats = npt.NDArray[np.float64]
Weights = Literal["nominal", "linear", "quadratic"]

POPULATION: Final = "pairs like these, rated by these raters"


@dataclass(frozen=True)
class Agreement(Result):
    """How far raters agree.

    Attributes
    ----------
    raters
        Their names.
    n
        Units with at least two ratings.
    n_single
        Units with one. They tell nothing of agreement, but of the prevalence that Fleiss and Gwet take chance from
        (Gwet 2014); Krippendorff leaves them out.
    raw
        Chance that two raters of a unit agree, weighted.
    cohen
        Cohen's kappa of two raters, who keep their own prevalences; None for more.
    fleiss, krippendorff, gwet
        Fleiss' kappa, Krippendorff's alpha, and Gwet's AC1 (AC2 with weights). Cohen, Fleiss and Krippendorff are None
        where all ratings are of one category: chance would agree as well, so they are not defined.
    prevalence
        Share of each category, by name.
    weights
        How far apart categories are: nominal, linear or quadratic.
    warnings
        What to know.
    """

    raters: tuple[str, ...]
    n: int
    n_single: int
    raw: Estimate
    cohen: Estimate | None
    fleiss: Estimate | None
    krippendorff: Estimate | None
    gwet: Estimate
    prevalence: tuple[tuple[str, float], ...]
    weights: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = (("Cohen", self.cohen), ("Krippendorff", self.krippendorff), ("Gwet AC1", self.gwet))
        found = "".join(f", {name} {of.estimate:.3f}" for name, of in named if of is not None)
        return f"{' and '.join(self.raters)}: agree on {100 * self.raw.estimate:.1f}% of {self.n}{found}"


def agreement(
    ratings: npt.ArrayLike,
    *,
    raters: Sequence[str] | None = None,
    categories: Sequence[str] = ("a", "tie", "b"),
    weights: Weights = "nominal",
    cluster: Sequence[Any] | None = None,
    confidence_level: float = 0.95,
) -> Agreement:
    """Measure the agreement of two or more raters.

    Cohen 1960 (Educ. Psychol. Meas. 20:37; weighted 1968); Fleiss 1971 (Psychol. Bull. 76:378), for unequal numbers of
    ratings as in Gwet 2014 (Handbook of Inter-Rater Reliability, 4th ed., chapter 2); Krippendorff 2004 (Content
    Analysis, chapter 11); Gwet 2008 (Brit. J. Math. Stat. Psychol. 61:29). Intervals are jackknife over clusters with
    t: every coefficient is a function of sums over units, so leaving a cluster out costs nothing. Categories that
    nobody uses do not count, unless weights need their distances: Gwet's coefficient depends on their number.

    Parameters
    ----------
    ratings
        Shape (n, raters): category numbers, -1 where a rater gave none.
    raters
        Their names.
    categories
        Names of the categories, in order where weights are used.
    weights
        `nominal`; `linear` and `quadratic` forgive neighbours.
    cluster
        Length n: the question that a unit shares with others.
    confidence_level
        Of each interval.

    Raises
    ------
    InputError
        There are fewer than two raters, a number is no category, or no unit has two ratings.
    SpecError
        The weights are unknown.
    """
    given = np.asarray(ratings)
    if given.ndim != 2 or given.shape[1] < 2:
        raise InputError(
            f"ratings of shape {given.shape}", do="Give a row for each unit and a column for each of two raters"
        )
    q = len(categories)
    if given.min(initial=0) < -1 or given.max(initial=0) >= q:
        raise InputError(f"a rating is not one of {q} categories", do="Number them from 0; -1 is no rating")
    W = _weights(q, weights)
    names = tuple(raters) if raters is not None else tuple(f"rater {i + 1}" for i in range(given.shape[1]))
    n_ratings = (given >= 0).sum(axis=1)
    several = n_ratings >= 2
    if not several.any():
        raise InputError("no unit has two ratings", where="agreement", do="Give raters that rated the same units")
    any_rating = n_ratings >= 1
    kept, several = given[any_rating], several[any_rating]
    if weights == "nominal":
        used = np.unique(kept[kept >= 0])
        kept = np.where(kept >= 0, np.searchsorted(used, kept), -1)
        categories, q = [categories[int(k)] for k in used], len(used)
        W = _weights(q, weights)
    codes, sizes = cluster_codes(None if cluster is None else np.asarray(cluster)[any_rating], len(kept))
    counts = np.stack([(kept == k).sum(axis=1) for k in range(q)], axis=1).astype(float)
    m = counts.sum(axis=1)
    # Of two ratings of one unit, the weight of their categories: sum_k r_k (W r - 1)_k / (m (m - 1)).
    observed = np.where(several, (np.sum(counts * (counts @ W), axis=1) - m) / np.maximum(m * (m - 1), 1), 0.0)
    pairable = counts * several[:, None]
    units = [observed, several, *(counts / m[:, None]).T, m * several, *pairable.T, m * observed]
    totals = _sums(np.column_stack(units), codes, len(sizes))

    formulas = _coefficients(W)
    clustered, n = len(sizes) < len(kept), int(several.sum())

    def of(function: Callable[[Floats], Floats], sums: Floats, what: str, n_items: int) -> Estimate:
        return _jackknife(function, sums, confidence_level, what, n_items, clustered=clustered)

    # Clusters with single ratings only tell what is common, and nothing of agreement.
    agreeing = totals[totals[:, 1] > 0]
    cohen = fleiss_kappa = alpha = None
    warnings: tuple[str, ...] = ()
    if len(np.unique(kept[several][kept[several] >= 0])) > 1:
        if given.shape[1] == 2:
            confusion = np.zeros((n, q * q))
            confusion[np.arange(n), kept[several] @ [q, 1]] = 1.0
            sums = _sums(confusion, codes[several], len(sizes))[totals[:, 1] > 0]
            cohen = of(lambda t: _cohen(t, W), sums, "Cohen's kappa", n)
        fleiss_kappa = of(formulas["fleiss"], totals, "Fleiss' kappa", len(kept))
        alpha = of(formulas["krippendorff"], agreeing, "Krippendorff's alpha", n)
    else:
        warnings = ("all ratings are of one category, so there is no agreement beyond chance to speak of",)
    share = counts.sum(axis=0) / counts.sum()
    return Agreement(
        raters=names,
        n=n,
        n_single=int((~several).sum()),
        raw=of(formulas["raw"], agreeing, "the agreement of two raters", n),
        cohen=cohen,
        fleiss=fleiss_kappa,
        krippendorff=alpha,
        gwet=of(formulas["gwet"], totals, f"Gwet's {'AC1' if weights == 'nominal' else 'AC2'}", len(kept)),
        prevalence=tuple(zip(categories, share.tolist(), strict=True)),
        weights=weights,
        warnings=warnings,
    )


def _coefficients(W: Floats) -> dict[str, Callable[[Floats], Floats]]:
    """Each coefficient as a function of sums over units, shape (..., columns) with those of `units` in `agreement`."""
    q = len(W)

    def parts(t: Floats) -> tuple[Floats, Floats, Floats]:
        pa = t[..., 0] / t[..., 1]
        shares = t[..., 2 : 2 + q]
        pi = shares / shares.sum(axis=-1, keepdims=True)
        return pa, pi, np.einsum("...k,kl,...l->...", pi, W, pi)

    def raw(t: Floats) -> Floats:
        return parts(t)[0]

    def fleiss(t: Floats) -> Floats:
        pa, _, pe = parts(t)
        return _beyond(pa, pe)

    def gwet(t: Floats) -> Floats:
        pa, pi, _ = parts(t)
        pe = W.sum() / (q * max(q - 1, 1)) * np.sum(pi * (1 - pi), axis=-1)
        return _beyond(pa, pe)

    def krippendorff(t: Floats) -> Floats:
        total = t[..., 2 + q]
        values = t[..., 3 + q : 3 + 2 * q]
        pa = t[..., 3 + 2 * q] / total
        # Chance without replacement, from the pairable values.
        same = np.einsum("...k,kl,...l->...", values, W, values) - total
        return _beyond(pa, same / (total * (total - 1)))

    return {"raw": raw, "fleiss": fleiss, "gwet": gwet, "krippendorff": krippendorff}


def _cohen(t: Floats, W: Floats) -> Floats:
    table = t.reshape(*t.shape[:-1], *W.shape)
    table = table / table.sum(axis=(-2, -1), keepdims=True)
    observed = np.einsum("...kl,kl->...", table, W)
    return _beyond(observed, np.einsum("...k,kl,...l->...", table.sum(axis=-1), W, table.sum(axis=-2)))


def _weights(q: int, kind: str) -> Floats:
    gap = np.abs(np.subtract.outer(np.arange(q), np.arange(q))) / max(q - 1, 1)
    known: dict[str, Floats] = {"nominal": np.eye(q), "linear": 1 - gap, "quadratic": 1 - gap**2}
    if kind not in known:
        raise SpecError(f"'{kind}' are no weights", where="weights", do=f"Choose of {', '.join(known)}")
    return known[kind]


def _beyond(observed: Floats, chance: Floats) -> Floats:
    # Without a cluster, the others may all be of one category.
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(chance < 1 - 1e-12, (observed - chance) / (1 - chance), np.nan)
    return found


def _sums(values: Floats, codes: npt.NDArray[np.int64], n: int) -> Floats:
    found = np.zeros((n, values.shape[1]))
    np.add.at(found, codes, values)
    return found


def _jackknife(
    function: Callable[[Floats], Floats],
    sums: Floats,
    confidence_level: float,
    quantity: str,
    n_items: int,
    *,
    clustered: bool,
) -> Estimate:
    whole, n = sums.sum(axis=0), len(sums)
    value = float(function(whole))
    low = high = error = None
    warnings: tuple[str, ...] = ()
    if n < MIN_CLUSTERS:
        warnings = (f"{n} units are too few for an interval",)
    else:
        left = function(whole - sums)
        error = float(np.sqrt((n - 1) / n * np.sum((left - left.mean()) ** 2)))
        if np.isnan(error) or error == 0:
            error, warnings = None, ("the units are too alike for an interval",)
        else:
            half = float(stats.t.ppf((1 + confidence_level) / 2, n - 1)) * error
            low, high = max(value - half, -1.0), min(value + half, 1.0)
    return Estimate(
        estimate=value,
        low=low,
        high=high,
        confidence_level=confidence_level,
        method="jackknife over clusters, t" if clustered else "jackknife, t",
        population=POPULATION,
        unit="clusters" if clustered else "items",
        n=n,
        n_items=n_items,
        standard_error=error,
        df=n - 1.0 if error else None,
        warnings=warnings,
        quantity=quantity,
    )
