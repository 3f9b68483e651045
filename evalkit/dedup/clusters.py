"""From similar pairs to clusters, and which document of each is kept.

Documents that are connected by similar pairs are together, unless a chain connects them: A like B, B like C, but not A
like C. So every member of a cluster is similar to the document that is kept; what is not forms clusters of its own,
around the best of what is left, and so on. What is removed is therefore always replaced by something like it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evalkit.dedup import kernels
from evalkit.dedup.arrays import load_array, passing_names, save_array
from evalkit.dedup.components import connect
from evalkit.dedup.large_component import LargeComponent
from evalkit.dedup.shuffle import (
    from_bits,
    merged,
    replaced,
    rows_within,
    sorting,
    whole_groups,
    with_bits,
    writing_rows,
)

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

Measure = Callable[[Int64], Float64]
"""Similarities of pairs of documents, int64[n, 2]."""

MEASURED_CLUSTERS: Final = 20
"""Of a group, the first so many clusters take every member that is similar to what they keep. Further ones, which only
a runaway chain has, take those of which it is known already: the work must not grow with the square of a group."""

_SLACK: Final = 1e-12
"""A similarity that is the threshold but for rounding reaches it."""


@dataclass(frozen=True)
class Clusters:
    """The clusters of several documents.

    Attributes
    ----------
    documents
        int64[n]: the documents in clusters, rising.
    kept
        int64[n]: for each the document that is kept in its place, or itself.
    similarities
        float64[n]: of the two; 1 for the kept one.
    n_components
        Groups that were connected by similar pairs.
    largest_component
        Documents in the largest of them.
    n_split
        Groups that were split, because a chain connected them.
    """

    documents: Int64
    kept: Int64
    similarities: Float64
    n_components: int
    largest_component: int
    n_split: int


def reaches(similarities: Float64, threshold: float) -> npt.NDArray[np.bool_]:
    """Whether each similarity is at least the threshold."""
    return np.asarray(similarities >= threshold - _SLACK)


def make_clusters(
    pairs: Int64, similarities: Float64, rank: Int64, threshold: float, measure: Measure, *, split: bool = True
) -> Clusters:
    """Cluster documents by their similar pairs.

    Parameters
    ----------
    pairs, similarities
        int64[n, 2] and float64[n]: pairs that reach the threshold, each once, the smaller document first.
    rank
        int64[n_documents]: of a cluster the document with the lowest rank is kept; no two have the same.
    threshold
        Similarity to the kept document that a member must have.
    measure
        Finds the similarities of further pairs.
    split
        Split groups that a chain connects. If not, a member may be less similar to the kept document.

    Notes
    -----
    The result depends on the pairs and ranks alone, not on any order.
    """
    documents = np.unique(pairs)
    if not len(documents):
        empty = np.empty(0, dtype=np.int64)
        return Clusters(empty, empty, np.empty(0), 0, 0, 0)
    places = np.searchsorted(documents, pairs)
    n = len(documents)
    _, label = connected_components(coo_array((np.ones(len(pairs)), places.T), shape=(n, n)), directed=False)
    sizes = np.bincount(label)
    known = _Known(places, similarities, n)
    kept, found = np.full(n, -1, dtype=np.int64), np.zeros(n)
    # Members of each group stand together, the best first.
    left = np.lexsort((rank[documents], label))
    split_groups: set[int] = set()
    for _ in range(MEASURED_CLUSTERS):
        if not len(left):
            break
        is_first = np.append(True, label[left][1:] != label[left][:-1])
        head = left[np.maximum.accumulate(np.where(is_first, np.arange(len(left)), 0))]
        values = known.look_up(head, left)
        asked = np.flatnonzero(np.isnan(values))
        if len(asked):
            wanted = np.sort(np.column_stack([documents[head[asked]], documents[left[asked]]]), axis=1)
            values[asked] = measure(wanted)
        joins = is_first | reaches(values, threshold) if split else np.ones(len(left), dtype=bool)
        kept[left[joins]], found[left[joins]] = head[joins], values[joins]
        left = left[~joins]
        split_groups.update(np.unique(label[left]).tolist())
    kernels.gather_neighbours(left, *known.neighbours(), kept, found)
    # What was split off alone is in no cluster.
    together = np.bincount(kept, minlength=n)[kept] > 1
    return Clusters(
        documents=documents[together],
        kept=documents[kept[together]],
        similarities=found[together],
        n_components=len(sizes),
        largest_component=int(sizes.max()),
        n_split=len(split_groups),
    )


class _Known:
    """Similarities that are known already."""

    def __init__(self, pairs: Int64, similarities: Float64, n: int) -> None:
        self._pairs, self._unsorted = pairs, similarities
        keys = pairs[:, 0] * n + pairs[:, 1]
        order = np.argsort(keys)
        self._keys, self._similarities, self._n = keys[order], similarities[order], n

    def look_up(self, one: Int64, other: Int64) -> Float64:
        """1 for a document and itself, NaN for what is not known."""
        keys = np.minimum(one, other) * self._n + np.maximum(one, other)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = np.where(self._keys[at] == keys, self._similarities[at], np.nan)
        return np.where(one == other, 1.0, found)

    def neighbours(self) -> tuple[Int64, Int64, Float64]:
        """The pairs as a symmetric matrix in compressed rows: bounds of the rows, columns, similarities."""
        one, other = self._pairs.T
        rows, columns = np.concatenate([one, other]), np.concatenate([other, one])
        order = np.lexsort((columns, rows))
        n_columns = np.bincount(rows, minlength=self._n)
        values = np.concatenate([self._unsorted, self._unsorted])[order]
        return np.append(0, np.cumsum(n_columns)), columns[order], values


# --- Tasks ---


@dataclass(frozen=True)
class LabelTask:
    """The similar pairs of all documents, to be sorted by the connected components that they are in.

    Attributes
    ----------
    pairs
        Run: document, document, the bits of their similarity.
    thresholds
        Rising; the first is that of the pairs.
    memory_bytes
        For the rows.
    path
        Run to be written last: least document of the component, document, document, similarity.
    """

    pairs: Path
    thresholds: tuple[float, ...]
    memory_bytes: int
    path: Path

    @property
    def counts_path(self) -> Path:
        """int64[n_thresholds]: for each the documents of its pairs less the components that they form."""
        return self.path.with_suffix(".counts.npy")


def label_pairs(task: LabelTask) -> None:
    """Find the components, for the highest threshold first; each adds its edges to the forest of the one above."""
    named = passing_names(task.path)
    levels = [named(f"level-{k}") for k in range(len(task.thresholds))]
    labels, forests = named("labels"), (named("forest-0"), named("forest-1"))
    half = task.memory_bytes // 2
    pairs, most = [task.pairs], rows_within(half, 8)
    counts = []
    try:
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(writing_rows(path, 2, is_passing=True)) for path in levels]
            for rows in merged(pairs, most):
                reached = [reaches(from_bits(rows[:, 2]), threshold) for threshold in task.thresholds]
                level = np.sum(reached, axis=0) - 1
                for k, write in enumerate(writers):
                    write(rows[level == k, :2])
        edges: list[Path] = []
        for k in reversed(range(len(levels))):
            counts.append(connect([*edges, levels[k]], labels, task.memory_bytes))
            # Two names, since the next one is made of this one.
            labels.replace(forests[k % 2])
            edges = [forests[k % 2]]
        with sorting(task.path, 4, half) as add:
            for rows in merged(pairs, most):
                add(np.column_stack([replaced(edges[0], rows[:, 0]), rows]))
            save_array(task.counts_path, np.array(counts[::-1]))
    finally:
        for path in (*levels, labels, *forests):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ClusterTask:
    """The components in a range of labels to be made clusters.

    Attributes
    ----------
    labelled
        What `label_pairs` has written.
    low, high
        The range.
    how
        What measures further pairs.
    signatures
        Has the tokens of each document, if the longest of a cluster is kept; None: the first is.
    threshold, split
        As `make_clusters` takes them.
    memory_bytes
        For the pairs of some components.
    path
        Run to be written last: document, kept document, the bits of their similarity.
    """

    labelled: Path
    low: int
    high: int
    how: Measures
    signatures: HasTokens | None
    threshold: float
    split: bool
    memory_bytes: int
    path: Path

    @property
    def counts_path(self) -> Path:
        """int64[3]: components, documents of the largest, split ones."""
        return self.path.with_suffix(".counts.npy")


_PAIR_BYTES: Final = 256
"""Of the arrays of `make_clusters`, for each pair."""


def cluster(task: ClusterTask) -> None:
    """Cluster some components at a time, whole ones; one that does not fit into the memory from the disk."""
    rows = load_array(task.labelled)
    start, stop = np.searchsorted(rows[:, 0], [task.low, min(task.high, (1 << 63) - 1)])
    most = max(1, task.memory_bytes // _PAIR_BYTES)
    counts = np.zeros(3, dtype=np.int64)
    with sorting(task.path, 3, task.memory_bytes // 4, unique=True) as add:
        for low, high in whole_groups(rows[start:stop, 0], most):
            some = rows[start + low : start + high]
            if len(some) > most:
                n_documents, is_split = _cluster_large(task, some[:, 1:], add)
                counts = np.array([counts[0] + 1, max(counts[1], n_documents), counts[2] + is_split])
                continue
            documents, places = np.unique(some[:, 1:3], return_inverse=True)
            rank = np.arange(len(documents))
            if task.signatures:
                rank[np.lexsort((rank, -task.signatures.n_tokens(documents)))] = np.arange(len(documents))
            found = make_clusters(
                places.reshape(-1, 2), from_bits(some[:, 3]), rank, task.threshold,
                lambda pairs, documents=documents: task.how.measure(documents[pairs]),  # type: ignore[misc]
                split=task.split,
            )  # fmt: skip
            add(with_bits(np.column_stack([documents[found.documents], documents[found.kept]]), found.similarities))
            counts[0] += found.n_components
            counts[1] = max(counts[1], found.largest_component)
            counts[2] += found.n_split
        save_array(task.counts_path, counts)


def _cluster_large(task: ClusterTask, pairs: Int64, add: Callable[[Int64], None]) -> tuple[int, bool]:
    """Cluster one component from the disk, as `make_clusters` does; return its size, and whether it was split."""
    n_tokens = task.signatures.n_tokens if task.signatures else None
    component = LargeComponent(pairs, task.path, n_tokens, task.memory_bytes // 2)
    try:

        def is_member(values: Float64) -> npt.NDArray[np.bool_]:
            return reaches(values, task.threshold) if task.split else np.ones(len(values), dtype=bool)

        is_split = False
        for _ in range(MEASURED_CLUSTERS):
            if not component.n_left:
                break
            for rows in component.best_cluster(task.how.measure, is_member):
                add(rows)
            is_split |= component.n_left > 0
        for rows in component.neighbours() if component.n_left else ():
            add(rows)
        return component.n_documents, is_split
    finally:
        component.remove()


class Measures(Protocol):
    """What tells the similarities of pairs of documents."""

    def measure(self, pairs: Int64) -> Float64:
        """Return them, float64[n], for int64[n, 2]."""
        ...


class HasTokens(Protocol):
    """What tells how many tokens documents have."""

    def n_tokens(self, documents: Int64) -> Int64:
        """Return them."""
        ...
