"""One score: the mean of the items, independent or in clusters, with an interval that fits what the scores are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import vector
from evalkit.stats.clusters import MIN_CLUSTERS, Estimator, cluster_codes, t_interval
from evalkit.stats.few_units import graded_mean
from evalkit.stats.proportions import mean_of_answers
from evalkit.stats.results import Estimate

POPULATION: Final = "items like these, answered by this checkpoint"


def mean_score(
    scores: npt.ArrayLike, *, cluster: Sequence[Any] | None = None, confidence_level: float = 0.95
) -> Estimate:
    """Estimate the mean of one model's scores by what covers best for such scores.

    Independent scores of 0 and 1 get `proportions.proportion`'s default, Wilson's interval with its ends mended near 0
    and 1; in clusters, the same for an effective number of items (`proportions.clustered_proportion`). Other scores get
    the t interval, with clusters CR2, and below 100 units the studentised bootstrap where that is wider
    (`few_units.graded_mean`). Fewer than 5 clusters have no interval, only a warning.

    Parameters
    ----------
    scores
        Shape (n,): one score per item (repeats and seeds averaged before).
    cluster
        Length n: the source that an item shares with others; None when all items are independent.
    confidence_level
        Of the two-sided interval.

    Raises
    ------
    InputError
        There is no item, a score is not finite, or the clusters do not fit.
    """
    values = vector(scores, "scores")
    codes, sizes = cluster_codes(cluster, len(values))
    if np.isin(values, (0.0, 1.0)).all():
        found = mean_of_answers(values, cluster, confidence_level=confidence_level)
        return replace(found, population=POPULATION)
    return graded_mean(values, codes, sizes, confidence_level=confidence_level, population=POPULATION)


def clustered_mean(
    values: npt.ArrayLike,
    cluster: Sequence[Any] | None = None,
    *,
    estimator: Estimator = "CR2",
    confidence_level: float = 0.95,
) -> Estimate:
    """Estimate a mean with a named cluster-robust error and its t interval (`clusters.t_interval`).

    Parameters
    ----------
    values
        Shape (n,).
    cluster
        Length n; None when all items are independent: the usual t interval.
    estimator
        CR1, CR2 or CR3.

    Raises
    ------
    InputError
        There is no value, one is not finite, or there are fewer than 5 clusters.
    SpecError
        There is no such estimator.
    """
    if estimator not in ("CR1", "CR2", "CR3"):
        raise SpecError(f"{estimator!r} is no cluster-robust error", do="Choose CR1, CR2 or CR3")
    of = vector(values, "values")
    codes, sizes = cluster_codes(cluster, len(of))
    if len(sizes) < min(MIN_CLUSTERS, len(of)):
        raise InputError(
            f"{len(sizes)} clusters are too few for an interval",
            do=f"Take at least {MIN_CLUSTERS}, or report the score without an interval",
        )
    return t_interval(of, codes, sizes, estimator=estimator, confidence_level=confidence_level)
