"""Reads one shard of any format as batches of documents, and counts what is no document."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Self

from evalkit.corpora import parquet, streams
from evalkit.corpora.documents import Batch, ShardCounts, regroup
from evalkit.corpora.jsonl import read_jsonl
from evalkit.corpora.parquet import read_parquet
from evalkit.corpora.shards import FORMATS, Shard, format_of
from evalkit.errors import InputError


class ShardReader(Iterator[Batch]):
    """One pass over a shard: iterate for the batches, and read `counts` after (or during) it.

    The file is open from the first batch until the last one, `close`, or the end of a `with` block.

    Attributes
    ----------
    counts
        What became of the rows read so far; those of at most one further block may be in it already.
    """

    def __init__(self, batches: Generator[Batch, None, None], counts: ShardCounts) -> None:
        self._batches = batches
        self.counts = counts

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file before its end."""
        self._batches.close()


def read_shard(
    shard: Shard,
    *,
    text_column: str = "text",
    id_column: str | None = "id",
    batch_bytes: int = 8 << 20,
    on_progress: Callable[[int], None] | None = None,
) -> ShardReader:
    """Read a shard in batches of about `batch_bytes` bytes of text.

    Parameters
    ----------
    shard
        The file; its name says how it is read (see `FORMATS`).
    text_column
        The JSON field or Parquet column with the text.
    id_column
        The one with the document's id, if there is any. An id that is not a string becomes its JSON text; null and
        a missing id are null. None: all ids are null.
    batch_bytes
        A batch ends with the document that brings its text to this many bytes. It bounds the memory, together with
        the longest document.
    on_progress
        Called, as reading goes on, with the bytes of the file (compressed) read since the last call. They add up to
        its size.

    Raises
    ------
    InputError
        Here or while the batches are read: the file is of no readable format, cannot be opened, is cut short or
        corrupt (the message says how many rows were read before), or has no such column of text.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from evalkit.corpora.shards import find_shards
    >>> with TemporaryDirectory() as folder:
    ...     written = Path(folder, "part-0.jsonl").write_text('{"id": 7, "text": "A document."}\\nnot JSON\\n')
    ...     [shard] = find_shards([folder])
    ...     reader = read_shard(shard)
    ...     for batch in reader:
    ...         print(batch.rows, batch.doc_ids.to_pylist(), batch.texts.to_pylist())
    ...     print(reader.counts.n_documents, [bad.row for bad in reader.counts.bad_rows])
    [0] ['7'] ['A document.']
    1 [1]
    """
    if batch_bytes < 1:
        raise ValueError(f"batch_bytes must be at least 1, not {batch_bytes}")
    counts = ShardCounts()
    pieces = _pieces(shard, text_column, id_column, batch_bytes, counts, on_progress or (lambda n_bytes: None))
    return ShardReader(_batches(pieces, batch_bytes, shard.path, counts), counts)


def _pieces(
    shard: Shard,
    text_column: str,
    id_column: str | None,
    batch_bytes: int,
    counts: ShardCounts,
    on_progress: Callable[[int], None],
) -> Generator[Batch, None, None]:
    """Documents in whatever portions suit the format."""
    shard_format = format_of(shard.path)
    if shard_format is None:
        raise InputError(
            "no reader knows this kind of file", where=str(shard.path), do=f"Use one of {', '.join(FORMATS)}"
        )
    if shard_format.kind == "parquet":
        # Row sizes are averages, so the pieces are kept well below the batch.
        piece_bytes = max(1, batch_bytes // 4)
        yield from read_parquet(shard.path, shard.size, text_column, id_column, piece_bytes, counts, on_progress)
    else:
        yield from read_jsonl(shard.path, shard_format.compression, text_column, id_column, counts, on_progress)


def _batches(
    pieces: Generator[Batch, None, None], batch_bytes: int, path: Path, counts: ShardCounts
) -> Generator[Batch, None, None]:
    """Regroup the pieces, and turn what goes wrong in reading them into an error for the user."""
    try:
        yield from regroup(pieces, batch_bytes)
    except (*streams.READ_ERRORS, *parquet.READ_ERRORS) as error:
        raise _unreadable(path, counts, error) from None
    finally:
        pieces.close()


def _unreadable(path: Path, counts: ShardCounts, error: Exception) -> InputError:
    rows = f"{counts.n_rows} rows were read before"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return InputError(
            f"the file cannot be read ({error.strerror}); {rows}",
            where=str(path),
            do="Check that it is there and readable",
        )
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"the file is cut short or corrupt ({detail}); {rows}", where=str(path), do="Copy, download or write it again"
    )
