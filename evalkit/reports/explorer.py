"""The items behind a report, with what is known of each, packed for the page's explorer.

The page holds an index of all items, and their texts in parts, each compressed by itself: a part is unpacked when one
of its items is opened or searched.
"""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections import Counter
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
    import pandas as pd
    import pyarrow as pa

    from evalkit.contamination.record import AuditDirectory
    from evalkit.contamination.verify import Match
    from evalkit.corpora.rows import Document

MAX_TEXT: Final = 4000
"""Characters of one text."""

BUDGET: Final = 48_000_000
"""Characters of all texts: with more, each is cut shorter."""

MIN_TEXT: Final = 200
CHUNK: Final = 500
MAX_LEAKS: Final = 5000
"""Flagged items whose training text is looked up."""

_AROUND: Final = 200
_MOST_SHOWN: Final = 2400
"""Characters of a training text, and of an item's field beside it."""

_KINDS: Final = {"plain": 0, "shared": 1, "edited": 2, "gap": 3}

Marked = tuple[tuple[str, str], ...]
"""A text in pieces: what each is (plain, shared, edited, gap), and the text."""

_PREVIEW: Final = 120
_STATUSES: Final = ("clean", "flagged", "not audited")


@dataclass(frozen=True)
class Leak:
    """A flagged item beside the training text that holds it, or an edited copy of it.

    Attributes
    ----------
    place
        File and row.
    text
        The training text around what is shared.
    item
        Name and text of each field of the item.
    """

    place: str
    text: Marked
    item: tuple[tuple[str, Marked], ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What is known of the items beside their scores.

    Attributes
    ----------
    prompts, asked
        What was asked, by task and doc_hash, and what this is called.
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
    asked: str = "Prompt"
    leaks: Mapping[str, Leak] = field(default_factory=dict)
    words: Mapping[tuple[str, str], Sequence[tuple[str, str]]] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def evidence(
    comparison: Comparison,
    run: Run,
    audit: Path | None = None,
    verdicts: pa.Table | None = None,
    *,
    inside: Path | None = None,
) -> Evidence:
    """Collect what the explorer shows beside the scores; what cannot be had is said in the notes.

    With `inside`, a journal or corpus that a record names is read only if it is a file in that folder.
    """
    notes: list[str] = []
    slices: Mapping[str, Mapping[str, Any]] = {}
    if comparison.slices_by is not None:
        slices = run.document_column(comparison.slices_by, [task.task for task in comparison.tasks])
    asked, prompts = "Prompt", _prompts(run, notes, inside)
    if not prompts and run.documents_kept:
        asked, prompts = (
            "Item",
            {
                (task, doc_hash): "\n".join(f"{name}: {value}" for name, value in fields.items())
                for task, documents in run.documents_kept.items()
                for doc_hash, fields in documents.items()
            },
        )
    return Evidence(
        prompts=prompts,
        asked=asked,
        leaks=_leaks(comparison, audit, notes, inside) if audit is not None else {},
        words=_words(verdicts) if verdicts is not None else {},
        slices=slices,
        notes=tuple(notes),
    )


def is_inside(path: Any, folder: Path | None) -> bool:
    """Whether a path, its links followed, is one of a file in a folder; None is every folder, and every address."""
    return folder is None or (isinstance(path, Path) and path.resolve().is_relative_to(folder.resolve()))


def _prompts(run: Run, notes: list[str], inside: Path | None) -> dict[tuple[str, str], str]:
    """What was asked under the first seed, from the run's journal."""
    import pyarrow.parquet as pq

    from evalkit.runs.journal import Journal

    requests = run.directory / "requests.parquet"
    journal = Path(str(run.record.get("journal") or run.directory / "journal.sqlite"))
    try:
        if not requests.is_file() or not journal.is_file():
            notes.append("the prompts are not with the run (no requests.parquet or no journal), so they are not shown")
            return {}
        if not is_inside(journal, inside):
            notes.append("the run's journal is not in this folder, so the prompts are not shown")
            return {}
        asked = pq.read_table(requests, columns=["task", "doc_id", "seed", "repeat", "place", "key"]).to_pandas()
        asked = asked.sort_values(["seed", "repeat", "place"], kind="stable").drop_duplicates(["task", "doc_id"])
        with Journal(journal, read_only=True) as stored:
            entries = stored.entries(asked["key"])
    except (EvalkitError, OSError, ValueError, TypeError, KeyError) as error:
        notes.append(f"the prompts cannot be shown: {getattr(error, 'what', error)}")
        return {}
    samples = run.samples.drop_duplicates(["task", "doc_id"])
    hash_of = dict(zip(zip(samples.task, samples.doc_id, strict=True), samples.doc_hash, strict=True))
    found = {}
    for row in asked.itertuples(index=False):
        doc_hash = hash_of.get((row.task, row.doc_id))
        if doc_hash is not None and row.key in entries:
            found[str(row.task), str(doc_hash)] = _shown(entries[row.key][1])
    return found


def _shown(request: Any) -> str:
    """The text of a request: the conversation's messages, or the context; of what is none, all of it."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        if not request.get("messages"):
            return str(request.get("context", "")).strip()
        messages = json.loads(request["messages"])
        return "\n\n".join(f"[{one.get('role', '')}]\n{one.get('content', '')}" for one in messages)
    return json.dumps(request)


def _leaks(comparison: Comparison, directory: Path, notes: list[str], inside: Path | None) -> dict[str, Leak]:
    """The document with each flagged item's longest match, read from the corpus if it is still there."""
    from evalkit.contamination.record import open_audit

    flagged = {item.doc_hash for item in comparison.items if item.status == "flagged"}
    try:
        audit = open_audit(directory)
        matches, texts = audit.read(tables.MATCHES), audit.texts
    except (EvalkitError, KeyError, TypeError) as error:
        notes.append(f"the training text is not shown: {getattr(error, 'what', 'the record is damaged')}")
        return {}
    places = matches.select([*_PAIR, "n_tokens"]).to_pandas()
    places = places[places.doc_hash.isin(flagged) & (places.n_tokens > 0)]  # nothing fits every document
    best = places.sort_values("n_tokens", ascending=False, kind="stable").drop_duplicates("doc_hash")
    if n := len(flagged) - len(best):
        notes.append(f"no place in a training text is recorded for {n:,} of {len(flagged):,} flagged items")
    if len(best) > MAX_LEAKS:
        notes.append(f"the training text is shown of the {MAX_LEAKS:,} longest matches of {len(best):,}")
        best = best.head(MAX_LEAKS)
    allowed = {name for name, file in audit.files.items() if is_inside(file.shard.path, inside)}
    if n := len((audit.files.keys() & set(best.file)) - allowed):
        notes.append(f"{n:,} files of the corpus are not in this folder, so their text is not shown")
    documents = _documents(audit, best[best.file.isin(allowed)])
    found: dict[str, Leak] = {}
    lost: Counter[str] = Counter()
    of_pairs = places.reset_index().merge(best[_PAIR], on=_PAIR).groupby(_PAIR, sort=True)["index"]
    for (file, row, benchmark, doc_hash), numbers in of_pairs:
        found[doc_hash], is_whole = _leak(
            audit,
            f"{file}, row {row}",
            documents.get((file, row)),
            texts.fields.get((benchmark, doc_hash), {}),
            matches.take(numbers.to_numpy()).to_pylist(),
        )
        lost[file] += not is_whole
    if n := lost.total():
        notes.append(f"the training text of {n:,} items is not as it was audited, e.g. in {lost.most_common(1)[0][0]}")
    return found


_PAIR: Final = ["file", "row", "benchmark", "doc_hash"]


def _documents(audit: AuditDirectory, places: pd.DataFrame) -> dict[tuple[str, int], Document]:
    """Read the documents; of a file that cannot be read, those before the trouble."""
    from evalkit.corpora.rows import Document, read_rows

    found: dict[tuple[str, int], Document] = {}
    for name, rows in places.groupby("file", sort=True):
        shard, wanted = audit.files[str(name)].shard, set(map(int, rows.row))
        with contextlib.suppress(EvalkitError, OSError):
            for one in read_rows(shard, wanted, text_column=audit.text_column, id_column=audit.id_column):
                if isinstance(one, Document):
                    found[str(name), one.row] = one
    return found


def _leak(
    audit: AuditDirectory,
    place: str,
    document: Document | None,
    fields: Mapping[str, str],
    matches: Sequence[Match],
) -> tuple[Leak, bool]:
    """Mark what document and item share, and say whether the document is as it was audited; if not, it is not shown."""
    from evalkit.contamination.spans import Spans, excerpt
    from evalkit.contamination.verify import difference, is_code

    spans, trouble = Spans(), "(the document could not be read again)"
    for match in matches if document is not None else ():
        assert document is not None
        if difference(audit, match, document) is not None:
            document, spans, trouble = None, Spans(), "(not shown, because it is not as it was audited)"
            break
        spans.add(match, document.text, fields[match["field"]], is_code=is_code(audit, match))

    def marked(text: str, shared: Sequence[tuple[int, int]], edited: Sequence[tuple[int, int]]) -> Marked:
        return tuple(excerpt(text, shared, edited, _AROUND, _MOST_SHOWN))

    text = (("gap", trouble),) if document is None else marked(document.text, spans.shared, spans.edited)
    item = tuple((name, marked(field_text, *spans.of_field(name))) for name, field_text in fields.items())
    return Leak(place, text, item), document is not None


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
        "asked": known.asked,
        "task": {"names": [safe(one) for one in names["task"]], "codes": [codes["task"][item.task] for item in items]},
        "outcome": {"names": names["outcome"], "codes": [codes["outcome"][outcome(item)] for item in items]},
        "audit": {"names": names["audit"], "codes": [codes["audit"][item.status] for item in items]},
        "slice": {
            "names": [safe(one) for one in names["slice"]],
            "codes": slices,
            "title": safe(comparison.slices_by or ""),
        },
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
    parts = leak and [safe(leak.place), _pieces(leak.text), [[safe(name), _pieces(text)] for name, text in leak.item]]
    return [
        _shortened(known.prompts.get((item.task, item.doc_hash)), limit, keep_end=True),
        *(_shortened(text, limit) for text in (item.target, item.response_a, item.response_b)),
        parts,
        [
            [safe(title), _shortened(text, limit)]
            for title, text in known.words.get((item.task, item.doc_hash), ())
        ],
        safe(_slice(item, known)) if known.slices else "",
    ]  # fmt: skip


def _pieces(text: Marked) -> list[list[Any]]:
    return [[_KINDS[kind], safe(piece)] for kind, piece in text]


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
