"""The inner loops of MinHash, compiled by numba: text bytes to shingles, their hashes, and signatures.

Everything works on bytes in Arrow buffers and on flat arrays; no Python object is made per shingle. The functions
release the GIL. Compiled code is cached beside this file.

A shingle is a stretch `data[start:end]` of normalised text, never copied. SHA-1 works on many shingles at once: each
of its steps is one loop over *lanes*, which the compiler turns into vector instructions, and so is the loop over the
permutations.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from evalkit.text.kernels import decode, mix
from evalkit.text.normalise import CHARACTER, IGNORED, MARK, WORD

SHA1, XXH32 = 0, 1
"""Hash functions: datasketch's default, and a faster one."""

EMPTY: Final = np.uint32(0xFFFFFFFF)
"""Every value of the signature of a document without shingles, as in datasketch."""

_LANES: Final = 64
_ROW: Final = np.uint64(_LANES)
_SUMS, _MASK, _LAST, _KEPT, _MARK, _N_ROWS = 16, 21, 22, 23, 24, 25  # after the 16 words of a block
_ALL, _TOP = np.uint32(0xFFFFFFFF), np.uint32(0x80000000)
_BLOCK_BYTES: Final = 64
_LENGTH_BYTES: Final = 8
_SHA1_FIRST: Final = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0], dtype=np.uint32)
_K1, _K2, _K3, _K4 = (np.uint32(one) for one in (0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6))

_P1, _P2, _P3, _P4, _P5 = (
    np.uint32(one) for one in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)
)  # fmt: skip
_STRIPE, _FOUR = np.uint64(16), np.uint64(4)
_FMIX_1, _FMIX_2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)

_CHUNK: Final = 2048  # shingles that are hashed at a time, or more

_SPACE: Final = ord(" ")
_OUTSIDE, _IN_WORD, _IN_CHARACTER = 0, 1, 2

UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]


# --- Text ---


@njit(cache=True, nogil=True)
def _longer(array: Any, n: int, size: int) -> Any:
    """Return an array of `size` elements of which the first n are those of `array`."""
    longer = np.empty(size, dtype=array.dtype)
    longer[:n] = array[:n]
    return longer


@njit(cache=True, nogil=True)
def normalise(
    data: Any, begin: int, end: int, fold: Any, out: Any, first: int, starts: Any
) -> tuple[Any, int, Any, int]:
    """Write the tokens of `data[begin:end]` (valid UTF-8) to `out[first:]`, in UTF-8, with one space between any two.

    Returns `out` and where the text ends in it, and `starts` and the number of tokens: token k is
    `out[starts[k] : starts[k + 1] - 1]`, the last one too. Both arrays are replaced by longer ones when they are full.
    """
    ascii_code, kind, fold_start, fold_codes, _ = fold
    n, n_tokens, state = first, 0, _OUTSIDE
    i = begin
    while i < end:
        # Of each ASCII character at most one byte is written, and at most one token begins; of a folded character, at
        # most 18 times 5 bytes.
        if n + 128 + (end - i) > len(out):
            out = _longer(out, n, 2 * len(out) + (end - i) + 128)
        if n_tokens + 32 + (end - i) > len(starts):
            starts = _longer(starts, n_tokens, 2 * len(starts) + (end - i) + 32)
        byte = data[i]
        if byte < 128:
            # Most of a text: ASCII, up to the next other character.
            while byte < 128:
                code = ascii_code[byte]
                if code == 0:
                    if state != _OUTSIDE:
                        out[n] = _SPACE
                        n += 1
                        state = _OUTSIDE
                else:
                    if state != _IN_WORD:
                        if state == _IN_CHARACTER:
                            out[n] = _SPACE
                            n += 1
                        starts[n_tokens] = n
                        n_tokens += 1
                        state = _IN_WORD
                    out[n] = code
                    n += 1
                i += 1
                if i == end:
                    break
                byte = data[i]
            continue
        point, i = decode(data, i)
        for k in range(fold_start[point], fold_start[point + 1]):
            folded = int(fold_codes[k])
            what = kind[folded]
            if what == IGNORED or (what == MARK and state == _OUTSIDE):
                continue
            if not (what == MARK or (what == WORD and state == _IN_WORD)):
                if state != _OUTSIDE:
                    out[n] = _SPACE
                    n += 1
                    state = _OUTSIDE
                if what not in (WORD, CHARACTER):
                    continue
                state = _IN_WORD if what == WORD else _IN_CHARACTER
                starts[n_tokens] = n
                n_tokens += 1
            if folded < 0x80:
                out[n] = folded
                n += 1
            elif folded < 0x800:
                out[n], out[n + 1] = 0xC0 | (folded >> 6), 0x80 | (folded & 0x3F)
                n += 2
            elif folded < 0x10000:
                out[n], out[n + 1] = 0xE0 | (folded >> 12), 0x80 | ((folded >> 6) & 0x3F)
                out[n + 2] = 0x80 | (folded & 0x3F)
                n += 3
            else:
                out[n], out[n + 1] = 0xF0 | (folded >> 18), 0x80 | ((folded >> 12) & 0x3F)
                out[n + 2], out[n + 3] = 0x80 | ((folded >> 6) & 0x3F), 0x80 | (folded & 0x3F)
                n += 4
    if state == _OUTSIDE:
        n = max(first, n - 1)  # the space after the last token
    starts[n_tokens] = n + 1
    return out, n, starts, n_tokens


