"""How similar candidates truly are: the Jaccard similarity of their shingles, or its estimate from the signatures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.corpora.readers import read_shard
from evalkit.dedup import kernels
from evalkit.dedup.arrays import load_array, save_array, writing
from evalkit.dedup.candidates import Signatures
from evalkit.dedup.clusters import reaches
from evalkit.dedup.parts import SignTask
from evalkit.dedup.shuffle import find_rows, merged, rows_within, with_bits, writing_rows
from evalkit.errors import InputError
from evalkit.text.buffers import arrow_buffers
from evalkit.text.normalise import fold_table

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

MOST_SET_FILES: Final = 1024
"""Parts are read again several to a file where there are more of them."""


@dataclass(frozen=True)
class SetTask:
    """The shingles of some documents of parts that follow each other to be written, for comparing them in full.

    Attributes
    ----------
    tasks, firsts
        What has signed the parts, and the number of the first document of each; one number more at the end.
    wanted
        Runs of the wanted documents of all parts.
    memory_bytes
        For their numbers.
    path
        Run to be written last: document, and the place of its first value in the values, which are beside it.
    """

    tasks: tuple[SignTask, ...]
    firsts: tuple[int, ...]
    wanted: tuple[Path, ...]
    memory_bytes: int
    path: Path

    @property
    def values_path(self) -> Path:
        """uint64[n]: one sorted set after the other."""
        return self.path.with_suffix(".values.npy")


def write_sets(task: SetTask) -> None:
    """Read parts again and write the shingles of the wanted documents, batch by batch.

    Raises
    ------
    InputError
        The corpus cannot be read, or has changed since it was signed.
    """
    n_values = 0
    with writing_rows(task.path, 2) as write, writing(task.values_path, "<u8") as write_values:
        for one, first, stop in zip(task.tasks, task.firsts, task.firsts[1:], strict=False):
            wanted = _Wanted(task, first, stop)
            if not wanted.is_any:
                continue
            how, done = one.how.shingling, first
            for batch in read_shard(one.shard, text_column=one.text_column, id_column=one.id_column):
                which = wanted.up_to(done + len(batch))
                data, offsets = arrow_buffers(batch.texts)
                values, bounds = kernels.shingle_sets(
                    data, offsets, which - done, fold_table().arrays, how.unit == "words", how.size
                )
                write_values(values)
                write(np.column_stack([which, n_values + bounds[:-1]]))
                n_values += len(values)
                done += len(batch)
            if done != stop:
                raise InputError(
                    f"the file has {done - first:,} documents now, and had {stop - first:,} when it was signed",
                    where=str(one.shard.path),
                    do="Let nobody write to the corpus, and run the command again",
                )
        # Where the last one ends.
        write(np.array([[1 << 62, n_values]]))


class _Wanted:
    """The wanted documents of a part, in their order, as they are asked for."""

    def __init__(self, task: SetTask, first: int, stop: int) -> None:
        self._windows = merged(task.wanted, rows_within(task.memory_bytes, 1), first, stop, unique=True)
        self._next = self._window()
        self.is_any = len(self._next) > 0

    def _window(self) -> Int64:
        return next((rows[:, 0] for rows in self._windows), np.empty(0, dtype=np.int64))

    def up_to(self, stop: int) -> Int64:
        """Those below `stop` that were not asked for yet."""
        found = [np.empty(0, dtype=np.int64)]
        while len(self._next):
            n = int(np.searchsorted(self._next, stop))
            found.append(self._next[:n])
            self._next = self._next[n:]
            if len(self._next):
                break
            self._next = self._window()
        return np.concatenate(found)


@dataclass(frozen=True)
class Sets:
    """The shingles of all documents that are in a pair, in files.

    Attributes
    ----------
    firsts, paths
        The number of the first document of each file, and one more at the end; what `write_sets` has written.
    memory_bytes
        For the sets that are compared at a time, or those of one pair.
    """

    firsts: tuple[int, ...]
    paths: tuple[Path, ...]
    memory_bytes: int

    def measure(self, pairs: Int64) -> Float64:
        """Return the Jaccard similarities of pairs of documents, int64[n, 2]."""
        found = np.empty(len(pairs))
        documents, among = np.unique(pairs, return_inverse=True)
        among = among.reshape(-1, 2)
        sizes = np.zeros(len(documents), dtype=np.int64)
        for mine, path in self._by_file(documents):
            rows = load_array(path)
            places, _ = find_rows(rows[:, 0], documents[mine])
            sizes[mine] = rows[places + 1, 1] - rows[places, 1]
        for span in _spans(np.cumsum(sizes[among].sum(axis=1)), max(1, self.memory_bytes // 16)):
            some, within = np.unique(among[span], return_inverse=True)
            stops = np.cumsum(sizes[some])
            starts = stops - sizes[some]
            values = np.empty(int(stops[-1]), dtype=np.uint64)
            for mine, path in self._by_file(documents[some]):
                rows, of_file = load_array(path), load_array(path.with_suffix(".values.npy"))
                places, _ = find_rows(rows[:, 0], documents[some[mine]])
                for k, begin in zip(range(mine.start, mine.stop), rows[places, 1].tolist(), strict=True):
                    values[starts[k] : stops[k]] = of_file[begin : begin + stops[k] - starts[k]]
            found[span] = kernels.jaccard(values, starts, stops, within.reshape(-1, 2))
        return found

    def _by_file(self, documents: Int64) -> Iterator[tuple[slice, Path]]:
        cuts = np.searchsorted(documents, self.firsts).tolist()
        for number, path in enumerate(self.paths):
            if cuts[number] < cuts[number + 1]:
                yield slice(cuts[number], cuts[number + 1]), path


@dataclass(frozen=True)
class Estimates:
    """The similarities that the signatures show: the share of their values that agree."""

    signatures: Signatures
    memory_bytes: int

    def measure(self, pairs: Int64) -> Float64:
        """Return the estimates for pairs of documents, int64[n, 2]."""
        found, n_values = np.empty(len(pairs)), self.signatures.n_values
        for span in _spans(2 * np.arange(1, len(pairs) + 1), max(2, self.memory_bytes // (8 * n_values))):
            documents, among = np.unique(pairs[span], return_inverse=True)
            values = self.signatures.gather(documents)
            found[span] = kernels.count_equal_pairs(values, among.reshape(-1, 2)) / n_values
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
        Runs of `find_candidates`.
    low, high
        The range.
    how
        What compares.
    threshold
        Pairs that reach it are written.
    memory_bytes
        For the pairs.
    path
        Run to be written last: document, document, the bits of their similarity.
    """

    candidates: tuple[Path, ...]
    low: int
    high: int
    how: Sets | Estimates
    threshold: float
    memory_bytes: int
    path: Path

    @property
    def counts_path(self) -> Path:
        """int64[1]: the number of different candidates."""
        return self.path.with_suffix(".counts.npy")


def compare(task: CompareTask) -> None:
    """Compare the candidates of a range, each pair once, and write those that are similar."""
    n = 0
    with writing_rows(task.path, 3) as write:
        most = rows_within(task.memory_bytes // 2, 6)
        for pairs in merged(task.candidates, most, task.low, task.high, unique=True):
            similarities = task.how.measure(pairs)
            similar = reaches(similarities, task.threshold)
            write(with_bits(pairs[similar], similarities[similar]))
            n += len(pairs)
        save_array(task.counts_path, np.array([n]))
