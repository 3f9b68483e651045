"""Figures of a comparison: static SVG by matplotlib, one look, safe for colour-blind readers and for print."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evalkit.errors import SpecError
from evalkit.files import atomic_path
from evalkit.reports.comparison import OVERALL, Comparison, points
from evalkit.reports.differences import SubsetResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and orange of Okabe and Ito's palette; shapes and fill say the same for those who see no colour.
COLOUR: Final = {"all": "#0072B2", "clean": "#D55E00"}
_OFFSET: Final = {"all": 0.0, "clean": 0.34}
_ROOMY: Final = 20
"""Rows of a forest plot with room for two lines of numbers each."""

STYLE: Final[dict[Any, Any]] = {
    # Names of models and tasks are foreign text: a dollar sign in them is no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "evalkit",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
}
GREY: Final = "#767676"

LOOKS: Final = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"))
"""Of lines beside each other: Okabe and Ito's palette, with shapes for those who see no colour."""

MAX_NAME: Final = 30
"""Characters of a model's name in a figure: two of them and a few words fit on its width."""


@contextlib.contextmanager
def drawing() -> Iterator[Callable[..., Figure]]:
    """Give what makes a figure, in the look that all have; it belongs to no window and no global state."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield functools.partial(_shown_figure(), layout="constrained")


@functools.cache
def _shown_figure() -> type[Figure]:
    """A figure that shows itself in a notebook without pyplot, and on a dark page, too."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_svg_(self) -> str:
            return to_svg(self, transparent=False)

    return ShownFigure


def bare(axes: Axes, *more: str) -> None:
    """Take away the frame at the top and the right, and on what other sides are named."""
    for side in ("top", "right", *more):
        axes.spines[side].set_visible(False)


def forest_plot(comparison: Comparison) -> Figure:
    """Draw the difference B minus A of each task, and of the tasks together, on all and on the clean items.

    Filled squares: all items; hollow circles: clean items; thick lines: intervals, thin ones those that hold for all
    tasks at once; shaded: the margin; diamonds: all tasks together. Numbers are percentage points. Of many tasks the
    rows are narrow, so that 60 fit on a printed page, and the numbers are those of all items.
    """
    rows = _rows(comparison)
    many = len(rows) > _ROOMY
    with drawing() as new:
        figure = new(figsize=(7.6, 0.9 + (0.16 if many else 0.52) * len(rows)))
        axes = figure.add_subplot()
        for position, (name, results) in enumerate(rows):
            for subset, result in results.items():
                _draw(axes, position + _OFFSET[subset], result, is_overall=name == OVERALL, small=many)
        _decorate(axes, comparison, rows)
    return figure


def _rows(comparison: Comparison) -> list[tuple[str, dict[str, SubsetResult]]]:
    """From top to bottom: the tasks, then all of them together."""
    shown: dict[str, dict[str, SubsetResult]] = {}
    for name, result in comparison.results():
        if result.subset in COLOUR:
            shown.setdefault(name, {})[result.subset] = result
    return list(shown.items())


def _draw(axes: Axes, height: float, result: SubsetResult, *, is_overall: bool, small: bool) -> None:
    difference, colour = result.difference, COLOUR[result.subset]
    thick, thin, size = (1.4, 0.6, 3.4) if small else (2.2, 0.8, 6.0)
    # The wider interval is that on which a verdict of one task among several rests.
    decisive = result.decision.estimate
    for one, width in ((difference, thick), (decisive, thin)):
        if one.low is not None and one.high is not None:
            axes.plot([100 * one.low, 100 * one.high], [height, height], color=colour, linewidth=width)
    marker = "D" if is_overall else ("s" if result.subset == "all" else "o")
    face = colour if result.subset == "all" else "white"
    axes.plot([100 * difference.estimate], [height], marker=marker, markersize=size, color=colour, markerfacecolor=face)
    if small and result.subset != "all":
        return
    interval = (
        "no interval"
        if decisive.low is None or decisive.high is None
        else f"{points(decisive.low)} to {points(decisive.high)}"
    )
    axes.text(
        1.02,
        height,
        f"{points(difference.estimate)}  ({interval})   n = {result.n_items:,}",
        transform=axes.get_yaxis_transform(),
        verticalalignment="center",
        fontsize=7 if small else 8,
    )


