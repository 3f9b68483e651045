"""Joins runs with an audit: each model's score on all, clean and flagged items, and what the flagged ones bring."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from evalkit import tables
from evalkit.errors import CompareError, SpecError
from evalkit.files import write_json
from evalkit.reports.comparison import p_text, points
from evalkit.reports.figures import LOOKS, check_figure_path, write_panels
from evalkit.reports.inputs import CLEAN, Run, audit_record, load_audit, load_run, read_json
from evalkit.reports.page import one_line
from evalkit.stats.results import Estimate
from evalkit.stats.split import Criterion, ScoreSplit, ThresholdChoice, ThresholdPoint, choose_threshold, score_split

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

RECORD: Final = "score_split.json"
"""Name of the result in the audit directory."""

POPULATION: Final = (
    "clean items are another population than all items: where flagged items are easier or harder for a model that "
    "never saw them, the gain holds that difference, too, and is no effect of contamination"
)
CONTROL: Final = (
    "--control RUN, a model that has not seen this corpus, takes the difficulty out of the gain as far as both models "
    "find the same items hard"
)


@dataclass(frozen=True)
class TaskSplit:
    """One run, task and rule.

    Attributes
    ----------
    run, task, metric, filter, higher_is_better
        What was scored.
    control
        The model whose scores were taken off, item by item; None when the scores are the run's own.
    rule, rule_threshold
        The rule, and the contamination from which on (or above which) it calls a field dirty, in words.
    split
        By the rule's own labels.
    choice
        The threshold chosen for this model and task.
    n_unscored
        Answers without a score.
    n_uncontrolled
        Items that the control has not scored.
    n_not_audited, n_not_judged
        Scored items that the audit lacks, and that it has but the rule cannot judge: they are on no side, and not
        among all.
    warnings
        What to know before believing it.
    """

    run: str
    task: str
    metric: str
    filter: str
    higher_is_better: bool
    control: str | None
    rule: str
    rule_threshold: str
    split: ScoreSplit
    choice: ThresholdChoice
    n_unscored: int
    n_uncontrolled: int
    n_not_audited: int
    n_not_judged: int
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run, and what was taken off."""
        return self.run if self.control is None else f"{self.run} \u2212 {self.control}"


@dataclass(frozen=True)
class ScoreSplits:
    """What contamination does to the scores of some runs: one entry for each run, task and rule.

    `finished` is when the audit was, from its record: a later audit in the same directory is another one.
    """

    audit: str
    finished: str | None
    entries: tuple[TaskSplit, ...]
    warnings: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """Two rows for each entry: split by the rule's labels, and at the chosen threshold if there is one."""
        import pandas as pd

        return pd.DataFrame([row for entry in self.entries for row in _flat(entry)])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "audit": self.audit,
            "finished": self.finished,
            "entries": [asdict(entry) for entry in self.entries],
            "warnings": list(self.warnings),
            "notes": notes(self),
        }

    def __str__(self) -> str:
        return "\n".join(f"{entry.name}, {entry.task}, {entry.rule}: {_sentence(entry)}" for entry in self.entries)

    def _repr_html_(self) -> str:
        table: str = self.to_frame().to_html(index=False, escape=True)
        return table + "".join(f"<p>note: {html.escape(note)}</p>" for note in notes(self))


@dataclass(frozen=True)
class _Labels:
    """What the audit says of each item under each rule: `of_rule[rule]` has `contamination` and `flagged` by doc_hash.

    `documents` are all items of the audit that any of its rules judges.
    """

    of_rule: dict[str, pd.DataFrame]
    thresholds: dict[str, str]
    documents: set[str]
    benchmarks: tuple[str, ...]
    n_bad_rows: int
    finished: str | None


