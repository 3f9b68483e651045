"""The report as one self-contained HTML page: no network, a strict content policy, all foreign text escaped."""

from __future__ import annotations

import base64
import hashlib
import time
import unicodedata
from collections.abc import Sequence
from typing import Final

import evalkit
from evalkit.reports.document import Report
from evalkit.reports.explorer import Evidence, pack
from evalkit.reports.figures import inline_svg
from evalkit.resources import resource_dir

MAX_TEXT: Final = 600
"""Characters of one text outside the explorer."""


def render_page(report: Report, known: Evidence | None = None) -> str:
    """Return the page as HTML text; `known` is what the explorer shows of the items beside their scores.

    The template engine escapes everything but the figures, whose texts matplotlib escapes, and the page's own style and
    script. The policy allows these two by their hashes, no other script, no style attribute, no HTML from text, and no
    request but that for a data: image.
    """
    import jinja2
    from markupsafe import Markup

    folder = resource_dir("reports")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    css, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "explorer.js"))
    known = known or Evidence()
    page: str = environment.get_template("report.html.j2").render(
        report=report,
        policy=policy([css], [script]),
        css=Markup(css),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        figures={
            name: Markup(inline_svg(draw(), name))  # noqa: S704 - made by matplotlib from escaped labels
            for name, draw in report.drawings.items()
        },
        blocks=pack(report.comparison, known),
        slice_name=report.comparison.slices_by or "Slice",
        explorer_notes=known.notes,
        version=evalkit.__version__,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    return page


def policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Return the content policy of a page with these style sheets and scripts and nothing else."""

    def hashes(texts: Sequence[str]) -> str:
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def one_line(text: str) -> str:
    """Show foreign text without line breaks and control characters, which could forge lines of the report."""
    return " ".join(visible(text).split())


def visible(text: str | None, limit: int = MAX_TEXT) -> str:
    """Make foreign text fit to show: cut to `limit` characters, control characters as symbols.

    Direction overrides and other invisible characters, which could make a page read otherwise than it is, are shown by
    their number; lone surrogates, which no file can hold, and noncharacters, which no XML can, too.
    """
    if text is None:
        return ""
    shown = "".join(_visible_character(character) for character in text[:limit])
    return shown + (f" \u2026 ({len(text) - limit:,} more characters)" if len(text) > limit else "")


def _visible_character(character: str) -> str:
    code = ord(character)
    is_character = code & 0xFFFE != 0xFFFE and not 0xFDD0 <= code <= 0xFDEF
    if character in "\n\t" or (is_character and unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")):
        return character
    return chr(0x2400 + code) if code < 0x20 else f"\u27e8U+{code:04X}\u27e9"
