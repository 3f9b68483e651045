"""Verbosity: does the judge prefer the longer, or the more decorated, answer, and who wins at equal length?

A quasi-binomial logistic regression of outcomes in [0, 1] (wins, ties, probabilities) with the sandwich covariance over
questions (Papke and Wooldridge 1996, J. Applied Econometrics 11:619). Conditioning on length is not harmless: where
better answers are longer for good reasons, a part of the quality is taken out with the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy import special, stats

from evalkit.judges.pairs import BA, Floats, Ints, Pairs, clusters_or_none
from evalkit.judges.position import POPULATION, mended
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes, t_interval
from evalkit.stats.means import mean_score
from evalkit.stats.results import Estimate, Result

CHARACTERS: Final = 100.0
FEW: Final = 30
"""With fewer questions there is no model of length."""

_DIVERGED: Final = 25.0


@dataclass(frozen=True)
class LengthControlled(Result):
    """Who wins where both answers are equally long (and equally decorated), of one pair of models.

    Attributes
    ----------
    model_a, model_b
        The models.
    win_rate
        Of B at equal length, averaged over both orders: sigma(theta) of AlpacaEval's model (Dubois et al. 2024,
        arXiv:2404.04475, equation 1), logit P(B wins) = theta + phi tanh(d / sd(d)), d the difference in
        characters, here without a penalty and without the per-instruction term, whose values come from all models of
        that leaderboard.
    length
        phi.
    position
        Log odds that the second-shown answer gains by being shown first; None where no order is known.
    styles
        Log odds of each mark of style, (b - a) / (b + a); empty where they are not known.
    """

    model_a: str
    model_b: str
    win_rate: Estimate
    length: Estimate
    position: Estimate | None
    styles: tuple[Estimate, ...] = ()

    def __str__(self) -> str:
        return f"{self.model_b} against {self.model_a} at equal length: {self.win_rate}"


@dataclass(frozen=True)
class Verbosity(Result):
    """What length does to a judge's verdicts, over all its pairs.

    Attributes
    ----------
    n_known
        Pairs whose lengths are known and differ.
    prefers_longer
        Share of them that the longer answer wins, ties half.
    per_100_characters
        Change of the win rate (proportion) for 100 characters more, the average marginal effect; between models this is
        given their strengths.
    beyond_humans
        Preference for the longer answer less that of humans on the same pairs; None without labels.
    controlled
        Of each pair of models with enough questions.
    warnings
        What to know.
    """

    n_known: int
    prefers_longer: Estimate | None
    per_100_characters: Estimate | None
    beyond_humans: Estimate | None
    controlled: tuple[LengthControlled, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.prefers_longer is None:
            return "verbosity: the lengths are not known"
        return f"verbosity: the longer answer wins {100 * self.prefers_longer.estimate:.1f}% of {self.n_known} pairs"


def verbosity(pairs: Pairs, *, confidence_level: float = 0.95) -> Verbosity:
    """Measure what length does, from all pairs with a verdict and known lengths.

    Parameters
    ----------
    pairs
        One judge's pairs.
    confidence_level
        Of each interval.
    """
    warnings: list[str] = []
    known = ~np.isnan(pairs.lengths).any(axis=1) & ~np.isnan(pairs.win)
    if not known.any():
        return Verbosity(0, None, None, None, (), ("the lengths of the answers are not known",))
    if missing := int((~known).sum()):
        warnings.append(f"{missing} pairs without a verdict or without lengths are left out")
    of = pairs.take(known)
    gap = of.lengths[:, 1] - of.lengths[:, 0]
    differ = gap != 0
    longer = beyond = per_100 = None
    if differ.any():
        wins = np.where(gap > 0, of.win, 1 - of.win)[differ]
        longer = mean_score(wins, cluster=clusters_or_none(of.cluster[differ]), confidence_level=confidence_level)
        longer = _about(mended(longer, wins, (0.0, 1.0)), "the share of pairs that the longer answer wins")
        labelled = differ & ~np.isnan(of.label)
        if labelled.sum() >= 2:
            human = np.where(gap > 0, of.label, 1 - of.label)[labelled]
            judge = np.where(gap > 0, of.win, 1 - of.win)[labelled]
            codes, sizes = cluster_codes(clusters_or_none(of.cluster[labelled]), int(labelled.sum()))
            beyond = t_interval(judge - human, codes, sizes, confidence_level=confidence_level)
            beyond = _about(beyond, "the preference for the longer answer beyond that of humans")
    if differ.sum() >= FEW and len(np.unique(of.cluster)) >= MIN_CLUSTERS:
        per_100 = _marginal(of, gap, confidence_level)
        if per_100 is None:
            warnings.append("the effect of length has no finite estimate: length separates wins from losses")
    controlled = []
    for a, b in of.models:
        one = of.take((of.model_a == a) & (of.model_b == b))
        if len(np.unique(one.cluster)) >= FEW and np.ptp(one.lengths[:, 1] - one.lengths[:, 0]) > 0:
            found = length_controlled(one, confidence_level=confidence_level)
            if found is None:
                warnings.append(f"{b} against {a}: no length-controlled win rate, as length separates wins from losses")
            else:
                controlled.append(found)
    return Verbosity(int(differ.sum()), longer, per_100, beyond, tuple(controlled), tuple(warnings))


def length_controlled(pairs: Pairs, *, confidence_level: float = 0.95) -> LengthControlled | None:
    """Estimate the win rate of B at equal length and style; None where the likelihood has no maximum.

    Parameters
    ----------
    pairs
        Of one pair of models, all with a verdict and known lengths.
    confidence_level
        Of each interval, from the delta method on the log-odds scale with the sandwich covariance over questions.
    """
    rows = _Rows(pairs)
    gap = pairs.lengths[:, 1] - pairs.lengths[:, 0]
    columns = [np.ones(len(rows.pair)), np.tanh(gap / gap.std())[rows.pair]]
    names = ["theta", "length"]
    if rows.has_position:
        columns.append(rows.position)
        names.append("position")
    for name, values in pairs.styles.items():
        total = values.sum(axis=1)
        if np.isnan(values).any() or not np.ptp(values[:, 1] - values[:, 0]):
            continue
        columns.append(
            (np.divide(values[:, 1] - values[:, 0], total, out=np.zeros(len(pairs)), where=total > 0))[rows.pair]
        )
        names.append(name)
    fitted = fit_logistic(np.column_stack(columns), rows.outcome, rows.cluster, weights=rows.weight)
    if fitted is None:
        return None
    beta, V, n_units = fitted

    def coefficient(at: int, what: str) -> Estimate:
        return _estimate(beta[at], float(np.sqrt(V[at, at])), n_units, len(pairs), confidence_level, what)

    by_name = {name: number for number, name in enumerate(names)}
    on_logits = coefficient(0, "the win rate of B at equal length")
    assert on_logits.low is not None and on_logits.high is not None
    rate = float(special.expit(beta[0]))
    win_rate = Estimate(
        estimate=rate,
        low=float(special.expit(on_logits.low)),
        high=float(special.expit(on_logits.high)),
        confidence_level=confidence_level,
        method="logistic, tanh of standardised length, sandwich over questions",
        population=POPULATION,
        unit="questions",
        n=n_units,
        n_items=len(pairs),
        standard_error=rate * (1 - rate) * float(np.sqrt(V[0, 0])),
        df=n_units - 1.0,
        quantity="the win rate of B at equal length",
    )
    return LengthControlled(
        model_a=str(pairs.model_a[0]),
        model_b=str(pairs.model_b[0]),
        win_rate=win_rate,
        length=coefficient(1, "the log odds for each unit of tanh(length difference / its SD)"),
        position=coefficient(by_name["position"], "the log odds of being shown first")
        if "position" in by_name
        else None,
        styles=tuple(
            coefficient(at, f"the log odds of {name}, from all of them in A to all in B")
            for name, at in by_name.items()
            if name in pairs.styles
        ),
    )


class _Rows:
    """One row for each pair and order with a verdict; a pair's rows weigh one together."""

    def __init__(self, pairs: Pairs) -> None:
        self.pair, order = np.nonzero(pairs.n_calls > 0)
        self.outcome: Floats = pairs.preference[self.pair, order]
        self.cluster: Ints = pairs.cluster[self.pair]
        # What B gains by being shown first: +1/2 where it is, -1/2 where A is, 0 where nobody knows.
        self.position: Floats = np.where(order == BA, 0.5, np.where(order == 0, -0.5, 0.0))
        self.weight: Floats = 1.0 / np.bincount(self.pair, minlength=len(pairs))[self.pair]
        self.has_position = bool(np.ptp(self.position) > 0)


