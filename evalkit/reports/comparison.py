"""Joins two runs, and an audit, item by item into a comparison: B minus A, on all items, the clean and the flagged."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from evalkit.errors import CompareError, SpecError
from evalkit.files import to_json
from evalkit.reports.differences import (
    BOTH,
    SUBSETS,
    Noise,
    SubsetResult,
    TaskComparison,
    adjusted,
    compare_apart,
    compare_task,
    overall,
    overall_noise,
    turned_tasks,
)
from evalkit.reports.inputs import Audit, Run, load_audit, load_run
from evalkit.reports.joining import (
    Apart,
    Joined,
    apart,
    clusters_of,
    join,
    prompt_difference,
    template_difference,
    warnings_of_scores,
)
from evalkit.runs.health import sentences
from evalkit.stats.decisions import DecisionRule
from evalkit.stats.results import Estimate
from evalkit.stats.slices import Slices, slice_means

if TYPE_CHECKING:
    import pandas as pd

OVERALL: Final = "overall"

BETTER, WORSE = "better", "worse"


@dataclass(frozen=True)
class ItemPair:
    """One item that both runs answered: item means over repeats and seeds, and the first answers.

    `cluster` is the source that it shares with other items, if it does.
    """

    task: str
    doc_hash: str
    status: str
    score_a: float
    score_b: float
    target: str | None
    response_a: str | None
    response_b: str | None
    cluster: str | None = None


@dataclass(frozen=True)
class Comparison:
    """B against A, the baseline.

    Attributes
    ----------
    name_a, name_b
        The models.
    tasks
        One comparison for each task.
    overall
        The tasks together, each with the same weight, by subset.
    rule
        The rule of the audit that says which items are clean; None without an audit.
    items
        Every item that both answered.
    record_a, record_b
        The runs' records.
    warnings
        What to know before believing it.
    decision_rule
        How verdicts are reached.
    noise
        What other seeds would change of the mean over several tasks; of one task, that task's.
    slices, slices_by
        The differences by a column of the documents, and its name, if they were asked for.
    """

    name_a: str
    name_b: str
    tasks: tuple[TaskComparison, ...]
    overall: Mapping[str, SubsetResult]
    rule: str | None
    items: tuple[ItemPair, ...]
    record_a: Mapping[str, Any]
    record_b: Mapping[str, Any]
    warnings: tuple[str, ...]
    decision_rule: DecisionRule
    noise: Noise | None = None
    slices: Slices | None = None
    slices_by: str | None = None

    def headline(self) -> str:
        """Say in plain sentences what came out, on all items and on the clean ones."""
        said = [_sentence(self, self.overall["all"])]
        if clean := self.overall.get("clean"):
            said.append(_sentence(self, clean))
            # With fewer tasks it is another mean, so its verdict may differ for that alone.
            if clean.verdict != self.overall["all"].verdict and not self.tasks_without("clean"):
                said.append("The verdict changes when the flagged items are left out.")
        if told := _of_these_seeds(self):
            said.append(told)
        return " ".join(said)

    def explain(self) -> str:
        """Say what the intervals of all items and of other seeds mean."""
        return "\n".join(text for _, text in self.explanations())

    def explanations(self) -> list[tuple[str, str]]:
        """Return (what it is about, sentences) for each result beside the table."""
        found = [("all items", self.overall["all"].explain())]
        if self.noise is not None and any(one.low is not None for one in self.noise.intervals.values()):
            found.append(("other seeds", self.noise.explain()))
        looked = [one for one in self.tasks if one.sequential is not None]
        for one in looked:
            told = one.sequential.explain() if one.sequential and len(looked) == 1 else str(one.sequential)
            found.append((f"{one.task}, item by item", told))
        if self.slices is not None:
            found.append((f"by {self.slices_by}", self.slices.explain()))
        return found

    def tasks_without(self, subset: str) -> list[str]:
        """Names of the tasks that have no item of a subset."""
        return [task.task for task in self.tasks if subset not in task.subsets]

    def suspects(self) -> dict[str, list[str]]:
        """Say what is wrong with each run that its health check found suspect, by "A (name)" and "B (name)"."""
        found = {}
        for side, name, record in (("A", self.name_a, self.record_a), ("B", self.name_b, self.record_b)):
            health = record.get("health", {})
            if health.get("suspect"):
                found[f"{side} ({name})"] = sentences({"findings": [], **health})
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row per task and subset, and the tasks together as `overall`."""
        import pandas as pd

        return pd.DataFrame([_flat(name, result) for name, result in self.results()])

    def results(self) -> list[tuple[str, SubsetResult]]:
        """Return (task or `overall`, result) for every subset, the overall ones last and only for several tasks."""
        listed = [(task.task, result) for task in self.tasks for result in task.subsets.values()]
        return listed + [(OVERALL, result) for result in self.overall.values() if len(self.tasks) > 1]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the items as plain values, for JSON."""
        return {
            "a": self.name_a,
            "b": self.name_b,
            "headline": self.headline(),
            "verdict": {name: result.verdict for name, result in self.overall.items()},
            "suspect": self.suspects(),
            "rule": self.rule,
            "decision_rule": {**self.decision_rule.to_dict(), "sha256": self.decision_rule.digest()},
            "overall": {name: result.to_dict() for name, result in self.overall.items()},
            "tasks": [task.to_dict() for task in self.tasks],
            "noise": self.noise and self.noise.to_dict(),
            "slices": self.slices and self.slices.to_dict(),
            "slices_by": self.slices_by,
            "warnings": list(self.warnings),
            "records": {"a": dict(self.record_a), "b": dict(self.record_b)},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`, also after JSON; the items are not in it.

        Raises
        ------
        CompareError
            The decision rule is not the one whose hash stands beside it.
        """
        rule = {name: value for name, value in values["decision_rule"].items() if name != "sha256"}
        decision_rule = DecisionRule.from_dict(rule)
        if values["decision_rule"].get("sha256") != decision_rule.digest():
            raise CompareError(
                "the decision rule is not the one that was hashed", where="decision_rule", do="Compare the runs again"
            )
        noise, slices = values.get("noise"), values.get("slices")
        return cls(
            name_a=values["a"],
            name_b=values["b"],
            tasks=tuple(map(TaskComparison.from_dict, values["tasks"])),
            overall={name: SubsetResult.from_dict(result) for name, result in values["overall"].items()},
            rule=values["rule"],
            items=(),
            record_a=values["records"]["a"],
            record_b=values["records"]["b"],
            warnings=tuple(values["warnings"]),
            decision_rule=decision_rule,
            noise=noise and Noise.from_dict(noise),
            slices=slices and Slices.from_dict(slices),
            slices_by=values.get("slices_by"),
        )

    def to_json(self) -> str:
        """Return JSON, without the items."""
        return to_json(self.to_dict()).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Undo `to_json`."""
        return cls.from_dict(json.loads(text))

    def __str__(self) -> str:
        return self.headline()

    def _repr_html_(self) -> str:
        from evalkit.reports.figures import forest_plot, to_svg

        table: str = self.to_frame().to_html(index=False, escape=True)
        figure = to_svg(forest_plot(self), transparent=False)
        return f"<p>{html.escape(self.headline())}</p>{figure}{table}"


def compare(
    run_a: Path | str | Run,
    run_b: Path | str | Run,
    *,
    audit: Path | str | None = None,
    rule: str | None = None,
    metric: str | None = None,
    confidence_level: float = 0.95,
    margin: float | None = None,
    slices: str | None = None,
    cluster: str | None = None,
    sequential: bool = False,
    unpaired: bool = False,
    allow_different_prompts: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare two runs on the items that both answered.

    Scores are averaged over repeats and seeds first, so that an item counts once: over those that both runs have scored
    for the item. An item is flagged when any of its fields is not clean under the rule, and clean when all are. A task
    without scores in both runs is left out with a warning.

    Parameters
    ----------
    run_a, run_b
        Run directories, or what `load_run` reads or returns; A is the baseline.
    audit, rule
        Audit directory, and which of its rules says what is clean (default: its first).
    metric
        "metric" or "metric,filter"; default: the first of each task that has scores in both runs.
    confidence_level
        Of the intervals; those that decide on single tasks among several are wider.
    margin
        The smallest difference that matters, in the unit of the scores; None: the one in the runs' specs, if any.
    slices
        A column of the documents: also compare by its values.
    cluster
        A column of the documents: items with the same value share a source. Default: what the runs say.
    sequential
        Also compare item by item, with leave to have stopped at any.
    unpaired
        Take the runs as ones over different items, whatever they answered.
    allow_different_prompts
        Compare although the prompts differ; it is stated in the warnings.
    columns
        Of tables: the names that they have for item, score and the others (`adaptors.from_frame`).

    Raises
    ------
    CompareError
        A directory is no run or no audit, the runs share no task or item, lack the metric, had different prompts, or
        have no scores to compare.
    SpecError
        Options do not go together.
    TableError
        A table is missing or faulty.
    """
    if not 0.5 < confidence_level < 1:
        raise CompareError(
            f"{confidence_level} is no level", where="--confidence-level", do="Give one between 0.5 and 1"
        )
    if unpaired and (audit or slices or sequential or cluster):
        raise SpecError(
            "an audit, slices, --cluster and looking early need items that both answered",
            where="--unpaired",
            do="Leave it out",
        )
    a, b = load_run(run_a, columns), load_run(run_b, columns)
    common = [task for task in a.tasks if task in b.tasks]
    if not common:
        raise CompareError(
            f"the runs share no task: A has {', '.join(a.tasks)}; B has {', '.join(b.tasks)}",
            where=f"{a.directory}, {b.directory}",
            do="Evaluate both on the same tasks",
        )
    labels = load_audit(Path(audit), rule) if audit else None
    warnings = _warnings_of_runs(a, b)
    decision_rule, of_margin = _decision_rule(a, b, margin, confidence_level)
    sources = a.document_column(cluster, common) if cluster else {}
    found: dict[str, Joined | Apart] = {}
    skipped = []
    for task in common:
        one = apart(a, b, task, metric) if unpaired else join(a, b, task, metric)
        if isinstance(one, str):
            skipped.append(f"{task}: not compared: {one}")
            continue
        if isinstance(one, Joined):
            if task in sources:
                one = _clustered(one, sources[task])
            if problem := prompt_difference(a, b, task, one.pairs):
                if not allow_different_prompts:
                    raise CompareError(problem, where=f"task {task}", do="Run both alike, or --allow-different-prompts")
                warnings.append(f"{task}: {problem}")
            one = replace(one, pairs=one.pairs.assign(status=_status(one.pairs, labels)))
            warnings.extend(f"{task}: {warning}" for warning in warnings_of_scores(one))
        found[task] = one
    if not found:
        raise CompareError(
            f"none of the common tasks can be compared ({'; '.join(skipped)})",
            where=f"{a.directory}, {b.directory}",
            do="Choose tasks with a score per item, or run again what failed",
        )
    joined = {task: one for task, one in found.items() if isinstance(one, Joined)}
    items = [item for task, one in joined.items() for item in _item_pairs(task, one.pairs)]
    if labels is not None:
        warnings.extend(_check_audit(labels, items, common, audit))
    pairs = {task: one.pairs for task, one in joined.items()}
    compared, how = adjusted(
        [
            compare_task(a, task, one, decision_rule, len(found), sequential=sequential)
            if isinstance(one, Joined)
            else compare_apart(a, task, one, decision_rule, len(found))
            for task, one in found.items()
        ],
        pairs,
        confidence_level,
    )
    turned = turned_tasks(compared)
    noise = compared[0].noise if len(compared) == 1 else overall_noise(joined, turned, confidence_level)
    more = [
        *of_margin,
        *_warnings_of_overall(compared),
        *_warnings_of_family(compared, sequential=sequential, how=how),
    ]
    return Comparison(
        name_a=a.name,
        name_b=b.name if b.name != a.name else f"{b.name} (B)",
        tasks=compared,
        overall=overall(compared, pairs, decision_rule),
        rule=labels.rule if labels else None,
        items=tuple(items),
        record_a=a.record,
        record_b=b.record,
        warnings=tuple(dict.fromkeys([*warnings, *skipped, *more])),
        decision_rule=decision_rule,
        noise=noise,
        slices=_slices(a, pairs, turned, slices, confidence_level) if slices else None,
        slices_by=slices,
    )


