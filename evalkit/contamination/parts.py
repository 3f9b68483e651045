"""What one worker does: scan a part of the corpus, and write what it found to a file that appears whole.

A part file says what it was made from. When an audit is begun again, the parts that are there are not scanned again; so
a killed audit loses the parts that were under way, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import pyarrow as pa

from evalkit.contamination.benchmarks import QUESTION, Benchmark, Item
from evalkit.contamination.index import Index, build_index, load_index
from evalkit.contamination.recorded import load, save
from evalkit.contamination.scan import ShardRuns, scan_shard, scan_texts
from evalkit.corpora.fingerprints import hash_piece
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.shards import Shard
from evalkit.errors import InputError
from evalkit.files import to_json
from evalkit.progress import Bar

_VERSION: Final = 4
_PROGRESS: Final = ".progress"
_METER_S: Final = 0.5


@dataclass(frozen=True)
class ScanTask:
    """A part of the corpus to be scanned. It can be pickled, and needs nothing but files.

    Attributes
    ----------
    shard
        The part.
    index
        Folder of the saved index.
    fingerprint
        Of that index.
    out
        Folder of the part files.
    text_column, id_column
        As `read_shard` takes them.
    pieces
        Pieces of the file, as bytes [start, stop), that are hashed by the way, while they are in the system's memory.
    """

    shard: Shard
    index: Path
    fingerprint: str
    out: Path
    text_column: str | tuple[str, ...]
    id_column: str | None
    pieces: tuple[tuple[int, int], ...] = ()

    @property
    def key(self) -> str:
        """Hash of all that the result depends on. A file is told by its name, size and time of change."""
        shard = self.shard
        changed = shard.path.stat().st_mtime_ns if isinstance(shard.path, Path) else None
        what = [_VERSION, self.fingerprint, str(shard.path), shard.size, changed, shard.start, shard.stop]
        return hashlib.sha256(to_json([*what, self.text_column, self.id_column])).hexdigest()

    @property
    def path(self) -> Path:
        """The part's file."""
        return self.out / f"{self.key}.parquet"


def warm_up() -> None:
    """Load the compiled kernels: half a second that a worker can spend while the index is made."""
    item = Item("", {QUESTION: "This question has words enough to be looked for by the windows in it."})
    index = build_index([Benchmark("", "", (item,), 0)], 5)
    scan_texts(pa.array(item.fields.values(), type=pa.large_string()), index)


def scan_part(task: ScanTask) -> None:
    """Scan one part and write its file.

    Raises
    ------
    InputError
        The corpus cannot be read.
    """
    # Before reading: a file that changes meanwhile gets another name next time.
    path = task.path
    meter = _Meter(path.with_suffix(_PROGRESS))
    runs = scan_shard(
        task.shard,
        _index(task.index, task.fingerprint),
        text_column=task.text_column,
        id_column=task.id_column,
        on_progress=meter.advance,
    )
    save(path, [replace(runs, pieces=dict(zip((start for start, _ in task.pieces), _hashes(task), strict=True)))])


def _hashes(task: ScanTask) -> list[str]:
    path, size = task.shard.path, task.shard.size
    if isinstance(path, DatasetPart):
        return []
    return [hash_piece(path, size, start, stop) for start, stop in task.pieces]


class _Meter:
    """Keeps how many bytes were read in a file, where the process that shows the progress finds it."""

    def __init__(self, path: Path) -> None:
        self._path, self._n_bytes, self._written = path, 0, 0.0

    def advance(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        if (now := time.monotonic()) - self._written > _METER_S:
            self._written = now
            self._path.write_text(str(self._n_bytes))


@contextlib.contextmanager
def shown_progress(tasks: Sequence[ScanTask], bar: Bar) -> Iterator[None]:
    """Advance `bar` by the bytes that the workers have read, in a thread, until the end of the block."""
    paths, ended, shown = [task.path.with_suffix(_PROGRESS) for task in tasks], threading.Event(), 0

    def show() -> None:
        nonlocal shown
        n_bytes = 0
        for path in paths:
            with contextlib.suppress(OSError, ValueError):  # not begun, or being written
                n_bytes += int(path.read_text())
        bar.advance(max(n_bytes - shown, 0))
        shown = max(shown, n_bytes)

    def watch() -> None:
        while not ended.wait(_METER_S):
            show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        show()
        for path in paths:
            path.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _index(folder: Path, fingerprint: str) -> Index:
    """The index, opened once in each process."""
    index = load_index(folder)
    if index.fingerprint != fingerprint:
        raise InputError(
            "the index is that of another audit", where=str(folder), do="Let only one audit run in a directory"
        )
    return index


def read_part(task: ScanTask) -> ShardRuns:
    """Read the file of a part that was scanned."""
    return load(task.path, [task.shard])[0]
