"""What a shard is read into: batches of documents, and the counts of everything that is not one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MAX_KEPT_BAD_ROWS: Final = 10_000
"""Bad rows kept with their reasons per shard; a shard of nothing else must not fill the memory."""


@dataclass(frozen=True)
class BadRow:
    """A row that holds no document that could be read.

    Attributes
    ----------
    file
        The shard.
    row
        0-based: the line number for JSON lines, the row for Parquet.
    reason
        Why, as a phrase.
    """

    file: str
    row: int
    reason: str


@dataclass
class ShardCounts:
    """What became of the rows of a shard; `n_rows` is always the sum of the other three counts.

    Attributes
    ----------
    n_rows
        Rows read. Blank lines are no rows.
    n_documents
        Rows that came out in a batch.
    n_empty
        Rows whose text is empty or only white space; they come out in no batch.
    n_bad
        Rows that could not be read.
    bad_rows
        The first `MAX_KEPT_BAD_ROWS` of the bad rows, in file order.
    """

    n_rows: int = 0
    n_documents: int = 0
    n_empty: int = 0
    n_bad: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)

    def add_bad(self, file: str, row: int, reason: str) -> None:
        """Count a bad row."""
        self.n_rows += 1
        self.n_bad += 1
        if len(self.bad_rows) < MAX_KEPT_BAD_ROWS:
            self.bad_rows.append(BadRow(file, row, reason))

    def add_readable(self, batch: Batch) -> Batch:
        """Count the rows of `batch`, and return those that have a text."""
        empty = pc.or_(pc.equal(pc.binary_length(batch.texts), 0), pc.utf8_is_space(batch.texts))
        n_empty = empty.true_count
        self.n_rows += len(batch)
        self.n_empty += n_empty
        self.n_documents += len(batch) - n_empty
        return batch.filter(pc.invert(empty)) if n_empty else batch


@dataclass(frozen=True, eq=False)
class Batch:
    """Some documents of one shard, in file order.

    Attributes
    ----------
    rows
        Shape (n,), int64: each document's row in the file, rising.
    doc_ids
        `pa.StringArray` of length n; null where the row has no id.
    texts
        `pa.LargeStringArray` of length n; valid UTF-8, never null. In the batches of `read_shard` both arrays have
        offset 0, so that the buffers can be used as they are.
    """

    rows: npt.NDArray[np.int64]
    doc_ids: pa.Array
    texts: pa.Array

    def __len__(self) -> int:
        return len(self.rows)

    def filter(self, keep: pa.BooleanArray) -> Batch:
        """Return the documents for which `keep` (no nulls) is true."""
        mask = keep.to_numpy(zero_copy_only=False)
        return Batch(self.rows[mask], self.doc_ids.filter(keep), self.texts.filter(keep))

    def slice(self, start: int, stop: int) -> Batch:
        """Return the documents `start` to `stop` without copying them."""
        n = stop - start
        return Batch(self.rows[start:stop], self.doc_ids.slice(start, n), self.texts.slice(start, n))


def regroup(pieces: Iterable[Batch], batch_bytes: int) -> Iterator[Batch]:
    """Join and split `pieces` into batches that each end with the document that brings them to `batch_bytes`.

    So a batch is shorter than `batch_bytes` plus its last document, whatever the pieces were.
    """
    held: list[Batch] = []
    held_bytes = 0
    for piece in pieces:
        ends = np.cumsum(pc.binary_length(piece.texts).to_numpy(), dtype=np.int64)
        start, start_bytes = 0, 0
        while (last := int(np.searchsorted(ends, start_bytes + batch_bytes - held_bytes))) < len(piece):
            yield _join([*held, piece.slice(start, last + 1)])
            held, held_bytes = [], 0
            start, start_bytes = last + 1, int(ends[last])
        if start < len(piece):
            held.append(piece.slice(start, len(piece)))
            held_bytes += int(ends[-1]) - start_bytes
    if held:
        yield _join(held)


def _join(pieces: list[Batch]) -> Batch:
    return Batch(
        np.concatenate([piece.rows for piece in pieces]),
        _concatenate([piece.doc_ids for piece in pieces]),
        _concatenate([piece.texts for piece in pieces]),
    )


def _concatenate(arrays: list[pa.Array]) -> pa.Array:
    """Join into one array with offset 0, which a lone slice would not have."""
    return pa.concat_arrays(arrays if len(arrays) > 1 else [*arrays, arrays[0].slice(0, 0)])
