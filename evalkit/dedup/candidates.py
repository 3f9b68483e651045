"""Which documents are worth comparing: those with an equal band key, found band by band by sorting.

A shuffle. The keys of each group of parts are sorted, band by band, to runs on the disk. A task takes a range of the
keys of one band from all runs and writes the *buckets*: the documents that share their key with others. The signatures
of just these documents are laid together, and what follows reads nothing else of the signatures.

All pairs of a bucket are candidates when enough of their values agree. In a bucket of more than `WINDOW` documents,
which only boilerplate makes, each is compared with the `WINDOW` before it in the order of their signatures; the buckets
are counted. A bucket with more signatures than fit into the memory is put in that order on the disk and read through a
window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.dedup import kernels
from evalkit.dedup.arrays import load_array, passing_names, save_array, writing
from evalkit.dedup.exact import Group
from evalkit.dedup.lsh import Bands
from evalkit.dedup.shuffle import (
    find_rows,
    merged,
    rows_within,
    sorted_rows,
    sorting,
    whole_groups,
    write_rows,
    writing_rows,
)

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]

WINDOW: Final = 2000
"""Documents before it in its bucket with which a document is compared."""

MARGIN_SIGMAS: Final = 5.0
"""A pair is compared in full unless its estimate is so many standard errors below the threshold."""

_KEY_BYTES: Final = 8
_BESIDE_KEYS: Final = 96
_APART: Final = 0x9E3779B97F4A7C15
_SIGN_BIT: Final = np.uint64(1 << 63)


def least_equal(threshold: float, num_perm: int, *, verify: bool) -> int:
    """Return how many values must agree for a candidate; with `verify`, as few as a pair at the threshold may have.

    The estimate has the standard error sqrt(s (1 - s) / num_perm).
    """
    if not verify:
        return ceil(threshold * num_perm - 1e-9)
    lowest = threshold - MARGIN_SIGMAS * sqrt(threshold * (1 - threshold) / num_perm)
    return max(1, int(lowest * num_perm))


def documents_within(memory_bytes: int, bands: Bands) -> int:
    """Return how many documents' band keys may be in memory at a time, those of one band as rows that are sorted."""
    return max(1, memory_bytes // (_KEY_BYTES * bands.n_bands + _BESIDE_KEYS))


# --- Keys ---


@dataclass(frozen=True)
class BandTask:
    """The band keys of a group to be sorted.

    Attributes
    ----------
    group, bands
        Which. A group has no more documents than `documents_within` the memory, or one part.
    sets
        The bands whose keys go to the same file.
    equal
        Run of the documents that are equal to an earlier one: they do not take part, nor do those without tokens.
    memory_bytes
        For keys and rows.
    paths
        Runs to be written, one for each set of bands: key, document.
    path
        File that says that they are there. They are removed when they were used.
    """

    group: Group
    bands: Bands
    sets: tuple[tuple[int, ...], ...]
    equal: Path
    memory_bytes: int
    paths: tuple[Path, ...]
    path: Path


def sort_keys(task: BandTask) -> None:
    """Write the sorted band keys of a group. The signatures are read once."""
    group, equal = task.group, load_array(task.equal)[:, 0]
    all_keys: list[npt.NDArray[np.uint64]] = []
    all_documents = [np.empty(0, dtype=np.int64)]
    for part, first in zip(group.parts, group.firsts, strict=False):
        takes_part = part.n_tokens > 0
        takes_part[equal[slice(*np.searchsorted(equal, [first, first + len(takes_part)]))] - first] = False
        signatures = part.signatures
        all_keys.append(
            np.stack([
                kernels.band_keys(signatures, band, task.bands.n_rows)[takes_part]
                for band in range(task.bands.n_bands)
            ])
        )  # fmt: skip
        all_documents.append(np.flatnonzero(takes_part) + first)
    documents = np.concatenate(all_documents)
    for bands, path in zip(task.sets, task.paths, strict=True):
        # Keys of several bands are moved apart.
        keys = [np.empty(0, dtype=np.uint64)]
        keys += [of_part[band] + np.uint64(band * _APART % (1 << 64)) for band in bands for of_part in all_keys]
        rows = np.column_stack([np.concatenate(keys).view(np.int64), np.tile(documents, len(bands))])
        # By the key alone: the documents of a band are in order.
        write_rows(path, sorted_rows(rows, 1))
    save_array(task.path, np.empty(0, dtype=np.int64))


# --- Buckets ---


@dataclass(frozen=True)
class BucketTask:
    """A range of the keys of a band to be looked through.

    Attributes
    ----------
    runs
        Those of the band.
    low, high
        The range.
    memory_bytes
        For the rows.
    documents
        Run to be written first: the documents in a bucket of several.
    path
        Run to be written: key, document, for these.
    """

    runs: tuple[Path, ...]
    low: int
    high: int
    memory_bytes: int
    documents: Path
    path: Path


def find_buckets(task: BucketTask) -> None:
    """Write the documents that share their key."""
    memory = task.memory_bytes // 2
    with (
        writing_rows(task.path, 2) as write,
        sorting(task.documents, 1, memory, unique=True) as add,
    ):
        pending = np.empty((0, 2), dtype=np.int64)
        is_shared = False
        for window in merged(task.runs, rows_within(memory, 2), task.low, task.high, n_keys=1):
            # The last row of a window waits for the next one; `is_shared` says whether the one before has its key.
            rows = np.concatenate([pending, window])
            same = rows[1:, 0] == rows[:-1, 0]
            chosen = np.append(is_shared, same)[:-1] | same
            found = rows[:-1][chosen]
            write(found)
            add(found[:, 1:])
            is_shared = bool(same[-1]) if len(same) else False
            pending = rows[-1:].copy()
        if is_shared:
            write(pending)
            add(pending[:, 1:])


# --- Signatures ---


@dataclass(frozen=True)
class PackTask:
    """The signatures of some documents of a group to be laid together.

    Attributes
    ----------
    group
        Which.
    wanted
        Runs of documents.
    n_values
        Of a signature.
    memory_bytes
        For the rows.
    path
        Run to be written last: document, its tokens. The signatures are beside it.
    """

    group: Group
    wanted: tuple[Path, ...]
    n_values: int
    memory_bytes: int
    path: Path

    @property
    def signatures_path(self) -> Path:
        """uint32[n, n_values]."""
        return self.path.with_suffix(".signatures.npy")


def pack(task: PackTask) -> None:
    """Write the signatures of the wanted documents of a group, in their order."""
    most, group = rows_within(task.memory_bytes, 1), task.group
    with writing_rows(task.path, 2) as write, writing(task.signatures_path, "<u4", (task.n_values,)) as write_values:
        for part, first, stop in zip(group.parts, group.firsts, group.firsts[1:], strict=False):
            for number, rows in enumerate(merged(task.wanted, most, first, stop, unique=True)):
                if not number:
                    signatures, n_tokens = part.signatures, part.n_tokens
                places = rows[:, 0] - first
                write(np.column_stack([rows[:, 0], n_tokens[places]]))
                for some in np.array_split(places, 1 + len(places) * 4 * task.n_values // task.memory_bytes):
                    write_values(signatures[some])


@dataclass(frozen=True)
class Signatures:
    """The signatures of the documents that share a band with another one, from the packs.

    Attributes
    ----------
    firsts, packs
        The number of the first document of each group, and one more at the end; what has packed it.
    n_values
        Of a signature.
    """

    firsts: tuple[int, ...]
    packs: tuple[Path, ...]
    n_values: int

    def gather(self, documents: Int64) -> UInt32:
        """Return the signatures of documents, uint32[n, n_values], in their order."""
        found = np.empty((len(documents), self.n_values), dtype=np.uint32)
        for mine, path in self._by_pack(documents):
            places, is_there = find_rows(load_array(path)[:, 0], documents[mine])
            assert is_there.all()
            found[mine] = load_array(path.with_suffix(".signatures.npy"))[places]
        return found

    def n_tokens(self, documents: Int64) -> Int64:
        """Return the tokens of documents."""
        found = np.empty(len(documents), dtype=np.int64)
        for mine, path in self._by_pack(documents):
            rows = load_array(path)
            found[mine] = rows[find_rows(rows[:, 0], documents[mine])[0], 1]
        return found

    def _by_pack(self, documents: Int64) -> Iterator[tuple[Int64, Path]]:
        order = np.argsort(documents, kind="stable")
        cuts = np.searchsorted(documents[order], self.firsts)
        for number, path in enumerate(self.packs):
            mine = order[cuts[number] : cuts[number + 1]]
            if len(mine):
                yield mine, path


# --- Candidates ---


@dataclass(frozen=True)
class CandidateTask:
    """Buckets to be looked through for pairs.

    Attributes
    ----------
    buckets
        What `find_buckets` has written.
    signatures
        Of their documents.
    least_equal
        Values in which a pair must agree.
    parts
        File of int64[n_parts, 2]: the number of each part's first document, and whether the part is an old one: pairs
        of documents of such parts are known.
    memory_bytes
        For signatures and pairs.
    documents
        Run to be written before the last: the documents of the pairs.
    path
        Run to be written last: document, document, the smaller first.
    """

    buckets: Path
    signatures: Signatures
    least_equal: int
    parts: Path
    memory_bytes: int
    documents: Path
    path: Path

    @property
    def counts_path(self) -> Path:
        """int64[1]: the number of large buckets."""
        return self.path.with_suffix(".counts.npy")

    @property
    def n_gathered(self) -> int:
        """Signatures in memory at a time, or one bucket that is not a large one."""
        return max(1, self.memory_bytes // (16 * self.signatures.n_values))

    @property
    def n_pairs(self) -> int:
        """Pairs that may be found at a time."""
        return max(1, self.memory_bytes // 128)


def find_candidates(task: CandidateTask) -> None:
    """Write the pairs of documents that share a bucket and agree in enough values."""
    n_large = 0
    buckets, parts = load_array(task.buckets), load_array(task.parts)
    memory = task.memory_bytes // 4
    with (
        sorting(task.path, 2, memory, unique=True) as add,
        sorting(task.documents, 1, memory, unique=True) as add_documents,
    ):
        for start, stop in whole_groups(buckets[:, 0], task.n_gathered):
            if stop - start > max(task.n_gathered, WINDOW + 1):
                # One bucket, whose documents stay on the disk.
                n_large += 1
                for pairs in _of_large(task, buckets[start:stop, 1], parts):
                    add(pairs)
                    add_documents(pairs.reshape(-1, 1))
                continue
            keys, members = np.array(buckets[start:stop, 0]), np.array(buckets[start:stop, 1])
            starts = np.append(np.flatnonzero(np.append(True, keys[1:] != keys[:-1])), len(keys))
            sizes = np.diff(starts)
            is_large = sizes > WINDOW + 1
            n_large += int(is_large.sum())
            found = [_of_small(task, members, starts, ~is_large, parts)] if not is_large.all() else []
            found += [
                _of_large(task, members[starts[k] : starts[k + 1]], parts) for k in np.flatnonzero(is_large).tolist()
            ]
            for pairs in (pairs for some in found for pairs in some):
                add(pairs)
                add_documents(pairs.reshape(-1, 1))
        save_array(task.counts_path, np.array([n_large]))


def _are_old(documents: Int64, parts: Int64) -> npt.NDArray[np.bool_]:
    return np.asarray(parts[np.searchsorted(parts[:, 0], documents, side="right") - 1, 1].astype(bool))


def _of_small(
    task: CandidateTask, members: Int64, starts: Int64, chosen: npt.NDArray[np.bool_], parts: Int64
) -> Iterator[Int64]:
    """The pairs of the chosen buckets, some buckets at a time."""
    sizes = np.diff(starts)
    members, sizes = members[np.repeat(chosen, sizes)], sizes[chosen]
    starts = np.append(0, np.cumsum(sizes))
    signatures, are_old = task.signatures.gather(members), _are_old(members, parts)
    numbers = np.cumsum(sizes * (sizes - 1) // 2) // task.n_pairs
    for some in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(numbers)) + 1):
        low, high = starts[some[0]], starts[some[-1] + 1]
        pairs = kernels.pairs_in_buckets(
            signatures[low:high], starts[some[0] : some[-1] + 2] - low, are_old[low:high], task.least_equal, WINDOW, 0
        )
        yield np.sort(members[low:high][pairs], axis=1)


def _of_large(task: CandidateTask, members: Int64, parts: Int64) -> Iterator[Int64]:
    """The pairs of a large bucket, some documents at a time."""
    step = max(1, task.n_pairs // WINDOW)
    before, signatures_before = members[:0], np.empty((0, task.signatures.n_values), dtype=np.uint32)
    for next_members, next_signatures in _in_order(task, members):
        some = np.concatenate([before, next_members])
        signatures = np.concatenate([signatures_before, next_signatures])
        are_old = _are_old(some, parts)
        for start in range(len(before), len(some), step):
            low, high = max(0, start - WINDOW), min(start + step, len(some))
            span = slice(low, high)
            pairs = kernels.pairs_in_buckets(
                signatures[span], np.array([0, high - low]), are_old[span], task.least_equal, WINDOW, start - low
            )
            yield np.sort(some[span][pairs], axis=1)
        before, signatures_before = some[-WINDOW:].copy(), signatures[-WINDOW:].copy()


def _in_order(task: CandidateTask, members: Int64) -> Iterator[tuple[Int64, UInt32]]:
    """The documents of a bucket in the order of their signatures, with these, some at a time."""
    signatures = task.signatures
    if len(members) <= task.n_gathered:
        values = signatures.gather(members)
        order = np.lexsort((members, *values.T[::-1]))
        yield members[order], values[order]
        return
    n_words = -(-signatures.n_values // 2)
    path = passing_names(task.path)("large")
    try:
        with sorting(path, n_words + 1, task.memory_bytes // 4, n_keys=1, is_passing=True) as add:
            for start in range(0, len(members), task.n_gathered):
                some = members[start : start + task.n_gathered]
                # Two values in a word, with its sign turned: so they have the order of unsigned numbers.
                values = np.zeros((len(some), 2 * n_words), dtype=np.uint64)
                values[:, : signatures.n_values] = signatures.gather(some)
                words = (values[:, ::2] << np.uint64(32) | values[:, 1::2]) ^ _SIGN_BIT
                add(np.column_stack([words.view(np.int64), some]))
        for rows in merged([path], rows_within(task.memory_bytes // 4, n_words + 1)):
            words = np.ascontiguousarray(rows[:, :-1]).view(np.uint64) ^ _SIGN_BIT
            pairs = np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], axis=2).astype(np.uint32)
            yield rows[:, -1].copy(), pairs.reshape(len(rows), -1)[:, : signatures.n_values].copy()
    finally:
        path.unlink(missing_ok=True)