def score_splits(
    runs: Sequence[Path],
    audit: Path,
    *,
    rules: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    metric: str | Mapping[str, tuple[str, str]] | None = None,
    control: Path | None = None,
    criterion: Criterion = "z",
    confidence_level: float = 0.95,
    n_resamples: int = 2000,
) -> ScoreSplits:
    """Split the scores of `runs` by what an audit says of the items, for each task and rule.

    Scores are averaged over repeats and seeds first. An item's contamination is that of its most contaminated field,
    and it is flagged when any of its fields is not clean. Only items that the rule could judge take part. A task of
    which the audit has no item is left out with a warning.

    Parameters
    ----------
    runs
        Run directories.
    audit
        Audit directory; the corpus is not needed.
    rules
        Some of the audit's rules; default: all.
    tasks
        Some of the runs' tasks; default: all.
    metric
        "metric" or "metric,filter", or for each task its metric and filter; default: each task's first that has scores
        in all runs.
    control
        Run of a model that has not seen the corpus: each run is also split by the differences of its scores from the
        control's on the same items, which takes out what makes flagged items easier or harder for both.
    criterion
        How the threshold is chosen, see `evalkit.stats.split.choose_threshold`.
    confidence_level, n_resamples
        Of the intervals and tests.

    Raises
    ------
    CompareError
        A directory is no run or no finished audit, has no such rule or metric, or no item of any run is in the audit.
    SpecError
        The level is none, there is no such criterion, or there is no run.
    TableError
        A table is faulty.
    """
    _check_options(runs, criterion, confidence_level, n_resamples)
    labels = _load_labels(audit, rules)
    against = load_run(control) if control else None
    entries: list[TaskSplit] = []
    warnings: list[str] = []
    if labels.n_bad_rows:
        warnings.append(
            f"the audit could not read {labels.n_bad_rows:,} rows of its corpus: what only they hold counts as clean"
        )
    named = _named(runs)
    for run in (*named.values(), *([against] if against else [])):
        if (run.record.get("health") or {}).get("suspect"):
            warnings.append(f"{run.name} is suspect: its scores may be those of its set-up (see health in run.json)")
    for name, run in named.items():
        for task in run.tasks if tasks is None else [one for one in run.tasks if one in tasks]:
            scored = [_scored(run, task, _metric(list(named.values()), run, task, metric, warnings))]
            if against is not None:
                scored += _controlled(scored[0], against, task, warnings)
            for one, rule in itertools.product(scored, labels.of_rule):
                if one.items.index.isin(labels.of_rule[rule].index).any():
                    entries.append(_entry(name, task, one, rule, labels, criterion, confidence_level, n_resamples))
                else:
                    warnings.append(f"{task}: rule {rule} of the audit has judged none of the scored items")
    if not entries:
        raise CompareError(
            f"the audit has none of the runs' scored items: it covers {', '.join(labels.benchmarks)}; the runs have "
            f"{', '.join(dict.fromkeys(task for run in named.values() for task in run.tasks))}",
            where=str(audit),
            do="Audit the corpus for the tasks that were run (same --data and --task-seed)",
        )
    return ScoreSplits(str(audit), labels.finished, tuple(entries), tuple(dict.fromkeys(warnings)))


def _check_options(runs: Sequence[Path], criterion: str, confidence_level: float, n_resamples: int) -> None:
    if not 0 < confidence_level < 1 or n_resamples * (1 - confidence_level) < 2:
        raise SpecError(
            f"{confidence_level} is no level for {n_resamples} resamples",
            where="--confidence-level",
            do="Give one between 0 and 1, such as 0.95",
        )
    if criterion not in get_args(Criterion):
        raise SpecError(f"'{criterion}' is no criterion", where="--criterion", do="Choose z or gain")
    if not runs:
        raise SpecError("no run was given", where="--run", do="Give at least one run directory")


def _named(directories: Sequence[Path]) -> dict[str, Run]:
    """Read the runs; of two models of one name the second has its directory in the name."""
    found: dict[str, Run] = {}
    for run in map(load_run, dict.fromkeys(directories)):
        found[f"{run.name} ({run.directory})" if run.name in found else run.name] = run
    return found


