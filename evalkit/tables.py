"""The six tables that join the layers of evalkit: their schemas, and how they are written, read and validated.

Every arrow between two layers is one Parquet file with a schema below. The schemas are the public contract:
a table written by pandas, Polars or DuckDB with these columns is as good as one written by evalkit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalkit.errors import TableError
from evalkit.files import atomic_path

VERSION: Final = (1, 3)
"""Major and minor version of all schemas; a reader refuses a newer major version."""

_NAME_KEY: Final = b"evalkit.table"
_VERSION_KEY: Final = b"evalkit.version"


@dataclass(frozen=True)
class TableSchema:
    """One table: its columns, the columns that identify a row, and the values allowed in closed columns."""

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]]


def _schema(required: Sequence[tuple[str, pa.DataType]], optional: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """A schema whose required columns refuse nulls; in an optional column null means "does not apply"."""
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in required] + [pa.field(*column) for column in optional]
    )


_text, _long_text, _int, _float = pa.string(), pa.large_string(), pa.int64(), pa.float64()

SAMPLES: Final = TableSchema(
    "samples",
    _schema(
        required=[
            ("run_id", _text),
            ("task", _text),
            ("doc_id", _int),
            ("repeat", _int),
            ("filter", _text),
            ("metric", _text),
            ("model", _text),
            ("doc_hash", _text),
        ],
        optional=[
            ("checkpoint", _text),
            ("step", _int),
            ("seed", _int),
            ("prompt_hash", _text),
            ("cluster", _text),
            ("score", _float),
            ("response", _long_text),
            ("target", _long_text),
            ("finish_reason", _text),
            ("prompt_tokens", _int),
            ("output_tokens", _int),
            ("latency", _float),
            ("error", _text),
        ],
    ),
    key=("run_id", "task", "doc_id", "repeat", "filter", "metric"),
    choices={},
)

ITEMS: Final = TableSchema(
    "items",
    _schema(
        required=[
            ("benchmark", _text),
            ("doc_hash", _text),
            ("field", _text),
            ("rule", _text),
            ("contamination", _float),
            ("label", _text),
            ("n_documents", _int),
        ],
        optional=[("best_document", _text), ("longest_match", _int)],
    ),
    key=("benchmark", "doc_hash", "field", "rule"),
    choices={},
)

MATCHES: Final = TableSchema(
    "matches",
    _schema(
        required=[
            ("corpus", _text),
            ("file", _text),
            ("row", _int),
            ("benchmark", _text),
            ("doc_hash", _text),
            ("field", _text),
            ("start", _int),
            ("end", _int),
            ("n_tokens", _int),
            ("coverage", _float),
        ],
        optional=[("doc_id", _text), ("n_edits", _int)],
    ),
    # Several runs of one field can start at the same place of one document when the field repeats itself.
    key=(),
    choices={},
)

DOCUMENTS: Final = TableSchema(
    "documents",
    _schema(
        required=[("corpus", _text), ("file", _text), ("row", _int), ("action", _text), ("reasons", pa.list_(_text))],
        optional=[("doc_id", _text)],
    ),
    key=("corpus", "file", "row"),
    choices={"action": ("drop", "cut", "keep")},
)

CLUSTERS: Final = TableSchema(
    "clusters",
    _schema(
        required=[("corpus", _text), ("file", _text), ("row", _int), ("cluster_id", _int), ("keep", pa.bool_())],
        optional=[("doc_id", _text), ("similarity", _float)],
    ),
    key=("corpus", "file", "row"),
    choices={},
)

VERDICTS: Final = TableSchema(
    "verdicts",
    _schema(
        required=[
            ("judge", _text),
            ("pair_id", _text),
            ("repeat", _int),
            ("model_a", _text),
            ("model_b", _text),
            ("winner", _text),
        ],
        optional=[
            # Null where nobody wrote down which answer was shown first; "none" where none was, as each was rated apart.
            ("order", _text),
            ("task", _text),
            ("doc_hash", _text),
            ("length_a", _int),
            ("length_b", _int),
            ("raw", _long_text),
            # The judge's probability that B is better, where it tells one.
            ("preference", _float),
            # What a human says: a, b or tie.
            ("label", _text),
            ("identical", pa.bool_()),
            *((f"{style}_{side}", _int) for style in ("lists", "headings", "bold") for side in "ab"),
        ],
    ),
    key=("judge", "pair_id", "order", "repeat"),
    choices={"winner": ("a", "b", "tie", "error"), "order": ("ab", "ba", "none"), "label": ("a", "b", "tie")},
)

TABLES: Final[Mapping[str, TableSchema]] = {
    table.name: table for table in (SAMPLES, ITEMS, MATCHES, DOCUMENTS, CLUSTERS, VERDICTS)
}


def from_columns(table: TableSchema, columns: Mapping[str, Any]) -> pa.Table:
    """Build a valid table from a mapping of column name to values; optional columns left out are null."""
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"columns of unequal length: {sorted(lengths)}")
    n = lengths.pop() if lengths else 0
    arrays = [
        _array(columns[field.name], field.type) if field.name in columns else pa.nulls(n, type=field.type)
        for field in table.schema
    ]
    return validate(pa.table(arrays, schema=table.schema), table)


def _array(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    # Chunk by chunk: all values of a column of strings can be more than one array holds.
    return values.cast(kind) if isinstance(values, pa.ChunkedArray) else pa.array(values, type=kind, from_pandas=True)


def from_rows(table: TableSchema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Build a valid table from row mappings; keys left out are null."""
    return from_columns(table, {field.name: [row.get(field.name) for row in rows] for field in table.schema})


