"""From joined runs to results: each task's difference with its interval, test, verdict and noise, and all together."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from evalkit.errors import InputError
from evalkit.reports.joining import Apart, Joined, clusters_of
from evalkit.stats.aggregate import macro_test
from evalkit.stats.components import (
    ANSWER,
    ITEM,
    Component,
    CrossedScores,
    Design,
    crossed,
    crossed_difference,
    crossed_tasks,
    sd_interval,
)
from evalkit.stats.decisions import Decision, DecisionRule, decide
from evalkit.stats.discordance import mcnemar
from evalkit.stats.macro import THESE_TASKS, macro_mean, macro_of_shared_items
from evalkit.stats.multiple import holm, max_t
from evalkit.stats.paired import paired_difference, unpaired_difference
from evalkit.stats.permutation import mean_difference_test
from evalkit.stats.results import Estimate, Result, TestResult
from evalkit.stats.sequential import SequentialComparison, sequential_comparison

if TYPE_CHECKING:
    import pandas as pd

    from evalkit.reports.inputs import Run

Floats = npt.NDArray[np.float64]
Subset = Literal["all", "clean", "flagged"]
SUBSETS: Final[tuple[Subset, ...]] = ("all", "clean", "flagged")

SEED: Final = "seed"
BOTH: Final = f"{ITEM} + {SEED}"

HOLM: Final = "Holm's"
MAX_T: Final = "adjusted by max-T, because tasks share items"


@dataclass(frozen=True)
class SubsetResult(Result):
    """One task, or all of them together, on one subset of the items.

    Attributes
    ----------
    subset
        all, clean or flagged.
    n_items
        Items that both runs answered; unpaired, the items of both.
    score_a, score_b
        Mean scores; None for several tasks of which some are better when higher and some when lower.
    difference
        B minus A; for such tasks together, those better when lower count with the opposite sign.
    test
        McNemar's for independent scores of 0 and 1, else of sign flips; of several tasks, of the mean of their
        differences. None where there are too few units.
    p_adjusted
        Holm's, over the tasks of a comparison of several.
    decision
        The verdict, and the interval it rests on: of single tasks among several, one that holds for all at once.
    tasks_like_these
        Of several tasks: the difference with the interval for other tasks of the kind.
    """

    subset: Subset
    n_items: int
    score_a: float | None
    score_b: float | None
    difference: Estimate
    test: TestResult | None
    p_adjusted: float | None
    decision: Decision
    tasks_like_these: Estimate | None = None

    @property
    def verdict(self) -> str:
        """What the interval says of B: better, worse, equivalent, non-inferior or inconclusive."""
        return self.decision.verdict

    def __str__(self) -> str:
        return f"{self.subset} items: {self.decision}"

    def explain(self) -> str:
        """Say in plain sentences what was found, and for which other tasks it holds."""
        others = "" if self.tasks_like_these is None else f" {self.tasks_like_these.explain()}"
        return f"{self.decision.explain()}{others}"


@dataclass(frozen=True)
class Noise(Result):
    """What other seeds, and other answers, would change of a difference.

    Attributes
    ----------
    n_seeds_a, n_seeds_b, n_answers, n_items
        Seeds of each run, answers to each item under each, and items that have them all.
    matched
        Whether seed s of A and of B are the same: the same few-shot draw, the same sampling.
    intervals
        Of the difference B - A, by what is drawn anew: "seed" (on these items), "item + seed".
    components
        Of the difference, where seeds are matched.
    seed_sd_a, seed_sd_b
        Standard deviation of each run's mean score over its seeds on these items.
    designs
        Standard errors of the difference with twice the items, seeds or answers, all drawn anew.
    warnings
        What to know before using it.
    seed_means_a, seed_means_b
        Each run's mean score under each of its seeds, on these items, in the order of the seeds.
    """

    n_seeds_a: int
    n_seeds_b: int
    n_answers: int
    n_items: int
    matched: bool
    intervals: Mapping[str, Estimate]
    components: tuple[Component, ...] = ()
    seed_sd_a: Component | None = None
    seed_sd_b: Component | None = None
    designs: tuple[Design, ...] = ()
    warnings: tuple[str, ...] = ()
    seed_means_a: tuple[float, ...] = ()
    seed_means_b: tuple[float, ...] = ()

    def __str__(self) -> str:
        lines = [f"new {new}s: {one}" for new, one in self.intervals.items()]
        return "\n".join([*lines, *map(str, self.components), *self.warnings])

    def explain(self) -> str:
        """Say what drawing seeds anew would change, one sentence for each question."""
        known = [one.explain() for one in self.intervals.values() if one.low is not None]
        return " ".join(known or [f"Nothing is known of other seeds: {'; '.join(self.warnings)}."])


@dataclass(frozen=True)
class TaskComparison(Result):
    """One task on all subsets that have items, and what was left out.

    Attributes
    ----------
    n_only_a, n_only_b
        Items of which only this run has a score.
    n_unscored
        Answers of both runs without a score.
    n_unpaired
        Answers with a score, of items that both runs scored, whose seed and repeat the other run has not scored.
    n_not_audited
        Compared items that the audit lacks.
    n_missing, missing_low, missing_high
        Items of either run that are not compared, and how far they could move the sum of all items' differences if
        scores lie between 0 and 1: a score that one of the runs has is kept, the other is taken as 0 or 1.
    noise
        What other seeds and answers would change; None with one answer for each item.
    sequential
        The comparison item by item, if it was asked for and can be made.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    subsets: Mapping[str, SubsetResult]
    n_only_a: int
    n_only_b: int
    n_unscored: int
    n_unpaired: int
    n_not_audited: int
    noise: Noise | None = None
    sequential: SequentialComparison | None = None
    n_missing: int = 0
    missing_low: float = 0.0
    missing_high: float = 0.0

    def __str__(self) -> str:
        return f"{self.task}: {self.subsets['all']}"


