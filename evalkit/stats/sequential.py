"""Looking early: tests and intervals that hold at every item at once, so that a run may stop when the answer is clear.

All of it takes the items in an order that has nothing to do with their scores: shuffle them before the run. An interval
or p value of a fixed number of items, looked at again and again, is wrong far more often than it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import Floats, Ints, check_level, vector
from evalkit.stats.results import Estimate, Result

if TYPE_CHECKING:
    import pandas as pd

POPULATION: Final = "items like these, in random order, at every look"

MAX_KINDS: Final = 16
"""Up to this many different values, bets are placed on the values themselves."""

MIN_LOOK: Final = 30
"""The asymptotic sequence begins at this unit."""

PRIOR: Final = 10.0
"""a of the beta mixture. 1 is the uniform one; 10 stops earlier for shares from 0.5 to 0.65, a little later beyond."""

_BETS: Final = np.geomspace(0.002, 0.9, 12)

_TINY: Final = float(np.finfo(float).tiny)

_EMPTY: Final = "the interval is empty: the items are not in random order, or drift"


@dataclass(frozen=True)
class ConfidenceSequence(Result):
    """Intervals after each item, which contain the true value all at once with the stated confidence.

    Attributes
    ----------
    estimates, low, high
        Shape (n,): the running mean, and the interval after that many items; it never widens.
    confidence_level
        Of all intervals at once.
    method, population, unit, warnings
        As in `Estimate`.
    """

    estimates: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    confidence_level: float
    method: str
    population: str = POPULATION
    unit: str = "items"
    warnings: tuple[str, ...] = ()

    def first_without(self, value: float) -> int | None:
        """Number of items after which the interval first leaves out a value, or None."""
        outside = (np.array(self.low) > value) | (np.array(self.high) < value)
        return int(np.argmax(outside)) + 1 if outside.any() else None

    def after(self, n_items: int) -> Estimate:
        """Return the estimate after so many items."""
        if not 1 <= n_items <= len(self.low):
            raise SpecError(f"{n_items} of {len(self.low)} items", where="after", do="Give a number of items seen")
        return Estimate(
            estimate=self.estimates[n_items - 1],
            low=self.low[n_items - 1],
            high=self.high[n_items - 1],
            confidence_level=self.confidence_level,
            method=self.method,
            population=self.population,
            unit=self.unit,
            n=n_items,
            n_items=n_items,
            warnings=self.warnings,
            quantity="the mean",
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each number of items."""
        import pandas as pd

        n = np.arange(1, len(self.low) + 1)
        return pd.DataFrame({"n": n, "estimate": self.estimates, "low": self.low, "high": self.high})

    def __str__(self) -> str:
        return str(self.after(len(self.low)))

    def explain(self) -> str:
        """Say in two plain sentences what the last interval means."""
        return self.after(len(self.low)).explain()


def bounded_sequence(
    values: npt.ArrayLike, *, bounds: tuple[float, float] = (0.0, 1.0), confidence_level: float = 0.95
) -> ConfidenceSequence:
    """Return a confidence sequence of a bounded mean, exact for any distribution and any number of items.

    With values scaled to 0..1, a candidate mean m is bet against: from m, the capital prod(1 + l (x_i - m)) is a fair
    game for every l up to 1 / m, and so is the mean of the capitals of several l; with probability 1 - alpha / 2 it
    never exceeds 2 / alpha (Ville). The lower end is the m above which it has not; the upper end that of 1 - x
    (Waudby-Smith and Ramdas 2024, JRSS B 86:1, section 4). Here l m goes from 0.002 to 0.9 in 12 steps, so that few
    items and very many have a fitting one; the predictable plug-in of that paper is narrower below some 300 items, and
    far wider above 3,000.

    Values of more than 16 kinds are bet on through exp(l (x_i - m) - (-log(1 - l) - l) (x_i - x^_(i-1))^2), which is at
    most a fair game (empirical Bernstein: Howard, Ramdas, McAuliffe and Sekhon 2021, Annals of Statistics 49:1055, with
    the running mean x^): it needs only sums, and is wider for few items.

    Parameters
    ----------
    values
        Shape (n,): scores or differences, in random order; for clusters the means of clusters.
    bounds
        The least and largest possible value: (-1, 1) for differences of scores from 0 to 1.
    confidence_level
        Of all intervals at once.

    Raises
    ------
    InputError
        A value lies outside the bounds.
    SpecError
        The bounds are not in order, or the level is not between 0 and 1.
    """
    check_level(confidence_level)
    least, most = bounds
    if not -math.inf < least < most < math.inf:
        raise SpecError(f"{bounds} is no range", where="bounds", do="Give the least and the largest possible score")
    x = (vector(values, "values", bounds=bounds) - least) / (most - least)
    threshold = math.log(2 / (1 - confidence_level))
    few = len(np.unique(x)) <= MAX_KINDS
    lower_ends = _lower_ends_by_betting if few else _lower_ends_by_variance
    low = np.maximum.accumulate(lower_ends(x, threshold))
    high = np.minimum.accumulate(1 - lower_ends(1 - x, threshold))
    scale = most - least
    return ConfidenceSequence(
        estimates=tuple((least + scale * np.cumsum(x) / np.arange(1, len(x) + 1)).tolist()),
        low=tuple((least + scale * low).tolist()),
        high=tuple((least + scale * high).tolist()),
        confidence_level=confidence_level,
        method=f"confidence sequence by {'betting' if few else 'empirical Bernstein'}",
        warnings=(_EMPTY,) if low[-1] > high[-1] else (),
    )


