"""Who wins after what is known of the judge: both orders, its measured bias, equal length, and a few human labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from scipy import stats

from evalkit.errors import InputError
from evalkit.judges.length import LengthControlled
from evalkit.judges.pairs import AB, BA, Floats, Pairs, clusters_or_none
from evalkit.judges.position import POPULATION, PositionBias, mended
from evalkit.stats.clusters import cluster_codes, cluster_degrees, cluster_error
from evalkit.stats.means import mean_score
from evalkit.stats.permutation import sign_flip
from evalkit.stats.ppi import Corrected, prediction_powered_mean
from evalkit.stats.results import Estimate, Result, TestResult

MOSTLY: Final = 0.5
"""With more contradictions than this, the averaged result is mostly made of ties that say nothing."""

FEW_FOR_BIAS: Final = 10
"""With fewer pairs in both orders, the bias cannot be taken out of the pairs that were judged in one order."""


@dataclass(frozen=True)
class PairResult(Result):
    """B against A by one judge, in win rates of B (proportions, ties half).

    Attributes
    ----------
    model_a, model_b
        The models.
    n_pairs, n_used, n_failed, n_identical
        Pairs; those in the result; those without any verdict; those with twice the same text, which are no evidence
        and are not used.
    a_first, b_first
        As a judge asked in one order only would say.
    if_consistent
        A win only if both orders agree, else a tie (Zheng et al. 2023, arXiv:2306.05685).
    averaged
        The mean over both orders (balanced position calibration of Wang et al. 2023), also of answers rated apart.
    corrected
        The same with the pairs that were judged in one order only: the bias that the others show is taken out of
        them, and its error is carried into the interval. Equal to `averaged` where there are none of these.
    test
        That both models are as good, by `averaged` and sign flips.
    bounds
        If every pair on which the orders contradict each other had gone to A, and to B: no assumption at all.
    length_controlled
        At equal length.
    with_labels
        With human labels (prediction-powered); where all pairs have one, their own mean.
    soft
        `averaged` of the judge's probabilities, where it tells them.
    smallest_one_order
        A difference of win rates (B - A, proportion) below this cannot be told from position bias, if the judge is
        asked in one order: the far end of the bias' interval.
    position_known_from
        Pairs in both orders, of all the judge's models, that its bias is known from; None where answers were rated
        apart, so that no position can be favoured.
    smallest_both_orders
        The half-width of the interval of the difference of the win rates after both orders.
    warnings
        What to know.
    p_adjusted
        Of the test, together with those of the judge's other pairs of models (Holm).
    """

    model_a: str
    model_b: str
    n_pairs: int
    n_used: int
    n_failed: int
    n_identical: int
    a_first: Estimate | None
    b_first: Estimate | None
    if_consistent: Estimate | None
    averaged: Estimate | None
    corrected: Estimate | None
    test: TestResult | None
    bounds: tuple[float, float] | None
    length_controlled: Estimate | None
    with_labels: Corrected | None
    soft: Estimate | None
    smallest_one_order: float | None
    position_known_from: int | None
    smallest_both_orders: float | None
    warnings: tuple[str, ...] = ()
    p_adjusted: float | None = None

    @property
    def best(self) -> Estimate | None:
        """The result to go by: with labels, else corrected."""
        return self.with_labels.estimate if self.with_labels is not None else self.corrected

    def sentence_on_bias(self) -> str:
        """Say which differences the judge cannot tell from its position bias."""
        if self.position_known_from is None:
            return "Each answer was rated by itself, so this judge has no position to favour."
        if self.smallest_one_order is None:
            why = (
                f"{self.position_known_from} pairs in both orders, or their questions, are too few"
                if self.position_known_from
                else "no pair was judged in both orders"
            )
            return f"The position bias of this judge is unknown, as {why}: no difference can be told from it."
        return (
            f"With this judge, differences under {100 * self.smallest_one_order:.1f} points cannot be told from"
            " position bias when it is asked in one order."
        )

    def sentence(self) -> str:
        """Say which differences cannot be told from position bias, and which not from chance."""
        if self.smallest_one_order is None and self.position_known_from is not None:
            return self.sentence_on_bias()
        after = "On" if self.position_known_from is None else "After both orders, on"
        noise = (
            ""
            if self.smallest_both_orders is None
            else f" {after} {self.n_used} pairs, differences under"
            f" {100 * self.smallest_both_orders:.1f} points cannot be told from chance."
        )
        contradicted = (
            ""
            if self.bounds is None or self.bounds[0] == self.bounds[1]
            else f" On {self.bounds[1] - self.bounds[0]:.0%} of the pairs the orders contradict each other; these are"
            f" ties here, and if all were one model's, its win rate would be off by"
            f" {50 * (self.bounds[1] - self.bounds[0]):.1f} points."
        )
        return f"{self.sentence_on_bias()}{noise}{contradicted}"

    def __str__(self) -> str:
        if self.best is None:
            return f"{self.model_b} against {self.model_a}: no verdict"
        return f"{self.model_b} against {self.model_a}: {self.best}"


def pair_result(
    pairs: Pairs,
    position: PositionBias,
    controlled: LengthControlled | None = None,
    *,
    confidence_level: float = 0.95,
) -> PairResult:
    """Estimate the win rate of B over A from one judge's verdicts on one pair of models.

    Parameters
    ----------
    pairs
        All of the same two models.
    position
        Of the same judge, over all its pairs: where this pair of models has few in both orders, the bias is known from
        the others.
    controlled
        Of the same pairs.
    confidence_level
        Of each interval.
    """
    warnings: list[str] = []
    verdict = ~np.isnan(pairs.win)
    used = verdict & ~pairs.identical
    base: dict[str, Any] = {
        "model_a": str(pairs.model_a[0]),
        "model_b": str(pairs.model_b[0]),
        "n_pairs": len(pairs),
        "n_used": int(used.sum()),
        "n_failed": int((~verdict).sum()),
        "n_identical": int((verdict & pairs.identical).sum()),
        "smallest_one_order": _far_end(position.bias),
        "position_known_from": None if position.sign == "no order" else position.n_both,
    }
    if not used.any():
        return PairResult(
            **base, a_first=None, b_first=None, if_consistent=None, averaged=None, corrected=None, test=None,
            bounds=None, length_controlled=None, with_labels=None, soft=None, smallest_both_orders=None,
            warnings=("no pair has a verdict",),
        )  # fmt: skip
    of = pairs.take(used)
    fair, with_both = of.take(settled(of)), of.take(of.both)
    averaged = consistent = test = bounds = None
    if len(fair):
        averaged = _rate(fair.win, fair, "the win rate of B, averaged over both orders", confidence_level)
        try:
            flipped = sign_flip(2 * fair.win - 1, cluster=clusters_or_none(fair.cluster))
            test = replace(flipped, null_hypothesis="both models win as often")
        except InputError as error:
            warnings.append(f"no test: {error}")
    if len(with_both):
        same = with_both.first[:, AB] == with_both.first[:, BA]
        agreed = np.where(same, with_both.first[:, AB] / 2, 0.5)
        consistent = _rate(agreed, with_both, "the win rate of B where both orders agree", confidence_level)
        contradicted = np.abs(with_both.first[:, AB] - with_both.first[:, BA]) == 2
        bounds = (
            float(np.where(contradicted, 0.0, with_both.win).mean()),
            float(np.where(contradicted, 1.0, with_both.win).mean()),
        )
    corrected = _corrected(of, position, averaged, warnings, confidence_level)
    with_labels = _with_labels(pairs.take(~pairs.identical), warnings, confidence_level)
    if bounds is not None and bounds[1] - bounds[0] > MOSTLY:
        warnings.append("most verdicts follow the position: the win rate is near 50% because the judge says nothing")
    if base["n_identical"]:
        warnings.append(f"{base['n_identical']} pairs with twice the same text are left out")
    if failed := base["n_failed"]:
        warnings.append(f"{failed} pairs without any verdict are left out")
    soft = _rate(of.soft, of, "the win rate of B by probabilities", confidence_level) if of.has_preferences else None
    interval = corrected or averaged
    half = None if interval is None or interval.low is None or interval.high is None else interval.high - interval.low
    return PairResult(
        **base,
        a_first=_of_order(of, AB, "the win rate of B, A shown first", confidence_level),
        b_first=_of_order(of, BA, "the win rate of B, B shown first", confidence_level),
        if_consistent=consistent,
        averaged=averaged,
        corrected=corrected,
        test=test,
        bounds=bounds,
        length_controlled=controlled.win_rate if controlled is not None else None,
        with_labels=with_labels,
        soft=soft,
        # The difference of the win rates is 2 w - 1, so its half-width is the whole width of the rate's interval.
        smallest_both_orders=half,
        warnings=tuple(warnings),
    )


def _far_end(bias: Estimate | None) -> float | None:
    if bias is None or bias.low is None or bias.high is None:
        return None
    return max(abs(bias.low), abs(bias.high))


def settled(pairs: Pairs) -> np.ndarray:
    """Whether no position can have decided a pair's verdict: it was judged in both orders, or its answers apart."""
    found: np.ndarray = pairs.both | (pairs.order_free & ~np.isnan(pairs.win))
    return found


