"""Adds the rule `semantic` to a complete audit: which of its items are in the corpus in other words."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from evalkit import tables
from evalkit.contamination.benchmarks import QUESTION
from evalkit.contamination.record import AuditDirectory, open_audit
from evalkit.contamination.rules import CLEAN, DIRTY, SEVERITY
from evalkit.contamination.semantic.embedding import DEFAULT_MODEL, find_model, fingerprint_model
from evalkit.contamination.semantic.evidence import SHORTLISTED, THRESHOLD, chance, score
from evalkit.contamination.semantic.judge import DIFFERENT, SAME, UNKNOWN, Judge, judge_pairs
from evalkit.contamination.semantic.search import VERSION, search
from evalkit.contamination.texts import ItemKey
from evalkit.corpora.shards import AUDIT_RECORD
from evalkit.engines import Engine
from evalkit.errors import InputError, SpecError
from evalkit.files import to_json, write_json
from evalkit.progress import say
from evalkit.tables import TableSchema

if TYPE_CHECKING:
    import pandas as pd

RULE: Final = "semantic"
WORK: Final = ".unfinished_semantic"
"""Hidden folder in an audit directory with what is needed to go on after a kill; gone when the search is complete."""

JOURNAL: Final = "semantic_judge.jsonl"
"""What the judge answered, word by word."""

DETAILS: Final = "semantic.json"
"""How the search was done, and what it counted."""

ACTION: Final = "drop"
"""What is to be done with a document that holds a rewritten item."""

Row = Mapping[str, Any]
"""Of the table below."""

_COUNTS: Final = ("n_documents", "n_searched", "n_windows", "n_kept", "n_embedded")
_LABEL_OF: Final = {SAME: DIRTY, DIFFERENT: CLEAN, UNKNOWN: UNKNOWN}
_text, _int, _float = pa.string(), pa.int64(), pa.float64()

SEMANTIC: Final = TableSchema(
    "semantic",
    pa.schema(
        [
            *(pa.field(name, _text, nullable=False) for name in ("corpus", "file")),
            pa.field("row", _int, nullable=False),
            *(pa.field(name, _text, nullable=False) for name in ("benchmark", "doc_hash", "field")),
            *(pa.field(name, _int, nullable=False) for name in ("start", "end")),
            *(pa.field(name, _float, nullable=False) for name in ("similarity", "margin", "share")),
            pa.field("contamination", _float, nullable=False),
            pa.field("label", _text, nullable=False),
            pa.field("doc_id", _text),
            pa.field("numbers", _float),
            pa.field("verdict", _text),
            pa.field("text", pa.large_string()),
        ]
    ),
    key=("file", "row", "benchmark", "doc_hash", "field"),
    choices={"label": (DIRTY, CLEAN, UNKNOWN)},
)
"""One row per document and item that are at all alike: the best window [start, end) in characters and its text; the
evidence (see `evidence.Evidence`), what it comes to (0 to 1), and the judge's verdict, null where none was asked."""


@dataclass(frozen=True)
class SemanticSummary:
    """How many items of one benchmark are in the corpus in other words.

    Attributes
    ----------
    benchmark
        The benchmark.
    n_items, n_too_short
        Items that were looked for, and those whose question says too little to be told from other texts.
    n_dirty, n_unknown
        Items found, and items of which nothing can be said: because the judge did not answer clearly, or because only
        a sample of the corpus was searched. The others are clean.
    n_documents
        Documents that hold a dirty item.
    """

    benchmark: str
    n_items: int
    n_too_short: int
    n_dirty: int
    n_unknown: int
    n_documents: int


@dataclass(frozen=True)
class SemanticResult:
    """What was found; the table is in `directory`. For the counts see `search.Pairs`."""

    directory: Path
    summaries: tuple[SemanticSummary, ...]
    sample: float
    n_documents: int
    n_searched: int
    n_windows: int
    n_kept: int
    n_embedded: int
    n_judged: int
    n_unclear: int
    seconds: float

    def to_frame(self) -> pd.DataFrame:
        """One row per benchmark."""
        import pandas as pd

        frame = pd.DataFrame([vars(summary) for summary in self.summaries])
        return frame.assign(share=frame.n_dirty / frame.n_items.clip(lower=1))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            **vars(self),
            "directory": str(self.directory),
            "summaries": [vars(summary) for summary in self.summaries],
        }


