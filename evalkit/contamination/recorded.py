"""What scans have found, in files: one for each part while an audit is under way, one for all when it is complete.

The second is kept in the audit directory. Rules are applied to it without the corpus. It is three files: the runs, the
near matches, and what was counted in each corpus file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.contamination.scan import NearMatches, ShardRuns
from evalkit.corpora.documents import BadRow, ShardCounts
from evalkit.corpora.shards import Shard
from evalkit.corpora.split import row_offsets
from evalkit.errors import InputError
from evalkit.files import atomic_path, to_json

_TOTALS: Final = b"evalkit.totals"
_SHARD: Final = "shard"
_INTEGERS: Final = (
    *("rows", "fields", "places", "n_tokens", "starts", "ends"),
    *("n_skipping", "n_in_order", "n_document_tokens", "n_supports"),
)
_RUNS: Final = (*_INTEGERS, "doc_ids")
_NEAR: Final = ("rows", "doc_ids", "fields", "n_edits", "similarities", "starts", "ends", "texts")
NEAR_SUFFIX: Final = ".near.parquet"
FILES_SUFFIX: Final = ".files.parquet"
"""Of the files beside the other one."""

_COUNTS: Final = ("n_rows", "n_documents", "n_empty", "n_bad", "n_lines", "n_bytes", "n_corpus_tokens")
_MORE: Final = ("n_by_kind", "n_texts_by_field", "bad_rows", "empty_rows", "pieces")
_FILES: Final = pa.schema([(name, pa.int64()) for name in _COUNTS] + [(name, pa.large_string()) for name in _MORE])
_GATHERED: Final = 256
"""Files whose results are put together at a time: many small arrays take far more memory than what is in them."""


@dataclass(frozen=True)
class Found:
    """What a scan has found in a corpus: tables over all of its files, in their order.

    Attributes
    ----------
    shards
        The corpus files.
    runs, near
        The columns of `ShardRuns` and of its near matches, and the number of the file in `shard`, ascending.
    files
        A Parquet file with a row for each corpus file: the counts of `ShardCounts`, `n_bytes` and `n_corpus_tokens` as
        in `ShardRuns`, and as JSON what has no fixed form. It is kept compressed, since there can be many rows.
    """

    shards: Sequence[Shard]
    runs: pa.Table
    near: pa.Table
    files: pa.Buffer

    def column(self, name: str) -> Any:
        """Return a column of the runs: numbers as an array, others as Arrow has them."""
        return _column(self.runs, name)

    def near_column(self, name: str) -> Any:
        """Return a column of the near matches."""
        return _column(self.near, name)

    @property
    def shard(self) -> npt.NDArray[np.int64]:
        """The file of each run, and then of each near match."""
        return np.concatenate([self.column(_SHARD), self.near_column(_SHARD)])

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row in its file of each run's document, and then of each near match's."""
        return np.concatenate([self.column("rows"), self.near_column("rows")])

    def counts(self, name: str) -> npt.NDArray[np.int64]:
        """Return a count of each file."""
        counts: npt.NDArray[np.int64] = pq.read_table(pa.BufferReader(self.files), columns=[name]).column(0).to_numpy()
        return counts

    def total(self, name: str) -> Counter[str]:
        """Add up `n_by_kind` or `n_texts_by_field` over the files; what was counted and not found has 0."""
        total: Counter[str] = Counter()
        for one in self._decoded(name):
            total.update(one)
        return total

    def pieces(self) -> Iterator[Mapping[int, str]]:
        """Yield the hashes of each file's pieces by their first byte."""
        for one in self._decoded("pieces", empty=True):
            yield {int(start): digest for start, digest in one.items()}

    def listed_rows(self, *names: str) -> Iterator[BadRow]:
        """Yield, file by file, the rows in the lists `bad_rows` and `empty_rows`, as named."""
        for texts in self._texts(*names):
            for text in texts:
                if text != "[]":
                    yield from (BadRow(**row) for row in orjson.loads(text))

    def _decoded(self, name: str, *, empty: bool = False) -> Iterator[Any]:
        for (text,) in self._texts(name):
            if empty or text != "{}":
                yield orjson.loads(text)

    def _texts(self, *names: str) -> Iterator[tuple[str, ...]]:
        file = pq.ParquetFile(pa.BufferReader(self.files))
        for batch in file.iter_batches(_GATHERED, columns=list(names)):
            yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