def _marginal(pairs: Pairs, gap: Floats, confidence_level: float) -> Estimate | None:
    """Average marginal effect of 100 characters, with a strength for each model and the position as covariates."""
    rows = _Rows(pairs)
    names = sorted({*pairs.model_a.tolist(), *pairs.model_b.tolist()})
    number = {name: at for at, name in enumerate(names)}
    strength = np.zeros((len(pairs), len(names)))
    every = np.arange(len(pairs))
    strength[every, [number[one] for one in pairs.model_b]] += 1
    strength[every, [number[one] for one in pairs.model_a]] -= 1
    columns = [gap[rows.pair] / CHARACTERS, *strength[rows.pair, 1:].T]
    if rows.has_position:
        columns.append(rows.position)
    X = np.column_stack(columns)
    if np.linalg.matrix_rank(X) < X.shape[1]:
        return None
    fitted = fit_logistic(X, rows.outcome, rows.cluster, weights=rows.weight)
    if fitted is None:
        return None
    beta, V, n_units = fitted
    p = special.expit(X @ beta)
    slope, weight = p * (1 - p), rows.weight / rows.weight.sum()
    effect = beta[0] * float(weight @ slope)
    gradient = beta[0] * ((weight * slope * (1 - 2 * p)) @ X)
    gradient[0] += float(weight @ slope)
    error = float(np.sqrt(gradient @ V @ gradient))
    return _estimate(effect, error, n_units, len(pairs), confidence_level, "the win rate gained by 100 characters more")


