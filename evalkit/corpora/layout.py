"""Where the files of a corpus go when they are written anew: no two files have the same place."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from evalkit.addresses import is_address
from evalkit.corpora.hub import DatasetPart, is_dataset
from evalkit.corpora.shards import Shard
from evalkit.corpora.writers import output_name
from evalkit.errors import InputError, SpecError


def layout(shards: Sequence[Shard]) -> list[str]:
    """Return the path of each file below a new folder: its path below the nearest folder that all corpora share.

    Of a single corpus, that is the folder which its pattern names, as far as the files tell where that is. A part of
    a dataset, which is no file, gets a name.

    Raises
    ------
    SpecError
        Two files would have the same path.
    InputError
        A file is named such that its path could lead out of the folder.
    """
    for shard in shards:
        _check_name(shard)
    roots = list(_roots(shards).values())
    n_common = len(_common(roots))
    names = ["/".join(_parts(shard)[n_common:]) for shard in shards]
    for name, n in Counter(names).items():
        if n > 1:
            raise SpecError(f"{n} files of the corpus would be written to it", where=name, do="Write them one by one")
    return names


def below(folder: Path, name: str) -> Path:
    """Return the path of the file `name` below `folder`.

    Raises
    ------
    InputError
        It would lie elsewhere: the name is absolute, has a `..` or none, or goes through a linked folder.
    """
    path = folder / name
    if not _is_plain(name) or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the file '{name}' would lie outside of it", where=str(folder), do="Give another folder")
    return path


def _is_plain(name: str) -> bool:
    return all(part not in ("", ".", "..") for part in name.split("/"))


def _check_name(shard: Shard) -> None:
    """Refuse what no search for files gives, but a record from elsewhere can hold."""
    path = shard.path
    if isinstance(path, Path):
        is_right = path.is_absolute() and ".." not in path.parts
    else:
        parts = (path.config or "default", path.split) if isinstance(path, DatasetPart) else ()
        is_right = all(map(_is_plain, (*parts, output_name(shard))))
    if not is_right:
        raise InputError("this names no file of a corpus", where=str(path), do="Audit again")


def _parts(shard: Shard) -> tuple[str, ...]:
    """Where a file is, from the kind of place down to its name."""
    path = shard.path
    if isinstance(path, Path):
        return ("file", *path.parts[1:])
    if isinstance(path, DatasetPart):
        folders = ["hf", *path.dataset.split("/"), path.config or "default", path.split]
    else:
        kind, _, rest = path.url.partition("://")
        web = urlsplit(path.url) if kind.lower() in ("http", "https") else None
        folders = [kind, *(f"{web.netloc}{web.path}" if web else rest).split("/")[:-1]]
        if web and web.query:  # the same name can stand for many files
            folders.append(hashlib.sha256(web.query.encode()).hexdigest()[:8])
    return (*(one for one in folders if one not in ("", ".", "..")), output_name(shard))


def _roots(shards: Sequence[Shard]) -> dict[str, tuple[str, ...]]:
    """The folder of each corpus: the one that its pattern names, as far as the files tell where that is."""
    by_corpus: dict[str, list[tuple[str, ...]]] = {}
    for shard in shards:
        by_corpus.setdefault(shard.corpus, []).append(_parts(shard)[:-1])
    roots = {}
    for corpus, folders in by_corpus.items():
        common, named = _common(folders), _named_folders(corpus)
        # A relative pattern was meant in a working folder that nobody knows any more.
        ends = (
            end
            for n in range(len(named), 0, -1)
            for end in range(len(common), n - 1, -1)
            if common[end - n : end] == named[:n]
        )
        roots[corpus] = common[: next(ends, len(common))]
    return roots


def _named_folders(pattern: str) -> tuple[str, ...]:
    """The names in a pattern before the first with a wildcard."""
    if is_dataset(pattern):
        return ()
    path = pattern.partition("://")[2] if is_address(pattern) else os.path.normpath(Path(pattern).expanduser())
    names = takewhile(lambda name: not glob.has_magic(name), PurePosixPath(path).parts)
    return tuple(name for name in names if name not in ("/", ".", ".."))


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False)))


def check_apart(folder: Path, shards: Sequence[Shard]) -> None:
    """Refuse a folder in which files of the corpus lie, or where new files would be taken for some.

    Raises
    ------
    SpecError
        It is so.
    """
    place = folder.resolve()
    local = [shard for shard in shards if isinstance(shard.path, Path)]
    for shard in local:
        if isinstance(shard.path, Path) and place in shard.path.resolve().parents:
            raise SpecError(
                f"{shard.path} of the corpus lies in it", where=str(folder), do="Give one beside the corpus"
            )
    for corpus, root in _roots(local).items():
        is_file = any(shard.corpus == corpus and shard.path.name == PurePosixPath(corpus).name for shard in local)
        searched = Path("/", *root[1:])
        if ("**" in corpus or not (glob.has_magic(corpus) or is_file)) and place.is_relative_to(searched.resolve()):
            raise SpecError(
                f"it lies below {searched}, where '{corpus}' would find what is in it, too",
                where=str(folder),
                do="Give one beside the corpus",
            )
