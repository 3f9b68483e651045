"""How similar candidates truly are: the Jaccard similarity of their shingles, or its estimate from the signatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.dedup import kernels
from evalkit.dedup.candidates import gather, read_candidates
from evalkit.dedup.clusters import reaches
from evalkit.dedup.parts import Part, SetTask, load_array
from evalkit.files import atomic_path

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

SHINGLES_AT_ONCE: Final = 16_000_000
"""Shingles of the documents that are compared at a time, as 8 bytes each."""

SIGNATURES_AT_ONCE: Final = 200_000

PAIRS: Final = pa.schema([("one", pa.int64()), ("other", pa.int64()), ("similarity", pa.float64())])


@dataclass(frozen=True)
class Sets:
    """The shingles of all documents that are in a pair, in the files of their parts.

    Attributes
    ----------
    tasks
        What has written them, in the order of the parts.
    """

    tasks: tuple[SetTask, ...]

    @cached_property
    def _numbers(self) -> Int64:
        return np.asarray(load_array(self.tasks[0].wanted))

    @cached_property
    def _bounds(self) -> list[npt.NDArray[np.int64]]:
        return [load_array(task.bounds_path) for task in self.tasks]

    @cached_property
    def _sizes(self) -> Int64:
        return np.concatenate([np.diff(bounds) for bounds in self._bounds])

    def measure(self, pairs: Int64) -> Float64:
        """Return the Jaccard similarities of pairs of documents, int64[n, 2]."""
        places = np.searchsorted(self._numbers, pairs)
        firsts = np.append(0, np.cumsum([len(bounds) - 1 for bounds in self._bounds]))
        found = np.empty(len(pairs))
        n_values = np.cumsum(self._sizes[places].sum(axis=1))
        for span in _spans(n_values, SHINGLES_AT_ONCE):
            documents, among = np.unique(places[span], return_inverse=True)
            stops = np.cumsum(self._sizes[documents])
            values = np.empty(int(stops[-1]), dtype=np.uint64)
            cuts = np.searchsorted(documents, firsts)
            for number, (task, bounds) in enumerate(zip(self.tasks, self._bounds, strict=True)):
                mine = range(cuts[number], cuts[number + 1])
                if mine:
                    of_part = load_array(task.path)
                    for k in mine:
                        at = documents[k] - firsts[number]
                        values[stops[k] - self._sizes[documents[k]] : stops[k]] = of_part[bounds[at] : bounds[at + 1]]
            starts = stops - self._sizes[documents]
            found[span] = kernels.jaccard(values, starts, stops, among.reshape(-1, 2))
        return found


@dataclass(frozen=True)
class Estimates:
    """The similarities that the signatures show: the share of their values that agree.

    Attributes
    ----------
    parts, firsts
        As `CandidateTask` has them.
    """

    parts: tuple[Part, ...]
    firsts: tuple[int, ...]

    def measure(self, pairs: Int64) -> Float64:
        """Return the estimates for pairs of documents, int64[n, 2]."""
        found = np.empty(len(pairs))
        for span in _spans(2 * np.arange(1, len(pairs) + 1), SIGNATURES_AT_ONCE):
            documents, among = np.unique(pairs[span], return_inverse=True)
            signatures = gather(self.parts, self.firsts, documents)
            found[span] = kernels.count_equal_pairs(signatures, among.reshape(-1, 2)) / signatures.shape[1]
        return found


def _spans(ends: Int64, size: int) -> Iterator[slice]:
    """Stretches of about `size` each; `ends` are the sums of sizes up to each element."""
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + size, side="right")))
        yield slice(start, stop)
        start = stop


@dataclass(frozen=True)
class CompareTask:
    """The candidates whose first document is in a range, to be compared.

    Attributes
    ----------
    candidates
        Files of `find_candidates`.
    low, high
        The range.
    how
        What compares.
    threshold
        Pairs that reach it are written.
    path
        File to be written, a table of `PAIRS`; its metadata has the number of different candidates.
    """

    candidates: tuple[Path, ...]
    low: int
    high: int
    how: Sets | Estimates
    threshold: float
    path: Path


def compare(task: CompareTask) -> None:
    """Compare the candidates of a range, each pair once, and write those that are similar."""
    pairs = pairs_in_range(task.candidates, task.low, task.high)
    similarities = task.how.measure(pairs)
    similar = reaches(similarities, task.threshold)
    table = pa.table([*pairs[similar].T, similarities[similar]], schema=PAIRS)
    with atomic_path(task.path) as temporary:
        pq.write_table(table.replace_schema_metadata({"n_candidates": str(len(pairs))}), temporary)


def pairs_in_range(candidates: Sequence[Path], low: int, high: int) -> Int64:
    """Return the different pairs, int64[n, 2] and sorted, whose first document is in a range."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for path in candidates:
        rows, _ = read_candidates(path)
        found.append(rows[slice(*np.searchsorted(rows[:, 0], [low, high])), :2])
    rows = np.concatenate(found)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return rows[np.append(True, (rows[1:] != rows[:-1]).any(axis=1))] if len(rows) else rows


def ranges_of(candidates: Sequence[Path], n_documents: int, n_pairs: int) -> list[tuple[int, int]]:
    """Cut the documents into ranges that begin about `n_pairs` pairs each, found several times or not."""
    bin_size = max(1, -(-n_documents // 65536))
    counts = np.zeros(-(-n_documents // bin_size), dtype=np.int64)
    for path in candidates:
        rows, _ = read_candidates(path)
        counts += np.bincount(rows[:, 0] // bin_size, minlength=len(counts))
    numbers = np.cumsum(counts) // max(1, n_pairs)
    cuts = [0, *((np.flatnonzero(np.diff(numbers)) + 1) * bin_size).tolist(), n_documents]
    return [(low, high) for low, high in pairwise(cuts) if high > low]


def wanted_documents(candidates: Sequence[Path], n_documents: int) -> Int64:
    """Return the documents that are in a pair, rising."""
    is_wanted = np.zeros(n_documents, dtype=bool)
    for path in candidates:
        rows, _ = read_candidates(path)
        is_wanted[rows[:, 0]] = True
        is_wanted[rows[:, 1]] = True
    return np.flatnonzero(is_wanted)


def read_pairs(path: Path) -> tuple[pa.Table, int]:
    """Return the similar pairs of a range, and the number of candidates that were compared."""
    table = pq.read_table(path)
    return table, int(table.schema.metadata[b"n_candidates"])
