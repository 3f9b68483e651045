"""From an interval to a verdict of a closed set, by a margin that was declared beforehand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from scipy import stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.arrays import check_level
from evalkit.stats.results import Estimate, Result, TestResult

Verdict = Literal["better", "worse", "equivalent", "non-inferior", "inconclusive"]

VERDICTS: Final[tuple[Verdict, ...]] = ("better", "worse", "equivalent", "non-inferior", "inconclusive")

_TOLERANCE: Final = 1e-6
"""Of an interval's width: what makes one a t interval of its own standard error."""


@dataclass(frozen=True)
class DecisionRule(Result):
    """How a verdict will be reached, declared before the data are seen.

    Attributes
    ----------
    margin
        The smallest difference that matters, above zero, in the unit of the scores; None when none was declared, and
        then nothing can be equivalent or non-inferior.
    confidence_level
        Of the interval that decides on better and worse; equivalence and non-inferiority have the one of level
        1 - 2 (1 - confidence_level), which is two one-sided tests at 1 - confidence_level.
    power
        With which the smallest detectable effect would be found.
    higher_is_better
        Whether a positive difference is good.
    """

    margin: float | None = None
    confidence_level: float = 0.95
    power: float = 0.8
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        check_level(self.confidence_level)
        check_level(self.power, "power")
        if self.confidence_level <= 0.5:
            raise SpecError(
                f"{self.confidence_level} is at most 0.5", where="confidence_level", do="Give one such as 0.95"
            )
        if self.margin is not None and not 0 < self.margin < float("inf"):
            raise SpecError(
                f"{self.margin} is not above zero", where="margin", do="Give the smallest difference that matters"
            )

    def digest(self) -> str:
        """Return a SHA-256 of the rule: written into a spec beforehand, it shows that the rule was not chosen after."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        margin = "no margin" if self.margin is None else f"margin {self.margin:g}"
        return f"{margin}, {100 * self.confidence_level:.4g}% interval, rule {self.digest()[:12]}"

    def explain(self) -> str:
        """Say in two sentences when which verdict is given."""
        good, bad = ("above", "below") if self.higher_is_better else ("below", "above")
        said = (
            f"B is better where the {100 * self.confidence_level:.4g}% interval of B - A lies {good} zero, and worse"
            f" where it lies {bad}; else"
        )
        if self.margin is None:
            return f"{said} the verdict is inconclusive. No margin was declared, so nothing can be equivalent."
        inner = f"{100 * (1 - 2 * (1 - self.confidence_level)):.4g}%"
        return (
            f"{said} equivalent where the {inner} interval lies within {self.margin:g} of zero, non-inferior where it"
            f" rules out only a loss of {self.margin:g}, else inconclusive. The rule's SHA-256 begins"
            f" {self.digest()[:12]}."
        )


@dataclass(frozen=True)
class Decision(Result):
    """A verdict, and what it rests on.

    Attributes
    ----------
    verdict
        One of `VERDICTS`.
    estimate
        The difference with the interval that decides on better and worse.
    narrower
        Its interval of the level for equivalence and non-inferiority; None where it could not matter, or not be had.
    rule, rule_digest
        The rule, and its SHA-256.
    within_margin
        Whether the narrower interval lies inside the margin: a difference that is there, but does not matter. None
        without a margin or an interval.
    smallest_detectable
        The effect that would be found with the rule's power at this standard error; None where it is not known.
    """

    verdict: Verdict
    estimate: Estimate
    narrower: Estimate | None
    rule: DecisionRule
    rule_digest: str
    within_margin: bool | None
    smallest_detectable: float | None

    def __str__(self) -> str:
        difference, margin = self.estimate.estimate, self.rule.margin
        if self.verdict in ("better", "worse"):
            but = f", by less than the margin of {margin:g}" if self.within_margin else ""
            return f"{self.verdict}{but}: {self.estimate}"
        if self.verdict == "equivalent":
            return f"equivalent within {margin:g}: {self.narrower}"
        if self.verdict == "non-inferior":
            return f"non-inferior, worse by less than {margin:g} if at all: {self.narrower}"
        if self.smallest_detectable is None:
            return f"inconclusive: {self.estimate}"
        return (
            f"inconclusive, an effect below {self.smallest_detectable:.4f} would be missed in more than"
            f" {1 - self.rule.power:.0%} of runs like this, and {abs(difference):.4f} was seen: {self.estimate}"
        )

    def explain(self) -> str:
        """Say the verdict and the rule it follows."""
        return f"Verdict: {self.verdict}, by the rule ({self.rule}). {self.estimate.explain()}"


def decide(estimate: Estimate, rule: DecisionRule, *, narrower: Estimate | None = None) -> Decision:
    """Reach a verdict on a difference by its interval.

    With (low, high) the interval at the rule's level, (low', high') the narrower one, m the margin, and signs turned if
    lower is better: *better* if low > 0; *worse* if high < 0; else *equivalent* if -m < low' and high' < m (two
    one-sided tests, Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657); else *non-inferior* if low' > -m; else
    *inconclusive*. With alpha = 1 - level: without a true difference, "better" comes up in at most alpha / 2 of
    repetitions; with one of m or more, "equivalent" in at most alpha.

    Parameters
    ----------
    estimate
        The difference; its interval may have a higher level than the rule's (adjusted for a family).
    rule
        Declared beforehand.
    narrower
        The interval at level 1 - 2 (1 - level) by the same method. None: it is computed, if `estimate` has the t (or
        normal) interval of its standard error; a score or bootstrap interval must be given.

    Raises
    ------
    SpecError
        The estimate's level is below the rule's, or the narrower one does not fit.
    InputError
        The narrower interval is needed and cannot be computed.
    """
    if estimate.confidence_level < rule.confidence_level - 1e-9:
        raise SpecError(
            f"the interval has level {estimate.confidence_level:g}, below the rule's {rule.confidence_level:g}",
            where="verdict",
            do="Make the interval at the rule's level",
        )
    level = 1 - 2 * (1 - estimate.confidence_level)
    if narrower is not None and not np.isclose(narrower.confidence_level, level):
        raise SpecError(
            f"level {narrower.confidence_level:g} where {level:g} is needed",
            where="narrower",
            do="Use 1 - 2 (1 - level)",
        )
    detectable = _smallest_detectable(estimate, rule.power)
    if estimate.low is None or estimate.high is None:
        return Decision("inconclusive", estimate, None, rule, rule.digest(), None, None)
    margin, inner = rule.margin, None
    if margin is not None:
        inner = at_level(estimate, level) if narrower is None else narrower
    low, high = _towards_better(estimate, rule)
    within = not_worse = None
    if margin is not None and inner is not None and inner.low is not None:
        inner_low, inner_high = _towards_better(inner, rule)
        not_worse = inner_low > -margin
        within = not_worse and inner_high < margin
    verdict: Verdict = "inconclusive"
    if low > 0:
        verdict = "better"
    elif high < 0:
        verdict = "worse"
    elif within:
        verdict = "equivalent"
    elif not_worse:
        verdict = "non-inferior"
    return Decision(verdict, estimate, inner, rule, rule.digest(), within, detectable)


def _towards_better(estimate: Estimate, rule: DecisionRule) -> tuple[float, float]:
    low, high = float(estimate.low or 0.0), float(estimate.high or 0.0)
    return (low, high) if rule.higher_is_better else (-high, -low)


def at_level(estimate: Estimate, confidence_level: float) -> Estimate:
    """Return a t interval (normal without degrees of freedom) at another level.

    Raises
    ------
    InputError
        The interval that is there is not the t interval of its standard error.
    """
    check_level(confidence_level)
    if estimate.low is None or estimate.high is None:
        return replace(estimate, confidence_level=confidence_level)
    error = estimate.standard_error or 0.0
    half = _quantile((1 + estimate.confidence_level) / 2, estimate.df) * error
    gap = max(abs(estimate.estimate - half - estimate.low), abs(estimate.estimate + half - estimate.high))
    if not gap <= _TOLERANCE * (estimate.high - estimate.low) < np.inf:
        raise InputError(
            f"the interval is not the t interval of its standard error ({estimate.method})",
            where="verdict",
            do="Give the interval at the other level by the same method (narrower=)",
        )
    half = _quantile((1 + confidence_level) / 2, estimate.df) * error
    return replace(
        estimate, low=estimate.estimate - half, high=estimate.estimate + half, confidence_level=confidence_level
    )


def _quantile(p: float, df: float | None) -> float:
    return float(stats.norm.ppf(p) if df is None else stats.t.ppf(p, df))


def _smallest_detectable(estimate: Estimate, power: float) -> float | None:
    """(t_(1 - alpha/2) + t_power) SE; a score interval's half-width stands for an SE that is less, or not given."""
    upper = _quantile((1 + estimate.confidence_level) / 2, estimate.df)
    error = estimate.standard_error
    if (error is None or estimate.df is None) and estimate.low is not None and estimate.high is not None:
        error = max(error or 0.0, (estimate.high - estimate.low) / 2 / upper)
    return error and (upper + _quantile(power, estimate.df)) * error


