"""Plans a comparison: items for an effect, what so many items can find, and how far a significant result misleads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evalkit.errors import CompareError, InputError, SpecError
from evalkit.reports.figures import LOOKS, check_figure_path, write_panels
from evalkit.reports.inputs import load_run
from evalkit.reports.joining import join
from evalkit.stats.power import (
    FEW_UNITS,
    PairedDesign,
    PowerPlan,
    SignificanceErrors,
    design_from_scores,
    mcnemar_errors,
    plan,
    required_items,
    required_items_for_equivalence,
)
from evalkit.stats.results import Result
from evalkit.terminal import safe

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

REPEATS: Final = (1, 2, 4, 10)
"""Answers to each item that the figure and the table of repeats show."""

MAX_EXACT_ITEMS: Final = 20_000
"""Up to this many items McNemar's errors are enumerated."""


@dataclass(frozen=True)
class PowerAnswer(Result):
    """The plan of one comparison.

    Attributes
    ----------
    name
        The task whose pilot it rests on; empty without one.
    needed
        The smallest number of items that finds the effect.
    given
        What the numbers of items that were asked about can find.
    mcnemar
        The exact errors of McNemar's test for each of these, of right or wrong answers to independent items.
    repeats
        Items needed with other numbers of answers to each item, where the answers' variance is known.
    for_equivalence
        Items that show equivalence within the margin if there is no difference; None without a margin.
    warnings
        What to know before using it.
    """

    name: str
    needed: PowerPlan
    given: tuple[PowerPlan, ...] = ()
    mcnemar: tuple[SignificanceErrors, ...] = ()
    repeats: tuple[tuple[int, int], ...] = ()
    for_equivalence: int | None = None
    margin: float | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, (self.needed, *self.given)))

    def explain(self) -> str:
        """Say how many items are needed, and what the given numbers can find."""
        one = self.needed
        said = [f"It takes {one.n_items:,} items to find {one.effect:g} with probability {one.target_power:g}."]
        said += [plan.explain() for plan in self.given or (self.needed,)]
        if self.for_equivalence is not None and self.margin is not None:
            said.append(
                f"If the models are equal, {self.for_equivalence:,} items show with probability {one.target_power:g} "
                f"that they are within {self.margin:g} of each other."
            )
        return " ".join(said)

    def to_frame(self) -> pd.DataFrame:
        """One row for each number of items, the needed one first."""
        import pandas as pd

        return pd.DataFrame([_row(one) for one in (self.needed, *self.given)])


def _row(one: PowerPlan) -> dict[str, Any]:
    return {
        "items": one.n_items,
        "units": one.n_units,
        "effect": one.effect,
        "standard_error": one.standard_error,
        "power": one.errors.power,
        "type_s": one.errors.type_s,
        "type_m": one.errors.type_m,
        "smallest_detectable": one.smallest_detectable,
    }


def answer(
    effect: float,
    design: PairedDesign,
    *,
    name: str = "",
    items: Sequence[int] = (),
    power: float = 0.8,
    alpha: float = 0.05,
    margin: float | None = None,
    discordant: float | None = None,
    warnings: Sequence[str] = (),
) -> PowerAnswer:
    """Plan a comparison. Fewer than 50 independent units are planned by t, more by the normal distribution.

    Parameters
    ----------
    effect
        The true difference to be found, in the unit of the scores.
    design
        Variances, repeats, clusters.
    items
        Numbers of items to ask about.
    power, alpha
        Of the two-sided test.
    margin
        Also plan for showing equivalence within it.
    discordant
        The share of items that only one gets right, where the design is of independent right or wrong answers: then
        McNemar's errors are exact.

    Raises
    ------
    SpecError
        A number is out of range.
    """
    needed = required_items(effect, design, power=power, alpha=alpha)
    if needed.n_units < FEW_UNITS:
        needed = required_items(effect, design, power=power, alpha=alpha, reference="t")
    given = tuple(_plan(n, effect, design, power, alpha) for n in items)
    exact: tuple[SignificanceErrors, ...] = ()
    if discordant is not None and max(items, default=0) <= MAX_EXACT_ITEMS:
        shares = (discordant - effect) / 2, (discordant + effect) / 2
        exact = tuple(mcnemar_errors(n, *shares, alpha=alpha) for n in items)
    repeats = []
    if design.within_a or design.within_b:
        repeats = [
            (k, required_items(effect, _with_repeats(design, k), power=power, alpha=alpha).n_items) for k in REPEATS
        ]
    return PowerAnswer(
        name=name,
        needed=needed,
        given=given,
        mcnemar=exact,
        repeats=tuple(repeats),
        for_equivalence=None
        if margin is None
        else required_items_for_equivalence(margin, design, power=power, alpha=alpha),
        margin=margin,
        warnings=tuple(warnings),
    )