@njit(cache=True, nogil=True)
def normalise_all(data: Any, offsets: Any, fold: Any) -> tuple[UInt8, Int64]:
    """Return the normalised texts of an Arrow large_string array, one after the other, and their bounds."""
    n_texts = len(offsets) - 1
    text, starts = np.empty(offsets[n_texts] - offsets[0] + 256, dtype=np.uint8), np.empty(4096, dtype=np.int64)
    bounds = np.zeros(n_texts + 1, dtype=np.int64)
    for d in range(n_texts):
        text, bounds[d + 1], starts, _ = normalise(data, offsets[d], offsets[d + 1], fold, text, bounds[d], starts)
    return text[: bounds[n_texts]].copy(), bounds


@njit(cache=True, nogil=True)
def characters(data: Any, begin: int, end: int, starts: Any) -> tuple[Any, int]:
    """Write where each character of `data[begin:end]` begins; return `starts` (longer if need be) and their number.

    Character k is `data[starts[k] : starts[k + 1]]`, the last one too.
    """
    if len(starts) <= end - begin:
        starts = np.empty(end - begin + 1, dtype=starts.dtype)
    n_found = 0
    for i in range(begin, end):
        starts[n_found] = i
        n_found += (data[i] & 0xC0) != 0x80
    starts[n_found] = end
    return starts, n_found


@njit(cache=True, nogil=True)
def shingle_bounds(
    starts: Any, n_units: int, size: int, gap: int, begins: Any, ends: Any, first: int
) -> tuple[Any, Any, int]:
    """Write the bounds of all shingles of `size` units from `first` on; return the two arrays and the end in them.

    `gap` is 1 when there is a space after each unit that is no part of it. Fewer make one shingle, none make none.
    """
    n = max(min(n_units, 1), n_units - size + 1)
    if len(begins) < first + n:
        begins, ends = _longer(begins, first, 2 * (first + n)), _longer(ends, first, 2 * (first + n))
    step = min(size, n_units)
    for k in range(n):
        begins[first + k] = starts[k]
        ends[first + k] = starts[k + step] - gap
    return begins, ends, first + n


# --- Hashes of shingles ---


@njit(cache=True, nogil=True)
def sha1_heads(data: Any, begins: Any, ends: Any, n: int, out: Any) -> None:
    """Write the first 8 bytes of the SHA-1 of each `data[begins[k]:ends[k]]`, little endian, to uint64 `out[k]`.

    The low 32 bits are datasketch's `sha1_hash32`, and all 64 its `sha1_hash64`.
    """
    rows = np.empty(_N_ROWS * _LANES, dtype=np.uint32)
    left = np.zeros(_LANES, dtype=np.int64)
    # Those of one block apart from the others: all lanes take as long as the longest shingle in them.
    short, long = np.zeros(_LANES, dtype=np.int64), np.zeros(_LANES, dtype=np.int64)
    n_short, n_long = 0, 0
    for k in range(n):
        if ends[k] - begins[k] < _BLOCK_BYTES - _LENGTH_BYTES:
            short[n_short] = k
            n_short += 1
            if n_short == _LANES:
                _sha1(data, begins, ends, short, n_short, rows, left, out)
                n_short = 0
        else:
            long[n_long] = k
            n_long += 1
            if n_long == _LANES:
                _sha1(data, begins, ends, long, n_long, rows, left, out)
                n_long = 0
    _sha1(data, begins, ends, short, n_short, rows, left, out)
    _sha1(data, begins, ends, long, n_long, rows, left, out)


