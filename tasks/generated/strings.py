"""Edits of single words: the answer is always one word, and its letters and their case must be exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "br", "dr", "gl", "pl", "st", "tr")
VOWELS = ("a", "e", "i", "o", "u")
ORDINALS = ("first", "second", "third", "fourth")

Problem = tuple[str, str]


def items(rng: Random) -> Iterator[dict[str, str]]:
    """Yield string edits without end, each kind as often as the others."""
    while True:
        for kind, make in KINDS.items():
            question, answer = make(rng)
            yield {"question": question, "answer": answer, "kind": kind}


def _word(rng: Random) -> str:
    """An invented word that can be said; dictionaries are too small for test sets that share no question."""
    syllables = (rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3)))
    return "".join(syllables) + rng.choice(("n", "r", "s", "t", ""))


def _capitals(rng: Random) -> Problem:
    word = _word(rng)
    return f'Write "{word}" in capital letters.', word.upper()


def _join(rng: Random) -> Problem:
    first, second = _word(rng), _word(rng)
    return f'Join "{first}" and "{second}" into one word without a space.', first + second


def _twice(rng: Random) -> Problem:
    word = _word(rng)
    return f'Write "{word}" twice without a space.', word * 2


def _letter(rng: Random) -> Problem:
    word, index = _word(rng), rng.randrange(4)
    return f'What is the {ORDINALS[index]} letter of "{word}"?', word[index]


def _initials(rng: Random) -> Problem:
    words = [_word(rng) for _ in range(rng.randint(3, 4))]
    return f'Write the first letters of "{" ".join(words)}" as one word.', "".join(word[0] for word in words)


def _replace(rng: Random) -> Problem:
    word = _word(rng)
    old = rng.choice([letter for letter in word if letter in VOWELS])
    new = rng.choice([vowel for vowel in VOWELS if vowel not in word] or ["y"])
    return f'Replace every "{old}" in "{word}" with "{new}".', word.replace(old, new)


def _remove(rng: Random) -> Problem:
    word = _word(rng)
    letter = rng.choice(word)
    return f'Remove every "{letter}" from "{word}".', word.replace(letter, "")


def _reverse(rng: Random) -> Problem:
    word = _word(rng)
    return f'Write "{word}" backwards.', word[::-1]


KINDS: dict[str, Callable[[Random], Problem]] = {
    "capitals": _capitals,
    "join": _join,
    "twice": _twice,
    "letter": _letter,
    "initials": _initials,
    "replace": _replace,
    "remove": _remove,
    "reverse": _reverse,
}
