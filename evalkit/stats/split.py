"""Scores on clean and on flagged items: the estimated performance gain, and the threshold at which it is largest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.stats.clusters import FEW_DEGREES, MIN_CLUSTERS, cluster_codes
from evalkit.stats.few_units import graded_mean
from evalkit.stats.means import mean_score
from evalkit.stats.results import Estimate, Result

if TYPE_CHECKING:
    import pandas as pd

Criterion = Literal["gain", "z"]

POPULATION: Final = "items like these, as many of them flagged, answered by this model"

MIN_UNITS: Final = 10
"""A threshold is tried only if it leaves this many independent units (items or clusters) on either side."""

STEPS: Final = 100
"""Thresholds are tried in steps of 1 / STEPS: the published ones have two decimals."""

_BATCH: Final = 256
"""Resamples in memory at a time."""

_TIE: Final = 1e-9
"""Numbers that differ by less are equal: sums of the same scores in another order."""

_FEW_EXCHANGED: Final = 0.5
"""Share of the items whose scores can be dealt to others, below which the test of clustered items is warned of."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoreSplit(Result):
    """One model's scores on all, clean and flagged items.

    Attributes
    ----------
    everything, clean, flagged
        Mean scores; None for a side without items.
    difference
        Mean of the flagged less mean of the clean items; None when a side has no items.
    gain
        The estimated performance gain, above zero when the flagged items raise the score; likewise None.
    """

    everything: Estimate
    clean: Estimate | None
    flagged: Estimate | None
    difference: Estimate | None
    gain: Estimate | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know of the difference and the gain."""
        return () if self.gain is None else self.gain.warnings

    def to_frame(self) -> pd.DataFrame:
        """One row for each of the five estimates that there are."""
        import pandas as pd

        parts = {name: one for name, one in vars(self).items() if one is not None}
        return pd.DataFrame(
            [{"what": name, "n": one.n_items, "value": one.estimate, "low": one.low, "high": one.high}
             for name, one in parts.items()]
        )  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(f"{name}: {one}" for name, one in vars(self).items() if one is not None)

    def explain(self) -> str:
        """Say what the flagged items do to the score, and what that does not show."""
        if self.clean is None or self.flagged is None or self.gain is None:
            side = "clean" if self.clean is None else "flagged"
            return f"No item is {side}, so nothing can be said of a gain. {self.everything.explain()}"
        return (
            f"The score is {self.everything.estimate:.4f} on all {self.everything.n_items:,} items,"
            f" {self.clean.estimate:.4f} on the {self.clean.n_items:,} clean and {self.flagged.estimate:.4f} on the"
            f" {self.flagged.n_items:,} flagged ones: the flagged items raise it by {self.gain.estimate:+.4f}"
            f"{_between(self.gain.low, self.gain.high, self.gain.confidence_level)}. Flagged items can also be easier"
            " or harder than others, so this by itself does not show what contamination did."
        )


@dataclass(frozen=True)
class ThresholdPoint:
    """The split at one threshold: items with at least this contamination are flagged.

    Attributes
    ----------
    threshold
        Contamination, from 0 to 1.
    n_clean, n_flagged
        Items on either side.
    score_clean, score_flagged
        Their mean scores.
    gain, low, high
        The estimated performance gain with the interval of a threshold fixed beforehand.
    band_low, band_high
        The simultaneous interval: it holds at all thresholds tried at once, so also at one chosen by its gain.
    z
        The z-score of Singh et al. (2024).
    p_value
        Of a gain this large at any threshold tried, if contamination and score were unrelated. One-sided.
    """

    threshold: float
    n_clean: int
    n_flagged: int
    score_clean: float
    score_flagged: float
    gain: float
    low: float | None
    high: float | None
    band_low: float | None
    band_high: float | None
    z: float
    p_value: float


@dataclass(frozen=True)
class ThresholdChoice(Result):
    """The gain at every threshold, the threshold chosen, and what the choice is worth.

    Attributes
    ----------
    criterion
        What the chosen threshold has most of: `z` or `gain`.
    chosen
        The chosen one; None when none has a significant gain, or none can be tried.
    curve
        All thresholds that were tried, ascending.
    p_value
        Of the strongest gain over all thresholds (the smallest p value of the curve); None when none was tried.
    threshold_low, threshold_high
        Between them lie the middle `confidence_level` of the thresholds that resamples of the items choose.
    share_chosen
        Share of the resamples that choose a threshold at all.
    optimism
        By how much the gain at a chosen threshold is too large on average because it was chosen.
    score
        Mean score of all items.
    confidence_level, method, population, unit, n, n_items, n_resamples, resampling_seed, warnings
        As in `Estimate`; significant is a p value of at most 1 - `confidence_level`.
    """

    criterion: Criterion
    chosen: ThresholdPoint | None
    curve: tuple[ThresholdPoint, ...]
    p_value: float | None
    threshold_low: float | None
    threshold_high: float | None
    share_chosen: float | None
    optimism: float | None
    score: float
    confidence_level: float
    unit: str
    n: int
    n_items: int
    n_resamples: int
    resampling_seed: int
    warnings: tuple[str, ...] = ()
    method: str = "max-t test over thresholds, simultaneous bootstrap band"
    population: str = POPULATION

    def to_frame(self) -> pd.DataFrame:
        """One row for each threshold that was tried."""
        import pandas as pd

        frame = pd.DataFrame([vars(point) for point in self.curve], columns=list(ThresholdPoint.__dataclass_fields__))
        return frame.assign(chosen=[point == self.chosen for point in self.curve])

    def __str__(self) -> str:
        notes = "".join(f"; {warning}" for warning in self.warnings)
        if self.p_value is None:
            return f"no threshold could be tried ({self.n} {self.unit}{notes})"
        tried = f"{len(self.curve)} thresholds tried, {self.n} {self.unit}, p = {self.p_value:.4g}"
        if self.chosen is None:
            return f"no threshold with a significant gain ({tried}{notes})"
        interval = (
            "no interval"
            if self.chosen.band_low is None or self.chosen.band_high is None
            else f"{self.confidence_level:.0%} interval {self.chosen.band_low:+.4f} to {self.chosen.band_high:+.4f}"
        )
        return (
            f"gain {self.chosen.gain:+.4f} at threshold {self.chosen.threshold:.2f}, {interval} "
            f"({self.method}; {tried}{notes})"
        )

    def explain(self) -> str:
        """Say which threshold was chosen and what the choice costs."""
        if self.p_value is None:
            return f"No threshold leaves enough of the {self.n} {self.unit} on either side, so none was tried."
        chance = (
            f"If contamination and score were unrelated, the strongest of {len(self.curve)} gains would be as strong as"
            f" this with probability {self.p_value:.3g}."
        )
        if self.chosen is None:
            return f"At no threshold do the flagged items raise the score more than chance does. {chance}"
        return (
            f"Counted from a contamination of {self.chosen.threshold:.2f}, the flagged items raise the score by"
            f" {self.chosen.gain:+.4f}{_between(self.chosen.band_low, self.chosen.band_high, self.confidence_level)};"
            f" the interval allows for the choice. {chance}"
        )


def _between(low: float | None, high: float | None, level: float) -> str:
    return "" if low is None or high is None else f" ({level:.0%} interval {low:+.4f} to {high:+.4f})"


def score_split(
    scores: npt.ArrayLike,
    flagged: npt.ArrayLike,
    *,
    cluster: Sequence[Any] | None = None,
    is_binary: bool | None = None,
    higher_is_better: bool = True,
    confidence_level: float = 0.95,
) -> ScoreSplit:
    """Estimate a model's score on all, clean and flagged items, and the gain that the flagged ones bring.

    The estimated performance gain is the score on all items less that on the clean ones (Singh et al. 2024,
    arXiv:2411.03923, section 4.1). The clean items are among all items, so these two means depend on each other; but
    with a share p flagged, and the means m_f and m_c of the two sides, which share no item,

        gain = p m_f + (1 - p) m_c - m_c = p (m_f - m_c).

    So its interval is p times that of the difference, and leaves out zero exactly where that one does. The share is
    taken as it is: an audit looks at every item of the benchmark and does not estimate it from some. Independent scores
    of 0 and 1 have Newcombe's hybrid score interval (1998, Statistics in Medicine 17:873, method 10), which is made of
    the two Wilson intervals and holds also when all flagged items are right. Others have Welch's t interval; clustered
    items, the t interval with the CR2 error, and its degrees of freedom, of the regression of score on side (Bell and
    McCaffrey 2002), which knows that clusters can lie on both sides. Means have the intervals of `mean_score`.

    A side whose scores are all equal tells nothing of its spread, and its error would be zero. Scores of 0 and 1 then
    have Newcombe's interval also when they are clustered, with a cluster of that side counted as one item, and of the
    other as many as make its CR2 error; others have no interval.

    What the gain is not: an effect. Flagged items may be easier or harder than clean ones for a model that has never
    seen them.

    Parameters
    ----------
    scores
        Shape (n,): one score per item (repeats and seeds averaged before).
    flagged
        Shape (n,): whether the item is flagged.
    cluster
        Length n: the source that an item shares with others; None when all items are independent.
    is_binary
        Whether a score can only be 0 or 1; None when it can if all are. Differences of such scores cannot.
    higher_is_better
        When not, the sign of the gain is turned.
    confidence_level
        Of the two-sided intervals.

    Raises
    ------
    ValueError
        The lengths differ, there is no item, a score is not finite, a mark is neither true nor false, a cluster is
        missing, or the level is none.
    """
    values, codes = _checked(scores, cluster, confidence_level)
    marks = np.asarray(flagged)
    if not np.isin(marks, (False, True)).all():
        raise ValueError("a mark is neither true nor false")
    is_flagged = marks.astype(bool)
    if is_flagged.shape != values.shape:
        raise ValueError(f"{is_flagged.shape} marks for {values.shape} scores")
    binary = _is_binary(values) if is_binary is None else is_binary
    sides = {side: is_flagged == side for side in (False, True)}
    means = {
        side: _mean(values[of], None if cluster is None else codes[of], binary, confidence_level)
        for side, of in sides.items()
        if of.any()
    }
    difference = gain = None
    if len(means) == len(sides):
        difference = _difference(values, is_flagged, codes, int(codes.max()) + 1, binary, confidence_level)
        gain = _gain(difference, float(is_flagged.mean()) * (1.0 if higher_is_better else -1.0))
    return ScoreSplit(
        everything=_mean(values, None if cluster is None else codes, binary, confidence_level),
        clean=means.get(False),
        flagged=means.get(True),
        difference=difference,
        gain=gain,
    )


def choose_threshold(
    scores: npt.ArrayLike,
    contamination: npt.ArrayLike,
    *,
    cluster: Sequence[Any] | None = None,
    criterion: Criterion = "z",
    is_binary: bool | None = None,
    higher_is_better: bool = True,
    min_units: int = MIN_UNITS,
    confidence_level: float = 0.95,
    n_resamples: int = 2000,
    resampling_seed: int = 0,
) -> ThresholdChoice:
    """Choose the contamination from which an item counts as contaminated, for one model and benchmark.

    What the papers do. Singh et al. (2024, arXiv:2411.03923, section 4.2) choose for each model and benchmark, by
    z = gain / (sigma / sqrt(n_clean)), with sigma the standard deviation of the scores on the whole benchmark. The
    Llama 3 paper (2407.21783, section 5.1.4) follows them, but chooses for each benchmark the threshold with "the
    maximal significant estimated performance gain across the three model sizes", and leaves out benchmarks where it is
    not significant, for instance because the clean or the contaminated items are too few.

    What is filled in. Neither says which thresholds it tries: here, those in steps of 0.01 that split the items
    differently and leave `min_units` independent units on either side. Neither says what is significant, or allows for
    having tried many thresholds: here it is a p value, adjusted for all of them. Singh et al. read z beside plots of
    the gain over the share flagged; here the largest z of the significant ones is taken (`z`), or Llama 3's largest
    gain, for each model on its own (`gain`). Prefer `z`: a threshold below the contamination that helps only flags
    items that were not helped, which leaves the true gain what it is; so the largest gain is the luckiest of many,
    while z prefers the threshold with the most clean items.

    The test. T_k = gain_k / (s sqrt(1 / n_clean - 1 / n)), with s^2 the sample variance of all scores, is the gain at
    threshold k over its standard deviation when scores are dealt to the items at random: 1 / n is there because the
    clean items are some of all (without it, as in z, T is too small by the root of the share flagged). p_k is the share
    of permutations of the scores whose largest T over all thresholds reaches T_k (Westfall and Young 1993, single
    step), so the chance of calling any gain significant is at most 1 - `confidence_level` if contamination and score
    are unrelated. Scores of clustered items cannot be dealt freely: there the scores of whole clusters are dealt among
    clusters of the same size, and within each in any order, and T has the standard deviation over these permutations.
    It is one-sided: a loss is no gain.

    The uncertainty of the choice. The largest of many gains is too large, and the interval of a fixed threshold does
    not know it. Units are drawn with replacement `n_resamples` times, and for each resample all gains are computed and
    the threshold is chosen again. `band_low` and `band_high` are the pointwise interval, widened by the same factor at
    all thresholds so that the largest standardised deviation over them stays within it in `confidence_level` of the
    resamples: before one has looked, it covers the gain at whatever threshold will be chosen. Of the gains that were
    called significant it covers fewer when the true gain is small, because the small ones are called so only where they
    are overestimated: about half if there is none. `optimism` is the mean
    over resamples of the gain that the resample shows at its threshold less that of the whole sample there (Efron 1983,
    JASA 78:316); it is low where the gain is hardly significant, down to half the truth in simulations. The range of
    the thresholds chosen says how settled the choice is; it is no confidence interval, because the bootstrap is not
    valid for the place of a maximum.

    Parameters
    ----------
    scores
        Shape (n,): one score per item (repeats and seeds averaged before).
    contamination
        Shape (n,): from 0 to 1, the item's most contaminated field.
    cluster
        Length n: the source that an item shares with others; None when all items are independent.
    is_binary
        Whether a score can only be 0 or 1; None when it can if all are. Differences of such scores cannot.
    criterion
        Of the thresholds with a significant gain, choose the one with the largest `z`, or the largest `gain`.
    higher_is_better
        When not, the gain is the clean score less that on all items.
    min_units
        Fewest independent units on either side of a threshold.
    confidence_level
        Of the intervals.
    n_resamples
        Permutations, and as many resamples.
    resampling_seed
        Of both.

    Raises
    ------
    ValueError
        The lengths differ, there is no item, a score is not finite, a contamination is not from 0 to 1, a cluster is
        missing, the level is none or there are too few resamples for it, or `min_units` is below 1.
    """
    values, codes = _checked(scores, cluster, confidence_level)
    marks = np.asarray(contamination, dtype=float)
    if marks.shape != values.shape:
        raise ValueError(f"{marks.shape} contaminations for {values.shape} scores")
    if not ((marks >= 0) & (marks <= 1)).all():
        raise ValueError("a contamination is not from 0 to 1")
    if min_units < 1 or n_resamples * (1 - confidence_level) < 2:
        raise ValueError(f"{n_resamples} resamples are too few for the level {confidence_level}, or {min_units} units")
    # 0.29 * 100 is 28.999...; without the small number it would fall a step too low.
    steps, cell = np.unique(np.floor(marks * STEPS + 1e-9).astype(np.int64), return_inverse=True)
    candidates, n_units = _candidates(cell, codes, min_units), int(codes.max()) + 1
    nothing = ThresholdChoice(
        criterion=criterion,
        chosen=None,
        curve=(),
        p_value=None,
        threshold_low=None,
        threshold_high=None,
        share_chosen=None,
        optimism=None,
        score=float(values.mean()),
        confidence_level=confidence_level,
        unit="items" if n_units == len(values) else "clusters",
        n=n_units,
        n_items=len(values),
        n_resamples=n_resamples,
        resampling_seed=resampling_seed,
    )
    if not len(candidates):
        return replace(nothing, warnings=(f"no threshold leaves {min_units} {nothing.unit} on either side",))
    if np.ptp(values) == 0:
        return replace(nothing, warnings=("all scores are equal, so contamination cannot have changed them",))
    sign = 1.0 if higher_is_better else -1.0
    table, rng = _Table(sign * values, cell, codes, candidates), np.random.default_rng(resampling_seed)
    test = _test(table, confidence_level, n_resamples, rng)
    p_values = test.p_values
    resampled = _resampled_gains(table, n_resamples, rng)
    chosen = int(table.choose(table.gains[None], criterion, test)[0])
    again = table.choose(resampled, criterion, test)
    binary = _is_binary(values) if is_binary is None else is_binary
    curve = _curve(table, steps[candidates] / STEPS, p_values, resampled, sign, binary, confidence_level)
    return replace(
        nothing,
        curve=tuple(point for point, _ in curve),
        p_value=float(p_values.min()),
        share_chosen=float(np.mean(again >= 0)),
        warnings=tuple(dict.fromkeys([*_few_exchanges(table), *(one for _, some in curve for one in some)])),
        **({} if chosen < 0 else _choice(chosen, again, curve, resampled, table.gains, confidence_level)),
    )


def _choice(
    chosen: int,
    again: Ints,
    curve: Sequence[tuple[ThresholdPoint, tuple[str, ...]]],
    resampled: Floats,
    gains: Floats,
    confidence_level: float,
) -> dict[str, Any]:
    """The chosen point, and what the resamples that choose a threshold say of the choice."""
    rows = np.flatnonzero(again >= 0)
    which = again[rows]
    thresholds = np.array([point.threshold for point, _ in curve])[which]
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(thresholds, [tail, 1 - tail], method="inverted_cdf").tolist() if len(rows) else (None, None)
    return {
        "chosen": curve[chosen][0],
        "threshold_low": low,
        "threshold_high": high,
        "optimism": float(np.mean(resampled[rows, which] - gains[which])) if len(rows) else None,
    }


@dataclass(frozen=True)
class _Test:
    """Of each candidate the standard deviation of its gain by chance and the adjusted p value; the T to exceed."""

    errors: Floats
    p_values: Floats
    critical: float


def _test(table: _Table, confidence_level: float, n_resamples: int, rng: np.random.Generator) -> _Test:
    dealt = _dealt_gains(table, n_resamples, rng)
    if table.n_units == table.n:
        # Scores are dealt without replacement, hence n - 1.
        errors = np.sqrt(table.values.var() * (table.n / table.n_clean - 1) / (table.n - 1))
    else:
        errors = np.std(np.concatenate([dealt, table.gains[None]]), axis=0)
    # Where no permutation changes the gain, no gain is an accident or none.
    errors = np.where(errors > _TIE * table.values.std(), errors, np.inf)
    largest = (dealt / errors).max(axis=1)
    p_values = (1 + (largest[:, None] >= table.gains / errors - _TIE).sum(axis=0)) / (n_resamples + 1)
    # p is at most 1 - level exactly when fewer than this number of the maxima reach T.
    n_reach = math.floor((1 - confidence_level) * (n_resamples + 1) + _TIE)
    return _Test(errors, p_values, float(np.sort(largest)[n_resamples - n_reach]))


def _few_exchanges(table: _Table) -> tuple[str, ...]:
    """Warn where hardly any cluster has another of its size that it could change scores with."""
    sizes = np.bincount(table.codes)
    share = float(sizes[np.bincount(sizes)[sizes] > 1].sum() / table.n)
    if share >= _FEW_EXCHANGED:
        return ()
    return (f"only {share:.0%} of the items are in clusters of a size that others have: the test has little power",)


def _curve(
    table: _Table,
    thresholds: Floats,
    p_values: Floats,
    resampled: Floats,
    sign: float,
    binary: bool,
    confidence_level: float,
) -> list[tuple[ThresholdPoint, tuple[str, ...]]]:
    """Every candidate with its interval and its part of the band, and the warnings of the interval."""
    values = sign * table.values
    pointwise = []
    for candidate, share in zip(table.candidates.tolist(), table.shares.tolist(), strict=True):
        difference = _difference(values, table.cell >= candidate, table.codes, table.n_units, binary, confidence_level)
        pointwise.append(_gain(difference, sign * share))
    errors = np.array([np.nan if one.low is None else one.standard_error or np.nan for one in pointwise])
    factor = _band_factor((resampled - table.gains) / errors, confidence_level)
    mean, sigma, found = float(values.mean()), float(values.std()), []
    for one, threshold, n_clean, p_value in zip(pointwise, thresholds, table.n_clean, p_values, strict=True):
        n_flagged = table.n - int(n_clean)
        clean = mean - sign * one.estimate
        point = ThresholdPoint(
            threshold=float(threshold),
            n_clean=int(n_clean),
            n_flagged=n_flagged,
            score_clean=clean,
            score_flagged=(mean * table.n - clean * int(n_clean)) / n_flagged,
            gain=one.estimate,
            low=one.low,
            high=one.high,
            band_low=None if one.low is None else one.estimate - factor * (one.estimate - one.low),
            band_high=None if one.high is None else one.estimate + factor * (one.high - one.estimate),
            z=one.estimate * math.sqrt(n_clean) / sigma,
            p_value=float(p_value),
        )
        found.append((point, one.warnings))
    return found


def _checked(scores: npt.ArrayLike, cluster: Sequence[Any] | None, confidence_level: float) -> tuple[Floats, Ints]:
    """Return the scores, and for each item the number of its unit: its cluster, or itself."""
    if not 0 < confidence_level < 1:
        raise ValueError(f"{confidence_level} is no level of confidence")
    # Differences of equal means differ in their last digits, and would count as a spread.
    values = np.round(np.asarray(scores, dtype=float), 12)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"scores must be an array of at least one number, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    if cluster is None:
        return values, np.arange(len(values))
    if len(cluster) != len(values):
        raise ValueError(f"{len(cluster)} clusters for {len(values)} items")
    if any(one is None or (isinstance(one, float) and math.isnan(one)) for one in cluster):
        raise ValueError("an item has no cluster; give it one of its own")
    return values, np.unique(np.asarray(cluster, dtype=str), return_inverse=True)[1]


def _is_binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _mean(values: Floats, codes: Ints | None, binary: bool, confidence_level: float) -> Estimate:
    """Estimate a mean as `mean_score` does; one side may be all 0 and 1 where the scores can be others."""
    cluster = None if codes is None else codes.tolist()
    if binary:
        found = mean_score(values, cluster=cluster, confidence_level=confidence_level)
    else:
        found = graded_mean(values, *cluster_codes(cluster, len(values)), confidence_level=confidence_level)
    return replace(found, population="items like these, answered by this model")


def _difference(
    values: Floats,
    flagged: npt.NDArray[np.bool_],
    codes: Ints,
    n_units: int,
    binary: bool,
    confidence_level: float,
) -> Estimate:
    """Return the mean of the flagged less that of the clean items; both sides have items."""
    n = len(values)
    sides = [_side(values, of, codes, n_units) for of in (flagged, ~flagged)]
    found = Estimate(
        estimate=sides[0].mean - sides[1].mean,
        low=None,
        high=None,
        confidence_level=confidence_level,
        method="Welch t" if n_units == n else "t, clusters CR2",
        population=POPULATION,
        unit="items" if n_units == n else "clusters",
        n=n_units,
        n_items=n,
    )
    fewest = min(int((side.sizes > 0).sum()) for side in sides)
    if n_units < n and fewest < MIN_CLUSTERS:
        few = f"a side has {fewest} clusters, too few for an interval (at least {MIN_CLUSTERS})"
        return replace(found, warnings=(few,))
    if fewest < 2:
        return replace(found, warnings=("a side has one item, which gives no interval",))
    found = replace(found, standard_error=float(np.sqrt(np.sum((sides[0].errors - sides[1].errors) ** 2))))
    level = [name for name, of in (("flagged", flagged), ("clean", ~flagged)) if not np.ptp(values[of])]
    if binary and (level or n_units == n):
        return _newcombe(found, [(side.mean, _effective_size(side)) for side in sides])
    if level:
        return replace(
            found, warnings=(f"the scores of the {' and the '.join(level)} items are all equal: no interval",)
        )
    if (found.standard_error or 0.0) <= _TIE:
        return replace(found, warnings=("the sides differ by the same in every cluster: no interval",))
    variances = [float(np.sum(side.errors**2)) for side in sides]
    df = _welch_degrees(variances, sides) if n_units == n else _cluster_degrees(sides)
    half = float(stats.t.ppf((1 + confidence_level) / 2, df)) * (found.standard_error or 0.0)
    few = f"{n_units} clusters are few, or few on one side: the interval may not cover as it says"
    return replace(
        found,
        low=found.estimate - half,
        high=found.estimate + half,
        df=df,
        warnings=(few,) if n_units < n and df < FEW_DEGREES else (),
    )


def _gain(difference: Estimate, share: float) -> Estimate:
    """Return the gain: the share flagged, with the sign of a gain, times the difference."""
    scaled = [None if end is None else share * end for end in (difference.low, difference.high)]
    low, high = scaled if share > 0 else scaled[::-1]
    error = difference.standard_error
    return replace(
        difference,
        estimate=share * difference.estimate,
        low=low,
        high=high,
        method=f"{difference.method}, times the share flagged",
        standard_error=None if error is None else abs(share) * error,
    )


@dataclass(frozen=True)
class _Side:
    """The flagged or the clean items: their mean, and for every unit its items here and its error of that mean."""

    mean: float
    sizes: Floats
    errors: Floats


def _side(values: Floats, of: npt.NDArray[np.bool_], codes: Ints, n_units: int) -> _Side:
    """Errors are adjusted as CR2 does, by 1 / sqrt(1 - share of the side's items); the only unit of a side has none."""
    mean, n = float(values[of].mean()), int(of.sum())
    sizes = np.bincount(codes[of], minlength=n_units).astype(float)
    sums = np.bincount(codes[of], weights=values[of] - mean, minlength=n_units)
    left = 1 - sizes / n
    return _Side(mean, sizes, sums / (n * np.sqrt(np.where(left > 0, left, 1.0))))


def _welch_degrees(variances: Sequence[float], sides: Sequence[_Side]) -> float:
    parts = [variance**2 / (side.sizes.sum() - 1) for variance, side in zip(variances, sides, strict=True)]
    return float(sum(variances) ** 2 / sum(parts))


def _cluster_degrees(sides: Sequence[_Side]) -> float:
    """Degrees of freedom of the CR2 error of the difference, as `paired.cluster_degrees` has them for a mean.

    With c_us = 1 / (n_s sqrt(1 - m_us / n_s)) for the m_us items of cluster u on side s, the matrix W of Bell and
    McCaffrey is diag(d) - Q Q' with d_u = sum_s c_us^2 m_us and Q_us = c_us m_us / sqrt(n_s); so
    df = tr(W)^2 / tr(W^2) needs no matrix of clusters by clusters.
    """
    sizes = np.stack([side.sizes for side in sides])
    n = sizes.sum(axis=1, keepdims=True)
    c = 1 / (n * np.sqrt(1 - sizes / n))
    d, q = np.sum(c**2 * sizes, axis=0), c * sizes / np.sqrt(n)
    trace = d.sum() - np.sum(q**2)
    return float(trace**2 / (np.sum(d**2) - 2 * np.sum(d * q**2) + np.sum((q @ q.T) ** 2)))


def _effective_size(side: _Side) -> float:
    """As many independent items of 0 and 1 as have the side's error; where that is zero, its units."""
    n, n_units = float(side.sizes.sum()), float((side.sizes > 0).sum())
    spread, variance = side.mean * (1 - side.mean), float(np.sum(side.errors**2))
    return n if n_units == n else n_units if variance <= _TIE**2 else min(n, spread / variance)


def _newcombe(found: Estimate, sides: Sequence[tuple[float, float]]) -> Estimate:
    """Give a difference of two proportions, each with its number of items, its hybrid score interval."""
    (dirty, dirty_low, dirty_high), (tidy, tidy_low, tidy_high) = (
        (p, *_wilson(p, n, found.confidence_level)) for p, n in sides
    )
    return replace(
        found,
        low=found.estimate - math.hypot(dirty - dirty_low, tidy_high - tidy),
        high=found.estimate + math.hypot(dirty_high - dirty, tidy - tidy_low),
        method="Newcombe hybrid score" + ("" if found.unit == "items" else ", effective sizes"),
    )


def _wilson(p: float, n: float, confidence_level: float) -> tuple[float, float]:
    """Wilson's interval of a proportion of n items; n need not be whole."""
    z2 = float(stats.norm.ppf((1 + confidence_level) / 2)) ** 2
    middle, half = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2)))
    low, high = ((middle + sign * half) / (1 + z2 / n) for sign in (-1, 1))
    return min(max(low, 0.0), p), max(min(high, 1.0), p)


