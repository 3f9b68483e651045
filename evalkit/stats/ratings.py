"""Ratings of models from pairwise comparisons: Bradley-Terry with ties, covariates, clusters, and sets of ranks.

The strength of a model is on the log-odds scale, and the strengths add up to zero: sigma(strength_i - strength_j) is
the chance that i beats j, where all covariates are equal. 400 / log(10) times a strength is on Elo's scale.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse, special, stats
from scipy.sparse import csgraph

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import Floats, Ints, check_level, codes_of, vector
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes
from evalkit.stats.results import Estimate, Result

if TYPE_CHECKING:
    import pandas as pd

Ties = Literal["half", "davidson"]

POPULATION: Final = "comparisons like these, on prompts like these"

FEW_CLUSTERS: Final = 50
"""Below this many prompts the sandwich covariance comes with a warning."""

_STEPS: Final = 100
_CONVERGED: Final = 1e-10
_DIVERGED: Final = 30.0
"""Log odds that no data support: a fit that goes there has no maximum."""


@dataclass(frozen=True)
class Ratings(Result):
    """Models rated from pairwise comparisons.

    Attributes
    ----------
    names
        Models, in alphabetical order.
    strengths
        Log-odds scale, adding up to zero.
    low, high
        Interval of each strength against the mean of all models, each by itself.
    covariance
        Of the strengths, k by k; `difference` takes what it needs from it. Marginal intervals must not be compared.
    rank_low, rank_high
        Best and worst rank of each model (1 is the best) that the data leave possible: these sets hold for all models
        at once with `confidence_level`.
    coefficients
        Of the covariates, in log odds per unit.
    tie
        log(nu) of Davidson's model; None in other models.
    n_comparisons, n_ties
        Comparisons, and ties among them.
    n_per_model
        Comparisons of each model.
    confidence_level, method, population, unit, n, warnings
        As in `Estimate`.
    resampling_seed
        Of the draws that the simultaneous intervals behind the ranks come from.
    """

    names: tuple[str, ...]
    strengths: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    rank_low: tuple[int, ...]
    rank_high: tuple[int, ...]
    coefficients: tuple[Estimate, ...]
    tie: float | None
    n_comparisons: int
    n_ties: int
    n_per_model: tuple[int, ...]
    confidence_level: float
    method: str
    unit: str
    n: int
    resampling_seed: int
    population: str = POPULATION
    warnings: tuple[str, ...] = ()

    def difference(self, first: str, second: str, *, confidence_level: float | None = None) -> Estimate:
        """Return strength(first) - strength(second) with its interval.

        Raises
        ------
        InputError
            A name is not among the models.
        """
        i, j = self._index(first), self._index(second)
        level = self.confidence_level if confidence_level is None else confidence_level
        check_level(level)
        V = self.covariance
        error = math.sqrt(max(V[i][i] + V[j][j] - 2 * V[i][j], 0.0))
        value, half = self.strengths[i] - self.strengths[j], _quantile(level, self.n) * error
        return Estimate(
            estimate=value,
            low=value - half if error else None,
            high=value + half if error else None,
            confidence_level=level,
            method=self.method,
            population=self.population,
            unit=self.unit,
            n=self.n,
            n_items=self.n_comparisons,
            standard_error=error,
            df=self.n - 1.0,
            warnings=self.warnings,
            quantity=f"the log odds of {first} against {second}",
        )

    def win_probability(self, first: str, second: str, *, confidence_level: float | None = None) -> Estimate:
        """Return the chance that the first beats the second at equal covariates.

        By Davidson's model of comparisons without a tie; where a tie is half a win, the expected share of points.
        """
        found = self.difference(first, second, confidence_level=confidence_level)
        p = float(special.expit(found.estimate))
        return replace(
            found,
            estimate=p,
            low=None if found.low is None else float(special.expit(found.low)),
            high=None if found.high is None else float(special.expit(found.high)),
            standard_error=p * (1 - p) * (found.standard_error or 0.0),
            method=f"{self.method}, interval from log odds",
            quantity=f"the chance that {first} beats {second}",
        )

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise InputError(f"{name!r} is not rated", where="ratings", do=f"Choose of {', '.join(self.names)}")
        return self.names.index(name)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each model, best first."""
        import pandas as pd

        columns = ("strengths", "low", "high", "rank_low", "rank_high", "n_per_model")
        frame = pd.DataFrame({"model": self.names} | {name: getattr(self, name) for name in columns})
        frame = frame.rename(columns={"strengths": "strength", "n_per_model": "n"})
        return frame.sort_values(["strength", "model"], ascending=[False, True], ignore_index=True)

    def __str__(self) -> str:
        order = sorted(range(len(self.names)), key=lambda i: -self.strengths[i])
        lines = []
        for i in order:
            best, worst = self.rank_low[i], self.rank_high[i]
            ranks = f"rank {best}" if best == worst else f"ranks {best} to {worst}"
            lines.append(
                f"{self.names[i]}: {self.strengths[i]:+.3f} ({self.low[i]:+.3f} to {self.high[i]:+.3f}), {ranks}"
            )
        notes = [f"({warning})" for warning in self.warnings]
        return "\n".join([*lines, f"{self.method}; {self.n_comparisons} comparisons, {self.n} {self.unit}", *notes])

    def explain(self) -> str:
        """Say in two plain sentences what the numbers and the ranks mean."""
        notes = "" if not self.warnings else f" Note: {'; '.join(self.warnings)}."
        return (
            f"Strengths are log odds of winning against the average of these {len(self.names)} models ({self.method}),"
            f" from {self.n_comparisons} comparisons, with the {self.unit} as independent. The ranks of all models lie"
            f" in the ranges shown at once in {100 * self.confidence_level:.4g}% of repetitions, for"
            f" {self.population}.{notes}"
        )