def fit_logistic(
    X: Floats, y: Floats, cluster: Ints, *, weights: Floats | None = None
) -> tuple[Floats, Floats, int] | None:
    """Fit by Newton's method; return coefficients, sandwich covariance over clusters (times G / (G - 1)), and G.

    None where the likelihood has no maximum, or the columns cannot be told apart.

    Parameters
    ----------
    X
        Shape (n, p).
    y
        Shape (n,), in [0, 1].
    cluster
        Shape (n,), the unit of independence as a number.
    weights
        Shape (n,); None weighs all alike.
    """
    w = np.ones(len(y)) if weights is None else weights
    codes, sizes = cluster_codes(cluster, len(y))  # type: ignore[arg-type]
    beta = np.zeros(X.shape[1])
    for _ in range(50):
        p = special.expit(X @ beta)
        H = X.T @ (X * (w * p * (1 - p))[:, None])
        try:
            step = np.linalg.solve(H, X.T @ (w * (y - p)))
        except np.linalg.LinAlgError:
            return None
        # Steps of at most 2 on the log-odds scale keep Newton from overshooting.
        beta = beta + step / max(1.0, float(np.abs(X @ step).max()) / 2)
        if np.abs(X @ beta).max() > _DIVERGED:
            return None
        if np.abs(step).max() < 1e-9:
            break
    else:
        return None
    n_units = len(sizes)
    if n_units < 2:
        return None
    p = special.expit(X @ beta)
    H = X.T @ (X * (w * p * (1 - p))[:, None])
    scores = np.zeros((n_units, X.shape[1]))
    np.add.at(scores, codes, X * (w * (y - p))[:, None])
    inverse = np.linalg.inv(H)
    return beta, inverse @ (scores.T @ scores) @ inverse * n_units / (n_units - 1), n_units


def _estimate(
    value: float, error: float, n_units: int, n_items: int, confidence_level: float, quantity: str
) -> Estimate:
    half = float(stats.t.ppf((1 + confidence_level) / 2, n_units - 1)) * error
    return Estimate(
        estimate=float(value),
        low=float(value - half),
        high=float(value + half),
        confidence_level=confidence_level,
        method="logistic, sandwich over questions",
        population=POPULATION,
        unit="questions",
        n=n_units,
        n_items=n_items,
        standard_error=error,
        df=n_units - 1.0,
        quantity=quantity,
    )


def _about(found: Estimate, quantity: str) -> Estimate:
    return replace(found, quantity=quantity, population=POPULATION)


def win_rates(preferences: Sequence[float | None]) -> tuple[float, float, int]:
    """AlpacaEval's leaderboard row: win rate and its standard error in per cent, and the number of verdicts.

    Preferences are 1 (the baseline) to 2 (the model), 0 a draw; missing ones are left out.
    """
    values = np.array([1.5 if one == 0 else one for one in preferences if one is not None], dtype=float) - 1
    return float(values.mean() * 100), float(values.std(ddof=1) / np.sqrt(len(values)) * 100), len(values)
