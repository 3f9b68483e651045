"""What the report claims, in the order in which a reader decides: each with its numbers, its table and its figures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import evalkit
from evalkit.reports.comparison import BETTER, OVERALL, WORSE, Comparison, p_text, points
from evalkit.reports.differences import BOTH, MAX_T, SEED, Noise, SubsetResult
from evalkit.reports.document import Claim, Table
from evalkit.reports.sensitivity import (
    EXPLAINED,
    LOSS_EXPLAINED,
    LOSS_PARTLY,
    PARTLY,
    UNCONFIRMED,
    Contamination,
    contamination,
    sources,
    tipping_point,
    worst_cases,
)
from evalkit.reports.terminal import notes
from evalkit.runs.health import sentences
from evalkit.runs.spec import RunSpec
from evalkit.stats.clusters import design_effect
from evalkit.stats.components import Design
from evalkit.stats.results import Estimate
from evalkit.stats.standings import Standings

if TYPE_CHECKING:
    from evalkit.judges.audit import Audit
    from evalkit.reports.trend import Trend

SUBSET_NAMES: Final = {"all": "all items", "clean": "clean items", "flagged": "flagged items"}

_IN_HEADLINE: Final = (EXPLAINED, PARTLY, LOSS_EXPLAINED, LOSS_PARTLY, UNCONFIRMED)

_HASHED: Final = ("weights_sha256", "tokenizer_sha256", "chat_template_sha256", "commit", "dtype")


def verdict_of(comparison: Comparison) -> tuple[str, str]:
    """Return the verdict's word, and the headline: the verdict on clean items decides where there was an audit."""
    subset = "clean" if "clean" in comparison.overall else "all"
    word = comparison.overall[subset].verdict
    headline = comparison.headline()
    found = contamination(comparison)
    if found is not None and found.finding in _IN_HEADLINE:
        what = found.finding[0].upper() + found.finding[1:]
        seen = "" if found.interaction is None else f" (flagged less clean: {_with_interval(found.interaction)} points)"
        headline = f"{what}{seen}{_from_flagged(found)}. {headline}"
    return word, headline


def _from_flagged(found: Contamination) -> str:
    """How much of the difference comes from the flagged items, where that is a part of it."""
    if found.finding not in (PARTLY, LOSS_PARTLY) or found.whole is None or found.left is None:
        return ""
    whole, part = found.whole, found.whole - found.left
    return f": {_points(part)} of its {_points(whole)} points come from flagged items"


