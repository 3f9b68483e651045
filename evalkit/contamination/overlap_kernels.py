"""The inner loops of `overlap`: which n-grams of a question and its answers stand in a near match, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from evalkit.text.kernels import BASE, mix


@njit(cache=True, nogil=True)
def _window_key(words: Any, at: int, n: int) -> Any:
    """The hash of n words, as `kernels.window_hashes` makes it."""
    value = np.uint64(0)
    for k in range(at, at + n):
        value = value * BASE + words[k]
    return value


@njit(cache=True, nogil=True)
def _enter(words: Any, begin: int, end: int, n: int, keys: Any, places: Any) -> Any:
    """Enter the n-grams of `words[begin:end]` into an empty table, with their last places; return its mask."""
    size = 2
    while size < 2 * max(end - begin, 1):
        size *= 2
    places[:size] = -1
    mask = np.uint64(size - 1)
    for at in range(begin, end - n + 1):
        key = _window_key(words, at, n)
        slot = mix(key) & mask
        while places[slot] >= 0 and keys[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        keys[slot], places[slot] = key, at
    return mask


@njit(cache=True, nogil=True)
def _place(key: Any, mask: Any, keys: Any, places: Any) -> int:
    """Last place of an n-gram in the table, -1 when it is not there."""
    slot = mix(key) & mask
    while places[slot] >= 0:
        if keys[slot] == key:
            return int(places[slot])
        slot = (slot + np.uint64(1)) & mask
    return -1


@njit(cache=True, nogil=True)
def _stands(words: Any, begin: int, end: int, wanted: Any) -> bool:
    """Whether the wanted words stand in `words[begin:end]` in one piece."""
    for at in range(begin, end - len(wanted) + 1):
        k = 0
        while k < len(wanted) and words[at + k] == wanted[k]:
            k += 1
        if k == len(wanted):
            return True
    return False


@njit(cache=True, nogil=True)
def question_shares(
    words: Any, bounds: Any, questions: Any, gram_bounds: Any, grams: Any, rarity: Any, n: int, shares: Any, ends: Any
) -> None:
    """For each text the weighted share of its question's different n-grams there, and the end of the last of them.

    Parameters
    ----------
    words, bounds
        Words of all texts, and the n_texts + 1 bounds of the texts in them.
    questions
        Number of the question of each text, or -1.
    gram_bounds, grams, rarity
        Of each question its different n-grams, and their weights. Where all weigh nothing, each weighs the same.
    shares, ends
        What is written; an end is a place in `words`.
    """
    longest = 0
    for t in range(len(questions)):
        longest = max(longest, bounds[t + 1] - bounds[t])
    keys, places = np.empty(4 * longest + 4, dtype=np.uint64), np.empty(4 * longest + 4, dtype=np.int64)
    for t in range(len(questions)):
        shares[t], ends[t] = 0.0, bounds[t]
        if questions[t] < 0:
            continue
        mask = _enter(words, bounds[t], bounds[t + 1], n, keys, places)
        found, whole, n_found = 0.0, 0.0, 0
        low, high = gram_bounds[questions[t]], gram_bounds[questions[t] + 1]
        for g in range(low, high):
            whole += rarity[g]
            at = _place(grams[g], mask, keys, places)
            if at >= 0:
                found += rarity[g]
                n_found += 1
                ends[t] = max(ends[t], at + n)
        shares[t] = found / whole if whole > 0 else n_found / max(high - low, 1)


@njit(cache=True, nogil=True)
def text_shares(
    words: Any, begins: Any, ends: Any, wanted: Any, text_bounds: Any, texts: Any, gram_bounds: Any, grams: Any,
    rarity: Any, n: int, shares: Any,
) -> None:  # fmt: skip
    """For each stretch `words[begin:end]` how much of a wanted text stands there.

    Of one of fewer than n words 1 or 0, of a longer one the weighted share of its different n-grams.

    Parameters
    ----------
    wanted
        Number of the text for each stretch.
    text_bounds, texts
        The words of all texts.
    gram_bounds, grams, rarity
        As in `question_shares`, of the texts.
    shares
        What is written.
    """
    longest = 0
    for s in range(len(wanted)):
        longest = max(longest, ends[s] - begins[s])
    keys, places = np.empty(4 * longest + 4, dtype=np.uint64), np.empty(4 * longest + 4, dtype=np.int64)
    for s in range(len(wanted)):
        mine = texts[text_bounds[wanted[s]] : text_bounds[wanted[s] + 1]]
        if len(mine) < n:
            shares[s] = 1.0 if len(mine) and _stands(words, begins[s], ends[s], mine) else 0.0
            continue
        mask = _enter(words, begins[s], ends[s], n, keys, places)
        found, whole, n_found = 0.0, 0.0, 0
        low, high = gram_bounds[wanted[s]], gram_bounds[wanted[s] + 1]
        for g in range(low, high):
            whole += rarity[g]
            if _place(grams[g], mask, keys, places) >= 0:
                found += rarity[g]
                n_found += 1
        shares[s] = found / whole if whole > 0 else n_found / max(high - low, 1)