def compare_task(
    run: Run, task: str, joined: Joined, rule: DecisionRule, family: int, *, sequential: bool
) -> TaskComparison:
    """Compare two runs on a task.

    Parameters
    ----------
    run
        One of the two, for what its record says of the task.
    joined
        The pairs have a column `status`: clean, flagged or not audited.
    rule
        Of the verdict.
    family
        Tasks of the comparison: verdicts are by intervals of level 1 - alpha / family.
    sequential
        Whether to look item by item, too.
    """
    pairs = joined.pairs
    higher = run.higher_is_better(task, *joined.metric)
    rule = replace(rule, higher_is_better=higher)
    subsets: dict[str, SubsetResult] = {}
    for subset in SUBSETS:
        chosen = pairs if subset == "all" else pairs[pairs.status == subset]
        if len(chosen):
            subsets[subset] = _paired(subset, chosen, rule, family)
    return TaskComparison(
        task=task,
        metric=joined.metric[0],
        filter=joined.metric[1],
        higher_is_better=higher,
        subsets=subsets,
        n_not_audited=int((pairs.status == "not audited").sum()),
        **joined.counts,
        noise=_noise(joined, rule.confidence_level),
        sequential=_sequential(run, task, joined, rule, family) if sequential else None,
    )


def _paired(subset: Subset, pairs: pd.DataFrame, rule: DecisionRule, family: int) -> SubsetResult:
    a, b = pairs.score_a.to_numpy(float), pairs.score_b.to_numpy(float)
    cluster = clusters_of(pairs, "cluster_a")

    def at(level: float) -> Estimate:
        return paired_difference(a, b, cluster=cluster, confidence_level=level, method="auto")

    return SubsetResult(
        subset=subset,
        n_items=len(pairs),
        score_a=float(a.mean()),
        score_b=float(b.mean()),
        difference=at(rule.confidence_level),
        test=_test(a, b, cluster),
        p_adjusted=None,
        decision=_decision(at, rule, family),
    )


