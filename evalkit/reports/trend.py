"""Follows the scores of a training run's checkpoints: reads their runs, and shows each task's score over the steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from evalkit.errors import CompareError, InputError, SpecError
from evalkit.reports.comparison import p_text, points
from evalkit.reports.figures import GREY, LOOKS, check_figure_path, panels, write_panels
from evalkit.reports.inputs import load_run, read_json
from evalkit.reports.page import one_line
from evalkit.stats.means import mean_score
from evalkit.stats.paired import paired_difference
from evalkit.stats.results import Estimate
from evalkit.stats.trend import MIN_CHECKPOINTS, UNRESOLVED, LateChange, RankTrend, late_change, rank_trend

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCOPE: Final = (
    "verdicts are for items like these at these checkpoints; they say nothing of other seeds or of what comes next"
)

_BARS: Final = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class StepScore:
    """The score at one step, `sd` its standard deviation over series; suspect where the run's health check said so."""

    step: int
    score: Estimate
    suspect: bool
    sd: float | None = None


@dataclass(frozen=True)
class SeriesTrend:
    """One training run, or the mean of `n_series` of them, on one task; `late` is None below 3 checkpoints.

    `clear_from` is the step from which on the score differs from the first checkpoint's, on the same side at all later
    steps, by intervals that hold for all steps at once (Bonferroni); None where there is none.
    """

    series: str | None
    n_series: int
    steps: tuple[StepScore, ...]
    rank: RankTrend
    late: LateChange | None
    clear_from: int | None = None

    @property
    def verdict(self) -> str:
        """Still rising, falling, or flat or not resolved: of the score, whichever direction is better."""
        return self.late.verdict if self.late else UNRESOLVED


@dataclass(frozen=True)
class TaskTrend:
    """One task on the items that all its checkpoints scored, `n_left_out` others not; the series, then their mean."""

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    n_items: int
    n_left_out: int
    n_unscored: int
    series: tuple[SeriesTrend, ...]
    mean: SeriesTrend | None

    @property
    def lines(self) -> tuple[SeriesTrend, ...]:
        """The series, and their mean if there are several."""
        return (*self.series, self.mean) if self.mean else self.series


