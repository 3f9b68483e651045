"""Reads JSON lines: one object a line, with the text in one of its fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import orjson
import pyarrow as pa

from evalkit.corpora.documents import Batch, ShardCounts
from evalkit.corpora.streams import MAX_LINE_BYTES, read_chunks, split_lines

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_JSON_NAMES: Final = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "an array"}


def read_jsonl(
    path: Path,
    compression: Literal["", "gz", "zst"],
    text_column: str,
    id_column: str | None,
    counts: ShardCounts,
    on_progress: Callable[[int], None],
) -> Iterator[Batch]:
    """Yield the documents of a file block by block; count every row in `counts`.

    Raises
    ------
    OSError, EOFError, zlib.error, zstandard.ZstdError
        The file cannot be read to its end; all complete lines before have been counted.
    """
    row = 0
    for lines in split_lines(read_chunks(path, compression, on_progress)):
        if row == 0 and lines[0] is not None:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        batch = _parse(lines, row, text_column, id_column, counts, str(path))
        row += len(lines)
        yield counts.add_readable(batch)


def _parse(
    lines: list[bytes | None], first_row: int, text_column: str, id_column: str | None, counts: ShardCounts, file: str
) -> Batch:
    """Parse a block of lines; the bad ones go to `counts`."""
    rows: list[int] = []
    doc_ids: list[str | None] = []
    texts: list[str] = []
    for row, line in enumerate(lines, first_row):
        try:
            record = orjson.loads(line)  # type: ignore[arg-type]  # None, a line too long, is refused like bad JSON
            text = record[text_column]
            doc_id = record.get(id_column)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            if line is None or line.strip():
                counts.add_bad(file, row, _why_bad(line, text_column))
            continue
        if type(text) is not str:
            counts.add_bad(file, row, _why_no_text(text, text_column))
            continue
        if doc_id is not None and type(doc_id) is not str:
            doc_id = orjson.dumps(doc_id).decode()
        rows.append(row)
        doc_ids.append(doc_id)
        texts.append(text)
    return Batch(np.array(rows, dtype=np.int64), pa.array(doc_ids, pa.string()), pa.array(texts, pa.large_string()))


def _why_bad(line: bytes | None, text_column: str) -> str:
    """Find out why a line gave no record with the text field; it is rare, so it may be slow."""
    if line is None:
        return f"the line is longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        record = orjson.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 (byte {error.start} of the line)"
    except orjson.JSONDecodeError as error:
        return (
            f"not valid JSON ({error.msg}, at character {error.pos} of the line: {_around(line.decode(), error.pos)})"
        )
    if not isinstance(record, dict):
        return f"not a JSON object but {_name_of(record)}"
    return f"no field '{text_column}' ({_fields_of(record)})"


def _why_no_text(value: Any, text_column: str) -> str:
    if value is None:
        return "the text is null"
    return f"field '{text_column}' is {_name_of(value)}, not a string"


def _name_of(value: Any) -> str:
    return "null" if value is None else _JSON_NAMES.get(type(value), "an object")


def _fields_of(record: dict[str, Any]) -> str:
    """Name the fields, at most ten of them and not in full when they are monstrous."""
    if not record:
        return "the object is empty"
    names = [name if len(name) <= 40 else f"{name[:40]}…" for name in list(record)[:10]]
    return f"it has: {', '.join(names)}{', …' if len(record) > len(names) else ''}"


def _around(line: str, position: int) -> str:
    """Show the few characters in which the parser gave up."""
    start, stop = max(0, position - 15), position + 15
    return f"{'…' if start else ''}{line[start:stop].strip()}{'…' if stop < len(line) else ''}"
