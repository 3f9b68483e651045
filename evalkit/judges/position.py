"""Position bias: does the judge prefer what it is shown first, and does it flip more often than it contradicts itself?

Three questions are kept apart. *Inconsistency*: how often do the verdicts of the two orders differ? *Noise*: how often
do two verdicts of the same order differ? *Direction*: does the first answer win more often than the second? A noisy but
fair judge is inconsistent without direction, and no more inconsistent than it is noisy.

Let p and q be a pair's probabilities of the outcomes in either order. Across the orders two calls disagree with chance
1 - sum p q, within them with chance 1 - sum (p^2 + q^2) / 2 on average, and the difference is sum (p - q)^2 / 2: it is
never below zero, and zero only where no verdict depends on the order, in whatever direction. This needs repeats in both
orders; repeats in one order alone do not estimate it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from scipy import stats

from evalkit.errors import InputError
from evalkit.judges.pairs import AB, BA, Floats, Ints, Pairs, clusters_or_none
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes, cluster_error, t_interval
from evalkit.stats.discordance import discordant_p_value, proportion_difference
from evalkit.stats.means import mean_score
from evalkit.stats.multiple import holm
from evalkit.stats.permutation import sign_flip
from evalkit.stats.results import Estimate, Result, TestResult

POPULATION: Final = "pairs like these, judged by this judge with this prompt"

Sign = Literal["biased", "no sign, adequate power", "underpowered", "no order"]
GLYPHS: Final = {"biased": "\u2717", "no sign, adequate power": "\u2713", "underpowered": "?", "no order": "-"}

SMALLEST_BIAS: Final = 0.1
"""A bias of fewer points than 10 is called small: `no sign` needs the first answer's lead within it, and less than that
share of the pairs on which the position could decide in either direction."""

_ODD: Final = 2.58
"""Standard errors, those of p = 0.01, from which repeated pairs are called no random part of all."""


@dataclass(frozen=True)
class Shi(Result):
    """Shi et al. 2024 (arXiv:2406.07791): repetition stability, position consistency and preference fairness.

    Attributes
    ----------
    repetition_stability
        Mean over repeated calls of the share of the commonest verdict; None without repeats.
    position_consistency
        Pairs with the same verdict in both orders, of those with a verdict in both.
    preference_fairness
        From -1 (always the first) to 1 (always the second); 0 is fair.
    primacy, recency
        Pairs that went to the first, and to the second position; a tie in one order counts with the other order.
    """

    repetition_stability: float | None
    position_consistency: float
    preference_fairness: float
    primacy: int
    recency: int


@dataclass(frozen=True)
class PositionBias(Result):
    """What the two orders of a judge's pairs say.

    Attributes
    ----------
    n_pairs, n_both, n_one_order, n_unknown_order, n_order_free, n_failed_calls
        Pairs; those with a verdict in both orders, in one only, in an unknown one only; those whose answers were rated
        apart, so that neither was shown first; calls without a verdict.
    consistent, first_twice, second_twice, tie_once
        Of the pairs judged in both orders (first calls): the same model or a tie twice; the first position twice; the
        second twice; a tie in one order only.
    consistency, conflict
        Shares of the same verdict, and of a position winning twice (the conflict rate of Wang et al. 2023,
        arXiv:2305.17926).
    first_pick
        Share of first positions among verdicts other than ties.
    direction, direction_test
        (first_twice - second_twice) / n with interval, and the test that both are as likely.
    bias
        How far the first answer leads in one order, P(first) - P(second) averaged over these pairs, ties counted;
        proportions. Where one answer is clearly better there is less of it than where both are as good.
    noise
        Chance that two calls of one order disagree; None without repeats.
    excess, excess_p
        Inconsistency beyond the noise, and its p value; None without repeats in both orders.
    shi
        The measures of Shi et al.
    p_adjusted
        Of direction and excess together (Holm); the smaller one decides.
    sign
        biased, no sign with adequate power, or underpowered; no order where all answers were rated apart.
    smallest_bias
        The bias that `adequate power` refers to.
    warnings
        What to know.
    """

    n_pairs: int
    n_both: int
    n_one_order: int
    n_unknown_order: int
    n_order_free: int
    n_failed_calls: int
    consistent: int
    first_twice: int
    second_twice: int
    tie_once: int
    consistency: Estimate | None
    conflict: Estimate | None
    first_pick: Estimate | None
    direction: Estimate | None
    direction_test: TestResult | None
    bias: Estimate | None
    noise: Estimate | None
    excess: Estimate | None
    excess_p: float | None
    shi: Shi | None
    p_adjusted: float | None
    sign: Sign
    smallest_bias: float
    warnings: tuple[str, ...] = ()

    @property
    def most_decided(self) -> float:
        """The largest share of pairs, of those the data leave possible, that position decides in either direction.

        The upper end of the excess, or of all inconsistency, which is never less than the excess; 1 without either.
        """
        ends = [1.0]
        if self.excess is not None and self.excess.high is not None:
            ends.append(self.excess.high)
        if self.consistency is not None and self.consistency.low is not None:
            ends.append(1 - self.consistency.low)
        return min(ends)

    def with_sign(self, p_adjusted: float | None, *, alpha: float) -> PositionBias:
        """Decide the sign by a p value adjusted for all that was tested."""
        sign: Sign = "no order" if self.n_order_free == self.n_pairs else "underpowered"
        if self.bias is not None:
            sign = sign_of(p_adjusted, self.bias, smallest_bias=self.smallest_bias, alpha=alpha)
        # A judge that takes the first of some pairs and the second of others has no lead, and contradicts itself.
        if sign == "no sign, adequate power" and self.most_decided >= self.smallest_bias:
            sign = "underpowered"
        return replace(self, p_adjusted=p_adjusted, sign=sign)

    def __str__(self) -> str:
        if self.sign == "no order":
            return f"{GLYPHS[self.sign]} position: answers were rated apart, so neither was shown first"
        if self.direction is None or self.conflict is None or self.bias is None:
            return f"{GLYPHS[self.sign]} position: {self.sign}; no pair was judged in both orders"
        return (
            f"{GLYPHS[self.sign]} position: {self.sign}; first twice {self.first_twice}, second twice"
            f" {self.second_twice} of {self.n_both} pairs, the first leads by {100 * self.bias.estimate:+.1f} points"
        )


def position_bias(
    pairs: Pairs, *, smallest_bias: float = SMALLEST_BIAS, alpha: float = 0.05, confidence_level: float = 0.95
) -> PositionBias:
    """Measure position bias from the pairs that were judged in both orders.

    Direction is the difference of the shares of pairs that went to the first and to the second position twice, with
    Bonett and Price's interval and the mid-p of their counts; where several pairs share a question, the t interval over
    questions (CR2) and the sign-flip test. Excess inconsistency is that across orders less that within them.

    Parameters
    ----------
    pairs
        One judge's pairs; none of the statistics needs all of them in both orders.
    smallest_bias
        A smaller bias does not matter, in proportions.
    alpha
        Of direction and excess together.
    confidence_level
        Of each interval.
    """
    both = pairs.both
    unknown = (pairs.n_calls[:, 2] > 0) & (pairs.n_calls[:, :2].sum(axis=1) == 0) & ~pairs.order_free
    one_order = ~both & (pairs.n_calls[:, :2].sum(axis=1) > 0)
    warnings = []
    if one_order.any():
        warnings.append(f"{int(one_order.sum())} pairs have a verdict in one order only: they say nothing of position")
    if unknown.any():
        warnings.append(f"of {int(unknown.sum())} pairs nobody knows which answer was shown first")
    counted = {
        "n_pairs": len(pairs),
        "n_both": int(both.sum()),
        "n_one_order": int(one_order.sum()),
        "n_unknown_order": int(unknown.sum()),
        "n_order_free": int(pairs.order_free.sum()),
        "n_failed_calls": int(pairs.n_failed.sum()),
    }
    if not both.any():
        return PositionBias(
            **counted, consistent=0, first_twice=0, second_twice=0, tie_once=0, consistency=None, conflict=None,
            first_pick=None, direction=None, direction_test=None, bias=None, noise=_noise(pairs, confidence_level),
            excess=None, excess_p=None, shi=None, p_adjusted=None, sign="underpowered", smallest_bias=smallest_bias,
            warnings=tuple(warnings),
        ).with_sign(None, alpha=alpha)  # fmt: skip
    known = pairs.take(both)
    # +1: the first position wins, -1: the second.
    picks = np.column_stack([1 - known.first[:, AB], known.first[:, BA] - 1])
    first, second = (picks == 1).all(axis=1), (picks == -1).all(axis=1)
    consistent = known.first[:, AB] == known.first[:, BA]
    cluster = clusters_or_none(known.cluster)
    level: dict[str, Any] = {"confidence_level": confidence_level}
    # All calls count here, so that repeats make the estimate better.
    lead = _lead(known)
    codes, sizes = cluster_codes(cluster, len(known))
    bias = _named(t_interval(lead, codes, sizes, **level), "the lead of the first position, P(first) - P(second)")
    bias = _bounded(mended(bias, lead))
    direction, test = _direction(first, second, known.cluster, confidence_level)
    excess, excess_p = _excess(pairs, confidence_level)
    noise = _noise(pairs, confidence_level)
    if excess is None:
        warnings.append(
            "the judge's own noise is unknown (no repeats in both orders), so inconsistency may be noise or bias"
            if noise is None
            else "too few pairs are repeated in both orders to tell noise from bias"
            if _repeated(pairs).any()
            else "repeats are in one order only, which does not tell noise from bias: repeat in both orders"
        )
    elif _repeated_differ(pairs):
        warnings.append(
            "the repeated pairs contradict themselves more, or less, often than the others: they are no random part of"
            " all, so the inconsistency beyond the noise is not that of all pairs"
        )
    p_values = [p for p in (test.p_value if test else None, excess_p) if p is not None]
    adjusted = min(holm(p_values).adjusted) if p_values else None
    found = PositionBias(
        **counted,
        consistent=int(consistent.sum()),
        first_twice=int(first.sum()),
        second_twice=int(second.sum()),
        tie_once=int((~consistent & ~first & ~second).sum()),
        consistency=_named(
            mean_score(consistent.astype(float), cluster=cluster, **level), "the share of consistent pairs"
        ),
        conflict=_named(mean_score((first | second).astype(float), cluster=cluster, **level), "the conflict rate"),
        first_pick=_first_pick(picks, known.cluster, confidence_level),
        direction=direction,
        direction_test=test,
        bias=bias,
        noise=noise,
        excess=excess,
        excess_p=excess_p,
        shi=shi_measures(pairs),
        p_adjusted=adjusted,
        sign="underpowered",
        smallest_bias=smallest_bias,
        warnings=tuple(warnings),
    )
    return found.with_sign(adjusted, alpha=alpha)


def sign_of(p_value: float | None, bias: Estimate, *, smallest_bias: float, alpha: float = 0.05) -> Sign:
    """Biased where the test says so; no sign only where the interval leaves no bias that matters."""
    if p_value is not None and p_value < alpha:
        return "biased"
    if bias.low is None or bias.high is None:
        return "underpowered"
    return "no sign, adequate power" if max(-bias.low, bias.high) < smallest_bias else "underpowered"


def _lead(pairs: Pairs) -> Floats:
    """P(first) - P(second) of each pair: in AB the first is A, in BA it is B."""
    found: Floats = (1 - 2 * pairs.by_order[:, AB] + 2 * pairs.by_order[:, BA] - 1) / 2
    return found


def _bounded(found: Estimate) -> Estimate:
    """No difference of two proportions is beyond -1 or 1, though a t interval of few pairs is."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))