def _lower_ends_by_betting(x: Floats, threshold: float) -> Floats:
    """Lower ends after each value: the capital depends on how often each kind of value has come."""
    kinds, which = np.unique(x, return_inverse=True)
    counts = np.cumsum(which[:, None] == np.arange(len(kinds)), axis=0)

    def log_capital(m: Floats) -> Floats:
        total = np.zeros((len(x), len(_BETS)))
        for k, kind in enumerate(kinds):
            # 1 + l (x - m) with l = bet / m.
            total += counts[:, k, None] * np.log1p(_BETS * (kind / np.maximum(m, _TINY) - 1)[:, None])
        return special.logsumexp(total, axis=1) - math.log(len(_BETS))  # type: ignore[no-any-return]

    return _bisect(log_capital, np.cumsum(x) / np.arange(1, len(x) + 1), threshold)


def _lower_ends_by_variance(x: Floats, threshold: float) -> Floats:
    t, sums = np.arange(1, len(x) + 1), np.cumsum(x)
    running = np.concatenate([[0.5], (0.5 + sums[:-1]) / t[1:]])
    squares = np.cumsum((x - running) ** 2)
    cost = (-np.log1p(-_BETS) - _BETS) * squares[:, None]

    def log_capital(m: Floats) -> Floats:
        capital = special.logsumexp(_BETS * (sums - t * m)[:, None] - cost, axis=1)
        return capital - math.log(len(_BETS))  # type: ignore[no-any-return]

    return _bisect(log_capital, sums / t, threshold)


def _bisect(log_capital: Callable[[Floats], Floats], means: Floats, threshold: float) -> Floats:
    """The largest m below each mean, to 1e-9 and rounded down, at which the capital reaches the threshold; else 0.

    At the mean itself the capital is at most 1 (Jensen), and it falls as m rises.
    """
    kept, ruled_out = means.copy(), np.zeros_like(means)
    for _ in range(30):
        middle = (kept + ruled_out) / 2
        inside = log_capital(middle) < threshold
        kept, ruled_out = np.where(inside, middle, kept), np.where(inside, ruled_out, middle)
    return ruled_out


