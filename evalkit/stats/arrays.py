"""What comes in: finite numbers, labels as codes, levels between 0 and 1; refused clearly where it is not so."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.errors import InputError, SpecError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def vector(
    values: npt.ArrayLike, what: str, *, length: int | None = None, bounds: tuple[float, float] | None = None
) -> Floats:
    """Return one finite number for each unit, shape (n,) with n > 0.

    Parameters
    ----------
    values
        Numbers.
    what
        What they are, for the message.
    length
        How many there must be.
    bounds
        Between which they must lie, both included.

    Raises
    ------
    InputError
        They are not so; the message names the first that is not.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("not numbers", where=what, do="Give one number for each unit") from None
    if array.ndim != 1 or not len(array):
        raise InputError(f"shape {array.shape}", where=what, do="Give one number for each unit, at least one")
    if length is not None and len(array) != length:
        raise InputError(f"{len(array)} where {length} are needed", where=what, do="Give as many of each")
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    bad = ~np.isfinite(array) | (array < low) | (array > high)
    if bad.any():
        row = int(np.argmax(bad))
        within = "finite numbers" if bounds is None else f"numbers from {low:g} to {high:g}"
        raise InputError(f"row {row} is {array[row]}", where=what, do=f"Give {within}; leave out units without a score")
    return array


def codes_of(labels: Sequence[Hashable] | npt.NDArray[Any], what: str, *, length: int) -> tuple[Ints, list[Any]]:
    """Return the number of each unit's label, shape (n,), and the labels in the order in which they first come.

    Labels are told apart as Python does it, so 1 and "1" are two.

    Raises
    ------
    InputError
        There is not one for each unit.
    """
    if len(labels) != length:
        raise InputError(f"{len(labels)} where {length} are needed", where=what, do="Give one for each unit")
    numbers: dict[Any, int] = {}
    plain = labels.tolist() if isinstance(labels, np.ndarray) else labels
    codes = np.fromiter((numbers.setdefault(label, len(numbers)) for label in plain), np.int64, length)
    return codes, list(numbers)


def check_level(level: float, what: str = "confidence_level") -> None:
    """Refuse a probability that is not strictly between 0 and 1.

    Raises
    ------
    SpecError
        It is not.
    """
    if not 0 < level < 1:
        raise SpecError(f"{level} is not between 0 and 1", where=what, do="Give a share such as 0.95, not a percentage")