def mended(found: Estimate, values: Floats, bounds: tuple[float, float] = (-1.0, 1.0)) -> Estimate:
    """Give an interval where all values are alike: the share of others, bounded exactly, times how far they could be.

    Of n equal values, Clopper and Pearson's upper bound for the share of others is 1 - (alpha / 2)^(1 / n).
    """
    if found.low is not None or np.ptp(values) > 0 or found.n < MIN_CLUSTERS:
        return found
    others = 1 - float(((1 - found.confidence_level) / 2) ** (1 / found.n))
    return replace(
        found,
        low=found.estimate - others * (found.estimate - bounds[0]),
        high=found.estimate + others * (bounds[1] - found.estimate),
        method="Clopper-Pearson, all pairs alike",
        warnings=(),
    )


def _direction(
    first: np.ndarray, second: np.ndarray, cluster: Ints, confidence_level: float
) -> tuple[Estimate, TestResult | None]:
    n, n_first, n_second = len(first), int(first.sum()), int(second.sum())
    what = "the share of pairs that went to the first position twice, less that of the second"
    null = "either position is as likely to win twice"
    if clusters_or_none(cluster) is None:
        found = proportion_difference(n_second, n_first, n, confidence_level=confidence_level)
        test = TestResult(
            p_value=discordant_p_value(n_second, n_first),
            method="McNemar mid-p",
            null_hypothesis=null,
            n=n,
            b=n_second,
            c=n_first,
            unit="pairs",
            population=POPULATION,
        )
        return replace(_named(found, what), unit="pairs"), test
    difference = first.astype(float) - second
    codes, sizes = cluster_codes(cluster, n)  # type: ignore[arg-type]
    found = t_interval(difference, codes, sizes, confidence_level=confidence_level)
    found = _named(_bounded(mended(found, difference)), what)
    try:
        test = replace(
            sign_flip(difference, cluster=cluster),  # type: ignore[arg-type]
            null_hypothesis=null,
            population=POPULATION,
        )
    except InputError:
        return found, None
    return found, test


