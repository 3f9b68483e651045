"""Files at any address that fsspec knows: found, and read in byte ranges that outlive broken connections."""

from __future__ import annotations

import io
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from evalkit import progress
from evalkit.addresses import has_password, redact, with_plain_scheme, without_query
from evalkit.errors import InputError

BLOCK_BYTES: Final = 4 << 20
"""Bytes asked for at once: enough that the round trip matters little, little enough to ask for again."""

_MAX_BLOCKS: Final = 8
"""Blocks kept per file. Columns of a Parquet file lie apart and are read in turns."""

N_ATTEMPTS: Final = 5
"""How often the same bytes are asked for before the file counts as unreadable."""

FIRST_PAUSE_S: Final = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""

_IDLE_TIMEOUT_S: Final = 60.0

# Errors that another attempt does not mend; by name, since their packages may not be installed.
_FINAL_ERRORS: Final = frozenset({"OfflineModeIsEnabled", "NoCredentialsError", "PartialCredentialsError"})

_T = TypeVar("_T")


@dataclass(frozen=True, order=True)
class Address:
    """A file that fsspec opens, such as `s3://bucket/part-0.jsonl.zst` or `https://host/part-0.parquet`.

    The query of a web address can hold a signature: it is used, and is neither shown nor part of the file's name.
    """

    url: str = field(repr=False)

    @property
    def name(self) -> str:
        """The file's name, without the query of a web address."""
        path = urlsplit(self.url).path if is_web(self.url) else self.url.partition("://")[2]
        return PurePosixPath(path).name

    def __str__(self) -> str:
        return without_query(self.url)

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"


def files_at(pattern: str) -> dict[Address, int | None]:
    """Find the files behind an address: a file, a folder (all files below it) or a glob.

    Returns
    -------
    dict
        Each file, of whatever format, and its size in bytes where the file system tells it. Hidden files and those
        in hidden folders are left out, unless the pattern names them.

    Raises
    ------
    InputError
        The kind of address is unknown or needs a package that is not installed, or the files cannot be listed.
    """
    fs, path = file_system(pattern)
    try:
        entries, root = patiently(lambda: _entries(fs, path, is_web(pattern)))
        found = {
            Address(fs.unstrip_protocol(name)): entry.get("size")
            for name, entry in entries.items()
            if not _is_left_out(name, root, pattern)
        }
    except Exception as error:  # each file system has errors of its own, and brings them from packages of its own
        raise InputError(
            f"this cannot be looked at ({describe(error)})", where=pattern, do="Check the address and the credentials"
        ) from error
    return found


def sizes_of(addresses: list[Address]) -> list[int]:
    """Ask one file system for the sizes of files in bytes.

    Raises
    ------
    InputError
        A file is not there, or its size is not told: then nobody could notice that it came in part.
    """
    if not addresses:
        return []
    fs, _ = file_system(addresses[0].url)
    paths = [file_system(address.url)[1] for address in addresses]
    try:
        sizes: list[int | None] = patiently(lambda: fs.sizes(paths))
    except Exception as error:  # as in `files_at`
        raise InputError(
            f"this cannot be looked at ({describe(error)})",
            where=addresses[0].url,
            do="Check the address and the credentials",
        ) from error
    for address, size in zip(addresses, sizes, strict=True):
        if size is None:
            raise InputError(
                "the server does not say how long the file is, so a part of it could pass for all of it",
                where=address.url,
                do="Download it, and name the copy",
            )
    return [size for size in sizes if size is not None]


