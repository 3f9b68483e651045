"""The tokens of a text with their places, in plain Python: for showing and re-checking matches, not for finding them.

It follows the rule in `normalise` and shares no code with the kernels, so that a fault in either is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from evalkit.text.normalise import CHARACTER, IGNORED, MARK, SEPARATOR, WORD, fold, kind_of

_ASCII_WORD: Final = re.compile(r"[0-9A-Za-z]+")
_ASCII_CODE_WORD: Final = re.compile(r"[0-9A-Za-z_]+")
_COMMENT: Final = re.compile(r"#[^\n]*|//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)


class Token(NamedTuple):
    """A folded token, and its place [start, end) in the text, in characters."""

    text: str
    start: int
    end: int


def tokens(text: str, *, is_code: bool = False) -> list[Token]:
    """Return the tokens of a text, in order; of program code by its own rule."""
    if is_code:
        text = _COMMENT.sub(lambda found: " " * len(found[0]), text)
    if text.isascii():
        words = (_ASCII_CODE_WORD if is_code else _ASCII_WORD).finditer(text)
        return [Token(word[0] if is_code else word[0].lower(), word.start(), word.end()) for word in words]
    return list(_tokens(text, _of_code if is_code else _folded))


def _tokens(text: str, letters_of: Callable[[str], tuple[tuple[str, int], ...]]) -> Iterator[Token]:
    letters, start, end, kind = "", 0, 0, SEPARATOR
    for place, character in enumerate(text):
        for letter, what in letters_of(character):
            if what == IGNORED or (what == MARK and not letters):
                continue
            if what == MARK or (what == WORD == kind and letters):
                letters, end = letters + letter, place + 1
                continue
            if letters:
                yield Token(letters, start, end)
                letters = ""
            if what in (WORD, CHARACTER):
                letters, start, end, kind = letter, place, place + 1, what
    if letters:
        yield Token(letters, start, end)


@lru_cache(maxsize=1 << 16)
def _folded(character: str) -> tuple[tuple[str, int], ...]:
    return tuple((letter, kind_of(letter)) for letter in fold(character))


@lru_cache(maxsize=1 << 16)
def _of_code(character: str) -> tuple[tuple[str, int], ...]:
    kind = kind_of(character)
    return ((character, WORD if character == "_" or kind == CHARACTER else kind),)


def words_of(text: str, *, is_code: bool = False) -> tuple[str, ...]:
    """Return the tokens of a text without their places."""
    return tuple(token.text for token in tokens(text, is_code=is_code))


def find_words(wanted: Sequence[str], words: Sequence[str]) -> int | None:
    """Return where `wanted` stands in `words` for the first time, in one piece; None when it does not."""
    n, wanted = len(wanted), list(wanted)
    return next((k for k in range(len(words) - n + 1) if list(words[k : k + n]) == wanted), None)


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the fewest tokens to insert, delete or replace that make one sequence the other (Levenshtein)."""
    numbers: dict[str, int] = {}
    ours, theirs = (np.array([numbers.setdefault(word, len(numbers)) for word in words]) for words in (a, b))
    places = np.arange(len(theirs) + 1)
    row = places
    for number, word in enumerate(ours.tolist(), 1):
        row = np.append(number, np.minimum(row[:-1] + (theirs != word), row[1:] + 1))
        row = np.minimum.accumulate(row - places) + places  # insertions, all at once
    return int(row[-1])
