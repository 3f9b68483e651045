"""What scans have found, in files: one for each part while an audit is under way, one for all when it is complete.

The second is kept in the audit directory. Rules are applied to it without the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
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
_NEAR: Final = ("rows", "doc_ids", "fields", "n_edits", "similarities", "starts", "ends", "texts")
NEAR_SUFFIX: Final = ".near.parquet"
"""Of the file beside the other one."""


def save(path: Path, found: Sequence[ShardRuns]) -> None:
    """Write what was found in some shards; the near matches lie beside `path`, which comes last."""
    with atomic_path(path) as runs, atomic_path(path.with_suffix(NEAR_SUFFIX)) as near:
        write(runs, near, found)


def write(runs_path: Path, near_path: Path, found: Sequence[ShardRuns]) -> None:
    """Write what was found in some shards to two files."""
    runs = {name: _concatenated([getattr(one, name) for one in found]) for name in (*_INTEGERS, "doc_ids")}
    near = {name: _concatenated([getattr(one.near, name) for one in found]) for name in _NEAR}
    runs[_SHARD] = np.repeat(np.arange(len(found)), [len(one.rows) for one in found])
    near[_SHARD] = np.repeat(np.arange(len(found)), [len(one.near.rows) for one in found])
    totals = [
        {
            "counts": _plain(one.counts),
            "n_bytes": one.n_bytes,
            "n_corpus_tokens": one.n_corpus_tokens,
            "pieces": {str(start): digest for start, digest in one.pieces.items()},
        }
        for one in found
    ]
    pq.write_table(pa.table(near), near_path, compression="zstd")
    table = pa.table(runs).replace_schema_metadata({_TOTALS: to_json(totals)})
    pq.write_table(table, runs_path, compression="zstd")


def load(path: Path, shards: Sequence[Shard]) -> list[ShardRuns]:
    """Read what was found in these shards.

    Raises
    ------
    InputError
        The files are not there, or damaged.
    """
    try:
        runs, near = pq.read_table(path), pq.read_table(path.with_suffix(NEAR_SUFFIX))
        totals = orjson.loads(runs.schema.metadata[_TOTALS])
        by_shard = zip(shards, totals, _of_shards(runs, len(shards)), _of_shards(near, len(shards)), strict=True)
        return [
            ShardRuns(
                shard=shard,
                doc_ids=_column(mine, "doc_ids"),
                near=NearMatches(**{name: _column(close, name) for name in _NEAR}),
                counts=_counts(total["counts"]),
                n_bytes=total["n_bytes"],
                n_corpus_tokens=total["n_corpus_tokens"],
                pieces={int(start): digest for start, digest in total["pieces"].items()},
                **{name: _column(mine, name) for name in _INTEGERS},
            )
            for shard, total, mine, close in by_shard
        ]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"what the scan has recorded cannot be read ({type(error).__name__}: {error})",
            where=str(path),
            do="Audit again",
        ) from None


def join_parts(parts: Sequence[ShardRuns]) -> list[ShardRuns]:
    """Put the parts of each file together, with the rows numbered in the whole file; files stay in their order."""
    offsets = row_offsets([part.shard for part in parts], [part.counts.n_lines for part in parts])
    by_file: dict[Any, list[ShardRuns]] = {}
    for part, offset in zip(parts, offsets, strict=True):
        near = replace(part.near, rows=part.near.rows + offset)
        moved = replace(part, rows=part.rows + offset, near=near, counts=part.counts.moved(offset))
        by_file.setdefault(part.shard.path, []).append(moved)
    return [_join(some) for some in by_file.values()]


def _join(parts: Sequence[ShardRuns]) -> ShardRuns:
    if len(parts) == 1:
        return parts[0]
    return ShardRuns(
        shard=replace(parts[0].shard, start=0, stop=None),
        doc_ids=_concatenated([part.doc_ids for part in parts]),
        near=NearMatches(**{name: _concatenated([getattr(part.near, name) for part in parts]) for name in _NEAR}),
        counts=ShardCounts.total([part.counts for part in parts]),
        n_bytes=sum(part.n_bytes for part in parts),
        n_corpus_tokens=sum(part.n_corpus_tokens for part in parts),
        pieces={start: digest for part in parts for start, digest in part.pieces.items()},
        **{name: _concatenated([getattr(part, name) for part in parts]) for name in _INTEGERS},
    )


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


def _of_shards(table: pa.Table, n_shards: int) -> list[pa.Table]:
    """The rows of each shard, which lie one behind the other."""
    bounds = np.searchsorted(table.column(_SHARD).to_numpy(), np.arange(n_shards + 1))
    return [table.slice(begin, end - begin) for begin, end in pairwise(bounds.tolist())]


def _column(table: pa.Table, name: str) -> Any:
    column = table.column(name).combine_chunks()
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return column.to_numpy() if is_number else column
