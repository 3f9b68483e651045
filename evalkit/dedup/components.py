"""Connected components of any number of pairs in bounded memory.

While the edges do not fit into the memory, they are replaced, round by round, by fewer and shorter ones that connect
the same: *large-star* connects every greater neighbour of a node with the least one, *small-star* every lesser
neighbour, and the node itself (Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii: Connected components in MapReduce
and beyond, SoCC 2014). Each is a sort on the disk and one pass through what is sorted, in which a node's least
neighbour comes first: nothing is held of a node but that, however many neighbours it has. In the end every node of a
component points to its least one; rounds are of the order of the logarithm of the longest path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalkit.dedup import shuffle_kernels
from evalkit.dedup.arrays import passing_names
from evalkit.dedup.shuffle import count_rows, merge_to, merged, rows_within, sorting, write_rows

Int64 = npt.NDArray[np.int64]


def connect(edges: Sequence[Path], path: Path, memory_bytes: int) -> int:
    """Find the connected components of the edges of several runs.

    Parameters
    ----------
    edges
        Runs of two columns, node and node, in any order.
    path
        Run to be written: node, the least node of its component, for all others than this itself.
    memory_bytes
        For everything.

    Returns
    -------
    int
        Rows written: nodes less components, which are the edges of a spanning forest.
    """
    # Of an edge in memory: both ends, the nodes, their places, the parents.
    most = rows_within(memory_bytes, 5)
    n, level, named = count_rows(edges), 0, passing_names(path)
    temporary: list[Path] = []
    try:
        if n > most:
            edges = temporary = [_contract(edges, named("edges-0"), most, memory_bytes)]
        before: tuple[int, int] | None = None
        while (n := count_rows(edges)) > most:
            level += 1
            large = _star(edges, named(f"large-{level}"), memory_bytes, is_large=True)
            small = _star([large], named(f"edges-{level}"), memory_bytes, is_large=False)
            for one in (*temporary, large):
                one.unlink()
            edges = temporary = [small]
            now = _fingerprint(small, most)
            if now == before:
                merge_to(path, [small], 2, memory_bytes)
                return n
            before = now
        windows = list(merged(edges, most))
        stars = _stars(np.concatenate(windows)) if windows else np.empty((0, 2), dtype=np.int64)
        write_rows(path, stars)
        return len(stars)
    finally:
        for one in temporary:
            one.unlink(missing_ok=True)


def _stars(edges: Int64) -> Int64:
    """The components of edges in memory, each node with the least one, sorted."""
    nodes, places = np.unique(edges, return_inverse=True)
    places = places.reshape(-1, 2)
    least = shuffle_kernels.least_members(places[:, 0].copy(), places[:, 1].copy(), len(nodes))
    others = np.flatnonzero(least != np.arange(len(nodes)))
    return np.column_stack([nodes[others], nodes[least[others]]])


def _contract(edges: Sequence[Path], path: Path, most: int, memory_bytes: int) -> Path:
    """Replace the edges of each window by those of its components' stars: of a dense group, a few are left."""
    with sorting(path, 2, memory_bytes // 2, unique=True, is_passing=True) as add:
        for rows in merged(edges, most // 2 or 1):
            add(_stars(rows))
    return path


def _star(edges: Iterable[Path], path: Path, memory_bytes: int, *, is_large: bool) -> Path:
    """Connect the greater (or lesser) neighbours of each node with the least of them and the node."""
    directed, half = passing_names(path)("directed"), memory_bytes // 2
    most = rows_within(half, 6)
    try:
        with sorting(directed, 2, half, unique=True, is_passing=True) as add:
            for window in merged(edges, most):
                rows = np.sort(window, axis=1)[:, ::-1]
                add(rows)
                if is_large:
                    add(rows[:, ::-1])
        with sorting(path, 2, half, unique=True, is_passing=True) as add:
            node, least = -1, -1
            for rows in merged([directed], most):
                one, other = rows.T
                # The least neighbour of each node is its first one, perhaps in a window before.
                is_first = np.append(one[0] != node, one[1:] != one[:-1])
                number = np.cumsum(is_first)
                firsts = np.append(least, np.minimum(one[is_first], other[is_first]))[number]
                if is_large:
                    found = np.column_stack([other, firsts])[other > one]
                else:
                    found = np.concatenate([
                        np.column_stack([other, firsts])[other != firsts],
                        np.column_stack([one, firsts])[is_first],
                    ])  # fmt: skip
                add(found)
                node, least = int(one[-1]), int(firsts[-1])
    finally:
        directed.unlink(missing_ok=True)
    return path


def _fingerprint(path: Path, most: int) -> tuple[int, int]:
    """The number of rows, and a sum of their hashes: the same edges, the same fingerprint."""
    n, total = 0, np.uint64(0)
    with np.errstate(over="ignore"):
        for rows in merged([path], most):
            one, other = rows.T.astype(np.uint64)
            mixed = (one * np.uint64(0x9E3779B97F4A7C15) ^ other) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ mixed >> np.uint64(31)) * np.uint64(0x94D049BB133111EB)
            n, total = n + len(rows), total + mixed.sum(dtype=np.uint64)
    return n, int(total)