@njit(cache=True, nogil=True)
def _sha1(data: Any, begins: Any, ends: Any, which: Any, n_lanes: int, rows: Any, left: Any, out: Any) -> None:
    """Hash the shingles `which[:n_lanes]` side by side. FIPS 180-4.

    Value r of lane l is `rows[r * _LANES + l]`: 16 words of a block, 5 of the sum, a mask of the lanes whose message
    has not ended, and how it ends: in which word, which of its bits count, and the bit that is set behind them.
    """
    longest = 0
    for lane in range(n_lanes):
        longest = max(longest, ends[which[lane]] - begins[which[lane]])
    for row in range(5):
        for lane in range(_LANES):
            rows[(_SUMS + row) * _LANES + lane] = _SHA1_FIRST[row]
    for block in range((longest + _LENGTH_BYTES) // _BLOCK_BYTES + 1):
        _fill_block(data, begins, ends, which, n_lanes, block, rows, left)
        _compress(rows)
    low, high = _SUMS * _LANES, (_SUMS + 1) * _LANES
    for lane in range(n_lanes):
        out[which[lane]] = np.uint64(_swapped(rows[low + lane])) | (
            np.uint64(_swapped(rows[high + lane])) << np.uint64(32)
        )


@njit(cache=True, nogil=True)
def _fill_block(data: Any, begins: Any, ends: Any, which: Any, n_lanes: int, block: int, rows: Any, left: Any) -> None:
    """Write one block of each padded message, 16 big-endian words, and whether the message has not ended before."""
    for lane in range(n_lanes):
        begin = min(begins[which[lane]] + block * _BLOCK_BYTES, len(data))
        left[lane] = ends[which[lane]] - begins[which[lane]] - block * _BLOCK_BYTES
        # Indices without a sign: numba would look at each of the others whether it counts from the end.
        at, here = np.uint64(begin), np.uint64(lane)
        if begin + _BLOCK_BYTES <= len(data):
            for t in range(np.uint64(16)):
                i = at + _FOUR * t
                rows[t * _ROW + here] = (
                    (np.uint32(data[i]) << np.uint32(24))
                    | (np.uint32(data[i + np.uint64(1)]) << np.uint32(16))
                    | (np.uint32(data[i + np.uint64(2)]) << np.uint32(8))
                    | np.uint32(data[i + np.uint64(3)])
                )
        else:
            for t in range(16):
                word = np.uint32(0)
                for place in range(begin + 4 * t, begin + 4 * t + 4):
                    word = np.uint32(word << np.uint32(8)) | np.uint32(data[place] if place < len(data) else 0)
                rows[t * _LANES + lane] = word
    # What was read behind the end goes, and a set bit comes in its place.
    for lane in range(_LANES):
        n_bits = np.uint32(8 * (left[lane] & 3))
        has_ended = left[lane] < 0
        rows[_LAST * _LANES + lane] = np.uint32(0 if has_ended else min(left[lane] >> 2, 16))
        rows[_KEPT * _LANES + lane] = np.uint32(0 if has_ended else ~np.uint32(_ALL >> n_bits))
        rows[_MARK * _LANES + lane] = np.uint32(0 if has_ended else _TOP >> n_bits)
        rows[_MASK * _LANES + lane] = np.uint32(_ALL if left[lane] >= -_LENGTH_BYTES else 0)
    for t in range(16):
        row = np.uint32(t)
        for lane in range(_LANES):
            word = rows[t * _LANES + lane]
            end = np.uint32((word & rows[_KEPT * _LANES + lane]) | rows[_MARK * _LANES + lane])
            last = rows[_LAST * _LANES + lane]
            after = end if row == last else np.uint32(0)
            rows[t * _LANES + lane] = word if row < last else after
    for lane in range(n_lanes):
        if left[lane] < _BLOCK_BYTES - _LENGTH_BYTES:
            n_bits = (left[lane] + block * _BLOCK_BYTES) * 8
            rows[14 * _LANES + lane] = np.uint32(n_bits >> 32)
            rows[15 * _LANES + lane] = np.uint32(n_bits)


@njit(cache=True, nogil=True, inline="always")
def _rotated(word: Any, n: int) -> Any:
    """Rotate 32 bits to the left. (numba computes in 64 bits what is not cast: the casts matter.)"""
    return np.uint32(np.uint32(word << np.uint32(n)) | np.uint32(word >> np.uint32(32 - n)))


@njit(cache=True, nogil=True, inline="always")
def _swapped(word: Any) -> Any:
    """The same four bytes in the other order."""
    low = np.uint32(0x00FF00FF)
    return _rotated(np.uint32(((word & low) << np.uint32(8)) | ((word >> np.uint32(8)) & low)), 16)


@njit(cache=True, nogil=True, inline="always")
def _word(data: Any, i: Any) -> Any:
    """Four bytes, little endian; `i` is a uint64."""
    return np.uint32(
        np.uint32(data[i])
        | (np.uint32(data[i + np.uint64(1)]) << np.uint32(8))
        | (np.uint32(data[i + np.uint64(2)]) << np.uint32(16))
        | (np.uint32(data[i + np.uint64(3)]) << np.uint32(24))
    )


@njit(nogil=True, forceinline=True)
def _turn(s: Any, mixed: Any, k: Any, word: Any) -> Any:
    """One step: `s` are the words a to e."""
    return np.uint32(_rotated(s[0], 5) + mixed + s[4] + k + word), s[0], _rotated(s[1], 30), s[2], s[3]


@njit(nogil=True, forceinline=True)
def _choose(s: Any, word: Any) -> Any:
    return _turn(s, np.uint32(s[3] ^ (s[1] & (s[2] ^ s[3]))), _K1, word)


@njit(nogil=True, forceinline=True)
def _parity(s: Any, k: Any, word: Any) -> Any:
    return _turn(s, np.uint32(s[1] ^ s[2] ^ s[3]), k, word)


@njit(nogil=True, forceinline=True)
def _majority(s: Any, word: Any) -> Any:
    return _turn(s, np.uint32((s[1] & s[2]) | (s[3] & (s[1] | s[2]))), _K3, word)


@njit(nogil=True, forceinline=True)
def _choose_4(s: Any, p: Any, q: Any, r: Any, t: Any) -> Any:
    return _choose(_choose(_choose(_choose(s, p), q), r), t)


@njit(nogil=True, forceinline=True)
def _parity_4(s: Any, k: Any, p: Any, q: Any, r: Any, t: Any) -> Any:
    return _parity(_parity(_parity(_parity(s, k, p), k, q), k, r), k, t)


@njit(nogil=True, forceinline=True)
def _majority_4(s: Any, p: Any, q: Any, r: Any, t: Any) -> Any:
    return _majority(_majority(_majority(_majority(s, p), q), r), t)


@njit(nogil=True, forceinline=True)
def _mixed(p: Any, q: Any, r: Any, t: Any) -> Any:
    return _rotated(np.uint32(p ^ q ^ r ^ t), 1)


@njit(nogil=True, forceinline=True)
def _next_16(w: Any) -> Any:
    """The message's words 16 to 31 from 0 to 15, and so on: each of those 3, 8, 14 and 16 before it."""
    a, b, c = _mixed(w[13], w[8], w[2], w[0]), _mixed(w[14], w[9], w[3], w[1]), _mixed(w[15], w[10], w[4], w[2])
    d, e, f = _mixed(a, w[11], w[5], w[3]), _mixed(b, w[12], w[6], w[4]), _mixed(c, w[13], w[7], w[5])
    g, h, i = _mixed(d, w[14], w[8], w[6]), _mixed(e, w[15], w[9], w[7]), _mixed(f, a, w[10], w[8])
    j, k, m = _mixed(g, b, w[11], w[9]), _mixed(h, c, w[12], w[10]), _mixed(i, d, w[13], w[11])
    n, o, p = _mixed(j, e, w[14], w[12]), _mixed(k, f, w[15], w[13]), _mixed(m, g, a, w[14])
    return a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, _mixed(n, h, b, w[15])


@njit(cache=True, nogil=True)
def _compress(rows: Any) -> None:
    """The 80 steps, for all lanes at once: the loop has no branch and no second array, so it becomes vector code.

    It needs a number of lanes that the compiler knows; lanes without a message compute nonsense. All words stay in
    registers. (A loop over lanes for each step took 1.8 times as long, in loads and stores.)
    """
    for lane in range(_LANES):
        w = (
            rows[lane], rows[_LANES + lane], rows[2 * _LANES + lane], rows[3 * _LANES + lane],
            rows[4 * _LANES + lane], rows[5 * _LANES + lane], rows[6 * _LANES + lane], rows[7 * _LANES + lane],
            rows[8 * _LANES + lane], rows[9 * _LANES + lane], rows[10 * _LANES + lane], rows[11 * _LANES + lane],
            rows[12 * _LANES + lane], rows[13 * _LANES + lane], rows[14 * _LANES + lane], rows[15 * _LANES + lane],
        )  # fmt: skip
        s = (
            rows[16 * _LANES + lane], rows[17 * _LANES + lane], rows[18 * _LANES + lane], rows[19 * _LANES + lane],
            rows[20 * _LANES + lane],
        )  # fmt: skip
        s = _choose_4(_choose_4(s, w[0], w[1], w[2], w[3]), w[4], w[5], w[6], w[7])
        s = _choose_4(_choose_4(s, w[8], w[9], w[10], w[11]), w[12], w[13], w[14], w[15])
        w = _next_16(w)
        s = _parity_4(_choose_4(s, w[0], w[1], w[2], w[3]), _K2, w[4], w[5], w[6], w[7])
        s = _parity_4(_parity_4(s, _K2, w[8], w[9], w[10], w[11]), _K2, w[12], w[13], w[14], w[15])
        w = _next_16(w)
        s = _parity_4(_parity_4(s, _K2, w[0], w[1], w[2], w[3]), _K2, w[4], w[5], w[6], w[7])
        s = _majority_4(_majority_4(s, w[8], w[9], w[10], w[11]), w[12], w[13], w[14], w[15])
        w = _next_16(w)
        s = _majority_4(_majority_4(s, w[0], w[1], w[2], w[3]), w[4], w[5], w[6], w[7])
        s = _parity_4(_majority_4(s, w[8], w[9], w[10], w[11]), _K4, w[12], w[13], w[14], w[15])
        w = _next_16(w)
        s = _parity_4(_parity_4(s, _K4, w[0], w[1], w[2], w[3]), _K4, w[4], w[5], w[6], w[7])
        s = _parity_4(_parity_4(s, _K4, w[8], w[9], w[10], w[11]), _K4, w[12], w[13], w[14], w[15])
        # A message whose length was in a block before has ended.
        mask = rows[_MASK * _LANES + lane]
        rows[16 * _LANES + lane] += s[0] & mask
        rows[17 * _LANES + lane] += s[1] & mask
        rows[18 * _LANES + lane] += s[2] & mask
        rows[19 * _LANES + lane] += s[3] & mask
        rows[20 * _LANES + lane] += s[4] & mask


@njit(cache=True, nogil=True)
def xxh32s(data: Any, begins: Any, ends: Any, n: int, out: Any) -> None:
    """Write the XXH32 (seed 0) of each `data[begins[k]:ends[k]]` to uint64 `out[k]`: xxHash specification 0.1.1."""
    for k in range(n):
        i, end = np.uint64(begins[k]), np.uint64(ends[k])
        value = _P5
        if end - i >= _STRIPE:
            a, b, c, d = np.uint32(_P1 + _P2), _P2, np.uint32(0), np.uint32(-np.int64(_P1))
            while i + _STRIPE <= end:
                a = _xxh_round(a, _word(data, i))
                b = _xxh_round(b, _word(data, i + _FOUR))
                c = _xxh_round(c, _word(data, i + np.uint64(8)))
                d = _xxh_round(d, _word(data, i + np.uint64(12)))
                i += _STRIPE
            value = np.uint32(_rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18))
        value = np.uint32(value + np.uint32(ends[k] - begins[k]))
        while i + _FOUR <= end:
            value = np.uint32(_rotated(np.uint32(value + _word(data, i) * _P3), 17) * _P4)
            i += _FOUR
        while i < end:
            value = np.uint32(_rotated(np.uint32(value + np.uint32(data[i]) * _P5), 11) * _P1)
            i += np.uint64(1)
        value = np.uint32((value ^ (value >> np.uint32(15))) * _P2)
        value = np.uint32((value ^ (value >> np.uint32(13))) * _P3)
        out[k] = value ^ (value >> np.uint32(16))


