"""Writes Parquet and Arrow files anew, batch by batch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.corpora.columns import check_columns, count_documents, steps_in
from evalkit.corpora.documents import MAX_TEXT_BYTES, ShardCounts
from evalkit.corpora.edits import Pending, text_slots
from evalkit.corpora.fields import SEPARATOR, TextFields
from evalkit.corpora.hub import DatasetPart, tables_of_part
from evalkit.corpora.parquet import open_parquet
from evalkit.corpora.remote import Address
from evalkit.corpora.streams import open_file
from evalkit.errors import InputError

MAX_GROUP_BYTES: Final = 512 << 20
"""Bytes of a Parquet row group in memory; a larger one is written as several, whatever the file had."""

_NEW_GROUP_BYTES: Final = 64 << 20
_BATCH_BYTES: Final = 8 << 20
_MAX_BATCH_ROWS: Final = 4096
_FILE_MAGIC: Final = b"ARROW1"

# The level at which zstd itself works unless told otherwise; no file says at which it was written.
_ZSTD_LEVEL: Final = 3


def _edited_batch(batch: pa.RecordBatch, pending: Pending, fields: TextFields) -> pa.RecordBatch:
    """Return the rows of the next batch of a file as they become."""
    first = pending.n_rows
    pending.n_rows += len(batch)
    rows = pending.take_until(pending.n_rows)
    if not rows:
        return batch
    local = np.array(rows, dtype=np.int64) - first
    names = _columns(batch.schema, fields)
    documents = pa.RecordBatch.from_arrays([_take(batch.column(name), local) for name in names], names)
    read = count_documents(documents, fields, MAX_TEXT_BYTES, ShardCounts(), pending.file)
    if len(read) < len(rows):
        missing = min(set(range(len(rows))) - set(read.rows.tolist()))
        raise pending.refuse(rows[missing], "this row is no document")
    paths = [steps_in(batch.schema, path) for path in fields.paths]
    roots = list(dict.fromkeys(str(steps[0]) for steps in paths))
    values = {root: documents.column(root).to_pylist() for root in roots}
    new: dict[str, list[Any]] = {root: [] for root in roots}
    n_made = np.ones(len(batch), dtype=np.int64)
    for number, row in enumerate(rows):
        record = {root: values[root][number] for root in roots}
        texts = _texts_at(record, paths)
        if SEPARATOR.join(texts) != read.texts[number].as_py():
            raise AssertionError(f"{pending.file}, row {row}: two ways to read a row differ")
        made = pending.edit(row, read.doc_ids[number].as_py(), texts)
        n_made[local[number]] = len(made)
        for one in made:
            changed = _with_values(record, paths, one)
            for root in roots:
                new[root].append(changed[root])
    source = np.repeat(np.arange(len(batch)), n_made)
    is_new = np.isin(source, local)
    # New values are appended to the column, and taken from there.
    of_texts = np.where(is_new, len(batch) + np.cumsum(is_new) - 1, source)
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if new.get(name):
            added = _as_column(values[name], new[name], documents.column(name), name, pending.file)
            columns.append(_take(pa.concat_arrays([column, added]), of_texts))
        else:
            columns.append(_take(column, source))
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _take(column: pa.Array, places: npt.NDArray[np.int64]) -> pa.Array:
    try:
        return column.take(pa.array(places))
    except pa.ArrowNotImplementedError:  # string views, for instance
        return pa.concat_arrays([column.slice(0, 0), *(column.slice(place, 1) for place in places.tolist())])


def _columns(schema: pa.Schema, fields: TextFields) -> list[str]:
    """The columns that a document is made of."""
    wanted = {steps_in(schema, path)[0] for path in fields.paths} | {fields.id_column}
    return [name for name in schema.names if name in wanted]


def _texts_at(record: dict[str, Any], paths: Sequence[Sequence[str | None]]) -> list[str]:
    return [container[key] for steps in paths for container, key in text_slots(record, steps)]


def _with_values(record: dict[str, Any], paths: Sequence[Sequence[str | None]], texts: Sequence[str]) -> dict[str, Any]:
    changed = copy.deepcopy(record)
    slots = [slot for steps in paths for slot in text_slots(changed, steps)]
    for (container, key), text in zip(slots, texts, strict=True):
        container[key] = text
    return changed


def _as_column(old: list[Any], new: list[Any], column: pa.Array, name: str, file: str) -> pa.Array:
    """Make an Arrow array of new values, if all that is nested in them survives being Python's."""
    try:
        if pa.types.is_nested(column.type) and not pa.array(old, column.type).equals(column):
            raise pa.ArrowNotImplementedError("its values are others in Python")
        return pa.array(new, column.type)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"changed texts cannot be written into column '{name}' of type {column.type} ({error})",
            where=file,
            do="Drop the documents instead of cutting them",
        ) from None


def rewrite_parquet(path: Path | Address, target: Path, pending: Pending, fields: TextFields) -> None:
    """Write a Parquet file anew, row group by row group."""
    with contextlib.ExitStack() as stack:
        with pending.reading():
            file = stack.enter_context(open_parquet(path, pending.size))
            check_columns(file.schema_arrow, fields, pending.file)
            options = _parquet_options(file)
        writer = stack.enter_context(pq.ParquetWriter(target, file.schema_arrow, **options))
        for group in range(file.metadata.num_row_groups):
            batches = file.iter_batches(_rows_per_batch(file.metadata, group), row_groups=[group], use_threads=False)
            edited = (_edited_batch(batch, pending, fields) for batch in pending.reading_each(batches))
            _write_groups(writer, edited, MAX_GROUP_BYTES)


