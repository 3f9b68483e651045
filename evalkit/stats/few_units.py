"""Means of graded scores over few units, where the t interval alone falls short for skewed scores.

The sample's own skewness cannot be the judge of it: few draws of a skewed population often look symmetric, and these
are the ones that miss. So below `FEW_UNITS` units the interval holds both the t interval and the studentised
bootstrap's, and the p value is the larger one. How they cover is in docs/validity.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np

from evalkit.stats.bootstrap import quantile, studentised_draws
from evalkit.stats.clusters import MIN_CLUSTERS, Floats, Ints, t_interval
from evalkit.stats.results import Estimate

FEW_UNITS: Final = 100
"""From this many units on the t interval covers by itself, also for exponential scores."""

DRAWN_UNITS: Final = 1_000_000
"""In all resamples: the fewer units, the heavier the tails of the studentised means, and the cheaper a resample."""


def graded_mean(
    values: Floats,
    codes: Ints,
    sizes: Floats,
    *,
    confidence_level: float = 0.95,
    population: str = "items like these",
    method: str = "t",
) -> Estimate:
    """Estimate a mean by the t interval, widened for 5 to 99 units to hold the studentised bootstrap's interval.

    Either falls short by itself: t for skewed scores, the bootstrap for few units (DiCiccio and Efron 1996, Statistical
    Science 11:189). An end that the bootstrap puts at infinity, because too many of the resamples do not vary, stays
    that of t, with a warning. Turned scores give the turned interval, and the order of rows does not matter.

    Parameters
    ----------
    values
        Shape (n,), finite.
    codes, sizes
        As `clusters.cluster_codes` returns them.
    confidence_level, population, method
        As in `clusters.t_interval`.
    """
    found = t_interval(values, codes, sizes, confidence_level=confidence_level, population=population, method=method)
    if found.low is None or found.high is None or not MIN_CLUSTERS <= len(sizes) < FEW_UNITS:
        return found
    n_resamples = max(DRAWN_UNITS // len(sizes), math.ceil(10 / (1 - confidence_level)))
    rows, sign = _rows(values, codes, sizes)
    error, draws = _draws(rows.tobytes(), n_resamples)
    tail = (1 - confidence_level) / 2
    ends = [-sign * quantile(draws, share) * error for share in (1 - tail, tail)]
    low, high = (found.estimate + end for end in sorted(ends))
    # What t warns of, skewness, is what the bootstrap is for.
    warnings = tuple(one for one in found.warnings if "skewed" not in one)
    if not (math.isfinite(low) and math.isfinite(high)):
        few = f"most {found.unit} are equal: the interval may cover less than it says"
        low, high = (end if math.isfinite(end) else found.estimate for end in (low, high))
        warnings = (*warnings, few)
    return replace(
        found,
        low=min(low, found.low),
        high=max(high, found.high),
        method=f"the wider of {found.method} and the studentised bootstrap",
        warnings=warnings,
        resampling_seed=0,
        n_resamples=n_resamples,
    )


def studentised_p_value(values: Floats, codes: Ints, sizes: Floats) -> float | None:
    """Return the p value of a mean of zero by the studentised bootstrap, twice that of the nearer tail.

    None where `graded_mean` does not ask the bootstrap either.

    Parameters
    ----------
    values, codes, sizes
        As in `graded_mean`.
    """
    if not MIN_CLUSTERS <= len(sizes) < FEW_UNITS or np.ptp(values) == 0:
        return None
    rows, sign = _rows(values, codes, sizes)
    error, draws = _draws(rows.tobytes(), DRAWN_UNITS // len(sizes))
    observed = sign * float(values.mean()) / error if error else math.inf
    tails = [int(np.sum(draws >= observed)), int(np.sum(draws <= observed))]
    return min(1.0, 2 * (1 + min(tails)) / (1 + len(draws)))


def _rows(values: Floats, codes: Ints, sizes: Floats) -> tuple[Floats, int]:
    """Each unit's centred sum and size in one order, and one of the two directions, which -1 says is the other one."""
    centred = np.bincount(codes, weights=values - values.mean(), minlength=len(sizes))
    # To 12 digits, so that the rounding of a sum in another order does not change what is drawn.
    centred = np.round(centred, 12 - math.floor(math.log10(float(np.max(np.abs(centred))) or 1.0)))
    sides = (np.column_stack([sign * centred + 0.0, sizes]) for sign in (1, -1))
    plain, turned = (rows[np.lexsort(rows.T)] for rows in sides)
    first = int(np.argmax((plain != turned).ravel()))
    return (plain, 1) if plain.flat[first] >= turned.flat[first] else (turned, -1)


@lru_cache(maxsize=4)  # a verdict asks for several levels, and the p value, of the same scores
def _draws(data: bytes, n_resamples: int) -> tuple[float, Floats]:
    """Return the standard error, and the sorted studentised means of the resamples."""
    rows = np.frombuffer(data).reshape(-1, 2)
    error, draws = studentised_draws(rows, n_resamples, seed=0, weights="multinomial")
    return error, np.sort(draws)