@njit(cache=True, nogil=True, inline="always")
def _xxh_round(value: Any, word: Any) -> Any:
    return np.uint32(_rotated(np.uint32(value + word * _P2), 13) * _P1)


# --- Signatures ---


@njit(cache=True, nogil=True, inline="always")
def _image(a: Any, h: Any, b: Any) -> Any:
    return np.uint32(a * h + b)


@njit(cache=True, nogil=True)
def _premixed(hashes: Any) -> UInt32:
    """The low 32 bits of the hashes, mixed by murmur3's finaliser."""
    premixed = np.empty(len(hashes), dtype=np.uint32)
    for i in range(len(hashes)):
        mixed = np.uint32(hashes[i])
        mixed = np.uint32((mixed ^ (mixed >> np.uint32(16))) * _FMIX_1)
        mixed = np.uint32((mixed ^ (mixed >> np.uint32(13))) * _FMIX_2)
        premixed[i] = mixed ^ (mixed >> np.uint32(16))
    return premixed


@njit(cache=True, nogil=True)
def permute(premixed: Any, a: Any, b: Any, out: Any) -> None:
    """Lower each value of the signature `out` to the least of its permutation a * h + b: datasketch's affine32."""
    n = len(premixed)
    whole = n - n % 8
    for i in range(0, whole, 8):
        # Eight at a time, so that a, b and the signature are loaded and stored once for all of them.
        h0, h1, h2, h3 = premixed[i], premixed[i + 1], premixed[i + 2], premixed[i + 3]
        h4, h5, h6, h7 = premixed[i + 4], premixed[i + 5], premixed[i + 6], premixed[i + 7]
        for k in range(len(out)):
            p, q = a[k], b[k]
            out[k] = min(
                out[k],
                _image(p, h0, q),
                _image(p, h1, q),
                _image(p, h2, q),
                _image(p, h3, q),
                _image(p, h4, q),
                _image(p, h5, q),
                _image(p, h6, q),
                _image(p, h7, q),
            )
    for i in range(whole, n):
        h = premixed[i]
        for k in range(len(out)):
            out[k] = min(out[k], _image(a[k], h, b[k]))


