"""The parts of a corpus that are scanned on their own, and what one worker does with one: scan it, and write a file.

A part file says what it was made from, and appears whole. When an audit is begun again, the parts that are there are
not scanned again; so a killed audit loses the parts that were under way, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow as pa

from evalkit.contamination.benchmarks import QUESTION, Benchmark, Item
from evalkit.contamination.index import Index, build_index
from evalkit.contamination.recorded import NEAR_SUFFIX, save_part
from evalkit.contamination.scan import ShardRuns, scan_shard, scan_texts
from evalkit.corpora.fingerprints import hash_piece, pieces_of
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.objects import join, put
from evalkit.corpora.shards import Shard
from evalkit.corpora.split import split_shard
from evalkit.engines import Shared
from evalkit.errors import InputError
from evalkit.files import to_json
from evalkit.progress import Bar

PART_BYTES: Final = 64 << 20
"""Bytes of a corpus file, as it lies on the disk, that one task scans: small enough to share out and to lose."""

_VERSION: Final = 4
_PROGRESS: Final = ".progress"
_METER_S: Final = 0.5
_TO_END: Final = -1


@dataclass(frozen=True)
class ScanTask:
    """A part of the corpus to be scanned. It can be pickled, and is small.

    Attributes
    ----------
    shard
        The part.
    changed
        When the file was changed last, in nanoseconds, if it is no address and no dataset.
    index
        Where the workers find the index.
    fingerprint
        Of that index.
    out
        Folder of the part files.
    text_column, id_column
        As `read_shard` takes them.
    pieces
        Pieces of the file, as bytes [start, stop), that are hashed by the way, while they are in the system's memory.
    n_bytes
        Of the file, about, to show how far the work is.
    store
        Address of a folder to which the part files are put instead, so that machines need not see each other's files.
    """

    shard: Shard
    changed: int | None
    index: Shared[Index]
    fingerprint: str
    out: Path
    text_column: str | tuple[str, ...]
    id_column: str | None
    pieces: tuple[tuple[int, int], ...] = ()
    n_bytes: int = 0
    store: str | None = None

    @property
    def key(self) -> str:
        """Hash of all that the result depends on. A file is told by its name, size and time of change."""
        shard = self.shard
        what = [_VERSION, self.fingerprint, str(shard.path), shard.size, self.changed, shard.start, shard.stop]
        return hashlib.sha256(to_json([*what, self.text_column, self.id_column])).hexdigest()

    @property
    def path(self) -> Path:
        """The part's file."""
        return self.out / f"{self.key}.parquet"


