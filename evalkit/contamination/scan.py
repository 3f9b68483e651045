"""One pass over one corpus shard: which runs of tokens it shares with the benchmark fields, and what comes near."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalkit.contamination import kernels
from evalkit.contamination.index import Index
from evalkit.corpora.documents import Batch, ShardCounts
from evalkit.corpora.readers import read_shard
from evalkit.corpora.shards import Shard
from evalkit.text.buffers import arrow_buffers

_FIRST_CAPACITY = 1 << 14


@dataclass(frozen=True)
class ShardRuns:
    """The runs found in one shard, as columns of equal length, and what was read to find them.

    Attributes
    ----------
    shard
        The file.
    rows
        Row of the document in the file.
    doc_ids
        The document's own id, null when it has none.
    fields, places, n_tokens
        Field number in the index, first token in the field, length in tokens.
    starts, ends
        Place in the document's original text, in characters.
    n_skipping
        Length in tokens when up to 4 later ones may differ; 0 for runs of fewer than 10 tokens.
    n_in_order
        Longest common subsequence of the field and the run's surroundings; 0 for runs of fewer than 13 tokens.
    n_document_tokens
        Tokens of the document.
    n_supports
        After a short question, how many of its choices (or of its answers) stand there.
    near
        Near matches.
    counts
        What became of the rows: documents scanned, documents without text, rows that could not be read.
    n_bytes, n_corpus_tokens
        Bytes of UTF-8 text and tokens scanned.
    pieces
        Hashes of the file's pieces by their first byte; see `evalkit.corpora.fingerprints`.
    """

    shard: Shard
    rows: npt.NDArray[np.int64]
    doc_ids: pa.Array
    fields: npt.NDArray[np.int32]
    places: npt.NDArray[np.int32]
    n_tokens: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    n_skipping: npt.NDArray[np.int32]
    n_in_order: npt.NDArray[np.int32]
    n_document_tokens: npt.NDArray[np.int32]
    n_supports: npt.NDArray[np.int32]
    near: NearMatches
    counts: ShardCounts
    n_bytes: int
    n_corpus_tokens: int
    pieces: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NearMatches:
    """Where much of a field stands in a document, perhaps edited; columns of equal length.

    Attributes
    ----------
    rows, doc_ids
        The document, as in `ShardRuns`.
    fields
        Field number in the index.
    n_edits, similarities
        Tokens inserted, deleted or replaced there, and the share of the field's weight that is not edited, or moved.
    starts, ends
        Place of the copy in the document's original text, in characters.
    texts
        The copy with its surroundings, and what follows it.
    """

    rows: npt.NDArray[np.int64]
    doc_ids: pa.Array
    fields: npt.NDArray[np.int32]
    n_edits: npt.NDArray[np.int32]
    similarities: npt.NDArray[np.float64]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    texts: pa.Array


def scan_shard(
    shard: Shard,
    index: Index,
    *,
    text_column: str | Sequence[str],
    id_column: str | None,
    on_progress: Callable[[int], None] | None = None,
) -> ShardRuns:
    """Scan one shard; memory is bounded by one batch of text and the runs found.

    Raises
    ------
    InputError
        The file cannot be read to its end, or a Parquet file has no such column.
    """
    reader = read_shard(shard, text_column=text_column, id_column=id_column, on_progress=on_progress)
    runs = _Columns(10)
    near = _Columns(5)
    texts: list[pa.Array] = []
    similarities = [np.empty(0)]
    n_bytes = n_corpus_tokens = 0
    for batch in reader:
        found_runs, found_near, found_similarities, scanned = scan_texts(batch.texts, index)
        runs.add(found_runs, batch)
        near.add(found_near[:, :5], batch)
        texts.append(_stretches(batch.texts, found_near))
        similarities.append(found_similarities)
        data_bounds = arrow_buffers(batch.texts)[1]
        n_bytes += int(data_bounds[-1] - data_bounds[0])
        n_corpus_tokens += scanned
    rows, fields, places, n_tokens, starts, ends, n_skipping, n_in_order, n_document_tokens, n_supports = runs.columns()
    near_rows, near_fields, n_edits, near_starts, near_ends = near.columns()
    return ShardRuns(
        shard=shard,
        rows=rows,
        doc_ids=runs.doc_ids(),
        fields=fields,
        places=places,
        n_tokens=n_tokens,
        starts=starts,
        ends=ends,
        n_skipping=n_skipping,
        n_in_order=n_in_order,
        n_document_tokens=n_document_tokens,
        n_supports=n_supports,
        near=NearMatches(
            rows=near_rows,
            doc_ids=near.doc_ids(),
            fields=near_fields,
            n_edits=n_edits,
            similarities=np.concatenate(similarities),
            starts=near_starts,
            ends=near_ends,
            texts=pa.concat_arrays(texts) if texts else pa.nulls(0, pa.large_string()),
        ),
        counts=reader.counts,
        n_bytes=n_bytes,
        n_corpus_tokens=n_corpus_tokens,
    )


class _Columns:
    """Gathers what the kernel finds batch by batch, with the documents' rows in the file in place of their numbers."""

    def __init__(self, n_columns: int) -> None:
        # Nothing but rows needs more than 32 bits, and there can be many runs.
        self._rows = [np.empty(0, dtype=np.int64)]
        self._tables = [np.empty((0, n_columns - 1), dtype=np.int32)]
        self._ids: list[pa.Array] = []

    def add(self, found: npt.NDArray[np.integer[Any]], batch: Batch) -> None:
        self._ids.append(batch.doc_ids.take(pa.array(found[:, 0])))
        self._rows.append(batch.rows[found[:, 0]])
        self._tables.append(found[:, 1:].astype(np.int32))

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        return np.concatenate(self._rows), *np.ascontiguousarray(np.concatenate(self._tables).T)

    def doc_ids(self) -> pa.Array:
        return pa.concat_arrays(self._ids) if self._ids else pa.nulls(0, pa.string())


