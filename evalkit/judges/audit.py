"""The audit: everything that a table of verdicts says of its judges, and of the models after that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from scipy import stats

from evalkit.errors import InputError
from evalkit.judges.agreement import Agreement, agreement
from evalkit.judges.corrected import PairResult, pair_result, rate, settled
from evalkit.judges.length import Verbosity, verbosity
from evalkit.judges.pairs import AB, BA, Pairs, pairs_of
from evalkit.judges.position import SMALLEST_BIAS, PositionBias, position_bias
from evalkit.judges.selfpreference import SelfPreference, others_say, self_preference
from evalkit.judges.verdicts import HumanLabels
from evalkit.stats.multiple import benjamini_hochberg, holm
from evalkit.stats.ratings import Ratings, bradley_terry
from evalkit.stats.results import Estimate, Result

MANY_FAILURES: Final = 0.05
"""Above this share of calls without a verdict, the rest is no random part of all any more."""

_LISTED: Final = 20
_MOST_TASKS: Final = 30
_FEWEST_BY_GAP: Final = 60


@dataclass(frozen=True)
class Slice(Result):
    """Position bias of a part of the pairs: a task, or a pair of models with the gap between them.

    p values and signs are adjusted over the parts of one kind (Benjamini and Hochberg). `gap` is |win rate - 1/2|: of a
    pair of models after both orders, which contradictions draw to 0; of parts by gap, by the other judges.
    """

    name: str
    gap: float | None
    position: PositionBias


@dataclass(frozen=True)
class JudgeAudit(Result):
    """One judge.

    Attributes
    ----------
    judge
        Its name.
    n_calls, n_failed
        Calls, and those without a verdict.
    position
        Over all pairs.
    by_task, by_models
        The same by task and by pair of models, where there are several.
    by_gap
        The same by how far apart the answers are by the other judges (|mean win rate - 1/2|, in thirds); empty without
        other judges. The judge's own verdicts would not do: pairs on which it contradicts itself would be the close
        ones by construction.
    verbosity
        What length does.
    self_preference
        Where the judge met its own answers.
    with_humans, with_humans_both
        Agreement with human labels, of single verdicts and after both orders (where a contradiction is a tie).
    results
        B against A for each pair of models.
    warnings
        What to know.
    """

    judge: str
    n_calls: int
    n_failed: int
    position: PositionBias
    by_task: tuple[Slice, ...]
    by_models: tuple[Slice, ...]
    by_gap: tuple[Slice, ...]
    verbosity: Verbosity
    self_preference: SelfPreference | None
    with_humans: Agreement | None
    with_humans_both: Agreement | None
    results: tuple[PairResult, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.judge}: {self.position}"


@dataclass(frozen=True)
class Disagreement(Result):
    """A pair on which judges disagree: what each says, as the win of B (0 to 1)."""

    pair_id: str
    verdicts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Panel(Result):
    """Several judges together.

    Attributes
    ----------
    judges
        Their names.
    n_pairs
        Pairs that at least two of them judged.
    agreement
        Of their verdicts after both orders (a, tie, b), or of answers rated apart. A judge's pairs in one order are
        left out; all are used, with a warning, where it has no others.
    majority, average
        Win rate of B by each pair of models: of majority votes (no majority is a tie), and of the judges' mean.
    n_disagreements, disagreements
        Pairs that one judge gives to A and another to B; the first of them.
    warnings
        What to know.
    """

    judges: tuple[str, ...]
    n_pairs: int
    agreement: Agreement
    majority: tuple[Estimate, ...]
    average: tuple[Estimate, ...]
    n_disagreements: int
    disagreements: tuple[Disagreement, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit(Result):
    """All judges of a table, their panel, and the models' ratings.

    Attributes
    ----------
    judges
        One audit each.
    panel
        Of two or more judges of the same pairs.
    humans
        Agreement of the human raters with each other, the ceiling for a judge; None with one rater or without labels.
    ratings
        Of three or more models by each judge (Bradley-Terry over questions, rank sets), by the judge's name.
    warnings
        What to know.
    """

    judges: tuple[JudgeAudit, ...]
    panel: Panel | None
    humans: Agreement | None
    ratings: tuple[tuple[str, Ratings], ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.judges))


def audit(
    table: pa.Table,
    *,
    labels: HumanLabels | None = None,
    families: Mapping[str, Sequence[str]] | None = None,
    smallest_bias: float = SMALLEST_BIAS,
    confidence_level: float = 0.95,
) -> Audit:
    """Audit the judges of a verdicts table.

    Parameters
    ----------
    table
        As `tables.VERDICTS` has it.
    labels
        Human labels.
    families
        Models that count as the judge itself, by judge; a model with the judge's own name always does.
    smallest_bias
        A smaller position bias does not matter, in proportions.
    confidence_level
        Of each interval.

    Raises
    ------
    InputError
        There is no verdict, no label fits a pair, or a family names an unknown judge.
    """
    if not table.num_rows:
        raise InputError("there is no verdict", where="verdicts", do="Give a table with rows")
    by_judge = pairs_of(table, labels.labels if labels else None)
    if unknown := [name for name in families or {} if name not in by_judge]:
        raise InputError(f"there is no judge '{unknown[0]}'", where="--own", do=f"The judges: {', '.join(by_judge)}")
    warnings = _label_warnings(labels.labels if labels else None, by_judge)
    level = {"confidence_level": confidence_level}
    judges = tuple(
        _of_judge(pairs, by_judge, families or {}, smallest_bias=smallest_bias, **level) for pairs in by_judge.values()
    )
    ratings = [(name, found) for name, pairs in by_judge.items() if (found := _ratings(pairs, warnings, **level))]
    humans = _humans(labels, by_judge, **level)
    return Audit(judges, _panel(by_judge, **level), humans, tuple(ratings), tuple(warnings))


def _humans(labels: HumanLabels | None, by_judge: Mapping[str, Pairs], *, confidence_level: float) -> Agreement | None:
    """How far the human raters agree with each other: no judge can be asked for more."""
    raters = sorted({rater for of in labels.ratings.values() for rater in of}) if labels else []
    if labels is None or len(raters) < 2 or all(len(of) < 2 for of in labels.ratings.values()):
        return None
    codes = {"a": 0, "tie": 1, "b": 2}
    ratings = [[codes[of[rater]] if rater in of else -1 for rater in raters] for of in labels.ratings.values()]
    # Labels are by pair or by question; several pairs of one question are no independent evidence.
    prompt = {pair: q for one in by_judge.values() for pair, q in zip(one.pair_id, one.prompt, strict=True)}
    cluster = [str(prompt.get(name, name)) for name in labels.ratings]
    return agreement(ratings, raters=raters, cluster=cluster, confidence_level=confidence_level)


def _label_warnings(labels: Mapping[str, str] | None, by_judge: Mapping[str, Pairs]) -> list[str]:
    if not labels:
        return []
    names = {name for pairs in by_judge.values() for of in (pairs.pair_id, pairs.prompt) for name in of.tolist()}
    known = names.intersection(labels)
    if not known:
        raise InputError(
            "not one label belongs to a pair", where="--labels", do="Use the pair_id (or doc_hash) of the verdicts"
        )
    unused = len(labels) - len(known)
    return [f"{unused} of {len(labels)} labels belong to no pair"] if unused else []


def _of_judge(
    pairs: Pairs,
    by_judge: Mapping[str, Pairs],
    families: Mapping[str, Sequence[str]],
    *,
    smallest_bias: float,
    confidence_level: float,
) -> JudgeAudit:
    level = {"confidence_level": confidence_level}
    position = position_bias(pairs, smallest_bias=smallest_bias, alpha=1 - confidence_level, **level)
    of_length = verbosity(pairs, **level)
    controlled = {(one.model_a, one.model_b): one for one in of_length.controlled}
    own = list(dict.fromkeys((pairs.judge, *families.get(pairs.judge, ()))))
    others = {name: other for name, other in by_judge.items() if name != pairs.judge}
    n_failed = int(pairs.n_failed.sum())
    n_calls = int(pairs.n_calls.sum()) + n_failed
    warnings = []
    if n_failed > MANY_FAILURES * n_calls:
        warnings.append(
            f"{n_failed} of {n_calls} calls have no verdict ({n_failed / n_calls:.0%}): if the judge fails more often"
            " on some kinds of pairs, the rest is no fair part of all"
        )
    n_left = len(set(pairs.task.tolist())) - _MOST_TASKS
    if n_left > 0:
        warnings.append(f"{n_left} more tasks have no line of their own")
    tasks = list(dict.fromkeys(pairs.task.tolist()))
    rows = {models: (pairs.model_a == models[0]) & (pairs.model_b == models[1]) for models in pairs.models}
    return JudgeAudit(
        judge=pairs.judge,
        n_calls=n_calls,
        n_failed=n_failed,
        position=position,
        by_task=_slices(
            {task: pairs.task == task for task in tasks[:_MOST_TASKS]}, pairs, smallest_bias, confidence_level
        ),
        by_models=_slices({f"{a} / {b}": rows[a, b] for a, b in rows}, pairs, smallest_bias, confidence_level),
        by_gap=_by_gap(pairs, others, smallest_bias, confidence_level),
        verbosity=of_length,
        self_preference=self_preference(pairs, own, others, families, **level),
        with_humans=_with_humans(pairs, confidence_level, both=False),
        with_humans_both=_with_humans(pairs, confidence_level, both=True),
        results=_holm_adjusted(
            [pair_result(pairs.take(mask), position, controlled.get(models), **level) for models, mask in rows.items()]
        ),
        warnings=tuple(warnings),
    )


def _holm_adjusted(results: Sequence[PairResult]) -> tuple[PairResult, ...]:
    """The p values of all pairs of models together."""
    tested = [one.test.p_value for one in results if one.test is not None]
    adjusted = iter(holm(tested).adjusted if tested else ())
    return tuple(one if one.test is None else replace(one, p_adjusted=next(adjusted)) for one in results)


def _slices(
    masks: Mapping[str, np.ndarray], pairs: Pairs, smallest_bias: float, confidence_level: float
) -> tuple[Slice, ...]:
    """Position bias of each part, with p values adjusted over the parts; none where there is only one."""
    if len(masks) < 2:
        return ()
    found = []
    for name, mask in masks.items():
        of = pairs.take(mask)
        position = position_bias(of, smallest_bias=smallest_bias, confidence_level=confidence_level)
        win = of.win[of.both]
        # Between several pairs of models A and B mean nothing.
        gap = abs(float(win.mean()) - 0.5) if len(win) and len(of.models) == 1 else None
        found.append(Slice(name, gap, position))
    return _adjusted(found, 1 - confidence_level)


def _adjusted(slices: Sequence[Slice], alpha: float) -> tuple[Slice, ...]:
    """Benjamini and Hochberg's q over the slices in place of their own p, and the signs by it."""
    tested = [one for one in slices if one.position.p_adjusted is not None]
    if not tested:
        return tuple(slices)
    q = iter(benjamini_hochberg([one.position.p_adjusted or 0.0 for one in tested]).adjusted)
    found = []
    for one in slices:
        position = one.position
        if position.p_adjusted is not None:
            position = position.with_sign(next(q), alpha=alpha)
        found.append(replace(one, position=position))
    return tuple(found)


