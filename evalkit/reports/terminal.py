"""The comparison as a table for the terminal."""

from __future__ import annotations

from typing import Any

from evalkit.reports.comparison import OVERALL, Comparison, SubsetResult, p_text, points


def render(comparison: Comparison, console: Any) -> None:
    """Print the table, the verdict in plain sentences, and what was left out, on a rich console."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for name in ("task", "items"):
        table.add_column(name)
    for name in ("n", "A", "B", "B \u2212 A (points)", "p", "B is"):
        table.add_column(name, justify="right")
    previous = ""
    for name, result in comparison.results():
        if name != previous and name == OVERALL:
            table.add_section()
        table.add_row(escape(name) if name != previous else "", *map(escape, _cells(result)))
        previous = name
    console.print(f"A = {comparison.name_a}   B = {comparison.name_b}", markup=False)
    console.print(table)
    console.print(comparison.headline(), markup=False)
    for note in notes(comparison):
        console.print(f"note: {note}", markup=False)


def notes(comparison: Comparison) -> list[str]:
    """What to know beside the numbers: warnings, dropped items, and what the clean items are not."""
    found = list(comparison.warnings)
    for task in comparison.tasks:
        left_out = {
            "only in A": task.n_only_a,
            "only in B": task.n_only_b,
            "answers without a score": task.n_unscored,
        }
        if any(left_out.values()):
            counts = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
            found.append(f"{task.task}: not compared: {counts}")
        everything = task.subsets["all"]
        of_test = everything.test.warnings if everything.test else ()
        found.extend(f"{task.task}: {warning}" for warning in (*everything.difference.warnings, *of_test))
    if comparison.rule:
        found.append(f"clean items (rule {comparison.rule}) are not a random sample of all items: the question changes")
    return found


def _cells(result: SubsetResult) -> tuple[str, ...]:
    difference = result.difference
    interval = (
        "no interval"
        if difference.low is None or difference.high is None
        else f"[{points(difference.low)}, {points(difference.high)}]"
    )
    return (
        result.subset,
        f"{result.n_items:,}",
        f"{100 * result.score_a:.1f}",
        f"{100 * result.score_b:.1f}",
        f"{points(difference.estimate)} {interval}",
        p_text(result.test.p_value) if result.test else "",
        result.verdict,
    )
