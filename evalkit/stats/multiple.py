"""Several hypotheses at once: Holm for a stated family, Benjamini-Hochberg for slices, max-T for shared items."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import Floats, check_level, vector
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes
from evalkit.stats.paired import paired_difference
from evalkit.stats.results import Result

if TYPE_CHECKING:
    import pandas as pd

MAX_EXACT_UNITS: Final = 15
"""Up to this many units all 2^(units - 1) sign flips are tried, and no random numbers are needed."""

_BATCH_SIGNS: Final = 2_000_000
"""Signs in memory at a time."""

_TIE: Final = 1e-9
"""Statistics that differ by less are equal: the same sum in another order."""


@dataclass(frozen=True)
class Family(Result):
    """A family of hypotheses tested together.

    Attributes
    ----------
    method
        How p values were adjusted.
    controls
        What is at most `alpha`, as a phrase.
    alpha
        The error rate that is controlled.
    n
        Size of the family.
    p_values, adjusted
        Unadjusted and adjusted p values, in the order given; a hypothesis is rejected when the adjusted one is at most
        `alpha`.
    rejected
        Whether each hypothesis is rejected.
    interval_level
        The confidence level that each single interval needs, so that `intervals_hold` is true of them together.
    intervals_hold
        What the intervals at `interval_level` promise, as a phrase.
    """

    method: str
    controls: str
    alpha: float
    n: int
    p_values: tuple[float, ...]
    adjusted: tuple[float, ...]
    rejected: tuple[bool, ...]
    interval_level: float
    intervals_hold: str

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each hypothesis."""
        import pandas as pd

        return pd.DataFrame({"p": self.p_values, "p_adjusted": self.adjusted, "rejected": self.rejected})

    def __str__(self) -> str:
        return f"{sum(self.rejected)} of {self.n} rejected at {self.alpha:g} ({self.method}, family of {self.n})"

    def explain(self) -> str:
        """Say in two plain sentences what was controlled, and what the intervals promise."""
        return (
            f"Of a family of {self.n} hypotheses, {sum(self.rejected)} are rejected, and {self.controls} is at most"
            f" {self.alpha:g} ({self.method}). Intervals at level {self.interval_level:.6g} hold {self.intervals_hold}."
        )


def holm(p_values: npt.ArrayLike, *, alpha: float = 0.05) -> Family:
    """Adjust p values so that the chance of any false rejection is at most alpha (Holm 1979, Scand. J. Stat. 6:65).

    The k-th smallest p value is multiplied by n - k + 1, and no adjusted p value is below a smaller one's. Any
    dependence is allowed. The intervals that go with it are Bonferroni's, at level 1 - alpha / n: they hold all at
    once. Narrower ones at Holm's own steps do not (with n far effects their errors add up to alpha (1 + 1/2 + ... +
    1/n)); so one of these may hold zero where Holm rejects.

    Parameters
    ----------
    p_values
        Shape (n,): one for each hypothesis of the family, named before looking.
    alpha
        The family-wise error rate.

    Raises
    ------
    InputError
        A p value is not from 0 to 1.
    SpecError
        `alpha` is not between 0 and 1.
    """
    p = vector(p_values, "p values", bounds=(0, 1))
    check_level(alpha, "alpha")
    n, order = len(p), np.argsort(p, kind="stable")
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(n, 0, -1)))
    return _family(
        "Holm", "the chance of any false rejection", alpha, p, adjusted, 1 - alpha / n, "all at once (Bonferroni)"
    )


