"""Shows matches: the corpus document around the text that it shares with a benchmark item, beside that item."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from evalkit import tables
from evalkit.contamination.pairs import Pair, Pairs
from evalkit.contamination.record import AuditDirectory
from evalkit.contamination.spans import CONTEXT, Interval, Spans, excerpt
from evalkit.contamination.verify import Match, difference, is_code
from evalkit.corpora.rows import Document, Missing, read_rows
from evalkit.errors import InputError
from evalkit.terminal import safe
from evalkit.text.tokens import words_of

_WIDE: Final = 100
"""Columns of a terminal from which on document and item stand side by side."""

_AHEAD: Final = 32
_MOST_KEPT: Final = 256

_STYLES: Final = {"shared": "black on bright_yellow", "edited": "underline"}
_OPEN, _CLOSE = "\u27e6", "\u27e7"


@dataclass
class Viewer:
    """Prints pairs, and reads their documents from the corpus when they are needed.

    Attributes
    ----------
    audit, pairs
        The audit, and what of it is shown.
    console
        Where to. On a terminal, what is shared is marked by colour; elsewhere by brackets: \u27e6so\u27e7.
    context
        Characters shown on each side of a shared stretch.
    n_unreadable
        Documents so far that could not be read, or that have changed since the audit.
    """

    audit: AuditDirectory
    pairs: Pairs
    console: Console
    context: int = CONTEXT
    n_unreadable: int = 0
    _documents: dict[tuple[str, int], Document | Missing] = field(default_factory=dict)

    def show(self, number: int) -> None:
        """Print the pair with this number, from 0."""
        pair = self.pairs[number]
        document = self._document(number, pair)
        spans, problems = Spans(), []
        for match in pair.matches:
            what = document.reason if isinstance(document, Missing) else difference(self.audit, match, document)
            if what is None and isinstance(document, Document):
                text = self.audit.texts.fields[pair.benchmark, pair.doc_hash][match["field"]]
                spans.add(match, document.text, text, is_code=is_code(self.audit, match))
            elif what not in problems:
                problems.append(what)
        self.n_unreadable += bool(problems)
        self._print_heading(number, pair)
        for what in problems:
            self.console.print(Text(f"not as it was audited: {safe(str(what))}", style="bold red"), soft_wrap=True)
        shown = Text()
        if isinstance(document, Document):
            shown = self._excerpt(document.text, spans.shared, spans.edited)
        self._print_texts(shown, self._item(pair, spans))

    def step_through(self, n: int) -> None:
        """Print the first `n` pairs one after the other, back and forth, as the keys say that are pressed."""
        number = 0
        with contextlib.suppress(KeyboardInterrupt):
            while number < n:
                self.show(number)
                following = "next" if number + 1 < n else "end"
                self.console.print(Text(f"Enter {following} · p previous · q quit", style="dim"))
                while (step := _STEPS.get(_read_key())) is None:
                    pass
                number = max(0, number + step) if step else n

    def _document(self, number: int, pair: Pair) -> Document | Missing:
        """Read the pair's document, and at the same time those of the next pairs that are in the same file."""
        if (pair.file, pair.row) not in self._documents:
            if len(self._documents) > _MOST_KEPT:
                self._documents.clear()
            rows = {one.row for one in self.pairs[number : number + _AHEAD] if one.file == pair.file}
            reason = "the record of the audit does not list this file"
            try:
                if pair.file in self.audit.files:
                    shard = self.audit.files[pair.file].shard
                    columns, id_column = self.audit.text_column, self.audit.id_column
                    for one in read_rows(shard, rows, text_column=columns, id_column=id_column):
                        self._documents[pair.file, one.row] = one
            except InputError as error:
                reason = error.what
            for row in rows:
                self._documents.setdefault((pair.file, row), Missing(row, reason))
        return self._documents[pair.file, pair.row]

    def _print_heading(self, number: int, pair: Pair) -> None:
        self.console.rule(f"{number + 1:,} of {len(self.pairs):,}", style="dim")
        doc_id = self.audit.texts.doc_ids.get((pair.benchmark, pair.doc_hash))
        item = f"{pair.benchmark}, {f'{doc_id}, ' if doc_id is not None else ''}{pair.doc_hash}"
        its_id = pair.matches[0]["doc_id"]
        place = f"{pair.file}, row {pair.row}{f', id {its_id}' if its_id is not None else ''}"
        for label, value in (("item", item), ("document", place)):
            self.console.print(Text.assemble((f"{label:<9}", "dim"), safe(value)), soft_wrap=True)
        for name in dict.fromkeys(match["field"] for match in pair.matches):
            mine = [match for match in pair.matches if match["field"] == name]
            text = self.audit.texts.fields.get((pair.benchmark, pair.doc_hash), {}).get(name, "")
            size = len(words_of(text, is_code=is_code(self.audit, mine[0])))
            line = Text.assemble(
                (f"{safe(name):<9}", "dim"), " ", _measured(mine, size), "; ", self._judged(pair, name)
            )
            self.console.print(line, soft_wrap=True)

    def _judged(self, pair: Pair, name: str) -> str:
        """What the rules say of a field, over the whole corpus."""
        items = self._items
        for column, value in (("doc_hash", pair.doc_hash), ("benchmark", pair.benchmark), ("field", name)):
            items = items.filter(pc.equal(items[column], value))
        judged = [f"{row['rule']} {row['contamination']:.2f} {row['label']}" for row in items.to_pylist()]
        return safe(", ".join(judged) or "no rule judges this field")

    @cached_property
    def _items(self) -> pa.Table:
        return self.audit.read(tables.ITEMS)

    def _item(self, pair: Pair, spans: Spans) -> Text:
        """All fields of the item, each under its name."""
        fields = self.audit.texts.fields.get((pair.benchmark, pair.doc_hash), {})
        parts = []
        for name, text in fields.items():
            shared, edited = spans.of_field(name)
            parts.append(Text.assemble((f"{safe(name)}:\n", "bold"), self._excerpt(text, shared, edited)))
        return Text("\n\n").join(parts)

    def _print_texts(self, document: Text, item: Text) -> None:
        if self.console.is_terminal and self.console.width >= _WIDE:
            table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
            table.add_column("document", ratio=1, overflow="fold")
            table.add_column("item", ratio=1, overflow="fold")
            table.add_row(document, item)
            self.console.print(table)
        else:
            headings = (Text(f"--- {name} ---", style="bold") for name in ("document", "item"))
            first, second = headings
            self.console.print(Group(first, document, second, item), soft_wrap=not self.console.is_terminal)
        self.console.print()

    def _excerpt(self, text: str, shared: Sequence[Interval], edited: Sequence[Interval]) -> Text:
        """The text around the stretches, which are marked; its beginning, where there is none."""
        out = Text()
        for kind, piece in excerpt(text, shared, edited, self.context):
            if kind == "gap":
                out.append(f"{chr(10) if out else ''}{piece}\n", style="dim")
            elif kind == "shared" and not self.console.is_terminal:
                out.append(f"{_OPEN}{safe(piece)}{_CLOSE}")
            else:
                out.append(safe(piece), style=_STYLES.get(kind))
        return out


