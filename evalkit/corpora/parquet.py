"""Reads Parquet shards column by column, without a Python object per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.corpora.documents import Batch, ShardCounts
from evalkit.errors import InputError

READ_ERRORS: Final = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What `read_parquet` raises when the file cannot be read to its end; the last one when a column name is damaged."""

_MAX_ROWS: Final = 4096
"""Rows decoded together at most: sizes are known only as averages, and a few long texts may lie side by side."""


def read_parquet(
    path: Path,
    size: int,
    text_column: str,
    id_column: str | None,
    piece_bytes: int,
    counts: ShardCounts,
    on_progress: Callable[[int], None],
) -> Iterator[Batch]:
    """Yield the documents of a file in pieces of at most about `piece_bytes`; count every row in `counts`.

    Progress is told in bytes of the file's `size`, in proportion to the rows read.

    Raises
    ------
    InputError
        A column is missing or has no text in it.
    OSError, pa.ArrowException, UnicodeDecodeError
        The file cannot be read to its end.
    """
    # Without a buffer size a whole column chunk, often hundreds of megabytes, would be read at once.
    with pq.ParquetFile(path, buffer_size=1 << 20, page_checksum_verification=True) as file:
        _check_columns(file.schema_arrow, text_column, id_column, str(path))
        columns = [text_column]
        if id_column is not None and id_column in file.schema_arrow.names and id_column != text_column:
            columns.append(id_column)
        n_rows = file.metadata.num_rows
        row = told = 0
        batch_size = _rows_per_piece(file.metadata, piece_bytes)
        for decoded in file.iter_batches(batch_size=batch_size, columns=columns, use_threads=False):
            texts = _as_text(decoded.column(text_column), pa.large_string())
            if id_column in decoded.schema.names:
                doc_ids = _as_text(decoded.column(id_column), pa.string())
            else:
                doc_ids = pa.nulls(len(texts), pa.string())
            yield counts.add_readable(_without_bad_rows(texts, doc_ids, row, counts, str(path)))
            row += len(texts)
            done = size * row // max(n_rows, row)
            on_progress(done - told)
            told = done
        on_progress(size - told)
        if row != n_rows:
            raise pa.ArrowInvalid(f"its metadata promise {n_rows} rows, its data hold {row}")


def _check_columns(schema: pa.Schema, text_column: str, id_column: str | None, file: str) -> None:
    if text_column not in schema.names:
        raise InputError(
            f"there is no text column '{text_column}' (the columns are: {', '.join(schema.names) or 'none at all'})",
            where=file,
            do="Name the column that holds the text",
        )
    kind = _value_type(schema.field(text_column).type)
    if not _is_text(kind):
        raise InputError(
            f"column '{text_column}' has type {kind}, which is not text",
            where=file,
            do="Name the column that holds the text, or write this one as strings",
        )
    if id_column in schema.names:
        kind = _value_type(schema.field(id_column).type)
        if not (_is_text(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
            raise InputError(
                f"column '{id_column}' has type {kind}, which cannot serve as a document id",
                where=file,
                do="Name another id column, or none",
            )


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _as_text(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return (column.dictionary_decode() if pa.types.is_dictionary(column.type) else column).cast(kind)


def _rows_per_piece(metadata: pq.FileMetaData, piece_bytes: int) -> int:
    """As many rows as have about `piece_bytes` in the row group with the longest rows.

    All columns count, though only the text matters: asking pyarrow for the size of one column ends the whole
    process when the statistics in that place of the file are corrupt.
    """
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows > 0), default=1.0)
    return max(1, min(_MAX_ROWS, int(piece_bytes / max(1.0, longest))))


def _without_bad_rows(texts: pa.Array, doc_ids: pa.Array, first_row: int, counts: ShardCounts, file: str) -> Batch:
    """Number the rows, and leave out those without a readable text."""
    reasons = {int(row): "the text is null" for row in np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))}
    # Parquet does not check that its strings are UTF-8.
    for name, column in (("id", doc_ids), ("text", texts)):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            reasons |= {row: f"the {name} is not valid UTF-8 (byte {byte})" for row, byte in _invalid_utf8(column)}
    rows = np.arange(first_row, first_row + len(texts), dtype=np.int64)
    batch = Batch(rows, doc_ids, texts)
    if not reasons:
        return batch
    for row in sorted(reasons):
        counts.add_bad(file, first_row + row, reasons[row])
    good = np.ones(len(texts), dtype=bool)
    good[list(reasons)] = False
    return batch.filter(pa.array(good))


def _invalid_utf8(column: pa.Array) -> Iterator[tuple[int, int]]:
    """The rows whose bytes are not UTF-8, and the first byte that is not."""
    for row, value in enumerate(column.cast(pa.large_binary())):
        try:
            (value.as_py() or b"").decode()
        except UnicodeDecodeError as error:
            yield row, error.start
