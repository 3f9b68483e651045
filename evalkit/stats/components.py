"""Where the noise comes from: crossed items, seeds, prompts and repeats, and the interval for each question about them.

"The standard deviation over seeds" answers another question than the standard error over items. Scores of the same
items under several seeds (and prompts, few-shot draws, judge repeats) have a variance component for each of these
*facets* and each combination; an interval holds what is drawn anew and leaves out what stays:

- new seeds, this test set: how another training run would score on these items;
- new items, these seeds: how these very models would score on other items;
- both: how another training run would score on other items.

Facets are kept apart: training seed, sampling seed, few-shot draw, prompt, judge repeat and neighbouring checkpoint
are different noises, and none of them is "the" standard deviation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from evalkit.errors import InputError, SpecError
from evalkit.stats.clusters import MIN_CLUSTERS, Floats, cluster_codes, t_interval
from evalkit.stats.results import Estimate, Result

if TYPE_CHECKING:
    import pandas as pd

ITEM: Final = "item"
ANSWER: Final = "answer"
"""The name of the last component: one answer more to the same item under the same seed."""

FEW_LEVELS: Final = 3
"""Below this many levels a difference of mean squares is too uncertain to be used."""

Subset = tuple[str, ...]


@dataclass(frozen=True)
class Component(Result):
    """One variance component.

    Attributes
    ----------
    facets
        The facet, or the facets whose combination varies.
    variance, standard_deviation
        The estimate, 0 where it came out negative; None where the data cannot tell.
    low, high
        Interval of the standard deviation.
    confidence_level
        Of that interval.
    negative
        Whether the estimate came out below 0: no more than chance was seen.
    method
        How the interval was made.
    """

    facets: tuple[str, ...]
    variance: float | None
    standard_deviation: float | None
    low: float | None
    high: float | None
    confidence_level: float
    negative: bool = False
    method: str = ""

    def __str__(self) -> str:
        name = " x ".join(self.facets)
        if self.standard_deviation is None:
            return f"{name}: unknown"
        interval = (
            "" if self.low is None else f" ({100 * self.confidence_level:.4g}% {self.low:.4f} to {self.high:.4f})"
        )
        return f"{name}: SD {self.standard_deviation:.4f}{interval}"

    def explain(self) -> str:
        """Say in two sentences how much the facet matters."""
        name = " x ".join(self.facets)
        if self.standard_deviation is None:
            return f"How much {name} matters is unknown. There is one level of it, or one answer only."
        seen = f"The standard deviation that is due to {name} is {self.standard_deviation:.4g}"
        seen += ", as the estimate of its square came out negative" if self.negative else ""
        if self.low is None:
            return f"{seen}. There is no interval for it."
        level = f"{100 * self.confidence_level:.4g}%"
        return f"{seen}. The data are compatible with {self.low:.4g} to {self.high:.4g} ({level}, {self.method})."


@dataclass(frozen=True)
class Design(Result):
    """What a number of seeds, items and answers would buy.

    Attributes
    ----------
    levels
        Levels of each facet.
    answers
        Answers of each item under each seed.
    standard_error
        Of the mean.
    """

    levels: dict[str, int]
    answers: int
    standard_error: float

    def __str__(self) -> str:
        levels = ", ".join(f"{count} x {name}" for name, count in self.levels.items())
        return f"{levels}, {self.answers} answers: SE {self.standard_error:.5f}"

    def explain(self) -> str:
        """Say what this design would buy."""
        levels = ", ".join(f"{count} {name}s" for name, count in self.levels.items())
        each = f"{self.answers} answers" if self.answers > 1 else "one answer"
        return (
            f"With {levels} and {each} in each cell, the mean would have a standard error of {self.standard_error:.4g}."
        )


@dataclass(frozen=True)
class CrossedScores(Result):
    """A mean over crossed facets: its components, and one interval for each question.

    Attributes
    ----------
    mean
        Of all scores.
    levels
        Levels of each facet, in the order of the axes.
    answers
        Answers in each cell.
    components
        Of each facet, each combination, and the answers.
    spreads
        For each facet but the items, the standard deviation of its levels' mean scores on this test set: what "mean and
        SD over seeds" shows. It holds the noise of the other facets, too.
    intervals
        By what is drawn anew, joined by " + ", e.g. "item", "seed", "item + seed".
    warnings
        What to know before using it.
    """

    mean: float
    levels: dict[str, int]
    answers: int
    components: tuple[Component, ...]
    spreads: tuple[Component, ...]
    intervals: dict[str, Estimate]
    warnings: tuple[str, ...] = ()

    def interval(self, *new: str) -> Estimate:
        """Return the interval for drawing these facets anew.

        Raises
        ------
        SpecError
            There is no such facet, or none is named.
        """
        return self.intervals[_key(_chosen(new, self.levels))]

    def component(self, *facets: str) -> Component:
        """Return the component of a facet, of a combination of facets, or of `ANSWER`.

        Raises
        ------
        SpecError
            There is no such component.
        """
        for one in self.components:
            if set(one.facets) == set(facets):
                return one
        raise SpecError(f"no component {' x '.join(facets)}", do=f"Choose of {', '.join(self.levels)}, {ANSWER}")

    def standard_error(self, new: Sequence[str], *, answers: int | None = None, **levels: int) -> float:
        """Return what the standard error would be with other numbers of levels (underscores stand for blanks).

        Var = sum over components that hold a new facet, and the answers', of the component over its number of levels.

        Raises
        ------
        InputError
            A component that it needs is unknown.
        SpecError
            There is no such facet.
        """
        wanted = {name.replace("_", " "): count for name, count in levels.items()}
        _chosen([*wanted] or new, self.levels)
        drawn = set(_chosen(new, self.levels))
        counts = {**self.levels, **wanted}
        repeats = answers or self.answers
        total = 0.0
        for one in self.components:
            if one.facets != (ANSWER,) and drawn.isdisjoint(one.facets):
                continue
            if one.variance is None and one.facets == (ANSWER,):
                if repeats > 1:
                    raise InputError("one answer per cell does not tell how answers vary", do="Ask some items twice")
                continue  # it is within the last combination of facets
            if one.variance is None:
                raise InputError(f"the variance of {' x '.join(one.facets)} is unknown", do="Give it several levels")
            cells = counts.values() if one.facets == (ANSWER,) else [counts[name] for name in one.facets]
            total += one.variance / math.prod(cells) / (repeats if one.facets == (ANSWER,) else 1)
        return math.sqrt(total)

    def designs(self, new: Sequence[str], choices: Sequence[Mapping[str, int]] | None = None) -> tuple[Design, ...]:
        """Tabulate what more levels would buy: `choices` of levels (`ANSWER` too), or each facet doubled in turn."""
        known = any(one.facets == (ANSWER,) and one.variance is not None for one in self.components)
        double = [{name: 2 * count} for name, count in self.levels.items()]
        double += [{ANSWER: 2 * self.answers}] if known else []
        found = []
        for choice in [{}, *double] if choices is None else choices:
            levels = {**self.levels, **{name: count for name, count in choice.items() if name != ANSWER}}
            answers = choice.get(ANSWER, self.answers)
            underscored = {name.replace(" ", "_"): count for name, count in levels.items()}
            found.append(Design(levels, answers, self.standard_error(new, answers=answers, **underscored)))
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """One row for each interval."""
        import pandas as pd

        return pd.concat([one.to_frame().assign(new=new) for new, one in self.intervals.items()], ignore_index=True)

    def explain(self) -> str:
        """Say in two sentences what drawing each facet anew would change."""
        known = {new: one for new, one in self.intervals.items() if one.low is not None}
        ends = "; ".join(f"{one.low:.4g} to {one.high:.4g} for {one.population}" for one in known.values())
        level = next(iter(self.intervals.values())).confidence_level
        what = f"{100 * level:.4g}% intervals are {ends}" if known else "there is no interval for it"
        notes = "".join(f"; {warning}" for warning in self.warnings)
        levels = ", ".join(f"{count} {name}s" for name, count in self.levels.items())
        return f"The mean of {levels} is {self.mean:.4g}, and {what}. Each interval answers its own question{notes}."

    def __str__(self) -> str:
        return "\n".join(
            [*(f"new {new}: {one}" for new, one in self.intervals.items()), *map(str, self.components), *self.warnings]
        )


def crossed(
    scores: npt.ArrayLike,
    facets: Sequence[str] = (ITEM, "seed"),
    *,
    answers: bool = False,
    cluster: Sequence[Any] | None = None,
    confidence_level: float = 0.95,
) -> CrossedScores:
    """Estimate the mean of fully crossed scores, its variance components, and an interval for each question.

    With MS_A the mean square of the combination A of facets, N the number of scores, and all facets random, the
    expected mean squares (Cornfield and Tukey 1956, Annals of Mathematical Statistics 27:907) give the component of A
    as the sum over B containing A of (-1)^(|B| - |A|) MS_B, over the N / (levels of A) scores of each level. When the
    facets R are drawn anew and the others stay,

        N Var(mean) = sum over T within R, not empty, of (-1)^(|T| + 1) MS_T,

    for items and seeds (MS_I + MS_S - MS_E) / N, and never less than its largest single MS_T. With R = items this is
    the t interval over item means, and with R = seeds that over the seeds' means.

    Of several facets, each in turn adds its part V_j to the variance, the one with most levels first (MS_I, then
    MS_S - MS_E), and the interval's half-width is sqrt(sum t_j^2 V_j), each t with its own degrees of freedom (an idea
    of Cochran's for two variances, 1964, Biometrics 20:191). Satterthwaite's degrees of freedom, from the same
    estimates, are too many where three seeds matter more than the items: the interval then covers 92%, with two seeds
    88%. From a facet with two levels nothing is taken off.

    Parameters
    ----------
    scores
        An axis for each facet, every combination present; with `answers`, one more axis of repeated answers in each
        cell, whose order means nothing.
    facets
        Names of the axes. One with a single level stays as it is: nothing is known of its variance, and no interval for
        drawing it anew is given.
    answers
        Whether the last axis is repeated answers.
    cluster
        One for each item, where there is an axis "item": the items' part of each interval is then clustered (CR2).
    confidence_level
        Of all intervals.

    Raises
    ------
    InputError
        The axes do not fit the names, or a score is missing.
    SpecError
        A name appears twice, or clusters are given without items.
    """
    table = _table(scores, facets, answers)
    if cluster is not None and ITEM not in facets:
        raise SpecError("clusters of items need an axis of items", do=f"Name it {ITEM!r}")
    anova = _Anova(table, tuple(facets))
    unknown = [name for name in facets if anova.levels[name] == 1]
    warnings = [f"one {name} only: how much it matters is unknown" for name in unknown]
    intervals = {
        _key(new): _interval(anova, new, cluster, confidence_level)
        for size in range(1, len(facets) + 1)
        for new in itertools.combinations(facets, size)
    }
    components = tuple(_component(anova, subset, confidence_level) for subset in _subsets(tuple(facets)))
    if any(one.negative for one in components):
        warnings.append("some components came out negative and are set to 0: no more than chance was seen of them")
    return CrossedScores(
        mean=float(table.mean()),
        levels=anova.levels,
        answers=anova.answers,
        components=(*components, _answer_component(anova, confidence_level)),
        spreads=tuple(_spread(anova, name, confidence_level) for name in facets if name != ITEM),
        intervals=intervals,
        warnings=tuple(warnings),
    )


def crossed_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, *, cluster: Sequence[Any] | None = None, confidence_level: float = 0.95
) -> dict[str, Estimate]:
    """Estimate mean(b) - mean(a) of two models on the same items whose seeds have nothing to do with each other.

    (Where seed s of A and seed s of B share something, use `crossed(b - a)`.) The items' part is paired, the seeds'
    part is not: with D_i the difference of the item means,

        Var = var(D) / n + sum over the two models of max(0, MS_S - MS_E) / (n S),

    of which "item" has the first term, "seed" the sum of MS_S / (n S), and "item + seed" all. The seeds' part has
    Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2:110), or one where a model has two seeds, and
    nothing is taken off there; the two parts are combined as in `crossed`.

    Parameters
    ----------
    a, b
        Shapes (n, S_a) and (n, S_b): items by seeds.
    cluster
        One for each item.
    confidence_level
        Of all intervals.

    Returns
    -------
    dict
        By what is drawn anew: "item", "seed", "item + seed".

    Raises
    ------
    InputError
        The items differ in number, or a score is missing.
    """
    tables = [_table(of, (ITEM, "seed"), answers=False) for of in (a, b)]
    if len(tables[0]) != len(tables[1]):
        raise InputError(f"{len(tables[0])} items of A and {len(tables[1])} of B", do="Give the same items to both")
    anovas = [_Anova(table, (ITEM, "seed")) for table in tables]
    difference = tables[1].mean(axis=(1, 2)) - tables[0].mean(axis=(1, 2))
    codes, sizes = cluster_codes(cluster, len(difference))
    of_items = replace(
        t_interval(difference, codes, sizes, confidence_level=confidence_level, method="paired t over item means"),
        population=_population((ITEM,), (ITEM, "seed")),
        quantity="the difference B - A",
    )
    found = {ITEM: of_items}
    known = all(one.levels["seed"] > 1 for one in anovas)
    for new in (("seed",), (ITEM, "seed")):
        refused = not known or (ITEM in new and of_items.low is None)
        parts = [(0.0, 1.0)] if refused else [_seeds_part(anovas, ITEM in new)]
        if ITEM in new and not refused:
            parts.append(((of_items.standard_error or 0.0) ** 2, of_items.df or 1.0))
        variance, df = _combined(parts, confidence_level)
        found[_key(new)] = _estimate(
            float(difference.mean()),
            (variance, df),
            replace(of_items, population=_population(new, (ITEM, "seed")), method="items paired, seeds not, t"),
            n=sum(one.levels["seed"] for one in anovas) if new == ("seed",) else of_items.n,
            unit="seeds" if new == ("seed",) else of_items.unit,
            warnings=() if known else ("one seed only: how much it matters is unknown",),
        )
    return found


def crossed_tasks(
    tables: Sequence[npt.ArrayLike],
    baseline: Sequence[npt.ArrayLike] | None = None,
    *,
    clusters: Sequence[Sequence[Any] | None] | None = None,
    confidence_level: float = 0.95,
) -> dict[str, Estimate]:
    """Estimate the mean over tasks of equal weight whose items are different and whose seeds are the same.

    A seed is one training run, or one setting of the sampler, for all tasks: it moves them together. With SE_k the
    (clustered) error of task k's item means, y_s the mean over tasks under seed s, and MS_E,k task k's mean square of
    items by seeds,

        items: V_I = sum SE_k^2 / T^2,
        seeds: V_S = var(y) / S,
        both: V_I + max(0, V_S - sum MS_E,k / (n_k S) / T^2), at least V_S.

    For one task these are the variances of `crossed`, and each part has its own t as there; V_I has Satterthwaite's
    degrees of freedom. With a baseline, SE_k are of the differences of the item means, and both models' seeds have a
    part of their own, as in `crossed_difference`.

    Parameters
    ----------
    tables
        One for each task, shape (n_k, S): scores or differences of its items under the same S seeds.
    baseline
        Another model's scores of the same items, shape (n_k, S'), under seeds that have nothing to do with these: the
        results are then of the difference from them.
    clusters
        For each task one for each item, or None.
    confidence_level
        Of all intervals.

    Returns
    -------
    dict
        By what is drawn anew: "item", "seed", "item + seed".

    Raises
    ------
    InputError
        There is no task, the seeds or items differ in number, a task has fewer than two items, or a score is missing.
    """
    sides = [
        [_table(of, (ITEM, "seed"), answers=False) for of in side] for side in (tables, baseline or ()) if len(side)
    ]
    if not sides or any(len({part.shape[1] for part in side}) != 1 or min(map(len, side)) < 2 for side in sides):
        raise InputError("tasks need two items each, and the same seeds", do="Leave out tasks that lack a seed")
    if [len(part) for part in sides[0]] != [len(part) for part in sides[-1]]:
        raise InputError("the baseline has other items", do="Give the same items to both")
    n_tasks = len(sides[0])
    means = [part.mean(axis=(1, 2)) for part in sides[0]]
    if baseline is not None:
        means = [of - part.mean(axis=(1, 2)) for of, part in zip(means, sides[1], strict=True)]
    of_tasks = [
        t_interval(of, *cluster_codes(labels, len(of)), confidence_level=confidence_level)
        for of, labels in zip(means, clusters or [None] * n_tasks, strict=True)
    ]
    few = [one.warnings for one in of_tasks if one.low is None and one.standard_error != 0]
    items = _satterthwaite([(((one.standard_error or 0.0) / n_tasks) ** 2, one.df or 1.0) for one in of_tasks])
    n_seeds = [side[0].shape[1] for side in sides]
    seeds = beyond = (0.0, 1.0)
    if min(n_seeds) > 1:
        seeds, beyond = (_seeds_of_tasks(sides, of_items) for of_items in (False, True))
    found = {}
    for new in _subsets((ITEM, "seed")):
        refused: tuple[str, ...] = few[0] if few and ITEM in new else ()
        if "seed" in new and min(n_seeds) == 1:
            refused += ("one seed only: how much it matters is unknown",)
        variances = [items] if new == (ITEM,) else [seeds]
        if len(new) > 1 and items[0] + beyond[0] >= seeds[0]:
            variances = [items, beyond]
        like = replace(
            of_tasks[0],
            population=_population(new, (ITEM, "seed")),
            unit="seeds" if new == ("seed",) else "units",
            n=sum(n_seeds) if new == ("seed",) else sum(one.n for one in of_tasks),
            n_items=sum(map(len, means)),
            method="t over seeds" if new == ("seed",) else "mean over tasks, expected mean squares, t",
            quantity="the mean over tasks",
        )
        combined = (0.0, 1.0) if refused else _combined(variances, confidence_level)
        mean = float(np.mean([of.mean() for of in means]))
        found[_key(new)] = _estimate(mean, combined, like, warnings=refused)
    return found


def _seeds_of_tasks(sides: Sequence[Sequence[Floats]], beyond_items: bool) -> tuple[float, float]:
    """Variance of the mean over tasks that is due to the seeds of each side, with its degrees of freedom."""
    terms = []
    few = min(side[0].shape[1] for side in sides) < FEW_LEVELS
    for side in sides:
        n_seeds = side[0].shape[1]
        variance = float(np.mean([part.mean(axis=0)[:, 0] for part in side], axis=0).var(ddof=1)) / n_seeds
        if beyond_items and n_seeds >= FEW_LEVELS:
            # The items' part holds that noise already.
            noise = [_Anova(part, (ITEM, "seed")).mean_squares[(ITEM, "seed")][0] / part.size for part in side]
            variance = max(variance - sum(noise) / len(side) ** 2, 0.0)
        terms.append((variance, n_seeds - 1.0))
    if len(terms) == 1:
        return terms[0]
    total, df = _satterthwaite(terms)
    return total, 1.0 if few else df


def _seeds_part(anovas: Sequence[_Anova], with_items: bool) -> tuple[float, float]:
    """Variance of the difference that is due to the seeds of both models, with its degrees of freedom."""
    terms = []
    few = min(one.levels["seed"] for one in anovas) < FEW_LEVELS
    for one in anovas:
        (between, df), (noise, _) = one.mean_squares[("seed",)], one.mean_squares[(ITEM, "seed")]
        # The items' part holds that noise already.
        taken_off = noise if with_items and one.levels["seed"] >= FEW_LEVELS else 0.0
        terms.append((max(between - taken_off, 0.0) / one.n, df))
    total, df = _satterthwaite(terms)
    return total, 1.0 if few else df


def neighbour_noise(scores: npt.ArrayLike, *, confidence_level: float = 0.95) -> Component:
    """Estimate the noise of one checkpoint's mean score from its neighbours, about a locally linear trend.

    sigma^2 = sum (y_{t-1} - 2 y_t + y_{t+1})^2 / (6 (T - 2)) (Gasser, Sroka and Jennen-Steinmetz 1986, Biometrika
    73:625); the interval is chi-squared with degrees of freedom that match its variance for independent normal noise.
    Neighbours share data order and items, so this is neither the variance over seeds nor that over test sets.

    Parameters
    ----------
    scores
        Shape (T,): mean scores of equally spaced checkpoints, T at least 4.

    Raises
    ------
    InputError
        There are fewer than 4 scores, or one is missing.
    """
    of = np.asarray(scores, dtype=float)
    if of.ndim != 1 or len(of) < 4 or not np.isfinite(of).all():
        raise InputError(f"scores of shape {of.shape} are no series of at least 4 checkpoints")
    n = len(of) - 2
    variance = float(np.sum(np.diff(of, 2) ** 2)) / (6 * n)
    # Second differences have autocovariances 6, -4, 1; tr(V)^2 / tr(V^2) of their n x n covariance V.
    df = 36.0 * n**2 / (36 * n + 2 * 16 * (n - 1) + 2 * max(n - 2, 0))
    low, high = sd_interval(variance, df, confidence_level=confidence_level)
    return Component(
        ("checkpoint",), variance, math.sqrt(variance), low, high, confidence_level, method="chi-squared, differences"
    )


def sd_interval(variance: float, df: float, *, confidence_level: float = 0.95) -> tuple[float, float]:
    """Return the chi-squared interval of a standard deviation: sqrt(df variance / quantile).

    With three seeds, df = 2, its ends are 0.52 and 6.3 times the estimate.
    """
    tail = (1 - confidence_level) / 2
    ends = (stats.chi2.isf(tail, df), stats.chi2.ppf(tail, df))
    low, high = (math.sqrt(df * variance / float(end)) for end in ends)
    return low, high


class _Anova:
    """Mean squares, each with its degrees of freedom, of every combination of the facets with several levels."""

    def __init__(self, table: Floats, facets: Subset) -> None:
        self.facets = facets
        self.levels = dict(zip(facets, table.shape, strict=False))
        self.answers, self.n = table.shape[-1], table.size
        self.cells = table.mean(axis=-1)
        self.open = tuple(name for name in facets if self.levels[name] > 1)
        axes = {name: axis for axis, name in enumerate(facets)}
        self.mean_squares: dict[Subset, tuple[float, float]] = {}
        means = {(): self.cells.mean(keepdims=True)}
        effects: dict[Subset, Floats] = {(): means[()]}
        for subset in _subsets(self.open):
            away = tuple(axis for name, axis in axes.items() if name not in subset)
            below = sum(effect for part, effect in effects.items() if set(part) < set(subset))
            effects[subset] = self.cells.mean(axis=away, keepdims=True) - below
            df = math.prod(self.levels[name] - 1 for name in subset)
            per_level = self.n / math.prod(self.levels[name] for name in subset)
            self.mean_squares[subset] = (per_level * float(np.sum(effects[subset] ** 2)) / df, float(df))
        self.noise: tuple[float, float] | None = None
        if self.answers > 1:
            df = self.cells.size * (self.answers - 1)
            self.noise = (float(np.sum((table - self.cells[..., None]) ** 2)) / df, float(df))


def _table(scores: npt.ArrayLike, facets: Sequence[str], answers: bool) -> Floats:
    """Return scores with one axis per facet and a last one of answers."""
    of = np.asarray(scores, dtype=float)
    if len(set(facets)) < len(facets) or ANSWER in facets:
        raise SpecError(f"facets {', '.join(facets)}", do=f"Name each once, and none {ANSWER!r}")
    if of.ndim != len(facets) + answers or not of.size:
        raise InputError(
            f"scores of shape {of.shape} for {', '.join(facets)}{f' and {ANSWER}s' if answers else ''}",
            do="Give one axis for each",
        )
    if missing := int((~np.isfinite(of)).sum()):
        raise InputError(
            f"{missing} of {of.size} scores are missing", do="Leave out items, or seeds, that are not complete"
        )
    return of if answers else of[..., None]


def _subsets(facets: Subset) -> list[Subset]:
    return [one for size in range(1, len(facets) + 1) for one in itertools.combinations(facets, size)]


def _chosen(new: Sequence[str], levels: Mapping[str, int]) -> Subset:
    if not new or not set(new) <= set(levels):
        raise SpecError(f"no facets {', '.join(new) or '(none)'}", do=f"Choose of {', '.join(levels)}")
    return tuple(name for name in levels if name in new)


def _key(new: Subset) -> str:
    return " + ".join(new)


def _population(new: Subset, facets: Subset) -> str:
    stay = [name for name in facets if name not in new]
    drawn = " and ".join(f"{name}s like these" for name in new)
    return drawn + (f", with {' and '.join(f'these {name}s' for name in stay)}" if stay else "")


def _satterthwaite(terms: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Sum of independent variances, with signs, and its degrees of freedom."""
    total = sum(variance for variance, _ in terms)
    squares = sum(variance**2 / df for variance, df in terms)
    return total, total**2 / squares if squares > 0 else 1.0