@njit(cache=True, nogil=True)
def hash_shingles(data: Any, begins: Any, ends: Any, n: int, function: int, out: Any) -> None:
    """Hash the shingles by SHA1 or XXH32."""
    if function == SHA1:
        sha1_heads(data, begins, ends, n, out)
    else:
        xxh32s(data, begins, ends, n, out)


@njit(cache=True, nogil=True)
def sign_shingles(data: Any, offsets: Any, bounds: Any, function: int, a: Any, b: Any, signatures: Any) -> None:
    """Write the signature of each set of ready shingles.

    Parameters
    ----------
    data, offsets
        The buffers of an Arrow large_binary array of all shingles.
    bounds
        The n + 1 bounds of the sets in it.
    function
        SHA1 or XXH32.
    a, b
        Of the permutations, uint32[num_perm].
    signatures
        uint32[n, num_perm], to be written.
    """
    signatures[:] = EMPTY
    d = 0
    while d < len(signatures):
        # Some sets at a time: what is hashed stays in the processor's cache.
        first, last = bounds[d], d + 1
        while last < len(signatures) and bounds[last + 1] - first <= _CHUNK:
            last += 1
        n = bounds[last] - first
        hashes = np.empty(n, dtype=np.uint64)
        hash_shingles(data, offsets[first:], offsets[first + 1 :], n, function, hashes)
        premixed = _premixed(hashes)
        for k in range(d, last):
            permute(premixed[bounds[k] - first : bounds[k + 1] - first], a, b, signatures[k])
        d = last


