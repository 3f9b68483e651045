"""Joins two runs, and an audit, item by item into a comparison: B minus A, on all items, the clean and the flagged."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from evalkit.errors import CompareError
from evalkit.reports.inputs import Audit, Run, load_audit, load_run
from evalkit.stats.aggregate import macro_difference, stratified_mcnemar
from evalkit.stats.paired import mcnemar, paired_difference
from evalkit.stats.results import Estimate, TestResult

if TYPE_CHECKING:
    import pandas as pd

Subset = Literal["all", "clean", "flagged"]
SUBSETS: Final[tuple[Subset, ...]] = ("all", "clean", "flagged")
OVERALL: Final = "overall"

BETTER, WORSE, UNRESOLVED = "better", "worse", "not resolved"

_EXPLAINING: Final = (
    "num_fewshot",
    "chat_template",
    "system_instruction",
    "seeds",
    "gen_kwargs",
    "task_seed",
    "repeats",
    "tasks_dir",
)


@dataclass(frozen=True)
class SubsetResult:
    """One task, or all of them together, on one subset of the items.

    Attributes
    ----------
    subset
        all, clean or flagged.
    n_items
        Items that both runs answered.
    score_a, score_b
        Mean scores.
    difference
        B minus A.
    test
        McNemar's, for scores of 0 and 1; None for others.
    verdict
        What the interval says of B: better, worse or not resolved.
    """

    subset: Subset
    n_items: int
    score_a: float
    score_b: float
    difference: Estimate
    test: TestResult | None
    verdict: str


@dataclass(frozen=True)
class TaskComparison:
    """One task on all subsets that have items, and what was left out."""

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    subsets: Mapping[str, SubsetResult]
    n_only_a: int
    n_only_b: int
    n_unscored: int
    n_not_audited: int


@dataclass(frozen=True)
class ItemPair:
    """One item that both runs answered: item means over repeats and seeds, and the first answers."""

    task: str
    doc_hash: str
    status: str
    score_a: float
    score_b: float
    target: str | None
    response_a: str | None
    response_b: str | None


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
        The rule that says which items are clean; None without an audit.
    items
        Every item that both answered.
    record_a, record_b
        The runs' records.
    warnings
        What to know before believing it.
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

    def headline(self) -> str:
        """Say in plain sentences what came out, on all items and on the clean ones."""
        sentences = [_sentence(self, self.overall["all"])]
        if clean := self.overall.get("clean"):
            sentences.append(_sentence(self, clean))
            if clean.verdict != self.overall["all"].verdict:
                sentences.append("The verdict changes when the flagged items are left out.")
        return " ".join(sentences)

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
            "rule": self.rule,
            "overall": {name: asdict(result) for name, result in self.overall.items()},
            "tasks": [asdict(task) for task in self.tasks],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        return self.headline()

    def _repr_html_(self) -> str:
        table: str = self.to_frame().to_html(index=False, escape=True)
        return f"<p>{html.escape(self.headline())}</p>{table}"


def compare(
    run_a: Path,
    run_b: Path,
    *,
    audit: Path | None = None,
    rule: str | None = None,
    metric: str | None = None,
    confidence_level: float = 0.95,
    allow_different_prompts: bool = False,
) -> Comparison:
    """Compare two runs on the items that both answered.

    Scores are averaged over repeats and seeds first, so that an item counts once. An item is flagged when any of its
    fields is not clean under the rule, and clean when all are.

    Parameters
    ----------
    run_a, run_b
        Run directories; A is the baseline.
    audit, rule
        Audit directory, and which of its rules says what is clean (default: its first).
    metric
        "metric" or "metric,filter"; default: the first of each task.
    confidence_level
        Of the intervals.
    allow_different_prompts
        Compare although the prompts differ; it is stated in the warnings.

    Raises
    ------
    CompareError
        A directory is no run or no audit, the runs share no task or item, lack the metric, or had different prompts.
    TableError
        A table is missing or faulty.
    """
    if not 0 < confidence_level < 1:
        raise CompareError(f"{confidence_level} is no level", where="--confidence-level", do="Give one between 0 and 1")
    a, b = load_run(run_a), load_run(run_b)
    common = [task for task in a.tasks if task in b.tasks]
    if not common:
        raise CompareError(
            f"the runs share no task: A has {', '.join(a.tasks)}; B has {', '.join(b.tasks)}",
            where=f"{run_a}, {run_b}",
            do="Evaluate both on the same tasks",
        )
    labels = load_audit(audit, rule) if audit else None
    warnings = _warnings_of_runs(a, b, common)
    tasks, items = [], []
    for task in common:
        pairs, counts = _join(a, b, task, metric)
        if problem := _prompt_difference(a, b, task, pairs):
            if not allow_different_prompts:
                raise CompareError(problem, where=f"task {task}", do="Run both alike, or --allow-different-prompts")
            warnings.append(f"{task}: {problem}")
        if not (pairs.score_a.between(0, 1) & pairs.score_b.between(0, 1)).all():
            warnings.append(f"{task}: the scores are no proportions; all figures shown are a hundred times the score")
        pairs = pairs.assign(status=_status(pairs, labels))
        tasks.append(_compare_task(a, task, metric, pairs, counts, confidence_level))
        items.extend(_item_pairs(task, pairs))
    if labels is not None:
        warnings.extend(_check_audit(labels, items, common, audit))
    return Comparison(
        name_a=a.name,
        name_b=b.name if b.name != a.name else f"{b.name} (B)",
        tasks=tuple(tasks),
        overall=_overall(tasks),
        rule=labels.rule if labels else None,
        items=tuple(items),
        record_a=a.record,
        record_b=b.record,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _warnings_of_runs(a: Run, b: Run, common: Sequence[str]) -> list[str]:
    warnings = []
    if a.directory.resolve() == b.directory.resolve():
        warnings.append("A and B are the same run")
    for one, other, side in ((a, b, "A"), (b, a, "B")):
        if missing := [task for task in one.tasks if task not in other.tasks]:
            warnings.append(f"only in {side}, so not compared: {', '.join(missing)}")
        if one.record.get("status", "complete") != "complete":
            warnings.append(f"run {side} is not complete")
    if len({a.primary(task, None)[0] for task in common}) > 1:
        warnings.append("the overall difference averages different metrics")
    return warnings


def _join(a: Run, b: Run, task: str, metric: str | None) -> tuple[pd.DataFrame, dict[str, int]]:
    """One row per item that both runs scored, and counts of what is left out."""
    chosen = a.primary(task, metric)
    items_a, unscored_a = a.items(task, chosen)
    items_b, unscored_b = b.items(task, b.primary(task, metric or ",".join(chosen)))
    pairs = items_a.join(items_b, how="inner", lsuffix="_a", rsuffix="_b")
    counts = {
        "n_only_a": len(items_a) - len(pairs),
        "n_only_b": len(items_b) - len(pairs),
        "n_unscored": unscored_a + unscored_b,
    }
    if pairs.empty:
        raise CompareError(
            f"the runs share no item of the task ({len(items_a)} in A, {len(items_b)} in B)",
            where=f"task {task}",
            do="Use the same data, --limit and --task-seed for both",
        )
    return pairs, counts


def _prompt_difference(a: Run, b: Run, task: str, pairs: pd.DataFrame) -> str | None:
    """Say how the prompts of the common items differ, and which setting explains it; None when they are equal."""
    differing = int((pairs.prompts_a != pairs.prompts_b).sum())
    if not differing:
        return None
    spec_a, spec_b = a.record.get("spec", {}), b.record.get("spec", {})
    reasons = [
        f"{name} is {spec_a.get(name)!r} in A and {spec_b.get(name)!r} in B"
        for name in _EXPLAINING
        if spec_a.get(name) != spec_b.get(name)
    ]
    if not reasons and spec_a.get("chat_template"):
        template_a, template_b = (run.record.get("model", {}).get("chat_template_sha256") for run in (a, b))
        reasons = ["the chat templates (chat_template_sha256) differ"] if template_a != template_b else []
    versions = [run.record.get("tasks", {}).get(task, {}).get("version") for run in (a, b)]
    if not reasons and versions[0] != versions[1]:
        reasons = [f"the task's version is {versions[0]} in A and {versions[1]} in B"]
    why = "; ".join(reasons) or "no setting in run.json explains it"
    return f"prompt_hash differs for {differing} of {len(pairs)} items: {why}"


def _status(pairs: pd.DataFrame, labels: Audit | None) -> list[str]:
    """Clean, flagged or not audited, for each item."""
    if labels is None:
        return ["not audited"] * len(pairs)
    return [labels.status.get(doc_hash, "not audited") for doc_hash in pairs.index]


def _check_audit(labels: Audit, items: Sequence[ItemPair], tasks: Sequence[str], audit: Path | None) -> list[str]:
    """Refuse an audit of other items, and warn of items that it does not cover."""
    missing = sum(item.status == "not audited" for item in items)
    if missing == len(items):
        raise CompareError(
            f"the audit has none of the runs' items: it covers {', '.join(labels.benchmarks)}; the runs have "
            f"{', '.join(tasks)}",
            where=str(audit),
            do="Audit the corpus for the tasks that were run (same --data and --task-seed)",
        )
    if missing:
        return [f"{missing} of {len(items)} items are not in the audit: neither clean nor flagged"]
    return []


def _compare_task(
    a: Run, task: str, metric: str | None, pairs: pd.DataFrame, counts: Mapping[str, int], confidence_level: float
) -> TaskComparison:
    name, name_of_filter = a.primary(task, metric)
    higher = a.higher_is_better(task, name, name_of_filter)
    subsets: dict[str, SubsetResult] = {}
    for subset in SUBSETS:
        chosen = pairs if subset == "all" else pairs[pairs.status == subset]
        if len(chosen):
            subsets[subset] = _subset_result(subset, chosen, higher, confidence_level)
    return TaskComparison(
        task=task,
        metric=name,
        filter=name_of_filter,
        higher_is_better=higher,
        subsets=subsets,
        n_not_audited=int((pairs.status == "not audited").sum()),
        **counts,
    )


def _subset_result(subset: Subset, pairs: pd.DataFrame, higher: bool, confidence_level: float) -> SubsetResult:
    a, b = pairs.score_a.to_numpy(float), pairs.score_b.to_numpy(float)
    # A null cluster means that the item stands for itself.
    cluster = pairs.cluster_a.where(pairs.cluster_a.notna(), pairs.index.to_series()).tolist()
    difference = paired_difference(a, b, cluster=cluster, confidence_level=confidence_level)
    return SubsetResult(
        subset=subset,
        n_items=len(pairs),
        score_a=float(a.mean()),
        score_b=float(b.mean()),
        difference=difference,
        test=mcnemar(a, b, cluster=cluster) if _is_binary(a) and _is_binary(b) else None,
        verdict=_verdict(difference, higher),
    )


def _is_binary(scores: npt.NDArray[np.float64]) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _verdict(difference: Estimate, higher_is_better: bool) -> str:
    """What the interval says against zero."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return UNRESOLVED
    return BETTER if (difference.low > 0) == higher_is_better else WORSE


