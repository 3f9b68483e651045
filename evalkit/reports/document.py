"""The report as a document: claims with sentences, tables and figures, from which every format is made.

What a page, a notebook or a Markdown file shows are the same strings, so its numbers are the same.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from evalkit.errors import SpecError
from evalkit.files import to_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from evalkit.reports.comparison import Comparison
    from evalkit.reports.trend import Trend
    from evalkit.stats.standings import Standings


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes
    ----------
    columns
        Their names.
    rows
        One text for each column.
    n_text
        How many of the first columns are words rather than numbers.
    n_total
        How many of the last rows sum up the others.
    caption
        What it shows.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int = 1
    n_total: int = 0
    caption: str = ""

    def to_frame(self) -> pd.DataFrame:
        """Return a data frame of the texts."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(self.columns))

    def to_markdown(self) -> str:
        """Return a Markdown table."""
        alignment = [":---" if place < self.n_text else "---:" for place in range(len(self.columns))]
        lines = [self.columns, alignment, *self.rows]
        return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


@dataclass(frozen=True)
class Claim:
    """One thing that the report says.

    Attributes
    ----------
    key, title
        Its name in code, and its heading.
    sentences
        What is claimed, with the numbers in it.
    commands
        For a shell, as they are.
    tables
        What it rests on.
    figures
        Names of the figures that show it, with what a reader who cannot see them should know.
    notes
        What to know beside it.
    """

    key: str
    title: str
    sentences: tuple[str, ...]
    commands: tuple[str, ...] = field(default=(), kw_only=True)
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """Return a section of Markdown, without the figures."""
        parts = [f"## {markdown_text(self.title)}", *map(markdown_text, self.sentences)]
        # Indented, since a fence could be ended by what is in it.
        parts += ["\n".join(f"    {line}" for line in command.splitlines()) for command in self.commands]
        for table in self.tables:
            parts += [*([f"**{markdown_text(table.caption)}**"] if table.caption else []), table.to_markdown()]
        parts += ["\n".join(f"- {markdown_text(note)}" for note in self.notes)] if self.notes else []
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences)
        said += "".join(f"<pre>{html.escape(command)}</pre>" for command in self.commands)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        tables = "".join(table._repr_html_() for table in self.tables)
        return f"<h3>{html.escape(self.title)}</h3>{said}{tables}{f'<ul>{notes}</ul>' if notes else ''}"


@dataclass(frozen=True)
class Report:
    """The significance report of B against A.

    Attributes
    ----------
    title
        The question.
    verdict
        Its answer in a word of the closed set, on the clean items where there was an audit.
    headline
        The answer in a sentence or two.
    alarms
        What makes the runs themselves doubtful.
    strip
        What it rests on, as (name, value).
    claims
        In the order in which they are to be read.
    comparison
        What was computed.
    drawings
        A function for each figure that the claims name.
    judge
        The judges' audit, as plain values; None without one.
    standings
        Of several models; None for two.
    trend
        Of checkpoints; None without them.
    made_by
        The call of `evalkit.report` that makes it again.
    """

    title: str
    verdict: str
    headline: str
    alarms: tuple[str, ...]
    strip: tuple[tuple[str, str], ...]
    claims: tuple[Claim, ...]
    comparison: Comparison
    drawings: Mapping[str, Callable[[], Figure]]
    judge: Any = None
    standings: Standings | None = None
    trend: Trend | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Claim:
        for claim in self.claims:
            if claim.key == key:
                return claim
        raise SpecError(f"the report has no claim '{key}'", do=f"Choose of {', '.join(one.key for one in self.claims)}")

    def __iter__(self) -> Iterator[Claim]:
        return iter(self.claims)

    def figure(self, name: str) -> Figure:
        """Draw one of the figures that the claims name.

        Raises
        ------
        SpecError
            There is no such figure.
        """
        if name not in self.drawings:
            raise SpecError(f"the report has no figure '{name}'", do=f"Choose of {', '.join(self.drawings)}")
        return self.drawings[name]()

    def to_dict(self) -> dict[str, Any]:
        """Everything that is shown, and the comparison that it rests on, as plain values."""
        return {
            "title": self.title,
            "verdict": self.verdict,
            "headline": self.headline,
            "alarms": list(self.alarms),
            "strip": dict(self.strip),
            "claims": [asdict(claim) for claim in self.claims],
            "comparison": self.comparison.to_dict(),
            "judge": self.judge,
            "standings": self.standings and self.standings.to_dict(),
            "trend": self.trend and self.trend.to_dict(),
        }

    def to_json(self) -> str:
        """Return JSON."""
        return to_json(self.to_dict(), indent=True).decode()

    def to_markdown(self) -> str:
        """Return Markdown, without the figures."""
        alarms = [f"> **Suspect:** {markdown_text(alarm)}" for alarm in self.alarms]
        strip = " · ".join(f"{markdown_text(name)}: {markdown_text(value)}" for name, value in self.strip)
        head = [f"# {markdown_text(self.title)}", *alarms, f"**{markdown_text(self.headline)}**", strip]
        return "\n\n".join([*head, *(claim.to_markdown() for claim in self.claims)]) + "\n"

    def __str__(self) -> str:
        return self.headline

    def _repr_html_(self) -> str:
        return f"<h2>{html.escape(self.title)}</h2>" + "".join(claim._repr_html_() for claim in self.claims)


_MARKDOWN: Final = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_{}[]#|~$"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " "}
)
# GitHub makes links of bare addresses, mentions and numbers of issues; an empty comment keeps it from that.
_LINKS: Final = re.compile(r"@(?=\w)|#(?=\d)|:(?=//)|\bwww(?=\.)", re.IGNORECASE)


def markdown_text(text: str) -> str:
    """Escape what Markdown, GitHub's extensions, or the HTML inside it, would obey; on one line."""
    return _LINKS.sub(r"\g<0><!-- -->", text.translate(_MARKDOWN)) if text.strip(":-") else text
