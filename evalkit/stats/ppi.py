"""A judge's many scores, put right by few human labels: prediction-powered inference, and Rogan and Gladen's rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import Floats, check_level, vector
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes, cluster_degrees, cluster_error
from evalkit.stats.results import Estimate, Result

POPULATION: Final = "items like these, of which the labelled ones are a random sample"

FEW_LABELS: Final = 50
"""Below this many labelled units the interval comes with a warning."""


FEW_ERRORS: Final = 5
"""With fewer errors of the judge among the labelled items the interval comes with a warning."""


@dataclass(frozen=True)
class Corrected(Result):
    """A mean of human labels, estimated with the help of a judge.

    Attributes
    ----------
    estimate
        The prediction-powered estimate.
    classical
        From the labels alone.
    judge
        The judge's mean over all items, uncorrected, without an interval: none is honest.
    weight
        lambda: how much the judge's scores are used, from 0 (not) to 1.
    correlation
        Of label and judge over the labelled items; None where one has no variance.
    effective_labels
        Labels that would give the classical estimate the same standard error.
    n_labelled, n_unlabelled
        Items with a label, and items with the judge's score only.
    """

    estimate: Estimate
    classical: Estimate
    judge: float
    weight: float
    correlation: float | None
    effective_labels: float | None
    n_labelled: int
    n_unlabelled: int

    def __str__(self) -> str:
        worth = "" if self.effective_labels is None else f", worth {self.effective_labels:.0f} labels"
        return f"{self.estimate} [{self.n_labelled} labels{worth}, lambda {self.weight:.3f}]"

    def explain(self) -> str:
        """Say what was found, and what the judge added to the labels."""
        if self.effective_labels is None:
            return self.estimate.explain()
        gain = self.effective_labels / self.n_labelled - 1
        return (
            f"{self.estimate.explain()} The judge's {self.n_unlabelled} further scores make the {self.n_labelled}"
            f" labels worth {self.effective_labels:.0f} ({gain:+.0%}); its own mean, uncorrected, is {self.judge:.4g}."
        )


def prediction_powered_mean(
    labels: npt.ArrayLike,
    judge_labelled: npt.ArrayLike,
    judge_unlabelled: npt.ArrayLike,
    *,
    weight: float | None = None,
    cluster_labelled: Sequence[Any] | None = None,
    cluster_unlabelled: Sequence[Any] | None = None,
    confidence_level: float = 0.95,
) -> Corrected:
    """Estimate the mean label of all items from few labels and the judge's scores of all (PPI++).

    Angelopoulos, Duchi and Zrnic 2023 (arXiv:2311.01453): lambda mean(f_unlabelled) + mean(y - lambda f), with variance
    lambda^2 var(f) / N + var(y - lambda f) / n. The lambda that makes it least, Cov(y, f) / ((1 + n / N) Var(f)), kept
    within 0 and 1, is used unless one is given; then the estimate is never much worse than the labels alone. Both
    variances are CR2 with clusters, with Welch and Satterthwaite's degrees of freedom. With lambda 0 this is the
    classical mean of the labels with its t interval.

    Where labels and scores are 0 and 1 (or differences -1, 0, 1) and items independent, the interval is that of the
    data with one more labelled item of each kind on which judge and label differ, as Bonett and Price's for two models:
    a judge that is rarely wrong on the labelled items may be wrong on others. Without it, a 95% interval from 50 labels
    of which 90% are positive covers 85 to 91%, with it 95 to 98%.

    The labelled items must be a random sample of all: labels of the hard, the odd or the flagged ones correct for
    those.

    Parameters
    ----------
    labels
        Shape (n,): human labels, or differences of labels of two models.
    judge_labelled, judge_unlabelled
        Shapes (n,) and (N,): the judge's scores, or differences of them, of the same items and of all others.
    weight
        lambda from 0 to 1, fixed beforehand; None takes the best.
    cluster_labelled, cluster_unlabelled
        Lengths n and N: the source that an item shares with others.
    confidence_level
        Of the interval.

    Raises
    ------
    InputError
        The lengths differ, a number is not finite, or there are fewer than two labels, two unlabelled scores, or five
        clusters of either.
    SpecError
        `weight` is not from 0 to 1, or the level is not between 0 and 1.
    """
    return _corrected(
        vector(labels, "labels"),
        vector(judge_labelled, "judge's scores of labelled items"),
        vector(judge_unlabelled, "judge's scores of unlabelled items"),
        differences=False,
        weight=weight,
        cluster_labelled=cluster_labelled,
        cluster_unlabelled=cluster_unlabelled,
        confidence_level=confidence_level,
    )


def prediction_powered_difference(
    labels_a: npt.ArrayLike,
    labels_b: npt.ArrayLike,
    judge_labelled_a: npt.ArrayLike,
    judge_labelled_b: npt.ArrayLike,
    judge_unlabelled_a: npt.ArrayLike,
    judge_unlabelled_b: npt.ArrayLike,
    **options: Any,
) -> Corrected:
    """Estimate the mean of B - A, item by item: `prediction_powered_mean` of the differences.

    Pairing comes first and correction second, so a judge that is biased alike for both models costs nothing.

    Parameters
    ----------
    labels_a, labels_b, judge_labelled_a, judge_labelled_b
        Shape (n,), of the same items.
    judge_unlabelled_a, judge_unlabelled_b
        Shape (N,), of the same items.
    options
        As in `prediction_powered_mean`.
    """

    def difference(a: npt.ArrayLike, b: npt.ArrayLike, what: str) -> Floats:
        first = vector(a, f"{what} of A")
        return vector(b, f"{what} of B", length=len(first)) - first

    return _corrected(
        difference(labels_a, labels_b, "labels"),
        difference(judge_labelled_a, judge_labelled_b, "judge's scores of labelled items"),
        difference(judge_unlabelled_a, judge_unlabelled_b, "judge's scores of unlabelled items"),
        differences=True,
        **options,
    )


def _corrected(
    y: Floats,
    f: Floats,
    others: Floats,
    *,
    differences: bool,
    weight: float | None = None,
    cluster_labelled: Sequence[Any] | None = None,
    cluster_unlabelled: Sequence[Any] | None = None,
    confidence_level: float = 0.95,
) -> Corrected:
    check_level(confidence_level)
    vector(f, "judge's scores of labelled items", length=len(y))
    if weight is not None and not 0 <= weight <= 1:
        raise SpecError(f"{weight} is not from 0 to 1", where="weight", do="Leave it out, or give 0 for labels alone")
    n, N = len(y), len(others)
    sides = [_Side(n, cluster_labelled, "labels"), _Side(N, cluster_unlabelled, "unlabelled scores")]
    chosen = _best_weight(y, f, others) if weight is None else float(weight)
    clustered = sides[0].clustered or sides[1].clustered
    more = None if clustered else _one_more(y, f, differences)
    warnings = []
    if sides[0].n_units < FEW_LABELS:
        warnings.append(f"only {sides[0].n_units} labelled {'clusters' if clustered else 'items'}: a rough interval")
    n_errors = int(np.sum(y != f))
    if chosen > 0 and n_errors < FEW_ERRORS:
        warnings.append(f"the judge erred on only {n_errors} labelled items: how often it errs is hardly known")
    cr2 = ", clusters CR2" if clustered else ", one more error of each kind" if more else ""
    powered = _t_estimate(y, f, others, chosen, sides, confidence_level, more)
    classical = _t_estimate(y, f, others, 0.0, sides, confidence_level, more)
    errors = powered.standard_error, classical.standard_error
    both_vary = np.ptp(y) > 0 and np.ptp(f) > 0
    return Corrected(
        estimate=replace(
            powered,
            method=f"prediction-powered mean (PPI++){cr2}",
            n_items=n + N,
            warnings=(*warnings, *powered.warnings),
        ),
        classical=replace(
            classical, method=f"mean of labels, t{cr2}", n_items=n, warnings=(*warnings, *classical.warnings)
        ),
        judge=float(np.concatenate([f, others]).mean()),
        weight=chosen,
        correlation=float(np.corrcoef(y, f)[0, 1]) if both_vary else None,
        effective_labels=n * (errors[1] / errors[0]) ** 2 if errors[0] and errors[1] is not None else None,
        n_labelled=n,
        n_unlabelled=N,
    )


class _Side:
    """The labelled or the unlabelled items, with their clusters."""

    def __init__(self, n: int, cluster: Sequence[Any] | None, what: str) -> None:
        self.codes, self.sizes = cluster_codes(cluster, n)
        self.n_units = len(self.sizes)
        self.clustered = self.n_units < n
        least = MIN_CLUSTERS if self.clustered else 2
        if self.n_units < least:
            units = "clusters" if self.clustered else "items"
            raise InputError(f"{self.n_units} {units} are too few", where=what, do=f"Give at least {least}")
        self.df = cluster_degrees(self.sizes)

    def variance(self, values: Floats) -> float:
        """CR2 variance of the mean."""
        return cluster_error(values, self.codes, self.sizes) ** 2


def _best_weight(y: Floats, f: Floats, others: Floats) -> float:
    spread = float(np.concatenate([f, others]).var(ddof=1))
    if spread == 0:
        return 0.0
    covariance = float(((y - y.mean()) * (f - f.mean())).sum()) / (len(y) - 1)
    return min(1.0, max(0.0, covariance / ((1 + len(y) / len(others)) * spread)))


def _one_more(y: Floats, f: Floats, differences: bool) -> tuple[tuple[float, float], ...] | None:
    """Labels and scores of the two further items, where both are counted outcomes: 0 and 1, or differences of them."""
    both = np.concatenate([y, f])
    if not np.isin(both, (-1.0, 0.0, 1.0)).all():
        return None
    return ((1.0, 0.0), (-1.0, 0.0)) if differences or both.min() < 0 else ((1.0, 0.0), (0.0, 1.0))


def _t_estimate(
    y: Floats,
    f: Floats,
    others: Floats,
    weight: float,
    sides: Sequence[_Side],
    confidence_level: float,
    more: tuple[tuple[float, float], ...] | None,
) -> Estimate:
    residual = y - weight * f
    mean, centre = weight * float(others.mean()) + float(residual.mean()), 0.0
    labelled, df_labelled = sides[0].variance(residual), sides[0].df
    if more is not None:
        smoothed = np.concatenate([residual, [label - weight * score for label, score in more]])
        centre = float(smoothed.mean() - residual.mean())
        labelled, df_labelled = float(smoothed.var(ddof=1)) / len(smoothed), len(smoothed) - 1.0
    unlabelled = weight**2 * sides[1].variance(others)
    total = labelled + unlabelled
    low = high = df = None
    if total > 0:
        df = total**2 / (labelled**2 / df_labelled + unlabelled**2 / sides[1].df)
        half = float(stats.t.ppf((1 + confidence_level) / 2, df)) * math.sqrt(total)
        low, high = mean + centre - half, mean + centre + half
    return Estimate(
        estimate=mean,
        low=low,
        high=high,
        confidence_level=confidence_level,
        method="t",
        population=POPULATION,
        unit="labelled clusters" if any(side.clustered for side in sides) else "labelled items",
        n=sides[0].n_units,
        n_items=len(y),
        standard_error=math.sqrt(total),
        df=df,
        warnings=() if total > 0 else ("all labels are equal, so their spread says nothing about other items",),
        quantity="the mean label",
    )


def rogan_gladen(
    positive: int,
    n: int,
    *,
    true_positive: int,
    n_positive: int,
    true_negative: int,
    n_negative: int,
    confidence_level: float = 0.95,
) -> Estimate:
    """Correct a judge's rate of positive verdicts by its sensitivity and specificity.

    (rate + specificity - 1) / (sensitivity + specificity - 1) (Rogan and Gladen 1978, Am. J. Epidemiology 107:71), kept
    within 0 and 1. The interval is that of Lang and Reiczigel (2014, Preventive Veterinary Medicine 113:13), which
    allows for the errors of all three rates. A judge that is hardly better than chance, sensitivity + specificity near
    1, makes both useless: where the sum is not surely above 1, there is no interval.

    Sensitivity and specificity must hold for the items at hand. Where labels are a random sample of these items,
    `prediction_powered_mean` needs no such assumption.

    Parameters
    ----------
    positive, n
        Positive verdicts of the judge, and all its verdicts, on items without labels.
    true_positive, n_positive
        Positive verdicts among items that are labelled positive, and these items.
    true_negative, n_negative
        Negative verdicts among items that are labelled negative, and these items.
    confidence_level
        Of the interval.

    Raises
    ------
    InputError
        A count is not within its total, or the judge is not better than chance on the labelled items.
    """
    check_level(confidence_level)
    for count, total, what in (
        (positive, n, "positive"),
        (true_positive, n_positive, "true_positive"),
        (true_negative, n_negative, "true_negative"),
    ):
        if not 0 <= count <= total or total < 1:
            raise InputError(f"{count} of {total}", where=what, do="Give counts of at least one item")
    rate, sensitivity, specificity = positive / n, true_positive / n_positive, true_negative / n_negative
    informed = sensitivity + specificity - 1
    if informed <= 0:
        raise InputError(
            f"sensitivity {sensitivity:.3f} and specificity {specificity:.3f} are no better than chance",
            where="judge",
            do="Use another judge, or labels alone",
        )
    z = float(stats.norm.ppf((1 + confidence_level) / 2))
    # Lang and Reiczigel: Agresti and Coull's rate, and one more item right and wrong for either of the others.
    N, n1, n0 = n + z**2, n_positive + 2, n_negative + 2
    p, se, sp = (positive + z**2 / 2) / N, (true_positive + 1) / n1, (true_negative + 1) / n0
    slope = se + sp - 1
    prevalence = (p + sp - 1) / slope
    spread = (se * (1 - se) / n1, sp * (1 - sp) / n0)
    shift = 2 * z**2 * (prevalence * spread[0] - (1 - prevalence) * spread[1])
    error = math.sqrt(p * (1 - p) / N + prevalence**2 * spread[0] + (1 - prevalence) ** 2 * spread[1]) / abs(slope)
    warnings: tuple[str, ...] = ()
    low: float | None
    high: float | None
    if slope - z * math.sqrt(sum(spread)) <= 0:
        low = high = None
        warnings = ("the judge is not surely better than chance: no interval",)
    else:
        low, high = (min(1.0, max(0.0, prevalence + shift + side * z * error)) for side in (-1, 1))
    raw = (rate + specificity - 1) / informed
    if not 0 <= raw <= 1:
        warnings = (*warnings, f"the corrected rate {raw:.4f} lies outside 0 to 1 and is cut off")
    return Estimate(
        estimate=min(1.0, max(0.0, raw)),
        low=low,
        high=high,
        confidence_level=confidence_level,
        method="Rogan-Gladen, interval of Lang and Reiczigel",
        population="items like these, on which the judge errs as on the labelled ones",
        unit="items",
        n=n,
        n_items=n + n_positive + n_negative,
        standard_error=error,
        warnings=warnings,
        quantity="the true rate of positives",
    )