def _interval(anova: _Anova, new: Subset, cluster: Sequence[Any] | None, confidence_level: float) -> Estimate:
    single = [name for name in new if anova.levels[name] == 1]
    mean = float(anova.cells.mean())
    first = new[0] if len(new) == 1 else (ITEM if ITEM in new else new[0])
    bare = Estimate(
        estimate=mean,
        low=None,
        high=None,
        confidence_level=confidence_level,
        method="t over levels" if len(new) == 1 else "expected mean squares, t",
        population=_population(new, anova.facets),
        unit=f"{first}s",
        n=anova.levels[first],
        n_items=anova.levels.get(ITEM, anova.cells.size),
        quantity="the mean",
    )
    if single:
        return replace(bare, warnings=tuple(f"one {name} only: how much it matters is unknown" for name in single))
    of_items = None
    if cluster is not None and ITEM in new:
        means = anova.cells.mean(axis=tuple(axis for axis, name in enumerate(anova.facets) if name != ITEM))
        of_items = t_interval(means, *cluster_codes(cluster, len(means)), confidence_level=confidence_level)
        bare = replace(bare, unit=of_items.unit, n=of_items.n, method=f"{bare.method}, clusters CR2")
        if of_items.n < MIN_CLUSTERS or of_items.standard_error is None:
            return replace(bare, warnings=of_items.warnings)
    parts = _parts(anova, new, of_items)
    return _estimate(mean, _combined(parts, confidence_level), bare, warnings=of_items.warnings if of_items else ())