def benjamini_hochberg(p_values: npt.ArrayLike, *, alpha: float = 0.05) -> Family:
    """Adjust p values so that the expected share of false rejections is at most alpha.

    Benjamini and Hochberg (1995, JRSS B 57:289): the k-th smallest p value is multiplied by n / k, and no adjusted p
    value is above a larger one's. For independent or positively dependent tests. Intervals for the R rejected ones are
    at level 1 - R alpha / n: the expected share of those that miss is at most alpha (Benjamini and Yekutieli 2005, JASA
    100:71), and they leave out the null value exactly where it is rejected.

    Parameters
    ----------
    p_values
        Shape (n,): all that were looked at, not only the good ones.
    alpha
        The false discovery rate.

    Raises
    ------
    InputError
        A p value is not from 0 to 1.
    SpecError
        `alpha` is not between 0 and 1.
    """
    p = vector(p_values, "p values", bounds=(0, 1))
    check_level(alpha, "alpha")
    n, order = len(p), np.argsort(p, kind="stable")
    adjusted = np.empty(n)
    steps = p[order] * n / np.arange(1, n + 1)
    adjusted[order] = np.minimum.accumulate(steps[::-1])[::-1]
    n_rejected = int(np.sum(adjusted <= alpha))
    return _family(
        "Benjamini-Hochberg",
        "the expected share of false rejections among them",
        alpha,
        p,
        adjusted,
        1 - max(1, n_rejected) * alpha / n,
        "for the rejected ones, in that the expected share of misses is controlled (Benjamini-Yekutieli)",
    )


def _family(method: str, controls: str, alpha: float, p: Floats, adjusted: Floats, level: float, hold: str) -> Family:
    return Family(
        method=method,
        controls=controls,
        alpha=alpha,
        n=len(p),
        p_values=tuple(p.tolist()),
        adjusted=tuple(adjusted.tolist()),
        rejected=tuple((adjusted <= alpha).tolist()),
        interval_level=level,
        intervals_hold=hold,
    )