def _rate(values: Floats, of: Pairs, quantity: str, confidence_level: float) -> Estimate:
    return rate(values, of.cluster, quantity, confidence_level=confidence_level)


def rate(wins: Floats, cluster: np.ndarray, quantity: str, *, confidence_level: float = 0.95) -> Estimate:
    """Estimate a win rate, within 0 and 1, with `cluster` the questions as numbers."""
    found = mean_score(wins, cluster=clusters_or_none(cluster), confidence_level=confidence_level)
    found = mended(found, wins, (0.0, 1.0))
    low = None if found.low is None else max(found.low, 0.0)
    high = None if found.high is None else min(found.high, 1.0)
    return replace(found, low=low, high=high, quantity=quantity, population=POPULATION)


def _of_order(of: Pairs, order: int, quantity: str, confidence_level: float) -> Estimate | None:
    known = ~np.isnan(of.by_order[:, order])
    if not known.any():
        return None
    return _rate(of.by_order[known, order], of.take(known), quantity, confidence_level)


def _corrected(
    of: Pairs, position: PositionBias, averaged: Estimate | None, warnings: list[str], confidence_level: float
) -> Estimate | None:
    """Take the lead of the first position out of the pairs that were judged in one order.

    With w_i the averaged outcomes, s_i = +1 where B was shown first and -1 where A was, and b the lead of the first
    position, the estimate is mean(w_i - s_i b / 2), s_i = 0 for pairs in both orders. Its variance is that of the first
    term plus (mean s / 2)^2 Var(b), the two being taken as independent.
    """
    if averaged is not None and settled(of).all():
        return replace(averaged, quantity="the win rate of B, corrected for position")
    shown = np.where(of.both, 0.0, np.where(of.n_calls[:, BA] > 0, 1.0, np.where(of.n_calls[:, AB] > 0, -1.0, 0.0)))
    unknown = ~settled(of) & (shown == 0)
    if unknown.any():
        warnings.append(
            f"of {int(unknown.sum())} pairs nobody knows which answer was shown first: nothing is corrected for them"
        )
    net = float(shown.mean())
    bias = position.bias
    if bias is None or bias.standard_error is None or position.n_both < FEW_FOR_BIAS:
        if (shown != 0).any():
            warnings.append("pairs judged in one order only are as they are, since the position bias is not known")
        bias = None
    value = float(of.win.mean()) - (net * bias.estimate / 2 if bias is not None else 0.0)
    codes, sizes = cluster_codes(clusters_or_none(of.cluster), len(of))
    if len(sizes) < 2:
        return None
    adjusted = of.win - (shown * bias.estimate / 2 if bias is not None else 0.0)
    own = cluster_error(adjusted, codes, sizes) ** 2
    carried = (net / 2 * (bias.standard_error or 0.0)) ** 2 if bias is not None else 0.0
    error = math.sqrt(own + carried)
    if error == 0:
        return _rate(of.win, of, "the win rate of B, corrected for position", confidence_level)
    half = float(stats.t.ppf((1 + confidence_level) / 2, cluster_degrees(sizes))) * error
    return Estimate(
        estimate=min(max(value, 0.0), 1.0),
        low=max(value - half, 0.0),
        high=min(value + half, 1.0),
        confidence_level=confidence_level,
        method="mean less the measured lead of the first position, t" if bias is not None else "t",
        population=POPULATION,
        unit="clusters" if len(sizes) < len(of) else "pairs",
        n=len(sizes),
        n_items=len(of),
        standard_error=error,
        df=cluster_degrees(sizes),
        quantity="the win rate of B, corrected for position",
    )