def _clustered(joined: Joined, source_of: Mapping[str, Any]) -> Joined:
    """Take items with the same value of a column as a cluster; those without one stand for themselves."""
    sources: list[Any] = [source_of.get(str(document)) for document in joined.pairs.index]
    named: list[Any] = [None if one is None else str(one) for one in sources]
    return replace(joined, pairs=joined.pairs.assign(cluster_a=named))


def _decision_rule(a: Run, b: Run, margin: float | None, confidence_level: float) -> tuple[DecisionRule, list[str]]:
    """The rule of the verdicts, and a warning where its margin was not declared before the scores were seen."""
    declared = [run.record.get("spec", {}).get("margin") for run in (a, b)]
    known = sorted({one for one in declared if isinstance(one, int | float)})
    if margin is None and len(known) > 1:
        raise CompareError(
            f"A's spec declares a margin of {declared[0]:g}, and B's {declared[1]:g}",
            where="margin",
            do="Give one as --margin; it will be said that it was chosen now",
        )
    rule = DecisionRule(known[0] if margin is None and known else margin, confidence_level)
    if margin is None or (known == [margin] and None not in declared):
        return rule, []
    return rule, [
        f"the margin of {points(margin)[1:]} points was given with this comparison and does not stand in both runs' "
        f"specs: it means something only if it was chosen before the scores were seen (evalkit run --margin {margin:g})"
    ]


