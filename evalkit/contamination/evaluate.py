"""Rules evaluated on recorded runs: how contaminated each benchmark field is, and which runs count."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.contamination.index import Index, distinct_of
from evalkit.contamination.rules import LONG_FIELD, Rule

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """All runs of an audit, and after them all near matches, as columns.

    Attributes
    ----------
    documents, fields
        The document, numbered over the whole corpus, and the field.
    places, n_tokens
        First token of the run in the field, and its length. Of a near match: 0, and the tokens that are not edited.
    n_skipping, n_in_order, n_document_tokens, n_supports
        As in `ShardRuns`; 0 for near matches.
    n_edits
        Tokens inserted, deleted or replaced in the copy of the whole field; -1 for runs.
    similarities
        Share of the field's weight in the run, or not edited in the near match.
    starts, ends
        Place in the document, in characters.
    """

    documents: Int64
    fields: Int64
    places: Int64
    n_tokens: Int64
    n_skipping: Int64
    n_in_order: Int64
    n_document_tokens: Int64
    n_supports: Int64
    n_edits: Int64
    similarities: npt.NDArray[np.float64]
    starts: Int64
    ends: Int64

    def __len__(self) -> int:
        return len(self.fields)

    def only(self, which: npt.NDArray[np.bool_]) -> Runs:
        """Return some of them."""
        numbers = np.flatnonzero(which)
        return Runs(**{name: column[numbers] for name, column in vars(self).items()})


SUPPORTED: Final = 0.5
"""Share of its choices, or of its answer, from which a question is supported."""


@dataclass(frozen=True)
class Copies:
    """What speaks for and against runs and near matches being copies of their items.

    Attributes
    ----------
    outdone
        Whether another item is more similar there.
    support
        Share of the choices, or of the answer, that stands around a near match of a question; else 1.
    """

    outdone: npt.NDArray[np.bool_]
    support: npt.NDArray[np.float64]


@dataclass(frozen=True)
class FieldScores:
    """What one rule says of every indexed field.

    Attributes
    ----------
    assessed
        Whether the rule can judge the field: it has n words, or is a question.
    contamination
        Between 0 and 1.
    dirty
        Whether the contamination reaches the rule's threshold.
    n_documents
        Documents with a run that counts.
    longest
        Tokens of the longest such run, 0 when there is none.
    best_run
        Number of that run, the first of several, or -1.
    counts
        For every run: whether it counts under the rule.
    """

    assessed: npt.NDArray[np.bool_]
    contamination: npt.NDArray[np.float64]
    dirty: npt.NDArray[np.bool_]
    n_documents: npt.NDArray[np.int64]
    longest: npt.NDArray[np.int64]
    best_run: npt.NDArray[np.int64]
    counts: npt.NDArray[np.bool_]


def evaluate(
    rule: Rule,
    index: Index,
    runs: Runs,
    *,
    ignored: npt.NDArray[np.bool_] | None = None,
    copies: Copies | None = None,
    overlaps: npt.NDArray[np.float64] | None = None,
) -> FieldScores:
    """Apply `rule` to the runs that are not `ignored`; they must have been recorded from `rule.n` tokens or fewer.

    `copies` are for rules with the measure `edit_similarity`, `overlaps` for those with `weighted_overlap`.
    """
    if rule.n < index.n:
        raise ValueError(f"the scan recorded runs of {index.n} tokens or more; rule {rule.name} needs {rule.n}")
    sizes = index.field_sizes
    is_question = index.is_question
    is_wanted = np.isin(index.kinds, rule.fields)
    lengths = ngram_lengths(rule, index)
    assessed = is_wanted & ((sizes >= lengths) | (is_question & (sizes >= rule.shortest_question)))
    needed = sizes if rule.measure == "whole_field" else np.minimum(lengths, sizes)
    may_count = assessed[runs.fields] if ignored is None else assessed[runs.fields] & ~ignored
    if rule.measure == "edit_similarity":
        may_count = may_count & _is_copy(rule, runs, sizes, is_question, copies)
    is_similarity = rule.measure in _SIMILARITIES or overlaps is not None
    if is_similarity:
        similarity = overlaps if overlaps is not None else _SIMILARITIES[rule.measure](runs, sizes, needed)
        similarity = np.where(may_count, similarity, 0.0)
        counts = may_count & rule.is_dirty(similarity, sizes[runs.fields])
    else:
        if rule.measure == "skipgram_coverage":
            runs = replace(runs, n_tokens=np.maximum(runs.n_tokens, runs.n_skipping))
        counts = may_count & (runs.n_edits < 0) & (runs.n_tokens >= needed[runs.fields])
    if rule.measure == "substring":
        counts[counts] = _covers_a_sample(rule, index, runs.only(counts), needed)
    mine = runs.only(counts)
    best_run = _best_runs(len(sizes), mine.fields, mine.n_tokens, np.flatnonzero(counts))
    longest = np.where(best_run >= 0, np.append(runs.n_tokens, 0)[best_run], 0)
    if is_similarity:
        contamination = np.zeros(len(sizes))
        np.maximum.at(contamination, runs.fields, similarity)
    else:
        contamination = _contamination(rule, sizes, needed, mine, longest)
    # Each pair of field and document once.
    pairs = distinct_of(mine.fields * (int(mine.documents.max(initial=0)) + 1) + mine.documents)
    of_pair = pairs // (int(mine.documents.max(initial=0)) + 1)
    return FieldScores(
        assessed=assessed,
        contamination=contamination,
        dirty=rule.is_dirty(contamination, sizes),
        n_documents=np.bincount(of_pair, minlength=len(sizes)),
        longest=longest,
        best_run=best_run,
        counts=counts,
    )


def _is_copy(
    rule: Rule, runs: Runs, sizes: Int64, is_question: npt.NDArray[np.bool_], copies: Copies | None
) -> npt.NDArray[np.bool_]:
    """Whether each is a near match, or the whole of a field, and nothing speaks against it."""
    is_whole = runs.n_tokens == sizes[runs.fields]
    found: npt.NDArray[np.bool_] = (runs.n_edits >= 0) | is_whole
    if copies is None:
        return found
    found = found & ~copies.outdone
    if rule.unsupported_threshold is not None:
        is_short = is_question[runs.fields] & (sizes[runs.fields] < LONG_FIELD)
        is_unlike = ~is_whole & (runs.similarities < rule.unsupported_threshold)
        found &= ~(is_short & is_unlike & (copies.support < SUPPORTED))
    return found


def ngram_lengths(rule: Rule, index: Index) -> Int64:
    """The rule's length of an n-gram for each field: of one benchmark, all have the same."""
    lengths = np.full(len(index.fields), rule.n, dtype=np.int64)
    if rule.n_percentile is None:
        return lengths
    of_benchmark = index.benchmarks
    for b in np.unique(of_benchmark):
        sizes = index.field_sizes[(of_benchmark == b) & index.is_question]
        if len(sizes):
            # A length is a whole number: of two, the lower one finds more.
            middle = int(np.percentile(sizes, rule.n_percentile, method="lower"))
            lengths[of_benchmark == b] = np.clip(middle, rule.n, rule.n_high)
    return lengths