@dataclass(frozen=True)
class SharedItems(Result):
    """Several means over shared units, tested together by the largest t of sign flips.

    Attributes
    ----------
    estimates, low, high
        Means, with intervals that hold all at once with `confidence_level`.
    standard_errors, t
        Standard errors, and means divided by them.
    p_values, adjusted
        Unadjusted, and adjusted in steps so that the chance of any false rejection is controlled.
    critical
        Multiple of the standard error to which intervals reach.
    confidence_level
        Of the intervals together.
    n, unit
        Independent units.
    n_items
        Values of each column.
    n_resamples, resampling_seed
        Sign flips; the seed is None when all possible ones were tried.
    method, population, warnings
        As in `Estimate`.
    """

    estimates: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    standard_errors: tuple[float, ...]
    t: tuple[float, ...]
    p_values: tuple[float, ...]
    adjusted: tuple[float, ...]
    critical: float
    confidence_level: float
    n: int
    unit: str
    n_items: tuple[int, ...]
    n_resamples: int
    resampling_seed: int | None
    method: str = "max-T by sign flips, studentised"
    population: str = "items like these"
    warnings: tuple[str, ...] = ()

    @property
    def monte_carlo_error(self) -> tuple[float, ...]:
        """Standard error of each adjusted p value as the seed changes; zero when all flips were tried."""
        if self.resampling_seed is None:
            return (0.0,) * len(self.adjusted)
        return tuple(float(np.sqrt(p * (1 - p) / self.n_resamples)) for p in self.adjusted)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each mean."""
        import pandas as pd

        names = ("estimates", "low", "high", "standard_errors", "t", "p_values", "adjusted", "n_items")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def __str__(self) -> str:
        alpha = 1 - self.confidence_level
        found = sum(p <= alpha for p in self.adjusted)
        return f"{found} of {len(self.adjusted)} differ from zero at {alpha:.4g} ({self.method}; {self.n} {self.unit})"

    def explain(self) -> str:
        """Say in two plain sentences what was tested, and what the intervals promise."""
        seed = "" if self.resampling_seed is None else f", and sign flips used the seed {self.resampling_seed}"
        notes = "" if not self.warnings else f"; note: {'; '.join(self.warnings)}"
        return (
            f"{self}, where the chance of any false one is controlled; the intervals, of {self.critical:.4g} standard"
            f" errors, hold all at once in {100 * self.confidence_level:.4g}% of repetitions."
            f" It holds for {self.population}, and takes the {self.unit} as independent{seed}{notes}."
        )


def max_t(
    values: npt.ArrayLike,
    *,
    cluster: Sequence[Hashable] | None = None,
    confidence_level: float = 0.95,
    n_resamples: int = 9999,
    seed: int = 0,
) -> SharedItems:
    """Test that every column's mean is zero, when columns share units and so are dependent.

    t of a column is its mean by its CR2 standard error over the units that it has. A sign flip turns all values of a
    unit in all columns at once, which keeps their dependence; each flip has its own standard errors. Adjusted p values
    are the step-down ones of Westfall and Young (1993, Resampling-Based Multiple Testing, algorithm 4.1). The intervals
    reach to the quantile of the largest |t| of all columns, so an interval leaves out zero exactly where the
    single-step p value is at most alpha; the step-down one is never larger. Columns of -1, 0 and 1 get the interval of
    `paired_difference` (`auto`) at the level of that quantile, a little wider: where few items differ, t would not
    cover. With up to 15 units all flips are tried.

    Parameters
    ----------
    values
        Shape (n, T): differences of n items in T columns (tasks, metrics, or models against one baseline); NaN where an
        item has no value in a column.
    cluster
        Length n: the source that an item shares with others; its items are turned together.
    confidence_level
        Of the intervals together.
    n_resamples
        Random sign flips.
    seed
        Of the flips.

    Raises
    ------
    InputError
        The shape is wrong, a value is infinite, a column has fewer than 5 units, or its units do not differ.
    SpecError
        The level is not between 0 and 1, or fewer than 99 flips are asked for.
    """
    array = np.asarray(values, dtype=np.float64)
    check_level(confidence_level)
    if array.ndim != 2 or not array.size or np.isinf(array).any():
        raise InputError(f"shape {array.shape}", where="values of max-T", do="Give finite numbers, items by columns")
    if n_resamples < 99:
        raise SpecError(f"{n_resamples} sign flips are too few", where="n_resamples", do="Give at least 99")
    n, n_columns = array.shape
    codes = cluster_codes(cluster, n)[0]
    n_units = int(codes.max()) + 1
    present = ~np.isnan(array)
    sizes, sums = np.zeros((n_units, n_columns)), np.zeros((n_units, n_columns))
    np.add.at(sizes, codes, present)
    np.add.at(sums, codes, np.where(present, array, 0.0))
    n_items, units = present.sum(axis=0), (sizes > 0).sum(axis=0)
    for column in range(n_columns):
        if units[column] < MIN_CLUSTERS:
            few = f"{units[column]} independent units are too few"
            raise InputError(few, where=f"column {column} of max-T", do="Leave the column out, and say so")
    studentised = _Studentised(sizes, sums, n_items)
    means, errors = (row[0] for row in studentised(np.ones((1, n_units))))
    flat = (n_items * errors) ** 2 <= 1e-9 * np.nansum(array**2, axis=0)
    if flat.any():
        raise InputError(
            "all units are equal, so their spread says nothing",
            where=f"column {int(np.argmax(flat))} of max-T",
            do="Leave the column out, and say so",
        )
    t = means / errors
    exact = n_units <= MAX_EXACT_UNITS
    order = np.argsort(-np.abs(t), kind="stable")
    single, stepwise, largest = np.zeros(n_columns), np.zeros(n_columns), []
    for signs in _sign_flips(n_units, exact, n_resamples, seed):
        flipped_means, flipped_errors = studentised(signs)
        flipped = np.abs(flipped_means) / flipped_errors
        single += (flipped >= np.abs(t) - _TIE).sum(axis=0)
        # In descending order of the observed |t|: the largest among this column and all less significant ones.
        running = np.maximum.accumulate(flipped[:, order][:, ::-1], axis=1)[:, ::-1]
        stepwise[order] += (running >= np.abs(t)[order] - _TIE).sum(axis=0)
        largest.append(running[:, 0])
    extra = 0 if exact else 1  # the data as they are count as one flip, so that p is never zero
    maxima = np.sort(np.concatenate([*largest, np.full(extra, np.inf)]))
    adjusted = np.empty(n_columns)
    adjusted[order] = np.maximum.accumulate((stepwise[order] + extra) / len(maxima))
    # At most alpha of the flips may reach beyond the critical value.
    critical = float(maxima[int(np.ceil(confidence_level * len(maxima) - _TIE)) - 1])
    warnings = []
    if (1 - confidence_level) * len(maxima) < 1 - _TIE:
        warnings.append(f"{len(maxima)} sign flips are too few for this level: nothing can be significant")
    if n_units < n and n_units < 20:
        warnings.append(f"{n_units} clusters are few: the intervals may not cover as they say")
    intervals = [
        _interval(array[has, k], None if cluster is None else codes[has].tolist(), means[k], errors[k], critical)
        for k, has in enumerate(present.T)
    ]
    return SharedItems(
        estimates=tuple(means.tolist()),
        low=tuple(low for low, _ in intervals),
        high=tuple(high for _, high in intervals),
        standard_errors=tuple(errors.tolist()),
        t=tuple(t.tolist()),
        p_values=tuple(((single + extra) / len(maxima)).tolist()),
        adjusted=tuple(adjusted.tolist()),
        critical=critical,
        confidence_level=confidence_level,
        n=n_units,
        unit="clusters" if n_units < n else "items",
        n_items=tuple(n_items.tolist()),
        n_resamples=len(maxima) - extra,
        resampling_seed=None if exact else seed,
        warnings=tuple(warnings),
    )


def _interval(
    values: Floats, cluster: list[int] | None, mean: float, error: float, critical: float
) -> tuple[float, float]:
    if not np.isin(values, (-1.0, 0.0, 1.0)).all() or np.isinf(critical):
        return float(mean - critical * error), float(mean + critical * error)
    a, b = (values < 0).astype(np.float64), (values > 0).astype(np.float64)
    plain = paired_difference(a, b, cluster=cluster)
    tail = stats.norm.sf(critical) if plain.unit == "items" else stats.t.sf(critical, plain.df)
    level = min(1 - 2 * float(tail), 1 - 1e-12)
    found = paired_difference(a, b, cluster=cluster, confidence_level=level, method="auto")
    assert found.low is not None and found.high is not None
    return found.low, found.high


def _sign_flips(n_units: int, exact: bool, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield signs of all units, shape (batch, n_units): all that differ in |t|, or random ones."""
    rng = np.random.default_rng(seed)
    # |t| of a flip and of its mirror image are the same, so the last unit keeps its sign.
    total = 2 ** (n_units - 1) if exact else n_resamples
    batch = max(1, _BATCH_SIGNS // n_units)
    for begin in range(0, total, batch):
        size = min(batch, total - begin)
        if exact:
            bits = np.arange(begin, begin + size)[:, None] >> np.arange(n_units) & 1
        else:
            bits = rng.integers(2, size=(size, n_units), dtype=np.int8)
        signs: Floats = 1.0 - 2.0 * bits.astype(np.float64)
        yield signs


class _Studentised:
    """Means and CR2 standard errors of all columns for many sign flips, by matrix products.

    With S_g the sum and m_g the number of a unit's values, w_g = 1 / (1 - m_g / n), and s_g its sign:
    mean = sum s_g S_g / n, and n^2 SE^2 = sum w_g (s_g S_g - m_g mean)^2, which is
    sum w_g S_g^2 - 2 mean sum w_g m_g s_g S_g + mean^2 sum w_g m_g^2.
    """

    def __init__(self, sizes: Floats, sums: Floats, n: npt.NDArray[Any]) -> None:
        weights = 1 / (1 - sizes / n)
        self.n, self.sums, self.weighted = n, sums, weights * sizes * sums
        self.squares, self.spread = (weights * sums**2).sum(axis=0), (weights * sizes**2).sum(axis=0)

    def __call__(self, signs: Floats) -> tuple[Floats, Floats]:
        means = signs @ self.sums / self.n
        squares = self.squares - 2 * means * (signs @ self.weighted) + means**2 * self.spread
        # Rounding can leave a flip that makes all values of a column equal with a variance just below zero.
        errors: Floats = np.sqrt(np.maximum(squares, 1e-12 * self.squares)) / self.n
        return means, errors
