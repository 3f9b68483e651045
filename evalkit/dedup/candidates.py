"""Which documents are worth comparing: those with an equal band key, found band by band by sorting.

The keys of each part lie sorted on the disk, so a range of keys of one band is a slice of each part's file. A task
takes one range of one band: that, and the signatures of a bounded number of documents, is all it has in memory.

All pairs of a bucket (documents with the same key) are candidates when enough of their values agree. In a bucket of
more than `WINDOW` documents, which only boilerplate makes, each is compared with the `WINDOW` before it in the order of
their signatures; the buckets are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.dedup import kernels
from evalkit.dedup.lsh import Bands
from evalkit.dedup.parts import Part, load_array, read_documents, save_array

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WINDOW: Final = 2000
"""Documents before it in its bucket with which a document is compared."""

PARTITION_DOCUMENTS: Final = 8_000_000
"""About so many documents' keys of one band are in memory at a time."""

GATHERED: Final = 200_000
"""Signatures in memory at a time, or one bucket."""

MARGIN_SIGMAS: Final = 5.0
"""A pair is compared in full unless its estimate is so many standard errors below the threshold."""


def least_equal(threshold: float, num_perm: int, *, verify: bool) -> int:
    """Return how many values must agree for a candidate; with `verify`, as few as a pair at the threshold may have.

    The estimate has the standard error sqrt(s (1 - s) / num_perm).
    """
    if not verify:
        return ceil(threshold * num_perm - 1e-9)
    lowest = threshold - MARGIN_SIGMAS * sqrt(threshold * (1 - threshold) / num_perm)
    return max(1, int(lowest * num_perm))


@dataclass(frozen=True)
class CandidateTask:
    """One range of the keys of one band.

    Attributes
    ----------
    parts, firsts
        All parts, and the number of the first document of each among all documents; one number more at the end.
    bands, band
        Which.
    partition, n_partitions
        The range of keys is so much of so many equal ones.
    least_equal
        Values in which a pair must agree.
    representatives
        File of a bool for each document: only these take part.
    is_old
        For each part, whether it is an old one: pairs of documents of such parts are known.
    path
        File to be written: int64[n_pairs, 3], document, document, values that agree; sorted. The last row counts, in
        its last column, the large buckets.
    """

    parts: tuple[Part, ...]
    firsts: tuple[int, ...]
    bands: Bands
    band: int
    partition: int
    n_partitions: int
    least_equal: int
    representatives: Path
    is_old: tuple[bool, ...]
    path: Path


def find_candidates(task: CandidateTask) -> None:
    """Write the pairs of documents that share a key in the range."""
    keys, documents = _keys_in_range(task)
    order = np.argsort(keys, kind="stable")
    keys, documents = keys[order], documents[order]
    bounds = bounds_of_runs(keys)
    # Only runs of several.
    n_large = 0
    found = [np.empty((0, 3), dtype=np.int64)]
    for some in _chunks(bounds):
        members = np.concatenate([documents[low:high] for low, high in some])
        sizes = np.array([high - low for low, high in some])
        starts = np.append(0, np.cumsum(sizes))
        signatures = gather(task.parts, task.firsts, members)
        for k in np.flatnonzero(sizes > WINDOW + 1).tolist():
            n_large += 1
            span = slice(starts[k], starts[k + 1])
            by_value = np.lexsort((members[span], *signatures[span].T[::-1]))
            members[span], signatures[span] = members[span][by_value], signatures[span][by_value]
        are_old = np.array(task.is_old)[np.searchsorted(task.firsts, members, side="right") - 1]
        pairs, n_equal = kernels.pairs_in_buckets(signatures, starts, are_old, task.least_equal, WINDOW)
        found.append(np.column_stack([np.sort(members[pairs], axis=1), n_equal]))
    rows = np.concatenate(found)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    save_array(task.path, np.concatenate([rows, [[-1, -1, n_large]]]))


def read_candidates(path: Path) -> tuple[Int64, int]:
    """Return the pairs that a task has found, int64[n, 3], mapped from the file, and the number of large buckets."""
    rows = load_array(path)
    return rows[:-1], int(rows[-1, 2])


