"""The bootstrap over independent units: clusters or items are drawn anew as wholes, by weights and matrix products.

A resample needs only how often each unit was drawn. Units with the same totals are exchangeable, so they are drawn
together: of paired differences of -1, 0 and 1 there are three kinds, and a resample is three numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import vector
from evalkit.stats.clusters import MIN_CLUSTERS, Floats, Ints, cluster_codes, t_interval
from evalkit.stats.proportions import mean_of_answers
from evalkit.stats.results import Estimate

BootstrapMethod = Literal["percentile", "basic", "bca", "studentised"]
Weights = Literal["auto", "multinomial", "poisson"]
Statistic = Callable[[Floats], Floats]

FEW_UNITS: Final = 30
"""Below this many units percentile, basic and BCa intervals cover less than they say."""

MANY_UNITS: Final = 1000
"""From this many units on weights are Poisson: their intervals are wider by 1 / (2 units), and they are quicker."""

_BLOCK: Final = 1 << 17
"""Weights in memory at a time: they stay in the cache."""

_BATCHES: Final = 20
"""The Monte-Carlo error is from the spread of the ends over so many parts of the resamples."""


def bootstrap_mean(
    values: npt.ArrayLike,
    *,
    cluster: Sequence[Any] | None = None,
    method: BootstrapMethod = "studentised",
    n_resamples: int = 9_999,
    resampling_seed: int = 0,
    confidence_level: float = 0.95,
    weights: Weights = "auto",
) -> Estimate:
    """Estimate a mean with a bootstrap interval over items, or over clusters as wholes.

    For a paired difference give b - a. For means the t intervals and those of proportions are at least as good
    (`means.mean_score`, `paired.paired_difference`); this is for comparison, and for skewed scores.

    Where the resamples do not vary, or the studentised interval is infinite, the interval is that of `mean_score` or
    the t interval, and a warning says so: there is never one of zero width.

    Parameters
    ----------
    values
        Shape (n,).
    cluster
        Length n; None when all items are independent.
    method
        `percentile`: quantiles of the resampled means. `basic`: these, reflected. `bca`: corrected for bias, with half
        the weight for ties, and for acceleration, by the jackknife over units (Efron 1987, JASA 82:171). `studentised`:
        quantiles of (mean* - mean) / SE*, with the CR1 error; the only one of the four that covers with few clusters
        (Hall 1988, Annals of Statistics 16:927).
    n_resamples, resampling_seed
        Of the bootstrap.
    confidence_level
        Of the two-sided interval.
    weights
        How often units are drawn: `multinomial`, as drawing with replacement has it, or independent `poisson` counts of
        mean 1 (Hanley and MacGibbon 2006, Computer Methods and Programs in Biomedicine 83:57), with probabilities
        rounded to 2^-16. `auto`: Poisson from `MANY_UNITS` on.

    Raises
    ------
    InputError
        There is no value, one is not finite, or there are fewer than 5 clusters or units.
    SpecError
        The method, the weights or the numbers make no sense.
    """
    of = vector(values, "values")
    codes, sizes = cluster_codes(cluster, len(of))
    rows = np.column_stack([np.bincount(codes, weights=of, minlength=len(sizes)), sizes])
    unit = "clusters" if len(sizes) < len(of) else "items"
    found = _ratio(rows, method, n_resamples, resampling_seed, confidence_level, weights)
    found = replace(found, unit=unit, n_items=len(of), quantity="the mean", population=f"{unit} like these")
    if found.low is not None:
        return found
    if np.isin(of, (0.0, 1.0)).all():
        other = mean_of_answers(of, cluster, confidence_level=confidence_level)
    else:
        other = t_interval(of, codes, sizes, confidence_level=confidence_level)
    warning = f"the {method} bootstrap gives no interval for these scores; this is {other.method}"
    return replace(other, warnings=(*other.warnings, warning))


def bootstrap_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    method: BootstrapMethod = "studentised",
    n_resamples: int = 9_999,
    resampling_seed: int = 0,
    confidence_level: float = 0.95,
    weights: Weights = "auto",
) -> Estimate:
    """Estimate sum(numerators) / sum(denominators) with a bootstrap interval over the units.

    Parameters
    ----------
    numerators, denominators
        Shape (units,): totals of each unit; denominators are positive.
    method, n_resamples, resampling_seed, confidence_level, weights
        As in `bootstrap_mean`.

    Raises
    ------
    InputError
        The shapes differ, a denominator is not positive, or there are fewer than 5 units.
    SpecError
        As in `bootstrap_mean`.
    """
    rows = np.column_stack([vector(numerators, "numerators"), vector(denominators, "denominators")])
    if not (rows[:, 1] > 0).all():
        raise InputError("a denominator is not positive", do="Leave out units without a denominator")
    return replace(
        _ratio(rows, method, n_resamples, resampling_seed, confidence_level, weights), quantity="the ratio of totals"
    )


def bootstrap_statistic(
    totals: npt.ArrayLike,
    statistic: Statistic,
    *,
    method: Literal["percentile", "basic", "bca"] = "bca",
    n_resamples: int = 9_999,
    resampling_seed: int = 0,
    confidence_level: float = 0.95,
    weights: Weights = "auto",
) -> Estimate:
    """Estimate any smooth function of totals over units, such as F1 of the counts of hits, misses and false alarms.

    Parameters
    ----------
    totals
        Shape (units, k): what each unit adds to each of k totals.
    statistic
        From totals of shape (resamples, k) to values of shape (resamples,). It must not change when all totals are
        multiplied by a number, unless `weights` is `multinomial`.
    method, n_resamples, resampling_seed, confidence_level, weights
        As in `bootstrap_mean`.

    Raises
    ------
    InputError
        A total is not finite, there are fewer than 5 units, or the statistic of a resample is not finite.
    SpecError
        As in `bootstrap_mean`.
    """
    rows = np.asarray(totals, dtype=float)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InputError(f"totals of shape {rows.shape} must be finite, with a row for each unit")
    if method not in ("percentile", "basic", "bca"):
        raise SpecError(
            f"{method!r} is no bootstrap of a statistic without an error", do="Choose percentile, basic, bca"
        )
    _check(len(rows), n_resamples, confidence_level, weights)
    draws = statistic(resampled_totals(rows, n_resamples, resampling_seed, weights))
    if not np.isfinite(draws).all():
        raise InputError(
            f"the statistic is not finite in {int((~np.isfinite(draws)).sum())} resamples", do="Take one that always is"
        )
    whole = rows.sum(axis=0)
    value = float(statistic(whole[None])[0])
    acceleration = _acceleration(statistic(whole - rows), np.ones(len(rows))) if method == "bca" else 0.0

    def ends(part: Floats) -> tuple[float, float]:
        return _ends(part, value, acceleration, method, confidence_level)

    return _finish(value, draws, ends, method, len(rows), n_resamples, resampling_seed, confidence_level)


def resampled_totals(rows: Floats, n_resamples: int, seed: int, weights: Weights = "auto") -> Floats:
    """Return the totals of resamples of the units, shape (n_resamples, k), from theirs, shape (units, k)."""
    kinds, counts = _kinds(rows)
    poisson = weights == "poisson" or (weights == "auto" and len(rows) >= MANY_UNITS)
    blocks = _poisson_totals if poisson else _multinomial_totals
    found = np.empty((n_resamples, rows.shape[1]))
    for begin, block in blocks(kinds, counts, n_resamples, np.random.SFC64(seed)):
        found[begin : begin + len(block)] = block
    return found


def _kinds(rows: Floats) -> tuple[Floats, Ints]:
    """Distinct rows and how often they occur, those that occur equally often together."""
    rows = np.round(rows, 12)
    ordered = rows[np.lexsort(rows.T)]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(ordered, axis=0) != 0).any(axis=1)]))
    counts = np.diff(np.append(starts, len(rows)))
    by_count = np.argsort(counts, kind="stable")
    return ordered[starts][by_count], counts[by_count]


def _multinomial_totals(
    kinds: Floats, counts: Ints, n_resamples: int, bits: np.random.SFC64
) -> Iterator[tuple[int, Floats]]:
    rng, n = np.random.Generator(bits), int(counts.sum())
    together = len(kinds) * 10 < n  # a binomial draw costs ten uniform ones
    block = max(1, _BLOCK // (len(kinds) if together else n))
    units = np.repeat(np.arange(len(kinds)), counts)
    for begin in range(0, n_resamples, block):
        size = min(block, n_resamples - begin)
        if together:
            yield begin, rng.multinomial(n, counts / n, size=size) @ kinds
        else:
            drawn = units[rng.integers(0, n, size=(size, n))] + len(kinds) * np.arange(size)[:, None]
            yield begin, np.bincount(drawn.ravel(), minlength=size * len(kinds)).reshape(size, -1) @ kinds


def _poisson_totals(
    kinds: Floats, counts: Ints, n_resamples: int, bits: np.random.SFC64
) -> Iterator[tuple[int, Floats]]:
    """Poisson counts of each kind by looking up 16 random bits in a table of the inverse distribution function."""
    found = np.zeros((n_resamples, kinds.shape[1]))
    for count in np.unique(counts):
        rows, table = kinds[counts == count], _poisson_table(int(count))
        width = min(len(rows), _BLOCK // 32)
        for first in range(0, len(rows), width):
            part = rows[first : first + width]
            block = max(1, _BLOCK // len(part))
            for begin in range(0, n_resamples, block):
                size = min(block, n_resamples - begin) * len(part)
                random = bits.random_raw(-(-size // 4)).view(np.uint16)[:size]
                weights = table.take(random, mode="clip").reshape(-1, len(part)).astype(float)
                found[begin : begin + len(weights)] += weights @ part
    yield 0, found


def _poisson_table(mean: int) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return 2^16 values of a Poisson variable in the shares in which it takes them."""
    values = np.arange(max(0, int(mean - 8 * math.sqrt(mean) - 8)), int(mean + 8 * math.sqrt(mean) + 12))
    edges = np.rint(special.pdtr(values, mean) * 2**16).astype(np.int64)
    edges[-1] = 2**16
    edges[1:] -= edges[:-1].copy()
    return np.repeat(values.astype(np.min_scalar_type(int(values[-1]))), edges)