def _decision(at: Any, rule: DecisionRule, family: int) -> Decision:
    """Decide by the interval that holds for the whole family, and the one for equivalence that belongs to it."""
    alpha = (1 - rule.confidence_level) / family
    narrower = at(1 - 2 * alpha) if rule.margin is not None else None
    return decide(at(1 - alpha), rule, narrower=narrower)


def _test(a: Floats, b: Floats, cluster: list[str] | None) -> TestResult | None:
    """McNemar's test where items are independent and right or wrong, else of a mean difference of zero."""
    if cluster is not None and len(set(cluster)) == len(cluster):
        cluster = None
    if cluster is None and np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        return mcnemar(a, b)
    try:
        return mean_difference_test(b - a, cluster=cluster)
    except InputError:  # too few clusters: the interval says so
        return None


def compare_apart(run: Run, task: str, found: Apart, rule: DecisionRule, family: int) -> TaskComparison:
    """Compare two runs on a task as if they had answered different items."""
    higher = run.higher_is_better(task, *found.metric)
    rule = replace(rule, higher_is_better=higher)
    a, b = found.a.score.to_numpy(float), found.b.score.to_numpy(float)
    cluster_a, cluster_b = clusters_of(found.a), clusters_of(found.b)

    def at(level: float) -> Estimate:
        return unpaired_difference(a, b, cluster_a=cluster_a, cluster_b=cluster_b, confidence_level=level)

    difference = at(rule.confidence_level)
    result = SubsetResult(
        subset="all",
        n_items=len(a) + len(b),
        score_a=float(a.mean()),
        score_b=float(b.mean()),
        difference=difference,
        test=_welch(difference),
        p_adjusted=None,
        decision=_decision(at, rule, family),
    )
    return TaskComparison(
        task=task,
        metric=found.metric[0],
        filter=found.metric[1],
        higher_is_better=higher,
        subsets={"all": result},
        n_only_a=0,
        n_only_b=0,
        n_unscored=found.n_unscored,
        n_unpaired=0,
        n_not_audited=0,
    )


def _welch(difference: Estimate) -> TestResult | None:
    tested = macro_test(difference)
    return tested and replace(tested, method="Welch t", null_hypothesis="both models have the same mean score")


def adjusted(
    tasks: Sequence[TaskComparison], pairs: Mapping[str, pd.DataFrame], confidence_level: float
) -> tuple[tuple[TaskComparison, ...], str]:
    """Adjust the tasks' p values, on each subset: by max-T where tasks share items and it can be had, else by Holm.

    A task that could not be tested counts as one with p = 1. Also return what all items' p values are, as a phrase.
    """
    found: dict[tuple[str, str], float] = {}
    how = HOLM
    for subset in SUBSETS if len(tasks) > 1 else ():
        tests = {one.task: one.subsets[subset].test for one in tasks if subset in one.subsets}
        if not tests:
            continue
        p_values = _max_t({task: pairs[task] for task in tests}, subset, confidence_level) if pairs else None
        if subset == "all" and p_values is not None:
            how = MAX_T
        if p_values is None:
            known = [1.0 if test is None else test.p_value for test in tests.values()]
            p_values = holm(known, alpha=1 - confidence_level).adjusted
        found |= {(task, subset): p for (task, test), p in zip(tests.items(), p_values, strict=True) if test}
    return tuple(
        replace(
            one,
            subsets={
                subset: replace(result, p_adjusted=found.get((one.task, subset)))
                for subset, result in one.subsets.items()
            },
        )
        for one in tasks
    ), how


def share_items(pairs: Mapping[str, pd.DataFrame]) -> bool:
    """Whether an item belongs to several tasks."""
    documents = [document for one in pairs.values() for document in one.index.tolist()]
    return len(set(documents)) < len(documents)


def _max_t(pairs: Mapping[str, pd.DataFrame], subset: str, confidence_level: float) -> tuple[float, ...] | None:
    """The adjusted p values of tasks that share items; None where they do not, or some have too few."""
    chosen = {task: one if subset == "all" else one[one.status == subset] for task, one in pairs.items()}
    if not share_items(chosen):
        return None
    values, sources = _side_by_side(chosen, ())
    try:
        return max_t(values, cluster=sources, confidence_level=confidence_level).adjusted
    except InputError:
        return None