@dataclass(frozen=True)
class _Battles:
    """Comparisons as a sparse design: row i has +1 for the first model and -1 for the second, then the covariates."""

    design: Any
    wins: Floats  # 1, 0, or 0.5 for a tie, of the first model
    n_models: int

    @property
    def n_columns(self) -> int:
        return int(self.design.shape[1])


def bradley_terry(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    wins: npt.ArrayLike,
    *,
    ties: Ties = "half",
    covariates: npt.ArrayLike | None = None,
    covariate_names: Sequence[str] | None = None,
    cluster: Sequence[Hashable] | None = None,
    confidence_level: float = 0.95,
    n_draws: int = 20_000,
    seed: int = 0,
) -> Ratings:
    """Rate models from pairwise comparisons.

    The log odds of the first model are strength_first - strength_second + x'beta (Bradley and Terry 1952, Biometrika
    39:324). A tie is half a win of each (`half`, a quasi-likelihood, right with the covariance below), or has its own
    probability, P(tie) = nu sqrt(p q) up to the common factor (`davidson`: Davidson 1970, JASA 65:317). The covariance
    is the sandwich H^-1 M H^-1 with M the sum over clusters of the outer products of their scores, times G / (G - 1):
    so both orders of one pair, and all pairs of one prompt, count as one piece of evidence. Intervals are t with G - 1
    degrees of freedom.

    Strengths are finite if and only if, of every split of the models in two groups, each has won against the other
    (Ford 1957, Amer. Math. Monthly 64:28; a tie is a win of both). A graph of comparisons that falls into parts is
    refused. Where one group has won all, or a covariate separates wins from losses, Firth's (1993, Biometrika 80:27)
    penalised likelihood gives finite strengths with the covariance of the model, and a warning.

    Rank sets come from simultaneous intervals of all pairwise differences, whose critical value is the quantile of the
    largest |t| of draws from the covariance (Mogstad, Romano, Shaikh and Wilhelm 2024, Review of Economic Studies
    91:476): a model's best rank is 1 + the number that are surely better, its worst k - those that are surely worse.

    Parameters
    ----------
    first, second
        Length n: the models of each comparison.
    wins
        Shape (n,): 1 if the first won, 0 if the second did, 0.5 for a tie.
    ties
        What a tie is.
    covariates
        Shape (n, p): first minus second, such as the difference of standardised lengths, or 1 and -1 for the first
        position. Strengths are those at zero.
    covariate_names
        Length p.
    cluster
        Length n: the prompt. None takes all comparisons as independent, and warns.
    confidence_level
        Of each interval, and of all rank sets together.
    n_draws, seed
        For the critical value.

    Raises
    ------
    InputError
        The lengths differ, a model meets itself, an outcome is not 0, 0.5 or 1, the models fall into groups that never
        met, covariates cannot be told from strengths, there are fewer than 5 clusters, all comparisons are ties, or
        Davidson's model has no maximum.
    SpecError
        `ties` is unknown or the level is not between 0 and 1.
    """
    check_level(confidence_level)
    if ties not in ("half", "davidson"):
        raise SpecError(f"{ties!r} is not known", where="ties", do="Give 'half' or 'davidson'")
    y = vector(wins, "wins")
    names, pairs = _pairs(first, second, y)
    x, covariate_names = _covariates(covariates, covariate_names, len(y))
    _refuse_disconnected(names, pairs)
    battles = _battles(pairs, y, x, len(names))
    codes, sizes = cluster_codes(cluster, len(y))
    if cluster is not None and len(sizes) < MIN_CLUSTERS:
        raise InputError(
            f"{len(sizes)} clusters are too few", where="ratings", do=f"Compare on {MIN_CLUSTERS} prompts or more"
        )
    warnings = _cluster_warnings(cluster, len(sizes))
    n_ties = int(np.sum(y == 0.5))
    if n_ties == len(y):
        raise InputError("all comparisons are ties", where="ratings", do="There is nothing to rate by")
    davidson = ties == "davidson" and n_ties > 0
    separated = _unbeaten(names, pairs, y)
    fitted = None if separated else (_fit_davidson(battles) if davidson else _fit(battles, firth=False))
    method, k = "Bradley-Terry", len(names)
    if fitted is not None:
        beta, H, scores = fitted
        covariance = _sandwich(H, scores, codes, len(sizes))
    else:
        why = separated or "a covariate separates wins from losses"
        beta, covariance = _penalised(battles, why, davidson)
        method = "Bradley-Terry, Firth's penalty"
        warnings.append(f"{why}: strengths are finite by a penalty only, and errors are the model's, without clusters")
    V, strengths = covariance[:k, :k], beta[:k] - beta[:k].mean()
    critical = critical_value(V, len(sizes), confidence_level, n_draws, seed)
    rank_low, rank_high = rank_sets(strengths, V, critical)
    errors, q = np.sqrt(np.maximum(np.diag(covariance), 0)), _quantile(confidence_level, len(sizes))
    unit = "comparisons" if cluster is None else "prompts"
    named = {"half": ", ties half a win", "davidson": ", ties by Davidson"}[ties] if n_ties else ""
    method = f"{method}{named}{', with covariates' if covariate_names else ''}"
    coefficients = tuple(
        Estimate(
            estimate=float(beta[k + c]),
            low=float(beta[k + c] - q * errors[k + c]),
            high=float(beta[k + c] + q * errors[k + c]),
            confidence_level=confidence_level,
            method=method,
            population=POPULATION,
            unit=unit,
            n=len(sizes),
            n_items=len(y),
            standard_error=float(errors[k + c]),
            df=len(sizes) - 1.0,
            quantity=f"the log odds for each unit of {name}",
        )
        for c, name in enumerate(covariate_names)
    )
    return Ratings(
        names=names,
        strengths=tuple(strengths.tolist()),
        low=tuple((strengths - q * errors[:k]).tolist()),
        high=tuple((strengths + q * errors[:k]).tolist()),
        covariance=tuple(map(tuple, V.tolist())),
        rank_low=tuple(rank_low.tolist()),
        rank_high=tuple(rank_high.tolist()),
        coefficients=coefficients,
        tie=float(beta[-1]) if davidson else None,
        n_comparisons=len(y),
        n_ties=n_ties,
        n_per_model=tuple(np.bincount(pairs.ravel(), minlength=k).tolist()),
        confidence_level=confidence_level,
        method=method,
        unit=unit,
        n=len(sizes),
        resampling_seed=seed,
        warnings=tuple(warnings),
    )


