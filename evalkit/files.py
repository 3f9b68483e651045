"""Files appear whole: everything is written beside its place, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson


@contextlib.contextmanager
def atomic_path(path: Path, *, makes_folder: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it replaces `path`, on failure it is removed.

    The name of the temporary file is unique, so two writers never share one; after a `kill -9` only such a
    leftover (`.NAME.*.tmp`) remains and `path` holds what it held before. The folder is made if need be, unless
    `makes_folder` is False: then opening the temporary file fails.
    """
    if makes_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(folder: Path) -> None:
    """Make the rename itself survive a power cut; file systems that cannot do this are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as that can be done, and without a list of its files.

    `shutil.rmtree` makes one, which takes 150 bytes for each of what can be hundreds of thousands.
    """
    if not folder.is_symlink():  # what lies elsewhere is let be, as `rmtree` does
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    Path(entry.path).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; numpy scalars are numbers, NaN becomes null."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_json(value, indent=True) + b"\n")


def plain_values(record: Any) -> dict[str, Any]:
    """Return a dataclass as it is read again after it was written as JSON."""
    plain: dict[str, Any] = orjson.loads(to_json(asdict(record)))
    return plain


def to_json(value: Any, *, indent: bool = False) -> bytes:
    """Encode `value` as JSON bytes; numpy values are numbers and NaN is null, since JSON has no NaN."""
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    if indent:
        option |= orjson.OPT_INDENT_2
    return orjson.dumps(value, option=option, default=str)