def validate(data: pa.Table, table: TableSchema, *, source: str = "table", keep_dictionaries: bool = False) -> pa.Table:
    """Return `data` with exactly the columns and types of `table`, in order, or say what is wrong with it.

    Columns beyond the schema are left out. A missing optional column becomes null. Types that convert without
    loss are converted.

    Parameters
    ----------
    data
        Any Arrow table.
    table
        The schema to hold it against.
    source
        The file that the data come from, for the messages.
    keep_dictionaries
        Let columns of text stay dictionary-encoded.

    Raises
    ------
    TableError
        A required column is missing, a column cannot take its type, a required value is null, a closed column
        has another value, or two rows have the same key. The message names the file, the column and the row.
    """
    columns = []
    for field in table.schema:
        if field.name in data.column_names:
            column = data.column(field.name)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else None
            is_kept = keep_dictionaries and kind == field.type and field.name not in table.choices
            columns.append(_cast(column, field.with_type(column.type) if is_kept else field, table, source))
        elif field.nullable:
            columns.append(pa.nulls(data.num_rows, type=field.type))
        else:
            raise TableError(
                f"the {table.name} table has no column '{field.name}' (it has: {', '.join(data.column_names)})",
                where=source,
                do=f"Add the column, of type {field.type}; docs/tables.md lists all columns",
            )
    fields = [field.with_type(column.type) for field, column in zip(table.schema, columns, strict=True)]
    checked = pa.table(columns, schema=pa.schema(fields))
    for name, allowed in table.choices.items():
        column = checked.column(name)
        # Null was refused above wherever it may not be.
        bad = pc.and_(pc.is_valid(column), pc.invert(pc.is_in(column, value_set=pa.array(allowed))))
        row = pc.index(bad, True).as_py()
        if row >= 0:
            value = checked.column(name)[row].as_py()
            raise TableError(
                f"column '{name}' has the value '{value}' in row {row}",
                where=source,
                do=f"Use one of: {', '.join(allowed)}",
            )
    _check_unique(checked, table, source)
    return checked


def _cast(column: pa.ChunkedArray, field: pa.Field, table: TableSchema, source: str) -> pa.ChunkedArray:
    """Give `column` the type of `field` and refuse nulls where the schema does."""
    try:
        cast = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TableError(
            f"column '{field.name}' of the {table.name} table has type {column.type}, not {field.type} ({error})",
            where=source,
            do="Convert the column",
        ) from None
    if not field.nullable and cast.null_count:
        row = pc.index(pc.is_null(cast), True).as_py()
        raise TableError(
            f"column '{field.name}' of the {table.name} table is null in row {row}",
            where=source,
            do="Fill it: this column is part of what identifies or defines a row",
        )
    return cast


def _check_unique(data: pa.Table, table: TableSchema, source: str) -> None:
    """Refuse two rows with the same key, and name one such key."""
    if not table.key or data.num_rows < 2:
        return
    counts = data.select(table.key).group_by(list(table.key)).aggregate([([], "count_all")])
    row = pc.index(pc.greater(counts.column("count_all"), 1), True).as_py()
    if row >= 0:
        key = ", ".join(f"{name}={counts.column(name)[row].as_py()}" for name in table.key)
        raise TableError(
            f"{counts.column('count_all')[row].as_py()} rows of the {table.name} table have the same key ({key})",
            where=source,
            do="A key names one row: remove the copies, or give the runs different run_ids",
        )


def write(path: Path, data: pa.Table, table: TableSchema) -> None:
    """Validate `data` and write it as Parquet, whole or not at all.

    Columns of text may be dictionary-encoded, which is written faster; in the file they are columns of text.
    """
    checked = validate(data, table, source=str(path), keep_dictionaries=True)
    with writing(path, table, checked.schema) as write_some:
        write_some(checked)


@contextlib.contextmanager
def writing(path: Path, table: TableSchema, schema: pa.Schema | None = None) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends valid tables to a Parquet file, which appears whole, with one row group for each.

    That no two rows of different ones have the same key is for the caller to see to.
    """
    metadata = {_NAME_KEY: table.name, _VERSION_KEY: ".".join(map(str, VERSION))}
    with (
        atomic_path(path) as temporary,
        # Without Arrow's own schema, by which a reader would make dictionaries of them again.
        pq.ParquetWriter(temporary, schema or table.schema, compression="zstd", store_schema=False) as writer,
    ):
        yield writer.write_table
        writer.add_key_value_metadata(metadata)


def read(path: Path, table: TableSchema) -> pa.Table:
    """Read and validate one table.

    Raises
    ------
    TableError
        The file is missing, is not Parquet, holds another table, was written by a newer major version, or does
        not have the schema.
    """
    try:
        schema = pq.read_schema(path)
        stored = schema.metadata or {}
        _check_origin(stored, table, str(path))
        data = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise TableError(
            "there is no such file", where=str(path), do=f"It should hold the {table.name} table"
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(
            f"this is not a readable Parquet file ({_first_line(error)})", where=str(path), do="Write it again"
        ) from None
    return validate(data, table, source=str(path))


def _check_origin(stored: Mapping[bytes, bytes], table: TableSchema, source: str) -> None:
    """Refuse another evalkit table and a newer major version; a table without our marks is judged by its columns."""
    name = stored.get(_NAME_KEY, table.name.encode()).decode()
    if name != table.name:
        raise TableError(
            f"this file holds the {name} table, not the {table.name} table", where=source, do="Pass the other file"
        )
    version = stored.get(_VERSION_KEY, b"0").decode()
    if int(version.split(".")[0]) > VERSION[0]:
        raise TableError(
            f"the table was written with schema version {version}, and this evalkit reads up to {VERSION[0]}.x",
            where=source,
            do="Upgrade evalkit-harness",
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
