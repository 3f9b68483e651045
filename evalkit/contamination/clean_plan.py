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
from evalkit.contamination.rules import DIRTY, SEVERITY
from evalkit.contamination.semantic.audit import RULE, SEMANTIC
from evalkit.corpora.shards import Shard
from evalkit.errors import InputError

Int64 = npt.NDArray[np.int64]

_ACTIONS: Final = tuple(SEVERITY)

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
        `spans` (for a cut: start and end of the evidence, in characters of the document; none where one of the reasons
        to cut has no recorded place, since the others' places would leave its text).
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
    recorded = np.array([SEVERITY[one] for one in documents.column("action").to_pylist()], dtype=np.int64)
    by_rule = np.array([SEVERITY.get(actions.get(rule or "", ""), -1) for rule in rule_of], dtype=np.int64)
    is_other = np.array([rule is None for rule in rule_of], dtype=bool)
    severity = np.where(is_other[which], recorded[of_document], by_rule[which])
    strictest = np.full(len(documents), -1, dtype=np.int64)
    np.maximum.at(strictest, of_document, severity)

    cut_rules = [rule for rule, action in actions.items() if action == "cut"]
    is_cut = strictest == SEVERITY["cut"]
    numbered = documents.select(["file", "row"]).append_column("document", pa.array(np.arange(len(documents))))
    evidence = _evidence(audit, numbered.filter(pa.array(is_cut)), cut_rules, names)
    is_cause = is_cut[of_document] & (severity == SEVERITY["cut"])
    spans = _spans(evidence, of_document[is_cause], which[is_cause])
    places = pa.StructArray.from_arrays([pa.array(spans[:, 1]), pa.array(spans[:, 2])], names=["start", "end"])
    effective = severity > 0
    n_reasons = np.bincount(of_document[effective], minlength=len(documents))
    plan = pa.table(
        {
            "file": documents.column("file"),
            "row": documents.column("row"),
            "doc_id": documents.column("doc_id"),
            "action": pa.array([_ACTIONS[one] for one in strictest], pa.string()),
            "reasons": _lists(flat.cast(pa.string()).filter(pa.array(effective)), n_reasons),
            "spans": _lists(places, np.bincount(spans[:, 0], minlength=len(documents))),
        }
    )
    plan = plan.filter(pa.array(strictest > 0)).sort_by([("file", "ascending"), ("row", "ascending")])
    return _by_file(plan, shards, audit.path), int((strictest == 0).sum())


def _rule_in(reason: str, rules: Sequence[str]) -> str | None:
    """The rule in a reason `RULE: BENCHMARK`."""
    return max((rule for rule in rules if reason.startswith(f"{rule}: ")), key=len, default=None)


def _lists(values: pa.Array, lengths: Int64) -> pa.Array:
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


def _evidence(audit: AuditDirectory, documents: pa.Table, rules: Sequence[str], reasons: Sequence[str]) -> Int64:
    """Where the evidence of `rules` stands: rows of document and reason, by their numbers, and of start and end."""
    definitions = {rule["name"]: rule for rule in audit.record["rule_definitions"]}
    is_semantic = {rule: definitions[rule]["measure"] == RULE for rule in rules}
    if len(documents) and not all(is_semantic.values()):
        # Of the documents, only those that need spans; a corpus has millions of matches.
        matches = audit.read(tables.MATCHES).join(documents, ["file", "row"], join_type="inner")
        items = audit.read(tables.ITEMS)
    found = [np.empty((0, 4), dtype=np.int64)]
    for rule in rules if len(documents) else ():
        if is_semantic[rule]:
            mine = _rewritten(audit).join(documents, ["file", "row"], join_type="inner")
        else:
            mine = _matches_of(definitions[rule], audit, matches, items)
        reason = pc.binary_join_element_wise(rule, mine.column("benchmark"), ": ")
        mine = mine.append_column("reason", pc.index_in(reason, pa.array(reasons, pa.string())))
        mine = mine.filter(pc.is_valid(mine.column("reason")))
        columns = [mine.column(name).to_numpy() for name in ("document", "reason", "start", "end")]
        found.append(np.column_stack(columns).astype(np.int64))
    return np.concatenate(found)


def _rewritten(audit: AuditDirectory) -> pa.Table:
    """The places at which the search for rewritten items found one."""
    found = audit.read(SEMANTIC)
    columns = ["file", "row", "benchmark", "start", "end"]
    return found.filter(pc.equal(found.column("label"), DIRTY)).select(columns)


def _matches_of(rule: Mapping[str, Any], audit: AuditDirectory, matches: pa.Table, items: pa.Table) -> pa.Table:
    """The matches with fields that a rule finds dirty: those that `evaluate` counts, or more where nothing tells."""
    is_dirty = pc.and_(pc.equal(items.column("rule"), rule["name"]), pc.equal(items.column("label"), DIRTY))
    dirty = items.filter(is_dirty).select(["benchmark", "doc_hash", "field"])
    mine = matches.join(dirty, ["benchmark", "doc_hash", "field"], join_type="inner")
    lengths = {one["benchmark"]: one["n"] for one in audit.record.get("summary", ()) if one["rule"] == rule["name"]}
    names = mine.column("benchmark").unique().to_pylist()
    needed = np.array([lengths.get(name, rule["n"]) for name in names], dtype=np.int64)
    which = pc.index_in(mine.column("benchmark"), pa.array(names, pa.string())).to_numpy()
    return mine.filter(pa.array(_counts(rule["measure"], needed[which], mine)))


def _counts(measure: str, needed: Int64, matches: pa.Table) -> npt.NDArray[np.bool_]:
    """Which matches are evidence by a measure; `needed` are the tokens of each, unless it is the whole field."""
    n_tokens, coverage = matches.column("n_tokens").to_numpy(), matches.column("coverage").to_numpy()
    is_exact = pc.fill_null(matches.column("n_edits"), 0).to_numpy() == 0
    if measure in _NGRAM_MEASURES:
        return np.asarray(is_exact & ((n_tokens >= needed) | (coverage >= 1)))
    if measure == "whole_field":
        return np.asarray(is_exact & (coverage >= 1))
    # Of the others, the tables do not tell: `edit_similarity`, for instance, weighs tokens by how rare they are.
    return np.ones(len(matches), dtype=bool)


def _spans(evidence: Int64, documents: Int64, reasons: Int64) -> Int64:
    """The spans to be cut for these pairs of document and reason: rows of document, start and end, rising.

    A document has none when there is no evidence of one of its reasons.
    """
    n = int(max(reasons.max(initial=0), evidence[:, 1].max(initial=0))) + 1
    wanted, found = documents * n + reasons, evidence[:, 0] * n + evidence[:, 1]
    incomplete = documents[~np.isin(wanted, found)]
    counted = np.isin(found, wanted) & ~np.isin(evidence[:, 0], incomplete)
    return np.unique(evidence[counted][:, [0, 2, 3]], axis=0)


def digest(part: pa.Table) -> str:
    """Hash the rows to be changed in a shard."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema) as writer:
        writer.write_table(part.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()
