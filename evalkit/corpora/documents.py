"""What a shard is read into: batches of documents, and the counts of everything that is not one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MAX_KEPT_BAD_ROWS: Final = 10_000
"""Bad rows kept with their reasons per shard; a shard of nothing else must not fill the memory."""


MAX_TEXT_BYTES: Final = 64 << 20
"""The longest text that is a document unless another limit is asked for: longer ones are broken dumps, not prose."""

RowKind = Literal["unreadable", "no_text", "not_text", "too_large", "empty"]
"""Why a row is no document: not JSON, not an object or not UTF-8; the text missing or null; another type in its place;
a text or line over the limit; a text that is empty or only white space."""


@dataclass(frozen=True)
class BadRow:
    """A row that holds no document, or none that could be read.

    Attributes
    ----------
    file
        The shard.
    row
        0-based: the line number for JSON lines, the row for Parquet and Arrow.
    reason
        Why, as a phrase.
    kind
        Why, as one of a few words to count by.
    """

    file: str
    row: int
    reason: str
    kind: RowKind = "unreadable"


@dataclass
class ShardCounts:
    """What became of the rows of a shard; `n_rows` is always `n_documents + n_empty + n_bad`.

    Attributes
    ----------
    n_rows
        Rows read. Blank lines are no rows.
    n_documents
        Rows that came out in a batch.
    n_empty
        Rows whose text is empty or only white space; they come out in no batch.
    n_bad
        Rows that could not be read, or whose text is too large.
    n_by_kind
        Rows that are no documents, by kind; they add up to `n_empty + n_bad`.
    bad_rows, empty_rows
        The first `MAX_KEPT_BAD_ROWS` of the bad and of the empty rows, in file order.
    n_lines
        Lines (or rows) passed, blank ones among them: how far the row numbers went.
    n_texts_by_field
        When the text is not one plain column: for each field named, the texts found in it. One with none may be
        misspelt.
    """

    n_rows: int = 0
    n_documents: int = 0
    n_empty: int = 0
    n_bad: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    n_by_kind: Counter[str] = field(default_factory=Counter)
    empty_rows: list[BadRow] = field(default_factory=list)
    n_lines: int = 0
    n_texts_by_field: Counter[str] = field(default_factory=Counter)

    def take(self, batch: Batch, bad: Sequence[BadRow], file: str, max_text_bytes: int) -> Batch:
        """Count the rows of a stretch of the file, and return those with a text that is neither empty nor too large.

        Parameters
        ----------
        batch
            The readable rows.
        bad
            The others, in file order.
        file
            The shard.
        max_text_bytes
            The longest text, in bytes, that is a document.
        """
        sizes = pc.binary_length(batch.texts)
        is_empty = pc.or_(pc.equal(sizes, 0), pc.utf8_is_space(batch.texts))
        is_too_large = pc.greater(sizes, max_text_bytes)
        n_empty, n_too_large = is_empty.true_count, is_too_large.true_count
        if n_too_large:
            # White space only is empty, however long.
            is_too_large = pc.and_not(is_too_large, is_empty)
            n_too_large = is_too_large.true_count
            places = np.flatnonzero(is_too_large.to_numpy(zero_copy_only=False))
            too_large = [
                BadRow(file, int(batch.rows[i]), _why_too_large(sizes[int(i)].as_py(), max_text_bytes), "too_large")
                for i in places
            ]
            bad = sorted([*bad, *too_large], key=lambda one: one.row)
        if n_empty:
            kept = np.flatnonzero(is_empty.to_numpy(zero_copy_only=False))[: MAX_KEPT_BAD_ROWS - len(self.empty_rows)]
            self.empty_rows += [BadRow(file, row, "the text is empty", "empty") for row in batch.rows[kept].tolist()]
            self.n_by_kind["empty"] += n_empty
        for one in bad:
            self.n_by_kind[one.kind] += 1
        self.bad_rows += bad[: MAX_KEPT_BAD_ROWS - len(self.bad_rows)]
        n_documents = len(batch) - n_empty - n_too_large
        self.n_rows += n_documents + n_empty + len(bad)
        self.n_documents += n_documents
        self.n_empty += n_empty
        self.n_bad += len(bad)
        return batch if n_documents == len(batch) else batch.filter(pc.invert(pc.or_(is_empty, is_too_large)))

    @classmethod
    def total(cls, parts: Sequence[ShardCounts]) -> ShardCounts:
        """Add up what was counted in the parts of a file, in their order (see `moved`)."""
        total = cls()
        for name, value in vars(total).items():
            values = [getattr(part, name) for part in parts]
            if isinstance(value, list):
                setattr(total, name, [row for rows in values for row in rows][:MAX_KEPT_BAD_ROWS])
            elif isinstance(value, Counter):
                for one in values:
                    value.update(one)  # keeps zeros, which a sum would not
            else:
                setattr(total, name, sum(values))
        return total

    def moved(self, n_rows: int) -> ShardCounts:
        """Return the same counts with all row numbers raised by `n_rows`, for a part of a file (see `row_offsets`)."""
        if not n_rows:
            return self
        return replace(
            self,
            bad_rows=[replace(one, row=one.row + n_rows) for one in self.bad_rows],
            empty_rows=[replace(one, row=one.row + n_rows) for one in self.empty_rows],
        )


def _why_too_large(n_bytes: int, limit: int) -> str:
    return f"the text has {n_bytes:,} bytes, more than {limit:,}"


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
