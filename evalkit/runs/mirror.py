"""A journal on the node's own disk, copied into the run directory on a shared file system now and then.

SQLite in WAL mode needs memory that all its users map, and locks: network file systems have no such memory, and often
no such locks. Plain files that appear whole work on all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from evalkit.errors import EngineError, InputError
from evalkit.files import atomic_path
from evalkit.progress import warn
from evalkit.runs.journal import Journal

PUBLISH_S: Final = 30.0
_OLD_S: Final = 30 * 24 * 3600.0
# Copying takes at most this share of the time, however large the journal is.
_SHARE: Final = 0.1


class Mirror:
    """Opens journals that live in `folder` and are copied to where they belong.

    What the folder holds from a process that was killed is taken up again, and so is what the run directory holds:
    a process that goes on there, on this node or another, asks again only what came after the last copy.

    Parameters
    ----------
    folder
        On a disk of this node; see `local_folder`.
    every_s
        Seconds between two copies: what is lost at most when the node is.
    check
        Called before each copy, and now and then before an answer is stored; raises when this process must not write
        any more.
    """

    def __init__(self, folder: Path, *, every_s: float = PUBLISH_S, check: Callable[[], None] = lambda: None) -> None:
        self._local = folder / "journal.sqlite"
        self._every_s, self._check = every_s, check
        self._publishing = threading.Lock()
        self._place: Path | None = None
        self._published: tuple[int, ...] = ()

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[Journal]:
        """Open the journal whose place is `path`; when the block ends, `path` is complete.

        Raises
        ------
        InputError
            What is at `path` is no journal, or damaged.
        EngineError
            It cannot be copied to `path`, or `check` says that this process must not go on.
        """
        ended = threading.Event()
        try:
            with Journal(self._local, check=self._check) as journal:
                self._seed(journal, path)
                self._place = path
                copying = threading.Thread(target=self._keep_publishing, args=(ended,), daemon=True)
                copying.start()
                try:
                    yield journal
                finally:
                    ended.set()
                    copying.join()
        finally:
            # Outside of the journal's block, so that its log is folded into the file.
            if self._place is not None:
                self._finish(path)

    def _finish(self, path: Path) -> None:
        try:
            self.publish()
        except (OSError, sqlite3.Error) as error:
            raise EngineError(
                f"the journal cannot be copied there ({error}); its answers are in {self._local} on this node",
                where=str(path),
                do="Mend that, and give the same command again",
            ) from error
        self._place = None
        shutil.rmtree(self._local.parent, ignore_errors=True)

    def publish(self) -> None:
        """Copy what has been answered until now; nothing where no journal is open, or nothing is new.

        Raises
        ------
        OSError, sqlite3.Error
            It cannot be copied.
        """
        with self._publishing:
            path, state = self._place, self._state()
            if path is None:
                return
            self._check()
            if state == self._published:
                return
            snapshot = self._local.with_name("snapshot.sqlite")
            snapshot.unlink(missing_ok=True)
            with (
                contextlib.closing(sqlite3.connect(self._local)) as source,
                contextlib.closing(sqlite3.connect(snapshot)) as copy,
            ):
                source.backup(copy)
                # One file, without a log beside it.
                copy.execute("PRAGMA journal_mode=DELETE")
            with atomic_path(path) as temporary:
                shutil.copyfile(snapshot, temporary)
                with temporary.open("rb+") as handle:
                    os.fsync(handle.fileno())
                # Before the new file has its name: the log of the old one would be laid over it, and damage it. What
                # the log held was seeded from it, and is in the new file, which only has to be renamed now.
                for suffix in ("-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
            snapshot.unlink()
            self._published = state

    def _seed(self, journal: Journal, path: Path) -> None:
        """Take up what another process has left at `path`."""
        if not path.exists():
            return
        seed = self._local.with_name("seed.sqlite")
        for suffix in ("", "-wal"):
            there, here = path.with_name(path.name + suffix), seed.with_name(seed.name + suffix)
            here.unlink(missing_ok=True)
            if there.exists():
                shutil.copyfile(there, here)
        try:
            journal.merge(seed)
        except InputError as error:
            raise InputError(error.what, where=str(path), do=error.do) from None
        for suffix in ("", "-wal", "-shm"):
            seed.with_name(seed.name + suffix).unlink(missing_ok=True)

    def _keep_publishing(self, ended: threading.Event) -> None:
        pause, is_told = self._every_s, False
        while not ended.wait(pause):
            begun = time.monotonic()
            try:
                self.publish()
            except EngineError:  # the lease is lost: the next answer, or the last copy, will say so
                return
            except (OSError, sqlite3.Error) as error:
                if not is_told:
                    warn(f"the journal cannot be copied to {self._place} ({error}); it is tried again")
                is_told = True
            pause = max(self._every_s, (time.monotonic() - begun) / _SHARE)

    def _state(self) -> tuple[int, ...]:
        """Sizes and times of the files, which change with every answer."""
        state: list[int] = []
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                status = self._local.with_name(self._local.name + suffix).stat()
                state += (status.st_size, status.st_mtime_ns)
        return tuple(state)


def local_folder(out: Path, sweep_id: str) -> Path:
    """A folder on this node's disk for the run in `out`, the same one for every process of this user and sweep.

    Raises
    ------
    InputError
        Somebody else has made a folder of that name.
    """
    folder = _parent() / hashlib.sha256(f"{sweep_id}\0{out.resolve()}".encode()).hexdigest()[:24]
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def remove_old_folders() -> None:
    """Remove what sweeps have left on this node a month ago, and finished elsewhere or not at all.

    Raises
    ------
    InputError
        As `local_folder`.
    """
    for folder in _parent().iterdir():
        with contextlib.suppress(OSError):
            changed = [folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.iterdir())]
            if time.time() - max(changed) > _OLD_S:
                shutil.rmtree(folder)


def _parent() -> Path:
    user = os.getuid()
    parent = Path(tempfile.gettempdir()) / f"evalkit-{user}"
    parent.mkdir(mode=0o700, exist_ok=True)
    # The name can be guessed, and the folder of temporary files is everybody's.
    if parent.is_symlink() or parent.stat().st_uid != user:
        raise InputError("this folder belongs to somebody else", where=str(parent), do="Set TMPDIR on this node")
    return parent
