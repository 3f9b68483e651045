"""Matches that are no evidence: phrases that many items share, and phrases that the corpus has without the items.

"Answer the following question by choosing" stands before every item of a benchmark; "which of the following is the"
stands in every textbook. A run that consists of nothing but such n-grams counts for no rule. Two lists are learned:

- From the benchmarks: an n-gram that stands in at least `MANY` different texts (a passage that many questions share is
  one text), and a question shorter than an n-gram that is asked by at least `MANY` items.
- From the corpus: an n-gram found in at least `MANY` runs, of which at least nine in ten are in *passing*: the document
  holds less than half of the field. Where items were copied, they were copied whole, so a benchmark that is in the
  corpus a thousand times is no boilerplate. A run of `LONG` tokens or more is evidence, however often it is found so.

And a question of fewer than 8 words ("What is the capital of Australia?") is asked without any benchmark. It counts
where three in four of its choices, in their order, or its answer stand right after it, and where it is no part of a
longer match of another item.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.contamination import kernels
from evalkit.contamination.evaluate import Int64, Runs, largest_union
from evalkit.contamination.index import SHORTEST_NEAR, Index, distinct_of, numbers_of
from evalkit.contamination.rivals import find_covered

MANY: Final = 10
LONG: Final = 16
_PASSING: Final = 0.5
_SHARE_PASSING: Final = 0.9


@dataclass(frozen=True)
class Boilerplate:
    """Which n-grams of the fields, and which runs, are boilerplate.

    Attributes
    ----------
    runs
        For every run and near match of the audit: whether it is no evidence.
    n_benchmark, n_corpus
        Different n-grams learned from the benchmarks and from the corpus; what both have counts once, as the first.
    """

    runs: npt.NDArray[np.bool_]
    n_benchmark: int
    n_corpus: int


def find_boilerplate(index: Index, runs: Runs) -> Boilerplate:
    """Learn the n-grams of `index.n` tokens that are boilerplate, and name the runs that consist of them."""
    sizes = index.field_sizes
    widths = np.minimum(sizes, index.n)
    # Each field has its n-grams in a row of their own, one behind the other.
    rows = np.concatenate([[0], np.cumsum(sizes - widths + 1)])
    keys = _window_keys(index, sizes, widths, rows)
    is_common = _in_many_texts(index, sizes, widths, keys, rows)
    is_exact = runs.n_edits < 0
    first = rows[runs.fields] + runs.places
    end = first + np.maximum(runs.n_tokens - widths[runs.fields] + 1, 0)
    passing = _in_passing(runs, is_exact, sizes)
    n_passing = _hits(first[is_exact & passing], end[is_exact & passing], len(keys))
    n_all = _hits(first[is_exact], end[is_exact], len(keys))
    is_passing = (n_passing >= MANY) & (n_passing >= _SHARE_PASSING * n_all) & ~is_common
    whole = is_exact & (_inside(~is_common, first, end) == 0)
    short = is_exact & (runs.n_tokens < LONG) & (_inside(~(is_common | is_passing), first, end) == 0)
    return Boilerplate(
        runs=whole | short | _is_mere_phrase(index, runs, is_exact),
        n_benchmark=len(np.unique(keys[is_common])),
        n_corpus=len(np.unique(keys[is_passing])),
    )


def _is_mere_phrase(index: Index, runs: Runs, is_exact: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether each run is a short question without what should follow it, or within a match of another item."""
    is_short = index.is_question & (index.field_sizes < SHORTEST_NEAR)
    found = is_exact & is_short[runs.fields]
    found[found] = runs.n_supports[found] < index.n_supports_needed[runs.fields[found]]
    return np.asarray(found | find_covered(index, runs, np.flatnonzero(is_exact & is_short[runs.fields] & ~found)))


def _window_keys(index: Index, sizes: Int64, widths: Int64, rows: Int64) -> npt.NDArray[np.uint64]:
    """Hash of every n-gram of every field; of a shorter field, its own."""
    keys = np.empty(rows[-1], dtype=np.uint64)
    for width in np.unique(widths).tolist():
        found, texts, places = kernels.window_hashes(
            index.field_hashes, index.field_bounds, width, np.flatnonzero(widths == width)
        )
        keys[rows[texts] + places] = found
    return keys


def _in_many_texts(
    index: Index, sizes: Int64, widths: Int64, keys: npt.NDArray[np.uint64], rows: Int64
) -> npt.NDArray[np.bool_]:
    """Whether each n-gram stands in many different texts, or is itself the question of many items."""
    whole: dict[bytes, int] = {}
    bounds = index.field_bounds.tolist()
    texts = np.array(
        [whole.setdefault(index.field_hashes[begin:end].tobytes(), len(whole)) for begin, end in pairwise(bounds)],
        dtype=np.int64,
    )
    numbers = np.arange(len(sizes))
    of_row = np.repeat(np.where(sizes < index.n, numbers + len(whole), texts), sizes - widths + 1)
    distinct, number = np.unique(keys, return_inverse=True)
    n_rows = int(of_row.max(initial=0)) + 1
    pairs = distinct_of(number * n_rows + of_row)
    return np.asarray(np.bincount(pairs // n_rows, minlength=len(distinct)) >= MANY)[number]


def _in_passing(runs: Runs, is_exact: npt.NDArray[np.bool_], sizes: Int64) -> npt.NDArray[np.bool_]:
    """Whether the document of each run holds less than half of the field."""
    keys = runs.documents * len(sizes) + runs.fields
    pair = numbers_of(keys)
    mine = runs.only(is_exact)
    n_pairs = int(pair.max(initial=-1)) + 1
    covered = largest_union(
        n_pairs, pair[is_exact], np.zeros_like(mine.places), mine.places, mine.places + mine.n_tokens
    )
    return np.asarray(covered[pair] < _PASSING * sizes[runs.fields])


def _hits(first: Int64, end: Int64, n: int) -> Int64:
    """How many of the stretches [first, end) each of n places lies in."""
    change = np.bincount(first, minlength=n + 1) - np.bincount(end, minlength=n + 1)
    return np.cumsum(change)[:n]


def _inside(which: npt.NDArray[np.bool_], first: Int64, end: Int64) -> Int64:
    """How many of the places in each stretch [first, end) are marked."""
    before = np.concatenate([[0], np.cumsum(which)])
    return np.asarray(before[end] - before[first])
