"""Fingerprints of corpus files, made of the hashes of their pieces, so that several workers can make one together.

The fingerprint of a file is the sha256 of the sha256 digests (32 bytes each) of its pieces of 64 MiB, one after the
other; the last piece is what is left, and an empty file has none. Nothing else is in it: no name, no size, no time. Of
a file of at most 64 MiB it is the sha256 of its sha256:

    sha256sum FILE | cut -c1-64 | xxd -r -p | sha256sum
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Final

from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.remote import Address, describe
from evalkit.corpora.streams import open_file
from evalkit.errors import InputError
from evalkit.files import to_json

PIECE_BYTES: Final = 64 << 20
"""Bytes of a piece; another number would give other fingerprints."""

METHOD: Final = "sha256 of the joined sha256 digests of the file's pieces of 64 MiB"
"""What a record of fingerprints should say about them."""

_READ_BYTES: Final = 1 << 20


def pieces_of(size: int) -> list[tuple[int, int]]:
    """Return the pieces [start, stop) of a file of `size` bytes."""
    return [(start, min(start + PIECE_BYTES, size)) for start in range(0, size, PIECE_BYTES)]


def hash_piece(path: Path | Address, size: int, start: int, stop: int) -> str:
    """Hash the bytes [start, stop) of a file.

    Parameters
    ----------
    path, size
        The file, and the bytes that it should have.
    start, stop
        One of `pieces_of(size)`.

    Returns
    -------
    str
        sha256, in hexadecimal digits.

    Raises
    ------
    InputError
        The file cannot be read, or has another size.
    """
    return _hash_pieces(path, size, [(start, stop)], lambda n_bytes: None)[0]


def join_hashes(hashes: Sequence[str]) -> str:
    """Return the fingerprint of the file whose pieces have these hashes, in their order."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, hashes))).hexdigest()


def fingerprint(path: Path | Address, size: int, on_progress: Callable[[int], None] | None = None) -> str:
    """Return the fingerprint of a file; `on_progress` is called with the bytes read, perhaps by several threads.

    Raises
    ------
    InputError
        The file cannot be read, or has another size.
    """
    told = on_progress or (lambda n_bytes: None)
    pieces = pieces_of(size)
    if isinstance(path, Address):  # one connection, and some web servers only send a file from its beginning
        return join_hashes(_hash_pieces(path, size, pieces, told))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda piece: _hash_pieces(path, size, [piece], told)[0], pieces)
        return join_hashes(list(found))


def _hash_pieces(
    path: Path | Address, size: int, pieces: Sequence[tuple[int, int]], on_progress: Callable[[int], None]
) -> list[str]:
    try:
        with open_file(path, size, forward_only=True) as file:
            return [_hash(file, start, stop, on_progress) for start, stop in pieces]
    except (OSError, EOFError) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"the file cannot be read ({detail})", where=str(path), do="Check that it is there and readable"
        ) from None


def _hash(file: io.RawIOBase, start: int, stop: int, on_progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while start < stop:
        data = file.read(min(_READ_BYTES, stop - start))
        if not data:
            raise EOFError(f"the file ended at byte {start}, and should go on to {stop}")
        digest.update(data)
        start += len(data)
        on_progress(len(data))
    return digest.hexdigest()


def identity(
    path: Path | Address | DatasetPart, size: int, on_progress: Callable[[int], None] | None = None
) -> str | None:
    """Return what tells the contents of any corpus file apart: `fingerprint`, or of a dataset `dataset_identity`."""
    return dataset_identity(path) if isinstance(path, DatasetPart) else fingerprint(path, size, on_progress)


def dataset_identity(part: DatasetPart) -> str | None:
    """Return what tells the versions of a dataset apart that `datasets` reads for us, since it has no file of ours.

    Returns
    -------
    str or None
        `revision:` and the commit on the Hub; else `data-files:` and a sha256 of the data files' names with what their
        servers call their versions (of files on this machine: the times of change); None when nothing is known.

    Raises
    ------
    InputError
        The dataset cannot be reached.
    """
    return _identity(part.dataset, part.config)


@lru_cache(maxsize=64)
def _identity(dataset: str, config: str | None) -> str | None:
    import datasets

    try:
        builder = datasets.load_dataset_builder(dataset, config)
    except Exception as error:  # `datasets` and what it is built on have many, and no common class for them
        raise InputError(
            f"this dataset cannot be looked at ({describe(error)})",
            where=dataset,
            do="Check HF_HUB_OFFLINE and HF_TOKEN where the Hub is needed",
        ) from error
    files = builder.config.data_files or {}
    names = [str(name) for split in files.values() for name in split]
    revisions = {found[1] for name in names if (found := re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", name))}
    if len(revisions) == 1:
        return f"revision:{revisions.pop()}"
    versions = [list(map(str, one)) for split in files.values() for one in getattr(split, "origin_metadata", ())]
    if not names or len(versions) != len(names):
        return None
    return f"data-files:{hashlib.sha256(to_json(sorted(zip(names, versions, strict=True)))).hexdigest()}"
