"""Several answers per item: the mean over items, and how much of its error comes from items and from answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evalkit.errors import InputError
from evalkit.stats.arrays import vector
from evalkit.stats.clusters import MIN_CLUSTERS, Floats, Ints, cluster_codes, t_interval
from evalkit.stats.few_units import graded_mean
from evalkit.stats.means import mean_score
from evalkit.stats.proportions import effective_interval
from evalkit.stats.results import Estimate, Result

POPULATION: Final = "items like these, and other answers to them"


@dataclass(frozen=True)
class RepeatedScore(Result):
    """A mean over items that were answered several times each.

    Attributes
    ----------
    mean
        Of the item means, with the interval over items (or clusters).
    variance_between, variance_within
        Between the items' expected scores, and of one answer to an item around that, on average.
    n_items, n_answers
        Items, and answers in all.
    repeats
        Answers of each item, the harmonic mean.
    warnings
        What to know before using the components.
    """

    mean: Estimate
    variance_between: float | None
    variance_within: float | None
    n_items: int
    n_answers: int
    repeats: float
    warnings: tuple[str, ...] = ()

    def standard_error(self, repeats: float, n_items: int | None = None) -> float:
        """Return what the error of the mean would be with other numbers: sqrt((between + within / K) / n).

        Of independent items. `repeats` may be infinite: what is left then is due to the items.

        Raises
        ------
        InputError
            The components are not known, because no item was answered twice.
        """
        if self.variance_between is None or self.variance_within is None:
            raise InputError("one answer per item does not tell how answers vary", do="Ask some items twice")
        return math.sqrt((self.variance_between + self.variance_within / repeats) / (n_items or self.n_items))

    def explain(self) -> str:
        """Say in two sentences what the mean is and what it holds for."""
        return self.mean.explain()

    def __str__(self) -> str:
        if self.variance_between is None or self.variance_within is None:
            return f"{self.mean}; variance of answers unknown"
        share = self.variance_within / self.repeats
        total = self.variance_between + share
        of_answers = f"; {share / total:.0%} of its variance is of the answers" if total > 0 else ""
        return f"{self.mean}{of_answers} ({self.n_answers} answers, SD {math.sqrt(self.variance_within):.3f})"


def repeated_mean(
    scores: npt.ArrayLike,
    item: Sequence[Any],
    *,
    cluster: Sequence[Any] | None = None,
    confidence_level: float = 0.95,
) -> RepeatedScore:
    """Estimate the mean score of items with any number of answers each, and its two variance components.

    Items count equally: the mean is that of the item means m_i, and its error is over items, Var(m) / n, which holds
    both components, (between + within / K) / n. Answers of 0 and 1 get a score interval with this error
    (`proportions.effective_interval`), others the t interval.

    Rows must not be pooled: answers of one item are not independent. Nor may items be resampled first and answers
    within them second: Var(m) counts the answers' noise already (the larger error is
    sqrt(1 + within (K - 1) / K^2 / (between + within / K)) times the right one).

    within is the pooled variance of the answers of an item; between is Var(m) - mean(within / K_i), and 0 where that is
    negative (Miller 2024, arXiv:2411.00640, section 3; analysis of variance with one random factor).

    Parameters
    ----------
    scores
        Shape (N,): one score per answer.
    item
        Length N: the item of each answer.
    cluster
        Length N: the source that an item shares with others; one for all answers of an item.
    confidence_level
        Of the interval.

    Raises
    ------
    InputError
        The lengths differ, a score is not finite, or an item lies in two clusters.
    """
    values = vector(scores, "scores")
    codes, counts = cluster_codes(item, len(values))
    means = np.bincount(codes, weights=values) / counts
    first = np.unique(codes, return_index=True)[1]
    of_items = _clusters_of_items(cluster, codes, first)
    between, within, warnings = _components(values, codes, counts, means)
    estimate = _mean(values, means, counts, of_items, confidence_level)
    return RepeatedScore(
        mean=replace(estimate, population=POPULATION),
        variance_between=between,
        variance_within=within,
        n_items=len(means),
        n_answers=len(values),
        repeats=float(len(counts) / np.sum(1 / counts)),
        warnings=warnings,
    )


def _clusters_of_items(cluster: Sequence[Any] | None, codes: Ints, first: Ints) -> list[str] | None:
    if cluster is None:
        return None
    of_answers, _ = cluster_codes(cluster, len(codes))
    if not np.array_equal(of_answers, of_answers[first][codes]):
        raise InputError("an item lies in two clusters", do="Give all answers of an item the same cluster")
    return [str(one) for one in of_answers[first]]


def _mean(
    values: Floats, means: Floats, counts: Floats, of_items: list[str] | None, confidence_level: float
) -> Estimate:
    if counts.max() == 1:
        return mean_score(means, cluster=of_items, confidence_level=confidence_level)
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    interval = t_interval if binary else graded_mean
    found = interval(
        means,
        *cluster_codes(of_items, len(means)),
        confidence_level=confidence_level,
        method="t over item means",
    )
    if not binary or found.df is None or found.n < (MIN_CLUSTERS if of_items else 2):
        return found
    # The answers to an item are a cluster. With no more than that known of them, its copies would count once.
    return effective_interval(found, most=math.inf, own=float(found.n))


def _components(
    values: Floats, codes: Ints, counts: Floats, means: Floats
) -> tuple[float | None, float | None, tuple[str, ...]]:
    n = len(means)
    if n < 2 or len(values) == n:
        return None, None, ("no item was answered twice, so the answers' variance is unknown",) if n > 1 else ()
    within = float(np.sum((values - means[codes]) ** 2)) / (len(values) - n)
    between = float(means.var(ddof=1)) - within * float(np.mean(1 / counts))
    if between < 0:
        return 0.0, within, ("items do not differ more than answers do by chance: variance between items set to 0",)
    return between, within, ()
