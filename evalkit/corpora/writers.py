"""Writes a shard anew with some rows changed: same format, same compression, and every other row as it was.

JSON lines are never parsed but for the rows to be changed, so all others keep their bytes, also those that are no
documents. Of a changed line only the texts are replaced. Parquet keeps its schema, metadata, row groups and the
compression of each column; Arrow its schema, metadata, record batches and compression.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa

from evalkit.corpora.edits import Edit, Pending
from evalkit.corpora.fields import text_fields
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.shards import Shard, format_of
from evalkit.corpora.streams import read_chunks
from evalkit.corpora.write_columns import rewrite_arrow, rewrite_dataset, rewrite_parquet
from evalkit.corpora.write_lines import open_compressed, rewrite_lines
from evalkit.errors import InputError
from evalkit.files import write_json

# What `datasets` counts in its descriptions.
_COUNTED: Final = frozenset({"splits", "dataset_size", "size_in_bytes", "download_size", "download_checksums"})


def output_name(shard: Shard) -> str:
    """Name the file that a shard is written to: as it is called, and `.parquet` for a part of a dataset."""
    return f"{shard.path.name}.parquet" if isinstance(shard.path, DatasetPart) else shard.path.name


def rewrite_shard(
    shard: Shard,
    target: Path,
    rows: Sequence[int],
    edit: Edit,
    *,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
) -> None:
    """Write a whole shard to the file `target`, with `rows` edited and all others as they are.

    Memory is bounded by a batch or block, the longest line, and in Parquet by a row group or `MAX_GROUP_BYTES`.

    Parameters
    ----------
    shard
        A whole file.
    target
        Written in place; its folder exists.
    rows
        The rows to be edited, rising.
    edit
        Called once for each of them, in their order. Every row that it gives has the other columns of its row.
    text_column, id_column
        As for `read_shard`.

    Raises
    ------
    InputError
        The shard cannot be read to its end, one of `rows` is not there or no document, or a changed row cannot be
        written in its format.
    """
    fields = text_fields(text_column, id_column)
    pending = Pending(rows, edit, shard)
    shard_format = format_of(shard.path)
    try:
        if isinstance(shard.path, DatasetPart):
            rewrite_dataset(shard.path, target, pending, fields)
        elif shard_format is None:
            raise ValueError(f"{shard.path} is of no readable format")
        elif shard_format.kind == "parquet":
            rewrite_parquet(shard.path, target, pending, fields)
        elif shard_format.kind == "arrow":
            rewrite_arrow(shard.path, target, pending, fields)
        else:
            chunks = read_chunks(shard.path, shard_format.compression, lambda n_bytes: None, size=shard.size)
            with open_compressed(target, shard_format.compression) as out:
                rewrite_lines(pending.reading_each(chunks), out, pending, fields)
    except pa.ArrowException as error:
        raise InputError(
            f"the changed rows cannot be written in the same format ({error})",
            where=str(shard.path),
            do="Drop the documents instead of cutting them",
        ) from None
    except OSError as error:  # what is read has been caught before: the disk is full, or the like
        raise OSError(error.errno, error.strerror, str(target)) from error
    pending.finish()


def describe_saved(folders: Mapping[Path, Path], change: str) -> list[Path]:
    """Write what `datasets` keeps beside its files, so that `load_from_disk` opens the new folders; return what was.

    What is no longer true of the rows, their number and fingerprint, is left out or replaced. A `state.json` of another
    program, and descriptions that are missing or broken, are passed over: `load_from_disk` cannot open those.

    Parameters
    ----------
    folders
        For each folder with Arrow files where the same files were written anew; others are passed over.
    change
        What tells this change of the rows from others.
    """
    written: list[Path] = []
    splits: dict[Path, Path] = {}

    def write(path: Path, value: Any) -> None:
        write_json(path, value)
        written.append(path)

    for old, new in folders.items():
        state, info = _object_in(old / "state.json"), _object_in(old / "dataset_info.json")
        names = _data_files(state)
        if state is None or info is None or not names or not all((new / name).is_file() for name in names):
            continue
        state["_fingerprint"] = hashlib.sha256(f"{state['_fingerprint']} {change}".encode()).hexdigest()[:16]
        write(new / "dataset_info.json", {key: value for key, value in info.items() if key not in _COUNTED})
        write(new / "state.json", state)
        splits[old.parent] = new.parent
    for old, new in splits.items():
        named = (_object_in(old / "dataset_dict.json") or {}).get("splits")
        if isinstance(named, list) and all(isinstance(name, str) for name in named):
            there = [name for name in named if (new / name / "state.json").is_file()]
            write(new / "dataset_dict.json", {"splits": there})
    return written


def _object_in(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is none."""
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _data_files(state: Mapping[str, Any] | None) -> list[str]:
    """The files that a `state.json` names; none if it was not written by `datasets`."""
    files = state.get("_data_files") if state and "_fingerprint" in state else None
    if not isinstance(files, list) or not all(isinstance(one, dict) for one in files):
        return []
    names = [one.get("filename") for one in files]
    return names if all(isinstance(name, str) for name in names) else []