def _first_pick(picks: Ints, cluster: Ints, confidence_level: float) -> Estimate | None:
    decided = picks != 0
    if not decided.any():
        return None
    values = (picks[decided] == 1).astype(float)
    rows = np.repeat(cluster, 2).reshape(-1, 2)[decided]
    found = mean_score(values, cluster=clusters_or_none(rows), confidence_level=confidence_level)
    return _named(found, "the share of first positions among verdicts other than ties")


def _noise(pairs: Pairs, confidence_level: float) -> Estimate | None:
    known = ~np.isnan(pairs.within)
    if not known.any():
        return None
    found = mean_score(
        pairs.within[known], cluster=clusters_or_none(pairs.cluster[known]), confidence_level=confidence_level
    )
    return _named(found, "the chance that two calls of the same order disagree")


def _excess(pairs: Pairs, confidence_level: float) -> tuple[Estimate | None, float | None]:
    """Inconsistency across orders, over all pairs, less that within both orders, over the repeated ones.

    The repeated pairs must be a random part of all; None with too few of them for a variance.

    Each rate is that with half a pair more of either kind, as Agresti and Caffo (2000, American Statistician 54:280)
    have it for two proportions: 10 repeats without a contradiction do not show that there is no noise. Pairs that are
    in both rates make them positively correlated, which is not used: the interval is rather too wide.
    """
    repeated = _repeated(pairs)
    if not (_enough(pairs.cluster[repeated]) and _enough(pairs.cluster[pairs.both])):
        return None, None
    across, within = pairs.across[pairs.both], pairs.within[repeated]
    parts = [_smoothed(across, pairs.cluster[pairs.both]), _smoothed(within, pairs.cluster[repeated])]
    centre = parts[0][0] - parts[1][0]
    variance = parts[0][1] + parts[1][1]
    df = variance**2 / sum(part**2 / max(n - 1, 1) for _, part, n in parts)
    half = float(stats.t.ppf((1 + confidence_level) / 2, df)) * math.sqrt(variance)
    value = float(across.mean() - within.mean())
    return Estimate(
        estimate=value,
        # The centre is drawn to zero; where everything contradicts itself, its interval would leave the estimate out.
        low=max(min(centre - half, value), -1.0),
        high=min(max(centre + half, value), 1.0),
        confidence_level=confidence_level,
        method="Agresti-Caffo, Welch",
        population=POPULATION,
        unit="repeated pairs",
        n=parts[1][2],
        n_items=int(pairs.both.sum()),
        standard_error=math.sqrt(variance),
        df=df,
        quantity="the inconsistency beyond the judge's own noise",
    ), 2 * float(stats.t.sf(abs(centre) / math.sqrt(variance), df)) if centre > 0 else 1.0