def _warnings_of_family(tasks: Sequence[TaskComparison], *, sequential: bool, how: str) -> list[str]:
    """Say what family the single tasks' verdicts and p values belong to, and what is unknown of seeds."""
    found = []
    if len(tasks) > 1:
        level = tasks[0].subsets["all"].decision.estimate.confidence_level
        alpha = 1 - tasks[0].subsets["all"].difference.confidence_level
        found.append(
            f"the {len(tasks)} tasks are one family: single tasks have {100 * level:.4g}% intervals, which hold all at "
            f"once and on which the verdicts rest, and p is {how} (it can be below {alpha:.3g} where such an interval "
            f"holds zero); the overall verdict is one question more and is not adjusted: {100 * (1 - alpha):.4g}%"
        )
    if sequential and (unbounded := [one.task for one in tasks if one.sequential is None]):
        found.append(f"not compared item by item, because scores are not from 0 to 1: {', '.join(unbounded)}")
    if all(one.noise is None or min(one.noise.n_seeds_a, one.noise.n_seeds_b) == 1 for one in tasks):
        found.append("one seed only: how much other seeds would change the scores is unknown")
    return found


def _slices(
    run: Run, pairs: Mapping[str, pd.DataFrame], turned: Sequence[str], column: str, confidence_level: float
) -> Slices:
    """Compare by the values of a column, all tasks in one family; turned tasks' differences have the opposite sign."""
    labels: list[str] = []
    scores: list[Sequence[float]] = []
    baseline: list[Sequence[float]] = []
    clusters: list[str] = []
    values_of = run.document_column(column, list(pairs))
    for task, one in pairs.items():
        if task not in values_of:
            continue
        of_task = [values_of[task].get(str(document)) for document in one.index]
        shown = ["(none)" if value is None else str(value) for value in of_task]
        labels += [f"{task}: {value}" for value in shown] if len(values_of) > 1 else shown
        first, second = ("score_b", "score_a") if task in turned else ("score_a", "score_b")
        baseline.extend(one[first])
        scores.extend(one[second])
        clusters += [f"{task} {label}" for label in clusters_of(one, "cluster_a") or one.index]
    return slice_means(
        scores,
        labels,
        baseline=baseline,
        cluster=clusters if len(set(clusters)) < len(clusters) else None,
        confidence_level=confidence_level,
        alpha=1 - confidence_level,
    )


