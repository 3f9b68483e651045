"""Cuts matched spans out of a text as GPT-3's authors did: with their surroundings, and without short remainders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final, Literal

from evalkit.corpora.fields import SEPARATOR as BETWEEN_TEXTS
from evalkit.errors import SpecError
from evalkit.text.normalise import CHARACTER, IGNORED, MARK, WORD, fold, kind_of

Interval = tuple[int, int]
"""Characters [start, end) of a document."""

NOTHING_LEFT: Final = "nothing_left"
TOO_MANY_PIECES: Final = "too_many_pieces"


@dataclass(frozen=True)
class Cutting:
    """How spans are cut out; the defaults are those of Brown et al. 2020 (arXiv:2005.14165), appendix C.

    Attributes
    ----------
    context
        Characters removed on each side of a span, and from there to the end of a word.
    min_piece
        A piece with fewer characters is dropped.
    max_pieces
        A document that falls into more pieces, short ones among them, is dropped.

    Raises
    ------
    SpecError
        A number is negative, or no piece would be allowed.
    """

    context: int = 200
    min_piece: int = 200
    max_pieces: int = 10

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--context", self.context, 0),
            ("--min-piece", self.min_piece, 0),
            ("--max-pieces", self.max_pieces, 1),
        ):
            if value < least:
                raise SpecError(f"{value} is too small", where=option, do=f"Give at least {least}")


def cut(
    texts: Sequence[str], spans: Sequence[Interval], cutting: Cutting
) -> list[list[Interval]] | Literal["nothing_left", "too_many_pieces"]:
    """Return what is left of a document when `spans` and their surroundings are removed.

    Parameters
    ----------
    texts
        The texts that make up the document; joined by a line break, they are what the spans count in.
    spans
        Characters of the document, in any order; they may overlap.
    cutting
        What is removed with them.

    Returns
    -------
    list of list of (int, int)
        For each text the pieces that are left, in characters of the document. A text of which nothing was removed is
        one piece, however short. Otherwise the name of the reason for which the whole document is to be dropped: it
        falls into too many pieces, or nothing is left of one of the texts.

    Notes
    -----
    No piece begins or ends within a word, so its words are some of the document's, in a row: what matches in a piece
    did so in the document.

    Examples
    --------
    >>> cut(["before it, the leaked question, and after"], [(15, 30)], Cutting(context=3, min_piece=5))
    [[(0, 11), (35, 41)]]
    """
    document = BETWEEN_TEXTS.join(texts)
    holes = _holes(document, spans, cutting.context)
    starts = accumulate((len(text) + len(BETWEEN_TEXTS) for text in texts), initial=0)
    kept: list[list[Interval]] = []
    n_pieces = 0
    for text, start in zip(texts, starts, strict=False):
        end = start + len(text)
        mine = [(max(a, start), min(b, end)) for a, b in holes if a < end and b > start]
        if not mine or not text.strip():
            kept.append([(start, end)])
            continue
        pieces = [(a, b) for (_, a), (b, _) in pairwise([(start, start), *mine, (end, end)]) if a < b]
        n_pieces += len(pieces)
        kept.append([(a, b) for a, b in pieces if b - a >= cutting.min_piece and not document[a:b].isspace()])
    if n_pieces > cutting.max_pieces:
        return "too_many_pieces"
    return kept if all(kept) else "nothing_left"


def _holes(document: str, spans: Sequence[Interval], context: int) -> list[Interval]:
    """The spans with their surroundings, to the ends of words, joined where they touch."""
    holes: list[Interval] = []
    for first, last in sorted(spans):
        start, end = max(0, first - context), min(len(document), last + context)
        while _is_within_word(document, start):
            start -= 1
        while _is_within_word(document, end):
            end += 1
        if holes and start <= holes[-1][1]:
            holes[-1] = (holes[-1][0], max(holes[-1][1], end))
        else:
            holes.append((start, end))
    return holes


def _is_within_word(document: str, place: int) -> bool:
    """Whether the characters before and after a place belong to the same token (see `normalise`)."""
    if not 0 < place < len(document):
        return False
    after, base = _kinds(document[place])[0], MARK
    before = place
    while before and base in (MARK, IGNORED):
        before -= 1
        base = _kinds(document[before])[1]
    if after in (MARK, IGNORED):
        return base in (WORD, CHARACTER)
    return after == WORD and base == WORD


@lru_cache(maxsize=1 << 16)
def _kinds(character: str) -> tuple[int, int]:
    """Kind of the first character of the folded form, and of the last but for the marks on it."""
    # In program code the underscore is a part of words.
    kinds = [WORD if one == "_" else kind_of(one) for one in fold(character)] or [IGNORED]
    return kinds[0], next((kind for kind in reversed(kinds) if kind not in (MARK, IGNORED)), kinds[-1])
