"""The files of an audit: its tables, the list of the rows that could not be read, and the record that comes last."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

import evalkit
from evalkit import tables
from evalkit.contamination.boilerplate import MANY
from evalkit.contamination.evaluate import Int64
from evalkit.contamination.findings import AuditResult, Findings
from evalkit.contamination.index import first_of_each
from evalkit.contamination.kernels import SIMILAR
from evalkit.contamination.recorded import FILES_SUFFIX, NEAR_SUFFIX, Found, write
from evalkit.contamination.rules import CLEAN, DIRTY, SEVERITY
from evalkit.contamination.texts import TEXTS, texts_of
from evalkit.corpora.fingerprints import METHOD as FINGERPRINTS
from evalkit.corpora.fingerprints import dataset_identity, join_hashes
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.shards import AUDIT_RECORD, ShardPath
from evalkit.errors import InputError
from evalkit.files import atomic_path, to_json
from evalkit.progress import warn
from evalkit.text.normalise import VERSION

BAD_ROWS: Final = "bad_rows.jsonl"

SCAN: Final = "scan.parquet"
"""What the scan has recorded, from which other rules can be applied without the corpus."""


def write_audit(out: Path, findings: Findings, result: AuditResult) -> None:
    """Write the audit beside its place, whole, before anything of an earlier one is touched.

    The earlier record goes before the first table is replaced, and the new one comes last, so that a killed write
    is seen as unfinished: a directory without the record is no audit.
    """
    places, names = _document_places(findings.found), _field_names(findings)
    built = (
        (tables.MATCHES, _matches(findings, places, names)),
        (tables.ITEMS, _items(findings, places, names)),
        (tables.DOCUMENTS, _documents(findings, places)),
        (TEXTS, texts_of(findings.benchmarks)),
    )
    with contextlib.ExitStack() as stack:  # what is entered last takes its place first
        record = stack.enter_context(atomic_path(out / AUDIT_RECORD))
        _write_record(record, findings, result)
        for table, data in built:
            tables.write(stack.enter_context(atomic_path(out / f"{table.name}.parquet")), data, table)
        near = stack.enter_context(atomic_path((out / SCAN).with_suffix(NEAR_SUFFIX)))
        files = stack.enter_context(atomic_path((out / SCAN).with_suffix(FILES_SUFFIX)))
        write(stack.enter_context(atomic_path(out / SCAN)), near, files, findings.found)
        if findings.found.counts("n_bad").any() or findings.found.counts("n_empty").any():
            with stack.enter_context(atomic_path(out / BAD_ROWS)).open("wb") as rows:
                for row in findings.found.listed_rows("bad_rows", "empty_rows"):
                    rows.write(to_json(vars(row)) + b"\n")
        (out / AUDIT_RECORD).unlink(missing_ok=True)
        (out / BAD_ROWS).unlink(missing_ok=True)
        (out / "score_split.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class _Places:
    """For every run, and then every near match, where its document is."""

    corpus: pa.DictionaryArray
    file: pa.DictionaryArray
    row: np.ndarray[Any, np.dtype[np.int64]]
    doc_id: pa.ChunkedArray


def _document_places(found: Found) -> _Places:
    # Of the files, which can be a hundred thousand, only those in which something was found.
    numbers, of_each = np.unique(found.shard, return_inverse=True)
    named = [found.shards[number] for number in numbers.tolist()]
    return _Places(
        corpus=_encoded([shard.corpus for shard in named], of_each),
        file=_encoded([str(shard.path) for shard in named], of_each),
        row=found.rows,
        doc_id=pa.chunked_array([found.column("doc_ids"), found.near_column("doc_ids")], type=pa.large_string()),
    )


def _encoded(values: Sequence[str], numbers: Int64) -> pa.DictionaryArray:
    """The value of each number. There can be millions: a string is kept once, however often it stands there."""
    return _chosen(pa.array(values, type=pa.string()).dictionary_encode(), numbers)


def _chosen(column: pa.DictionaryArray, numbers: Int64) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(column.indices.take(pa.array(numbers)), column.dictionary)


def _field_names(findings: Findings) -> dict[str, pa.DictionaryArray]:
    """The columns that name a field, with a row for each of the index."""
    index = findings.index
    return {
        "benchmark": _encoded([benchmark.name for benchmark in findings.benchmarks], index.benchmarks),
        "doc_hash": pa.array([field.doc_hash for field in index.fields], type=pa.string()).dictionary_encode(),
        "field": pa.array([field.name for field in index.fields], type=pa.string()).dictionary_encode(),
    }


def _matches(findings: Findings, places: _Places, names: Mapping[str, pa.DictionaryArray]) -> pa.Table:
    """Every run and every edited copy, whatever the rules make of it."""
    runs = findings.runs
    # A near match without edits is a run, too; one that is hardly similar is the trace of reordered text.
    mine = np.flatnonzero((runs.n_edits < 0) | ((runs.n_edits > 0) & (runs.similarities >= SIMILAR)))
    fields = runs.fields[mine]
    columns = {
        "corpus": _chosen(places.corpus, mine),
        "file": _chosen(places.file, mine),
        "row": places.row[mine],
        **{name: _chosen(column, fields) for name, column in names.items()},
        "start": runs.starts[mine],
        "end": runs.ends[mine],
        "n_tokens": runs.n_tokens[mine],
        "coverage": runs.n_tokens[mine] / findings.index.field_sizes[fields],
        "doc_id": places.doc_id.take(pa.array(mine)),
        "n_edits": np.maximum(runs.n_edits[mine], 0),
    }
    return pa.table(columns)


def _items(findings: Findings, places: _Places, names: Mapping[str, pa.DictionaryArray]) -> pa.Table:
    """One row per field that a rule can judge, clean ones too: "not in the table" must not mean "clean"."""
    rule_names = pa.array([rule.name for rule in findings.rules], type=pa.string()).dictionary_encode()
    labels = pa.array([CLEAN, DIRTY], type=pa.string()).dictionary_encode()
    files = places.file.dictionary.to_pylist()
    parts = []
    for number, rule in enumerate(findings.rules):
        score = findings.scores[rule.name]
        mine = np.flatnonzero(score.assessed)
        best = score.best_run[mine]
        found = np.flatnonzero(best >= 0)
        documents = np.full(len(mine), None, dtype=object)
        best_files = places.file.indices.take(pa.array(best[found])).to_pylist()
        rows = places.row[best[found]].tolist()
        documents[found] = [f"{files[file]}:{row}" for file, row in zip(best_files, rows, strict=True)]
        columns = {
            **{name: _chosen(column, mine) for name, column in names.items()},
            "rule": _chosen(rule_names, np.full(len(mine), number)),
            "contamination": score.contamination[mine],
            "label": _chosen(labels, score.dirty[mine].astype(np.int64)),
            "n_documents": score.n_documents[mine],
            "best_document": pa.array(documents, type=pa.string()),
            "longest_match": score.longest[mine],
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _documents(findings: Findings, places: _Places) -> pa.Table:
    """The documents that make an item dirty, with the strictest action of the rules that say so."""
    index, runs = findings.index, findings.runs
    flagged: dict[int, dict[str, Any]] = {}
    n_benchmarks = len(findings.benchmarks)
    for rule in findings.rules:
        score = findings.scores[rule.name]
        mine = np.flatnonzero(score.counts & score.dirty[runs.fields])
        # Each pair of document and benchmark once.
        pairs = runs.documents[mine] * n_benchmarks + index.benchmarks[runs.fields[mine]]
        for first in np.sort(first_of_each(pairs)).tolist():
            run, (document, benchmark) = mine[first], divmod(int(pairs[first]), n_benchmarks)
            entry = flagged.setdefault(document, {"run": run, "action": "keep", "reasons": {}})
            entry["reasons"][f"{rule.name}: {findings.benchmarks[benchmark].name}"] = None
            entry["action"] = max(entry["action"], rule.document_action, key=SEVERITY.__getitem__)
    for run in np.flatnonzero(findings.is_canary):
        entry = flagged.setdefault(int(runs.documents[run]), {"run": run, "action": "drop", "reasons": {}})
        entry["action"] = "drop"
        entry["reasons"][f"canary: {index.fields[runs.fields[run]].doc_hash}"] = None
    ordered = [flagged[document] for document in sorted(flagged)]
    which = pa.array([entry["run"] for entry in ordered], type=pa.int64())
    return tables.from_columns(
        tables.DOCUMENTS,
        {
            "corpus": places.corpus.take(which).dictionary_decode(),
            "file": places.file.take(which).dictionary_decode(),
            "row": places.row[which.to_numpy(zero_copy_only=False)],
            "doc_id": places.doc_id.take(which),
            "action": [entry["action"] for entry in ordered],
            "reasons": [list(entry["reasons"]) for entry in ordered],
        },
    )


def _write_record(path: Path, findings: Findings, result: AuditResult) -> None:
    """Write the record, with the corpus file by file: there can be many."""
    begin, end = to_json(_record(findings, result), indent=True).split(b'"corpus": []')
    with path.open("wb") as file:
        file.write(begin + b'"corpus": [')
        for number, entry in enumerate(_corpus_entries(findings.found)):
            file.write(b"," if number else b"")
            for line in to_json(entry, indent=True).splitlines():
                file.write(b"\n    " + line)
        file.write(b"\n  ]" + end + b"\n")


def _record(findings: Findings, result: AuditResult) -> dict[str, Any]:
    """Everything needed to know what this audit says, and to do it again."""
    index = findings.index
    return {
        "schema_version": ".".join(map(str, tables.VERSION)),
        "evalkit": evalkit.__version__,
        "python": platform.python_version(),
        "normalisation_version": VERSION,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": result.seconds,
        "rules": [rule.name for rule in findings.rules],
        "rule_definitions": [vars(rule) for rule in findings.rules],
        "index": {"n": index.n, "fingerprint": index.fingerprint, "n_fields": len(index.fields)}
        | {"n_fields_not_indexed": index.n_not_indexed},
        "boilerplate": {
            "many": MANY,
            "n_benchmark_ngrams": findings.boilerplate.n_benchmark,
            "n_corpus_ngrams": findings.boilerplate.n_corpus,
        },
        "benchmarks": [
            {
                "name": b.name,
                "source": b.source,
                "n_items": len(b.items),
                "n_duplicates": b.n_duplicates,
                "definition": b.definition,
                "n_missing": dict(b.n_missing),
                "code_fields": sorted(b.code_fields),
            }
            for b in findings.benchmarks[:-1]
        ],
        "text_column": findings.text_column,
        "id_column": findings.id_column,
        "fingerprints": FINGERPRINTS,
        "corpus": [],
        "canaries": dict(result.canaries),
        "summary": [vars(summary) for summary in result.summaries],
        "totals": {
            "n_documents": result.n_documents,
            "n_empty": result.n_empty,
            "n_bad_rows": result.n_bad_rows,
            "n_bytes": result.n_bytes,
            "n_tokens": result.n_corpus_tokens,
            "n_matches": result.n_matches,
            "n_boilerplate": result.n_boilerplate,
            "n_rows_by_kind": dict(result.n_by_kind),
        },
    }


def _corpus_entries(found: Found) -> Iterator[dict[str, Any]]:
    counts = {name: found.counts(name) for name in ("n_documents", "n_empty", "n_bad")}
    for number, (shard, pieces) in enumerate(zip(found.shards, found.pieces(), strict=True)):
        yield {
            "corpus": shard.corpus,
            "file": str(shard.path),
            "size": shard.size,
            "fingerprint": _fingerprint(shard.path, pieces),
            "n_documents": int(counts["n_documents"][number]),
            "n_empty": int(counts["n_empty"][number]),
            "n_bad_rows": int(counts["n_bad"][number]),
        }


def _fingerprint(path: ShardPath, pieces: Mapping[int, str]) -> str | None:
    """What tells this content of the file from others; None when nothing is known."""
    if isinstance(path, DatasetPart):
        try:
            return dataset_identity(path)
        except InputError as error:  # hours of scanning are not lost for that
            warn(f"what tells versions of the data set apart is not recorded: {error}")
            return None
    return join_hashes([pieces[start] for start in sorted(pieces)]) if isinstance(path, Path) else None
