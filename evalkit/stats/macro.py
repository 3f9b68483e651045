"""Several benchmarks as one number: macro and micro mean, interquartile mean, scores corrected for chance."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.aggregate import macro_difference
from evalkit.stats.arrays import Floats, check_level, vector
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes
from evalkit.stats.results import Estimate, Result

if TYPE_CHECKING:
    import pandas as pd

THESE_TASKS: Final = "these tasks, with items like these"
TASKS_LIKE_THESE: Final = "tasks like these, drawn as these were"

FEW_TASKS: Final = 10
"""Below this many tasks the interval for tasks like these comes with a warning."""

FEW_VALUES: Final = 10
"""Below this many runs or items of a task the stratified bootstrap comes with a warning."""

_BATCH_VALUES: Final = 2_000_000
"""Resampled values in memory at a time."""


@dataclass(frozen=True)
class MacroMean(Result):
    """The mean over tasks, each with the same weight, with the intervals of two questions.

    Attributes
    ----------
    this_suite
        For these tasks and other items of them: only items vary.
    tasks_like_these
        For other tasks of the kind: tasks vary too. Wider, unless the tasks agree more than their items let expect.
    """

    this_suite: Estimate
    tasks_like_these: Estimate

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each question."""
        import pandas as pd

        return pd.concat([self.this_suite.to_frame(), self.tasks_like_these.to_frame()], ignore_index=True)

    def __str__(self) -> str:
        return f"this suite: {self.this_suite}\ntasks like these: {self.tasks_like_these}"

    def explain(self) -> str:
        """Say what each of the two intervals is for."""
        return f"{self.this_suite.explain()} {self.tasks_like_these.explain()}"


def macro_mean(estimates: Sequence[Estimate], *, population: str = THESE_TASKS) -> MacroMean:
    """Average independent tasks, each with the same weight.

    This suite: SE = sqrt(sum SE_k^2) / T, Satterthwaite degrees of freedom (`macro_difference`). Tasks like these:
    SE = sd(estimates) / sqrt(T), t with T - 1 degrees of freedom, which takes the tasks as a random sample; the items'
    noise is in that spread already. A task whose interval is no t interval counts by that interval's width, if
    it is more than its standard error. Tasks that share items are not independent: `macro_of_shared_items`.

    Parameters
    ----------
    estimates
        One for each task, scores or differences, all with one confidence level.
    population
        What the first interval generalises to.

    Raises
    ------
    InputError
        There is no estimate, or the levels differ.
    """
    _check_tasks(estimates)
    suite = replace(
        macro_difference(list(map(_with_error, estimates))), population=population, quantity="the mean over tasks"
    )
    values = np.array([one.estimate for one in estimates])
    return MacroMean(suite, _tasks_as_sample(values, suite))


def _check_tasks(estimates: Sequence[Estimate]) -> None:
    if not estimates:
        raise InputError("there is no task", where="macro mean", do="Give one estimate for each task")
    levels = sorted({one.confidence_level for one in estimates})
    if len(levels) > 1:
        raise InputError(f"confidence levels {levels} are mixed", where="macro mean", do="Give all tasks one level")


def _with_error(estimate: Estimate) -> Estimate:
    """Give an interval that is no t interval (Wilson, Bonett-Price, bootstrap) an error that allows for its width.

    30 of 30 right have a standard error of zero, but an interval; as a task of a mean they must not pass for certain.
    Of few items, half right, Wilson's interval is narrower than the error says, but it is not centred at the mean.
    """
    if estimate.df is not None or estimate.low is None or estimate.high is None:
        return estimate
    z = float(stats.norm.ppf((1 + estimate.confidence_level) / 2))
    error = max(estimate.standard_error or 0.0, (estimate.high - estimate.low) / 2 / z)
    return replace(estimate, standard_error=error, df=max(estimate.n - 1.0, 1.0))


def _tasks_as_sample(values: Floats, suite: Estimate) -> Estimate:
    T = len(values)
    whole = replace(
        suite,
        estimate=float(values.mean()),
        low=None,
        high=None,
        method="t over tasks",
        population=TASKS_LIKE_THESE,
        unit="tasks",
        n=T,
        standard_error=None,
        df=None,
        warnings=("one task says nothing about other tasks",),
    )
    if T == 1:
        return whole
    error = float(values.std(ddof=1)) / np.sqrt(T)
    if error == 0:
        return replace(whole, standard_error=0.0, df=T - 1.0, warnings=("all tasks are equal: no spread to go by",))
    half = float(stats.t.ppf((1 + suite.confidence_level) / 2, T - 1)) * error
    return replace(
        whole,
        low=whole.estimate - half,
        high=whole.estimate + half,
        standard_error=error,
        df=T - 1.0,
        warnings=(f"only {T} tasks: a rough interval",) if T < FEW_TASKS else (),
    )


