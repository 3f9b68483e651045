"""The journal of a run: every request and its answer in SQLite, written as they arrive, so that nothing is lost."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from evalkit.errors import InputError

_MAX_UNCOMMITTED = 64
_MAX_SECONDS = 0.5
_LOOKUP_CHUNK = 500  # SQLite's default limit of variables is far above


def request_key(
    model_key: str, method: str, arguments: Any, *, seed: int | None, repeat: int | None, occurrence: int
) -> str:
    """Return the sha256 that names one request.

    Parameters
    ----------
    model_key
        Hash of the weights, the tokenizer and whatever else of the engine changes an answer: two models never share
        an answer.
    method
        `loglikelihood`, `loglikelihood_rolling` or `generate_until`.
    arguments
        The exact texts and generation settings.
    seed, repeat
        Of the pass that asks, for sampled answers; None for a deterministic request, whose answer every pass shares.
    occurrence
        The how-manieth equal request of the pass this is: K samples for one prompt are K requests.
    """
    whole = json.dumps([model_key, method, arguments, seed, repeat, occurrence], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


class Journal:
    """An open journal file. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._uncommitted = 0
        self._last_commit = time.monotonic()
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            # In WAL mode, NORMAL loses nothing when the process is killed; only a power cut can take the last commit.
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key TEXT PRIMARY KEY, method TEXT NOT NULL, request TEXT NOT NULL, answer TEXT NOT NULL, "
                "created REAL NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise InputError(
                f"the journal cannot be read ({error})", where=str(path), do="Move it away, or choose another --out"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the answers that are there, by key."""
        wanted = list(keys)
        found: dict[str, Any] = {}
        for begin in range(0, len(wanted), _LOOKUP_CHUNK):
            chunk = wanted[begin : begin + _LOOKUP_CHUNK]
            marks = ",".join("?" * len(chunk))
            rows = self._connection.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", chunk)  # noqa: S608 - only question marks are put in
            found.update((key, json.loads(answer)) for key, answer in rows)
        return found

    def add(self, key: str, method: str, arguments: Any, answer: Any) -> None:
        """Store one answer; it is on disk after at most 64 answers or half a second of further ones."""
        if not self._uncommitted:
            self._connection.execute("BEGIN")
        self._connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
            (key, method, json.dumps(arguments), json.dumps(answer), time.time()),
        )
        self._uncommitted += 1
        if self._uncommitted >= _MAX_UNCOMMITTED or time.monotonic() - self._last_commit > _MAX_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put everything that was added on disk."""
        if self._uncommitted:
            self._connection.execute("COMMIT")
        self._uncommitted = 0
        self._last_commit = time.monotonic()

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        self._connection.close()
