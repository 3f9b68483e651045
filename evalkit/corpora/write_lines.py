"""Writes JSON lines anew: bytes are copied, and only the lines to be changed are parsed."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import zstandard

from evalkit.corpora.documents import MAX_TEXT_BYTES, ShardCounts
from evalkit.corpora.edits import Pending, text_slots
from evalkit.corpora.fields import SEPARATOR, TextFields
from evalkit.corpora.jsonl import read_jsonl
from evalkit.corpora.streams import BLOCK_BYTES, Compression

# The levels at which gzip, xz and zstd themselves work unless told otherwise; no file says at which it was written.
_GZIP_LEVEL: Final = 6
_XZ_PRESET: Final = 6
_ZSTD_LEVEL: Final = 3

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{},:]|[^\[\]{},:"\s]++')


def rewrite_lines(chunks: Iterable[bytes], out: io.BufferedIOBase, pending: Pending, fields: TextFields) -> None:
    """Copy the bytes, and stop only at the lines to be edited."""
    row = 0
    held: list[bytes] = []  # what came of a line to be edited
    for chunk in chunks:
        position = 0
        while position < len(chunk):
            wanted = pending.next
            if wanted == row:
                end = chunk.find(b"\n", position)
                held.append(chunk[position : end if end >= 0 else None])
                if end < 0:
                    break
                out.write(_edited_line(b"".join(held), b"\n", pending, fields))
                held, position, row = [], end + 1, row + 1
                continue
            n_lines = chunk.count(b"\n", position)
            if wanted is None or row + n_lines < wanted:
                out.write(memoryview(chunk)[position:])
                row += n_lines
                break
            end = position
            for _ in range(wanted - row):
                end = chunk.index(b"\n", end) + 1
            out.write(memoryview(chunk)[position:end])
            position, row = end, wanted
        pending.n_rows = row
    if held:
        out.write(_edited_line(b"".join(held), b"", pending, fields))


def _edited_line(line: bytes, newline: bytes, pending: Pending, fields: TextFields) -> bytes:
    """Return what takes the place of a line and of its line break, which the last line may lack."""
    [row] = pending.take_until(cast(int, pending.next) + 1)
    mark = _BYTE_ORDER_MARK if row == 0 and line.startswith(_BYTE_ORDER_MARK) else b""
    line = line.removeprefix(mark)
    [document] = read_jsonl([line + b"\n"], pending.file, fields, MAX_TEXT_BYTES, ShardCounts(n_lines=row))
    if not len(document):
        raise pending.refuse(row, "this line is no document")
    doc_id, text = document.doc_ids[0].as_py(), document.texts[0].as_py()
    places = _places_of(line.decode(), fields)
    texts = [place.text for place in places]
    if SEPARATOR.join(texts) != text:
        raise AssertionError(f"{pending.file}, row {row}: two ways to read a line differ")
    made = pending.edit(row, doc_id, texts)
    if not made:
        return mark
    return mark + b"\n".join(_with_texts(line.decode(), places, one).encode() for one in made) + newline


class _Place(NamedTuple):
    """A string of a JSON document, and where it stands, quotes included."""

    text: str
    start: int
    end: int


def _places_of(line: str, fields: TextFields) -> list[_Place]:
    """The texts of a JSON object with their places in it, in the order of the document."""
    record = _parsed(line)
    found = []
    for path in fields.paths:
        steps = (path.name,) if path.name in record else path.steps
        found += [container[key] for container, key in text_slots(record, steps)]
    return found


def _parsed(line: str) -> dict[str, Any]:
    """Parse a JSON object that is known to be valid, with a `_Place` for each string and 0 for numbers and truths."""
    top: list[Any] = []
    stack: list[Any] = [top]
    key: str | None = None
    for token in _JSON_TOKEN.finditer(line):
        word = token[0]
        container = stack[-1]
        if word in ",:":
            continue
        if word in "]}":
            stack.pop()
            continue
        if isinstance(container, dict) and key is None:
            key = json.loads(word)
            continue
        value: Any = 0
        if word in "[{":
            value = [] if word == "[" else {}
            stack.append(value)
        elif word[0] == '"':
            value = _Place(json.loads(word), token.start(), token.end())
        elif word == "null":
            value = None
        if isinstance(container, dict):
            container[key], key = value, None
        else:
            container.append(value)
    record: dict[str, Any] = top[0]
    return record


def _with_texts(line: str, places: Sequence[_Place], texts: Sequence[str]) -> str:
    """Put other texts in the places, and leave everything else of the line as it is."""
    parts, done = [], 0
    for place, text in sorted(zip(places, texts, strict=True), key=lambda pair: pair[0].start):
        # In a line without other letters they were escaped, and so they stay.
        new = line[place.start : place.end] if place.text == text else json.dumps(text, ensure_ascii=line.isascii())
        parts += [line[done : place.start], new]
        done = place.end
    return "".join([*parts, line[done:]])


@contextlib.contextmanager
def open_compressed(path: Path, compression: Compression) -> Iterator[io.BufferedIOBase]:
    """Open a file for writing through a compressor; the same bytes always give the same file."""
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(path.open("wb"))
        if compression == "gz":
            compressed: Any = gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)
            file = stack.enter_context(io.BufferedWriter(compressed, BLOCK_BYTES))
        elif compression == "xz":
            file = stack.enter_context(lzma.LZMAFile(file, "wb", preset=_XZ_PRESET))
        elif compression == "zst":
            compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
            file = stack.enter_context(compressor.stream_writer(file, closefd=False))
        yield file
