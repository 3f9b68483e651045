"""What an audit has found, and what the rules make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evalkit.contamination import kernels
from evalkit.contamination.benchmarks import CANARY, Benchmark
from evalkit.contamination.boilerplate import Boilerplate, find_boilerplate
from evalkit.contamination.evaluate import Copies, FieldScores, Runs, evaluate, ngram_lengths
from evalkit.contamination.index import Index, distinct_of
from evalkit.contamination.overlap import NearTexts
from evalkit.contamination.recorded import Found
from evalkit.contamination.rivals import find_outdone
from evalkit.contamination.rules import Rule
from evalkit.corpora.documents import BadRow

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BenchmarkSummary:
    """How many items of one benchmark one rule finds dirty.

    An item is dirty when any of its fields is.

    Attributes
    ----------
    benchmark, rule, n
        The benchmark, the rule, and the rule's length of an n-gram in tokens.
    n_items
        Items that the rule could judge.
    n_without_text
        Items that it could not, since they have no text to look for; they are not among `n_items`.
    n_dirty
        Dirty items.
    n_dirty_short
        Those of them that are dirty by nothing but a question shorter than `n` tokens, which may be a common phrase.
    n_documents
        Documents that make an item dirty.
    n_boilerplate
        Further items that would be dirty if boilerplate counted.
    """

    benchmark: str
    rule: str
    n: int
    n_items: int
    n_without_text: int
    n_dirty: int
    n_dirty_short: int
    n_documents: int
    n_boilerplate: int


@dataclass(frozen=True)
class AuditResult:
    """What an audit found; the tables are in `directory`.

    `bad_rows` holds the first 10,000 unreadable rows of each file, `n_bad_rows` counts them all. `canaries` are the
    canary strings found, with the number of documents that hold each. `n_by_kind` counts the rows that are no
    documents; no row at all has a text in the `columns_without_text`.
    """

    directory: Path
    summaries: tuple[BenchmarkSummary, ...]
    n_files: int
    n_documents: int
    n_empty: int
    n_bytes: int
    n_corpus_tokens: int
    n_matches: int
    n_boilerplate: int
    n_bad_rows: int
    bad_rows: tuple[BadRow, ...]
    seconds: float
    canaries: Mapping[str, int]
    n_by_kind: Mapping[str, int]
    columns_without_text: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per benchmark and rule."""
        import pandas as pd

        frame = pd.DataFrame([vars(summary) for summary in self.summaries])
        return frame.assign(share=frame.n_dirty / frame.n_items.clip(lower=1))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            **{name: value for name, value in vars(self).items() if name not in ("summaries", "bad_rows")},
            "directory": str(self.directory),
            "summaries": [vars(summary) for summary in self.summaries],
            "bad_rows": [vars(row) for row in self.bad_rows[:100]],
        }


@dataclass(frozen=True)
class Findings:
    """What was looked for, what was found, and what the rules make of it.

    Attributes
    ----------
    benchmarks
        What was looked for; the last one are the canaries, which no rule judges.
    rules, index, found
        The rules, the index of the benchmarks, and what the scan found in the corpus.
    runs
        All of that as one set of columns.
    scores, overlaps
        For each rule what it says, and for those with such a measure the weighted overlaps.
    boilerplate, ignored
        Which runs are boilerplate, and which do not count for that reason.
    copies
        What speaks for and against edited copies; None when no rule looks for them.
    text_column, id_column
        As `read_shard` took them.
    """

    benchmarks: Sequence[Benchmark]
    rules: Sequence[Rule]
    index: Index
    found: Found
    runs: Runs
    scores: Mapping[str, FieldScores]
    overlaps: Mapping[str, npt.NDArray[np.float64]]
    boilerplate: Boilerplate
    ignored: npt.NDArray[np.bool_]
    copies: Copies | None
    text_column: str | Sequence[str]
    id_column: str | None

    @property
    def is_canary(self) -> npt.NDArray[np.bool_]:
        """Whether each run is the whole of a canary."""
        is_whole = self.runs.n_tokens == self.index.field_sizes[self.runs.fields]
        return np.asarray((self.index.kinds == CANARY)[self.runs.fields] & is_whole)


def apply_rules(
    rules: Sequence[Rule],
    benchmarks: Sequence[Benchmark],
    index: Index,
    found: Found,
    *,
    keep_boilerplate: bool,
    text_column: str | Sequence[str],
    id_column: str | None,
) -> Findings:
    """Apply rules to what a scan has found; see `Findings` for the arguments."""
    runs = _join_runs(found, index)
    boilerplate = find_boilerplate(index, runs)
    ignored = np.zeros(len(runs), dtype=bool) if keep_boilerplate else boilerplate.runs
    near = None
    if any(rule.measure in ("weighted_overlap", "edit_similarity") for rule in rules):
        near = NearTexts(benchmarks, index, found.near_column("texts"), runs)
    overlaps = {rule.name: near.weighted_overlap(rule) for rule in rules if near and rule.measure == "weighted_overlap"}
    # No rule counts what is less similar than its threshold.
    edits = [rule.threshold for rule in rules if rule.measure == "edit_similarity"]
    copies = None
    if near and edits:
        of_near = near.support()
        copies = Copies(find_outdone(index, runs, min(edits)), np.append(np.ones(len(runs) - len(of_near)), of_near))
    scores = {
        rule.name: evaluate(rule, index, runs, ignored=ignored, copies=copies, overlaps=overlaps.get(rule.name))
        for rule in rules
    }
    return Findings(
        benchmarks, rules, index, found, runs, scores, overlaps, boilerplate, ignored, copies, text_column, id_column
    )


