"""Reads JSON lines: one object a line, with the text in one or several of its fields.

Nearly all lines are read by a compiled loop (`kernels`). Those that it leaves, bad ones among them, and small files are
parsed by orjson; both ways give the same documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from evalkit.corpora.documents import BadRow, Batch, RowKind, ShardCounts
from evalkit.corpora.fields import EACH, SEPARATOR, NotTextError, TextFields, name_of
from evalkit.corpora.streams import BLOCK_BYTES, MAX_LINE_BYTES, split_blocks

_Int64 = npt.NDArray[np.int64]
_Steps = tuple[str | None, ...]

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_FEW_BYTES: Final = 64 << 10
"""A block of less is not worth loading the compiled loop for, which takes about a second once."""

_TOO_LONG: Final[tuple[str, RowKind]] = (f"the line is longer than {MAX_LINE_BYTES >> 20} MiB", "too_large")


def read_jsonl(
    chunks: Iterable[bytes],
    file: str,
    fields: TextFields,
    max_text_bytes: int,
    counts: ShardCounts,
    *,
    is_beginning: bool = True,
) -> Iterator[Batch]:
    """Yield the documents of a file, or of a part of it, block by block; count every row in `counts`.

    Parameters
    ----------
    chunks
        The bytes, which begin at the beginning of a line.
    file
        The shard's name, for the bad rows.
    fields
        What the text of a document is.
    max_text_bytes
        A longer text makes a bad row.
    counts
        Rows are numbered from its `n_lines`.
    is_beginning
        The bytes are the file's first, before which a byte order mark may stand.

    Raises
    ------
    OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError
        The bytes cannot be read to their end; all complete lines before have been counted.
    """
    # Memory that is used again and again: the system takes longer to give out new memory than the reading takes.
    room = np.empty((2, 2 * BLOCK_BYTES), dtype=np.uint8)
    for block in split_blocks(chunks):
        if block is None:
            batch, bad, n_lines = _batch([], [], []), [BadRow(file, counts.n_lines, *_TOO_LONG)], 1
        else:
            has_mark = is_beginning and counts.n_lines == 0 and block.startswith(_BYTE_ORDER_MARK)
            start = len(_BYTE_ORDER_MARK) if has_mark else 0
            batch, bad, n_lines = _read_block(block, start, room, file, fields, counts)
        counts.n_lines += n_lines
        yield counts.take(batch, bad, file, max_text_bytes)


@lru_cache(maxsize=8)
def _tree(fields: TextFields) -> tuple[npt.NDArray[Any], ...]:
    """Lay out the wanted fields as the tree that `kernels.read_lines` describes.

    Where one field is wanted as two different things, the line is left to orjson.
    """
    from evalkit.corpora import kernels

    leaves: list[tuple[_Steps, int, int]] = [
        *((path.steps, kernels.TEXT, column) for column, path in enumerate(fields.paths)),
        # A field of a path's whole name comes before the path.
        *(((path.name,), kernels.REFUSED, 0) for path in fields.paths if not path.is_plain),
    ]
    if fields.id_column is not None:
        leaves.append(((fields.id_column,), kernels.ID, len(fields.paths)))
    columns = {steps: column for steps, _, column in leaves}
    kinds: dict[_Steps, int] = {}
    for steps, leaf, _ in leaves:
        inner = [kernels.ARRAY if step is EACH else kernels.OBJECT for step in steps]
        for n, kind in enumerate([*inner, leaf]):
            kinds[steps[:n]] = kind if kinds.get(steps[:n], kind) == kind else kernels.REFUSED
    children: dict[_Steps, list[_Steps]] = {node: [] for node in kinds}
    for node in kinds:
        if node:
            children[node[:-1]].append(node)
    nodes: list[_Steps] = [()]
    for node in nodes:
        nodes += children[node]
        if len(children[node]) > kernels.MAX_CHILDREN:
            kinds[node] = kernels.REFUSED
    # Half of a surrogate pair, as the command line can have it in a name, is in no line of valid UTF-8.
    names = [(node[-1] or "").encode("utf-8", "surrogatepass") if node else b"" for node in nodes]
    return (
        np.array([kinds[node] for node in nodes]),
        np.array([*accumulate((len(children[node]) for node in nodes), initial=1)]),
        np.frombuffer(b"".join(names), dtype=np.uint8),
        np.array([*accumulate(map(len, names), initial=0)]),
        np.array([columns.get(node, 0) for node in nodes]),
    )


def _read_block(
    block: bytes, start: int, room: npt.NDArray[np.uint8], file: str, fields: TextFields, counts: ShardCounts
) -> tuple[Batch, list[BadRow], int]:
    """Read the lines of `block[start:]`; return the documents, the bad rows and the number of lines."""
    data = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.append(start, ends[:-1] + 1)
    if len(data) < _FEW_BYTES:
        batch, others = None, np.arange(len(starts))
    else:
        batch, others = _read_compiled(data, starts, ends, room, fields, counts)
    bad: list[BadRow] = []
    if batch is None or len(others):
        rows = (counts.n_lines + others).tolist()
        lines = [block[begin:end] for begin, end in zip(starts[others].tolist(), ends[others].tolist(), strict=True)]
        parse = _parse_plain if _is_plain(fields) else _parse_nested
        batch = _merge(batch, parse(rows, lines, fields, bad, file, counts.n_texts_by_field))
    return batch, bad, len(starts)


def _is_plain(fields: TextFields) -> bool:
    return len(fields.paths) == 1 and fields.paths[0].is_plain


def _read_compiled(
    data: npt.NDArray[np.uint8],
    starts: _Int64,
    ends: _Int64,
    room: npt.NDArray[np.uint8],
    fields: TextFields,
    counts: ShardCounts,
) -> tuple[Batch, _Int64]:
    """Read lines by the compiled loop; return the documents, and the numbers of the lines that it leaves."""
    from evalkit.corpora import kernels

    texts, ids = room if len(data) <= room.shape[1] else np.empty((2, len(data)), dtype=np.uint8)
    lines, text_offsets, id_offsets, has_id, others, n_texts = kernels.read_lines(
        data, starts, ends, _tree(fields), len(fields.paths), texts, ids
    )
    if len(lines) and not _is_plain(fields):
        names = (path.name for path in fields.paths)
        counts.n_texts_by_field.update(dict(zip(names, n_texts.tolist(), strict=True)))
    validity = np.packbits(has_id, bitorder="little")
    batch = Batch(
        counts.n_lines + lines,
        _strings(pa.string(), id_offsets, ids, validity),
        _strings(pa.large_string(), text_offsets, texts, None),
    )
    return batch, others


def _strings(
    kind: pa.DataType,
    offsets: npt.NDArray[Any],
    data: npt.NDArray[np.uint8],
    validity: npt.NDArray[np.uint8] | None,
) -> pa.Array:
    """An Arrow array of the strings that lie in `data`, of which it keeps a copy."""
    buffers = [validity, offsets, data[: offsets[-1]].copy()]
    return pa.Array.from_buffers(kind, len(offsets) - 1, [one if one is None else pa.py_buffer(one) for one in buffers])


def _merge(first: Batch | None, second: Batch) -> Batch:
    """Put the documents of one block, which were read in two ways, in the order of their rows."""
    if first is None or not len(first):
        return second
    if not len(second):
        return first
    rows = np.concatenate([first.rows, second.rows])
    order = np.argsort(rows)
    return Batch(
        rows[order],
        pa.concat_arrays([first.doc_ids, second.doc_ids]).take(pa.array(order)),
        pa.concat_arrays([first.texts, second.texts]).take(pa.array(order)),
    )


def _parse_plain(
    rows: list[int], lines: list[bytes], fields: TextFields, bad: list[BadRow], file: str, _: Counter[str]
) -> Batch:
    """Parse lines, the `rows` of the file, whose text is in one field; the bad ones go to `bad`."""
    text_column, id_column = fields.paths[0].name, fields.id_column
    readable: list[int] = []
    doc_ids: list[str | None] = []
    texts: list[str] = []
    for row, line in zip(rows, lines, strict=True):
        try:
            record = orjson.loads(line)
            text = record[text_column]
            doc_id = record.get(id_column)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            if line.strip():
                bad.append(BadRow(file, row, *_why_bad(line, fields)))
            continue
        if type(text) is not str:
            bad.append(BadRow(file, row, *_why_no_text(text, text_column)))
            continue
        if doc_id is not None and type(doc_id) is not str:
            doc_id = orjson.dumps(doc_id).decode()
        readable.append(row)
        doc_ids.append(doc_id)
        texts.append(text)
    return _batch(readable, doc_ids, texts)


def _parse_nested(
    rows: list[int], lines: list[bytes], fields: TextFields, bad: list[BadRow], file: str, found: Counter[str]
) -> Batch:
    """Parse lines, the `rows` of the file, whose text is put together from several places, or lies deeper."""
    readable: list[int] = []
    doc_ids: list[str | None] = []
    documents: list[str] = []
    for row, line in zip(rows, lines, strict=True):
        try:
            record = orjson.loads(line)
            texts = fields.texts_in(record, found) if type(record) is dict else []
        except orjson.JSONDecodeError:
            if line.strip():
                bad.append(BadRow(file, row, *_why_bad(line, fields)))
            continue
        except NotTextError as error:
            bad.append(BadRow(file, row, str(error), "not_text"))
            continue
        if not texts:
            bad.append(BadRow(file, row, *_why_bad(line, fields)))
            continue
        doc_id = record.get(fields.id_column)
        if doc_id is not None and type(doc_id) is not str:
            doc_id = orjson.dumps(doc_id).decode()
        readable.append(row)
        doc_ids.append(doc_id)
        documents.append(SEPARATOR.join(texts))
    return _batch(readable, doc_ids, documents)


def _batch(rows: list[int], doc_ids: list[str | None], texts: list[str]) -> Batch:
    return Batch(np.array(rows, dtype=np.int64), pa.array(doc_ids, pa.string()), pa.array(texts, pa.large_string()))


def _why_bad(line: bytes, fields: TextFields) -> tuple[str, RowKind]:
    """Find out why a line gave no record with a text; it is rare, so it may be slow."""
    try:
        record = orjson.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 (byte {error.start} of the line)", "unreadable"
    except orjson.JSONDecodeError as error:
        place = f"at character {error.pos} of the line: {_around(line.decode(), error.pos)}"
        return f"not valid JSON ({error.msg}, {place})", "unreadable"
    if not isinstance(record, dict):
        return f"not a JSON object but {name_of(record)}", "unreadable"
    if len(fields.paths) == 1 and fields.paths[0].is_plain:
        return f"no field {fields.names} ({_fields_of(record)})", "no_text"
    return f"no text in {fields.names} ({_fields_of(record)})", "no_text"


def _why_no_text(value: Any, text_column: str) -> tuple[str, RowKind]:
    if value is None:
        return "the text is null", "no_text"
    return f"field '{text_column}' is {name_of(value)}, not a string", "not_text"


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