def _warnings_of_runs(a: Run, b: Run) -> list[str]:
    warnings = []
    if a.directory.resolve() == b.directory.resolve():
        warnings.append("A and B are the same run")
    for one, other, side in ((a, b, "A"), (b, a, "B")):
        if missing := [task for task in one.tasks if task not in other.tasks]:
            warnings.append(f"only in {side}, so not compared: {', '.join(missing)}")
        if one.record.get("status", "complete") != "complete":
            warnings.append(f"run {side} is not complete")
        if isinstance(assumed := one.record.get("assumed"), str):
            warnings.append(assumed)
        if isinstance(n_errors := one.record.get("n_errors"), int) and n_errors:
            warnings.append(f"{n_errors} requests of run {side} failed for good: their answers have no score")
    if difference := template_difference(a, b):
        warnings.append(difference)
    return warnings


def _warnings_of_overall(tasks: Sequence[TaskComparison]) -> list[str]:
    warnings = []
    if len({task.metric for task in tasks}) > 1:
        warnings.append("the overall difference averages different metrics")
    if lower := turned_tasks(tasks):
        warnings.append(
            f"overall: up is better, so lower-is-better tasks count with the opposite sign: {', '.join(lower)}"
        )
    for subset in SUBSETS:
        missing = [task.task for task in tasks if subset not in task.subsets]
        if 0 < len(missing) < len(tasks):
            warnings.append(
                f"overall, {subset} items: the mean is over {len(tasks) - len(missing)} of {len(tasks)} tasks; "
                f"without a {subset} item: {', '.join(missing)}"
            )
    return warnings


def _status(pairs: pd.DataFrame, labels: Audit | None) -> list[str]:
    """Clean, flagged or not audited, for each item."""
    if labels is None:
        return ["not audited"] * len(pairs)
    return [labels.status.get(doc_hash, "not audited") for doc_hash in pairs.index]