class Parts:
    """All tasks of an audit, made when they are asked for: of each, only its place in the file is kept.

    Parameters
    ----------
    shards
        The corpus files.
    index, fingerprint, out, text_column, id_column, store
        See `ScanTask`.
    part_bytes
        Bytes of a part.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        index: Shared[Index],
        fingerprint: str,
        out: Path,
        text_column: str | Sequence[str],
        id_column: str | None,
        part_bytes: int = PART_BYTES,
        store: str | None = None,
    ) -> None:
        self.shards, self._part_bytes = shards, part_bytes
        self._index, self._fingerprint, self._out = index, fingerprint, out
        self._columns = text_column if isinstance(text_column, str) else tuple(text_column)
        self._id_column = id_column
        self.store = store
        # Numbers, not objects: there can be a hundred thousand files, and as many parts.
        self._cuts, self._first_cut, self._changed = array("q"), array("q", [0]), array("q")

    def __iter__(self) -> Iterator[ScanTask]:
        """All tasks, file by file."""
        for number in range(len(self.shards)):
            yield from self.of(number)

    @property
    def n_known(self) -> int:
        """Parts of the files that were cut so far."""
        return len(self._cuts) // 2

    def of(self, number: int) -> list[ScanTask]:
        """Return the tasks of one file. It is cut the first time, in the order of the files.

        Raises
        ------
        InputError
            The file cannot be read.
        """
        if number == len(self._changed):
            self._cut(self.shards[number])
        shard, changed = self.shards[number], self._changed[number]
        cuts = self._cuts[self._first_cut[number] : self._first_cut[number + 1]]
        n_parts = len(cuts) // 2
        # Only what lies in files: an address would have to be read twice.
        pieces = pieces_of(shard.size) if isinstance(shard.path, Path) else []
        tasks = []
        for k, (start, stop) in enumerate(zip(cuts[::2], cuts[1::2], strict=True)):
            tasks.append(
                ScanTask(
                    replace(shard, start=start, stop=None if stop == _TO_END else stop),
                    changed if isinstance(shard.path, Path) else None,
                    self._index,
                    self._fingerprint,
                    self._out,
                    self._columns,
                    self._id_column,
                    tuple(pieces[k::n_parts]),
                    shard.size * (k + 1) // n_parts - shard.size * k // n_parts,
                    self.store,
                )
            )
        return tasks

    def _cut(self, shard: Shard) -> None:
        changed = 0
        if isinstance(shard.path, Path):
            try:
                changed = shard.path.stat().st_mtime_ns
            except OSError as error:
                raise InputError(
                    f"the file cannot be looked at ({error.strerror})",
                    where=str(shard.path),
                    do="Check that it is there",
                ) from None
        for part in split_shard(shard, self._part_bytes):
            self._cuts.extend((part.start, _TO_END if part.stop is None else part.stop))
        self._first_cut.append(len(self._cuts))
        self._changed.append(changed)


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
        The corpus cannot be read, or the audit that this belongs to is over.
    """
    meter = _Meter(task.path.with_suffix(_PROGRESS))
    runs = scan_shard(
        task.shard,
        task.index.get(),
        text_column=task.text_column,
        id_column=task.id_column,
        on_progress=meter.advance,
    )
    pieces = dict(zip((start for start, _ in task.pieces), _hashes(task), strict=True))
    found = replace(runs, pieces=pieces)
    if task.store is not None:
        _put_part(task, found, task.store)
        return
    try:
        save_part(task.path, found)
    except FileNotFoundError:  # a worker that outlived its audit leaves nothing in the result
        raise InputError(
            "the folder of the parts is gone", where=str(task.out), do="Let only one audit run there"
        ) from None


def _put_part(task: ScanTask, found: ShardRuns, store: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / task.path.name
        save_part(path, found)
        for one in (path.with_suffix(NEAR_SUFFIX), path):  # the second says that both are there
            put(one, join(store, one.name))


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
            with contextlib.suppress(OSError):  # only for show
                self._path.write_text(str(self._n_bytes))


class Progress:
    """Moves a bar by the parts that are done, and by what workers say of those under way.

    What they say arrives as files, so a file system that is slow to show them costs smoothness and nothing else.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._running: dict[int, ScanTask] = {}
        self._n_done, self._n_shown = 0, 0
        self._n_begun = 0

    def skip(self, task: ScanTask) -> None:
        """Count a part that was scanned before."""
        self._n_done += task.n_bytes

    def begin(self, task: ScanTask) -> None:
        """Count a part that is handed out; parts are numbered in this order."""
        self._running[self._n_begun] = task
        self._n_begun += 1

    def done(self, number: int) -> None:
        """Count the part with this number as scanned."""
        task = self._running.pop(number)
        self._n_done += task.n_bytes
        task.path.with_suffix(_PROGRESS).unlink(missing_ok=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Move the bar, in a thread, until the end of the block."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_METER_S):
                self._show()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._show()
            for task in self._running.values():
                task.path.with_suffix(_PROGRESS).unlink(missing_ok=True)

    def _show(self) -> None:
        n_bytes = self._n_done
        for task in list(self._running.values()):
            with contextlib.suppress(OSError, ValueError):  # not begun, or being written
                n_bytes += min(int(task.path.with_suffix(_PROGRESS).read_text()), task.n_bytes)
        self._bar.advance(max(n_bytes - self._n_shown, 0))
        self._n_shown = max(self._n_shown, n_bytes)