def write_splits(splits: ScoreSplits, audit: Path) -> Path:
    """Write the result into the audit directory, whole or not at all, and return its path."""
    path = audit / RECORD
    write_json(path, splits.to_dict())
    return path


@dataclass(frozen=True)
class _Scored:
    """A task's items by doc_hash with `score` and `cluster`, and what they are."""

    items: pd.DataFrame
    metric: tuple[str, str]
    higher_is_better: bool
    n_unscored: int
    control: str | None = None
    n_uncontrolled: int = 0
    warnings: tuple[str, ...] = ()


def _metric(
    runs: Sequence[Run], run: Run, task: str, metric: str | Mapping[str, tuple[str, str]] | None, warnings: list[str]
) -> tuple[str, str]:
    """The first metric and filter that all runs have scored, so that they can be compared; else the run's own."""
    if metric is not None and not isinstance(metric, str):
        return metric[task]
    of_all = set.intersection(*(one.scored(task) for one in runs if task in one.tasks))
    own = run.primary(task, metric)
    chosen = next((one for one in run.metrics(task, metric) if one in of_all), own)
    if chosen not in of_all and len(runs) > 1:
        warnings.append(f"{task}: no metric has scores in all runs; that of {run.name} is {','.join(own)}")
    return chosen


def _scored(run: Run, task: str, chosen: tuple[str, str]) -> _Scored:
    items, n_unscored = run.items(task, chosen)
    return _Scored(items, chosen, run.higher_is_better(task, *chosen), n_unscored)


def _controlled(scored: _Scored, control: Run, task: str, warnings: list[str]) -> list[_Scored]:
    """Take the control's score off each item; nothing, and a warning, when it has none to take off."""
    if task not in control.tasks or scored.metric not in control.scored(task):
        warnings.append(f"{task}: the control {control.name} has no score of {','.join(scored.metric)} for it")
        return []
    others, n_unscored = control.items(task, scored.metric)
    joined = scored.items.join(others[["score", "prompts"]], how="inner", rsuffix="_control")
    if joined.empty:
        warnings.append(f"{task}: the control {control.name} has scored none of the items")
        return []
    n_prompts = int((joined.prompts != joined.prompts_control).sum())
    found = (f"the control was asked {n_prompts:,} of the items in other words",) if n_prompts else ()
    return [
        replace(
            scored,
            items=joined.assign(score=joined.score - joined.score_control),
            n_unscored=scored.n_unscored + n_unscored,
            control=control.name,
            n_uncontrolled=len(scored.items) - len(joined),
            warnings=found,
        )
    ]


def _load_labels(directory: Path, rules: Sequence[str] | None) -> _Labels:
    """Read the labels of all items; refuses what `compare` refuses, and rules that the audit does not have."""
    first = load_audit(directory, rules[0] if rules else None)
    record = read_json(audit_record(directory))
    items = tables.read(directory / "items.parquet", tables.ITEMS).to_pandas()
    listed = [rule for rule in record.get("rules") or sorted(items.rule.unique()) if rule in set(items.rule)]
    for rule in rules or ():
        if rule not in listed:
            raise CompareError(
                f"the audit has no rule '{rule}'", where=str(directory), do=f"Choose --rule from: {', '.join(listed)}"
            )
    by_item = items.assign(flagged=items.label != CLEAN).groupby(["rule", "doc_hash"], sort=False)
    found = by_item.agg(contamination=("contamination", "max"), flagged=("flagged", "any"))
    return _Labels(
        of_rule={rule: found.loc[rule] for rule in dict.fromkeys(rules or listed)},
        thresholds={rule: _threshold(record, rule) for rule in listed},
        documents=set(items.doc_hash),
        benchmarks=tuple(map(str, items.benchmark.unique())),
        n_bad_rows=first.n_bad_rows,
        finished=record.get("finished"),
    )


