"""Finds the corpus files that the user's patterns mean, here and elsewhere, and tells their format from their names."""

from __future__ import annotations

import contextlib
import glob
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, NoReturn, overload

import pyarrow as pa

from evalkit import progress
from evalkit.addresses import is_address, local_part, without_query
from evalkit.corpora.hub import DatasetPart, files_of_dataset, is_dataset
from evalkit.corpora.remote import Address, files_at, is_web, sizes_of
from evalkit.corpora.streams import Compression
from evalkit.errors import InputError

ShardPath = Path | Address | DatasetPart
"""Where a shard is: on this machine, on another file system, or inside of `datasets`."""


class ShardFormat(NamedTuple):
    """How the bytes of a shard are to be read."""

    kind: Literal["jsonl", "parquet", "arrow"]
    compression: Compression


# A plain .json is left out: beside a corpus it is nearly always a description of it, not JSON lines.
FORMATS: Final[dict[str, ShardFormat]] = {
    ".jsonl": ShardFormat("jsonl", ""),
    ".jsonl.gz": ShardFormat("jsonl", "gz"),
    ".jsonl.xz": ShardFormat("jsonl", "xz"),
    ".jsonl.zst": ShardFormat("jsonl", "zst"),
    ".ndjson": ShardFormat("jsonl", ""),
    ".ndjson.gz": ShardFormat("jsonl", "gz"),
    ".ndjson.xz": ShardFormat("jsonl", "xz"),
    ".ndjson.zst": ShardFormat("jsonl", "zst"),
    ".json.gz": ShardFormat("jsonl", "gz"),
    ".json.xz": ShardFormat("jsonl", "xz"),
    ".json.zst": ShardFormat("jsonl", "zst"),
    ".parquet": ShardFormat("parquet", ""),
    ".arrow": ShardFormat("arrow", ""),
}
"""The file name endings that can be read, in any case of letters."""

AUDIT_RECORD: Final = "audit.json"
DEDUP_RECORD: Final = "dedup.json"
AGAINST_RECORD: Final = "against.json"
SUBSTRINGS_RECORD: Final = "substrings.json"
RECORDS: Final = frozenset({AUDIT_RECORD, DEDUP_RECORD, AGAINST_RECORD, SUBSTRINGS_RECORD})
"""What says that a folder holds results of ours: its tables are about a corpus and no part of one."""

_SAVED_DATASET: Final = "state.json"
"""What says that a folder was saved by `datasets`, which may have left caches beside the data."""

_DESCRIPTIONS: Final = frozenset({_SAVED_DATASET, "dataset_info.json", "dataset_dict.json", "clean.json"})
"""What `datasets` and a cleaned corpus say of their data; no one misses them."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One corpus file, or a part of it: what a worker reads in one go.

    Attributes
    ----------
    corpus
        The pattern, as the user gave it, that found the file.
    path
        Where the file is: an absolute path (symbolic links are not followed, since their targets may have no
        suffix), an address, or a part of a dataset. `str(path)` names it in tables and messages.
    size
        Bytes of the whole file; 0 for a part of a dataset, which is no file.
    start, stop
        The part, from `split_shard`: bytes for JSON lines, row groups for Parquet. `stop` is None for "to the end".
    """

    corpus: str
    path: ShardPath
    size: int
    start: int = 0
    stop: int | None = None

    @property
    def is_part(self) -> bool:
        """Whether there is more of the file than this."""
        return self.start > 0 or self.stop is not None


