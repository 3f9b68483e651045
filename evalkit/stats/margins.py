"""Reads a margin as people write it: `1pp`, `0.5 points`, or in the unit of the scores, `0.01`."""

from __future__ import annotations

import re
from typing import Final

from evalkit.errors import SpecError

_MARGIN: Final = re.compile(r"(?P<number>(\d+\.?\d*|\.\d+)(e[+-]?\d+)?) ?(?P<unit>pp|points?)?", re.ASCII)

BARE_LIMIT: Final = 0.1
"""From here on a proportion without a unit is likelier to be meant in points."""


def parse_margin(text: str, *, where: str = "--margin", proportions: bool = False) -> float:
    """Return a margin in the unit of the scores; `1pp` and `1 point` are 0.01.

    Parameters
    ----------
    text
        What was written.
    where
        Named in errors.
    proportions
        Whether scores are known to be proportions, so that a number without a unit must be below `BARE_LIMIT`.

    Raises
    ------
    SpecError
        It is no number above zero with one of these units or none, is above 100 points, or 0.5 might mean half a point.
    """
    advice = "Write such as 1pp or 0.5pp (points), or 0.01 (a proportion: one point)"
    found = _MARGIN.fullmatch(text.strip())
    value = float(found["number"]) / (100 if found["unit"] else 1) if found else 0.0
    if found is None or not 0 < value < float("inf"):
        raise SpecError(f"'{text}' is no margin", where=where, do=advice)
    if found["unit"] and value > 1:
        raise SpecError(f"a margin of {text} is more than all 100 points", where=where, do=advice)
    if proportions and not found["unit"] and value >= BARE_LIMIT:
        raise SpecError(f"the margin {text} would be {100 * value:g} points", where=where, do=advice)
    return value
