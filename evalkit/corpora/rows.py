"""Reads given rows of a shard: the documents that a match or a cluster names by file and row."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from evalkit.addresses import is_address
from evalkit.corpora import parquet, streams
from evalkit.corpora.documents import ShardCounts
from evalkit.corpora.fields import TextFields, text_fields
from evalkit.corpora.hub import PREFIX, DatasetPart, is_dataset
from evalkit.corpora.jsonl import read_jsonl
from evalkit.corpora.parquet import open_parquet
from evalkit.corpora.readers import read_shard, unreadable
from evalkit.corpora.remote import Address
from evalkit.corpora.shards import Shard, ShardPath, format_of
from evalkit.corpora.streams import Compression, read_chunks, split_lines
from evalkit.errors import InputError

# What was a document when the corpus was read is one now, however long it is.
_ANY_LENGTH: Final = sys.maxsize
_BATCH_BYTES: Final = 1 << 20


class Document(NamedTuple):
    """A document: its row, its own id (None when it has none), and its text."""

    row: int
    doc_id: str | None
    text: str


class Missing(NamedTuple):
    """A row that holds no document, and why not, as a phrase."""

    row: int
    reason: str


def read_rows(
    shard: Shard,
    rows: Iterable[int],
    *,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
) -> Iterator[Document | Missing]:
    """Read some rows of a file in one pass, which ends with the last of them.

    Of JSON lines, only the lines asked for are parsed; of Parquet files, only the row groups with such rows are read.
    Arrow files and parts of datasets are read up to the last row.

    Parameters
    ----------
    shard
        A whole file.
    rows
        Numbers of rows in it, from 0, as in the tables of an audit.
    text_column, id_column
        As `read_shard` takes them.

    Yields
    ------
    Document or Missing
        One for each different row. Documents come in the order of the file.

    Raises
    ------
    InputError
        The file cannot be read as far as the last of the rows, or has no such column.
    SpecError
        A text column is malformed.
    """
    if shard.is_part:
        raise ValueError("the rows of a part are not those of its file")
    wanted = sorted(set(rows))
    if wanted and wanted[0] < 0:
        raise ValueError(f"rows are numbered from 0, there is no row {wanted[0]}")
    fields, path, shard_format = text_fields(text_column, id_column), shard.path, format_of(shard.path)
    if not wanted:
        return iter(())
    if isinstance(path, DatasetPart) or shard_format is None or shard_format.kind == "arrow":
        return _read_up_to(shard, wanted, fields)
    if shard_format.kind == "parquet":
        return _read_row_groups(shard, path, wanted, fields)
    return _read_lines(shard, path, shard_format.compression, wanted, fields)


def _read_up_to(shard: Shard, wanted: Sequence[int], fields: TextFields) -> Iterator[Document | Missing]:
    """Read all rows up to the last one wanted."""
    columns = [path.name for path in fields.paths]
    left = set(wanted)
    with read_shard(
        shard,
        text_column=columns,
        id_column=fields.id_column,
        batch_bytes=_BATCH_BYTES,
        max_text_bytes=_ANY_LENGTH,
    ) as reader:
        for batch in reader:
            for place, row in enumerate(batch.rows.tolist()):
                if row in left:
                    left.remove(row)
                    yield Document(row, batch.doc_ids[place].as_py(), batch.texts[place].as_py())
            if batch.rows[-1] >= wanted[-1]:
                break
        counts = reader.counts
    why = {bad.row: bad.reason for bad in (*counts.bad_rows, *counts.empty_rows)}
    for row in sorted(left):
        yield Missing(row, why.get(row, "it holds no document") if row < counts.n_lines else _past_end(counts.n_lines))


def _read_row_groups(
    shard: Shard, path: Path | Address, wanted: Sequence[int], fields: TextFields
) -> Iterator[Document | Missing]:
    """Read the row groups of a Parquet file that hold rows wanted."""
    try:
        with open_parquet(path, shard.size) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    except (*streams.READ_ERRORS, *parquet.READ_ERRORS) as error:
        raise unreadable(shard, error, 0) from None
    ends = [0, *itertools.accumulate(sizes)]
    for group, (start, end) in enumerate(itertools.pairwise(ends)):
        if mine := [row for row in wanted if start <= row < end]:
            yield from _read_up_to(replace(shard, start=group, stop=group + 1), mine, fields)
    yield from (Missing(row, _past_end(ends[-1])) for row in wanted if row >= ends[-1])


def _read_lines(
    shard: Shard, path: Path | Address, compression: Compression, wanted: Sequence[int], fields: TextFields
) -> Iterator[Document | Missing]:
    """Count the lines of a file, and parse those wanted."""
    first, left = 0, list(reversed(wanted))
    try:
        for lines in split_lines(read_chunks(path, compression, lambda n_bytes: None, size=shard.size)):
            while left and left[-1] < first + len(lines):
                row = left.pop()
                yield _parse_line(lines[row - first], row, str(path), fields)
            if not left:
                return
            first += len(lines)
    except streams.READ_ERRORS as error:
        raise unreadable(shard, error, first) from None
    yield from (Missing(row, _past_end(first)) for row in reversed(left))


def _parse_line(line: bytes | None, row: int, file: str, fields: TextFields) -> Document | Missing:
    if line is None:
        return Missing(row, f"the line is longer than {streams.MAX_LINE_BYTES >> 20} MiB")
    counts = ShardCounts(n_lines=row)
    for batch in read_jsonl([line + b"\n"], file, fields, _ANY_LENGTH, counts):
        if len(batch):
            return Document(row, batch.doc_ids[0].as_py(), batch.texts[0].as_py())
    why = [bad.reason for bad in (*counts.bad_rows, *counts.empty_rows)]
    return Missing(row, why[0] if why else "the line is blank")


def _past_end(n_rows: int) -> str:
    return f"the file has only {n_rows:,} rows"


def shard_named(file: str, size: int, corpus: str = "") -> Shard:
    """Return the whole file that tables and records call `file`, which is `str(shard.path)`.

    Parameters
    ----------
    file
        A path, an address, or the name of a part of a dataset.
    size, corpus
        As `Shard` has them.

    Raises
    ------
    InputError
        No shard has such a name.
    """
    return Shard(corpus, _path_named(file), size)


def _path_named(file: str) -> ShardPath:
    if isinstance(file, str):
        if is_dataset(file) and (part := re.fullmatch(rf"{PREFIX}([^:]+):([^:]*):(.+)/\3-(\d+)-of-(\d+)", file)):
            name, config, split, index, n_parts = part.groups()
            return DatasetPart(name, config or None, split, int(index), int(n_parts))
        if is_address(file):
            return Address(file)
        if Path(file).is_absolute() and os.path.normpath(file) == file and "\0" not in file:
            return Path(file)
    raise InputError("this names no file of a corpus", where=str(file), do="Restore the record, or audit again")
