"""From clusters of different texts to all documents that are in one: equal ones join them, and clusters get numbers.

Three sorts and passes: by the kept document, for the first document of each cluster; by that, for numbers and sizes;
by the document, for the table. Nothing is held of a cluster but its sums, so its size does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalkit.dedup.arrays import load_array, passing_names
from evalkit.dedup.shuffle import find_rows, from_bits, merged, rows_within, sorting
from evalkit.files import write_json

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_ALIKE = int(np.array(1.0).view(np.int64))
"""The bits of the similarity of a document and itself."""


@dataclass(frozen=True)
class AssembleTask:
    """The documents in clusters to be put together.

    Attributes
    ----------
    clusters
        Run: document, kept document, the bits of their similarity; of different texts.
    equal
        Run: document, the first one that is equal.
    n_largest
        So many of the largest clusters are described.
    memory_bytes
        For the rows.
    path
        Run to be written last: document, cluster, whether it is kept, the bits of the similarity to the kept one.
    """

    clusters: Path
    equal: Path
    n_largest: int
    memory_bytes: int
    path: Path

    @property
    def counts_path(self) -> Path:
        """JSON: `sizes`, clusters of each size; `largest`, (documents, cluster, kept document, least similarity)."""
        return self.path.with_suffix(".json")


def assemble(task: AssembleTask) -> None:
    """Write the documents in clusters, and what there is to say about these."""
    by_head, by_first = map(passing_names(task.path), ("by-head", "by-first"))
    half = task.memory_bytes // 2
    try:
        with sorting(by_head, 3, half, unique=True, is_passing=True) as add:
            for rows in _members(task):
                add(rows)
        with sorting(by_first, 4, half, is_passing=True) as add:
            head, first = -1, -1
            for rows in merged([by_head], rows_within(half, 6)):
                is_new = np.append(rows[0, 0] != head, rows[1:, 0] != rows[:-1, 0])
                firsts = np.append(first, rows[is_new, 1])[np.cumsum(is_new)]
                add(np.column_stack([firsts, rows[:, 1], rows[:, 0], rows[:, 2]]))
                head, first = int(rows[-1, 0]), int(firsts[-1])
        summary = _Summary(task.n_largest)
        with sorting(task.path, 4, half) as add:
            for rows in merged([by_first], rows_within(half, 8)):
                numbers = summary.add(rows)
                add(np.column_stack([rows[:, 1], numbers, rows[:, 1] == rows[:, 2], rows[:, 3]]))
            summary.close()
            write_json(task.counts_path, {"sizes": sorted(summary.sizes.items()), "largest": summary.largest})
    finally:
        by_head.unlink(missing_ok=True)
        by_first.unlink(missing_ok=True)


def _members(task: AssembleTask) -> Iterator[Int64]:
    """All members, some perhaps twice: kept document, document, similarity."""
    most = rows_within(task.memory_bytes // 2, 12)
    for rows in merged([task.clusters], most):
        yield rows[:, [1, 0, 2]]
    clusters = load_array(task.clusters)
    for rows in merged([task.equal], most):
        # An equal document is as similar as the one that took part in its place.
        document, first = rows.T
        places, is_there = find_rows(clusters[:, 0], first)
        head, bits = first.copy(), np.full(len(rows), _ALIKE)
        head[is_there], bits[is_there] = clusters[places[is_there]][:, 1:].T
        yield np.column_stack([head, document, bits])
        alone = first[~is_there]
        yield np.column_stack([alone, alone, np.full(len(alone), _ALIKE)])


class _Summary:
    """Numbers the clusters as their rows pass: first document, document, kept document, similarity."""

    def __init__(self, n_largest: int) -> None:
        self.sizes = Counter[int]()
        self.largest: list[tuple[int, int, int, float]] = []
        self._n_largest = n_largest
        self._first = -1
        # Documents, number, kept document and least similarity of the cluster to which more rows may come.
        self._open = 0, -1, -1, 2.0

    def add(self, rows: Int64) -> Int64:
        """Return the number of each row's cluster."""
        is_new = np.append(rows[0, 0] != self._first, rows[1:, 0] != rows[:-1, 0])
        numbers = self._open[1] + np.cumsum(is_new)
        starts = np.flatnonzero(np.append(True, is_new[1:]))
        sizes = np.diff(np.append(starts, len(rows)))
        # The kept document is as similar to itself as nothing else need be: it does not count.
        others = np.where(rows[:, 1] == rows[:, 2], 2.0, from_bits(rows[:, 3]))
        least = np.minimum.reduceat(others, starts)
        if is_new[0]:
            self._count(*(np.array([one]) for one in self._open))
        else:
            sizes[0] += self._open[0]
            least[0] = min(least[0], self._open[3])
        which, heads = numbers[starts], rows[starts, 2]
        self._count(sizes[:-1], which[:-1], heads[:-1], least[:-1])
        self._open = int(sizes[-1]), int(which[-1]), int(heads[-1]), float(least[-1])
        self._first = int(rows[-1, 0])
        return numbers

    def close(self) -> None:
        """Count the last cluster, to which no more rows come."""
        self._count(*(np.array([one]) for one in self._open))

    def _count(self, sizes: Int64, numbers: Int64, heads: Int64, least: Float64) -> None:
        found, n = np.unique(sizes[sizes > 0], return_counts=True)
        self.sizes.update(dict(zip(found.tolist(), n.tolist(), strict=True)))
        order = [k for k in np.lexsort((numbers, -sizes))[: self._n_largest].tolist() if sizes[k]]
        some = [(int(sizes[k]), int(numbers[k]), int(heads[k]), float(least[k])) for k in order]
        self.largest = sorted([*self.largest, *some], key=lambda one: (-one[0], one[1]))[: self._n_largest]