_STEPS: Final = {
    **dict.fromkeys(("\n", "\r", " ", "n", "N", "\x1b[B", "\x1b[C"), 1),  # the last two: arrows down and right
    **dict.fromkeys(("p", "P", "b", "\x7f", "\x1b[A", "\x1b[D"), -1),
    **dict.fromkeys(("q", "Q", "\x1b", "\x04", ""), 0),  # Escape, Ctrl-D, a terminal that is gone
}
"""How far each key goes; 0 is out."""


def _read_key() -> str:
    """Wait for a key and return its characters."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        # Not TCSAFLUSH, which forgets the keys that were pressed while the pair was printed.
        tty.setcbreak(terminal, termios.TCSADRAIN)
        key = os.read(terminal, 1)
        while key[:1] == b"\x1b" and select.select([terminal], [], [], 0.02)[0]:
            key += os.read(terminal, 1)
        return key.decode(errors="replace")
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _measured(matches: Sequence[Match], size: int) -> str:
    """How much of a field stands in the document."""
    best = max(matches, key=lambda match: (match["coverage"], match["n_tokens"], -(match["n_edits"] or 0)))
    edits = f" with {best['n_edits']} edit{'s' if best['n_edits'] > 1 else ''}" if best["n_edits"] else ""
    more = f"; the longest of {len(matches):,} matches" if len(matches) > 1 else ""
    place = f"characters {best['start']:,}-{best['end']:,}"
    return f"{best['n_tokens']:,} of {size:,} tokens ({best['coverage']:.0%}){edits}, {place}{more}"
