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

from evalkit.contamination.normalise import CHARACTER, IGNORED, MARK, WORD

SHA1, XXH32 = 0, 1
"""Hash functions: datasketch's default, and a faster one."""

EMPTY: Final = np.uint32(0xFFFFFFFF)
"""Every value of the signature of a document without shingles, as in datasketch."""

_LANES: Final = 64
_VECTOR: Final = 16  # lanes of the widest vector instructions
_BLOCK_BYTES: Final = 64
_LENGTH_BYTES: Final = 8
_SHA1_FIRST: Final = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0], dtype=np.uint32)
_K1, _K2, _K3, _K4 = (np.uint32(one) for one in (0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6))

_P1, _P2, _P3, _P4, _P5 = (
    np.uint32(one) for one in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)
)  # fmt: skip
_FMIX_1, _FMIX_2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)

_SPACE: Final = ord(" ")
_OUTSIDE, _IN_WORD, _IN_CHARACTER = 0, 1, 2

UInt8, UInt32 = npt.NDArray[np.uint8], npt.NDArray[np.uint32]
UInt64, Int64 = npt.NDArray[np.uint64], npt.NDArray[np.int64]


# --- Text ---


@njit(cache=True, nogil=True)
def _longer(array: Any, n: int, size: int) -> Any:
    """Return an array of `size` elements of which the first n are those of `array`."""
    longer = np.empty(size, dtype=array.dtype)
    longer[:n] = array[:n]
    return longer


@njit(cache=True, nogil=True)
def normalise(
    data: Any, begin: int, end: int, ascii_code: Any, kind: Any, fold_start: Any, fold_codes: Any, out: Any, starts: Any
) -> tuple[Any, int, Any, int]:
    """Write the tokens of `data[begin:end]` (valid UTF-8) to `out`, in UTF-8, with one space between any two.

    Returns `out` and the bytes written, and `starts` and the number of tokens: token k is
    `out[starts[k] : starts[k + 1] - 1]`, the last one too. Both arrays are replaced by longer ones when they are full.
    """
    n, n_tokens, state = 0, 0, _OUTSIDE
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
        if byte < 0xE0:
            point = ((byte & 0x1F) << 6) | (data[i + 1] & 0x3F)
            i += 2
        elif byte < 0xF0:
            point = ((byte & 0x0F) << 12) | ((data[i + 1] & 0x3F) << 6) | (data[i + 2] & 0x3F)
            i += 3
        else:
            point = (
                ((byte & 0x07) << 18)
                | ((data[i + 1] & 0x3F) << 12)
                | ((data[i + 2] & 0x3F) << 6)
                | (data[i + 3] & 0x3F)
            )
            i += 4
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
        n = max(0, n - 1)  # the space after the last token
    starts[n_tokens] = n + 1
    return out, n, starts, n_tokens


@njit(cache=True, nogil=True)
def characters(data: Any, n: int, starts: Any) -> tuple[Any, int]:
    """Write where each character of `data[:n]` begins, and return `starts` (longer if need be) and their number.

    Character k is `data[starts[k] : starts[k + 1]]`, the last one too.
    """
    if len(starts) <= n:
        starts = np.empty(n + 1, dtype=starts.dtype)
    n_found = 0
    for i in range(n):
        starts[n_found] = i
        n_found += (data[i] & 0xC0) != 0x80
    starts[n_found] = n
    return starts, n_found


@njit(cache=True, nogil=True)
def shingle_bounds(starts: Any, n_units: int, size: int, gap: int, begins: Any, ends: Any) -> tuple[Any, Any, int]:
    """Write the bounds of all shingles of `size` units, and return the two arrays and the number of shingles.

    `gap` is 1 when there is a space after each unit that is no part of it. Fewer units make one shingle, none make none.
    """
    n = max(min(n_units, 1), n_units - size + 1)
    if len(begins) < n:
        begins, ends = np.empty(2 * n, dtype=np.int64), np.empty(2 * n, dtype=np.int64)
    step = min(size, n_units)
    for k in range(n):
        begins[k] = starts[k]
        ends[k] = starts[k + step] - gap
    return begins, ends, n