def audit_semantic(
    directory: Path,
    *,
    model: str | None = None,
    sample: float = 1.0,
    judge: Judge | None = None,
    engine: Engine | None = None,
) -> SemanticResult:
    """Look for items in other words in the corpus of a complete audit, and add what is found to it as rule `semantic`.

    Writes the table `semantic`, and rows of this rule into `items`, `documents` and the record. A killed search goes on
    where it was when it is called again in the same way.

    Parameters
    ----------
    directory
        A complete audit, whose corpus is where it was.
    model
        Folder or hub name of the sentence-embedding model; None: all-MiniLM-L6-v2.
    sample
        Share of the documents that are searched. With less than 1, an item that is not found is unknown, not clean.
    judge
        Says of each shortlisted pair whether it is one; None: the threshold decides.
    engine
        Where the work is done.

    Raises
    ------
    InputError
        The directory holds no complete audit, or the corpus cannot be read or is another than it was.
    ModelError
        The model cannot be loaded, or the judge is not there.
    SpecError
        The sample is no share.
    """
    folder = check_options(model, sample)
    opened, begun = open_audit(directory), time.monotonic()
    key = _key(opened, folder, sample)
    rows, counts = _found_before(opened, key) or _search(opened, folder, sample, engine)
    n_judged = _label(rows, opened, judge)
    details = {
        "key": key,
        "model": model or DEFAULT_MODEL,
        "model_sha256": fingerprint_model(folder),
        "judge": judge.name if judge else None,
        "threshold": THRESHOLD,
        "sample": sample,
        **counts,
        "n_judged": n_judged,
        "n_unclear": sum(row["verdict"] == UNKNOWN for row in rows),
        "seconds": time.monotonic() - begun,
    }
    (directory / DETAILS).unlink(missing_ok=True)
    tables.write(directory / f"{SEMANTIC.name}.parquet", tables.from_rows(SEMANTIC, rows), SEMANTIC)
    write_json(directory / DETAILS, details)
    result = apply_semantic(directory)
    shutil.rmtree(directory / WORK, ignore_errors=True)
    return result


def _key(opened: AuditDirectory, folder: Path, sample: float) -> str:
    """Hash of all that the search depends on."""
    columns = [opened.text_column, opened.id_column]
    what = [VERSION, opened.record["corpus"], *columns, fingerprint_model(folder), sample]
    return hashlib.sha256(to_json([*what, list(_keys_of_questions(opened).items())])).hexdigest()


def _found_before(opened: AuditDirectory, key: str) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """What the same search has found already, without what was made of it."""
    path = opened.path / DETAILS
    details = orjson.loads(path.read_bytes()) if path.exists() else {}
    if details.get("key") != key:
        return None
    say("the corpus was searched before in the same way; what was found is used")
    return opened.read(SEMANTIC).to_pylist(), {name: details[name] for name in (*_COUNTS, "too_short")}


