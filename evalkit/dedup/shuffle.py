"""Rows of integers on the disk, sorted in bounded memory: what every step of a deduplication is made of.

A *run* is a file of rows int64[n, k], sorted by all columns from the first on. Whoever has more rows than fit into its
memory writes several runs and merges them (external merge sort: Knuth, The Art of Computer Programming 3, 5.4). Whoever
needs the rows of a range of the first column, be it of keys, of hashes or of documents, takes that slice of each run
and merges the slices. So a shuffle is two calls: each worker of the one side writes a run, each of the other reads a
range of all of them. A merge reads windows: it holds a bounded number of rows, however many have the same key.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evalkit.dedup import shuffle_kernels
from evalkit.dedup.arrays import load_array, passing_names, writing

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

MEMORY_BYTES: Final = 1 << 30
"""Of the arrays of one task, unless the caller says otherwise."""

FAN_IN: Final = 512
"""Most runs that one task opens; more are merged to fewer first."""

_COPIES: Final = 5
"""So often are the rows of a window in memory while it is sorted, and its consumer works on it."""

_MOVES: Final = 8
_LOWEST, _HIGHEST = -(1 << 63), 1 << 63


def rows_within(memory_bytes: int, n_columns: int) -> int:
    """Return how many rows may be sorted at a time."""
    return max(1, memory_bytes // (8 * n_columns * _COPIES))


def writing_rows(
    path: Path, n_columns: int, *, is_passing: bool = False
) -> contextlib.AbstractContextManager[Callable[[npt.NDArray[Any]], None]]:
    """Yield a function that appends rows to a file, as `writing` does."""
    return writing(path, "<i8", (n_columns,), is_passing=is_passing)


def write_rows(path: Path, rows: Int64, *, is_passing: bool = False) -> None:
    """Write a file of rows, as `writing` does."""
    with writing_rows(path, rows.shape[1], is_passing=is_passing) as write:
        write(rows)


# --- Sorting ---


def sorted_rows(rows: Int64, n_keys: int | None = None) -> Int64:
    """Return rows sorted by all columns; `rows` may be overwritten.

    Parameters
    ----------
    rows
        int64[n, k].
    n_keys
        Where the first so many columns nearly decide, since they are hashes, or the others are in order already: less
        work. The result does not depend on it.
    """
    if len(rows) < 2:
        return rows
    ordered = shuffle_kernels.radix_sorted(np.ascontiguousarray(rows), n_keys or rows.shape[1])
    if not shuffle_kernels.insert_sorted(ordered, _MOVES * len(rows)):
        ordered = ordered[np.lexsort(ordered.T[::-1])]
    return np.asarray(ordered, dtype=np.int64)


def distinct_rows(ordered: Int64) -> Int64:
    """Return sorted rows without repetitions."""
    if len(ordered) < 2:
        return ordered
    return np.asarray(ordered[np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))])


@contextlib.contextmanager
def sorting(
    path: Path,
    n_columns: int,
    memory_bytes: int,
    *,
    n_keys: int | None = None,
    unique: bool = False,
    is_passing: bool = False,
) -> Iterator[Callable[[Int64], None]]:
    """Yield a function that takes rows in any order; they are written as one run, sorted in bounded memory.

    Parameters
    ----------
    path
        The run, which appears whole.
    n_columns, memory_bytes
        Of the rows, and for them.
    n_keys
        As `sorted_rows` has it.
    unique
        Write each row once.
    is_passing
        As `writing` has it.
    """
    most, pending, n_pending = rows_within(memory_bytes, n_columns), [np.empty((0, n_columns), dtype=np.int64)], 0
    spilled: list[Path] = []
    named = passing_names(path)

    def collected() -> Int64:
        nonlocal n_pending
        rows = sorted_rows(np.concatenate(pending), n_keys)
        del pending[1:]
        n_pending = 0
        return distinct_rows(rows) if unique else rows

    def add(rows: Int64) -> None:
        nonlocal n_pending
        for start in range(0, len(rows), most):
            some = rows[start : start + most]
            if n_pending and n_pending + len(some) > most:
                spilled.append(named(f"spilled-{len(spilled)}"))
                write_rows(spilled[-1], collected(), is_passing=True)
            # A copy: a view would keep what it is a part of in memory.
            pending.append(np.array(some))
            n_pending += len(some)

    try:
        yield add
        if not spilled:
            write_rows(path, collected(), is_passing=is_passing)
            return
        if n_pending:
            spilled.append(named(f"spilled-{len(spilled)}"))
            write_rows(spilled[-1], collected(), is_passing=True)
        level = 0
        left = list(spilled)
        while len(left) > FAN_IN:
            level += 1
            fewer = [named(f"merged-{level}-{k}") for k in range(-(-len(left) // FAN_IN))]
            spilled += fewer
            for k, target in enumerate(fewer):
                some = left[k * FAN_IN : (k + 1) * FAN_IN]
                merge_to(target, some, n_columns, memory_bytes, n_keys=n_keys, unique=unique, is_passing=True)
                for one in some:
                    one.unlink()
            left = fewer
        merge_to(path, left, n_columns, memory_bytes, n_keys=n_keys, unique=unique, is_passing=is_passing)
    finally:
        for one in spilled:
            one.unlink(missing_ok=True)


def merge_to(
    path: Path,
    runs: Sequence[Path],
    n_columns: int,
    memory_bytes: int,
    *,
    n_keys: int | None = None,
    unique: bool = False,
    is_passing: bool = False,
) -> None:
    """Write one run of several."""
    with writing_rows(path, n_columns, is_passing=is_passing) as write:
        for rows in merged(runs, rows_within(memory_bytes, n_columns), n_keys=n_keys, unique=unique):
            write(rows)


def merged(
    runs: Iterable[Path],
    most: int,
    low: int = _LOWEST,
    high: int = _HIGHEST,
    *,
    n_keys: int | None = None,
    unique: bool = False,
) -> Iterator[Int64]:
    """Yield the rows of several runs whose first column is in [low, high), in their order, about `most` at a time.

    Never more than `most` are yielded at once, or as many as there are runs; windows end anywhere. Each run is mapped,
    and read once, from its beginning to its end.
    """
    arrays, starts, ends = [], [], []
    for path in runs:
        array = load_array(path)
        start, end = _range(array, low, high)
        if start < end:
            arrays.append(array)
            starts.append(start)
            ends.append(end)
    last: Int64 | None = None
    while arrays:
        stops = _window(arrays, starts, ends, most)
        rows = np.concatenate([array[a:b] for array, a, b in zip(arrays, starts, stops, strict=True)])
        if sum(a < b for a, b in zip(starts, stops, strict=True)) > 1:
            rows = sorted_rows(rows, n_keys)
        if unique:
            rows = distinct_rows(rows)
            if last is not None and len(rows) and (rows[0] == last).all():
                rows = rows[1:]
            last = rows[-1].copy() if len(rows) else last
        left = [k for k in range(len(arrays)) if stops[k] < ends[k]]
        arrays, starts, ends = ([some[k] for k in left] for some in (arrays, stops, ends))  # type: ignore[assignment]
        if len(rows):
            yield rows


def _range(array: Int64, low: int, high: int) -> tuple[int, int]:
    """Where in a run the rows with a first column in [low, high) are."""
    column = array[:, 0]
    start = 0 if low <= _LOWEST else int(np.searchsorted(column, low))
    return start, len(array) if high >= _HIGHEST else int(np.searchsorted(column, high))


def _window(arrays: list[Int64], starts: list[int], ends: list[int], most: int) -> list[int]:
    """Where in each run the next window ends."""
    if sum(ends) - sum(starts) <= most:
        return ends
    step, found = max(1, most // len(arrays)), None
    while True:
        # All rows before the least of those that stand `step` further on: of no run more than `step`.
        ahead = [tuple(a[s + step].tolist()) for a, s, e in zip(arrays, starts, ends, strict=True) if s + step < e]
        cut = min(ahead, default=None)
        stops = []
        for array, start, end in zip(arrays, starts, ends, strict=True):
            stop = min(start + step, end)
            stops.append(stop if cut is None else _bisect(array, start, stop, cut, bisect.bisect_left))
        if stops == starts and cut is not None:
            # `step` equal rows: all of them are the least.
            stops = [
                _bisect(array, start, min(start + step, end), cut, bisect.bisect_right)
                for array, start, end in zip(arrays, starts, ends, strict=True)
            ]
        n = sum(stops) - sum(starts)
        if found is not None and n > most:
            return found
        # Where runs hardly overlap, a window would be of few rows, and there would be many.
        if n * 2 > most or cut is None:
            return stops
        found, step = stops, step * 2


def _bisect(array: Int64, low: int, high: int, row: tuple[int, ...], side: Callable[..., int]) -> int:
    column = array[low:high, 0]
    begin = low + int(np.searchsorted(column, row[0], side="left"))
    if array.shape[1] == 1:
        return begin if side is bisect.bisect_left else low + int(np.searchsorted(column, row[0], side="right"))
    end = low + int(np.searchsorted(column, row[0], side="right"))
    return begin + side(range(begin, end), row, key=lambda at: tuple(array[at].tolist()))


# --- Ranges ---


def equal_ranges(n: int) -> list[tuple[int, int]]:
    """Cut all 64-bit integers into n equal ranges [low, high), for keys that are hashes."""
    cuts = [_LOWEST + (k << 64) // n for k in range(n + 1)]
    return list(pairwise(cuts))


def ranges_of(runs: Sequence[Path], n_rows: int) -> list[tuple[int, int]]:
    """Cut the first column into ranges [low, high) of about `n_rows` rows of all runs each, found by samples."""
    stride = max(1, n_rows // 64)
    samples = [np.empty(0, dtype=np.int64)]
    samples += [np.array(load_array(path)[stride // 2 :: stride, 0]) for path in runs]
    ordered = np.sort(np.concatenate(samples))
    cuts = [_LOWEST, *np.unique(ordered[64::64]).tolist(), _HIGHEST]
    return list(pairwise(cuts))


def count_rows(runs: Iterable[Path]) -> int:
    """Rows of all runs."""
    return sum(len(load_array(path)) for path in runs)


@dataclass(frozen=True)
class MergeTask:
    """Several runs to become one. It can be pickled."""

    runs: tuple[Path, ...]
    n_columns: int
    memory_bytes: int
    unique: bool
    path: Path


def merge_runs(task: MergeTask) -> None:
    """Write one run of several."""
    merge_to(task.path, task.runs, task.n_columns, task.memory_bytes, unique=task.unique)


# --- Joins ---


def find_rows(ordered: Int64, wanted: Int64) -> tuple[Int64, Any]:
    """Look up values in a sorted column.

    Returns
    -------
    places, is_there
        int64[n] and bool[n]: where in `ordered` each wanted value is, if it is there.
    """
    if not len(ordered):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    # In rising order, so that a mapped column is read from its beginning to its end.
    distinct, back = np.unique(wanted, return_inverse=True)
    places = np.minimum(np.searchsorted(ordered, distinct), len(ordered) - 1)
    return places[back], (ordered[places] == distinct)[back]


def replaced(run: Path, values: Int64) -> Int64:
    """Return values, each replaced by the second column of the row of a run that begins with it, if there is one."""
    rows = load_array(run)
    places, is_there = find_rows(rows[:, 0], values)
    return np.where(is_there, rows[places, 1] if len(rows) else values, values)


# --- Columns ---


def whole_groups(column: Int64, n: int) -> Iterator[tuple[int, int]]:
    """Cut a sorted column into [start, stop) of at most n values, with equal ones together: more than n, if so many."""
    start = 0
    while start < len(column):
        stop = min(start + n, len(column))
        if stop < len(column) and column[stop] == column[stop - 1]:
            value = column[stop]
            stop = start + int(np.searchsorted(column[start:stop], value))
            if stop == start:
                stop += int(np.searchsorted(column[start:], value, side="right"))
        yield start, stop
        start = stop


def with_bits(rows: Int64, values: Float64) -> Int64:
    """Return rows with the bits of numbers as their last column."""
    return np.column_stack([rows, values.view(np.int64)])


def from_bits(column: Int64) -> Float64:
    """Return the numbers whose bits a column has."""
    return np.ascontiguousarray(column).view(np.float64)
