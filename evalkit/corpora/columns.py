"""Takes the text of documents out of Arrow columns, nested ones too, without a Python object per row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalkit.corpora.documents import BadRow, Batch, RowKind, ShardCounts
from evalkit.corpora.fields import EACH, SEPARATOR, FieldPath, TextFields, format_steps
from evalkit.errors import InputError


def check_columns(schema: pa.Schema, fields: TextFields, file: str) -> None:
    """Check that the columns of a file have text where `fields` says so.

    Raises
    ------
    InputError
        A column is missing or there twice, or is no text or no id.
    """
    for name in {steps_in(schema, path)[0] for path in fields.paths} | {fields.id_column}:
        if (n := schema.names.count(name)) > 1:
            raise InputError(f"{n} columns are called '{name}'", where=file, do="Rename or remove all but one of them")
    for path in fields.paths:
        kind = _value_type(_type_at(schema, path, file))
        if not _is_text(kind):
            raise InputError(
                f"column '{path.name}' has type {kind}, which is not text",
                where=file,
                do="Name the column that holds the text, or write this one as strings",
            )
    if fields.id_column in schema.names:
        kind = _value_type(schema.field(fields.id_column).type)
        if not (_is_text(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
            raise InputError(
                f"column '{fields.id_column}' has type {kind}, which cannot serve as a document id",
                where=file,
                do="Name another id column, or none",
            )


def steps_in(schema: pa.Schema, path: FieldPath) -> tuple[str | None, ...]:
    """Return the steps of a path in this schema: a column with the whole path for its name comes first."""
    return (path.name,) if path.name in schema.names else path.steps


def count_documents(
    batch: pa.RecordBatch, fields: TextFields, max_text_bytes: int, counts: ShardCounts, file: str
) -> Batch:
    """Return the documents of a record batch, and count its rows, which are numbered from `counts.n_lines`.

    Parameters
    ----------
    batch
        Its columns have passed `check_columns`.
    fields
        What the text of a document is.
    max_text_bytes
        A longer text makes a bad row.
    counts
        What became of the rows so far.
    file
        The shard's name, for the bad rows.
    """
    texts = _texts(batch, fields, counts.n_texts_by_field)
    if fields.id_column in batch.schema.names:
        doc_ids = _as_text(batch.column(fields.id_column), pa.string())
    else:
        doc_ids = pa.nulls(len(batch), pa.string())
    is_plain = len(fields.paths) == 1 and fields.paths[0].is_plain
    no_text = "the text is null" if is_plain else f"no text in {fields.names}"
    readable, bad = _without_bad_rows(texts, doc_ids, counts.n_lines, no_text, file)
    counts.n_lines += len(batch)
    return counts.take(readable, bad, file, max_text_bytes)


def _type_at(schema: pa.Schema, path: FieldPath, file: str) -> pa.DataType:
    """The type of the values at the end of a path."""
    steps = steps_in(schema, path)
    if steps[0] not in schema.names:
        raise InputError(
            f"there is no text column '{steps[0]}' (the columns are: {', '.join(schema.names) or 'none at all'})",
            where=file,
            do="Name the column that holds the text",
        )
    kind = schema.field(steps[0]).type
    for depth, step in enumerate(steps[1:], start=1):
        here = format_steps(steps[:depth])
        if step is EACH:
            if not _is_list(kind):
                raise InputError(
                    f"column '{here}' has type {kind}, which is no list",
                    where=file,
                    do=f"Leave out the [] in '{path.name}'",
                )
            kind = kind.value_type
        elif _is_list(kind):
            raise InputError(
                f"column '{here}' is a list", where=file, do=f"Write '{here}[]' in '{path.name}' for all its elements"
            )
        elif not pa.types.is_struct(kind) or kind.get_field_index(step) < 0:
            names = f"its fields are: {', '.join(one.name for one in kind)}" if pa.types.is_struct(kind) else str(kind)
            raise InputError(f"column '{here}' has no field '{step}' ({names})", where=file, do="Name one that it has")
        else:
            kind = kind.field(step).type
    return kind


def _texts(batch: pa.RecordBatch, fields: TextFields, found: Counter[str]) -> pa.LargeStringArray:
    """The text of each row, null where it has none; counts in `found` what each path but a plain one gave."""
    if len(fields.paths) == 1 and len(steps_in(batch.schema, fields.paths[0])) == 1:
        return _as_text(batch.column(fields.paths[0].name), pa.large_string())
    rows, values = [], []
    for path in fields.paths:
        path_rows, path_values = _texts_at(batch, steps_in(batch.schema, path))
        found[path.name] += len(path_values)
        rows.append(path_rows)
        values.append(path_values)
    return _join_by_row(np.concatenate(rows), pa.concat_arrays(values), len(batch))


def _texts_at(batch: pa.RecordBatch, steps: tuple[str | None, ...]) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """The texts at the end of a path that are not null, and the row of each, rising."""
    values = batch.column(steps[0])
    rows = np.arange(len(batch), dtype=np.int64)
    for step in steps[1:]:
        if step is EACH:
            rows = rows[pc.list_parent_indices(values).to_numpy()]
            values = pc.list_flatten(values)
        else:
            values = pc.struct_field(values, step)  # null, too, where the whole struct is
    texts = _as_text(values, pa.large_string())
    return rows[texts.is_valid().to_numpy(zero_copy_only=False)], texts.drop_null()


def _join_by_row(rows: npt.NDArray[np.int64], values: pa.Array, n_rows: int) -> pa.LargeStringArray:
    """Join the values of each row by `SEPARATOR`, in their order; null where a row has none."""
    order = np.argsort(rows, kind="stable")
    sizes = np.bincount(rows, minlength=n_rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, values.take(pa.array(order)))
    joined = pc.binary_join(lists, pa.scalar(SEPARATOR, pa.large_string()))
    return pc.if_else(pa.array(sizes > 0), joined, pa.scalar(None, pa.large_string()))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _as_text(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return (column.dictionary_decode() if pa.types.is_dictionary(column.type) else column).cast(kind)


def _without_bad_rows(
    texts: pa.Array, doc_ids: pa.Array, first_row: int, no_text: str, file: str
) -> tuple[Batch, list[BadRow]]:
    """Number the rows, and set apart those without a readable text."""
    reasons: dict[int, tuple[str, RowKind]] = {
        int(row): (no_text, "no_text") for row in np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))
    }
    # Neither Parquet nor Arrow checks that its strings are UTF-8.
    for name, column in (("id", doc_ids), ("text", texts)):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            for row, byte in _invalid_utf8(column):
                reasons[row] = (f"the {name} is not valid UTF-8 (byte {byte})", "unreadable")
    batch = Batch(np.arange(first_row, first_row + len(texts), dtype=np.int64), doc_ids, texts)
    if not reasons:
        return batch, []
    good = np.ones(len(texts), dtype=bool)
    good[list(reasons)] = False
    return batch.filter(pa.array(good)), [BadRow(file, first_row + row, *reasons[row]) for row in sorted(reasons)]


def _invalid_utf8(column: pa.Array) -> Iterator[tuple[int, int]]:
    """The rows whose bytes are not UTF-8, and the first byte that is not."""
    for row, value in enumerate(column.cast(pa.large_binary())):
        try:
            (value.as_py() or b"").decode()
        except UnicodeDecodeError as error:
            yield row, error.start
