"""Of the items that one place in a document resembles, it is a copy of the nearest.

Benchmarks are full of siblings: the same question about another year, or another country. Where one of them was copied,
the others are found edited. A run or near match is therefore *outdone* by a near match of another item in the same
document that is more similar and covers at least half of its place.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.contamination.evaluate import Runs
from evalkit.contamination.index import Index

_COVERED: Final = 0.5
_TIE: Final = 1e-9


def find_outdone(index: Index, runs: Runs, least: float) -> npt.NDArray[np.bool_]:
    """Return for every run and near match whether it is outdone; only those at least so similar are looked at."""
    items = np.array([field.benchmark << 40 | field.item for field in index.fields], dtype=np.int64)[runs.fields]
    outdone = np.zeros(len(runs), dtype=bool)
    near = np.flatnonzero(runs.n_edits >= 0)
    near = near[np.argsort(runs.documents[near], kind="stable")]
    bounds = runs.documents[near]
    mine = np.flatnonzero((runs.similarities >= least) & np.isin(runs.documents, bounds))
    mine = mine[np.argsort(runs.documents[mine], kind="stable")]
    documents, first = np.unique(runs.documents[mine], return_index=True)
    begin, end = np.searchsorted(bounds, documents), np.searchsorted(bounds, documents, side="right")
    for some, low, high in zip(np.split(mine, first[1:]), begin.tolist(), end.tolist(), strict=True):
        rivals = near[low:high]
        common = np.minimum.outer(runs.ends[some], runs.ends[rivals])
        common -= np.maximum.outer(runs.starts[some], runs.starts[rivals])
        is_covered = common >= _COVERED * (runs.ends[some] - runs.starts[some])[:, None]
        is_better = np.subtract.outer(runs.similarities[some], runs.similarities[rivals]) < -_TIE
        outdone[some] = (is_covered & is_better & np.not_equal.outer(items[some], items[rivals])).any(axis=1)
    return outdone
