"""One judge's calls as pairs: counts of outcomes in either order, ready for the statistics.

Everything that is said of a judge is computed from these arrays. A pair is one question with two answers; both orders
and all repeats of a pair lie in one cluster, and so do all pairs of one question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from evalkit.errors import InputError
from evalkit.judges.style import STYLES

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AB, BA, UNKNOWN = 0, 1, 2
"""Which answer was shown first: A's, B's, or nobody knows, or none (see `Pairs.order_free`)."""

_OUTCOMES: Final = {"a": 0, "tie": 1, "b": 2}
_VALUES: Final = np.array([0.0, 0.5, 1.0])


@dataclass(frozen=True)
class Pairs:
    """One judge's verdicts on n pairs.

    Attributes
    ----------
    judge
        Its name.
    pair_id, task, model_a, model_b
        Shape (n,), text.
    prompt, cluster
        Shape (n,): the question, as text and as a number.
    first
        Shape (n, 3): the first call's outcome in each order (AB, BA, unknown): 0 for A, 1 for a tie, 2 for B, -1 where
        there is none that succeeded.
    counts
        Shape (n, 3, 3): calls by order and outcome.
    n_failed
        Shape (n, 3): calls without a verdict.
    preference
        Shape (n, 3): mean probability of B by order, where calls tell one, else of their outcomes; NaN without calls.
    lengths
        Shape (n, 2), characters; NaN where unknown.
    styles
        Marks of style by name, each (n, 2).
    label
        Shape (n,): what humans say: 0 for A, 0.5, 1 for B; NaN without a label.
    identical
        Shape (n,): both answers are the same text.
    order_free
        Shape (n,): the answers were rated apart, so that neither was shown first; such calls count as UNKNOWN.
    """

    judge: str
    pair_id: npt.NDArray[Any]
    task: npt.NDArray[Any]
    model_a: npt.NDArray[Any]
    model_b: npt.NDArray[Any]
    prompt: npt.NDArray[Any]
    cluster: Ints
    first: Ints
    counts: Ints
    n_failed: Ints
    preference: Floats
    lengths: Floats
    styles: Mapping[str, Floats]
    label: Floats
    identical: npt.NDArray[np.bool_]
    order_free: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pair_id)

    def take(self, mask: npt.NDArray[Any]) -> Pairs:
        """The pairs of a mask or of indices."""
        names = (
            "pair_id",
            "task",
            "model_a",
            "model_b",
            "prompt",
            "cluster",
            "first",
            "counts",
            "n_failed",
            "preference",
        )
        arrays = {name: getattr(self, name)[mask] for name in (*names, "lengths", "label", "identical", "order_free")}
        return Pairs(judge=self.judge, styles={name: of[mask] for name, of in self.styles.items()}, **arrays)

    @cached_property
    def n_calls(self) -> Ints:
        """Calls with a verdict, shape (n, 3)."""
        found: Ints = self.counts.sum(axis=2)
        return found

    @cached_property
    def both(self) -> npt.NDArray[np.bool_]:
        """Whether there is a verdict in either order."""
        return np.asarray((self.n_calls[:, :2] > 0).all(axis=1), dtype=bool)

    @cached_property
    def by_order(self) -> Floats:
        """Mean outcome for B by order, shape (n, 3): 1 is a win of B, 0.5 a tie; NaN without calls."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = (self.counts @ _VALUES) / self.n_calls
        return found

    @cached_property
    def win(self) -> Floats:
        """Outcome for B, averaged over repeats and then over orders, shape (n,); NaN without calls."""
        return _mean_of_orders(self.by_order)

    @cached_property
    def soft(self) -> Floats:
        """As `win`, of the judge's probabilities where it tells them."""
        return _mean_of_orders(self.preference)

    @cached_property
    def has_preferences(self) -> bool:
        """Whether any probability says more than the verdict."""
        known = ~np.isnan(self.preference)
        return bool(np.any(np.abs(self.preference[known] - self.by_order[known]) > 1e-9))

    @cached_property
    def across(self) -> Floats:
        """Chance that a call of either order disagree, shape (n,); NaN unless both are there."""
        shares = self._shares()
        found = 1 - np.sum(shares[:, AB] * shares[:, BA], axis=1)
        return np.where(self.both, found, np.nan)

    @cached_property
    def within(self) -> Floats:
        """Chance that two calls of one order disagree, shape (n,), averaged over orders; NaN without repeats."""
        of_order = self.within_by_order
        n = np.sum(~np.isnan(of_order), axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = np.nansum(of_order, axis=1) / n
        return np.where(n > 0, found, np.nan)

    @cached_property
    def within_by_order(self) -> Floats:
        """The same for each order, shape (n, 3)."""
        m = self.n_calls
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = 1 - np.sum(self.counts * (self.counts - 1.0), axis=2) / (m * (m - 1.0))
        return np.where(m > 1, found, np.nan)

    def _shares(self) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = self.counts / self.n_calls[:, :, None]
        return found

    @cached_property
    def models(self) -> list[tuple[str, str]]:
        """The distinct pairs of models, in the order in which they come."""
        return list(dict.fromkeys(zip(self.model_a.tolist(), self.model_b.tolist(), strict=True)))


def _mean_of_orders(values: Floats) -> Floats:
    known = ~np.isnan(values)
    n = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(known, values, 0.0).sum(axis=1) / n
    return np.where(n > 0, found, np.nan)


def pairs_of(table: pa.Table, labels: Mapping[str, str] | None = None) -> dict[str, Pairs]:
    """Bring the calls of each judge together by pair, in the order in which pairs first come.

    Parameters
    ----------
    table
        The verdicts table.
    labels
        Human labels by `pair_id` or `doc_hash`; they win over the table's own.

    Raises
    ------
    InputError
        A label fits several pairs, or the table has two labels of one pair.
    """
    frame = table.drop_columns(["raw"]).to_pandas()
    if labels:
        _check_labels(frame, labels)
    return {str(judge): _of_judge(str(judge), rows, labels or {}) for judge, rows in frame.groupby("judge", sort=False)}


def _check_labels(frame: pd.DataFrame, labels: Mapping[str, str]) -> None:
    """Refuse a label that names a question of several pairs: it says who wins one of them."""
    named = frame[~frame.pair_id.isin(labels) & frame.doc_hash.isin(labels)]
    for name, ids in named.groupby("doc_hash", sort=False).pair_id.unique().items():
        if len(ids) > 1:
            raise InputError(
                f"the label of '{name}' fits {len(ids)} pairs, such as '{ids[0]}' and '{ids[1]}'",
                where="--labels",
                do="Name the pair by its pair_id",
            )


def _of_judge(judge: str, rows: pd.DataFrame, labels: Mapping[str, str]) -> Pairs:
    codes, ids = pd.factorize(rows.pair_id)
    n = len(ids)
    order = rows.order.map({"ab": AB, "ba": BA}).fillna(UNKNOWN).to_numpy(dtype=np.int64)
    outcome = rows.winner.map(_OUTCOMES).fillna(-1).to_numpy(dtype=np.int64)
    valid = outcome >= 0
    cell = codes * 3 + order
    counts = np.bincount(cell[valid] * 3 + outcome[valid], minlength=9 * n).reshape(n, 3, 3)
    failed = np.bincount(cell[~valid], minlength=3 * n).reshape(n, 3)
    first = np.full(3 * n, -1, dtype=np.int64)
    begin = np.flatnonzero(valid)
    # Written backwards, so that the lowest repeat stays.
    by_repeat = begin[np.argsort(-rows.repeat.to_numpy()[begin], kind="stable")]
    first[cell[by_repeat]] = outcome[by_repeat]
    told = rows.preference.to_numpy(dtype=float, na_value=np.nan)[valid]
    told = np.where(np.isnan(told), _VALUES[outcome[valid]], told)
    sums = np.bincount(cell[valid], weights=told, minlength=3 * n).reshape(n, 3)
    with np.errstate(invalid="ignore", divide="ignore"):
        preference = sums / counts.sum(axis=2)
    of_pair = rows.groupby(codes)
    # What is known of a pair may stand in any of its rows.
    one = of_pair.first()
    if (several := of_pair.label.nunique() > 1).any():
        at = int(np.argmax(several.to_numpy()))
        raise InputError(
            f"the pair '{ids[at]}' has two labels",
            where=f"the verdicts of {judge}",
            do="Keep one, or give --labels with a column rater",
        )
    prompt = one.doc_hash.where(one.doc_hash.notna(), one.pair_id)
    label = one.label.map({"a": 0.0, "tie": 0.5, "b": 1.0}).to_numpy(dtype=float, na_value=np.nan)
    if labels:
        given = one.pair_id.map(labels)
        given = given.where(given.notna(), prompt.map(labels))
        values = given.map({"a": 0.0, "tie": 0.5, "b": 1.0}).to_numpy(dtype=float, na_value=np.nan)
        label = np.where(np.isnan(values), label, values)
    return Pairs(
        judge=judge,
        pair_id=np.asarray(ids, dtype=object),
        task=one.task.fillna("").to_numpy(dtype=object),
        model_a=one.model_a.to_numpy(dtype=object),
        model_b=one.model_b.to_numpy(dtype=object),
        prompt=prompt.to_numpy(dtype=object),
        cluster=pd.factorize(prompt)[0].astype(np.int64),
        first=first.reshape(n, 3),
        counts=counts,
        n_failed=failed,
        preference=preference,
        lengths=_two(one, "length"),
        styles={name: _two(one, name) for name in STYLES},
        label=np.asarray(label, dtype=np.float64),
        identical=one.identical.fillna(False).to_numpy(dtype=bool),
        order_free=np.bincount(codes, weights=(rows.order != "none").to_numpy(), minlength=n) == 0,
    )


def _two(rows: pd.DataFrame, name: str) -> Floats:
    return np.column_stack([rows[f"{name}_{side}"].to_numpy(dtype=float, na_value=np.nan) for side in "ab"])


def clusters_or_none(cluster: Ints) -> Any:
    """The clusters, or None where each pair is one of its own."""
    return None if len(np.unique(cluster)) == len(cluster) else cluster
