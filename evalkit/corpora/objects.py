"""Files of ours at addresses: put there whole, listed, fetched and removed."""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from evalkit.corpora.remote import BLOCK_BYTES, Address, RemoteFile, describe, file_system, files_at, is_web, patiently
from evalkit.errors import InputError
from evalkit.files import atomic_path
from evalkit.progress import logger

_WHOLE_PUTS: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "hf"})
"""Where what is put appears whole or not at all. Elsewhere it is put beside its place, then moved."""

_STAMPS: Final = (
    *("ETag", "etag", "md5Hash", "crc32c", "generation", "blob_id", "Content-MD5", "Digest", "VersionId"),
    *("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified", "created"),
)
"""What tells versions of a file apart, by the names that file systems have for it."""

_BESIDE: Final = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")

_N_AT_ONCE: Final = 8

_REMOVED_AT_ONCE: Final = 1000


@dataclass(frozen=True)
class Stored:
    """A file at an address: its bytes, and what tells this version from others; empty when nothing does."""

    size: int
    stamp: str


def join(folder: str, name: str) -> str:
    """Return the address of what has this name in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def listed(address: str) -> dict[str, Stored]:
    """List all files below an address by their names there; see `listing`."""
    return dict(listing(address))


def listing(address: str) -> Iterator[tuple[str, Stored]]:
    """Yield all files below an address by their names there; a file itself has the empty name.

    The listing is asked for anew, whatever was listed before. What is not there has no files. S3 is asked for a
    thousand at a time, so that hundreds of thousands do not lie in memory with all that is known of them.

    Raises
    ------
    InputError
        It cannot be looked at.
    """
    if is_web(address):
        yield from _listed_on_the_web(address).items()
        return
    fs, path = file_system(address)
    path = path.rstrip("/")
    pages = _pages_of_s3(fs, path) if hasattr(fs, "call_s3") else _found(fs, path)
    try:
        for name, info in pages:
            if not name.endswith("/"):  # object stores have empty objects for folders
                yield _below(name, path), Stored(int(info.get("size") or 0), _stamp(info))
    except Exception as error:  # each file system has errors of its own
        raise _unreadable(address, error) from error


def _found(fs: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    def ask() -> dict[str, Any]:
        fs.invalidate_cache()
        try:
            found = dict(fs.find(path, detail=True))
            fs.invalidate_cache()  # nor does it stay in the memory of the file system
            # Of a file that is asked for itself, some say nothing more.
            return {name: info if "type" in info else fs.info(name) for name, info in found.items()}
        except FileNotFoundError:
            return {}

    yield from ((name, info) for name, info in patiently(ask).items() if info.get("type") == "file")


def _pages_of_s3(fs: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    fs.invalidate_cache()
    bucket, _, key = path.partition("/")
    prefix, is_empty = f"{key}/" if key else "", True
    more: dict[str, str] = {}
    try:
        while True:
            page = patiently(partial(fs.call_s3, "list_objects_v2", Bucket=bucket, Prefix=prefix, **more))
            for one in page.get("Contents", ()):
                is_empty = False
                yield f"{bucket}/{one['Key']}", {**one, "size": one["Size"]}
            if not page.get("IsTruncated"):
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        if is_empty and key and (info := patiently(partial(fs.info, path)))["type"] == "file":
            yield path, info
    except FileNotFoundError:
        return


def _listed_on_the_web(address: str) -> dict[str, Stored]:
    files = files_at(address)
    fs, path = file_system(address)
    try:
        infos = {one.url: patiently(partial(fs.info, one.url)) for one in files}
    except Exception as error:  # each file system has errors of its own
        raise _unreadable(address, error) from error
    return {
        _below(url.rstrip("/"), path.rstrip("/")): Stored(int(info.get("size") or 0), _stamp(info))
        for url, info in infos.items()
    }


def _below(name: str, path: str) -> str:
    # A key of S3 can begin with a slash, which is part of its name.
    return name.lstrip("/").removeprefix(path.strip("/")).removeprefix("/")


def _stamp(info: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={info[name]}" for name in _STAMPS if info.get(name) is not None)


def _unreadable(address: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(
        f"this cannot be looked at ({describe(error)})", where=address, do="Check the address and the credentials"
    )


def put(local: Path, address: str) -> None:
    """Copy a file to an address, where it appears whole or not at all, in place of what is there.

    What breaks off is put again. A put that is killed leaves nothing that a reader would see: on file systems that put
    in parts, a hidden `.NAME.*.tmp` beside it, or an upload that was begun (see `end_uploads`).

    Raises
    ------
    InputError
        It cannot be written, or not all bytes arrive.
    """
    if is_web(address):
        raise InputError("a web server takes no files", where=address, do="Write to a path, or to s3:// and the like")
    fs, path = file_system(address)
    in_place = address.partition("://")[0].lower() in _WHOLE_PUTS
    folder, _, name = path.rstrip("/").rpartition("/")
    target = path if in_place else f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"

    def send() -> None:
        if not in_place:
            fs.makedirs(folder or "/", exist_ok=True)
        size = local.stat().st_size
        fs.put_file(str(local), target)
        fs.invalidate_cache(folder)
        if (arrived := fs.size(target)) != size:
            raise OSError(f"only {arrived} of {size} bytes arrived")

    try:
        patiently(send)
        if not in_place:
            patiently(lambda: fs.mv(target, path))
    except Exception as error:  # each file system has errors of its own
        if not in_place:
            with contextlib.suppress(Exception):
                fs.rm_file(target)
        raise InputError(
            f"this cannot be written ({describe(error)})",
            where=address,
            do="Check the address, and that the credentials allow to write there",
        ) from error


def put_all(files: Mapping[str, Path], address: str) -> None:
    """Copy files to their names below an address, some at once; see `put`."""
    _at_once(lambda name: put(files[name], join(address, name)), files)


def fetch(address: str, local: Path, size: int | None = None) -> None:
    """Copy a file from an address to this machine, whole or not at all.

    Raises
    ------
    InputError
        It cannot be read, or has another size in bytes than is said here.
    """
    try:
        with (
            atomic_path(local) as temporary,
            RemoteFile(Address(address), size, forward_only=True) as source,
            temporary.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, BLOCK_BYTES)
    except (OSError, EOFError) as error:
        raise InputError(
            f"this cannot be fetched ({error})", where=address, do="Check the address, and the room on this disk"
        ) from error


def fetch_all(address: str, files: Mapping[str, Stored], folder: Path) -> None:
    """Copy files from below an address to their names in a folder, some at once; see `fetch`."""

    def one(name: str) -> None:
        fetch(join(address, name) if name else address, folder / name, files[name].size)

    _at_once(one, files)


def remove(address: str, names: Iterable[str]) -> None:
    """Remove files below an address; those that are gone already are no trouble.

    Raises
    ------
    InputError
        They cannot be removed.
    """
    fs, _ = file_system(address)
    # No method that takes patterns: names, and the address, can have wildcards in them.
    paths = [file_system(join(address, name))[1] for name in names]
    try:
        if hasattr(fs, "call_s3"):
            for begin in range(0, len(paths), _REMOVED_AT_ONCE):
                patiently(partial(_remove_from_s3, fs, paths[begin : begin + _REMOVED_AT_ONCE]))
        else:
            _at_once(partial(_remove_one, fs), paths)
    except Exception as error:  # each file system has errors of its own
        raise InputError(
            f"this cannot be removed ({describe(error)})", where=address, do="Check that the credentials allow it"
        ) from error
    if paths:
        fs.invalidate_cache()


def _remove_from_s3(fs: Any, paths: list[str]) -> None:
    buckets, keys = zip(*(path.split("/", 1) for path in paths), strict=True)
    objects = [{"Key": key} for key in keys]
    answer = fs.call_s3("delete_objects", Bucket=buckets[0], Delete={"Objects": objects, "Quiet": True})
    for error in answer.get("Errors", ()):
        raise PermissionError(f"{error.get('Key')}: {error.get('Code')} {error.get('Message', '')}")


def _remove_one(fs: Any, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        patiently(lambda: fs.rm_file(path))


def end_uploads(address: str, is_ours: Callable[[str], bool]) -> int:
    """End uploads below an address that a killed process has left, and that nobody sees but who pays for them.

    Only S3 has such. Only those are ended of whose names `is_ours` says so.

    Returns
    -------
    int
        How many there were; fewer where the server does not answer, or does not allow it: nothing depends on it.
    """
    fs, path = file_system(address)
    if not hasattr(fs, "list_multipart_uploads"):
        return 0
    bucket, _, prefix = path.rstrip("/").partition("/")
    n_ended = 0
    more: dict[str, str] = {}
    try:
        while True:
            ask = partial(fs.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
            page = patiently(partial(ask, **more))
            for upload in page.get("Uploads", ()):
                if is_ours(_below(upload["Key"], prefix)):
                    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                    n_ended += 1
            if not page.get("IsTruncated"):
                break
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    except Exception as error:  # each file system has errors of its own; the results are there all the same
        logger.info("uploads that were begun at %s cannot be ended (%s)", address, describe(error))
    return n_ended


def put_name(leftover: str) -> str | None:
    """Return what a file was to be called that a killed `put` has left beside its place; None: it is no such file."""
    folder, _, last = leftover.rpartition("/")
    found = _BESIDE.fullmatch(last)
    return None if found is None else f"{folder}/{found[1]}".lstrip("/")


def _at_once(work: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_N_AT_ONCE) as pool:
        for _ in pool.map(work, names):
            pass
