"""What is compared: the set of a document's shingles, written down here so that anyone can make the same ones.

The text is normalised as the audit does it (`evalkit.text.normalise`): case, punctuation, line breaks and
compatibility forms do not matter. Its tokens, joined by one space, are the *normalised text*. Then

- a **word** shingle of size n is n consecutive tokens joined by one space,
- a **character** shingle of size n is n consecutive characters (code points) of the normalised text, spaces included,

each in UTF-8. A text of fewer than n tokens (characters) has one shingle, all of it; a text without any token has none.
Only which shingles a document has counts, not how often. `shingles_of` says all this in Python; the kernels do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from evalkit.errors import SpecError
from evalkit.text.tokens import words_of

Unit = Literal["words", "characters"]

MAX_SIZE: Final = 1000


@dataclass(frozen=True)
class Shingling:
    """How a text becomes shingles.

    Attributes
    ----------
    unit
        What shingles are made of: "words" or "characters".
    size
        How many of them make one.

    Raises
    ------
    SpecError
        There is no such unit, or the size is not between 1 and 1,000.
    """

    unit: Unit = "words"
    size: int = 5

    def __post_init__(self) -> None:
        if self.unit not in ("words", "characters"):
            raise SpecError(f"shingles are of words or characters, not of '{self.unit}'", where="--shingle")
        if not 1 <= self.size <= MAX_SIZE:
            raise SpecError(
                f"a shingle of {self.size} {self.unit} makes no sense", where="--shingle", do=f"Use 1 to {MAX_SIZE}"
            )

    def __str__(self) -> str:
        return f"{self.size} {self.unit}"


def parse_shingling(text: str) -> Shingling:
    """Read `words:5` or `characters:9`.

    Raises
    ------
    SpecError
        It is neither.
    """
    unit, _, size = text.partition(":")
    if not size.isdecimal():
        raise SpecError(f"'{text}' says nothing", where="--shingle", do="Write words:N or characters:N, as in words:5")
    return Shingling(unit, int(size))  # type: ignore[arg-type]


def normalised(text: str) -> str:
    """Return the tokens of a text, joined by one space."""
    return " ".join(words_of(text))


def shingles_of(text: str, shingling: Shingling) -> set[bytes]:
    """Return the shingles of a text: the definition, for tests and for those who feed them to another MinHash.

    Examples
    --------
    >>> sorted(shingles_of("To be, or NOT to be.", Shingling("words", 3)))
    [b'be or not', b'not to be', b'or not to', b'to be or']
    >>> sorted(shingles_of("Ab, c", Shingling("characters", 3)))
    [b'ab ', b'b c']
    >>> shingles_of("Ab, c", Shingling("words", 3)), shingles_of("?!", Shingling("words", 3))
    ({b'ab c'}, set())
    """
    words = words_of(text)
    units, joint = (words, " ") if shingling.unit == "words" else (" ".join(words), "")
    n = min(len(units), shingling.size)
    return {joint.join(units[k : k + n]).encode() for k in range(len(units) - n + 1)} if units else set()