def tost(estimate: Estimate, margin: float) -> TestResult:
    """Test that a difference is at least the margin, in either direction: two one-sided t tests.

    p is the larger of the two one-sided p values; p <= alpha exactly where the interval of level 1 - 2 alpha lies
    inside (-margin, margin) (Schuirmann 1987).

    Parameters
    ----------
    estimate
        A difference with the t interval of its standard error.
    margin
        Above zero, declared beforehand.

    Raises
    ------
    SpecError
        The margin is not above zero.
    InputError
        There is no standard error, or the interval is not the t interval of it.
    """
    DecisionRule(margin=margin)
    error = estimate.standard_error
    if not error:
        raise InputError("there is no standard error", where="TOST", do="Use an interval of level 1 - 2 alpha")
    at_level(estimate, estimate.confidence_level)  # refuses intervals of another kind
    below, above = (estimate.estimate + margin) / error, (estimate.estimate - margin) / error
    distribution = stats.norm if estimate.df is None else stats.t(estimate.df)
    p_low, p_high = float(distribution.sf(below)), float(distribution.cdf(above))
    return TestResult(
        p_value=max(p_low, p_high),
        method="two one-sided t tests (TOST)",
        null_hypothesis=f"the difference is at least {margin:g} in one of the directions",
        n=estimate.n_items,
        statistic=below if p_low > p_high else above,
        df=estimate.df,
        unit=estimate.unit,
        n_units=estimate.n,
        population=estimate.population,
        warnings=estimate.warnings,
    )
