"""The words of the items and how rare they are: which windows of a corpus are worth a look by the embedding model.

A word weighs as much as its being in a window by chance would surprise: -log P, in nats. P is how often it is in the
windows of a sample of the corpus, or in the other items, whichever is more. "Three" and "3", and "egg" and "eggs", are
one word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.contamination.index import tokenise
from evalkit.contamination.semantic.kernels import best_items
from evalkit.contamination.semantic.windows import LENGTHS, Int64, Pieces, cut, windows
from evalkit.files import atomic_path
from evalkit.text.tokens import words_of

Float64 = npt.NDArray[np.float64]

LEAST_WEIGHT: Final = 15.0
"""Nats that a window must share with an item: by chance, one window in three million does. An item of less weight says
too little to be told from any other text when it is rewritten, and is not judged."""

LEAST_TOKENS: Final = 8
"""Nor is a shorter item."""

LEAST_SHARE: Final = 0.33
"""Share of an item's weight that a window must have. Rewritten GSM8K questions keep more in 99 of 100 cases."""

RATIO: Final = 2.0
"""A window may be so many times as long as the item, or as short."""

# Of an item's needed weight, so much is left out of the postings: the commonest words, which would be found everywhere.
_LEFT_OUT: Final = 0.6
# A sample of few windows knows little of rare words: so many more are imagined, without any word of an item.
_IMAGINED: Final = 1000
_SAMPLE_LENGTH: Final = 40

_UNITS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_WORDS: Final = {
    **{word: str(number) for number, word in enumerate(_UNITS)},
    **{word: str(10 * number) for number, word in enumerate(_TENS, 2)},
    **{"hundred": "100", "thousand": "1000", "million": "1000000", "dozen": "12"},
    **{"twice": "2", "double": "2", "triple": "3", "thrice": "3"},
}
_SUFFIXES: Final = ("ing", "ed", "es", "s", "d", "e")
_SHORTEST_STEM: Final = 3


@dataclass(frozen=True)
class Lexicon:
    """The items' words as arrays; see `kernels.best_items` for those that are not told here.

    Attributes
    ----------
    hashes, numbers
        Hashes of all written forms of the words, ascending, and the number of each one's word.
    """

    hashes: npt.NDArray[np.uint64]
    numbers: Int64
    weights: Float64
    posting_bounds: Int64
    postings: Int64
    item_bounds: Int64
    item_words: Int64
    totals: Float64
    needed: Float64
    missing: Float64
    sizes: Int64

    @property
    def is_judged(self) -> npt.NDArray[np.bool_]:
        """Whether each item says enough to be found when it is rewritten."""
        return np.isfinite(self.needed)

    @property
    def lengths(self) -> list[int]:
        """The lengths of windows that are nearest to that of some judged item."""
        distance = np.abs(np.log(np.divide.outer(self.sizes[self.is_judged], LENGTHS)))
        return [LENGTHS[k] for k in np.unique(distance.argmin(axis=1))]

    @property
    def fingerprint(self) -> str:
        """sha256 over all arrays."""
        total = hashlib.sha256()
        for field in fields(self):
            total.update(np.ascontiguousarray(getattr(self, field.name)).tobytes())
        return total.hexdigest()

    def search(self, pieces: Pieces, first: Int64, last: Int64) -> tuple[Int64, Float64]:
        """Return for each window the item that it shares most with, -1 for none, and the share of its weight."""
        items, shares = np.empty(len(first), dtype=np.int64), np.empty(len(first), dtype=np.float64)
        best_items(
            first,
            last,
            pieces.bounds,
            self._words(pieces.hashes),
            self.weights,
            self.posting_bounds,
            self.postings,
            self.item_bounds,
            self.item_words,
            self.totals,
            self.needed,
            self.missing,
            self.sizes,
            RATIO,
            items,
            shares,
        )
        return items, shares

    def shares(self, texts: Sequence[str], items: Int64) -> Float64:
        """Return the share of an item's weight that each text holds."""
        hashes, _, bounds = tokenise(texts)
        words = self._words(hashes)
        found = np.zeros(len(texts))
        for k, item in enumerate(items):
            mine = self.item_words[self.item_bounds[item] : self.item_bounds[item + 1]]
            held = mine[np.isin(mine, words[bounds[k] : bounds[k + 1]])]
            found[k] = self.weights[held].sum() / self.totals[item]
        return found

    def _words(self, hashes: npt.NDArray[np.uint64]) -> Int64:
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, self.numbers[places], -1)


