"""A lease on a run directory: of several processes, on whatever machines, one at a time works in it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Final, Self

from evalkit.errors import EngineError, InputError
from evalkit.progress import logger, say

LEASE: Final = ".lease.json"
_SIZE: Final = 1024
_POLL_S: Final = 0.2
_SAY_S: Final = 3.0
_OLD_S: Final = 3600.0


class Lease:
    """A file that its holder keeps renewing. Use it in a `with` block.

    A file system that nodes share may have no locks, or lose them with a node. So the holder writes a new number every
    `beat_s` seconds, and whoever waits takes the directory over when the number has stood still for `expiry_s` seconds
    by its own clock, or at once where it can see that the holder's process is gone. A holder that was only slow sees
    at its next beat that it has lost the lease; `check` then raises.

    Parameters
    ----------
    folder
        The run directory; it is made if it is not there, and then removed if nothing is in it at the end.
    owner
        Who holds it, for people.
    beat_s, expiry_s, patience_s
        Seconds between two beats, without a beat until the lease counts as abandoned, and to wait for a living holder.
    """

    def __init__(
        self, folder: Path, owner: str, *, beat_s: float = 2.0, expiry_s: float = 20.0, patience_s: float = 60.0
    ) -> None:
        self._path, self._owner = folder / LEASE, owner
        self._beat_s, self._expiry_s, self._patience_s = beat_s, expiry_s, patience_s
        self._token, self._n_beats = uuid.uuid4().hex, 0
        self._ended, self._lost = threading.Event(), False
        self._is_folder_made = False
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Take the lease.

        Raises
        ------
        InputError
            Somebody else keeps it.
        """
        begun = since = time.monotonic()
        seen, is_told = b"", False
        self._is_folder_made = not self._path.parent.exists()
        while not self._create():
            now, content = time.monotonic(), self._content()
            if content != seen:
                seen, since = content, now
            holder = _parse(content)
            if _is_gone(holder) or now - since > self._expiry_s:
                if self._take_over():
                    logger.info("%s: the lease of %s was abandoned", self._path.parent, holder.get("owner"))
                    break
            elif now - begun > self._patience_s:
                raise InputError(
                    f"{_named(holder)} works in this run directory",
                    where=str(self._path.parent),
                    do="Wait for it, or end it",
                )
            elif now - begun > _SAY_S and not is_told:
                say(f"{self._path.parent}: waiting for {_named(holder)}, which works there or was ended there")
                is_told = True
            time.sleep(_POLL_S)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        if not self._lost and self._is_mine():
            self._path.unlink(missing_ok=True)
            if self._is_folder_made:
                with contextlib.suppress(OSError):
                    # Only an empty one can be removed: what came to nothing leaves nothing.
                    self._path.parent.rmdir()

    def check(self) -> None:
        """Raise where the lease was lost.

        Raises
        ------
        EngineError
            Another process took this one for dead, and works here now.
        """
        if self._lost or not self._is_mine():
            self._lost = True
            holder = _parse(self._content())
            raise EngineError(
                f"this process was taken for dead, and {holder.get('owner', 'another')} goes on in its place",
                where=str(self._path.parent),
                do="Nothing is lost; look why this machine stood still",
            )

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            # A hiccup of the file system is no loss: the next beat may succeed.
            with contextlib.suppress(OSError):
                if not self._is_mine():
                    self._lost = True
                    return
                self._n_beats += 1
                # In place, not renamed over: then network file systems show it to whoever opens the file next.
                with self._path.open("rb+") as file:
                    file.write(self._line())

    def _create(self) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):
            # It is held, or the folder was removed just now by who gave it back.
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(self._line())
        return True

    def _take_over(self) -> bool:
        """Put an own file in the place of an abandoned one; of several who do so, the last one has it."""
        temporary = self._path.with_name(f"{LEASE}.{self._token[:8]}.tmp")
        temporary.write_bytes(self._line())
        temporary.replace(self._path)
        time.sleep(2 * _POLL_S)
        return self._is_mine()

    def _is_mine(self) -> bool:
        return bool(_parse(self._content()).get("token") == self._token)

    def _content(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def _line(self) -> bytes:
        record = {
            "token": self._token,
            "owner": self._owner,
            "host": platform.node(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "machine": _machine(),
            "beat": self._n_beats,
        }
        # Always as long, so that no reader meets the end of an older record.
        return json.dumps(record).encode().ljust(_SIZE - 1) + b"\n"


def remove_abandoned(folder: Path) -> None:
    """Remove the lease of a holder that is seen to be gone, or has not renewed it for an hour; any other stays."""
    path = folder / LEASE
    with contextlib.suppress(OSError):
        if _is_gone(_parse(path.read_bytes())) or time.time() - path.stat().st_mtime > _OLD_S:
            path.unlink()


def _named(holder: dict[str, Any]) -> str:
    return f"{holder.get('owner', 'another process')} (host {holder.get('host')}, process {holder.get('pid')})"


def _machine() -> str | None:
    """Names the machine since it was started, and the container: only in one of these can two processes see each other.

    None where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks; None when it is not there, or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder ran where this process can see it, and is not there any more."""
    machine, pid = _machine(), holder.get("pid")
    if machine is None or holder.get("machine") != machine or not isinstance(pid, int):
        return False
    # The number of a process is used again.
    return _started(pid) != holder.get("started")


def _parse(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
