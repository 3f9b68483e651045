"""The inner loops of the audit, compiled by numba: text bytes to token hashes, token hashes to matches.

Everything works on UTF-8 bytes in Arrow buffers and on flat arrays; no Python object is made per token. The
functions release the GIL. Compiled code is cached beside this file.

A *run* is a maximal stretch of consecutive tokens that a document and a benchmark field have in common, at least
`n` tokens long. Every n-gram rule can be answered from the runs alone, which is why the scan records nothing else.

In text that repeats itself ("0 0 0 ...") a field begins anew at every token. So a run is not recorded when it begins
inside an *earlier* recorded run of the same document that begins at the same token of the same field, is at least
as long, and goes on at least as far when some tokens may differ: the earlier one covers all that it covers of the
field, so no rule, no count of documents and no longest match changes. Copies that stand one after the other are all
recorded. (What holds more of the field in order only further from the earlier run than the field is long, does not
count for it: that is what its surroundings are.)

Of each run the scan also records how far it goes on when some tokens may differ, and how much of the field its
surroundings hold in order: what two of the rules ask, and what nobody can know later without the text.

A *seed* is a maximal stretch of at least `SEED` tokens in common that has a rare window of that length. Seeds of one
field that lie close together, and together hold much of it, make a *near match*: the place of an edited copy. How
similar it is, is the weight that an alignment leaves unedited, or that of the seeds, whichever is more: what was moved
as a whole was not edited.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from evalkit.text.kernels import BASE, count_characters, mix, tokenise

SEED: Final = 5
"""Tokens of a window by which near matches are found."""

COVERED: Final = 0.2
COVERED_WEIGHT: Final = 0.3
"""Least share of a field's tokens, and of their weights, in the seeds of a near match."""

SIMILAR: Final = 0.5
REORDERED: Final = 0.6
"""A near match is kept when it has the first share of the field's weight aligned, or the second in its seeds."""

CONTEXT: Final = 100
"""Tokens after a near match that are kept with it: an answer follows its question."""

SKIP_FIRST: Final = 10
SKIP_BUDGET: Final = 4
"""A run of at least so many tokens is followed to the right while at most so many further ones differ."""

CHOICE_GAP: Final = 2
ANSWER_GAP: Final = 8
"""At most so many tokens stand between a short question and each of its choices in their order, or its answer."""

LCS_FIRST: Final = 13
LCS_LONGEST: Final = 4096
"""The longest common subsequence is found for runs of at least so many tokens, in fields of at most so many."""

_TIE: Final = 1e-9

_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_LOW_BITS: Final = np.uint64(63)
_WORD_BITS: Final = np.uint64(6)
_HIGH_BITS: Final = np.uint64(58)

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]


@njit(cache=True, nogil=True, inline="always")
def _find(table_keys: Any, table_slots: Any, key: Any) -> int:
    """Return the slot of `key` in the open-addressing table, or -1."""
    mask = np.uint64(len(table_keys) - 1)
    place = mix(key) & mask
    while table_slots[place] >= 0:
        if table_keys[place] == key:
            return int(table_slots[place])
        place = (place + _ONE) & mask
    return -1


@njit(cache=True, nogil=True)
def fill_table(keys: Any, table_keys: Any, table_slots: Any) -> None:
    """Enter distinct `keys` into an empty open-addressing table (slots -1)."""
    mask = np.uint64(len(table_keys) - 1)
    for slot in range(len(keys)):
        mixed = mix(keys[slot])
        place = mixed & mask
        while table_slots[place] >= 0:
            place = (place + _ONE) & mask
        table_keys[place] = keys[slot]
        table_slots[place] = slot


@njit(cache=True, nogil=True)
def group(keys: Any, table_keys: Any, table_slots: Any) -> tuple[Int64, int]:
    """Number the different keys as they come; return the number of each key, and how many there are.

    The table is an empty open-addressing table, as `fill_table` takes it, with room for all keys.
    """
    mask = np.uint64(len(table_keys) - 1)
    numbers = np.empty(len(keys), dtype=np.int64)
    n = 0
    for k in range(len(keys)):
        place = mix(keys[k]) & mask
        while table_slots[place] >= 0 and table_keys[place] != keys[k]:
            place = (place + _ONE) & mask
        if table_slots[place] < 0:
            table_keys[place] = keys[k]
            table_slots[place] = n
            n += 1
        numbers[k] = table_slots[place]
    return numbers, n


