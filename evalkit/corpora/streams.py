"""Turns the bytes of a file, compressed or not, into blocks of lines, in memory that does not depend on its length."""

from __future__ import annotations

import io
import itertools
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, Protocol

import zstandard

from evalkit.corpora.remote import Address, RemoteFile

Compression = Literal["", "gz", "xz", "zst"]

BLOCK_BYTES: Final = 1 << 20
"""Bytes of lines handed on together: enough to make the cost of a step small, little enough for the CPU's cache."""

MAX_LINE_BYTES: Final = 256 << 20
"""A longer line is given up, so that a file without line breaks does not fill the memory."""

READ_ERRORS: Final = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What `read_chunks` raises when the file cannot be read to its end."""

_READ_BYTES: Final = 256 << 10

# Decompressors return all that their input stands for, up to a thousand (gzip) or some ten thousand (zstandard)
# times as much, so the input is handed to them in small portions.
_PORTION_BYTES: Final = 2 << 10

# The largest window that `zstd --long=31` writes; some published dumps need it. Other files take no more memory.
_MAX_ZSTD_WINDOW: Final = 1 << 31


class _Decoder(Protocol):
    """What decompressors have in common; one decodes one gzip member, xz stream or zstandard frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class LocalFile(io.FileIO):
    """A file of this machine's, of which no more is read at once than it has.

    Python makes room for as many bytes as are asked for, and a corrupt file can ask for any number.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, or all that are left when they are fewer or `size` is negative."""
        n_left = max(0, self.size - self.tell())
        return super().read(n_left if size is None or size < 0 else min(size, n_left))


def open_file(path: Path | Address, size: int | None = None, *, forward_only: bool = False) -> io.RawIOBase:
    """Open a file of this machine's or of a remote file system for reading.

    Parameters
    ----------
    path
        The file.
    size
        Its size in bytes when it was found; None: whatever it is now.
    forward_only
        It is read from front to back only; some web servers cannot do more.

    Raises
    ------
    EOFError
        The file's size is another one now, so that what was planned for it no longer fits.
    OSError
        It cannot be opened.
    """
    if isinstance(path, Address):
        return RemoteFile(path, size, forward_only=forward_only)
    file = LocalFile(path)
    if size is not None and file.size != size:
        file.close()
        raise EOFError(f"the file has {file.size} bytes now, and had {size} when it was found")
    return file


