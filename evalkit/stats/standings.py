"""Several models on the same items: every paired difference with intervals that hold all at once, and sets of ranks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evalkit.errors import InputError
from evalkit.stats.arrays import check_level
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes
from evalkit.stats.ratings import critical_value, rank_sets
from evalkit.stats.results import Result

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Standings(Result):
    """Mean scores of several models on the same items, compared pair by pair.

    Attributes
    ----------
    names
        The models.
    means
        Mean scores, each task with the same weight; higher is better.
    covariance
        Of the means, over independent units.
    critical
        How many standard errors a difference's interval reaches on either side.
    rank_low, rank_high
        Best and worst rank (1 is the best) that the data leave possible; these sets hold for all models at once.
    n_tasks, n_items, n_units
        Tasks, items, and independent units of the task with the fewest.
    confidence_level
        Of all intervals together.
    resampling_seed
        Of the draws behind `critical`.
    warnings
        What to know.
    n_lower
        Tasks whose scores count with the opposite sign, because lower is better.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    critical: float
    rank_low: tuple[int, ...]
    rank_high: tuple[int, ...]
    n_tasks: int
    n_items: int
    n_units: int
    confidence_level: float
    resampling_seed: int
    warnings: tuple[str, ...] = ()
    n_lower: int = 0

    def difference(self, i: int, j: int) -> tuple[float, float | None, float | None]:
        """Return mean i less mean j, and the ends of its interval, which holds for all pairs at once.

        Models whose scores differ by the same amount on all items have no interval: their spread says nothing.
        """
        value, V = self.means[i] - self.means[j], self.covariance
        variance = V[i][i] + V[j][j] - 2 * V[i][j]
        if variance <= 1e-12 * max(V[k][k] for k in range(len(V))):  # what is less is rounding
            return value, None, None
        half = self.critical * math.sqrt(variance)
        return value, value - half, value + half

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each pair of models."""
        import pandas as pd

        rows = []
        for i, first in enumerate(self.names):
            for j, second in enumerate(self.names):
                if i < j:
                    value, low, high = self.difference(i, j)
                    rows.append({"model": first, "other": second, "difference": value, "low": low, "high": high})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        order = sorted(range(len(self.names)), key=lambda i: -self.means[i])
        return "\n".join(
            f"{self.names[i]}: {self.means[i]:.4f}, rank {self.rank_low[i]} to {self.rank_high[i]}" for i in order
        )

    def explain(self) -> str:
        """Say in two sentences what the ranks mean."""
        level = f"{100 * self.confidence_level:.4g}%"
        tasks = "one task" if self.n_tasks == 1 else f"{self.n_tasks} tasks"
        return (
            f"{len(self.names)} models on the {self.n_items:,} items of {tasks} that all of them "
            f"answered, compared pair by pair; all intervals hold at once in {level} of repetitions (max-t). A "
            "model's best rank is one more than the number of models that are surely better, its worst leaves out "
            "those surely worse."
        )


def standings(
    scores: Sequence[npt.ArrayLike],
    names: Sequence[str],
    *,
    clusters: Sequence[Sequence[Hashable] | None] | None = None,
    confidence_level: float = 0.95,
    n_draws: int = 10_000,
    seed: int = 0,
) -> Standings:
    """Compare k models pair by pair on the same items.

    The covariance of a task's k means is sum_g e_g e_g' G / (G - 1) / n^2, with e_g the sum over cluster g of an item's
    k scores less the means; that of the means over T independent tasks is their sum over T^2. Intervals of all pairs
    reach to the quantile of the largest |t| (multivariate t with the covariance above; Hothorn, Bretz and Westfall
    2008, Biom. J. 50:346). Rank sets are those of Mogstad et al. (2024, Rev. Econ. Stud. 91:476).

    Parameters
    ----------
    scores
        For each task shape (n, k): scores of n items by k models; higher is better.
    names
        Length k.
    clusters
        For each task the sources of its items (length n), or None where they are independent.
    confidence_level
        Of all intervals together.
    n_draws, seed
        Of the draws from the multivariate t.

    Raises
    ------
    InputError
        There are fewer than two models, shapes differ, a score is not finite, or a task has fewer than 5 units.
    """
    check_level(confidence_level)
    tables = [np.asarray(one, dtype=np.float64) for one in scores]
    k = len(names)
    if k < 2 or not tables or any(one.ndim != 2 or one.shape[1] != k for one in tables):
        raise InputError(f"{k} models and scores of other shapes", where="standings", do="Give items by models")
    if not all(np.isfinite(one).all() for one in tables):
        raise InputError("a score is not finite", where="standings", do="Leave the item out")
    means, V = np.zeros(k), np.zeros((k, k))
    fewest: Any = math.inf
    for place, table in enumerate(tables):
        codes, sizes = cluster_codes(clusters[place] if clusters else None, len(table))
        if len(sizes) < MIN_CLUSTERS:
            raise InputError(
                f"{len(sizes)} independent units are too few", where=f"task {place} of standings", do="Leave it out"
            )
        fewest = min(fewest, len(sizes))
        mean = table.mean(axis=0)
        sums = np.zeros((len(sizes), k))
        np.add.at(sums, codes, table - mean)
        V += sums.T @ sums * len(sizes) / (len(sizes) - 1) / len(table) ** 2
        means += mean
    means, V = means / len(tables), V / len(tables) ** 2
    critical = critical_value(V, int(fewest), confidence_level, n_draws, seed)
    rank_low, rank_high = rank_sets(means, V, critical)
    return Standings(
        names=tuple(names),
        means=tuple(means.tolist()),
        covariance=tuple(map(tuple, V.tolist())),
        critical=critical,
        rank_low=tuple(rank_low.tolist()),
        rank_high=tuple(rank_high.tolist()),
        n_tasks=len(tables),
        n_items=sum(map(len, tables)),
        n_units=int(fewest),
        confidence_level=confidence_level,
        resampling_seed=seed,
    )