@njit(cache=True, nogil=True)
def order_of_groups(numbers: Any, start: Any) -> Int64:
    """Return the order that puts equal numbers together: those of number k from `start[k]` on, as they come."""
    following = start.copy()
    order = np.empty(len(numbers), dtype=np.int64)
    for k in range(len(numbers)):
        order[following[numbers[k]]] = k
        following[numbers[k]] += 1
    return order


@njit(cache=True, nogil=True)
def window_hashes(hashes: Any, bounds: Any, length: int, which: Any) -> tuple[UInt64, Int64, Int64]:
    """Hash all windows of `length` tokens of the chosen texts.

    Returns the hashes, the text and the position in that text of every window.
    """
    total = 0
    for w in range(len(which)):
        total += max(0, bounds[which[w] + 1] - bounds[which[w]] - length + 1)
    values = np.empty(total, dtype=np.uint64)
    texts = np.empty(total, dtype=np.int64)
    places = np.empty(total, dtype=np.int64)
    drop = _ONE
    for _ in range(length):
        drop *= BASE
    n = 0
    for w in range(len(which)):
        text = which[w]
        value = _ZERO
        for k in range(bounds[text], bounds[text + 1]):
            value = value * BASE + hashes[k]
            if k - bounds[text] >= length:
                value -= hashes[k - length] * drop
            if k - bounds[text] >= length - 1:
                values[n] = value
                texts[n] = text
                places[n] = k - bounds[text] - length + 1
                n += 1
    return values, texts, places


@njit(cache=True, nogil=True)
def stretch_sums(values: Any, begin: Any, end: Any) -> npt.NDArray[np.float64]:
    """Return the sum of the values in each stretch [begin, end)."""
    sums = np.zeros(len(begin), dtype=np.float64)
    for s in range(len(begin)):
        for k in range(begin[s], end[s]):
            sums[s] += values[k]
    return sums


@njit(cache=True, nogil=True)
def _power(exponent: int) -> Any:
    value = _ONE
    for _ in range(exponent):
        value *= BASE
    return value


@njit(cache=True, nogil=True, inline="always")
def _may_hold(words: Any, mask: Any, key: Any) -> Any:
    """1 when a filter has the two bits of a key, else 0: its lowest and highest six, in the word that others name."""
    word = words[(key >> _WORD_BITS) & mask]
    return (word >> (key & _LOW_BITS)) & (word >> (key >> _HIGH_BITS)) & _ONE


@njit(cache=True, nogil=True)
def fill_filter(keys: Any, words: Any) -> None:
    """Enter keys into a filter of 2^k words of 64 bits, all zeros before."""
    mask = np.uint64(len(words) - 1)
    for key in keys:
        words[(key >> _WORD_BITS) & mask] |= (_ONE << (key & _LOW_BITS)) | (_ONE << (key >> _HIGH_BITS))


@njit(cache=True, nogil=True)
def _candidates(
    hashes: Any, prefix: Any, count: int, length: int, power: Any, beginnings: Any, short_beginnings: Any, out: Any
) -> int:
    """Write the tokens at which an indexed field may be shared, and return their number.

    That is: where a window of `length` tokens of a long field stands, or the first 1, 2 or 4 tokens of a short one. The
    loop has no branches that depend on the text, so that the processor works on many tokens at once; nearly all tokens
    end here.
    """
    mask, short_mask = np.uint64(len(beginnings) - 1), np.uint64(len(short_beginnings) - 1)
    square = BASE * BASE
    fourth = square * square
    n_found = 0
    n_whole = max(0, count - max(length, 4) + 1)
    for i in range(n_whole):
        before = prefix[i]
        hit = _may_hold(beginnings, mask, prefix[i + length] - before * power)
        hit |= _may_hold(short_beginnings, short_mask, prefix[i + 4] - before * fourth)
        hit |= _may_hold(short_beginnings, short_mask, prefix[i + 2] - before * square)
        hit |= _may_hold(short_beginnings, short_mask, hashes[i])
        out[n_found] = i
        n_found += int(hit)
    for i in range(n_whole, count):
        out[n_found] = i
        n_found += 1
    return n_found