def micro_mean(estimates: Sequence[Estimate], *, population: str = THESE_TASKS) -> Estimate:
    """Average all items of independent tasks, each item with the same weight: large tasks decide.

    Estimate sum(n_k estimate_k) / N, SE = sqrt(sum (n_k SE_k)^2) / N, Satterthwaite degrees of freedom. This keeps each
    task's own mean, so differences between tasks are not taken for noise, as they are when all items are pooled.

    Parameters
    ----------
    estimates
        One for each task, with its number of items in `n_items`.
    population
        What the interval generalises to.

    Raises
    ------
    InputError
        There is no estimate, or the levels differ.
    """
    _check_tasks(estimates)
    total = sum(one.n_items for one in estimates)
    shares = [one.n_items * len(estimates) / total for one in estimates]
    weighted = [_transformed(_with_error(one), scale=share) for one, share in zip(estimates, shares, strict=True)]
    found = replace(macro_difference(weighted), population=population, quantity="the mean over items of all tasks")
    return found if len(estimates) == 1 else replace(found, method="mean over items of all tasks, Satterthwaite t")


def _transformed(estimate: Estimate, *, scale: float, shift: float = 0.0) -> Estimate:
    """Return the estimate of scale * x + shift, scale > 0."""

    def moved(value: float | None) -> float | None:
        return None if value is None else scale * value + shift

    error = estimate.monte_carlo_error
    return replace(
        estimate,
        estimate=scale * estimate.estimate + shift,
        low=moved(estimate.low),
        high=moved(estimate.high),
        standard_error=None if estimate.standard_error is None else scale * estimate.standard_error,
        monte_carlo_error=None if error is None else (scale * error[0], scale * error[1]),
    )


def chance_corrected(estimate: Estimate, chance: float, *, difference: bool = False) -> Estimate:
    """Rescale a score so that guessing is 0 and a perfect score is 1: (score - chance) / (1 - chance).

    A score below chance is negative and stays so: cut off at zero, noise around chance would become a positive mean.

    Parameters
    ----------
    estimate
        A score from 0 to 1, or the difference of two.
    chance
        The expected score of guessing: the mean of 1 / number of choices.
    difference
        Whether it is a difference of two scores, from which the shift drops out.

    Raises
    ------
    SpecError
        `chance` is not from 0 to below 1.
    """
    if not 0 <= chance < 1:
        raise SpecError(f"{chance} is not from 0 to below 1", where="chance", do="Give 0.25 for four choices")
    scale = 1 / (1 - chance)
    moved = _transformed(estimate, scale=scale, shift=0.0 if difference else -chance * scale)
    return replace(moved, method=f"{estimate.method}, corrected for a chance of {chance:.4g}")


def macro_of_shared_items(
    values: npt.ArrayLike, *, cluster: Sequence[Hashable] | None = None, confidence_level: float = 0.95
) -> MacroMean:
    """Average tasks that share items or sources, so that their errors are correlated.

    Each value adds (value - task mean) / (T n_k sqrt(1 - m / n_k)) to its unit, where m is the number of the unit's
    values in the task (CR2, as for one task); the variance is the sum over units of the squares of their sums, which
    holds all covariances between tasks. Tasks without a common unit give `macro_mean` exactly. Degrees of freedom are
    Satterthwaite's over tasks, at most the units less one.

    Parameters
    ----------
    values
        Shape (n, T): scores or differences of n items in T tasks, NaN where an item is not in a task.
    cluster
        Length n: the source that an item shares with others, also with items of other tasks.
    confidence_level
        Of both intervals.

    Raises
    ------
    InputError
        The shape is wrong, a value is infinite, or a task has fewer than two units.
    """
    check_level(confidence_level)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size or np.isinf(array).any():
        raise InputError(f"shape {array.shape}", where="values", do="Give finite numbers, items by tasks")
    n, T = array.shape
    codes = cluster_codes(cluster, n)[0]
    present = ~np.isnan(array)
    sizes, sums = np.zeros((int(codes.max()) + 1, T)), np.zeros((int(codes.max()) + 1, T))
    np.add.at(sizes, codes, present)
    units = (sizes > 0).sum(axis=0)
    if (units < 2).any():
        column = int(np.argmax(units < 2))
        raise InputError(f"{units[column]} units", where=f"task {column}", do="Leave out tasks with fewer than two")
    n_items = present.sum(axis=0)
    means = np.nansum(array, axis=0) / n_items
    np.add.at(sums, codes, np.where(present, array - means, 0.0))
    adjusted = sums / np.sqrt(1 - sizes / n_items) / n_items
    own = (adjusted**2).sum(axis=0)  # variances of the tasks' means
    variance = float((adjusted.sum(axis=1) ** 2).sum()) / T**2
    n_units = int((sizes.sum(axis=1) > 0).sum())
    suite = Estimate(
        estimate=float(means.mean()),
        low=None,
        high=None,
        confidence_level=confidence_level,
        method="mean over tasks that share units, CR2",
        population=THESE_TASKS,
        unit="items" if cluster is None else "clusters",
        n=n_units,
        n_items=int(n_items.sum()),
        standard_error=float(np.sqrt(variance)),
        quantity="the mean over tasks",
    )
    if cluster is not None and n_units < MIN_CLUSTERS:
        few = f"{n_units} clusters are too few for an interval (at least {MIN_CLUSTERS})"
        suite = replace(suite, warnings=(few,))
    elif variance == 0:
        suite = replace(suite, warnings=("all units are equal, so their spread says nothing about other items",))
    else:
        df = min(n_units - 1.0, float(own.sum() ** 2 / np.sum(own**2 / (units - 1))))
        half = float(stats.t.ppf((1 + confidence_level) / 2, df)) * float(np.sqrt(variance))
        suite = replace(suite, low=suite.estimate - half, high=suite.estimate + half, df=df)
    return MacroMean(suite, _tasks_as_sample(means, suite))