def _by_gap(
    pairs: Pairs, others: Mapping[str, Pairs], smallest_bias: float, confidence_level: float
) -> tuple[Slice, ...]:
    """Thirds of the pairs by how far apart the other judges find the answers, the closest first."""
    fair = {name: other.take(settled(other)) for name, other in others.items()}
    fair = {name: other for name, other in fair.items() if len(other)}
    gaps = np.abs(others_say(pairs, fair, {name: (name,) for name in fair})[0] - 0.5)
    known = pairs.both & ~np.isnan(gaps)
    if known.sum() < _FEWEST_BY_GAP:
        return ()
    # By mean ranks, so that gaps that are equal, as those of few judges are, stay together; a part may be empty.
    third = np.full(len(pairs), -1.0)
    third[known] = 3 * (stats.rankdata(gaps[known]) - 0.5) // known.sum()
    masks = {name: third == at for at, name in enumerate(("close", "between", "far apart"))}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    slices = _slices(masks, pairs, smallest_bias, confidence_level)
    return tuple(replace(one, gap=float(gaps[masks[one.name]].mean())) for one in slices)


def _verdicts(wins: np.ndarray) -> np.ndarray:
    """0 (A), 1 (a tie) or 2 (B) by win rates of B; -1 where there is none."""
    return np.where(np.isnan(wins), -1, 1 + np.sign(np.nan_to_num(wins, nan=0.5) - 0.5)).astype(np.int64)