@dataclass(frozen=True)
class Trend:
    """The scores of all tasks over the steps, and what to know before believing them."""

    directory: str
    tasks: tuple[TaskTrend, ...]
    warnings: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per task, series and step; the mean over series has no series, and `n_series` above 1."""
        import pandas as pd

        return pd.DataFrame(
            {
                **{name: getattr(task, name) for name in ("task", "metric", "filter")},
                "series": line.series,
                "n_series": line.n_series,
                "step": one.step,
                "n_items": one.score.n_items,
                "score": one.score.estimate,
                "low": one.score.low,
                "high": one.score.high,
                "sd": one.sd,
                "suspect": one.suspect,
            }
            for task in self.tasks
            for line in task.lines
            for one in line.steps
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**asdict(self), "scope": SCOPE}


@dataclass(frozen=True)
class _Checkpoint:
    """What one run says of one task; items as `Run.items` returns them."""

    directory: Path
    series: str | None
    step: int
    suspect: bool
    items: pd.DataFrame
    n_unscored: int


def trend(
    directory: Path, *, metric: str | None = None, confidence_level: float = 0.95, cluster: str | None = None
) -> Trend:
    """Follow each task's score over the steps of the runs anywhere below a folder.

    Parameters
    ----------
    directory
        Holds the run directories, at any depth; their `run.json` says at which step of which series they stand.
    metric
        "metric" or "metric,filter"; default: the first of each task.
    confidence_level
        Of the intervals and verdicts.
    cluster
        A column of the documents: items with the same value share a source. Default: what the runs say.

    Raises
    ------
    InputError, CompareError, SpecError
        There is no finished run with a step, two are of one step, they lack the metric, or share no item of a task.
    TableError
        A table is faulty.
    """
    if not 0 < confidence_level < 1:
        raise SpecError(f"{confidence_level} is no level", where="--confidence-level", do="Give one between 0 and 1")
    places, warnings = _places(directory)
    checkpoints: dict[str, list[_Checkpoint]] = {}
    chosen: dict[str, tuple[str, str, bool]] = {}
    sources: dict[str, dict[str, Any]] = {}
    for folder, series, step in places:
        run = load_run(folder)
        suspect = bool((run.record.get("health") or {}).get("suspect"))
        if cluster and (new := [task for task in run.tasks if task not in chosen]):
            sources |= run.document_column(cluster, new)
        for task in run.tasks:
            primary = run.primary(task, ",".join(chosen[task][:2]) if task in chosen else metric)
            chosen.setdefault(task, (*primary, run.higher_is_better(task, *primary)))
            items, n_unscored = run.items(task, primary)
            if items.empty:
                warnings.append(f"{task}: left out step {step} in {folder}: no answer has a score")
                continue
            if task in sources:
                items = with_sources(items, sources[task])
            checkpoints.setdefault(task, []).append(_Checkpoint(folder, series, step, suspect, items, n_unscored))
    if not checkpoints:
        raise InputError("no run has a score per item", where=str(directory), do="Choose another --metric")
    tasks = []
    for task, found in checkpoints.items():
        result, of_task = _task_trend(task, chosen[task], found, confidence_level)
        tasks.append(result)
        warnings.extend(f"{task}: {warning}" for warning in dict.fromkeys(of_task))
    return Trend(str(directory), tuple(tasks), tuple(warnings))


def with_sources(items: pd.DataFrame, source_of: Mapping[str, Any]) -> pd.DataFrame:
    """Take items with the same value of a column as a cluster; those without one stand for themselves."""
    found = [source_of.get(str(item)) for item in items.index]
    named: list[Any] = [None if one is None else str(one) for one in found]
    return items.assign(cluster=named)


def _places(directory: Path) -> tuple[list[tuple[Path, str | None, int]], list[str]]:
    """Find (directory, series, step) of each finished run, by series and step, and say what is left out."""
    if not directory.is_dir():
        raise InputError("there is no such folder", where=str(directory), do="Give the folder that holds the runs")
    places, n_unfinished, n_without_step = [], 0, 0
    for path in sorted(directory.rglob("run.json")):
        record = read_json(path)
        place = record.get("checkpoint") or {}
        if record.get("rescored_from"):
            continue  # the same answers under another definition
        if record.get("status") != "complete" or not (path.parent / "samples.parquet").is_file():
            n_unfinished += 1
        elif not isinstance(place, Mapping) or type(place.get("step")) not in (int, type(None)):
            raise InputError(f"the step of {place!r} is no whole number", where=str(path), do="Correct the record")
        elif place.get("step") is None:
            n_without_step += 1
        else:
            series = place.get("series")
            places.append((path.parent, None if series is None else str(series), place["step"]))
    warnings = [f"left out {n_unfinished} unfinished run(s)"] if n_unfinished else []
    warnings += [f"left out {n_without_step} run(s) without a step"] if n_without_step else []
    if not places:
        raise InputError(
            "; ".join(["there is no finished run that says its step", *warnings]),
            where=str(directory),
            do="Give the folder with the runs of a training run's checkpoints",
        )
    return sorted(places, key=lambda place: (place[1] or "", place[2])), warnings


def _task_trend(
    task: str, chosen: tuple[str, str, bool], checkpoints: Sequence[_Checkpoint], confidence_level: float
) -> tuple[TaskTrend, list[str]]:
    """Put the common items of all checkpoints side by side, and follow each series and their mean."""
    import pandas as pd

    columns: dict[tuple[str | None, int], int] = {}
    for number, one in enumerate(checkpoints):
        if (other := columns.setdefault((one.series, one.step), number)) != number:
            raise InputError(
                f"this run and {checkpoints[other].directory} are both of step {one.step} of one series for {task}",
                where=str(one.directory),
                do="Keep one of them in the folder",
            )
    table = pd.concat([one.items.score for one in checkpoints], axis=1, join="inner")
    everything = set().union(*(one.items.index for one in checkpoints))
    if table.empty:
        raise CompareError(
            f"the checkpoints share none of the {len(everything)} items",
            where=f"task {task}",
            do="Use the same data, --limit and --task-seed for all",
        )
    scores, first = table.to_numpy(float), checkpoints[0].items.loc[table.index]
    # A null cluster means that the item stands for itself.
    cluster = first.cluster.where(first.cluster.notna(), first.index.to_series()).tolist()
    steps_of: dict[str | None, list[int]] = {}
    for name, step in columns:
        steps_of.setdefault(name, []).append(step)
    names = list(steps_of)
    common = [step for step in steps_of[names[0]] if all(step in steps for steps in steps_of.values())]

    def follow(of: Sequence[str | None], steps: Sequence[int]) -> SeriesTrend:
        parts = np.stack([scores[:, [columns[name, step] for step in steps]] for name in of])
        suspect = {one.step for one in checkpoints if one.suspect and one.series in of}
        return _follow(of[0] if len(of) == 1 else None, parts, steps, suspect, cluster, confidence_level)

    result = TaskTrend(
        task,
        *chosen,
        n_items=len(table),
        n_left_out=len(everything) - len(table),
        n_unscored=sum(one.n_unscored for one in checkpoints),
        series=tuple(follow([name], steps) for name, steps in steps_of.items()),
        mean=follow(names, common) if len(names) > 1 and common else None,
    )
    return result, _warnings(result, checkpoints, table)


def _follow(
    series: str | None,
    parts: npt.NDArray[np.float64],
    steps: Sequence[int],
    suspect: Collection[int],
    cluster: Sequence[Any],
    confidence_level: float,
) -> SeriesTrend:
    """Follow the mean of `parts` (n_series, n_items, n_steps): one series, or several, averaged for each item."""
    scores = parts.mean(axis=0)
    means = [mean_score(column, cluster=cluster, confidence_level=confidence_level) for column in scores.T]
    sds = parts.mean(axis=1).std(axis=0, ddof=1).tolist() if len(parts) > 1 else [None] * len(steps)
    late = None
    if len(steps) >= MIN_CHECKPOINTS:
        late = late_change(scores, steps, cluster=cluster, confidence_level=confidence_level)
    return SeriesTrend(
        series=series,
        n_series=len(parts),
        steps=tuple(
            StepScore(step, mean, step in suspect, sd) for step, mean, sd in zip(steps, means, sds, strict=True)
        ),
        rank=rank_trend(steps, [mean.estimate for mean in means]),
        late=late,
        clear_from=_clear_from(scores, steps, cluster, confidence_level),
    )


def _clear_from(
    scores: npt.NDArray[np.float64], steps: Sequence[int], cluster: Sequence[Any], confidence_level: float
) -> int | None:
    """The step from which on the difference to the first one is clear, and stays on its side."""
    if len(steps) < 2:
        return None
    level = 1 - (1 - confidence_level) / (len(steps) - 1)
    sides = []
    for column in scores.T[1:]:
        found = paired_difference(scores[:, 0], column, cluster=cluster, confidence_level=level, method="auto")
        clear = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
        sides.append(np.sign(found.estimate) if clear else 0.0)
    first = len(sides)
    while first > 0 and sides[first - 1] == sides[-1] != 0:
        first -= 1
    return steps[first + 1] if first < len(sides) else None


def _warnings(result: TaskTrend, checkpoints: Sequence[_Checkpoint], scores: pd.DataFrame) -> list[str]:
    found = []
    fewest = min(checkpoints, key=lambda one: len(one.items))
    if result.n_left_out:
        found.append(
            f"left out {result.n_left_out} item(s) that not every checkpoint scored (fewest: {len(fewest.items)} at "
            f"step {fewest.step})"
        )
    if result.n_unscored:
        found.append(f"left out {result.n_unscored} answer(s) with an error or without a score")
    prompts = [one.items.prompts.loc[scores.index].to_numpy() for one in checkpoints]
    if n_differing := int(np.any([one != prompts[0] for one in prompts], axis=0).sum()):
        found.append(
            f"the prompts of {n_differing} item(s) differ between checkpoints, so a change may not be the model's"
        )
    if len(result.series) > 1 and result.mean is None:
        found.append("the series share no step, so there is no mean over them")
    if n_suspect := sum(one.suspect for one in checkpoints):
        found.append(f"{n_suspect} suspect run(s) take part in the verdicts; see their health in run.json")
    if (values := scores.to_numpy(float)).min() < 0 or values.max() > 1:
        found.append("the scores are no proportions; all figures shown are a hundred times the score")
    late = [warning for line in result.lines if line.late for warning in line.late.change.warnings]
    return found + late + [warning for line in result.lines for one in line.steps for warning in one.score.warnings]


def render_trend(trend: Trend, console: Any) -> None:
    """Print a table of each task's scores, its verdicts, and what was left out, on a rich console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for task in trend.tasks:
        several = len(task.series) > 1
        direction = "" if task.higher_is_better else " (lower is better)"
        title = one_line(f"{task.task}: {task.metric},{task.filter}{direction}")
        table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("step", *["series"] * several, "items", "score", "interval", *["sd over series"] * several, ""):
            table.add_column(name, justify="left" if name in ("series", "") else "right")
        for line in task.lines:
            for one in line.steps:
                sd = "" if one.sd is None else f"{100 * one.sd:.1f}"
                cells = (f"{one.step:,}", *[_name(line)] * several, f"{one.score.n_items:,}")
                cells += (f"{100 * one.score.estimate:.1f}", _interval(one.score), *[sd] * several)
                table.add_row(*map(Text, (*cells, "suspect" if one.suspect else "")))
            table.add_section()
        console.print(table)
        for line in task.lines:
            console.print(f"{_name(line)}: {_sentence(line)}" if several else _sentence(line), markup=False)
        console.print()
    for note in (*trend.warnings, SCOPE):
        console.print(f"note: {one_line(note)}", markup=False)