def _rows_per_batch(metadata: pq.FileMetaData, group: int) -> int:
    info = metadata.row_group(group)
    rows: int = _BATCH_BYTES * info.num_rows // max(1, info.total_byte_size)
    return max(1, min(_MAX_BATCH_ROWS, rows))


def _parquet_options(file: pq.ParquetFile) -> dict[str, Any]:
    """How a file was written, as far as it tells."""
    options: dict[str, Any] = {
        "store_schema": b"ARROW:schema" in (file.metadata.metadata or {}),
        "use_deprecated_int96_timestamps": any(
            file.schema.column(index).physical_type == "INT96" for index in range(len(file.schema))
        ),
        # Files of old writers call the elements of a list `item`.
        "use_compliant_nested_type": not any(
            ".list.item" in file.schema.column(index).path for index in range(len(file.schema))
        ),
    }
    if file.metadata.num_row_groups:
        group = file.metadata.row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
        codecs = {column.path_in_schema: column.compression for column in columns}
        options["compression"] = {
            path: "NONE" if codec == "UNCOMPRESSED" else codec.removesuffix("_RAW") for path, codec in codecs.items()
        }
        options["compression_level"] = {path: _ZSTD_LEVEL for path, codec in codecs.items() if codec == "ZSTD"} or None
        with_dictionary = [column.path_in_schema for column in columns if column.has_dictionary_page]
        options["use_dictionary"] = with_dictionary or False
        options["write_page_index"] = any(column.has_offset_index for column in columns)
    return options


def _write_groups(writer: pq.ParquetWriter, batches: Iterable[pa.RecordBatch], max_bytes: int) -> None:
    """Write all batches as one row group, or as several of about `max_bytes`; nothing when they have no rows."""
    held: list[pa.RecordBatch] = []
    n_bytes = 0
    for batch in batches:
        held.append(batch)
        n_bytes += batch.nbytes
        if n_bytes >= max_bytes:
            _write_group(writer, held)
            held, n_bytes = [], 0
    _write_group(writer, held)


def _write_group(writer: pq.ParquetWriter, batches: list[pa.RecordBatch]) -> None:
    if n_rows := sum(map(len, batches)):
        # In chunks with dictionaries of their own a column would be written without.
        writer.write_table(pa.Table.from_batches(batches).unify_dictionaries(), row_group_size=n_rows)


def rewrite_dataset(part: DatasetPart, target: Path, pending: Pending, fields: TextFields) -> None:
    """Write what `datasets` streams as Parquet, with the columns of the first rows."""
    batches = pending.reading_each(tables_of_part(part))
    first = next(batches, None)
    schema = pa.schema([]) if first is None else first.schema

    def edited() -> Iterator[pa.RecordBatch]:
        for batch in chain([first], batches):
            check_columns(batch.schema, fields, pending.file)
            yield _edited_batch(batch.cast(schema), pending, fields)

    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        if first is not None:
            _write_groups(writer, edited(), _NEW_GROUP_BYTES)


def rewrite_arrow(path: Path | Address, target: Path, pending: Pending, fields: TextFields) -> None:
    """Write an Arrow file anew, with or without a footer as it is, record batch by record batch."""
    with contextlib.ExitStack() as stack:
        with pending.reading():
            file = stack.enter_context(open_file(path, pending.size))
            source = stack.enter_context(pa.PythonFile(file, mode="r"))
            has_footer = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
            file.seek(8 if has_footer else 0)  # a file is a stream between two marks
            options = pa.ipc.IpcWriteOptions(compression=_body_compression(source))
            file.seek(0)
            reader = pa.ipc.open_file(source) if has_footer else pa.ipc.open_stream(source)
            check_columns(reader.schema, fields, pending.file)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if has_footer else reader
        new = pa.ipc.new_file if has_footer else pa.ipc.new_stream
        writer = stack.enter_context(new(str(target), reader.schema, options=options))
        for batch in pending.reading_each(batches):
            edited = _edited_batch(batch, pending, fields)
            if len(edited) or not len(batch):
                writer.write_batch(edited)


def _body_compression(source: pa.NativeFile) -> str | None:
    """How the record batches of an Arrow stream are compressed: pyarrow reads them, but does not tell.

    A message is a flatbuffer (Arrow's format/Message.fbs): field 1 of its root says that field 2 is a record batch,
    whose field 3 names the codec.
    """
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type == "record batch":
            data = message.metadata.to_pybytes()
            root = _number(data, 0)
            header = _followed(data, _field(data, root, 2))
            compression = _followed(data, _field(data, header, 3))
            if not compression:
                return None
            codec = _field(data, compression, 0)
            return "zstd" if codec and data[codec] == 1 else "lz4"
    return None


def _number(data: bytes, place: int, n_bytes: int = 4) -> int:
    return int.from_bytes(data[place : place + n_bytes], "little")


def _followed(data: bytes, place: int) -> int:
    """Where the table is that the offset at `place` points to; 0 for none."""
    return place + _number(data, place) if place else 0


def _field(data: bytes, table: int, index: int) -> int:
    """Where a field of a flatbuffer table is; 0 when it has its default."""
    if not table:
        return 0
    names = table - int.from_bytes(data[table : table + 4], "little", signed=True)
    slot = 4 + 2 * index
    offset = _number(data, names + slot, 2) if slot < _number(data, names, 2) else 0
    return table + offset if offset else 0