def _check_audit(labels: Audit, items: Sequence[ItemPair], tasks: Sequence[str], audit: Path | str | None) -> list[str]:
    """Refuse an audit of other items, and warn of items that it does not cover and of rows that it did not see."""
    missing = sum(item.status == "not audited" for item in items)
    if missing == len(items):
        raise CompareError(
            f"the audit has none of the runs' items: it covers {', '.join(labels.benchmarks)}; the runs have "
            f"{', '.join(tasks)}",
            where=str(audit),
            do="Audit the corpus for the tasks that were run (same --data and --task-seed)",
        )
    warnings = []
    if missing:
        warnings.append(f"{missing} of {len(items)} items are not in the audit: neither clean nor flagged")
    if labels.n_bad_rows:
        warnings.append(
            f"the audit could not read {labels.n_bad_rows:,} rows of its corpus: what only they hold counts as clean"
        )
    return warnings


def _item_pairs(task: str, pairs: pd.DataFrame) -> list[ItemPair]:
    def text(value: Any) -> str | None:
        return value if isinstance(value, str) else None

    return [
        ItemPair(
            task=task,
            doc_hash=row["doc_hash"],
            status=row["status"],
            score_a=float(row["score_a"]),
            score_b=float(row["score_b"]),
            target=text(row["target_a"]),
            response_a=text(row["response_a"]),
            response_b=text(row["response_b"]),
            cluster=text(row["cluster_a"]),
        )
        for row in pairs.reset_index().to_dict("records")
    ]


def _sentence(comparison: Comparison, result: SubsetResult) -> str:
    decision, difference = result.decision, result.decision.estimate
    a, b = comparison.name_a, comparison.name_b
    margin = decision.rule.margin
    within = f"{points(margin)[1:]} points" if margin is not None else ""
    what = {
        BETTER: f"{b} is better than {a}",
        WORSE: f"{b} is worse than {a}",
        "equivalent": f"{b} and {a} are equivalent within {within}",
        "non-inferior": f"{b} is not worse than {a} by {within} or more",
        "inconclusive": f"{b} and {a} cannot be told apart",
    }[result.verdict]
    if result.verdict in (BETTER, WORSE) and decision.within_margin:
        what += f", by less than {within}"
    count = f"{result.n_items:,}"
    which = f"all {count} items" if result.subset == "all" else f"the {count} {result.subset} items"
    if missing := comparison.tasks_without(result.subset):
        which += f" ({len(comparison.tasks) - len(missing)} of {len(comparison.tasks)} tasks)"
    seen = f"{points(difference.estimate)} points ({_interval(difference)})"
    if result.verdict == "inconclusive" and decision.smallest_detectable:
        missed = f"{1 - decision.rule.power:.0%} of runs like these"
        seen += f"; a difference below {points(decision.smallest_detectable)[1:]} would be missed in more than {missed}"
    return f"On {which}, {what}: {seen}."


def _interval(difference: Estimate) -> str:
    if difference.low is None or difference.high is None:
        return "no interval"
    return f"{100 * difference.confidence_level:.4g}% interval {points(difference.low)} to {points(difference.high)}"


def _of_these_seeds(comparison: Comparison) -> str | None:
    """Say that a verdict is of these seeds only, where the interval for new seeds, too, holds zero."""
    wider = comparison.noise and comparison.noise.intervals.get(BOTH)
    if not wider or wider.low is None or wider.high is None or not wider.low <= 0 <= wider.high:
        return None
    if comparison.overall["all"].verdict not in (BETTER, WORSE):
        return None
    return f"That is so for these seeds; with other seeds it may not be ({_interval(wider)})."


def points(value: float) -> str:
    """Show a difference of proportions in percentage points, with its sign; a true minus, so that columns align."""
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def p_text(p_value: float) -> str:
    """Show a p value to three decimals, never as zero."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _flat(name: str, result: SubsetResult) -> dict[str, Any]:
    difference, test, decisive = result.difference, result.test, result.decision.estimate
    return {
        "task": name,
        "subset": result.subset,
        "n_items": result.n_items,
        "n_units": difference.n,
        "score_a": result.score_a,
        "score_b": result.score_b,
        "difference": difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "adjusted_low": decisive.low,
        "adjusted_high": decisive.high,
        "p_value": test.p_value if test else None,
        "p_adjusted": result.p_adjusted,
        "only_a": test.b if test else None,
        "only_b": test.c if test else None,
        "verdict": result.verdict,
        "smallest_detectable": result.decision.smallest_detectable,
    }
