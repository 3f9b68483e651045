"""Questions about small tables; the four questions about one table share its `table_id` and are not independent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Theme:
    """What a table is about: what its rows are, two columns of numbers and one of words."""

    row: str
    names: tuple[str, ...]
    numbers: tuple[str, str]
    word: str
    words: tuple[str, ...]


THEMES = (
    Theme(
        "item",
        ("bench", "chair", "clock", "desk", "lamp", "mirror", "rug", "shelf", "sofa", "vase"),
        ("price", "stock"),
        "color",
        ("black", "blue", "brown", "gray", "green", "red", "white", "yellow"),
    ),
    Theme(
        "player",
        ("Aino", "Boris", "Carla", "Dev", "Emre", "Fatima", "Goran", "Hana", "Ivan", "Jana"),
        ("age", "score"),
        "city",
        ("Accra", "Bergen", "Cusco", "Dakar", "Graz", "Kyoto", "Lima", "Porto"),
    ),
    Theme(
        "train",
        ("Arrow", "Comet", "Eagle", "Falcon", "Meteor", "Pacer", "Rover", "Swift"),
        ("platform", "passengers"),
        "destination",
        ("Bath", "Derby", "Leeds", "London", "Oxford", "Truro", "Wells", "York"),
    ),
)


def items(rng: Random) -> Iterator[dict[str, Any]]:
    """Yield questions without end, four about each table; the wrong choices stand in the column of the right one."""
    while True:
        theme = rng.choice(THEMES)
        names = rng.sample(theme.names, rng.randint(4, 6))
        # No column has a value twice, so that every question has one answer.
        first, second = (rng.sample(range(10, 100), len(names)) for _ in theme.numbers)
        words = rng.sample(theme.words, len(names))
        columns = {theme.row: names, theme.numbers[0]: first, theme.word: words, theme.numbers[1]: second}
        lines = [" | ".join(columns), *(" | ".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        table = "\n".join(lines)
        table_id = f"{rng.getrandbits(32):08x}"
        for kind, question, column, row in _questions(rng, theme, columns):
            answer = columns[column][row]
            wrong = rng.sample([value for value in columns[column] if value != answer], 3)
            yield {
                "question": f"{table}\n{question}",
                "answer": str(answer),
                "distractors": [str(value) for value in wrong],
                "table_id": table_id,
                "kind": kind,
            }


def _questions(rng: Random, theme: Theme, columns: dict[str, list[Any]]) -> Iterator[tuple[str, str, str, int]]:
    """Yield (kind, question, column of the answer, row of the answer) for one table."""
    names = columns[theme.row]
    for kind, column in (("number", rng.choice(theme.numbers)), ("word", theme.word)):
        row = rng.randrange(len(names))
        yield kind, f"What is the {column} of {names[row]}?", column, row
    column, row = rng.choice(theme.numbers), rng.randrange(len(names))
    yield "row", f"Which {theme.row} has the {column} {columns[column][row]}?", theme.row, row
    column = rng.choice(theme.numbers)
    most, word = rng.choice(((max, "highest"), (min, "lowest")))
    row = columns[column].index(most(columns[column]))
    yield "extreme", f"Which {theme.row} has the {word} {column}?", theme.row, row
