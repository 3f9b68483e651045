"""Writes a deduplicated corpus: every file again, without the documents that are not kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow.compute as pc
from pyarrow.dataset import dataset

from evalkit.corpora.layout import check_apart, layout
from evalkit.corpora.shards import Shard
from evalkit.corpora.writers import rewrite_shard
from evalkit.dedup.dedup import CLUSTERS, RECORD, engine_for
from evalkit.engines import Engine
from evalkit.errors import InputError, SpecError
from evalkit.files import atomic_path, to_json, write_json
from evalkit.progress import progress_bar

WRITTEN: Final = "clean.json"
"""What says that a corpus is written to its end; corpora that are read do not take it for a part of one."""

_BEGUN: Final = ".dedup.json"


@dataclass(frozen=True)
class KeepTask:
    """A file to be written without what is not kept. It can be pickled, and needs nothing but files."""

    shard: Shard
    target: Path
    clusters: Path
    n_removed: int
    text_column: str | tuple[str, ...]
    id_column: str | None


def write_file(task: KeepTask) -> None:
    """Write one file; it appears whole.

    Raises
    ------
    InputError
        The file cannot be read, or has not the rows that it had.
    """
    with atomic_path(task.target) as temporary:
        # The format and the compression are told by the name.
        beside = temporary.with_name(f".{temporary.name}{task.target.name}")
        try:
            rewrite_shard(
                task.shard, beside, tuple(_removed_rows(task)), lambda row, doc_id, texts: (),
                text_column=task.text_column, id_column=task.id_column,
            )  # fmt: skip
            beside.replace(temporary)
        finally:
            beside.unlink(missing_ok=True)


def _removed_rows(task: KeepTask) -> list[int]:
    """The rows of the file that are not kept, from those row groups of the table that have the file."""
    if not task.n_removed:
        return []
    chosen = (pc.field("file") == str(task.shard.path)) & ~pc.field("keep")
    return sorted(dataset(task.clusters).to_table(columns=["row"], filter=chosen)["row"].to_pylist())


def _count_removed(clusters: Path) -> dict[str, int]:
    """How many rows of each file are not kept, from the table read a stretch at a time."""
    counts = Counter[str]()
    for batch in dataset(clusters).to_batches(columns=["file"], filter=~pc.field("keep")):
        for one in pc.value_counts(batch["file"]).to_pylist():
            counts[one["values"]] += one["counts"]
    return counts


def write_kept(
    directory: Path,
    shards: Sequence[Shard],
    out: Path,
    *,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    overwrite: bool = False,
    engine: Engine | None = None,
) -> list[Path]:
    """Write a corpus to the folder `out` without the documents that a deduplication does not keep.

    Files keep their place below the corpus, their format and their compression; all other rows stay as they are. `out`
    holds `clean.json` last. A killed run goes on where it was.

    Parameters
    ----------
    directory
        A finished deduplication of this corpus.
    shards, text_column, id_column
        As `dedup` was given them.
    out
        A new or empty folder outside of the corpus.
    overwrite
        Write over what an earlier run has written there.
    engine
        Where the files are written.

    Returns
    -------
    list
        The files written.

    Raises
    ------
    SpecError
        `out` is in use, or overlaps the corpus.
    InputError
        There is no finished deduplication, or the corpus is another than it was.
    """
    if not (directory / RECORD).is_file():
        raise InputError("there is no finished deduplication", where=str(directory), do="Run evalkit dedup first")
    record = orjson.loads((directory / RECORD).read_bytes())
    ordered = sorted(shards, key=lambda shard: str(shard.path))
    # The same file may be found by another pattern now.
    if sorted((path, size) for _, path, size in record["files"]) != [(str(one.path), one.size) for one in ordered]:
        raise InputError("the corpus is another than it was", where=str(directory), do="Run evalkit dedup again")
    check_apart(out, ordered)
    columns = text_column if isinstance(text_column, str) else tuple(text_column)
    clusters = directory / CLUSTERS
    n_removed = _count_removed(clusters)
    tasks = [
        KeepTask(shard, out / name, clusters, n_removed.get(str(shard.path), 0), columns, id_column)
        for shard, name in zip(ordered, layout(ordered), strict=True)
    ]
    _prepare(out, tasks, record, overwrite=overwrite)
    left = [task for task in tasks if not task.target.exists()]
    with progress_bar("writing", len(left) or None) as bar:
        for _ in engine_for(shards, engine).map(write_file, left):
            bar.advance()
    counts = [{"file": str(task.target), "n_removed": task.n_removed} for task in tasks]
    write_json(out / WRITTEN, {"dedup": str(directory), "n_removed": sum(n_removed.values()), "files": counts})
    return [task.target for task in tasks]


def _prepare(out: Path, tasks: Sequence[KeepTask], record: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse a folder that is in use; remove what was written to it from other clusters."""
    # What a deduplication finds follows from its parts and its settings.
    what = [[str(task.shard.path), task.shard.size, task.n_removed] for task in tasks]
    what += [record["parts"], record["spec"]]
    key = {"key": hashlib.sha256(to_json(what)).hexdigest()}
    begun = out / _BEGUN
    if begun.exists():
        same = orjson.loads(begun.read_bytes()) == key
        if not overwrite and (not same or (out / WRITTEN).exists()):
            raise SpecError("a corpus was written here", where=str(out), do="Give another --write, or --overwrite")
        if overwrite:
            (out / WRITTEN).unlink(missing_ok=True)
            for task in tasks:
                task.target.unlink(missing_ok=True)
    elif out.exists() and any(out.iterdir()):
        raise SpecError("the folder is not empty", where=str(out), do="Give another --write")
    write_json(begun, key)
