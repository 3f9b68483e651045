"""The inner loops of the search for repeated passages, compiled by numba: text bytes to hashes of windows of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from evalkit.text.kernels import BASE, mix, tokenise

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def _power(exponent: int) -> Any:
    value = np.uint64(1)
    for _ in range(exponent):
        value *= BASE
    return value


@njit(cache=True, nogil=True)
def _minimizers(grams: Any, n_grams: int, width: int, out: Any) -> int:
    """Write the least of each `width` consecutive grams, and return how many there are."""
    n = max(0, n_grams - width + 1)
    least = -1
    for i in range(n):
        if least < i:
            least = i
            for k in range(i + 1, i + width):
                if grams[k] <= grams[least]:
                    least = k
        elif grams[i + width - 1] <= grams[least]:
            least = i + width - 1
        out[i] = grams[least]
    return n


@njit(cache=True, nogil=True)
def _with_room(out: Any, where: Any, n: int, n_more: int) -> Any:
    """Return the arrays, longer if need be, of which n rows are filled."""
    if n + n_more <= len(out):
        return out, where
    longer = np.empty(2 * (n + n_more), dtype=np.uint64)
    longer[:n] = out[:n]
    more = np.empty((2 * (n + n_more), 4), dtype=np.int64)
    more[:n] = where[:n]
    return longer, more


@njit(cache=True, nogil=True)
def windows(
    data: Any, offsets: Any, fold: Any, size: int, wanted: Any, only_minimizers: bool
) -> tuple[UInt64, Int64, Int64, Int64, Int64, int]:
    """Hash windows of `size` tokens of each text.

    Parameters
    ----------
    data, offsets
        The buffers of an Arrow large_string array.
    fold
        The arrays of the `FoldTable`.
    size
        Tokens of a window, at least 2.
    wanted
        Only the windows whose minimizer is among these, uint64 and rising. Not used with `only_minimizers`.
    only_minimizers
        Return the minimizers of all windows instead, each once where it stays the same.

    Returns
    -------
    hashes, texts, places, starts, ends, n_tokens
        Of the windows: the hash, the text, the first token, and the place in bytes of the text; and the tokens of all
        texts. With `only_minimizers` the last three arrays are empty.
    """
    gram = size // 2
    width = size - gram + 1
    longest = 0
    for d in range(len(offsets) - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    hashes = np.empty(2 * longest + 1, dtype=np.uint64)
    starts, ends = np.empty(2 * longest + 1, dtype=np.int32), np.empty(2 * longest + 1, dtype=np.int32)
    prefix = np.zeros(2 * longest + 2, dtype=np.uint64)
    grams, least = np.empty(2 * longest + 1, dtype=np.uint64), np.empty(2 * longest + 1, dtype=np.uint64)
    gram_power, power = _power(gram), _power(size)
    out = np.empty(1024, dtype=np.uint64)
    where = np.empty((1024, 4), dtype=np.int64)
    n, n_tokens = 0, 0
    for d in range(len(offsets) - 1):
        count = tokenise(data, offsets[d], offsets[d + 1], fold, hashes, starts, ends)
        n_tokens += count
        if count < size:
            continue
        for k in range(count):
            prefix[k + 1] = prefix[k] * BASE + hashes[k]
        n_grams = count - gram + 1
        for k in range(n_grams):
            grams[k] = mix(prefix[k + gram] - prefix[k] * gram_power)
        n_windows = _minimizers(grams, n_grams, width, least)
        out, where = _with_room(out, where, n, n_windows)
        is_wanted = False
        for k in range(n_windows):
            is_new = k == 0 or least[k] != least[k - 1]
            if only_minimizers:
                if is_new:
                    out[n], where[n, 0] = least[k], d
                    n += 1
                continue
            if is_new:
                place = np.searchsorted(wanted, least[k])
                is_wanted = place < len(wanted) and wanted[place] == least[k]
            if is_wanted:
                out[n] = mix(prefix[k + size] - prefix[k] * power)
                where[n, 0], where[n, 1], where[n, 2], where[n, 3] = d, k, starts[k], ends[k + size - 1]
                n += 1
    texts = where[:n, 0].copy()
    n_places = 0 if only_minimizers else n
    return (
        out[:n].copy(),
        texts,
        where[:n_places, 1].copy(),
        where[:n_places, 2].copy(),
        where[:n_places, 3].copy(),
        n_tokens,
    )


@njit(cache=True, nogil=True)
def to_characters(data: Any, offsets: Any, texts: Any, starts: Any, ends: Any) -> None:
    """Turn places in bytes into places in characters, in place; the starts and the ends rise within each text."""
    for places in (starts, ends):
        text, at, n = -1, 0, 0
        for k in range(len(texts)):
            if texts[k] != text:
                text, at, n = texts[k], 0, 0
            begin = offsets[text]
            for i in range(begin + at, begin + places[k]):
                n += (data[i] & 0xC0) != 0x80
            at = places[k]
            places[k] = n
