"""Cuts documents into overlapping windows of about the length of an item: runs of whole sentences or lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.contamination.index import tokenise

Int64 = npt.NDArray[np.int64]

# A full stop ends a sentence where white space follows, so that 3.14 stays whole; the full-width ones always do.
_BOUNDARY: Final = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\s*\n\s*|(?<=[。！？])")
_LONGEST_PIECE: Final = 240
"""Characters: what has no full stop and no line break for so long is cut between two words."""

LENGTHS: Final = (8, 12, 18, 27, 40, 60, 90, 135, 200)
"""Lengths of windows in tokens; those are used that are about the length of some item."""


@dataclass(frozen=True)
class Pieces:
    """The sentences and lines of some texts, one after the other; those without a word are left out.

    Attributes
    ----------
    texts
        Number of the text that each is of.
    starts, ends
        Its place in the text, in characters.
    hashes, bounds
        Hashes of all tokens, and the n_pieces + 1 bounds of the pieces in them.
    """

    texts: Int64
    starts: Int64
    ends: Int64
    hashes: npt.NDArray[np.uint64]
    bounds: Int64

    def __len__(self) -> int:
        return len(self.texts)


def cut(texts: Sequence[str]) -> Pieces:
    """Cut texts into sentences and lines, none longer than 240 characters."""
    numbers, starts, ends, found = [], [], [], []
    for number, text in enumerate(texts):
        for start, end in _pieces_of(text):
            numbers.append(number)
            starts.append(start)
            ends.append(end)
            found.append(text[start:end])
    hashes, _, bounds = tokenise(found)
    has_words = np.diff(bounds) > 0
    return Pieces(
        texts=np.array(numbers, dtype=np.int64)[has_words],
        starts=np.array(starts, dtype=np.int64)[has_words],
        ends=np.array(ends, dtype=np.int64)[has_words],
        hashes=hashes,
        bounds=np.append(bounds[:-1][has_words], bounds[-1]),
    )


def windows(pieces: Pieces, lengths: Sequence[int]) -> tuple[Int64, Int64]:
    """Return all runs of pieces [first, last) that are, from where they begin, nearest to one of the lengths in tokens.

    A window ends with its text, and may there be down to half as long.
    """
    n = len(pieces)
    if not n:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    first = np.arange(n)
    text_end = np.searchsorted(pieces.texts, pieces.texts, side="right")
    begun = pieces.bounds[:-1]
    found = []
    for length in lengths:
        last = np.minimum(np.searchsorted(pieces.bounds, begun + length), n)
        is_nearer = (begun + length - pieces.bounds[last - 1] < pieces.bounds[last] - begun - length) & (
            last - 1 > first
        )
        last = np.minimum(np.where(is_nearer, last - 1, last), text_end)
        is_long = pieces.bounds[last] - begun >= length / 2
        found.append(first[is_long] * (n + 1) + last[is_long])
    both = np.unique(np.concatenate(found))
    return both // (n + 1), both % (n + 1)


def _pieces_of(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for boundary in _BOUNDARY.finditer(text):
        yield from _shortened(text, start, boundary.start())
        start = boundary.end()
    yield from _shortened(text, start, len(text))


def _shortened(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > _LONGEST_PIECE:
        cut_at = text.rfind(" ", start + 1, start + _LONGEST_PIECE)
        cut_at = cut_at if cut_at > start else start + _LONGEST_PIECE
        yield start, cut_at
        start = cut_at
    if start < end:
        yield start, end