@njit(cache=True, nogil=True)
def sign_texts(
    data: Any,
    offsets: Any,
    fold: Any,
    by_words: bool,
    size: int,
    function: int,
    a: Any,
    b: Any,
    signatures: Any,
    n_tokens: Any,
    n_shingles: Any,
) -> None:
    """Write the signature, the tokens and the shingles of each text.

    Parameters
    ----------
    data, offsets
        The buffers of an Arrow large_string array.
    fold
        The arrays of the `FoldTable`.
    by_words, size
        Shingles of so many words, or else characters.
    function, a, b, signatures
        As `sign_shingles` takes them.
    n_tokens, n_shingles
        int64[n], to be written; a shingle that occurs twice counts twice.
    """
    text, starts = np.empty(_CHUNK, dtype=np.uint8), np.empty(_CHUNK, dtype=np.int64)
    begins, ends = np.empty(2 * _CHUNK, dtype=np.int64), np.empty(2 * _CHUNK, dtype=np.int64)
    signatures[:] = EMPTY
    d = 0
    while d < len(signatures):
        # Some texts at a time, so that the lanes of the hash function are full.
        first, n_bytes, n = d, 0, 0
        while d < len(signatures) and n < _CHUNK:
            begin = n_bytes
            text, n_bytes, starts, n_units = normalise(data, offsets[d], offsets[d + 1], fold, text, n_bytes, starts)
            n_tokens[d] = n_units
            if not by_words:
                starts, n_units = characters(text, begin, n_bytes, starts)
            before = n
            begins, ends, n = shingle_bounds(starts, n_units, size, 1 if by_words else 0, begins, ends, n)
            n_shingles[d] = n - before
            d += 1
        hashes = np.empty(n, dtype=np.uint64)
        hash_shingles(text, begins, ends, n, function, hashes)
        premixed = _premixed(hashes)
        low = 0
        for k in range(first, d):
            permute(premixed[low : low + n_shingles[k]], a, b, signatures[k])
            low += n_shingles[k]


