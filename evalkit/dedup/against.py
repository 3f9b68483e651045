"""Which documents of a corpus are near duplicates of benchmark items: one more rule of contamination.

An item's text is compared as a whole, with whole documents. That finds items that were made into training examples,
even edited ones; an item inside a long document is what the audit is for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit import tables
from evalkit.corpora.shards import AGAINST_RECORD, Shard
from evalkit.dedup.compare import Estimates
from evalkit.dedup.dedup import SIGNATURES, DedupSpec, Known, Run, check_target, finished_now
from evalkit.dedup.lsh import Bands
from evalkit.dedup.shuffle import MEMORY_BYTES, find_rows, from_bits, merged, rows_within
from evalkit.engines import Engine
from evalkit.errors import SpecError
from evalkit.files import atomic_path, plain_values, to_json, write_json

RULE: Final = "minhash"
_KEY: Final = ("benchmark", "doc_hash", "field")
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

DIRTY, CLEAN = "dirty", "clean"

RECORD: Final = AGAINST_RECORD
ITEMS_FILE: Final = "items.jsonl"
"""The texts of the items as a corpus file, beside the signatures."""

NEAR: Final = "near_duplicates.parquet"

_NEAR: Final = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("benchmark", "doc_hash", "field", "corpus", "file")),
        pa.field("row", pa.int64()),
        pa.field("doc_id", pa.string()),
        pa.field("estimate", pa.float64()),
        pa.field("similarity", pa.float64()),
    ]
)
"""One row per item text and document: the similarity that the signatures show, and that of the shingles."""


@dataclass(frozen=True)
class ItemText:
    """A text of a benchmark item.

    Attributes
    ----------
    benchmark, doc_hash, field
        As the `items` table has them.
    text
        What is compared.
    """

    benchmark: str
    doc_hash: str
    field: str
    text: str


@dataclass(frozen=True)
class AgainstResult:
    """What was found.

    Attributes
    ----------
    directory
        Where the tables are.
    spec, bands
        What counted as a duplicate.
    n_documents, n_empty, n_bad_rows
        Documents of the corpus that were compared; rows whose text is empty, and rows that could not be read.
    n_items, n_dirty
        Items of each benchmark that were compared, and those with a near duplicate.
    n_pairs
        Item texts and documents that are near duplicates.
    seconds
        That it took.
    """

    directory: Path
    spec: DedupSpec
    bands: Bands
    n_documents: int
    n_empty: int
    n_bad_rows: int
    n_items: dict[str, int]
    n_dirty: dict[str, int]
    n_pairs: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return plain_values(self)


def against(
    shards: Sequence[Shard],
    items: Sequence[ItemText],
    out: Path,
    spec: DedupSpec | None = None,
    *,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    overwrite: bool = False,
    engine: Engine | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> AgainstResult:
    """Find the documents that are near duplicates of items and write the tables `items`, `matches` and `NEAR`.

    Parameters
    ----------
    items
        Texts without a word are left out; no two have the same benchmark, hash and field.
    shards, out, spec, text_column, id_column, overwrite, engine, memory_bytes
        As `dedup` takes them; of the spec, `keep` and `split` do not count. What is found is held in memory, a row for
        each text of an item and document that is like it.

    Raises
    ------
    SpecError
        `out` holds something else or, without `overwrite`, the same; there is no item, or one twice.
    InputError
        A corpus file cannot be read.
    """
    check_target(out, RECORD, overwrite=overwrite)
    keys = [(item.benchmark, item.doc_hash, item.field) for item in items]
    if not items or len(set(keys)) < len(keys):
        raise SpecError("there is no item, or one twice", where="--against", do="Name each benchmark once")
    begun = time.monotonic()
    spec = spec or DedupSpec()
    run = Run(shards, out, replace(spec, keep="first", split=True), text_column, id_column, engine, memory_bytes)
    n_corpus_parts = len(run.tasks)
    run.add(_write_items(items, out / SIGNATURES / ITEMS_FILE), "text", None)
    # Documents are not compared with each other.
    run.known = Known(tuple(part.stem.name for part in run.parts[:n_corpus_parts]))
    run.sign()
    n_corpus = run.firsts[n_corpus_parts]
    run.find_exact(n_corpus)
    run.find_pairs()
    pairs, similarities, estimates = _pairs_of_items(run, n_corpus)
    # What is found of a document goes for all that are equal to it.
    which, documents = _equals(pairs[:, 0], run.equal, memory_bytes)
    near = _near_table(run, items, documents, pairs[which, 1] - n_corpus, estimates[which], similarities[which])
    tables.write(out / "items.parquet", _items_table(items, near), tables.ITEMS)
    tables.write(out / "matches.parquet", _matches_table(near), tables.MATCHES)
    with atomic_path(out / NEAR) as temporary:
        pq.write_table(near.select(_NEAR.names), temporary, compression="zstd")
    n_items = Counter(benchmark for benchmark, _ in {key[:2] for key in keys})
    dirty = Counter(benchmark for benchmark, _ in {(row["benchmark"], row["doc_hash"]) for row in near.to_pylist()})
    run.write_bad_rows()
    result = AgainstResult(
        directory=out,
        spec=spec,
        bands=run.bands,
        n_documents=n_corpus,
        n_empty=run.n_empty,
        n_bad_rows=run.n_bad,
        n_items={name: n_items[name] for name in dict.fromkeys(item.benchmark for item in items)},
        n_dirty={name: dirty[name] for name in dict.fromkeys(item.benchmark for item in items)},
        n_pairs=len(near),
        seconds=time.monotonic() - begun,
    )
    _write_record(result)
    run.clear()
    return result


def _write_record(result: AgainstResult) -> None:
    """Write the record, with the parts by which `compare` knows an audit."""
    write_json(
        result.directory / RECORD,
        {
            **{name: value for name, value in result.to_dict().items() if name != "directory"},
            "finished": finished_now(),
            "rules": [RULE],
            "rule_definitions": [{"name": RULE, "threshold": result.spec.threshold, "is_strict": False}],
            "totals": {"n_bad_rows": result.n_bad_rows},
        },
    )


def _write_items(items: Sequence[ItemText], path: Path) -> Shard:
    """Write the texts as a corpus file; one that holds them already is left alone, so that its signatures are kept."""
    lines = b"".join(to_json({"text": item.text.encode("utf-8", "replace").decode()}) + b"\n" for item in items)
    if not path.exists() or path.read_bytes() != lines:
        with atomic_path(path) as temporary:
            temporary.write_bytes(lines)
    return Shard("", path.absolute(), len(lines))


def _pairs_of_items(run: Run, n_corpus: int) -> tuple[Int64, Float64, Float64]:
    """The similar pairs of a document and an item, their similarities, and the estimates of the signatures."""
    estimates, n_pairs = Estimates(run.signatures, run.memory_bytes // 4), rows_within(run.memory_bytes, 8)
    found = [(np.empty((0, 3), dtype=np.int64), np.empty(0))]
    for rows in merged([run.pairs], n_pairs):
        # An item stands behind all documents; two items are nobody's business.
        mine = rows[(rows[:, 0] < n_corpus) & (rows[:, 1] >= n_corpus)]
        found.append((mine, estimates.measure(mine[:, :2])))
    rows, estimated = (np.concatenate(some) for some in zip(*found, strict=True))
    return rows[:, :2], from_bits(rows[:, 2]), estimated


def _equals(representatives: Int64, equal: Path, memory_bytes: int) -> tuple[Int64, Int64]:
    """For each representative all equal documents and itself: (place in `representatives`, document)."""
    distinct = np.unique(representatives)
    found = [np.column_stack([distinct, distinct])]
    for rows in merged([equal], rows_within(memory_bytes, 4)):
        found.append(rows[find_rows(distinct, rows[:, 1])[1]])
    documents, first = np.concatenate(found).T
    order = np.lexsort((documents, first))
    low, high = (np.searchsorted(first[order], representatives, side=side) for side in ("left", "right"))
    n = high - low
    which = np.repeat(np.arange(len(representatives)), n)
    within = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
    return which, documents[order[low[which] + within]]


def _near_table(
    run: Run, items: Sequence[ItemText], documents: Int64, of_item: Int64, estimates: Float64, similarities: Float64
) -> pa.Table:
    """One row per item text and document, with the document's size; in the order of the items, the nearest first."""
    order = np.lexsort((documents, -similarities, of_item))
    documents, of_item = documents[order], of_item[order]
    distinct, place = np.unique(documents, return_inverse=True)
    described = run.describe(distinct, ["n_tokens", "n_characters"]).take(place)
    chosen = [items[number] for number in of_item.tolist()]
    return pa.table(
        {
            **{name: pa.array([getattr(item, name) for item in chosen], pa.string()) for name in _KEY},
            **{name: described[name] for name in described.column_names},
            "estimate": estimates[order],
            "similarity": similarities[order],
        }
    )