def _side_by_side(pairs: Mapping[str, pd.DataFrame], turned: Sequence[str]) -> tuple[Floats, list[str]]:
    """Differences of all items by task, NaN where an item is not in a task, and each item's source, if only itself."""
    import pandas as pd

    differences = [(one.score_b - one.score_a) * (-1.0 if task in turned else 1.0) for task, one in pairs.items()]
    values = pd.concat(differences, axis=1)
    sources = pd.concat([one.cluster_a for one in pairs.values()])
    sources = sources[sources.notna() & ~sources.index.duplicated()].reindex(values.index)
    return values.to_numpy(float), sources.where(sources.notna(), values.index.to_series()).astype(str).tolist()


def overall(
    tasks: Sequence[TaskComparison], pairs: Mapping[str, pd.DataFrame], rule: DecisionRule
) -> dict[str, SubsetResult]:
    """Take the tasks together, each with the same weight; `pairs` are those of each task, empty for unpaired ones."""
    if len(tasks) == 1:
        return dict(tasks[0].subsets)
    turned = turned_tasks(tasks)
    rule = replace(rule, higher_is_better=bool(turned) or tasks[0].higher_is_better)
    found: dict[str, SubsetResult] = {}
    for subset in SUBSETS:
        parts = {task.task: task.subsets[subset] for task in tasks if subset in task.subsets}
        if len(parts) == 1:
            [task] = parts
            found[subset] = _single(subset, pairs[task], rule, is_turned=task in turned)
        elif parts:
            found[subset] = _mean(subset, parts, pairs, turned, rule)
    return found


def _mean(
    subset: Subset,
    parts: Mapping[str, SubsetResult],
    pairs: Mapping[str, pd.DataFrame],
    turned: Sequence[str],
    rule: DecisionRule,
) -> SubsetResult:
    """Average several tasks."""
    chosen = {task: one[one.status == subset] if subset != "all" else one for task, one in pairs.items()}
    if share_items(chosen) and min(len(chosen[task]) for task in parts) > 1:
        values, sources = _side_by_side({task: chosen[task] for task in parts}, turned)
        macro = macro_of_shared_items(values, cluster=sources, confidence_level=rule.confidence_level)
    else:
        turn = [_negative(part.difference) if task in turned else part.difference for task, part in parts.items()]
        macro = macro_mean(turn, population=f"{THESE_TASKS}, answered by these two models")
    quantity = "the difference B - A, averaged over tasks,"
    difference = replace(macro.this_suite, quantity=quantity)
    return SubsetResult(
        subset=subset,
        n_items=sum(part.n_items for part in parts.values()),
        score_a=None if turned else float(np.mean([part.score_a for part in parts.values()])),
        score_b=None if turned else float(np.mean([part.score_b for part in parts.values()])),
        difference=difference,
        test=macro_test(difference),
        p_adjusted=None,
        decision=decide(difference, rule),
        tasks_like_these=replace(macro.tasks_like_these, quantity=quantity),
    )


def _single(subset: Subset, pairs: pd.DataFrame, rule: DecisionRule, *, is_turned: bool) -> SubsetResult:
    """The only task with such items: its own interval, for itself and not for the family."""
    chosen = pairs[pairs.status == subset]
    if not is_turned:
        return _paired(subset, chosen, rule, 1)
    swapped = chosen.assign(score_a=chosen.score_b, score_b=chosen.score_a)
    return replace(_paired(subset, swapped, rule, 1), score_a=None, score_b=None)


def turned_tasks(tasks: Sequence[TaskComparison]) -> list[str]:
    """Names of the tasks that are better when lower, where others are better when higher; else none need turning."""
    lower = [task.task for task in tasks if not task.higher_is_better]
    return lower if len(lower) < len(tasks) else []