@njit(cache=True, nogil=True)
def shingle_sets(data: Any, offsets: Any, which: Any, fold: Any, by_words: bool, size: int) -> tuple[UInt64, Int64]:
    """Return the distinct shingles of the texts `which`, each as the first 8 bytes of its SHA-1, sorted.

    The second array has the bounds of the texts in the first.
    """
    text, starts = np.empty(_CHUNK, dtype=np.uint8), np.empty(_CHUNK, dtype=np.int64)
    begins, ends = np.empty(_CHUNK, dtype=np.int64), np.empty(_CHUNK, dtype=np.int64)
    values = np.empty(_CHUNK, dtype=np.uint64)
    bounds = np.zeros(len(which) + 1, dtype=np.int64)
    for k in range(len(which)):
        d = which[k]
        text, n_bytes, starts, n_units = normalise(data, offsets[d], offsets[d + 1], fold, text, 0, starts)
        if not by_words:
            starts, n_units = characters(text, 0, n_bytes, starts)
        begins, ends, n = shingle_bounds(starts, n_units, size, 1 if by_words else 0, begins, ends, 0)
        first = bounds[k]
        if first + n > len(values):
            values = _longer(values, first, 2 * (first + n))
        mine = values[first : first + n]
        sha1_heads(text, begins, ends, n, mine)
        mine.sort()
        last = first
        for i in range(n):
            if i == 0 or mine[i] != mine[i - 1]:
                values[last] = mine[i]
                last += 1
        bounds[k + 1] = last
    return values[: bounds[-1]].copy(), bounds


# --- Comparison ---