def _check(n_units: int, n_resamples: int, confidence_level: float, weights: str) -> None:
    if not 0 < confidence_level < 1:
        raise SpecError(f"{confidence_level} is no confidence level", do="Give one between 0 and 1")
    if weights not in ("auto", "multinomial", "poisson"):
        raise SpecError(f"{weights!r} are no weights", do="Choose auto, multinomial or poisson")
    needed = max(100, math.ceil(10 / (1 - confidence_level)))
    if n_resamples < needed:
        raise SpecError(f"{n_resamples} resamples are too few for the level", do=f"Give at least {needed}")
    if n_units < MIN_CLUSTERS:
        raise InputError(f"{n_units} units are too few to resample", do=f"Take at least {MIN_CLUSTERS}")


def _ratio(
    rows: Floats, method: BootstrapMethod, n_resamples: int, seed: int, confidence_level: float, weights: Weights
) -> Estimate:
    """Bootstrap a ratio of the totals of two columns."""
    if method not in ("percentile", "basic", "bca", "studentised"):
        raise SpecError(f"{method!r} is no bootstrap", do="Choose percentile, basic, bca or studentised")
    _check(len(rows), n_resamples, confidence_level, weights)
    value, centred, error = _centred(rows)
    acceleration = 0.0
    if method == "studentised":
        shifts = studentised_draws(rows, n_resamples, seed, weights)[1]
    else:
        totals = resampled_totals(np.column_stack([centred, rows[:, 1]]), n_resamples, seed, weights)
        shifts = totals[:, 0] / totals[:, 1]
    if method == "bca":
        acceleration = _acceleration(-centred / (rows[:, 1].sum() - rows[:, 1]), np.ones(len(rows)))

    def ends(part: Floats) -> tuple[float, float]:
        if method == "studentised":
            tail = (1 - confidence_level) / 2
            return value - quantile(part, 1 - tail) * error, value - quantile(part, tail) * error
        low, high = _ends(part, 0.0, acceleration, method, confidence_level)
        return value + low, value + high

    found = _finish(value, shifts, ends, method, len(rows), n_resamples, seed, confidence_level)
    return replace(found, standard_error=error)


