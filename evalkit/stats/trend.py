"""Scores over the checkpoints of a training run: one score's interval, its rank trend, and whether it still changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.stats.arrays import vector
from evalkit.stats.clusters import cluster_codes, t_interval
from evalkit.stats.results import Estimate, Result

RISING, FALLING, UNRESOLVED = "still rising", "falling", "flat or not resolved"

MIN_CHECKPOINTS: Final = 3
"""With fewer there is no late change: two checkpoints are a comparison, not a trend."""


@dataclass(frozen=True)
class RankTrend(Result):
    """Kendall's tau-b of score against step over `n` checkpoints; None where all scores are equal or `n` is 1."""

    tau: float | None
    p_value: float | None
    n: int

    def __str__(self) -> str:
        if self.tau is None or self.p_value is None:
            return f"no order in the scores of {self.n} checkpoints"
        return f"Kendall's tau-b {self.tau:+.3f}, p = {self.p_value:.4g} ({self.n} checkpoints)"

    def explain(self) -> str:
        """Say in two sentences how the scores follow the steps."""
        if self.tau is None or self.p_value is None:
            return f"The {self.n} scores are all equal, or one. Nothing can be said of a trend."
        return (
            f"Over {self.n} checkpoints, score and step are ordered alike by Kendall's tau-b of {self.tau:.3g}: 1 is"
            f" always rising, -1 always falling. If every order were equally likely, one at least as far from 0 would"
            f" come up with probability {self.p_value:.3g}."
        )


@dataclass(frozen=True)
class LateChange(Result):
    """The fitted change of the mean score from `first_step` to `last_step`, the last half of the checkpoints."""

    change: Estimate
    first_step: int
    last_step: int
    n_checkpoints: int
    verdict: str

    def __str__(self) -> str:
        return f"{self.verdict} from step {self.first_step} to {self.last_step}: {self.change}"

    def explain(self) -> str:
        """Say where the change was looked for, and what was found."""
        where = f"the last {self.n_checkpoints} checkpoints, step {self.first_step} to {self.last_step}"
        return f"Verdict on {where}: {self.verdict}. {self.change.explain()}"


def rank_trend(steps: Sequence[int], scores: npt.ArrayLike) -> RankTrend:
    """Correlate score with step by ranks: Kendall's tau-b (Kendall 1945, Biometrika 33:239), a test against trend.

    The p value is over checkpoints (Mann 1945, Econometrica 13:245): under its null every order of these scores is
    equally likely. It is exact without ties, up to 33 checkpoints. With 4 it cannot be below 0.083.
    """
    values = np.round(np.asarray(scores, dtype=float), 12)  # rounding noise would break ties
    if len(values) < 2 or np.ptp(values) == 0:
        return RankTrend(None, None, len(values))
    found = stats.kendalltau(np.asarray(steps), values)
    return RankTrend(float(found.statistic), float(found.pvalue), len(values))


def late_change(
    scores: npt.ArrayLike,
    steps: Sequence[int],
    *,
    cluster: Sequence[Any] | None = None,
    confidence_level: float = 0.95,
) -> LateChange:
    """Estimate how much the mean score still changes over the last half of the checkpoints (at least 3).

    Each item gives one number, the least-squares slope of its score on the step times the steps covered; these numbers
    get a t interval, with clusters CR2. Reducing the serial scores of a unit to one summary keeps what is not
    independent, one item at several checkpoints, together (Matthews, Altman, Campbell and Royston 1990, BMJ 300:230).
    The items are the units: the interval is for items like these at these checkpoints. That the next checkpoint, or
    another seed, would differ by chance is not in it.

    Parameters
    ----------
    scores
        Shape (n_items, n_checkpoints).
    steps
        Length n_checkpoints, ascending.
    cluster
        Length n_items, as in `mean_score`.
    confidence_level
        Of the interval; the verdict is the interval against zero.

    Raises
    ------
    ValueError
        The shapes do not fit, the steps do not ascend, or there are fewer than 3.
    InputError
        A score is not finite, or there is no item.
    """
    values, at = np.asarray(scores, dtype=float), np.asarray(steps, dtype=float)
    if values.ndim != 2 or at.shape != values.shape[1:] or len(at) < MIN_CHECKPOINTS or (np.diff(at) <= 0).any():
        raise ValueError(f"scores {values.shape} need at least {MIN_CHECKPOINTS} ascending steps, not {list(steps)}")
    vector(values.ravel(), "scores")
    late = max(MIN_CHECKPOINTS, math.ceil(len(at) / 2))
    values, at = values[:, -late:], at[-late:]
    centred = at - at.mean()
    # Against the item's first score, and rounded: else rounding noise of 1e-17 would pass for a small, certain change.
    changes = ((values - values[:, :1]) * centred).sum(axis=1) * np.ptp(at) / (centred**2).sum()
    change = t_interval(
        np.round(changes, 12),
        *cluster_codes(cluster, len(changes)),
        confidence_level=confidence_level,
        method="t over the items' least-squares slopes",
        population="items like these, at these checkpoints",
    )
    change = replace(change, quantity="the change")
    return LateChange(change, int(at[0]), int(at[-1]), late, _verdict(change))


def _verdict(change: Estimate) -> str:
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return UNRESOLVED
    return RISING if change.low > 0 else FALLING
