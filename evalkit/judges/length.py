"""Verbosity: does the judge prefer the longer, or the more decorated, answer, and who wins at equal length?

A quasi-binomial logistic regression of outcomes in [0, 1] (wins, ties, probabilities) with the sandwich covariance over
questions (Papke and Wooldridge 1996, J. Applied Econometrics 11:619). Conditioning on length is not harmless: where
better answers are longer for good reasons, a part of the quality is taken out with the length.
"""

from __future__ import annotations

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

FEW_MODELS: Final = 5
"""With fewer other models on a question, its difficulty is not estimated."""

_DIVERGED: Final = 25.0
_ROUNDS: Final = 100


@dataclass(frozen=True)
class LengthControlled(Result):
    """Who wins where both answers are equally long (and equally decorated), of one pair of models.

    Attributes
    ----------
    model_a, model_b
        The models.
    win_rate
        Of B at equal length, over all questions x and both orders s: mean of sigma(theta + psi gamma_x + delta s), s
        1/2 and -1/2, of AlpacaEval's model (Dubois et al. 2024, arXiv:2404.04475, equation 1), logit P(B wins) =
        theta + phi tanh(d / sd(d)) + psi gamma_x, with the position besides; d is the difference in characters; here
        without a penalty. The difficulties gamma_x are those of `difficulties`; without them that term is left out, as
        is the position's where no order is known. Outcomes are the judge's probabilities where it tells them.
    length
        phi.
    difficulty
        psi, of difficulties with variance 1; None where they are not known.
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
    difficulty: Estimate | None = None

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
        why = "no pair has a verdict" if np.isnan(pairs.win).all() else "the lengths of the answers are not known"
        return Verbosity(0, None, None, None, (), (why,))
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
        effect = _marginal(of, gap, confidence_level)
        if isinstance(effect, str):
            warnings.append(f"the effect of length has no finite estimate: {effect}")
        else:
            per_100 = effect
    controlled = _controlled(of, warnings, confidence_level)
    return Verbosity(int(differ.sum()), longer, per_100, beyond, controlled, tuple(warnings))


def _controlled(of: Pairs, warnings: list[str], confidence_level: float) -> tuple[LengthControlled, ...]:
    """The win rate at equal length of each pair of models, of pairs with a verdict and known lengths."""
    controlled = []
    gamma = difficulties(of)
    few = 0
    for a, b in of.models:
        # As in the other win rates, answers that are the same text are no evidence.
        mine = (of.model_a == a) & (of.model_b == b) & ~of.identical
        one = of.take(mine)
        if len(np.unique(one.cluster)) < FEW:
            few += 1
        elif np.ptp(one.lengths[:, 1] - one.lengths[:, 0]) > 0:
            found = length_controlled(one, gamma[mine], confidence_level=confidence_level)
            if found is None:
                warnings.append(f"{b} against {a}: no length-controlled win rate, as length separates wins from losses")
            else:
                controlled.append(found)
    if few:
        n_models = len(of.models)
        warnings.append(
            f"no win rate at equal length for {few} of {n_models} pairs of models: fewer than {FEW} questions"
        )
    return tuple(controlled)


def difficulties(pairs: Pairs) -> Floats:
    """How much easier than others each pair's question is to win for model B, judged by the other models B.

    Of all models B against the same A, logit P(B wins) = theta_m + phi_m tanh(d / sd_m(d)) + gamma_x with a standard
    normal prior on gamma_x, by alternating Newton steps; then a model's own verdicts are taken out of gamma_x by one
    more step, so that they do not explain themselves. AlpacaEval has its gamma_x from all models of its leaderboard.

    Parameters
    ----------
    pairs
        All with a verdict and known lengths.

    Returns
    -------
    Floats
        Shape (n,): NaN where a question has fewer than `FEW_MODELS` other models.
    """
    found = np.full(len(pairs), np.nan)
    for baseline in dict.fromkeys(pairs.model_a.tolist()):
        of = np.flatnonzero(pairs.model_a == baseline)
        x, question = np.unique(pairs.cluster[of], return_inverse=True)
        model = np.unique(pairs.model_b[of].astype(str), return_inverse=True)[1]
        n_models, n_questions = int(model.max()) + 1, len(x)
        # Cells of a question and a model; a pair of models may have been judged on a question more than once.
        cells, cell = np.unique(question * n_models + model, return_inverse=True)
        enough = np.bincount(cells // n_models, minlength=n_questions)[question] > FEW_MODELS
        if enough.any():
            gap = pairs.lengths[of, 1] - pairs.lengths[of, 0]
            sd = np.array([gap[model == one].std() for one in range(n_models)])[model]
            length = np.tanh(np.divide(gap, sd, out=np.zeros(len(of)), where=sd > 0))
            gamma = _joint(pairs.soft[of], length, model, question, cell)
            found[of] = np.where(enough, gamma, np.nan)
    return found


def _joint(won: Floats, length: Floats, model: Ints, question: Ints, cell: Ints) -> Floats:
    theta, phi = np.zeros(int(model.max()) + 1), np.zeros(int(model.max()) + 1)
    gamma = np.zeros(int(question.max()) + 1)
    n = len(theta)
    for _ in range(_ROUNDS):
        before = gamma
        for _ in range(2):
            p = special.expit(theta[model] + phi[model] * length + gamma[question])
            w, left = p * (1 - p), won - p
            # A weak prior keeps models that win all or nothing finite.
            h00 = np.bincount(model, w, n) + 0.01
            h01 = np.bincount(model, w * length, n)
            h11 = np.bincount(model, w * length**2, n) + 0.01
            g0 = np.bincount(model, left, n) - 0.01 * theta
            g1 = np.bincount(model, left * length, n) - 0.01 * phi
            size = h00 * h11 - h01**2
            theta = theta + np.clip((h11 * g0 - h01 * g1) / size, -1, 1)
            phi = phi + np.clip((h00 * g1 - h01 * g0) / size, -1, 1)
        p = special.expit(theta[model] + phi[model] * length + gamma[question])
        w, left = p * (1 - p), won - p
        information = np.bincount(question, w, len(gamma)) + 1
        gamma = gamma + (np.bincount(question, left, len(gamma)) - gamma) / information
        gamma = gamma - gamma.mean()
        if np.abs(gamma - before).max() < 1e-6:
            break
    own, own_information = np.bincount(cell, left)[cell], np.bincount(cell, w)[cell]
    found: Floats = gamma[question] - own / (information[question] - own_information)
    return found


def length_controlled(
    pairs: Pairs, difficulty: Floats | None = None, *, confidence_level: float = 0.95
) -> LengthControlled | None:
    """Estimate the win rate of B at equal length and style; None where the likelihood has no maximum.

    Parameters
    ----------
    pairs
        Of one pair of models, all with a verdict and known lengths.
    difficulty
        Shape (n,), of `difficulties`; left out where any is NaN. Their own error is not in the interval.
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
    gamma = None
    if difficulty is not None and not np.isnan(difficulty).any() and np.ptp(difficulty) > 0:
        gamma = ((difficulty - difficulty.mean()) / difficulty.std())[rows.pair]
        columns.append(gamma)
        names.append("difficulty")
    for name, values in pairs.styles.items():
        total = values.sum(axis=1)
        if np.isnan(values).any() or not np.ptp(values[:, 1] - values[:, 0]):
            continue
        columns.append(
            (np.divide(values[:, 1] - values[:, 0], total, out=np.zeros(len(pairs)), where=total > 0))[rows.pair]
        )
        names.append(name)
    X = np.column_stack(columns)
    fitted = fit_logistic(X, rows.outcome, rows.cluster, weights=rows.weight)
    if fitted is None:
        return None
    beta, V, n_units = fitted.beta, fitted.covariance, fitted.n_units

    def coefficient(at: int, what: str) -> Estimate:
        return _estimate(beta[at], float(np.sqrt(V[at, at])), n_units, len(pairs), confidence_level, what)

    by_name = {name: number for number, name in enumerate(names)}
    # Every row at equal length and style, in either order.
    even = np.where(np.isin(names, ["theta", "difficulty"]), X, 0.0)
    orders = [even.copy(), even.copy()]
    if "position" in by_name:
        orders[0][:, by_name["position"]], orders[1][:, by_name["position"]] = 0.5, -0.5
    p = [special.expit(one @ beta) for one in orders]
    gradients = (p[0] * (1 - p[0]))[:, None] * orders[0] + (p[1] * (1 - p[1]))[:, None] * orders[1]
    rate, error = fitted.mean((p[0] + p[1]) / 2, gradients / 2)
    # By the delta method on the scale of log odds.
    on_logits = _estimate(
        float(special.logit(rate)), error / (rate * (1 - rate)), n_units, len(pairs), confidence_level, "its log odds"
    )
    assert on_logits.low is not None and on_logits.high is not None
    win_rate = Estimate(
        estimate=rate,
        low=float(special.expit(on_logits.low)),
        high=float(special.expit(on_logits.high)),
        confidence_level=confidence_level,
        method="logistic, tanh of standardised length"
        + (", difficulty of the question" if gamma is not None else "")
        + ", sandwich over questions",
        population=POPULATION,
        unit="questions",
        n=n_units,
        n_items=len(pairs),
        standard_error=error,
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
        difficulty=coefficient(by_name["difficulty"], "the log odds of an easier question, for one SD")
        if gamma is not None
        else None,
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


def _marginal(pairs: Pairs, gap: Floats, confidence_level: float) -> Estimate | str:
    """Average marginal effect of 100 characters, with a strength for each model and the position as covariates.

    Where there is none, why.
    """
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
        return "it cannot be told from the models' strengths (groups of models that never met, or alike in length)"
    fitted = fit_logistic(X, rows.outcome, rows.cluster, weights=rows.weight)
    if fitted is None:
        return "length separates wins from losses"
    beta = fitted.beta
    p = special.expit(X @ beta)
    slope = p * (1 - p)
    gradients = beta[0] * (slope * (1 - 2 * p))[:, None] * X
    gradients[:, 0] += slope
    effect, error = fitted.mean(beta[0] * slope, gradients)
    return _estimate(
        effect, error, fitted.n_units, len(pairs), confidence_level, "the win rate gained by 100 characters more"
    )


@dataclass(frozen=True)
class Fit:
    """A weighted logistic fit.

    Attributes
    ----------
    beta
        Shape (p,).
    influence
        Shape (G, p): what each cluster adds to beta, H^-1 times its score.
    codes, weights
        Shape (n,): each row's cluster and weight.
    """

    beta: Floats
    influence: Floats
    codes: Ints
    weights: Floats

    @property
    def n_units(self) -> int:
        """Clusters, G."""
        return len(self.influence)

    @property
    def covariance(self) -> Floats:
        """The sandwich over clusters, times G / (G - 1)."""
        found: Floats = self.influence.T @ self.influence * self.n_units / (self.n_units - 1)
        return found

    def mean(self, values: Floats, gradients: Floats) -> tuple[float, float]:
        """Return the weighted mean of a function of beta over the rows, and its error.

        The rows are a sample, too: each cluster adds what its rows are off the mean, besides its part in beta.

        Parameters
        ----------
        values
            Shape (n,), at beta.
        gradients
            Shape (n, p), with respect to beta.
        """
        share = self.weights / self.weights.sum()
        mean = float(share @ values)
        own = np.bincount(self.codes, share * (values - mean), self.n_units)
        parts = self.influence @ (share @ gradients) + own
        return mean, float(np.sqrt(parts @ parts * self.n_units / (self.n_units - 1)))


def fit_logistic(X: Floats, y: Floats, cluster: Ints, *, weights: Floats | None = None) -> Fit | None:
    """Fit by Newton's method.

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
    return Fit(beta, scores @ np.linalg.inv(H), codes, w)


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