def _repeated(pairs: Pairs) -> np.ndarray:
    """Pairs with repeats in both orders."""
    return np.asarray(~np.isnan(pairs.within_by_order[:, :2]).any(axis=1))


def _enough(cluster: Ints) -> bool:
    """Whether there are units enough for a variance: two pairs, or `MIN_CLUSTERS` questions of several pairs."""
    n_units = len(np.unique(cluster))
    return n_units >= (2 if n_units == len(cluster) else MIN_CLUSTERS)


def _repeated_differ(pairs: Pairs) -> bool:
    """Whether the repeated pairs contradict themselves across orders clearly more, or less, often than the others."""
    repeated = _repeated(pairs)
    masks = [pairs.both & repeated, pairs.both & ~repeated]
    if not all(_enough(pairs.cluster[mask]) for mask in masks):
        return False
    (one, var_one, _), (other, var_other, _) = (_smoothed(pairs.across[m], pairs.cluster[m]) for m in masks)
    return abs(one - other) > _ODD * math.sqrt(var_one + var_other)


def _smoothed(values: Floats, cluster: Ints) -> tuple[float, float, int]:
    """A rate with one more unit of either kind, its variance, and its number of units."""
    codes, sizes = cluster_codes(clusters_or_none(cluster), len(values))
    n = len(sizes)
    rate = (float(values.mean()) * n + 1) / (n + 2)
    measured = cluster_error(values, codes, sizes) ** 2 if n > 1 else math.inf
    # A rate of 0/1 answers has this variance; averages of several calls have less, and clusters more.
    binary = bool(np.isin(values, (0.0, 1.0)).all()) and n == len(values)
    return rate, max(measured, rate * (1 - rate) / (n + 2)) if binary else max(measured, 0.25 / (n + 2) ** 2), n