def studentised_draws(rows: Floats, n_resamples: int, seed: int, weights: Weights = "auto") -> tuple[float, Floats]:
    """Return the CR1 error of a ratio of totals, and (ratio* - ratio) / error* of resamples, shape (n_resamples,).

    Parameters
    ----------
    rows
        Shape (units, 2): numerators and denominators.
    """
    _, centred, error = _centred(rows)
    sizes = rows[:, 1]
    columns = np.column_stack([centred, sizes, centred**2, centred * sizes, sizes**2])
    totals = resampled_totals(columns, n_resamples, seed, weights)
    shifts: Floats = totals[:, 0] / totals[:, 1]
    squares = totals[:, 2] - 2 * shifts * totals[:, 3] + shifts**2 * totals[:, 4]
    floor = 1e-12 * float(np.sum(centred**2))
    scale = len(rows) / (len(rows) - 1)
    errors = np.sqrt(scale * np.where(squares > floor, squares, 0.0)) / totals[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return error, np.where(shifts == 0, 0.0, shifts / errors)


def _centred(rows: Floats) -> tuple[float, Floats, float]:
    """Return the ratio of two columns' totals, the first less the ratio times the second, and the CR1 error."""
    sums, sizes = rows.T
    value = float(sums.sum() / sizes.sum())
    # Against the ratio itself, so that no digits are lost in differences of large sums.
    centred = sums - value * sizes
    error = math.sqrt(len(rows) / (len(rows) - 1) * float(np.sum(centred**2))) / float(sizes.sum())
    return value, centred, error


def _ends(
    draws: Floats, value: float, acceleration: float, method: str, confidence_level: float
) -> tuple[float, float]:
    """Ends of the interval from sorted values of the resamples."""
    tail = (1 - confidence_level) / 2
    at = np.array([tail, 1 - tail])
    if method == "bca":
        close = 1e-12 * max(float(draws[-1] - draws[0]), np.finfo(float).tiny)
        below = float(np.searchsorted(draws, [value - close, value + close]).mean()) / len(draws)
        if not 0 < below < 1:
            return math.nan, math.nan
        bias = special.ndtri(below)
        shifted = bias + special.ndtri(at)
        at = special.ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = (quantile(draws, share) for share in at)
    return (2 * value - high, 2 * value - low) if method == "basic" else (low, high)


def quantile(ordered: Floats, share: float) -> float:
    """Linear interpolation between the two values around the share, as numpy's default; infinite ones stay so."""
    place = float(share) * (len(ordered) - 1)
    first, last = ordered[math.floor(place)], ordered[math.ceil(place)]
    return float(first if first == last or np.isinf(first) else first + (last - first) * (place % 1))


def _acceleration(left_out: Floats, counts: Floats) -> float:
    """Skewness of the jackknife: sum u^3 / (6 (sum u^2)^1.5) with u the mean of the values left out less each."""
    influence = np.average(left_out, weights=counts) - left_out
    spread = float(np.sum(influence**2))
    return float(np.sum(influence**3)) / (6 * spread**1.5) if spread > 0 else 0.0


def _finish(
    value: float,
    draws: Floats,
    ends: Callable[[Floats], tuple[float, float]],
    method: str,
    n_units: int,
    n_resamples: int,
    seed: int,
    confidence_level: float,
) -> Estimate:
    names = {"percentile": "percentile", "basic": "basic", "bca": "BCa", "studentised": "studentised"}
    found = Estimate(
        estimate=value,
        low=None,
        high=None,
        confidence_level=confidence_level,
        method=f"{names[method]} bootstrap over units",
        population="units like these",
        unit="units",
        n=n_units,
        n_items=n_units,
        resampling_seed=seed,
        n_resamples=n_resamples,
    )
    spread = float(np.ptp(draws[np.isfinite(draws)])) if np.isfinite(draws).any() else 0.0
    low, high = ends(np.sort(draws)) if spread > 1e-12 * max(abs(value), 1e-300) else (math.nan, math.nan)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return replace(found, warnings=("the resamples give no interval",))
    whole = len(draws) // _BATCHES * _BATCHES
    parts = np.array([ends(part) for part in np.sort(draws[:whole].reshape(_BATCHES, -1), axis=1)])
    with np.errstate(invalid="ignore"):
        errors = parts.std(axis=0, ddof=1) / math.sqrt(_BATCHES)
    few = n_units < FEW_UNITS and method != "studentised"
    return replace(
        found,
        low=low,
        high=high,
        monte_carlo_error=(float(errors[0]), float(errors[1])) if np.isfinite(errors).all() else None,
        warnings=(f"{n_units} units are few for this bootstrap: it covers less than it says",) if few else (),
    )
