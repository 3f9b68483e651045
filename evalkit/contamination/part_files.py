"""Where the files of an audit's parts lie: in its directory, or at the address at which the directory will be.

At an address no worker needs to see another's files: each puts its own there, and the process that joins them lists the
folder once and fetches a few at a time.
"""

from __future__ import annotations

import re
import tempfile
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from evalkit.contamination.parts import ScanTask
from evalkit.contamination.recorded import NEAR_SUFFIX, load_part
from evalkit.contamination.scan import ShardRuns
from evalkit.corpora.objects import fetch, join, listing
from evalkit.errors import InputError

_SUFFIX: Final = ".parquet"
_NAME: Final = re.compile(rf"([0-9a-f]{{64}})({re.escape(NEAR_SUFFIX)}|{re.escape(_SUFFIX)})")
_N_FETCHED: Final = 8
"""Parts fetched at a time, and as many more wait to be read."""


class _Sizes:
    """Sizes in bytes of the files of many parts, found by the first 8 bytes of their keys.

    Two of a million parts agree in these once in forty million audits. What is fetched then does not exist, or is not
    of the size: an error, and no wrong result.
    """

    def __init__(self, keys: array[int], sizes: array[int]) -> None:
        numbers = np.frombuffer(keys, np.uint64)
        order = np.argsort(numbers)
        self._keys, self._sizes = numbers[order], np.frombuffer(sizes, np.int64)[order]

    def of(self, key: str) -> int | None:
        """Return the size of the file with this key; None: it is not there."""
        number = np.uint64(_number(key))
        place = int(np.searchsorted(self._keys, number))
        return int(self._sizes[place]) if place < len(self._keys) and self._keys[place] == number else None


def _number(key: str) -> int:
    return int(key[:16], 16)


class PartFiles:
    """The files of the parts that are scanned.

    Parameters
    ----------
    store
        Address of the folder in which they lie; None: where each task says.
    """

    def __init__(self, store: str | None = None) -> None:
        self._store = store
        self._sizes = {suffix: _Sizes(array("Q"), array("q")) for suffix in (NEAR_SUFFIX, _SUFFIX)}
        self.look()

    def look(self) -> None:
        """List what lies at the address now; one listing, however many parts.

        A part takes 32 bytes of memory, and twice that meanwhile. That the listing itself comes in pages is so on S3;
        other file systems make a list of all files, of about 700 bytes each, that lives as long as this call.
        """
        if self._store is None:
            return
        found: dict[str, tuple[array[int], array[int]]] = {suffix: (array("Q"), array("q")) for suffix in self._sizes}
        for name, one in listing(self._store):
            if (part := _NAME.fullmatch(name)) is not None:
                keys, sizes = found[part[2]]
                keys.append(_number(part[1]))
                sizes.append(one.size)
        self._sizes = {suffix: _Sizes(*both) for suffix, both in found.items()}

    def has(self, task: ScanTask) -> bool:
        """Whether a part was scanned, as far as is known since the last look."""
        if self._store is None:
            return task.path.exists()
        # The near matches come first, so that the other file says that both are there.
        return self._sizes[_SUFFIX].of(task.key) is not None

    def read(self, tasks: Iterable[ScanTask]) -> Iterator[ShardRuns]:
        """Yield what was found in each part.

        Raises
        ------
        InputError
            A part's files are gone, damaged, or not of the size that was listed.
        """
        if self._store is None:
            for task in tasks:
                yield load_part(task.path, task.shard)
            return
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_N_FETCHED) as pool:
            waiting: deque[tuple[ScanTask, Future[Path]]] = deque()
            for task in tasks:
                waiting.append((task, pool.submit(self._fetch, task, Path(folder))))
                if len(waiting) == 2 * _N_FETCHED:
                    yield _taken(*waiting.popleft())
            while waiting:
                yield _taken(*waiting.popleft())

    def _fetch(self, task: ScanTask, folder: Path) -> Path:
        store = str(self._store)
        path = folder / task.path.name
        for suffix, sizes in self._sizes.items():
            name, size = path.with_suffix(suffix).name, sizes.of(task.key)
            if size is None:
                raise InputError("the file of a part is gone", where=join(store, name), do="Give the command again")
            fetch(join(store, name), folder / name, size)
        return path


def _taken(task: ScanTask, fetched: Future[Path]) -> ShardRuns:
    path = fetched.result()
    found = load_part(path, task.shard)
    # Columns are copied when they are put together; until then they may be mapped from the file, which Linux keeps.
    path.unlink()
    path.with_suffix(NEAR_SUFFIX).unlink()
    return found