def _keys_in_range(task: CandidateTask) -> tuple[npt.NDArray[np.uint64], Int64]:
    """The keys of the range, and the documents that they belong to."""
    representatives = load_array(task.representatives)
    low, high = ((task.partition + k << 64) // task.n_partitions for k in (0, 1))
    all_keys, all_documents = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
    for part, first in zip(task.parts, task.firsts, strict=False):
        keys, places = load_array(part.bands_path(task.bands))[task.band]
        start = np.searchsorted(keys, np.uint64(low))
        stop = len(keys) if high >> 64 else np.searchsorted(keys, np.uint64(high))
        documents = places[start:stop].astype(np.int64) + first
        taking = representatives[documents]
        all_keys.append(keys[start:stop][taking])
        all_documents.append(documents[taking])
    return np.concatenate(all_keys), np.concatenate(all_documents)


def bounds_of_runs(ordered: npt.NDArray[np.uint64]) -> Int64:
    """Return [start, stop) of each run of several equal values, int64[n_runs, 2]."""
    if not len(ordered):
        return np.empty((0, 2), dtype=np.int64)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    bounds = np.column_stack([starts, np.append(starts[1:], len(ordered))])
    return np.asarray(bounds[bounds[:, 1] - bounds[:, 0] > 1])


def _chunks(bounds: Int64) -> Iterator[list[tuple[int, int]]]:
    """Some runs at a time, of about `GATHERED` documents together."""
    if not len(bounds):
        return
    ends = np.cumsum(bounds[:, 1] - bounds[:, 0])
    numbers = ends // GATHERED
    for some in np.split(bounds, np.flatnonzero(np.diff(numbers)) + 1):
        yield [(low, high) for low, high in some.tolist()]


def gather(parts: Sequence[Part], firsts: Sequence[int], documents: Int64) -> npt.NDArray[np.uint32]:
    """Return the signatures of documents, uint32[n, num_perm], in their order; each file is read in its own order."""
    order = np.argsort(documents, kind="stable")
    cuts = np.searchsorted(documents[order], firsts)
    found: npt.NDArray[np.uint32] | None = None
    for number, part in enumerate(parts):
        mine = order[cuts[number] : cuts[number + 1]]
        if len(mine):
            signatures = part.signatures
            if found is None:
                found = np.empty((len(documents), signatures.shape[1]), dtype=np.uint32)
            found[mine] = signatures[documents[mine] - firsts[number]]
    return np.empty((0, 1), dtype=np.uint32) if found is None else found


# --- Exact duplicates ---


@dataclass(frozen=True)
class Exact:
    """Which documents are equal.

    Attributes
    ----------
    first_equal
        int64[n]: for each document the first one with the same normalised text, often itself.
    is_same_raw
        bool[n]: whether an earlier document has the very same text.
    """

    first_equal: Int64
    is_same_raw: Bool


def find_exact(parts: Sequence[Part], n_alike: int | None = None) -> Exact:
    """Find the documents with equal text, by the hashes of all texts; among the first `n_alike`, or all."""
    by_text, by_raw = (
        _first_equal(np.concatenate([read_hashes(part, name) for part in parts]), n_alike)
        for name in ("text_hash", "raw_hash")
    )
    return Exact(by_text, by_raw != np.arange(len(by_raw)))


def read_hashes(part: Part, name: str) -> npt.NDArray[np.uint64]:
    """Return a column of hashes, uint64[n, 2]."""
    found = [np.empty((0, 2), dtype=np.uint64)]
    for chunk in read_documents(part, [name])[name].chunks:
        values = np.frombuffer(chunk.buffers()[1], dtype=np.uint64).reshape(-1, 2)
        found.append(values[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(found)


def _first_equal(hashes: npt.NDArray[np.uint64], n_alike: int | None) -> Int64:
    """For each of the first `n_alike` rows the first one that is equal; for the others themselves."""
    first = np.arange(len(hashes))
    alike = hashes[:n_alike]
    order = np.lexsort((first[:n_alike], alike[:, 1], alike[:, 0]))
    ordered = alike[order]
    is_new = np.append(np.ones(min(len(alike), 1), dtype=bool), (ordered[1:] != ordered[:-1]).any(axis=1))
    first[order] = order[np.maximum.accumulate(np.where(is_new, np.arange(len(alike)), 0))]
    return first