def _candidates(cell: Ints, codes: Ints, min_units: int) -> Ints:
    """The cells (steps of contamination) from which on an item can be flagged: enough units lie on either side."""
    n_units, n_cells = int(codes.max()) + 1, int(cell.max()) + 1
    highest, lowest = np.zeros(n_units, dtype=np.int64), np.full(n_units, n_cells, dtype=np.int64)
    np.maximum.at(highest, codes, cell)
    np.minimum.at(lowest, codes, cell)
    # A cluster with items on both sides is a unit of both.
    flagged = n_units - np.concatenate([[0], np.cumsum(np.bincount(highest, minlength=n_cells))[:-1]])
    clean = np.concatenate([[0], np.cumsum(np.bincount(lowest, minlength=n_cells))[:-1]])
    return np.flatnonzero((flagged >= min_units) & (clean >= min_units))


class _Table:
    """The items by cell, with the sums that every gain is made of; `values` are such that higher is better."""

    def __init__(self, values: Floats, cell: Ints, codes: Ints, candidates: Ints) -> None:
        self.values, self.cell, self.codes, self.candidates = values, cell, codes, candidates
        self.n_cells = int(cell.max()) + 1
        self.sizes = np.bincount(cell, minlength=self.n_cells)
        self.n, self.n_units = len(values), int(codes.max()) + 1
        sums = np.bincount(cell, weights=values, minlength=self.n_cells)
        self.n_clean = np.cumsum(self.sizes)[candidates - 1]
        self.shares = 1 - self.n_clean / self.n
        self.gains = self.gains_of(self.sizes[None], sums[None])[0]

    def gains_of(self, sizes: npt.NDArray[Any], sums: npt.NDArray[Any]) -> Floats:
        """Gains at every candidate from the sizes and sums of scores of the cells: (b, n_cells) each, to (b, k).

        The share flagged stays what it is in the benchmark, also where resampled sizes have another.
        """
        n_clean, clean = (np.cumsum(of, axis=1)[:, self.candidates - 1] for of in (sizes, sums))
        n_flagged, flagged = (of.sum(axis=1, keepdims=True) - part for of, part in ((sizes, n_clean), (sums, clean)))
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample can have an empty side: its gain is NaN
            gains: Floats = self.shares * (flagged / n_flagged - clean / n_clean)
        return gains

    def choose(self, gains: Floats, criterion: Criterion, test: _Test) -> Ints:
        """For each row of gains (b, k) the candidate chosen among the significant ones, or -1."""
        with np.errstate(invalid="ignore"):
            significant = gains / test.errors > test.critical + _TIE
        # Of z, what differs between thresholds.
        rank = gains * np.sqrt(self.n_clean) if criterion == "z" else gains
        chosen = np.argmax(np.where(significant, rank, -np.inf), axis=1)
        return np.where(significant.any(axis=1), chosen, -1)


