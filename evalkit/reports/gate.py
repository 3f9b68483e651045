"""Holds a comparison against rules such as 'not worse by 1pp on gsm8k', for CI: met, broken, or not shown."""

from __future__ import annotations

import fnmatch
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from evalkit.errors import CompareError, SpecError
from evalkit.files import atomic_path
from evalkit.reports.comparison import OVERALL, Comparison, points
from evalkit.reports.differences import Subset, SubsetResult, TaskComparison, turned_tasks
from evalkit.reports.document import Table, markdown_text
from evalkit.reports.page import one_line
from evalkit.reports.terminal import notes
from evalkit.stats.decisions import at_level
from evalkit.stats.margins import parse_margin
from evalkit.stats.paired import paired_difference
from evalkit.stats.results import Estimate, Result

Kind = Literal["not worse", "better", "equivalent"]
Outcome = Literal["met", "broken", "not shown"]

_KINDS: Final[tuple[Kind, ...]] = ("not worse", "better", "equivalent")
EXIT_CODES: Final = {"met": 0, "broken": 1, "not shown": 3}

_MARGIN: Final = r" (?P<margin>\S+(?: pp| points?)?)"
_RULE: Final = re.compile(
    rf"(?P<kind>better|(?:better by|not worse by|equivalent within){_MARGIN})(?: on (?P<clean>clean )?(?P<task>\S+))?"
)


@dataclass(frozen=True)
class Rule(Result):
    """One rule.

    Attributes
    ----------
    text
        As it was written.
    kind
        not worse, better or equivalent.
    margin
        In proportions: how much worse is still allowed, how much better it must be, or within what it must lie.
    task
        A name, a glob, or `overall`.
    subset
        all or clean items.
    """

    text: str
    kind: Kind
    margin: float
    task: str
    subset: Subset


@dataclass(frozen=True)
class Check(Result):
    """A rule on one task: what came out, and by which interval.

    Attributes
    ----------
    low, high, level
        The interval of the compared items.
    n_missing
        Items that are not compared, because a run has no score for them.
    worst_low, worst_high
        The interval widened by all that those items, and lost answers of others, could change if scores lie between 0
        and 1; infinite where they do not. It decides, unless what was dropped is allowed.
    """

    rule: Rule
    task: str
    outcome: Outcome
    n_items: int
    difference: Estimate
    low: float
    high: float
    level: float
    n_missing: int = 0
    worst_low: float = -math.inf
    worst_high: float = math.inf

    def __str__(self) -> str:
        return f"{self.outcome}: {self.rule.text} ({self.task}: {self.shown})"

    @property
    def shown(self) -> str:
        """The difference with the interval that decides, and the margin as it was read."""
        interval = f"{100 * self.level:.4g}% interval {points(self.low)} to {points(self.high)}"
        if (self.low, self.high) != (self.worst_low, self.worst_high):
            worst = f"{points(self.worst_low)} to {points(self.worst_high)}"
            interval += f" ({worst} with what was dropped, {self.n_missing:,} items, at its worst)"
        margin = f"margin {100 * self.rule.margin:.4g} points, " if self.rule.margin else ""
        return f"{points(self.difference.estimate)} points, {interval}, {margin}{self.n_items:,} items"


