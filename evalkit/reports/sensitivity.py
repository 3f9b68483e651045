"""What could overturn a comparison: leaked items that were found, leaks that were not, and items that were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np

from evalkit.reports.comparison import BETTER, WORSE, Comparison, ItemPair
from evalkit.reports.differences import Floats, turned_tasks
from evalkit.stats.macro import macro_mean, macro_of_shared_items
from evalkit.stats.paired import paired_difference
from evalkit.stats.results import Estimate, Result
from evalkit.stats.split import score_split

EXPLAINED: Final = "the gain is explained by contamination"
PARTLY: Final = "the gain is partly explained by contamination"
LOSS_EXPLAINED: Final = "the loss is explained by contamination"
LOSS_PARTLY: Final = "the loss is partly explained by contamination"
UNCONFIRMED: Final = "the difference is not confirmed on clean items"
HOLDS: Final = "the verdict holds on clean items"
CHANGES: Final = "the verdict is another one on clean items"
NOT_COMPARABLE: Final = (
    "the verdicts cannot be compared: without the tasks that have no clean item, and the items that the audit lacks, "
    "that on all items is gone already"
)
NO_FLAGGED: Final = "no compared item is flagged"
NO_CLEAN: Final = "no compared item is clean"

MOST_LEFT: Final = 1 / 3
"""Of the difference on all items: with more of it left on the clean ones, contamination explains only a part."""

_SCANNED: Final = 300
"""Leaks that are tried one by one; beyond that the number is found by bisection."""


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
    whole, left
        The difference on all audited items of the tasks that have clean ones, and on their clean items; None where
        there is no verdict of better or worse on all items, or no clean item.
    """

    finding: str
    interaction: Estimate | None
    n_tasks: int
    whole: float | None = None
    left: float | None = None

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
        A number of items that take the verdict away when they are left out as leaked, those first that speak for it
        most. Fewer may do, if they are others: it is an upper bound.
    n_favourable
        Items that speak for the verdict.
    """

    subset: str
    verdict: str
    n_items: int
    n_leaked: int
    n_favourable: int

    def __str__(self) -> str:
        kind = "compared" if self.subset == "all" else self.subset
        gone = (
            f"if the {kind} item that speaks most for it was left out"
            if self.n_leaked == 1
            else f"if the {self.n_leaked:,} {kind} items that speak most for it were left out"
        )
        return f"{gone} (of {self.n_favourable:,} that do), B would no longer be clearly {self.verdict}"


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

    The gain (or loss) is explained by contamination if B is better (or worse) on all items, not so on the clean ones,
    the difference is surely larger, in that direction, on the flagged items than on the clean ones, and of the
    difference at most `MOST_LEFT` is left on the clean ones; partly, if more is left. The clean items are compared with
    all audited items of the tasks that have clean ones: where those give another verdict than all items, the clean
    ones say nothing about contamination. The interaction of a task is the mean difference of its flagged less that of
    its clean items, with an interval over independent units (`stats.split.score_split`); several tasks are averaged.
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
                cluster=sources(of),
                is_binary=False,
                confidence_level=everything.difference.confidence_level,
            )
            if split.difference is not None and split.difference.low is not None:
                found.append(replace(split.difference, quantity="the difference B - A on flagged less on clean items"))
    interaction = None
    if found:
        interaction = found[0] if len(found) == 1 else macro_mean(found).this_suite
    whole = _on_audited(comparison) if clean is not None and everything.verdict in (BETTER, WORSE) else None
    finding = _finding(comparison, interaction, whole)
    if clean is None or whole is None:
        return Contamination(finding, interaction, len(found))
    return Contamination(finding, interaction, len(found), whole.estimate, clean.difference.estimate)


def _finding(comparison: Comparison, interaction: Estimate | None, whole: Estimate | None) -> str:
    everything, clean = comparison.overall["all"], comparison.overall.get("clean")
    if clean is None or "flagged" not in comparison.overall:
        return NO_CLEAN if clean is None else NO_FLAGGED
    if clean.verdict == everything.verdict or whole is None:
        return HOLDS if clean.verdict == everything.verdict else CHANGES
    # Tasks that are better when lower are turned only where some are not: then the overall difference is, too.
    sign = float(np.sign(everything.difference.estimate))
    if not _is_clear(whole, sign):
        return NOT_COMPARABLE
    if interaction is None or not _is_clear(interaction, sign):
        return UNCONFIRMED
    fully, partly = (EXPLAINED, PARTLY) if everything.verdict == BETTER else (LOSS_EXPLAINED, LOSS_PARTLY)
    return fully if clean.difference.estimate / whole.estimate <= MOST_LEFT else partly


def _on_audited(comparison: Comparison) -> Estimate | None:
    """The difference on all audited items of the tasks that have clean ones."""
    tasks = {
        task: ([item for item in items if item.status != "not audited"], turn)
        for task, (items, turn) in _by_task(comparison).items()
        if any(item.status == "clean" for item in items)
    }
    if len(tasks) == len(comparison.tasks) and sum(len(of) for of, _ in tasks.values()) == len(comparison.items):
        return comparison.overall["all"].difference
    return _difference_without(tasks, 1.0, comparison)({})


def _is_clear(one: Estimate, sign: float) -> bool:
    """Whether the interval leaves out zero, on the side of `sign`."""
    return one.low is not None and one.high is not None and (one.low if sign > 0 else -one.high) > 0


def tipping_point(comparison: Comparison) -> TippingPoint | None:
    """Count undetected leaks that would take a verdict of better or worse away; None for other verdicts.

    Leaked items are taken out, those first whose difference counts most for the verdict; the first number at which the
    interval no longer leaves out zero is taken. The interval is the verdict's: `stats.paired.paired_difference`, of
    several tasks their mean with the same weight each, `macro_of_shared_items` where they share items.
    """
    subset = "clean" if "clean" in comparison.overall else "all"
    result = comparison.overall[subset]
    if result.verdict not in (BETTER, WORSE) or not comparison.items:
        return None
    sign = float(np.sign(result.difference.estimate))
    tasks = {}
    for task, (items, turn) in _by_task(comparison).items():
        if of := [item for item in items if subset in ("all", item.status)]:
            tasks[task] = (sorted(of, key=lambda item: -sign * turn * (item.score_b - item.score_a)), turn)
    counts = [
        (sign * difference / len(items), task)
        for task, (items, turn) in tasks.items()
        for difference in _differences(items, turn).tolist()
    ]
    favourable = [task for weight, task in sorted(counts, key=lambda one: -one[0]) if weight > 0]
    without = _difference_without(tasks, sign, comparison)

    def holds(k: int) -> bool:
        left = without(Counter(favourable[:k]))
        return left is not None and _is_clear(left, 1.0)

    high = len(favourable)
    low = next((k for k in range(min(high, _SCANNED)) if not holds(k)), None)
    if low is None:
        low = min(high, _SCANNED)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if holds(middle) else (low, middle)
    return TippingPoint(subset, result.verdict, result.n_items, low, len(favourable))


def _difference_without(
    tasks: Mapping[str, tuple[Sequence[ItemPair], float]], sign: float, comparison: Comparison
) -> Callable[[Mapping[str, int]], Estimate | None]:
    """Return what gives the difference times `sign` when so many first items of each task are left out."""
    level = comparison.decision_rule.confidence_level
    items_of_all = [item for items, _ in tasks.values() for item in items]
    shared = len(tasks) > 1 and len({item.doc_hash for item in items_of_all}) < len(items_of_all)

    @cache
    def of_task(task: str, gone: int) -> Estimate:
        items, turn = tasks[task]
        sides = [item.score_a for item in items[gone:]], [item.score_b for item in items[gone:]]
        first, second = sides if sign * turn > 0 else sides[::-1]
        # A mean over tasks takes their errors only; to widen the intervals of graded scores by resampling is in vain.
        graded = len(tasks) > 1 and not {*first, *second} <= {0.0, 1.0}
        return paired_difference(
            first,
            second,
            cluster=sources(items[gone:]),
            confidence_level=level,
            method="t" if graded else "auto",
        )

    def of_shared_items(left: Mapping[str, tuple[Sequence[ItemPair], float]]) -> Estimate:
        unique = {item.doc_hash: item for items, _ in left.values() for item in items}
        row = {doc_hash: number for number, doc_hash in enumerate(unique)}
        values = np.full((len(unique), len(left)), np.nan)
        for column, (items, turn) in enumerate(left.values()):
            values[[row[item.doc_hash] for item in items], column] = _differences(items, sign * turn)
        labels = sources(list(unique.values())) or list(unique)
        return macro_of_shared_items(values, cluster=labels, confidence_level=level).this_suite

    def whole(gone: Mapping[str, int]) -> Estimate | None:
        left = [task for task, (items, _) in tasks.items() if len(items) > gone.get(task, 0)]
        if shared and left and min(len(tasks[task][0]) - gone.get(task, 0) for task in left) > 1:
            return of_shared_items({task: (tasks[task][0][gone.get(task, 0) :], tasks[task][1]) for task in left})
        found = [of_task(task, gone.get(task, 0)) for task in left]
        return None if not found else found[0] if len(found) == 1 else macro_mean(found).this_suite

    return whole


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


def sources(items: Sequence[ItemPair]) -> list[str] | None:
    """The source of each item; one without stands for itself. None when all do."""
    if all(item.cluster is None for item in items):
        return None
    return [item.doc_hash if item.cluster is None else item.cluster for item in items]
