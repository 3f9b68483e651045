"""Of the items that one place in a document resembles, it is a copy of the nearest.

Benchmarks are full of siblings: the same question about another year, or another country. Where one of them was copied,
the others are found edited. A run or near match is therefore *outdone* by a near match of another item in the same
document that is more similar and covers at least half of its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.contamination.evaluate import Int64, Runs
from evalkit.contamination.index import Index

_COVERED: Final = 0.5
_TIE: Final = 1e-9


def find_outdone(index: Index, runs: Runs, least: float) -> npt.NDArray[np.bool_]:
    """Return for every run and near match whether it is outdone; only those at least so similar are looked at."""
    items = _items(index, runs)
    outdone = np.zeros(len(runs), dtype=bool)
    for some, rivals in _together(runs, np.flatnonzero(runs.similarities >= least), np.flatnonzero(runs.n_edits >= 0)):
        common = np.minimum.outer(runs.ends[some], runs.ends[rivals])
        common -= np.maximum.outer(runs.starts[some], runs.starts[rivals])
        is_covered = common >= _COVERED * (runs.ends[some] - runs.starts[some])[:, None]
        is_better = np.subtract.outer(runs.similarities[some], runs.similarities[rivals]) < -_TIE
        outdone[some] = (is_covered & is_better & np.not_equal.outer(items[some], items[rivals])).any(axis=1)
    return outdone


def find_covered(index: Index, runs: Runs, chosen: Int64) -> npt.NDArray[np.bool_]:
    """Return for every run whether it is one of the chosen and lies within a longer run of another item."""
    items = _items(index, runs)
    covered = np.zeros(len(runs), dtype=bool)
    for some, others in _together(runs, chosen, np.flatnonzero(runs.n_edits < 0)):
        is_within = np.greater_equal.outer(runs.starts[some], runs.starts[others])
        is_within &= np.less_equal.outer(runs.ends[some], runs.ends[others])
        is_longer = np.less.outer(runs.n_tokens[some], runs.n_tokens[others])
        covered[some] = (is_within & is_longer & np.not_equal.outer(items[some], items[others])).any(axis=1)
    return covered


def _items(index: Index, runs: Runs) -> Int64:
    """A number for the item of each run."""
    return (index.benchmarks << 40 | index.items)[runs.fields]


def _together(runs: Runs, chosen: Int64, others: Int64) -> Iterator[tuple[Int64, Int64]]:
    """For each document that has both: the chosen runs in it, and the others."""
    others = others[np.argsort(runs.documents[others], kind="stable")]
    in_order = runs.documents[others]
    chosen = chosen[np.isin(runs.documents[chosen], in_order)]
    chosen = chosen[np.argsort(runs.documents[chosen], kind="stable")]
    documents, first = np.unique(runs.documents[chosen], return_index=True)
    begin, end = np.searchsorted(in_order, documents), np.searchsorted(in_order, documents, side="right")
    ends = [*first[1:].tolist(), len(chosen)]
    for start, stop, low, high in zip(first.tolist(), ends[: len(first)], begin.tolist(), end.tolist(), strict=True):
        yield chosen[start:stop], others[low:high]