class RemoteFile(io.RawIOBase):
    """A file at an address, to be read at any place in blocks.

    A block that does not come, or not in full, is asked for again from the first missing byte, `N_ATTEMPTS` times
    at most; then `OSError` is raised. Nothing is written to disk. A web server that knows no byte ranges is read in
    one stream, which does not outlive a broken connection.

    Parameters
    ----------
    address
        The file.
    size
        Its size in bytes when it was found; None: whatever it is now.
    forward_only
        It is only read from front to back, so that one stream will do.

    Raises
    ------
    EOFError
        The file's size is another one now.
    OSError
        It cannot be opened, or a block cannot be had.
    """

    def __init__(self, address: Address, size: int | None = None, *, forward_only: bool = False) -> None:
        self._address = address
        self._fs, self._path = file_system(address.url)
        self._file: Any = None
        self._stream: Any = None
        self._stream_position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self._forward_only = forward_only
        try:
            # Blocks are kept here, after their length was checked, and so not by fsspec as well.
            self._file = patiently(lambda: self._fs.open(self._path, "rb", cache_type="none"))
            now = getattr(self._file, "size", None) or patiently(lambda: self._fs.size(self._path))
        except Exception as error:  # each file system has errors of its own
            raise OSError(describe(error)) from error
        if size is not None and now != size:
            raise EOFError(f"the file has {now} bytes now, and had {size} when it was found")
        self._size: int = now

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always, though a server without byte ranges then fails."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the file; nothing is fetched yet."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or all that are left when they are fewer or `size` is negative."""
        stop = self._size if size < 0 else min(self._size, self._position + size)
        parts = []
        while self._position < stop:
            number, start = divmod(self._position, BLOCK_BYTES)
            part = self._block(number)[start : start + stop - self._position]
            parts.append(part)
            self._position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` as much as it holds."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the connection and forget the blocks."""
        if not self.closed:
            self._blocks.clear()
            for opened in (self._file, self._stream):
                if opened is not None:
                    opened.close()
        super().close()

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK_BYTES
            self._blocks[number] = self._fetch(start, min(start + BLOCK_BYTES, self._size))
            if len(self._blocks) > _MAX_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch(self, start: int, stop: int) -> bytes:
        """Fetch bytes of the file until all are there."""
        data = b""
        n_failures = 0
        while len(data) < stop - start:
            try:
                part = self._read_at(start + len(data), stop)
                problem = f"only {start + len(data)} of {self._size} bytes came"
            except Exception as error:  # each file system has errors of its own
                problem, part = describe(error), b""
                if self._stream is not None or _is_final(error):
                    raise OSError(f"{problem} at byte {start + len(data)} of {self._size}") from error
            if part:
                data += part
                n_failures = 0
                continue
            n_failures += 1
            if self._stream is not None:
                raise OSError(f"{problem}; this server cannot go on where a connection broke")
            if n_failures == N_ATTEMPTS:
                raise OSError(f"{problem}, and no more in {N_ATTEMPTS} attempts")
            _pause(n_failures, f"{self._address}: {problem}")
        return data

    def _read_at(self, start: int, stop: int) -> bytes:
        if self._stream is None:
            try:
                self._file.seek(start)
                return bytes(self._file.read(stop - start))
            except ValueError:
                # So fsspec says that the server sends the whole file whatever was asked for.
                if not (self._forward_only and is_web(self._address.url)):
                    raise
            self._stream = self._fs.open(self._path, "rb", block_size=0)
        while self._stream_position < start:
            skipped = self._stream.read(min(BLOCK_BYTES, start - self._stream_position))
            if not skipped:
                return b""
            self._stream_position += len(skipped)
        part = bytes(self._stream.read(stop - start))
        self._stream_position += len(part)
        return part