def _stretches(texts: pa.LargeStringArray, near: npt.NDArray[np.int64]) -> pa.Array:
    """The texts of the near matches."""
    data, _ = arrow_buffers(texts)
    return pa.array([data[begin:end].tobytes() for begin, end in near[:, 5:]], type=pa.large_binary()).cast(
        pa.large_string()
    )


def scan_texts(
    texts: pa.LargeStringArray, index: Index
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.float64], int]:
    """Return the runs, the near matches and their similarities in an array of texts, and the number of tokens scanned.

    The columns are those of `kernels.scan`: int32[n_runs, 10] and int64[n_near, 7], in the order of the texts.
    """
    data, offsets = arrow_buffers(texts)
    capacity = _FIRST_CAPACITY
    # Zeroed memory that is never touched costs nothing, and few postings are ever found.
    memory = (
        np.zeros((len(index.posting_field), 3), dtype=np.int64),
        np.zeros((len(index.seed_field), 2), dtype=np.int64),
        np.zeros(int(index.field_bounds[-1]) + 1, dtype=np.int64),
    )
    found: list[tuple[npt.NDArray[Any], ...]] = []
    first, total = 0, 0
    while first < len(texts) or not found:
        runs, near = np.empty((capacity, 10), dtype=np.int32), np.empty((capacity, 7), dtype=np.int64)
        similarities = np.empty(capacity)
        n_runs, n_near, following, scanned = kernels.scan(
            data, offsets, first, index.fold_arrays, index.n_modes, index.arrays, index.seed_arrays,
            index.support_arrays, index.n, index.lengths, index.powers, index.weights, memory, runs, near, similarities,
        )  # fmt: skip
        found.append((runs[:n_runs], near[:n_near], similarities[:n_near]))
        total += scanned
        if following == first:  # what was found in one document does not fit
            capacity *= 2
        first = following
    all_runs, all_near, all_similarities = (np.concatenate(column) for column in zip(*found, strict=True))
    return all_runs, all_near, all_similarities, total