class ShardList(Sequence[Shard]):
    """Whole corpus files, each made when it is asked for.

    There can be a hundred thousand, so only their names and sizes are kept, side by side: of each a tenth of what the
    objects would take.

    Parameters
    ----------
    shards
        The files, as `find_shards` finds them.

    Raises
    ------
    ValueError
        One is a part of a file.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        corpora: dict[str, int] = {}
        self._corpus, self._sizes = array("l"), array("q")
        self._parts: dict[int, DatasetPart] = {}
        self._is_address = bytearray()
        names = []
        for number, shard in enumerate(shards):
            if shard.is_part:
                raise ValueError(f"{shard.path} is not whole, from {shard.start} to {shard.stop or 'its end'}")
            self._corpus.append(corpora.setdefault(shard.corpus, len(corpora)))
            self._sizes.append(shard.size)
            self._is_address.append(isinstance(shard.path, Address))
            if isinstance(shard.path, DatasetPart):
                self._parts[number] = shard.path
            names.append(shard.path.url if isinstance(shard.path, Address) else str(shard.path))
        self._names = pa.array(names, type=pa.large_string())
        self._patterns = list(corpora)

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...

    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        numbers = range(len(self))[number]  # which raises as a list does
        return self._make(numbers) if isinstance(numbers, int) else list(map(self._make, numbers))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list; the base class has one

    def _make(self, number: int) -> Shard:
        path: ShardPath | None = self._parts.get(number)
        if path is None:
            name = self._names[number].as_py()
            path = Address(name) if self._is_address[number] else Path(name)
        return Shard(self._patterns[self._corpus[number]], path, self._sizes[number])


def format_of(path: ShardPath) -> ShardFormat | None:
    """Return the format that the file's name stands for, or None when it is not one that can be read."""
    return format_of_name(path.name)


def format_of_name(name: str) -> ShardFormat | None:
    """Return the format that a file name or path stands for, or None."""
    name = name.lower()
    return next((shard_format for suffix, shard_format in FORMATS.items() if name.endswith(suffix)), None)


def find_shards(patterns: Sequence[str]) -> ShardList:
    """Find the corpus files behind `patterns`, each once: those of this machine sorted by path, then the others.

    Parameters
    ----------
    patterns
        Files, folders (all readable files below them, but no hidden ones and no results of ours) or globs (`*`, `?`,
        `[...]`, `**` for any depth), on this machine or at an address that fsspec knows (`s3://bucket/**/*.parquet`);
        or Hugging Face datasets, `hf:NAME[:CONFIG[:SPLIT]]`. `~` is the home folder. A file that several patterns find
        belongs to the first of them.

    Raises
    ------
    InputError
        There is no pattern; a pattern is empty or finds nothing, or nothing of a readable format; a file or folder
        that was found cannot be looked at, or its name is not UTF-8.

    Notes
    -----
    Files of other formats are left out, and a warning says how many and which suffixes. A folder that holds results of
    ours (one of `RECORDS`) is left out with what lies below it, and a warning names it. In a folder saved by
    `datasets`, its caches (`cache-*.arrow`) are left out, and a warning counts them.
    """
    if not patterns or not all(pattern.strip() for pattern in patterns):
        what = "an empty name was given as a corpus" if patterns else "no corpus was given"
        raise InputError(what, where="--corpus", do="Name at least one file, folder or glob; `.` is the current folder")
    found: dict[_Place, _Row] = {}
    for pattern in patterns:
        check_name(pattern)
        for source in _sources(pattern):
            if isinstance(source, DatasetPart):
                found.setdefault(source, (pattern, source, 0))
            elif is_address(source):
                _add_remote(found, pattern, source)
            else:
                _add_local(found, pattern, source)
    _check_told_apart(found)
    in_order = sorted(found.values(), key=_order)
    return ShardList(
        Shard(corpus, Path(place) if isinstance(place, str) else place, size) for corpus, place, size in in_order
    )


_Place = str | Address | DatasetPart
"""Where a shard is. A file of this machine is a string, which takes a third of a path's memory."""

_Row = tuple[str, _Place, int]
"""A pattern, a file that it finds, and the file's size in bytes."""


def _check_told_apart(paths: Iterable[_Place]) -> None:
    """Refuse addresses of which only the query differs: the tables, which leave it out, could not tell them apart."""
    names = (str(path) for path in paths if isinstance(path, Address) and is_web(path.url))
    for name, n_files in Counter(names).items():
        if n_files > 1:
            raise InputError(
                f"{n_files} addresses differ only in their query, which is not recorded, as it can hold a signature",
                where=name,
                do="Download the files, and name the copies",
            )