def _threshold(record: Any, rule: str) -> str:
    """Say from which contamination on the rule flags, as far as the record tells."""
    for one in record.get("rule_definitions") or ():
        if isinstance(one, dict) and one.get("name") == rule and isinstance(one.get("threshold"), int | float):
            sign = ">" if one.get("is_strict") else "\u2265"
            return f"{sign} {one['threshold']:.2f}"
    return "rule"


def _entry(
    name: str,
    task: str,
    scored: _Scored,
    rule: str,
    labels: _Labels,
    criterion: Criterion,
    confidence_level: float,
    n_resamples: int,
) -> TaskSplit:
    items = scored.items.join(labels.of_rule[rule], how="inner")
    scores = items.score.to_numpy(float)
    # A null cluster means that the item stands for itself.
    cluster = items.cluster.where(items.cluster.notna(), items.index.to_series()).tolist()
    split = score_split(
        scores,
        items.flagged.to_numpy(bool),
        cluster=cluster,
        is_binary=None if scored.control is None else False,
        higher_is_better=scored.higher_is_better,
        confidence_level=confidence_level,
    )
    choice = choose_threshold(
        scores,
        items.contamination.clip(0, 1).to_numpy(float),
        cluster=cluster,
        criterion=criterion,
        is_binary=None if scored.control is None else False,
        higher_is_better=scored.higher_is_better,
        confidence_level=confidence_level,
        n_resamples=n_resamples,
    )
    in_audit = int(scored.items.index.isin(labels.documents).sum())
    n_not_audited, n_not_judged = len(scored.items) - in_audit, in_audit - len(items)
    return TaskSplit(
        run=name,
        task=task,
        metric=scored.metric[0],
        filter=scored.metric[1],
        higher_is_better=scored.higher_is_better,
        control=scored.control,
        rule=rule,
        rule_threshold=labels.thresholds[rule],
        split=split,
        choice=choice,
        n_unscored=scored.n_unscored,
        n_uncontrolled=scored.n_uncontrolled,
        n_not_audited=n_not_audited,
        n_not_judged=n_not_judged,
        warnings=(*scored.warnings, *_warnings(split, choice, scores, scored, n_not_audited, n_not_judged)),
    )


def _warnings(
    split: ScoreSplit, choice: ThresholdChoice, scores: Any, scored: _Scored, n_not_audited: int, n_not_judged: int
) -> list[str]:
    n_all, found = len(scored.items), []
    for count, what in (
        (n_not_audited, f"of {n_all:,} items are not in the audit (or have no text to look for)"),
        (n_not_judged, f"of {n_all:,} items have no text that the rule can judge"),
    ):
        if count:
            found.append(f"{count:,} {what}: neither clean nor flagged, and not among all")
    if scored.n_uncontrolled:
        found.append(f"{scored.n_uncontrolled:,} items have no score of the control and are left out")
    if scored.n_unscored:
        found.append(f"{scored.n_unscored:,} answers have an error or no score and are left out")
    if split.flagged is None:
        found.append("no item is flagged by the rule: there is nothing to set the clean ones against")
    elif split.clean is None:
        found.append("every item is flagged by the rule: there is no clean one")
    if scored.control is None and (scores.min() < 0 or scores.max() > 1):
        found.append("the scores are no proportions; all figures shown are a hundred times the score")
    for one in (split.everything, split.clean, split.flagged):
        found += one.warnings if one else ()
    return list(dict.fromkeys([*found, *split.warnings, *choice.warnings]))