def stem(word: str) -> str:
    """Return what is compared of a word: numbers as digits, English words without the commonest endings."""
    if word in NUMBER_WORDS:
        return NUMBER_WORDS[word]
    if word.isascii() and word.isalpha():
        for suffix in _SUFFIXES:
            if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM:
                return word.removesuffix(suffix)
    return word


def build_lexicon(items: Sequence[str], sample: Sequence[str]) -> Lexicon:
    """Weigh the words of the items by a sample of the corpus."""
    of_item = [sorted({stem(word) for word in words_of(text)}) for text in items]
    number_of = {word: number for number, word in enumerate(sorted(set().union(*of_item)))}
    forms = _forms(number_of)
    form_hashes, _, form_bounds = tokenise(list(forms))
    is_one = np.diff(form_bounds) == 1
    hashes, first = np.unique(form_hashes[form_bounds[:-1][is_one]], return_index=True)
    numbers = np.array(list(forms.values()), dtype=np.int64)[is_one][first]
    words = [np.array([number_of[word] for word in mine], dtype=np.int64) for mine in of_item]
    n_items_with = np.bincount(np.concatenate(words), minlength=len(number_of))
    in_other_items = (n_items_with - 1) / len(items)
    weights = -np.log(np.maximum(in_other_items, _in_windows(sample, hashes, numbers, len(number_of))))
    totals = np.array([weights[mine].sum() for mine in words])
    sizes = np.diff(tokenise(items)[2])
    is_judged = (totals >= LEAST_WEIGHT) & (sizes >= LEAST_TOKENS)
    needed = np.where(is_judged, np.maximum(LEAST_SHARE * totals, LEAST_WEIGHT), np.inf)
    posted, missing = [], np.zeros(len(items))
    for number, mine in enumerate(words):
        commonest_first = mine[np.argsort(weights[mine], kind="stable")]
        sums = np.cumsum(weights[commonest_first])
        n_left_out = int(np.searchsorted(sums, _LEFT_OUT * min(needed[number], totals[number]), side="right"))
        missing[number] = sums[n_left_out - 1] if n_left_out else 0.0
        # An item that is not judged is posted nowhere.
        posted.append(commonest_first[n_left_out:] if is_judged[number] else mine[:0])
    order = np.argsort(np.concatenate(posted), kind="stable")
    posting_items = np.repeat(np.arange(len(items)), [len(mine) for mine in posted])
    return Lexicon(
        hashes=hashes,
        numbers=numbers,
        weights=weights,
        posting_bounds=np.searchsorted(np.concatenate(posted)[order], np.arange(len(number_of) + 1)),
        postings=posting_items[order],
        item_bounds=np.cumsum([0, *map(len, words)]),
        item_words=np.concatenate(words),
        totals=totals,
        needed=needed,
        missing=missing,
        sizes=sizes,
    )


def save_lexicon(lexicon: Lexicon, path: Path) -> None:
    """Write the lexicon for other processes."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **vars(lexicon))


def load_lexicon(path: Path) -> Lexicon:
    """Read a saved lexicon."""
    with np.load(path, allow_pickle=False) as arrays:
        return Lexicon(**{field.name: arrays[field.name] for field in fields(Lexicon)})


def _forms(number_of: dict[str, int]) -> dict[str, int]:
    """All ways to write each word, as far as they are known."""
    forms: dict[str, int] = {}
    for word, number in number_of.items():
        forms |= {word + suffix: number for suffix in _SUFFIXES if stem(word + suffix) == word}
    forms |= {word: number_of[digits] for word, digits in NUMBER_WORDS.items() if digits in number_of}
    return forms | number_of


def _in_windows(sample: Sequence[str], hashes: npt.NDArray[np.uint64], numbers: Int64, n_words: int) -> Float64:
    """How often each word is in a window of the sample."""
    pieces = cut(sample)
    first, last = windows(pieces, (_SAMPLE_LENGTH,))
    places = np.minimum(np.searchsorted(hashes, pieces.hashes), len(hashes) - 1)
    known = np.flatnonzero(hashes[places] == pieces.hashes)
    begin, end = np.searchsorted(known, pieces.bounds[first]), np.searchsorted(known, pieces.bounds[last])
    counts = np.zeros(n_words, dtype=np.int64)
    for start, stop in zip(begin.tolist(), end.tolist(), strict=True):
        counts[np.unique(numbers[places[known[start:stop]]])] += 1
    return np.asarray(np.minimum((counts + 0.5) / (len(first) + _IMAGINED), 1.0))