def _parts(anova: _Anova, new: Subset, of_items: Estimate | None) -> list[tuple[float, float]]:
    """What each facet adds to the variance of the mean, beyond those before it, with its degrees of freedom."""
    ordered = sorted(new, key=lambda name: -anova.levels[name])
    parts, singles = [], []
    for place, name in enumerate(ordered):
        own, df = anova.mean_squares[(name,)]
        before = [(), *_subsets(tuple(ordered[:place]))]
        added = 0.0
        for subset in before:
            both = tuple(one for one in anova.facets if one in (*subset, name))
            added += (-1) ** len(subset) * anova.mean_squares[both][0]
        if anova.levels[name] < FEW_LEVELS:
            added = own
        if name == ITEM and of_items is not None and of_items.standard_error is not None:
            own, df = of_items.standard_error**2 * anova.n, of_items.df or 1.0
            added = own if not place else max(added, 0.0)
        parts.append((max(added, 0.0) / anova.n, df))
        singles.append((own / anova.n, df))
    largest = max(singles)
    return parts if sum(variance for variance, _ in parts) > largest[0] else [largest]


def _combined(parts: Sequence[tuple[float, float]], confidence_level: float) -> tuple[float, float]:
    """Sum variances V_j; the degrees of freedom are those whose t, squared, is the mean of the t_j^2 by V_j."""
    total = sum(variance for variance, _ in parts)
    if total <= 0:
        return 0.0, 1.0
    below = (1 + confidence_level) / 2
    critical = math.sqrt(sum(variance * float(special.stdtrit(df, below)) ** 2 for variance, df in parts) / total)
    low, high = min(df for _, df in parts), max(df for _, df in parts)
    ends = [float(special.stdtrit(df, below)) - critical for df in (low, high)]
    if ends[0] <= 0 or ends[1] >= 0:  # but for rounding, all parts have the same degrees of freedom, or one is all
        return total, low if ends[0] <= 0 else high
    return total, float(optimize.brentq(lambda df: float(special.stdtrit(df, below)) - critical, low, high, xtol=1e-10))