def strip_of(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """What the comparison rests on, in a line."""
    result = comparison.overall["all"]
    # Equal names in two tasks are two sources, unless the tasks share items.
    shared = len({item.doc_hash for item in comparison.items}) < len(comparison.items)
    clusters = {(shared or item.task, item.cluster) for item in comparison.items if item.cluster is not None}
    noises = [task.noise for task in comparison.tasks if task.noise]
    seeds = sorted({(one.n_seeds_a, one.n_seeds_b) for one in noises}) or [(1, 1)]
    answers = max((one.n_answers for one in noises), default=1)
    parts = [
        ("B − A", f"{_with_interval(result.difference)} points"),
        ("items", f"{result.n_items:,}"),
        ("tasks", f"{len(comparison.tasks):,}"),
        ("clusters", f"{len(clusters):,}" if clusters else "none: items are taken as independent"),
        ("seeds", ", ".join(f"{a}" if a == b else f"{a} and {b}" for a, b in seeds)),
        ("answers per item and seed", f"{answers}"),
    ]
    return tuple(parts)


def verdict_claim(comparison: Comparison) -> Claim:
    """Say which verdict by which rule, on all items and on the clean ones."""
    word, headline = verdict_of(comparison)
    found = contamination(comparison)
    rows = [
        (
            SUBSET_NAMES[name],
            result.verdict,
            points(result.decision.estimate.estimate),
            _interval(result.decision.estimate),
            _points(result.decision.smallest_detectable),
        )
        for name, result in comparison.overall.items()
    ]
    subset = "clean" if "clean" in comparison.overall else "all"
    title = f"B is {word} on {SUBSET_NAMES[subset]}" if word in (BETTER, WORSE) else f"{word} on {SUBSET_NAMES[subset]}"
    if found is not None and found.finding in _IN_HEADLINE and found.finding != UNCONFIRMED:
        title = f"{found.finding}; {title}"
    return Claim(
        "verdict",
        f"Verdict: {title}",
        (headline, f"The rule: {comparison.decision_rule.explain()}"),
        (Table(("items", "verdict", "B − A, points", "interval", "smallest detectable"), tuple(rows), n_text=2),),
    )


def suite_claim(comparison: Comparison) -> Claim:
    """The mean over tasks, for this suite and for tasks like these."""
    rows = []
    for name, result in comparison.overall.items():
        for question, one in (("this suite", result.difference), ("tasks like these", result.tasks_like_these)):
            if one is not None:
                cells = (points(one.estimate), _interval(one), f"{one.n:,} {one.unit}")
                rows.append((SUBSET_NAMES[name], question, *cells, one.method))
    result = comparison.overall["all"]
    said = [f"Over {_count(len(comparison.tasks), 'task')}, B − A is {_with_interval(result.difference)} points."]
    if result.tasks_like_these is not None:
        said.append(
            f"For other tasks of the kind, the interval is {_interval(result.tasks_like_these)}: "
            "that is the question when the suite stands for what a model can do in general."
        )
    else:
        said.append("One task says nothing about tasks like it.")
    if result.test is not None:
        said.append(f"{result.test.method}: p {_equals(result.test.p_value)}.")
    columns = ("items", "question", "B − A, points", "interval", "units", "method")
    return Claim("suite", "The difference over all tasks", tuple(said), (Table(columns, tuple(rows), n_text=2),))


def tasks_claim(comparison: Comparison) -> Claim:
    """Each benchmark: scores, difference, interval, p, discordant items, units, and what could have been found."""
    several = len(comparison.tasks) > 1
    adjusted = "max-T" if any(MAX_T in warning for warning in comparison.warnings) else "Holm"
    columns = (
        *("task", "items", "A", "B", "B − A"),
        *(("interval (all tasks at once)", f"p ({adjusted})") if several else ("interval", "p")),
        *("A : B", "n", "clusters", "design effect", "r", "smallest detectable", "B is"),
    )
    by_task: dict[str, list[Any]] = {}
    for item in comparison.items:
        by_task.setdefault(item.task, []).append(item)
    rows = []
    for name, result in comparison.results():
        if result.subset == "flagged" and name != OVERALL:
            continue
        of = [item for item in by_task.get(name, ()) if result.subset in ("all", item.status)]
        rows.append(_task_row(name, result, of, several=several))
    table = _without_empty(columns, rows, n_text=2, n_total=sum(row[0] == OVERALL for row in rows))
    better = [task.task for task in comparison.tasks if task.subsets["all"].verdict == BETTER]
    worse = [task.task for task in comparison.tasks if task.subsets["all"].verdict == WORSE]
    said = [
        f"On all items, B is better on {_listed(better)} and worse on {_listed(worse)} of {len(comparison.tasks)}."
        if several
        else f"{comparison.tasks[0].task}: B is {comparison.tasks[0].subsets['all'].verdict}."
    ]
    said.append(
        "A : B counts the items on which only one is right (or is higher); the rest say nothing about the difference. "
        "r is the correlation of both models' scores over items: the higher, the more pairing has gained."
    )
    if several:
        level = comparison.tasks[0].subsets["all"].decision.estimate.confidence_level
        said.append(
            f"Each task's interval has a level of {100 * level:.4g}%, so that all hold at once; the mean of the tasks "
            "is one question more, and neither its interval nor its p is adjusted."
        )
    figures = {
        "forest": "Differences of each task with intervals; hollow markers are clean items, the band is the margin.",
        "discordance": "Items that only A or only B gets right, by task.",
    }
    if _has_power(comparison):
        figures["power"] = "Chance of finding the smallest difference that matters, over the number of items."
    return Claim("tasks", "Each benchmark", tuple(said), (table,), figures)


def _task_row(name: str, result: SubsetResult, items: Sequence[Any], *, several: bool) -> tuple[str, ...]:
    difference, test = result.decision.estimate, result.test
    p = result.p_adjusted if several and name != OVERALL else test.p_value if test else None
    a, b = (np.array([getattr(item, side) for item in items]) for side in ("score_a", "score_b"))
    discordant = f"{int((a > b).sum())} : {int((b > a).sum())}" if len(items) else ""
    clusters = sources(items)
    effect = design_effect(b - a, clusters) if clusters and len(set(clusters)) > 1 and (b - a).any() else None
    r = np.corrcoef(a, b)[0, 1] if len(items) > 1 and a.std() > 0 and b.std() > 0 else None
    return (
        name,
        result.subset,
        *("" if score is None else f"{100 * score:.1f}" for score in (result.score_a, result.score_b)),
        points(difference.estimate),
        _interval(difference),
        "" if p is None else p_text(p),
        discordant,
        f"{result.n_items:,}",
        "" if clusters is None else f"{len(set(clusters)):,}",
        "" if effect is None else f"{effect:.2f}",
        "" if r is None else f"{r:.2f}".replace("-", "−"),
        _points(result.decision.smallest_detectable),
        result.verdict,
    )


def _without_empty(columns: Sequence[str], rows: Sequence[tuple[str, ...]], **given: Any) -> Table:
    """A table without the columns in which nothing stands, as of clusters where there are none."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return Table(
        tuple(columns[place] for place in kept), tuple(tuple(row[place] for place in kept) for row in rows), **given
    )


def _has_power(comparison: Comparison) -> bool:
    return any(task.subsets["all"].difference.standard_error for task in comparison.tasks)


def seeds_claim(comparison: Comparison) -> Claim:
    """What seeds and repeats do, and what more of them would buy."""
    noises = {task.task: task.noise for task in comparison.tasks if task.noise}
    if not any(map(_has_seeds, noises.values())):
        return Claim(
            "seeds",
            "Seeds",
            (
                "Each model ran with one seed: how much other seeds would change the scores is unknown. The intervals "
                "above are for these seeds, on items like these.",
            ),
            tuple(_component_tables(noises)),
        )
    said, rows = [], []
    whole = comparison.noise
    if whole is not None:
        for new, question in ((SEED, "other seeds on these items"), (BOTH, "other seeds and other items")):
            one = whole.intervals.get(new)
            if one is not None:
                rows.append((question, points(one.estimate), _interval(one), one.method))
        wider = whole.intervals.get(BOTH)
        if wider is not None and wider.low is not None and wider.high is not None:
            holds = wider.low > 0 or wider.high < 0
            said.append(
                f"The interval of B − A that allows for other seeds and other items is {_interval(wider)}: "
                f"it {'leaves out' if holds else 'holds'} zero."
            )
    for name, noise in noises.items():
        if noise.seed_sd_a is not None and noise.seed_sd_b is not None and len(noises) <= _MOST_TASKS_IN_WORDS:
            of_a, of_b = (_sd(one) for one in (noise.seed_sd_a, noise.seed_sd_b))
            said.append(f"{name}: over seeds, A's score varies with SD {of_a} and B's with {of_b} points.")
    if unmatched := [name for name, noise in noises.items() if _has_seeds(noise) and not noise.components]:
        said.append(
            f"Shares of the variance are not known for {_listed(unmatched)}: the seeds of A and B are not the same."
        )
    tables = [Table(("question", "B − A, points", "interval", "method"), tuple(rows))] if rows else []
    tables += _component_tables(noises)
    return Claim(
        "seeds",
        "Seeds",
        tuple(said),
        tuple(tables),
        {"seeds": "One dot for each seed; matched seeds of A and B are joined."},
        tuple(dict.fromkeys(warning for one in noises.values() for warning in one.warnings)),
    )


def _has_seeds(noise: Noise) -> bool:
    return max(noise.n_seeds_a, noise.n_seeds_b) > 1


_MOST_TASKS_IN_WORDS: Final = 6


def _component_tables(noises: Mapping[str, Noise]) -> list[Table]:
    """Shares of the variance, and what more of each would buy; a row for each task."""
    shares: dict[str, dict[str, str]] = {}
    designs: dict[str, dict[str, str]] = {}
    for name, noise in noises.items():
        known = [one for one in noise.components if one.variance is not None]
        total = sum(one.variance or 0.0 for one in known)
        for one in known:
            share = f"; {(one.variance or 0.0) / total:.0%}" if total else ""
            shares.setdefault(name, {})[" × ".join(one.facets)] = f"{_sd(one)}{share}"
        for design in noise.designs:
            error = f"{100 * design.standard_error:.2f}"
            designs.setdefault(name, {})[_design(design, noise.designs[0])] = error
    said = (
        (shares, "Where the difference's variance comes from: SD in points, and its share"),
        (designs, "What more of each would buy: the standard error, in points, for other seeds and items"),
    )
    found = []
    for cells, caption in said:
        columns = list(dict.fromkeys(name for of in cells.values() for name in of))
        rows = tuple((task, *(of.get(name, "") for name in columns)) for task, of in cells.items())
        found += [Table(("task", *columns), rows, caption=caption)] if rows else []
    return found


def _design(design: Design, now: Design) -> str:
    """A design by what of it is more than there is."""
    counts = {**design.levels, "answer to each": design.answers}
    present = {**now.levels, "answer to each": now.answers}
    more = [f"{counts[name] / present[name]:.3g} × the {name}s" for name in counts if counts[name] != present[name]]
    return ", ".join(more).replace("answer to eachs", "answers to each") or "as it is"


def contamination_claim(comparison: Comparison) -> Claim:
    """Whether the verdict hangs on flagged items, found or not."""
    tipping = tipping_point(comparison)
    said = []
    if comparison.rule is None:
        said.append(
            "No audit was given: nothing is known of leaked items. `evalkit audit` looks for them in the training data."
        )
        if tipping is not None:
            said.append(f"Were there leaks, {tipping}.")
        return Claim("contamination", "Contamination", tuple(said))
    found = contamination(comparison)
    assert found is not None
    said.append(f"By the rule {comparison.rule}, {found.finding}{_from_flagged(found)}.")
    if found.interaction is not None:
        what = "the flagged items move the difference" if _excludes_zero(found.interaction) else "this could be chance"
        size = "larger" if found.interaction.estimate >= 0 else "smaller"
        said.append(
            f"On flagged items, B − A is {size} than on clean ones: the one less the other is "
            f"{_with_interval(found.interaction)} points "
            f"({_count(found.n_tasks, 'task')} with enough of both): {what}."
        )
    if tipping is not None:
        said.append(f"Leaks that the audit has missed: {tipping}.")
    rows = [
        (
            SUBSET_NAMES[name],
            f"{result.n_items:,}",
            *("" if score is None else f"{100 * score:.1f}" for score in (result.score_a, result.score_b)),
            points(result.decision.estimate.estimate),
            _interval(result.decision.estimate),
            result.verdict,
        )
        for name, result in comparison.overall.items()
    ]
    counts: dict[str, dict[str, int]] = {}
    for item in comparison.items:
        of = counts.setdefault(item.task, {})
        of[item.status] = of.get(item.status, 0) + 1
    by_task = [
        (task, *(f"{of.get(one, 0):,}" for one in ("clean", "flagged", "not audited"))) for task, of in counts.items()
    ]
    return Claim(
        "contamination",
        "Contamination",
        tuple(said),
        (
            Table(("items", "n", "A", "B", "B − A, points", "interval", "B is"), tuple(rows)),
            Table(("task", "clean", "flagged", "not audited"), tuple(by_task), caption="Items of each task"),
        ),
        {"leaks": "Each task's flagged and clean items by who is right on them, in per cent of the items."},
        ("clean items are not a random sample of all items: the question is another one",),
    )


def slices_claim(comparison: Comparison) -> Claim | None:
    """The difference by a column of the documents."""
    if comparison.slices is None:
        return None
    rows = [
        (
            one.name,
            f"{one.estimate.n_items:,}",
            points(one.estimate.estimate),
            _interval(one.estimate),
            *("" if p is None else p_text(p) for p in (one.p_value, one.adjusted)),
            "" if one.shrunken is None else _with_interval(one.shrunken),
        )
        for one in sorted(comparison.slices.slices, key=lambda one: _numbers_first(one.name))
    ]
    columns = (comparison.slices_by or "slice", "n", "B − A, points", "interval", "p", "q", "drawn to all slices")
    return Claim("slices", f"By {comparison.slices_by}", (comparison.slices.explain(),), (Table(columns, tuple(rows)),))


def _numbers_first(name: str) -> tuple[bool, float, str]:
    """Sorts numbers by size, before other names."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def judge_claim(judge: Audit, comparison: Comparison, orders: Mapping[str, str] | None = None) -> Claim:
    """What judges say of the models, and what is to be said of the judges; `judge` is `evalkit.judges.audit.Audit`.

    `orders` names the judge of each figure of both orders. Win rates are of the report's B, whichever way round the
    verdicts have the two models; other pairs of models stand in the table only.
    """
    if judge is None:
        return Claim("judge", "Judge", ("No judge was given.",))
    said, position, results = [], [], []
    compared = {comparison.name_a, comparison.name_b}
    if not any({result.model_a, result.model_b} == compared for one in judge.judges for result in one.results):
        said.append("No judge has compared the models of this report by these names: see the pairs below.")
    for one in judge.judges:
        bias = one.position
        position.append(
            (
                one.judge,
                f"{bias.n_both:,}",
                *(f"{count:,}" for count in (bias.first_twice, bias.second_twice, bias.tie_once, bias.consistent)),
                *(_share(part) for part in (bias.conflict, bias.noise, bias.excess)),
                "" if bias.excess_p is None else p_text(bias.excess_p),
                "" if bias.bias is None else _with_interval(bias.bias),
                bias.sign,
            )
        )
        for result in one.results:
            rates: tuple[Estimate | None, ...] = (
                result.a_first,
                result.b_first,
                result.averaged,
                result.length_controlled,
                result.best,
            )
            names = result.model_b, result.model_a
            if names == (comparison.name_a, comparison.name_b):
                # The verdicts' A is the report's B: it wins what the other loses, and is first where the other is not.
                rates = tuple(map(_lost, (rates[1], rates[0], *rates[2:])))
                names = names[::-1]
            results.append((one.judge, " against ".join(names), *map(_share_with_interval, rates)))
            if rates[-1] is not None and set(names) == compared:
                said.append(
                    f"{one.judge}: {names[0]} wins {_share_with_interval(rates[-1])} against {names[1]}, "
                    f"over {result.n_used:,} pairs. {result.sentence()}"
                )
        if one.self_preference is not None:
            said.append(f"{one.judge} has judged answers of its own family: {one.self_preference}")
        if one.with_humans_both is not None:
            ceiling = "" if judge.humans is None else f"; humans among themselves {_share(judge.humans.raw)}"
            said.append(f"{one.judge} agrees with humans on {_share(one.with_humans_both.raw)} of the pairs{ceiling}.")
    return Claim(
        "judge",
        "Judge",
        tuple(said),
        (
            Table(
                (
                    "judge",
                    "pair",
                    "wins when shown second",
                    "shown first",
                    "both orders",
                    "at equal length",
                    "corrected",
                ),
                tuple(results),
                n_text=2,
                caption="Win rates of the model named first, ties half",
            ),
            Table(
                (
                    *("judge", "pairs", "first twice", "second twice", "tie once", "consistent", "conflict", "noise"),
                    *("excess", "its p", "the first leads by, points", "sign"),
                ),
                tuple(position),
                caption="Both orders, over all pairs of the judge",
            ),
        ),
        {name: f"{of}: verdicts of the one order against those of the other." for name, of in (orders or {}).items()},
        tuple(dict.fromkeys([*judge.warnings, *(warning for one in judge.judges for warning in one.warnings)])),
    )


def _lost(rate: Estimate | None) -> Estimate | None:
    """The win rate of the other model."""
    if rate is None:
        return None
    low, high = rate.low, rate.high
    return replace(
        rate,
        estimate=1 - rate.estimate,
        low=None if high is None else 1 - high,
        high=None if low is None else 1 - low,
    )


def standings_claim(standings: Standings) -> Claim:
    """Several models: every paired difference, and the ranks that the data leave possible."""
    order = sorted(range(len(standings.names)), key=lambda place: -standings.means[place])
    # Of tasks of both directions the mean has neither; where lower is better everywhere, it is shown as it is.
    mixed = 0 < standings.n_lower < standings.n_tasks
    sign = -1 if standings.n_lower else 1
    ranks = [
        (
            standings.names[i],
            "" if mixed else f"{100 * sign * standings.means[i]:.1f}",
            f"{standings.rank_low[i]}"
            if standings.rank_low[i] == standings.rank_high[i]
            else f"{standings.rank_low[i]} to {standings.rank_high[i]}",
        )
        for i in order
    ]

    def cell(i: int, j: int) -> str:
        value, low, high = standings.difference(i, j)
        interval = "no interval" if low is None or high is None else f"{points(low)}, {points(high)}"
        return f"{points(value)} [{interval}]"

    pairs = [(standings.names[i], *("" if i == j else cell(i, j) for j in order)) for i in order]
    lower = f"{_count(standings.n_lower, 'task')} of {standings.n_tasks} are better when lower: differences are turned"
    return Claim(
        "models",
        "Several models",
        (standings.explain(),),
        (
            _without_empty(("model", "mean score", "ranks"), ranks),
            Table(
                ("row less column, points", *(standings.names[j] for j in order)),
                tuple(pairs),
                caption="Paired differences, with intervals that hold all at once",
            ),
        ),
        notes=(*standings.warnings, *([f"{lower}, so that more is better"] if standings.n_lower else [])),
    )


def trend_claim(trend: Trend) -> Claim:
    """The score over training steps, and from which step on the gain is clear."""
    said, rows = [], []
    none: list[str] = []
    single: list[str] = []
    for task in trend.tasks:
        for line in task.lines:
            name = f"mean of {line.n_series}" if line.n_series > 1 else line.series or ""
            whole = f"{task.task}{f', {name}' if name else ''}"
            if line.clear_from is not None:
                said.append(
                    f"{whole}: from step {line.clear_from:,} on, the score differs clearly from that of the first "
                    "checkpoint, allowing for all steps."
                )
            else:
                (none if len(line.steps) > 1 else single).append(whole)
            for one in line.steps:
                score = f"{100 * one.score.estimate:.1f}"
                low, high = one.score.low, one.score.high
                interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
                rows.append((task.task, name, f"{one.step:,}", score, interval))
    if none:
        said.append(f"No difference from the first checkpoint is clear and lasts to the last step: {_listed(none)}.")
    if single:
        said.append(f"There is one checkpoint only, and nothing to compare it with: {_listed(single)}.")
    table = Table(("task", "series", "step", "score", "interval"), tuple(rows), n_text=2)
    figures = {
        "trend": "Score over training steps with bands; the mark is where the difference from the first becomes clear."
    }
    return Claim("trend", "Checkpoints", tuple(said), (table,), figures, tuple(trend.warnings))


def health_claim(comparison: Comparison, others: Mapping[str, Mapping[str, Any]] | None = None) -> Claim:
    """What the runs' own health checks say; `others` are the records of further models."""
    said, rows = [], []
    runs = {f"A ({comparison.name_a})": comparison.record_a, f"B ({comparison.name_b})": comparison.record_b}
    for run, record in {**runs, **(others or {})}.items():
        health = record.get("health") or {}
        findings = sentences({"findings": [], **health})
        if not health:
            said.append(f"{run}: no health check is recorded.")
        elif not findings:
            said.append(f"{run}: nothing was found wrong with the run.")
        rows += [(run, "yes" if health.get("suspect") else "no", finding) for finding in findings]
        failed = record.get("n_errors")
        if isinstance(failed, int) and failed:
            said.append(f"{run}: {failed:,} requests failed for good.")
    tables = (Table(("run", "suspect", "finding"), tuple(rows), n_text=3),) if rows else ()
    return Claim("health", "Health of the runs", tuple(said), tables)


def assumptions_claim(comparison: Comparison) -> Claim:
    """What the numbers rest on, what was dropped, and the worst that this could do."""
    result = comparison.overall["all"]
    cases = worst_cases(comparison)
    proportions = all(0 <= score <= 1 for item in comparison.items for score in (item.score_a, item.score_b))
    said = [
        f"What is independent of each other are {_listed_units(comparison)}; intervals speak of "
        f"{result.difference.population}.",
        f"Scores are averaged over repeats and seeds before anything else, so that an item counts once. "
        f"{_family(comparison)} The decision rule's SHA-256 is {comparison.decision_rule.digest()}.",
    ]
    tables: tuple[Table, ...] = ()
    if not comparison.items:
        said.append("The runs were taken as ones over different items: none had a partner, so none was dropped.")
    elif not cases:
        said.append("No item of the compared tasks was dropped.")
    else:
        n = sum(one.n_missing for one in cases)
        said.append(f"{_count(n, 'item')} of either run had no partner with a score and were dropped.")
        if proportions:
            rows = [
                (one.task, f"{one.n_items:,}", f"{one.n_missing:,}", f"{points(one.low)} to {points(one.high)}")
                for one in cases
            ]
            columns = ("task", "compared", "dropped", "lowest and highest B − A, points")
            caption = (
                "If the dropped items had had the scores, from 0 to 1, that make the difference smallest or largest"
            )
            tables = (Table(columns, tuple(rows), caption=caption),)
            if result.verdict in (BETTER, WORSE) and len(comparison.tasks) == 1:
                flips = cases[0].low <= 0 <= cases[0].high
                sign = "could vanish" if flips else "would keep its sign"
                said.append(f"At worst, the difference itself {sign}; its interval is not computed for that case.")
    return Claim("assumptions", "Assumptions and dropped items", tuple(said), tables, notes=tuple(notes(comparison)))


def _listed_units(comparison: Comparison) -> str:
    return " and ".join(dict.fromkeys(task.subsets["all"].difference.unit for task in comparison.tasks))


def _family(comparison: Comparison) -> str:
    n = len(comparison.tasks)
    return (
        f"The {n} tasks are one family: verdicts on single tasks are by intervals that hold all at once."
        if n > 1
        else "There is one task, so nothing was adjusted for several."
    )


def repeat_claim(
    comparison: Comparison, commands: Sequence[str], sources_of: Sequence[tuple[str, str, str]] = ()
) -> Claim:
    """Commands, versions and hashes; `sources_of` are rows about what else the report was made from."""
    rows: list[tuple[str, str, str]] = []
    for side, record in (("A", comparison.record_a), ("B", comparison.record_b)):
        model, spec = record.get("model") or {}, record.get("spec") or {}
        facts = {
            "model": model.get("path") or record.get("name"),
            **{name.replace("_", " "): model.get(name) for name in _HASHED},
            "tasks": _text(spec.get("tasks")),
            "seeds": _text(spec.get("seeds")),
            **{name: spec.get(name) for name in ("limit", "num_fewshot", "repeats", "backend", "margin")},
            "source tree": _text((record.get("git") or {}).get("commit")),
            "versions": ", ".join(f"{name} {version}" for name, version in (record.get("packages") or {}).items()),
            "finished": record.get("finished"),
        }
        rows += [(side, name, str(value)) for name, value in facts.items() if value not in (None, "", [])]
    return Claim(
        "repeat",
        "How to repeat this",
        (f"evalkit {evalkit.__version__}",),
        (Table(("run", "what", "value"), (*rows, *sources_of), n_text=3),),
        commands=tuple(commands),
    )


def run_command(record: Mapping[str, Any], out: str) -> str | None:
    """The command line of a run, from its record; None where the record does not say it."""
    spec = record.get("spec") or {}
    if not spec.get("model") or not spec.get("tasks"):
        return None
    words = ["evalkit", "run", "--model", str(spec["model"]), "--tasks", _text(spec["tasks"])]
    for name, field in RunSpec.model_fields.items():
        value = spec.get(name)
        if (
            name in _PLACES
            or value is None
            or value is False
            or value in ("", [], {})
            or _text(value) == _text(field.default)
        ):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, Mapping):
            words.append(",".join(f"{key}={one}" for key, one in value.items()))
        elif value is not True:
            words.append(_text(value))
    return shlex.join([*words, "--out", out])


