"""Word problems of one or two steps over whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

NAMES = ("Amara", "Bruno", "Chloe", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Keiko", "Lena")
THINGS = ("apples", "beads", "candles", "eggs", "marbles", "pencils", "postcards", "shells", "stamps", "tickets")
CONTAINERS = ("bags", "baskets", "boxes", "crates", "jars")

Problem = tuple[str, int]


def items(rng: Random) -> Iterator[dict[str, str]]:
    """Yield word problems without end, each kind as often as the others."""
    while True:
        for kind, make in KINDS.items():
            question, answer = make(rng)
            yield {"question": question, "answer": str(answer), "kind": kind}


def _add(rng: Random) -> Problem:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 60), rng.randint(2, 39)
    return f"{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?", a + b


def _subtract(rng: Random) -> Problem:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    a = rng.randint(12, 80)
    b = rng.randint(2, a - 2)
    return f"{name} has {a} {things} and gives away {b}. How many {things} are left?", a - b


def _multiply(rng: Random) -> Problem:
    things, containers = rng.choice(THINGS), rng.choice(CONTAINERS)
    a, b = rng.randint(2, 12), rng.randint(3, 25)
    return f"There are {a} {containers} with {b} {things} in each. How many {things} are there in all?", a * b


def _share(rng: Random) -> Problem:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    each, children = rng.randint(2, 15), rng.randint(2, 9)
    return (
        f"{name} shares {each * children} {things} equally among {children} children. "
        f"How many {things} does each child get?",
        each,
    )


def _change(rng: Random) -> Problem:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    note = rng.choice((20, 50, 100))
    price = rng.randint(2, 6)
    count = rng.randint(2, note // price - 1)
    return (
        f"{name} buys {count} {things} at {price} dollars each and pays with a {note}-dollar note. "
        f"How many dollars does {name} get back?",
        note - count * price,
    )


def _rows(rng: Random) -> Problem:
    things = rng.choice(THINGS)
    rows, columns = rng.randint(3, 9), rng.randint(3, 12)
    sold = rng.randint(2, rows * columns - 2)
    return (
        f"A stall shows {things} in {rows} rows of {columns}. By noon {sold} of them are sold. "
        f"How many {things} are still there?",
        rows * columns - sold,
    )


def _save(rng: Random) -> Problem:
    name = rng.choice(NAMES)
    start, weekly, weeks = rng.randint(5, 60), rng.randint(2, 15), rng.randint(2, 9)
    return (
        f"{name} has {start} dollars and saves {weekly} dollars a week. "
        f"How many dollars does {name} have after {weeks} weeks?",
        start + weekly * weeks,
    )


KINDS: dict[str, Callable[[Random], Problem]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "share": _share,
    "change": _change,
    "rows": _rows,
    "save": _save,
}
