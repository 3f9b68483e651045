"""The comparison as one self-contained HTML page: no network, no scripts, all foreign text escaped."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import evalkit
from evalkit.files import write_text
from evalkit.reports.comparison import OVERALL, Comparison, ItemPair, p_text, points
from evalkit.reports.figures import forest_plot, to_svg
from evalkit.reports.terminal import notes
from evalkit.resources import resource_dir

MAX_ITEMS: Final = 200
"""Items shown on the page; the counts beside them are of all."""

MAX_TEXT: Final = 600
"""Characters of one text that the page shows."""


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the page, whole or not at all."""
    write_text(path, render_page(comparison))


def render_page(comparison: Comparison) -> str:
    """Return the page as HTML text.

    Everything is escaped by the template engine except the figure, whose texts matplotlib escapes.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_dir("reports")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["points"] = points
    environment.filters["p_text"] = p_text
    environment.filters["visible"] = visible
    differing = [item for item in comparison.items if item.score_a != item.score_b]
    page: str = environment.get_template(
        "report.html.j2"
    ).render(
        comparison=comparison,
        figure=Markup(to_svg(forest_plot(comparison))),  # noqa: S704 - made by matplotlib from escaped labels
        overall_name=OVERALL,
        notes=notes(comparison),
        suspects=comparison.suspects(),
        outcomes=_outcomes(comparison.items),
        items=differing[:MAX_ITEMS],
        n_differing=len(differing),
        audit_rows=_audit_rows(comparison),
        runs=[_run_facts("A", comparison.record_a), _run_facts("B", comparison.record_b)],
        version=evalkit.__version__,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    return page


def one_line(text: str) -> str:
    """Show foreign text without line breaks and control characters, which could forge lines of the report."""
    return " ".join(visible(text).split())


def visible(text: str | None, limit: int = MAX_TEXT) -> str:
    """Make foreign text fit to show: cut to `limit` characters, control characters as symbols.

    Direction overrides and other invisible characters, which could make a page read otherwise than it is, are shown by
    their number; lone surrogates, which no file can hold, too.
    """
    if text is None:
        return ""
    shown = "".join(_visible_character(character) for character in text[:limit])
    return shown + (f" \u2026 ({len(text) - limit:,} more characters)" if len(text) > limit else "")


def _visible_character(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co"):
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"\u27e8U+{code:04X}\u27e9"


def _outcomes(items: tuple[ItemPair, ...]) -> list[dict[str, Any]]:
    """How many items each model alone does better on, by task."""
    counts: dict[str, Counter[str]] = {}
    for item in items:
        side = "a" if item.score_a > item.score_b else "b" if item.score_b > item.score_a else "same"
        counts.setdefault(item.task, Counter())[side] += 1
    return [{"task": task, **{side: count[side] for side in ("a", "b", "same")}} for task, count in counts.items()]


def _audit_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """How many items of each task are clean, flagged and not audited."""
    if comparison.rule is None:
        return []
    counts: dict[str, Counter[str]] = {}
    for item in comparison.items:
        counts.setdefault(item.task, Counter())[item.status] += 1
    return [
        {"task": task, "clean": one["clean"], "flagged": one["flagged"], "missing": one["not audited"]}
        for task, one in counts.items()
    ]


def _run_facts(side: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What one needs to repeat a run."""
    model, spec = record.get("model", {}), record.get("spec", {})
    facts = {
        "model": model.get("path"),
        "weights sha256": model.get("weights_sha256"),
        "dtype": model.get("dtype"),
        "tasks": ", ".join(map(str, spec.get("tasks") or ())),
        "seeds": ", ".join(map(str, spec.get("seeds") or ())),
        "limit": spec.get("limit"),
        "finished": record.get("finished"),
        "versions": ", ".join(f"{name} {version}" for name, version in record.get("packages", {}).items()),
    }
    return {"side": side, "name": record.get("name", ""), "facts": {k: v for k, v in facts.items() if v is not None}}
