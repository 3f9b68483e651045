"""What a deduplication found, for the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evalkit.dedup.against import AgainstResult
from evalkit.dedup.dedup import DedupResult
from evalkit.dedup.lsh import Bands
from evalkit.dedup.substrings import SubstringsResult
from evalkit.terminal import safe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"  # of Okabe and Ito's palette
_SHOWN_LARGEST: Final = 5
_SHOWN_SOURCES: Final = 8
_BARS: Final = 24
"""Characters of the longest bar."""

_SIZES: Final = ((2, 2), (3, 3), (4, 4), (5, 9), (10, 99), (100, 999), (1000, None))
"""Sizes of clusters that are counted together."""


def render_duplicates(result: DedupResult, console: Any) -> None:
    """Print what was found in a corpus, and what other thresholds would find, on a rich console."""
    table = _table("corpus", "documents", "removed", "share", title=f"Duplicates: {result.directory}")
    for corpus, n in result.documents_by_corpus.items():
        _add(table, corpus, n, result.removed_by_corpus.get(corpus, 0))
    if len(result.documents_by_corpus) > 1:
        _add(table, "all", result.n_documents, result.n_removed)
    console.print(table)
    how = result.spec.how
    measured = "true similarity" if result.spec.verify else "similarity as the signatures estimate it"
    n_exact = result.n_same_normalised
    console.print(
        f"exact: {n_exact:,} documents repeat an earlier one, {result.n_same_text:,} of them byte by byte, the others "
        f"but for case, punctuation and spaces\n"
        f"near: {result.n_pairs:,} pairs of other texts have a {measured} of at least {result.spec.threshold:g} "
        f"(shingles of {how.shingling}, {how.num_perm} permutations, {how.hash_name}; {result.n_candidates:,} "
        f"candidates compared now)\n"
        f"removed: {result.n_removed:,} = {n_exact:,} exact + {result.n_removed - n_exact:,} near, in "
        f"{result.n_clusters:,} clusters; of each the {result.spec.keep} is kept",
        markup=False,
    )
    if result.cluster_sizes:
        console.print()
        _print_sizes(result, console)
        _print_largest(result, console)
    console.print()
    _print_bands(result.bands, result.spec.threshold, console, dict(result.removed_at))
    console.print("removed: with groups that are not split; for lower thresholds, run again")
    if result.n_large_buckets:
        console.print(
            f"warning: {result.n_large_buckets:,} buckets were too large to compare all of their documents with each "
            "other; each was compared with those next to it",
            markup=False,
        )
    _print_rows(result.n_empty, result.n_bad_rows, console)
    console.print(f"{result.n_documents:,} documents, {result.seconds:.1f} s", markup=False)


def render_against(result: AgainstResult, console: Any) -> None:
    """Print which benchmarks have items with near duplicates, on a rich console."""
    title = f"Leaked items: {result.directory}"
    table = _table("benchmark", "items", "dirty", "share", title=title)
    for name, n in result.n_items.items():
        _add(table, name, n, result.n_dirty[name])
    console.print(table)
    console.print(
        f"dirty: a document as a whole is like the item as a whole, or like its question alone, with a similarity of "
        f"at least {result.spec.threshold:g}; {result.n_pairs:,} such pairs (near_duplicates.parquet)",
        markup=False,
    )
    _print_bands(result.bands, result.spec.threshold, console)
    _print_rows(result.n_empty, result.n_bad_rows, console)
    console.print(f"{result.n_documents:,} documents, {result.seconds:.1f} s", markup=False)
    console.print(f"as one more rule: evalkit compare A B --audit {safe(str(result.directory))}", markup=False)


def render_substrings(result: SubstringsResult, least: int, console: Any) -> None:
    """Print how much of a corpus repeats passages of other documents, on a rich console."""
    share = result.n_repeated_tokens / max(result.n_tokens, 1)
    console.print(
        f"passages of {least} words or more in several documents: {result.n_passages:,}, in "
        f"{result.n_with_passages:,} documents; {result.n_repeated_tokens:,} of {result.n_tokens:,} words "
        f"({share:.1%}) repeat an earlier document (substrings.parquet, {result.seconds:.1f} s)",
        markup=False,
    )


def _print_bands(bands: Bands, threshold: float, console: Any, removed: Mapping[float, int] | None = None) -> None:
    """Print for each similarity how likely a pair is compared, and what it would remove as a threshold."""
    table = _table("similarity", "a pair is compared", *([] if removed is None else ["removed from here on"]), "")
    steps = {threshold, *(removed or ()), *(k / 20 for k in range(21) if abs(k / 20 - threshold) < 0.31)}
    for similarity in sorted(steps):
        p = float(bands.probability(similarity))
        more = [] if removed is None else [f"{removed[similarity]:,}" if similarity in removed else ""]
        mark = " < threshold" if similarity == threshold else ""
        table.add_row(f"{similarity:.2f}{mark}", _percent(p), *more, "\u2588" * round(_BARS * p))
    table.columns[-1].justify = "left"
    console.print(table)
    console.print(
        f"bands: {bands.n_bands} of {bands.n_rows} values; a pair of similarity s is compared with the probability "
        f"1 - (1 - s^{bands.n_rows})^{bands.n_bands}",
        markup=False,
    )


def _percent(p: float) -> str:
    """A probability; one that is nearly 1 with the digits by which it is not."""
    if p == 1 or p < 0.9995:
        return f"{p:.1%}"
    return f"{p:.4%}" if p < 0.999999 else "> 99.9999%"


def write_duplicates_figure(result: DedupResult, path: Path) -> None:
    """Draw the sizes of clusters, what each threshold removes, the chance to be compared, and the sources.

    Raises
    ------
    SpecError
        The path ends in neither .svg nor .png.
    """
    from evalkit.reports.figures import check_figure_path, write_panels

    check_figure_path(path)
    panels = [_draw_sizes, _draw_sensitivity, _draw_curve, _draw_sources]
    write_panels(path, [partial(panel, result=result) for panel in panels])


def _draw_sizes(axes: Axes, result: DedupResult) -> None:
    rows = _by_size(result.cluster_sizes)
    bars = axes.bar([label for label, _, _ in rows], [n for _, n, _ in rows], color=_BLUE)
    axes.bar_label(bars, [f"{n:,}" for _, n, _ in rows], fontsize=8)
    _label(axes, "clusters by size", "documents in the cluster", "clusters")


def _draw_sensitivity(axes: Axes, result: DedupResult) -> None:
    at = [threshold for threshold, _ in result.removed_at]
    share = [100 * n / max(result.n_documents, 1) for _, n in result.removed_at]
    axes.plot(at, share, color=_BLUE, marker="o", markersize=3, linewidth=1.4)
    axes.axhline(100 * result.n_same_normalised / max(result.n_documents, 1), color="#767676", linewidth=0.8)
    axes.set_ylim(bottom=0)
    _label(axes, "removed (grey: exact alone)", "similarity threshold", "documents (%)")


def _draw_curve(axes: Axes, result: DedupResult) -> None:
    curve = result.bands.curve(0.01)
    axes.plot([s for s, _ in curve], [p for _, p in curve], color=_ORANGE, linewidth=1.4)
    axes.axvline(result.spec.threshold, color="#767676", linewidth=0.8, linestyle=":")
    title = f"{result.bands.n_bands} bands of {result.bands.n_rows} (dotted: threshold)"
    _label(axes, title, "similarity", "chance to be compared")


def _draw_sources(axes: Axes, result: DedupResult) -> None:
    shares = {
        name: 100 * result.removed_by_corpus.get(name, 0) / max(n, 1) for name, n in result.documents_by_corpus.items()
    }
    shown = sorted(shares, key=lambda name: -shares[name])[:_SHOWN_SOURCES][::-1]
    axes.barh(range(len(shown)), [shares[name] for name in shown], height=0.5, color=_GREEN)
    for height, name in enumerate(shown):
        axes.annotate(_short(safe(name)), (0, height + 0.27), (2, 1), textcoords="offset points", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(-0.5, max(len(shown), 3))
    _label(axes, "removed by corpus", "documents (%)", "")


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(name: str) -> str:
    """The end of a long name: paths begin alike."""
    return name if len(name) <= 40 else f"\u2026{name[-39:]}"


def _print_sizes(result: DedupResult, console: Any) -> None:
    rows = _by_size(result.cluster_sizes)
    most = max(n for _, n, _ in rows)
    table = _table("documents in a cluster", "clusters", "removed", "")
    for label, n, n_removed in rows:
        table.add_row(label, f"{n:,}", f"{n_removed:,}", "\u2588" * max(1, round(_BARS * n / most)))
    table.columns[3].justify = "left"
    console.print(table)


def _by_size(sizes: dict[int, int]) -> list[tuple[str, int, int]]:
    """Sizes in words, clusters of them, and documents removed; those without any left out."""
    rows = []
    for low, high in _SIZES:
        mine = {size: n for size, n in sizes.items() if low <= size <= (high or size)}
        if mine:
            label = str(low) if low == high else f"{low:,}\u2013{high:,}" if high else f"{low:,}+"
            rows.append((label, sum(mine.values()), sum((size - 1) * n for size, n in mine.items())))
    return rows


def _print_largest(result: DedupResult, console: Any) -> None:
    table = _table("largest clusters: kept document", "documents", "least similarity")
    for one in result.largest[:_SHOWN_LARGEST]:
        name = f"{one.file}:{one.row}" + (f" ({one.doc_id})" if one.doc_id else "")
        table.add_row(_text(name), f"{one.n_documents:,}", f"{one.least_similarity:.2f}")
    console.print(table)
    console.print(
        f"chains: the largest group that similar pairs connect has {result.largest_group:,} documents; "
        + (
            f"{result.n_split_groups:,} groups were split, since some of their documents are like a neighbour but not "
            "like the kept one"
            if result.n_split_groups
            else "every document is like the one that is kept in its place"
        ),
        markup=False,
    )


def _print_rows(n_empty: int, n_bad: int, console: Any) -> None:
    if n_empty:
        console.print(f"{n_empty:,} rows have no text and are no documents", markup=False)
    if n_bad:
        console.print(f"{n_bad:,} rows could not be read (listed in bad_rows.jsonl)", markup=False)


def _table(*columns: str, title: str | None = None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title and _text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if number == 0 else "right")
    return table


def _add(table: Table, name: str, n: int, n_removed: int) -> None:
    table.add_row(_text(name), f"{n:,}", f"{n_removed:,}", f"{n_removed / max(n, 1):.1%}")


def _text(name: str) -> Any:
    from rich.text import Text

    return Text(safe(name))