def _flat(entry: TaskSplit) -> list[dict[str, Any]]:
    split, choice = entry.split, entry.choice
    what = {"run": entry.run, "control": entry.control, "task": entry.task, "metric": entry.metric, "rule": entry.rule}

    def value(one: Estimate | None) -> float | None:
        return None if one is None else one.estimate

    def row(threshold: float | None, n_clean: int, n_flagged: int, **values: Any) -> dict[str, Any]:
        return {**what, "threshold": threshold, "n_clean": n_clean, "n_flagged": n_flagged, **values}

    rows = [
        row(
            None,
            split.clean.n_items if split.clean else 0,
            split.flagged.n_items if split.flagged else 0,
            score=split.everything.estimate,
            score_clean=value(split.clean),
            score_flagged=value(split.flagged),
            gain=value(split.gain),
            low=split.gain.low if split.gain else None,
            high=split.gain.high if split.gain else None,
            p_value=None,
        )
    ]
    if one := choice.chosen:
        rows.append(
            row(
                one.threshold,
                one.n_clean,
                one.n_flagged,
                score=choice.score,
                score_clean=one.score_clean,
                score_flagged=one.score_flagged,
                gain=one.gain,
                low=one.band_low,
                high=one.band_high,
                p_value=one.p_value,
            )
        )
    return rows