@njit(cache=True, nogil=True)
def band_keys(signatures: Any, band: int, n_rows: int) -> UInt64:
    """Return 64 bits for each document that are equal where all values of its band are, and hardly ever else."""
    keys = np.empty(len(signatures), dtype=np.uint64)
    for d in range(len(signatures)):
        key = np.uint64(0x9E3779B97F4A7C15)
        for k in range(band * n_rows, (band + 1) * n_rows):
            key = mix(key ^ np.uint64(signatures[d, k]))
        keys[d] = key
    return keys


@njit(cache=True, nogil=True)
def pairs_in_buckets(signatures: Any, bounds: Any, are_old: Any, least_equal: int, window: int, first: int) -> Int64:
    """Return the pairs of documents of each bucket that agree in at least `least_equal` values.

    Parameters
    ----------
    signatures
        uint32[n, num_perm], those of each bucket one after the other.
    bounds
        Of the buckets in them.
    are_old
        bool[n]: pairs of two old documents are left out.
    window
        A document is compared with so many before it in its bucket; in all but the largest buckets that is all.
    first
        Documents before this one are only what others are compared with.

    Returns
    -------
    pairs
        int64[n_pairs, 2], places in `signatures`, the smaller first.
    """
    pairs = np.empty((1024, 2), dtype=np.int64)
    n = 0
    for bucket in range(len(bounds) - 1):
        for j in range(max(first, bounds[bucket]), bounds[bucket + 1]):
            for i in range(max(bounds[bucket], j - window), j):
                if are_old[i] and are_old[j]:
                    continue
                if count_equal(signatures, i, j) < least_equal:
                    continue
                if n == len(pairs):
                    longer = np.empty((2 * n, 2), dtype=np.int64)
                    longer[:n] = pairs
                    pairs = longer
                pairs[n, 0], pairs[n, 1] = i, j
                n += 1
    return pairs[:n].copy()


@njit(cache=True, nogil=True)
def count_equal(signatures: Any, i: int, j: int) -> int:
    """In how many values two signatures agree."""
    mine, other = signatures[i], signatures[j]
    n = 0
    for k in range(len(mine)):
        n += int(mine[k] == other[k])
    return n


@njit(cache=True, nogil=True)
def count_equal_pairs(signatures: Any, pairs: Any) -> Int64:
    """In how many values the signatures of each pair agree."""
    counts = np.empty(len(pairs), dtype=np.int64)
    for p in range(len(pairs)):
        counts[p] = count_equal(signatures, pairs[p, 0], pairs[p, 1])
    return counts


@njit(cache=True, nogil=True)
def jaccard(values: Any, starts: Any, stops: Any, pairs: Any) -> Any:
    """Return the Jaccard similarity, float64, of pairs of sets; set k is the sorted `values[starts[k]:stops[k]]`."""
    found = np.empty(len(pairs), dtype=np.float64)
    for p in range(len(pairs)):
        i, i_end = starts[pairs[p, 0]], stops[pairs[p, 0]]
        j, j_end = starts[pairs[p, 1]], stops[pairs[p, 1]]
        n_all = i_end - i + j_end - j
        n_common = 0
        while i < i_end and j < j_end:
            mine, other = values[i], values[j]
            n_common += int(mine == other)
            i += int(mine <= other)
            j += int(other <= mine)
        found[p] = n_common / (n_all - n_common) if n_all else 0.0
    return found


@njit(cache=True, nogil=True)
def gather_neighbours(order: Any, bounds: Any, columns: Any, values: Any, kept: Any, found: Any) -> None:
    """Let each document of `order` that has not been taken yet take its neighbours that have not.

    Parameters
    ----------
    order
        Documents without a cluster, the best first.
    bounds, columns, values
        Neighbours of each document and their similarities, as compressed rows.
    kept, found
        To be written: the document that has taken each one (-1: none has), and their similarity.
    """
    for head in order:
        if kept[head] >= 0:
            continue
        kept[head], found[head] = head, 1.0
        for k in range(bounds[head], bounds[head + 1]):
            other = columns[k]
            if kept[other] < 0:
                kept[other], found[other] = head, values[k]
