"""The tokens of UTF-8 bytes in Arrow buffers, as hashes and places: the rule in `normalise`, compiled by numba.

The functions release the GIL. Compiled code is cached beside this file.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from evalkit.text.normalise import CHARACTER, COMMENT_OR_NOT, IGNORED, MARK, WORD

# FNV-1a's prime, over code points; every finished token is mixed once more (murmur3's finaliser), since the
# polynomial over tokens below needs well-spread values.
_PRIME: Final = np.uint64(0x100000001B3)
_MIX_1: Final = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT: Final = np.uint64(33)
# Base of the polynomial hash of a window of tokens; odd, so that it is invertible modulo 2^64.
BASE: Final = np.uint64(0x9E3779B97F4A7C15)

_OUTSIDE, _IN_WORD, _IN_CHARACTER = 0, 1, 2
_NEWLINE, _STAR, _SLASH = ord("\n"), ord("*"), ord("/")

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]


@njit(cache=True, nogil=True, inline="always")
def mix(value: Any) -> Any:
    """Spread the bits of a hash: murmur3's finaliser."""
    value ^= value >> _SHIFT
    value *= _MIX_1
    value ^= value >> _SHIFT
    value *= _MIX_2
    value ^= value >> _SHIFT
    return value


@njit(cache=True, nogil=True, inline="always")
def decode(data: Any, i: int) -> tuple[int, int]:
    """Return the code point of two to four bytes of UTF-8 from `data[i]` on, and where the next one begins."""
    byte = data[i]
    if byte < 0xE0:
        point, n_bytes = ((byte & 0x1F) << 6) | (data[i + 1] & 0x3F), 2
    elif byte < 0xF0:
        point, n_bytes = ((byte & 0x0F) << 12) | ((data[i + 1] & 0x3F) << 6) | (data[i + 2] & 0x3F), 3
    else:
        high = ((byte & 0x07) << 18) | ((data[i + 1] & 0x3F) << 12)
        point, n_bytes = high | ((data[i + 2] & 0x3F) << 6) | (data[i + 3] & 0x3F), 4
    return point, i + n_bytes


@njit(cache=True, nogil=True)
def _after_comment(data: Any, i: int, end: int, code: Any) -> int:
    """Where the text goes on after a character that may begin a comment, and the comment if it does."""
    if code == COMMENT_OR_NOT:
        following = data[i + 1] if i + 1 < end else 0
        if following == _STAR:
            i += 2
            while i + 1 < end and not (data[i] == _STAR and data[i + 1] == _SLASH):
                i += 1
            return min(i + 2, end)
        if following != _SLASH:
            return i + 1
    while i < end and data[i] != _NEWLINE:
        i += 1
    return i


@njit(cache=True, nogil=True)
def tokenise(data: Any, begin: int, end: int, fold_arrays: Any, hashes: Any, starts: Any, ends: Any) -> int:
    """Tokenise `data[begin:end]` (valid UTF-8) by a `FoldTable` and return the number of tokens.

    Writes for each token its 64-bit hash and its place as byte offsets `[start, end)` from `begin`. The output arrays
    must hold `2 * (end - begin) + 1` tokens: a ligature of 3 bytes can be 4 tokens.
    """
    ascii_code, kind, fold_start, fold_codes, seeds = fold_arrays
    seed = seeds[0]
    n = 0
    state = _OUTSIDE
    value = seed
    i = begin
    while i < end:
        byte = data[i]
        if byte < 128:
            code = ascii_code[byte]
            if code <= COMMENT_OR_NOT:
                if state != _OUTSIDE:
                    hashes[n] = mix(value)
                    n += 1
                    state = _OUTSIDE
                i = i + 1 if code == 0 else _after_comment(data, i, end, code)
                continue
            if state != _IN_WORD:
                if state == _IN_CHARACTER:
                    hashes[n] = mix(value)
                    n += 1
                state = _IN_WORD
                value = seed
                starts[n] = i - begin
            # Most of a text: the rest of an ASCII word, without a look at anything else.
            while code > COMMENT_OR_NOT:
                value = (value ^ np.uint64(code)) * _PRIME
                i += 1
                if i == end:
                    break
                code = ascii_code[data[i]]
            ends[n] = i - begin
            continue
        at = i
        point, i = decode(data, i)
        for k in range(fold_start[point], fold_start[point + 1]):
            folded = fold_codes[k]
            what = kind[folded]
            if what == IGNORED or (what == MARK and state == _OUTSIDE):
                continue
            if what == MARK or (what == WORD and state == _IN_WORD):
                value = (value ^ np.uint64(folded)) * _PRIME
                ends[n] = i - begin
                continue
            if state != _OUTSIDE:
                hashes[n] = mix(value)
                n += 1
                state = _OUTSIDE
            if what in (WORD, CHARACTER):
                state = _IN_WORD if what == WORD else _IN_CHARACTER
                starts[n] = at - begin
                ends[n] = i - begin
                value = (seed ^ np.uint64(folded)) * _PRIME
    if state != _OUTSIDE:
        hashes[n] = mix(value)
        n += 1
    return n


@njit(cache=True, nogil=True, inline="always")
def count_characters(data: Any, begin: int, end: int) -> int:
    """Number of characters (code points) that begin in `data[begin:end]`."""
    n = 0
    for i in range(begin, end):
        n += (data[i] & 0xC0) != 0x80
    return n


@njit(cache=True, nogil=True)
def tokenise_all(data: Any, offsets: Any, fold_arrays: Any) -> tuple[UInt64, Int64, Int64]:
    """Tokenise every text of an Arrow string array by a `FoldTable`.

    Returns the hashes of all tokens, one text after the other, their sizes in characters of the text, and the
    n_texts + 1 bounds of the texts in them.
    """
    n_texts = len(offsets) - 1
    longest = 0
    for t in range(n_texts):
        longest = max(longest, offsets[t + 1] - offsets[t])
    starts = np.empty(2 * longest + 1, dtype=np.int32)
    ends = np.empty(2 * longest + 1, dtype=np.int32)
    hashes = np.empty(2 * (offsets[n_texts] - offsets[0]) + n_texts, dtype=np.uint64)
    sizes = np.empty(len(hashes), dtype=np.int64)
    bounds = np.zeros(n_texts + 1, dtype=np.int64)
    for t in range(n_texts):
        bounds[t + 1] = bounds[t] + tokenise(
            data, offsets[t], offsets[t + 1], fold_arrays, hashes[bounds[t] :], starts, ends
        )
        for k in range(bounds[t + 1] - bounds[t]):
            sizes[bounds[t] + k] = count_characters(data, offsets[t] + starts[k], offsets[t] + ends[k])
    return hashes[: bounds[n_texts]].copy(), sizes[: bounds[n_texts]].copy(), bounds