def _negative(difference: Estimate) -> Estimate:
    low, high = difference.low, difference.high
    return replace(
        difference,
        estimate=-difference.estimate,
        low=None if high is None else -high,
        high=None if low is None else -low,
    )


def _noise(joined: Joined, confidence_level: float) -> Noise | None:
    """What other seeds and answers would change, from the items that have all of both."""
    a, b = joined.grids
    if max(a.shape[1:] + b.shape[1:]) == 1:
        return None
    whole = np.asarray(~(np.isnan(a).any(axis=(1, 2)) | np.isnan(b).any(axis=(1, 2))))
    left_out = int((~whole).sum())
    warnings = [f"{left_out} items lack an answer under some seed: the seeds' part is without them"] if left_out else []
    sizes = dict(
        n_seeds_a=a.shape[1], n_seeds_b=b.shape[1], n_answers=min(a.shape[2], b.shape[2]), n_items=int(whole.sum())
    )
    if sizes["n_items"] < 2:
        return Noise(**sizes, matched=joined.share_draws, intervals={}, warnings=("no two items have all answers",))
    kept = _kept(joined.clusters(), whole)
    a, b = a[whole], b[whole]
    means = [of.mean(axis=(0, 2)) for of in (a, b)]
    spreads = [_seed_sd(of, confidence_level) for of in means]
    if joined.share_draws and a.shape == b.shape:
        found = crossed(b - a, (ITEM, SEED), answers=True, cluster=kept, confidence_level=confidence_level)
        intervals, components = found.intervals, found.components
        warnings += found.warnings
        designs = _designs(found)
    else:
        intervals = crossed_difference(a.mean(axis=2), b.mean(axis=2), cluster=kept, confidence_level=confidence_level)
        components, designs = (), ()
        warnings += intervals[SEED].warnings
    asked = {new: replace(intervals[new], quantity="the difference B - A") for new in (SEED, BOTH)}
    return Noise(
        **sizes,
        matched=joined.share_draws,
        intervals=asked,
        components=components,
        seed_sd_a=spreads[0],
        seed_sd_b=spreads[1],
        designs=designs,
        warnings=tuple(dict.fromkeys(warnings)),
        seed_means_a=tuple(means[0].tolist()),
        seed_means_b=tuple(means[1].tolist()),
    )


def _seed_sd(means: Floats, confidence_level: float) -> Component | None:
    """The standard deviation of a run's mean scores over seeds; None with one seed."""
    if len(means) == 1:
        return None
    variance = float(means.var(ddof=1))
    low, high = sd_interval(variance, len(means) - 1, confidence_level=confidence_level)
    return Component((SEED,), variance, float(np.sqrt(variance)), low, high, confidence_level, method="chi-squared")


def _kept(labels: list[str] | None, whole: npt.NDArray[np.bool_]) -> list[str] | None:
    return None if labels is None else [labels[place] for place in np.flatnonzero(whole)]


def _designs(found: CrossedScores) -> tuple[Design, ...]:
    """What twice as many items, seeds or answers would buy; with one seed, of the items and answers alone."""
    new = (ITEM, SEED) if found.levels[SEED] > 1 else (ITEM,)
    known = found.component(ANSWER).variance is not None
    choices = [{}, *({name: 2 * found.levels[name]} for name in new), *([{ANSWER: 2 * found.answers}] if known else [])]
    return found.designs(new, choices) if len(new) > 1 else ()