@njit(cache=True, nogil=True, inline="always")
def _in_common(hashes: Any, i: int, count: int, field_hashes: Any, k: int, end: int) -> int:
    """How many tokens a document from `i` and the fields from `k` have in common, one after the other."""
    run = 0
    while i + run < count and k + run < end and hashes[i + run] == field_hashes[k + run]:
        run += 1
    return run


@njit(cache=True, nogil=True)
def _with_skips(hashes: Any, count: int, i: int, field: Any, place: int, run: int) -> int:
    """Length of the stretch that begins with a run and goes on over at most SKIP_BUDGET differing tokens.

    Its last token is a common one. Zero for runs of fewer than SKIP_FIRST tokens.
    """
    if run < SKIP_FIRST:
        return 0
    end = run
    n_skipped = 0
    for k in range(run, min(len(field) - place, count - i)):
        if hashes[i + k] == field[place + k]:
            end = k + 1
        else:
            n_skipped += 1
            if n_skipped > SKIP_BUDGET:
                break
    return end


@njit(cache=True, nogil=True)
def _n_supports(hashes: Any, begin: int, count: int, field: int, support_arrays: Any) -> int:
    """How many of the texts that support a short question follow it in their order, close behind each other."""
    start, bounds, support_hashes = support_arrays
    first, last = start[field], start[field + 1]
    gap = ANSWER_GAP if last - first == 1 else CHOICE_GAP
    n = 0
    for s in range(first, last):
        size = bounds[s + 1] - bounds[s]
        for i in range(begin, min(begin + gap, count - size) + 1):
            if _in_common(hashes, i, count, support_hashes, bounds[s], bounds[s + 1]) == size:
                n += 1
                begin = i + size
                break
    return n


@njit(cache=True, nogil=True)
def _common_subsequence(hashes: Any, count: int, i: int, field: Any, run: int) -> int:
    """Length of the longest common subsequence of a field and the surroundings of a run.

    The surroundings are the run and as many tokens on each side as the field has. Zero for runs of fewer than
    LCS_FIRST tokens; the run itself for fields of more than LCS_LONGEST.

    64 cells of the dynamic program at a time, a bit each (Hyyro 2004): a bit of `column` is 0 where the next token of
    the field makes the subsequence longer.
    """
    size = len(field)
    if run < LCS_FIRST:
        return 0
    if run == size or size > LCS_LONGEST:
        return run
    # Where each token stands in the field: an open-addressing table of the first places, and of each place the next.
    n_slots = 4
    while n_slots < 2 * size:
        n_slots *= 2
    mask = np.uint64(n_slots - 1)
    first_place = np.full(n_slots, -1, dtype=np.int32)
    next_place = np.empty(size, dtype=np.int32)
    for j in range(size - 1, -1, -1):
        slot = field[j] & mask
        while first_place[slot] >= 0 and field[first_place[slot]] != field[j]:
            slot = (slot + _ONE) & mask
        next_place[j] = first_place[slot]
        first_place[slot] = j
    n_words = (size + 63) // 64
    column = np.full(n_words, ~_ZERO, dtype=np.uint64)
    equal = np.zeros(n_words, dtype=np.uint64)
    for k in range(max(0, i - size), min(count, i + run + size)):
        slot = hashes[k] & mask
        while first_place[slot] >= 0 and field[first_place[slot]] != hashes[k]:
            slot = (slot + _ONE) & mask
        j = first_place[slot]
        if j < 0:
            continue
        while j >= 0:
            equal[j >> 6] |= _ONE << np.uint64(j & 63)
            j = next_place[j]
        carry = _ZERO
        for w in range(n_words):
            both = column[w] & equal[w]
            total = column[w] + both
            with_carry = total + carry
            carry = np.uint64(total < both) | np.uint64(with_carry < total)
            column[w] = with_carry | (column[w] & ~equal[w])
            equal[w] = _ZERO
    length = 0
    for j in range(size):
        length += 1 - int((column[j >> 6] >> np.uint64(j & 63)) & _ONE)
    return length