def _estimate(
    mean: float,
    variance_df: tuple[float, float],
    like: Estimate,
    *,
    n: int | None = None,
    unit: str | None = None,
    warnings: tuple[str, ...] = (),
) -> Estimate:
    variance, df = variance_df
    changed = replace(
        like, estimate=mean, n=n or like.n, unit=unit or like.unit, low=None, high=None, warnings=warnings
    )
    if variance <= 0:
        why = warnings or ("all scores are equal, so their spread says nothing",)
        return replace(changed, standard_error=None, df=None, warnings=why)
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + like.confidence_level) / 2, df)) * error
    return replace(changed, low=mean - half, high=mean + half, standard_error=error, df=df)


def _component(anova: _Anova, subset: Subset, confidence_level: float) -> Component:
    if any(anova.levels[name] == 1 for name in subset):
        return Component(subset, None, None, None, None, confidence_level)
    plus, minus = [anova.mean_squares[subset]], list[tuple[float, float]]()
    for other, square in anova.mean_squares.items():
        if set(subset) < set(other):
            (plus if (len(other) - len(subset)) % 2 == 0 else minus).append(square)
    if subset == anova.open and anova.noise is not None:
        minus.append(anova.noise)
    scale = anova.n / math.prod(anova.levels[name] for name in subset)
    first = _satterthwaite([(square / scale, df) for square, df in plus])
    if not minus:
        low, high = sd_interval(*first, confidence_level=confidence_level)
        return Component(subset, first[0], math.sqrt(first[0]), low, high, confidence_level, method="chi-squared")
    second = _satterthwaite([(square / scale, df) for square, df in minus])
    variance = first[0] - second[0]
    ends = _difference_interval(first, second, (1 - confidence_level) / 2)
    low, high = (math.sqrt(max(end, 0.0)) for end in ends)
    kept = max(variance, 0.0)
    return Component(subset, kept, math.sqrt(kept), low, high, confidence_level, variance < 0, "modified large sample")