@dataclass(frozen=True)
class GateResult(Result):
    """All checks of B against A.

    Attributes
    ----------
    doubts
        What makes the runs themselves doubtful, or was not compared though a rule means it: with one, the rules
        together are not met.
    notes
        What else is to be known, such as items that were dropped.
    """

    name_a: str
    name_b: str
    checks: tuple[Check, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        """Broken if a check is, else not shown if one is not or there is a doubt, else met."""
        found = {check.outcome for check in self.checks}
        return "broken" if "broken" in found else "not shown" if "not shown" in found or self.doubts else "met"

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        return EXIT_CODES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the outcome."""
        return {**super().to_dict(), "outcome": self.outcome, "exit_code": self.exit_code}

    def table(self) -> Table:
        """One row for each check."""
        rows = tuple((check.rule.text, check.task, check.outcome, check.shown) for check in self.checks)
        return Table(("rule", "task", "outcome", "B − A"), tuple(tuple(map(one_line, row)) for row in rows), n_text=4)

    def to_markdown(self) -> str:
        """A summary for a pull request."""
        head = f"### evalkit gate: {self.outcome}\n\n{_markdown(self.name_b)} (B) against "
        head += f"{_markdown(self.name_a)} (A, the baseline)\n"
        doubts = "".join(f"\n> **In doubt:** {_markdown(one)}\n" for one in self.doubts)
        listed = "".join(f"\n- {_markdown(one)}" for one in self.notes)
        return f"{head}{doubts}\n{self.table().to_markdown()}\n{listed}\n"


def _markdown(text: str) -> str:
    return markdown_text(one_line(text))


def parse_rule(text: str) -> Rule:
    """Read a rule.

    `not worse by M [on [clean] TASK]`, `better [by M] [on ...]` or `equivalent within M [on ...]`, where M is such as
    `1pp`, `0.5 points` or the proportion `0.01`.

    Raises
    ------
    SpecError
        It is none.
    """
    found = _RULE.fullmatch(" ".join(text.split()))
    if found is None:
        raise SpecError(
            f"'{text}' is no rule",
            where="--rule",
            do="Write such as 'not worse by 1pp on gsm8k', 'better on clean mmlu*', 'better by 1pp' or 'equivalent "
            "within 0.5pp'; only 'better' goes without a margin",
        )
    kind: Kind = next(one for one in _KINDS if found["kind"].startswith(one))
    margin = parse_margin(found["margin"], where=f"--rule '{text}'", proportions=True) if found["margin"] else 0.0
    if found["task"] == "clean":
        return Rule(text, kind, margin, OVERALL, "clean")
    return Rule(text, kind, margin, found["task"] or OVERALL, "clean" if found["clean"] else "all")


def check_rules(
    comparison: Comparison,
    rules: Sequence[Rule],
    *,
    tasks: Sequence[str] = (),
    allow_suspect: bool = False,
    allow_dropped: bool = False,
) -> GateResult:
    """Hold a comparison against rules.

    With the confidence level 1 - alpha, *better by m* is met where the interval of that level lies above m; *not worse
    by m* where the interval of level 1 - 2 alpha lies above -m, and *equivalent within m* where it lies within m of
    zero (two one-sided tests at alpha). Broken is a rule where the same interval lies wholly on the other side. All
    rules together must hold, so their levels are not adjusted (an intersection-union test): all are met wrongly with
    probability alpha at most. That one of k checks is broken wrongly can have up to k times the probability of one.

    Parameters
    ----------
    tasks
        Of the baseline, beside those of its record: what a rule means of them must have been compared.
    allow_suspect
        Believe runs that their health check found suspect.
    allow_dropped
        Go by the items and tasks that both runs have scored, whatever the others might have been; a rule needs one.

    Raises
    ------
    CompareError
        A rule's task is in neither run, or it has no clean item.
    """
    compared = {task.task: task for task in comparison.tasks}
    left_out = [one for one in dict.fromkeys([*comparison.record_a.get("tasks", {}), *tasks]) if one not in compared]
    checks: list[Check] = []
    doubts: list[str] = []
    skipped: list[str] = []
    for rule in rules:
        names = [one for one in compared if rule.task == OVERALL or fnmatch.fnmatchcase(one, rule.task)]
        absent = [one for one in left_out if rule.task == OVERALL or fnmatch.fnmatchcase(one, rule.task)]
        if not names and not absent:
            raise CompareError(
                f"no task is called '{rule.task}'",
                where=f"--rule '{rule.text}'",
                do=f"Choose of {', '.join(compared)}, {OVERALL}",
            )
        # A rule of which nothing was compared is never met.
        (skipped if names else doubts).extend(f"{one} of A was not compared: '{rule.text}'" for one in absent)
        chosen = [(OVERALL, comparison.overall)] if rule.task == OVERALL else [(x, compared[x].subsets) for x in names]
        for name, subsets in chosen:
            if rule.subset not in subsets:
                raise CompareError(
                    f"{name} has no clean items in this comparison", where=f"--rule '{rule.text}'", do="Give --audit"
                )
            checks.append(_check(rule, name, subsets[rule.subset], comparison, allow_dropped=allow_dropped))
    said = [*notes(comparison), *([_HOW] if len(checks) > 1 else [])]
    found_suspect = comparison.suspects().items()
    suspects = [f"{run}: {one}" for run, findings in found_suspect for one in findings or ["it is marked as suspect"]]
    for found, is_allowed in ((suspects, allow_suspect), (skipped, allow_dropped)):
        if is_allowed:
            said += [f"allowed: {one}" for one in found]
        else:
            doubts += found
    return GateResult(comparison.name_a, comparison.name_b, tuple(checks), tuple(doubts), tuple(said))


_HOW: Final = (
    "each rule has its own interval, not adjusted for the number of checks, because all must hold at once (those of "
    "`evalkit compare` hold for all tasks at once and are wider); that one of k checks is broken by chance can have up "
    "to k times the error of one"
)


def _check(rule: Rule, name: str, result: SubsetResult, comparison: Comparison, *, allow_dropped: bool) -> Check:
    level = comparison.decision_rule.confidence_level
    if rule.kind != "better":
        level = 1 - 2 * (1 - level)
    parts = [one for one in comparison.tasks if name in (one.task, OVERALL) and rule.subset in one.subsets]
    turned = set(turned_tasks(comparison.tasks)) if name == OVERALL else set()
    low, high = _ends(comparison, [one.task for one in parts], result, level, is_turned=parts[0].task in turned)
    worst_low, worst_high = low, high
    if not allow_dropped:
        for part in parts:
            down, up = _dropped(comparison, part, rule.subset)
            down, up = (-up, -down) if part.task in turned else (down, up)
            worst_low, worst_high = worst_low + down / len(parts), worst_high + up / len(parts)
    better = (worst_low, worst_high) if result.decision.rule.higher_is_better else (-worst_high, -worst_low)
    outcome = _outcome(rule, *better)
    n_missing = sum(part.n_missing for part in parts)
    estimate, n_items = result.difference, result.n_items
    return Check(rule, name, outcome, n_items, estimate, low, high, level, n_missing, worst_low, worst_high)


def _outcome(rule: Rule, low: float, high: float) -> Outcome:
    """What an interval says of a rule, where up is better."""
    margin = rule.margin if rule.kind == "better" else -rule.margin
    if low > margin and (rule.kind != "equivalent" or high < rule.margin):
        return "met"
    return "broken" if high <= margin or (rule.kind == "equivalent" and low >= rule.margin) else "not shown"


def _ends(
    comparison: Comparison, tasks: Sequence[str], result: SubsetResult, level: float, *, is_turned: bool
) -> tuple[float, float]:
    """The interval at another level, by the method of the comparison; without one everything is possible."""
    difference = result.difference
    items = [one for one in comparison.items if one.task == tasks[0] and result.subset in ("all", one.status)]
    if difference.low is None or level == difference.confidence_level:
        found = difference
    elif len(tasks) == 1 and items:
        clustered = any(item.cluster is not None for item in items)
        a, b = [item.score_a for item in items], [item.score_b for item in items]
        found = paired_difference(
            *((b, a) if is_turned else (a, b)),
            cluster=[item.cluster or item.doc_hash for item in items] if clustered else None,
            confidence_level=level,
            method="auto",
        )
    else:
        found = at_level(difference, level)  # a mean over tasks, or of different items: a t interval
    return -math.inf if found.low is None else found.low, math.inf if found.high is None else found.high


def _dropped(comparison: Comparison, task: TaskComparison, subset: Subset) -> tuple[float, float]:
    """How far a task's difference could move down and up with the items and answers that are not in it."""
    result, n_answers = task.subsets[subset], 0.0
    if task.noise is not None:  # else an answer without a score is an item without one
        n_seeds = min(task.noise.n_seeds_a, task.noise.n_seeds_b)
        n_answers = (task.n_unscored + task.n_unpaired) / (n_seeds * task.noise.n_answers)
    if not task.n_missing and not n_answers:
        return 0.0, 0.0
    if not all(0 <= x <= 1 for one in comparison.items if one.task == task.task for x in (one.score_a, one.score_b)):
        return -math.inf, math.inf
    n, mean = task.n_missing, result.difference.estimate
    # Nobody knows which of the missing items are clean; with each at its worst, all of them is the worst.
    low, high = (task.missing_low, task.missing_high) if subset == "all" else (-n, n)
    down, up = ((end - n * mean) / (result.n_items + n) for end in (low, high))
    more = n_answers / result.n_items
    return min(down, 0.0) - more, max(up, 0.0) + more


def write_junit(result: GateResult, path: Path) -> None:
    """Write the checks as JUnit XML: a broken one is a failure; one that is not shown, and a doubt, an error."""
    n_failures, n_errors = (sum(one.outcome == name for one in result.checks) for name in ("broken", "not shown"))
    suite = ET.Element(
        "testsuite",
        name=one_line(f"evalkit gate: {result.name_b} against {result.name_a}"),
        tests=str(len(result.checks) + len(result.doubts)),
        failures=str(n_failures),
        errors=str(n_errors + len(result.doubts)),
    )
    for check in result.checks:
        case = ET.SubElement(suite, "testcase", classname=one_line(check.task), name=one_line(check.rule.text))
        if check.outcome != "met":
            kind = "failure" if check.outcome == "broken" else "error"
            said = one_line(f"{check.outcome}: {check.shown}")
            ET.SubElement(case, kind, message=said).text = one_line(str(check))
        ET.SubElement(case, "system-out").text = one_line(check.shown)
    for doubt in result.doubts:
        case = ET.SubElement(suite, "testcase", classname="the runs", name=one_line(doubt))
        ET.SubElement(case, "error", message=one_line(f"in doubt: {doubt}"))
    ET.SubElement(suite, "system-out").text = "\n".join(map(one_line, result.notes))
    with atomic_path(path) as temporary:
        ET.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)


def render_gate(result: GateResult, console: Any) -> None:
    """Print the checks on a rich console."""
    from rich.text import Text

    colours = {"met": "green", "broken": "bold red", "not shown": "yellow"}
    for one in result.doubts:
        console.print(Text(f"in doubt: {one_line(one)}", style="bold red"), soft_wrap=True)
    for check in result.checks:
        shown = one_line(f"{check.rule.text} [{check.task}]: {check.shown}")
        console.print(Text.assemble((f"{check.outcome:<10}", colours[check.outcome]), shown), soft_wrap=True)
    for one in result.notes:
        console.print(Text(f"note: {one_line(one)}"), soft_wrap=True)
    console.print(Text(f"gate: {result.outcome}", style=colours[result.outcome]))
