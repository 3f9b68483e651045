"""Clusters of one connected component that does not fit into the memory: what `make_clusters` finds, from the disk.

The documents get places in the order in which they are kept, the best first, and each pair stands with its better
document. The first clusters are measured as they are in memory: the best document that is left against all others that
are, in one pass for each cluster. Of the rest, in the order of places, each document that no better one has taken takes
its neighbours. Whether it was taken is known when its turn comes, since only better ones can: so the places are worked
on block by block, and what concerns a later block is sent to it through a file (time-forward processing: Chiang,
Goodrich, Grove, Tamassia, Vengroff, Vitter: External-memory graph algorithms, SODA 1995). A block's state and a window
of pairs are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.dedup import shuffle_kernels
from evalkit.dedup.arrays import load_array, passing_names
from evalkit.dedup.shuffle import (
    find_rows,
    from_bits,
    merged,
    replaced,
    rows_within,
    sorting,
    with_bits,
    writing_rows,
)

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_STATE_BYTES: Final = 64
"""Of a document of the block that is worked on."""


class LargeComponent:
    """The pairs of one component, on the disk.

    Parameters
    ----------
    pairs
        int64[n, 3], mapped: document, document, the bits of their similarity.
    path
        Files in between lie beside it; `remove` removes them.
    n_tokens
        Tells how many tokens documents have, if the longest is kept; None: the first is.
    memory_bytes
        For everything.
    """

    def __init__(self, pairs: Int64, path: Path, n_tokens: Callable[[Int64], Int64] | None, memory_bytes: int) -> None:
        # Of this object alone, so that nothing is appended to what another one has sent.
        self._path, self._memory = passing_names(path), memory_bytes // 2
        self._most = rows_within(self._memory, 8)
        with sorting(self._path("documents"), 1, self._memory, unique=True, is_passing=True) as add:
            for start in range(0, len(pairs), self._most):
                add(pairs[start : start + self._most, :2].reshape(-1, 1))
        # The best first.
        with sorting(self._path("ranked"), 2, self._memory, is_passing=True) as add:
            for rows in merged([self._path("documents")], self._most):
                worth = np.zeros(len(rows), dtype=np.int64) if n_tokens is None else -n_tokens(rows[:, 0])
                add(np.column_stack([worth, rows[:, 0]]))
        self._documents: Int64 = load_array(self._path("ranked"))[:, 1]
        self.n_documents = len(self._documents)
        with sorting(self._path("places"), 2, self._memory, is_passing=True) as add:
            for start in range(0, self.n_documents, self._most):
                some = self._documents[start : start + self._most]
                add(np.column_stack([some, np.arange(start, start + len(some))]))
        with sorting(self._path("pairs"), 3, self._memory, is_passing=True) as add:
            for start in range(0, len(pairs), self._most):
                window = pairs[start : start + self._most]
                places = replaced(self._path("places"), window[:, :2].ravel()).reshape(-1, 2)
                add(np.column_stack([np.sort(places, axis=1), window[:, 2]]))
        self._pairs: Int64 = load_array(self._path("pairs"))
        self._left: Path | None = None
        self._n_passes = 0

    def remove(self) -> None:
        """Remove the files in between."""
        every = self._path("*")
        for path in every.parent.glob(every.name):
            path.unlink()

    def _left_windows(self, low: int = 0, high: int | None = None) -> Iterator[Int64]:
        """The places that are left, in order."""
        high = self.n_documents if high is None else high
        if self._left is None:
            for start in range(low, high, self._most):
                yield np.arange(start, min(start + self._most, high))
        else:
            for rows in merged([self._left], self._most, low, high):
                yield rows[:, 0]

    def best_cluster(
        self, measure: Callable[[Int64], Float64], is_member: Callable[[Float64], npt.NDArray[np.bool_]]
    ) -> Iterator[Int64]:
        """Let the best document that is left take all that are similar to it; yield rows as `cluster` writes them."""
        head, n_taken = -1, 0
        known = self._pairs[:0]
        left = self._path(f"left-{self._n_passes % 2}")
        self._n_passes += 1
        with writing_rows(left, 1, is_passing=True) as write:
            for places in self._left_windows():
                others = places
                if head < 0:
                    head, others = int(places[0]), places[1:]
                    known = self._pairs[slice(*np.searchsorted(self._pairs[:, 0], [head, head + 1]))]
                documents, best = self._documents[others], self._documents[head]
                at, is_known = find_rows(known[:, 1], others)
                values = np.empty(len(others))
                values[is_known] = from_bits(known[at[is_known], 2])
                asked = np.flatnonzero(~is_known)
                if len(asked):
                    wanted = np.column_stack([np.full(len(asked), best), documents[asked]])
                    values[asked] = measure(np.sort(wanted, axis=1))
                joins = is_member(values)
                n_taken += int(joins.sum())
                write(others[~joins].reshape(-1, 1))
                yield self._rows(np.column_stack([others, np.full(len(others), head)])[joins], values[joins])
        if n_taken:
            yield self._rows(np.array([[head, head]]), np.ones(1))
        self._left = left

    @property
    def n_left(self) -> int:
        """Documents that no cluster has yet."""
        return self.n_documents if self._left is None else len(load_array(self._left))

    def neighbours(self) -> Iterator[Int64]:
        """Let each document that is left, the best first, take its neighbours that are; yield rows."""
        size = max(1, self._memory // _STATE_BYTES)
        for low in range(0, self.n_documents, size):
            high = min(low + size, self.n_documents)
            # -2: has a cluster already, or is not there; -1: nobody has taken it.
            kept, found = np.full(high - low, -2), np.zeros(high - low)
            for places in self._left_windows(low, high):
                kept[places - low] = -1
            inbox = self._path(f"sent-{low // size}")
            if inbox.exists():
                n = inbox.stat().st_size // 24
                for start in range(0, n, self._most):
                    rows = np.fromfile(inbox, dtype=np.int64, count=3 * self._most, offset=24 * start).reshape(-1, 3)
                    shuffle_kernels.receive(rows, low, kept, found)
                inbox.unlink()
            begin, end = np.searchsorted(self._pairs[:, 0], [low, high])
            for start in range(int(begin), int(end), self._most):
                sent = shuffle_kernels.take_neighbours(
                    np.array(self._pairs[start : min(start + self._most, int(end))]), low, kept, found
                )
                # In order, since the places of the taking ones rise, and so do the blocks: the best message is first.
                blocks = sent[:, 0] // size
                for block in np.unique(blocks).tolist():
                    with self._path(f"sent-{block}").open("ab") as file:
                        np.ascontiguousarray(sent[blocks == block]).tofile(file)
            taken = np.flatnonzero((kept >= 0) & (kept != np.arange(low, high)))
            for some in np.array_split(taken, 1 + len(taken) // self._most):
                heads = np.unique(kept[some])
                yield self._rows(np.column_stack([heads, heads]), np.ones(len(heads)))
                yield self._rows(np.column_stack([some + low, kept[some]]), found[some])

    def _rows(self, places: Int64, values: Float64) -> Int64:
        return with_bits(self._documents[places], values)
