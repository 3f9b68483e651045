"""How text becomes tokens, for the benchmark and the corpus alike: written down here, run by the kernels.

The rule, version 2:

1. Each character is replaced by its full compatibility decomposition with case folding: NFKD, casefold, NFKD,
   casefold, NFKD. Two texts that are equal under NFKC and case folding (Unicode's caseless compatibility match)
   are equal after this; decomposed rather than composed form is used because it needs no look at the neighbours,
   so a table does it. Several combining marks on one letter keep the order in which they were written.
2. Characters of category Cf (soft hyphen, zero-width space and joiners, direction marks) vanish: they do not split
   a word, so they cannot hide one.
3. Letters (L*), numbers (N*) and the marks (M*) on them form tokens; everything else (spaces, line breaks,
   punctuation, symbols, the underscore) separates tokens and is not kept. Re-wrapped lines, other punctuation,
   quotes and case therefore never hide a match.
4. In scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every letter, with its
   marks, is a token of its own. Korean is written with spaces and is tokenised by words.

Consequences to know: "don't" is two tokens; "3.14" is "3 14" and "1,000" is "1 000"; "x + y" equals "x - y".

Program code has a rule of its own: a token is a maximal run of letters, digits and underscores, as they are written: no
folding, so that identifiers stay what they are. Everything else separates. Comments vanish: from # or // to the end of
the line, and from /* to */; wherever these signs stand, in a string too, since nobody knows the language.
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evalkit.text.buffers import make_read_only

VERSION: Final = 2
"""Version of the rule above; it is written into every audit, because it decides what matches."""

SEPARATOR, WORD, CHARACTER, MARK, IGNORED = range(5)

COMMENT, COMMENT_OR_NOT = 1, 2
"""In place of the code of an ASCII character: it begins a comment; it does so when another slash or a star follows."""

# FNV-1a's offset, and the digits of the golden ratio.
_TEXT_SEED: Final = 0xCBF29CE484222325
_CODE_SEED: Final = 0x9E3779B97F4A7C15

# Blocks whose letters are tokens of their own, as inclusive ranges of code points.
_UNSPACED_SCRIPTS: Final = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # CJK and Kangxi radicals
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3041, 0x309F),  # Hiragana
    (0x30A1, 0x30FF),  # Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # CJK extension A
    (0x4E00, 0x9FFF),  # CJK
    (0xA9E0, 0xA9FF),  # Burmese extension B
    (0xAA60, 0xAA7F),  # Burmese extension A
    (0xF900, 0xFAFF),  # CJK compatibility
    (0x1AFF0, 0x1B16F),  # Kana extensions
    (0x20000, 0x323AF),  # CJK extensions B to H
)
# Beyond the CJK extensions only tags and variation selectors (ignored or marks) are assigned.
_LAST_MAPPED: Final = 0x323AF
_TAGS: Final = (0xE0000, 0xE01EF)
_HANGUL: Final = (0xAC00, 0xD7A3)


@dataclass(frozen=True)
class FoldTable:
    """The normalisation as arrays, for the kernels.

    Attributes
    ----------
    ascii_code
        uint8[256]: the folded code of an ASCII word character, 0 for a separator and for bytes beyond ASCII; of code,
        also COMMENT and COMMENT_OR_NOT.
    kind
        uint8[0x110000]: SEPARATOR, WORD, CHARACTER, MARK or IGNORED for a folded code point.
    start
        int32[0x110001]: the folded form of code point c is `codes[start[c]:start[c + 1]]`.
    codes
        uint32: the folded code points.
    seed
        uint64[1]: what the hash of a token begins with. Text and code have different ones, so that no token of the one
        is ever equal to one of the other.
    """

    ascii_code: npt.NDArray[np.uint8]
    kind: npt.NDArray[np.uint8]
    start: npt.NDArray[np.int32]
    codes: npt.NDArray[np.uint32]
    seed: npt.NDArray[np.uint64]

    def __post_init__(self) -> None:
        make_read_only(self.arrays)

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """All of them, in the order that the kernels take them."""
        return self.ascii_code, self.kind, self.start, self.codes, self.seed


def fold(character: str) -> str:
    """Return the folded form of one character (rule 1 above)."""
    folded = unicodedata.normalize("NFKD", character)
    for _ in range(2):
        folded = unicodedata.normalize("NFKD", folded.casefold())
    return folded


def kind_of(character: str) -> int:
    """Return which of the five kinds a folded character is (rules 2 to 4 above)."""
    kind = _kind_of_category(unicodedata.category(character))
    is_unspaced = any(low <= ord(character) <= high for low, high in _UNSPACED_SCRIPTS)
    return CHARACTER if kind == WORD and is_unspaced else kind


def _kind_of_category(category: str) -> int:
    if category == "Cf":
        return IGNORED
    return {"L": WORD, "N": WORD, "M": MARK}.get(category[0], SEPARATOR)


def _may_change(code: int, character: str) -> bool:
    """Whether a character can be another one when it is folded; a quick look, since most are not."""
    # The decomposition of Hangul syllables is a rule, and in no table.
    is_hangul = _HANGUL[0] <= code <= _HANGUL[1]
    return is_hangul or character.casefold() != character or unicodedata.decomposition(character) != ""


@lru_cache(maxsize=1)
def fold_table() -> FoldTable:
    """Build the tables from the Unicode data of this Python, once per process."""
    n_codes = sys.maxunicode + 1
    mapped = (*range(_LAST_MAPPED + 1), *range(_TAGS[0], _TAGS[1] + 1))
    characters = list(map(chr, mapped))
    kind = np.zeros(n_codes, dtype=np.uint8)
    categories = list(map(unicodedata.category, characters))
    kinds = {category: _kind_of_category(category) for category in set(categories)}
    kind[list(mapped)] = [kinds[category] for category in categories]
    for low, high in _UNSPACED_SCRIPTS:
        script = kind[low : high + 1]
        script[script == WORD] = CHARACTER
    folded = {code: fold(one) for code, one in zip(mapped, characters, strict=True) if _may_change(code, one)}
    # What is unassigned or private folds to itself and separates.
    lengths = np.ones(n_codes, dtype=np.int32)
    changed = list(folded)
    lengths[changed] = [len(one) for one in folded.values()]
    start = np.zeros(n_codes + 1, dtype=np.int32)
    np.cumsum(lengths, out=start[1:])
    flat = np.repeat(np.arange(n_codes, dtype=np.uint32), lengths)
    is_changed = np.zeros(n_codes, dtype=bool)
    is_changed[changed] = True
    flat[np.repeat(is_changed, lengths)] = [ord(one) for text in folded.values() for one in text]
    ascii_code = np.zeros(256, dtype=np.uint8)
    ascii_code[:128] = [ord(fold(chr(code))) if kind[code] == WORD else 0 for code in range(128)]
    return FoldTable(ascii_code, kind, start, flat, _seed(_TEXT_SEED))


@lru_cache(maxsize=1)
def code_table() -> FoldTable:
    """The tables for program code, in the form of those for text."""
    text = fold_table()
    n_codes = sys.maxunicode + 1
    kind = np.where(text.kind[:n_codes] == CHARACTER, WORD, text.kind).astype(np.uint8)
    kind[ord("_")] = WORD
    ascii_code = np.zeros(256, dtype=np.uint8)
    words = [code for code in range(128) if kind[code] == WORD]
    ascii_code[words] = words
    ascii_code[ord("#")], ascii_code[ord("/")] = COMMENT, COMMENT_OR_NOT
    return FoldTable(
        ascii_code=ascii_code,
        kind=kind,
        start=np.arange(n_codes + 1, dtype=np.int32),
        codes=np.arange(n_codes, dtype=np.uint32),
        seed=_seed(_CODE_SEED),
    )


def _seed(value: int) -> npt.NDArray[np.uint64]:
    return np.array([value], dtype=np.uint64)
