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
from evalkit.reports.differences import Subset, SubsetResult
from evalkit.reports.document import Table, markdown_text
from evalkit.reports.page import one_line
from evalkit.stats.decisions import at_level
from evalkit.stats.paired import paired_difference
from evalkit.stats.results import Estimate, Result

Kind = Literal["not worse", "better", "equivalent"]
Outcome = Literal["met", "broken", "not shown"]

EXIT_CODES: Final = {"met": 0, "broken": 1, "not shown": 3}

_RULE: Final = re.compile(
    r"(?P<kind>not worse|better|equivalent)(?: (?:by|within) (?P<margin>\S+?)(?P<unit> ?pp| ?points?)?)?"
    r"(?: on (?P<clean>clean )?(?P<task>\S+))?"
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
    """A rule on one task: what came out, and by which interval."""

    rule: Rule
    task: str
    outcome: Outcome
    n_items: int
    difference: Estimate
    low: float
    high: float
    level: float

    def __str__(self) -> str:
        return f"{self.outcome}: {self.rule.text} ({self.task}: {self.shown})"

    @property
    def shown(self) -> str:
        """The difference with the interval that decides."""
        interval = f"{100 * self.level:.4g}% interval {points(self.low)} to {points(self.high)}"
        return f"{points(self.difference.estimate)} points, {interval}, {self.n_items:,} items"


@dataclass(frozen=True)
class GateResult(Result):
    """All checks of B against A; `suspects` says what is wrong with the runs themselves."""

    name_a: str
    name_b: str
    checks: tuple[Check, ...]
    suspects: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        """Broken if a check is, else not shown if one is not, else met."""
        found = {check.outcome for check in self.checks}
        return "broken" if "broken" in found else "not shown" if "not shown" in found else "met"

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
        head = f"### evalkit gate: {self.outcome}\n\n{markdown_text(one_line(self.name_b))} (B) against "
        head += f"{markdown_text(one_line(self.name_a))} (A, the baseline)\n"
        alarms = "".join(f"\n> **Suspect:** {markdown_text(one_line(one))}\n" for one in self.suspects)
        return f"{head}{alarms}\n{self.table().to_markdown()}\n"


def parse_rule(text: str) -> Rule:
    """Read a rule.

    `not worse [by M] [on [clean] TASK]`, `better [by M] [on ...]` or `equivalent within M [on ...]`, where M is such as
    `1pp`, `0.5 points` or the proportion `0.01`.

    Raises
    ------
    SpecError
        It is none.
    """
    found = _RULE.fullmatch(" ".join(text.split()))
    advice = (
        "Write such as 'not worse by 1pp on gsm8k', 'better on clean mmlu*' or 'equivalent within 0.5pp on overall'"
    )
    if found is None:
        raise SpecError(f"'{text}' is no rule", where="--rule", do=advice)
    kind: Kind = found["kind"]  # type: ignore[assignment]
    margin = 0.0
    if found["margin"] is not None:
        try:
            margin = float(found["margin"]) / (100 if found["unit"] else 1)
        except ValueError:
            raise SpecError(f"'{found['margin']}' is no margin", where=f"--rule '{text}'", do=advice) from None
        if not 0 < margin < float("inf") or (not found["unit"] and margin >= 1):
            raise SpecError(
                f"a margin of {found['margin']} is not one", where=f"--rule '{text}'", do="Give such as 1pp or 0.01"
            )
    if kind == "equivalent" and not margin:
        raise SpecError("equivalence needs a margin", where=f"--rule '{text}'", do="Write 'equivalent within 1pp ...'")
    if found["task"] == "clean":
        return Rule(text, kind, margin, OVERALL, "clean")
    return Rule(text, kind, margin, found["task"] or OVERALL, "clean" if found["clean"] else "all")


def check_rules(comparison: Comparison, rules: Sequence[Rule]) -> GateResult:
    """Hold a comparison against rules.

    With the confidence level 1 - alpha, *better by m* is met where the interval of that level lies above m; *not worse
    by m* where the interval of level 1 - 2 alpha lies above -m, and *equivalent within m* where it lies within m of
    zero (two one-sided tests at alpha). Broken is a rule where the same interval lies wholly on the other side. All
    rules together must hold, so their levels are not adjusted (an intersection-union test).

    Raises
    ------
    CompareError
        A rule's task is not in the comparison, or it has no clean item.
    """
    named = [(task.task, task.higher_is_better, task.subsets) for task in comparison.tasks]
    checks = []
    for rule in rules:
        if rule.task == OVERALL:
            higher = comparison.overall["all"].decision.rule.higher_is_better
            chosen = [(OVERALL, higher, comparison.overall)]
        else:
            chosen = [one for one in named if fnmatch.fnmatchcase(one[0], rule.task)]
        if not chosen:
            raise CompareError(
                f"no task is called '{rule.task}'",
                where=f"--rule '{rule.text}'",
                do=f"Choose of {', '.join(one[0] for one in named)}, {OVERALL}",
            )
        for name, higher, subsets in chosen:
            if rule.subset not in subsets:
                raise CompareError(
                    f"{name} has no clean items in this comparison", where=f"--rule '{rule.text}'", do="Give --audit"
                )
            checks.append(_check(rule, name, subsets[rule.subset], higher, comparison))
    suspects = [f"{run}: {one}" for run, findings in comparison.suspects().items() for one in findings]
    return GateResult(comparison.name_a, comparison.name_b, tuple(checks), tuple(suspects))


def _check(rule: Rule, name: str, result: SubsetResult, higher: bool, comparison: Comparison) -> Check:
    level = comparison.decision_rule.confidence_level
    if rule.kind != "better":
        level = 1 - 2 * (1 - level)
    low, high = _ends(comparison, name, result, level)
    up, down = (low, high) if higher else (-high, -low)
    bounds = {
        "better": (up > rule.margin, down <= rule.margin),
        "not worse": (up > -rule.margin, down <= -rule.margin),
        "equivalent": (up > -rule.margin and down < rule.margin, down <= -rule.margin or up >= rule.margin),
    }
    met, broken = bounds[rule.kind]
    outcome: Outcome = "met" if met else "broken" if broken else "not shown"
    return Check(rule, name, outcome, result.n_items, result.difference, low, high, level)


def _ends(comparison: Comparison, name: str, result: SubsetResult, level: float) -> tuple[float, float]:
    """The interval at another level, by the method of the comparison; without one everything is possible."""
    difference = result.difference
    if difference.low is None or difference.high is None:
        return -math.inf, math.inf
    items = [
        item
        for item in comparison.items
        if (item.task == name or len(comparison.tasks) == 1) and result.subset in ("all", item.status)
    ]
    if level == difference.confidence_level:
        found = difference
    elif items:
        clustered = any(item.cluster is not None for item in items)
        found = paired_difference(
            [item.score_a for item in items],
            [item.score_b for item in items],
            cluster=[item.cluster or item.doc_hash for item in items] if clustered else None,
            confidence_level=level,
            method="auto",
        )
    else:
        found = at_level(difference, level)  # a mean over tasks, or of different items: a t interval
    return float(found.low or 0.0), float(found.high or 0.0)


def write_junit(result: GateResult, path: Path) -> None:
    """Write the checks as JUnit XML: a broken one is a failure, one that is not shown an error."""
    n_failures, n_errors = (sum(one.outcome == name for one in result.checks) for name in ("broken", "not shown"))
    suite = ET.Element(
        "testsuite",
        name=_xml(f"evalkit gate: {result.name_b} against {result.name_a}"),
        tests=str(len(result.checks)),
        failures=str(n_failures),
        errors=str(n_errors),
    )
    for check in result.checks:
        case = ET.SubElement(suite, "testcase", classname=_xml(check.task), name=_xml(check.rule.text))
        if check.outcome != "met":
            kind = "failure" if check.outcome == "broken" else "error"
            ET.SubElement(case, kind, message=_xml(f"{check.outcome}: {check.shown}")).text = _xml(str(check))
        ET.SubElement(case, "system-out").text = _xml(check.shown)
    with atomic_path(path) as temporary:
        ET.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """Foreign text on one line without what XML cannot hold."""
    return one_line(text)


def render_gate(result: GateResult, console: Any) -> None:
    """Print the checks on a rich console."""
    from rich.text import Text

    colours = {"met": "green", "broken": "bold red", "not shown": "yellow"}
    for one in result.suspects:
        console.print(Text(f"suspect: {one_line(one)}", style="bold red"))
    for check in result.checks:
        shown = one_line(f"{check.rule.text} [{check.task}]: {check.shown}")
        console.print(Text.assemble((f"{check.outcome:<10}", colours[check.outcome]), shown), soft_wrap=True)
    console.print(Text(f"gate: {result.outcome}", style=colours[result.outcome]))