def _decorate(axes: Axes, comparison: Comparison, rows: list[tuple[str, dict[str, SubsetResult]]]) -> None:
    """Zero line, labels, direction, and a legend that shows each marker."""
    from matplotlib.lines import Line2D

    axes.axvline(0, color=GREY, linewidth=0.8)
    if (margin := comparison.decision_rule.margin) is not None:
        axes.axvspan(-100 * margin, 100 * margin, color=GREY, alpha=0.12, linewidth=0)
    with_overall = rows[-1][0] == OVERALL
    if with_overall:
        axes.axhline(len(rows) - 1.33, color=GREY, linewidth=0.5, linestyle=":")
    axes.set_yticks([position + 0.17 * (len(results) > 1) for position, (_, results) in enumerate(rows)])
    labels = [f"{name} (mean of tasks)" if name == OVERALL else readable(name) for name, _ in rows]
    axes.set_yticklabels(labels, fontsize=7 if len(rows) > _ROOMY else 9)
    axes.set_ylim(len(rows) - 0.3, -0.5)
    names = shorten(comparison.name_b), shorten(comparison.name_a)
    minus = " minus ".join(names if names[0] != names[1] else ("B", "A"))
    axes.set_xlabel(f"{minus}\npercentage points   (right of 0: {_right_side(comparison)})")
    axes.tick_params(axis="y", length=0)
    bare(axes, "left")
    if any("clean" in results for _, results in rows):
        handles = [
            Line2D([], [], color=COLOUR["all"], marker="s", label="all items"),
            Line2D([], [], color=COLOUR["clean"], marker="o", markerfacecolor="white", label="clean items"),
        ]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=8)


def readable(name: str) -> str:
    """Make a foreign name fit to show: without what could break the figure, or turn the text around."""
    from evalkit.reports.page import one_line  # which draws figures itself

    return one_line(name)


def shorten(name: str) -> str:
    """Leave out the middle of a long name: families begin alike, and checkpoints end differently."""
    name, head = readable(name), (MAX_NAME - 1) // 2
    return name if len(name) <= MAX_NAME else f"{name[:head]}\u2026{name[head + 1 - MAX_NAME :]}"


def _right_side(comparison: Comparison) -> str:
    """What a point to the right of zero means; with tasks of both directions, the mean of all is turned."""
    directions = {task.higher_is_better for task in comparison.tasks}
    return "higher; for the mean of tasks: better" if len(directions) > 1 else "higher"


def check_figure_path(path: Path) -> None:
    """Refuse a file that is neither SVG nor PNG, with a SpecError."""
    if path.suffix not in (".svg", ".png"):
        raise SpecError(f"'{path}' is neither SVG nor PNG", where="--figure", do="Let it end in .svg or .png")


def panels(draw: Sequence[Callable[[Axes], None]]) -> Figure:
    """Draw panels, two beside each other."""
    n_columns = min(2, len(draw))
    n_rows = -(-len(draw) // n_columns)
    with drawing() as new:
        figure = new(figsize=(3.8 * n_columns, 2.7 * n_rows))
        for place, panel in enumerate(draw, start=1):
            panel(figure.add_subplot(n_rows, n_columns, place))
    return figure


def write_panels(path: Path, draw: Sequence[Callable[[Axes], None]]) -> None:
    """Draw panels, two beside each other, and write them to an .svg or .png file, whole or not at all."""
    import matplotlib as mpl

    figure = panels(draw)
    with mpl.rc_context(STYLE):
        if path.suffix == ".svg":
            content = to_svg(figure).encode()
        else:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
            content = buffer.getvalue()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def to_svg(figure: Figure, *, transparent: bool = True) -> str:
    """Return the figure as an SVG element, the same bytes for the same figure, without XML prolog."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), transparent=transparent
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :]


_STYLED: Final = re.compile(r' style="([^"]*)"')
_SHEET: Final = re.compile(r"<style\b.*?</style>", re.DOTALL)
_FONT: Final = re.compile(r"(?:(italic|oblique) )?(?:(bold|\d+) )?([\d.]+)px (.+)")
_OWN_ID: Final = re.compile(r'((?: id="|url\(#|xlink:href="#))')
_BLACK: Final = re.compile(r'(fill|stroke)="(?:#000000|black)"')


def inline_svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element for a page with a strict content policy and two colour schemes.

    There is no style in it, neither a sheet nor an attribute: declarations become attributes of the same meaning. Black
    becomes the colour of the page's text, white has the class `paper`, and ids begin with `name`.
    """
    text = _SHEET.sub("", to_svg(figure))
    text = _STYLED.sub(lambda found: "".join(_attributes(found[1])), text)
    # What matplotlib's sheet says of all elements, said once: it is inherited. So is the colour of what has none.
    text = text.replace("<svg ", '<svg fill="currentColor" stroke-linejoin="round" stroke-linecap="butt" ', 1)
    text = re.sub(r'(fill|stroke)="#ffffff"', r'class="paper-\1" \1="#ffffff"', text)
    text = _BLACK.sub(r'\1="currentColor"', text)
    return _OWN_ID.sub(lambda found: f"{found[1]}{name}-", text)


def _attributes(style: str) -> Iterator[str]:
    for declaration in style.split(";"):
        key, _, value = declaration.partition(":")
        key, value = key.strip(), value.strip().replace("&quot;", "'")
        if key == "font" and (found := _FONT.fullmatch(value)):
            slant, weight, size, family = found.groups()
            yield f' font-size="{size}px" font-family="{family}"'
            yield f' font-style="{slant}"' if slant else ""
            yield f' font-weight="{weight}"' if weight else ""
        elif key:
            yield f' {key}="{value}"'
