"""The inner loops of the external sort and of connected components, compiled by numba."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

Int64 = npt.NDArray[np.int64]

_DIGIT_BITS: Final = 11
_DIGITS: Final = 1 << _DIGIT_BITS
_RADIX_BITS: Final = 3 * _DIGIT_BITS
"""So many of the leading bits of a column are sorted by radix; what they leave in disorder is little, if keys are
hashes, and nothing, if they span less than 2^33."""


@njit(cache=True, nogil=True)
def radix_sorted(rows: Any, n_keys: int) -> Any:
    """Return rows sorted stably by the leading bits of the first `n_keys` columns (least significant digit first).

    Parameters
    ----------
    rows
        int64[n, k]; used as a buffer, so its content is lost.
    n_keys
        From 1 to k.
    """
    n, k = rows.shape
    other = np.empty_like(rows)
    counts = np.empty(_DIGITS, dtype=np.int64)
    for back in range(n_keys):
        column = n_keys - 1 - back
        low, high = rows[0, column], rows[0, column]
        for r in range(n):
            low, high = min(low, rows[r, column]), max(high, rows[r, column])
        # As unsigned numbers: the span of two signed ones may not be a signed one.
        base, span = np.uint64(low), np.uint64(high) - np.uint64(low)
        n_bits = 0
        while n_bits < 64 and span >> np.uint64(n_bits) != np.uint64(0):
            n_bits += 1
        shift = max(0, n_bits - _RADIX_BITS)
        while shift < n_bits:
            counts[:] = 0
            for r in range(n):
                counts[((np.uint64(rows[r, column]) - base) >> np.uint64(shift)) & np.uint64(_DIGITS - 1)] += 1
            start = 0
            for digit in range(_DIGITS):
                counts[digit], start = start, start + counts[digit]
            for r in range(n):
                which = ((np.uint64(rows[r, column]) - base) >> np.uint64(shift)) & np.uint64(_DIGITS - 1)
                at = counts[which]
                counts[which] = at + 1
                for c in range(k):
                    other[at, c] = rows[r, c]
            rows, other = other, rows
            shift += _DIGIT_BITS
    return rows


@njit(cache=True, nogil=True)
def insert_sorted(rows: Any, most_moves: int) -> bool:
    """Sort rows that nearly are, in place; return False when that took too many moves and was given up."""
    n, k = rows.shape
    row = np.empty(k, dtype=np.int64)
    n_moves = 0
    for r in range(1, n):
        at = r
        while at > 0:
            is_less = False
            for c in range(k):
                if rows[r, c] != rows[at - 1, c]:
                    is_less = rows[r, c] < rows[at - 1, c]
                    break
            if not is_less:
                break
            at -= 1
        if at == r:
            continue
        n_moves += r - at
        if n_moves > most_moves:
            return False
        row[:] = rows[r]
        for moved in range(r, at, -1):
            rows[moved] = rows[moved - 1]
        rows[at] = row
    return True


@njit(cache=True, nogil=True)
def least_members(one: Any, other: Any, n: int) -> Int64:
    """For each of n nodes the least node that edges connect it with, by union-find with path halving."""
    parent = np.arange(n)
    for e in range(len(one)):
        a, b = one[e], other[e]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        # The least one is the root, always.
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b
    for node in range(n):
        # The parent is less, and so has its root already.
        parent[node] = parent[parent[node]]
    return parent


@njit(cache=True, nogil=True)
def receive(rows: Any, low: int, kept: Any, found: Any) -> None:
    """Let each place of a block that is left be taken by the first that asks for it.

    Parameters
    ----------
    rows
        int64[n, 3]: place, the one that takes it, the bits of their similarity.
    low
        First place of the block.
    kept, found
        int64[n], float64[n]: by whom each place of the block was taken (-1: by none yet), and how similar they are.
    """
    bits = np.empty(1, dtype=np.int64)
    for r in range(len(rows)):
        place = rows[r, 0] - low
        if kept[place] == -1:
            bits[0] = rows[r, 2]
            kept[place], found[place] = rows[r, 1], bits.view(np.float64)[0]


@njit(cache=True, nogil=True)
def take_neighbours(rows: Any, low: int, kept: Any, found: Any) -> Any:
    """Let each place of a block that nobody has taken take its neighbours, in order.

    Parameters
    ----------
    rows
        int64[n, 3], sorted: place in the block, a later place, the bits of their similarity.
    low, kept, found
        As `receive` has them.

    Returns
    -------
    sent
        int64[m, 3]: what is for later blocks, as `receive` takes it.
    """
    sent = np.empty_like(rows)
    bits = np.empty(1, dtype=np.int64)
    n = 0
    for r in range(len(rows)):
        one, other = rows[r, 0], rows[r, 1]
        if kept[one - low] == -1:
            kept[one - low], found[one - low] = one, 1.0
        if kept[one - low] != one:
            continue
        if other - low >= len(kept):
            sent[n, 0], sent[n, 1], sent[n, 2] = other, one, rows[r, 2]
            n += 1
        elif kept[other - low] == -1:
            bits[0] = rows[r, 2]
            kept[other - low], found[other - low] = one, bits.view(np.float64)[0]
    return sent[:n].copy()
