"""What one worker does on its own: sign a part of the corpus, and sort its band keys. Each result is a file.

A file says by its name what it was made from, and appears whole. So a run that was killed goes on with what is there,
and one that is given more of a corpus signs only what is new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
from evalkit.dedup.lsh import Bands
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
    """Signatures of some documents, in files. All files are made by `sign_part` but those of the bands.

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

    def bands_path(self, bands: Bands) -> Path:
        """uint64[n_bands, 2, n]: for each band the keys, sorted, and the document of each."""
        return self.stem.with_suffix(f".{bands.n_bands}x{bands.n_rows}.npy")


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


@dataclass(frozen=True)
class BandTask:
    """The band keys of a signed part to be sorted."""

    part: Part
    bands: Bands

    @property
    def path(self) -> Path:
        """The file."""
        return self.part.bands_path(self.bands)


def sort_bands(task: BandTask) -> None:
    """Write the sorted band keys of a part: one band of it in memory at a time, and the signatures as they are read."""
    signatures = task.part.signatures
    shape = (task.bands.n_bands, 2, len(signatures))
    with atomic_path(task.path) as temporary:
        if not len(signatures):
            with temporary.open("wb") as file:
                np.save(file, np.empty(shape, dtype=np.uint64))
            return
        written = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint64, shape=shape)
        for band in range(task.bands.n_bands):
            keys = kernels.band_keys(signatures, band, task.bands.n_rows)
            order = np.argsort(keys, kind="stable")
            written[band, 0], written[band, 1] = keys[order], order
        written.flush()
        del written


@dataclass(frozen=True)
class SetTask:
    """The shingles of some documents of a part to be written, for comparing them in full.

    Attributes
    ----------
    task
        The part.
    wanted
        A file with the numbers, int64 and rising, of the wanted documents of all parts.
    first, n
        Number of the part's first document, and how many it has.
    path
        File to be written: uint64 values, one set after the other; `bounds_path` has the bounds, and is written last.
    """

    task: SignTask
    wanted: Path
    first: int
    n: int
    path: Path

    @property
    def bounds_path(self) -> Path:
        """int64[n_wanted + 1]: the bounds of the sets."""
        return self.path.with_suffix(".bounds.npy")

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Numbers of the wanted documents of this part, among those of all parts."""
        wanted = load_array(self.wanted)
        return np.asarray(wanted[slice(*np.searchsorted(wanted, [self.first, self.first + self.n]))])


def write_sets(task: SetTask) -> None:
    """Read a part again and write the shingles of the wanted documents.

    Raises
    ------
    InputError
        The corpus cannot be read, or has changed since it was signed.
    """
    wanted, how = task.numbers - task.first, task.task.how
    if not len(wanted):
        save_array(task.path, np.empty(0, dtype=np.uint64))
        save_array(task.bounds_path, np.zeros(1, dtype=np.int64))
        return
    reader = read_shard(task.task.shard, text_column=task.task.text_column, id_column=task.task.id_column)
    values, sizes, done = [np.empty(0, dtype=np.uint64)], [np.zeros(1, dtype=np.int64)], 0
    for batch in reader:
        which = wanted[slice(*np.searchsorted(wanted, [done, done + len(batch)]))] - done
        done += len(batch)
        data, offsets = arrow_buffers(batch.texts)
        found, bounds = kernels.shingle_sets(
            data, offsets, which, fold_table().arrays, how.shingling.unit == "words", how.shingling.size
        )
        values.append(found)
        sizes.append(np.diff(bounds))
    if done != task.n:
        raise InputError(
            f"the file has {done:,} documents now, and had {task.n:,} when it was signed",
            where=str(task.task.shard.path),
            do="Let nobody write to the corpus, and run the command again",
        )
    save_array(task.path, np.concatenate(values))
    save_array(task.bounds_path, np.cumsum(np.concatenate(sizes)))


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


def read_counts(part: Part) -> dict[str, Any]:
    """Read what became of the rows of a part: n_rows, n_documents, n_empty, n_bad, n_lines, and the bad_rows."""
    counts: dict[str, Any] = orjson.loads(pq.read_schema(part.documents_path).metadata[_COUNTS])
    return counts


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> npt.NDArray[Any]:
    """Map an array from its file.

    Raises
    ------
    InputError
        The file is damaged or gone.
    """
    try:
        # As a plain array: what the kernels are compiled for. Files of no bytes but the header cannot be mapped.
        array = np.load(path, mmap_mode=None if path.stat().st_size <= _HEADER_BYTES else "r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the file cannot be read ({error})", where=str(path), do="Delete it; it is made again"
        ) from None
    return np.asarray(array)


_HEADER_BYTES: Final = 128
