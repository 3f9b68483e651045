"""The items behind a report, with what is known of each, packed for the page's explorer.

The page holds an index of all items, and their texts in parts, each compressed by itself: a part is unpacked when one
of its items is opened or searched.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evalkit import tables
from evalkit.errors import EvalkitError
from evalkit.reports.comparison import Comparison, ItemPair
from evalkit.reports.figures_evidence import OUTCOMES, outcome
from evalkit.reports.inputs import Run
from evalkit.terminal import safe

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TEXT: Final = 4000
"""Characters of one text."""

BUDGET: Final = 48_000_000
"""Characters of all texts: with more, each is cut shorter."""

MIN_TEXT: Final = 200
CHUNK: Final = 500
MAX_LEAKS: Final = 5000
"""Flagged items whose training text is looked up."""

AROUND: Final = 300
"""Characters of the training text shown on each side of what it shares with the item."""

_PREVIEW: Final = 120
_STATUSES: Final = ("clean", "flagged", "not audited")


@dataclass(frozen=True)
class Leak:
    """Where an item stands in the training data: the place, and the text around what is shared."""

    place: str
    before: str
    shared: str
    after: str


@dataclass(frozen=True)
class Evidence:
    """What is known of the items beside their scores.

    Attributes
    ----------
    prompts
        What was asked, by task and doc_hash.
    leaks
        By doc_hash.
    words
        What judges said, as (title, text), by task and doc_hash.
    slices
        The value of a column of the documents, by task and doc_hash.
    notes
        What could not be had, and why.
    """

    prompts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    leaks: Mapping[str, Leak] = field(default_factory=dict)
    words: Mapping[tuple[str, str], Sequence[tuple[str, str]]] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def evidence(comparison: Comparison, run: Run, audit: Path | None = None, verdicts: pa.Table | None = None) -> Evidence:
    """Collect what the explorer shows beside the scores; what cannot be had is said in the notes."""
    notes: list[str] = []
    slices: Mapping[str, Mapping[str, Any]] = {}
    if comparison.slices_by is not None:
        slices = run.document_column(comparison.slices_by, [task.task for task in comparison.tasks])
    return Evidence(
        prompts=_prompts(run, notes),
        leaks=_leaks(comparison, audit, notes) if audit is not None else {},
        words=_words(verdicts) if verdicts is not None else {},
        slices=slices,
        notes=tuple(notes),
    )


def _prompts(run: Run, notes: list[str]) -> dict[tuple[str, str], str]:
    """What was asked under the first seed, from the run's journal, or from a table's column `prompt`."""
    import pyarrow.parquet as pq

    from evalkit.runs.journal import Journal

    requests = run.directory / "requests.parquet"
    journal = Path(run.record.get("journal") or run.directory / "journal.sqlite")
    if not requests.is_file() or not journal.is_file():
        notes.append("the prompts are not with the run (no requests.parquet or no journal), so they are not shown")
        return {}
    asked = pq.read_table(requests).to_pandas()
    asked = asked.sort_values(["seed", "repeat", "place"], kind="stable").drop_duplicates(["task", "doc_id"])
    samples = run.samples.drop_duplicates(["task", "doc_id"])
    hash_of = dict(zip(zip(samples.task, samples.doc_id, strict=True), samples.doc_hash, strict=True))
    try:
        with Journal(journal) as stored:
            entries = stored.entries(asked["key"])
    except EvalkitError as error:
        notes.append(f"the prompts cannot be shown: {error.what}")
        return {}
    found = {}
    for row in asked.itertuples(index=False):
        doc_hash = hash_of.get((row.task, row.doc_id))
        if doc_hash is not None and row.key in entries:
            found[str(row.task), str(doc_hash)] = _shown(entries[row.key][1])
    return found


def _shown(request: Mapping[str, Any]) -> str:
    """The text of a request: the conversation's messages, or the context."""
    if request.get("messages"):
        messages = json.loads(request["messages"])
        return "\n\n".join(f"[{one.get('role', '')}]\n{one.get('content', '')}" for one in messages)
    return str(request.get("context", "")).strip()


def _leaks(comparison: Comparison, directory: Path, notes: list[str]) -> dict[str, Leak]:
    """The training text of each flagged item's longest match, read from the corpus if it is still there."""
    from evalkit.contamination.record import open_audit
    from evalkit.corpora.rows import Document, read_rows

    flagged = {item.doc_hash for item in comparison.items if item.status == "flagged"}
    try:
        audit = open_audit(directory)
        matches = audit.read(tables.MATCHES).to_pandas()
    except EvalkitError as error:
        notes.append(f"the training text is not shown: {error.what}")
        return {}
    best = matches[matches.doc_hash.isin(flagged)].sort_values("n_tokens", ascending=False, kind="stable")
    best = best.drop_duplicates("doc_hash")
    if len(best) > MAX_LEAKS:
        notes.append(f"the training text is shown of the {MAX_LEAKS:,} longest matches of {len(best):,}")
        best = best.head(MAX_LEAKS)
    found: dict[str, Leak] = {}
    lost: dict[str, int] = {}
    for name, rows in best.groupby("file", sort=True):
        try:
            if name not in audit.files:
                raise FileNotFoundError(name)
            wanted = set(map(int, rows.row))
            documents = {
                one.row: one.text
                for one in read_rows(
                    audit.files[str(name)].shard, wanted, text_column=audit.text_column, id_column=audit.id_column
                )
                if isinstance(one, Document)
            }
        except (EvalkitError, OSError):
            documents = {}
        for row in rows.itertuples(index=False):
            place = f"{name}, row {row.row}"
            if (text := documents.get(int(row.row))) is None:
                lost[str(name)] = lost.get(str(name), 0) + 1
                found[row.doc_hash] = Leak(place, "(the document could not be read again)", "", "")
                continue
            start, end = int(row.start), int(row.end)
            head = "… " if start > AROUND else ""
            tail = " …" if len(text) > end + AROUND else ""
            found[row.doc_hash] = Leak(
                place, head + text[max(0, start - AROUND) : start], text[start:end], text[end : end + AROUND] + tail
            )
    if lost:
        notes.append(
            f"the training text of {sum(lost.values()):,} items could not be read again, e.g. in {next(iter(lost))}"
        )
    return found


