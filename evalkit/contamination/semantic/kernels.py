"""The inner loop of the search for rewritten items: which windows of a document share rare words with which item."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


def _best_items(
    first: Any,
    last: Any,
    bounds: Any,
    words: Any,
    weights: Any,
    posting_bounds: Any,
    postings: Any,
    item_bounds: Any,
    item_words: Any,
    totals: Any,
    needed: Any,
    missing: Any,
    sizes: Any,
    ratio: float,
    items: Any,
    shares: Any,
) -> None:
    """For each window find the item of which it holds the largest share, by weight of words.

    Parameters
    ----------
    first, last
        Each window, as pieces [first, last).
    bounds, words
        The bounds of the pieces in their tokens, and the word number of each token, -1 for words of no item.
    weights
        Of each word.
    posting_bounds, postings
        For each word, items that have it: of each item, all but its commonest words.
    item_bounds, item_words
        For each item, all its words.
    totals, needed, missing
        Of each item, the weight of all its words, the weight that a window must share (infinite: none can), and the
        weight of the words that are not in the postings.
    sizes, ratio
        Tokens of each item; a window may be so many times longer or shorter.
    items, shares
        What is written: the number of the item, -1 for none, and the share of its weight.
    """
    n_items = len(totals)
    seen_word = np.full(len(weights), -1, dtype=np.int64)
    seen_item = np.full(n_items, -1, dtype=np.int64)
    found = np.empty(n_items, dtype=np.int64)
    sums = np.empty(n_items, dtype=np.float64)
    for w in range(len(first)):
        begin, end = bounds[first[w]], bounds[last[w]]
        n_found = 0
        for t in range(begin, end):
            word = words[t]
            if word < 0 or seen_word[word] == w:
                continue
            seen_word[word] = w
            for k in range(posting_bounds[word], posting_bounds[word + 1]):
                item = postings[k]
                if seen_item[item] != w:
                    if (end - begin) * ratio < sizes[item] or sizes[item] * ratio < end - begin:
                        continue
                    seen_item[item] = w
                    sums[item] = 0.0
                    found[n_found] = item
                    n_found += 1
                sums[item] += weights[word]
        items[w], shares[w] = -1, 0.0
        for n in range(n_found):
            item = found[n]
            if sums[item] + missing[item] < needed[item]:
                continue
            shared = 0.0
            for k in range(item_bounds[item], item_bounds[item + 1]):
                if seen_word[item_words[k]] == w:
                    shared += weights[item_words[k]]
            if shared >= needed[item] and shared / totals[item] > shares[w]:
                items[w], shares[w] = item, shared / totals[item]


best_items = njit(cache=True, nogil=True)(_best_items)