def _overall(tasks: Sequence[TaskComparison]) -> dict[str, SubsetResult]:
    """The tasks together. A metric that is better when lower counts with the opposite sign, so that up is better."""
    overall: dict[str, SubsetResult] = {}
    for subset in SUBSETS:
        parts = [(task, task.subsets[subset]) for task in tasks if subset in task.subsets]
        if not parts:
            continue
        if len(parts) == 1 and len(tasks) == 1:
            overall[subset] = parts[0][1]
            continue
        difference = macro_difference([_upwards(part.difference, task.higher_is_better) for task, part in parts])
        tests = [part.test for _, part in parts if part.test is not None]
        overall[subset] = SubsetResult(
            subset=subset,
            n_items=sum(part.n_items for _, part in parts),
            score_a=float(np.mean([part.score_a for _, part in parts])),
            score_b=float(np.mean([part.score_b for _, part in parts])),
            difference=difference,
            test=stratified_mcnemar(tests) if len(tests) == len(parts) else None,
            verdict=_verdict(difference, higher_is_better=True),
        )
    return overall


def _upwards(difference: Estimate, higher_is_better: bool) -> Estimate:
    if higher_is_better:
        return difference
    values = difference.to_dict()
    low, high = difference.low, difference.high
    turned = {"estimate": -difference.estimate, "low": None if high is None else -high}
    return Estimate.from_dict({**values, **turned, "high": None if low is None else -low})


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
        )
        for row in pairs.reset_index().to_dict("records")
    ]