def _items_table(items: Sequence[ItemText], near: pa.Table) -> pa.Table:
    """The `items` table: of each text the greatest similarity that reaches the threshold, or 0."""
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    counts = Counter[tuple[str, str, str]]()
    for row in near.select([*_KEY, "file", "row", "similarity"]).to_pylist():
        key = row["benchmark"], row["doc_hash"], row["field"]
        best.setdefault(key, row)
        counts[key] += 1
    rows = []
    for item in items:
        key = item.benchmark, item.doc_hash, item.field
        found = best.get(key)
        rows.append(
            {
                **dict(zip(_KEY, key, strict=True)),
                "rule": RULE,
                "contamination": found["similarity"] if found else 0.0,
                "label": DIRTY if found else CLEAN,
                "n_documents": counts[key],
                "best_document": f"{found['file']}:{found['row']}" if found else None,
            }
        )
    return tables.from_rows(tables.ITEMS, rows)


def _matches_table(near: pa.Table) -> pa.Table:
    """The `matches` table: the whole document is the match, and its coverage the similarity."""
    return tables.from_columns(
        tables.MATCHES,
        {
            **{name: near[name].combine_chunks() for name in ("corpus", "file", "row", "doc_id", *_KEY, "n_tokens")},
            "start": np.zeros(len(near), dtype=np.int64),
            "end": near["n_characters"].combine_chunks(),
            "coverage": near["similarity"].combine_chunks(),
        },
    )