def _plan(n: int, effect: float, design: PairedDesign, power: float, alpha: float) -> PowerPlan:
    few = round(n / design.cluster_size) < FEW_UNITS
    return plan(n, effect, design, power=power, alpha=alpha, reference="t" if few else "normal")


def _with_repeats(design: PairedDesign, repeats: int) -> PairedDesign:
    return PairedDesign(**{**vars(design), "repeats_a": repeats, "repeats_b": repeats})


def design_of(
    effect: float,
    *,
    discordant: float | None = None,
    score: float | None = None,
    correlation: float | None = None,
    variance: float | None = None,
    within_a: float = 0.0,
    within_b: float = 0.0,
    repeats_a: int = 1,
    repeats_b: int = 1,
    cluster_size: float = 1.0,
    cluster_cv: float = 0.0,
    icc: float = 0.0,
) -> tuple[PairedDesign, float | None]:
    """Make a design, and the share of discordant items where it is of right or wrong answers, from what is known.

    Parameters
    ----------
    effect
        The true difference.
    discordant
        The share of items that only one of the models gets right.
    score, correlation
        Instead: A's score, and the correlation of the two models' right answers over items.
    variance, within_a, within_b, repeats_a, repeats_b
        Instead: the variance over items of the true difference, the mean variances of one answer, and answers for each
        item.
    cluster_size, cluster_cv, icc
        Of items that share a source: mean size, spread of sizes by their mean, and intraclass correlation.

    Raises
    ------
    SpecError
        Not exactly one way is taken, or numbers contradict each other.
    """
    if sum(one is not None for one in (discordant, score, variance)) != 1 or (score is None) != (correlation is None):
        raise SpecError(
            "how much the items vary is not said, or in several ways",
            where="--discordant, --score with --correlation, --variance, --pilot",
            do="Give one of them",
        )
    if score is not None and correlation is not None:
        other = score + effect
        if not (0 < score < 1 and 0 < other < 1 and -1 <= correlation <= 1):
            raise SpecError(
                f"scores of {score:g} and {other:g} with a correlation of {correlation:g} cannot be",
                where="--score, --correlation",
                do="Give a score and a correlation such as 0.7 and 0.5",
            )
        both = score * other + correlation * np.sqrt(score * (1 - score) * other * (1 - other))
        discordant = float(score + other - 2 * both)
        if not max(0.0, score + other - 1) <= both <= min(score, other):
            raise SpecError(
                f"scores of {score:g} and {other:g} cannot correlate by {correlation:g}",
                where="--correlation",
                do="Give one nearer to zero",
            )
    if discordant is not None:
        if not abs(effect) <= discordant <= 1:
            raise SpecError(
                f"a difference of {effect:g} needs at least as many discordant items, not {discordant:g}",
                where="--discordant",
                do="Give the share of items that only one of the models gets right",
            )
        variance = discordant - effect**2
    design = PairedDesign(
        between=variance or 0.0,
        within_a=within_a,
        within_b=within_b,
        repeats_a=repeats_a,
        repeats_b=repeats_b,
        cluster_size=cluster_size,
        cluster_size_cv=cluster_cv,
        intraclass_correlation=icc,
    )
    plain = within_a == within_b == 0 and cluster_size == 1
    return design, discordant if plain else None


