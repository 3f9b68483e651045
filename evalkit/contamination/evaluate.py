"""Rules evaluated on recorded runs: how contaminated each benchmark field is, and which runs count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalkit.contamination.benchmarks import QUESTION
from evalkit.contamination.index import Index
from evalkit.contamination.rules import Rule


@dataclass(frozen=True)
class Runs:
    """All runs of an audit as columns: document (numbered over the whole corpus), field, place, length in tokens."""

    documents: npt.NDArray[np.int64]
    fields: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    n_tokens: npt.NDArray[np.int64]


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


def evaluate(rule: Rule, index: Index, runs: Runs) -> FieldScores:
    """Apply `rule` to the runs; the index must have been built for runs of at most `rule.n` tokens."""
    if rule.n < index.n:
        raise ValueError(f"the scan recorded runs of {index.n} tokens or more; rule {rule.name} needs {rule.n}")
    sizes = index.field_sizes
    is_question = np.array([field.name == QUESTION for field in index.fields], dtype=bool)
    assessed = (sizes >= rule.n) | is_question
    needed = np.minimum(rule.n, sizes)
    counts = assessed[runs.fields] & (runs.n_tokens >= needed[runs.fields])
    fields, n_tokens = runs.fields[counts], runs.n_tokens[counts]
    seen = np.zeros(len(sizes), dtype=bool)
    seen[fields] = True
    if rule.measure == "any_ngram":
        contamination = seen.astype(np.float64)
    else:
        covered = _covered_tokens(index, fields, runs.places[counts], n_tokens)
        contamination = covered / np.maximum(sizes, 1)
    pairs = np.unique(np.stack([fields, runs.documents[counts]]), axis=1)
    best_run = _best_runs(len(sizes), fields, n_tokens, np.flatnonzero(counts))
    return FieldScores(
        assessed=assessed,
        contamination=contamination,
        dirty=contamination >= rule.threshold,
        n_documents=np.bincount(pairs[0], minlength=len(sizes)),
        longest=np.where(best_run >= 0, np.append(runs.n_tokens, 0)[best_run], 0),
        best_run=best_run,
        counts=counts,
    )


def _covered_tokens(
    index: Index, fields: npt.NDArray[np.int64], places: npt.NDArray[np.int64], n_tokens: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Tokens of each field that lie in at least one of the runs."""
    steps = np.zeros(len(index.field_hashes) + 1, dtype=np.int64)
    begins = index.field_bounds[fields] + places
    np.add.at(steps, begins, 1)
    np.add.at(steps, begins + n_tokens, -1)
    is_covered = np.cumsum(steps[:-1]) > 0
    totals = np.concatenate([[0], np.cumsum(is_covered)])
    return np.diff(totals[index.field_bounds])


def _best_runs(
    n_fields: int, fields: npt.NDArray[np.int64], n_tokens: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Number of the longest run of each field, the first of equals; -1 for a field without one."""
    best = np.full(n_fields, -1, dtype=np.int64)
    order = np.lexsort((-numbers, n_tokens, fields))
    # Later assignments win: after the sort the last of each field is its longest and earliest run.
    best[fields[order]] = numbers[order]
    return best