def _words(verdicts: pa.Table) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """What judges said of each item."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in verdicts.select(
        ["judge", "task", "doc_hash", "order", "winner", "raw", "model_a", "model_b"]
    ).to_pylist():
        if row["doc_hash"] is None:
            continue
        shown_first = {"ab": row["model_a"], "ba": row["model_b"]}.get(row["order"] or "", "unknown")
        winner = {"a": row["model_a"], "b": row["model_b"]}.get(row["winner"], row["winner"])
        title = f"Judge {row['judge']}, first shown: {shown_first}; winner: {winner}"
        found.setdefault((row["task"] or "", row["doc_hash"]), []).append((title, row["raw"] or "(no words)"))
    return found


def pack(comparison: Comparison, known: Evidence) -> list[str]:
    """Return the explorer's blocks as text: the index, then parts of `CHUNK` items; empty without items.

    Each is JSON, compressed by raw deflate, in base64. Control and formatting characters are written out.
    """
    items = comparison.items
    if not items:
        return []
    limit = _limit(items, known)
    names = {name: [str(one) for one in of] for name, of in _names(comparison, known).items()}
    codes = {name: {one: code for code, one in enumerate(of)} for name, of in names.items()}
    rows = [_row(item, known, limit) for item in items]
    slices = [codes["slice"][_slice(item, known)] if names["slice"] else 0 for item in items]
    index = {
        "n": len(items),
        "chunk": CHUNK,
        "names": [safe(comparison.name_a), safe(comparison.name_b)],
        "task": {"names": [safe(one) for one in names["task"]], "codes": [codes["task"][item.task] for item in items]},
        "outcome": {"names": names["outcome"], "codes": [codes["outcome"][outcome(item)] for item in items]},
        "audit": {"names": names["audit"], "codes": [codes["audit"][item.status] for item in items]},
        "slice": {"names": [safe(one) for one in names["slice"]], "codes": slices},
        "a": [f"{item.score_a:.3g}" for item in items],
        "b": [f"{item.score_b:.3g}" for item in items],
        "hash": [safe(item.doc_hash) for item in items],
        "preview": [_preview(row) for row in rows],
    }
    parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    return [_packed(index), *map(_packed, parts)]


def _names(comparison: Comparison, known: Evidence) -> dict[str, list[str]]:
    statuses = {item.status for item in comparison.items}
    return {
        "task": list(dict.fromkeys(item.task for item in comparison.items)),
        "outcome": list(OUTCOMES),
        "audit": [one for one in _STATUSES if one in statuses],
        "slice": sorted({_slice(item, known) for item in comparison.items}) if known.slices else [],
    }


def _slice(item: ItemPair, known: Evidence) -> str:
    value = known.slices.get(item.task, {}).get(item.doc_hash)
    return "(none)" if value is None else str(value)


def _limit(items: Sequence[ItemPair], known: Evidence) -> int:
    """Characters of one text so that all stay within the budget: the largest of a few that does."""
    lengths = np.fromiter((len(text) for item in items for text in _texts(item, known)), dtype=np.int64)
    limit = MAX_TEXT
    while limit > MIN_TEXT and int(np.minimum(lengths, limit).sum()) > BUDGET:
        limit //= 2
    return max(limit, MIN_TEXT)


def _texts(item: ItemPair, known: Evidence) -> Iterable[str]:
    yield known.prompts.get((item.task, item.doc_hash), "")
    yield from (text or "" for text in (item.target, item.response_a, item.response_b))
    yield from (text for _, text in known.words.get((item.task, item.doc_hash), ()))


def _row(item: ItemPair, known: Evidence, limit: int) -> list[Any]:
    leak = known.leaks.get(item.doc_hash) if item.status == "flagged" else None
    parts = leak and [leak.place, leak.before, leak.shared, leak.after]
    return [
        _shortened(known.prompts.get((item.task, item.doc_hash)), limit, keep_end=True),
        *(_shortened(text, limit) for text in (item.target, item.response_a, item.response_b)),
        parts and [_shortened(part, limit) for part in parts],
        [
            [safe(title), _shortened(text, limit)]
            for title, text in known.words.get((item.task, item.doc_hash), ())
        ],
        safe(_slice(item, known)) if known.slices else "",
    ]  # fmt: skip


def _shortened(text: str | None, limit: int, *, keep_end: bool = False) -> str:
    """Cut a text and say so; of a prompt the end is kept, where the question stands."""
    if text is None:
        return ""
    left = len(text) - limit
    if left <= 0:
        return safe(text)
    if keep_end:
        return f"({left:,} characters before) … {safe(text[-limit:])}"
    return f"{safe(text[:limit])} … ({left:,} more characters)"


def _preview(row: Sequence[Any]) -> str:
    """The end of the prompt or the answer of B, on one line."""
    text = str(row[0][-4 * _PREVIEW :] if row[0] else row[3][: 4 * _PREVIEW])
    line = " ".join(text.split())
    return line[-_PREVIEW:] if row[0] else line[:_PREVIEW]


def _packed(value: Any) -> str:
    # ASCII escapes keep what no UTF-8 can hold, and the browser's parser reads them fast.
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return base64.b64encode(
        packer.compress(json.dumps(value, separators=(",", ":")).encode()) + packer.flush()
    ).decode()