class FoundJoiner:
    """Puts the results of files together, some at a time, so that few objects lie in memory however many files."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards, self._n_gathered = shards, 0
        self._waiting: list[ShardRuns] = []
        self._tables: dict[str, list[pa.Table]] = {"runs": [], "near": []}
        self._files = _FilesWriter()

    def add(self, parts: Sequence[ShardRuns]) -> None:
        """Add what was found in the parts of the next file."""
        self._waiting.append(_join(parts))
        if len(self._waiting) == _GATHERED:
            self._gather()

    def found(self) -> Found:
        """Return all of it."""
        self._gather()
        runs, near = (pa.concat_tables(some).combine_chunks() for some in self._tables.values())
        return Found(self._shards, runs, near, self._files.close())

    def _gather(self) -> None:
        if not self._waiting:
            return
        runs, near = _tables(self._waiting, first=self._n_gathered)
        self._tables["runs"].append(runs)
        self._tables["near"].append(near)
        self._files.write(_file_row(one) for one in self._waiting)
        self._n_gathered += len(self._waiting)
        self._waiting = []


class _FilesWriter:
    """Makes a Parquet file in memory, some rows at a time."""

    def __init__(self) -> None:
        self._out = pa.BufferOutputStream()
        # Without dictionaries and statistics, which are of no use here and take room in every row group.
        self._writer = pq.ParquetWriter(
            self._out, _FILES, compression="zstd", use_dictionary=False, write_statistics=False
        )

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=_FILES))

    def close(self) -> pa.Buffer:
        self._writer.close()
        return self._out.getvalue()


def save_part(path: Path, found: ShardRuns) -> None:
    """Write what was found in a part; the near matches lie beside `path`, which comes last.

    Raises
    ------
    FileNotFoundError
        The folder is not there. It is not made: one that was removed meanwhile is not to come back.
    """
    runs, near = _tables([found], first=0)
    totals = {
        "counts": _plain(found.counts),
        "n_bytes": found.n_bytes,
        "n_corpus_tokens": found.n_corpus_tokens,
        "pieces": {str(start): digest for start, digest in found.pieces.items()},
    }
    near_file = path.with_suffix(NEAR_SUFFIX)
    with atomic_path(path, makes_folder=False) as runs_path, atomic_path(near_file, makes_folder=False) as near_path:
        pq.write_table(near, near_path, compression="zstd")
        pq.write_table(runs.replace_schema_metadata({_TOTALS: to_json([totals])}), runs_path, compression="zstd")


def load_part(path: Path, shard: Shard) -> ShardRuns:
    """Read what was found in a part.

    Raises
    ------
    InputError
        The files are not there, or damaged.
    """
    try:
        runs, near = pq.read_table(path), pq.read_table(path.with_suffix(NEAR_SUFFIX))
        [total] = orjson.loads(runs.schema.metadata[_TOTALS])
        return ShardRuns(
            shard=shard,
            doc_ids=_column(runs, "doc_ids"),
            near=NearMatches(**{name: _column(near, name) for name in _NEAR}),
            counts=_counts(total["counts"]),
            n_bytes=total["n_bytes"],
            n_corpus_tokens=total["n_corpus_tokens"],
            pieces={int(start): digest for start, digest in total["pieces"].items()},
            **{name: _column(runs, name) for name in _INTEGERS},
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def write(runs_path: Path, near_path: Path, files_path: Path, found: Found) -> None:
    """Write what was found in a corpus to three files."""
    pq.write_table(found.runs, runs_path, compression="zstd")
    pq.write_table(found.near, near_path, compression="zstd")
    files_path.write_bytes(found.files)


def load(path: Path, shards: Sequence[Shard]) -> Found:
    """Read what was found in these files.

    Raises
    ------
    InputError
        The files are not there, or damaged.
    """
    try:
        runs, near = pq.read_table(path), pq.read_table(path.with_suffix(NEAR_SUFFIX))
        old = (runs.schema.metadata or {}).get(_TOTALS)
        if old is None:
            files = pa.py_buffer(path.with_suffix(FILES_SUFFIX).read_bytes())
        else:  # where the counts were kept at first
            writer = _FilesWriter()
            writer.write(_row_of(**total) for total in orjson.loads(old))
            files = writer.close()
        recorded = pq.ParquetFile(pa.BufferReader(files))
        for _ in recorded.iter_batches(_GATHERED):  # damaged bytes are to be found here
            pass
        if not recorded.schema_arrow.equals(_FILES):
            raise ValueError(f"the columns are {', '.join(recorded.schema_arrow.names)}")
        if recorded.metadata.num_rows != len(shards):
            raise ValueError(f"{recorded.metadata.num_rows} files are recorded, and the audit has {len(shards)}")
        return Found(
            shards,
            runs.select([*_RUNS, _SHARD]).combine_chunks(),
            near.select([*_NEAR, _SHARD]).combine_chunks(),
            files,
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"what the scan has recorded cannot be read ({type(error).__name__}: {error})",
        where=str(path),
        do="Audit again",
    )


def _tables(found: Sequence[ShardRuns], *, first: int) -> tuple[pa.Table, pa.Table]:
    """The runs and the near matches of some files, of which the first has the number `first`."""
    runs = {name: _concatenated([getattr(one, name) for one in found]) for name in _RUNS}
    near = {name: _concatenated([getattr(one.near, name) for one in found]) for name in _NEAR}
    numbers = np.arange(first, first + len(found))
    runs[_SHARD] = np.repeat(numbers, [len(one.rows) for one in found])
    near[_SHARD] = np.repeat(numbers, [len(one.near.rows) for one in found])
    return pa.table(runs), pa.table(near)


def _join(parts: Sequence[ShardRuns]) -> ShardRuns:
    """Put the parts of a file together, with the rows numbered in the whole file."""
    offsets = row_offsets([part.shard for part in parts], [part.counts.n_lines for part in parts])
    moved = [
        replace(
            part,
            rows=part.rows + offset,
            near=replace(part.near, rows=part.near.rows + offset),
            counts=part.counts.moved(offset),
        )
        for part, offset in zip(parts, offsets, strict=True)
    ]
    if len(moved) == 1:
        return moved[0]
    return ShardRuns(
        shard=replace(moved[0].shard, start=0, stop=None),
        doc_ids=_concatenated([part.doc_ids for part in moved]),
        near=NearMatches(**{name: _concatenated([getattr(part.near, name) for part in moved]) for name in _NEAR}),
        counts=ShardCounts.total([part.counts for part in moved]),
        n_bytes=sum(part.n_bytes for part in moved),
        n_corpus_tokens=sum(part.n_corpus_tokens for part in moved),
        pieces={start: digest for part in moved for start, digest in part.pieces.items()},
        **{name: _concatenated([getattr(part, name) for part in moved]) for name in _INTEGERS},
    )


def _file_row(one: ShardRuns) -> dict[str, Any]:
    return _row_of(_plain(one.counts), one.n_bytes, one.n_corpus_tokens, one.pieces)


def _row_of(counts: Mapping[str, Any], n_bytes: int, n_corpus_tokens: int, pieces: Mapping[Any, str]) -> dict[str, Any]:
    texts = {name: to_json(counts[name]).decode() for name in _MORE[:-1]}
    numbers = {name: counts[name] for name in _COUNTS[:5]}
    return {
        **numbers,
        "n_bytes": n_bytes,
        "n_corpus_tokens": n_corpus_tokens,
        **texts,
        "pieces": to_json(dict(pieces)).decode(),
    }


def _plain(counts: ShardCounts) -> dict[str, Any]:
    # Not `asdict`, which counts the pairs of a Counter.
    rows = {name: [asdict(row) for row in getattr(counts, name)] for name in ("bad_rows", "empty_rows")}
    return {**vars(counts), **rows}


def _counts(saved: dict[str, Any]) -> ShardCounts:
    return ShardCounts(
        **{
            **saved,
            **{name: Counter(saved[name]) for name in ("n_by_kind", "n_texts_by_field")},
            **{name: [BadRow(**row) for row in saved[name]] for name in ("bad_rows", "empty_rows")},
        }
    )


def _concatenated(columns: Sequence[Any]) -> Any:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    # Ids can be of any type of string, and of none where a shard has no document; all together can have 2 GiB.
    return pa.concat_arrays([column.cast(pa.large_string()) for column in columns])


def _column(table: pa.Table, name: str) -> Any:
    column = table.column(name).combine_chunks()
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return column.to_numpy() if is_number else column