# --- Hashes of shingles ---


@njit(cache=True, nogil=True)
def sha1_heads(data: Any, begins: Any, ends: Any, n: int, out: Any) -> None:
    """Write the first 8 bytes of the SHA-1 of each `data[begins[k]:ends[k]]`, little endian, to uint64 `out[k]`.

    The low 32 bits are datasketch's `sha1_hash32`, and all 64 its `sha1_hash64`.
    """
    words = np.empty(80 * _LANES, dtype=np.uint32)
    states = np.empty(85 * _LANES, dtype=np.uint32)
    sums = np.empty(5 * _LANES, dtype=np.uint32)
    which = np.zeros(_LANES, dtype=np.int64)
    # Those of one block apart from the others: a vector takes as long as the longest shingle in it.
    for are_long in (False, True):
        n_lanes = 0
        for k in range(n):
            if (ends[k] - begins[k] >= _BLOCK_BYTES - _LENGTH_BYTES) == are_long:
                which[n_lanes] = k
                n_lanes += 1
                if n_lanes == _LANES:
                    _sha1(data, begins, ends, which, n_lanes, words, states, sums, out)
                    n_lanes = 0
        if n_lanes:
            _sha1(data, begins, ends, which, n_lanes, words, states, sums, out)


@njit(cache=True, nogil=True)
def _sha1(
    data: Any, begins: Any, ends: Any, which: Any, n_lanes: int, words: Any, states: Any, sums: Any, out: Any
) -> None:
    """Hash the shingles `which[:n_lanes]` side by side: word t of lane l is `words[t * _LANES + l]`. FIPS 180-4, 6.1."""
    longest = 0
    for lane in range(n_lanes):
        longest = max(longest, ends[which[lane]] - begins[which[lane]])
    n_used = -(-n_lanes // _VECTOR) * _VECTOR
    for row in range(5):
        sums[row * _LANES : row * _LANES + n_used] = _SHA1_FIRST[row]
    for block in range((longest + _LENGTH_BYTES) // _BLOCK_BYTES + 1):
        for lane in range(n_lanes):
            k = which[lane]
            _fill_block(data, begins[k], ends[k], block, words[lane:])
        for row in range(5):  # the state is kept with the oldest word first
            at = (4 - row) * _LANES
            for lane in range(n_used):
                states[at + lane] = sums[row * _LANES + lane]
        # Step t finds the five words in the rows t to t + 4, the three oldest of them not yet rotated.
        for row in range(3):
            for lane in range(n_used):
                states[row * _LANES + lane] = _rotated(states[row * _LANES + lane], 2)
        _sha1_rounds(words, states, n_used)
        for lane in range(n_lanes):
            k = which[lane]
            if block > (ends[k] - begins[k] + _LENGTH_BYTES) // _BLOCK_BYTES:
                continue  # it ended before
            for row in range(5):
                word = states[(84 - row) * _LANES + lane]
                sums[row * _LANES + lane] += word if row < 2 else _rotated(word, 30)
    for lane in range(n_lanes):
        first, second = _swapped(sums[lane]), _swapped(sums[_LANES + lane])
        out[which[lane]] = np.uint64(first) | (np.uint64(second) << np.uint64(32))


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
def _word(data: Any, i: int) -> Any:
    """Four bytes, little endian."""
    return np.uint32(
        np.uint32(data[i])
        | (np.uint32(data[i + 1]) << np.uint32(8))
        | (np.uint32(data[i + 2]) << np.uint32(16))
        | (np.uint32(data[i + 3]) << np.uint32(24))
    )


@njit(cache=True, nogil=True, inline="always")
def _fill_block(data: Any, begin: int, end: int, block: int, words: Any) -> None:
    """Write one block of a padded message as 16 big-endian words, `_LANES` apart."""
    begin += block * _BLOCK_BYTES
    left = end - begin
    n_whole = min(16, max(0, left >> 2))
    for t in range(n_whole):
        words[t * _LANES] = _swapped(_word(data, begin + 4 * t))
    if n_whole == 16:
        return
    for t in range(n_whole, 16):
        words[t * _LANES] = 0
    if left >= 0:  # otherwise the end was in the block before
        tail = np.uint32(0x80) << np.uint32(24 - 8 * (left & 3))
        for i in range(left & 3):
            tail |= np.uint32(data[begin + 4 * n_whole + i]) << np.uint32(24 - 8 * i)
        words[n_whole * _LANES] = tail
    if left < _BLOCK_BYTES - _LENGTH_BYTES:
        n_bits = np.uint64(left + block * _BLOCK_BYTES) << np.uint64(3)
        words[14 * _LANES] = np.uint32(n_bits >> np.uint64(32))
        words[15 * _LANES] = np.uint32(n_bits)


@njit(cache=True, nogil=True)
def _sha1_rounds(words: Any, states: Any, n_lanes: int) -> None:
    """The 80 steps; step t writes row t + 5 of `states`. Each loop over lanes becomes vector instructions."""
    for t in range(16, 80):
        at = t * _LANES
        for lane in range(n_lanes):
            mixed = np.uint32(
                words[at - 3 * _LANES + lane]
                ^ words[at - 8 * _LANES + lane]
                ^ words[at - 14 * _LANES + lane]
                ^ words[at - 16 * _LANES + lane]
            )
            words[at + lane] = _rotated(mixed, 1)
    for t in range(20):
        at = t * _LANES
        for lane in range(n_lanes):
            a, b, c, d, e = _five(states, at + lane)
            states[at + 5 * _LANES + lane] = _rotated(a, 5) + ((b & c) | (~b & d)) + e + _K1 + words[at + lane]
    for t in range(20, 40):
        at = t * _LANES
        for lane in range(n_lanes):
            a, b, c, d, e = _five(states, at + lane)
            states[at + 5 * _LANES + lane] = _rotated(a, 5) + (b ^ c ^ d) + e + _K2 + words[at + lane]
    for t in range(40, 60):
        at = t * _LANES
        for lane in range(n_lanes):
            a, b, c, d, e = _five(states, at + lane)
            states[at + 5 * _LANES + lane] = _rotated(a, 5) + ((b & c) | (d & (b | c))) + e + _K3 + words[at + lane]
    for t in range(60, 80):
        at = t * _LANES
        for lane in range(n_lanes):
            a, b, c, d, e = _five(states, at + lane)
            states[at + 5 * _LANES + lane] = _rotated(a, 5) + (b ^ c ^ d) + e + _K4 + words[at + lane]


@njit(cache=True, nogil=True, inline="always")
def _five(states: Any, at: int) -> Any:
    """The words a to e of one lane."""
    return (
        states[at + 4 * _LANES],
        states[at + 3 * _LANES],
        _rotated(states[at + 2 * _LANES], 30),
        _rotated(states[at + _LANES], 30),
        _rotated(states[at], 30),
    )


@njit(cache=True, nogil=True)
def xxh32s(data: Any, begins: Any, ends: Any, n: int, out: Any) -> None:
    """Write the XXH32 (seed 0) of each `data[begins[k]:ends[k]]` to uint64 `out[k]`. Collet, xxHash specification 0.1.1."""
    for k in range(n):
        i, end = begins[k], ends[k]
        value = _P5
        if end - i >= 16:
            a, b, c, d = np.uint32(_P1 + _P2), _P2, np.uint32(0), np.uint32(-np.int64(_P1))
            while i + 16 <= end:
                a = _xxh_round(a, _word(data, i))
                b = _xxh_round(b, _word(data, i + 4))
                c = _xxh_round(c, _word(data, i + 8))
                d = _xxh_round(d, _word(data, i + 12))
                i += 16
            value = np.uint32(_rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18))
        value = np.uint32(value + np.uint32(end - begins[k]))
        while i + 4 <= end:
            value = np.uint32(_rotated(np.uint32(value + _word(data, i) * _P3), 17) * _P4)
            i += 4
        while i < end:
            value = np.uint32(_rotated(np.uint32(value + np.uint32(data[i]) * _P5), 11) * _P1)
            i += 1
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
def permute(hashes: Any, n: int, a: Any, b: Any, premixed: Any, out: Any) -> None:
    """Lower each value of the signature `out` to the least of its permutation of the hashes: datasketch's affine32.

    The low 32 bits of `hashes[:n]` count; `premixed` is room for them, uint32[>= n].
    """
    for i in range(n):
        mixed = np.uint32(hashes[i])
        mixed = np.uint32((mixed ^ (mixed >> np.uint32(16))) * _FMIX_1)
        mixed = np.uint32((mixed ^ (mixed >> np.uint32(13))) * _FMIX_2)
        premixed[i] = mixed ^ (mixed >> np.uint32(16))
    whole = n - n % 8
    for i in range(0, whole, 8):
        # Eight at a time, so that a, b and the signature are loaded and stored once for all of them.
        h0, h1, h2, h3 = premixed[i], premixed[i + 1], premixed[i + 2], premixed[i + 3]
        h4, h5, h6, h7 = premixed[i + 4], premixed[i + 5], premixed[i + 6], premixed[i + 7]
        for k in range(len(out)):
            p, q = a[k], b[k]
            out[k] = min(
                min(
                    min(out[k], min(_image(p, h0, q), _image(p, h1, q))),
                    min(_image(p, h2, q), _image(p, h3, q)),
                ),
                min(min(_image(p, h4, q), _image(p, h5, q)), min(_image(p, h6, q), _image(p, h7, q))),
            )
    for i in range(whole, n):
        h = premixed[i]
        for k in range(len(out)):
            out[k] = min(out[k], _image(a[k], h, b[k]))


@njit(cache=True, nogil=True)
def hash_shingles(data: Any, begins: Any, ends: Any, n: int, function: int, out: Any) -> Any:
    """Hash the shingles, and return `out`, uint64, longer if need be."""
    if len(out) < n:
        out = np.empty(2 * n, dtype=np.uint64)
    if function == SHA1:
        sha1_heads(data, begins, ends, n, out)
    else:
        xxh32s(data, begins, ends, n, out)
    return out


@njit(cache=True, nogil=True)
def sign_shingles(
    data: Any, offsets: Any, bounds: Any, function: int, a: Any, b: Any, signatures: Any
) -> None:
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
    hashes = np.empty(1024, dtype=np.uint64)
    premixed = np.empty(1024, dtype=np.uint32)
    signatures[:] = EMPTY
    for d in range(len(bounds) - 1):
        first, n = bounds[d], bounds[d + 1] - bounds[d]
        hashes = hash_shingles(data, offsets[first:], offsets[first + 1 :], n, function, hashes)
        if len(premixed) < n:
            premixed = np.empty(2 * n, dtype=np.uint32)
        permute(hashes, n, a, b, premixed, signatures[d])


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
        (ascii_code, kind, start, codes) of the normalisation.
    by_words, size
        Shingles of so many words, or else characters.
    function, a, b, signatures
        As `sign_shingles` takes them.
    n_tokens, n_shingles
        int64[n], to be written; a shingle that occurs twice counts twice.
    """
    ascii_code, kind, fold_start, fold_codes = fold
    text, starts = np.empty(4096, dtype=np.uint8), np.empty(4096, dtype=np.int64)
    begins, ends = np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.int64)
    hashes = np.empty(1024, dtype=np.uint64)
    premixed = np.empty(1024, dtype=np.uint32)
    signatures[:] = EMPTY
    for d in range(len(offsets) - 1):
        text, n_bytes, starts, n_tokens[d] = normalise(
            data, offsets[d], offsets[d + 1], ascii_code, kind, fold_start, fold_codes, text, starts
        )
        n_units = n_tokens[d]
        if not by_words:
            starts, n_units = characters(text, n_bytes, starts)
        begins, ends, n = shingle_bounds(starts, n_units, size, 1 if by_words else 0, begins, ends)
        n_shingles[d] = n
        hashes = hash_shingles(text, begins, ends, n, function, hashes)
        if len(premixed) < n:
            premixed = np.empty(2 * n, dtype=np.uint32)
        permute(hashes, n, a, b, premixed, signatures[d])
