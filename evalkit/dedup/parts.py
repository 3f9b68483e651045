"""What one worker does on its own: sign a part of the corpus. Each result is a file.

A file says by its name what it was made from, and appears whole. So a run that was killed goes on with what is there,
and one that is given more of a corpus signs only what is new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalkit.corpora.documents import ShardCounts
from evalkit.corpora.readers import read_shard
from evalkit.corpora.shards import Shard
from evalkit.dedup import kernels
from evalkit.dedup.arrays import load_array, save_array
from evalkit.dedup.signatures import MinHashing, sign
from evalkit.errors import InputError
from evalkit.files import atomic_path, to_json
from evalkit.text.buffers import arrow_buffers
from evalkit.text.normalise import fold_table

_VERSION: Final = 1
_COUNTS: Final = b"evalkit.counts"
HASH_BYTES: Final = 16
"""Of the BLAKE2b hashes of texts."""

_TABLE: Final = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("doc_id", pa.string()),
        pa.field("raw_hash", pa.binary(HASH_BYTES)),
        pa.field("text_hash", pa.binary(HASH_BYTES)),
        pa.field("n_tokens", pa.int64()),
        pa.field("n_characters", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Part:
    """Signatures of some documents, in files, all made by `sign_part`.

    Attributes
    ----------
    stem
        The files' path without their endings; its name is a hash of all that the signatures depend on.
    """

    stem: Path

    @property
    def signatures_path(self) -> Path:
        """uint32[n, num_perm], as numpy's."""
        return self.stem.with_suffix(".npy")

    @property
    def documents_path(self) -> Path:
        """Which documents they are; written last."""
        return self.stem.with_suffix(".parquet")

    @property
    def is_signed(self) -> bool:
        """Whether the files are there."""
        return self.documents_path.exists()

    @property
    def signatures(self) -> npt.NDArray[np.uint32]:
        """The signatures, mapped from their file."""
        return load_array(self.signatures_path)

    @property
    def n_documents(self) -> int:
        """How many there are."""
        return len(self.signatures)

    @property
    def n_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each document."""
        found: npt.NDArray[np.int64] = read_documents(self, ["n_tokens"])["n_tokens"].to_numpy()
        return found

    def hashes(self, name: str) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a column of hashes, "text_hash" or "raw_hash", as uint64[n, 2]."""
        for chunk in read_documents(self, [name])[name].chunks:
            values = np.frombuffer(chunk.buffers()[1], dtype=np.uint64).reshape(-1, 2)
            yield values[chunk.offset : chunk.offset + len(chunk)]

    @property
    def counts(self) -> dict[str, Any]:
        """What became of the rows: n_rows, n_documents, n_empty, n_bad, n_lines, and the bad_rows."""
        counts: dict[str, Any] = orjson.loads(pq.read_schema(self.documents_path).metadata[_COUNTS])
        return counts


@dataclass(frozen=True)
class SignTask:
    """A part of the corpus to be signed. It can be pickled, and needs nothing but files.

    Attributes
    ----------
    shard
        The part.
    how
        How.
    out
        Folder of the files.
    text_column, id_column
        As `read_shard` takes them.
    """

    shard: Shard
    how: MinHashing
    out: Path
    text_column: str | tuple[str, ...]
    id_column: str | None

    @property
    def part(self) -> Part:
        """The files. A corpus file is told by its name, size and time of change."""
        shard = self.shard
        changed = shard.path.stat().st_mtime_ns if isinstance(shard.path, Path) else None
        what = [_VERSION, str(shard.path), shard.size, changed, shard.start, shard.stop, asdict(self.how)]
        return Part(self.out / hashlib.sha256(to_json([*what, self.text_column, self.id_column])).hexdigest()[:32])


def sign_part(task: SignTask) -> None:
    """Sign one part and write its files.

    Raises
    ------
    InputError
        The corpus cannot be read.
    """
    # Before reading: a file that changes meanwhile gets another name next time.
    part = task.part
    reader = read_shard(task.shard, text_column=task.text_column, id_column=task.id_column)
    signatures, tables = [np.empty((0, task.how.num_perm), dtype=np.uint32)], [_TABLE.empty_table()]
    for batch in reader:
        signed = sign(batch.texts, task.how)
        signatures.append(signed.signatures)
        raw, folded = content_hashes(batch.texts)
        columns = [
            batch.rows,
            batch.doc_ids.cast(pa.string()),
            raw,
            folded,
            signed.n_tokens,
            pc.utf8_length(batch.texts),
        ]
        tables.append(pa.table(columns, schema=_TABLE))
    write_part(part, np.concatenate(signatures), pa.concat_tables(tables), reader.counts.n_lines, reader.counts)


def write_part(
    part: Part, signatures: npt.NDArray[np.uint32], documents: pa.Table, n_lines: int, counts: ShardCounts
) -> None:
    """Write the files of a part."""
    save_array(part.signatures_path, signatures)
    told = {name: getattr(counts, name) for name in ("n_rows", "n_documents", "n_empty", "n_bad")}
    told["bad_rows"] = [asdict(row) for row in counts.bad_rows]
    table = documents.replace_schema_metadata({_COUNTS: to_json({**told, "n_lines": n_lines})})
    with atomic_path(part.documents_path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def content_hashes(texts: pa.LargeStringArray) -> tuple[pa.Array, pa.Array]:
    """Return the BLAKE2b hashes of the raw and of the normalised texts; of one without tokens, twice the raw one's.

    Texts without tokens ("?!") have nothing in common by that, so they are equal only where they are equal as written.
    """
    data, offsets = arrow_buffers(texts)
    plain, bounds = kernels.normalise_all(data, offsets, fold_table().arrays)
    raw = _hashes(data, offsets)
    folded = _hashes(plain, bounds)
    empty = np.flatnonzero(np.diff(bounds) == 0).tolist()
    for number in empty:
        folded[number] = raw[number]
    kind = pa.binary(HASH_BYTES)
    return pa.array(raw, type=kind), pa.array(folded, type=kind)


def _hashes(data: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> list[bytes]:
    view, ends = memoryview(data.data), bounds.tolist()
    return [hashlib.blake2b(view[ends[k] : ends[k + 1]], digest_size=HASH_BYTES).digest() for k in range(len(ends) - 1)]


# --- Files ---


def read_documents(part: Part, columns: Sequence[str] | None = None) -> pa.Table:
    """Read which documents a part has.

    Raises
    ------
    InputError
        The file is damaged.
    """
    try:
        return pq.read_table(part.documents_path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"the signatures cannot be read ({type(error).__name__}: {error})",
            where=str(part.documents_path),
            do="Delete the file; it is made again",
        ) from None
