"""Finds which documents of an audited corpus share text with which items: what `evalkit audit show` steps through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalkit import tables
from evalkit.contamination.record import AuditDirectory
from evalkit.contamination.rules import DIRTY
from evalkit.contamination.verify import Match
from evalkit.errors import SpecError

_PAIR: Final = ("file", "row", "benchmark", "doc_hash")


@dataclass(frozen=True)
class Pair:
    """A document and an item that have text in common.

    Attributes
    ----------
    file, row, benchmark, doc_hash
        The document and the item.
    matches
        Rows of the `matches` table, as they follow each other in the document.
    """

    file: str
    row: int
    benchmark: str
    doc_hash: str
    matches: tuple[Match, ...]


class Pairs(Sequence[Pair]):
    """The pairs in a table of matches: those with the largest share of a field first, of equals the longest."""

    def __init__(self, matches: pa.Table) -> None:
        self._matches = matches
        # Numbers in place of the names: they are grouped and sorted several times faster.
        numbered = pa.table(
            {
                **{name: _numbers(matches[name]) for name in _PAIR},
                **{name: matches[name] for name in ("coverage", "n_tokens")},
                "number": np.arange(len(matches)),
            }
        )
        best_first = [("coverage_max", "descending"), ("n_tokens_max", "descending")]
        self._pairs = (
            numbered.group_by(list(_PAIR))
            .aggregate([("coverage", "max"), ("n_tokens", "max"), ("number", "list")])
            .sort_by([*best_first, *((name, "ascending") for name in _PAIR)])
        )

    def __len__(self) -> int:
        return int(self._pairs.num_rows)

    def __getitem__(self, number: Any) -> Any:
        """Return one pair; with a slice, a list."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        numbers = self._pairs["number_list"][range(len(self))[number]].as_py()
        matches = self._matches.take(numbers).sort_by([("start", "ascending"), ("end", "ascending")]).to_pylist()
        return Pair(**{name: matches[0][name] for name in _PAIR}, matches=tuple(matches))

    @property
    def n_matches(self) -> int:
        """Matches in all pairs."""
        return len(self._matches)


def _numbers(column: pa.ChunkedArray) -> pa.Array:
    """Numbers that are equal where the values are; of names, in the order in which they first stand there."""
    if not pa.types.is_string(column.type):
        return column
    encoded = column.dictionary_encode().combine_chunks()
    return encoded.indices


def find_pairs(
    audit: AuditDirectory,
    *,
    item: str | None = None,
    benchmark: str | None = None,
    rule: str | None = None,
    document: str | None = None,
) -> Pairs:
    """Find the documents and items that have text in common.

    Parameters
    ----------
    audit
        A complete audit.
    item
        Only this item: its doc_id or doc_hash, or the beginning of the hash.
    benchmark
        Only this benchmark's items.
    rule
        Only matches of the fields that this rule finds dirty.
    document
        Only this document, as `FILE:ROW`, or only this file. The last parts of its path will do.

    Raises
    ------
    SpecError
        There is no such item, benchmark, rule or file in the audit.
    """
    matches = audit.read(tables.MATCHES)
    if benchmark is not None:
        _check_name("--benchmark", "benchmark", benchmark, audit.texts.benchmarks)
        matches = matches.filter(pc.equal(matches["benchmark"], benchmark))
    if item is not None:
        keys = audit.texts.find(item, benchmark)
        matches = matches.filter(pc.equal(matches["doc_hash"], keys[0][1]))
    if document is not None:
        matches = _in_document(matches, document, list(audit.files))
    if rule is not None:
        _check_name("--rule", "rule", rule, audit.rules)
        items = audit.read(tables.ITEMS)
        dirty = items.filter(pc.and_(pc.equal(items["rule"], rule), pc.equal(items["label"], DIRTY)))
        key = ["benchmark", "doc_hash", "field"]
        matches = matches.join(dirty.select(key), keys=key, join_type="left semi")
    return Pairs(matches.combine_chunks())


def _check_name(option: str, what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise SpecError(
            f"the audit has no {what} '{name}'", where=option, do=f"{hint}It has: {', '.join(known) or 'none'}"
        )


def _in_document(matches: pa.Table, document: str, files: Sequence[str]) -> pa.Table:
    """Keep the matches in one document, or in one file."""
    found = re.fullmatch(r"(.+):(\d+)", document, re.DOTALL)
    name, row = (document, None) if found is None or document in files else (found[1], int(found[2]))
    meant = [file for file in files if file in (name, str(Path(name).absolute()))]
    meant = meant or [file for file in files if file.endswith(f"/{name.removeprefix('./')}")]
    if not meant:
        raise SpecError(
            f"the audit has no corpus file '{name}'", where="--document", do="Write FILE:ROW, as in the matches table"
        )
    if len(meant) > 1:
        raise SpecError(
            f"'{name}' means {len(meant)} files ({', '.join(meant[:3])}{', ...' if len(meant) > 3 else ''})",
            where="--document",
            do="Give more of the path",
        )
    matches = matches.filter(pc.equal(matches["file"], meant[0]))
    return matches if row is None else matches.filter(pc.equal(matches["row"], row))
