"""Self-preference: does a judge favour its own answers, beyond what humans or other judges find?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from evalkit.judges.pairs import Floats, Ints, Pairs, clusters_or_none
from evalkit.judges.position import POPULATION
from evalkit.stats.clusters import MIN_CLUSTERS, cluster_codes, t_interval
from evalkit.stats.means import mean_score
from evalkit.stats.results import Estimate, Result


@dataclass(frozen=True)
class SelfPreference(Result):
    """What a judge makes of its own answers.

    Attributes
    ----------
    own
        The model that is the judge itself, or of its family.
    n
        Pairs of its own answer and another's, with a verdict.
    own_wins
        Share of them that its own answer wins, ties half.
    beyond_humans
        That share less the share by human labels, on the labelled pairs.
    beyond_judges
        That share less the mean of the other judges, on the pairs that they judged, too. Judges of the same family,
        and those that are of the other model's, are no yardstick and left out; how many, the warnings say.
    bias
        Wataoka, Takahashi and Ri 2024 (arXiv:2410.21819): P(picks own | humans prefer own) - P(picks the other | humans
        prefer the other). Equal opportunity: a judge that is as good for others as for itself has 0.
    warnings
        What to know.
    """

    own: str
    n: int
    own_wins: Estimate
    beyond_humans: Estimate | None
    beyond_judges: Estimate | None
    bias: Estimate | None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = (
            f"self-preference: {self.own} wins {100 * self.own_wins.estimate:.1f}% of {self.n} pairs by its own verdict"
        )
        for one, than in ((self.beyond_humans, "humans say"), (self.beyond_judges, "other judges say")):
            if one is not None:
                found += f", {100 * one.estimate:+.1f} points against what {than}"
        return found


def self_preference(
    pairs: Pairs,
    own: Sequence[str],
    others: Mapping[str, Pairs],
    families: Mapping[str, Collection[str]] | None = None,
    *,
    confidence_level: float = 0.95,
) -> SelfPreference | None:
    """Measure self-preference; None where the judge met no answer of its own.

    Without labels and other judges, a high share of own wins may be merit; then only that share is told. A judge's
    preference for text that it finds likely (low perplexity) looks the same as one for itself.

    Parameters
    ----------
    pairs
        The judge's pairs.
    own
        Names of the models that count as the judge.
    others
        Pairs of other judges, by name.
    families
        Models that count as one of the other judges, by its name; that name always does.
    confidence_level
        Of each interval.
    """
    is_a, is_b = np.isin(pairs.model_a, list(own)), np.isin(pairs.model_b, list(own))
    mine = (is_a ^ is_b) & ~np.isnan(pairs.win)
    if not mine.any():
        return None
    of, is_b = pairs.take(mine), is_b[mine]
    wins = np.where(is_b, of.win, 1 - of.win)
    level = {"confidence_level": confidence_level}
    human = np.where(is_b, of.label, 1 - of.label)
    labelled = ~np.isnan(human)
    kin = {name: {name, *(families or {}).get(name, ())} for name in others}
    neutral = {name: other for name, other in others.items() if not kin[name].intersection(own)}
    by_others, n_left_out = others_say(of, neutral, kin)
    by_others = np.where(is_b, by_others, 1 - by_others)
    judged = ~np.isnan(by_others)
    warnings = []
    if n_kin := len(others) - len(neutral):
        warnings.append(f"{n_kin} of {len(others)} other judges are of its own family and not compared with")
    if n_left_out:
        warnings.append(f"{n_left_out} verdicts of other judges on answers of their own are not compared with")
    if not labelled.any() and not judged.any():
        warnings.append("without human labels and other judges, its own wins may be merit or preference")
    return SelfPreference(
        own=", ".join(own),
        n=len(of),
        own_wins=replace(
            mean_score(wins, cluster=clusters_or_none(of.cluster), **level),
            quantity="the share of pairs that the judge's own answer wins",
            population=POPULATION,
        ),
        beyond_humans=_gap(wins, human, of.cluster, labelled, "its own wins beyond what humans say", confidence_level),
        beyond_judges=_gap(
            wins, by_others, of.cluster, judged, "its own wins beyond what judges say", confidence_level
        ),
        bias=_equal_opportunity(wins, human, of.cluster, confidence_level),
        warnings=tuple(warnings),
    )


def others_say(of: Pairs, others: Mapping[str, Pairs], kin: Mapping[str, Collection[str]]) -> tuple[Floats, int]:
    """Return the mean win of B by other judges, shape (n,), NaN where none judged, and how many verdicts were left out.

    Parameters
    ----------
    of
        Pairs of one judge.
    others
        Of other judges, by name, on the same pairs or other ones.
    kin
        Models on whose answers a judge is not neutral, by its name: its verdicts on them are left out.
    """
    found = np.full((len(of), max(len(others), 1)), np.nan)
    n_left_out = 0
    for column, (name, other) in enumerate(others.items()):
        place = {pair: number for number, pair in enumerate(other.pair_id.tolist())}
        at = np.array([place.get(pair, -1) for pair in of.pair_id.tolist()])
        # Another judge's file may have the same pair the other way round.
        same = (at >= 0) & (other.model_a[at] == of.model_a) & (other.model_b[at] == of.model_b)
        turned = (at >= 0) & (other.model_a[at] == of.model_b) & (other.model_b[at] == of.model_a)
        win = np.where(same, other.win[at], np.where(turned, 1 - other.win[at], np.nan))
        partial = np.isin(of.model_a, list(kin[name])) | np.isin(of.model_b, list(kin[name]))
        n_left_out += int((partial & ~np.isnan(win)).sum())
        found[:, column] = np.where(partial, np.nan, win)
    known = ~np.isnan(found)
    n = known.sum(axis=1)
    return np.where(n > 0, np.where(known, found, 0).sum(axis=1) / np.maximum(n, 1), np.nan), n_left_out


def _gap(
    wins: Floats, other: Floats, cluster: Ints, known: np.ndarray, quantity: str, confidence_level: float
) -> Estimate | None:
    if known.sum() < 2:
        return None
    codes, sizes = cluster_codes(clusters_or_none(cluster[known]), int(known.sum()))
    found = t_interval((wins - other)[known], codes, sizes, confidence_level=confidence_level)
    return replace(found, quantity=quantity, population=POPULATION)


def _equal_opportunity(wins: Floats, human: Floats, cluster: Ints, confidence_level: float) -> Estimate | None:
    """A difference of two rates over different pairs of the same questions, linearised over questions."""
    own, other = human == 1, human == 0
    if min(own.sum(), other.sum()) < 2:
        return None
    rates = [float(wins[own].mean()), float(1 - wins[other].mean())]
    influence = np.zeros(len(wins))
    influence[own] = (wins[own] - rates[0]) / own.sum()
    influence[other] = -((1 - wins[other]) - rates[1]) / other.sum()
    used = own | other
    codes, sizes = cluster_codes(clusters_or_none(cluster[used]), int(used.sum()))
    n = len(sizes)
    value, low, high, error = rates[0] - rates[1], None, None, None
    if n >= MIN_CLUSTERS:
        error = float(np.sqrt(np.sum(np.bincount(codes, weights=influence[used]) ** 2) * n / (n - 1)))
        # One more pair of either kind right and wrong (Agresti and Caffo), where a rate is near 0 or 1.
        shrunk = [(rate * m + 1) / (m + 2) for rate, m in zip(rates, (own.sum(), other.sum()), strict=True)]
        floor = sum(p * (1 - p) / (m + 2) for p, m in zip(shrunk, (own.sum(), other.sum()), strict=True))
        if np.isin(wins[used], (0.0, 1.0)).all():
            error = max(error, float(np.sqrt(floor)))
        if error > 0:
            half = float(stats.t.ppf((1 + confidence_level) / 2, n - 1)) * error
            low, high = max(value - half, -1.0), min(value + half, 1.0)
    return Estimate(
        estimate=value,
        low=low,
        high=high,
        confidence_level=confidence_level,
        method="linearised difference of rates over questions",
        population=POPULATION,
        unit="questions",
        n=n,
        n_items=int(used.sum()),
        standard_error=error,
        df=n - 1.0,
        quantity="how much likelier the judge agrees with humans when they prefer its own answer",
    )
