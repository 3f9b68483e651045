"""Passages that several documents have in common word by word: of at least so many tokens, with their places.

Normalised as the audit does it, and exact to a 64-bit hash of each window of n tokens. The corpus is read twice. The
first pass keeps of each window its *minimizer*, the least hash of its n/2-grams (Schleimer, Wilkerson, Aiken:
Winnowing, SIGMOD 2003): equal windows have equal ones, and neighbouring windows mostly share theirs, so few are
written. The second pass hashes only the windows whose minimizer is in several documents. Both times equal hashes are
found by sorting, a part of their range at a time; no step compares every document with every other, so boilerplate
costs no more than prose.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit import tables
from evalkit.corpora.readers import read_shard
from evalkit.corpora.shards import SUBSTRINGS_RECORD, Shard
from evalkit.corpora.split import row_offsets, split_shard
from evalkit.dedup import substring_kernels
from evalkit.dedup.arrays import load_array, save_array
from evalkit.dedup.dedup import PART_BYTES, WORK, check_target, engine_for, remove_work
from evalkit.engines import Engine
from evalkit.errors import SpecError
from evalkit.files import atomic_path, to_json, write_json
from evalkit.progress import progress_bar, say
from evalkit.tables import TableSchema
from evalkit.text.buffers import arrow_buffers
from evalkit.text.normalise import fold_table

RECORD: Final = SUBSTRINGS_RECORD
FILE: Final = "substrings.parquet"
PARTITION_WINDOWS: Final = 16_000_000
"""About so many hashes are in memory at a time."""

_VERSION: Final = 1

SUBSTRINGS: Final = TableSchema(
    "substrings",
    pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in ("corpus", "file")),
            *(
                pa.field(name, pa.int64(), nullable=False)
                for name in ("row", "start", "end", "n_tokens", "n_documents")
            ),
            pa.field("is_repeat", pa.bool_(), nullable=False),
            pa.field("doc_id", pa.string()),
        ]
    ),
    key=(),
    choices={},
)
"""One row per passage: its place in the document's text, in characters; in how many documents the most common of its
windows is; and whether an earlier document has it, so that it can be cut here."""

_WINDOWS: Final = ("hashes", "documents", "places", "starts", "ends")


@dataclass(frozen=True)
class SubstringsResult:
    """What was found.

    Attributes
    ----------
    directory
        Where the table is.
    n_documents, n_tokens
        Of the corpus.
    n_passages, n_with_passages
        Passages found, and documents that have one.
    n_repeated_tokens
        Tokens of the passages that an earlier document has.
    seconds
        That it took.
    """

    directory: Path
    n_documents: int
    n_tokens: int
    n_passages: int
    n_with_passages: int
    n_repeated_tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {**vars(self), "directory": str(self.directory)}


@dataclass(frozen=True)
class _Part:
    """A part of the corpus, and where what is found of it lies."""

    shard: Shard
    size: int
    out: Path
    text_column: str | tuple[str, ...]
    id_column: str | None

    @property
    def name(self) -> str:
        shard = self.shard
        changed = shard.path.stat().st_mtime_ns if isinstance(shard.path, Path) else None
        what = [_VERSION, str(shard.path), shard.size, changed, shard.start, shard.stop, self.size]
        return hashlib.sha256(to_json([*what, self.text_column, self.id_column])).hexdigest()[:32]


@dataclass(frozen=True)
class _Pass:
    """One pass over a part: the minimizers of its windows or, when the wanted ones are given, the windows."""

    part: _Part
    stem: Path
    wanted: tuple[Path, ...] | None

    def file(self, name: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}-{name}.npy")

    @property
    def path(self) -> Path:
        """The file that is written last."""
        return self.stem.with_suffix(".parquet")


def _read(task: _Pass) -> None:
    """Write the minimizers, or the windows, sorted by their hashes; and the documents that they are in."""
    part = task.part
    wanted = np.empty(0, dtype=np.uint64)
    if task.wanted:
        wanted = np.concatenate([load_array(path) for path in task.wanted])
    reader = read_shard(part.shard, text_column=part.text_column, id_column=part.id_column)
    found: list[tuple[npt.NDArray[Any], ...]] = []
    rows, ids, numbers = [np.empty(0, dtype=np.int64)], [pa.array([], pa.string())], [np.empty(0, dtype=np.int64)]
    n_documents = n_tokens = 0
    for batch in reader:
        data, offsets = arrow_buffers(batch.texts)
        hashes, texts, places, starts, ends, n = substring_kernels.windows(
            data, offsets, fold_table().arrays, part.size, wanted, task.wanted is None
        )
        n_tokens += n
        if task.wanted is None:
            # Each minimizer once a document.
            order = np.lexsort((texts, hashes))
            hashes, texts = hashes[order], texts[order]
            is_new = np.append(True, (hashes[1:] != hashes[:-1]) | (texts[1:] != texts[:-1]))[: len(hashes)]
            found.append((hashes[is_new], texts[is_new] + n_documents))
        else:
            substring_kernels.to_characters(data, offsets, texts, starts, ends)
            found.append((hashes, texts + n_documents, places, starts, ends))
            mine = np.unique(texts)
            rows.append(batch.rows[mine])
            ids.append(batch.doc_ids.take(mine).cast(pa.string()))
            numbers.append(mine + n_documents)
        n_documents += len(batch)
    names = _WINDOWS[:2] if task.wanted is None else _WINDOWS
    kinds = dict.fromkeys(names, np.int64) | {"hashes": np.uint64}
    columns = {
        name: np.concatenate([np.empty(0, dtype=kinds[name]), *(one[k] for one in found)])
        for k, name in enumerate(names)
    }
    order = np.argsort(columns["hashes"], kind="stable")
    for name in names:
        save_array(task.file(name), columns[name][order])
    table = pa.table({"number": np.concatenate(numbers), "row": np.concatenate(rows), "doc_id": pa.concat_arrays(ids)})
    counts = {"n_documents": n_documents, "n_tokens": n_tokens, "n_lines": reader.counts.n_lines}
    with atomic_path(task.path) as temporary:
        pq.write_table(table.replace_schema_metadata({name: str(n) for name, n in counts.items()}), temporary)


def _count(task: _Pass, name: str) -> int:
    return int(pq.read_schema(task.path).metadata[name.encode()])


@dataclass(frozen=True)
class _Merge:
    """A part of the range of hashes of all parts.

    For minimizers, those in several documents are written. For windows, int64[n, 6]: document, place, start, end,
    documents that have it, and 1 when an earlier one has it; sorted.
    """

    passes: tuple[_Pass, ...]
    firsts: tuple[int, ...]
    number: int
    n_partitions: int
    path: Path


def _merge(task: _Merge) -> None:
    low, high = ((task.number + k << 64) // task.n_partitions for k in (0, 1))
    names = _WINDOWS[:2] if task.passes[0].wanted is None else _WINDOWS
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
    for one, first in zip(task.passes, task.firsts, strict=True):
        hashes = load_array(one.file("hashes"))
        stop = len(hashes) if high >> 64 else np.searchsorted(hashes, np.uint64(high))
        span = slice(np.searchsorted(hashes, np.uint64(low)), stop)
        for name in names:
            values = np.asarray(load_array(one.file(name))[span])
            found[name].append(values + first if name == "documents" else values)
    hashes, documents, *places = (np.concatenate(found[name]) for name in names)
    order = np.lexsort((documents, hashes))
    hashes, documents = hashes[order], documents[order]
    is_first = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
    is_other = is_first | np.append(True, documents[1:] != documents[:-1])[: len(hashes)]
    starts = np.flatnonzero(is_first)
    n_documents = np.add.reduceat(is_other, starts) if len(starts) else np.empty(0, dtype=np.int64)
    if not places:
        save_array(task.path, hashes[starts[n_documents > 1]])
        return
    sizes = np.diff(np.append(starts, len(hashes)))
    counts, first_document = np.repeat(n_documents, sizes), np.repeat(documents[starts], sizes)
    rows = np.column_stack([documents, *(one[order] for one in places), counts, documents > first_document])
    rows = rows[counts > 1]
    save_array(task.path, rows[np.lexsort((rows[:, 1], rows[:, 0]))])


def find_substrings(
    shards: Sequence[Shard],
    out: Path,
    n_tokens: int = 50,
    *,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    overwrite: bool = False,
    engine: Engine | None = None,
) -> SubstringsResult:
    """Find the passages of at least `n_tokens` tokens that several documents have, and write the table `SUBSTRINGS`.

    A passage is a maximal stretch of which every window of `n_tokens` tokens is in another document, too, and which an
    earlier document has as a whole or not at all, window by window. A killed run goes on where it was.

    Parameters
    ----------
    shards, out, text_column, id_column, overwrite, engine
        As `dedup` takes them; `out` may hold a deduplication.
    n_tokens
        At least 2.

    Raises
    ------
    SpecError
        `n_tokens` is less than 2, or `out` holds those of something else and `overwrite` is not set, or an audit.
    InputError
        A corpus file cannot be read.
    """
    if n_tokens < 2:
        raise SpecError(f"passages of {n_tokens} tokens", where="--substrings", do="Use 2 or more; 50 is usual")
    begun = time.monotonic()
    columns = text_column if isinstance(text_column, str) else tuple(text_column)
    work, do = out / WORK / f"substrings-{n_tokens}", _doing(engine_for(shards, engine))
    ordered = sorted(shards, key=lambda shard: str(shard.path))
    parts = [
        _Part(piece, n_tokens, work, columns, id_column) for one in ordered for piece in split_shard(one, PART_BYTES)
    ]
    names = [part.name for part in parts]
    if not overwrite and (found := _finished(out, names, n_tokens)):
        say(f"{out}: these passages were found already, and are taken")
        return found
    check_target(out, RECORD, overwrite=overwrite)
    # What depends on all parts.
    together = work / hashlib.sha256(to_json(names)).hexdigest()[:16]
    first_passes = tuple(_Pass(part, work / name, None) for part, name in zip(parts, names, strict=True))
    do("reading", _read, first_passes)
    counts = [_count(one, "n_documents") for one in first_passes]
    firsts = tuple(np.append(0, np.cumsum(counts, dtype=np.int64))[:-1].tolist())
    repeated = _merge_all(do, first_passes, firsts, together, "minimizers")
    second_passes = tuple(
        _Pass(part, together / f"windows-{name}", repeated) for part, name in zip(parts, names, strict=True)
    )
    do("reading again", _read, second_passes)
    merged = _merge_all(do, second_passes, firsts, together, "windows")
    table = _passages(second_passes, firsts, merged, n_tokens)
    tables.write(out / FILE, table, SUBSTRINGS)
    n_repeated = table.filter(table["is_repeat"])["n_tokens"].to_numpy().sum()
    n_with = table.select(["file", "row"]).group_by(["file", "row"]).aggregate([]).num_rows
    total = sum(_count(one, "n_tokens") for one in first_passes)
    result = SubstringsResult(
        out, sum(counts), total, len(table), n_with, int(n_repeated), time.monotonic() - begun
    )  # fmt: skip
    write_json(out / RECORD, {**result.to_dict(), "least_tokens": n_tokens, "parts": names})
    remove_work(work)
    return result


def _finished(out: Path, names: list[str], n_tokens: int) -> SubstringsResult | None:
    """The result of an earlier call that asked for the same."""
    try:
        record = orjson.loads((out / RECORD).read_bytes())
        if [record["parts"], record["least_tokens"]] != [names, n_tokens]:
            return None
        return SubstringsResult(**{one.name: record[one.name] for one in fields(SubstringsResult)} | {"directory": out})
    except (OSError, ValueError, KeyError):
        return None


_Do = Callable[[str, Callable[[Any], None], Sequence[Any]], None]


def _doing(engine: Engine) -> _Do:
    def do(what: str, function: Callable[[Any], None], tasks: Sequence[Any]) -> None:
        left = [task for task in tasks if not task.path.exists()]
        with progress_bar(what, len(left) or None) as bar:
            for _ in engine.map(function, left):
                bar.advance()

    return do


def _merge_all(
    do: _Do, passes: tuple[_Pass, ...], firsts: tuple[int, ...], folder: Path, name: str
) -> tuple[Path, ...]:
    n_windows = sum(len(load_array(one.file("hashes"))) for one in passes)
    n_partitions = max(1, -(-n_windows // PARTITION_WINDOWS))
    tasks = [_Merge(passes, firsts, k, n_partitions, folder / f"{name}-{k}.npy") for k in range(n_partitions)]
    do(f"sorting {name}", _merge, tasks)
    return tuple(task.path for task in tasks)


def _passages(passes: Sequence[_Pass], firsts: Sequence[int], merged: Sequence[Path], n_tokens: int) -> pa.Table:
    """Join neighbouring windows to passages, part by part."""
    shards = [one.part.shard for one in passes]
    offsets = row_offsets(shards, [_count(one, "n_lines") for one in passes])
    found = [SUBSTRINGS.schema.empty_table()]
    for one, shard, first, offset in zip(passes, shards, firsts, offsets, strict=True):
        bounds = [first, first + _count(one, "n_documents")]
        arrays = (load_array(path) for path in merged)
        rows = np.concatenate([rows[slice(*np.searchsorted(rows[:, 0], bounds))] for rows in arrays])
        if not len(rows):
            continue
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        document, place, start, end, n_documents, is_repeat = rows.T
        goes_on = (document[1:] == document[:-1]) & (place[1:] == place[:-1] + 1) & (is_repeat[1:] == is_repeat[:-1])
        begins = np.flatnonzero(np.append(True, ~goes_on))
        last = np.append(begins[1:], len(rows)) - 1
        described = pq.read_table(one.path)
        at = np.searchsorted(described["number"].to_numpy(), document[begins] - first)
        described = described.take(at)
        found.append(
            tables.from_columns(
                SUBSTRINGS,
                {
                    "corpus": [shard.corpus] * len(begins),
                    "file": [str(shard.path)] * len(begins),
                    "row": described["row"].to_numpy() + offset,
                    "start": start[begins],
                    "end": end[last],
                    "n_tokens": place[last] - place[begins] + n_tokens,
                    "n_documents": np.maximum.reduceat(n_documents, begins),
                    "is_repeat": is_repeat[begins].astype(bool),
                    "doc_id": described["doc_id"].combine_chunks(),
                },
            )
        )
    return pa.concat_tables(found)
