"""Several tasks together: the mean of their differences, and its test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from evalkit.stats.results import Estimate, TestResult


def macro_difference(estimates: Sequence[Estimate]) -> Estimate:
    """Average the differences of independent tasks, each with the same weight.

    SE = sqrt(sum SE_k^2) / T, with degrees of freedom (sum SE_k^2)^2 / sum(SE_k^4 / df_k) (Satterthwaite 1946). The
    interval is for these tasks and other items of them; it says nothing about other tasks.

    Parameters
    ----------
    estimates
        One for each task, all with the same confidence level.

    Raises
    ------
    ValueError
        There is no estimate.
    """
    if not estimates:
        raise ValueError("no estimate to average")
    if len(estimates) == 1:
        return estimates[0]
    first = estimates[0]
    mean = float(np.mean([one.estimate for one in estimates]))
    warnings = [warning for one in estimates for warning in one.warnings]
    low = high = standard_error = df = None
    # A task whose differences are all equal takes part with no variance, and its warning; one with too few clusters
    # for an interval of its own allows none here either.
    if all(one.low is not None or (one.standard_error == 0 and one.df is not None) for one in estimates):
        variances = np.array([one.standard_error or 0.0 for one in estimates]) ** 2
        standard_error = float(np.sqrt(variances.sum())) / len(estimates)
        if standard_error > 0:
            df = float(variances.sum() ** 2 / np.sum(variances**2 / np.array([one.df for one in estimates])))
            half = float(stats.t.ppf((1 + first.confidence_level) / 2, df)) * standard_error
            low, high = mean - half, mean + half
    return Estimate(
        estimate=mean,
        low=low,
        high=high,
        confidence_level=first.confidence_level,
        method="mean over tasks, Satterthwaite t",
        population="these tasks, with items like these, answered by these two models",
        unit="units",
        n=sum(one.n for one in estimates),
        n_items=sum(one.n_items for one in estimates),
        standard_error=standard_error,
        df=df,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def macro_test(difference: Estimate) -> TestResult | None:
    """Test that the mean of the tasks' differences is zero, by the t statistic of its own interval.

    So p is below 1 - level exactly where the interval leaves out zero. McNemar's counts added up over the tasks would
    not do: they weight a task by its discordant items, not equally, and can point the other way.

    Parameters
    ----------
    difference
        What `macro_difference` returned.

    Returns
    -------
    TestResult or None
        Without counts; None where there is no interval.
    """
    if difference.low is None or difference.standard_error is None or difference.df is None:
        return None
    t = abs(difference.estimate) / difference.standard_error
    return TestResult(
        p_value=float(2 * stats.t.sf(t, difference.df)),
        method="t of the mean over tasks",
        null_hypothesis="the mean of the tasks' differences is zero for items like these",
        n=difference.n_items,
    )