def shi_measures(pairs: Pairs) -> Shi | None:
    """Compute the measures of Shi et al. from the first calls of both orders, by (task, models) and averaged.

    PF of a cell is recency r' - primacy p' with r' = r (r / (r + p)) and p' = p (p / (r + p)), brought to [-1, 1] by
    the cell's number of pairs.
    """
    both = pairs.both
    if not both.any():
        return None
    known = pairs.take(both)
    picks = (1 - known.first[:, AB]) + (known.first[:, BA] - 1)
    cell = np.unique(
        np.array([f"{t}\0{a}\0{b}" for t, a, b in zip(known.task, known.model_a, known.model_b, strict=True)]),
        return_inverse=True,
    )[1]
    n = np.bincount(cell).astype(float)
    p = np.bincount(cell, weights=picks > 0)
    r = np.bincount(cell, weights=picks < 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        fairness = np.where(r + p > 0, (r * r - p * p) / (r + p) / n, 0.0)
    m = pairs.n_calls
    repeated = m > 1
    stability = float((pairs.counts.max(axis=2)[repeated] / m[repeated]).mean()) if repeated.any() else None
    return Shi(
        repetition_stability=stability,
        position_consistency=float((known.first[:, AB] == known.first[:, BA]).mean()),
        preference_fairness=float(fairness.mean()),
        primacy=int(p.sum()),
        recency=int(r.sum()),
    )


def _named(found: Estimate, quantity: str) -> Estimate:
    return replace(found, quantity=quantity, population=POPULATION)
