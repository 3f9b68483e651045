"""Which rows of a corpus are to be dropped, and which spans cut, by the tables of an audit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalkit import tables
from evalkit.contamination.record import AuditDirectory
from evalkit.contamination.rules import DIRTY
from evalkit.corpora.shards import Shard
from evalkit.errors import InputError

_SEVERITY: Final = {"keep": 0, "cut": 1, "drop": 2}
_ACTIONS: Final = ("keep", "cut", "drop")

# Of these, every n-gram in common is evidence, if the item is dirty at all.
_NGRAM_MEASURES: Final = frozenset(
    {"any_ngram", "ngram_share", "token_coverage", "longest_match", "substring", "common_subsequence"}
)


def plan_changes(
    audit: AuditDirectory, actions: Mapping[str, str], shards: Sequence[Shard]
) -> tuple[list[pa.Table], int]:
    """Return for each shard the rows to be changed, and how many flagged documents are kept.

    Parameters
    ----------
    audit
        The audit.
    actions
        What is to be done with the documents that each chosen rule flags. What is flagged for another reason than a
        rule, such as a canary, gets the action that the audit recorded.
    shards
        The corpus.

    Returns
    -------
    list of pa.Table
        Columns `row` (rising), `doc_id`, `action` (the strictest: drop or cut), `reasons` (those with an effect) and
        `spans` (for a cut: start and end of the evidence, in characters of the document).
    int
        Flagged documents for which every chosen rule says keep.

    Raises
    ------
    InputError
        The tables name a file that is not in the record.
    TableError
        A table cannot be read.
    """
    documents = audit.read(tables.DOCUMENTS).combine_chunks()
    reasons = documents.column("reasons").combine_chunks()
    flat = pc.list_flatten(reasons).dictionary_encode()
    names = flat.dictionary.to_pylist()
    of_document = pc.list_parent_indices(reasons).to_numpy()
    which = flat.indices.to_numpy()
    rule_of = [_rule_in(name, audit.rules) for name in names]
    recorded = np.array([_SEVERITY[one] for one in documents.column("action").to_pylist()], dtype=np.int64)
    by_rule = np.array([_SEVERITY.get(actions.get(rule or "", ""), -1) for rule in rule_of], dtype=np.int64)
    is_other = np.array([rule is None for rule in rule_of], dtype=bool)
    severity = np.where(is_other[which], recorded[of_document], by_rule[which])
    strictest = np.full(len(documents), -1, dtype=np.int64)
    np.maximum.at(strictest, of_document, severity)

    cut_rules = [rule for rule, action in actions.items() if action == "cut"]
    is_cut = strictest == _SEVERITY["cut"]
    spans = _spans(audit, documents.filter(pa.array(is_cut)), cut_rules)
    n_spans = np.zeros(len(documents), dtype=np.int64)
    n_spans[is_cut] = pc.list_value_length(spans).to_numpy(zero_copy_only=False)
    effective = severity > 0
    n_reasons = np.bincount(of_document[effective], minlength=len(documents))
    plan = pa.table(
        {
            "file": documents.column("file"),
            "row": documents.column("row"),
            "doc_id": documents.column("doc_id"),
            "action": pa.array([_ACTIONS[one] for one in strictest], pa.string()),
            "reasons": _lists(flat.cast(pa.string()).filter(pa.array(effective)), n_reasons),
            "spans": _lists(pc.list_flatten(spans), n_spans),
        }
    )
    plan = plan.filter(pa.array(strictest > 0)).sort_by([("file", "ascending"), ("row", "ascending")])
    return _by_file(plan, shards, audit.path), int((strictest == 0).sum())


def _rule_in(reason: str, rules: Sequence[str]) -> str | None:
    """The rule in a reason `RULE: BENCHMARK`."""
    return max((rule for rule in rules if reason.startswith(f"{rule}: ")), key=len, default=None)


def _lists(values: pa.Array, lengths: npt.NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)


def _by_file(plan: pa.Table, shards: Sequence[Shard], audit_dir: Path) -> list[pa.Table]:
    """Cut a table that is sorted by file into one for each shard."""
    encoded = plan.column("file").combine_chunks().dictionary_encode()
    first = np.searchsorted(encoded.indices.to_numpy(), np.arange(len(encoded.dictionary) + 1))
    places = {name: (int(first[n]), int(first[n + 1])) for n, name in enumerate(encoded.dictionary.to_pylist())}
    if unknown := places.keys() - {str(shard.path) for shard in shards}:
        raise InputError(
            f"the audit's tables name the file {min(unknown)}, and its record does not",
            where=str(audit_dir),
            do="The folder holds files of two audits; audit again",
        )
    slices = [places.get(str(shard.path), (0, 0)) for shard in shards]
    return [plan.slice(begin, end - begin).drop_columns(["file"]) for begin, end in slices]


def _spans(audit: AuditDirectory, documents: pa.Table, rules: Sequence[str]) -> pa.Array:
    """For each document the places of the matches by which `rules` flag it: a list of (start, end), rising."""
    numbered = documents.append_column("document", pa.array(np.arange(len(documents))))
    found: list[npt.NDArray[np.int64]] = [np.empty((0, 3), dtype=np.int64)]
    if len(documents) and rules:
        matches, items = audit.read(tables.MATCHES), audit.read(tables.ITEMS)
        # Of the documents, only those that need spans; a corpus has millions of matches.
        matches = matches.join(numbered.select(["file", "row", "document"]), ["file", "row"], join_type="inner")
        names = matches.column("benchmark").unique().to_pylist()
        definitions = {rule["name"]: rule for rule in audit.record["rule_definitions"]}
        for rule in rules:
            is_dirty = pc.and_(pc.equal(items.column("rule"), rule), pc.equal(items.column("label"), DIRTY))
            dirty = items.filter(is_dirty).select(["benchmark", "doc_hash", "field"])
            mine = matches.join(dirty, ["benchmark", "doc_hash", "field"], join_type="inner")
            benchmarks = pc.index_in(mine.column("benchmark"), pa.array(names, pa.string())).to_numpy()
            lengths = {one["benchmark"]: one["n"] for one in audit.record.get("summary", ()) if one["rule"] == rule}
            needed = np.array([lengths.get(name, definitions[rule]["n"]) for name in names], dtype=np.int64)
            counted = _counts(definitions[rule], needed[benchmarks], mine)
            places = np.column_stack([mine.column(name).to_numpy() for name in ("document", "start", "end")])
            # Only in documents that the rule flags for this benchmark.
            flagged = _with_reason(documents, [f"{rule}: {name}" for name in names])
            counted &= np.isin(places[:, 0] * len(names) + benchmarks, flagged)
            found.append(places[counted])
    spans = np.unique(np.concatenate(found), axis=0)
    lengths_of = np.bincount(spans[:, 0], minlength=len(documents))
    pairs = pa.StructArray.from_arrays([pa.array(spans[:, 1]), pa.array(spans[:, 2])], names=["start", "end"])
    return _lists(pairs, lengths_of)


def _with_reason(documents: pa.Table, wanted: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each document and each wanted reason that it has: document * len(wanted) + reason, by their numbers."""
    lists = documents.column("reasons").combine_chunks()
    which = pc.index_in(pc.list_flatten(lists), pa.array(wanted, pa.string()))
    pairs = pc.add(pc.multiply(pc.list_parent_indices(lists), len(wanted)), which)
    found: npt.NDArray[np.int64] = pairs.drop_null().to_numpy().astype(np.int64)
    return found


def _counts(rule: Mapping[str, Any], needed: npt.NDArray[np.int64], matches: pa.Table) -> npt.NDArray[np.bool_]:
    """Which matches are evidence under a rule: those that `evaluate` counts, or more where the tables do not tell.

    `needed` are the tokens that each must have, unless it is the whole field.
    """
    n_tokens, coverage = matches.column("n_tokens").to_numpy(), matches.column("coverage").to_numpy()
    is_exact = pc.fill_null(matches.column("n_edits"), 0).to_numpy() == 0
    if rule["measure"] in _NGRAM_MEASURES:
        return np.asarray(is_exact & ((n_tokens >= needed) | (coverage >= 1)))
    if rule["measure"] == "whole_field":
        return np.asarray(is_exact & (coverage >= 1))
    if rule["measure"] == "edit_similarity":
        return np.asarray(coverage > rule["threshold"] if rule["is_strict"] else coverage >= rule["threshold"])
    return np.ones(len(matches), dtype=bool)


def digest(part: pa.Table) -> str:
    """Hash the rows to be changed in a shard."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema) as writer:
        writer.write_table(part.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()