def pilot_designs(run_a: Path, run_b: Path, metric: str | None = None) -> list[tuple[str, PairedDesign, list[str]]]:
    """Estimate a design from two runs, for each task that both scored: (task, design, warnings).

    Raises
    ------
    CompareError
        They are no runs, or share no task with scores.
    """
    a, b = load_run(run_a), load_run(run_b)
    found, why = [], []
    for task in [one for one in a.tasks if one in b.tasks]:
        joined = join(a, b, task, metric)
        if isinstance(joined, str):
            why.append(f"{task}: {joined}")
            continue
        scores = [one.reshape(len(one), -1) for one in joined.grids]
        whole = ~(np.isnan(scores[0]).any(axis=1) | np.isnan(scores[1]).any(axis=1))
        cluster = joined.clusters()
        kept = None if cluster is None else [cluster[place] for place in np.flatnonzero(whole)]
        try:
            design = design_from_scores(scores[0][whole], scores[1][whole], cluster=kept)
        except InputError as error:
            why.append(f"{task}: {error.what}")
            continue
        n = int(whole.sum())
        warnings = [f"the variances are from {n} items of a pilot, whose seeds count as answers"]
        if n < 2 * FEW_UNITS:
            warnings[0] += "; they are few, and the numbers are rough"
        if not whole.all():
            warnings.append(f"{int((~whole).sum())} items lack an answer and were left out")
        found.append((task, design, warnings))
    if not found:
        raise CompareError(
            f"no task of the pilot can be used ({'; '.join(why) or 'they share none'})",
            where=f"{run_a}, {run_b}",
            do="Give two runs of the same items with scores",
        )
    return found


def render_power(answers: Sequence[PowerAnswer], console: Any) -> None:
    """Print the plans as a table each, and as sentences, on a rich console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for one in answers:
        table = Table(title=Text(safe(one.name)) if one.name else None, title_justify="left", box=SIMPLE_HEAD,
                      pad_edge=False)  # fmt: skip
        exact = bool(one.mcnemar)
        for column in ("items", "units", "SE", "power", *["by McNemar"] * exact, "type M", "type S", "smallest found"):
            table.add_column(column, justify="right")
        for place, row in enumerate((one.needed, *one.given)):
            mcnemar = f"{one.mcnemar[place - 1].power:.3f}" if exact and place else ""
            cells = (f"{row.n_items:,}", f"{row.n_units:,}", f"{row.standard_error:.4f}", f"{row.errors.power:.3f}",
                     *[mcnemar] * exact, f"{row.errors.type_m:.2f}", f"{row.errors.type_s:.2g}",
                     f"{row.smallest_detectable:.4f}")  # fmt: skip
            table.add_row(*cells)
        console.print(table)
        console.print(one.explain(), markup=False)
        if one.repeats:
            shown = ", ".join(f"{n:,} with {k}" for k, n in one.repeats)
            console.print(f"Items needed by answers to each: {shown}.", markup=False)
        notes = dict.fromkeys([*one.warnings, *(text for plan in (one.needed, *one.given) for text in plan.warnings)])
        for note in notes:
            console.print(f"note: {safe(note)}", markup=False)


def write_power_figure(answers: Sequence[PowerAnswer], path: Path) -> None:
    """Draw power over the number of items, a panel for each plan; with repeats, a line for each number of them.

    Raises
    ------
    SpecError
        The path ends in neither .svg nor .png.
    """
    check_figure_path(path)
    write_panels(path, [partial(_draw, one=one) for one in answers])


def _draw(axes: Axes, one: PowerAnswer) -> None:
    design, needed = one.needed.design, one.needed
    largest = max([2 * needed.n_items, *(plan.n_items for plan in one.given)])
    least = max(2, int(np.ceil(2 * design.cluster_size)))
    n_items = np.unique(np.linspace(least, max(largest, least + 1), 80).astype(int))
    several = [(k, _with_repeats(design, k)) for k in REPEATS] if one.repeats else [(design.repeats_a, design)]
    for (repeats, chosen), (colour, _) in zip(several, LOOKS, strict=False):
        powers = [_plan(int(n), needed.effect, chosen, needed.target_power, needed.alpha).errors.power for n in n_items]
        label = f"{repeats} answer{'s' if repeats > 1 else ''} per item"
        axes.plot(n_items, powers, color=colour, linewidth=1.6, label=label)
    axes.axhline(needed.target_power, color="#767676", linewidth=0.8, linestyle=":")
    axes.plot([needed.n_items], [needed.errors.power], marker="D", color="black", markersize=5)
    for plan_ in one.given:
        axes.plot([plan_.n_items], [plan_.errors.power], marker="o", color="black", markerfacecolor="white")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("items")
    axes.set_ylabel(f"power for a difference of {100 * needed.effect:g} points")
    axes.set_title(safe(one.name), loc="left", fontsize=9)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if one.repeats:
        axes.legend(frameon=False, fontsize=8)