@njit(cache=True, nogil=True)
def _find_seeds(
    hashes: Any, prefix: Any, count: int, candidates: Any, n_candidates: int, power: Any, seed_arrays: Any,
    field_hashes: Any, field_bounds: Any, latest: Any, first_number: int, seeds: Any,
) -> tuple[Any, int]:  # fmt: skip
    """Write the seeds of one document as (first token in it, field, place in that, tokens); return their number, too.

    `latest` does here what it does in `scan`.
    """
    keys, slots, posting_start, posting_field, posting_place = seed_arrays
    n_seeds = 0
    before, before_slot = -2, -1
    for c in range(n_candidates):
        i = candidates[c]
        if i + SEED > count:
            break
        slot = _find(keys, slots, prefix[i + SEED] - prefix[i] * power)
        # Only a rare window has a slot; what this one and the one before it have in common was found there.
        has_rare_before = before == i - 1 and before_slot >= 0
        before, before_slot = i, slot
        if slot < 0:
            continue
        for p in range(posting_start[slot], posting_start[slot + 1]):
            field, place = posting_field[p], posting_place[p]
            low = field_bounds[field]
            if has_rare_before and place > 0 and hashes[i - 1] == field_hashes[low + place - 1]:
                continue
            size = field_bounds[field + 1] - low
            run = _in_common(hashes, i, count, field_hashes, low + place, low + size)
            if run < SEED:  # another window with the same hash
                continue
            number = first_number + i
            if latest[p, 0] < number < latest[p, 0] + latest[p, 1] and run <= latest[p, 1]:
                continue
            latest[p, 0] = number
            latest[p, 1] = run
            # The window is the first rare one of the seed, not always its first.
            back = 0
            while (
                place - back > 0 and i - back > 0
                and hashes[i - back - 1] == field_hashes[low + place - back - 1]
            ):  # fmt: skip
                back += 1
            if n_seeds == len(seeds):
                longer = np.empty((2 * len(seeds), 4), dtype=np.int64)
                longer[:n_seeds] = seeds
                seeds = longer
            seeds[n_seeds, 0] = i - back
            seeds[n_seeds, 1] = field
            seeds[n_seeds, 2] = place - back
            seeds[n_seeds, 3] = run + back
            n_seeds += 1
    return seeds, n_seeds


@njit(cache=True, nogil=True)
def _align(text: Any, field: Any, weights: Any, total: Any) -> tuple[float, int, int]:
    """Align a whole field with the part of a text that is nearest to it: Sellers' algorithm (1980), in one column.

    To delete or replace a token of the field costs its weight, to insert one the mean weight. Returns the least cost
    and the first part of the text with that cost as tokens [start, end).
    """
    size = len(field)
    insertion = total / size
    costs, begins = np.empty(size, dtype=np.float64), np.zeros(size, dtype=np.int64)
    reach = 0.0
    for j in range(size):
        reach += weights[j]
        costs[j] = reach
    best, best_begin, best_end = total, 0, 0
    for k in range(len(text)):
        token = text[k]
        # To the left in the column, and to the left in the one before.
        left, left_begin, diagonal, diagonal_begin = 0.0, k + 1, 0.0, k
        for j in range(size):
            weight = weights[j]
            above, above_begin = costs[j] + insertion, begins[j]
            cost = diagonal if token == field[j] else diagonal + weight
            begin = diagonal_begin
            diagonal, diagonal_begin = costs[j], above_begin
            begin = above_begin if above < cost - _TIE else begin
            cost = above if above < cost - _TIE else cost
            left += weight
            begin = left_begin if left < cost - _TIE else begin
            cost = left if left < cost - _TIE else cost
            costs[j], begins[j] = cost, begin
            left, left_begin = cost, begin
        if left < best - _TIE:
            best, best_begin, best_end = left, left_begin, k + 1
    return best, best_begin, best_end


