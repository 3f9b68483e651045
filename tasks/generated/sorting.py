"""Lists of numbers and words to put in order, count and search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

WORDS = (
    *("amber", "basket", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "kettle"),
    *("ladder", "magnet", "needle", "orange", "pepper", "quartz", "ribbon", "saddle", "timber", "umbrella"),
    *("velvet", "walnut", "yogurt", "zipper"),
)

Problem = tuple[str, str]


def items(rng: Random) -> Iterator[dict[str, str]]:
    """Yield questions about lists without end, each kind as often as the others."""
    while True:
        for kind, make in KINDS.items():
            question, answer = make(rng)
            yield {"question": question, "answer": answer, "kind": kind}


def _numbers(rng: Random, fewest: int = 4) -> list[int]:
    return rng.sample(range(1, 100), rng.randint(fewest, 6))


def _write(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values))


def _ascending(rng: Random) -> Problem:
    numbers = _numbers(rng, fewest=3)
    return f"Sort these numbers from smallest to largest: {_write(numbers)}.", _write(sorted(numbers))


def _descending(rng: Random) -> Problem:
    numbers = _numbers(rng, fewest=3)
    return f"Sort these numbers from largest to smallest: {_write(numbers)}.", _write(sorted(numbers, reverse=True))


def _alphabetical(rng: Random) -> Problem:
    words = rng.sample(WORDS, rng.randint(3, 5))
    return f"Sort these words in alphabetical order: {_write(words)}.", _write(sorted(words))


def _largest(rng: Random) -> Problem:
    numbers = _numbers(rng)
    return f"What is the largest number in this list: {_write(numbers)}?", str(max(numbers))


def _second_smallest(rng: Random) -> Problem:
    numbers = _numbers(rng)
    return f"What is the second smallest number in this list: {_write(numbers)}?", str(sorted(numbers)[1])


def _greater(rng: Random) -> Problem:
    numbers, bound = _numbers(rng), rng.randint(20, 80)
    count = sum(number > bound for number in numbers)
    return f"How many numbers in this list are greater than {bound}: {_write(numbers)}?", str(count)


def _occurrences(rng: Random) -> Problem:
    asked, *others = rng.sample(WORDS, 3)
    count = rng.randint(1, 5)
    words = [asked] * count + [rng.choice(others) for _ in range(rng.randint(2, 4))]
    rng.shuffle(words)
    return f'How many times does the word "{asked}" appear in this list: {_write(words)}?', str(count)


KINDS: dict[str, Callable[[Random], Problem]] = {
    "ascending": _ascending,
    "descending": _descending,
    "alphabetical": _alphabetical,
    "largest": _largest,
    "second_smallest": _second_smallest,
    "greater": _greater,
    "occurrences": _occurrences,
}
