"""What the statistics return: an estimate with its interval, or a test, each with what it means."""

from __future__ import annotations

import html
import json
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Self, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import pandas as pd


class Result:
    """What every result, a frozen dataclass, can do: become plain values, JSON, a data frame, text, a notebook cell.

    Fields may be plain values, other results, and tuples and mappings of them. A subclass whose `explain` should say
    more than its line overrides it; one of several rows overrides `to_frame`.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; JSON keeps them exactly (infinite numbers as the text "inf" or "-inf")."""
        plain: dict[str, Any] = _plain(asdict(self))  # type: ignore[call-overload]
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`, also after JSON has made lists of the tuples."""
        restored: Self = _restore(cls, values)
        return restored

    def to_json(self) -> str:
        """Return strict JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Undo `to_json`."""
        return cls.from_dict(json.loads(text))

    def to_frame(self) -> pd.DataFrame:
        """Return a data frame with one row."""
        import pandas as pd

        return pd.DataFrame([{key: value for key, value in self.to_dict().items() if key != "warnings"}])

    def explain(self) -> str:
        """Say in plain sentences what the result means."""
        return str(self)

    def _repr_html_(self) -> str:
        line, explained = html.escape(str(self)), html.escape(self.explain())
        return f"<pre>{line}</pre>" if line == explained else f"<pre>{line}</pre><p>{explained}</p>"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _restore(hint: Any, value: Any) -> Any:
    """Turn plain values into what an annotation says: results, tuples and mappings of them, infinite numbers."""
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
        hints, known = get_type_hints(hint), {field.name for field in fields(hint)}
        return hint(**{key: _restore(hints.get(key), part) if key in known else part for key, part in value.items()})
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (types.UnionType, Union):
        arms = [arm for arm in arguments if arm is not types.NoneType]
        return _restore(arms[0] if len(arms) == 1 else Any, value)
    if isinstance(value, list | tuple):
        each = arguments if kind is tuple and Ellipsis not in arguments else (arguments or (Any,))[:1] * len(value)
        return tuple(map(_restore, each, value))
    if isinstance(value, Mapping):
        return {key: _restore(arguments[1] if len(arguments) > 1 else Any, part) for key, part in value.items()}
    return float(value) if value in ("inf", "-inf") and hint is not str else value


@dataclass(frozen=True)
class Estimate(Result):
    """A number with its interval.

    Attributes
    ----------
    estimate, low, high
        In the unit of the scores (proportions for accuracy). `low` and `high` are None where no interval can be had;
        the warnings say why. A one-sided interval has an infinite end.
    confidence_level
        Of the interval, e.g. 0.95.
    method
        How the interval was made.
    population
        What it generalises to.
    unit
        The unit of independence.
    n, n_items
        Independent units, and items.
    standard_error, df
        Of the estimate; None where they cannot be had.
    warnings
        What to know before using it.
    resampling_seed
        Of a resampling method; None here means that no random numbers were used.
    n_resamples
        Of a resampling method.
    monte_carlo_error
        Standard errors of `low` and `high` as the resampling seed changes.
    quantity
        What is estimated, as a phrase.
    """

    estimate: float
    low: float | None
    high: float | None
    confidence_level: float
    method: str
    population: str
    unit: str
    n: int
    n_items: int
    standard_error: float | None = None
    df: float | None = None
    warnings: tuple[str, ...] = ()
    resampling_seed: int | None = None
    n_resamples: int | None = None
    monte_carlo_error: tuple[float, float] | None = None
    quantity: str = "the estimate"

    def __str__(self) -> str:
        interval = (
            "no interval"
            if self.low is None or self.high is None
            else f"{100 * self.confidence_level:.4g}% interval {self.low:+.4f} to {self.high:+.4f}"
        )
        notes = "".join(f"; {warning}" for warning in self.warnings)
        return f"{self.estimate:+.4f}, {interval} ({self.method}; {self.n} {self.unit}; for {self.population}{notes})"

    def explain(self) -> str:
        """Say in two plain sentences what was found and what it holds for."""
        counted = f"{self.n} {self.unit}"
        if self.n != self.n_items:
            joined = "in" if self.unit == "clusters" else "with"
            counted = (
                f"{self.n} of {self.n_items} items"
                if self.unit == "items"
                else f"{self.n_items} items {joined} {counted}"
            )
        if self.low is None or self.high is None:
            found = f"On {counted}, {self.quantity} is {self.estimate:.4g}, and there is no interval for it."
        else:
            found = (
                f"On {counted}, {self.quantity} is {self.estimate:.4g}, and the data are compatible with"
                f" {self.low:.4g} to {self.high:.4g}: intervals made in this way ({self.method}) contain the true value"
                f" in {100 * self.confidence_level:.4g}% of repetitions."
            )
        seed = "" if self.resampling_seed is None else f", and resampling used the seed {self.resampling_seed}"
        notes = "" if not self.warnings else f"; note: {'; '.join(self.warnings)}"
        return f"{found} It holds for {self.population}, and takes the {self.unit} as independent{seed}{notes}."


@dataclass(frozen=True)
class TestResult(Result):
    """A test of one null hypothesis.

    Attributes
    ----------
    p_value
        Two-sided.
    method
        Name of the test.
    null_hypothesis
        What is tested, as a phrase.
    n
        Items.
    b, c
        Items that only the first, and only the second, got right; None for a test that does not count them.
    warnings
        What to know before using it.
    statistic, df
        What the p value is of, and its degrees of freedom, where the test has them.
    unit, n_units
        The unit of independence, and how many there are; None means items.
    population
        What the test speaks of.
    resampling_seed, n_resamples
        Of a test by random permutations; None means that no random numbers were used.
    monte_carlo_error
        Standard error of the p value as the resampling seed changes.
    """

    __test__ = False  # pytest collects classes by this name otherwise

    p_value: float
    method: str
    null_hypothesis: str
    n: int
    b: int | None = None
    c: int | None = None
    warnings: tuple[str, ...] = ()
    statistic: float | None = None
    df: float | None = None
    unit: str = "items"
    n_units: int | None = None
    population: str = "items like these"
    resampling_seed: int | None = None
    n_resamples: int | None = None
    monte_carlo_error: float | None = None

    def __str__(self) -> str:
        notes = "".join(f"; {warning}" for warning in self.warnings)
        counts = "" if self.b is None else f"b = {self.b}, c = {self.c}, "
        return f"p = {self.p_value:.4g} ({self.method}, {counts}n = {self.n}{notes})"

    def explain(self) -> str:
        """Say in two plain sentences what was tested and how surprising the data are."""
        seed = "" if self.resampling_seed is None else f", and permutations used the seed {self.resampling_seed}"
        notes = "" if not self.warnings else f"; note: {'; '.join(self.warnings)}"
        return (
            f"If {self.null_hypothesis}, data at least as far from it as these would come up with probability"
            f" {self.p_value:.3g} ({self.method}). The test speaks of {self.population}, and takes the"
            f" {self.n_units or self.n} {self.unit} as independent{seed}{notes}."
        )