def asymptotic_sequence(
    values: npt.ArrayLike, *, confidence_level: float = 0.95, tightest_at: int | None = None
) -> ConfidenceSequence:
    """Return the asymptotic confidence sequence of a mean: for scores without bounds, good only for many units.

    mean_t +- s_t sqrt(2 (t r^2 + 1) / (t^2 r^2) log(sqrt(t r^2 + 1) / alpha)) (Waudby-Smith, Arbour, Sinha, Kennedy and
    Ramdas 2024, Annals of Statistics 52:2613), with r such that it is tightest at one number of units. It begins at the
    30th unit; before, the interval is without ends.

    Parameters
    ----------
    values
        Shape (n,), in random order; for clusters the means of clusters.
    confidence_level
        Of all intervals at once, as the number of units grows.
    tightest_at
        Fixed beforehand; None means all of `values`.

    Raises
    ------
    InputError
        A value is not finite, or there are fewer than 30.
    SpecError
        A parameter is out of range.
    """
    check_level(confidence_level)
    x = vector(values, "values")
    n, alpha = len(x), 1 - confidence_level
    if n < MIN_LOOK:
        raise InputError(
            f"{n} units", where="asymptotic sequence", do=f"Give at least {MIN_LOOK}, or use bounded_sequence"
        )
    target = n if tightest_at is None else tightest_at
    if target < 1:
        raise SpecError(f"{target} units", where="tightest_at", do="Give a number of units")

    def width(t: npt.NDArray[np.float64] | float, log_r2: float) -> Floats:
        v = t * math.exp(log_r2)
        found: Floats = np.sqrt(2 * (v + 1) / (t * v) * np.log(np.sqrt(v + 1) / alpha))
        return found

    best = optimize.minimize_scalar(lambda r: float(width(float(target), r)), bounds=(-30, 10), method="bounded").x
    t = np.arange(1, n + 1, dtype=np.float64)
    means = np.cumsum(x) / t
    centred = x - x[0]  # against loss of digits
    variances = np.maximum(np.cumsum(centred**2) / t - (np.cumsum(centred) / t) ** 2, 0)
    half = np.sqrt(variances) * width(t, float(best))
    # Without spread so far, nothing is known; an interval of no width would claim certainty.
    half[(t < MIN_LOOK) | (variances == 0)] = np.inf
    low, high = np.maximum.accumulate(means - half), np.minimum.accumulate(means + half)
    return ConfidenceSequence(
        estimates=tuple(means.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        confidence_level=confidence_level,
        method="asymptotic confidence sequence",
        unit="units",
        warnings=(_EMPTY,) if low[-1] > high[-1] else (),
    )


def discordant_log_e(b: npt.ArrayLike, c: npt.ArrayLike, *, share: npt.ArrayLike = 0.5, prior: float = PRIOR) -> Floats:
    """Return the log e-value against "of the items that only one gets right, B gets this share".

    E = B(a + b, a + c) / (B(a, a) share^c (1 - share)^b), the likelihood ratio of the Beta(a, a) mixture; with a share
    of one half, 2^(b + c) B(a + b, a + c) / B(a, a). Its mean under the null is 1 after any number of items, so it
    exceeds 1 / alpha ever with probability at most alpha (Ville).

    Parameters
    ----------
    b, c
        Items that only A, and only B, got right, so far.
    share
        Between 0 and 1.
    prior
        a of the mixture; larger ones look for shares closer to one half.
    """
    b, c, share = (np.asarray(part, dtype=np.float64) for part in (b, c, share))
    mixture = special.betaln(prior + b, prior + c) - special.betaln(prior, prior)
    log_e: Floats = mixture - special.xlogy(c, share) - special.xlog1py(b, -share)
    return log_e


@dataclass(frozen=True)
class SequentialComparison(Result):
    """Two models compared item by item, with leave to stop at any.

    Attributes
    ----------
    verdict
        `better`, `worse` or `inconclusive`, of B, by all items given.
    stopped_at
        Items after which the answer was clear, so that the run could have stopped; None if it never was.
    difference
        Mean of B - A over all items, with its anytime-valid interval.
    win_share
        Of items that only one got right, the share that B did, likewise; None for scores other than 0 and 1, and
        without such items.
    e_value, p_value
        The largest e-value so far, and its inverse, at most 1: a p value that holds at every look. None for other
        scores.
    b, c, n_items
        Items that only A, and only B, got right, and all. b and c are None for other scores.
    confidence_level
        1 - alpha of all statements.
    warnings
        What to know before using it.
    """

    verdict: str
    stopped_at: int | None
    difference: Estimate
    win_share: Estimate | None
    e_value: float | None
    p_value: float | None
    b: int | None
    c: int | None
    n_items: int
    confidence_level: float
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        stop = "not clear yet" if self.stopped_at is None else f"clear after {self.stopped_at} of {self.n_items} items"
        evidence = "" if self.e_value is None else f", e = {self.e_value:.4g}, anytime p = {self.p_value:.4g}"
        return f"{self.verdict}: {stop}{evidence}; {self.difference}"

    def explain(self) -> str:
        """Say in plain sentences what was found, and that looking early is allowed for."""
        stop = (
            "The answer is not clear yet, and more items may be run."
            if self.stopped_at is None
            else f"The answer was clear after {self.stopped_at} of {self.n_items} items."
        )
        return (
            f"Verdict: {self.verdict}. {stop} If the models were equally good, a false verdict would ever come up with"
            f" probability at most {1 - self.confidence_level:.3g}, at however many items one looks."
            f" {self.difference.explain()}"
        )


def sequential_comparison(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence_level: float = 0.95,
    prior: float = PRIOR,
) -> SequentialComparison:
    """Compare two models on items in random order, with leave to stop as soon as the answer is clear.

    For scores of 0 and 1 the verdict comes from the e-process of discordant items (`discordant_log_e`), which is exact;
    for other bounded scores from the confidence sequence of the mean difference (`bounded_sequence`). It is that of the
    first item at which it is clear, and later items do not take it back.

    Parameters
    ----------
    a, b
        Shape (n,): scores of the same items, in random order, one per item.
    bounds
        The least and largest possible score.
    confidence_level
        1 - alpha of the test and of the intervals.
    prior
        a of the mixture.

    Raises
    ------
    InputError
        A score lies outside the bounds, or the lengths differ.
    SpecError
        A parameter is out of range.
    """
    check_level(confidence_level)
    if not 0 < prior < math.inf:
        raise SpecError(f"{prior} is not above zero", where="prior", do="Give 10 if unsure")
    first = vector(a, "scores of A", bounds=bounds)
    second = vector(b, "scores of B", bounds=bounds, length=len(first))
    span = bounds[1] - bounds[0]
    sequence = bounded_sequence(second - first, bounds=(-span, span), confidence_level=confidence_level)
    n = len(first)
    if not (np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all()):
        stop = sequence.first_without(0.0)
        better = stop is not None and sequence.low[stop - 1] > 0
        return SequentialComparison(
            verdict="inconclusive" if stop is None else "better" if better else "worse",
            stopped_at=stop,
            difference=sequence.after(n),
            win_share=None,
            e_value=None,
            p_value=None,
            b=None,
            c=None,
            n_items=n,
            confidence_level=confidence_level,
            warnings=sequence.warnings,
        )
    only_a = np.cumsum(first > second, dtype=np.int64)
    only_b = np.cumsum(second > first, dtype=np.int64)
    log_e = discordant_log_e(only_a, only_b, prior=prior)
    clear = log_e >= -math.log(1 - confidence_level)
    stop = int(np.argmax(clear)) + 1 if clear.any() else None
    largest = max(0.0, float(log_e.max()))
    verdict = "inconclusive" if stop is None else "better" if only_b[stop - 1] > only_a[stop - 1] else "worse"
    return SequentialComparison(
        verdict=verdict,
        stopped_at=stop,
        difference=sequence.after(n),
        win_share=_win_share(only_a, only_b, confidence_level, prior),
        e_value=float(np.exp(min(largest, 700.0))),
        p_value=float(np.exp(-largest)),
        b=int(only_a[-1]),
        c=int(only_b[-1]),
        n_items=n,
        confidence_level=confidence_level,
        warnings=sequence.warnings,
    )


def _win_share(only_a: Ints, only_b: Ints, confidence_level: float, prior: float) -> Estimate | None:
    """Return the share of discordant items that B got right, with all shares that no e-value so far has ruled out."""
    total = only_a + only_b
    steps = np.flatnonzero(np.diff(total, prepend=0))
    if not len(steps):
        return None
    b, c = only_a[steps], only_b[steps]
    threshold = -math.log(1 - confidence_level)
    mode = c / (b + c)  # the share with the smallest e-value, from which it rises to either side
    ends = []
    for beyond in (0.0, 1.0):
        inside, outside = mode.copy(), np.full(len(b), beyond)
        for _ in range(60):
            middle = (inside + outside) / 2
            kept = discordant_log_e(b, c, share=middle, prior=prior) < threshold
            inside, outside = np.where(kept, middle, inside), np.where(kept, outside, middle)
        ends.append(outside)
    low, high = float(ends[0].max()), float(ends[1].min())
    return Estimate(
        estimate=float(mode[-1]),
        low=low,
        high=high,
        confidence_level=confidence_level,
        method="confidence sequence by the beta mixture",
        population=POPULATION,
        unit="discordant items",
        n=len(steps),
        n_items=len(only_a),
        warnings=(_EMPTY,) if low > high else (),
        quantity="the share of items that B gets right of those that only one does",
    )
