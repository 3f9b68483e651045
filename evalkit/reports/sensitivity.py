"""What could overturn a comparison: leaked items that were found, leaks that were not, and items that were dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from evalkit.reports.comparison import BETTER, WORSE, Comparison, ItemPair
from evalkit.reports.differences import Floats, turned_tasks
from evalkit.stats.macro import macro_mean
from evalkit.stats.paired import paired_difference
from evalkit.stats.results import Estimate, Result
from evalkit.stats.split import score_split

EXPLAINED: Final = "the gain is explained by contamination"
UNCONFIRMED: Final = "the difference is not confirmed on clean items"
HOLDS: Final = "the verdict holds on clean items"
CHANGES: Final = "the verdict is another one on clean items"
NO_FLAGGED: Final = "no compared item is flagged"
NO_CLEAN: Final = "no compared item is clean"


@dataclass(frozen=True)
class Contamination(Result):
    """What the flagged items do to the difference.

    Attributes
    ----------
    finding
        In words, from a closed set.
    interaction
        The difference on flagged items less that on clean ones, each task with the same weight; None where no task has
        enough of both.
    n_tasks
        Tasks that it is over.
    """

    finding: str
    interaction: Estimate | None
    n_tasks: int

    def __str__(self) -> str:
        return self.finding


@dataclass(frozen=True)
class TippingPoint(Result):
    """How many undetected leaks would take a verdict away.

    Attributes
    ----------
    subset
        The items that the verdict is about: clean where there was an audit, else all.
    verdict
        Better or worse.
    n_items
        Items of the subset.
    n_leaked
        The smallest number of items that take the verdict away when they are left out as leaked, those first that
        speak for it most.
    n_favourable
        Items that speak for the verdict.
    """

    subset: str
    verdict: str
    n_items: int
    n_leaked: int
    n_favourable: int

    def __str__(self) -> str:
        return (
            f"the verdict '{self.verdict}' would be gone if {self.n_leaked:,} of the {self.n_favourable:,} "
            f"{self.subset if self.subset != 'all' else 'compared'} items that speak for it were leaked"
        )


@dataclass(frozen=True)
class WorstCase(Result):
    """The mean difference if every item that was left out had the scores that lower, or raise, it most."""

    task: str
    n_items: int
    n_missing: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.task}: {self.low:+.4f} to {self.high:+.4f} with {self.n_missing} items that were left out"


def contamination(comparison: Comparison) -> Contamination | None:
    """Say what the flagged items do to the difference; None without an audit.

    The gain is explained by contamination if B is better (or worse) on all items, not so on the clean ones, and the
    difference is surely larger, in that direction, on the flagged items than on the clean ones. The interaction of a
    task is the mean difference of its flagged less that of its clean items, with an interval over independent units
    (`stats.split.score_split`); several tasks are averaged.
    """
    if comparison.rule is None:
        return None
    everything, clean = comparison.overall["all"], comparison.overall.get("clean")
    found = []
    for items, turn in _by_task(comparison).values():
        of = [item for item in items if item.status != "not audited"]
        flagged = [item.status == "flagged" for item in of]
        if 1 < sum(flagged) < len(of) - 1:
            split = score_split(
                _differences(of, turn),
                flagged,
                cluster=_clusters(of),
                is_binary=False,
                confidence_level=everything.difference.confidence_level,
            )
            if split.difference is not None and split.difference.low is not None:
                found.append(replace(split.difference, quantity="the difference B - A on flagged less on clean items"))
    interaction = None
    if found:
        interaction = found[0] if len(found) == 1 else macro_mean(found).this_suite
    finding = _finding(comparison, interaction)
    if clean is None:
        finding = NO_CLEAN
    elif "flagged" not in comparison.overall:
        finding = NO_FLAGGED
    return Contamination(finding, interaction, len(found))


def _finding(comparison: Comparison, interaction: Estimate | None) -> str:
    everything, clean = comparison.overall["all"], comparison.overall.get("clean")
    if clean is None or clean.verdict == everything.verdict:
        return HOLDS
    if everything.verdict not in (BETTER, WORSE):
        return CHANGES
    sign = np.sign(everything.difference.estimate)
    if interaction is not None and interaction.low is not None and interaction.high is not None:
        nearer = interaction.low if sign > 0 else -interaction.high
        # Tasks that are better when lower are turned only where some are not: then the overall difference is, too.
        if nearer > 0:
            return EXPLAINED
    return UNCONFIRMED


def tipping_point(comparison: Comparison) -> TippingPoint | None:
    """Count the undetected leaks that would take a verdict of better or worse away; None for other verdicts.

    Leaked items are taken out, those first whose difference counts most for the verdict. The verdict is by the interval
    of `stats.paired.paired_difference`, of several tasks by their mean with the same weight each.
    """
    subset = "clean" if "clean" in comparison.overall else "all"
    result = comparison.overall[subset]
    if result.verdict not in (BETTER, WORSE) or not comparison.items:
        return None
    tasks = {
        task: ([item for item in items if subset in ("all", item.status)], turn)
        for task, (items, turn) in _by_task(comparison).items()
    }
    tasks = {task: one for task, one in tasks.items() if one[0]}
    sign = float(np.sign(result.difference.estimate))
    weights = [
        (sign * difference / len(items), name, place)
        for name, (items, turn) in tasks.items()
        for place, difference in enumerate(_differences(items, turn))
    ]
    favourable = sorted((one for one in weights if one[0] > 0), key=lambda one: -one[0])

    def holds(k: int) -> bool:
        gone: dict[str, set[int]] = {}
        for _, name, place in favourable[:k]:
            gone.setdefault(name, set()).add(place)
        kept = {
            name: ([item for place, item in enumerate(items) if place not in gone.get(name, ())], turn)
            for name, (items, turn) in tasks.items()
        }
        return _is_clear({name: one for name, one in kept.items() if one[0]}, sign, comparison)

    low, high = 0, len(favourable)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if holds(middle) else (low, middle)
    return TippingPoint(subset, result.verdict, result.n_items, low, len(favourable))


def _is_clear(tasks: Mapping[str, tuple[Sequence[ItemPair], float]], sign: float, comparison: Comparison) -> bool:
    found = []
    for items, turn in tasks.values():
        sides = [item.score_a for item in items], [item.score_b for item in items]
        first, second = sides if sign * turn > 0 else sides[::-1]
        # A mean over tasks takes their errors only; to widen the intervals of graded scores by resampling is in vain.
        graded = len(tasks) > 1 and not {*first, *second} <= {0.0, 1.0}
        found.append(
            paired_difference(
                first,
                second,
                cluster=_clusters(items),
                confidence_level=comparison.decision_rule.confidence_level,
                method="t" if graded else "auto",
            )
        )
    if not found:
        return False
    whole = found[0] if len(found) == 1 else macro_mean(found).this_suite
    return whole.low is not None and whole.low > 0


def worst_cases(comparison: Comparison) -> list[WorstCase]:
    """Return what items that were left out could do to each task's difference, for scores from 0 to 1."""
    return [
        WorstCase(
            task=task.task,
            n_items=(result := task.subsets["all"]).n_items,
            n_missing=task.n_missing,
            low=(result.n_items * result.difference.estimate + task.missing_low) / (result.n_items + task.n_missing),
            high=(result.n_items * result.difference.estimate + task.missing_high) / (result.n_items + task.n_missing),
        )
        for task in comparison.tasks
        if task.n_missing
    ]


def _by_task(comparison: Comparison) -> dict[str, tuple[list[ItemPair], float]]:
    """The items of each task, and 1, or -1 where its differences count with the opposite sign."""
    turned = set(turned_tasks(comparison.tasks))
    found: dict[str, tuple[list[ItemPair], float]] = {
        task.task: ([], -1.0 if task.task in turned else 1.0) for task in comparison.tasks
    }
    for item in comparison.items:
        found[item.task][0].append(item)
    return found


def _differences(items: Sequence[ItemPair], turn: float = 1.0) -> Floats:
    return turn * np.array([item.score_b - item.score_a for item in items])


def _clusters(items: Sequence[ItemPair]) -> list[str] | None:
    """The source of each item; one without stands for itself. None when all do."""
    if all(item.cluster is None for item in items):
        return None
    return [item.doc_hash if item.cluster is None else item.cluster for item in items]