def _dealt_gains(table: _Table, n_resamples: int, rng: np.random.Generator) -> Floats:
    """Gains at every candidate when scores are dealt anew, so that contamination tells nothing of them: (b, k)."""
    deal = _dealer(table.codes, rng)
    found = np.empty((n_resamples, len(table.candidates)))
    for number in range(n_resamples):
        sums = np.bincount(table.cell, weights=table.values[deal()], minlength=table.n_cells)
        found[number] = table.gains_of(table.sizes[None], sums[None])[0]
    return found


def _dealer(codes: Ints, rng: np.random.Generator) -> Callable[[], Ints]:
    """Return what deals: for each item, the item whose score it gets, from a cluster of the same size."""
    n = len(codes)
    if int(codes.max()) + 1 == n:
        return lambda: rng.permutation(n)
    by_cluster = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    # The items of all clusters of one size as a matrix, a cluster a row.
    blocks = [by_cluster[starts[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes)]

    def deal() -> Ints:
        taken = np.empty(n, dtype=np.int64)
        for block in blocks:
            taken[block] = rng.permuted(rng.permutation(block), axis=1)
        return taken

    return deal


def _resampled_gains(table: _Table, n_resamples: int, rng: np.random.Generator) -> Floats:
    """Gains at every candidate when units are drawn with replacement: (b, k)."""
    found = []
    for begin in range(0, n_resamples, _BATCH):
        sizes, sums = [], []
        for _ in range(min(_BATCH, n_resamples - begin)):
            draws = np.bincount(rng.integers(table.n_units, size=table.n_units), minlength=table.n_units)
            weights = draws[table.codes]
            sizes.append(np.bincount(table.cell, weights=weights, minlength=table.n_cells))
            sums.append(np.bincount(table.cell, weights=weights * table.values, minlength=table.n_cells))
        found.append(table.gains_of(np.stack(sizes), np.stack(sums)))
    return np.concatenate(found)


def _band_factor(deviations: Floats, confidence_level: float) -> float:
    """How much wider than a pointwise interval the band must be, from standardised deviations (b, k)."""
    deviations = np.abs(deviations)
    largest = np.max(np.nan_to_num(deviations, nan=0.0, posinf=0.0), axis=1)
    return max(1.0, float(np.quantile(largest, confidence_level)) / float(stats.norm.ppf((1 + confidence_level) / 2)))