def interquartile_mean(
    scores: Sequence[npt.ArrayLike],
    baseline: Sequence[npt.ArrayLike] | None = None,
    *,
    of: Literal["runs", "tasks"] = "runs",
    confidence_level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Average the middle half, with a percentile interval of a bootstrap stratified by task.

    Agarwal et al. 2021 (arXiv:2108.13264): of all values sorted, a quarter is cut off at either end (rounded down);
    each resample draws as many values of each task as there are, with replacement. A task counts by its values, so
    give all tasks equally many where values are runs.

    Parameters
    ----------
    scores
        One array for each task: the normalised scores of its runs (`of="runs"`), or its items (`of="tasks"`).
    baseline
        Of the same shape, value by value of the same seeds or items: the result is then the difference of the two
        interquartile means, and each pair is drawn together.
    of
        What the middle half is of: all runs of all tasks, or the tasks' means.
    confidence_level
        Of the interval.
    n_resamples, seed
        Of the bootstrap.

    Raises
    ------
    InputError
        There is no task, a task has no values, a value is not finite, or the baseline has another shape.
    SpecError
        `of` is unknown, or the level is not between 0 and 1.
    """
    check_level(confidence_level)
    if of not in ("runs", "tasks"):
        raise SpecError(f"{of!r} is not known", where="of", do="Give 'runs' or 'tasks'")
    if not len(scores) or (baseline is not None and len(baseline) != len(scores)):
        raise InputError("tasks are missing", where="interquartile mean", do="Give one array for each task")
    unit = "runs" if of == "runs" else "items"
    strata = []
    for k, values in enumerate(scores):
        columns = [vector(values, f"task {k}")]
        if baseline is not None:
            columns.append(vector(baseline[k], f"task {k} of the baseline", length=len(columns[0])))
        strata.append(np.stack(columns, axis=1))
    rng = np.random.default_rng(seed)
    total, smallest = sum(map(len, strata)), min(map(len, strata))
    batch = max(1, _BATCH_VALUES // total)
    draws = np.sort(
        np.concatenate(
            [_middle(strata, of, rng, min(batch, n_resamples - begin)) for begin in range(0, n_resamples, batch)]
        )
    )
    low = high = errors = None
    warnings: tuple[str, ...] = ()
    if draws[0] == draws[-1]:
        warnings = ("all resamples are equal, so they say nothing about other values",)
    else:
        low, high = (float(x) for x in np.quantile(draws, [(1 - confidence_level) / 2, (1 + confidence_level) / 2]))
        errors = _quantile_errors(draws, confidence_level)
        if smallest < FEW_VALUES:
            warnings = (f"a task has only {smallest} {unit}: the bootstrap interval is too narrow",)
    return Estimate(
        estimate=float(_middle(strata, of, None, 1)[0]),
        low=low,
        high=high,
        confidence_level=confidence_level,
        method=f"interquartile mean of {of}, bootstrap stratified by task",
        population=f"these tasks, with {unit} like these",
        unit=unit,
        n=total,
        n_items=total,
        standard_error=float(draws.std(ddof=1)),
        warnings=warnings,
        resampling_seed=seed,
        n_resamples=n_resamples,
        monte_carlo_error=errors,
        quantity="the interquartile mean" if baseline is None else "the difference of interquartile means",
    )


def _middle(strata: Sequence[Floats], of: str, rng: np.random.Generator | None, size: int) -> Floats:
    """Interquartile means (their difference, of two columns) of resamples, or of the data as they are: (size,)."""
    parts = []
    for one in strata:
        taken = one[None] if rng is None else one[rng.integers(len(one), size=(size, len(one)))]
        parts.append(taken.mean(axis=1, keepdims=True) if of == "tasks" else taken)
    means = stats.trim_mean(np.concatenate(parts, axis=1), 0.25, axis=1)
    found: Floats = means[:, 0] - (means[:, 1] if means.shape[1] > 1 else 0.0)
    return found


def _quantile_errors(draws: npt.NDArray[Any], confidence_level: float) -> tuple[float, float]:
    """Standard errors of both ends, from the order statistics one binomial standard deviation to either side."""
    B = len(draws)
    errors = []
    for q in ((1 - confidence_level) / 2, (1 + confidence_level) / 2):
        spread = np.sqrt(q * (1 - q) / B)
        below, above = np.quantile(draws, np.clip([q - spread, q + spread], 0, 1))
        errors.append(float(above - below) / 2)
    return errors[0], errors[1]
