"""Reads an audit directory back: what `audit.json` says of the corpus, the rules and how texts were compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa

from evalkit import tables
from evalkit.contamination.texts import TEXTS, Texts, read_texts
from evalkit.corpora.rows import shard_named
from evalkit.corpora.shards import AUDIT_RECORD, Shard
from evalkit.errors import InputError
from evalkit.text.normalise import VERSION

_NEEDED: Final = ("normalisation_version", "corpus", "rules", "text_column", "id_column")


@dataclass(frozen=True)
class CorpusFile:
    """A corpus file as the audit found it.

    Attributes
    ----------
    shard
        The whole file, with its size then.
    fingerprint
        See `evalkit.corpora.fingerprints`; None when none was recorded.
    """

    shard: Shard
    fingerprint: str | None


@dataclass(frozen=True)
class AuditDirectory:
    """A complete audit.

    Attributes
    ----------
    path
        The directory.
    record
        `audit.json`.
    files
        The corpus by the names that the tables have for its files.
    text_column, id_column
        As `read_shard` takes them.
    """

    path: Path
    record: Mapping[str, Any]
    files: Mapping[str, CorpusFile]
    text_column: str | list[str]
    id_column: str | None

    @property
    def rules(self) -> list[str]:
        """Names of the rules that were applied."""
        return list(self.record["rules"])

    @cached_property
    def texts(self) -> Texts:
        """The items' texts, read when they are first asked for."""
        return read_texts(self.path / f"{TEXTS.name}.parquet")

    def read(self, table: tables.TableSchema) -> pa.Table:
        """Read one of the audit's tables."""
        return tables.read(self.path / f"{table.name}.parquet", table)


def open_audit(directory: Path) -> AuditDirectory:
    """Open a complete audit.

    Raises
    ------
    InputError
        The directory holds none, or one whose record is damaged or that was made by another version of the rule by
        which texts are compared.
    """
    path = directory / AUDIT_RECORD
    try:
        record = orjson.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"this is no complete audit ({AUDIT_RECORD}: {error.strerror})",
            where=str(directory),
            do="Name the directory that was given to `evalkit audit --out`, or audit again",
        ) from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"broken JSON ({error})", where=str(path), do="Restore the file, or audit again") from None
    missing = [name for name in _NEEDED if not isinstance(record, dict) or name not in record]
    if missing:
        raise InputError(f"the record has no '{missing[0]}'", where=str(path), do="Audit again")
    if record["normalisation_version"] != VERSION:
        raise InputError(
            f"texts were compared by version {record['normalisation_version']} of the rule, and this evalkit has "
            f"version {VERSION}",
            where=str(path),
            do="Use the evalkit that made the audit, or audit again",
        )
    files = {
        one["file"]: CorpusFile(shard_named(one["file"], one["size"], one["corpus"]), one.get("fingerprint"))
        for one in record["corpus"]
    }
    return AuditDirectory(directory, record, files, record["text_column"], record["id_column"])