def describe(error: BaseException) -> str:
    """Say what went wrong in one line; fsspec's web errors hide it in the cause."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return describe(error.__cause__)
    text = redact(str(error).splitlines()[0]) if str(error) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it.

    Options such as end points and keys come from the environment (`FSSPEC_S3_...`) and fsspec's configuration.
    """
    import fsspec.config
    import fsspec.core

    if has_password(url):
        raise InputError(
            "a password stands in this address, or a token, where it would be seen by others",
            where=f"{url.partition('://')[0]}://...",
            do="Leave it out; keys are read from the environment (AWS_ACCESS_KEY_ID, FSSPEC_...) and fsspec's "
            "configuration files",
        )
    if "::" in url:
        raise InputError(
            "chained addresses are not read", where=url, do="Unpack the archive, or name the inner address"
        )
    url = with_plain_scheme(url)
    options: dict[str, Any] = {}
    if is_web(url):
        import aiohttp

        # A compressed transfer would have other byte positions than the file; fsspec's limit is on the whole transfer.
        given = fsspec.config.conf.get(url.partition("://")[0], {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_IDLE_TIMEOUT_S, sock_read=_IDLE_TIMEOUT_S)
        options["headers"] = {"Accept-Encoding": "identity"} | given.get("headers", {})
        options["client_kwargs"] = {"timeout": timeout} | given.get("client_kwargs", {})
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"this kind of address cannot be read ({describe(error)})",
            where=url,
            do="Install the package it needs (`s3fs` for s3://, `gcsfs` for gs://), or copy the files to this machine",
        ) from None
    return fs, str(path)


def is_web(url: str) -> bool:
    """Whether an address is that of a web server."""
    return url.lower().startswith(("http://", "https://"))


def _entries(fs: Any, path: str, web: bool) -> tuple[dict[str, dict[str, Any]], str]:
    """The files that a path stands for, and the folder from which on hidden names count as hidden."""
    # `?` begins the query of a web address.
    magic = re.search(r"[*\[]" if web else r"[*?\[]", path)
    if web:
        # Every web address can be a file and a folder; a folder is told by a name without a suffix or a final slash.
        name = urlsplit(path).path.rpartition("/")[2]
        info = None if magic or "." not in name else fs.info(path)
    else:
        try:
            info = fs.info(path)
        except FileNotFoundError:
            info = None
    if info is not None and info["type"] == "file":
        return {path: info}, path
    if info is None and magic:
        root = path[: magic.start()].rpartition("/")[0]
        matches = fs.glob(path, detail=True)
    else:
        root = path.rstrip("/")
        matches = {root: {"type": "directory"}}
    found: dict[str, dict[str, Any]] = {}
    for name, entry in matches.items():
        if entry["type"] == "directory":
            found |= fs.find(name.rstrip("/") + "/" if web else name, detail=True)
        else:
            found[name] = entry
    # Object stores have empty objects for folders; the listings of web servers have links that sort them.
    return {
        name: entry
        for name, entry in found.items()
        if entry.get("type") == "file" and not name.endswith("/") and not (web and "?" in name)
    }, root


def _is_left_out(name: str, root: str, pattern: str) -> bool:
    """Whether a file is hidden below `root`, and the pattern does not ask for hidden ones."""
    below = name.removeprefix(root).split("/")
    return "/." not in pattern and any(part.startswith(".") for part in below)


def patiently(ask: Callable[[], _T]) -> _T:
    """Return what `ask` returns; when it fails in a way that may pass, try again."""
    for n_failures in range(1, N_ATTEMPTS):
        try:
            return ask()
        except Exception as error:  # each file system has errors of its own
            if _is_final(error):
                raise
            _pause(n_failures, describe(error))
    return ask()


def _pause(n_failures: int, problem: str) -> None:
    seconds = FIRST_PAUSE_S * 2 ** (n_failures - 1)
    progress.logger.info("%s; trying again in %s s", problem, seconds)
    time.sleep(seconds)


def _is_final(error: BaseException) -> bool:
    """Whether asking again would bring the same error."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _is_final(error.__cause__)  # fsspec says so of every failure to reach a web server
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    if isinstance(response, dict):  # so botocore has it
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    # What is not there, or must not be read, is so the next time, too; and so are mistakes in the program.
    final = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
    mistakes = (TypeError, ValueError, AttributeError, ImportError, InputError)
    return isinstance(error, (*final, *mistakes)) or type(error).__name__ in _FINAL_ERRORS