def _sentence(comparison: Comparison, result: SubsetResult) -> str:
    what = {
        BETTER: f"{comparison.name_b} is better than {comparison.name_a}",
        WORSE: f"{comparison.name_b} is worse than {comparison.name_a}",
        UNRESOLVED: f"{comparison.name_b} and {comparison.name_a} cannot be told apart",
    }[result.verdict]
    count = f"{result.n_items:,}"
    which = {"all": f"all {count}", "clean": f"the {count} clean", "flagged": f"the {count} flagged"}[result.subset]
    difference = result.difference
    interval = (
        "no interval"
        if difference.low is None or difference.high is None
        else f"{difference.confidence_level:.0%} interval {points(difference.low)} to {points(difference.high)}"
    )
    return f"On {which} items, {what}: {points(difference.estimate)} points ({interval})."


def points(value: float) -> str:
    """Show a difference of proportions in percentage points, with its sign; a true minus, so that columns align."""
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def p_text(p_value: float) -> str:
    """Show a p value to three decimals, never as zero."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _flat(name: str, result: SubsetResult) -> dict[str, Any]:
    difference, test = result.difference, result.test
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
        "p_value": test.p_value if test else None,
        "only_a": test.b if test else None,
        "only_b": test.c if test else None,
        "verdict": result.verdict,
    }
