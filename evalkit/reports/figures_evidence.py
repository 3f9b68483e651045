"""Figures of what a verdict rests on: seeds, discordant items, power, leaked items, a judge's two orders.

Each takes a result and returns a matplotlib figure, in the look of `reports.figures`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from evalkit.errors import SpecError
from evalkit.reports.comparison import OVERALL, Comparison, ItemPair
from evalkit.reports.differences import Noise
from evalkit.reports.figures import GREY, LOOKS, bare, drawing, shorten
from evalkit.reports.sensitivity import sources
from evalkit.stats.means import mean_score
from evalkit.stats.power import significance_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTCOMES: Final = ("both right", "only A", "only B", "both wrong")
"""Of an item: with scores between 0 and 1, right means at least one half."""

# Sky blue and vermilion differ in lightness, too; the pale greys stand back.
OUTCOME_COLOUR: Final = {
    "both right": "#d9d9d9", "only A": "#D55E00", "only B": "#0072B2", "both wrong": "#a6a6a6",
}  # fmt: skip

_STRIP: Final = ("only B", "both right", "both wrong", "only A")

MAX_PANELS: Final = 6
MAX_BARS: Final = 60
_ROOMY: Final = 20
_TARGET: Final = 0.8
_EFFECTS: Final = (0.01, 0.02, 0.05)


def outcome(item: ItemPair) -> str:
    """Say who is right on an item: one of `OUTCOMES`, by which model scores higher where they differ."""
    if item.score_a != item.score_b:
        return "only A" if item.score_a > item.score_b else "only B"
    return "both right" if item.score_a >= 0.5 else "both wrong"


def seed_strip(comparison: Comparison) -> Figure:
    """Draw a dot for each seed of A and of B; matched seeds are joined.

    Bars: means; vertical lines: their intervals over items like these, for these seeds. A panel for each task, of many
    tasks one for their mean.

    Raises
    ------
    SpecError
        There is one seed only.
    """
    noises = [(task.task, task.noise) for task in comparison.tasks if task.noise and task.noise.seed_means_a]
    noises = [(name, one) for name, one in noises if max(one.n_seeds_a, one.n_seeds_b) > 1]
    whole = comparison.noise
    if len(noises) > MAX_PANELS and whole is not None and whole.seed_means_a:
        noises = [(OVERALL, whole)]
    if not noises:
        raise SpecError("there is one seed only", where="seed_strip", do="Run with --seeds 1,2,3")
    noises = noises[:MAX_PANELS]
    with drawing() as new:
        figure = new(figsize=(min(2.3 * len(noises) + 0.5, 8.6), 2.9))
        for place, (name, noise) in enumerate(noises, start=1):
            axes = figure.add_subplot(1, len(noises), place)
            _seeds(axes, name, noise, [item for item in comparison.items if item.task == name])
            if place == 1:
                axes.set_ylabel("mean score (× 100)")
    return figure


def _seeds(axes: Axes, name: str, noise: Noise, items: Sequence[ItemPair]) -> None:
    sides = (noise.seed_means_a, noise.seed_means_b)
    if noise.matched and len(sides[0]) == len(sides[1]):
        for a, b in zip(*sides, strict=True):
            axes.plot([0, 1], [100 * a, 100 * b], color=GREY, linewidth=0.8, zorder=1)
    for x, (means, (colour, marker), side) in enumerate(zip(sides, (LOOKS[1], LOOKS[0]), "ab", strict=True)):
        axes.plot([x] * len(means), [100 * one for one in means], marker, color=colour, markersize=5, zorder=2)
        mean = 100 * float(np.mean(means))
        outside = x + (-0.22 if x == 0 else 0.22)
        axes.plot([outside - 0.08, outside + 0.08], [mean, mean], color="black", linewidth=1.6)
        if items:
            score = mean_score([getattr(item, f"score_{side}") for item in items], cluster=sources(items))
            if score.low is not None and score.high is not None:
                axes.plot([outside] * 2, [100 * score.low, 100 * score.high], color="black", linewidth=0.8)
    axes.set_xticks([0, 1], ["A", "B"])
    axes.set_xlim(-0.45, 1.45)
    axes.set_title(shorten(name), loc="left", fontsize=9)
    bare(axes)


def discordance_bars(comparison: Comparison) -> Figure:
    """Draw how many items only A, and only B, gets right (or scores higher on), by task, as shares of its items.

    Raises
    ------
    SpecError
        The items are not known, as after `Comparison.from_json`.
    """
    _need_items(comparison, "discordance_bars")
    counts: dict[str, Counter[str]] = {}
    for item in comparison.items:
        counts.setdefault(item.task, Counter())[outcome(item)] += 1
    shown = list(counts.items())[:MAX_BARS]
    with drawing() as new:
        small = 8 if len(shown) <= _ROOMY else 6.5
        row = 0.3 if len(shown) <= _ROOMY else 0.16
        figure = new(figsize=(7.6, 0.9 + row * len(shown)))
        axes = figure.add_subplot()
        for place, (_, of) in enumerate(shown):
            n = of.total()
            for side, sign in (("only A", -1), ("only B", 1)):
                share = 100 * of[side] / n
                axes.barh(place, sign * share, height=0.62, color=OUTCOME_COLOUR[side], linewidth=0)
                align = "right" if sign < 0 else "left"
                axes.annotate(
                    f"{of[side]:,}",
                    (sign * share, place),
                    xytext=(3 * sign, 0),
                    textcoords="offset points",
                    ha=align,
                    va="center",
                    fontsize=small,
                )
            equal = f"{of['both right'] + of['both wrong']:,} of {n:,} equal"
            axes.text(1.02, place, equal, transform=axes.get_yaxis_transform(), va="center", fontsize=small)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [shorten(name) for name, _ in shown], fontsize=small + 1)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        widest = max(1.0, *(abs(end) for end in axes.get_xlim()))
        axes.set_xlim(-1.12 * widest, 1.12 * widest)
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_xlabel("← only A right\u2003\u2003% of the task's items\u2003\u2003only B right →")
        axes.tick_params(axis="y", length=0)
        bare(axes, "left")
    return figure


def power_curve(comparison: Comparison) -> Figure:
    """Draw the chance to find a difference over the number of items, at the variance that was seen.

    The difference is the margin; without one, 1, 2 and 5 points. It is never the one that was seen: power for that
    would only repeat the p value. Dashed: with twice the answers to each item, where their noise is known. The vertical
    line is the number of items that there are; rings mark 80%.

    Raises
    ------
    SpecError
        The difference has no standard error.
    """
    result = comparison.overall["all"]
    error, df = result.difference.standard_error, result.difference.df
    if not error:
        raise SpecError("the difference has no standard error", where="power_curve", do="Leave the figure out")
    margin = comparison.decision_rule.margin
    effects = (margin,) if margin is not None else _EFFECTS
    alpha = 1 - comparison.decision_rule.confidence_level
    n = np.unique(np.geomspace(max(10, result.n_items / 20), 20 * result.n_items, 60).astype(int))
    with drawing() as new:
        figure = new(figsize=(4.6, 3.0))
        axes = figure.add_subplot()
        for (colour, marker), effect in zip(LOOKS, effects, strict=False):
            power = _power(effect, error, df, result.n_items, n, alpha)
            axes.plot(n, 100 * power, color=colour, linewidth=1.6, label=f"{100 * effect:.3g} points")
            enough = np.flatnonzero(power >= _TARGET)
            if len(enough):
                at = int(n[enough[0]])
                axes.plot([at], [100 * power[enough[0]]], marker, color=colour, markerfacecolor="white", markersize=7)
                axes.annotate(
                    f"{at:,}", (at, 100 * power[enough[0]]), xytext=(5, -11), textcoords="offset points", fontsize=8
                )
            if (ratio := _with_twice_the_answers(comparison)) is not None:
                more = _power(effect, error * ratio, df, result.n_items, n, alpha)
                axes.plot(n, 100 * more, color=colour, linewidth=1.0, linestyle="--")
        axes.axvline(result.n_items, color=GREY, linewidth=0.8)
        axes.annotate(
            f"{result.n_items:,} items", (result.n_items, 2), xytext=(3, 0), textcoords="offset points", fontsize=8
        )
        axes.axhline(100 * _TARGET, color=GREY, linewidth=0.5, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.set_ylim(0, 102)
        axes.set_xlabel("items")
        axes.set_ylabel("power (%)")
        axes.legend(frameon=False, fontsize=8, title="true difference", title_fontsize=8, loc="lower right")
        bare(axes)
    return figure


def _power(
    effect: float, error: float, df: float | None, n_items: int, n: npt.NDArray[np.int64], alpha: float
) -> npt.NDArray[np.float64]:
    known = float("inf") if df is None else df
    errors = error * np.sqrt(n_items / n)
    return np.array(
        [
            significance_errors(effect, float(one), alpha=alpha, df=max(known * k / n_items, 1.0)).power
            for one, k in zip(errors, n, strict=True)
        ]
    )


def _with_twice_the_answers(comparison: Comparison) -> float | None:
    """By how much the standard error would shrink; None where it is not known, or there are several tasks."""
    designs = comparison.noise.designs if comparison.noise and len(comparison.tasks) == 1 else ()
    for one in designs[1:]:
        if one.answers > designs[0].answers and designs[0].standard_error:
            return one.standard_error / designs[0].standard_error
    return None


def leak_strip(comparison: Comparison) -> Figure:
    """Draw each task's items as a strip, by what the audit says of them, and within that by who is right.

    Leaked items help a model when the share that only it gets right is larger among the flagged ones. Of many tasks
    those with the most flagged items are shown.

    Raises
    ------
    SpecError
        There was no audit, or the items are not known.
    """
    _need_items(comparison, "leak_strip")
    if comparison.rule is None:
        raise SpecError("there was no audit", where="leak_strip", do="Give --audit")
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for item in comparison.items:
        counts.setdefault(item.task, Counter())[item.status, outcome(item)] += 1
    flagged = {task: sum(n for (status, _), n in of.items() if status == "flagged") for task, of in counts.items()}
    tasks = sorted(counts, key=lambda task: -flagged[task])[:20]
    rows = [(task, status) for task in tasks for status in ("flagged", "clean") if _of_status(counts[task], status)]
    with drawing() as new:
        from matplotlib.patches import Patch

        figure = new(figsize=(7.6, 0.9 + 0.26 * len(rows)))
        axes = figure.add_subplot()
        for place, (task, status) in enumerate(rows):
            n, left = _of_status(counts[task], status), 0.0
            for name in _STRIP:
                width = 100 * counts[task][status, name] / n
                axes.barh(place, width, left=left, height=0.72, color=OUTCOME_COLOUR[name], linewidth=0)
                left += width
            axes.text(101, place, f"n = {n:,}", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [f"{shorten(task)}, {status}" for task, status in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of these items")
        axes.tick_params(axis="y", length=0)
        bare(axes, "left", "bottom")
        axes.legend(
            handles=[Patch(color=OUTCOME_COLOUR[name], label=name) for name in _STRIP],
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8,
        )  # fmt: skip
    return figure


def _of_status(of: Counter[tuple[str, str]], status: str) -> int:
    return sum(n for (one, _), n in of.items() if one == status)


def order_mosaic(counts: npt.ArrayLike, *, judge: str = "") -> Figure:
    """Draw a judge's verdicts in one order against those in the other, as areas.

    Parameters
    ----------
    counts
        Shape (3, 3): pairs by the winner (A, tie, B) when A is shown first, and when B is shown first.
    judge
        Its name, for the title.

    Raises
    ------
    SpecError
        The shape is another, or there is no pair.
    """
    table = np.asarray(counts, dtype=float)
    if table.shape != (3, 3) or table.sum() <= 0:
        raise SpecError(f"counts of shape {table.shape}", where="order_mosaic", do="Give 3 x 3 counts of pairs")
    names, n = ("A wins", "tie", "B wins"), table.sum()
    colours = (OUTCOME_COLOUR["only A"], OUTCOME_COLOUR["both right"], OUTCOME_COLOUR["only B"])
    widths, left = 100 * table.sum(axis=1) / n, 0.0
    with drawing() as new:
        figure = new(figsize=(3.9, 3.5))
        axes = figure.add_subplot()
        for row, width in enumerate(widths):
            bottom = 0.0
            for column in range(3):
                if not table[row, column]:
                    continue
                height = 100 * table[row, column] / table[row].sum()
                # What both orders agree on is full, what they contradict each other on is pale.
                axes.bar(
                    left, height, width, bottom, align="edge",
                    color=colours[column], alpha=1.0 if row == column else 0.45, edgecolor="white", linewidth=1.2,
                )  # fmt: skip
                if width * height > 90:
                    axes.text(
                        left + width / 2, bottom + height / 2, f"{table[row, column]:.0f}",
                        ha="center", va="center", fontsize=8, color="white" if row == column != 1 else "black",
                    )  # fmt: skip
                bottom += height
            if width > 4:
                axes.text(left + width / 2, 101.5, names[row], ha="center", va="bottom", fontsize=8)
            left += width
        for column, name in enumerate(names):
            row = int(np.flatnonzero(widths > 0)[0])
            share = table[row] / table[row].sum()
            if share[column] > 0.05:
                middle = 100 * (share[:column].sum() + share[column] / 2)
                axes.text(-1.5, middle, name, ha="right", va="center", fontsize=8)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("when A is shown first")
        axes.set_ylabel("when B is shown first", labelpad=34)
        axes.set_title(shorten(judge) if judge else "", loc="left", fontsize=9, pad=16)
        bare(axes, "left", "bottom")
    return figure


def _need_items(comparison: Comparison, where: str) -> None:
    if not comparison.items:
        raise SpecError("the comparison has no items", where=where, do="Compare the runs; JSON does not hold the items")
