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
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
_N_CUT: Final = 8
"""Files cut at a time, and as many more that wait: the footer of a file at an address takes tens of milliseconds."""

_Cuts = tuple[int, "array[int]"]
"""Of a file, when it was changed last, in nanoseconds, and where its parts begin and end, in turn."""


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
        # Numbers, not objects: there can be a hundred thousand files, and as many parts. Of each file, where its cuts
        # begin in the list of all, and how many parts they make, 0 while it is not cut.
        self._cuts = array("q")
        self._first_cut, self._n_parts, self._changed = (array("q", bytes(8 * len(shards))) for _ in range(3))

    def __iter__(self) -> Iterator[ScanTask]:
        """All tasks, file by file."""
        return self.of_files(range(len(self.shards)))

    def of_files(self, numbers: Iterable[int]) -> Iterator[ScanTask]:
        """Yield the tasks of some files, in this order. Threads cut a few files ahead, for that may be a long way off.

        Raises
        ------
        InputError
            A file cannot be read.
        """
        ahead: deque[tuple[int, Future[_Cuts] | None]] = deque()
        pool = ThreadPoolExecutor(_N_CUT)  # starts no thread before it has something to do
        try:
            for number in numbers:
                is_cut = self._n_parts[number] > 0
                ahead.append((number, None if is_cut else pool.submit(_cut, self.shards[number], self._part_bytes)))
                if len(ahead) == 2 * _N_CUT:
                    yield from self._taken(*ahead.popleft())
            while ahead:
                yield from self._taken(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _taken(self, number: int, cuts: Future[_Cuts] | None) -> list[ScanTask]:
        if cuts is not None:
            self._keep(number, cuts.result())
        return self.of(number)

    @property
    def n_known(self) -> int:
        """Parts of the files that were cut so far."""
        return len(self._cuts) // 2

    def of(self, number: int) -> list[ScanTask]:
        """Return the tasks of one file. It is cut the first time.

        Raises
        ------
        InputError
            The file cannot be read.
        """
        if not self._n_parts[number]:
            self._keep(number, _cut(self.shards[number], self._part_bytes))
        shard, changed = self.shards[number], self._changed[number]
        first, n_parts = self._first_cut[number], self._n_parts[number]
        cuts = self._cuts[first : first + 2 * n_parts]
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

    def _keep(self, number: int, cuts: _Cuts) -> None:
        if self._n_parts[number]:  # somebody else has cut it meanwhile
            return
        self._changed[number], places = cuts
        self._first_cut[number], self._n_parts[number] = len(self._cuts), len(places) // 2
        self._cuts.extend(places)


def _cut(shard: Shard, part_bytes: int) -> _Cuts:
    """Cut a file: when it was changed last, and where its parts begin and end."""
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
    places = array("q")
    for part in split_shard(shard, part_bytes):
        places.extend((part.start, _TO_END if part.stop is None else part.stop))
    return changed, places


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