def read_chunks(
    path: Path | Address,
    compression: Compression,
    on_progress: Callable[[int], None],
    *,
    size: int | None = None,
) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in chunks of any length.

    Parameters
    ----------
    path
        The file.
    compression
        How it is compressed. Files of several gzip members, xz streams or zstandard frames are read to the end; zero
        bytes after a gzip member or xz stream, with which tapes and block devices pad, are skipped as `gzip -dc` does.
    on_progress
        Called with the number of bytes read from the file since the last call.
    size
        The bytes that the file has, when they are known.

    Raises
    ------
    OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError
        The file cannot be opened, has another size, ends within compressed data, or is corrupt.
    """
    with open_file(path, size, forward_only=True) as file:
        yield from _decoded(_read(file, size, on_progress), compression)


def read_part(
    path: Path | Address,
    compression: Compression,
    start: int,
    stop: int,
    size: int,
    on_progress: Callable[[int], None],
) -> Iterator[bytes]:
    """Yield the decompressed bytes of the lines that belong to a part of a file.

    A line belongs to the part in which it begins, and one that begins where a part ends, to that part: so the parts
    of a file have all its lines between them, each once, wherever it was cut, and no reader needs to know what
    stands before its part.

    Parameters
    ----------
    path, compression, on_progress
        As for `read_chunks`. A part of a compressed file begins with a frame.
    start, stop
        The part, in bytes of the file; progress adds up to `stop - start`.
    size
        Bytes of the file.

    Raises
    ------
    OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError
        See `read_chunks`.
    """
    with open_file(path, size, forward_only=True) as file:
        file.seek(start)
        own = _decoded(_read(file, stop - start, on_progress), compression)
        # What follows is read only after all of the part's own bytes, and only up to the end of a line.
        following = _decoded(_read(file, None, lambda n_bytes: None), compression) if stop < size else iter(())
        yield from _whole_lines(own, following, skip_first=start > 0)


def _read(file: io.RawIOBase, n_bytes: int | None, on_progress: Callable[[int], None]) -> Iterator[bytes]:
    """Yield `n_bytes` bytes from where `file` stands, or all that follow, and refuse to yield fewer."""
    n_read = 0
    while data := file.read(_READ_BYTES if n_bytes is None else min(_READ_BYTES, n_bytes - n_read)):
        n_read += len(data)
        yield data
        on_progress(len(data))
    if n_bytes is not None and n_read < n_bytes:
        raise EOFError(f"the file ended after {n_read} of {n_bytes} bytes")


def _whole_lines(own: Iterator[bytes], following: Iterator[bytes], *, skip_first: bool) -> Iterator[bytes]:
    """Drop the line that began before `own`, and complete the last one from what is `following`."""
    for chunk in own:
        if not skip_first:
            yield chunk
        elif end := chunk.find(b"\n") + 1:
            skip_first = False
            yield chunk[end:]
    if skip_first:  # no line begins in these bytes or right after them
        return
    for chunk in following:
        end = chunk.find(b"\n") + 1
        yield chunk[: end or None]
        if end:
            return


def _decoded(compressed: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
    if compression == "gz":
        return _decompress(compressed, lambda: zlib.decompressobj(wbits=31), padding=b"\0")
    if compression == "xz":
        return _decompress(compressed, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), padding=b"\0")
    if compression == "zst":
        return _decompress(compressed, zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj)
    return compressed


def _decompress(
    compressed: Iterable[bytes], new_decoder: Callable[[], _Decoder], *, padding: bytes = b""
) -> Iterator[bytes]:
    """Decompress member after member, skip `padding` after each, and notice when the last one has no end.

    The libraries' own file objects are no help here: zstandard's takes a cut frame for the end of the file.
    """
    decoder: _Decoder | None = None
    empty = True
    between = False  # after a whole member
    for data in compressed:
        empty = False
        for start in range(0, len(data), _PORTION_BYTES):
            portion = data[start : start + _PORTION_BYTES]
            while portion := portion.lstrip(padding) if between else portion:
                if decoder is None:
                    decoder = new_decoder()
                    between = False
                output = decoder.decompress(portion)
                # Handed on in parts, so that what is made of a chunk stays small even when the chunk is not.
                yield from (output[begin : begin + BLOCK_BYTES] for begin in range(0, len(output), BLOCK_BYTES))
                portion = b""
                if decoder.eof:
                    portion = decoder.unused_data
                    decoder = None
                    between = True
    if empty:
        raise EOFError("the file has no bytes, not even those of an empty archive")
    if decoder is not None:
        raise EOFError("the file ends in the middle of the compressed data")


def split_lines(chunks: Iterable[bytes]) -> Iterator[list[bytes | None]]:
    r"""Split bytes into lines at `\n`, and yield them in lists of about `BLOCK_BYTES`, without their line breaks.

    For lines that are too long, and for errors, see `split_blocks`.
    """
    for block in split_blocks(chunks):
        yield [None] if block is None else [*block.removesuffix(b"\n").split(b"\n")]


def split_blocks(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    r"""Join bytes into blocks of about `BLOCK_BYTES`, cut only after a `\n`.

    A line longer than `MAX_LINE_BYTES` comes out as None. What follows the last line break is a line too, unless it is
    nothing. When `chunks` fails with one of `READ_ERRORS`, the complete lines before that still come out, then the
    error.
    """
    body: list[bytes] = []  # complete lines
    tail: list[bytes] = []  # the beginning of a line
    body_bytes = tail_bytes = 0
    too_long = False  # within a line that was given up
    failure: Exception | None = None
    try:
        for chunk in chunks:
            end = chunk.rfind(b"\n") + 1
            if end and too_long:
                start = chunk.find(b"\n") + 1
                too_long = False
            else:
                start = 0
            if end > start:
                body += [*tail, chunk[start:end]]
                body_bytes += tail_bytes + end - start
                tail, tail_bytes = [], 0
            if not too_long and len(chunk) > end:
                tail.append(chunk[end:])
                tail_bytes += len(chunk) - end
            if tail_bytes > MAX_LINE_BYTES:
                yield from _blocks(body)
                yield None
                body, body_bytes, tail, tail_bytes = [], 0, [], 0
                too_long = True
            elif body_bytes >= BLOCK_BYTES:
                yield from _blocks(body)
                body, body_bytes = [], 0
    except READ_ERRORS as error:
        failure = error
        tail = []
    yield from _blocks([*body, *tail])
    if failure is not None:
        raise failure


def _blocks(parts: list[bytes]) -> Iterator[bytes | None]:
    """Join parts into a block, and cut it where a line is too long; nothing is no block."""
    block = b"".join(parts)
    if len(block) <= MAX_LINE_BYTES:
        if block:
            yield block
        return
    for is_too_long, lines in itertools.groupby(io.BytesIO(block), _is_too_long):
        if is_too_long:
            yield from (None for _ in lines)
        else:
            yield b"".join(lines)


def _is_too_long(line: bytes) -> bool:
    return len(line.removesuffix(b"\n")) > MAX_LINE_BYTES
