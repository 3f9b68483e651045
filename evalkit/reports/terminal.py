"""The comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalkit.reports.comparison import OVERALL, Comparison, p_text, points
from evalkit.reports.differences import SubsetResult
from evalkit.stats.results import Estimate
from evalkit.terminal import safe


def render(comparison: Comparison, console: Any) -> None:
    """Print the table, the verdict in plain sentences, and what was left out, on a rich console."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for name in ("task", "items"):
        table.add_column(name)
    several = len(comparison.tasks) > 1
    p = ("p", "p (Holm)") if several else ("p",)
    for name in ("n", "A", "B", "B \u2212 A (points)", *p, "B is"):
        table.add_column(name, justify="right")
    previous = ""
    for name, result in comparison.results():
        if name != previous and name == OVERALL:
            table.add_section()
        table.add_row(escape(_safe(name)) if name != previous else "", *map(escape, _cells(result, several=several)))
        previous = name
    console.print(_safe(f"A = {comparison.name_a}   B = {comparison.name_b}"), markup=False)
    for run, findings in comparison.suspects().items():
        console.print(Text(_safe(f"suspect: run {run}: its scores may be those of its set-up"), style="bold red"))
        for finding in findings:
            console.print(Text(_safe(f"  {finding}"), style="red"))
    console.print(table)
    console.print(_safe(comparison.headline()), markup=False)
    if comparison.slices is not None:
        console.print(_slices_table(comparison))
    for about, sentences in comparison.explanations():
        console.print(f"\n{about}: {_safe(sentences)}", markup=False)
    for note in notes(comparison):
        console.print(f"note: {_safe(note)}", markup=False)


def _safe(text: str) -> str:
    """Foreign text on one line, nothing in it obeyed."""
    return safe(text).replace("\n", " ")


def _slices_table(comparison: Comparison) -> Any:
    """The difference on each slice, by itself and drawn to all slices."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    assert comparison.slices is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(_safe(comparison.slices_by or ""))
    for name in ("n", "B \u2212 A (points)", "p", "q", "drawn to all slices"):
        table.add_column(name, justify="right")
    for one in comparison.slices.slices:
        cells = (
            _safe(one.name),
            f"{one.estimate.n_items:,}",
            _points(one.estimate),
            *("" if p is None else p_text(p) for p in (one.p_value, one.adjusted)),
            "" if one.shrunken is None else _points(one.shrunken),
        )
        table.add_row(*map(Text, cells))
    return table


def notes(comparison: Comparison) -> list[str]:
    """What to know beside the numbers: warnings, dropped items, and what the clean items are not."""
    found = list(comparison.warnings)
    for task in comparison.tasks:
        left_out = {
            "only in A": task.n_only_a,
            "only in B": task.n_only_b,
            "answers without a score": task.n_unscored,
            "answers whose seed and repeat the other run has not scored": task.n_unpaired,
        }
        if any(left_out.values()):
            counts = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
            found.append(f"{task.task}: not compared: {counts}")
        subsets_of: dict[str, list[str]] = {}
        for subset, result in task.subsets.items():
            for warning in (*result.difference.warnings, *(result.test.warnings if result.test else ())):
                subsets_of.setdefault(warning, []).append(subset)
        found.extend(f"{_where(task.task, subsets)}: {warning}" for warning, subsets in subsets_of.items())
    for subset, result in comparison.overall.items():
        if len(comparison.tasks) > 1 and result.difference.low is None:
            of_tasks = {task.task: task.subsets[subset] for task in comparison.tasks if subset in task.subsets}
            without = [name for name, one in of_tasks.items() if one.difference.low is None]
            found.append(f"{_where(OVERALL, [subset])}: no interval, because there is none for {', '.join(without)}")
        of_seeds = task.noise.warnings if task.noise and task.noise.n_seeds_a > 1 else ()
        found.extend(f"{task.task}, seeds: {warning}" for warning in of_seeds)
    if comparison.slices is not None:
        left = ", ".join(f"{name} ({n})" for name, n in comparison.slices.left_out.items())
        found += [f"slices with too few items are not estimated: {left}"] if left else []
    if comparison.rule:
        found.append(f"clean items (rule {comparison.rule}) are not a random sample of all items: the question changes")
    return found


def _where(name: str, subsets: Sequence[str]) -> str:
    """Name a task, and which of its items are meant unless it is all."""
    return name if list(subsets) == ["all"] else f"{name}, {', '.join(subsets)} items"


def _cells(result: SubsetResult, *, several: bool) -> tuple[str, ...]:
    adjusted = "" if result.p_adjusted is None else p_text(result.p_adjusted)
    return (
        result.subset,
        f"{result.n_items:,}",
        *("" if score is None else f"{100 * score:.1f}" for score in (result.score_a, result.score_b)),
        _points(result.decision.estimate),
        p_text(result.test.p_value) if result.test else "",
        *([adjusted] if several else []),
        result.verdict,
    )


def _points(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{points(estimate.estimate)} no interval"
    return f"{points(estimate.estimate)} [{points(estimate.low)}, {points(estimate.high)}]"