def _answer_component(anova: _Anova, confidence_level: float) -> Component:
    if anova.noise is None:
        return Component((ANSWER,), None, None, None, None, confidence_level)
    low, high = sd_interval(*anova.noise, confidence_level=confidence_level)
    variance = anova.noise[0]
    return Component((ANSWER,), variance, math.sqrt(variance), low, high, confidence_level, method="chi-squared")


def _spread(anova: _Anova, name: str, confidence_level: float) -> Component:
    if anova.levels[name] == 1:
        return Component((name,), None, None, None, None, confidence_level)
    square, df = anova.mean_squares[(name,)]
    variance = square / (anova.n / anova.levels[name])
    low, high = sd_interval(variance, df, confidence_level=confidence_level)
    return Component((name,), variance, math.sqrt(variance), low, high, confidence_level, method="chi-squared")


def _difference_interval(first: tuple[float, float], second: tuple[float, float], tail: float) -> tuple[float, float]:
    """Interval of a difference of two expected mean squares (Ting et al. 1990; Burdick and Graybill 1992, section 3.3).

    Exact when either is zero, and for the test that they are equal.
    """
    (s1, n1), (s2, n2) = first, second
    upper, lower = float(stats.f.isf(tail, n1, n2)), float(stats.f.ppf(tail, n1, n2))
    g1, g2 = (1 - n / float(stats.chi2.isf(tail, n)) for n in (n1, n2))
    h1, h2 = (n / float(stats.chi2.ppf(tail, n)) - 1 for n in (n1, n2))
    g12 = ((upper - 1) ** 2 - (g1 * upper) ** 2 - h2**2) / upper
    h12 = ((1 - lower) ** 2 - (h1 * lower) ** 2 - g2**2) / lower
    below = (g1 * s1) ** 2 + (h2 * s2) ** 2 + g12 * s1 * s2
    above = (h1 * s1) ** 2 + (g2 * s2) ** 2 + h12 * s1 * s2
    return s1 - s2 - math.sqrt(max(below, 0.0)), s1 - s2 + math.sqrt(max(above, 0.0))