def sparkline(values: Sequence[float]) -> str:
    """Draw numbers as a line of bars from the lowest to the highest."""
    low, high = min(values), max(values)
    top = len(_BARS) - 1
    return "".join(_BARS[round(top * (value - low) / (high - low)) if high > low else top // 2] for value in values)


def _sentence(line: SeriesTrend) -> str:
    shown = f"{sparkline([one.score.estimate for one in line.steps])}  {line.verdict}"
    if line.late is None:
        shown += f" (a trend needs {MIN_CHECKPOINTS} checkpoints)"
    else:
        change = line.late.change
        shown += (
            f": {points(change.estimate)} points from step {line.late.first_step:,} to {line.late.last_step:,} "
            f"({change.confidence_level:.0%} interval {_interval(change, points)} over {change.n:,} {change.unit})"
        )
    if line.rank.tau is None or line.rank.p_value is None:
        return shown
    p = p_text(line.rank.p_value)
    tau = f"{line.rank.tau:+.2f}".replace("-", "\u2212")
    return f"{shown}; Kendall's tau-b {tau} (p {p if p[0] == '<' else f'= {p}'} over {line.rank.n} checkpoints)"


def _interval(estimate: Estimate, show: Any = lambda value: f"{100 * value:.1f}") -> str:
    return "none" if estimate.low is None else f"{show(estimate.low)} to {show(estimate.high)}"


def _name(line: SeriesTrend) -> str:
    return f"mean of {line.n_series}" if line.n_series > 1 else one_line(line.series or "(unnamed)")


def write_trend_figure(trend: Trend, path: Path) -> None:
    """Draw a panel per task: score over step, with the interval (of the mean, if there are several series).

    Raises
    ------
    SpecError
        The path ends in neither .svg nor .png.
    """
    check_figure_path(path)
    write_panels(path, [partial(_draw, task=task) for task in trend.tasks])


def checkpoint_trend(trend: Trend) -> Figure:
    """Draw a panel per task, as `write_trend_figure` does, and return the figure."""
    return panels([partial(_draw, task=task) for task in trend.tasks])


def _draw(axes: Axes, task: TaskTrend) -> None:
    drawn = []
    for number, line in enumerate(task.lines):
        colour, marker = LOOKS[number % len(LOOKS)] if line.n_series == 1 else ("black", "o")
        steps = [one.step for one in line.steps]
        low, high, score = (
            [np.nan if value is None else 100 * value for value in values]
            for values in zip(*((one.score.low, one.score.high, one.score.estimate) for one in line.steps), strict=True)
        )
        if line.n_series > 1 or task.mean is None:
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        drawn += axes.plot(steps, score, color=colour, linewidth=1.6, marker=marker, markersize=4, label=_name(line))
        hollow = [place for place, one in enumerate(line.steps) if one.suspect]
        axes.plot(
            *([values[i] for i in hollow] for values in (steps, score)),
            color=colour, marker=marker, markersize=4, markerfacecolor="white", linestyle="none",
        )  # fmt: skip
    if (clear := task.lines[-1].clear_from) is not None:
        axes.axvline(clear, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            "clear",
            (clear, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -8),
            textcoords="offset points",
            fontsize=7,
        )
    key = " (hollow: suspect)" if any(one.suspect for line in task.series for one in line.steps) else ""
    axes.set_title(one_line(task.task) + key, loc="left", fontsize=9)
    axes.set_xlabel("step")
    axes.set_ylabel(one_line(f"{task.metric} (\u00d7 100)" + ("" if task.higher_is_better else ", lower is better")))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(task.series) > 1:
        axes.legend(handles=drawn, frameon=False, fontsize=8)