def overall_noise(joined: Mapping[str, Joined], turned: Sequence[str], confidence_level: float) -> Noise | None:
    """What other seeds would change of the mean over tasks, where all tasks have the same seeds and share no items."""
    if share_items({task: one.pairs for task, one in joined.items()}):
        return None
    matched = all(one.share_draws for one in joined.values())
    tables: list[list[Floats]] = [[], []]
    clusters, n_answers = [], 0
    for task, one in joined.items():
        sides = [of.mean(axis=2) * (-1.0 if task in turned else 1.0) for of in one.grids]
        whole = np.asarray(~(np.isnan(sides[0]).any(axis=1) | np.isnan(sides[1]).any(axis=1)))
        for table, of in zip(tables, sides, strict=True):
            table.append(of[whole])
        clusters.append(_kept(one.clusters(), whole))
        n_answers = max(n_answers, one.grids[0].shape[2])
    a, b = tables
    n_seeds = [{of.shape[1] for of in side} for side in (a, b)]
    if max(map(len, n_seeds)) > 1 or min(map(max, n_seeds)) == 1 or min(map(len, a)) < 2:
        return None
    if matched and n_seeds[0] == n_seeds[1]:
        differences = [of_b - of_a for of_a, of_b in zip(a, b, strict=True)]
        intervals = crossed_tasks(differences, clusters=clusters, confidence_level=confidence_level)
    else:
        intervals = crossed_tasks(b, a, clusters=clusters, confidence_level=confidence_level)
    # Of tasks that are turned, the means over tasks would be no scores.
    means = [() if turned else tuple(np.mean([of.mean(axis=0) for of in side], axis=0).tolist()) for side in (a, b)]
    return Noise(
        n_seeds_a=max(n_seeds[0]),
        n_seeds_b=max(n_seeds[1]),
        n_answers=n_answers,
        n_items=sum(map(len, a)),
        matched=matched,
        intervals={
            new: replace(intervals[new], quantity="the difference B - A, averaged over tasks,") for new in (SEED, BOTH)
        },
        warnings=intervals[BOTH].warnings,
        seed_means_a=means[0],
        seed_means_b=means[1],
    )


def _sequential(run: Run, task: str, joined: Joined, rule: DecisionRule, family: int) -> SequentialComparison | None:
    """Compare item by item (cluster by cluster) in random order; None for scores that are not from 0 to 1."""
    pairs = joined.pairs
    a, b = pairs.score_a.to_numpy(float), pairs.score_b.to_numpy(float)
    if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) > 1:
        return None
    place = random_places(run, task, joined)
    level = 1 - (1 - rule.confidence_level) / family
    cluster = clusters_of(pairs, "cluster_a")
    if cluster is not None and len(set(cluster)) < len(cluster):
        codes = np.unique(cluster, return_inverse=True)[1]
        sizes = np.bincount(codes)
        a, b = (np.bincount(codes, weights=of) / sizes for of in (a, b))
        place = np.array([place[codes == code].min() for code in range(len(sizes))])
    order = np.argsort(place, kind="stable")
    found = sequential_comparison(a[order], b[order], confidence_level=level)
    verdict = found.verdict
    if not rule.higher_is_better:
        verdict = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    unit = "items" if len(a) == len(pairs) else "clusters"
    seen = replace(found.difference, quantity="the difference B - A", unit=unit, n_items=len(pairs))
    return replace(found, verdict=verdict, difference=seen)


def random_places(run: Run, task: str, joined: Joined) -> npt.NDArray[np.int64]:
    """The place of each item in an order that has nothing to do with scores, and that more items only continue.

    It is that of the run's own `--limit`, so that a comparison of 50 items is the beginning of one of 100; without a
    record of it, by a hash of the item.
    """
    record = run.record.get("tasks", {}).get(task, {})
    n_docs, subset_seed = record.get("n_docs"), run.record.get("spec", {}).get("subset_seed")
    first = joined.answers_a.drop_duplicates("doc_hash").set_index("doc_hash").doc_id.reindex(joined.pairs.index)
    if isinstance(n_docs, int) and isinstance(subset_seed, int) and int(first.max()) < n_docs:
        order = list(range(n_docs))
        random.Random(f"{task}:{n_docs}:{subset_seed}").shuffle(order)
        places = np.empty(n_docs, dtype=np.int64)
        places[order] = np.arange(n_docs)
        return np.asarray(places[first.to_numpy(int)], dtype=np.int64)
    digests = [hashlib.sha256(str(one).encode("utf-8", "surrogatepass")).digest()[:7] for one in joined.pairs.index]
    return np.array([int.from_bytes(one) for one in digests], dtype=np.int64)