def _quantile(level: float, n_units: int) -> float:
    """Of the t distribution with one degree of freedom less than units: for few, z would not cover."""
    return float(stats.t.ppf((1 + level) / 2, max(n_units - 1, 1)))


def _pairs(
    first: Sequence[Hashable], second: Sequence[Hashable], wins: Floats
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return names, and the two models of each comparison as numbers, shape (n, 2)."""
    n = len(wins)
    if len(first) != n or len(second) != n:
        raise InputError(f"{len(first)}, {len(second)} and {n}", where="first, second, wins", do="Give as many of each")
    codes, labels = codes_of([str(name) for name in (*first, *second)], "models", length=2 * n)
    # In alphabetical order, so that the order of comparisons changes nothing.
    order = np.argsort(labels)
    pairs = np.argsort(order)[codes].reshape(2, n).T
    labels = [labels[i] for i in order]
    same = pairs[:, 0] == pairs[:, 1]
    if same.any():
        row = int(np.argmax(same))
        raise InputError(
            f"{labels[pairs[row, 0]]} meets itself", where=f"comparison {row}", do="Leave the comparison out"
        )
    odd = ~np.isin(wins, (0.0, 0.5, 1.0))
    if odd.any():
        row = int(np.argmax(odd))
        raise InputError(f"outcome {wins[row]}", where=f"comparison {row}", do="Give 1, 0, or 0.5 for a tie")
    return tuple(labels), pairs


def _covariates(
    covariates: npt.ArrayLike | None, names: Sequence[str] | None, n: int
) -> tuple[Floats, tuple[str, ...]]:
    if covariates is None:
        return np.empty((n, 0)), ()
    x = np.asarray(covariates, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) != n or not np.isfinite(x).all():
        raise InputError(f"shape {x.shape} for {n} comparisons", where="covariates", do="Give finite numbers, n by p")
    labels = tuple(names) if names is not None else tuple(f"covariate {c}" for c in range(x.shape[1]))
    if len(labels) != x.shape[1]:
        raise InputError(f"{len(labels)} names for {x.shape[1]}", where="covariate_names", do="Give one for each")
    return x, labels


def _refuse_disconnected(names: tuple[str, ...], pairs: npt.NDArray[np.int64]) -> None:
    n_parts, part = csgraph.connected_components(_graph(pairs[:, 0], pairs[:, 1], len(names)), directed=False)
    if n_parts > 1:
        parts = [", ".join(names[i] for i in np.flatnonzero(part == p)) for p in range(n_parts)]
        raise InputError(
            f"the models fall into {n_parts} groups that never met: {' | '.join(parts)}",
            where="ratings",
            do="Rate each group by itself, or compare models across the groups",
        )


def _graph(tail: npt.NDArray[np.int64], head: npt.NDArray[np.int64], k: int) -> Any:
    return sparse.coo_matrix((np.ones(len(tail)), (tail, head)), shape=(k, k)).tocsr()


def _unbeaten(names: tuple[str, ...], pairs: npt.NDArray[np.int64], wins: Floats) -> str:
    """Say which models the others never beat, if strengths are not finite; else the empty string."""
    won, lost = wins > 0, wins < 1  # a tie is a win of both
    winners = np.concatenate([pairs[won, 0], pairs[lost, 1]])
    losers = np.concatenate([pairs[won, 1], pairs[lost, 0]])
    n_groups, group = csgraph.connected_components(
        _graph(winners, losers, len(names)), directed=True, connection="strong"
    )
    if n_groups == 1:
        return ""
    beaten = set(group[losers[group[winners] != group[losers]]].tolist())
    top = [names[i] for i in range(len(names)) if group[i] not in beaten]
    return f"no other model has won against {', '.join(top)}"


def _cluster_warnings(cluster: Sequence[Hashable] | None, n_clusters: int) -> list[str]:
    if cluster is None:
        return ["comparisons are taken as independent: give the prompts as clusters if any comes twice"]
    return [f"only {n_clusters} prompts: a rough covariance"] if n_clusters < FEW_CLUSTERS else []


def _battles(pairs: npt.NDArray[np.int64], wins: Floats, x: Floats, k: int) -> _Battles:
    n = len(wins)
    rows = np.arange(n)
    models = sparse.coo_matrix((np.repeat([1.0, -1.0], n), (np.tile(rows, 2), pairs.T.ravel())), shape=(n, k))
    design = sparse.hstack([models, sparse.csr_matrix(x)], format="csr")
    gram = _constrained((design.T @ design).toarray(), k)
    scale = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
    if x.shape[1] and np.linalg.cond(gram / np.outer(scale, scale)) > 1e12:
        raise InputError(
            "covariates cannot be told from the models or from each other", where="covariates", do="Leave one out"
        )
    return _Battles(design, wins, k)


def _constrained(H: Floats, k: int) -> Floats:
    """Add 11' for the strengths: the likelihood does not know their sum, and this fixes it to zero."""
    found = H.copy()
    found[:k, :k] += 1
    return found


_Fit = tuple[Floats, Floats, Any]
"""Parameters, the constrained Hessian, and the scores of the comparisons, a sparse matrix (n, parameters)."""


def _fit(battles: _Battles, *, firth: bool) -> _Fit | None:
    """Newton's method for the (penalised) quasi-likelihood; None where it runs away."""
    D, y, k = battles.design, battles.wins, battles.n_models
    beta = np.zeros(battles.n_columns)

    def objective(at: Floats) -> float:
        eta = D @ at
        value = float(y @ special.log_expit(eta) + (1 - y) @ special.log_expit(-eta))
        return value + (0.5 * float(np.linalg.slogdet(hessian(at))[1]) if firth else 0.0)

    def hessian(at: Floats) -> Floats:
        p = special.expit(D @ at)
        return _constrained((D.T @ sparse.diags(p * (1 - p)) @ D).toarray(), k)

    for _ in range(_STEPS):
        eta = D @ beta
        p, H = special.expit(eta), hessian(beta)
        residual = y - p
        if firth:
            # Leverages w d'H^-1 d; the modified score adds h (1/2 - p).
            leverage = p * (1 - p) * np.asarray((D @ np.linalg.inv(H) * D.toarray()).sum(axis=1)).ravel()
            residual = residual + leverage * (0.5 - p)
        step = np.linalg.solve(H, D.T @ residual)
        value, shrink = objective(beta), 1.0
        while objective(beta + shrink * step) < value - 1e-9 * abs(value) and shrink > 1e-6:
            shrink /= 2
        beta = beta + shrink * step
        if not firth and np.abs(D @ beta).max() > _DIVERGED:
            return None
        if np.abs(step).max() < _CONVERGED:
            return beta, hessian(beta), sparse.diags(y - special.expit(D @ beta)) @ D
    return None


def _fit_davidson(battles: _Battles) -> _Fit | None:
    """Newton's method for Davidson's model, with log(nu) as the last parameter.

    With e = exp(eta / 2), P(first) = e / s, P(second) = 1 / (e s), P(tie) = nu / s, s = e + 1 / e + nu. In u, the
    outcome +1/2, -1/2 or 0, and v, whether it is a tie, this is an exponential family: scores are u - E u and v - E v.
    """
    D, k = battles.design, battles.n_models
    tied = (battles.wins == 0.5).astype(np.float64)
    u = battles.wins - 0.5
    beta = np.zeros(battles.n_columns + 1)
    share = tied.mean()
    beta[-1] = math.log(2 * share / (1 - share))

    def moments(at: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        eta = D @ at[:-1]
        logits = np.stack([eta / 2, -eta / 2, np.full(len(eta), at[-1])])
        log_s = special.logsumexp(logits, axis=0)
        win, lose, tie = np.exp(logits - log_s)
        return win, lose, tie, log_s

    def objective(at: Floats) -> float:
        log_s = moments(at)[3]
        return float(u @ (D @ at[:-1]) + tied.sum() * at[-1] - log_s.sum())

    for _ in range(_STEPS):
        win, lose, tie, _ = moments(beta)
        mean = (win - lose) / 2
        gradient = np.concatenate([D.T @ (u - mean), [float((tied - tie).sum())]])
        H = np.empty((len(beta), len(beta)))
        H[:-1, :-1] = _constrained((D.T @ sparse.diags((win + lose) / 4 - mean**2) @ D).toarray(), k)
        H[:-1, -1] = H[-1, :-1] = D.T @ (-mean * tie)
        H[-1, -1] = float((tie * (1 - tie)).sum())
        step = np.linalg.solve(H, gradient)
        value, shrink = objective(beta), 1.0
        while objective(beta + shrink * step) < value - 1e-9 * abs(value) and shrink > 1e-6:
            shrink /= 2
        beta = beta + shrink * step
        if np.abs(D @ beta[:-1]).max() > _DIVERGED or abs(beta[-1]) > _DIVERGED:
            return None
        if np.abs(step).max() < _CONVERGED:
            own = sparse.diags(u - mean) @ D
            return beta, H, sparse.hstack([own, sparse.csr_matrix((tied - tie)[:, None])], format="csr")
    return None


def _penalised(battles: _Battles, why: str, davidson: bool) -> tuple[Floats, Floats]:
    """Parameters and the model's covariance of Firth's fit, where the likelihood has no maximum."""
    if davidson:
        raise InputError(
            f"Davidson's model has no finite strengths: {why}",
            where="ratings",
            do="Use ties='half', which is penalised",
        )
    found = _fit(battles, firth=True)
    if found is None:
        raise InputError("the penalised fit did not converge", where="ratings", do="Leave out covariates")
    beta, H, _ = found
    # The inverse of H was taken with 11' added for the strengths; this takes it out again.
    k = battles.n_models
    centring = np.eye(len(H))
    centring[:k, :k] -= 1 / k
    covariance: Floats = centring @ np.linalg.inv(H) @ centring
    return beta, covariance


def _sandwich(H: Floats, scores: Any, codes: Ints, n_clusters: int) -> Floats:
    n = len(codes)
    members = sparse.coo_matrix((np.ones(n), (codes, np.arange(n))), shape=(n_clusters, n)).tocsr()
    sums = members @ scores
    M = (sums.T @ sums).toarray() * n_clusters / max(n_clusters - 1, 1)
    inverse = np.linalg.inv(H)
    found: Floats = inverse @ M @ inverse
    return found


def critical_value(V: Floats, n_units: int, confidence_level: float, n_draws: int, seed: int) -> float:
    """The quantile of the largest |t| over all pairwise differences, of draws from the covariance (multivariate t)."""
    k = len(V)
    i, j = np.triu_indices(k, 1)
    errors = np.sqrt(np.maximum(V[i, i] + V[j, j] - 2 * V[i, j], 0))
    kept = errors > 1e-9 * errors.max() if errors.max() > 0 else np.zeros(len(i), dtype=bool)
    if not kept.any():
        return math.inf
    values, vectors = np.linalg.eigh(V)
    root = vectors * np.sqrt(np.maximum(values, 0))
    rng = np.random.default_rng(seed)
    largest = []
    for begin in range(0, n_draws, 500):
        size = min(500, n_draws - begin)
        z = rng.normal(size=(size, k)) @ root.T
        df = max(n_units - 1, 1)
        scale = np.sqrt(rng.chisquare(df, size=size) / df)
        largest.append((np.abs(z[:, i[kept]] - z[:, j[kept]]) / errors[kept]).max(axis=1) / scale)
    return float(np.quantile(np.concatenate(largest), confidence_level))


def rank_sets(strengths: Floats, V: Floats, critical: float) -> tuple[Ints, Ints]:
    """The best and the worst rank of each model; two whose difference has no error are never surely apart."""
    variances = np.diag(V)[:, None] + np.diag(V) - 2 * V
    gap = strengths - strengths[:, None]  # row: how much better the column's model is
    known = variances > 1e-12 * np.diag(V).max()  # what is less is rounding
    sure = np.full_like(variances, np.inf)
    sure[known] = critical * np.sqrt(variances[known])
    better, worse = gap > sure, -gap > sure
    return 1 + better.sum(axis=1), len(V) - worse.sum(axis=1)