def check_name(path: str) -> None:
    """Refuse a path that is not UTF-8: neither JSON nor a table could name it.

    Raises
    ------
    InputError
        It is not.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError("this name is not UTF-8", where=path, do="Rename the file or folder") from None


def _order(found: _Row) -> tuple[int, str]:
    _, place, _ = found
    if isinstance(place, str):  # folder by folder, as paths are compared
        return 0, place.replace(os.sep, "\0")
    return (1 if isinstance(place, Address) else 2), str(place)


def _sources(pattern: str) -> list[str | DatasetPart]:
    """What a pattern stands for: paths and addresses, again with globs, and parts of datasets."""
    if is_dataset(pattern):
        return files_of_dataset(pattern, lambda name: format_of_name(name) is not None)
    return [local_part(pattern) or pattern]


def _add_local(found: dict[_Place, _Row], pattern: str, source: str) -> None:
    try:
        left_out = _LeftOut()
        unknown: dict[Path | Address, None] = {}
        n_readable = 0
        for path in _files_of(source, left_out):
            if not format_of(path):
                unknown[path] = None
                continue
            n_readable += 1
            name = str(path)
            if name in found:  # `**` finds a file once by each folder above it
                continue
            check_name(name)
            if not path.is_file() and path.exists():
                raise InputError(
                    "this is a pipe or a device, of which nobody knows whether all came",
                    where=str(path),
                    do="Write it to a file",
                )
            # The same file may be reached by several names; its real path tells. Mostly they are one, and kept once.
            real = os.path.realpath(path)
            found.setdefault(name if name == real else real, (pattern, name, path.stat().st_size))
        left_out.unknown += unknown
        if not n_readable:
            _refuse(source, left_out)
    except OSError as error:
        raise InputError(
            f"this cannot be looked at ({error.strerror})",
            where=str(error.filename or source),
            do="Give yourself the right to read it; if it is a link, its target may be gone",
        ) from None
    left_out.warn(pattern)


def _add_remote(found: dict[_Place, _Row], pattern: str, source: str) -> None:
    left_out = _LeftOut()
    sizes = _without_results(files_at(source), left_out)
    readable = [path for path in sizes if format_of(path)]
    left_out.unknown += [path for path in sizes if not format_of(path)]
    if not readable:
        _refuse(source, left_out)
    unsized = [path for path in readable if sizes[path] is None]
    sizes |= dict(zip(unsized, sizes_of(unsized), strict=True))
    for path in readable:
        # A query can hold a signature, which is for nobody's tables and records.
        found.setdefault(path, (without_query(pattern), path, sizes[path] or 0))
    left_out.warn(pattern)


def _without_results(sizes: dict[Address, int | None], left_out: _LeftOut) -> dict[Address, int | None]:
    """Leave out results and caches, as `_files_below` does."""

    def folder_of(path: Address) -> str:
        return path.url.rpartition("/")[0]

    results = sorted({folder_of(path) for path in sizes if path.name in RECORDS})
    saved = {folder_of(path) for path in sizes if path.name == _SAVED_DATASET}
    left_out.results += results
    kept = {path: n for path, n in sizes.items() if not any(path.url.startswith(f"{one}/") for one in results)}
    caches = {path for path in kept if folder_of(path) in saved and _is_cache(path.name)}
    left_out.n_caches += len(caches)
    return {path: n for path, n in kept.items() if path not in caches and path.name not in _DESCRIPTIONS}


@dataclass
class _LeftOut:
    """What lies among the files of a corpus and is none of them: files of other formats, results of ours, caches."""

    unknown: list[Path | Address] = field(default_factory=list)
    results: list[Path | str] = field(default_factory=list)
    n_caches: int = 0

    def warn(self, pattern: str) -> None:
        """Tell the user."""
        if self.unknown:
            progress.warn(f"{pattern}: left out {_describe(self.unknown)}, which no reader knows")
        if self.results:
            progress.warn(f"{pattern}: left out {_describe_results(self.results)}")
        if self.n_caches:
            progress.warn(f"{pattern}: left out {self.n_caches} caches of `datasets` (cache-*.arrow)")


def _files_of(pattern: str, left_out: _LeftOut) -> Iterator[Path]:
    """All files that `pattern` stands for, of whatever format, as absolute paths."""
    matches = [_absolute(pattern)]
    # A name that exists is meant as it stands, even when it contains glob characters.
    if not matches[0].exists():
        # pathlib's own glob also matches hidden files and does not enter linked folders; the shell's rules are kept.
        matches = [Path(name) for name in sorted(glob.glob(str(matches[0]), recursive=True))]  # noqa: PTH207
    for match in matches:
        if match.is_dir():
            yield from _files_below(match, left_out)
        else:
            yield match


def _absolute(pattern: str) -> Path:
    path = Path(pattern)
    with contextlib.suppress(RuntimeError):  # an unknown user after ~: taken literally, then reported as not found
        path = path.expanduser()
    # normpath, not resolve: it removes `..` and leaves links alone.
    return Path(os.path.normpath(path.absolute()))


def _files_below(folder: Path, left_out: _LeftOut) -> Iterator[Path]:
    """All files below `folder` but hidden ones, our results and caches; linked folders are entered, none twice."""

    def fail(error: OSError) -> NoReturn:
        raise error

    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = Path(root).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if not RECORDS.isdisjoint(names):
            left_out.results.append(Path(root))
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        caches = {name for name in names if _is_cache(name)} if _SAVED_DATASET in names else set()
        left_out.n_caches += len(caches)
        wanted = sorted(set(names) - caches - _DESCRIPTIONS)
        yield from (Path(root) / name for name in wanted if not name.startswith("."))


def _is_cache(name: str) -> bool:
    """Whether `datasets` wrote a file as the result of a step on a dataset: its rows are there a second time."""
    return name.startswith("cache-") and name.endswith(".arrow")


def _refuse(pattern: str, left_out: _LeftOut) -> NoReturn:
    """Say why `pattern` gives no shard, and where to look."""
    suffixes = ", ".join(FORMATS)
    if left_out.results:
        raise InputError(
            f"nothing to read is here but {_describe_results(left_out.results)}",
            where=pattern,
            do="Name the folder of the corpus, or its files by a glob",
        )
    if left_out.unknown:
        raise InputError(
            f"the pattern finds only {_describe(left_out.unknown)}, which no reader knows",
            where=pattern,
            do=f"Convert to, or rename to, one of {suffixes}",
        )
    if is_address(pattern):
        raise InputError(
            "nothing is at this address",
            where=pattern,
            do="Check the folder and, for a glob, put it in quotes so that the shell does not change it; "
            f"readable files end in {suffixes}",
        )
    wanted = _absolute(pattern)
    parent = next(folder for folder in wanted.parents if folder.is_dir())
    raise InputError(
        f"nothing matches this corpus pattern (looked for {wanted}; the nearest folder that exists is {parent})",
        where=pattern,
        do="Check the folder and, for a glob, put it in quotes so that the shell does not change it; "
        f"readable files end in {suffixes}",
    )


def _describe_results(folders: Sequence[Path | str]) -> str:
    """Name folders that hold results, as in `the results in /data/leaks and 2 more (...)`."""
    more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
    return f"the results in {folders[0]}{more} (a folder with audit.json, dedup.json or the like holds such)"


def _describe(files: Sequence[Path | Address]) -> str:
    """Count files by suffix, as in `3 files (2 .txt, 1 without a suffix)`."""
    by_suffix = Counter(Path(path.name).suffix or "without a suffix" for path in files)
    counts = ", ".join(f"{n} {suffix}" for suffix, n in by_suffix.most_common())
    return f"{len(files)} file{'s' if len(files) > 1 else ''} ({counts})"