def _with_labels(pairs: Pairs, warnings: list[str], confidence_level: float) -> Corrected | None:
    labelled = ~np.isnan(pairs.label)
    if not labelled.any():
        return None
    verdict = ~np.isnan(pairs.win)
    if labelled[verdict].all():
        warnings.append("all pairs have human labels: the judge adds nothing to them")
        of = pairs.take(labelled)
        own = _rate(of.label, of, "the win rate of B by human labels", confidence_level)
        judge = float(np.nanmean(pairs.soft))
        return Corrected(own, own, judge, 0.0, None, None, n_labelled=len(of), n_unlabelled=0)
    of, labelled = pairs.take(verdict), labelled[verdict]
    clustered = clusters_or_none(of.cluster) is not None
    try:
        found = prediction_powered_mean(
            of.label[labelled],
            of.soft[labelled],
            of.soft[~labelled],
            cluster_labelled=of.cluster[labelled] if clustered else None,  # type: ignore[arg-type]
            cluster_unlabelled=of.cluster[~labelled] if clustered else None,  # type: ignore[arg-type]
            confidence_level=confidence_level,
        )
    except InputError as error:
        warnings.append(f"the labels cannot be used: {error}")
        return None
    return replace(found, estimate=replace(found.estimate, quantity="the win rate of B by human labels"))