_PLACES: Final = ("model", "tasks", "out", "checkpoints", "checkpoint_pattern", "perplexity")
"""Of a run's spec: what is said otherwise, or not by a run of tasks."""


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)


def _count(n: int, what: str) -> str:
    return f"one {what}" if n == 1 else f"{n:,} {what}s"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
    return f"{len(names)} ({shown})" if names else "none"


def _interval(one: Estimate) -> str:
    return "none" if one.low is None or one.high is None else f"{points(one.low)} to {points(one.high)}"


def _with_interval(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{points(one.estimate)} (no interval)"
    return f"{points(one.estimate)} ({one.confidence_level:.0%} interval {_interval(one)})"


def _points(value: float | None) -> str:
    return "" if value is None else points(value)[1:]


def _equals(p_value: float) -> str:
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def _excludes_zero(one: Estimate) -> bool:
    return one.low is not None and one.high is not None and (one.low > 0 or one.high < 0)


def _sd(one: Any) -> str:
    if one.standard_deviation is None:
        return "unknown"
    interval = "" if one.low is None else f" ({100 * one.low:.2f} to {100 * one.high:.2f})"
    return f"{100 * one.standard_deviation:.2f}{interval}"


def _share(one: Estimate | None) -> str:
    return "" if one is None else f"{100 * one.estimate:.1f}%".replace("-", "−")


def _share_with_interval(one: Estimate | None) -> str:
    if one is None:
        return ""
    interval = "" if one.low is None or one.high is None else f" ({100 * one.low:.1f} to {100 * one.high:.1f})"
    return f"{100 * one.estimate:.1f}%{interval}"