def _with_humans(pairs: Pairs, confidence_level: float, *, both: bool) -> Agreement | None:
    """Agreement with human labels: of the first call of each order, or of the verdict after both orders."""
    labelled = ~np.isnan(pairs.label) & (settled(pairs) if both else ~np.isnan(pairs.win))
    if labelled.sum() < 2 or (both and not pairs.both.any()):
        return None
    of = pairs.take(labelled)
    humans = (np.nan_to_num(of.label) * 2).astype(np.int64)
    if both:
        at: np.ndarray = np.arange(len(of))
        verdicts = _verdicts(of.win)
    else:
        at, order = np.nonzero(of.first >= 0)
        verdicts = of.first[at, order]
    return agreement(
        np.column_stack([humans[at], verdicts]),
        raters=("humans", pairs.judge),
        cluster=of.cluster[at],
        confidence_level=confidence_level,
    )


def _panel(by_judge: Mapping[str, Pairs], *, confidence_level: float) -> Panel | None:
    """Put the judges' verdicts on the same pairs side by side."""
    if len(by_judge) < 2:
        return None
    place: dict[tuple[str, str, str], int] = {}
    for pairs in by_judge.values():
        for key in zip(pairs.pair_id, pairs.model_a, pairs.model_b, strict=True):
            place.setdefault(key, len(place))
    n, names = len(place), tuple(by_judge)
    wins = np.full((n, len(names)), np.nan)
    where = np.zeros((len(names), n), dtype=np.int64) - 1
    warnings = []
    for column, pairs in enumerate(by_judge.values()):
        fair = settled(pairs)
        if not fair.any():
            warnings.append(f"{pairs.judge}: its verdicts are of one order, or of an unknown one")
        elif n_single := int((~fair & ~np.isnan(pairs.win)).sum()):
            warnings.append(f"{pairs.judge}: {n_single} pairs without verdicts in both orders are left out")
        at = np.array([place[key] for key in zip(pairs.pair_id, pairs.model_a, pairs.model_b, strict=True)])
        wins[at, column] = np.where(fair, pairs.win, np.nan) if fair.any() else pairs.win
        where[column, at] = np.arange(len(pairs))
    known = ~np.isnan(wins)
    shared = np.flatnonzero(known.sum(axis=1) >= 2)
    if len(shared) < 2:
        return None
    wins, where = wins[shared], where[:, shared]
    signs = np.sign(wins - 0.5)
    votes = np.nansum(signs, axis=1)
    split = np.flatnonzero((np.nanmin(signs, axis=1) < 0) & (np.nanmax(signs, axis=1) > 0))
    # Each shared pair as the first judge that has it describes it.
    base = [list(by_judge.values())[int(np.argmax(where[:, i] >= 0))] for i in range(len(shared))]
    rows = [int(where[int(np.argmax(where[:, i] >= 0)), i]) for i in range(len(shared))]
    prompts = [f"{one.pair_id[k]}" for one, k in zip(base, rows, strict=True)]
    # Clusters are numbered alike by judges of the same pairs only; the question itself is what they share.
    cluster = np.unique([f"{one.prompt[k]}" for one, k in zip(base, rows, strict=True)], return_inverse=True)[1]
    models = np.array([f"{one.model_a[k]}\0{one.model_b[k]}" for one, k in zip(base, rows, strict=True)], dtype=object)
    return Panel(
        judges=names,
        n_pairs=len(shared),
        agreement=agreement(_verdicts(wins), raters=names, cluster=cluster, confidence_level=confidence_level),  # type: ignore[arg-type]
        majority=_panel_results((np.sign(votes) + 1) / 2, models, cluster, confidence_level),
        average=_panel_results(np.nanmean(wins, axis=1), models, cluster, confidence_level),
        n_disagreements=len(split),
        disagreements=tuple(
            Disagreement(
                prompts[i], tuple((name, float(w)) for name, w in zip(names, wins[i], strict=True) if not np.isnan(w))
            )
            for i in split[:_LISTED].tolist()
        ),
        warnings=tuple(warnings),
    )