def render_splits(splits: ScoreSplits, console: Any) -> None:
    """Print a table for each run and rule, what was chosen, and what was left out, on a rich console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    groups: dict[tuple[str, str], list[TaskSplit]] = {}
    for entry in splits.entries:
        groups.setdefault((entry.name, entry.rule), []).append(entry)
    for (name, rule), entries in groups.items():
        title = Text(one_line(f"{name}: rule {rule}"))
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in ("task", "flagged from", "items", "all", "clean", "flagged", "gain (points)", "p"):
            table.add_column(column, justify="left" if column in ("task", "flagged from") else "right")
        for entry in entries:
            table.add_row(*map(Text, _rule_cells(entry)))
            if entry.choice.chosen:
                table.add_row(*map(Text, _chosen_cells(entry.choice, entry.choice.chosen)))
        console.print(table)
        for entry in entries:
            console.print(f"{one_line(f'{entry.task}, {entry.metric}')}: {_sentence(entry)}", markup=False)
        console.print()
    for note in notes(splits):
        console.print(f"note: {one_line(note)}", markup=False)


def _rule_cells(entry: TaskSplit) -> tuple[str, ...]:
    split = entry.split
    n_flagged = split.flagged.n_items if split.flagged else 0
    means = (_mean(one) for one in (split.everything, split.clean, split.flagged))
    gain = "" if split.gain is None else _with_interval(split.gain.estimate, split.gain.low, split.gain.high)
    return (one_line(entry.task), entry.rule_threshold, _count(n_flagged, split.everything.n_items), *means, gain, "")


def _chosen_cells(choice: ThresholdChoice, one: ThresholdPoint) -> tuple[str, ...]:
    return (
        "",
        f"\u2265 {one.threshold:.2f} chosen",
        _count(one.n_flagged, choice.n_items),
        *(f"{100 * value:.1f}".replace("-", "\u2212") for value in (choice.score, one.score_clean, one.score_flagged)),
        _with_interval(one.gain, one.band_low, one.band_high),
        p_text(one.p_value),
    )


def _count(n: int, n_all: int) -> str:
    return f"{n:,} ({n / n_all:.0%})"


def _mean(one: Estimate | None) -> str:
    if one is None:
        return ""
    # Whole points, so that three of them fit beside each other; JSON has them exactly.
    interval = "" if one.low is None or one.high is None else f" [{100 * one.low:.0f}, {100 * one.high:.0f}]"
    return f"{100 * one.estimate:.1f}{interval}".replace("-", "\u2212")


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    interval = "no interval" if low is None or high is None else f"[{points(low)}, {points(high)}]"
    return f"{points(value)} {interval}"


def _sentence(entry: TaskSplit) -> str:
    """Say what the choice of a threshold came to."""
    choice = entry.choice
    if choice.p_value is None:
        return f"no threshold chosen: {'; '.join(choice.warnings)}"
    n_tried = len(choice.curve)
    tried = "one threshold" if n_tried == 1 else f"{n_tried} thresholds"
    p = p_text(choice.p_value)
    test = f"p {p if p[0] == '<' else f'= {p}'} over {tried}"
    one = choice.chosen
    if one is None:
        return f"no threshold with a significant gain ({test})"
    said = f"gain {points(one.gain)} points at threshold {one.threshold:.2f} ({test}"
    if n_tried > 1 and choice.threshold_low is not None and choice.threshold_high is not None:
        said += (
            f"; resamples choose {choice.threshold_low:.2f} to {choice.threshold_high:.2f}"
            f"{'' if choice.share_chosen == 1 else f', {_share(1 - (choice.share_chosen or 0))} of them none'}"
        )
    if n_tried > 1 and choice.optimism is not None:
        said += f"; of the gain, about {points(choice.optimism)} or more comes of choosing"
    return said + ")"


def _share(value: float) -> str:
    return "under 1%" if value < 0.01 else f"{value:.0%}"


def notes(splits: ScoreSplits) -> list[str]:
    """What to know beside the numbers: warnings, items left out, and what the clean items are not."""
    found: dict[str, list[str]] = {warning: [] for warning in splits.warnings}
    for entry in splits.entries:
        for warning in entry.warnings:
            found.setdefault(warning, []).append(f"{entry.name}, {entry.task}, {entry.rule}")
    said = []
    for warning, where in found.items():
        places = list(dict.fromkeys(where))
        said.append(
            warning if not places else f"{places[0]}{f' and {len(places) - 1} more' if places[1:] else ''}: {warning}"
        )
    if any(entry.choice.chosen and len(entry.choice.curve) > 1 for entry in splits.entries):
        said.append(
            "the interval at a chosen threshold holds at all thresholds at once; p allows for having tried them all"
        )
    return [*said, POPULATION, *([] if any(entry.control for entry in splits.entries) else [CONTROL])]


def write_split_figure(splits: ScoreSplits, path: Path) -> None:
    """Draw a panel per task and rule: the gain over the threshold, by run, with its simultaneous band.

    Raises
    ------
    SpecError
        The path ends in neither .svg nor .png, or no threshold could be tried.
    """
    check_figure_path(path)
    panels: dict[tuple[str, str], list[TaskSplit]] = {}
    for entry in splits.entries:
        if entry.choice.curve:
            panels.setdefault((entry.task, entry.rule), []).append(entry)
    if not panels:
        raise SpecError("there is no curve: no threshold could be tried", where="--figure", do="Leave it out")
    write_panels(
        path,
        [partial(_draw, title=f"{task}: {rule}", entries=entries) for (task, rule), entries in panels.items()],
    )


def _draw(axes: Axes, title: str, entries: Sequence[TaskSplit]) -> None:
    axes.axhline(0, color="#767676", linewidth=0.8)
    drawn = []
    for number, entry in enumerate(entries):
        colour, marker = LOOKS[number % len(LOOKS)]
        curve = entry.choice.curve
        at = [one.threshold for one in curve]
        gain, low, high = (
            [np.nan if value is None else 100 * value for value in values]
            for values in zip(*((one.gain, one.band_low, one.band_high) for one in curve), strict=True)
        )
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        drawn += axes.plot(
            at, gain, color=colour, linewidth=1.4, marker=marker, markersize=3, label=one_line(entry.name)
        )
        if one := entry.choice.chosen:
            axes.plot(
                [one.threshold], [100 * one.gain], color=colour, marker="o", markersize=10, markerfacecolor="none"
            )
    key = " (ring: chosen)" if any(entry.choice.chosen for entry in entries) else ""
    axes.set_title(one_line(title) + key, loc="left", fontsize=9)
    axes.set_xlabel("contamination from which items are flagged")
    axes.set_ylabel("gain (points)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(entries) > 1:
        axes.legend(handles=drawn, frameon=False, fontsize=8)