@njit(cache=True, nogil=True)
def _edit_distance(text: Any, field: Any) -> int:
    """Least number of tokens to insert, delete or replace (Levenshtein)."""
    # What both begin or end with costs nothing.
    while len(text) and len(field) and text[0] == field[0]:
        text, field = text[1:], field[1:]
    while len(text) and len(field) and text[-1] == field[-1]:
        text, field = text[:-1], field[:-1]
    column = np.arange(len(field) + 1)
    for k in range(len(text)):
        diagonal, column[0] = column[0], k + 1
        for j in range(len(field)):
            above = column[j + 1]
            column[j + 1] = min(diagonal + int(text[k] != field[j]), above + 1, column[j] + 1)
            diagonal = above
    return int(column[len(field)])


@njit(cache=True, nogil=True)
def _find_near_matches(
    hashes: Any, count: int, seeds: Any, n_seeds: int, field_hashes: Any, field_bounds: Any, weights: Any, marks: Any,
    near: Any,
) -> tuple[Any, int]:  # fmt: skip
    """Write the near matches that seeds make, and return them and their number.

    Each is (field, edits, first token and end of the copy, first token and end of the text to be kept, similarity).
    Seeds of a field belong together while no more than half a field, or 20 tokens, lie between them. The field is
    aligned with a stretch that reaches as far as the whole field would, and a quarter of it more for what was inserted.
    `marks` has one number for each token of the fields, and the last one given.
    """
    n_near = 0
    order = np.argsort((seeds[:n_seeds, 1] << 32) + seeds[:n_seeds, 0])
    s = 0
    while s < n_seeds:
        field, first = int(seeds[order[s], 1]), seeds[order[s], 0]
        low = field_bounds[field]
        size = field_bounds[field + 1] - low
        gap = max(20, size // 2)
        marks[-1] += 1
        mark = marks[-1]
        n_covered, covered, reached = 0, 0.0, first
        verbatim = -1
        begin, end = first, first
        while s < n_seeds and seeds[order[s], 1] == field and seeds[order[s], 0] <= reached + gap:
            i, place, run = seeds[order[s], 0], seeds[order[s], 2], seeds[order[s], 3]
            for k in range(low + place, low + place + run):
                if marks[k] != mark:
                    marks[k] = mark
                    n_covered += 1
                    covered += weights[k]
            if run == size and verbatim < 0:
                verbatim = i
            reached = max(reached, i + run)
            begin = min(begin, i - place)
            end = max(end, i - place + size)
            s += 1
        mine = weights[low : low + size]
        total = mine.sum()
        if n_covered < COVERED * size or covered < COVERED_WEIGHT * total:
            continue
        margin = max(16, size // 4)
        begin = max(0, max(begin, first - size) - margin)
        end = min(count, min(end, reached + size) + margin)
        whole = field_hashes[low : low + size]
        if verbatim >= 0:
            cost, copy_begin, copy_end = 0.0, verbatim - begin, verbatim - begin + size
        else:
            cost, copy_begin, copy_end = _align(hashes[begin:end], whole, mine, total)
        if 1.0 - cost / total < SIMILAR - _TIE and covered < REORDERED * total - _TIE:
            continue
        if n_near == len(near):
            longer = np.empty((2 * len(near), 7), dtype=np.float64)
            longer[:n_near] = near
            near = longer
        near[n_near, 0] = field
        near[n_near, 1] = _edit_distance(hashes[begin + copy_begin : begin + copy_end], whole)
        near[n_near, 2], near[n_near, 3] = begin + copy_begin, begin + copy_end
        near[n_near, 4], near[n_near, 5] = begin, min(count, end + CONTEXT)
        near[n_near, 6] = max(1.0 - cost / total, covered / total)
        n_near += 1
    return near, n_near


@njit(cache=True, nogil=True)
def scan(
    data: Any,
    offsets: Any,
    first: int,
    fold_arrays: Any,
    n_modes: int,
    index_arrays: Any,
    seed_arrays: Any,
    support_arrays: Any,
    n: int,
    lengths: Any,
    powers: Any,
    weights: Any,
    memory: Any,
    out: Any,
    near_out: Any,
    similarities: Any,
) -> tuple[int, int, int, int]:
    """Find all runs and near matches that the documents `first`, `first + 1`, ... share with the benchmark fields.

    Parameters
    ----------
    data, offsets
        The buffers of an Arrow large_string array.
    fold_arrays, n_modes
        `FoldTable.arrays` of the normalisation of text and of that of code; how many of them are asked.
    index_arrays
        (table_keys, table_slots, bitmap, beginnings, short_beginnings, posting_start, posting_field, posting_place,
        field_hashes, field_bounds).
    seed_arrays
        (table_keys, table_slots, posting_start, posting_field, posting_place) of the rare windows of SEED tokens.
    support_arrays
        (start, bounds, hashes): of each field the supporting texts, of each text the tokens.
    n
        Shortest run of fields with at least n tokens; shorter fields match as a whole.
    lengths, powers
        The window lengths in the index, ascending, and BASE to the power of each.
    weights
        Of all tokens of the fields.
    memory
        (latest, latest_seeds, marks), all zeros before the first call for `data`. `latest` is int64[n_postings, 3]:
        where the latest recorded run of each posting begins (numbered over all documents, so that nothing need be
        cleared between them), its tokens, and those with skips; `latest_seeds` the first two of the seeds; `marks` see
        `_find_near_matches`.
    out
        int32[capacity, 10], filled with: document, field, place in the field (tokens), number of tokens, start and
        end in the document (characters), tokens with skips, longest common subsequence, tokens of the document,
        supporting texts after it.
    near_out, similarities
        int64[capacity, 7], filled with: document, field, edits, start and end in the document (characters), and of the
        text to be kept the first byte and the end in `data`; float64[capacity], the weighted share that is not edited.

    Returns
    -------
    n_runs, n_near, next_document, n_tokens
        Runs and near matches written; the first document that is not done (what was found in it did not fit;
        `len(offsets) - 1` when all are done); tokens scanned.
    """
    latest, latest_seeds, marks = memory
    (table_keys, table_slots, bitmap, beginnings, short_beginnings,
     posting_start, posting_field, posting_place, field_hashes, field_bounds) = index_arrays  # fmt: skip
    n_documents = len(offsets) - 1
    longest = 0
    for d in range(first, n_documents):
        longest = max(longest, offsets[d + 1] - offsets[d])
    hashes = np.empty(2 * longest + 1, dtype=np.uint64)
    starts = np.empty(2 * longest + 1, dtype=np.int32)
    ends = np.empty(2 * longest + 1, dtype=np.int32)
    candidates = np.empty(2 * longest + 1, dtype=np.int32)
    # prefix[k] is the polynomial hash of the first k tokens: any window's hash is then one product and one difference.
    prefix = np.empty(2 * longest + 2, dtype=np.uint64)
    bitmap_mask = np.uint64(len(bitmap) - 1)
    beginning = min(n, SEED)
    beginning_power, seed_power = _power(beginning), _power(SEED)
    seeds = np.empty((64, 4), dtype=np.int64)
    near = np.empty((64, 7), dtype=np.float64)
    n_runs = 0
    n_all_near = 0
    n_tokens = 0
    for d in range(first, n_documents):
        before, near_before = n_runs, n_all_near
        n_document_tokens = 0
        for mode in range(n_modes):
            count = tokenise(data, offsets[d], offsets[d + 1], fold_arrays[mode], hashes, starts, ends)
            prefix[0] = _ZERO
            for k in range(count):
                prefix[k + 1] = prefix[k] * BASE + hashes[k]
            # No text has more than two tokens a byte, so the tokens of two documents never have the same number.
            first_number = 2 * offsets[d] + d + 1
            n_candidates = _candidates(
                hashes, prefix, count, beginning, beginning_power, beginnings, short_beginnings, candidates
            )
            place_bytes, place_characters = 0, 0
            for c in range(n_candidates):
                i = candidates[c]
                for which in range(len(lengths)):
                    length = lengths[which]
                    if i + length > count:
                        break
                    key = prefix[i + length] - prefix[i] * powers[which]
                    if _may_hold(bitmap, bitmap_mask, key) == _ZERO:
                        continue
                    slot = _find(table_keys, table_slots, key)
                    if slot < 0:
                        continue
                    for p in range(posting_start[slot], posting_start[slot + 1]):
                        field = posting_field[p]
                        place = posting_place[p]
                        low = field_bounds[field]
                        size = field_bounds[field + 1] - low
                        # A window that both sides extend to the left belongs to a run that was found before.
                        if place > 0 and i > 0 and hashes[i - 1] == field_hashes[low + place - 1]:
                            continue
                        run = _in_common(hashes, i, count, field_hashes, low + place, low + size)
                        if run < min(n, size):  # another window with the same hash
                            continue
                        # Strictly after its beginning: a document whose runs did not fit is scanned once more.
                        number = first_number + i
                        whole = field_hashes[low : low + size]
                        with_skips = _with_skips(hashes, count, i, whole, place, run)
                        if (
                            latest[p, 0] < number < latest[p, 0] + latest[p, 1]
                            and run <= latest[p, 1] and with_skips <= latest[p, 2]
                        ):  # fmt: skip
                            continue
                        if n_runs == len(out):
                            return before, near_before, d, n_tokens
                        out[n_runs, 0] = d
                        out[n_runs, 1] = field
                        out[n_runs, 2] = place
                        out[n_runs, 3] = run
                        # Runs come in the order of their beginnings: each character is counted about once.
                        place_characters += count_characters(data, offsets[d] + place_bytes, offsets[d] + starts[i])
                        place_bytes = starts[i]
                        end = offsets[d] + ends[i + run - 1]
                        out[n_runs, 4] = place_characters
                        out[n_runs, 5] = place_characters + count_characters(data, offsets[d] + place_bytes, end)
                        out[n_runs, 6] = with_skips
                        out[n_runs, 7] = _common_subsequence(hashes, count, i, whole, run)
                        out[n_runs, 8] = count
                        out[n_runs, 9] = _n_supports(hashes, i + run, count, field, support_arrays)
                        n_runs += 1
                        latest[p, 0] = number
                        latest[p, 1] = run
                        latest[p, 2] = with_skips
            seeds, n_seeds = _find_seeds(
                hashes, prefix, count, candidates, n_candidates, seed_power, seed_arrays, field_hashes, field_bounds,
                latest_seeds, first_number, seeds,
            )  # fmt: skip
            near, n_near = _find_near_matches(
                hashes, count, seeds, n_seeds, field_hashes, field_bounds, weights, marks, near
            )
            if n_all_near + n_near > len(near_out):
                return before, near_before, d, n_tokens
            for k in range(n_near):
                begin, end = offsets[d] + starts[int(near[k, 2])], offsets[d] + ends[int(near[k, 3]) - 1]
                keep = offsets[d] + starts[int(near[k, 4])]
                near_out[n_all_near, 0] = d
                near_out[n_all_near, 1] = int(near[k, 0])
                near_out[n_all_near, 2] = int(near[k, 1])
                near_out[n_all_near, 3] = count_characters(data, offsets[d], begin)
                near_out[n_all_near, 4] = near_out[n_all_near, 3] + count_characters(data, begin, end)
                near_out[n_all_near, 5] = keep
                near_out[n_all_near, 6] = offsets[d] + ends[int(near[k, 5]) - 1]
                similarities[n_all_near] = near[k, 6]
                n_all_near += 1
            n_document_tokens = max(n_document_tokens, count)
        n_tokens += n_document_tokens
    return n_runs, n_all_near, n_documents, n_tokens