def _panel_results(
    wins: np.ndarray, models: np.ndarray, cluster: np.ndarray, confidence_level: float
) -> tuple[Estimate, ...]:
    found = []
    for name in dict.fromkeys(models.tolist()):
        mask = models == name
        a, b = name.split("\0")
        what = f"the win rate of {b} over {a}"
        found.append(rate(wins[mask], cluster[mask], what, confidence_level=confidence_level))
    return tuple(found)


def _ratings(pairs: Pairs, warnings: list[str], *, confidence_level: float) -> Ratings | None:
    """Rate three or more models by a judge's calls."""
    names = {*pairs.model_a.tolist(), *pairs.model_b.tolist()}
    known = ~np.isnan(pairs.win)
    if len(names) < 3 or not known.any():
        return None
    of = pairs.take(known)
    # Both orders as two comparisons of one question: the covariance is over questions.
    at, order = np.nonzero(of.n_calls > 0)
    outcome = np.round(of.by_order[at, order] * 2) / 2
    given: dict[str, Any] = {
        "first": of.model_b[at].tolist(),
        "second": of.model_a[at].tolist(),
        "wins": outcome,
        "cluster": of.cluster[at].tolist(),
        "confidence_level": confidence_level,
    }
    shown_first = np.select([order == BA, order == AB], [0.5, -0.5], 0.0)
    position: dict[str, Any] = {"covariates": shown_first[:, None], "covariate_names": ["being shown first"]}
    if shown_first.any():
        # It cannot always be told from strengths; whatever else is wrong comes again below.
        with suppress(InputError):
            return bradley_terry(**given, **position)
    if not of.order_free.all():
        warnings.append(f"{pairs.judge}: the judge's position bias, if it has one, is in the ratings")
    try:
        return bradley_terry(**given)
    except InputError as error:
        warnings.append(f"{pairs.judge}: no ratings: {error}")
        return None