def _edit_similarity(runs: Runs, sizes: Int64, needed: Int64) -> npt.NDArray[np.float64]:
    """Share of the field's weight that is not edited, of each run and near match."""
    # The whole of a field is 1, whatever its sum of weights was rounded to.
    del needed
    return np.where(runs.n_tokens == sizes[runs.fields], 1.0, runs.similarities)


def _common_subsequence(runs: Runs, sizes: Int64, needed: Int64) -> npt.NDArray[np.float64]:
    """Longest common subsequence around each run that is long enough, as a share of the shorter text."""
    counts = (runs.n_edits < 0) & (runs.n_tokens >= needed[runs.fields])
    in_order = np.maximum(runs.n_in_order, runs.n_tokens)
    shorter = np.minimum(sizes[runs.fields], np.maximum(runs.n_document_tokens, 1))
    return np.where(counts, in_order / shorter, 0.0)


_SIMILARITIES: Final[Mapping[str, Callable[[Runs, Int64, Int64], npt.NDArray[np.float64]]]] = {
    "edit_similarity": _edit_similarity,
    "common_subsequence": _common_subsequence,
}
"""Measures that each run or near match has by itself; a field has the largest of them."""


def _contamination(rule: Rule, sizes: Int64, needed: Int64, runs: Runs, longest: Int64) -> npt.NDArray[np.float64]:
    """The rule's measure of each field, from the runs that count."""
    if rule.measure in ("any_ngram", "whole_field", "substring"):
        return (longest > 0).astype(np.float64)
    if rule.measure == "longest_match":
        return longest / np.maximum(sizes, 1)
    ends, wholes = runs.places + runs.n_tokens, sizes
    if rule.measure == "ngram_share":
        # The n-grams of a run, by the tokens at which they begin.
        ends, wholes = ends - needed[runs.fields] + 1, sizes - needed + 1
    seen_in = runs.documents if rule.one_document else np.zeros_like(runs.documents)
    return largest_union(len(sizes), runs.fields, seen_in, runs.places, ends) / np.maximum(wholes, 1)