def _search(
    opened: AuditDirectory, folder: Path, sample: float, engine: Engine | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Search the corpus, and return a row for each document and item that are alike, and the counts."""
    keys_of = _keys_of_questions(opened)
    questions = list(keys_of)
    pairs, lexicon = search(
        [one.shard for one in opened.files.values()],
        questions,
        opened.path / WORK,
        model=folder,
        text_column=opened.text_column,
        id_column=opened.id_column,
        sample=sample,
        engine=engine,
    )
    rows = [
        {**row, "benchmark": benchmark, "doc_hash": doc_hash, "field": QUESTION}
        for row in pairs.table.to_pylist()
        for benchmark, doc_hash in keys_of[questions[row["item"]]]
    ]
    counts = {name: getattr(pairs, name) for name in _COUNTS}
    too_short = [key for k in np.flatnonzero(~lexicon.is_judged) for key in keys_of[questions[k]]]
    return rows, counts | {"too_short": too_short}


def _label(rows: Sequence[dict[str, Any]], opened: AuditDirectory, judge: Judge | None) -> int:
    """Say what each pair comes to, by the threshold or by the judge; return how many were judged."""
    numbers = np.array([math.nan if row["numbers"] is None else row["numbers"] for row in rows], dtype=float)
    similarity, margin = (np.array([row[name] for row in rows], dtype=float) for name in ("similarity", "margin"))
    scores = score(similarity, margin, numbers)
    for row, value, contamination in zip(rows, scores, chance(scores), strict=True):
        row |= {"contamination": contamination, "label": DIRTY if value >= THRESHOLD else CLEAN, "verdict": None}
    if judge is None:
        return 0
    shortlist = [row for row, value in zip(rows, scores, strict=True) if value >= SHORTLISTED]
    fields = opened.texts.fields
    asked = [(fields[row["benchmark"], row["doc_hash"]][QUESTION], row["text"]) for row in shortlist]
    for row, verdict in zip(shortlist, judge_pairs(judge, asked, opened.path / JOURNAL), strict=True):
        row |= {"verdict": verdict, "label": _LABEL_OF[verdict]}
    return len(shortlist)


def check_options(model: str | None, sample: float) -> Path:
    """Return the folder of the model; raises what `audit_semantic` raises, before anything long is begun in vain."""
    if not 0 < sample <= 1:
        raise SpecError(f"{sample} is no share", where="--semantic-sample", do="Give a number above 0 and at most 1")
    return find_model(model)


def apply_semantic(directory: Path) -> SemanticResult:
    """Put what a search has found into the `items`, `documents` and record of its audit, which may have been made anew.

    Raises
    ------
    InputError
        The directory holds no complete audit, or nothing was searched for there.
    """
    opened = open_audit(directory)
    try:
        details = orjson.loads((directory / DETAILS).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(
            f"there is no complete search for rewritten items ({DETAILS}: {error})",
            where=str(directory),
            do=f"evalkit audit semantic {directory}",
        ) from None
    rows = opened.read(SEMANTIC).drop_columns(["text"]).to_pylist()
    items = _items(opened, rows, details)
    summaries = _summaries(items, rows, details)
    kept = opened.read(tables.ITEMS)
    kept = kept.filter(pc.not_equal(kept.column("rule"), RULE))
    tables.write(
        directory / f"{tables.ITEMS.name}.parquet",
        pa.concat_tables([kept, tables.from_rows(tables.ITEMS, items)]),
        tables.ITEMS,
    )
    tables.write(directory / f"{tables.DOCUMENTS.name}.parquet", _documents(opened, rows), tables.DOCUMENTS)
    _write_record(opened, summaries, details)
    return SemanticResult(
        directory=directory,
        summaries=tuple(summaries),
        **{name: details[name] for name in ("sample", *_COUNTS, "n_judged", "n_unclear", "seconds")},
    )


def _keys_of_questions(opened: AuditDirectory) -> dict[str, list[ItemKey]]:
    """The different questions of the audit's items, and the items that ask each."""
    keys_of: dict[str, list[ItemKey]] = defaultdict(list)
    for key, fields in opened.texts.fields.items():
        if QUESTION in fields:
            keys_of[fields[QUESTION]].append(key)
    if not keys_of:
        raise InputError("no item of the audit has a question", where=str(opened.path), do="Audit a benchmark with one")
    return keys_of


def _items(opened: AuditDirectory, rows: Sequence[Row], details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each item that was looked for."""
    rows_of: dict[ItemKey, list[Row]] = defaultdict(list)
    for row in rows:
        rows_of[row["benchmark"], row["doc_hash"]].append(row)
    too_short = set(map(tuple, details["too_short"]))
    found = []
    for key in (key for keys in _keys_of_questions(opened).values() for key in keys):
        if key in too_short:
            continue
        mine = sorted(rows_of[key], key=lambda row: -row["contamination"])
        labels = [row["label"] for row in mine]
        label = next((one for one in (DIRTY, UNKNOWN) if one in labels), CLEAN if details["sample"] >= 1 else UNKNOWN)
        best = next((row for row in mine if row["label"] == label != CLEAN), None)
        found.append(
            {
                "benchmark": key[0],
                "doc_hash": key[1],
                "field": QUESTION,
                "rule": RULE,
                "contamination": max((row["contamination"] for row in mine), default=0.0),
                "label": label,
                "n_documents": labels.count(DIRTY),
                "best_document": f"{best['file']}:{best['row']}" if best else None,
            }
        )
    return found


def _summaries(
    items: Sequence[Mapping[str, Any]], rows: Sequence[Row], details: Mapping[str, Any]
) -> list[SemanticSummary]:
    n_too_short = Counter(benchmark for benchmark, _ in details["too_short"])
    summaries = []
    for name in dict.fromkeys([*(item["benchmark"] for item in items), *n_too_short]):
        labels = [item["label"] for item in items if item["benchmark"] == name]
        documents = {(row["file"], row["row"]) for row in rows if row["benchmark"] == name and row["label"] == DIRTY}
        n_labels = Counter(labels)
        summaries.append(
            SemanticSummary(name, len(labels), n_too_short[name], n_labels[DIRTY], n_labels[UNKNOWN], len(documents))
        )
    return summaries


def _documents(opened: AuditDirectory, rows: Sequence[Row]) -> pa.Table:
    """The audit's documents, with those in which a rewritten item was found."""
    order = {name: number for number, name in enumerate(opened.files)}
    # What is flagged for another reason than a rule holds a canary, and is dropped.
    actions = {one["name"]: one["document_action"] for one in opened.record.get("rule_definitions", ())}
    flagged: dict[tuple[int, int], dict[str, Any]] = {}
    for one in opened.read(tables.DOCUMENTS).to_pylist():
        reasons = [reason for reason in one["reasons"] if not reason.startswith(f"{RULE}: ")]
        if len(reasons) < len(one["reasons"]):
            found = [actions.get(reason.split(": ")[0], "drop") for reason in reasons]
            one["action"] = max(found, default="keep", key=SEVERITY.__getitem__)
        if reasons:
            flagged[order[one["file"]], one["row"]] = {**one, "reasons": reasons}
    for row in (row for row in rows if row["label"] == DIRTY):
        new = {name: row[name] for name in ("corpus", "file", "row", "doc_id")}
        entry = flagged.setdefault((order[row["file"]], row["row"]), {**new, "reasons": []})
        entry["action"] = ACTION
        if (reason := f"{RULE}: {row['benchmark']}") not in entry["reasons"]:
            entry["reasons"].append(reason)
    return tables.from_rows(tables.DOCUMENTS, [flagged[place] for place in sorted(flagged)])


def _write_record(opened: AuditDirectory, summaries: Sequence[SemanticSummary], details: Mapping[str, Any]) -> None:
    """Name the rule in the record, as other rules are named there."""
    record = dict(opened.record)
    record["rules"] = [*(name for name in opened.rules if name != RULE), RULE]
    definition = {
        "name": RULE,
        "summary": "the question in other words: rare words in common, and sentence embeddings",
        "source": "evalkit",
        "measure": RULE,
        "n": 1,
        "threshold": 0.5,
        "is_strict": False,
        "document_action": ACTION,
        "fields": [QUESTION],
    }
    others = [one for one in record.get("rule_definitions", ()) if one["name"] != RULE]
    record["rule_definitions"] = [*others, definition]
    counts = [
        {
            "benchmark": one.benchmark,
            "rule": RULE,
            "n": 1,
            "n_items": one.n_items,
            "n_without_text": one.n_too_short,
            "n_dirty": one.n_dirty,
            "n_dirty_short": 0,
            "n_documents": one.n_documents,
            "n_boilerplate": 0,
        }
        for one in summaries
    ]
    record["summary"] = [*(one for one in record.get("summary", ()) if one["rule"] != RULE), *counts]
    record[RULE] = {name: value for name, value in details.items() if name != "too_short"}
    write_json(opened.path / AUDIT_RECORD, record)
