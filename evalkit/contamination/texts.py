"""The texts of the benchmark items, kept in the audit directory: what was looked for, to be shown and re-checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from evalkit import tables
from evalkit.contamination.benchmarks import Benchmark
from evalkit.errors import InputError, SpecError
from evalkit.tables import TableSchema

TEXTS: Final = TableSchema(
    "texts",
    pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in ("benchmark", "doc_hash", "field")),
            pa.field("text", pa.large_string(), nullable=False),
            pa.field("is_code", pa.bool_(), nullable=False),
            pa.field("doc_id", pa.string()),
        ]
    ),
    key=("benchmark", "doc_hash", "field"),
    choices={},
)
"""One row per item and field. `is_code` says that it is compared by the rule for program code; `doc_id` is what the
benchmark itself calls the item, null when it has no name for it."""

ItemKey = tuple[str, str]
"""Benchmark and doc_hash."""

_SHORTEST_PREFIX: Final = 4


def texts_of(benchmarks: Sequence[Benchmark]) -> pa.Table:
    """The texts of all items, also of fields too short to be looked for, in the order of the benchmarks."""
    parts = [pa.table([()] * len(TEXTS.schema), schema=TEXTS.schema)]
    for benchmark in benchmarks:
        is_code = cache(benchmark.is_code)
        names = [name for item in benchmark.items for name in item.fields]
        texts = [_encodable(text) for item in benchmark.items for text in item.fields.values()]
        numbers = pa.array(np.repeat(np.arange(len(benchmark.items)), [len(item.fields) for item in benchmark.items]))
        columns = {
            "benchmark": pa.repeat(benchmark.name, len(names)),
            "doc_hash": pa.array([item.doc_hash for item in benchmark.items], pa.string()).take(numbers),
            "field": pa.array(names, pa.string()),
            "text": pa.array(texts, pa.large_string()),
            "is_code": pa.array([is_code(name) for name in names], pa.bool_()),
            "doc_id": pa.array([item.doc_id for item in benchmark.items], pa.string()).take(numbers),
        }
        parts.append(pa.table(columns, schema=TEXTS.schema))
    return pa.concat_tables(parts)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which cannot be written, as the index does."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Texts:
    """The texts of an audit's items.

    Attributes
    ----------
    fields
        For each item its texts by field, in the order of the benchmarks and their fields.
    doc_ids
        For each item, its name in the benchmark, if it has one.
    code
        Benchmarks and fields that are compared as program code.
    """

    fields: Mapping[ItemKey, Mapping[str, str]]
    doc_ids: Mapping[ItemKey, str | None]
    code: frozenset[tuple[str, str]]

    @cached_property
    def benchmarks(self) -> list[str]:
        """Names of the benchmarks, in their order."""
        return list(dict.fromkeys(benchmark for benchmark, _ in self.fields))

    def find(self, item: str, benchmark: str | None = None) -> list[ItemKey]:
        """Return the items that a user means.

        Parameters
        ----------
        item
            The item's doc_id or doc_hash, or at least the first 4 characters of the hash.
        benchmark
            Only this benchmark's items.

        Returns
        -------
        list
            The same document can be an item of several benchmarks, so there may be several.

        Raises
        ------
        SpecError
            No item is meant, or several different ones.
        """
        among = [key for key in self.fields if benchmark in (None, key[0])]
        found = [key for key in among if item in (self.doc_ids[key], key[1])]
        if not found and len(item) >= _SHORTEST_PREFIX:
            found = [key for key in among if key[1].startswith(item)]
        if not found:
            of = f" of {benchmark}" if benchmark else ""
            raise SpecError(
                f"no item{of} has the doc_id or doc_hash '{item}'",
                where="--item",
                do="doc_hash is a column of the audit's tables and of a run's samples; "
                f"its first {_SHORTEST_PREFIX} characters or more will do",
            )
        if len({doc_hash for _, doc_hash in found}) > 1:
            some = ", ".join(f"{doc_hash[:12]} of {name}" for name, doc_hash in found[:5])
            raise SpecError(
                f"'{item}' means {len(found)} items ({some}{', ...' if len(found) > 5 else ''})",
                where="--item",
                do="Give more of the hash, or --benchmark",
            )
        return found


def read_texts(path: Path) -> Texts:
    """Read the texts of an audit.

    Raises
    ------
    InputError
        They are not there.
    TableError
        The file is damaged.
    """
    if not path.is_file():
        raise InputError("the audit does not hold the items' texts", where=str(path), do="Audit again")
    fields: dict[ItemKey, dict[str, str]] = {}
    doc_ids: dict[ItemKey, str | None] = {}
    code = set()
    for row in tables.read(path, TEXTS).to_pylist():
        key = row["benchmark"], row["doc_hash"]
        fields.setdefault(key, {})[row["field"]] = row["text"]
        doc_ids[key] = row["doc_id"]
        if row["is_code"]:
            code.add((row["benchmark"], row["field"]))
    return Texts(fields, doc_ids, frozenset(code))
