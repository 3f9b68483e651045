"""The journal of a run: every request and its answer in SQLite, written as they arrive, so that nothing is lost."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from evalkit.errors import InputError

_LOOKUP_CHUNK = 500  # SQLite's default limit of variables is far above
_BUSY_MS = 30_000
_CHECK_S: Final = 5.0


def request_key(model_key: str, request: Mapping[str, Any], *, repeat: int | None) -> str:
    """Return the sha256 that names one request.

    Parameters
    ----------
    model_key
        Hash of the weights, the tokenizer, its template, and the engine with its version: two models never share an
        answer.
    request
        The exact token ids or messages, and all sampling parameters with the seed.
    repeat
        Of a sampled answer; None for a deterministic request, whose answer every repeat shares.
    """
    whole = json.dumps([model_key, request, repeat], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


class Journal:
    """An open journal file. Use it in a `with` block.

    Each answer is its own transaction: in WAL mode that is one small write without waiting for the disk, and a
    process that is killed loses nothing that it had written. Only a power cut can take the last answers.

    Several runs may share one file, also at the same time. `read_only` opens a file that is there, and writes nothing.
    `check` is called now and then before an answer is stored; it raises when this process must not go on.
    """

    def __init__(self, path: Path, *, read_only: bool = False, check: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._check, self._checked = check, time.monotonic()
        if read_only:
            self._connection = _open_to_read(path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # In a notebook, answers come on another thread, while the first one waits.
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key TEXT PRIMARY KEY, method TEXT NOT NULL, request TEXT NOT NULL, answer TEXT NOT NULL, "
                "created REAL NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise InputError(
                f"the journal cannot be opened ({error})",
                where=str(path),
                do="Move it away, or choose another --out or --journal",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the answers that are there, by key."""
        return {key: answer for key, (_, _, answer) in self.entries(keys).items()}

    def entries(self, keys: Iterable[str]) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
        """Return (method, request, answer) of what is there, by key.

        Raises
        ------
        InputError
            The file is no journal, or damaged.
        """
        try:
            return self._entries(list(dict.fromkeys(keys)))
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise InputError(
                f"the journal cannot be read ({error})", where=str(self.path), do="Bring back the run's own"
            ) from None

    def _entries(self, wanted: Sequence[str]) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
        found = {}
        for begin in range(0, len(wanted), _LOOKUP_CHUNK):
            chunk = wanted[begin : begin + _LOOKUP_CHUNK]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT key, method, request, answer FROM answers WHERE key IN ({marks})"  # noqa: S608 - only question marks are put in
            for key, method, request, answer in self._connection.execute(query, chunk):
                found[key] = (method, json.loads(request), json.loads(answer))
        return found

    def add(self, key: str, method: str, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Store one answer; it survives a kill of the process from here on."""
        if (now := time.monotonic()) - self._checked > _CHECK_S:
            self._check()
            self._checked = now
        self._connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
            (key, method, json.dumps(request), json.dumps(answer), time.time()),
        )

    def merge(self, other: Path) -> None:
        """Take over the answers of another journal's file that are not here yet.

        Raises
        ------
        InputError
            That file is no journal, or damaged.
        """
        try:
            self._connection.execute("ATTACH DATABASE ? AS other", (str(other),))
            try:
                self._connection.execute("INSERT OR IGNORE INTO answers SELECT * FROM other.answers")
            finally:
                self._connection.execute("DETACH DATABASE other")
        except sqlite3.Error as error:
            raise InputError(
                f"the journal cannot be read ({error})",
                where=str(other),
                do="Move it away, or bring back the run's own",
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _open_to_read(path: Path) -> sqlite3.Connection:
    # Without a log beside the file nobody writes to it, and SQLite need not make one either.
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() else "immutable=1"
    try:
        return sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, check_same_thread=False)
    except sqlite3.Error as error:
        raise InputError(f"the journal cannot be opened ({error})", where=str(path), do="Bring it back") from None
