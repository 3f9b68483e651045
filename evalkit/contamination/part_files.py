"""Where the files of an audit's parts lie: in its directory, or at the address at which the directory will be.

At an address no worker needs to see another's files: each puts its own there, and the process that joins them lists the
folder once and fetches a few at a time.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from evalkit.contamination.parts import ScanTask
from evalkit.contamination.recorded import NEAR_SUFFIX, load_part
from evalkit.contamination.scan import ShardRuns
from evalkit.corpora.objects import fetch, join, listing
from evalkit.errors import InputError

_N_FETCHED: Final = 8
"""Parts fetched at a time, and as many more wait to be read."""


class PartFiles:
    """The files of the parts that are scanned.

    Parameters
    ----------
    store
        Address of the folder in which they lie; None: where each task says.
    """

    def __init__(self, store: str | None = None) -> None:
        self._store = store
        self._sizes: dict[str, int] = {}
        self.look()

    def look(self) -> None:
        """List what lies at the address now; one listing, however many parts."""
        if self._store is not None:
            self._sizes = {name: one.size for name, one in listing(self._store)}

    def has(self, task: ScanTask) -> bool:
        """Whether a part was scanned, as far as is known since the last look."""
        if self._store is None:
            return task.path.exists()
        # The near matches come first, so that the other file says that both are there.
        return task.path.name in self._sizes

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
        for name in (path.with_suffix(NEAR_SUFFIX).name, path.name):
            if name not in self._sizes:
                raise InputError("the file of a part is gone", where=join(store, name), do="Give the command again")
            fetch(join(store, name), folder / name, self._sizes[name])
        return path


def _taken(task: ScanTask, fetched: Future[Path]) -> ShardRuns:
    path = fetched.result()
    found = load_part(path, task.shard)
    # Columns are copied when they are put together; until then they may be mapped from the file, which Linux keeps.
    path.unlink()
    path.with_suffix(NEAR_SUFFIX).unlink()
    return found
