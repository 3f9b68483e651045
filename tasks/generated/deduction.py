"""Puzzles about four things in a row whose clues leave exactly one order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import Any

Order = tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """How a row is told: who or what stands in it, the phrases of the clues and the question for each place."""

    opening: str
    names: tuple[str, ...]
    before: str
    just_before: str
    not_adjacent: str
    ends: tuple[str, str]
    questions: tuple[str, str, str, str]


SETTINGS = (
    Setting(
        "Four books stand on a shelf",
        tuple(f"the {color} book" for color in ("black", "blue", "brown", "gray", "green", "orange", "red", "white")),
        "{a} is somewhere to the left of {b}",
        "{a} is directly to the left of {b}",
        "{a} is not next to {b}",
        ("{a} is at the left end", "{a} is at the right end"),
        (
            "Which book is at the left end?",
            "Which book is second from the left?",
            "Which book is second from the right?",
            "Which book is at the right end?",
        ),
    ),
    Setting(
        "Four friends ran a race without ties",
        ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal", "Ida", "Jim"),
        "{a} finished before {b}",
        "{a} finished right before {b}",
        "{a} and {b} did not finish one right after the other",
        ("{a} finished first", "{a} finished last"),
        ("Who finished first?", "Who finished second?", "Who finished third?", "Who finished last?"),
    ),
    Setting(
        "Four people wait in a queue",
        ("Kim", "Lou", "Mia", "Ned", "Ola", "Pia", "Ray", "Sue", "Tom", "Una"),
        "{a} is somewhere ahead of {b}",
        "{a} is directly ahead of {b}",
        "{a} does not stand next to {b}",
        ("{a} is at the front", "{a} is at the end"),
        ("Who is at the front?", "Who is second?", "Who is third?", "Who is at the end?"),
    ),
)


@dataclass(frozen=True)
class Clue:
    """A sentence, the orders in which it is true, and the place it gives away, if any."""

    text: str
    holds: Callable[[Order], bool]
    place: int | None = None


def items(rng: Random) -> Iterator[dict[str, Any]]:
    """Yield puzzles without end; the four names are the choices."""
    while True:
        setting = rng.choice(SETTINGS)
        order: Order = tuple(rng.sample(setting.names, 4))
        told = rng.sample(order, 4)
        clues = _enough(rng, [clue for clue in _clues(setting, told) if clue.holds(order)], told)
        # A place that a clue names outright is no puzzle.
        place = rng.choice([place for place in range(4) if place not in {clue.place for clue in clues}])
        sentences = [
            f"{setting.opening}: {', '.join(told[:3])} and {told[3]}",
            *(clue.text[0].upper() + clue.text[1:] for clue in clues),
        ]
        yield {
            "question": f"{'. '.join(sentences)}. {setting.questions[place]}",
            "answer": order[place],
            "distractors": [name for name in told if name != order[place]],
            "kind": f"{len(clues)}_clues",
        }


def _clues(setting: Setting, names: list[str]) -> Iterator[Clue]:
    """Yield every clue there is about `names`, true or false."""
    for a, b in permutations(names, 2):
        yield Clue(setting.before.format(a=a, b=b), lambda order, a=a, b=b: order.index(a) < order.index(b))
        yield Clue(setting.just_before.format(a=a, b=b), lambda order, a=a, b=b: order.index(a) + 1 == order.index(b))
        yield Clue(
            setting.not_adjacent.format(a=a, b=b), lambda order, a=a, b=b: abs(order.index(a) - order.index(b)) > 1
        )
    for a in names:
        yield Clue(setting.ends[0].format(a=a), lambda order, a=a: order[0] == a, place=0)
        yield Clue(setting.ends[1].format(a=a), lambda order, a=a: order[-1] == a, place=len(names) - 1)


def _enough(rng: Random, clues: list[Clue], names: list[str]) -> list[Clue]:
    """Choose clues that together leave one order, none of which can be spared."""
    chosen: list[Clue] = []
    possible = list(permutations(names))
    for clue in rng.sample(clues, len(clues)):
        left = [order for order in possible if clue.holds(order)]
        if len(left) < len(possible):
            chosen.append(clue)
            possible = left
        if len(possible) == 1:
            break
    for clue in list(chosen):
        others = [other for other in chosen if other is not clue]
        if sum(all(other.holds(order) for other in others) for order in permutations(names)) == 1:
            chosen = others
    return chosen