def _join_runs(found: Found, index: Index) -> Runs:
    """Put the runs of all shards, and then their near matches, into one set of columns.

    Documents are numbered over the whole corpus.
    """
    n_rows = np.zeros(len(found.shards), dtype=np.int64)
    np.maximum.at(n_rows, found.shard, found.rows + 1)
    offsets = np.cumsum([0, *n_rows[:-1]])
    n_runs, nothing = len(found.runs), np.zeros(len(found.near), dtype=np.int64)
    edits = found.near_column("n_edits")

    def column(name: str, of_near: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return np.concatenate([found.column(name), of_near], dtype=np.int64)

    fields, places = column("fields", found.near_column("fields")), column("places", nothing)
    n_tokens = column("n_tokens", np.maximum(index.field_sizes[fields[n_runs:]] - edits, 0))
    begin = (index.field_bounds[fields] + places)[:n_runs]
    weights = kernels.stretch_sums(index.weights, begin, begin + n_tokens[:n_runs])
    whole = kernels.stretch_sums(index.weights, index.field_bounds[:-1], index.field_bounds[1:])
    return Runs(
        documents=found.rows + offsets[found.shard],
        fields=fields,
        places=places,
        n_tokens=n_tokens,
        n_skipping=column("n_skipping", nothing),
        n_in_order=column("n_in_order", nothing),
        n_document_tokens=column("n_document_tokens", nothing),
        n_supports=column("n_supports", nothing),
        n_edits=np.concatenate([np.full(n_runs, -1), edits], dtype=np.int64),
        similarities=np.concatenate([weights / whole[fields[:n_runs]], found.near_column("similarities")]),
        starts=column("starts", found.near_column("starts")),
        ends=column("ends", found.near_column("ends")),
    )


def _with_boilerplate(findings: Findings) -> dict[str, npt.NDArray[np.bool_]]:
    """Which fields would be dirty under each rule if boilerplate counted: only those that have some can be others."""
    dirty = {name: score.dirty for name, score in findings.scores.items()}
    touched = np.unique(findings.runs.fields[findings.ignored])
    if not len(touched):
        return dirty
    is_touched = np.zeros(len(findings.index.fields), dtype=bool)
    is_touched[touched] = True
    for rule in findings.rules:
        some = (is_touched & ~dirty[rule.name])[findings.runs.fields]
        runs, copies = findings.runs.only(some), findings.copies
        copies = copies and Copies(copies.outdone[some], copies.support[some])
        overlaps = findings.overlaps.get(rule.name)
        overlaps = None if overlaps is None else overlaps[some]
        dirty[rule.name] = (
            dirty[rule.name] | evaluate(rule, findings.index, runs, copies=copies, overlaps=overlaps).dirty
        )
    return dirty


def summarise(out: Path, findings: Findings, seconds: float) -> AuditResult:
    """Count what was found for the audit in the directory `out`."""
    index, runs, found = findings.index, findings.runs, findings.found
    of_item = index.items
    unfiltered = _with_boilerplate(findings)
    lengths = {rule.name: ngram_lengths(rule, index) for rule in findings.rules}
    summaries = []
    for b, benchmark in enumerate(findings.benchmarks[:-1]):
        for rule in findings.rules:
            score, mine = findings.scores[rule.name], index.benchmarks == b
            with_boilerplate = unfiltered[rule.name] & mine
            is_dirty = score.dirty & mine
            is_short = index.is_question & (index.field_sizes < lengths[rule.name])
            counted = score.counts & is_dirty[runs.fields]
            n_items = len(distinct_of(of_item[mine & score.assessed]))
            n_dirty = len(distinct_of(of_item[is_dirty]))
            summaries.append(
                BenchmarkSummary(
                    benchmark=benchmark.name,
                    rule=rule.name,
                    n=int(lengths[rule.name][mine].max(initial=rule.n)),
                    n_items=n_items,
                    n_without_text=len(benchmark.items) - n_items,
                    n_dirty=n_dirty,
                    n_dirty_short=n_dirty - len(distinct_of(of_item[is_dirty & ~is_short])),
                    n_documents=len(distinct_of(runs.documents[counted])),
                    n_boilerplate=len(distinct_of(of_item[with_boilerplate])) - n_dirty,
                )
            )
    return AuditResult(
        directory=out,
        summaries=tuple(summaries),
        n_files=len(found.shards),
        n_documents=int(found.counts("n_documents").sum()),
        n_empty=int(found.counts("n_empty").sum()),
        n_bytes=int(found.counts("n_bytes").sum()),
        n_corpus_tokens=int(found.counts("n_corpus_tokens").sum()),
        n_matches=int((runs.n_edits < 0).sum()),
        n_boilerplate=int(findings.ignored.sum()),
        n_bad_rows=int(found.counts("n_bad").sum()),
        bad_rows=tuple(found.listed_rows("bad_rows")),
        seconds=seconds,
        canaries=_canaries(findings),
        n_by_kind=dict(+found.total("n_by_kind")),
        # The columns asked for in which no row of the corpus has a text.
        columns_without_text=tuple(column for column, n in found.total("n_texts_by_field").items() if not n),
    )


def _canaries(findings: Findings) -> dict[str, int]:
    """How many documents hold each canary that was found."""
    runs, which = findings.runs, findings.is_canary
    names = [findings.index.fields[field].doc_hash for field in runs.fields[which]]
    pairs = set(zip(names, runs.documents[which].tolist(), strict=True))
    return dict(Counter(name for name, _ in sorted(pairs)))