def largest_union(n_fields: int, fields: Int64, groups: Int64, begins: Int64, ends: Int64) -> Int64:
    """Size of the union of the stretches [begin, end) of each field; of its groups, the one with the largest."""
    largest = np.zeros(n_fields, dtype=np.int64)
    if not len(fields):
        return largest
    of_group = fields * (int(groups.max()) + 1) + groups
    order = np.lexsort((begins, of_group))
    fields, of_group, begins, ends = fields[order], of_group[order], begins[order], ends[order]
    is_first = np.append(True, of_group[1:] != of_group[:-1])
    group = np.cumsum(is_first) - 1
    # Each group on a stretch of numbers of its own: one running maximum then serves all.
    offset = group * (int(ends.max()) + 1)
    reached = np.maximum.accumulate(ends + offset)
    reached_before = np.append(0, reached[:-1])
    new = np.maximum(ends + offset - np.maximum(begins + offset, reached_before), 0)
    np.maximum.at(largest, fields[is_first], np.bincount(group, weights=new).astype(np.int64))
    return largest


def _covers_a_sample(rule: Rule, index: Index, runs: Runs, needed: Int64) -> npt.NDArray[np.bool_]:
    """Whether each run holds one of the field's random stretches of characters, in whole words."""
    # Only a run of enough characters can hold one; the whole of a field holds all, and no draw is needed.
    covers: npt.NDArray[np.bool_] = runs.n_tokens == index.field_sizes[runs.fields]
    bounds = np.concatenate([[0], np.cumsum(index.token_sizes)])
    begins = index.field_bounds[runs.fields] + runs.places
    is_long = bounds[begins + runs.n_tokens] - bounds[begins] >= rule.length
    left = np.flatnonzero(is_long & ~covers)
    if not len(left):
        return covers
    order = left[np.argsort(runs.fields[left], kind="stable")]
    found, first = np.unique(runs.fields[order], return_index=True)
    for f, mine in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        places, ends = runs.places[mine], runs.places[mine] + runs.n_tokens[mine]
        for begin, end in sample_stretches(rule, index, f, int(needed[f])):
            covers[mine] |= (places <= begin) & (ends >= end)
    return covers


def sample_stretches(rule: Rule, index: Index, field: int, shortest: int) -> list[tuple[int, int]]:
    """The random stretches of one field, as tokens [begin, end): whole words, and at least `shortest` of them.

    The item's hash and the field's name seed the draws, so that every audit draws the same.
    """
    low, high = index.field_bounds[field], index.field_bounds[field + 1]
    bounds = np.concatenate([[0], np.cumsum(index.token_sizes[low:high])])
    n_tokens, n_characters = int(high - low), int(bounds[-1])
    if n_characters <= rule.length:
        return [(0, n_tokens)]
    draws = random.Random(f"{index.fields[field].doc_hash} {index.fields[field].name}")
    stretches = []
    for _ in range(rule.n_samples):
        begin_character = draws.randrange(n_characters - rule.length + 1)
        begin = int(np.searchsorted(bounds, begin_character, side="right")) - 1
        end = int(np.searchsorted(bounds, begin_character + rule.length, side="left"))
        end = min(max(end, begin + shortest), n_tokens)
        stretches.append((min(begin, end - shortest), end))
    return stretches


def _best_runs(n_fields: int, fields: Int64, n_tokens: Int64, numbers: Int64) -> Int64:
    """Number of the longest run of each field, the first of equals; -1 for a field without one."""
    best = np.full(n_fields, -1, dtype=np.int64)
    order = np.lexsort((-numbers, n_tokens, fields))
    # Later assignments win: after the sort the last of each field is its longest and earliest run.
    best[fields[order]] = numbers[order]
    return best
